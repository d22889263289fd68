"""What goes on over one WebSocket: every answer is settled by itself, a running total by what it has grown."""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

from tokenmeter import processes
from tokenmeter.call import Call, Outcome
from tokenmeter.capture.calls import REFUSALS, describe, identify, leave
from tokenmeter.capture.readings import GrowingBill, opened
from tokenmeter.capture.sdk import Binding, UnreadBody, binding_of, bound_to
from tokenmeter.capture.settlement import Settling, catch_up_async, settle, settle_from_anywhere, watch
from tokenmeter.dimensions import Status
from tokenmeter.ledger import new_id
from tokenmeter.providers.prompts import UNREADABLE
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Dialect, SocketEvents


#: A running total is written down this often, and at the end. Seconds.
_EVERY = 60


class Conversation:
    """What goes on over one connection.

    Args:
        meter: Where to record.
        dialect: Reads the events.
        events: Which of them matter.
        call: The connection, as a call: on whose account all of its answers go.
        attached_to: The session that the connection looks in on, which others may look in on as well.
        waits: Whether settling may wait for the store (not in an event loop).
    """

    __slots__ = (
        "__weakref__",
        "_asked",
        "_attached_to",
        "_call",
        "_dialect",
        "_due",
        "_events",
        "_made_in",
        "_meter",
        "_session",
        "_total",
        "_write",
    )

    def __init__(
        self,
        meter: Meter,
        dialect: Dialect,
        events: SocketEvents,
        call: Call,
        *,
        waits: bool,
        attached_to: str | None = None,
    ) -> None:
        self._made_in = processes.this_process
        self._meter = meter
        self._dialect = dialect
        self._events = events
        self._call = call
        self._session: dict[str, Any] = {"model": call.facts.model}
        self._asked: deque[tuple[str | None, Authorization]] = deque()
        self._attached_to = attached_to
        self._total: Observation | None = None
        self._due = time.monotonic() + _EVERY
        self._write = settle if waits else settle_from_anywhere
        watch(self)

    def asks(self, event: Any) -> None:
        """An event is about to be sent: a JSON object, or something else that asks for nothing.

        Raises:
            BudgetExceededError: it asks for an answer that a hard cap does not allow.
        """
        if not isinstance(event, Mapping):
            return
        given = cast("Mapping[str, Any]", event)
        if isinstance(given, UnreadBody):
            call = replace(self._call, facts=replace(self._call.facts, unbounded=UNREADABLE))
        elif given.get("type") == self._events.request:
            asked = given.get("response")
            body = cast("Mapping[str, Any]", asked) if isinstance(asked, Mapping) else given
            call = self._call_for({**self._session, **body})
        else:
            return
        try:
            authorization = self._meter.authorize(call)
            self._asked.append((given.get("event_id"), authorization))
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self._meter.fault("authorize", error)

    def goes_by(self, key: str | None) -> None:
        """The connection was made with `key`."""
        self._call = replace(self._call, api_key=self._meter.identify(key))

    def take_back(self) -> None:
        """What was asked for did not leave."""
        while self._asked:
            self._meter.release(self._asked.popleft()[1])

    def hears(self, data: str | bytes) -> None:
        """A message was received."""
        try:
            event = json.loads(data)
            kind, names = event.get("type"), self._events
            if kind in names.answers or kind in names.asides:
                self._settle(self._read(event), "ok", answers=kind in names.answers)
            elif kind in names.totals:
                self._take_total(self._read(event), ended=kind in names.last_totals)
            elif kind in names.beginnings or kind in names.settings:
                self._configure(event.get("session", {}), begins=kind in names.beginnings)
            elif kind in names.errors:
                self._refuse(event.get("error") or {})
        except Exception as error:  # noqa: BLE001 - the caller gets his event
            self._meter.fault("read a socket", error)

    def abandon(self) -> None:
        """The connection is over: what was asked for and not answered may be billed all the same."""
        if self._made_in is not processes.this_process:
            return
        if self._total is not None:
            self._write_total("aborted")
        while self._asked:
            self._settle(None, "aborted")

    def __del__(self) -> None:
        self._write = settle_from_anywhere
        self.abandon()

    def _call_for(self, body: Mapping[str, Any]) -> Call:
        known = self._call.facts
        try:
            facts = self._dialect.request_facts(self._dialect.endpoint("GET", f"/{self._call.endpoint}"), body)
        except Exception as error:  # noqa: BLE001 - what cannot be read has no bound: a hard cap decides
            self._meter.fault("read what a socket is asked", error)
            facts = replace(known, unbounded=UNREADABLE)
        return replace(self._call, facts=replace(facts, streamed=True, region=known.region))

    def _read(self, event: Mapping[str, Any]) -> Observation:
        call = self._call
        return self._dialect.read(event, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def _configure(self, settings: Mapping[str, Any], *, begins: bool) -> None:
        self._session.update(settings)
        self._call = self._call_for({"session": self._session, **self._session})
        if begins and self._attached_to is None:
            opened(self._meter, self._session.get("id"), self._call.facts.model)

    def _take_total(self, seen: Observation, *, ended: bool) -> None:
        if seen.reading != "total":  # a session that ends without saying what it used
            self._settle(seen, "ok", answers=False)
            return
        self._total = seen
        if ended or time.monotonic() >= self._due:
            self._write_total("ok")

    def _write_total(self, status: Status) -> None:
        total, self._total = self._total, None
        if total is None:
            return
        self._due = time.monotonic() + _EVERY
        identity = self._attached_to or self._session.setdefault("id", new_id())
        flags = total.flags | {"estimated"} if status == "aborted" else total.flags
        outcome = Outcome(status=status, observation=replace(total, response_id=identity, flags=flags))
        self._write(GrowingBill(self._meter, leave(self._meter, self._call), outcome, identity))

    def _refuse(self, error: Mapping[str, Any]) -> None:
        """An answer that was asked for will not come. Which one, a realtime session says by its event's id."""
        named, only_answers = error.get("event_id"), self._call.endpoint == "responses.connect"
        for asked in self._asked:
            if only_answers or (named is not None and asked[0] == named):
                self._asked.remove(asked)
                outcome = Outcome(status="error", error_type=error.get("code") or error.get("type"))
                self._write(Settling(self._meter, asked[1], outcome))
                return

    def _settle(self, seen: Observation | None, status: Status, *, answers: bool = True) -> None:
        asked = self._asked.popleft()[1] if self._asked and answers else None
        if seen is not None and not seen.billable:
            if asked is not None:
                self._meter.release(asked)
            return
        if seen is not None:
            shared = self._attached_to is not None or self._call.endpoint == "live"
            seen = replace(seen, deduplicate=shared)
        authorization = asked or leave(self._meter, self._call)
        for bill in seen.shared if seen is not None else ():
            self._write(Settling(self._meter, authorization, Outcome(status=status, observation=bill, last=False)))
        self._write(Settling(self._meter, authorization, Outcome(status=status, observation=seen)))


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
        dialect = binding.sdk.dialect()
        assert dialect.socket_events is not None  # noqa: S101 - it has connections
        talk = Conversation(
            meter,
            dialect,
            dialect.socket_events,
            call,
            waits=not hasattr(kind, "__aenter__"),
            attached_to=_attached_to(resource, kwargs),
        )
        manager._tokenmeter_connecting = _Connecting(client, binding, talk)  # noqa: SLF001
        manager.__class__ = _watched_manager(kind)
    except Exception as error:  # noqa: BLE001 - the connection is made, unobserved
        meter.fault("watch a socket", error)
    return manager


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
        self._queued.append(_as_json(event))

    @contextmanager
    def made(self) -> Generator[Conversation]:
        """Around the making of it: leave is asked for what waits before anything is sent."""
        talk, queued = self._talk, self._queued
        try:
            while queued:
                talk.asks(queued.pop(0))
            yield talk
        except BaseException:
            talk.take_back()
            raise

    def learn_key(self) -> None:
        """Take the key that was handed out for the connection."""
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
    waits = not inspect.iscoroutinefunction(kind.recv)
    hooks: dict[str, Send] = {"parse_event": _parse_event, "send": _send, "close": _close if waits else _close_async}
    if hasattr(kind, "send_raw"):  # a newer SDK's
        hooks["send_raw"] = _send_raw
    for name, hook in hooks.items():
        plain = getattr(connection, name)
        setattr(connection, name, functools.update_wrapper(functools.partial(hook, kind, connection, talk), plain))


def _parse_event(kind: Any, connection: Any, talk: Conversation, data: str | bytes) -> Any:
    talk.hears(data)
    return kind.parse_event(connection, data)


def _send(kind: Any, connection: Any, talk: Conversation, event: Any) -> Any:
    talk.asks(_as_json(event))
    return kind.send(connection, event)


def _send_raw(kind: Any, connection: Any, talk: Conversation, data: str | bytes) -> Any:
    talk.asks(_as_json(data))
    return kind.send_raw(connection, data)


def _as_json(event: Any) -> Any:
    """An event as a JSON object; None for what is none, an `UnreadBody` for what is nested too deep to be read."""
    if isinstance(event, str | bytes):
        try:
            return json.loads(event)
        except ValueError:
            return None
        except RecursionError:
            return UnreadBody()
    return event.to_dict() if hasattr(event, "to_dict") else event


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
        with connecting.made() as talk:
            connection = kind.__enter__(self)
        connecting.learn_key()
        _observe(connection, talk)
        return connection

    return {"__enter__": __enter__, "enter": __enter__}


def _async_entry(kind: type[Any]) -> dict[str, Any]:
    async def __aenter__(self: Any) -> Any:  # noqa: N807 - it becomes that method
        connecting = self._tokenmeter_connecting
        with connecting.made() as talk:
            connection = await kind.__aenter__(self)
        connecting.learn_key()
        _observe(connection, talk)
        return connection

    return {"__aenter__": __aenter__, "enter": __aenter__}
