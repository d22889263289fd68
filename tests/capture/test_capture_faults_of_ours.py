"""Something of ours fails at any line of the way of a call through Google's SDK, or over a socket.

As `test_capture_interrupts` for the SDKs of Stainless's make: the caller gets his answer, its bill is recorded once,
and no hold stays.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
from datetime import timedelta

import openai
import pytest
from google import genai
from test_capture_interrupts import interrupted_at

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

MODEL = "gemini-2.5-flash"
SAY = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}


@pytest.fixture
def provider():
    with FakeProvider(realtime=True) as running:
        yield running


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


def google(provider):
    return genai.Client(api_key="AIza-test-0123456789abcdef", http_options={"base_url": provider.google_url})


def generated(provider, meter, _loop):
    client = tokenmeter.wrap(google(provider), meter)
    return lambda: client.models.generate_content(model=MODEL, contents="Hi")


def streamed(provider, meter, _loop):
    client = tokenmeter.wrap(google(provider), meter)
    return lambda: list(client.models.generate_content_stream(model=MODEL, contents="Hi"))


def generated_async(provider, meter, loop):
    client = tokenmeter.wrap(google(provider), meter)

    async def go():
        await client.aio.models.generate_content(model=MODEL, contents="Hi")

    return lambda: loop.run_until_complete(go())


def streamed_async(provider, meter, loop):
    client = tokenmeter.wrap(google(provider), meter)

    async def go():
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="Hi"):
            pass

    return lambda: loop.run_until_complete(go())


def talked(provider, meter, _loop):
    pytest.importorskip("websockets")
    client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test-0123456789abcdef", base_url=provider.openai_url), meter)
    if not hasattr(client, "realtime"):
        pytest.skip("this SDK version has no such connection")

    def talk():
        with client.realtime.connect(model="gpt-realtime") as connection:
            connection.conversation.item.create(item=SAY)
            connection.response.create()
            for event in connection:
                if event.type == "response.done":
                    break

    return talk


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it came in a finaliser
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("capped", [False, True], ids=["no cap", "a cap"])
@pytest.mark.parametrize(
    ("way", "step"),
    [(generated, 11), (streamed, 29), (generated_async, 13), (streamed_async, 31), (talked, 43)],
)
def test_the_caller_gets_his_answer_and_its_bill_is_recorded_once(way, step, capped, provider, priced, loop, tmp_path):
    meter = Meter(
        store=open_store(f"sqlite:///{tmp_path}/ledger.db"),
        pricer=priced.pricer,
        budgets=[tokenmeter.Budget(limit_usd=10**6, unbounded="expected")] if capped else [],
    )
    call = way(provider, meter, loop)

    def whole():
        nonlocal ended
        ended = False
        contextvars.copy_context().run(call)
        ended = True

    ended = False
    for _ in range(3):
        whole()
    number = step // 2
    reached = total = 0
    expected = 3
    while (place := interrupted_at(number, whole, MemoryError)) is not None:
        number, total, reached = number + step, total + 1, reached + (not ended)
        gc.collect()
        meter.flush()  # what could not be written waits in memory
        recorded = len(list(meter.store.entries()))
        if ended:
            assert recorded == expected + 1, f"a bill is lost, or there twice: {place}"
        expected = recorded  # the SDK may have asked, or not, where it could not go on
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
    assert total > 20
    assert reached < total / 3, "too many faults of ours reach the caller"
    assert meter.store.verify().ok
    meter.close()
