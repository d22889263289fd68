-- Everything a writer does. The functions run with their owner's rights and check what they are given: a writer can only
-- add to the ledger, behind the last record of its chain.
-- Locks are taken in one order by all: the fold's, the ledger's row, holds, counters by key, crossings, sums by key.

-- One fold at a time, until the transaction ends. Result: {"seq": n, "hash": hex, "entries": n, "places": [[segment, folded]],
-- "moved": the record that says where a ledger went}
CREATE FUNCTION begin_fold(of_host bytea) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('ledger'::regclass::oid::bigint);
    RETURN (SELECT jsonb_build_object('seq', seq, 'hash', encode(hash, 'hex'), 'entries', entries, 'places', (
        SELECT coalesce(jsonb_agg(jsonb_build_array(segment, folded)), '[]') FROM places WHERE host = of_host
    ), 'moved', (SELECT body FROM documents WHERE kind = 'moved')) FROM ledger);
END $$;

-- The row of an account, made if nobody defined it yet.
CREATE FUNCTION account_row(of_digest bytea, OUT id integer, OUT kind text, OUT cost_source text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM accounts WHERE digest = of_digest) THEN
        INSERT INTO accounts (digest) VALUES (of_digest) ON CONFLICT DO NOTHING;
    END IF;
    SELECT a.id, a.kind, a.cost_source INTO id, kind, cost_source FROM accounts AS a WHERE digest = of_digest;
END $$;
CREATE FUNCTION rate_meter(of_digest bytea) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM rates WHERE digest = of_digest) THEN
        INSERT INTO rates (digest) VALUES (of_digest) ON CONFLICT DO NOTHING;
    END IF;
    RETURN (SELECT sku_meter FROM rates WHERE digest = of_digest);
END $$;
CREATE FUNCTION name_row(of_digest bytea) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM names WHERE digest = of_digest) THEN
        INSERT INTO names (digest, kind) VALUES (of_digest, '') ON CONFLICT DO NOTHING;
    END IF;
    RETURN (SELECT id FROM names WHERE digest = of_digest);
END $$;
CREATE FUNCTION tagset_row(of_body text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    of_digest bytea := sha256(convert_to(of_body, 'UTF8'));
BEGIN
    IF NOT EXISTS (SELECT FROM tagsets WHERE digest = of_digest) THEN
        INSERT INTO tagsets (digest, body) VALUES (of_digest, of_body) ON CONFLICT DO NOTHING;
    END IF;
    RETURN (SELECT id FROM tagsets WHERE digest = of_digest);
END $$;
CREATE FUNCTION find_name(of_kind text, of_value text) RETURNS bytea
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT digest FROM names WHERE kind = of_kind AND value = of_value ORDER BY id LIMIT 1
$$;

-- Row of a name that a definition holds the digest of.
CREATE FUNCTION named(said json, field text) RETURNS bigint LANGUAGE sql AS $$
    SELECT CASE WHEN said->>field IS NOT NULL THEN name_row(decode(said->>field, 'hex')) END
$$;

-- Keep a definition. What is not what its digest says is refused; one that is there stays as it is.
CREATE FUNCTION define(definition text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    said json := definition::json;
    of_digest bytea := substr(sha256(convert_to(definition, 'UTF8')), 1, 16);
BEGIN
    IF said->>'record' = 'name' THEN
        of_digest := decode(said->>'digest', 'hex');
        IF of_digest <> substr(sha256(convert_to(said->>'kind', 'UTF8') || '\x00'::bytea || decode(said->>'salt', 'hex')
            || '\x00'::bytea || convert_to(said->>'value', 'UTF8')), 1, 16) THEN
            RAISE EXCEPTION 'a name is not what its digest says' USING ERRCODE = 'data_exception';
        END IF;
        INSERT INTO names AS n (digest, salt, kind, value)
        VALUES (of_digest, decode(said->>'salt', 'hex'), said->>'kind', said->>'value')
        ON CONFLICT (digest) DO UPDATE SET salt = excluded.salt, kind = excluded.kind, value = excluded.value
        WHERE n.kind = '';
    ELSIF EXISTS (SELECT FROM accounts WHERE digest = of_digest AND body IS NOT NULL)
        OR EXISTS (SELECT FROM rates WHERE digest = of_digest AND body IS NOT NULL) THEN
        RETURN;
    ELSIF said->>'record' = 'rate' THEN
        INSERT INTO rates AS r (digest, body, sku_meter) VALUES (of_digest, definition, said->>'sku_meter')
        ON CONFLICT (digest) DO UPDATE SET body = excluded.body, sku_meter = excluded.sku_meter WHERE r.body IS NULL;
    ELSE
        INSERT INTO accounts AS a (digest, body, kind, provider, endpoint, operation, request_model, response_model,
            status, service_tier, cost_source, member, team, organization, project, route, api_key_fingerprint,
            api_key_last4, api_key_alias, price_list_hash)
        VALUES (of_digest, definition, said->>'kind', said->>'provider', said->>'endpoint', said->>'operation',
            said->>'request_model', said->>'response_model', said->>'status', said->>'service_tier',
            said->>'cost_source', named(said, 'member'), named(said, 'team'), named(said, 'organization'),
            named(said, 'project'), named(said, 'route'), said->>'api_key_fingerprint', said->>'api_key_last4',
            named(said, 'api_key_alias'), said->>'price_list_hash')
        ON CONFLICT (digest) DO UPDATE SET body = excluded.body, kind = excluded.kind, provider = excluded.provider,
            endpoint = excluded.endpoint, operation = excluded.operation, request_model = excluded.request_model,
            response_model = excluded.response_model, status = excluded.status, service_tier = excluded.service_tier,
            cost_source = excluded.cost_source, member = excluded.member, team = excluded.team,
            organization = excluded.organization, project = excluded.project, route = excluded.route,
            api_key_fingerprint = excluded.api_key_fingerprint, api_key_last4 = excluded.api_key_last4,
            api_key_alias = excluded.api_key_alias, price_list_hash = excluded.price_list_hash
        WHERE a.body IS NULL;
    END IF;
END $$;

-- The hash after a record, as a running aggregate.
CREATE FUNCTION link(state bytea, before bytea, record text) RETURNS bytea LANGUAGE sql IMMUTABLE AS $$
    SELECT sha256(coalesce(state, before) || sha256(convert_to(record, 'UTF8')))
$$;
CREATE AGGREGATE chained(bytea, text) (sfunc = link, stype = bytea);

-- The partition of entries that are folded now, made when a month begins. A statement trigger of a partitioned table does not
-- guard a partition that is named itself, so each has the same; a migration that changes one changes all. Attaching locks out
-- neither readers nor a backup.
CREATE FUNCTION make_partition() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    month integer := this_month();
    part text := format('entries_%s_%s', month / 12, lpad((month % 12 + 1)::text, 2, '0'));
    guard text;
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = part) THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE entries INCLUDING ALL)', part);
    FOR guard IN SELECT pg_get_triggerdef(oid, true) FROM pg_trigger
        WHERE tgrelid = 'entries'::regclass AND NOT tgisinternal AND tgtype & 1 = 0
    LOOP
        EXECUTE replace(guard, ' ON entries ', format(' ON %I ', part));
    END LOOP;
    EXECUTE format('ALTER TABLE entries ATTACH PARTITION %I FOR VALUES IN (%s)', part, month);
END $$;

-- Rows of a large batch come by COPY, into tables of the session that only its own transaction sees. They are the owner's:
-- what a writer makes under these names is not read. False where none can be made; rows then come in the batch itself.
CREATE FUNCTION stage() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name text;
BEGIN
    IF is_staged() THEN
        RETURN true;
    ELSIF NOT has_database_privilege(current_database(), 'TEMP') THEN
        RETURN false;
    END IF;
    FOREACH name IN ARRAY ARRAY['entries', 'sums', 'rare_sums', 'meter_sums', 'latency_sums'] LOOP
        EXECUTE format('DROP TABLE IF EXISTS pg_temp.staged_%s', name);
        EXECUTE format('CREATE TEMP TABLE staged_%1$s ON COMMIT DELETE ROWS AS TABLE %1$s WITH NO DATA', name);
        EXECUTE format('GRANT INSERT ON pg_temp.staged_%s TO PUBLIC', name);
    END LOOP;
    RETURN true;
EXCEPTION WHEN insufficient_privilege OR wrong_object_type THEN
    RETURN false;
END $$;
-- Whether they are there, are the owner's, and have the columns that the ledger has now.
CREATE FUNCTION is_staged() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT count(*) = 5 FROM pg_class AS t JOIN pg_class AS kept
        ON kept.relnamespace = current_schema()::regnamespace AND t.relname = 'staged_' || kept.relname
    WHERE t.relnamespace = pg_my_temp_schema() AND t.relkind = 'r' AND t.relowner = current_user::regrole
        AND t.relnatts = kept.relnatts AND kept.relname IN ('entries', 'sums', 'rare_sums', 'meter_sums', 'latency_sums')
$$;
CREATE FUNCTION batch_entries(batch json, staged boolean) RETURNS SETOF entries LANGUAGE plpgsql AS $$
BEGIN
    IF staged THEN
        RETURN QUERY SELECT * FROM pg_temp.staged_entries;
    ELSE
        RETURN QUERY SELECT * FROM json_populate_recordset(NULL::entries, batch->'entries');
    END IF;
END $$;
CREATE FUNCTION batch_sums(batch json, staged boolean) RETURNS SETOF sums LANGUAGE plpgsql AS $$
BEGIN
    IF staged THEN
        RETURN QUERY SELECT * FROM pg_temp.staged_sums;
    ELSE
        RETURN QUERY SELECT * FROM json_populate_recordset(NULL::sums, batch->'sums');
    END IF;
END $$;
CREATE FUNCTION batch_rare_sums(batch json, staged boolean) RETURNS SETOF rare_sums LANGUAGE plpgsql AS $$
BEGIN
    IF staged THEN
        RETURN QUERY SELECT * FROM pg_temp.staged_rare_sums;
    ELSE
        RETURN QUERY SELECT * FROM json_populate_recordset(NULL::rare_sums, batch->'rare_sums');
    END IF;
END $$;
CREATE FUNCTION batch_meter_sums(batch json, staged boolean) RETURNS SETOF meter_sums LANGUAGE plpgsql AS $$
BEGIN
    IF staged THEN
        RETURN QUERY SELECT * FROM pg_temp.staged_meter_sums;
    ELSE
        RETURN QUERY SELECT * FROM json_populate_recordset(NULL::meter_sums, batch->'meter_sums');
    END IF;
END $$;
CREATE FUNCTION batch_latency_sums(batch json, staged boolean) RETURNS SETOF latency_sums LANGUAGE plpgsql AS $$
BEGIN
    IF staged THEN
        RETURN QUERY SELECT * FROM pg_temp.staged_latency_sums;
    ELSE
        RETURN QUERY SELECT * FROM json_populate_recordset(NULL::latency_sums, batch->'latency_sums');
    END IF;
END $$;

-- The counts of two sketches together. Most calls have no first token, so one of the two is often empty.
CREATE FUNCTION joined(a bytea, b bytea) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN a = '' THEN b WHEN b = '' THEN a ELSE (
        SELECT coalesce(string_agg(substr(int4send(bucket), 3) || int4send(n::integer), ''::bytea ORDER BY bucket), '')
        FROM (
            SELECT get_byte(c, i) * 256 + get_byte(c, i + 1) AS bucket, sum(get_byte(c, i + 2)::bigint * 16777216
                + get_byte(c, i + 3) * 65536 + get_byte(c, i + 4) * 256 + get_byte(c, i + 5)) AS n
            FROM (VALUES (a), (b)) AS v (c), generate_series(0, length(c) - 6, 6) AS i GROUP BY 1
        ) AS counts
    ) END
$$;

-- Take a batch of records of one host's tail into the ledger: entries behind the last record, sums, counters, holds, and
-- the place that is reached.
-- Argument: {"host": hex, "seq": of the ledger, "known": [[segment, folded]], "places": [[segment, folded]],
--   "gone": [segment], "staged": whether the rows are in the session's tables, else "entries": [{column: value}],
--   "sums": [{}], "rare_sums": [{}], "meter_sums": [{}] and "latency_sums": [{}]; "dedup": [[key, seq]],
--   "posts": [[budget, scope, start, end, amount]], "freed": [hold], "needed": [hold], "extended": [[hold, until]],
--   "holds": [[hold, expires_at, claims, body]] made from leases, or without claims, and still open,
--   "leased": [[budget, scope, start, end, epoch, amount]] of all made from leases,
--   "closed": [[budget, scope, start, end, amount]] of those that were open within the batch only,
--   "refused": [[segment, place, reason, record hex, effects hex]]}
-- Result: [[budget, scope, start, settled]] of the counters that were posted to.
CREATE FUNCTION fold(batch json) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    of_host bytea := decode(batch->>'host', 'hex');
    staged boolean := (batch->>'staged')::boolean;
    head ledger;
    last_seq bigint;
    last_hash bytea;
    added bigint;
    freed jsonb;
    posted jsonb;
    took record;
    covered numeric;
    uncovered jsonb := '[]';
BEGIN
    SELECT * INTO head FROM ledger FOR UPDATE;
    IF staged AND NOT is_staged() THEN
        RAISE EXCEPTION 'the tables of the batch are not the ledger''s own' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF head.seq <> (batch->>'seq')::bigint OR EXISTS (
        SELECT 1 FROM json_array_elements(batch->'known') AS k JOIN places AS p
            ON p.host = of_host AND p.segment = (k->>0)::bigint
        WHERE p.folded <> (k->>1)::bigint
    ) OR (SELECT count(*) FROM holds WHERE hold_id IN (SELECT json_array_elements_text(batch->'needed')))
        < json_array_length(batch->'needed') THEN
        RAISE EXCEPTION 'another fold came first' USING ERRCODE = 'serialization_failure';
    END IF;

    PERFORM make_partition();
    WITH put AS (
        INSERT INTO entries (
            seq, entry_id, occurred_at, account, end_user, tags, unpriced, estimated, reasoning, input, cache_read,
            cache_write_5m, cache_write_1h, output, list_micro, list_pico, contracted_micro, contracted_pico,
            billed_micro, billed_pico, more, response_id, trace_id, body, hash
        )
        SELECT head.seq + row_number() OVER by_seq, entry_id, occurred_at, account, end_user, tags, unpriced, estimated,
            reasoning, input, cache_read, cache_write_5m, cache_write_1h, output, list_micro, list_pico,
            contracted_micro, contracted_pico, billed_micro, billed_pico, more, response_id, trace_id, body,
            chained(head.hash, body) OVER by_seq
        FROM batch_entries(batch, staged) WINDOW by_seq AS (ORDER BY seq)
        RETURNING seq, hash
    )
    SELECT count(*), max(seq), (array_agg(hash ORDER BY seq DESC))[1] INTO added, last_seq, last_hash FROM put;
    IF added > 0 THEN
        UPDATE ledger SET seq = last_seq, hash = last_hash, entries = entries + added;
        INSERT INTO dedup SELECT d->>0, (d->>1)::bigint FROM json_array_elements(batch->'dedup') AS d;
    END IF;

    WITH gone AS (
        DELETE FROM holds WHERE hold_id IN (SELECT json_array_elements_text(batch->'freed')) RETURNING claims::jsonb AS c
    )
    SELECT coalesce(jsonb_agg(c), '[]') INTO freed FROM gone;
    UPDATE holds SET expires_at = (e->>1)::bigint FROM json_array_elements(batch->'extended') AS e
    WHERE hold_id = e->>0;
    INSERT INTO holds SELECT h->>0, (h->>1)::bigint, h->>2, h->>3 FROM json_array_elements(batch->'holds') AS h
    ON CONFLICT DO NOTHING;
    IF json_array_length(batch->'leased') > 0 THEN
        PERFORM 1 FROM counters JOIN json_array_elements(batch->'leased') AS l
            ON budget = l->>0 AND scope = l->>1 AND window_start = (l->>2)::bigint
        ORDER BY budget, scope, window_start FOR UPDATE OF counters;
        FOR took IN SELECT l->>0 AS budget, l->>1 AS scope, (l->>2)::bigint AS window_start, (l->>3)::bigint AS window_end,
            decode(l->>4, 'hex') AS epoch, (l->>5)::numeric AS amount FROM json_array_elements(batch->'leased') AS l
        LOOP
            SELECT least(l.amount, took.amount) INTO covered FROM leases AS l WHERE l.host = of_host AND l.epoch = took.epoch
                AND l.budget = took.budget AND l.scope = took.scope AND l.window_start = took.window_start FOR UPDATE;
            covered := coalesce(covered, 0);
            UPDATE leases AS l SET amount = l.amount - covered WHERE l.host = of_host AND l.epoch = took.epoch
                AND l.budget = took.budget AND l.scope = took.scope AND l.window_start = took.window_start;
            uncovered := uncovered || jsonb_build_array(jsonb_build_array(
                took.budget, took.scope, took.window_start, took.window_end, (took.amount - covered)::text));
        END LOOP;
    END IF;
    WITH moves AS (
        SELECT p->>0 AS budget, p->>1 AS scope, (p->>2)::bigint AS window_start, (p->>3)::bigint AS window_end,
            (p->>4)::numeric AS settled, 0::numeric AS reserved, true AS post
        FROM json_array_elements(batch->'posts') AS p
        UNION ALL
        SELECT c->>0, c->>1, (c->>2)::bigint, (c->>3)::bigint, 0, -(c->>4)::numeric, false
        FROM jsonb_array_elements(freed) AS claims, jsonb_array_elements(claims) AS c
        UNION ALL
        SELECT c->>0, c->>1, (c->>2)::bigint, (c->>3)::bigint, 0, -(c->>4)::numeric, false
        FROM json_array_elements(batch->'closed') AS c
        UNION ALL
        SELECT u->>0, u->>1, (u->>2)::bigint, (u->>3)::bigint, 0, (u->>4)::numeric, false
        FROM jsonb_array_elements(uncovered) AS u
    ), moved AS (
        INSERT INTO counters AS c (budget, scope, window_start, window_end, settled, reserved)
        SELECT budget COLLATE "C", scope COLLATE "C", window_start, max(window_end), sum(settled), sum(reserved)
        FROM moves GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (budget, scope, window_start) DO UPDATE SET
            settled = c.settled + excluded.settled,
            reserved = c.reserved + excluded.reserved,
            window_end = coalesce(excluded.window_end, c.window_end)
        RETURNING budget, scope, window_start, settled
    )
    SELECT coalesce(jsonb_agg(jsonb_build_array(budget, scope, window_start, settled::text)), '[]') INTO posted
    FROM moved;

    INSERT INTO sums AS s SELECT r.* FROM batch_sums(batch, staged) AS r
    ORDER BY level, slot, account
    ON CONFLICT (level, slot, account) DO UPDATE SET
        n = s.n + excluded.n, unpriced = s.unpriced + excluded.unpriced, estimated = s.estimated + excluded.estimated,
        reasoning = s.reasoning + excluded.reasoning, input = s.input + excluded.input,
        cache_read = s.cache_read + excluded.cache_read, cache_write_5m = s.cache_write_5m + excluded.cache_write_5m,
        cache_write_1h = s.cache_write_1h + excluded.cache_write_1h, output = s.output + excluded.output,
        list_micro = s.list_micro + excluded.list_micro, list_pico = s.list_pico + excluded.list_pico,
        contracted_micro = s.contracted_micro + excluded.contracted_micro,
        contracted_pico = s.contracted_pico + excluded.contracted_pico,
        billed_micro = s.billed_micro + excluded.billed_micro, billed_pico = s.billed_pico + excluded.billed_pico;
    INSERT INTO rare_sums AS s SELECT r.* FROM batch_rare_sums(batch, staged) AS r
    ORDER BY level, slot, account, sku_meter COLLATE "C"
    ON CONFLICT (level, slot, account, sku_meter) DO UPDATE SET
        quantity = s.quantity + excluded.quantity, nano = s.nano + excluded.nano;
    INSERT INTO meter_sums AS s SELECT r.* FROM batch_meter_sums(batch, staged) AS r
    ORDER BY level, slot, account, sku_meter COLLATE "C"
    ON CONFLICT (level, slot, account, sku_meter) DO UPDATE SET
        n = s.n + excluded.n, unpriced = s.unpriced + excluded.unpriced, estimated = s.estimated + excluded.estimated,
        reasoning = s.reasoning + excluded.reasoning, quantity = s.quantity + excluded.quantity,
        nano = s.nano + excluded.nano, list_micro = s.list_micro + excluded.list_micro,
        list_pico = s.list_pico + excluded.list_pico, contracted_micro = s.contracted_micro + excluded.contracted_micro,
        contracted_pico = s.contracted_pico + excluded.contracted_pico,
        billed_micro = s.billed_micro + excluded.billed_micro, billed_pico = s.billed_pico + excluded.billed_pico;

    INSERT INTO latency_sums AS s SELECT r.* FROM batch_latency_sums(batch, staged) AS r
    ORDER BY level, slot, account
    ON CONFLICT (level, slot, account) DO UPDATE SET
        duration_us = s.duration_us + excluded.duration_us, duration = joined(s.duration, excluded.duration),
        first_token_us = s.first_token_us + excluded.first_token_us,
        first_token = joined(s.first_token, excluded.first_token),
        generation_us = s.generation_us + excluded.generation_us, generated = s.generated + excluded.generated;

    INSERT INTO refused
    SELECT of_host, (r->>0)::bigint, (r->>1)::bigint, r->>2, decode(r->>3, 'hex'), decode(r->>4, 'hex')
    FROM json_array_elements(batch->'refused') AS r ON CONFLICT DO NOTHING;
    DELETE FROM places WHERE host = of_host
        AND segment IN (SELECT g::bigint FROM json_array_elements_text(batch->'gone') AS g);
    INSERT INTO places SELECT of_host, (p->>0)::bigint, (p->>1)::bigint FROM json_array_elements(batch->'places') AS p
    ON CONFLICT (host, segment) DO UPDATE SET folded = excluded.folded;
    RETURN posted;
END $$;

-- Note thresholds that were crossed: [[budget, scope, start, threshold, at, entry]]; the places of those that are new.
CREATE FUNCTION cross_thresholds(crossed json) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN QUERY WITH one AS (
        SELECT c->>0 AS b, c->>1 AS s, (c->>2)::bigint AS w, (c->>3)::numeric AS t, (c->>4)::bigint AS at, c->>5 AS e,
            place - 1 AS place
        FROM json_array_elements(crossed) WITH ORDINALITY AS r (c, place)
    ), put AS (
        INSERT INTO crossings (budget, scope, window_start, threshold, crossed_at, entry_id)
        SELECT b, s, w, t, at, e FROM one ORDER BY b COLLATE "C", s COLLATE "C", w, t
        ON CONFLICT DO NOTHING RETURNING budget, scope, window_start, threshold
    )
    SELECT one.place FROM one JOIN put ON (b, s, w, t) = (budget, scope, window_start, threshold) ORDER BY 1;
END $$;

-- Give back what is left of leases. Tables are taken in the order in which everyone does (holds, counters, leases), and
-- counters by key: `rebuild` locks all of a table, and would wait for this as this for it.
CREATE FUNCTION return_leases(of_host bytea, epochs bytea[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
BEGIN
    LOCK TABLE counters, leases IN ROW EXCLUSIVE MODE;
    PERFORM 1 FROM counters JOIN leases USING (budget, scope, window_start) WHERE host = of_host AND epoch = ANY (epochs)
    ORDER BY budget, scope, window_start FOR UPDATE OF counters;
    WITH gone AS (
        DELETE FROM leases WHERE host = of_host AND epoch = ANY (epochs) RETURNING budget, scope, window_start, amount
    ), sums AS (
        SELECT budget, scope, window_start, sum(amount) AS amount FROM gone GROUP BY 1, 2, 3
    )
    UPDATE counters AS c SET reserved = c.reserved - g.amount FROM sums AS g
    WHERE (c.budget, c.scope, c.window_start) = (g.budget, g.scope, g.window_start);
    DELETE FROM lessees WHERE host = of_host AND epoch = ANY (epochs);
END $$;

-- Hold every claim or none. Argument: {"id": text, "expires_at": us, "body": text, "claims":
-- [[budget, scope, start, end, amount, cap]], "host": hex, "epoch": hex, "lease": n}, claims by key. With a lease of n above
-- 0 the host is also given room for up to n more such holds, where an eighth of what is left allows some.
-- Result: {"leased": [n, ...]}, what was given per claim. A claim that does not fit is an error TMCAP; its detail says
-- {"missed": place, "settled": n, "reserved": n, "leased": whether other hosts are to give back room that it would fit into}.
-- The commit is not flushed: ten times as many fit into a second. A crash of the server can forget holds of its last 0.6
-- seconds (three times wal_writer_delay) that no fold came after; the entries of their calls are counted all the same.
CREATE FUNCTION reserve(hold jsonb) RETURNS jsonb LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    claim jsonb;
    stand counters;
    place integer := 0;
    now_us bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    of_host bytea := decode(hold->>'host', 'hex');
    of_epoch bytea := decode(hold->>'epoch', 'hex');
    wanted integer := coalesce((hold->>'lease')::integer, 0);
    given boolean := false;
    more numeric;
    leased jsonb := '[]';
BEGIN
    IF EXISTS (SELECT FROM documents WHERE kind = 'moved') THEN
        RAISE EXCEPTION 'this ledger moved elsewhere; its last document says where' USING ERRCODE = 'TMMOV';
    END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO holds VALUES (hold->>'id', (hold->>'expires_at')::bigint, (hold->'claims')::text, hold->>'body')
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN jsonb_build_object('leased', leased);
    END IF;
    IF wanted > 0 AND EXISTS (SELECT FROM lessees WHERE host = of_host AND epoch = of_epoch AND recalled) THEN
        wanted := 0;
    END IF;
    FOR claim IN SELECT * FROM jsonb_array_elements(hold->'claims') LOOP
        stand := NULL;
        more := 0;
        FOR attempt IN 1..2 LOOP
            UPDATE counters AS c SET reserved = reserved + (claim->>4)::numeric
            WHERE budget = claim->>0 AND scope = claim->>1 AND window_start = (claim->>2)::bigint
                AND (claim->>5 IS NULL OR settled + reserved + (claim->>4)::numeric <= (claim->>5)::numeric)
            RETURNING * INTO stand;
            EXIT WHEN FOUND OR attempt = 2;
            INSERT INTO counters (budget, scope, window_start, window_end)
            VALUES (claim->>0, claim->>1, (claim->>2)::bigint, (claim->>3)::bigint) ON CONFLICT DO NOTHING;
        END LOOP;
        IF stand.budget IS NULL THEN
            RAISE EXCEPTION 'does not fit' USING ERRCODE = 'TMCAP', DETAIL = missed(hold, place);
        END IF;
        IF wanted > 0 AND (claim->>3 IS NULL OR (claim->>3)::bigint > now_us + 60000000) THEN
            more := least(wanted * (claim->>4)::numeric, div((claim->>5)::numeric - stand.settled - stand.reserved, 8));
            IF more >= 4 * (claim->>4)::numeric AND more > 0 THEN
                UPDATE counters SET reserved = reserved + more
                WHERE budget = claim->>0 AND scope = claim->>1 AND window_start = (claim->>2)::bigint;
                INSERT INTO leases AS l VALUES (claim->>0, claim->>1, (claim->>2)::bigint, of_host, of_epoch, more)
                ON CONFLICT (budget, scope, window_start, host, epoch) DO UPDATE SET amount = l.amount + excluded.amount;
                given := true;
            ELSE
                more := 0;
            END IF;
        END IF;
        leased := leased || to_jsonb(more::text);
        place := place + 1;
    END LOOP;
    IF given THEN
        INSERT INTO lessees AS l (host, epoch, until, expires_at)
        VALUES (of_host, of_epoch, now_us + 2000000, (hold->>'expires_at')::bigint + 3000000)
        ON CONFLICT (host, epoch) DO UPDATE SET until = excluded.until,
            expires_at = greatest(l.expires_at, excluded.expires_at);
    END IF;
    RETURN jsonb_build_object('leased', leased);
END $$;

-- Why a claim does not fit; see `reserve`, in whose transaction it looks.
CREATE FUNCTION missed(hold jsonb, of_place integer) RETURNS text LANGUAGE sql AS $$
    SELECT jsonb_build_object(
        'missed', of_place, 'settled', c.settled::text, 'reserved', (c.reserved - coalesce((
            SELECT sum((e->>4)::numeric) FROM jsonb_array_elements(hold->'claims') WITH ORDINALITY AS r (e, n)
            WHERE n <= of_place AND e->>0 = claim->>0 AND e->>1 = claim->>1 AND e->>2 = claim->>2
        ), 0))::text, 'leased', c.settled + c.reserved + (claim->>4)::numeric - coalesce((
            SELECT sum(amount) FROM leases WHERE (budget, scope, window_start) = (c.budget, c.scope, c.window_start)
        ), 0) <= (claim->>5)::numeric)::text
    FROM (SELECT hold->'claims'->of_place AS claim) AS one JOIN counters AS c
        ON c.budget = claim->>0 AND c.scope = claim->>1 AND c.window_start = (claim->>2)::bigint
$$;

-- Have hosts give back what they lease of a counter, and take it from those that died. Whether one of them may still do so.
CREATE FUNCTION recall_leases(of_budget text, of_scope text, of_start bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    now_us bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    dead record;
BEGIN
    PERFORM 1 FROM counters JOIN leases USING (budget, scope, window_start) JOIN lessees USING (host, epoch)
    WHERE expires_at < now_us ORDER BY budget, scope, window_start FOR UPDATE OF counters;
    FOR dead IN SELECT host, epoch FROM lessees WHERE expires_at < now_us ORDER BY host, epoch LOOP
        PERFORM return_leases(dead.host, ARRAY[dead.epoch]);
    END LOOP;
    UPDATE lessees AS l SET recalled = true FROM leases AS e
    WHERE (e.host, e.epoch) = (l.host, l.epoch) AND NOT l.recalled
        AND (e.budget, e.scope, e.window_start) = (of_budget, of_scope, of_start);
    RETURN EXISTS (
        SELECT 1 FROM leases AS e JOIN lessees AS l USING (host, epoch)
        WHERE (budget, scope, window_start) = (of_budget, of_scope, of_start) AND amount > 0 AND until > now_us - 3000000
    );
END $$;

-- Free a hold without an entry; false when there is none.
CREATE FUNCTION release(of_hold text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    freed jsonb;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    DELETE FROM holds WHERE hold_id = of_hold RETURNING claims::jsonb INTO freed;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO counters AS c (budget, scope, window_start, reserved)
    SELECT (claim->>0) COLLATE "C", (claim->>1) COLLATE "C", (claim->>2)::bigint, -sum((claim->>4)::numeric)
    FROM jsonb_array_elements(freed) AS claim GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (budget, scope, window_start) DO UPDATE SET reserved = c.reserved + excluded.reserved;
    RETURN true;
END $$;

-- Move a hold's expiry; false when the hold is gone.
CREATE FUNCTION extend(of_hold text, until bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE holds SET expires_at = until WHERE hold_id = of_hold;
    RETURN FOUND;
END $$;

-- Give counters that never moved what their window holds already: [[budget, scope, start, end, settled]].
CREATE FUNCTION open_counters(opening json) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO counters (budget, scope, window_start, window_end, settled)
    SELECT (c->>0) COLLATE "C", (c->>1) COLLATE "C", (c->>2)::bigint, (c->>3)::bigint, (c->>4)::numeric
    FROM json_array_elements(opening) AS c ORDER BY 1, 2, 3
    ON CONFLICT (budget, scope, window_start) DO UPDATE SET settled = excluded.settled
    WHERE counters.settled = 0 AND counters.reserved = 0
$$;

-- The ledger's secret.
CREATE FUNCTION ledger_secret() RETURNS bytea LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT value FROM secret WHERE id = 1
$$;

CREATE FUNCTION keeps_secret() RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT coalesce((SELECT sha256(value) FROM secret WHERE id = 1) = secret_digest, false) FROM ledger
$$;

-- How many budgets, changes of budgets and erasures are filed.
CREATE FUNCTION budget_generation() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT count(*) FROM documents WHERE kind IN ('budget', 'erasure')
$$;

-- What a document about to be filed must follow; the fold's lock is held until the transaction ends.
-- Result: {"taken": [position, body, hash hex], "seq": n, "hash": hex, "position": n, "numbered": highest of the series}
CREATE FUNCTION document_place(of_kind text, of_key text, of_series text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('ledger'::regclass::oid::bigint);
    RETURN (SELECT jsonb_build_object(
        'taken', (
            SELECT jsonb_build_array(position, body, encode(d.hash, 'hex')) FROM documents AS d
            WHERE kind = of_kind AND key = of_key
        ),
        'seq', seq, 'hash', encode(hash, 'hex'), 'position', documents,
        'numbered', (SELECT max(number) FROM documents WHERE series = of_series),
        'moved', (SELECT body FROM documents WHERE kind = 'moved')
    ) FROM ledger);
END $$;

-- File a document behind the last record; its hash.
CREATE FUNCTION file_document(record text) RETURNS bytea
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    said json := record::json;
    head ledger;
    next_number bigint;
BEGIN
    PERFORM pg_advisory_xact_lock('ledger'::regclass::oid::bigint);
    SELECT * INTO head FROM ledger FOR UPDATE;
    IF said->>'series' IS NOT NULL THEN
        SELECT coalesce(max(number), 0) + 1 INTO next_number FROM documents WHERE series = said->>'series';
    END IF;
    IF said->>'anchor' IS DISTINCT FROM encode(head.hash, 'hex')
        OR (said->>'number')::bigint IS DISTINCT FROM next_number THEN
        RAISE EXCEPTION 'another document was filed meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    head.hash := link(NULL, head.hash, record);
    INSERT INTO documents (seq, position, kind, key, series, number, body, hash)
    VALUES (head.seq + 1, head.documents + 1, said->>'kind', said->>'key', said->>'series', next_number, record, head.hash);
    UPDATE ledger SET seq = head.seq + 1, hash = head.hash, documents = head.documents + 1;
    RETURN head.hash;
END $$;

-- Who may execute this is a reader: it sees every document. A writer sees those that define budgets.
CREATE FUNCTION read_documents() RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT true $$;
ALTER TABLE documents ENABLE ROW LEVEL SECURITY;
CREATE POLICY seen_by_role ON documents FOR SELECT USING (
    kind = 'budget' OR has_function_privilege(format('%I.read_documents()', current_schema()), 'EXECUTE')
);
