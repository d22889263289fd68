"""What happens around an SDK client's methods.

Every way to call (create, parse, stream helpers, tool runners, raw and streaming responses, ``client.post``) goes
through `request`, once per logical call; `_prepare_options`, `_prepare_request` and `_process_response`, once per HTTP
request and response; and `_process_response_data`, with every decoded body and stream event. The hooks do nothing else
than tell the call's `InFlight` and `Exchange`; what the caller gets is the SDK's own: each is given the SDK's method as
`send`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenmeter.capture.body import is_read, watch_body
from tokenmeter.capture.current import current_call, sending
from tokenmeter.capture.exchange import EXTENSION, Exchange, exchange_of
from tokenmeter.capture.frames import FRAMES
from tokenmeter.capture.inflight import InFlight, open_call
from tokenmeter.capture.injection import (
    RAW_RESPONSE_HEADER,
    add_output_cap,
    ask_for_usage,
    hide_null_usage,
    hide_usage_chunk,
    is_refusal,
    remember_refusal,
)
from tokenmeter.capture.keys import key_in
from tokenmeter.capture.sdk import binding_of
from tokenmeter.capture.settlement import settle, settle_async

__all__ = [
    "ASYNC_HOOKS",
    "HOOKS",
    "prepare_options",
    "prepare_options_async",
    "prepare_request",
    "prepare_request_async",
    "process_response",
    "process_response_async",
    "process_response_data",
    "request",
    "request_async",
    "see_data",
]

Send = Callable[..., Any]


def request(send: Send, client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
    """One logical call."""
    call = _opened(client, options, kwargs)
    with sending(call):
        if call is None:
            return send(cast_to, options, *args, **kwargs)
        if not call.awaits_key:
            call.authorize()
        try:
            sent = _prepared(client, call, options, kwargs)
            try:
                value = send(cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not call.include_usage_injected or not is_refusal(error):
                    raise
                remember_refusal(client, call)
                value = send(cast_to, add_output_cap(call, options), *args, **kwargs)
        except BaseException as error:
            for settling in call.raised(error):
                settle(settling)
            raise
    for settling in call.returned():
        settle(settling)
    return value


async def request_async(send: Send, client: Any, cast_to: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
    """One logical call (async)."""
    binding = binding_of(client)
    if binding is not None:
        await binding.meet()
    call = _opened(client, options, kwargs)
    with sending(call):
        if call is None:
            return await send(cast_to, options, *args, **kwargs)
        if not call.awaits_key:
            await call.authorize_async()
        try:
            sent = _prepared(client, call, options, kwargs)
            try:
                value = await send(cast_to, sent, *args, **kwargs)
            except call.binding.sdk.status_error as error:
                if not call.include_usage_injected or not is_refusal(error):
                    raise
                remember_refusal(client, call)
                value = await send(cast_to, add_output_cap(call, options), *args, **kwargs)
        except BaseException as error:
            for settling in call.raised(error):
                await settle_async(settling)
            raise
    for settling in call.returned():
        await settle_async(settling)
    return value


def prepare_options(send: Send, client: Any, options: Any) -> Any:
    """One HTTP request is being prepared: the key that was handed out for it is known."""
    prepared = send(options)
    call = current_call()
    if call is None or not call.key_on_demand:
        return prepared
    given, used = key_in(prepared.headers), client.api_key
    if call.learn_key(given or call.binding.sdk.api_key(client)):
        call.authorize()
        if given is None:
            _keep_key(client, used)
    return _capped(call, prepared)


async def prepare_options_async(send: Send, client: Any, options: Any) -> Any:
    """As `prepare_options`, async."""
    prepared = await send(options)
    call = current_call()
    if call is None or not call.key_on_demand:
        return prepared
    given, used = key_in(prepared.headers), client.api_key
    if call.learn_key(given or call.binding.sdk.api_key(client)):
        await call.authorize_async()
        if given is None:
            _keep_key(client, used)
    return _capped(call, prepared)


def prepare_request(send: Send, client: Any, request: Any) -> None:  # noqa: ARG001 - hooks are called alike
    """One HTTP request is about to be sent."""
    send(request)
    call = current_call()
    if call is not None:
        call.attempts += 1
        if call.awaits_key:
            call.learn_key(key_in(request.headers))
            call.authorize()


async def prepare_request_async(send: Send, client: Any, request: Any) -> None:  # noqa: ARG001 - as above
    """As `prepare_request`, async."""
    await send(request)
    call = current_call()
    if call is not None:
        call.attempts += 1
        if call.awaits_key:
            call.learn_key(key_in(request.headers))
            await call.authorize_async()


def process_response(send: Send, client: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - hooks are called alike
    """One HTTP response came."""
    exchange = _responded(**kwargs)
    try:
        value = send(**kwargs)
    except BaseException as error:
        if exchange is not None:
            exchange.failed(error)
            exchange.finish()
        raise
    _answered(exchange, kwargs["response"], value)
    return value


async def process_response_async(send: Send, client: Any, **kwargs: Any) -> Any:  # noqa: ARG001 - as above
    """As `process_response`, async."""
    exchange = _responded(**kwargs)
    try:
        value = await send(**kwargs)
    except BaseException as error:
        if exchange is not None:
            exchange.failed(error)
            exchange.finish()
        raise
    _answered(exchange, kwargs["response"], value)
    return value


def process_response_data(send: Send, client: Any, *, data: Any, cast_to: Any, response: Any) -> Any:  # noqa: ARG001
    """One decoded body or stream event came."""
    see_data(data, response)
    return send(data=data, cast_to=cast_to, response=response)


HOOKS: dict[str, Callable[..., Any]] = {
    "request": request,
    "_prepare_options": prepare_options,
    "_prepare_request": prepare_request,
    "_process_response": process_response,
    "_process_response_data": process_response_data,
}
ASYNC_HOOKS: dict[str, Callable[..., Any]] = {
    "request": request_async,
    "_prepare_options": prepare_options_async,
    "_prepare_request": prepare_request_async,
    "_process_response": process_response_async,
    "_process_response_data": process_response_data,
}


# -- what the hooks have in common


def _opened(client: Any, options: Any, kwargs: dict[str, Any]) -> InFlight | None:
    binding = binding_of(client)
    return None if binding is None else open_call(client, binding, options, stream=bool(kwargs.get("stream")))


def _prepared(client: Any, call: InFlight, options: Any, kwargs: dict[str, Any]) -> Any:
    """The options to send: the caller's own, or a copy of them with what we add."""
    try:
        sent = add_output_cap(call, options)
        return ask_for_usage(client, call, sent, kwargs.get("stream_cls")) if kwargs.get("stream") else sent
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


def _keep_key(client: Any, used: Any) -> None:
    """While this call waited for leave, another thread or task may have put its own key on the client they share."""
    if client.api_key is not used:
        client.api_key = used


def _capped(call: InFlight, options: Any) -> Any:
    try:
        return add_output_cap(call, options)
    except Exception as error:  # noqa: BLE001 - sent as written, then
        call.meter.fault("prepare a request", error)
        return options


def _responded(*, response: Any, stream: bool, **_: Any) -> Exchange | None:
    """The exchange of a response with a success status; None when there is no metered call, or nothing is billed."""
    call = current_call()
    if call is None:
        return None
    try:
        if not response.is_success:
            return None
        form = call.endpoint.form
        exchange = call.respond(response.headers, streamed=stream and form != "lines")
        response.extensions[EXTENSION] = exchange
        if not is_read(response) or (stream and _is_binary_stream(response)):
            # An SDK may leave out lines and events that it does not know.
            if form != "one" or response.request.headers.get(RAW_RESPONSE_HEADER) == "stream":
                exchange.read_bytes_aside(response.headers)
            watch_body(response, exchange)
    except Exception as error:  # noqa: BLE001 - the caller gets his answer
        call.meter.fault("watch a response", error)
        return None
    return exchange


def _is_binary_stream(response: Any) -> bool:
    return FRAMES in response.headers.get("content-type", "")


def _answered(exchange: Exchange | None, response: Any, value: Any) -> None:
    """After the SDK made its value: a body in memory is all there is."""
    call = current_call()
    if call is not None and call.include_usage_injected:
        hide_usage_chunk(call, value)  # also where the response could not be watched
    if exchange is not None and is_read(response) and not (exchange.streamed and _is_binary_stream(response)):
        exchange.read_content(response.content, response.headers)
        exchange.finish()


def see_data(data: Any, response: Any) -> None:
    """Take one decoded body or stream event. Called for every event: kept lean."""
    exchange = exchange_of(response)
    if exchange is not None:
        exchange.saw(data)
        if exchange.call.include_usage_injected:
            hide_null_usage(data)
