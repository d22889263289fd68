"""For any ledger: invoice total + rounding = ledger total, over every way to cut it into invoices; and one balance."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmeter.billing import (
    age_balances,
    close_period,
    credit_invoice,
    draft_invoice,
    draw_statement,
    find_invoice,
    issue_invoice,
    journal_entries,
    record_payment,
    void_invoice,
    write_off_invoice,
)
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.money import add, magnitude, multiply, round_money, subtract, total
from tokenmeter.periods import Period
from tokenmeter.stores import open_store

ACCOUNTS = ("ada", "bob", "Zoë")
COSTS = st.decimals(min_value="-5", max_value="50", places=12)
CALLS = st.lists(
    st.tuples(
        COSTS,
        st.sampled_from(ACCOUNTS),
        st.sampled_from(["gpt-5", "gpt-5-mini", "claude-sonnet-5"]),
        st.sampled_from(["usage", "correction", "adjustment"]),
        st.sampled_from(["1", "1.05", "0.333333"]),
        st.integers(min_value=1, max_value=30),
        st.booleans(),
    ),
    max_size=25,
)
RATES = st.one_of(st.none(), st.decimals(min_value="0.01", max_value="200", places=6))


def record(store, make_call, calls):
    for cost, member, model, kind, factor, day, _ in calls:
        at = f"2026-11-{day:02}T10:00"
        store.settle(make_call(cost, at, member=member, model=model, kind=kind, multipliers={"platform": factor}))


def ledger_total(store, member=None):
    entries = [entry for entry in store.entries() if member in {None, entry.attribution.member}]
    return total(entry.billed_cost for entry in entries)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS, rate=RATES, currency=st.sampled_from(["EUR", "JPY", "KWD"]))
def test_total_and_rounding_are_the_ledgers_total(make_call, december, calls, rate, currency):
    store = open_store("memory:")
    record(store, make_call, calls)
    close_period(store, "2026-11", now=december)
    money = {} if rate is None else {"currency": currency, "exchange_rate": rate}
    factor = Decimal(1) if rate is None else rate
    billed = Decimal(0)
    for member in ACCOUNTS:
        bill = issue_invoice(store, draft_invoice(store, member=member, period="2026-11", **money), force=True)
        totals = bill.totals
        exact = multiply(ledger_total(store, member), factor)
        assert add(totals.net, totals.remainder) == exact
        assert add(total(line.amount for line in bill.lines), totals.rounding) == bill.total
        assert total(line.exact_amount for line in bill.lines) == exact
        unit = Decimal((0, (1,), totals.net.as_tuple().exponent))
        assert multiply(magnitude(totals.remainder), 2) <= unit
        billed = add(billed, totals.ledger_cost)
    assert billed == ledger_total(store)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=CALLS)
def test_late_entries_move_between_invoices_but_are_never_lost_or_billed_twice(make_call, december, calls):
    """Whatever is recorded after the closing is on the next period's invoices; together they are the ledger."""
    store = open_store("memory:")
    record(store, make_call, [call for call in calls if not call[-1]])
    close_period(store, "2026-11", now=december)
    record(store, make_call, [call for call in calls if call[-1]])
    close_period(store, "2026-12", now=datetime(2027, 1, 1, tzinfo=UTC))
    billed = total(
        issue_invoice(store, draft_invoice(store, member=member, period=period), force=True).totals.ledger_cost
        for member in ACCOUNTS
        for period in ("2026-11", "2026-12")
    )
    assert billed == ledger_total(store)


PARTS = st.lists(st.integers(min_value=1, max_value=60), min_size=1, max_size=12)
TAXES = st.lists(st.sampled_from(["0.19", "0.081", "0.055", "0.2"]), min_size=1, max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, rates=TAXES, currency=st.sampled_from(["EUR", "JPY", "KWD"]))
def test_credited_in_however_many_parts_an_invoice_gives_back_its_tax_once(make_call, december, parts, rates, currency):
    """A note's tax is its own at the rate, to a minor unit, and never below nothing; the last leaves nothing."""
    unit = Decimal((0, (1,), {"EUR": -2, "JPY": 0, "KWD": -3}[currency]))
    store = open_store("memory:")
    store.settle(make_call(multiply(unit, sum(parts)), member="ada"))
    close_period(store, "2026-11", now=december)
    profile = {"taxes": [{"name": f"Tax {at}", "rate": rate} for at, rate in enumerate(rates)]}
    asked = draft_invoice(store, member="ada", period="2026-11", currency=currency, exchange_rate=1, profile=profile)
    bill = issue_invoice(store, asked)
    notes = [credit_invoice(store, bill, amount, "outage") for amount in (multiply(unit, part) for part in parts[:-1])]
    notes.append(credit_invoice(store, bill, None, "outage"))
    for note in notes:
        for tax in note.taxes:
            alone = round_money(multiply(note.net, tax.rate), currency)
            assert tax.amount >= 0
            assert magnitude(subtract(tax.amount, alone)) <= unit
    for at, tax in enumerate(bill.totals.taxes):
        assert total(note.taxes[at].amount for note in notes) == tax.amount
    assert (find_invoice(store, bill.number).balance, find_invoice(store, bill.number).status) == (0, "credited")


ISSUED = date(2025, 4, 1)
#: What happens, how much of what the invoice is over, and how many days after its issue the money came.
HAPPENED = st.lists(
    st.tuples(
        st.sampled_from(["pay", "pay", "give back", "credit", "write off", "void"]),
        st.integers(min_value=1, max_value=120),
        st.integers(min_value=0, max_value=100),
    ),
    max_size=8,
)


def act(store, number, what, percent, day):
    over = find_invoice(store, number).total
    amount = round_money(multiply(over, Decimal(percent).scaleb(-2)), "USD")
    match what:
        case "pay":
            record_payment(store, number, amount, on=ISSUED + timedelta(days=day))
        case "give back":
            record_payment(store, number, multiply(amount, -1), on=ISSUED + timedelta(days=day))
        case "credit":
            credit_invoice(store, number, magnitude(amount), "outage")
        case "write off":
            write_off_invoice(store, number, "gone")
        case "void":
            void_invoice(store, number, "mistaken")


def stand_on(day):
    """What is over by the end of a day."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    return Period(datetime(2025, 1, 1, tzinfo=UTC), end, "UTC", "so far")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(happened=HAPPENED, cost=st.sampled_from(["100", "-80"]))
def test_balance_statement_aging_and_journal_tell_one_sum_on_every_day(make_call, happened, cost):
    """In whichever order payments, credits, a write-off and a voiding are written down, for whichever days."""
    store = open_store("memory:")
    store.settle(make_call(cost, at="2025-03-10T12:00", member="ada"))
    close_period(store, "2025-03")
    number = issue_invoice(store, draft_invoice(store, member="ada", period="2025-03"), on=ISSUED).number
    for what in happened:
        with suppress(ConfigurationError, LedgerError):
            act(store, number, *what)
    invoice = find_invoice(store, number)
    today = max([ISSUED, *(one.on for one in invoice.events)])
    days = {ISSUED, *(one.on + timedelta(days=off) for one in invoice.events for off in (-1, 0)), today}
    for day in sorted(one for one in days if one >= ISSUED):
        stated = draw_statement(store, member="ada", period=stand_on(day), basis="invoices").closing
        aged = total(one.total for one in age_balances(store, as_of=day))
        booked = journal_entries(store, period=stand_on(day))
        receivable = total(one.amount for entry in booked for one in entry.postings if one.role == "receivable")
        assert stated == aged == receivable
    assert stated == invoice.balance
