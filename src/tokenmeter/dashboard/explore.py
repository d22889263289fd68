"""Explore: what was used, by what, over which time: the answer to one question, for the chart and the table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from heapq import nlargest, nsmallest
from typing import NamedTuple, TypeVar

from tokenmeter.budgets import Balance
from tokenmeter.dashboard.questions import MEASURES, Form, Measure, Question
from tokenmeter.dashboard.view import View
from tokenmeter.display import counted
from tokenmeter.money import EXACT, ZERO, add, multiply, ratio, subtract, total
from tokenmeter.periods import CalendarUnit, Period, buckets, floor
from tokenmeter.reports import Report, Row
from tokenmeter.reports.query import Query, cut
from tokenmeter.reports.report import read_report
from tokenmeter.stores.base import Store
from tokenmeter.stores.sketch import Latencies
from tokenmeter.usage import Usage

K = TypeVar("K")
#: Values that a chart tells apart; the others are one series.
_SHOWN = 7
#: Rows that are summed up here rather than read again.
_MOST_SUMMED = 3_000
#: Values that are ranked by every measure.
_MOST_RANKED = 2_000
#: Values times buckets whose times are read at once rather than those shown only.
_MOST_CELLS = 10_000
#: Rows of the table; a search looks through all of them.
_MOST_ROWS = 200
_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)
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


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget's line in the chart.

    Attributes:
        amount: Where it lies, in the measure's unit.
        words: What it is.
    """

    amount: Decimal
    words: str


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


class ReportReader:
    """Reports of one unchanged ledger, each read once, whatever is asked of it: another measure or form reads nothing.

    Args:
        store: The ledger. Where dimensions and filters have kept sums, only these are read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.RLock()
        self._known: dict[_SeriesKey, Report] = {}
        self._times: dict[_SeriesKey, Mapping[_Place, Latencies]] = {}

    def __call__(self, query: Query) -> Report:
        """The answer to a query; summed up from another one where that was split further."""
        key = _SeriesKey.of(query)
        with self._lock:  # who asks the same at the same time waits for it
            if key not in self._known:
                self._known[key] = self._summed_up(key) or read_report(self.store, query)
            return self._known[key]

    def cut(self, query: Query) -> list[Period]:
        """The query's buckets."""
        return cut(self.store, query)

    def times(self, query: Query) -> Mapping[_Place, Latencies]:
        """How long calls took: bucket and value -> what is known, which of meters is nothing."""
        key = _SeriesKey.of(query)
        with self._lock:
            if key not in self._times:
                parts = [] if "sku_meter" in (*query.by, *query.where) else self.cut(query)
                edges = [part.start for part in parts] + [part.end for part in parts[-1:]]
                found = self.store.latencies(edges, query.by, query.filter) if parts else ()
                self._times[key] = {(one.bucket, one.group[0] if one.group else None): one for one in found}
            return self._times[key]

    def _summed_up(self, key: _SeriesKey) -> Report | None:
        """The answer by one dimension or by none, where one that is split further is known of the same calls."""
        if len(key.by) > 1 or "sku_meter" in key.by:
            return None
        for known, report in self._known.items():
            inside = known.by and {*key.by} <= {*known.by} and "sku_meter" not in known.by
            if inside and known._replace(by=key.by) == key and len(report.rows) <= _MOST_SUMMED:
                return replace(report, by=key.by, rows=tuple(_summed(report.rows, key.by)))
        return None


#: Bucket and value.
_Place = tuple[int, str | None]


class _SeriesKey(NamedTuple):
    """What a report is known by."""

    by: tuple[str, ...]
    granularity: CalendarUnit | None
    start: datetime
    end: datetime
    tz: str
    where: frozenset[tuple[str, frozenset[str | None]]]

    @classmethod
    def of(cls, query: Query) -> _SeriesKey:
        period = query.period
        return cls(query.by, query.granularity, period.start, period.end, period.tz, frozenset(query.where.items()))


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
    unit = query.granularity or "day"
    parts = read.cut(query)
    split = replace(query, by=(by,))
    if by == "sku_meter":  # there are few: one reading tells all
        whole = read(split)
        whole = replace(whole, rows=tuple(per_value(whole.rows, by)))
    else:
        whole = read(replace(view.query, by=(by,)))
        if len(whole.rows) * len(parts) <= _MOST_SUMMED:
            read(split)  # of which the next is summed up
    by_bucket = _placed(read(replace(query, by=())).rows, parts)
    times = _Times.read(read, view, question, len(whole.rows)) if question.timed else _Times()
    rows = [times.on(row, row.group[by]) for row in whole.rows] if question.timed else list(whole.rows)
    totals = replace(whole.totals, latency=times.whole)
    ranked = sorted(rows, key=lambda row: _greatest_first(measure, row, by))
    shown = [row.group[by] for row in ranked[: _SHOWN if len(ranked) <= _SHOWN else _SHOWN - 1]]
    if measure.timed:
        by_bucket = [replace(row, latency=times.by_bucket.get(at)) for at, row in enumerate(by_bucket)]
        cells = {value: times.over_time(value, parts) for value in shown}
    else:
        cells = _over_time(read, split, shown, rows, parts)
    series = [_series(row.group[by], cells[row.group[by]], row, question) for row in ranked[: len(shown)]]
    if len(ranked) > len(shown) and measure.adds:
        whole_rest = Row.total(ranked[len(shown) :], view.query.period)
        others = [_less(row, [cells[value][at] for value in shown]) for at, row in enumerate(by_bucket)]
        series.append(replace(_series(None, others, whole_rest, question), key=REST, hidden=REST in question.hidden))
    before_period = view.previous()
    before, before_totals = _before(read, query, before_period, timed=measure.timed)
    listed = [row for row in ranked if question.find.casefold() in (row.group[by] or "").casefold()]
    shown_rows = _sorted(listed, question)[:_MOST_ROWS]
    return Finding(
        question=question,
        view=view,
        unit=unit,
        coarser=coarser,
        buckets=parts,
        series=series,
        by_bucket=by_bucket,
        rows=shown_rows,
        most=max((Decimal(measure.of(row) or 0) for row in shown_rows), default=ZERO),
        found=len(listed),
        totals=totals,
        before=before,
        before_totals=before_totals,
        before_period=before_period,
        limits=_limits(view, measure, unit, question.drawn, balances),
        forecast=forecast(read, view, measure.of, totals) if measure.adds else None,
    )


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
    where = {**split.where, by: frozenset(leading)}
    known = by == "sku_meter" or len(rows) * len(parts) <= _MOST_SUMMED
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
    cells: Mapping[_Place, Latencies] = field(default_factory=dict[_Place, Latencies])
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
            cells = read.times(replace(split, where={**split.where, question.by: frozenset(slowest)}))
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


def per_value(rows: Iterable[Row], dimension: str) -> list[Row]:
    """`rows`, which may be split further, summed per value of `dimension` over all time."""
    return list(_sums(rows, lambda row: row.group[dimension], lambda row: {dimension: row.group[dimension]}))


def _summed(rows: Iterable[Row], by: Sequence[str]) -> Iterator[Row]:
    """`rows` per bucket and value of these dimensions alone."""

    def group(row: Row) -> dict[str, str | None]:
        return {name: row.group[name] for name in by}

    return _sums(rows, lambda row: (row.bucket.start, *group(row).values()), group)


def _sums(
    rows: Iterable[Row], key: Callable[[Row], object], group: Callable[[Row], dict[str, str | None]]
) -> Iterator[Row]:
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    for alike in found.values():
        whole = alike[0] if len(alike) == 1 else Row.total(alike, alike[0].bucket)
        yield replace(whole, group=group(alike[0]))


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


def _limits(view: View, measure: Measure, unit: CalendarUnit, form: Form, balances: Iterable[Balance]) -> list[Limit]:
    """Lines of the budgets that are about just what is shown."""
    if measure.budgeted is None or form == "share":
        return []
    scope = view.scope
    found: list[Limit] = []
    for one in balances:
        known = one.limit_known and one.limit.is_finite()
        if one.unit != measure.budgeted or one.scope != scope or not known:
            continue
        line = _line(view, one, unit, form)
        if line is not None:
            found.append(line)
    return found


def _line(view: View, one: Balance, unit: CalendarUnit, form: Form) -> Limit | None:
    if one.window_start is None or one.resets_at is None:
        return Limit(one.limit, f"limit of {one.budget}") if form == "running" else None
    period = view.query.period
    if form == "running":
        apart = max(abs(one.window_start - period.start), abs(one.resets_at - period.end))
        if apart >= _DAY:  # another window; one of the same calendar in another zone begins some hours apart
            return None
        other = f", whose window begins {one.window_start:%Y-%m-%d %H:%M} UTC" if apart else ""
        return Limit(one.limit, f"limit of {one.budget}{other}")
    bucket = floor(one.window_start, unit, view.tz)
    window = one.resets_at - one.window_start
    if (bucket.start, bucket.end) == (one.window_start, one.resets_at):
        return Limit(one.limit, f"limit of {one.budget}")
    part = bucket.end - bucket.start
    if part >= window:
        return None
    pace = ratio(multiply(one.limit, part // _SECOND), window // _SECOND)
    return Limit(pace, f"even pace of {one.budget}, by {unit}")


#: Days that are looked back on, and how many with calls it takes to say anything.
_BACK = timedelta(days=28)
_LEAST_DAYS = 7
_WEEK = 7
#: How many standard deviations hold four of five outcomes, if days are independent.
_BAND = Decimal("1.28")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a period may come to at its end.

    Attributes:
        so_far: What it came to by now.
        expected: What it may come to.
        low: Four of five times it is at least this much,
        high: and at most this much.
        words: How it was made.
    """

    so_far: Decimal
    expected: Decimal
    low: Decimal
    high: Decimal
    words: str


def forecast(
    read: Callable[[Query], Report], view: View, measure: Callable[[Row], Decimal | int | None], totals: Row
) -> Forecast | None:
    """What the view's period may come to; None when it is over, nearly over, or too little is known.

    Each day that is left is taken to come to the mean of the same weekdays of the last four weeks (of all days where
    there are less than two weeks of calls); the band is made of how far those days lay from their mean.

    Args:
        read: Reads the days that are looked back on.
        view: Period and filters; bounded.
        measure: A row's figure.
        totals: The period's sums by now.
    """
    period, now = view.query.period, view.now
    today = floor(now, "day", view.tz)
    if not period.start <= now < period.end or period.end <= today.end:
        return None
    since = floor(today.start - _BACK, "day", view.tz).start
    past = Period(since, today.end, view.tz)
    query = replace(view.query, period=past, granularity="day")
    found = {row.bucket.start: Decimal(measure(row) or 0) for row in read(query).rows}
    days = [(day, found.get(day.start, ZERO)) for day in buckets(past, "day")]
    so_far = Decimal(measure(totals) or 0)
    known = _since_first([one for one in days if one[0].start < today.start])
    if len(known) < _LEAST_DAYS:
        return None
    by_weekday = len(known) >= 2 * _WEEK

    def mean(day: Period) -> Decimal:
        weekday = _weekday(day, view)
        like = [amount for one, amount in known if not by_weekday or _weekday(one, view) == weekday]
        return ratio(total(like), len(like))

    spread = EXACT.sqrt(ratio(total(_square(subtract(amount, mean(day))) for day, amount in known), len(known)))
    left = buckets(Period(today.end, period.end, view.tz), "day")
    rest_of_today = max(subtract(mean(today), found.get(today.start, ZERO)), ZERO)
    expected = add(so_far, add(rest_of_today, total(mean(day) for day in left)))
    margin = multiply(_BAND, spread, EXACT.sqrt(Decimal(len(left) + 1)))
    like = "the same weekdays of" if by_weekday else "the days of"
    words = (
        f"Each day that is left is taken to be like the mean of {like} the last {counted(len(known), 'day')}; four "
        "of five times it ends within the band, if those days tell how days differ."
    )
    return Forecast(so_far, expected, max(subtract(expected, margin), so_far), add(expected, margin), words)


def _since_first(days: Sequence[tuple[Period, Decimal]]) -> list[tuple[Period, Decimal]]:
    """Without the days before the first that had any."""
    first = next((at for at, (_, amount) in enumerate(days) if amount), len(days))
    return list(days[first:])


def _square(value: Decimal) -> Decimal:
    return multiply(value, value)


def _weekday(day: Period, view: View) -> int:
    return view.local(day.start).weekday()
