"""A ledger handed over to ClickHouse: the star of tables of `tokenmeter.stores.archive.star`, each entry once.

Entries are loaded in stretches of record numbers whose ends are always the same. What of a stretch is there is asked of
the server, and a stretch that is not whole is loaded again; rows of one number replace each other. So a load that broke
off, was run twice or by two hosts at once ends with every entry once. The tables that entries point at are small, and
written anew each time: a name that was erased in the ledger is erased there as well.
"""

from __future__ import annotations

import base64
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from decimal import Decimal
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode, urlsplit, urlunsplit

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.patience import wait_for
from tokenmeter.stores.archive.places import import_extra
from tokenmeter.stores.base import Store
from tokenmeter.stores.urls import redacted
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

#: Record numbers to a stretch, which is one insert and one block there.
_STRETCH = 250_000
_SECONDS = 600
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEXT, _MAYBE, _FEW = "String", "Nullable(String)", "LowCardinality(Nullable(String))"
_COUNT = "Int64"
#: Columns of the facts, as `tokenmeter.duckdb()` has them, and their types there.
_ENTRIES: Mapping[str, str] = {
    "ledger": "LowCardinality(String)",
    "seq": "UInt64",
    "entry_id": _TEXT,
    "occurred_at": "DateTime64(6, 'UTC')",
    "account": "LowCardinality(String)",
    "end_user": _MAYBE,
    "tags": _FEW,
    "unpriced": "Int8",
    "estimated": "Int8",
    **dict.fromkeys(
        (
            *("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens", "output_tokens"),
            "reasoning_tokens",
        ),
        _COUNT,
    ),
    "other_quantities": _MAYBE,
    **dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), "Nullable(Decimal(38, 12))"),
    "flags": _FEW,
    "latency_us": "Nullable(Int64)",
    "first_token_us": "Nullable(Int64)",
    "response_id": _MAYBE,
    "request_id": _MAYBE,
}
#: Tables that entries point at -> the columns that are their key.
_DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "accounts": ("account",),
    "end_users": ("end_user",),
    "tags": ("tags", "tag"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Outcome of a hand-over to ClickHouse.

    Attributes:
        database: Where the tables are.
        entries: How many entries of the ledger are there now: all of them.
        sent: How many of them were sent this time.
    """

    database: str
    entries: int
    sent: int


class ClickHouse:
    """A server, spoken to by its HTTP interface.

    Args:
        url: See `load_clickhouse`.

    Raises:
        ConfigurationError: it is no such URL.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                f"{redacted(url)!r} is not the URL of ClickHouse's HTTP interface; write https://user@host:8443."
            )
        self._url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", "", ""))
        password = unquote(parts.password or os.environ.get("CLICKHOUSE_PASSWORD", ""))
        who = f"{unquote(parts.username or 'default')}:{password}"
        self._headers = (
            {"Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"} if parts.username or password else {}
        )

    def stranger(self, said: str) -> StoreUnavailableError:
        """What to raise where somebody else answers, or nobody to the end."""
        return StoreUnavailableError(
            f"What answers at {self._url} is not ClickHouse's HTTP interface, or broke off: {said.strip()[:80]!r}. Its "
            "port is 8123, or 8443 with https."
        )

    def __call__(self, statement: str, rows: bytes = b"") -> str:
        """Run a statement, with `rows` behind it where it inserts; what it answers.

        Raises:
            StoreUnavailableError: the server is away, or refuses it.
        """
        if rows:
            whole = {"max_insert_block_size": 2 * _STRETCH, "min_insert_block_size_rows": 2 * _STRETCH}
            url, body = f"{self._url}?{urlencode({'query': statement, **whole})}", rows
        else:
            url, body = self._url, statement.encode()
        request = urllib.request.Request(url, body, self._headers, method="POST")  # noqa: S310 - http(s), see above
        try:
            return wait_for(lambda _: self._ask(request), _SECONDS)
        except HTTPException as error:
            raise self.stranger(f"{type(error).__name__}: {error}") from error
        except (OSError, ValueError) as error:
            raise StoreUnavailableError(f"ClickHouse at {self._url} cannot be reached: {error}") from error

    def _ask(self, request: urllib.request.Request) -> str:
        """What it answers.

        Raises:
            StoreUnavailableError: it refuses.
        """
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310 - http(s), see above
                return str(answer.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                told = error.read(2000).decode("utf-8", "replace").strip().partition("\n")[0]
            raise StoreUnavailableError(f"ClickHouse at {self._url} refuses: {told or error}") from error


@tell_wrong_arguments
def load_clickhouse(
    store: Store, to: str, *, database: str = "tokenmeter", progress: Callable[[int], object] | None = None
) -> Loaded:
    """Hand the ledger, archived months included, over to ClickHouse: every entry once.

    Makes tables ``entries``, ``accounts``, ``end_users`` and ``tags`` and a view ``calls``, the same as `Meter.duckdb`
    has, and sends what is not there yet. Run it as often as you like, from one host or several; several ledgers may
    share the tables. At the end count and sums are compared.

    Args:
        store: The ledger.
        to: ClickHouse's HTTP interface, ``https://user:password@host:8443``; the password may be in the environment
            as ``CLICKHOUSE_PASSWORD``.
        database: Where the tables are, or are made.
        progress: Told now and then how many entries were sent.

    Raises:
        ConfigurationError: not such a URL or name; a missing extra (``archive``).
        StoreUnavailableError: the server is away or refuses; an archived month's file cannot be read.
        LedgerError: what is there afterwards is not what the ledger has.
    """
    run = ClickHouse(to)
    if not _NAME.fullmatch(database):
        raise ConfigurationError(f"{database!r} cannot be the name of a database: letters, digits and _.")
    if (said := run("SELECT 1 FORMAT TSV")) != "1\n":
        raise run.stranger(said)
    with closing(store.archives.connect()) as star:
        ((ledger,),) = star.execute("SELECT ledger FROM ledger").fetchall()
        for statement in _tables(star, database):
            run(statement)
        _replace_dimensions(run, star, database, ledger)
        sent = _send_entries(run, star, database, ledger, progress)
        return Loaded(database, _compare(run, star, database, ledger), sent)


def _replace_dimensions(run: ClickHouse, star: DuckDBPyConnection, database: str, ledger: str) -> None:
    for name in _DIMENSIONS:
        rows = star.sql(f"SELECT '{ledger}' AS ledger, * FROM {name}").to_arrow_table()  # noqa: S608 - names of our own
        if rows.num_rows:
            columns = ", ".join(rows.column_names)
            run(f"INSERT INTO {database}.{name} ({columns}) FORMAT Parquet", _parquet(rows))
            run(f"OPTIMIZE TABLE {database}.{name} FINAL")  # earlier versions, with names that may be erased, go


def _send_entries(
    run: ClickHouse,
    star: DuckDBPyConnection,
    database: str,
    ledger: str,
    progress: Callable[[int], object] | None,
) -> int:
    """Send each stretch that is not whole there; how many entries that were."""
    due = dict(star.execute(f"SELECT seq // {_STRETCH}, count(*) FROM entries GROUP BY 1 ORDER BY 1").fetchall())  # noqa: S608 - a number
    there = _there(run, database, ledger)
    sent = 0
    for stretch in [number for number, count in due.items() if there.get(number) != count]:
        rows = star.sql(
            f"SELECT '{ledger}' AS ledger, * FROM entries "  # noqa: S608 - a digest and numbers
            f"WHERE seq >= {stretch * _STRETCH} AND seq < {(stretch + 1) * _STRETCH} ORDER BY seq"
        ).to_arrow_table()
        run(
            f"INSERT INTO {database}.entries ({', '.join(_ENTRIES)}) FORMAT Parquet",
            _parquet(rows.select(list(_ENTRIES))),
        )
        sent += rows.num_rows
        if progress is not None:
            progress(sent)
    return sent


def _compare(run: ClickHouse, star: DuckDBPyConnection, database: str, ledger: str) -> int:
    """How many entries there are, on both sides.

    Raises:
        LedgerError: the two differ.
    """
    total = ", ".join(f"toString(ifNull(sum({name}), 0))" for name in ("billed_cost", "output_tokens"))
    asked = f"SELECT count(), {total} FROM {database}.entries FINAL WHERE ledger = '{ledger}' FORMAT TSV"  # noqa: S608 - as above
    found = run(asked).split()
    count, *sums = star.execute(
        "SELECT count(*), coalesce(sum(billed_cost), 0), coalesce(sum(output_tokens), 0) FROM entries"
    ).fetchall()[0]
    if int(found[0]) != count or list(map(Decimal, found[1:])) != sums:
        raise LedgerError(
            f"ClickHouse has {found[0]} of this ledger's entries, at {found[1]} in all, the ledger has {count}, at "
            f"{sums[0]}: somebody else wrote to {database}.entries. Drop the table and run this again."
        )
    return int(count)


def _there(run: Callable[..., str], database: str, ledger: str) -> dict[int, int]:
    """Stretch -> how many different entries of it are there."""
    answer = run(
        f"SELECT intDiv(seq, {_STRETCH}), uniqExact(seq) FROM {database}.entries WHERE ledger = '{ledger}' "  # noqa: S608 - names of our own
        "GROUP BY 1 FORMAT TSV"
    )
    return {int(number): int(count) for number, count in (line.split("\t") for line in answer.splitlines())}


def _tables(star: DuckDBPyConnection, database: str) -> Iterator[str]:
    """Statements that make what is not there yet."""
    yield f"CREATE DATABASE IF NOT EXISTS {database}"
    columns = ", ".join(f"{name} {kind}" for name, kind in _ENTRIES.items())
    yield (
        f"CREATE TABLE IF NOT EXISTS {database}.entries ({columns}) ENGINE = ReplacingMergeTree ORDER BY (ledger, seq)"
    )
    for name, key in _DIMENSIONS.items():
        columns = ", ".join(f"{column} {_TEXT if column in key else _FEW}" for column in _columns(star, name))
        yield (
            f"CREATE TABLE IF NOT EXISTS {database}.{name} (ledger LowCardinality(String), {columns}, "
            "loaded_at DateTime64(6, 'UTC') DEFAULT now64(6)) "
            f"ENGINE = ReplacingMergeTree(loaded_at) ORDER BY (ledger, {', '.join(key)})"
        )
    facts = ", ".join(f"e.{name} AS {name}" for name in _ENTRIES if name not in {"account", "end_user"})
    account = ", ".join(f"a.{name} AS {name}" for name in _columns(star, "accounts") if name != "account")
    yield (
        f"CREATE VIEW IF NOT EXISTS {database}.calls AS SELECT {facts}, {account}, u.name AS end_user "  # noqa: S608 - as above
        f"FROM {database}.entries AS e FINAL "
        f"INNER JOIN {database}.accounts AS a FINAL ON a.ledger = e.ledger AND a.account = e.account "
        f"LEFT JOIN {database}.end_users AS u FINAL ON u.ledger = e.ledger AND u.end_user = e.end_user"
    )


def _columns(star: DuckDBPyConnection, table: str) -> Sequence[str]:
    return [one[0] for one in star.execute(f"DESCRIBE {table}").fetchall()]


def _parquet(rows: Any) -> bytes:
    made = io.BytesIO()
    import_extra("pyarrow.parquet").write_table(rows, made, compression="zstd", row_group_size=_STRETCH)
    return made.getvalue()
