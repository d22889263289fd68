"""Google's usage object, ``usageMetadata``: the prompt includes the cache, thoughts stand beside the candidates."""

from __future__ import annotations

from typing import cast

from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.shapes import MODALITIES, Reading, Shape
from tokenmeter.providers.wire import JSON, count, members

__all__ = ["SHAPES", "usage_metadata"]


def usage_metadata(usage: JSON) -> Reading:
    """Google's usage, in either spelling. Source: Gemini API, UsageMetadata.

    Raises:
        MalformedError: a count is no number.
    """
    names = _CAMEL if "promptTokenCount" in usage or "totalTokenCount" in usage else _SNAKE
    prompt = (count(usage, names["prompt"]) or 0) + (count(usage, names["tool"]) or 0)
    thoughts = count(usage, names["thoughts"]) or 0
    found = _modalities(usage, names["prompt_details"], names["size"])
    hits = _modalities(usage, names["cache_details"], names["size"])
    made = _modalities(usage, names["answer_details"], names["size"])
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


_SNAKE = {
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


_CAMEL = {key: _camel(name) for key, name in _SNAKE.items()}


def _modalities(usage: JSON, name: str, size: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in members(usage, name):
        modality = str(cast("object", entry.get("modality")) or "").lower().rpartition(".")[2]
        if modality in MODALITIES:
            key = f"{modality}_tokens"
            sizes[key] = sizes.get(key, 0) + (count(entry, size) or 0)
    return sizes


SHAPES = (
    Shape(
        usage_metadata,
        own=frozenset({"promptTokenCount", "prompt_token_count", "totalTokenCount"}),
        nested=("usageMetadata", "usage_metadata"),
    ),
)
