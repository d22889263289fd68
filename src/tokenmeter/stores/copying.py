"""A ledger carried to another store: the chain byte for byte, and all that stands beside it.

Records go first, page by page, so that what is there at any time is the beginning of the same ledger: a copy that was
interrupted goes on where it ended, and one that is made again brings what came since. At the end, in one transaction,
comes everything that is not part of the chain, as it stood with the last record.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from tokenmeter.display import counted
from tokenmeter.errors import LedgerError
from tokenmeter.stores.book import SUM_COLUMNS, SUM_TABLES
from tokenmeter.stores.documents import MOVED
from tokenmeter.stores.engine import read_head
from tokenmeter.stores.fold import AMOUNTS, FIRST, identity_column
from tokenmeter.stores.reading import archived_to_record

T = TypeVar("T")
Columns = Mapping[str, str]
Progress = Callable[[int, int], object]

#: Records to a transaction.
_PAGE = 5000
#: Rows that records name, in the order in which they name each other.
_SHARED = ("names", "tagsets", "accounts", "rates")
_RECORDS = ("entries", "documents", "dedup")
#: What belongs to the place rather than to the ledger.
_LEFT = ("ledger", "secret", "places", "schema_versions", "leases", "lessees", "packed_sums")
_KEYS = {"level", "slot", "account", "sku_meter"}
#: Columns that only one engine has: they follow from others.
_OWN = {("tagsets", "digest"), ("counters", "reserved"), ("refused", "host"), ("entries", "folded_month")}


class Copied(NamedTuple):
    """How far a copy is.

    Attributes:
        seq: Number of the last record.
        head: Its hash.
    """

    seq: int
    head: bytes


class CopySource(Protocol):
    """A ledger that can be copied. Statements are shared by the engines, with ``?`` for values."""

    @property
    def fold(self) -> Callable[[], object]:
        """Moves what waits in a tail into the ledger."""
        ...

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work` on one state of the ledger."""
        ...

    def tables(self, connection: Any) -> Mapping[str, Columns]:
        """Table -> column -> ``integer``, ``numeric``, ``text`` or ``bytes``."""
        ...

    def stream(self, connection: Any, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a query, of any number."""
        ...


class End(CopySource, Protocol):
    """A ledger that can be copied to."""

    def write(self, work: Callable[[Any], T]) -> T:
        """Run `work` in one transaction, with no fold beside it. It may run again when a connection is lost."""
        ...

    @property
    def identity(self) -> Callable[[str], bytes | str]:
        """The column of an entry's identity."""
        ...

    def put(self, connection: Any, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add rows to a table."""
        ...

    def finish(self, connection: Any) -> None:
        """Make what follows from the rows that were put: what only this engine keeps."""
        ...


def carry(source: CopySource, target: End, *, whole: bool = False, progress: Progress | None = None) -> Copied:
    """Carry everything that the target does not have.

    Args:
        source: Where the ledger is.
        target: Empty, or the beginning of the same ledger.
        whole: Whether it is a backup: open holds go along, and so does a last record that says that the source moved.
            Else open holds forbid its end, since their calls would be settled where they began, and that record is
            left out, since it is the copy that goes on.
        progress: Told now and then how many records are there, and of how many.

    Returns:
        Where the copy ends.

    Raises:
        LedgerError: holds are open (what was recorded until then is carried, and the next copy brings the rest), or the
            target is another ledger or was written to since.
        StoreUnavailableError: either end cannot be used.
    """
    if source.read(_moved) is None:  # else nothing is folded any more
        source.fold()
    reached = target.read(_reached)
    source.read(partial(_check_beginning, reached=reached))
    until = source.read(_reached if whole else _end)

    def together(work: Callable[[_Transfer], T]) -> T:
        return source.read(lambda rows: target.write(lambda written: work(_Transfer(source, rows, target, written))))

    together(_Transfer.share)
    while reached.seq < until.seq:
        reached = together(partial(_Transfer.page, after=reached.seq, until=until.seq))
        if progress is not None:
            progress(reached.seq, until.seq)
    return together(partial(_Transfer.end, whole=whole))


def refuse_holds(rows: Any, *, then: str) -> None:
    """Refuse a ledger of which calls are under way.

    Args:
        rows: The ledger.
        then: What to do when none are, as the end of a sentence.

    Raises:
        LedgerError: there are.
    """
    (holds,) = rows.execute("SELECT count(*) FROM holds").fetchone()
    if holds:
        raise LedgerError(
            f"{counted(holds, 'call of this ledger is', 'calls of this ledger are')} under way and may hold "
            f"part of a budget. Stop the programs that write to it, {then} Holds of programs that died end by "
            "themselves within minutes."
        )


def _reached(rows: Any) -> Copied:
    seq, digest = read_head(rows, "seq, hash")
    return Copied(seq, bytes(digest))


def _moved(rows: Any) -> int | None:
    """Number of the record that says where a ledger went."""
    found = rows.execute("SELECT seq FROM documents WHERE kind = ?", (MOVED,)).fetchone()
    return None if found is None else found[0]


def hash_at(rows: Any, seq: int) -> bytes | None:
    """The chain's hash after a record; None where the ledger does not say it."""
    if not seq:
        return FIRST
    statement = "SELECT hash FROM entries WHERE seq = ? UNION ALL SELECT hash FROM documents WHERE seq = ?"
    found = rows.execute(statement, (seq, seq)).fetchone()
    if found is None:  # the last record of a closed month that is in a file
        found = rows.execute("SELECT archived_hash FROM ledger WHERE archived_to = ?", (seq,)).fetchone()
    return None if found is None else bytes(found[0])


def _end(rows: Any) -> Copied:
    """The last record that is carried."""
    head = _reached(rows)
    if _moved(rows) != head.seq:
        return head
    return Copied(head.seq - 1, hash_at(rows, head.seq - 1) or FIRST)


def _check_beginning(rows: Any, *, reached: Copied) -> None:
    if 0 < reached.seq < archived_to_record(rows):
        raise LedgerError(
            "Months of this ledger were archived since the copy was begun: copy it to an empty store instead."
        )
    if hash_at(rows, reached.seq) != reached.head:
        raise LedgerError(
            "The target is not the beginning of this ledger: it has records of its own. Name an empty one, or join the "
            "two with `tokenmeter db merge`."
        )


class _Transfer:
    """One transaction at the target, which sees one state of the source."""

    def __init__(self, source: CopySource, rows: Any, target: End, written: Any) -> None:
        self._source, self._rows = source, rows
        self._target, self._written = target, written
        self._ours, self._theirs = source.tables(rows), target.tables(written)

    def share(self) -> None:
        """Bring the rows that records name up to date."""
        for table in _SHARED:
            if table != "tagsets":
                self._check_same(table)
            if table == "names":  # they may have been erased since
                self._written.execute("DELETE FROM names")
                self._put(table)
                continue
            (last,) = self._written.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchone()  # noqa: S608 - names of our own
            self._put(table, "WHERE id > ? ORDER BY id", (last,))
            if table != "tagsets":
                self._define(table)

    def _check_same(self, table: str) -> None:
        statement = f"SELECT id, digest FROM {table}"  # noqa: S608 - names of our own
        before = [(number, bytes(digest)) for number, digest in self._target.stream(self._written, statement)]
        if not before:
            return
        known = {number: bytes(digest) for number, digest in self._source.stream(self._rows, statement)}
        if any(known.get(number) != digest for number, digest in before):
            raise LedgerError(
                f"The target has {table} of its own: it was written to, and is not the beginning of this ledger. Name "
                "an empty one."
            )

    def _define(self, table: str) -> None:
        """Fill rows in that nobody had defined when they were carried."""
        shape = _RowMapping(self._ours, self._theirs, table)
        pending = self._written.execute(f"SELECT id FROM {table} WHERE body IS NULL").fetchall()  # noqa: S608 - names of our own
        for (number,) in pending:
            found = self._rows.execute(
                f"SELECT {', '.join(shape.read)} FROM {table} WHERE id = ?",  # noqa: S608 - as above
                (number,),
            ).fetchone()
            values = dict(zip(shape.written, shape.make(found), strict=True))
            del values["id"]
            if values["body"] is not None:
                self._written.execute(
                    f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ?",  # noqa: S608 - as above
                    (*values.values(), number),
                )

    def page(self, *, after: int, until: int) -> Copied:
        """Carry some records after one, and up to another; whatever of them is archived in one go."""
        before = _reached(self._written)
        if before.seq != after:  # done already, and the answer was lost; or somebody else is at it
            return before
        last = max(self._follow_archives(), min(until, after + _PAGE))
        for table in _RECORDS:
            self._put(table, "WHERE seq > ? AND seq <= ? ORDER BY seq", (after, last))
        head = hash_at(self._rows, last)
        if head is None:
            raise LedgerError(f"Record {last} is missing: run `tokenmeter verify` on the source.")
        counts = [
            self._written.execute(f"SELECT count(*) FROM {table} WHERE seq > ?", (after,)).fetchone()[0]  # noqa: S608 - names of our own
            for table in ("entries", "documents")
        ]
        self._written.execute(
            "UPDATE ledger SET seq = ?, hash = ?, entries = entries + ?, documents = documents + ?",
            (last, head, *counts),
        )
        return Copied(last, head)

    def end(self, *, whole: bool) -> Copied:
        """Carry what came meanwhile, and everything that is no record."""
        if not whole:
            refuse_holds(
                self._rows, then="and copy again: what they recorded until now is carried, only the rest is left."
            )
        until = _reached(self._rows) if whole else _end(self._rows)
        self.share()
        self._follow_archives()
        while (reached := _reached(self._written)).seq < until.seq:
            self.page(after=reached.seq, until=until.seq)
        self._take_out()
        self._written.execute("DELETE FROM packed_sums")  # copies of the rows that are replaced here
        for table in self._ours.keys() - {*_SHARED, *_RECORDS, *_LEFT, *(() if whole else ("holds",))}:
            if table in self._theirs:
                self._written.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
                self._put(table)
            elif self._rows.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # noqa: S608 - as above
                raise LedgerError(f"The target has no table {table}: bring it to this release first.")
        (secret,) = self._rows.execute("SELECT value FROM secret").fetchone()
        self._written.execute("UPDATE secret SET value = ?", (bytes(secret),))
        names = [name for name in self._ours["ledger"] if name not in {"id", "seq", "hash", "documents"}]
        values = self._rows.execute(f"SELECT {', '.join(names)} FROM ledger").fetchone()  # noqa: S608 - as above
        self._written.execute(f"UPDATE ledger SET {', '.join(f'{name} = ?' for name in names)}", tuple(values))  # noqa: S608 - as above
        self._target.finish(self._written)
        return _reached(self._written)

    def _follow_archives(self) -> int:
        """Have the same entries in files alone as the source: months may be archived, or brought back, at any time.

        Returns:
            Up to which record they are.
        """
        now, digest = self._rows.execute("SELECT archived_to, archived_hash FROM ledger").fetchone()
        before, reached = read_head(self._written, "archived_to, seq")
        if now != before:
            self._put("entries", "WHERE seq > ? AND seq <= ? ORDER BY seq", (now, min(before, reached)))
            self._written.execute(
                "UPDATE ledger SET archived_to = ?, archived_hash = ?", (now, None if digest is None else bytes(digest))
            )
            self._written.execute("DELETE FROM entries WHERE seq <= ?", (now,))
        return int(now)

    def _take_out(self) -> None:
        """Documents that were carried before an erasure took a name out of them."""
        statement = "SELECT seq, key, body, leaf FROM documents WHERE leaf IS NOT NULL"
        for seq, key, body, leaf in self._source.stream(self._rows, statement):
            self._written.execute(
                "UPDATE documents SET key = ?, body = ?, leaf = ? WHERE seq = ? AND body <> ?",
                (key, body, bytes(leaf), seq, body),
            )

    def _put(self, table: str, which: str = "", values: Sequence[Any] = ()) -> None:
        shape = _RowMapping(self._ours, self._theirs, table)
        statement = f"SELECT {', '.join(shape.read)} FROM {table} {which}"  # noqa: S608 - names of our own
        found = self._source.stream(self._rows, statement, values)
        self._target.put(self._written, table, shape.written, map(shape.make, found))


class _RowMapping:
    """What makes a row of a table at one end into a row of it at the other.

    Attributes:
        read: Its columns at the source.
        written: Its columns at the target.

    Raises:
        LedgerError: one end has a column that the other does not know.
    """

    def __init__(self, ours: Mapping[str, Columns], theirs: Mapping[str, Columns], table: str) -> None:
        strange = {(table, name) for name in ours[table].keys() ^ theirs[table].keys()} - _OWN
        if strange:
            raise LedgerError(
                f"Only one of the two ledgers has the column {table}.{min(strange)[1]}: they were made by different "
                "releases. Bring both to this one (`tokenmeter db migrate` for PostgreSQL)."
            )
        self.read = [name for name in ours[table] if name in theirs[table]]
        self._kinds = [theirs[table][name] for name in self.read]
        self._more = _derived(table, self.read, theirs[table])
        self.written = [*self.read, *self._more]
        # Segments of several hosts in one table without hosts: their numbers would meet.
        meets = table == "refused" and "host" in ours[table] and "host" not in theirs[table]
        self._renumbered = self.read.index("segment") if meets else None
        self._count = itertools.count(1)

    def make(self, row: Sequence[Any]) -> list[Any]:
        """A row for the target."""
        values = [_as(kind, value) for kind, value in zip(self._kinds, row, strict=True)]
        if self._renumbered is not None:
            values[self._renumbered] = -next(self._count)
        return [*values, *(derive(row) for derive in self._more.values())]


def _as(kind: str, value: Any) -> Any:
    """A value as the other engine keeps it: identities of entries and amounts of any size differ."""
    if value is None:
        return None
    if kind == "text":
        return value.hex() if isinstance(value, bytes) else str(value)
    if kind == "bytes":
        return identity_column(value) if isinstance(value, str) else value
    return int(value)


def _derived(table: str, read: Sequence[str], theirs: Columns) -> dict[str, Callable[[Sequence[Any]], bytes]]:
    """Columns that only the target has, and how each follows from a row of the source."""
    if table == "tagsets" and "digest" in theirs and "digest" not in read:
        at = read.index("body")
        return {"digest": lambda row: hashlib.sha256(row[at].encode()).digest()}
    if table == "refused" and "host" in theirs and "host" not in read:
        return {"host": lambda _: b""}
    return {}


def compare_sums(source: CopySource, target: CopySource) -> list[str]:
    """Tables that do not hold as many rows, or not the same sums, at both ends; none when all agree."""
    amounts = {"entries": AMOUNTS} | {
        table: [name for name in SUM_COLUMNS[table].split(", ") if name not in _KEYS] for table in SUM_TABLES
    }

    def totals(end: CopySource, rows: Any) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for table, columns in end.tables(rows).items():
            if table in {*_LEFT, "documents", "holds"}:
                continue
            summed = [name for name in amounts.get(table, ()) if columns[name] == "integer"]
            wanted = ", ".join(["count(*)", *(f"sum({name})" for name in summed)])
            found[table] = tuple(rows.execute(f"SELECT {wanted} FROM {table}").fetchone())  # noqa: S608 - names of our own
        return found

    ours, theirs = source.read(partial(totals, source)), target.read(partial(totals, target))
    return sorted(table for table in ours.keys() & theirs.keys() if ours[table] != theirs[table])
