"""Google's interactions over a socket, metered: who connects to one reads what may be read elsewhere.

An interaction is billed when it has ended, once, whoever else reads it. What fails of ours once is begun once more.
"""
# ruff: noqa: D102 - what stands before the SDK's methods

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.capture.genai_requests import open_request_async
from tokenmeter.capture.genai_sockets import ask, authorize, begin_again, decoded, listen, try_twice
from tokenmeter.capture.sdk import BINDING

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange

    class _InteractionsResource:
        def connect(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    _InteractionsResource = object


class MeteredConnections(_InteractionsResource):
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
        from tokenmeter.capture.readings import waiting  # noqa: PLC0415 - a client may be made and never used

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
