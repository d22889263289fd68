"""Google's sockets, metered: a turn of a Live session is a call, and so is what one session of music plays.

An interaction over a socket is billed when it has ended, once, whoever else reads it.
"""
# ruff: noqa: D102 - what stands before the SDK's methods

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.genai_requests import open_request_async, put_before
from tokenmeter.capture.sdk import BINDING

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange

    class _LiveResource:
        _api_client: Any

        def connect(self, *, model: str, config: Any = None, **rest: Any) -> Any: ...

    class _LiveSession:
        async def send(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_client_content(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_realtime_input(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_tool_response(self, *args: Any, **kwargs: Any) -> Any: ...
        async def _receive(self) -> Any: ...

    class _MusicResource:
        _api_client: Any

        def connect(self, *, model: str) -> Any: ...

    class _MusicSession:
        async def play(self) -> None: ...
        async def _receive(self) -> Any: ...

    class _InteractionsResource:
        def connect(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    _LiveResource = _LiveSession = _MusicResource = _MusicSession = _InteractionsResource = object


# -- Live sessions: each turn is a call


class MeteredLive(_LiveResource):
    """Before the class of the resource that opens them."""

    @contextlib.asynccontextmanager
    async def connect(self, *, model: str, config: Any = None, **rest: Any) -> AsyncGenerator[Any]:
        turns = _Turns(self._api_client, model)
        await turns.ask()
        try:
            async with super().connect(model=model, config=config, **rest) as session:
                session.__dict__[BINDING] = turns
                put_before(session, _MeteredSession)
                yield session
        finally:
            await turns.end()


class _MeteredSession(_LiveSession):
    """Before the class of a session."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        await self.__dict__[BINDING].ask()
        return await super().send(*args, **kwargs)

    async def send_client_content(self, *args: Any, **kwargs: Any) -> Any:
        await self.__dict__[BINDING].ask()
        return await super().send_client_content(*args, **kwargs)

    async def send_realtime_input(self, *args: Any, **kwargs: Any) -> Any:
        await self.__dict__[BINDING].ask()
        return await super().send_realtime_input(*args, **kwargs)

    async def send_tool_response(self, *args: Any, **kwargs: Any) -> Any:
        await self.__dict__[BINDING].ask()
        return await super().send_tool_response(*args, **kwargs)

    async def _receive(self) -> Any:
        message = await super()._receive()
        await self.__dict__[BINDING].heard(message)
        return message


class _Turns:
    """The turns of one session. Usage is told once a turn, and the prompt of each is the whole session so far.

    Args:
        api: The client's API client.
        model: The session's model.
    """

    def __init__(self, api: Any, model: str) -> None:
        self._api = api
        self._path = f"live/{model.rpartition('/')[2]}:bidiGenerateContent"
        self._call: InFlight | None = None
        self._asked = False
        self._heard = False
        self._ended = False
        self._said: dict[str, Any] = {}
        self._grounding: dict[str, Any] = {}

    async def ask(self) -> None:
        """Something is about to be sent: the turn it may begin needs leave.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        if self._asked:
            return
        self._asked = True
        try:
            await self._begin()
            if self._call is not None:
                await self._call.authorize_async()
                self._call.attempts = 1
        except BaseException:
            self._asked, self._call = False, None
            raise

    async def _begin(self) -> None:
        if self._call is None:
            body = {"previous_interaction_id": True}  # the session so far, which no message repeats
            self._call = await open_request_async(self._api, "POST", self._path, body, None, streamed=True)

    async def heard(self, message: Any) -> None:
        """A message was received. Never raises."""
        try:
            await self._take(message)
        except Exception as error:  # noqa: BLE001 - the caller gets his message
            if self._call is not None:
                self._call.meter.fault("read a socket", error)

    async def _take(self, message: Any) -> None:
        said, content = getattr(message, "usage_metadata", None), getattr(message, "server_content", None)
        if said is None and content is None:
            return
        self._heard = True
        if said is not None:
            told = said.model_dump(mode="json", by_alias=True, exclude_none=True)
            self._said.update(told)
        if content is not None:
            if found := getattr(content, "grounding_metadata", None):
                self._grounding.update(found.model_dump(mode="json", by_alias=True, exclude_none=True))
            if getattr(content, "turn_complete", None):
                self._ended = True
        if self._ended and self._said:
            await self._settle()

    async def _settle(self) -> None:
        await self._begin()  # the provider may speak unasked
        call, self._call = self._call, None
        body = {"usageMetadata": self._said, "serverContent": {"groundingMetadata": self._grounding}}
        self._asked = self._heard = self._ended = False
        self._said, self._grounding = {}, {}
        if call is None:
            return
        exchange = call.respond({}, streamed=False)
        exchange.streamed = True
        exchange.ended = True
        exchange.saw(body)
        await exchange.finish_async()
        await call.returned_async()

    async def end(self) -> None:
        """The session is over. A turn that was under way is billed by what was told of it."""
        if self._said or self._heard:
            await self._settle()
        elif self._call is not None:
            call, self._call = self._call, None
            await call.returned_async()


# -- music: what is played in one session is a call


class MeteredMusic(_MusicResource):
    """Before the class of the resource that opens sessions of music."""

    @contextlib.asynccontextmanager
    async def connect(self, *, model: str) -> AsyncGenerator[Any]:
        music = _Music(self._api_client, model)
        await music.ask()
        try:
            async with super().connect(model=model) as session:
                session.__dict__[BINDING] = music
                put_before(session, _MeteredMusicSession)
                yield session
        finally:
            await music.end()


class _MeteredMusicSession(_MusicSession):
    """Before the class of such a session."""

    async def play(self) -> None:
        await self.__dict__[BINDING].ask()
        return await super().play()

    async def _receive(self) -> Any:
        message = await super()._receive()
        self.__dict__[BINDING].heard(message)
        return message


class _Music:
    """What one session plays. Nobody says what it used: its length is that of the sound that came.

    Args:
        api: The client's API client.
        model: The session's model.
    """

    def __init__(self, api: Any, model: str) -> None:
        self._api = api
        self._path = f"live/{model.rpartition('/')[2]}:bidiGenerateMusic"
        self._call: InFlight | None = None
        self._sound: dict[str, int] = {}

    async def ask(self) -> None:
        """Music is about to be asked for: it needs leave, once a session.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        if self._call is not None:
            return
        call = await open_request_async(self._api, "POST", self._path, {}, None, streamed=True)
        if call is not None:
            await call.authorize_async()
            call.attempts = 1
            self._call = call

    def heard(self, message: Any) -> None:
        """A message was received. Never raises."""
        try:
            for chunk in getattr(getattr(message, "server_content", None), "audio_chunks", None) or ():
                kind = chunk.mime_type or ""
                self._sound[kind] = self._sound.get(kind, 0) + len(chunk.data or b"")
        except Exception as error:  # noqa: BLE001 - the caller gets his message
            if self._call is not None:
                self._call.meter.fault("read a socket", error)

    async def end(self) -> None:
        """The session is over. One that played nothing is free."""
        call, self._call = self._call, None
        if call is None:
            return
        if self._sound:
            exchange = call.respond({}, streamed=False)
            exchange.streamed = True
            exchange.ended = True
            exchange.saw({"sound": [{"mimeType": kind, "bytes": size} for kind, size in self._sound.items()]})
            await exchange.finish_async()
        await call.returned_async()


# -- interactions: who connects to one reads what may be read elsewhere


class MeteredConnections(_InteractionsResource):
    """Before the class of the resource that connects to interactions, where the SDK has it."""

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        context = super().connect(*args, **kwargs)
        name = kwargs["id"] if "id" in kwargs else args[0]
        context.__dict__[BINDING] = _Interaction(self.__dict__[BINDING], name)
        context.__class__ = _metered_context(context.__class__)
        return context


@functools.cache
def _metered_context(kind: type[Any]) -> type[Any]:
    """What opens a connection, with `async with` or `await`: a subclass, as classes of generics take no hooks."""

    async def open_(self: Any) -> Any:
        interaction = self.__dict__[BINDING]
        await interaction.ask()
        try:
            session = await kind._open(self)  # noqa: SLF001 - an SDK's own
        except BaseException:
            await interaction.end()
            raise
        if BINDING not in session.__dict__:  # it may be opened twice
            session.__dict__[BINDING] = interaction
            session.__class__ = _metered_connection(session.__class__)
        return session

    return _subclass(kind, _open=open_)


@functools.cache
def _metered_connection(kind: type[Any]) -> type[Any]:
    async def receive(self: Any) -> AsyncGenerator[Any]:
        interaction = self.__dict__[BINDING]
        async with contextlib.aclosing(kind.receive(self)) as events:
            async for event in events:
                await interaction.heard(event)
                yield event

    async def cancel(self: Any) -> None:
        try:
            await kind.cancel(self)
        finally:
            await self.__dict__[BINDING].end()

    async def detach(self: Any) -> None:
        try:
            await kind.detach(self)
        finally:
            await self.__dict__[BINDING].end()

    return _subclass(kind, receive=receive, cancel=cancel, detach=detach)


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
        if reading is not None and waiting(reading.meter, self._name) is None:
            body = {"previous_interaction_id": self._name}
            leave = await open_request_async(self._api, "POST", f"{path}:connect", body, None, streamed=True)
            if leave is not None:
                await leave.authorize_async()
                self._leave = leave
        self._reading = reading

    async def heard(self, event: Any) -> None:
        """An event was received. Never raises."""
        reading = self._reading
        if reading is None:
            return
        from tokenmeter.providers.google.streams import ENDS  # noqa: PLC0415 - as above

        try:
            if self._exchange is None:
                self._exchange = reading.respond({}, streamed=True)
                self._exchange.saw_event({"interaction": {"id": self._name}})
            kind = str(getattr(event, "event_type", None) or "")
            if kind.startswith("interaction."):
                self._exchange.saw_event(event.model_dump(mode="json", by_alias=True, exclude_none=True))
            elif (words := getattr(getattr(event, "delta", None), "text", None)) is not None:
                self._exchange.saw_event({"delta": {"text": words}})
        except Exception as error:  # noqa: BLE001 - the caller gets his event
            reading.meter.fault("read a socket", error)
            return
        if kind in ENDS:
            self._exchange.ended = True
            await self.end()

    async def end(self) -> None:
        """Nothing more is heard: what has ended is written down, and what was held is free."""
        reading, self._reading = self._reading, None
        exchange, self._exchange = self._exchange, None
        leave, self._leave = self._leave, None
        if exchange is not None and reading is not None:
            await exchange.finish_async()
            await reading.returned_async()
        if leave is not None:
            await leave.returned_async()
