"""The stretches of UTC over which sums are kept: hours, days and months; and how few of them make up any stretch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import NamedTuple

from tokenmeter.stores.fold import HOUR, month_of
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["DAY", "Level", "Term", "label", "slots", "terms"]

DAY = 24 * HOUR


class Level(IntEnum):
    """How long a slot is. A slot's number is how many such stretches lie before it: since 1970, months since year 0."""

    HOUR = 0
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


def _slot(level: Level, moment: int) -> int:
    if level is Level.MONTH:
        return month_of(moment // DAY)
    return moment // (DAY if level is Level.DAY else HOUR)


def _start(level: Level, slot: int) -> int:
    if level is Level.MONTH:
        return to_microseconds(datetime(slot // 12, slot % 12 + 1, 1, tzinfo=UTC))
    return slot * (DAY if level is Level.DAY else HOUR)


def label(level: Level, slot: int) -> str:
    """A slot as a person reads it: ``2026-11-03 14:00``, ``2026-11-03`` or ``2026-11``."""
    moment = from_microseconds(_start(level, slot))
    return f"{moment:{('%Y-%m-%d %H:%M', '%Y-%m-%d', '%Y-%m')[level]}}"


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
        hours: Whether there are sums of hours; else entries stand in for them as well.
    """
    if not hours:
        yield from _terms(1, start, end, (Level.MONTH, Level.DAY), None)
        return
    first, last = -(-start // HOUR) * HOUR, end // HOUR * HOUR
    if first >= last:
        first = last = end
    if start < first:
        yield Term(1, None, start, first)
    yield from _terms(1, first, last, (Level.MONTH, Level.DAY), Level.HOUR)
    if last < end:
        yield Term(1, None, last, end)


def _terms(sign: int, start: int, end: int, levels: Sequence[Level], rest: Level | None) -> Iterator[Term]:
    if start >= end:
        return
    if not levels:
        yield Term(sign, rest, start, end)
        return
    level, finer = levels[0], levels[1:]
    first, last = _nearest(level, start), _nearest(level, end)
    if first >= last:
        yield from _terms(sign, start, end, finer, rest)
        return
    yield Term(sign, level, first, last)
    yield from _terms(sign, start, first, finer, rest)
    yield from _terms(-sign, first, start, finer, rest)
    yield from _terms(sign, last, end, finer, rest)
    yield from _terms(-sign, end, last, finer, rest)


def _nearest(level: Level, moment: int) -> int:
    slot = _slot(level, moment)
    before, after = _start(level, slot), _start(level, slot + 1)
    return before if moment - before <= after - moment else after
