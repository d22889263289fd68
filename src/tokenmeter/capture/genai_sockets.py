"""Google's sessions over sockets, metered: a turn of a Live session is a call, and so is what one of music plays.

What fails of ours once, at whichever line, is begun once more: the bill is recorded once, and no hold stays.
"""
# ruff: noqa: D102 - what stands before the SDK's methods

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.capture.genai_requests import open_request_async, put_before
from tokenmeter.capture.sdk import BINDING, complain, twice
from tokenmeter.errors import TokenmeterError

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange
    from tokenmeter.providers.google.streams import LiveTurn

    class _LiveResource:
        _api_client: Any

        def connect(self, *, model: str, config: Any = None, **rest: Any) -> Any: ...

    class _LiveSession:
        async def send(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_client_content(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_realtime_input(self, *args: Any, **kwargs: Any) -> Any: ...
        async def send_tool_response(self, *args: Any, **kwargs: Any) -> Any: ...

    class _MusicResource:
        _api_client: Any

        def connect(self, *, model: str) -> Any: ...

    class _MusicSession:
        async def play(self) -> None: ...

else:
    _LiveResource = _LiveSession = _MusicResource = _MusicSession = object


# -- Live sessions: each turn is a call


class MeteredLive(_LiveResource):
    """Before the class of the resource that opens them."""

    def connect(self, *, model: str, config: Any = None, **rest: Any) -> Any:
        opening = super().connect(model=model, config=config, **rest)
        return _opened(opening, _MeteredSession, _Turns, self._api_client, model)


class _MeteredSession(_LiveSession):
    """Before the class of a session."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        await ask(self.__dict__[BINDING].ask)
        return await super().send(*args, **kwargs)

    async def send_client_content(self, *args: Any, **kwargs: Any) -> Any:
        await ask(self.__dict__[BINDING].ask)
        return await super().send_client_content(*args, **kwargs)

    async def send_realtime_input(self, *args: Any, **kwargs: Any) -> Any:
        await ask(self.__dict__[BINDING].ask)
        return await super().send_realtime_input(*args, **kwargs)

    async def send_tool_response(self, *args: Any, **kwargs: Any) -> Any:
        await ask(self.__dict__[BINDING].ask)
        return await super().send_tool_response(*args, **kwargs)


class _Turn:
    """What is known of a turn: its call, whether leave was asked for it, and what its messages say."""

    __slots__ = ("asked", "call", "said")

    def __init__(self) -> None:
        self.call: InFlight | None = None
        self.asked = False
        self.said: LiveTurn | None = None


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
        self._billed: Any = None  # the message with which a turn ended: it says nothing of the next

    async def ask(self) -> None:
        """Something is about to be sent: the turn it may begin needs leave.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        turn = self._turn
        if turn.asked:
            return
        try:
            turn.asked = True
            await self._begin(turn)
            if turn.call is not None:
                await authorize(turn.call)
        except BaseException:
            self._turn = _Turn()
            raise

    async def _begin(self, turn: _Turn) -> None:
        if turn.call is None:
            body = {"previous_interaction_id": True}  # the session so far, which no message repeats
            turn.call = await open_request_async(self._api, "POST", self._path, body, None, streamed=True)

    async def heard(self, message: Any) -> None:
        """A message was received. May be begun anew with it."""
        if message is self._billed:
            return
        self._billed = None
        body = decoded(message)
        if self._turn.said is not None and self._turn.said.is_before(body):
            await self._settle(self._turn)  # nobody told what it used
        turn = self._turn
        try_twice(turn.call, lambda: _take(turn, body))
        if turn.said is not None and turn.said.ended and turn.said.told:
            await self._settle(turn, message)

    async def _settle(self, turn: _Turn, message: Any = None) -> None:
        """Bill the turn, and let the next begin."""
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                await self._begin(turn)  # the provider may speak unasked
                await _write_down(turn.call, {} if turn.said is None else turn.said.body())
                self._turn, self._billed = _Turn(), message
            except Exception as error:  # noqa: BLE001 - the caller gets his message
                note(turn.call, error)
            else:
                return

    async def end(self) -> None:
        """The session is over. A turn that was under way is billed by what was told of it. May be begun anew."""
        turn = self._turn
        if turn.said is not None and turn.said.heard:
            await self._settle(turn)
        elif turn.call is not None:
            await turn.call.returned_async()
            self._turn = _Turn()

    @property
    def over(self) -> bool:
        """Whether no turn is under way."""
        return self._turn.call is None and not (self._turn.said is not None and self._turn.said.heard)


def _take(turn: _Turn, body: dict[str, Any]) -> None:
    """What a message says of a turn; may be begun anew."""
    from tokenmeter.providers.google.streams import LiveTurn  # noqa: PLC0415 - a client may be made and never used

    turn.said = turn.said or LiveTurn()
    turn.said.feed(body)


# -- what turns and music have in common


@contextlib.asynccontextmanager
async def _opened(
    opening: contextlib.AbstractAsyncContextManager[Any],
    hooks: type[Any],
    kind: type[_Turns | _Music],
    api: Any,
    model: str,
) -> AsyncGenerator[Any]:
    """The session that `opening` opens, with `hooks` before its class: a `kind` is told of what goes over it."""
    heard: _Turns | _Music | None = None
    try:
        try:
            for _ in range(2):  # what fails once may pass, as want of memory does
                try:
                    heard = heard or kind(api, model)
                    await heard.ask()
                    break
                except TokenmeterError:
                    raise
                except Exception as error:  # noqa: BLE001 - only a budget stops a session
                    note(None, error)
            async with opening as session:
                if heard is not None:
                    try_twice(None, functools.partial(_watch, session, hooks, heard))
                yield session
        finally:
            await _end(heard)
    finally:  # a fault may come just before the end was begun
        if heard is not None and not heard.over:
            await _end(heard)


def _watch(session: Any, hooks: type[Any], heard: _Turns | _Music) -> None:
    """Have `heard` told of what goes over `session`. May be begun anew."""
    session.__dict__[BINDING] = heard
    put_before(session, hooks)
    listen(session._ws, heard.heard)  # noqa: SLF001 - an SDK's own


async def ask(leave: Callable[[], Awaitable[None]]) -> None:
    """Ask for leave, and once more when something of ours fails amid it: that may pass.

    Raises:
        BudgetExceededError: a hard cap does not allow it.
    """
    for _ in range(2):
        try:
            await leave()
        except TokenmeterError:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops what is sent
            note(None, error)
        else:
            return


def listen(socket: Any, heard: Callable[[Any], Awaitable[None]]) -> None:
    """Have `heard` told of what is received over `socket`, before the SDK makes anything of it; it may be begun anew.

    The SDK's objects are no witness: they drop what they do not know, and turn what is no count into one.
    """
    plain = socket.recv
    if BINDING in socket.__dict__:
        return

    @functools.wraps(plain)
    async def recv(*args: Any, **kwargs: Any) -> Any:
        message: Any = _NONE_YET
        try:
            message = await plain(*args, **kwargs)
            await heard(message)
        except Exception as error:
            if message is _NONE_YET:
                raise
            await begin_again(error, heard, message)
        return message

    socket.__dict__.update({BINDING: heard, plain.__name__: recv})


def decoded(message: Any) -> dict[str, Any]:
    """A message as a JSON object; an empty one for what is none."""
    try:
        body: Any = json.loads(message)
    except (ValueError, TypeError, RecursionError):
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


#: What fails, in words.
_WHAT = "read a socket"
#: Stands for a message that there is not; one may be None.
_NONE_YET = object()


async def authorize(call: InFlight) -> None:
    """Ask for leave; whatever comes amid it, nothing stays held for a call that is not made.

    Raises:
        BudgetExceededError: a hard cap does not allow it.
    """
    try:
        call.stay_as_written()  # a session is set up once, and what is sent in it names no limit
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


def try_twice(call: InFlight | None, act: Callable[[], object]) -> None:
    """See `twice`. Never raises."""
    twice(None if call is None else call.meter, act, _WHAT)


async def begin_again(error: Exception, act: Callable[..., Awaitable[None]], *given: Any) -> None:
    """Have done once more what something of ours failed amid: that may pass. Never raises."""
    note(None, error)
    try:
        await act(*given)
    except Exception as again:  # noqa: BLE001 - the caller goes on
        note(None, again)


async def _end(heard: _Turns | _Music | None) -> None:
    """Whatever became of a session: what was heard of it is billed, and nothing stays held."""
    if heard is None:
        return
    try:
        await heard.end()
    except Exception as error:  # noqa: BLE001 - the session has ended
        await begin_again(error, heard.end)


def note(call: InFlight | None, error: Exception) -> None:
    """Count a fault of ours, and log the first of its kind."""
    (complain if call is None else call.meter.fault)(_WHAT, error)


# -- music: what is played in one session is a call


class MeteredMusic(_MusicResource):
    """Before the class of the resource that opens sessions of music."""

    def connect(self, *, model: str) -> Any:
        return _opened(super().connect(model=model), _MeteredMusicSession, _Music, self._api_client, model)


class _MeteredMusicSession(_MusicSession):
    """Before the class of such a session."""

    async def play(self) -> None:
        await ask(self.__dict__[BINDING].ask)
        return await super().play()


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
        self._added: Any = None  # the message that was added last

    async def ask(self) -> None:
        """Music is about to be asked for: it needs leave, once a session.

        Raises:
            BudgetExceededError: a hard cap does not allow it.
        """
        if self._call is not None:
            return
        call = await open_request_async(self._api, "POST", self._path, {}, None, streamed=True)
        if call is not None:
            try:
                self._call = call
                await authorize(call)
            except BaseException:
                self._call = None
                raise

    async def heard(self, message: Any) -> None:
        """A message was received. May be begun anew with it."""
        try_twice(self._call, lambda: self._add(message))

    def _add(self, message: Any) -> None:
        if message is self._added:
            return
        from tokenmeter.providers.google.streams import sounds_of  # noqa: PLC0415 - as above

        sound = dict(self._sound)  # put in its place as a whole: what fails midway counts nothing twice
        for kind, size in sounds_of(decoded(message)):
            sound[kind] = sound.get(kind, 0) + size
        self._sound, self._added = sound, message

    async def end(self) -> None:
        """The session is over. One that played nothing is free. May be begun anew."""
        call, sound = self._call, self._sound
        if call is None:
            return
        body = {"sound": [{"mimeType": kind, "bytes": size} for kind, size in sound.items()]}
        if sound:
            await _write_down(call, body)
        else:
            await call.returned_async()
        self._call = None

    @property
    def over(self) -> bool:
        """Whether nothing is held."""
        return self._call is None
