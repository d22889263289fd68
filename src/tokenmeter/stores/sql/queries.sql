-- name: head
SELECT seq, hash FROM head;

-- name: advance_head
UPDATE head SET seq = ?, hash = ?;

-- name: counter
SELECT settled, reserved FROM counters WHERE budget = ? AND scope = ? AND window_start = ?;

-- name: set_counter
INSERT INTO counters (budget, scope, window_start, window_end, settled, reserved) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (budget, scope, window_start) DO UPDATE SET
    settled = excluded.settled,
    reserved = excluded.reserved,
    window_end = coalesce(excluded.window_end, window_end);

-- name: all_counters
SELECT budget, scope, window_start, settled, reserved FROM counters
WHERE (budget, scope, window_start) > (?, ?, ?)
ORDER BY budget, scope, window_start LIMIT ?;

-- name: hold
SELECT claims FROM holds WHERE reservation_id = ?;

-- name: add_hold
INSERT INTO holds (reservation_id, created_at, expires_at, owner, claims, call) VALUES (?, ?, ?, ?, ?, ?);

-- name: remove_hold
DELETE FROM holds WHERE reservation_id = ?;

-- name: extend_hold
UPDATE holds SET expires_at = ? WHERE reservation_id = ?;

-- name: expired_holds
SELECT reservation_id, claims, created_at, expires_at, owner, call FROM holds
WHERE expires_at <= ? ORDER BY expires_at, reservation_id LIMIT ?;

-- name: all_claims
SELECT claims FROM holds;

-- name: count_holds
SELECT count(*) FROM holds;

-- name: add_crossing
INSERT INTO crossings (budget, scope, window_start, threshold, crossed_at, entry_id) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: crossings
SELECT budget, scope, window_start, threshold, crossed_at, entry_id FROM crossings
ORDER BY crossed_at DESC, length(threshold) DESC, threshold DESC, budget, scope LIMIT ?;

-- name: make_secret
INSERT INTO secret (id, value) VALUES (1, ?) ON CONFLICT DO NOTHING;

-- name: secret
SELECT value FROM secret;
