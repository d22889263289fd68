"""A ledger on a server as one end of a copy: its tables as they are, without the tails of its hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.rows import ServerRows

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
