"""What a running period may come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal

from tokenmeter.dashboard.view import View
from tokenmeter.money import EXACT, ZERO, add, multiply, ratio, subtract, total
from tokenmeter.periods import Period, buckets, floor
from tokenmeter.reports import Report, Row
from tokenmeter.reports.query import Query

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
        f"Each day that is left is taken to be like the mean of {like} the last {len(known)} days; four of five times "
        "it ends within the band, if those days tell how days differ."
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
