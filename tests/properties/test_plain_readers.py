"""The quick reader of an endpoint's plain answers says what the general one says, or leaves the answer to it."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.context import billed_tier
from tokenmeter.providers.registry import dialect

ROOM_TESTS = Path(__file__).parent.parent / "providers"
BODIES = sorted(ROOM_TESTS.joinpath("bodies").glob("*.json"))
GOLDEN = [
    case
    for path in sorted(ROOM_TESTS.joinpath("golden").glob("*.toml"))
    for case in tomllib.loads(path.read_text())["case"]
]
PROVIDERS = ("openai", "azure", "anthropic", "openrouter", "groq", "mistral", "x-ai", "google", "perplexity")
READERS = [(room, endpoint) for room in ("openai", "anthropic", "google") for endpoint in dialect(room).plain]
FACTS = RequestFacts(model="asked-for", input_bytes=40)


def check(room, endpoint, provider, body):
    """Whether `body` is plain; if so, both readers agree on it."""
    seen = dialect(room).plain[endpoint](body)
    if seen is None:
        return False
    whole = dialect(room).read(body, provider=provider, endpoint=endpoint, request=FACTS)
    (group,) = whole.consumptions
    assert dict(group.usage.quantities) == seen.quantities
    assert all(type(quantity) is int and quantity > 0 for quantity in seen.quantities.values())
    assert group.usage.reasoning_output_tokens == seen.reasoning_tokens
    assert group.prompt_tokens == seen.prompt_tokens
    assert (whole.response_model, whole.response_id, whole.service_tier) == seen[:3]
    assert (group.model, group.service_tier) == (seen.model, billed_tier(seen.service_tier))
    assert (group.processing, group.speed, group.geo, group.region, group.role) == (None, None, None, None, "message")
    assert (group.supplied_cost, whole.raw_usage, whole.billable) == (None, seen.usage, True)
    assert (whole.flags, whole.reading, whole.bill_id, whole.at) == (frozenset(), "whole", None, None)
    return True


@pytest.mark.parametrize("path", BODIES, ids=lambda path: path.stem)
def test_every_body_there_is_is_read_alike(path):
    case = json.loads(path.read_text())
    for room, endpoint in READERS:
        for provider in PROVIDERS:
            check(room, endpoint, provider, case["body"])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_what_a_body_costs_beside_its_tokens_is_not_plain(case):
    body, provider = json.loads(case["body"]), case["call"]["provider"]
    for room, endpoint in READERS:
        # Each of Perplexity's calls has a fee beside its tokens, so that none is like another.
        if case["call"]["endpoint"] == endpoint and provider != "perplexity":
            check(room, endpoint, provider, body)


#: The plain answers as the providers write them.
PLAIN = {
    "chat.completions": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 90,
            "completion_tokens": 30,
            "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 20,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    },
    "responses": {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
        "background": False,
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Done."}]},
        ],
        "usage": {
            "input_tokens": 90,
            "output_tokens": 30,
            "total_tokens": 120,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 20},
        },
    },
    "embeddings": {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    },
    "messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5",
        "content": [{"type": "text", "text": "Done."}],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 90,
            "output_tokens": 30,
            "cache_read_input_tokens": 1000,
            "cache_creation_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "server_tool_use": None,
            "service_tier": "standard",
            "output_tokens_details": {"thinking_tokens": 12},
            "speed": None,
        },
    },
    "models.generate_content": {
        "candidates": [
            {"index": 0, "content": {"role": "model", "parts": [{"text": "Done."}]}, "finishReason": "STOP"}
        ],
        "modelVersion": "gemini-2.5-flash",
        "responseId": "resp-1",
        "usageMetadata": {
            "promptTokenCount": 90,
            "cachedContentTokenCount": 64,
            "candidatesTokenCount": 18,
            "thoughtsTokenCount": 12,
            "totalTokenCount": 120,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 90}],
            "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 64}],
            "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 18}],
            "trafficType": "ON_DEMAND",
        },
    },
}


@pytest.mark.parametrize(("room", "endpoint"), READERS)
def test_the_answers_that_everybody_gets_are_plain(room, endpoint):
    assert check(room, endpoint, room, PLAIN[endpoint])


@pytest.mark.parametrize("endpoint", ["chat.completions", "responses", "embeddings"])
def test_an_answer_whose_total_is_no_count_is_not_plain(endpoint):
    body = PLAIN[endpoint]
    usage = body["usage"] | {"total_tokens": float(body["usage"]["total_tokens"])}
    assert dialect("openai").plain[endpoint](body | {"usage": usage}) is None


REQUESTS = [(room, endpoint) for room in ("openai", "anthropic", "google") for endpoint in dialect(room).plain_requests]
ASKED = st.one_of(
    st.none(),
    st.text(max_size=300),
    st.integers(-1, 5000),
    st.booleans(),
    st.sampled_from(["\udc80", "x" * 600, {}, [], 1.5, [1, 2], {"type": "x"}]),
)
#: Everything that a message, a part of one or a tool may be made of, and what looks like it.
TYPES = st.sampled_from([
    *("text", "input_text", "output_text", "message", "function", "custom", "function_call", "function_call_output"),
    *("tool_use", "tool_result", "image_url", "file", "item_reference", "web_search", "url_citation", None, 3, []),
])  # fmt: skip
KEYS = st.sampled_from([
    *("role", "content", "name", "type", "text", "id", "status", "tool_calls", "tool_call_id", "function", "arguments"),
    *("call_id", "output", "tool_use_id", "is_error", "input", "description", "parameters", "input_schema", "strict"),
    *("file_id", "image_url", "cache_control", "tools", "audio"),
])  # fmt: skip
PIECES = st.recursive(
    ASKED,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(lambda kind, rest: {**rest, "type": kind}, TYPES, st.dictionaries(KEYS, inner, max_size=3)),
    ),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.one_of(
        st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), ASKED),
        st.dictionaries(st.sampled_from(["role", "content", "name", "type", "file_id"]), ASKED, max_size=3),
        PIECES,
        ASKED,
    ),
    max_size=3,
)
FIELDS = ("n", "max_tokens", "max_completion_tokens", "max_output_tokens", "stream", "metadata", "reasoning")


@pytest.mark.parametrize(("room", "endpoint"), REQUESTS)
@given(
    body=st.fixed_dictionaries(
        {"model": st.one_of(st.just("gpt-5-mini"), ASKED)},
        optional={"messages": MESSAGES, "input": st.one_of(MESSAGES, ASKED), "instructions": ASKED, "system": ASKED}
        | dict.fromkeys(FIELDS, ASKED)
        | {"tools": st.lists(PIECES, max_size=2) | ASKED, "tool_choice": ASKED},
    )
)
def test_the_quick_reader_of_requests_says_what_the_general_one_does_or_leaves_them(room, endpoint, body):
    assert_alike(room, endpoint, body)


def assert_alike(room, endpoint, body):
    asked = dialect(room)
    seen = asked.plain_requests[endpoint](body)
    if seen is None:
        return
    whole = asked.request_facts(Endpoint(endpoint, "chat"), body)
    assert seen.facts(region=None, cost_unit=None) == whole
    assert (seen.image_count, seen.unbounded) == (whole.image_count, whole.unbounded)
    assert sorted(seen.long_texts) == sorted(whole.long_texts)


def test_requests_as_people_write_them_are_plain():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    given = {"openai": [("chat.completions", {"messages": chat, "max_completion_tokens": 9, "n": 2})]}
    given["openai"].append(("responses", {"input": "Hello", "instructions": "Be brief."}))
    schema = {"type": "object", "properties": {"file_id": {"type": "string", "enum": ["a", 1, None]}}}
    function = {"name": "f", "description": "Does it.", "parameters": schema, "strict": True}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
    given["openai"].append(
        ("chat.completions", {"messages": turns, "tools": [{"type": "function", "function": function}]})
    )
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]
    given["openai"].append(("responses", {"input": items, "tools": [{"type": "function", **function}]}))
    given["anthropic"] = [("messages", {"messages": chat[1:], "system": "Be brief.", "max_tokens": 9})]
    turns = [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"image_url": [1.5]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "3", "is_error": False}]},
    ]
    tools = [{"name": "f", "description": "Does it.", "input_schema": schema}]
    system = [{"type": "text", "text": "Be brief."}]
    given["anthropic"].append(("messages", {"messages": turns, "tools": tools, "system": system, "max_tokens": 9}))
    for room, cases in given.items():
        for endpoint, body in cases:
            assert_alike(room, endpoint, {"model": "m", **body})
            assert dialect(room).plain_requests[endpoint]({"model": "m", **body}) is not None


ODD = st.one_of(
    st.none(),
    st.integers(-2, 130),
    st.sampled_from([True, False, 0.0, 30.0, 1.5, "30", "x", "", 10**13, {}, [], {"cached_tokens": 3}, [{}]]),
    st.sampled_from(["batch", "flex", "auto", "us", "global", "refusal", "web_search_call", "chat.completion.chunk"]),
)


def _places(value, path=()):
    """Every key and index of a body, by path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield (*path, index)
            yield from _places(inner, (*path, index))


def _changed(body, path, value):
    copied = json.loads(json.dumps(body))
    at = copied
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return copied


NEW_KEYS = (
    "cost",
    "cost_in_usd_ticks",
    "cache_write_tokens",
    "iterations",
    "speed",
    "seconds",
    "num_sources_used",
    "error",
    "toolUsePromptTokenCount",
    "serviceTier",
    "groundingMetadata",
)


@pytest.mark.parametrize(("room", "endpoint"), READERS)
@given(data=st.data())
def test_whatever_is_odd_about_an_answer_both_readers_agree_or_the_quick_one_leaves_it(room, endpoint, data):
    body = PLAIN[endpoint]
    for _ in range(data.draw(st.integers(1, 3))):
        places = [
            *_places(body),
            ("usageMetadata" if room == "google" else "usage", data.draw(st.sampled_from(NEW_KEYS))),
            (data.draw(st.sampled_from(NEW_KEYS)),),
        ]
        path = data.draw(st.sampled_from(places))
        try:
            body = _changed(body, path, data.draw(ODD))
        except (TypeError, KeyError, IndexError):
            continue
    check(room, endpoint, data.draw(st.sampled_from(PROVIDERS)), body)
