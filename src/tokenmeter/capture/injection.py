"""What a request is changed by, always on a copy: the usage chunk asked for, and the output cap of a budget."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any, cast, get_origin

from tokenmeter.capture.inflight import InFlight, effective_body

__all__ = [
    "RAW_RESPONSE_HEADER",
    "add_output_cap",
    "ask_for_usage",
    "hide_null_usage",
    "hide_usage_chunk",
    "is_refusal",
    "reads_raw_bytes",
    "remember_refusal",
]

RAW_RESPONSE_HEADER = "x-stainless-raw-response"
_STREAMS_WITHOUT_USAGE = frozenset({"chat.completions", "completions"})
_REFUSAL_CODES = frozenset({400, 403, 422})

#: Base URLs of hosts that do not take ``stream_options``.
_refusing: set[str] = set()


def ask_for_usage(client: Any, call: InFlight, options: Any, stream_cls: Any) -> Any:
    """`options` of a stream of class `stream_cls`, asking for the usage chunk, which `hide_usage_chunk` then hides.

    They come back as they were where the caller decided himself, reads the bytes himself, or the host refuses.
    """
    if call.endpoint.path not in _STREAMS_WITHOUT_USAGE or reads_raw_bytes(options):
        return options
    body = effective_body(options)
    if body is None or get_origin(stream_cls) not in call.binding.sdk.stream_classes:
        return options
    asked = body.get("stream_options")
    own: Mapping[str, Any] = cast("Mapping[str, Any]", asked) if isinstance(asked, Mapping) else {}
    if "include_usage" in own or str(client.base_url) in _refusing:
        return options
    call.include_usage_injected = True
    return _with_field(options, "stream_options", {**own, "include_usage": True})


def reads_raw_bytes(options: Any) -> bool:
    """Whether the caller asked for the response itself, to read its bytes (``with_streaming_response``)."""
    headers = options.headers
    if not isinstance(headers, Mapping):
        return False
    return any(
        name.lower() == RAW_RESPONSE_HEADER and value == "stream"
        for name, value in cast("Mapping[str, Any]", headers).items()
    )


def hide_usage_chunk(call: InFlight, value: Any) -> None:
    """Hide the chunk that only we asked for from `value`: a stream, or a raw response that is parsed to one later."""
    parse = getattr(value, "_parse", None)
    if parse is None:
        call.binding.sdk.hide_usage(value)
        return

    @functools.wraps(parse)
    def _parse(*args: Any, **kwargs: Any) -> Any:
        parsed = parse(*args, **kwargs)
        call.binding.sdk.hide_usage(parsed)
        return parsed

    value._parse = _parse  # noqa: SLF001 - what its public parse() goes through


def is_refusal(error: Any) -> bool:
    """Whether a host refused the request because of ``stream_options``."""
    if error.status_code not in _REFUSAL_CODES:
        return False
    said = f"{error} {getattr(error, 'body', '')}"
    return "stream_options" in said or "include_usage" in said


def remember_refusal(client: Any, call: InFlight) -> None:
    """Send later streams to this host as they were written."""
    _refusing.add(str(client.base_url))
    call.include_usage_injected = False


def hide_null_usage(data: Any) -> None:
    """Take ``usage: null`` off a chunk: hosts add it to every chunk of a stream that asks for usage."""
    if isinstance(data, dict) and "usage" in data and data["usage"] is None:
        del data["usage"]


def add_output_cap(call: InFlight, options: Any) -> Any:
    """`options` with the output cap that a budget wants, under the name the endpoint knows it by."""
    cap = call.output_cap
    return options if cap is None else _with_field(options, _cap_field(call), cap)


def _cap_field(call: InFlight) -> str:
    if "responses" in call.endpoint.path:
        return "max_output_tokens"
    if call.endpoint.path == "chat.completions" and call.provider in {"openai", "azure"}:
        return "max_completion_tokens"
    return "max_tokens"


def _with_field(options: Any, name: str, value: Any) -> Any:
    changed = copy.copy(options)
    extra = changed.extra_json
    if isinstance(extra, Mapping) and name in extra:
        changed.extra_json = {**cast("Mapping[str, Any]", extra), name: value}
    else:
        changed.json_data = {**(changed.json_data or {}), name: value}
    return changed
