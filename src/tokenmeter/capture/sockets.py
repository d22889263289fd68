"""How the connections that a client's resources open are watched: each reports to a `Conversation`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.conversation import Conversation
from tokenmeter.capture.description import describe, identify
from tokenmeter.capture.sdk import Binding, binding_of, bound_to, twice
from tokenmeter.capture.settlement import catch_up_async, has_waiting

if TYPE_CHECKING:
    from tokenmeter.meter import Meter

Send = Callable[..., Any]


def watch_resources(client: Any) -> None:
    """Watch what was taken from `client` before it was metered."""
    for resource in [*client.__dict__.values()]:
        if getattr(resource, "_client", None) is client:
            watch_resource(resource)
            watch_resources(resource)


def watch_resource(resource: Any) -> None:
    """Have the connections that `resource` opens observed, if it opens any and its client is metered. Never raises."""
    twice(None, functools.partial(_have_watched, resource), "see a call")


def _have_watched(resource: Any) -> None:
    kind: Any = resource.__class__
    if hasattr(kind, "connect") and bound_to(resource._client) is not None:  # noqa: SLF001 - an SDK's own
        resource.connect = MethodType(_connecting(kind), resource)


def _connecting(kind: Any) -> Send:
    """A resource's ``connect``, whose connections are observed."""

    @functools.wraps(kind.connect)
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = kind.connect(self, *args, **kwargs)
        binding = binding_of(self._client)
        meter = None if binding is None else binding.meter()
        if binding is not None and meter is not None:
            asked = inspect.signature(kind.connect).bind(self, *args, **kwargs).arguments
            twice(meter, functools.partial(_watch_manager, manager, self, binding, meter, asked))
        return manager

    return connect


def _watch_manager(manager: Any, resource: Any, binding: Binding, meter: Meter, asked: Mapping[str, Any]) -> None:
    """Have the connection observed that `manager` is to make."""
    client, dialect = resource._client, binding.sdk.dialect()  # noqa: SLF001 - an SDK's own
    endpoint = dialect.endpoint("GET", _path(resource))
    body = {"model": asked["model"]} if isinstance(asked.get("model"), str) else {}
    call = describe(binding, endpoint, identify(client, binding, meter, body), body, streamed=True)
    kind: Any = manager.__class__
    assert dialect.socket_events is not None  # noqa: S101 - it has connections
    talk = Conversation(
        meter,
        dialect,
        dialect.socket_events,
        call,
        waits=not hasattr(kind, "__aenter__"),
        attached_to=_attached_to(resource, asked),
    )
    manager._tokenmeter_connecting = _Connecting(client, binding, talk)  # noqa: SLF001
    manager.__class__ = _watched_manager(kind)


class _Connecting:
    """A connection that is about to be made.

    Args:
        client: Whose it is.
        binding: What that is metered with.
        talk: What will go on over it.
    """

    __slots__ = ("_binding", "_client", "_queued", "_talk")

    def __init__(self, client: Any, binding: Binding, talk: Conversation) -> None:
        self._client = client
        self._binding = binding
        self._talk = talk
        self._queued: list[Any] = []

    def queue(self, event: Any) -> None:
        """An event waits for the connection, and leaves as soon as that is made."""
        self._queued.append(self._talk.read(event))

    @contextmanager
    def made(self) -> Generator[None]:
        """Around the making of it: leave is asked for what waits before anything is sent."""
        talk, queued = self._talk, self._queued
        try:
            while queued:
                talk.asks(queued.pop(0), queued=True)
            talk.begins()
            yield
        except BaseException:
            talk.take_back()
            raise

    def observe(self, connection: Any) -> None:
        """Take the key that was handed out for the connection, which reports from now on. Never raises."""
        twice(self._talk.meter, self._learn_key)
        twice(self._talk.meter, lambda: _observe(connection, self._talk))

    def _learn_key(self) -> None:
        if self._binding.sdk.asks_for_key(self._client):
            self._talk.goes_by(self._binding.sdk.api_key(self._client))


def _path(resource: Any) -> str:
    module = type(resource).__module__
    if "realtime" in module:
        return "/realtime"
    return "/responses" if "responses" in module else "/live"


def _attached_to(resource: Any, asked: Mapping[str, Any]) -> str | None:
    """The session that exists already; None for one that begins with this connection."""
    named = asked.get("session_id") if "sideband" in type(resource).__module__ else asked.get("call_id")
    return named if isinstance(named, str) else None


def _observe(connection: Any, talk: Conversation) -> None:
    """Have `connection` report from now on."""
    kind: Any = connection.__class__
    for name, hook in (("parse_event", _parsing), ("send", _sending), ("send_raw", _sending), ("close", _closing)):
        plain = getattr(kind, name, None)
        if plain is not None:  # older SDKs have no `send_raw`
            setattr(connection, name, MethodType(functools.wraps(plain)(hook(_late(kind, name), talk)), connection))


def _late(kind: Any, name: str) -> Send:
    """A method of the SDK's as its class has it when it is called: a test may put another there meanwhile."""

    def method(*args: Any, **kwargs: Any) -> Any:
        return getattr(kind, name)(*args, **kwargs)

    async def method_async(*args: Any, **kwargs: Any) -> Any:
        return await getattr(kind, name)(*args, **kwargs)

    return method_async if inspect.iscoroutinefunction(getattr(kind, name)) else method


def _parsing(plain: Send, talk: Conversation) -> Send:
    def parse_event(self: Any, data: str | bytes) -> Any:
        talk.hears(data)
        return plain(self, data)

    return parse_event


def _sending(plain: Send, talk: Conversation) -> Send:
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        event = next(iter((*args, *kwargs.values())), None)
        sent = talk.asks(event)
        if sent is not event:
            args, kwargs = (sent, *args[1:]) if args else (), kwargs if args else {next(iter(kwargs)): sent}
        return plain(self, *args, **kwargs)

    async def send_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        if has_waiting():  # what a budget is asked about next
            await catch_up_async()
        return await send(self, *args, **kwargs)

    return send_async if inspect.iscoroutinefunction(plain) else send


def _closing(plain: Send, talk: Conversation) -> Send:
    def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return plain(self, *args, **kwargs)
        finally:
            talk.abandon()

    async def close_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await plain(self, *args, **kwargs)
        finally:
            talk.abandon()
            await catch_up_async()

    return close_async if inspect.iscoroutinefunction(plain) else close


_managers: dict[type[Any], type[Any]] = {}


def _watched_manager(kind: type[Any]) -> type[Any]:
    made = _managers.get(kind)
    if made is None:
        body = _async_entry(kind) if hasattr(kind, "__aenter__") else _entry(kind)
        body |= {name: _queueing(getattr(kind, name)) for name in ("send", "send_raw") if hasattr(kind, name)}
        made = _managers[kind] = type(kind.__name__, (kind,), {"__module__": kind.__module__, **body})
    return made


def _queueing(plain: Send) -> Send:
    """A newer SDK's way to send before there is a connection."""

    @functools.wraps(plain)
    def send(self: Any, event: Any) -> Any:
        result = plain(self, event)
        self._tokenmeter_connecting.queue(event)
        return result

    return send


def _entry(kind: type[Any]) -> dict[str, Any]:
    def __enter__(self: Any) -> Any:  # noqa: N807 - it becomes that method
        connecting = self._tokenmeter_connecting
        with connecting.made():
            connection = kind.__enter__(self)
        connecting.observe(connection)
        return connection

    return {"__enter__": __enter__, "enter": __enter__}


def _async_entry(kind: type[Any]) -> dict[str, Any]:
    async def __aenter__(self: Any) -> Any:  # noqa: N807 - it becomes that method
        connecting = self._tokenmeter_connecting
        with connecting.made():
            connection = await kind.__aenter__(self)
        connecting.observe(connection)
        return connection

    return {"__aenter__": __aenter__, "enter": __aenter__}
