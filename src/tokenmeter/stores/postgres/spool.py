"""Entries on their way to a server: a local SQLite file that acknowledges them and keeps them until they are stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmeter.errors import StoreError
from tokenmeter.stores.sqlite.database import Database

if TYPE_CHECKING:
    import sqlite3

__all__ = ["OWN_SECONDS", "Backlog", "Spool", "SpooledRecord"]

_PAGE = 4096
#: A writer that died or lost its server leaves its records to the drainer after this many seconds.
OWN_SECONDS = 10
_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS records (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        body TEXT NOT NULL,
        added_at INTEGER NOT NULL,
        due_at INTEGER NOT NULL,
        refused TEXT
    )
    """,
    "CREATE INDEX IF NOT EXISTS records_due ON records (due_at) WHERE refused IS NULL",
    """
    CREATE TABLE IF NOT EXISTS lease (
        id INTEGER PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, until INTEGER NOT NULL
    )
    """,
    "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """One record as it will be sent: its number in the spool and its JSON text."""

    number: int
    body: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is in the spool.

    Attributes:
        records: How many wait.
        refused: How many the server refused for their content; they stay until somebody looks.
        oldest_seconds: Age of the oldest that waits; None when none does.
        reason: Why the last one was refused.
        bytes: Size of the file that they take.
    """

    records: int = 0
    refused: int = 0
    oldest_seconds: int | None = None
    reason: str | None = None
    bytes: int = 0


def _now() -> int:
    return time.time_ns() // 1_000_000


def _used_bytes(connection: sqlite3.Connection) -> int:
    pages, free = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    return int(pages - free) * _PAGE


class Spool:
    """A bounded outbox, shared by all processes of a host. Every method is one short transaction.

    Its writes survive the end of the process, however it ends. The file is made when it is first needed.

    Attributes:
        path: The file.
        most_bytes: How large it may grow; beyond, `add` raises.
        trouble: Why the last record could not be kept; None when it was.
    """

    def __init__(self, path: Path, *, most_bytes: int) -> None:
        self.path = path
        self.most_bytes = most_bytes
        self.trouble: str | None = None
        self._database: Database | None = None
        self._opening = threading.Lock()

    def add(self, body: str, *, due: bool) -> int:
        """Keep a record; its number.

        Args:
            body: The record.
            due: Whether the drainer is to send it at once. Else its writer does, and the drainer takes it only
                `OWN_SECONDS` later.

        Raises:
            StoreUnavailableError: the file is full or cannot be written.
        """

        def work(connection: sqlite3.Connection) -> int:
            now = _now()
            values = (body, now, 0 if due else now + OWN_SECONDS * 1000)
            cursor = connection.execute("INSERT INTO records (body, added_at, due_at) VALUES (?, ?, ?)", values)
            return cursor.lastrowid or 0

        try:
            number = self._open().write(work)
        except StoreError as error:
            self.trouble = str(error)
            raise
        self.trouble = None
        return number

    def remove(self, numbers: Sequence[int]) -> None:
        """Forget records: the server has them."""
        self._change("DELETE FROM records WHERE number = ?", [(number,) for number in numbers])

    def leave(self, numbers: Sequence[int]) -> None:
        """Give records to the drainer at once: their writer cannot send them."""
        self._change("UPDATE records SET due_at = 0 WHERE number = ?", [(number,) for number in numbers])

    def refuse(self, number: int, reason: str) -> None:
        """Put a record aside that the server refuses for its content."""
        self._change("UPDATE records SET refused = ? WHERE number = ?", [(reason, number)])

    def due(self, limit: int) -> list[SpooledRecord]:
        """Records whose writer has left them, oldest first."""

        def work(connection: sqlite3.Connection) -> list[SpooledRecord]:
            rows = connection.execute(
                "SELECT number, body FROM records WHERE refused IS NULL AND due_at <= ? ORDER BY number LIMIT ?",
                (_now(), limit),
            )
            return [SpooledRecord(*row) for row in rows]

        return self._open().read(work)

    def lease(self, holder: str, seconds: int) -> bool:
        """Become (or stay) the one drainer of this spool for some seconds; False when there is another."""

        def work(connection: sqlite3.Connection) -> bool:
            values = (holder, _now() + seconds * 1000, holder, _now())
            cursor = connection.execute(
                "INSERT INTO lease (id, holder, until) VALUES (1, ?, ?) ON CONFLICT (id) DO UPDATE "
                "SET holder = excluded.holder, until = excluded.until WHERE holder = ? OR until < ?",
                values,
            )
            return cursor.rowcount > 0

        return self._open().write(work)

    def end_lease(self, holder: str) -> None:
        """Let another process drain."""
        self._change("UPDATE lease SET until = 0 WHERE holder = ?", [(holder,)])

    def exists(self) -> bool:
        """Whether there is anything to look at; the file is only made when something is kept."""
        return self._database is not None or self.path.exists()

    def backlog(self) -> Backlog:
        """What waits, without making the file when there is none."""
        if not self.exists():
            return Backlog()

        def work(connection: sqlite3.Connection) -> Backlog:
            records, refused, oldest = connection.execute(
                "SELECT count(*) FILTER (WHERE refused IS NULL), count(refused), "
                "min(added_at) FILTER (WHERE refused IS NULL) FROM records"
            ).fetchone()
            last = connection.execute(
                "SELECT refused FROM records WHERE refused IS NOT NULL ORDER BY number DESC LIMIT 1"
            ).fetchone()
            age = None if oldest is None else max(0, _now() - oldest) // 1000
            return Backlog(records, refused, age, last[0] if last else None, _used_bytes(connection))

        return self._open().read(work)

    def note(self, name: str) -> bytes | None:
        """A remembered value, or None."""
        if not self.exists():
            return None

        def work(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            return row[0] if row else None

        return self._open().read(work)

    def remember(self, name: str, value: bytes) -> None:
        """Keep a value for times when the server is away."""
        self._change("INSERT OR REPLACE INTO notes (name, value) VALUES (?, ?)", [(name, value)])

    def close(self) -> None:
        """Close the file; using the spool again opens it again."""
        if self._database is not None:
            self._database.close()

    def after_fork_in_child(self) -> None:
        """Trust no inherited lock."""
        self._opening = threading.Lock()

    def _change(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._open().write(lambda connection: connection.executemany(statement, rows) and None)

    def _open(self) -> Database:
        with self._opening:
            if self._database is None:
                self._database = Database(self.path, patience=5.0, prepare=self._prepare)
            return self._database

    def _prepare(self, connection: sqlite3.Connection, _: Path) -> None:
        # The limit belongs to the connection, not to the file.
        connection.execute(f"PRAGMA max_page_count = {max(64, self.most_bytes // _PAGE)}")
        for statement in _TABLES:
            connection.execute(statement)
