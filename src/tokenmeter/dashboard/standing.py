"""Where budgets stand, as the budgets page draws it, and which thresholds their windows have passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tokenmeter.budgets import Balance
from tokenmeter.budgets.caps import Cap
from tokenmeter.meter import Meter
from tokenmeter.money import ZERO

__all__ = ["Standing", "standings"]

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
        passed: Thresholds (percents) that were passed in this window: those that alerted.
    """

    balance: Balance
    settled: Decimal
    held: Decimal
    percent: Decimal
    state: str
    passed: Sequence[int]


def standings(meter: Meter, at: datetime) -> list[Standing]:
    """Every counter of every configured budget, the fullest first. Nothing is written."""
    caps = {cap.budget.name: cap for cap in meter.budgets.caps.values()}
    found = [_standing(balance, caps[balance.budget]) for balance in meter.budgets.remaining(meter.store, {}, at)]
    return sorted(found, key=lambda one: (-one.percent, one.balance.budget, sorted(one.balance.scope.items())))


def _standing(balance: Balance, cap: Cap) -> Standing:
    settled, held = _percent(balance.spent, balance.limit), _percent(balance.reserved, balance.limit)
    percent = settled + held
    filled = min(settled, _FULL)
    return Standing(
        balance=balance,
        settled=filled,
        held=min(held, _FULL - filled),
        percent=percent,
        state="exhausted" if percent >= _FULL else "nearly" if percent >= _NEARLY else "fine",
        passed=_passed(balance, cap),
    )


def _percent(part: Decimal, limit: Decimal) -> Decimal:
    return max(part, ZERO) / limit * 100 if limit > 0 else _FULL


def _passed(balance: Balance, cap: Cap) -> list[int]:
    """Thresholds count from the configured limit; a raise of this window is on both sides of the balance."""
    plain_limit = cap.budget.amount(cap.limit)
    spent = balance.spent - (balance.limit - plain_limit)
    return [
        percent for percent in cap.budget.thresholds or () if plain_limit > 0 and spent * 100 >= plain_limit * percent
    ]
