"""A ledger file for people who ask in SQL: read only, in plain names, money as exact text and as whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic_core import from_json, to_json

from tokenmeter.dimensions import KEPT_WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import to_dollars
from tokenmeter.stores.base import Store
from tokenmeter.stores.record import costs_of
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.stores.sqlite.database import sqlite3
from tokenmeter.stores.values import MICRO

if TYPE_CHECKING:
    from sqlite3 import Connection

    from sqlite_utils import Database

__all__ = ["open_database"]

_WHO = ", ".join(f"c.{name}" for name in KEPT_WHO)
_ACCOUNT = (
    "c.kind, c.provider, c.endpoint, c.operation, c.model, c.request_model, c.status, c.service_tier, "
    f"{_WHO}, c.api_key"
)
_TOKENS = (
    "x.input AS input_tokens, x.cache_read AS cache_read_tokens, x.cache_write_5m AS cache_write_5m_tokens, "
    "x.cache_write_1h AS cache_write_1h_tokens, x.output AS output_tokens, x.reasoning AS reasoning_tokens"
)
_COSTS = ", ".join(
    f"dollars(x.{name}_micro, x.{name}_pico) AS {name}_cost, x.{name}_micro, x.{name}_pico"
    for name in ("list", "contracted", "billed")
)
_NAMED = "coalesce(n.value, 'erased-' || lower(hex(substr(n.digest, 1, 4))))"
#: Views, by name. In the connection they stand before the tables of the same name, which are `main.entries` and so on.
_VIEWS = {
    "entries": f"""
        SELECT x.seq, json_extract(x.body, '$.id') AS entry_id,
            strftime('%Y-%m-%dT%H:%M:%S', x.occurred_at / 1000000, 'unixepoch')
                || printf('.%06dZ', x.occurred_at % 1000000) AS occurred_at,
            {_ACCOUNT}, CASE WHEN x.end_user IS NOT NULL THEN {_NAMED} END AS end_user, tag_values(t.body) AS tags,
            {_TOKENS}, x.more AS other_quantities, {_COSTS}, x.unpriced, x.estimated,
            json_extract(x.body, '$.latency_us') AS latency_us,
            json_extract(x.body, '$.response_id') AS response_id, json_extract(x.body, '$.request_id') AS request_id,
            x.trace_id, json_extract(x.body, '$.span_id') AS span_id
        FROM main.entries AS x JOIN main.contexts AS c ON c.id = x.account
            LEFT JOIN main.names AS n ON n.id = x.end_user LEFT JOIN main.tagsets AS t ON t.id = x.tags
    """,  # noqa: S608 - names of our own
    "charges": """
        SELECT x.seq, json_extract(x.body, '$.id') AS entry_id, json_extract(r.body, '$.model') AS model,
            r.sku_meter AS meter, CAST(json_extract(l.value, '$.quantity') AS TEXT) AS quantity,
            json_extract(r.body, '$.unit') AS unit, json_extract(r.body, '$.list_unit_price') AS list_unit_price,
            cost_of(l.value, 0) AS list_cost, cost_of(l.value, 1) AS contracted_cost,
            cost_of(l.value, 2) AS billed_cost, json_extract(r.body, '$.price_id') AS price_id
        FROM main.entries AS x JOIN json_each(x.body, '$.charges') AS l
            LEFT JOIN (SELECT lower(hex(digest)) AS name, body, sku_meter FROM main.rates) AS r
                ON r.name = json_extract(l.value, '$.rate')
    """,
    "accounts": "SELECT * FROM main.contexts",
    "sums": f"""
        SELECT date(x.slot * 86400, 'unixepoch') AS day, {_ACCOUNT}, x.n AS entries, {_TOKENS}, {_COSTS}, x.unpriced,
            x.estimated
        FROM main.sums AS x JOIN main.contexts AS c ON c.id = x.account WHERE x.level = 1
    """,  # noqa: S608 - as above
}


def open_database(store: Store) -> Database:
    """The ledger file as a `sqlite_utils.Database` that can only be read. Close it when you are done.

    Views in plain names: ``entries`` (one row per call, correction or adjustment), ``charges`` (its lines),
    ``accounts`` (who, which model, under which terms) and ``sums`` (per account and UTC day). ``billed_cost`` and its
    like are exact decimal text in US dollars; ``billed_micro * 1000000 + billed_pico`` are whole picodollars, to be
    added up in SQL. The function ``dollars(micro, pico)`` makes text of sums: ``dollars(sum(billed_micro),
    sum(billed_pico))``. Entries of archived months are not in the file; ``sums`` has all.

    Args:
        store: The ledger.

    Raises:
        ConfigurationError: it is not in a file.
        StoreUnavailableError: it cannot be read.

    Example:
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
    connection = sqlite3.connect(
        f"file:{quote(str(store.path))}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
    )
    connection.create_function("dollars", 2, _dollars, deterministic=True)
    connection.create_function("cost_of", 2, _cost_of, deterministic=True)
    names = _Names(connection)
    connection.create_function("tag_values", 1, names.tags)
    for name, select in _VIEWS.items():
        connection.execute(f"CREATE TEMP VIEW {name} AS {select}")
    connection.execute("PRAGMA query_only = ON")
    return Database(connection)


def _dollars(micro: int | None, pico: int | None) -> str | None:
    return None if micro is None or pico is None else f"{to_dollars(micro * MICRO + pico):f}"


def _cost_of(charge: str, place: int) -> str | None:
    """List, contracted or billed cost of a charge; the one before where it is not named."""
    amount = costs_of(from_json(charge))[place]
    return None if amount is None else f"{to_dollars(amount):f}"


class _Names:
    """Texts of names, as they are asked for."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def tags(self, body: str | None) -> str | None:
        """A set of tags as JSON: name -> value."""
        if body is None:
            return None
        values: dict[str, Any] = {}
        for name, digest in from_json(body).items():
            row = self._connection.execute(
                "SELECT value FROM main.names WHERE digest = ?", (bytes.fromhex(digest),)
            ).fetchone()
            values[name] = (row and row[0]) or f"erased-{digest[:8]}"
        return to_json(values).decode()
