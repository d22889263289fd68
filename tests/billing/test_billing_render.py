"""Invoices as HTML, CSV and PDF: any name, thousands of lines, always the same bytes."""

import base64
import contextlib
import csv
import io
import re
import zlib
from decimal import Decimal

import pytest

from tokenmeter.billing import close_period, draft_invoice

NAME = "Łódź & Söhne <b>GmbH</b> Ελλάς Київ 株式会社"


@pytest.fixture
def issued(store, book, december):
    book("10", member="ada", multipliers={"platform": "1.05"})
    book("0.004", member="ada", model="=cmd()", meter="output")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": NAME, "payment": ["IBAN DE00"]}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
    return draft_invoice(store, member="ada", period="2026-11", profile=profile).issue()


def unicode_maps(pdf):
    """The parts of a PDF that say which glyph is which character, inflated."""
    found = b""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\n?endstream", pdf, re.DOTALL):
        for decode in (zlib.decompress, lambda raw: zlib.decompress(base64.a85decode(raw.strip().removesuffix(b"~>")))):
            with contextlib.suppress(ValueError, zlib.error):
                content = decode(stream)
                found += content if b"beginbfchar" in content or b"beginbfrange" in content else b""
    return found.upper()


def test_html_is_one_page_that_prints_on_a4_and_escapes_names(issued):
    page = issued.to_html()
    assert "@page { size: A4" in page
    assert "Łódź &amp; Söhne &lt;b&gt;GmbH&lt;/b&gt; Ελλάς Київ 株式会社" in page
    assert "<script" not in page
    assert "http" not in page
    for shown in ("Invoice INV-00001", "Subtotal", "Rounding", "VAT 19 % on 10.00", "11.90", issued.document.hash):
        assert shown in page


def test_drafts_and_voided_invoices_are_stamped(issued, store):
    assert "DRAFT" in draft_invoice(store, member="ada", period="2026-11").to_html()
    assert "VOID" in issued.void("x").to_html()
    assert 'class="stamp"' not in issued.to_html()


def test_csv_has_lines_then_totals_and_no_formulas(issued):
    rows = list(csv.DictReader(io.StringIO(issued.to_csv())))
    assert [row["kind"] for row in rows] == ["usage", "usage", "subtotal", "credits", "rounding", "net", "tax", "total"]
    assert rows[0]["model"] == "'=cmd()"
    lines = [row for row in rows if row["line"]]
    exact = sum(Decimal(row["billed_cost_usd"]) for row in lines)
    assert exact == Decimal(rows[-1]["billed_cost_usd"]) == Decimal("10.004")
    assert {row["invoice"] for row in rows} == {"INV-00001"}


def test_the_same_invoice_is_the_same_pdf_whatever_happened_since(issued, tmp_path):
    """Byte for byte: drawn again, read again from the ledger, after payment, and in a file."""
    pytest.importorskip("reportlab")
    first = issued.to_pdf()
    assert first.startswith(b"%PDF-")
    assert issued.to_pdf() == first
    assert issued.refreshed().to_pdf() == first
    assert issued.mark_paid().to_pdf() == first
    assert issued.to_pdf(tmp_path / "invoice.pdf").read_bytes() == first


def test_a_pdf_embeds_fonts_for_names_in_other_scripts(issued):
    pytest.importorskip("reportlab")
    pdf = issued.to_pdf()
    assert b"Vera" in pdf
    assert b"HeiseiMin-W3" in pdf
    assert b"0141" in unicode_maps(pdf)  # L with stroke


def test_thousands_of_lines_make_many_pages(store, book, december):
    pytest.importorskip("reportlab")
    for count in range(2500):
        book("0.01", member="ada", model=f"model-{count:04}")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11").issue()
    assert bill.total == 25
    assert bill.to_html().count("<tr>") > 2500
    assert len(re.findall(rb"/Type /Page\b", bill.to_pdf())) > 30


def test_an_invoice_of_nothing_says_so(store, december):
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11").issue()
    assert "No usage in this period." in bill.to_html()
    if pytest.importorskip("reportlab"):
        assert bill.to_pdf().startswith(b"%PDF-")


def test_a_credit_note_is_a_page_as_well(issued):
    note = issued.credit("1.50", "outage <12th>")
    assert "Reason: outage &lt;12th&gt;" in note.to_html()
    assert "Credit note CN-00001" in note.to_html()
    pytest.importorskip("reportlab")
    assert note.to_pdf() == note.to_pdf()
