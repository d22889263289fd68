-- Closed periods, invoices, credit notes: filed once, numbered without gaps per series, chained by hash.
CREATE TABLE documents (
    position INTEGER PRIMARY KEY,
    document_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    series TEXT,
    number INTEGER,
    recorded_at INTEGER NOT NULL,
    anchor TEXT NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL,
    UNIQUE (kind, key),
    UNIQUE (series, number)
);
CREATE TRIGGER documents_stay_unchanged BEFORE UPDATE ON documents
BEGIN SELECT RAISE(ABORT, 'documents are never changed: put an invoice right with a credit note'); END;
CREATE TRIGGER documents_stay BEFORE DELETE ON documents
BEGIN SELECT RAISE(ABORT, 'documents are never removed'); END;
