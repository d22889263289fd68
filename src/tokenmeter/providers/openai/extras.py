"""What single hosts of OpenAI's format bill beside tokens, and where their usage says so."""

from __future__ import annotations

import re

from tokenmeter.money import add
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.providers.wire import JSON, amount, count, section, text
from tokenmeter.usage import Quantity

__all__ = ["bills_reasoning_apart", "counts_tools_by_call", "extra_meters", "write_meter"]

#: Chat models that search the web on every request (https://developers.openai.com/api/docs/guides/tools-web-search).
_SEARCHERS = frozenset({"azure", "openai"})
_SEARCHES_ALWAYS = re.compile(r"-search-(preview|api)\b")
#: Perplexity's research model bills what it read and thought at rates of their own; the other models bill the request.
_RESEARCH = "deep-research"
_REQUEST_SIZES = frozenset({"low", "medium", "high"})
#: Mistral's voice models count audio in seconds; x-ai's live search counted sources.
_FIELDS = {"prompt_audio_seconds": "seconds_audio", "num_sources_used": "search_sources"}
_TOOLS = "server_side_tool_usage_details"
_KEYS = frozenset({*_FIELDS, _TOOLS, "citation_tokens", "num_search_queries", "search_context_size"})
#: x-ai's server-side tools, by call (https://docs.x.ai/developers/pricing).
_TOOL_CALLS = {
    "web_search_calls": "web_searches",
    "x_search_calls": "web_searches",
    "code_execution_calls": "code_executions",
    "code_interpreter_calls": "code_executions",
    "file_search_calls": "file_searches",
    "document_search_calls": "file_searches",
    "collections_search_calls": "file_searches",
    "attachment_search_calls": "attachment_searches",
}
#: Tools that cost nothing but the tokens they bring.
_FREE_TOOLS = frozenset({"mcp_calls", "image_understanding_calls", "video_understanding_calls", "view_image_calls"})


def write_meter(model: str | None) -> str:
    """Class of cache writes without a lifetime: Claude's are Anthropic's five-minute ones on every host."""
    return "cache_write_5m" if model and "claude" in model else "cache_write_30m"


def bills_reasoning_apart(provider: str, model: str | None) -> bool:
    """Whether reasoning has a rate of its own, and stands beside the answer's tokens."""
    return bool(model) and _RESEARCH in str(model) and canonical_provider(provider) == "perplexity"


def counts_tools_by_call(usage: JSON) -> bool:
    """Whether the host bills its tools by the call and states the calls, so that no other trace of them counts."""
    return _TOOLS in usage


def extra_meters(provider: str, usage: JSON, model: str | None, flags: set[str]) -> dict[str, Quantity]:
    """What a host bills beside tokens; doubts are added to `flags`."""
    meters: dict[str, Quantity] = {}
    if model and "-search-" in model and provider in _SEARCHERS and (found := _SEARCHES_ALWAYS.search(model)):
        meters["web_searches_preview" if found[1] == "preview" else "web_searches"] = 1
    if _KEYS.isdisjoint(usage):
        return meters
    for name, meter in _FIELDS.items():
        if usage.get(name) and (quantity := amount(usage, name, flags=flags)):
            meters[meter] = int(quantity) if quantity == int(quantity) else quantity
    tools = section(usage, _TOOLS)
    for name in tools:
        calls = count(tools, name, flags=flags)
        if not calls or name in _FREE_TOOLS:
            continue
        if name not in _TOOL_CALLS:
            flags.add("unknown_server_tool")
            continue
        meter = _TOOL_CALLS[name]
        meters[meter] = add(meters.get(meter, 0), calls)
    if canonical_provider(provider) == "perplexity":
        meters |= _perplexity(usage, model, flags)
    return meters


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
