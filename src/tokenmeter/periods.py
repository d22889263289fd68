"""Stretches of time, cut in a time zone: report periods and budget windows. All instants are aware UTC."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.values import dataclass

__all__ = [
    "CALENDAR_UNITS",
    "CalendarUnit",
    "Period",
    "buckets",
    "floor",
    "parse_day",
    "parse_instant",
    "parse_period",
    "zone",
]

CalendarUnit = Literal["hour", "day", "week", "month", "quarter", "year"]
CALENDAR_UNITS: tuple[CalendarUnit, ...] = ("hour", "day", "week", "month", "quarter", "year")
_INSTANT = timedelta(microseconds=1)
_BEGINNING = datetime.min.replace(tzinfo=UTC)
#: No call was billed by the token before: what is earlier is in another unit, such as a spreadsheet's days.
FIRST_CALL = datetime(2020, 1, 1, tzinfo=UTC)
#: How far the clock of who tells when a call was made may be ahead of the ledger's.
_AHEAD = timedelta(days=1)
_OUT_OF_RANGE = "An instant lies outside the years 1 to 9999 in UTC; use one that lies within, or leave the end open."


@dataclass(frozen=True, slots=True)
class Period:
    """``[start, end)`` between two aware UTC instants, with the zone it was cut in and a label for people.

    Where no label is given it is made of both ends: ``2026-10-01 to 2026-10-15``, the second no part of it.
    """

    start: datetime
    end: datetime
    tz: str = "UTC"
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", _name_span(self))

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def _name_span(period: Period) -> str:
    ends = period.start, period.end
    with suppress(ConfigurationError, OverflowError, ValueError):  # told where it is used; the ends of time
        where = zone(period.tz)
        ends = period.start.astimezone(where), period.end.astimezone(where)
    told = [end.replace(tzinfo=None).isoformat() for end in ends]
    midnight = f"T{time().isoformat()}"
    if all(one.endswith(midnight) for one in told):
        told = [one.removesuffix(midnight) for one in told]
    return " to ".join(told)


def zone(name: str) -> tzinfo:
    """The IANA time zone called `name`.

    Raises:
        ConfigurationError: there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name if isinstance(name, str) else "")  # pyright: ignore[reportUnnecessaryIsInstance] - settings
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ConfigurationError(
            f"Unknown time zone {shown(name)}; use an IANA name such as 'UTC', 'Europe/Berlin' or 'Asia/Kathmandu'."
        ) from None


def _midnight(day: date, tz: tzinfo) -> datetime:
    """The first instant of `day` in `tz`, as UTC. A midnight skipped by daylight saving is the first that exists."""
    try:
        return datetime.combine(day, time(), tz).astimezone(UTC)
    except (OverflowError, ValueError):
        raise ConfigurationError(_OUT_OF_RANGE) from None


def _first_day(day: date, unit: CalendarUnit, week_start: int) -> date:
    if unit == "week":
        return day - timedelta(days=(day.weekday() - week_start) % 7)
    if unit == "month":
        return day.replace(day=1)
    if unit == "quarter":
        return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
    if unit == "year":
        return day.replace(month=1, day=1)
    return day


def _next_day(first: date, unit: CalendarUnit) -> date:
    if unit == "week":
        return first + timedelta(days=7)
    if unit == "day":
        return first + timedelta(days=1)
    months = {"month": 1, "quarter": 3, "year": 12}[unit]
    index = first.year * 12 + first.month - 1 + months
    return date(index // 12, index % 12 + 1, 1)


def floor(moment: datetime, unit: CalendarUnit, tz: str = "UTC", *, week_start: int = 0) -> Period:
    """The calendar hour, day, week, month, quarter or year in `tz` that holds `moment`.

    Args:
        moment: An aware instant.
        unit: Which calendar unit.
        tz: IANA zone name.
        week_start: 0 = Monday ... 6 = Sunday.

    Raises:
        ConfigurationError: no such zone; it begins or ends outside of the years 1 to 9999.
    """
    try:
        return _floor(moment, unit, tz, week_start)
    except (OverflowError, ValueError):
        raise ConfigurationError(_OUT_OF_RANGE) from None


def _floor(moment: datetime, unit: CalendarUnit, tz: str, week_start: int) -> Period:
    where = zone(tz)
    local = moment.astimezone(where)
    if unit == "hour":
        # An hour by the wall clock's offset, so that zones with half or quarter hours are cut on their own hours.
        offset = local.utcoffset() or timedelta()
        shifted = moment.astimezone(UTC) + offset
        start = shifted.replace(minute=0, second=0, microsecond=0) - offset
        start, end = _cut_where_clocks_change(start, start + timedelta(hours=1), moment, where)
        return Period(start, end, tz, local.strftime("%Y-%m-%dT%H:00"))
    first = _first_day(local.date(), unit, week_start)
    return _calendar_period(first, unit, tz)


def _cut_where_clocks_change(
    start: datetime, end: datetime, moment: datetime, where: tzinfo
) -> tuple[datetime, datetime]:
    """The part of an hour around `moment` that has one offset: Lord Howe's clocks are set by half an hour."""
    offset = moment.astimezone(where).utcoffset()
    if start.astimezone(where).utcoffset() != offset:
        start = _change(start, moment, where)
    if (end - _INSTANT).astimezone(where).utcoffset() != offset:
        end = _change(moment, end, where)
    return start, end


def _change(before: datetime, after: datetime, where: tzinfo) -> datetime:
    """The first instant after `before`, and until `after`, at which another offset holds."""
    old = before.astimezone(where).utcoffset()
    while after - before > _INSTANT:
        middle = before + (after - before) // 2
        if middle.astimezone(where).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after.astimezone(UTC)


def _calendar_period(first: date, unit: CalendarUnit, tz: str) -> Period:
    where = zone(tz)
    return Period(_midnight(first, where), _midnight(_next_day(first, unit), where), tz, _label(first, unit))


def _label(first: date, unit: CalendarUnit) -> str:
    if unit == "month":
        return first.strftime("%Y-%m")
    if unit == "quarter":
        return f"{first.year}-Q{(first.month - 1) // 3 + 1}"
    if unit == "year":
        return f"{first.year:04d}"
    return first.isoformat()


def buckets(period: Period, unit: CalendarUnit, *, week_start: int = 0) -> list[Period]:
    """`period` cut into calendar units of its own zone; the first and last may be partial."""
    result: list[Period] = []
    moment = period.start
    while moment < period.end:
        whole = floor(moment, unit, period.tz, week_start=week_start)
        end = min(max(whole.end, moment + timedelta(microseconds=1)), period.end)
        result.append(Period(moment, end, period.tz, whole.label))
        moment = end
    return result


def parse_instant(value: datetime | date | str, tz: str = "UTC") -> datetime:
    """An instant from an aware datetime, a date (its midnight in `tz`) or ISO 8601 text; naive ones are read in `tz`.

    Raises:
        ConfigurationError: not an instant.
    """
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value) if len(value) > len("2026-01-01") else date.fromisoformat(value)
        except ValueError:
            raise ConfigurationError(
                f"{shown(value)} is not an instant; use '2026-11-23', '2026-11-23T10:00' or '2026-11-23T10:00+01:00'."
            ) from None
    if isinstance(value, datetime):
        try:
            return (value if value.tzinfo else value.replace(tzinfo=zone(tz))).astimezone(UTC)
        except (OverflowError, ValueError):
            raise ConfigurationError(_OUT_OF_RANGE) from None
    if not isinstance(value, date):  # pyright: ignore[reportUnnecessaryIsInstance] - values of a settings file come here
        raise ConfigurationError(
            f"{shown(value)} is no instant; use a datetime, a date or a text such as '2026-11-23'."
        )
    return _midnight(value, zone(tz))


def check_made(at: datetime, now: datetime, said: str) -> None:
    """Refuse an instant at which no call can have been made: before there was any, or still to come.

    Args:
        at: The instant.
        now: The ledger's; a clock may be a day ahead of it.
        said: What the error begins with: who says so, in his words.

    Raises:
        ConfigurationError: it is none of a call.
    """
    if at < FIRST_CALL:
        raise ConfigurationError(
            f"{said} is before {FIRST_CALL:%Y}, when no call was billed by the token: is it in another unit?"
        )
    if at > now + _AHEAD:
        raise ConfigurationError(f"{said} is still to come: a call is recorded when it was made.")


def parse_day(value: datetime | date | str | None) -> date | None:
    """A calendar day from a date, a datetime (the day it says in its own zone) or ISO 8601 text; None stays.

    Raises:
        ConfigurationError: not a day.
    """
    if isinstance(value, str):
        with suppress(ValueError):
            return datetime.fromisoformat(value.strip()).date()
    elif isinstance(value, datetime):
        return value.date()
    elif value is None or isinstance(value, date):  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not checked
        return value
    raise ConfigurationError(f"{shown(value)} is not a day; use a date or a text such as '2026-11-23'.")


_LAST = re.compile(r"last-(\d{1,4})(h|d|w|m)$")
_FORMS: tuple[tuple[re.Pattern[str], CalendarUnit], ...] = (
    (re.compile(r"(?P<y>\d{4})$"), "year"),
    (re.compile(r"(?P<y>\d{4})-Q(?P<q>[1-4])$", re.IGNORECASE), "quarter"),
    (re.compile(r"(?P<y>\d{4})-(?P<m>\d{2})$"), "month"),
    (re.compile(r"(?P<y>\d{4})-W(?P<w>\d{2})$"), "week"),
    (re.compile(r"(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})$"), "day"),
)
_NAMED: dict[str, tuple[CalendarUnit, int]] = {
    "today": ("day", 0),
    "yesterday": ("day", -1),
    **{f"this-{unit}": (unit, 0) for unit in CALENDAR_UNITS},
    **{f"last-{unit}": (unit, -1) for unit in CALENDAR_UNITS},
}


def parse_period(text: str, tz: str = "UTC", *, now: datetime | None = None) -> Period:
    """A period from what a person writes.

    Forms: ``2026``, ``2026-Q4``, ``2026-11``, ``2026-W47``, ``2026-11-23``, ``today``, ``yesterday``, ``this-month``,
    ``last-month`` (any calendar unit), and ``last-24h``, ``last-7d``, ``last-4w``, ``last-3m`` (whole calendar days,
    weeks or months up to and including the current one; hours are exact).

    Raises:
        ConfigurationError: none of these.
    """
    moment = datetime.now(UTC) if now is None else parse_instant(now, tz)
    named = _NAMED.get(text)
    if named:
        unit, back = named
        current = floor(moment, unit, tz)
        if not back:
            return _call_week(current, unit)
        if current.start - _BEGINNING <= _INSTANT:
            raise ConfigurationError(_OUT_OF_RANGE)
        return _call_week(floor(current.start - _INSTANT, unit, tz), unit)
    if last := _LAST.match(text):
        try:
            return _last(int(last[1]), last[2], tz, moment, text)
        except (OverflowError, ValueError):
            raise ConfigurationError(_OUT_OF_RANGE) from None
    for pattern, unit in _FORMS:
        if found := pattern.match(text):
            parts = found.groupdict()
            try:
                return _call_week(_calendar_period(_form_day(parts), unit, tz), unit)
            except (OverflowError, ValueError):
                break
    raise ConfigurationError(
        f"Unknown period {text!r}; use '2026-11', '2026-11-23', '2026-Q4', '2026', 'today', 'yesterday', 'this-month', "
        "'last-month', 'last-7d' or 'last-24h', or give since= and until=."
    )


def _call_week(period: Period, unit: CalendarUnit) -> Period:
    """A week by the name it is asked for, ``2026-W44``: by its first day it would be taken for that day."""
    if unit != "week":
        return period
    year, week, _ = period.start.astimezone(zone(period.tz)).isocalendar()
    return Period(period.start, period.end, period.tz, f"{year:04d}-W{week:02d}")


def _form_day(parts: dict[str, str]) -> date:
    year = int(parts["y"])
    if "w" in parts:
        return date.fromisocalendar(year, int(parts["w"]), 1)
    month = int(parts["q"]) * 3 - 2 if "q" in parts else int(parts.get("m", 1))
    return date(year, month, int(parts.get("d", 1)))


def _last(count: int, letter: str, tz: str, now: datetime, label: str) -> Period:
    if count < 1:
        raise ConfigurationError(f"{label!r} is empty; use a count of at least 1.")
    if letter == "h":
        return Period(now - timedelta(hours=count), now, tz, label)
    unit: CalendarUnit = {"d": "day", "w": "week", "m": "month"}[letter]  # type: ignore[assignment]
    current = floor(now, unit, tz)
    start = current
    for _ in range(count - 1):
        start = floor(start.start - timedelta(microseconds=1), unit, tz)
    return Period(start.start, current.end, tz, label)
