"""Invoices as HTML, CSV and PDF: any name, thousands of lines, always the same bytes."""

import csv
import io
import re
import shutil
import subprocess
from decimal import Decimal
from itertools import combinations

import pytest

from tokenmeter.billing import (
    close_period,
    credit_invoice,
    draft_invoice,
    find_invoice,
    issue_invoice,
    record_payment,
    void_invoice,
)
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import total

NAME = "Łódź & Söhne <b>GmbH</b> Ελλάς Київ"


@pytest.fixture
def issued(store, book, december):
    book("10", member="ada", multipliers={"platform": "1.05"})
    book("0.004", member="ada", model="=cmd()", meter="output")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": NAME, "payment": ["IBAN DE00"]}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
    return issue_invoice(store, draft_invoice(store, member="ada", period="2026-11", profile=profile))


def test_html_is_one_page_that_prints_on_a4_and_escapes_names(issued):
    page = issued.to_html()
    assert "@page { size: A4" in page
    assert "Łódź &amp; Söhne &lt;b&gt;GmbH&lt;/b&gt; Ελλάς Київ" in page
    assert "<script" not in page
    assert "http" not in page
    for shown in ("Invoice INV-00001", "Subtotal", "Rounding", "VAT 19% on 10.00", "11.90", issued.document.hash):
        assert shown in page


def test_every_line_in_another_currency_can_be_redone_from_the_paper_alone(store, book):
    book("10", member="ada", quantity=8_000_000, multipliers={"platform": "1.00"})
    book("0.5", member="ada", quantity=1_000_000, meter="output")
    rate = {"rate": "0.92", "source": "ECB"}
    bill = draft_invoice(store, member="ada", period="2026-11", currency="EUR", exchange_rate=rate)
    assert [row.note for row in bill.to_sheet().rows] == [
        "8,000,000 x 1.25 / 1M x platform 1 = 10 USD, x 0.92 = 9.2 EUR",
        "1,000,000 x 0.5 / 1M = 0.5 USD, x 0.92 = 0.46 EUR",
    ]
    assert draft_invoice(store, member="ada", period="2026-11").to_sheet().rows[1].note == ""


def test_drafts_and_voided_invoices_are_stamped(issued, store):
    assert "DRAFT" in draft_invoice(store, member="ada", period="2026-11").to_html()
    assert "VOID" in void_invoice(store, issued, "x").to_html()
    assert 'class="stamp"' not in issued.to_html()


def test_csv_columns_add_up_to_net_taxes_and_the_ledger(issued):
    rows = list(csv.DictReader(io.StringIO(issued.to_csv())))
    assert [row["kind"] for row in rows] == ["usage", "usage", "rounding", "tax"]
    assert rows[0]["model"] == "'=cmd()"
    sums = {
        name: total(Decimal(row[name] or 0) for row in rows) for name in ("amount", "tax_amount", "billed_cost_usd")
    }
    totals = issued.totals
    assert sums == {"amount": totals.net, "tax_amount": totals.taxes[0].amount, "billed_cost_usd": totals.ledger_cost}
    assert {row["invoice"] for row in rows} == {"INV-00001"}
    assert {row["member"] for row in rows} == {"ada"}


def test_the_same_invoice_is_the_same_pdf_whatever_happened_since(issued, store, tmp_path):
    """Byte for byte: drawn again, read again from the ledger, after payment, and in a file."""
    pytest.importorskip("typst")
    first = issued.to_pdf()
    assert first.startswith(b"%PDF-")
    assert issued.to_pdf() == first
    assert find_invoice(store, issued.number).to_pdf() == first
    assert record_payment(store, issued).to_pdf() == first
    assert issued.to_pdf(tmp_path / "invoice.pdf").read_bytes() == first


def test_a_pdf_embeds_every_font_and_says_that_it_is_pdf_a_3(store, book, december):
    pypdf = pytest.importorskip("pypdf")
    book("10", member="ada")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": "Łódź & Söhne <b>GmbH</b> Ελλάς Київ شركة"}}
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11", profile=profile))
    reader = pypdf.PdfReader(io.BytesIO(bill.to_pdf()))
    assert "OutputIntents" in str(reader.trailer["/Root"])
    assert "<pdfaid:part>3</pdfaid:part>" in reader.trailer["/Root"]["/Metadata"].get_data().decode()
    fonts = [font.get_object() for page in reader.pages for font in page["/Resources"]["/Font"].values()]
    for font in fonts:
        descriptor = font["/DescendantFonts"][0].get_object()["/FontDescriptor"]
        assert {"/FontFile2", "/FontFile3"} & set(descriptor)
    assert "Łódź & Söhne <b>GmbH</b> Ελλάς Київ" in reader.pages[0].extract_text()


@pytest.mark.parametrize(
    ("name", "font"),
    [
        ("北京智能搜索科技有限公司", "NotoSansCJK"),
        ("検索株式会社ひらがなカタカナ", "NotoSansCJK"),
        ("검색 주식회사", "NotoSansCJK"),
        ("شركة البحث الذكي المحدودة", "NotoSansArabic"),
        ("Поиск Київ Ελλάς Łódź İstanbul Việt Nam", "NotoSans"),
    ],
)
def test_a_buyer_of_any_script_is_drawn_in_embedded_letters(store, book, december, name, font):
    pypdf = pytest.importorskip("pypdf")
    if font == "NotoSansCJK":
        pytest.importorskip("manimgx_fonts_cjk")
    book("10", member="ada")
    close_period(store, "2026-11", now=december)
    profile = {"buyers": {"member": {"ada": {"name": name, "address": [name], "cost_centre": name}}}}
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11", profile=profile))
    page = pypdf.PdfReader(io.BytesIO(bill.to_pdf())).pages[0]
    drawn = [found.get_object() for found in page["/Resources"]["/Font"].values()]
    assert any(font in one["/BaseFont"] for one in drawn)
    for one in drawn:
        assert {"/FontFile2", "/FontFile3"} & set(one["/DescendantFonts"][0].get_object()["/FontDescriptor"])
    if font != "NotoSansArabic":  # a reader gives Arabic back in the order in which it is drawn
        assert page.extract_text().replace("\n", "").count(name) == 3


WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
BOX = re.compile(r'<word xMin="([\d.]+)" yMin="([\d.]+)" xMax="([\d.]+)" yMax="([\d.]+)">(.*?)</word>')


def test_the_longest_names_stay_in_their_columns(store, book, december, tmp_path):
    """Of every two words on the page none is printed over the other, and none beside the paper."""
    pytest.importorskip("typst")
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("pdftotext is not on this machine")
    factors = {"discount": "0.123456789", "platform": "1.25"}
    book("99999999.123456789012", team=WORD * 2, member=WORD, model=f"ft:gpt-5:{'x' * 80}:1", multipliers=factors)
    close_period(store, "2026-11", now=december)
    tax = {"name": "Mehrwertsteuer zum ermäßigten Satz nach § 12 Absatz 2 Nummer 1 UStG", "rate": "0.07"}
    seller = {"name": WORD.upper(), "email": f"{'a' * 60}@{'b' * 60}.example", "payment": [WORD]}
    profile = {"seller": seller, "taxes": [tax], "payment_terms": WORD, "notes": [WORD * 3]}
    bill = draft_invoice(store, team=WORD * 2, period="2026-11", lines_by="member", profile=profile)
    told = subprocess.run([reader, "-bbox", bill.to_pdf(tmp_path / "long.pdf"), "-"], capture_output=True, check=True)
    pages = [BOX.findall(page) for page in told.stdout.decode().split("<page ")]
    words = [(at, *map(float, box[:4]), box[4]) for at, page in enumerate(pages) for box in page]
    assert len(words) > 60
    assert [one for one in words if one[1] < 0 or one[3] > 595.3] == []
    over = [
        (one[5], other[5])
        for one, other in combinations(words, 2)
        if one[0] == other[0]
        and min(one[3], other[3]) - max(one[1], other[1]) > 1  # across
        and min(one[4], other[4]) - max(one[2], other[2]) > (one[4] - one[2]) / 2  # and down
    ]
    assert over == []


def test_a_letter_that_no_font_has_is_named(store, book, december):
    book("10", member="ada")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11", buyer="\U0001f9ff\U00013000")
    with pytest.raises(ConfigurationError, match="No font on this machine has"):
        bill.to_pdf()
    assert "\U0001f9ff" in bill.to_html()


def test_thousands_of_lines_make_many_pages(store, book, december):
    pytest.importorskip("typst")
    pypdf = pytest.importorskip("pypdf")
    for count in range(2500):
        book("0.01", member="ada", model=f"model-{count:04}")
    close_period(store, "2026-11", now=december)
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"), force=True)
    assert bill.total == 25
    assert bill.to_html().count("<tr>") > 2500
    assert len(pypdf.PdfReader(io.BytesIO(bill.to_pdf())).pages) > 30


def test_a_row_stands_on_one_page_and_a_long_name_breaks_where_its_parts_end(store, book, december):
    pytest.importorskip("typst")
    pypdf = pytest.importorskip("pypdf")
    for count in range(60):
        name = f"member-{count:03}-with-a-long-name@department.example.com"
        book("1", team="search", member=name, model=f"provider/gemini-{count:03}-pro-preview-with-a-long-name-2026-11")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, team="search", period="2026-11", lines_by="member")
    pages = [one.extract_text() for one in pypdf.PdfReader(io.BytesIO(bill.to_pdf())).pages]
    assert len(pages) > 2
    found = [len(re.findall(r"member-(?:\s*\w|-|\s|@|\.|\u200b)*?\.\s*\u200b?\s*com", page)) for page in pages]
    assert sum(found) == 60
    assert [page.count("member-") for page in pages] == found
    for word in ("member", "long", "name", "department", "example", "preview"):
        assert sum(len(re.findall(rf"\b{word}\b", page)) for page in pages) >= 60


def test_an_invoice_of_nothing_says_so(store, december):
    close_period(store, "2026-11", now=december)
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"), force=True)
    assert "No usage in this period." in bill.to_html()
    if pytest.importorskip("typst"):
        assert bill.to_pdf().startswith(b"%PDF-")


def test_a_credit_note_is_a_page_as_well(issued, store):
    note = credit_invoice(store, issued, "1.50", "outage <12th>")
    assert "Reason: outage &lt;12th&gt;" in note.to_html()
    assert "Credit note CN-00001" in note.to_html()
    pytest.importorskip("typst")
    assert note.to_pdf() == note.to_pdf()
