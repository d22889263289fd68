"""The book: everything that is folded. What the engines' books have in common, and the fold."""

from __future__ import annotations

import contextlib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic_core import from_json

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import utcnow
from tokenmeter.stores.definitions import ALWAYS, Account
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import Engine
from tokenmeter.stores.fold import (
    AMOUNTS,
    FIRST,
    METER_AMOUNTS,
    AccountFacts,
    Batch,
    Measured,
    advance,
    measured,
)
from tokenmeter.stores.packed import PackedKind
from tokenmeter.stores.packing import can_be_read, find_dense, find_incomplete, in_pages, keep, pages
from tokenmeter.stores.slots import Stretch, to_microseconds
from tokenmeter.stores.tail import frames, owner_of, remove_segment, segment_path, segments
from tokenmeter.stores.trouble import Trouble
from tokenmeter.stores.urls import unusable

T = TypeVar("T")

#: Records to a transaction of the fold, and of those that are looked at together before they are taken.
_MOST = 16_384
_TOGETHER = 2048
_MOST_KNOWN = 50_000

#: What a column takes. A record of anything else is put aside: an error of the database would keep all behind it.
_STORABLE = frozenset({int, str, bytes, type(None)})
#: Kind of definition -> what is a text in it.
_TEXTS = {"account": Account._fields, "rate": ("sku_meter",), "name": ("kind", "value")}

#: Sums of microseconds and sketches; see `tokenmeter.stores.sketch`.
LATENCIES = ("duration_us", "duration", "first_token_us", "first_token", "generation_us", "generated")


ENTRY_COLUMNS = (
    *("seq", "entry_id", "occurred_at", "account", "end_user", "tags"),
    *(*AMOUNTS, "more", "response_id", "trace_id", "body", "hash"),
)
#: Table of sums -> how many of its columns are the key.
SUM_TABLES = {"sums": 3, "rare_sums": 4, "meter_sums": 4, "latency_sums": 3}
_KEY = ("level", "slot", "account", "sku_meter")
#: Table of sums -> its columns.
SUM_COLUMNS = {
    "sums": ", ".join((*_KEY[:3], "n", *AMOUNTS)),
    "rare_sums": ", ".join((*_KEY, "quantity", "nano")),
    "meter_sums": ", ".join((*_KEY, *METER_AMOUNTS)),
    "latency_sums": ", ".join((*_KEY[:3], *LATENCIES)),
}


_HAS_ENTRY = (
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM entries WHERE entry_id = ?) OR EXISTS (SELECT 1 FROM dedup WHERE key = ?)"
)


class ArchivedEntries(Protocol):
    """Entries that a ledger has in files only."""

    def has_any(self, connection: Any) -> bool:
        """Whether there are any."""
        ...

    def has(self, connection: Any, entry_id: str, strangers: set[bytes] | None = None) -> bool:
        """Whether an entry is among them.

        Args:
            connection: In a transaction.
            entry_id: Its id.
            strangers: Writers of ids that have none there, as far as it was asked: remembered for the next question.
        """
        ...


class RepeatedError(Exception):
    """An entry of the batch is in the ledger already: it has to be looked at one by one."""


class FoldingBook(ABC):
    """What the books of all engines do alike.

    Args:
        path: Beside what the tail lies.
        trouble: Tells what keeps records from being folded.

    Attributes:
        path: See there.
        identity: Whose the segments of the tail are, 16 bytes.
        trouble: See there.
        recount: Called when the fold left out what live counters had counted.
        archives: Entries that are in files only; set by who has both.
    """

    def __init__(self, path: Path, trouble: Trouble) -> None:
        self.path, self.trouble = path, trouble
        self.identity = b""
        self.recount: Callable[[], object] = lambda: None
        self.archives: ArchivedEntries | None = None
        self._most = _MOST
        self.forget()

    def forget(self) -> None:
        """Forget what belongs to a ledger that may be no longer there."""
        self.forget_rows()
        self._reached: dict[int, int] = {}
        self._torn: dict[int, int] = {}

    def forget_rows(self) -> None:
        """Forget rows that may have been rolled back."""
        self._accounts: dict[str, AccountFacts] = {}
        self._meters: dict[str, str] = {}
        self._names: dict[str, int] = {}
        self._tagsets: dict[str, int] = {}

    # -- what an engine does

    engine: Engine

    @abstractmethod
    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` in one read transaction, which may take its time."""

    @abstractmethod
    def let_go(self, last: int, ids: Sequence[tuple[bytes, int, int]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`."""

    @abstractmethod
    def take_back(self, gone: int, before: int, head: bytes, rows: Sequence[tuple[int, bytes, bytes]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`."""

    @abstractmethod
    def folding(self, *, careful: bool, refuse: str | None = None) -> Folding:
        """A transaction of the fold; see `Folding`."""

    @abstractmethod
    def write_fold(self, folding: Folding, most: int) -> int:
        """Run it; how many records it took."""

    @abstractmethod
    def settled_for_good(self) -> bool:
        """Whether all that is folded is on the disk."""

    @abstractmethod
    def find_account(self, connection: Any, digest: bytes) -> Sequence[Any]:
        """Row, kind and cost source of an account; one that nobody defined yet is kept as unknown."""

    @abstractmethod
    def find_meter(self, connection: Any, digest: bytes) -> str | None:
        """The meter of a rate; None for one that nobody defined yet."""

    @abstractmethod
    def find_row(self, connection: Any, table: str, key: bytes | str) -> int:
        """Row of a name, by its digest, or of a set of tags, by its body. One that is not there is made."""

    @abstractmethod
    def keep_definition(self, connection: Any, kind: str, record: bytes, values: Mapping[str, Any]) -> str:
        """Keep a definition; one that is there stays as it is. Its digest."""

    # -- looking something up

    def ask(self, work: Callable[[Any], T]) -> T:
        """Run `work`, which is a short look-up."""
        return self.read(work)

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of one statement."""
        return self.ask(lambda connection: connection.execute(statement, values).fetchall())

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        """See `tokenmeter.stores.effects.Book`."""
        return self.ask(lambda connection: self.has(connection, entry_id, dedup_key))

    def has(self, connection: Any, entry_id: str, dedup_key: str | None = None) -> bool:
        """Whether an entry or its bill is in the ledger or its archive."""
        if self.has_live(connection, entry_id, dedup_key):
            return True
        return self.archives is not None and self.archives.has(connection, entry_id)

    def has_live(self, connection: Any, entry_id: str, dedup_key: str | None) -> bool:
        """Whether an entry or its bill is in the ledger's tables."""
        found = connection.execute(_HAS_ENTRY, (self.engine.identity(entry_id), dedup_key))
        return found.fetchone() is not None

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        """See `tokenmeter.stores.effects.Book`."""
        rows = self.fetch("SELECT claims FROM holds WHERE hold_id = ?", (hold_id,))
        return json.loads(rows[0][0]) if rows else None

    # -- packed sums

    @abstractmethod
    def alone(self, work: Callable[[Any], T]) -> T:
        """Run `work` in a transaction that may write, with no fold beside it; not waiting long for another program."""

    def may_pack(self) -> bool:
        """Whether packed sums are of use, and this program may make them."""
        return can_be_read()

    def pack(self, stretches: Sequence[Stretch], kinds: Collection[PackedKind]) -> None:
        """Pack sums of some stretches, if that can be done now: the question has been answered from rows."""
        with contextlib.suppress(StoreError):
            for some in pages(stretches, to_microseconds(utcnow())) if self.may_pack() else ():
                self.alone(partial(keep, stretches=some, kinds=kinds))

    def pack_all(self, go_on: Callable[[], bool]) -> None:
        """See `tokenmeter.stores.store.BookStore.pack`."""
        dense = self.read(partial(find_dense, now=to_microseconds(utcnow()))) if self.may_pack() else []
        for some in in_pages(dense):
            if not go_on():
                return
            lacking = self.read(partial(find_incomplete, stretches=some))
            if lacking:
                self.alone(partial(keep, stretches=lacking, kinds=set(PackedKind)))

    # -- the fold

    def waiting(self) -> int:
        """Bytes of the tail that are not folded yet, as far as this process knows; a torn frame is none."""
        sizes = {number: self._size(number) for number in segments(self.path)}
        return sum(
            max(0, size - self._reached.get(number, 0))
            for number, size in sizes.items()
            if self._torn.get(number) != size
        )

    def _size(self, number: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            return segment_path(self.path, number).stat().st_size
        return 0

    def fold(self) -> int:
        """See `tokenmeter.stores.effects.Book`.

        Raises:
            StoreUnavailableError: the ledger cannot be written; the records wait in the tail.
        """
        moved = 0
        try:
            there = {number: self._size(number) for number in segments(self.path)}
            # What others write meanwhile is not waited for: they may write faster than it can be folded.
            while self.waiting() and any(self._reached.get(number, 0) < size for number, size in there.items()):
                before = dict(self._reached)
                done = self._fold_some()
                moved += done
                if self._reached == before:
                    self._torn = there  # what was written meanwhile is no part of it
                    break
                self.trouble.worked()
        except StoreBusyError:
            raise  # asked for in the middle of it: whoever is at it goes on
        except StoreError as error:
            self.note_failure(error)
            raise
        except OSError as error:  # the tail cannot be looked at
            failure = unusable(self.path, error)
            self.note_failure(failure)
            raise failure from error
        if len(self._reached) > 1:
            self._remove_folded()
        return moved

    def note_failure(self, error: StoreError) -> None:
        """The tail could not be folded: told."""
        self.trouble.failed(error)

    def _fold_some(self) -> int:
        """Fold what a transaction takes; ever less while a record is in it that no sum can take, until it is alone."""
        most = self._most
        with contextlib.suppress(RepeatedError, OverflowError):
            return self._fold_with(self.folding(careful=False), most)
        while True:
            try:
                done = self._fold_with(self.folding(careful=True), most)
            except OverflowError as error:
                if most == 1:
                    return self._fold_with(self.folding(careful=True, refuse=str(error)), 1)
                self._most = most = max(1, most // 8)
            else:
                self._most = min(_MOST, most * 8)
                return done

    def _fold_with(self, folding: Folding, most: int) -> int:
        try:
            done = self.write_fold(folding, most)
        except BaseException:
            self.forget()
            raise
        self._reached.update(folding.places)
        if folding.left_out:
            self.recount()
        return done

    def _remove_folded(self) -> None:
        """Remove segments of which everything is in the ledger for good."""
        reached = dict(self._reached)
        done = {
            number: reached[number]
            for number in segments(self.path)[:-1]
            if number in reached and not any(frames(segment_path(self.path, number), reached[number]))
        }
        with contextlib.suppress(StoreError, OSError):  # next time
            if done and self.settled_for_good():
                for number, end in done.items():
                    if remove_segment(self.path, number, end):
                        self._reached.pop(number, None)

    # -- rows that others point at; inside a write transaction

    def account(self, connection: Any, digest: str) -> AccountFacts:
        """An account's row."""
        known = self._accounts.get(digest)
        if known is None:
            found = self.find_account(connection, bytes.fromhex(digest))
            make_room(self._accounts)
            known = self._accounts[digest] = AccountFacts.of(*found)
        return known

    def meter(self, connection: Any, digest: str) -> str:
        """The meter of a rate."""
        known = self._meters.get(digest)
        if known is None:
            found = self.find_meter(connection, bytes.fromhex(digest))
            make_room(self._meters)
            known = self._meters[digest] = found or "unknown"
        return known

    def name(self, connection: Any, digest: str) -> int:
        """A name's row; one that nobody defined yet is kept without its text."""
        known = self._names.get(digest)
        if known is None:
            found = self.find_row(connection, "names", bytes.fromhex(digest))
            make_room(self._names)
            known = self._names[digest] = found
        return known

    def tagset(self, connection: Any, body: str) -> int:
        """The row of a set of tags."""
        known = self._tagsets.get(body)
        if known is None:
            found = self.find_row(connection, "tagsets", body)
            make_room(self._tagsets)
            known = self._tagsets[body] = found
        return known

    def columns(
        self,
        connection: Any,
        place: tuple[int, bytes, bytes],
        values: Mapping[str, Any],
        account: AccountFacts,
        found: Measured,
    ) -> tuple[Any, ...]:
        """A row of ``entries``, by `ENTRY_COLUMNS`.

        Args:
            connection: In a write transaction.
            place: Number, record and hash.
            values: The record, parsed.
            account: Whose it is.
            found: What it adds to sums.
        """
        seq, record, digest = place
        end_user: str | None = values.get("end_user")
        tags: Mapping[str, str] | None = values.get("tags")
        for name in tags.values() if tags else ():
            self.name(connection, name)
        return (
            seq,
            self.engine.identity(values["id"]),
            values["occurred_at"],
            account.number,
            None if end_user is None else self.name(connection, end_user),
            self.tagset(connection, compact_json(tags)) if tags else None,
            *found.amounts,
            compact_json(found.more) if found.more else None,
            values.get("response_id"),
            values.get("trace_id"),
            record.decode(),
            digest,
        )

    def returned(self, connection: Any, rows: Sequence[tuple[int, bytes, bytes]]) -> list[tuple[Any, ...]]:
        """Rows of ``entries`` for records that come back from an archive: number, record and hash of each."""
        found: list[tuple[Any, ...]] = []
        for place in rows:
            values: dict[str, Any] = from_json(place[1])
            account = self.account(connection, values["account"])
            adds = measured(values, account, partial(self.meter, connection))
            found.append(self.columns(connection, place, values, account, adds))
        return found

    def define(self, connection: Any, kind: str, record: bytes, values: Mapping[str, Any]) -> None:
        """Keep a definition.

        Raises:
            ValueError: no table takes it.
        """
        check_definition(kind, values)
        digest = self.keep_definition(connection, kind, record, values)
        self._meters.pop(digest, None)
        self._accounts.pop(digest, None)


def check_definition(kind: str, values: Mapping[str, Any]) -> None:
    """Whether tables take a definition.

    Raises:
        ValueError: they do not.
        TypeError: they do not: something that is no text.
    """
    if kind == "account" and not ALWAYS.issubset(values):
        raise ValueError(f"a call without {', '.join(sorted(ALWAYS.difference(values)))}")
    for name in _TEXTS[kind]:
        if not isinstance(text := values.get(name), str | None):
            raise TypeError(f"{name} is no text: {text!r}")


def make_room(known: dict[Any, Any], more: int = 1) -> None:
    """Start a memory anew that has grown large."""
    if len(known) + more > _MOST_KNOWN:
        known.clear()


class Folding(ABC):
    """One transaction of the fold.

    Args:
        book: What it folds into.
        careful: Whether every entry is looked up before it is added: one of them may be there already.
        refuse: Why the record that comes first is put aside.

    Attributes:
        book: See there.
        places: Segment -> how far it is folded when this is committed.
        left_out: Whether an entry that was there already would have moved counters.
        moved: What is to be told of a ledger that went elsewhere.
    """

    def __init__(self, book: FoldingBook, *, careful: bool, refuse: str | None = None) -> None:
        self.places: dict[int, int] = {}
        self.left_out = False
        self.moved: str | None = None
        self.book, self._careful, self._refuse = book, careful, refuse
        self._batch = Batch()
        self._rows: list[tuple[Any, ...]] = []
        self._ids: set[str] = set()
        self._dedup: dict[str, int] = {}
        self._seq, self._hash = 0, FIRST
        self._archived: bool | None = None
        self._strangers: set[bytes] = set()
        self._meter_of: Callable[[str], str]

    # -- what an engine does

    @abstractmethod
    def begin(self, connection: Any) -> tuple[int, bytes, dict[int, int]]:
        """Number and hash of the last record, and the places that are reached."""

    @abstractmethod
    def put_aside(self, connection: Any, place: tuple[int, int], reason: str, record: bytes, effects: bytes) -> None:
        """Keep a record that cannot be read."""

    @abstractmethod
    def end(self, connection: Any, known: Mapping[int, int]) -> None:
        """Write what was gathered; `known` are the places before."""

    def foresee(self, connection: Any, frames: Sequence[tuple[bytes, bytes]]) -> None:  # noqa: B027 - an engine may
        """Look up together what records that come next (and their effects) name, where each question takes long."""

    def has(self, connection: Any, entry_id: str, key: str | None) -> bool:
        """Whether an entry or its bill is in the ledger's tables."""
        return self.book.has_live(connection, entry_id, key)

    def wanted(self, connection: Any, effects: Mapping[str, Any]) -> bool:  # noqa: ARG002 - an engine may say more
        """Whether a record that comes with these effects is still to be taken."""
        return True

    # -- records

    def run(self, connection: Any, most: int) -> int:
        """Fold up to `most` records; how many. It may be run again when the transaction failed."""
        self.start(connection)
        known = dict(self.places)
        done = 0
        frames = itertools.islice(self._frames(), most)
        while some := list(itertools.islice(frames, _TOGETHER)):
            self.refuse_moved()
            if self._refuse is None:
                self.foresee(connection, [(record, effects) for _, _, record, effects in some])
            for number, end, record, effects in some:
                self._take(connection, number, end, record, effects)
                self.places[number] = end
            done += len(some)
        if done or (known != self.places and self.moved is None):
            self.end(connection, known)
        return done

    def refuse_moved(self) -> None:
        """Take nothing into a ledger that went elsewhere; it is told only where something would be taken.

        Raises:
            StoreUnavailableError: it says where.
        """
        if self.moved is not None:
            raise StoreUnavailableError(self.moved)

    def start(self, connection: Any) -> None:
        """See where the chain stands."""
        self.left_out = False
        self._batch, self._rows, self._ids, self._dedup = Batch(), [], set(), {}
        self._archived, self._strangers = None, set()
        self._meter_of = partial(self.book.meter, connection)
        self._seq, self._hash, self.places = self.begin(connection)

    def _frames(self) -> Iterator[tuple[int, int, bytes, bytes]]:
        path, numbers = self.book.path, segments(self.book.path)
        for gone in self.places.keys() - {*numbers, max(self.places, default=0)}:
            del self.places[gone]
        for number in numbers:
            segment = segment_path(path, number)
            if owner_of(segment) not in {self.book.identity, None}:
                self.places[number] = segment.stat().st_size  # another ledger's: see `health`
                continue
            for end, record, effects in frames(segment, self.places.get(number, 0)):
                yield number, end, record, effects

    def _take(self, connection: Any, number: int, end: int, record: bytes, effects: bytes) -> None:
        try:
            if self._refuse is not None:
                raise ValueError(self._refuse)  # noqa: TRY301 - refused as any other
            self.take(connection, record, effects)
        except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            self.put_aside(connection, (number, end), str(error), record, effects)

    def take(self, connection: Any, record: bytes, effects: bytes) -> None:
        """Take in one record."""
        values: dict[str, Any] = from_json(record) if record else {}
        done: Mapping[str, Any] = from_json(effects) if effects else {}
        kind = values.get("record")
        added = kind != "entry" or (self.wanted(connection, done) and self._add(connection, record, values))
        if kind in {"account", "rate", "name"}:
            self.book.define(connection, kind, record, values)
        if done:
            self.affect(done, record, values, counted=added)
            self.left_out |= not added and "post" in done

    def affect(self, effects: Mapping[str, Any], record: bytes, values: Mapping[str, Any], *, counted: bool) -> None:  # noqa: ARG002 - an engine may look at the record
        """Gather what a frame does to counters and holds."""
        self._batch.affect(effects, record, counted=counted)

    def _add(self, connection: Any, record: bytes, values: Mapping[str, Any]) -> bool:
        book = self.book
        entry_id: Any = values["id"]
        key: Any = values.get("dedup_key")
        account = book.account(connection, values["account"])
        found = measured(values, account, self._meter_of)
        if not isinstance(entry_id, str) or not isinstance(key, str | None):
            raise TypeError(f"an identity that is no text: {entry_id!r}, {key!r}")
        if self._is_there(connection, entry_id, key):
            return False
        seq, digest = self._seq + 1, advance(self._hash, record)
        row = book.columns(connection, (seq, record, digest), values, account, found)
        for value in row:
            if type(value) not in _STORABLE:
                raise TypeError(f"no column takes {value!r}")
        # From here on nothing fails: a record is taken as a whole or put aside as a whole.
        self._batch.count(values["occurred_at"], account.number, found)
        self._seq, self._hash = seq, digest
        self._ids.add(entry_id)
        if key is not None:
            self._dedup[key] = seq
        self._rows.append(row)
        return True

    def _is_there(self, connection: Any, entry_id: str, key: str | None) -> bool:
        if entry_id in self._ids or (key is not None and key in self._dedup):
            return True
        # Else the tables refuse what is there already; see `RepeatedError`.
        if self._careful and self.has(connection, entry_id, key):
            return True
        archives = self.book.archives
        if self._archived is None:
            self._archived = archives is not None and archives.has_any(connection)
        return self._archived and archives is not None and archives.has(connection, entry_id, self._strangers)
