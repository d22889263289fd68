"""Checking a ledger: the chain of all records, their columns, what they share, the kept sums, the triggers."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_core import from_json

from tokenmeter.display import counted
from tokenmeter.stores.archive.archives import ArchiveCheck, ParquetArchives
from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.book import ENTRY_COLUMNS
from tokenmeter.stores.documents import ERASURE
from tokenmeter.stores.engine import Engine, Readable, Rows
from tokenmeter.stores.fold import AMOUNTS, FIRST, link, measured
from tokenmeter.stores.packing import differing
from tokenmeter.stores.reading import UNREADABLE
from tokenmeter.stores.rebuilding import SharedRows, Wrong, days, joined_amounts, longer
from tokenmeter.stores.record import PERSONAL, Account, compact_json, digest_of, name_digest
from tokenmeter.stores.slots import DAY, Level, is_slot, label

_PAGE = 2000
_NAMES = ", ".join(ENTRY_COLUMNS)
_FIELDS = Account._fields
#: The head of a chain that has no record yet, as a checkpoint of an empty ledger names it.
_EMPTY = FIRST.hex()
_DOCUMENT = "seq, position, kind, key, series, number, body, hash, leaf"
_TRIGGERS = {
    f"{table}_{what}" for table in ("entries", "documents", "accounts", "rates") for what in ("stay", "stay_unchanged")
}


def audit(
    ledger: Readable,
    archives: ParquetArchives,
    *,
    head: str | None = None,
    since: str | None = None,
    deep: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Verification:
    """Everything that can be checked from the ledger alone. Reads in short transactions; writers go on meanwhile.

    See `tokenmeter.stores.base.Store.verify`.
    """
    read = ledger.read
    faults = read(partial(_rows_shared, engine=ledger.engine))
    found = archives.verify(deep=deep, heads=(head, since))
    faults += found.faults
    walk = _Walk(ledger.engine.identity, head, found, deep=deep)
    read(walk.begin)
    if since is not None and since not in {_EMPTY, *found.heads} and not read(partial(walk.begin_after, head=since)):
        faults.append(Fault("head", since, f"Nothing in the chain has this hash; all of it was looked at.{walk.but}"))
    while walk.more:
        read(walk.page)
        if progress is not None:
            progress(walk.after, walk.to)
    faults += walk.faults
    faults += read(walk.end)
    if not deep:
        faults += read(partial(_archived_sums, archives=archives))
    day = walk.first_day
    shared = SharedRows()
    while day is not None:
        day, wrong = read(partial(days, since=day, shared=shared, archives=archives))
        faults += _told(wrong, Level.DAY)
    wrong = read(longer)
    for level in (Level.MONTH, Level.WEEK):
        faults += _told([one for one in wrong if one.key[0] == level and is_slot(*one.key[:2])], level)
    for name in sorted({label(*one.key[:2]) for one in wrong if not is_slot(*one.key[:2])}):
        said = f"There are sums of {name}, which is no time; `tokenmeter db rebuild` removes them."
        faults.append(Fault("rollup", name, said))
    for of, slot in differing(read):
        name = label(of, slot)
        faults.append(
            Fault("rollup", name, f"The packed sums of {name} are wrong; `tokenmeter db rebuild` drops them.")
        )
    return Verification(walk.entries, walk.head.hex(), tuple(faults), walk.after_head)


def _rows_shared(connection: Rows, *, engine: Engine) -> list[Fault]:
    run = connection.execute
    found: list[Fault] = []
    for number, digest, body, *columns in run(f"SELECT id, digest, body, {', '.join(_FIELDS)} FROM accounts"):  # noqa: S608 - names of our own
        if body is not None and not _is_definition(connection, digest, body, dict(zip(_FIELDS, columns, strict=True))):
            found.append(Fault("edited", f"accounts {number}", "A row that entries share was changed."))
    for number, digest, body, meter in run("SELECT id, digest, body, sku_meter FROM rates"):
        if body is not None and not _is_definition(connection, digest, body, {"sku_meter": meter}):
            found.append(Fault("edited", f"rates {number}", "A row that entries share was changed."))
    found += _names(connection)
    if not engine.keeps_secret(connection):
        found.append(Fault("secret", "secret", "The secret was replaced: API keys have other fingerprints since."))
    there = {name for (name,) in run(engine.triggers)}
    found += [
        Fault("trigger", name, "A trigger that keeps records from being changed is gone; somebody removed it.")
        for name in sorted((_TRIGGERS | engine.guards) - there)
    ]
    return found


def _names(connection: Rows) -> list[Fault]:
    """Names that are not what their digest says, and were not erased; erasures that have no effect."""
    found: list[Fault] = []
    erased: dict[str, str] = {}
    for body in _erasures(connection):
        erased |= dict.fromkeys(body["names"], body["pseudonym"])
    for number, digest, salt, kind, value in connection.execute(
        "SELECT id, digest, salt, kind, value FROM names WHERE kind <> ''"
    ):
        said = erased.pop(digest.hex(), None)
        if said is not None:
            if salt is not None or value != said:
                found.append(Fault("edited", f"names {number}", "The name was erased by the record, and is there."))
        elif salt is None:
            found.append(Fault("edited", f"names {number}", "A name was erased, and no record says so."))
        elif name_digest(kind, salt.hex(), value) != digest.hex():
            found.append(Fault("edited", f"names {number}", "A name was changed."))
    return found + [
        Fault("edited", f"name {digest}", "It was erased by the record, and its row is gone.") for digest in erased
    ]


def _erasures(connection: Rows) -> list[dict[str, Any]]:
    """What records of erasures say, in their order."""
    records = connection.execute("SELECT body FROM documents WHERE kind = ? ORDER BY seq", (ERASURE,)).fetchall()
    return [from_json(from_json(record)["body"]) for (record,) in records]


def _is_definition(connection: Rows, digest: bytes, body: str, columns: dict[str, Any]) -> bool:
    if digest_of(body.encode()) != digest.hex():
        return False
    values = from_json(body)
    for name, column in columns.items():
        said = values.get(name)
        if name in PERSONAL and column is not None:
            row = connection.execute("SELECT digest FROM names WHERE id = ?", (column,)).fetchone()
            if row is None:
                return False
            column = row[0].hex()  # noqa: PLW2901 - as the definition says it
        if said != column:
            return False
    return True


class _Walk:
    """Along the chain, page by page. A link is checked against the hash stored before it: one edit, one fault."""

    def __init__(
        self, identity: Callable[[str], bytes | str], head: str | None, archived: ArchiveCheck, *, deep: bool
    ) -> None:
        self._identity = identity
        self._archived, self._deep = archived, deep
        self._found_at = 0 if head == _EMPTY else None if head is None else archived.heads.get(head)
        self.faults: list[Fault] = []
        self.entries = self.entries_archived = 0
        self.more = True
        self.head = FIRST
        self.after = self.to = 0
        self.first_day: int | None = -1_000_000
        self._wanted = head
        self._begun = False
        self._taken_out: dict[int, tuple[str, str]] = {}
        self._before: bytes | None = FIRST
        self._positions = 0
        self._numbers: dict[str, int] = {}
        self._shared = SharedRows()

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
        for erasure in _erasures(connection):
            self._taken_out |= {seq: (was, now) for seq, was, now in erasure.get("documents", ())}
        if not self.after:
            return
        self.entries = self.entries_archived = self._archived.entries
        if not self._deep:
            self.first_day = self._archived.last_day + 1
        statement = f"SELECT {_DOCUMENT} FROM documents WHERE seq <= ? ORDER BY seq"  # noqa: S608 - names of our own
        for seq, *columns in run(statement, (self.after,)).fetchall():
            with contextlib.suppress(*UNREADABLE):
                self._before = bytes.fromhex(from_json(columns[5])["anchor"])
            self._document(connection, seq, columns)
        self._before = bytes(before)

    def begin_after(self, connection: Rows, *, head: str) -> bool:
        """Leave out what lies before the record with this hash; False when there is none."""
        run = connection.execute
        try:
            digest = bytes.fromhex(head)
        except ValueError:
            return False
        for table in ("entries", "documents"):
            row = run(f"SELECT seq FROM {table} WHERE hash = ?", (digest,)).fetchone()  # noqa: S608 - names of our own
            if row is not None:
                if row[0] <= self.after:
                    return True
                self.after, self._before, self.entries = row[0], digest, 0
                self._positions = run("SELECT count(*) FROM documents WHERE seq <= ?", row).fetchone()[0]
                series = run("SELECT series, max(number) FROM documents WHERE seq <= ? GROUP BY series", row)
                self._numbers = {name: number for name, number in series if name is not None}
                moment = run("SELECT min(occurred_at) FROM entries WHERE seq > ?", row).fetchone()[0]
                known = self._archived.last_day + 1 if self.entries_archived and not self._deep else None
                self.first_day = None if moment is None else max(moment // DAY, known or moment // DAY)
                if self._wanted == head:
                    self._found_at = row[0]
                return True
        return False

    def page(self, connection: Rows) -> None:
        run = connection.execute
        if not self._begun:
            self._begun = True
            self.to, self.head = run("SELECT seq, hash FROM ledger").fetchone()
        last = min(self.to, self.after + _PAGE)
        rows: dict[int, Any] = {
            seq: ("entry", columns)
            for seq, *columns in run(f"SELECT {_NAMES} FROM entries WHERE seq > ? AND seq <= ?", (self.after, last))  # noqa: S608 - names of our own
        }
        documents = f"SELECT {_DOCUMENT} FROM documents WHERE seq > ? AND seq <= ?"  # noqa: S608 - names of our own
        for seq, *columns in run(documents, (self.after, last)):
            rows[seq] = ("document", columns)
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
            end_user, tags = row[3], row[4]
            said = (
                self._identity(record["id"]),
                record["occurred_at"],
                account.number,
                record.get("end_user"),
                compact_json(record["tags"]) if record.get("tags") else None,
                *found.amounts,
                compact_json(found.more) if found.more else None,
                record.get("response_id"),
                record.get("trace_id"),
            )
            kept = (
                *row[:3],
                None if end_user is None else self._name(connection, end_user),
                None if tags is None else self._tagset(connection, tags),
                *row[5:],
            )
            sound = sound and said == kept
            key = record.get("dedup_key")
            if (
                key is not None
                and not connection.execute("SELECT 1 FROM dedup WHERE key = ? AND seq = ?", (key, seq)).fetchone()
            ):
                self.faults.append(Fault("edited", f"entry {seq}", "Its bill could be recorded a second time."))
        except UNREADABLE:
            sound = False
        if not sound:
            self.faults.append(Fault("edited", f"entry {seq}", "The entry does not match its hash or its columns."))

    def _document(self, _: Rows, seq: int, columns: list[Any]) -> None:
        position, kind, key, series, number, body, stored, kept = columns
        before = self._before
        where = f"{kind} {key}"
        leaf = hashlib.sha256(body.encode()).digest()
        was, now = self._taken_out.get(seq, (leaf.hex(), leaf.hex()))
        sound = self._link(seq, kept or leaf, stored) and ((kept or leaf).hex(), leaf.hex()) == (was, now)
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
                self._numbers[series] = number

    def end(self, connection: Rows) -> list[Fault]:
        """What can be said once all records were seen."""
        run = connection.execute
        found: list[Fault] = []
        if self._wanted is not None and self.after_head is None:
            told = f"The chain does not contain it: this is not the ledger it was.{self.but}"
            found.append(Fault("head", self._wanted, told))
        if self._before is not None and self._before != self.head:
            found.append(Fault("edited", "head", "The last record is not the one the ledger's head names."))
        (beyond,) = run(
            "SELECT count(*) FROM (SELECT seq FROM entries UNION ALL SELECT seq FROM documents) WHERE seq > "
            "(SELECT seq FROM ledger)"
        ).fetchone()
        if beyond:
            found.append(
                Fault("edited", "head", f"{counted(beyond, 'record was', 'records were')} added past the chain's head.")
            )
        return found

    @staticmethod
    def _name(connection: Rows, number: int) -> str:
        (digest,) = connection.execute("SELECT digest FROM names WHERE id = ?", (number,)).fetchone()
        return str(digest.hex())

    @staticmethod
    def _tagset(connection: Rows, number: int) -> str:
        (body,) = connection.execute("SELECT body FROM tagsets WHERE id = ?", (number,)).fetchone()
        return str(body)


def _archived_sums(connection: Rows, *, archives: ParquetArchives) -> list[Fault]:
    """Compare the sums of all days up to the last that has archived entries with what the archives' manifests say."""
    months, _ = archives.within(connection)
    if not months:
        return []
    names = ("n", *AMOUNTS)
    until = max(month.last_at for month in months) // DAY + 1
    added = ", ".join(f"coalesce(sum({name}), 0)" for name in AMOUNTS)
    live = connection.execute(
        f"SELECT count(*), {added} FROM entries WHERE occurred_at < ? AND seq > ?",  # noqa: S608 - names of our own
        (until * DAY, months[-1].last_seq),
    ).fetchone()
    kept = connection.execute(
        f"SELECT coalesce(sum(n), 0), {added} FROM sums WHERE level = 1 AND slot < ?",  # noqa: S608 - as above
        (until,),
    ).fetchone()
    due = [
        amount + sum(month.entries if name == "n" else month.sums.get(name, 0) for month in months)
        for name, amount in zip(names, live, strict=True)
    ]
    if joined_amounts("sums", kept) == joined_amounts("sums", due):
        return []
    return [Fault("rollup", "archived months", "The sums of their time do not come to what was sealed.")]


def _told(wrong: Sequence[Wrong], level: Level) -> list[Fault]:
    """How many sums of each day, its hours among them, month or week are wrong."""
    count = Counter(slot // 24 if of == Level.HOUR else slot for _, (of, slot, *_), *_ in wrong)
    found: list[Fault] = []
    for slot, number in sorted(count.items()):
        name = label(level, slot)
        said = counted(number, f"sum of {name} is wrong", f"sums of {name} are wrong")
        found.append(Fault("rollup", name, f"{said}; `tokenmeter db rebuild` makes sums anew."))
    return found
