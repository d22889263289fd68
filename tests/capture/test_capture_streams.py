"""Streams settle exactly once, however they end, and never show what the caller did not ask for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import subprocess
import sys
import types
from typing import TypeVar

import anthropic
import openai
import pytest

from tokenmeter.adopt import wrap
from tokenmeter.by_hand import record
from tokenmeter.default import make_meter
from tokenmeter.meter import Meter
from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
CHAT = {"model": "gpt-5-mini", "messages": MESSAGES, "stream": True}
MESSAGE = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": MESSAGES, "stream": True}


def test_a_stream_closed_early_is_recorded_once_as_aborted_with_an_estimate(clients, books):
    stream = clients.openai().chat.completions.create(**CHAT)
    next(stream)
    stream.close()
    stream.close()
    entry = books.one()
    assert (entry.status, entry.streamed) == ("aborted", True)
    assert "estimated" in entry.flags
    assert entry.usage.input_tokens > 0
    assert entry.first_token_us is not None


def test_a_stream_that_is_broken_off_and_dropped_is_recorded(clients, books):
    for _chunk in clients.openai().chat.completions.create(**CHAT):
        break
    del _chunk
    assert books.one().status == "aborted"


def test_a_stream_that_is_never_iterated_is_recorded_with_its_estimated_input(clients, books):
    stream = clients.openai().chat.completions.create(**CHAT)
    del stream
    entry = books.one()
    assert entry.usage.input_tokens > 0
    assert entry.usage.output_tokens == 0
    assert "estimated" in entry.flags


def test_an_error_of_the_callers_own_ends_the_stream_as_aborted(clients, books):
    def stop(_chunk):
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), clients.openai().chat.completions.create(**CHAT) as stream:
        stop(next(stream))
    entry = books.one()
    assert (entry.status, entry.error_type) == ("aborted", "ValueError")


def test_a_stream_read_inside_an_except_block_is_no_error(clients, books):
    try:
        {}["first provider"]
    except KeyError:
        list(clients.openai().chat.completions.create(**CHAT))
    assert (books.one().status, books.one().error_type) == ("ok", None)


def test_anthropics_input_is_exact_in_a_stream_cut_short(clients, books, provider):
    stream = clients.anthropic().messages.create(**MESSAGE)
    next(stream)
    stream.close()
    entry = books.one()
    assert entry.usage.input_tokens == provider.truth[0].meters.input_tokens
    assert (entry.status, "estimated" in entry.flags) == ("aborted", True)


def test_a_connection_that_breaks_in_the_stream_is_an_error_with_an_estimate(clients, books, provider):
    provider.cut(3)
    with pytest.raises(Exception, match=r"(?i)connection|incomplete|peer"):  # the SDK's error, or httpx's in old ones
        list(clients.openai().chat.completions.create(**CHAT))
    entry = books.one()
    assert (entry.status, entry.streamed) == ("error", True)
    assert entry.error_type
    assert "estimated" in entry.flags


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
def test_an_error_event_in_the_stream_reaches_the_caller_and_the_entry(sdk, clients, books, provider):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}
    text = f"event: error\ndata: {json.dumps(error)}\n\n"
    provider.answer(events=[text])
    with pytest.raises((openai.APIError, anthropic.APIError)):
        list(
            clients.openai().chat.completions.create(**CHAT)
            if sdk == "openai"
            else clients.anthropic().messages.create(**MESSAGE)
        )
    # The oldest SDKs do not close the response then: it is dropped with the error.
    assert books.one().status in {"error", "aborted"}


@pytest.mark.needs("openai.resources.responses:Responses")  # older SDKs do not close the response
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_what_is_stated_beside_an_error_is_recorded(name, clients, books, provider, do):
    told = {"id": "c", "model": "gpt-5-mini", "choices": [{"index": 0, "delta": {"content": "The sea"}}]}
    ended = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
    usage = {"prompt_tokens": 40, "completion_tokens": 5, "total_tokens": 45}
    failed = {**told, "error": {"code": "server_error", "message": "no"}, "choices": [ended], "usage": usage}
    provider.answer(events=[f"data: {json.dumps(event)}\n\n" for event in (told, failed)])
    with pytest.raises(openai.APIError):
        _ = [chunk async for chunk in do.each(clients.make(name).chat.completions.create(**CHAT))]
    entry = books.one()
    assert (entry.status, entry.error_type) == ("error", "APIError")
    assert dict(entry.usage.quantities) == {"input": 40, "output": 5}
    assert "estimated" in entry.flags


def _as_event(event):
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


_STATED = {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}}
_SAID = [
    {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "The sea"}},
    {"type": "content_block_stop", "index": 0},
    {**_STATED, "usage": {"output_tokens": 20}},
]
_SAID[0]["message"] |= {"model": "claude-sonnet-5", "usage": {"input_tokens": 40, "output_tokens": 1}}
_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


@pytest.mark.needs("openai.resources.responses:Responses")  # older SDKs do not close the response
@pytest.mark.parametrize("name", ["Anthropic", "AsyncAnthropic"])
@pytest.mark.parametrize("last", [[], [{"type": "message_stop"}]], ids=["stated", "stopped"])
async def test_an_error_after_the_usage_was_stated_is_a_failed_call(name, last, clients, books, provider, do):
    provider.answer(events=list(map(_as_event, [*_SAID, *last, _OVERLOADED])))
    with pytest.raises(anthropic.APIStatusError):
        _ = [event async for event in do.each(clients.make(name).messages.create(**MESSAGE))]
    entry = books.one()
    assert (entry.status, entry.error_type, entry.cost_source) == ("error", "APIStatusError", "computed")
    assert dict(entry.usage.quantities) == {"input": 40, "output": 20}


@pytest.mark.needs("openai.resources.responses:Responses")
def test_an_error_that_only_the_bytes_tell_is_a_failed_call(clients, books, provider):
    provider.answer(events=list(map(_as_event, [*_SAID, _OVERLOADED])))
    with clients.anthropic().messages.with_streaming_response.create(**MESSAGE) as response:
        list(response.iter_bytes())
    entry = books.one()
    assert (entry.status, entry.error_type, entry.usage.output_tokens) == ("error", "overloaded_error", 20)


_ANSWERED = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-5-mini"}
_WORDS = {**_ANSWERED, "choices": [{"index": 0, "delta": {"content": "The sea"}, "finish_reason": None}]}
_STOP = {**_ANSWERED, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
_TOTALS = {"usage": {"prompt_tokens": 40, "completion_tokens": 5, "total_tokens": 45}}
_ALONE = {**_ANSWERED, "choices": [], **_TOTALS}
_FAULT = {"error": {"code": "server_error", "message": "no"}}


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("raw", [False, True], ids=["events", "bytes"])
@pytest.mark.parametrize(
    ("events", "source"),
    [
        ([_WORDS, _STOP, _ALONE, _FAULT], "computed"),
        ([_WORDS, _ALONE, _FAULT], "computed"),
        ([_WORDS, _STOP, {**_FAULT, **_TOTALS}], "computed"),
        ([{**_WORDS, **_TOTALS}, _FAULT], "estimated"),
        ([_WORDS, {**_ALONE, **_FAULT}], "estimated"),
    ],
    ids=["ended", "counted", "ended and counted beside it", "so far", "counted beside it"],
)
def test_a_chat_that_fails_after_its_usage_is_as_sure_with_a_client_as_by_hand(
    events, source, raw, clients, books, provider, meter
):
    provider.answer(events=[f"data: {json.dumps(event)}\n\n" for event in events])
    chats = clients.openai().chat.completions
    with contextlib.suppress(openai.APIError):
        if raw:
            with chats.with_streaming_response.create(**CHAT) as response:
                list(response.iter_bytes())
        else:
            list(chats.create(**CHAT))
    events = [{**one, "id": "d"} if "id" in one else one for one in events]  # else it is there already
    record(meter, events, provider="openai", endpoint="chat.completions", model="gpt-5-mini")
    by_client, by_hand = books.all()
    assert (by_client.status, by_client.cost_source) == ("error", source)
    assert (by_hand.status, by_hand.cost_source) == ("error", source)
    assert dict(by_client.usage.quantities) == dict(by_hand.usage.quantities) == {"input": 40, "output": 5}


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("error", [{"type": "error", "code": "server_error"}, _FAULT])
def test_an_error_that_only_the_bytes_of_a_response_tell_is_a_failed_call(error, clients, books, provider):
    body = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": "in_progress", "output": []}
    begun = {"type": "response.created", "sequence_number": 0, "response": body}
    provider.answer(events=[f"data: {json.dumps(event)}\n\n" for event in (begun, error)])
    with clients.openai().responses.with_streaming_response.create(
        model="gpt-5-mini", input="Hello", stream=True
    ) as response:
        list(response.iter_bytes())
    entry = books.one()
    assert (entry.status, entry.error_type, entry.cost_source) == ("error", "server_error", "estimated")


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("error", [{"type": "error", "code": "server_error"}, {"error": {"code": "server_error"}}])
def test_an_error_after_a_response_has_completed_is_a_failed_call(error, clients, books, provider):
    usage = {"input_tokens": 40, "output_tokens": 20, "total_tokens": 60}
    body = {"id": "resp_1", "object": "response", "model": "gpt-5-mini", "status": "completed", "output": []}
    done = {"type": "response.completed", "sequence_number": 1, "response": {**body, "usage": usage}}
    provider.answer(events=[f"data: {json.dumps(event)}\n\n" for event in (done, {"message": "no", **error})])
    with contextlib.suppress(openai.APIError):  # as it raises for the one, and hands on the other
        list(clients.openai().responses.create(model="gpt-5-mini", input="Hello", stream=True))
    entry = books.one()
    assert (entry.status, entry.cost_source, entry.usage.input_tokens) == ("error", "computed", 40)


@pytest.mark.needs("openai.resources.responses:Responses")
def test_a_stream_that_stands_in_for_one_that_failed_is_a_call_of_its_own(clients, books, provider):
    """It is made and read where the error of the first is handled."""
    provider.answer(events=list(map(_as_event, [*_SAID, _OVERLOADED])))
    client = clients.anthropic()
    try:
        list(client.messages.create(**MESSAGE))
    except anthropic.APIStatusError:
        list(client.messages.create(**MESSAGE))
    first, second = books.all()
    assert (first.status, second.status) == ("error", "ok")
    assert not {"estimated"} & {*second.flags}


@pytest.mark.needs("openai.resources.responses:Responses")
def test_an_error_of_another_call_that_closes_a_stream_is_not_its_own(clients, books, provider):
    def read_one_amid_another():
        with clients.openai().chat.completions.create(**CHAT) as stream:
            while not (next(stream).choices or [None])[0].finish_reason:
                pass
            provider.answer(events=list(map(_as_event, [*_SAID, _OVERLOADED])))
            list(clients.anthropic().messages.create(**MESSAGE))

    with pytest.raises(anthropic.APIStatusError):
        read_one_amid_another()
    chat, message = sorted(books.all(), key=lambda entry: entry.provider != "openai")
    assert (chat.status, chat.error_type, message.status) == ("ok", None, "error")


@pytest.mark.needs("openai.resources.responses:Responses")
@pytest.mark.parametrize("name", ["OpenAI", "AsyncOpenAI"])
async def test_a_chunk_that_the_sdk_refuses_is_recorded_before_the_error_goes(name, clients, books, provider, do):
    told = {"id": "c", "model": "gpt-5-mini", "choices": "none", "usage": {"prompt_tokens": 40}}
    provider.answer(events=[f"data: {json.dumps(told)}\n\n"])
    client = clients.make(name, _strict_response_validation=True)
    with pytest.raises(openai.APIResponseValidationError) as kept:
        _ = [chunk async for chunk in do.each(client.chat.completions.create(**CHAT))]
    assert (books.one().status, books.one().usage.input_tokens) == ("error", 40), kept


def test_breaking_off_at_the_finish_reason_is_ok_and_estimated(clients, books):
    for chunk in clients.openai().chat.completions.create(**CHAT):
        if chunk.choices[0].finish_reason:
            break
    del chunk
    entry = books.one()
    assert (entry.status, "estimated" in entry.flags) == ("ok", True)


def test_the_usage_chunk_nobody_asked_for_is_not_shown(clients, books):
    chunks = list(clients.openai().chat.completions.create(**CHAT))
    assert all(chunk.choices for chunk in chunks)
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)
    assert "estimated" not in books.one().flags


@pytest.mark.parametrize("mode", ["always", "last_choice", "cumulative", "never"])
async def test_usage_that_a_host_sends_to_everybody_is_shown_as_without_us(mode, clients, books, provider, do):
    """Only what our own request caused is hidden."""
    provider.answer(stream_usage=mode)
    theirs = [
        chunk.to_dict()
        async for chunk in do.each(clients.make("OpenAI", metered=False).chat.completions.create(**CHAT))
    ]
    for name in ("OpenAI", "AsyncOpenAI"):
        provider.reset()
        provider.answer(stream_usage=mode)
        ours = [chunk.to_dict() async for chunk in do.each(clients.make(name).chat.completions.create(**CHAT))]
        assert [chunk.get("usage") for chunk in ours] == [chunk.get("usage") for chunk in theirs]
        assert [chunk["choices"] for chunk in ours] == [chunk["choices"] for chunk in theirs]


async def test_usage_of_a_server_that_writes_no_nulls_before_it_is_hidden(clients, books, provider, do):
    """Ollama and llama.cpp send the last chunk only to those who ask, without ``usage: null`` on the ones before it."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "fp_ollama"}
    word = {**head, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    usage = {**head, "choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}}
    provider.answer(events=[f"data: {json.dumps(chunk)}\n\n" for chunk in (word, usage)])
    chunks = [chunk async for chunk in do.each(clients.openai().chat.completions.create(**CHAT))]
    assert [bool(chunk.choices) for chunk in chunks] == [True]
    assert books.quantities() == {"input": 4, "output": 2}


def test_the_stream_is_the_sdks_own_type(clients):
    with clients.openai().chat.completions.create(**CHAT) as stream:
        assert isinstance(stream, openai.Stream)
        assert type(stream).__name__ == "Stream"
        assert stream.response.status_code == 200


def test_a_raw_response_parsed_to_a_stream_class_hides_the_usage_chunk_as_well(clients, books):
    raw = clients.openai().chat.completions.with_raw_response.create(**CHAT)
    chunks = list(raw.parse(to=openai.Stream[openai.types.chat.ChatCompletionChunk]))
    assert all(chunk.choices for chunk in chunks)
    assert "estimated" not in books.one().flags


class OwnStream(openai.Stream[openai.types.chat.ChatCompletionChunk]):
    """A stream class of the caller's."""

    def __stream__(self):
        yield from super().__stream__()


@pytest.mark.parametrize("kind", [openai.Stream[openai.types.chat.ChatCompletionChunk], OwnStream])
def test_what_fails_in_hiding_what_only_we_asked_for_is_not_for_the_caller(clients, books, monkeypatch, kind):
    def take_off(_self, _chunk):
        raise RuntimeError

    monkeypatch.setattr("tokenmeter.providers.openai.requests.UsageHider.take_off", take_off)
    client = clients.openai()
    raw = client.chat.completions.with_raw_response.create(**CHAT)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse(to=kind) if chunk.choices)
    assert books.one().usage.quantities["output"] > 0


def _ahead(chunks):
    """All chunks, each shown when the next one has come."""
    last = None
    for chunk in chunks:
        if last is not None:
            yield last
        last = chunk
    yield last


def _words(chunks):
    """What each chunk says; one without choices would raise."""
    for chunk in chunks:
        yield chunk.choices[0].delta.content


async def _ahead_async(chunks):
    last = None
    async for chunk in chunks:
        if last is not None:
            yield last
        last = chunk
    yield last


async def _words_async(chunks):
    async for chunk in chunks:
        yield chunk.choices[0].delta.content


Chunk = TypeVar("Chunk")


def _stream_class(kind, through):
    def __stream__(self):  # noqa: N807 - the SDK's name
        return through(kind.__stream__(self))

    made = types.new_class("TheirStream", (kind[Chunk],), {}, lambda body: body.update(__stream__=__stream__))
    return made[openai.types.chat.ChatCompletionChunk]


@pytest.mark.parametrize("how", ["stream_cls", "raw"])
@pytest.mark.parametrize("stream_usage", ["openai", "always", "never"])
@pytest.mark.parametrize(("reads", "reads_async"), [(_ahead, _ahead_async), (_words, _words_async)])
async def test_a_stream_class_of_the_callers_sees_the_chunks_it_would_see_without_us(
    reads, reads_async, stream_usage, how, clients, books, provider, do
):
    """It may read ahead, or look into every chunk, before anything that stands behind it can leave one out."""
    shown = {}
    for name, kind, through in (
        ("OpenAI", openai.Stream, reads),
        ("AsyncOpenAI", openai.AsyncStream, reads_async),
    ):
        for metered in (False, True):
            provider.answer(stream_usage=stream_usage)
            client, theirs = clients.make(name, metered=metered), _stream_class(kind, through)
            if how == "raw":
                raw = await do(client.chat.completions.with_raw_response.create(**CHAT))
                stream = raw.parse(to=theirs)
            else:
                chunk = openai.types.chat.ChatCompletionChunk
                stream = await do(
                    client.post("/chat/completions", cast_to=chunk, body=CHAT, stream=True, stream_cls=theirs)
                )
            try:
                shown[name, metered] = [
                    one if one is None or isinstance(one, str) else one.to_dict() | {"id": "", "created": 0}
                    async for one in do.each(stream)
                ]
            except IndexError:  # a host that sends such a chunk to everybody
                shown[name, metered] = "a chunk without choices"
            await do(stream.close())
    for name in ("OpenAI", "AsyncOpenAI"):
        assert shown[name, True] == shown[name, False]
    if stream_usage == "openai":
        assert shown["OpenAI", True] == shown["AsyncOpenAI", True]
        assert not any("estimated" in entry.flags for entry in books.all())
    assert len(books.all()) == 2


def test_chunks_without_choices_that_are_not_the_usage_chunk_stay(clients, provider):
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5-mini"}
    filters = {**head, "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    word = {**head, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    provider.answer(events=[filters, word, "data: [DONE]\n\n"])
    assert [len(chunk.choices) for chunk in clients.openai().chat.completions.create(**CHAT)] == [0, 1]


@pytest.mark.parametrize("stream_usage", ["openai", "always", "last_choice", "cumulative"])
def test_usage_is_right_wherever_a_host_puts_it(stream_usage, clients, books, provider):
    provider.answer(stream_usage=stream_usage)
    list(clients.openai().chat.completions.create(**CHAT))
    assert books.quantities() == dict(provider.total.quantities)


@pytest.mark.parametrize("raw", [False, True], ids=["events", "lines"])
def test_an_event_that_is_no_object_is_passed_over(raw, clients, books, provider, caplog):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    last = {"id": "c", "object": "chat.completion.chunk", "model": "gpt-5-mini", "choices": [], "usage": usage}
    provider.answer(events=["data: 1\n\n", 'data: ["alive"]\n\n', last])
    if raw:
        with clients.openai().chat.completions.with_streaming_response.create(**CHAT) as response:
            assert sum(1 for line in response.iter_lines() if line) >= 3
    else:
        assert len(list(clients.openai().chat.completions.create(**CHAT))) >= 2
    assert dict(books.one().usage.quantities) == {"input": 10, "output": 5}
    assert not caplog.records


def test_a_host_that_never_reports_usage_is_estimated(clients, books, provider):
    provider.answer(stream_usage="never")
    list(clients.openai().chat.completions.create(**CHAT))
    entry = books.one()
    assert entry.usage.input_tokens > 0
    assert entry.usage.output_tokens > 0
    assert "estimated" in entry.flags


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_host_that_refuses_stream_options_gets_the_call_as_written(status, clients, books, do):
    with FakeProvider(stream_usage="refuse", refusal_status=status) as refusing:
        for name in ("OpenAI", "AsyncOpenAI"):
            client = clients.make(name, base_url=f"{refusing.openai_url}/{name.lower()}/v1")
            for _ in range(2):
                assert [chunk async for chunk in do.each(client.chat.completions.create(**CHAT))]
            await do(client.close())
        asked = ["stream_options" in (request.json or {}) for request in refusing.requests]
    assert asked == [True, False, False] * 2  # refused once, then remembered
    assert [entry.attempts for entry in books.all()] == [2, 1] * 2
    assert all("estimated" in entry.flags and entry.status == "ok" for entry in books.all())


def test_a_refusal_is_remembered_by_the_meter_that_met_it(clients, books, priced):
    other = Meter(store=open_store("memory:"), pricer=priced.pricer)
    with FakeProvider(stream_usage="refuse") as refusing:
        for meter in (books.meter, other):
            client = wrap(openai.OpenAI(api_key="sk-test", base_url=refusing.openai_url), meter=meter)
            for _ in range(2):
                list(client.chat.completions.create(**CHAT))
        assert ["stream_options" in (request.json or {}) for request in refusing.requests] == [True, False, False] * 2
    other.close()


def test_a_refusal_of_something_else_is_raised(clients, books, provider):
    provider.fail(400, message="The model is asleep.")
    with pytest.raises(openai.BadRequestError, match="asleep"):
        clients.openai().chat.completions.create(**CHAT)
    assert len(provider.requests) == 1
    assert (books.one().status, books.one().billed_cost) == ("error", None)


async def test_an_async_stream_that_is_closed_early_is_recorded(clients, books):
    async with clients.async_openai() as client:
        stream = await client.chat.completions.create(**CHAT)
        async for _chunk in stream:
            break
        await stream.close()
    assert books.one().status == "aborted"


async def test_a_cancelled_task_leaves_an_entry(clients, books, provider):
    provider.answer(chunk_delay=0.05)
    async with clients.async_anthropic() as client:
        begun = asyncio.Event()

        async def read():
            async with await client.messages.create(**MESSAGE) as stream:
                async for _event in stream:
                    begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    entry = books.one()
    assert (entry.status, entry.error_type) == ("aborted", "CancelledError")
    assert entry.usage.input_tokens > 0


async def test_a_call_cancelled_before_its_answer_is_recorded_with_unknown_billing(clients, books, provider):
    provider.answer(delay=5)
    async with clients.async_openai() as client:
        task = asyncio.create_task(client.chat.completions.create(model="gpt-5-mini", messages=MESSAGES))
        async with asyncio.timeout(10):
            while not provider.requests:  # noqa: ASYNC110 - the provider runs in threads
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    entry = books.one()
    assert (entry.status, entry.error_type, entry.billed_cost) == ("aborted", "CancelledError", None)
    assert "billing_unknown" in entry.flags


async def test_a_stream_may_be_closed_in_another_task_than_it_was_opened_in(clients, books):
    async with clients.async_openai() as client:
        stream = await client.chat.completions.create(**CHAT)
        await asyncio.create_task(stream.__anext__())
        await asyncio.create_task(stream.close())
    assert books.one().status == "aborted"


async def test_a_dropped_async_stream_says_nothing_to_the_event_loop(clients, books):
    """Every closed browser tab drops one."""
    said = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    async with clients.async_openai() as client:
        for number in range(4):
            stream = await client.chat.completions.create(**CHAT)

            async def words(stream=stream):
                async for chunk in stream:
                    yield chunk

            reading = words()
            for _ in range(number):
                await reading.__anext__()
            if number % 2:
                await reading.aclose()
            del stream, reading, words
            gc.collect()
            await asyncio.sleep(0.01)
    assert said == []
    assert len(books.all()) == 4


async def test_a_stream_read_through_a_generator_and_cancelled_is_recorded_at_once(clients, meter, provider):
    provider.answer(chunk_delay=0.02)
    async with clients.async_openai() as client:
        begun = asyncio.Event()

        async def words():
            async for chunk in await client.chat.completions.create(**CHAT):
                yield chunk

        async def read():
            async for _chunk in words():
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert [entry.status for entry in meter.store.entries()] == ["aborted"]


@pytest.mark.parametrize("form", ["parsed", "raw"])
@pytest.mark.parametrize("name", ["AsyncOpenAI", "AsyncAnthropic"])
async def test_a_cancelled_stream_is_recorded_before_its_connection_is_closed(name, form, clients, meter, provider):
    """uvicorn cancels its tasks when it stops, and its process ends a turn of the loop later."""
    provider.answer("word " * 400, chunk_delay=0.02)
    async with clients.make(name) as client:
        begun = asyncio.Event()
        owner, request = (client.messages, MESSAGE) if "Anthropic" in name else (client.chat.completions, CHAT)

        async def read():
            if form == "raw":
                async with owner.with_streaming_response.create(**request) as response:
                    async for _line in response.iter_lines():
                        begun.set()
            else:
                async for _event in await owner.create(**request):
                    begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        cleaning, entries = not task.done(), list(meter.store.entries())
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cleaning, "else this shows nothing"
    assert [(entry.status, entry.error_type) for entry in entries] == [("aborted", "CancelledError")]
    assert entries[0].usage.input_tokens > 0
    assert list(meter.store.entries()) == entries


@pytest.mark.parametrize("name", ["AsyncOpenAI", "AsyncAnthropic"])
async def test_a_stream_of_which_nothing_more_comes_in_time_is_a_timeout(name, clients, books, provider):
    """The transport, too, cancels what it waits for, before it raises an error of its own."""
    provider.answer("word " * 5, chunk_delay=30)
    client = clients.make(name, timeout=openai.Timeout(60, read=0.5), max_retries=0)
    owner, request = (client.messages, MESSAGE) if "Anthropic" in name else (client.chat.completions, CHAT)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each SDK version has its own
        async for _event in await owner.create(**request):
            pass
    assert books.one().status == "timeout"


@pytest.mark.parametrize("name", ["AsyncOpenAI", "AsyncAnthropic"])
async def test_a_stream_may_wait_without_an_end(name, clients, books):
    """Transports take an endless number for a timeout as well as none."""
    client = clients.make(name, timeout=openai.Timeout(60, read=float("inf")), max_retries=0)
    owner, request = (client.messages, MESSAGE) if "Anthropic" in name else (client.chat.completions, CHAT)
    assert [event async for event in await owner.create(**request)]
    assert books.one().status == "ok"


def test_a_stream_is_written_down_before_its_body_is_closed(clients, books, monkeypatch):
    """Closing may take its time, and the process may be ended meanwhile."""
    stream = clients.openai().chat.completions.create(**CHAT)
    next(stream)
    written = []
    body = stream.response.stream
    monkeypatch.setattr(body._body, "close", lambda: written.append(len(books.all())), raising=False)
    stream.close()
    assert written == [1]


@pytest.mark.filterwarnings("ignore")  # a socket that outlives its loop complains, with and without us
def test_a_dropped_async_stream_is_recorded_although_its_loop_is_closed(clients, books):
    kept = []

    async def begin():
        stream = await clients.async_openai().chat.completions.create(**CHAT)
        await stream.__anext__()
        kept.append(stream)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    kept.clear()
    clients.made.clear()
    gc.collect()
    gc.collect()
    assert books.one().status == "aborted"


def test_open_streams_are_recorded_when_the_interpreter_exits(tmp_path, provider):
    script = f"""
import tokenmeter, tokenmeter.openai
tokenmeter.configure(store="sqlite:///{tmp_path}/exit.db", config={{}})
client = tokenmeter.openai.OpenAI(base_url={provider.openai_url!r}, api_key="sk-test")
stream = client.chat.completions.create(**{CHAT!r})
next(stream)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
    from tokenmeter.stores import open_store

    store = open_store(f"sqlite:///{tmp_path}/exit.db")
    (entry,) = store.entries()
    assert entry.status == "aborted"
    store.close()


@pytest.mark.parametrize("by", ["url", "provider"])
@pytest.mark.parametrize("mode", ["always", "openai"])
def test_a_host_that_is_not_to_be_asked_for_usage_gets_the_request_as_written(by, mode, clients, books, provider):
    name = provider.openai_url if by == "url" else "openai"
    clients.meter = books.meter = make_meter(store="memory:", config={"providers": {name: {"ask_usage": False}}})
    provider.answer(stream_usage=mode)
    chunks = list(clients.openai().chat.completions.create(**CHAT))
    assert b"stream_options" not in provider.requests[-1].body
    assert any(chunk.usage for chunk in chunks) == (mode == "always")
    assert ("estimated" in books.one().flags) == (mode == "openai")
    clients.meter.close()


class _Clock:
    """Says the time that a test has made it."""

    def __init__(self):
        self.now = 1

    def perf_counter_ns(self):
        return self.now


#: How a stream is begun, whose client it is of, and whether its reader is given bytes.
NOTED = {
    "chat": ("openai", lambda client: client.chat.completions.create(**CHAT)),
    "response": ("openai", lambda client: client.responses.create(model="gpt-5-mini", input="Hi", stream=True)),
    "message": ("anthropic", lambda client: client.messages.create(**MESSAGE)),
    "bytes": ("openai", lambda client: client.chat.completions.with_streaming_response.create(**CHAT)),
}


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.9, 0, 0), (10, 7, 10)])
@pytest.mark.parametrize(
    "kind",
    [
        "bytes",
        "chat",
        "message",
        pytest.param("response", marks=pytest.mark.needs("openai.resources.responses:Responses")),
    ],
)
def test_what_was_read_is_noted_about_once_a_second(
    clients, provider, meter, books, monkeypatch, kind, seconds, least, most
):
    clock, words = _Clock(), 200
    monkeypatch.setattr("tokenmeter.capture.responses.time", clock)
    notes = []
    monkeypatch.setattr(meter.store, "note", lambda _, usage: notes.append((clock.now, usage.output_tokens)) or True)
    provider.answer("word " * words)
    name, begin = NOTED[kind]
    stream = begin(getattr(clients, name)())
    step = int(seconds * 1e9) // words
    if kind == "bytes":
        with stream as response:
            for line in response.iter_lines():
                clock.now += step * line.startswith("data")
    else:
        for _ in stream:
            clock.now += step
    assert least <= len(notes) <= most, notes
    assert notes == sorted(set(notes))
    apart = [after[0] - before[0] for before, after in itertools.pairwise(notes)]
    assert all(one < 2e9 for one in apart)
    (entry,) = books.all()
    assert entry.status == "ok"
    assert all(0 < output <= entry.usage.output_tokens for _, output in notes)
