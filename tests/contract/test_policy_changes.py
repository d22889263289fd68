"""A definition that changes while calls are made: what was spent counts on, in every window it ever names."""

import asyncio
import re
import threading
from dataclasses import replace
from decimal import Decimal

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreUnavailableError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": price, "per": 1}
    for meter, price in (("input", 0), ("output", 1))
]
PRICER = Pricer(PriceList.load(ROWS))
MONTHLY = Budget(limit_usd=100, name="x")


@pytest.fixture
def metered(store, monkeypatch):
    """Meters on the store under test, at one moment: no window ends in the middle of a test."""
    moment = store.now()
    monkeypatch.setattr(store, "now", lambda: moment)
    return lambda *budgets: Meter(store=store, pricer=PRICER, budgets=budgets)


def a_call(key=None, **who):
    facts = RequestFacts(model="m", input_bytes=0, max_output_tokens=10)
    return Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=facts,
        attribution=Attribution(**who),
        api_key=key,
    )


def spend(meter, dollars, **call):
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": dollars})),))
    meter.settle(meter.authorize(a_call(**call)), Outcome(observation=seen))


def spent(meter):
    return {balance.unit: balance.spent for balance in meter.remaining()}


@pytest.mark.parametrize(
    "change",
    [
        {"period": "hour"},
        {"period": "day", "reset_hour": 1},
        {"period": "week", "week_start": "sunday"},
        {"period": "year", "anchor": 2},
        {"period": "total"},
        {"period": "rolling-24h"},
        {"tz": "Europe/Berlin"},
    ],
    ids=lambda change: "-".join(map(str, change.values())).replace("/", "-"),
)
def test_another_window_and_the_old_one_again_know_all_that_was_spent(metered, change):
    meter = metered(MONTHLY)
    spend(meter, 60)
    meter.budgets.set(replace(MONTHLY, **change))
    assert spent(meter) == {"usd": 60}
    spend(meter, 10)
    meter.budgets.set(MONTHLY)
    spend(meter, 5)
    assert spent(meter) == {"usd": 75}
    spend(meter, 10)
    spend(meter, 10)
    with pytest.raises(BudgetExceededError):
        meter.authorize(a_call())
    assert meter.audit_budgets() == ()


def test_a_second_limit_that_comes_goes_and_comes_again_knows_every_call(metered):
    both = replace(MONTHLY, limit_requests=3)
    meter = metered(both)
    spend(meter, 1)
    meter.budgets.set(MONTHLY)
    spend(meter, 1)
    meter.budgets.set(both)
    spend(meter, 1)
    assert spent(meter) == {"usd": 3, "requests": 3}
    with pytest.raises(BudgetExceededError, match="requests"):
        meter.authorize(a_call())
    assert meter.audit_budgets() == ()


def test_a_limit_below_what_is_spent_stops_at_once_and_says_until_when(metered):
    meter = metered(MONTHLY)
    spend(meter, 60)
    flying = meter.authorize(a_call())
    meter.budgets.set(replace(MONTHLY, limit_usd=50))
    with pytest.raises(BudgetExceededError) as stop:
        meter.authorize(a_call())
    assert (type(stop.value), stop.value.spent, stop.value.limit) == (BudgetExceededError, 60, 50)
    assert stop.value.retry_after > 0
    meter.release(flying)
    assert meter.remaining()[0].remaining == -10


def test_calls_under_way_at_an_end_and_a_new_beginning_count_when_they_end(metered):
    meter = metered(MONTHLY)
    flying = [meter.authorize(a_call()) for _ in range(9)]
    meter.budgets.retire("x")
    meter.budgets.set(MONTHLY)
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 10})),))
    for one in flying:
        meter.settle(one, Outcome(observation=seen))
    balance = meter.remaining()[0]
    assert (balance.spent, balance.reserved) == (90, 0)
    spend(meter, 10)
    with pytest.raises(BudgetExceededError):
        meter.authorize(a_call())
    assert meter.audit_budgets() == ()


def test_names_that_are_swapped_between_two_keys_leave_every_counter_true(metered):
    old, new = ApiKey("aa" * 16, "aaaa", "prod"), ApiKey("bb" * 16, "bbbb", "dev")
    meter = metered(Budget(api_key="prod", limit_usd=100, name="prod"), Budget(api_key="*", limit_usd=500, name="each"))
    spend(meter, 60, key=old)
    spend(meter, 30, key=new)
    later = metered()
    spend(later, 5, key=replace(new, alias="prod"))
    spend(later, 7, key=replace(old, alias="dev"))
    assert sorted(one.spent for one in later.remaining() if one.budget == "each") == [35, 67]
    assert Decimal(35) in [one.spent for one in later.remaining() if one.budget == "prod"]
    assert later.audit_budgets() == ()


def test_a_name_that_goes_and_returns_finds_what_the_key_spent_meanwhile(metered):
    """Who is stopped is told by the fingerprint; the other key of that name has a counter of its own."""
    key, other = ApiKey("aa" * 16, "aaaa", "prod"), ApiKey("bb" * 16, "bbbb", "prod")
    spend(metered(replace(MONTHLY, api_key="prod", name="prod")), 40, key=key)
    spend(metered(), 30, key=replace(key, alias="dev"))
    spend(metered(), 20, key=other)
    later = metered()
    spend(later, 31, key=key)
    with pytest.raises(BudgetExceededError) as stop:
        spend(later, 1, key=key)
    assert (stop.value.spent, stop.value.scope) == (101, {"api_key": key.fingerprint})
    assert sorted(one.spent for one in later.remaining()) == [20, 101]
    assert later.audit_budgets() == ()


def test_a_declared_budget_that_is_called_like_a_counter_in_the_ledger_is_left_out_and_told(metered, caplog):
    meter = metered()
    meter.budgets.set(MONTHLY)
    taken = next(iter(meter.budgets.caps))
    later = metered(Budget(limit_usd=5, name=taken, member="ada"), Budget(limit_usd=70, name="another", member="*"))
    spend(later, 4, member="ada")
    assert sorted(budget.name for budget in later.budgets.in_force) == ["another", "x"]
    assert later.faults > 0
    assert "is called like the counter of budget 'x'" in caplog.text
    with pytest.raises(ConfigurationError, match="called like the counter of budget 'x'"):
        later.budgets.refuse_by_ledger()
    assert later.audit_budgets() == ()


class TestAskedLimits:
    def test_an_answer_that_was_on_its_way_when_the_limit_changed_is_asked_for_again(self, metered):
        plans = {"ada": 5}

        def limit(member):
            before = plans[member]
            if before == 5:  # the plan is bought while the old one is being read
                plans[member] = 500
                meter.budgets.forget_limits("plans", member)
            return before

        meter = metered(Budget(member="*", limit=limit, name="plans"))
        with pytest.raises(BudgetExceededError):
            meter.authorize(a_call(member="ada"))
        spend(meter, 10, member="ada")

    def test_threads_that_need_one_members_limit_ask_once_and_wait_for_nobody_elses(self, metered, monkeypatch):
        monkeypatch.setattr("tokenmeter.budgets.limits._LONGEST_WAIT", 3_600)
        asked, may_answer = [], threading.Event()

        def limit(member):
            asked.append(member)
            if member == "ada":
                may_answer.wait()
            return 1000

        meter = metered(Budget(member="*", limit=limit, refresh=3_600, name="plans"))
        threads = [threading.Thread(target=spend, args=(meter, 10), kwargs={"member": "ada"}) for _ in range(20)]
        for thread in threads:
            thread.start()
        try:
            spend(meter, 10, member="bob")
        finally:
            may_answer.set()
            for thread in threads:
                thread.join()
        assert sorted(asked) == ["ada", "bob"]
        assert {one.scope["member"]: one.spent for one in meter.remaining()} == {"ada": 200, "bob": 10}

    def test_calls_go_by_what_is_known_while_the_function_does_not_come_back(self, metered, monkeypatch, caplog):
        monkeypatch.setattr("tokenmeter.budgets.limits._LONGEST_WAIT", 0)
        hangs, may_answer = threading.Event(), threading.Event()

        def limit(member):
            if member == "ada":
                hangs.set()
                may_answer.wait()
            return 1000

        for fixed, stopped in ({"limit_usd": 15}, "spent $10"), ({}, "has not answered"):
            meter = metered(Budget(member="*", limit=limit, refresh=3_600, name=f"plans-{len(fixed)}", **fixed))
            hangs.clear()
            hung = threading.Thread(target=spend, args=(meter, 10), kwargs={"member": "ada"})
            hung.start()
            try:
                assert hangs.wait(60)
                if fixed:
                    spend(meter, 10, member="ada")  # the fixed limit, in which another 10 do not fit
                with pytest.raises((BudgetExceededError, StoreUnavailableError), match=re.escape(stopped)):
                    spend(meter, 10, member="ada")
                spend(meter, 10, member="bob")
                assert "has not answered" in caplog.text
            finally:
                may_answer.set()
                hung.join()
            spend(meter, 10, member="ada")  # what the function said at last
            may_answer.clear()
            meter.budgets.retire(f"plans-{len(fixed)}")

    def test_an_async_function_that_never_answers_leaves_what_is_known(self, metered, monkeypatch, caplog):
        monkeypatch.setattr("tokenmeter.budgets.limits._LONGEST_WAIT", 0)

        async def limit(_member):
            await asyncio.Event().wait()

        meter = metered(Budget(member="*", limit=limit, limit_usd=5, name="plans"))
        with pytest.raises(BudgetExceededError):
            spend(meter, 10, member="ada")
        assert "its limit function failed" in caplog.text

    def test_an_answer_that_was_calculated_holds_without_what_is_finer_than_a_counter(self, metered):
        meter = metered(Budget(member="*", limit=lambda _: Decimal(100) / 3, limit_usd=5, name="plans"))
        spend(meter, 10, member="ada")
        assert str(meter.remaining(member="ada")[0].limit) == "33.333333333333"

    def test_a_table_that_names_one_who_is_called_function_is_a_table(self, metered):
        meter = metered(Budget(member="*", limit={"function": "15"}, name="plans"))
        spend(meter, 10, member="function")
        again = metered()  # as the ledger has it
        assert again.budgets.in_force[0].to_dict()["limit"] == {"function": "15"}
        with pytest.raises(BudgetExceededError):
            spend(again, 10, member="function")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("spend", "spend [usd/month]"),
        ("spend", "spend [usd/month] #2"),
        ("spend", "spend [usd/month] opened"),
        ("member=* usd/month", "member=* usd/month #3"),
    ],
)
def test_a_name_that_is_anothers_counter_is_refused_wherever_it_is_said(metered, name, other):
    """Both would count into one counter, and each would stop for what the other spent."""
    one, odd = Budget(name=name, limit_usd=1), Budget(name=other, member="ada", limit_usd=2)
    for budgets in ([one, odd], [odd, one]):
        with pytest.raises(ConfigurationError, match="another name"):
            metered(*budgets)
    meter = metered()
    meter.budgets.set(one)
    with pytest.raises(ConfigurationError, match="another name"):
        meter.budgets.set(odd)
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match="another name"):
            meter.budgets.apply([odd], source="b.toml", dry_run=dry_run)
    assert [budget.name for budget in meter.budgets.in_force] == [name]
    meter.budgets.retire(name)  # its counters stay
    with pytest.raises(ConfigurationError, match="another name"):
        meter.budgets.set(odd)


def test_a_definition_may_be_a_row_as_settings_have_it_and_nothing_else(metered):
    meter = metered()
    change = meter.budgets.set({"limit_usd": 3, "name": "x"})
    assert change.budget == Budget(limit_usd=3, name="x")
    for wrong in (None, "x", 3, ["x"], {"limit_euro": 3}, {"limit_usd": "much"}):
        with pytest.raises(ConfigurationError):
            meter.budgets.set(wrong)
    assert [balance.limit for balance in meter.remaining()] == [3]


def test_a_second_name_for_one_cap_is_refused_wherever_a_cap_is_set(metered):
    """As `configure` refuses it: of two limits of the same thing one is a slip."""
    meter = metered()
    members = Budget(name="members", member="*", limit_usd=5)
    meter.budgets.set(members)
    twin = Budget(name="x", member="*", limit_usd=6)
    for dry_run in (True, False):
        with pytest.raises(ConfigurationError, match=r"'members' and 'x' limit the same calls .*5 and 6 usd.*keep one"):
            meter.budgets.set(twin, dry_run=dry_run)
        with pytest.raises(ConfigurationError, match="keep one"):
            meter.budgets.apply([twin], source="b.toml", dry_run=dry_run)
    assert [budget.name for budget in meter.budgets.in_force] == ["members"]
    for apart in ({"hard": False}, {"period": "day"}, {"team": "t"}):
        meter.budgets.set(replace(twin, **apart))
    meter.budgets.set(replace(members, limit_usd=7))
    meter.budgets.retire("members")
    meter.budgets.set(replace(twin, name="y"))  # its place is free


def test_a_file_may_give_a_cap_another_name(metered):
    meter = metered()
    meter.budgets.apply([Budget(name="old", member="*", limit_usd=5)], source="b.toml")
    meter.budgets.apply([Budget(name="new", member="*", limit_usd=6)], source="b.toml")
    assert [budget.name for budget in meter.budgets.in_force] == ["new"]


def test_a_declared_second_name_of_a_cap_is_told_once_and_both_hold(metered, caplog):
    metered().budgets.set(Budget(name="members", limit_usd=50), source="command line")
    meter = metered(Budget(name="mine", limit_usd=3))
    for _ in range(2):
        with pytest.raises(BudgetExceededError, match="mine"):
            spend(meter, 1)
        meter.budgets.set(Budget(name="other", member="*", limit_usd=9))
    told = [one.getMessage() for one in caplog.records if "the same calls" in one.getMessage()]
    assert len(told) == 1
    assert "'mine' (code of " in told[0]
    assert "'members' (command line) limit the same calls over the same window (3 and 50 usd): both hold." in told[0]


def test_who_sets_what_a_program_declares_and_why_is_in_the_history(metered):
    declared = Budget(route="/r", limit_requests=3, name="r")
    meter = metered(declared, Budget(limit_usd=5, name="all"))
    meter.budgets.set(declared, by="grace", reason="launch")
    meter.budgets.set(Budget(limit_usd=6, name="all"), by="ada", reason="more")
    assert [(one.name, one.by, one.reason) for one in meter.budgets.history("r")] == [("r", "grace", "launch")]
    assert [one.reason for one in meter.budgets.history("all")] == ["declared", "more"]
    assert len(meter.budgets.in_force) == 2
    assert meter.audit_budgets() == ()
