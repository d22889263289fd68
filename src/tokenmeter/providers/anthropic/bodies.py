"""Anthropic's wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it.

Source of all shapes: ``anthropic.types`` and ``anthropic.types.beta``.

Managed agents and dreams, too: a session states its running total, a dream the total when it has ended.
Source: ``anthropic.types.beta`` BetaManagedAgentsSession, BetaManagedAgentsSessionUsage, BetaDream.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenmeter.dimensions import TOKEN_METERS
from tokenmeter.money import ZERO
from tokenmeter.providers.anthropic.requests import ROUTES
from tokenmeter.providers.anthropic.usage import exclusive
from tokenmeter.providers.context import (
    Context,
    billed_tier,
    billed_to,
    joined,
    observation,
    pending,
    supplied_cost,
    unknown,
)
from tokenmeter.providers.readings import BOTH_SIDES, NO_FLAGS, Reading, worked
from tokenmeter.providers.registry import read_usage, usage_of
from tokenmeter.providers.wire import (
    JSON,
    amount,
    entries,
    instant,
    is_array,
    is_object,
    members,
    section,
    text,
    utf8_length,
)
from tokenmeter.usage import Consumption, Observation, SuppliedCost, Usage
from tokenmeter.values import dataclass

_Reader = Callable[[JSON, Context], Observation]


def read_body(body: Any, context: Context) -> Observation:
    """Usage of `body`, whatever it is; an unknown shape is flagged ``usage_unknown``."""
    if is_array(body) and body:
        return joined(read_body(part, context) for part in body)
    if not is_object(body):
        return _without_json(body, context)
    return _reader(body, context)(body, context)


def _without_json(body: Any, context: Context) -> Observation:
    """What is no answer at all: a page of a proxy's, half a line of a file. It has no identity to be billed once by."""
    size = utf8_length(body) if isinstance(body, str) else 0
    seen = read_body({}, replace(context, received=max(context.received, size)))
    return replace(seen, deduplicate=False)


def _reader(body: JSON, context: Context) -> _Reader:
    if "custom_id" in body and "result" in body:
        return batch_line
    kind = body.get("type")
    if isinstance(kind, str) and kind in BY_TYPE:
        return BY_TYPE[kind]
    if context.endpoint.startswith("beta.sessions"):
        return other_event if ".events" in context.endpoint or "." in str(kind) else session
    if context.endpoint.startswith("beta.dreams"):
        return dream
    return message if body.get("content") or ROUTES.named(context.endpoint) else _any


def _any(body: JSON, context: Context) -> Observation:
    """A body of an endpoint nobody described: familiar usage in it counts, and what the call was given is no prompt."""
    return message(body, replace(context, request=replace(context.request, input_bytes=0, image_count=0), received=0))


def batch_line(body: JSON, context: Context) -> Observation:
    """One result of a message batch: billed when it succeeded, at batch rates; errors and the rest are free."""
    result = section(body, "result")
    if result.get("type") != "succeeded":
        return Observation(response_id=text(body, "custom_id"), billable=False)
    name = text(body, "custom_id")
    seen = read_body(section(result, "message"), context.in_batch())
    seen = billed_to(seen, context.request.lines_billed_elsewhere.get(name or ""))
    return replace(seen, deduplicate=True, bill_id=name)


def message(body: JSON, context: Context) -> Observation:
    """A message, or the usage object of one."""
    if ".batches" in context.endpoint:
        context = context.in_batch()
    wire = usage_of(body)
    model = text(body, "model")
    refused = body.get("stop_reason") == "refusal" and _shows_nothing(body.get("content"))
    said = exclusive(wire, cache_ttl=context.request.terms.get("cache_ttl"))
    if said.unsaid == BOTH_SIDES:
        said = read_usage(wire) or said  # a gateway may hand on what its host said in a format of its own
    top = said if refused else context.complete(said, received=lambda: content_bytes(body))
    if top is None:
        known = model or context.request.model
        return unknown(body, body.get("usage"), model=known, flags=said.flags, deduplicate=True)
    if (searches := len(list(filter(is_search, members(body, "content"))))) and not top.usage["web_searches"]:
        usage = top.usage + Usage({"web_searches": searches})
        top = replace(top, usage=usage, prompt_tokens=None, flags=top.flags | {"estimated"})
    if (others := sum(map(is_unknown_tool, members(body, "content")))) and "unknown_server_tool" not in top.flags:
        usage = top.usage + Usage({"server_tool_calls": others})
        top = replace(top, usage=usage, prompt_tokens=None, flags=top.flags | {"unknown_server_tool"})
    groups, flags = groups_of(wire, top, model, context)
    if _ran_code(body, wire):
        flags |= {"code_execution_time_unknown"}
    billable = True
    if refused:
        groups, billable = _take_off_refusal(groups, attempted=bool(wire.get("iterations")))
        flags |= {_REFUSAL}
    return Observation(
        consumptions=groups,
        response_model=model,
        response_id=text(body, "id"),
        service_tier=text(wire, "service_tier"),
        flags=flags,
        raw_usage=wire or None,
        billable=billable,
        deduplicate=True,
    )


#: A refusal before any output is not billed (https://platform.claude.com/docs, "Refusals and fallback").
_REFUSAL = "unbilled_refusal"


def _shows_nothing(content: Any) -> bool:
    """Whether an answer holds no more than marks of where one model gave way to the next."""
    return is_array(content) and all(is_object(block) and block.get("type") == "fallback" for block in content)


def _take_off_refusal(groups: tuple[Consumption, ...], *, attempted: bool) -> tuple[tuple[Consumption, ...], bool]:
    """The groups of a refused message, of which the refusal itself costs nothing, and whether any of them is billed.

    What else there was is: attempts that had written before they declined, compaction, advice.
    """
    refused = [group.role in _SERVING and not (attempted and group.usage["output"]) for group in groups]
    if all(refused):
        return groups, False
    nothing = SuppliedCost(ZERO, _REFUSAL)
    pairs = zip(groups, refused, strict=True)
    return tuple(replace(group, supplied_cost=nothing) if free else group for group, free in pairs), True


def _ran_code(body: JSON, wire: JSON) -> bool:
    """Whether code ran in a container that may be billed: by the hour, which no answer tells, beyond free hours.

    It is free in a request with the search or fetch tool that runs code by itself, whose calls then come from code.
    Source: https://platform.claude.com/docs/en/about-claude/pricing
    """
    stated = section(wire, "server_tool_use").get("code_execution_requests")
    if not (stated or section(body, "container")):
        return False
    return not any(is_called_by_code(block) for block in members(body, "content"))


def is_search(block: JSON) -> bool:
    """Whether a block of an answer is what a web search brought; one that failed, which is not billed, has an error.

    Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/web-search-tool
    """
    return block.get("type") == "web_search_tool_result" and is_array(block.get("content"))


#: Anthropic's own tools. Source: ``anthropic.types.beta`` BetaServerToolUseBlock.
_SERVER_TOOLS = frozenset(
    {
        *("advisor", "bash_code_execution", "code_execution", "text_editor_code_execution"),
        *("tool_search_tool_bm25", "tool_search_tool_regex", "web_fetch", "web_search"),
    }
)


def is_unknown_tool(block: JSON) -> bool:
    """Whether a block of an answer is the call of a server tool that no rule knows."""
    return block.get("type") == "server_tool_use" and text(block, "name") not in _SERVER_TOOLS


def is_called_by_code(block: JSON) -> bool:
    """Whether a block of an answer is a search or a fetch that code asked for."""
    named = text(block, "name") in {"web_search", "web_fetch"}
    return named and (text(section(block, "caller"), "type") or "").startswith("code_execution")


def content_bytes(body: JSON) -> int:
    """UTF-8 bytes of what the model wrote: text, thinking, and calls of tools with their names."""
    words: list[Any] = [body.get("completion")]
    for block in members(body, "content"):
        words += [block.get(name) for name in ("text", "thinking", "data", "name")]
        if block.get("input"):
            words.append(json.dumps(block["input"], ensure_ascii=False, default=str))
    return sum(utf8_length(word) for word in words if isinstance(word, str))


# -- which model is billed for what: the serving model, and others that helped or declined
#
# Source: ``anthropic.types.beta`` BetaUsage, BetaIterationsUsage, and "Refusals and fallback" on platform.claude.com:
# every attempt that produced output is billed at the rates of the model that ran it; ``usage.iterations`` records them.

#: Geographies that cost what the price list says.
_PLAIN_GEOGRAPHIES = frozenset({"global", "not_available"})
#: Iterations that the top-level counts do not hold.
_BESIDE = frozenset({"compaction", "advisor_message"})
_SERVING = frozenset({"message", "fallback_message"})
_TOKENS = frozenset(TOKEN_METERS)


@dataclass(frozen=True, slots=True)
class _Item:
    role: str
    model: str | None
    reading: Reading
    stated: bool  # for how long a cache keeps what it wrote


def groups_of(
    wire: JSON, top: Reading, model: str | None, context: Context
) -> tuple[tuple[Consumption, ...], frozenset[str]]:
    """The charge groups of a usage object whose top-level counts are `top`, and its flags."""
    flags = set(top.flags)
    if "fallback_credit" in wire and _redeemed(wire):
        flags.add("fallback_credit_redeemed")  # billed as if the retry model had had the cache all along
    if ":application-inference-profile/" in (context.request.model or "") and "." not in (model or "."):
        flags.add("region_rate_assumed")  # nothing says whether it is of a global profile
    ttl = context.request.terms.get("cache_ttl")
    parts = [
        _Item(
            text(entry, "type") or "message",
            text(entry, "model"),
            exclusive(entry, cache_ttl=ttl),
            bool(section(entry, "cache_creation") or not entry.get("cache_creation_input_tokens")),
        )
        for entry in entries(wire, "iterations", flags=flags)
    ]
    if "malformed_count" in flags:
        flags.add("estimated")
    base = _base(wire, top, model, context, flags)
    if not parts:
        return (base,), frozenset(flags)
    served = next((entry.model for entry in reversed(parts) if entry.role == "fallback_message"), None) or model
    groups = [
        *_serving_groups(parts, served, base, flags),
        *_helper_groups(parts, base, context.request.tool_models.get("advisor"), flags),
    ]
    for entry in parts:
        flags |= entry.reading.flags
        if entry.role not in _SERVING and entry.reading.unsaid:
            flags.add("usage_unknown")  # the top level does not hold it either
    return tuple(groups), frozenset(flags)


def _redeemed(wire: JSON) -> bool:
    return section(section(wire, "fallback_credit"), "status").get("type") == "redeemed"


def _base(wire: JSON, top: Reading, model: str | None, context: Context, flags: set[str]) -> Consumption:
    """One group for the top-level counts: its tier, speed and geography hold for every iteration."""
    request = context.request
    tier, speed, geo = text(wire, "service_tier"), text(wire, "speed") or request.speed, text(wire, "inference_geo")
    geo = geo or request.terms.get("inference_geo")
    if ":provisioned-model/" in (request.model or ""):
        tier = "provisioned"  # Bedrock's, which is paid by the hour
    batch = tier == "batch"
    return Consumption(
        model=model or request.model,
        usage=top.usage,
        service_tier=None if batch else billed_tier(tier or request.service_tier),
        processing="batch" if batch else request.processing,
        speed=None if speed == "standard" else speed,
        geo=None if geo in _PLAIN_GEOGRAPHIES else geo,
        region=request.billed_region,
        prompt_tokens=top.prompt_tokens,
        supplied_cost=supplied_cost(context.provider, wire, request.cost_unit, flags),
    )


def _serving_groups(entries: list[_Item], served: str | None, base: Consumption, flags: set[str]) -> list[Consumption]:
    mine = [entry for entry in entries if entry.role in _SERVING and entry.model in {None, served}]
    declined = [entry for entry in entries if entry.role in _SERVING and entry.model not in {None, served}]
    if declined:
        flags.add("declined_attempt")
    attempts = [_group(entry, base) for entry in declined if entry.reading.usage["output"]]
    if mine and _make_up(mine, base.usage, flags):
        return [*attempts, *_shared(base, [_group(entry, base, served) for entry in mine])]
    if mine:
        flags.add("iterations_mismatch")
        prompt = mine[0].reading.prompt_tokens if len(mine) == 1 else None
        return [*attempts, replace(base, model=served or base.model, prompt_tokens=prompt)]
    return [*attempts, replace(base, prompt_tokens=None)]


def _helper_groups(entries: list[_Item], base: Consumption, advisor: str | None, flags: set[str]) -> list[Consumption]:
    groups: list[Consumption] = []
    for entry in entries:
        if entry.role in _SERVING:
            continue
        if entry.role not in _BESIDE:
            flags.add("unknown_iteration")
        group = _group(entry, base, advisor if entry.role == "advisor_message" else None)
        # Only the request's own model runs at the request's speed.
        groups.append(replace(group, speed=None) if entry.role == "advisor_message" else group)
    return groups


def _group(entry: _Item, base: Consumption, model: str | None = None) -> Consumption:
    return replace(
        base,
        model=entry.model or model or base.model,
        usage=entry.reading.usage,
        role=entry.role,
        prompt_tokens=entry.reading.prompt_tokens,
        supplied_cost=None,
    )


def _shared(base: Consumption, groups: list[Consumption]) -> list[Consumption]:
    """What only the top level knows goes with the last group: searches, thinking, a supplied cost."""
    last = groups[-1]
    tools = {meter: quantity for meter, quantity in base.usage.quantities.items() if meter not in _TOKENS}
    usage = Usage({**last.usage.quantities, **tools}, base.usage.reasoning_output_tokens)
    return [*groups[:-1], replace(last, usage=usage, supplied_cost=base.supplied_cost)]


_WRITES = ("cache_write_5m", "cache_write_1h")


def _make_up(entries: list[_Item], usage: Usage, flags: set[str]) -> bool:
    """Whether iterations come to the top-level `usage`.

    They say better how long each write lasts, where all say it: a stream's top level breaks down the first turn alone.
    """
    parts, whole = _tokens_of(Usage.total(entry.reading.usage for entry in entries)), _tokens_of(usage)
    if parts == whole:
        return True
    if not all(entry.stated for entry in entries) or _with_one_write(parts) != _with_one_write(whole):
        return False
    flags -= {"cache_ttl_assumed", "cache_write_mismatch"}
    return True


def _with_one_write(tokens: dict[str, int]) -> dict[str, int]:
    """`tokens` with what was written for whichever time in one class."""
    rest = {meter: size for meter, size in tokens.items() if meter not in _WRITES}
    return {**rest, "cache_write": sum(tokens.get(meter, 0) for meter in _WRITES)}


def _tokens_of(usage: Usage) -> dict[str, int]:
    return {meter: int(quantity) for meter, quantity in usage.quantities.items() if meter in _TOKENS}


#: What a session's usage is made of.
_SESSION_COUNTS = frozenset(
    {
        *("active_seconds", "cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens"),
        *("input_tokens", "list_cost", "output_tokens", "server_tool_use"),
    }
)


def session(body: JSON, context: Context) -> Observation:
    """A session, its usage event, or the usage object itself: a running total.

    Tokens over many prompts, running time and searches; ``list_cost``, where it is tracked, is the bill.
    """
    wire = section(body, "usage") if "usage" in body else body
    config = section(section(body, "agent"), "model")
    model = text(config, "id") or text(section(body, "agent"), "model")
    if context.final_only and not _used(body, wire):
        return replace(pending(body), response_model=model)
    if not wire:
        return unknown(body, body.get("usage"), model=context.request.model, deduplicate=True)
    said = exclusive(wire)
    # A part that is not stated has not come up as yet; one that is no number has, and so have names nobody knows.
    flags = {"usage_unknown"} if "malformed_count" in said.flags or _only_unknown(said, wire) else set[str]()
    if worked(said, answered=False).unsaid > said.unsaid:
        flags.add("usage_unknown")  # nothing is answered to no prompt
    reading = replace(said, prompt_tokens=None, unsaid=NO_FLAGS)
    if active := amount(wire, "active_seconds", flags=flags):
        reading = replace(reading, usage=reading.usage + Usage({"runtime_seconds": active}))
    reading = replace(reading, flags=reading.flags | flags)
    group = context.consumption(reading, model=model, wire=wire, role="session")
    if (speed := text(config, "speed")) and speed != "standard":
        group = replace(group, speed=speed)
    if group.supplied_cost is not None:
        reading = replace(reading, flags=reading.flags - {"usage_unknown"})  # the bill is known, whatever it is of
    if section(wire, "list_cost") and group.supplied_cost is None:
        reading = replace(reading, flags=reading.flags | {"foreign_currency"})
    seen = observation(reading, group, body, wire, deduplicate=True)
    return replace(seen, response_model=model, reading="total", at=instant(body, "processed_at"))


def thread(body: JSON, context: Context) -> Observation:
    """A thread of a session."""
    return replace(session(body, context), instead="its session")


def _only_unknown(said: Reading, wire: JSON) -> bool:
    """Whether something is stated, and nothing of it under a name that is known."""
    return not said.usage and not _SESSION_COUNTS.intersection(wire)


def _used(body: JSON, wire: JSON) -> bool:
    """Whether there is anything to record as yet: a new session's usage is empty."""
    if wire:
        return any(value is not None for value in wire.values())
    return text(body, "status") == "terminated" and bool(section(body, "stats").get("active_seconds"))


def other_event(body: JSON, _context: Context) -> Observation:
    """An event of a session that says nothing of its usage."""
    return Observation(response_id=text(body, "id"), billable=False, reading="step")


def dream(body: JSON, context: Context) -> Observation:
    """A dream: one model for all of its work. Its cache writes of both lifetimes come as one number."""
    if context.final_only and text(body, "status") in {"pending", "running"}:
        return pending(body)
    wire = section(body, "usage") if "usage" in body else body
    status = text(body, "status")
    done = status == "completed"
    reading = worked(_unsplit(replace(exclusive(wire), prompt_tokens=None), wire), answered=done)
    config = section(body, "model")
    model = text(config, "id") or text(body, "model")
    if reading.unsaid and status and not (done or reading.usage or body.get("usage") or reading.flags):
        reading = replace(reading, unsaid=NO_FLAGS)  # it ended before it used anything
    if reading.unsaid:
        known = model or context.request.model
        return unknown(body, body.get("usage"), model=known, flags=reading.flags, deduplicate=True)
    group = context.consumption(reading, model=model, role="dream")
    if (speed := text(config, "speed")) and speed != "standard":
        group = replace(group, speed=speed)
    return replace(observation(reading, group, body, wire, deduplicate=True), response_model=model)


def span(body: JSON, context: Context) -> Observation:
    """One model request inside a session, or one evaluation of its outcome."""
    wire = section(body, "model_usage", "usage")
    reading = worked(_unsplit(exclusive(wire), wire), answered=False)
    if reading.unsaid:
        seen = unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
        return replace(seen, reading="step", at=instant(body, "processed_at"))
    if body.get("type") == "span.outcome_evaluation_end":
        reading = replace(reading, prompt_tokens=None)
    group = context.consumption(reading, model=None)
    speed = text(wire, "speed")
    group = replace(group, speed=speed if speed != "standard" else None)
    return replace(
        observation(reading, group, body, wire, deduplicate=True), reading="step", at=instant(body, "processed_at")
    )


def _unsplit(reading: Reading, wire: JSON) -> Reading:
    """Cache writes that may be of either lifetime are taken as five-minute ones, flagged."""
    if wire.get("cache_creation_input_tokens") and not section(wire, "cache_creation"):
        return replace(reading, flags=reading.flags | {"cache_ttl_assumed"})
    return reading


BY_TYPE: dict[str, Callable[[JSON, Context], Observation]] = {
    "session": session,
    "session_thread": thread,
    "session.usage": session,
    "dream": dream,
    "message_batch": lambda body, _: pending(body),  # its results are what is billed
    "span.model_request_end": span,
    "span.outcome_evaluation_end": span,
}
