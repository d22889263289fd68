"""Usage objects of Amazon Bedrock: the Converse API's, whose input excludes the cache, and Llama's and Titan's bodies.

What streams of `InvokeModel` end with counts like Converse, under other names.
"""

from __future__ import annotations

from tokenmeter.money import total
from tokenmeter.providers.readings import Reading, Shape, put, said_by
from tokenmeter.providers.wire import JSON, count, entries, section
from tokenmeter.usage import Quantity, Usage


def converse(usage: JSON) -> Reading:
    """Converse's usage. Source: Amazon Bedrock API reference, TokenUsage."""
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    fresh = count(usage, "inputTokens", "inputTokenCount", flags=flags)
    answer = count(usage, "outputTokens", "outputTokenCount", flags=flags)
    put(quantities, "cache_read", count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount", flags=flags) or 0)
    hour = stated = 0
    lifetimes = entries(usage, "cacheDetails", flags=flags)
    for entry in lifetimes:
        size = count(entry, "inputTokens", flags=flags) or 0
        stated += size
        if entry.get("ttl") not in ("5m", "1h"):
            flags.add("cache_ttl_assumed")
        if entry.get("ttl") == "1h":
            hour += size
    written = count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount", flags=flags) or 0
    if written != stated and lifetimes:
        flags.add("cache_write_mismatch")
    put(quantities, "cache_write_1h", hour)
    put(quantities, "cache_write_5m", max(written - hour, 0))
    cached = int(total(quantities.values()))
    fresh, answer = _by_total(usage, fresh, answer, cached, flags)
    put(quantities, "input", fresh or 0)
    prompt = cached + (fresh or 0)
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": fresh, "output": answer})


def _by_total(
    usage: JSON, fresh: int | None, answer: int | None, cached: int, flags: set[str]
) -> tuple[int | None, int | None]:
    """Both sides, either of which follows from the total where it is not stated, or is 0 and the total denies that.

    Whether the total holds what the cache served is said nowhere, and bodies differ: beside a cache nothing follows.
    """
    doubts: set[str] = set()
    stated = count(usage, "totalTokens", flags=doubts)
    if "malformed_count" in doubts:
        flags.add("total_mismatch")  # the parts count
        return fresh, answer
    flags |= doubts
    gap = 0 if stated is None else stated - (fresh or 0) - (answer or 0)
    if fresh is not None and answer is not None and gap not in {0, cached}:
        flags.add("total_mismatch")
    if gap <= 0 or cached:
        return fresh, answer
    if not fresh:
        return (gap, answer) if answer else (None, None)
    return fresh, answer or gap


def llama(usage: JSON) -> Reading:
    """What Llama's bodies count; the last of a stream has it in its metrics.

    Source: Amazon Bedrock user guide, Meta Llama models, Response.
    """
    if usage.get("prompt_token_count") is None and (metrics := section(usage, _METRICS)):
        return converse(metrics)
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    prompt = count(usage, "prompt_token_count", flags=flags)
    answer = count(usage, "generation_token_count", flags=flags)
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": prompt, "output": answer})


def titan(usage: JSON) -> Reading:
    """What Titan's bodies count: an embedding its text, a text each of its answers as well.

    Source: Amazon Bedrock user guide, Amazon Titan models, Response.
    """
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    prompt = count(usage, "inputTextTokenCount", flags=flags)
    answers = [count(one, "tokenCount", flags=flags) for one in entries(usage, "results", flags=flags)]
    answer = None if not answers or None in answers else sum(one or 0 for one in answers)
    put(quantities, "input", prompt or 0)
    put(quantities, "output", answer or 0)
    return said_by(Usage(quantities), prompt, flags, {"input": prompt, "output": answer})


#: What a stream of `InvokeModel` used, in its last event.
_METRICS = "amazon-bedrock-invocationMetrics"

SHAPES = (
    Shape(
        converse,
        own=frozenset({"inputTokens", "outputTokens", "inputTokenCount", "outputTokenCount"}),
        nested=(_METRICS,),
        beside={
            "tier": ("serviceTier", "type"),
            "speed": ("performanceConfig", "latency"),
            "model": ("trace", "promptRouter", "invokedModelId"),
            "id": ("ResponseMetadata", "RequestId"),
        },
        last=(("metadata", "usage"), (_METRICS,)),
    ),
    Shape(llama, own=frozenset({"prompt_token_count", "generation_token_count"})),
    Shape(titan, own=frozenset(("inputTextTokenCount",))),
)
