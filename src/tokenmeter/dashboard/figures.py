"""Figures and instants as pages write them. Rounded for people; exact values are in the exports."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from tokenmeter.money import ONE
from tokenmeter.periods import zone
from tokenmeter.reports.layout import amount, compact, count, money_places, share, visible
from tokenmeter.usage import Quantity

__all__ = [
    "change",
    "compact",
    "count",
    "exact",
    "instant",
    "money",
    "name",
    "number",
    "places",
    "share",
    "unit_amount",
    "wire_instant",
]

NOT_SET = "(not set)"


def money(dollars: Decimal | None, places: int | None = None) -> str:
    """US dollars with as many decimals as it takes to see something; ``unknown`` for None."""
    if dollars is None:
        return "unknown"
    return amount(dollars, money_places([dollars]) if places is None else places)


def places(amounts: Iterable[Decimal | None]) -> int:
    """Decimals that one column needs, so that its figures line up."""
    return money_places(one for one in amounts if one is not None)


def exact(value: Decimal | int | None) -> str:
    """A decimal without exponent and trailing zeros; ``unknown`` for None."""
    if value is None:
        return "unknown"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def number(quantity: Quantity) -> str:
    """A quantity in full, thousands separated."""
    return f"{quantity:,}" if isinstance(quantity, int) else f"{Decimal(exact(quantity)):,f}"


def unit_amount(value: Decimal, unit: str) -> str:
    """An amount in a budget's unit."""
    return money(value, 2 if abs(value) >= 1 or not value else None) if unit == "usd" else f"{value:,.0f} {unit}"


def change(now: Decimal | int, before: Decimal | int) -> str:
    """How `now` differs from `before`, in percent."""
    if not before:
        return "new" if now else "no change"
    part = Decimal(now) / Decimal(before) - ONE
    if not part:
        return "no change"
    if part > 10:  # noqa: PLR2004 - beyond eleven times, percents say less than a factor
        return f"{part + ONE:,.0f}-fold"
    return f"{'+' if part > 0 else '-'}{share(abs(part))}"


def name(value: str | None) -> str:
    """A name that somebody chose, without characters that would turn or hide the text around it."""
    return NOT_SET if value is None else visible(value)


def instant(moment: datetime | None, tz: str, *, seconds: bool = False) -> str:
    """An instant by the clock of `tz`."""
    if moment is None:
        return "never"
    return moment.astimezone(zone(tz)).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def wire_instant(moment: datetime) -> str:
    """An instant for machines."""
    return moment.isoformat()
