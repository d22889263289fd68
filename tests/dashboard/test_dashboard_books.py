"""Invoices, credit notes, closed periods and reconciliations in the dashboard: what is filed, and nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.billing import (
    close_period,
    closed_periods,
    credit_notes,
    draft_invoice,
    find_invoice,
    issue_invoice,
    make_einvoice,
)
from tokenmeter.periods import parse_period
from tokenmeter.reconciliation import reconciliations


def figures(row):
    """The cells of a row as decimals; None for what is no number."""
    texts = (re.sub(r"[,$]|( / 1M)| [A-Z]{3}$", "", cell.strip()) for cell in row.locator("td").all_inner_texts())
    return [Decimal(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None for text in texts]


def test_an_invoice_multiplies_out_and_leads_to_the_calls_it_bills(filed, serve, browse):
    page = browse(f"{serve(filed).url}/invoices")
    assert [row.inner_text() for row in page.locator("tbody th").all()] == ["INV-00002", "INV-00001"]
    assert "paid" in page.locator("tbody tr").last.inner_text()
    page.get_by_role("link", name="INV-00001").click()
    invoice = find_invoice(filed.store, "INV-00001")
    rows = page.get_by_role("region", name="Lines as a table").locator("tbody tr").all()
    assert len(rows) == len(invoice.lines)
    for row, line in zip(rows, invoice.lines, strict=True):
        _, quantity, _, price, _, exact, amount = figures(row)
        if line.unpriced:
            assert "unpriced" in row.inner_text()
            assert (price, exact, amount) == (None, None, None)
        else:
            assert quantity * price / 1_000_000 * Decimal("1.05") == exact
            assert exact.quantize(Decimal("0.01")) == amount
    sums = page.locator(".sums").inner_text()
    assert f"total\t{invoice.total:,f} USD" in sums
    assert "left to pay\t0.00 USD" in sums
    assert ": wire 7, by " in page.locator("section", has_text="What happened since").inner_text()
    page.get_by_role("link", name="The calls").click()
    page.wait_for_url("**/entries?*team=search*")
    month = parse_period("last-month")  # early in a month the days before it are in it, too
    billed = [one for one in filed.entries() if one.attribution.team == "search" and one.occurred_at < month.end]
    assert page.locator("tbody tr").count() == len(billed) >= 3  # the late one, too


def test_documents_can_be_downloaded_as_they_are_filed(filed, serve, browse):
    served = serve(filed)
    invoice, (note,) = find_invoice(filed.store, "INV-00002"), credit_notes(filed.store)
    page = browse(f"{served.url}/invoices/INV-00002")
    with page.expect_download() as download:
        page.get_by_role("link", name="PDF").click()
    assert download.value.suggested_filename == "INV-00002.pdf"
    with open(download.value.path(), "rb") as file:  # noqa: PTH123 - a path of playwright's
        assert file.read() == invoice.to_pdf()
    for path, content in (
        ("/printed/html/INV-00002", invoice.to_html()),
        ("/printed/csv/INV-00002", invoice.to_csv()),
        ("/printed/json/INV-00002", invoice.to_json()),
        ("/printed/html/CN-00001", note.to_html()),
        ("/printed/json/CN-00001", note.to_json()),
        ("/printed/xlsx/INV-00002", invoice.to_xlsx()),
        ("/printed/xlsx/CN-00001", note.to_xlsx()),
        ("/periods/1.json", closed_periods(filed.store)[0].document.body),
    ):
        status, headers, body = served.get(path, binary=isinstance(content, bytes))
        assert (status, body) == (200, content), path
        assert headers["content-disposition"].startswith("attachment")


def test_an_electronic_invoice_can_be_downloaded_or_says_what_the_settings_lack(filed, serve):
    seller = {"name": "Platform GmbH", "country": "DE", "city": "Berlin", "postcode": "10115", "tax_id": "DE123456789"}
    seller |= {
        "contact": "Kim Lee",
        "phone": "+49 30 1234567",
        "email": "kim@x.example",
        "iban": "DE89370400440532013000",
    }
    seller |= {"electronic_address": "bills@platform.example"}
    buyer = {"name": "Ada", "country": "DE", "city": "Bonn", "postcode": "53111", "reference": "04011000-12345-34"}
    buyer |= {"electronic_address": "in@search.example"}
    profile = {
        "seller": seller,
        "taxes": [{"name": "VAT", "rate": "0.19"}],
        "buyers": {"member": {"ada": buyer}},
    }
    draft = draft_invoice(filed.store, member="ada", period=parse_period("last-month"), profile=profile)
    made = issue_invoice(filed.store, draft, allow_unpriced=True, allow_overlap="as an electronic one")
    served = serve(filed)
    assert served.get(f"/printed/xrechnung/{made.number}")[::2] == (200, make_einvoice(made, "xrechnung").decode())
    status, headers, body = served.get(f"/printed/factur-x/{made.number}", binary=True)
    assert (status, headers["content-type"], body[:5]) == (200, "application/pdf", b"%PDF-")
    name, xml = pytest.importorskip("facturx").get_xml_from_pdf(body, check_xsd=True)
    assert (name, made.number.encode() in xml) == ("factur-x.xml", True)
    status, _, told = served.get("/printed/xrechnung/INV-00002")
    assert (status, "BT-40 seller.country" in told) == (400, True)


def test_a_closed_period_tells_what_came_in_late_until_a_closing_takes_it_up(filed, serve, browse):
    served = serve(filed)
    page = browse(f"{served.url}/periods", width=390)
    row = page.locator("tbody tr").inner_text()
    assert "waiting" in row
    assert "*" in row  # its column of what has no price is not shown on a phone
    page.locator("tbody th a").click()
    (closed,) = closed_periods(filed.store)
    facts = page.locator("section", has_text="At its closing").inner_text()
    for told in (closed.document.anchor, closed.document.hash, f"${closed.billed_cost.normalize():f}"):
        assert told in facts
    assert "$0.0262 waiting" in page.locator("section", has_text="What came in late").inner_text()  # 0.02625
    page.get_by_role("link", name="INV-00001").click()
    page.wait_for_url("**/invoices/INV-00001")
    month = parse_period("this-month")
    close_period(filed.store, month, now=month.end)
    page.goto(f"{served.url}/periods/1")
    late = page.locator("section", has_text="What came in late").inner_text()
    assert f"billed as a correction in {month.label}" in late
    assert "waiting" not in late


def test_a_reconciliation_explains_its_differences_and_leads_to_our_side(filed, serve, browse, record):
    page = browse(f"{serve(filed).url}/reconciliations")
    assert [row.locator("td").last.inner_text() for row in page.locator("tbody tr").all()] == [
        "agrees",
        "needs attention",
    ]
    page.locator("tbody th a").last.click()
    outcome, _ = reconciliations(filed.store)
    by_cause = page.get_by_role("region", name="Differences by cause").locator("tbody tr")
    by_cause.first.wait_for()
    causes = by_cause.all()
    assert [row.locator("th").inner_text() for row in causes] == [one.replace("_", " ") for one in outcome.by_cause()]
    rows = page.get_by_role("region", name="Differences as a table").locator("tbody tr")
    assert rows.count() == len(outcome.discrepancies)
    day = (parse_period("last-month").start + timedelta(days=9)).date().isoformat()
    mine = rows.filter(has_text="gpt-5-mini").filter(has_text=day)
    assert mine.locator("time").inner_text() == day
    mine.locator("th a").click()
    page.wait_for_url(f"**/entries?*since={day}*model=gpt-5-mini*")
    assert page.locator("tbody tr").count() == 3


def test_empty_pages_show_the_command_that_fills_them(meter, serve):
    served = serve(meter)
    for path, command in (
        ("/invoices", "tokenmeter invoice issue"),
        ("/credit-notes", "tokenmeter invoice credit"),
        ("/periods", "tokenmeter period close"),
        ("/reconciliations", "tokenmeter reconcile openai"),
    ):
        assert command in served.get(path)[2], path


def test_what_is_not_there_is_said(filed, serve):
    served = serve(filed)
    for path in (
        *("/invoices/INV-00009", "/invoices/%3Cb%3E", "/credit-notes/INV-00001", "/periods/7", "/periods/7.json"),
        *("/reconciliations/x", "/reconciliations/x.json", "/printed/exe/INV-00001", "/printed/pdf/none"),
        "/printed/exe/CN-00001",
    ):
        status, _, body = served.get(path)
        assert (status, "<b>" in body) == (404, False), path
        assert "There is no" in body, path
    assert served.get("/invoices?page=0")[0] == 400


def test_hostile_names_are_text_and_nothing_is_written(filed, serve, hostile):
    served = serve(filed)
    before = list(filed.store.documents()), filed.store.verify()
    (first, _), (note,) = reconciliations(filed.store), credit_notes(filed.store)
    for path in (
        *(
            "/invoices",
            "/invoices/INV-00002",
            "/credit-notes",
            f"/credit-notes/{note.number}",
            "/periods",
            "/periods/1",
        ),
        f"/reconciliations/{first.document.document_id}",
    ):
        status, _, body = served.get(path)
        assert (status, "<img" in body, hostile in body) == (200, False, False), path
        assert "&lt;img src=x" in body, path
    assert (list(filed.store.documents()), filed.store.verify()) == before


@pytest.mark.parametrize("meter", ["postgres"], indirect=True)
def test_a_ledger_on_a_server_is_shown_the_same(filed, serve, record):
    """Every page, and a new call is told."""
    served = serve(filed)
    entry = record(who={"member": "ada"})
    (outcome, _), (note,) = reconciliations(filed.store), credit_notes(filed.store)
    calls = f">{filed.report(period='last-30d').totals.requests}<"
    for path, shown in (
        *(("/", calls), ("/explore?by=member", calls), ("/entries?member=ada", entry.entry_id)),
        *((f"/entries/{entry.entry_id}", "platform"), ("/budgets", "ada-monthly"), ("/health", "server version")),
        *(("/invoices", "INV-00002"), ("/invoices/INV-00001", "wire 7"), (f"/credit-notes/{note.number}", "0.10")),
        *(("/periods", "waiting"), ("/periods/1", "waiting"), ("/reconciliations", "needs attention")),
        (f"/reconciliations/{outcome.document.document_id}", "unrecorded"),
    ):
        status, _, body = served.get(path)
        assert (status, shown in body) == (200, True), path
    for path, status in (("/?member=%00", 400), ("/entries?before=%00", 200), ("/entries/%00", 404)):
        assert served.get(path)[0] == status, path
    before = served.get("/")[2]
    record(who={"member": "newcomer"})
    assert "newcomer" not in before
    assert "newcomer" in served.get("/")[2]


def test_many_invoices_are_paged(meter, serve, record):
    """Also with a series that has to be escaped in a URL."""
    at = datetime(2026, 1, 10, tzinfo=UTC)
    for number in range(60):
        record(at=at + timedelta(minutes=number), who={"team": f"team {number}"}, input=100_000)
    close_period(meter.store, "2026-01")
    profile = {"series": "2026/?#", "seller": {"name": "Platform"}}
    for number in range(60):
        issue_invoice(
            meter.store,
            draft_invoice(meter.store, team=f"team {number}", period="2026-01", profile=profile),
            force=True,
        )
    served = serve(meter)
    seen, path = [], "/invoices"
    while path:
        body = served.get(path)[2]
        seen += re.findall(r'<th scope="row"[^>]*><a href="([^"]+)', body)
        older = re.search(r'rel="next" href="([^"]+)"', body)
        path = older[1] if older else None
    assert len(set(seen)) == len(seen) == 60
    assert "Invoice 2026/?#00060" in served.get(seen[0])[2]


def test_what_one_buyer_paid_too_much_is_not_taken_off_what_others_owe(filed, serve):
    owed = filed.find_invoice("INV-00002").balance
    assert owed > 0
    filed.record_payment("INV-00001", "15.00", reference="twice")
    told = re.sub("<[^>]+>", "", serve(filed).get("/invoices")[2])
    assert f"left to pay: {owed:.2f} USD on 1 invoice; to give back: 15.00 USD on 1 invoice" in told


def test_usage_without_a_price_that_came_in_late_is_told_as_usage(filed, record, serve, browse):
    (closed,) = closed_periods(filed.store)
    close_period(filed.store, parse_period("this-month"), now=parse_period("this-month").end)
    record(at=closed.period.start + timedelta(days=1), model="own", input=70_000)
    served = serve(filed)
    page = browse(f"{served.url}/periods", width=1280)
    assert "usage waiting, $0.00 of it priced" in page.locator("tbody").inner_text()
    page.goto(f"{served.url}/periods/1")
    late = page.locator("section", has_text="What came in late").inner_text()
    assert "usage waiting for the next closing, $0.00 of it priced" in late
