-- The ledger. Records are numbered without gaps in one chain, never changed and never removed.
-- Instants are microseconds since 1970-01-01 UTC. A cost is micro * 10^6 + pico picodollars (10^-12 USD).

-- Whose ledger this is, and the last record of its chain: hash = SHA-256(hash before || SHA-256(record)). One row.
-- `secret_digest` is SHA-256 of the secret it was made with.
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity BLOB NOT NULL,
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    entries INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    secret_digest BLOB NOT NULL
);

-- Texts that may have to be erased: value and salt then become NULL. `digest` is what records hold.
CREATE TABLE names (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    salt BLOB,
    kind TEXT NOT NULL,
    value TEXT
);
CREATE INDEX names_by_value ON names (kind, value);

-- Who, what and under which terms: shared by many entries. `body` is the definition, `digest` the first 16 bytes of its
-- SHA-256; the columns repeat it for SQL, with texts of the caller's as rows of `names`. Without a body: not defined yet.
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    body TEXT,
    kind TEXT NOT NULL DEFAULT 'usage',
    provider TEXT NOT NULL DEFAULT 'unknown',
    endpoint TEXT NOT NULL DEFAULT 'unknown',
    operation TEXT NOT NULL DEFAULT 'unknown',
    request_model TEXT,
    response_model TEXT,
    status TEXT NOT NULL DEFAULT 'ok',
    service_tier TEXT,
    cost_source TEXT NOT NULL DEFAULT 'none',
    member INTEGER REFERENCES names (id),
    team INTEGER REFERENCES names (id),
    organization INTEGER REFERENCES names (id),
    project INTEGER REFERENCES names (id),
    route INTEGER REFERENCES names (id),
    api_key_fingerprint TEXT,
    api_key_last4 TEXT,
    api_key_alias INTEGER REFERENCES names (id),
    price_list_hash TEXT
);
-- The same with every text in place.
CREATE VIEW contexts AS
SELECT a.id, a.kind, a.provider, a.endpoint, a.operation, a.request_model, a.response_model, a.status, a.service_tier,
    a.cost_source,
    coalesce(m.value, 'erased-' || nullif(lower(hex(substr(m.digest, 1, 4))), '')) AS member,
    coalesce(t.value, 'erased-' || nullif(lower(hex(substr(t.digest, 1, 4))), '')) AS team,
    coalesce(o.value, 'erased-' || nullif(lower(hex(substr(o.digest, 1, 4))), '')) AS organization,
    coalesce(p.value, 'erased-' || nullif(lower(hex(substr(p.digest, 1, 4))), '')) AS project,
    coalesce(r.value, 'erased-' || nullif(lower(hex(substr(r.digest, 1, 4))), '')) AS route,
    a.api_key_fingerprint, a.api_key_last4,
    coalesce(k.value, 'erased-' || nullif(lower(hex(substr(k.digest, 1, 4))), '')) AS api_key_alias,
    a.price_list_hash,
    coalesce(a.response_model, a.request_model) AS model,
    CASE WHEN a.api_key_fingerprint IS NOT NULL THEN coalesce(k.value, '...' || a.api_key_last4) END AS api_key
FROM accounts AS a LEFT JOIN names AS m ON m.id = a.member LEFT JOIN names AS t ON t.id = a.team
    LEFT JOIN names AS o ON o.id = a.organization LEFT JOIN names AS p ON p.id = a.project
    LEFT JOIN names AS r ON r.id = a.route LEFT JOIN names AS k ON k.id = a.api_key_alias;

-- Everything of a charge but its amounts: shared by many charges.
CREATE TABLE rates (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    body TEXT,
    sku_meter TEXT
);

-- Sets of tags: JSON object, name -> digest of the value.
CREATE TABLE tagsets (
    id INTEGER PRIMARY KEY,
    body TEXT NOT NULL UNIQUE
);

-- `body` is the record: the columns before it repeat it, so that SQL can add them up. `more` is JSON: meters without a
-- column of their own -> quantity. `unpriced` counts +1 on a call and -1 on a correction.
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    entry_id BLOB NOT NULL UNIQUE,
    occurred_at INTEGER NOT NULL,
    account INTEGER NOT NULL REFERENCES accounts (id),
    end_user INTEGER REFERENCES names (id),
    tags INTEGER REFERENCES tagsets (id),
    unpriced INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    list_micro INTEGER NOT NULL,
    list_pico INTEGER NOT NULL,
    contracted_micro INTEGER NOT NULL,
    contracted_pico INTEGER NOT NULL,
    billed_micro INTEGER NOT NULL,
    billed_pico INTEGER NOT NULL,
    more TEXT,
    response_id TEXT,
    trace_id TEXT,
    body TEXT NOT NULL,
    hash BLOB NOT NULL
);
CREATE INDEX entries_by_time ON entries (occurred_at);
CREATE INDEX entries_by_end_user ON entries (end_user, occurred_at) WHERE end_user IS NOT NULL;
CREATE INDEX entries_by_response ON entries (response_id) WHERE response_id IS NOT NULL;
CREATE INDEX entries_by_trace ON entries (trace_id) WHERE trace_id IS NOT NULL;

-- Bills that are recorded once only.
CREATE TABLE dedup (
    key TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;

-- Closed periods, invoices, credit notes, definitions of budgets: filed once, numbered without gaps per series. Where an
-- erasure took a name out of `body`, `leaf` is SHA-256 of the record as it was filed, which the chain goes on from.
CREATE TABLE documents (
    seq INTEGER PRIMARY KEY,
    position INTEGER NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    series TEXT,
    number INTEGER,
    body TEXT NOT NULL,
    hash BLOB NOT NULL,
    leaf BLOB,
    UNIQUE (kind, key),
    UNIQUE (series, number)
);

CREATE TRIGGER entries_stay_unchanged BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: put an entry right with a correction'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries are never removed'); END;
CREATE TRIGGER documents_stay_unchanged BEFORE UPDATE ON documents
WHEN new.leaf IS NULL OR new.leaf IS NOT coalesce(old.leaf, new.leaf)
    OR (new.seq, new.position, new.kind, new.series, new.number, new.hash)
        IS NOT (old.seq, old.position, old.kind, old.series, old.number, old.hash)
BEGIN SELECT RAISE(ABORT, 'documents are never changed: put an invoice right with a credit note'); END;
CREATE TRIGGER documents_stay BEFORE DELETE ON documents
BEGIN SELECT RAISE(ABORT, 'documents are never removed'); END;
CREATE TRIGGER accounts_stay_unchanged BEFORE UPDATE ON accounts WHEN old.body IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER accounts_stay BEFORE DELETE ON accounts
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER rates_stay_unchanged BEFORE UPDATE ON rates WHEN old.body IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER rates_stay BEFORE DELETE ON rates
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;

-- How far each segment of the tail is folded, and what in it no fold could read.
CREATE TABLE places (
    segment INTEGER PRIMARY KEY,
    folded INTEGER NOT NULL
);
CREATE TABLE refused (
    segment INTEGER NOT NULL,
    place INTEGER NOT NULL,
    reason TEXT NOT NULL,
    record BLOB NOT NULL,
    effects BLOB NOT NULL,
    PRIMARY KEY (segment, place)
);

-- The ledger's own secret, for fingerprints of API keys. One row, made on first use.
CREATE TABLE secret (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    value BLOB NOT NULL
);

-- Budget counters and holds. Amounts are integers of any size, as decimal text.
CREATE TABLE counters (
    budget TEXT NOT NULL,
    scope TEXT NOT NULL,
    window_start INTEGER NOT NULL,
    window_end INTEGER,
    settled TEXT NOT NULL,
    PRIMARY KEY (budget, scope, window_start)
) WITHOUT ROWID;
CREATE TABLE holds (
    hold_id TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    claims TEXT NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE crossings (
    budget TEXT NOT NULL,
    scope TEXT NOT NULL,
    window_start INTEGER NOT NULL,
    threshold TEXT NOT NULL,
    crossed_at INTEGER NOT NULL,
    entry_id TEXT,
    PRIMARY KEY (budget, scope, window_start, threshold)
) WITHOUT ROWID;

-- Sums of entries per account and stretch of UTC: level 0 is an hour, 1 a day, 2 a month,
-- 3 a week from Monday on; `slot` counts them. A sum beyond 64 bits would become a float unasked: it is refused.
CREATE TABLE sums (
    level INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    account INTEGER NOT NULL,
    n INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    input INTEGER NOT NULL,
    cache_read INTEGER NOT NULL,
    cache_write_5m INTEGER NOT NULL,
    cache_write_1h INTEGER NOT NULL,
    output INTEGER NOT NULL,
    list_micro INTEGER NOT NULL,
    list_pico INTEGER NOT NULL,
    contracted_micro INTEGER NOT NULL,
    contracted_pico INTEGER NOT NULL,
    billed_micro INTEGER NOT NULL,
    billed_pico INTEGER NOT NULL,
    CHECK (typeof(n) = 'integer' AND typeof(unpriced) = 'integer' AND typeof(estimated) = 'integer' AND
        typeof(reasoning) = 'integer' AND typeof(input) = 'integer' AND typeof(cache_read) = 'integer' AND
        typeof(cache_write_5m) = 'integer' AND typeof(cache_write_1h) = 'integer' AND typeof(output) = 'integer' AND
        typeof(list_micro) = 'integer' AND typeof(list_pico) = 'integer' AND typeof(contracted_micro) = 'integer' AND
        typeof(contracted_pico) = 'integer' AND typeof(billed_micro) = 'integer' AND typeof(billed_pico) = 'integer'),
    PRIMARY KEY (level, slot, account)
) WITHOUT ROWID;
-- Quantities of meters without a column above, in whole units and billionths.
CREATE TABLE rare_sums (
    level INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    account INTEGER NOT NULL,
    sku_meter TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    nano INTEGER NOT NULL,
    CHECK (typeof(quantity) = 'integer' AND typeof(nano) = 'integer'),
    PRIMARY KEY (level, slot, account, sku_meter)
) WITHOUT ROWID;
-- The same entries meter by meter, days and months only; '' for cost that no meter explains.
CREATE TABLE meter_sums (
    level INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    account INTEGER NOT NULL,
    sku_meter TEXT NOT NULL,
    n INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    estimated INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    quantity INTEGER NOT NULL,
    nano INTEGER NOT NULL,
    list_micro INTEGER NOT NULL,
    list_pico INTEGER NOT NULL,
    contracted_micro INTEGER NOT NULL,
    contracted_pico INTEGER NOT NULL,
    billed_micro INTEGER NOT NULL,
    billed_pico INTEGER NOT NULL,
    CHECK (typeof(n) = 'integer' AND typeof(unpriced) = 'integer' AND typeof(estimated) = 'integer' AND
        typeof(reasoning) = 'integer' AND typeof(quantity) = 'integer' AND typeof(nano) = 'integer' AND
        typeof(list_micro) = 'integer' AND typeof(list_pico) = 'integer' AND typeof(contracted_micro) = 'integer' AND
        typeof(contracted_pico) = 'integer' AND typeof(billed_micro) = 'integer' AND typeof(billed_pico) = 'integer'),
    PRIMARY KEY (level, slot, account, sku_meter)
) WITHOUT ROWID;
-- How long calls took, days and months only: sums of microseconds, and sketches (see `tokenmeter.stores.sketch`):
-- pairs of 2 + 4 bytes, bucket + 1 and how many calls. `generated` counts the output tokens of `generation_us`.
CREATE TABLE latency_sums (
    level INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    account INTEGER NOT NULL,
    duration_us INTEGER NOT NULL,
    duration BLOB NOT NULL,
    first_token_us INTEGER NOT NULL,
    first_token BLOB NOT NULL,
    generation_us INTEGER NOT NULL,
    generated INTEGER NOT NULL,
    CHECK (typeof(duration_us) = 'integer' AND typeof(first_token_us) = 'integer' AND
        typeof(generation_us) = 'integer' AND typeof(generated) = 'integer'),
    PRIMARY KEY (level, slot, account)
) WITHOUT ROWID;
