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
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from tokenmeter import processes
from tokenmeter.call import Call, Outcome
from tokenmeter.capture.calls import REFUSALS
from tokenmeter.capture.description import describe, give_leave, identify
from tokenmeter.capture.readings import GrowingBill, opened
from tokenmeter.capture.recent import with_sizes
from tokenmeter.capture.sdk import Binding, UnreadBody, binding_of, bound_to, twice
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


#: Something that was asked for: the event's id, and leave for it.
Asked: TypeAlias = "tuple[str | None, Authorization]"


class _Message:
    """What is to be written down of one message, however often that is begun.

    Attributes:
        bills: What it says was used; None until that is known.
        answers: What it answers, if anything was asked.
    """

    __slots__ = ("answers", "bills")

    def __init__(self) -> None:
        self.bills: list[Settling] | None = None
        self.answers: Asked | None = None


class Conversation:
    """What goes on over one connection.

    Args:
        meter: Where to record.
        dialect: Reads the events.
        events: Which of them matter.
        call: The connection, as a call: on whose account all of its answers go.
        attached_to: The session that the connection looks in on, which others may look in on as well.
        waits: Whether settling may wait for the store (not in an event loop).

    Attributes:
        meter: As given.
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
        "_session",
        "_sound",
        "_total",
        "_write",
        "meter",
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
        if not processes.KNOWN[0]:
            processes.notice_fork()
        self._made_in = processes.this_process
        self.meter = meter
        self._dialect = dialect
        self._events = events
        self._call = call
        self._session: dict[str, Any] = {"model": call.facts.model}
        self._asked: deque[Asked] = deque()
        self._attached_to = attached_to
        self._sound = 0  # bytes that were sent to a session that does not count them
        self._total: Observation | None = None
        self._due = time.monotonic() + _EVERY
        self._write = settle if waits else settle_from_anywhere
        watch(self)

    def asks(self, event: Any) -> None:
        """An event is about to be sent, as the SDK takes it: one that is no JSON object asks for nothing.

        Raises:
            BudgetExceededError: it asks for an answer that a hard cap does not allow.
        """
        event = self.read(event)
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
            sound = self._sound
            twice(self.meter, lambda: self._count_sound(given, sound))
            return
        self._ask(given.get("event_id"), call)

    def _count_sound(self, event: Mapping[str, Any], before: int) -> None:
        """Have what is sent to a session that does not say what it uses counted. May be begun anew."""
        size = self._events.sound_sent(event)
        if size:
            self._sound = before + size
            seen = self._usage_in(self._events.sound_used(self._session, self._sound))
            self._take_total(_Message(), replace(seen, flags=seen.flags | {"estimated"}), ended=False)

    def read(self, event: Any) -> Any:
        """An event as a JSON object, or something else that asks for nothing. Never raises."""
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                return _as_json(event)
            except Exception as error:  # noqa: BLE001 - the caller's event leaves
                self.meter.fault("read what a socket is asked", error)
        return UnreadBody()

    def _ask(self, event_id: str | None, call: Call) -> None:
        for _ in range(2):  # what fails once may pass, as want of memory does
            hold_id = new_id()
            try:
                self._asked.append((event_id, self.meter.authorize(call, hold_id=hold_id)))
            except REFUSALS:
                raise
            except BaseException as error:  # only a budget stops a call
                self.meter.free(hold_id)  # it may have come just after it was made
                if not isinstance(error, Exception):
                    raise
                self.meter.fault("authorize", error)
            else:
                return

    def goes_by(self, key: str | None) -> None:
        """The connection was made with `key`."""
        self._call = replace(self._call, api_key=self.meter.identify(key))

    def take_back(self) -> None:
        """What was asked for did not leave."""
        while self._asked:
            self.meter.release(self._asked.popleft()[1])

    def hears(self, data: str | bytes) -> None:
        """A message was received. Never raises."""
        message = _Message()
        twice(self.meter, lambda: self._take(message, data))

    def _take(self, message: _Message, data: str | bytes) -> None:
        if message.bills is None:
            event = json.loads(data)
            kind, names = event.get("type"), self._events
            if kind in names.answers or kind in names.asides:
                answers = kind in names.answers
                self._understand(message, self._usage_in(event, answers=answers), "ok", answers=answers)
            elif kind in names.totals:
                self._take_total(message, self._usage_in(event), ended=kind in names.last_totals)
            elif kind in names.beginnings or kind in names.settings:
                self._configure(event.get("session", {}), begins=kind in names.beginnings)
            elif kind in names.errors:
                self._refuse(message, event.get("error") or {})
        self._write_down(message)

    def _write_down(self, message: _Message) -> None:
        """Write what a message said; what was asked is answered then."""
        for bill in message.bills or ():
            if not bill.done:
                self._write(bill)
        if message.answers is not None and message.answers in self._asked:
            self._asked.remove(message.answers)

    def abandon(self) -> None:
        """The connection is over: what was asked for and not answered may be billed all the same. Never raises."""
        if processes.is_parents(self._made_in):
            return
        twice(self.meter, self._end)

    def _end(self) -> None:
        if self._total is not None:
            self._write_total("aborted")
        while self._asked:
            message = _Message()
            self._understand(message, None, "aborted")
            self._write_down(message)

    def __del__(self) -> None:
        if hasattr(self, "_due"):  # else it was never made
            self._write = settle_from_anywhere
            self.abandon()

    def _call_for(self, body: Mapping[str, Any]) -> Call:
        known = self._call.facts
        facts = replace(known, unbounded=UNREADABLE)  # what cannot be read has no bound: a hard cap decides
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                facts = self._dialect.request_facts(self._dialect.endpoint("GET", f"/{self._call.endpoint}"), body)
                break
            except Exception as error:  # noqa: BLE001 - see above
                self.meter.fault("read what a socket is asked", error)
        facts = replace(facts, streamed=True, region=known.region, cost_unit=known.cost_unit)
        return with_sizes(self.meter, replace(self._call, facts=facts))

    def _usage_in(self, event: Mapping[str, Any], *, answers: bool = False) -> Observation:
        """What an event says was used; by what was asked, if it answers that."""
        call = self._asked[0][1].call if self._asked and answers else self._call
        return self._dialect.read(event, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def _configure(self, settings: Mapping[str, Any], *, begins: bool) -> None:
        self._session.update(settings)
        self._call = self._call_for({"session": self._session, **self._session})
        if begins and self._attached_to is None:
            opened(self.meter, self._session.get("id"), self._call.facts.model)

    def _take_total(self, message: _Message, seen: Observation, *, ended: bool) -> None:
        if seen.reading == "total":
            self._total = seen
        elif not self._sound:  # a session that ends without saying what it used
            self._understand(message, seen, "ok", answers=False)
            return
        if ended or time.monotonic() >= self._due:
            self._write_total("ok")

    def _write_total(self, status: Status) -> None:
        total = self._total
        if total is None:
            return
        identity = self._attached_to or self._session.setdefault("id", new_id())
        flags = total.flags | {"estimated"} if status == "aborted" else total.flags
        outcome = Outcome(status=status, observation=replace(total, response_id=identity, flags=flags))
        self._write(GrowingBill(self.meter, give_leave(self.meter, self._call), outcome, identity))
        self._due, self._total = time.monotonic() + _EVERY, None

    def _refuse(self, message: _Message, error: Mapping[str, Any]) -> None:
        """An answer that was asked for will not come. Which one, a realtime session says by its event's id."""
        named, only_answers = error.get("event_id"), self._call.endpoint == "responses.connect"
        for asked in self._asked:
            if only_answers or (named is not None and asked[0] == named):
                outcome = Outcome(status="error", error_type=error.get("code") or error.get("type"))
                message.answers, message.bills = asked, [Settling(self.meter, asked[1], outcome)]
                return

    def _understand(self, message: _Message, seen: Observation | None, status: Status, *, answers: bool = True) -> None:
        """Work out what is to be written of an answer; None for one that did not come."""
        asked = self._asked[0] if self._asked and answers else None
        bills: list[Settling] = []
        if seen is None or seen.billable:
            account = give_leave(self.meter, self._call) if asked is None else asked[1]
            if seen is not None:
                bills += (
                    Settling(self.meter, account, Outcome(status=status, observation=bill, last=False))
                    for bill in seen.shared
                )
                shared = self._attached_to is not None or self._call.endpoint == "live"
                seen = replace(seen, deduplicate=shared)
            bills.append(Settling(self.meter, account, Outcome(status=status, observation=seen)))
        elif asked is not None:
            self.meter.release(asked[1])
        message.answers, message.bills = asked, bills


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
                talk.asks(queued.pop(0))
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
        talk.asks(next(iter((*args, *kwargs.values())), None))
        return plain(self, *args, **kwargs)

    async def send_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await send(self, *args, **kwargs)

    return send_async if inspect.iscoroutinefunction(plain) else send


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
