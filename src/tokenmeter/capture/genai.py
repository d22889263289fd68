"""Google's clients, metered in place: their requests, their sockets, and those of a second library inside the SDK.

Interactions, decisions, voices and triggers are of the latter; it has its own transport.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from inspect import isasyncgen, iscoroutinefunction, isgenerator
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.capture.genai_requests import (
    Requests,
    carry_out,
    carry_out_async,
    is_cached,
    open_request,
    open_request_async,
    put_before,
    put_together,
    with_cap,
)
from tokenmeter.capture.genai_sockets import (
    MeteredLive,
    MeteredMusic,
    ask,
    authorize,
    begin_again,
    decoded,
    listen,
    try_twice,
)
from tokenmeter.capture.sdk import BINDING, Binding, Sdk, complain, twice
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.running import SCOPES, scopes_set_to

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


# -- streams: the SDK sends nothing before the first piece is asked for, wherever that is done


def watch_streams(*methods: tuple[type[Any], str]) -> None:
    """Have the streams of metered clients belong to who asked for them, and not to who reads them.

    Args:
        *methods: The SDK's classes of models and chats, and the name of the method that gives a stream.
    """
    for kind, name in methods:
        plain = vars(kind).get(name)
        if callable(plain) and not hasattr(plain, BINDING):
            setattr(kind, name, _carrying(plain))


def _carrying(plain: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **asked: Any) -> Any:
        return _carried(self, plain(self, *args, **asked))

    async def coroutine(self: Any, *args: Any, **asked: Any) -> Any:
        return _carried(self, await plain(self, *args, **asked))

    carrying = functools.wraps(plain)(coroutine if iscoroutinefunction(plain) else method)
    carrying.__dict__[BINDING] = plain
    return carrying


def _carried(resource: Any, made: Any) -> Any:
    """The stream that models, or a chat, gave."""
    for _ in range(2):  # what fails once may pass, as want of memory does
        try:
            api = getattr(getattr(resource, "_modules", resource), "_api_client", None)
            if BINDING not in getattr(api, "__dict__", ()):
                return made
            scopes = SCOPES.get()
            for scope in scopes:
                scope.begun = True  # its calls are on their way
            if isgenerator(made):
                return _take_steps(made, scopes)
            return _take_steps_async(made, scopes) if isasyncgen(made) else made
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)
    return made


# Each step in the blocks of who asked. What fails of ours takes no piece away: the step is taken where it is, then.


def _take_steps(made: Any, scopes: tuple[Any, ...]) -> Generator[Any, Any, Any]:
    step, item = made.__next__, _NOTHING
    while True:
        try:
            with scopes_set_to(scopes):
                item = step()
        except StopIteration as end:
            return end.value
        except Exception as error:
            if item is _NOTHING and made.gi_frame is None:
                raise
            complain("see a call", error)
            if item is _NOTHING:
                try:
                    item = step()
                except StopIteration as end:
                    return end.value
        try:
            sent = yield item
        except GeneratorExit:
            with scopes_set_to(scopes):
                made.close()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step, item = functools.partial(made.throw, error), _NOTHING
        else:
            step, item = functools.partial(made.send, sent), _NOTHING


async def _take_steps_async(made: Any, scopes: tuple[Any, ...]) -> AsyncGenerator[Any, Any]:
    step, item = made.__anext__, _NOTHING
    while True:
        try:
            with scopes_set_to(scopes):
                item = await step()
        except StopAsyncIteration:
            return
        except Exception as error:
            if item is _NOTHING and made.ag_frame is None:
                raise
            complain("see a call", error)
            if item is _NOTHING:
                try:
                    item = await step()
                except StopAsyncIteration:
                    return
        try:
            sent = yield item
        except GeneratorExit:
            with scopes_set_to(scopes):
                await made.aclose()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step, item = functools.partial(made.athrow, error), _NOTHING
        else:
            step, item = functools.partial(made.asend, sent), _NOTHING


_NOTHING: Any = object()


# -- interactions and their sisters

if TYPE_CHECKING:

    class _Resource:
        def do_request(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any: ...

    class _AsyncResource:
        async def do_request_async(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any: ...

    class _ConnectingResource:
        def connect(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    _Resource = _AsyncResource = _ConnectingResource = object


class _Interactions(_Resource):
    """Before the class of such a resource."""

    def do_request(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = _open_raw(self, request)
        send = super().do_request
        if call is None:
            return send(hook_ctx, request, *args, **kwargs)
        return carry_out(
            call,
            lambda: send(hook_ctx, _capped_raw(call, request), *args, **kwargs),
            functools.partial(_responded, call),
        )


class _AsyncInteractions(_AsyncResource):
    """As `_Interactions`, async."""

    async def do_request_async(self, hook_ctx: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        call = await _open_raw_async(self, request)
        send = super().do_request_async
        if call is None:
            return await send(hook_ctx, request, *args, **kwargs)
        return await carry_out_async(
            call,
            lambda: send(hook_ctx, _capped_raw(call, request), *args, **kwargs),
            functools.partial(_responded, call),
        )


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
            twice(None, functools.partial(meter, self._api_client, found), "see a call")
        return found

    setattr(owner, name, property(resource, doc=plain.__doc__))


def _meter_resource(api: Any, resource: Any) -> None:
    """May be begun anew."""
    if BINDING in resource.__dict__:
        return
    kind: type[Any] = resource.__class__
    if hasattr(kind, "do_request_async"):
        put_before(resource, _AsyncInteractions)
        if hasattr(kind, "connect"):
            put_before(resource, _Connections)
    elif hasattr(kind, "do_request"):
        put_before(resource, _Interactions)
    resource.__dict__[BINDING] = api  # last: it says that all is done


def _meter_generated(sdk: Sdk, api: Any, client: Any) -> None:
    """Meter a client that Stainless generated, as OpenAI's and Anthropic's are.

    By its class, since the SDK closes its connections when nobody holds them: no method of ours may hold it. May be
    begun anew.
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
    asked = _read_raw(resource, request)
    return None if asked is None else open_request(**asked)


async def _open_raw_async(resource: Any, request: Any) -> InFlight | None:
    asked = _read_raw(resource, request)
    return None if asked is None else await open_request_async(**asked)


def _read_raw(resource: Any, request: Any) -> dict[str, Any] | None:
    """A request as `open_request` takes it; None for one at which something of ours failed twice."""
    for _ in range(2):  # what fails once may pass, as want of memory does
        try:
            body = _raw_body(request)
            return {
                "api": resource.__dict__[BINDING],
                "method": request.method,
                "path": request.url.path,
                "body": body,
                "http_options": {"headers": dict(request.headers)},
                "streamed": bool(body and body.get("stream")),
            }
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("see a call", error)
    return None


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

    if not response.is_success or is_cached(call, response):
        return None
    streamed = "event-stream" in response.headers.get("content-type", "")
    exchange = call.respond(response.headers, streamed=streamed)
    if is_read(response):
        exchange.read_content(response.content, response.headers)
    else:
        exchange.read_bytes_aside(response.headers)
        watch_body(response, exchange)
    return exchange


# -- interactions over a socket: one is billed when it has ended, once, whoever else reads it. What fails of ours once
# is begun once more.


class _Connections(_ConnectingResource):
    """Before the class of the resource that connects to interactions, where the SDK has it."""

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        context = super().connect(*args, **kwargs)
        try_twice(None, functools.partial(self._watch, context, *args, **kwargs))
        return context

    def _watch(self, context: Any, id: str, **_rest: Any) -> None:  # noqa: A002 - the SDK's name for it
        """Have what is connected to metered. May be begun anew."""
        if BINDING not in context.__dict__:
            kind = _metered_context(context.__class__)
            context.__dict__[BINDING], context.__class__ = _Interaction(self.__dict__[BINDING], id), kind


@functools.cache
def _metered_context(kind: type[Any]) -> type[Any]:
    """What opens a connection, with `async with` or `await`: a subclass, as classes of generics take no hooks."""

    async def open_(self: Any) -> Any:
        interaction = self.__dict__[BINDING]
        try:
            await ask(interaction.ask)
            session = await kind._open(self)  # noqa: SLF001 - an SDK's own
            try_twice(None, functools.partial(_watch_session, session, interaction))
            return session  # noqa: TRY300 - here, so that what fails at this very line holds nothing
        except BaseException:
            try:
                await interaction.end()
            except Exception as error:  # noqa: BLE001 - the caller gets the SDK's error
                await begin_again(error, interaction.end)
            raise

    return _subclass(kind, _open=open_)


def _watch_session(session: Any, interaction: _Interaction) -> None:
    """Have `interaction` told of what comes over a connection, which may be opened twice. May be begun anew."""
    if BINDING not in session.__dict__:
        kind = _metered_connection(session.__class__)
        listen(session._websocket, interaction.heard)  # noqa: SLF001 - an SDK's own
        session.__dict__[BINDING], session.__class__ = interaction, kind


@functools.cache
def _metered_connection(kind: type[Any]) -> type[Any]:
    def ending(plain: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def end(self: Any) -> None:
            try:
                await plain(self)
            finally:
                try:
                    await self.__dict__[BINDING].end()
                except Exception as error:  # noqa: BLE001 - it has ended
                    await begin_again(error, self.__dict__[BINDING].end)

        return end

    return _subclass(kind, cancel=ending(kind.cancel), detach=ending(kind.detach))


def _subclass(kind: type[Any], **methods: Any) -> type[Any]:
    """A subclass under the same name, its methods documented as those they stand for."""
    named = {name: functools.wraps(getattr(kind, name))(method) for name, method in methods.items()}
    told = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**told, **named})


class _Interaction:
    """One interaction, heard over a socket. It tells its usage when it has ended: until then there is no bill.

    Args:
        api: The client's API client.
        name: The interaction's id.
    """

    def __init__(self, api: Any, name: str) -> None:
        self._api = api
        self._name = name
        self._leave: InFlight | None = None
        self._reading: InFlight | None = None
        self._exchange: Exchange | None = None

    async def ask(self) -> None:
        """The connection is about to be made: what is sent over it needs leave, unless this process began it with one.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        if self._reading is not None:
            return
        from tokenmeter.capture.recent import waiting  # noqa: PLC0415 - a client may be made and never used

        path = f"interactions/{self._name}"
        reading = await open_request_async(self._api, "GET", path, None, None, streamed=True)
        if self._leave is None and reading is not None and waiting(reading.meter, self._name) is None:
            body = {"previous_interaction_id": self._name}
            leave = await open_request_async(self._api, "POST", f"{path}:connect", body, None, streamed=True)
            if leave is not None:
                try:
                    self._leave = leave
                    await authorize(leave)
                except BaseException:
                    self._leave = None
                    raise
        self._reading = reading

    async def heard(self, message: Any) -> None:
        """A message was received, with one event in it or several. May be begun anew with it."""
        body = decoded(message)
        events = cast("list[Any] | None", body.get("events"))
        for event in events if isinstance(events, list) else [body]:
            reading = self._reading
            if reading is None:
                return
            try_twice(reading, functools.partial(self._take, reading, event))
            if self._exchange is not None and self._exchange.ended:
                await self.end()

    def _take(self, reading: InFlight, event: Any) -> None:
        """What an event says; may be begun anew."""
        from tokenmeter.providers.google.streams import ENDS  # noqa: PLC0415 - as above

        if self._exchange is None:
            exchange = reading.answers[0] if reading.answers else reading.respond({}, streamed=True)
            exchange.saw_event({"interaction": {"id": self._name}})
            self._exchange = exchange
        self._exchange.saw_event(event)
        if isinstance(event, dict) and cast("dict[str, Any]", event).get("event_type") in ENDS:
            self._exchange.ended = True

    async def end(self) -> None:
        """Nothing more is heard: what has ended is written down, and what was held is free. May be begun anew."""
        exchange, reading, leave = self._exchange, self._reading, self._leave
        if exchange is not None and reading is not None:
            await exchange.finish_async()
            await reading.returned_async()
        if leave is not None:
            await leave.returned_async()
        self._exchange = self._reading = self._leave = None
