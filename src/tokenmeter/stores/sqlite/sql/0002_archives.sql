-- Closed months in files: see docs/explanation/storage.md. Entries up to record `archived_to` are in files only; the
-- hash of that record, at which the live chain goes on, is `archived_hash`.
ALTER TABLE ledger ADD COLUMN archived_to INTEGER NOT NULL DEFAULT 0;
ALTER TABLE ledger ADD COLUMN archived_hash BLOB;
-- Whose entries are in files: the first 10 bytes of an id, and the lowest and highest of the counters that follow; the
-- whole of an id of another form, and -1.
CREATE TABLE archived_ids (
    writer BLOB NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (writer, first, last)
) WITHOUT ROWID;
DROP TRIGGER entries_stay;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries WHEN old.seq > (SELECT archived_to FROM ledger)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries are never removed'); END;
