"""What an open SQLite file has to bear: forks, files that others take away or damage, and what SQLite's errors mean.

SQLite has locks for the whole process (memory, open files). One that another thread holds at the fork is held in the
child for ever: its first call to SQLite would never come back. So a fork waits for what is under way.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import struct
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.processes import around_fork

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
else:  # one SQLite library per process: two would drop each other's locks
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

__all__ = [
    "Forked",
    "OpenFile",
    "ReadUnderWay",
    "ask_at_forks",
    "explained",
    "identity",
    "is_busy",
    "keep_for_ever",
    "sqlite3",
]

log = logging.getLogger("tokenmeter")

#: Seconds a fork waits for what is under way; later the child does with what it inherits.
FORK_PATIENCE = 5.0
_PAUSE_SECONDS = 0.001


class Forked(Protocol):
    """What has to do something before and after a fork."""

    def before_fork(self) -> None:
        """Nothing is read by another thread any more."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin afresh."""


class ReadUnderWay:
    """One read that is under way: a fork by another thread waits for its end, and it waits for a fork's."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def begin(self) -> None:
        """Wait while another thread forks, unless this one is in the middle of a read already."""
        until = time.monotonic() + 2 * FORK_PATIENCE  # more than a fork takes
        is_inner = any(reading.is_of(self._thread) for reading in tuple(_under_way))
        while True:
            _under_way.add(self)  # first said, then looked: the fork does it the other way round
            if is_inner or _forking in {None, self._thread} or time.monotonic() > until:
                return
            self.end()
            time.sleep(_PAUSE_SECONDS)

    def end(self) -> None:
        """Say that it is over; does nothing the second time."""
        _under_way.discard(self)

    def is_of(self, thread: int) -> bool:
        """Whether it is the thread's own."""
        return self._thread == thread


_under_way: set[ReadUnderWay] = set()
#: The thread that forks, if any.
_forking: int | None = None
_asked: weakref.WeakSet[Forked] = weakref.WeakSet()


def ask_at_forks(one: Forked) -> None:
    """Have `one` told of every fork, for as long as somebody else has it."""
    _asked.add(one)


def _before() -> None:
    global _forking  # noqa: PLW0603 - one fork at a time, whichever thread it is
    me = _forking = threading.get_ident()
    until = time.monotonic() + FORK_PATIENCE
    while any(not reading.is_of(me) for reading in tuple(_under_way)) and time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)
    _tell(lambda one: one.before_fork())


def _after_in_parent() -> None:
    global _forking  # noqa: PLW0603 - as above
    _forking = None
    _tell(lambda one: one.after_fork_in_parent())


def _after_in_child() -> None:
    global _forking, _under_way  # noqa: PLW0603 - as above
    _forking, me = None, threading.get_ident()
    _under_way = {reading for reading in tuple(_under_way) if reading.is_of(me)}
    _tell(lambda one: one.after_fork_in_child())


def _tell(act: Callable[[Forked], None]) -> None:
    for one in list(_asked):
        act(one)


around_fork(before=_before, parent=_after_in_parent, child=_after_in_child)

_GONE = (0, 0)
#: Of the log: its header, what comes before each page, and the least page.
_LOG_HEAD, _FRAME_HEAD, _LEAST_PAGE = 32, 24, 512
#: Of the log's index: a piece, and how many pages it is for.
_PIECE, _PIECE_PAGES = 32_768, 4_062
#: In the index, size of a page and how many pages of the log count.
_INDEX = struct.Struct("=14xHI")


def identity(path: str) -> tuple[int, int]:
    """Device and inode; two zeros where nothing is."""
    return _look(path)[0]


def _look(path: str) -> tuple[tuple[int, int], int]:
    """Identity and size."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a string is all there is
    except (FileNotFoundError, NotADirectoryError):
        return _GONE, 0
    return (status.st_dev, status.st_ino), status.st_size


def keep_for_ever(value: object) -> None:
    """Leak `value`: closing an inherited or orphaned connection would take the new file's WAL along."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


class OpenFile:
    """One open connection, and whether the files under its path are still those it has open, and whole.

    Attributes:
        connection: The connection.
        is_cut: Whether somebody cut off the log: pages are gone that the index names. Nothing is written any more.

    Args:
        path: The file.
        connection: It has been used, so that its log is there.
        wal: Whether it has a log.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, *, wal: bool) -> None:
        self.connection, self.is_cut = connection, False
        self._path, self._wal = str(path), wal
        self._log_path, self._index_path = (f"{path}-wal", f"{path}-shm") if wal else (self._path, "")
        self._file = identity(self._path)
        self._log, self._log_size = _look(self._log_path)
        self._index, self._index_size = _look(self._index_path)

    def moved(self) -> bool:
        """Whether a path now names another file than the one this connection has open, or the log was cut off."""
        known = self._log_size  # before the look: another thread may look meanwhile, and the log grows
        log_file, size = _look(self._log_path)
        if log_file != self._log or identity(self._path) != self._file:
            return True
        if self._wal and size < known:
            self.is_cut = self.is_cut or self._lacks_pages(size)
        self._log_size = size
        return self.is_cut

    def is_sound(self) -> bool:
        """Whether it can be used again."""
        with contextlib.suppress(OSError):  # where nobody may look
            return not self.connection.in_transaction and not self.moved()
        return False

    def _lacks_pages(self, size: int) -> bool:
        """Whether the index names more of the log than there is; else SQLite itself has emptied it."""
        with contextlib.suppress(OSError, struct.error):
            # Left open: SQLite's locks on the index go when any descriptor of it is closed.
            index = os.open(self._index_path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            page, pages = _INDEX.unpack(os.pread(index, _INDEX.size, 0))
            page = page & 0xFE00 | (page & 1) << 16
            return bool(pages) and size < _LOG_HEAD + pages * (_FRAME_HEAD + page)
        return True

    def renew_index(self) -> None:
        """Give the log's index its length back if somebody cut it off: SQLite, which has it mapped, makes it anew.

        To touch what is gone of a mapping ends the process. Needs the side lock. By the name, since to close a
        descriptor of it would drop SQLite's locks.
        """
        if not self.lacks_index():
            return
        most = _look(self._log_path)[1] // (_FRAME_HEAD + _LEAST_PAGE)  # of pages that the index may have had
        os.truncate(self._index_path, 0)  # what is left of it names no page any more
        os.truncate(self._index_path, max(self._index_size, (most // _PIECE_PAGES + 1) * _PIECE))
        log.error("%s was emptied or cut off while it was in use; it is made anew from the log", self._index_path)

    def lacks_index(self) -> bool:
        """Whether a part of the log's index is gone."""
        if not self._wal:
            return False
        file, size = _look(self._index_path)
        if file != self._index or file == _GONE:
            return False
        if size < self._index_size:
            return True
        self._index_size = size
        return False

    def let_go(self) -> None:
        """Close the connection if that is safe.

        Closing removes the log by its name. When the file was replaced, that would be the log of the new one; when only
        the log is gone, closing folds back what the still open descriptor holds. What is left of a log that was cut off
        would spoil the file.
        """
        safe = False
        with contextlib.suppress(OSError):  # where nobody may look
            gone = identity(self._log_path) == _GONE
            safe = identity(self._path) == self._file and (gone or not self.moved())
        if safe:
            with contextlib.suppress(sqlite3.Error):  # the disk fails: what is in the log stays in the log
                self.connection.close()
        else:
            keep_for_ever(self.connection)


_BUSY_CODES = {5, 6, 15}  # SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
_DAMAGED = (
    "the file is damaged or not an SQLite database. Nothing was written. "
    "Put it aside and restore a backup, or name another file."
)
_TORN = (
    "a part of the ledger is gone: somebody changed it other than with tokenmeter ({0}). Restore a backup "
    "(`tokenmeter db restore`)."
)
_UNWRITABLE = "it cannot be written. Check the permissions of the file and its directory, or name another file."
_ADVICE = {
    "disk is full": "the disk is full. Nothing was written; free some space.",
    "not a database": _DAMAGED,
    "malformed": _DAMAGED,
    "readonly": _UNWRITABLE,
    "unable to open": _UNWRITABLE,
    "disk I/O": (
        "the disk fails, or the file was emptied or cut off. If the disk is sound, restore a backup "
        "(`tokenmeter db restore`)."
    ),
    "no such table": _TORN,
    "no such column": _TORN,
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether trying again helps: somebody else has the lock."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "locked" in str(error) or "busy" in str(error)
    return code & 0xFF in _BUSY_CODES


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _PAGES_AT_ONCE
    except OSError:
        return False


#: Bytes by which SQLite's shared memory grows.
_PAGES_AT_ONCE = 32_768


def explained(path: Path, error: sqlite3.Error) -> StoreUnavailableError:
    """What SQLite's `error` means for the ledger at `path`."""
    text = str(error)
    if "disk I/O" in text and _is_full(path):  # what SQLite says where there is no room for its shared memory
        text = "disk is full"
    advice = next((advice for sign, advice in _ADVICE.items() if sign in text), "SQLite failed: {0}.")
    return StoreUnavailableError(f"{path}: {advice.format(text)}")
