"""Writing entries inside a transaction: their rows, their links in the chain, and their part of the sums."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Any

from tokenmeter.ledger import Entry
from tokenmeter.stores.chain import link
from tokenmeter.stores.codec import COLUMNS, encode_amounts, encode_entry
from tokenmeter.stores.contexts import context_of, rate_of
from tokenmeter.stores.migrations import queries
from tokenmeter.stores.rollups import SUMS, lines
from tokenmeter.stores.session import Session
from tokenmeter.stores.slots import slots_of

__all__ = ["Booking", "Draft"]

_SQL = queries()
_OCCURRED_AT = COLUMNS.index("occurred_at")
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


class Booking:
    """The entries that one transaction appends: the chain's head is read once, sums are written once.

    Args:
        session: In a write transaction.
    """

    __slots__ = ("_head", "_session", "_sums")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._head: tuple[int, bytes] | None = None
        self._sums: dict[tuple[int, int, int], Sequence[int]] = {}

    def append(self, draft: Draft) -> bool:
        """Add the entry to the ledger; False, and nothing written, when it is there already."""
        session = self._session
        row, context, digests = draft.row(session)
        seq, before = self._head or session.connection.execute(_SQL["head"]).fetchone()
        head = (seq + 1, link(before, row, digests))
        if not session.connection.execute(_INSERT_ENTRY, (head[0], *row, head[1])).rowcount:
            return False
        self._head = head
        self._add(draft, context, row[_OCCURRED_AT])
        return True

    def _add(self, draft: Draft, context: int, occurred_at: int) -> None:
        slots = slots_of(occurred_at)
        for meter, marks, sums in draft.lines:
            series = self._session.series.number(self._session.connection, (context, meter, marks))[0]
            for until, level in slots:
                place = (until, level, series)
                known = self._sums.get(place)
                self._sums[place] = sums if known is None else tuple(map(add, known, sums))

    def write(self) -> None:
        """Write the chain's new head and what was added to the sums."""
        if self._head:
            self._session.connection.execute(_SQL["advance_head"], self._head)
            self._session.connection.executemany(_ADD_SUMS, [(*place, *sums) for place, sums in self._sums.items()])
