"""What metering adds to a call: the plain SDK and ours in one process, call by call in turn.

Prints the median CPU time of the calling thread, with every entry written durably to SQLite, without caps and under one
and three, and what importing costs. The provider answers from memory, so nothing but the client's own work is timed;
since each of our calls comes right after one of the plain SDK's, its caches are as cold as in a program. A stream is
timed in three parts: until its first chunk is there, for each chunk after it, and at its end.

    python benchmarks/overhead.py [--calls 400] [--streams 30]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from operator import sub
from statistics import median
from typing import Any

import anthropic
import openai

import tokenmeter
import tokenmeter.anthropic
import tokenmeter.openai

CHUNKS = 200
#: The events of a stream, by number, after which a part of it ends: the first, and the last but what says the end.
PART_ENDS = (0, CHUNKS - 1)
#: A new ledger's files are each looked at until they have lain still for three seconds: what a call costs from then on
#: is what a program pays.
SETTLED_SECONDS = 4
QUESTION = "Summarise the following paragraph in one sentence. " * 8
CHAT = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": QUESTION}]}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 256, "messages": [{"role": "user", "content": QUESTION}]}

RESPONSE_REQUEST = {"model": "gpt-5-mini", "input": QUESTION}

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 90, "completion_tokens": 3, "total_tokens": 93},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-5-mini",
    "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": []}],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 90,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 93,
    },
}
TEXT_DELTA = {
    "type": "response.output_text.delta",
    "item_id": "msg_1",
    "output_index": 0,
    "content_index": 0,
    "logprobs": [],
}
ANTHROPIC_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [{"type": "text", "text": "Done."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 90, "output_tokens": 3},
}


ANSWERS = {"completions": COMPLETION, "messages": ANTHROPIC_MESSAGE, "responses": RESPONSE}


#: What a provider sends beside its answer, more or less.
HEADERS = {
    "date": "Thu, 01 Jan 2026 00:00:00 GMT",
    "x-request-id": "req_0123456789abcdef",
    "request-id": "req_0123456789abcdef",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "server": "cloudflare",
    "cf-ray": "0123456789abcdef-FRA",
}


def _event(body: dict[str, Any]) -> bytes:
    name = f"event: {body['type']}\n".encode() if "type" in body else b""
    return name + b"data: " + json.dumps(body).encode() + b"\n\n"


def _chunk(delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return {**COMPLETION_KIND, "object": "chat.completion.chunk", "choices": choices}


#: The chunks of a chat's stream, as whoever did not ask for usage gets them.
COMPLETION_KIND = {name: value for name, value in COMPLETION.items() if name != "usage"}
WORDS = (*(_chunk({"content": "word "}) for _ in range(CHUNKS)), _chunk({}, finish_reason="stop"))
DONE = b"data: [DONE]\n\n"


#: By the end of the path: one event for each piece of text, and what comes after the last one.
STREAMS = {
    "completions": (*map(_event, WORDS), DONE),
    "completions, with usage": (
        *(_event({**chunk, "usage": None}) for chunk in WORDS),
        _event({**WORDS[0], "choices": [], "usage": COMPLETION["usage"]}),
        DONE,
    ),
    "messages": (
        _event({"type": "message_start", "message": {**ANTHROPIC_MESSAGE, "content": [], "stop_reason": None}}),
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        *(
            _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word "}})
            for _ in range(CHUNKS)
        ),
        _event({"type": "content_block_stop", "index": 0}),
        _event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": ANTHROPIC_MESSAGE["usage"]}),
        _event({"type": "message_stop"}),
    ),
    "responses": (
        _event({"type": "response.created", "sequence_number": 0, "response": {**RESPONSE, "usage": None}}),
        *(_event({**TEXT_DELTA, "sequence_number": number, "delta": "word "}) for number in range(1, CHUNKS + 1)),
        _event({"type": "response.completed", "sequence_number": CHUNKS + 1, "response": RESPONSE}),
    ),
}


def _flavour(sdk: Any) -> Any:
    """The httpx package an SDK uses."""
    return sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]


def _transport(httpx: Any) -> Any:
    class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __init__(self, pieces: tuple[bytes, ...]) -> None:
            self.pieces = pieces

        def __iter__(self) -> Any:
            yield from self.pieces

        async def __aiter__(self) -> Any:
            for piece in self.pieces:
                yield piece

    def answer(request: Any) -> Any:
        kind = request.url.path.rpartition("/")[2]
        if b'"include_usage":true' in request.content:
            kind += ", with usage"
        if b'"stream":true' in request.content or b'"stream": true' in request.content:
            return httpx.Response(
                200, headers={**HEADERS, "content-type": "text/event-stream"}, stream=Pieces(STREAMS[kind])
            )
        return httpx.Response(200, headers=HEADERS, json=ANSWERS[kind])

    return httpx.MockTransport(answer)


def _client(sdk: Any, module: Any, name: str) -> Any:
    httpx = _flavour(sdk)
    http = (httpx.AsyncClient if name.startswith("Async") else httpx.Client)(transport=_transport(httpx))
    return getattr(module, name)(api_key="sk-test-0123456789", http_client=http)


def compare(plain: Call, ours: Call, *, calls: int) -> list[tuple[float, float]]:
    """Of each part of a call: median CPU microseconds of the plain one, and of what ours took above that beside it."""
    loop = asyncio.new_event_loop()
    marks: list[int] = []

    def mark() -> None:
        marks.append(time.thread_time_ns())

    async def timed(call: Call) -> None:
        mark()
        await call(mark)
        mark()

    def once(call: Call) -> list[int]:
        marks.clear()
        if asyncio.iscoroutinefunction(call):
            loop.run_until_complete(timed(call))
        else:
            mark()
            call(mark)
            mark()
        return [after - before for before, after in itertools.pairwise(marks)]

    until = time.monotonic() + SETTLED_SECONDS
    for turn in itertools.count():
        once(plain), once(ours)
        if turn >= calls // 10 and time.monotonic() > until:
            break
    gc.collect()
    gc.freeze()
    took: dict[Call, list[list[int]]] = {plain: [], ours: []}
    for turn in range(calls):
        for call in (plain, ours) if turn % 2 else (ours, plain):
            took[call].append(once(call))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    alone, metered = zip(*took[plain], strict=True), zip(*took[ours], strict=True)
    return [
        (median(first) / 1000, median(map(sub, second, first)) / 1000)
        for first, second in zip(alone, metered, strict=True)
    ]


#: Makes one call, and marks the borders of its parts.
Call = Callable[[Callable[[], None]], Any]


def _create(client: Any, kind: str) -> Callable[..., Any]:
    if kind == "chat":
        return partial(client.chat.completions.create, **CHAT)
    if kind == "messages":
        return partial(client.messages.create, **MESSAGE)
    return partial(client.responses.create, **RESPONSE_REQUEST)


def _call(client: Any, kind: str) -> Call:
    create = _create(client, kind)

    def ask(_mark: Callable[[], None]) -> None:
        create()

    async def ask_async(_mark: Callable[[], None]) -> None:
        await create()

    return ask_async if hasattr(client, "__aenter__") else ask


def _stream(client: Any, kind: str) -> Call:
    create = _create(client, kind)

    def listen(mark: Callable[[], None]) -> None:
        for number, _event in enumerate(create(stream=True)):
            if number in PART_ENDS:
                mark()

    async def listen_async(mark: Callable[[], None]) -> None:
        number = 0
        async for _event in await create(stream=True):
            if number in PART_ENDS:
                mark()
            number += 1

    return listen_async if hasattr(client, "__aenter__") else listen


def _run(script: str) -> float:
    """What `script` prints, in a fresh interpreter: milliseconds of CPU; the best of five.

    The first of them may compile what it imports, which is kept for those after it.
    """
    keeping = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = partial(subprocess.run, [sys.executable, "-c", script], check=True, capture_output=True, env=keeping)
    return min(float(run().stdout) for _ in range(5)) * 1000


def _import_time(statement: str, before: str = "") -> float:
    return _run(f"{before}\nimport time\nt = time.process_time()\n{statement}\nprint(time.process_time() - t)")


#: From the start of a process until its first call is done; the answer is the same as above.
FIRST_CALL = """
import json, time, httpx2 as httpx, openai
{setup}
transport = httpx.MockTransport(lambda request: httpx.Response(200, json=json.loads({answer!r})))
client = OpenAI(api_key="sk-test-0123456789", http_client=httpx.Client(transport=transport))
client.chat.completions.create(model="gpt-5-mini", messages=[{{"role": "user", "content": "Hello"}}])
print(time.process_time())
"""
SET_UP = """
import tokenmeter
from tokenmeter.openai import OpenAI
import pathlib, uuid
tokenmeter.configure(store="sqlite:///{folder}/" + {name} + ".db")
"""


def _first_call(setup: str) -> float:
    script = FIRST_CALL.format(setup=setup, answer=json.dumps(COMPLETION))
    return _run(script.replace("httpx2", _flavour(openai).__name__))


CAPS = ({"limit_usd": 10**6}, {"limit_tokens": 10**12}, {"limit_requests": 10**9})
CASES = (
    ("chat", openai, tokenmeter.openai, "OpenAI"),
    ("chat", openai, tokenmeter.openai, "AsyncOpenAI"),
    ("responses", openai, tokenmeter.openai, "OpenAI"),
    ("responses", openai, tokenmeter.openai, "AsyncOpenAI"),
    ("messages", anthropic, tokenmeter.anthropic, "Anthropic"),
    ("messages", anthropic, tokenmeter.anthropic, "AsyncAnthropic"),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--calls", type=int, default=400, help="calls per case and client")
    options.add_argument("--streams", type=int, default=30, help="streams per case and client")
    given = options.parse_args()
    print(f"openai {openai.__version__}, anthropic {anthropic.__version__}; CPU microseconds of the calling thread")
    for streamed, calls in ((False, given.calls), (True, given.streams)):
        print("what the plain SDK takes + what tokenmeter adds", end="")
        print(f": until the first event, for each of {CHUNKS - 1} more, at the end" if streamed else "")
        for kind, sdk, module, client in CASES:
            for caps in (0, 1, 3):
                with tempfile.TemporaryDirectory() as folder:
                    budgets = [tokenmeter.Budget(**row) for row in CAPS[:caps]]
                    meter = tokenmeter.make_meter(store=f"sqlite:///{folder}/ledger.db", budgets=budgets, config={})
                    ours = tokenmeter.wrap(_client(sdk, module, client), meter)
                    pair = [(_stream if streamed else _call)(each, kind) for each in (_client(sdk, sdk, client), ours)]
                    parts = compare(*pair, calls=calls)
                    if streamed:
                        parts[1] = (parts[1][0] / (CHUNKS - 1), parts[1][1] / (CHUNKS - 1))
                    shown = "   ".join(f"{alone:8.1f} + {added:6.1f}" for alone, added in parts)
                    name = f"{kind}{' stream' * streamed}{', async' * client.startswith('Async')}"
                    print(f"  {name:24} {caps} caps {shown}")
                    meter.close()
    print("CPU milliseconds to import")
    print(f"  tokenmeter                            {_import_time('import tokenmeter'):6.1f}")
    for name in ("openai", "anthropic"):
        print(
            f"  tokenmeter.{name:10} over the SDK's  {_import_time(f'import tokenmeter.{name}', f'import {name}'):6.1f}"
        )
    print("CPU milliseconds until a process has made its first call, over the plain SDK")
    plain = _first_call("from openai import OpenAI")
    with tempfile.TemporaryDirectory() as folder:
        for ledger, name in (("a new ledger", "uuid.uuid4().hex"), ("one that exists", "'ledger'")):
            print(f"  into {ledger:28} {_first_call(SET_UP.format(folder=folder, name=name)) - plain:10.1f}")


if __name__ == "__main__":
    main()
