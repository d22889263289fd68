"""Entries and documents read back from a ledger."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
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
    check_dimensions,
    conditions,
    filter_of,
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


class EntryReader:
    """Reads entries; what they share is looked up once.

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
        self._accounts: dict[int, Account] = {}
        self._rates: dict[str, Rate] = {}
        self._names: dict[str, str] = {}
        self._numbers: dict[bytes, int] = {}
        self._keys.forget()

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""

        def work(connection: Rows) -> Entry | None:
            self._called = self._keys.read(connection)
            statement = "SELECT account, body FROM entries WHERE entry_id = ?"
            row = connection.execute(statement, (self._database.engine.identity(entry_id),)).fetchone()
            if row is not None:
                return self.decode(connection, *row)
            archived = self._archives.entry(connection, entry_id)
            return None if archived is None else self._decode_archived(connection, *archived)

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
            return [
                self.decode(connection, account, body) if body is not None else self._archived_at(connection, seq)
                for seq, account, body in connection.execute(statement, [kept_key(key) for key in keys]).fetchall()
            ]

        return self._database.read(work)

    def _archived_at(self, connection: Rows, seq: int) -> Entry:
        archived = self._archives.at(connection, seq)
        if archived is None:
            raise TamperedLedgerError(f"Record {seq} is missing. `tokenmeter verify` says more; compare with a backup.")
        return self._decode_archived(connection, *archived)

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
        wanted, values = conditions(which.where, _instant(which.since), _instant(which.until))
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        last = after
        while True:
            place = [] if last is None else [f"occurred_at {beyond}= ? AND (occurred_at {beyond} ? OR seq {beyond} ?)"]
            given = [] if last is None else [last[0], *last]
            statement = (
                f"SELECT seq, account, body FROM entries WHERE {' AND '.join([*wanted, *place]) or '1 = 1'} "  # noqa: S608 - names of our own
                f"ORDER BY occurred_at {order}, seq {order} LIMIT {_PAGE}"
            )
            page = self._database.read(
                partial(self._page, statement=statement, values=[*values, *given], archived_to=archived_to)
            )
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def _page(
        self, connection: Rows, *, statement: str, values: Sequence[Any], archived_to: int
    ) -> list[tuple[Place, Entry]]:
        if archived_to_record(connection) != archived_to:
            raise _ArchiveMovedError
        found: list[tuple[Place, Entry]] = []
        for seq, account, body in connection.execute(statement, values).fetchall():
            entry = self.decode(connection, account, body)
            found.append(((to_microseconds(entry.occurred_at), seq), entry))
        return found

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
        return [(place, self._decode_archived(connection, account, body)) for place, account, body in page]

    def _decode_archived(self, connection: Rows, account: bytes, body: str) -> Entry:
        number = self._numbers.get(account)
        if number is None:
            row = connection.execute("SELECT id FROM accounts WHERE digest = ?", (account,)).fetchone()
            number = remember(self._numbers, account, row[0] if row else -1)
        return self.decode(connection, number, body)

    def decode(self, connection: Rows, account: int, body: str) -> Entry:
        """The entry of a row.

        Raises:
            TamperedLedgerError: it is not what a store writes.
        """
        record: Any = None
        try:
            record = from_json(body)
            return decode_entry(
                record,
                self._account(connection, account),
                partial(self._rate, connection),
                partial(self._name, connection),
            )
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
        return decode_entry(
            record, self._account(connection, row[0]), partial(self._rate, connection), partial(self._name, connection)
        )

    def _account(self, connection: Rows, number: int) -> Account:
        known = self._accounts.get(number)
        if known is None:
            row = connection.execute(f"SELECT {_FIELDS} FROM contexts WHERE id = ?", (number,)).fetchone()  # noqa: S608 - names of our own
            if row is None:
                raise LookupError(f"Account {number} is missing.")
            known = remember(self._accounts, number, Account(*row))
        called = self._called.alias(known.api_key_fingerprint, known.api_key_alias)
        return known if called == known.api_key_alias else known._replace(api_key_alias=called)

    def _rate(self, connection: Rows, digest: str) -> Rate:
        known = self._rates.get(digest)
        if known is None:
            row = connection.execute("SELECT body FROM rates WHERE digest = ?", (bytes.fromhex(digest),)).fetchone()
            if row is None or row[0] is None:
                raise LookupError(f"Rate {digest} is missing.")
            values = from_json(row[0])
            rate = Rate(
                **{name: values[name] for name in Rate._fields if name in values and name != "model"}
                | {"model": values.get("model")}
            )
            known = remember(self._rates, digest, rate)
        return known

    def _name(self, connection: Rows, digest: str) -> str:
        known = self._names.get(digest)
        if known is None:
            row = connection.execute("SELECT value FROM names WHERE digest = ?", (bytes.fromhex(digest),)).fetchone()
            if row is None:
                raise LookupError(f"Name {digest} is missing.")
            known = remember(self._names, digest, row[0] or f"erased-{digest[:8]}")
        return known

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


def remember(known: dict[K, V], key: K, value: V) -> V:
    """Keep `value` in a memory, which starts anew when it has grown large."""
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[key] = value
    return value


def _instant(moment: Any) -> int | None:
    return None if moment is None else to_microseconds(moment)
