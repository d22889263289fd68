"""Report groups of an SQLite ledger: from the kept sums where they can answer, else from entries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tokenmeter.stores.base import Aggregate, EntryFilter
from tokenmeter.stores.rollups import SUMS, Cell, Tally
from tokenmeter.stores.rows import AMOUNT_COLUMNS, amounts_of
from tokenmeter.stores.selection import conditions, of_context
from tokenmeter.stores.session import Session
from tokenmeter.stores.slots import Level, Term, ends, terms
from tokenmeter.stores.values import compact_json

__all__ = ["slot_sums", "summed"]

_SUMS = ", ".join(f"sum({name})" for name in SUMS)
_SLOTS = "SELECT " + ", ".join(f"json_extract(value, '$[{place}]')" for place in range(3)) + " FROM json_each(?)"  # noqa: S608 - numbers of our own
_SUM_SLOTS = (
    f"SELECT series, {_SUMS} FROM sums "  # noqa: S608 - names of our own
    "WHERE until IN (SELECT value FROM json_each(?)) AND level = ? GROUP BY series"
)


def slot_sums(session: Session, level: Level, slots: Sequence[int]) -> list[tuple[int, ...]]:
    """Series and its `SUMS` over the slots of `level` that end at `slots`."""
    return session.connection.execute(_SUM_SLOTS, (compact_json(slots), level)).fetchall()


def summed(session: Session, instants: Sequence[int], by: Sequence[str], which: EntryFilter) -> list[Aggregate]:
    """The groups of each bucket between `instants`.

    Raises:
        ConfigurationError: an unknown dimension.
    """
    tally = Tally(by, which.where)
    slots: list[tuple[int, int, int]] = []
    for bucket, (start, end) in enumerate(pairwise(instants)):
        for term in (Term(1, None, start, end),) if tally.needs_entries else terms(start, end):
            if term.level is None:
                _add_entries(session, tally, bucket, term, which)
            else:
                place = term.sign * (bucket + 1)
                slots += [(place, term.level, until) for until in ends(term.level, term.start, term.end)]
    if slots:
        _add_sums(session, tally, slots, which)
    return tally.result()


def _add_sums(session: Session, tally: Tally, slots: Sequence[tuple[int, int, int]], which: EntryFilter) -> None:
    """Add whole slots: the bucket's number from 1 (below zero: to be taken away), level and end of each.

    SQLite groups by sorting, and sorts by one integer far quicker than by several texts: each series is told its cell.
    """
    cells = _cells(session, tally, which)
    numbers: dict[Cell, int] = {}
    known = {series: numbers.setdefault(cell, len(numbers)) for series, cell in cells.items()}
    listed = list(numbers)
    session.connection.create_function("cell", 1, known.get, deterministic=True)
    rows = session.connection.execute(
        f"WITH slot (place, level, until) AS ({_SLOTS}) SELECT place * ? + cell(series) AS spot, {_SUMS} "  # noqa: S608 - names of our own
        "FROM slot CROSS JOIN sums USING (level, until) GROUP BY spot",
        (compact_json(slots), len(listed)),
    )
    for spot, *sums in rows:
        if spot is not None:
            place, number = divmod(int(spot), len(listed))
            tally.add(abs(place) - 1, listed[number], sums if place > 0 else [-value for value in sums])


def _cells(session: Session, tally: Tally, which: EntryFilter) -> dict[int, Cell]:
    """Series -> where it goes; those that a condition leaves out are left out."""
    fields = ", ".join(f"contexts.{name}" for name in tally.fields)
    wanted, values = of_context(which.where)
    rows = session.connection.execute(
        f"SELECT series.id, marks, sku_meter, {fields} FROM contexts JOIN series ON series.context = contexts.id "  # noqa: S608 - names of our own
        f"WHERE {' AND '.join(wanted) or 1}",
        values,
    )
    alike: dict[tuple[Any, ...], Cell | None] = {}
    found: dict[int, Cell] = {}
    for series, *about in rows:
        key = tuple(about)
        if key not in alike:
            marks, sku_meter, *known = about
            alike[key] = tally.cell(tally.context(known), sku_meter, marks)
        cell = alike[key]
        if cell is not None:
            found[series] = cell
    return found


def _add_entries(session: Session, tally: Tally, bucket: int, term: Term, which: EntryFilter) -> None:
    wanted, values = conditions(which.where, term.start, term.end)
    rows = session.connection.execute(
        f"SELECT {AMOUNT_COLUMNS} FROM entries WHERE {' AND '.join(wanted)}",  # noqa: S608 - names of our own
        values,
    )
    for row in rows:
        found = amounts_of(session, row)
        tally.add_entry(bucket, found.context, found.amounts, found.end_user, found.tags)
