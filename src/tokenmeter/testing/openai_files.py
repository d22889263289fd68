"""OpenAI's files and models."""

from __future__ import annotations

from typing import Any

from tokenmeter.testing.context import Context, RefusalError, Served, State
from tokenmeter.testing.form import Upload
from tokenmeter.testing.wire import JSON, Reply, json_reply

__all__ = ["content", "delete_file", "list_files", "list_models", "model", "retrieve_file", "store_file", "upload"]

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
