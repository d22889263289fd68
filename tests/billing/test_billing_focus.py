"""FOCUS after the month's end: rows carry the number of the invoice they are on, and requests add up."""

from __future__ import annotations

import csv
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine

import tokenmeter
from tokenmeter.billing import close_period, draft_invoice, issue_invoice, void_invoice
from tokenmeter.ledger import Entry
from tokenmeter.money import add
from tokenmeter.periods import zone


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


def billed_on(meter, folder, tz="UTC"):
    """Invoice, or the month whose invoice is open -> what its rows come to; and the classes of the latter."""
    meter.report(period="2026-10", tz=tz).to_focus(folder, overwrite=True)
    sums = {}
    with (folder / "cost_and_usage.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            begins = datetime.fromisoformat(row["BillingPeriodStart"]).astimezone(zone(tz))
            open_month = (row["ChargeClass"], f"{begins:%Y-%m}")
            invoice = row["InvoiceId"] if row["InvoiceId"].startswith("INV-") else open_month
            sums[invoice] = add(sums.get(invoice, Decimal(0)), Decimal(row["BilledCost"]))
    return {invoice: amount for invoice, amount in sums.items() if amount}


def billed_to_ada(store, period, tz):
    close_period(store, period, tz=tz)
    return issue_invoice(store, draft_invoice(store, member="ada", period=period, tz=tz))


@pytest.mark.parametrize("tz", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_rows_stand_on_the_invoice_that_bills_them(make_call, tmp_path, tz):
    """What the closing took up is on its invoice, whatever kind it is of, and what came later on the next one."""
    with (
        time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)) as clock,
        closing(tokenmeter.make_meter(store="memory:", config={})) as meter,
    ):
        store = meter.store
        store.settle(make_call("3", "2026-10-11T10:00", member="ada"))
        store.settle(make_call("-1", "2026-10-11T10:00", member="ada", kind="correction"))  # before the closing
        first = billed_to_ada(store, "2026-10", tz)
        assert billed_on(meter, tmp_path, tz=tz) == {first.number: 2} == {first.number: first.totals.net}
        clock.shift(timedelta(days=1))
        for kind, cost in (("usage", "0.25"), ("correction", "0.5"), ("adjustment", "1")):
            store.settle(make_call(cost, "2026-10-12T10:00", member="ada", kind=kind))
        open_month = ("Correction", "2026-11")
        assert billed_on(meter, tmp_path, tz=tz) == {first.number: 2, open_month: Decimal("1.75")}
        assert billed_on(meter, tmp_path) == {first.number: 2, open_month: Decimal("1.75")}  # whatever the rows' zone
        clock.move_to(datetime(2026, 12, 20, tzinfo=UTC))
        second = billed_to_ada(store, "2026-11", tz)
        clock.shift(timedelta(days=1))
        store.settle(make_call("0.125", "2026-10-12T10:00", member="ada"))
        rest = {("Correction", "2026-12"): Decimal("0.125")}
        assert billed_on(meter, tmp_path, tz=tz) == {first.number: 2, second.number: Decimal("1.75"), **rest}
        assert second.totals.ledger_cost == Decimal("1.75")


def test_an_hour_in_which_a_month_ends_is_on_two_invoices(make_call, tmp_path):
    """Calcutta's days begin amid the hours of UTC."""
    with (
        time_machine.travel(datetime(2026, 12, 3, 9, tzinfo=UTC)),
        closing(tokenmeter.make_meter(store="memory:", config={})) as meter,
    ):
        meter.store.settle(make_call("3", "2026-10-31T18:15", member="ada"))
        meter.store.settle(make_call("5", "2026-10-31T18:45", member="ada"))
        october, november = (billed_to_ada(meter.store, month, "Asia/Kolkata") for month in ("2026-10", "2026-11"))
        assert billed_on(meter, tmp_path) == {october.number: 3, november.number: 5}
