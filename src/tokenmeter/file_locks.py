"""Locks between processes on an open file: `flock`, and on Windows a locked byte far behind the end of the file.

Ours, since a lock here belongs to a descriptor that the store holds anyway; `filelock` opens files of its own.
"""

from __future__ import annotations

import os
import time
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Whether there are shared locks, and open files can be renamed and removed: not on Windows.
CAN_SHARE = fcntl is not None
#: Windows keeps others from reading what is locked, so it is a byte that no file has.
_FAR = 1 << 40
_PAUSE_SECONDS = 0.005


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock the open file; the lock is freed by `unlock_file`, when its last descriptor is closed, and by a crash.

    Args:
        descriptor: The file, open for reading and writing.
        shared: Whether others may hold it shared at the same time. Windows has no such lock here: it is exclusive.
        wait: Whether to wait until it is free.

    Returns:
        False when it is not free and `wait` is False.
    """
    if fcntl is None:
        return _lock_byte(descriptor, wait=wait)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock_file(descriptor: int) -> None:
    """Free the lock; does nothing when there is none."""
    if fcntl is None:
        _unlock_byte(descriptor)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock_byte(descriptor: int, *, wait: bool) -> bool:
    msvcrt = _msvcrt()
    while True:
        try:
            _at_far(descriptor, lambda: msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1))
        except OSError:
            if not wait:
                return False
            time.sleep(_PAUSE_SECONDS)
        else:
            return True


def _unlock_byte(descriptor: int) -> None:
    msvcrt = _msvcrt()
    try:
        _at_far(descriptor, lambda: msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1))
    except OSError:  # it was not locked
        return


def _at_far(descriptor: int, act: Any) -> None:
    """Run `act` with the file's position at the byte that stands for the lock."""
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        act()
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def _msvcrt() -> Any:
    import msvcrt  # noqa: PLC0415 - Windows only

    return msvcrt
