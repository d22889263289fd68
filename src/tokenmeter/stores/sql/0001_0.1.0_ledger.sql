-- The ledger. Entries are numbered without gaps, never changed and never removed.

-- Who, what and under which terms: shared by many entries. `digest` is SHA-256 over the values as a JSON array.
CREATE TABLE contexts (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    provider TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    operation TEXT NOT NULL,
    request_model TEXT,
    response_model TEXT,
    status TEXT NOT NULL,
    service_tier TEXT,
    cost_source TEXT NOT NULL,
    member TEXT,
    team TEXT,
    organization TEXT,
    project TEXT,
    route TEXT,
    api_key_fingerprint TEXT,
    api_key_last4 TEXT,
    api_key_alias TEXT,
    price_list_hash TEXT,
    model TEXT,
    api_key TEXT
);

-- Everything of a charge but its amounts: shared by many charges.
CREATE TABLE rates (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    model TEXT,
    sku_meter TEXT NOT NULL,
    unit TEXT NOT NULL,
    list_unit_price TEXT,
    multipliers TEXT,
    price_id TEXT,
    source TEXT,
    role TEXT NOT NULL
);

-- Instants are microseconds since 1970-01-01 UTC. A cost is micro * 10^6 + pico picodollars (10^-12 USD).
-- `charges` is JSON: [[rate, quantity, list, contracted, billed], ...] with costs in picodollars.
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    entry_id TEXT NOT NULL UNIQUE,
    occurred_at INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    context INTEGER NOT NULL REFERENCES contexts (id),
    response_id TEXT,
    request_id TEXT,
    streamed INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    latency_us INTEGER,
    first_token_us INTEGER,
    end_user TEXT,
    tags TEXT,
    quantities TEXT,
    reasoning_output_tokens INTEGER NOT NULL,
    charges TEXT,
    list_micro INTEGER,
    list_pico INTEGER,
    contracted_micro INTEGER,
    contracted_pico INTEGER,
    billed_micro INTEGER,
    billed_pico INTEGER,
    flags TEXT,
    raw_usage TEXT,
    error_type TEXT,
    corrects TEXT,
    reservation_id TEXT,
    dedup_key TEXT,
    hash BLOB NOT NULL
);
CREATE INDEX entries_by_time ON entries (occurred_at);
CREATE UNIQUE INDEX entries_by_dedup_key ON entries (dedup_key) WHERE dedup_key IS NOT NULL;
CREATE INDEX entries_by_end_user ON entries (end_user, occurred_at) WHERE end_user IS NOT NULL;

CREATE TRIGGER entries_stay_unchanged BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: put an entry right with a correction'); END;
CREATE TRIGGER entries_stay BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries are never removed'); END;
CREATE TRIGGER contexts_stay_unchanged BEFORE UPDATE ON contexts
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER contexts_stay BEFORE DELETE ON contexts
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER rates_stay_unchanged BEFORE UPDATE ON rates
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;
CREATE TRIGGER rates_stay BEFORE DELETE ON rates
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: entries share this row'); END;

-- The last entry: what the hash chain ends in. One row.
CREATE TABLE head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
);
INSERT INTO head (id, seq, hash) VALUES (1, 0, zeroblob(32));

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
    reserved TEXT NOT NULL,
    PRIMARY KEY (budget, scope, window_start)
) WITHOUT ROWID;
CREATE TABLE holds (
    reservation_id TEXT PRIMARY KEY,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    owner TEXT NOT NULL,
    claims TEXT NOT NULL,
    call TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE crossings (
    budget TEXT NOT NULL,
    scope TEXT NOT NULL,
    window_start INTEGER NOT NULL,
    threshold TEXT NOT NULL,
    PRIMARY KEY (budget, scope, window_start, threshold)
) WITHOUT ROWID;

-- Sums, kept in the transaction of each entry. A series is a context, a meter and marks; see tokenmeter.stores.rollups.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    context INTEGER NOT NULL REFERENCES contexts (id),
    sku_meter TEXT,
    marks INTEGER NOT NULL
);
-- `until` is the slot's end in microseconds since the epoch; level 0 is a quarter-hour, 1 a UTC day, 2 a UTC month.
-- With the end in front, the slots that are being written lie side by side: one page to write instead of three.
CREATE TABLE sums (
    until INTEGER NOT NULL,
    level INTEGER NOT NULL,
    series INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    reasoning INTEGER NOT NULL,
    quantity INTEGER NOT NULL,
    quantity_nano INTEGER NOT NULL,
    list_micro INTEGER NOT NULL,
    list_pico INTEGER NOT NULL,
    contracted_micro INTEGER NOT NULL,
    contracted_pico INTEGER NOT NULL,
    billed_micro INTEGER NOT NULL,
    billed_pico INTEGER NOT NULL,
    PRIMARY KEY (until, level, series)
) WITHOUT ROWID;
