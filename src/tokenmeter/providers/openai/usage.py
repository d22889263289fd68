"""OpenAI's usage object, and that of every host that speaks its format: totals INCLUDE their breakdowns.

And what single hosts of the format bill beside tokens, and where their usage says so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.providers.wire import (
    JSON,
    MODALITIES,
    Reading,
    Shape,
    amount,
    count,
    has_unknown,
    members,
    part,
    put,
    said_by,
    section,
    split_input,
    split_output,
    text,
)
from tokenmeter.usage import Quantity, Usage

_MODALITY_KEYS = tuple(f"{name}_tokens" for name in MODALITIES)
_WRITE_KEYS = frozenset({"cache_write_tokens", "cache_creation_tokens", "cache_write_tokens_details"})
#: Breakdowns that are known to be inside a total; any other ``*_tokens`` beside them is flagged.
_KNOWN_DETAILS = frozenset(
    {
        "accepted_prediction_tokens",
        "audio_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "image_tokens",
        "reasoning_tokens",
        "rejected_prediction_tokens",
        "text_tokens",
        "thinking_tokens",
        "video_tokens",
    }
)
_KNOWN_HITS = frozenset(f"cached_{name}_tokens" for name in ("text", *MODALITIES))
#: Counts of a usage object itself that are read, or known to be inside another.
_KNOWN_COUNTS = frozenset(
    {
        *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens", "reasoning_tokens"),
        *("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "cached_tokens", "num_cached_tokens"),
        *("cache_read_input_tokens", "cache_creation_input_tokens", "citation_tokens"),
    }
)
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details")
#: Where hosts state beside the prompt how much of it a cache served.
_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens", "cache_read_input_tokens")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")


def inclusive(
    usage: JSON,
    *,
    write_meter: str = "cache_write_30m",
    output_meter: str = "output",
    hidden_output: bool = False,
    reasoning_apart: bool = False,
) -> Reading:
    """A usage whose totals INCLUDE their breakdowns: OpenAI's, and that of every host that speaks its format.

    Source: ``openai.types``: CompletionUsage, ResponseUsage, BatchUsage, RealtimeResponseUsage, ImagesResponse.Usage.

    Args:
        usage: The usage object.
        write_meter: Class of cache writes whose lifetime is not broken down.
        output_meter: Class of output that no breakdown claims (images: ``output_image``).
        reasoning_apart: Whether reasoning is billed by itself, and is no part of the answer's tokens.
        hidden_output: Whether what ``total_tokens`` has beyond its two parts is output the host does not itemise.
    """
    flags: set[str] = set()
    details = part(usage, *_INPUT_DETAILS, flags=flags)
    output_details = part(usage, *_OUTPUT_DETAILS, flags=flags)
    reasoning = count(output_details, "reasoning_tokens", flags=flags)
    if reasoning is None:
        reasoning = count(usage, "reasoning_tokens", flags=flags) or 0
    if reasoning_apart:
        reasoning = 0
    prompt, answer = _totals(usage, reasoning, flags, hidden_output=hidden_output)
    if answer is not None and reasoning > answer:
        flags.add("reasoning_exceeds_output")
    quantities = _cache_writes(usage, details, write_meter, flags)
    cached, hits = _cached(usage, details, flags)
    split_input(quantities, prompt or 0, flags, cached=cached, parts=_modalities(details, flags), hits=hits)
    words = None if output_meter == "output" else count(output_details, "text_tokens", flags=flags)
    split_output(quantities, answer or 0, _modalities(output_details, flags), flags, meter=output_meter, words=words)
    # A breakdown counts; beside the totals hosts say other things as well, so that there only tokens are looked at.
    breakdowns = has_unknown(details, _KNOWN_DETAILS, "") or has_unknown(output_details, _KNOWN_DETAILS, "")
    if breakdowns or has_unknown(usage, _KNOWN_COUNTS):
        flags.add("unknown_token_class")
    return said_by(Usage(quantities, reasoning), prompt, flags, {"input": prompt, "output": answer})


def _totals(usage: JSON, reasoning: int, flags: set[str], *, hidden_output: bool) -> tuple[int | None, int | None]:
    """What went in and what came out; None for what neither is stated nor follows from the total."""
    prompt = count(usage, "prompt_tokens", "input_tokens", flags=flags)
    answer = count(usage, "completion_tokens", "output_tokens", flags=flags)
    doubts: set[str] = set()
    total = count(usage, "total_tokens", flags=doubts)
    if "malformed_count" in doubts:
        flags.add("total_mismatch")  # the parts count
    else:
        flags |= doubts
    if total is None or (prompt is None and answer is None):
        return prompt, answer
    if prompt is None:
        prompt = max(total - (answer or 0), 0)
    if answer is None:
        answer = max(total - prompt, 0)
    gap = total - prompt - answer
    if gap > 0 and (gap == reasoning or hidden_output):
        answer += gap  # some hosts state reasoning beside the answer, not inside it
    elif gap:
        flags.add("total_mismatch")
    return prompt, answer


def _cache_writes(usage: JSON, details: JSON, write_meter: str, flags: set[str]) -> dict[str, Quantity]:
    """Tokens written to a cache, by lifetime. What no lifetime claims is `write_meter`."""
    if _WRITE_KEYS.isdisjoint(details) and "cache_creation_input_tokens" not in usage:
        return {}
    written = count(details, "cache_write_tokens", "cache_creation_tokens", flags=flags)
    if written is None and "cache_creation_input_tokens" in usage:
        # Gateways that translate Anthropic's format put its field beside an inclusive total.
        written, write_meter = count(usage, "cache_creation_input_tokens", flags=flags), "cache_write_5m"
    split = part(details, "cache_write_tokens_details", flags=flags)
    half_day = count(split, "ttl_12h_tokens", flags=flags) or 0
    half_hour = count(split, "ttl_30m_tokens", flags=flags) or 0
    rest = (half_day + half_hour if written is None else written) - half_day - half_hour
    if rest < 0:
        flags.add("cache_write_mismatch")
    quantities: dict[str, Quantity] = {}
    put(quantities, "cache_write_12h", half_day)
    put(quantities, "cache_write_30m", half_hour)
    put(quantities, write_meter, max(rest, 0))
    return quantities


def _cached(usage: JSON, details: JSON, flags: set[str]) -> tuple[int, dict[str, int] | None]:
    """How much of the prompt a cache served, and of what, where that is broken down."""
    cached = count(details, "cached_tokens", flags=flags)
    if cached is None:
        cached = count(usage, *_CACHED, flags=flags) or 0
    split = part(details, "cached_tokens_details", flags=flags) or part(usage, "cached_tokens_details", flags=flags)
    if not split:
        return cached, None
    if has_unknown(split, _KNOWN_DETAILS | _KNOWN_HITS, ""):
        flags.add("unknown_token_class")
    hits = {name: count(split, f"{name}_tokens", f"cached_{name}_tokens", flags=flags) or 0 for name in MODALITIES}
    words = count(split, "text_tokens", "cached_text_tokens", flags=flags)
    return cached, hits if words is None else {**hits, "text": words}


def _modalities(details: JSON, flags: set[str]) -> dict[str, int]:
    """Sizes of what is not text; empty for most calls."""
    if not any(map(details.get, _MODALITY_KEYS)):
        return {}
    return {name: size for name in MODALITIES if (size := count(details, f"{name}_tokens", flags=flags))}


def _duration(usage: JSON) -> Reading:
    """Audio that is billed by its length."""
    flags: set[str] = set()
    seconds = amount(usage, "seconds", flags=flags)
    return Reading(Usage({"seconds_audio": seconds} if seconds else {}), flags=frozenset(flags))


#: Pages that were read, and pages that were described as well, which the first do not hold.
_PAGES = {"pages_processed": "document_pages", "pages_processed_annotation": "annotated_pages"}


def _pages(usage: JSON) -> Reading:
    """Documents that are billed by the page. Source: Mistral's OCRUsageInfo."""
    flags: set[str] = set()
    quantities: dict[str, Quantity] = {}
    counts = {meter: count(usage, name, flags=flags) for name, meter in _PAGES.items()}
    for meter, pages in counts.items():
        put(quantities, meter, pages or 0)
    return said_by(Usage(quantities), None, flags, {"input": 0 if quantities else None})  # nobody asks for no page


SHAPES = (
    Shape(
        inclusive,
        own=frozenset({"prompt_tokens", "completion_tokens"}),
        shared=frozenset({"input_tokens", "output_tokens", "total_tokens"}),
    ),
    Shape(_pages, own=frozenset(_PAGES), nested=("usage_info",)),
    Shape(_duration, own=frozenset(), shared=frozenset({"seconds"})),
)


#: Chat models that search the web on every request (https://developers.openai.com/api/docs/guides/tools-web-search).
_SEARCHERS = frozenset({"azure", "openai"})
_SEARCHES_ALWAYS = re.compile(r"-search-(preview|api)\b")
#: Perplexity's research model bills what it read and thought at rates of their own; the other models bill the request.
_RESEARCH = "deep-research"
_REQUEST_SIZES = frozenset({"low", "medium", "high"})
#: Mistral's voice models count audio in seconds; x-ai's live search counted sources.
_FIELDS = {"prompt_audio_seconds": "seconds_audio", "num_sources_used": "search_sources"}
#: x-ai's counts of its server-side tools, by name: in the Responses API, and as its own SDK writes them.
_TOOLS = ("server_side_tool_usage_details", "server_side_tool_usage")
_TOOLS_USED = "num_server_side_tools_used"
_KEYS = frozenset({*_FIELDS, "citation_tokens", "num_search_queries", "search_context_size"})
#: x-ai's server-side tools that are billed by the call (https://docs.x.ai/developers/pricing).
_TOOL_CALLS = {
    "web_search": "web_searches",
    "x_search": "web_searches",
    "code_execution": "code_executions",
    "code_interpreter": "code_executions",
    "file_search": "file_searches",
    "document_search": "file_searches",
    "collections_search": "file_searches",
    "attachment_search": "attachment_searches",
    "web_search_premium": "web_searches_premium",
    "image_generation": "images",
    "document_library": "file_searches",
}
#: Tools that cost nothing but the tokens they bring.
_FREE_TOOLS = frozenset(
    {"mcp", "image_understanding", "video_understanding", "x_video_understanding", "view_image", "view_x_video"}
)
_TOOL_NAME = re.compile(r"(?:server_side_tool_)?(\w+?)(?:_calls)?")
#: Moonshot's search, as a function that its models call.
_BUILTIN_SEARCH = "$web_search"
_BILLS_TOOLS_BY_CALL = "x-ai"
#: A tool that no rule knows was called: how often is known, and what it costs is not.
_UNKNOWN_TOOL = "server_tool_calls"


def write_meter(model: str | None) -> str:
    """Class of cache writes without a lifetime: Claude's are Anthropic's five-minute ones on every host."""
    return "cache_write_5m" if model and "claude" in model else "cache_write_30m"


def bills_reasoning_apart(provider: str, model: str | None) -> bool:
    """Whether reasoning has a rate of its own, and stands beside the answer's tokens."""
    return bool(model) and _RESEARCH in str(model) and canonical_provider(provider) == "perplexity"


def bills_tools_by_call(provider: str) -> bool:
    """Whether the host bills each call of its tools, code too, and no container."""
    return canonical_provider(provider) == _BILLS_TOOLS_BY_CALL


def states_tools(usage: JSON) -> bool:
    """Whether the usage counts the host's tools, so that no other trace of them counts."""
    return bool(section(usage, *_TOOLS))


def _billed_tools(calls: Mapping[str, int], flags: set[str]) -> dict[str, Quantity]:
    """Calls by meter; tools that no rule knows are counted under one that has no price."""
    meters: dict[str, Quantity] = {}
    for name, number in calls.items():
        if not number or name in _FREE_TOOLS:
            continue
        if name not in _TOOL_CALLS:
            flags.add("unknown_server_tool")
        put(meters, _TOOL_CALLS.get(name, _UNKNOWN_TOOL), number)
    return meters


def extra_meters(
    provider: str, usage: JSON, model: str | None, flags: set[str], items: Iterable[JSON] = ()
) -> dict[str, Quantity]:
    """What a host bills beside tokens; doubts are added to `flags`.

    Args:
        provider: Provider id.
        usage: The usage object.
        model: Model that answered.
        flags: Doubts are added here.
        items: Output of a response, where tools leave their trace.
    """
    meters: dict[str, Quantity] = {}
    if model and "-search-" in model and provider in _SEARCHERS and (found := _SEARCHES_ALWAYS.search(model)):
        meters["web_searches_preview" if found[1] == "preview" else "web_searches"] = 1
    if states_tools(usage):
        meters |= _stated_tools(usage, flags)
    elif any(usage.get(name) for name in _TOOLS):
        flags |= {"malformed_count", "estimated"}
    elif bills_tools_by_call(provider):
        meters |= _seen_tools(usage, items, flags)
    if _KEYS.isdisjoint(usage):
        return meters
    for name, meter in _FIELDS.items():
        if usage.get(name) and (quantity := amount(usage, name, flags=flags)):
            meters[meter] = int(quantity) if quantity == int(quantity) else quantity
    if canonical_provider(provider) == "perplexity":
        meters |= _perplexity(usage, model, flags)
    return meters


def builtin_calls(provider: str, body: JSON) -> dict[str, Quantity]:
    """Moonshot's own search, billed where an answer asks for it (https://platform.kimi.ai/docs/pricing/tools)."""
    if canonical_provider(provider) != "moonshotai":
        return {}
    asked = [call for choice in members(body, "choices") for call in own_tools(section(choice, "message"))]
    searches = sum(section(call, "function").get("name") == _BUILTIN_SEARCH for call in asked)
    return {"web_searches": searches} if searches else {}


def own_tools(message: JSON) -> list[JSON]:
    """The calls of tools that are the host's own: their names begin with a dollar."""
    calls = members(message, "tool_calls")
    return [call for call in calls if str(section(call, "function").get("name")).startswith("$")]


def connected(usage: JSON, flags: set[str]) -> Reading:
    """A Mistral conversation's usage: what connectors put into the prompt is input beside it; their calls are counted.

    Source: ``mistralai.models.ConversationUsageInfo``.
    """
    said = inclusive({key: value for key, value in usage.items() if key not in {"connector_tokens", "total_tokens"}})
    doubts = set(said.flags) | flags
    brought = count(usage, "connector_tokens", flags=doubts) or 0
    prompt, answer = said.usage.input_tokens + brought, said.usage.output_tokens
    stated = count(usage, "total_tokens", flags=doubts)
    if stated is not None and not said.unsaid and stated != prompt + answer:
        doubts.add("total_mismatch")
    calls = part(usage, "connectors", flags=doubts)
    tools = _billed_tools({name: count(calls, name, flags=doubts) or 0 for name in calls}, doubts)
    whole = said.usage + Usage({"input": brought, **tools} if brought else tools)
    return replace(said, usage=whole, prompt_tokens=None, flags=frozenset(doubts))


def _stated_tools(usage: JSON, flags: set[str]) -> dict[str, Quantity]:
    tools = part(usage, *_TOOLS, flags=flags)
    calls: Counter[str] = Counter()
    for key in tools:
        named = _TOOL_NAME.fullmatch(key.lower())
        calls[named[1] if named else key] += count(tools, key, flags=flags) or 0
    return _billed_tools(calls, flags)


def _seen_tools(usage: JSON, items: Iterable[JSON], flags: set[str]) -> dict[str, Quantity]:
    """Tools that the usage does not itemise: those whose calls stand in the output, and a rest that nobody names."""
    calls: Counter[str] = Counter()
    for item in items:
        name = (text(item, "type") or "").removesuffix("_call")
        if name == "custom_tool" and (text(item, "name") or "").startswith("x_"):  # how searches of X are shown
            name = "x_search"
        if name in _FREE_TOOLS or (name in _TOOL_CALLS and item.get("status") != "failed"):
            calls[name] += 1
    used = count(usage, _TOOLS_USED, flags=flags) or 0
    calls["?"] = max(used - calls.total(), 0)
    return _billed_tools(calls, flags)


def _perplexity(usage: JSON, model: str | None, flags: set[str]) -> dict[str, Quantity]:
    """Source: https://docs.perplexity.ai/getting-started/pricing."""
    found: dict[str, int | None] = {}
    if bills_reasoning_apart("perplexity", model):
        found["output_citation"] = count(usage, "citation_tokens", flags=flags)
        found["output_reasoning"] = count(usage, "reasoning_tokens", flags=flags)
        found["web_searches"] = count(usage, "num_search_queries", flags=flags)
    elif (size := text(usage, "search_context_size")) in _REQUEST_SIZES:
        found[f"requests_{size}"] = 1
    return {meter: quantity for meter, quantity in found.items() if quantity}
