"""Anthropic's messages: JSON, the full event sequence, and token counts.

As Amazon Bedrock and Google Vertex AI serve them, too: other URLs, and Amazon's binary event stream.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tokenmeter.testing.composition import (
    Composition,
    arguments_text,
    compose,
    iteration_usage,
    messages_usage,
    prompt_tokens,
    read_messages,
    split_words,
)
from tokenmeter.testing.context import Context, Endpoint, Served, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.wire import JSON, Event, Reply, dump, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenmeter.testing.truth import Bill

_STOP = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
#: Usage of a message_delta: cumulative, without the context (tier, geography, speed) that message_start gave.
_DELTA = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
    "iterations",
)


def create(context: Context) -> Served:
    """``POST /v1/messages``."""
    context.need("messages")
    context.need("max_tokens")
    composition = compose(context, read_messages)
    message = _message(context, composition)
    bill = _bill(context, composition, message)
    if context.body.get("stream"):
        return Served(reply=Reply(headers=dict(SSE), events=tuple(_events(message, composition))), bill=bill)
    return Served(reply=json_reply(message), bill=bill)


def count_tokens(context: Context) -> Served:
    """``POST /v1/messages/count_tokens``: free."""
    return Served(reply=json_reply({"input_tokens": prompt_tokens(context.body)}))


def _message(context: Context, composition: Composition) -> JSON:
    answer = context.answer
    message: JSON = {
        "id": context.new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": composition.model,
        "content": _content(context, composition),
        "stop_reason": answer.stop_reason or _STOP[composition.finish],
        "stop_sequence": None,
        "usage": _usage(context, composition),
    }
    if answer.omit_usage:
        message["usage"] = {"input_tokens": 0, "output_tokens": 0}  # the format cannot do without
    return merged(message, answer.fields)


def _tier(context: Context) -> str:
    return context.answer.service_tier or ("batch" if context.batch else "standard")


def _speed(context: Context) -> str | None:
    return context.answer.speed or context.body.get("speed")


def _geo(context: Context) -> str | None:
    return context.answer.inference_geo or context.body.get("inference_geo")


def _usage(context: Context, composition: Composition) -> JSON:
    if composition.wire_usage is not None:
        return dict(composition.wire_usage)
    usage = messages_usage(composition.usage, service_tier=_tier(context), geo=_geo(context), speed=_speed(context))
    if iterations := _iterations(context, composition):
        usage["iterations"] = iterations
    return usage


def _iterations(context: Context, composition: Composition) -> list[JSON]:
    """Scripted iterations as the wire writes them; the serving model's own entry is added when none was scripted."""
    scripted = context.answer.iterations
    if not scripted:
        return []
    wire = [
        iteration_usage(_meters(entry), kind=entry["type"], model=entry.get("model", composition.model))
        for entry in scripted
    ]
    if all(entry["type"] != "message" for entry in scripted):
        wire.append(iteration_usage(composition.usage, kind="message", model=composition.model))
    return wire


def _meters(entry: Mapping[str, Any]) -> Usage:
    return Usage(dict(entry["meters"]), entry.get("reasoning_tokens", 0))


def _bill(context: Context, composition: Composition, message: JSON) -> Bill:
    """The message's bill: compaction and advisors cost beside it, each at its own model."""
    speed, geo = _speed(context), _geo(context)
    settings: dict[str, Any] = {"speed": speed if speed == "fast" else None, "geo": geo if geo == "us" else None}
    beside = tuple(
        Consumption(
            model=entry.get("model", composition.model),
            usage=_meters(entry),
            service_tier=_tier(context),
            role=entry["type"],
            prompt_tokens=_meters(entry).input_tokens,
            **settings,
        )
        for entry in context.answer.iterations
        if entry["type"] in {"compaction", "advisor_message"}
    )
    extra = (*beside, *context.answer.also)
    tier = part(message, "usage").get("service_tier") or _tier(context)
    return composition.bill(message["id"], message["usage"], *extra, service_tier=tier, **settings)


def _content(context: Context, composition: Composition) -> list[JSON]:
    blocks: list[JSON] = []
    if composition.reasoning is not None:
        blocks.append({"type": "thinking", "thinking": composition.reasoning, "signature": "ZmFrZQ=="})
    if context.answer.output:
        blocks += [dict(item) for item in context.answer.output]
    else:
        blocks += _searches(context, int(composition.usage["web_searches"]))
    if composition.text is not None:
        blocks.append({"type": "text", "text": composition.text, "citations": None})
    for name, arguments in composition.tool_calls:
        given: Any = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
        blocks.append({"type": "tool_use", "id": context.state.new_id("toolu_"), "name": name, "input": given})
    return blocks


def _searches(context: Context, number: int) -> list[JSON]:
    """The blocks of so many web searches, each with one hit."""
    blocks: list[JSON] = []
    for _ in range(number):
        identity = context.state.new_id("srvtoolu_")
        blocks.append({"type": "server_tool_use", "id": identity, "name": "web_search", "input": {"query": "fake"}})
        hit = {
            "type": "web_search_result",
            "title": "Fake",
            "url": f"{context.root}/fake",
            "encrypted_content": "ZmFrZQ==",
            "page_age": None,
        }
        blocks.append({"type": "web_search_tool_result", "tool_use_id": identity, "content": [hit]})
    return blocks


def _events(message: JSON, composition: Composition) -> Iterator[Event]:
    usage = part(message, "usage")
    placeholder = {name: value for name, value in usage.items() if name not in {"iterations", "output_tokens_details"}}
    begun = {**placeholder, "output_tokens": 1} if usage else message["usage"]
    start: JSON = {**message, "content": [], "stop_reason": None, "usage": begun}
    yield _event({"type": "message_start", "message": start}, generated=min(1, composition.generated(1)))
    blocks: list[JSON] = message["content"]
    total = sum(len(_said(delta)) for block in blocks for delta in _deltas(block)) or 1
    out = 0
    for index, block in enumerate(blocks):
        at = composition.generated(out / total)
        yield _event({"type": "content_block_start", "index": index, "content_block": _opening(block)}, generated=at)
        if index == 0:
            yield _event({"type": "ping"}, generated=at)
        for delta in _deltas(block):
            out += len(_said(delta))
            at = composition.generated(out / total)
            yield _event({"type": "content_block_delta", "index": index, "delta": delta}, generated=at)
        yield _event({"type": "content_block_stop", "index": index}, generated=at)
    everything = composition.generated(1)
    final = {
        "type": "message_delta",
        "delta": {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]},
        "usage": {name: usage[name] for name in _DELTA if name in usage} if usage else message["usage"],
    }
    yield _event(final, generated=everything)
    yield _event({"type": "message_stop"}, generated=everything)


def _event(data: JSON, *, generated: int) -> Event:
    return sse(data, event=data["type"], generated=generated)


def _opening(block: JSON) -> JSON:
    """A block as content_block_start shows it: what deltas bring is still empty."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}
        case "thinking":
            return {**block, "thinking": "", "signature": ""}
        case "tool_use" | "server_tool_use":
            return {**block, "input": {}}
        case _:
            return block


def _deltas(block: JSON) -> Iterator[JSON]:
    match block["type"]:
        case "text":
            for word in split_words(block["text"]):
                yield {"type": "text_delta", "text": word}
        case "thinking":
            for word in split_words(block["thinking"]):
                yield {"type": "thinking_delta", "thinking": word}
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use" | "server_tool_use":
            for piece in split_words(arguments_text(block["input"])):
                yield {"type": "input_json_delta", "partial_json": piece}
        case _:
            pass


def _said(delta: JSON) -> str:
    return str(delta.get("text") or delta.get("thinking") or delta.get("partial_json") or "")


_BEDROCK = re.compile(r"/model/(.+)/(invoke|invoke-with-response-stream)$")
_VERTEX = re.compile(r"/publishers/anthropic/models/(.+):(rawPredict|streamRawPredict)$")
_SSE_DATA = b"data: "


def cloud_endpoint(path: str) -> tuple[str, Endpoint, JSON] | None:
    """Endpoint name, endpoint and implied parameters of a cloud's URL path; None for any other path."""
    if found := _BEDROCK.search(path):
        streamed = found[2] != "invoke"
        serve = _bedrock_stream if streamed else create
        return "messages", serve, {"model": unquote(found[1]), "stream": streamed}
    if found := _VERTEX.search(path):
        if found[1].startswith("count-tokens"):
            return "messages.count_tokens", count_tokens, {}
        return "messages", create, {"model": found[1], "stream": found[2] != "rawPredict"}
    return None


def _bedrock_stream(context: Context) -> Served:
    served = create(context)
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
