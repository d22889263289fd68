"""A cap of K calls admits exactly K, however many threads, tasks and processes want one, and whoever is killed."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import openai
import pytest

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.errors import BudgetExceededError, StoreBusyError
from tokenmeter.ledger import utcnow
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.processes import process_name, run_at_once
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider
from tokenmeter.usage import Consumption, Observation, Usage

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
LIMIT = 100
USAGE = Usage({"input": 20, "output": 3})
ANSWERED = Outcome(observation=Observation(consumptions=(Consumption(model="m", usage=USAGE),)))
CALL = Call(
    provider="openai",
    endpoint="chat.completions",
    operation="chat",
    facts=RequestFacts(model="m", input_bytes=100, max_output_tokens=10),
    attribution=Attribution(member="ada"),
)


def open_meter(url):
    budgets = [
        Budget(member="*", limit_requests=LIMIT, name="each"),
        Budget(limit_tokens=10**8, name="all"),
        Budget(limit_requests=LIMIT, period="rolling-1d", name="rate"),
    ]
    return Meter(store=open_store(url), pricer=Pricer(PriceList()), budgets=budgets)


def worker(url, threads, wanted, pause):
    """What runs in each process: every thread makes calls until it is stopped, and says so line by line."""
    meter = open_meter(url)

    def work():
        for _ in range(int(wanted)):
            try:
                leave = meter.authorize(CALL)
            except BudgetExceededError as stop:
                if not stop.retryable:
                    os.write(1, b"stopped\n")
                    return
                time.sleep(0.01)
                continue
            os.write(1, b"admitted\n")
            time.sleep(random.random() * float(pause))
            assert meter.settle(leave, ANSWERED) is not None
            os.write(1, b"settled\n")

    os.write(1, b"ready\n")
    sys.stdin.readline()
    workers = [threading.Thread(target=work) for _ in range(int(threads))]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    assert meter.faults == 0
    meter.close()


@pytest.fixture
def meter(store_url):
    """A meter with the budgets of the workers."""
    made = open_meter(store_url)
    yield made
    made.close()


@pytest.fixture
def spawn():
    """Starts workers that wait for a line before they begin; kills what is left of them."""
    running = []

    def start(url, *, threads, wanted, pause):
        arguments = [url, str(threads), str(wanted), str(pause)]
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def go(processes):
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(processes)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def balances(meter):
    return {balance.budget: balance for balance in meter.remaining(member="ada")}


def assert_full_and_sound(meter):
    """Every cap is spent to the last call, nothing is held, and the counters are what the ledger says."""
    standing = balances(meter)
    assert [(standing[name].spent, standing[name].reserved) for name in ("each", "rate")] == [(LIMIT, 0)] * 2
    assert standing["all"].reserved == 0
    assert sum(entry.kind == "usage" for entry in meter.store.entries()) == LIMIT
    assert not meter.audit_budgets()
    assert meter.store.verify().ok


@SHARED
def test_eight_processes_of_eight_threads_admit_exactly_the_limit(store_url, spawn):
    meter = open_meter(store_url)
    workers = [spawn(store_url, threads=8, wanted=10**6, pause=0.005) for _ in range(8)]
    go(workers)
    said = Counter(line for process in workers for line in process.communicate(timeout=120)[0].split())
    assert [process.returncode for process in workers] == [0] * 8
    assert (said["admitted"], said["settled"], said["stopped"]) == (LIMIT, LIMIT, 64)
    assert_full_and_sound(meter)
    meter.close()


def stream_and_die(url):
    """What a process does that is killed amid a stream which no budget is about."""
    meter = Meter(store=open_store(url), pricer=Pricer(PriceList()))
    meter.authorize(replace(CALL, facts=replace(CALL.facts, streamed=True)))
    os.kill(os.getpid(), signal.SIGKILL)


@SHARED
def test_a_stream_whose_process_died_is_found_by_the_next(store_url):
    url = store_url
    meter = Meter(store=open_store(url), pricer=Pricer(PriceList()))
    mine = meter.authorize(replace(CALL, facts=replace(CALL.facts, streamed=True)))
    died = subprocess.run([sys.executable, __file__, "dies", url], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (meter.sweep(), meter.sweep()) == (1, 0)
    (entry,) = meter.store.entries()
    assert (entry.status, entry.attribution.member, entry.usage.input_tokens) == ("aborted", "ada", 25)
    assert set(entry.flags) >= {"estimated", "expired_hold"}
    assert meter.settle(mine, ANSWERED).reservation_id == mine.reservation.reservation_id
    assert meter.sweep(utcnow() + timedelta(days=1)) == 0
    meter.close()


@pytest.mark.parametrize("way", ["general", "planned"])
def test_a_stream_whose_process_died_is_found_by_one_that_only_makes_plain_calls(tmp_path, way):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    meter = tokenmeter.make_meter(store=url, config={})
    with (
        FakeProvider() as provider,
        openai.OpenAI(base_url=provider.openai_url, api_key="sk-1", max_retries=0) as client,
    ):
        tokenmeter.wrap(client, meter=meter)

        def call():
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])

        for _ in range(3 if way == "planned" else 0):  # until calls like it have a plan
            call()
        died = subprocess.run([sys.executable, __file__, "dies", url], check=False)
        assert died.returncode == -signal.SIGKILL
        meter.budgets.holds.sweep_due = 0  # a minute has passed
        call()
    until = time.monotonic() + 60
    while not (found := [entry for entry in meter.entries() if entry.status == "aborted"]) and time.monotonic() < until:
        threading.Event().wait(0.01)
    assert [(entry.attribution.member, "expired_hold" in entry.flags) for entry in found] == [("ada", True)]
    meter.close()


@SHARED
def test_what_a_planned_stream_holds_names_the_process_that_it_ends_with(store_url):
    meter = tokenmeter.make_meter(store=store_url, config={}, budgets=[Budget(limit_usd=10)])
    with (
        FakeProvider() as provider,
        openai.OpenAI(base_url=provider.openai_url, api_key="sk-1", max_retries=0) as client,
    ):
        tokenmeter.wrap(client, meter=meter)
        question = [{"role": "user", "content": "Hi"}]
        for _ in range(3):  # until calls like it have a plan
            list(client.chat.completions.create(model="gpt-5-mini", messages=question, stream=True))
        with client.chat.completions.create(model="gpt-5-mini", messages=question, stream=True) as stream:
            next(stream)
            holds = meter.store.expired(meter.store.now() + timedelta(hours=1))
    assert [hold.owner for hold in holds] == [process_name()]
    meter.close()


@SHARED
def test_workers_killed_at_random_never_overshoot_and_their_holds_come_back(store_url, spawn):
    meter = open_meter(store_url)
    dice = random.Random(20261123)
    acknowledged = 0
    for _ in range(2):
        workers = [spawn(store_url, threads=4, wanted=8, pause=0.05) for _ in range(4)]
        go(workers)
        for process in workers:
            time.sleep(dice.random() * 0.08)
            process.send_signal(signal.SIGKILL)
        acknowledged += sum(process.communicate()[0].count("settled") for process in workers)
        standing = balances(meter)["each"]
        assert standing.spent + standing.reserved <= LIMIT
    recorded = sum(entry.status == "ok" for entry in meter.store.entries())
    assert recorded >= acknowledged
    until = time.monotonic() + 60  # a server may still be at work on the last wish of a client that is gone
    while balances(meter)["each"].reserved and time.monotonic() < until:
        meter.sweep(utcnow() + timedelta(hours=1))
    assert balances(meter)["each"].reserved == 0
    last = spawn(store_url, threads=8, wanted=10**6, pause=0)
    go([last])
    last.communicate(timeout=120)
    assert last.returncode == 0
    assert_full_and_sound(meter)
    meter.close()


def test_sixty_four_threads_admit_exactly_the_limit(meter):
    admitted = []
    barrier = threading.Barrier(64)

    def work():
        barrier.wait()
        for _ in range(10):
            try:
                leave = meter.authorize(CALL)
            except BudgetExceededError:
                continue
            admitted.append(leave)
            meter.settle(leave, ANSWERED)

    threads = [threading.Thread(target=work) for _ in range(64)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(admitted) == LIMIT
    assert_full_and_sound(meter)


async def test_two_hundred_tasks_admit_exactly_the_limit(meter):
    async def work():
        try:
            leave = run_at_once(meter.authorize, CALL)
        except StoreBusyError:
            try:
                leave = await asyncio.to_thread(meter.authorize, CALL)
            except BudgetExceededError:
                return 0
        except BudgetExceededError:
            return 0
        await asyncio.sleep(0.001)
        await asyncio.to_thread(meter.settle, leave, ANSWERED)
        return 1

    assert sum(await asyncio.gather(*(work() for _ in range(200)))) == LIMIT
    assert_full_and_sound(meter)


if __name__ == "__main__":
    stream_and_die(sys.argv[2]) if sys.argv[1] == "dies" else worker(*sys.argv[1:])
