"""Peers on the same calls: whose prices are right, which ways to call are recorded, what a call costs more.

Each peer is installed into an environment of its own, at its newest version, and asked there what its documentation
says to ask. Writes docs/explanation/compare.md.

    python benchmarks/compare.py [--uv uv] [--only NAME ...]

Prices: the public cases of tests/providers/golden whose body says all there is to know, worked out by hand. A peer is
right when it comes to the same cost to a billionth of a dollar. Ways to call: a provider in memory that states 90 and 3
tokens; a way is recorded when exactly these come out. Overhead: CPU of the calling thread, beside the plain SDK's.
"""

# ruff: noqa: PLC0415 - each peer is installed in its own environment only
from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.server
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venv-compare"
PAGE = ROOT / "docs" / "explanation" / "compare.md"
#: Peer -> what is installed for it.
PEERS = {
    "tokenmeter": ["-e", f"{ROOT}[openai,anthropic]"],
    "genai-prices": ["genai-prices"],
    "litellm": ["litellm"],
    "tokencost": ["tokencost"],
    "opentelemetry-instrumentation-openai": ["opentelemetry-instrumentation-openai", "opentelemetry-sdk", "openai"],
    "langfuse": ["langfuse", "openai"],
}
WATCHERS = ("opentelemetry-instrumentation-openai", "langfuse")
NEAR = Decimal("1e-9")
USED = {"prompt_tokens": 90, "completion_tokens": 3, "total_tokens": 93}
USED_BY_RESPONSE = {
    "input_tokens": 90,
    "output_tokens": 3,
    "total_tokens": 93,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
CALLS, ROUNDS = 40, 22


# -- prices


def cases() -> list[dict[str, Any]]:
    """The public cases that a body alone decides, each with whether its price is still today's."""
    found: list[dict[str, Any]] = []
    for name in ("openai", "anthropic"):
        text = (ROOT / "tests" / "providers" / "golden" / f"{name}.toml").read_text(encoding="utf-8")
        for case in tomllib.loads(text)["case"]:
            call = dict(case["call"])
            at = call.pop("at")
            whole = call.keys() <= {"provider", "endpoint"} and call["endpoint"] in _FLAVOURS
            body = json.loads(case["body"])
            if whole and "list_cost" in case and isinstance(body, dict):
                body = {**_USUAL[call["endpoint"]], **body}
                found.append({**call, "name": case["name"], "at": str(at), "body": body, "cost": case["list_cost"]})
    return found


_FLAVOURS = {"chat.completions": "chat", "responses": "responses", "messages": "default", "embeddings": "embeddings"}


#: What an answer has that decides no price, and that some readers insist on.
_SAID = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
_USUAL: dict[str, dict[str, Any]] = {
    "chat.completions": {"created": 1, "object": "chat.completion"},
    "responses": {
        "created_at": 1,
        "object": "response",
        "status": "completed",
        "parallel_tool_calls": True,
        "tools": [],
        "output": [{**_SAID, "content": []}],
        "tool_choice": "auto",
        "error": None,
        "instructions": None,
    },
    "messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "content": [{"type": "text", "text": "Hi"}],
    },
    "embeddings": {"object": "list"},
}


def price_by_tokenmeter(case: dict[str, Any]) -> Any:
    """`tokenmeter.price()`."""
    import tokenmeter

    at = case["at"]
    return tokenmeter.price(case["body"], provider=case["provider"], endpoint=case["endpoint"], at=at).list_cost


def price_by_genai_prices(case: dict[str, Any]) -> Any:
    """`extract_usage()` and `calc_price()`, at the day of the call."""
    from genai_prices import calc_price, extract_usage

    moment = datetime.fromisoformat(case["at"])
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    found = extract_usage(case["body"], provider_id=case["provider"], api_flavor=_FLAVOURS[case["endpoint"]])
    model = case["body"].get("model") or found.model.id
    return calc_price(found.usage, model, provider_id=case["provider"], genai_request_timestamp=moment).total_price


def price_by_tokencost(case: dict[str, Any]) -> Any:
    """`calculate_cost_by_tokens()` of the counts, as the provider states them."""
    from tokencost import calculate_cost_by_tokens

    body, usage = case["body"], case["body"]["usage"]
    before = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    cached = details.get("cached_tokens") or usage.get("cache_read_input_tokens") or 0
    if details.get("cached_tokens"):
        before -= cached
    after = usage.get("completion_tokens", usage.get("output_tokens", 0))
    counts = (("input", before), ("cached", cached), ("output", after))
    return sum(calculate_cost_by_tokens(count, body["model"], kind) for kind, count in counts if count)


def price_by_litellm(case: dict[str, Any]) -> Any:
    """The cost that litellm's own call reports, of a provider on this machine that answers with the body."""
    import litellm

    with _answering(case["body"]) as url:
        model = f"{case['provider']}/{case['body']['model']}"
        to: dict[str, Any] = {"model": model, "api_base": url, "api_key": "sk-test"}
        if case["endpoint"] == "responses":
            answer = litellm.responses(input="hi", **to)
        elif case["endpoint"] == "embeddings":
            answer = litellm.embedding(input=["hi"], **to)
        else:
            answer = litellm.completion(messages=[{"role": "user", "content": "hi"}], max_tokens=9, **to)
    return answer._hidden_params["response_cost"]  # noqa: SLF001 - where its documentation says it is


PRICERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tokenmeter": price_by_tokenmeter,
    "genai-prices": price_by_genai_prices,
    "litellm": price_by_litellm,
    "tokencost": price_by_tokencost,
}


@contextlib.contextmanager
def _answering(body: dict[str, Any]) -> Iterator[str]:
    """A provider on this machine that answers everything with one body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# -- ways to call


def _transport() -> Any:
    """The httpx package of the SDK, and a provider in memory: usage in a stream only for who asks for it."""
    import openai

    httpx = sys.modules[openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]]
    text = {"role": "assistant", "content": '{"done": true}'}
    chat = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5-mini"}
    whole = {**chat, "choices": [{"index": 0, "message": text, "finish_reason": "stop"}], "usage": USED}
    output = [{"type": "output_text", "text": "Done.", "annotations": []}]
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": output}
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "gpt-5-mini",
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": USED_BY_RESPONSE,
    }
    vectors = {"object": "list", "model": "text-embedding-3-small", "usage": {"prompt_tokens": 90, "total_tokens": 90}}
    vectors["data"] = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]

    def stream(asked: dict[str, Any], path: str) -> bytes:
        if path.endswith("responses"):
            events = [{"type": "response.created", "response": {**response, "status": "in_progress", "usage": None}}]
            events += [{"type": "response.completed", "response": response}]
            for number, event in enumerate(events):
                event["sequence_number"] = number
            return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)
        chunk = {**chat, "object": "chat.completion.chunk"}
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        pieces = [{**chunk, "choices": [choice]} for _ in range(5)]
        pieces += [{**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
        if (asked.get("stream_options") or {}).get("include_usage"):
            pieces += [{**chunk, "choices": [], "usage": USED}]
        return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in pieces) + b"data: [DONE]\n\n"

    def answer(request: Any) -> Any:
        asked, path = json.loads(request.content), request.url.path
        if asked.get("stream"):
            return httpx.Response(
                200, headers={"content-type": "text/event-stream"}, stream=httpx.ByteStream(stream(asked, path))
            )
        body = vectors if path.endswith("embeddings") else response if path.endswith("responses") else whole
        return httpx.Response(200, json=body)

    return httpx, httpx.MockTransport(answer)


HI: list[Any] = [{"role": "user", "content": "hi"}]


def _abandon(stream: Any) -> None:
    for _ in stream:
        break
    stream.close()


async def _read(client: Any) -> None:
    async for _ in await client.chat.completions.create(model="gpt-5-mini", messages=HI, stream=True):
        pass


def _stream_helper(client: Any) -> None:
    with client.chat.completions.stream(model="gpt-5-mini", messages=HI) as stream:
        for _ in stream:
            pass


#: What a developer writes -> how it is called.
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "chat.completions.create": lambda one, _: one.chat.completions.create(model="gpt-5-mini", messages=HI),
    "the same, async": lambda _, many: many.chat.completions.create(model="gpt-5-mini", messages=HI),
    "with_raw_response": lambda one, _: one.chat.completions.with_raw_response.create(
        model="gpt-5-mini", messages=HI
    ).parse(),
    "a stream, usage not asked for": lambda one, _: list(
        one.chat.completions.create(model="gpt-5-mini", messages=HI, stream=True)
    ),
    "the same stream, async": lambda _, many: _read(many),
    "chat.completions.stream": lambda one, _: _stream_helper(one),
    "a stream with usage": lambda one, _: list(
        one.chat.completions.create(
            model="gpt-5-mini", messages=HI, stream=True, stream_options={"include_usage": True}
        )
    ),
    "responses.create": lambda one, _: one.responses.create(model="gpt-5-mini", input="hi"),
    "a stream of responses": lambda one, _: list(one.responses.create(model="gpt-5-mini", input="hi", stream=True)),
    "embeddings.create": lambda one, _: one.embeddings.create(
        model="text-embedding-3-small", input="hi", encoding_format="float"
    ),
}  # fmt: skip


class Watched:
    """One peer watching the SDK: its clients, and what it recorded since it was last asked, as (input, output)."""

    def __init__(self, name: str) -> None:
        import openai

        httpx, transport = _transport()
        plain = openai.OpenAI(api_key="sk-test", http_client=httpx.Client(transport=transport))
        self.plain = _beside(plain)  # a process that forks now: instrumentations change the SDK for every client
        module: Any = openai
        if name == "tokenmeter":
            import tokenmeter
            import tokenmeter.openai as module

            self._store = tokenmeter.configure(store="memory:").store
            self._seen = 0
        else:
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

            self._store, provider = None, TracerProvider()
            self._exporter = InMemorySpanExporter()
            if name == "langfuse":
                os.environ |= {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": "sk"}
                os.environ["LANGFUSE_HOST"] = "http://127.0.0.1:9"
                from langfuse import Langfuse

                Langfuse(tracer_provider=provider, span_exporter=self._exporter, flush_at=1)
                import langfuse.openai as module
            else:
                from opentelemetry.instrumentation.openai import OpenAIInstrumentor

                provider.add_span_processor(SimpleSpanProcessor(self._exporter))
                OpenAIInstrumentor().instrument(tracer_provider=provider)
            self._provider = provider
        self.one = module.OpenAI(api_key="sk-test", http_client=httpx.Client(transport=transport))
        self.many = module.AsyncOpenAI(api_key="sk-test", http_client=httpx.AsyncClient(transport=transport))

    def recorded(self) -> list[tuple[int, int]]:
        """What was recorded."""
        if self._store is not None:
            usages = [entry.usage for entry in self._store.entries()][self._seen :]
            self._seen += len(usages)
            return [(usage.input_tokens, usage.output_tokens) for usage in usages]
        self._provider.force_flush()
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return [found for span in spans if (found := _told(dict(span.attributes or {})))]


def _told(attributes: dict[str, Any]) -> tuple[int, int] | None:
    details = json.loads(attributes.get("langfuse.observation.usage_details") or "{}")
    names = (("prompt_tokens", "input_tokens", "input"), ("completion_tokens", "output_tokens", "output"))
    values = [next((int(details[one]) for one in some if details.get(one) is not None), None) for some in names]
    for at, name in enumerate(("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")):
        if values[at] is None and name in attributes:
            values[at] = int(attributes[name])
    return None if values == [None, None] else (values[0] or 0, values[1] or 0)


def watch(name: str) -> dict[str, Any]:
    """Way to call -> whether the right tokens were recorded once; and microseconds added to a call."""
    peer = Watched(name)
    found: dict[str, Any] = {}
    for way, call in WAYS.items():
        try:
            done = call(peer.one, peer.many)
            if asyncio.iscoroutine(done):
                asyncio.run(done)
            told = peer.recorded()
        except Exception as error:  # noqa: BLE001 - the peer's, told in the table
            told = [repr(error)[:80]]
        right = [(90, 0)] if way.startswith("embeddings") else [(90, 3)]
        found[way] = "yes" if told == right else "no" if not told else f"as {told}"
    rounds = [(peer.plain(), _micros_of_a_call(peer.one)) for _ in range(ROUNDS)]
    return {"ways": found, "added": statistics.median(metered - plain for plain, metered in rounds[2:])}


def _micros_of_a_call(client: Any) -> float:
    """Median CPU microseconds of the calling thread."""
    took: list[int] = []
    for _ in range(CALLS):
        begun = time.thread_time_ns()
        client.chat.completions.create(model="gpt-5-mini", messages=HI)
        took.append(time.thread_time_ns() - begun)
    return statistics.median(took) / 1000


def _beside(client: Any) -> Callable[[], float]:
    """`_micros_of_a_call` in a process of its own, whenever it is asked."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def serve() -> None:
        while there.recv():
            there.send(_micros_of_a_call(client))

    context.Process(target=serve, daemon=True).start()

    def ask() -> float:
        here.send("go")
        return float(here.recv())

    return ask


# -- one peer, inside of its environment


def inside(name: str) -> dict[str, Any]:
    """All that one peer is asked."""
    from importlib.metadata import version

    found: dict[str, Any] = {"version": version("tokenmeter-sdk" if name == "tokenmeter" else name)}
    if name in PRICERS:
        costs: dict[str, str | None] = {}
        for case in cases():
            try:
                cost = PRICERS[name](case)
                costs[case["name"]] = None if cost is None else f"{Decimal(str(cost)):f}"
            except Exception as error:  # noqa: BLE001 - a peer that cannot price a case has no answer
                print(f"{name}: {case['name']}: {error!r}"[:300], file=sys.stderr)
                costs[case["name"]] = None
        found["costs"] = costs
    if name == "tokenmeter":
        now = datetime.now(UTC).isoformat()
        found["today"] = {one["name"]: str(price_by_tokenmeter({**one, "at": now})) for one in cases()}
    if name == "tokenmeter" or name in WATCHERS:
        found |= watch(name)
    return found


# -- the page


_PAGE = """\
# The same calls, several tools

Made by `python benchmarks/compare.py` on {day}; run it again, it takes a few minutes. It installs each tool into an
environment of its own and asks it what its documentation says to ask.

## Whose prices are right

{every} responses of OpenAI and Anthropic whose cost was worked out by hand
([how they are made](exactness.md#how-it-is-checked)), of which the body says all there is to know. Right is the same
cost to a billionth of a dollar. Most tools know today's prices only, so the second column has the cases whose price is
still today's. The cases are ours and were chosen to be hard: a tool that misses many may be exact on the calls that you
make. tokenmeter's own list begins with the catalog of genai-prices.

{scores}

What each was wrong about:

{wrong}

## What is recorded, and what it costs

A provider in memory answers OpenAI's SDK and states 90 and 3 tokens. Recorded means: these, once.

{ways}

tokenmeter writes to a ledger in memory here; on a file it is [measured](performance.md) apart. The others hand spans to
an exporter in memory and send nothing, and the tracing tools record prompts and answers besides, which is their
purpose. Tools that answer other questions are [told apart](comparison.md) in words.
"""


def write_page(found: dict[str, dict[str, Any]]) -> None:
    """The tables, in the page's words."""
    every = cases()
    today = found["tokenmeter"]["today"]
    lasting = [one for one in every if Decimal(today[one["name"]]) == Decimal(one["cost"])]
    priced = {name: told for name, told in found.items() if "costs" in told}
    watched = {name: told for name, told in found.items() if "ways" in told}
    scores = [
        [
            f"{name} {told['version']}",
            *(str(sum(_is_right(told, one) for one in some)) for some in (every, lasting)),
            str(sum(told["costs"][one["name"]] is None for one in every)),
        ]
        for name, told in priced.items()
    ]
    wrong = [
        [one["name"], _shown(one["cost"]), *(_verdict(told, one) for told in priced.values())]
        for one in every
        if not all(_is_right(told, one) for told in priced.values())
    ]
    ways = [[way, *(told["ways"][way] for told in watched.values())] for way in WAYS]
    ways += [["CPU added to a `create()`, microseconds", *(f"{told['added']:.0f}" for told in watched.values())]]
    text = _PAGE.format(
        day=f"{datetime.now(UTC):%d %B %Y}",
        every=len(every),
        scores=_table(
            ["", f"right, of {len(every)}", f"right, of the {len(lasting)} at today's price", "no answer"], scores
        ),
        wrong=_table(["case", "by hand", *priced], wrong),
        ways=_table(["", *(f"{name} {told['version']}" for name, told in watched.items())], ways),
    )
    PAGE.write_text(text, encoding="utf-8")


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _verdict(told: dict[str, Any], case: dict[str, Any]) -> str:
    return "right" if _is_right(told, case) else _shown(told["costs"][case["name"]])


def _is_right(told: dict[str, Any], case: dict[str, Any]) -> bool:
    cost = told["costs"][case["name"]]
    return cost is not None and abs(Decimal(cost) - Decimal(case["cost"])) <= NEAR


def _shown(cost: str | None) -> str:
    return "no answer" if cost is None else f"${Decimal(cost):.9f}".rstrip("0").rstrip(".")


def _run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout  # noqa: S603 - ours


def main() -> None:
    """Install, ask, write."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--uv", default="uv", help="the uv to use")
    options.add_argument("--only", nargs="*", default=list(PEERS), help="peers; the page needs all")
    options.add_argument("--inside", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.inside:
        print(json.dumps(inside(given.inside)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in given.only:
        home = ENVIRONMENTS / name
        python = home / "bin" / "python"
        _run(given.uv, "venv", "-q", "--allow-existing", "--python", sys.executable, home)
        _run(given.uv, "pip", "install", "-q", "--python", python, *PEERS[name])
        settings = home / "tokenmeter.toml"
        settings.write_text("", encoding="utf-8")
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "TOKENMETER_CONFIG": str(settings)}
        told = _run(python, __file__, "--inside", name, env={**os.environ, **offline})
        found[name] = json.loads(told.splitlines()[-1])
        print(name, found[name]["version"], file=sys.stderr)
    if given.only == list(PEERS):
        write_page(found)
    else:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
