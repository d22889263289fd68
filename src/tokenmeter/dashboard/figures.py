"""Figures and instants as pages write them. Rounded for people; exact values are in the exports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from tokenmeter import display
from tokenmeter.display import amount, compact, count, dollars, money_places, unit_amount, visible
from tokenmeter.money import ONE, add, magnitude, money_text, ratio, round_to, subtract
from tokenmeter.periods import zone
from tokenmeter.pricing.sheet import without_size
from tokenmeter.usage import Quantity

__all__ = [
    "change",
    "compact",
    "count",
    "decimals",
    "dollars",
    "exact",
    "instant",
    "money",
    "money_text",
    "name",
    "number",
    "places",
    "price_words",
    "scope_name",
    "share",
    "unit_amount",
    "wire_instant",
]

#: Stands where there is none.
NO_FIGURE = "\u2013"
NOT_SET = "(not set)"
_PRICE = re.compile(r"(?P<row>.+?)(?:@(?P<since>\d{4}-\d\d-\d\d))?#(?P<list>[0-9a-f]{12})(?P<rules>(?:\*[\d.]+)*)")
_FINGERPRINT = re.compile("[0-9a-f]{32}")


def money(value: Decimal | None, places: int | None = None) -> str:
    """US dollars with what lies below a cent (`money_places`); ``unknown`` for None."""
    if value is None:
        return "unknown"
    return amount(value, money_places([value]) if places is None else places)


def places(amounts: Iterable[Decimal | None]) -> int:
    """Decimals that one column needs, so that its figures line up."""
    return money_places(one for one in amounts if one is not None)


def exact(value: Decimal | int | None, decimals: int | None = None) -> str:
    """A decimal in full, without exponent; ``unknown`` for None.

    Args:
        value: What to write.
        decimals: How many, as `decimals` says for the column; None = as many as it takes.
    """
    if value is None:
        return "unknown"
    text = f"{value:f}"
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0") if decimals is None else fraction.rstrip("0").ljust(decimals, "0")
    return f"{whole}.{fraction}" if fraction else whole


def decimals(values: Iterable[Decimal | int | None]) -> int:
    """Decimals that one column needs to be exact and line up."""
    return max((len(exact(one).partition(".")[2]) for one in values if one is not None), default=0)


def number(quantity: Quantity) -> str:
    """A quantity in full, thousands separated."""
    return f"{quantity:,}" if isinstance(quantity, int) else f"{Decimal(exact(quantity)):,f}"


def share(part: Decimal | None) -> str:
    """A part of a whole in percent."""
    return NO_FIGURE if part is None else display.share(part)


def change(now: Decimal | int, before: Decimal | int) -> str:
    """How `now` differs from `before`, in percent; in words where one of them is a credit."""
    if now == before:
        return "no change"
    if now < 0 or before < 0:
        return "more" if now > before else "less"
    if not before:
        return "new"
    part = subtract(ratio(Decimal(now), Decimal(before)), ONE)
    if part > 10:  # noqa: PLR2004 - beyond eleven times, percents say less than a factor
        return f"{round_to(add(part, ONE), 0):,f}-fold"
    size = share(magnitude(part))
    if size[0] in "<>":  # a sign before one of these is read as an arrow
        return f"{size} {'more' if part > 0 else 'less'}"
    return f"{'+' if part > 0 else '-'}{size}"


def name(value: str | None) -> str:
    """A name that somebody chose, without characters that would turn or hide the text around it."""
    return NOT_SET if value is None else visible(value)


def price_words(price_id: str) -> list[str]:
    """What a charge's `price_id` says: the row, from when it is in effect, the price list it is in."""
    found = _PRICE.fullmatch(without_size(price_id) or "")
    if found is None:
        return [price_id]
    since = f"in effect from {found['since']}" if found["since"] else "no date known"
    return [f"{found['row']} {found['rules']}".rstrip(), f"{since}, price list {found['list']}"]


def scope_name(field: str, value: str) -> str:
    """A value of a budget's scope. An API key without an alias counts by its fingerprint, which is only hinted at."""
    return f"{value[:4]}…" if field == "api_key" and _FINGERPRINT.fullmatch(value) else name(value)


def instant(moment: datetime | None, tz: str, *, seconds: bool = False) -> str:
    """An instant by the clock of `tz`."""
    if moment is None:
        return "never"
    return moment.astimezone(zone(tz)).strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def wire_instant(moment: datetime) -> str:
    """An instant for machines."""
    return moment.isoformat()
