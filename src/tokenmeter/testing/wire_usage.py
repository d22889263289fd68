"""Usage objects as each wire format writes them, made from disjoint meters, and read back where one was scripted.

Deliberately written apart from `tokenmeter.providers`: the books of the fake provider must not share its mistakes.
Sources: the usage types of the openai 3.54 and anthropic 2.12 SDKs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmeter.dimensions import CACHE_READ_METERS
from tokenmeter.money import add, total
from tokenmeter.testing.wire import JSON, part
from tokenmeter.usage import Quantity, Usage

_REALTIME_FRESH = {"text_tokens": "input", "audio_tokens": "input_audio", "image_tokens": "input_image"}
_REALTIME_CACHED = {"text_tokens": "cache_read", "audio_tokens": "cache_read_audio", "image_tokens": "cache_read_image"}


def _cached(usage: Usage) -> int:
    return int(total(usage[meter] for meter in CACHE_READ_METERS))


def chat_usage(usage: Usage) -> JSON:
    """``CompletionUsage``: the prompt includes its cached, written, audio and image tokens."""
    prompt_details: JSON = {"cached_tokens": _cached(usage), "audio_tokens": usage["input_audio"]}
    if written := int(add(usage["cache_write_30m"], usage["cache_write_12h"])):
        prompt_details["cache_write_tokens"] = written
    if usage["input_image"]:
        prompt_details["image_tokens"] = usage["input_image"]
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_output_tokens,
            "audio_tokens": usage["output_audio"],
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_usage(usage: Usage) -> JSON:
    """``ResponseUsage``: input includes cached and written tokens."""
    half_hour, half_day = int(usage["cache_write_30m"]), int(usage["cache_write_12h"])
    details: JSON = {"cached_tokens": _cached(usage), "cache_write_tokens": half_hour + half_day}
    if half_day:
        details["cache_write_tokens_details"] = {"ttl_30m_tokens": half_hour, "ttl_12h_tokens": half_day}
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": details,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
        "total_tokens": usage.total_tokens,
    }


def messages_usage(usage: Usage, *, service_tier: str | None, geo: str | None, speed: str | None) -> JSON:
    """Anthropic's ``Usage``: input excludes what was read from or written to the cache."""
    searches = int(usage["web_searches"])
    wire: JSON = {
        "input_tokens": int(usage["input"]),
        "cache_creation_input_tokens": usage.cache_write_input_tokens,
        "cache_read_input_tokens": _cached(usage),
        "cache_creation": _creation(usage),
        "output_tokens": usage.output_tokens,
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0} if searches else None,
        "service_tier": service_tier,
        "inference_geo": geo or "global",
    }
    if usage.reasoning_output_tokens:
        wire["output_tokens_details"] = {"thinking_tokens": usage.reasoning_output_tokens}
    if speed:
        wire["speed"] = speed
    return wire


def realtime_usage(usage: Usage) -> JSON:
    """Realtime's usage: what was cached is inside each modality."""
    cached = {name: int(usage[meter]) for name, meter in _REALTIME_CACHED.items()}
    inside = {name: int(usage[meter]) + cached[name] for name, meter in _REALTIME_FRESH.items()}
    return {
        "total_tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {**inside, "cached_tokens": _cached(usage), "cached_tokens_details": cached},
        "output_token_details": {"text_tokens": int(usage["output"]), "audio_tokens": int(usage["output_audio"])},
    }


def iteration_usage(usage: Usage, *, kind: str, model: str | None) -> JSON:
    """One entry of the beta ``usage.iterations``."""
    wire: JSON = {
        "type": kind,
        "input_tokens": int(usage["input"]),
        "cache_creation_input_tokens": usage.cache_write_input_tokens,
        "cache_read_input_tokens": _cached(usage),
        "cache_creation": _creation(usage),
        "output_tokens": usage.output_tokens,
    }
    if model is not None and kind != "compaction":
        wire["model"] = model
    return wire


def _creation(usage: Usage) -> JSON:
    return {
        "ephemeral_5m_input_tokens": int(usage["cache_write_5m"]),
        "ephemeral_1h_input_tokens": int(usage["cache_write_1h"]),
    }


def _usage(meters: Mapping[str, Quantity], reasoning: int) -> Usage:
    return Usage({meter: quantity for meter, quantity in meters.items() if quantity}, reasoning)


def read_chat(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted ``CompletionUsage``."""
    prompt, completion = part(wire, "prompt_tokens_details"), part(wire, "completion_tokens_details")
    inside = {
        "cache_read": prompt.get("cached_tokens") or 0,
        "cache_write_30m": prompt.get("cache_write_tokens") or 0,
        "input_audio": prompt.get("audio_tokens") or 0,
        "input_image": prompt.get("image_tokens") or 0,
    }
    spoken = completion.get("audio_tokens") or 0
    return _usage(
        {
            **inside,
            "input": (wire.get("prompt_tokens") or 0) - sum(inside.values()),
            "output": (wire.get("completion_tokens") or 0) - spoken,
            "output_audio": spoken,
        },
        completion.get("reasoning_tokens") or 0,
    )


def read_responses(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted ``ResponseUsage``."""
    details = part(wire, "input_tokens_details")
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    half_day = part(details, "cache_write_tokens_details").get("ttl_12h_tokens") or 0
    return _usage(
        {
            "input": (wire.get("input_tokens") or 0) - cached - written,
            "cache_read": cached,
            "cache_write_30m": written - half_day,
            "cache_write_12h": half_day,
            "output": wire.get("output_tokens") or 0,
        },
        part(wire, "output_tokens_details").get("reasoning_tokens") or 0,
    )


def read_messages(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted Anthropic ``Usage``; cache writes without a TTL are the 5-minute ones."""
    written = wire.get("cache_creation_input_tokens") or 0
    creation = part(wire, "cache_creation")
    hour = creation.get("ephemeral_1h_input_tokens") or 0
    return _usage(
        {
            "input": wire.get("input_tokens") or 0,
            "cache_read": wire.get("cache_read_input_tokens") or 0,
            "cache_write_5m": max(written - hour, creation.get("ephemeral_5m_input_tokens") or 0),
            "cache_write_1h": hour,
            "output": wire.get("output_tokens") or 0,
            "web_searches": part(wire, "server_tool_use").get("web_search_requests") or 0,
        },
        part(wire, "output_tokens_details").get("thinking_tokens") or 0,
    )


def read_realtime(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted usage of ``response.done``."""
    inside, out = part(wire, "input_token_details"), part(wire, "output_token_details")
    cached = part(inside, "cached_tokens_details")
    meters = {meter: cached.get(name, 0) for name, meter in _REALTIME_CACHED.items()}
    for name, meter in _REALTIME_FRESH.items():
        meters[meter] = inside.get(name, 0) - cached.get(name, 0)
    meters |= {"output": out.get("text_tokens", 0), "output_audio": out.get("audio_tokens", 0)}
    return _usage(meters, 0)
