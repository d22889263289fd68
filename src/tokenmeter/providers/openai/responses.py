"""OpenAI's Responses API: one model's usage, and hosted tools that are counted beside it."""

from __future__ import annotations

import re
from dataclasses import replace

from tokenmeter.dimensions import TOOL_OPERATION
from tokenmeter.providers.context import Context, observation, pending, unknown
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.openai.extras import (
    bills_tools_by_call,
    extra_meters,
    states_tools,
    unknown_calls,
    write_meter,
)
from tokenmeter.providers.openai.media import not_words, svg
from tokenmeter.providers.openai.usage import inclusive
from tokenmeter.providers.readings import NO_FLAGS, Reading, worked
from tokenmeter.providers.registry import usage_of
from tokenmeter.providers.wire import JSON, count, error_in, instant, members, section, text, written_bytes
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

#: Items of one turn of one model: what it says, and calls that are left to the caller. Behind any other (a hosted tool,
#: another agent, a program) the host may ask a model once more: the input is then a sum over several prompts.
_OF_ONE_TURN = frozenset(
    {
        *("apply_patch_call", "computer_call", "custom_tool_call", "function_call", "local_shell_call"),
        *("mcp_approval_request", "mcp_list_tools", "message", "reasoning", None),
    }
)
_UNDER_WAY = frozenset({"queued", "in_progress"})
_SMALLEST_CONTAINER = "1g"
_SIZE = re.compile(r"\d{1,4}[a-z]{1,2}")
#: 2026-06-02, from when on containers are billed by the minute (five at least) in place of sessions of 20 minutes.
_MINUTES_BILLED = 1_780_358_400
_LEAST_MINUTES = 5
_SESSION = 20
_CONTAINER_OVER = frozenset({"deleted", "expired"})


def response(body: JSON, context: Context) -> Observation:
    """A response, or a compaction of one. It bills once, however often it is retrieved, also where it failed."""
    seen = _billed(body, context)
    if text(body, "status") != "failed":
        return seen
    error = error_in(body)
    return replace(seen, error_type="failed" if error is None else error.kind)


def _billed(body: JSON, context: Context) -> Observation:
    wire = usage_of(body)
    model, tier = text(body, "model"), text(body, "service_tier")
    retrieved = context.endpoint.endswith("responses.retrieve") and context.final_only
    if retrieved and body.get("background") is not True and not context.request.background:
        return replace(pending(body), flags=frozenset({"billed_before"}))
    items = members(body, "output")
    flags: set[str] = set()
    if context.request.tools and not members(body, "tools"):  # not every host repeats what it was asked with
        body = {**body, "tools": list(context.request.tools)}
    said = inclusive(
        wire,
        write_meter=write_meter(model),
        hidden_output=host_of(context.provider).hidden_output,
        cache_ttl=context.request.terms.get("cache_ttl"),
    )
    received = max(context.received, sum(map(_item_bytes, items)))
    if (said.unsaid or not said.usage) and (early := _unbilled(body, received)):
        return early
    reading = context.complete(said, received=lambda: received)
    if reading is None:
        known = model or context.request.model
        return unknown(body, body.get("usage"), model=known, flags=said.flags, deduplicate=True)
    stated, by_call = states_tools(wire), bills_tools_by_call(context.provider)
    meters = extra_meters(context, wire, model, flags, items)
    if not (stated or by_call):
        meters |= tool_meters(body, items, flags)
    if meters or any(text(item, "type") not in _OF_ONE_TURN for item in items):
        reading = replace(reading, usage=reading.usage + Usage(meters), prompt_tokens=None)
    main = context.consumption(reading, model=model, wire=wire, tier=tier, flags=flags)
    pictures = _image_tool(body, items, context, flags)
    authors = [group for item in items if item.get("svg_usage") for group in svg(item, context, flags)]
    raw = {"usage": wire, "tool_usage": body["tool_usage"]} if body.get("tool_usage") else wire or None
    containers = () if stated or by_call else _containers(body, items, context, model or context.request.model)
    return Observation(
        consumptions=(main, *pictures, *authors),
        response_model=model,
        response_id=text(body, "id"),
        service_tier=tier,
        flags=reading.flags | flags,
        raw_usage=raw,
        deduplicate=True,
        at=instant(body, "created_at") if retrieved else None,
        shared=containers,
    )


def _unbilled(body: JSON, received: int) -> Observation | None:
    """What a response without usage is, when its status says that it has none to state (yet)."""
    status = text(body, "status")
    if status in _UNDER_WAY:
        return pending(body)
    if status in {"failed", "cancelled"} and not received:  # else a model has written, which is billed
        return replace(pending(body), flags=frozenset({"no_usage"}))
    return None


def _item_bytes(item: JSON) -> int:
    """UTF-8 bytes of what the model wrote into an item of the output; one without words is content all the same."""
    words = map(item.get, ("content", "summary", "arguments", "input", "name", "code", "encrypted_content"))
    return written_bytes(*words) or int(item.get("type") != "message")


def tool_meters(body: JSON, items: list[JSON], flags: set[str]) -> dict[str, Quantity]:
    """What hosted tools are billed by, call for call: searches, and what no rule knows.

    ``tool_usage.web_search.num_requests`` is the billable count; only without it are search actions counted (opening a
    page is none). Whether one that failed is billed is said nowhere: it is counted, and flagged. The preview of the
    search tool has prices of its own.
    """
    if not items and "tool_usage" not in body:
        return {}
    billed = count(section(section(body, "tool_usage"), "web_search"), "num_requests", flags=flags)
    files = [item for item in items if item.get("type") == "file_search_call"]
    counted = list(files)
    if billed is None:
        searches = [item for item in items if _is_search(item)]
        billed, counted = len(searches), files + searches
    if billed and _searches_by_either(body):
        flags.add("search_tool_assumed")
    if any(item.get("status") == "failed" for item in counted):
        flags.add("failed_search_billed")
    meters = {
        "web_searches_preview" if _searches_by_preview(body) else "web_searches": billed,
        "file_searches": len(files),
        **unknown_calls(body, items, flags),
    }
    return {meter: quantity for meter, quantity in meters.items() if quantity}


def _is_search(item: JSON) -> bool:
    return item.get("type") == "web_search_call" and section(item, "action").get("type", "search") == "search"


def _search_tools(body: JSON) -> set[bool]:
    """Whether a search tool that is configured is the preview of it, for each."""
    kinds = [text(tool, "type") or "" for tool in members(body, "tools")]
    return {kind.startswith("web_search_preview") for kind in kinds if kind.startswith("web_search")}


def _searches_by_preview(body: JSON) -> bool:
    return _search_tools(body) == {True}


def _searches_by_either(body: JSON) -> bool:
    return len(_search_tools(body)) > 1


# -- containers, in which hosted tools run code; they outlive the response


def _containers(body: JSON, items: list[JSON], context: Context, model: str | None) -> tuple[Observation, ...]:
    """The bills of the containers that ran something: one for each, whatever runs in it later on.

    It is billed by its life and its memory. The body tells of neither end of that life, so a session of 20 minutes is
    taken, which was the unit until 2026-06-01; since then the minutes are billed.
    """
    found: dict[str | None, tuple[str, frozenset[str]]] = {}
    for item in items:
        kind = item.get("type")
        if kind == "code_interpreter_call":
            where = text(item, "container_id")
            found.setdefault(where, _container_meter(body, context, where, "code_interpreter", "container"))
        elif kind == "shell_call" and (where := _shell_container(body, item)) is not None:
            found.setdefault(where or None, _container_meter(body, context, where, "shell", "environment"))
    created = count(body, "created_at", flags=set())
    by_the_minute = created is None or created >= _MINUTES_BILLED
    assumed = frozenset({"container_time_assumed"}) if by_the_minute else NO_FLAGS
    bills: list[Observation] = []
    for identity, (meter, flags) in found.items():
        group = context.consumption(Reading(Usage({meter: 1})), model=model, role="container")
        bills.append(
            Observation(
                consumptions=(group,),
                response_model=model,
                response_id=identity or text(body, "id"),
                flags=flags | assumed,
                deduplicate=True,
                operation=TOOL_OPERATION,
                # One without a name can only be known by its response.
                bill_id=f"containers/{identity}" if identity else f"{text(body, 'id')}/container",
            )
        )
    return tuple(bills)


def _shell_container(body: JSON, item: JSON) -> str | None:
    """The container a shell call ran in; empty for one without a name, None for a machine of the caller's own."""
    where = section(item, "environment")
    if not where:
        shells = (tool for tool in members(body, "tools") if tool.get("type") == "shell")
        where = next((section(tool, "environment") for tool in shells), where)
    kind = text(where, "type") or "local"
    return (text(where, "container_id") or "") if kind.startswith("container") else None


def _container_meter(
    body: JSON, context: Context, identity: str | None, tool_type: str, key: str
) -> tuple[str, frozenset[str]]:
    """The meter of a container by its memory; where nobody said that, the smallest is assumed.

    The container itself says it, when it is made or looked up, or the tool's configuration, from which it is made.
    """
    if identity and (memory := context.request.sizes.get(identity)) is not None:
        return _sized("container_sessions", memory), NO_FLAGS
    for tool in members(body, "tools"):
        config = tool.get(key)
        if tool.get("type") != tool_type:
            continue
        if isinstance(config, str) or text(section(tool, key), "container_id"):
            return "container_sessions", frozenset({"container_size_assumed"})
        return _sized("container_sessions", text(section(tool, key), "memory_limit")), NO_FLAGS
    return "container_sessions", NO_FLAGS


def _sized(meter: str, memory: str | None) -> str:
    """`meter` for containers with so much memory; the smallest have it under its plain name."""
    if memory in {None, _SMALLEST_CONTAINER}:
        return meter
    return f"{meter}_{memory if _SIZE.fullmatch(memory or '') else 'unknown'}"


def container(body: JSON, context: Context) -> Observation:
    """A container that is looked up: billed by its memory and its life, from its birth until it was last active.

    By the minute, five at least; before 2026-06-02 by the session of 20 minutes.
    """
    identity, memory, over = text(body, "id"), text(body, "memory_limit"), text(body, "status") in _CONTAINER_OVER
    if context.final_only and (not over or context.endpoint == "containers.list"):  # others made most of a list
        return replace(pending(body), size=memory)
    flags: set[str] = set()
    born, last = count(body, "created_at", flags=flags), count(body, "last_active_at", flags=flags)
    bill = f"containers/{identity}" if identity else None
    if born is None or last is None or last < born:
        seen = unknown(body, None, flags=frozenset(flags), deduplicate=True)
        return replace(seen, bill_id=bill)
    minutes = max(-(-(last - born) // 60), _LEAST_MINUTES)
    by_the_minute = born >= _MINUTES_BILLED
    meter = "container_minutes" if by_the_minute else "container_sessions"
    quantity = minutes if by_the_minute else -(-minutes // _SESSION)
    usage = Usage({_sized(meter, memory): quantity})
    group = context.consumption(Reading(usage), model=None, role="container")
    raw = {key: body[key] for key in ("created_at", "last_active_at", "memory_limit") if key in body}
    seen = observation(Reading(usage, flags=frozenset(flags)), group, body, raw, deduplicate=True)
    return replace(seen, bill_id=bill, reading="actual", at=instant(body, "created_at"), size=memory)


def _image_tool(body: JSON, items: list[JSON], context: Context, flags: set[str]) -> list[Consumption]:
    wire = section(section(body, "tool_usage"), "image_gen")
    drawn = [item for item in items if item.get("type") == "image_generation_call" and not item.get("svg_usage")]
    made = any(item.get("status") == "completed" for item in drawn)
    reading = worked(inclusive(wire, output_meter="output_image"), answered=made)
    if reading.unsaid and (made or reading.usage):
        flags |= {"tool_usage_unknown", "usage_unknown"}
    if not reading.usage:
        return []
    asked = {text(item, "action") for item in drawn}
    if "edit" in asked:
        reading = not_words(reading, wire, "input_image")
    elif asked != {"generate"} and reading.usage["input"] and "input_tokens_details" not in wire:
        flags.add("estimated")  # by words alone, though there may have been a picture
    flags |= reading.flags
    named = (text(tool, "model") for tool in members(body, "tools") if tool.get("type") == "image_generation")
    model = next((name for name in named if name), None) or context.request.tool_models.get("image_generation")
    group = context.consumption(reading, model=model, role="image_generation")
    return [replace(group, model=model)]  # never the outer model: it did not draw
