"""Writing one entry inside a transaction: its row, its link in the chain, and its part of the sums."""

from __future__ import annotations

from typing import Any

from tokenmeter.ledger import Entry
from tokenmeter.stores.chain import link
from tokenmeter.stores.codec import COLUMNS, context_of, encode_amounts, encode_entry, rate_of
from tokenmeter.stores.migrations import queries
from tokenmeter.stores.rollups import SUMS, lines
from tokenmeter.stores.session import Session
from tokenmeter.stores.slots import slots_of

__all__ = ["Draft", "append"]

_SQL = queries()
_NAMES = ", ".join(COLUMNS)
_PLACES = ", ".join("?" * (len(COLUMNS) + 2))
_INSERT_ENTRY = f"INSERT INTO entries (seq, {_NAMES}, hash) VALUES ({_PLACES}) ON CONFLICT DO NOTHING"  # noqa: S608 - names of our own
_ADD_SUMS = (
    f"INSERT INTO sums (until, level, series, {', '.join(SUMS)}) VALUES ({', '.join('?' * (len(SUMS) + 3))}) "  # noqa: S608 - names of our own
    "ON CONFLICT (until, level, series) DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)
)


class Draft:
    """An entry made ready before any lock is taken: only the ids of the rows it shares are missing.

    Raises:
        ValueError: a cost is finer than one picodollar.
    """

    __slots__ = ("_amounts", "_rates", "context", "entry", "lines")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.context = context_of(entry)
        self._rates = [rate_of(charge) for charge in entry.charges]
        self._amounts = encode_amounts(entry)
        self.lines = lines(self.context, self._amounts)

    def row(self, session: Session) -> tuple[tuple[Any, ...], int, list[bytes]]:
        """The entry's row, its context's id, and the digests of the rows it points at."""
        context, digest = session.contexts.number(session.connection, self.context)
        rates = [session.rates.number(session.connection, rate) for rate in self._rates]
        row = encode_entry(self.entry, self._amounts, context, [number for number, _ in rates])
        return row, context, [digest, *(digest for _, digest in rates)]


def append(session: Session, draft: Draft) -> bool:
    """Add the entry to the ledger and to the sums; False, and nothing written, when it is there already."""
    run = session.connection.execute
    row, context, digests = draft.row(session)
    seq, before = run(_SQL["head"]).fetchone()
    after = link(before, row, digests)
    if not run(_INSERT_ENTRY, (seq + 1, *row, after)).rowcount:
        return False
    run(_SQL["advance_head"], (seq + 1, after))
    sums = [
        (session.series.number(session.connection, (context, line.sku_meter, line.marks))[0], *line.sums)
        for line in draft.lines
    ]
    slots = slots_of(row[COLUMNS.index("occurred_at")])
    session.connection.executemany(_ADD_SUMS, [(*slot, *line) for slot in slots for line in sums])
    return True
