"""The book on a server: what is asked of it and written to it, and what is known of its rows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.stores.base import LockedError
from tokenmeter.stores.book import (
    ENTRY_COLUMNS,
    Folding,
    RepeatedError,
)
from tokenmeter.stores.documents import told_of_move
from tokenmeter.stores.effects import Standing
from tokenmeter.stores.postgres.engine import ENGINE
from tokenmeter.stores.postgres.fold import FoldToServer, ServerBook, json_text, parts, size_of_segment
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.sessions import ServerRows, explain, is_refusal, reason_of
from tokenmeter.stores.tail import segments

T = TypeVar("T")

_MOST_TOLD = 50_000
#: Entries that are dropped in one transaction.
_AT_ONCE = 20_000
#: No fold, and nobody else who drops or brings back, until the transaction ends.
_ALONE = "SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)"
#: So many times on end a fold may wait as long as a statement may take before that is told.
_WAITS = 3
_FIND_NAMES = (
    "SELECT find_name(kind, value) FROM unnest(CAST(? AS text[]), CAST(? AS text[])) "
    "WITH ORDINALITY AS one(kind, value, place) ORDER BY place"
)


class PostgresBook(ServerBook):
    """The ledger on a server as `tokenmeter.stores.effects.Book`. Safe for threads and processes.

    The live counters of its journal are not used: the server counts.

    Args:
        pool: Connections to the server.
        path: Beside what this host's tail lies.
        identity: This host's, 16 bytes: by it the server knows how far the tail is folded.

    Attributes:
        settled: Where counters stand, as this process last heard, its own postings added.
        late: Crossings that are to be reported; whoever takes one off tells it.
    """

    engine = ENGINE

    def __init__(self, pool: Pool, path: Path, identity: bytes) -> None:
        super().__init__(pool, path, identity)
        self.settled: dict[CounterKey, int] = {}
        self.late: deque[ThresholdCrossing] = deque()
        self._waited = 0
        self._jam = (0.0, "")
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
        ends = {number: max(size_of_segment(self.path, number), self.reached(number)) for number in segments(self.path)}
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
        asked_at = time.monotonic()
        with self._mutex:
            ended_at, reason = self._jam
            if ended_at > asked_at:  # this thread has waited for the same with the one that folded
                raise LockedError(reason)
            try:
                return super().fold()
            except LockedError as error:
                self._jam = time.monotonic(), str(error)
                raise

    @property
    def is_jammed(self) -> bool:
        """Whether the last fold waited in vain for what another session has locked."""
        return self._waited > 0

    def folding(self, *, careful: bool, refuse: str | None = None) -> FoldToServer:
        """See `FoldingBook`."""
        return FoldToServer(self, careful=careful, refuse=refuse)

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
        if isinstance(folding, FoldToServer):
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
        if isinstance(error, LockedError):
            self._waited += 1
            if self._waited < _WAITS:
                return
        super().note_failure(error)

    def settled_for_good(self) -> bool:
        """See `FoldingBook`: a commit on the server is."""
        return True


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
