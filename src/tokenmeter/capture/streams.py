"""What comes back through a client of an SDK that Stainless generates: answers, and streams while they last.

A body is watched as it goes by and never kept; events are read where the SDK decodes them. Nothing is asked of an
event but what its reader has to know, since a stream has thousands of them: an answer's usage, and the size of the
text, from which one that ends early is estimated.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import filterfalse
from types import MethodType
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.cancelled import Step, break_off, timer
from tokenmeter.capture.sdk import CACHES, HITS, LITELLM_HIT, complain, twice
from tokenmeter.interrupts import let_interrupt_through

if TYPE_CHECKING:
    from tokenmeter.capture.calls import InFlight
    from tokenmeter.capture.responses import Exchange

#: With this header an SDK hands out the response itself: ``stream`` for one whose body the caller reads.
RAW_RESPONSE_HEADER = "x-stainless-raw-response"
#: Name of the attribute of the hook of ``_process_response_data`` that is the SDK's own.
PLAIN = "_tokenmeter_plain"


def responded(call: InFlight, response: Any, *, streamed: bool, again: bool = False) -> Exchange | None:
    """The exchange of a response with a success status; None when nothing is billed."""
    before = len(call.answers)
    try:
        if not 200 <= response.status_code <= 299:  # noqa: PLR2004 - HTTP's
            call.answering = None
            return None
        told = response.extensions  # by hishel: the caller's own HTTP cache may have given what was billed before
        kept = told.get("hishel_from_cache") is True or told.get("from_cache") is True
        for name, value in response.headers.raw:  # or a gateway's, on the way
            key = name.lower()
            if key in CACHES and (value if key == LITELLM_HIT else value.upper() in HITS):
                kept = True
        if kept and call.endpoint.billed and not call.lost_try:
            call.attempts = 0  # this one never got to the provider, and those before it were refused
            call.answering = None
            return None
        form = call.endpoint.form
        call.answering = exchange = call.respond(response.headers, streamed=streamed and form != "lines")
        if not is_read(response) or (streamed and _is_binary_stream(response)):
            call.answering = None
            # An SDK may leave out lines and events that it does not know.
            if form != "one" or response.request.headers.get(RAW_RESPONSE_HEADER) == "stream":
                exchange.read_bytes_aside(response.headers)
            watch_body(response, exchange)
        return exchange  # noqa: TRY300 - here, so that what fails at this very line takes it back as well
    except Exception as error:  # noqa: BLE001 - the caller gets his answer
        call.answering = None
        call.meter.fault("watch a response", error)
        call.take_back(before)
        if again:
            call.answered_unseen(streamed=streamed)
            return None
    return responded(call, response, streamed=streamed, again=True)  # what fails once may pass, as want of memory does


def answered(client: Any, call: InFlight, exchange: Exchange | None, response: Any, value: Any) -> None:
    """After the SDK made its value: a body in memory is all there is, a stream is listened to. May be begun anew."""
    whole = call.answering
    if whole is not None:
        if not whole.took_whole():
            twice(call.meter, partial(_read_whole, whole, response))
            if not whole.closed:
                whole.give_up()
        call.answering = None
    heard = None if exchange is None or exchange.closed else exchange
    if heard is None and not call.usage_asked:
        return
    hide = call.binding.sdk.dialect().usage_hider() if call.usage_asked else None
    if heard is not None and not heard.follows_pieces and getattr(value, "_client", None) is None:
        heard.read_bytes_aside(response.headers)  # the caller has the response itself
    _listen(client, heard, value, hide, call.binding.sdk.name)


def _read_whole(exchange: Exchange, response: Any) -> None:
    exchange.read_content(response.content, response.headers)
    exchange.finish()


def is_read(response: Any) -> bool:
    """Whether the whole body is in memory already."""
    try:
        response.content  # noqa: B018 - raises where the body was not read
    except Exception as error:  # noqa: BLE001 - httpx and httpx2 each have their own ResponseNotRead
        let_interrupt_through(error)
        return False
    return True


def _is_binary_stream(response: Any) -> bool:
    return "amazon.eventstream" in response.headers.get("content-type", "")


# -- the body, while it streams: nothing stands in its way, and its end is noticed


def watch_body(response: Any, exchange: Exchange) -> None:
    """Have `exchange` learn of the pieces and the end of the body of `response`, whoever takes it."""
    timeouts: dict[str, Any] = response.request.extensions.get("timeout") or {}
    watched = _watched_class(_flavour(response.stream))
    response.stream = watched(response.stream, exchange, timeouts.get("read"))


def _flavour(body: Any) -> type[Any]:
    """The byte stream class that httpx or httpx2 will insist on: ``SyncByteStream`` or ``AsyncByteStream``."""
    for kind in type(body).__mro__:
        if kind.__name__ in {"SyncByteStream", "AsyncByteStream"}:
            return kind
    raise TypeError(f"{type(body).__name__} is no byte stream that tokenmeter knows.")


def _watched_class(flavour: type[Any]) -> type[Any]:
    made = _watched_classes.get(flavour)
    if made is None:
        watched = _WatchedBody if flavour.__name__ == "SyncByteStream" else _WatchedAsyncBody
        made = _watched_classes[flavour] = type(watched.__name__, (watched, flavour), {})
    return made


#: One class per flavour of httpx or httpx2.
_watched_classes: dict[type[Any], type[Any]] = {}


class _Watched:
    def __init__(self, body: Any, exchange: Exchange, read_timeout: Any) -> None:
        self._body = body
        self._exchange = exchange
        self._read_timeout = read_timeout

    def __getattr__(self, name: str) -> Any:  # what an SDK has hung onto its own body
        return getattr(self.__dict__["_body"], name)

    def __del__(self) -> None:
        exchange = self.__dict__.get("_exchange")
        if exchange is not None and not exchange.settled:
            exchange.abandon()


class _WatchedBody(_Watched):
    def __iter__(self) -> Iterator[bytes]:
        return self._followed() if self._exchange.follows_pieces else self._passed_on()

    def _passed_on(self) -> Iterator[bytes]:
        """The pieces unread. What ends them is noted here: an older SDK does not close what broke."""
        exchange = self._exchange
        try:
            yield from self._body
        except Exception as error:
            exchange.failed(error)
            raise
        exchange.ended = True

    def _followed(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            for piece in self._body:
                exchange.piece(piece)
                yield piece
        except Exception as error:
            exchange.failed(error)
            raise
        exchange.ended = True

    def close(self) -> None:
        try:
            self._exchange.finish()
        finally:
            self._body.close()


class _PassedOn:
    """The pieces of an async body, and how they ended; no generator, which a loop would have to finalise."""

    __slots__ = ("_exchange", "_pieces", "_read_timeout")

    def __init__(self, pieces: AsyncIterator[bytes], exchange: Exchange, read_timeout: Any) -> None:
        self._pieces = pieces
        self._exchange = exchange
        self._read_timeout = read_timeout

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> Any:
        # Awaited here: `async for` would make a TypeError of an interrupt that comes where a `Step` gives itself out.
        try:
            return await Step(self._next(), self._exchange, timer(self._read_timeout))
        except StopAsyncIteration:
            self._exchange.ended = True
            raise
        except BaseException as error:  # of the wait, or of what is done before it
            break_off(self._exchange, error)
            raise

    async def _next(self) -> bytes:
        return await self._pieces.__anext__()


class _WatchedAsyncBody(_Watched):
    def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = _PassedOn(self._body.__aiter__(), self._exchange, self._read_timeout)
        return self._followed(pieces) if self._exchange.follows_pieces else pieces

    async def _followed(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            await self._exchange.piece_async(piece)
            yield piece

    async def aclose(self) -> None:
        try:
            await self._exchange.finish_async()
        finally:
            await self._body.aclose()


# -- the events of a stream, where the SDK decodes them


def _listen(
    client: Any, exchange: Exchange | None, value: Any, hide: Callable[[Any], bool] | None, sdk_name: str
) -> None:
    """Hear what the SDK decodes of `value`: a stream, or a raw response that is parsed to one later.

    Args:
        client: Who decodes.
        exchange: Told of every event; None where the response could not be watched.
        value: What the caller gets.
        hide: Takes off an event what only our asking put there, and says whether nothing else is in it: such an event
            is not shown. None where nothing was asked for.
        sdk_name: The package whose stream classes show every event that they decode, when they have decoded it.
    """
    hidden: list[Any] = []
    if getattr(value, "_client", None) is not None and (exchange is not None or hide is not None):
        value._client = _twin(client, exchange, hide, hidden)  # noqa: SLF001 - whom it asks to decode
    if hide is None:
        return
    parse = getattr(value, "_parse", None)

    def leave_out(stream: Any) -> None:
        if _streams_by(stream, sdk_name):
            _leave_out(stream, hidden)
        else:
            stream._decoder = _Sieve(stream._decoder, exchange, hide)  # noqa: SLF001 - before what the caller made of it

    if parse is None:
        leave_out(value)
        return

    @functools.wraps(parse)
    def _parse(*args: Any, **kwargs: Any) -> Any:
        parsed = parse(*args, **kwargs)
        leave_out(parsed)
        return parsed

    value._parse = _parse  # noqa: SLF001 - what its public parse() goes through


def _twin(client: Any, exchange: Exchange | None, hide: Callable[[Any], bool] | None, hidden: list[Any]) -> Any:
    """The same client, one ``__dict__`` with it, but that it tells `exchange` of what it decodes.

    The slot is looked up before the dictionary, in which a client metered in place has a hook of its own.
    """
    kind: Any = client.__class__
    twin = object.__new__(_twin_class(kind))
    object.__setattr__(twin, "__dict__", client.__dict__)
    decode = kind._process_response_data  # noqa: SLF001 - an SDK's own
    decode = MethodType(getattr(decode, PLAIN, decode), client)  # our hook is for bodies that come whole
    object.__setattr__(twin, "_process_response_data", _hearing(decode, exchange, hide, hidden))
    return twin


def _hearing(
    decode: Callable[..., Any], told: Exchange | None, hide: Callable[[Any], bool] | None, hidden: list[Any]
) -> Callable[..., Any]:
    """What stands before `decode`, for every event: kept lean, and keeps no event alive."""
    unasked = 0

    def hear(*, data: Any, cast_to: Any, response: Any) -> Any:
        nonlocal unasked
        try:
            if told is None or type(data) is not dict:  # a host's sign of life, say: no format has such events
                pass
            elif unasked:
                unasked -= 1
                told.feed(data)
            else:
                unasked = told.hear(data)
        except Exception as error:  # noqa: BLE001 - the caller gets his event
            if told is not None:
                told.misread(error)
        try:
            if hide is not None and hide(data):
                hidden.append(_Next(hidden))
        except Exception as error:  # noqa: BLE001 - he is shown one that only we asked for, then
            complain("hide what only it asked for", error)
        return decode(data=data, cast_to=cast_to, response=response)

    return hear


def _twin_class(kind: type[Any]) -> type[Any]:
    made = _twin_classes.get(kind)
    if made is not None:
        return made
    body: dict[str, Any] = {"__slots__": ("_process_response_data",), "__module__": kind.__module__}
    if hasattr(kind, "__del__"):
        body["__del__"] = _go  # the client's own finaliser is for the client
    made = _twin_classes[kind] = type(kind.__name__, (kind,), body)
    return made


def _go(_twin: Any) -> None:
    """Nothing is to be done."""


_twin_classes: dict[type[Any], type[Any]] = {}


class _Next:
    """Stands in `hidden` for what comes next, whatever an SDK makes of it: equal to anything, once."""

    __slots__ = ("_hidden",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, hidden: list[Any]) -> None:
        self._hidden = hidden

    def __eq__(self, other: object) -> bool:
        self._hidden.clear()
        return True


def _streams_by(value: Any, sdk_name: str) -> bool:
    """Whether the events of a stream are shown by the SDK's own code, as opposed to a stream class of the caller's.

    The caller's may read ahead, or look into each chunk: what comes next is not what was decoded last then, and what is
    left out afterwards was looked into already.
    """
    by = getattr(value.__class__, "__stream__", None)
    return by is None or by.__module__.partition(".")[0] == sdk_name or not hasattr(value._decoder, "iter_bytes")  # noqa: SLF001


def _leave_out(stream: Any, hidden: list[Any]) -> None:
    """A stream stays of its own class: only the iterator behind it leaves out what is `hidden`."""
    chunks = getattr(stream, "_iterator", None)
    if chunks is not None:
        leaves_out = hidden.__contains__
        shown = filterfalse(leaves_out, chunks) if hasattr(chunks, "__next__") else _AsyncShown(chunks, leaves_out)
        stream.__dict__["_iterator"] = shown


class _AsyncShown:
    """`filterfalse`, async. No generator: asyncio would have one more to close, when it likes."""

    __slots__ = ("_chunks", "_leaves_out", "_next")

    def __init__(self, chunks: Any, leaves_out: Callable[[Any], bool]) -> None:
        self._chunks = chunks
        self._leaves_out = leaves_out
        self._next = chunks.__anext__

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        chunk = await self._next()
        while self._leaves_out(chunk):
            chunk = await self._next()
        return chunk

    def __getattr__(self, name: str) -> Any:  # aclose, asend, ...
        return getattr(self._chunks, name)


class _Sieve:
    """An SDK's decoder of events that gives a stream class of the caller's own no event that only we asked for.

    Args:
        decoder: The SDK's.
        exchange: Told of what is held back.
        hide: See `_listen`.
    """

    __slots__ = ("_decoder", "_exchange", "_hide")

    def __init__(self, decoder: Any, exchange: Exchange | None, hide: Callable[[Any], bool]) -> None:
        self._decoder = decoder
        self._exchange = exchange
        self._hide = hide

    def iter_bytes(self, pieces: Iterator[bytes]) -> Iterator[Any]:
        """The events in `pieces`."""
        return filterfalse(self._holds_back, self._decoder.iter_bytes(pieces))

    def aiter_bytes(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """As `iter_bytes`, async."""
        return _AsyncShown(self._decoder.aiter_bytes(pieces), self._holds_back)

    def _holds_back(self, event: Any) -> bool:
        try:
            if _NO_CHOICES.search(event.data) is None or not self._hide(data := event.json()):
                return False
            if self._exchange is not None:
                self._exchange.hear(data)
        except ValueError:  # no JSON: the SDK says so
            return False
        except Exception as error:  # noqa: BLE001 - the caller gets his event
            complain("hide what only it asked for", error)
            return False
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


_NO_CHOICES = re.compile(r'"choices"\s*:\s*\[\s*\]')
