"""The book on a server, and the fold that sends this host's tail to it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from pydantic_core import from_json, to_json

from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.stores.base import PolicyReader
from tokenmeter.stores.book import (
    ENTRY_COLUMNS,
    SUM_COLUMNS,
    Folding,
    FoldingBook,
    RepeatedError,
    check_definition,
    make_room,
)
from tokenmeter.stores.documents import told_of_move
from tokenmeter.stores.effects import Standing
from tokenmeter.stores.encoding import compact_json, digest_of, note_usage
from tokenmeter.stores.fold import AccountFacts, Batch, sum_rows
from tokenmeter.stores.postgres.engine import ENGINE
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.sessions import ServerRows, explain, is_refusal, reason_of
from tokenmeter.stores.tail import frames, segment_path, segments
from tokenmeter.stores.trouble import Trouble

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

_MOST_TOLD = 50_000
#: Entries that are dropped in one transaction.
_AT_ONCE = 20_000
#: No fold, and nobody else who drops or brings back, until the transaction ends.
_ALONE = "SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)"
#: So many times on end a fold may wait as long as a statement may take before that is told.
_WAITS = 3
#: Rows from which on they are sent by COPY.
_COPY_FROM = 200
_OCCURRED_AT = ENTRY_COLUMNS.index("occurred_at")
#: Frames before a place by which it is told whose they are.
_LAST_FRAMES = 64
_HEARD = re.compile(rb'\{"heard":(\d+)')
_FIND_NAMES = (
    "SELECT find_name(kind, value) FROM unnest(CAST(? AS text[]), CAST(? AS text[])) "
    "WITH ORDINALITY AS one(kind, value, place) ORDER BY place"
)
_COLUMNS = {table: tuple(columns.split(", ")) for table, columns in SUM_COLUMNS.items()} | {
    "entries": ENTRY_COLUMNS[:-1]
}
#: What else a fold is told of.
_NO_ENTRIES = (
    *("known", "places", "gone", "dedup", "freed", "needed", "extended", "holds", "leased", "closed", "refused"),
    *("entries", "sums", "rare_sums", "meter_sums", "latency_sums"),
)


class PostgresBook(FoldingBook):
    """The ledger on a server as `tokenmeter.stores.effects.Book`. Safe for threads and processes.

    The live counters of its journal are not used: the server counts.

    Args:
        pool: Connections to the server.
        path: Beside what this host's tail lies.
        identity: This host's, 16 bytes: by it the server knows how far the tail is folded.

    Attributes:
        settled: Where counters stand, as this process last heard, its own postings added.
        told: Thresholds that were crossed, as far as this process knows.
        late: Crossings that are to be reported; whoever takes one off tells it.
        policy: By what programs count; see `Store.policy`.
        reversals: Records that take back the estimates of holds, and what they name; it is asked within a fold.
        has_told_copy: Whether the log says that another host has a copy of this one's spool.
    """

    engine = ENGINE

    def __init__(self, pool: Pool, path: Path, identity: bytes) -> None:
        super().__init__(
            path, Trouble("send entries to the PostgreSQL ledger", "Nothing is lost: they wait in the spool.")
        )
        self.pool, self.identity = pool, identity
        self.settled: dict[CounterKey, int] = {}
        self.told: set[tuple[CounterKey, int]] = set()
        self.late: deque[ThresholdCrossing] = deque()
        self.policy: PolicyReader | None = None
        self.reversals: Callable[[Sequence[str]], Sequence[bytes]] = lambda _: ()
        self._waited = 0
        self.has_told_copy = False
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Share no lock with the parent."""
        self._mutex = threading.RLock()
        self._correcting = threading.local()
        self._owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` asks
        self.forget_rows()

    def forget(self) -> None:
        """Forget rows. How far the tail is folded holds on: the server keeps it."""
        self.forget_rows()
        if not hasattr(self, "_reached"):
            super().forget()

    # -- for the journal

    def moved(self) -> str | None:
        """See `tokenmeter.stores.effects.Book`: the server refuses by itself."""
        return None

    def file(self) -> tuple[int, int]:
        """See `tokenmeter.stores.effects.Book`."""
        status = self.path.stat()
        return status.st_dev, status.st_ino

    def stand(self, work: Callable[[Standing], T]) -> T:
        """See `tokenmeter.stores.effects.Book`: nothing is counted here. A segment that was cut off is known by it."""
        ends = {number: max(_size(self.path, number), self.reached(number)) for number in segments(self.path)}
        return work(_NothingStands(ends))

    def find_name(self, kind: str, value: str) -> str | None:
        """See `tokenmeter.stores.effects.Book`."""
        found = self.fetch("SELECT find_name(?, ?)", (kind, value))[0][0]
        return None if found is None else bytes(found).hex()

    def find_names(self, names: Sequence[tuple[str, str]]) -> list[str | None]:
        """`find_name` of many at once; none where the server does not answer."""
        with contextlib.suppress(StoreError):
            kinds, values = ([name[place] for name in names] for place in (0, 1))
            found = self.fetch(_FIND_NAMES, (kinds, values))
            return [None if digest is None else bytes(digest).hex() for (digest,) in found]
        return []

    def known(self, entry_ids: Sequence[str], dedup_keys: Sequence[str | None]) -> tuple[set[str], set[str]]:
        """See `tokenmeter.stores.effects.Book`."""

        def work(rows: ServerRows) -> tuple[set[str], set[str]]:
            live = rows.execute(
                "SELECT entry_id, NULL FROM entries WHERE entry_id = ANY (?) "
                "UNION ALL SELECT NULL, key FROM dedup WHERE key = ANY (?)",
                (list(entry_ids), [key for key in dedup_keys if key is not None]),
            ).fetchall()
            found, billed = ({row[place] for row in live if row[place] is not None} for place in (0, 1))
            archives, strangers = self.archives, set[bytes]()
            if archives is not None:
                found |= {one for one in entry_ids if one not in found and archives.has(rows, one, strangers)}
            return found, billed

        return self.run(work)

    # -- for archives

    def let_go(self, last: int, ids: Sequence[tuple[bytes, int, int]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`. Only the ledger's owner may."""

        def work(rows: ServerRows) -> bool:
            run = rows.execute
            run(_ALONE)
            row = run(
                "SELECT max(seq) FROM (SELECT seq FROM entries WHERE seq <= ? ORDER BY seq LIMIT ?) AS next",
                (last, _AT_ONCE),
            ).fetchone()
            if row is None or row[0] is None:
                return False
            for one in ids:
                run("INSERT INTO archived_ids VALUES (?, ?, ?) ON CONFLICT DO NOTHING", one)
            if run("SELECT drop_partition(?)", (last,)).fetchall()[0][0]:
                return run("SELECT 1 FROM entries WHERE seq <= ? LIMIT 1", (last,)).fetchone() is not None
            run(
                "UPDATE ledger SET archived_to = ?, archived_hash = (SELECT hash FROM entries WHERE seq = ?)",
                (row[0], row[0]),
            )
            run("DELETE FROM entries WHERE seq <= ?", row)
            return bool(row[0] < last)

        return self.run(work, scope="transaction")

    def take_back(self, gone: int, before: int, head: bytes, rows: Sequence[tuple[int, bytes, bytes]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`. Only the ledger's owner may."""
        places = ", ".join("?" * len(ENTRY_COLUMNS))
        statement = f"INSERT INTO entries ({', '.join(ENTRY_COLUMNS)}) VALUES ({places})"  # noqa: S608 - names of our own

        def work(server: ServerRows) -> bool:
            server.execute(_ALONE)
            if (now := server.execute("SELECT archived_to FROM ledger").fetchall()[0][0]) != gone:
                return bool(now == before)  # else it was done, and the answer lost
            server.execute("SELECT make_partition()")
            server.execute("UPDATE ledger SET archived_to = ?, archived_hash = ?", (before, head))
            for row in self.returned(server, rows):
                server.execute(statement, row)
            return True

        try:
            return self.run(work, scope="transaction")
        finally:
            self.forget_rows()

    def alone(self, work: Callable[[ServerRows], T]) -> T:
        """See `FoldingBook`."""

        def transact(rows: ServerRows) -> T:
            rows.execute(_ALONE)
            return work(rows)

        return self.run(transact, scope="transaction")

    def may_pack(self) -> bool:
        """See `FoldingBook`. Only the ledger's owner may: what others wrote could not be trusted."""
        if self._within is not None or not super().may_pack():
            return False
        allowed: bool = self.fetch("SELECT has_table_privilege('packed_sums', 'INSERT')")[0][0]
        return allowed

    # -- the server

    def read(self, work: Callable[[ServerRows], T]) -> T:
        """Run `work` in one read transaction that may take its time."""
        if self._within is not None:
            return work(self._within)
        with _settings_as_outage(), self.pool.lend(snapshot=True) as connection:
            return work(ServerRows(connection))

    def run(self, work: Callable[[ServerRows], T], *, scope: str | None = None) -> T:
        """Run `work` on one of the pool's connections; see `Pool.run`.

        Raises:
            StoreUnavailableError: the server cannot be used, or refuses.
        """
        if self._within is not None:
            return work(self._within)
        try:
            with _settings_as_outage():
                return self.pool.run(lambda connection, _: work(ServerRows(connection)), scope=scope)
        except psycopg.Error as error:
            raise explain(error, self.pool.address) from error

    def ask(self, work: Callable[[ServerRows], T]) -> T:
        """See `FoldingBook`."""
        return self.run(work)

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

    def correct_counters(self, count: Callable[[], Mapping[CounterKey, tuple[int, int | None]]]) -> None:
        """Have counters say what `count` finds, as a fold of no entries, so that no other comes between."""
        with self._mutex:
            self.run(partial(self._correct, count), scope="transaction")

    def _correct(self, count: Callable[[], Mapping[CounterKey, tuple[int, int | None]]], rows: ServerRows) -> None:
        head = rows.execute("SELECT begin_fold(?)", (self.identity,)).fetchall()[0][0]
        if head["moved"]:
            raise StoreUnavailableError(told_of_move(head["moved"]))
        due = self.within(rows, count)
        self.put_right(rows, due, head["seq"])
        self.settled.update((key, amount) for key, (amount, _) in due.items())

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

    def cross(
        self, entry_id: str, at: int, reached: Sequence[tuple[CounterKey, Sequence[int]]]
    ) -> list[ThresholdCrossing]:
        """Note the thresholds that are behind, by where counters stood at the last fold; those that are new."""
        found = [
            ThresholdCrossing(key, threshold, self.settled[key])
            for key, thresholds in reached
            for threshold in thresholds
            if threshold <= self.settled.get(key, 0) and (key, threshold) not in self.told
        ]
        if not found:
            return []
        rows = [[*parts(one.key), str(one.threshold), at, entry_id] for one in found]
        new = self.fetch("SELECT cross_thresholds(?)", (json_text(rows),))
        self.told.update((one.key, one.threshold) for one in found)
        return [found[place] for (place,) in new]

    # -- the fold

    def fold(self) -> int:
        """See `FoldingBook`. One thread folds; those that wait for it find their records folded."""
        if self._owned():
            raise StoreBusyError("The ledger is being written to further up in this thread.")
        with self._mutex:
            return super().fold()

    def reached(self, segment: int) -> int:
        """How far a segment is folded, as far as this process knows."""
        return self._reached.get(segment, 0)

    def folding(self, *, careful: bool, refuse: str | None = None) -> _FoldToServer:
        """See `FoldingBook`."""
        return _FoldToServer(self, careful=careful, refuse=refuse)

    def write_fold(self, folding: Folding, most: int) -> int:
        """See `FoldingBook`."""

        def work(rows: ServerRows) -> int:
            try:
                return folding.run(rows, most)
            except BaseException:
                self.forget_rows()
                raise

        try:
            done = self.run(work, scope="transaction")
        except StoreBusyError:
            raise
        except Exception as error:
            cause = error.__cause__
            if isinstance(cause, psycopg.errors.UniqueViolation):
                raise RepeatedError from cause
            if isinstance(cause, psycopg.Error) and is_refusal(cause):
                raise OverflowError(reason_of(cause)) from cause
            raise
        self._waited = 0
        if isinstance(folding, _FoldToServer):
            self.settled.update(folding.reached)
            self.told.update((one.key, one.threshold) for one in folding.seen)
            self.late.extend(folding.crossed)
            if len(self.told) > _MOST_TOLD:
                self.told.clear()
            if len(self.settled) > _MOST_TOLD:
                self.settled.clear()
        return done

    def note_failure(self, error: StoreError) -> None:
        """See `FoldingBook`. To wait in vain while other hosts fold is no outage, unless it goes on."""
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            self._waited += 1
            if self._waited < _WAITS:
                return
        super().note_failure(error)

    def settled_for_good(self) -> bool:
        """See `FoldingBook`: a commit on the server is."""
        return True

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

    def foresee(self, connection: ServerRows, found: _Foreseen) -> None:
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


class _Foreseen:
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


_ACCOUNT_ROWS = (
    "SELECT one, row.id, row.kind, row.cost_source FROM unnest(CAST(? AS bytea[])) AS one, account_row(one) AS row"
)
_RATE_METERS = "SELECT one, rate_meter(one) FROM unnest(CAST(? AS bytea[])) AS one"
_NAME_ROWS = "SELECT one, name_row(one) FROM unnest(CAST(? AS bytea[])) AS one"
_TAGSET_ROWS = "SELECT one, tagset_row(one) FROM unnest(CAST(? AS text[])) AS one"


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


@contextlib.contextmanager
def _settings_as_outage() -> Generator[None]:
    """A password that was changed, or a certificate that has run out, while programs run: no entry is lost for it."""
    try:
        yield
    except ConfigurationError as error:
        if not isinstance(error.__cause__, psycopg.Error):
            raise  # the reader's own
        raise StoreUnavailableError(str(error)) from error


class _NothingStands:
    """See `tokenmeter.stores.effects.Standing`."""

    def __init__(self, places: Mapping[int, int]) -> None:
        self.places = places

    def settled(self, floor: int, also: Collection[CounterKey]) -> dict[CounterKey, int]:  # noqa: ARG002 - the protocol's
        return {}

    def holds(self) -> dict[str, Sequence[Sequence[Any]]]:
        return {}


class _FoldToServer(Folding):
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

    def __init__(self, book: PostgresBook, *, careful: bool, refuse: str | None = None) -> None:
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
        size = _size(self.book.path, number)
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
        found = _Foreseen()
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


def _size(path: Path, number: int) -> int:
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
