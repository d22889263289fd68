"""Checking a ledger: the chain of all records, their columns, what they share, the kept sums, the triggers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from operator import add
from typing import Any

from pydantic_core import from_json

from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.book import ENTRY_COLUMNS, SUM_COLUMNS, SUM_TABLES, sum_rows
from tokenmeter.stores.engine import Engine, Readable, Rows
from tokenmeter.stores.fold import FIRST, NANO, AccountFacts, Batch, advance, entry_row, measured, month_of
from tokenmeter.stores.reading import UNREADABLE
from tokenmeter.stores.record import PERSONAL, Account, digest_of, name_digest
from tokenmeter.stores.sketch import unpacked
from tokenmeter.stores.slots import DAY, Level
from tokenmeter.stores.values import MICRO, from_microseconds

__all__ = ["audit"]

_PAGE = 2000
_NAMES = ", ".join(ENTRY_COLUMNS)
_FIELDS = Account._fields
_DOCUMENT = "seq, position, kind, key, series, number, body, hash"
_TRIGGERS = {
    f"{table}_{what}" for table in ("entries", "documents", "accounts", "rates") for what in ("stay", "stay_unchanged")
}


def audit(
    ledger: Readable,
    *,
    head: str | None = None,
    since: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Verification:
    """Everything that can be checked from the ledger alone. Reads in short transactions; writers go on meanwhile.

    See `tokenmeter.stores.base.Store.verify`.
    """
    read = ledger.read
    faults = read(partial(_rows_shared, engine=ledger.engine))
    walk = _Walk(ledger.engine.identity, head)
    if since is not None and not read(partial(walk.begin_after, head=since)):
        faults.append(Fault("head", since, "Nothing in the chain has this hash; all of it was looked at."))
    while walk.more:
        read(walk.page)
        if progress is not None:
            progress(walk.after, walk.to)
    faults += walk.faults
    faults += read(walk.end)
    day = walk.first_day
    shared = _Shared()
    while day is not None:
        day, found = read(partial(_day, since=day, shared=shared))
        faults += found
    faults += read(_months)
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
    for number, digest, salt, kind, value in run(
        "SELECT id, digest, salt, kind, value FROM names WHERE value IS NOT NULL"
    ):
        if salt is None or name_digest(kind, salt.hex(), value) != digest.hex():
            found.append(Fault("edited", f"names {number}", "A name was changed."))
    if not engine.keeps_secret(connection):
        found.append(Fault("secret", "secret", "The secret was replaced: API keys have other fingerprints since."))
    there = {name for (name,) in run(engine.triggers)}
    found += [
        Fault("trigger", name, "A trigger that keeps records from being changed is gone; somebody removed it.")
        for name in sorted(_TRIGGERS - there)
    ]
    return found


def _is_definition(connection: Rows, digest: bytes, body: str, columns: dict[str, Any]) -> bool:
    if digest_of(body.encode()) != digest.hex():
        return False
    values = from_json(body)
    for name, column in columns.items():
        said = values.get(name)
        if name in PERSONAL and column is not None:
            row = connection.execute("SELECT digest FROM names WHERE id = ?", (column,)).fetchone()
            column = row and row[0].hex()  # noqa: PLW2901 - as the definition says it
        if said != column:
            return False
    return True


class _Walk:
    """Along the chain, page by page. A link is checked against the hash stored before it: one edit, one fault."""

    def __init__(self, identity: Callable[[str], bytes | str], head: str | None) -> None:
        self._identity = identity
        self.faults: list[Fault] = []
        self.entries = 0
        self.more = True
        self.head = FIRST
        self.after = self.to = 0
        self.after_head: int | None = None
        self.first_day: int | None = -1_000_000
        self._wanted = head
        self._begun = False
        self._before: bytes | None = FIRST
        self._positions = 0
        self._numbers: dict[str, int] = {}
        self._shared = _Shared()

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
                self.after, self._before = row[0], digest
                self._positions = run("SELECT count(*) FROM documents WHERE seq <= ?", row).fetchone()[0]
                series = run("SELECT series, max(number) FROM documents WHERE seq <= ? GROUP BY series", row)
                self._numbers = {name: number for name, number in series if name is not None}
                moment = run("SELECT min(occurred_at) FROM entries WHERE seq > ?", row).fetchone()[0]
                self.first_day = None if moment is None else moment // DAY
                if self._wanted == head:
                    self.after_head = 0
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
        self.faults.append(Fault(kind, what, f"{count} {'record is' if count == 1 else 'records are'} gone."))

    def _link(self, body: str, stored: bytes) -> bool:
        before, self._before = self._before, stored
        if self.after_head is not None:
            self.after_head += 1
        elif self._wanted == stored.hex():
            self.after_head = 0
        return before is None or advance(before, body.encode()) == stored

    def _entry(self, connection: Rows, seq: int, columns: list[Any]) -> None:
        self.entries += 1
        *row, body, stored = columns
        sound = self._link(body, stored)
        try:
            record = from_json(body)
            account = self._shared.account(connection, record["account"])
            found = measured(record, account, partial(self._shared.meter, connection))
            derived = entry_row(record, account, found)
            end_user, tags = row[3], row[4]
            said = (
                self._identity(record["id"]),
                derived.occurred_at,
                derived.account,
                derived.end_user,
                derived.tags,
                *derived.amounts,
                derived.more,
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
        position, kind, key, series, number, body, stored = columns
        before = self._before
        where = f"{kind} {key}"
        sound = self._link(body, stored)
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
            found.append(Fault("head", self._wanted, "The chain does not contain it: this is not the ledger it was."))
        if self._before is not None and self._before != self.head:
            found.append(Fault("edited", "head", "The last record is not the one the ledger's head names."))
        (beyond,) = run(
            "SELECT count(*) FROM (SELECT seq FROM entries UNION ALL SELECT seq FROM documents) WHERE seq > "
            "(SELECT seq FROM ledger)"
        ).fetchone()
        if beyond:
            found.append(Fault("edited", "head", f"{beyond} records were added past the chain's head."))
        return found

    @staticmethod
    def _name(connection: Rows, number: int) -> str:
        (digest,) = connection.execute("SELECT digest FROM names WHERE id = ?", (number,)).fetchone()
        return str(digest.hex())

    @staticmethod
    def _tagset(connection: Rows, number: int) -> str:
        (body,) = connection.execute("SELECT body FROM tagsets WHERE id = ?", (number,)).fetchone()
        return str(body)


class _Shared:
    """What a walk has to know of accounts and rates, looked up once."""

    def __init__(self) -> None:
        self._accounts: dict[str, AccountFacts] = {}
        self._rates: dict[str, str] = {}

    def account(self, connection: Rows, digest: str) -> AccountFacts:
        known = self._accounts.get(digest)
        if known is None:
            statement = "SELECT id, kind, cost_source FROM accounts WHERE digest = ?"
            row = connection.execute(statement, (bytes.fromhex(digest),)).fetchone()
            known = self._accounts[digest] = AccountFacts.of(*row)
        return known

    def meter(self, connection: Rows, digest: str) -> str:
        known = self._rates.get(digest)
        if known is None:
            statement = "SELECT sku_meter FROM rates WHERE digest = ?"
            row = connection.execute(statement, (bytes.fromhex(digest),)).fetchone()
            known = self._rates[digest] = row[0] or "unknown"
        return known


def _day(connection: Rows, *, since: int, shared: _Shared) -> tuple[int | None, list[Fault]]:
    """Compare the sums of the first UTC day from `since` on that has any; then where to go on, None at the end."""
    (moment,) = connection.execute(
        "SELECT min(occurred_at) FROM entries WHERE occurred_at >= ?", (since * DAY,)
    ).fetchone()
    (slot,) = connection.execute("SELECT min(slot) FROM sums WHERE level = 1 AND slot >= ?", (since,)).fetchone()
    first = min((day for day in (moment and moment // DAY, slot) if day is not None), default=None)
    if first is None:
        return None, []
    batch = Batch()
    rows = connection.execute(
        "SELECT body FROM entries WHERE occurred_at >= ? AND occurred_at < ?", (first * DAY, (first + 1) * DAY)
    )
    for (body,) in rows:
        try:
            record = from_json(body)
            account = shared.account(connection, record["account"])
            found = measured(record, account, partial(shared.meter, connection))
            batch.count(entry_row(record, account, found), found)
        except UNREADABLE:
            continue  # the walk has told of it
    wrong = 0
    for table, due in sum_rows(batch):
        width = SUM_TABLES[table]
        left = {row[:width]: _joined(table, row[width:]) for row in due if row[0] != Level.MONTH}
        kept = connection.execute(
            f"SELECT {SUM_COLUMNS[table]} FROM {table} "  # noqa: S608 - names of our own
            "WHERE level = 0 AND slot BETWEEN ? AND ? OR level = 1 AND slot = ?",
            (first * 24, first * 24 + 23, first),
        )
        wrong += sum(left.pop(row[:width], None) != _joined(table, row[width:]) for row in kept) + len(left)
    name = f"{from_microseconds(first * DAY):%Y-%m-%d}"
    return first + 1, [Fault("rollup", name, f"{wrong} sums of {name} are wrong.")] if wrong else []


def _months(connection: Rows) -> list[Fault]:
    """Compare the sums of UTC months with those of their days."""
    wrong: dict[int, int] = defaultdict(int)
    for table, width in SUM_TABLES.items():
        due: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for row in connection.execute(f"SELECT {SUM_COLUMNS[table]} FROM {table} WHERE level = 1"):  # noqa: S608 - names of our own
            key = (2, month_of(row[1]), *row[2:width])
            amounts = _joined(table, row[width:])
            due[key] = tuple(map(add, due[key], amounts)) if key in due else amounts
        for row in connection.execute(f"SELECT {SUM_COLUMNS[table]} FROM {table} WHERE level = 2"):  # noqa: S608 - as above
            wrong[row[1]] += due.pop(row[:width], None) != _joined(table, row[width:])
        for key in due:
            wrong[key[1]] += 1
    found: list[Fault] = []
    for month, count in sorted(wrong.items()):
        name = f"{month // 12:04}-{month % 12 + 1:02}"
        found += [Fault("rollup", name, f"{count} sums of {name} are wrong.")] if count else []
    return found


def _joined(table: str, amounts: Sequence[Any]) -> tuple[Any, ...]:
    """Amounts with their two parts put together: the lower part of a sum may be larger than that of an entry."""
    if table == "latency_sums":
        first, second = (Counter(dict(unpacked(sketch))) for sketch in (amounts[1], amounts[3]))
        return (amounts[0], first, amounts[2], second, *amounts[4:])
    if table == "rare_sums":
        return (amounts[0] * NANO + amounts[1],)
    head, costs = amounts[:-6], amounts[-6:]
    if table == "meter_sums":
        head = (*head[:4], head[4] * NANO + head[5])
    return (*head, *(costs[index] * MICRO + costs[index + 1] for index in (0, 2, 4)))
