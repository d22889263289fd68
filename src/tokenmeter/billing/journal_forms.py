"""A period's documents as finance systems import them: beancount and hledger text, CSV for Xero and QuickBooks Online.

DATEV's Buchungsstapel is in `tokenmeter.billing.datev`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Literal, get_args

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.credit_note import CreditNote
from tokenmeter.billing.datev import write_datev
from tokenmeter.billing.filed import credit_notes, invoices
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.journal import (
    AccountChart,
    Accounts,
    JournalEntry,
    accounts_before,
    accounts_of,
    credited,
    facts_of,
    facts_of_line,
    is_beancount_account,
    journal_entries,
    role_of,
    say_missing_costs,
)
from tokenmeter.billing.paper import plain_text
from tokenmeter.billing.period import days_of, zone_of_books
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, negate
from tokenmeter.periods import Period, parse_period
from tokenmeter.stores.base import Store

JournalForm = Literal["beancount", "hledger", "xero", "quickbooks", "datev"]
JOURNAL_FORMS: tuple[JournalForm, ...] = get_args(JournalForm)


@tell_wrong_arguments
def export_journal(
    store: Store,
    *,
    period: str | Period,
    form: JournalForm = "beancount",
    accounts: Accounts | None = None,
    tz: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """A period's documents as a finance system imports them.

    Args:
        store: The ledger.
        period: Days of issue.
        form: ``beancount``, ``hledger``; ``xero`` and ``quickbooks``: CSV of invoices and credit notes; ``datev``: an
            EXTF Buchungsstapel, without the providers' costs.
        accounts: See `journal_entries`; for ``xero`` the income's account codes, for ``datev`` numbers of
            ``receivable``, ``income`` (an account that carries its tax rate), ``rounding``, ``bank`` and ``bad_debts``.
        tz: Zone in which the period is cut; default: that of the last closing, else UTC.
        options: ``xero``: ``tax_type`` (default: the tax's label), ``dates``; ``quickbooks``: ``item``, ``tax_code``,
            ``currency``, ``dates`` (``uk``: day, month, year; ``us``: month, day, year; ``iso``); both: ``part``, which
            file of a period that has more than their programs take in one;
            ``datev``: ``consultant``, ``client``, ``year_start`` (a date, default January 1),
            ``account_digits`` (4), ``currency`` (``EUR``), ``name``, ``replace`` (what stands for letters that
            Windows-1252 lacks). One that names a currency gets the documents in that one. ``beancount``: ``open``
            (default ``yes``): which of its accounts the file opens, as all files of one book open each once: all of
            them, ``new``: those that nothing booked before the period has, or ``no``: none.

    Returns:
        Text in UTF-8; for DATEV in Windows-1252.

    Raises:
        ConfigurationError: an unknown form, role or option, or what the system cannot take; says which.
    """
    if form not in JOURNAL_FORMS:
        raise ConfigurationError(f"A journal is {', '.join(JOURNAL_FORMS)}, not {form!r}.")
    asked = period if isinstance(period, Period) else parse_period(period, zone_of_books(store, tz))
    given = dict(options or {})
    if form in {"beancount", "hledger"}:
        entries = journal_entries(store, period=asked, accounts=accounts)
        _check_accounts(entries, form)
        if form == "beancount":
            opened = _choose_opened(store, asked, accounts, accounts_of(entries), given.pop("open", "yes"))
            text = _beancount(entries, opened)
        else:
            text = _hledger(entries)
        # Before its closing what a period cost may still change.
        content = "".join((text, *(f"; {told}\n" for told in say_missing_costs(store, asked)))).encode()
    elif form == "datev":
        content = write_datev(journal_entries(store, period=asked, accounts=accounts), asked, given)
    else:
        first, last = days_of(asked)
        filed = invoices(store)
        documents: list[Invoice | CreditNote] = [*filed, *credit_notes(store)]
        chosen = [one for one in documents if first <= (one.issued_on or date.min) <= last]
        chosen = [one for one in chosen if not isinstance(one, Invoice) or one.status != "void"]
        write = _xero if form == "xero" else _quickbooks
        content = write(chosen, AccountChart.of(store, accounts or {"income": "200"}, filed), given).encode()
    if given:
        raise ConfigurationError(f"{form} has no option {', '.join(given)}.")
    return content


def _choose_opened(
    store: Store, period: Period, accounts: Accounts | None, used: set[str], option: object
) -> list[str]:
    """Which of the accounts that it uses a file opens.

    Raises:
        ConfigurationError: the option is none of yes, new and no.
    """
    match str(option).lower():
        case "yes" | "true" | "1":
            return sorted(used)
        case "new":
            return sorted(used - accounts_before(store, period, accounts))
        case "no" | "false" | "0":
            return []
        case _:
            raise ConfigurationError(f"open is yes, new (what no earlier month has) or no, not {option!r}.")


#: How days are written, by what the organisation's region is.
_DATES = {"uk": "%d/%m/%Y", "us": "%m/%d/%Y", "iso": "%Y-%m-%d"}


def _parse_dates(value: object) -> str:
    if (form := _DATES.get(str(value).lower())) is None:
        raise ConfigurationError(f"dates is uk (31/12/2026), us (12/31/2026) or iso (2026-12-31), not {value!r}.")
    return form


#: hledger and ledger end a name at two blanks, and take a bracket around it for a posting that need not balance.
_HLEDGER_ACCOUNT = re.compile(r"(?![*!(\[])[^\s;]+(?: [^\s;]+)*")


def _check_accounts(entries: Sequence[JournalEntry], form: str) -> None:
    """Refuse an account that the program could not read.

    Raises:
        ConfigurationError: one is; says which role has it.
    """
    for posting in (posting for entry in entries for posting in entry.postings):
        name = posting.account
        if form == "beancount" and not is_beancount_account(name):
            rule = "parts joined by colons, each a capital or a digit, then letters, digits and dashes: Income:AI"
        elif form == "hledger" and not _HLEDGER_ACCOUNT.fullmatch(name):
            rule = "neither two blanks, a tab nor a semicolon in it, and no bracket or mark in front: Income:AI"
        else:
            continue
        raise ConfigurationError(f"accounts.{posting.role} is {name!r}; {form} takes {rule}.")


def _beancount(entries: Sequence[JournalEntry], opened: Sequence[str]) -> str:
    lines = ['option "tolerance_multiplier" "0"', ""]
    if opened:
        first = min(entry.on for entry in entries)
        lines += [*(f"{first} open {name}" for name in opened), ""]
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
    currencies = sorted({posting.currency for entry in entries for posting in entry.postings})
    declared = [f"account {name}" for name in sorted(accounts_of(entries))] + [
        f"commodity {name}" for name in currencies
    ]
    lines = [*declared, ""] if entries else []
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
_QUICKBOOKS_NUMBER = 21
#: Program -> how many documents, and rows, it takes in one file.
_MOST = {"Xero": (500, None), "QuickBooks": (100, 1000)}


def _amounts(document: Invoice | CreditNote) -> Iterator[tuple[str, Decimal, str, Mapping[str, str]]]:
    """Lines that add up to the net: text, amount (of a credit note negative), role of its account and facts for it."""
    if isinstance(document, CreditNote):
        for credit, told in credited(document):
            yield credit.description, negate(credit.amount), role_of(credit), told
        return
    facts = facts_of(document)
    for line in document.lines:
        quantity = f": {line.quantity.normalize(EXACT):,f} {line.unit.lower()}" if line.quantity else ""
        factors = f", {line.factors_text}" if line.multipliers else ""
        yield f"{line.description}{quantity}{factors}", line.amount, "income", {**facts, **facts_of_line(line)}
    if document.totals.rounding:
        # On an account of no provider in particular, whichever names a pattern asks for.
        told = dict.fromkeys((name for line in document.lines for name in facts_of_line(line)), "")
        yield "Rounding", document.totals.rounding, "rounding", {**told, **facts}


def _xero(documents: Sequence[Invoice | CreditNote], chart: AccountChart, options: dict[str, Any]) -> str:
    documents = _choose_part(documents, "Xero", options.pop("part", None))
    tax_type, dates = options.pop("tax_type", None), _parse_dates(options.pop("dates", "uk"))

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
                "*InvoiceDate": f"{document.issued_on:{dates}}",
                "*DueDate": f"{document.issued_on if isinstance(document, CreditNote) else document.due_on:{dates}}",
                "*TaxType": str(tax_type or (taxes[0].label if taxes else "Tax Exempt")),
                "Currency": invoice.currency,
            }
            for text, amount, role, facts in _amounts(document):
                # Xero knows the accounts that it was told of, and no usual one of ours.
                account = chart.account(role if chart.names(role) else "income", facts)
                yield {
                    **about,
                    "*Description": text,
                    "*Quantity": "1",
                    "*UnitAmount": f"{amount:f}",
                    "*AccountCode": account,
                }

    return _table(_XERO, rows())


def _quickbooks(documents: Sequence[Invoice | CreditNote], chart: AccountChart, options: dict[str, Any]) -> str:
    del chart  # QuickBooks takes the account from the item
    item, tax_code = str(options.pop("item", "AI usage")), str(options.pop("tax_code", ""))
    dates = _parse_dates(options.pop("dates", "uk"))
    rows: list[dict[str, str]] = []
    documents = _in_one_currency(documents, options.pop("currency", None))
    for document in _choose_part(documents, "QuickBooks", options.pop("part", None)):
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
                "*Invoice date": f"{document.issued_on:{dates}}",
                "*Due date": f"{due:{dates}}",
                "Service Date": f"{last:{dates}}",
                "Item(Product/Service)": item,
                "Item Description": text,
                "Item Quantity": "1",
                "Item Rate": f"{amount:f}",
                "*Item Amount": f"{amount:f}",
                "Item tax code": tax_code,
                "Memo": f"{invoice.account} {invoice.period.label}",
            }
            for text, amount, *_ in _amounts(document)
        ]
    return _table(_QUICKBOOKS, rows)


def _choose_part(
    documents: Sequence[Invoice | CreditNote], program: str, asked: object
) -> Sequence[Invoice | CreditNote]:
    """The documents of one file, none cut in two; of several files those of the one that is asked for.

    Raises:
        ConfigurationError: nobody said which of several files, there is no such one, or a document is too long for any.
    """
    most, most_rows = _MOST[program]
    most_rows, told = (10**9, "") if most_rows is None else (most_rows, f" and {counted(most_rows, 'row')}")
    parts: list[list[Invoice | CreditNote]] = [[]]
    rows = 0
    for document in documents:
        size = sum(1 for _ in _amounts(document))
        if size > most_rows:
            raise ConfigurationError(
                f"{program} takes {counted(most_rows, 'row')} a file, and {document.number} alone has {size:,}: bill "
                "it with fewer lines (lines_by=, --lines-by)."
            )
        if len(parts[-1]) == most or rows + size > most_rows:
            parts.append([])
            rows = 0
        parts[-1].append(document)
        rows += size
    named = {str(at): part for at, part in enumerate(parts, 1)}
    if asked is None and len(parts) == 1:
        return parts[0]
    if str(asked) not in named:
        raise ConfigurationError(
            f"{program} takes {counted(most, 'document')}{told} a file; this period "
            f"makes {counted(len(parts), 'file')}. Say which: options={{'part': 1}}, --option part=1."
        )
    return named[str(asked)]


def _in_one_currency(documents: Sequence[Invoice | CreditNote], asked: object) -> list[Invoice | CreditNote]:
    """The documents in a currency: QuickBooks' file does not say in which one it is."""
    by: dict[str, list[Invoice | CreditNote]] = {}
    for one in documents:
        by.setdefault((one.invoice if isinstance(one, CreditNote) else one).currency, []).append(one)
    if asked is None and len(by) > 1:
        raise ConfigurationError(
            f"QuickBooks' file does not say its currency, and there are documents in {', '.join(sorted(by))}: make a "
            f"file for each (options={{'currency': {min(by)!r}}}, --option currency={min(by)})."
        )
    return by.get(str(asked), []) if asked is not None else list(documents)


#: Columns of amounts, which are ours; any other text may be a name that a spreadsheet would run.
_AMOUNTS = frozenset({"*UnitAmount", "Item Rate", "*Item Amount"})


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: cell if name in _AMOUNTS else plain_text(cell) for name, cell in row.items()})
    return text.getvalue()
