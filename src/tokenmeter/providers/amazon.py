"""The usage object of Amazon Bedrock's Converse API: input excludes the cache."""

from __future__ import annotations

from tokenmeter.money import total
from tokenmeter.providers.readings import Reading, Shape, put, said_by
from tokenmeter.providers.wire import JSON, count, entries
from tokenmeter.usage import Quantity, Usage


def converse(usage: JSON) -> Reading:
    """Converse's usage. Source: Amazon Bedrock API reference, TokenUsage."""
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    fresh, answer = count(usage, "inputTokens", flags=flags), count(usage, "outputTokens", flags=flags)
    put(quantities, "input", fresh or 0)
    put(quantities, "cache_read", count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount", flags=flags) or 0)
    hour = 0
    for entry in entries(usage, "cacheDetails", flags=flags):
        if entry.get("ttl") not in ("5m", "1h"):
            flags.add("cache_ttl_assumed")
        if entry.get("ttl") == "1h":
            hour += count(entry, "inputTokens", flags=flags) or 0
    written = count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount", flags=flags) or 0
    put(quantities, "cache_write_1h", hour)
    put(quantities, "cache_write_5m", max(written - hour, 0))
    prompt = int(total(quantities.values()))
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": fresh, "output": answer})


SHAPES = (Shape(converse, own=frozenset({"inputTokens", "outputTokens"})),)
