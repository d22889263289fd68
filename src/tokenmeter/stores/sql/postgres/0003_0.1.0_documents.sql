-- Closed periods, invoices, credit notes: filed once, numbered without gaps per series, chained by hash.
CREATE TABLE documents (
    position bigint PRIMARY KEY,
    document_id text COLLATE "C" NOT NULL UNIQUE,
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    series text COLLATE "C",
    number bigint,
    recorded_at bigint NOT NULL,
    anchor text NOT NULL,
    body text NOT NULL,
    hash text NOT NULL,
    UNIQUE (kind, key),
    UNIQUE (series, number)
);
CREATE TRIGGER documents_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON documents EXECUTE FUNCTION refuse_change();
