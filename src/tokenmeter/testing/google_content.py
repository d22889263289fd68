"""What models say in Google's wire format: content, embeddings, interactions, turns of Live sessions; and its usage.

Deliberately written apart from `tokenmeter.providers`: the books of the fake provider must not share its mistakes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from tokenmeter.testing.composition import (
    Composition,
    arguments_text,
    count_tokens,
    cut_to_tokens,
    split_words,
)
from tokenmeter.testing.context import Context, Served, ToolCall, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.samples import sample_arguments
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, count, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_MODALITIES = {"input_audio": "AUDIO", "input_image": "IMAGE", "input_video": "VIDEO"}
_CACHED = {"cache_read_audio": "AUDIO", "cache_read_image": "IMAGE", "cache_read_video": "VIDEO"}
_ANSWERED = {"output_audio": "AUDIO", "output_image": "IMAGE", "output_video": "VIDEO"}
_SEARCHES = ("web_searches", "grounded_prompts", "web_searches_maps", "grounded_prompts_maps")
_TRAFFIC = {None: "ON_DEMAND", "standard": "ON_DEMAND", "flex": "ON_DEMAND_FLEX", "priority": "ON_DEMAND_PRIORITY"}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


# -- usage


def google_usage(usage: Usage, *, tier: str | None = None, vertex: bool = False) -> JSON:
    """``usageMetadata``: the prompt includes its cached part, thoughts stand beside the candidates; zeros stay out."""
    thoughts = usage.reasoning_output_tokens
    wire: JSON = {
        "promptTokenCount": usage.input_tokens,
        "cachedContentTokenCount": usage.cache_read_input_tokens,
        "candidatesTokenCount": usage.output_tokens - thoughts,
        "thoughtsTokenCount": thoughts,
        "totalTokenCount": usage.total_tokens,
        "promptTokensDetails": _details(usage, _MODALITIES, _CACHED, whole=usage.input_tokens),
        "cacheTokensDetails": _details(usage, _CACHED, whole=usage.cache_read_input_tokens),
        "candidatesTokensDetails": _details(usage, _ANSWERED, whole=usage.output_tokens - thoughts),
    }
    if vertex:
        wire["trafficType"] = _TRAFFIC.get(tier, tier)
    elif tier is not None:
        wire["serviceTier"] = tier
    return {name: value for name, value in wire.items() if value}


def _details(usage: Usage, *names: Mapping[str, str], whole: int) -> list[JSON]:
    sizes: dict[str, int] = {}
    for table in names:
        for meter, modality in table.items():
            sizes[modality] = sizes.get(modality, 0) + int(usage[meter])
    sizes["TEXT"] = whole - sum(sizes.values())
    return [{"modality": name, "tokenCount": size} for name, size in sizes.items() if size]


def read_google(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted ``usageMetadata``."""
    cached = count(wire, "cachedContentTokenCount")
    thoughts = count(wire, "thoughtsTokenCount")
    spoken = count(wire, "candidatesTokenCount") or count(wire, "responseTokenCount")
    tools = count(wire, "toolUsePromptTokenCount")
    meters: dict[str, Any] = {"cache_read": cached, "output": spoken + thoughts}
    meters["input"] = count(wire, "promptTokenCount") - cached + tools
    for name, table, rest in (
        ("promptTokensDetails", _MODALITIES, "input"),
        ("candidatesTokensDetails", _ANSWERED, "output"),
    ):
        named = {modality: meter for meter, modality in table.items()}
        for entry in cast("list[JSON]", wire.get(name) or []):
            if (meter := named.get(entry.get("modality", ""))) is not None:
                meters[meter] = count(entry, "tokenCount")
                meters[rest] -= count(entry, "tokenCount")
    return Usage({meter: quantity for meter, quantity in meters.items() if quantity > 0}, thoughts)


# -- what an answer consists of


def _compose(context: Context) -> Composition:
    answer, body = context.answer, context.body
    settings = part(body, "generationConfig") or part(body, "generation_config")
    calls = tuple(answer.tool_calls) or (() if answer.text is not None else _forced_calls(body))
    text = answer.text if answer.text is not None or calls else _structured(settings) or _echo(body)
    finish = "tool_calls" if calls else "stop"
    limit = settings.get("maxOutputTokens") or settings.get("max_output_tokens")
    if isinstance(limit, int) and text is not None and answer.text is None and count_tokens(text) > limit:
        text, finish = cut_to_tokens(text, limit), "length"
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.usage is not None:
        usage = read_google(answer.usage)
    else:
        said = count_tokens(text or "") + sum(count_tokens(name + arguments_text(given)) for name, given in calls)
        thoughts = answer.reasoning_tokens or count_tokens(answer.reasoning or "")
        usage = Usage({"input": prompt_size(body), "output": said + thoughts}, thoughts)
    return Composition(
        model=answer.model or body.get("model") or "unknown",
        text=text,
        tool_calls=calls,
        reasoning=answer.reasoning,
        finish=finish,
        usage=usage,
        service_tier=_tier(context) or "default",
        wire_usage=answer.usage,
    )


def _forced_calls(body: JSON) -> tuple[ToolCall, ...]:
    """A call of the function that the request insists on, with arguments that fit its schema."""
    wanted = part(part(body, "toolConfig"), "functionCallingConfig")
    if wanted.get("mode") != "ANY":
        return ()
    named = wanted.get("allowedFunctionNames")
    for tool in cast("list[JSON]", body.get("tools") or []):
        for function in cast("list[JSON]", tool.get("functionDeclarations") or []):
            if not named or function["name"] in named:
                names = ("parametersJsonSchema", "parameters_json_schema", "parameters")
                schema: JSON = next((function[key] for key in names if function.get(key)), {"type": "object"})
                return ((function["name"], cast("JSON", sample_arguments(_plain_schema(schema)))),)
    return ()


def _structured(settings: JSON) -> str | None:
    """An answer in the JSON shape that the request demands, if it does."""
    schema = settings.get("responseJsonSchema") or settings.get("responseSchema")
    return json.dumps(sample_arguments(_plain_schema(schema))) if schema else None


#: Keywords as Google's SDK writes some of them -> as JSON Schema has them.
_KEYWORDS = {
    f"{most}_{name}": f"{most}{name.capitalize()}"
    for most in ("min", "max")
    for name in ("items", "length", "properties")
} | {"any_of": "anyOf"}


def _plain_schema(schema: Any) -> Any:
    """A schema with its types in small letters and keywords in one word, as JSON Schema has them."""
    if isinstance(schema, dict):
        given = cast("JSON", schema)
        lowered = {
            _KEYWORDS.get(name, name): _plain_properties(value) if name == "properties" else _plain_schema(value)
            for name, value in given.items()
        }
        if isinstance(given.get("type"), str):
            lowered["type"] = given["type"].lower()
        return lowered
    return [_plain_schema(item) for item in cast("list[object]", schema)] if isinstance(schema, list) else schema


def _plain_properties(properties: Any) -> Any:
    """The same of what has names of the user's own."""
    if not isinstance(properties, dict):
        return properties
    return {name: _plain_schema(value) for name, value in cast("JSON", properties).items()}


def _tier(context: Context) -> str | None:
    asked = context.body.get("serviceTier") or context.body.get("service_tier")
    return context.answer.service_tier or (str(asked).lower() if asked else None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in cast("JSON", value).items():
            if name not in {"role", "type", "mimeType", "data"}:
                yield from _texts(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            yield from _texts(item)


def prompt_size(body: JSON) -> int:
    """The tokens of a request's prompt."""
    named = ("contents", "content", "systemInstruction", "tools", "input", "requests", "instances")
    return max(1, sum(count_tokens(text) for name in named for text in _texts(body.get(name))))


def _echo(body: JSON) -> str:
    said = list(_texts(body.get("contents") or body.get("input") or ""))
    return f"You said: {said[-1][:60]}" if said else "Hello."


# -- content


def generate(context: Context) -> Served:
    """``:generateContent`` and ``:streamGenerateContent``."""
    context.need("contents")
    composition = _compose(context)
    body = _answer(context, composition)
    bill = composition.bill(body["responseId"], body.get("usageMetadata"), *context.answer.also, **_context(context))
    if context.body.get("stream"):
        return Served(reply=Reply(headers=dict(SSE), events=tuple(_chunks(body, composition))), bill=bill)
    return Served(reply=json_reply(body), bill=bill)


def _context(context: Context) -> JSON:
    return {"processing": "batch"} if context.batch else {}


def _answer(context: Context, composition: Composition) -> JSON:
    body = {
        "candidates": [_candidate(context, composition)],
        "modelVersion": composition.model,
        "responseId": context.new_id("resp-"),
        "usageMetadata": _wire(context, composition),
    }
    if context.answer.omit_usage:
        del body["usageMetadata"]
    return merged(body, context.answer.fields)


def _wire(context: Context, composition: Composition) -> JSON:
    if composition.wire_usage is not None:
        return dict(composition.wire_usage)
    return google_usage(composition.usage, tier=_tier(context), vertex="/publishers/" in context.request.path)


def _candidate(context: Context, composition: Composition) -> JSON:
    parts: list[JSON] = [dict(item) for item in context.answer.output]
    if composition.reasoning is not None:
        parts.append({"text": composition.reasoning, "thought": True})
    if composition.text is not None:
        parts.append({"text": composition.text})
    for name, given in composition.tool_calls:
        arguments: Any = json.loads(given) if isinstance(given, str) else dict(given)
        parts.append({"functionCall": {"name": name, "args": arguments}})
    candidate: JSON = {
        "index": 0,
        "content": {"role": "model", "parts": parts},
        "finishReason": context.answer.stop_reason or _FINISH[composition.finish],
    }
    if any(composition.usage[meter] for meter in _SEARCHES):
        candidate["groundingMetadata"] = _grounding(composition.usage, context.root)
    return candidate


def _grounding(usage: Usage, root: str) -> JSON:
    found: JSON = {}
    searched = int(usage["web_searches"]) or int(usage["grounded_prompts"])
    chunks: list[JSON] = [{"web": {"uri": f"{root}/fake", "title": "Fake"}}] if searched else []
    if searched:
        found["webSearchQueries"] = [f"fake {number}" for number in range(searched)]
    if usage["web_searches_maps"] or usage["grounded_prompts_maps"]:
        chunks.append({"maps": {"uri": f"{root}/map", "title": "Fake"}})
    return {**found, "groundingChunks": chunks}


def _chunks(body: JSON, composition: Composition) -> Iterator[Event]:
    """Each chunk repeats the running totals; the last one has them all."""
    (candidate,) = body["candidates"]
    usage = part(body, "usageMetadata")
    begun = {name: usage[name] for name in ("promptTokenCount", "trafficType") if name in usage}
    words = split_words(composition.text or "")
    named = {"modelVersion": body["modelVersion"], "responseId": body["responseId"]}
    for number, word in enumerate(words[:-1], 1):
        piece = {"index": 0, "content": {"role": "model", "parts": [{"text": word}]}}
        generated = composition.generated(number / len(words))
        chunk: JSON = {"candidates": [piece], **named}
        if usage:
            chunk["usageMetadata"] = {**begun, "candidatesTokenCount": generated} if generated else begun
        yield sse(chunk, generated=generated)
    rest = [one for one in candidate["content"]["parts"] if "text" not in one or one["text"] != composition.text]
    last = [{"text": words[-1]}] if words else []
    candidate = {**candidate, "content": {"role": "model", "parts": [*rest, *last]}}
    yield sse({**body, "candidates": [candidate]}, generated=composition.generated(1))


def count_prompt(context: Context) -> Served:
    """``countTokens``: free."""
    return Served(reply=json_reply({"totalTokens": prompt_size(context.body)}))


# -- embeddings, pictures, videos


def embed(context: Context) -> Served:
    """``embedContent`` and ``batchEmbedContents``."""
    many = cast("list[JSON]", context.body.get("requests") or [context.body])
    usage = input_of(context, prompt_size(context.body))
    values = [{"values": [0.1, 0.2, 0.3]} for _ in many]
    body: JSON = {"embeddings": values} if "requests" in context.body else {"embedding": values[0]}
    wire = {"promptTokenCount": usage.input_tokens}
    if not context.answer.omit_usage:
        body["usageMetadata"] = wire
    return Served(reply=json_reply(merged(body, context.answer.fields)), bill=bill_of(context, usage, wire))


def input_of(context: Context, size: int) -> Usage:
    """What a call that has only a prompt used: as scripted, else `size` tokens."""
    answer = context.answer
    return Usage(dict(answer.meters)) if answer.meters is not None else Usage({"input": size})


def bill_of(context: Context, usage: Usage, wire: Any = None, **more: Any) -> Bill:
    """A bill of one line, for the model that answers."""
    model = context.answer.model or context.body.get("model")
    bare = model.removeprefix("models/") if isinstance(model, str) else None
    group = Consumption(model=bare, usage=usage, prompt_tokens=usage.input_tokens or None, **more)
    return Bill(model=bare, response_id=None, consumptions=(group,) if usage else (), wire_usage=wire)


# -- interactions


def interact(context: Context) -> Served:
    """An interaction: whole, in events, or in the background."""
    composition = _compose(context)
    identity = context.new_id("int-")
    usage = composition.wire_usage or _interaction_usage(composition.usage)
    said = [{"type": "text", "text": composition.text or ""}]
    body: JSON = {
        "id": identity,
        "object": "interaction",
        "model": composition.model,
        "status": "completed",
        "created": context.now.isoformat(),
        "updated": context.now.isoformat(),
        "steps": [{"type": "model_output", "content": said}],
        "usage": usage,
    }
    body = merged(body, context.answer.fields)
    bill = composition.bill(identity, body["usage"], **_context(context))
    if context.body.get("background"):
        context.state.put("google interactions", identity, body)
        queued = {name: value for name, value in body.items() if name not in {"steps", "usage"}}
        return Served(reply=json_reply({**queued, "status": "in_progress"}), bill=bill)
    context.state.put("google interactions", identity, body)
    if not context.body.get("stream"):
        return Served(reply=json_reply(body), bill=bill)
    return Served(reply=_told_in_events(body, composition.generated), bill=bill)


def _told_in_events(body: JSON, generated: Callable[[float], int]) -> Reply:
    begun: JSON = {**body, "status": "in_progress", "steps": [], "usage": None}
    words = split_words(body["steps"][0]["content"][0]["text"])
    events = [_interaction_event("interaction.created", {"interaction": begun})]
    for number, word in enumerate(words, 1):
        delta = {"index": 0, "delta": {"type": "text", "text": word}}
        events.append(_interaction_event("step.delta", delta, generated=generated(number / len(words))))
    events.append(_interaction_event("interaction.completed", {"interaction": body}, generated=generated(1)))
    return Reply(headers=dict(SSE), events=tuple(events))


def _interaction_event(kind: str, told: JSON, *, generated: int = 0) -> Event:
    return sse({"event_type": kind, **told}, event=kind, generated=generated)


def _interaction_usage(usage: Usage) -> JSON:
    wire: JSON = {
        "total_input_tokens": usage.input_tokens,
        "total_cached_tokens": usage.cache_read_input_tokens,
        "total_output_tokens": usage.output_tokens - usage.reasoning_output_tokens,
        "total_thought_tokens": usage.reasoning_output_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage["web_searches"]:
        wire["grounding_tool_count"] = [{"type": "google_search", "count": int(usage["web_searches"])}]
    return wire


def read_interaction(context: Context) -> Served:
    """An interaction that was created before, whole or in events."""
    body = context.state.get("google interactions", context.params[0])
    if context.request.query.get("stream") == ["true"]:
        return Served(reply=_told_in_events(body, lambda _: 0))
    return Served(reply=json_reply(body))


def run_trigger(context: Context) -> Served:
    """A trigger that is told to run: it makes an interaction, which is billed, and names it."""
    made = interact(replace(context, body={"model": "gemini-3.5-flash", "input": "What a trigger asks."}))
    execution = {
        "id": context.new_id("exec-"),
        "trigger_id": context.params[0],
        "interaction_id": json.loads(made.reply.body)["id"],
        "status": "completed",
    }
    return Served(reply=json_reply(execution), bill=made.bill)


# -- Live sessions


def turn_of(context: Context) -> tuple[list[JSON], Bill]:
    """The messages of one turn of a Live session, and its bill."""
    composition = _compose(context)
    told = composition.wire_usage
    if told is None:
        usage = google_usage(composition.usage)
        prompt, spoken = usage.get("promptTokenCount", 0), usage.get("candidatesTokenCount", 0)
        told = {
            "promptTokenCount": prompt,
            "responseTokenCount": spoken,
            "thoughtsTokenCount": usage.get("thoughtsTokenCount", 0),
            "totalTokenCount": prompt + spoken,
            "promptTokensDetails": usage.get("promptTokensDetails", []),
            "responseTokensDetails": usage.get("candidatesTokensDetails", []),
        }
    last: JSON = {"serverContent": {"turnComplete": True}}
    if not context.answer.omit_usage:
        last["usageMetadata"] = told
    said = {"modelTurn": {"role": "model", "parts": [{"text": composition.text or ""}]}}
    messages: list[JSON] = [
        {"serverContent": said},
        {"serverContent": {"generationComplete": True}},
        last,
    ]
    bill = composition.bill("", told)
    return messages, replace(bill, response_id=None)
