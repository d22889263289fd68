"""Sums of one stretch of time as one value, column by column, and how numpy adds such values up."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pydantic_core import from_json

from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import Rows
from tokenmeter.stores.fold import AMOUNTS, METER_AMOUNTS
from tokenmeter.stores.sketch import count_pairs, pairs
from tokenmeter.stores.slots import Level, Stretch

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAME, _ZERO = b"=", b"0"
#: Most rows whose numbers floating point adds up exactly: each is added as 32 bits at most.
_MOST_ROWS = 1 << 21
_WIDTHS = {b"b": 1 << 7, b"h": 1 << 15, b"i": 1 << 31, b"q": 1 << 40}
_MOST_TOGETHER = 1 << 47
#: Bytes of a number by its letter.
_BYTES = dict(zip(b"=0bhiq", (0, 0, 1, 2, 4, 8), strict=True))
_DTYPES = {ord(b"b"): "<i1", ord(b"h"): "<i2", ord(b"i"): "<i4", ord(b"q"): "<i8"}


class PackedKind(Enum):
    """What is packed of a stretch, each by itself; the value stands before its part of the copy.

    Attributes:
        SUMS: Those of all meters together, which come first, with nothing before them.
        METERS: Those of single meters.
        TIMES: How long calls took.
    """

    SUMS = b""
    METERS = b"m"
    TIMES = b"t"


#: PackedKind -> columns of each of its tables, the account first: amounts; of times sums, and buckets of two sketches.
WIDTHS = {
    PackedKind.SUMS: (2 + len(AMOUNTS),),
    PackedKind.METERS: (2 + len(METER_AMOUNTS),),
    PackedKind.TIMES: (5, 3, 3),
}
#: Columns of costs, at the end of amounts. The last four may be as the two before them.
_COSTS = 6


def _rows_of(table: str, *columns: str) -> str:
    return f"SELECT account, {', '.join(columns)} FROM {table} WHERE level = ? AND slot = ? ORDER BY account"  # noqa: S608 - names of our own


_ROWS = _rows_of("sums", "n", *AMOUNTS)
_METER_ROWS = f"{_rows_of('meter_sums', 'sku_meter', *METER_AMOUNTS)}, sku_meter"
_TIME_ROWS = _rows_of(
    "latency_sums", "duration_us", "first_token_us", "generation_us", "generated", "duration", "first_token"
)


def pack(columns: Sequence[Sequence[int]], width: int = WIDTHS[PackedKind.SUMS][0]) -> bytes:
    """A table, one column after the other.

    Args:
        columns: Accounts in ascending order, and what each has; none of a table without rows.
        width: How many columns there would be.

    Returns:
        How many rows (4 bytes), a letter for each column, and the columns whose letter is no ``0`` (all are) and no
        ``=`` (as the column two before): little-endian integers of 1 (``b``), 2 (``h``), 4 (``i``) or 8 bytes (``q``).
        Nothing where numbers are so large (one of 2^40, all together of 2^47) that sums of millions of such would not
        stay within 64 bits, or where there are more than two million rows.
    """
    columns = columns or [()] * width
    if len(columns[0]) > _MOST_ROWS:
        return b""
    letters, parts = bytearray(), list[bytes]()
    costs = width - _COSTS if width > _COSTS else width
    for at, column in enumerate(columns):
        if at >= costs + 2 and column == columns[at - 2]:
            letters += _SAME
            continue
        largest = max(map(abs, column), default=0)
        letter = next((one for one, limit in _WIDTHS.items() if largest < limit), None)
        if letter is None and sum(map(abs, column)) < _MOST_TOGETHER:
            letter = b"q"
        if letter is None:
            return b""
        if not largest:
            letters += _ZERO
            continue
        letters += letter
        values = array(letter.decode(), column)
        if sys.byteorder == "big":
            values.byteswap()
        parts.append(values.tobytes())
    return b"".join((struct.pack("<I", len(columns[0])), bytes(letters), *parts))


def _pack_meters(rows: Iterable[Any]) -> bytes:
    """The names of the meters, after their length, and their sums, each with the place of its name."""
    columns = list(zip(*rows, strict=True))
    names: dict[str, int] = {}
    if columns:
        columns[1] = tuple(names.setdefault(name, len(names)) for name in columns[1])
    told = compact_json(list(names)).encode()
    body = pack(columns, WIDTHS[PackedKind.METERS][0])
    return body and struct.pack("<H", len(told)) + told + body


def _pack_times(rows: Iterable[Any]) -> bytes:
    """Sums, and the counts of either sketch by account and bucket."""
    columns = list(zip(*rows, strict=True)) or [()] * 7
    tables = [pack(columns[:5], 5)]
    for sketches in columns[5:]:
        try:
            accounts = list(chain.from_iterable(map(repeat, columns[0], map(count_pairs, sketches))))
            counts = list(zip(*pairs(b"".join(sketches)), strict=True)) or [(), ()]
        except (struct.error, TypeError):  # somebody changed it: rows are read, and tell
            return b""
        tables.append(pack([accounts, *counts], 3))
    return b"".join(tables) if all(tables) else b""


def _pack_sums(rows: Iterable[Any]) -> bytes:
    return pack(list(zip(*rows, strict=True)))


#: How each kind is packed, of which rows. What cannot be is nothing.
_MAKERS: Mapping[PackedKind, tuple[Callable[[Iterable[Any]], bytes], str]] = {
    PackedKind.SUMS: (_pack_sums, _ROWS),
    PackedKind.METERS: (_pack_meters, _METER_ROWS),
    PackedKind.TIMES: (_pack_times, _TIME_ROWS),
}


class Packed(NamedTuple):
    """One kind of a stretch.

    Attributes:
        body: All of it.
        tables: As `pack` gives them.
        meters: Those of which the sums are; None stands for all together.
    """

    body: bytes
    tables: Sequence[memoryview]
    meters: Sequence[str | None] = (None,)


def read_body(body: object) -> Mapping[PackedKind, Packed]:
    """What a copy has of each kind, as far as its lengths tell; nothing of what cannot be read."""
    if not isinstance(body, bytes):
        return {}
    found: dict[PackedKind, Packed] = {}
    view, at, kind = memoryview(body), 0, PackedKind.SUMS
    try:
        while kind not in found:
            meters: Sequence[str | None] = (None,)
            start = at
            if kind is PackedKind.METERS:
                meters, at = _names(body, at)
            tables: list[memoryview] = []
            for width in WIDTHS[kind]:
                end = _end(body, at, width)
                tables.append(view[at:end])
                at = end
            found[kind] = Packed(body[start:at], tables, meters)
            if at == len(body):
                return found
            kind, at = PackedKind(body[at : at + 1]), at + 1
    except (ValueError, struct.error):
        pass
    return {}


def _names(body: bytes, at: int) -> tuple[Sequence[str], int]:
    """The names of meters, at least an empty one, and where they end.

    Raises:
        ValueError: there are none.
    """
    (length,) = struct.unpack_from("<H", body, at)
    end = at + 2 + length
    names = from_json(body[at + 2 : end])
    if not isinstance(names, list):
        raise ValueError  # noqa: TRY004 - bytes that are no copy of sums
    return list(map(str, cast("list[object]", names))) or [""], end


def _end(body: bytes, at: int, width: int) -> int:
    """Where a table ends.

    Raises:
        ValueError: it is none.
    """
    (count,), letters = struct.unpack_from("<I", body, at), body[at + 4 : at + 4 + width]
    sizes = [_BYTES.get(letter) for letter in letters]
    end: int = at + 4 + width + count * sum(filter(None, sizes))
    if len(letters) < width or None in sizes or end > len(body) or (count and not sizes[0]):
        raise ValueError
    return end


def kinds_of(stretch: Stretch) -> frozenset[PackedKind]:
    """What is kept of a stretch; see `tokenmeter.stores.slots.Level`."""
    return frozenset(PackedKind if stretch[0] in {Level.DAY, Level.MONTH} else (PackedKind.SUMS,))


def pack_stretch(
    connection: Rows, stretch: Stretch, kinds: Collection[PackedKind], known: Mapping[PackedKind, Packed] = {}
) -> bytes:
    """The copy of a stretch: its sums, and what else of it is wanted, taken from what is `known` of it."""
    body, wanted = b"", {PackedKind.SUMS, *kinds} & kinds_of(stretch)
    for kind, (make, rows) in _MAKERS.items():
        if kind in wanted:
            found = known[kind].body if kind in known else make(connection.execute(rows, stretch).fetchall())
            if found:
                body += kind.value + found
            elif kind is PackedKind.SUMS:
                return b""
    return body


class PackedReader:
    """Packed tables while they are added up, by bucket of a report and cell.

    Args:
        cell_of: Account -> number of its cell; the rest is left out.
        cells: How many cells there are.

    Attributes:
        kind: What is read of each stretch.
        numpy: The package, once anything is read: to load it takes a tenth of a second.
    """

    kind: PackedKind
    numpy: Any

    def __init__(self, cell_of: Mapping[int, int], cells: int) -> None:
        self.cell_of, self.cells = cell_of, cells
        self._spots: NDArray[Any] | None = None

    def add(self, packed: Packed, buckets: Sequence[tuple[int, int]]) -> None:
        """Add a stretch to each of some buckets, with a sign."""
        raise NotImplementedError

    def columns(self, table: memoryview, width: int) -> tuple[NDArray[Any], list[NDArray[Any] | None]]:
        """The cell of each row, the number of cells where it has none; and the other columns, None where all are 0."""
        if self._spots is None:
            self._find_spots()
        (count,), at = struct.unpack_from("<I", table), 4 + width
        found: list[NDArray[Any] | None] = []
        for letter in table[4:at]:
            if letter in _DTYPES:
                column = self.numpy.frombuffer(table, _DTYPES[letter], count, at)
                at += column.nbytes
                found.append(column)
            else:
                found.append(found[-2] if letter == _SAME[0] and len(found) > 1 else None)
        accounts = self.numpy.zeros(0, int) if found[0] is None else found[0]
        return self.numpy.take(self._spots, accounts, mode="clip"), found[1:]

    def _find_spots(self) -> None:
        import numpy as np  # noqa: PLC0415 - large questions only: it takes a tenth of a second to load

        self.numpy, cell_of, count = np, self.cell_of, len(self.cell_of)
        self._spots = np.full(max(cell_of, default=0) + 2, self.cells, dtype=np.intp)  # the last for accounts beyond
        self._spots[np.fromiter(cell_of.keys(), np.intp, count)] = np.fromiter(cell_of.values(), np.intp, count)

    def sums(self, column: NDArray[Any], spots: NDArray[Any], width: int) -> NDArray[Any]:
        """A column by spot. Floating-point numbers add integers up exactly as long as sums stay below 2^53."""
        np = self.numpy
        if column.itemsize < 8:  # noqa: PLR2004 - bytes: below 2^31
            small: NDArray[Any] = np.bincount(spots, column, width).astype(np.int64)
            return small
        low = np.bincount(spots, column & 0xFFFF_FFFF, width).astype(np.int64)
        large: NDArray[Any] = (np.bincount(spots, column >> 32, width).astype(np.int64) << 32) + low
        return large
