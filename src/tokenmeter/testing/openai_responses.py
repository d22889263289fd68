"""OpenAI's responses: JSON, events, background work, compaction, token counts, hosted tools; and decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tokenmeter.testing.composition import (
    Composition,
    arguments_text,
    compose,
    prompt_tokens,
    read_responses,
    responses_usage,
    split_words,
)
from tokenmeter.testing.context import Context, RefusalError, Served, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, json_reply, sse
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
            "arguments": arguments_text(arguments),
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
        for word in split_words(part["text"]):
            yield "response.output_text.delta", {**at, "delta": word, "logprobs": []}
        yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}
        yield "response.content_part.done", {**at, "part": part}


def _call_events(item: JSON, inside: JSON) -> Iterator[tuple[str, JSON]]:
    for piece in split_words(item["arguments"]):
        yield "response.function_call_arguments.delta", {**inside, "delta": piece}
    yield "response.function_call_arguments.done", {**inside, "arguments": item["arguments"]}


def _reasoning_events(item: JSON, inside: JSON) -> Iterator[tuple[str, JSON]]:
    for index, part in enumerate(item["summary"]):
        at: JSON = {**inside, "summary_index": index}
        yield "response.reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}
        for word in split_words(part["text"]):
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
    counted = prompt_tokens(context.body)
    return Served(reply=json_reply({"object": "response.input_tokens", "input_tokens": counted}))


def tool_items(usage: Usage, also: Iterable[Consumption], new_id: Callable[[str], str]) -> list[JSON]:
    """An output item for every search, container and picture that is billed."""
    items: list[JSON] = []
    for _ in range(int(usage["web_searches"])):
        action = {"type": "search", "query": "fake", "queries": ["fake"]}
        items.append({"id": new_id("ws_"), "type": "web_search_call", "status": "completed", "action": action})
    for _ in range(int(usage["file_searches"])):
        item = {"id": new_id("fs_"), "type": "file_search_call", "status": "completed", "queries": ["fake"]}
        items.append({**item, "results": None})
    for _ in range(int(usage["container_sessions"])):
        item = {"id": new_id("ci_"), "type": "code_interpreter_call", "status": "completed", "code": "1"}
        items.append({**item, "container_id": new_id("cntr_"), "outputs": None})
    drawn = sum(part.role == "image_generation" for part in also)
    picture = {"type": "image_generation_call", "status": "completed", "result": ""}
    items += [{"id": new_id("ig_"), **picture} for _ in range(drawn)]
    return items


def tool_usage(usage: Usage, also: Iterable[Consumption]) -> JSON | None:
    """``response.tool_usage``; None when no hosted tool was billed there."""
    searches = int(usage["web_searches"])
    pictures = Usage.total(part.usage for part in also if part.role == "image_generation")
    if not searches and not pictures:
        return None
    drawn = {
        "input_tokens": pictures.input_tokens,
        "input_tokens_details": {
            "image_tokens": int(pictures["input_image"]),
            "text_tokens": int(pictures["input"]),
        },
        "output_tokens": pictures.output_tokens,
        "output_tokens_details": {
            "image_tokens": int(pictures["output_image"]),
            "text_tokens": int(pictures["output"]),
        },
        "total_tokens": pictures.total_tokens,
    }
    return {"image_gen": drawn, "web_search": {"num_requests": searches}}


def decide(context: Context) -> Served:
    """``POST /decisions``: the first choice and the first level always win."""
    answer, questions = context.answer, cast("list[JSON]", context.need("questions"))
    model = answer.model or context.need("model")
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.usage is not None:
        usage = read_responses(answer.usage)
    else:
        usage = Usage({"input": prompt_tokens(context.body), "output": len(questions)})
    wire = answer.usage or responses_usage(usage)
    body = {"model": model, "answers": [_answer(question) for question in questions], "usage": wire}
    part = Consumption(model=model, usage=usage, prompt_tokens=usage.input_tokens)
    return Served(
        reply=json_reply(merged(body, answer.fields)),
        bill=Bill(model=model, consumptions=(part, *answer.also), wire_usage=wire),
    )


def _answer(question: JSON) -> JSON:
    kind = question.get("type")
    found: JSON = {"type": kind}
    match kind:
        case "choice":
            values = [choice["value"] for choice in question["choices"]]
            found |= {"choice": values[0], "confidence": 1.0, "probabilities": _certain("value", values)}
        case "score":
            labels = [level["label"] for level in question["levels"]]
            steps = [{**one, "value": index} for index, one in enumerate(_certain("label", labels))]
            found |= {"score": 0.0, "confidence": 1.0, "probabilities": steps}
        case _:
            found["probability"] = 1.0
    if "name" in question:
        found["name"] = question["name"]
    return found


def _certain(name: str, values: list[Any]) -> list[JSON]:
    return [{name: value, "probability": 1.0 if index == 0 else 0.0} for index, value in enumerate(values)]
