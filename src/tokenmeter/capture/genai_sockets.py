"""Google's sockets, metered: a turn of a Live session is a call, and so is what one session of music plays.

An interaction over a socket is billed when it has ended, once, whoever else reads it.
"""
# ruff: noqa: D102 - what stands before the SDK's methods

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.genai_requests import open_request_async, put_before
from tokenmeter.capture.sdk import BINDING, complain

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


class _Turn:
    """What is known of a turn: its call, whether leave was asked and anything heard, and what was told of it."""

    __slots__ = ("asked", "call", "ended", "grounding", "heard", "said")

    def __init__(self) -> None:
        self.call: InFlight | None = None
        self.asked = False
        self.heard = False
        self.ended = False
        self.said: dict[str, Any] = {}
        self.grounding: dict[str, Any] = {}


class _Turns:
    """The turns of one session. Usage is told once a turn, and the prompt of each is the whole session so far.

    Args:
        api: The client's API client.
        model: The session's model.
    """

    def __init__(self, api: Any, model: str) -> None:
        self._api = api
        self._path = f"live/{model.rpartition('/')[2]}:bidiGenerateContent"
        self._turn = _Turn()

    async def ask(self) -> None:
        """Something is about to be sent: the turn it may begin needs leave.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        turn = self._turn
        if turn.asked:
            return
        turn.asked = True
        try:
            await self._begin(turn)
            if turn.call is not None:
                await _authorize(turn.call)
        except BaseException:
            self._turn = _Turn()
            raise

    async def _begin(self, turn: _Turn) -> None:
        if turn.call is None:
            body = {"previous_interaction_id": True}  # the session so far, which no message repeats
            turn.call = await open_request_async(self._api, "POST", self._path, body, None, streamed=True)

    async def heard(self, message: Any) -> None:
        """A message was received. Never raises."""
        turn = self._turn
        _try_twice(turn.call, lambda: _take(turn, message))
        if turn.ended and turn.said:
            await self._settle(turn)

    async def _settle(self, turn: _Turn) -> None:
        """Bill the turn, and let the next begin. Never raises."""
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                await self._begin(turn)  # the provider may speak unasked
                body = {"usageMetadata": turn.said, "serverContent": {"groundingMetadata": turn.grounding}}
                await _write_down(turn.call, body)
                self._turn = _Turn()
            except Exception as error:  # noqa: BLE001 - the caller gets his message
                _note(turn.call, error)
            else:
                return

    async def end(self) -> None:
        """The session is over. A turn that was under way is billed by what was told of it."""
        turn = self._turn
        if turn.said or turn.heard:
            await self._settle(turn)
        elif turn.call is not None:
            self._turn = _Turn()
            await turn.call.returned_async()


def _take(turn: _Turn, message: Any) -> None:
    """What a message says of a turn; may be begun anew."""
    said, content = getattr(message, "usage_metadata", None), getattr(message, "server_content", None)
    if said is None and content is None:
        return
    turn.heard = True
    if said is not None:
        turn.said.update(said.model_dump(mode="json", by_alias=True, exclude_none=True))
    if content is not None:
        if found := getattr(content, "grounding_metadata", None):
            turn.grounding.update(found.model_dump(mode="json", by_alias=True, exclude_none=True))
        if getattr(content, "turn_complete", None):
            turn.ended = True


# -- what turns and music have in common


async def _authorize(call: InFlight) -> None:
    """Ask for leave; whatever comes amid it, nothing stays held for a call that is not made.

    Raises:
        BudgetExceededError: a hard cap does not allow it.
    """
    try:
        await call.authorize_async()
        call.attempts = 1
    except BaseException as error:
        await call.raised_async(error)
        raise


async def _write_down(call: InFlight | None, body: dict[str, Any]) -> None:
    """Bill what was heard. May be begun anew, however far it got: an answer that is there is not read again."""
    if call is None:
        return
    if not call.answers:
        call.watch_answer(functools.partial(_read, call, body), streamed=True)
    for exchange in call.answers:
        await exchange.finish_async()
    await call.returned_async()


def _read(call: InFlight, body: dict[str, Any]) -> Exchange:
    exchange = call.respond({}, streamed=False)
    exchange.streamed = True
    exchange.ended = True
    exchange.saw(body)
    return exchange


def _try_twice(call: InFlight | None, act: Callable[[], object]) -> None:
    """Run `act`, and once more when something of ours fails amid it: that may pass. Never raises."""
    for _ in range(2):
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the caller gets his message
            _note(call, error)
        else:
            return


def _note(call: InFlight | None, error: Exception) -> None:
    if call is None:
        complain("read a socket", error)
    else:
        call.meter.fault("read a socket", error)


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
            await _authorize(call)
            self._call = call

    def heard(self, message: Any) -> None:
        """A message was received. Never raises."""
        _try_twice(self._call, lambda: self._add(message))

    def _add(self, message: Any) -> None:
        sound = dict(self._sound)  # put in its place as a whole: what fails midway counts nothing twice
        for chunk in getattr(getattr(message, "server_content", None), "audio_chunks", None) or ():
            kind = chunk.mime_type or ""
            sound[kind] = sound.get(kind, 0) + len(chunk.data or b"")
        self._sound = sound

    async def end(self) -> None:
        """The session is over. One that played nothing is free. Never raises."""
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                call, sound = self._call, self._sound
                body = {"sound": [{"mimeType": kind, "bytes": size} for kind, size in sound.items()]}
                if sound:
                    await _write_down(call, body)
                elif call is not None:
                    await call.returned_async()
                self._call = None
            except Exception as error:  # noqa: BLE001 - the session has ended
                _note(self._call, error)
            else:
                return


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
                await _authorize(leave)
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
