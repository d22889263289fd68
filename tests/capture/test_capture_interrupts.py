"""An interrupt (Ctrl-C, a time limit that raises) at any line of a call's way: no bill is lost, no hold stays.

It reaches who made the call, of whichever kind it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import anthropic
import openai
import pytest
from google import genai

import tokenmeter
from interrupting import entries_in, interrupted_at
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store

QUESTION = [{"role": "user", "content": "x"}]
CHAT_ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}
CHUNK = {
    **CHAT_ANSWER,
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}],
    "usage": None,
}
RESPONSE = {
    "id": "r1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-5-mini",
    "status": "completed",
    "output": [
        {
            "type": "message",
            "id": "m1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "hi", "annotations": []}],
        }
    ],
    "usage": {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 7, "output_tokens": 3},
}
CONTENT = {
    "responseId": "g1",
    "modelVersion": "gemini-2.5-flash",
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10},
}


def events(*bodies, named=False):
    """The bodies as server-sent events, with their types as names where that is the provider's way."""
    name = (lambda body: f"event: {body['type']}\n") if named else (lambda body: "")
    return "".join(f"{name(body)}data: {json.dumps(body)}\n\n" for body in bodies)


CHAT_EVENTS = events(CHUNK, CHUNK, {**CHUNK, "choices": [], "usage": CHAT_ANSWER["usage"]}) + "data: [DONE]\n\n"
RESPONSE_EVENTS = events(
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": [], "usage": None}},
    {"type": "response.completed", "response": RESPONSE},
    named=True,
)
MESSAGE_EVENTS = events(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
    named=True,
)
CONTENT_EVENTS = events({**CONTENT, "usageMetadata": {"promptTokenCount": 7}}, CONTENT)


def make_stainless(sdk, name):
    """How a client of OpenAI's or Anthropic's SDK is made."""

    def make(meter, http, *, asynchronous):
        made = getattr(sdk, f"Async{name}" if asynchronous else name)(api_key="sk-test-012345", http_client=http)
        return tokenmeter.wrap(made, meter)

    return make


def make_genai(meter, http, *, asynchronous):
    """A client of Google's SDK, asynchronous or not."""
    options = {"httpx_async_client" if asynchronous else "httpx_client": http}
    client = tokenmeter.wrap(genai.Client(api_key="AIza-test-0123456789abcdef", http_options=options), meter)
    return client.aio if asynchronous else client


def call_genai(client, streamed):
    """Gemini's own way to stream is a method, no argument."""
    models = client.models
    make = models.generate_content_stream if streamed else models.generate_content
    return make(model="gemini-2.5-flash", contents="x")


@dataclass(frozen=True)
class Kind:
    """A way to call: how its client is made and asked, and what the provider answers, whole and streamed."""

    make: Callable[..., Any]
    ask: Callable[[Any, bool], Any]
    answer: dict[str, Any]
    events: str
    needs: str = "openai:OpenAI"
    httpx: str = openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]


KINDS = {
    "chat": Kind(
        make_stainless(openai, "OpenAI"),
        lambda client, streamed: client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=streamed),
        CHAT_ANSWER,
        CHAT_EVENTS,
    ),
    "responses": Kind(
        make_stainless(openai, "OpenAI"),
        lambda client, streamed: client.responses.create(model="gpt-5-mini", input="x", stream=streamed),
        RESPONSE,
        RESPONSE_EVENTS,
        "openai.resources.responses:Responses",
    ),
    "messages": Kind(
        make_stainless(anthropic, "Anthropic"),
        lambda client, streamed: client.messages.create(
            model="claude-sonnet-5", messages=QUESTION, max_tokens=9, stream=streamed
        ),
        MESSAGE,
        MESSAGE_EVENTS,
    ),
    "content": Kind(
        *(make_genai, call_genai, CONTENT, CONTENT_EVENTS),
        needs="google.genai.types:HttpOptions(httpx_client, httpx_async_client)",
        httpx="httpx" if find_spec("httpx") else "httpx2",
    ),
}


class Calls:
    """One way to call, over a transport in memory that counts what a provider would bill."""

    def __init__(self, meter, kind, *, asynchronous, streamed):
        httpx: Any = __import__(kind.httpx)
        body = kind.events.encode()

        class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
            def __iter__(self):
                yield body

            async def __aiter__(self):
                yield body

        def answer(_request):
            self.billed += 1
            if streamed:
                return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())
            return httpx.Response(200, json=kind.answer)

        self.billed = 0
        http = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=httpx.MockTransport(answer))
        self.client = kind.make(meter, http, asynchronous=asynchronous)
        self.loop = asyncio.new_event_loop() if asynchronous else None
        self.kind, self.streamed = kind, streamed

    def go_on(self):
        """What a traceback held goes, and the loop closes what is left to it: twice, as one frees the other."""
        for _ in range(2):
            gc.collect()
            if self.loop is not None:
                self.loop.run_until_complete(asyncio.sleep(0.001))

    def __call__(self):
        made = self.kind.ask(self.client, self.streamed)
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


WAYS = {
    "call": (False, False, 0, 2),
    "async call": (True, False, 0, 5),
    "stream": (False, True, 0, 5),
    "async stream": (True, True, 0, 11),
    "capped call": (False, False, 3, 7),
    "async capped call": (True, False, 3, 17),
    "capped stream": (False, True, 3, 13),
    "async capped stream": (True, True, 3, 29),
}


class OverdueError(TimeoutError):
    """What a signal's handler raises where a job's time is up: an `Exception`, as Celery's, and an `OSError`, too."""


@pytest.fixture
def at_end():
    """What is to be done after the test, also one that fails."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it came in a finaliser
@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt, OverdueError, MemoryError], ids=["interrupted", "overdue", "no memory"]
)
@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=pytest.mark.needs(kind.needs)) for name, kind in KINDS.items()]
)
@pytest.mark.parametrize("way", WAYS)
def test_no_bill_is_lost_and_no_hold_stays(kind, way, raised, priced, tmp_path, at_end, monkeypatch):
    asynchronous, streamed, caps, step = WAYS[way]
    finalised = []  # where it came in a finaliser, it reaches nobody
    monkeypatch.setattr(sys, "unraisablehook", lambda told: finalised.append(told.exc_type))
    budgets = [
        tokenmeter.Budget(limit_usd=10**6),
        tokenmeter.Budget(limit_tokens=10**12),
        tokenmeter.Budget(limit_requests=10**9),
    ][:caps]
    meter = Meter(store=open_store(f"sqlite:///{tmp_path}/ledger.db"), pricer=priced.pricer, budgets=budgets)
    at_end.callback(meter.close)
    calls = Calls(meter, KINDS[kind], asynchronous=asynchronous, streamed=streamed)
    if calls.loop is not None:
        at_end.callback(calls.loop.close)

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
    gc.freeze()  # what was there before is not looked at for every interrupt
    number, expected, reached, total = 1, 3, 0, 0
    while True:
        billed = calls.billed
        finalised.clear()
        place = interrupted_at(number, call, raised)
        if place is None:
            break
        assert raised is MemoryError or not ended or finalised, f"it was swallowed: {place}"
        total, reached = total + 1, reached + (not ended)
        calls.go_on()
        expected += max(calls.billed - billed, 0)
        call()  # as if nothing had been
        expected += 1
        recorded = entries_in(meter.store)
        assert recorded >= expected, f"a bill is lost: {place}"
        if calls.billed - billed > 1:
            assert recorded == expected, f"a bill is there twice: {place}"
        expected = recorded  # one that was interrupted just before it was sent has an entry with an unknown bill
        assert not meter.store.expired(meter.store.now() + timedelta(days=1)), f"a hold stays: {place}"
        number += step * (5 if raised is OverdueError else 1)
    if raised is MemoryError:  # what is left are lines that hand on what the SDK says
        assert reached < total / 6, "too many faults of ours reach the caller"
    assert meter.store.verify().ok
