"""PostgreSQL's SQL: where it differs from other engines', and what the ledger's own should be, and is, on the server.

Its functions, triggers and the view should be as the numbered files have them.

The server keeps a function's body as it was written, so that is compared letter by letter. It tells a trigger or a view
in words of its own, which differ between versions in what says nothing: brackets, casts, spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from tokenmeter.stores.engine import Definition, Engine
from tokenmeter.stores.postgres.sessions import ServerRows

_STATEMENT = re.compile(
    r"^CREATE (?:OR REPLACE )?(?:"
    r"FUNCTION (?P<function>\w+)(?P<head>[^$]*)\$\$(?P<body>.*?)\$\$"
    r"|(?P<trigger>TRIGGER (?P<guard>\w+) .*?);$"
    r"|VIEW (?P<view>\w+) AS\n(?P<query>.*?);$"
    r")|^DROP (?P<kind>FUNCTION|TRIGGER|VIEW) (?P<gone>\w+)",
    re.MULTILINE | re.DOTALL,
)
_SAYS_NOTHING = re.compile(r"::\w+|\bfor each statement\b|\belse null\b|\bas\b|[\s()\"]")
#: Rows of several values, which the server compares one by one.
_COMPARED = re.compile(r"\(([^()]+)\)\s+IS DISTINCT FROM \(([^()]+)\)")
#: With whose rights, and on whose search path, a function runs, which is what keeps a writer to what it may do.
_FUNCTIONS = """
SELECT 'function', proname::text, concat(
    CASE WHEN prosecdef THEN 'of its owner: ' END,
    CASE WHEN concat('search_path=', quote_ident(current_schema()), ', pg_temp') = ANY (proconfig) THEN 'here: ' END,
    prosrc
) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prokind = 'f'
"""
#: A partition's own are told as those of the table, so that all of one name have to be the same. One that is not in
#: force, or that a partition lacks, has no definition.
_TRIGGERS = """
SELECT 'trigger', tgname::text, CASE WHEN tgenabled NOT IN ('O', 'A') OR EXISTS (
        SELECT 1 FROM pg_inherits WHERE inhparent = tgrelid
            AND NOT EXISTS (SELECT 1 FROM pg_trigger AS own WHERE own.tgrelid = inhrelid AND own.tgname = t.tgname)
    ) THEN '' WHEN relispartition THEN replace(
        pg_get_triggerdef(t.oid, true), format(' ON %I ', relname), format(' ON %I ', (
            SELECT p.relname FROM pg_inherits JOIN pg_class AS p ON p.oid = inhparent WHERE inhrelid = c.oid
        ))
    ) ELSE pg_get_triggerdef(t.oid, true) END
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
"""
_OTHERS = """
SELECT 'view', viewname::text, definition FROM pg_views WHERE schemaname = current_schema()
UNION ALL
SELECT 'rule', rulename::text, definition FROM pg_rules WHERE schemaname = current_schema()
"""


def made(rows: Any) -> Iterable[Definition]:
    """See `tokenmeter.stores.engine.Engine`."""
    for statement in (_FUNCTIONS, _TRIGGERS, _OTHERS):
        for kind, name, text in rows.execute(statement).fetchall():
            yield Definition(kind, name, text if kind == "function" else _normal(text))


@cache
def declared() -> frozenset[Definition]:
    """See `tokenmeter.stores.engine.Engine`."""
    found: dict[tuple[str, str], str] = {}
    for script in sorted((resources.files("tokenmeter.stores.postgres") / "sql").iterdir(), key=lambda one: one.name):
        for one in _STATEMENT.finditer(script.read_text(encoding="utf-8")):
            if one["gone"]:
                found.pop((one["kind"].lower(), one["gone"]), None)
            elif one["function"]:
                of_owner = "of its owner: " if "SECURITY DEFINER" in one["head"] else ""
                here = "here: " if "SET search_path" in one["head"] else ""
                found["function", one["function"]] = f"{of_owner}{here}{one['body']}"
            elif one["guard"]:
                found["trigger", one["guard"]] = _normal(f"CREATE {one['trigger']}")
            else:
                found["view", one["view"]] = _normal(one["query"])
    return frozenset(Definition(kind, name, text) for (kind, name), text in found.items())


def _normal(text: str) -> str:
    text = _COMPARED.sub(_apart, text)
    return _SAYS_NOTHING.sub("", text.lower()).replace("row", "").rstrip(";")


def _apart(compared: re.Match[str]) -> str:
    pairs = zip(compared[1].split(","), compared[2].split(","), strict=True)
    return " OR ".join(f"{one} IS DISTINCT FROM {other}" for one, other in pairs)


def _cells(_: ServerRows, numbers: Mapping[int, int]) -> str:
    """An array that the account's row points into; it has a number for every row, so that it is looked up at once."""
    most = max(numbers, default=0)
    listed = ",".join(str(numbers.get(account, -1)) for account in range(1, most + 1))
    return f"nullif(('{{{listed}}}'::integer[])[account], -1)"


def _keeps_secret(rows: ServerRows) -> bool:
    return bool(rows.execute("SELECT keeps_secret()").fetchall()[0][0])


ENGINE = Engine(
    slots=(
        "SELECT (value->>0)::integer, (value->>1)::bigint, (value->>2)::bigint "
        "FROM json_array_elements(CAST(? AS json)) AS j (value)"
    ),
    join="JOIN",
    unsought="",
    identity=str,
    cells=_cells,
    largest="{0} DESC",
    member="(body::json->>'{}')",
    room="tokenmeter.stores.postgres",
    columns=(
        "SELECT relname::text, attname::text FROM pg_class AS c JOIN pg_attribute ON attrelid = c.oid "
        "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v') AND attnum > 0 "
        "AND NOT attisdropped"
    ),
    declared=declared,
    made=made,
    keeps_secret=_keeps_secret,
)
