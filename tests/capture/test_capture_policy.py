"""A budget defined while calls are under way counts them, too, and a run is asked whatever was planned before."""

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
