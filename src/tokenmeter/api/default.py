"""The default meter of this process, and the settings it came from."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tokenmeter.api.assembly import make_meter, make_pricer
from tokenmeter.budgets import Budget
from tokenmeter.config import Settings, load_settings
from tokenmeter.forks import after_fork_in_child
from tokenmeter.meter import Meter
from tokenmeter.pricing import Pricer

__all__ = ["configure", "default_meter", "default_pricer", "default_settings"]

_lock = threading.RLock()
_default: Meter | None = None
_settings: Settings | None = None
_pricer: Pricer | None = None


def configure(
    *,
    store: str | None = None,
    prices: Sequence[Mapping[str, Any]] | None = None,
    multiplier: Decimal | int | str | None = None,
    budgets: Sequence[Budget | Mapping[str, Any]] | None = None,
    api_keys: Mapping[str, str] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Meter:
    """Set up the default meter. Optional: without it the settings come from the environment and ``tokenmeter.toml``.

    May be called again; calls that started under the old meter still settle there.

    Args:
        store: ``sqlite:///usage.db``, ``sqlite:////absolute/usage.db``, ``memory:`` or ``postgresql://...``. Default:
            ``TOKENMETER_STORE``, the file's, else a SQLite ledger in the user's data directory.
        prices: Price rows of your own (the keys of ``[[prices]]``); they win over every other layer.
        multiplier: Platform multiplier on top of the upstream cost, such as ``"1.05"``.
        budgets: Caps, see `tokenmeter.Budget`.
        api_keys: alias -> API key. Reports and budgets show the alias; only a fingerprint of the key is kept.
        config: Path of a ``tokenmeter.toml`` or its content as a mapping. Default: ``TOKENMETER_CONFIG``, the working
            directory, the user's config directory.

    Returns:
        The new default meter.

    Raises:
        ConfigurationError: an unknown key, a bad value or URL, a missing extra; the message says what to do.
        StoreUnavailableError: the store cannot be opened.
    """
    global _default, _settings
    settings = load_settings(
        store=store, prices=prices, multiplier=multiplier, budgets=budgets, api_keys=api_keys, config=config
    )
    meter = make_meter(settings)
    with _lock:
        _default, _settings = meter, settings
    return meter


def default_meter() -> Meter:
    """The default meter, built from the settings at its first use."""
    global _default  # noqa: PLW0603 - see configure
    meter = _default
    if meter is None:
        with _lock:
            if _default is None:
                _default = make_meter()
            meter = _default
    return meter


@after_fork_in_child
def _renew_lock() -> None:
    global _lock  # noqa: PLW0603 - a lock held by another thread at the fork would never be freed in the child
    _lock = threading.RLock()


def default_settings() -> Settings:
    """What `configure` was given; else the settings as they are found now."""
    return _settings or load_settings()


def default_pricer() -> Pricer:
    """The default meter's prices and terms, without opening its ledger when nothing else did."""
    global _pricer  # noqa: PLW0603 - see configure
    if _default is not None:
        return _default.pricer
    with _lock:
        if _pricer is None:
            _pricer = make_pricer(load_settings())
        return _pricer
