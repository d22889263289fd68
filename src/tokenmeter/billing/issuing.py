"""Filing invoices and what happens to them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.billing.account import account_name
from tokenmeter.billing.invoice import Event, Invoice, InvoiceStatus, number_text
from tokenmeter.billing.period import find_closed
from tokenmeter.errors import LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import ZERO
from tokenmeter.periods import zone
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, NewDocument, Request

__all__ = ["CREDIT_NOTE", "EVENT", "INVOICE", "find_invoice", "follow", "invoices", "issue", "load"]

INVOICE, EVENT, CREDIT_NOTE = "invoice", "invoice_event", "credit_note"
#: status -> from which it can be reached.
_ALLOWED: Mapping[InvoiceStatus, frozenset[InvoiceStatus]] = {
    "paid": frozenset({"issued", "uncollectible"}),
    "void": frozenset({"issued", "uncollectible"}),
    "uncollectible": frozenset({"issued"}),
}


def issue(invoice: Invoice, *, on: date | None = None) -> Invoice:
    """See `Invoice.issue`."""
    store, profile = invoice.source, invoice.profile
    if invoice.number is not None:
        return invoice
    if store is None or profile is None:
        raise LedgerError("This draft has no ledger to be issued in; draft it with tokenmeter.invoice(...).")
    _check_current(invoice, store)
    day = on or utcnow().astimezone(zone(profile.tz)).date()
    due = day + timedelta(days=profile.terms_days)
    final = replace(
        invoice,
        issued_on=day,
        due_on=due,
        payment_terms=profile.payment_terms or f"Payable within {profile.terms_days} days, by {due.isoformat()}.",
    )
    body = json.dumps(final.content(), ensure_ascii=False, separators=(",", ":"))
    base = f"{account_name(invoice.scope)} {invoice.period.start.isoformat()}/{invoice.period.end.isoformat()}"
    while True:
        earlier = [load(store, document) for document in store.documents(Request(INVOICE, f"{base} #"))]
        standing = next((one for one in earlier if one.status != "void"), None)
        if standing is not None:
            return _same(standing, final)
        key = f"{base} #{len(earlier) + 1}"
        filing = store.file(NewDocument(kind=INVOICE, key=key, series=profile.series, body=body))
        if filing.recorded:
            return Invoice.of(filing.document, source=store)


def _check_current(invoice: Invoice, store: Store) -> None:
    closed = find_closed(store, invoice.period)
    if closed is None or closed.document is None:
        raise LedgerError(
            f"{invoice.period.label} is still open: entries may yet be added. Close it first with tokenmeter."
            f"close_period({invoice.period.label!r}, tz={invoice.period.tz!r}), then draft the invoice again."
        )
    if invoice.ledger["manifest"] != closed.document.hash:
        raise LedgerError(f"{invoice.period.label} was closed after this draft was made; draft the invoice again.")


def _same(standing: Invoice, final: Invoice) -> Invoice:
    """The standing invoice, if it says what this draft says."""
    if (standing.lines, standing.totals, standing.currency) == (final.lines, final.totals, final.currency):
        return standing
    raise LedgerError(
        f"{account_name(final.scope)} has invoice {standing.number} for {final.period.label}. Credit it, or void it "
        "and issue a new one."
    )


def load(store: Store, document: Document) -> Invoice:
    """The invoice in `document` with everything that happened since."""
    invoice = Invoice.of(document, source=store)
    own = f"{invoice.number} #"
    return _as_it_stands(invoice, store.documents(Request(EVENT, own)), store.documents(Request(CREDIT_NOTE, own)))


def _as_it_stands(invoice: Invoice, events: Iterable[Document], notes: Iterable[Document]) -> Invoice:
    credited = sum((Decimal(json.loads(note.body)["total"]) for note in notes), ZERO)
    return invoice.with_events([_event(one) for one in events], credited)


def _event(document: Document) -> Event:
    body: dict[str, Any] = json.loads(document.body)
    return Event(body["status"], datetime.fromisoformat(body["at"]), body["note"])


def follow(invoice: Invoice, status: InvoiceStatus, note: str | None) -> Invoice:
    """File that `invoice` is now `status`. Of two at the same time, the second looks at what the first did.

    Raises:
        LedgerError: not from where it stands.
    """
    store, document = invoice.filed()
    while True:
        current = load(store, document)
        if current.status == status:
            return current
        _check_step(current, status)
        body = json.dumps({"status": status, "at": utcnow().isoformat(), "note": note}, ensure_ascii=False)
        key = f"{current.number} #{len(current.events) + 1}"
        if store.file(NewDocument(kind=EVENT, key=key, body=body)).recorded:
            return load(store, document)


def _check_step(invoice: Invoice, status: InvoiceStatus) -> None:
    if invoice.status not in _ALLOWED[status]:
        raise LedgerError(f"Invoice {invoice.number} is {invoice.status}; it cannot become {status}.")
    if status == "void" and invoice.credited:
        raise LedgerError(
            f"Invoice {invoice.number} has credit notes over {invoice.credited} {invoice.currency}; credit the rest "
            "instead of voiding it."
        )


def invoices(
    store: Store, *, period: str | None = None, status: InvoiceStatus | None = None, lines: bool = True
) -> list[Invoice]:
    """Issued invoices in the order of their numbers' filing.

    Args:
        store: The ledger.
        period: Only with this label, such as ``"2026-11"``.
        status: Only those that stand so.
        lines: Whether to read their lines; a list of thousands is quicker without.
    """
    events, notes = _by_invoice(store, EVENT), _by_invoice(store, CREDIT_NOTE)
    filed = (Invoice.of(document, source=store, lines=lines) for document in store.documents(Request(INVOICE)))
    found = (_as_it_stands(one, events[str(one.number)], notes[str(one.number)]) for one in filed)
    return [one for one in found if period in {None, one.period.label} and status in {None, one.status}]


def _by_invoice(store: Store, kind: str) -> Mapping[str, list[Document]]:
    """What was filed on invoices: number -> documents of `kind`, oldest first."""
    found: dict[str, list[Document]] = defaultdict(list)
    for document in store.documents(Request(kind)):
        found[document.key.rpartition(" #")[0]].append(document)
    return found


def find_invoice(store: Store, number: str) -> Invoice:
    """The issued invoice with this number.

    Raises:
        LedgerError: there is none.
    """
    for document in store.documents(Request(INVOICE)):
        if number_text(document) == number:
            return load(store, document)
    raise LedgerError(f"There is no invoice {number!r} in this ledger; list them with tokenmeter.billing.invoices().")
