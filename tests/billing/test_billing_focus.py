"""FOCUS after the month's end: rows carry the number of the invoice they are on, and requests add up."""

from __future__ import annotations

import csv
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import combinations

import pytest
import time_machine

import tokenmeter
from tokenmeter.attribution import ApiKey
from tokenmeter.billing import (
    close_period,
    credit_invoice,
    draft_invoice,
    draft_invoices,
    invoices,
    issue_invoice,
    late_entries,
    void_invoice,
)
from tokenmeter.ledger import Entry
from tokenmeter.money import add, total
from tokenmeter.periods import zone
from tokenmeter.stores.merging import merge_ledger


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


KEY = "sk-test-key-000000000001"
WHATS = ("late", "corrected", "credited", "renamed", "merged", "archived")


def sums_in_focus(meter, folder):
    """Invoice -> what its rows come to; None = those on none."""
    meter.report(period="all").to_focus(folder, overwrite=True)
    sums = {}
    with (folder / "cost_and_usage.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            number = row["InvoiceId"] if row["InvoiceId"].startswith("INV-") else None
            sums[number] = add(sums.get(number, Decimal(0)), Decimal(row["BilledCost"]))
    assert total(sums.values()) == meter.report(period="all").totals.billed_cost
    return sums


def check_invoices(meter, folder):
    """Each invoice has the rows that it bills; what waits for the next one is on none."""
    sums = sums_in_focus(meter, folder)
    billed = {one.number: one.totals.ledger_cost for one in invoices(meter.store)}
    assert billed
    assert {number: sums.get(number, 0) for number in billed} == billed
    assert sums.get(None, 0) == total(one.billed_cost for one in late_entries(meter.store))


def bill_month(store, month):
    close_period(store, month)
    for each in ("member", "api_key"):  # nothing is on both
        for draft in draft_invoices(store, period=month, each=each):
            issue_invoice(store, draft)


#: When, if what: costs of calls in October, and what else there is to say of them.
STORY = (
    ("october", None, ("3", "1", "2"), {}),
    ("october", "corrected", ("-1",), {"kind": "correction"}),
    ("november", "renamed", ("0",), {"alias": "production", "quantity": 0}),
    ("november", "late", ("0.25", "1", "3"), {}),
    ("november", "corrected", ("-0.5",), {"kind": "correction"}),
    ("november", "credited", ("-0.75",), {"kind": "adjustment", "meter": "credit"}),
    ("december", "late", ("0.125",), {}),
)


@pytest.fixture
def use(make_call):
    """`use(meter, "1")`: a call on Ada's account, and one on that of a key."""

    def record(into, cost, at="2026-10-11T10:00", *, alias="prod", **about):
        into.store.settle(make_call(cost, at, member="ada", **about))
        key = ApiKey.identify(KEY, secret=b"shared", alias=alias)
        into.store.settle(replace(make_call(cost, at, **about), api_key=key))

    return record


@pytest.fixture
def open_ledger(tmp_path):
    return lambda name: closing(tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/{name}.db", config={}))


def happen(meter, use, stage, whats):
    for when, what, costs, about in STORY:
        if when == stage and (what is None or what in whats):
            for cost in costs:
                use(meter, cost, **about)
    if stage == "november" and "credited" in whats:
        credit_invoice(meter.store, "INV-00001", "1", "an outage")


@pytest.mark.parametrize(
    "whats",
    [(), *((one,) for one in WHATS), *(one for one in combinations(WHATS, 2) if "merged" in one), WHATS],
    ids="-".join,
)
def test_an_invoices_rows_come_to_what_it_bills(use, open_ledger, tmp_path, whats):
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("own", "other", "head")}
    with time_machine.travel(datetime(2026, 10, 20, 9, tzinfo=UTC)) as clock:
        for name in ("other", "head"):  # what other hosts recorded meanwhile: the like, earlier and later
            with open_ledger(name) as meter:
                for cost in ("2", "0.5", "3"):
                    use(meter, cost, "2026-10-09T11:00")
                    clock.shift(timedelta(minutes=1))
        with open_ledger("own") as meter:
            happen(meter, use, "october", whats)
            clock.move_to(datetime(2026, 11, 3, 9, tzinfo=UTC))
            bill_month(meter.store, "2026-10")
            clock.shift(timedelta(days=1))
            check_invoices(meter, tmp_path)
            happen(meter, use, "november", whats)
            check_invoices(meter, tmp_path)
        clock.shift(timedelta(days=1))
        if "merged" in whats:
            merge_ledger(urls["other"], urls["own"])
        with open_ledger("own") as meter:
            check_invoices(meter, tmp_path)
            clock.move_to(datetime(2026, 12, 3, 9, tzinfo=UTC))
            bill_month(meter.store, "2026-11")
            clock.shift(timedelta(days=1))
            happen(meter, use, "december", whats)
            check_invoices(meter, tmp_path)
            if "archived" in whats:
                meter.archive("2026-10", tmp_path / "files", drop=True)
                check_invoices(meter, tmp_path)
        if "merged" in whats:  # a closing comes to a ledger that has a month of its own
            clock.shift(timedelta(days=1))
            merge_ledger(urls["own"], urls["head"])
            with open_ledger("head") as meter:
                check_invoices(meter, tmp_path)


def test_what_waits_for_a_month_without_use_is_on_the_invoice_of_the_next_that_has_some(make_call, tmp_path):
    with (
        time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)) as clock,
        closing(tokenmeter.make_meter(store="memory:", config={})) as meter,
    ):
        meter.store.settle(make_call("3", "2026-10-11T10:00", member="ada"))
        first = billed_to_ada(meter.store, "2026-10", "UTC")
        clock.move_to(datetime(2027, 1, 20, tzinfo=UTC))
        meter.store.settle(make_call("0.25", "2026-10-11T10:00", member="ada"))
        meter.store.settle(make_call("1", "2027-01-11T10:00", member="ada"))
        assert draft_invoice(meter.store, member="ada", period="2026-11").total == 0
        assert draft_invoice(meter.store, member="ada", period="2027-01").totals.ledger_cost == Decimal("1.25")
        assert billed_on(meter, tmp_path) == {first.number: 3, ("Correction", "2027-01"): Decimal("0.25")}


@pytest.mark.parametrize("cost", [None, "0"])
def test_late_usage_without_a_cost_is_on_no_invoice_that_was_issued_before(make_call, tmp_path, cost):
    """No account's sum of costs has any of it; the count of entries says that there is some."""
    with (
        time_machine.travel(datetime(2026, 11, 3, 9, tzinfo=UTC)) as clock,
        closing(tokenmeter.make_meter(store="memory:", config={})) as meter,
    ):
        meter.store.settle(make_call("3", "2026-10-11T10:00", member="ada", quantity=500))
        first = billed_to_ada(meter.store, "2026-10", "UTC")
        clock.move_to(datetime(2026, 11, 20, tzinfo=UTC))
        meter.store.settle(make_call(cost, "2026-10-12T10:00", member="ada", model="own", quantity=70_000))
        meter.store.settle(make_call("1", "2026-11-11T10:00", member="ada", quantity=200))

        def used():
            used = {}
            for row in rows_of(meter, tmp_path):
                used[row["InvoiceId"]] = add(used.get(row["InvoiceId"], 0), Decimal(row["ConsumedQuantity"] or 0))
            return {number: used[number] for number in used if number.startswith("INV-")}, total(used.values())

        assert used() == ({first.number: 500}, 70_500)
        clock.move_to(datetime(2026, 12, 2, tzinfo=UTC))
        close_period(meter.store, "2026-11")
        draft = draft_invoice(meter.store, member="ada", period="2026-11")
        second = issue_invoice(meter.store, draft, allow_unpriced=True)
        assert used() == ({first.number: 500, second.number: 70_000}, 70_500)
