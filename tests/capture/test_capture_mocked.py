"""Clients whose transport is mocked, as programs do in their tests: respx with SDKs on httpx, MockTransport on httpx2.

What goes over the wire is what the plain SDK sends, and what comes back is metered as if it came from a server.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tokenmeter

openai = pytest.importorskip("openai")

URL = "https://api.example/v1"
ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
ANSWER = {
    "id": "chatcmpl-mocked",
    "object": "chat.completion",
    "created": 1_795_000_000,
    "model": "gpt-5-mini",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
    "usage": USAGE,
}
Handler = Callable[[Any], Any]


def flavour() -> Any:
    """The HTTP library that this SDK's clients are made of."""
    return importlib.import_module(next(one.__module__ for one in openai.DefaultHttpxClient.__mro__[1:]).split(".")[0])


@pytest.fixture
def mocked(request: pytest.FixtureRequest) -> Iterator[Callable[[Handler], dict[str, Any]]]:
    """What a client has to be made with, so that `handler` answers its requests."""
    http = flavour()
    if http.__name__ != "httpx":
        yield lambda handler: {"http_client": http.Client(transport=http.MockTransport(handler))}
        return
    respx = pytest.importorskip("respx")
    with respx.mock(assert_all_called=False) as router:

        def use(handler: Handler) -> dict[str, Any]:
            router.route().mock(side_effect=handler)
            return {}

        yield use


@pytest.fixture
def meter() -> Iterator[tokenmeter.Meter]:
    made = tokenmeter.make_meter(store="memory:", config={})
    yield made
    made.close()


def make(options: dict[str, Any], meter: tokenmeter.Meter | None = None) -> Any:
    client = openai.OpenAI(base_url=URL, api_key="sk-mocked-0001", max_retries=2, **options)
    return client if meter is None else tokenmeter.wrap(client, meter)


def events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in chunks) + b"data: [DONE]\n\n"


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": None}]
    return {**ANSWER, "object": "chat.completion.chunk", "choices": choices, "usage": None, **more}


def test_the_request_is_the_plain_sdks_byte_for_byte(mocked, meter):
    seen = []

    def handler(request):
        request.read()
        headers = {name: value for name, value in request.headers.items() if name != "x-stainless-read-timeout"}
        seen.append((request.method, str(request.url), headers, request.content))
        return flavour().Response(200, json=ANSWER)

    options = mocked(handler)
    for client in (make(options), make(options, meter)):
        client.chat.completions.create(**ASK, extra_headers={"x-own": "1"}, extra_query={"q": "a b"})
    plain, metered = seen
    assert metered == plain
    (entry,) = meter.entries()
    assert (entry.response_id, entry.usage.input_tokens, entry.usage.output_tokens) == ("chatcmpl-mocked", 12, 3)


def test_retries_are_one_call_with_its_attempts(mocked, meter):
    answers = [(429, {"retry-after": "0"}), (500, {"retry-after": "0"}), (200, {})]

    def handler(_):
        status, headers = answers.pop(0)
        return flavour().Response(status, headers=headers, json=ANSWER if status == 200 else {"error": {}})

    make(mocked(handler), meter).chat.completions.create(**ASK)
    (entry,) = meter.entries()
    assert (entry.attempts, entry.status, entry.billed_cost is not None) == (3, "ok", True)


def test_a_connection_that_fails_is_the_sdks_error_and_no_bill(mocked, meter):
    def handler(_):
        raise flavour().ConnectError("refused")

    with pytest.raises(openai.APIConnectionError):
        make(mocked(handler), meter).with_options(max_retries=0).chat.completions.create(**ASK)
    assert [(entry.status, entry.usage.quantities) for entry in meter.entries()] in ([], [("error", {})])


@pytest.mark.parametrize("asked", [False, True], ids=["not asked", "asked"])
def test_a_stream_shows_what_it_showed_and_is_counted(mocked, meter, asked):
    sent = []

    def handler(request):
        request.read()
        sent.append(json.loads(request.content))
        parts = [chunk({"content": "Hello"}), chunk({"content": "."})]
        if sent[-1].get("stream_options"):
            parts.append({**chunk({}), "choices": [], "usage": USAGE})
        return flavour().Response(200, headers={"content-type": "text/event-stream"}, content=events(*parts))

    options = mocked(handler)
    more = {"stream_options": {"include_usage": True}} if asked else {}
    plain, metered = (
        [part.model_dump() for part in client.chat.completions.create(**ASK, stream=True, **more)]
        for client in (make(options), make(options, meter))
    )
    assert metered == plain
    (entry,) = meter.entries()
    assert (entry.streamed, entry.usage.input_tokens, entry.usage.output_tokens) == (True, 12, 3)
    assert not entry.flags


def test_a_refused_call_never_reaches_the_transport(mocked):
    calls = []
    budget = tokenmeter.Budget(limit_requests=0)
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
    with pytest.raises(tokenmeter.BudgetExceededError):
        make(mocked(calls.append), meter).chat.completions.create(**ASK)
    assert calls == []
    meter.close()


@pytest.mark.parametrize("told", [{"hishel_from_cache": True}, {"from_cache": True}], ids=str)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_an_answer_out_of_the_callers_own_http_cache_is_no_bill(told, streamed):
    """It has the figures of the call that was billed; nothing is counted, and what was held for it is free."""
    http, kept = flavour(), [False, True, True]

    def handler(_):
        extensions = told if kept.pop(0) else {}
        if not streamed:
            return http.Response(200, json=ANSWER, extensions=extensions)
        content = events(chunk({"content": "Hello."}), {**chunk({}), "choices": [], "usage": USAGE})
        headers = {"content-type": "text/event-stream"}
        return http.Response(200, headers=headers, content=content, extensions=extensions)

    budget = tokenmeter.Budget(limit_requests=4, name="few")
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
    client = make({"http_client": http.Client(transport=http.MockTransport(handler))}, meter)
    with tokenmeter.attribute(member="ada") as scope:
        for _ in range(3):
            answer = client.chat.completions.create(**ASK, **({"stream": True} if streamed else {}))
            assert not streamed or len(list(answer)) >= 1
    (entry,) = meter.entries()
    assert entry.usage.input_tokens == 12
    (left,) = meter.remaining()
    assert (scope.requests, left.spent, left.reserved) == (1, 1, 0)
    meter.close()


def _has_parse(client):
    if not hasattr(client.chat.completions, "parse"):
        pytest.skip("this SDK version parses elsewhere")


def test_a_kept_answer_that_the_sdk_cannot_use_is_no_bill_either(meter):
    http = flavour()
    long = {**ANSWER, "choices": [{**ANSWER["choices"][0], "finish_reason": "length"}]}

    def handler(_):
        return http.Response(200, json=long, extensions={"hishel_from_cache": True})

    client = make({"http_client": http.Client(transport=http.MockTransport(handler))}, meter)
    _has_parse(client)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASK, response_format={"type": "json_object"})
    assert list(meter.entries()) == []


@pytest.mark.parametrize("refused", [429, 503])
@pytest.mark.parametrize(
    "body", [{**ANSWER, "choices": [{**ANSWER["choices"][0], "finish_reason": "length"}]}, None], ids=["cut", "no JSON"]
)
def test_a_kept_answer_that_the_sdk_cannot_use_is_no_bill_after_a_refusal_either(refused, body):
    """What was refused costs nothing, and what is kept was billed before: there is no call to be in doubt about."""
    http, tries = flavour(), []
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[tokenmeter.Budget(limit_requests=4)])

    def handler(request):
        tries.append(request)
        if len(tries) == 1:
            return http.Response(refused, headers={"retry-after-ms": "1"}, json={"error": {"message": "later"}})
        said = {"json": body} if body else {"content": b"{", "headers": {"content-type": "application/json"}}
        return http.Response(200, **said, extensions={"hishel_from_cache": True})

    client = make({"http_client": http.Client(transport=http.MockTransport(handler))}, meter)
    _has_parse(client)
    with pytest.raises((openai.LengthFinishReasonError, ValueError, openai.APIError)):
        client.chat.completions.parse(**ASK, response_format={"type": "json_object"})
    assert len(tries) == 2
    assert list(meter.entries()) == []
    (left,) = meter.remaining()
    assert (left.spent, left.reserved) == (0, 0)
    meter.close()


def test_what_is_kept_for_a_try_that_nobody_answered_stands_for_it(meter):
    """That try may have been billed: the bill is the answer that is kept, and its flag says that it is doubtful."""
    http, tries = flavour(), []

    def handler(request):
        tries.append(request)
        if len(tries) == 1:
            raise http.ReadTimeout("lost", request=request)
        return http.Response(200, json=ANSWER, extensions={"hishel_from_cache": True})

    make({"http_client": http.Client(transport=http.MockTransport(handler))}, meter).chat.completions.create(**ASK)
    (entry,) = meter.entries()
    assert (entry.flags, entry.usage.input_tokens) == (("lost_try",), 12)


async def test_hishel_replays_what_was_billed_once(meter, fake_provider, tmp_path):
    """The real cache, with the body as its key, for sync and async clients of both SDKs."""
    hishel = pytest.importorskip("hishel")
    name = flavour().__name__
    if not hasattr(hishel, "FilterPolicy"):
        pytest.skip("hishel 2 keeps no answers to POST")
    caching = pytest.importorskip(f"hishel.{name}")
    anthropic = pytest.importorskip("anthropic")
    policy = hishel.FilterPolicy()
    policy.use_body_key = True
    storage = hishel.SyncSqliteStorage(database_path=tmp_path / "kept.db")
    http = caching.SyncCacheClient(storage=storage, policy=policy)
    client = tokenmeter.wrap(openai.OpenAI(base_url=fake_provider.openai_url, api_key="k", http_client=http), meter)
    claude = tokenmeter.wrap(
        anthropic.Anthropic(base_url=fake_provider.anthropic_url, api_key="k", http_client=http), meter
    )
    for _ in range(2):
        client.chat.completions.create(**ASK)
        assert list(client.responses.create(model="gpt-5-mini", input="Hi", stream=True))
        claude.messages.create(model="claude-sonnet-5", max_tokens=9, messages=ASK["messages"])
    client.chat.completions.create(**ASK, n=1)  # another body
    assert len(list(meter.entries())) == len(fake_provider.billed) == 4
    http.close()

    kept = hishel.AsyncSqliteStorage(database_path=tmp_path / "kept-async.db")
    async with caching.AsyncCacheClient(storage=kept, policy=policy) as loop:
        asking = tokenmeter.wrap(
            openai.AsyncOpenAI(base_url=fake_provider.openai_url, api_key="k", http_client=loop), meter
        )
        for _ in range(3):
            await asking.responses.create(model="gpt-5-mini", input="Hi")
    assert len(list(meter.entries())) == len(fake_provider.billed) == 5


GATEWAY_HITS = [
    {"x-litellm-cache-key": "8c2f"},
    {"cf-aig-cache-status": "HIT"},
    {"Helicone-Cache": "HIT", "Helicone-Cache-Bucket-Idx": "0"},
    {"x-portkey-cache-status": "HIT"},
    {"x-portkey-cache-status": "SEMANTIC HIT"},
]
NO_HITS = [
    {"x-litellm-cache-key": ""},
    {"x-litellm-model-id": "8c2f"},
    {"cf-aig-cache-status": "MISS"},
    {"cf-cache-status": "HIT"},  # a content network's word
    {"x-cache": "HIT"},
    {"Helicone-Cache": "MISS"},
    {"x-portkey-cache-status": "SEMANTIC MISS"},
    {"x-portkey-cache-status": "DISABLED"},
    {"x-portkey-cache-status": "REFRESH"},
]


@pytest.mark.parametrize(
    ("said", "billed"), [*((one, False) for one in GATEWAY_HITS), *((one, True) for one in NO_HITS)], ids=str
)
async def test_an_answer_out_of_a_gateways_cache_is_no_bill(said, billed, fake_provider):
    """Each header as its gateway documents it, for sync, async and streamed calls of both SDKs."""
    anthropic = pytest.importorskip("anthropic")
    budget = tokenmeter.Budget(limit_requests=50, name="few")
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[budget])
    url, claude_url = fake_provider.openai_url, fake_provider.anthropic_url
    client = tokenmeter.wrap(openai.OpenAI(base_url=url, api_key="k"), meter)
    loop = tokenmeter.wrap(openai.AsyncOpenAI(base_url=url, api_key="k"), meter)
    claude = tokenmeter.wrap(anthropic.Anthropic(base_url=claude_url, api_key="k"), meter)
    claude_loop = tokenmeter.wrap(anthropic.AsyncAnthropic(base_url=claude_url, api_key="k"), meter)
    message = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": ASK["messages"]}

    count = 11 if hasattr(client, "responses") else 10

    async def ask() -> None:
        assert client.chat.completions.create(**ASK).usage.prompt_tokens
        assert client.chat.completions.with_raw_response.create(**ASK).parse().usage.prompt_tokens
        assert list(client.chat.completions.create(**ASK, stream=True))
        if count == 11:
            assert list(client.responses.create(model="gpt-5-mini", input="Hi", stream=True))
        assert client.embeddings.create(model="text-embedding-3-small", input="Hi").data
        assert (await loop.chat.completions.create(**ASK)).choices
        assert [one async for one in await loop.chat.completions.create(**ASK, stream=True)]
        assert claude.messages.create(**message).content
        with claude.messages.stream(**message) as stream:
            assert stream.get_final_message().content
        assert (await claude_loop.messages.create(**message)).content
        assert [one async for one in await claude_loop.messages.create(**message, stream=True)]

    await ask()
    fake_provider.answer(headers=said, times=count)
    with tokenmeter.attribute(member="ada") as scope:
        await ask()
    await loop.close()
    await claude_loop.close()
    calls = 2 * count if billed else count
    assert len(list(meter.entries())) == calls
    (left,) = meter.remaining()
    assert (scope.requests, left.spent, left.reserved) == (calls - count, calls, 0)
    meter.close()


def test_a_gateways_hit_after_a_try_that_nobody_answered_stands_for_it(meter):
    """The gateway may have kept the very answer that was billed and lost."""
    http, tries = flavour(), []

    def handler(request):
        tries.append(request)
        if len(tries) == 1:
            raise http.ReadTimeout("lost", request=request)
        return http.Response(200, json=ANSWER, headers={"cf-aig-cache-status": "HIT"})

    make({"http_client": http.Client(transport=http.MockTransport(handler))}, meter).chat.completions.create(**ASK)
    (entry,) = meter.entries()
    assert (entry.flags, entry.usage.input_tokens) == (("lost_try",), 12)
