"""Credit notes: what is given back on an issued invoice. `receivables` issues them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from datetime import date
from decimal import Decimal
from typing import Any, ClassVar

from tokenmeter.billing.invoice import Invoice, number_text, party_lines, tax_sums
from tokenmeter.billing.lines import TaxLine
from tokenmeter.billing.paper import Cell, Printable, PrintedRow, PrintedSheet
from tokenmeter.money import money_text, round_money
from tokenmeter.stores.documents import Document
from tokenmeter.values import dataclass

CREDIT_COLUMNS = ("credit_note", "invoice", "line", "description", "amount", "tax_amount", "currency")


#: In place of a line's number: what is given back of an invoice's rounding.
ROUNDING = 0


@dataclass(frozen=True, slots=True)
class CreditLine:
    """What is given back: for which line, in words, and how much before tax.

    The line is None for none in particular, and `ROUNDING` for the invoice's rounding. A negative amount takes back:
    the credit of a line that was negative itself, or what earlier notes gave back in words.
    """

    line: int | None
    description: str
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditNote(Printable):
    """An issued credit note.

    Attributes:
        number: ``CN-00001``.
        invoice: The invoice it puts right, as it stands with this note.
        reason: Why.
        lines: What is given back.
        net: Their sum, positive.
        taxes: Tax given back, at the invoice's rates.
        total: Net and taxes, positive, in the invoice's currency.
        issued_on: Day of issue.
        issued_by: Who issued it.
        document: Where it is filed; its hash seals it.
    """

    columns: ClassVar[tuple[str, ...]] = CREDIT_COLUMNS
    number: str
    invoice: Invoice
    reason: str
    lines: tuple[CreditLine, ...]
    net: Decimal
    taxes: tuple[TaxLine, ...] = ()
    total: Decimal
    issued_on: date
    issued_by: str
    document: Document = field(repr=False)

    def __str__(self) -> str:
        return (
            f"Credit note {self.number} on {self.invoice.number} to {self.invoice.buyer.name}: "
            f"{money_text(self.total, self.invoice.currency)} ({self.reason})"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        return {"number": self.number, **json.loads(self.document.body), "seal": self.document.hash}

    def _table(self) -> Iterator[Mapping[str, Cell]]:
        known = {"credit_note": self.number, "invoice": self.invoice.number, "currency": self.invoice.currency}
        for line in self.lines:
            yield {**known, "line": line.line or None, "description": line.description, "amount": line.amount}
        for tax in self.taxes:
            yield {**known, "description": tax.label, "tax_amount": tax.amount}

    def to_sheet(self) -> PrintedSheet:
        """What its page shows."""
        invoice, currency = self.invoice, self.invoice.currency
        rows = ((str(one.line or ""), one.description, f"{one.amount:,f}") for one in self.lines)
        return PrintedSheet(
            title=f"Credit note {self.number}",
            author=invoice.seller.name,
            date=self.issued_on.isoformat(),
            facts=(
                ("Date", self.issued_on.isoformat()),
                ("Invoice", f"{invoice.number} of {invoice.issued_on}"),
                ("Period", f"{invoice.period.label} ({invoice.period.tz})"),
            ),
            seller=party_lines(invoice.seller),
            buyer=party_lines(invoice.buyer),
            due=f"{money_text(self.total, currency)} credited",
            sums=(
                ("Net", f"{round_money(self.net, currency):,f}"),
                *tax_sums(self.taxes),
                (f"Credited {currency}", f"{self.total:,f}"),
            ),
            columns=("Line", "Description", currency),
            numeric=(True, False, True),
            rows=tuple(PrintedRow(row) for row in rows),
            remarks=(f"Reason: {self.reason}",),
            small=(f"Issued by {self.issued_by}.", f"Seal {self.document.hash}."),
        )

    @classmethod
    def of(cls, document: Document, invoice: Invoice) -> CreditNote:
        """The credit note that `document` holds."""
        body: dict[str, Any] = json.loads(document.body)
        return cls(
            number=number_text(document),
            invoice=invoice,
            reason=body["reason"],
            lines=tuple(CreditLine(row["line"], row["description"], Decimal(row["amount"])) for row in body["lines"]),
            net=Decimal(body["net"]),
            taxes=tuple(TaxLine.of(row) for row in body["taxes"]),
            total=Decimal(body["total"]),
            issued_on=date.fromisoformat(body["issued_on"]),
            issued_by=body["issued_by"],
            document=document,
        )
