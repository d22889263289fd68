"""Credit notes: how an issued invoice is put right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, overload

from tokenmeter.billing.currency import money_text, round_money
from tokenmeter.billing.invoice import Invoice, number_text
from tokenmeter.billing.issuing import CREDIT_NOTE, find_invoice, invoices, load
from tokenmeter.billing.lines import TaxLine
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, parse_decimal
from tokenmeter.periods import zone
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, NewDocument, Request

__all__ = ["CreditLine", "CreditNote", "CreditRequest", "credit", "credit_notes"]

#: ``[(line number or description, net amount), ...]``, one net amount, or None for the rest.
CreditRequest = Sequence[tuple[int | str, Decimal | int | str]] | Decimal | int | str | None


@dataclass(frozen=True, slots=True)
class CreditLine:
    """What is given back: for which line (None = none in particular), in words, and how much before tax."""

    line: int | None
    description: str
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditNote:
    """An issued credit note.

    Attributes:
        number: ``CN-00001``.
        invoice: The invoice it puts right.
        reason: Why.
        lines: What is given back, positive.
        net: Their sum.
        taxes: Tax given back, at the invoice's rates.
        total: Net and taxes, positive, in the invoice's currency.
        issued_on: Day of issue.
        document: Where it is filed; its hash seals it.
    """

    number: str
    invoice: Invoice
    reason: str
    lines: tuple[CreditLine, ...]
    net: Decimal
    taxes: tuple[TaxLine, ...] = ()
    total: Decimal
    issued_on: date
    document: Document = field(repr=False)

    def __str__(self) -> str:
        return (
            f"Credit note {self.number} on {self.invoice.number} to {self.invoice.buyer.name}: "
            f"{money_text(self.total, self.invoice.currency)} ({self.reason})"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        return {"number": self.number, **json.loads(self.document.body), "seal": self.document.hash}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_html(self) -> str:
        """A page of its own that prints on A4."""
        from tokenmeter.billing.render.html import render_html  # noqa: PLC0415 - renderers load when used
        from tokenmeter.billing.render.sheet import credit_sheet  # noqa: PLC0415 - as above

        return render_html(credit_sheet(self))

    @overload
    def to_pdf(self, target: None = None) -> bytes: ...
    @overload
    def to_pdf(self, target: str | Path) -> Path: ...
    def to_pdf(self, target: str | Path | None = None) -> bytes | Path:
        """A PDF; see `Invoice.to_pdf`."""
        from tokenmeter.billing.render.pdf import write_pdf  # noqa: PLC0415 - as above
        from tokenmeter.billing.render.sheet import credit_sheet  # noqa: PLC0415 - as above

        return write_pdf(credit_sheet(self), target)

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
            taxes=tuple(
                TaxLine(row["label"], Decimal(row["rate"]), Decimal(row["base"]), Decimal(row["amount"]))
                for row in body["taxes"]
            ),
            total=Decimal(body["total"]),
            issued_on=date.fromisoformat(body["issued_on"]),
            document=document,
        )


def credit(invoice: Invoice, lines: CreditRequest, reason: str) -> CreditNote:
    """See `Invoice.credit`."""
    store, document = invoice.filed()
    if not reason:
        raise ConfigurationError("A credit note says why: give a reason.")
    while True:
        current = load(store, document)
        if current.status in {"void", "uncollectible"}:
            raise LedgerError(f"Invoice {current.number} is {current.status}; there is nothing to credit.")
        earlier = list(store.documents(Request(CREDIT_NOTE, f"{current.number} #")))
        body = _body(current, earlier, lines, reason)
        key = f"{current.number} #{len(earlier) + 1}"
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        filing = store.file(NewDocument(kind=CREDIT_NOTE, key=key, series=current.credit_series, body=text))
        if filing.recorded:
            return CreditNote.of(filing.document, load(store, document))


def _body(invoice: Invoice, earlier: Sequence[Document], lines: CreditRequest, reason: str) -> dict[str, Any]:
    given = sum((Decimal(json.loads(note.body)["net"]) for note in earlier), ZERO)
    left = invoice.totals.net - given
    asked = _lines(invoice, lines, left)
    net = sum((line.amount for line in asked), ZERO)
    if net > left:
        raise LedgerError(
            f"Invoice {invoice.number} is {invoice.totals.net} {invoice.currency} before tax, of which {given} is "
            f"credited already; {net} is more than the {left} left."
        )
    # The last note takes what earlier ones left of each tax, so that a whole credit is the whole invoice.
    taxes = [
        {
            "label": tax.label,
            "rate": f"{tax.rate:f}",
            "base": f"{net:f}",
            "amount": f"{_tax_left(tax, earlier) if net == left else _tax_on(net, tax, invoice.currency):f}",
        }
        for tax in invoice.totals.taxes
    ]
    return {
        "invoice": invoice.number,
        "currency": invoice.currency,
        "reason": reason,
        "issued_on": utcnow().astimezone(zone(invoice.period.tz)).date().isoformat(),
        "lines": [{"line": line.line, "description": line.description, "amount": f"{line.amount:f}"} for line in asked],
        "net": f"{net:f}",
        "taxes": taxes,
        "total": f"{sum((Decimal(tax['amount']) for tax in taxes), net):f}",
    }


def _tax_on(net: Decimal, tax: TaxLine, currency: str) -> Decimal:
    return round_money(EXACT.multiply(net, tax.rate), currency)


def _tax_left(tax: TaxLine, earlier: Sequence[Document]) -> Decimal:
    rows = (row for note in earlier for row in json.loads(note.body)["taxes"] if row["label"] == tax.label)
    return tax.amount - sum((Decimal(row["amount"]) for row in rows), ZERO)


def _lines(invoice: Invoice, lines: CreditRequest, left: Decimal) -> list[CreditLine]:
    if lines is None:
        asked = [CreditLine(None, f"Credit of invoice {invoice.number}", left)]
    elif isinstance(lines, (Decimal, int, str)):
        asked = [_line(invoice, f"Credit on invoice {invoice.number}", lines)]
    else:
        asked = [_line(invoice, which, amount) for which, amount in lines]
    if not asked or any(line.amount <= 0 for line in asked):
        raise LedgerError(f"A credit note gives something back; nothing positive is left of {invoice.number} to give.")
    return asked


def _line(invoice: Invoice, which: int | str, amount: object) -> CreditLine:
    number = parse_decimal(amount, name="the credit's amount")
    if number <= 0 or number != round_money(number, invoice.currency):
        raise ConfigurationError(
            f"A credit is a positive amount in whole minor units of {invoice.currency}, not {number}."
        )
    number = round_money(number, invoice.currency)
    if isinstance(which, str):
        return CreditLine(None, which, number)
    line = next((one for one in invoice.lines if one.position == which), None)
    if line is None:
        raise ConfigurationError(f"Invoice {invoice.number} has lines 1 to {len(invoice.lines)}, not {which!r}.")
    return CreditLine(which, line.description, number)


def credit_notes(store: Store, *, invoice: str | None = None) -> list[CreditNote]:
    """Issued credit notes, oldest first; of one invoice, or all."""
    notes = list(store.documents(Request(CREDIT_NOTE, None if invoice is None else f"{invoice} #")))
    if not notes:
        return []
    found = invoices(store) if invoice is None else [find_invoice(store, invoice)]
    known = {one.number: one for one in found}
    return [CreditNote.of(note, known[json.loads(note.body)["invoice"]]) for note in notes]
