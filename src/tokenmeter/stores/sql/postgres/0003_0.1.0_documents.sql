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

-- What a document about to be filed must follow. Whoever files waits here for the one before, until the transaction ends.
-- Result: {"taken": the document that has the key, "last": [position, hash], "numbered": highest number of the series,
-- "heads": [[stripe, hash (hex)], ...] of the chains of entries}.
CREATE FUNCTION document_place(of_kind text, of_key text, of_series text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('documents'::regclass::oid::bigint);
    RETURN jsonb_build_object(
        'taken', (SELECT to_jsonb(d) FROM documents AS d WHERE kind = of_kind AND key = of_key),
        'last', (SELECT jsonb_build_array(position, hash) FROM documents ORDER BY position DESC LIMIT 1),
        'numbered', (SELECT max(number) FROM documents WHERE series = of_series),
        'heads', (SELECT jsonb_agg(jsonb_build_array(stripe, encode(hash, 'hex')) ORDER BY stripe) FROM chains)
    );
END $$;

-- File a document that follows the last one.
CREATE FUNCTION file_document(document jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    draft documents := jsonb_populate_record(NULL::documents, document);
    next_number bigint;
BEGIN
    PERFORM pg_advisory_xact_lock('documents'::regclass::oid::bigint);
    IF draft.series IS NOT NULL THEN
        SELECT coalesce(max(number), 0) + 1 INTO next_number FROM documents WHERE series = draft.series;
    END IF;
    IF draft.position IS DISTINCT FROM (SELECT coalesce(max(position), 0) + 1 FROM documents)
        OR draft.number IS DISTINCT FROM next_number THEN
        RAISE EXCEPTION 'another document was filed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    INSERT INTO documents SELECT draft.*;
END $$;
