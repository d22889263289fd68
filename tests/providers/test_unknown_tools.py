"""A provider's tool that no rule knows is counted and unpriced wherever it leaves its trace; what is known is none."""

from __future__ import annotations

import typing

import anthropic.types.beta
import google.genai.types
import pytest
from openai.types.beta import BetaResponseOutputItem
from openai.types.responses import ResponseOutputItem

from tokenmeter.call import RequestFacts
from tokenmeter.providers.openai.extras import is_unknown_call
from tokenmeter.providers.registry import dialect_for

HOLO = {"type": "holo_call", "id": "h", "status": "completed"}
RESPONSE = {"object": "response", "id": "r", "model": "gpt-5.4", "status": "completed"}
USAGE = {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}
MESSAGE = {"type": "message", "id": "m", "role": "assistant", "model": "claude-opus-4-6"}
CALLED = {"type": "server_tool_use", "id": "s", "name": "holo", "input": {}}
COUNTS = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100}
TOTALS = {"total_input_tokens": 1000, "total_output_tokens": 100, "total_tokens": 1100}


def read(body, endpoint, provider):
    return dialect_for(provider, endpoint).read(body, provider=provider, endpoint=endpoint, request=RequestFacts())


def streamed(events, endpoint, provider):
    reader = dialect_for(provider, endpoint).stream(provider=provider, endpoint=endpoint, request=RequestFacts())
    for event in events:
        reader.feed(event)
    assert reader.terminal
    return reader


def is_told(seen, calls=1):
    assert dict(seen.usage.quantities) == {"input": 1000, "output": 100, "server_tool_calls": calls}
    assert "unknown_server_tool" in seen.flags
    return True


def response(*items, **more):
    return {**RESPONSE, "output": [{"type": "message", "content": [{"text": "Hi"}]}, *items], "usage": USAGE, **more}


#: Items of a response of one turn: what the model says, and calls that the caller runs.
OF_ONE_TURN = {
    *("apply_patch_call", "computer_call", "custom_tool_call", "function_call", "local_shell_call"),
    *("mcp_approval_request", "mcp_list_tools", "message", "reasoning"),
}


def items_of_the_sdk():
    found = [typing.get_args(BetaResponseOutputItem)[0], typing.get_args(ResponseOutputItem)[0]]
    kinds = {item.model_fields["type"].annotation for union in found for item in typing.get_args(union)}
    return sorted({name for kind in kinds for name in typing.get_args(kind)})


@pytest.mark.parametrize("kind", [*items_of_the_sdk(), "unheard_of"])
def test_a_prompt_has_a_size_where_no_item_may_have_sent_the_model_round_again(kind):
    seen = read(response({"type": kind, "id": "i"}), "responses", "openai")
    assert seen.consumptions[0].prompt_tokens == (1000 if kind in OF_ONE_TURN else None)


@pytest.mark.parametrize("provider", ["openai", "azure", "openrouter", "x-ai", "vllm"])
def test_an_item_of_a_response(provider):
    seen = read(response(HOLO, {**HOLO, "id": "i"}, {**HOLO, "status": "failed"}), "responses", provider)
    assert is_told(seen, 2)


@pytest.mark.parametrize(
    ("stated", "calls"),
    [({"num_requests": 3}, 3), ({"num_requests": "3"}, 3), ({"minutes": 5}, 1), ({"num_requests": 1}, 2)],
)
def test_a_part_of_tool_usage(stated, calls):
    items = [HOLO, HOLO] if calls == 2 else []
    assert is_told(read(response(*items, tool_usage={"holo": stated}), "responses", "openai"), calls)


def test_a_part_of_tool_usage_that_says_it_was_not_used():
    body = response(tool_usage={"holo": {"num_requests": 0}, "web_search": {"num_requests": 0}})
    assert not read(body, "responses", "openai").flags


def test_an_item_of_a_response_that_was_broken_off():
    reader = dialect_for("openai", "responses").stream(
        provider="openai", endpoint="responses", request=RequestFacts(model="gpt-5.4", input_bytes=4000)
    )
    reader.feed({"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}})
    reader.feed({"type": "response.output_item.done", "item": HOLO})
    assert reader.observation().usage["server_tool_calls"] == 1


def kinds_of(union):
    members = typing.get_args(typing.get_args(union)[0])
    return {typing.get_args(member.model_fields["type"].annotation)[0] for member in members}


@pytest.mark.needs("openai.types.beta.beta_response_output_item:BetaResponseOutputItem")
def test_every_call_that_the_openai_sdk_has_is_known():
    from openai.types.beta.beta_response_output_item import BetaResponseOutputItem
    from openai.types.responses.response_output_item import ResponseOutputItem

    kinds = kinds_of(ResponseOutputItem) | kinds_of(BetaResponseOutputItem)
    assert {"web_search_call", "multi_agent_call"} < kinds
    assert not [kind for kind in kinds if is_unknown_call({"type": kind})]


def message(*blocks, **more):
    return {**MESSAGE, "content": [{"type": "text", "text": "Hi"}, *blocks], "stop_reason": "end_turn", **more}


def test_a_block_of_a_message():
    counts = {"input_tokens": 1000, "output_tokens": 100}
    body = message(CALLED, CALLED, {**CALLED, "name": "web_fetch"}, usage=counts)
    assert is_told(read(body, "messages", "anthropic"), 2)
    assert dialect_for("anthropic", "messages").plain["messages"](body) is None
    stated = {**counts, "server_tool_use": {"holo_requests": 3}}
    assert is_told(read(message(CALLED, usage=stated), "messages", "anthropic"), 3), "the usage goes before"


def test_a_block_of_a_message_that_is_streamed():
    events = [
        {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 1000}}},
        {"type": "content_block_start", "index": 0, "content_block": CALLED},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100}},
        {"type": "message_stop"},
    ]
    reader = streamed(events, "messages", "anthropic")
    assert is_told(reader.observation())
    assert dialect_for("anthropic", "messages").plain["messages"](reader.body()) is None


@pytest.mark.needs("anthropic.types.beta:BetaServerToolUseBlock")
def test_every_server_tool_that_the_anthropic_sdk_has_is_known():
    names = typing.get_args(anthropic.types.beta.BetaServerToolUseBlock.model_fields["name"].annotation)
    body = message(*({**CALLED, "name": name} for name in names), usage={"input_tokens": 1000, "output_tokens": 100})
    assert "advisor" in names
    assert "unknown_server_tool" not in read(body, "messages", "anthropic").flags


def answer(*kinds):
    parts = [{"text": "Hi"}, *({"toolCall": {"id": "t", "toolType": kind, "args": {}}} for kind in kinds)]
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}
    return {"modelVersion": "gemini-3.5-flash", "candidates": [candidate], "usageMetadata": COUNTS}


def test_a_part_of_an_answer_of_geminis():
    dialect, body = dialect_for("google", "models.generate_content"), answer("HOLO", "URL_CONTEXT", "HOLO")
    assert is_told(read(body, "models.generate_content", "google"), 2)
    assert is_told(streamed([body], "models.generate_content", "google").observation(), 2)
    assert dialect.plain["models.generate_content"](body) is None


@pytest.mark.needs("google.genai.types:ToolType")
def test_every_tool_that_googles_sdk_has_is_known():
    kinds = [kind.value for kind in google.genai.types.ToolType if not kind.value.endswith("UNSPECIFIED")]
    seen = read(answer(*kinds), "models.generate_content", "google")
    assert "GOOGLE_MAPS" in kinds
    assert not seen.flags


def test_a_step_of_an_interaction():
    inner = {"id": "i", "model": "gemini-3.5-flash", "status": "completed", "usage": TOTALS}
    steps = [{"type": "holo_call"}, {"type": "url_context_call"}, {"type": "model_output", "content": []}]
    assert is_told(read({**inner, "steps": steps}, "interactions.create", "google"))
    events = [
        *({"event_type": "step.start", "index": place, "step": step} for place, step in enumerate(steps)),
        {"event_type": "interaction.completed", "interaction": inner},
    ]
    assert is_told(streamed(events, "interactions.create", "google").observation())


@pytest.mark.needs("google.genai.interactions:Step")
def test_every_step_that_googles_sdk_has_is_known():
    from google.genai import interactions

    kinds = {name for one in typing.get_args(interactions.Step) for name in discriminators(one)}
    calls = [kind for kind in kinds if kind.endswith("_call")]
    assert "google_maps_call" in calls
    body = {"id": "i", "model": "gemini-3.5-flash", "status": "completed", "usage": TOTALS}
    body["steps"] = [{"type": kind} for kind in calls]
    assert not read(body, "interactions.create", "google").flags


def discriminators(union):
    for one in typing.get_args(union) or (union,):
        if field := getattr(one, "model_fields", {}).get("type"):
            yield field.default
        elif typing.get_args(one):
            yield from discriminators(one)
