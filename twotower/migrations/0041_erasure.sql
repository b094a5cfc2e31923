-- Whoever deletes their account leaves no vector, and no hash of their decisions.
-- For tables that belong to somebody else the daily chain looks after them: see database/erasure.

-- Who has an account and an embedding. NULL: it was not made of their decisions, but by training.
ALTER TABLE public.twotower_live_users ALTER COLUMN decisions DROP NOT NULL;

-- Runs with the rights of its owner, since nobody else may write embeddings. Somebody must be able to leave even where these can't
-- be written: then the daily chain removes them.
CREATE OR REPLACE FUNCTION public.twotower_forget() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $forget$
BEGIN
    DELETE FROM public.user_embeddings e USING gone WHERE e.user_id = gone.user_id;
    DELETE FROM public.twotower_live_users l USING gone WHERE l.user_id = gone.user_id;
    RETURN NULL;
EXCEPTION WHEN insufficient_privilege OR undefined_table OR undefined_column THEN
    RAISE WARNING 'the embeddings of who has left stay until the next daily run: %', SQLERRM;
    RETURN NULL;
END
$forget$;

REVOKE ALL ON FUNCTION public.twotower_forget() FROM PUBLIC;

-- The table of 0003 is known by its policy.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
        WHERE polrelid = to_regclass('public.profiles') AND polname = 'own profile' AND pg_has_role(relowner, 'USAGE')
    ) THEN
        CREATE OR REPLACE TRIGGER twotower_forget
            AFTER DELETE ON public.profiles
            REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION public.twotower_forget();
    END IF;
END
$$;
