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


def check_name(value: object, name: str) -> None:
    """As `check_text`, for what somebody gives: it must have a letter that can be seen. Ledgers may hold others."""
    check_text(value, name)
    if is_blank(str(value)):
        raise ConfigurationError(
            f"{name} must say more than blanks, not {shown(value)}. Leave it out (None) when it is unknown."
        )


def check_tag(tag: object) -> None:
    """As `check_name`, for the name of a tag, which must not read as "is not" in a filter."""
    check_name(tag, "a tag's name")
    if str(tag).endswith("!"):
        raise ConfigurationError(
            f"a tag's name must not end in '!', as {shown(tag)} does: in filters NAME!=VALUE means every other value."
        )


def is_tag(name: str) -> bool:
    """Whether a dimension is a tag that calls can have, ``tag:NAME``."""
    return name.startswith("tag:") and len(name) > len("tag:") and not name.endswith("!")


def is_blank(text: str) -> bool:
    """Whether nobody can see anything of it: spaces, marks without a width, control characters."""
    if text.isprintable():
        return not text.strip()
    unseen = {"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"}
    return all(unicodedata.category(character) in unseen for character in text)


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
        check_name(by, "by")
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
