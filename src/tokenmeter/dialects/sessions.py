"""Anthropic's managed agents and dreams: cumulative totals, of which the last stands.

Source: ``anthropic.types.beta`` BetaManagedAgentsSession, BetaManagedAgentsSessionUsage, BetaDream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokenmeter.dialects.context import Context, observation, pending, unknown
from tokenmeter.dialects.shapes import Reading, exclusive
from tokenmeter.dialects.wire import JSON, amount, count, section, text
from tokenmeter.usage import Observation, Usage

__all__ = ["BY_TYPE", "dream", "session"]


def session(body: JSON, context: Context) -> Observation:
    """A session, a thread of one, its usage event, or the usage object itself.

    Tokens over many prompts, running time and searches; ``list_cost``, where it is tracked, is the bill. A live session
    is recorded when it is terminated, since its total grows until then.
    """
    wire = section(body, "usage") if "usage" in body else body
    if context.final_only and text(body, "status") not in {None, "terminated"}:
        return pending(body)
    if not wire:
        return unknown(body, body.get("usage"), model=context.request.model, deduplicate=True)
    config = section(section(body, "agent"), "model")
    reading = replace(exclusive(wire), prompt_tokens=None)
    if active := amount(wire, "active_seconds"):
        reading = replace(reading, usage=reading.usage + Usage({"runtime_seconds": active}))
    model = text(config, "id") or text(section(body, "agent"), "model")
    group = context.consumption(reading, model=model, wire=wire, role="session")
    if (speed := text(config, "speed")) and speed != "standard":
        group = replace(group, speed=speed)
    if section(wire, "list_cost") and group.supplied_cost is None:
        reading = replace(reading, flags=reading.flags | {"foreign_currency"})
    return replace(observation(reading, group, body, wire, deduplicate=True), response_model=model)


def dream(body: JSON, context: Context) -> Observation:
    """A dream: one model for all of its work. Its cache writes of both lifetimes come as one number."""
    if context.final_only and text(body, "status") in {"pending", "running"}:
        return pending(body)
    wire = section(body, "usage") if "usage" in body else body
    reading = replace(exclusive(wire), prompt_tokens=None)
    config = section(body, "model")
    model = text(config, "id") or text(body, "model")
    group = context.consumption(_unsplit(reading, wire), model=model, role="dream")
    if (speed := text(config, "speed")) and speed != "standard":
        group = replace(group, speed=speed)
    return replace(observation(_unsplit(reading, wire), group, body, wire, deduplicate=True), response_model=model)


def span(body: JSON, context: Context) -> Observation:
    """One model request inside a session, or one evaluation of its outcome."""
    wire = section(body, "model_usage", "usage")
    reading = _unsplit(exclusive(wire), wire)
    if body.get("type") == "span.outcome_evaluation_end":
        reading = replace(reading, prompt_tokens=None)
    group = context.consumption(reading, model=None)
    speed = text(wire, "speed")
    group = replace(group, speed=speed if speed != "standard" else None)
    return observation(reading, group, body, wire, deduplicate=True)


def _unsplit(reading: Reading, wire: JSON) -> Reading:
    """Cache writes that may be of either lifetime are taken as five-minute ones, flagged."""
    if count(wire, "cache_creation_input_tokens") and not section(wire, "cache_creation"):
        return replace(reading, flags=reading.flags | {"cache_ttl_assumed"})
    return reading


BY_TYPE: dict[str, Callable[[JSON, Context], Observation]] = {
    "session": session,
    "session_thread": session,
    "session.usage": session,
    "dream": dream,
    "span.model_request_end": span,
    "span.outcome_evaluation_end": span,
}
