-- The shared ledger: the tables of the SQLite ledger, under the same names, and what many hosts need besides. Every object
-- lies in one schema, which is the only one on the search path.
-- Instants are microseconds since 1970-01-01 UTC. A cost is micro * 10^6 + pico picodollars (10^-12 USD).

-- Whose ledger this is, and the last record of its chain: hash = SHA-256(hash before || SHA-256(record)). One row.
-- `secret_digest` is SHA-256 of the secret it was made with.
CREATE TABLE ledger (
    id smallint PRIMARY KEY CHECK (id = 1),
    identity bytea NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    entries bigint NOT NULL,
    documents bigint NOT NULL,
    secret_digest bytea NOT NULL
) WITH (fillfactor = 10);

-- Texts that may have to be erased: value and salt then become NULL. `digest` is what records hold.
CREATE TABLE names (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    salt bytea,
    kind text COLLATE "C" NOT NULL,
    value text COLLATE "C"
);
CREATE INDEX names_by_value ON names (kind, value);

-- Who, what and under which terms: shared by many entries. `body` is the definition, `digest` the first 16 bytes of its
-- SHA-256; the columns repeat it for SQL, with texts of the caller's as rows of `names`. Without a body: not defined yet.
CREATE TABLE accounts (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    body text,
    kind text NOT NULL DEFAULT 'usage',
    provider text NOT NULL DEFAULT 'unknown',
    endpoint text NOT NULL DEFAULT 'unknown',
    operation text NOT NULL DEFAULT 'unknown',
    request_model text,
    response_model text,
    status text NOT NULL DEFAULT 'ok',
    service_tier text,
    cost_source text NOT NULL DEFAULT 'none',
    member bigint,
    team bigint,
    organization bigint,
    project bigint,
    route bigint,
    api_key_fingerprint text,
    api_key_last4 text,
    api_key_alias bigint,
    price_list_hash text
);
-- The same with every text in place.
CREATE VIEW contexts AS
SELECT a.id, a.kind, a.provider, a.endpoint, a.operation, a.request_model, a.response_model, a.status, a.service_tier,
    a.cost_source,
    coalesce(m.value, 'erased-' || encode(substr(m.digest, 1, 4), 'hex')) AS member,
    coalesce(t.value, 'erased-' || encode(substr(t.digest, 1, 4), 'hex')) AS team,
    coalesce(o.value, 'erased-' || encode(substr(o.digest, 1, 4), 'hex')) AS organization,
    coalesce(p.value, 'erased-' || encode(substr(p.digest, 1, 4), 'hex')) AS project,
    coalesce(r.value, 'erased-' || encode(substr(r.digest, 1, 4), 'hex')) AS route,
    a.api_key_fingerprint, a.api_key_last4,
    coalesce(k.value, 'erased-' || encode(substr(k.digest, 1, 4), 'hex')) AS api_key_alias,
    a.price_list_hash,
    coalesce(a.response_model, a.request_model) AS model,
    CASE WHEN a.api_key_fingerprint IS NOT NULL THEN coalesce(k.value, '...' || a.api_key_last4) END AS api_key
FROM accounts AS a LEFT JOIN names AS m ON m.id = a.member LEFT JOIN names AS t ON t.id = a.team
    LEFT JOIN names AS o ON o.id = a.organization LEFT JOIN names AS p ON p.id = a.project
    LEFT JOIN names AS r ON r.id = a.route LEFT JOIN names AS k ON k.id = a.api_key_alias;

-- Everything of a charge but its amounts: shared by many charges.
CREATE TABLE rates (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    body text,
    sku_meter text
);

-- Sets of tags: JSON object, name -> digest of the value. `digest` is its SHA-256, since an index takes no long text.
CREATE TABLE tagsets (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    body text NOT NULL
);

-- Year x 12 + month - 1, by the server's clock.
CREATE FUNCTION this_month() RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT extract(year FROM now() AT TIME ZONE 'UTC')::integer * 12
        + extract(month FROM now() AT TIME ZONE 'UTC')::integer - 1
$$;

-- `body` is the record: the columns before it repeat it, so that SQL can add them up. `more` is JSON: meters without a
-- column of their own -> quantity. `unpriced` counts +1 on a call and -1 on a correction. There is a partition per month in
-- which entries were folded, so that an archived one goes in a moment.
CREATE TABLE entries (
    seq bigint NOT NULL,
    entry_id text COLLATE "C" NOT NULL,
    occurred_at bigint NOT NULL,
    account integer NOT NULL,
    end_user bigint,
    tags bigint,
    unpriced bigint NOT NULL,
    estimated bigint NOT NULL,
    reasoning bigint NOT NULL,
    input bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write_5m bigint NOT NULL,
    cache_write_1h bigint NOT NULL,
    output bigint NOT NULL,
    list_micro bigint NOT NULL,
    list_pico bigint NOT NULL,
    contracted_micro bigint NOT NULL,
    contracted_pico bigint NOT NULL,
    billed_micro bigint NOT NULL,
    billed_pico bigint NOT NULL,
    more text,
    response_id text,
    trace_id text,
    body text NOT NULL,
    hash bytea NOT NULL,
    folded_month integer NOT NULL DEFAULT this_month(),
    PRIMARY KEY (seq, folded_month),
    UNIQUE (entry_id, folded_month)
) PARTITION BY LIST (folded_month);
CREATE INDEX entries_by_time ON entries (occurred_at, seq);
CREATE INDEX entries_by_end_user ON entries (end_user, occurred_at) WHERE end_user IS NOT NULL;
CREATE INDEX entries_by_response ON entries (response_id) WHERE response_id IS NOT NULL;
CREATE INDEX entries_by_trace ON entries (trace_id) WHERE trace_id IS NOT NULL;

-- Bills that are recorded once only.
CREATE TABLE dedup (
    key text COLLATE "C" PRIMARY KEY,
    seq bigint NOT NULL
);

-- Closed periods, invoices, credit notes, definitions of budgets: filed once, numbered without gaps per series. Where an
-- erasure took a name out of `body`, `leaf` is SHA-256 of the record as it was filed, which the chain goes on from.
CREATE TABLE documents (
    seq bigint PRIMARY KEY,
    position bigint NOT NULL UNIQUE,
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    series text COLLATE "C",
    number bigint,
    body text NOT NULL,
    hash bytea NOT NULL,
    leaf bytea,
    UNIQUE (kind, key),
    UNIQUE (series, number)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused; put an entry right with a correction',
        TG_OP, TG_TABLE_NAME;
END $$;
CREATE TRIGGER entries_stay BEFORE DELETE OR TRUNCATE ON entries EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_stay_unchanged BEFORE UPDATE ON entries EXECUTE FUNCTION refuse_change();
CREATE TRIGGER documents_stay BEFORE DELETE OR TRUNCATE ON documents EXECUTE FUNCTION refuse_change();
CREATE TRIGGER documents_stay_unchanged BEFORE UPDATE ON documents FOR EACH ROW
    WHEN (new.leaf IS NULL OR new.leaf IS DISTINCT FROM coalesce(old.leaf, sha256(convert_to(old.body, 'UTF8')))
        OR (new.seq, new.position, new.kind, new.series, new.number, new.hash)
            IS DISTINCT FROM (old.seq, old.position, old.kind, old.series, old.number, old.hash))
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER accounts_stay BEFORE DELETE OR TRUNCATE ON accounts EXECUTE FUNCTION refuse_change();
CREATE TRIGGER accounts_stay_unchanged BEFORE UPDATE ON accounts
    FOR EACH ROW WHEN (old.body IS NOT NULL) EXECUTE FUNCTION refuse_change();
CREATE TRIGGER rates_stay BEFORE DELETE OR TRUNCATE ON rates EXECUTE FUNCTION refuse_change();
CREATE TRIGGER rates_stay_unchanged BEFORE UPDATE ON rates
    FOR EACH ROW WHEN (old.body IS NOT NULL) EXECUTE FUNCTION refuse_change();

-- How far each segment of each host's tail is folded, and what in it no fold could read.
CREATE TABLE places (
    host bytea,
    segment bigint,
    folded bigint NOT NULL,
    PRIMARY KEY (host, segment)
) WITH (fillfactor = 50);
CREATE TABLE refused (
    host bytea,
    segment bigint,
    place bigint,
    reason text NOT NULL,
    record bytea NOT NULL,
    effects bytea NOT NULL,
    PRIMARY KEY (host, segment, place)
);

-- The ledger's own secret, for fingerprints of API keys. One row.
CREATE TABLE secret (
    id smallint PRIMARY KEY CHECK (id = 1),
    value bytea NOT NULL
);
INSERT INTO secret VALUES (1, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
INSERT INTO ledger
SELECT 1, uuid_send(gen_random_uuid()), 0, decode(repeat('00', 32), 'hex'), 0, 0, sha256(value) FROM secret;

-- Budgets. Amounts are integers of any size, in the budget's unit.
CREATE TABLE counters (
    budget text COLLATE "C",
    scope text COLLATE "C",
    window_start bigint,
    window_end bigint,
    settled numeric NOT NULL DEFAULT 0,
    reserved numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (budget, scope, window_start)
) WITH (fillfactor = 30);
CREATE TABLE holds (
    hold_id text COLLATE "C" PRIMARY KEY,
    expires_at bigint NOT NULL,
    claims text NOT NULL,
    body text NOT NULL
);
CREATE INDEX holds_by_expiry ON holds (expires_at, hold_id);
-- Room under a cap that a host gives out by itself, without asking: counters.reserved = claims of open holds + leases. A
-- host has one epoch at a time. It spends until `until`, then gives back what is left; `expires_at` is when that can be
-- taken from a host that died, as all holds made from it have expired.
CREATE TABLE lessees (
    host bytea,
    epoch bytea,
    until bigint NOT NULL,
    expires_at bigint NOT NULL,
    recalled boolean NOT NULL DEFAULT false,
    PRIMARY KEY (host, epoch)
) WITH (fillfactor = 30);
CREATE TABLE leases (
    budget text COLLATE "C",
    scope text COLLATE "C",
    window_start bigint,
    host bytea,
    epoch bytea,
    amount numeric NOT NULL,
    PRIMARY KEY (budget, scope, window_start, host, epoch)
) WITH (fillfactor = 30);
CREATE TABLE crossings (
    budget text COLLATE "C",
    scope text COLLATE "C",
    window_start bigint,
    threshold numeric,
    crossed_at bigint NOT NULL,
    entry_id text COLLATE "C",
    PRIMARY KEY (budget, scope, window_start, threshold)
);

-- Sums of entries per account and stretch of UTC: level 0 is an hour, 1 a day, 2 a month,
-- 3 a week from Monday on; `slot` counts them.
CREATE TABLE sums (
    level integer,
    slot bigint,
    account integer,
    n bigint NOT NULL,
    unpriced bigint NOT NULL,
    estimated bigint NOT NULL,
    reasoning bigint NOT NULL,
    input bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write_5m bigint NOT NULL,
    cache_write_1h bigint NOT NULL,
    output bigint NOT NULL,
    list_micro bigint NOT NULL,
    list_pico bigint NOT NULL,
    contracted_micro bigint NOT NULL,
    contracted_pico bigint NOT NULL,
    billed_micro bigint NOT NULL,
    billed_pico bigint NOT NULL,
    PRIMARY KEY (level, slot, account)
) WITH (fillfactor = 70);
-- Quantities of meters without a column above, in whole units and billionths.
CREATE TABLE rare_sums (
    level integer,
    slot bigint,
    account integer,
    sku_meter text COLLATE "C",
    quantity bigint NOT NULL,
    nano bigint NOT NULL,
    PRIMARY KEY (level, slot, account, sku_meter)
) WITH (fillfactor = 70);
-- The same entries meter by meter, days and months only; '' for cost that no meter explains.
CREATE TABLE meter_sums (
    level integer,
    slot bigint,
    account integer,
    sku_meter text COLLATE "C",
    n bigint NOT NULL,
    unpriced bigint NOT NULL,
    estimated bigint NOT NULL,
    reasoning bigint NOT NULL,
    quantity bigint NOT NULL,
    nano bigint NOT NULL,
    list_micro bigint NOT NULL,
    list_pico bigint NOT NULL,
    contracted_micro bigint NOT NULL,
    contracted_pico bigint NOT NULL,
    billed_micro bigint NOT NULL,
    billed_pico bigint NOT NULL,
    PRIMARY KEY (level, slot, account, sku_meter)
) WITH (fillfactor = 70);

-- How long calls took, days and months only: sums of microseconds, and sketches (see `tokenmeter.stores.sketch`):
-- pairs of 2 + 4 bytes, bucket + 1 and how many calls. `generated` counts the output tokens of `generation_us`.
CREATE TABLE latency_sums (
    level integer,
    slot bigint,
    account integer,
    duration_us bigint NOT NULL,
    duration bytea NOT NULL,
    first_token_us bigint NOT NULL,
    first_token bytea NOT NULL,
    generation_us bigint NOT NULL,
    generated bigint NOT NULL,
    PRIMARY KEY (level, slot, account)
) WITH (fillfactor = 70);

-- Words of SQLite that the shared queries use.
CREATE FUNCTION hex(bytea) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT encode($1, 'hex') $$;
CREATE FUNCTION json_each(body text, OUT key text, OUT value text) RETURNS SETOF record
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$ SELECT * FROM json_each_text(body::json) $$;
