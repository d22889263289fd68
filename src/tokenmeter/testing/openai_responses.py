"""OpenAI's responses: JSON, the full event sequence, background work, compaction and token counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenmeter.testing import tokens
from tokenmeter.testing.composition import Composition, compose
from tokenmeter.testing.context import Context, RefusalError, Served, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.openai_tools import tool_items, tool_usage
from tokenmeter.testing.wire import JSON, Event, Reply, json_reply, sse
from tokenmeter.testing.wire_usage import read_responses, responses_usage

__all__ = ["cancel", "compact", "create", "delete", "input_items", "input_tokens", "retrieve", "write_events"]

#: Parameters of the request that the answer repeats, with what it says when they were not given.
_REPEATED: JSON = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def create(context: Context) -> Served:
    """``POST /responses``."""
    context.need("model")
    composition = compose(context, read_responses)
    response = whole(context, composition)
    bill = composition.bill(response["id"], response.get("usage"), *context.answer.also)
    if context.body.get("store") is not False:
        context.state.put("responses", response["id"], response)
    if context.body.get("background") and not context.body.get("stream"):
        context.state.put("background", response["id"], "queued")
        return Served(reply=json_reply(_unfinished(response, "queued")), bill=bill)
    if context.body.get("stream"):
        events = tuple(write_events(response, composition))
        return Served(reply=Reply(headers=dict(SSE), events=events), bill=bill)
    return Served(reply=json_reply(response), bill=bill)


def whole(context: Context, composition: Composition) -> JSON:
    """The finished response object."""
    answer = context.answer
    repeated = {name: context.body.get(name, usual) for name, usual in _REPEATED.items()}
    truncated = composition.finish == "length"
    response: JSON = {
        "id": context.new_id("resp_"),
        "object": "response",
        "created_at": context.timestamp,
        "status": "incomplete" if truncated else "completed",
        "background": bool(context.body.get("background")),
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        "model": composition.model,
        "output": _output(context, composition),
        **repeated,
        "reasoning": context.body.get("reasoning") or {"effort": None, "summary": None},
        "service_tier": composition.service_tier,
        "usage": composition.wire_usage or responses_usage(composition.usage),
    }
    if not truncated:
        response["completed_at"] = context.timestamp
    if tools := tool_usage(composition.usage, answer.also):
        response["tool_usage"] = tools
    if answer.omit_usage:
        response["usage"] = None
    return merged(response, answer.fields)


def _output(context: Context, composition: Composition) -> list[JSON]:
    new_id = context.state.new_id
    items: list[JSON] = []
    if composition.reasoning is not None:
        summary = [{"type": "summary_text", "text": composition.reasoning}]
        items.append({"id": new_id("rs_"), "type": "reasoning", "summary": summary})
    if context.answer.output:
        items += [dict(item) for item in context.answer.output]
    else:
        items += tool_items(composition.usage, context.answer.also, new_id)
    if composition.text is not None:
        content: JSON = {"type": "output_text", "text": composition.text, "annotations": [], "logprobs": []}
        status = "incomplete" if composition.finish == "length" else "completed"
        message: JSON = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [content],
        }
        items.append(message)
    items += [
        {
            "id": new_id("fc_"),
            "type": "function_call",
            "call_id": new_id("call_"),
            "name": name,
            "arguments": tokens.as_json(arguments),
            "status": "completed",
        }
        for name, arguments in composition.tool_calls
    ]
    return items


def _unfinished(response: JSON, status: str) -> JSON:
    bare = {name: value for name, value in response.items() if name != "completed_at"}
    return {**bare, "status": status, "output": [], "usage": None, "incomplete_details": None}


def write_events(response: JSON, composition: Composition) -> Iterator[Event]:
    """The event sequence of a stream, numbered."""
    total = sum(len(delta) for name, delta in _names(response) if name) or 1
    out = 0
    for number, (name, fields) in enumerate(_sequence(response)):
        delta = fields.get("delta")
        out += len(delta) if isinstance(delta, str) else 0
        generated = composition.generated(min(out / total, 1.0))
        if name in {"response.completed", "response.incomplete", "response.failed"}:
            generated = composition.generated(1)
        yield sse({"type": name, "sequence_number": number, **fields}, event=name, generated=generated)


def _names(response: JSON) -> Iterator[tuple[str, str]]:
    for name, fields in _sequence(response):
        delta = fields.get("delta")
        if isinstance(delta, str):
            yield name, delta


def _sequence(response: JSON) -> Iterator[tuple[str, JSON]]:
    in_progress = _unfinished(response, "in_progress")
    if response.get("background"):
        yield "response.created", {"response": _unfinished(response, "queued")}
        yield "response.queued", {"response": _unfinished(response, "queued")}
    else:
        yield "response.created", {"response": in_progress}
    yield "response.in_progress", {"response": in_progress}
    for index, item in enumerate(response["output"]):
        yield from _item_events(item, {"output_index": index})
    yield f"response.{response['status']}", {"response": response}


def _item_events(item: JSON, at: JSON) -> Iterator[tuple[str, JSON]]:
    inside: JSON = {"item_id": item.get("id"), **at}
    added: JSON = item
    events: Iterator[tuple[str, JSON]] = iter(())
    match item["type"]:
        case "message":
            added, events = {**item, "status": "in_progress", "content": []}, _text_events(item, inside)
        case "function_call":
            added, events = {**item, "status": "in_progress", "arguments": ""}, _call_events(item, inside)
        case "reasoning":
            added, events = {**item, "summary": []}, _reasoning_events(item, inside)
        case "web_search_call" | "file_search_call":
            added, events = {**item, "status": "in_progress"}, _tool_events(item, inside, "searching")
        case "code_interpreter_call":
            added, events = {**item, "status": "in_progress"}, _tool_events(item, inside, "interpreting")
        case "image_generation_call":
            added, events = {**item, "status": "in_progress"}, _tool_events(item, inside, "generating")
        case _:
            pass
    yield "response.output_item.added", {**at, "item": added}
    yield from events
    yield "response.output_item.done", {**at, "item": item}


def _text_events(item: JSON, inside: JSON) -> Iterator[tuple[str, JSON]]:
    for index, part in enumerate(item["content"]):
        at: JSON = {**inside, "content_index": index}
        yield "response.content_part.added", {**at, "part": {**part, "text": ""}}
        for word in tokens.words(part["text"]):
            yield "response.output_text.delta", {**at, "delta": word, "logprobs": []}
        yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}
        yield "response.content_part.done", {**at, "part": part}


def _call_events(item: JSON, inside: JSON) -> Iterator[tuple[str, JSON]]:
    for piece in tokens.words(item["arguments"]):
        yield "response.function_call_arguments.delta", {**inside, "delta": piece}
    yield "response.function_call_arguments.done", {**inside, "arguments": item["arguments"]}


def _reasoning_events(item: JSON, inside: JSON) -> Iterator[tuple[str, JSON]]:
    for index, part in enumerate(item["summary"]):
        at: JSON = {**inside, "summary_index": index}
        yield "response.reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}
        for word in tokens.words(part["text"]):
            yield "response.reasoning_summary_text.delta", {**at, "delta": word}
        yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**at, "part": part}


def _tool_events(item: JSON, inside: JSON, doing: str) -> Iterator[tuple[str, JSON]]:
    for step in ("in_progress", doing, "completed"):
        yield f"response.{item['type']}.{step}", inside


def retrieve(context: Context) -> Served:
    """``GET /responses/{id}``: a background response is in progress at the first look and done at the second."""
    response = context.state.get("responses", context.params[0])
    with context.state.lock:
        stage = context.state.find("background", response["id"])
        if stage == "queued":
            context.state.put("background", response["id"], "in_progress")
            return Served(reply=json_reply(_unfinished(response, "in_progress")))
    if stage == "cancelled":
        return Served(reply=json_reply(_unfinished(response, "cancelled")))
    return Served(reply=json_reply(response))


def cancel(context: Context) -> Served:
    """``POST /responses/{id}/cancel``: only background responses can be cancelled. What was generated stays billed."""
    response = context.state.get("responses", context.params[0])
    if not response["background"]:
        raise RefusalError(400, "Cannot cancel a synchronous response.")
    context.state.put("background", response["id"], "cancelled")
    return Served(reply=json_reply(_unfinished(response, "cancelled")))


def delete(context: Context) -> Served:
    """``DELETE /responses/{id}``."""
    response = context.state.get("responses", context.params[0])
    context.state.remove("responses", response["id"])
    return Served(reply=json_reply({"id": response["id"], "object": "response", "deleted": True}))


def input_items(context: Context) -> Served:
    """``GET /responses/{id}/input_items``: empty, since the fake keeps no prompts."""
    context.state.get("responses", context.params[0])
    page: JSON = {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}
    return Served(reply=json_reply(page))


def compact(context: Context) -> Served:
    """``POST /responses/compact``: billed like a response."""
    context.need("model")
    composition = compose(context, read_responses)
    secret: dict[str, Any] = {
        "id": context.state.new_id("cmp_"),
        "type": "compaction",
        "encrypted_content": "ZmFrZQ==",
    }
    body: JSON = {
        "id": context.new_id("resp_"),
        "object": "response.compaction",
        "created_at": context.timestamp,
        "output": [secret],
        "usage": composition.wire_usage or responses_usage(composition.usage),
    }
    bill = composition.bill(body["id"], body["usage"], *context.answer.also)
    return Served(reply=json_reply(merged(body, context.answer.fields)), bill=bill)


def input_tokens(context: Context) -> Served:
    """``POST /responses/input_tokens``: free."""
    counted = tokens.prompt_tokens(context.body)
    return Served(reply=json_reply({"object": "response.input_tokens", "input_tokens": counted}))
