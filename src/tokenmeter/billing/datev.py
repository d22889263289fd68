"""DATEV's Buchungsstapel: an EXTF file of documents in one currency, for a German tax adviser's books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

from tokenmeter.billing.journal import JournalEntry
from tokenmeter.billing.period import days_of
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.money import EXACT, ZERO, negate, round_money, total
from tokenmeter.periods import Period, parse_instant

_HEAD = (
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
_TEXT = 60
_NUMBER = 36
_TEXT_COLUMNS = frozenset({1, 2, 5, 8, 10, 11, 13, 36, 37})
_KOST1, _DUE = 36, 116


def write_datev(entries: Sequence[JournalEntry], period: Period, options: dict[str, Any]) -> bytes:
    """The file; takes what it uses out of `options`.

    Raises:
        ConfigurationError: what DATEV cannot take; says which.
    """
    consultant, client = str(options.pop("consultant", "1001")), str(options.pop("client", "1"))
    digits = _parse_digits(options.pop("account_digits", 4))
    first, last = days_of(period)
    start = _find_year(options.pop("year_start", None), first, last)
    name = str(options.pop("name", f"tokenmeter {period.label}"))[:30]
    asked = options.pop("currency", None)
    currency = str(asked or "EUR")
    booked = [one for one in entries if one.kind != "provider_cost" and one.postings]
    strange = sorted({one.postings[0].currency for one in booked} - {currency})
    if strange and asked is None:
        raise ConfigurationError(
            f"This Buchungsstapel is in {currency}, and there are documents in {', '.join(strange)}: make a file for "
            f"each currency (options={{'currency': {strange[0]!r}}}, --option currency={strange[0]})."
        )
    booked = [one for one in booked if one.postings[0].currency == currency]
    _check_accounts(booked, digits)
    instead = options.pop("replace", None)
    made = f"{utcnow():%Y%m%d%H%M%S}000"
    # EXTF 700, category 21: the Buchungsstapel in version 13 of its format.
    fields: list[str] = [
        '"EXTF"', "700", "21", '"Buchungsstapel"', "13", made, "", '"RE"', '""', '""', consultant, client,
        f"{start:%Y%m%d}", str(digits), f"{first:%Y%m%d}", f"{last:%Y%m%d}", f'"{_flatten(name)}"', '""', "1", "0", "0",
        f'"{currency}"', "", '""', "", "", '""', "", "", '""', '""',
    ]  # fmt: skip
    rows = [row for entry in booked for row in _make_rows(entry)]
    text = "\r\n".join([";".join(fields), ";".join(_HEAD), *rows, ""])
    return _encode(text, None if instead is None else str(instead))


def _parse_digits(value: object) -> int:
    if not str(value).isdecimal() or not 4 <= int(str(value)) <= 9:  # noqa: PLR2004 - DATEV's own limits
        raise ConfigurationError(f"account_digits is a number from 4 to 9, not {value!r}.")
    return int(str(value))


def _find_year(start: object, first: date, last: date) -> date:
    """The first day of the fiscal year in which a file lies."""
    if start is None:
        year = date(first.year, 1, 1)
    else:
        year = start if isinstance(start, date) else parse_instant(str(start)).date()
    if not year <= first <= last < date(year.year + 1, year.month, min(year.day, 28)):
        raise ConfigurationError(
            f"A Buchungsstapel lies within one fiscal year, which begins on {year}: export shorter periods, or give "
            "the year's first day (options={'year_start': ...}, --option year_start=2026-07-01)."
        )
    return year


def _encode(text: str, instead: str | None) -> bytes:
    """The text in DATEV's letters; those that it lacks are told, or replaced where that is asked for."""
    if instead is not None:
        text = "".join(one if _is_known(one) else instead for one in text)
    try:
        return text.encode("cp1252")
    except UnicodeEncodeError as error:
        letter = text[error.start]
        line = text[: error.start].count("\r\n") + 1
        raise ConfigurationError(
            f"DATEV's files are in Windows-1252, which has no {letter!r} (line {line}): give the buyer another name "
            "before it is billed, or have such letters replaced (options={'replace': '?'}, --option replace=?)."
        ) from None


def _is_known(letter: str) -> bool:
    try:
        letter.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


#: A usual number for each role, for who is told that one is missing.
_USUAL = {"receivable": "10000", "income": "8400", "rounding": "8400", "bank": "1200", "bad_debts": "2400"}


def _check_accounts(entries: Sequence[JournalEntry], digits: int) -> None:
    """Refuse accounts that are no numbers; taxes are on those of the income.

    Raises:
        ConfigurationError: some are; says of which roles.
    """
    wrong = {
        one.role: one.account
        for entry in entries
        for one in entry.postings
        if one.role != "tax" and not (one.account.isdigit() and digits <= len(one.account) <= 9)  # noqa: PLR2004 - DATEV's own limit
    }
    if wrong:
        told = ", ".join(f"{account!r} for {role}" for role, account in wrong.items())
        wanted = {role: _USUAL[role].ljust(digits, "0") for role in wrong}
        options = " ".join(f"--account {role}={number}" for role, number in wanted.items())
        raise ConfigurationError(
            f"DATEV's accounts are numbers of {digits} to 9 digits, not {told}: give such as "
            f"accounts={wanted} ({options})."
        )


def _make_rows(entry: JournalEntry) -> Iterator[str]:
    """One row for each posting against the first: the customer's, the bank's or the expense account.

    Tax is not posted by itself: the income accounts carry their rate, so their amounts are gross.
    """
    main, *others = entry.postings
    taxed = [one for one in others if one.role != "tax"]
    taxes = EXACT.subtract(negate(main.amount), total(one.amount for one in taxed))
    net = total(one.amount for one in taxed)
    left = taxes
    for at, one in enumerate(taxed):
        part = EXACT.divide(EXACT.multiply(taxes, one.amount), net) if net else ZERO
        # The last one takes what rounding left, so that the rows come to what the customer owes.
        share = left if at == len(taxed) - 1 else round_money(part, one.currency)
        left = EXACT.subtract(left, share)
        gross = EXACT.add(one.amount, share)
        row = [""] * len(_HEAD)
        row[0] = f"{round_money(gross.copy_abs(), one.currency):f}".replace(".", ",")
        row[1] = "S" if gross < 0 else "H"  # of the customer's account, which stands against it
        row[2] = one.currency
        row[6], row[7] = main.account, one.account
        # No year: it follows from the fiscal year in the heading.
        row[9] = f"{entry.on:%d%m}"
        row[10] = entry.link[:_NUMBER]
        row[13] = f"{entry.payee}: {entry.text}"[:_TEXT]
        row[_KOST1] = entry.facts.get("cost_centre", "")[:36]
        due = entry.facts.get("due", "")
        row[_DUE] = "".join(reversed(due.split("-"))) if due else ""
        yield ";".join(f'"{_flatten(cell)}"' if at in _TEXT_COLUMNS else cell for at, cell in enumerate(row))


def _flatten(text: str) -> str:
    return " ".join(text.replace('"', '""').split())
