"""Google's usage object, ``usageMetadata``: the prompt includes the cache, thoughts stand beside the candidates."""

from __future__ import annotations

from typing import cast

from tokenmeter.providers.shapes import MODALITIES, Reading, Shape, said_by, split_input, split_output
from tokenmeter.providers.wire import JSON, count, members
from tokenmeter.usage import Quantity, Usage

__all__ = ["SHAPES", "usage_metadata"]


def usage_metadata(usage: JSON) -> Reading:
    """Google's usage, in either spelling. A count that is left out is 0, except the prompt's.

    Source: Gemini API, UsageMetadata.
    """
    flags: set[str] = set()
    names = _CAMEL if "promptTokenCount" in usage or "totalTokenCount" in usage else _SNAKE
    prompt = count(usage, names["prompt"], flags=flags)
    thoughts = count(usage, names["thoughts"], flags=flags) or 0
    found = _modalities(usage, names["prompt_details"], names["size"], flags)
    hits = _modalities(usage, names["cache_details"], names["size"], flags)
    made = _modalities(usage, names["answer_details"], names["size"], flags)
    tools = count(usage, names["tool"], flags=flags) or 0
    answer = (count(usage, names["answer"], flags=flags) or 0) + thoughts
    sent = None if prompt is None else prompt + tools
    quantities: dict[str, Quantity] = {}
    cached = count(usage, names["cached"], flags=flags) or 0
    split_input(quantities, sent or 0, flags, cached=cached, parts=found, hits=hits or None)
    split_output(quantities, answer, made, flags)
    return said_by(Usage(quantities, thoughts), sent, flags, {"input": sent, "output": answer})


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


def _modalities(usage: JSON, name: str, size: str, flags: set[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for entry in members(usage, name):
        modality = str(cast("object", entry.get("modality")) or "").lower().rpartition(".")[2]
        if modality in MODALITIES:
            sizes[modality] = sizes.get(modality, 0) + (count(entry, size, flags=flags) or 0)
    return sizes


SHAPES = (
    Shape(
        usage_metadata,
        own=frozenset({"promptTokenCount", "prompt_token_count", "totalTokenCount"}),
        nested=("usageMetadata", "usage_metadata"),
    ),
)
