"""The invoice: a draft from the ledger, issued once, then only followed by further documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from tokenmeter.billing.currency import ExchangeRate, money_text
from tokenmeter.billing.lines import LineItem, Totals
from tokenmeter.billing.profile import BillingProfile, Party
from tokenmeter.errors import LedgerError
from tokenmeter.money import ZERO
from tokenmeter.periods import Period
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document

if TYPE_CHECKING:
    from tokenmeter.billing.credit_note import CreditNote

__all__ = ["Event", "Invoice", "InvoiceStatus", "number_text"]

InvoiceStatus = Literal["draft", "issued", "paid", "void", "uncollectible"]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to an issued invoice: its new status, when, and what was said about it."""

    status: InvoiceStatus
    at: datetime
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    """An invoice. Issued ones never change: payment, voiding and credit are documents of their own.

    Attributes:
        number: ``INV-00001``, given when it is issued; None for a draft.
        scope: Whose: dimension -> value.
        period: What it covers.
        seller: Who bills.
        buyer: Who is billed.
        currency: ISO 4217 code.
        exchange_rate: From the ledger's dollars to the currency.
        lines: What is billed.
        totals: What it comes to.
        issued_on: Day of issue in the profile's zone.
        due_on: Day by which it is to be paid.
        payment_terms: The same in words.
        notes: Printed at the end.
        ledger: Which entries it is made of: ``since``, ``until``, the closing's ``manifest`` hash and the ``head`` of
            the entries at that time; both None while the period is open.
        credit_series: What the numbers of credit notes on it begin with.
        document: Where it is filed; its hash seals it.
        events: What happened since, oldest first.
        credited: Sum of its credit notes, in its currency.
        profile: What it was drafted with; None once it is issued.
        source: The ledger.
    """

    number: str | None = None
    scope: Mapping[str, str]
    period: Period
    seller: Party
    buyer: Party
    currency: str
    exchange_rate: ExchangeRate
    lines: tuple[LineItem, ...]
    totals: Totals
    issued_on: date | None = None
    due_on: date | None = None
    payment_terms: str | None = None
    notes: tuple[str, ...] = ()
    ledger: Mapping[str, str | None]
    credit_series: str = "CN-"
    document: Document | None = field(default=None, repr=False)
    events: tuple[Event, ...] = ()
    credited: Decimal = ZERO
    profile: BillingProfile | None = field(default=None, repr=False, compare=False)
    source: Store | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.title} {self.number or '(draft)'} to {self.buyer.name} for {self.period.label}: "
            f"{money_text(self.total, self.currency)}, {self.status}"
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def status(self) -> InvoiceStatus:
        """``draft``, ``issued``, ``paid``, ``void`` or ``uncollectible``."""
        if self.number is None:
            return "draft"
        return self.events[-1].status if self.events else "issued"

    @property
    def total(self) -> Decimal:
        """What is due, tax included, in `currency`."""
        return self.totals.total

    @property
    def balance(self) -> Decimal:
        """What is still to be paid: nothing once it is paid, void or given up."""
        return self.total - self.credited if self.status in {"draft", "issued"} else ZERO

    @property
    def title(self) -> str:
        """``Invoice``, or ``Credit`` when the seller owes the buyer."""
        return "Invoice" if self.totals.total >= 0 else "Credit"

    @property
    def unpriced(self) -> int:
        """Charges whose price is unknown: what they cost is not billed."""
        return sum(line.unpriced for line in self.lines)

    # -- its life; each returns the invoice as it is then

    def issue(self, *, on: date | None = None) -> Invoice:
        """Number and file it. Issuing the same draft again, even at the same time, gives the one that was filed.

        Args:
            on: Day of issue; default: today in the profile's zone.

        Raises:
            LedgerError: its period is not closed, or the account has an invoice for it already.
        """
        from tokenmeter.billing.issuing import issue  # noqa: PLC0415 - issuing knows invoices

        return issue(self, on=on)

    def mark_paid(self, *, note: str | None = None) -> Invoice:
        """It has been paid.

        Args:
            note: The payment's reference.

        Raises:
            LedgerError: a draft, or void.
        """
        return self._follow("paid", note)

    def void(self, reason: str) -> Invoice:
        """It was a mistake: nothing is due, and its account and period may be invoiced again. Its number stays used.

        Raises:
            LedgerError: a draft, paid, or credited.
        """
        return self._follow("void", reason)

    def mark_uncollectible(self, reason: str) -> Invoice:
        """Nobody will pay it.

        Raises:
            LedgerError: a draft, paid or void.
        """
        return self._follow("uncollectible", reason)

    def _follow(self, status: InvoiceStatus, note: str | None) -> Invoice:
        from tokenmeter.billing.issuing import follow  # noqa: PLC0415 - as above

        return follow(self, status, note)

    def credit(
        self, lines: Sequence[tuple[int | str, Decimal | int | str]] | Decimal | int | str | None, reason: str
    ) -> CreditNote:
        """Issue a credit note on it, with a number of its own.

        Args:
            lines: ``[(line number or description, net amount to give back), ...]``, a net amount, or None for
                everything that is not credited yet. Positive, in the invoice's currency; tax comes on top at the
                invoice's rates.
            reason: Why; printed on the note.

        Raises:
            LedgerError: a draft or void, or more than the invoice.
            ConfigurationError: not an amount or no such line.
        """
        from tokenmeter.billing.credit_note import credit  # noqa: PLC0415 - credit notes know invoices

        return credit(self, lines, reason)

    def refreshed(self) -> Invoice:
        """As it stands in the ledger now: others may have paid or credited it since."""
        from tokenmeter.billing.issuing import load  # noqa: PLC0415 - as above

        if self.document is None or self.source is None:
            return self
        return load(self.source, self.document)

    # -- its forms

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        return {
            "number": self.number,
            "status": self.status,
            **self.content(),
            "credited": f"{self.credited:f}",
            "balance": f"{self.balance:f}",
            "events": [{"status": one.status, "at": one.at.isoformat(), "note": one.note} for one in self.events],
            "seal": None if self.document is None else self.document.hash,
        }

    def content(self) -> dict[str, Any]:
        """What is filed: everything that never changes, but the number."""
        return {
            "scope": dict(self.scope),
            "period": {
                "label": self.period.label,
                "start": self.period.start.isoformat(),
                "end": self.period.end.isoformat(),
                "tz": self.period.tz,
            },
            "issued_on": None if self.issued_on is None else self.issued_on.isoformat(),
            "due_on": None if self.due_on is None else self.due_on.isoformat(),
            "payment_terms": self.payment_terms,
            "seller": self.seller.to_dict(),
            "buyer": self.buyer.to_dict(),
            "currency": self.currency,
            "exchange_rate": self.exchange_rate.to_dict(),
            "lines": [line.to_dict() for line in self.lines],
            "totals": self.totals.to_dict(),
            "ledger": dict(self.ledger),
            "notes": list(self.notes),
            "credit_series": self.credit_series,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_csv(self) -> str:
        """One row per line, then the totals (RFC 4180); exact amounts beside the rounded ones."""
        from tokenmeter.billing.render.table import invoice_csv  # noqa: PLC0415 - renderers load when used

        return invoice_csv(self)

    def to_html(self) -> str:
        """A page of its own that prints on A4."""
        from tokenmeter.billing.render.html import render_html  # noqa: PLC0415 - as above
        from tokenmeter.billing.render.sheet import invoice_sheet  # noqa: PLC0415 - as above

        return render_html(invoice_sheet(self))

    @overload
    def to_pdf(self, target: None = None) -> bytes: ...
    @overload
    def to_pdf(self, target: str | Path) -> Path: ...
    def to_pdf(self, target: str | Path | None = None) -> bytes | Path:
        """A PDF on A4 (extra ``pdf``): the same bytes for the same invoice, always.

        Args:
            target: Where to write it; None = return the bytes.

        Raises:
            ConfigurationError: the extra is missing.
        """
        from tokenmeter.billing.render.pdf import write_pdf  # noqa: PLC0415 - as above
        from tokenmeter.billing.render.sheet import invoice_sheet  # noqa: PLC0415 - as above

        return write_pdf(invoice_sheet(self), target)

    @classmethod
    def of(cls, document: Document, *, source: Store | None = None, lines: bool = True) -> Invoice:
        """The invoice that `document` holds, as it was issued; without its lines where only the rest is looked at."""
        body: dict[str, Any] = json.loads(document.body)
        rate = body["exchange_rate"]
        period = body["period"]
        return cls(
            number=number_text(document),
            scope=body["scope"],
            period=Period(
                datetime.fromisoformat(period["start"]),
                datetime.fromisoformat(period["end"]),
                period["tz"],
                period["label"],
            ),
            seller=_party(body["seller"]),
            buyer=_party(body["buyer"]),
            currency=body["currency"],
            exchange_rate=ExchangeRate(Decimal(rate["rate"]), rate["source"], rate["date"]),
            lines=tuple(LineItem.of(line) for line in body["lines"]) if lines else (),
            totals=Totals.of(body["totals"]),
            issued_on=date.fromisoformat(body["issued_on"]),
            due_on=date.fromisoformat(body["due_on"]),
            payment_terms=body["payment_terms"],
            notes=tuple(body["notes"]),
            ledger=body["ledger"],
            credit_series=body["credit_series"],
            document=document,
            source=source,
        )

    def filed(self) -> tuple[Store, Document]:
        """Its ledger and document.

        Raises:
            LedgerError: it is a draft.
        """
        if self.source is None or self.document is None:
            raise LedgerError("This invoice is a draft; issue() it first.")
        return self.source, self.document

    def with_events(self, events: Sequence[Event], credited: Decimal) -> Invoice:
        """The same invoice with what happened since."""
        return replace(self, events=tuple(events), credited=credited)


def number_text(document: Document) -> str:
    """``INV-00042``: the series and the number."""
    return f"{document.series}{document.number:05d}"


def _party(values: Mapping[str, Any]) -> Party:
    known: dict[str, Any] = dict(values)
    for name in ("address", "payment"):
        known[name] = tuple(known[name])
    return Party(**known)
