"""Instants as stores keep them, and the stretches of UTC over which sums are kept: hours, days, weeks and months."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import cache, lru_cache, partial
from typing import NamedTuple

_SECOND = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = 3_600_000_000
DAY = 24 * HOUR
#: (level, slot): a stretch of time.
Stretch = tuple[int, int]


def to_microseconds(moment: datetime) -> int:
    """An aware instant as microseconds since the epoch."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * _SECOND + since.microseconds


def from_microseconds(microseconds: int) -> datetime:
    """Microseconds since the epoch as an aware UTC instant."""
    return _EPOCH + timedelta(microseconds=microseconds)


@lru_cache(maxsize=4096)
def month_of(day: int) -> int:
    """Number of the month (year x 12 + month - 1) that a day since 1970 is in."""
    date = from_microseconds(day * 24 * HOUR)
    return date.year * 12 + date.month - 1


def week_of(day: int) -> int:
    """Number of the week, from Monday on, that a day since 1970 is in."""
    return (day + 3) // 7


class Level(IntEnum):
    """How long a slot is. A slot's number is how many such stretches lie before it: since 1970, months since year 0.

    Weeks begin on Mondays; the first is that of 1970-01-01. Only sums of all meters together are kept by hour and week.
    """

    HOUR = 0
    DAY = 1
    MONTH = 2
    WEEK = 3


class Term(NamedTuple):
    """A part of a sum over time: whole slots of `level` in ``[start, end)``, to be added (`sign` 1) or taken away (-1).

    Level None stands for the entries themselves.
    """

    sign: int
    level: Level | None
    start: int
    end: int


def _slot(level: Level, moment: int) -> int:
    if level is Level.MONTH:
        return month_of(moment // DAY)
    if level is Level.WEEK:
        return week_of(moment // DAY)
    return moment // (DAY if level is Level.DAY else HOUR)


def start_of(level: Level, slot: int) -> int:
    """When a slot begins, in microseconds since the epoch."""
    if level is Level.MONTH:
        return to_microseconds(datetime(slot // 12, slot % 12 + 1, 1, tzinfo=UTC))
    if level is Level.WEEK:
        return (slot * 7 - 3) * DAY
    return slot * (DAY if level is Level.DAY else HOUR)


@cache
def ends(level: Level) -> tuple[int, int]:
    """The first and the last slot that the calendar has: of the years 1 to 9999."""
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    return _slot(level, to_microseconds(first)), _slot(level, to_microseconds(last))


def is_slot(level: object, slot: object) -> bool:
    """Whether this is a level and one of its slots: a file that was written to by others may have anything there."""
    if not isinstance(level, int) or not isinstance(slot, int) or level not in set(Level):
        return False
    first, last = ends(Level(level))
    return first <= slot <= last


def label(level: int, slot: int) -> str:
    """A slot as a person reads it: ``2026-11-03 14:00``, ``2026-11-03``, ``2026-11``, ``week of 2026-11-02``.

    What is none is told as it is: ``slot 1000000000000 of level 1``.
    """
    if not is_slot(level, slot):
        return f"slot {slot!r:.60} of level {level!r:.60}"
    moment = from_microseconds(start_of(Level(level), slot))
    return f"{moment:{('%Y-%m-%d %H:%M', '%Y-%m-%d', '%Y-%m', 'week of %Y-%m-%d')[level]}}"


def slots(term: Term) -> range:
    """The slots that `term` is made of."""
    if term.level is None:
        return range(0)
    return range(_slot(term.level, term.start), _slot(term.level, term.end - 1) + 1)


def terms(start: int, end: int, *, hours: bool) -> Iterator[Term]:
    """``[start, end)`` in as few slots as it takes, some of them taken away again.

    A day in Berlin is a UTC day, plus two hours before it, less the two hours at its end. Entries stand in where no
    slot ends.

    Args:
        start: Microseconds since the epoch.
        end: First microsecond after.
        hours: Whether there are sums of hours and weeks; else days and entries stand in for them.
    """
    if not hours:
        yield from _terms(1, start, end, (Level.MONTH, Level.DAY), None)
        return
    first, last = -(-start // HOUR) * HOUR, end // HOUR * HOUR
    if first >= last:
        first = last = end
    if start < first:
        yield Term(1, None, start, first)
    yield from _terms(1, first, last, (Level.MONTH, Level.WEEK, Level.DAY), Level.HOUR)
    if last < end:
        yield Term(1, None, last, end)


def _terms(sign: int, start: int, end: int, levels: Sequence[Level], rest: Level | None) -> list[Term]:
    if start >= end:
        return []
    if not levels:
        return [Term(sign, rest, start, end)]
    level, finer = levels[0], levels[1:]
    first, last = _nearest(level, start), _nearest(level, end)
    if first >= last:
        return _terms(sign, start, end, finer, rest)
    edges = partial(_terms, levels=finer, rest=rest)
    found = [
        Term(sign, level, first, last),
        *edges(sign, start, first),
        *edges(-sign, first, start),
        *edges(sign, last, end),
        *edges(-sign, end, last),
    ]
    # The middle of a week is nearest to both its ends: one day of it is not the week less six.
    if finer and len(found) > 1:
        return min(found, _terms(sign, start, end, finer, rest), key=_count)
    return found


def _count(found: Sequence[Term]) -> int:
    """How much is to be read: slots, and hours of entries."""
    return sum(len(slots(term)) if term.level is not None else -(-(term.end - term.start) // HOUR) for term in found)


def _nearest(level: Level, moment: int) -> int:
    slot = _slot(level, moment)
    before, after = start_of(level, slot), start_of(level, slot + 1)
    return before if moment - before <= after - moment else after
