"""The book in an SQLite file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakMethod

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.stores.base import Counter
from tokenmeter.stores.book import (
    ENTRY_COLUMNS,
    LATENCIES,
    Folding,
    FoldingBook,
    RepeatedError,
)
from tokenmeter.stores.definitions import PERSONAL, Account
from tokenmeter.stores.direct import Transaction
from tokenmeter.stores.documents import MOVED, told_of_move
from tokenmeter.stores.effects import Standing
from tokenmeter.stores.encoding import compact_json, digest_of, note_usage
from tokenmeter.stores.engine import Engine, look_up
from tokenmeter.stores.fold import AMOUNTS, METER_AMOUNTS, identity_column, stretches_of, sum_rows
from tokenmeter.stores.sketch import joined
from tokenmeter.stores.sqlite.database import Database, sqlite3
from tokenmeter.stores.sqlite.schema import check_version, declared, made, migrate, refuse_stranger
from tokenmeter.stores.tail import owner_of, segment_path, segments
from tokenmeter.stores.trouble import Trouble

if TYPE_CHECKING:
    from sqlite3 import Connection

T = TypeVar("T")

#: Entries that are dropped in one transaction: few enough that nobody waits long for it.
_AT_ONCE = 2_000
#: Seconds that a fold waits for the file while something is wrong with it, and what can be done without always.
_IMPATIENT = 0.05  # seconds, not money


def _insert(table: str, columns: Sequence[str], *, key: Sequence[str] = ()) -> str:
    """An insertion; with a key, amounts are added to the row that is there."""
    places = ", ".join("?" * (len(key) + len(columns)))
    statement = f"INSERT INTO {table} ({', '.join((*key, *columns))}) VALUES ({places})"  # noqa: S608 - names of our own
    if key:
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in columns)
        statement += f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added}"
    return statement


_ADD_ENTRY = _insert("entries", ENTRY_COLUMNS)
_ADD_SUMS = _insert("sums", ("n", *AMOUNTS), key=("level", "slot", "account"))
_ADD_RARE = _insert("rare_sums", ("quantity", "nano"), key=("level", "slot", "account", "sku_meter"))
_ADD_METERS = _insert("meter_sums", METER_AMOUNTS, key=("level", "slot", "account", "sku_meter"))
_ADD_LATENCIES = re.sub(  # sketches are no numbers
    r"(duration|first_token) = \1 \+ excluded\.\1",
    r"\1 = joined(\1, excluded.\1)",
    _insert("latency_sums", LATENCIES, key=("level", "slot", "account")),
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


_ADD = {"sums": _ADD_SUMS, "rare_sums": _ADD_RARE, "meter_sums": _ADD_METERS, "latency_sums": _ADD_LATENCIES}


def _among(connection: Connection, column: str, table: str, values: Sequence[Any]) -> set[Any]:
    """Those of the values that the table has."""
    return {row[0] for row in look_up(connection, f"SELECT {column} FROM {table} WHERE {column} IN", values)}  # noqa: S608 - names of our own


def _cells(connection: Connection, numbers: Mapping[int, int]) -> str:
    connection.create_function("cell", 1, numbers.get, deterministic=True)
    return "cell(account)"


def _keeps_secret(connection: Connection) -> bool:
    (kept,) = connection.execute("SELECT secret_digest FROM ledger").fetchone()
    secret = connection.execute("SELECT value FROM secret").fetchone()
    return secret is not None and hashlib.sha256(secret[0]).digest() == kept


#: SQLite's words.
ENGINE = Engine(
    slots=(
        "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)"
    ),
    join="CROSS JOIN",
    unsought="+",
    identity=identity_column,
    cells=_cells,
    largest="length({0}) DESC, {0} DESC",
    member="json_extract(body, '$.{}')",
    room="tokenmeter.stores.sqlite",
    columns=(
        "SELECT m.name, c.name FROM sqlite_master AS m, pragma_table_info(m.name) AS c WHERE m.type = 'table' "
        "AND m.name NOT LIKE 'sqlite@_%' ESCAPE '@' UNION ALL SELECT name, '' FROM sqlite_master WHERE type = 'view'"
    ),
    declared=declared,
    made=made,
    keeps_secret=_keeps_secret,
)


class SQLiteBook(FoldingBook):
    """One SQLite file as `tokenmeter.stores.effects.Book`. Safe for threads and processes.

    Args:
        path: The file; made if it is missing.
        patience: Seconds a transaction waits for another program.

    Attributes:
        database: The file.
        engine: SQLite's words.

    Raises:
        StoreUnavailableError: the file cannot be used.
        SchemaVersionError: a newer release wrote it.
    """

    engine = ENGINE

    def __init__(self, path: Path, *, patience: float) -> None:  # not money
        comfort = "Nothing is lost: entries wait in the tail, the file beside it."
        super().__init__(path, Trouble("write to the ledger", comfort))
        self.database = Database(
            path, refuse=refuse_stranger, prepare=_preparing(self), check=check_version, patience=patience
        )
        self.path = self.database.path

    def prepare(self, connection: Connection, path: Path) -> None:
        """Make the tables, or bring them to this release, and see that it is still the same ledger."""
        fresh = self.identity or _adopted(path) or os.urandom(16)
        migrate(connection, path, fresh)
        row = connection.execute("SELECT identity FROM ledger").fetchone()
        if row is None:
            raise StoreUnavailableError(
                f"{path} has lost the one row of its table `ledger`: restore a backup (`tokenmeter db restore`)."
            )
        found: bytes = row[0]
        if self.identity and found != self.identity:
            raise StoreUnavailableError(
                f"{path} is another ledger than the one that was open. Put the old one back, or start the program anew."
            )
        self.identity = found
        self.forget()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one read transaction."""
        return self.database.read(work)

    # -- for the journal

    def moved(self) -> str | None:
        """See `tokenmeter.stores.effects.Book`."""
        return self.database.read(_told_of_move)

    def file(self) -> tuple[int, int]:
        """See `tokenmeter.stores.effects.Book`."""
        return self.database.file()

    def stand(self, work: Callable[[Standing], T]) -> T:
        """See `tokenmeter.stores.effects.Book`."""
        return self.database.read(lambda connection: work(_StandingInFile(connection)))

    def find_name(self, kind: str, value: str) -> str | None:
        """See `tokenmeter.stores.effects.Book`."""
        rows = self.fetch("SELECT digest FROM names WHERE kind = ? AND value = ? ORDER BY id LIMIT 1", (kind, value))
        return rows[0][0].hex() if rows else None

    def known(self, entry_ids: Sequence[str], dedup_keys: Sequence[str | None]) -> tuple[set[str], set[str]]:
        """See `tokenmeter.stores.effects.Book`."""
        columns = {identity_column(entry_id): entry_id for entry_id in entry_ids}
        keys = [key for key in dedup_keys if key is not None]

        def work(connection: Connection) -> tuple[set[str], set[str]]:
            found = {columns[one] for one in _among(connection, "entry_id", "entries", list(columns))}
            archives, strangers = self.archives, set[bytes]()
            if archives is not None and archives.has_any(connection):
                found |= {one for one in entry_ids if one not in found and archives.has(connection, one, strangers)}
            return found, _among(connection, "key", "dedup", keys)

        return self.database.read(work)

    # -- for archives

    def let_go(self, last: int, ids: Sequence[tuple[bytes, int, int]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`."""

        def work(connection: Connection) -> bool:
            run = connection.execute
            row = run(
                "SELECT max(seq) FROM (SELECT seq FROM entries WHERE seq <= ? ORDER BY seq LIMIT ?)", (last, _AT_ONCE)
            ).fetchone()
            if row[0] is None:
                return False
            connection.executemany("INSERT OR IGNORE INTO archived_ids VALUES (?, ?, ?)", ids)
            run("UPDATE ledger SET archived_to = ?, archived_hash = (SELECT hash FROM entries WHERE seq = ?)", row * 2)
            run("DELETE FROM entries WHERE seq <= ?", row)
            return bool(row[0] < last)

        return self.database.write(work)

    def take_back(self, gone: int, before: int, head: bytes, rows: Sequence[tuple[int, bytes, bytes]]) -> bool:
        """See `tokenmeter.stores.archive.archives.ArchiveBook`."""

        def work(connection: Connection) -> bool:
            (now,) = connection.execute("SELECT archived_to FROM ledger").fetchone()
            if now != gone:
                return bool(now == before)
            connection.execute("UPDATE ledger SET archived_to = ?, archived_hash = ?", (before, head))
            connection.executemany(_ADD_ENTRY, self.returned(connection, rows))
            return True

        try:
            return self.database.write(work)
        except BaseException:
            self.forget_rows()
            raise

    def alone(self, work: Callable[[Connection], T]) -> T:
        """See `FoldingBook`."""
        return self.database.write(work, patience=_IMPATIENT)

    # -- without a tail

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """See `tokenmeter.stores.direct.DirectBook`."""

        def run(connection: Connection) -> T:
            folding = _FoldToFile(self, careful=True)
            folding.start(connection)
            folding.refuse_moved()
            result = work(_Direct(connection, folding))
            folding.end(connection, dict(folding.places))
            return result

        try:
            return self.database.write(run)
        except BaseException:
            self.forget()
            raise

    def count_changes(self) -> int:
        """See `tokenmeter.stores.direct.DirectBook`."""
        count: int = self.fetch("SELECT count(*) FROM documents WHERE kind IN ('budget', 'erasure')")[0][0]
        return count

    # -- for the fold

    def folding(self, *, careful: bool, refuse: str | None = None) -> Folding:
        """See `FoldingBook`."""
        return _FoldToFile(self, careful=careful, refuse=refuse)

    def write_fold(self, folding: Folding, most: int) -> int:
        """See `FoldingBook`."""
        patience = _IMPATIENT if self.trouble else None
        return self.database.write(lambda connection: folding.run(connection, most), patience=patience)

    def settled_for_good(self) -> bool:
        """See `FoldingBook`."""
        return self.database.checkpoint()

    def find_account(self, connection: Connection, digest: bytes) -> Sequence[Any]:
        """See `FoldingBook`."""
        statement = "SELECT id, kind, cost_source FROM accounts WHERE digest = ?"
        row: Sequence[Any] | None = connection.execute(statement, (digest,)).fetchone()
        if row is None:
            connection.execute("INSERT INTO accounts (digest) VALUES (?)", (digest,))
            row = connection.execute(statement, (digest,)).fetchone()
        return row or ()

    def find_meter(self, connection: Connection, digest: bytes) -> str | None:
        """See `FoldingBook`."""
        row = connection.execute("SELECT sku_meter FROM rates WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            connection.execute("INSERT INTO rates (digest) VALUES (?)", (digest,))
        return str(row[0]) if row and row[0] is not None else None

    def find_row(self, connection: Connection, table: str, key: bytes | str) -> int:
        """See `FoldingBook`."""
        find, make = _ROWS[table]
        connection.execute(make, (key,))
        return int(connection.execute(find, (key,)).fetchone()[0])

    def keep_definition(self, connection: Connection, kind: str, record: bytes, values: Mapping[str, Any]) -> str:
        """See `FoldingBook`."""
        if kind == "name":
            row = (bytes.fromhex(values["digest"]), bytes.fromhex(values["salt"]), values["kind"], values["value"])
            connection.execute(_DEFINE_NAME, row)
            return str(values["digest"])
        digest = digest_of(record)
        if kind == "rate":
            connection.execute(_DEFINE_RATE, (bytes.fromhex(digest), record.decode(), values["sku_meter"]))
            return digest
        fields: list[Any] = [values.get(field) for field in _FIELDS]
        for field in PERSONAL:
            index = _FIELDS.index(field)
            if fields[index] is not None:
                fields[index] = self.name(connection, fields[index])
        connection.execute(_DEFINE_ACCOUNT, (bytes.fromhex(digest), record.decode(), *fields))
        return digest


_ROWS = {
    "names": (
        "SELECT id FROM names WHERE digest = ?",
        "INSERT INTO names (digest, kind) VALUES (?, '') ON CONFLICT DO NOTHING",
    ),
    "tagsets": (
        "SELECT id FROM tagsets WHERE body = ?",
        "INSERT INTO tagsets (body) VALUES (?) ON CONFLICT DO NOTHING",
    ),
}


def _preparing(book: SQLiteBook) -> Callable[[Connection, Path], None]:
    """`book.prepare`, by which its database does not keep the book: the database closes when the book is let go of."""
    found = WeakMethod(book.prepare)

    def prepare(connection: Connection, path: Path) -> None:
        made = found()
        if made is not None:
            made(connection, path)

    return prepare


def _adopted(path: Path) -> bytes | None:
    """Whose the tail beside `path` is: a ledger made anew beside it takes it in."""
    return next((owner for number in segments(path) if (owner := owner_of(segment_path(path, number)))), None)


def refuse_moved(connection: Connection) -> None:
    """Refuse to write to a ledger that went elsewhere.

    Raises:
        StoreUnavailableError: it says where.
    """
    told = _told_of_move(connection)
    if told is not None:
        raise StoreUnavailableError(told)


def _told_of_move(connection: Connection) -> str | None:
    row = connection.execute("SELECT body FROM documents WHERE kind = ?", (MOVED,)).fetchone()
    return None if row is None else told_of_move(row[0])


class _StandingInFile:
    """See `tokenmeter.stores.effects.Standing`."""

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

    def __init__(self, connection: Connection, folding: _FoldToFile) -> None:
        self._connection, self._folding = connection, folding
        self._reserved: dict[CounterKey, int] | None = None

    def put(self, record: bytes, effects: bytes = b"") -> None:
        self._folding.take(self._connection, record, effects)

    def counter(self, key: CounterKey) -> Counter:
        if self._reserved is None:
            self._reserved = {}
            for rows in _StandingInFile(self._connection).holds().values():
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
        return self._folding.book.has(self._connection, entry_id, dedup_key)


class _FoldToFile(Folding):
    """See `Folding`."""

    def begin(self, connection: Connection) -> tuple[int, bytes, dict[int, int]]:
        """See `Folding`."""
        self.moved = _told_of_move(connection)
        seq, digest = connection.execute("SELECT seq, hash FROM ledger").fetchone()
        return seq, digest, dict(connection.execute("SELECT segment, folded FROM places"))

    def put_aside(
        self, connection: Connection, place: tuple[int, int], reason: str, record: bytes, effects: bytes
    ) -> None:
        """See `Folding`."""
        connection.execute("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", (*place, reason, record, effects))

    def end(self, connection: Connection, known: Mapping[int, int]) -> None:
        """See `Folding`."""
        many = connection.executemany
        many(
            "INSERT INTO places VALUES (?, ?) ON CONFLICT (segment) DO UPDATE SET folded = excluded.folded",
            [item for item in self.places.items() if known.get(item[0]) != item[1]],
        )
        if self._rows:
            try:
                many(_ADD_ENTRY, self._rows)
                many("INSERT INTO dedup VALUES (?, ?)", self._dedup.items())
            except sqlite3.IntegrityError as error:
                if self._careful:
                    raise
                raise RepeatedError from error
            connection.execute(
                "UPDATE ledger SET seq = ?, hash = ?, entries = entries + ?", (self._seq, self._hash, len(self._rows))
            )
            connection.create_function("joined", 2, joined, deterministic=True)
            try:
                for table, rows in sum_rows(self._batch):
                    many(_ADD[table], rows)
                if connection.execute("SELECT 1 FROM packed_sums LIMIT 1").fetchone():
                    many("DELETE FROM packed_sums WHERE level = ? AND slot = ?", stretches_of(self._batch))
            except (sqlite3.IntegrityError, OverflowError) as error:
                raise OverflowError("A sum would be more than a ledger can count.") from error
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
        for hold, effects in batch.noted.items():
            row = connection.execute("SELECT body FROM holds WHERE hold_id = ?", (hold,)).fetchone()
            if row is not None:
                body = note_usage(row[0].encode(), effects).decode()
                connection.execute("UPDATE holds SET body = ? WHERE hold_id = ?", (body, hold))
        many("DELETE FROM holds WHERE hold_id = ?", [(hold,) for hold in batch.freed])
