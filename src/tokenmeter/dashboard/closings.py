"""Closed periods as their pages show them: what each came to, and what came in since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from tokenmeter.billing import ClosedPeriod, closed_periods, late_costs
from tokenmeter.money import EXACT, ZERO, negate
from tokenmeter.stores.base import Store

__all__ = ["Closing", "MeterSums", "by_meter", "closings"]


@dataclass(frozen=True, slots=True)
class Closing:
    """One closed period.

    Attributes:
        closed: Its manifest.
        key: What its page is called.
        corrected: Later closings that took up what came late: their period's label and the billed cost, US dollars.
        waiting: Billed cost of what no closing has taken up yet; None when there is nothing, which is not 0: what
            came late may add up to 0 over several accounts.
    """

    closed: ClosedPeriod
    key: str
    corrected: Sequence[tuple[str, Decimal]]
    waiting: Decimal | None


class MeterSums(NamedTuple):
    """What a period came to for one meter of one model; costs in US dollars."""

    provider: str
    model: str | None
    sku_meter: str
    unit: str
    quantity: Decimal = ZERO
    list_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO
    unpriced: int = 0


def closings(store: Store) -> list[Closing]:
    """Every closed period, the last first. Reads kept sums, no entries."""
    closed = closed_periods(store)
    waiting = {id(one): cost for one, cost in late_costs(store, closed)}
    found = [
        Closing(
            closed=one,
            key=one.document.key if one.document else "",
            corrected=[
                (later.period.label, late.billed_cost)
                for later in closed
                for late in later.late
                if late.period == one.period
            ],
            waiting=waiting.get(id(one)),
        )
        for one in closed
    ]
    return sorted(found, key=lambda one: one.closed.period.start, reverse=True)


def by_meter(closed: ClosedPeriod) -> list[MeterSums]:
    """The manifest's rows summed over accounts and prices, dearest first."""
    sums: dict[tuple[str | None, ...], MeterSums] = {}
    for row in closed.rows:
        rate = row.rate
        key = (rate.provider, rate.model, rate.sku_meter, rate.unit)
        known = sums.get(key) or MeterSums(rate.provider, rate.model, rate.sku_meter, rate.unit)
        sums[key] = known._replace(
            quantity=EXACT.add(known.quantity, row.quantity),
            list_cost=EXACT.add(known.list_cost, row.list_cost),
            billed_cost=EXACT.add(known.billed_cost, row.billed_cost),
            unpriced=known.unpriced + row.unpriced,
        )
    return sorted(
        sums.values(), key=lambda one: (negate(one.billed_cost), one.provider, one.model or "", one.sku_meter)
    )
