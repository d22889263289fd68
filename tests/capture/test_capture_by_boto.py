"""Amazon's own SDK against a server of ours: what it gives back, recorded by hand, is priced as Amazon bills it."""

from __future__ import annotations

import base64
import json
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.importing import import_usage
from tokenmeter.money import total

boto3 = pytest.importorskip("boto3")

CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
MESSAGES = [{"role": "user", "content": [{"text": "Hi"}]}]
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 1000, "outputTokens": 100, "totalTokens": 1100},
    "metrics": {"latencyMs": 5},
}
#: (1000 x 3 + 100 x 15) / 1000000, a tenth more for a profile of one region.
PRICE = Decimal("0.00495")


@pytest.fixture
def bedrock(provider):
    key = {"aws_access_key_id": "AKIA0123456789", "aws_secret_access_key": "secret"}
    client = boto3.client("bedrock-runtime", endpoint_url=provider.url, region_name="us-west-2", **key)
    yield client
    client.close()


@pytest.fixture
def ledger():
    made = tokenmeter.make_meter(store="memory:", config={})
    yield made
    made.close()


def test_an_answer_of_converse_is_recorded_once_under_the_billers_one_name(bedrock, provider, ledger):
    provider.answer(body=ANSWER, headers={"x-amzn-RequestId": "0b1f4c2e"})
    answer = bedrock.converse(modelId=CLAUDE, messages=MESSAGES)
    entry = ledger.record(answer, provider="bedrock", endpoint="converse", model=CLAUDE)
    assert (entry.provider, entry.response_id, entry.list_cost) == ("aws", "0b1f4c2e", PRICE)
    for name in ("aws", "aws.bedrock", "Bedrock"):
        assert ledger.record(answer, provider=name, endpoint="converse", model=CLAUDE) is None
    assert [row["provider"] for row in ledger.report("provider").rows] == ["aws"]


@pytest.mark.parametrize(
    ("said", "flag"),
    [
        ({"serviceTier": {"type": "flex"}}, "unknown_service_tier"),
        ({"serviceTier": {"type": "priority"}}, "unknown_service_tier"),
        ({"performanceConfig": {"latency": "optimized"}}, "unknown_speed"),
        ({"serviceTier": {"type": "default"}}, None),
        ({"performanceConfig": {"latency": "standard"}}, None),
    ],
    ids=str,
)
def test_tiers_and_speeds_whose_price_nobody_knows_are_not_the_standard_ones(bedrock, provider, ledger, said, flag):
    provider.answer(body={**ANSWER, **said})
    answer = bedrock.converse(modelId=CLAUDE, messages=MESSAGES)
    entry = ledger.record(answer, provider="aws", endpoint="converse", model=CLAUDE)
    assert (entry.cost_source, entry.list_cost) == (("unpriced", None) if flag else ("computed", PRICE))
    assert {one for one in entry.flags if not one.startswith("assumed_usd=")} == ({flag} if flag else set())


def test_a_router_is_priced_as_the_model_that_it_chose(bedrock, provider, ledger):
    chosen = f"arn:aws:bedrock:us-west-2:123456789012:inference-profile/{CLAUDE}"
    provider.answer(body={**ANSWER, "trace": {"promptRouter": {"invokedModelId": chosen}}})
    router = "arn:aws:bedrock:us-west-2:123456789012:default-prompt-router/anthropic.claude:1"
    answer = bedrock.converse(modelId=router, messages=MESSAGES)
    entry = ledger.record(answer, provider="aws", endpoint="converse", model=router)
    assert (entry.response_model, entry.list_cost) == (chosen, PRICE)


COUNTS = {"inputTokenCount": 1000, "outputTokenCount": 100, "invocationLatency": 9, "firstByteLatency": 1}
METRICS = {"amazon-bedrock-invocationMetrics": COUNTS}


@pytest.mark.parametrize(
    ("model", "body", "used", "cost"),
    [
        (CLAUDE, {"metadata": {"usage": ANSWER["usage"], "metrics": {"latencyMs": 5}}}, (1000, 100), PRICE),
        (CLAUDE, {"type": "message_stop", **METRICS}, (1000, 100), PRICE),
        (
            "us.meta.llama3-3-70b-instruct-v1:0",
            {"generation": "", "prompt_token_count": None, "generation_token_count": 100, **METRICS},
            (1000, 100),
            Decimal("0.000792"),  # 1100 x 0.72 / 1000000
        ),
        (
            "amazon.titan-text-express-v1",
            {"inputTextTokenCount": 1000, "results": [{"tokenCount": 60}, {"tokenCount": 40}]},
            (1000, 100),
            Decimal("0.00026"),  # (1000 x 0.2 + 100 x 0.6) / 1000000
        ),
        (
            "amazon.titan-embed-text-v2:0",
            {"embedding": [0.1], "inputTextTokenCount": 1000},
            (1000, 0),
            Decimal("0.00002"),  # 1000 x 0.02 / 1000000
        ),
    ],
    ids=["the last event of a stream", "Claude's metrics", "Llama's metrics", "Titan", "Titan's embeddings"],
)
def test_bodies_and_events_that_are_read_from_invoke_model_are_counted(ledger, model, body, used, cost):
    entry = ledger.record(body, provider="aws", endpoint="invoke_model", model=model)
    assert (entry.usage.input_tokens, entry.usage.output_tokens) == used
    assert (entry.list_cost, entry.cost_source, entry.flags) == (cost, "computed", ())


WORDS = {"contentBlockDelta": {"delta": {"text": "Hi"}, "contentBlockIndex": 0}}
LAST = {"metadata": {"usage": ANSWER["usage"], "metrics": {"latencyMs": 5}}}
CONVERSED = [{"messageStart": {"role": "assistant"}}, WORDS, {"messageStop": {"stopReason": "end_turn"}}, LAST]
LLAMA = "us.meta.llama3-3-70b-instruct-v1:0"
LLAMAS = [
    {"generation": "Hi", "prompt_token_count": 1000, "generation_token_count": 1, "stop_reason": None},
    {"generation": "!", "prompt_token_count": None, "generation_token_count": 2, "stop_reason": None},
    {"generation": "", "prompt_token_count": None, "generation_token_count": 100, "stop_reason": "stop", **METRICS},
]


@pytest.mark.parametrize(
    ("model", "events", "costs"),
    [
        (CLAUDE, CONVERSED, [PRICE]),
        (CLAUDE, CONVERSED * 2, [PRICE, PRICE]),
        (LLAMA, LLAMAS, [Decimal("0.000792")]),
    ],
    ids=["Converse", "two of them", "Llama"],
)
def test_all_events_of_a_stream_are_what_its_last_one_says(ledger, model, events, costs):
    here = {"provider": "aws", "endpoint": "converse_stream", "model": model}
    assert ledger.price(events, **here).list_cost == total(costs)
    ledger.record(events, **here)
    assert [(entry.list_cost, entry.flags) for entry in ledger.entries()] == [(cost, ()) for cost in costs]


TITANS = [
    {"outputText": "Hi", "totalOutputTextTokenCount": None, "completionReason": None, "inputTextTokenCount": 1000},
    {
        "outputText": "!",
        "totalOutputTextTokenCount": 100,
        "completionReason": "FINISH",
        "inputTextTokenCount": 1000,
        **METRICS,
    },
]
MESSAGE = {"id": "msg_bdrk_1", "type": "message", "model": "claude-sonnet-4-5-20250929", "content": []}
CLAUDES = [
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 1000, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi!"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100}},
    {"type": "message_stop", **METRICS},
]


@pytest.mark.parametrize("kept", [lambda data: data, lambda data: base64.b64encode(data).decode()], ids=["boto", "log"])
@pytest.mark.parametrize(
    ("model", "events", "cost"),
    [
        (CLAUDE, CLAUDES, PRICE),
        (LLAMA, LLAMAS, Decimal("0.000792")),
        ("amazon.titan-text-express-v1", TITANS, Decimal("0.00026")),
    ],
    ids=["Claude", "Llama", "Titan"],
)
def test_the_frames_of_a_stream_are_what_is_in_them(ledger, model, events, cost, kept):
    here = {"provider": "aws", "endpoint": "invoke_model_with_response_stream", "model": model}
    frames = [{"chunk": {"bytes": kept(json.dumps(event).encode())}} for event in events]
    entry = ledger.record(frames, **here)
    assert (entry.usage.input_tokens, entry.usage.output_tokens) == (1000, 100)
    assert (entry.list_cost, entry.cost_source, entry.flags) == (cost, "computed", ())
    for broken_off in (frames[:1], events[:1]):
        doubt = ledger.price(broken_off, **here)
        assert {"estimated", "usage_unknown"} & set(doubt.flags), "what was generated by then is not the whole"


@pytest.mark.parametrize("events", [[*CONVERSED, ANSWER], [ANSWER, *CONVERSED]])
def test_a_whole_answer_among_the_events_of_a_stream_is_not_lost(ledger, events):
    price = ledger.price(events, provider="aws", endpoint="converse", model=CLAUDE)
    assert price.list_cost == total([PRICE, PRICE])


def test_the_last_event_of_coheres_stream_is_read_like_an_answer(ledger):
    usage = {"billed_units": {"input_tokens": 1000, "output_tokens": 100}, "tokens": {"input_tokens": 1200}}
    event = {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": usage}}
    entry = ledger.record(event, provider="cohere", endpoint="chat", model="command-a-03-2025")
    assert entry.list_cost == Decimal("0.0035")  # (1000 x 2.50 + 100 x 10) / 1000000


def test_an_import_knows_a_biller_by_any_of_its_names(ledger, tmp_path):
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    body = {"id": "c1", "object": "chat.completion", "created": 1_795_000_000, "model": CLAUDE, "usage": usage}
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps(body) + "\n", encoding="utf-8")
    import_usage(ledger, [kept], provider="bedrock")
    assert [entry.provider for entry in ledger.entries()] == ["aws"]
    assert ledger.record(body, provider="aws", endpoint="chat.completions", at="2026-11-18") is None


@pytest.mark.parametrize(
    ("named", "billed"), [("gemini", "google"), ("Vertex", "google"), ("grok", "x-ai"), ("Acme", "Acme")]
)
def test_a_biller_has_one_name_in_the_ledger_and_one_that_nobody_knows_its_own(ledger, named, billed):
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    entry = ledger.record(usage, provider=named, endpoint="chat.completions", model="m", response_id="r")
    assert entry.provider == billed
