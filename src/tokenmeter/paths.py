"""Files as people name them, and the folders that a user has for programs."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Literal

from tokenmeter.errors import ConfigurationError, StoreUnavailableError, reason_of, shown

#: Seconds without a change after which nobody writes to an unfinished file any more.
_ABANDONED = 3600


def expand(named: str | os.PathLike[str]) -> Path:
    """`named` with the home directory in place of ``~`` and ``~user``, where it begins in one.

    Raises:
        ConfigurationError: there is no such directory: a container's user may have none, or nobody has that name.
    """
    path = os.path.expanduser(named)  # noqa: PTH111 - leaves alone what `Path.expanduser` raises RuntimeError for
    if path == "~" or (path.startswith("~") and os.path.dirname(path)):  # noqa: PTH120 - ~draft.db is the name of a file
        raise ConfigurationError(
            f"{shown(str(named))} begins in a home directory that is not known; write the path from the root."
        )
    return Path(path)


def full_path(named: str | os.PathLike[str]) -> Path:
    """As `expand`, from the root of the disk, links followed.

    Raises:
        StoreUnavailableError: it begins at the working directory, and that was removed.
    """
    path = expand(named)
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise StoreUnavailableError(
            f"{shown(str(named))} begins at the working directory, which cannot be reached ({reason_of(error)}); write "
            "the path from the root, such as sqlite:////var/lib/usage.db for a ledger."
        ) from error


def user_folder(kind: Literal["cache", "config", "data", "state"], instead: str) -> Path:
    """Tokenmeter's own folder among the user's.

    Args:
        kind: What is kept there.
        instead: What to do for a user who has none, for the error.

    Raises:
        StoreUnavailableError: the user has no home directory.
    """
    import platformdirs  # noqa: PLC0415 - not needed where every place is named

    try:
        folder = Path(getattr(platformdirs, f"user_{kind}_path")("tokenmeter", appauthor=False))
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # before platformdirs 4.14: ~/.local
        raise StoreUnavailableError(f"This user has no home directory; set HOME, or {instead}.")
    return folder


def find_abandoned(beginning: Path) -> Iterator[Path]:
    """Files whose names begin so, that were to become another one and that nobody has written to for an hour.

    Whoever makes such a file removes it, unless the process is killed.
    """
    for path in beginning.parent.glob(f"{glob.escape(beginning.name)}*"):
        with contextlib.suppress(OSError):  # gone, or in its place, by now
            if path.stat().st_mtime < time.time() - _ABANDONED:
                yield path


def remove_abandoned(beginning: Path) -> None:
    """Remove what `find_abandoned` finds, as far as that is allowed."""
    for path in find_abandoned(beginning):
        with contextlib.suppress(OSError):
            path.unlink()


def hook_folders() -> list[str]:
    """Where PyInstaller finds what it has to know of the package: its entry point names this function."""
    return [str(resources.files("tokenmeter") / "freezing")]
