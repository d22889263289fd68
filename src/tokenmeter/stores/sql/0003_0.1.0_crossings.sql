-- When a threshold was crossed, and by which entry; NULL where it was recorded before.
ALTER TABLE crossings ADD COLUMN crossed_at INTEGER;
ALTER TABLE crossings ADD COLUMN entry_id TEXT;
