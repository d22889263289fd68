"""Every field of every usage object, as anything at all: no answer raises, or costs nothing without saying so."""

from __future__ import annotations

import copy
import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmeter.call import RequestFacts
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers import dialect_for, observe

WORDS = "x" * 400
REQUEST = RequestFacts(model="m", input_bytes=4000)
AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
PART = [{"text": WORDS}]


def chat(model="gpt-5"):
    choice = {"message": {"content": WORDS}, "finish_reason": "stop"}
    return {"object": "chat.completion", "id": "r", "model": model, "choices": [choice]}


def response(model="gpt-5"):
    output = [{"type": "message", "content": PART}]
    return {"object": "response", "id": "r", "model": model, "status": "completed", "output": output}


#: (provider, endpoint, a body but for its usage, where that stands, the usage): each with every field its kind has.
DIALECTS = {
    "chat": (
        *("openai", "chat.completions", chat(), "usage"),
        {
            "prompt_tokens": 1000,
            "completion_tokens": 100,
            "total_tokens": 1100,
            "prompt_tokens_details": {
                "cached_tokens": 400,
                "cache_write_tokens": 100,
                "cache_write_tokens_details": {"ttl_30m_tokens": 50, "ttl_12h_tokens": 50},
                "audio_tokens": 10,
                "image_tokens": 10,
                "text_tokens": 980,
            },
            "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 10, "text_tokens": 90},
        },
    ),
    "a search host": (
        *("perplexity", "chat.completions", chat("sonar-deep-research"), "usage"),
        {
            "prompt_tokens": 100,
            "completion_tokens": 50,
            "total_tokens": 150,
            "citation_tokens": 20,
            "num_search_queries": 3,
            "reasoning_tokens": 30,
        },
    ),
    "response": (
        *("openai", "responses", response(), "usage"),
        {
            "input_tokens": 1000,
            "output_tokens": 100,
            "total_tokens": 1100,
            "input_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100},
            "output_tokens_details": {"reasoning_tokens": 50},
        },
    ),
    "a host's own tools": (
        *("x-ai", "responses", response("grok-4.5"), "usage"),
        {
            "input_tokens": 1000,
            "output_tokens": 100,
            "total_tokens": 1100,
            "server_side_tool_usage_details": {"web_search_calls": 3, "code_interpreter_calls": 1},
            "num_server_side_tools_used": 4,
        },
    ),
    "message": (
        *("anthropic", "messages"),
        {"type": "message", "id": "r", "model": "claude-sonnet-5", "stop_reason": "end_turn", "content": PART},
        "usage",
        {
            "input_tokens": 1000,
            "output_tokens": 105,
            "cache_read_input_tokens": 400,
            "cache_creation_input_tokens": 100,
            "cache_creation": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 50},
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
            "output_tokens_details": {"thinking_tokens": 5},
            "iterations": [
                {
                    "type": "message",
                    "input_tokens": 1000,
                    "output_tokens": 105,
                    "cache_read_input_tokens": 400,
                    "cache_creation": {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 50},
                },
                {"type": "advisor_message", "model": "claude-haiku-4-5", "input_tokens": 10, "output_tokens": 5},
            ],
        },
    ),
    "session": (
        *("anthropic", "beta.sessions.retrieve"),
        {"type": "session", "id": "r", "status": "idle", "agent": {"model": {"id": "claude-sonnet-5"}}},
        "usage",
        {
            "input_tokens": 100,
            "output_tokens": 50,
            "cache_read_input_tokens": 10,
            "active_seconds": 30.5,
            "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 5},
        },
    ),
    "picture": (
        *("openai", "images.generate", {"created": 1, "model": "gpt-image-1", "data": [{"b64_json": "aGk="}]}, "usage"),
        {
            "input_tokens": 50,
            "output_tokens": 1000,
            "total_tokens": 1050,
            "input_tokens_details": {"text_tokens": 40, "image_tokens": 10},
            "output_tokens_details": {"image_tokens": 1000, "text_tokens": 0},
        },
    ),
    "transcription": (
        *("openai", "audio.transcriptions", {"text": "hello"}, "usage"),
        {
            "type": "tokens",
            "input_tokens": 50,
            "output_tokens": 10,
            "total_tokens": 60,
            "input_token_details": {"audio_tokens": 40, "text_tokens": 10},
        },
    ),
    "seconds": ("openai", "audio.transcriptions", {"text": "hello"}, "usage", {"type": "duration", "seconds": 30}),
    "realtime": (
        *(
            "openai",
            "realtime",
            {"type": "response.done", "response": {"status": "completed", "output": [{}]}},
            "response",
        ),
        {
            "status": "completed",
            "output": [{}],
            "usage": {
                "input_tokens": 100,
                "output_tokens": 50,
                "total_tokens": 150,
                "input_token_details": {
                    "text_tokens": 50,
                    "audio_tokens": 50,
                    "image_tokens": 0,
                    "cached_tokens": 40,
                    "cached_tokens_details": {"text_tokens": 20, "audio_tokens": 20},
                },
                "output_token_details": {"text_tokens": 10, "audio_tokens": 40},
            },
        },
    ),
    "conversation": (
        *("mistral", "conversations"),
        {"object": "conversation.response", "outputs": [{"model": "mistral-large-2512", "content": WORDS}]},
        "usage",
        {
            "prompt_tokens": 188,
            "completion_tokens": 55,
            "total_tokens": 7355,
            "connector_tokens": 7112,
            "connectors": {"web_search": 1},
        },
    ),
    "converse": (
        *("aws", "converse", {"output": {"message": {"content": PART}}}, "usage"),
        {
            "inputTokens": 100,
            "outputTokens": 50,
            "cacheReadInputTokens": 10,
            "cacheWriteInputTokens": 10,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 5}],
        },
    ),
    "batch": (
        *("openai", "batches"),
        {"object": "batch", "id": "r", "status": "completed", "model": "gpt-5", "request_counts": {"completed": 3}},
        "usage",
        {
            "input_tokens": 1000,
            "output_tokens": 100,
            "total_tokens": 1100,
            "input_tokens_details": {"cached_tokens": 400},
            "output_tokens_details": {"reasoning_tokens": 50},
        },
    ),
    "embeddings": (
        *("openai", "embeddings", {"object": "list", "model": "m", "data": [{"embedding": [1]}]}, "usage"),
        {"prompt_tokens": 50, "total_tokens": 50},
    ),
    "gemini": (
        *("google", "models.generate_content"),
        {"modelVersion": "gemini-2.5-pro", "candidates": [{"content": {"parts": PART}, "finishReason": "STOP"}]},
        "usageMetadata",
        {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 400,
            "candidatesTokenCount": 100,
            "thoughtsTokenCount": 50,
            "toolUsePromptTokenCount": 20,
            "totalTokenCount": 1170,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 900},
                {"modality": "AUDIO", "tokenCount": 100},
            ],
            "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 40}],
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 30}],
            "toolUsePromptTokensDetails": [{"modality": "VIDEO", "tokenCount": 5}],
        },
    ),
    "gemini, live": (
        *("google", "live.connect"),
        {"model": "gemini-2.5-flash-native-audio", "candidates": [{"content": {"parts": PART}}]},
        "usageMetadata",
        {
            "promptTokenCount": 1000,
            "responseTokenCount": 100,
            "thoughtsTokenCount": 50,
            "totalTokenCount": 1100,
            "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 900}],
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 80}],
        },
    ),
    "gemini, as the SDK spells it": (
        *("google", "models.generate_content"),
        {"modelVersion": "gemini-2.5-pro", "candidates": [{"content": {"parts": PART}, "finishReason": "STOP"}]},
        "usage_metadata",
        {
            "prompt_token_count": 1000,
            "candidates_token_count": 100,
            "total_token_count": 1100,
            "prompt_tokens_details": [{"modality": "IMAGE", "token_count": 258}],
        },
    ),
    "interaction": (
        *("google", "interactions.create"),
        {
            "id": "r",
            "model": "gemini-2.5-pro",
            "status": "completed",
            "steps": [{"type": "model_output", "content": PART}],
        },
        "usage",
        {
            "total_input_tokens": 1000,
            "total_cached_tokens": 400,
            "total_output_tokens": 100,
            "total_thought_tokens": 50,
            "total_tool_use_tokens": 20,
            "total_tokens": 1170,
            "input_tokens_by_modality": [{"modality": "audio", "tokens": 100}],
            "cached_tokens_by_modality": [{"modality": "audio", "tokens": 40}],
            "output_tokens_by_modality": [{"modality": "image", "tokens": 30}],
            "tool_use_tokens_by_modality": [{"modality": "video", "tokens": 5}],
            "grounding_tool_count": [{"type": "google_search", "count": 2}],
        },
    ),
    "pages": (
        *("mistral", "ocr", {"model": "mistral-ocr-2512", "pages": [{}]}, "usage_info"),
        {"pages_processed": 3, "pages_processed_annotation": 2},
    ),
}
MISSING = object()
#: What says nothing, by what it is; and what is no count, and so must leave a trace.
SILENT = {"missing": MISSING, "null": None, "empty text": "", "empty list": [], "empty object": {}, "zero": 0}
WRONG = {
    "words": "x",
    "negative": -1,
    "a huge float": 1e30,
    "a huge integer": 10**30,
    "a list": [1, [2]],
    "a list of objects": [{"tokens": 5}],
    "true": True,
    "not a number": math.nan,
    "infinite": math.inf,
    "digits without end": "9" * 5_000,
    "a signalling NaN": Decimal("sNaN"),
}
DRESSED = {"text": "900", "a float": 900.0, "a decimal": Decimal("9E+2")}
#: Fields that are names, or informational: what stands there changes no price.
_NAMES = {
    "output",
    "type",
    "ttl",
    "status",
    "model",
    "reasoning_tokens",
    "thinking_tokens",
    "text_tokens",
    "web_fetch_requests",
}
#: What only repeats its parts.
_REPEATED = {"num_server_side_tools_used"}


def fields(usage, before=()):
    """The path of every field, however deep."""
    for key, value in usage.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from fields(value, (*before, key))
        elif isinstance(value, list):
            for position, entry in enumerate(value):
                if isinstance(entry, dict):
                    yield from fields(entry, (*before, key, position))


def with_field(usage, path, value):
    changed = copy.deepcopy(usage)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


PATHS = [(name, path) for name, dialect in DIALECTS.items() for path in fields(dialect[4])]


def named(value):
    return ".".join(map(str, value)) if isinstance(value, tuple) else value


@pytest.fixture(scope="module")
def pricer():
    return Pricer(PriceList.load())


def read(name, usage, request=REQUEST):
    provider, endpoint, body, key, _ = DIALECTS[name]
    whole = body if usage is MISSING else {**body, key: usage}
    plain = dialect_for(provider, endpoint).plain.get(endpoint)
    seen = dialect_for(provider, endpoint).read(whole, provider=provider, endpoint=endpoint, request=request)
    quick = plain(whole) if plain is not None else None
    assert quick is None or quick.quantities == dict(seen.usage.quantities), "the quick reader says the same"
    return seen


def check(name, seen, pricer):
    """What holds of any answer."""
    provider, endpoint, *_ = DIALECTS[name]
    quantities = seen.usage.quantities
    assert all(0 < quantity <= 10**13 for quantity in quantities.values())
    assert len(quantities) < 20
    assert quantities or "usage_unknown" in seen.flags or not seen.billable, "never nothing, unless it says so"
    rating = pricer.rate(seen, provider=provider, endpoint=endpoint, at=AT)
    assert rating.list_cost is None or rating.list_cost.is_finite()
    if not quantities and seen.billable:
        assert rating.cost_source == "unpriced"


def side(seen, *starts):
    return sum(q for meter, q in seen.usage.quantities.items() if meter.startswith(starts))


@pytest.mark.parametrize(("name", "path"), PATHS, ids=named)
def test_a_field_that_is_no_count_leaves_a_trace(name, path, pricer):
    usage = DIALECTS[name][4]
    right = read(name, usage)
    for request in (REQUEST, RequestFacts()):
        for wrong in WRONG.values():
            seen = read(name, with_field(usage, path, wrong), request)
            check(name, seen, pricer)
            if path[-1] not in _NAMES | _REPEATED and seen.billable:
                assert seen.flags - right.flags, (wrong, dict(seen.usage.quantities))
        for silent in SILENT.values():
            seen = read(name, with_field(usage, path, silent), request)
            check(name, seen, pricer)
            lost = side(right, "output") and not side(seen, "output")
            if lost and seen.billable and seen.usage:
                assert silent == 0 or name == "session" or seen.flags - right.flags, (silent, seen.usage)


def stated(name, path):
    """What stands at `path` of a usage object."""
    place = DIALECTS[name][4]
    for step in path:
        place = place[step]
    return place


COUNTS = [at for at in PATHS if at[1][-1] not in _NAMES and isinstance(stated(*at), int)]


@pytest.mark.parametrize(("name", "path"), COUNTS, ids=named)
def test_an_integer_in_another_dress_is_that_integer(name, path, pricer):
    usage = DIALECTS[name][4]
    plain = read(name, with_field(usage, path, 900))
    for dressed in DRESSED.values():
        seen = read(name, with_field(usage, path, dressed))
        check(name, seen, pricer)
        assert dict(seen.usage.quantities) == dict(plain.usage.quantities)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_usage_that_is_no_object_is_as_good_as_none(name, pricer):
    for value in [*SILENT.values(), *WRONG.values()]:
        seen = read(name, value)
        check(name, seen, pricer)


def test_of_a_key_that_is_there_twice_the_last_one_counts_as_json_has_it():
    body = json.dumps({**chat(), "usage": {"prompt_tokens": 7, "completion_tokens": 7}})
    twice = body[:-1] + ', "usage": {"prompt_tokens": 70, "completion_tokens": 9}}'
    assert dict(observe(twice, provider="openai", endpoint="chat.completions").usage.quantities) == {
        "input": 70,
        "output": 9,
    }
    none = observe(body[:-1] + ', "usage": null}', provider="openai", endpoint="chat.completions")
    assert "usage_unknown" in none.flags


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, derandomize=True)
@given(st.sampled_from(PATHS), st.lists(ANYTHING, min_size=1, max_size=4), st.booleans(), st.data())
def test_no_answer_raises_or_costs_nothing_unsaid(pricer, at, values, known, data):
    name, first = at
    usage = with_field(DIALECTS[name][4], first, values[0])
    for value in values[1:]:
        usage = with_field(usage, data.draw(st.sampled_from(list(fields(usage)))), value)
    check(name, read(name, usage, REQUEST if known else RequestFacts()), pricer)


def events(name, usage):
    """The answer as a stream."""
    body = DIALECTS[name][2]
    if name == "message":
        yield {"type": "message_start", "message": {"type": "message", "id": "r", "model": "m", "usage": usage}}
        yield {"type": "content_block_start", "content_block": {"type": "text"}}
        yield {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}}
        yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    elif name == "response":
        yield {"type": "response.created", "response": {"id": "r", "model": "m"}}
        yield {"type": "response.output_text.delta", "delta": WORDS}
        yield {"type": "response.completed", "response": {**body, "output": [], "usage": usage}}
    else:
        yield {"id": "r", "model": "m", "choices": [{"index": 0, "delta": {"content": WORDS}}]}
        yield {"id": "r", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {"id": "r", "model": "m", "choices": [], "usage": usage}


@pytest.mark.parametrize("name", ["chat", "response", "message"])
def test_no_event_of_a_stream_raises_or_costs_nothing_unsaid(name, pricer):
    provider, endpoint, *_, usage = DIALECTS[name]
    told = list(events(name, usage))
    for position, event in enumerate(told):
        for path in fields(event):
            for value in [*SILENT.values(), *WRONG.values()]:
                stream = dialect_for(provider, endpoint).stream(provider=provider, endpoint=endpoint, request=REQUEST)
                for one in (*told[:position], with_field(event, path, value), *told[position + 1 :]):
                    stream.feed(one)
                seen = stream.observation()
                check(name, seen, pricer)
                assert side(seen, "output") or not seen.billable, (position, path, value)
