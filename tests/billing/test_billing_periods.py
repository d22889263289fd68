"""Closing a period: a manifest, corrections for what comes late, and no way back."""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.billing import (
    ClosedPeriod,
    close_period,
    closed_periods,
    draft_invoice,
    draft_invoices,
    invoice_coverage,
    issue_invoice,
    late_costs,
    late_entries,
)
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.money import total
from tokenmeter.periods import Period, parse_period
from tokenmeter.stores import open_store
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.usage import Usage

JANUARY = datetime(2027, 1, 2, tzinfo=UTC)


def test_the_manifest_counts_and_sums_the_period(every_store, make_call, december):
    """On every store: entries, requests, sums, and what they are made of, sealed in the ledger."""
    for entry in (
        make_call("1.25", member="ada"),
        make_call("0.000000000001", member="bob"),
        make_call(None, member="bob", model="mystery"),
        make_call("5", at="2026-10-31T23:59", member="ada"),
        make_call("7", at="2026-12-01T00:00", member="ada"),
    ):
        every_store.settle(entry)
    closed = close_period(every_store, "2026-11", by="kim", now=december)
    assert (closed.entries, closed.requests, closed.unpriced) == (3, 3, 1)
    assert closed.billed_cost == Decimal("1.250000000001")
    assert closed.closed_by == "kim"
    assert total(row.billed_cost for row in closed.rows) == closed.billed_cost
    assert closed_periods(every_store) == [closed]
    assert closed.document.hash in {document.hash for document in every_store.documents()}
    assert "billed $1.250000000001" in str(closed)


def test_a_period_is_cut_in_its_zone(store, book, december):
    book("1", at="2026-10-31T23:30")  # November in Berlin
    book("2", at="2026-11-30T23:30")  # December in Berlin
    assert close_period(store, "2026-11", tz="Europe/Berlin", now=december).billed_cost == 1


def test_a_period_that_has_not_ended_cannot_be_closed(store):
    with pytest.raises(LedgerError, match="can be closed from then on"):
        close_period(store, "2026-11", now=datetime(2026, 11, 30, 23, 59, tzinfo=UTC))


@pytest.mark.parametrize("again", ["2026-11", "2026-Q4", "2026-11-15"])
def test_a_closed_period_is_not_reopened_nor_overlapped(store, again):
    close_period(store, "2026-11", now=JANUARY)
    with pytest.raises(LedgerError, match="not reopened"):
        close_period(store, again, now=JANUARY)
    with pytest.raises(LedgerError, match="Europe/Berlin"):
        close_period(store, "2026-11", tz="Europe/Berlin", now=JANUARY)


def test_a_period_that_does_not_exist_is_refused(store):
    with pytest.raises(ConfigurationError, match="Unknown period"):
        close_period(store, "November", now=JANUARY)


def test_of_many_closings_at_once_one_succeeds(every_store, make_call, december):
    every_store.settle(make_call("1"))

    def attempt(_):
        try:
            return close_period(every_store, "2026-11", now=december)
        except LedgerError:
            return None

    with ThreadPoolExecutor(6) as threads:
        outcomes = list(threads.map(attempt, range(6)))
    assert len([one for one in outcomes if one]) == 1
    assert len(closed_periods(every_store)) == 1


def test_late_entries_become_corrections_of_the_next_period(every_store, make_call, december):
    """What was recorded after the closing is in the next closing, once, and stays where it occurred in the ledger."""
    every_store.settle(make_call("1", member="ada"))
    close_period(every_store, "2026-11", now=december)
    assert late_entries(every_store) == []
    every_store.settle(make_call("0.30", member="ada"))
    every_store.settle(make_call("4", at="2026-12-05T00:00", member="ada"))
    (late,) = late_entries(every_store)
    assert (late.period.label, late.billed_cost) == ("2026-11", Decimal("0.3"))

    november = draft_invoice(every_store, member="ada", period="2026-11")
    assert november.totals.ledger_cost == 1
    december_closed = close_period(every_store, "2026-12", now=JANUARY)
    assert [one.billed_cost for one in december_closed.late] == [Decimal("0.3")]
    assert late_entries(every_store) == []
    bill = draft_invoice(every_store, member="ada", period="2026-12")
    assert bill.totals.ledger_cost == Decimal("4.3")
    assert [(line.kind, line.period, line.amount) for line in bill.lines] == [
        ("usage", "2026-12", Decimal("4.00")),
        ("correction", "2026-11", Decimal("0.30")),
    ]


def test_late_entries_that_cancel_out_in_sum_still_correct_each_account(store, book, december):
    book("1", member="ada")
    book("1", member="bob")
    close_period(store, "2026-11", now=december)
    book("0.5", member="ada", kind="correction")
    book("-0.5", member="bob", kind="correction")
    (late,) = late_entries(store)
    assert late.billed_cost == 0
    assert {row.rate.about("member"): row.billed_cost for row in late.rows} == {
        "ada": Decimal("0.5"),
        "bob": Decimal("-0.5"),
    }


def test_what_came_late_can_be_summed_without_reading_an_entry(every_store, make_call, december, monkeypatch):
    """The sum is that of `late_entries`, and a change of accounts that adds up to nothing is not overlooked."""
    every_store.settle(make_call("1", member="ada"))
    close_period(every_store, "2026-11", now=december)
    assert late_costs(every_store) == []
    every_store.settle(make_call("0.5", member="ada", kind="correction"))
    every_store.settle(make_call("-0.5", member="bob", kind="correction"))
    monkeypatch.setattr(every_store, "entries", None)
    assert [(one.period.label, cost) for one, cost in late_costs(every_store)] == [("2026-11", Decimal(0))]


@pytest.mark.parametrize("adds", [[(None, 70000)], [("0", 70000)], [("1", 500), ("-1", -200)]])
def test_what_came_late_and_adds_no_cost_is_told_once(every_store, make_call, december, monkeypatch, adds):
    """Usage without a price, at a price of 0, and costs that cancel out: no account's sum of costs has any of it."""
    every_store.settle(make_call("1", member="ada"))
    close_period(every_store, "2026-11", now=december)
    for cost, quantity in adds:
        every_store.settle(make_call(cost, at="2026-11-30T23:50", member="ada", model="own", quantity=quantity))
    every_store.settle(make_call("4", at="2026-12-05T00:00", member="ada"))
    (late,) = late_entries(every_store)
    unpriced = [cost for cost, _ in adds].count(None)
    assert (late.billed_cost, late.unpriced) == (0, unpriced)
    assert total(row.quantity for row in late.rows) == sum(quantity for _, quantity in adds)
    assert [(one.period.label, cost) for one, cost in late_costs(every_store)] == [("2026-11", 0)]
    taken_up = close_period(every_store, "2026-12", now=JANUARY)
    assert taken_up.late == (late,)
    assert ("1 charge without a known price" in str(taken_up)) == bool(unpriced)
    assert invoice_coverage(every_store, period="2026-12").unpriced == unpriced
    monkeypatch.setattr(every_store, "entries", None)  # what is told is not read again
    assert (late_entries(every_store), late_costs(every_store)) == ([], [])


def test_late_usage_without_a_price_stands_against_the_next_invoice(store, book, december):
    """As the month's own does; it is billed once it has a price."""
    book("1", member="ada")
    close_period(store, "2026-11", now=december)
    book(None, member="ada", model="own")
    book("4", at="2026-12-05T00:00", member="ada")
    close_period(store, "2026-12", now=JANUARY)
    draft = draft_invoice(store, member="ada", period="2026-12")
    with pytest.raises(LedgerError, match="no known price"):
        issue_invoice(store, draft)
    assert issue_invoice(store, draft, allow_unpriced=True).total == 4


def test_a_failed_call_that_came_late_is_neither_told_nor_read_again(store, book, make_call, december, monkeypatch):
    book("1", member="ada")
    close_period(store, "2026-11", now=december)
    store.settle(replace(make_call("0"), usage=Usage(), charges=(), status="error", cost_source="none"))
    assert (late_entries(store), late_costs(store)) == ([], [])
    with monkeypatch.context() as patched:
        patched.setattr(store, "entries", None)
        assert late_costs(store) == []
    assert close_period(store, "2026-12", now=JANUARY).late == ()
    monkeypatch.setattr(store, "entries", None)
    assert (late_entries(store), late_costs(store)) == ([], [])


def test_a_bill_of_which_a_merge_kept_the_other_entry_is_corrected(tmp_path, make_call, december):
    """The closing that came along told an entry that did not, and as many are there as it counted."""
    source, target = (f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target"))
    bill = {"dedup_key": "openai:resp_1", "response_id": "resp_1"}
    with contextlib.closing(open_store(source)) as theirs, contextlib.closing(open_store(target)) as ours:
        theirs.settle(make_call("5", member="zoe"))
        theirs.settle(replace(make_call("1", member="zoe"), **bill))
        ours.settle(replace(make_call("3", member="ada"), **bill))
        close_period(theirs, "2026-11", now=december)
    merge_ledger(source, target)
    with contextlib.closing(open_store(target)) as store:
        (late,) = late_entries(store)
        assert {row.rate.about("member"): row.billed_cost for row in late.rows} == {"ada": 3, "zoe": -1}
        assert [cost for _, cost in late_costs(store)] == [2]


def test_conditions_that_a_closing_read_otherwise_are_no_lines_of_their_own(store, make_call, december, monkeypatch):
    """Earlier versions took brackets in a model's name for what its price was chosen by."""

    def use(cost, model):
        call = make_call(cost, member="ada", model=model)
        price = f"openai/{model}/input#0123456789ab"
        store.settle(replace(call, charges=(replace(call.charges[0], price_id=price),)))

    use("5", "own[1m]")
    with monkeypatch.context() as patched:
        patched.setattr("tokenmeter.reports.rated._CONDITIONS", re.compile(r"\[([^\]]*)\]"))
        assert [row.rate.conditions for row in close_period(store, "2026-11", now=december).rows] == ["1m"]
    use("1", "other")
    (late,) = late_entries(store)
    assert [(row.rate.model, row.billed_cost) for row in late.rows] == [("other", 1)]


def test_closings_that_did_not_count_what_they_took_up_are_read_until_one_does(store, book, december, monkeypatch):
    """Those of the first versions."""
    closing = ClosedPeriod.to_dict
    old = {"recounted": {}}
    monkeypatch.setattr(ClosedPeriod, "to_dict", lambda one: {**closing(one), **old})
    book("1", at="2026-10-05T00:00", member="ada")
    close_period(store, "2026-10", now=december)
    book("0.5", at="2026-10-06T00:00", member="ada")
    assert [one.billed_cost for one in close_period(store, "2026-11", now=december).late] == [Decimal("0.5")]
    assert (late_entries(store), late_costs(store)) == ([], [])
    book(None, at="2026-10-07T00:00", member="ada")
    old.clear()
    assert [one.unpriced for one in close_period(store, "2026-12", now=JANUARY).late] == [1]
    monkeypatch.setattr(store, "entries", None)
    assert (late_entries(store), late_costs(store)) == ([], [])


def test_each_late_entry_is_told_once_over_many_closings(store, book):
    """Lateness of lateness: every closing takes up only what none before did, and the sum is the ledger's."""
    told = Decimal(0)
    for month in range(1, 6):
        for earlier in range(1, month + 1):
            book(f"0.{month}{earlier}", at=f"2026-{earlier:02}-10T00:00", member="ada")
        closed = close_period(store, f"2026-{month:02}", now=datetime(2026, 6, 1, tzinfo=UTC))
        told = total([told, closed.billed_cost, *(late.billed_cost for late in closed.late)])
    assert told == total(entry.billed_cost for entry in store.entries())
    assert late_entries(store) == []


def test_an_empty_period_closes(store, december):
    closed = close_period(store, "2026-11", now=december)
    assert (closed.entries, closed.billed_cost, closed.rows) == (0, 0, ())


@pytest.mark.parametrize(
    ("first", "then"),
    [(("2026-10", "Europe/Berlin"), ("2026-11", "UTC")), (("2026-11", "UTC"), ("2026-10", "Asia/Tokyo"))],
)
def test_hours_between_two_zones_are_closed_or_the_next_period_is_refused(store, book, first, then):
    book("3", at="2026-10-31T23:30", member="ada")
    close_period(store, first[0], tz=first[1], now=JANUARY)
    with pytest.raises(LedgerError, match="billed nowhere"):
        close_period(store, then[0], tz=then[1], now=JANUARY)
    (closed,) = closed_periods(store)
    wanted = parse_period(then[0], then[1])
    _, start, end, _ = sorted((closed.period.start, closed.period.end, wanted.start, wanted.end))
    close_period(store, Period(start, end, "UTC", "hours between"), now=JANUARY)
    close_period(store, then[0], tz=then[1], now=JANUARY)
    assert total(one.billed_cost for one in closed_periods(store)) == 3


def test_what_came_late_waits_for_the_first_month_that_has_use(store, book):
    """A month without any may never be closed, and the next closing takes up what waits."""

    def billed():
        return [invoice_coverage(store, period=f"2026-{month:02}").ledger for month in (9, 10, 11)]

    book("1", at="2026-08-05T10:00", member="ada")
    close_period(store, "2026-08", now=JANUARY)
    book("0.1", at="2026-08-06T10:00", member="ada")
    assert billed() == [Decimal("0.1"), 0, 0]  # nothing else is known yet
    book("3", at="2026-11-06T10:00", member="ada")
    assert billed() == [0, 0, Decimal("3.1")]
    book("2", at="2026-10-06T10:00", member="ada")
    assert billed() == [0, Decimal("2.1"), 3]
    assert [one.totals.ledger_cost for one in draft_invoices(store, each="member", period="2026-09")] == []
    assert [one.totals.ledger_cost for one in draft_invoices(store, each="member", period="2026-10")] == [
        Decimal("2.1")
    ]
    close_period(store, "2026-10", now=JANUARY)
    assert billed() == [0, Decimal("2.1"), 3]


@pytest.mark.parametrize("period", ["2026-Q4", "2026-11-30", "2026-W48", "2026-12-24", "2027-01"])
def test_what_came_late_is_billed_in_the_first_open_period_alone(store, book, december, period):
    """In any other it would be billed once more, and one that overlaps the closed period has it already."""
    book("1", at="2026-11-30T10:00", member="ada")
    close_period(store, "2026-11", now=december)
    book("0.1", at="2026-11-30T23:00", member="ada")
    span = parse_period(period)
    held = total(one.billed_cost for one in store.entries() if one.occurred_at in span)
    assert invoice_coverage(store, period=period).ledger == held
    assert draft_invoice(store, member="ada", period=period).totals.ledger_cost == held
    assert draft_invoice(store, member="ada", period="2026-12").totals.ledger_cost == Decimal("0.1")
