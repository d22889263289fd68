"""Budgets are data in the ledger: every meter on it obeys them and learns of a change with its next call."""

import asyncio
import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import Budget
from tokenmeter.budgets.limits import LimitUnknownError
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import (
    BudgetExceededError,
    BudgetReservedError,
    ConfigurationError,
    StoreUnavailableError,
)
from tokenmeter.ledger import new_id, utcnow
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers.prompts import PromptRule
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": meter, "unit_price": "1", "per": 1}
    for meter in ("input", "output")
]
PRICER = Pricer(PriceList.load(ROWS))


@pytest.fixture(autouse=True)
def ten_tokens_a_call(monkeypatch):
    """Whatever the provider may put around a prompt: here a call's bound is what it says, ten tokens of answer."""
    monkeypatch.setattr("tokenmeter.budgets.bounds.prompt_rule", lambda *_: PromptRule("", overhead=0))


@pytest.fixture
def metered(store):
    """A meter on the store under test, as another process would have it: with the budgets it declares itself."""
    return lambda *budgets, **more: Meter(store=store, pricer=PRICER, budgets=budgets, **more)


def a_call(member="ada", *, key=None, **who):
    return Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", input_bytes=0, max_output_tokens=10),
        attribution=Attribution(member=member, **who),
        api_key=key,
    )


def spend(meter, call, tokens):
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"input": tokens})),))
    return meter.settle(meter.authorize(call), Outcome(observation=seen))


def is_stopped(meter, call):
    try:
        meter.release(meter.authorize(call))
    except BudgetExceededError:
        return True
    return False


def soon(says, wanted):
    """A server is asked for changes once a second, every other ledger with each call."""
    until = time.monotonic() + 60
    while says() != wanted and time.monotonic() < until:
        time.sleep(0.05)
    return says()


class TestEveryProcess:
    def test_what_one_declares_counts_the_calls_of_all_and_stops_them(self, metered):
        knows, does_not = metered(Budget(route="/r", limit_requests=3, name="r")), metered()
        spend(does_not, a_call(route="/r"), 1)
        spend(knows, a_call(route="/r"), 1)
        assert soon(lambda: len(does_not.budgets.in_force), 1) == 1
        spend(does_not, a_call(route="/r"), 1)
        for meter in (knows, does_not):
            with pytest.raises(BudgetExceededError) as stop:
                meter.authorize(a_call(route="/r"))
            assert (stop.value.spent, stop.value.limit) == (3, 3)
        assert does_not.audit_budgets() == ()

    def test_a_change_is_seen_with_the_next_call_and_keeps_what_was_spent(self, metered):
        running = metered(Budget(member="*", limit_usd=100, name="members"))
        spend(running, a_call(), 60)
        metered().budgets.set(Budget(member="*", limit_usd=61, name="members"), by="grace", reason="too much")
        assert soon(lambda: is_stopped(running, a_call()), wanted=True)
        metered().budgets.set(Budget(member="*", limit_usd=200, name="members"), by="grace", reason="launch")
        assert not soon(lambda: is_stopped(running, a_call()), wanted=False)
        (balance,) = running.remaining()
        assert (balance.spent, balance.limit) == (60, 200)

    def test_an_end_lets_calls_pass_and_another_beginning_counts_what_passed_meanwhile(self, metered):
        running = metered(Budget(limit_usd=50, name="all"))
        spend(running, a_call(), 10)
        metered().budgets.retire("all", by="grace", reason="trial is over")
        soon(lambda: len(running.budgets.in_force), 0)
        spend(running, a_call(), 70)
        metered().budgets.set(Budget(limit_usd=50, name="all"), by="grace")
        assert soon(lambda: is_stopped(running, a_call()), wanted=True)
        assert running.remaining()[0].spent == 80
        assert running.audit_budgets() == ()

    def test_another_scope_counts_anew_from_the_ledger(self, metered):
        meter = metered(Budget(member="ada", limit_usd=500, name="x"))
        spend(meter, a_call("ada"), 10)
        spend(meter, a_call("bob"), 20)
        meter.budgets.set(Budget(member="bob", limit_usd=500, name="x"))
        assert [(one.scope, one.spent) for one in meter.remaining()] == [({"member": "bob"}, 20)]
        spend(meter, a_call("bob"), 1)
        assert meter.remaining()[0].spent == 21
        assert meter.audit_budgets() == ()


class TestHistory:
    def test_it_says_who_changed_what_when_and_why(self, metered):
        meter = metered(Budget(limit_usd=10, name="all"), source="tokenmeter.toml")
        spend(meter, a_call("nobody"), 0)
        meter.budgets.set(Budget(limit_usd=20, name="all"), by="grace", reason="launch")
        meter.budgets.retire("all", by="ada", reason="over")
        told = [
            (one.version, one.what, one.source, one.reason, one.budget and one.budget.limits["usd"])
            for one in meter.budgets.history("all")
        ]
        assert told == [
            (1, "set", "tokenmeter.toml", "declared", 10 * 10**12),
            (2, "set", "run time", "launch", 20 * 10**12),
            (3, "retire", "run time", "over", None),
        ]
        assert [one.by for one in meter.budgets.history("all")][1:] == ["grace", "ada"]
        assert all(one.at is not None and one.at <= utcnow() for one in meter.budgets.history())
        assert meter.budgets.in_force == ()

    def test_saying_the_same_again_files_nothing(self, metered):
        for _ in range(3):
            meter = metered(Budget(limit_usd=10, name="all"))
            spend(meter, a_call(), 0)
            meter.budgets.set(Budget(limit_usd="10.00", name="all"))
        assert len(meter.budgets.history()) == 1

    def test_ending_what_is_not_there_says_what_is(self, metered):
        with pytest.raises(ConfigurationError, match="No budget is called 'x'; in force: 'all'"):
            metered(Budget(limit_usd=1, name="all")).budgets.retire("x")


class TestApplying:
    def test_a_dry_run_says_what_would_change_and_changes_nothing(self, metered):
        meter = metered()
        first = [Budget(limit_usd=1, name="a"), Budget(member="*", limit_usd=2, name="b")]
        assert [one.name for one in meter.budgets.apply(first, source="f.toml")] == ["a", "b"]
        later = [Budget(limit_usd=3, name="a"), Budget(team="x", limit_usd=2, name="c")]
        planned = meter.budgets.apply(later, source="f.toml", dry_run=True)
        assert [(one.name, one.what, one.document_id) for one in planned] == [
            ("a", "set", ""), ("c", "set", ""), ("b", "retire", ""),
        ]  # fmt: skip
        assert [budget.name for budget in meter.budgets.in_force] == ["a", "b"]
        meter.budgets.apply(later, source="f.toml")
        assert {budget.name: budget.limits["usd"] for budget in meter.budgets.in_force} == {
            "a": 3 * 10**12,
            "c": 2 * 10**12,
        }
        assert meter.budgets.apply(later, source="f.toml") == []

    def test_it_ends_only_what_the_same_source_declared(self, metered):
        meter = metered(Budget(limit_usd=10, name="mine"), source="code of app")
        spend(meter, a_call(), 0)
        meter.budgets.apply([], source="f.toml")
        assert [budget.name for budget in meter.budgets.in_force] == ["mine"]


class TestContradictions:
    def test_a_declaration_does_not_overrule_a_change_made_at_run_time_and_says_so(self, metered, caplog):
        declared = Budget(limit_usd=50, name="all")
        spend(metered(declared, source="f.toml"), a_call(), 0)
        metered().budgets.set(replace(declared, limit_usd=80), by="grace", reason="launch")
        again = metered(declared, source="f.toml")
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            spend(again, a_call(), 0)
            spend(again, a_call(), 0)
        (line,) = [record.message for record in caplog.records if "declared" in record.message]
        assert "f.toml" in line
        assert "grace" in line
        assert "tokenmeter budgets apply" in line
        assert again.remaining()[0].limit == 80

    def test_a_source_that_changes_its_own_word_is_obeyed(self, metered):
        spend(metered(Budget(limit_usd=50, name="all"), source="f.toml"), a_call(), 0)
        spend(metered(Budget(limit_usd=60, name="all"), source="f.toml"), a_call(), 0)
        assert metered().remaining()[0].limit == 60

    def test_another_source_is_told_and_not_obeyed(self, metered, caplog):
        spend(metered(Budget(limit_usd=50, name="all"), source="a.toml"), a_call(), 0)
        spend(metered(Budget(limit_usd=60, name="all"), source="b.toml"), a_call(), 0)
        assert metered().remaining()[0].limit == 50
        assert "b.toml" in caplog.text

    def test_a_row_taken_out_of_a_file_is_told_with_the_mend(self, metered, caplog):
        spend(metered(Budget(limit_usd=50, name="all"), source="f.toml"), a_call(), 0)
        spend(metered(Budget(team="x", limit_usd=60, name="x"), source="f.toml"), a_call(), 0)
        assert "tokenmeter budgets retire all" in caplog.text


class TestCounting:
    def test_reading_writes_nothing_and_tells_the_truth(self, metered, store):
        for member in ("ada", "bob"):
            spend(metered(), a_call(member), 7)
        reader, generation = metered(Budget(member="*", limit_usd=100, name="members")), store.generation()
        assert {balance.scope["member"]: balance.spent for balance in reader.remaining()} == {"ada": 7, "bob": 7}
        assert reader.audit_budgets() == ()
        assert list(store.all_counters()) == []
        assert store.generation() == generation
        assert reader.budgets.history() == []

    @pytest.mark.parametrize("name", ["*", "a*", "*a", "a*a", "**"])
    def test_a_member_whose_name_holds_a_star_is_one_member(self, metered, name):
        before = metered()
        for member in (name, "aa", "ada"):
            spend(before, a_call(member), 3)
        meter = metered(Budget(member="*", limit_usd=14, name="members"))
        assert {balance.scope["member"]: balance.spent for balance in meter.remaining()} == {name: 3, "aa": 3, "ada": 3}
        spend(meter, a_call(name), 2)
        assert is_stopped(meter, a_call(name))
        assert meter.audit_budgets(repair=True) == ()
        if name != "*":  # which asks for everybody
            assert [balance.spent for balance in meter.remaining(member=name)] == [5]

    def test_a_month_before_the_budget_is_no_fault(self, metered):
        meter = metered()
        entry = spend(meter, a_call(), 7)
        earlier = replace(entry, entry_id="b" * 32, occurred_at=entry.occurred_at - timedelta(days=40))
        meter.post(earlier)
        later = metered(Budget(member="*", limit_usd=100))
        spend(later, a_call(), 1)
        assert later.audit_budgets() == ()
        later.post(replace(earlier, entry_id="c" * 32))  # an import into that month, by now with the budget
        assert later.audit_budgets() == ()

    def test_a_key_keeps_its_counter_whatever_it_is_called(self, metered):
        key = ApiKey("ab" * 16, "wxyz")
        meter = metered(Budget(api_key="*", limit_requests=3, name="keys"))
        for alias in (None, "prod", "main"):
            spend(meter, a_call(key=replace(key, alias=alias)), 1)
        assert is_stopped(meter, a_call(key=replace(key, alias="other")))

    def test_a_keys_budget_is_shown_by_its_name_and_asked_for_by_any(self, metered):
        keys = [ApiKey("ab" * 16, "wxyz", "prod"), ApiKey("cd" * 16, "mnop")]
        meter = metered(Budget(api_key="*", limit_requests=3, name="keys"))
        for key in keys:
            spend(meter, a_call(key=key), 1)
        assert sorted(one.scope["api_key"] for one in meter.remaining()) == ["...mnop", "prod"]
        for name in ("prod", "ab" * 16):
            assert [one.scope for one in meter.remaining(api_key=name)] == [{"api_key": "prod"}]
        meter.raise_budget("keys", 2, by="grace", reason="launch", scope={"api_key": "prod"})
        assert {one.scope["api_key"]: one.limit for one in meter.remaining()} == {"prod": 5, "...mnop": 3}
        with pytest.raises(ConfigurationError, match="'x' is not known to the ledger"):
            meter.raise_budget("keys", 2, by="grace", reason="launch", scope={"api_key": "x"})

    def test_a_stop_and_an_alert_call_a_key_by_its_name(self, metered, caplog):
        keys = [ApiKey("ab" * 16, "wxyz", "prod"), ApiKey("cd" * 16, "mnop")]
        told = []
        meter = metered(Budget(api_key="*", limit_requests=2, name="keys"), alerts=[told.append])
        for key, name in zip(keys, ("prod", "...mnop"), strict=True):
            for _ in range(2):
                spend(meter, a_call(key=key), 1)
            with pytest.raises(BudgetExceededError) as stop:
                meter.authorize(a_call(key=key))
            assert f"(api_key={name})" in str(stop.value)
            assert (stop.value.key_name, stop.value.scope) == (name, {"api_key": key.fingerprint})
        assert meter.budgets.alerts.flush(60)
        assert {alert.key_name for alert in told} == {"prod", "...mnop"}
        for said in (caplog.text, *map(str, told), *(alert.facts()["scope"] for alert in told)):
            assert not any(key.fingerprint in said for key in keys)

    def test_a_cap_by_alias_knows_what_the_key_spent_before_it_had_one(self, metered):
        key = ApiKey("ab" * 16, "wxyz")
        spend(metered(), a_call(key=key), 40)
        meter = metered(Budget(api_key="prod", limit_usd=50, name="prod"))
        assert is_stopped(meter, a_call(key=replace(key, alias="prod"))) is False
        spend(meter, a_call(key=replace(key, alias="prod")), 10)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call(key=replace(key, alias="prod")))
        assert stop.value.spent == 50

    def test_a_cap_by_alias_holds_for_a_program_whose_settings_do_not_name_the_key(self, metered):
        key = ApiKey("ab" * 16, "wxyz")
        named = metered(Budget(api_key="prod", limit_usd=50, name="prod"))
        spend(named, a_call(key=replace(key, alias="staging")), 1)
        spend(named, a_call(key=replace(key, alias="prod")), 49)
        assert is_stopped(metered(), a_call(key=key))
        assert is_stopped(metered(), a_call(key=replace(key, alias="staging"))) is False  # its own word for it

    def test_a_running_program_learns_a_keys_name_with_its_next_call(self, metered, store):
        key = ApiKey("ab" * 16, "wxyz")
        named, running = metered(Budget(api_key="prod", limit_usd=50, name="prod")), metered()
        spend(running, a_call(key=key), 50)
        assert is_stopped(running, a_call(key=key)) is False  # nobody has called it so yet
        assert is_stopped(named, a_call(key=replace(key, alias="prod")))
        assert soon(lambda: is_stopped(running, a_call(key=key)), wanted=True)
        named.authorize(a_call(key=replace(key, alias="staging")))
        assert soon(lambda: is_stopped(running, a_call(key=key)), wanted=False) is False
        assert is_stopped(named, a_call(key=replace(key, alias="prod")))
        names = [json.loads(document.body).get("fingerprint") for document in store.documents()]
        assert names == [None, key.fingerprint, key.fingerprint]  # each is said once, however often both are used

    def test_no_name_is_written_down_where_no_budget_goes_by_it(self, metered, store):
        meter = metered(Budget(api_key="*", limit_usd=50, name="each"))
        spend(meter, a_call(key=ApiKey("ab" * 16, "wxyz", "prod")), 5)
        assert [document.key for document in store.documents()] == ["each@1"]

    @pytest.mark.parametrize(
        ("budget", "spent"),
        [
            (Budget(model="m", limit_usd=900), 7),
            (Budget(model="m*", limit_tokens=900), 7),
            (Budget(tags={"env": "*"}, limit_usd=900), 7),
            (Budget(tags={"env": "prod"}, limit_requests=900), 1),
            (Budget(end_user="*", limit_usd=900), 7),
            (Budget(provider="openai", limit_requests=900), 1),
            (Budget(limit_usd=900, period="total"), 7),
            (Budget(limit_usd=900, period="rolling-1d"), 7),
            (Budget(team="*", member="*", limit_tokens=900), 7),
        ],
        ids=lambda value: value.name if isinstance(value, Budget) else "",
    )
    def test_a_new_budget_of_any_scope_counts_what_its_window_holds(self, metered, budget, spent):
        call = a_call(team="x", end_user="u", tags={"env": "prod"})
        spend(metered(), call, 7)
        meter = metered(budget)
        assert [balance.spent for balance in meter.remaining()] == [spent]
        meter.authorize(call)
        assert [balance.spent for balance in meter.remaining()] == [spent]
        assert meter.audit_budgets() == ()


class TestLimits:
    def test_zero_means_not_at_all(self, metered):
        meter = metered(Budget(model="m", limit_usd=0))
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert stop.value.limit == 0
        assert stop.value.retry_after > 0

    def test_a_row_may_limit_dollars_and_requests(self, metered):
        meter = metered(Budget(member="*", limit_usd=100, limit_requests=2))
        spend(meter, a_call(), 1)
        spend(meter, a_call(), 1)
        with pytest.raises(BudgetExceededError) as stop:
            meter.authorize(a_call())
        assert stop.value.unit == "requests"
        assert [(one.unit, one.spent) for one in meter.remaining()] == [("usd", 2), ("requests", 2)]

    def test_at_most_so_many_in_flight(self, metered):
        meter = metered(Budget(member="*", limit_in_flight=2))
        first, _ = meter.authorize(a_call()), meter.authorize(a_call())
        with pytest.raises(BudgetReservedError) as stop:
            meter.authorize(a_call())
        assert (stop.value.unit, stop.value.reserved, stop.value.limit) == ("in_flight", 2, 2)
        meter.authorize(a_call("bob"))
        meter.release(first)
        meter.authorize(a_call())

    def test_a_table_says_each_members_own(self, metered):
        meter = metered(
            Budget(
                member="*", limit_usd=15, name="m", limit={"ada": 30, "bob": 0, "eve": "unlimited", "cy": {"usd": 20}}
            )
        )
        spend(meter, a_call("ada"), 20)
        assert not is_stopped(meter, a_call("ada"))
        assert is_stopped(meter, a_call("bob"))
        spend(meter, a_call("eve"), 10**6)
        assert not is_stopped(meter, a_call("eve"))
        spend(meter, a_call("cy"), 10)
        assert not is_stopped(meter, a_call("cy"))
        spend(meter, a_call("dan"), 10)
        assert is_stopped(meter, a_call("dan"))
        limits = {one.scope["member"]: one.limit for one in meter.remaining()}
        assert limits == {"ada": 30, "bob": 0, "eve": Decimal("Infinity"), "cy": 20, "dan": 15}

    def test_a_table_that_says_none_of_a_member_leaves_the_fixed_limit(self, metered):
        meter = metered(Budget(member="*", limit_usd=15, name="m", limit={"ada": None, "bob": {"usd": None}}))
        for member in ("ada", "bob"):
            spend(meter, a_call(member), 10)
            assert is_stopped(meter, a_call(member))
        assert {one.limit for one in meter.remaining()} == {15}

    def test_a_table_limits_all_that_it_speaks_of_for_those_of_whom_it_does(self, metered):
        table = {"ada": {"usd": 50, "requests": 2}, "bob": 15, "eve": {"requests": 3}, "cy": {"requests": None}}
        meter = metered(Budget(member="*", limit=table, name="m"))
        for member, calls in {"ada": 2, "eve": 3, "cy": 0, "dan": 0}.items():
            for _ in range(calls):
                spend(meter, a_call(member), 1)
            assert is_stopped(meter, a_call(member)), member
        for _ in range(3):
            spend(meter, a_call("bob"), 1)
        assert not is_stopped(meter, a_call("bob"))
        spend(meter, a_call("bob"), 10)
        assert is_stopped(meter, a_call("bob"))
        left = {(one.scope["member"], one.unit): one.limit for one in meter.remaining()}
        assert left["ada", "requests"] == 2
        assert left["eve", "usd"] == left["bob", "requests"] == Decimal("Infinity")

    @pytest.mark.parametrize("answer", [{"usd": 500, "requests": 2}, {"tokens": 5}], ids=str)
    def test_a_function_that_limits_what_its_budget_does_not_is_an_error(self, metered, caplog, answer):
        meter = metered(Budget(member="*", limit=lambda _: answer, limit_usd=15, name="plans"))
        spend(meter, a_call(), 10)
        assert is_stopped(meter, a_call())  # the fixed limit holds
        assert "which this budget does not limit; give it limit_" in caplog.text

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            ({"euro": 3}, "said what is none (limit of 'ada': 'euro' is not one of usd, tokens, requests, in_flight)"),
            (-1, "said what is none (limit of 'ada' must not be negative, but was -1; 0 means not at all)"),
            (None, "said none"),
        ],
        ids=str,
    )
    def test_a_stop_says_what_a_function_answered_instead_of_a_limit(self, metered, answer, problem):
        meter = metered(Budget(member="*", limit=lambda _: answer, name="plans"))
        with pytest.raises(LimitUnknownError) as stop:
            meter.authorize(a_call())
        assert f"its limit function {problem}, and the budget has no fixed limit beside it." in str(stop.value)

    def test_a_function_may_limit_all_that_its_budget_does(self, metered):
        answer = {"usd": 500, "requests": 2}
        meter = metered(Budget(member="*", limit=lambda _: answer, limit_usd=1, limit_requests=9, name="plans"))
        spend(meter, a_call(), 10)
        spend(meter, a_call(), 10)
        assert is_stopped(meter, a_call())

    def test_a_definition_that_could_not_be_read_again_is_not_filed(self, metered):
        class Fickle:
            """An amount whose text is another one each time."""

            texts = iter(str(number) for number in range(100))

            def __str__(self):
                return next(self.texts)

        meter = metered(Budget(limit_usd=15, name="all"))
        with pytest.raises(ConfigurationError, match="'m' cannot be kept as it is said"):
            meter.budgets.set(Budget(member="*", limit={"ada": Fickle()}, name="m"))
        assert [budget.name for budget in metered().budgets.in_force] == ["all"]

    def test_a_table_alone_names_everybody_who_may_call(self, metered):
        meter = metered(Budget(member="*", limit={"ada": 30}))
        assert not is_stopped(meter, a_call("ada"))
        assert is_stopped(meter, a_call("bob"))

    def test_a_function_is_asked_once_per_refresh_and_again_when_told(self, metered):
        plans, asked = {"ada": 15}, []

        def limit(member):
            asked.append(member)
            return plans.get(member)

        meter = metered(Budget(member="*", limit=limit, limit_usd=10, name="plans"))
        spend(meter, a_call(), 10)
        assert is_stopped(meter, a_call())
        plans["ada"] = 50
        assert is_stopped(meter, a_call())
        meter.budgets.forget_limits("plans", "ada")
        assert not is_stopped(meter, a_call())
        assert asked == ["ada", "ada"]
        assert not is_stopped(meter, a_call("bob"))  # unknown to the function: the fixed limit

    def test_an_answer_is_used_from_when_it_came_however_long_it_took(self, metered, monkeypatch):
        clock, asked = SimpleNamespace(now=0), []

        def limit(member):
            asked.append(member)
            clock.now += 50  # a query that takes longer than its answer is to be used
            return 15

        monkeypatch.setattr("tokenmeter.budgets.limits.time", SimpleNamespace(monotonic=lambda: clock.now))
        meter = metered(Budget(member="*", limit=limit, limit_usd=5, refresh=20, name="plans"))
        assert not is_stopped(meter, a_call())
        clock.now += 19
        assert not is_stopped(meter, a_call())
        assert asked == ["ada"]
        clock.now += 1
        assert not is_stopped(meter, a_call())
        assert asked == ["ada", "ada"]

    def test_an_async_function_is_asked_without_a_loop_and_beside_one_that_waits_for_nobody(self, metered):
        async def limit(member):
            await asyncio.sleep(0)
            return {"ada": 15}.get(member)

        async def asked_on_the_loop():
            return is_stopped(meter, a_call())

        meter = metered(Budget(member="*", limit=limit, limit_usd=5, name="plans"))
        assert not is_stopped(meter, a_call())
        assert is_stopped(meter, a_call("bob"))
        spend(meter, a_call(), 10)
        meter.budgets.forget_limits("plans")
        assert asyncio.run(asked_on_the_loop())  # another 10 do not fit into 15
        assert meter.remaining(member="ada")[0].limit == 15

    def test_an_async_function_that_is_cancelled_leaves_what_is_known(self, metered, caplog):
        async def limit(_member):
            raise asyncio.CancelledError

        meter = metered(Budget(member="*", limit=limit, limit_usd=5, name="plans"))
        assert is_stopped(meter, a_call())  # the fixed limit: 10 tokens do not fit into 5
        assert "its limit function failed" in caplog.text

    def test_what_holds_while_it_cannot_be_asked(self, metered, caplog):
        down = []

        def limit(member):
            if down:
                raise OSError("the database is away")
            return 15

        meter = metered(Budget(member="*", limit=limit, limit_usd=5, name="plans"))
        assert not is_stopped(meter, a_call("ada"))
        down.append(True)
        meter.budgets.forget_limits("plans", "bob")
        assert not is_stopped(meter, a_call("ada"))  # its last answer
        assert is_stopped(meter, a_call("bob"))  # the fixed limit: 10 tokens do not fit into 5
        meter.budgets.forget_limits("plans")
        assert not is_stopped(meter, a_call("ada"))  # still what was known
        assert "its limit function failed" in caplog.text

    def test_without_any_limit_known_the_call_is_not_sent_unless_chosen(self, metered):
        meter = metered(Budget(member="*", limit=lambda _: None, name="plans"))
        with pytest.raises(StoreUnavailableError, match="limit of budget 'plans' for member=ada is not known"):
            meter.authorize(a_call())
        meter.budgets.set(Budget(member="*", limit=lambda _: None, name="plans", store_failure="open"))

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (-1, "must not be negative"),
            (float("nan"), "finite number"),
            (True, "number such as"),
            ([], "number such as"),
        ],
        ids=str,
    )
    def test_an_answer_that_is_no_limit_stops_the_call_and_says_what_was_wrong(self, metered, caplog, answer, reason):
        meter = metered(Budget(member="*", limit=lambda _: answer, name="plans"))
        with pytest.raises(StoreUnavailableError, match=f"^The limit of budget 'plans'.*{reason}.*was not sent"):
            meter.authorize(a_call())
        assert "its calls are refused meanwhile" in caplog.text

    def test_a_limit_that_this_process_cannot_ask_is_told_as_not_known(self, metered):
        meter = metered(Budget(member="*", limit=lambda _: 15, name="plans"))
        spend(meter, a_call(), 1)
        (here,) = meter.remaining(member="ada")
        assert (here.limit, here.limit_known) == (15, True)
        (there,) = metered().remaining(member="ada")
        assert (there.spent, there.limit_known) == (1, False)
        assert (there.to_dict()["limit"], there.to_dict()["remaining"]) == (None, None)
        assert "limit not known here" in repr(there)

    def test_a_process_without_the_function_goes_by_the_fixed_limit(self, metered):
        meter = metered(Budget(member="*", limit=lambda _: 15, limit_usd=5, name="plans"))
        assert not is_stopped(meter, a_call())
        assert soon(lambda: is_stopped(metered(), a_call()), wanted=True)


class TestCredit:
    CREDIT = Budget(organization="*", limit_usd=0, period="total", name="credit")

    def test_prepaid_credit_is_spent_and_topped_up(self, metered):
        meter = metered(self.CREDIT)
        acme = {"organization": "acme"}
        assert is_stopped(meter, a_call(organization="acme"))
        meter.budgets.grant("credit", 25, by="billing", reason="invoice 7", scope=acme)
        spend(meter, a_call(organization="acme"), 25)
        assert is_stopped(meter, a_call(organization="acme"))
        meter.budgets.grant("credit", 10, by="billing", reason="invoice 8", scope=acme)
        assert not is_stopped(meter, a_call(organization="acme"))
        assert [(one.limit, one.spent, one.remaining) for one in meter.remaining()] == [(35, 25, 10)]
        assert [(one.amount, one.reason) for one in meter.budgets.grants("credit", acme)] == [
            (25, "invoice 7"),
            (10, "invoice 8"),
        ]

    def test_a_payment_told_twice_is_credited_once(self, metered):
        meter = metered(self.CREDIT)
        given = [
            meter.budgets.grant("credit", 25, by="pay", reason="r", scope={"organization": "acme"}, key="evt_1")
            for _ in range(2)
        ]
        assert given[0] == given[1]
        assert len(meter.budgets.grants("credit")) == 1

    @pytest.mark.parametrize("dry_run", [True, False])
    @pytest.mark.parametrize(
        "other",
        [{"amount": 50}, {"amount": -25}, {"scope": {"organization": "globex"}}, {"reason": "another"}],
        ids=["amount", "taken back", "counter", "reason"],
    )
    def test_a_key_is_not_taken_for_something_else(self, metered, other, dry_run):
        meter = metered(self.CREDIT)
        asked = {"amount": 25, "by": "pay", "reason": "r", "scope": {"organization": "acme"}, "key": "evt_1"}
        meter.budgets.grant("credit", **asked)
        with pytest.raises(ConfigurationError, match="'evt_1' was used for a grant of 25"):
            meter.budgets.grant("credit", **{**asked, **other}, dry_run=dry_run)
        assert len(meter.budgets.grants("credit")) == 1

    @pytest.mark.parametrize("since", ["expired", "a second limit", "another scope", "retired"])
    def test_a_payment_told_again_is_given_back_whatever_became_of_its_budget(self, metered, store, monkeypatch, since):
        moment = datetime(2026, 11, 10, tzinfo=UTC)
        monkeypatch.setattr(store, "now", lambda: moment)
        meter = metered()
        meter.budgets.set(self.CREDIT)
        asked = {"amount": 25, "by": "pay", "reason": "r", "scope": {"organization": "acme"}, "key": "evt_1"}
        asked["expires"] = "2026-11-20"
        made = meter.budgets.grant("credit", **asked)
        monkeypatch.setattr(store, "now", lambda: moment + timedelta(days=20 if since == "expired" else 1))
        if since == "a second limit":
            meter.budgets.set(Budget(organization="*", limit_usd=0, limit_requests=9, period="total", name="credit"))
        elif since == "another scope":
            meter.budgets.set(Budget(member="*", limit_usd=0, period="total", name="credit"))
        elif since == "retired":
            meter.budgets.retire("credit")
        for dry_run in (True, False):
            assert meter.budgets.grant("credit", **asked, dry_run=dry_run) == made
        for other in ({"amount": 50}, {"scope": {"organization": "globex"}}, {"expires": None}, {"unit": "requests"}):
            with pytest.raises(ConfigurationError, match="'evt_1' was used for a grant of 25"):
                meter.budgets.grant("credit", **{**asked, **other})
        assert meter.budgets.grants("credit") == [made]

    @pytest.mark.parametrize("granted_after", [0, 1])
    def test_a_payment_told_again_is_given_back_though_another_key_bears_the_name(self, metered, granted_after):
        meter = metered(Budget(api_key="prod", limit_tokens=0, period="total", name="credit"))
        asked = {"amount": 25, "by": "pay", "reason": "r", "key": "evt_1"}
        made = None
        for number, fingerprint in enumerate(("ab" * 16, "cd" * 16)):
            if number >= granted_after:
                made = made or meter.budgets.grant("credit", **asked)
                assert meter.budgets.grant("credit", **asked) == made
            entry = meter.settle(meter.authorize(a_call()), Outcome(observation=Observation()))
            key = ApiKey(fingerprint, "wxyz", "prod")
            meter.store.settle(replace(entry, entry_id=new_id(), api_key=key))
        assert meter.budgets.grant("credit", **asked) == made

    def test_credit_beside_a_limit_in_flight_needs_no_unit(self, metered):
        meter = metered(Budget(organization="*", limit_usd=0, limit_in_flight=8, period="total", name="credit"))
        acme = {"organization": "acme"}
        assert meter.budgets.grant("credit", 25, by="b", reason="r", scope=acme).unit == "usd"
        with pytest.raises(ConfigurationError, match="is a rate limit"):
            meter.budgets.grant("credit", 25, by="b", reason="r", scope=acme, unit="in_flight")
        with pytest.raises(ConfigurationError, match="No budget is called 'none'"):
            meter.budgets.grant("none", 25, by="b", reason="r", key="k")

    def test_a_key_that_reads_as_another_budgets_is_refused(self, metered):
        """A grant is filed under its budget's name and its key."""
        meter = metered(self.CREDIT, Budget(organization="*", limit_usd=0, period="year", name="credit+a"))
        asked = {"by": "pay", "reason": "r", "scope": {"organization": "acme"}}
        meter.budgets.grant("credit+a", 25, key="b", **asked)
        with pytest.raises(ConfigurationError, match="'a\\+b' names another document"):
            meter.budgets.grant("credit", 25, key="a+b", **asked)

    def test_what_is_left_of_a_pack_at_its_expiry_is_gone_and_what_was_used_is_not_asked_back(
        self, metered, store, monkeypatch
    ):
        meter = metered(self.CREDIT)
        acme = {"organization": "acme"}
        start = datetime(2026, 11, 1, tzinfo=UTC)

        def at(day):
            monkeypatch.setattr(store, "now", lambda: start + timedelta(days=day))

        at(0)
        meter.budgets.grant("credit", 100, by="b", reason="yearly pack", scope=acme)
        meter.budgets.grant("credit", 40, by="b", reason="trial", scope=acme, expires="2026-11-11")
        at(5)
        spend(meter, a_call(organization="acme"), 30)  # of the trial, which expires first
        assert meter.remaining()[0].remaining == 110
        at(12)
        assert meter.remaining()[0].remaining == 100
        spend(meter, a_call(organization="acme"), 90)
        assert meter.remaining()[0].remaining == 10
        assert is_stopped(meter, a_call(organization="acme")) is False
        spend(meter, a_call(organization="acme"), 10)
        assert is_stopped(meter, a_call(organization="acme"))

    def test_a_mistake_is_taken_back(self, metered):
        meter = metered(self.CREDIT)
        for amount in (25, -20):
            meter.budgets.grant("credit", amount, by="b", reason="r", scope={"organization": "acme"})
        assert meter.remaining()[0].limit == 5

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"amount": 0}, "not be zero"),
            ({"amount": 1, "expires": "2020-01-01"}, "later than"),
            ({"amount": 1, "scope": {}}, "say which organization"),
            ({"amount": 1, "unit": "tokens"}, "limits usd"),
            ({"amount": 1, "scope": {"organization": "*"}}, "say which organization"),  # no call reaches it
            ({"amount": 1, "scope": {"organization": ""}}, "non-empty text"),
            ({"amount": 1, "by": 7}, "by must be"),
            ({"amount": 1, "by": "a\x00b"}, "control characters"),
            ({"amount": 1, "reason": None}, "reason must be a text"),
            ({"amount": 1, "reason": "half \ud83d"}, "control characters"),
            ({"amount": 1, "key": 4711}, "key must be"),
        ],
    )
    def test_a_wrong_grant_is_refused(self, metered, arguments, problem):
        given = {"scope": {"organization": "acme"}, "by": "b", "reason": "r"} | arguments
        with pytest.raises(ConfigurationError, match=problem):
            metered(self.CREDIT).budgets.grant("credit", given.pop("amount"), **given)

    @pytest.mark.parametrize("way", ["set", "apply"])
    def test_a_budget_of_a_provider_whose_name_is_a_slip_is_refused(self, metered, way):
        budgets = metered().budgets
        slip, custom = (Budget(provider=name, limit_usd=1, name="x") for name in ("opnai", "our own host"))
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match=r"Budget 'x': who is 'opnai'. Did you mean 'openai'"):
                budgets.set(slip, dry_run=dry_run) if way == "set" else budgets.apply(
                    [slip], source="a file", dry_run=dry_run
                )
        assert not budgets.history()
        assert budgets.set(custom).budget == custom

    def test_a_grant_is_not_promised_for_longer_than_its_window(self, metered, store, monkeypatch):
        monkeypatch.setattr(store, "now", lambda: datetime(2026, 11, 20, tzinfo=UTC))
        budgets = metered(Budget(member="*", limit_usd=1, tz="Asia/Tokyo", name="plans")).budgets
        asked = {"by": "b", "reason": "r", "scope": {"member": "ada"}}
        with pytest.raises(ConfigurationError, match=r"anew at 2026-11-30T15:00:00.*period 'total'"):
            budgets.grant("plans", 5, expires="2026-12-02", **asked)
        made = budgets.grant("plans", 5, expires="2026-12-01", key="k", **asked)
        monkeypatch.setattr(store, "now", lambda: datetime(2026, 10, 20, tzinfo=UTC))
        assert budgets.grant("plans", 5, expires="2026-12-01", key="k", **asked) == made, "what is filed stands"

    @pytest.mark.parametrize("said", [{"by": 7}, {"by": "a\x00b"}, {"reason": 7}, {"reason": "half \ud83d"}], ids=repr)
    def test_a_change_by_whom_or_why_nobody_can_read_is_refused(self, metered, said):
        budgets = metered(self.CREDIT).budgets
        with pytest.raises(ConfigurationError, match=next(iter(said))):
            budgets.set(Budget(limit_usd=1, name="new"), **said)
        with pytest.raises(ConfigurationError, match=next(iter(said))):
            budgets.retire("credit", **said)
        with pytest.raises(ConfigurationError, match=next(iter(said))):
            budgets.apply([Budget(limit_usd=1, name="new")], source="a file", **said)
        assert [change.name for change in budgets.history()] == ["credit"]
