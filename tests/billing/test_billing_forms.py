"""Documents as spreadsheets and statements as pages: figures are numbers that add up, names and ids are text."""

from __future__ import annotations

import csv
import io
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.billing import (
    age_balances,
    close_period,
    credit_invoice,
    draft_invoice,
    draw_statement,
    issue_invoice,
    record_payment,
)
from tokenmeter.money import multiply, total

openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("xlsxwriter")


@pytest.fixture
def issued(store, book, december):
    book("10.123456789012", member="00123", multipliers={"platform": "1.05"})
    book("2.5", member="00123", model="=cmd()", meter="output")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": "Platform GmbH"}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
    return issue_invoice(store, draft_invoice(store, member="00123", period="2026-11", profile=profile))


def sheet_of(content):
    """Rows as heading -> value, the row of sums, and the formulas of that row."""
    values = list(openpyxl.load_workbook(io.BytesIO(content), data_only=True).active.values)
    formulas = list(openpyxl.load_workbook(io.BytesIO(content)).active.values)
    heads = values[0]
    rows = [dict(zip(heads, row, strict=True)) for row in values[1:]]
    return rows[:-1], rows[-1], dict(zip(heads, formulas[-1], strict=True))


def test_an_invoice_as_a_workbook_adds_up_and_keeps_ids_and_names_as_text(issued, tmp_path):
    rows, sums, formulas = sheet_of(issued.to_xlsx())
    assert {row["member"] for row in rows} == {"00123"}
    assert "=cmd()" in {row["model"] for row in rows}
    assert rows[0]["billed_cost_usd exact"] in {"10.123456789012", "2.500000000000"}
    assert (sums["amount exact"], sums["tax_amount exact"]) == ("12.620000000000", "2.400000000000")
    assert round(sums["amount"], 2) == float(issued.totals.net)
    assert formulas["amount"].startswith("=SUBTOTAL(109,")
    assert total(Decimal(row["billed_cost_usd exact"] or 0) for row in rows) == issued.totals.ledger_cost
    assert issued.to_xlsx() == issued.to_xlsx(tmp_path / "a.xlsx").read_bytes()


def test_prices_and_factors_are_exact_beside_the_cells_numbers_and_whole_figures_look_whole(store, book, december):
    book("1", quantity=3, team="a")  # a third of a dollar each, which no cell can hold
    close_period(store, "2026-11", now=december)
    content = issue_invoice(store, draft_invoice(store, team="a", period="2026-11")).to_xlsx()
    (row, *_), sums, _ = sheet_of(content)
    assert len(row["list_unit_price_usd exact"]) > 20
    assert multiply(Decimal(row["list_unit_price_usd exact"]), 3) == Decimal(row["computed_cost_usd exact"])
    assert not sums["list_unit_price_usd exact"]
    heads, cells, *_ = openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows()
    formats = {head.value: cell.number_format for head, cell in zip(heads, cells, strict=True)}
    assert (formats["quantity"], formats["multiplier"]) == ("#,##0", "#,##0")  # 3, where "#,##0.##" shows "3."
    assert formats["list_unit_price_usd"].startswith("0.0")


def test_a_credit_note_as_a_workbook(store, issued):
    rows, sums, _ = sheet_of(credit_invoice(store, issued, "1.00", "outage").to_xlsx())
    assert [row["credit_note"] for row in rows] == ["CN-00001", "CN-00001"]
    assert (sums["amount exact"], sums["tax_amount exact"]) == ("1.000000000000", "0.190000000000")


def test_reports_and_entries_as_workbooks(book, store, tmp_path):
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/l.db", config={})
    meter.store.settle(next(iter([book("1.000000000001", at="2026-11-10T12:34:56", team="a")])))
    meter.report(by="team", period="2026-11").to_xlsx(tmp_path / "r.xlsx")
    rows, sums, formulas = sheet_of((tmp_path / "r.xlsx").read_bytes())
    assert (rows[0]["team"], rows[0]["billed_cost exact"], sums["billed_cost exact"]) == (
        "a",
        "1.000000000001",
        "1.000000000001",
    )
    assert formulas["billed_cost"].startswith("=SUBTOTAL(109,")
    meter.export_entries(tmp_path / "e.xlsx", period="2026-11")
    rows, _, _ = sheet_of((tmp_path / "e.xlsx").read_bytes())
    assert rows[0]["occurred_at"] == datetime(2026, 11, 10, 12, 34, 56)  # noqa: DTZ001 - a workbook's own
    meter.close()


@pytest.mark.parametrize("by", [["model"], ["member", "model"], ["model", "sku_meter"]], ids="-".join)
def test_calls_and_tokens_of_a_workbook_have_sums_that_are_the_reports(tmp_path, by):
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/l.db", config={})
    for at in range(1, 6):
        usage = {
            "prompt_tokens": 1_000 * at,
            "completion_tokens": 100 * at,
            "prompt_tokens_details": {"cached_tokens": 300 * at},
            "completion_tokens_details": {"reasoning_tokens": 40 * at},
        }
        body = {"id": f"r{at}", "model": ("gpt-5", "gpt-5-mini")[at % 2], "usage": usage}
        who = {"member": "ab"[at > 2]}
        meter.record(body, provider="openai", endpoint="chat.completions", at=f"2026-11-0{at}", attribution=who)
    report = meter.report(by=by, period="2026-11")
    report.to_xlsx(tmp_path / "r.xlsx")
    rows, sums, formulas = sheet_of((tmp_path / "r.xlsx").read_bytes())
    names = ("input_tokens", "cache_read_input_tokens", "output_tokens", "reasoning_output_tokens", "total_tokens")
    for name in names:
        assert formulas[name].startswith("=SUBTOTAL(109,")
        assert sums[name] == sum(row[name] for row in rows) == getattr(report.totals.usage, name), name
    if "sku_meter" in by:  # one call stands in several rows
        assert not formulas["requests"]
    else:
        assert formulas["requests"].startswith("=SUBTOTAL(109,")
        assert sums["requests"] == report.totals.requests == 5
    assert sums["billed_cost exact"] == f"{report.totals.billed_cost:f}"
    meter.close()


def test_a_statement_has_every_form(store, issued, tmp_path):
    credit_invoice(store, issued, "1.00", "outage")
    record_payment(store, issued, "5", reference="wire <7>")
    statement = draw_statement(
        store, member="00123", period="this-year", basis="invoices", profile={"seller": {"name": "Platform GmbH"}}
    )
    rows = list(csv.DictReader(io.StringIO(statement.to_csv())))
    moved = sum(Decimal(row["charges"] or 0) + Decimal(row["credits"] or 0) for row in rows)
    assert moved == statement.closing - statement.opening == Decimal("8.83")
    assert (rows[0]["description"], rows[-1]["balance"]) == ("Opening balance", "8.83")
    page = statement.to_html()
    assert "Statement of account" in page
    assert "wire &lt;7&gt;" in page
    assert "8.83" in page
    pytest.importorskip("typst")
    assert statement.to_pdf(tmp_path / "s.pdf").read_bytes().startswith(b"%PDF-")
    _, sums, _ = sheet_of(statement.to_xlsx())
    assert (sums["charges exact"], sums["credits exact"]) == ("15.020000000000", "-6.190000000000")


def test_adjustments_are_named_so(store, book):
    book("10", member="ada", at="2026-11-10T10:00")
    book("-3", member="ada", at="2026-11-10T11:00", kind="adjustment", meter="adjustment", quantity=-3)
    book("2", member="ada", at="2026-11-10T12:00", kind="adjustment", meter="adjustment", quantity=2)
    statement = draw_statement(store, member="ada", period="2026-11")
    assert [(line.description, line.charges, line.credits) for line in statement.lines] == [
        ("Usage", 10, 0),
        ("Adjustments", 0, -1),
    ]
    assert statement.closing == 9


@pytest.mark.parametrize(
    ("days", "age"),
    [(0, "not_due"), (30, "not_due"), (31, "days_30"), (61, "days_60"), (91, "days_90"), (200, "older")],
)
def test_open_balances_by_age(store, issued, days, age):
    (found,) = age_balances(store, as_of=issued.issued_on + timedelta(days=days))
    assert (found.total, getattr(found, age)) == (issued.total, issued.total)
    record_payment(store, issued, "99")
    (over,) = age_balances(store)
    assert over.overpaid == issued.total - 99
    record_payment(store, issued, issued.total - 99)
    assert age_balances(store) == []


def test_the_statement_command_writes_each_form(tmp_path, monkeypatch, make_call, run_command):
    from tokenmeter.stores import open_store

    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/usage.db"
    store = open_store(url)
    store.settle(make_call("12.5", at="2026-10-10T10:00", team="search"))
    store.close()
    for more in ([], ["--json"], *(["--to", f"s.{ending}"] for ending in ("html", "csv", "json", "xlsx", "pdf"))):
        code, said, _ = run_command("statement", "team=search", "--period", "2026-10", "--store", url, *more)
        assert (code, "12.50" in said) == (0, "--to" not in more)
    assert all((tmp_path / f"s.{ending}").stat().st_size > 200 for ending in ("html", "json", "xlsx", "pdf"))
