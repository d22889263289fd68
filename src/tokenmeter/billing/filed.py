"""Issued invoices and credit notes, read from the ledger as they stand now."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, get_args

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.credit_note import CreditNote
from tokenmeter.billing.events import Event
from tokenmeter.billing.invoice import Invoice, InvoiceStatus, number_text
from tokenmeter.errors import ConfigurationError, LedgerError, shown
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery
from tokenmeter.stores.naming import NamesNow

INVOICE, EVENT = "invoice", "invoice_event"
_LEAST_DIGITS = 5


@tell_wrong_arguments
def invoices(
    store: Store, *, period: str | None = None, status: InvoiceStatus | None = None, lines: bool = True
) -> list[Invoice]:
    """Issued invoices in the order of their filing.

    Args:
        store: The ledger.
        period: Only with this label, such as ``"2026-11"``.
        status: Only those that stand so.
        lines: Whether to read their lines; a list of thousands is quicker without.

    Raises:
        ConfigurationError: no invoice stands so, ever.
    """
    if status is not None and status not in get_args(InvoiceStatus):
        raise ConfigurationError(f"An invoice is {', '.join(get_args(InvoiceStatus))}, not {shown(status)}.")
    found = read_filed(store, store.documents(DocumentQuery(INVOICE)), lines=lines)
    return [one for one in found if period in {None, one.period.label} and status in {None, one.status}]


def invoices_of(store: Store, scope: Mapping[str, str]) -> list[Invoice]:
    """An account's invoices without their lines, those too that name it as it was called then."""
    names = NamesNow(store)
    asked = names.rename(scope)
    return [one for one in invoices(store, lines=False) if names.rename(one.scope, one.document) == asked]


def read_filed(store: Store, filed: Iterable[Document], *, lines: bool) -> list[Invoice]:
    """Invoices with what happened to them so far."""
    # Read once for all: a question for each invoice would be thousands.
    happened: dict[str, list[Document]] = defaultdict(list)
    for document in store.documents(DocumentQuery(EVENT)):
        happened[document.key.rpartition(" #")[0]].append(document)
    read = (Invoice.of(document, lines=lines) for document in filed)
    return [replace(one, events=tuple(_read_event(each) for each in happened[str(one.number)])) for one in read]


@tell_wrong_arguments
def find_invoice(store: Store, number: str) -> Invoice:
    """The issued invoice with this number, as it stands now.

    Raises:
        LedgerError: there is none.
    """
    return load_invoice(store, find_document(store, number))


def find_document(store: Store, number: str) -> Document:
    """Where the invoice with this number is filed.

    Raises:
        LedgerError: there is none.
    """
    if found := _find_numbered(store, INVOICE, number):
        return found
    if note := _find_numbered(store, EVENT, number):
        invoice = json.loads(note.body)["invoice"]
        raise LedgerError(f"{number_text(note)} is a credit note; what it gives back is of invoice {invoice}.")
    raise LedgerError(f"There is no invoice {number!r} in this ledger; `tokenmeter invoice list` names them.")


def find_credit_note(store: Store, number: str) -> CreditNote | None:
    """The issued credit note with this number; None where there is none."""
    found = _find_numbered(store, EVENT, number)
    return None if found is None else CreditNote.of(found, find_invoice(store, json.loads(found.body)["invoice"]))


def _find_numbered(store: Store, kind: str, number: str) -> Document | None:
    name = number.strip()
    digits = len(name) - len(name.rstrip("0123456789"))
    for count in range(digits, _LEAST_DIGITS - 1, -1):  # a series may end with digits, too
        series, place = name[:-count], int(name[-count:])
        for document in store.documents(DocumentQuery(kind, None, series, place)):
            if number_text(document) == name:
                return document
    return None


def load_invoice(store: Store, document: Document) -> Invoice:
    """The invoice that is filed there, with what happened to it so far."""
    invoice = Invoice.of(document)
    happened = store.documents(DocumentQuery(EVENT, f"{invoice.number} #"))
    return replace(invoice, events=tuple(_read_event(one) for one in happened))


def _read_event(document: Document) -> Event:
    body: dict[str, Any] = json.loads(document.body)
    # Of what happens to an invoice only a credit note has a number of its own.
    if document.series is None:
        return Event.of(body)
    return Event(
        kind="credit_note",
        at=datetime.fromisoformat(body["at"]),
        by=body["issued_by"],
        on=date.fromisoformat(body["issued_on"]),
        amount=Decimal(body["total"]),
        number=number_text(document),
        note=body["reason"],
    )


@tell_wrong_arguments
def credit_notes(store: Store, *, invoice: str | None = None) -> list[CreditNote]:
    """Issued credit notes, oldest first; of one invoice, or all.

    Raises:
        LedgerError: there is no invoice of this number.
    """
    only = None if invoice is None else find_invoice(store, invoice)
    happened = store.documents(DocumentQuery(EVENT, None if only is None else f"{only.number} #"))
    notes = [document for document in happened if document.series is not None]
    if not notes:
        return []
    found = invoices(store) if only is None else [only]
    known = {one.number: one for one in found}
    return [CreditNote.of(note, known[json.loads(note.body)["invoice"]]) for note in notes]
