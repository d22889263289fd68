"""What was made of archive files and is kept on this machine, in one folder with a bound.

All of it can be had again, so whoever clears the folder takes nothing away. What was not read for the longest time goes
first. What somebody is reading stays; a lock tells so, and on Windows that it is open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Generator
from pathlib import Path

from tokenmeter.errors import ConfigurationError
from tokenmeter.paths import user_folder
from tokenmeter.processes import CAN_SHARE, lock_file

#: Environment variable with the most mebibytes to keep, and the bound without it.
BOUND, _USUAL = "TOKENMETER_ARCHIVE_CACHE_MB", 16_384
_MEBIBYTE, _DAY, _SECOND = 1 << 20, 86_400, 1_000_000_000
#: What was read within so many seconds is not removed for what can do without.
LATELY = 7 * _DAY
#: How names of files begin that are not whole yet; of a process that died they are left behind.
UNFINISHED = ".making-"


def kept_path(name: str) -> Path:
    """Where something made of an archive file is kept on this machine."""
    return user_folder("cache", "XDG_CACHE_HOME to a folder") / "archive" / name


def make_folder() -> Path:
    """The folder of all that is kept, made if need be."""
    folder = kept_path("")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def most_bytes() -> int:
    """How much may be kept.

    Raises:
        ConfigurationError: the environment says something that is no number of mebibytes.
    """
    said = os.environ.get(BOUND, "").strip() or str(_USUAL)
    if not (said.isascii() and said.isdecimal()):
        raise ConfigurationError(f"{BOUND} must be a whole number of mebibytes, such as {_USUAL}, not {said!r}.")
    return int(said) * _MEBIBYTE


def is_private(folder: Path) -> bool:
    """Whether nobody else can put a file there: not into it, nor a folder of his own in its place."""
    if not hasattr(os, "geteuid"):  # Windows keeps each user's files apart by itself
        return True
    folder = folder.resolve()
    others = stat.S_IWGRP | stat.S_IWOTH
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & others:
        return False
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in {0, os.geteuid()} or (status.st_mode & others and not status.st_mode & stat.S_ISVTX):
            return False
    return True


@contextlib.contextmanager
def reading(kept: Path) -> Generator[bool]:
    """Whether a file is there; if so it stays until the end of the block, and counts as read just now."""
    try:
        opened = kept.open("rb")
    except FileNotFoundError:
        yield False
        return
    with opened:
        _lock(opened.fileno(), shared=True)
        with contextlib.suppress(OSError):  # not by the time of change: by that DuckDB tells whether it knows a file
            os.utime(kept, ns=(time.time_ns(), os.fstat(opened.fileno()).st_mtime_ns))
        yield _is_at(opened.fileno(), kept)


def make_room(size: int, *, unread_for: int = 0) -> bool:
    """Remove what was not read for the longest time until there is room for more.

    Args:
        size: How many bytes more.
        unread_for: Remove only what nobody read for so many seconds: `LATELY` for what is kept where there is room.

    Returns:
        Whether there is room now.
    """
    left, now, found = most_bytes() - size, time.time_ns(), list[tuple[int, int, Path]]()
    for one in kept_path("").iterdir():
        with contextlib.suppress(FileNotFoundError):
            status = one.stat()
            if not one.name.startswith("."):
                left -= status.st_size
                found.append((status.st_atime_ns, status.st_size, one))
            elif status.st_mtime_ns < now - _DAY * _SECOND:
                shutil.rmtree(one) if stat.S_ISDIR(status.st_mode) else one.unlink()
    for read_at, freed, one in sorted(found):
        if left >= 0 or read_at > now - unread_for * _SECOND:
            break
        if _remove(one):
            left += freed
    return left >= 0


def _remove(kept: Path) -> bool:
    """Remove a file that nobody reads; whether it is gone."""
    try:
        with kept.open("r+b") as opened:
            if not _lock(opened.fileno(), shared=False) or not _is_at(opened.fileno(), kept):
                return False
            if CAN_SHARE:
                kept.unlink()
        if not CAN_SHARE:  # Windows removes nothing that is open
            kept.unlink()
    except OSError:
        return not kept.exists()
    return True


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock an open file; False where others have it. A file system without locks lets everybody have it."""
    if not CAN_SHARE:
        return True
    try:
        return lock_file(descriptor, shared=shared, wait=shared)
    except OSError:
        return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at a path: it may have been removed before it was locked."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
