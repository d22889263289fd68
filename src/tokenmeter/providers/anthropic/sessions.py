"""Anthropic's managed agents and dreams. A session states its running total, a dream the total when it has ended.

Source: ``anthropic.types.beta`` BetaManagedAgentsSession, BetaManagedAgentsSessionUsage, BetaDream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from tokenmeter.providers.anthropic.usage import exclusive
from tokenmeter.providers.context import Context, observation, pending, unknown
from tokenmeter.providers.shapes import NO_FLAGS, Reading
from tokenmeter.providers.wire import JSON, amount, section, text
from tokenmeter.usage import Observation, Usage

__all__ = ["BY_TYPE", "dream", "other_event", "session"]


def session(body: JSON, context: Context) -> Observation:
    """A session, a thread of one, its usage event, or the usage object itself: a running total.

    Tokens over many prompts, running time and searches; ``list_cost``, where it is tracked, is the bill.
    """
    wire = section(body, "usage") if "usage" in body else body
    config = section(section(body, "agent"), "model")
    model = text(config, "id") or text(section(body, "agent"), "model")
    if context.final_only and not _used(body, wire):
        return replace(pending(body), response_model=model)
    if not wire:
        return unknown(body, body.get("usage"), model=context.request.model, deduplicate=True)
    # A part that is not stated has not come up as yet.
    reading = replace(exclusive(wire), prompt_tokens=None, unsaid=NO_FLAGS)
    flags: set[str] = set()
    if active := amount(wire, "active_seconds", flags=flags):
        reading = replace(reading, usage=reading.usage + Usage({"runtime_seconds": active}))
    reading = replace(reading, flags=reading.flags | flags)
    group = context.consumption(reading, model=model, wire=wire, role="session")
    if (speed := text(config, "speed")) and speed != "standard":
        group = replace(group, speed=speed)
    if section(wire, "list_cost") and group.supplied_cost is None:
        reading = replace(reading, flags=reading.flags | {"foreign_currency"})
    seen = observation(reading, group, body, wire, deduplicate=True)
    return replace(seen, response_model=model, reading="total", at=_instant(body))


def _used(body: JSON, wire: JSON) -> bool:
    """Whether there is anything to record as yet: a new session's usage is empty."""
    if wire:
        return any(value is not None for value in wire.values())
    return text(body, "status") == "terminated" and bool(section(body, "stats").get("active_seconds"))


def _instant(body: JSON) -> datetime | None:
    """When an event was processed, aware UTC; None for what is no event."""
    written = text(body, "processed_at")
    try:
        found = None if written is None else datetime.fromisoformat(written)
    except ValueError:
        return None
    return None if found is None or found.tzinfo is None else found.astimezone(UTC)


def other_event(body: JSON, _context: Context) -> Observation:
    """An event of a session that says nothing of its usage."""
    return Observation(response_id=text(body, "id"), billable=False)


def dream(body: JSON, context: Context) -> Observation:
    """A dream: one model for all of its work. Its cache writes of both lifetimes come as one number."""
    if context.final_only and text(body, "status") in {"pending", "running"}:
        return pending(body)
    wire = section(body, "usage") if "usage" in body else body
    reading = _unsplit(replace(exclusive(wire), prompt_tokens=None), wire)
    config = section(body, "model")
    model = text(config, "id") or text(body, "model")
    if reading.unsaid and text(body, "status") != "completed":
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
    reading = _unsplit(exclusive(wire), wire)
    if reading.unsaid:
        seen = unknown(body, wire or None, model=context.request.model, flags=reading.flags, deduplicate=True)
        return replace(seen, reading="step", at=_instant(body))
    if body.get("type") == "span.outcome_evaluation_end":
        reading = replace(reading, prompt_tokens=None)
    group = context.consumption(reading, model=None)
    speed = text(wire, "speed")
    group = replace(group, speed=speed if speed != "standard" else None)
    return replace(observation(reading, group, body, wire, deduplicate=True), reading="step", at=_instant(body))


def _unsplit(reading: Reading, wire: JSON) -> Reading:
    """Cache writes that may be of either lifetime are taken as five-minute ones, flagged."""
    if wire.get("cache_creation_input_tokens") and not section(wire, "cache_creation"):
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
