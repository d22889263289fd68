"""Anthropic's wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it.

Source of all shapes: ``anthropic.types`` and ``anthropic.types.beta``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from tokenmeter.providers.anthropic import sessions
from tokenmeter.providers.anthropic.usage import exclusive
from tokenmeter.providers.context import Context, joined, unknown
from tokenmeter.providers.costs import billed_tier, supplied_cost
from tokenmeter.providers.registry import usage_of
from tokenmeter.providers.shapes import Reading
from tokenmeter.providers.wire import JSON, is_array, is_object, members, section, text, utf8_length
from tokenmeter.usage import Consumption, Observation, Usage

__all__ = ["read_body"]

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
    if isinstance(kind, str) and kind in sessions.BY_TYPE:
        return sessions.BY_TYPE[kind]
    if context.endpoint.startswith("beta.sessions"):
        return sessions.other_event if ".events" in context.endpoint else sessions.session
    if context.endpoint.startswith("beta.dreams"):
        return sessions.dream
    return message


def batch_line(body: JSON, context: Context) -> Observation:
    """One result of a message batch: billed when it succeeded, at batch rates; errors and the rest are free."""
    result = section(body, "result")
    if result.get("type") != "succeeded":
        return Observation(response_id=text(body, "custom_id"), billable=False)
    seen = read_body(section(result, "message"), context.in_batch())
    return replace(seen, deduplicate=True, bill_id=text(body, "custom_id"))


def message(body: JSON, context: Context) -> Observation:
    """A message, or the usage object of one."""
    if ".batches" in context.endpoint:
        context = context.in_batch()
    wire = usage_of(body)
    model = text(body, "model")
    refused = body.get("stop_reason") == "refusal" and body.get("content") == []
    said = exclusive(wire)
    top = said if refused else context.complete(said, received=lambda: _content_bytes(body))
    if top is None:
        known = model or context.request.model
        return unknown(body, body.get("usage"), model=known, flags=said.flags, deduplicate=True)
    groups, flags = groups_of(wire, top, model, context)
    return Observation(
        consumptions=groups,
        response_model=model,
        response_id=text(body, "id"),
        service_tier=text(wire, "service_tier"),
        # A refusal before any output is not billed (https://platform.claude.com/docs, "Refusals and fallback").
        flags=flags | {"unbilled_refusal"} if refused else flags,
        raw_usage=wire or None,
        billable=not refused,
        deduplicate=True,
    )


def _content_bytes(body: JSON) -> int:
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


@dataclass(frozen=True, slots=True)
class _Entry:
    role: str
    model: str | None
    reading: Reading


def groups_of(
    wire: JSON, top: Reading, model: str | None, context: Context
) -> tuple[tuple[Consumption, ...], frozenset[str]]:
    """The charge groups of a usage object whose top-level counts are `top`, and its flags."""
    flags = set(top.flags)
    if "fallback_credit" in wire and _redeemed(wire):
        flags.add("fallback_credit_redeemed")  # billed as if the retry model had had the cache all along
    entries = [
        _Entry(text(entry, "type") or "message", text(entry, "model"), exclusive(entry))
        for entry in members(wire, "iterations")
    ]
    base = _base(wire, top, model, context, flags)
    if not entries:
        return (base,), frozenset(flags)
    served = next((entry.model for entry in reversed(entries) if entry.role == "fallback_message"), None) or model
    groups = [*_serving_groups(entries, served, base, flags), *_helper_groups(entries, base, flags)]
    for entry in entries:
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
    batch = tier == "batch"
    return Consumption(
        model=model or request.model,
        usage=top.usage,
        service_tier=None if batch else billed_tier(tier or request.service_tier),
        processing="batch" if batch else request.processing,
        speed=None if speed == "standard" else speed,
        geo=None if geo in _PLAIN_GEOGRAPHIES else geo,
        region=request.region,
        prompt_tokens=top.prompt_tokens,
        supplied_cost=supplied_cost(context.provider, wire, request.cost_unit, flags),
    )


def _serving_groups(entries: list[_Entry], served: str | None, base: Consumption, flags: set[str]) -> list[Consumption]:
    mine = [entry for entry in entries if entry.role in _SERVING and entry.model in {None, served}]
    declined = [entry for entry in entries if entry.role in _SERVING and entry.model not in {None, served}]
    if declined:
        flags.add("declined_attempt")
    attempts = [_group(entry, base) for entry in declined if entry.reading.usage["output"]]
    if mine and _tokens(mine) == _tokens_of(base.usage):
        return [*attempts, *_shared(base, [_group(entry, base, served) for entry in mine])]
    if mine:
        flags.add("iterations_mismatch")
        prompt = mine[0].reading.prompt_tokens if len(mine) == 1 else None
        return [*attempts, replace(base, model=served or base.model, prompt_tokens=prompt)]
    return [*attempts, replace(base, prompt_tokens=None)]


def _helper_groups(entries: list[_Entry], base: Consumption, flags: set[str]) -> list[Consumption]:
    groups: list[Consumption] = []
    for entry in entries:
        if entry.role in _SERVING:
            continue
        if entry.role not in _BESIDE:
            flags.add("unknown_iteration")
        group = _group(entry, base)
        # Only the request's own model runs at the request's speed.
        groups.append(replace(group, speed=None) if entry.role == "advisor_message" else group)
    return groups


def _group(entry: _Entry, base: Consumption, model: str | None = None) -> Consumption:
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
    tools = {meter: quantity for meter, quantity in base.usage.quantities.items() if meter == "web_searches"}
    usage = Usage({**last.usage.quantities, **tools}, base.usage.reasoning_output_tokens)
    return [*groups[:-1], replace(last, usage=usage, supplied_cost=base.supplied_cost)]


def _tokens(entries: Iterable[_Entry]) -> dict[str, int]:
    return _tokens_of(Usage.total(entry.reading.usage for entry in entries))


def _tokens_of(usage: Usage) -> dict[str, int]:
    return {meter: int(quantity) for meter, quantity in usage.quantities.items() if meter != "web_searches"}
