"""Invoices: issued ones are read, drafts are checked, numbered and filed, and every filing names who did it.

A period's invoices are filed in one sequence: of two who issue at the same time the second finds its place taken and
looks at what the first did. What happens to an invoice later is in `tokenmeter.billing.receivables`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.billing.credit_note import CreditNote
from tokenmeter.billing.drafting import Billable, Coverage
from tokenmeter.billing.einvoice import missing_for_einvoice
from tokenmeter.billing.events import Event
from tokenmeter.billing.invoice import Invoice, InvoiceStatus, number_text
from tokenmeter.billing.period import acting, zone_of_books
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import money_text, total
from tokenmeter.periods import Period, parse_day, parse_period, zone
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument

INVOICE, EVENT = "invoice", "invoice_event"
_LEAST_DIGITS = 5


# -- reading


def invoices(
    store: Store, *, period: str | None = None, status: InvoiceStatus | None = None, lines: bool = True
) -> list[Invoice]:
    """Issued invoices in the order of their filing.

    Args:
        store: The ledger.
        period: Only with this label, such as ``"2026-11"``.
        status: Only those that stand so.
        lines: Whether to read their lines; a list of thousands is quicker without.
    """
    found = _read(store, store.documents(DocumentQuery(INVOICE)), lines=lines)
    return [one for one in found if period in {None, one.period.label} and status in {None, one.status}]


def _read(store: Store, filed: Iterable[Document], *, lines: bool) -> list[Invoice]:
    happened: dict[str, list[Document]] = defaultdict(list)
    for document in store.documents(DocumentQuery(EVENT)):
        happened[document.key.rpartition(" #")[0]].append(document)
    read = (Invoice.of(document, lines=lines) for document in filed)
    return [replace(one, events=tuple(_event(each) for each in happened[str(one.number)])) for one in read]


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
    name = number.strip()
    digits = len(name) - len(name.rstrip("0123456789"))
    for count in range(digits, _LEAST_DIGITS - 1, -1):  # a series may end with digits, too
        series, place = name[:-count], int(name[-count:])
        for document in store.documents(DocumentQuery(INVOICE, None, series, place)):
            if number_text(document) == name:
                return document
    for document in store.documents(DocumentQuery(EVENT)):
        if document.series is not None and number_text(document) == name:
            invoice = json.loads(document.body)["invoice"]
            raise LedgerError(f"{name} is a credit note; what it gives back is of invoice {invoice}.")
    raise LedgerError(f"There is no invoice {number!r} in this ledger; `tokenmeter invoice list` names them.")


def load_invoice(store: Store, document: Document) -> Invoice:
    """The invoice that is filed there, with what happened to it so far."""
    invoice = Invoice.of(document)
    happened = store.documents(DocumentQuery(EVENT, f"{invoice.number} #"))
    return replace(invoice, events=tuple(_event(one) for one in happened))


def _event(document: Document) -> Event:
    body: dict[str, Any] = json.loads(document.body)
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


def credit_notes(store: Store, *, invoice: str | None = None) -> list[CreditNote]:
    """Issued credit notes, oldest first; of one invoice, or all."""
    happened = store.documents(DocumentQuery(EVENT, None if invoice is None else f"{invoice} #"))
    notes = [document for document in happened if document.series is not None]
    if not notes:
        return []
    found = invoices(store) if invoice is None else [find_invoice(store, invoice)]
    known = {one.number: one for one in found}
    return [CreditNote.of(note, known[json.loads(note.body)["invoice"]]) for note in notes]


def invoice_coverage(store: Store, *, period: str | Period, tz: str | None = None) -> Coverage:
    """Whether all usage of a period is billed, and nothing twice.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`.
        tz: Zone in which it is cut; default: that of the last closing, else UTC.
    """
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    billable = Billable(store, asked)
    standing = _LiveInvoices(store, billable.period)
    return Coverage.of(billable, [one.scope for one in standing.invoices])


# -- issuing


def issue_invoice(
    store: Store,
    draft: Invoice,
    *,
    on: date | str | None = None,
    by: str | None = None,
    force: bool = False,
    allow_unpriced: bool = False,
    allow_overlap: str | None = None,
) -> Invoice:
    """Number and file a draft. Issuing the same draft again, even at the same time, gives the one that was filed.

    Args:
        store: The ledger the draft was made from.
        draft: From `draft_invoice`.
        on: Day of issue; default: today in the profile's zone.
        by: Who issues it; default: the user of the system.
        force: Whether an account without usage, or an amount of 0, gets an invoice all the same.
        allow_unpriced: Whether to issue although some usage has no known price and is not billed.
        allow_overlap: Why usage that is on another invoice is billed again; printed on this one.

    Raises:
        LedgerError: its period is not closed, or one of the above stands against it; says what to do.
        ConfigurationError: a date outside the period's end and today, or before the series' last invoice.
    """
    return issue_invoices(
        store, [draft], on=on, by=by, force=force, allow_unpriced=allow_unpriced, allow_overlap=allow_overlap
    )[0]


def issue_invoices(
    store: Store,
    drafts: Iterable[Invoice],
    *,
    on: date | str | None = None,
    by: str | None = None,
    force: bool = False,
    allow_unpriced: bool = False,
    allow_overlap: str | None = None,
) -> list[Invoice]:
    """Issue several drafts of one period, in order; see `issue_invoice`. Nothing is filed when one of them cannot be.

    Raises:
        LedgerError: as for `issue_invoice`.
        ConfigurationError: as for `issue_invoice`.
    """
    waiting = list(drafts)
    if not waiting:
        return []
    issuing = _Issuing(store, waiting[0].period, on=on, by=acting(by), allow_overlap=allow_overlap)
    for draft in waiting:
        issuing.check(draft, force=force, allow_unpriced=allow_unpriced)
    return [issuing.file(draft) for draft in waiting]


def check_invoice(
    store: Store, draft: Invoice, *, on: date | str | None = None, force: bool = False, allow_unpriced: bool = False
) -> Invoice:
    """What `issue_invoice` would issue: the draft, or the invoice that says it already. Nothing is written.

    Raises:
        LedgerError: as for `issue_invoice`.
        ConfigurationError: as for `issue_invoice`.
    """
    checking = _Issuing(store, draft.period, on=on, by="", allow_overlap=None)
    checking.check(draft, force=force, allow_unpriced=allow_unpriced)
    return checking.standing_of(draft) or draft


class _LiveInvoices:
    """A period's invoices that are not void, kept up to date by whoever files more."""

    def __init__(self, store: Store, period: Period) -> None:
        self._store = store
        self._prefix = f"{period.start.isoformat()}/{period.end.isoformat()} #"
        self.read()

    def read(self) -> None:
        """Look again."""
        found = _read(self._store, self._store.documents(DocumentQuery(INVOICE, self._prefix)), lines=True)
        self.count = len(found)
        self.invoices = [one for one in found if one.status != "void"]

    @property
    def next_key(self) -> str:
        """Where the next invoice of this period is filed."""
        return f"{self._prefix}{self.count + 1}"

    def add(self, invoice: Invoice) -> None:
        """Note what was filed."""
        self.count += 1
        self.invoices.append(invoice)


class _Issuing:
    """Issuing drafts of one period."""

    def __init__(
        self, store: Store, period: Period, *, on: date | str | None, by: str, allow_overlap: str | None
    ) -> None:
        self._store, self._on, self._by, self._allow_overlap = store, parse_day(on), by, allow_overlap
        self._billable = Billable(store, period)
        self._standing = _LiveInvoices(store, self._billable.period)
        self._index()

    def _index(self) -> None:
        self._by_account = {one.account: one for one in self._standing.invoices}
        self._holders: dict[int, Invoice] = {}
        for one in self._standing.invoices:
            self._hold(one)

    def _hold(self, invoice: Invoice) -> None:
        self._by_account[invoice.account] = invoice
        for at in self._billable.positions(invoice.scope):
            self._holders.setdefault(at, invoice)

    def check(self, draft: Invoice, *, force: bool, allow_unpriced: bool) -> None:
        """Refuse what must not be issued.

        Raises:
            LedgerError: says why, and what to do.
        """
        if draft.number is not None:
            return
        closed = self._billable.closed
        label = draft.period.label
        if closed is None or closed.document is None:
            raise LedgerError(
                f"{label} is still open: entries may yet be added. Close it first with tokenmeter."
                f"close_period({label!r}, tz={draft.period.tz!r}), then draft the invoice again."
            )
        if draft.ledger["manifest"] != closed.document.hash:
            raise LedgerError(f"{label} was closed after this draft was made; draft the invoice again.")
        if self.standing_of(draft) is not None:
            return
        if not draft.lines and not force:
            raise LedgerError(
                f"{draft.account} has no usage in {label}; is it spelled as in `tokenmeter report --by "
                f"{next(iter(draft.scope))}`? force=True (--force) issues an invoice over nothing."
            )
        if not draft.total and not draft.unpriced and not force:
            raise LedgerError(
                f"{draft.account} owes {money_text(draft.total, draft.currency)} for {label}; force=True (--force) "
                "issues it all the same."
            )
        if draft.unpriced and not allow_unpriced:
            of = f"of {draft.account} in {label}"
            raise LedgerError(
                f"{counted(draft.unpriced, f'charge {of} has', f'charges {of} have')} no known price, so the invoice "
                "would be too low. Give the price ([[prices]]) and run tokenmeter.reprice(): the difference is billed "
                "in the next period. Or issue without them: allow_unpriced=True (--allow-unpriced)."
            )
        form = self._profile(draft).einvoice
        if form and (missing := missing_for_einvoice(draft, form)):
            raise ConfigurationError(f"For {form} the [billing] settings lack: {'; '.join(missing)}.")
        self._check_day(draft)
        self._check_overlap(draft)

    def standing_of(self, draft: Invoice) -> Invoice | None:
        """The account's standing invoice, if it says what this draft says."""
        standing = self._by_account.get(draft.account)
        if standing is None:
            return None
        if (standing.lines, standing.totals, standing.currency) == (draft.lines, draft.totals, draft.currency):
            return standing
        raise LedgerError(
            f"{draft.account} has invoice {standing.number} for {draft.period.label}. Credit it, or void it and issue "
            "a new one."
        )

    def _check_overlap(self, draft: Invoice) -> None:
        if self._allow_overlap:
            return
        twice = [at for at in self._billable.positions(draft.scope) if at in self._holders]
        if twice:
            numbers = sorted({str(self._holders[at].number) for at in twice})
            cost = total(self._billable.rows[at][1].billed_cost for at in twice)
            raise LedgerError(
                f"${cost:,f} of the usage of {draft.account} in {draft.period.label} is on {', '.join(numbers[:5])} "
                f"already{' and others' if numbers[5:] else ''}. Bill either one; if both are meant, say why: "
                "allow_overlap='...' (--allow-overlap)."
            )

    def _check_day(self, draft: Invoice) -> None:
        if self._on is None:
            return
        day, profile = self._on, self._profile(draft)
        local = zone(profile.tz)
        first = (draft.period.end - timedelta(microseconds=1)).astimezone(local).date()
        today = utcnow().astimezone(local).date()
        if not first <= day <= today:
            raise ConfigurationError(
                f"An invoice for {draft.period.label} is issued from {first} to today ({today}), not on {day}."
            )
        filed = (
            Invoice.of(one, lines=False) for one in self._store.documents(DocumentQuery(INVOICE, None, profile.series))
        )
        last = max(filed, key=lambda one: one.issued_on or day, default=None)
        if last is not None and last.issued_on is not None and last.issued_on > day:
            raise ConfigurationError(
                f"{last.number} was issued on {last.issued_on}; numbers of a series follow their dates, so the next "
                f"cannot be of {day}."
            )

    def _profile(self, draft: Invoice) -> Any:
        if draft.profile is None:
            raise LedgerError("This draft does not say how it is to be issued; make it with draft_invoice().")
        return draft.profile

    def file(self, draft: Invoice) -> Invoice:
        """File one draft that was checked."""
        if draft.number is not None:
            return draft
        profile = self._profile(draft)
        day = self._on or utcnow().astimezone(zone(profile.tz)).date()
        due = day + timedelta(days=profile.terms_days)
        final = replace(
            draft,
            issued_on=day,
            issued_by=self._by,
            due_on=due,
            overlap=self._allow_overlap,
            payment_terms=profile.payment_terms
            or f"Payable within {counted(profile.terms_days, 'day')}, by {due.isoformat()}.",
        )
        body = json.dumps(final.content(), ensure_ascii=False, separators=(",", ":"))
        while True:
            standing = self.standing_of(draft)
            if standing is not None:
                return standing
            self._check_overlap(draft)
            key = self._standing.next_key
            filing = self._store.file(NewDocument(kind=INVOICE, key=key, series=profile.series, body=body))
            if filing.recorded:
                issued = Invoice.of(filing.document)
                self._standing.add(issued)
                self._hold(issued)
                return issued
            self._standing.read()
            self._index()
