"""Which format a usage object is in, told by its own keys."""

from __future__ import annotations

from tokenmeter.dialects.clouds import native
from tokenmeter.dialects.shapes import Reading, exclusive, inclusive
from tokenmeter.dialects.wire import JSON, amount, section
from tokenmeter.usage import Usage

__all__ = ["is_usage", "read_usage", "usage_of"]

_INCLUSIVE_KEYS = frozenset({"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"})
_EXCLUSIVE_KEYS = frozenset(
    {"cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation", "iterations", "server_tool_use"}
)
_NATIVE_KEYS = frozenset({"inputTokens", "outputTokens", "promptTokenCount", "prompt_token_count", "totalTokenCount"})


def is_usage(body: JSON) -> bool:
    """Whether `body` is itself a usage object, of whatever format."""
    return not (_INCLUSIVE_KEYS.isdisjoint(body) and _NATIVE_KEYS.isdisjoint(body)) or "seconds" in body


def usage_of(body: JSON) -> JSON:
    """The usage object in `body`, which may be one itself; empty when it has none."""
    return body if is_usage(body) else section(body, "usage")


def read_usage(usage: JSON) -> Reading | None:
    """Read a usage object by its own keys; None when no familiar one is in it.

    Raises:
        MalformedError: a count is no number.
    """
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        return inclusive(usage)
    if not _EXCLUSIVE_KEYS.isdisjoint(usage):
        return exclusive(usage)
    if not _INCLUSIVE_KEYS.isdisjoint(usage):
        return inclusive(usage)
    if not _NATIVE_KEYS.isdisjoint(usage):
        return native(usage)
    if (seconds := amount(usage, "seconds")) is not None:
        return Reading(Usage({"seconds_audio": seconds}))
    return None
