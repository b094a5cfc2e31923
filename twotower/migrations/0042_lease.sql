-- Who may write embeddings at the moment. A row and not a lock of a session, since a pooler in transaction mode has no sessions:
-- it is renewed while somebody works, and free again when it is not.
CREATE TABLE IF NOT EXISTS public.twotower_lease (
    name           text PRIMARY KEY,
    token          uuid,        -- of the holder's choice, to know their own lease; NULL: nobody holds it
    holder         text,        -- for people
    process        text,        -- which process of which machine, to see that it has died; NULL: that can't be told
    since          timestamptz,
    expires        timestamptz,
    promised       text,        -- the model that was written, and that its run is about to publish
    promised_by    text,
    promised_until timestamptz
);

-- Only the service reads and writes it: there is no policy for anybody else.
ALTER TABLE public.twotower_lease ENABLE ROW LEVEL SECURITY;
REVOKE ALL ON public.twotower_lease FROM anon, authenticated;
GRANT ALL ON public.twotower_lease TO service_role;
