"""The plain shape of Anthropic's messages, read in one go: one model, one prompt, every count said and none in doubt.

What is not plain is left to the general reader (`tokenmeter.providers.anthropic.bodies`), which says the same of what
is: tests/properties hold the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenmeter.call import PlainRequest
from tokenmeter.providers.base import Plain, PlainReader
from tokenmeter.providers.prompts import are_functions, first_limit, measure_plain, named
from tokenmeter.providers.wire import JSON, LONGEST_NAME, MOST, is_object, type_of

_COUNTS = frozenset({"input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"})
#: Keys that say nothing more when they hold nothing.
_USAGE = _COUNTS | {
    "cache_creation",
    "inference_geo",
    "output_tokens_details",
    "server_tool_use",
    "service_tier",
    "speed",
}
_PLAIN_SPEEDS = (None, "standard")
_PLAIN_GEOGRAPHIES = (None, "global", "not_available")


_WRITTEN = ("cache_creation_input_tokens",)
_BY_SERVER = ("web_search_tool_result", "server_tool_use")


def _says(counts: JSON, names: Iterable[str]) -> bool:
    """Whether any of `counts` is more than nothing, or no count."""
    for name in names:
        value = counts.get(name)
        if value is not None and (type(value) is not int or value):
            return True
    return False


def _thinking(details: Any) -> int | None:
    """Tokens of thinking among the output; None where there is any doubt."""
    if details is None:
        return 0
    if not is_object(details) or not details.keys() <= {"thinking_tokens"}:
        return None
    thinking = details.get("thinking_tokens", 0)
    return thinking if type(thinking) is int and 0 <= thinking <= MOST else None


def read_message(body: JSON) -> Plain | None:
    """A message, or what a stream of one came to."""
    usage, get = body.get("usage"), body.get
    if not is_object(usage) or not _USAGE.issuperset(usage) or get("stop_reason") == "refusal" or get("container"):
        return None
    content: Any = get("content")
    searched = False
    for block in content if type_of(content) is list else ():
        searched = searched or (type_of(block) is dict and block.get("type") in _BY_SERVER)
    fresh, answer = usage.get("input_tokens"), usage.get("output_tokens")
    cached = usage.get("cache_read_input_tokens")
    if cached is None:
        cached = 0
    if type(fresh) is not int or type(answer) is not int or type(cached) is not int:
        return None
    if not (0 <= fresh <= MOST and 0 < answer <= MOST and 0 <= cached <= MOST and fresh + cached):
        return None
    thinking = _thinking(usage.get("output_tokens_details"))
    tier = usage.get("service_tier")
    odd = tier == "batch" or thinking is None or usage.get("speed") not in _PLAIN_SPEEDS or _says(usage, _WRITTEN)
    if odd or searched or usage.get("server_tool_use") or usage.get("inference_geo") not in _PLAIN_GEOGRAPHIES:
        return None
    split = usage.get("cache_creation")
    if split and (not is_object(split) or _says(split, split)):
        return None
    quantities: dict[str, int] = {}
    if fresh:
        quantities["input"] = fresh
    if cached:
        quantities["cache_read"] = cached
    quantities["output"] = answer
    return Plain(get("model"), get("id"), tier, quantities, fresh + cached, thinking or 0, usage)


#: Endpoint -> the ``type`` that a plain answer of it says it is, and its reader.
PLAIN: dict[str, PlainReader] = {"messages": PlainReader("type", "message", read_message)}


# -- requests

#: Fields that say nothing of the prompt, or of how much may be answered, beyond what is read here.
_REQUEST = frozenset({
    *("model", "messages", "system", "max_tokens", "temperature", "top_p", "top_k", "stream", "stop_sequences"),
    *("metadata", "service_tier", "thinking", "tools", "tool_choice"),
})  # fmt: skip
#: A request of no others has nothing put before its prompt: it offers no tools, and asks for no form of the answer.
BARE = _REQUEST - {"tools", "tool_choice", "thinking"} | {"cache_control", "inference_geo", "speed"}
_PROMPT = frozenset({"messages", "system", "tools"})


def read_request(body: JSON) -> PlainRequest | None:
    """A request of plain texts."""
    get = body.get
    model = get("model")
    if not _REQUEST.issuperset(body) or type(model) is not str or not 0 < len(model) <= LONGEST_NAME:
        return None
    if "tools" in body and not are_functions(body["tools"], (None, "custom")):
        return None
    measured = measure_plain(body, _PROMPT)
    if measured is None:
        return None
    limit, tier = first_limit(get("max_tokens")), named(get("service_tier"))
    return PlainRequest(
        model, measured[0], (), limit, 1, bool(get("stream")), tier, cache_writes="none", bare=BARE.issuperset(body)
    )


PLAIN_REQUESTS = {"messages": read_request}
