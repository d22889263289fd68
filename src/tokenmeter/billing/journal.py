"""Invoices, credit notes, payments and the provider's cost in double entry, for a finance system to take up.

Beancount and hledger text; CSV for Xero and QuickBooks Online; DATEV's Buchungsstapel. Accounts are settings: one name,
a pattern with ``{buyer}``, ``{team}``, ``{provider}``, or a table by ``team=search``, ``provider=openai``, ``default``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

from tokenmeter.billing.invoice import CreditNote, Invoice
from tokenmeter.billing.issuing import credit_notes, invoices
from tokenmeter.billing.period import days_of, find_closed
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, USD, ZERO, round_money, total
from tokenmeter.periods import Period, parse_instant, parse_period
from tokenmeter.stores.base import Store

JournalForm = Literal["beancount", "hledger", "xero", "quickbooks", "datev"]
JOURNAL_FORMS: tuple[JournalForm, ...] = get_args(JournalForm)
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
Accounts = Mapping[str, "str | Mapping[str, str]"]


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


def journal_entries(
    store: Store, *, period: str | Period, accounts: Accounts | None = None, tz: str = "UTC"
) -> list[JournalEntry]:
    """What was issued, credited, paid and written off in a period, and what its providers cost, in double entry.

    The providers' cost is accrued on the last day, from the period's closing, and taken back on the day after, when the
    provider's own bill is booked.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ... or a `Period`: days of issue, payment and so on.
        accounts: Role (`ACCOUNTS`) -> account, pattern or table.
        tz: Zone in which the period is cut.

    Raises:
        ConfigurationError: an unknown role, or a pattern that names something unknown.
    """
    asked = period if isinstance(period, Period) else parse_period(period, tz)
    chart = _AccountChart(accounts or {})
    first, last = days_of(asked)
    found = [entry for entry in _all(store, chart) if first <= entry.on <= last]
    return [*sorted(found, key=lambda one: one.on), *_provider_costs(store, asked, chart)]


def _all(store: Store, chart: _AccountChart) -> Iterator[JournalEntry]:
    for invoice in invoices(store):
        booked = _of_invoice(invoice, chart)
        yield booked
        for event in invoice.events:
            if event.kind == "payment":
                paid = event.amount or ZERO
                yield _settled(invoice, chart, on=event.on, amount=paid, kind="payment", role="bank", text=event.text)
            elif event.kind == "void":
                yield _turned(booked, event.on, "void", str(invoice.number), f"Voided: {event.note}")
            elif event.kind == "uncollectible":
                left = EXACT.subtract(EXACT.subtract(invoice.total, invoice.credited), invoice.paid)
                told = {"kind": "write_off", "role": "bad_debts", "text": event.text}
                yield _settled(invoice, chart, on=event.on, amount=left, **told)
    for note in credit_notes(store):
        yield _of_credit_note(note, chart)


def _of_invoice(invoice: Invoice, chart: _AccountChart) -> JournalEntry:
    facts = _facts(invoice)
    money, totals = invoice.currency, invoice.totals
    income: dict[str, Decimal] = {}
    for line in invoice.lines:
        named = {name: value for name, value in line.group.items() if value}
        account = chart.account("income", {**facts, **named, "provider": line.provider, "model": line.model or ""})
        income[account] = EXACT.add(income.get(account, ZERO), line.amount)
    postings = [chart.post("receivable", facts, totals.total, money)]
    postings += [
        Posting("income", account, amount.copy_negate(), money) for account, amount in income.items() if amount
    ]
    if totals.rounding:
        postings.append(chart.post("rounding", facts, totals.rounding.copy_negate(), money))
    for tax in totals.taxes:
        if tax.amount:
            postings.append(chart.post("tax", {**facts, "tax": tax.label.split()[0]}, tax.amount.copy_negate(), money))
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


def _of_credit_note(note: CreditNote, chart: _AccountChart) -> JournalEntry:
    facts = _facts(note.invoice)
    money = note.invoice.currency
    by_position = {line.position: line for line in note.invoice.lines}
    income: dict[str, Decimal] = {}
    for credit in note.lines:
        line = by_position.get(credit.line or 0)
        told = {} if line is None else {"provider": line.provider, "model": line.model or ""}
        account = chart.account("income", {"provider": "", "model": "", **facts, **told})
        income[account] = EXACT.add(income.get(account, ZERO), credit.amount)
    postings = [chart.post("receivable", facts, note.total.copy_negate(), money)]
    postings += [Posting("income", account, amount, money) for account, amount in income.items()]
    for tax in note.taxes:
        if tax.amount:
            postings.append(chart.post("tax", {**facts, "tax": tax.label.split()[0]}, tax.amount, money))
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


def _settled(
    invoice: Invoice, chart: _AccountChart, *, on: date, amount: Decimal, kind: str, role: str, text: str
) -> JournalEntry:
    facts = _facts(invoice)
    return JournalEntry(
        on=on,
        kind=kind,
        number=str(invoice.number),
        link=str(invoice.number),
        payee=invoice.buyer.name,
        text=f"{text} ({invoice.number})",
        postings=(
            chart.post(role, facts, amount, invoice.currency),
            chart.post("receivable", facts, amount.copy_negate(), invoice.currency),
        ),
    )


def _turned(entry: JournalEntry, on: date, kind: str, number: str, text: str) -> JournalEntry:
    postings = tuple(replace(one, amount=one.amount.copy_negate()) for one in entry.postings)
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


def _provider_costs(store: Store, period: Period, chart: _AccountChart) -> Iterator[JournalEntry]:
    closed = find_closed(store, period)
    if closed is None:
        return
    sums: dict[str, Decimal] = {}
    for row in closed.rows:
        sums[row.rate.provider] = EXACT.add(sums.get(row.rate.provider, ZERO), row.contracted_cost)
    _, last = days_of(period)
    for provider, exact in sorted(sums.items()):
        amount = round_money(exact, USD)
        if not amount:
            continue
        facts = {"provider": provider, "buyer": provider}
        accrued = JournalEntry(
            on=last,
            kind="provider_cost",
            number=f"{provider}-{period.label}",
            link=f"{provider}-{period.label}",
            payee=provider,
            text=f"Usage of {provider} in {period.label}, accrued ({exact:f} USD exactly)",
            postings=(
                chart.post("expense", facts, amount, USD),
                chart.post("accrued", facts, amount.copy_negate(), USD),
            ),
        )
        yield accrued
        taken_back = f"Accrual of {period.label} taken back for the bill of {provider}"
        yield _turned(accrued, last + timedelta(days=1), "provider_cost", accrued.number, taken_back)


def _facts(invoice: Invoice) -> dict[str, str]:
    return {"buyer": invoice.buyer.name, "account": invoice.account, "currency": invoice.currency, **invoice.scope}


class _AccountChart:
    """Which account a role has for given facts."""

    def __init__(self, accounts: Accounts) -> None:
        for role in accounts:
            if role not in ACCOUNTS:
                raise ConfigurationError(f"accounts: unknown role {role!r}; use {', '.join(ACCOUNTS)}.")
        self._accounts = {**ACCOUNTS, **accounts}

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
            return named.format_map({name: _part(value) for name, value in facts.items()})
        except (KeyError, ValueError, IndexError) as error:
            raise ConfigurationError(
                f"accounts.{role} is {named!r}, which names something unknown ({error}); known: {', '.join(facts)}."
            ) from None

    def post(self, role: str, facts: Mapping[str, str], amount: Decimal, currency: str) -> Posting:
        """A posting of that role."""
        return Posting(role, self.account(role, facts), amount, currency)


def _part(name: str) -> str:
    """A part of an account's name as beancount takes it: letters, digits, dashes, a capital or digit first."""
    kept = re.sub(r"[^\w]+|_", "-", name).strip("-") or "X"
    return kept[0].upper() + kept[1:] if kept[0].isalpha() else kept


# -- forms


def export_journal(
    store: Store,
    *,
    period: str | Period,
    form: JournalForm = "beancount",
    accounts: Accounts | None = None,
    tz: str = "UTC",
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """A period's documents as a finance system imports them.

    Args:
        store: The ledger.
        period: Days of issue.
        form: ``beancount``, ``hledger``; ``xero`` and ``quickbooks``: CSV of invoices and credit notes; ``datev``: an
            EXTF Buchungsstapel, without the providers' costs.
        accounts: See `journal_entries`; for ``xero`` the income's account codes, for ``datev`` numbers of
            ``receivable``, ``income`` (an account that carries its tax rate), ``rounding`` and ``bank``.
        tz: Zone in which the period is cut.
        options: ``xero``: ``tax_type`` (default: the tax's label); ``quickbooks``: ``item``, ``tax_code``; ``datev``:
            ``consultant``, ``client``, ``year_start`` (a date, default January 1), ``account_digits`` (4),
            ``currency`` (``EUR``), ``name``;
            ``beancount``: ``open`` (default True): whether accounts are opened in the file.

    Returns:
        Text in UTF-8; for DATEV in Windows-1252.

    Raises:
        ConfigurationError: an unknown form, role or option, or what the system cannot take; says which.
    """
    if form not in JOURNAL_FORMS:
        raise ConfigurationError(f"A journal is {', '.join(JOURNAL_FORMS)}, not {form!r}.")
    asked = period if isinstance(period, Period) else parse_period(period, tz)
    given = dict(options or {})
    if form in {"beancount", "hledger"}:
        entries = journal_entries(store, period=asked, accounts=accounts)
        text = _beancount(entries, opened=given.pop("open", True)) if form == "beancount" else _hledger(entries)
        content = text.encode()
    elif form == "datev":
        content = _datev(journal_entries(store, period=asked, accounts=accounts), asked, given)
    else:
        first, last = days_of(asked)
        documents: list[Invoice | CreditNote] = [*invoices(store), *credit_notes(store)]
        chosen = [one for one in documents if first <= (one.issued_on or date.min) <= last]
        chosen = [one for one in chosen if not isinstance(one, Invoice) or one.status != "void"]
        write = _xero if form == "xero" else _quickbooks
        content = write(chosen, _AccountChart(accounts or {"income": "200"}), given).encode()
    if given:
        raise ConfigurationError(f"{form} has no option {', '.join(given)}.")
    return content


def _beancount(entries: Sequence[JournalEntry], *, opened: bool) -> str:
    lines = ['option "tolerance_multiplier" "0"', ""]
    if opened and entries:
        first = min(entry.on for entry in entries)
        accounts = sorted({posting.account for entry in entries for posting in entry.postings})
        lines += [*(f"{first} open {account}" for account in accounts), ""]
    for entry in entries:
        link = re.sub(r"[^A-Za-z0-9\-_/.]", "-", entry.link)
        lines.append(f'{entry.on} * "{_quoted(entry.payee)}" "{_quoted(entry.text)}" ^{link} #tokenmeter')
        lines.append(f'  document-number: "{_quoted(entry.number)}"')
        lines += [f"  {one.account}  {one.amount:f} {one.currency}" for one in entry.postings]
        lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace('"', '\\"').split())


def _hledger(entries: Sequence[JournalEntry]) -> str:
    lines: list[str] = []
    for entry in entries:
        payee = re.sub(r"[;|\n]+", " ", entry.payee)
        text = re.sub(r"[;|\n]+", " ", entry.text)
        lines.append(f"{entry.on} * ({entry.number}) {payee} | {text}  ; link:{entry.link}, source:tokenmeter")
        lines += [f"    {one.account}  {one.amount:f} {one.currency}" for one in entry.postings]
        lines.append("")
    return "\n".join(lines)


_XERO = (
    "*ContactName", "EmailAddress", "POAddressLine1", "POAddressLine2", "POAddressLine3", "POAddressLine4", "POCity",
    "PORegion", "POPostalCode", "POCountry", "*InvoiceNumber", "Reference", "*InvoiceDate", "*DueDate", "Total",
    "InventoryItemCode", "*Description", "*Quantity", "*UnitAmount", "Discount", "*AccountCode", "*TaxType",
    "TaxAmount", "TrackingName1", "TrackingOption1", "TrackingName2", "TrackingOption2", "Currency", "BrandingTheme",
)  # fmt: skip
_QUICKBOOKS = (
    "*Invoice number", "*Customer", "*Invoice date", "*Due date", "Terms", "Service Date", "Item(Product/Service)",
    "Item Description", "Item Quantity", "Item Rate", "*Item Amount", "Item tax code", "Memo",
)  # fmt: skip
_QUICKBOOKS_NUMBER, _QUICKBOOKS_ROWS, _XERO_INVOICES = 21, 1000, 500


def _amounts(document: Invoice | CreditNote) -> Iterator[tuple[str, Decimal, Mapping[str, str]]]:
    """Lines that add up to the net: text, amount (of a credit note negative), facts for its account."""
    invoice = document.invoice if isinstance(document, CreditNote) else document
    facts = {"provider": "", "model": "", **_facts(invoice)}
    if isinstance(document, CreditNote):
        for credit in document.lines:
            yield credit.description, credit.amount.copy_negate(), facts
        return
    for line in document.lines:
        quantity = f": {line.quantity.normalize(EXACT):,f} {line.unit.lower()}" if line.quantity else ""
        factors = f", {line.factors_text}" if line.multipliers else ""
        yield f"{line.description}{quantity}{factors}", line.amount, {**facts, "provider": line.provider}
    if document.totals.rounding:
        yield "Rounding", document.totals.rounding, facts


def _xero(documents: Sequence[Invoice | CreditNote], chart: _AccountChart, options: dict[str, Any]) -> str:
    if len(documents) > _XERO_INVOICES:
        raise ConfigurationError(f"Xero takes {_XERO_INVOICES} invoices a file; this period has {len(documents)}.")
    tax_type = options.pop("tax_type", None)

    def rows() -> Iterator[dict[str, str]]:
        for document in documents:
            invoice = document.invoice if isinstance(document, CreditNote) else document
            buyer, taxes = invoice.buyer, invoice.totals.taxes
            about = {
                "*ContactName": buyer.name,
                "EmailAddress": buyer.email or "",
                **{f"POAddressLine{at}": line for at, line in enumerate(buyer.address[:4], 1)},
                "POCity": buyer.city or "",
                "POPostalCode": buyer.postcode or "",
                "POCountry": buyer.country or "",
                "*InvoiceNumber": str(document.number),
                "Reference": str(invoice.number) if isinstance(document, CreditNote) else buyer.purchase_order or "",
                "*InvoiceDate": f"{document.issued_on:%d/%m/%Y}",
                "*DueDate": f"{document.issued_on if isinstance(document, CreditNote) else document.due_on:%d/%m/%Y}",
                "*TaxType": str(tax_type or (taxes[0].label if taxes else "Tax Exempt")),
                "Currency": invoice.currency,
            }
            for text, amount, facts in _amounts(document):
                account = chart.account("income", facts)
                yield {
                    **about,
                    "*Description": text,
                    "*Quantity": "1",
                    "*UnitAmount": f"{amount:f}",
                    "*AccountCode": account,
                }

    return _table(_XERO, rows())


def _quickbooks(documents: Sequence[Invoice | CreditNote], chart: _AccountChart, options: dict[str, Any]) -> str:
    del chart  # QuickBooks takes the account from the item
    item, tax_code = str(options.pop("item", "AI usage")), str(options.pop("tax_code", ""))
    rows: list[dict[str, str]] = []
    for document in documents:
        if len(str(document.number)) > _QUICKBOOKS_NUMBER:
            raise ConfigurationError(
                f"QuickBooks takes numbers of {_QUICKBOOKS_NUMBER} letters, not {document.number}."
            )
        invoice = document.invoice if isinstance(document, CreditNote) else document
        due = document.issued_on if isinstance(document, CreditNote) else document.due_on
        _, last = days_of(invoice.period)
        rows += [
            {
                "*Invoice number": str(document.number),
                "*Customer": invoice.buyer.name,
                "*Invoice date": f"{document.issued_on:%d/%m/%Y}",
                "*Due date": f"{due:%d/%m/%Y}",
                "Service Date": f"{last:%d/%m/%Y}",
                "Item(Product/Service)": item,
                "Item Description": text,
                "Item Quantity": "1",
                "Item Rate": f"{amount:f}",
                "*Item Amount": f"{amount:f}",
                "Item tax code": tax_code,
                "Memo": f"{invoice.account} {invoice.period.label}",
            }
            for text, amount, _ in _amounts(document)
        ]
    if len(rows) > _QUICKBOOKS_ROWS:
        raise ConfigurationError(f"QuickBooks takes {_QUICKBOOKS_ROWS} rows a file; this period has {len(rows)}.")
    return _table(_QUICKBOOKS, rows)


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# -- DATEV

_DATEV_HEAD = (
    *("Umsatz (ohne Soll/Haben-Kz)", "Soll/Haben-Kennzeichen", "WKZ Umsatz", "Kurs", "Basis-Umsatz"),
    *("WKZ Basis-Umsatz", "Konto", "Gegenkonto (ohne BU-Schlüssel)", "BU-Schlüssel", "Belegdatum", "Belegfeld 1"),
    *("Belegfeld 2", "Skonto", "Buchungstext", "Postensperre", "Diverse Adressnummer", "Geschäftspartnerbank"),
    *("Sachverhalt", "Zinssperre", "Beleglink"),
    *(f"Beleginfo - {what} {at}" for at in range(1, 9) for what in ("Art", "Inhalt")),
    *("KOST1 - Kostenstelle", "KOST2 - Kostenstelle", "Kost-Menge", "EU-Land u. UStID (Bestimmung)"),
    *("EU-Steuersatz (Bestimmung)", "Abw. Versteuerungsart", "Sachverhalt L+L", "Funktionsergänzung L+L"),
    *("BU 49 Hauptfunktionstyp", "BU 49 Hauptfunktionsnummer", "BU 49 Funktionsergänzung"),
    *(f"Zusatzinformation - {what} {at}" for at in range(1, 21) for what in ("Art", "Inhalt")),
    *("Stück", "Gewicht", "Zahlweise", "Forderungsart", "Veranlagungsjahr", "Zugeordnete Fälligkeit", "Skontotyp"),
    *("Auftragsnummer", "Buchungstyp", "USt-Schlüssel (Anzahlungen)", "EU-Land (Anzahlungen)"),
    *("Sachverhalt L+L (Anzahlungen)", "EU-Steuersatz (Anzahlungen)", "Erlöskonto (Anzahlungen)", "Herkunft-Kz"),
    *("Leerfeld", "KOST-Datum", "SEPA-Mandatsreferenz", "Skontosperre", "Gesellschaftername", "Beteiligtennummer"),
    *("Identifikationsnummer", "Zeichnernummer", "Postensperre bis", "Bezeichnung SoBil-Sachverhalt"),
    *("Kennzeichen SoBil-Buchung", "Festschreibung", "Leistungsdatum", "Datum Zuord. Steuerperiode", "Fälligkeit"),
    *("Generalumkehr (GU)", "Steuersatz", "Land", "Abrechnungsreferenz", "BVV-Position", "EU-Land u. UStID (Ursprung)"),
    *("EU-Steuersatz (Ursprung)", "Abw. Skontokonto"),
)
_DATEV_TEXT = 60
_DATEV_NUMBER = 36
_TEXT_COLUMNS = frozenset({1, 2, 5, 8, 10, 11, 13, 36, 37})
_KOST1, _DUE = 36, 116


def _datev(entries: Sequence[JournalEntry], period: Period, options: dict[str, Any]) -> bytes:
    consultant, client = str(options.pop("consultant", "1001")), str(options.pop("client", "1"))
    digits = int(options.pop("account_digits", 4))
    first, last = days_of(period)
    start = options.pop("year_start", date(first.year, 1, 1))
    start = start if isinstance(start, date) else parse_instant(str(start)).date()
    name = str(options.pop("name", f"tokenmeter {period.label}"))[:30]
    if not first <= last < date(start.year + 1, start.month, start.day):
        raise ConfigurationError("A Buchungsstapel lies within one fiscal year; export shorter periods.")
    currency = str(options.pop("currency", "EUR"))
    booked = [one for one in entries if one.kind != "provider_cost"]
    strange = sorted({one.currency for entry in booked for one in entry.postings} - {currency})
    if strange:
        raise ConfigurationError(
            f"This Buchungsstapel is in {currency}, and there are documents in {', '.join(strange)}; give options="
            "{'currency': ...}, or export them apart."
        )
    made = f"{utcnow():%Y%m%d%H%M%S}000"
    fields: list[str] = [
        '"EXTF"', "700", "21", '"Buchungsstapel"', "13", made, "", '"RE"', '""', '""', consultant, client,
        f"{start:%Y%m%d}", str(digits), f"{first:%Y%m%d}", f"{last:%Y%m%d}", f'"{_line_of(name)}"', '""', "1", "0", "0",
        f'"{currency}"', "", '""', "", "", '""', "", "", '""', '""',
    ]  # fmt: skip
    rows = [row for entry in booked for row in _datev_rows(entry, digits)]
    text = "\r\n".join([";".join(fields), ";".join(_DATEV_HEAD), *rows, ""])
    try:
        return text.encode("cp1252")
    except UnicodeEncodeError as error:
        letter = text[error.start]
        line = text[: error.start].count("\r\n") + 1
        raise ConfigurationError(
            f"DATEV's files are in Windows-1252, which has no {letter!r} (line {line}); give the buyer another name."
        ) from None


def _datev_rows(entry: JournalEntry, digits: int) -> Iterator[str]:
    """One row for each posting against the first: the customer's, the bank's or the expense account.

    Tax is not posted by itself: the income accounts carry their rate, so their amounts are gross.
    """
    main, *others = entry.postings
    taxed = [one for one in others if one.role != "tax"]
    taxes = EXACT.subtract(main.amount.copy_negate(), total(one.amount for one in taxed))
    net = total(one.amount for one in taxed)
    left = taxes
    for at, one in enumerate(taxed):
        share = left if at == len(taxed) - 1 else round_money(EXACT.divide(EXACT.multiply(taxes, one.amount), net), USD)
        left = EXACT.subtract(left, share)
        gross = EXACT.add(one.amount, share)
        for account in (main.account, one.account):
            if not account.isdigit() or not digits <= len(account) <= 9:  # noqa: PLR2004 - DATEV's own limit
                raise ConfigurationError(
                    f"DATEV's accounts are numbers of {digits} to 9 digits, not {account!r}: give accounts="
                    "{'receivable': '10000', 'income': '8400', 'rounding': '8400', 'bank': '1200'}."
                )
        row = [""] * len(_DATEV_HEAD)
        row[0] = f"{round_money(gross.copy_abs(), one.currency):f}".replace(".", ",")
        row[1] = "S" if gross < 0 else "H"  # of the customer's account, which stands against it
        row[2] = one.currency
        row[6], row[7] = main.account, one.account
        row[9] = f"{entry.on:%d%m}"
        row[10] = entry.link[:_DATEV_NUMBER]
        row[13] = f"{entry.payee}: {entry.text}"[:_DATEV_TEXT]
        row[_KOST1] = entry.facts.get("cost_centre", "")[:36]
        due = entry.facts.get("due", "")
        row[_DUE] = "".join(reversed(due.split("-"))) if due else ""
        yield ";".join(f'"{_line_of(cell)}"' if at in _TEXT_COLUMNS else cell for at, cell in enumerate(row))


def _line_of(text: str) -> str:
    return " ".join(text.replace('"', '""').split())
