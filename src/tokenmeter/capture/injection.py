"""What a request is changed by, always on a copy: the usage chunk asked for, and the output cap of a budget."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

from tokenmeter.capture.inflight import InFlight, effective_body

__all__ = [
    "RAW_RESPONSE_HEADER",
    "add_output_cap",
    "ask_for_usage",
    "hide_null_usage",
    "is_refusal",
    "reads_raw_bytes",
    "remember_refusal",
]

RAW_RESPONSE_HEADER = "x-stainless-raw-response"
_STREAMS_WITHOUT_USAGE = frozenset({"chat.completions", "completions"})
_REFUSAL_CODES = frozenset({400, 403, 422})

#: Base URLs of hosts that do not take ``stream_options``.
_refusing: set[str] = set()


def ask_for_usage(client: Any, call: InFlight, options: Any, stream_cls: Any) -> tuple[Any, Any]:
    """`options` and `stream_cls` of a stream, asking for the usage chunk and hiding it from the caller.

    Both come back as they were where the caller decided himself, reads the bytes himself, or the host refuses.
    """
    if call.endpoint.path not in _STREAMS_WITHOUT_USAGE or reads_raw_bytes(options) or stream_cls is None:
        return options, stream_cls
    body = effective_body(options)
    if body is None or str(client.base_url) in _refusing:
        return options, stream_cls
    asked = body.get("stream_options")
    own: Mapping[str, Any] = cast("Mapping[str, Any]", asked) if isinstance(asked, Mapping) else {}
    hiding = None if "include_usage" in own else call.binding.sdk.hiding_stream(stream_cls)
    if hiding is None:
        return options, stream_cls
    call.include_usage_injected = True
    return _with_field(options, "stream_options", {**own, "include_usage": True}), hiding


def reads_raw_bytes(options: Any) -> bool:
    """Whether the caller asked for the response itself, to read its bytes (``with_streaming_response``)."""
    headers = options.headers
    if not isinstance(headers, Mapping):
        return False
    return any(
        name.lower() == RAW_RESPONSE_HEADER and value == "stream"
        for name, value in cast("Mapping[str, Any]", headers).items()
    )


def hide_in_raw_response(call: InFlight, value: Any) -> None:
    """A raw response lets its caller choose the stream class: have that one hide the usage chunk as well."""
    parse = getattr(value, "_parse", None)
    if parse is None:
        return
    hiding_stream = call.binding.sdk.hiding_stream

    def _parse(*, to: Any = None) -> Any:
        return parse(to=None if to is None else hiding_stream(to) or to)

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
