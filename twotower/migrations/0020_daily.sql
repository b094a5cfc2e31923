-- What the daily chain remembers, and an index that finds what is new without a look at what is not.

-- Of which decisions an embedding was made: a hash of a user's likes and dislikes.
CREATE TABLE IF NOT EXISTS public.twotower_live_users (
    user_id   uuid PRIMARY KEY,
    decisions bigint NOT NULL
);

-- Up to which day of release a catalogue has been taken in.
CREATE TABLE IF NOT EXISTS public.twotower_taken_in (
    source  text PRIMARY KEY,
    through date NOT NULL
);

-- Only the service reads and writes them: there is no policy for anybody else.
ALTER TABLE public.twotower_live_users ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.twotower_taken_in ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON public.twotower_live_users, public.twotower_taken_in FROM anon, authenticated;
GRANT ALL ON public.twotower_live_users, public.twotower_taken_in TO service_role;

-- Which videos has this model embedded, in the order of their ids: the index answers alone.
CREATE INDEX IF NOT EXISTS video_embeddings_version ON public.video_embeddings (model_version, video_id);
