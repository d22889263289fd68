"""Decoding request bodies: JSON, or multipart forms as file uploads send them."""

from __future__ import annotations

import re
from typing import Any

from tokenmeter.testing.context import RefusalError
from tokenmeter.testing.wire import JSON, Request

__all__ = ["Upload", "decode"]

_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_PARAMETER = re.compile(r'\b(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


class Upload(bytes):
    """The content of an uploaded file, with its name."""

    filename: str = "upload"


def decode(request: Request) -> JSON:
    """The parameters of a request; empty for a request without a body.

    Raises:
        RefusalError: 400 when the body is no JSON object.
    """
    kind = request.header("content-type") or ""
    if kind.lower().startswith("multipart/form-data"):
        found = _BOUNDARY.search(kind)
        return _form(request.body, found[1].encode()) if found else {}
    if not request.body:
        return {}
    body: Any = request.json
    if not isinstance(body, dict):
        raise RefusalError(400, "We could not parse the JSON body of your request.")
    return dict(body)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _form(body: bytes, boundary: bytes) -> JSON:
    fields: JSON = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        named = {key.lower(): value for key, value in _PARAMETER.findall(head.decode("utf-8", "replace"))}
        content = content.removesuffix(b"\r\n")
        value: Any = content.decode("utf-8", "replace")
        if "filename" in named:
            value = Upload(content)
            value.filename = named["filename"]
        _add(fields, named.get("name", ""), value)
    return fields


def _add(fields: JSON, name: str, value: Any) -> None:
    if name.endswith("[]"):
        fields.setdefault(name[:-2], []).append(value)
    else:
        fields[name] = value
