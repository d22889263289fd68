"""A table as an Excel workbook: dates are dates, ids text, money numbers with a row of sums below.

A cell's number has 15 digits or so. So the columns at the far right, named ``... exact``, have each amount and price in
full, and the last row sums money, counts and quantities by formulas that follow a filter.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import import_module
from typing import Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ZERO, add
from tokenmeter.reports.fields import Field, Kind, json_value

_MOST_ROWS = 1_048_576 - 2
#: Excel's SUM that leaves out what a filter hides.
_SUM_SHOWN = 109
_WIDTHS: Mapping[Kind, int] = {
    **dict.fromkeys(("text", "json"), 24),
    **dict.fromkeys(("instant", "second"), 22),
    **dict.fromkeys(("money", "balance", "price", "quantity"), 18),
}
#: Kinds of which a cell's number may lack digits.
_EXACT_KINDS: frozenset[Kind] = frozenset({"money", "balance", "price"})
_FORMATS: Mapping[Kind, str] = {
    "money": "#,##0.00##########",
    "balance": "#,##0.00##########",
    "price": "0.0##############",
    "quantity": "#,##0.0########",
    "integer": "#,##0",
    "instant": "yyyy-mm-dd hh:mm:ss.000",
    "second": "yyyy-mm-dd hh:mm:ss",
    "day": "yyyy-mm-dd",
}


def make_workbook(records: Iterable[list[Any]], fields: Sequence[Field[Any]]) -> bytes:
    """A workbook of one sheet: headings, records, and a row of sums.

    Args:
        records: Values in the order of `fields`.
        fields: The columns.

    Raises:
        ConfigurationError: xlsxwriter is not installed, or there are more rows than a sheet can have.
    """
    try:
        xlsxwriter: Any = import_module("xlsxwriter")
    except ImportError as error:
        raise ConfigurationError("XLSX needs the extra 'xlsx': pip install 'tokenmeter-sdk[xlsx]'.") from error
    content = io.BytesIO()
    workbook = xlsxwriter.Workbook(content, {"constant_memory": True, "default_date_format": _FORMATS["second"]})
    workbook.set_properties({"created": datetime(2000, 1, 1)})  # noqa: DTZ001 - the same bytes for the same rows
    _Worksheet(workbook, fields).write(records)
    workbook.close()
    return content.getvalue()


class _Worksheet:
    def __init__(self, workbook: Any, fields: Sequence[Field[Any]]) -> None:
        self._fields = fields
        self._exact = [at for at, one in enumerate(fields) if one.kind in _EXACT_KINDS]
        self._sheet = workbook.add_worksheet()
        self._bold = workbook.add_format({"bold": True, "top": 1})
        self._heads = workbook.add_format({"bold": True, "bottom": 1})
        self._formats = {kind: workbook.add_format({"num_format": form}) for kind, form in _FORMATS.items()}
        kinds: tuple[Kind, ...] = ("money", "integer", "quantity")
        self._sums = {
            kind: workbook.add_format({"bold": True, "top": 1, "num_format": _FORMATS[kind]}) for kind in kinds
        }
        self._totals = {at: ZERO for at, one in enumerate(fields) if one.kind == "money" or one.summed}
        self._put: Mapping[Kind, Callable[[int, int, Any], None]] = {
            "text": self._text,
            "json": lambda row, at, value: self._text(row, at, json_value(value, "json")),
            "flag": self._sheet.write_boolean,
            "instant": self._moment,
            "second": self._moment,
            "day": self._day,
            "integer": self._number,
            "money": self._number,
            "balance": self._number,
            "price": self._figure,
            "quantity": self._figure,
        }

    def write(self, records: Iterable[list[Any]]) -> None:
        """Headings, rows, sums."""
        exact = len(self._fields)
        for at, one in enumerate(self._fields):
            self._sheet.set_column(at, at, _WIDTHS.get(one.kind, 12))
            self._sheet.write_string(0, at, one.name, self._heads)
        for place, at in enumerate(self._exact):
            self._sheet.write_string(0, exact + place, f"{self._fields[at].name} exact", self._heads)
        self._sheet.freeze_panes(1, 0)
        row = 0
        for row, values in enumerate(records, 1):
            if row > _MOST_ROWS:
                raise ConfigurationError(f"A sheet has {_MOST_ROWS:,} rows at most; export as CSV or Parquet.")
            self._write_row(row, values)
        if row:
            self._sheet.autofilter(0, 0, row, exact - 1)
            self._write_sums(row, exact)

    def _write_row(self, row: int, values: list[Any]) -> None:
        for at, (one, value) in enumerate(zip(self._fields, values, strict=True)):
            if value is not None and value != "":
                self._put[one.kind](row, at, value)
                if at in self._totals:
                    self._totals[at] = add(self._totals[at], Decimal(value))
        for column, at in enumerate(self._exact, len(self._fields)):
            if values[at] is not None:
                self._sheet.write_string(row, column, json_value(values[at], self._fields[at].kind))

    def _write_sums(self, last: int, exact: int) -> None:
        for at in range(exact):
            if at in self._totals:
                letter = _letters(at)
                formula, told = f"=SUBTOTAL({_SUM_SHOWN},{letter}2:{letter}{last + 1})", self._totals[at]
                kind: Kind = "money" if self._fields[at].kind == "money" else "quantity"
                form = self._sums["integer" if kind == "quantity" and told == int(told) else kind]
                self._sheet.write_formula(last + 1, at, formula, form, float(told))  # not money: a cell
            else:
                self._sheet.write_string(last + 1, at, "" if at else "Total", self._bold)
        for place, at in enumerate(self._exact):
            shown = json_value(self._totals.get(at), "money") or ""
            self._sheet.write_string(last + 1, exact + place, shown, self._bold)

    def _text(self, row: int, at: int, value: Any) -> None:
        text = str(value)
        cut = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - len(_CUT)]}{_CUT}"
        self._sheet.write_string(row, at, cut)

    def _number(self, row: int, at: int, value: Decimal | int) -> None:
        self._sheet.write_number(row, at, float(value), self._formats[self._fields[at].kind])  # not money: a cell

    def _figure(self, row: int, at: int, value: Decimal | int) -> None:
        """A whole number without the mark that a format of decimals leaves behind it: ``1,000``, not ``1,000.``."""
        kind = "integer" if value == int(value) else self._fields[at].kind
        self._sheet.write_number(row, at, float(value), self._formats[kind])  # not money: a cell

    def _moment(self, row: int, at: int, value: datetime) -> None:
        kind = self._fields[at].kind
        naive = value.astimezone(UTC).replace(tzinfo=None)
        self._sheet.write_datetime(row, at, naive, self._formats[kind])

    def _day(self, row: int, at: int, value: date | str) -> None:
        if isinstance(value, date):
            self._sheet.write_datetime(row, at, value, self._formats["day"])
        else:  # a month, a week: no day
            self._text(row, at, value)


#: What a cell can hold.
_LONGEST_TEXT = 32_767
_CUT = " ... (cut: more than a cell can hold)"


def _letters(column: int) -> str:
    """``A``, ..., ``Z``, ``AA``, ..."""
    name = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        name = chr(ord("A") + rest) + name
    return name
