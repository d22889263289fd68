"""One open connection to an SQLite ledger, and whether the file under its path is still the one it has open."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from tokenmeter.stores.contexts import CONTEXT_FIELDS, RATE_FIELDS
from tokenmeter.stores.shared import SharedRows

if TYPE_CHECKING:
    import sqlite3
else:  # one SQLite library per process: the one that sqlite-utils takes
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["ReplacedError", "Session", "keep_for_ever", "sqlite3"]

_FILE_GONE = (0, 0)


class ReplacedError(Exception):
    """The file under the path is no longer the one that is open."""


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - on the hot path
    except FileNotFoundError:
        return _FILE_GONE
    return status.st_dev, status.st_ino


def keep_for_ever(value: object) -> None:
    """Leak `value`: closing an inherited or orphaned connection would take the new file's WAL along."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


class Session:
    """One open connection and what is known through it.

    Attributes:
        connection: Autocommit; transactions are begun and ended by `Database`.
        contexts: Rows of that table.
        rates: Rows of that table.
        series: Rows of that table.
        crossings: Thresholds known to be reported.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, *, wal: bool) -> None:
        self.connection = connection
        self.contexts = SharedRows("contexts", CONTEXT_FIELDS)
        self.rates = SharedRows("rates", RATE_FIELDS)
        self.series = SharedRows("series", ("context", "sku_meter", "marks"))
        self.crossings: set[tuple[str, str, int, int]] = set()
        self._path, self._log_path = path, f"{path}-wal" if wal else path
        self._file, self._log = _identity(path), _identity(self._log_path)

    def moved(self) -> bool:
        """Whether the path now names another file than the one this connection has open."""
        return _identity(self._path) != self._file or _identity(self._log_path) != self._log

    def let_go(self) -> None:
        """Close the connection if that is safe.

        Closing removes the log by its name. When the file was replaced, that would be the log of the new one; when only
        the log is gone, closing folds back what the still open descriptor holds.
        """
        if _identity(self._path) == self._file and _identity(self._log_path) in {self._log, _FILE_GONE}:
            self.connection.close()
        else:
            keep_for_ever(self.connection)

    def check_place(self) -> None:
        """Refuse to commit to a file that nobody will ever read again."""
        if self.moved():
            raise ReplacedError

    def committed(self) -> None:
        """Remember what the transaction added."""
        for rows in (self.contexts, self.rates, self.series):
            rows.committed()

    def rolled_back(self) -> None:
        """Forget what the transaction added."""
        for rows in (self.contexts, self.rates, self.series):
            rows.forget()
