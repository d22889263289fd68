"""Anthropic's usage object: input, cache reads and cache writes stand side by side."""

from __future__ import annotations

from tokenmeter.money import total
from tokenmeter.providers.readings import Reading, Shape, has_unknown, lasting, put, said_by
from tokenmeter.providers.wire import JSON, count, part
from tokenmeter.usage import Quantity, Usage

_KNOWN_TTLS = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
#: Counts that are read, and those by which compatible hosts say the same again.
_KNOWN_COUNTS = frozenset(
    {
        *("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
        *("cached_tokens", "completion_tokens", "prompt_tokens", "thinking_tokens", "total_tokens"),
    }
)
#: Calls that are counted, of which only searches have a fee: a fetch and a search for tools cost their tokens, and code
#: is billed by its time, which is not stated. Source: https://platform.claude.com/docs/en/about-claude/pricing
_KNOWN_SERVER_TOOLS = frozenset(
    {"code_execution_requests", "tool_search_requests", "web_fetch_requests", "web_search_requests"}
)


def exclusive(usage: JSON, *, cache_ttl: str | None = None) -> Reading:
    """A usage whose ``input_tokens`` EXCLUDES what was read from and written to the cache: Anthropic's.

    Cache writes whose lifetime is not broken down are of the one that the request asked for (`cache_ttl`), else
    five-minute ones, flagged beside others that are stated to last longer. Server tools mean several prompts under one
    sum, so that no prompt size is known.
    Source: ``anthropic.types``: Usage, BetaUsage, the iterations, the managed agents' session and span usage.
    """
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    fresh = count(usage, "input_tokens", flags=flags)
    answer = count(usage, "output_tokens", flags=flags)
    put(quantities, "input", fresh or 0)
    put(quantities, "cache_read", count(usage, "cache_read_input_tokens", flags=flags) or 0)
    split = part(usage, "cache_creation", flags=flags)
    short = count(split, "ephemeral_5m_input_tokens", flags=flags) or 0
    hour = count(split, "ephemeral_1h_input_tokens", flags=flags) or 0
    written = count(usage, "cache_creation_input_tokens", flags=flags)
    if written is not None:
        whole = _KNOWN_TTLS.issubset(split) and not has_unknown(split, _KNOWN_TTLS)
        if short + hour > written or (short + hour < written and whole):
            flags.add("cache_write_mismatch")
        rest = max(written - short - hour, 0)
        if rest and lasting("cache_write_5m", cache_ttl, flags) == "cache_write_1h":
            hour += rest
        else:
            if rest and hour and cache_ttl is None and not whole:
                flags.add("cache_ttl_assumed")
            short += rest
    if has_unknown(split, _KNOWN_TTLS) or has_unknown(usage, _KNOWN_COUNTS):
        flags.add("unknown_token_class")
    put(quantities, "cache_write_5m", short)
    put(quantities, "cache_write_1h", hour)
    prompt: int | None = int(total(quantities.values()))
    put(quantities, "output", answer or 0)
    tools = part(usage, "server_tool_use", flags=flags)
    if tools:
        put(quantities, "web_searches", count(tools, "web_search_requests", flags=flags) or 0)
        if any(tools.get(name) for name in _KNOWN_SERVER_TOOLS):
            prompt = None
        if has_unknown(tools, _KNOWN_SERVER_TOOLS, "_requests"):
            flags.add("unknown_server_tool")
            others = [name for name in tools if name.endswith("_requests") and name not in _KNOWN_SERVER_TOOLS]
            for name in others:
                put(quantities, "server_tool_calls", count(tools, name, flags=flags) or 0)
    thinking = count(part(usage, "output_tokens_details", flags=flags), "thinking_tokens", flags=flags) or 0
    return said_by(Usage(quantities, thinking), prompt, flags, {"input": fresh, "output": answer})


SHAPES = (
    Shape(
        exclusive,
        own=frozenset(
            {
                "cache_creation",
                "cache_creation_input_tokens",
                "cache_read_input_tokens",
                "iterations",
                "server_tool_use",
            }
        ),
        whole=False,
    ),
)
