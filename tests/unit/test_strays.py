"""A block that waits for a thread whose call it does not reach says so, beside calls that it does reach."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from multiprocessing.pool import ThreadPool

import openai
import pytest

import tokenmeter
from tokenmeter import attribute, carry
from tokenmeter.running import Strays

QUESTION = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def heard(caplog, monkeypatch):
    """What is said, by a process that has said nothing and whose threads have opened no block yet."""
    fresh = Strays()
    for module in ("running", "attribution"):
        monkeypatch.setattr(f"tokenmeter.{module}.STRAYS", fresh)
    caplog.set_level(logging.WARNING, "tokenmeter")
    return caplog


@pytest.fixture
def meter():
    made = tokenmeter.make_meter(store="memory:", config={})
    yield made
    made.close()


@pytest.fixture
def call(provider, meter):
    """Makes a call; `call.read` makes one that is streamed."""
    with openai.OpenAI(base_url=provider.openai_url, api_key="sk-1", max_retries=0) as client:
        tokenmeter.wrap(client, meter=meter)

        def call(*_):
            client.chat.completions.create(**QUESTION)

        def read(*_):
            list(client.chat.completions.create(**QUESTION, stream=True))

        vars(call)["read"] = read
        yield call


@pytest.fixture
def pool():
    with ThreadPoolExecutor(3) as threads:
        yield threads


def begin(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def run_in_own_pool(work):
    with ThreadPoolExecutor(1) as threads:
        threads.submit(work)


def run_in_processes_pool(work):
    with ThreadPool(2) as threads:
        threads.map(work, range(3))


WAITING = {
    "result": lambda pool, call: pool.submit(call).result(),
    "result of a stream": lambda pool, call: pool.submit(call.read).result(),
    "map": lambda pool, call: list(pool.map(call, range(3))),
    "as_completed": lambda pool, call: [one.result() for one in as_completed([pool.submit(call) for _ in range(3)])],
    "wait": lambda pool, call: wait([pool.submit(call) for _ in range(3)]),
    "the pool's end": lambda _, call: run_in_own_pool(call),
    "a thread's end": lambda _, call: begin(call).join(),
    "multiprocessing's threads": lambda _, call: run_in_processes_pool(call),
}


@pytest.mark.parametrize("first", [True, False], ids=["beside a call before", "beside a call after"])
@pytest.mark.parametrize("way", sorted(WAITING))
def test_a_call_of_a_thread_that_a_block_waits_for_is_told_once_with_both_places(heard, call, pool, meter, way, first):
    for _ in range(2):
        with attribute(member="ada"):
            if first:
                call()
            WAITING[way](pool, call)
            if not first:
                call()
    assert len(heard.messages) == 1, heard.messages
    assert "waits for a thread that made a call outside of every block" in heard.text
    assert heard.text.count(f"{__file__}:") == 2
    assert {entry.attribution.member for entry in meter.entries()} == {"ada", None}


def test_calls_outside_of_every_block_go_by_their_plan_where_there_are_blocks(heard, call, meter, monkeypatch):
    settled = []
    settle = type(meter).settle
    monkeypatch.setattr(type(meter), "settle", lambda *one, **named: settled.append(one) or settle(*one, **named))
    with attribute(member="ada"):
        call()
    for _ in range(5):
        call()
    assert len(settled) == 2  # the first on each account, of which the others' plan is learnt
    assert len(list(meter.entries())) == 6


AWAITING = {
    "run_in_executor": lambda loop, pool, call: loop.run_in_executor(pool, call),
    "gather": lambda loop, pool, call: asyncio.gather(*(loop.run_in_executor(pool, call) for _ in range(2))),
    "wrap_future": lambda _, pool, call: asyncio.wrap_future(pool.submit(call)),
    "wait_for": lambda loop, pool, call: asyncio.wait_for(loop.run_in_executor(pool, call), 60),
}


@pytest.mark.parametrize("way", sorted(AWAITING))
async def test_a_call_of_a_thread_that_a_task_awaits_in_its_block_is_told(heard, call, pool, way):
    loop, is_awaited = asyncio.get_running_loop(), threading.Event()

    def go_on():
        assert is_awaited.wait(60)
        call()

    with attribute(member="ada"):
        await asyncio.to_thread(call)
        loop.call_soon(is_awaited.set)  # which the loop comes to once the task waits
        await AWAITING[way](loop, pool, go_on)
    assert len(heard.messages) == 1, heard.messages
    assert heard.text.count(f"{__file__}:") == 2


def attributed(call):
    with attribute(member="grace"):
        call()


def record(meter, **named):
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    meter.record({"model": "gpt-5-mini", "usage": usage}, provider="openai", endpoint="chat.completions", **named)


def test_nothing_is_said_of_what_says_itself_on_whose_account_it_goes(heard, call, pool, meter):
    with attribute(member="ada"):
        call()
        pool.submit(attributed, call).result()
        pool.submit(carry(call)).result()
        pool.submit(record, meter, attribution={"member": "grace"}).result()
    assert heard.messages == []


async def test_nothing_is_said_of_calls_that_nobody_in_a_block_waits_for(heard, call, pool):
    loop = asyncio.get_running_loop()
    done = threading.Event()

    def go_on():
        while not done.wait(0.001):
            call()

    async def await_outside():
        for _ in range(3):
            await loop.run_in_executor(pool, call)

    background = begin(go_on)
    try:
        outside = asyncio.create_task(await_outside())
        with attribute(member="ada"):
            await asyncio.to_thread(call)
            await loop.run_in_executor(pool, lambda: None)
            pool.submit(lambda: None).result()
            await asyncio.sleep(0.05)
        await outside
        pool.submit(call).result()
    finally:
        done.set()
        background.join()
    assert heard.messages == []


def test_the_search_ends_after_many_calls_that_nobody_waits_for(heard, call, pool, monkeypatch):
    from tokenmeter.running import STRAYS

    with attribute(member="ada"):
        pass
    STRAYS.empty = None
    STRAYS.looks = 2
    for _ in range(3):
        pool.submit(call).result()
    assert STRAYS.looks == 0
    with attribute(member="ada"):
        call()
        pool.submit(call).result()
    assert heard.messages == []


def test_who_is_looked_for_leaves_nothing_of_the_call_to_the_garbage_collector():
    class Answer:
        pass

    def call():
        answer = Answer()
        Strays().find_waiting()
        return weakref.ref(answer)

    gc.collect()
    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()


FINALISERS = """
import gc, threading, time
from tokenmeter.running import Strays

class Client:
    def __init__(self):
        self.itself = self
    def __del__(self):
        time.sleep(0.001)  # another thread runs meanwhile, as where sockets are closed

def come_and_go():
    while time.monotonic() < until:
        threading.Thread(target=int).start()

until = time.monotonic() + 3
strays = Strays()
strays.opened(("a block",), on_loop=False)
gc.set_threshold(1, 1, 1)
for _ in range(2):
    threading.Thread(target=come_and_go, daemon=True).start()
while time.monotonic() < until:
    Client()
    strays.find_waiting()
assert gc.isenabled()
"""


def test_a_finaliser_amid_a_look_at_threads_that_end_stops_no_process():
    """Python 3.11 collects garbage while the list of threads is locked: the process stood still for good."""
    ran = subprocess.run([sys.executable, "-c", FINALISERS], timeout=90, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
