"""The ledger's schema on the server, and its tables as one end of a copy.

The schema is numbered .sql files, each applied once, in order, never taken back.

Migrations only add (tables, columns that may be NULL, functions), so that application versions before and after one
work side by side. A migration that older versions cannot live with says ``-- readable from: N`` in its first line, N
being the number of the first migration that such a version must know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import psycopg
from psycopg import Connection, sql

from tokenmeter.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.sessions import PLAIN, ServerRows
from tokenmeter.values import dataclass

_FOLDER = resources.files("tokenmeter.stores.postgres") / "sql"
_NUMBERED = re.compile(r"(\d{4})_(\S+)\.sql")
_READABLE = re.compile(r"-- readable from: (\d+)")
#: Arbitrary, ours: the advisory lock behind which schemas are changed.
_LOCK = 7_016_996_765_293_437_281

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_versions (
    number integer PRIMARY KEY,
    name text NOT NULL,
    readable_from integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file.

    Attributes:
        number: Its place in the order.
        name: File name, with the release that brought it.
        readable_from: Migration that an application must know to work with the result.
        text: The statements.
    """

    number: int
    name: str
    readable_from: int
    text: str


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the server has.

    Attributes:
        applied: Numbers of the applied migrations, ascending; empty where there is no ledger.
        readable_from: The newest such mark among them.
    """

    applied: tuple[int, ...]
    readable_from: int


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this release, in order."""
    found: list[Migration] = []
    for item in sorted(_FOLDER.iterdir(), key=lambda item: item.name):
        if named := _NUMBERED.fullmatch(item.name):
            text = item.read_text(encoding="utf-8")
            mark = _READABLE.match(text)
            found.append(Migration(int(named[1]), item.name, int(mark[1]) if mark else 1, text))
    return tuple(found)


#: Number of the newest migration of this release.
NEWEST = max(migration.number for migration in migrations())


def state(connection: Connection[Any]) -> ServerState:
    """Which migrations the schema on the search path has."""
    try:
        with connection.transaction():  # a failure must not end a transaction around it
            rows = connection.execute("SELECT number, readable_from FROM schema_versions ORDER BY number").fetchall()
    except psycopg.errors.UndefinedTable:
        return ServerState((), 0)
    return ServerState(tuple(row[0] for row in rows), max((row[1] for row in rows), default=0))


def check(found: ServerState) -> None:
    """Whether this release can work with what the server has.

    Raises:
        SchemaVersionError: the schema is older than this release needs, or too new for it.
    """
    if found.readable_from > NEWEST:
        raise SchemaVersionError(
            f"The ledger needs a tokenmeter that knows schema {found.readable_from}; this one knows {NEWEST}. "
            "Upgrade it: pip install --upgrade tokenmeter-sdk. Nothing was changed."
        )
    if any(migration.number not in found.applied for migration in migrations()):
        have = max(found.applied, default=0)
        raise SchemaVersionError(
            f"The ledger's schema is at {have}, this tokenmeter needs {NEWEST}: let the schema's owner run "
            f"`tokenmeter db {'migrate' if found.applied else 'init'}`."
        )


def apply(connection: Connection[Any], schema: str) -> tuple[str, ...]:
    """Make the schema and apply what is missing, in one transaction behind an advisory lock.

    Args:
        connection: In autocommit mode.
        schema: Its name.

    Returns:
        Names of the migrations that were applied.

    Raises:
        ConfigurationError: the role may not create or change the schema.
    """
    name = sql.Identifier(schema)
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
            connection.execute("SET LOCAL statement_timeout = 0")
            connection.execute(PLAIN)
            _make_schema(connection, schema)
            connection.execute(sql.SQL("SET LOCAL search_path = {}, pg_temp").format(name))
            connection.execute(_VERSIONS)
            applied = state(connection).applied
            done = tuple(_step(connection, step) for step in migrations() if step.number not in applied)
            connection.execute(sql.SQL("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {} FROM PUBLIC").format(name))
            return done
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"This role may not set up the schema {schema!r}: let its owner run `tokenmeter db init` and "
            f"`tokenmeter db grant`. ({str(error).splitlines()[0]})"
        ) from error


def _make_schema(connection: Connection[Any], schema: str) -> None:
    """Make sure that the schema is there and takes tables; else they would go elsewhere on the search path."""
    row = connection.execute(
        "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = %s", [schema]
    ).fetchone()
    if row is None:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    elif not row[0]:
        raise psycopg.errors.InsufficientPrivilege(f"permission denied for schema {schema}")


def _step(connection: Connection[Any], step: Migration) -> str:
    connection.execute(step.text.encode())
    connection.execute(
        "INSERT INTO schema_versions (number, name, readable_from) VALUES (%s, %s, %s)",
        [step.number, step.name, step.readable_from],
    )
    return step.name


T = TypeVar("T")

_KINDS = {"bytea": "bytes", "text": "text", "numeric": "numeric"}
_COLUMNS = """
    SELECT table_name, column_name, data_type FROM information_schema.columns JOIN information_schema.tables
        USING (table_schema, table_name)
    WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' AND column_name <> 'folded_month'
        AND NOT (SELECT relispartition FROM pg_class WHERE oid = format('%I.%I', table_schema, table_name)::regclass)
    ORDER BY table_name, ordinal_position
"""
_IDENTITIES = """
    SELECT table_name FROM information_schema.columns
    WHERE table_schema = current_schema() AND is_identity = 'YES'
"""
#: What calls under way hold, once more, from the holds.
_RESERVED = """
    INSERT INTO counters (budget, scope, window_start, window_end, reserved)
    SELECT (claim->>0) COLLATE "C", (claim->>1) COLLATE "C", (claim->>2)::bigint, max((claim->>3)::bigint),
        sum((claim->>4)::numeric)
    FROM holds, json_array_elements(claims::json) AS claim GROUP BY 1, 2, 3
    ON CONFLICT (budget, scope, window_start) DO UPDATE SET reserved = excluded.reserved
"""
_PAGE = 5000


class PostgresEnd:
    """See `tokenmeter.stores.copying.End`.

    Args:
        book: The ledger.
        fold: Sends what waits on this host.
    """

    def __init__(self, book: PostgresBook, fold: Callable[[], object]) -> None:
        self._book = book
        self.fold = fold
        self._tables: dict[str, dict[str, str]] | None = None

    identity = staticmethod(str)

    def read(self, work: Callable[[Any], T]) -> T:
        """See `tokenmeter.stores.copying.End`."""
        return self._book.read(work)

    def write(self, work: Callable[[Any], T]) -> T:
        """See `tokenmeter.stores.copying.End`."""

        def locked(rows: ServerRows) -> T:
            rows.execute("SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)")
            rows.execute("SET LOCAL statement_timeout = 0")
            rows.execute("SELECT make_partition()")
            return work(rows)

        try:
            return self._book.run(locked, scope="transaction")
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                raise ConfigurationError(
                    "Only the ledger's owner may copy into it or rebuild it: name the schema's owner in the URL."
                ) from error
            raise

    def tables(self, connection: ServerRows) -> Mapping[str, Mapping[str, str]]:
        """See `tokenmeter.stores.copying.End`."""
        if self._tables is None:
            found: dict[str, dict[str, str]] = {}
            for table, column, kind in connection.execute(_COLUMNS).fetchall():
                found.setdefault(table, {})[column] = _KINDS.get(kind, "integer")
            self._tables = found
        return self._tables

    def stream(self, connection: ServerRows, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """See `tokenmeter.stores.copying.End`."""
        with connection.connection.cursor(name="tokenmeter_copy") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(statement.replace("%", "%%").replace("?", "%s").encode(), values)
            yield from cursor

    def put(self, connection: ServerRows, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """See `tokenmeter.stores.copying.End`."""
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with connection.connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def finish(self, connection: ServerRows) -> None:
        """See `tokenmeter.stores.copying.End`: where numbering goes on, and what is reserved."""
        for (table,) in connection.execute(_IDENTITIES).fetchall():
            connection.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), greatest(max(id), 1), max(id) IS NOT NULL) "  # noqa: S608 - names of our own
                f"FROM {table}"
            )
        connection.execute("DELETE FROM leases")
        connection.execute("DELETE FROM lessees")
        connection.execute("UPDATE counters SET reserved = 0 WHERE reserved <> 0")
        connection.execute(_RESERVED)
