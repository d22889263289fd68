"""Report groups of a ledger: from the kept sums where they can answer, else from entries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from tokenmeter.money import EXACT, to_dollars
from tokenmeter.stores.base import Aggregate
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import each
from tokenmeter.stores.fold import MICRO, NANO, TYPED, AccountFacts, measured, split_lines
from tokenmeter.stores.grouping import Cell, Group, Grouping, Pieces, in_order
from tokenmeter.stores.packed import WIDTHS, Packed, PackedKind, PackedReader
from tokenmeter.stores.packing import Place, read_packed, worth_packing
from tokenmeter.stores.slots import Term
from tokenmeter.usage import Quantity

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COSTS = ("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico")
_MARKS = ("unpriced", "estimated", "reasoning")
_PLAIN = ", ".join(f"sum({name})" for name in ("n", *_MARKS, *TYPED, *_COSTS))
_OF_ENTRIES = ", ".join(("count(*)", *(f"sum({name})" for name in (*_MARKS, *TYPED, *_COSTS))))
_BY_METER = ", ".join(f"sum({name})" for name in ("n", *_MARKS, "quantity", "nano", *_COSTS))


class _Total:
    """One group while it is added up; costs in picodollars, quantities in billionths."""

    __slots__ = ("costs", "entries", "errors", "estimated", "nano", "reasoning", "requests", "unpriced")

    def __init__(self) -> None:
        self.entries = self.requests = self.errors = self.unpriced = self.estimated = self.reasoning = 0
        self.costs = [0, 0, 0]
        self.nano: dict[str, int] = {}

    def aggregate(self, bucket: int, group: Group) -> Aggregate:
        first, second, third = map(to_dollars, self.costs)
        return Aggregate(
            bucket,
            group,
            entries=self.entries,
            requests=self.requests,
            errors=self.errors,
            unpriced=self.unpriced,
            estimated=self.estimated,
            quantities={meter: _quantity(nano) for meter, nano in self.nano.items() if nano},
            reasoning_output_tokens=self.reasoning,
            list_cost=first,
            contracted_cost=second,
            billed_cost=third,
        )


def _quantity(nano: int) -> Quantity:
    whole, rest = divmod(nano, NANO)
    return whole if not rest else Decimal(nano).scaleb(-9, context=EXACT)


class PackedSums(PackedReader):
    """What packed sums come to, by bucket of a report, cell and meter.

    Args:
        cell_of: See `PackedReader`.
        cells: Likewise.
        kind: Whether they are told apart by meter.
    """

    def __init__(self, cell_of: Mapping[int, int], cells: int, kind: PackedKind) -> None:
        super().__init__(cell_of, cells)
        self.kind = kind
        self._totals: dict[tuple[int, str | None], NDArray[Any]] = {}

    def add(self, packed: Packed, buckets: Sequence[tuple[int, int]]) -> None:
        """See `PackedReader`."""
        (table,), meters, width = packed.tables, packed.meters, self.cells + 1
        spots, columns = self.columns(table, WIDTHS[self.kind][0])
        if not len(spots):
            return
        if self.kind is PackedKind.METERS:
            places = columns.pop(0)
            if places is not None:
                spots = spots + self.numpy.take(self.numpy.arange(len(meters)), places, mode="clip") * width
        sums = self.numpy.zeros((len(columns), len(meters) * width), dtype=self.numpy.int64)
        for at, column in enumerate(columns):
            if column is not None:
                same = at > 1 and column is columns[at - 2]
                sums[at] = sums[at - 2] if same else self.sums(column, spots, len(meters) * width)
        for bucket, sign in buckets:
            for number, meter in enumerate(meters):
                part = sums[:, number * width : (number + 1) * width - 1]
                total = self._totals.setdefault((bucket, meter), self.numpy.zeros_like(part))
                total += part if sign > 0 else -part

    def totals(self) -> Iterator[tuple[int, int, str | None, list[int]]]:
        """Bucket, cell, meter and sums, in the order of their columns, where there is anything."""
        for (bucket, meter), sums in self._totals.items():
            for cell in self.numpy.flatnonzero(sums.any(axis=0)).tolist():
                yield bucket, cell, meter, sums[:, cell].tolist()


class Summing(Grouping[Aggregate]):
    """The sums of a report's groups.

    Three ways lead to a group: kept sums per account; kept sums per account and meter, when meters are told apart or
    one of them is asked for; and entries, where no sum is kept (end users, tags, ends that lie on no slot).
    """

    def run(self, instants: Sequence[int]) -> list[Aggregate]:
        """See `Grouping`."""
        self._meters = self._where.get("sku_meter")
        self._split = "sku_meter" in self._by
        self._mixed = self._meters is not None and not self._split and len(self._meters) > 1
        self._by_meter = self._split or self._meters is not None
        self._totals: dict[tuple[int, Group], _Total] = {}
        self._accounts: dict[int | bytes, AccountFacts] = {}
        self._rates: dict[str, str] = {}
        kept, loose = self._cut(instants, fine=self._fine or self._mixed, hours=not self._by_meter)
        self._add_entries(loose)
        if kept and self._cells:
            self._add_kept(kept)
        for archived in self._archived(loose):
            self._add_archived(archived)
        found = [total.aggregate(*place) for place, total in self._totals.items() if total.entries]
        return sorted(found, key=in_order)

    # -- kept sums

    def _add_kept(self, kept: Sequence[Place]) -> None:
        packed = PackedSums(self._cell_of, len(self._cells), PackedKind.METERS if self._by_meter else PackedKind.SUMS)
        left = read_packed(self._connection, self._engine, kept, packed)
        for bucket, number, meter, sums in packed.totals():
            self._add(bucket, self._cells[number], meter, sums)
        if left:
            by_meter = ("meter_sums", f"sku_meter AS meter, {_BY_METER}")
            read = self._add_rows(*(by_meter if self._by_meter else ("sums", f"NULL AS meter, {_PLAIN}")), left)
            self.unpacked[packed.kind] = worth_packing(read, left)
        if not self._by_meter:
            self._add_rare_rows(compact_json(kept))

    def _add_rows(self, table: str, amounts: str, kept: Sequence[Place]) -> int:
        """Add rows of sums, each at its place; how many of them were asked for."""
        count, read = len(self._cells), 0
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, count(*), {amounts} "
            f"FROM slot {self._engine.join} {table} USING (level, slot) {self._only} GROUP BY spot, meter",
            (compact_json(kept), count),
        )
        for spot, number, name, *sums in rows:
            if spot is not None:
                read += number
                place, cell = divmod(int(spot), count)
                sums = sums if place > 0 else [-value for value in sums]  # noqa: PLW2901 - with its sign
                self._add(abs(place) - 1, self._cells[cell], name, sums)
        return read

    def _add_rare_rows(self, listed: str) -> None:
        count = len(self._cells)
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, sku_meter, sum(quantity), sum(nano) "
            f"FROM slot {self._engine.join} rare_sums USING (level, slot) {self._only} GROUP BY spot, sku_meter",
            (listed, count),
        )
        for spot, name, whole, nano in rows:
            if spot is not None:
                place, number = divmod(int(spot), count)
                amount = whole * NANO + nano
                self._add_rare(abs(place) - 1, self._cells[number].values, name, amount if place > 0 else -amount)

    def _add(self, bucket: int, cell: Cell, meter: str | None, sums: Sequence[int], group: Group | None = None) -> None:
        """Count a row of sums: of one meter (``""``: cost that no meter explains), or of all (None)."""
        if meter is not None and self._meters is not None and (meter or None) not in self._meters:
            return
        values = cell.values if group is None else group
        if self._split:
            at = self._by.index("sku_meter")
            values = (*values[:at], meter or None, *values[at + 1 :])
        total = self._totals.get((bucket, values))
        if total is None:
            total = self._totals[bucket, values] = _Total()
        count, unpriced, estimated, reasoning, *rest = sums
        total.entries += count
        if cell.counted:
            total.requests += count * cell.counted
            total.errors += count * cell.counted * cell.failed
        total.estimated += estimated
        total.unpriced += unpriced
        total.reasoning += reasoning
        for index in range(3):
            total.costs[index] += rest[2 * index - 6] * MICRO + rest[2 * index - 5]
        if meter is None:
            for name, quantity in zip(TYPED, rest, strict=False):
                if quantity:
                    total.nano[name] = total.nano.get(name, 0) + quantity * NANO
        elif meter:
            total.nano[meter] = total.nano.get(meter, 0) + rest[0] * NANO + rest[1]

    def _add_rare(self, bucket: int, group: Group, meter: str, nano: int) -> None:
        total = self._totals.setdefault((bucket, group), _Total())
        total.nano[meter] = total.nano.get(meter, 0) + nano

    # -- entries

    def _add_entries(self, loose: Sequence[tuple[int, Term]]) -> None:
        if self._by_meter:
            columns = f"{self._cell} AS spot, account, {self._own}, body"
            for bucket, sign, row in self._entries(columns, loose):
                self._add_measured(bucket, sign, row)
            return
        for select, of, values in self._questions(loose):
            self._add_counted(select, of, values)

    def _add_counted(self, select: str, of: str, values: Sequence[Any]) -> None:
        """Add entries as the database adds them up, and what they used beside the meters that have columns.

        Args:
            select: The statement's begin, up to the bucket.
            of: Its end: which entries.
            values: Its values.
        """
        statement = f"{select} {self._cell} AS spot, {self._own}, {_OF_ENTRIES} {of} GROUP BY 1, 2, 3, 4"
        for place, spot, end_user, tags, *sums in each(self._connection, statement, values):
            if spot is not None and sums[0]:
                group = self._group(spot, end_user, tags)
                self._add(place - 1, self._cells[int(spot)], None, sums, group)
        rest = f"{select} {self._cell}, {self._own}, more {of} AND more IS NOT NULL"
        for place, spot, end_user, tags, more in each(self._connection, rest, values):
            if spot is not None:
                self._add_more(place - 1, self._group(spot, end_user, tags), more, 1)

    def _add_more(self, bucket: int, group: Group, more: str, count: int) -> None:
        for meter, nano in json.loads(more).items():
            self._add_rare(bucket, group, meter, nano * count)

    def _add_archived(self, archived: Pieces) -> None:
        shelf, asked = self._archives.shelf, archived.asked
        if self._by_meter:
            for piece, *row in shelf.records(*asked):
                for bucket, sign in archived.buckets.get(piece, ()):
                    self._add_measured(bucket, sign, row)
            return
        sums, rare = shelf.sums(*asked, (*_MARKS, *TYPED, *_COSTS), own=self._own)
        for piece, spot, end_user, tags, *amounts in sums:
            for bucket, _ in archived.buckets.get(piece, ()):
                self._add(bucket, self._cells[int(spot)], None, amounts, self._group(int(spot), end_user, tags))
        for piece, spot, end_user, tags, more, count in rare:
            for bucket, _ in archived.buckets.get(piece, ()):
                self._add_more(bucket, self._group(spot, end_user, tags), more, count)

    def _add_measured(self, bucket: int, sign: int, row: Any) -> None:
        """An entry meter by meter; where meters are not told apart it counts once, at the first that is asked for.

        Args:
            bucket: See `Aggregate`.
            sign: See `Term`.
            row: Number of the cell, account, end user, tags and record.
        """
        spot, account, end_user, tags, body = row
        if spot is None:
            return
        found = measured(from_json(body), self._facts(account), self._meter)
        group = self._group(spot, end_user, tags)
        first = True
        for meter, (count, unpriced, estimated, reasoning, nano, *costs) in split_lines(found[:2]):
            if self._meters is not None and (meter or None) not in self._meters:
                continue
            marks = (count, unpriced, estimated)
            if self._mixed:
                marks = (1, found.unpriced, found.estimated) if first else (0, 0, 0)
            parts = (divmod(cost, MICRO) for cost in costs)
            sums = (*marks, reasoning, *divmod(nano, NANO), *chain.from_iterable(parts))
            self._add(bucket, self._cells[int(spot)], meter, [sign * value for value in sums], group)
            first = False

    def _facts(self, account: int | bytes) -> AccountFacts:
        if account not in self._accounts:
            column = "id" if isinstance(account, int) else "digest"
            row = self._connection.execute(
                f"SELECT id, kind, cost_source FROM accounts WHERE {column} = ?",  # noqa: S608 - names of our own
                (account,),
            ).fetchone()
            self._accounts[account] = AccountFacts.of(*row)
        return self._accounts[account]

    def _meter(self, digest: str) -> str:
        if digest not in self._rates:
            row = self._connection.execute(
                "SELECT sku_meter FROM rates WHERE digest = ?", (bytes.fromhex(digest),)
            ).fetchone()
            self._rates[digest] = (row and row[0]) or "unknown"
        return self._rates[digest]
