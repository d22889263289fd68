"""Explore: what was used, by what, over which time: the answer to one question, for the chart and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from decimal import Decimal
from functools import partial
from heapq import nlargest, nsmallest
from typing import TypeVar

from tokenmeter.budgets import Balance
from tokenmeter.dashboard.outlook import Forecast, Limit, budget_lines, forecast
from tokenmeter.dashboard.questions import MEASURES, Measure, Question
from tokenmeter.dashboard.reading import MOST_SUMMED, Place, ReportReader, per_value
from tokenmeter.dashboard.view import View
from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.money import ZERO, multiply, ratio, subtract
from tokenmeter.periods import CalendarUnit, Period
from tokenmeter.reports import Report, Row
from tokenmeter.reports.query import Query
from tokenmeter.stores.engine import condition_on
from tokenmeter.stores.sketch import Latencies
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass

K = TypeVar("K")
#: Values that a chart tells apart; the others are one series.
_SHOWN = 7
#: Values that are ranked by every measure.
_MOST_RANKED = 2_000
#: Values times buckets whose times are read at once rather than those shown only.
_MOST_CELLS = 10_000
#: Rows of the table; a search looks through all of them.
_MOST_ROWS = 200
#: Key of the series that sums up the values a chart does not tell apart.
REST = "rest"


@dataclass(frozen=True, slots=True)
class Series:
    """What the chart shows of one value.

    Attributes:
        key: Names it in the address: ``=`` and the value, ``none`` for "not set", `REST` for all others.
        value: The dimension's value; None where there is none.
        points: A figure per bucket; None where there is none.
        whole: The figure of the whole period.
        hidden: Whether it is left out of the chart.
    """

    key: str
    value: str | None
    points: Sequence[Decimal | int | None]
    whole: Decimal | int | None
    hidden: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found.

    Attributes:
        question: What was asked.
        view: For which time and filters; bounded.
        unit: Calendar unit of the buckets.
        coarser: Whether it is coarser than asked.
        buckets: Every bucket of time, empty ones too.
        series: The greatest values and the rest.
        by_bucket: All values together, per bucket.
        rows: A row per value, in the table's order, as many as it shows.
        most: The greatest figure among these rows, which their bars are measured by.
        found: How many values there are (that `Question.find` finds).
        totals: All together.
        before: Sums of the stretch before, per bucket; empty where there is none to compare with.
        before_totals: These together.
        before_period: That stretch.
        before_missing: Why there are no sums of it, where they could not be read.
        limits: Lines of budgets.
        forecast: What the running period may come to; None where nothing can be said.
    """

    question: Question
    view: View
    unit: CalendarUnit
    coarser: bool
    buckets: Sequence[Period]
    series: Sequence[Series]
    by_bucket: Sequence[Row]
    rows: Sequence[Row]
    most: Decimal
    found: int
    totals: Row
    before: Sequence[Row] = ()
    before_totals: Row | None = None
    before_period: Period | None = None
    before_missing: str = ""
    limits: Sequence[Limit] = ()
    forecast: Forecast | None = field(default=None)

    @property
    def columns(self) -> list[Measure]:
        """Those of the table: what was chosen, and what the chart shows."""
        return [MEASURES[name] for name in dict.fromkeys((self.question.measure.name, *self.question.columns))]

    def length(self, row: Row) -> Decimal:
        """How long a row's bar is, in percent of the longest."""
        figure = self.question.measure.of(row) or 0
        return max(multiply(ratio(figure, self.most), 100), ZERO) if self.most > 0 else ZERO

    def share(self, row: Row) -> Decimal | None:
        """A row's part of the whole; None of what cannot be added up."""
        measure = self.question.measure
        whole, part = measure.of(self.totals), measure.of(row)
        return ratio(part, whole) if measure.adds and whole and whole > 0 and part is not None else None


def explore(read: ReportReader, view: View, question: Question, *, balances: Iterable[Balance] = ()) -> Finding:
    """Ask the ledger: totals per value, the greatest values over time, all of it over time, and the time before.

    Args:
        read: Reads it.
        view: Period and filters; bounded.
        question: What to ask.
        balances: Where budgets stand, for their lines.

    Raises:
        ConfigurationError: an unknown dimension.
    """
    by, measure = question.by, question.measure
    query, coarser = view.over_time()
    parts = read.cut(query)
    whole = _per_value(read, view, replace(query, by=(by,)), len(parts))
    times = _Times.read(read, view, question, len(whole.rows)) if question.timed else _Times()
    rows = [times.on(row, row.group[by]) for row in whole.rows] if question.timed else list(whole.rows)
    totals = replace(whole.totals, latency=times.whole)
    ranked = sorted(rows, key=lambda row: _greatest_first(measure, row, by))
    by_bucket = _placed(read(replace(query, by=())).rows, parts)
    if measure.timed:
        by_bucket = [replace(row, latency=times.by_bucket.get(at)) for at, row in enumerate(by_bucket)]
    before_period = None if measure.timed and by == "sku_meter" else view.previous()  # a meter takes no time
    before: Sequence[Row] = ()
    before_totals, before_missing = None, ""
    try:
        before, before_totals = _before(read, query, before_period, timed=measure.timed)
    except ConfigurationError as error:  # an extra
        before_missing = str(error)
    except StoreUnavailableError:  # whoever sees a part only is not told where the ledger lies
        before_missing = "It begins or ends amid an hour of an archived month, whose file cannot be read now."
    listed = [row for row in ranked if question.find.casefold() in (row.group[by] or "").casefold()]
    shown_rows = _sorted(listed, question)[:_MOST_ROWS]
    return Finding(
        question=question,
        view=view,
        unit=query.granularity or "day",
        coarser=coarser,
        buckets=parts,
        series=_all_series(read, query, question, ranked, by_bucket=by_bucket, times=times),
        by_bucket=by_bucket,
        rows=shown_rows,
        most=max((Decimal(measure.of(row) or 0) for row in shown_rows), default=ZERO),
        found=len(listed),
        totals=totals,
        before=before,
        before_totals=before_totals,
        before_period=before_period,
        before_missing=before_missing,
        limits=budget_lines(view, measure, query.granularity or "day", question.drawn, balances),
        forecast=forecast(read, view, measure.of, totals) if measure.adds else None,
    )


def _per_value(read: ReportReader, view: View, split: Query, buckets: int) -> Report:
    """A row per value, over the whole period."""
    if "sku_meter" in split.by:  # there are few: one reading tells all
        found = read(split)
        return replace(found, rows=tuple(per_value(found.rows, "sku_meter")))
    whole = read(replace(view.query, by=split.by))
    if len(whole.rows) * buckets <= MOST_SUMMED:
        read(split)  # of which the next is summed up
    return whole


def _all_series(
    read: ReportReader,
    query: Query,
    question: Question,
    ranked: Sequence[Row],
    *,
    by_bucket: Sequence[Row],
    times: _Times,
) -> list[Series]:
    """The values that rank first over time, and what is left of all without them."""
    by, parts = question.by, [row.bucket for row in by_bucket]
    shown = [row.group[by] for row in ranked[: _SHOWN if len(ranked) <= _SHOWN else _SHOWN - 1]]
    if question.measure.timed:
        cells = {value: times.over_time(value, parts) for value in shown}
    else:
        cells = _over_time(read, replace(query, by=(by,)), shown, ranked, parts)
    series = [_series(row.group[by], cells[row.group[by]], row, question) for row in ranked[: len(shown)]]
    if len(ranked) > len(shown) and question.measure.adds:
        rest = Row.total(ranked[len(shown) :], query.period)
        others = [_less(row, [cells[value][at] for value in shown]) for at, row in enumerate(by_bucket)]
        series.append(replace(_series(None, others, rest, question), key=REST, hidden=REST in question.hidden))
    return series


def _before(
    read: ReportReader, query: Query, period: Period | None, *, timed: bool
) -> tuple[Sequence[Row], Row | None]:
    """The time before, per bucket and together."""
    if period is None:
        return (), None
    asked = replace(query, by=(), period=period)
    report = read(asked)
    rows = _placed(report.rows, read.cut(asked))
    if not timed:
        return rows, report.totals
    found = {bucket: one for (bucket, _), one in read.times(asked).items()}
    timed_rows = [replace(row, latency=found.get(at)) for at, row in enumerate(rows)]
    return timed_rows, replace(report.totals, latency=_together(found.values()))


def _over_time(
    read: ReportReader, split: Query, shown: Sequence[str | None], rows: Sequence[Row], parts: Sequence[Period]
) -> dict[str | None, list[Row]]:
    """The values that are shown, per bucket.

    Those are read that lead by any measure that adds up: another one of them then asks nothing.
    """
    (by,) = split.by
    leading = set(shown)
    for measure in MEASURES.values() if len(rows) <= _MOST_RANKED else ():
        if measure.adds:
            first = nsmallest(_SHOWN, rows, key=partial(_greatest_first, measure, by=by))
            leading |= {row.group[by] for row in first}
    where = {**split.where, condition_on(by): frozenset(leading)}
    known = by == "sku_meter" or len(rows) * len(parts) <= MOST_SUMMED
    found = read(split if known else replace(split, where=where)).rows if leading else ()
    return {value: _placed([row for row in found if row.group[by] == value], parts) for value in shown}


@dataclass(frozen=True, slots=True)
class _Times:
    """How long calls took, as far as a question is about it.

    Attributes:
        of_value: Value -> over the whole period.
        by_bucket: Bucket -> of all values.
        cells: Bucket and value.
        whole: Of all.
    """

    of_value: Mapping[str | None, Latencies] = field(default_factory=dict[str | None, Latencies])
    by_bucket: Mapping[int, Latencies] = field(default_factory=dict[int, Latencies])
    cells: Mapping[Place, Latencies] = field(default_factory=dict[Place, Latencies])
    whole: Latencies | None = None

    @classmethod
    def read(cls, read: ReportReader, view: View, question: Question, values: int) -> _Times:
        """What is known; in one reading where it is not too much, since times of buckets and values add up."""
        query = view.over_time()[0]
        whole, split = replace(view.query, by=(question.by,)), replace(query, by=(question.by,))
        if not question.measure.timed:
            of_value = {value: one for (_, value), one in read.times(whole).items()}
            return cls(of_value, whole=_together(of_value.values()))
        if values * len(read.cut(query)) <= _MOST_CELLS:
            cells = read.times(split)
            of_value = _gathered((value, one) for (_, value), one in cells.items())
            by_bucket = _gathered((bucket, one) for (bucket, _), one in cells.items())
        else:
            of_value = {value: one for (_, value), one in read.times(whole).items()}
            by_bucket = {bucket: one for (bucket, _), one in read.times(replace(query, by=())).items()}
            of = question.measure.of
            rows = {value: Row(bucket=whole.period, group={}, latency=one) for value, one in of_value.items()}
            slowest = nlargest(_SHOWN, of_value, key=lambda value: Decimal(of(rows[value]) or 0))
            cells = read.times(replace(split, where={**split.where, condition_on(question.by): frozenset(slowest)}))
        return cls(of_value, by_bucket, cells, _together(by_bucket.values()))

    def on(self, row: Row, value: str | None) -> Row:
        """A row of a value, with how long its calls took."""
        return replace(row, latency=self.of_value.get(value))

    def over_time(self, value: str | None, parts: Sequence[Period]) -> list[Row]:
        """How long the calls of a value took, per bucket."""
        return [Row(bucket=part, group={}, latency=self.cells.get((at, value))) for at, part in enumerate(parts)]


def _gathered(found: Iterable[tuple[K, Latencies]]) -> dict[K, Latencies]:
    """Those of each key added up."""
    sums: dict[K, Latencies] = {}
    for key, one in found:
        if key not in sums:
            sums[key] = Latencies()
        sums[key].take(one)
    return sums


def _together(found: Iterable[Latencies]) -> Latencies:
    return _gathered((None, one) for one in found).get(None) or Latencies()


def _greatest_first(measure: Measure, row: Row, by: str) -> tuple[bool, Decimal, Decimal, str]:
    figure = measure.of(row)
    return figure is None, Decimal(figure or 0).copy_negate(), row.billed_cost.copy_negate(), row.group[by] or ""


def _sorted(rows: Sequence[Row], question: Question) -> list[Row]:
    column, turned = question.sort.removeprefix("-"), question.sort.startswith("-")
    if not column:
        return list(rows)
    if column == "value":
        return sorted(rows, key=lambda row: (row.group[question.by] or "").casefold(), reverse=turned)
    figure = MEASURES[column].of
    known = [row for row in rows if figure(row) is not None]
    known.sort(key=lambda row: Decimal(figure(row) or 0), reverse=not turned)
    return known + [row for row in rows if figure(row) is None]


def _placed(rows: Iterable[Row], parts: Sequence[Period]) -> list[Row]:
    """A row per bucket, an empty one where there is none."""
    found = {row.bucket.start: row for row in rows}
    return [found.get(part.start) or Row(bucket=part, group={}) for part in parts]


def _series(value: str | None, rows: Sequence[Row], whole: Row, question: Question) -> Series:
    of = question.measure.of
    key = "none" if value is None else f"={value}"
    return Series(key, value, [of(row) for row in rows], of(whole), key in question.hidden)


def _less(whole: Row, parts: Sequence[Row]) -> Row:
    """What is in `whole` and in none of `parts`."""
    taken = Row.total(parts, whole.bucket)
    quantities = {
        meter: quantity - taken.usage[meter] if isinstance(quantity, int) else subtract(quantity, taken.usage[meter])
        for meter, quantity in whole.usage.quantities.items()
    }
    return Row(
        bucket=whole.bucket,
        group={},
        requests=whole.requests - taken.requests,
        errors=whole.errors - taken.errors,
        unpriced=whole.unpriced - taken.unpriced,
        estimated=whole.estimated - taken.estimated,
        usage=Usage(quantities, whole.usage.reasoning_output_tokens - taken.usage.reasoning_output_tokens),
        list_cost=subtract(whole.list_cost, taken.list_cost),
        contracted_cost=subtract(whole.contracted_cost, taken.contracted_cost),
        billed_cost=subtract(whole.billed_cost, taken.billed_cost),
    )
