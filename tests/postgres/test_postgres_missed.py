"""A server tells a process of a new budget after a while: what the process recorded meanwhile is counted in."""

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres import journal
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": one, "unit_price": "1", "per": 1} for one in ("input", "output")
]
ANSWERED = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=Usage({"input": 1})),)))


@pytest.fixture
def meters(postgres_url, tmp_path, monkeypatch):
    """Meters of hosts that ask the server for budgets once, and then not by themselves; closed at the end."""
    monkeypatch.setattr(journal, "_ASK_GENERATION_EVERY", 1e9)
    made = []

    def make(host):
        url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}spool={tmp_path / host}"
        made.append(Meter(store=open_store(url), pricer=Pricer(PriceList.load(ROWS))))
        return made[-1]

    yield make
    for meter in made:
        meter.close()


def spend(meter, member, times=1):
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", max_output_tokens=1),
        attribution=Attribution(member=member),
    )
    for _ in range(times):
        assert meter.settle(meter.authorize(call), ANSWERED) is not None


def begin(meters):
    """Two hosts; one makes calls before and after the other sets a budget and begins to count, and has not heard."""
    first, second = meters("first"), meters("second")
    spend(second, "ada", 2)
    first.budgets.set(Budget(member="*", limit_requests=100, limit_usd=10**6, period="total", name="each"))
    spend(first, "ada")
    spend(second, "ada", 3)
    spend(second, "bob")
    second.store.flush()
    return first, second


def standing(meter):
    return {(one.unit, one.scope["member"]): one.spent for one in meter.remaining()}


def test_it_is_counted_in_when_the_process_hears_of_the_budget(meters):
    first, second = begin(meters)
    assert standing(first)["requests", "ada"] == 3
    second.store.generation(ask=True)
    spend(second, "ada")
    second.store.flush()
    assert standing(first) == {("requests", "ada"): 7, ("usd", "ada"): 7, ("requests", "bob"): 1, ("usd", "bob"): 1}
    assert first.audit_budgets() == second.audit_budgets() == ()


def test_it_is_counted_in_when_the_process_ends_without_having_heard(meters):
    first, second = begin(meters)
    second.close()
    assert standing(first)["requests", "ada"] == 6
    assert first.audit_budgets() == ()


def test_it_is_counted_in_when_the_process_only_reads_by_then(meters):
    first, second = begin(meters)
    second.store.generation(ask=True)
    assert standing(second)["requests", "ada"] == 6
    assert first.audit_budgets() == ()


def test_what_a_process_left_unsent_is_counted_in_by_the_next_one_on_its_host(meters, monkeypatch):
    first, second = meters("first"), meters("second")
    spend(second, "ada", 2)
    second.store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(second.store, "_send", lambda: None)
        patch.setattr(second.store.journal, "_fold", lambda: None)
        spend(second, "ada", 3)
        first.budgets.set(Budget(member="*", limit_requests=100, period="total", name="each"))
        spend(first, "ada")
        third = meters("second")
    spend(third, "bob")
    third.store.flush()
    assert standing(first) == {("requests", "ada"): 6, ("requests", "bob"): 1}
    assert first.audit_budgets() == ()


def test_a_retired_budget_and_another_of_its_scope_are_counted_each_by_itself(meters):
    first, second = begin(meters)
    first.budgets.retire("each")
    first.budgets.set(Budget(member="*", limit_requests=50, period="total", name="each"))
    first.budgets.set(Budget(limit_requests=50, period="rolling-1h", name="hourly"))
    spend(first, "ada")
    spend(second, "ada")
    second.store.generation(ask=True)
    spend(second, "eve")
    second.store.flush()
    assert {one.spent for one in first.remaining(member="ada") if one.budget == "each"} == {8}
    assert [one.spent for one in first.remaining() if one.budget == "hourly"] == [10]
    assert first.audit_budgets() == ()
