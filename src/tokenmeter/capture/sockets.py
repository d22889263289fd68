"""WebSocket connections (realtime, responses, live) bypass ``client.request``: here they are found and listened to.

A connection of a metered client gets its own ``parse_event``, which sees every received event, and its own ``send``,
where a budget can stop the next answer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

from tokenmeter.call import Call
from tokenmeter.capture.calls import describe, identify
from tokenmeter.capture.conversation import Conversation
from tokenmeter.capture.sdk import Binding, binding_of, bound_to
from tokenmeter.capture.settlement import catch_up_async

if TYPE_CHECKING:
    from tokenmeter.meter import Meter

__all__ = ["watch_resource", "watch_resources"]

Send = Callable[..., Any]


def watch_resources(client: Any) -> None:
    """Watch what was taken from `client` before it was metered."""
    for resource in [*client.__dict__.values()]:
        if getattr(resource, "_client", None) is client:
            watch_resource(resource)
            watch_resources(resource)


def watch_resource(resource: Any) -> None:
    """Have the connections that `resource` opens observed, if it opens any and its client is metered."""
    kind: Any = resource.__class__
    if hasattr(kind, "connect") and bound_to(resource._client) is not None:  # noqa: SLF001 - an SDK's own
        plain = MethodType(kind.connect, resource)
        resource.connect = functools.update_wrapper(functools.partial(_connect, plain, resource), plain)


def _connect(send: Send, resource: Any, *args: Any, **kwargs: Any) -> Any:
    manager = send(*args, **kwargs)
    client = resource._client  # noqa: SLF001 - an SDK's own
    binding = binding_of(client)
    meter = None if binding is None else binding.meter()
    if binding is None or meter is None:
        return manager
    try:
        endpoint = binding.sdk.dialect().endpoint("GET", _path(resource))
        body = {"model": kwargs["model"]} if isinstance(kwargs.get("model"), str) else {}
        call = describe(binding, endpoint, identify(client, binding, meter, body), body, streamed=True)
        kind: Any = manager.__class__
        manager.__class__ = _watched_manager(kind)
        attached_to = _attached_to(resource, kwargs)
        manager._tokenmeter_talk = functools.partial(_talk, client, binding, meter, call, attached_to)  # noqa: SLF001
    except Exception as error:  # noqa: BLE001 - the connection is made, unobserved
        meter.fault("watch a socket", error)
    return manager


def _talk(
    client: Any, binding: Binding, meter: Meter, call: Call, attached_to: str | None, *, waits: bool
) -> Conversation:
    """The conversation over a connection that was just made, with the key that was handed out for it."""
    if binding.sdk.asks_for_key(client):
        call = replace(call, api_key=meter.identify(binding.sdk.api_key(client)))
    dialect = binding.sdk.dialect()
    assert dialect.socket_events is not None  # noqa: S101 - `_connect` asked
    return Conversation(meter, dialect, dialect.socket_events, call, waits=waits, attached_to=attached_to)


def _path(resource: Any) -> str:
    module = type(resource).__module__
    if "realtime" in module:
        return "/realtime"
    return "/responses" if "responses" in module else "/live"


def _attached_to(resource: Any, asked: Mapping[str, Any]) -> str | None:
    """The session that exists already; None for one that begins with this connection."""
    named = asked.get("session_id") if "sideband" in type(resource).__module__ else asked.get("call_id")
    return named if isinstance(named, str) else None


def _observe(connection: Any, talk_over: Callable[..., Conversation]) -> None:
    """Have `connection` report from now on."""
    kind: Any = connection.__class__
    waits = not inspect.iscoroutinefunction(kind.recv)
    talk = talk_over(waits=waits)
    hooks: dict[str, Send] = {"parse_event": _parse_event, "send": _send, "close": _close if waits else _close_async}
    for name, hook in hooks.items():
        plain = getattr(connection, name)
        setattr(connection, name, functools.update_wrapper(functools.partial(hook, kind, connection, talk), plain))


def _parse_event(kind: Any, connection: Any, talk: Conversation, data: str | bytes) -> Any:
    talk.hears(data)
    return kind.parse_event(connection, data)


def _send(kind: Any, connection: Any, talk: Conversation, event: Any) -> Any:
    talk.asks(event.to_dict() if hasattr(event, "to_dict") else event)
    return kind.send(connection, event)


def _close(kind: Any, connection: Any, talk: Conversation, *args: Any, **kwargs: Any) -> Any:
    try:
        return kind.close(connection, *args, **kwargs)
    finally:
        talk.abandon()


async def _close_async(kind: Any, connection: Any, talk: Conversation, *args: Any, **kwargs: Any) -> Any:
    try:
        return await kind.close(connection, *args, **kwargs)
    finally:
        talk.abandon()
        await catch_up_async()


_managers: dict[type[Any], type[Any]] = {}


def _watched_manager(kind: type[Any]) -> type[Any]:
    made = _managers.get(kind)
    if made is None:
        body = _async_entry(kind) if hasattr(kind, "__aenter__") else _entry(kind)
        made = _managers[kind] = type(kind.__name__, (kind,), {"__module__": kind.__module__, **body})
    return made


def _entry(kind: type[Any]) -> dict[str, Any]:
    def __enter__(self: Any) -> Any:  # noqa: N807 - it becomes that method
        connection = kind.__enter__(self)
        _observe(connection, self._tokenmeter_talk)
        return connection

    return {"__enter__": __enter__, "enter": __enter__}


def _async_entry(kind: type[Any]) -> dict[str, Any]:
    async def __aenter__(self: Any) -> Any:  # noqa: N807 - it becomes that method
        connection = await kind.__aenter__(self)
        _observe(connection, self._tokenmeter_talk)
        return connection

    return {"__aenter__": __aenter__, "enter": __aenter__}
