-- The catalogue: everybody may read it, the service writes it.
-- A table that exists belongs to somebody: its columns, policies and grants stay as they are.

DO $$
DECLARE
    created text[] := '{}';
    name    text;
BEGIN
    IF to_regclass('public.videos') IS NULL THEN
        CREATE TABLE public.videos (
            id           uuid PRIMARY KEY,
            content_id   text NOT NULL UNIQUE,
            product_url  text NOT NULL UNIQUE,
            title        text,
            maker        text,
            label        text,
            series       text,
            source       text,
            director     text,
            release_date date,
            duration     real CHECK (duration >= 0),
            price        real CHECK (price >= 0),
            created_at   timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON COLUMN public.videos.duration IS 'minutes';
        CREATE INDEX videos_release_date ON public.videos (release_date);
        CREATE INDEX videos_created_at ON public.videos (created_at);
        created := created || 'videos'::text;
    END IF;

    IF to_regclass('public.tags') IS NULL THEN
        CREATE TABLE public.tags (
            id   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            name text NOT NULL UNIQUE CHECK (name <> '')
        );
        created := created || 'tags'::text;
    END IF;

    IF to_regclass('public.video_tags') IS NULL THEN
        CREATE TABLE public.video_tags (
            video_id uuid NOT NULL REFERENCES public.videos ON DELETE CASCADE,
            tag_id   uuid NOT NULL REFERENCES public.tags ON DELETE CASCADE,
            PRIMARY KEY (video_id, tag_id)
        );
        CREATE INDEX video_tags_tag_id ON public.video_tags (tag_id);
        created := created || 'video_tags'::text;
    END IF;

    IF to_regclass('public.performers') IS NULL THEN
        CREATE TABLE public.performers (
            id   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            name text NOT NULL UNIQUE CHECK (name <> '')
        );
        created := created || 'performers'::text;
    END IF;

    IF to_regclass('public.video_performers') IS NULL THEN
        CREATE TABLE public.video_performers (
            video_id     uuid NOT NULL REFERENCES public.videos ON DELETE CASCADE,
            performer_id uuid NOT NULL REFERENCES public.performers ON DELETE CASCADE,
            PRIMARY KEY (video_id, performer_id)
        );
        CREATE INDEX video_performers_performer_id ON public.video_performers (performer_id);
        created := created || 'video_performers'::text;
    END IF;

    FOREACH name IN ARRAY created LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY "everybody reads" ON public.%I FOR SELECT TO anon, authenticated USING (true)', name);
        EXECUTE format('REVOKE ALL ON public.%I FROM anon, authenticated', name);
        EXECUTE format('GRANT SELECT ON public.%I TO anon, authenticated', name);
        EXECUTE format('GRANT ALL ON public.%I TO service_role', name);
    END LOOP;
END
$$;
