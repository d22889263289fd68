"""Google's wire format, as the Gemini API and Vertex AI speak it.

Deliberately written apart from `tokenmeter.providers`: the books of the fake provider must not share its mistakes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, cast

from tokenmeter.testing import tokens
from tokenmeter.testing.composition import Composition
from tokenmeter.testing.context import Context, Endpoint, RefusalError, Served, merged
from tokenmeter.testing.openai_chat import SSE
from tokenmeter.testing.script import ToolCall
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Event, Reply, Request, dump, json_reply, part, sse
from tokenmeter.usage import Consumption, Usage

_VERB = re.compile(r"/(?:models|endpoints)/([^/:]+):(\w+)$")
_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_MODALITIES = {"input_audio": "AUDIO", "input_image": "IMAGE", "input_video": "VIDEO"}
_CACHED = {"cache_read_audio": "AUDIO", "cache_read_image": "IMAGE", "cache_read_video": "VIDEO"}
_ANSWERED = {"output_audio": "AUDIO", "output_image": "IMAGE", "output_video": "VIDEO"}
_SEARCHES = ("web_searches", "grounded_prompts", "web_searches_maps", "grounded_prompts_maps")
_TRAFFIC = {None: "ON_DEMAND", "standard": "ON_DEMAND", "flex": "ON_DEMAND_FLEX", "priority": "ON_DEMAND_PRIORITY"}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class _Found(NamedTuple):
    name: str
    serve: Endpoint
    implied: JSON
    params: tuple[str, ...] = ()


def google_endpoint(request: Request) -> _Found | None:
    """Endpoint name, endpoint, implied parameters and captured parts of a request to Google; None for any other."""
    path = request.path
    if found := _VERB.search(path):
        model, verb = found.groups()
        known = _VERBS.get(verb)
        if known is None or "/publishers/anthropic/" in path:
            return None
        implied: JSON = {"model": model}
        if verb.startswith("stream"):
            implied["stream"] = True
        return _Found(known[0], known[1], implied)
    in_a_project = "/projects/" in path and "/locations/" in path
    keyed = request.header("x-goog-api-key") is not None or "upload_id" in request.query
    if not (keyed or in_a_project or "googleapis" in path):
        return None
    for method, pattern, name, serve in _PATHS:
        if method == request.method and (found := re.search(pattern, path)):
            return _Found(name, serve, {}, found.groups())
    return None


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
    cached = wire.get("cachedContentTokenCount") or 0
    thoughts = wire.get("thoughtsTokenCount") or 0
    spoken = wire.get("candidatesTokenCount") or wire.get("responseTokenCount") or 0
    tools = wire.get("toolUsePromptTokenCount") or 0
    meters: dict[str, Any] = {"cache_read": cached, "output": spoken + thoughts}
    meters["input"] = (wire.get("promptTokenCount") or 0) - cached + tools
    for name, table, rest in (
        ("promptTokensDetails", _MODALITIES, "input"),
        ("candidatesTokensDetails", _ANSWERED, "output"),
    ):
        named = {modality: meter for meter, modality in table.items()}
        for entry in cast("list[JSON]", wire.get(name) or []):
            if (meter := named.get(entry.get("modality", ""))) is not None:
                meters[meter] = entry["tokenCount"]
                meters[rest] -= entry["tokenCount"]
    return Usage({meter: quantity for meter, quantity in meters.items() if quantity}, thoughts)


# -- what an answer consists of


def _compose(context: Context) -> Composition:
    answer, body = context.answer, context.body
    settings = part(body, "generationConfig") or part(body, "generation_config")
    calls = tuple(answer.tool_calls) or (() if answer.text is not None else _forced_calls(body))
    text = answer.text if answer.text is not None or calls else _structured(settings) or _echo(body)
    finish = "tool_calls" if calls else "stop"
    limit = settings.get("maxOutputTokens") or settings.get("max_output_tokens")
    if isinstance(limit, int) and text is not None and answer.text is None and tokens.count(text) > limit:
        text, finish = tokens.cut(text, limit), "length"
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.usage is not None:
        usage = read_google(answer.usage)
    else:
        said = tokens.count(text or "") + sum(tokens.count(name + tokens.as_json(given)) for name, given in calls)
        thoughts = answer.reasoning_tokens or tokens.count(answer.reasoning or "")
        usage = Usage({"input": _prompt(body), "output": said + thoughts}, thoughts)
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
                return ((function["name"], cast("JSON", tokens.sample(_plain_schema(schema)))),)
    return ()


def _structured(settings: JSON) -> str | None:
    """An answer in the JSON shape that the request demands, if it does."""
    schema = settings.get("responseJsonSchema") or settings.get("responseSchema")
    return json.dumps(tokens.sample(_plain_schema(schema))) if schema else None


def _plain_schema(schema: Any) -> Any:
    """A schema with its types in small letters, as JSON Schema has them."""
    if isinstance(schema, dict):
        given = cast("JSON", schema)
        lowered = {name: _plain_schema(value) for name, value in given.items()}
        if isinstance(given.get("type"), str):
            lowered["type"] = given["type"].lower()
        return lowered
    return [_plain_schema(item) for item in cast("list[object]", schema)] if isinstance(schema, list) else schema


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


def _prompt(body: JSON) -> int:
    named = ("contents", "content", "systemInstruction", "tools", "input", "requests", "instances")
    return max(1, sum(tokens.count(text) for name in named for text in _texts(body.get(name))))


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
    usage: JSON = body.get("usageMetadata") or {}
    begun = {name: usage[name] for name in ("promptTokenCount", "trafficType") if name in usage}
    words = tokens.words(composition.text or "")
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


def _count_tokens(context: Context) -> Served:
    return Served(reply=json_reply({"totalTokens": _prompt(context.body)}))


# -- embeddings, pictures, videos


def _embed(context: Context) -> Served:
    many = cast("list[JSON]", context.body.get("requests") or [context.body])
    usage = _input_of(context, _prompt(context.body))
    values = [{"values": [0.1, 0.2, 0.3]} for _ in many]
    body: JSON = {"embeddings": values} if "requests" in context.body else {"embedding": values[0]}
    wire = {"promptTokenCount": usage.input_tokens}
    if not context.answer.omit_usage:
        body["usageMetadata"] = wire
    return Served(reply=json_reply(merged(body, context.answer.fields)), bill=_bill(context, usage, wire))


def _input_of(context: Context, size: int) -> Usage:
    answer = context.answer
    return Usage(dict(answer.meters)) if answer.meters is not None else Usage({"input": size})


def _bill(context: Context, usage: Usage, wire: Any = None, **more: Any) -> Bill:
    model = context.answer.model or context.body.get("model")
    bare = model.removeprefix("models/") if isinstance(model, str) else None
    group = Consumption(model=bare, usage=usage, prompt_tokens=usage.input_tokens or None, **more)
    return Bill(model=bare, response_id=None, consumptions=(group,) if usage else (), wire_usage=wire)


def _predict(context: Context) -> Served:
    """``:predict``: pictures, or Vertex AI's embeddings."""
    if "embedding" in str(context.body.get("model")):
        sizes = [tokens.count(str(one.get("content"))) for one in cast("list[JSON]", context.body["instances"])]
        made = [
            {"embeddings": {"values": [0.1], "statistics": {"token_count": size, "truncated": False}}} for size in sizes
        ]
        return Served(reply=json_reply({"predictions": made}), bill=_bill(context, _input_of(context, sum(sizes))))
    asked = part(context.body, "parameters").get("sampleCount") or 1
    meters = context.answer.meters
    delivered = int(meters.get("images", 0)) if meters is not None else asked
    pictures: list[JSON] = [{"mimeType": "image/png", "bytesBase64Encoded": _PIXEL} for _ in range(delivered)]
    pictures += [{"raiFilteredReason": "It was told to."} for _ in range(asked - delivered)]
    usage = Usage({"images": delivered} if delivered else {})
    return Served(reply=json_reply({"predictions": pictures}), bill=_bill(context, usage))


def _video(context: Context) -> Served:
    """``:predictLongRunning``: done at the second look."""
    asked = part(context.body, "parameters")
    model = str(context.body["model"])
    name = f"models/{model}/operations/{context.state.new_id('op')}"
    if "/publishers/" in context.request.path:
        head = context.request.path.partition(":")[0].lstrip("/").partition("/")[2]
        name = f"{head}/operations/{name.rpartition('/')[2]}"
    size = str(asked.get("resolution") or "720p").lower()
    meter = "seconds_video" if size == "720p" else f"seconds_video_{size}"
    seconds = int(asked.get("durationSeconds") or 8) * int(asked.get("sampleCount") or 1)
    made = int(asked.get("sampleCount") or 1)
    context.state.put("operations", name.rpartition("/")[2], {"name": name, "made": made, "looks": 0})
    return Served(reply=json_reply({"name": name}), bill=_bill(context, Usage({meter: seconds})))


def _operation(context: Context) -> Served:
    name = str(context.body.get("operationName") or context.params[0]).rpartition("/")[2]
    kept = context.state.get("operations", name)
    kept["looks"] += 1
    if kept["looks"] == 1:
        return Served(reply=json_reply({"name": kept["name"]}))
    if "operationName" in context.body:
        videos = [{"bytesBase64Encoded": _PIXEL, "mimeType": "video/mp4"} for _ in range(kept["made"])]
        result: JSON = {"videos": videos}
    else:
        samples = [{"video": {"uri": f"{context.root}/v1beta/files/video:download?alt=media"}}] * kept["made"]
        result = {"generateVideoResponse": {"generatedSamples": samples}}
    return Served(reply=json_reply({"name": kept["name"], "done": True, "response": result}))


# -- batches and files


def _batch(context: Context) -> Served:
    """``:batchGenerateContent``: answered at once, told at the second look."""
    model = str(context.body["model"])
    given = part(part(context.body, "batch"), "inputConfig") or part(part(context.body, "batch"), "input_config")
    file = given.get("fileName") or given.get("file_name")
    wanted = _lines_of(context, str(file)) if file else cast("list[JSON]", part(given, "requests")["requests"])
    name = f"batches/{context.state.new_id('b')}"
    results: list[JSON] = []
    bills: list[tuple[str, Bill]] = []
    for number, one in enumerate(wanted):
        named = {"key": one["key"]} if "key" in one else {}
        try:
            endpoint, served = context.inner(
                f"/v1beta/models/{model}:generateContent", {**one["request"], "model": model}
            )
        except RefusalError as refusal:
            results.append({**named, "error": {"code": refusal.status, "message": refusal.message}})
            continue
        results.append({**named, "response": json.loads(served.reply.body)})
        if served.bill is not None:
            bills.append((endpoint, served.bill.for_line(str(one.get("key", number)))))
    output: JSON = {"inlinedResponses": {"inlinedResponses": results}}
    if file:
        made = f"files/batch-{name.partition('/')[2]}"
        context.state.put("google files", made, b"\n".join(map(dump, results)) + b"\n")
        output = {"responsesFile": made}
    metadata = {"model": f"models/{model}", "state": "BATCH_STATE_PENDING", "name": name}
    context.state.put("google batches", name, {"metadata": metadata, "output": output, "looks": 0})
    return Served(reply=json_reply({"name": name, "metadata": metadata}), lines=tuple(bills))


def _embed_batch(context: Context) -> Served:
    """``:asyncBatchEmbedContent``: embeddings, told at the second look."""
    model = str(context.body["model"])
    given = part(part(context.body, "batch"), "inputConfig")
    wanted = cast("list[JSON]", part(given, "requests").get("requests") or [])
    name = f"batches/{context.state.new_id('b')}"
    results: list[JSON] = []
    bills: list[tuple[str, Bill]] = []
    for number, one in enumerate(wanted):
        size = _prompt(part(one, "request"))
        results.append({"response": {"embedding": {"values": [0.1, 0.2]}, "tokenCount": str(size)}})
        bill = _bill(context, Usage({"input": size}), processing="batch")
        bills.append(("models.embed_content", bill.for_line(str(number))))
    output: JSON = {"inlinedEmbedContentResponses": {"inlinedResponses": results}}
    metadata = {"model": f"models/{model}", "state": "BATCH_STATE_PENDING", "name": name}
    context.state.put("google batches", name, {"metadata": metadata, "output": output, "looks": 0})
    return Served(reply=json_reply({"name": name, "metadata": metadata}), lines=tuple(bills))


def _lines_of(context: Context, file: str) -> list[JSON]:
    content = cast("bytes", context.state.get("google files", file))
    return [json.loads(line) for line in content.splitlines() if line.strip()]


def _read_batch(context: Context) -> Served:
    name = f"batches/{context.params[0]}"
    kept = context.state.get("google batches", name)
    kept["looks"] += 1
    if kept["looks"] == 1:
        return Served(reply=json_reply({"name": name, "metadata": kept["metadata"]}))
    metadata = {**kept["metadata"], "state": "BATCH_STATE_SUCCEEDED", "output": kept["output"]}
    return Served(reply=json_reply({"name": name, "metadata": metadata, "done": True, "response": kept["output"]}))


def _begin_upload(context: Context) -> Served:
    upload = context.state.new_id("up")
    headers = {"x-goog-upload-url": f"{context.root}/upload/v1beta/files?upload_id={upload}"}
    return Served(reply=json_reply({}, headers=headers))


def _upload(context: Context) -> Served:
    if "upload_id" not in context.request.query:
        return _begin_upload(context)
    name = f"files/{context.state.new_id('f')}"
    context.state.put("google files", name, context.request.body)
    told = _file_of(context, name)
    return Served(reply=json_reply({"file": told}, headers={"x-goog-upload-status": "final"}))


def _file_of(context: Context, name: str) -> JSON:
    size = len(cast("bytes", context.state.get("google files", name)))
    uri = f"{context.root}/v1beta/{name}"
    return {"name": name, "uri": uri, "mimeType": "application/jsonl", "sizeBytes": str(size), "state": "ACTIVE"}


def _file(context: Context) -> Served:
    return Served(reply=json_reply(_file_of(context, f"files/{context.params[0]}")))


def _download(context: Context) -> Served:
    content = cast("bytes", context.state.get("google files", f"files/{context.params[0]}"))
    return Served(reply=Reply(headers={"content-type": "application/octet-stream"}, body=content))


# -- tuning jobs


def _tune(context: Context) -> Served:
    """A job that has ended at the second look, with the tokens that it was trained on."""
    name = f"projects/1/locations/us-central1/tuningJobs/{context.state.new_id('t')}"
    model = str(context.body.get("baseModel"))
    trained = int((context.answer.meters or {}).get("trained_tokens", 1_000))
    job = {"name": name, "baseModel": model, "state": "JOB_STATE_PENDING", "createTime": context.now.isoformat()}
    context.state.put("google tuning", name.rpartition("/")[2], {"job": job, "trained": trained, "looks": 0})
    group = Consumption(model=model, usage=Usage({"trained_tokens": trained}), role="training")
    bill = Bill(model=model, response_id=name, consumptions=(group,), wire_usage=None)
    return Served(reply=json_reply(job), bill=bill)


def _read_tuning(context: Context) -> Served:
    kept = context.state.get("google tuning", context.params[0])
    kept["looks"] += 1
    if kept["looks"] == 1:
        return Served(reply=json_reply({**kept["job"], "state": "JOB_STATE_RUNNING"}))
    told = {"supervisedTuningDataStats": {"totalBillableTokenCount": str(kept["trained"])}}
    return Served(reply=json_reply({**kept["job"], "state": "JOB_STATE_SUCCEEDED", "tuningDataStats": told}))


# -- caches


def _cache(context: Context) -> Served:
    name = f"cachedContents/{context.state.new_id('c')}"
    size = int((context.answer.meters or {}).get("input", 0)) or _prompt(context.body)
    made = {
        "name": name,
        "model": context.body.get("model"),
        "createTime": context.now.isoformat(),
        "usageMetadata": {"totalTokenCount": size},
    }
    return _keep_cache(context, made)


def _keep_cache(context: Context, made: JSON) -> Served:
    hold = timedelta(seconds=float(str(context.body.get("ttl") or "3600s").removesuffix("s")))
    kept = {**made, "updateTime": context.now.isoformat(), "expireTime": (context.now + hold).isoformat()}
    context.state.put("google caches", str(made["name"]), kept)
    return Served(reply=json_reply(kept))


def _update_cache(context: Context) -> Served:
    return _keep_cache(context, context.state.get("google caches", f"cachedContents/{context.params[0]}"))


def _nothing(context: Context) -> Served:
    del context
    return Served(reply=json_reply({}))


# -- interactions


def _interact(context: Context) -> Served:
    composition = _compose(context)
    identity = context.new_id("int-")
    usage = _interaction_usage(composition.usage)
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
    bill = composition.bill(identity, usage, **_context(context))
    if context.body.get("background"):
        context.state.put("google interactions", identity, body)
        queued = {name: value for name, value in body.items() if name not in {"steps", "usage"}}
        return Served(reply=json_reply({**queued, "status": "in_progress"}), bill=bill)
    context.state.put("google interactions", identity, body)
    if not context.body.get("stream"):
        return Served(reply=json_reply(body), bill=bill)
    begun: JSON = {**body, "status": "in_progress", "steps": [], "usage": None}
    everything = composition.generated(1)
    words = tokens.words(composition.text or "")
    events = [_interaction_event("interaction.created", {"interaction": begun})]
    for number, word in enumerate(words, 1):
        delta = {"index": 0, "delta": {"type": "text", "text": word}}
        events.append(_interaction_event("step.delta", delta, generated=composition.generated(number / len(words))))
    events.append(_interaction_event("interaction.completed", {"interaction": body}, generated=everything))
    return Served(reply=Reply(headers=dict(SSE), events=tuple(events)), bill=bill)


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


def _read_interaction(context: Context) -> Served:
    return Served(reply=json_reply(context.state.get("google interactions", context.params[0])))


# -- Live sessions


def turn_of(context: Context) -> tuple[list[JSON], Bill]:
    """The messages of one turn of a Live session, and its bill."""
    composition = _compose(context)
    usage = google_usage(composition.usage)
    told = {
        "promptTokenCount": usage["promptTokenCount"],
        "responseTokenCount": usage.get("candidatesTokenCount", 0),
        "thoughtsTokenCount": usage.get("thoughtsTokenCount", 0),
        "totalTokenCount": usage["promptTokenCount"] + usage.get("candidatesTokenCount", 0),
        "promptTokensDetails": usage["promptTokensDetails"],
        "responseTokensDetails": usage.get("candidatesTokensDetails", []),
    }
    said = {"modelTurn": {"role": "model", "parts": [{"text": composition.text or ""}]}}
    messages: list[JSON] = [
        {"serverContent": said},
        {"serverContent": {"generationComplete": True}},
        {"serverContent": {"turnComplete": True}, "usageMetadata": told},
    ]
    bill = composition.bill("", told)
    return messages, replace(bill, response_id=None)


_VERBS: dict[str, tuple[str, Callable[[Context], Served]]] = {
    "generateContent": ("models.generate_content", generate),
    "streamGenerateContent": ("models.generate_content", generate),
    "countTokens": ("models.count_tokens", _count_tokens),
    "computeTokens": ("models.compute_tokens", _count_tokens),
    "embedContent": ("models.embed_content", _embed),
    "batchEmbedContents": ("models.embed_content", _embed),
    "predict": ("models.predict", _predict),
    "predictLongRunning": ("models.generate_videos", _video),
    "fetchPredictOperation": ("operations.get", _operation),
    "batchGenerateContent": ("batches.create", _batch),
    "asyncBatchEmbedContent": ("batches.create_embeddings", _embed_batch),
}
_PATHS: tuple[tuple[str, str, str, Endpoint], ...] = (
    ("GET", r"/operations/([^/]+)$", "operations.get", _operation),
    ("GET", r"/batches/([^/:]+)$", "batches.get", _read_batch),
    ("POST", r"/upload/\w+/files$", "files.upload", _upload),
    ("GET", r"/files/([^/:]+):download$", "files.download", _download),
    ("GET", r"/files/([^/:]+)$", "files.get", _file),
    ("POST", r"/cachedContents$", "caches.create", _cache),
    ("PATCH", r"/cachedContents/([^/:]+)$", "caches.update", _update_cache),
    ("DELETE", r"/cachedContents/([^/:]+)$", "caches.delete", _nothing),
    ("POST", r"/tuningJobs$", "tunings.tune", _tune),
    ("GET", r"/tuningJobs/([^/:]+)$", "tunings.get", _read_tuning),
    ("POST", r"/interactions$", "interactions.create", _interact),
    ("GET", r"/interactions/([^/:]+)$", "interactions.get", _read_interaction),
)
