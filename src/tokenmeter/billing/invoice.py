"""Invoices: plain records and what their page shows. `issuing` and `receivables` act on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, replace
from datetime import date
from decimal import Decimal
from typing import Any, ClassVar, Literal

from tokenmeter.billing.events import Event, EventKind
from tokenmeter.billing.lines import LineItem, TaxLine, Totals
from tokenmeter.billing.paper import Cell, Printable, PrintedRow, PrintedSheet
from tokenmeter.billing.period import period_dict, period_of
from tokenmeter.billing.profile import BillingProfile, Party
from tokenmeter.dimensions import ACCOUNTS
from tokenmeter.display import counted
from tokenmeter.money import EXACT, USD, ZERO, ExchangeRate, money_text, multiply, total
from tokenmeter.periods import Period
from tokenmeter.reports.rated import account_name
from tokenmeter.stores.documents import Document
from tokenmeter.values import dataclass

InvoiceStatus = Literal["draft", "issued", "paid", "credited", "void", "uncollectible"]

#: Columns of an invoice as CSV.
CSV_COLUMNS = (
    *("invoice", "line", "kind", "description", "invoice_period", "period", *ACCOUNTS, "provider", "model"),
    *("sku_meter", "conditions", "quantity", "unit", "list_unit_price_usd", "factors", "multiplier"),
    *("computed_cost_usd", "rounding_residue_usd", "billed_cost_usd", "exact_amount", "amount", "tax_amount"),
    *("currency", "unpriced"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice(Printable):
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
        issued_by: Who issued it.
        due_on: Day by which it is to be paid.
        payment_terms: The same in words.
        notes: Printed at the end.
        overlap: Why usage that stands on another invoice is billed here as well; None when none is.
        ledger: Which entries it is made of: ``since``, ``until``, the closing's ``manifest`` hash and the ``head`` of
            the entries at that time; both None while the period is open.
        credit_series: What the numbers of credit notes on it begin with.
        tz: Zone of the seller's calendar, which dates it and all that happens to it.
        document: Where it is filed; its hash seals it.
        events: What happened since, oldest first.
        profile: What it was drafted with; None once it is issued.
    """

    columns: ClassVar[tuple[str, ...]] = CSV_COLUMNS
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
    issued_by: str | None = None
    due_on: date | None = None
    payment_terms: str | None = None
    notes: tuple[str, ...] = ()
    overlap: str | None = None
    ledger: Mapping[str, str | None]
    credit_series: str = "CN-"
    tz: str
    document: Document | None = field(default=None, repr=False)
    events: tuple[Event, ...] = ()
    profile: BillingProfile | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.title} {self.number or '(draft)'} to {self.buyer.name} for {self.period.label}: "
            f"{money_text(self.total, self.currency)}, {self.status}"
        )

    @property
    def status(self) -> InvoiceStatus:
        """``draft``; ``issued``: something is due; ``paid`` or ``credited`` in full; ``void``; ``uncollectible``."""
        if self.number is None:
            return "draft"
        kinds = [one.kind for one in self.events]
        if "void" in kinds:
            return "void"
        if kinds and multiply(self._left, self._sign) <= 0:
            return "paid" if self.paid else "credited"
        return "uncollectible" if "uncollectible" in kinds else "issued"

    @property
    def total(self) -> Decimal:
        """What it is over, tax included, in `currency`."""
        return self.totals.total

    @property
    def credited(self) -> Decimal:
        """Sum of its credit notes, tax included."""
        return self._sum("credit_note")

    @property
    def paid(self) -> Decimal:
        """Sum of its payments, less what was given back."""
        return self._sum("payment")

    @property
    def balance(self) -> Decimal:
        """What is still to be paid; negative: what the buyer has paid too much. 0 once it is void or given up."""
        return ZERO if self.status in {"void", "uncollectible"} else self._left

    @property
    def left(self) -> tuple[str, Decimal]:
        """`balance` for people: ``left to pay``, or ``paid too much``, and how much."""
        if self.balance < 0 <= self.total:
            return "paid too much", self.balance.copy_abs()
        return "left to pay", self.balance

    def as_of(self, day: date) -> Invoice | None:
        """The invoice as it stood on a day, by the days that what happened counts for; None before its issue."""
        if self.issued_on is not None and self.issued_on > day:
            return None
        return replace(self, events=tuple(one for one in self.events if one.on <= day))

    @property
    def _left(self) -> Decimal:
        return EXACT.subtract(EXACT.subtract(self.total, self.credited), self.paid)

    @property
    def _sign(self) -> int:
        return 1 if self.total >= 0 else -1

    def _sum(self, kind: EventKind) -> Decimal:
        return total(one.amount or ZERO for one in self.events if one.kind == kind)

    @property
    def account(self) -> str:
        """``member=ada``."""
        return account_name(self.scope)

    @property
    def title(self) -> str:
        """``Invoice``, or ``Credit`` when the seller owes the buyer."""
        return "Invoice" if self.totals.total >= 0 else "Credit"

    @property
    def unpriced(self) -> int:
        """Charges whose price is unknown: what they cost is not billed."""
        return sum(max(line.unpriced, 0) for line in self.lines)

    # -- its forms

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready; decimals are text."""
        return {
            "number": self.number,
            "status": self.status,
            **self.content(),
            **{name: f"{getattr(self, name):f}" for name in ("credited", "paid", "balance")},
            "events": [one.to_dict() for one in self.events],
            "seal": None if self.document is None else self.document.hash,
        }

    def content(self) -> dict[str, Any]:
        """What is filed: everything that never changes, but the number."""
        return {
            "scope": dict(self.scope),
            "period": period_dict(self.period),
            **{name: None if day is None else day.isoformat() for name, day in self._days()},
            "issued_by": self.issued_by,
            "payment_terms": self.payment_terms,
            "seller": self.seller.to_dict(),
            "buyer": self.buyer.to_dict(),
            "currency": self.currency,
            "exchange_rate": self.exchange_rate.to_dict(),
            "lines": [line.to_dict() for line in self.lines],
            "totals": self.totals.to_dict(),
            "ledger": dict(self.ledger),
            "notes": list(self.notes),
            "overlap": self.overlap,
            "credit_series": self.credit_series,
            "tz": self.tz,
        }

    def _days(self) -> tuple[tuple[str, date | None], ...]:
        return ("issued_on", self.issued_on), ("due_on", self.due_on)

    @classmethod
    def of(cls, document: Document, *, lines: bool = True) -> Invoice:
        """The invoice that `document` holds, as it was issued; without its lines where only the rest is looked at."""
        body: dict[str, Any] = json.loads(document.body)
        rate = body["exchange_rate"]
        same = ("scope", "currency", "issued_by", "payment_terms", "ledger", "overlap", "credit_series")
        return cls(
            number=number_text(document),
            period=period_of(body["period"]),
            seller=Party.of(body["seller"]),
            buyer=Party.of(body["buyer"]),
            exchange_rate=ExchangeRate(Decimal(rate["rate"]), rate["source"], rate["date"]),
            lines=tuple(LineItem.of(line) for line in body["lines"]) if lines else (),
            totals=Totals.of(body["totals"]),
            issued_on=date.fromisoformat(body["issued_on"]),
            due_on=date.fromisoformat(body["due_on"]),
            notes=tuple(body["notes"]),
            tz=body.get("tz") or body["period"]["tz"],  # not written by the first versions
            document=document,
            **{name: body[name] for name in same},
        )

    def _table(self) -> Iterator[Mapping[str, Cell]]:
        known = {"invoice": self.number or "draft", "currency": self.currency, "invoice_period": self.period.label}
        owner = {name: self.scope.get(name) for name in ACCOUNTS}
        for line in self.lines:
            row = {one.name: getattr(line, one.name) for one in fields(line) if one.name in CSV_COLUMNS}
            yield {
                **known,
                **owner,
                **row,
                **line.group,
                "line": line.position,
                "list_unit_price_usd": line.list_unit_price,
                "factors": ";".join(f"{name}={factor:f}" for name, factor in line.multipliers.items()),
                "multiplier": line.multiplier,
                "computed_cost_usd": line.computed_cost,
                "rounding_residue_usd": line.rounding_residue,
                "billed_cost_usd": line.billed_cost,
            }
        yield {**known, **owner, "kind": "rounding", "description": "Rounding", "amount": self.totals.rounding}
        for tax in self.totals.taxes:
            yield {**known, **owner, "kind": "tax", "description": tax.label, "tax_amount": tax.amount}

    def to_sheet(self) -> PrintedSheet:
        """What its page shows. What happened after its issue is not on it, but for its voiding."""
        groups = next((tuple(line.group) for line in self.lines), ())
        names = tuple(name.replace("_", " ").capitalize() for name in groups)
        return PrintedSheet(
            title=f"{self.title} {self.number}" if self.number else f"Draft {self.title.lower()}",
            author=self.seller.name,
            date=None if self.issued_on is None else self.issued_on.isoformat(),
            stamp={"draft": "DRAFT", "void": "VOID"}.get(self.status),
            facts=tuple(self._facts()),
            seller=party_lines(self.seller),
            buyer=party_lines(self.buyer),
            due=f"{money_text(self.total, self.currency)}" + (f" due {self.due_on}" if self.due_on else ""),
            sums=tuple(self._sums()),
            columns=("#", "Description", *names, "Quantity", "Unit price USD", self.currency),
            numeric=(True, False, *(False for _ in groups), True, True, True),
            rows=tuple(_printed_line(line, self.currency, self.exchange_rate) for line in self.lines),
            remarks=tuple(self._remarks()),
            small=tuple(self._small()),
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.issued_on and self.due_on:
            yield "Date", self.issued_on.isoformat()
            yield "Due", self.due_on.isoformat()
        yield "Period", f"{self.period.label} ({self.period.tz})"
        for dimension, value in self.scope.items():
            yield dimension.replace("_", " ").capitalize(), value
        if self.buyer.cost_centre:
            yield "Cost centre", self.buyer.cost_centre
        if self.buyer.purchase_order:
            yield "Purchase order", self.buyer.purchase_order
        if self.buyer.reference:
            yield "Your reference", self.buyer.reference

    def _sums(self) -> Iterator[tuple[str, str]]:
        totals = self.totals
        yield "Subtotal", f"{totals.subtotal:,f}"
        if totals.credits:
            yield "Credits and adjustments", f"{totals.credits:,f}"
        yield "Rounding", f"{totals.rounding:,f}"
        if totals.taxes:
            yield "Net", f"{totals.net:,f}"
        yield from tax_sums(totals.taxes)
        yield f"Total {self.currency}", f"{totals.total:,f}"

    def _remarks(self) -> Iterator[str]:
        if self.payment_terms and self.totals.total > 0:
            yield self.payment_terms
        yield from self.seller.payment
        yield from (tax.note for tax in self.totals.taxes if tax.note)
        if self.unpriced:
            told = counted(self.unpriced, "charge has no known price and is", "charges have no known price and are")
            yield f"{told} not billed here."
        if self.overlap:
            yield f"Some of this usage is on another invoice as well: {self.overlap}"
        yield from self.notes

    def _small(self) -> Iterator[str]:
        totals, rate = self.totals, self.exchange_rate
        yield (
            f"Ledger total {totals.ledger_cost.normalize(EXACT):f} USD. Every line is exact in the ledger and rounded "
            f"once; 'Rounding' brings their sum to the ledger's total. Not billed: "
            f"{totals.remainder.normalize(EXACT):f} {self.currency}."
        )
        if self.currency != USD:
            quoted = ", ".join(text for text in (rate.source, rate.date) if text)
            at = f"{rate.rate.normalize(EXACT):f} {self.currency} per USD"
            yield f"Converted at {at}{f' ({quoted})' if quoted else ''}."
        if self.ledger["manifest"]:
            yield (
                f"Entries from {self.ledger['since']} to {self.ledger['until']}; "
                f"manifest {self.ledger['manifest']}; ledger head {self.ledger['head']}."
            )
        if self.issued_by:
            yield f"Issued by {self.issued_by}."
        if self.document is not None:
            yield f"Seal {self.document.hash}."


def number_text(document: Document) -> str:
    """``INV-00042``: the series and the number."""
    return f"{document.series}{document.number:05d}"


def party_lines(party: Party) -> tuple[str, ...]:
    """A party's block on a page, name first."""
    tax = f"Tax ID {party.tax_id}" if party.tax_id else None
    return tuple(line for line in (party.name, *party.address, party.email, tax) if line)


def _printed_line(line: LineItem, currency: str, rate: ExchangeRate) -> PrintedRow:
    """A row, and how its amount is come to where quantity x unit price does not show it."""
    note = line.arithmetic if line.multipliers or line.rounding_residue or currency != USD else ""
    if note and currency != USD:
        exact = f"{line.exact_amount.normalize(EXACT):f}"
        note = f"{note}, x {rate.rate.normalize(EXACT):f} = {exact} {currency}"
    cells = (
        str(line.position),
        line.description,
        *(value or "-" for value in line.group.values()),
        f"{line.quantity.normalize(EXACT):,f}" if line.quantity and line.kind != "adjustment" else "",
        line.price_text if line.kind != "adjustment" else "",
        f"{line.amount:,f}" if line.unpriced <= 0 or line.amount else "unpriced",
    )
    return PrintedRow(cells, note)


def tax_sums(taxes: tuple[TaxLine, ...]) -> Iterator[tuple[str, str]]:
    """Label and amount of each tax."""
    for tax in taxes:
        yield f"{tax.label} on {tax.base:,f}", f"{tax.amount:,f}"
