"""Budgets over processes: one declares, all obey; prepaid credit is drained to exactly zero."""

import signal
import time
from dataclasses import replace
from decimal import Decimal

import pytest

from tokenmeter.budgets import Budget
from tokenmeter.ledger import new_id
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
PROGRAM = """
from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.usage import Consumption, Observation

import tokenmeter.budgets.bounds
from tokenmeter.providers.prompts import PromptRule
tokenmeter.budgets.bounds.prompt_rule = lambda *_: PromptRule("", overhead=0)

rows = [{"provider": "openai", "model": "m", "sku_meter": m, "unit_price": "1", "per": 1} for m in ("input", "output")]
number, budgets = int(sys.argv[2]), eval(sys.argv[3])
meter = Meter(store=open_store(url), pricer=Pricer(PriceList.load(rows)), budgets=budgets if number == 0 else ())
call = Call(provider="openai", endpoint="chat.completions", operation="chat",
            facts=RequestFacts(model="m", max_output_tokens=1), attribution=Attribution(member="ada", team="t"))
answered = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 1})),)))
"""
WORK = """
import logging
logging.disable()
admitted = []

def work():
    while True:
        try:
            leave = meter.authorize(call)
        except BudgetExceededError as stop:
            if not stop.retryable:
                return
            time.sleep(0.005)
            continue
        admitted.append(1)
        assert meter.settle(leave, answered) is not None

while number and len(meter.budgets.in_force) != 1:
    time.sleep(0.05)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert meter.faults == 0
meter.close()
print(len(admitted))
"""


def read(url):
    return Meter(store=open_store(url), pricer=Pricer(PriceList()))


@SHARED
def test_a_cap_that_one_of_eight_processes_declares_admits_exactly_as_many_as_it_says(store_url, run_processes):
    budgets = '[Budget(member="*", limit_requests=100, name="each")]'
    said = run_processes(8, PROGRAM + WORK, store_url, budgets)
    assert sum(int(output.split()[-1]) for output in said) == 100
    meter = read(store_url)
    assert [(one.spent, one.reserved, one.remaining) for one in meter.remaining()] == [(100, 0, 0)]
    assert meter.audit_budgets() == ()
    meter.close()


@SHARED
def test_prepaid_credit_is_drained_by_eight_processes_to_exactly_zero(store_url, run_processes):
    meter = read(store_url)
    meter.budgets.set(Budget(team="*", limit_usd=0, period="total", name="credit"))
    for key in ("payment-1", "payment-1", "payment-2"):
        meter.budgets.grant("credit", 60, by="billing", reason="pack", scope={"team": "t"}, key=key)
    said = run_processes(8, PROGRAM + WORK, store_url, "()")
    assert sum(int(output.split()[-1]) for output in said) == 120
    assert [(one.limit, one.spent, one.remaining) for one in meter.remaining()] == [(120, 120, 0)]
    assert meter.audit_budgets() == ()
    meter.close()


ASKED = """
import tokenmeter
from tokenmeter.openai import OpenAI

meter = tokenmeter.configure(store=url)
question = dict(model="gpt-5-mini", messages=[{"role": "user", "content": "What?"}], max_completion_tokens=16)
"""
ESTIMATE = """
bound = meter.estimate(**question).bound
print(bound.cost, bound.amount("tokens"))
meter.close()
"""
CLIENTS = """
import logging
logging.disable()
client = OpenAI(base_url=sys.argv[3], api_key="sk-customer", max_retries=0)
admitted = []

def work():
    while True:
        try:
            with tokenmeter.attribute(team="t"):
                client.chat.completions.create(**question)
        except tokenmeter.BudgetReservedError:
            time.sleep(0.005)
        except tokenmeter.BudgetExceededError as stop:
            assert stop.spent == stop.limit
            return
        else:
            admitted.append(1)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert meter.faults == 0
meter.close()
print(len(admitted))
"""


@SHARED
def test_clients_of_eight_processes_use_prepaid_credit_to_the_last_token(store_url, run_processes):
    """Each call uses what is held for it at most, and the credit is worth 120 such calls, in dollars and in tokens."""
    cost, tokens = run_processes(1, ASKED + ESTIMATE, store_url)[0].split()
    meter = read(store_url)
    meter.budgets.set(Budget(team="*", limit_usd=0, limit_tokens=0, period="total", name="credit"))
    for unit, each in (("usd", Decimal(cost)), ("tokens", int(tokens))):
        meter.budgets.grant("credit", 120 * each, by="billing", reason="pack", scope={"team": "t"}, unit=unit)
    with FakeProvider() as provider:
        provider.answer(meters={"input": int(tokens) - 16, "output": 16}, times=None)
        said = run_processes(8, ASKED + CLIENTS, store_url, provider.openai_url)
        assert len(provider.requests) == sum(map(int, said)) == 120
    assert [(one.unit, one.spent > 0, one.remaining) for one in meter.remaining()] == [
        ("usd", True, 0),
        ("tokens", True, 0),
    ]
    assert meter.audit_budgets() == ()
    meter.close()


MIDWAY = """
import logging
logging.disable()
begun, done = Path(sys.argv[4]), 0

def spend(times):
    global done
    for _ in range(times):
        meter.settle(meter.authorize(call), answered)
        done += 1

spend(5)
(begun / str(number)).touch()
if number == 0:
    while len(list(begun.iterdir())) < 3:
        time.sleep(0.01)
    meter.budgets.set(Budget(member="*", limit_requests=10**6, period="total", name="each"))
else:
    while not meter.budgets.in_force:
        spend(1)
spend(5)
assert meter.faults == 0
meter.close()
print(done)
"""


@SHARED
def test_what_others_spend_while_a_budget_is_set_is_in_its_counter(store_url, run_processes, tmp_path):
    said = run_processes(3, PROGRAM + MIDWAY, store_url, "()", tmp_path)
    meter = read(store_url)
    assert [one.spent for one in meter.remaining()] == [sum(map(int, said))]
    assert meter.audit_budgets() == ()
    meter.close()


KILLED = """
def spend(times):
    for _ in range(times):
        assert meter.settle(meter.authorize(call), answered) is not None

spend(2)
meter.flush()
Path(sys.argv[4], "ready").touch()
while not Path(sys.argv[4], "go on").exists():
    time.sleep(0.01)
spend(3)
os.kill(os.getpid(), 9)
"""


@SHARED
def test_a_process_that_is_killed_leaves_the_counter_of_a_budget_that_was_just_set_right(
    store_url, start_process, tmp_path
):
    killed = start_process(PROGRAM + KILLED, store_url, 1, "()", tmp_path)
    while not (tmp_path / "ready").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    meter = read(store_url)
    meter.budgets.set(Budget(member="*", limit_requests=10**6, period="month", name="each"))
    entry = next(meter.store.entries())
    meter.post(replace(entry, entry_id=new_id()))
    (tmp_path / "go on").touch()
    assert killed.wait() == -signal.SIGKILL
    meter.flush()
    assert [one.spent for one in meter.remaining()] == [6]
    assert meter.audit_budgets() == ()
    meter.close()


TOLD = """
from pathlib import Path
from tokenmeter.budgets import Budget
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer

number, folder = int(sys.argv[2]), Path(sys.argv[3])
plan = folder / "plan"

def limit(member):
    return {"requests": int(plan.read_text())}

budgets = [Budget(member="*", limit=limit, limit_requests=1, refresh=refresh, period=period, name=name)
           for name, refresh, period in (("quick", 1, "day"), ("slow", 86_400, "month"))]
meter = Meter(store=open_store(url), pricer=Pricer(PriceList()), budgets=budgets)

def read():
    return {one.budget: int(one.limit) for one in meter.remaining(member="ada")}

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.02)

assert read() == {"quick": 10, "slow": 10}
(folder / f"asked{number}").touch()
if number == 0:
    wait_for("asked1")
    plan.write_text("50")
    for name in ("quick", "slow"):
        meter.budgets.forget_limits(name, "ada")
    assert read() == {"quick": 50, "slow": 50}
    (folder / "changed").touch()
else:
    wait_for("changed")
    while read()["quick"] != 50:
        time.sleep(0.02)
    assert read()["slow"] == 10
meter.close()
"""


@SHARED
def test_who_is_told_that_a_limit_changed_asks_at_once_and_others_after_their_refresh(
    store_url, run_processes, tmp_path
):
    """What a process is told stays in it: another goes by its own answer until that is `refresh` seconds old."""
    (tmp_path / "plan").write_text("10")
    run_processes(2, TOLD, store_url, str(tmp_path))
