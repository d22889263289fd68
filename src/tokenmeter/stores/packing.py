"""Kept sums of stretches that are over, packed by column: what a question over very many of them reads instead of rows.

A year by week in some zone is made of hundreds of thousands of rows of sums. They hardly ever change, so those that a
question has read are kept beside the rows, one value for all accounts of a stretch, and the next time numpy adds
them up. They are a copy: whoever adds to a row takes the copy of its stretch away in the same transaction, `verify`
compares them with the rows, and without numpy the rows are read.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tokenmeter.stores.engine import Engine, Rows
from tokenmeter.stores.fold import AMOUNTS
from tokenmeter.stores.record import compact_json
from tokenmeter.stores.slots import DAY, HOUR, Level, start_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: (level, slot): a stretch of time.
Stretch = tuple[int, int]

#: Rows from which on a question is one for packed sums: to load numpy takes as long as to read a hundred thousand.
_MANY = 20_000
#: Rows of a stretch, on the average, from which on it is read faster packed.
_DENSE = 12
#: Most cells of all buckets together, of which each takes 120 bytes while it is added up.
_MOST_CELLS = 2_000_000
#: Most stretches that one question has packed, and how many of them in a transaction.
_MOST, _AT_ONCE = 4_096, 16
#: A stretch is packed when it has been over for an hour: microseconds from the beginning of the longest of its kind.
_OVER = {Level.HOUR: 2 * HOUR, Level.DAY: 25 * HOUR, Level.WEEK: 7 * DAY + HOUR, Level.MONTH: 31 * DAY + HOUR}
#: Columns of a stretch: accounts in ascending order, then what is summed.
_COLUMNS = ("account", "n", *AMOUNTS)
_ROWS = f"SELECT {', '.join(_COLUMNS)} FROM sums WHERE level = ? AND slot = ? ORDER BY account"  # noqa: S608 - names of our own
_SAME, _ZERO = b"=", b"0"
#: Most rows whose numbers floating point adds up exactly: each is added as 32 bits at most.
_MOST_ROWS = 1 << 21
_WIDTHS = {b"b": 1 << 7, b"h": 1 << 15, b"i": 1 << 31, b"q": 1 << 40}
#: Bytes that come before the columns, and those of a number by its letter.
_HEAD = 4 + len(_COLUMNS)
_BYTES = dict(zip(b"=0bhiq", (0, 0, 1, 2, 4, 8), strict=True))
_DTYPES = {ord(b"b"): "<i1", ord(b"h"): "<i2", ord(b"i"): "<i4", ord(b"q"): "<i8"}
#: The first column of a cost, of which the last four may be as the two before them.
_COSTS = len(_COLUMNS) - 6


def pack(rows: Sequence[Sequence[int]]) -> bytes:
    """A stretch's rows, one after the other by column.

    Args:
        rows: By `_COLUMNS`, in the order of their accounts.

    Returns:
        How many rows (4 bytes), a letter for each column, and the columns whose letter is no ``0`` (all are) and no
        ``=`` (as the column two before): little-endian integers of 1 (``b``), 2 (``h``), 4 (``i``) or 8 bytes (``q``).
        Nothing where a number is so large (2^40) that sums of millions of such would not stay within 64 bits, or where
        there are more than two million rows.
    """
    if len(rows) > _MOST_ROWS:
        return b""
    columns: list[tuple[int, ...]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    letters, parts = bytearray(), list[bytes]()
    for at, column in enumerate(columns):
        if at >= _COSTS + 2 and column == columns[at - 2]:
            letters += _SAME
            continue
        largest = max(map(abs, column), default=0)
        letter = next((one for one, limit in _WIDTHS.items() if largest < limit), None)
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
    return b"".join((struct.pack("<I", len(rows)), bytes(letters), *parts))


def is_readable(body: object) -> bool:
    """Whether this is what `pack` made of rows that can be read packed, as far as its lengths tell."""
    if not isinstance(body, bytes) or len(body) < _HEAD:
        return False
    (count,), letters = struct.unpack_from("<I", body), body[4:_HEAD]
    widths = [_BYTES.get(letter) for letter in letters]
    return (
        None not in widths and len(body) == _HEAD + count * sum(filter(None, widths)) and not (count and not widths[0])
    )


def is_many(rows: int, stretches: int) -> bool:
    """Whether a question that reads so many rows of so many stretches had better read them packed."""
    return rows >= max(_MANY, _DENSE * stretches)


def can_be_read() -> bool:
    """Whether numpy is there, which reads them."""
    return find_spec("numpy") is not None


def keep(connection: Rows, stretches: Sequence[Stretch]) -> None:
    """Pack some stretches, in a write transaction with no fold beside it."""
    drop(connection, stretches)
    for stretch in stretches:
        body = pack(connection.execute(_ROWS, stretch).fetchall())
        connection.execute("INSERT INTO packed_sums (level, slot, body) VALUES (?, ?, ?)", (*stretch, body))


def drop(connection: Rows, stretches: Sequence[Stretch]) -> None:
    """Remove what is packed of some stretches."""
    for stretch in stretches:
        connection.execute("DELETE FROM packed_sums WHERE level = ? AND slot = ?", stretch)


def pages(stretches: Sequence[Stretch], now: int) -> Iterator[list[Stretch]]:
    """Those that are over, in transactions' worth.

    Args:
        stretches: What a question has read as rows.
        now: Microseconds since the epoch.
    """
    over = [(level, slot) for level, slot in stretches if start_of(Level(level), slot) + _OVER[Level(level)] <= now][
        :_MOST
    ]
    for start in range(0, len(over), _AT_ONCE):
        yield over[start : start + _AT_ONCE]


def differing(read: Callable[[Callable[[Rows], Any]], Any]) -> Iterator[Stretch]:
    """Stretches whose packed sums are not their rows; `read` runs what it is given in a short read transaction."""
    known: list[Stretch] = read(
        lambda rows: rows.execute("SELECT level, slot FROM packed_sums ORDER BY 1, 2").fetchall()
    )
    for start in range(0, len(known), _AT_ONCE):
        yield from read(partial(_differing, stretches=known[start : start + _AT_ONCE]))


def _differing(connection: Rows, *, stretches: Sequence[Stretch]) -> list[Stretch]:
    found: list[Stretch] = []
    for level, slot in stretches:
        statement = "SELECT body FROM packed_sums WHERE level = ? AND slot = ?"
        kept = connection.execute(statement, (level, slot)).fetchone()
        if kept and kept[0] != pack(connection.execute(_ROWS, (level, slot)).fetchall()):
            found.append((level, slot))
    return found


class PackedSums:
    """What packed stretches come to, by bucket of a report and cell.

    Args:
        cell_of: Account -> number of its cell; the rest is left out.
        cells: How many cells there are.
    """

    def __init__(self, cell_of: Mapping[int, int], cells: int) -> None:
        import numpy as np  # noqa: PLC0415 - large questions only: it takes a tenth of a second to load

        self._np, self._cells = np, cells
        spots = np.full(max(cell_of, default=0) + 2, cells, dtype=np.intp)  # the last for accounts beyond
        spots[np.fromiter(cell_of.keys(), np.intp, len(cell_of))] = np.fromiter(cell_of.values(), np.intp, len(cell_of))
        self._spots: NDArray[Any] = spots
        self._totals: dict[int, NDArray[Any]] = {}

    def add(self, body: bytes, buckets: Sequence[tuple[int, int]]) -> None:
        """Add a stretch, that `is_readable`, to each of some buckets, with a sign."""
        np, cells = self._np, self._cells
        (count,), letters, at = struct.unpack_from("<I", body), body[4:_HEAD], _HEAD
        if not count:
            return
        sums = np.zeros((len(_COLUMNS) - 1, cells), dtype=np.int64)
        spots: NDArray[Any] = self._spots[:0]
        for place, letter in enumerate(letters, -1):
            if letter == _ZERO[0]:
                continue
            if letter == _SAME[0]:
                sums[place] = sums[place - 2]
                continue
            column = np.frombuffer(body, _DTYPES[letter], count, at)
            at += column.nbytes
            if place < 0:
                spots = np.take(self._spots, column, mode="clip")
            else:
                sums[place] = self._summed(column, spots)
        for bucket, sign in buckets:
            total = self._totals.get(bucket)
            if total is None:
                total = self._totals[bucket] = np.zeros_like(sums)
            total += sums if sign > 0 else -sums

    def _summed(self, column: NDArray[Any], spots: NDArray[Any]) -> NDArray[Any]:
        """A column by cell. Floating-point numbers add integers up exactly as long as sums stay below 2^53."""
        np, width = self._np, self._cells + 1
        if column.itemsize < 8:  # noqa: PLR2004 - bytes: below 2^31
            small: NDArray[Any] = np.bincount(spots, column, width)[:-1].astype(np.int64)
            return small
        low = np.bincount(spots, column & 0xFFFF_FFFF, width)[:-1].astype(np.int64)
        large: NDArray[Any] = (np.bincount(spots, column >> 32, width)[:-1].astype(np.int64) << 32) + low
        return large

    def totals(self) -> Iterator[tuple[int, int, list[int]]]:
        """Bucket, cell and sums (``n``, then `tokenmeter.stores.fold.AMOUNTS`), where there is anything."""
        for bucket, sums in self._totals.items():
            for cell in self._np.flatnonzero(sums.any(axis=0)).tolist():
                yield bucket, cell, sums[:, cell].tolist()


def read_packed(
    connection: Rows, engine: Engine, kept: Sequence[tuple[int, int, int]], cell_of: Mapping[int, int], cells: int
) -> tuple[PackedSums | None, list[tuple[int, int, int]]]:
    """Add up what is packed of some slots.

    Args:
        connection: In a transaction.
        engine: Its words.
        kept: Place (bucket + 1, negative: to be taken away), level and slot of each.
        cell_of: Account -> number of its cell.
        cells: How many cells there are.

    Returns:
        The sums, None where nothing is packed; and what is to be read as rows.
    """
    buckets: dict[Stretch, list[tuple[int, int]]] = {}
    for place, level, slot in kept:
        buckets.setdefault((int(level), slot), []).append((abs(place) - 1, 1 if place > 0 else -1))
    many = (
        is_many(len(buckets) * len(cell_of), len(buckets)) and len({place for place, *_ in kept}) * cells <= _MOST_CELLS
    )
    if not many or not can_be_read():
        return None, list(kept)
    found: PackedSums | None = None
    rows = connection.execute(
        f"WITH slot (place, level, slot) AS ({engine.slots}) "  # noqa: S608 - names of our own
        f"SELECT level, slot, body FROM slot {engine.join} packed_sums USING (level, slot)",
        (compact_json([(0, *one) for one in buckets]),),
    )
    for level, slot, body in rows:
        if is_readable(body):  # else rows are read; of what was damaged `verify` tells
            found = found or PackedSums(cell_of, cells)
            found.add(body, buckets.pop((level, slot)))
    if found is None:
        return None, list(kept)
    return found, [one for one in kept if (int(one[1]), one[2]) in buckets]
