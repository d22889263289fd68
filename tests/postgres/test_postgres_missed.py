"""A server tells a process of a new budget after a while: what the process recorded meanwhile is counted in."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.ledger import new_id
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres import journal
from tokenmeter.usage import Consumption, Observation, Usage

ROWS = [
    {"provider": "openai", "model": "m", "sku_meter": one, "unit_price": "1", "per": 1} for one in ("input", "output")
]
ANSWERED = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=Usage({"input": 1})),)))


class Meters:
    """Makes meters of hosts, by their names."""

    def __init__(self, url, folder):
        self._url, self._folder, self.made = url, folder, []

    def url(self, host):
        return f"{self._url}{'&' if '?' in self._url else '?'}spool={self._folder / host}"

    def __call__(self, host):
        self.made.append(Meter(store=open_store(self.url(host)), pricer=Pricer(PriceList.load(ROWS))))
        return self.made[-1]


@pytest.fixture
def meters(postgres_url, tmp_path, monkeypatch):
    """Meters of hosts that ask the server for budgets once, and then not by themselves; closed at the end."""
    monkeypatch.setattr(journal, "_ASK_GENERATION_EVERY", 1e9)
    made = Meters(postgres_url, tmp_path)
    yield made
    for meter in made.made:
        meter.close()


#: Makes calls, and once it is told to go on, more of them, without hearing of anything; then it is killed.
_KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_postgres_missed import ROWS, Meter, PriceList, Pricer, journal, open_store, spend
journal._ASK_GENERATION_EVERY = 1e9
meter = Meter(store=open_store({store!r}), pricer=Pricer(PriceList.load(ROWS)))
spend(meter, "ada", 2)
meter.store.flush()
print("ready", flush=True)
sys.stdin.readline()
if not {sends}:
    meter.store.journal._fold = lambda: None
spend(meter, "ada", 3)
spend(meter, "eve", 4)
if {sends}:
    meter.store.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def spend(meter, member, times=1, key=None):
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", max_output_tokens=1),
        attribution=Attribution(member=member),
        api_key=key,
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


def test_it_is_counted_in_when_it_arrives_whatever_becomes_of_the_process(meters):
    first, second = begin(meters)
    assert standing(first) == {("requests", "ada"): 6, ("usd", "ada"): 6, ("requests", "bob"): 1, ("usd", "bob"): 1}
    second.store.generation(ask=True)
    spend(second, "ada")
    second.store.flush()
    assert standing(first) == {("requests", "ada"): 7, ("usd", "ada"): 7, ("requests", "bob"): 1, ("usd", "bob"): 1}
    assert first.audit_budgets() == second.audit_budgets() == ()


def test_it_is_counted_in_when_the_process_ends_without_having_heard(meters):
    first, second = begin(meters)
    spend(second, "ada")
    second.close()
    assert standing(first)["requests", "ada"] == 7
    assert first.audit_budgets() == ()


def test_it_is_counted_in_when_the_process_only_reads_by_then(meters):
    first, second = begin(meters)
    second.store.generation(ask=True)
    assert standing(second)["requests", "ada"] == 6
    assert first.audit_budgets() == ()


@pytest.mark.parametrize("bulk", [False, True], ids=["calls", "an import"])
def test_what_a_process_left_unsent_is_counted_in_by_whoever_sends_it(meters, monkeypatch, bulk):
    first, second, third = meters("first"), meters("second"), meters("second")
    spend(second, "ada", 2)
    second.store.flush()
    if bulk:
        kept = [replace(entry, entry_id=new_id(), dedup_key=None) for entry in second.store.entries()]
    monkeypatch.setattr(second.store, "_send", lambda: None)
    monkeypatch.setattr(second.store.journal, "_fold", lambda: None)
    spend(second, "ada", 3)
    first.budgets.set(Budget(member="*", limit_requests=100, period="total", name="each"))
    spend(first, "ada")
    if bulk:
        assert all(second.post_all(kept))
    else:
        spend(second, "ada", 2)
    spend(third, "bob")  # it knows of the budget, and sends what the other has written
    third.store.flush()
    assert standing(first) == {("requests", "ada"): 8, ("requests", "bob"): 1}
    assert first.audit_budgets() == ()


@pytest.mark.parametrize("sends", [True, False], ids=["sent", "unsent"])
def test_a_process_that_is_killed_before_it_hears_of_a_budget_leaves_its_counter_right(meters, tmp_path, sends):
    first = meters("first")
    code = _KILLED.format(store=meters.url("second"), sends=sends, tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as killed:
        assert killed.stdout.readline() == "ready\n"
        first.budgets.set(Budget(member="*", limit_requests=100, thresholds=[6], period="total", name="each"))
        spend(first, "ada")
        killed.communicate("go on\n")
    assert killed.returncode == -signal.SIGKILL
    if not sends:
        assert standing(first) == {("requests", "ada"): 3}
        meters("second").store.flush()
    assert standing(first) == {("requests", "ada"): 6, ("requests", "eve"): 4}
    assert first.audit_budgets() == ()


def test_a_key_that_got_its_name_meanwhile_counts_in_the_budget_of_that_name(meters):
    first, second = meters("first"), meters("second")
    key = ApiKey.identify("sk-prod", secret=second.store.secret())
    spend(second, "ada", 2, key=key)
    second.store.flush()
    first.budgets.set(Budget(api_key="prod", limit_requests=100, period="total", name="prod"))
    spend(first, "ada", key=replace(key, alias="prod"))
    spend(second, "ada", 3, key=key)
    second.store.flush()
    assert [balance.spent for balance in first.remaining()] == [6]
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
