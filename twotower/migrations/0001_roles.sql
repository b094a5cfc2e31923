-- What Supabase brings along, for servers that are not Supabase. Where it exists, nothing is touched.

DO $$
DECLARE
    missing text;
BEGIN
    FOR missing IN
        SELECT name
        FROM unnest(ARRAY['anon', 'authenticated', 'service_role']) AS name
        WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
    LOOP
        EXECUTE format('CREATE ROLE %I NOLOGIN %s', missing, CASE missing WHEN 'service_role' THEN 'BYPASSRLS' END);
    END LOOP;

    IF to_regprocedure('auth.uid()') IS NULL THEN
        CREATE SCHEMA IF NOT EXISTS auth;
        CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $uid$
            SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
        $uid$;
        GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
    END IF;
END
$$;

GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
