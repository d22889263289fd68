"""Usage in the clouds' own formats: Google's and Amazon Bedrock's."""

from __future__ import annotations

from typing import cast

from tokenmeter.dialects.shapes import MODALITIES, Reading, inclusive, put
from tokenmeter.dialects.wire import JSON, count, members
from tokenmeter.usage import Quantity, Usage

__all__ = ["native"]


def native(usage: JSON) -> Reading:
    """Google's ``usageMetadata`` or Amazon Bedrock's Converse usage, in either spelling.

    Raises:
        MalformedError: a count is no number.
    """
    return _converse(usage) if "inputTokens" in usage or "outputTokens" in usage else _gemini(usage)


def _converse(usage: JSON) -> Reading:
    """Input excludes the cache. Source: Amazon Bedrock API reference, TokenUsage."""
    quantities: dict[str, Quantity] = {}
    put(quantities, "input", count(usage, "inputTokens") or 0)
    put(quantities, "cache_read", count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount") or 0)
    hour = 0
    for entry in members(usage, "cacheDetails"):
        if entry.get("ttl") == "1h":
            hour += count(entry, "inputTokens") or 0
    written = count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount") or 0
    put(quantities, "cache_write_1h", hour)
    put(quantities, "cache_write_5m", max(written - hour, 0))
    prompt = int(sum(quantities.values()))
    put(quantities, "output", count(usage, "outputTokens") or 0)
    return Reading(Usage(quantities), prompt)


def _gemini(usage: JSON) -> Reading:
    """Prompt includes the cache; thoughts stand beside the candidates. Source: Gemini API, UsageMetadata."""
    names = _GEMINI_CAMEL if "promptTokenCount" in usage or "totalTokenCount" in usage else _GEMINI_SNAKE
    prompt = (count(usage, names["prompt"]) or 0) + (count(usage, names["tool"]) or 0)
    thoughts = count(usage, names["thoughts"]) or 0
    found = _gemini_modalities(usage, names["prompt_details"], names["size"])
    hits = _gemini_modalities(usage, names["cache_details"], names["size"])
    made = _gemini_modalities(usage, names["answer_details"], names["size"])
    return inclusive(
        {
            "prompt_tokens": prompt,
            "completion_tokens": (count(usage, names["answer"]) or 0) + thoughts,
            "prompt_tokens_details": {
                **found,
                "cached_tokens": count(usage, names["cached"]) or 0,
                "cached_tokens_details": hits,
            },
            "completion_tokens_details": {**made, "reasoning_tokens": thoughts},
        }
    )


_GEMINI_SNAKE = {
    "prompt": "prompt_token_count",
    "tool": "tool_use_prompt_token_count",
    "answer": "candidates_token_count",
    "thoughts": "thoughts_token_count",
    "cached": "cached_content_token_count",
    "prompt_details": "prompt_tokens_details",
    "cache_details": "cache_tokens_details",
    "answer_details": "candidates_tokens_details",
    "size": "token_count",
}


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


_GEMINI_CAMEL = {key: _camel(name) for key, name in _GEMINI_SNAKE.items()}


def _gemini_modalities(usage: JSON, name: str, size: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in members(usage, name):
        modality = str(cast("object", entry.get("modality")) or "").lower().rpartition(".")[2]
        if modality in MODALITIES:
            key = f"{modality}_tokens"
            sizes[key] = sizes.get(key, 0) + (count(entry, size) or 0)
    return sizes
