-- What the model says of users and videos: 128 half-precision numbers each, and an index for the nearest.

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'extensions') THEN
        CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA extensions;
    ELSE
        CREATE EXTENSION IF NOT EXISTS vector;
    END IF;
    -- Wherever the extension lives, its types are found below.
    PERFORM set_config('search_path', 'public, ' || quote_ident(nspname), true)
    FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
    WHERE extname = 'vector';
END
$$;

DO $$
BEGIN
    -- No foreign key to profiles: a model also embeds reviewers of other sites, who have no account.
    IF to_regclass('public.user_embeddings') IS NULL THEN
        CREATE TABLE public.user_embeddings (
            user_id       uuid PRIMARY KEY,
            embedding     halfvec(128) NOT NULL,
            model_version text NOT NULL,
            updated_at    timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE public.user_embeddings ENABLE ROW LEVEL SECURITY;
        CREATE POLICY "own embedding" ON public.user_embeddings
            FOR SELECT TO authenticated USING (user_id = (SELECT auth.uid()));
        REVOKE ALL ON public.user_embeddings FROM anon, authenticated;
        GRANT SELECT ON public.user_embeddings TO authenticated;
        GRANT ALL ON public.user_embeddings TO service_role;
    END IF;

    IF to_regclass('public.video_embeddings') IS NULL THEN
        CREATE TABLE public.video_embeddings (
            video_id      uuid PRIMARY KEY REFERENCES public.videos ON DELETE CASCADE,
            embedding     halfvec(128) NOT NULL,
            model_version text NOT NULL,
            updated_at    timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE public.video_embeddings ENABLE ROW LEVEL SECURITY;
        CREATE POLICY "everybody reads" ON public.video_embeddings
            FOR SELECT TO anon, authenticated USING (true);
        REVOKE ALL ON public.video_embeddings FROM anon, authenticated;
        GRANT SELECT ON public.video_embeddings TO anon, authenticated;
        GRANT ALL ON public.video_embeddings TO service_role;
    END IF;

    -- A table of another type is reported when embeddings are saved; a second index would only cost time.
    IF EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass('public.video_embeddings') AND attname = 'embedding'
            AND atttypid = to_regtype('halfvec') AND atttypmod = 128
    ) AND NOT EXISTS (
        SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
        WHERE indrelid = to_regclass('public.video_embeddings') AND amname = 'hnsw'
    ) THEN
        CREATE INDEX video_embeddings_nearest ON public.video_embeddings USING hnsw (embedding halfvec_cosine_ops);
    END IF;
END
$$;
