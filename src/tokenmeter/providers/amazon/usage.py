"""The usage object of Amazon Bedrock's Converse API: input excludes the cache."""

from __future__ import annotations

from tokenmeter.providers.shapes import Reading, Shape, put
from tokenmeter.providers.wire import JSON, count, members
from tokenmeter.usage import Quantity, Usage

__all__ = ["SHAPES", "converse"]


def converse(usage: JSON) -> Reading:
    """Converse's usage. Source: Amazon Bedrock API reference, TokenUsage.

    Raises:
        MalformedError: a count is no number.
    """
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


SHAPES = (Shape(converse, own=frozenset({"inputTokens", "outputTokens"})),)
