"""Rules tell once what no threshold tells; `require` refuses calls on nobody's account, or tells their place."""

import logging
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.budgets.matching import Required
from tokenmeter.budgets.rules import BurnRate, Faults, Spike, Unpriced
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import AttributionRequiredError, BudgetExceededError, ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider
from tokenmeter.usage import Consumption, Observation, Usage

NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)


@pytest.fixture
def meter_with(monkeypatch):
    """A meter with rules, at noon of the tenth."""
    made = []

    def make(*rules, **arguments):
        meter = Meter(store=open_store("memory:"), pricer=Pricer(PriceList()), rules=rules, **arguments)
        monkeypatch.setattr(meter.store, "now", lambda: NOON)
        made.append(meter)
        return meter

    yield make
    for meter in made:
        meter.close()


def a_cost(dollars, at=NOON - timedelta(hours=1), member="ada", **changes):
    cost = None if dollars is None else Decimal(dollars)
    values = {
        "occurred_at": at,
        "provider": "openai",
        "endpoint": "chat.completions",
        "operation": "chat",
        "request_model": "gpt-9",
        "attribution": Attribution(member=member),
        "billed_cost": cost,
        "cost_source": "computed",
    }
    return Entry(**(values | changes))


class TestBurnRate:
    def test_a_budget_that_will_be_full_before_its_window_ends_is_told_once_with_the_day(self, meter_with):
        seen = []
        meter = meter_with(BurnRate(), budgets=[Budget(member="*", limit_usd=30, name="members")], alerts=[seen.append])
        meter.post(a_cost(12))
        (notice,) = meter.budgets.telling.check_rules()
        assert "'members' (member=ada) is full on 2026-11-24 18:00 UTC" in str(notice)
        assert meter.budgets.telling.check_rules() == []
        meter.budgets.alerts.flush(5)
        assert seen == [notice]

    @pytest.mark.parametrize("spent", [0, 9, 30])
    def test_what_lasts_is_spent_or_has_not_begun_is_not_told(self, meter_with, spent):
        meter = meter_with(BurnRate(), budgets=[Budget(limit_usd=30)])
        meter.post(a_cost(spent))
        assert meter.budgets.telling.check_rules() == []

    def test_too_early_for_a_projection(self, meter_with, monkeypatch):
        meter = meter_with(BurnRate(), budgets=[Budget(limit_usd=30)])
        monkeypatch.setattr(meter.store, "now", lambda: datetime(2026, 11, 2, tzinfo=UTC))
        meter.post(a_cost(20, at=datetime(2026, 11, 1, 5, tzinfo=UTC)))
        assert meter.budgets.telling.check_rules() == []

    @pytest.mark.parametrize("period", ["year", "month"])
    def test_a_budget_that_starts_in_its_window_is_reckoned_from_there(self, meter_with, period):
        """Nothing of the days before is its: since the start on the ninth, 36 hours, two thirds are used up."""
        budget = Budget(limit_usd=30, period=period, name="launch", starts="2026-11-09", ends="2026-11-14")
        meter = meter_with(BurnRate(), budgets=[budget])
        meter.post(a_cost(1, at=datetime(2026, 11, 8, tzinfo=UTC)))
        meter.post(a_cost(20))
        (balance,) = meter.remaining()
        assert balance.counts_from == budget.starts
        assert balance.window_start < budget.starts
        assert balance.full_at(NOON) == datetime(2026, 11, 11, 6, tzinfo=UTC)
        (notice,) = meter.budgets.telling.check_rules()
        assert "is full on 2026-11-11 06:00 UTC at this rate, before it ends on 2026-11-14 00:00 UTC:" in str(notice)
        assert notice.figures["ends"] == "yes"

    def test_credit_that_lasts_from_a_day_to_a_day_is_projected(self, meter_with):
        budget = Budget(limit_usd=30, period="total", name="pilot", starts="2026-11-09", ends="2026-11-14")
        meter = meter_with(BurnRate(), budgets=[budget])
        meter.post(a_cost(20))
        (notice,) = meter.budgets.telling.check_rules()
        assert "is full on 2026-11-11 06:00 UTC" in str(notice)

    def test_little_of_the_time_since_the_start_is_too_early_for_a_projection(self, meter_with):
        meter = meter_with(BurnRate(), budgets=[Budget(limit_usd=30, period="year", starts="2026-11-09")])
        meter.post(a_cost(20))
        assert meter.budgets.telling.check_rules() == []  # a day and a half of fifty

    def test_a_window_that_goes_on_says_when_it_resets(self, meter_with):
        meter = meter_with(BurnRate(), budgets=[Budget(limit_usd=30, name="all", starts="2026-10-09")])
        meter.post(a_cost(12))
        (balance,) = meter.remaining()
        assert (balance.ends, balance.counts_from) == (False, balance.window_start)
        assert repr(balance) == "<Balance all: $18 of $30 left, resets 2026-12-01 00:00 UTC>"
        (notice,) = meter.budgets.telling.check_rules()
        assert "before it resets on 2026-12-01 00:00 UTC:" in str(notice)
        assert notice.figures["ends"] == "no"

    def test_a_rate_limit_is_no_budget_that_is_full_before_it_resets(self, meter_with):
        meter = meter_with(BurnRate(), budgets=[Budget(limit_requests=30, period="rolling-1m", name="rate")])
        for _ in range(10):
            meter.settle(meter.authorize(a_call()), Outcome())
        for seconds in range(0, 60, 5):
            now = NOON + timedelta(seconds=seconds)
            meter.store.now = lambda now=now: now
            assert meter.budgets.telling.check_rules() == []
            (balance,) = meter.remaining()
            assert balance.full_at(now) is None


class TestSpike:
    def test_an_hour_far_above_the_week_before_is_told(self, meter_with):
        meter = meter_with(Spike(factor=5))
        for hours in range(2, 100):
            meter.post(a_cost(1, at=NOON - timedelta(hours=hours)))
        meter.post(a_cost(40))
        (notice,) = meter.budgets.telling.check_rules()
        assert "cost $40" in str(notice)
        assert meter.budgets.telling.check_rules() == []

    def test_an_hour_is_told_while_it_is_under_way_and_once(self, meter_with, monkeypatch):
        meter = meter_with(Spike(factor=3, least_usd="0.05"))
        for hours in range(1, 100):
            meter.post(a_cost("0.01", at=NOON - timedelta(hours=hours)))
        meter.post(a_cost("0.06", at=NOON))
        (notice,) = meter.budgets.telling.check_rules()
        assert "The hour from 2026-11-10 12:00 UTC has cost $0.06 by now, more than 3 times" in str(notice)
        monkeypatch.setattr(meter.store, "now", lambda: NOON + timedelta(hours=1))
        meter.post(a_cost("0.60", at=NOON + timedelta(minutes=10)))
        assert meter.budgets.telling.check_rules() == []

    def test_cheap_hours_are_not_told(self, meter_with):
        meter = meter_with(Spike())
        meter.post(a_cost("0.01", at=NOON - timedelta(hours=5)))
        meter.post(a_cost("0.99", at=NOON))
        assert meter.budgets.telling.check_rules() == []

    def test_an_ordinary_hour_and_a_first_hour_are_not(self, meter_with):
        meter = meter_with(Spike(factor=5))
        meter.post(a_cost(40))
        assert meter.budgets.telling.check_rules() == []


def test_calls_without_a_price_are_told_per_model(meter_with):
    meter = meter_with(Unpriced())
    for model in ("gpt-9", "gpt-9", "gpt-10"):
        meter.post(a_cost(None, request_model=model, cost_source="unpriced"))
    told = sorted(str(notice) for notice in meter.budgets.telling.check_rules())
    assert len(told) == 2
    assert told[1].startswith("2 calls of 'gpt-9' at openai have no known price")
    assert meter.budgets.telling.check_rules() == []


def test_a_call_that_has_a_price_by_now_is_not_told(tmp_path):
    settings = {"store": f"sqlite:///{tmp_path}/usage.db", "rules": ["unpriced"]}
    usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    meter = tokenmeter.make_meter(config=settings)
    for model in ("gpt-99", "gpt-100"):
        answer = {"id": model, "object": "chat.completion", "model": model, "usage": usage}
        meter.record(answer, provider="openai", endpoint="chat.completions")
    meter.close()
    price = {"provider": "openai", "model": "gpt-99", "unit_price": "1.00", "source": "test"}
    rows = [{**price, "sku_meter": one} for one in ("input", "output")]
    meter = tokenmeter.make_meter(config=settings, prices=rows)
    assert [entry.kind for entry in meter.reprice()] == ["correction"]
    (notice,) = meter.budgets.telling.check_rules()
    assert "'gpt-100'" in str(notice)
    meter.close()


def test_a_call_without_a_price_is_told_once_and_not_again_after_midnight(meter_with, monkeypatch):
    meter = meter_with(Unpriced())
    meter.post(a_cost(None, cost_source="unpriced"))
    assert len(meter.budgets.telling.check_rules()) == 1
    midnight = datetime(2026, 11, 11, tzinfo=UTC)
    for minutes in (0, 20, 600):
        monkeypatch.setattr(meter.store, "now", lambda minutes=minutes: midnight + timedelta(minutes=minutes))
        assert meter.budgets.telling.check_rules() == []
    meter.post(a_cost(None, at=midnight + timedelta(minutes=5), cost_source="unpriced"))
    assert len(meter.budgets.telling.check_rules()) == 1


def test_faults_are_told_when_there_are_more(meter_with, monkeypatch):
    meter = meter_with(Faults())
    told = []
    for hours, faults in ((0, 3), (0, 4), (1, 4), (2, 4), (3, 6), (4, 6)):
        monkeypatch.setattr(meter.store, "now", lambda hours=hours: NOON + timedelta(hours=hours))
        told += [(hours, str(one).partition(" in ")[0]) for one in meter.budgets.telling.check_rules(faults=faults)]
    assert told == [
        (0, "tokenmeter failed 3 times"),
        (1, "tokenmeter failed 1 time"),
        (3, "tokenmeter failed 2 times"),
    ]


def test_faults_are_told_with_the_process(meter_with):
    meter = meter_with(Faults())
    assert meter.budgets.telling.check_rules(faults=0) == []
    (notice,) = meter.budgets.telling.check_rules(faults=3)
    assert notice.severity == "critical"
    assert "failed 3 times" in str(notice)
    assert meter.budgets.telling.check_rules(faults=4) == []  # in this hour


def test_rules_stand_in_the_settings_by_name():
    with pytest.raises(ConfigurationError, match="burn_rate"):
        tokenmeter.make_meter(store="memory:", config={"rules": ["weather"]})
    tokenmeter.make_meter(store="memory:", config={"rules": ["burn_rate", "spike", "unpriced", "faults"]}).close()


def test_what_rules_go_by_stands_in_the_settings(tmp_path):
    file = tmp_path / "tokenmeter.toml"
    file.write_text(
        'rules = ["faults", { rule = "spike", factor = 2.5, least_usd = "0.05" }, { rule = "burn_rate", percent = 20 }]'
    )
    meter = tokenmeter.make_meter(store="memory:", config=file)
    assert meter.budgets.telling.rules == (Faults(), Spike(factor="2.5", least_usd="0.05"), BurnRate(percent=20))
    meter.close()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"rule": "spike", "factor": 0}, "spike.factor must be at least 1"),
        ({"rule": "spike", "least_usd": "much"}, "spike.least_usd must be a number"),
        ({"rule": "spike", "percent": 5}, "spike has no percent; it has factor, least_usd"),
        ({"rule": "faults", "factor": 5}, "faults has no factor"),
        ({"rule": "burn_rate", "percent": "5"}, "burn_rate.percent must be a whole number"),
        ({"factor": 5}, "rule"),
        ({"rule": "spike", "fctor": 5}, "fctor"),
    ],
)
def test_a_wrong_value_of_a_rule_is_refused(row, told):
    with pytest.raises(ConfigurationError, match=told):
        tokenmeter.make_meter(store="memory:", config={"rules": [row]})


def a_call(**who):
    return Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", max_output_tokens=1),
        attribution=Attribution(**who),
    )


class TestRequire:
    def test_a_call_without_a_member_is_refused_before_it_is_sent_with_its_place(self):
        with FakeProvider() as provider:
            meter = tokenmeter.make_meter(store="memory:", config={"require": ["member"]})
            client = tokenmeter.OpenAI(api_key="sk-test", base_url=f"{provider.url}/v1")
            client = tokenmeter.wrap(client, meter=meter)
            with pytest.raises(AttributionRequiredError, match=r"test_budget_rules\.py:\d+ has no member") as stop:
                client.responses.create(model="gpt-5-mini", input="Hi")
            assert stop.value.missing == ("member",)
            with tokenmeter.attribute(member="ada"):
                client.responses.create(model="gpt-5-mini", input="Hi")
            assert len(list(meter.entries())) == 1
            client.close()
            meter.close()

    def test_by_choice_it_is_told_once_per_place(self, meter_with, caplog):
        meter = meter_with(required=Required(["member", "tag:env"], refuse=False))
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            for _ in range(3):
                meter.authorize(a_call())
            meter.authorize(a_call(member="ada", tags={"env": "x"}))
        (line,) = [record.message for record in caplog.records]
        assert "has no member, tag:env" in line
        assert "tokenmeter.attribute(member=...)" in line

    def test_what_is_no_dimension_cannot_be_required(self):
        with pytest.raises(ConfigurationError, match="'mood' is not one of"):
            Required(["mood"])

    def test_the_error_can_be_pickled(self):
        error = AttributionRequiredError("no member", missing=("member",))
        assert pickle.loads(pickle.dumps(error)).missing == ("member",)  # noqa: S301 - made here

    def test_a_cap_on_each_member_says_once_whom_it_does_not_catch(self, meter_with, caplog):
        meter = meter_with(budgets=[Budget(member="*", limit_requests=1, name="members")])
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            for _ in range(3):
                meter.authorize(a_call())
        (line,) = [record.message for record in caplog.records]
        assert "Budget 'members' caps each member by itself" in line
        assert 'require=["member"]' in line

    def test_calls_that_a_cap_is_not_about_are_not_said_to_pass_it(self, meter_with, caplog):
        budgets = [
            Budget(member="*", route="/chat", limit_requests=1, name="chat"),
            Budget(member="*", model="o3*", limit_requests=1, name="o3"),
            Budget(team="*", limit_requests=1, ends=datetime(2026, 1, 1, tzinfo=UTC), name="last year's"),
        ]
        meter = meter_with(budgets=budgets)
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            meter.authorize(a_call())
            meter.authorize(a_call(route="/nightly"))
            assert not caplog.records
            meter.authorize(a_call(route="/chat"))
        assert [record.message.partition(":")[0] for record in caplog.records] == [
            "Budget 'chat' caps each member by itself"
        ]

    @pytest.mark.parametrize(("model", "what"), [("gpt-5*", "the model gpt-5*"), ("*", "each model by itself")])
    def test_a_cap_on_a_model_says_once_that_it_cannot_judge_a_call_that_names_none(
        self, model, what, meter_with, caplog
    ):
        meter = meter_with(budgets=[Budget(model=model, limit_requests=2, name="dear")])
        snapshot = "gpt-5-mini-2025-08-07"
        used = (Consumption(model=snapshot, usage=Usage({"input": 1})),)
        answered = Observation(consumptions=used, response_model=snapshot)
        stored = replace(a_call(), facts=RequestFacts(max_output_tokens=1))
        named = replace(a_call(), facts=RequestFacts(model=snapshot, max_output_tokens=1))
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            for _ in range(2):
                meter.settle(meter.authorize(stored), Outcome(observation=answered))
        (line,) = [record.message for record in caplog.records if "passed" not in record.message]
        assert f"Budget 'dear' caps {what}: the call to chat.completions" in line
        assert 'require=["model"]' in line
        with pytest.raises(BudgetExceededError):  # what it used is spent
            meter.authorize(named)

    def test_what_is_recorded_by_hand_says_its_model_by_its_answer(self, caplog):
        answer = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        budgets = [Budget(model="gpt-5*", limit_requests=9, name="dear")]
        meter = tokenmeter.make_meter(store="memory:", budgets=budgets, config={})
        with caplog.at_level(logging.WARNING, "tokenmeter"):
            meter.record(
                {"id": "one", "object": "chat.completion", **answer}, provider="openai", endpoint="chat.completions"
            )
        assert not caplog.records
        assert meter.remaining()[0].spent == 1
        meter.close()


def test_an_answer_whose_usage_nobody_knows_counts_with_what_was_held_for_it(meter_with):
    meter = meter_with(budgets=[Budget(limit_tokens=100, name="all")])
    leave = meter.authorize(a_call())
    (claim,) = leave.reservation.claims
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage()),), flags=frozenset({"usage_unknown"}))
    entry = meter.settle(leave, Outcome(observation=seen))
    assert meter.remaining()[0].spent == claim.amount == 33
    assert meter.audit_budgets() == ()
    assert entry.usage.total_tokens == 0


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ({"user": "ada"}, "No budget is scoped by 'user'; use .*end_user"),
        ({"tag:": "b"}, "No budget is scoped by 'tag:'"),
        ({"tags": {"env": "prod"}}, "or tag:NAME"),
        ({"member": ""}, "member must be a text that is not empty, not ''"),
        ({"member": 7}, "member must be a text that is not empty, not 7"),
        ({"tag:env": None}, "tag:env must be a text"),
    ],
    ids=["no field", "no tag", "a mapping", "empty", "a number", "none"],
)
def test_what_no_budget_is_about_is_refused_and_not_answered_with_no_budget(meter_with, scope, said):
    meter = meter_with(budgets=[Budget(member="*", limit_requests=5)])
    with pytest.raises(ConfigurationError, match=said):
        meter.remaining(**scope)


def test_a_rate_limit_resets_when_no_window_remembers_what_was_used(meter_with):
    meter = meter_with(budgets=[Budget(limit_requests=5, period="rolling-6h", name="rate")])
    meter.post(a_cost(1, at=NOON))
    (balance,) = meter.remaining(at=NOON)
    assert balance.spent == 1
    assert balance.resets_at >= NOON + timedelta(hours=6)


def test_what_is_told_of_a_budget_that_ends_says_so_and_names_its_end(meter_with):
    seen = []
    budget = Budget(limit_usd=30, period="year", name="pilot", ends="2026-11-14")
    meter = meter_with(budgets=[budget], alerts=[seen.append])
    meter.post(a_cost(16))
    (balance,) = meter.remaining()
    assert (balance.ends, balance.resets_at) == (True, budget.ends)
    assert repr(balance) == "<Balance pilot: $14 of $30 left, ends 2026-11-14 00:00 UTC>"
    assert "ends" in balance._repr_html_()
    assert "resets" not in balance._repr_html_()
    told = balance.to_dict()
    assert (told["ends"], told["resets_at"]) == (True, "2026-11-14T00:00:00+00:00")
    assert told["counts_from"] == told["window_start"] == "2026-01-01T00:00:00+00:00"
    assert meter.budgets.alerts.flush(5)
    (alert,) = seen
    assert (alert.window_end, alert.ends) == (budget.ends, True)
    assert "passed 50% before it ends on 2026-11-14 00:00 UTC:" in str(alert)
    assert alert.facts()["ends"] == "2026-11-14 00:00 UTC"
    assert "resets" not in alert.facts()
    assert alert.to_dict()["ends"] is True


def test_a_budget_that_ends_with_its_window_does_not_begin_anew(meter_with):
    meter = meter_with(budgets=[Budget(limit_usd=30, name="pilot", ends="2026-12-01")])
    (balance,) = meter.remaining()
    assert balance.ends
