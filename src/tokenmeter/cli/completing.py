"""What the shell offers at the tab key: dimensions, filters and accounts with values that the ledger knows, periods."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer

from tokenmeter.cli.frame import Frame
from tokenmeter.dimensions import ACCOUNTS, DIMENSIONS
from tokenmeter.ledger import utcnow
from tokenmeter.periods import CALENDAR_UNITS

_PERIODS = (
    "today",
    "yesterday",
    "this-week",
    "last-week",
    "this-month",
    "last-month",
    "last-7d",
    "last-30d",
    "last-24h",
)
#: How far back values are looked for: who uses the ledger now is meant, and the answer must come at once.
_RECENT = timedelta(days=90)
_MOST = 200


def dimensions(incomplete: str) -> list[str]:
    """``member,mo`` -> ``member,model``."""
    before, comma, begun = incomplete.rpartition(",")
    named = set(before.split(","))
    return [f"{before}{comma}{name}" for name in DIMENSIONS if name.startswith(begun) and name not in named]


def granularity(incomplete: str) -> list[str]:
    """Calendar units."""
    return [unit for unit in CALENDAR_UNITS if unit.startswith(incomplete)]


def period(incomplete: str) -> list[str]:
    """Periods by name, and the last twelve months."""
    now = utcnow()
    months = [divmod(now.year * 12 + now.month - 1 - back, 12) for back in range(12)]
    known = [*_PERIODS, *(f"{year}-{month + 1:02d}" for year, month in months)]
    return [one for one in known if one.startswith(incomplete)]


def condition(ctx: typer.Context, incomplete: str) -> list[str]:
    """``member=a`` -> ``member=ada``: a dimension, then a value of it."""
    return _named(ctx, incomplete, DIMENSIONS)


def account(ctx: typer.Context, incomplete: str) -> list[str]:
    """The same for what an invoice is made out to."""
    return _named(ctx, incomplete, ACCOUNTS)


def _named(ctx: typer.Context, incomplete: str, names: tuple[str, ...]) -> list[str]:
    name, equals, begun = incomplete.partition("=")
    if not equals:
        return [f"{one}=" for one in names if one.startswith(name)]
    if name not in names:
        return []
    try:
        return [f"{name}={value}" for value in _values(ctx.params, name) if value.startswith(begun)][:_MOST]
    except Exception:  # noqa: BLE001 - a tab key must never print an error
        return []


def _values(given: dict[str, Any], name: str) -> Iterator[str]:
    config = given.get("config")
    frame = Frame(store=given.get("store"), config=None if config is None else Path(config))
    now = utcnow()
    with frame.ledger() as store:
        groups = store.aggregate([now - _RECENT, now + timedelta(days=1)], [name])
    yield from sorted({str(group.group[0]) for group in groups if group.group[0] is not None})
