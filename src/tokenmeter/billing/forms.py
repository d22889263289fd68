"""A document in all its forms: JSON, CSV, workbook, page and PDF, from its facts, its table and its sheet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, overload

from tokenmeter.billing.paper import Cell, PrintedSheet, csv_text, render_html, write_pdf, write_table


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
