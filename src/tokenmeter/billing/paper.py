"""Printed documents: what a page or a table shows, and its forms as JSON, CSV, workbook, HTML and PDF/A-3.

The page needs no script and nothing from elsewhere; the PDF is set by typst: any script, every font embedded, the same
bytes for the same sheet.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from html import escape
from importlib import import_module, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, overload

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.reports.fields import Field, Kind
from tokenmeter.reports.workbook import make_workbook
from tokenmeter.reports.writers import FORMULA, write_whole
from tokenmeter.values import dataclass

#: What a cell of a table holds.
Cell = str | Decimal | int | date | None


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


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
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


def plain_text(cell: Cell) -> str:
    """One cell of a CSV file."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(FORMULA) else cell
    return f"{cell:f}" if isinstance(cell, Decimal) else str(cell)


_MONEY = frozenset({"billed_cost_usd", "exact_amount", "amount", "tax_amount", "charges", "credits"})
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(_MONEY, "money"),
    **dict.fromkeys(("list_unit_price_usd", "multiplier", "computed_cost_usd", "rounding_residue_usd"), "price"),
    **dict.fromkeys(("line", "unpriced"), "integer"),
    "quantity": "quantity",
    "balance": "balance",
    "date": "day",
}


def write_table(columns: Sequence[str], rows: Iterable[Mapping[str, Cell]], target: str | Path | None) -> bytes | Path:
    """A table as an Excel workbook: money as numbers with sums below, days as dates, names and ids as text.

    Args:
        columns: Headings, in order.
        rows: Heading -> value.
        target: Where to write it; None = return the bytes.

    Raises:
        ConfigurationError: the extra ``xlsx`` is missing.
    """
    fields = [Field[Any](name, _KINDS.get(name, "text"), lambda row: row) for name in columns]
    content = make_workbook(([row.get(name) for name in columns] for row in rows), fields)
    if target is None:
        return content
    path = Path(target)
    write_whole(path, content, overwrite=True)
    return path


_STYLE = """
@page { size: A4; margin: 18mm 16mm; }
@page { @bottom-right { content: counter(page) " / " counter(pages); font: 8pt sans-serif; } }
* { box-sizing: border-box; }
body { font: 10pt/1.45 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: #1b1f24; margin: 0; }
main { max-width: 178mm; margin: 12mm auto; padding: 0 6mm; }
header { display: flex; justify-content: space-between; gap: 10mm; border-bottom: 2px solid #1b1f24; }
h1 { font-size: 18pt; margin: 0 0 2mm; }
.stamp { color: #b42318; border: 2px solid; padding: 0 2mm; font-size: 11pt; letter-spacing: .1em; margin-left: 3mm; }
.parties { display: flex; gap: 10mm; margin: 6mm 0; }
.parties > div { flex: 1; }
.parties h2 { font-size: 8pt; text-transform: uppercase; letter-spacing: .06em; color: #57606a; margin: 0; }
.parties p { margin: 0; overflow-wrap: anywhere; }
.parties p:first-of-type { font-weight: 600; }
dl { display: grid; grid-template-columns: auto auto; gap: 0 4mm; margin: 0 0 3mm; font-size: 9pt; }
dl { max-width: 90mm; } .parties > div { min-width: 0; }
dt { color: #57606a; } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; font-size: 9pt; }
thead { display: table-header-group; }
th { text-align: left; border-bottom: 1px solid #8c959f; padding: 1mm 1.5mm; font-size: 8pt; }
td { padding: 1mm 1.5mm; border-bottom: 1px solid #eaeef2; vertical-align: top; overflow-wrap: anywhere; }
tr { break-inside: avoid; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.parties .sums { flex: 0 0 auto; max-width: 80mm; align-self: flex-start; }
.sums { width: auto; break-inside: avoid; }
.sums td { border: 0; } .sums tr:last-child td { border-top: 2px solid #1b1f24; font-weight: 700; font-size: 11pt; }
.due { font-size: 13pt; margin: 0; }
.note { color: #57606a; font-size: 7.5pt; }
.empty { color: #57606a; }
footer { font-size: 7.5pt; color: #57606a; border-top: 1px solid #d0d7de; margin-top: 6mm; overflow-wrap: anywhere; }
@media print { main { margin: 0; padding: 0; max-width: none; } }
@media screen and (max-width: 720px) {
header, .parties { flex-direction: column; gap: 4mm; }
dl, .parties .sums { max-width: none; width: 100%; }
.lines, .lines tbody, .lines tr, .lines td { display: block; }
.lines thead, .lines td:empty { display: none; }
.lines tr { border-bottom: 1px solid #d0d7de; padding: 1.5mm 0; }
.lines td { display: flex; justify-content: space-between; gap: 4mm; border: 0; padding: .5mm 0; white-space: normal; }
.lines td::before { content: attr(data-label); color: #57606a; white-space: nowrap; }
.lines td.wide { display: block; font-weight: 600; } .lines td.wide::before { content: none; }
.note { font-weight: 400; }
}
"""


def render_html(sheet: PrintedSheet) -> str:
    """The page."""
    stamp = f' <span class="stamp">{escape(sheet.stamp)}</span>' if sheet.stamp else ""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in sheet.facts)
    sums = "".join(f'<tr><td>{escape(name)}</td><td class="n">{escape(value)}</td></tr>' for name, value in sheet.sums)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sheet.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<header><div><h1>{escape(sheet.title)}{stamp}</h1><p class="due">{escape(sheet.due)}</p></div>'
        f"<dl>{facts}</dl></header>\n"
        f'<section class="parties">{_party("From", sheet.seller)}{_party("To", sheet.buyer)}'
        f'<table class="sums"><tbody>{sums}</tbody></table></section>\n'
        f"{_table(sheet)}\n"
        f"{_paragraphs(sheet.remarks)}\n<footer>{_paragraphs(sheet.small)}</footer>\n</main>\n</body>\n</html>\n"
    )


def _party(label: str, lines: Iterable[str]) -> str:
    return f"<div><h2>{label}</h2>{_paragraphs(lines)}</div>"


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _table(sheet: PrintedSheet) -> str:
    if not sheet.rows:
        return f'<p class="empty">{escape(sheet.empty)}</p>'
    kinds = [_column_class(name, numeric) for name, numeric in zip(sheet.columns, sheet.numeric, strict=True)]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, sheet.columns, strict=True))
    rows = "\n".join(_row(row, sheet.columns, kinds) for row in sheet.rows)
    return f'<table class="lines">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>'


def _column_class(name: str, numeric: bool) -> str:
    return ' class="n"' if numeric else ' class="wide"' if name == "Description" else ""


def _row(row: PrintedRow, columns: Iterable[str], kinds: Iterable[str]) -> str:
    note = f'<br><span class="note">{escape(row.note)}</span>' if row.note else ""
    cells = (
        # On a phone a row is a list, and each of its values has the column's name before it.
        f'<td{kind} data-label="{escape(name)}">{escape(cell)}{note if name == "Description" else ""}</td>'
        for name, kind, cell in zip(columns, kinds, row.cells, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"


#: Packages of fonts, in the order their letters are looked for; the last is an extra of its own, for its size.
_PACKAGES = ("fontpkg_noto_sans", "fontpkg_noto_sans_arabic", "manimgx_fonts_cjk")
_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("/Library/Fonts"), Path("C:/Windows/Fonts"))
_FAMILIES = (
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans CJK SC", "Noto Sans Hebrew", "Noto Sans Thai"),
    *("Noto Sans Devanagari", "Droid Sans Fallback", "DejaVu Sans", "Libertinus Serif", "DejaVu Sans Mono"),
)
#: More rows than a page can show in good time; the rest is in the CSV.
_MOST_ROWS = 3000


@overload
def write_pdf(sheet: PrintedSheet, target: None) -> bytes: ...
@overload
def write_pdf(sheet: PrintedSheet, target: str | Path) -> Path: ...
@overload
def write_pdf(sheet: PrintedSheet, target: str | Path | None) -> bytes | Path: ...
def write_pdf(sheet: PrintedSheet, target: str | Path | None) -> bytes | Path:
    """Draw `sheet`. Of more than 3,000 rows the first are drawn, and a last one says how many are in the CSV.

    Args:
        sheet: What to draw.
        target: Where to write it; None = return the bytes.

    Raises:
        ConfigurationError: the extra is not installed, or no font has a letter of it; says which.
    """
    typst = _typst()
    content: bytes
    try:
        content = typst.compile(
            resources.files("tokenmeter.billing").joinpath("paper.typ").read_bytes(),
            format="pdf",
            font_paths=[str(folder) for folder in _font_folders()],
            # The same bytes on every machine: fonts come from named folders alone, in a fixed order.
            ignore_system_fonts=True,
            pdf_standards=["a-3b"],
            sys_inputs={"sheet": json.dumps(_data(sheet), ensure_ascii=False)},
            timestamp=_day(sheet),
        )
    except RuntimeError as error:
        raise _unprintable(error) from error
    if target is None:
        return content
    path = Path(target)
    write_whole(path, content, overwrite=True)
    return path


def _typst() -> Any:
    try:
        return import_module("typst")
    except ImportError as error:
        raise ConfigurationError(
            "A PDF needs the extra 'pdf': pip install 'tokenmeter-sdk[pdf]'. HTML prints without it."
        ) from error


def _data(sheet: PrintedSheet) -> dict[str, Any]:
    data = asdict(sheet)
    if len(sheet.rows) > _MOST_ROWS:
        more = len(sheet.rows) - _MOST_ROWS
        cells = tuple(
            f"... and {counted(more, 'more line')}; all are in the CSV" if name == "Description" else ""
            for name in sheet.columns
        )
        data["rows"] = [asdict(row) for row in (*sheet.rows[:_MOST_ROWS], PrintedRow(cells))]
    return {**_printable(data), "fonts": list(_FAMILIES)}


def _printable(value: Any) -> Any:
    """The same without control characters, which no font has."""
    if isinstance(value, str):
        return "".join(character for character in value if character.isprintable())
    if isinstance(value, dict):
        return {name: _printable(one) for name, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_printable(one) for one in value] if isinstance(value, (list, tuple)) else value  # pyright: ignore[reportUnknownVariableType]


def _day(sheet: PrintedSheet) -> int:
    """The document's date in its properties: not the clock's, so that the bytes are the same again."""
    day = datetime.fromisoformat(sheet.date) if sheet.date else datetime(2000, 1, 1)  # noqa: DTZ001 - made aware below
    return int(day.replace(tzinfo=UTC).timestamp())


@cache
def _font_folders() -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_folders()))


def _folders() -> Iterator[Path]:
    for name in _PACKAGES:
        spec = find_spec(name)
        for place in spec.submodule_search_locations or () if spec else ():
            yield from {font.parent for font in Path(place).rglob("*.[ot]t[fc]")}
    wanted = ("Noto*.[ot]t[fc]", "DroidSansFallback*.ttf", "DejaVuSans*.ttf")
    for folder in filter(Path.is_dir, _FOLDERS):
        for form in wanted:
            yield from sorted({font.parent for font in folder.rglob(form)})


def _unprintable(error: RuntimeError) -> ConfigurationError:
    said = str(error)
    letter = re.search(r'the (?:text|character) `?"([^"]+)"', said)
    if letter is None and "font" not in said and "glyph" not in said:
        return ConfigurationError(f"The page could not be set as PDF: {said.splitlines()[0]}")
    which = f": {letter[1]!r}" if letter else ""
    return ConfigurationError(
        f"No font on this machine has a letter of this document{which}. For Chinese, Japanese and Korean: "
        "pip install 'tokenmeter-sdk[pdf-cjk]', or a Noto font of the system (Debian: fonts-noto-core). HTML prints "
        f"without. typst says: {said.splitlines()[0]}"
    )


class Printable:
    """What has a sheet and a table, and so every form of them."""

    __slots__ = ()

    #: Headings of the table.
    columns: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        raise NotImplementedError

    def to_sheet(self) -> PrintedSheet:
        """What its page shows."""
        raise NotImplementedError

    def _table(self) -> Iterator[Mapping[str, Cell]]:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_csv(self) -> str:
        """Its table (RFC 4180), whose columns of money add up.

        Of an invoice ``amount`` comes to the net total, ``tax_amount`` to the taxes and ``billed_cost_usd`` to the
        ledger's cost; of a statement ``charges`` and ``credits`` to what the balance moved by.
        """
        return csv_text(self.columns, [tuple(row.get(name) for name in self.columns) for row in self._table()])

    @overload
    def to_xlsx(self, target: None = None) -> bytes: ...
    @overload
    def to_xlsx(self, target: str | Path) -> Path: ...
    def to_xlsx(self, target: str | Path | None = None) -> bytes | Path:
        """An Excel workbook (extra ``xlsx``) with the rows of `to_csv` and a row of sums that are formulas.

        Args:
            target: Where to write it; None = return the bytes.

        Raises:
            ConfigurationError: the extra is missing.
        """
        return write_table(self.columns, self._table(), target)

    def to_html(self) -> str:
        """A page of its own that prints on A4."""
        return render_html(self.to_sheet())

    @overload
    def to_pdf(self, target: None = None) -> bytes: ...
    @overload
    def to_pdf(self, target: str | Path) -> Path: ...
    def to_pdf(self, target: str | Path | None = None) -> bytes | Path:
        """A PDF/A-3 on A4 (extra ``pdf``): the same bytes for the same document and the same release of the extra.

        Args:
            target: Where to write it; None = return the bytes.

        Raises:
            ConfigurationError: the extra is missing, or a letter that no font has; says which.
        """
        return write_pdf(self.to_sheet(), target)
