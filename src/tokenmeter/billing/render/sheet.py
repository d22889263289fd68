"""What a page shows, apart from how it is drawn: the same for HTML and PDF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenmeter.billing.currency import USD, money_text, round_money
from tokenmeter.billing.lines import LineItem, TaxLine
from tokenmeter.billing.profile import Party

if TYPE_CHECKING:
    from tokenmeter.billing.credit_note import CreditNote
    from tokenmeter.billing.invoice import Invoice

__all__ = ["Sheet", "credit_sheet", "invoice_sheet"]

_NOTHING = "No usage in this period."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A printed document.

    Attributes:
        title: ``Invoice INV-00001``.
        author: Who made it, for the file's properties.
        stamp: ``DRAFT`` or ``VOID`` across the head; else None.
        facts: Pairs beside the title: dates, period, references.
        seller: Lines of the seller's block, name first.
        buyer: Lines of the buyer's.
        columns: Headings of the table.
        numeric: Which columns are numbers.
        rows: The table.
        empty: Said in place of an empty table.
        sums: Label and amount, in order; the last is what is due.
        remarks: Sentences below.
        small: Sentences in small print: where the figures come from.
    """

    title: str
    author: str
    stamp: str | None = None
    facts: tuple[tuple[str, str], ...]
    seller: tuple[str, ...]
    buyer: tuple[str, ...]
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    empty: str = _NOTHING
    sums: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...] = ()
    small: tuple[str, ...] = ()


def invoice_sheet(invoice: Invoice) -> Sheet:
    """The sheet of an invoice. What happened after its issue is not on it, but for its voiding."""
    broken_down = next((tuple(line.group) for line in invoice.lines), ())
    groups = tuple(name.replace("_", " ").capitalize() for name in broken_down)
    return Sheet(
        title=f"{invoice.title} {invoice.number}" if invoice.number else f"Draft {invoice.title.lower()}",
        author=invoice.seller.name,
        stamp={"draft": "DRAFT", "void": "VOID"}.get(invoice.status),
        facts=tuple(_facts(invoice)),
        seller=_party(invoice.seller),
        buyer=_party(invoice.buyer),
        columns=("#", "Description", *groups, "Quantity", "Unit", "Unit price USD", "Factor", invoice.currency),
        numeric=(True, False, *(False for _ in groups), True, False, True, True, True),
        rows=tuple(_row(line) for line in invoice.lines),
        sums=tuple(_sums(invoice)),
        remarks=tuple(_remarks(invoice)),
        small=tuple(_small(invoice)),
    )


def _facts(invoice: Invoice) -> Iterator[tuple[str, str]]:
    if invoice.issued_on and invoice.due_on:
        yield "Date", invoice.issued_on.isoformat()
        yield "Due", invoice.due_on.isoformat()
    yield "Period", f"{invoice.period.label} ({invoice.period.tz})"
    for dimension, value in invoice.scope.items():
        yield dimension.replace("_", " ").capitalize(), value
    if invoice.buyer.cost_centre:
        yield "Cost centre", invoice.buyer.cost_centre
    if invoice.buyer.purchase_order:
        yield "Purchase order", invoice.buyer.purchase_order


def _party(party: Party) -> tuple[str, ...]:
    tax = f"Tax ID {party.tax_id}" if party.tax_id else None
    return tuple(line for line in (party.name, *party.address, party.email, tax) if line)


def _row(line: LineItem) -> tuple[str, ...]:
    amount = f"{line.amount:,f}" if not line.unpriced or line.amount else "unpriced"
    return (
        str(line.position),
        line.description,
        *(value or "-" for value in line.group.values()),
        f"{line.quantity.normalize():,f}" if line.quantity else "",
        line.unit if line.quantity else "",
        line.price_text,
        f"{line.multiplier.normalize():f}" if line.multipliers else "",
        amount,
    )


def _sums(invoice: Invoice) -> Iterator[tuple[str, str]]:
    totals = invoice.totals
    yield "Subtotal", f"{totals.subtotal:,f}"
    if totals.credits:
        yield "Credits and adjustments", f"{totals.credits:,f}"
    yield "Rounding", f"{totals.rounding:,f}"
    if totals.taxes:
        yield "Net", f"{totals.net:,f}"
    yield from _taxes(totals.taxes)
    yield f"Total {invoice.currency}", f"{totals.total:,f}"


def _taxes(taxes: tuple[TaxLine, ...]) -> Iterator[tuple[str, str]]:
    for tax in taxes:
        yield f"{tax.label} on {tax.base:,f}", f"{tax.amount:,f}"


def _remarks(invoice: Invoice) -> Iterator[str]:
    if invoice.payment_terms and invoice.totals.total > 0:
        yield invoice.payment_terms
    yield from invoice.seller.payment
    yield from (tax.note for tax in invoice.totals.taxes if tax.note)
    if invoice.unpriced:
        yield f"{invoice.unpriced} charges have no known price and are not billed here."
    yield from invoice.notes


def _small(invoice: Invoice) -> Iterator[str]:
    totals, rate = invoice.totals, invoice.exchange_rate
    yield (
        f"Ledger total {totals.ledger_cost.normalize():f} USD. Every line is exact in the ledger and rounded once; "
        f"'Rounding' brings their sum to the ledger's total. Not billed: {totals.remainder.normalize():f} "
        f"{invoice.currency}."
    )
    if invoice.currency != USD:
        quoted = ", ".join(text for text in (rate.source, rate.date) if text)
        yield f"Converted at {rate.rate.normalize():f} {invoice.currency} per USD{f' ({quoted})' if quoted else ''}."
    if invoice.ledger["manifest"]:
        yield (
            f"Entries from {invoice.ledger['since']} to {invoice.ledger['until']}; "
            f"manifest {invoice.ledger['manifest']}; ledger head {invoice.ledger['head']}."
        )
    if invoice.document is not None:
        yield f"Seal {invoice.document.hash}."


def credit_sheet(note: CreditNote) -> Sheet:
    """The sheet of a credit note."""
    invoice = note.invoice
    currency = invoice.currency
    return Sheet(
        title=f"Credit note {note.number}",
        author=invoice.seller.name,
        facts=(
            ("Date", note.issued_on.isoformat()),
            ("Invoice", str(invoice.number)),
            ("Period", f"{invoice.period.label} ({invoice.period.tz})"),
        ),
        seller=_party(invoice.seller),
        buyer=_party(invoice.buyer),
        columns=("Line", "Description", currency),
        numeric=(True, False, True),
        rows=tuple(
            ("" if line.line is None else str(line.line), line.description, f"{line.amount:,f}") for line in note.lines
        ),
        sums=(
            ("Net", f"{round_money(note.net, currency):,f}"),
            *_taxes(note.taxes),
            (f"Credited {currency}", f"{note.total:,f}"),
        ),
        remarks=(
            f"Reason: {note.reason}",
            f"Credited so far on {invoice.number}: {money_text(invoice.credited, currency)}.",
        ),
        small=(f"Seal {note.document.hash}.",),
    )
