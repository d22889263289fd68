"""Usage objects of Amazon Bedrock: the Converse API's, whose input excludes the cache, and Llama's own bodies."""

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


def llama(usage: JSON) -> Reading:
    """What Llama's bodies count. Source: Amazon Bedrock user guide, Meta Llama models, Response."""
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    prompt = count(usage, "prompt_token_count", flags=flags)
    answer = count(usage, "generation_token_count", flags=flags)
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": prompt, "output": answer})


SHAPES = (
    Shape(converse, own=frozenset({"inputTokens", "outputTokens"})),
    Shape(llama, own=frozenset({"prompt_token_count", "generation_token_count"})),
)
