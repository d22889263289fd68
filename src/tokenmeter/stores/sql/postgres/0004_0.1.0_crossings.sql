-- Which entry crossed a threshold; NULL where it was recorded before.
ALTER TABLE crossings ADD COLUMN entry_id text COLLATE "C";
