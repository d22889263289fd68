-- Everything a writer does, each in one round trip and one transaction. They run with their owner's rights.
-- Locks are taken in one order by all: holds, entries, leases, counters by key, crossings, sums by key, chain.

-- Append a batch of records, free their holds, move counters, report thresholds, add to the sums, link the chain.
-- Argument: {"stripe": 3, "kept": true, "records": [{"entry": {column: value}, "digest": hex, "context": {}, "rates": [{}],
--   "postings": [{}], "slots": [[until, level]], "lines": [[sku_meter, marks, sums...]], "hold": id,
--   "draws": [[lease, amount]], "only_if_held": true}]}
-- Result: {"recorded": [place], "known": [place], "held": [reservation_id], "crossings": [[key..., threshold, settled]]}
-- where `known` are records whose entry_id is in the ledger, by this call or an earlier one; and "log": [backend, written,
-- flushed], positions in the write-ahead log as this call found them. With `kept` the commit is not flushed: the sender
-- keeps the records until it has seen a flushed position behind them, and sends them again if the server crashed first.
-- Where there are synchronous replicas, they are waited for all the same: a position tells nothing of theirs.
-- Tables are only looked up by key; planning that anew for each call takes four times as long as doing it.
CREATE FUNCTION settle(batch jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    of_stripe smallint := batch->>'stripe';
    batch_number bigint := nextval('batch_numbers');
    ids text[];
    digests bytea[];
    hold_ids text[];
    held text[];
    freed jsonb;
    added jsonb;
    alive boolean[];
    crossed jsonb;
    head bytea;
    log jsonb;
    head_position bigint;
    added_entries integer;
    kept boolean := coalesce((batch->>'kept')::boolean, false) AND current_setting('synchronous_standby_names') = '';
BEGIN
    IF kept THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    ELSIF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    log := log_position();

    SELECT coalesce(array_agg(item->'entry'->>'entry_id' ORDER BY place), '{}'),
        coalesce(array_agg(decode(item->>'digest', 'hex') ORDER BY place), '{}'),
        coalesce(array_agg(item->>'hold') FILTER (WHERE item->>'hold' IS NOT NULL), '{}')
    INTO ids, digests, hold_ids
    FROM jsonb_array_elements(batch->'records') WITH ORDINALITY AS r (item, place);

    INSERT INTO contexts
    SELECT DISTINCT ON (c.id) c.*
    FROM (
        SELECT item->'context' AS context FROM jsonb_array_elements(batch->'records') AS item
        WHERE (SELECT true FROM contexts WHERE id = (item->'context'->'id')::bigint) IS NULL OFFSET 0
    ) AS fresh, jsonb_populate_record(NULL::contexts, fresh.context) AS c
    ORDER BY c.id
    ON CONFLICT DO NOTHING;

    INSERT INTO rates
    SELECT DISTINCT ON (r.id) r.*
    FROM (
        SELECT rate FROM jsonb_array_elements(batch->'records') AS item, jsonb_array_elements(item->'rates') AS rate
        WHERE (SELECT true FROM rates WHERE id = (rate->'id')::bigint) IS NULL OFFSET 0
    ) AS fresh, jsonb_populate_record(NULL::rates, fresh.rate) AS r
    ORDER BY r.id
    ON CONFLICT DO NOTHING;

    WITH gone AS (
        DELETE FROM holds WHERE reservation_id = ANY (hold_ids) RETURNING reservation_id, claims::jsonb AS claims
    )
    SELECT coalesce(array_agg(reservation_id), '{}'), coalesce(jsonb_agg(claims), '[]') INTO held, freed FROM gone;

    WITH put AS (
        INSERT INTO entries (
            batch, digest, entry_id, occurred_at, recorded_at, context, response_id, request_id, streamed, attempts,
            latency_us, first_token_us, end_user, tags, quantities, reasoning_output_tokens, charges, list_micro,
            list_pico, contracted_micro, contracted_pico, billed_micro, billed_pico, flags, raw_usage, error_type,
            corrects, reservation_id, dedup_key
        )
        SELECT
            batch_number, decode(item->>'digest', 'hex'), e.entry_id, e.occurred_at, e.recorded_at, e.context,
            e.response_id, e.request_id, e.streamed, e.attempts, e.latency_us, e.first_token_us, e.end_user, e.tags,
            e.quantities, e.reasoning_output_tokens, e.charges, e.list_micro, e.list_pico, e.contracted_micro,
            e.contracted_pico, e.billed_micro, e.billed_pico, e.flags, e.raw_usage, e.error_type, e.corrects,
            e.reservation_id, e.dedup_key
        FROM jsonb_array_elements(batch->'records') AS item, jsonb_populate_record(NULL::entries, item->'entry') AS e
        WHERE NOT coalesce((item->>'only_if_held')::boolean, false) OR item->>'hold' = ANY (held)
        ORDER BY e.entry_id
        ON CONFLICT DO NOTHING
        RETURNING entry_id
    )
    SELECT coalesce(jsonb_object_agg(entry_id, true), '{}') INTO added FROM put;

    SELECT coalesce(array_agg(added ? id AND turn = 1 ORDER BY place), '{}') INTO alive
    FROM (
        SELECT id, place, row_number() OVER (PARTITION BY id ORDER BY place) AS turn
        FROM unnest(ids) WITH ORDINALITY AS r (id, place)
    ) AS turns;

    WITH drawn AS (
        SELECT draw->>0 AS lease, sum((draw->>1)::numeric) AS amount
        FROM jsonb_array_elements(batch->'records') WITH ORDINALITY AS r (item, place),
            jsonb_array_elements(item->'draws') AS draw
        WHERE alive[place]
        GROUP BY 1
    ), taken AS (
        UPDATE leases SET amount = leases.amount - drawn.amount FROM drawn
        WHERE lease_id = drawn.lease AND leases.amount >= drawn.amount
        RETURNING jsonb_build_array(budget, scope, window_start, NULL, drawn.amount, NULL) AS claim
    )
    SELECT freed || coalesce(jsonb_agg(jsonb_build_array(claim)), '[]') INTO freed FROM taken;

    WITH posted AS (
        SELECT p.*, place, item->'entry'->>'entry_id' AS entry_id
        FROM jsonb_array_elements(batch->'records') WITH ORDINALITY AS r (item, place),
            jsonb_to_recordset(item->'postings') AS p (
                budget text, scope text, window_start bigint, window_end bigint, amount numeric, thresholds numeric[]
            )
        WHERE alive[place]
    ), moves AS (
        SELECT budget, scope, window_start, window_end, amount AS settled, 0::numeric AS reserved FROM posted
        UNION ALL
        SELECT claim->>0, claim->>1, (claim->>2)::bigint, (claim->>5)::bigint, 0, -(claim->>4)::numeric
        FROM jsonb_array_elements(freed) AS claims, jsonb_array_elements(claims) AS claim
    ), moved AS (
        INSERT INTO counters AS c (budget, scope, window_start, window_end, settled, reserved)
        SELECT budget COLLATE "C", scope COLLATE "C", window_start, max(window_end), sum(settled), sum(reserved)
        FROM moves GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (budget, scope, window_start) DO UPDATE SET
            settled = c.settled + excluded.settled,
            reserved = c.reserved + excluded.reserved,
            window_end = coalesce(excluded.window_end, c.window_end)
        RETURNING budget, scope, window_start, settled
    ), steps AS (
        SELECT budget, scope, window_start, thresholds, place, entry_id,
            sum(amount) OVER (PARTITION BY budget, scope, window_start ORDER BY place DESC) - amount AS later
        FROM posted
    ), reported AS (
        INSERT INTO crossings (budget, scope, window_start, threshold, settled, entry_id)
        SELECT DISTINCT ON (1, 2, 3, 4) moved.budget, moved.scope, moved.window_start, threshold, moved.settled, entry_id
        FROM steps
        JOIN moved USING (budget, scope, window_start)
        CROSS JOIN unnest(thresholds) AS threshold
        WHERE threshold <= moved.settled
        ORDER BY 1, 2, 3, 4, threshold > moved.settled - later, place
        ON CONFLICT DO NOTHING
        RETURNING budget, scope, window_start, threshold, settled
    )
    SELECT coalesce(jsonb_agg(
        jsonb_build_array(budget, scope, window_start, threshold, settled) ORDER BY budget, scope, window_start, threshold
    ), '[]') INTO crossed FROM reported;

    IF crossed <> '[]' AND current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);  -- what is reported once must not be forgotten
    END IF;

    INSERT INTO sums AS s
    SELECT (slot->1)::smallint, (slot->0)::bigint, context, sku_meter, marks, of_stripe, sum(l1), sum(l2), sum(l3), sum(l4),
        sum(l5), sum(l6), sum(l7), sum(l8), sum(l9), sum(l10)
    FROM (
        SELECT item->'slots' AS slots, (item->'entry'->'context')::bigint AS context,
            coalesce(line->>0, '') COLLATE "C" AS sku_meter, (line->1)::smallint AS marks,
            (line->2)::bigint AS l1, (line->3)::bigint AS l2, (line->4)::bigint AS l3, (line->5)::bigint AS l4,
            (line->6)::bigint AS l5, (line->7)::bigint AS l6, (line->8)::bigint AS l7, (line->9)::bigint AS l8,
            (line->10)::bigint AS l9, (line->11)::bigint AS l10
        FROM jsonb_array_elements(batch->'records') WITH ORDINALITY AS r (item, place),
            jsonb_array_elements(item->'lines') AS line
        WHERE alive[place]
        OFFSET 0
    ) AS lines, jsonb_array_elements(slots) AS slot
    GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (level, until, context, sku_meter, marks, stripe) DO UPDATE SET
        entries = s.entries + excluded.entries,
        reasoning = s.reasoning + excluded.reasoning,
        quantity = s.quantity + excluded.quantity,
        quantity_nano = s.quantity_nano + excluded.quantity_nano,
        list_micro = s.list_micro + excluded.list_micro,
        list_pico = s.list_pico + excluded.list_pico,
        contracted_micro = s.contracted_micro + excluded.contracted_micro,
        contracted_pico = s.contracted_pico + excluded.contracted_pico,
        billed_micro = s.billed_micro + excluded.billed_micro,
        billed_pico = s.billed_pico + excluded.billed_pico;

    IF added <> '{}' THEN
        INSERT INTO chains (stripe, batches, entries, hash) VALUES (of_stripe, 0, 0, decode(repeat('00', 32), 'hex'))
        ON CONFLICT DO NOTHING;
        SELECT count(*) INTO added_entries FROM jsonb_object_keys(added);
        UPDATE chains SET batches = batches + 1, entries = entries + added_entries, hash = sha256(hash || (
            SELECT string_agg(digest, ''::bytea ORDER BY id COLLATE "C")
            FROM unnest(ids, digests) WITH ORDINALITY AS r (id, digest, place) WHERE alive[place]
        ))
        WHERE stripe = of_stripe
        RETURNING batches, hash INTO head_position, head;
        INSERT INTO batches (number, stripe, position, entries, hash)
        VALUES (batch_number, of_stripe, head_position, added_entries, head);
    ELSIF NOT kept THEN
        -- What was known already may be another session's and not flushed yet. Changing something, however void, makes
        -- this commit wait for the disk, and so for all that was written before.
        INSERT INTO chains AS c (stripe, batches, entries, hash)
        VALUES (of_stripe, 0, 0, decode(repeat('00', 32), 'hex'))
        ON CONFLICT (stripe) DO UPDATE SET batches = c.batches;
    END IF;

    RETURN jsonb_build_object(
        'recorded', (
            SELECT coalesce(jsonb_agg(place - 1), '[]') FROM generate_subscripts(alive, 1) AS place WHERE alive[place]
        ),
        'known', (
            SELECT coalesce(jsonb_agg(place - 1), '[]') FROM unnest(ids) WITH ORDINALITY AS r (id, place)
            WHERE (SELECT true FROM entries WHERE entry_id = id)
        ),
        'held', to_jsonb(held),
        'crossings', crossed,
        'log', log
    );
END $$;

-- Hold every claim or none. Result: NULL when held (or held already), else the first claim by key that does not fit:
-- {"claim": place, "settled": n, "reserved": n}. The commit is not flushed: ten times as many fit into a second. A crash
-- of the server can forget holds of its last 0.6 seconds (three times wal_writer_delay) that no entry came after; the
-- entries of their calls are counted all the same.
CREATE FUNCTION reserve(hold jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    claim record;
    missed jsonb;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO holds (reservation_id, created_at, expires_at, owner, claims, call)
    VALUES (hold->>'reservation_id', (hold->>'created_at')::bigint, (hold->>'expires_at')::bigint, hold->>'owner',
        hold->>'claims', hold->>'call')
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    FOR claim IN
        SELECT place, c->>0 AS budget, c->>1 AS scope, (c->>2)::bigint AS window_start, (c->>3)::numeric AS cap,
            (c->>4)::numeric AS amount, (c->>5)::bigint AS window_end,
            row_number() OVER (ORDER BY (c->>0) COLLATE "C", (c->>1) COLLATE "C", (c->>2)::bigint, place) AS turn
        FROM jsonb_array_elements((hold->>'claims')::jsonb) WITH ORDINALITY AS r (c, place)
        ORDER BY turn
    LOOP
        CONTINUE WHEN add_hold(claim.budget, claim.scope, claim.window_start, claim.cap, claim.amount);
        INSERT INTO counters (budget, scope, window_start, window_end)
        VALUES (claim.budget, claim.scope, claim.window_start, claim.window_end)
        ON CONFLICT DO NOTHING;
        CONTINUE WHEN add_hold(claim.budget, claim.scope, claim.window_start, claim.cap, claim.amount);
        CONTINUE WHEN reclaim_leases() AND
            add_hold(claim.budget, claim.scope, claim.window_start, claim.cap, claim.amount);

        UPDATE counters AS k SET reserved = k.reserved - earlier.amount
        FROM (
            SELECT budget, scope, window_start, sum(amount) AS amount
            FROM (
                SELECT c->>0 AS budget, c->>1 AS scope, (c->>2)::bigint AS window_start, (c->>4)::numeric AS amount,
                    row_number() OVER (ORDER BY (c->>0) COLLATE "C", (c->>1) COLLATE "C", (c->>2)::bigint, place) AS turn
                FROM jsonb_array_elements((hold->>'claims')::jsonb) WITH ORDINALITY AS r (c, place)
            ) AS taken
            WHERE turn < claim.turn GROUP BY 1, 2, 3
        ) AS earlier
        WHERE (k.budget, k.scope, k.window_start) = (earlier.budget, earlier.scope, earlier.window_start);
        DELETE FROM holds WHERE reservation_id = hold->>'reservation_id';
        SELECT jsonb_build_object('claim', claim.place - 1, 'settled', k.settled, 'reserved', k.reserved) INTO missed
        FROM counters AS k
        WHERE (k.budget, k.scope, k.window_start) = (claim.budget, claim.scope, claim.window_start);
        RETURN missed;
    END LOOP;
    RETURN NULL;
END $$;

-- Whether `amount` fitted under `cap` (NULL: no cap) and is reserved now.
CREATE FUNCTION add_hold(of_budget text, of_scope text, of_window bigint, cap numeric, amount numeric) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE counters SET reserved = reserved + amount
    WHERE budget = of_budget AND scope = of_scope AND window_start = of_window
        AND (cap IS NULL OR settled + reserved + amount <= cap);
    RETURN FOUND;
END $$;

-- Free a hold without an entry; false when there is none.
CREATE FUNCTION release(hold_id text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    freed jsonb;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM holds WHERE reservation_id = hold_id RETURNING claims::jsonb INTO freed;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM subtract_claims(freed);
    RETURN true;
END $$;

-- Take the amounts of claims off what is reserved, in key order.
CREATE FUNCTION subtract_claims(claims jsonb) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO counters AS c (budget, scope, window_start, reserved)
    SELECT (claim->>0) COLLATE "C", (claim->>1) COLLATE "C", (claim->>2)::bigint, -sum((claim->>4)::numeric)
    FROM jsonb_array_elements(claims) AS claim GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (budget, scope, window_start) DO UPDATE SET reserved = c.reserved + excluded.reserved
$$;

-- Reserve a part of what a counter has left, for one process to hold calls against: 1/parts of it, or nothing where
-- that is less than `least`. Result: the amount, 0 for none.
CREATE FUNCTION lease(
    new_id text, of_budget text, of_scope text, of_window bigint, of_end bigint, cap numeric, parts integer,
    least_amount numeric, seconds integer, of_owner text
) RETURNS numeric LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    part numeric;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM reclaim_leases();
    SELECT amount INTO part FROM leases WHERE lease_id = new_id;  -- asked again after the answer was lost
    IF FOUND THEN
        RETURN part;
    END IF;
    INSERT INTO counters (budget, scope, window_start, window_end) VALUES (of_budget, of_scope, of_window, of_end)
    ON CONFLICT DO NOTHING;
    SELECT floor((cap - settled - reserved) / parts) INTO part FROM counters
    WHERE budget = of_budget AND scope = of_scope AND window_start = of_window FOR UPDATE;
    IF part < least_amount THEN
        RETURN 0;
    END IF;
    PERFORM add_hold(of_budget, of_scope, of_window, cap, part);
    INSERT INTO leases (lease_id, budget, scope, window_start, amount, expires_at, owner)
    VALUES (new_id, of_budget, of_scope, of_window, part, now_us() + seconds * 1000000::bigint, of_owner);
    RETURN part;
END $$;

-- Keep leases for some more seconds; the ids of those that are still there.
CREATE FUNCTION renew_leases(ids text[], seconds integer) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    RETURN QUERY UPDATE leases SET expires_at = now_us() + seconds * 1000000::bigint
        WHERE lease_id = ANY (ids) AND expires_at >= now_us() RETURNING lease_id;
END $$;

-- Give back a part of a lease that no call is held against; false when the lease has expired.
CREATE FUNCTION return_lease(id text, part numeric) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    found_lease leases;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE leases SET amount = amount - part WHERE lease_id = id AND amount >= part RETURNING * INTO found_lease;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    DELETE FROM leases WHERE lease_id = id AND amount = 0;
    PERFORM subtract_claims(jsonb_build_array(jsonb_build_array(
        found_lease.budget, found_lease.scope, found_lease.window_start, NULL, part
    )));
    RETURN true;
END $$;

-- Free what leases hold whose process has not renewed them; whether there were any.
CREATE FUNCTION reclaim_leases() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    freed jsonb;
BEGIN
    WITH gone AS (DELETE FROM leases WHERE expires_at < now_us() RETURNING *)
    SELECT jsonb_agg(jsonb_build_array(budget, scope, window_start, NULL, amount)) INTO freed FROM gone;
    IF freed IS NULL THEN
        RETURN false;
    END IF;
    PERFORM subtract_claims(freed);
    RETURN true;
END $$;

-- Which server process this is, and how far its server's write-ahead log is written and flushed.
CREATE FUNCTION log_position() RETURNS jsonb LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT jsonb_build_array(
        pg_backend_pid(), pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_current_wal_flush_lsn() - '0/0'::pg_lsn
    )
$$;

-- The server's clock.
CREATE FUNCTION now_us() RETURNS bigint LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

-- Move a hold's expiry; false when the hold is gone.
CREATE FUNCTION extend(hold_id text, until bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE holds SET expires_at = until WHERE reservation_id = hold_id;
    RETURN FOUND;
END $$;

-- The ledger's secret; `candidate` becomes it when there is none yet.
CREATE FUNCTION ledger_secret(candidate bytea) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO secret (id, value) VALUES (1, candidate) ON CONFLICT DO NOTHING;
    RETURN (SELECT value FROM secret WHERE id = 1);
END $$;
