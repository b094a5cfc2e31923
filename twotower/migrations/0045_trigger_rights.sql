-- Who may carry out a trigger's function may bind it to a table of their own, such as a temporary one with the ids of others, and
-- then it works there with its owner's rights. A project that gives its visitors every new function gives them these as well.
REVOKE ALL ON FUNCTION public.twotower_bound_created_at() FROM PUBLIC, anon, authenticated;
REVOKE ALL ON FUNCTION public.twotower_forget() FROM PUBLIC, anon, authenticated;
