"""How long the calls of a ledger's groups took: from the kept sketches where they can answer, else from entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.errors import ConfigurationError
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.grouping import Group, Grouping, in_order
from tokenmeter.stores.packed import WIDTHS, Packed, PackedKind, PackedReader
from tokenmeter.stores.packing import Place, read_packed, worth_packing
from tokenmeter.stores.sketch import Latencies, Sketch
from tokenmeter.stores.slots import Term

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: More than there are buckets of a sketch, and most pairs of cell and bucket that are counted in an array of them all.
_BUCKETS, _MOST_COUNTED = 1 << 10, 1 << 22


class _Kept(NamedTuple):
    """Rows of one cell and stretch, put together: counts in buckets as they are kept, and sums."""

    duration: list[bytes]
    first_token: list[bytes]
    sums: list[int]


class PackedTimes(PackedReader):
    """What packed times come to, by bucket of a report and cell."""

    kind = PackedKind.TIMES

    def __init__(self, cell_of: Mapping[int, int], cells: int) -> None:
        super().__init__(cell_of, cells)
        self._sums: dict[int, NDArray[Any]] = {}
        #: Bucket of a report, and which sketch -> pairs of cell and bucket of a sketch, and how often each.
        self._counts: dict[tuple[int, int], list[tuple[NDArray[Any], NDArray[Any]]]] = {}

    def add(self, packed: Packed, buckets: Sequence[tuple[int, int]]) -> None:
        """See `PackedReader`."""
        of_sums, *sketches = packed.tables
        spots, columns = self.columns(of_sums, WIDTHS[self.kind][0])
        sums = self.numpy.zeros((len(columns), self.cells), dtype=self.numpy.int64)
        for at, column in enumerate(columns):
            if column is not None:
                sums[at] = self.sums(column, spots, self.cells + 1)[:-1]
        for bucket, sign in buckets:
            total = self._sums.setdefault(bucket, self.numpy.zeros_like(sums))
            total += sums if sign > 0 else -sums
        for which, table in enumerate(sketches):
            spots, (numbers, counts) = self.columns(table, WIDTHS[self.kind][1 + which])
            if numbers is None or counts is None:
                continue
            asked = spots < self.cells
            pairs, often = self._counted((spots * _BUCKETS + numbers)[asked], counts[asked])
            for bucket, sign in buckets:
                self._counts.setdefault((bucket, which), []).append((pairs, often if sign > 0 else -often))

    def _counted(self, pairs: NDArray[Any], counts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Each pair once, ascending, and the sum of its counts, which is not 0."""
        np = self.numpy
        if self.cells * _BUCKETS <= _MOST_COUNTED:
            sums = np.bincount(pairs, counts)
            found: NDArray[Any] = np.flatnonzero(sums)
            return found, sums[found].astype(np.int64)
        found, places = np.unique(pairs, return_inverse=True)
        sums = np.bincount(places, counts).astype(np.int64)
        return found[sums != 0], sums[sums != 0]

    def totals(self) -> Iterator[tuple[int, int, Sequence[dict[int, int]], list[int]]]:
        """Bucket, cell, counts of either sketch, and sums, in the order of their columns."""
        for bucket, sums in self._sums.items():
            sketches = [self._by_cell(bucket, which) for which in range(2)]
            cells = {*sketches[0], *sketches[1], *self.numpy.flatnonzero(sums.any(axis=0)).tolist()}
            for cell in sorted(cells):
                yield bucket, cell, [sketch.get(cell, {}) for sketch in sketches], sums[:, cell].tolist()

    def _by_cell(self, bucket: int, which: int) -> dict[int, dict[int, int]]:
        parts = self._counts.get((bucket, which), [])
        if not parts:
            return {}
        pairs, counts = parts[0]
        if len(parts) > 1:
            pairs, counts = self._counted(*map(self.numpy.concatenate, zip(*parts, strict=True)))
        cells = pairs // _BUCKETS
        edges = [0, *(self.numpy.flatnonzero(cells[1:] != cells[:-1]) + 1).tolist(), len(cells)]
        numbers, often = (pairs % _BUCKETS - 1).tolist(), counts.tolist()
        return {
            int(cells[start]): dict(zip(numbers[start:end], often[start:end], strict=True))
            for start, end in pairwise(edges)
            if start < end
        }


class Timing(Grouping[Latencies]):
    """How long calls took: from the sketches of days and months, and from entries where there are none.

    Raises:
        ConfigurationError: an unknown dimension, or ``sku_meter``, which a whole call does not have.
    """

    def run(self, instants: Sequence[int]) -> list[Latencies]:
        """See `Grouping`."""
        if "sku_meter" in {*self._by, *self._where}:
            raise ConfigurationError("A call takes its time as a whole: latencies cannot be told apart by sku_meter.")
        self._found: dict[tuple[int, Group], Latencies] = {}
        kept, loose = self._cut(instants, fine=self._fine, hours=False)
        self._add_entries(loose)
        if kept and self._cells:
            self._add_kept(kept)
        for archived in self._archived(loose):
            rows = self._archives.shelf.rows(*archived.asked, ("latency_us", "first_token_us", "output"))
            for piece, spot, _, end_user, tags, *times in rows:
                for bucket, sign in archived.buckets.get(piece, ()):
                    self._add_call(bucket, (spot, end_user, tags), times, sign)
        for one in self._found.values():
            one.drop_empty()
        found = [one for one in self._found.values() if one.duration.counts or one.first_token.counts]
        return sorted(found, key=in_order)

    def _at(self, bucket: int, group: Group) -> Latencies:
        found = self._found.get((bucket, group))
        if found is None:
            found = self._found[bucket, group] = Latencies(bucket, group)
        return found

    def _add_kept(self, kept: Sequence[Place]) -> None:
        packed = PackedTimes(self._cell_of, len(self._cells))
        left = read_packed(self._connection, self._engine, kept, packed)
        for bucket, cell, sketches, sums in packed.totals():
            if self._cells[cell].counted <= 0:
                continue
            one = self._at(bucket, self._cells[cell].values)
            one.take(Latencies(0, (), Sketch(sketches[0], sums[0]), Sketch(sketches[1], sums[1]), sums[2], sums[3]))
        if left:
            self.unpacked[packed.kind] = worth_packing(self._add_rows(left), left)

    def _add_rows(self, places: Sequence[Place]) -> int:
        """Add rows of sketches, each at its place; how many of them were asked for."""
        count = len(self._cells)
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, duration_us, duration, first_token_us, first_token, "
            f"generation_us, generated FROM slot {self._engine.join} latency_sums USING (level, slot) {self._only}",
            (compact_json(places), count),
        )
        found: dict[int, _Kept] = {}
        for spot, duration_us, duration, first_token_us, first_token, generation_us, generated in rows:
            if spot is None:
                continue
            kept = found.get(spot)
            if kept is None:
                kept = found[spot] = _Kept([], [], [0, 0, 0, 0])
            kept.duration.append(duration)
            kept.first_token.append(first_token)
            sums = kept.sums
            sums[0] += duration_us
            sums[1] += first_token_us
            sums[2] += generation_us
            sums[3] += generated
        for spot, kept in found.items():
            place, number = divmod(int(spot), count)
            if self._cells[number].counted <= 0:  # parts of calls that have times of their own: no calls
                continue
            sign = 1 if place > 0 else -1
            one = self._at(abs(place) - 1, self._cells[number].values)
            one.duration.merge(b"".join(kept.duration), kept.sums[0], sign)
            one.first_token.merge(b"".join(kept.first_token), kept.sums[1], sign)
            one.generation_us += sign * kept.sums[2]
            one.generated += sign * kept.sums[3]
        return sum(len(kept.duration) for kept in found.values())

    def _add_entries(self, loose: Sequence[tuple[int, Term]]) -> None:
        duration, first_token = (
            f"CAST({self._engine.member.format(name)} AS bigint)" for name in ("latency_us", "first_token_us")
        )
        columns = f"{self._cell}, {self._own}, {duration}, {first_token}, output"
        for bucket, sign, (spot, end_user, tags, *times) in self._entries(columns, loose):
            if spot is not None:
                self._add_call(bucket, (int(spot), end_user, tags), times, sign)

    def _add_call(self, bucket: int, whose: tuple[int, Any, Any], times: Sequence[Any], sign: int) -> None:
        whole, first, output = times
        if self._cells[whose[0]].counted > 0 and (whole, first) != (None, None):
            self._at(bucket, self._group(*whose)).add(whole, first, output, sign)
