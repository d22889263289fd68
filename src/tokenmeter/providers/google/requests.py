"""What accounting needs to know of a request in Google's format. It runs before every call."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.prompts import UNREADABLE, PromptRule, PromptSize, listed, measure, named
from tokenmeter.providers.wire import JSON, is_array, is_object, section, text

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
#: What a tool was given, or gave back, and how it is declared: text, even where it looks like a medium.
_TEXTS = frozenset({"args", "arguments", "response", "parameters", "tools", *_SCHEMAS})
#: Media whose tokens their bytes bound: audio is 32 a second, video 263 at the most.
_BOUNDED_MEDIA = ("audio/", "video/", "text/")
_VIDEO_SECONDS = 8
#: Pictures of a request that does not say how many. Source: https://ai.google.dev/gemini-api/docs/imagen
_PICTURES = 4
#: Most tokens of a picture: 2.5 with pan and scan, 3 in the highest resolution; 2.0 cuts one of any size into tiles. Of
#: later ones it is not known. Source: https://ai.google.dev/gemini-api/docs/media-resolution
PROMPT_RULES = (PromptRule("gemini-2.5", image=2_304), PromptRule("gemini-3", image=2_240))


def request_facts(endpoint: Endpoint, body: JSON | None) -> RequestFacts:
    """Facts of a request in Google's format."""
    if not body:
        return RequestFacts()
    settings = [section(body, name) for name in _SETTINGS]
    reasons = _unbounded(body)
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
        choices=choices,
        streamed=bool(body.get("stream")),
        unbounded=",".join(dict.fromkeys(reasons)) or None,
        pieces=_pieces(endpoint, body, samples, reasons) or ({"songs": choices} if is_song_model(model) else {}),
        background=body.get("background") is True,
    )


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


def _unbounded(body: JSON) -> list[str]:
    reasons: list[str] = []
    for tool in listed(body, "tools", reasons):
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
