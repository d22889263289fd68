"""What stands between a call and the wire: tool runners, middleware, hooks, transports, the SDK's own telemetry."""

from __future__ import annotations

import anthropic
import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is the weather?"}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}
BOTH = ["OpenAI", "AsyncAnthropic"]


async def _call(client, do):
    return await do(
        client.chat.completions.create(**CHAT) if hasattr(client, "chat") else client.messages.create(**MESSAGE)
    )


# -- tool runners


def _weather_tool(name):
    if not hasattr(anthropic, "beta_tool"):
        pytest.skip("this SDK version has no tool runner")
    if name.startswith("Async"):

        async def weather(place: str) -> str:
            """The weather at a place."""
            return f"Rain in {place}."

        return anthropic.beta_async_tool(weather)

    def weather(place: str) -> str:
        """The weather at a place."""
        return f"Rain in {place}."

    return anthropic.beta_tool(weather)


def _two_tool_turns(provider):
    for place in ("Bath", "Cork"):
        provider.answer("Let me see.", tool_calls=[("weather", {"place": place})], stop_reason="tool_use")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
async def test_every_turn_of_a_message_tool_runner_is_recorded_once(name, stream, clients, books, provider, do):
    tool = _weather_tool(name)
    _two_tool_turns(provider)
    runner = clients.make(name).beta.messages.tool_runner(**MESSAGE, tools=[tool], stream=stream)
    turns = 0
    async for turn in do.each(runner):
        turns += 1
        if stream:
            assert [event async for event in do.each(turn)]
    assert turns == len(books.all()) == len(provider.billed) == 3
    assert books.quantities() == dict(provider.total.quantities)
    assert not any("estimated" in entry.flags for entry in books.all())


@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
async def test_the_last_message_of_a_runner_is_reached_by_until_done(name, clients, books, provider, do):
    tool = _weather_tool(name)
    _two_tool_turns(provider)
    runner = clients.make(name).beta.messages.tool_runner(**MESSAGE, tools=[tool])
    assert (await do(runner.until_done())).stop_reason == "end_turn"
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
async def test_a_runners_own_compaction_turn_is_recorded(name, clients, books, provider, do):
    tool = _weather_tool(name)
    _two_tool_turns(provider)
    runner = clients.make(name).beta.messages.tool_runner(**MESSAGE, tools=[tool])
    if not hasattr(runner, "compact_before_next_turn"):
        pytest.skip("this SDK version's runner does not compact")
    asked = False
    try:
        async for _turn in do.each(runner):
            if not asked:
                asked = True
                runner.compact_before_next_turn()
    except anthropic.AnthropicError:
        pass  # what the fake answers is no compaction; it was asked for, and billed, all the same
    assert len(books.all()) == len(provider.billed) >= 2
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_every_turn_of_a_responses_tool_runner_is_recorded_once(name, stream, clients, books, provider, do):
    module = pytest.importorskip("openai.lib.responses_tool_runner", reason="this SDK version has no tool runner")
    kind = "Async" if name.startswith("Async") else ""
    schema = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    schema["additionalProperties"] = False
    tool = {"type": "function", "name": "weather", "parameters": schema, "strict": True, "description": "Weather"}

    async def later(_arguments):
        return "Rain."

    function = getattr(module, f"{kind}RegisteredFunction")(tool=tool, execute=later if kind else lambda _: "Rain.")
    runner = getattr(module, f"{kind}ResponsesToolRunner")(functions=[function])
    for place in ("Bath", "Cork"):
        provider.answer("Let me see.", tool_calls=[("weather", {"place": place})])
    params = {"model": "gpt-5-mini", "input": "What is the weather?", "store": True}
    run = runner.run(clients.make(name), params, stream=stream)
    async for _turn in do.each(run):
        pass
    assert len(books.all()) == len(provider.billed) == 3
    assert books.quantities() == dict(provider.total.quantities)


# -- middleware of the SDK


def _needs_middleware(client):
    if "middleware" not in type(client).__init__.__kwdefaults__:
        pytest.skip("this SDK version has no middleware")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_request_that_middleware_sends_twice_is_billed_twice_and_recorded_twice(
    stream, clients, books, provider
):
    _needs_middleware(clients.anthropic())

    def twice(request, call_next):
        first = call_next(request)
        first.http_response.close() if stream else first.parse()
        return call_next(request)

    client = clients.anthropic(middleware=[twice])
    answer = client.messages.create(**MESSAGE, stream=stream)
    if stream:
        list(answer)
    entries = books.all()
    assert len(entries) == len(provider.billed) == 2
    assert [entry.attempts for entry in entries] == [1, 2]
    if not stream:
        assert books.quantities() == dict(provider.total.quantities)


async def test_async_middleware_that_sends_twice_is_recorded_twice(clients, books, provider):
    _needs_middleware(clients.anthropic())

    async def twice(request, call_next):
        await (await call_next(request)).parse()
        return await call_next(request)

    await clients.async_anthropic(middleware=[twice]).messages.create(**MESSAGE)
    assert len(books.all()) == 2
    assert books.quantities() == dict(provider.total.quantities)


def test_middleware_that_tries_again_after_a_refusal_makes_one_entry(clients, books, provider):
    _needs_middleware(clients.anthropic())
    provider.fail(529)

    def patient(request, call_next):
        first = call_next(request)
        return call_next(request) if first.status_code == 529 else first

    clients.anthropic(middleware=[patient]).messages.create(**MESSAGE)
    entry = books.one()
    assert (entry.status, entry.attempts) == ("ok", 2)
    assert books.quantities() == dict(provider.total.quantities)


def test_middleware_that_fails_after_the_answer_leaves_the_answers_cost(clients, books, provider):
    _needs_middleware(clients.anthropic())

    def breaks(request, call_next):
        call_next(request)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        clients.anthropic(middleware=[breaks]).messages.create(**MESSAGE)
    entry = books.one()
    assert (entry.status, entry.error_type) == ("error", "ValueError")
    assert books.quantities() == dict(provider.total.quantities)


def test_middleware_that_lets_nothing_through_makes_no_entry(clients, books, provider):
    _needs_middleware(clients.anthropic())

    def stops(_request, _call_next):
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        clients.anthropic(middleware=[stops]).messages.create(**MESSAGE)
    assert (books.all(), provider.requests) == ([], [])


# -- hooks and transports of httpx


def _http(name, sdk, **options):
    kind = sdk.DefaultAsyncHttpxClient if name.startswith("Async") else sdk.DefaultHttpxClient
    return kind(verify=False, **options)


def _sdk(name):
    return openai if "OpenAI" in name else anthropic


def _hooks(name, calls):
    async def later(thing):
        calls.append(type(thing).__name__)

    def now(thing):
        calls.append(type(thing).__name__)

    hook = later if name.startswith("Async") else now
    return {"request": [hook], "response": [hook]}


@pytest.mark.parametrize("name", BOTH)
async def test_event_hooks_are_called_as_ever(name, clients, books, provider, do):
    calls = []
    client = clients.make(name, http_client=_http(name, _sdk(name), event_hooks=_hooks(name, calls)))
    await _call(client, do)
    assert calls == ["Request", "Response"]
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("name", BOTH)
async def test_a_hook_that_reads_the_body_takes_nothing_from_the_entry(name, clients, books, provider, do):
    async def later(response):
        await response.aread()

    hook = later if name.startswith("Async") else (lambda response: response.read())
    client = clients.make(name, http_client=_http(name, _sdk(name), event_hooks={"response": [hook]}))
    await _call(client, do)
    stream = client.chat.completions.create(**CHAT, stream=True) if "OpenAI" in name else None
    stream = stream or client.messages.create(**MESSAGE, stream=True)
    assert [event async for event in do.each(stream)]
    assert books.quantities() == dict(provider.total.quantities)
    assert not any("estimated" in entry.flags for entry in books.all())


@pytest.mark.parametrize("where", ["request", "response"])
@pytest.mark.parametrize("name", BOTH)
async def test_a_hook_that_fails_fails_as_with_the_plain_sdk(name, where, clients, books, provider, do):
    async def later(_thing):
        raise KeyError("hook")

    def now(_thing):
        raise KeyError("hook")

    hook = later if name.startswith("Async") else now
    seen = []
    for metered in (True, False):
        http = _http(name, _sdk(name), event_hooks={where: [hook]})
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whichever it is, it is the same
            await _call(clients.make(name, metered=metered, http_client=http), do)
        seen.append((type(raised.value), str(raised.value), type(raised.value.__cause__)))
    assert seen[0] == seen[1]
    entry = books.one()
    assert (entry.status, entry.billed_cost) == ("error", None)
    assert "billing_unknown" in entry.flags


@pytest.mark.parametrize("name", BOTH)
async def test_a_transport_that_connects_again_is_one_attempt(name, clients, books, provider, do):
    module = __import__(_sdk(name).DefaultHttpxClient.__mro__[1].__module__.partition(".")[0])
    transport = module.AsyncHTTPTransport if name.startswith("Async") else module.HTTPTransport
    client = clients.make(name, http_client=_http(name, _sdk(name), transport=transport(retries=2)))
    await _call(client, do)
    assert books.one().attempts == len(provider.requests) == 1


# -- the SDK's own spans


def _spans():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return trace, provider, exporter


@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
async def test_the_sdks_own_spans_are_the_same_and_are_not_counted(name, clients, books, provider, do, monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    trace, tracers, exporter = _spans()
    if "open_telemetry" not in type(clients.make(name)).__init__.__kwdefaults__:
        pytest.skip("this SDK version emits no spans")
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: tracers)
    monkeypatch.setattr(trace, "get_tracer", lambda *a, **k: tracers.get_tracer(a[0] if a else "x"))
    seen = []
    for metered in (True, False):
        client = clients.make(name, metered=metered, open_telemetry={"traces": {"enabled": True}})
        await _call(client, do)
        [event async for event in do.each(client.messages.create(**MESSAGE, stream=True))]
        seen.append([_shown(span) for span in exporter.get_finished_spans()])
        exporter.clear()
    assert seen[0] == seen[1] != []
    assert len(books.all()) == 2
    truth = [record.meters for record in provider.truth[:2]]
    assert [entry.usage for entry in books.all()] == truth


def _shown(span):
    changing = ("id", "time", "duration", "first")
    kept = {name: value for name, value in span.attributes.items() if not any(word in name for word in changing)}
    return span.name, span.kind, span.status.status_code, kept
