"""What lies ahead: the lines of budgets, and what a running period may come to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import dropwhile
from typing import NamedTuple

from tokenmeter.budgets import Balance
from tokenmeter.dashboard.questions import Form, Measure
from tokenmeter.dashboard.view import View
from tokenmeter.display import counted
from tokenmeter.money import EXACT, ZERO, add, multiply, ratio, subtract, total
from tokenmeter.periods import CalendarUnit, Period, buckets, floor
from tokenmeter.reports import Report, Row
from tokenmeter.reports.query import Query
from tokenmeter.values import dataclass

_SECOND, _DAY = timedelta(seconds=1), timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget's line in the chart.

    Attributes:
        amount: Where it lies, in the measure's unit.
        words: What it is.
    """

    amount: Decimal
    words: str


def budget_lines(
    view: View, measure: Measure, unit: CalendarUnit, form: Form, balances: Iterable[Balance]
) -> list[Limit]:
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
    start = one.counts_from
    if start is None or one.resets_at is None:
        return Limit(one.limit, f"limit of {one.budget}") if form == "running" else None
    period = view.query.period
    if form == "running":
        apart = max(abs(start - period.start), abs(one.resets_at - period.end))
        if apart >= _DAY:  # another window; one of the same calendar in another zone begins some hours apart
            return None
        other = f", whose window begins {start:%Y-%m-%d %H:%M} UTC" if apart else ""
        return Limit(one.limit, f"limit of {one.budget}{other}")
    bucket = floor(start, unit, view.tz)
    window = one.resets_at - start
    if (bucket.start, bucket.end) == (start, one.resets_at):
        return Limit(one.limit, f"limit of {one.budget}")
    part = bucket.end - bucket.start
    if part >= window:
        return None
    pace = ratio(multiply(one.limit, part // _SECOND), window // _SECOND)
    return Limit(pace, f"even pace of {one.budget}, by {unit}")


#: Days that are looked back on, and how many with calls it takes to say anything.
_BACK = timedelta(days=28)
_LEAST_DAYS = 7
#: Four weeks say nothing of what is further ahead.
_AHEAD = timedelta(days=366)
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
    """What the view's period may come to; None when it is over, nearly over, ends in years, or too little is known.

    Each day that is left is taken to come to the mean of the same weekdays of the last four weeks (of all days where
    there are less than two weeks of calls); the band is made of how far those days lay from their mean. A day of which
    nothing is known is none of them.

    Args:
        read: Reads the days that are looked back on.
        view: Period and filters; bounded.
        measure: A row's figure.
        totals: The period's sums by now.
    """
    period, now, so_far = view.query.period, view.now, measure(totals)
    today = floor(now, "day", view.tz)
    if so_far is None or not period.start <= now < period.end or not today.end < period.end <= today.end + _AHEAD:
        return None
    past = Period(floor(today.start - _BACK, "day", view.tz).start, today.end, view.tz)
    found = {row.bucket.start: measure(row) for row in read(replace(view.query, period=past, granularity="day")).rows}
    known = _Days.of((_weekday(day, view), found.get(day.start, ZERO)) for day in buckets(past, "day")[:-1])
    if len(known.amounts) < _LEAST_DAYS:
        return None
    left = buckets(Period(today.end, period.end, view.tz), "day")
    rest_of_today = max(subtract(known.mean(_weekday(today, view)), found.get(today.start) or ZERO), ZERO)
    expected = total([Decimal(so_far), rest_of_today, *(known.mean(_weekday(day, view)) for day in left)])
    # Days that know nothing of each other add up by their squares; the rest of today is one more.
    margin = multiply(_BAND, known.spread, EXACT.sqrt(Decimal(len(left) + 1)))
    like = "the same weekdays of" if known.by_weekday else "the days of"
    words = (
        f"Each day that is left is taken to be like the mean of {like} the last {counted(len(known.amounts), 'day')}; "
        "four of five times it ends within the band, if those days tell how days differ."
    )
    # What was spent stays spent.
    low = max(subtract(expected, margin), Decimal(so_far))
    return Forecast(Decimal(so_far), expected, low, add(expected, margin), words)


class _Days(NamedTuple):
    """What days came to, from the first on that came to anything.

    Attributes:
        amounts: Weekday and figure; days whose figure is not known are left out.
    """

    amounts: Sequence[tuple[int, Decimal]]

    @classmethod
    def of(cls, days: Iterable[tuple[int, Decimal | int | None]]) -> _Days:
        """Those of days in a row."""
        known = [(weekday, Decimal(amount)) for weekday, amount in days if amount is not None]
        return cls(list(dropwhile(lambda one: not one[1], known)))

    @property
    def by_weekday(self) -> bool:
        """Whether there are enough to tell weekdays apart."""
        return len(self.amounts) >= 2 * _WEEK

    def mean(self, weekday: int) -> Decimal:
        """What such a day comes to; as any day where none like it is known."""
        like = [amount for one, amount in self.amounts if not self.by_weekday or one == weekday]
        whole = like or [amount for _, amount in self.amounts]
        return ratio(total(whole), len(whole))

    @property
    def spread(self) -> Decimal:
        """How far days lie from their mean: the standard deviation."""
        apart = [subtract(amount, self.mean(weekday)) for weekday, amount in self.amounts]
        return EXACT.sqrt(ratio(total(multiply(one, one) for one in apart), len(apart)))


def _weekday(day: Period, view: View) -> int:
    return view.local(day.start).weekday()
