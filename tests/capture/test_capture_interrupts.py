"""An interrupt (Ctrl-C, a time limit that raises) at any line of a call's way: no bill is lost, no hold stays."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from datetime import timedelta
from typing import Any

import openai
import pytest

import tokenmeter
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store

ROOT = os.path.dirname(tokenmeter.__file__)  # noqa: PTH120 - compared with code objects' names
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


def interrupted_at(number, call):
    """Where line `number` of ours was, at which `call` was interrupted; None when it has fewer."""
    place = None
    passed = 0

    def line(frame, event, _argument):
        nonlocal passed, place
        if event == "line":
            passed += 1
            if passed == number:
                place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise KeyboardInterrupt
        return line

    def enter(frame, _event, _argument):
        return line if frame.f_code.co_filename.startswith(ROOT) else None

    sys.settrace(enter)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return place


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it came in a finaliser
@pytest.mark.parametrize(
    ("asynchronous", "streamed", "caps", "step"),
    [
        (False, False, 0, 2),
        (True, False, 0, 5),
        (False, True, 0, 5),
        (False, False, 3, 7),
        (True, False, 3, 17),
        (False, True, 3, 13),
    ],
    ids=["call", "async call", "stream", "capped call", "async capped call", "capped stream"],
)
def test_no_bill_is_lost_and_no_hold_stays(asynchronous, streamed, caps, step, priced, tmp_path):
    budgets = [
        tokenmeter.Budget(limit_usd=10**6),
        tokenmeter.Budget(limit_tokens=10**12),
        tokenmeter.Budget(limit_requests=10**9),
    ][:caps]
    meter = Meter(store=open_store(f"sqlite:///{tmp_path}/ledger.db"), pricer=priced.pricer, budgets=budgets)
    call = Calls(meter, asynchronous=asynchronous, streamed=streamed)
    for _ in range(3):
        call()
    number, expected = 1, 3
    while True:
        billed = call.billed
        place = interrupted_at(number, call)
        if place is None:
            break
        gc.collect()
        expected += max(call.billed - billed, 0)
        call()  # as if nothing had been
        expected += 1
        recorded = len(list(meter.store.entries()))
        assert recorded >= expected, f"a bill is lost: {place}"
        if call.billed - billed > 1:
            assert recorded == expected, f"a bill is there twice: {place}"
        expected = recorded  # one that was interrupted just before it was sent has an entry with an unknown bill
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
        number += step
    assert meter.store.verify().ok
    meter.close()
    if call.loop is not None:
        call.loop.close()
