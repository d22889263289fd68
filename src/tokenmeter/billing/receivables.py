"""What happens to an issued invoice: payments, write-offs, credit notes; every one is filed and names who did it.

What happens to one invoice is one sequence: of two writers at the same time the second finds its place taken and looks
at what the first did.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any, cast

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.credit_note import ROUNDING, CreditLine, CreditNote
from tokenmeter.billing.events import Event
from tokenmeter.billing.filed import EVENT, find_document, load_invoice
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import TaxLine
from tokenmeter.errors import ConfigurationError, LedgerError, shown
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, magnitude, multiply, negate, parse_decimal, round_money, total
from tokenmeter.periods import parse_day, zone
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument
from tokenmeter.texts import acting, check_name, check_reason, require_reason

_TAKEN_OFF = frozenset({"void", "uncollectible"})
_PAIR = 2
#: ``[(line number or description, net amount), ...]``, one net amount, or None for the rest.
CreditRequest = Sequence[tuple[int | str, Decimal | int | str]] | Decimal | int | str | None


def ask_credit(amount: str | None, line: int | None) -> CreditRequest:
    """What to credit, as a person says it: an amount of the whole or of one line; None = all that is left.

    Raises:
        ConfigurationError: a line without an amount, which would give back the rest of all lines.
    """
    if line is None:
        return amount
    if amount is None:
        raise ConfigurationError(f"Say how much of line {line} is given back; the rest is of the whole invoice.")
    return [(line, amount)]


@tell_wrong_arguments
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
        LedgerError: a draft, void, nothing left to pay, more given back than was paid, a key that another payment was
            written down with, or, without a key, a payment of that day, amount and reference that is there already.
            With neither key nor reference two of one day and amount are both written down.
        ConfigurationError: not an amount in whole minor units, a day to come, or one before the invoice's.
    """
    return _follow(store, invoice, payment_of(amount, on=on, reference=reference, by=by, key=key))


def payment_of(
    amount: Decimal | int | str | None, *, on: date | str | None, reference: str | None, by: str | None, key: str | None
) -> Callable[[Invoice], Event | None]:
    """What `record_payment` would write down of an invoice as it stands, from that; None = nothing."""
    who, day = acting(by), parse_day(on)
    _check_words(reference, key)

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
            paid = _check_whole(parse_decimal(amount, name="the payment"), current.currency)
        if not paid and amount is not None:
            raise ConfigurationError("A payment of 0 is none; give the amount that came, or none for all that is left.")
        if not paid:
            raise LedgerError(f"Nothing is left to pay of invoice {current.number}; give the amount that came.")
        # Of an invoice over a negative amount it is the buyer who is paid.
        sign = 1 if current.total >= 0 else -1
        if multiply(EXACT.add(current.paid, paid), sign) < 0:
            raise LedgerError(
                f"Invoice {current.number}: {current.paid} {current.currency} was paid; {magnitude(paid)} cannot be "
                "given back of it."
            )
        made = Event(
            kind="payment", at=utcnow(), by=who, on=_check_day(current, day), amount=paid, note=reference, key=key
        )
        _check_not_there(current, made)
        return made

    return pay


def _check_words(reference: str | None, key: str | None) -> None:
    if reference is not None:
        check_reason(reference, "reference")
    if key is not None:
        check_name(key, "key")


def _check_not_there(invoice: Invoice, made: Event) -> None:
    """Refuse what looks like a payment that was written down before, unless a key says that it is another."""
    said = ("payment", made.on, made.amount, made.note)
    if (
        made.key is None
        and made.note
        and any((one.kind, one.on, one.amount, one.note) == said for one in invoice.events)
    ):
        raise LedgerError(
            f"A payment of {made.amount} {invoice.currency} on {made.on} ({made.note}) is written down on "
            f"{invoice.number} already; if this is another one, give it a reference or a key (--key) of its own."
        )


def _check_same_payment(
    known: Event, amount: Decimal | int | str | None, day: date | None, reference: str | None
) -> None:
    other = amount is not None and parse_decimal(amount, name="the payment") != known.amount
    if other or day not in {None, known.on} or reference != known.note:
        raise LedgerError(
            f"The key {known.key!r} was used for a payment of {known.amount} on {known.on}; give another "
            "payment a key of its own."
        )


@tell_wrong_arguments
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


@tell_wrong_arguments
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
    require_reason(reason)
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
        return Event(kind=status, at=utcnow(), by=who, on=_check_day(current, None), note=reason)

    return _follow(store, invoice, close)


@tell_wrong_arguments
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
            that is not credited yet, line by line, as is an amount of just that. Positive, in the invoice's currency;
            tax comes on top at the invoice's rates. A line gives back at most itself, over all notes.
        reason: Why; printed on the note.
        by: Who issues it; default: the user of the system.
        key: Identity of what is asked for: of one invoice the same key is credited once, however often it is sent.

    Returns:
        The note; where the key is known, the one that was issued with it.

    Raises:
        LedgerError: a draft or void, more than the invoice or its line, or a key that another credit was asked with.
        ConfigurationError: not an amount, no such line, no reason.
    """
    require_reason(reason)
    who = acting(by)
    _check_words(None, key)
    lines = _read_request(lines)
    document = _find_filed(store, invoice)
    asked = None if key is None else {"key": key, "asked": _asked(lines)}
    while True:
        current = load_invoice(store, document)
        filed = _notes_on(store, current)
        known = _find_same(filed, current, lines, reason, key)
        if known is not None:
            return known
        body = {**_write_body(current, [body for _, body in filed], lines, reason, who), **(asked or {})}
        # Of two notes at once one gets the place; the other looks again at what is left to give back.
        place = f"{current.number} #{len(current.events) + 1}"
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        filing = store.file(NewDocument(kind=EVENT, key=place, series=current.credit_series, body=text))
        if filing.recorded:
            return CreditNote.of(filing.document, load_invoice(store, document))


def draft_credit_note(
    store: Store, invoice: Invoice | str, lines: CreditRequest, reason: str, *, key: str | None = None
) -> dict[str, Any] | None:
    """What a credit note would say, without a number; nothing is written. As `credit_invoice`.

    None where what is asked for was issued with this key: nothing would change.
    """
    require_reason(reason)
    _check_words(None, key)
    lines = _read_request(lines)
    current = load_invoice(store, _find_filed(store, invoice))
    filed = _notes_on(store, current)
    if _find_same(filed, current, lines, reason, key) is not None:
        return None
    return _write_body(current, [body for _, body in filed], lines, reason, "")


def _notes_on(store: Store, invoice: Invoice) -> list[tuple[Document, dict[str, Any]]]:
    filed = store.documents(DocumentQuery(EVENT, f"{invoice.number} #"))
    return [(one, json.loads(one.body)) for one in filed if one.series is not None]


def _asked(lines: CreditRequest) -> Any:
    if isinstance(lines, list):
        return [[line, _asked(amount)] for line, amount in lines]
    return None if lines is None else f"{parse_decimal(lines, name='amount').normalize(EXACT):f}"


def _read_request(lines: object) -> CreditRequest:
    """What is asked for, as a list where it names lines: it is read more than once, and may have been an iterator.

    Raises:
        ConfigurationError: something in it is no pair.
    """
    if isinstance(lines, str) or not isinstance(lines, Iterable):
        return cast("CreditRequest", lines)
    read = list(cast("Iterable[object]", lines))
    for one in read:
        if not _is_pair(one):
            raise ConfigurationError(
                "What is given back is an amount, or a list of (line number or words, amount), such as "
                f"[(1, '2.50')]; {shown(one)} is no such pair."
            )
    return cast("CreditRequest", read)


def _is_pair(one: object) -> bool:
    return (
        isinstance(one, Sequence) and not isinstance(one, str | bytes) and len(cast("Sequence[object]", one)) == _PAIR
    )


def _find_same(
    filed: Sequence[tuple[Document, Mapping[str, Any]]],
    invoice: Invoice,
    lines: CreditRequest,
    reason: str,
    key: str | None,
) -> CreditNote | None:
    """The credit note that was asked for with `key`.

    Raises:
        LedgerError: something else was.
    """
    found = next(((one, body) for one, body in filed if key is not None and body.get("key") == key), None)
    if found is None:
        return None
    note = CreditNote.of(found[0], invoice)
    if (found[1]["asked"], note.reason) != (_asked(lines), reason):
        raise LedgerError(
            f"The key {key!r} was used for credit note {note.number} over {note.net} "
            f"({note.reason}); give what is something else a key of its own."
        )
    return note


def _follow(store: Store, invoice: Invoice | str, make: Callable[[Invoice], Event | None]) -> Invoice:
    """File what `make` says of the invoice as it stands; None = nothing. Of two at once, the second looks again."""
    document = _find_filed(store, invoice)
    while True:
        current = load_invoice(store, document)
        event = make(current)
        if event is None:
            return current
        body = json.dumps(event.to_dict(), ensure_ascii=False, separators=(",", ":"))
        key = f"{current.number} #{len(current.events) + 1}"
        if store.file(NewDocument(kind=EVENT, key=key, body=body)).recorded:
            return load_invoice(store, document)


def _find_filed(store: Store, invoice: Invoice | str) -> Document:
    if isinstance(invoice, str):
        return find_document(store, invoice)
    if invoice.document is None:
        raise LedgerError("This invoice is a draft; issue it first.")
    return invoice.document


def _today(invoice: Invoice) -> date:
    """By the seller's calendar, as its own date is; nothing happens to it before its issue."""
    today = utcnow().astimezone(zone(invoice.tz)).date()
    return max(today, invoice.issued_on or today)


def _check_day(invoice: Invoice, on: date | None) -> date:
    today = _today(invoice)
    if on is not None and on > today:
        raise ConfigurationError(f"{on} is still to come; a payment is written down when it is there.")
    if on is not None and on < (invoice.issued_on or on):
        raise ConfigurationError(
            f"Invoice {invoice.number} is of {invoice.issued_on}, so that nothing was due on it on {on}; what came "
            "before counts from the invoice's day."
        )
    return on or today


def _check_whole(amount: Decimal, currency: str) -> Decimal:
    rounded = round_money(amount, currency)
    if rounded != amount:
        raise ConfigurationError(f"{amount} is not in whole minor units of {currency}.")
    return rounded


# -- credit notes


def _write_body(
    invoice: Invoice, earlier: Sequence[Mapping[str, Any]], lines: CreditRequest, reason: str, by: str
) -> dict[str, Any]:
    if invoice.status in _TAKEN_OFF:
        raise LedgerError(f"Invoice {invoice.number} is {invoice.status}; there is nothing to credit.")
    given = total(Decimal(note["net"]) for note in earlier)
    left = EXACT.subtract(invoice.totals.net, given)
    rest = lines is None or (not isinstance(lines, list) and parse_decimal(lines, name="the credit's amount") == left)
    asked = _lines_left(invoice, earlier) if rest else _credit_lines(invoice, lines)
    if not asked or total(line.amount for line in asked) <= 0:
        raise LedgerError(f"A credit note gives something back; nothing positive is left of {invoice.number} to give.")
    _check_lines(invoice, asked, earlier)
    net = total(line.amount for line in asked)
    # Lines may each have enough left while notes in words have used up the whole.
    if net > left:
        raise LedgerError(
            f"Invoice {invoice.number} is {invoice.totals.net} {invoice.currency} before tax, of which {given} is "
            f"credited already; {net} is more than the {left} left."
        )
    # On all that is given back so far, less what earlier notes gave: each rounded by itself, many small ones would give
    # back more tax than there is, and the last would take some of it away again.
    base, back = EXACT.add(given, net), _taxes_back(invoice, earlier)
    taxes = [
        replace(tax, base=net, amount=EXACT.subtract(_tax_on(base, tax, invoice), before))
        for tax, before in zip(invoice.totals.taxes, back, strict=True)
    ]
    return {
        "invoice": invoice.number,
        "currency": invoice.currency,
        "reason": reason,
        "issued_on": _today(invoice).isoformat(),
        "issued_by": by,
        "at": utcnow().isoformat(),
        "lines": [{"line": line.line, "description": line.description, "amount": f"{line.amount:f}"} for line in asked],
        "net": f"{net:f}",
        "taxes": [tax.to_dict() for tax in taxes],
        "total": f"{total((net, *(tax.amount for tax in taxes))):f}",
    }


def _tax_on(base: Decimal, tax: TaxLine, invoice: Invoice) -> Decimal:
    return round_money(EXACT.multiply(base, tax.rate), invoice.currency)


def _taxes_back(invoice: Invoice, earlier: Sequence[Mapping[str, Any]]) -> list[Decimal]:
    """What notes gave back of each tax of the invoice, in its order."""
    notes = [[Decimal(row["amount"]) for row in note["taxes"]] for note in earlier]
    return [total(note[at] for note in notes) for at in range(len(invoice.totals.taxes))]


def _amounts(invoice: Invoice) -> dict[int, Decimal]:
    """What stands on each line of an invoice, its rounding among them: together the net amount."""
    return {**{line.position: line.amount for line in invoice.lines}, ROUNDING: invoice.totals.rounding}


def _given_back(earlier: Sequence[Mapping[str, Any]]) -> dict[int | None, Decimal]:
    """What notes gave back of each line, and of none in particular (None)."""
    back: dict[int | None, Decimal] = defaultdict(lambda: ZERO)
    for row in (row for note in earlier for row in note["lines"]):
        back[row["line"]] = EXACT.add(back[row["line"]], Decimal(row["amount"]))
    return back


def _check_lines(invoice: Invoice, asked: Sequence[CreditLine], earlier: Sequence[Mapping[str, Any]]) -> None:
    """A line gives back at most itself, over all notes and within one."""
    back, amounts = _given_back(earlier), _amounts(invoice)
    for line in asked:
        if line.line is None:
            continue
        left = EXACT.subtract(amounts[line.line], back[line.line])
        if line.amount > left:
            raise LedgerError(
                f"Line {line.line} of invoice {invoice.number} is {amounts[line.line]} {invoice.currency}, of "
                f"which {max(left, ZERO)} is left to credit; {line.amount} is more. Give the rest as a line of its own "
                "words."
            )
        back[line.line] = EXACT.add(back[line.line], line.amount)


def _lines_left(invoice: Invoice, earlier: Sequence[Mapping[str, Any]]) -> list[CreditLine]:
    """All that is not credited yet, line by line, so that each account gets back what was booked on it."""
    back = _given_back(earlier)
    texts = {line.position: line.description for line in invoice.lines} | {ROUNDING: "Rounding"}
    left = [CreditLine(at, texts[at], EXACT.subtract(amount, back[at])) for at, amount in _amounts(invoice).items()]
    left.append(CreditLine(None, "Less credits that named no line", negate(back[None])))
    return [line for line in left if line.amount]


def _credit_lines(invoice: Invoice, lines: CreditRequest) -> list[CreditLine]:
    if isinstance(lines, list):
        return [_credit_line(invoice, which, amount) for which, amount in lines]
    return [_credit_line(invoice, f"Credit on invoice {invoice.number}", lines)]


def _credit_line(invoice: Invoice, which: object, amount: object) -> CreditLine:
    number = parse_decimal(amount, name="the credit's amount")
    if number <= 0 or number != round_money(number, invoice.currency):
        raise ConfigurationError(
            f"A credit is a positive amount in whole minor units of {invoice.currency}, not {shown(amount)}."
        )
    number = round_money(number, invoice.currency)
    if isinstance(which, str):
        require_reason(which, "what is given back")
        return CreditLine(None, which, number)
    line = next((one for one in invoice.lines if type(which) is int and one.position == which), None)
    if line is None:
        raise ConfigurationError(f"Invoice {invoice.number} has lines 1 to {len(invoice.lines)}, not {shown(which)}.")
    return CreditLine(line.position, line.description, number)
