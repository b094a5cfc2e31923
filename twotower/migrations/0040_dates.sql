-- Whoever is signed in writes their decisions themselves, with any date that PostgreSQL knows: infinity, before Christ, after 9999.
-- No file can hold these, and a date in the future would pass for the newest of all. So tables that were made here bound them.
-- A table that belongs to somebody else stays as it is: there the queries leave such dates out.

-- Who writes under row-level security may say when they decided, but neither long ago nor in the future; the service may say more.
CREATE OR REPLACE FUNCTION public.twotower_bound_created_at() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $bound$
BEGIN
    IF row_security_active(TG_RELID)
        AND NOT coalesce(NEW.created_at BETWEEN '2000-01-01 00:00:00+00'::timestamptz AND now(), false)
    THEN
        NEW.created_at := now();
    END IF;
    RETURN NEW;
END
$bound$;

REVOKE ALL ON FUNCTION public.twotower_bound_created_at() FROM PUBLIC;

-- The tables of 0002 and 0003 are known by their policies.
DO $$
DECLARE
    ours record;
BEGIN
    FOR ours IN
        SELECT polrelid::regclass::text AS name, dated.field, dated.instead
        FROM (
            VALUES ('public.user_video_decisions', 'own decisions', 'created_at', 'now()'),
                ('public.profiles', 'own profile', 'created_at', 'now()'),
                ('public.videos', 'everybody reads', 'release_date', 'NULL')
        ) AS dated (name, policy, field, instead)
        JOIN pg_policy ON polrelid = to_regclass(dated.name) AND polname = dated.policy
        JOIN pg_class ON pg_class.oid = polrelid AND pg_has_role(relowner, 'USAGE')
        JOIN pg_attribute ON attrelid = polrelid AND attname = dated.field AND NOT attisdropped
    LOOP
        EXECUTE format(
            'UPDATE %1$s SET %2$I = %3$s WHERE %2$I < %4$L OR %2$I >= %5$L',
            ours.name, ours.field, ours.instead, '0001-01-02 00:00:00+00', '9999-12-31 00:00:00+00'
        );
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS twotower_date_can_be_held', ours.name);
        EXECUTE format(
            'ALTER TABLE %1$s ADD CONSTRAINT twotower_date_can_be_held CHECK (%2$I >= %3$L AND %2$I < %4$L)',
            ours.name, ours.field, '0001-01-02 00:00:00+00', '9999-12-31 00:00:00+00'
        );
    END LOOP;

    IF EXISTS (
        SELECT FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid
        WHERE polrelid = to_regclass('public.user_video_decisions') AND polname = 'own decisions'
            AND pg_has_role(relowner, 'USAGE')
    ) THEN
        CREATE OR REPLACE TRIGGER twotower_bound_created_at
            BEFORE INSERT OR UPDATE OF created_at ON public.user_video_decisions
            FOR EACH ROW EXECUTE FUNCTION public.twotower_bound_created_at();
    END IF;
END
$$;
