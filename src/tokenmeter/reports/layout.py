"""Aligned columns of text that fit a given width, and figures written for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import zip_longest

from tokenmeter.money import EXACT, round_to
from tokenmeter.usage import Quantity

_GAP = "  "
_ELLIPSIS = "…"
#: Invisible, but part of how Persian, Indic scripts and emoji are spelled.
_JOINERS = "\u200c\u200d"
_MIN_PLACES, _MAX_PLACES = 2, 6
#: Lines that one text is folded into at most.
_MOST_LINES = 6


@dataclass(frozen=True, slots=True)
class Column:
    """One column; in a report its last cell belongs to the totals line.

    Attributes:
        head: Heading.
        cells: One per line.
        right: Whether it is aligned to the right.
        shrinks: Whether long cells may be folded into several lines.
        narrow: The same cells in fewer characters, where there are such.
        narrow_head: A shorter heading to go with them.
        drop: Left out, lowest first, when there is no room; None = never.
        glued: Whether it follows the column before it without a gap.
        most: Terminal cells it may take; longer texts are folded. None = as many as they need.
    """

    head: str
    cells: tuple[str, ...]
    right: bool = False
    shrinks: bool = False
    narrow: tuple[str, ...] = ()
    narrow_head: str = ""
    drop: int | None = None
    glued: bool = False
    most: int | None = None

    @property
    def width(self) -> int:
        """Terminal cells of its widest line."""
        widest = max(_width(cell) for cell in (self.head, *self.cells))
        return widest if self.most is None else min(widest, self.most)


# -- fitting


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """`columns` made to fit `width`, giving up the least important things first; too narrow a width overflows.

    What identifies a row is folded, never left out; figures are left out before it is folded much.
    """
    result = _shrink(columns, width, floor=24)
    if _total(result) > width:
        result = _drop([_narrow(column) for column in columns], width)
    return _shrink(result, width, floor=8)


def _shrink(columns: Sequence[Column], width: int, *, floor: int) -> list[Column]:
    """Fold the widest text columns, evenly, down to `floor` cells at least."""
    sizes = {index: column.width for index, column in enumerate(columns) if column.shrinks}
    excess = _total(columns) - width
    while excess > 0 and sizes:
        widest = max(sizes, key=lambda index: sizes[index])
        if sizes[widest] <= floor:
            break
        sizes[widest] -= 1
        excess -= 1
    return [
        replace(column, most=sizes[index]) if sizes.get(index, column.width) < column.width else column
        for index, column in enumerate(columns)
    ]


def _narrow(column: Column) -> Column:
    return replace(column, head=column.narrow_head or column.head, cells=column.narrow or column.cells)


def _drop(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out what matters least, until texts of twelve cells have room beside the rest."""
    result = list(columns)
    while _total(_shrink(result, width, floor=12)) > width:
        droppable = [column for column in result if column.drop is not None]
        if not droppable:
            break
        result.remove(min(droppable, key=lambda column: column.drop or 0))
    return _shrink(result, width, floor=12)


def _total(columns: Sequence[Column]) -> int:
    gaps = sum(len(_GAP) for column in columns[1:] if not column.glued)
    return sum(column.width for column in columns) + gaps


def render(columns: Sequence[Column], *, totals: bool = True) -> list[str]:
    """Heading, rule and lines; with `totals` the last line stands under a rule of its own."""
    heads = _lines([column.head for column in columns], columns)
    rows = [_lines(cells, columns) for cells in zip(*(column.cells for column in columns), strict=True)]
    rule = "-" * _total(columns)
    if totals and len(rows) > 1:
        rows.insert(-1, [rule])
    return [*heads, rule, *(line for row in rows for line in row)]


def _lines(cells: Sequence[str], columns: Sequence[Column]) -> list[str]:
    """A row: one line, or as many as its longest text takes."""
    folded = [
        [cell] if column.most is None else _folded(cell, column.most)
        for cell, column in zip(cells, columns, strict=True)
    ]
    return [_line(parts, columns) for parts in zip_longest(*folded, fillvalue="")]


def _line(cells: Sequence[str], columns: Sequence[Column]) -> str:
    parts: list[str] = []
    for cell, column in zip(cells, columns, strict=True):
        padding = " " * (column.width - _width(cell))
        parts.append("" if not parts or column.glued else _GAP)
        parts.append(padding + cell if column.right else cell + padding)
    return "".join(parts).rstrip()


def _width(text: str) -> int:
    """Terminal cells of `text`: East Asian wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(_cells(letter) for letter in text)


def _cells(letter: str) -> int:
    if unicodedata.combining(letter) or letter in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _folded(text: str, size: int) -> list[str]:
    """`text` in lines of at most `size` cells; of a very long one the beginning."""
    lines = [""]
    for letter in text:
        if _width(lines[-1] + letter) > size and lines[-1]:
            if len(lines) == _MOST_LINES:
                lines[-1] = lines[-1][:-1] + _ELLIPSIS
                break
            lines.append("")
        lines[-1] += letter
    return lines


def visible(text: str) -> str:
    """`text` without characters that would move the cursor, colour the terminal or reverse the writing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in _JOINERS else "?" for letter in text)


# -- figures


def count(quantity: Quantity) -> str:
    """A quantity with thousands separators: ``1,234,567``, ``12.5``."""
    return f"{quantity:,}" if isinstance(quantity, int) else f"{round_to(quantity, 1):,f}"


def compact(quantity: Quantity) -> str:
    """A quantity in at most six characters: ``9,950``, ``12.3k``, ``1.5M``."""
    number = Decimal(quantity)
    if number.copy_abs() < 10_000:  # noqa: PLR2004 - five characters are as short as it gets
        return count(quantity)
    for size, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number.copy_abs() >= size:
            scaled = EXACT.divide(number, Decimal(size))
            return f"{round_to(scaled, 1 if scaled.copy_abs() < 100 else 0):f}{letter}"  # noqa: PLR2004 - digits
    return count(quantity)


def share(part: Decimal | None) -> str:
    """A part of a whole in percent; never rounded up to all or down to nothing."""
    if part is None:
        return "-"
    percent = EXACT.multiply(part, Decimal(100))
    if 0 < percent < 1:
        return "<1%"
    return ">99%" if 99 < percent < 100 else f"{round_to(percent, 0):f}%"  # noqa: PLR2004 - percent


def money_places(amounts: Iterable[Decimal]) -> int:
    """Decimals that show the smallest amount with two figures, between 2 and 6."""
    smallest = min((amount.copy_abs() for amount in amounts if amount), default=Decimal(1))
    return min(max(_MIN_PLACES, 1 - smallest.adjusted()), _MAX_PLACES)


def amount(dollars: Decimal, places: int) -> str:
    """Dollars rounded to `places` decimals: ``$1,234.50``; what would round to nothing shows as ``<$0.000001``."""
    shown = round_to(dollars, places)
    if dollars and not shown:
        least = f"<${Decimal(f'1E-{places}'):f}"
        return least if dollars > 0 else f"-{least}"
    return f"-${shown.copy_negate():,f}" if shown < 0 else f"${shown:,f}"
