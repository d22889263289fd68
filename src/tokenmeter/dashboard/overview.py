"""The overview: what was spent and used, over time and by whom. Read from kept sums, never from entries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal

from tokenmeter.budgets import Balance
from tokenmeter.dashboard.explore import Finding, explore
from tokenmeter.dashboard.questions import Question
from tokenmeter.dashboard.reading import ReportReader, per_value
from tokenmeter.dashboard.view import View
from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS, KEPT_WHO
from tokenmeter.money import EXACT, ZERO, total
from tokenmeter.reports import Row
from tokenmeter.stores.base import Aggregate, Store
from tokenmeter.values import dataclass

#: Dimensions ranked on the overview, in its order; any other that entries share comes behind.
RANKED = tuple(dict.fromkeys(("model", "member", "api_key", "route", "team", "project", "organization", *KEPT_WHO)))
#: Ranked even when nothing names them.
_ALWAYS = 4
_TOP = 6


@dataclass(frozen=True, slots=True)
class Ranking:
    """The dearest values of one dimension.

    Attributes:
        dimension: Which.
        rows: Dearest first.
        others: Values not among `rows`.
        most: Billed cost of the dearest, what lengths are measured by.
    """

    dimension: str
    rows: Sequence[Row]
    others: int
    most: Decimal


@dataclass(frozen=True, slots=True)
class Savings:
    """What prompt caching saved, against sending the same tokens at the period's own price of fresh input.

    Attributes:
        list_cost: US dollars at public prices; negative where writing cost more than reading saved.
        unknown_tokens: Cached tokens of models that had no priced fresh input to compare with.
    """

    list_cost: Decimal = ZERO
    unknown_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything the first page shows.

    Attributes:
        answer: Spend over time, split by the first dimension that no filter holds.
        rankings: Per dimension.
        savings: Of caching.
    """

    answer: Finding
    rankings: Sequence[Ranking]
    savings: Savings


def overview(read: ReportReader, view: View, *, balances: Iterable[Balance] = ()) -> Overview:
    """Read the overview. `view` must be bounded.

    Args:
        read: Reads the ledger.
        view: Period and filters.
        balances: Where budgets stand, for their lines.
    """
    split = next(iter(view.free_dimensions(RANKED)), "service_tier")
    groups = read(replace(view.query, by=(*dict.fromkeys((*RANKED, split)),)))
    ranked = [rank(groups.rows, dimension) for dimension in RANKED]
    return Overview(
        answer=explore(read, view, Question(by=split), balances=balances),
        rankings=[one for position, one in enumerate(ranked) if position < _ALWAYS or one.others or _named(one)],
        savings=savings(read.store, view),
    )


def _named(ranking: Ranking) -> bool:
    return any(row.group[ranking.dimension] is not None for row in ranking.rows)


def rank(rows: Iterable[Row], dimension: str, *, top: int = _TOP) -> Ranking:
    """`rows`, which may be split further, summed per value of `dimension`."""
    found: dict[str | None, list[Row]] = {}
    for row in rows:
        found.setdefault(row.group[dimension], []).append(row)
    costs = {value: total(row.billed_cost for row in alike) for value, alike in found.items()}
    dearest = sorted(costs.values(), reverse=True)
    # There may be thousands, and few are shown: what else is known of them is summed of those alone.
    leading = [row for value, alike in found.items() if costs[value] >= dearest[:top][-1] for row in alike]
    values = sorted(per_value(leading, dimension), key=lambda row: _weight(row, dimension))[:top]
    return Ranking(dimension, values, len(found) - len(values), dearest[0] if dearest else ZERO)


def _weight(row: Row, dimension: str) -> tuple[Decimal, int, int, str]:
    """What rows are ranked by, the dearest lowest."""
    return row.billed_cost.copy_negate(), -row.usage.total_tokens, -row.requests, row.group[dimension] or ""


def savings(store: Store, view: View) -> Savings:
    """What reading from caches saved, less what writing to them cost more, per model and tier.

    The comparison is the average price that the same model and tier paid for fresh input in the same period.
    """
    if "sku_meter" in dict(view.filters):
        return Savings()
    period = view.query.period
    if period.start >= period.end:
        return Savings()
    by = ("provider", "model", "service_tier", "sku_meter")
    meters: dict[tuple[str | None, ...], dict[str, Aggregate]] = {}
    for sums in store.aggregate([period.start, period.end], by, view.query.filter):
        *context, meter = sums.group
        if meter is not None:
            meters.setdefault(tuple(context), {})[meter] = sums
    return _add_up([_compare_with_fresh(found) for found in meters.values()])


def _add_up(parts: Sequence[Savings]) -> Savings:
    cost = ZERO
    for part in parts:
        cost = EXACT.add(cost, part.list_cost)
    return Savings(cost, sum(part.unknown_tokens for part in parts))


def _compare_with_fresh(meters: dict[str, Aggregate]) -> Savings:
    saved, unknown = ZERO, 0
    for meter, sums in meters.items():
        tokens = sums.quantities.get(meter, 0)
        if not tokens or (meter not in CACHE_READ_METERS and meter not in CACHE_WRITE_METERS):
            continue
        rate = None if sums.unpriced else _rate(meters, _fresh(meter))
        if rate is None:
            unknown += int(tokens)
        else:
            saved = EXACT.add(saved, EXACT.subtract(EXACT.multiply(rate, Decimal(tokens)), sums.list_cost))
    return Savings(saved, unknown)


def _rate(meters: dict[str, Aggregate], meter: str) -> Decimal | None:
    """What one unit of `meter` cost on average at public prices; None when that is not known."""
    sums = meters.get(meter)
    quantity = sums.quantities.get(meter, 0) if sums else 0
    if sums is None or sums.unpriced or not quantity:
        return None
    return EXACT.divide(sums.list_cost, Decimal(quantity))


def _fresh(meter: str) -> str:
    """The meter the same tokens would have been on without a cache."""
    return "input" + meter.removeprefix("cache_read") if meter in CACHE_READ_METERS else "input"
