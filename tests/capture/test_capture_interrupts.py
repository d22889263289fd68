"""An interrupt (Ctrl-C, a time limit that raises) at any line of a call's way: no bill is lost, no hold stays."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
from datetime import timedelta
from typing import Any

import openai
import pytest

import tokenmeter
from interrupting import interrupted_at
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store

CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
CHUNK = {
    **ANSWER,
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}],
    "usage": None,
}
EVENTS = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in (CHUNK, CHUNK, {**CHUNK, "choices": [], "usage": USAGE}))


class Calls:
    """One way to call, over a transport in memory that counts what a provider would bill."""

    def __init__(self, meter, *, asynchronous, streamed):
        httpx: Any = __import__(openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])

        class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
            def __iter__(self):
                yield EVENTS.encode() + b"data: [DONE]\n\n"

            async def __aiter__(self):
                yield EVENTS.encode() + b"data: [DONE]\n\n"

        def answer(_request):
            self.billed += 1
            if streamed:
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())
            return httpx.Response(200, json=ANSWER)

        self.billed = 0
        http = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=httpx.MockTransport(answer))
        self.client = (openai.AsyncOpenAI if asynchronous else openai.OpenAI)(
            api_key="sk-test-012345", http_client=http
        )
        tokenmeter.wrap(self.client, meter)
        self.loop = asyncio.new_event_loop() if asynchronous else None
        self.streamed = streamed

    def __call__(self):
        made = self.client.chat.completions.create(**CHAT, stream=self.streamed)
        if self.loop is None:
            if self.streamed:
                list(made)
            return

        async def go():
            answer = await made
            if self.streamed:
                async for _chunk in answer:
                    pass

        self.loop.run_until_complete(go())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it came in a finaliser
@pytest.mark.parametrize(
    ("asynchronous", "streamed", "caps", "step", "raised"),
    [
        (False, False, 0, 2, KeyboardInterrupt),
        (True, False, 0, 5, KeyboardInterrupt),
        (False, True, 0, 5, KeyboardInterrupt),
        (False, False, 3, 7, KeyboardInterrupt),
        (True, False, 3, 17, KeyboardInterrupt),
        (False, True, 3, 13, KeyboardInterrupt),
        (False, False, 0, 2, MemoryError),
        (True, False, 0, 5, MemoryError),
        (False, True, 0, 5, MemoryError),
        (False, False, 3, 7, MemoryError),
        (True, False, 3, 17, MemoryError),
        (False, True, 3, 13, MemoryError),
    ],
    ids=[
        f"{raised} {call}"
        for raised in ("interrupted", "no memory")
        for call in ("call", "async call", "stream", "capped call", "async capped call", "capped stream")
    ],
)
def test_no_bill_is_lost_and_no_hold_stays(asynchronous, streamed, caps, step, raised, priced, tmp_path):
    budgets = [
        tokenmeter.Budget(limit_usd=10**6),
        tokenmeter.Budget(limit_tokens=10**12),
        tokenmeter.Budget(limit_requests=10**9),
    ][:caps]
    meter = Meter(store=open_store(f"sqlite:///{tmp_path}/ledger.db"), pricer=priced.pricer, budgets=budgets)
    calls = Calls(meter, asynchronous=asynchronous, streamed=streamed)

    def call():  # in a context of its own: a block whose end is interrupted stays open where it was
        contextvars.copy_context().run(inside)

    def inside():
        nonlocal ended
        ended = False
        with block:
            calls()
        ended = True

    block, ended = tokenmeter.attribute(member="ada"), False
    for _ in range(3):
        call()
    number, expected, reached, total = 1, 3, 0, 0
    while True:
        billed = calls.billed
        place = interrupted_at(number, call, raised)
        if place is None:
            break
        total, reached = total + 1, reached + (not ended)
        gc.collect()
        expected += max(calls.billed - billed, 0)
        call()  # as if nothing had been
        expected += 1
        recorded = len(list(meter.store.entries()))
        assert recorded >= expected, f"a bill is lost: {place}"
        if calls.billed - billed > 1:
            assert recorded == expected, f"a bill is there twice: {place}"
        expected = recorded  # one that was interrupted just before it was sent has an entry with an unknown bill
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
        number += step
    if raised is MemoryError:  # what is left are lines that hand on what the SDK says
        assert reached < total / 6, "too many faults of ours reach the caller"
    assert meter.store.verify().ok
    meter.close()
    if calls.loop is not None:
        calls.loop.close()
