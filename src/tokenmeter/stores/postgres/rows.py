"""A connection that speaks the shared queries: ``?`` for values, whole numbers for sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import Connection, sql
from psycopg.adapt import Buffer, Loader

from tokenmeter.stores.engine import Engine


class ServerRows:
    """`tokenmeter.stores.engine.Rows` of a connection to the server."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection

    def execute(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        """Run one statement."""
        return self.connection.execute(_translated(statement), values)

    def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Send rows into a table of the session."""
        into = sql.SQL("COPY pg_temp.{} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with self.connection.cursor().copy(into) as stream:
            for row in rows:
                stream.write_row(row)


@lru_cache(maxsize=256)
def _translated(statement: str) -> bytes:
    return statement.replace("%", "%%").replace("?", "%s").encode()


class _WholeNumber(Loader):
    """Every ``numeric`` of the schema is a whole number, and a Decimal would go by the program's own context."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


def read_whole_numbers(connection: Connection[Any]) -> None:
    """Have sums and counters come as integers of any size."""
    connection.adapters.register_loader("numeric", _WholeNumber)


def _cells(_: ServerRows, numbers: Mapping[int, int]) -> str:
    """An array that the account's row points into; it has a number for every row, so that it is looked up at once."""
    most = max(numbers, default=0)
    listed = ",".join(str(numbers.get(account, -1)) for account in range(1, most + 1))
    return f"nullif(('{{{listed}}}'::integer[])[account], -1)"


def _keeps_secret(rows: ServerRows) -> bool:
    return bool(rows.execute("SELECT keeps_secret()").fetchall()[0][0])


ENGINE = Engine(
    slots=(
        "SELECT (value->>0)::integer, (value->>1)::integer, (value->>2)::bigint "
        "FROM json_array_elements(CAST(? AS json)) AS j (value)"
    ),
    join="JOIN",
    identity=str,
    cells=_cells,
    position="strpos",
    member="(body::json->>'{}')::bigint",
    triggers=(
        "SELECT tgname::text FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid "
        "WHERE relnamespace = current_schema()::regnamespace AND tgenabled = 'O' AND NOT tgisinternal "
        "AND NOT relispartition AND NOT EXISTS ("  # a partition that lacks it
        "SELECT 1 FROM pg_inherits WHERE inhparent = tgrelid AND NOT EXISTS (SELECT 1 FROM pg_trigger AS own "
        "WHERE own.tgrelid = inhrelid AND own.tgname = t.tgname AND own.tgenabled = 'O'))"
    ),
    keeps_secret=_keeps_secret,
    guards=frozenset({"entries_stay_whole"}),
)
