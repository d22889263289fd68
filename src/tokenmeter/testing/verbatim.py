"""Scripted bodies and event lists, sent as they stand; billed for the meters or the usage they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from tokenmeter.testing.context import Served
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.routes import Match
from tokenmeter.testing.script import Answer
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import Event, Reply, json_reply, sse
from tokenmeter.testing.wire_usage import read_chat, read_messages, read_responses
from tokenmeter.usage import Consumption, Usage

__all__ = ["serve_verbatim"]

_FIRST_ERROR = 400


def serve_verbatim(match: Match, answer: Answer, request_model: str | None) -> Served:
    """Serve `answer`'s own body or events."""
    told: Mapping[str, Any] = {}
    body: object = answer.body
    if answer.events is not None:
        reply = Reply(headers=dict(SSE), events=tuple(map(_event, answer.events)))
    elif isinstance(body, str):
        reply = Reply(body=body.encode())
    elif isinstance(body, bytes):
        reply = Reply(body=body)
    else:
        reply = json_reply(body)
        told = cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else {}
    reply.status = answer.status
    return Served(reply=reply, bill=_bill(match, answer, request_model, told))


def _event(event: Event | Mapping[str, Any] | str | bytes) -> Event:
    if isinstance(event, Event):
        return event
    if isinstance(event, str | bytes):
        return Event(event.encode() if isinstance(event, str) else event)
    kind = event.get("type")
    return sse(event, event=kind if isinstance(kind, str) else None)


def _bill(match: Match, answer: Answer, request_model: str | None, told: Mapping[str, Any]) -> Bill:
    wire = answer.usage if answer.usage is not None else told.get("usage")
    usage = Usage()
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.status < _FIRST_ERROR:
        usage = _read(match, wire)
    model = answer.model or told.get("model") or request_model
    part = Consumption(
        model=model, usage=usage, service_tier=answer.service_tier, prompt_tokens=usage.input_tokens or None
    )
    return Bill(
        model=model,
        response_id=answer.response_id or told.get("id"),
        consumptions=(*((part,) if usage else ()), *answer.also),
        wire_usage=wire,
        service_tier=answer.service_tier,
    )


def _read(match: Match, wire: object) -> Usage:
    """What a scripted usage object bills; nothing when it is none that a provider would send (then give ``meters``)."""
    if not isinstance(wire, Mapping):
        return Usage()
    try:
        usage = _reader(match)(cast("Mapping[str, Any]", wire))
    except (AttributeError, TypeError, ValueError):
        return Usage()
    return usage if all(type(quantity) is int and quantity >= 0 for quantity in usage.quantities.values()) else Usage()


def _reader(match: Match) -> Callable[[Mapping[str, Any]], Usage]:
    if match.provider == "anthropic":
        return read_messages
    return read_chat if match.name in {"chat.completions", "completions", "embeddings"} else read_responses
