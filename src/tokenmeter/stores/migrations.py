"""Bringing an SQLite ledger to this release's schema: numbered .sql files, each applied once, in order."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmeter.errors import SchemaVersionError, StoreUnavailableError

if TYPE_CHECKING:
    import sqlite3

    from sqlite_utils import Database

__all__ = ["SCHEMA_VERSION", "migrate", "queries"]

#: SQLite's ``application_id`` of a ledger: "tmtr".
_APPLICATION_ID = int.from_bytes(b"tmtr")
_FOLDER = resources.files("tokenmeter.stores") / "sql"
_NUMBERED = re.compile(r"(\d{4})_(\S+)\.sql")


@cache
def _migrations() -> dict[int, str]:
    names = [found for item in _FOLDER.iterdir() if (found := _NUMBERED.fullmatch(item.name))]
    return {int(found[1]): found[0] for found in sorted(names, key=lambda found: found[0])}


#: Version that this release reads and writes.
SCHEMA_VERSION = 3


@cache
def queries() -> dict[str, str]:
    """The named statements of queries.sql."""
    text = (_FOLDER / "queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to `SCHEMA_VERSION`. The caller holds the side lock.

    Raises:
        SchemaVersionError: a newer release wrote it.
        StoreUnavailableError: it is somebody else's database.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION and _application(connection) == _APPLICATION_ID:
        return
    if _application(connection) != _APPLICATION_ID and (
        version or connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    ):
        raise StoreUnavailableError(f"{path} is an SQLite database, but not a tokenmeter ledger; name another file.")
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has schema {version}; this tokenmeter knows {SCHEMA_VERSION}. Upgrade it: "
            "pip install --upgrade tokenmeter-sdk. Nothing was changed."
        )
    _apply(connection, version)


def _application(connection: sqlite3.Connection) -> int:
    number: int = connection.execute("PRAGMA application_id").fetchone()[0]
    return number


def _apply(connection: sqlite3.Connection, version: int) -> None:
    # Loaded only here: it takes longer to import than a whole day's calls take to write.
    from sqlite_utils import Database  # noqa: PLC0415 - see above
    from sqlite_utils.migrations import Migrations  # noqa: PLC0415 - see above

    steps = Migrations("tokenmeter")
    for number, name in _migrations().items():
        if number > version:
            steps(name=name)(_step(number, name))
    steps.apply(Database(connection))


def _step(number: int, name: str) -> Callable[[Database], None]:
    def step(db: Database) -> None:
        for statement in _statements((_FOLDER / name).read_text(encoding="utf-8")):
            db.conn.execute(statement)
        db.conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.conn.execute(f"PRAGMA user_version = {number}")

    return step


def _statements(script: str) -> list[str]:
    """A script's statements; a trigger's inner semicolons do not end it."""
    from sqlite3 import complete_statement  # noqa: PLC0415 - only when a schema is made

    result: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if complete_statement(pending):
            result.append(pending.strip())
            pending = ""
    return result
