"""OpenAI's files and models, and its asynchronous work: batches, tunings and videos, all done at the first look."""

from __future__ import annotations

import json
from typing import Any

from tokenmeter.testing.composition import count_tokens, responses_usage
from tokenmeter.testing.context import Context, RefusalError, Served, State, Upload, error_body
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Reply, dump, json_reply, part
from tokenmeter.usage import Consumption, Usage

_DAY = 86_400
_EPOCHS = 3
_VIDEO_SECONDS = "4"


# -- batches


def create_batch(context: Context) -> Served:
    """``POST /batches``: every line is served, and billed, at once; the caller sees it when it looks again."""
    data: bytes = context.state.get("contents", str(context.need("input_file_id")))
    window, endpoint = context.need("completion_window"), context.need("endpoint")
    done: list[JSON] = []
    failed: list[JSON] = []
    bills: list[tuple[str, Bill]] = []
    for line in data.splitlines():
        if line.strip():
            _serve_line(context, json.loads(line), done, failed, bills)
    batch: JSON = {
        "id": context.new_id("batch_"),
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": context.body["input_file_id"],
        "completion_window": window,
        "status": "validating",
        "created_at": context.timestamp,
        "expires_at": context.timestamp + _DAY,
        "request_counts": {"total": len(done) + len(failed), "completed": 0, "failed": 0},
        "metadata": context.body.get("metadata"),
    }
    finished = _finish(context, batch, done, failed, bills)
    context.state.put("batches", batch["id"], finished)
    return Served(reply=json_reply(batch), bill=Bill(response_id=batch["id"]), lines=tuple(bills))


def _serve_line(
    context: Context, line: JSON, done: list[JSON], failed: list[JSON], bills: list[tuple[str, Bill]]
) -> None:
    row: JSON = {"id": context.state.new_id("batch_req_"), "custom_id": line["custom_id"]}
    request_id = context.state.new_id("req_")
    try:
        endpoint, served = context.inner(line["url"], line["body"])
    except RefusalError as refusal:
        body = error_body("openai", refusal, request_id=request_id)
        response = {"status_code": refusal.status, "request_id": request_id, "body": body}
        failed.append({**row, "response": response, "error": None})
        return
    body = json.loads(served.reply.body)
    done.append({**row, "response": {"status_code": 200, "request_id": request_id, "body": body}, "error": None})
    if served.bill is not None:
        bills.append((endpoint, served.bill.for_line(line["custom_id"])))


def _finish(context: Context, batch: JSON, done: list[JSON], failed: list[JSON], bills: list[tuple[str, Bill]]) -> JSON:
    now = context.timestamp
    finished: JSON = {
        **batch,
        "status": "completed",
        "in_progress_at": now,
        "finalizing_at": now,
        "completed_at": now,
        "request_counts": {"total": len(done) + len(failed), "completed": len(done), "failed": len(failed)},
    }
    for name, rows in (("output", done), ("error", failed)):
        if rows:
            data = b"".join(dump(row) + b"\n" for row in rows)
            file = store_file(context.state, data, f"{batch['id']}_{name}.jsonl", "batch_output", now)
            finished[f"{name}_file_id"] = file["id"]
    parts = [one for _, bill in bills for one in bill.consumptions]
    if not context.answer.omit_usage:
        finished["usage"] = _batch_usage(Usage.total(one.usage for one in parts))
    models = {one.model for one in parts}
    if len(models) == 1:
        finished["model"] = models.pop()
    return finished


def _batch_usage(usage: Usage) -> JSON:
    wire = responses_usage(usage)
    del wire["input_tokens_details"]["cache_write_tokens"]
    return wire


def retrieve_batch(context: Context) -> Served:
    """``GET /batches/{id}``."""
    return Served(reply=json_reply(context.state.get("batches", context.params[0])))


def list_batches(context: Context) -> Served:
    """``GET /batches``: all of them, or those behind the one called ``after``. Old SDKs ask until there are none."""
    batches = context.state.all("batches")
    ids = [batch["id"] for batch in batches]
    after = context.request.query.get("after", [])
    shown = batches[ids.index(after[0]) + 1 :] if after and after[0] in ids else batches
    return Served(reply=json_reply({"object": "list", "data": shown, "has_more": False}))


def cancel_batch(context: Context) -> Served:
    """``POST /batches/{id}/cancel``: what was done by then is done."""
    batch: JSON = context.state.get("batches", context.params[0])
    cancelled = {**batch, "status": "cancelled", "cancelling_at": context.timestamp, "cancelled_at": context.timestamp}
    del cancelled["completed_at"]
    context.state.put("batches", batch["id"], cancelled)
    return Served(reply=json_reply({**cancelled, "status": "cancelling", "cancelled_at": None}))


# -- fine-tuning


def create_tuning(context: Context) -> Served:
    """``POST /fine_tuning/jobs``: the training file's tokens are billed once per epoch."""
    model = str(context.need("model"))
    data: bytes = context.state.get("contents", str(context.need("training_file")))
    asked: Any = part(context.body, "hyperparameters").get("n_epochs")
    epochs = asked if isinstance(asked, int) else _EPOCHS
    used = Usage(
        dict(context.answer.meters or {"trained_tokens": count_tokens(data.decode("utf-8", "replace")) * epochs})
    )
    job: JSON = {
        "id": context.new_id("ftjob-"),
        "object": "fine_tuning.job",
        "created_at": context.timestamp,
        "error": None,
        "fine_tuned_model": None,
        "finished_at": None,
        "hyperparameters": {"n_epochs": epochs, "batch_size": "auto", "learning_rate_multiplier": "auto"},
        "model": model,
        "organization_id": "org-fake",
        "result_files": [],
        "seed": int(context.body.get("seed") or 0),
        "status": "queued",
        "trained_tokens": None,
        "training_file": context.body["training_file"],
        "validation_file": context.body.get("validation_file"),
    }
    finished = {
        **job,
        "status": "succeeded",
        "finished_at": context.timestamp,
        "trained_tokens": int(used["trained_tokens"]),
        "fine_tuned_model": f"ft:{model}:fake::{job['id'][-8:]}",
    }
    context.state.put("tunings", job["id"], finished)
    charged = Consumption(model=model, usage=used, role="training")
    return Served(reply=json_reply(job), bill=Bill(model=model, response_id=job["id"], consumptions=(charged,)))


def retrieve_tuning(context: Context) -> Served:
    """``GET /fine_tuning/jobs/{id}``."""
    return Served(reply=json_reply(context.state.get("tunings", context.params[0])))


# -- videos


def create_video(context: Context) -> Served:
    """``POST /videos``: billed by the second."""
    model = str(context.body.get("model") or "sora-2")
    seconds = str(context.body.get("seconds") or _VIDEO_SECONDS)
    video: JSON = {
        "id": context.new_id("video_"),
        "object": "video",
        "model": model,
        "status": "queued",
        "progress": 0,
        "created_at": context.timestamp,
        "seconds": seconds,
        "size": context.body.get("size") or "720x1280",
        "prompt": context.need("prompt"),
    }
    finished = {**video, "status": "completed", "progress": 100, "completed_at": context.timestamp}
    context.state.put("videos", video["id"], finished)
    charged = Consumption(model=model, usage=Usage(dict(context.answer.meters or {"seconds_video": int(seconds)})))
    return Served(reply=json_reply(video), bill=Bill(model=model, response_id=video["id"], consumptions=(charged,)))


def retrieve_video(context: Context) -> Served:
    """``GET /videos/{id}``."""
    return Served(reply=json_reply(context.state.get("videos", context.params[0])))


def video_content(context: Context) -> Served:
    """``GET /videos/{id}/content``."""
    context.state.get("videos", context.params[0])
    return Served(reply=Reply(headers={"content-type": "video/mp4"}, body=b"\x00\x00\x00\x18ftypmp42"))


_MODELS = ("gpt-5", "gpt-5-mini", "gpt-4o", "text-embedding-3-small", "gpt-image-1", "whisper-1")
_MODELS_MADE = 1_700_000_000


def upload(context: Context) -> Served:
    """``POST /files``."""
    given = context.need("file")
    if not isinstance(given, Upload):
        raise RefusalError(400, "file: expected an uploaded file.", param="file")
    purpose = str(context.need("purpose"))
    return Served(reply=json_reply(store_file(context.state, given, given.filename, purpose, context.timestamp)))


def store_file(state: State, data: bytes, filename: str, purpose: str, created_at: int) -> JSON:
    """Keep a file; its file object."""
    file: JSON = {
        "id": state.new_id("file-"),
        "object": "file",
        "bytes": len(data),
        "created_at": created_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    }
    state.put("files", file["id"], file)
    state.put("contents", file["id"], data)
    return file


def retrieve_file(context: Context) -> Served:
    """``GET /files/{id}``."""
    return Served(reply=json_reply(context.state.get("files", context.params[0])))


def content(context: Context) -> Served:
    """``GET /files/{id}/content``."""
    data: bytes = context.state.get("contents", context.params[0])
    return Served(reply=Reply(headers={"content-type": "application/octet-stream"}, body=data))


def list_files(context: Context) -> Served:
    """``GET /files``."""
    return Served(reply=json_reply(_page(context.state.all("files"))))


def delete_file(context: Context) -> Served:
    """``DELETE /files/{id}``."""
    identity = context.state.get("files", context.params[0])["id"]
    context.state.remove("files", identity)
    context.state.remove("contents", identity)
    return Served(reply=json_reply({"id": identity, "object": "file", "deleted": True}))


def list_models(context: Context) -> Served:
    """``GET /models``."""
    del context
    return Served(reply=json_reply({"object": "list", "data": [_model(name) for name in _MODELS]}))


def model(context: Context) -> Served:
    """``GET /models/{id}``: every model exists."""
    return Served(reply=json_reply(_model(context.params[0])))


def _model(name: str) -> JSON:
    return {"id": name, "object": "model", "created": _MODELS_MADE, "owned_by": "fake"}


def _page(items: list[Any]) -> JSON:
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": items, "has_more": False, **ends}
