"""Where budgets stand, as the budgets page draws it, and which alerts they fired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tokenmeter.budgets import Balance
from tokenmeter.budgets.matching import Cap, parse_scope
from tokenmeter.budgets.policy import Unit, amount_of, threshold_amounts
from tokenmeter.budgets.windows import from_microseconds
from tokenmeter.meter import Meter
from tokenmeter.money import ZERO, add, multiply, negate, ratio, subtract
from tokenmeter.stores.base import Crossing

__all__ = ["Fired", "Standing", "fired", "standings"]

_FULL = Decimal(100)
_NEARLY = Decimal(80)


@dataclass(frozen=True, slots=True)
class Standing:
    """One counter of a budget.

    Attributes:
        balance: Its figures.
        settled: Percent of the limit that settled calls used, at most 100, for the bar.
        held: Percent that calls in flight hold, as far as the bar has room.
        percent: Percent of the limit, used and held together; may pass 100.
        state: ``exhausted``, ``nearly`` or ``fine``.
    """

    balance: Balance
    settled: Decimal
    held: Decimal
    percent: Decimal
    state: str


@dataclass(frozen=True, slots=True)
class Fired:
    """One alert: a threshold that a counter crossed.

    Attributes:
        budget: Name of the budget.
        scope: Whose: field -> value.
        percent: Of the limit; None where the budget is configured otherwise by now.
        amount: What was crossed, in `unit`; None without a unit.
        unit: The budget's; None where it is not configured any more.
        window_start: Start of the window it was crossed in; None for a budget that never resets.
        crossing: As the store remembers it: when, and by which entry.
    """

    budget: str
    scope: Mapping[str, str]
    percent: int | None
    amount: Decimal | None
    unit: Unit | None
    window_start: datetime | None
    crossing: Crossing


def standings(meter: Meter, at: datetime) -> list[Standing]:
    """Every counter of every configured budget, the fullest first. Nothing is written."""
    found = [_standing(balance) for balance in meter.budgets.remaining({}, at)]
    return sorted(found, key=lambda one: (negate(one.percent), one.balance.budget, sorted(one.balance.scope.items())))


def _standing(balance: Balance) -> Standing:
    settled, held = _percent(balance.spent, balance.limit), _percent(balance.reserved, balance.limit)
    percent = add(settled, held)
    filled = min(settled, _FULL)
    return Standing(
        balance=balance,
        settled=filled,
        held=min(held, subtract(_FULL, filled)),
        percent=percent,
        state="exhausted" if percent >= _FULL else "nearly" if percent >= _NEARLY else "fine",
    )


def _percent(part: Decimal, limit: Decimal) -> Decimal:
    return multiply(ratio(max(part, ZERO), limit), 100) if limit > 0 else _FULL


def fired(meter: Meter, *, limit: int) -> list[Fired]:
    """The last alerts of all budgets, the last first."""
    caps = meter.budgets.caps
    return [_fired(crossing, caps.get(crossing.key.budget)) for crossing in meter.store.crossings(limit=limit)]


def _percent_of(cap: Cap, threshold: int) -> int | None:
    """The percent that was crossed; None where the limit was another one at the time."""
    return None if cap.limit is None else threshold_amounts(cap.budget, cap.limit).get(threshold)


def _fired(crossing: Crossing, cap: Cap | None) -> Fired:
    key = crossing.key
    return Fired(
        budget=cap.budget.name if cap else key.budget,
        scope=parse_scope(key.scope),
        percent=_percent_of(cap, crossing.threshold) if cap else None,
        amount=amount_of(cap.unit, crossing.threshold) if cap else None,
        unit=cap.unit if cap else None,
        window_start=from_microseconds(key.window_start) if key.window_start else None,
        crossing=crossing,
    )
