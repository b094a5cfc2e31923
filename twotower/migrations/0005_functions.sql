-- Nearest neighbours for the product. Both run with the rights of the caller, so row-level security holds inside.
--
-- The index is used because the order is the bare operator with a limit; it is scanned on while rows are filtered out.
-- The plan is made for the limit at hand: for an unknown one PostgreSQL expects a tenth of the table and sorts it all.
-- Two models speak two languages: only embeddings of one model version are compared.
-- Supabase keeps pgvector in the schema `extensions`, others in `public`; a name that does not exist is passed over.

-- Loads pgvector, so that its settings are known and need no superuser below.
DO $$
BEGIN
    PERFORM set_config('search_path', 'public, ' || quote_ident(nspname), true)
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'vector';
    PERFORM '[1]'::halfvec;
END
$$;

CREATE OR REPLACE FUNCTION public.recommend_videos(p_user_id uuid, p_limit integer DEFAULT 20)
RETURNS TABLE (video_id uuid, title text, product_url text, score real)
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = public, extensions, pg_temp
SET hnsw.iterative_scan = strict_order
SET hnsw.ef_search = 100
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    taste halfvec(128);
    version text;
BEGIN
    SELECT u.embedding, u.model_version INTO taste, version FROM public.user_embeddings u WHERE u.user_id = p_user_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
        WITH nearest AS MATERIALIZED (
            SELECT e.video_id, e.embedding <=> taste AS distance
            FROM public.video_embeddings e
            WHERE e.model_version = version AND NOT EXISTS (
                SELECT FROM public.user_video_decisions d
                WHERE d.user_id = p_user_id AND d.video_id = e.video_id
            )
            ORDER BY e.embedding <=> taste
            LIMIT p_limit
        )
        SELECT v.id, v.title, v.product_url, (1 - n.distance)::real
        FROM nearest n JOIN public.videos v ON v.id = n.video_id
        ORDER BY n.distance, v.id;
END
$$;

CREATE OR REPLACE FUNCTION public.similar_videos(p_video_id uuid, p_limit integer DEFAULT 20)
RETURNS TABLE (video_id uuid, title text, product_url text, score real)
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = public, extensions, pg_temp
SET hnsw.iterative_scan = strict_order
SET hnsw.ef_search = 100
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    likeness halfvec(128);
    version text;
BEGIN
    SELECT e.embedding, e.model_version INTO likeness, version FROM public.video_embeddings e WHERE e.video_id = p_video_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
        WITH nearest AS MATERIALIZED (
            SELECT e.video_id, e.embedding <=> likeness AS distance
            FROM public.video_embeddings e
            WHERE e.model_version = version AND e.video_id <> p_video_id
            ORDER BY e.embedding <=> likeness
            LIMIT p_limit
        )
        SELECT v.id, v.title, v.product_url, (1 - n.distance)::real
        FROM nearest n JOIN public.videos v ON v.id = n.video_id
        ORDER BY n.distance, v.id;
END
$$;

REVOKE ALL ON FUNCTION public.recommend_videos(uuid, integer) FROM PUBLIC, anon;
GRANT EXECUTE ON FUNCTION public.recommend_videos(uuid, integer) TO authenticated, service_role;
REVOKE ALL ON FUNCTION public.similar_videos(uuid, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.similar_videos(uuid, integer) TO anon, authenticated, service_role;
