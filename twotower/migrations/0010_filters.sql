-- Recommendations among the videos with a tag, or of a time.
--
-- Few candidates are compared one by one: then the answer is exact, and whole even where the index would give up before it has
-- found them. Many are found by the index, which is scanned on while rows are filtered out; 100,000 rows at most.
-- Both run with the rights of the caller, so row-level security holds inside; see 0005_functions.sql for the other settings.

-- Loads pgvector, so that its settings are known and need no superuser below.
DO $$
BEGIN
    PERFORM set_config('search_path', 'public, ' || quote_ident(nspname), true)
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'vector';
    PERFORM '[1]'::halfvec;
END
$$;

-- With other parameters a function is another one, and two of a name would be a riddle to whoever gives two arguments.
DROP FUNCTION IF EXISTS public.recommend_videos(uuid, integer);

CREATE OR REPLACE FUNCTION public.recommend_videos(
    p_user_id       uuid,
    p_limit         integer DEFAULT 20,
    p_tags          text[] DEFAULT NULL, -- only videos with one of these tags
    p_released_from date DEFAULT NULL,   -- only videos released on this day or later
    p_released_to   date DEFAULT NULL    -- only videos released on this day or earlier
)
RETURNS TABLE (video_id uuid, title text, product_url text, score real)
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = public, extensions, pg_temp
SET hnsw.iterative_scan = strict_order
SET hnsw.ef_search = 100
SET hnsw.max_scan_tuples = 100000
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    taste halfvec(128);
    version text;
    few CONSTANT integer := 10000;
    chosen uuid[];
BEGIN
    SELECT u.embedding, u.model_version INTO taste, version FROM public.user_embeddings u WHERE u.user_id = p_user_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    IF num_nulls(p_tags, p_released_from, p_released_to) < 3 THEN
        SELECT array_agg(c.id) INTO chosen
        FROM (
            SELECT v.id
            FROM public.videos v
            WHERE (p_released_from IS NULL OR v.release_date >= p_released_from)
                AND (p_released_to IS NULL OR v.release_date <= p_released_to)
                AND (p_tags IS NULL OR v.id IN (
                    SELECT l.video_id FROM public.video_tags l JOIN public.tags t ON t.id = l.tag_id WHERE t.name = ANY (p_tags)
                ))
            LIMIT few + 1
        ) c;
        IF coalesce(cardinality(chosen), 0) <= few THEN
            RETURN QUERY
                WITH nearest AS MATERIALIZED (
                    SELECT e.video_id, e.embedding <=> taste AS distance
                    FROM unnest(chosen) AS c (id) JOIN public.video_embeddings e ON e.video_id = c.id
                    WHERE e.model_version = version AND NOT EXISTS (
                        SELECT FROM public.user_video_decisions d
                        WHERE d.user_id = p_user_id AND d.video_id = e.video_id
                    )
                )
                SELECT v.id, v.title, v.product_url, (1 - n.distance)::real
                FROM (SELECT n.video_id, n.distance FROM nearest n ORDER BY n.distance, n.video_id LIMIT p_limit) n
                JOIN public.videos v ON v.id = n.video_id
                ORDER BY n.distance, v.id;
            RETURN;
        END IF;
    END IF;

    RETURN QUERY
        WITH nearest AS MATERIALIZED (
            SELECT e.video_id, e.embedding <=> taste AS distance
            FROM public.video_embeddings e
            WHERE e.model_version = version
                AND NOT EXISTS (
                    SELECT FROM public.user_video_decisions d
                    WHERE d.user_id = p_user_id AND d.video_id = e.video_id
                )
                AND (num_nulls(p_released_from, p_released_to) = 2 OR EXISTS (
                    SELECT FROM public.videos v
                    WHERE v.id = e.video_id
                        AND (p_released_from IS NULL OR v.release_date >= p_released_from)
                        AND (p_released_to IS NULL OR v.release_date <= p_released_to)
                ))
                AND (p_tags IS NULL OR EXISTS (
                    SELECT FROM public.video_tags l JOIN public.tags t ON t.id = l.tag_id
                    WHERE l.video_id = e.video_id AND t.name = ANY (p_tags)
                ))
            ORDER BY e.embedding <=> taste
            LIMIT p_limit
        )
        SELECT v.id, v.title, v.product_url, (1 - n.distance)::real
        FROM nearest n JOIN public.videos v ON v.id = n.video_id
        ORDER BY n.distance, v.id;
END
$$;

REVOKE ALL ON FUNCTION public.recommend_videos(uuid, integer, text[], date, date) FROM PUBLIC, anon;
GRANT EXECUTE ON FUNCTION public.recommend_videos(uuid, integer, text[], date, date) TO authenticated, service_role;
