"""Texts that people give and the ledger keeps: names of accounts, who did something, and why."""

from __future__ import annotations

import difflib
import getpass
import unicodedata
from collections.abc import Iterable

from tokenmeter.errors import ConfigurationError, shown

#: Most characters of a name.
MAX_TEXT = 512


def check_text(value: object, name: str) -> None:
    """Refuse, as a ConfigurationError that begins with `name`, what is no text that an account may be called by."""
    if not isinstance(value, str) or not value or len(value) > MAX_TEXT:
        raise ConfigurationError(
            f"{name} must be a non-empty text of at most {MAX_TEXT} characters, not {shown(value)}; "
            "leave it out (None) when it is unknown."
        )
    # Lone surrogates cannot be stored as UTF-8, control characters break tables and exports.
    if not value.isprintable() and any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
        raise ConfigurationError(f"{name} must not contain control characters: {shown(value)}.")


def suggest(name: object, known: Iterable[str]) -> str:
    """`` Did you mean 'member'?``, to end a message that refuses `name`; empty where none of `known` is near."""
    near = difflib.get_close_matches(str(name)[:MAX_TEXT].lower(), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def acting(by: str | None) -> str:
    """Who does something, for the ledger's history: `by`, else the user of the system.

    Raises:
        ConfigurationError: it is no text, or only blanks.
    """
    if by:
        check_text(by, "by")
        if by.isspace():
            raise ConfigurationError("by: say who does it, or leave it out for the user of the system.")
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return "unknown"


def check_reason(reason: object, name: str = "reason") -> None:
    """Refuse, as a ConfigurationError, what cannot stand in the ledger's history as a reason; it may be empty."""
    if not isinstance(reason, str):
        raise ConfigurationError(f"{name} must be a text, not {shown(reason)}.")
    for line in filter(None, reason.replace("\r\n", "\n").split("\n")):  # no other separators: they are no letters
        check_text(line, name)


def require_reason(reason: object, name: str = "reason") -> None:
    """As `check_reason`, and it must say something."""
    check_reason(reason, name)
    if not str(reason).strip():
        raise ConfigurationError(f"{name}: say why, since it stands on the paper trail for ever.")
