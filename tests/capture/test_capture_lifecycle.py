"""Processes, threads, loops and memory: nothing lost, nothing counted twice, nothing kept alive."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import openai
import pytest

import tokenmeter
from interrupting import interrupted_at
from tokenmeter.capture import settlement
from tokenmeter.capture.calls import InFlight
from tokenmeter.capture.responses import Exchange
from tokenmeter.capture.settlement import Settling, settle_from_anywhere
from tokenmeter.errors import StoreBusyError
from tokenmeter.meter import Meter
from tokenmeter.processes import may_wait
from tokenmeter.stores import open_store

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


def _transport():
    """The SDK's own flavour of httpx, answering from memory."""
    kind = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
    return __import__(kind)


def test_a_forked_child_leaves_the_parents_open_stream_to_the_parent(provider, tmp_path):
    script = f"""
import gc, os, tokenmeter, tokenmeter.openai
tokenmeter.configure(store="sqlite:///{tmp_path}/fork.db", config={{}})
client = tokenmeter.openai.OpenAI(base_url={provider.openai_url!r}, api_key="sk-test")
stream = client.chat.completions.create(**{CHAT!r}, stream=True)
next(stream)
child = os.fork()
if not child:
    client.chat.completions.create(**{CHAT!r})
    del stream
    gc.collect()
    raise SystemExit
os.waitpid(child, 0)
list(stream)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert done.stderr == ""
    store = open_store(f"sqlite:///{tmp_path}/fork.db")
    assert sorted((entry.streamed, entry.status) for entry in store.entries()) == [(False, "ok"), (True, "ok")]
    store.close()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("capped", [False, True])
def test_a_call_that_forks_on_its_way_is_the_parents(streamed, capped, provider, tmp_path):
    """A transport forks, and the child comes back through the SDK as the parent does."""
    script = f"""
import os, sys, openai, tokenmeter, tokenmeter.openai
httpx = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]
tokenmeter.configure(store="sqlite:///{tmp_path}/fork.db", config={{}}, budgets=[{{"limit_usd": 1}}] * {capped:d})
child = []
class Forking(httpx.HTTPTransport):
    def handle_request(self, request):
        response = super().handle_request(request)
        response.read()
        child.append(os.fork())
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)
http = httpx.Client(transport=Forking())
client = tokenmeter.openai.OpenAI(base_url={provider.openai_url!r}, api_key="sk-test", http_client=http)
answer = client.chat.completions.create(**{CHAT!r}, stream={streamed})
if {streamed}:
    list(answer)
if not child[0]:
    raise SystemExit
os.waitpid(child[0], 0)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert done.stderr == ""
    store = open_store(f"sqlite:///{tmp_path}/fork.db")
    assert [(entry.streamed, entry.status) for entry in store.entries()] == [(streamed, "ok")]
    assert store.verify().faults == ()
    store.close()


def test_one_client_serves_several_event_loops(clients, books):
    async def turn():
        client = clients.async_openai()
        await client.chat.completions.create(**CHAT)
        async for _chunk in await client.chat.completions.create(**CHAT, stream=True):
            pass
        await client.close()

    for _ in range(3):
        asyncio.run(turn())
    assert [entry.status for entry in books.all()] == ["ok"] * 6


async def test_an_async_call_whose_lock_is_taken_goes_on_where_no_thread_can_be_had(clients, monkeypatch):
    """A machine's or a container's limit of threads is no reason to refuse it, or to lose it."""
    meter = tokenmeter.make_meter(store="memory:", budgets=[tokenmeter.Budget(limit_requests=2)], config={})
    tried = []

    def refuse(thread):
        if thread.name.startswith("AnyIO"):
            tried.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    def busy(work, *given, **named):
        if work == meter.authorize:
            raise StoreBusyError("another one has the lock")
        return work is not settlement._write and work(*given, **named)

    plain = clients.make("AsyncOpenAI", metered=False)
    monkeypatch.setattr(plain, "_platform", "Unknown", raising=False)  # older SDKs look for it in such a thread
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(settlement, "run_at_once", busy)
    client = tokenmeter.wrap(plain, meter)
    for _ in range(2):
        await client.chat.completions.create(**CHAT)
    with pytest.raises(tokenmeter.BudgetExceededError):
        await client.chat.completions.create(**CHAT)
    monkeypatch.undo()
    assert (len(list(meter.entries())), meter.faults) == (2, 0)
    assert len(tried) == 4  # the second is held for by the plan of the first
    meter.close()


def test_what_is_dropped_while_the_meter_is_at_work_waits_for_the_next_call(clients, books, meter, monkeypatch):
    """A finaliser may run inside the meter, under its locks: it must neither wait nor be forgotten."""
    client = clients.openai()
    settle = meter.store.settle
    inner = []

    def finalising(*args, **kwargs):
        if not inner:
            inner.append(1)
            held = client.chat.completions.create  # a stream is dropped right here
            stream = held(**CHAT, stream=True)
            del stream
            gc.collect()
            inner.append(len(list(meter.store.entries())))
        return settle(*args, **kwargs)

    monkeypatch.setattr(meter.store, "settle", finalising)
    client.chat.completions.create(**CHAT)
    assert inner == [1, 0]
    assert len(books.all()) == 2


@pytest.mark.parametrize("name", ["OpenAI", "Anthropic"])
def test_a_stream_collected_while_its_thread_holds_the_stores_lock_is_neither_waited_for_nor_lost(
    name, clients, priced, tmp_path
):
    """The collector may run anywhere, also while this thread reads a report; waiting there is waiting for oneself."""
    store: Any = open_store(f"sqlite:///{tmp_path}/usage.db")
    meter = Meter(store=store, pricer=priced.pricer)
    client = tokenmeter.wrap(clients.make(name), meter)
    create = client.chat.completions.create if name == "OpenAI" else client.messages.create
    request = CHAT if name == "OpenAI" else {"model": "claude-sonnet-5", "max_tokens": 16, "messages": MESSAGES}
    stream = create(**request, stream=True)
    next(iter(stream))
    with store.journal._mutex, store._book.database._mutex:
        del stream
        gc.collect()
    create(**request)
    assert meter.faults == 0
    assert sorted(entry.status for entry in store.entries()) == ["aborted", "ok"]
    meter.close()


def test_a_stream_closed_by_a_signal_handler_amid_a_settlement_is_recorded_after_it(clients, books, meter, monkeypatch):
    client = clients.openai()
    stream = client.chat.completions.create(**CHAT, stream=True)
    settle, lock = meter.store.settle, threading.Lock()

    def interrupted(*args, **kwargs):
        assert lock.acquire(timeout=1), "waits for itself"
        stream.close()
        try:
            return settle(*args, **kwargs)
        finally:
            lock.release()

    monkeypatch.setattr(meter.store, "settle", interrupted)
    client.chat.completions.create(**CHAT)
    assert meter.faults == 0
    assert sorted(entry.status for entry in books.all()) == ["aborted", "ok"]


def test_an_outcome_put_by_is_written_after_the_next_call(clients, books, meter, monkeypatch):
    from tokenmeter.errors import StoreBusyError

    client = clients.openai()
    settle = meter.store.settle
    busy = [True]

    def sometimes(*args, **kwargs):
        if busy and not may_wait():
            raise StoreBusyError("busy")
        return settle(*args, **kwargs)

    monkeypatch.setattr(meter.store, "settle", sometimes)
    stream = client.chat.completions.create(**CHAT, stream=True)
    del stream
    gc.collect()
    assert list(meter.store.entries()) == []
    busy.clear()
    client.chat.completions.create(**CHAT)
    assert len(books.all()) == 2


def test_an_interrupt_while_what_was_put_by_is_written_loses_none_of_it(clients, books, meter, monkeypatch):
    from tokenmeter.errors import StoreBusyError

    client = clients.openai()
    settle = meter.store.settle

    def sometimes(*args, **kwargs):
        if not may_wait():
            raise StoreBusyError("busy")
        return settle(*args, **kwargs)

    monkeypatch.setattr(meter.store, "settle", sometimes)
    for number in itertools.count(1):
        stream = client.chat.completions.create(**CHAT, stream=True)
        del stream
        gc.collect()
        if interrupted_at(number, settlement.catch_up, within=settlement.__file__) is None:
            break
    assert number > 10
    assert len(books.all()) == number


def test_what_an_interrupt_ended_in_one_thread_is_written_in_any(clients, books, meter, monkeypatch):
    client = clients.openai()
    settle = meter.store.settle

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(meter.store, "settle", settle)
        raise KeyboardInterrupt

    kept = []

    def work():
        stream = client.chat.completions.create(**CHAT, stream=True)
        kept.append(stream.response)
        monkeypatch.setattr(meter.store, "settle", interrupted)
        with suppress(KeyboardInterrupt):
            list(stream)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    kept.clear()
    gc.collect()
    assert len(books.all()) == 1


def test_nothing_of_ours_keeps_clients_responses_or_results_alive(clients):
    client = clients.openai()
    result = client.chat.completions.create(**CHAT)
    stream = client.chat.completions.create(**CHAT, stream=True)
    list(stream)
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    watched = [weakref.ref(thing) for thing in (result, stream.response, raw.http_response, raw)]
    del result, stream, raw
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4
    gone = weakref.ref(client)
    client.close()
    clients.made.clear()
    del client
    gc.collect()
    assert gone() is None


def _leaking(streamed, priced, calls):
    """How many objects, and how many calls settled, after so many calls against a transport in memory."""
    httpx: Any = _transport()
    chunk = {**ANSWER, "object": "chat.completion.chunk"}
    chunk["choices"] = [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]
    events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()

    class Body(httpx.SyncByteStream):
        def __iter__(self):
            yield events

    def answer(request):
        if streamed:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())
        return httpx.Response(200, json=ANSWER)

    store = _Forgetful()
    http_client = httpx.Client(transport=httpx.MockTransport(answer))
    client = openai.OpenAI(api_key="sk-test", http_client=http_client)
    tokenmeter.wrap(client, Meter(store=store, pricer=priced.pricer))

    def call(times):
        for turn in range(times):
            made = client.chat.completions.create(**CHAT, stream=streamed)
            if streamed and turn % 2:  # every other one is dropped unread
                list(made)
        del made
        gc.collect()
        return len(gc.get_objects())

    before = call(50)
    grown = call(calls) - before
    client.close()
    return grown, store.settled - 50


@pytest.mark.parametrize("streamed", [False, True], ids=["bodies", "streams"])
def test_the_number_of_objects_does_not_grow_with_the_number_of_calls(streamed, priced):
    grown, settled = _leaking(streamed, priced, 1_000)
    assert settled == 1_000
    assert grown < 800  # some calls may still be on their way to the ledger; one object each would be 1,000


@pytest.mark.slow
@pytest.mark.skipif("TOKENMETER_SLOW" not in os.environ, reason="takes minutes: set TOKENMETER_SLOW")
@pytest.mark.parametrize("streamed", [False, True], ids=["bodies", "streams"])
def test_the_number_of_objects_does_not_grow_over_100_000_calls(streamed, priced):
    grown, settled = _leaking(streamed, priced, 100_000)
    assert settled == 100_000
    assert grown < 200


class _Forgetful:
    """A store that only counts, so that memory can be told to be capture's."""

    url = "memory:"
    hears_late = False

    def __init__(self):
        self.settled = 0

    def now(self):
        return datetime.now(UTC)

    def settle(self, *_args, **_kwargs):
        from tokenmeter.stores.base import Settlement

        self.settled += 1
        return Settlement(recorded=True)

    def secret(self):
        return bytes(32)

    def generation(self):
        return 0

    def key_names(self):
        return {}

    def documents(self, *_args):
        return iter(())


def test_settling_from_many_threads_at_once_is_safe(meter, books, clients):
    client = clients.openai()
    client.chat.completions.create(**CHAT)
    (entry,) = books.all()
    from tokenmeter.call import Call, Outcome, RequestFacts

    call = Call(provider="openai", endpoint=entry.endpoint, operation="chat", facts=RequestFacts())
    authorization = meter.authorize(call)
    threads = [
        threading.Thread(target=lambda: settle_from_anywhere(Settling(meter, authorization, Outcome())))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.chat.completions.create(**CHAT)  # takes along whatever was put by
    assert len(books.all()) == 22


def test_opentelemetry_of_the_anthropic_sdk_is_not_counted_as_well(clients, books):
    client = clients.anthropic()
    client.messages.create(model="claude-sonnet-5", max_tokens=16, messages=MESSAGES)
    assert len(books.all()) == 1
    assert anthropic.__version__


@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_over_waits_for_no_garbage_collector(stream, name, clients, do):
    """With the SDK alone, request and answer go with their last user; embeddings and pictures are megabytes."""

    async def call(client):
        messages = [{"role": "user", "content": "Tell me about the sea, please."}]
        if "OpenAI" in name:
            value = await do(client.chat.completions.create(model="gpt-5-mini", messages=messages, stream=stream))
        else:
            value = await do(
                client.messages.create(model="claude-sonnet-5", max_tokens=64, messages=messages, stream=stream)
            )
        if stream:
            async for _ in do.each(value):
                pass

    async def left(client, is_one):
        for _ in range(3):
            await call(client)
        gc.collect()
        gc.disable()
        try:
            before = sum(map(is_one, gc.get_objects()))
            for _ in range(10):
                await call(client)
            return sum(map(is_one, gc.get_objects())) - before
        finally:
            gc.enable()

    if stream and await left(clients.make(name, metered=False), lambda one: type(one).__name__ == "Response") >= 10:
        pytest.skip("this SDK leaves a stream's answer to the collector itself")
    # One may still be on its way out of the event loop.
    assert await left(clients.make(name), lambda one: type(one) in {Exchange, InFlight}) < 10


@pytest.mark.needs("openai.resources.responses:Responses.cancel")
@pytest.mark.parametrize("swept_first", [False, True], ids=["read, then swept", "swept, then read"])
@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
def test_a_background_answer_that_another_process_reads_is_the_call_that_was_held_for(
    provider, priced, store_url, swept_first
):
    budgets = [tokenmeter.Budget(limit_usd=100, unbounded="expected"), tokenmeter.Budget(limit_requests=9)]
    meters = [Meter(store=open_store(store_url), pricer=priced.pricer, budgets=budgets) for _ in range(2)]
    beginner, reader = (
        tokenmeter.wrap(openai.OpenAI(base_url=provider.openai_url, api_key="sk-test"), meter) for meter in meters
    )
    with tokenmeter.attribute(member="ada"):
        begun = beginner.responses.create(model="gpt-5-mini", input="Hello", background=True)

    def sweep():
        assert meters[0].sweep(datetime.now(UTC) + timedelta(hours=1)) == swept_first  # a reading ends what is held

    def read(client=reader):
        while client.responses.retrieve(begun.id).status != "completed":
            pass

    def read_where_it_was_begun():
        read(beginner)

    for act in (*([sweep, read, read] if swept_first else [read, read, sweep]), read_where_it_was_begun):
        act()
        for meter in meters:
            meter.flush()
    (billed,) = provider.billed
    used = {"input": billed.usage["input_tokens"], "output": billed.usage["output_tokens"]}
    (total,) = meters[1].store.aggregate([datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)], [])
    assert (total.requests, total.estimated, total.quantities) == (1, 0, used)
    spent = {one.unit: (one.spent, one.reserved) for one in meters[1].remaining()}
    assert spent == {"usd": (total.billed_cost, 0), "requests": (1, 0)}
    assert {entry.attribution.member for entry in meters[1].store.entries()} == {"ada"}
    assert meters[0].audit_budgets() == ()
    assert meters[0].store.verify().ok
    for meter in meters:
        meter.close()
