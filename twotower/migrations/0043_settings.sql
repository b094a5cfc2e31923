-- The functions again: what they set for pgvector is as it was before when they return, so that whatever else the caller's transaction
-- searches is searched as the caller has said. Nothing else has changed; see 0030_functions.sql. A failure takes the settings back with
-- the transaction or the savepoint.

-- Wherever the extension lives, its types are found below.
DO $$
BEGIN
    PERFORM set_config('search_path', 'public, ' || quote_ident(nspname), true)
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'vector';
END
$$;

CREATE OR REPLACE FUNCTION public.recommend_videos(
    p_user_id       uuid,
    p_limit         integer DEFAULT 20,  -- 1 to 1,000
    p_tags          text[] DEFAULT NULL, -- only videos with one of these tags, at most 100
    p_released_from date DEFAULT NULL,   -- only videos released on this day or later
    p_released_to   date DEFAULT NULL    -- only videos released on this day or earlier
)
RETURNS TABLE (video_id uuid, title text, product_url text, score real)
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = public, extensions, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    taste halfvec(128);
    version text;
    names CONSTANT text[] := ARRAY['hnsw.iterative_scan', 'hnsw.ef_search', 'hnsw.max_scan_tuples'];
    before text[];
    few CONSTANT integer := 10000;
    chosen uuid[];
BEGIN
    p_limit := coalesce(p_limit, 20);
    IF p_limit NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'p_limit is %, must be 1 to 1000', p_limit USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF cardinality(p_tags) > 100 THEN
        RAISE EXCEPTION 'p_tags has % names, must have 100 at most', cardinality(p_tags) USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT u.embedding, u.model_version INTO taste, version FROM public.user_embeddings u WHERE u.user_id = p_user_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    PERFORM '[1]'::halfvec; -- loads pgvector, so that its settings are known
    before := ARRAY[current_setting(names[1], true), current_setting(names[2], true), current_setting(names[3], true)];
    PERFORM set_config(s.name, s.value, true)
    FROM unnest(names, ARRAY['strict_order', '100', '100000'], before) AS s (name, value, was)
    WHERE s.was IS NOT NULL; -- before 0.8 there are fewer

    IF num_nulls(p_tags, p_released_from, p_released_to) < 3 THEN
        SELECT array_agg(c.id) INTO chosen
        FROM (
            SELECT v.id
            FROM public.videos v
            WHERE (p_released_from IS NULL OR v.release_date >= p_released_from)
                AND (p_released_to IS NULL OR v.release_date <= p_released_to)
                AND (p_tags IS NULL OR v.id IN (
                    SELECT l.video_id
                    FROM public.video_tags l JOIN public.tags t ON t.id = l.tag_id
                    WHERE t.name = ANY (p_tags)
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
            PERFORM set_config(s.name, s.was, true) FROM unnest(names, before) AS s (name, was) WHERE s.was IS NOT NULL;
            RETURN;
        END IF;
    END IF;

    RETURN QUERY
        WITH nearest AS MATERIALIZED (
            SELECT v.id, v.title, v.product_url, e.embedding <=> taste AS distance
            FROM public.video_embeddings e JOIN public.videos v ON v.id = e.video_id
            WHERE e.model_version = version
                AND (p_released_from IS NULL OR v.release_date >= p_released_from)
                AND (p_released_to IS NULL OR v.release_date <= p_released_to)
                AND NOT EXISTS (
                    SELECT FROM public.user_video_decisions d
                    WHERE d.user_id = p_user_id AND d.video_id = e.video_id
                )
                AND (p_tags IS NULL OR EXISTS (
                    SELECT FROM public.video_tags l JOIN public.tags t ON t.id = l.tag_id
                    WHERE l.video_id = e.video_id AND t.name = ANY (p_tags)
                ))
            ORDER BY e.embedding <=> taste
            LIMIT p_limit
        )
        SELECT n.id, n.title, n.product_url, (1 - n.distance)::real FROM nearest n ORDER BY n.distance, n.id;
    PERFORM set_config(s.name, s.was, true) FROM unnest(names, before) AS s (name, was) WHERE s.was IS NOT NULL;
END
$$;

CREATE OR REPLACE FUNCTION public.similar_videos(
    p_video_id uuid,
    p_limit    integer DEFAULT 20 -- 1 to 1,000
)
RETURNS TABLE (video_id uuid, title text, product_url text, score real)
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET search_path = public, extensions, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    likeness halfvec(128);
    version text;
    names CONSTANT text[] := ARRAY['hnsw.iterative_scan', 'hnsw.ef_search', 'hnsw.max_scan_tuples'];
    before text[];
BEGIN
    p_limit := coalesce(p_limit, 20);
    IF p_limit NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'p_limit is %, must be 1 to 1000', p_limit USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT e.embedding, e.model_version INTO likeness, version FROM public.video_embeddings e WHERE e.video_id = p_video_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    PERFORM '[1]'::halfvec; -- loads pgvector, so that its settings are known
    before := ARRAY[current_setting(names[1], true), current_setting(names[2], true), current_setting(names[3], true)];
    PERFORM set_config(s.name, s.value, true)
    FROM unnest(names, ARRAY['strict_order', '100', '100000'], before) AS s (name, value, was)
    WHERE s.was IS NOT NULL; -- before 0.8 there are fewer

    RETURN QUERY
        WITH nearest AS MATERIALIZED (
            SELECT v.id, v.title, v.product_url, e.embedding <=> likeness AS distance
            FROM public.video_embeddings e JOIN public.videos v ON v.id = e.video_id
            WHERE e.model_version = version AND e.video_id <> p_video_id
            ORDER BY e.embedding <=> likeness
            LIMIT p_limit
        )
        SELECT n.id, n.title, n.product_url, (1 - n.distance)::real FROM nearest n ORDER BY n.distance, n.id;
    PERFORM set_config(s.name, s.was, true) FROM unnest(names, before) AS s (name, was) WHERE s.was IS NOT NULL;
END
$$;

-- Where pgvector lives in a schema of its own, the functions find it there, and whoever calls them may use it.
DO $$
DECLARE
    place text;
    ours  boolean;
    one   text;
BEGIN
    SELECT nspname, pg_has_role(nspowner, 'USAGE') INTO place, ours
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'vector';
    IF place NOT IN ('public', 'extensions') THEN
        FOREACH one IN ARRAY ARRAY['public.recommend_videos(uuid, integer, text[], date, date)', 'public.similar_videos(uuid, integer)'] LOOP
            EXECUTE format('ALTER FUNCTION %s SET search_path = public, extensions, %I, pg_temp', one, place);
        END LOOP;
    END IF;
    IF ours AND place <> 'public' THEN
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO anon, authenticated, service_role', place);
    END IF;
END
$$;
