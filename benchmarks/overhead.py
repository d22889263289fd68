"""What metering adds to a call: the plain SDK and ours in one process, call by call in turn.

Prints the median CPU time of the calling thread, with every entry written durably to SQLite, without caps and under one
and three, and what importing and a first call cost. The provider answers from memory, so nothing but the client's own
work is timed; since each of our calls comes right after one of the plain SDK's, its caches are as cold as in a program.

    python benchmarks/overhead.py [--calls 400] [--streams 30]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import openai

import tokenmeter
import tokenmeter.anthropic
import tokenmeter.openai

CHUNKS = 200
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


def _chunk(delta: dict[str, Any], **fields: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": fields.pop("finish_reason", None)}]
    body = {**COMPLETION, "object": "chat.completion.chunk", "choices": choices, "usage": None, **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


STREAM = (
    *(_chunk({"content": "word "}) for _ in range(CHUNKS)),
    _chunk({}, finish_reason="stop"),
    _chunk({}, choices=[], usage=COMPLETION["usage"]),
    b"data: [DONE]\n\n",
)


def _flavour(sdk: Any) -> Any:
    """The httpx package an SDK uses."""
    return sys.modules[sdk.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]


def _transport(httpx: Any) -> Any:
    class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Any:
            yield from STREAM

        async def __aiter__(self) -> Any:
            for piece in STREAM:
                yield piece

    def answer(request: Any) -> Any:
        if b'"stream":true' in request.content or b'"stream": true' in request.content:
            return httpx.Response(200, headers={**HEADERS, "content-type": "text/event-stream"}, stream=Pieces())
        path = request.url.path
        whole = RESPONSE if path.endswith("responses") else COMPLETION
        return httpx.Response(200, headers=HEADERS, json=ANTHROPIC_MESSAGE if path.endswith("messages") else whole)

    return httpx.MockTransport(answer)


def _client(sdk: Any, module: Any, name: str) -> Any:
    httpx = _flavour(sdk)
    http = (httpx.AsyncClient if name.startswith("Async") else httpx.Client)(transport=_transport(httpx))
    return getattr(module, name)(api_key="sk-test-0123456789", http_client=http)


def compare(plain: Callable[[], Any], ours: Callable[[], Any], *, calls: int) -> tuple[float, float]:
    """Median CPU microseconds of a plain call, and of what each of ours took above the one beside it."""
    loop = asyncio.new_event_loop()

    async def timed(call: Callable[[], Awaitable[Any]]) -> int:
        begun = time.thread_time_ns()
        await call()
        return time.thread_time_ns() - begun

    def once(call: Callable[[], Any]) -> int:
        if asyncio.iscoroutinefunction(call):
            return loop.run_until_complete(timed(call))
        begun = time.thread_time_ns()
        call()
        return time.thread_time_ns() - begun

    for _ in range(max(calls // 10, 3)):
        once(plain), once(ours)
    gc.collect()
    gc.freeze()
    took: dict[Callable[[], Any], list[int]] = {plain: [], ours: []}
    for turn in range(calls):
        for call in (plain, ours) if turn % 2 else (ours, plain):
            took[call].append(once(call))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    added = [metered - alone for alone, metered in zip(took[plain], took[ours], strict=True)]
    return statistics.median(took[plain]) / 1000, statistics.median(added) / 1000


def _calls(client: Any, *, streamed: bool, responses: bool = False) -> Callable[[], Any]:
    resource, body = (client.chat.completions, CHAT) if hasattr(client, "chat") else (client.messages, MESSAGE)
    if responses:
        resource, body = client.responses, RESPONSE_REQUEST
    if not hasattr(client, "__aenter__"):
        return lambda: list(resource.create(**body, stream=True)) if streamed else resource.create(**body)

    async def call() -> None:
        if streamed:
            async for _chunk in await resource.create(**body, stream=True):
                pass
        else:
            await resource.create(**body)

    return call


def _import_time(statement: str, before: str = "") -> float:
    """Milliseconds of CPU that `statement` takes in a fresh interpreter, after `before`; the best of five."""
    script = f"{before}\nimport time\nt = time.process_time()\n{statement}\nprint(time.process_time() - t)"
    runs = [subprocess.run([sys.executable, "-c", script], check=True, capture_output=True) for _ in range(5)]  # noqa: S603
    return min(float(run.stdout) for run in runs) * 1000


CAPS = ({"limit_usd": 10**6}, {"limit_tokens": 10**12}, {"limit_requests": 10**9})
CASES = (
    ("chat", openai, tokenmeter.openai, "OpenAI", {}),
    ("chat, async", openai, tokenmeter.openai, "AsyncOpenAI", {}),
    ("responses", openai, tokenmeter.openai, "OpenAI", {"responses": True}),
    ("messages", anthropic, tokenmeter.anthropic, "Anthropic", {}),
    ("messages, async", anthropic, tokenmeter.anthropic, "AsyncAnthropic", {}),
    (f"chat stream of {CHUNKS}", openai, tokenmeter.openai, "OpenAI", {"streamed": True}),
    (f"chat stream of {CHUNKS}, async", openai, tokenmeter.openai, "AsyncOpenAI", {"streamed": True}),
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--calls", type=int, default=400, help="calls per case and client")
    options.add_argument("--streams", type=int, default=30, help="streams per case and client")
    given = options.parse_args()
    print(f"openai {openai.__version__}, anthropic {anthropic.__version__}; CPU microseconds of the calling thread")
    for name, sdk, module, client, how in CASES:
        for caps in (0, 1, 3):
            with tempfile.TemporaryDirectory() as folder:
                budgets = [tokenmeter.Budget(**row) for row in CAPS[:caps]]
                meter = tokenmeter.make_meter(store=f"sqlite:///{folder}/ledger.db", budgets=budgets, config={})
                ours = tokenmeter.wrap(_client(sdk, module, client), meter)
                streamed = bool(how.get("streamed"))
                pair = [_calls(each, **{"streamed": False, **how}) for each in (_client(sdk, sdk, client), ours)]
                alone, added = compare(*pair, calls=given.streams if streamed else given.calls)
                per_chunk = f", {added / CHUNKS:.2f} per chunk" if streamed else ""
                print(f"  {name:26} {caps} caps   plain {alone:8.1f}   added {added:7.1f}{per_chunk}")
                meter.close()
    print("CPU milliseconds to import")
    print(f"  tokenmeter                            {_import_time('import tokenmeter'):6.1f}")
    for name in ("openai", "anthropic"):
        added = _import_time(f"import tokenmeter.{name}", before=f"import {name}, tokenmeter")
        print(f"  tokenmeter.{name:10} over the SDK's  {added:6.1f}")


if __name__ == "__main__":
    main()
