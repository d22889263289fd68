"""What an answer says is in no ledger, also where its counts stand beside it in one object."""

import json

import pytest

from tokenmeter.providers import observe

SAID = "what-nobody-may-read"
VECTOR = [0.4711, 0.4712]
COUNTED = {
    "llama": ("bedrock", "invoke_model", {"generation": SAID, "prompt_token_count": 20, "generation_token_count": 30}),
    "titan": (
        *("bedrock", "invoke_model"),
        {"inputTextTokenCount": 8, "results": [{"tokenCount": 3, "outputText": SAID, "completionReason": SAID}]},
    ),
    "titan's vector": ("bedrock", "invoke_model", {"embedding": VECTOR, "inputTextTokenCount": 8}),
    "converse": ("bedrock", "converse", {"inputTokens": 3, "outputTokens": 4, "output": {"message": {"text": SAID}}}),
    "ollama": (
        *("ollama", "/api/chat"),
        {"message": {"content": SAID, "tool_calls": [{"arguments": {"x_count": 4711}}]}, "context": [4711, 4712]}
        | {"prompt_eval_count": 26, "eval_count": 298},
    ),
    "ollama's vector": ("ollama", "/api/embed", {"embeddings": [VECTOR], "prompt_eval_count": 8}),
    "a row of somebody's own": (
        *("openai", "responses"),
        {
            "input_tokens": 8,
            "output_tokens": 2,
            "answer": SAID,
            "messages": [{"content": SAID}],
            "parsed": {"pay": 4711},
        },
    ),
    "claude's counts": ("anthropic", "messages", {"input_tokens": 8, "output_tokens": 2, "content": SAID}),
    "gemini's counts": (
        *("google", "models.generate_content"),
        {"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 10, "text": SAID},
    ),
    "gemini's, by Python's names": (
        *("google", "models.generate_content"),
        {"prompt_token_count": 8, "candidates_token_count": 2, "text": SAID, "content": {"parts": [{"text": SAID}]}},
    ),
    "an interaction": ("google", "interactions", {"total_input_tokens": 5, "total_output_tokens": 5, "text": SAID}),
    "a transcription": ("openai", "audio.transcriptions", {"type": "duration", "seconds": 7, "text": SAID}),
    "pages": ("mistral", "/v1/ocr", {"pages_processed": 3, "pages": [{"markdown": SAID}]}),
}


@pytest.mark.parametrize("case", COUNTED)
def test_of_a_body_that_holds_its_counts_itself_only_they_are_kept(case):
    provider, endpoint, body = COUNTED[case]
    seen = observe(body, provider=provider, endpoint=endpoint, model="m")
    kept = json.dumps(seen.raw_usage)
    assert seen.consumptions
    assert "usage_unknown" not in seen.flags
    assert json.loads(kept)
    assert SAID not in kept
    assert "471" not in kept


def test_a_usage_object_by_itself_is_kept_whole():
    """What decides its price and every count of it, those that nobody knows included."""
    usage = {
        "input_tokens": 1000,
        "input_tokens_details": {"cached_tokens": 300, "modality": "TEXT", "new_kind": 4},
        "output_tokens": "20",
        "num_sources_used": 0,
        "cost": 0.25,
        "is_byok": False,
        "service_tier": "flex",
        "cache_creation": {"ephemeral_1h_input_tokens": 5},
        "server_tool_use": {"web_search_requests": 2},
        "iterations": [{"type": "message", "model": "claude-sonnet-4-5", "input_tokens": 3}],
        "output_tokens_details": None,
    }
    assert observe(usage, provider="openai", endpoint="responses", model="gpt-5").raw_usage == usage
