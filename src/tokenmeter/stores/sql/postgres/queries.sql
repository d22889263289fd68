-- name: settle
SELECT settle(%s::jsonb)
-- name: log_position
SELECT log_position()
-- name: reserve
SELECT reserve(%s::jsonb)
-- name: release
SELECT release(%s)
-- name: extend
SELECT extend(%s, %s)
-- name: secret
SELECT ledger_secret(%s)
-- name: lease
SELECT lease(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
-- name: renew_leases
SELECT renew_leases(%s, %s)
-- name: return_lease
SELECT return_lease(%s, %s)
-- name: reclaim_leases
SELECT reclaim_leases()
-- name: expired_holds
SELECT reservation_id, claims, created_at, expires_at, owner, call
FROM holds WHERE expires_at <= %s ORDER BY expires_at, reservation_id LIMIT %s
-- name: counters
SELECT budget, scope, window_start, settled, reserved
FROM counters JOIN unnest(%s::text[], %s::text[], %s::bigint[]) AS wanted (budget, scope, window_start)
    USING (budget, scope, window_start)
-- name: all_counters
SELECT budget, scope, window_start, settled, reserved FROM counters
WHERE (budget, scope, window_start) > (%s, %s, %s) ORDER BY budget, scope, window_start LIMIT %s
-- name: crossings
SELECT budget, scope, window_start, threshold, crossed_at, entry_id FROM crossings
ORDER BY crossed_at DESC, threshold DESC, budget, scope LIMIT %s
-- name: set_counters
INSERT INTO counters (budget, scope, window_start, settled)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::numeric[]) AS c (budget, scope, window_start, settled)
ORDER BY budget COLLATE "C", scope COLLATE "C", window_start
ON CONFLICT (budget, scope, window_start) DO UPDATE SET settled = excluded.settled RETURNING 1
-- name: open_counters
INSERT INTO counters (budget, scope, window_start, settled, window_end)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::numeric[], %s::bigint[])
    AS c (budget, scope, window_start, settled, window_end)
ORDER BY budget COLLATE "C", scope COLLATE "C", window_start
ON CONFLICT (budget, scope, window_start) DO UPDATE SET settled = excluded.settled
    WHERE counters.settled = 0 AND counters.reserved = 0 RETURNING 1
-- name: generation
SELECT count(*)::bigint FROM documents WHERE kind = 'budget'
-- name: contexts
SELECT * FROM contexts WHERE id = ANY (%s)
-- name: rates
SELECT * FROM rates WHERE id = ANY (%s)
-- name: heads
SELECT stripe, batches, entries, hash FROM chains WHERE batches > 0 ORDER BY stripe
-- name: all_sums
SELECT level, until, context, nullif(sku_meter, ''), marks, sum(entries), sum(reasoning), sum(quantity),
    sum(quantity_nano), sum(list_micro), sum(list_pico), sum(contracted_micro), sum(contracted_pico),
    sum(billed_micro), sum(billed_pico)
FROM sums GROUP BY 1, 2, 3, 4, 5
-- name: held
SELECT budget, scope, window_start, sum(reserved), sum(claimed)
FROM (
    SELECT budget, scope, window_start, reserved, 0::numeric AS claimed FROM counters
    UNION ALL
    SELECT claim->>0, claim->>1, (claim->>2)::bigint, 0, (claim->>4)::numeric
    FROM holds, jsonb_array_elements(claims::jsonb) AS claim
    UNION ALL
    SELECT budget, scope, window_start, 0, amount FROM leases
) AS both_sides
GROUP BY 1, 2, 3 HAVING sum(reserved) <> sum(claimed)
-- name: pulse
SELECT (SELECT string_agg(batches::text, '.' ORDER BY stripe) FROM chains), (SELECT count(*) FROM holds)
-- name: facts
SELECT current_setting('server_version'), current_user::text, (SELECT max(number) FROM schema_versions),
    (SELECT count(*) FROM holds), has_table_privilege('entries', 'INSERT'),
    has_function_privilege('settle(jsonb)', 'EXECUTE'), has_table_privilege('entries', 'SELECT')
-- name: document_place
SELECT document_place(%s, %s, %s)
-- name: file_document
SELECT file_document(%s::jsonb)
