-- Finds the calls of a member, a key or a route that made few of them: an account is all of these together.
CREATE INDEX entries_by_account ON entries (account, occurred_at, seq);
