"""Report groups of an SQLite ledger: from the kept sums where they can answer, else from entries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tokenmeter.stores.base import Aggregate, EntryFilter
from tokenmeter.stores.codec import compact_json
from tokenmeter.stores.rollups import SUMS, Cell, Tally
from tokenmeter.stores.rows import AMOUNT_COLUMNS, amounts_of
from tokenmeter.stores.selection import conditions
from tokenmeter.stores.session import Session
from tokenmeter.stores.slots import Level, Term, ends, terms

__all__ = ["slot_sums", "summed"]

_SUM_SLOTS = (
    f"SELECT series, {', '.join(f'sum({name})' for name in SUMS)} FROM sums "  # noqa: S608 - names of our own
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
    cells = _Cells(session, tally)
    for bucket, (start, end) in enumerate(pairwise(instants)):
        for term in (Term(1, None, start, end),) if tally.needs_entries else terms(start, end):
            if term.level is None:
                _add_entries(session, tally, bucket, term, which)
            else:
                for series, *sums in slot_sums(session, term.level, ends(term.level, term.start, term.end)):
                    cell = cells[series]
                    if cell is not None:
                        tally.add(bucket, cell, sums if term.sign > 0 else [-value for value in sums])
    return tally.result()


class _Cells(dict[int, "Cell | None"]):
    """Series -> where it goes, found out once per report."""

    def __init__(self, session: Session, tally: Tally) -> None:
        super().__init__()
        self._session, self._tally = session, tally

    def __missing__(self, series: int) -> Cell | None:
        connection = self._session.connection
        context_id, sku_meter, marks = self._session.series.values(connection, series)
        context = self._session.contexts.values(connection, context_id)
        cell = self[series] = self._tally.cell(context, sku_meter, marks)
        return cell


def _add_entries(session: Session, tally: Tally, bucket: int, term: Term, which: EntryFilter) -> None:
    wanted, values = conditions(which.where, term.start, term.end)
    rows = session.connection.execute(
        f"SELECT {AMOUNT_COLUMNS} FROM entries WHERE {' AND '.join(wanted)}",  # noqa: S608 - names of our own
        values,
    )
    for row in rows:
        found = amounts_of(session, row)
        tally.add_entry(bucket, found.context, found.amounts, found.end_user, found.tags)
