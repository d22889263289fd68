"""Messages as Amazon Bedrock and Google Vertex AI serve them: other URLs, and Amazon's binary event stream."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from urllib.parse import unquote

from tokenmeter.testing import anthropic_messages
from tokenmeter.testing.context import Context, Endpoint, Served
from tokenmeter.testing.wire import JSON, Event, Reply, dump

__all__ = ["cloud_endpoint"]

_BEDROCK = re.compile(r"/model/(.+)/(invoke|invoke-with-response-stream)$")
_VERTEX = re.compile(r"/publishers/anthropic/models/(.+):(rawPredict|streamRawPredict)$")
_SSE_DATA = b"data: "


def cloud_endpoint(path: str) -> tuple[str, Endpoint, JSON] | None:
    """Endpoint name, endpoint and implied parameters of a cloud's URL path; None for any other path."""
    if found := _BEDROCK.search(path):
        streamed = found[2] != "invoke"
        serve = _bedrock_stream if streamed else anthropic_messages.create
        return "messages", serve, {"model": unquote(found[1]), "stream": streamed}
    if found := _VERTEX.search(path):
        if found[1].startswith("count-tokens"):
            return "messages.count_tokens", anthropic_messages.count_tokens, {}
        return "messages", anthropic_messages.create, {"model": found[1], "stream": found[2] != "rawPredict"}
    return None


def _bedrock_stream(context: Context) -> Served:
    served = anthropic_messages.create(context)
    events = tuple(Event(_frame(event.data), event.generated) for event in served.reply.events or ())
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    return Served(reply=Reply(headers=headers, events=events), bill=served.bill)


def _frame(sse: bytes) -> bytes:
    """A server-sent event as a message of ``application/vnd.amazon.eventstream``.

    Layout: total length, length of headers, CRC of these; headers; payload; CRC of all.
    Source: the AWS event stream encoding specification.
    """
    data = sse[sse.index(_SSE_DATA) + len(_SSE_DATA) :].strip()
    payload = dump({"bytes": base64.b64encode(data).decode()})
    named = ((":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event"))
    headers = b"".join(_header(name, value) for name, value in named)
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    text_type = 7
    return struct.pack(f">B{len(name)}sBH", len(name), name.encode(), text_type, len(value)) + value.encode()
