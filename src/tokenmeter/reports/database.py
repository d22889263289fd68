"""A ledger file for people who ask in SQL: read only, in plain names, money as exact text and as whole numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic_core import from_json, to_json

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.dimensions import KEPT_WHO, REQUESTS_AS, TOOL_OPERATION
from tokenmeter.errors import ConfigurationError, reason_of
from tokenmeter.money import to_dollars
from tokenmeter.stores.base import Store
from tokenmeter.stores.fold import MICRO
from tokenmeter.stores.record import costs_of
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.stores.sqlite.database import sqlite3

if TYPE_CHECKING:
    from sqlite3 import Connection

    from sqlite_utils import Database

_WHO = ", ".join(f"c.{name}" for name in KEPT_WHO)
_ACCOUNT = (
    "c.kind, c.provider, c.endpoint, c.operation, c.model, c.request_model, c.status, c.service_tier, "
    f"{_WHO}, c.api_key"
)
_TOKENS = (
    "x.input AS input_tokens, x.cache_read AS cache_read_tokens, x.cache_write_5m AS cache_write_5m_tokens, "
    "x.cache_write_1h AS cache_write_1h_tokens, x.output AS output_tokens, x.reasoning AS reasoning_tokens"
)


_OF_KIND = " ".join(f"WHEN '{kind}' THEN {number}" for kind, number in REQUESTS_AS.items())
#: As how many requests an entry counts (`tokenmeter.ledger.Entry.requests`).
_REQUESTS = f"CASE WHEN c.operation = '{TOOL_OPERATION}' THEN 0 ELSE CASE c.kind {_OF_KIND} ELSE 0 END END"


def _costs(known: str) -> str:
    """The columns of three costs, as text and as integers: NULL unless `known`, so that sums of them are, too."""
    return ", ".join(
        f"CASE WHEN {known} THEN dollars(x.{name}_micro, x.{name}_pico) END AS {name}_cost, "
        f"CASE WHEN {known} THEN x.{name}_micro END AS {name}_micro, "
        f"CASE WHEN {known} THEN x.{name}_pico END AS {name}_pico"
        for name in ("list", "contracted", "billed")
    )


_ENTRY_COSTS = _costs("x.unpriced = 0 OR json_extract(x.body, '$.list') IS NOT NULL")
#: As `Row.cost_known` has it.
_SUM_COSTS = _costs("x.unpriced = 0 OR (x.list_micro, x.list_pico, x.billed_micro, x.billed_pico) <> (0, 0, 0, 0)")
_NAMED = "coalesce(n.value, 'erased-' || lower(hex(substr(n.digest, 1, 4))))"
#: Views, by name, over a ledger that is open as LEDGER. In a connection that reads one they stand before the tables of
#: the same name, which are `main.entries` and so on.
_VIEWS = {
    "entries": f"""
        SELECT x.seq, json_extract(x.body, '$.id') AS entry_id,
            strftime('%Y-%m-%dT%H:%M:%S', x.occurred_at / 1000000, 'unixepoch')
                || printf('.%06dZ', x.occurred_at % 1000000) AS occurred_at,
            {_ACCOUNT}, CASE WHEN x.end_user IS NOT NULL THEN {_NAMED} END AS end_user, tag_values(t.body) AS tags,
            {_REQUESTS} AS requests, {_TOKENS}, x.more AS other_quantities, {_ENTRY_COSTS}, x.unpriced, x.estimated,
            json_extract(x.body, '$.flags') AS flags, json_extract(x.body, '$.latency_us') AS latency_us,
            json_extract(x.body, '$.response_id') AS response_id, json_extract(x.body, '$.request_id') AS request_id,
            x.trace_id, json_extract(x.body, '$.span_id') AS span_id
        FROM LEDGER.entries AS x JOIN LEDGER.contexts AS c ON c.id = x.account
            LEFT JOIN LEDGER.names AS n ON n.id = x.end_user LEFT JOIN LEDGER.tagsets AS t ON t.id = x.tags
    """,  # noqa: S608 - names of our own
    "charges": """
        SELECT x.seq, json_extract(x.body, '$.id') AS entry_id, json_extract(r.body, '$.model') AS model,
            r.sku_meter AS meter, CAST(json_extract(l.value, '$.quantity') AS TEXT) AS quantity,
            json_extract(r.body, '$.unit') AS unit, json_extract(r.body, '$.list_unit_price') AS list_unit_price,
            cost_of(l.value, 0) AS list_cost, cost_of(l.value, 1) AS contracted_cost,
            cost_of(l.value, 2) AS billed_cost, json_extract(r.body, '$.price_id') AS price_id
        FROM LEDGER.entries AS x JOIN json_each(x.body, '$.charges') AS l
            LEFT JOIN (SELECT lower(hex(digest)) AS name, body, sku_meter FROM LEDGER.rates) AS r
                ON r.name = json_extract(l.value, '$.rate')
    """,
    "accounts": "SELECT * FROM LEDGER.contexts",
    "sums": f"""
        SELECT date(x.slot * 86400, 'unixepoch') AS day, {_ACCOUNT}, x.n AS entries,
            x.n * {_REQUESTS} AS requests, {_TOKENS}, {_SUM_COSTS},
            x.unpriced, x.estimated
        FROM LEDGER.sums AS x JOIN LEDGER.contexts AS c ON c.id = x.account WHERE x.level = 1
    """,  # noqa: S608 - as above
}


@tell_wrong_arguments
def open_database(store: Store, copy_to: str | os.PathLike[str] | None = None) -> Database:
    """The ledger file as a `sqlite_utils.Database` that can only be read. Close it when you are done.

    Views in plain names: ``entries`` (a row per entry of any ``kind``: usage, growth, reversal, correction, adjustment;
    what a reversal takes back is negative, so sums are right over all rows, and ``requests`` adds up to the calls),
    ``charges`` (its lines), ``accounts`` (who, which model, under which terms) and ``sums`` (per account and UTC day).
    ``api_key`` is the name that the ledger knows; reports lay ``api_keys`` of the settings over it.
    ``billed_cost`` and its like are exact decimal text in US dollars; ``billed_micro * 1000000 + billed_pico`` are
    whole picodollars, to be added up in SQL. The function ``dollars(micro, pico)`` makes text of sums:
    ``dollars(sum(billed_micro), sum(billed_pico))``. Entries of archived months are not in the file; ``sums`` has all.

    Args:
        store: The ledger.
        copy_to: A file to write the same into, as tables, for tools that open files themselves (Datasette, the
            ``sqlite-utils`` command, a BI tool). It stands for itself: it has every name in place, not the ledger's
            secret, and no part of it changes when the ledger does. The database is then this file, open to write.

    Raises:
        ConfigurationError: the ledger is not in a file, or there is such a file as `copy_to`.
        StoreUnavailableError: it cannot be read.

    Examples:
        >>> next(tokenmeter.database().query("SELECT count(*) AS n FROM entries"))  # doctest: +SKIP
        {'n': 12}
    """
    from sqlite_utils import Database  # noqa: PLC0415 - never on a call's way

    if not isinstance(store, SQLiteStore):
        raise ConfigurationError(
            f"{store.url} is no file. Ask the server in SQL itself (psql; grant a role with tokenmeter db grant "
            "reader), or use tokenmeter.duckdb()."
        )
    store.pulse()  # what waits in the tail is in the file then
    ledger = f"file:{quote(str(store.path))}?mode=ro"
    if copy_to is not None:
        return Database(_copied(ledger, Path(copy_to)))
    connection = _connect(ledger)
    for name, select in _views(connection, "main").items():
        connection.execute(f"CREATE TEMP VIEW {name} AS {select}")
    connection.execute("PRAGMA query_only = ON")

    class LedgerDatabase(Database):
        """Tells of the views, which stand beside the ledger's own tables and hide those of the same name."""

        def table_names(self, fts4: bool = False, fts5: bool = False) -> list[str]:  # noqa: ARG002 - theirs
            return []

        def view_names(self) -> list[str]:
            return list(_VIEWS)

    readable = LedgerDatabase(connection)
    connection.set_authorizer(_allow)  # which would refuse what the library sets about its connection, too
    return readable


def _connect(url: str) -> Connection:
    return sqlite3.connect(url, uri=True, check_same_thread=False, isolation_level=None)


def _allow(action: int, subject: str | None, detail: str | None, _: str | None, __: str | None) -> int:
    """Whether a part of a query may run: what reads, other than the secret with which keys' fingerprints are made.

    Args:
        action: What it does, one of ``sqlite3.SQLITE_...``.
        subject: The table, or the pragma.
        detail: The column, or the pragma's argument.
        _: Which database the table is of.
        __: Through which view it is read.
    """
    if action == sqlite3.SQLITE_READ:
        return sqlite3.SQLITE_DENY if subject == "secret" and detail else sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_PRAGMA:
        return sqlite3.SQLITE_OK if subject in _DESCRIBING else sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_UPDATE:  # SQLite's own, as it makes json_each; on a person's it refuses that itself
        return sqlite3.SQLITE_OK if subject == "sqlite_master" else sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


_READING = {
    *(sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE),
    *(sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT),
}
#: Pragmas that only tell what there is.
_DESCRIBING = {
    "table_info",
    "table_xinfo",
    "table_list",
    "database_list",
    "index_list",
    "index_info",
    "foreign_key_list",
}


def _views(connection: Connection, ledger: str) -> dict[str, str]:
    """The views over a ledger that is open under this name, and the functions that they use."""
    connection.create_function("dollars", 2, _dollars, deterministic=True)
    connection.create_function("cost_of", 2, _cost_of, deterministic=True)
    connection.create_function("tag_values", 1, _NameTexts(connection, ledger).tags)
    return {name: select.replace("LEDGER.", f"{ledger}.") for name, select in _VIEWS.items()}


def _copied(ledger: str, target: Path) -> Connection:
    """A file with what the views show as tables; nothing of it stays where it cannot be made whole."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # it has names in it
    except FileExistsError:
        raise ConfigurationError(f"{target} exists; name a new file, or remove it.") from None
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written: {reason_of(error)}.") from error
    connection = _connect(f"file:{quote(str(target))}")
    try:
        connection.execute("ATTACH ? AS ledger", (ledger,))
        connection.execute("BEGIN")
        for name, select in _views(connection, "ledger").items():
            connection.execute(f"CREATE TABLE {name} AS {select}")
        for column in ("occurred_at", "member", "entry_id"):
            connection.execute(f"CREATE INDEX entries_by_{column} ON entries ({column})")
        connection.execute("CREATE INDEX charges_by_entry_id ON charges (entry_id)")
        connection.execute("COMMIT")
        connection.execute("DETACH ledger")
    except BaseException:
        connection.close()
        target.unlink()
        raise
    return connection


def _dollars(micro: int | None, pico: int | None) -> str | None:
    return None if micro is None or pico is None else f"{to_dollars(micro * MICRO + pico):f}"


def _cost_of(charge: str, place: int) -> str | None:
    """List, contracted or billed cost of a charge; the one before where it is not named."""
    amount = costs_of(from_json(charge))[place]
    return None if amount is None else f"{to_dollars(amount):f}"


class _NameTexts:
    """Texts of names, as they are asked for."""

    def __init__(self, connection: Connection, ledger: str) -> None:
        self._connection, self._ledger = connection, ledger

    def tags(self, body: str | None) -> str | None:
        """A set of tags as JSON: name -> value."""
        if body is None:
            return None
        values: dict[str, Any] = {}
        for name, digest in from_json(body).items():
            row = self._connection.execute(
                f"SELECT value FROM {self._ledger}.names WHERE digest = ?",  # noqa: S608 - names of our own
                (bytes.fromhex(digest),),
            ).fetchone()
            values[name] = (row and row[0]) or f"erased-{digest[:8]}"
        return to_json(values).decode()
