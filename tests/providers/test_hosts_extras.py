"""What single hosts of OpenAI's format add to it, streamed as well."""

from __future__ import annotations

import json
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmeter.call import RequestFacts
from tokenmeter.providers import dialect_for
from tokenmeter.providers.openai.dialect import PLAIN

_CASES = tomllib.loads((Path(__file__).parent / "golden" / "reports.toml").read_text(encoding="utf-8"))["case"]
COMPOUND = json.loads(next(case["body"] for case in _CASES if case["name"].startswith("groq: a compound")))


def read(body, provider="groq"):
    dialect = dialect_for(provider, "chat.completions")
    return dialect.read(body, provider=provider, endpoint="chat.completions", request=RequestFacts())


def streamed(*chunks, provider="groq"):
    dialect = dialect_for(provider, "chat.completions")
    reader = dialect.stream(provider=provider, endpoint="chat.completions", request=RequestFacts())
    for chunk in chunks:
        reader.feed(chunk)
    assert reader.terminal
    return reader


def test_a_compound_system_says_the_same_streamed():
    tool = COMPOUND["choices"][0]["message"]["executed_tools"][0]
    begun = {"choices": [{"index": 0, "delta": {"role": "assistant", "executed_tools": [{**tool, "output": None}]}}]}
    ran = {"choices": [{"index": 0, "delta": {"executed_tools": [tool]}}]}
    said = {"id": "c", "usage": COMPOUND["usage"], "usage_breakdown": COMPOUND["usage_breakdown"]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x_groq": said}
    reader = streamed(*({"id": "c", "model": "groq/compound", **each} for each in (begun, ran, last)))
    seen, whole = reader.observation(), read(COMPOUND)
    assert seen.consumptions == whole.consumptions
    assert seen.flags == whole.flags == {"unknown_server_tool"}
    assert reader.body() is None  # it is not plain


def test_a_search_that_is_shown_at_the_beginning_of_a_stream_is_billed():
    found = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "web_search": [{"title": "x", "link": "y"}]}
    words = {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    last = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}], "usage": usage}
    reader = streamed(*({"id": "c", "model": "glm-4.6", **each} for each in (found, words, last)), provider="zai")
    assert dict(reader.observation().usage.quantities) == {"input": 10, "output": 2, "web_searches": 1}
    assert dialect_for("zai", "chat.completions").plain["chat.completions"](reader.body()) is None


@pytest.mark.parametrize("without", ["executed_tools", "usage_breakdown"])
def test_a_compound_answer_is_not_plain(without):
    body = json.loads(json.dumps(COMPOUND))
    body.pop(without, None)
    body["choices"][0]["message"].pop(without, None)
    assert PLAIN["chat.completions"](body) is None


@pytest.mark.parametrize(
    ("breakdown", "tokens", "flags"),
    [
        ({"models": [{"model": "a", "usage": {"prompt_tokens": 5, "completion_tokens": 5}}]}, 10, {"total_mismatch"}),
        ({"models": [{"model": "a", "usage": {}}]}, 3300, {"total_mismatch"}),
        ({"models": "a"}, 3300, {"malformed_count"}),
        ({"models": []}, 3300, set()),
        (None, 3300, set()),
    ],
    ids=["less than the whole", "nothing said", "no list", "empty", "none"],
)
def test_a_breakdown_that_does_not_add_up_says_so(breakdown, tokens, flags):
    usage = {"prompt_tokens": 3000, "completion_tokens": 300, "total_tokens": 3300}
    body = {"object": "chat.completion", "model": "groq/compound", "usage": usage, "usage_breakdown": breakdown}
    seen = read({**body, "choices": [{"message": {"content": "Hi"}}]})
    assert (seen.usage.total_tokens, seen.flags) == (tokens, flags)


@pytest.mark.parametrize(
    ("usage", "classes"),
    [
        ({"prompt_tokens_details": {"cache_write_tokens": 60}}, {"input": 40, "cache_write_30m": 60}),
        ({"prompt_tokens_details": {"cache_creation_tokens": 60}}, {"input": 40, "cache_write_5m": 60}),
        ({"prompt_tokens_details": {"cache_creation_input_tokens": 60}}, {"input": 40, "cache_write_5m": 60}),
        ({"cache_creation_input_tokens": 60}, {"input": 40, "cache_write_5m": 60}),
        (
            {"cache_creation_input_tokens": 60, "cache_creation": {"ephemeral_1h_input_tokens": 60}},
            {"input": 40, "cache_write_1h": 60},
        ),
        (
            {"prompt_tokens_details": {"cache_creation": {"ephemeral_5m_input_tokens": 60}}},
            {"input": 40, "cache_write_5m": 60},
        ),
        (
            {
                "cache_creation_input_tokens": 60,
                "prompt_tokens_details": {
                    "cache_creation_tokens": None,
                    "cache_creation_token_details": {"ephemeral_1h_input_tokens": 20},
                },
            },
            {"input": 40, "cache_write_1h": 20, "cache_write_5m": 40},
        ),
    ],
)
def test_what_a_cache_took_is_read_wherever_gateways_put_it(usage, classes):
    totals = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    seen = read({"object": "chat.completion", "model": "m", "usage": {**totals, **usage}}, provider="somebody")
    assert (dict(seen.usage.quantities), seen.flags) == ({**classes, "output": 7}, set())


@pytest.mark.parametrize(("provider", "heard", "billed"), [("groq", 3.2, 10), ("groq", 31.5, "31.5"), ("openai", 3, 3)])
@pytest.mark.parametrize("stated", ["duration", "usage"])
def test_a_host_may_bill_a_transcription_for_so_many_seconds_at_least(provider, heard, billed, stated):
    usage = {"usage": {"type": "duration", "seconds": heard}} if stated == "usage" else {"duration": heard}
    endpoint = "audio.transcriptions"
    dialect = dialect_for(provider, endpoint)
    body = {"task": "transcribe", "text": "Hi", **usage}
    seen = dialect.read(body, provider=provider, endpoint=endpoint, request=RequestFacts(model="whisper-large-v3"))
    assert dict(seen.usage.quantities) == {"seconds_audio": Decimal(billed)}


@pytest.mark.parametrize("model", ["sonar", "perplexity/sonar"])
def test_a_search_host_bills_the_request_by_either_name_of_its_model(model):
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    body = {"object": "chat.completion", "id": "c", "model": model, "choices": [], "usage": usage}
    seen = read(body, provider="perplexity")
    assert dict(seen.usage.quantities) == {"input": 10, "output": 2, "requests_low": 1}
