"""FOCUS after the month's end: rows carry the number of the invoice they are on, and requests add up."""

from __future__ import annotations

import csv
from contextlib import closing
from datetime import UTC, datetime

import tokenmeter
from tokenmeter.billing import close_period, draft_invoice, issue_invoice, void_invoice
from tokenmeter.ledger import Entry


def rows_of(meter, folder):
    meter.report(period="2026-10").to_focus(folder, overwrite=True)
    with (folder / "cost_and_usage.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_invoice_detail_says_what_stands_on_the_issued_invoice(make_call, tmp_path):
    billing = {"seller": {"name": "ACME Platform"}, "terms_days": 14, "tz": "Asia/Tokyo"}
    with closing(tokenmeter.make_meter(store="memory:", config={"billing": billing})) as meter:
        meter.store.settle(make_call("2", "2026-10-10T10:00", member="ada"))
        meter.store.settle(make_call("3", "2026-10-10T10:00", member="bob"))
        close_period(meter.store, "2026-10", tz="Asia/Tokyo")
        bill = issue_invoice(
            meter.store, draft_invoice(meter.store, member="ada", period="2026-10", profile=billing), on="2026-11-02"
        )
        rows_of(meter, tmp_path)
    with (tmp_path / "invoice_detail.csv").open(encoding="utf-8") as file:
        issued, opened = sorted(csv.DictReader(file), key=lambda row: row["InvoiceId"])
    told = ("InvoiceId", "InvoiceIssueStatus", "InvoiceIssueDate", "PaymentDueDate", "PaymentTerms")
    assert [issued[name] for name in told] == [
        *(bill.number, "Issued", "2026-11-02T00:00:00Z", "2026-11-16T00:00:00Z", bill.payment_terms)
    ]
    assert [opened[name] for name in told[1:]] == ["Open", "", "", "Not agreed"]
    assert (issued["InvoiceIssuerName"], opened["InvoiceIssuerName"]) == ("ACME Platform", "OpenAI")
    filed = bill.document.recorded_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert {issued["InvoiceDetailCreated"], issued["InvoiceDetailLastUpdated"]} == {filed}


def test_rows_name_their_invoice_and_failed_calls_are_requests(make_call, tmp_path):
    meter = tokenmeter.make_meter(store="memory:", config={})
    store = meter.store
    store.settle(make_call("2", "2026-10-10T10:00", member="ada"))
    store.settle(make_call("3", "2026-10-10T10:00", member="bob"))
    at = datetime(2026, 10, 10, 11, tzinfo=UTC)
    store.settle(
        Entry(occurred_at=at, provider="openai", endpoint="chat.completions", operation="chat", status="error")
    )
    assert {row["InvoiceId"][:5] for row in rows_of(meter, tmp_path)} == {"open:"}
    close_period(store, "2026-10")
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-10"))
    rows = rows_of(meter, tmp_path)
    assert {row["x_Member"]: row["InvoiceId"][:9] for row in rows if row["x_Member"]} == {
        "ada": "INV-00001",
        "bob": "open:2026",
    }
    assert sum(int(row["x_RequestCount"]) for row in rows) == meter.report(period="2026-10").totals.requests == 3
    void_invoice(store, bill, "a mistake")
    assert {row["InvoiceId"][:5] for row in rows_of(meter, tmp_path)} == {"open:"}
    meter.close()
