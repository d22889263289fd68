"""Google's wire format, as the Gemini API and Vertex AI speak it: URLs; pictures, videos and jobs.

Deliberately written apart from `tokenmeter.providers`: the books of the fake provider must not share its mistakes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, cast

from tokenmeter.testing.composition import count_tokens
from tokenmeter.testing.context import Context, Endpoint, RefusalError, Served
from tokenmeter.testing.google_content import (
    bill_of,
    count_prompt,
    embed,
    generate,
    input_of,
    interact,
    prompt_size,
    read_interaction,
    run_trigger,
)
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, Reply, Request, dump, json_reply, part
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


def _predict(context: Context) -> Served:
    """``:predict``: pictures, or Vertex AI's embeddings."""
    if "embedding" in str(context.body.get("model")):
        sizes = [count_tokens(str(one.get("content"))) for one in cast("list[JSON]", context.body["instances"])]
        made = [
            {"embeddings": {"values": [0.1], "statistics": {"token_count": size, "truncated": False}}} for size in sizes
        ]
        return Served(reply=json_reply({"predictions": made}), bill=bill_of(context, input_of(context, sum(sizes))))
    asked = part(context.body, "parameters").get("sampleCount") or 1
    meters = context.answer.meters
    delivered = int(meters.get("images", 0)) if meters is not None else asked
    pictures: list[JSON] = [{"mimeType": "image/png", "bytesBase64Encoded": _PIXEL} for _ in range(delivered)]
    pictures += [{"raiFilteredReason": "It was told to."} for _ in range(asked - delivered)]
    usage = Usage({"images": delivered} if delivered else {})
    return Served(reply=json_reply({"predictions": pictures}), bill=bill_of(context, usage))


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
    return Served(reply=json_reply({"name": name}), bill=bill_of(context, Usage({meter: seconds})))


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
        size = prompt_size(part(one, "request"))
        results.append({"response": {"embedding": {"values": [0.1, 0.2]}, "tokenCount": str(size)}})
        bill = bill_of(context, Usage({"input": size}), processing="batch")
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


def _list_batches(context: Context) -> Served:
    """What there is, without the answers: those are read one by one."""
    kept = cast("list[JSON]", context.state.all("google batches"))
    told = [{"name": one["metadata"]["name"], "metadata": one["metadata"]} for one in kept]
    return Served(reply=json_reply({"operations": told}))


def _delete_batch(context: Context) -> Served:
    context.state.remove("google batches", f"batches/{context.params[0]}")
    return Served(reply=json_reply({}))


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
    size = int((context.answer.meters or {}).get("input", 0)) or prompt_size(context.body)
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


def _read_cache(context: Context) -> Served:
    return Served(reply=json_reply(context.state.get("google caches", f"cachedContents/{context.params[0]}")))


def _delete_cache(context: Context) -> Served:
    context.state.remove("google caches", f"cachedContents/{context.params[0]}")
    return Served(reply=json_reply({}))


def _list_caches(context: Context) -> Served:
    return Served(reply=json_reply({"cachedContents": context.state.all("google caches")}))


_VERBS: dict[str, tuple[str, Callable[[Context], Served]]] = {
    "generateContent": ("models.generate_content", generate),
    "streamGenerateContent": ("models.generate_content", generate),
    "countTokens": ("models.count_tokens", count_prompt),
    "computeTokens": ("models.compute_tokens", count_prompt),
    "embedContent": ("models.embed_content", embed),
    "batchEmbedContents": ("models.embed_content", embed),
    "predict": ("models.predict", _predict),
    "predictLongRunning": ("models.generate_videos", _video),
    "fetchPredictOperation": ("operations.get", _operation),
    "batchGenerateContent": ("batches.create", _batch),
    "asyncBatchEmbedContent": ("batches.create_embeddings", _embed_batch),
}
_PATHS: tuple[tuple[str, str, str, Endpoint], ...] = (
    ("GET", r"/operations/([^/]+)$", "operations.get", _operation),
    ("GET", r"/batches$", "batches.list", _list_batches),
    ("GET", r"/batches/([^/:]+)$", "batches.get", _read_batch),
    ("DELETE", r"/batches/([^/:]+)$", "batches.delete", _delete_batch),
    ("POST", r"/upload/\w+/files$", "files.upload", _upload),
    ("GET", r"/files/([^/:]+):download$", "files.download", _download),
    ("GET", r"/files/([^/:]+)$", "files.get", _file),
    ("POST", r"/cachedContents$", "caches.create", _cache),
    ("PATCH", r"/cachedContents/([^/:]+)$", "caches.update", _update_cache),
    ("GET", r"/cachedContents$", "caches.list", _list_caches),
    ("GET", r"/cachedContents/([^/:]+)$", "caches.get", _read_cache),
    ("DELETE", r"/cachedContents/([^/:]+)$", "caches.delete", _delete_cache),
    ("POST", r"/tuningJobs$", "tunings.tune", _tune),
    ("GET", r"/tuningJobs/([^/:]+)$", "tunings.get", _read_tuning),
    ("POST", r"/interactions$", "interactions.create", interact),
    ("GET", r"/interactions/([^/:]+)$", "interactions.get", read_interaction),
    ("POST", r"/interactions/([^/:]+)/cancel$", "interactions.cancel", read_interaction),
    ("POST", r"/triggers/([^/:]+)/executions$", "triggers.run", run_trigger),
)
