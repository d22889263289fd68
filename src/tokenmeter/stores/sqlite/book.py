"""The book in an SQLite file: everything that is folded, and the fold."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import from_json

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.stores.base import Counter
from tokenmeter.stores.direct import Transaction
from tokenmeter.stores.fold import (
    FIRST,
    NANO,
    TYPED,
    AccountFacts,
    Batch,
    advance,
    entry_row,
    identity_column,
    measured,
    month_of,
    split,
)
from tokenmeter.stores.journal import Standing
from tokenmeter.stores.record import PERSONAL, Account, digest_of
from tokenmeter.stores.sqlite.database import Database, sqlite3
from tokenmeter.stores.sqlite.schema import check_version, migrate
from tokenmeter.stores.tail import frames, owner_of, remove_segment, segment_path, segments
from tokenmeter.stores.trouble import Trouble
from tokenmeter.stores.values import compact_json

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["SQLiteBook"]

T = TypeVar("T")

#: Records to a transaction of the fold.
_MOST = 16_384
_MOST_KNOWN = 50_000
#: Seconds a fold waits for the file while something is wrong with it.
_IMPATIENT = 0.05  # seconds, not money

_AMOUNTS = (
    *("unpriced", "estimated", "reasoning"),
    *TYPED,
    *("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico"),
)
_METER_AMOUNTS = (
    *("n", "unpriced", "estimated", "reasoning", "quantity", "nano"),
    *("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico"),
)


def _insert(table: str, columns: Sequence[str], *, key: Sequence[str] = ()) -> str:
    """An insertion; with a key, amounts are added to the row that is there."""
    places = ", ".join("?" * (len(key) + len(columns)))
    statement = f"INSERT INTO {table} ({', '.join((*key, *columns))}) VALUES ({places})"  # noqa: S608 - names of our own
    if key:
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in columns)
        statement += f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    return statement


ENTRY_COLUMNS = ("seq", "entry_id", "occurred_at", "account", "end_user", "tags", *_AMOUNTS, "more", "body", "hash")
_ADD_ENTRY = _insert("entries", ENTRY_COLUMNS)
_ADD_SUMS = _insert("sums", ("n", *_AMOUNTS), key=("level", "slot", "account"))
_ADD_RARE = _insert("rare_sums", ("quantity", "nano"), key=("level", "slot", "account", "sku_meter"))
_ADD_METERS = _insert("meter_sums", _METER_AMOUNTS, key=("level", "slot", "account", "sku_meter"))
_HAS_ENTRY = (
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM entries WHERE entry_id = ?) OR EXISTS (SELECT 1 FROM dedup WHERE key = ?)"
)
_FIELDS = Account._fields
_DEFINE_ACCOUNT = (
    f"INSERT INTO accounts (digest, body, {', '.join(_FIELDS)}) VALUES ({', '.join('?' * (len(_FIELDS) + 2))}) "  # noqa: S608 - names of our own
    f"ON CONFLICT (digest) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in ('body', *_FIELDS))} "
    "WHERE body IS NULL"
)
_DEFINE_RATE = (
    "INSERT INTO rates (digest, body, sku_meter) VALUES (?, ?, ?) ON CONFLICT (digest) DO UPDATE "
    "SET body = excluded.body, sku_meter = excluded.sku_meter WHERE body IS NULL"
)
_DEFINE_NAME = (
    "INSERT INTO names (digest, salt, kind, value) VALUES (?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE "
    "SET salt = excluded.salt, kind = excluded.kind, value = excluded.value WHERE kind = ''"
)


class _RepeatedError(Exception):
    """An entry of the batch is in the ledger already: it has to be looked at one by one."""


class SQLiteBook:
    """One SQLite file as `tokenmeter.stores.journal.Book`. Safe for threads and processes.

    Args:
        path: The file; made if it is missing.
        patience: Seconds a transaction waits for another program.

    Attributes:
        database: The file.
        identity: The ledger's own 16 bytes.
        trouble: What keeps records from being folded, if anything does.
        recount: Called when the fold left out what live counters had counted.

    Raises:
        StoreUnavailableError: the file cannot be used.
        SchemaVersionError: a newer release wrote it.
    """

    def __init__(self, path: Path, *, patience: float) -> None:  # not money
        self.trouble = Trouble("write to the ledger", "Nothing is lost: entries wait in the tail, the file beside it.")
        self.identity = b""
        self.recount: Callable[[], object] = lambda: None
        self._forget()
        self.database = Database(path, prepare=self._prepare, check=check_version, patience=patience)
        self.path = self.database.path

    def _prepare(self, connection: Connection, path: Path) -> None:
        fresh = self.identity or _adopted(path) or os.urandom(16)
        migrate(connection, path, fresh)
        found: bytes = connection.execute("SELECT identity FROM ledger").fetchone()[0]
        if self.identity and found != self.identity:
            raise StoreUnavailableError(
                f"{path} is another ledger than the one that was open. Put the old one back, or start the program anew."
            )
        self.identity = found
        self._forget()

    def _forget(self) -> None:
        """Forget rows that may have been rolled back, or belong to a file that is no longer there."""
        self._accounts: dict[str, AccountFacts] = {}
        self._meters: dict[str, str] = {}
        self._names: dict[str, int] = {}
        self._tagsets: dict[str, int] = {}
        self._reached: dict[int, int] = {}
        self._torn: dict[int, int] = {}

    # -- for the journal

    def file(self) -> tuple[int, int]:
        """See `tokenmeter.stores.journal.Book`."""
        return self.database.file()

    def stand(self, work: Callable[[Standing], T]) -> T:
        """See `tokenmeter.stores.journal.Book`."""
        return self.database.read(lambda connection: work(_Standing(connection)))

    def find_name(self, kind: str, value: str) -> str | None:
        """See `tokenmeter.stores.journal.Book`."""
        rows = self.fetch("SELECT digest FROM names WHERE kind = ? AND value = ? ORDER BY id LIMIT 1", (kind, value))
        return rows[0][0].hex() if rows else None

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        """See `tokenmeter.stores.journal.Book`."""
        return bool(self.fetch(_HAS_ENTRY, (identity_column(entry_id), dedup_key)))

    def known(self, entry_ids: Sequence[str], dedup_keys: Sequence[str | None]) -> set[str]:
        """See `tokenmeter.stores.journal.Book`."""

        def work(connection: Connection) -> set[str]:
            run = connection.execute
            found = {
                entry_id
                for entry_id in entry_ids
                if run("SELECT 1 FROM entries WHERE entry_id = ?", (identity_column(entry_id),)).fetchone()
            }
            return found | {
                key
                for key in dedup_keys
                if key is not None and run("SELECT 1 FROM dedup WHERE key = ?", (key,)).fetchone()
            }

        return self.database.read(work)

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        """See `tokenmeter.stores.journal.Book`."""
        rows = self.fetch("SELECT claims FROM holds WHERE hold_id = ?", (hold_id,))
        return json.loads(rows[0][0]) if rows else None

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Rows of one statement, in a read transaction of its own."""
        return self.database.read(lambda connection: connection.execute(statement, values).fetchall())

    # -- without a tail

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """See `tokenmeter.stores.direct.DirectBook`."""

        def run(connection: Connection) -> T:
            folding = _Folding(self, careful=True)
            folding.begin(connection)
            result = work(_Direct(connection, folding))
            folding.write(connection)
            return result

        try:
            return self.database.write(run)
        except BaseException:
            self._forget()
            raise

    def count_changes(self) -> int:
        """See `tokenmeter.stores.direct.DirectBook`."""
        count: int = self.fetch("SELECT count(*) FROM documents WHERE kind = 'budget'")[0][0]
        return count

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
        """See `tokenmeter.stores.journal.Book`.

        Raises:
            StoreUnavailableError: the file cannot be written; the records wait in the tail.
        """
        moved = 0
        try:
            while self.waiting():
                before = dict(self._reached)
                done = self._fold_some()
                moved += done
                if self._reached == before:
                    self._torn = {number: self._size(number) for number in segments(self.path)}
                    break
                self.trouble.worked()
        except StoreBusyError:
            raise  # asked for in the middle of it: whoever is at it goes on
        except StoreError as error:
            self.trouble.failed(error)
            raise
        if len(self._reached) > 1:
            self._remove_folded()
        return moved

    def _fold_some(self) -> int:
        patience = _IMPATIENT if self.trouble else None
        for most, careful in ((_MOST, False), (_MOST, True)):
            with contextlib.suppress(_RepeatedError, OverflowError):
                return self._fold_with(_Folding(self, careful=careful), most, patience)
        try:
            return self._fold_with(_Folding(self, careful=True), 1, patience)
        except OverflowError as error:  # one record that no sum can take
            return self._fold_with(_Folding(self, careful=True, refuse=str(error)), 1, patience)

    def _fold_with(self, folding: _Folding, most: int, patience: float | None) -> int:  # not money
        try:
            done = self.database.write(lambda connection: folding.run(connection, most), patience=patience)
        except BaseException:
            self._forget()
            raise
        self._reached.update(folding.places)
        if folding.left_out:
            self.recount()
        return done

    def _remove_folded(self) -> None:
        """Remove segments of which everything is in the file for good."""
        reached = dict(self._reached)
        done = {
            number: reached[number]
            for number in segments(self.path)[:-1]
            if number in reached and not any(frames(segment_path(self.path, number), reached[number]))
        }
        with contextlib.suppress(StoreError, OSError):  # next time
            if done and self.database.checkpoint():
                for number, end in done.items():
                    if remove_segment(self.path, number, end):
                        self._reached.pop(number, None)

    # -- rows that others point at; inside a write transaction

    def account(self, connection: Connection, digest: str) -> AccountFacts:
        """An account's row; one that nobody defined yet is kept as unknown."""
        known = self._accounts.get(digest)
        if known is None:
            key = bytes.fromhex(digest)
            statement = "SELECT id, kind, cost_source FROM accounts WHERE digest = ?"
            row = connection.execute(statement, (key,)).fetchone()
            if row is None:
                connection.execute("INSERT INTO accounts (digest) VALUES (?)", (key,))
                row = connection.execute(statement, (key,)).fetchone()
            _make_room(self._accounts)
            known = self._accounts[digest] = AccountFacts.of(*row)
        return known

    def meter(self, connection: Connection, digest: str) -> str:
        """The meter of a rate."""
        known = self._meters.get(digest)
        if known is None:
            row = connection.execute(
                "SELECT sku_meter FROM rates WHERE digest = ?", (bytes.fromhex(digest),)
            ).fetchone()
            if row is None:
                connection.execute("INSERT INTO rates (digest) VALUES (?)", (bytes.fromhex(digest),))
            _make_room(self._meters)
            known = self._meters[digest] = (row and row[0]) or "unknown"
        return known

    def name(self, connection: Connection, digest: str) -> int:
        """A name's row; one that nobody defined yet is kept without its text."""
        known = self._names.get(digest)
        if known is None:
            key = bytes.fromhex(digest)
            connection.execute("INSERT INTO names (digest, kind) VALUES (?, '') ON CONFLICT DO NOTHING", (key,))
            number: int = connection.execute("SELECT id FROM names WHERE digest = ?", (key,)).fetchone()[0]
            _make_room(self._names)
            known = self._names[digest] = number
        return known

    def tagset(self, connection: Connection, body: str) -> int:
        """The row of a set of tags."""
        known = self._tagsets.get(body)
        if known is None:
            connection.execute("INSERT INTO tagsets (body) VALUES (?) ON CONFLICT DO NOTHING", (body,))
            number: int = connection.execute("SELECT id FROM tagsets WHERE body = ?", (body,)).fetchone()[0]
            _make_room(self._tagsets)
            known = self._tagsets[body] = number
        return known

    def define(self, connection: Connection, kind: str, record: bytes, values: Mapping[str, Any]) -> None:
        """Keep a definition; one that is there stays as it is."""
        if kind == "name":
            row = (bytes.fromhex(values["digest"]), bytes.fromhex(values["salt"]), values["kind"], values["value"])
            connection.execute(_DEFINE_NAME, row)
            return
        digest = digest_of(record)
        if kind == "rate":
            connection.execute(_DEFINE_RATE, (bytes.fromhex(digest), record.decode(), values["sku_meter"]))
            self._meters.pop(digest, None)
            return
        fields: list[Any] = [values.get(field) for field in _FIELDS]
        for field in PERSONAL:
            index = _FIELDS.index(field)
            if fields[index] is not None:
                fields[index] = self.name(connection, fields[index])
        connection.execute(_DEFINE_ACCOUNT, (bytes.fromhex(digest), record.decode(), *fields))
        self._accounts.pop(digest, None)


def _make_room(known: dict[str, Any]) -> None:
    if len(known) >= _MOST_KNOWN:
        known.clear()


def _adopted(path: Path) -> bytes | None:
    """Whose the tail beside `path` is: a ledger made anew beside it takes it in."""
    return next((owner for number in segments(path) if (owner := owner_of(segment_path(path, number)))), None)


class _Standing:
    """See `tokenmeter.stores.journal.Standing`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.places: Mapping[int, int] = dict(connection.execute("SELECT segment, folded FROM places"))

    def settled(self, floor: int, also: Collection[CounterKey]) -> dict[CounterKey, int]:
        run = self._connection.execute
        rows = run(
            "SELECT budget, scope, window_start, settled FROM counters WHERE window_end IS NULL OR window_end >= ?",
            (floor,),
        )
        found = {CounterKey(budget, scope, start): int(settled) for budget, scope, start, settled in rows}
        for key in also:
            if key not in found:
                row = run(
                    "SELECT settled FROM counters WHERE budget = ? AND scope = ? AND window_start = ?",
                    (key.budget, key.scope, key.window_start),
                ).fetchone()
                if row:
                    found[key] = int(row[0])
        return found

    def holds(self) -> dict[str, Sequence[Sequence[Any]]]:
        rows = self._connection.execute("SELECT hold_id, claims FROM holds")
        return {hold: json.loads(claims) for hold, claims in rows}


class _Direct:
    """See `tokenmeter.stores.direct.Transaction`."""

    def __init__(self, connection: Connection, folding: _Folding) -> None:
        self._connection, self._folding = connection, folding
        self._reserved: dict[CounterKey, int] | None = None

    def put(self, record: bytes, effects: bytes = b"") -> None:
        self._folding.take(self._connection, record, effects)

    def counter(self, key: CounterKey) -> Counter:
        if self._reserved is None:
            self._reserved = {}
            for rows in _Standing(self._connection).holds().values():
                for budget, scope, start, _, amount, _ in rows:
                    held = CounterKey(budget, scope, start)
                    self._reserved[held] = self._reserved.get(held, 0) + amount
        row = self._connection.execute(
            "SELECT settled FROM counters WHERE budget = ? AND scope = ? AND window_start = ?",
            (key.budget, key.scope, key.window_start),
        ).fetchone()
        return Counter(int(row[0]) if row else 0, self._reserved.get(key, 0))

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        row = self._connection.execute("SELECT claims FROM holds WHERE hold_id = ?", (hold_id,)).fetchone()
        return json.loads(row[0]) if row else None

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        return bool(self._connection.execute(_HAS_ENTRY, (identity_column(entry_id), dedup_key)).fetchone())


class _Folding:
    """One transaction of the fold.

    Args:
        book: Whose.
        careful: Whether every entry is looked up before it is added: one of them may be there already.
        refuse: Why the record that comes first is put aside.

    Attributes:
        places: Segment -> how far it is folded when this is committed.
        left_out: Whether an entry that was there already would have moved counters.
    """

    def __init__(self, book: SQLiteBook, *, careful: bool, refuse: str | None = None) -> None:
        self.places: dict[int, int] = {}
        self.left_out = False
        self._book, self._careful, self._refuse = book, careful, refuse
        self._batch = Batch()
        self._rows: list[tuple[Any, ...]] = []
        self._ids: set[bytes | str] = set()
        self._dedup: dict[str, int] = {}
        self._seq, self._hash = 0, FIRST

    def run(self, connection: Connection, most: int) -> int:
        """Fold up to `most` records; how many."""
        self.begin(connection)
        self.places = dict(connection.execute("SELECT segment, folded FROM places"))
        known = dict(self.places)
        done = 0
        for number, end, record, effects in itertools.islice(self._frames(), most):
            self._take(connection, number, end, record, effects)
            self.places[number] = end
            done += 1
        if not done and known == self.places:
            return 0
        self.write(connection)
        connection.executemany(
            "INSERT INTO places VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET folded = excluded.folded",
            [item for item in self.places.items() if known.get(item[0]) != item[1]],
        )
        return done

    def _frames(self) -> Iterator[tuple[int, int, bytes, bytes]]:
        path, numbers = self._book.path, segments(self._book.path)
        for gone in self.places.keys() - {*numbers, max(self.places, default=0)}:
            del self.places[gone]
        for number in numbers:
            segment = segment_path(path, number)
            if owner_of(segment) not in {self._book.identity, None}:
                self.places[number] = segment.stat().st_size  # another ledger's: see `health`
                continue
            for end, record, effects in frames(segment, self.places.get(number, 0)):
                yield number, end, record, effects

    def _take(self, connection: Connection, number: int, end: int, record: bytes, effects: bytes) -> None:
        try:
            if self._refuse is not None:
                raise ValueError(self._refuse)  # noqa: TRY301 - refused as any other
            self.take(connection, record, effects)
        except (LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            connection.execute(
                "INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", (number, end, str(error), record, effects)
            )

    def take(self, connection: Connection, record: bytes, effects: bytes) -> None:
        """Take in one record."""
        values: dict[str, Any] = from_json(record) if record else {}
        done: Mapping[str, Any] = from_json(effects) if effects else {}
        kind = values.get("record")
        added = self._add(connection, record, values) if kind == "entry" else True
        if kind in {"account", "rate", "name"}:
            self._book.define(connection, kind, record, values)
        if done:
            self._batch.affect(done, record, counted=added)
            self.left_out |= not added and "post" in done

    def _add(self, connection: Connection, record: bytes, values: Mapping[str, Any]) -> bool:
        book = self._book
        account = book.account(connection, values["account"])
        found = measured(values, account, lambda digest: book.meter(connection, digest))
        row = entry_row(values, account, found)
        key: str | None = values.get("dedup_key")
        if self._is_there(connection, row.entry_id, key):
            return False
        end_user = None if row.end_user is None else book.name(connection, row.end_user)
        tags = None if row.tags is None else book.tagset(connection, row.tags)
        named: Mapping[str, str] = values.get("tags") or {}
        for digest in named.values():
            book.name(connection, digest)
        self._batch.count(row, found)
        self._seq += 1
        self._hash = advance(self._hash, record)
        self._ids.add(row.entry_id)
        if key is not None:
            self._dedup[key] = self._seq
        self._rows.append(
            (
                self._seq,
                row.entry_id,
                row.occurred_at,
                row.account,
                end_user,
                tags,
                *row.amounts,
                row.more,
                record.decode(),
                self._hash,
            )
        )
        return True

    def _is_there(self, connection: Connection, entry_id: bytes | str, key: str | None) -> bool:
        if entry_id in self._ids or (key is not None and key in self._dedup):
            return True
        if key is not None and connection.execute("SELECT 1 FROM dedup WHERE key = ?", (key,)).fetchone():
            return True
        return self._careful and bool(
            connection.execute("SELECT 1 FROM entries WHERE entry_id = ?", (entry_id,)).fetchone()
        )

    def begin(self, connection: Connection) -> None:
        """Where the chain stands."""
        run = connection.execute
        self._seq, self._hash = run("SELECT seq, hash FROM ledger").fetchone()

    def write(self, connection: Connection) -> None:
        """Write what was taken in."""
        many = connection.executemany
        if self._rows:
            try:
                many(_ADD_ENTRY, self._rows)
            except sqlite3.IntegrityError as error:
                if self._careful:
                    raise
                raise _RepeatedError from error
            many("INSERT INTO dedup VALUES (?, ?)", self._dedup.items())
            connection.execute(
                "UPDATE ledger SET seq = ?, hash = ?, entries = entries + ?",
                (self._seq, self._hash, len(self._rows)),
            )
            for table, rows in sum_rows(self._batch):
                many(_ADD[table], rows)
        self._write_counters(connection)

    def _write_counters(self, connection: Connection) -> None:
        batch, many = self._batch, connection.executemany
        rows: list[tuple[Any, ...]] = []
        for key, (amount, end) in batch.posts.items():
            place = (key.budget, key.scope, key.window_start)
            row = connection.execute(
                "SELECT settled FROM counters WHERE budget = ? AND scope = ? AND window_start = ?", place
            ).fetchone()
            rows.append((*place, end, str((int(row[0]) if row else 0) + amount)))
        many(
            "INSERT INTO counters VALUES (?, ?, ?, ?, ?) ON CONFLICT (budget, scope, window_start) DO UPDATE "
            "SET settled = excluded.settled, window_end = coalesce(excluded.window_end, window_end)",
            rows,
        )
        many(
            "INSERT OR IGNORE INTO holds VALUES (?, ?, ?, ?)",
            [(hold, end, compact_json(claims), body.decode()) for hold, (end, claims, body) in batch.holds.items()],
        )
        many("UPDATE holds SET expires_at = ? WHERE hold_id = ?", [(end, hold) for hold, end in batch.extended.items()])
        many("DELETE FROM holds WHERE hold_id = ?", [(hold,) for hold in batch.freed])


#: Table of sums -> how many of its columns are the key.
SUM_TABLES = {"sums": 3, "rare_sums": 4, "meter_sums": 4}
_ADD = {"sums": _ADD_SUMS, "rare_sums": _ADD_RARE, "meter_sums": _ADD_METERS}


def sum_rows(batch: Batch) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """What a batch gathered as rows of the tables of sums: of hours, days and months."""
    sums: dict[tuple[int, int, int], list[int]] = {}
    for (hour, account), amounts in batch.sums.items():
        for level, slot in ((0, hour), (1, hour // 24), (2, month_of(hour // 24))):
            _add(sums, (level, slot, account), amounts)
    yield (
        "sums",
        [(*key, *amounts[:-3], *itertools.chain(*map(split, amounts[-3:]))) for key, amounts in sums.items()],
    )
    rare: dict[tuple[int, int, int, str], list[int]] = {}
    for (hour, account, meter), nano in batch.rare.items():
        for level, slot in ((0, hour), (1, hour // 24), (2, month_of(hour // 24))):
            _add(rare, (level, slot, account, meter), [nano])
    yield "rare_sums", [(*key, *divmod(nano[0], NANO)) for key, nano in rare.items()]
    meters: dict[tuple[int, int, int, str], list[int]] = {}
    for (day, account, meter), amounts in batch.meters.items():
        for level, slot in ((1, day), (2, month_of(day))):
            _add(meters, (level, slot, account, meter), amounts)
    yield (
        "meter_sums",
        [
            (*key, *amounts[:4], *divmod(amounts[4], NANO), *itertools.chain(*map(split, amounts[5:])))
            for key, amounts in meters.items()
        ],
    )


def _add(totals: dict[Any, list[int]], key: object, amounts: Sequence[int]) -> None:
    total = totals.get(key)
    totals[key] = list(amounts) if total is None else [x + y for x, y in zip(total, amounts, strict=True)]
