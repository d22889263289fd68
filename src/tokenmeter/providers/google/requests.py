"""Google's requests: which endpoint each asks, and what accounting needs to know of it. It runs before every call."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Endpoint, bare_path
from tokenmeter.providers.prompts import UNREADABLE, PromptRule, PromptSize, is_unclear, listed, measure, named
from tokenmeter.providers.wire import JSON, is_array, is_object, section, text, to_wire

#: The settings of an answer. A field may be in either spelling here and below: both are read by the provider, and
#: `extra_body` can put one beside the other.
_SETTINGS = ("generationConfig", "generation_config")
_LIMITS = ("maxOutputTokens", "max_output_tokens")
#: What is not rendered into the prompt. Whatever else a request has is taken to be, newer fields included.
_NO_PROMPT = frozenset(
    {
        *_SETTINGS,
        *("model", "agent", "parameters", "labels", "stream", "background", "store", "_url", "_query", "batch"),
        *("safetySettings", "safety_settings", "serviceTier", "service_tier"),
        *("cachedContent", "cached_content", "previousInteractionId", "previous_interaction_id"),
    }
)
_SCHEMAS = ("responseSchema", "response_schema", "responseJsonSchema", "response_json_schema", "response_format")
#: Tools that the caller runs. Any other runs in a loop of the provider's own: what it finds, and what searching costs,
#: is not bounded.
_CALLERS_TOOLS = frozenset(
    {"functionDeclarations", "function_declarations", "computerUse", "computer_use", "function", "computer"}
)
#: Searches that are not Google's own and show in an answer as those do: what they cost is not known here.
#: Source: ``google.genai.types`` Tool.
_OTHER_SEARCHES = {
    **dict.fromkeys(("enterpriseWebSearch", "enterprise_web_search"), "enterprise_web_search"),
    **dict.fromkeys(("parallelAiSearch", "parallel_ai_search"), "parallel_ai_search"),
    **dict.fromkeys(("exaAiSearch", "exa_ai_search"), "exa_ai_search"),
}
#: What a tool was given, or gave back, and how it is declared: text, even where it looks like a medium.
_TEXTS = frozenset({"args", "arguments", "response", "parameters", "tools", *_SCHEMAS})
#: Media whose tokens their bytes bound: audio is 32 a second, video 263 at the most.
_BOUNDED_MEDIA = ("audio/", "video/", "text/")
_VIDEO_SECONDS = 8
#: Pictures of a request that does not say how many. Source: https://ai.google.dev/gemini-api/docs/imagen
_PICTURES = 4
#: Most tokens of a picture: 2.5 with pan and scan, 3 in the highest resolution; 2.0 cuts one of any size into tiles. Of
#: later ones it is not known. Source: https://ai.google.dev/gemini-api/docs/media-resolution
PROMPT_RULES = (PromptRule("gemini-2.5", image=2_304), PromptRule(r"gemini-3(?:\.\d+)?", image=2_240))


def request_facts(endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in Google's format."""
    if not body:
        return RequestFacts()
    settings = [section(body, name) for name in _SETTINGS]
    reasons: list[str] = []
    tools = listed(body, "tools", reasons)
    reasons += _unbounded(body, tools)
    longest = _most(settings, *_LIMITS, reasons=reasons)
    candidates = _most(settings, "candidateCount", "candidate_count", reasons=reasons)
    samples = _most([section(body, "parameters")], "sampleCount", "sample_count", reasons=reasons)
    prompt = _prompt(body, settings)
    if prompt.remote:
        reasons.append("files")
    model = model_name(body.get("model")) or named(body.get("agent"))
    choices = max(candidates or 1, samples or 1)
    return RequestFacts(
        model=model,
        service_tier=tier_name(text(body, "serviceTier") or text(body, "service_tier")),
        processing="batch" if endpoint.operation == "batch" else None,
        input_bytes=prompt.size,
        image_count=prompt.images,
        max_output_tokens=longest,
        unclear_limit=longest is None and is_unclear(*(place.get(name) for place in settings for name in _LIMITS)),
        choices=choices,
        streamed=bool(body.get("stream")),
        tools=_other_searches(tools),
        unbounded=",".join(dict.fromkeys(reasons)) or None,
        pieces=_pieces(endpoint, body, samples, reasons) or ({"songs": choices} if is_song_model(model) else {}),
        background=body.get("background") is True,
    )


#: Of a ``config``, what the SDK sends beside the answer's settings, what it asks for by the piece, and what it keeps.
_BESIDE = {
    *("systemInstruction", "tools", "toolConfig", "safetySettings", "cachedContent", "labels", "serviceTier"),
    *("system_instruction", "tool_config", "safety_settings", "cached_content", "service_tier"),
}
_PARAMETERS = {
    **dict.fromkeys(("numberOfImages", "numberOfVideos", "number_of_images", "number_of_videos"), "sampleCount"),
    **dict.fromkeys(("durationSeconds", "duration_seconds"), "durationSeconds"),
    "resolution": "resolution",
}
_KEPT = {"httpOptions", "http_options", "automaticFunctionCalling", "automatic_function_calling"}


def as_sent(arguments: JSON) -> JSON:
    """The request body that the SDK makes of the arguments of a call: its ``config`` is spread over it."""
    body: dict[str, Any] = to_wire(arguments)
    config, settings = section(body, "config"), dict(section(body, _SETTINGS[0]))
    for key, value in config.items():
        if key in _PARAMETERS:
            body["parameters"] = {**section(body, "parameters"), _PARAMETERS[key]: value}
        elif key not in _KEPT:
            (body if key in _BESIDE else settings)[key] = value
    return {**{key: value for key, value in body.items() if key != "config"}, _SETTINGS[0]: settings}


def _most(places: Iterable[JSON], *names: str, reasons: list[str]) -> int | None:
    """The highest of the counts that stand under `names`; one that is no count joins `reasons` as unreadable.

    JSON in Protocol Buffers' reading takes ``"8"`` and ``8.0`` for 8, and 0 for a field that is not there.
    """
    found: list[int] = []
    for value in (place[name] for place in places for name in names if place.get(name) is not None):
        try:
            found.append(int(value) if isinstance(value, str) else math.ceil(value))
        except (TypeError, ValueError, OverflowError):
            reasons.append(UNREADABLE)
    return max((count for count in found if count > 0), default=None)


def model_name(value: Any) -> str | None:
    """A model's name without its collection; that of a tuned model, or of an endpoint, as it is."""
    name = named(value)
    if name is None or "tunedModels/" in name or "/endpoints/" in name:
        return name
    return name.rpartition("/")[2] or None


def is_song_model(model: str | None) -> bool:
    """Whether a model is sold by the song."""
    return model is not None and model.startswith("lyria")


def tier_name(value: str | None) -> str | None:
    """A tier in the price list's words: ``SERVICE_TIER_FLEX`` is ``flex``."""
    if value is None:
        return None
    name = value.lower().removeprefix("service_tier_")
    return None if name in {"unspecified", "traffic_type_unspecified"} else name


def output_cap(endpoint: Endpoint, body: JSON, tokens: int) -> tuple[str, Any]:
    """The field that limits the answer to `tokens`, with its value: the settings it stands in, otherwise unchanged."""
    snake = endpoint.path.startswith(("interactions", "decisions"))
    settings = next((name for name in _SETTINGS if is_object(body.get(name))), _SETTINGS[snake])
    given = section(body, settings)
    limit = next((name for name in _LIMITS if name in given), _LIMITS[snake])
    return settings, {**given, limit: tokens}


def _other_searches(tools: Iterable[JSON]) -> tuple[dict[str, Any], ...]:
    """See `RequestFacts.tools`: the searches by whose price Google's own is not to be taken."""
    named = (kind for tool in tools for name, kind in _OTHER_SEARCHES.items() if tool.get(name) is not None)
    return tuple({"type": kind} for kind in dict.fromkeys(named))


def _unbounded(body: JSON, tools: Iterable[JSON]) -> list[str]:
    reasons: list[str] = []
    for tool in tools:
        kind = text(tool, "type")
        if not (_CALLERS_TOOLS.issuperset(tool) if kind is None else kind in _CALLERS_TOOLS):
            reasons.append("server_tools")
    if any(body.get(name) for name in ("cachedContent", "cached_content")):
        reasons.append("conversation")
    if any(body.get(name) for name in ("previousInteractionId", "previous_interaction_id")):
        reasons.append("conversation")
    if body.get("agent"):
        reasons.append("server_tools")
    return reasons


def _pieces(endpoint: Endpoint, body: JSON, many: int | None, reasons: list[str]) -> Mapping[str, int]:
    """What is sold by the piece, and counted in the request."""
    if endpoint.operation == "video_generation":
        parameters = section(body, "parameters")
        seconds = _most([parameters], "durationSeconds", "duration_seconds", reasons=reasons) or _VIDEO_SECONDS
        size = (text(parameters, "resolution") or "").lower()
        return {f"seconds_video_{size}" if size not in {"", "720p"} else "seconds_video": seconds * (many or 1)}
    return {"images": many or _PICTURES} if endpoint.operation == "image_generation" else {}


def _prompt(body: JSON, settings: Iterable[JSON]) -> PromptSize:
    media: list[JSON] = []
    kept = [_without_media(value, media, key) for key, value in body.items() if key not in _NO_PROMPT]
    kept += [place[key] for place in settings for key in _SCHEMAS if key in place]
    size = measure(kept)
    for item in media:
        kind = text(item, "mimeType") or text(item, "mime_type") or text(item, "type") or ""
        data = item.get("data") or item.get("bytesBase64Encoded")
        if not isinstance(data, str):
            size.remote = True  # a file that lies elsewhere
        elif kind.startswith("image") or "bytesBase64Encoded" in item:
            size.images += 1
        elif kind.startswith(_BOUNDED_MEDIA):
            size.size += len(data)
        else:
            size.remote = True  # pages of a document, which no length of its file bounds
    size.remote = size.remote or any("fps" in item for item in media)
    return size


def _without_media(value: Any, media: list[JSON], key: str = "") -> Any:
    """`value` without the data in it, which goes to `media`."""
    if key in _TEXTS or (key == "result" and is_object(value)):
        return _as_text(value)
    if is_object(value):
        if _is_media(value):
            media.append(value)
            return {name: item for name, item in value.items() if name not in _PAYLOADS}
        sampled = section(value, "videoMetadata", "video_metadata")
        if sampled.get("fps") is not None:
            media.append(sampled)  # more pictures of each second than a video's bytes bound
        return {name: _without_media(item, media, name) for name, item in value.items()}
    if is_array(value):
        return [_without_media(item, media) for item in value]
    return value


def _as_text(value: Any) -> Any:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # not JSON yet
        return value


#: Under which a medium is, or where it lies; the SDK writes some of them in its own spelling.
_PLACES = frozenset({"data", "fileUri", "file_uri", "uri"})
_PAYLOADS = frozenset({*_PLACES, "bytesBase64Encoded", "type"})


def _is_media(value: JSON) -> bool:
    if "mimeType" in value or "mime_type" in value:
        return not _PLACES.isdisjoint(value)
    if text(value, "type") in {"audio", "document", "video"}:  # interactions, where the MIME type may be left out
        return "data" in value or "uri" in value
    if "data" in value:
        return "type" in value
    return not {"fileUri", "file_uri", "bytesBase64Encoded"}.isdisjoint(value)


#: What a call of the SDK is called -> the endpoint. Operations are OpenTelemetry's, where it has a word.
_ENDPOINTS = {
    known.path: known
    for known in (
        Endpoint("models.generate_content", "generate_content"),
        Endpoint("models.embed_content", "embeddings"),
        Endpoint("models.generate_images", "image_generation"),
        Endpoint("models.edit_image", "image_generation"),
        Endpoint("models.upscale_image", "image_generation"),
        Endpoint("models.recontext_image", "image_generation"),
        Endpoint("models.segment_image", "image_generation"),
        Endpoint("models.generate_videos", "video_generation"),
        Endpoint("models.predict", "other", "unknown"),
        Endpoint("models.count_tokens", "count_tokens", "free"),
        Endpoint("models.compute_tokens", "count_tokens", "free"),
        Endpoint("interactions.create", "generate_content", kept=True),
        Endpoint("interactions.get", "generate_content", "polled"),
        Endpoint("interactions.cancel", "generate_content", "polled"),
        Endpoint("interactions.connect", "generate_content"),
        Endpoint("triggers.run", "generate_content", "starts"),
        Endpoint("decisions.create", "generate_content"),
        Endpoint("voices.create", "other", "unknown"),
        Endpoint("live.connect", "generate_content"),
        Endpoint("live.music", "other"),
        Endpoint("batches.create", "batch", "starts"),
        Endpoint("batches.create_embeddings", "batch", "starts"),
        Endpoint("batches.get", "batch", "polled", "items"),
        Endpoint("files.download", "batch", "polled", "lines"),
        Endpoint("operations.get", "video_generation", "polled"),
        Endpoint("caches.create", "cache", "polled"),
        Endpoint("caches.update", "cache", "polled"),
        Endpoint("tunings.tune", "fine_tuning", "starts"),
        Endpoint("tunings.get", "fine_tuning", "polled"),
        Endpoint("file_search_stores.import_file", "embeddings", "unknown"),
        Endpoint("file_search_stores.upload_to_file_search_store", "embeddings", "unknown"),
    )
}
_VERBS = {
    "generateContent": "models.generate_content",
    "streamGenerateContent": "models.generate_content",
    "bidiGenerateContent": "live.connect",
    "bidiGenerateMusic": "live.music",
    "embedContent": "models.embed_content",
    "batchEmbedContents": "models.embed_content",
    "predictLongRunning": "models.generate_videos",
    "countTokens": "models.count_tokens",
    "computeTokens": "models.compute_tokens",
    "batchGenerateContent": "batches.create",
    "asyncBatchEmbedContent": "batches.create_embeddings",
    "fetchPredictOperation": "operations.get",
    "download": "files.download",
    "importFile": "file_search_stores.import_file",
    "uploadToFileSearchStore": "file_search_stores.upload_to_file_search_store",
    "connect": "interactions.connect",
}
#: What ``:predict`` does, by a word in the model's name; the first that fits.
_PREDICTS = (
    ("embedding", "models.embed_content"),
    ("upscale", "models.upscale_image"),
    ("capability", "models.edit_image"),
    ("recontext", "models.recontext_image"),
    ("imagen", "models.generate_images"),
    ("virtual-try-on", "models.recontext_image"),
    ("segmentation", "models.segment_image"),
)
#: Method and collection -> endpoint; a trailing ``*`` stands for one of its members.
_COLLECTIONS = {
    ("POST", "batchPredictionJobs"): "batches.create",
    ("GET", "batches/*"): "batches.get",
    ("POST", "cachedContents"): "caches.create",
    ("PATCH", "cachedContents/*"): "caches.update",
    ("POST", "interactions"): "interactions.create",
    ("GET", "interactions/*"): "interactions.get",
    ("POST", "decisions"): "decisions.create",
    ("POST", "voices"): "voices.create",
    ("POST", "executions"): "triggers.run",
    ("POST", "tuningJobs"): "tunings.tune",
    ("POST", "tunedModels"): "tunings.tune",
    ("GET", "tuningJobs/*"): "tunings.get",
    ("GET", "operations/*"): "operations.get",
}
_NAMES = frozenset(name.partition("/")[0] for _, name in _COLLECTIONS)
#: Verbs of members that cost nothing.
_FREE_VERBS = frozenset({"cancel", "delete", "register", "transferOwnership", "validateReinforcementTuningReward"})
_MODEL = re.compile(r"(?:^|/)((?:tunedModels|endpoints|live|models)/[^/:]+)")
#: The name of an operation, as it stands in URLs and bodies; its model, where it names one.
OPERATION = re.compile(r"(?:models/([^/:]+)/)?operations/[^/:?]+$")


@lru_cache(maxsize=1024)
def endpoint(method: str, path: str) -> Endpoint:
    """The endpoint of an HTTP method and URL path."""
    bare, query = bare_path(path)
    method = method.upper()
    bare = unquote(bare).strip("/")
    head, _, verb = bare.rpartition("/")[2].rpartition(":")
    if head and verb:
        return _by_verb(method, bare, verb)
    if "alt=media" in query:
        return replace(_ENDPOINTS["files.download"], subject=bare.removeprefix("v1beta/"))
    segments = bare.split("/")
    for index, segment in enumerate(segments):
        rest = segments[index + 1 :]
        if segment not in _NAMES:
            continue
        if segment == "interactions" and method == "POST" and rest[1:] == ["cancel"]:
            return replace(_ENDPOINTS["interactions.cancel"], subject=rest[0])
        if len(rest) > 1:
            continue
        found = _COLLECTIONS.get((method, f"{segment}/*" if rest else segment))
        if found is not None:
            return replace(_ENDPOINTS[found], subject=_subject(bare, segment, rest))
    return Endpoint("/" + bare, "other", "unknown" if method == "POST" and _may_cost(segments) else "free")


def _by_verb(method: str, bare: str, verb: str) -> Endpoint:
    if verb == "predict":
        model = (model_in(bare) or "").lower()
        return _ENDPOINTS[next((name for word, name in _PREDICTS if word in model), "models.predict")]
    known = _ENDPOINTS.get(_VERBS.get(verb, ""))
    if known is None:
        free = verb in _FREE_VERBS or method != "POST" or not _may_cost(bare.rpartition(":")[0].split("/"))
        return Endpoint("/" + bare, "other", "free" if free else "unknown")
    return replace(known, subject=_file(bare)) if known.form == "lines" else known


def _subject(bare: str, collection: str, rest: list[str]) -> str | None:
    """The name in the URL, as bodies spell it: of an operation with its parents, of an interaction the id alone."""
    if not rest:
        return None
    if collection == "interactions":
        return rest[0]
    found = OPERATION.search(bare) if collection == "operations" else None
    return found[0] if found else f"{collection}/{rest[0]}"


def _file(bare: str) -> str:
    return "files/" + bare.rpartition("files/")[2].partition(":")[0]


#: Collections whose objects are made for nothing.
_FREE = frozenset(
    {
        "agents",
        "auth_tokens",
        "credentials",
        "environments",
        "fileSearchStores",
        "files",
        "operations",
        "triggers",
        "upload",
        "webhooks",
    }
)


def _may_cost(segments: list[str]) -> bool:
    return _FREE.isdisjoint(segments)


BILLED = tuple(name for name, known in _ENDPOINTS.items() if known.kind == "billed")


@lru_cache(maxsize=1024)
def model_in(path: str) -> str | None:
    """The model that a path names, as price lists know it; a tuned one with its collection."""
    found = _MODEL.search(bare_path(path)[0])
    return None if found is None else found[1].removeprefix("models/").removeprefix("live/")


def endpoint_named(path: str) -> Endpoint | None:
    """The endpoint with this SDK method path; streams are what they stream."""
    return _ENDPOINTS.get(path.removesuffix("_stream")) or _ENDPOINTS.get(f"{path}.create")
