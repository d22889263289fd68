"""Entries and documents read back from a ledger."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json, to_json

from tokenmeter.errors import ConfigurationError, TamperedLedgerError
from tokenmeter.ledger import Entry, new_id, utcnow
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.definitions import Account, Rate
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument
from tokenmeter.stores.encoding import FORMAT
from tokenmeter.stores.engine import (
    ArchiveFilter,
    Readable,
    Rows,
    Where,
    are_few,
    check_dimensions,
    conditions,
    filter_of,
    find_accounts,
    look_up,
    matches,
    read_head,
)
from tokenmeter.stores.naming import NO_NAMES, KeyNames
from tokenmeter.stores.record import decode_entry, kept_key
from tokenmeter.stores.slots import from_microseconds, to_microseconds

if TYPE_CHECKING:
    from tokenmeter.stores.archive.archives import ParquetArchives
    from tokenmeter.stores.archive.manifest import ArchivedMonth

K = TypeVar("K")
V = TypeVar("V")

_PAGE = 500
_FIELDS = ", ".join(Account._fields)
_MOST_KNOWN = 50_000
#: The largest number that a column holds.
_LARGEST = 2**63 - 1
#: What reading a record raises when it is not what a store writes.
UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, ConfigurationError)


#: Occurrence in microseconds since the epoch, and number of the record.
Place = tuple[int, int]


class _ArchiveMovedError(Exception):
    """Entries went over to the archive, or came back, since the question was begun."""


def archived_to_record(connection: Rows) -> int:
    """Number of the last record whose entry may be in a file instead."""
    (number,) = read_head(connection, "archived_to")
    return int(number)


class _LookedUp:
    """What entries share, as far as it was looked up. Only ever added to: who reads a page keeps to one of these."""

    def __init__(self) -> None:
        self.accounts: dict[int, Account] = {}
        self.rates: dict[str, Rate] = {}
        self.names: dict[str, str] = {}
        self.numbers: dict[bytes, int] = {}

    def is_full(self) -> bool:
        """Whether it has grown so large that it is better to begin another."""
        return max(len(self.accounts), len(self.rates), len(self.names), len(self.numbers)) >= _MOST_KNOWN

    def rate(self, digest: str) -> Rate:
        """The rate of a digest."""
        known = self.rates.get(digest)
        if known is None:
            raise LookupError(f"Rate {digest} is missing.")
        return known

    def name(self, digest: str) -> str:
        """The name of a digest."""
        known = self.names.get(digest)
        if known is None:
            raise LookupError(f"Name {digest} is missing.")
        return known


class EntryReader:
    """Reads entries; what they share is looked up once. Safe for threads.

    Args:
        database: The ledger.
        archives: Months of it that are in files.
        keys: What its API keys are called.
    """

    def __init__(self, database: Readable, archives: ParquetArchives, keys: KeyNames) -> None:
        self._database, self._archives, self._keys = database, archives, keys
        self._called = NO_NAMES
        self.forget()

    def forget(self) -> None:
        """Look everything up again: names may have been erased, the file replaced."""
        self._memory = _LookedUp()
        self._keys.forget()

    def _remember(self) -> _LookedUp:
        """What is known, for one page: whatever is forgotten meanwhile, that page finds what was looked up for it."""
        memory = self._memory
        if memory.is_full():
            memory = self._memory = _LookedUp()
        return memory

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""

        def work(connection: Rows) -> Entry | None:
            self._called = self._keys.read(connection)
            statement = "SELECT account, body FROM entries WHERE entry_id = ?"
            row = connection.execute(statement, (self._database.engine.identity(entry_id),)).fetchone()
            if row is not None:
                return self.decode(connection, [row])[0]
            archived = self._archives.entry(connection, entry_id)
            return None if archived is None else self._decode_archived(connection, [archived])[0]

        return self._database.read(work)

    def recorded_under(self, keys: Sequence[str]) -> list[Entry]:
        """Entries by their dedup keys, in the order of the chain."""
        places = ", ".join("?" * len(keys))
        statement = (
            "SELECT d.seq, e.account, e.body FROM dedup d LEFT JOIN entries e ON e.seq = d.seq "  # noqa: S608 - question marks
            f"WHERE d.key IN ({places}) ORDER BY d.seq"
        )

        def work(connection: Rows) -> list[Entry]:
            self._called = self._keys.read(connection)
            rows = connection.execute(statement, [kept_key(key) for key in keys]).fetchall()
            live = iter(self.decode(connection, [row[1:] for row in rows if row[2] is not None]))
            return [next(live) if body is not None else self._archived_at(connection, seq) for seq, _, body in rows]

        return self._database.read(work)

    def _archived_at(self, connection: Rows, seq: int) -> Entry:
        archived = self._archives.at(connection, seq)
        if archived is None:
            raise TamperedLedgerError(f"Record {seq} is missing. `tokenmeter verify` says more; compare with a backup.")
        return self._decode_archived(connection, [archived])[0]

    def entries(self, which: EntryFilter, *, newest_first: bool) -> Iterator[Entry]:
        """Entries by their occurrence, those of one moment by the chain; each page in a short transaction."""
        check_dimensions((), which.where)
        self._called = self._database.read(self._keys.read)
        which = replace(which, where=self._called.by_fingerprint(which.where))
        last: Place | None = None
        while True:  # entries that are dropped meanwhile have gone over to the archive
            archived_to = self._database.read(archived_to_record)
            sides = [
                side(which, archived_to=archived_to, after=last, newest_first=newest_first)
                for side in (self._live, self._archived)
            ]
            try:
                for place, entry in heapq.merge(*sides, key=itemgetter(0), reverse=newest_first):
                    last = place
                    if not which.where or matches(entry, which.where):
                        yield entry
            except _ArchiveMovedError:
                continue
            return

    def follow(self, after: int | None, where: Where) -> tuple[int, list[Entry]]:
        """See `tokenmeter.stores.base.Store.follow`."""
        check_dimensions((), where)

        def work(connection: Rows) -> tuple[int, list[Entry]]:
            (head,) = read_head(connection, "seq")
            if after is None or after >= head:
                return head, []
            self._called = self._keys.read(connection)
            wanted = self._called.by_fingerprint(where)
            statement = f"SELECT seq, account, body FROM entries WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT {_PAGE}"  # noqa: S608 - a number of our own
            rows = connection.execute(statement, (after, head)).fetchall()
            entries = self.decode(connection, [row[1:] for row in rows])
            found = [entry for entry in entries if not wanted or matches(entry, wanted)]
            return (rows[-1][0] if len(rows) == _PAGE else head), found

        return self._database.read(work)

    def span(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime] | None:
        """Where the first and the last entry in between lie at most: of a month in a file, as its manifest says."""
        wanted, values = conditions({}, start := _instant(since), end := _instant(until))
        which = f"FROM entries WHERE {' AND '.join(wanted) or '1 = 1'}"

        def work(connection: Rows) -> list[int | None]:
            # Two questions: each is a look at an end of the index.
            live = f"SELECT (SELECT min(occurred_at) {which}), (SELECT max(occurred_at) {which})"
            files, _ = self._archives.within(connection, start, end)
            ends = [moment for one in files for moment in (one.first_at, one.last_at)]
            return [*ends, *connection.execute(live, [*values, *values]).fetchone()]

        found = [moment for moment in self._database.read(work) if moment is not None]
        if not found:
            return None
        first, last = min(found), max(found)
        first = first if start is None else max(first, start)
        return from_microseconds(first), from_microseconds(last if end is None else min(last, end - 1))

    def _live(
        self, which: EntryFilter, *, archived_to: int, after: Place | None, newest_first: bool
    ) -> Iterator[tuple[Place, Entry]]:
        last = after
        while True:
            page = self._database.read(
                partial(self._page, which=which, archived_to=archived_to, after=last, newest_first=newest_first)
            )
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def _page(
        self, connection: Rows, *, which: EntryFilter, archived_to: int, after: Place | None, newest_first: bool
    ) -> list[tuple[Place, Entry]]:
        if archived_to_record(connection) != archived_to:
            raise _ArchiveMovedError
        if (accounts := find_accounts(connection, which.where)) == []:
            return []
        unsought = self._database.engine.unsought
        if unsought and accounts is not None and are_few(connection, accounts):
            unsought = ""
        span = (_instant(which.since), _instant(which.until))
        wanted, values = conditions(which.where, *span, accounts=accounts, unsought=unsought)
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        if after is not None:
            wanted.append(f"occurred_at {beyond}= ? AND (occurred_at {beyond} ? OR seq {beyond} ?)")
            values += [after[0], *after]
        statement = (
            f"SELECT seq, account, body FROM entries WHERE {' AND '.join(wanted) or '1 = 1'} "  # noqa: S608 - names of our own
            f"ORDER BY occurred_at {order}, seq {order} LIMIT {_PAGE}"
        )
        rows = connection.execute(statement, values).fetchall()
        entries = self.decode(connection, [row[1:] for row in rows])
        return [((to_microseconds(entry.occurred_at), row[0]), entry) for row, entry in zip(rows, entries, strict=True)]

    def _archived(
        self, which: EntryFilter, *, archived_to: int, after: Place | None, newest_first: bool
    ) -> Iterator[tuple[Place, Entry]]:
        span = (_instant(which.since), _instant(which.until))

        def begin(connection: Rows) -> tuple[list[ArchivedMonth], ArchiveFilter]:
            files, _ = self._archives.within(connection, *span)
            return files, filter_of(connection, which.where) if files else ArchiveFilter()

        files, wanted = self._database.read(begin) if archived_to else ([], ArchiveFilter())
        if not files:
            return
        found = self._archives.shelf.entries(files, span, archived_to, wanted, newest_first=newest_first, after=after)
        while page := list(itertools.islice(found, _PAGE)):
            yield from self._database.read(partial(self._decode_page, page=page))

    def _decode_page(self, connection: Rows, *, page: Sequence[tuple[Place, bytes, str]]) -> list[tuple[Place, Entry]]:
        entries = self._decode_archived(connection, [row[1:] for row in page])
        return [(place, entry) for (place, *_), entry in zip(page, entries, strict=True)]

    def _decode_archived(self, connection: Rows, rows: Sequence[tuple[bytes, str]]) -> list[Entry]:
        numbers = self._remember().numbers
        learn(numbers, {account for account, _ in rows}, partial(_read_numbers, connection))
        return self.decode(connection, [(numbers.get(account, -1), body) for account, body in rows])

    def decode(self, connection: Rows, rows: Sequence[tuple[int, str]]) -> list[Entry]:
        """The entries of rows: account and body of each. What these point at is looked up for all of them at once.

        Raises:
            TamperedLedgerError: one of them is not what a store writes.
        """
        records, memory = [_parsed(body) for _, body in rows], self._remember()
        _look_up(memory, connection, {account for account, _ in rows}, records)
        return [
            self._decode(memory, account, body, record) for (account, body), record in zip(rows, records, strict=True)
        ]

    def _decode(self, memory: _LookedUp, account: int, body: str, record: Any) -> Entry:
        try:
            record = from_json(body) if record is None else record
            return decode_entry(record, self._account(memory, account), memory.rate, memory.name)
        except UNREADABLE as error:
            name = record.get("id", "?") if isinstance(record, dict) else "?"  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            raise TamperedLedgerError(
                f"Entry {name} cannot be read ({error}): it was changed since it was written. "
                "`tokenmeter verify` names every such entry; compare with a backup."
            ) from error

    def call(self, connection: Rows, record: Any) -> Entry:
        """The entry that a hold's record would become."""
        row = connection.execute(
            "SELECT id FROM accounts WHERE digest = ?", (bytes.fromhex(record["account"]),)
        ).fetchone()
        if row is None:
            raise LookupError(f"Account {record['account']} is missing.")
        memory = self._remember()
        _look_up(memory, connection, row, [record])
        return decode_entry(record, self._account(memory, row[0]), memory.rate, memory.name)

    def _account(self, memory: _LookedUp, number: int) -> Account:
        known = memory.accounts.get(number)
        if known is None:
            raise LookupError(f"Account {number} is missing.")
        called = self._called.alias(known.api_key_fingerprint, known.api_key_alias)
        return known if called == known.api_key_alias else known._replace(api_key_alias=called)

    # -- documents

    def documents(self, which: DocumentQuery) -> Iterator[Document]:
        """Documents in the order of their filing, page by page."""
        if max(which.number or 0, which.after or 0) > _LARGEST:  # a number that somebody typed
            return
        wanted = {"kind": which.kind, "series": which.series, "number": which.number}
        clauses = [f"{name} = ?" for name, value in wanted.items() if value is not None]
        values: list[Any] = [value for value in wanted.values() if value is not None]
        if which.prefix:
            clauses.append("substr(key, 1, ?) = ?")
            values += [len(which.prefix), which.prefix]
        if which.after:
            clauses.append("position > ?")
            values.append(which.after)
        clause = " AND ".join([*clauses, "seq > ?"])
        statement = f"SELECT seq, position, body, hash FROM documents WHERE {clause} ORDER BY seq LIMIT {_PAGE}"  # noqa: S608 - names of our own
        last = 0
        while True:
            page = self._database.read(partial(_rows, statement=statement, values=[*values, last]))
            for _, position, body, digest in page:
                yield document_of(position, body, digest)
            if len(page) < _PAGE:
                return
            last = page[-1][0]


def _rows(connection: Rows, *, statement: str, values: Sequence[Any]) -> list[Any]:
    found: list[Any] = connection.execute(statement, values).fetchall()
    return found


def document_of(position: int, body: str, digest: bytes) -> Document:
    """The document of a row.

    Raises:
        TamperedLedgerError: it is not what a store writes.
    """
    try:
        values = from_json(body)
        return Document(
            position=position,
            document_id=values["id"],
            kind=values["kind"],
            key=values["key"],
            series=values.get("series"),
            number=values.get("number"),
            recorded_at=from_microseconds(values["recorded_at"]),
            anchor=values["anchor"],
            body=values["body"],
            hash=digest.hex(),
        )
    except UNREADABLE as error:
        raise TamperedLedgerError(
            f"Document {position} cannot be read ({error}): it was changed since it was filed. "
            "`tokenmeter verify` names every such document; compare with a backup."
        ) from error


def document_record(draft: NewDocument, number: int | None, anchor: str) -> bytes:
    """The record of a document that is filed now.

    Args:
        draft: What is filed.
        number: Its number in its series.
        anchor: Hash of the record before it (hex).
    """
    values: dict[str, Any] = {
        "format": FORMAT,
        "record": "document",
        "id": new_id(),
        "kind": draft.kind,
        "key": draft.key,
        "series": draft.series,
        "number": number,
        "recorded_at": to_microseconds(utcnow()),
        "anchor": anchor,
        "body": draft.body,
    }
    return to_json({name: value for name, value in values.items() if value is not None})


def _look_up(memory: _LookedUp, connection: Rows, accounts: Collection[int], records: Iterable[Any]) -> None:
    """Read what records point at, as far as it is not known: one question for each kind of it."""
    names: set[str] = set()
    rates: set[str] = set()
    for record in records:
        with suppress(*UNREADABLE):  # told where it is decoded
            names.update(record.get("tags", {}).values())
            if "end_user" in record:
                names.add(record["end_user"])
            rates.update(charge["rate"] for charge in record.get("charges", ()))
    learn(memory.accounts, accounts, partial(_read_accounts, connection))
    learn(memory.names, names, partial(_read_names, connection))
    learn(memory.rates, rates, partial(_read_rates, connection))


def learn(known: dict[K, V], wanted: Collection[K], read: Callable[[Sequence[K]], Iterable[tuple[K, V]]]) -> None:
    """Have a memory know what is wanted, as far as `read` finds it."""
    if missing := [key for key in wanted if key not in known]:
        known.update(read(missing))


def _parsed(body: str) -> Any:
    """A record; None where it is none."""
    with suppress(ValueError):
        return from_json(body)
    return None


def _read_numbers(connection: Rows, digests: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    for digest, number in look_up(connection, "SELECT digest, id FROM accounts WHERE digest IN", digests):
        yield bytes(digest), number


def _read_accounts(connection: Rows, numbers: Sequence[int]) -> Iterator[tuple[int, Account]]:
    for number, *fields in look_up(connection, f"SELECT id, {_FIELDS} FROM contexts WHERE id IN", numbers):  # noqa: S608 - names of our own
        yield number, Account(*fields)


def _read_names(connection: Rows, digests: Sequence[str]) -> Iterator[tuple[str, str]]:
    for found, value in look_up(connection, "SELECT digest, value FROM names WHERE digest IN", as_bytes(digests)):
        digest = found.hex()
        yield digest, value or f"erased-{digest[:8]}"


def _read_rates(connection: Rows, digests: Sequence[str]) -> Iterator[tuple[str, Rate]]:
    for digest, body in look_up(connection, "SELECT digest, body FROM rates WHERE digest IN", as_bytes(digests)):
        with suppress(*UNREADABLE):
            values = from_json(body)
            fields = {name: values[name] for name in Rate._fields if name in values and name != "model"}
            yield digest.hex(), Rate(**fields, model=values.get("model"))


def as_bytes(digests: Iterable[str]) -> Iterator[bytes]:
    """Digests as rows have them; what is none is left out."""
    for digest in digests:
        with suppress(ValueError, TypeError):
            yield bytes.fromhex(digest)


def _instant(moment: Any) -> int | None:
    return None if moment is None else to_microseconds(moment)
