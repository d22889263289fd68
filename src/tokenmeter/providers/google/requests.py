"""What accounting needs to know of a request in Google's format. It runs before every call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Endpoint
from tokenmeter.providers.prompts import PromptRule, PromptSize, first_limit, listed, measure, named
from tokenmeter.providers.wire import JSON, count, is_array, is_object, section, text

#: Everything that is rendered into the prompt, of every kind of request.
_PROMPT_KEYS = (
    "contents",
    "content",
    "systemInstruction",
    "system_instruction",
    "tools",
    "toolConfig",
    "requests",
    "instances",
    "input",
    "response_format",
)
_SCHEMAS = ("responseSchema", "responseJsonSchema", "response_format")
#: Tools that the provider runs in a loop of its own: what they find, and what searching costs, is not bounded.
_SERVER_TOOLS = frozenset(
    {
        *("googleSearch", "googleSearchRetrieval", "googleMaps", "enterpriseWebSearch", "google_search", "google_maps"),
        *("urlContext", "codeExecution", "fileSearch", "url_context", "code_execution", "file_search", "mcp_server"),
        *("retrieval", "exaAiSearch", "parallelAiSearch", "mcpServers"),
    }
)
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
    spelled = [found for name in ("generationConfig", "generation_config") if (found := section(body, name))]
    settings = {key: value for found in spelled for key, value in found.items()}
    prompt = _prompt(body, settings)
    reasons = _unbounded(body)
    if prompt.remote:
        reasons.append("files")
    return RequestFacts(
        model=model_name(body.get("model")) or named(body.get("agent")),
        service_tier=tier_name(text(body, "serviceTier") or text(body, "service_tier")),
        processing="batch" if endpoint.operation == "batch" else None,
        input_bytes=prompt.size,
        image_count=prompt.images,
        max_output_tokens=_most(spelled, "maxOutputTokens", "max_output_tokens"),
        choices=_most([*spelled, section(body, "parameters")], "candidateCount", "candidate_count", "sampleCount") or 1,
        streamed=bool(body.get("stream")),
        unbounded=",".join(dict.fromkeys(reasons)) or None,
        pieces=_pieces(endpoint, body),
        background=body.get("background") is True,
    )


def _most(settings: list[JSON], *names: str) -> int | None:
    """The largest of what is named in several spellings, or places: which of them counts is the provider's choice."""
    flags: set[str] = set()
    found = [count(each, name, flags=flags) for each in settings for name in names if each.get(name) is not None]
    return max((value for value in found if value), default=None)


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
    if endpoint.path.startswith(("interactions", "decisions")):
        return "generation_config", {**section(body, "generation_config"), "max_output_tokens": tokens}
    return "generationConfig", {**section(body, "generationConfig"), "maxOutputTokens": tokens}


def _unbounded(body: JSON) -> list[str]:
    reasons: list[str] = []
    tools = listed(body, "tools", reasons)
    reasons += [
        "server_tools" for tool in tools if not _SERVER_TOOLS.isdisjoint(tool) or text(tool, "type") in _SERVER_TOOLS
    ]
    if body.get("cachedContent") or body.get("previous_interaction_id"):
        reasons.append("conversation")
    if body.get("agent"):
        reasons.append("server_tools")
    return reasons


def _pieces(endpoint: Endpoint, body: JSON) -> Mapping[str, int]:
    """What is sold by the piece, and counted in the request."""
    parameters = section(body, "parameters")
    many = first_limit(parameters.get("sampleCount"))
    if endpoint.operation == "video_generation":
        seconds = first_limit(parameters.get("durationSeconds")) or _VIDEO_SECONDS
        size = (text(parameters, "resolution") or "").lower()
        return {f"seconds_video_{size}" if size not in {"", "720p"} else "seconds_video": seconds * (many or 1)}
    return {"images": many or _PICTURES} if endpoint.operation == "image_generation" else {}


def _prompt(body: JSON, settings: JSON) -> PromptSize:
    media: list[JSON] = []
    kept = [_without_media(body[key], media) for key in _PROMPT_KEYS if key in body]
    kept += [settings[key] for key in _SCHEMAS if key in settings]
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
    return size


def _without_media(value: Any, media: list[JSON]) -> Any:
    """`value` without the data in it, which goes to `media`."""
    if is_object(value):
        if _is_media(value):
            media.append(value)
            return None
        return {key: _without_media(item, media) for key, item in value.items()}
    if is_array(value):
        return [_without_media(item, media) for item in value]
    return value


#: Under which a medium is, or where it lies; the SDK writes some of them in its own spelling.
_PLACES = frozenset({"data", "fileUri", "file_uri", "uri"})


def _is_media(value: JSON) -> bool:
    if "mimeType" in value or "mime_type" in value:
        return not _PLACES.isdisjoint(value)
    if text(value, "type") in {"audio", "document", "video"}:  # interactions, where the MIME type may be left out
        return "data" in value or "uri" in value
    if "data" in value:
        return "type" in value
    return not {"fileUri", "file_uri", "bytesBase64Encoded"}.isdisjoint(value)
