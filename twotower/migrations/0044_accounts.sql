-- Who has an account and an embedding by now, so that a sweep knows them after they have left, whoever the table of accounts belongs to:
-- see database/erasure. Where it can't be read here, the next daily run notes it.
DO $$
BEGIN
    INSERT INTO public.twotower_live_users (user_id)
    SELECT user_id FROM public.user_embeddings JOIN public.profiles USING (user_id)
    ORDER BY user_id
    ON CONFLICT DO NOTHING;
EXCEPTION WHEN insufficient_privilege OR undefined_table OR undefined_column OR datatype_mismatch OR undefined_function THEN
    RAISE WARNING 'who has an account and an embedding is noted by the next daily run: %', SQLERRM;
END
$$;
