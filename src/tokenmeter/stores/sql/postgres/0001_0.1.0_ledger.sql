-- The shared ledger. Every object lies in one schema, which is the only one on the search path.
-- Instants are microseconds since 1970-01-01 UTC. A cost is micro * 10^6 + pico picodollars (10^-12 USD).

-- Who, what and under which terms: shared by many entries. The id is the first 63 bits of SHA-256 over the values.
CREATE TABLE contexts (
    id bigint PRIMARY KEY,
    kind text NOT NULL,
    provider text NOT NULL,
    endpoint text NOT NULL,
    operation text NOT NULL,
    request_model text,
    response_model text,
    status text NOT NULL,
    service_tier text,
    cost_source text NOT NULL,
    member text,
    team text,
    organization text,
    project text,
    route text,
    api_key_fingerprint text,
    api_key_last4 text,
    api_key_alias text,
    price_list_hash text,
    model text,
    api_key text
);

-- Everything of a charge but its amounts: shared by many charges. The id is made as above.
CREATE TABLE rates (
    id bigint PRIMARY KEY,
    model text,
    sku_meter text NOT NULL,
    unit text NOT NULL,
    list_unit_price text,
    multipliers text,
    price_id text,
    source text,
    role text NOT NULL
);

-- `charges` is JSON: [[rate, quantity, list, contracted, billed], ...] with costs in picodollars. `digest` is SHA-256
-- over the row and the rows it points at; `batch` is the transaction's link in a hash chain.
CREATE TABLE entries (
    entry_id text COLLATE "C" PRIMARY KEY,
    number bigint GENERATED ALWAYS AS IDENTITY,
    batch bigint NOT NULL,
    digest bytea NOT NULL,
    occurred_at bigint NOT NULL,
    recorded_at bigint NOT NULL,
    context bigint NOT NULL,
    response_id text,
    request_id text,
    streamed smallint NOT NULL,
    attempts integer NOT NULL,
    latency_us bigint,
    first_token_us bigint,
    end_user text,
    tags text,
    quantities text,
    reasoning_output_tokens bigint NOT NULL,
    charges text,
    list_micro bigint,
    list_pico bigint,
    contracted_micro bigint,
    contracted_pico bigint,
    billed_micro bigint,
    billed_pico bigint,
    flags text,
    raw_usage text,
    error_type text,
    corrects text,
    reservation_id text,
    dedup_key text
);
CREATE UNIQUE INDEX entries_by_dedup_key ON entries (dedup_key) WHERE dedup_key IS NOT NULL;
CREATE INDEX entries_by_time ON entries (occurred_at, number);
CREATE INDEX entries_by_context ON entries (context, occurred_at);
CREATE INDEX entries_by_end_user ON entries (end_user, occurred_at) WHERE end_user IS NOT NULL;

-- Sums of entries over the slot that ends at `until`; level 0 is a quarter-hour, 1 a UTC day, 2 a UTC month. Writers of
-- different stripes do not wait for each other; a reader adds the stripes up. sku_meter '' stands for cost that no meter
-- explains.
CREATE TABLE sums (
    level smallint,
    until bigint,
    context bigint,
    sku_meter text COLLATE "C",
    marks smallint,
    stripe smallint,
    entries bigint NOT NULL,
    reasoning bigint NOT NULL,
    quantity bigint NOT NULL,
    quantity_nano bigint NOT NULL,
    list_micro bigint NOT NULL,
    list_pico bigint NOT NULL,
    contracted_micro bigint NOT NULL,
    contracted_pico bigint NOT NULL,
    billed_micro bigint NOT NULL,
    billed_pico bigint NOT NULL,
    PRIMARY KEY (level, until, context, sku_meter, marks, stripe)
) WITH (fillfactor = 70);

-- Hash chains, one per stripe. A batch's hash covers the hash before it and the digests of its entries by entry_id.
CREATE TABLE chains (
    stripe smallint PRIMARY KEY,
    batches bigint NOT NULL,
    entries bigint NOT NULL,
    hash bytea NOT NULL
) WITH (fillfactor = 10);
CREATE SEQUENCE batch_numbers;
CREATE TABLE batches (
    number bigint PRIMARY KEY,
    stripe smallint NOT NULL,
    position bigint NOT NULL,
    entries integer NOT NULL,
    hash bytea NOT NULL,
    UNIQUE (stripe, position)
);

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
    reservation_id text COLLATE "C" PRIMARY KEY,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    owner text NOT NULL,
    claims text NOT NULL,
    call text NOT NULL
);
CREATE INDEX holds_by_expiry ON holds (expires_at, reservation_id);
-- Room that a process has reserved ahead, to hold its calls against without asking.
CREATE TABLE leases (
    lease_id text COLLATE "C" PRIMARY KEY,
    budget text COLLATE "C" NOT NULL,
    scope text COLLATE "C" NOT NULL,
    window_start bigint NOT NULL,
    amount numeric NOT NULL,
    expires_at bigint NOT NULL,
    owner text NOT NULL
) WITH (fillfactor = 30);
CREATE INDEX leases_by_expiry ON leases (expires_at);
CREATE TABLE crossings (
    budget text COLLATE "C",
    scope text COLLATE "C",
    window_start bigint,
    threshold numeric,
    settled numeric NOT NULL,
    crossed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (budget, scope, window_start, threshold)
);

-- The ledger's own secret, for fingerprints of API keys. One row, made on first use.
CREATE TABLE secret (
    id smallint PRIMARY KEY CHECK (id = 1),
    value bytea NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % is refused; put an entry right with a correction',
        TG_OP, TG_TABLE_NAME;
END $$;
CREATE TRIGGER entries_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON entries EXECUTE FUNCTION refuse_change();
CREATE TRIGGER contexts_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON contexts EXECUTE FUNCTION refuse_change();
CREATE TRIGGER rates_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON rates EXECUTE FUNCTION refuse_change();
CREATE TRIGGER batches_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON batches EXECUTE FUNCTION refuse_change();
