"""Budget windows: calendar stretches in a time zone, rolling stretches, or all time. Computed, never reset by a job."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from typing import cast

from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.periods import CALENDAR_UNITS, CalendarUnit, floor, parse_instant, zone
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.values import dataclass

#: A rolling window is cut into this many steps (see `Window.spans`): it never admits more than the limit in any
#: stretch of its length, and at least 6/7 of it under steady load.
ROLLING_STEPS = 6

#: ``[start, end)`` in microseconds since the epoch; end None = never.
Span = tuple[int, int | None]

_DAY = timedelta(days=1)
_ROLLING = re.compile(r"rolling-(?P<count>[1-9]\d{0,5})(?P<unit>[smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_ROLLING_US = 3650 * 86_400 * 1_000_000
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


@dataclass(frozen=True, slots=True)
class Window:
    """How a budget's time is cut.

    Attributes:
        period: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``total`` or ``rolling-<n>s|m|h|d``.
        tz: IANA zone the calendar is read in.
        week_start: 0 = Monday ... 6 = Sunday.
        anchor: Day of the month on which months, quarters and years begin; in a shorter month its last day.
        reset_hour: Hour of the day, by the zone's clock, at which days and longer windows begin.
    """

    period: str
    tz: str = "UTC"
    week_start: int = 0
    anchor: int = 1
    reset_hour: int = 0

    def __post_init__(self) -> None:
        zone(self.tz)
        if self.period not in (*CALENDAR_UNITS, "total") and not _ROLLING.fullmatch(str(self.period)):
            raise ConfigurationError(
                f"period must be one of {', '.join(CALENDAR_UNITS)}, total or rolling-<n>s|m|h|d "
                f"(rolling-60s, rolling-24h), not {shown(self.period)}."
            )
        if (self.length_us or 0) > _LONGEST_ROLLING_US:
            raise ConfigurationError(
                f"A rolling window is 3650 days long at most, not {shown(self.period)}; use total."
            )
        _check_day(self.week_start, "week_start", 0, 6, "0 (Monday) to 6 (Sunday)")
        _check_day(self.anchor, "anchor", 1, 31, "1 to 31, a day of the month")
        if self.week_start and self.period != "week":
            raise ConfigurationError(f"week_start only goes with period='week', not {shown(self.period)}.")
        if self.anchor != 1 and self.period not in _MONTHS:
            raise ConfigurationError(f"anchor only goes with a month, quarter or year, not {shown(self.period)}.")
        _check_day(self.reset_hour, "reset_hour", 0, 23, "0 to 23, an hour of the day")
        if self.reset_hour and self.period not in CALENDAR_UNITS[1:]:
            raise ConfigurationError(f"reset_hour only goes with a day or a longer window, not {shown(self.period)}.")

    @property
    def length_us(self) -> int | None:
        """Length of a rolling window in microseconds; None for any other."""
        found = _ROLLING.fullmatch(self.period)
        return int(found["count"]) * _SECONDS[found["unit"]] * 1_000_000 if found else None

    @property
    def label(self) -> str:
        """The window in words, as part of a budget's name."""
        parts = [self.period]
        if self.week_start:
            parts.append(f"from-{('mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun')[self.week_start]}")
        if self.anchor != 1:
            parts.append(f"from-{self.anchor}")
        if self.reset_hour:
            parts.append(f"at-{self.reset_hour:02d}")
        if self.tz != "UTC" and self.period in CALENDAR_UNITS:
            parts.append(self.tz)
        return " ".join(parts)

    def spans(self, moment_us: int) -> tuple[Span, ...]:
        """The counters' stretches that `moment_us` falls into.

        Calendar and total budgets have one. A rolling one of length L and step s = L / `ROLLING_STEPS` keeps one
        counter per stretch ``[k*s, k*s + L + s)``: every stretch of length L lies inside one of these, so a cap on
        each of them is a cap on all. A call counts in the seven that hold its start.
        """
        length = self.length_us
        if length is None:
            return (self.span(moment_us),)
        step = max(length // ROLLING_STEPS, 1)
        last = moment_us // step
        first = (moment_us - length - step) // step + 1
        return tuple((index * step, index * step + length + step) for index in range(first, last + 1))

    def span(self, moment_us: int) -> Span:
        """The calendar stretch around `moment_us`; ``(0, None)`` for a total."""
        if self.period == "total":
            return 0, None
        moment = from_microseconds(moment_us)
        unit = cast("CalendarUnit", self.period)
        if self.anchor != 1:
            return self._anchored(moment, _MONTHS[unit])
        if not self.reset_hour:
            whole = floor(moment, unit, self.tz, week_start=self.week_start)
            return to_microseconds(whole.start), to_microseconds(whole.end)
        where = zone(self.tz)
        day = moment.astimezone(where).date()
        while moment < self._begin(day):  # more than once where a zone left a whole day out
            day -= _DAY
        whole = floor(self._midday(day), unit, self.tz, week_start=self.week_start)
        # `end` is the first instant of the day after the last one.
        last = (whole.end - timedelta(microseconds=1)).astimezone(where).date()
        first = whole.start.astimezone(where).date()
        return to_microseconds(self._begin(first)), to_microseconds(self._begin(last + _DAY))

    def _begin(self, day: date) -> datetime:
        """The instant at which `day` begins for this window. An hour that daylight saving skips is the one after it."""
        return parse_instant(datetime.combine(day, time(self.reset_hour)), self.tz)

    def _midday(self, day: date) -> datetime:
        return parse_instant(datetime.combine(day, time(12)), self.tz)

    def _anchored(self, moment: datetime, months: int) -> Span:
        local = moment.astimezone(zone(self.tz)).date()
        while moment < self._begin(local):
            local -= _DAY
        index = (local.year * 12 + local.month - 1) // months * months
        if local < self._anchor_day(index):
            index -= months
        start, end = (self._begin(self._anchor_day(i)) for i in (index, index + months))
        return to_microseconds(start), to_microseconds(end)

    def _anchor_day(self, index: int) -> date:
        first_of_next = date((index + 1) // 12, (index + 1) % 12 + 1, 1)
        last = first_of_next - _DAY
        return last.replace(day=min(self.anchor, last.day))


def _check_day(value: object, name: str, low: int, high: int, meaning: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigurationError(f"{name} must be {meaning}, not {shown(value)}.")
