"""Anthropic's message batches: created in progress, ended at the first look."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, cast

from tokenmeter.testing.context import Context, RefusalError, Served, error_body
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Reply, dump, json_reply

_KINDS = ("succeeded", "errored", "expired", "canceled", "processing")


def create(context: Context) -> Served:
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


def retrieve(context: Context) -> Served:
    """``GET /v1/messages/batches/{id}``."""
    return Served(reply=json_reply(context.state.get("message_batches", context.params[0])))


def results(context: Context) -> Served:
    """``GET /v1/messages/batches/{id}/results``: one JSON object per line."""
    rows: list[JSON] = context.state.get("message_results", context.params[0])
    data = b"".join(dump(row) + b"\n" for row in rows)
    return Served(reply=Reply(headers={"content-type": "application/x-jsonl"}, body=data))


def list_batches(context: Context) -> Served:
    """``GET /v1/messages/batches``."""
    batches = context.state.all("message_batches")
    ends = {"first_id": batches[0]["id"], "last_id": batches[-1]["id"]} if batches else {}
    return Served(reply=json_reply({"data": batches, "has_more": False, **ends}))


def cancel(context: Context) -> Served:
    """``POST /v1/messages/batches/{id}/cancel``: what was done by then is done."""
    batch: JSON = context.state.get("message_batches", context.params[0])
    canceling = {**batch, "processing_status": "canceling", "cancel_initiated_at": _stamp(context.now)}
    return Served(reply=json_reply({**canceling, "ended_at": None, "results_url": None}))


def delete(context: Context) -> Served:
    """``DELETE /v1/messages/batches/{id}``."""
    identity = context.state.get("message_batches", context.params[0])["id"]
    context.state.remove("message_batches", identity)
    return Served(reply=json_reply({"id": identity, "type": "message_batch_deleted"}))
