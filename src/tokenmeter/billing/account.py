"""Whose invoice it is."""

from __future__ import annotations

from collections.abc import Mapping

from tokenmeter.billing.rated import ACCOUNTS
from tokenmeter.errors import ConfigurationError

__all__ = ["account_name", "check_account", "check_breakdown"]


def check_account(**given: str | None) -> dict[str, str]:
    """The account that the arguments name: dimension -> value.

    Raises:
        ConfigurationError: none is named, or by something else than a text.
    """
    scope = {name: value for name, value in given.items() if value is not None}
    if not scope:
        raise ConfigurationError(f"Say whose: one of {', '.join(f'{name}=' for name in ACCOUNTS)}.")
    for name, value in scope.items():
        if not isinstance(value, str) or not value:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"{name}= names one account by a text, not {value!r}.")
    return {name: scope[name] for name in ACCOUNTS if name in scope}


def check_breakdown(by: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Accounts that lines are broken down by.

    Raises:
        ConfigurationError: not an account.
    """
    names = tuple(name.strip() for name in by.split(",") if name.strip()) if isinstance(by, str) else tuple(by)
    for name in names:
        if name not in ACCOUNTS:
            raise ConfigurationError(f"Lines can be broken down by {', '.join(ACCOUNTS)}, not {name!r}.")
    return names


def account_name(scope: Mapping[str, str]) -> str:
    """``member=ada``; the key under which invoices of this account are filed."""
    return ",".join(f"{name}={value}" for name, value in scope.items())
