"""Along a ledger's chain, record by record: what `tokenmeter.stores.audit` checks of each, looked at once."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.display import counted
from tokenmeter.stores.archive.checking import ArchiveCheck
from tokenmeter.stores.base import Fault
from tokenmeter.stores.book import ENTRY_COLUMNS, make_room
from tokenmeter.stores.documents import ERASURE, MERGED
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import Rows, look_up, read_head
from tokenmeter.stores.fold import FIRST, Batch, Measured, link, measured
from tokenmeter.stores.reading import UNREADABLE, learn
from tokenmeter.stores.rebuilding import SharedRows, Wrong, wrong_sums
from tokenmeter.stores.slots import DAY, Level, ends

#: The head of a chain that has no record yet, as a checkpoint of an empty ledger names it.
EMPTY = FIRST.hex()
_PAGE = 2000
_FIRST_DAY, _ = ends(Level.DAY)
_NAMES = ", ".join(ENTRY_COLUMNS)
_DOCUMENT = "seq, position, kind, key, series, number, body, hash, leaf"
#: Most sums of days that are gathered at a time, each of an hour and account: what is more is counted a second time.
_MOST_SUMS = 200_000


class GatheredDays:
    """What entries add to the sums of their UTC days, gathered along the chain and held against what is kept.

    A day is compared in a read transaction in which exactly the entries that were gathered lie on it. Any other (its
    entries are archived, or far apart in the chain, or still coming) is left to be counted by itself.

    Args:
        archived: What was found of months that are in files: days with entries of these are not gathered.

    Attributes:
        first: The first day that is gathered; None where none is to be.
        compared: Days that are done.
        wrong: Sums of these that are kept otherwise than they should be.
    """

    def __init__(self, archived: ArchiveCheck) -> None:
        self.first: int | None = _FIRST_DAY
        self._archived = archived
        self.compared: set[int] = set()
        self.wrong: list[Wrong] = []
        self._batches: dict[int, Batch] = {}
        self._counts: dict[int, int] = {}
        self._left: set[int] = set()
        self._touched: set[int] = set()
        self._due: set[int] = set()

    def count(self, occurred_at: int, account: int, found: Measured) -> None:
        """Take an entry in."""
        day = occurred_at // DAY
        batch = self._batches.get(day)
        if batch is None:
            if self.first is None or day < self.first or day in self._left or day in self.compared:
                return
            if day in self._archived.days:
                self._left.add(day)
                return
            batch = self._batches[day] = Batch()
        batch.count(occurred_at, account, found)
        self._counts[day] = self._counts.get(day, 0) + 1
        self._touched.add(day)

    def compare(self, connection: Rows) -> None:
        """Compare the days that no entry has come to since this was last called."""
        quiet = self._due - self._touched
        self._due, self._touched = self._touched, set()
        if sum(len(batch.sums) for batch in self._batches.values()) > _MOST_SUMS:
            self._left |= self._batches.keys()
            self._batches, self._counts = {}, {}
        if read_head(connection, "archived_to")[0] != self._archived.archived_to:
            self.first, self._batches = None, {}  # months were dropped or brought back meanwhile
        for day in sorted(quiet & self._batches.keys()):
            (there,) = connection.execute(
                "SELECT count(*) FROM entries WHERE occurred_at >= ? AND occurred_at < ?", (day * DAY, (day + 1) * DAY)
            ).fetchone()
            if there == self._counts[day]:
                self.wrong += wrong_sums(connection, day, self._batches.pop(day))
                self.compared.add(day)


class Walk:
    """Along the chain, page by page. A link is checked against the hash stored before it: one edit, one fault.

    Args:
        identity: The engine's column of an entry's identity.
        head: A hash to look for.
        archived: What was found of months that are in files.
        deep: Whether these are looked into, too.

    Attributes:
        faults: What was found.
        entries: How many entries were looked at, archived ones among them.
        more: Whether there are more pages.
        head: Hash of the last record.
        after: Number of the record that is reached.
        to: Number of the last one.
        since: The first UTC day of which something came after what is left out; None where nothing is left out.
        first_day: The first UTC day whose sums are to be looked at; None for none.
        days: Sums of days, as far as they could be compared on the way.
    """

    def __init__(
        self, identity: Callable[[str], bytes | str], head: str | None, archived: ArchiveCheck, *, deep: bool
    ) -> None:
        self._identity = identity
        self._archived, self._deep = archived, deep
        self._found_at = 0 if head == EMPTY else None if head is None else archived.heads.get(head)
        self.faults: list[Fault] = []
        self.entries = self.entries_archived = 0
        self.more = True
        self.head = FIRST
        self.after = self.to = self._first = 0
        self.since: int | None = None
        self.first_day: int | None = _FIRST_DAY
        self.days = GatheredDays(archived)
        self._wanted = head
        self._begun = False
        self._taken_out: dict[int, tuple[str, str]] = {}
        self._before: bytes | None = FIRST
        self._positions = self._bills = 0
        self._numbers: dict[str, int] = {}
        self._shared = SharedRows()
        self._names: dict[int, str] = {}
        self._tagsets: dict[int, str] = {}
        self._keys: dict[int, str] = {}

    @property
    def after_head(self) -> int | None:
        """How many records came after the head that was asked for."""
        return None if self._found_at is None else self.to - self._found_at

    @property
    def but(self) -> str:
        """What a search along the chain has left out, in words."""
        return "" if self._deep or not self.entries_archived else " Archived months were not: look deep for that."

    def begin(self, connection: Rows) -> None:
        """Go to where the live chain begins; of what lies before it, documents are here."""
        run = connection.execute
        self.after, before = run("SELECT archived_to, archived_hash FROM ledger").fetchone()
        (left,) = run("SELECT count(*) FROM entries WHERE seq <= (SELECT archived_to FROM ledger)").fetchone()
        if left:
            told = f"{counted(left, 'entry', 'entries')} stand where the chain begins or what is archived was."
            self.faults.append(Fault("edited", "entries", told))
        for erasure in erasures(connection):
            self._taken_out |= {seq: (was, now) for seq, was, now in erasure.documents}
        if not self.after:
            return
        self.entries = self.entries_archived = self._archived.entries
        statement = f"SELECT {_DOCUMENT} FROM documents WHERE seq <= ? ORDER BY seq"  # noqa: S608 - names of our own
        for seq, *columns in run(statement, (self.after,)).fetchall():
            with contextlib.suppress(*UNREADABLE):
                self._before = bytes.fromhex(from_json(columns[5])["anchor"])
            self._document(connection, seq, columns)
        self._before = bytes(before or b"")  # none: what somebody wrote, and the next record is not linked to it

    def begin_after(self, connection: Rows, *, head: str) -> bool:
        """Leave out what lies before the record with this hash; False when there is none."""
        run = connection.execute
        try:
            digest = bytes.fromhex(head)
        except ValueError:
            return False
        row = _with_hash(connection, digest)
        if row is None or row[0] <= self.after:
            return row is not None
        self.after, self._before, self.entries = row[0], digest, 0
        self._positions = run("SELECT count(*) FROM documents WHERE seq <= ?", row).fetchone()[0]
        series = run("SELECT series, max(number) FROM documents WHERE seq <= ? GROUP BY series", row)
        self._numbers = {name: number for name, number in series if name is not None}
        # With a sign, so that records are looked at from that one on, and not all by their time.
        moment = run("SELECT min(+occurred_at) FROM entries WHERE seq > ?", row).fetchone()[0]
        self.since = sys.maxsize if moment is None else moment // DAY
        self.first_day = None if moment is None else moment // DAY
        self.days.first = self.first_day
        if self._wanted == head:
            self._found_at = row[0]
        return True

    def page(self, connection: Rows) -> None:
        """Look at the next records."""
        run = connection.execute
        if not self._begun:
            self._begun, self._first = True, self.after
            self.to, self.head = run("SELECT seq, hash FROM ledger").fetchone()
        last = min(self.to, self.after + _PAGE)
        rows: dict[int, Any] = {}
        twice: list[int] = []  # by the tables' own keys, a number may be in both, and in several partitions
        entries = f"SELECT {_NAMES} FROM entries WHERE seq > ? AND seq <= ?"  # noqa: S608 - names of our own
        for seq, *columns in run(entries, (self.after, last)):
            twice += [seq] if seq in rows else []
            rows[seq] = ("entry", columns)
        self._look_up(connection, [columns for _, columns in rows.values()])
        documents = f"SELECT {_DOCUMENT} FROM documents WHERE seq > ? AND seq <= ?"  # noqa: S608 - names of our own
        for seq, *columns in run(documents, (self.after, last)):
            twice += [seq] if seq in rows else []
            rows[seq] = ("document", columns)
        for seq in twice:
            self.faults.append(Fault("edited", f"record {seq}", "There is a second record of this number."))
        gap: int | None = None
        for seq in range(self.after + 1, last + 1):
            if seq not in rows:
                gap = gap or seq
                self._before = None
                continue
            if gap:
                self._gap(gap, seq - 1)
                gap = None
            kind, columns = rows[seq]
            (self._entry if kind == "entry" else self._document)(connection, seq, columns)
        if gap:
            self._gap(gap, last)
        self._check_bills(connection)
        self.days.compare(connection)
        self.after = last
        self.more = last < self.to

    def _gap(self, first: int, last: int) -> None:
        count = last - first + 1
        what = f"record {first}" if first == last else f"records {first} to {last}"
        kind = "cut" if last == self.to else "missing"
        self.faults.append(Fault(kind, what, f"{counted(count, 'record is', 'records are')} gone."))

    def _link(self, seq: int, leaf: bytes, stored: bytes) -> bool:
        before, self._before = self._before, stored
        if self._wanted == stored.hex():
            self._found_at = seq
        return before is None or link(before, leaf) == stored

    def _entry(self, connection: Rows, seq: int, columns: list[Any]) -> None:
        self.entries += 1
        *row, body, stored = columns
        sound = self._link(seq, hashlib.sha256(body.encode()).digest(), stored)
        try:
            record = from_json(body)
            account = self._shared.account(connection, record["account"])
            found = measured(record, account, partial(self._shared.meter, connection))
            occurred_at, end_user, tags = record["occurred_at"], row[3], row[4]
            said = (
                self._identity(record["id"]),
                occurred_at,
                account.number,
                record.get("end_user"),
                compact_json(record["tags"]) if record.get("tags") else None,
                *found.amounts,
                compact_json(found.more) if found.more else None,
                record.get("response_id"),
                record.get("trace_id"),
            )
            self.days.count(occurred_at, account.number, found)
            kept = (
                *row[:3],
                None if end_user is None else self._names[end_user],
                None if tags is None else self._tagsets[tags],
                *row[5:],
            )
            sound = sound and said == kept
            key = record.get("dedup_key")
            if key is not None:
                self._keys[seq] = key
        except UNREADABLE:
            sound = False
        if not sound:
            self.faults.append(Fault("edited", f"entry {seq}", "The entry does not match its hash or its columns."))

    def _check_bills(self, connection: Rows) -> None:
        """See that a page's bills are marked as recorded."""
        marked = {
            (key, seq)
            for key, seq in look_up(connection, "SELECT key, seq FROM dedup WHERE key IN", self._keys.values())
        }
        for seq, key in self._keys.items():
            if (key, seq) in marked:
                self._bills += 1
            else:
                self.faults.append(Fault("edited", f"entry {seq}", "Its bill could be recorded a second time."))
        self._keys = {}

    def _document(self, _: Rows, seq: int, columns: list[Any]) -> None:
        position, kind, key, series, number, body, stored, kept = columns
        before = self._before
        where = f"{kind} {key}"
        leaf = hashlib.sha256(body.encode()).digest()
        was, now = self._taken_out.get(seq, (leaf.hex(), leaf.hex()))
        filed = leaf if kept is None else bytes(kept)
        sound = self._link(seq, filed, stored) and (filed.hex(), leaf.hex()) == (was, now)
        try:
            record = from_json(body)
            sound = sound and [record["kind"], record["key"], record.get("series"), record.get("number")] == [
                kind,
                key,
                series,
                number,
            ]
            if before is not None and record["anchor"] != before.hex():
                self.faults.append(Fault("anchor", where, "The ledger before it is not the one that it was filed on."))
        except UNREADABLE:
            sound = False
        if not sound:
            self.faults.append(Fault("edited", where, f"The document (record {seq}) does not match its hash."))
        self._positions += 1
        if position != self._positions:
            self.faults.append(Fault("missing", where, "A document before it is gone."))
            self._positions = position
        if series is not None:
            self._numbers[series] = self._numbers.get(series, 0) + 1
            if number != self._numbers[series]:
                self.faults.append(Fault("missing", where, f"Series {series!r} has a gap before {number}."))
                self._numbers[series] = number if isinstance(number, int) else self._numbers[series]

    def end(self, connection: Rows) -> list[Fault]:
        """What can be said once all records were seen."""
        self.days.compare(connection)  # that of the last page is quiet from now on
        self.days.compare(connection)
        run = connection.execute
        found: list[Fault] = []
        if self._wanted is not None and self.after_head is None:
            told = f"The chain does not contain it: this is not the ledger it was.{self.but}"
            found.append(Fault("head", self._wanted, told))
        if self._before is not None and self._before != self.head:
            found.append(Fault("edited", "head", "The last record is not the one the ledger's head names."))
        ahead, entries, documents = run("SELECT seq, entries, documents FROM ledger").fetchone()
        (filed,) = run("SELECT count(*) FROM documents").fetchone()
        if (entries, documents) != (ahead - filed, filed):
            said = f"{counted(entries, 'entry', 'entries')} and {counted(documents, 'document', 'documents')}"
            told = f"It says {said}; there are {ahead - filed:,} and {filed:,}."
            found.append(Fault("edited", "head", told))
        (bills,) = run(
            "SELECT count(*) FROM dedup WHERE seq > ? AND (seq <= ? OR seq > ?)", (self._first, self.to, ahead)
        ).fetchone()
        if bills > self._bills:
            told = f"{counted(bills - self._bills, 'bill is', 'bills are')} marked as recorded, and no entry has them."
            found.append(Fault("edited", "bills", f"{told} They would not be recorded when they come."))
        (beyond,) = run(
            "SELECT (SELECT count(*) FROM entries WHERE seq > ?) + (SELECT count(*) FROM documents WHERE seq > ?)",
            (ahead, ahead),
        ).fetchone()
        if beyond:
            found.append(
                Fault("edited", "head", f"{counted(beyond, 'record was', 'records were')} added past the chain's head.")
            )
        return found

    def _look_up(self, connection: Rows, entries: Sequence[Sequence[Any]]) -> None:
        """Look up what the rows of a page's entries point at, all of it at once."""
        accounts, end_users, tags = ({entry[place] for entry in entries} for place in (2, 3, 4))
        self._shared.meet(connection, accounts)
        for known in (self._names, self._tagsets):
            make_room(known, len(entries))
        learn(self._names, end_users - {None}, partial(_read_names, connection))
        learn(self._tagsets, tags - {None}, partial(_read_tagsets, connection))


def _read_names(connection: Rows, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    for number, digest in look_up(connection, "SELECT id, digest FROM names WHERE id IN", numbers):
        yield number, digest.hex()


def _read_tagsets(connection: Rows, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Sets of tags of which no name is gone."""
    named: dict[int, tuple[str, set[bytes]]] = {}
    for number, body in look_up(connection, "SELECT id, body FROM tagsets WHERE id IN", numbers):
        with contextlib.suppress(*UNREADABLE):
            named[number] = (body, {bytes.fromhex(value) for value in from_json(body).values()})
    wanted = set[bytes]().union(*(names for _, names in named.values()))
    there = {bytes(digest) for (digest,) in look_up(connection, "SELECT digest FROM names WHERE digest IN", wanted)}
    yield from ((number, body) for number, (body, names) in named.items() if names <= there)


def _with_hash(connection: Rows, digest: bytes) -> Sequence[int] | None:
    """The number of the record with this hash, which is looked for from the last one back, as a row."""
    (last,) = connection.execute("SELECT seq FROM ledger").fetchone()
    width = _PAGE
    while last > 0:
        for table in ("entries", "documents"):
            statement = f"SELECT seq FROM {table} WHERE seq > ? AND seq <= ? AND hash = ?"  # noqa: S608 - names of our own
            row: Sequence[int] | None = connection.execute(statement, (last - width, last, digest)).fetchone()
            if row is not None:
                return row
        last, width = last - width, width * 2
    return None


class Erased(NamedTuple):
    """What a record of an erasure says.

    Attributes:
        names: Digests of the names that it took out.
        pseudonym: What stands in their place.
        documents: Records that it took them out of: number, SHA-256 before and after.
    """

    names: Sequence[str]
    pseudonym: str
    documents: Sequence[tuple[int, str, str]]


def erasures(connection: Rows) -> list[Erased]:
    """What records of erasures say, in their order; one that was made unreadable says nothing (the walk names it)."""
    found: list[Erased] = []
    records = connection.execute("SELECT body FROM documents WHERE kind = ? ORDER BY seq", (ERASURE,)).fetchall()
    for (record,) in records:
        with contextlib.suppress(*UNREADABLE):
            said = from_json(from_json(record)["body"])
            documents = [(int(seq), str(was), str(now)) for seq, was, now in said.get("documents", ())]
            found.append(Erased(list(map(str, said["names"])), said["pseudonym"], documents))
    return found


def nameless(connection: Rows) -> set[str]:
    """Digests (hex) of names that came with a merge without anything else, and no record says that they were erased."""
    rows = connection.execute("SELECT digest FROM names WHERE salt IS NULL AND kind = '' AND value IS NULL").fetchall()
    there = {bytes(digest).hex() for (digest,) in rows}
    told: set[str] = set()
    merges = connection.execute("SELECT body FROM documents WHERE kind = ? ORDER BY seq", (MERGED,)).fetchall()
    for (record,) in merges if there else ():
        with contextlib.suppress(*UNREADABLE):
            said = from_json(from_json(record)["body"])
            if "nameless" not in said:  # of an earlier release: it may have been any of them
                return there
            told.update(map(str, said["nameless"]))
    return there & told
