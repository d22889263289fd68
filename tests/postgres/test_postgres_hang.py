"""A server that hangs: it takes connections and statements and answers none. Its processes are stopped by SIGSTOP."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tokenmeter
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.stores.postgres import sessions
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.testing import FakeProvider

QUESTION = [{"role": "user", "content": "What does a token cost?"}]


def _children(parent):
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = status.read_text().rpartition(") ")
        except OSError:
            continue  # it has ended
        if int(rest.split()[1]) == parent:
            yield int(status.parent.name)


class Hang:
    """Stops a server's processes; `end` lets them go on."""

    def __init__(self, server):
        self._main = int((server.folder / "data" / "postmaster.pid").read_text().split("\n")[0])
        self._stopped = []

    def begin(self):
        self._stopped = [self._main, *_children(self._main)]
        for process in self._stopped:
            os.kill(process, signal.SIGSTOP)

    def end(self):
        stopped, self._stopped = self._stopped, []
        for process in stopped:
            os.kill(process, signal.SIGCONT)


@pytest.fixture
def hang(own_postgres_server, monkeypatch):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(Pool, "seconds", 1)
    monkeypatch.setattr(sessions, "_GRACE_SECONDS", 0)
    made = Hang(own_postgres_server)
    yield made
    made.end()


@pytest.fixture
def url(own_postgres_server, tmp_path):
    return f"{own_postgres_server.url}&spool={tmp_path}/spool&connect_timeout=2"


def test_a_call_in_hand_gives_up_and_those_behind_it_do_not_wait(hang, url, opened, make_entry, make_hold, key):
    store = opened(url)
    store.reserve(make_hold((key, 100, 1)))
    hang.begin()
    with pytest.raises(StoreUnavailableError):
        store.reserve(make_hold((key, 100, 1)))

    def call():
        assert store.settle(make_entry()).recorded

    threads = [threading.Thread(target=call) for _ in range(12)]
    for thread in threads:
        time.sleep(0.05)
        thread.start()
    for thread in threads:
        thread.join()
    hang.end()
    assert store.flush(60) == 0
    assert len(list(store.entries())) == 12


def test_who_reads_does_not_wait_for_a_server_that_hangs(hang, url, opened, make_entry):
    store = opened(url)
    store.settle(make_entry())
    assert len(list(store.entries())) == 1
    hang.begin()
    with pytest.raises(StoreUnavailableError):
        list(store.entries())
    hang.end()
    assert len(list(store.entries())) == 1


async def test_an_event_loop_goes_on_and_its_calls_return(hang, url, monkeypatch):
    """Plain and streamed calls of members whose caps the server has not counted yet, and that let calls go on."""
    openai = pytest.importorskip("openai")
    run, askers = Pool.run, set()

    def noted(*arguments, **options):
        askers.add(threading.current_thread())
        return run(*arguments, **options)

    budget = tokenmeter.Budget(member="*", limit_usd=50, name="open", store_failure="open")
    meter: Any = tokenmeter.make_meter(store=url, budgets=[budget])
    with FakeProvider() as provider:
        sdk = openai.AsyncOpenAI(base_url=provider.openai_url, api_key="sk-test-0123456789", max_retries=0)
        client = tokenmeter.wrap(sdk, meter)

        async def call(member, **options):
            with tokenmeter.attribute(member=member):
                return await client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, **options)

        await call("ada")
        hang.begin()
        monkeypatch.setattr(Pool, "run", noted)
        answers = await asyncio.gather(*(call(f"member {number}") for number in range(8)))
        async with await call("member 8", stream=True) as stream:
            pieces = [piece async for piece in stream]
        hang.end()
        await client.close()
    assert all(answer.choices for answer in answers)
    assert pieces
    assert askers
    assert threading.current_thread() not in askers, "the loop was held up as long as a server is waited for"
    await asyncio.to_thread(meter.store.flush, 20)
    assert len(list(meter.store.entries())) == 10
    await asyncio.to_thread(meter.close)
