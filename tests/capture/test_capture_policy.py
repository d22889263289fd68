"""Caps count calls that were under way when they were defined, runs are asked, and nothing unread passes."""

import inspect

import pytest

import tokenmeter
from tokenmeter.budgets import Budget
from tokenmeter.openai import OpenAI
from tokenmeter.testing import FakeProvider


@pytest.fixture
def metered():
    with FakeProvider() as provider, OpenAI(api_key="sk-test-policy-0001", base_url=provider.openai_url) as client:
        meter = tokenmeter.make_meter(store="memory:", config={})
        yield tokenmeter.wrap(client, meter=meter), meter
        meter.close()


def ask(client, **more):
    return client.chat.completions.create(
        model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=50, **more
    )


@pytest.mark.parametrize("warm", [0, 3])
def test_a_call_under_way_when_its_budget_was_defined_is_counted(metered, warm):
    client, meter = metered
    for _ in range(warm):
        list(ask(client, stream=True))
        ask(client)
    under_way = ask(client, stream=True)
    next(under_way)
    meter.budgets.set(Budget(limit_requests=100, name="all"))
    ask(client)
    assert meter.remaining()[0].spent == 2 * warm + 1
    list(under_way)
    assert meter.remaining()[0].spent == 2 * warm + 2
    assert meter.audit_budgets() == ()


@pytest.mark.parametrize("warm", [0, 3])
def test_a_run_stops_calls_that_were_planned_outside_of_it(metered, warm):
    client, _ = metered
    for _ in range(warm):
        ask(client)
    with tokenmeter.budget(limit_requests=2) as run:
        for _ in range(2):
            ask(client)
        with pytest.raises(tokenmeter.BudgetExceededError):
            ask(client)
    assert run.spent == {"requests": 2}
    ask(client)


def test_a_request_that_cannot_be_read_is_recorded_and_stopped_by_a_cap(metered, monkeypatch):
    client, meter = metered
    monkeypatch.setattr("tokenmeter.providers.openai.requests.measure_prompt", lambda *_: {}["nothing"])
    ask(client)
    assert len(list(meter.store.entries())) == 1
    meter.budgets.set(Budget(limit_usd=100, name="all"))
    with pytest.raises(tokenmeter.BudgetExceededError, match="cannot be looked into"):
        ask(client)


def test_a_schema_with_numbers_for_keys_does_not_pass_a_cap(metered):
    client, meter = metered
    meter.budgets.set(Budget(limit_requests=1, name="all"))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x-levels": {1: "low"}}}}]
    ask(client, tools=tools)
    with pytest.raises(tokenmeter.BudgetExceededError):
        ask(client, tools=tools)


UNBOUNDED = {
    "a host's own search": {"extra_body": {"search_parameters": {"mode": "on"}}},
    "a tool of another host": {"tools": [{"type": "browser_search"}]},
    "a tool of tomorrow": {"tools": [{"type": "a_tool_of_tomorrow"}]},
    "other models": {"extra_body": {"models": ["gpt-5-pro"]}},
    "a larger second limit": {"max_completion_tokens": 1, "extra_body": {"max_tokens": 50_000_000}},
    "another endpoint's limit": {"max_tokens": None, "n": 90, "extra_body": {"max_output_tokens": 1}},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", UNBOUNDED.values(), ids=UNBOUNDED.keys())
def test_what_may_cost_more_than_a_cap_has_does_not_pass_it(metered, more, stream):
    client, meter = metered
    if not more.keys() <= inspect.signature(client.chat.completions.create).parameters.keys():
        pytest.skip("this SDK does not know the argument")
    meter.budgets.set(Budget(limit_usd=5, name="all"))
    sent = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}
    for _ in range(3):
        client.chat.completions.create(**sent)
    with pytest.raises(tokenmeter.BudgetExceededError):
        client.chat.completions.create(**sent | more, stream=stream)
    assert len(list(meter.store.entries())) == 3
    assert meter.audit_budgets() == ()


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
@pytest.mark.parametrize("inject", [False, True])
@pytest.mark.parametrize("said", [50.0, "50"])
def test_a_limit_of_the_callers_in_another_dress_is_held_and_sent_as_it_is(said, inject, field):
    with FakeProvider() as provider, OpenAI(api_key="sk-test-policy-0002", base_url=provider.openai_url) as client:
        budget = Budget(limit_usd="0.01", name="all", inject_max_tokens=inject)
        meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
        tokenmeter.wrap(client, meter=meter)
        if field == "max_output_tokens":
            client.responses.create(model="gpt-5-mini", input="Hi", extra_body={field: said})
        else:
            _chat(client, **{field: said})
        sent = provider.requests[-1].json
        assert {name: sent[name] for name in sent if name.startswith("max_")} == {field: said}
        meter.close()


@pytest.mark.parametrize("said", ["fifty", 50.5, True, -7])
def test_no_cap_is_put_beside_a_limit_that_is_no_count(said):
    with FakeProvider() as provider, OpenAI(api_key="sk-test-policy-0003", base_url=provider.openai_url) as client:
        budget = Budget(limit_usd="0.01", name="all", inject_max_tokens=True)
        meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
        tokenmeter.wrap(client, meter=meter)
        with pytest.raises(
            tokenmeter.RequestTooLargeError
        ):  # whoever does not take it may write all that the model can
            _chat(client, max_tokens=said)
        assert not provider.requests
        _chat(client, max_tokens=-1)  # which local servers take for "no limit"
        sent = provider.requests[-1].json
        assert {name for name in sent if name.startswith("max_")} == {"max_tokens"}
        assert 16 <= sent["max_tokens"] < 5_000
        meter.close()


def _chat(client, **more):
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}], extra_body=more)
