"""A ledger as a star of tables for DuckDB and the tools that speak to it: one of entries, and what they point at.

The live ledger's rows are copied. Its file is never opened by DuckDB: two SQLite libraries in one process drop each
other's locks, and a write can be lost.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.stores.archive.layout import FileWriter, rows_after
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.archive.places import import_extra
from tokenmeter.stores.archive.shape import Shaper
from tokenmeter.stores.archive.shelf import asking_duckdb, open_duckdb
from tokenmeter.stores.engine import SHARED, Readable, Rows
from tokenmeter.stores.fold import TYPED

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_END = (1 << 63) - 1
_COST = (
    "CAST(CAST(coalesce({0}) AS DECIMAL(20, 0)) * CAST(0.000001 AS DECIMAL(7, 6)) "
    "+ CAST(coalesce({1}) AS DECIMAL(20, 0)) * CAST(0.000000000001 AS DECIMAL(13, 12)) AS DECIMAL(38, 12))"
)
#: As JSON, out of the record or its shape, where it stands as it is. What follows it is the provider's own.
_FLAGS = (
    r"""nullif(regexp_extract(split_part(coalesce(shape, body), ',"raw_usage":', 1), ',"flags":(\[[^\]]*\])', 1), '')"""
)
_ORDER = ("billed", "contracted", "list")
_AMOUNTS = {
    name: _COST.format(*(", ".join(f"{one}_{part}" for one in _ORDER[at:]) for part in ("micro", "pico")))
    for at, name in reversed(list(enumerate(_ORDER)))
}
#: NULL where nothing of an entry has a known price, as `Row.cost_known` has it.
_COSTS = ", ".join(
    f"CASE WHEN unpriced <= 0 OR {_AMOUNTS['list']} <> 0 OR {_AMOUNTS['billed']} <> 0 THEN {amount} END AS {name}_cost"
    for name, amount in _AMOUNTS.items()
)
_ENTRIES = f"""
    SELECT seq,
        CASE WHEN counter IS NULL THEN decode(writer) ELSE lower(hex(writer)) || format('{{:012x}}', counter) END
            AS entry_id,
        occurred_at, lower(hex(account)) AS account, lower(hex(end_user)) AS end_user, tags,
        unpriced, estimated, {", ".join(f"{name} AS {name}_tokens" for name in TYPED)}, reasoning AS reasoning_tokens,
        more AS other_quantities, {_COSTS}, {_FLAGS} AS flags,
        latency_us, first_token_us, response_id, request_id
"""
_CALLS = """
    SELECT e.* EXCLUDE (account, end_user, tags), a.* EXCLUDE (account), u.name AS end_user, e.tags
    FROM entries AS e JOIN accounts AS a USING (account) LEFT JOIN end_users AS u USING (end_user)
"""


def open_star(
    book: Readable,
    within: Callable[[Rows], tuple[Sequence[ArchivedMonth], int]],
    path_of: Callable[[ArchivedMonth], Path],
    path: str | os.PathLike[str] | None,
) -> DuckDBPyConnection:
    """See `tokenmeter.Meter.duckdb`.

    Args:
        book: The ledger.
        within: Its months that are in files, and the last record of these.
        path_of: Where on this machine the file of a month is.
        path: Database to make; None = in memory.

    Raises:
        ConfigurationError: there is such a file.
    """
    if path is not None and Path(path).exists():
        raise ConfigurationError(f"{path} exists; name a new file, or remove it.")
    files = dict[Path, ArchivedMonth]()
    with _making(path, files) as connection:
        source = "SELECT * FROM live"
        if archived := _copy_live(connection, book, within, path_of, files):
            source += f" UNION ALL {archived}"
        connection.execute(f"CREATE VIEW entries AS {_ENTRIES} FROM ({source})")
        connection.execute(f"CREATE VIEW calls AS {_CALLS}")
        return connection


@contextmanager
def _making(path: str | os.PathLike[str] | None, files: Mapping[Path, ArchivedMonth]) -> Generator[DuckDBPyConnection]:
    """A new database; of one that fails nothing is left."""
    try:
        with ExitStack() as failed, asking_duckdb("The database cannot be made", files):
            connection = failed.enter_context(closing(open_duckdb(":memory:" if path is None else os.fspath(path))))
            yield connection
            failed.pop_all()
    except BaseException:
        if path is not None:
            Path(path).unlink(missing_ok=True)
        raise


def _copy_live(
    connection: DuckDBPyConnection,
    book: Readable,
    within: Callable[[Rows], tuple[Sequence[ArchivedMonth], int]],
    path_of: Callable[[ArchivedMonth], Path],
    files: dict[Path, ArchivedMonth],
) -> str | None:
    """Copy what is in the live ledger; a query for what is in `files` only, if there is any."""
    with tempfile.TemporaryDirectory(prefix="tokenmeter-duckdb-") as folder:
        live = Path(folder) / "live.parquet"

        def copy(rows: Rows) -> int:
            months, archived_to = within(rows)
            with closing(FileWriter(str(live), Shaper(heads_only=True))) as writer:
                after = 0
                while page := rows_after(rows, after, _END):
                    writer.write([row for row, _ in page])
                    after = page[-1][0].seq
            _dimensions(connection, rows)
            files.update((path_of(one), one) for one in months)
            return archived_to

        archived_to = book.read(copy)
        connection.execute("CREATE TABLE live AS SELECT * FROM read_parquet(?)", [str(live)])
    listed = ", ".join("'" + str(one).replace("'", "''") + "'" for one in files)
    return f"SELECT * FROM read_parquet([{listed}]) WHERE seq <= {archived_to}" if files else None  # noqa: S608 - names of our own


def _dimensions(connection: Any, rows: Rows) -> None:
    erased = "'erased-' || lower(hex(substr(digest, 1, 4)))"
    accounts = rows.execute(
        f"SELECT lower(hex(a.digest)), {', '.join(f'c.{name}' for name in SHARED)} "  # noqa: S608 - names of our own
        "FROM accounts AS a JOIN contexts AS c ON c.id = a.id ORDER BY a.id"
    ).fetchall()
    _table(connection, "accounts", ("account", *SHARED), accounts)
    end_users = rows.execute(
        f"SELECT lower(hex(digest)), coalesce(value, {erased}) FROM names WHERE kind = 'end_user' ORDER BY id"  # noqa: S608 - as above
    ).fetchall()
    _table(connection, "end_users", ("end_user", "name"), end_users)
    values = f"SELECT lower(hex(digest)), coalesce(value, {erased}) FROM names WHERE substr(kind, 1, 4) = 'tag:'"  # noqa: S608 - as above
    named = dict(rows.execute(values).fetchall())
    tags = [
        (body, tag, named.get(digest))
        for (body,) in rows.execute("SELECT body FROM tagsets ORDER BY id").fetchall()
        for tag, digest in json.loads(body).items()
    ]
    _table(connection, "tags", ("tags", "tag", "value"), tags)
    _table(connection, "ledger", ("ledger",), rows.execute("SELECT lower(hex(identity)) FROM ledger").fetchall())


def _table(connection: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    arrow = import_extra("pyarrow")
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays = {column: arrow.array(list(cells), arrow.string()) for column, cells in zip(columns, values, strict=True)}
    connection.register("given", arrow.table(arrays))
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")  # noqa: S608 - names of our own
    connection.unregister("given")
