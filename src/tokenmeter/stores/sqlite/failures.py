"""SQLite's and the system's errors in words: what happened, what it means for the ledger, what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

from tokenmeter.errors import StoreUnavailableError

if TYPE_CHECKING:
    import sqlite3

_BUSY_CODES = {5, 6, 15}  # SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
_DAMAGED = (
    "the file is damaged or not an SQLite database. Nothing was written. "
    "Put it aside and restore a backup, or name another file."
)
_UNWRITABLE = "it cannot be written. Check the permissions of the file and its directory, or name another file."
_ADVICE = {
    "disk is full": "the disk is full. Nothing was written; free some space.",
    "not a database": _DAMAGED,
    "malformed": _DAMAGED,
    "readonly": _UNWRITABLE,
    "unable to open": _UNWRITABLE,
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether trying again helps: somebody else has the lock."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "locked" in str(error) or "busy" in str(error)
    return code & 0xFF in _BUSY_CODES


def explained(path: Path, error: sqlite3.Error) -> StoreUnavailableError:
    """What SQLite's `error` means for the ledger at `path`."""
    text = str(error)
    advice = next((advice for sign, advice in _ADVICE.items() if sign in text), f"SQLite failed: {text}.")
    return StoreUnavailableError(f"{path}: {advice}")


def unusable(path: Path, error: OSError) -> StoreUnavailableError:
    """Why no ledger can be made at `path`."""
    reason = f"{errno.errorcode.get(error.errno or 0, type(error).__name__)} ({error.strerror})"
    return StoreUnavailableError(
        f"{path} cannot be used: {reason}. Check the permissions of its directory, or name another file in "
        "configure(store=...) or TOKENMETER_STORE."
    )
