"""The overview: what was spent and used, over time and by whom. Read from kept sums, never from entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby

from tokenmeter.dashboard.view import View
from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import Period
from tokenmeter.reports import Row
from tokenmeter.reports.query import cut
from tokenmeter.reports.report import read_report
from tokenmeter.semconv import CACHE_READ_METERS, CACHE_WRITE_METERS
from tokenmeter.stores.base import Aggregate, Store

__all__ = ["Bar", "Overview", "Ranking", "Savings", "overview", "rank", "savings"]

#: Dimensions ranked on the overview, in its order.
RANKED = ("model", "member", "api_key", "route", "team", "project", "organization")
#: Ranked even when nothing names them.
_ALWAYS = 4
_TOP = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One bucket of time: its sums, and those of the values that the chart shows."""

    bucket: Period
    total: Row
    parts: dict[str | None, Row]


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
        totals: Sums of the period.
        before: Sums of the stretch before, None where there is none to compare with.
        before_period: That stretch.
        bars: Every bucket of time, empty ones too.
        unit: The buckets' calendar unit.
        coarser: Whether the unit is coarser than asked.
        split: The dimension that splits the bars.
        shown: Its values in the chart, dearest first.
        others: How many values are not; the chart sums them up.
        rankings: Per dimension.
        savings: Of caching.
    """

    totals: Row
    before: Row | None
    before_period: Period | None
    bars: Sequence[Bar]
    unit: str
    coarser: bool
    split: str
    shown: Sequence[str | None]
    others: int
    rankings: Sequence[Ranking]
    savings: Savings


def overview(store: Store, view: View) -> Overview:
    """Read the overview. `view` must be bounded."""
    query, coarser = view.over_time()
    split = next(iter(view.free_dimensions(RANKED)), "service_tier")
    cells = read_report(store, replace(query, by=(split,)))
    groups = read_report(store, replace(view.query, by=(*dict.fromkeys((*RANKED, split)),)))
    before_period = view.previous()
    before = None if before_period is None else read_report(store, replace(view.query, period=before_period)).totals
    ranked = {dimension: rank(groups.rows, dimension) for dimension in groups.by}
    rankings = [ranked[dimension] for dimension in RANKED]
    shown = [row.group[split] for row in ranked[split].rows]
    return Overview(
        totals=groups.totals,
        before=before,
        before_period=before_period,
        bars=_bars(cut(store, query), cells.rows, split, shown),
        unit=query.granularity or "day",
        coarser=coarser,
        split=split,
        shown=shown,
        others=ranked[split].others,
        rankings=[one for position, one in enumerate(rankings) if position < _ALWAYS or one.others or _named(one)],
        savings=savings(store, view),
    )


def _named(ranking: Ranking) -> bool:
    return any(row.group[ranking.dimension] is not None for row in ranking.rows)


def _bars(parts: Sequence[Period], rows: Sequence[Row], split: str, shown: Sequence[str | None]) -> list[Bar]:
    found = {start: list(group) for start, group in groupby(rows, key=lambda row: row.bucket.start)}
    return [
        Bar(part, Row.total(inside, part), {row.group[split]: row for row in inside if row.group[split] in shown})
        for part in parts
        for inside in [found.get(part.start, [])]
    ]


def rank(rows: Sequence[Row], dimension: str, *, top: int = _TOP) -> Ranking:
    """`rows`, which may be split further, summed per value of `dimension`."""
    values: dict[str | None, list[Row]] = {}
    for row in rows:
        values.setdefault(row.group[dimension], []).append(row)
    dearest = sorted(values, key=lambda value: (*_weight(values[value]), value or ""))[:top]
    shown = [
        replace(Row.total(found, found[0].bucket), group={dimension: value})
        for value in dearest
        for found in [values[value]]
    ]
    return Ranking(dimension, shown, len(values) - len(shown), max((row.billed_cost for row in shown), default=ZERO))


def _weight(rows: Sequence[Row]) -> tuple[Decimal, int, int]:
    """What rows are ranked by, the dearest lowest."""
    cost, tokens, requests = ZERO, 0, 0
    for row in rows:
        cost = EXACT.subtract(cost, row.billed_cost)
        tokens -= row.usage.total_tokens
        requests -= row.requests
    return cost, tokens, requests


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
    return _sum([_saved(found) for found in meters.values()])


def _sum(parts: Sequence[Savings]) -> Savings:
    cost = ZERO
    for part in parts:
        cost = EXACT.add(cost, part.list_cost)
    return Savings(cost, sum(part.unknown_tokens for part in parts))


def _saved(meters: dict[str, Aggregate]) -> Savings:
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
