"""Every way to call: recorded usage equals the provider's books, and the caller sees what the plain SDK shows."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES}
RESPONSE = {"model": "gpt-5-mini", "input": "Tell me about the sea, please."}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

Run = Callable[[Any, Any], Awaitable[Any]]


@dataclass(frozen=True)
class Shape:
    """One way to call. `recorded`: ``right``, ``flagged`` (estimated or unknown) or ``free`` (no entry)."""

    name: str
    run: Run
    recorded: str = "right"
    needs: str | None = None  # a dotted attribute of the client

    @property
    def sdk(self) -> str:
        return self.name.split()[0]


SHAPES: list[Shape] = []


def shape(name: str, recorded: str = "right", needs: str | None = None) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        SHAPES.append(Shape(name, run, recorded, needs))
        return run

    return add


def plain(value: Any) -> Any:
    """What a caller can see of a result, as JSON-ready values."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    return value


# -- OpenAI: chat and text completions


@shape("openai chat.completions create")
async def _(c, do):
    return plain(await do(c.chat.completions.create(**CHAT)))


@shape("openai chat.completions create, n=3")
async def _(c, do):
    return plain(await do(c.chat.completions.create(**CHAT, n=3)))


@shape("openai chat.completions stream, for")
async def _(c, do):
    return [plain(chunk) async for chunk in do.each(c.chat.completions.create(**CHAT, stream=True))]


@shape("openai chat.completions stream, n=2")
async def _(c, do):
    return [plain(chunk) async for chunk in do.each(c.chat.completions.create(**CHAT, stream=True, n=2))]


@shape("openai chat.completions stream, next()")
async def _(c, do):
    stream = await do(c.chat.completions.create(**CHAT, stream=True))
    found = []
    try:
        while True:
            found.append(plain(await stream.__anext__() if hasattr(stream, "__anext__") else next(stream)))
    except (StopIteration, StopAsyncIteration):
        return found


@shape("openai chat.completions stream, with")
async def _(c, do):
    async with do.inside(c.chat.completions.create(**CHAT, stream=True)) as stream:
        return [plain(chunk) async for chunk in do.each(stream)]


@shape("openai chat.completions stream, include_usage=True")
async def _(c, do):
    stream = c.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    return [plain(chunk) async for chunk in do.each(stream)]


@shape("openai chat.completions stream, include_usage=False", "flagged")
async def _(c, do):
    stream = c.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": False})
    return [plain(chunk) async for chunk in do.each(stream)]


@shape("openai chat.completions .stream() helper", needs="chat.completions.stream")
async def _(c, do):
    async with do.inside(c.chat.completions.stream(**CHAT)) as stream:
        kinds = [event.type async for event in do.each(stream)]
        return kinds, plain(await do(stream.get_final_completion()))


@shape("openai chat.completions parse", needs="chat.completions.parse")
async def _(c, do):
    return plain(await do(c.chat.completions.parse(**CHAT)))


@shape("openai chat.completions with_raw_response, parsed")
async def _(c, do):
    raw = await do(c.chat.completions.with_raw_response.create(**CHAT))
    return raw.status_code, plain(await do(raw.parse()))


@shape("openai chat.completions with_raw_response, never parsed")
async def _(c, do):
    return (await do(c.chat.completions.with_raw_response.create(**CHAT))).status_code


@shape("openai chat.completions with_raw_response, streamed")
async def _(c, do):
    raw = await do(c.chat.completions.with_raw_response.create(**CHAT, stream=True))
    return [plain(chunk) async for chunk in do.each(raw.parse())]


@shape("openai chat.completions with_streaming_response, parse")
async def _(c, do):
    async with do.inside(c.chat.completions.with_streaming_response.create(**CHAT)) as raw:
        return plain(await do(raw.parse()))


@shape("openai chat.completions with_streaming_response, iter_lines")
async def _(c, do):
    async with do.inside(c.chat.completions.with_streaming_response.create(**CHAT)) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("openai chat.completions with_streaming_response, iter_bytes")
async def _(c, do):
    async with do.inside(c.chat.completions.with_streaming_response.create(**CHAT)) as raw:
        return b"".join([piece async for piece in do.each(raw.iter_bytes(7))]).decode()


@shape("openai chat.completions with_streaming_response, streamed lines", "flagged")
async def _(c, do):
    async with do.inside(c.chat.completions.with_streaming_response.create(**CHAT, stream=True)) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("openai chat.completions with_streaming_response, streamed lines, include_usage=True")
async def _(c, do):
    options = {"include_usage": True}
    async with do.inside(
        c.chat.completions.with_streaming_response.create(**CHAT, stream=True, stream_options=options)
    ) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("openai completions create")
async def _(c, do):
    return plain(await do(c.completions.create(model="gpt-3.5-turbo-instruct", prompt="The sea")))


@shape("openai completions stream")
async def _(c, do):
    stream = c.completions.create(model="gpt-3.5-turbo-instruct", prompt="The sea", stream=True)
    return [plain(chunk) async for chunk in do.each(stream)]


@shape("openai client.post")
async def _(c, do):
    return await do(c.post("/chat/completions", body=CHAT, cast_to=object))


@shape("openai client.get", "free")
async def _(c, do):
    return await do(c.get("/models/gpt-5-mini", cast_to=object))


@shape("openai extra_body")
async def _(c, do):
    return plain(await do(c.chat.completions.create(**CHAT, extra_body={"model": "gpt-5-nano", "user": "u"})))


# -- OpenAI: responses


@shape("openai responses create", needs="responses")
async def _(c, do):
    return plain(await do(c.responses.create(**RESPONSE)))


@shape("openai responses stream", needs="responses")
async def _(c, do):
    return [plain(event) async for event in do.each(c.responses.create(**RESPONSE, stream=True))]


@shape("openai responses .stream() helper", needs="responses.stream")
async def _(c, do):
    async with do.inside(c.responses.stream(**RESPONSE)) as stream:
        kinds = [event.type async for event in do.each(stream)]
        return kinds, plain(await do(stream.get_final_response()))


@shape("openai responses parse", needs="responses.parse")
async def _(c, do):
    return plain(await do(c.responses.parse(**RESPONSE)))


@shape("openai responses with_raw_response", needs="responses")
async def _(c, do):
    return plain(await do((await do(c.responses.with_raw_response.create(**RESPONSE))).parse()))


@shape("openai responses with_streaming_response, streamed lines", needs="responses")
async def _(c, do):
    async with do.inside(c.responses.with_streaming_response.create(**RESPONSE, stream=True)) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("openai responses background, retrieved twice", needs="responses.cancel")
async def _(c, do):
    started = await do(c.responses.create(**RESPONSE, background=True))
    first = await do(c.responses.retrieve(started.id))
    second = await do(c.responses.retrieve(started.id))
    return plain(started), plain(first), plain(second)


@shape("openai responses retrieve, not background", needs="responses")
async def _(c, do):
    made = await do(c.responses.create(**RESPONSE))
    return plain(await do(c.responses.retrieve(made.id)))


@shape("openai responses compact", needs="responses.compact")
async def _(c, do):
    return plain(await do(c.responses.compact(**RESPONSE)))


@shape("openai responses input_tokens", "free", needs="responses.input_tokens")
async def _(c, do):
    return plain(await do(c.responses.input_tokens.count(**RESPONSE)))


# -- OpenAI: everything else


@shape("openai embeddings create")
async def _(c, do):
    return plain(await do(c.embeddings.create(model="text-embedding-3-small", input=["the sea", "the sky"])))


@shape("openai moderations", "free")
async def _(c, do):
    return plain(await do(c.moderations.create(input="the sea")))


@shape("openai models list", "free")
async def _(c, do):
    return [plain(model) async for model in do.each(c.models.list())][:3]


@shape("openai images generate")
async def _(c, do):
    return plain(await do(c.images.generate(model="gpt-image-1", prompt="the sea", n=2)))


@shape("openai images edit")
async def _(c, do):
    return plain(await do(c.images.edit(model="gpt-image-1", prompt="more sea", image=("a.png", PNG, "image/png"))))


@shape("openai images generate stream", needs="responses.compact")
async def _(c, do):
    stream = c.images.generate(model="gpt-image-1", prompt="the sea", stream=True, partial_images=1)
    return [plain(event) async for event in do.each(stream)]


@shape("openai audio speech", "flagged")
async def _(c, do):
    spoken = await do(c.audio.speech.create(model="tts-1", voice="alloy", input="The sea is wide."))
    return len(spoken.content)


@shape("openai audio speech, streamed to bytes", "flagged")
async def _(c, do):
    request = c.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input="The sea is wide.")
    async with do.inside(request) as raw:
        return len(b"".join([piece async for piece in do.each(raw.iter_bytes())]))


@shape("openai audio transcriptions")
async def _(c, do):
    return plain(await do(c.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", _wav()))))


@shape("openai audio transcriptions, text", "flagged")
async def _(c, do):
    return await do(c.audio.transcriptions.create(model="whisper-1", file=("a.wav", _wav()), response_format="text"))


@shape("openai audio transcriptions stream", needs="responses.compact")
async def _(c, do):
    stream = c.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", _wav()), stream=True)
    return [plain(event) async for event in do.each(stream)]


@shape("openai batches", needs="responses.compact")
async def _(c, do):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = await do(c.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch"))
    made = await do(c.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
    done = await do(c.batches.retrieve(made.id))
    await do(c.batches.retrieve(made.id))
    return done.status, json.loads((await do(c.files.content(done.output_file_id))).text)["custom_id"]


@shape("openai batches, output file read twice", needs="batches")
async def _(c, do):
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    file = await do(c.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch"))
    await do(c.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"))
    (output,) = [found.id async for found in do.each(c.files.list()) if found.purpose == "batch_output"]
    first = (await do(c.files.content(output))).text
    return json.loads(first)["custom_id"], first == (await do(c.files.content(output))).text


@shape("openai decisions", needs="decisions")
async def _(c, do):
    return plain(await do(c.post("/decisions", body={**RESPONSE, "questions": []}, cast_to=object)))


# -- Anthropic


@shape("anthropic messages create")
async def _(c, do):
    return plain(await do(c.messages.create(**MESSAGE)))


@shape("anthropic messages stream, for")
async def _(c, do):
    return [plain(event) async for event in do.each(c.messages.create(**MESSAGE, stream=True))]


@shape("anthropic messages .stream() helper")
async def _(c, do):
    async with do.inside(c.messages.stream(**MESSAGE)) as stream:
        text = "".join([piece async for piece in do.each(stream.text_stream)])
        return text, plain(await do(stream.get_final_message()))


@shape("anthropic messages with_raw_response, parsed")
async def _(c, do):
    return plain(await do((await do(c.messages.with_raw_response.create(**MESSAGE))).parse()))


@shape("anthropic messages with_raw_response, never parsed")
async def _(c, do):
    return (await do(c.messages.with_raw_response.create(**MESSAGE))).status_code


@shape("anthropic messages with_streaming_response, iter_lines")
async def _(c, do):
    async with do.inside(c.messages.with_streaming_response.create(**MESSAGE)) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("anthropic messages with_streaming_response, streamed lines")
async def _(c, do):
    async with do.inside(c.messages.with_streaming_response.create(**MESSAGE, stream=True)) as raw:
        return [line async for line in do.each(raw.iter_lines())]


@shape("anthropic messages parse", needs="messages.parse")
async def _(c, do):
    return plain(await do(c.messages.parse(**MESSAGE)))


@shape("anthropic beta.messages create", needs="beta.messages")
async def _(c, do):
    return plain(await do(c.beta.messages.create(**MESSAGE)))


@shape("anthropic beta.messages stream", needs="beta.messages")
async def _(c, do):
    return [plain(event) async for event in do.each(c.beta.messages.create(**MESSAGE, stream=True))]


@shape("anthropic beta.messages .stream() helper", needs="beta.messages.stream")
async def _(c, do):
    async with do.inside(c.beta.messages.stream(**MESSAGE)) as stream:
        return plain(await do(stream.get_final_message()))


@shape("anthropic count_tokens", "free", needs="messages.count_tokens")
async def _(c, do):
    return plain(await do(c.messages.count_tokens(model=MESSAGE["model"], messages=MESSAGES)))


@shape("anthropic messages.batches, results read twice", needs="messages.batches")
async def _(c, do):
    made = await do(c.messages.batches.create(requests=[{"custom_id": n, "params": MESSAGE} for n in "abc"]))
    first = [plain(line) async for line in do.each(c.messages.batches.results(made.id))]
    second = [plain(line) async for line in do.each(c.messages.batches.results(made.id))]
    return len(first), first == second


@shape("anthropic beta.messages.batches, results read twice", needs="beta.messages.batches")
async def _(c, do):
    made = await do(c.beta.messages.batches.create(requests=[{"custom_id": n, "params": MESSAGE} for n in "abc"]))
    first = [plain(line) async for line in do.each(await do(c.beta.messages.batches.results(made.id)))]
    second = [plain(line) async for line in do.each(await do(c.beta.messages.batches.results(made.id)))]
    return len(first), first == second


@shape("anthropic beta.messages tool_runner", needs="beta.messages.tool_runner")
async def _(c, do):
    return [plain(turn) async for turn in do.each(c.beta.messages.tool_runner(**MESSAGE, tools=[]))]


async def _session(c, do):
    made = await do(c.beta.sessions.create(agent="agent_1", environment_id="env_1"))
    said = {"type": "user.message", "content": [{"type": "text", "text": "Hello there"}]}
    await do(c.beta.sessions.events.send(made.id, events=[said]))
    return made.id


@shape("anthropic beta.sessions, retrieved twice", needs="beta.sessions")
async def _(c, do):
    session = await _session(c, do)
    await do(c.beta.sessions.retrieve(session))
    return plain((await do(c.beta.sessions.retrieve(session))).usage)


@shape("anthropic beta.sessions.events, streamed and listed", needs="beta.sessions")
async def _(c, do):
    session = await _session(c, do)
    streamed = [event.type async for event in do.each(c.beta.sessions.events.stream(session))]
    return streamed, [event.type async for event in do.each(c.beta.sessions.events.list(session))]


@shape("anthropic client.post")
async def _(c, do):
    return await do(c.post("/v1/messages", body=MESSAGE, cast_to=object))


@shape("anthropic models list", "free", needs="models")
async def _(c, do):
    return [plain(model) async for model in do.each(c.models.list())][:3]


def _wav() -> bytes:
    buffer = io.BytesIO()
    buffer.write(b"RIFF" + (36 + 16000).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little"))
    for value, size in ((1, 2), (1, 2), (8000, 4), (8000, 4), (1, 2), (8, 2)):
        buffer.write(value.to_bytes(size, "little"))
    buffer.write(b"data" + (16000).to_bytes(4, "little") + bytes(16000))
    return buffer.getvalue()


# -- the promises


CASES = [pytest.param(shape, kind, id=f"{shape.name} ({kind})") for shape in SHAPES for kind in ("sync", "async")]


def _client(clients: Any, shape: Shape, kind: str, *, metered: bool) -> Any:
    name = {"openai": "OpenAI", "anthropic": "Anthropic"}[shape.sdk]
    return clients.make(f"Async{name}" if kind == "async" else name, metered=metered)


def _has(client: Any, path: str | None) -> bool:
    for part in path.split(".") if path else ():
        client = getattr(client, part, None)
    return client is not None


async def _run(clients: Any, shape: Shape, kind: str, do: Any, *, metered: bool) -> Any:
    client = _client(clients, shape, kind, metered=metered)
    if not _has(client, shape.needs):
        pytest.skip("this SDK version has no such call")
    try:
        return await shape.run(client, do)
    finally:
        await do(client.close())


@pytest.mark.parametrize(("shape", "kind"), CASES)
async def test_recorded_as_the_provider_bills_and_nothing_the_caller_sees_changes(
    shape, kind, clients, books, provider, do, coverage
):
    ours = _settled(await _run(clients, shape, kind, do, metered=True))
    our_wire = [_wire(request) for request in provider.requests]
    _check_books(shape, books, provider)
    provider.reset()
    theirs = _settled(await _run(clients, shape, kind, do, metered=False))
    their_wire = [_wire(request) for request in provider.requests]
    assert ours == theirs
    assert [_without_injection(*pair) for pair in zip(our_wire, their_wire, strict=True)] == their_wire
    coverage[f"{shape.name}|{kind}"] = shape.recorded


def _check_books(shape, books, provider):
    entries = books.all()
    assert books.meter.faults == 0
    if shape.recorded == "free":
        assert entries == []
        assert not any(truth.billed for truth in provider.truth)
    elif shape.recorded == "flagged":
        assert [entry.status for entry in entries] == ["ok"]
        assert all({"estimated", "usage_unknown"} & set(entry.flags) for entry in entries)
    else:
        truth = {name: quantity for name, quantity in provider.total.quantities.items() if quantity}
        assert books.quantities() == truth
        assert not any("estimated" in entry.flags for entry in entries)
        assert {entry.request_id for entry in entries} <= {record.request_id for record in provider.truth}


_IDS = re.compile(r"[A-Za-z]*[-_]?[0-9a-f]{12,}[0-9a-zA-Z-]*")
_TIMES = re.compile(r'("[a-z_]*(?:created|created_at|completed_at|_at)": ?)[^,}]+')


def _settled(value: Any) -> str:
    """A result without what is new in every answer: ids and times."""
    text = json.dumps(value, default=str)
    return _TIMES.sub(r"\1 0", _IDS.sub("ID", text.replace('\\"', '"')))


#: Headers whose value is new in every request.
_CHANGING = frozenset({"content-length", "idempotency-key", "x-stainless-idempotency-key"})
#: As old and new httpx write it.
_INJECTED = re.compile(rb', ?"stream_options": ?\{"include_usage": ?true\}')


def _wire(request: Any) -> tuple[str, str, list[tuple[str, str]], bytes]:
    """A request as it was sent: headers in order and case, the body byte for byte, but for what is new each time."""
    found = re.search(r"boundary=(\S+)", request.header("content-type") or "")
    boundary = found[1] if found else "no boundary"
    headers = [
        (name, "" if name.lower() in _CHANGING else value.replace(boundary, "-")) for name, value in request.headers
    ]
    body = re.sub(_IDS.pattern.encode(), b"ID", request.body.replace(boundary.encode(), b"-"))
    return request.method, _IDS.sub("ID", request.target), headers, body


def _without_injection(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
    *rest, body = ours
    return (*rest, body if _INJECTED.search(theirs[-1]) else _INJECTED.sub(b"", body))
