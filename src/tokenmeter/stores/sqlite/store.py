"""A ledger in one SQLite file: for one machine, any number of threads and processes."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenmeter.display import counted
from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError, TamperedLedgerError
from tokenmeter.late import LateModule
from tokenmeter.ledger import CounterKey, Entry, Posting, Reservation, ThresholdCrossing, is_own, utcnow
from tokenmeter.paths import find_abandoned
from tokenmeter.processes import CAN_SHARE, Background, is_on_event_loop, make_lock, run_alone, run_at_once
from tokenmeter.stores.base import (
    Counter,
    EntryFilter,
    Health,
    PolicyReader,
    Settlement,
)
from tokenmeter.stores.direct import DirectJournal, Transaction
from tokenmeter.stores.documents import Filing, NewDocument
from tokenmeter.stores.effects import OutdatedError, Posted
from tokenmeter.stores.fold import advance
from tokenmeter.stores.journal import Journal
from tokenmeter.stores.live import NEVER, Slot
from tokenmeter.stores.reading import document_of, document_record
from tokenmeter.stores.record import encode_entry, kept_key
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.stores.sqlite.book import SQLiteBook, refuse_moved
from tokenmeter.stores.sqlite.database import PATIENCE, sqlite3
from tokenmeter.stores.sqlite.schema import SCHEMA_VERSION
from tokenmeter.stores.store import BookStore, Record
from tokenmeter.stores.tail import owner_of, segment_path, segments
from tokenmeter.stores.urls import restoring_path

if TYPE_CHECKING:
    from sqlite3 import Connection

    from tokenmeter.stores.grouping import Grouping
    from tokenmeter.stores.sqlite import end as copied_end
else:  # no call needs it
    copied_end = LateModule("tokenmeter.stores.sqlite.end")

#: What becomes of an entry that no budget is about.
_RECORDED, _REPEATED = Settlement(recorded=True), Settlement(recorded=False)
_MOST_TOLD = 50_000
#: Seconds until what could not be written down of crossed thresholds is tried again.
_NOTE_AGAIN = 0.5  # not money
#: Counter and threshold -> the crossing, the entry that took the counter there, and when.
_Untold = dict[tuple[CounterKey, int], tuple[ThresholdCrossing, str, datetime]]
#: Times that records are made anew because the ledger changed under them.
_ATTEMPTS = 3


T = TypeVar("T")


class SQLiteStore(BookStore[SQLiteBook, Journal | DirectJournal]):
    """See `tokenmeter.stores.base.Store`. Nothing here waits longer than `patience`, so ``wait`` makes no difference.

    Args:
        path: The file; made if it is missing, in a directory that only its owner can read.
        patience: Seconds to wait for another program that has the file locked.

    Raises:
        StoreUnavailableError: the file cannot be used.
        SchemaVersionError: a newer release wrote it.
    """

    policy: PolicyReader | None = None
    tell_late: Callable[[Sequence[ThresholdCrossing]], object] | None = None

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        super().__init__(SQLiteBook(path, patience=patience))
        # Nobody is made to wait by a collection of garbage; at the end of the process the database closes itself.
        # Before what may be refused below: nobody could close a store that was never made.
        weakref.finalize(self, self._book.database.close, patience=0.0).atexit = False
        self.path = self._book.path
        self.url = f"sqlite:///{self.path}"
        if self._book.database.wal and CAN_SHARE:
            self.journal = Journal(self.path, self._book)
            self._book.recount = self.journal.disturb
        else:  # machines may share the file, or this one has no such locks: nothing beside it can be trusted
            self.journal = DirectJournal(self._book)
            with contextlib.suppress(StoreError):  # whoever writes next tells of it
                self._book.fold()  # what was written where memory was shared, and a cap would not see
        self.hears_late = isinstance(self.journal, DirectJournal)
        self._generation = self.journal.generation
        self._told: set[tuple[CounterKey, int]] = set()
        self._told_as_of = self._generation
        #: What was crossed while it could not be written down, and whether a thread is at it.
        self._untold: _Untold = {}
        self._is_noting, self._noting = False, make_lock()
        self._background = Background()

    def now(self) -> datetime:
        """This machine's clock."""
        return utcnow()

    # -- writing

    def settle(
        self,
        entry: Entry,
        postings: Sequence[Posting] = (),
        *,
        reservation_id: str | None = None,
        only_if_held: bool = False,
    ) -> Settlement:
        """Write `entry`, move the counters and free the hold; the sums follow with the next fold."""
        posted = self._write_as_of_now(
            lambda generation: self.journal.post(
                encode_entry(entry, self.journal.definitions),
                [(self.journal.slot(posting.key, posting.window_end), posting.amount) for posting in postings],
                entry_id=entry.entry_id,
                dedup_key=kept_key(entry.dedup_key),
                hold_id=reservation_id,
                only_if_held=only_if_held,
                generation=generation,
            )
        )
        return Settlement(posted.recorded, self._crossed(entry, postings, posted), posted.hold_found)

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Write many entries at once: all, or none when one cannot be written."""
        if not batch:
            return []
        slot, definitions = self.journal.slot, self.journal.definitions
        done = self._write_as_of_now(
            lambda generation: self.journal.post_all(
                [
                    (
                        encode_entry(entry, definitions),
                        entry.entry_id,
                        kept_key(entry.dedup_key),
                        [(slot(one.key, one.window_end), one.amount) for one in postings] if postings else (),
                    )
                    for entry, postings in batch
                ],
                generation=generation,
            )
        )
        return [
            Settlement(posted.recorded, self._crossed(entry, postings, posted))
            if postings
            else _RECORDED
            if posted.recorded
            else _REPEATED
            for (entry, postings), posted in zip(batch, done, strict=True)
        ]

    def _write_as_of_now(self, write: Callable[[int | None], T]) -> T:
        """Run `write`, given the generation that its definitions are of: again where that changes before it writes."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(OutdatedError):
                return write(self.journal.generation)
        return write(None)

    def _crossed(self, entry: Entry, postings: Sequence[Posting], posted: Posted) -> tuple[ThresholdCrossing, ...]:
        reached = [
            (slot, posting.thresholds, settled)
            for posting, (slot, settled) in zip(postings, posted.reached, strict=False)
            if posting.thresholds
        ]
        return self.cross(entry.entry_id, entry.recorded_at, reached) if reached else ()

    def cross(
        self, entry_id: str, at: datetime, reached: Sequence[tuple[Slot, Sequence[int], int]]
    ) -> tuple[ThresholdCrossing, ...]:
        """Which thresholds were crossed for the first time, by anyone; each is told once. Sets the slots' `alert_at`.

        Args:
            entry_id: The entry that took the counters there.
            at: When, aware.
            reached: Counters, each with its thresholds (ascending) and its settled amount.
        """
        with contextlib.suppress(StoreBusyError):  # it is written down: nothing is left to be tried again
            if self._told_as_of != (now := self.journal.generation):  # a ledger in its place was told less
                self._told_as_of = now
                self._told.clear()
        told, untold = self._told, self._untold
        wanted = {
            (slot.key, threshold): (ThresholdCrossing(slot.key, threshold, settled), entry_id, at)
            for slot, thresholds, settled in reached
            for threshold in thresholds
            if threshold <= settled and (slot.key, threshold) not in told and (slot.key, threshold) not in untold
        }
        crossed: tuple[ThresholdCrossing, ...] = ()
        if wanted or untold:
            try:
                if wanted:
                    crossed = run_at_once(self._note, wanted) if is_on_event_loop() else self._note(wanted, patience=0)
            except StoreError:  # no call waits for it
                untold.update(wanted)
            run_alone(self._noting, self._begin_noting)
        for slot, thresholds, settled in reached:
            left = (one for one in thresholds if one > settled or (slot.key, one) in untold)
            slot.alert_at = next(left, NEVER)
        return crossed

    def _note(self, wanted: _Untold, *, patience: float | None = None) -> tuple[ThresholdCrossing, ...]:  # not money
        """Write down who crossed what; what nobody else has."""

        def work(connection: Connection) -> tuple[ThresholdCrossing, ...]:
            return tuple(one for one, entry_id, at in wanted.values() if _first(connection, one, entry_id, at))

        crossed = self._book.database.write(work, patience=patience)
        if len(self._told) > _MOST_TOLD:
            self._told.clear()
        self._told.update(wanted)
        return crossed

    def _begin_noting(self) -> None:
        if self._untold and not (self._is_noting and self._background.is_busy):
            self._is_noting = True
            self._background.run("cross", self._note_untold)

    def _note_untold(self) -> None:
        """Write down, once that can be done, what was crossed while it could not, and tell of it."""
        while wanted := run_alone(self._noting, self._next_untold):
            try:
                crossed = self._note(wanted)
            except StoreError:
                time.sleep(_NOTE_AGAIN)
                continue
            for place in wanted:
                self._untold.pop(place, None)
            if crossed and self.tell_late is not None:
                self.tell_late(crossed)

    def _next_untold(self) -> _Untold:
        self._is_noting = bool(self._untold)
        return dict(self._untold)

    def reserve(self, reservation: Reservation) -> None:
        """Hold every claim or none; holding the same reservation again changes nothing."""
        hold_id = reservation.reservation_id
        if self.journal.knows_hold(hold_id):
            return
        if not is_own(hold_id):
            self._fold()
            if self._book.hold(hold_id) is not None:
                return
        self.generation()  # what its call shares with others is defined again where the ledger was replaced
        super().reserve(reservation)

    def recount(self, count: Callable[[], Mapping[CounterKey, tuple[int, int | None]]]) -> None:
        """Have counters say what `count` finds in the ledger, to which nothing is added meanwhile."""

        def change(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO counters VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (budget, scope, window_start) DO UPDATE SET settled = excluded.settled",
                [(key.budget, key.scope, key.window_start, end, str(amount)) for key, (amount, end) in count().items()],
            )

        self.journal.recount(lambda: self._book.database.write(change))

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Set the settled amount of counters that never moved; all others stay as they are.

        Args:
            settled: Counter -> settled amount, and the end of its window.
        """
        self.journal.open_counters(settled, partial(_open, self._book))

    def generation(self, *, ask: bool = False) -> int:
        """Changes when a budget was filed, by anyone, and when the ledger was replaced. Cheap."""
        if ask and isinstance(self.journal, DirectJournal):
            self.journal.renew_generation()
        return self.journal.generation

    def secret(self) -> bytes:
        """The ledger's own secret: made with the ledger."""
        value: bytes = self._book.fetch("SELECT value FROM secret")[0][0]
        return value

    # -- reading

    def _fold(self) -> None:
        """Before a reader looks: what just returned is then in the book. What cannot be folded now waits."""
        with contextlib.suppress(StoreUnavailableError, StoreBusyError):
            if isinstance(self.journal, Journal):
                self.journal.check_tail()
            self._book.fold()
            if isinstance(self.journal, Journal):
                self.journal.resolve_doubts()
        if self._generation != (now := self.journal.generation):
            self._generation = now
            self._reader.forget()

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""
        live = self.journal.counters(keys)
        if all(counter is not None for counter in live.values()):
            return {key: counter for key, counter in live.items() if counter is not None}
        self._fold()

        def work(connection: Connection) -> dict[CounterKey, Counter]:
            return {key: counter or Counter(_settled(connection, key), 0) for key, counter in live.items()}

        return self._book.database.read(work)

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order, in short read transactions."""
        reserved: dict[CounterKey, int] = {}
        for (claims,) in self._ask("SELECT claims FROM holds"):
            for budget, scope, start, _, amount, _ in json.loads(claims):
                key = CounterKey(budget, scope, start)
                reserved[key] = reserved.get(key, 0) + amount
        rows = self._walk_counters("budget, scope, window_start, settled")
        settled_of = ((CounterKey(*row[:3]), _amount(row[3])) for row in rows)
        known = heapq.merge(settled_of, ((key, None) for key in sorted(reserved)), key=lambda one: one[0])
        for key, found in itertools.groupby(known, key=lambda one: one[0]):
            settled = next((amount for _, amount in found if amount is not None), 0)
            yield key, Counter(settled, reserved.get(key, 0))

    def _add_up(
        self,
        how: Callable[..., Grouping[T]],
        boundaries: Sequence[datetime],
        by: Sequence[str],
        which: EntryFilter | None,
    ) -> list[T]:
        try:
            return super()._add_up(how, boundaries, by, which)
        except StoreUnavailableError as error:
            if "integer overflow" not in str(error.__cause__):
                raise
        return super()._add_up(partial(_beyond_64_bits, how), boundaries, by, which)

    # -- documents

    def file(self, draft: NewDocument) -> Filing:
        """File a document once: a record of the same chain as the entries, numbered without gaps in its series."""
        self._book.fold()
        filing = self._book.database.write(partial(_file, draft=draft))
        if filing.recorded and draft.kind == "budget":
            self.journal.renew_generation()
        return filing

    def file_after(self, head: str, draft: NewDocument) -> Filing | None:
        """File a document as the record after the one with this hash; None when another came first."""
        filing = self._book.database.write(partial(_file_after, draft=draft, head=head))
        self.journal.disturb()
        return filing

    # -- care

    def health(self) -> Health:
        """Facts of the file and of SQLite, and what to mind."""
        entries, head, holds, refused = self._head(
            "entries, hash, (SELECT count(*) FROM holds), (SELECT count(*) FROM refused)"
        )
        status = self.path.stat()
        log = Path(f"{self.path}-wal")
        trouble = self._book.trouble
        facts: dict[str, Any] = {
            "store": "sqlite",
            "path": str(self.path),
            "sqlite_version": sqlite3.sqlite_version,
            "schema_version": SCHEMA_VERSION,
            "journal_mode": self._book.fetch("PRAGMA journal_mode")[0][0],
            "entries": entries,
            "head": head.hex(),
            "pending_holds": holds,
            "bytes": status.st_size,
            "permissions": stat.filemode(status.st_mode),
            "wal_bytes": log.stat().st_size if log.exists() else 0,
            "tail_bytes": self._book.waiting(),
            "write_failures": trouble.count,
            "refused_records": refused,
        }
        return Health(facts, (*self._warnings(status.st_mode, refused), *self._tell_left_holds()))

    def _warnings(self, mode: int, refused: int) -> Iterator[str]:
        if stat.S_IMODE(mode) & 0o077:
            yield "Others may read the ledger: set its permissions to 0600."
        if self._book.trouble:
            yield f"Entries wait in the tail because the ledger cannot be written: {self._book.trouble.reason}"
        if refused:
            told = counted(
                refused, "record of the tail cannot be read; it is", "records of the tail cannot be read; they are"
            )
            yield f"{told} kept in the table 'refused'."
        for number in segments(self.path):
            path = segment_path(self.path, number)
            if owner_of(path) not in {self._book.identity, None}:
                yield f"{path} belongs to another ledger: put that ledger back beside it, or move the file away."
        for path in find_abandoned(restoring_path(self.path)):
            yield f"{path} is left of a restore that was broken off: the next one removes it, or remove it yourself."
        if not self._book.database.wal:
            yield (
                "The file is on a network file system, or on one where processes cannot share memory: it works, more "
                "slowly; for many machines use PostgreSQL."
            )
        elif (3, 7, 0) <= sqlite3.sqlite_version_info < (3, 51, 3):
            yield (
                f"SQLite {sqlite3.sqlite_version} has the WAL-reset race (fixed in 3.51.3). tokenmeter guards its own "
                "writes with a lock file; do not write to the ledger with other programs."
            )

    # -- erasing

    def file_with(self, work: Callable[[Connection], NewDocument]) -> Filing:
        """Run `work` and file the document that it makes, in one transaction; what goes is overwritten in the file."""

        def change(connection: Connection) -> Filing:
            connection.execute("PRAGMA secure_delete = ON")
            return _file(connection, draft=work(connection))

        filing = self.journal.recount(lambda: self._book.database.write(change))
        self.journal.renew_generation()
        self._reader.forget()
        return filing

    def shred(self) -> tuple[str, ...]:
        """Remove what may still lie beside the file: old segments of the tail, the log. What is left, in words."""
        if isinstance(self.journal, Journal):
            self.journal.turn_over()
        self._book.fold()
        left: list[str] = []
        if len(segments(self.path)) > 1:
            left.append(
                "Old segments of the tail: programs that have the ledger open keep them until they record again or end."
            )
        if not self._book.database.empty_log():
            left.append("The log beside the file: a program is reading the ledger; erase the log by closing it.")
        return (*left, *self._tell_refused())

    # -- moving

    def end(self) -> copied_end.SQLiteEnd:
        """The file as one end of a copy."""
        return copied_end.SQLiteEnd(self._book.database, self._book.fold)

    def _change(self, work: Callable[[Connection], T]) -> T:
        return self._book.database.write(work)

    def _places(self) -> Mapping[int, int]:
        return dict(self._book.fetch("SELECT segment, folded FROM places"))

    def _note_places(self, reached: Mapping[int, int]) -> None:
        rows = list(reached.items())
        self._change(lambda connection: connection.executemany("INSERT OR REPLACE INTO places VALUES (?, ?)", rows))

    def take(self, records: Sequence[Record]) -> None:
        """Take in records of another ledger; those of entries that are there are left out."""
        if isinstance(self.journal, Journal):
            for record, effects in records:
                self.journal.append(record, effects)
            self.journal.disturb()
            self._book.fold()
            return

        def put(transaction: Transaction) -> None:
            for record, effects in records:
                transaction.put(record, effects)

        self._book.transact(put)

    def close(self) -> None:
        """Fold what is in the tail and let go of all files. Using the store again opens them again."""
        self._fold()
        self._background.finish(self._book.database.patience)
        self._untold.clear()  # the next entry of any process looks again
        self.journal.close()
        self._book.database.close()


def _beyond_64_bits(how: Callable[..., Grouping[T]], connection: Connection, *asked: Any, **also: Any) -> Grouping[T]:
    """`how`, over sums that are more than SQLite's own: of years of a ledger whose every month is near the most."""
    return how(_WholeSums(connection), *asked, **also)


class _WholeSums:
    """A connection whose every ``sum`` is an integer of any size."""

    def __init__(self, connection: Connection) -> None:
        connection.create_aggregate("whole_sum", 1, _WholeSum)
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> _WholeRows:
        return _WholeRows(self._connection.execute(statement.replace("sum(", "whole_sum("), values))


class _WholeSum:
    """SQLite takes no such integer: it goes as marked text."""

    def __init__(self) -> None:
        self._sum: int | None = None

    def step(self, value: int | None, /) -> None:
        if value is not None:
            self._sum = value + (self._sum or 0)

    def finalize(self) -> Any:
        return None if self._sum is None else f"\0{self._sum}"


class _WholeRows:
    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows:
            yield tuple(int(one[1:]) if isinstance(one, str) and one.startswith("\0") else one for one in row)

    def fetchall(self) -> list[Any]:
        return list(self)

    def fetchone(self) -> Any:
        return next(iter(self), None)


def _settled(connection: Connection, key: CounterKey) -> int:
    row = connection.execute(
        "SELECT settled FROM counters WHERE budget = ? AND scope = ? AND window_start = ?",
        (key.budget, key.scope, key.window_start),
    ).fetchone()
    return _amount(row[0]) if row else 0


def _first(connection: Connection, one: ThresholdCrossing, entry_id: str, at: datetime) -> bool:
    """Whether nobody has reported this crossing."""
    key = one.key
    values = (key.budget, key.scope, key.window_start, str(one.threshold), to_microseconds(at), entry_id)
    cursor = connection.execute("INSERT INTO crossings VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
    return bool(cursor.rowcount)


def _open(book: SQLiteBook, opening: Mapping[CounterKey, tuple[int, int | None]]) -> list[CounterKey]:
    def work(connection: Connection) -> list[CounterKey]:
        return [
            key
            for key, (settled, end) in opening.items()
            if connection.execute(
                "INSERT INTO counters VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (key.budget, key.scope, key.window_start, end, str(settled)),
            ).rowcount
        ]

    return book.database.write(work)


def _file_after(connection: Connection, *, draft: NewDocument, head: str) -> Filing | None:
    (digest,) = connection.execute("SELECT hash FROM ledger").fetchone()
    return _file(connection, draft=draft) if digest.hex() == head else None


def _file(connection: Connection, *, draft: NewDocument) -> Filing:
    run = connection.execute
    refuse_moved(connection)
    taken = run(
        "SELECT position, body, hash FROM documents WHERE kind = ? AND key = ? OR series = ? AND number = ?",
        (draft.kind, draft.key, draft.series, draft.number),
    ).fetchone()
    if taken:
        return Filing(document_of(*taken), recorded=False)
    seq, before, position = run("SELECT seq, hash, documents FROM ledger").fetchone()
    number: int | None = None
    if draft.series is not None:
        (last,) = run("SELECT max(number) FROM documents WHERE series = ?", (draft.series,)).fetchone()
        number = (last or 0) + 1
    record = document_record(draft, number, before.hex())
    digest = advance(before, record)
    row = (seq + 1, position + 1, draft.kind, draft.key, draft.series, number, record.decode(), digest)
    run("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", row)
    run("UPDATE ledger SET seq = ?, hash = ?, documents = ?", (seq + 1, digest, position + 1))
    return Filing(document_of(position + 1, record.decode(), digest), recorded=True)


def _amount(text: str) -> int:
    """A counter's amount.

    Raises:
        TamperedLedgerError: somebody wrote something else in its place.
    """
    try:
        return int(text)
    except (TypeError, ValueError) as error:
        raise TamperedLedgerError(
            f"A budget's counter says {text!r}, which is no amount: somebody wrote to the ledger other than with "
            "tokenmeter. Restore a backup (`tokenmeter db restore`)."
        ) from error
