-- Copies of `sums` for questions over very many of them: all rows of a stretch in one value, column by column (see
-- `tokenmeter.stores.packing`). Whoever changes a row of `sums` removes the copy of its stretch. Only the owner makes any.
CREATE TABLE packed_sums (
    level smallint,
    slot bigint,
    body bytea NOT NULL,
    PRIMARY KEY (level, slot)
);

CREATE FUNCTION unpack_sums() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM packed_sums) THEN
        DELETE FROM packed_sums AS p USING (SELECT DISTINCT level, slot FROM changed) AS c
        WHERE p.level = c.level AND p.slot = c.slot;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER sums_added AFTER INSERT ON sums REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION unpack_sums();
CREATE TRIGGER sums_changed AFTER UPDATE ON sums REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION unpack_sums();
CREATE TRIGGER sums_removed AFTER DELETE ON sums REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION unpack_sums();
