"""The ledger in a file: SQLite, for one machine.

That in memory is one, too: in a folder that goes with its process, or with the next one that makes such a ledger.
Beside each folder lies a file of its name that its process keeps locked. A process that was killed, or left by
`os._exit` (a worker of multiprocessing does), removes nothing; its lock is free, and by that others know.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from tokenmeter.processes import lock_file
from tokenmeter.stores.sqlite.store import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore"]

_PREFIX, _SUFFIX = "tokenmeter-", ".alive"


class MemoryStore(SQLiteStore):
    """A ledger for tests and trials, in a folder of its own that goes with the process: in memory where there is room.

    Examples:
        >>> MemoryStore().counters([])
        {}
    """

    def __init__(self) -> None:
        place = _place()
        _sweep(place)
        folder, descriptor = _make_folder(place)
        super().__init__(folder / "ledger.db")
        self.url = "memory:"
        weakref.finalize(self, _leave, folder, descriptor, os.getpid(), self._book.database.close)


def _place() -> Path:
    shared = Path("/dev/shm")  # noqa: S108 - memory, where the system has such a place
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _make_folder(place: Path) -> tuple[Path, int]:
    """A new folder in `place`, and the open file whose lock says that it is in use."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=place)
        # Another process may have swept it away before it was locked.
        if lock_file(descriptor, wait=False) and Path(name).exists():
            folder = Path(name.removesuffix(_SUFFIX))
            folder.mkdir(mode=0o700)
            return folder, descriptor
        os.close(descriptor)


def _leave(folder: Path, descriptor: int, owner: int, close: Callable[[], None]) -> None:
    if os.getpid() != owner:  # a forked child leaves it to its parent
        return
    close()  # before its files are gone: what is gone is not closed, since another may have come in its place
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.close(descriptor)
        folder.with_name(folder.name + _SUFFIX).unlink()  # now that it is closed: Windows removes no open file


def _sweep(place: Path) -> None:
    """Remove what processes of this user left behind that ended without a word."""
    for mark in place.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if hasattr(os, "geteuid") and mark.lstat().st_uid != os.geteuid():
                continue
            descriptor = os.open(mark, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            abandoned = lock_file(descriptor, wait=False)
            if abandoned:
                shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
            os.close(descriptor)
            if abandoned:
                mark.unlink()
