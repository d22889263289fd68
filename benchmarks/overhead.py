"""What metering adds to a call: the plain SDK and ours in one process, in alternating blocks.

Prints the median over blocks of the difference in CPU time per call, with every entry written durably to SQLite, and
what importing costs. The provider answers from memory, so nothing but the client's own work is timed.

    python benchmarks/overhead.py [--calls 40] [--blocks 15]
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

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 90, "completion_tokens": 3, "total_tokens": 93},
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
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Pieces())
        return httpx.Response(200, json=ANTHROPIC_MESSAGE if request.url.path.endswith("messages") else COMPLETION)

    return httpx.MockTransport(answer)


def _client(sdk: Any, module: Any, name: str) -> Any:
    httpx = _flavour(sdk)
    http = (httpx.AsyncClient if name.startswith("Async") else httpx.Client)(transport=_transport(httpx))
    return getattr(module, name)(api_key="sk-test-0123456789", http_client=http)


def _timed(call: Callable[[], Any], calls: int) -> float:
    begun = time.process_time_ns()
    for _ in range(calls):
        call()
    return (time.process_time_ns() - begun) / calls / 1000


async def _timed_async(call: Callable[[], Awaitable[Any]], calls: int) -> float:
    begun = time.process_time_ns()
    for _ in range(calls):
        await call()
    return (time.process_time_ns() - begun) / calls / 1000


def compare(plain: Callable[[], Any], ours: Callable[[], Any], *, calls: int, blocks: int) -> tuple[float, float]:
    """Median CPU microseconds of a plain call, and median of what ours adds to it."""
    loop = asyncio.new_event_loop()

    def block(call: Callable[[], Any]) -> float:
        if asyncio.iscoroutinefunction(call):
            return loop.run_until_complete(_timed_async(call, calls))
        return _timed(call, calls)

    block(plain), block(ours)
    alone, added = [], []
    for turn in range(blocks):
        gc.collect()
        first, second = (plain, ours) if turn % 2 else (ours, plain)
        took = {first: block(first), second: block(second)}
        alone.append(took[plain])
        added.append(took[ours] - took[plain])
    loop.close()
    return statistics.median(alone), statistics.median(added)


def _calls(client: Any, *, streamed: bool) -> Callable[[], Any]:
    resource, body = (client.chat.completions, CHAT) if hasattr(client, "chat") else (client.messages, MESSAGE)
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--calls", type=int, default=40, help="calls per block")
    options.add_argument("--blocks", type=int, default=15, help="blocks per case and client")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenmeter.configure(store=f"sqlite:///{folder}/overhead.db", config={})
        print(f"openai {openai.__version__}, anthropic {anthropic.__version__}; CPU microseconds per call")
        for sdk, module, name, streamed in (
            (openai, tokenmeter.openai, "OpenAI", False),
            (openai, tokenmeter.openai, "AsyncOpenAI", False),
            (anthropic, tokenmeter.anthropic, "Anthropic", False),
            (anthropic, tokenmeter.anthropic, "AsyncAnthropic", False),
            (openai, tokenmeter.openai, "OpenAI", True),
            (openai, tokenmeter.openai, "AsyncOpenAI", True),
        ):
            plain, ours = (_calls(_client(sdk, which, name), streamed=streamed) for which in (sdk, module))
            calls = max(given.calls // 20, 1) if streamed else given.calls
            alone, added = compare(plain, ours, calls=calls, blocks=given.blocks)
            per_chunk = f", {added / CHUNKS:.2f} per chunk" if streamed else ""
            kind = f"stream of {CHUNKS} chunks" if streamed else "JSON"
            print(f"  {name:15} {kind:22} plain {alone:8.1f}   added {added:7.1f}{per_chunk}")
        tokenmeter.default_meter().close()
    print("CPU milliseconds to import")
    print(f"  tokenmeter                            {_import_time('import tokenmeter'):6.1f}")
    for name in ("openai", "anthropic"):
        added = _import_time(f"import tokenmeter.{name}", before=f"import {name}, tokenmeter")
        print(f"  tokenmeter.{name:10} over the SDK's  {added:6.1f}")


if __name__ == "__main__":
    main()
