"""What budgets promise, on every kind of store."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.attribution import Attribution, current_scopes
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import (
    BudgetExceededError,
    BudgetReservedError,
    ConfigurationError,
    RequestTooLargeError,
    StoreUnavailableError,
)
from tokenmeter.ledger import utcnow
from tokenmeter.meter import Meter
from tokenmeter.money import to_picodollars, total
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.corrections import correction
from tokenmeter.stores import open_store
from tokenmeter.stores.base import EntryFilter
from tokenmeter.usage import Consumption, Observation, SuppliedCost, Usage

MODEL = "gpt-4"  # its context window of 8,192 tokens is all that is known of its answers' length


def pricer_at(price, model=MODEL):
    """A token of the model costs `price` dollars."""
    rows = [
        {"provider": "openai", "model": model, "sku_meter": meter, "unit_price": price, "per": 1}
        for meter in ("input", "output")
    ]
    return Pricer(PriceList.load(rows))


@pytest.fixture
def dollar_pricer():
    return pricer_at("1")


@pytest.fixture
def metered(store, dollar_pricer):
    """A meter on the store under test, with the budgets it is given."""

    made = []

    def build(*budgets, **arguments):
        made.append(Meter(**{"store": store, "pricer": dollar_pricer, "budgets": budgets, **arguments}))
        return made[-1]

    yield build
    for meter in made:
        meter.close()  # what it could not write it would write later, to a ledger that is another test's by then


def a_call(member="ada", *, output=10, size=68, model=MODEL, operation="chat", unbounded=None, **who):
    """A call whose bound is `size` + 32 tokens of prompt and `output` tokens of answer."""
    facts = RequestFacts(model=model, input_bytes=size, max_output_tokens=output, unbounded=unbounded)
    return Call(
        provider="openai",
        endpoint="chat.completions",
        operation=operation,
        facts=facts,
        attribution=Attribution(member=member, **who),
    )


def answered(tokens_in, tokens_out=0, model=MODEL):
    usage = Usage({"input": tokens_in, "output": tokens_out})
    return Outcome(observation=Observation(consumptions=(Consumption(model=model, usage=usage),)))


def spend(meter, call, tokens):
    return meter.settle(meter.authorize(call), answered(tokens))


def named(balance):
    return balance.unit, balance.scope["member"]


class TestCaps:
    def test_exactly_as_many_requests_pass_as_the_limit_says(self, metered):
        meter = metered(Budget(member="*", limit_requests=3))
        for _ in range(3):
            spend(meter, a_call(), 1)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert (stop.value.spent, stop.value.limit, stop.value.scope) == (3, 3, {"member": "ada"})
        meter.authorize(a_call("bob"))

    @pytest.mark.parametrize("period", ["month", "total", "rolling-24h"])
    @pytest.mark.parametrize("output", [10, None], ids=["bounded", "unbounded"])
    def test_a_stop_says_to_come_again_when_the_budget_ends(self, metered, period, output):
        budget = Budget(limit_tokens=0, period=period, ends=utcnow() + timedelta(minutes=20))
        with pytest.raises(BudgetExceededError) as stop:
            metered(budget).authorize(a_call(output=output))
        assert 0 < stop.value.retry_after <= 20 * 60
        assert stop.value.resets_at == budget.ends
        assert f"The budget ends at {budget.ends.isoformat()}." in str(stop.value)
        assert stop.value.to_dict()["ends"] is True

    def test_what_is_held_counts_until_it_is_settled_with_the_truth(self, metered):
        meter = metered(Budget(limit_tokens=220))
        first, second = meter.authorize(a_call()), meter.authorize(a_call())
        with pytest.raises(BudgetReservedError) as stop:
            meter.authorize(a_call())
        assert stop.value.retryable
        assert stop.value.retry_after > 0
        assert (stop.value.spent, stop.value.reserved, stop.value.requested) == (0, 220, 110)
        meter.settle(first, answered(50, 5))
        meter.settle(second, answered(50, 5))
        meter.authorize(a_call())

    def test_a_released_call_gives_its_hold_back(self, metered):
        meter = metered(Budget(limit_tokens=110))
        meter.release(meter.authorize(a_call()))
        meter.authorize(a_call())

    def test_spending_that_leaves_no_room_stops_until_the_window_ends(self, metered):
        meter = metered(Budget(limit_usd=100, period="day", tz="Asia/Tokyo"))
        spend(meter, a_call(size=0), 100)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(size=0))
        assert type(stop.value) is BudgetExceededError
        assert not stop.value.retryable
        assert stop.value.resets_at.hour == 15  # midnight in Tokyo
        assert timedelta() < stop.value.resets_at - utcnow() <= timedelta(days=1)

    def test_a_call_that_is_too_large_hears_what_would_fit(self, metered):
        meter = metered(Budget(limit_usd=200))
        spend(meter, a_call(), 60)
        with pytest.raises(RequestTooLargeError) as stop:
            meter.authorize(a_call(output=500))
        assert stop.value.max_affordable_output_tokens == 200 - 60 - 100
        meter.authorize(a_call(output=stop.value.max_affordable_output_tokens))

    def test_a_call_larger_than_the_whole_limit_is_never_retryable(self, metered):
        with pytest.raises(RequestTooLargeError) as stop:
            metered(Budget(limit_tokens=50)).authorize(a_call())
        assert stop.value.max_affordable_output_tokens == 0

    def test_all_matching_budgets_must_have_room_and_none_is_touched_otherwise(self, metered, store):
        meter = metered(
            Budget(limit_requests=5), Budget(member="ada", limit_requests=1), Budget(team="x", limit_tokens=110)
        )
        spend(meter, a_call(team="x"), 1)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(team="x"))
        assert stop.value.budget == "member=ada requests/month"
        assert {counter.reserved for _, counter in store.all_counters()} == {0}

    def test_a_soft_budget_only_counts(self, metered):
        meter = metered(Budget(limit_requests=1, hard=False))
        for _ in range(3):
            spend(meter, a_call(), 1)
        (balance,) = meter.remaining()
        assert (balance.spent, balance.remaining, balance.hard) == (3, -2, False)

    def test_a_budget_counts_only_between_its_dates(self, metered):
        meter = metered(Budget(limit_requests=1, ends="2020-01-01"))
        for _ in range(2):
            spend(meter, a_call(), 1)
        assert meter.remaining() == []

    def test_a_cost_beyond_the_bound_is_recorded_flagged_and_stops_the_next_call(self, metered):
        meter = metered(Budget(limit_usd=300))
        entry = spend(meter, a_call(), 400)
        assert (entry.billed_cost, entry.flags) == (400, ("bound_violation",))
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert stop.value.spent == 400

    def test_an_answers_own_model_name_does_not_move_it_to_another_counter(self, metered):
        meter = metered(Budget(model=MODEL, limit_requests=1))
        meter.settle(
            meter.authorize(a_call()), replace(answered(1), observation=Observation(response_model=f"{MODEL}-0613"))
        )
        with pytest.raises(BudgetExceededError):
            meter.authorize(a_call())

    @pytest.mark.slow
    def test_thousands_of_members_have_a_counter_each(self, metered, store):
        meter = metered(Budget(member="*", limit_requests=1))
        for number in range(2000):
            meter.authorize(a_call(f"m{number}"))
        assert sum(key.scope != "" for key, _ in store.all_counters()) == 2000
        with pytest.raises(BudgetReservedError):
            meter.authorize(a_call("m1234"))


def priced_since(entry):
    """The correction of an unpriced entry whose 120 tokens cost 6 dollars."""
    taken_back = replace(entry.charges[0], quantity=-120)
    priced = replace(entry.charges[0], list_cost=Decimal(6), contracted_cost=Decimal(6), billed_cost=Decimal(6))
    return replace(
        entry,
        entry_id="c" * 32,
        kind="correction",
        usage=Usage(),
        charges=(taken_back, priced),
        billed_cost=Decimal(6),
        cost_source="computed",
        flags=(),
    )


@pytest.fixture
def of_before(monkeypatch):
    """Entries are those of before they said what counts for tokens without a price."""
    monkeypatch.setattr("tokenmeter.meter.meter.with_assumed", lambda entry, _: entry)


class TestBounds:
    @pytest.mark.parametrize("why", ["server_tools", "advisor", "background"])
    def test_a_call_without_a_bound_is_refused_with_its_reason(self, metered, why):
        with pytest.raises(RequestTooLargeError, match="no upper bound") as stop:
            metered(Budget(limit_usd=10**6)).authorize(a_call(unbounded=why))
        assert stop.value.requested is None
        assert "unbounded='expected'" in str(stop.value)

    def test_a_new_model_is_held_at_the_dearest_known_price_of_its_provider(self, metered):
        leave = metered(Budget(limit_usd=10**6)).authorize(a_call(model="unknown"))
        assert leave.reservation.claims[0].amount == 110 * 10**12

    def test_by_choice_a_model_without_a_price_is_refused(self, metered):
        with pytest.raises(RequestTooLargeError, match=r"price is not known.*unknown_price='hold'"):
            metered(Budget(limit_usd=10**6, unknown_price="refuse")).authorize(a_call(model="unknown"))

    def test_tokens_need_no_price(self, metered):
        metered(Budget(limit_tokens=10**6)).authorize(a_call(model="unknown"))

    def test_by_choice_a_call_without_a_bound_holds_what_is_known(self, metered):
        meter = metered(Budget(limit_usd=200, unbounded="expected"))
        first = meter.authorize(a_call(unbounded="server_tools"))
        meter.settle(first, answered(200))
        with pytest.raises(BudgetExceededError):
            meter.authorize(a_call(unbounded="server_tools", size=0, output=1))

    def test_what_has_no_price_counts_at_the_dearest_known_rate(self, metered, store):
        meter = metered(Budget(limit_usd=150, unbounded="expected"))
        leave = meter.authorize(a_call(model="unknown", size=8))
        assert leave.reservation.claims[0].amount == 50 * 10**12  # 8 + 32 + 10 tokens
        entry = meter.settle(leave, answered(120, model="unknown"))
        assert (entry.cost_source, entry.billed_cost) == ("unpriced", None)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(model="unknown", size=8))
        assert stop.value.spent == 120
        (balance,) = meter.remaining()
        assert (balance.spent, balance.assumed) == (120, 120)
        assert balance.to_dict()["assumed"] == "120"
        assert meter.audit_budgets() == ()

    def test_what_is_assumed_is_told_apart_per_counter_and_window(self, metered):
        meter = metered(
            Budget(member="*", limit_usd=1000, period="total", unbounded="expected"),
            Budget(limit_usd=1000, period="rolling-1h", unbounded="expected"),
            Budget(limit_tokens=10**6, period="total", unbounded="expected"),
        )
        spend(meter, a_call("ada"), 5)
        meter.settle(meter.authorize(a_call("ada", model="new")), answered(7, model="new"))
        spend(meter, a_call("bob"), 3)
        told = {(one.unit, one.scope.get("member"), one.assumed) for one in meter.remaining()}
        assert told == {("usd", "ada", 7), ("usd", "bob", 0), ("usd", None, 7), ("tokens", None, 0)}

    @pytest.mark.parametrize("then", ["nothing", "reprice", "take back", "both"])
    def test_what_is_assumed_stands_in_the_entry_and_is_counted_by_every_reader(self, metered, store, then):
        budget = Budget(limit_usd=1000, period="total", unbounded="expected")
        meter = metered(budget)
        spend(meter, a_call(), 5)
        entry = meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        assert "assumed_usd=120000000000000" in entry.flags
        other = metered(budget, pricer=pricer_at("2", model="new" if then in {"reprice", "both"} else MODEL))
        if then in {"reprice", "both"}:
            other.post(correction(entry, other.pricer))
        if then in {"take back", "both"}:
            other.take_back(entry, a_call())
        spent = {"nothing": 125, "reprice": 245}.get(then, 5)
        (balance,) = other.remaining()
        assert (balance.spent, balance.assumed) == (spent, 120 if then == "nothing" else 0)
        assert metered(budget, pricer=pricer_at("0.5")).audit_budgets() == ()

    def test_a_counter_that_differs_from_what_entries_say_they_count_is_a_fault(self, metered, store):
        budget = Budget(limit_usd=1000, period="total", unbounded="expected")
        meter = metered(budget)
        meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        key = max(store.all_counters(), key=lambda one: one[1].settled)[0]
        store.recount(lambda: {key: (120 * 10**12 + 1, None)})
        reader = metered(budget, pricer=pricer_at("2"))
        (fault,) = reader.audit_budgets(repair=True)
        assert fault.detail == "the counter says 120.000000000001, the ledger 120"
        assert (reader.audit_budgets(), reader.remaining()[0].spent) == ((), 120)

    def test_a_new_budget_counts_what_was_recorded_without_one_as_its_entries_say(self, metered):
        meter = metered()
        meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        later = metered(Budget(limit_usd=1000, period="total", unbounded="expected"), pricer=pricer_at("2"))
        assert later.remaining()[0].spent == 120

    def test_new_budgets_that_are_alike_are_read_at_once_each_as_it_is_by_itself(self, metered, store, monkeypatch):
        before = metered()
        members = [f"member-{number}" for number in range(9)]
        for number, member in enumerate(members):
            for _ in range(number):
                before.settle(before.authorize(a_call(member, route="r")), answered(number))
        before.settle(before.authorize(a_call("member-8", model="new")), answered(5, model="new"))
        budgets = [
            Budget(**limit, member=member, unbounded="expected")
            for limit in ({"limit_requests": 9}, {"limit_usd": 10**6})
            for member in members
        ]
        other = Budget(member="member-8", limit_tokens=10**6, unbounded="expected")
        alone = {named(one): one.spent for each in budgets for one in metered(each).remaining()}
        asked, aggregate = [], store.aggregate
        monkeypatch.setattr(store, "aggregate", lambda *about: asked.append(about) or aggregate(*about))
        together = {named(one): one.spent for one in metered(*budgets, other).remaining()}
        assert together.items() >= alone.items()
        assert len(together) == len(alone) + 1
        assert len(asked) < 9

    def test_nothing_is_assumed_beside_what_was_held_for_a_call_of_unknown_usage(self, metered):
        meter = metered(Budget(limit_usd=1000, unbounded="expected"))
        part = Consumption(model="new", usage=Usage({"input": 7}))
        seen = Observation(consumptions=(part,), flags=frozenset({"usage_unknown"}))
        entry = meter.settle(meter.authorize(a_call(model="new")), Outcome(observation=seen))
        assert {"assumed_usd=0", "held_usd=110000000000000"} < {*entry.flags}
        assert meter.remaining()[0].spent == 110

    def test_a_stated_bill_of_what_has_no_counts_is_what_counts(self, metered):
        meter = metered(Budget(limit_usd=1000, unbounded="expected"))
        bill = Consumption(model="new", usage=Usage(), supplied_cost=SuppliedCost(Decimal("0.25"), "usage.cost"))
        seen = Observation(consumptions=(bill,), flags=frozenset({"usage_unknown"}))
        entry = meter.settle(meter.authorize(a_call(model="new")), Outcome(observation=seen))
        assert meter.remaining()[0].spent == entry.billed_cost
        assert (entry.list_cost, meter.audit_budgets()) == (Decimal("0.25"), ())

    @pytest.mark.parametrize("price", ["0.5", "2"])
    @pytest.mark.parametrize("repriced", [False, True])
    def test_what_another_price_list_assumes_is_no_fault_of_a_counter(self, metered, store, of_before, price, repriced):
        budget = Budget(limit_usd=1000, period="total", unbounded="expected")
        meter = metered(budget)
        spend(meter, a_call(), 5)
        entry = meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        other = metered(budget, pricer=pricer_at(price))
        if repriced:
            fix = priced_since(entry)
            store.settle(fix, other.budgets.postings(fix))
        assert other.audit_budgets() == ()

    @pytest.mark.parametrize("price", ["0.5", "2"])
    def test_what_is_certain_must_be_counted_beside_what_is_assumed(self, metered, store, of_before, price):
        budget = Budget(limit_usd=1000, period="total", unbounded="expected")
        meter = metered(budget)
        spend(meter, a_call(), 5)
        meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        key = max(store.all_counters(), key=lambda one: one[1].settled)[0]
        store.recount(lambda: {key: (5 * 10**12 - 1, None)})
        (fault,) = metered(budget, pricer=pricer_at(price)).audit_budgets()
        assert "the counter says 4.999999999999" in fault.detail

    def test_a_price_found_later_replaces_the_dearest_rate(self, metered, store):
        meter = metered(Budget(limit_usd=1000, unbounded="expected"))
        entry = meter.settle(meter.authorize(a_call(model="new")), answered(120, model="new"))
        fix = priced_since(entry)
        store.settle(fix, meter.budgets.postings(fix))
        assert (meter.remaining()[0].spent, meter.remaining()[0].assumed) == (6, 0)

    def test_expected_holds_learn_what_a_route_really_uses(self, metered, store):
        meter = metered(Budget(limit_tokens=10**6, estimate="expected"))
        for _ in range(25):
            meter.settle(meter.authorize(a_call(output=1000)), answered(60, 7))
        hold = meter.authorize(a_call(output=1000)).reservation
        assert hold.claims[0].amount == 68 // 2 + 7

    def test_without_a_cap_the_models_maximum_is_held(self, metered):
        hold = metered(Budget(limit_tokens=10**6)).authorize(a_call(output=None)).reservation
        assert hold.claims[0].amount == 100 + 8192

    def test_a_cap_is_injected_as_far_as_every_budget_can_pay(self, metered):
        meter = metered(Budget(limit_usd=500, inject_max_tokens=True), Budget(limit_tokens=400))
        leave = meter.authorize(a_call(output=None))
        assert leave.inject_max_output_tokens == 300
        assert {claim.limit for claim in leave.reservation.claims if claim.amount in {400, 400 * 10**12}} == {
            400,
            500 * 10**12,
        }

    def test_no_cap_is_injected_where_the_maximum_fits_or_the_caller_named_one(self, metered):
        meter = metered(Budget(limit_usd=9000, inject_max_tokens=True))
        assert meter.authorize(a_call(output=None)).inject_max_output_tokens is None
        assert meter.authorize(a_call(output=20)).inject_max_output_tokens is None

    def test_an_exhausted_budget_injects_nothing_and_stops(self, metered):
        meter = metered(Budget(limit_usd=100, inject_max_tokens=True))
        spend(meter, a_call(size=0), 100)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(output=None))
        assert type(stop.value) is BudgetExceededError


class TestRateLimits:
    def test_never_more_than_the_limit_in_a_minute(self, metered):
        meter = metered(Budget(limit_requests=2, period="rolling-60s"))
        for _ in range(2):
            spend(meter, a_call(), 1)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert 0 < stop.value.retry_after <= 70
        assert timedelta() < stop.value.resets_at - utcnow() <= timedelta(seconds=70)

    def test_room_comes_back(self, metered, monkeypatch):
        meter = metered(Budget(limit_requests=2, period="rolling-60s"))
        start = datetime(2026, 11, 23, 12, tzinfo=UTC)
        passed, waits = [], []
        for second in range(0, 600, 5):
            now = start + timedelta(seconds=second)
            monkeypatch.setattr(meter.store, "now", lambda now=now: now)
            try:
                spend(meter, a_call(), 1)
                passed.append(second)
            except BudgetExceededError as stop:
                waits.append((stop.resets_at - now).total_seconds())
        assert 0 < min(waits) <= max(waits) <= 70
        assert all(later - earlier >= 60 for earlier, later in zip(passed, passed[2:], strict=False))
        assert len(passed) >= 600 // 70 * 2


class TestHolds:
    def test_an_expired_hold_becomes_an_estimated_entry_and_gives_its_room_back(self, metered, store):
        meter = metered(Budget(limit_tokens=120), hold_seconds=10)
        lost = meter.authorize(a_call(size=40))
        assert meter.sweep(utcnow() + timedelta(seconds=11)) == 1
        entry = store.entry(lost.reservation.reservation_id)
        assert entry.cost_source == "estimated"
        assert {"estimated", "expired_hold"} <= set(entry.flags)
        assert entry.billed_cost == 10  # 40 bytes are about 10 tokens
        (balance,) = meter.remaining()
        assert (balance.spent, balance.reserved) == (10, 0)
        assert meter.sweep(utcnow() + timedelta(seconds=11)) == 0

    @pytest.mark.parametrize("endpoint", ["images.generate", "models.generate_images", "/v1/new/thing"])
    def test_an_expired_hold_for_what_may_be_no_words_counts_what_was_held(self, metered, store, endpoint):
        """Its prompt is no estimate of what it cost."""
        meter = metered(Budget(limit_usd=900, unbounded="expected"), hold_seconds=10)
        drawn = meter.authorize(replace(a_call(size=40), endpoint=endpoint))
        (held,) = (claim.amount for claim in drawn.reservation.claims)
        assert meter.sweep(utcnow() + timedelta(seconds=11)) == 1
        entry = store.entry(drawn.reservation.reservation_id)
        assert (entry.cost_source, "usage_unknown" in entry.flags) == ("unpriced", True)
        assert to_picodollars(meter.remaining()[0].spent) == held
        meter.settle(drawn, answered(30, 7))
        assert (meter.remaining()[0].spent, meter.audit_budgets()) == (37, ())

    def test_a_call_that_ends_after_its_hold_expired_is_one_request(self, metered, store):
        meter = metered(Budget(limit_requests=9), Budget(limit_tokens=10**6), Budget(limit_usd=900), hold_seconds=10)
        late = meter.authorize(a_call(size=40))
        assert meter.sweep(utcnow() + timedelta(seconds=11)) == 1
        meter.settle(late, answered(30, 7))
        (totals,) = store.aggregate([datetime(2020, 1, 1, tzinfo=UTC), utcnow() + timedelta(days=1)], [])
        assert (totals.requests, totals.errors, totals.estimated) == (1, 0, 0)
        assert (totals.quantities, totals.billed_cost) == ({"input": 30, "output": 7}, 37)
        assert {one.unit: one.spent for one in meter.remaining()} == {"requests": 1, "tokens": 37, "usd": 37}
        assert meter.audit_budgets() == ()
        assert [entry.kind for entry in store.entries()].count("reversal") == 1

    @pytest.mark.parametrize("limits", [(), ("usd", "requests")], ids=["free", "capped"])
    @pytest.mark.parametrize("host", ["spool", "other"])
    def test_an_answer_replaces_the_estimate_of_a_sweep_that_came_too_early(self, metered, store, limits, host):
        budgets = [Budget(**{f"limit_{unit}": 900}) for unit in limits]
        meter = metered(*budgets)
        call = a_call()
        late = meter.authorize(replace(call, facts=replace(call.facts, streamed=True)))
        meter.flush()  # another host finds what has arrived
        url = store.url.replace("/spool", f"/{host}")
        elsewhere = store if url.startswith("memory") else open_store(url)  # whose clock is days ahead
        assert metered(*budgets, store=elsewhere).sweep(utcnow() + timedelta(days=2)) == 1
        meter.settle(late, answered(30, 7))
        (totals,) = store.aggregate([datetime(2020, 1, 1, tzinfo=UTC), utcnow() + timedelta(days=1)], [])
        assert (totals.requests, totals.estimated, totals.billed_cost) == (1, 0, 37)
        assert {one.unit: (one.spent, one.reserved) for one in meter.remaining()} == {
            unit: ({"usd": 37, "requests": 1}[unit], 0) for unit in limits
        }
        assert meter.audit_budgets() == ()

    @pytest.mark.parametrize("host", ["spool", "other"])
    def test_a_call_that_costs_nothing_leaves_no_estimate_of_a_sweep_that_came_too_early(self, metered, store, host):
        meter = metered(Budget(limit_usd=900), Budget(limit_requests=9))
        late = meter.authorize(a_call())
        meter.flush()  # another host finds what has arrived
        url = store.url.replace("/spool", f"/{host}")
        elsewhere = store if url.startswith("memory") else open_store(url)
        assert metered(store=elsewhere).sweep(utcnow() + timedelta(days=2)) == 1
        meter.release(late)
        (totals,) = store.aggregate([datetime(2020, 1, 1, tzinfo=UTC), utcnow() + timedelta(days=1)], [])
        assert (totals.requests, totals.billed_cost) == (0, 0)
        assert {(one.spent, one.reserved) for one in meter.remaining()} == {(0, 0)}
        assert meter.audit_budgets() == ()

    @pytest.mark.parametrize("unit", ["usd", "tokens"])
    def test_what_was_held_for_a_call_of_unknown_usage_is_taken_back_with_it(self, metered, store, unit):
        meter = metered(Budget(**{f"limit_{unit}": 1000}))
        call = a_call()
        unknown = Outcome(status="ok", observation=Observation(flags=frozenset({"usage_unknown"})))
        entry = meter.settle(meter.authorize(call), unknown)
        assert meter.remaining()[0].spent > 0
        meter.take_back(entry, call)
        assert meter.remaining()[0].spent == 0
        assert meter.audit_budgets() == ()

    def test_a_full_budget_sweeps_expired_holds_before_it_stops_a_call(self, metered, store):
        meter = metered(Budget(limit_requests=2))
        lost = meter.authorize(a_call())
        meter.authorize(a_call())
        store.extend(lost.reservation.reservation_id, utcnow() - timedelta(seconds=1))
        with pytest.raises(BudgetExceededError):  # its estimated entry counts as a request
            meter.authorize(a_call())
        assert store.entry(lost.reservation.reservation_id) is not None

    def test_a_late_answer_replaces_the_estimate(self, metered, store):
        meter = metered(Budget(limit_usd=1000), Budget(limit_requests=10), Budget(limit_tokens=1000))
        late = meter.authorize(a_call(size=40))
        meter.sweep(utcnow() + timedelta(hours=1))
        assert meter.settle(late, answered(33, 3)) is not None
        assert [balance.spent for balance in meter.remaining()] == [36, 1, 36]
        assert total(entry.billed_cost for entry in store.entries()) == 36

    def test_a_live_stream_keeps_its_hold(self, metered, store, monkeypatch):
        meter = metered(Budget(limit_requests=1), hold_seconds=10)
        leave = meter.authorize(a_call())
        soon = leave.reservation.expires_at + timedelta(seconds=1)
        leave.extend_due_ns = time.perf_counter_ns() + 10**15
        meter.extend(leave)  # not due yet
        assert len(store.expired(soon)) == 1
        leave.extend_due_ns = 0
        monkeypatch.setattr(store, "now", lambda: soon)
        meter.extend(leave)
        until = time.monotonic() + 60
        while store.expired(soon) and time.monotonic() < until:
            time.sleep(0.01)  # a store behind a network is asked by a thread
        assert len(store.expired(soon)) == 0
        assert len(store.expired(soon + timedelta(seconds=11))) == 1

    def test_settling_twice_bills_once_what_the_provider_identifies(self, metered):
        meter = metered(Budget(limit_usd=1000))
        seen = Observation(
            consumptions=(Consumption(model=MODEL, usage=Usage({"input": 5})),), response_id="r1", deduplicate=True
        )
        assert meter.settle(meter.authorize(a_call()), Outcome(observation=seen)) is not None
        assert meter.settle(meter.authorize(a_call()), Outcome(observation=seen)) is None
        (balance,) = meter.remaining()
        assert (balance.spent, balance.reserved) == (5, 0)

    def test_a_call_billed_twice_keeps_its_hold_until_the_last(self, metered):
        meter = metered(Budget(limit_usd=1000))
        leave = meter.authorize(a_call())
        meter.settle(leave, replace(answered(7), last=False))
        assert meter.remaining()[0].reserved == 110
        meter.settle(leave, answered(8))
        assert (meter.remaining()[0].spent, meter.remaining()[0].reserved) == (15, 0)


class TestRaises:
    def test_of_a_budget_with_several_limits_the_one_that_is_named_is_raised(self, metered):
        meter = metered(Budget(limit_usd=50, limit_requests=2, name="all"))
        with pytest.raises(ConfigurationError, match="unit="):
            meter.raise_budget("all", 1, by="grace", reason="launch")
        assert meter.raise_budget("all", 1, by="grace", reason="launch", unit="requests").unit == "requests"
        assert {one.unit: one.limit for one in meter.remaining()} == {"usd": 50, "requests": 3}

    def test_a_raise_is_recorded_and_gives_room_at_once(self, metered, store):
        meter = metered(Budget(member="*", limit_usd=100, name="members"))
        spend(meter, a_call(size=0), 100)
        grant = meter.raise_budget("members", 50, by="grace", reason="launch week", scope={"member": "ada"})
        assert (grant.by, grant.reason, grant.amount) == ("grace", "launch week", 50)
        assert meter.budgets.grants("members", {"member": "ada"}) == [grant]
        assert [entry.kind for entry in store.entries()] == ["usage"]
        (balance,) = meter.remaining(member="ada")
        assert (balance.limit, balance.spent, balance.remaining) == (150, 100, 50)
        spend(meter, a_call(size=0), 20)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert (stop.value.limit, stop.value.spent) == (150, 120)
        assert meter.audit_budgets() == ()

    def test_what_lets_calls_pass_again_is_said_where_waiting_does_not(self, metered):
        meter = metered(Budget(member="*", limit_usd=0, period="total", name="a credit"))
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(size=0))
        assert "It never resets: grant it more (`tokenmeter budgets grant 'a credit' ...`), or raise" in str(stop.value)
        meter.budgets.grant("a credit", 200, by="grace", reason="r", scope={"member": "ada"}, at="2026-01-01")
        spend(meter, a_call(size=0), 20)
        with tokenmeter.budget(limit_requests=0), pytest.raises(BudgetExceededError) as stop:
            meter.authorize(replace(a_call(size=0), scopes=current_scopes()))
        assert "That is all this run may use" in str(stop.value)

    def test_what_is_left_where_no_such_call_fits_is_said(self, metered):
        meter = metered(Budget(member="*", limit_usd=0, period="total", name="credit"))
        meter.budgets.grant("credit", 200, by="grace", reason="r", scope={"member": "ada"}, at="2026-01-01")
        spend(meter, a_call(), 110)
        with pytest.raises(BudgetExceededError, match=r"What is left, \$90, is for smaller calls, .* grant it more"):
            meter.authorize(a_call())
        with tokenmeter.budget(limit_tokens=120) as run:
            spend(meter, replace(a_call(size=48), scopes=current_scopes()), 80)
            with pytest.raises(BudgetExceededError, match=r"What is left, 40 tokens, is for .* needs another run"):
                meter.authorize(replace(a_call(), scopes=current_scopes()))
            assert run.left == {"tokens": 40}

    @pytest.mark.parametrize("expires", [None, "2026-02-01"], ids=["for good", "expired"])
    def test_who_has_no_limit_has_none_whatever_is_given_and_taken_back(self, expires, metered):
        table = {"ada": "unlimited", "bob": 20}
        meter = metered(Budget(member="*", limit_usd=1, limit=table, period="total", name="plans"))
        for member in table:
            scope = {"member": member}
            meter.budgets.grant("plans", 3, by="grace", reason="r", scope=scope, at="2026-01-01", expires=expires)
            meter.budgets.grant("plans", -5, by="grace", reason="r", scope=scope, at="2026-01-01")
        left = {one.scope["member"]: one for member in table for one in meter.remaining(member=member)}
        assert str(left["ada"].limit) == "Infinity"
        assert left["bob"].limit == 18  # of what expires first it is taken first

    def test_it_ends_with_its_window(self, metered):
        meter = metered(Budget(limit_usd=100, name="all"))
        meter.raise_budget("all", 50, by="grace", reason="launch", at=utcnow() - timedelta(days=62))
        assert meter.remaining()[0].limit == 100

    @pytest.mark.parametrize(
        ("name", "amount", "scope", "problem"),
        [
            ("nobody", 1, {}, "No budget is called"),
            ("members", 1, {}, "say which member"),
            ("members", -1, {"member": "ada"}, "positive"),
            ("members", "1E-13", {"member": "ada"}, "multiple of"),
            ("members", 1, {"member": "ada", "team": "x"}, "team is not in it"),
            ("rate", 1, {}, "rate limit"),
            ("ada", 1, {"member": "bob"}, "not 'bob'"),
        ],
    )
    def test_a_raise_of_nothing_is_refused(self, metered, name, amount, scope, problem):
        meter = metered(
            Budget(member="*", limit_usd=1, name="members"),
            Budget(limit_requests=1, period="rolling-60s", name="rate"),
            Budget(member="ada", limit_requests=1, name="ada"),
        )
        with pytest.raises(ConfigurationError, match=problem):
            meter.raise_budget(name, amount, by="grace", reason="test", scope=scope)


class TestReading:
    def test_remaining_names_what_concerns_a_member_and_when_it_resets(self, metered):
        meter = metered(
            Budget(member="*", limit_usd=1000),
            Budget(limit_tokens=10_000, period="total"),
            Budget(team="search", limit_requests=1),
            Budget(member="ada", model="*", limit_requests=5),
            Budget(member="bob", limit_requests=5),
        )
        spend(meter, a_call(), 30)
        balances = {balance.budget: balance for balance in meter.remaining(member="ada")}
        assert list(balances) == ["member=* usd/month", "all tokens/total", "model=*,member=ada requests/month"]
        assert balances["member=* usd/month"].remaining == 970
        assert balances["member=* usd/month"].resets_at.day == 1
        assert balances["all tokens/total"].resets_at is None
        assert balances["model=*,member=ada requests/month"].scope == {"member": "ada", "model": MODEL}
        assert balances["member=* usd/month"].to_dict()["remaining"] == "970"

    def test_without_a_scope_every_counter_of_the_window_is_listed(self, metered):
        meter = metered(Budget(member="*", limit_requests=5))
        for member in ("ada", "bob", "with,comma=and%sign"):
            spend(meter, a_call(member), 1)
        assert [balance.scope["member"] for balance in meter.remaining()] == ["ada", "bob", "with,comma=and%sign"]

    def test_counters_equal_the_ledger_and_drift_is_found_and_mended(self, metered, store):
        meter = metered(Budget(member="*", limit_usd=1000), Budget(limit_requests=9, period="rolling-60s"))
        for _ in range(3):
            spend(meter, a_call(), 5)
        assert meter.audit_budgets() == ()
        key = next(key for key, _ in store.all_counters() if key.scope == "member=ada")
        store.recount(lambda: {key: (14, None)})
        (fault,) = meter.audit_budgets(repair=True)
        assert fault.kind == "counter"
        assert "the ledger 15" in fault.detail
        assert meter.audit_budgets() == ()
        assert meter.remaining(member="ada")[0].spent == 15

    def test_a_counter_that_somebody_took_out_is_found_and_made_again(self, metered, store):
        """Without one the whole limit could be spent once more."""
        meter = metered(Budget(member="*", limit_usd=1000), Budget(limit_requests=9, period="total", name="nine"))
        for member in ("ada", "bob"):
            spend(meter, a_call(member), 5)
        assert meter.audit_budgets() == ()
        for change in (
            "DELETE FROM counters WHERE scope IN ('', 'member=ada') AND budget NOT LIKE '%opened'",
            "UPDATE counters SET budget = 'other' WHERE scope = 'member=bob'",
        ):
            store.end().write(lambda rows, change=change: rows.execute(change))
        told = {
            fault.where.partition(" 20")[0].partition(" 19")[0]: fault.detail
            for fault in meter.audit_budgets(repair=True)
        }
        assert told == {
            "member=* usd/month member=ada": "there is no counter for 5",
            "member=* usd/month member=bob": "there is no counter for 5",
            "nine [requests/total] all": "there is no counter for 2",
        }
        assert meter.audit_budgets() == ()
        assert {one.budget: one.spent for one in meter.remaining(member="ada")} == {"member=* usd/month": 5, "nine": 2}

    def test_what_is_spent_while_a_counter_is_mended_stays_counted(self, metered, store, monkeypatch):
        meter, recount = metered(Budget(member="*", limit_usd=1000)), store.recount
        spend(meter, a_call(), 5)
        key = next(key for key, _ in store.all_counters() if key.scope == "member=ada")
        recount(lambda: {key: (4, None)})

        def recount_after_another_call(count):
            spend(meter, a_call(), 5)
            recount(count)

        monkeypatch.setattr(store, "recount", recount_after_another_call)
        (fault,) = meter.audit_budgets(repair=True)
        assert "the ledger 5" in fault.detail
        assert meter.audit_budgets() == ()
        assert meter.remaining(member="ada")[0].spent == 10

    def test_a_correction_of_cost_moves_dollars_only(self, metered, store):
        meter = metered(Budget(limit_usd=1000), Budget(limit_tokens=1000), Budget(limit_requests=1000))
        entry = spend(meter, a_call(), 5)
        more = replace(entry, entry_id="c" * 32, kind="correction", corrects=entry.entry_id, billed_cost=Decimal(2))
        store.settle(more, meter.budgets.postings(more))
        assert [balance.spent for balance in meter.remaining()] == [7, 5, 1]


class TestOpening:
    def test_a_budget_added_in_mid_month_knows_what_the_month_has_cost(self, metered, store):
        for member in ("ada", "ada", "bob"):
            spend(metered(), a_call(member), 40)
        budgets = Budget(member="*", limit_usd=150), Budget(limit_requests=9), Budget(team="x", limit_usd=9)
        meter = metered(*budgets)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(output=1))
        assert stop.value.spent == 80
        again = metered(*budgets)
        spend(again, a_call("cora"), 1)
        spent = {(balance.budget, *balance.scope.values()): balance.spent for balance in metered(*budgets).remaining()}
        assert spent == {
            ("member=* usd/month", "ada"): 80,
            ("member=* usd/month", "bob"): 40,
            ("member=* usd/month", "cora"): 1,
            ("all requests/month",): 4,
            ("team=x usd/month", "x"): 0,
        }
        assert again.audit_budgets() == ()
        assert total(entry.billed_cost for entry in store.entries()) == 121

    def test_many_that_start_at_once_open_it_once(self, metered):
        for _ in range(20):
            spend(metered(), a_call(), 5)
        meters = [metered(Budget(limit_usd=1000)) for _ in range(8)]
        threads = [threading.Thread(target=meter.remaining) for meter in meters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [balance.spent for balance in meters[0].remaining()] == [100]

    def test_a_budget_counted_from_the_first_call_has_no_opening_entry(self, metered, store):
        for _ in range(3):
            spend(metered(Budget(limit_usd=1000)), a_call(), 5)
        assert [entry.kind for entry in store.entries()] == ["usage"] * 3


class TestAlerts:
    def test_each_threshold_fires_once_per_window_over_all_meters(self, metered):
        seen = []
        meters = [metered(Budget(member="*", limit_usd=1000), alerts=[seen.append]) for _ in range(2)]
        for number in range(9):
            spend(meters[number % 2], a_call(), 100)
        for meter in meters:
            assert meter.budgets.alerts.flush(5)
        assert sorted(alert.threshold for alert in seen) == [50, 80]
        first = min(seen, key=lambda alert: alert.threshold)
        assert (first.spent, first.limit, first.scope, first.unit) == (500, 1000, {"member": "ada"}, "usd")
        assert first.window_start <= first.at < first.window_end
        assert len({alert.alert_id for alert in seen}) == 2

    def test_one_large_call_crosses_several(self, metered):
        seen = []
        meter = metered(Budget(limit_usd=100, hard=False), alerts=[seen.append])
        spend(meter, a_call(), 500)
        meter.budgets.alerts.flush(5)
        assert [alert.threshold for alert in seen] == [50, 80, 100]


class TestFaults:
    @pytest.fixture
    def broken(self, store, monkeypatch):
        def fail(*_, **__):
            raise StoreUnavailableError("the disk is gone")

        def breaks(*names):
            for name in names:
                monkeypatch.setattr(store, name, fail)

        return breaks

    def test_a_hard_cap_fails_closed(self, metered, broken):
        meter = metered(Budget(limit_requests=9))
        broken("reserve")
        with pytest.raises(StoreUnavailableError, match=r"not sent.*store_failure='open'") as caught:
            meter.authorize(a_call())
        assert "the disk is gone" in str(caught.value.__cause__)

    def test_by_choice_it_fails_open_and_is_counted(self, metered, broken):
        meter = metered(Budget(limit_requests=9, store_failure="open"))
        broken("reserve")
        assert meter.authorize(a_call()).reservation is None
        assert meter.faults == 1

    def test_a_soft_budget_never_stops_a_call(self, metered, broken):
        meter = metered(Budget(limit_requests=9, hard=False))
        broken("reserve", "counters", "settle")
        assert meter.settle(meter.authorize(a_call()), answered(1)) is None
        assert meter.faults > 0

    def test_a_call_that_no_budget_matches_needs_no_store(self, metered, broken):
        meter = metered(Budget(member="bob", limit_requests=9))
        broken("reserve")
        assert meter.authorize(a_call("ada")).reservation is None

    def test_a_stop_is_a_stop_even_if_nothing_more_can_be_read(self, metered, broken):
        meter = metered(Budget(limit_requests=1, store_failure="open"))
        spend(meter, a_call(), 1)
        broken("counters", "expired")
        with pytest.raises(BudgetExceededError):
            meter.authorize(a_call())

    def test_a_fault_in_rating_keeps_the_usage(self, metered, store, monkeypatch):
        meter = metered()
        monkeypatch.setattr(meter.pricer, "rate", lambda *_, **__: 1 // 0)
        entry = meter.settle(meter.authorize(a_call()), answered(7))
        assert (entry.cost_source, entry.flags, entry.usage.input_tokens) == ("unpriced", ("rating_failed",), 7)

    def test_a_fault_in_the_price_list_leaves_a_call_without_a_bound(self, metered, monkeypatch):
        meter = metered(Budget(limit_usd=10**6))
        monkeypatch.setattr(meter.pricer, "ceiling", lambda **_: 1 // 0)
        with pytest.raises(RequestTooLargeError, match="price is not known"):
            meter.authorize(a_call())


def test_without_budgets_nothing_is_asked_of_the_store(metered, store, monkeypatch):
    monkeypatch.setattr(store, "reserve", None)
    assert spend(metered(), a_call(), 3).billed_cost == 3
    assert len(list(store.entries(EntryFilter()))) == 1


def test_threads_read_while_what_entries_share_is_looked_up_again(store, make_entry, metered):
    """As when a dashboard reads while somebody raises a budget, which has readers look names up anew."""
    meter = metered(Budget(limit_usd=1000, name="all"))
    store.append([(make_entry(charges=(), member=f"m{n % 50}", end_user=f"u{n}"), ()) for n in range(1000)])
    over, read, failed = threading.Event(), [], []

    def work():
        try:
            while not over.is_set():
                read.append(sum(1 for _ in store.entries()))
                time.sleep(0.02)  # a file without shared memory is written to between two reads
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(12):
            meter.raise_budget("all", 1, by="grace", reason=f"no. {number}")
            next(store.entries())
            time.sleep(0.1)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert (failed, set(read)) == ([], {1000})
