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

-- Let go of the partition that holds the entries next in the chain, if all of them are up to `through` and none of another
-- lies between; whether that was so. For the owner, of entries that are in files. Who reads is waited for
-- a second at most: then the entries go row by row.
CREATE FUNCTION drop_partition(through bigint) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '1s' SET search_path FROM CURRENT AS $$
DECLARE
    part text := (SELECT tableoid::regclass::text FROM entries ORDER BY seq LIMIT 1);
    last bigint;
BEGIN
    EXECUTE format('SELECT max(seq) FROM %s', part) INTO last;
    IF last > through OR EXISTS (SELECT FROM entries WHERE seq < last AND tableoid <> part::regclass) THEN
        RETURN false;
    END IF;
    UPDATE ledger SET archived_to = last, archived_hash = (SELECT hash FROM entries WHERE seq = last);
    EXECUTE format('ALTER TABLE entries DETACH PARTITION %s', part);
    EXECUTE format('DROP TABLE %s', part);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;

-- A writer has to know what is archived, too: an entry that is there is not recorded again.
DROP POLICY seen_by_role ON documents;
CREATE POLICY seen_by_role ON documents FOR SELECT USING (
    kind IN ('archive', 'budget')
    OR has_function_privilege(format('%I.read_documents()', current_schema()), 'EXECUTE')
);

SELECT make_partition();
