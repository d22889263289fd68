"""OpenAI's Responses API: one model's usage, and hosted tools that are counted beside it."""

from __future__ import annotations

from dataclasses import replace

from tokenmeter.providers import hosts
from tokenmeter.providers.context import Context, pending, unknown
from tokenmeter.providers.estimates import estimate
from tokenmeter.providers.openai.media import svg
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.shapes import Reading, usage_of
from tokenmeter.providers.wire import JSON, count, members, section, text, utf8_length
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

__all__ = ["response", "tool_meters"]

#: Items that send the model round once more inside one response: its input is then a sum over several prompts.
_LOOPING_ITEMS = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "file_search_call",
        "image_generation_call",
        "mcp_call",
        "tool_search_call",
        "web_search_call",
    }
)
_UNDER_WAY = frozenset({"queued", "in_progress"})
_SMALLEST_CONTAINER = "1g"


def response(body: JSON, context: Context) -> Observation:
    """A response, or a compaction of one. It bills once, however often it is retrieved."""
    wire = usage_of(body)
    model, tier = text(body, "model"), text(body, "service_tier")
    retrieved = context.endpoint.endswith("responses.retrieve") and context.final_only
    if retrieved and body.get("background") is not True:
        return replace(pending(body), flags=frozenset({"billed_before"}))
    if not wire:
        return _without_usage(body, context, model)
    reading = inclusive(
        wire, write_meter=hosts.write_meter(model), hidden_output=context.provider in hosts.HIDDEN_OUTPUT
    )
    items = members(body, "output")
    meters = {**tool_meters(body, items), **hosts.extra_meters(context.provider, wire, model)}
    if meters or any(text(item, "type") in _LOOPING_ITEMS for item in items):
        reading = replace(reading, usage=reading.usage + Usage(meters), prompt_tokens=None)
    main = context.consumption(reading, model=model, wire=wire, tier=tier)
    pictures, flags = _image_tool(body, items, context)
    authors = [group for item in items if "svg_usage" in item for group in svg(item, context)]
    raw = {"usage": wire, "tool_usage": body["tool_usage"]} if body.get("tool_usage") else wire
    return Observation(
        consumptions=(main, *pictures, *authors),
        response_model=model,
        response_id=text(body, "id"),
        service_tier=tier,
        flags=reading.flags | flags,
        raw_usage=raw,
        deduplicate=True,
    )


def _without_usage(body: JSON, context: Context, model: str | None) -> Observation:
    status = text(body, "status")
    if status in _UNDER_WAY:
        return pending(body)
    if status in {"failed", "cancelled"}:
        return replace(pending(body), flags=frozenset({"no_usage"}))
    if not context.request.input_bytes:
        return unknown(body, body.get("usage"), model=model or context.request.model, deduplicate=True)
    words = [part.get("text") for item in members(body, "output") for part in members(item, "content")]
    received = sum(utf8_length(word) for word in words if isinstance(word, str))
    return Observation(
        consumptions=(estimate(context.request, model=model, received=received),),
        response_model=model,
        response_id=text(body, "id"),
        flags=frozenset({"estimated"}),
        deduplicate=True,
    )


def tool_meters(body: JSON, items: list[JSON]) -> dict[str, Quantity]:
    """What hosted tools are billed by: searches and containers.

    ``tool_usage.web_search.num_requests`` is the billable count; only without it are search actions counted (opening a
    page is none). A container bills once per session, however many calls ran in it.
    """
    if not items and "tool_usage" not in body:
        return {}
    billed = count(section(section(body, "tool_usage"), "web_search"), "num_requests")
    if billed is None:
        billed = sum(
            item.get("type") == "web_search_call" and section(item, "action").get("type", "search") == "search"
            for item in items
        )
    files = sum(item.get("type") == "file_search_call" for item in items)
    containers = {text(item, "container_id") for item in items if item.get("type") == "code_interpreter_call"}
    meters = {"web_searches": billed, "file_searches": files, _container_meter(body): len(containers)}
    return {meter: quantity for meter, quantity in meters.items() if quantity}


def _container_meter(body: JSON) -> str:
    """Containers with more memory than the smallest have prices, and so meters, of their own."""
    for tool in members(body, "tools"):
        limit = text(section(tool, "container"), "memory_limit")
        if limit and limit != _SMALLEST_CONTAINER:
            return f"container_sessions_{limit}"
    return "container_sessions"


def _image_tool(body: JSON, items: list[JSON], context: Context) -> tuple[list[Consumption], frozenset[str]]:
    wire = section(section(body, "tool_usage"), "image_gen")
    made = any(item.get("type") == "image_generation_call" and item.get("status") == "completed" for item in items)
    if not wire:
        return [], frozenset({"tool_usage_unknown"}) if made else frozenset()
    reading: Reading = inclusive(wire, output_meter="output_image")
    if not reading.usage:
        return [], frozenset()
    named = (text(tool, "model") for tool in members(body, "tools") if tool.get("type") == "image_generation")
    model = next((name for name in named if name), None) or context.request.tool_models.get("image_generation")
    group = replace(
        context.consumption(reading, model=model, role="image_generation"),
        model=model,  # never the outer model: it did not draw
    )
    return [group], reading.flags
