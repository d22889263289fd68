"""The stretches of UTC over which sums are kept: quarter-hours, days and months.

Every current time zone lies on quarter-hours, so any calendar period in any zone is made of whole slots. A slot is
known by its end and its level: the three slots that are being written then lie side by side in the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from tokenmeter.stores.postgres.rollups import DAY, QUARTER_HOUR
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["Level", "Term", "ends", "month", "slots_of", "terms"]


class Level(IntEnum):
    """How long a slot is."""

    QUARTER_HOUR = 0
    DAY = 1
    MONTH = 2


class Term(NamedTuple):
    """A part of a sum over time: whole slots of `level` in ``[start, end)``, to be added (`sign` 1) or taken away (-1).

    Level None stands for the entries themselves.
    """

    sign: int
    level: Level | None
    start: int
    end: int


@lru_cache(maxsize=1024)
def month(day: int) -> tuple[int, int]:
    """Start and end of the UTC month that holds the day starting at `day`, in microseconds."""
    first = from_microseconds(day).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    later = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return to_microseconds(first), to_microseconds(later)


def _slot(level: Level, moment: int) -> tuple[int, int]:
    if level is Level.MONTH:
        return month(moment - moment % DAY)
    width = DAY if level is Level.DAY else QUARTER_HOUR
    start = moment - moment % width
    return start, start + width


def slots_of(moment: int) -> list[tuple[int, Level]]:
    """End and level of each slot that `moment` is in."""
    day = moment - moment % DAY
    quarter = moment - moment % QUARTER_HOUR
    return [(quarter + QUARTER_HOUR, Level.QUARTER_HOUR), (day + DAY, Level.DAY), (month(day)[1], Level.MONTH)]


def ends(level: Level, start: int, end: int) -> list[int]:
    """The ends of the slots of `level` that ``[start, end)`` is made of."""
    result: list[int] = []
    while start < end:
        start = _slot(level, start)[1]
        result.append(start)
    return result


def terms(start: int, end: int) -> Iterator[Term]:
    """``[start, end)`` in as few slots as it takes, some of them taken away again.

    A day in Berlin is a UTC day, plus two hours before it, less the two hours at its end. Entries, needed at ends that
    lie on no quarter-hour, are never taken away.
    """
    first, last = -(-start // QUARTER_HOUR) * QUARTER_HOUR, end // QUARTER_HOUR * QUARTER_HOUR
    if first >= last:
        first = last = end
    if start < first:
        yield Term(1, None, start, first)
    yield from _terms(1, first, last, (Level.MONTH, Level.DAY))
    if last < end:
        yield Term(1, None, last, end)


def _terms(sign: int, start: int, end: int, levels: Sequence[Level]) -> Iterator[Term]:
    if start >= end:
        return
    if not levels:
        yield Term(sign, Level.QUARTER_HOUR, start, end)
        return
    level, finer = levels[0], levels[1:]
    first, last = _nearest(level, start), _nearest(level, end)
    if first >= last:
        yield from _terms(sign, start, end, finer)
        return
    yield Term(sign, level, first, last)
    yield from _terms(sign, start, first, finer)
    yield from _terms(-sign, first, start, finer)
    yield from _terms(sign, last, end, finer)
    yield from _terms(-sign, end, last, finer)


def _nearest(level: Level, moment: int) -> int:
    before, after = _slot(level, moment)
    return before if moment - before <= after - moment else after
