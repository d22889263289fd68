-- Closed months in files: see docs/explanation/storage.md. Entries up to record `archived_to` are in files only; the
-- hash of that record, at which the live chain goes on, is `archived_hash`.
ALTER TABLE ledger ADD COLUMN archived_to bigint NOT NULL DEFAULT 0, ADD COLUMN archived_hash bytea;

-- Whose entries are in files: the first 10 bytes of an id, and the lowest and highest of the counters that follow; the
-- whole of an id of another form, and -1.
CREATE TABLE archived_ids (
    writer bytea,
    first bigint,
    last bigint,
    PRIMARY KEY (writer, first, last)
);

CREATE FUNCTION refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.seq > (SELECT archived_to FROM ledger) THEN
        RAISE EXCEPTION 'the ledger is append-only: % on % is refused; put an entry right with a correction',
            TG_OP, TG_TABLE_NAME;
    END IF;
    RETURN old;
END $$;
DROP TRIGGER entries_stay ON entries;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries FOR EACH ROW EXECUTE FUNCTION refuse_removal();
CREATE TRIGGER entries_stay_whole BEFORE TRUNCATE ON entries EXECUTE FUNCTION refuse_change();

-- A writer has to know what is archived, too: an entry that is there is not recorded again.
DROP POLICY seen_by_role ON documents;
CREATE POLICY seen_by_role ON documents FOR SELECT USING (
    kind IN ('archive', 'budget')
    OR has_function_privilege(format('%I.read_documents()', current_schema()), 'EXECUTE')
);
