"""Checking a ledger on a server: hash chains, kept sums, and what holds and counters say of each other."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from psycopg import Connection, sql

from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.postgres.chain import FIRST
from tokenmeter.stores.postgres.codec import COLUMNS
from tokenmeter.stores.postgres.reading import Reader
from tokenmeter.stores.postgres.records import digest_row, head_of, identity_of
from tokenmeter.stores.postgres.rollups import SUMS, lines
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.postgres.slots import Level, slots_of
from tokenmeter.stores.values import from_microseconds

__all__ = ["audit"]

_SQL = queries()
_PAGE = 2000
_OCCURRED = COLUMNS.index("occurred_at")
#: Every batch with its entries; a batch without entries and entries without a batch appear, too.
_CHAIN = sql.SQL(
    "SELECT b.stripe, b.position, b.entries, b.hash, e.batch, {} FROM batches AS b "
    "FULL JOIN entries AS e ON e.batch = b.number ORDER BY b.stripe, b.position, e.entry_id"
).format(sql.SQL(", ").join(sql.Identifier("e", name) for name in COLUMNS))
_FIXED = 5
_NAMES_OF = {Level.QUARTER_HOUR: "%Y-%m-%d", Level.DAY: "%Y-%m-%d", Level.MONTH: "%Y-%m"}
_NAMED = 3

SumKey = tuple[Any, ...]


def audit(connection: Connection[Any]) -> Verification:
    """Everything that can be checked on the server alone, in the transaction of `connection`: one state of it all.

    Memory goes with the number of kept sums, not with that of entries.
    """
    reader = Reader(connection)
    walk = _Walk(reader)
    for batch, rows in groupby(_chain(connection), key=itemgetter(*range(_FIXED))):
        walk.batch(batch, list(rows))
    faults = [*walk.faults, *walk.end(connection.execute(_SQL["heads"]).fetchall())]
    faults += _shared_rows(connection, reader)
    faults += _wrong_sums(connection.execute(_SQL["all_sums"]).fetchall(), walk.sums)
    faults += [
        Fault("counter", f"{budget} {scope}".strip(), f"{int(reserved)} reserved, {int(claimed)} held.")
        for budget, scope, _, reserved, claimed in connection.execute(_SQL["held"])
    ]
    return Verification(walk.entries, walk.head(), tuple(faults))


def _chain(connection: Connection[Any]) -> Iterator[Sequence[Any]]:
    with connection.cursor("chain") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_CHAIN)
        yield from cursor


class _Walk:
    """Along the chains, batch by batch. A batch is checked against the hash stored before it: one edit, one fault."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._last: dict[int, tuple[int, bytes]] = {}
        self._counted: dict[int, int] = {}
        self.entries = 0
        self.faults: list[Fault] = []
        self.sums: dict[SumKey, list[int]] = {}

    def batch(self, batch: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
        stripe, position, count, stored, number = batch
        own = [row[_FIXED:] for row in rows if row[_FIXED] is not None]
        self.entries += len(own)
        digests = [self._digest(row) for row in own]
        if stripe is None:
            self.faults.append(
                Fault("edited", f"batch {number}", f"{len(own)} entries belong to no batch of the chain.")
            )
            return
        where = f"batch {stripe}/{position}"
        before_position, before = self._last.get(stripe, (0, FIRST))
        self._last[stripe] = (position, stored)
        self._counted[stripe] = self._counted.get(stripe, 0) + count
        if len(own) != count:
            self.faults.append(Fault("missing", where, f"It had {count} entries and has {len(own)}."))
        elif position != before_position + 1:
            missing = position - before_position - 1
            self.faults.append(Fault("missing", where, f"{missing} batches before it are gone."))
        elif hashlib.sha256(b"".join((before, *digests))).digest() != stored:
            ids = ", ".join(row[0] for row in own[:_NAMED]) + (" and others" if count > _NAMED else "")
            self.faults.append(Fault("edited", where, f"Entry {ids} does not match its batch's hash."))

    def _digest(self, row: Sequence[Any]) -> bytes:
        """The digest of a row as it is now; what it adds to the sums is counted on the way."""
        try:
            found = self._reader.find(row)
        except (LookupError, ValueError, TypeError):
            return b""  # an edited row: its hash will not fit
        for line in lines(found.context, found.amounts):
            for until, level in slots_of(row[_OCCURRED]):
                key = (level, until, found.context_id, line.sku_meter, line.marks)
                total = self.sums.setdefault(key, [0] * len(SUMS))
                for index, value in enumerate(line.sums):
                    total[index] += value
        return digest_row(row, found.context, found.rates)

    def end(self, heads: Sequence[Sequence[Any]]) -> Iterator[Fault]:
        known = {stripe: (batches, entries, head) for stripe, batches, entries, head in heads}
        for stripe in sorted(known.keys() | self._last.keys()):
            batches, entries, head = known.get(stripe, (0, 0, FIRST))
            position, last = self._last.get(stripe, (0, FIRST))
            if position < batches:
                yield Fault("cut", f"chain {stripe}", f"Its last {batches - position} batches are gone.")
            elif (position, self._counted.get(stripe, 0), last) != (batches, entries, head):
                yield Fault("edited", f"chain {stripe}", "Its last batch is not the one its head names.")

    def head(self) -> str:
        """One hash over the ends of all chains (hex)."""
        return head_of((stripe, last) for stripe, (_, last) in sorted(self._last.items()))


def _shared_rows(connection: Connection[Any], reader: Reader) -> Iterator[Fault]:
    """Rows that entries share and that are no longer what their id says."""
    for table in ("contexts", "rates"):
        numbers = [row[0] for row in connection.execute(sql.SQL("SELECT id FROM {}").format(sql.Identifier(table)))]
        for number, values in reader.shared(table, numbers).items():
            if identity_of(values) != number:
                yield Fault("edited", f"{table} {number}", "A row that entries share was changed.")


def _wrong_sums(rows: Sequence[Sequence[Any]], derived: dict[SumKey, list[int]]) -> Iterator[Fault]:
    kept = {tuple(row[:_FIXED]): [int(value) for value in row[_FIXED:]] for row in rows}
    wrong = {key for key in kept.keys() | derived.keys() if kept.get(key) != derived.get(key)}
    slots = Counter(f"{from_microseconds(until - 1):{_NAMES_OF[level]}}" for level, until, *_ in wrong)
    for day, count in sorted(slots.items()):
        yield Fault("rollup", day, f"{count} sums of {day} are wrong.")
