"""Google's clients, metered in place: their requests, their sockets, and those of a second library inside the SDK.

Interactions, decisions, voices and triggers are of the latter; it has its own transport.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.capture.genai_interactions import MeteredConnections
from tokenmeter.capture.genai_requests import (
    Requests,
    open_request,
    put_before,
    put_together,
    with_cap,
)
from tokenmeter.capture.genai_sockets import MeteredLive, MeteredMusic
from tokenmeter.capture.sdk import BINDING, Binding, Sdk, binding_of
from tokenmeter.interrupts import let_interrupt_through

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange


def bind(client: Any, binding: Binding) -> None:
    """Meter `client` from now on, in place. Its type stays; resources taken from it before are metered too."""
    api = client._api_client  # noqa: SLF001 - the one object that all resources hold
    api.__dict__[BINDING] = binding
    put_before(api, Requests)
    live = getattr(client.aio, "_live", None)
    if live is not None:
        put_before(live, MeteredLive)
        music = getattr(live, "_music", None)
        if music is not None:
            put_before(music, MeteredMusic)


# -- interactions and their sisters

if TYPE_CHECKING:

    class _Resource:
        def do_request(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any: ...

    class _AsyncResource:
        async def do_request_async(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any: ...

else:
    _Resource = _AsyncResource = object


class _Interactions(_Resource):
    """Before the class of such a resource."""

    def do_request(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = _open_raw(self, request)
        if call is None:
            return super().do_request(hook_ctx, request, *args, **kwargs)
        try:
            call.authorize()
            call.attempts = 1
            response = super().do_request(hook_ctx, _capped_raw(call, request), *args, **kwargs)
            exchange = _responded(call, response)
            if exchange is not None and exchange.ended:
                exchange.finish()
            call.returned()
        except BaseException as error:
            call.raised(error)
            raise
        return response


class _AsyncInteractions(_AsyncResource):
    """As `_Interactions`, async."""

    async def do_request_async(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = await _open_raw_async(self, request)
        if call is None:
            return await super().do_request_async(hook_ctx, request, *args, **kwargs)
        try:
            await call.authorize_async()
            call.attempts = 1
            response = await super().do_request_async(hook_ctx, _capped_raw(call, request), *args, **kwargs)
            exchange = _responded(call, response)
            if exchange is not None and exchange.ended:
                await exchange.finish_async()
            await call.returned_async()
        except BaseException as error:
            await call.raised_async(error)
            raise
        return response


def watch_resources(*owners: type[Any], generated: Sdk | None = None) -> None:
    """Have interactions and their sisters metered where their client is.

    They are made when they are first asked for, by a property, and importing their module takes a second: it is left
    to the caller to begin that.

    Args:
        *owners: The SDK's client classes.
        generated: What is to be known of the client that interactions have in versions where Stainless generated it.
    """
    for owner in owners:
        if generated is not None:
            _watch(owner, "_nextgen_client", functools.partial(_meter_generated, generated))
            continue
        for name in ("interactions", "decisions", "voices", "triggers"):
            _watch(owner, name, _meter_resource)


def _watch(owner: type[Any], name: str, meter: Callable[[Any, Any], None]) -> None:
    """Have what a property of `owner` gives metered, where its client is: `meter` gets that client's and it."""
    plain = vars(owner).get(name)
    if not isinstance(plain, property) or hasattr(plain.fget, "__wrapped__"):
        return
    getter = cast("Callable[[Any], Any]", plain.fget)

    @functools.wraps(getter)
    def resource(self: Any) -> Any:
        found = getter(self)
        if BINDING in self._api_client.__dict__:
            meter(self._api_client, found)
        return found

    setattr(owner, name, property(resource, doc=plain.__doc__))


def _meter_resource(api: Any, resource: Any) -> None:
    if BINDING in resource.__dict__:
        return
    resource.__dict__[BINDING] = api
    kind: type[Any] = resource.__class__
    if hasattr(kind, "do_request_async"):
        put_before(resource, _AsyncInteractions)
        if hasattr(kind, "connect"):
            put_before(resource, MeteredConnections)
    elif hasattr(kind, "do_request"):
        put_before(resource, _Interactions)


def _meter_generated(sdk: Sdk, api: Any, client: Any) -> None:
    """Meter a client that Stainless generated, as OpenAI's and Anthropic's are.

    By its class, since the SDK closes its connections when nobody holds them: no method of ours may hold it.
    """
    from tokenmeter.capture.stainless import metered_class  # noqa: PLC0415 - only those who use interactions

    given: Binding = api.__dict__[BINDING]
    known: Binding | None = client.__dict__.get(BINDING)
    if known is None:
        kind: type[Any] = client.__class__
        made = put_together.get((kind, Binding)) or metered_class(kind, Binding(sdk))
        put_together[kind, Binding] = client.__class__ = made
    if known is None or known.own_meter is not given.own_meter or known.attribution != given.attribution:
        client.__dict__[BINDING] = Binding(sdk, given.own_meter, given.attribution)


def _open_raw(resource: Any, request: Any) -> InFlight | None:
    api = resource.__dict__[BINDING]
    body = _raw_body(request)
    streamed = bool(body and body.get("stream"))
    return open_request(
        api, request.method, request.url.path, body, {"headers": dict(request.headers)}, streamed=streamed
    )


async def _open_raw_async(resource: Any, request: Any) -> InFlight | None:
    binding = binding_of(resource.__dict__[BINDING])
    if binding is not None and not binding.met:
        await binding.meet()
    return _open_raw(resource, request)


def _raw_body(request: Any) -> dict[str, Any] | None:
    try:
        body = json.loads(request.content) if request.content else None
    except Exception as error:  # noqa: BLE001 - no JSON, or a body that is only read as it is sent
        let_interrupt_through(error)
        return None
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def _capped_raw(call: InFlight, request: Any) -> Any:
    """The request, or one like it with the output cap that a budget wants."""
    if call.output_cap is None:
        return request
    body = _raw_body(request)
    changed = with_cap(call, body)
    if changed is body:
        return request
    headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"content-length"]
    content = json.dumps(changed, ensure_ascii=False, separators=(",", ":")).encode()
    return type(request)(request.method, request.url, headers=headers, content=content, extensions=request.extensions)


def _responded(call: InFlight, response: Any) -> Exchange | None:
    """The exchange of a response: read, where its body is in memory; else heard as the caller takes it."""
    return call.watch_answer(functools.partial(_watched, call, response), streamed=False)


def _watched(call: InFlight, response: Any) -> Exchange | None:
    from tokenmeter.capture.streams import is_read, watch_body  # noqa: PLC0415 - only those who use interactions

    if not response.is_success:
        return None
    streamed = "event-stream" in response.headers.get("content-type", "")
    exchange = call.respond(response.headers, streamed=streamed)
    if is_read(response):
        exchange.read_content(response.content, response.headers)
    else:
        exchange.read_bytes_aside(response.headers)
        watch_body(response, exchange)
    return exchange
