"""`with tokenmeter.budget(...)`: a run that does not end is stopped before it costs more than it may."""

import asyncio
import copy
import inspect
import threading
from dataclasses import replace
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.attribution import Attribution, current_attribution, scopes_of_call
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError, BudgetReservedError, ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers.prompts import PromptRule
from tokenmeter.stores import open_store
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": "1", "per": 1}
    for meter in ("input", "output")
]


@pytest.fixture
def meter(monkeypatch):
    monkeypatch.setattr("tokenmeter.budgets.bounds.prompt_rule", lambda *_: PromptRule("", overhead=0))
    made = Meter(store=open_store("memory:"), pricer=Pricer(PriceList.load(ROWS)))
    yield made
    made.close()


def a_call():
    """A call made right here, of at most ten dollars."""
    return Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", max_output_tokens=10),
        attribution=current_attribution(),
        scopes=scopes_of_call(),
    )


def spend(meter, tokens=10):
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": tokens})),))
    return meter.settle(meter.authorize(a_call()), Outcome(observation=seen))


def loop(meter):
    """An agent that never ends by itself."""
    for steps in range(1000):
        try:
            spend(meter)
        except BudgetExceededError:
            return steps
    return 1000


def test_a_loop_is_stopped_before_it_costs_more(meter):
    with tokenmeter.budget(limit_usd="35.00") as run:
        assert loop(meter) == 3
        with pytest.raises(BudgetExceededError) as stop:
            spend(meter)
        assert (run.remaining, run.spent, run.billed_cost) == (5, {"usd": 30}, 30)
    assert (stop.value.budget, stop.value.limit, stop.value.spent) == ("run", 35, 30)
    spend(meter)  # outside of it nothing is limited
    assert list(meter.store.all_counters()) == []


def place_of(number):
    return f"{__file__}:{number}"


def line_here():
    return inspect.currentframe().f_back.f_lineno


def test_a_stop_names_the_run_and_the_line_where_it_began(meter):
    begun = line_here() + 1
    with tokenmeter.budget("research", limit_usd=10), tokenmeter.attribute(member="ada"):
        assert loop(meter) == 1
        with pytest.raises(BudgetExceededError) as stop:
            spend(meter)
    assert str(stop.value).startswith(f"Budget 'research' (the run begun at {place_of(begun)}) stopped the call")
    assert stop.value.to_dict()["place"] == copy.copy(stop.value).place == place_of(begun)
    assert place_of(begun) not in stop.value.message(redact=True)


def test_a_run_of_a_function_names_the_function_also_where_its_calls_have_no_upper_bound(meter):
    @tokenmeter.budget(limit_usd=10)
    def agent():
        meter.authorize(replace(a_call(), facts=RequestFacts(model="m", unbounded="tools")))

    @tokenmeter.budget(limit_usd=10)
    def steps():
        yield loop(meter)
        spend(meter)

    for function, run in ((agent, agent), (steps, lambda: list(steps()))):
        with pytest.raises(BudgetExceededError) as stop:
            run()
        assert stop.value.place == place_of(inspect.unwrap(function).__code__.co_firstlineno)


def test_a_budget_of_the_ledger_that_stops_a_run_names_no_place(meter):
    meter.budgets.set(Budget(limit_requests=0, name="all"))
    with tokenmeter.budget(limit_usd=10), pytest.raises(BudgetExceededError, match=r"'all' \(all calls\)") as stop:
        spend(meter)
    assert stop.value.place is None


def test_a_block_of_a_budget_that_saw_no_call_is_warned_of_as_one(meter, caplog):
    with tokenmeter.budget(limit_usd=10):
        other = threading.Thread(target=spend, args=(meter,))
        other.start()
        other.join()
    told = [line.split(" at ", 1) for line in caplog.messages]  # other tests' blocks may be told of here, too
    assert {block for block, place in told if place.startswith(__file__)} == {"The block tokenmeter.budget(...)"}


def test_what_is_in_flight_is_held_and_given_back(meter):
    with tokenmeter.budget("agent", limit_usd=15, limit_in_flight=5) as run:
        first = meter.authorize(a_call())
        assert run.left == {"usd": 5, "in_flight": 4}
        with pytest.raises(BudgetReservedError):
            meter.authorize(a_call())
        meter.release(first)
        assert run.left == {"usd": 15, "in_flight": 5}
    assert repr(run) == "<Run 'agent': $15.00, 5 in flight left>"


def test_a_call_must_fit_into_every_run_around_it(meter):
    with tokenmeter.budget(limit_usd=100) as outer:
        with tokenmeter.budget("inner", limit_requests=2) as inner:
            assert loop(meter) == 2
        assert (inner.remaining, outer.remaining) == (0, 80)
        with tokenmeter.budget("inner", limit_usd=1000) as wide:
            assert loop(meter) == 8
        assert (outer.remaining, wide.remaining) == (0, 920)
    assert outer.left == {"usd": 0}


def test_a_stop_by_one_leaves_the_others_as_they_were(meter):
    meter.budgets.set(Budget(limit_requests=1, name="all"))
    with tokenmeter.budget(limit_usd=100) as run:
        spend(meter)
        with pytest.raises(BudgetExceededError, match="'all'"):
            meter.authorize(a_call())
        assert run.left == {"usd": 90}


def test_tasks_and_carried_threads_draw_on_one_run(meter):
    async def many():
        await asyncio.gather(*(asyncio.to_thread(loop, meter) for _ in range(4)))

    with tokenmeter.budget(limit_usd=200) as run:
        threads = [threading.Thread(target=tokenmeter.carry(loop), args=(meter,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        asyncio.run(many())
        for thread in threads:
            thread.join()
    assert (run.requests, run.remaining) == (20, 0)


def test_it_keeps_the_attribution_around_it_and_lets_it_be_refined(meter):
    with tokenmeter.attribute(member="ada"), tokenmeter.budget(limit_usd=100), tokenmeter.attribute(route="/r"):
        entry = spend(meter)
    assert entry.attribution == Attribution(member="ada", route="/r")


def test_as_a_decorator_each_run_has_its_own(meter):
    @tokenmeter.budget(limit_usd=30)
    def agent():
        return loop(meter)

    @tokenmeter.budget(limit_requests=2)
    async def later():
        return loop(meter)

    assert [agent(), agent()] == [3, 3]
    assert [asyncio.run(later()) for _ in range(2)] == [2, 2]


def test_an_unpriced_call_counts_at_the_dearest_known_price(meter):
    with tokenmeter.budget(limit_usd=100) as run:
        call = a_call()
        seen = Observation(consumptions=(Consumption(model="new", usage=Usage({"output": 7})),))
        meter.settle(meter.authorize(call), Outcome(observation=seen))
        assert run.remaining == 93


def test_it_injects_an_output_cap_where_it_is_told_to(meter):
    from dataclasses import replace

    with tokenmeter.budget(limit_tokens=40, inject_max_tokens=True):
        call = a_call()
        leave = meter.authorize(replace(call, facts=RequestFacts(model="m")))
        assert leave.inject_max_output_tokens == 40


@pytest.mark.parametrize(
    ("arguments", "problem"), [({}, "at least one"), ({"limit_usd": -1}, "negative"), ({"limit_usd": "x"}, "number")]
)
def test_a_wrong_limit_is_refused(arguments, problem):
    with pytest.raises(ConfigurationError, match=problem):
        tokenmeter.budget(**arguments)


def test_zero_lets_nothing_pass(meter):
    with tokenmeter.budget(limit_usd=0) as run, pytest.raises(BudgetExceededError):
        meter.authorize(a_call())
    assert run.remaining == Decimal(0)


class TestWhatApplies:
    def test_a_call_is_told_its_limits_and_until_when_they_hold(self, meter):
        meter.budgets.set(Budget(member="*", limit_usd=100, name="members"))
        meter.budgets.set(Budget(limit_requests=5, hard=False, period="day", name="soft"))
        with tokenmeter.attribute(member="ada"):
            found = meter.budgets.find(a_call(), meter.store.now())
        hard, soft = found.caps
        assert (hard.cap.budget.name, hard.scope, hard.limit) == ("members", {"member": "ada"}, 100 * 10**12)
        assert (soft.cap.budget.name, soft.limit, soft.thresholds) == ("soft", None, (3, 4, 5))
        assert found.until_us == soft.keys[0][1]
        assert (found.generation, found.plannable) == (meter.store.generation(), True)

    def test_without_a_budget_it_is_told_so(self, meter):
        found = meter.budgets.find(a_call(), meter.store.now())
        assert (found.caps, found.plannable) == ((), True)

    @pytest.mark.parametrize(
        "change", [{"estimate": "expected"}, {"limit": lambda member: 1}], ids=["expected", "asked"]
    )
    def test_what_is_not_plain_says_so(self, meter, change):
        meter.budgets.set(Budget(**({"member": "*", "limit_usd": 100, "name": "m"} | change)))
        with tokenmeter.attribute(member="ada"):
            assert not meter.budgets.find(a_call(), meter.store.now()).plannable

    def test_a_run_around_it_is_not_plain(self, meter):
        with tokenmeter.budget(limit_usd=1):
            assert not meter.budgets.find(a_call(), meter.store.now()).plannable


class TestGenerators:
    """The run of a decorated generator is one, however its items are asked for."""

    def test_a_generators_run_goes_on_from_item_to_item(self, meter):
        @tokenmeter.budget(limit_requests=2)
        def steps():
            for _ in range(3):
                yield spend(meter)

        for _ in range(2):  # each run of it has a limit of its own
            running = steps()
            assert next(running)
            assert next(running)
            with pytest.raises(BudgetExceededError):
                next(running)

    async def test_and_so_does_an_async_generators(self, meter):
        @tokenmeter.budget(limit_requests=2)
        async def steps():
            for _ in range(3):
                await asyncio.sleep(0)
                yield spend(meter)

        done = []

        async def consume():
            async for step in steps():
                done.append(step)  # noqa: PERF401 - the third raises

        with pytest.raises(BudgetExceededError):
            await consume()
        assert len(done) == 2

    def test_two_that_run_at_once_do_not_share_their_limits(self, meter):
        @tokenmeter.budget(limit_requests=2)
        def steps():
            while True:
                yield spend(meter)

        one, other = steps(), steps()
        assert [next(one), next(other), next(one), next(other)]
        for running in (one, other):
            with pytest.raises(BudgetExceededError):
                next(running)
