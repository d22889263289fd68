"""Anthropic beside its answers: batches, managed agents' sessions, models."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from tokenmeter.money import add, total
from tokenmeter.testing.composition import compose, read_messages
from tokenmeter.testing.context import Context, RefusalError, Served, error_body
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Reply, dump, json_reply, part, sse
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


_KINDS = ("succeeded", "errored", "expired", "canceled", "processing")


def create_batch(context: Context) -> Served:
    """``POST /v1/messages/batches``: every request is served, and billed, at once.

    A request whose scripted answer has ``stop_reason`` ``expired`` or ``canceled`` ends so, and is not billed.
    """
    rows: list[JSON] = []
    bills: list[tuple[str, Bill]] = []
    for item in cast("list[JSON]", context.need("requests")):
        result, bill = _serve_request(context, item)
        rows.append({"custom_id": item["custom_id"], "result": result})
        if bill is not None:
            bills.append(("messages", bill.for_line(item["custom_id"])))
    identity = context.new_id("msgbatch_")
    batch: JSON = {
        "id": identity,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": _counts(["processing"] * len(rows)),
        "created_at": _stamp(context.now),
        "expires_at": _stamp(context.now + timedelta(days=1)),
        "ended_at": None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
    }
    ended = {
        **batch,
        "processing_status": "ended",
        "request_counts": _counts([row["result"]["type"] for row in rows]),
        "ended_at": _stamp(context.now),
        "results_url": f"{context.root}/v1/messages/batches/{identity}/results",
    }
    context.state.put("message_batches", identity, ended)
    context.state.put("message_results", identity, rows)
    return Served(reply=json_reply(batch), bill=Bill(response_id=identity), lines=tuple(bills))


def _serve_request(context: Context, item: JSON) -> tuple[JSON, Bill | None]:
    try:
        _, served = context.inner("/v1/messages", dict(item["params"]))
    except RefusalError as refusal:
        request_id = context.state.new_id("req_")
        return {"type": "errored", "error": error_body("anthropic", refusal, request_id=request_id)}, None
    message: Any = json.loads(served.reply.body)
    if message["stop_reason"] in {"expired", "canceled"}:
        return {"type": message["stop_reason"]}, None
    return {"type": "succeeded", "message": message}, served.bill


def _counts(kinds: list[str]) -> JSON:
    counted = Counter(kinds)
    return {kind: counted[kind] for kind in _KINDS}


def _stamp(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def batch_results(context: Context) -> Served:
    """``GET /v1/messages/batches/{id}/results``: one JSON object per line."""
    rows: list[JSON] = context.state.get("message_results", context.params[0])
    data = b"".join(dump(row) + b"\n" for row in rows)
    return Served(reply=Reply(headers={"content-type": "application/x-jsonl"}, body=data))


def list_batches(context: Context) -> Served:
    """``GET /v1/messages/batches``."""
    batches = context.state.all("message_batches")
    ends = {"first_id": batches[0]["id"], "last_id": batches[-1]["id"]} if batches else {}
    return Served(reply=json_reply({"data": batches, "has_more": False, **ends}))


def cancel_batch(context: Context) -> Served:
    """``POST /v1/messages/batches/{id}/cancel``: what was done by then is done."""
    batch: JSON = context.state.get("message_batches", context.params[0])
    canceling = {**batch, "processing_status": "canceling", "cancel_initiated_at": _stamp(context.now)}
    return Served(reply=json_reply({**canceling, "ended_at": None, "results_url": None}))


def delete_batch(context: Context) -> Served:
    """``DELETE /v1/messages/batches/{id}``."""
    identity = context.state.get("message_batches", context.params[0])["id"]
    context.state.remove("message_batches", identity)
    return Served(reply=json_reply({"id": identity, "type": "message_batch_deleted"}))
