"""A ledger on a PostgreSQL server, for any number of hosts."""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, Entry, Posting, ThresholdCrossing, utcnow
from tokenmeter.processes import after_fork_in_child, run_at_exit
from tokenmeter.stores.base import (
    Counter,
    Fault,
    Health,
    PolicyReader,
    Settlement,
    SumsDifference,
    Verification,
    take_back,
)
from tokenmeter.stores.definitions import Definitions
from tokenmeter.stores.documents import Document, DocumentQuery, Filing, NewDocument, told_of_move
from tokenmeter.stores.live import NEVER, Slot
from tokenmeter.stores.postgres.admin import describe
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.fold import json_text
from tokenmeter.stores.postgres.journal import ServerJournal
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.schema import PostgresEnd, apply, check, state
from tokenmeter.stores.postgres.sessions import Address, ServerRows, explain
from tokenmeter.stores.postgres.spool import Spool
from tokenmeter.stores.reading import UNREADABLE, document_of, document_record
from tokenmeter.stores.record import encode_entry
from tokenmeter.stores.slots import to_microseconds
from tokenmeter.stores.store import BookStore, Record
from tokenmeter.stores.tail import frames, segment_path, segments

log = logging.getLogger("tokenmeter")
T = TypeVar("T")


class PostgresStore(BookStore[PostgresBook, ServerJournal]):
    """See `tokenmeter.stores.base.Store`.

    An entry is acknowledged when it is in the tail of this host, from which a thread sends it within milliseconds, and
    again and again while the server is away. A hold is made on the server or not at all. Where a thread must not
    wait, a method that has to ask the server raises `StoreBusyError`: an event loop never waits for the network.

    Args:
        url: ``postgresql://user@host:5432/db`` with any libpq parameter, and our own: ``schema`` (``tokenmeter``),
            ``spool`` (folder), ``spool_mb`` (256), ``pool`` (connections, 4).

    Raises:
        ConfigurationError: the URL is wrong, or the server refuses this user or database.
        SchemaVersionError: the server's schema does not fit this release.
    """

    def __init__(self, url: str) -> None:
        self.address = Address.parse(url)
        self.url = self.address.url
        self._pool = Pool(self.address)
        self._checked = False
        try:
            self._check_schema()
        except StoreUnavailableError as error:
            log.warning("The PostgreSQL store is away; entries wait in the spool until it is back. %s", error)
        self._spool = Spool(self.address.spool)
        super().__init__(PostgresBook(self._pool, self._spool.path, self._spool.host))
        self.journal = ServerJournal(self._book, self._send, most_bytes=self.address.spool_bytes)
        self._budgets: int | None = None
        self._book.reversals = self._reversals
        _STORES.add(self)
        if self._may_write and self._book.waiting() and segments(self._spool.path):
            self.journal.wake()

    @property
    def policy(self) -> PolicyReader | None:
        """See `Store.policy`."""
        return self._book.policy

    @policy.setter
    def policy(self, reader: PolicyReader | None) -> None:
        self._book.policy = reader

    def after_fork_in_child(self) -> None:
        """See `ServerJournal.after_fork_in_child`."""
        self.journal.after_fork_in_child()
        self._book.after_fork_in_child()

    def _check_schema(self) -> None:
        """Make the schema where there is none and we may; refuse one that does not fit."""
        try:
            self._pool.run(lambda connection, _: self._set_up(connection))
        except psycopg.Error as error:
            raise explain(error, self.address) from error
        self._checked = True
        if self._pool.read_only:
            log.warning(
                "The PostgreSQL server of %s only reads, as a replica does: nothing can be recorded there. Name the "
                "primary, or add target_session_attrs=read-write.",
                self.url,
            )

    hears_late = True
    tell_late: Callable[[Sequence[ThresholdCrossing]], object] | None = None
    _may_write = True

    def _set_up(self, connection: Connection[Any]) -> None:
        found = state(connection)
        if not found.applied:
            apply(connection, self.address.schema)
            found = state(connection)
        check(found)
        row = connection.execute("SELECT has_function_privilege('fold(json)', 'EXECUTE')").fetchone()
        self._may_write = bool(row and row[0]) and not self._pool.read_only

    def _ready(self) -> None:
        if not self._checked:
            try:
                self._check_schema()
            except ConfigurationError as error:  # the program runs already: nothing is lost for it
                raise StoreUnavailableError(str(error)) from error

    def _fetch(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        self._ready()
        return self._book.fetch(statement, values)

    def now(self) -> datetime:
        """The server's clock, to the second, as this host knows it from its last connection."""
        return utcnow() + timedelta(microseconds=self._pool.skew_us)

    def _send(self) -> None:
        """Fold the tail.

        Raises:
            StoreError: it cannot be sent now; it waits.
        """
        try:
            self._ready()
        except StoreError as error:
            self._book.trouble.failed(error)
            raise
        self._book.fold()

    def _fold(self) -> None:
        """Before a reader looks: what just returned is then on the server. What cannot be sent now waits."""
        if self._may_write:
            with contextlib.suppress(StoreUnavailableError, StoreBusyError):
                self.journal.send()

    def _look(self) -> None:
        self._fold()
        self._ready()

    def _reversals(self, hold_ids: Sequence[str]) -> Sequence[bytes]:
        """See `PostgresBook.reversals`. What cannot be read stays as it is."""
        records: list[bytes] = []
        shared = Definitions(self._book.find_name, records.extend)
        find = partial(self._reader.entries, newest_first=False)
        for hold_id in hold_ids:
            with contextlib.suppress(*UNREADABLE):
                estimate = self._reader.entry(hold_id)
                if estimate is not None:
                    records.append(encode_entry(take_back(find, estimate), shared))
        return records

    # -- writing

    def settle(
        self,
        entry: Entry,
        postings: Sequence[Posting] = (),
        *,
        reservation_id: str | None = None,
        only_if_held: bool = False,
    ) -> Settlement:
        """Write `entry` to the tail, with what it adds to counters and the hold that it frees; the server follows."""
        return self.journal.post(entry, postings, hold_id=reservation_id, only_if_held=only_if_held)

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Write many entries at once: all, or none when one cannot be written or the server is away."""
        return self.journal.post_all(batch) if batch else []

    def cross(
        self, entry_id: str, at: datetime, reached: Sequence[tuple[Slot, Sequence[int], int]]
    ) -> tuple[ThresholdCrossing, ...]:
        """Which thresholds were crossed for the first time, by anyone; each is told once. Sets the slots' `alert_at`.

        Args:
            entry_id: The entry that took the counters there.
            at: When, aware.
            reached: Counters, each with its thresholds (ascending) and its settled amount as far as it is known here.
        """
        crossed: list[ThresholdCrossing] = []
        if not self._book.is_jammed:  # else whoever sends hears of it: no call waits for that
            with contextlib.suppress(StoreError):  # told by the book; the next entry looks again
                self.journal.send()
                crossed = self._book.cross(
                    entry_id, to_microseconds(at), [(slot.key, amounts) for slot, amounts, _ in reached]
                )
        for slot, thresholds, _ in reached:
            settled = self._book.settled.get(slot.key, 0)
            slot.alert_at = next((threshold for threshold in thresholds if threshold > settled), NEVER)
        return (*crossed, *self.journal.take_crossings())

    def take_crossings(self) -> tuple[ThresholdCrossing, ...]:
        """Crossings that this process has found when it sent records, and that nobody has told yet."""
        return self.journal.take_crossings()

    def recount(self, count: Callable[[], Mapping[CounterKey, tuple[int, int | None]]]) -> None:
        """Have counters say what `count` finds in the ledger, to which nothing is added meanwhile."""
        self.journal.send()
        self._book.correct_counters(count)

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Set the settled amount of counters that never moved; all others stay as they are.

        Args:
            settled: Counter -> settled amount, and the end of its window.
        """
        self.journal.send()
        rows = [[key.budget, key.scope, key.window_start, end, amount] for key, (amount, end) in settled.items()]
        self._fetch("SELECT open_counters(?)", (json_text(rows),))

    def secret(self) -> bytes:
        """The ledger's own secret, kept on the server; remembered in the spool for times when that is away."""
        try:
            value = bytes(self._fetch("SELECT ledger_secret()")[0][0])
        except StoreUnavailableError:
            remembered = self._spool.remembered_secret()
            if remembered is None:
                raise
            return remembered
        self._spool.remember_secret(value)
        return value

    def flush(self, timeout: float = 10.0) -> int:
        """Send what waits in this host's spool, from this thread; how many entries are left after `timeout` seconds.

        Raises:
            StoreUnavailableError: the spool cannot be read.
        """
        deadline = time.monotonic() + timeout
        while self._may_write and self._book.waiting():
            try:
                self.journal.send()
            except StoreError:
                time.sleep(0.05)
            if time.monotonic() > deadline:  # also where others write faster than it can be sent
                break
        return self._waiting()

    def _waiting(self) -> int:
        """Entries in the tail that are not on the server; while it is away, as far as this process knows.

        The server is asked, since others send this tail, too: who may only read never hears of it by sending.
        """
        places: Mapping[int, int] = {}
        with contextlib.suppress(StoreError):
            places = self._places()
        return sum(1 for _ in self._unsent(lambda segment: max(places.get(segment, 0), self._book.reached(segment))))

    def _unsent(self, reached: Callable[[int], int]) -> Iterator[bytes]:
        """Records of the entries in the tail that are behind what is `reached` of each segment."""
        path = self._spool.path
        for number in segments(path):
            for _, record, _ in frames(segment_path(path, number), reached(number)):
                if b'"record":"entry"' in record[:40]:
                    yield record

    # -- reading

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""
        if not keys:
            return {}
        self._look()
        wanted = json_text([[key.budget, key.scope, key.window_start] for key in keys])
        found = dict(
            map(
                _counter,
                self._fetch(
                    f"SELECT {_COUNTER} FROM counters AS c JOIN "  # noqa: S608 - our own words
                    "json_array_elements(CAST(? AS json)) AS w ON budget = w->>0 AND scope = w->>1 "
                    "AND window_start = (w->>2)::bigint",
                    (wanted,),
                ),
            )
        )
        return {key: found.get(key, Counter()) for key in keys}

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order, in short read transactions."""
        self._look()
        yield from map(_counter, self._walk_counters(_COUNTER))

    # -- documents

    def file(self, draft: NewDocument) -> Filing:
        """File a document once: a record of the same chain as the entries, numbered without gaps in its series."""
        self.journal.send()
        filing = self._book.run(partial(_file, draft=draft), scope="transaction")
        if draft.kind == "budget":
            with contextlib.suppress(StoreError):  # asked again within a second
                self.journal.ask_budgets()
        return filing

    def generation(self, *, ask: bool = False) -> int:
        """Changes when a budget was filed, by anyone, and when the tail was replaced.

        Only the first question waits for the server, or one that is to `ask`; else what others file is known after a
        second.
        """
        budgets = self.journal.ask_budgets() if ask else self.journal.budgets()
        if self._budgets not in {None, budgets}:
            self._reader.forget()
        self._budgets = budgets
        return self.journal.generation

    def documents(self, which: DocumentQuery = DocumentQuery()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing, page by page."""
        self._ready()
        return super().documents(which)

    # -- care

    def verify(
        self,
        *,
        head: str | None = None,
        since: str | None = None,
        deep: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Walk the chain, compare columns with their records, re-derive the sums, and compare holds with counters."""
        outcome = super().verify(head=head, since=since, deep=deep, progress=progress)
        try:
            wrong = self._book.read(_uneven)
        except StoreUnavailableError:
            if outcome.ok:
                raise
            return outcome  # which says that a table is gone
        faults = [
            Fault("counter", f"{budget} {scope} {start}", f"{reserved} is reserved, and {held} is held.")
            for budget, scope, start, reserved, held in wrong
        ]
        return replace(outcome, faults=(*outcome.faults, *faults))

    def rebuild(
        self, *, dry_run: bool = False, deep: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Sequence[SumsDifference]:
        """Make every kept sum anew that is not what its entries come to, and what counters reserve from the holds."""
        found = super().rebuild(dry_run=dry_run, deep=deep, progress=progress)
        uneven = self._book.read(_uneven)
        if uneven and not dry_run:
            uneven = self._change(_even_out)
        changes = ((row, {"reserved": (int(row[3]), int(row[4]))}) for row in uneven)
        return [
            *found,
            *(SumsDifference("counters", f"{row[0]} {row[1]}", None, None, change) for row, change in changes),
        ]

    def health(self) -> Health:
        """Facts of server and spool, and what to mind. Answers while the server is away, too."""
        self._fold()
        found = describe(self._pool, self._spool, self._book, waiting=self._waiting, fetch=self._fetch)
        if not found.facts.get("pending_holds"):
            return found
        try:
            return Health(found.facts, (*found.warnings, *self._tell_left_holds()))
        except StoreError:  # it went away just now
            return found

    # -- erasing

    def file_with(self, work: Callable[[ServerRows], NewDocument]) -> Filing:
        """Run `work` and file the document that it makes, in one transaction; for the ledger's owner."""
        self._send()
        try:
            filing = self._book.run(lambda rows: _file(rows, draft=work(rows)), scope="transaction")
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                raise ConfigurationError("Only the ledger's owner may erase: name that role in the URL.") from error
            raise
        self._book.settled.clear()
        self.journal.ask_budgets()
        self.journal.renew_generation()
        self._reader.forget()
        return filing

    def shred(self) -> tuple[str, ...]:
        """Remove what may still lie beside the rows: old rows, segments of this host's tail. What is left, in words."""
        self.journal.turn_over()
        self._send()
        for table in ("names", "documents"):
            self._book.run(lambda rows, table=table: rows.execute(f"VACUUM {self.address.schema}.{table}"))  # type: ignore[misc]
        left = ["The server's own log archive and replicas, and the spools of other hosts until they turn over."]
        if len(segments(self._spool.path)) > 1:
            left.append("Old segments of this host's spool: programs keep them until they record again or end.")
        return (*left, *self._tell_refused())

    # -- moving

    def end(self) -> PostgresEnd:
        """The ledger as one end of a copy."""
        self._ready()
        return PostgresEnd(self._book, self._send)

    def file_after(self, head: str, draft: NewDocument) -> Filing | None:
        """File a document as the record after the one with this hash; None when another came first."""
        return self._book.run(partial(_file_after, draft=draft, head=head), scope="transaction")

    def _change(self, work: Callable[[ServerRows], T]) -> T:
        return self.end().write(work)

    def _places(self) -> Mapping[int, int]:
        return dict(self._fetch("SELECT segment, folded FROM places WHERE host = ?", (self._spool.host,)))

    def _note_places(self, reached: Mapping[int, int]) -> None:
        def note(rows: ServerRows) -> None:
            for segment, end in reached.items():
                rows.execute(
                    "INSERT INTO places VALUES (?, ?, ?) "
                    "ON CONFLICT (host, segment) DO UPDATE SET folded = excluded.folded",
                    (self._spool.host, segment, end),
                )

        self._book.run(note, scope="transaction")

    def take(self, records: Sequence[Record]) -> None:
        """Take in records of another ledger; those of entries that are there are left out."""
        for record, effects in records:
            self.journal.append(record, effects)
        self._send()

    def close(self) -> None:
        """Send what waits, then let go of connections and files. Using the store again opens them again."""
        self._fold()
        self.journal.close()
        self._pool.close()

    def finish(self) -> None:
        """At exit: send what waits, if the server is there."""
        if self._may_write and not self._pool.down and self._book.waiting():
            self._fold()
            self._pool.close()


#: A counter as readers see it: what is leased and not held is free.
_COUNTER = (
    "budget, scope, window_start, settled, reserved - (SELECT coalesce(sum(amount), 0) FROM leases AS l "
    "WHERE (l.budget, l.scope, l.window_start) = (c.budget, c.scope, c.window_start)) AS reserved"
)
#: Counters whose reserved amount is not what is held of them.
_UNEVEN = """
    SELECT budget, scope, window_start, sum(reserved), sum(claimed)
    FROM (
        SELECT budget, scope, window_start, reserved, 0::numeric AS claimed FROM counters
        UNION ALL
        SELECT budget, scope, window_start, 0, amount FROM leases
        UNION ALL
        SELECT claim->>0, claim->>1, (claim->>2)::bigint, 0, (claim->>4)::numeric
        FROM holds, jsonb_array_elements(claims::jsonb) AS claim
    ) AS both_sides
    GROUP BY 1, 2, 3 HAVING sum(reserved) <> sum(claimed)
"""


def _uneven(rows: ServerRows) -> list[Any]:
    return rows.execute(_UNEVEN).fetchall()


def _even_out(rows: ServerRows) -> list[Any]:
    """Make what counters reserve anew from holds and leases, which nobody changes meanwhile."""
    rows.execute("LOCK TABLE holds, counters, leases IN SHARE ROW EXCLUSIVE MODE")
    wrong = _uneven(rows)
    for budget, scope, start, reserved, held in wrong:
        rows.execute(
            "INSERT INTO counters AS c (budget, scope, window_start, reserved) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (budget, scope, window_start) DO UPDATE SET reserved = c.reserved + excluded.reserved",
            (budget, scope, start, held - reserved),
        )
    return wrong


def _file_after(rows: ServerRows, *, draft: NewDocument, head: str) -> Filing | None:
    place = rows.execute("SELECT document_place(?, ?, ?)", (draft.kind, draft.key, draft.series)).fetchall()[0][0]
    return _file(rows, draft=draft) if place["hash"] == head else None


def _file(rows: ServerRows, *, draft: NewDocument) -> Filing:
    place = rows.execute("SELECT document_place(?, ?, ?)", (draft.kind, draft.key, draft.series)).fetchall()[0][0]
    if place["moved"]:
        raise StoreUnavailableError(told_of_move(place["moved"]))
    if place["taken"]:
        position, body, digest = place["taken"]
        return Filing(document_of(position, body, bytes.fromhex(digest)), recorded=False)
    number = None if draft.series is None else (place["numbered"] or 0) + 1
    if number and draft.number is not None and draft.number < number:
        same = "SELECT position, body, hash FROM documents WHERE series = ? AND number = ?"
        position, body, digest = rows.execute(same, (draft.series, draft.number)).fetchall()[0]
        return Filing(document_of(position, body, bytes(digest)), recorded=False)
    record = document_record(draft, number, place["hash"]).decode()
    after = bytes(rows.execute("SELECT file_document(?)", (record,)).fetchall()[0][0])
    return Filing(document_of(place["position"] + 1, record, after), recorded=True)


def _counter(row: Sequence[Any]) -> tuple[CounterKey, Counter]:
    budget, scope, window_start, settled, reserved = row
    return CounterKey(budget, scope, window_start), Counter(settled, reserved)


_STORES: weakref.WeakSet[PostgresStore] = weakref.WeakSet()


def _each(action: Callable[[PostgresStore], None]) -> Callable[[], None]:
    def run() -> None:
        for store in list(_STORES):
            action(store)

    return run


@after_fork_in_child
def _renew_all() -> None:
    _each(PostgresStore.after_fork_in_child)()


run_at_exit(_each(PostgresStore.finish))
