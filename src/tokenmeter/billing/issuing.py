"""Filing invoices and what happens to them: the only place that writes, and every write names who did it.

A period's invoices are filed in one sequence, and what happens to one invoice in another: of two writers at the same
time the second finds its place taken and looks at what the first did.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.billing.drafting import Billable, Coverage
from tokenmeter.billing.einvoice import missing_for_einvoice
from tokenmeter.billing.invoice import CreditLine, CreditNote, Event, Invoice, InvoiceStatus, number_text
from tokenmeter.billing.lines import TaxLine
from tokenmeter.billing.period import acting
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, magnitude, money_text, multiply, parse_decimal, round_money, total
from tokenmeter.periods import Period, parse_day, parse_period, zone
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument

INVOICE, EVENT = "invoice", "invoice_event"
_LEAST_DIGITS = 5
_TAKEN_OFF = frozenset({"void", "uncollectible"})
#: ``[(line number or description, net amount), ...]``, one net amount, or None for the rest.
CreditRequest = Sequence[tuple[int | str, Decimal | int | str]] | Decimal | int | str | None


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
    return _load(store, _document(store, number))


def _document(store: Store, number: str) -> Document:
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


def _load(store: Store, document: Document) -> Invoice:
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


def invoice_coverage(store: Store, *, period: str | Period, tz: str = "UTC") -> Coverage:
    """Whether all usage of a period is billed, and nothing twice.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`.
        tz: Zone in which it is cut.
    """
    asked = period if isinstance(period, Period) else parse_period(period, tz)
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
) -> None:
    """Refuse a draft that `issue_invoice` would refuse; nothing is written.

    Raises:
        LedgerError: as for `issue_invoice`.
        ConfigurationError: as for `issue_invoice`.
    """
    checking = _Issuing(store, draft.period, on=on, by="", allow_overlap=None)
    checking.check(draft, force=force, allow_unpriced=allow_unpriced)


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
        if self._standing_of(draft) is not None:
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
            raise LedgerError(
                f"{draft.unpriced} charges of {draft.account} in {label} have no known price, so the invoice would be "
                "too low. Give the price ([[prices]]) and run tokenmeter.reprice(): the difference is billed in the "
                "next period. Or issue without them: allow_unpriced=True (--allow-unpriced)."
            )
        form = self._profile(draft).einvoice
        if form and (missing := missing_for_einvoice(draft, form)):
            raise ConfigurationError(f"For {form} the [billing] settings lack: {'; '.join(missing)}.")
        self._check_day(draft)
        self._check_overlap(draft)

    def _standing_of(self, draft: Invoice) -> Invoice | None:
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
            payment_terms=profile.payment_terms or f"Payable within {profile.terms_days} days, by {due.isoformat()}.",
        )
        body = json.dumps(final.content(), ensure_ascii=False, separators=(",", ":"))
        while True:
            standing = self._standing_of(draft)
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


# -- what happens to an invoice


def record_payment(
    store: Store,
    invoice: Invoice | str,
    amount: Decimal | int | str | None = None,
    *,
    on: date | str | None = None,
    reference: str | None = None,
    by: str | None = None,
    key: str | None = None,
) -> Invoice:
    """Money came in for an invoice, in part, in full or too much; `Invoice.balance` is what is left.

    Args:
        store: The ledger.
        invoice: The invoice or its number.
        amount: How much, in its currency; None = all that is left. Negative: money was given back.
        on: When; default: today.
        reference: The payment's reference.
        by: Who writes it down; default: the user of the system.
        key: Identity of the payment: one key is written down once, however often it is sent.

    Returns:
        The invoice as it then is. Paying a paid invoice again without an amount changes nothing.

    Raises:
        LedgerError: a draft, void, nothing left to pay, more given back than was paid, or a key that another payment
            was written down with.
        ConfigurationError: not an amount in whole minor units, or a day to come.
    """
    return _follow(store, invoice, payment_of(amount, on=on, reference=reference, by=by, key=key))


def payment_of(
    amount: Decimal | int | str | None, *, on: date | str | None, reference: str | None, by: str | None, key: str | None
) -> Callable[[Invoice], Event | None]:
    """What `record_payment` would write down of an invoice as it stands, from that; None = nothing."""
    who, day = acting(by), parse_day(on)

    def pay(current: Invoice) -> Event | None:
        if current.status == "void":
            raise LedgerError(f"Invoice {current.number} is void; nothing is due on it.")
        known = next((one for one in current.events if key is not None and one.key == key), None)
        if known is not None:
            _check_same_payment(known, amount, day, reference)
            return None
        if amount is None:
            if current.status == "paid":
                return None
            paid = EXACT.subtract(EXACT.subtract(current.total, current.credited), current.paid)
        else:
            paid = _whole(parse_decimal(amount, name="the payment"), current.currency)
        if not paid and amount is not None:
            raise ConfigurationError("A payment of 0 is none; give the amount that came, or none for all that is left.")
        if not paid:
            raise LedgerError(f"Nothing is left to pay of invoice {current.number}; give the amount that came.")
        sign = 1 if current.total >= 0 else -1
        if multiply(EXACT.add(current.paid, paid), sign) < 0:
            raise LedgerError(
                f"Invoice {current.number}: {current.paid} {current.currency} was paid; {magnitude(paid)} cannot be "
                "given back of it."
            )
        return Event(kind="payment", at=utcnow(), by=who, on=_day(current, day), amount=paid, note=reference, key=key)

    return pay


def _check_same_payment(
    known: Event, amount: Decimal | int | str | None, day: date | None, reference: str | None
) -> None:
    other = amount is not None and parse_decimal(amount, name="the payment") != known.amount
    if other or day not in {None, known.on} or reference != known.note:
        raise LedgerError(
            f"The key {known.key!r} was used for a payment of {known.amount} on {known.on}; give another "
            "payment a key of its own."
        )


def void_invoice(store: Store, invoice: Invoice | str, reason: str, *, by: str | None = None) -> Invoice:
    """It was a mistake: nothing is due, and its usage may be invoiced again. Its number stays used.

    Args:
        store: The ledger.
        invoice: The invoice or its number.
        reason: Why.
        by: Who does it; default: the user of the system.

    Raises:
        LedgerError: a draft, paid (in part), or credited.
    """
    return _close(store, invoice, "void", reason, by)


def write_off_invoice(store: Store, invoice: Invoice | str, reason: str, *, by: str | None = None) -> Invoice:
    """Nobody will pay what is left of it; should somebody, record the payment.

    Args:
        store: The ledger.
        invoice: The invoice or its number.
        reason: Why.
        by: Who does it; default: the user of the system.

    Raises:
        LedgerError: a draft, paid, credited in full, or void.
    """
    return _close(store, invoice, "uncollectible", reason, by)


def _close(store: Store, invoice: Invoice | str, status: Any, reason: str, by: str | None) -> Invoice:
    _say_why(reason)
    who = acting(by)

    def close(current: Invoice) -> Event | None:
        if current.status == status:
            return None
        allowed = {"issued", "uncollectible"} if status == "void" else {"issued"}
        if current.status not in allowed:
            raise LedgerError(f"Invoice {current.number} is {current.status}; it cannot become {status}.")
        if status == "void" and (current.credited or current.paid):
            raise LedgerError(
                f"Invoice {current.number} has credit notes or payments ({current.credited} and {current.paid} "
                f"{current.currency}); credit the rest instead of voiding it."
            )
        return Event(kind=status, at=utcnow(), by=who, on=_day(current, None), note=reason)

    return _follow(store, invoice, close)


def credit_invoice(
    store: Store,
    invoice: Invoice | str,
    lines: CreditRequest,
    reason: str,
    *,
    by: str | None = None,
    key: str | None = None,
) -> CreditNote:
    """Issue a credit note on an invoice, with a number of its own.

    Args:
        store: The ledger.
        invoice: The invoice or its number.
        lines: ``[(line number or description, net amount to give back), ...]``, a net amount, or None for everything
            that is not credited yet. Positive, in the invoice's currency; tax comes on top at the invoice's rates.
            A line gives back at most itself, over all notes.
        reason: Why; printed on the note.
        by: Who issues it; default: the user of the system.
        key: Identity of what is asked for: of one invoice the same key is credited once, however often it is sent.

    Returns:
        The note; where the key is known, the one that was issued with it.

    Raises:
        LedgerError: a draft or void, more than the invoice or its line, or a key that another credit was asked with.
        ConfigurationError: not an amount, no such line, no reason.
    """
    _say_why(reason)
    who = acting(by)
    document = _filed(store, invoice)
    asked = None if key is None else {"key": key, "asked": _asked(lines)}
    while True:
        current = _load(store, document)
        filed = _notes_on(store, current)
        known = next((one for one, body in filed if key is not None and body.get("key") == key), None)
        if known is not None:
            return _same_credit(CreditNote.of(known, current), asked, reason)
        body = {**_credit_body(current, [body for _, body in filed], lines, reason, who), **(asked or {})}
        place = f"{current.number} #{len(current.events) + 1}"
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        filing = store.file(NewDocument(kind=EVENT, key=place, series=current.credit_series, body=text))
        if filing.recorded:
            return CreditNote.of(filing.document, _load(store, document))


def draft_credit_note(store: Store, invoice: Invoice | str, lines: CreditRequest, reason: str) -> dict[str, Any]:
    """What a credit note would say; nothing is written. As `credit_invoice`, without a number."""
    _say_why(reason)
    current = _load(store, _filed(store, invoice))
    return _credit_body(current, [body for _, body in _notes_on(store, current)], lines, reason, "")


def _notes_on(store: Store, invoice: Invoice) -> list[tuple[Document, dict[str, Any]]]:
    filed = store.documents(DocumentQuery(EVENT, f"{invoice.number} #"))
    return [(one, json.loads(one.body)) for one in filed if one.series is not None]


def _asked(lines: CreditRequest) -> Any:
    if lines is None:
        return None
    if isinstance(lines, str) or not isinstance(lines, Iterable):
        return f"{parse_decimal(lines, name='amount').normalize(EXACT):f}"
    return [[line, _asked(amount)] for line, amount in lines]


def _same_credit(note: CreditNote, asked: Mapping[str, Any] | None, reason: str) -> CreditNote:
    body = json.loads(note.document.body)
    if asked is None or (body["asked"], note.reason) != (asked["asked"], reason):
        raise LedgerError(
            f"The key {body['key']!r} was used for credit note {note.number} over {note.net} "
            f"({note.reason}); give what is something else a key of its own."
        )
    return note


def _follow(store: Store, invoice: Invoice | str, make: Callable[[Invoice], Event | None]) -> Invoice:
    """File what `make` says of the invoice as it stands; None = nothing. Of two at once, the second looks again."""
    document = _filed(store, invoice)
    while True:
        current = _load(store, document)
        event = make(current)
        if event is None:
            return current
        body = json.dumps(event.to_dict(), ensure_ascii=False, separators=(",", ":"))
        key = f"{current.number} #{len(current.events) + 1}"
        if store.file(NewDocument(kind=EVENT, key=key, body=body)).recorded:
            return _load(store, document)


def _filed(store: Store, invoice: Invoice | str) -> Document:
    if isinstance(invoice, str):
        return _document(store, invoice)
    if invoice.document is None:
        raise LedgerError("This invoice is a draft; issue it first.")
    return invoice.document


def _say_why(reason: str) -> None:
    if not reason.strip():
        raise ConfigurationError("Say why: a reason stands on the paper trail for ever.")


def _day(invoice: Invoice, on: date | None) -> date:
    today = utcnow().astimezone(zone(invoice.period.tz)).date()
    if on is not None and on > today:
        raise ConfigurationError(f"{on} is still to come; a payment is written down when it is there.")
    return on or today


def _whole(amount: Decimal, currency: str) -> Decimal:
    rounded = round_money(amount, currency)
    if rounded != amount:
        raise ConfigurationError(f"{amount} is not in whole minor units of {currency}.")
    return rounded


# -- credit notes


def _credit_body(
    invoice: Invoice, earlier: Sequence[Mapping[str, Any]], lines: CreditRequest, reason: str, by: str
) -> dict[str, Any]:
    if invoice.status in _TAKEN_OFF:
        raise LedgerError(f"Invoice {invoice.number} is {invoice.status}; there is nothing to credit.")
    given = total(Decimal(note["net"]) for note in earlier)
    left = EXACT.subtract(invoice.totals.net, given)
    asked = _credit_lines(invoice, lines, left)
    _check_lines(invoice, asked, earlier)
    net = total(line.amount for line in asked)
    if net > left:
        raise LedgerError(
            f"Invoice {invoice.number} is {invoice.totals.net} {invoice.currency} before tax, of which {given} is "
            f"credited already; {net} is more than the {left} left."
        )
    # The last note takes what earlier ones left of each tax, so that a whole credit is the whole invoice.
    taxes = [
        replace(
            tax,
            base=net,
            amount=_tax_left(tax, earlier)
            if net == left
            else round_money(EXACT.multiply(net, tax.rate), invoice.currency),
        )
        for tax in invoice.totals.taxes
    ]
    return {
        "invoice": invoice.number,
        "currency": invoice.currency,
        "reason": reason,
        "issued_on": utcnow().astimezone(zone(invoice.period.tz)).date().isoformat(),
        "issued_by": by,
        "at": utcnow().isoformat(),
        "lines": [{"line": line.line, "description": line.description, "amount": f"{line.amount:f}"} for line in asked],
        "net": f"{net:f}",
        "taxes": [tax.to_dict() for tax in taxes],
        "total": f"{total((net, *(tax.amount for tax in taxes))):f}",
    }


def _tax_left(tax: TaxLine, earlier: Sequence[Mapping[str, Any]]) -> Decimal:
    rows = (row for note in earlier for row in note["taxes"] if row["label"] == tax.label)
    return EXACT.subtract(tax.amount, total(Decimal(row["amount"]) for row in rows))


def _check_lines(invoice: Invoice, asked: Sequence[CreditLine], earlier: Sequence[Mapping[str, Any]]) -> None:
    """A line gives back at most itself, over all notes and within one."""
    back: dict[int, Decimal] = defaultdict(lambda: ZERO)
    for row in (row for note in earlier for row in note["lines"] if row["line"] is not None):
        back[row["line"]] = EXACT.add(back[row["line"]], Decimal(row["amount"]))
    amounts = {line.position: line.amount for line in invoice.lines}
    for line in (one for one in asked if one.line is not None):
        left = EXACT.subtract(amounts[line.line or 0], back[line.line or 0])
        if line.amount > left:
            raise LedgerError(
                f"Line {line.line} of invoice {invoice.number} is {amounts[line.line or 0]} {invoice.currency}, of "
                f"which {max(left, ZERO)} is left to credit; {line.amount} is more. Give the rest as a line of its own "
                "words."
            )
        back[line.line or 0] = EXACT.add(back[line.line or 0], line.amount)


def _credit_lines(invoice: Invoice, lines: CreditRequest, left: Decimal) -> list[CreditLine]:
    if lines is None:
        asked = [CreditLine(None, f"Credit of invoice {invoice.number}", left)]
    elif isinstance(lines, str) or not isinstance(lines, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - callers' code
        asked = [_credit_line(invoice, f"Credit on invoice {invoice.number}", lines)]
    else:
        asked = [_credit_line(invoice, which, amount) for which, amount in lines]
    if not asked or any(line.amount <= 0 for line in asked):
        raise LedgerError(f"A credit note gives something back; nothing positive is left of {invoice.number} to give.")
    return asked


def _credit_line(invoice: Invoice, which: int | str, amount: object) -> CreditLine:
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
