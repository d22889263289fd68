"""Invoices, credit notes, payments and the provider's cost in double entry.

Accounts are settings: one name, a pattern with ``{buyer}``, ``{team}``, ``{project}``, ``{provider}``, or a table by
``team=search``, ``provider=openai``, ``default``. What finance systems import is written by
`tokenmeter.billing.journal_forms`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import date, timedelta
from decimal import Decimal
from itertools import chain, count
from unicodedata import category, normalize

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.credit_note import ROUNDING, CreditLine, CreditNote
from tokenmeter.billing.events import MOVED_TEXT, movements
from tokenmeter.billing.filed import credit_notes, invoices
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import LineItem, TaxLine
from tokenmeter.billing.period import ClosedPeriod, closed_periods, days_of, zone_of_books
from tokenmeter.dimensions import ACCOUNTS as DIMENSIONS
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, USD, ZERO, negate, round_money, total
from tokenmeter.periods import Period, parse_period
from tokenmeter.reports.rated import RateKey
from tokenmeter.stores.base import Store
from tokenmeter.values import dataclass

#: Role of a posting -> account, unless the settings name another.
ACCOUNTS: Mapping[str, str] = {
    "receivable": "Assets:Receivable:{buyer}",
    "income": "Income:AI",
    "tax": "Liabilities:{tax}",
    "rounding": "Income:Rounding",
    "bank": "Assets:Bank",
    "bad_debts": "Expenses:BadDebts",
    "expense": "Expenses:AI:{provider}",
    "accrued": "Liabilities:Accrued:{provider}",
}
_DAY = timedelta(days=1)
Accounts = Mapping[str, "str | Mapping[str, str]"]
#: What moves a receivable -> kind of its entry, role of the account against it.
_SETTLING = {
    "payment": ("payment", "bank"),
    **dict.fromkeys(("uncollectible", "recovered", "given_up"), ("write_off", "bad_debts")),
}


@dataclass(frozen=True, slots=True)
class Posting:
    """An amount on an account, and the role that chose it; debits are positive."""

    role: str
    account: str
    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One transaction; its postings add up to nothing, exactly.

    Attributes:
        on: Its day.
        kind: ``invoice``, ``credit_note``, ``payment``, ``void``, ``write_off`` or ``provider_cost``.
        number: The document's.
        link: The invoice it belongs to.
        payee: Who.
        text: For people.
        postings: The amounts.
        facts: What else a format may show: ``due``, ``cost_centre``.
    """

    on: date
    kind: str
    number: str
    link: str
    payee: str
    text: str
    postings: tuple[Posting, ...]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])


@tell_wrong_arguments
def journal_entries(
    store: Store, *, period: str | Period, accounts: Accounts | None = None, tz: str | None = None
) -> list[JournalEntry]:
    """What was issued, credited, paid and written off in a period, and what its providers cost, in double entry.

    The providers' cost is accrued from each closing whose last day lies in the period, on that day, and taken back on
    the day after, when the provider's own bill is booked. That of days that are not closed is in no journal yet: a file
    from `export_journal` says which they are.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`: days of issue, payment and so on.
        accounts: Role (`ACCOUNTS`) -> account, pattern or table.
        tz: Zone in which the period is cut; default: that of the last closing, else UTC.

    Raises:
        ConfigurationError: an unknown role, or a pattern that names something unknown.
    """
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    filed = invoices(store)
    chart = AccountChart.of(store, accounts or {}, filed)
    first, last = days_of(asked)
    found = [entry for entry in _book_all(store, filed, chart) if first <= entry.on <= last]
    costs = (
        entry
        for closed in _by_last_day(store)
        if first <= days_of(closed.period)[1] <= last
        for entry in _book_provider_costs(closed, chart)
    )
    return [*sorted(found, key=lambda one: one.on), *costs]


def say_missing_costs(store: Store, period: Period) -> Iterator[str]:
    """Which of the providers' costs of a period its journal does not have, and why; nothing when all are there."""
    first, last = days_of(period)
    open_from = first
    for closed in _by_last_day(store):
        begins, ends = days_of(closed.period)
        if ends < open_from or begins > last:
            continue
        if begins > open_from:
            yield _say_open(open_from, begins - _DAY)
        if ends > last:
            yield (
                f"The providers' costs of {max(begins, first)} to {last} are booked on {ends}, with all of "
                f"{closed.period.label}, which was closed in one."
            )
        open_from = ends + _DAY
    if open_from <= last:
        yield _say_open(open_from, last)


def _say_open(first: date, last: date) -> str:
    return f"The providers' costs of {first} to {last} are missing: no closed period holds these days."


def _by_last_day(store: Store) -> list[ClosedPeriod]:
    return sorted(closed_periods(store), key=lambda closed: closed.period.end)


def accounts_before(store: Store, period: Period, accounts: Accounts | None = None) -> set[str]:
    """The accounts of all that was booked before a period began: what the files of earlier periods have."""
    filed = invoices(store)
    chart = AccountChart.of(store, accounts or {}, filed)
    first, _ = days_of(period)
    found = [entry for entry in _book_all(store, filed, chart) if entry.on < first]
    for closed in closed_periods(store):
        if days_of(closed.period)[1] < first:
            found += _book_provider_costs(closed, chart)
    return accounts_of(found)


def accounts_of(entries: Iterable[JournalEntry]) -> set[str]:
    """The names of the accounts on which they are booked."""
    return {posting.account for entry in entries for posting in entry.postings}


def _book_all(store: Store, filed: Sequence[Invoice], chart: AccountChart) -> Iterator[JournalEntry]:
    for invoice in filed:
        booked = _book_invoice(invoice, chart)
        yield booked
        for moved in movements(invoice.total, invoice.events):
            event = moved.event
            if moved.kind == "void":
                yield _turn_round(booked, moved.on, "void", str(invoice.number), f"Voided: {event.note}")
            elif moved.kind in _SETTLING:
                kind, role = _SETTLING[moved.kind]
                told = {"kind": kind, "role": role, "text": MOVED_TEXT.get(moved.kind, event.text)}
                yield _book_settlement(invoice, chart, on=moved.on, amount=moved.amount, **told)
    for note in credit_notes(store):
        yield _book_credit_note(note, chart)


def _book_invoice(invoice: Invoice, chart: AccountChart) -> JournalEntry:
    facts = facts_of(invoice)
    money, totals = invoice.currency, invoice.totals
    income: dict[str, Decimal] = {}
    for line in invoice.lines:
        account = chart.account("income", {**facts, **facts_of_line(line)})
        income[account] = EXACT.add(income.get(account, ZERO), line.amount)
    postings = [chart.post("receivable", facts, totals.total, money)]
    postings += [Posting("income", account, negate(amount), money) for account, amount in income.items() if amount]
    if totals.rounding:
        postings.append(chart.post("rounding", facts, negate(totals.rounding), money))
    for tax in totals.taxes:
        if tax.amount:
            postings.append(chart.post("tax", {**facts, "tax": _name_tax(tax)}, negate(tax.amount), money))
    return JournalEntry(
        on=invoice.issued_on or date.min,
        kind="invoice",
        number=str(invoice.number),
        link=str(invoice.number),
        payee=invoice.buyer.name,
        text=f"{invoice.title} {invoice.number} for {invoice.period.label}",
        postings=tuple(postings),
        facts={"due": str(invoice.due_on or ""), "cost_centre": invoice.buyer.cost_centre or ""},
    )


def _book_credit_note(note: CreditNote, chart: AccountChart) -> JournalEntry:
    facts = facts_of(note.invoice)
    money = note.invoice.currency
    given: dict[tuple[str, str], Decimal] = {}
    for credit, told in credited(note):
        role = role_of(credit)
        place = role, chart.account(role, told)
        given[place] = EXACT.add(given.get(place, ZERO), credit.amount)
    postings = [chart.post("receivable", facts, negate(note.total), money)]
    postings += [Posting(role, account, amount, money) for (role, account), amount in given.items() if amount]
    for tax in note.taxes:
        if tax.amount:
            postings.append(chart.post("tax", {**facts, "tax": _name_tax(tax)}, tax.amount, money))
    return JournalEntry(
        on=note.issued_on,
        kind="credit_note",
        number=note.number,
        link=str(note.invoice.number),
        payee=note.invoice.buyer.name,
        text=f"Credit note {note.number} on {note.invoice.number}: {note.reason}",
        postings=tuple(postings),
        facts={"due": "", "cost_centre": note.invoice.buyer.cost_centre or ""},
    )


def _book_settlement(
    invoice: Invoice, chart: AccountChart, *, on: date, amount: Decimal, kind: str, role: str, text: str
) -> JournalEntry:
    facts = facts_of(invoice)
    return JournalEntry(
        on=on,
        kind=kind,
        number=str(invoice.number),
        link=str(invoice.number),
        payee=invoice.buyer.name,
        text=f"{text} ({invoice.number})",
        postings=(
            chart.post(role, facts, amount, invoice.currency),
            chart.post("receivable", facts, negate(amount), invoice.currency),
        ),
    )


def _turn_round(entry: JournalEntry, on: date, kind: str, number: str, text: str) -> JournalEntry:
    postings = tuple(replace(one, amount=negate(one.amount)) for one in entry.postings)
    return JournalEntry(
        on=on,
        kind=kind,
        number=number,
        link=entry.link,
        payee=entry.payee,
        text=text,
        postings=postings,
        facts=entry.facts,
    )


def _book_provider_costs(closed: ClosedPeriod, chart: AccountChart) -> Iterator[JournalEntry]:
    period = closed.period
    sums: dict[str, dict[str, Decimal]] = defaultdict(dict)
    for row in closed.rows:
        account = chart.account("expense", _facts_of_cost(row.rate))
        spent = sums[row.rate.provider]
        spent[account] = EXACT.add(spent.get(account, ZERO), row.contracted_cost)
    _, last = days_of(period)
    for provider, spent in sorted(sums.items()):
        exact = total(spent.values())
        amount = round_money(exact, USD)
        if not amount:
            continue
        facts = {"provider": provider, "buyer": provider}
        shares = {account: round_money(one, USD) for account, one in sorted(spent.items())}
        # The largest takes what rounding left, so that they come to what is owed.
        largest = max(shares, key=lambda account: shares[account].copy_abs())
        shares[largest] = EXACT.add(shares[largest], EXACT.subtract(amount, total(shares.values())))
        accrued = JournalEntry(
            on=last,
            kind="provider_cost",
            number=f"{provider}-{period.label}",
            link=f"{provider}-{period.label}",
            payee=provider,
            text=f"Usage of {provider} in {period.label}, accrued ({exact:f} USD exactly)",
            postings=(
                *(Posting("expense", account, share, USD) for account, share in shares.items() if share),
                chart.post("accrued", facts, negate(amount), USD),
            ),
        )
        yield accrued
        taken_back = f"Accrual of {period.label} taken back for the bill of {provider}"
        yield _turn_round(accrued, last + _DAY, "provider_cost", accrued.number, taken_back)


def facts_of(invoice: Invoice) -> dict[str, str]:
    """What may choose an account: buyer, account, currency, and the dimensions of the account."""
    return {"buyer": invoice.buyer.name, "account": invoice.account, "currency": invoice.currency, **invoice.scope}


def facts_of_line(line: LineItem) -> dict[str, str]:
    """What its line adds to them: what the lines are broken down by, provider and model."""
    group = {name: value or "" for name, value in line.group.items()}
    return {**group, "provider": line.provider, "model": line.model or ""}


def credited(note: CreditNote) -> Iterator[tuple[CreditLine, dict[str, str]]]:
    """A credit note's lines, each with what chooses its account: that of the invoice's line which it gives back."""
    facts = facts_of(note.invoice)
    by_position = {line.position: facts_of_line(line) for line in note.invoice.lines}
    # A credit of no line in particular still has every name that a pattern may ask for.
    nowhere = dict.fromkeys((name for told in by_position.values() for name in told), "")
    for credit in note.lines:
        told = by_position.get(credit.line or 0)
        yield credit, {**nowhere, **facts} if told is None else {**facts, **told}


def role_of(credit: CreditLine) -> str:
    """Against which account a credit note's line is booked."""
    return "rounding" if credit.line == ROUNDING else "income"


def _facts_of_cost(rate: RateKey) -> dict[str, str]:
    """What may choose an account of a provider's cost: who used it, provider and model."""
    who = {name: rate.about(name) or "" for name in DIMENSIONS}
    return {**who, "provider": rate.provider, "buyer": rate.provider, "model": rate.model or ""}


def _list_facts(document: ClosedPeriod | Invoice | CreditNote) -> Iterator[Mapping[str, str]]:
    """All that chooses the accounts of what a document books."""
    if isinstance(document, ClosedPeriod):
        yield from (_facts_of_cost(row.rate) for row in document.rows)
    elif isinstance(document, Invoice):
        yield facts_of(document)
        yield from map(facts_of_line, document.lines)
        yield from ({"tax": _name_tax(tax)} for tax in document.totals.taxes)
    else:
        yield from (told for _, told in credited(document))


def _name_tax(tax: TaxLine) -> str:
    return tax.label.split()[0]


class AccountChart:
    """Which account a role has for given facts.

    Two names never share an account that is called after them: where both come to the same part of an account's name,
    the one that came into the ledger later gets a number behind it, in every export the same.
    """

    def __init__(self, accounts: Accounts) -> None:
        for role in accounts:
            if role not in ACCOUNTS:
                raise ConfigurationError(f"accounts: unknown role {role!r}; use {', '.join(ACCOUNTS)}.")
        self._accounts, self._named = {**ACCOUNTS, **accounts}, frozenset(accounts)
        self._parts: dict[str, dict[str, str]] = defaultdict(dict)
        self._taken: dict[str, set[str]] = defaultdict(set)

    @classmethod
    def of(cls, store: Store, accounts: Accounts, filed: Sequence[Invoice]) -> AccountChart:
        """A chart that knows the names of the ledger's documents, in the order in which they came, of whatever kind.

        In any other a document that is filed later would change what an earlier one's account is called.
        """
        chart = cls(accounts)
        documents: list[ClosedPeriod | Invoice | CreditNote] = [*closed_periods(store), *filed, *credit_notes(store)]
        for one in sorted(documents, key=lambda one: one.document.position if one.document else 0):
            for facts in _list_facts(one):
                chart._parts_of(facts)
        return chart

    def _parts_of(self, facts: Mapping[str, str]) -> dict[str, str]:
        """What stands for each of them in an account's name."""
        # A pattern of a provider's costs may call it the buyer; to a buyer who is called so its name is no other's.
        is_cost = "account" not in facts
        return {
            name: self._part("provider" if name == "buyer" and is_cost else name, value)
            for name, value in facts.items()
        }

    def _part(self, name: str, value: str) -> str:
        """What stands for a value in an account's name."""
        # One spelling of letters that can be composed in two ways: to people it is one name.
        known, taken, value = self._parts[name], self._taken[name], normalize("NFC", value)
        if value not in known:
            plain = _part(value)
            numbered = (f"{plain}-{at}" for at in count(2))
            known[value] = next(one for one in chain([plain], numbered) if one not in taken)
            taken.add(known[value])
        return known[value]

    def account(self, role: str, facts: Mapping[str, str]) -> str:
        """The account; parts that come from names keep letters, digits and dashes only."""
        named = self._accounts[role]
        if not isinstance(named, str):
            keys = (f"{name}={value}" for name, value in facts.items())
            chosen = next((named[key] for key in keys if key in named), named.get("default"))
            if chosen is None:
                raise ConfigurationError(f"accounts.{role} has nothing for {dict(facts)!r}: add 'default'.")
            named = chosen
        try:
            return named.format_map(self._parts_of(facts))
        except (KeyError, ValueError, IndexError) as error:
            if (missing := str(error).strip("'")) in DIMENSIONS:
                raise ConfigurationError(
                    f"accounts.{role} is {named!r}, and {facts.get('account') or 'a document'} is not broken down by "
                    f"{missing}: issue its invoices by {missing}, or with lines_by={missing!r} (--lines-by {missing}); "
                    f"or give a table with a default: accounts={{{role!r}: {{'{missing}=...': ..., 'default': ...}}}}."
                ) from None
            raise ConfigurationError(
                f"accounts.{role} is {named!r}, which names something unknown ({error}); known: {', '.join(facts)}."
            ) from None

    def names(self, role: str) -> bool:
        """Whether the settings name the account of a role, which else has a usual one."""
        return role in self._named

    def post(self, role: str, facts: Mapping[str, str], amount: Decimal, currency: str) -> Posting:
        """A posting of that role."""
        return Posting(role, self.account(role, facts), amount, currency)


#: Classes of characters that begin a part of an account's name in beancount; a Chinese or an Arabic letter does not.
_BEGINS = {"Lu", "Nd"}


def _part(name: str) -> str:
    """A name as a part of an account's, as beancount takes it: a capital or a digit, then letters, digits, dashes."""
    letters = (one if _stands_in_part(one) else "-" for one in name)
    kept = re.sub("-+", "-", "".join(letters)).strip("-")
    kept = kept[:1].upper() + kept[1:]
    return kept if kept and category(kept[0]) in _BEGINS else f"X-{kept}".rstrip("-")


def _stands_in_part(letter: str) -> bool:
    return letter == "-" or category(letter) == "Nd" or category(letter).startswith("L")


def is_beancount_account(name: str) -> bool:
    """Whether beancount can read an account's name."""
    root, *parts = name.split(":")
    return (
        bool(parts)
        and all(part and category(part[0]) in _BEGINS and all(map(_stands_in_part, part)) for part in (root, *parts))
        and category(root[0]) == "Lu"
    )
