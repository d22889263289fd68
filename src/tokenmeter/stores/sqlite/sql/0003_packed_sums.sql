-- Copies of `sums` for questions over very many of them: all rows of a stretch in one value, column by column (see
-- `tokenmeter.stores.packing`). Whoever changes a row of `sums` removes the copy of its stretch in the same transaction.
CREATE TABLE packed_sums (
    level INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (level, slot)
);
