"""A lock between processes on a file of its own, beside the database file and never the database file itself."""

from __future__ import annotations

import os
from pathlib import Path

from tokenmeter.file_locks import lock_file, unlock_file


class SideLock:
    """An advisory `flock`. It belongs to the open file, so a crash of its holder frees it at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free; never waits."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        return lock_file(self._descriptor, wait=False)

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            unlock_file(self._descriptor)

    def close(self) -> None:
        """Let go of the file. In a forked child this leaves the parent's lock alone."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
