"""Invoices: drafted from the ledger, numbered without gaps, never changed, put right by credit notes."""

import json
import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine

from tokenmeter import make_meter
from tokenmeter.billing import (
    BillingProfile,
    close_period,
    credit_invoice,
    credit_notes,
    draft_invoice,
    draft_invoices,
    draw_statement,
    find_invoice,
    invoice_coverage,
    invoices,
    issue_invoice,
    issue_invoices,
    preview_invoices,
    record_payment,
    void_invoice,
    write_off_invoice,
)
from tokenmeter.billing.filed import find_credit_note
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.money import add, subtract
from tokenmeter.stores import open_store
from tokenmeter.stores.documents import NewDocument

PROFILE = {
    "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE1"},
    "taxes": [{"name": "VAT", "rate": "0.19"}],
    "terms_days": 14,
    "buyers": {"team": {"search": {"name": "Search & Co", "cost_centre": "4711", "purchase_order": "PO-9"}}},
}


@pytest.fixture
def ready(store, book, december):
    """November of ada in team search: 10 dollars of input, 2.345 of output; closed."""
    book("10", member="ada", team="search", key="prod", multipliers={"platform": "1.05"})
    book("2.345", member="ada", team="search", meter="output", quantity=500)
    book("1", member="bob", team="ads")
    close_period(store, "2026-11", now=december)
    return store


def draft(store, **changes):
    return draft_invoice(store, **{"team": "search", "period": "2026-11", "profile": PROFILE, **changes})


def test_a_draft_shows_what_an_account_owes_and_writes_nothing(ready):
    bill = draft(ready)
    assert (bill.status, bill.number, bill.buyer.name, bill.buyer.cost_centre) == ("draft", None, "Search & Co", "4711")
    assert [(line.sku_meter, line.amount, line.multiplier) for line in bill.lines] == [
        ("input", Decimal("10.00"), Decimal("1.05")),
        ("output", Decimal("2.35"), 1),
    ]
    totals = bill.totals
    assert (totals.subtotal, totals.rounding, totals.net) == (Decimal("12.35"), Decimal("0.00"), Decimal("12.35"))
    assert (totals.taxes[0].amount, bill.total) == (Decimal("2.35"), Decimal("14.70"))
    assert add(totals.net, totals.remainder) == totals.ledger_cost == Decimal("12.345")
    assert invoices(ready) == []


@pytest.mark.parametrize(
    ("account", "total"),
    [
        ({"member": "ada"}, "12.35"),
        ({"team": "ads"}, "1.00"),
        ({"api_key": "prod"}, "10.00"),
        ({"member": "ada", "team": "ads"}, "0.00"),
        ({"project": "none"}, "0.00"),
        ({"organization": "none"}, "0.00"),
    ],
)
def test_an_invoice_is_made_out_to_any_account(ready, account, total):
    bill = draft_invoice(ready, period="2026-11", **account)
    assert bill.total == Decimal(total)
    assert issue_invoice(ready, bill, force=True).number == "INV-00001"


def test_an_open_period_is_drafted_from_live_entries_but_not_issued(store, book):
    book("3", member="ada", at="2026-11-10T00:00")
    bill = draft_invoice(store, member="ada", period="2026-11")
    assert bill.total == 3
    with pytest.raises(LedgerError, match="still open"):
        issue_invoice(store, bill)


def test_a_draft_from_before_the_closing_is_made_anew(store, book, december):
    book("3", member="ada")
    bill = draft_invoice(store, member="ada", period="2026-11")
    close_period(store, "2026-11", now=december)
    with pytest.raises(LedgerError, match="draft the invoice again"):
        issue_invoice(store, bill)


def test_an_issued_invoice_has_number_dates_terms_and_names_its_ledger(ready, monkeypatch):
    monkeypatch.setattr("tokenmeter.billing.issuing.utcnow", lambda: datetime(2026, 12, 2, 9, tzinfo=UTC))
    bill = issue_invoice(ready, draft(ready), by="kim")
    assert bill.issued_by == "kim"
    assert (bill.number, bill.status, bill.issued_on, bill.due_on) == (
        "INV-00001",
        "issued",
        date(2026, 12, 2),
        date(2026, 12, 16),
    )
    assert "14 days" in bill.payment_terms
    assert bill.ledger["since"].startswith("2026-11-01")
    assert len(bill.ledger["manifest"]) == len(bill.ledger["head"]) == 64
    assert find_invoice(ready, "INV-00001") == bill
    assert bill.to_dict()["seal"] == bill.document.hash


def test_what_is_issued_does_not_follow_later_entries_or_settings(ready, book):
    bill = issue_invoice(ready, draft(ready))
    book("99", member="ada", team="search")
    assert find_invoice(ready, bill.number).total == bill.total
    assert draft(ready).total == bill.total


def test_an_account_is_invoiced_once_for_a_period(ready):
    first = issue_invoice(ready, draft(ready))
    assert issue_invoice(ready, draft(ready)).number == first.number
    with pytest.raises(LedgerError, match="has invoice INV-00001"):
        issue_invoice(ready, draft(ready, currency="EUR", exchange_rate="0.9"))
    assert issue_invoice(ready, draft(ready, team="ads")).number == "INV-00002"


def test_numbers_have_no_gaps_when_many_issue_at_once(every_store, make_call, december):
    """On every store: threads issuing invoices, some of them the same one."""
    members = [f"m{count}" for count in range(8)]
    for member in members:
        every_store.settle(make_call("1.5", member=member))
    close_period(every_store, "2026-11", now=december)
    drafts = [draft_invoice(every_store, member=member, period="2026-11") for member in (*members, *members)]
    with ThreadPoolExecutor(8) as threads:
        issued = list(threads.map(lambda bill: issue_invoice(every_store, bill), drafts))
    assert sorted({bill.number for bill in issued}) == [f"INV-{count:05}" for count in range(1, 9)]
    assert [bill.number for bill in issued[:8]] == [bill.number for bill in issued[8:]]


def test_numbers_follow_their_dates_when_two_issue_at_once(every_store, make_call, december, monkeypatch):
    """Of two periods: where the other gets in between the look at the series and the filing, it looks again."""
    for month in ("2026-09", "2026-10"):
        for member in ("ada", "bob"):
            every_store.settle(make_call("1", at=f"{month}-10T12:00", member=member))
        close_period(every_store, month, now=december)
    theirs = [draft_invoice(every_store, member=one, period="2026-10") for one in ("ada", "bob")]
    ours = draft_invoices(every_store, each="member", period="2026-09")
    real = every_store.file
    with time_machine.travel(december, tick=False):

        def issue_between(draft_in_between):
            def file(document):
                monkeypatch.setattr(every_store, "file", real)
                issue_invoice(every_store, draft_in_between)
                return real(document)

            monkeypatch.setattr(every_store, "file", file)

        issue_between(theirs[0])
        with pytest.raises(ConfigurationError, match="INV-00001 was issued on 2026-12-01; numbers of a series follow"):
            issue_invoice(every_store, ours[0], on="2026-11-02")
        issue_between(theirs[1])
        assert [one.number for one in issue_invoices(every_store, ours)] == ["INV-00003", "INV-00004"]
    filed = invoices(every_store)
    assert [one.number for one in filed] == [f"INV-{count:05}" for count in range(1, 5)]
    assert {one.issued_on for one in filed} == {december.date()}


def test_series_are_numbered_apart(ready):
    assert issue_invoice(ready, draft(ready, profile={**PROFILE, "series": "2026-"})).number == "2026-00001"
    assert issue_invoice(ready, draft(ready, team="ads")).number == "INV-00001"


def test_the_life_of_an_invoice(ready):
    bill = issue_invoice(ready, draft(ready))
    paid = record_payment(ready, bill, reference="wire 77")
    assert (paid.status, paid.balance, paid.events[-1].note) == ("paid", 0, "wire 77")
    assert record_payment(ready, paid).events == paid.events
    for step in (lambda: void_invoice(ready, paid, "no"), lambda: write_off_invoice(ready, paid, "no")):
        with pytest.raises(LedgerError, match="is paid"):
            step()
    assert [one.number for one in invoices(ready, status="paid")] == [bill.number]
    (brief,) = invoices(ready, lines=False)
    assert (brief.number, brief.status, brief.total, brief.lines) == (bill.number, "paid", bill.total, ())
    assert invoices(ready, status="issued") == []


def test_a_voided_invoice_keeps_its_number_and_makes_room_for_a_new_one(ready):
    void = void_invoice(ready, issue_invoice(ready, draft(ready)), "wrong buyer")
    assert (void.status, void.balance) == ("void", 0)
    again = issue_invoice(ready, draft(ready))
    assert (again.number, again.status) == ("INV-00002", "issued")
    assert [one.status for one in invoices(ready)] == ["void", "issued"]


def test_drafts_have_no_life(ready):
    for step in (
        lambda d: record_payment(ready, d),
        lambda d: void_invoice(ready, d, "x"),
        lambda d: credit_invoice(ready, d, None, "x"),
    ):
        with pytest.raises(LedgerError, match="is a draft"):
            step(draft(ready))


def test_uncollectible_can_still_be_paid(ready):
    assert record_payment(ready, write_off_invoice(ready, issue_invoice(ready, draft(ready)), "gone")).status == "paid"


def test_a_credit_note_gives_back_with_tax_under_its_own_number(ready):
    bill = issue_invoice(ready, draft(ready))
    note = credit_invoice(ready, bill, [(1, "2.00"), ("Goodwill", "0.50")], "outage on the 12th")
    assert (note.number, note.net, note.taxes[0].amount, note.total) == (
        "CN-00001",
        Decimal("2.50"),
        Decimal("0.48"),
        Decimal("2.98"),
    )
    assert [line.description for line in note.lines] == ["gpt-5 input tokens", "Goodwill"]
    assert find_invoice(ready, bill.number).balance == bill.total - note.total
    assert credit_notes(ready, invoice=bill.number) == [note]


def test_crediting_the_rest_ends_at_nothing_to_the_cent(ready):
    bill = issue_invoice(ready, draft(ready))
    for amount in ("0.11", "0.11", "0.11"):
        credit_invoice(ready, bill, amount, "part")
    credit_invoice(ready, bill, None, "rest")
    assert find_invoice(ready, bill.number).balance == 0
    with pytest.raises(LedgerError, match="nothing positive is left"):
        credit_invoice(ready, bill, None, "more")


@pytest.mark.parametrize(
    ("lines", "error", "message"),
    [
        ("12.36", LedgerError, "more than the 12.35 left"),
        ([(9, "1")], ConfigurationError, "has lines 1 to 2"),
        ("0", ConfigurationError, "positive amount"),
        ("-1", ConfigurationError, "positive amount"),
        ("0.001", ConfigurationError, "whole minor units"),
    ],
)
def test_a_credit_that_cannot_be_is_refused(ready, lines, error, message):
    with pytest.raises(error, match=message):
        credit_invoice(ready, issue_invoice(ready, draft(ready)), lines, "why")


def test_a_credit_says_why(ready):
    with pytest.raises(ConfigurationError, match="reason"):
        credit_invoice(ready, issue_invoice(ready, draft(ready)), "1", "")


def test_credits_at_the_same_time_never_exceed_the_invoice(every_store, make_call, december):
    every_store.settle(make_call("10", member="ada"))
    close_period(every_store, "2026-11", now=december)
    bill = issue_invoice(every_store, draft_invoice(every_store, member="ada", period="2026-11"))

    def attempt(_):
        try:
            return credit_invoice(every_store, bill, "3", "x")
        except LedgerError:
            return None

    with ThreadPoolExecutor(6) as threads:
        notes = [note for note in threads.map(attempt, range(6)) if note]
    assert len(notes) == 3
    assert find_invoice(every_store, bill.number).credited == 9


def test_a_credited_invoice_is_not_voided_and_a_void_one_not_credited(ready):
    bill = issue_invoice(ready, draft(ready))
    credit_invoice(ready, bill, "1", "x")
    with pytest.raises(LedgerError, match="has credit notes"):
        void_invoice(ready, bill, "x")
    other = void_invoice(ready, issue_invoice(ready, draft(ready, team="ads")), "x")
    with pytest.raises(LedgerError, match="nothing to credit"):
        credit_invoice(ready, other, "1", "x")


def test_another_currency_at_a_rate_that_is_written_down(ready):
    rate = {"rate": "147.31", "source": "ECB", "date": "2026-11-30"}
    bill = issue_invoice(ready, draft(ready, currency="JPY", exchange_rate=rate))
    assert bill.totals.net == Decimal(1819)  # 12.345 x 147.31 = 1818.54, and yen have no cents
    assert bill.totals.ledger_cost == Decimal("12.345")
    assert bill.exchange_rate.source == "ECB"
    with pytest.raises(ConfigurationError, match="exchange_rate="):
        draft(ready, currency="EUR")
    with pytest.raises(ConfigurationError, match="ISO 4217"):
        draft(ready, currency="Euro")


def test_sub_cent_lines_are_billed_by_the_rounding_line(store, book, december):
    """A thousand lines of 0.4 cents are 4 dollars, though each rounds to nothing."""
    for count in range(1000):
        book("0.004", member="ada", model=f"model-{count}")
    close_period(store, "2026-11", now=december)
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    assert len(bill.lines) == 1000
    assert (bill.totals.subtotal, bill.totals.rounding, bill.total) == (0, Decimal("4.00"), Decimal("4.00"))
    assert find_invoice(store, bill.number).lines == bill.lines


def test_adjustments_are_credits_and_a_negative_total_is_a_credit(store, book, december):
    book("1", member="ada")
    book("-3", member="ada", kind="adjustment", meter="adjustment", quantity=-3)
    close_period(store, "2026-11", now=december)
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    assert (bill.totals.subtotal, bill.totals.credits, bill.total) == (1, -3, -2)
    assert str(bill).startswith("Credit INV-00001")


def test_no_usage_is_an_invoice_of_nothing(ready):
    bill = issue_invoice(ready, draft(ready, team="idle"), force=True)
    assert (bill.lines, bill.total) == ((), 0)


def test_unpriced_usage_is_shown_not_billed_as_free(store, book, december):
    book(None, member="ada", model="mystery")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11")
    assert (bill.unpriced, bill.total) == (1, 0)
    assert "no known price" in bill.to_html()


def test_what_was_unpriced_and_has_its_price_now_is_taken_back_at_nothing(tmp_path, december):
    """The month that had no price is closed: the line that takes its usage back is not without a price itself."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    answer = {"id": "1", "model": "my-model", "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 0}}
    price = {"provider": "openai", "model": "my-model", "sku_meter": "input", "unit_price": "3", "per": 1_000_000}
    with closing(make_meter(store=url, config={})) as meter:
        call = {"provider": "openai", "endpoint": "chat.completions", "attribution": {"member": "ada"}}
        meter.record(answer, **call, at="2026-10-10")
        close_period(meter.store, "2026-10", now=december)
    with closing(make_meter(store=url, config={}, prices=[price])) as meter:
        meter.reprice(period="2026-10")
        close_period(meter.store, "2026-11", now=december)
        bill = draft_invoice(meter.store, member="ada", period="2026-11")
    amounts = [row.cells[-1] for row in bill.to_sheet().rows]
    assert (bill.unpriced, amounts) == (0, ["0.00", "3.00"])


def test_lines_can_be_broken_down(ready):
    bill = draft(ready, lines_by="member,api_key")
    assert [dict(line.group) for line in bill.lines] == [
        {"member": "ada", "api_key": "prod"},
        {"member": "ada", "api_key": None},
    ]
    assert sum(line.amount for line in bill.lines) == bill.totals.subtotal


def test_a_buyer_may_have_taxes_of_its_own(ready):
    buyer = {"name": "Abroad Ltd", "taxes": [{"name": "VAT", "rate": "0", "note": "Reverse charge"}]}
    bill = draft(ready, buyer=buyer)
    assert (bill.totals.taxes[0].amount, bill.total) == (0, Decimal("12.35"))
    assert "Reverse charge" in bill.to_html()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"selller": {}}, "did you mean 'seller'"),
        ({"seller": {"adress": []}}, "did you mean 'address'"),
        ({"seller": {}}, "seller.name is missing"),
        ({"taxes": [{"rate": "19"}]}, "0.19"),
        ({"taxes": {"rate": "0.1"}}, r"\[\[billing.taxes\]\]"),
        ({"terms_days": "14"}, "number of days"),
        ({"terms_days": 10**9}, "number of days from 0 to 3,650"),
        ({"currency": "EURO"}, "ISO 4217"),
        ({"tz": "Berlin"}, "time zone"),
        ({"series": "A", "credit_series": "A"}, "must differ"),
        ({"buyers": {"colour": {"red": "x"}}}, r"billing.buyers.member.ada"),
        ([], "table of settings"),
    ],
)
def test_wrong_settings_say_which_and_how(profile, message):
    with pytest.raises(ConfigurationError, match=message):
        BillingProfile.parse(profile, file="tokenmeter.toml")


@pytest.mark.parametrize("account", [{}, {"member": ""}, {"member": 7}])
def test_an_account_must_be_named(store, account):
    with pytest.raises(ConfigurationError, match=r"whose|non-empty text"):
        draft_invoice(store, period="2026-11", **account)


@pytest.mark.parametrize(
    ("account", "meant"),
    [
        ({"memeber": "ada"}, "Did you mean 'member'"),
        ({"member": "ada", "route": "/chat"}, "not by 'route'"),
        ({"member": "ada", "model": None}, "not by 'model'"),
        ({"tag:env": "prod"}, "not by 'tag:env'"),
    ],
)
@pytest.mark.parametrize("verb", ["invoice", "statement", "each"])
def test_an_account_is_never_more_than_was_asked_for(ready, account, meant, verb):
    ask = {
        "invoice": lambda: draft_invoice(ready, period="2026-11", **account),
        "statement": lambda: draw_statement(ready, period="2026-11", **account),
        "each": lambda: draft_invoices(ready, period="2026-11", each="team", **account),
    }
    with pytest.raises(ConfigurationError, match=meant):
        ask[verb]()


def test_an_invoice_to_nobody_is_not_issued_and_one_that_was_can_be_read(ready):
    bill = draft(ready)
    with pytest.raises(ConfigurationError, match="Say whose"):
        issue_invoice(ready, replace(bill, scope={}))
    refused = preview_invoices(ready, [replace(bill, scope={})])[0].refused
    assert refused is not None
    assert "Say whose" in refused
    issued = issue_invoice(ready, bill)
    void_invoice(ready, str(issued.number), "wrong")
    # As it was filed before an account had to be named: neither whose nor to whom.
    old = {**issued.content(), "scope": {}, "buyer": {}}
    key = f"{issued.document.key.partition('#')[0]}#2"
    ready.file(NewDocument(kind="invoice", key=key, series="INV-", body=json.dumps(old)))
    whole = find_invoice(ready, "INV-00002")
    assert (whole.buyer.name, whole.account, whole.total) == ("", "", issued.total)
    assert [one.number for one in invoices(ready)] == ["INV-00001", "INV-00002"]
    assert void_invoice(ready, "INV-00002", "to nobody").status == "void"
    assert whole.to_html()
    assert issue_invoice(ready, bill).number == "INV-00003"


def test_there_is_no_such_invoice(store):
    with pytest.raises(LedgerError, match="no invoice 'INV-00009'"):
        find_invoice(store, "INV-00009")


def test_an_edited_invoice_is_found(tmp_path, make_call, december):

    path = tmp_path / "ledger.db"
    store = open_store(path)
    store.settle(make_call("5", member="ada"))
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    assert store.verify().ok
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER documents_stay_unchanged")
        connection.execute("UPDATE documents SET body = replace(body, '5.00', '4.00') WHERE kind = 'invoice'")
    connection.close()
    store = open_store(path)
    assert "edited" in {fault.kind for fault in store.verify().faults}
    store.close()


def test_json_holds_everything_exactly(ready):
    told = json.loads(issue_invoice(ready, draft(ready)).to_json())
    assert told["lines"][1]["billed_cost"] == "2.345000000000"
    assert told["totals"]["total"] == "14.70"
    assert told["totals"]["remainder"] == "-0.005000000000"
    assert datetime.fromisoformat(told["period"]["start"]) == datetime(2026, 11, 1, tzinfo=UTC)


def at(monkeypatch, day, hour=9):
    moment = datetime.fromisoformat(f"{day}T{hour:02}:00+00:00")
    for module in ("issuing", "receivables"):
        monkeypatch.setattr(f"tokenmeter.billing.{module}.utcnow", lambda: moment)


@pytest.mark.parametrize("day", ["2020-01-01", "2026-11-29", "2026-12-11", "2036-01-01"])
def test_a_day_of_issue_lies_between_the_periods_end_and_today(ready, monkeypatch, day):
    at(monkeypatch, "2026-12-10")
    with pytest.raises(ConfigurationError, match="from 2026-11-30 to today"):
        issue_invoice(ready, draft(ready), on=date.fromisoformat(day))


def test_numbers_of_a_series_follow_their_dates(ready, monkeypatch):
    at(monkeypatch, "2026-12-10")
    issue_invoice(ready, draft(ready), on=date(2026, 12, 8))
    with pytest.raises(ConfigurationError, match="INV-00001 was issued on 2026-12-08"):
        issue_invoice(ready, draft(ready, team="ads"), on=date(2026, 12, 7))


def test_records_are_plain_values_that_can_be_pickled(ready):
    bill = issue_invoice(ready, draft(ready))
    note = credit_invoice(ready, bill, "1", "x")
    for record in (draft(ready), bill, note):
        assert pickle.loads(pickle.dumps(record)) == record  # noqa: S301 - of our own making


def test_usage_is_on_one_invoice_unless_a_reason_is_given(ready):
    """By member, by team and by both is three times the same money."""
    issue_invoice(ready, draft_invoice(ready, member="ada", period="2026-11"))
    for scope in ({"team": "search"}, {"member": "ada", "team": "search"}, {"api_key": "prod"}):
        with pytest.raises(LedgerError, match="on INV-00001 already"):
            issue_invoice(ready, draft_invoice(ready, period="2026-11", **scope))
    again = issue_invoice(ready, draft(ready), allow_overlap="both were agreed")
    assert again.overlap == "both were agreed"
    assert "both were agreed" in again.to_html()


def test_a_voided_invoice_frees_its_usage(ready):
    void_invoice(ready, issue_invoice(ready, draft_invoice(ready, member="ada", period="2026-11")), "wrong account")
    assert issue_invoice(ready, draft(ready)).number == "INV-00002"


def test_overlapping_accounts_issued_at_the_same_time_bill_once(every_store, make_call, december):
    every_store.settle(make_call("2.25", member="ada", team="t"))
    close_period(every_store, "2026-11", now=december)
    scopes = [{"member": "ada"}, {"team": "t"}, {"member": "ada", "team": "t"}] * 2

    def attempt(scope):
        try:
            return issue_invoice(every_store, draft_invoice(every_store, period="2026-11", **scope)).number
        except LedgerError:
            return None

    with ThreadPoolExecutor(6) as threads:
        numbers = {number for number in threads.map(attempt, scopes) if number}
    assert numbers == {"INV-00001"}


def test_coverage_says_what_is_billed_where_and_adds_up(store, book, december):
    book("2.25", member="ada", team="t")
    book("1.5", team="t")
    book("0.25")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    found = invoice_coverage(store, period="2026-11")
    assert (found.invoiced, found.billed_nowhere, found.ledger) == (Decimal("2.25"), Decimal("1.75"), Decimal("4.00"))
    assert found.nowhere == {"team=t": Decimal("1.5"), "(nobody)": Decimal("0.25")}
    issue_invoice(store, draft_invoice(store, team="t", period="2026-11"), allow_overlap="a test")
    found = invoice_coverage(store, period="2026-11")
    assert add(subtract(found.invoiced, found.billed_twice), found.billed_nowhere) == found.ledger
    assert (found.invoiced, found.billed_twice) == (Decimal("6.00"), Decimal("2.25"))


def test_one_invoice_for_each_account_of_a_dimension(ready):
    drafts = draft_invoices(ready, period="2026-11", each="member", profile=PROFILE)
    assert [(one.account, one.totals.net) for one in drafts] == [
        ("member=ada", Decimal("12.35")),
        ("member=bob", Decimal("1.00")),
    ]
    issued = issue_invoices(ready, drafts, by="kim")
    assert [one.number for one in issued] == ["INV-00001", "INV-00002"]
    assert [one.number for one in issue_invoices(ready, drafts)] == ["INV-00001", "INV-00002"]
    narrowed = draft_invoices(ready, period="2026-11", each="member", team="ads")
    assert [one.scope for one in narrowed] == [{"member": "bob", "team": "ads"}]


def test_none_of_many_is_issued_when_one_cannot_be(ready, book, december):
    issue_invoice(ready, draft(ready, team="ads"))
    drafts = draft_invoices(ready, period="2026-11", each="member")
    with pytest.raises(LedgerError, match="is on INV-00001"):
        issue_invoices(ready, drafts)
    assert len(invoices(ready)) == 1


def test_an_account_without_usage_or_a_zero_is_not_invoiced_by_mistake(ready):
    with pytest.raises(LedgerError, match="is it spelled as"):
        issue_invoice(ready, draft(ready, team="saerch"))
    assert invoices(ready) == []


def test_unpriced_usage_stops_an_issue_unless_it_is_allowed(store, book, december):
    book("1", member="ada")
    book(None, member="ada", model="mystery")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11")
    with pytest.raises(LedgerError, match="no known price"):
        issue_invoice(store, bill)
    assert issue_invoice(store, bill, allow_unpriced=True).unpriced == 1


def test_what_was_priced_before_the_period_was_closed_is_billed_as_usage_of_it(tmp_path, make_call, december):
    price = {"provider": "openai", "model": "mystery", "sku_meter": "input", "unit_price": "3000"}
    meter = make_meter(store=f"sqlite:///{tmp_path}/ledger.db", config={"prices": [price]})
    store = meter.store
    for day in ("2026-10-31", "2026-11-10", "2026-11-11"):
        store.settle(make_call(None, at=day, member="ada", model="mystery"))
    assert close_period(store, "2026-10", now=december).unpriced == 1
    assert len(meter.reprice()) == 3
    assert close_period(store, "2026-11", now=december).unpriced == 0
    bill = draft_invoice(store, member="ada", period="2026-11")
    usage = ("usage", 2000, Decimal("6.00"))
    assert [(line.kind, line.quantity, line.amount) for line in bill.lines] == [
        usage,
        ("correction", -1000, Decimal("0.00")),
        ("correction", 1000, Decimal("3.00")),
    ]
    assert issue_invoice(store, bill).unpriced == invoice_coverage(store, period="2026-11").unpriced == 0
    meter.close()


def test_an_invoice_over_nothing_needs_force_also_where_unpriced_usage_is_allowed(store, book, december):
    book(None, member="ada", model="mystery")
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11")
    with pytest.raises(LedgerError, match="no known price"):
        issue_invoice(store, bill, force=True)
    with pytest.raises(LedgerError, match=r"owes 0\.00 USD for 2026-11; force=True \(--force\)"):
        issue_invoice(store, bill, allow_unpriced=True)
    assert invoices(store) == []
    assert issue_invoice(store, bill, allow_unpriced=True, force=True).total == 0


def test_a_line_gives_back_at_most_itself(ready):
    bill = issue_invoice(ready, draft(ready))
    credit_invoice(ready, bill, [(2, "2.00")], "part")
    for lines in ([(2, "0.36")], [(2, "0.20"), (2, "0.20")]):
        with pytest.raises(LedgerError, match="is left to credit"):
            credit_invoice(ready, bill, lines, "more than the line")
    assert credit_invoice(ready, bill, [(2, "0.35")], "the rest of it").number == "CN-00002"


def test_payments_in_part_and_too_much_leave_a_balance(ready, monkeypatch):
    at(monkeypatch, "2026-12-05")
    bill = issue_invoice(ready, draft(ready), on="2026-12-01")
    part = record_payment(ready, bill, "10", on=date(2026, 12, 2), reference="wire 1", by="kim")
    assert (part.status, part.paid, part.balance) == ("issued", 10, Decimal("4.70"))
    assert (part.events[0].on, part.events[0].by) == (date(2026, 12, 2), "kim")
    over = record_payment(ready, "INV-00001", "5.00")
    assert (over.status, over.balance) == ("paid", Decimal("-0.30"))
    even = record_payment(ready, bill, "-0.30", reference="given back")
    assert (even.status, even.balance) == ("paid", 0)
    with pytest.raises(LedgerError, match="cannot be given back"):
        record_payment(ready, bill, "-99")
    with pytest.raises(ConfigurationError, match="still to come"):
        record_payment(ready, bill, "1", on=date(2099, 1, 1))
    with pytest.raises(ConfigurationError, match=r"is of 2026-12-01, so that nothing was due on it on 2026-11-30"):
        record_payment(ready, bill, "1", on=date(2026, 11, 30))
    with pytest.raises(ConfigurationError, match="minor units"):
        record_payment(ready, bill, "0.001")


def test_a_payment_that_is_there_already_is_not_written_down_again_unless_it_is_said_to_be_another(ready, monkeypatch):
    at(monkeypatch, "2026-12-05")
    bill = issue_invoice(ready, draft(ready), on="2026-12-01")
    record_payment(ready, bill, "2", reference="wire 7", on=bill.issued_on)
    with pytest.raises(LedgerError, match=r"(wire 7).* is written down on INV-00001 already"):
        record_payment(ready, bill, "2.00", reference="wire 7", on=bill.issued_on)
    record_payment(ready, bill, "2", reference="wire 7", on=bill.issued_on + timedelta(days=1))
    record_payment(ready, bill, "3", reference="wire 7", on=bill.issued_on)
    record_payment(ready, bill, "2", reference="wire 8", on=bill.issued_on)
    record_payment(ready, bill, "2", on=bill.issued_on)
    record_payment(ready, bill, "2", on=bill.issued_on)  # two without a reference may be two
    for _ in range(2):
        record_payment(ready, bill, "2", reference="wire 7", on=bill.issued_on, key="another")
    assert find_invoice(ready, "INV-00001").paid == 15


def test_what_was_paid_and_given_back_is_credited_and_not_paid(ready):
    bill = issue_invoice(ready, draft(ready))
    record_payment(ready, bill, "10")
    record_payment(ready, bill, "-10")
    credit_invoice(ready, bill, None, "outage")
    assert (find_invoice(ready, "INV-00001").status, find_invoice(ready, "INV-00001").balance) == ("credited", 0)


def test_each_factor_has_its_name_and_a_line_can_be_redone(store, book, december):
    book("16", member="ada", multipliers={"discount": "0.8", "platform": "1.25"}, quantity=1_000_000)
    close_period(store, "2026-11", now=december)
    bill = draft_invoice(store, member="ada", period="2026-11")
    (line,) = bill.lines
    assert line.factors_text == "discount 0.8 x platform 1.25"
    assert add(line.computed_cost, line.rounding_residue) == line.billed_cost
    assert "1,000,000 x 16 / 1M x discount 0.8 x platform 1.25 = 16 USD" in bill.to_html()
    assert "discount=0.8;platform=1.25" in bill.to_csv()
    assert bill.to_dict()["lines"][0]["multipliers"] == {"discount": "0.8", "platform": "1.25"}


def test_what_is_batch_priority_or_cached_is_said_in_words(store, make_call, december):
    for condition, meter in (("", "cache_read"), ("processing=batch", "input"), ("service_tier=priority", "output")):
        entry = make_call("1", member="ada", meter=meter)
        price_id = f"openai/gpt-5/{meter}{f'[{condition}]' if condition else ''}@2026-10-12#1f"
        store.settle(replace(entry, charges=(replace(entry.charges[0], price_id=price_id),)))
    close_period(store, "2026-11", now=december)
    assert {line.description for line in draft_invoice(store, member="ada", period="2026-11").lines} == {
        "gpt-5 cached input tokens",
        "gpt-5 input tokens, batch",
        "gpt-5 output tokens, priority",
    }


def test_a_credit_note_is_found_without_reading_the_others(ready, monkeypatch):
    bills = [issue_invoice(ready, draft(ready, team=team)) for team in ("search", "ads")]
    notes = [credit_invoice(ready, bill, None, "outage") for bill in bills]
    read, parse = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: read.append(text) or parse(text))
    found = find_credit_note(ready, notes[1].number)
    assert found is not None
    assert (found, found.invoice.number) == (notes[1], bills[1].number)
    assert not {bills[0].document.body, notes[0].document.body}.intersection(read)
    assert find_credit_note(ready, bills[0].number) is None


@pytest.mark.parametrize("amount", ["0", 0, "0.00"])
def test_a_payment_of_nothing_is_none(ready, amount):
    bill = issue_invoice(ready, draft(ready))
    with pytest.raises(ConfigurationError, match="payment of 0 is none"):
        record_payment(ready, bill, amount)


def test_a_credit_note_has_no_invoice_of_its_own(ready):
    bill = issue_invoice(ready, draft(ready))
    note = credit_invoice(ready, bill, [(1, "0.50")], "outage")
    told = f"{note.number} is a credit note; what it gives back is of invoice {bill.number}"
    with pytest.raises(LedgerError, match=told):
        credit_invoice(ready, note.number, [(1, "0.10")], "again")
    with pytest.raises(LedgerError, match=told):
        record_payment(ready, note.number)


def test_a_day_is_a_date_a_moment_or_a_text(ready, monkeypatch):
    at(monkeypatch, "2026-12-05")
    bill = issue_invoice(ready, draft(ready), on="2026-12-01")
    assert bill.issued_on == date(2026, 12, 1)
    for on in (date(2026, 12, 1), datetime(2026, 12, 1, 23, 59, tzinfo=UTC), "2026-12-01", "2026-12-01T10:00+01:00"):
        paid = record_payment(ready, bill, "0.01", on=on)
        assert paid.events[-1].on == date(2026, 12, 1)
    for wrong in ("1.12.2026", "soon", 20261201):
        with pytest.raises(ConfigurationError, match="is not a day"):
            record_payment(ready, bill, "0.01", on=wrong)


def test_a_series_keeps_its_dates_in_order_where_the_seller_moves_west(ready, monkeypatch):
    """In Tokyo it is the 2nd already, in Los Angeles the 1st."""
    at(monkeypatch, "2026-12-01", 20)
    terms = {"member": "ada", "period": "2026-11", "tz": "UTC"}
    first = issue_invoice(ready, draft_invoice(ready, **terms, profile={"tz": "Asia/Tokyo"}))
    void_invoice(ready, first, "moved")
    second = issue_invoice(ready, draft_invoice(ready, **terms, profile={"tz": "America/Los_Angeles"}))
    assert [first.issued_on, second.issued_on] == [date(2026, 12, 2), date(2026, 12, 2)]
    assert void_invoice(ready, second, "again").events[-1].on == second.issued_on
    at(monkeypatch, "2026-12-01", 3)  # a clock that was put back, by more than zones differ
    with pytest.raises(ConfigurationError, match="numbers of a series follow their dates"):
        issue_invoice(ready, draft_invoice(ready, **terms, profile={"tz": "America/Los_Angeles"}))


@pytest.mark.parametrize(
    ("tz", "now", "day"),
    [
        ("Asia/Tokyo", ("2026-12-31", 20), date(2027, 1, 1)),
        ("America/Los_Angeles", ("2027-01-01", 2), date(2026, 12, 31)),
    ],
)
def test_what_happens_to_an_invoice_is_dated_by_the_sellers_calendar_as_it_is(ready, monkeypatch, tz, now, day):
    """The period is cut in UTC; a credit note of another year than its invoice belongs to another tax return."""
    at(monkeypatch, *now)
    bill = issue_invoice(ready, draft_invoice(ready, member="ada", period="2026-11", tz="UTC", profile={"tz": tz}))
    assert (bill.period.tz, bill.issued_on) == ("UTC", day)
    assert find_invoice(ready, bill.number).tz == tz
    assert credit_invoice(ready, bill, "0.01", "outage").issued_on == day
    assert record_payment(ready, bill, "0.01", on=day).events[-1].on == day
    with pytest.raises(ConfigurationError, match="still to come"):
        record_payment(ready, bill, "0.01", on=day + timedelta(days=1))


def test_a_float_is_credited_as_it_is_written_with_a_key_as_without(ready):
    bill = issue_invoice(ready, draft(ready))
    for asked in (0.5, [(1, 0.25)]):
        notes = {credit_invoice(ready, bill, asked, "outage", key=f"{asked}").number for _ in range(2)}
        assert len(notes) == 1
    assert credit_invoice(ready, bill, [(1, 0.25)], "outage").net == Decimal("0.25")


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ("", "gpt-5 input tokens"),
        ("[processing=batch]", "gpt-5 input tokens, batch"),
        ("[min_input_tokens=200000]", "gpt-5 input tokens, prompts over 200,000 tokens"),
        ("[geo=us, service_tier=priority]", "gpt-5 input tokens, geo us, priority"),
    ],
)
def test_what_a_price_was_chosen_by_is_said_in_words(store, make_call, conditions, words):
    entry = make_call("1", member="ada")
    charge = replace(entry.charges[0], price_id=f"openai/gpt-5/input{conditions}@2026-01-01")
    store.settle(replace(entry, charges=(charge,)))
    assert [line.description for line in draft_invoice(store, member="ada", period="2026-11").lines] == [words]


@pytest.mark.parametrize("model", ["gpt-5[1m]", "acme/gpt-5[1m]@20250929", "gpt-5[processing=batch]"])
@pytest.mark.parametrize(("conditions", "words"), [("", ""), ("[processing=batch]", ", batch")])
def test_brackets_in_a_models_name_are_no_condition_of_its_price(store, make_call, model, conditions, words):
    entry = make_call("1", member="ada")
    charge = replace(entry.charges[0], price_id=f"openai/{model}/input{conditions}@2026-01-01#1f*0.5|region=us")
    store.settle(replace(entry, charges=(charge,)))
    (line,) = draft_invoice(store, member="ada", period="2026-11").lines
    assert line.description == f"gpt-5 input tokens{words}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("#1f*0.5|processing=batch", "gpt-5 input tokens, batch"),
        ("[service_tier=priority]#1f*2|service_tier=priority,speed=fast", "gpt-5 input tokens, priority, speed fast"),
        ("[processing=batch]@2026-01-01#1f|processing=batch", "gpt-5 input tokens, batch"),
        ("#1f|region=us", "gpt-5 input tokens"),  # its factor is told
    ],
)
def test_what_a_rule_makes_a_price_for_is_said_like_a_price_of_its_own(store, make_call, found, words):
    entry = make_call("1", member="ada")
    store.settle(replace(entry, charges=(replace(entry.charges[0], price_id=f"openai/gpt-5/input{found}"),)))
    assert [line.description for line in draft_invoice(store, member="ada", period="2026-11").lines] == [words]


def test_a_draft_is_cut_as_its_period_was_closed(store, book, december):
    book("2", member="ada", at="2026-10-31T23:30")  # of November in Berlin
    close_period(store, "2026-11", tz="Europe/Berlin", now=december)
    (each,) = draft_invoices(store, period="2026-11", each="member")
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11", profile={"terms_days": 14}))
    assert (each.period, bill.period.tz, bill.totals.net) == (bill.period, "Europe/Berlin", 2)


def test_what_is_closed_in_another_zone_or_in_one_with_more_is_not_called_open(store, book, december):
    book("2", member="ada", at="2026-11-10T12:00")
    book("2", member="ada", at="2026-08-10T12:00")
    close_period(store, "2026-Q3", tz="Europe/Berlin", now=december)
    close_period(store, "2026-11", tz="Europe/Berlin", now=december)
    in_utc = {"profile": {"tz": "UTC"}, "member": "ada"}
    with pytest.raises(LedgerError, match=r'cut in UTC: 2026-11 was closed in Europe/Berlin\. .* tz = "Europe/Berlin"'):
        issue_invoice(store, draft_invoice(store, period="2026-11", **in_utc))
    with pytest.raises(LedgerError, match=r"2026-Q3 was closed in Europe/Berlin\. Draft the invoice for 2026-Q3\."):
        issue_invoice(store, draft_invoice(store, period="2026-07", **in_utc))
    with pytest.raises(LedgerError, match="2026-10 is still open"):
        issue_invoice(store, draft_invoice(store, period="2026-10", **in_utc))


def test_a_period_is_cut_as_it_was_closed_where_nobody_says_how(store, book, december):
    book("2", member="ada", at="2026-10-31T23:30")  # of November in Berlin
    close_period(store, "2026-11", tz="Europe/Berlin", now=december)
    profile = {"tz": "Europe/Berlin"}
    issue_invoice(store, draft_invoice(store, member="ada", period="2026-11", profile=profile))
    coverage = invoice_coverage(store, period="2026-11")
    assert (coverage.period.tz, coverage.invoiced, coverage.billed_nowhere) == ("Europe/Berlin", 2, 0)
    assert invoice_coverage(store, period="2026-11", tz="UTC").ledger == 0
    assert draw_statement(store, member="ada", period="2026-11").charges == 2
