"""Anthropic's managed agents, as far as accounting needs them: sessions with cumulative usage; and models."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

from tokenmeter.money import add, total
from tokenmeter.testing.composition import compose
from tokenmeter.testing.context import Context, Served
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.wire import JSON, Reply, json_reply, part, sse
from tokenmeter.testing.wire_usage import read_messages
from tokenmeter.usage import Usage

_AGENT_MODEL = "claude-sonnet-5"
_MODELS = ("claude-opus-5", "claude-sonnet-5", "claude-haiku-4-5")
_MODELS_MADE = datetime(2026, 1, 1, tzinfo=UTC).isoformat()


def create(context: Context) -> Served:
    """``POST /v1/sessions``: an idle session that has used nothing yet."""
    agent: Any = context.need("agent")
    agent_id = agent if isinstance(agent, str) else str(cast("JSON", agent).get("id"))
    now = context.now.isoformat()
    session: JSON = {
        "id": context.new_id("sesn_"),
        "type": "session",
        "agent": {
            "id": agent_id,
            "type": "agent",
            "name": "fake",
            "version": 1,
            "model": {"id": context.answer.model or _AGENT_MODEL},
            "execution_identity": {"type": "service_account"},
            "mcp_servers": [],
            "skills": [],
            "tools": [],
        },
        "environment_id": context.body.get("environment_id") or "env_fake",
        "created_at": now,
        "updated_at": now,
        "metadata": context.body.get("metadata") or {},
        "outcome_evaluations": [],
        "resources": [],
        "stats": {"active_seconds": 0.0, "duration_seconds": 0.0},
        "status": "idle",
        "title": context.body.get("title"),
        "usage": {},
        "vault_ids": context.body.get("vault_ids") or [],
    }
    context.state.put("sessions", session["id"], session)
    context.state.put("session_events", session["id"], [])
    context.state.put("session_usage", session["id"], Usage())
    return Served(reply=json_reply(session))


def send_events(context: Context) -> Served:
    """``POST /v1/sessions/{id}/events``: each user message is answered, and the session's usage grows."""
    session: JSON = context.state.get("sessions", context.params[0])
    stamp = context.now.isoformat()
    sent: list[JSON] = [
        {"id": context.state.new_id("sevt_"), "processed_at": stamp, **event}
        for event in cast("list[JSON]", context.need("events"))
    ]
    asked = [event for event in sent if event["type"] == "user.message"]
    if not asked:
        return Served(reply=json_reply({"data": sent}))
    context.body.update(model=session["agent"]["model"]["id"], messages=[{"content": e["content"]} for e in asked])
    composition = compose(context, read_messages)
    with context.state.lock:
        total: Usage = context.state.get("session_usage", session["id"]) + composition.usage
        context.state.put("session_usage", session["id"], total)
        session = {**session, "usage": _cumulative(context, session, total), "updated_at": stamp}
        context.state.put("sessions", session["id"], session)
        answered: list[JSON] = [
            _span(composition.usage, context.state.new_id("sevt_")),
            {"type": "agent.message", "content": [{"type": "text", "text": composition.text or ""}]},
            {"type": "session.usage", "usage": session["usage"]},
            {"type": "session.status_idle", "stop_reason": {"type": "end_turn"}},
        ]
        told = [{"id": context.state.new_id("sevt_"), "processed_at": stamp, **event} for event in answered]
        context.state.get("session_events", session["id"]).extend([*sent, *told])
    bill = composition.bill(session["id"], session["usage"], *context.answer.also, service_tier="standard")
    return Served(reply=json_reply({"data": sent}), bill=bill)


def _span(usage: Usage, start: str) -> JSON:
    """The end of the turn's one model request."""
    wire = {
        "input_tokens": int(usage["input"]),
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation_input_tokens": int(add(usage["cache_write_5m"], usage["cache_write_1h"])),
    }
    return {"type": "span.model_request_end", "model_request_start_id": start, "is_error": False, "model_usage": wire}


def _cumulative(context: Context, session: JSON, usage: Usage) -> JSON:
    wire: JSON = {
        "input_tokens": int(usage["input"]),
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": int(usage["cache_write_5m"]),
            "ephemeral_1h_input_tokens": int(usage["cache_write_1h"]),
        },
    }
    step = part(context.answer.fields, "list_cost")  # this turn's own cost, in minor units
    before = part(session["usage"], "list_cost")
    if step or before:
        amount = total(Decimal(str(cost.get("amount", 0))) for cost in (before, step))
        wire["list_cost"] = {"amount": str(amount), "currency": "USD"}
    return wire


def retrieve(context: Context) -> Served:
    """``GET /v1/sessions/{id}``."""
    return Served(reply=json_reply(context.state.get("sessions", context.params[0])))


def list_sessions(context: Context) -> Served:
    """``GET /v1/sessions``."""
    return Served(reply=json_reply({"data": context.state.all("sessions"), "next_page": None}))


def update(context: Context) -> Served:
    """``POST /v1/sessions/{id}``."""
    session: JSON = context.state.get("sessions", context.params[0])
    changed = {name: value for name, value in context.body.items() if name in {"metadata", "title"}}
    session = {**session, **changed, "updated_at": context.now.isoformat()}
    context.state.put("sessions", session["id"], session)
    return Served(reply=json_reply(session))


def archive(context: Context) -> Served:
    """``POST /v1/sessions/{id}/archive``."""
    session: JSON = context.state.get("sessions", context.params[0])
    archived = {**session, "status": "terminated", "archived_at": context.now.isoformat()}
    context.state.put("sessions", session["id"], archived)
    return Served(reply=json_reply(archived))


def list_events(context: Context) -> Served:
    """``GET /v1/sessions/{id}/events``."""
    events = list(context.state.get("session_events", context.params[0]))
    return Served(reply=json_reply({"data": events, "next_page": None}))


def stream_events(context: Context) -> Served:
    """``GET /v1/sessions/{id}/events/stream``: what has happened so far."""
    events = context.state.get("session_events", context.params[0])
    framed = tuple(sse(event, event=event["type"]) for event in events)
    return Served(reply=Reply(headers=dict(SSE), events=framed))


def list_models(context: Context) -> Served:
    """``GET /v1/models``."""
    del context
    models = [_model(name) for name in _MODELS]
    body = {"data": models, "has_more": False, "first_id": _MODELS[0], "last_id": _MODELS[-1]}
    return Served(reply=json_reply(body))


def model(context: Context) -> Served:
    """``GET /v1/models/{id}``: every model exists."""
    return Served(reply=json_reply(_model(context.params[0])))


def _model(name: str) -> JSON:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": _MODELS_MADE,
        "lifecycle": "active",
        "capabilities": None,
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }
