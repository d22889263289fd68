"""FakeProvider speaks Anthropic's wire format: answers pass the SDK's own types, strictly, and the books are right."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pydantic
import pytest

anthropic = pytest.importorskip("anthropic")

from anthropic import types  # noqa: E402
from anthropic.types import beta as beta_types  # noqa: E402
from anthropic.types import messages as batch_types  # noqa: E402

KEY = "sk-ant-api03-0123456789wxyz"
HELLO = {
    "model": "claude-sonnet-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello there"}],
}
METERS = {"input": 50, "cache_read": 300, "cache_write_5m": 20, "cache_write_1h": 30, "output": 40}


@pytest.fixture
def client(fake_provider):
    with anthropic.Anthropic(base_url=fake_provider.anthropic_url, api_key=KEY, max_retries=0) as made:
        yield made


def unknown_fields(value: Any, path: str = "") -> list[str]:
    """Fields that the SDK's type does not know, wherever they are."""
    if isinstance(value, pydantic.BaseModel):
        found = [f"{path}.{name}" for name in value.model_extra or {}]
        inner = [(name, getattr(value, name)) for name in type(value).model_fields]
        return found + [hit for name, field in inner for hit in unknown_fields(field, f"{path}.{name}")]
    if isinstance(value, list):
        return [hit for item in value for hit in unknown_fields(item, f"{path}[]")]
    return []


def strictly(cast_to: Any, body: bytes | str) -> Any:
    """`body` as `cast_to`, without any coercion and without fields the type lacks."""
    value = pydantic.TypeAdapter(cast_to).validate_json(body, strict=True)
    assert unknown_fields(value) == []
    return value


@pytest.fixture
def stream_of(fake_provider):
    """The decoded events of a streamed POST, as they came off the wire, each with its name."""

    def post(path: str = "/v1/messages", **changes: Any) -> list[dict[str, Any]]:
        request = urllib.request.Request(  # noqa: S310 - our own server
            fake_provider.url + path,
            data=json.dumps({**HELLO, "stream": True, **changes}).encode(),
            headers={"x-api-key": KEY, "anthropic-version": "2023-06-01", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
            blocks = response.read().decode().strip().split("\n\n")
        events = []
        for block in blocks:
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        return events

    return post


def test_a_message_is_a_strict_message(fake_provider, client):
    raw = client.messages.with_raw_response.create(**HELLO)
    message = strictly(types.Message, raw.http_response.content)
    assert message.content[0].text == "You said: Hello there"
    assert message.stop_reason == "end_turn"
    (truth,) = fake_provider.truth
    assert raw.headers["request-id"] == truth.request_id
    assert (truth.provider, truth.endpoint, truth.api_key_last4) == ("anthropic", "messages", "wxyz")
    assert (truth.response_id, truth.service_tier) == (message.id, "standard")
    assert truth.meters.output_tokens == message.usage.output_tokens == 6


def test_scripted_meters_appear_exclusive_on_the_wire(fake_provider, client):
    fake_provider.answer(meters=METERS, reasoning_tokens=10, speed="fast", inference_geo="us")
    usage = client.messages.create(**HELLO).usage
    assert usage.input_tokens == 50
    assert usage.cache_read_input_tokens == 300
    assert usage.cache_creation_input_tokens == 50
    assert usage.cache_creation.ephemeral_1h_input_tokens == 30
    assert usage.output_tokens_details.thinking_tokens == 10
    (truth,) = fake_provider.truth
    assert dict(truth.meters.quantities) == METERS
    assert (truth.consumptions[0].speed, truth.consumptions[0].geo) == ("fast", "us")
    assert truth.consumptions[0].prompt_tokens == 400


def test_a_scripted_usage_object_is_read_into_meters(fake_provider, client):
    fake_provider.answer(
        usage={
            "input_tokens": 5,
            "output_tokens": 7,
            "cache_creation_input_tokens": 9,
            "cache_read_input_tokens": None,
            "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
        }
    )
    client.messages.create(**HELLO)
    expected = {"input": 5, "output": 7, "cache_write_5m": 9, "web_searches": 2}
    assert dict(fake_provider.truth[0].meters.quantities) == expected


def test_stream_events_are_strict_and_in_order(fake_provider, stream_of):
    fake_provider.answer("All is well.", reasoning="Let me see.", tool_calls=[("go", {"to": "sea"})], meters=METERS)
    events = stream_of()
    for event in events:
        if event["type"] != "ping":
            strictly(types.RawMessageStreamEvent, json.dumps(event))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert "ping" in kinds
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    start, final = events[0]["message"]["usage"], events[-2]["usage"]
    assert (start["input_tokens"], start["cache_creation"]["ephemeral_1h_input_tokens"]) == (50, 30)
    assert start["output_tokens"] == 1  # a placeholder
    assert final["output_tokens"] == 40
    assert "service_tier" not in final


def test_the_sdk_assembles_the_stream(fake_provider, client):
    fake_provider.answer("All is well.", tool_calls=[("go", {"to": "the sea"})])
    with client.messages.stream(**HELLO) as stream:
        message = stream.get_final_message()
    assert message.content[0].text == "All is well."
    assert message.content[1].input == {"to": "the sea"}
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens == fake_provider.total.output_tokens


def test_web_searches_are_counted_and_shown(fake_provider, client):
    fake_provider.answer(meters={"input": 5, "output": 5, "web_searches": 2})
    raw = client.messages.with_raw_response.create(**HELLO)
    message = strictly(types.Message, raw.http_response.content)
    assert message.usage.server_tool_use.web_search_requests == 2
    assert [block.type for block in message.content].count("server_tool_use") == 2
    assert [block.type for block in message.content].count("web_search_tool_result") == 2


def test_a_demanded_tool_is_called_and_max_tokens_cut(client):
    tools = [{"name": "go", "input_schema": {"type": "object", "properties": {"to": {"type": "string"}}}}]
    called = client.messages.create(**HELLO, tools=tools, tool_choice={"type": "any"})
    assert called.content[0].name == "go"
    cut = client.messages.create(**{**HELLO, "max_tokens": 2})
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)


def test_beta_iterations_are_billed_each_at_its_own_model(fake_provider, client):
    fake_provider.answer(
        meters={"input": 10, "output": 5},
        iterations=[
            {"type": "compaction", "meters": {"input": 100, "output": 20}},
            {"type": "advisor_message", "model": "claude-opus-5", "meters": {"input": 30, "output": 7}},
        ],
    )
    raw = client.beta.messages.with_raw_response.create(**HELLO)
    message = strictly(beta_types.BetaMessage, raw.http_response.content)
    assert [entry.type for entry in message.usage.iterations] == ["compaction", "advisor_message", "message"]
    assert (message.usage.input_tokens, message.usage.output_tokens) == (10, 5)
    assert fake_provider.truth[0].endpoint in {"messages", "beta.messages"}  # by the SDK's version
    by_model = fake_provider.usage()
    assert dict(by_model["claude-sonnet-5"].quantities) == {"input": 110, "output": 25}
    assert dict(by_model["claude-opus-5"].quantities) == {"input": 30, "output": 7}


def test_beta_stream_events_are_strict(fake_provider, stream_of):
    fake_provider.answer(iterations=[{"type": "compaction", "meters": {"input": 100, "output": 20}}])
    events = stream_of("/v1/messages?beta=true")
    for event in events:
        if event["type"] != "ping":
            strictly(beta_types.BetaRawMessageStreamEvent, json.dumps(event))
    assert [entry["type"] for entry in events[-2]["usage"]["iterations"]] == ["compaction", "message"]


def test_counting_tokens_is_free(fake_provider, client):
    counted = client.messages.count_tokens(model=HELLO["model"], messages=HELLO["messages"])
    assert counted.input_tokens == client.messages.create(**HELLO).usage.input_tokens
    assert [truth.billed for truth in fake_provider.truth] == [False, True]


def test_batches_end_with_every_kind_of_result_and_bill_the_successes(fake_provider, client):
    fake_provider.fail(400, path="/v1/messages", for_model="bad")
    fake_provider.answer(path="/v1/messages", for_model="late", stop_reason="expired")
    fake_provider.answer(path="/v1/messages", for_model="dropped", stop_reason="canceled")
    requests = [
        {"custom_id": name, "params": {**HELLO, "model": name}}
        for name in ("claude-sonnet-5", "bad", "late", "dropped")
    ]
    made = strictly(
        batch_types.MessageBatch,
        client.messages.batches.with_raw_response.create(requests=requests).http_response.content,
    )
    assert (made.processing_status, made.request_counts.processing) == ("in_progress", 4)
    raw = client.messages.batches.with_raw_response.retrieve(made.id)
    ended = strictly(batch_types.MessageBatch, raw.http_response.content)
    assert ended.processing_status == "ended"
    results = list(client.messages.batches.results(made.id))
    assert [row.result.type for row in results] == ["succeeded", "errored", "expired", "canceled"]
    for row in results:
        strictly(batch_types.MessageBatchIndividualResponse, row.model_dump_json())
    (billed,) = fake_provider.billed
    assert billed.custom_id == "claude-sonnet-5"
    assert results[0].result.message.usage.service_tier == billed.service_tier == "batch"
    assert billed.consumptions[0].processing == "batch"


def test_errors_have_anthropics_shape(fake_provider, client):
    fake_provider.fail(529, message="Overloaded")
    with pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(**HELLO)
    assert caught.value.status_code == 529
    assert caught.value.body["error"] == {"type": "overloaded_error", "message": "Overloaded"}
    assert caught.value.request_id == fake_provider.truth[0].request_id == caught.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.post("/v1/messages", body={"messages": []}, cast_to=object)


def test_models_are_strict(client):
    listed = client.models.list()
    strictly(types.ModelInfo, client.models.with_raw_response.retrieve(listed.data[0].id).http_response.content)


def test_sessions_accumulate_usage(fake_provider, client):
    if not hasattr(client.beta, "sessions"):
        pytest.skip("this SDK has no sessions")
    made = client.beta.sessions.create(agent="agent_1", environment_id="env_1")
    said = {"type": "user.message", "content": [{"type": "text", "text": "Hello"}]}
    for _ in range(2):
        fake_provider.answer(meters={"input": 10, "output": 4}, fields={"list_cost": {"amount": "1.5"}})
        client.beta.sessions.events.send(made.id, events=[said])
    raw = client.beta.sessions.with_raw_response.retrieve(made.id)
    session = strictly(beta_types.BetaManagedAgentsSession, raw.http_response.content)
    assert (session.usage.input_tokens, session.usage.output_tokens) == (20, 8)
    assert session.usage.list_cost.amount == "3.0"
    assert fake_provider.total.total_tokens == 28
    kinds = [event.type for event in client.beta.sessions.events.list(made.id)]
    turn = ["user.message", "span.model_request_end", "agent.message", "session.usage", "session.status_idle"]
    assert kinds == turn * 2


def test_vertex_and_bedrock_urls_are_served(fake_provider):
    region = {"region": "us-east5", "project_id": "p", "access_token": "token-0123456789", "max_retries": 0}
    with anthropic.AnthropicVertex(base_url=f"{fake_provider.url}/v1", **region) as vertex:
        assert vertex.messages.create(**HELLO).usage.output_tokens == 6
        assert list(vertex.messages.create(**HELLO, stream=True))
    signed = {"aws_access_key": "AKIDEXAMPLE", "aws_secret_key": "secret", "aws_region": "us-east-1", "max_retries": 0}
    model = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    with anthropic.AnthropicBedrock(base_url=fake_provider.url, **signed) as bedrock:
        assert bedrock.messages.create(**{**HELLO, "model": model}).usage.output_tokens == 6
        with bedrock.messages.stream(**{**HELLO, "model": model}) as stream:
            assert stream.get_final_message().content[0].text == "You said: Hello there"
    assert [truth.endpoint for truth in fake_provider.billed] == ["messages"] * 4
    assert [truth.model for truth in fake_provider.billed] == ["claude-sonnet-5"] * 2 + [model] * 2
    assert fake_provider.truth[-1].api_key_last4 == "MPLE"
