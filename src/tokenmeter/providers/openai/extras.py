"""What single hosts of OpenAI's format bill beside tokens, where they say so, and answers that only they have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tokenmeter.dimensions import TOKEN_METERS
from tokenmeter.providers.context import Context, observation, unknown
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.readings import Reading, put
from tokenmeter.providers.registry import usage_of
from tokenmeter.providers.wire import (
    JSON,
    amount,
    count,
    entries,
    members,
    part,
    section,
    text,
    utf8_length,
    written_bytes,
)
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

#: Chat models that search the web on every request (https://developers.openai.com/api/docs/guides/tools-web-search).
#: A deployment of Azure's model router, by the name of what it deploys: it bills the prompt beside the model it chose.
_ROUTER = re.compile(r"(^|[^a-z])model-router($|[^a-z])", re.IGNORECASE)
_SEARCHERS = frozenset({"azure", "openai"})
_SEARCHES_ALWAYS = re.compile(r"-search-(preview|api)\b")
#: Perplexity's research model bills what it read and thought at rates of their own; the other models bill the request.
_RESEARCH = "deep-research"
_REQUEST_SIZES = frozenset({"low", "medium", "high"})
_BILLS_REQUESTS = re.compile(r"(perplexity/)?sonar(-pro|-reasoning|-reasoning-pro)?")
#: Mistral's voice models count audio in seconds; x-ai's live search counted sources.
_FIELDS = {"prompt_audio_seconds": "seconds_audio", "num_sources_used": "search_sources"}
#: x-ai's counts of its server-side tools, by name: in the Responses API, and as its own SDK writes them.
_TOOLS = ("server_side_tool_usage_details", "server_side_tool_usage")
_TOOLS_USED = "num_server_side_tools_used"
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
#: Calls in a response's output whose bill is known: read by rules of their own, or no more than their tokens.
#: Source: ``openai.types.responses`` ResponseOutputItem, ``openai.types.beta`` BetaResponseOutputItem.
_KNOWN_CALLS = frozenset(
    {
        *("apply_patch_call", "code_interpreter_call", "computer_call", "custom_tool_call", "file_search_call"),
        *("function_call", "image_generation_call", "local_shell_call", "mcp_call", "multi_agent_call", "shell_call"),
        *("tool_search_call", "web_search_call"),
    }
)
#: Parts of a response's ``tool_usage`` that rules read.
_KNOWN_TOOL_USAGE = frozenset({"image_gen", "web_search"})
#: Tools that cost nothing but the tokens they bring.
_FREE_TOOLS = frozenset(
    {"mcp", "image_understanding", "video_understanding", "x_video_understanding", "view_image", "view_x_video"}
)
_TOOL_NAME = re.compile(r"(?:server_side_tool_)?(\w+?)(?:_calls)?")
#: Moonshot's search, as a function that its models call.
_BUILTIN_SEARCH = "$web_search"
#: Hosts whose search puts what it found beside the answer.
_SHOWS_RESULTS = frozenset({"zai", "zhipuai"})
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


def is_unknown_call(item: JSON) -> bool:
    """Whether an item of a response's output is the call of a hosted tool that no rule knows; what failed is none."""
    kind = text(item, "type") or ""
    return kind.endswith("_call") and kind not in _KNOWN_CALLS and item.get("status") != "failed"


def unknown_calls(body: JSON, items: Iterable[JSON], flags: set[str]) -> dict[str, Quantity]:
    """Calls of hosted tools that no rule knows, as the output shows them or ``tool_usage`` counts them."""
    seen, stated = sum(map(is_unknown_call, items)), section(body, "tool_usage")
    counts = [section(stated, name) for name in stated if name not in _KNOWN_TOOL_USAGE]
    told = sum(count(one, "num_requests", flags=flags) or 0 for one in counts)
    if not told and any(any(one.values()) for one in counts):
        told = 1  # something was used, whatever it is counted in
    return _billed_tools({"": max(seen, told)}, flags)


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
    context: Context, usage: JSON, model: str | None, flags: set[str], items: Iterable[JSON] = ()
) -> dict[str, Quantity]:
    """What a host bills beside tokens; doubts are added to `flags`.

    Args:
        context: Where the body came from.
        usage: The usage object.
        model: Model that answered.
        flags: Doubts are added here.
        items: Output of a response, where tools leave their trace.
    """
    meters: dict[str, Quantity] = {}
    provider = context.provider
    if model and "-search-" in model and provider in _SEARCHERS and (found := _SEARCHES_ALWAYS.search(model)):
        meters["web_searches_preview" if found[1] == "preview" else "web_searches"] = 1
    asked = context.request.model
    if asked and provider == "azure" and _ROUTER.search(asked):
        flags.add("router_fee_unknown")
    if states_tools(usage):
        meters |= _stated_tools(usage, flags)
    elif any(usage.get(name) for name in _TOOLS):
        flags |= {"malformed_count", "estimated"}
    elif bills_tools_by_call(provider):
        meters |= _seen_tools(usage, items, flags)
    for name, meter in _FIELDS.items():
        if usage.get(name) and (quantity := amount(usage, name, flags=flags)):
            meters[meter] = int(quantity) if quantity == int(quantity) else quantity
    if canonical_provider(provider) == "perplexity":
        meters |= _perplexity(usage, model, context.request.terms.get("search_context_size"), flags)
    return meters


def builtin_calls(provider: str, body: JSON, flags: set[str]) -> dict[str, Quantity]:
    """Tools of the host's own that a completion shows: Groq's and Z.ai's, which ran, Moonshot's, which is asked for.

    Source: https://platform.kimi.ai/docs/pricing/tools, https://docs.z.ai/guides/tools/web-search
    """
    messages = [section(choice, "message") for choice in members(body, "choices")]
    if ran := sum(len(executed_tools(message)) for message in messages):
        flags.add("unknown_server_tool")
        return {_UNKNOWN_TOOL: ran}
    host = canonical_provider(provider)
    if host in _SHOWS_RESULTS and members(body, "web_search"):
        return {"web_searches": 1}
    if host != "moonshotai":
        return {}
    asked = [call for message in messages for call in own_tools(message)]
    searches = sum(section(call, "function").get("name") == _BUILTIN_SEARCH for call in asked)
    return {"web_searches": searches} if searches else {}


def own_tools(message: JSON) -> list[JSON]:
    """The calls of tools that are the host's own: their names begin with a dollar."""
    calls = members(message, "tool_calls")
    return [call for call in calls if str(section(call, "function").get("name")).startswith("$")]


#: Names of a model's thoughts in a message; hosts repeat the same under several.
_THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")
_WORDS = ("content", "text", "refusal", "audio")
#: Parts of a message that are no text, by whose presence it has content.
_OTHER_PARTS = ("audio", "images")


def message_bytes(message: JSON) -> int:
    """UTF-8 bytes of what a model wrote into a message, or into a piece of one; other content counts as one."""
    calls = [*members(message, "tool_calls"), {"function": section(message, "function_call")}]
    size = written_bytes(*map(message.get, _WORDS), *(section(call, "function", "custom") for call in calls))
    size += max(written_bytes(message.get(name)) for name in _THOUGHTS)
    return size or int(any(map(message.get, _OTHER_PARTS)) or bool(members(message, "content")))


def connected(usage: JSON, flags: set[str]) -> Reading:
    """A Mistral conversation's usage: what connectors put into the prompt is input beside it; their calls are counted.

    Source: ``mistralai.models.ConversationUsageInfo``.
    """
    doubts = set(flags)
    brought = count(usage, "connector_tokens", flags=doubts) or 0
    own = {key: value for key, value in usage.items() if key != "connector_tokens"}
    if brought and (total := count(usage, "total_tokens", flags=set())):
        own["total_tokens"] = total - brought  # below zero it is no count, which leaves the parts as they are
    said = inclusive(own)
    doubts |= said.flags
    calls = part(usage, "connectors", flags=doubts)
    if "malformed_count" in doubts:
        doubts.add("estimated")
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
        elif is_unknown_call(item):
            calls["?"] += 1
    used = count(usage, _TOOLS_USED, flags=flags) or 0
    calls["?"] += max(used - calls.total(), 0)
    return _billed_tools(calls, flags)


def _perplexity(usage: JSON, model: str | None, asked: str | None, flags: set[str]) -> dict[str, Quantity]:
    """Source: https://docs.perplexity.ai/getting-started/pricing."""
    found: dict[str, int | None] = {}
    if bills_reasoning_apart("perplexity", model):
        found["output_citation"] = count(usage, "citation_tokens", flags=flags)
        found["output_reasoning"] = count(usage, "reasoning_tokens", flags=flags)
        found["web_searches"] = count(usage, "num_search_queries", flags=flags)
    elif (size := text(usage, "search_context_size")) in _REQUEST_SIZES:
        found[f"requests_{size}"] = 1
    elif _BILLS_REQUESTS.fullmatch(model or "") and amount(section(usage, "cost"), "total_cost", flags=set()) is None:
        found[f"requests_{asked if asked in _REQUEST_SIZES else 'low'}"] = 1
        if asked not in _REQUEST_SIZES:  # what is searched where nobody asks for more
            flags.add("request_size_assumed")
    return {meter: quantity for meter, quantity in found.items() if quantity}


# -- answers that only one host has


def conversation(body: JSON, context: Context) -> Observation:
    """Mistral's answer in a conversation, or the event that ends its stream: several turns of a model with tools."""
    wire = usage_of(body)
    outputs = members(body, "outputs")
    named = (text(item, "model") for item in outputs)
    model = text(body, "model") or next((name for name in named if name), None)
    reading = context.complete(connected(wire, set()), received=lambda: _outputs_bytes(outputs))
    if reading is None:
        return unknown(body, body.get("usage"), model=model or context.request.model)
    seen = observation(reading, context.consumption(reading, model=model, wire=wire), body, wire or None)
    return replace(seen, response_model=model)


def _outputs_bytes(outputs: list[JSON]) -> int:
    words = [item.get(name) for item in outputs for name in ("content", "arguments", "name")]
    words += [part.get("text") for item in outputs for part in members(item, "content")]
    return sum(utf8_length(word) for word in words if isinstance(word, str))


#: Groq's tools run on its side, each at a fee that depends on what no answer says (https://groq.com/pricing).
_EXECUTED = "executed_tools"


def executed_tools(message: JSON) -> list[JSON]:
    """What Groq ran on its own side to answer, once each: a stream shows a tool before and after it ran."""
    return list(
        {str(tool.get("index", place)): tool for place, tool in enumerate(members(message, _EXECUTED))}.values()
    )


def models_asked(body: JSON, context: Context, whole: Consumption, flags: set[str]) -> tuple[Consumption, ...]:
    """The charge groups of a completion: of a compound system (Groq), one for each model that it asked.

    Source: ``groq.types.chat`` ChatCompletion.

    Args:
        body: The completion.
        context: Where it came from.
        whole: All of it as one group, which stands where the models are not broken down.
        flags: Doubts are added here.
    """
    groups: list[Consumption] = []
    for asked in entries(section(body, "usage_breakdown"), "models", flags=flags):
        reading = replace(inclusive(section(asked, "usage")), prompt_tokens=None)
        if reading.unsaid:
            flags.add("total_mismatch")
            return (whole,)
        flags |= reading.flags
        groups.append(
            replace(context.consumption(reading, model=text(asked, "model")), service_tier=whole.service_tier)
        )
    if not groups or whole.supplied_cost is not None:
        return (whole,)
    tokens = Usage.total(group.usage for group in groups)
    beside = {meter: quantity for meter, quantity in whole.usage.quantities.items() if meter not in TOKEN_METERS}
    if tokens.total_tokens != whole.usage.total_tokens:
        flags.add("total_mismatch")
    groups[-1] = replace(groups[-1], usage=groups[-1].usage + Usage(beside))
    return tuple(groups)
