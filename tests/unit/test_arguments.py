"""A wrong value for any argument of any verb is told by name, as a wrong setting is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import openai
import pytest

import tokenmeter
from tokenmeter import Budget, ConfigurationError, TokenmeterError
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import COSTS
from tokenmeter.usage import Usage

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-5",
    "choices": [],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}
NAIVE = datetime(2026, 10, 1, tzinfo=UTC).replace(tzinfo=None)
ODD = (
    *(True, -1, 0, 5, 10**30, 1.5, float("nan"), "x", "12", "", "\0", "\ud800", "x" * 5000, b"x"),
    *([], [{}], {}, {"a": [1]}, object(), None, set(), timedelta(days=-1), Decimal("sNaN"), Decimal("1E+400")),
    *(date.min, date.max, NAIVE, datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)),
    *("0001-01-01", "9999-12-31", "1970-01-01", "2026-13", "2031-01-01T00:00:00Z"),
)
BY_HAND = {"provider": "openai", "endpoint": "chat.completions"}
#: Verb -> what it is called with beside the one wrong argument. The rest is called with "x" for what it must have.
GIVEN = {
    "close_period": {"period": "2026-10"},
    "draft_invoices": {"each": "member", "period": "2026-10"},
    "erase": {"dimension": "member", "value": "nobody", "by": "ada", "reason": "asked"},
    "estimate": {"model": "gpt-5", "input": "hi"},
    "export_charges": {"target": "charges.csv", "overwrite": True},
    "export_entries": {"target": "entries.csv", "overwrite": True},
    "export_focus": {"folder": "focus", "overwrite": True},
    "hold": {**BY_HAND, "model": "gpt-5", "max_output_tokens": 5},
    "invoice": {"period": "2026-10"},
    "make_meter": {"store": "memory:"},
    "price": {"response_or_usage": ANSWER, **BY_HAND},
    "raise_budget": {"name": "members", "amount": "1", "by": "ada", "reason": "asked"},
    "reconcile": {"provider": "openai", "period": "2026-10", "source": "costs.csv"},
    "record": {"response_or_usage": ANSWER, **BY_HAND},
    "statement": {"member": "ada", "period": "2026-11"},
}
#: Verbs whose arguments are settings, or a shell's; and what takes no argument of a kind of its own.
ELSEWHERE = {"configure", "load_ipython_extension"}
VERBS = sorted(
    name
    for name in {*tokenmeter.__all__} - ELSEWHERE
    if inspect.isfunction(verb := getattr(tokenmeter, name)) and not inspect.iscoroutinefunction(verb)
)
OF_BUDGETS = ["apply", "forget_limits", "grant", "grants", "history", "retire", "set"]


def _try_each(verb, given, *, meter=None):
    """Call `verb` with every wrong value of every argument; what it raised that is no error of ours."""
    raised = []
    parameters = [one for one in inspect.signature(verb).parameters.values() if one.kind is not one.VAR_POSITIONAL]
    must = {one.name: "x" for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    for parameter in parameters:
        if parameter.name == "settings" and verb is tokenmeter.make_meter:
            continue
        name = "member" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        for value in ODD:
            arguments = {**(given or must), name: value}
            if meter is not None and name != "meter":
                arguments["meter"] = meter
            first = [arguments.pop(one.name) for one in parameters if one.kind is one.POSITIONAL_ONLY]
            try:
                found = verb(*first, **arguments)
                if isinstance(found, Iterator):
                    next(found, None)
            except TokenmeterError:
                pass
            except Exception as error:
                raised.append((name, repr(value)[:40], repr(error)[:100]))
    return raised


@pytest.fixture
def meter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "costs.csv").write_text("date,model,cost\n2026-10-01,gpt-5,1.0\n")
    budget = Budget(name="members", member="*", limit_usd=5)
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/ledger.db", budgets=[budget])
    tokenmeter.record(ANSWER, **BY_HAND, attribution={"member": "ada"}, meter=meter)
    yield meter
    meter.close()


@pytest.mark.parametrize("name", VERBS)
def test_a_wrong_argument_of_a_verb_is_no_bare_error(name, meter):
    verb = getattr(tokenmeter, name)
    given = {"client": openai.OpenAI(api_key="sk-test")} if name == "wrap" else GIVEN.get(name)
    takes_meter = "meter" in inspect.signature(verb).parameters and name != "wrap"
    assert _try_each(verb, given, meter=meter if takes_meter else None) == []


@pytest.mark.parametrize("name", OF_BUDGETS)
def test_a_wrong_argument_about_budgets_is_no_bare_error(name, meter):
    assert _try_each(getattr(meter.budgets, name), None) == []


COST = Decimal("0.0125")
LINE = Charge(
    model="gpt-5",
    sku_meter="input",
    quantity=10,
    unit="Tokens",
    list_unit_price=Decimal("0.00125"),
    list_cost=COST,
    contracted_cost=COST,
    billed_cost=COST,
)


def make_entry(**changed):
    return Entry(
        **{"occurred_at": datetime(2026, 10, 5, tzinfo=UTC), **BY_HAND, "operation": "chat", "charges": (LINE,)}
        | {"usage": Usage({"input": 10}), "cost_source": "computed", **dict.fromkeys(COSTS, COST), **changed}
    )


@pytest.mark.parametrize("name", [one.name for one in fields(Entry)])
def test_an_entry_that_no_ledger_has_a_place_for_is_refused_by_its_field(name, meter):
    for value in (*ODD, (1,), (None,), [LINE, 5], Usage({"input": 1.5}), Usage([1]), Usage({1: 1}), Decimal("1E-13")):
        before = len(list(meter.entries()))
        posted = told = False
        try:
            posted = meter.post(make_entry(**{name: value}))
        except ConfigurationError as error:
            told = f"entry.{name}" in str(error)
        assert posted or told, value
        assert len(list(meter.entries())) == before + posted
    assert meter.report(by=["member", "model"]).rows
    assert meter.verify().ok


@pytest.mark.parametrize("name", [one.name for one in fields(Charge)])
def test_a_line_that_no_ledger_has_a_place_for_is_refused_by_its_field(name, meter):
    for value in (*ODD, {"platform": 1.5}, {1: Decimal(1)}, {"platform": Decimal("NaN")}):
        odd = replace(LINE, **{name: value})
        costs = {cost: getattr(odd, cost) for cost in COSTS}
        posted = told = False
        try:
            posted = meter.post(make_entry(charges=(odd,), **costs))
        except ConfigurationError as error:
            told = f"charges[0].{name}" in str(error) or (name in COSTS and f"entry.{name}" in str(error))
        assert posted or told, value
    assert meter.report(by=["sku_meter"]).rows
    assert meter.verify().ok


@pytest.mark.parametrize("odd", [None, 5, "x", {}, object(), b"x"])
def test_what_is_no_entry_is_refused_before_any_is_written(odd, meter):
    before = len(list(meter.entries()))
    with pytest.raises(ConfigurationError, match="must be an Entry"):
        meter.post(odd)
    with pytest.raises(ConfigurationError, match="must be an Entry"):
        list(meter.post_all([make_entry(), odd]))
    if not isinstance(odd, dict):
        with pytest.raises(ConfigurationError, match="entries must be several"):
            meter.post_all(odd)
    assert len(list(meter.entries())) == before


def test_costs_that_are_not_those_of_their_lines_are_refused(meter):
    unpriced = replace(LINE, list_unit_price=None, **dict.fromkeys(COSTS))
    for wrong in ({"billed_cost": Decimal("0.01")}, {"list_cost": 0}, {"charges": (unpriced,)}):
        with pytest.raises(ConfigurationError, match=r"_cost must be the sum of its charges', 0(.0125)?, or None"):
            meter.post(make_entry(**wrong))
    assert meter.post(make_entry(charges=(LINE, unpriced)))
    assert meter.post(make_entry(charges=(), billed_cost=5))


def test_what_is_wrong_is_named_with_what_is_taken(meter):
    for verb, arguments, told in (
        (tokenmeter.hold, {**BY_HAND, "request": "x"}, "request must be a mapping, not 'x'."),
        (tokenmeter.statement, {"member": "ada", "period": 5}, "period must be text or a Period, not 5."),
        (tokenmeter.verify, {"progress": 5}, "progress must be a function, not 5."),
        (tokenmeter.report, {"meter": "x"}, "meter must be a Meter, as configure.. returns it, not 'x'."),
        (tokenmeter.backup, {"target": "a\0b"}, "target must be text or a path, not 'a.x00b'."),
    ):
        with pytest.raises(ConfigurationError, match=told):
            verb(**{"meter": meter} | arguments)


def test_an_error_of_the_callers_own_code_is_his(meter):
    def stumble(*_numbers):
        raise AttributeError("mine")

    with pytest.raises(AttributeError, match="mine"):
        tokenmeter.verify(progress=stumble, meter=meter)


def test_python_says_itself_which_argument_is_missing_or_unknown(meter):
    with pytest.raises(TypeError, match="period"):
        tokenmeter.close_period(meter=meter)
    with pytest.raises(TypeError, match="nonsense"):
        tokenmeter.verify(nonsense=1, meter=meter)


def test_remaining_takes_an_instant_in_any_of_its_forms(meter):
    (told,) = tokenmeter.remaining(member="ada", at="2026-10-15", meter=meter)
    assert told.window_start.isoformat() == "2026-10-01T00:00:00+00:00"
    with pytest.raises(ConfigurationError, match="no instant"):
        tokenmeter.remaining(at=5, meter=meter)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"provider": "opnai"}, "Did you mean 'openai'"),
        ({"provider": "Antropic"}, "Did you mean 'anthropic'"),
        ({"endpoint": "chat.complete"}, "Did you mean 'chat.completions'"),
        ({"at": "2136-11-01"}, "still to come"),
        ({"at": "1970-01-01"}, "before 2020, when no call was billed"),
    ],
)
def test_a_slip_in_what_is_recorded_is_not_written_down(wrong, told, meter):
    with pytest.raises(ConfigurationError, match=told):
        tokenmeter.record(ANSWER | {"id": "chatcmpl-2"}, **BY_HAND | wrong, meter=meter)
    assert len(list(tokenmeter.entries(meter=meter))) == 1


@pytest.mark.parametrize("own", [{"provider": "my-openai"}, {"provider": "openai2"}, {"endpoint": "gateway.ask"}])
def test_a_name_of_ones_own_is_recorded(own, meter):
    assert tokenmeter.record(ANSWER | {"id": "chatcmpl-2"}, **BY_HAND | own, meter=meter) is not None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("status", [None, "success", "failed", 1]),
        ("streamed", [None, "no", 1]),
        ("processing", ["batches", 1]),
        ("region", [1, b"eu"]),
        ("service_tier", [1.5, ["flex"]]),
    ],
)
def test_what_is_written_down_as_it_is_given_is_what_the_ledger_has_a_place_for(name, values):
    meter = tokenmeter.make_meter(store="memory:")
    for value in values:
        with pytest.raises(ConfigurationError, match=f"^{name} "):
            meter.record(ANSWER, **BY_HAND, **{name: value})
    assert meter.record(ANSWER, **BY_HAND).cost_source == "computed"
    assert len(list(meter.entries())) == 1
