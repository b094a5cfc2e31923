-- People and what they decided: each sees their own rows, an anonymous visitor none.
-- A table that exists belongs to somebody: its columns, policies and grants stay as they are.

DO $$
BEGIN
    IF to_regclass('public.profiles') IS NULL THEN
        CREATE TABLE public.profiles (
            user_id    uuid PRIMARY KEY,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE public.profiles ENABLE ROW LEVEL SECURITY;
        CREATE POLICY "own profile" ON public.profiles
            FOR SELECT TO authenticated USING (user_id = (SELECT auth.uid()));
        REVOKE ALL ON public.profiles FROM anon, authenticated;
        GRANT SELECT ON public.profiles TO authenticated;
        GRANT ALL ON public.profiles TO service_role;
    END IF;

    IF to_regclass('public.user_video_decisions') IS NULL THEN
        CREATE TABLE public.user_video_decisions (
            user_id       uuid NOT NULL REFERENCES public.profiles ON DELETE CASCADE,
            video_id      uuid NOT NULL REFERENCES public.videos ON DELETE CASCADE,
            decision_type text NOT NULL CHECK (decision_type IN ('like', 'dislike', 'skip')),
            created_at    timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (user_id, video_id)
        );
        CREATE INDEX user_video_decisions_newest ON public.user_video_decisions (user_id, created_at DESC);
        CREATE INDEX user_video_decisions_video_id ON public.user_video_decisions (video_id);
        ALTER TABLE public.user_video_decisions ENABLE ROW LEVEL SECURITY;
        CREATE POLICY "own decisions" ON public.user_video_decisions
            FOR ALL TO authenticated
            USING (user_id = (SELECT auth.uid())) WITH CHECK (user_id = (SELECT auth.uid()));
        REVOKE ALL ON public.user_video_decisions FROM anon, authenticated;
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_video_decisions TO authenticated;
        GRANT ALL ON public.user_video_decisions TO service_role;
    END IF;
END
$$;
