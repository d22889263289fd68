"""What a page or a table shows, apart from how it is drawn: the same for HTML, PDF, CSV and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from tokenmeter.reports.fields import Field, Kind
from tokenmeter.reports.sink import Sink
from tokenmeter.reports.xlsx import write_xlsx

#: A spreadsheet runs a cell that begins with one of these as a formula; full-width forms count, too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """A row of the table: its cells, and a line in small print below them."""

    cells: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrintedSheet:
    """A printed document.

    Attributes:
        title: ``Invoice INV-00001``.
        author: Who made it, for the file's properties.
        date: Day of issue (ISO), for the file's properties; None for a draft.
        stamp: ``DRAFT`` or ``VOID`` beside the title; else None.
        facts: Pairs beside the title: dates, period, references.
        seller: Lines of the seller's block, name first.
        buyer: Lines of the buyer's.
        due: What matters most, in large letters: ``119.00 EUR due 2026-12-15``.
        sums: Label and amount, in order; the last is what is due. Printed before the table.
        columns: Headings of the table.
        numeric: Which columns are numbers.
        rows: The table.
        empty: Said in place of an empty table.
        remarks: Sentences below.
        small: Sentences in small print: where the figures come from.
    """

    title: str
    author: str
    date: str | None = None
    stamp: str | None = None
    facts: tuple[tuple[str, str], ...]
    seller: tuple[str, ...]
    buyer: tuple[str, ...]
    due: str = ""
    sums: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[PrintedRow, ...]
    empty: str = "No usage in this period."
    remarks: tuple[str, ...] = ()
    small: tuple[str, ...] = ()


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[str | Decimal | int | None]]) -> str:
    """A table as CSV (RFC 4180): decimals in full, texts that cannot be run as formulas.

    Args:
        columns: Headings.
        rows: Cells; numbers are written as they are, texts are made safe.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([plain_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def plain_text(cell: str | Decimal | int | None) -> str:
    """One cell of a CSV file."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_FORMULA) else cell
    return f"{cell:f}" if isinstance(cell, Decimal) else str(cell)


_MONEY = frozenset({"billed_cost_usd", "exact_amount", "amount", "tax_amount", "charges", "credits"})
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(_MONEY, "money"),
    **dict.fromkeys(("list_unit_price_usd", "multiplier", "computed_cost_usd", "rounding_residue_usd"), "price"),
    **dict.fromkeys(("quantity", "balance"), "quantity"),
    **dict.fromkeys(("line", "unpriced"), "integer"),
}


def write_table(
    columns: Sequence[str], rows: Iterable[Mapping[str, str | Decimal | int | None]], target: str | Path | None
) -> bytes | Path:
    """A table as an Excel workbook: money as numbers with sums below, names and ids as text.

    Args:
        columns: Headings, in order.
        rows: Heading -> value.
        target: Where to write it; None = return the bytes.

    Raises:
        ConfigurationError: the extra ``xlsx`` is missing.
    """
    fields = [Field[Any](name, _KINDS.get(name, "text"), lambda row: row) for name in columns]
    content = io.BytesIO()
    write_xlsx(([row.get(name) for name in columns] for row in rows), fields, Sink(content))
    if target is None:
        return content.getvalue()
    path = Path(target)
    path.write_bytes(content.getvalue())
    return path
