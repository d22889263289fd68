"""A call that goes by its plan asks, holds, counts and writes what the general way would have."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import openai
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokenmeter
from tokenmeter import Budget
from tokenmeter.errors import BudgetExceededError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.price import Discount, Multiplier, Terms
from tokenmeter.stores import open_store
from tokenmeter.stores.encoding import counts_text, json_text, quoted, quoted_text

PRICER = Pricer(PriceList.load())
MODELS = ("gpt-5-mini", "gpt-4o", "nobody-knows-it")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


class Side:
    """A meter on a ledger of its own, with a client whose provider answers from memory what it is told to."""

    def __init__(self, url, budgets, *, planned, pricer=PRICER):
        self.told = []
        self.meter = Meter(
            store=open_store(url),
            pricer=pricer,
            budgets=budgets,
            alerts=[lambda alert: self.told.append((alert.budget, alert.scope, alert.threshold, alert.spent))],
        )
        self.by_plan = 0
        if planned:
            write = self.meter.plans.write
            self.meter.plans.write = lambda *given, **how: self._counted(write(*given, **how))
        else:
            self.meter.plans.find = lambda _key: None
        httpx = __import__(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
        transport = self.transport = httpx.MockTransport(self._answer)
        client = openai.OpenAI(api_key="sk-test-012345", http_client=httpx.Client(transport=transport), max_retries=0)
        self.httpx, self.client = httpx, tokenmeter.wrap(client, self.meter)
        self.held = self.usage = None

    def _counted(self, written):
        self.by_plan += written
        return written

    def _answer(self, request):
        self.held = self._counters()
        if self.usage is None:
            return self.httpx.Response(500, json={"error": {"message": "no"}})
        choice = {"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}
        model = "gpt-5-mini" if b"gpt-5-mini" in request.content else "gpt-4o"
        answer = {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}
        return self.httpx.Response(200, json={**answer, "usage": self.usage})

    def call(self, body, usage, who):
        """What became of one call: what was held meanwhile, what it raised, and what is in the ledger then."""
        self.held, self.usage = None, usage
        given = {name: value for name, value in body.items() if value is not None}
        try:
            with tokenmeter.attribute(**who) as scope:
                self.client.chat.completions.create(**copy.deepcopy(given))
        except BudgetExceededError as stop:
            said = (type(stop), {**vars(stop), "retry_after": None})
        except openai.APIError as error:
            said = (type(error), {})
        else:
            said = (scope.requests, scope.billed_cost, scope.usage)
        return self.held, said, self._counters()

    def _counters(self):
        """Where budgets stand: not who was told of it, which each side notes for targets of its own."""
        return {key: one for key, one in self.meter.store.all_counters() if not key.budget.startswith("alert")}

    def entries(self):
        """What was written, but for what tells one run from another."""
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return [
            replace(
                entry,
                entry_id="",
                occurred_at=now,
                recorded_at=now,
                latency_us=0,
                api_key=None,
                reservation_id=None if entry.reservation_id is None else "held",
            )
            for entry in self.meter.store.entries()
        ]


def usages():
    """Usage objects: ordinary ones, one of more than any bound, none at all (the provider fails)."""

    def ordinary(most):
        counts = st.integers(1, most)
        return st.builds(
            lambda p, c: {"prompt_tokens": p, "completion_tokens": c, "total_tokens": p + c}, counts, counts
        )

    return st.one_of(ordinary(30), ordinary(5000), st.none(), ordinary(10**6))


MESSAGES = st.lists(
    st.one_of(
        st.text(max_size=300).map(lambda text: {"role": "user", "content": text}),
        st.just({"role": "user", "content": [PICTURE]}),
    ),
    min_size=1,
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(MODELS), "messages": MESSAGES, "max_completion_tokens": st.integers(1, 2000) | st.none()},
    optional={
        "n": st.integers(1, 3),
        "tools": st.sampled_from([[{"type": "function", "function": {"name": "f"}}], [{"type": "web_search"}]]),
        "service_tier": st.sampled_from(["default", "flex", "priority"]),
    },
)
WHO = st.fixed_dictionaries(
    {}, optional={"member": st.sampled_from(["ada", "bob"]), "end_user": st.just("eve"), "tags": st.just({"env": "x"})}
)
WHETHER, PERIODS = st.booleans(), ("day", "total")
CAPS = st.lists(
    st.one_of(
        st.builds(Budget, limit_usd=st.sampled_from(["0", "0.01", "0.5", "100"]), member=st.just("*")),
        st.builds(
            Budget, limit_usd=st.sampled_from(["0.02", "100"]), hard=st.booleans(), inject_max_tokens=st.booleans()
        ),
        st.builds(
            Budget, limit_tokens=st.sampled_from([1000, 20_000, 10**7]), period=st.sampled_from(["day", "total"])
        ),
        st.builds(Budget, limit_requests=st.integers(0, 6), period=st.just("rolling-7d")),
        st.builds(Budget, limit_in_flight=st.integers(1, 2)),
        st.builds(Budget, limit_usd=st.just("0.05"), end_user=st.just("*"), unbounded=st.just("expected")),
        st.builds(Budget, limit_tokens=st.just(9_000), tags=st.just({"env": "x"})),
        st.builds(Budget, limit_usd=st.just("0.05"), estimate=st.just("expected"), unbounded=st.just("expected")),
        st.builds(Budget, limit_tokens=st.just(50_000), model=st.just("gpt-5*"), name=st.just("five")),
    ),
    max_size=2,
    unique_by=lambda budget: budget.name,
)
#: Room for many calls, so that most are not refused.
ROOMY = [Budget(limit_usd=10**4, period="year"), Budget(limit_tokens=10**9, period="year")]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(caps=CAPS, calls=st.lists(st.tuples(BODIES, usages(), WHO), min_size=2, max_size=5), again=st.integers(2, 3))
def test_planned_and_general_calls_come_to_the_same(caps, calls, again, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    planned, general = (Side(f"sqlite:///{folder}/{name}.db", [*caps, *ROOMY], planned=name == "p") for name in "pg")
    for body, usage, who in calls * again:
        assert planned.call(body, usage, who) == general.call(body, usage, who)
    for side in (planned, general):
        side.meter.budgets.alerts.flush(5)
    assert planned.entries() == general.entries()
    assert sorted(planned.told, key=repr) == sorted(general.told, key=repr)
    assert (planned.meter.faults, general.meter.faults) == (0, 0)
    assert not planned.meter.audit_budgets()
    for side in (planned, general):
        side.meter.close()


def test_a_capped_call_goes_by_its_plan(tmp_path):
    caps = [
        Budget(member="*", limit_usd=100),
        Budget(limit_tokens=10**9),
        Budget(limit_requests=10, period="rolling-1h"),
    ]
    side = Side(f"sqlite:///{tmp_path}/ledger.db", caps, planned=True)
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    for turn in range(4):
        side.call({"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * turn}]}, usage, {"member": "ada"})
    assert side.by_plan == 3
    side.meter.close()


USAGE = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}
BEFORE, AFTER = datetime(2026, 11, 26, 23, 59, tzinfo=UTC), datetime(2026, 11, 27, 0, 1, tzinfo=UTC)


def set_clock(side, at):
    side.meter.store.now = lambda: at
    side.meter.plans.now_us = lambda: int(at.timestamp()) * 1_000_000


def test_a_slow_call_costs_what_it_cost_when_it_left(tmp_path):
    """Others, which left after the prices had changed, were answered before it, and learnt from."""
    half = Discount(factor=Decimal("0.5"), effective_from=datetime(2026, 11, 27, tzinfo=UTC))
    pricer = Pricer(PRICER.price_list, Terms(discounts=(half,)))
    side = Side(f"sqlite:///{tmp_path}/ledger.db", [], planned=True, pricer=pricer)
    set_clock(side, BEFORE)
    side.call(ASKED, USAGE, {})
    quick = side._answer

    def slow(request):
        set_clock(side, AFTER)
        side.transport.handler = quick
        for _ in range(2):
            side.call(ASKED, USAGE, {})
        return quick(request)

    side.transport.handler = slow
    side.call(ASKED, USAGE, {})
    costs = {(entry.occurred_at, entry.contracted_cost) for entry in side.meter.store.entries()}
    assert costs == {(BEFORE, Decimal("0.0125")), (AFTER, Decimal("0.00625"))}
    side.meter.close()


def test_calls_of_new_end_users_and_tags_go_by_one_plan_for_each_whom_a_multiplier_can_tell_apart(tmp_path):
    markups = [("member", "ada", "1.1"), ("team", "ads", "1.2"), ("project", "p", "1.3"), ("organization", "o", "1.4")]
    markups += [("route", "/r", "1.5"), ("api_key", "prod", "1.6"), ("model", "gpt-5-mini", "1.7")]
    multipliers = tuple(Multiplier(factor=Decimal(factor), scope=((name, of),)) for name, of, factor in markups)
    pricer = Pricer(PRICER.price_list, Terms(multipliers=multipliers))
    side = Side(f"sqlite:///{tmp_path}/ledger.db", [Budget(member="*", limit_usd=100)], planned=True, pricer=pricer)
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    for turn in range(3):
        for name, of, _ in markups[:5]:
            side.call(ASKED, usage, {name: of, "end_user": f"user-{turn}", "tags": {"job": f"{name}-{turn}"}})
    assert side.by_plan == 10
    factors = [entry.charges[0].multipliers["platform"] for entry in side.meter.store.entries()]
    assert factors == [Decimal(factor) for _, _, factor in markups[:5]] * 3
    side.meter.close()


def test_a_call_counts_into_the_window_that_it_left_in(tmp_path):
    """Another thread's call came into the next window first, or the clock was set back."""
    side = Side(f"sqlite:///{tmp_path}/ledger.db", [Budget(limit_usd=100, period="day")], planned=True)
    for at in (BEFORE, AFTER, BEFORE, AFTER):
        set_clock(side, at)
        side.call(ASKED, USAGE, {})
    assert not side.meter.audit_budgets()
    side.meter.close()


WIRE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(usage=st.dictionaries(st.text() | st.sampled_from(["prompt_tokens", "details"]), WIRE, max_size=5))
def test_a_usage_object_is_written_as_any_other_value_is(usage):
    """Whatever a provider puts into it: the quick way to write it is no other."""
    assert counts_text(usage) == json_text(usage)


@given(st.one_of(st.text(), st.text(st.characters(max_codepoint=0x7F)), st.text(st.characters(categories=["Cs"]))))
def test_a_text_is_quoted_as_the_general_way_writes_it(text):
    assert quoted_text(text) == json_text(text)
    assert quoted(text) == json_text(text).encode()
