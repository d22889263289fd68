"""What a call's options say in an SDK that Stainless generates, and what is added to a copy of them.

The key that the caller put there, the body; the output cap that a budget wants, and that a stream state its usage.
"""

from __future__ import annotations

import copy as copies
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, get_origin

from tokenmeter.capture.sdk import UnreadBody
from tokenmeter.capture.streams import RAW_RESPONSE_HEADER

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight


def effective_body(options: Any) -> Mapping[str, Any] | None:
    """The JSON body that is about to be sent, ``extra_body`` merged in; None for none.

    An `UnreadBody` where the caller sends something else: bytes of his own, files alone, an object or a list.
    """
    body, extra = options.json_data, options.extra_json
    if isinstance(extra, Mapping) and extra and (body is None or isinstance(body, Mapping)):
        return {**cast("Mapping[str, Any]", body or {}), **cast("Mapping[str, Any]", extra)}
    if isinstance(body, Mapping):
        return cast("Mapping[str, Any]", body)
    nothing = body is None and getattr(options, "content", None) is None and not getattr(options, "files", None)
    return None if nothing else UnreadBody()


_BEARER = "bearer "
_KEY_HEADERS = frozenset({"api-key", "x-api-key"})


def key_in(headers: Any) -> str | None:
    """The key or token that request headers carry; None for none, or for a signature.

    Args:
        headers: Of a built request, or of a request's options, where values may also say that a header is left out.
    """
    if not isinstance(headers, Mapping):
        return None
    found: str | None = None
    for name, value in cast("Mapping[str, Any]", headers).items():
        if not isinstance(value, str):
            continue
        if name.lower() == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip() or None
        if name.lower() in _KEY_HEADERS:
            found = value or found
    return found


def prepared(client: Any, call: InFlight, options: Any, kwargs: Mapping[str, Any]) -> Any:
    """The options to send: the caller's own, or a copy of them with what we add."""
    try:
        limited = capped(call, options)
        return _asking_for_usage(client, call, limited, kwargs.get("stream_cls")) if kwargs.get("stream") else limited
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


def capped(call: InFlight, options: Any) -> Any:
    """`options` with the output cap that a budget wants, under the name the endpoint knows it by."""
    try:
        cap = call.output_cap
        if cap is None:
            return options
        dialect, body = call.binding.sdk.dialect(), effective_body(options)
        if type(body) is UnreadBody:
            return options
        field = dialect.output_cap(call.endpoint, body or {}, cap, provider=call.call.provider)
        return _with_field(options, *field)
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


_REFUSAL_CODES = frozenset({400, 403, 422})


def _asking_for_usage(client: Any, call: InFlight, options: Any, stream_cls: Any) -> Any:
    """`options` of a stream of class `stream_cls`, asking for the chunk of usage, which the caller is not shown.

    They come back as they were where the caller decided himself, reads the bytes himself, or the host refuses.
    """
    if stream_cls is None or _reads_raw_bytes(options) or not _is_stream_class(stream_cls):
        return options
    body = effective_body(options)
    if type(body) is UnreadBody:
        return options
    asking = call.binding.sdk.dialect().usage_request(call.endpoint, body or {})
    if asking is None or not call.meter.asks_for_usage(call.provider, client.base_url):
        return options
    call.usage_asked = True
    return _with_field(options, *asking)


def _is_stream_class(stream_cls: Any) -> bool:
    """Whether it is a stream of events as the SDKs make them, or a subclass of one (other instrumentation has some)."""
    found = get_origin(stream_cls) or stream_cls
    return isinstance(found, type) and hasattr(found, "__stream__")


def _reads_raw_bytes(options: Any) -> bool:
    """Whether the caller asked for the response itself, to read its bytes (``with_streaming_response``)."""
    headers = options.headers
    if not isinstance(headers, Mapping) or not headers:
        return False
    return any(
        name.lower() == RAW_RESPONSE_HEADER and value == "stream"
        for name, value in cast("Mapping[str, Any]", headers).items()
    )


def refuses_usage(client: Any, call: InFlight, error: Any) -> bool:
    """Whether the host refused to be asked for usage: it gets later requests as they were written."""
    if not call.usage_asked or error.status_code not in _REFUSAL_CODES:
        return False
    if not call.binding.sdk.dialect().refuses_usage_request(f"{error} {getattr(error, 'body', '')}"):
        return False
    call.meter.stop_asking_for_usage(client.base_url)
    call.usage_asked = False
    return True


def _with_field(options: Any, name: str, value: Any) -> Any:
    changed = copies.copy(options)
    extra = changed.extra_json
    if isinstance(extra, Mapping) and name in extra:
        changed.extra_json = {**cast("Mapping[str, Any]", extra), name: value}
    else:
        changed.json_data = {**(changed.json_data or {}), name: value}
    return changed
