"""The fold that sends this host's tail to a server: what its records name, and what the server is told of them."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.stores.base import PolicyReader
from tokenmeter.stores.book import ENTRY_COLUMNS, SUM_COLUMNS, Folding, FoldingBook, check_definition, make_room
from tokenmeter.stores.documents import told_of_move
from tokenmeter.stores.encoding import compact_json, digest_of, note_usage
from tokenmeter.stores.fold import AccountFacts, Batch, sum_rows
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.sessions import ServerRows
from tokenmeter.stores.tail import frames, segment_path
from tokenmeter.stores.trouble import Trouble

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

#: Rows from which on they are sent by COPY.
_COPY_FROM = 200
_OCCURRED_AT = ENTRY_COLUMNS.index("occurred_at")
#: Frames before a place by which it is told whose they are.
_LAST_FRAMES = 64
_HEARD = re.compile(rb'\{"heard":(\d+)')
_COLUMNS = {table: tuple(columns.split(", ")) for table, columns in SUM_COLUMNS.items()} | {
    "entries": ENTRY_COLUMNS[:-1]
}
#: What else a fold is told of.
_NO_ENTRIES = (
    *("known", "places", "gone", "dedup", "freed", "needed", "extended", "holds", "leased", "closed", "refused"),
    *("entries", "sums", "rare_sums", "meter_sums", "latency_sums"),
)


class Foreseen:
    """What records name. Each is given in order and once: a `dict` without values.

    Attributes:
        definitions: Records that define what entries share.
        defined: Their digests.
        accounts: Digests of accounts, as for `rates` and `names`.
        tagsets: Sets of tags.
        sought: Entries that may be there already.
        keys: Their bills.
        needed: Holds without which something is not taken.
    """

    def __init__(self) -> None:
        self.definitions: dict[bytes, None] = {}
        self.defined: dict[str, None] = {}
        self.accounts: dict[str, None] = {}
        self.rates: dict[str, None] = {}
        self.names: dict[str, None] = {}
        self.tagsets: dict[str, None] = {}
        self.sought: dict[str, None] = {}
        self.keys: dict[str, None] = {}
        self.needed: dict[str, None] = {}

    def add(self, record: bytes, effects: bytes, *, careful: bool) -> None:
        """Take down what a record and its effects name.

        Raises:
            Exception: it is no record; whoever takes it says so.
        """
        if not record:
            return
        values: dict[str, Any] = from_json(record)
        kind = values["record"]
        if kind == "entry":
            tags: Mapping[str, str] = values.get("tags") or {}
            names = [*tags.values(), *([values["end_user"]] if "end_user" in values else ())]
            rates = [charge["rate"] for charge in values.get("charges", ())]
            for digest in (account := values["account"], *names, *rates):
                bytes.fromhex(digest)
            self.accounts[account] = None
            self.rates.update(dict.fromkeys(rates))
            self.names.update(dict.fromkeys(names))
            if tags:
                self.tagsets[compact_json(tags)] = None
            entry_id, key = values["id"], values.get("dedup_key")
            if (careful or b'"seek":' in effects) and isinstance(entry_id, str) and isinstance(key, str | None):
                self.sought[entry_id] = None
                self.keys.update(() if key is None else ((key, None),))
            if b'"needed":' in effects and isinstance(needed := from_json(effects)["needed"], str):
                self.needed[needed] = None
        elif kind in {"account", "rate", "name"}:
            check_definition(kind, values)
            self.defined[values["digest"] if kind == "name" else digest_of(record)] = None
            self.definitions[record] = None


def _known_meter(meter: str | None) -> str:
    return meter or "unknown"


def _look_up(
    run: Callable[..., Any], statement: str, digests: Iterable[str], known: dict[str, T], row_of: Callable[..., T]
) -> None:
    """Add to what is `known` by its digest what is not yet."""
    wanted = [bytes.fromhex(digest) for digest in digests if digest not in known]
    if wanted:
        rows = run(statement, (wanted,)).fetchall()
        make_room(known, len(rows))
        known.update((digest.hex(), row_of(*row)) for digest, *row in rows)


_ACCOUNT_ROWS = (
    "SELECT one, row.id, row.kind, row.cost_source FROM unnest(CAST(? AS bytea[])) AS one, account_row(one) AS row"
)
_RATE_METERS = "SELECT one, rate_meter(one) FROM unnest(CAST(? AS bytea[])) AS one"
_NAME_ROWS = "SELECT one, name_row(one) FROM unnest(CAST(? AS bytea[])) AS one"
_TAGSET_ROWS = "SELECT one, tagset_row(one) FROM unnest(CAST(? AS text[])) AS one"


class ServerBook(FoldingBook):
    """What a fold asks the book on a server for: rows by what they are known by, and what to count beside them.

    Attributes:
        pool: Connections to the server.
        told: Thresholds that were crossed, as far as this process knows.
        policy: By what programs count; see `Store.policy`.
        reversals: Records that take back the estimates of holds, and what they name; it is asked within a fold.
        has_told_copy: Whether the log says that another host has a copy of this one's spool.
    """

    def __init__(self, pool: Pool, path: Path, identity: bytes) -> None:
        super().__init__(
            path, Trouble("send entries to the PostgreSQL ledger", "Nothing is lost: they wait in the spool.")
        )
        self.pool, self.identity = pool, identity
        self.told: set[tuple[CounterKey, int]] = set()
        self.policy: PolicyReader | None = None
        self.reversals: Callable[[Sequence[str]], Sequence[bytes]] = lambda _: ()
        self.has_told_copy = False
        self._correcting = threading.local()

    def reached(self, segment: int) -> int:
        """How far a segment is folded, as far as this process knows."""
        return self._reached.get(segment, 0)

    def within(self, rows: ServerRows, count: Callable[[], T]) -> T:
        """Run `count`: what it reads of the ledger, it reads in the transaction of `rows`."""
        self._correcting.rows = rows
        try:
            return count()
        finally:
            self._correcting.rows = None

    @property
    def _within(self) -> ServerRows | None:
        """The transaction in which this thread counts; see `within`."""
        return getattr(self._correcting, "rows", None)

    def put_right(self, rows: ServerRows, due: Mapping[CounterKey, tuple[int, int | None]], seq: int) -> None:
        """Have counters say what they should, within a fold's transaction; `seq` is where the ledger stands."""
        wanted = json_text([parts(key) for key in due])
        standing = {
            CounterKey(*place): int(settled)
            for *place, settled in rows.execute(
                "SELECT budget, scope, window_start, settled FROM counters JOIN json_array_elements(CAST(? AS json)) "
                "AS w ON budget = w->>0 AND scope = w->>1 AND window_start = (w->>2)::bigint",
                (wanted,),
            ).fetchall()
        }
        posts = [
            [*parts(key), end, amount - standing.get(key, 0)]
            for key, (amount, end) in due.items()
            if amount != standing.get(key, 0)
        ]
        if posts:
            batch = {"host": self.identity.hex(), "seq": seq, "staged": False, "posts": posts}
            rows.execute("SELECT fold(?)", (json_text(batch | dict.fromkeys(_NO_ENTRIES, ())),)).fetchall()

    def find_account(self, connection: ServerRows, digest: bytes) -> Sequence[Any]:
        """See `FoldingBook`."""
        row: Sequence[Any] = connection.execute(
            "SELECT id, kind, cost_source FROM account_row(?)", (digest,)
        ).fetchall()[0]
        return row

    def find_meter(self, connection: ServerRows, digest: bytes) -> str | None:
        """See `FoldingBook`."""
        meter: str | None = connection.execute("SELECT rate_meter(?)", (digest,)).fetchall()[0][0]
        return meter

    def find_row(self, connection: ServerRows, table: str, key: bytes | str) -> int:
        """See `FoldingBook`."""
        statement = "SELECT name_row(?)" if table == "names" else "SELECT tagset_row(?)"
        number: int = connection.execute(statement, (key,)).fetchall()[0][0]
        return number

    def keep_definition(self, connection: ServerRows, kind: str, record: bytes, values: Mapping[str, Any]) -> str:
        """See `FoldingBook`."""
        connection.execute("SELECT define(?)", (record.decode(),))
        return str(values["digest"]) if kind == "name" else digest_of(record)

    def define(self, connection: ServerRows, kind: str, record: bytes, values: Mapping[str, Any]) -> None:
        """See `FoldingBook`. What was kept with others is not kept once more."""
        if record not in self._kept:
            super().define(connection, kind, record, values)

    def forget_rows(self) -> None:
        """See `FoldingBook`."""
        super().forget_rows()
        self._kept: frozenset[bytes] = frozenset()

    def foresee(self, connection: ServerRows, found: Foreseen) -> None:
        """Keep definitions, then look up rows, by one statement for each kind of them: others wait for this fold."""
        self._kept = frozenset(found.definitions)
        if found.definitions:
            told = [record.decode() for record in found.definitions]
            connection.execute("SELECT define(one) FROM unnest(CAST(? AS text[])) AS one", (told,)).fetchall()
            for digest in found.defined:
                self._meters.pop(digest, None)
                self._accounts.pop(digest, None)
        run = connection.execute
        _look_up(run, _ACCOUNT_ROWS, found.accounts, self._accounts, AccountFacts.of)
        _look_up(run, _RATE_METERS, found.rates, self._meters, _known_meter)
        _look_up(run, _NAME_ROWS, found.names, self._names, int)
        bodies = [body for body in found.tagsets if body not in self._tagsets]
        if bodies:
            rows = run(_TAGSET_ROWS, (bodies,)).fetchall()
            make_room(self._tagsets, len(rows))
            self._tagsets.update(rows)


def _identities(records: Iterable[bytes]) -> tuple[list[str], list[str]]:
    """Those of the entries among records, and of their bills."""
    ids, keys = list[str](), list[str]()
    for record in records:
        with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError):
            values = from_json(record)
            if values["record"] == "entry" and isinstance(values["id"], str):
                ids.append(values["id"])
                keys += [key] if isinstance(key := values.get("dedup_key"), str) else []
    return ids, keys


_SOUGHT = (
    "SELECT 'entry_id', entry_id FROM entries WHERE entry_id = ANY (?) "
    "UNION ALL SELECT 'key', key FROM dedup WHERE key = ANY (?)"
)


class FoldToServer(Folding):
    """See `Folding`.

    Here the effects of a frame say more: ``needed`` (the record is taken only while that hold is open), ``alert`` (the
    thresholds of each posting), ``lease`` (the epoch of the leases that a hold was made from), ``seek`` (an entry of
    this identity may be there; indices keep it from coming twice within a month only) and ``heard`` (the position of
    the last document of budgets that was known where the entry was recorded; without it, none).

    Attributes:
        reached: Where the counters stand that were posted to.
        seen: Every threshold that is behind.
        crossed: Those that were crossed first by this batch.
    """

    def __init__(self, book: ServerBook, *, careful: bool, refuse: str | None = None) -> None:
        super().__init__(book, careful=careful, refuse=refuse)
        self._told, self._pool, self._tried = book.told, book.pool, False
        self._server = book

    def begin(self, connection: ServerRows) -> tuple[int, bytes, dict[int, int]]:
        """See `Folding`. A segment of which something else was folded than what it holds is read again."""
        if self._tried:  # the commit failed, and may have taken back rows that were made
            self._server.forget_rows()
        self._tried = True
        self._refused: list[tuple[Any, ...]] = []
        self._needed: list[str] = []
        self._alerts: list[tuple[CounterKey, int, Sequence[int], str, int]] = []
        self._leased: dict[tuple[str, str, int, int | None, str], int] = {}
        self._closed: list[tuple[str, str, int, int | None, int]] = []
        self._opened: dict[str, Sequence[Sequence[Any]]] = {}
        self._made: set[str] = set()
        self._ended: list[str] = []
        self.reached: dict[CounterKey, int] = {}
        self.seen: list[ThresholdCrossing] = []
        self.crossed: list[ThresholdCrossing] = []
        self._heard: dict[int, list[int]] = {}
        self._sought: Collection[str] = ()
        self._there: set[tuple[str, str]] = set()
        self._held: dict[str, bool] = {}
        head = connection.execute("SELECT begin_fold(?)", (self.book.identity,)).fetchall()[0][0]
        if head is None:
            raise StoreUnavailableError(
                "The PostgreSQL ledger has lost the one row of its table `ledger`: restore a backup."
            )
        self.moved = told_of_move(head["moved"]) if head["moved"] else None
        self._folded: dict[int, int] = dict(head["places"])
        places = {number: end if self._was_read(connection, number, end) else 0 for number, end in self._folded.items()}
        return head["seq"], bytes.fromhex(head["hash"]), places

    def _was_read(self, connection: ServerRows, number: int, end: int) -> bool:
        """Whether it was this segment that was folded up to `end`, as far as can be told.

        It was not where it is shorter, after a power cut; nor where another host has a copy of this one's spool, and
        with it its name: an image, a machine's picture. What that one has sent stands beside what this one holds.
        """
        path, before = segment_path(self.book.path, number), self._server.reached(number)
        size = size_of_segment(self.book.path, number)
        if size < end:
            return not size  # it is gone
        if end == before:  # nobody else has folded
            return True
        last, ended = deque[bytes](maxlen=_LAST_FRAMES), 0
        for at, record, _ in frames(path, before if before < end else 0):
            if at > end:
                break
            ended = at
            last.append(record)
        ids, keys = _identities(last)
        if ended != end:
            return self._tell_copy()
        if not ids or connection.execute(_SOUGHT, (ids, keys)).fetchall():
            return True
        archives = self.book.archives
        if archives is not None and any(archives.has(connection, one) for one in ids):
            return True
        return self._tell_copy()

    def _tell_copy(self) -> bool:
        if not self._server.has_told_copy:
            self._server.has_told_copy = True
            log.error(
                "%s: another host sends from a copy of this spool. Nothing is lost, but each reads its own again and "
                "again: stop one of them, remove its spool once tokenmeter.flush() says 0, and start it anew.",
                self.book.path.parent,
            )
        return False

    def put_aside(
        self,
        connection: ServerRows,  # noqa: ARG002 - told with the rest
        place: tuple[int, int],
        reason: str,
        record: bytes,
        effects: bytes,
    ) -> None:
        """See `Folding`."""
        self._refused.append((*place, reason, record.hex(), effects.hex()))

    def foresee(self, connection: ServerRows, frames: Sequence[tuple[bytes, bytes]]) -> None:
        """See `Folding`."""
        found = Foreseen()
        for record, effects in frames:
            with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError):
                found.add(record, effects, careful=self._careful)
        self._server.foresee(connection, found)
        if found.sought:
            self._sought = found.sought
            self._there = {
                (column, text)
                for column, text in connection.execute(_SOUGHT, (list(found.sought), list(found.keys))).fetchall()
            }
        if found.needed:
            statement = "SELECT hold_id FROM holds WHERE hold_id = ANY(?)"
            held = {hold for (hold,) in connection.execute(statement, (list(found.needed),)).fetchall()}
            self._held = {hold: hold in held for hold in found.needed}

    def has(self, connection: ServerRows, entry_id: str, key: str | None) -> bool:
        """See `Folding`. A bill of a record that is foreseen is, too."""
        if entry_id not in self._sought:
            return super().has(connection, entry_id, key)
        return ("entry_id", entry_id) in self._there or ("key", key) in self._there

    def wanted(self, connection: ServerRows, effects: Mapping[str, Any]) -> bool:
        """See `Folding`."""
        needed = effects.get("needed")
        if needed is None:
            return True
        if needed in self._batch.freed:
            return False
        held = self._held.get(needed)
        if held is None:
            held = connection.execute("SELECT 1 FROM holds WHERE hold_id = ?", (needed,)).fetchone() is not None
        if not held:
            return False
        self._needed.append(needed)
        return True

    def take(self, connection: ServerRows, record: bytes, effects: bytes) -> None:
        """See `Folding`. An identity that may be there already is looked for in every month."""
        careful, taken = self._careful, len(self._rows)
        self._careful = careful or b'"seek":' in effects
        try:
            super().take(connection, record, effects)
        finally:
            self._careful = careful
        if len(self._rows) > taken:
            heard = _HEARD.match(effects)
            self._heard.setdefault(int(heard[1]) if heard else 0, []).append(self._rows[-1][_OCCURRED_AT])

    def affect(self, effects: Mapping[str, Any], record: bytes, values: Mapping[str, Any], *, counted: bool) -> None:
        """See `Folding`."""
        super().affect(effects, record, values, counted=counted)
        if "hold" in effects:
            self._made.add(effects["hold"])
        if "free" in effects and "needed" not in effects and effects["free"] not in self._made:
            self._ended.append(effects["free"])
        if "lease" in effects:
            self._opened[effects["hold"]] = effects["claims"]
            for budget, scope, start, end, amount, _ in effects["claims"]:
                key = (budget, scope, start, end, effects["lease"])
                self._leased[key] = self._leased.get(key, 0) + amount
        for budget, scope, start, end, amount, _ in self._opened.pop(effects.get("free", ""), ()):
            self._closed.append((budget, scope, start, end, amount))
        if not counted:
            return
        alert: Sequence[Sequence[int]] = effects.get("alert", ())
        posts: Sequence[Any] = effects.get("post", ())
        for place, (budget, scope, start, _, amount) in enumerate(posts):
            thresholds = alert[place] if place < len(alert) else ()
            self._alerts.append(
                (CounterKey(budget, scope, start), amount, thresholds, values["id"], values["recorded_at"])
            )

    def _note(self, connection: ServerRows) -> None:
        """Have holds on the server say what their calls have used so far: such a row goes, and is put back.

        A hold that is put back claims what it gave up in the same fold, as one made from no lease does: nothing moves.
        """
        batch = self._batch
        if not batch.noted:
            return
        statement = "SELECT hold_id, expires_at, claims, body FROM holds WHERE hold_id = ANY(?)"
        for hold, expires_at, told, body in connection.execute(statement, (list(batch.noted),)).fetchall():
            claims = json.loads(told)
            batch.freed.append(hold)
            self._needed.append(hold)  # else a hold that somebody freed meanwhile would come back
            record = note_usage(body.encode(), batch.noted[hold])
            batch.holds[hold] = [batch.extended.pop(hold, expires_at), claims, record]
            for budget, scope, start, end, amount, _ in claims:
                key = (budget, scope, start, end, "")
                self._leased[key] = self._leased.get(key, 0) + amount

    def _take_back_estimates(self, connection: ServerRows) -> None:
        """Take back what another host estimated of calls whose end only comes now, their holds having expired there."""
        if not self._ended:
            return
        statement = "SELECT hold_id FROM holds WHERE hold_id = ANY(?)"
        held = {hold for (hold,) in connection.execute(statement, (self._ended,)).fetchall()}
        swept = [hold for hold in self._ended if hold not in held]
        if swept:
            for record in self._server.within(connection, partial(self._server.reversals, swept)):
                self.take(connection, record, b"")

    def end(self, connection: ServerRows, known: Mapping[int, int]) -> None:
        """See `Folding`."""
        batch: Batch = self._batch
        self._note(connection)
        self._take_back_estimates(connection)
        told: dict[str, Any] = {
            "host": self.book.identity.hex(),
            "seq": self._seq - len(self._rows),
            "known": list(self._folded.items()),
            "places": [item for item in self.places.items() if self._folded.get(item[0]) != item[1]],
            "gone": [number for number in known if number not in self.places],
            "dedup": list(self._dedup.items()),
            "posts": [[*parts(key), end, amount] for key, (amount, end) in batch.posts.items()],
            "freed": batch.freed,
            "needed": self._needed,
            "extended": list(batch.extended.items()),
            "holds": [
                (hold, end, json_text(claims), body.decode()) for hold, (end, claims, body) in batch.holds.items()
            ],
            "leased": [(*key, amount) for key, amount in self._leased.items()],
            "closed": self._closed,
            "refused": self._refused,
        }
        rows = {"entries": [row[:-1] for row in self._rows], **{table: list(some) for table, some in sum_rows(batch)}}
        told["staged"] = self._stage(connection, rows)
        if not told["staged"]:
            told |= {
                table: [dict(zip(_COLUMNS[table], map(_told, row), strict=True)) for row in some]
                for table, some in rows.items()
            }
        moved, newest = connection.execute(
            "SELECT fold(?), (SELECT max(position) FROM documents WHERE kind = 'budget')", (json_text(told),)
        ).fetchall()[0]
        for budget, scope, start, settled in moved:
            self.reached[CounterKey(budget, scope, start)] = int(settled)
        self._cross(connection)
        self._count_unheard(connection, newest or 0)

    def _count_unheard(self, connection: ServerRows, newest: int) -> None:
        """Count entries into the budgets of which those who recorded them had not heard; they may have ended since."""
        book, late = self._server, {heard: moments for heard, moments in self._heard.items() if heard < newest}
        if not late or book.policy is None:
            return
        moments = {moment for some in late.values() for moment in some}
        due = book.within(connection, partial(book.policy.due, min(late), moments))
        if due:
            book.put_right(connection, due, self._seq)
            self.reached.update((key, amount) for key, (amount, _) in due.items())

    def _stage(self, connection: ServerRows, rows: Mapping[str, Sequence[Sequence[Any]]]) -> bool:
        """Send many rows by COPY; False where they are few, or where a pooler would hand the session to others."""
        if self._pool.pooled or sum(map(len, rows.values())) < _COPY_FROM:
            return False
        if not connection.execute("SELECT stage()").fetchall()[0][0]:
            return False
        for table, some in rows.items():
            connection.copy(f"staged_{table}", _COLUMNS[table], some)
        return True

    def _cross(self, connection: ServerRows) -> None:
        """Note the thresholds that the batch took counters across."""
        standing = dict(self.reached)
        for key, amount, *_ in self._alerts:
            standing[key] -= amount
        found: dict[tuple[CounterKey, int], tuple[int, str, int]] = {}
        for key, amount, thresholds, entry_id, at in self._alerts:
            standing[key] += amount
            for threshold in thresholds:
                if threshold <= standing[key]:
                    found.setdefault((key, threshold), (standing[key], entry_id, at))
        told = self._told
        fresh = [item for item in found.items() if item[0] not in told]
        if not fresh:
            return
        self.seen = [ThresholdCrossing(key, threshold, settled) for (key, threshold), (settled, *_) in fresh]
        rows = [[*parts(key), str(threshold), at, entry_id] for (key, threshold), (_, entry_id, at) in fresh]
        new = connection.execute("SELECT cross_thresholds(?)", (json_text(rows),)).fetchall()
        self.crossed = [self.seen[place] for (place,) in new]


def size_of_segment(path: Path, number: int) -> int:
    """Bytes of a segment of the tail beside `path`; 0 where it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return segment_path(path, number).stat().st_size
    return 0


def _told(value: Any) -> Any:
    """A column as JSON says it."""
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value


def parts(key: CounterKey) -> tuple[str, str, int]:
    """A counter's key as rows have it."""
    return key.budget, key.scope, key.window_start


def json_text(value: object) -> str:
    """JSON; integers of any size."""
    try:
        return to_json(value).decode()
    except ValueError:
        return json.dumps(value)
