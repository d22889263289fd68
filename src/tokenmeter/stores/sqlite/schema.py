"""Bringing an SQLite ledger to this release's schema: numbered .sql files, each applied once, in order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from functools import cache
from importlib import resources
from pathlib import Path
from sqlite3 import complete_statement
from typing import Any

from tokenmeter.errors import SchemaVersionError, StoreUnavailableError
from tokenmeter.stores.engine import Definition
from tokenmeter.stores.sqlite.opened import sqlite3

#: SQLite's ``application_id`` of a ledger: "tmtr".
_APPLICATION_ID = int.from_bytes(b"tmtr")
#: Version that this release reads and writes: the number of the last file.
SCHEMA_VERSION = 4
#: The oldest SQLite that the tests were run on.
_OLDEST = (3, 26)


def migrate(connection: sqlite3.Connection, path: Path, identity: bytes) -> None:
    """Bring the file to `SCHEMA_VERSION`. The caller holds the side lock.

    Args:
        connection: Open on the file, in no transaction.
        path: The file, for messages.
        identity: What a new ledger is to be known by, 16 bytes.

    Raises:
        SchemaVersionError: a newer release wrote it.
        StoreUnavailableError: it is somebody else's database.
    """
    refuse_stranger(connection, path)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            _apply(connection, number)
        if not version:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            secret = os.urandom(32)
            digest = hashlib.sha256(secret).digest()
            connection.execute(
                "INSERT INTO ledger (id, identity, seq, hash, entries, documents, secret_digest) "
                "VALUES (1, ?, 0, zeroblob(32), 0, 0, ?)",
                (identity, digest),
            )
            connection.execute("INSERT INTO secret VALUES (1, ?)", (secret,))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def refuse_stranger(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that this release must not touch; only reads. An empty file is to become a ledger.

    Raises:
        SchemaVersionError: a newer release wrote it.
        StoreUnavailableError: it is somebody else's database, or SQLite itself is too old.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise StoreUnavailableError(
            f"This Python has SQLite {sqlite3.sqlite_version}, and a ledger needs {'.'.join(map(str, _OLDEST))} "
            "or later. Take a Python that brings its own (those of python.org and of uv do), or a ledger on PostgreSQL."
        )
    if connection.execute("PRAGMA user_version").fetchone()[0] or not _is_empty(connection):
        _check_owner(connection, path)
    check_version(connection, path)


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that a newer release has migrated, perhaps a moment ago.

    Raises:
        SchemaVersionError: a newer release wrote it.
    """
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has schema {version}; this tokenmeter knows {SCHEMA_VERSION}. Upgrade it: "
            "pip install --upgrade tokenmeter-sdk. Nothing was changed."
        )


def made(connection: Any) -> list[Definition]:
    """See `tokenmeter.stores.engine.Engine`. Spaces and quotes say nothing: a table that was renamed gets quotes."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger')")
    return [Definition(kind, name, " ".join(text.replace('"', "").split())) for kind, name, text in rows]


@cache
def declared() -> frozenset[Definition]:
    """See `tokenmeter.stores.engine.Engine`: of a ledger that is made for it."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for number in range(1, SCHEMA_VERSION + 1):
            _apply(connection, number)
        return frozenset(made(connection))


def check_file(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not a ledger of this release.

    Raises:
        SchemaVersionError: another release wrote it.
        StoreUnavailableError: it is somebody else's database, or empty.
    """
    _check_owner(connection, path)
    check_version(connection, path)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{path} has schema {version}; this tokenmeter reads {SCHEMA_VERSION}. Open a copy of it once, for example "
            "with tokenmeter doctor --store sqlite:///COPY, which brings it up to date."
        )


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise StoreUnavailableError(f"{path} is an SQLite database, but not a tokenmeter ledger; name another file.")


def _apply(connection: sqlite3.Connection, number: int) -> None:
    folder = resources.files("tokenmeter.stores.sqlite") / "sql"
    (script,) = (item for item in folder.iterdir() if re.fullmatch(rf"{number:04d}_\w+\.sql", item.name))
    pending = ""
    for line in script.read_text(encoding="utf-8").splitlines(keepends=True):
        pending += line
        if complete_statement(pending):  # a trigger's inner semicolons do not end it
            connection.execute(pending)
            pending = ""
    connection.execute(f"PRAGMA user_version = {number}")
