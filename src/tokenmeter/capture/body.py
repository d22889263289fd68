"""The body of a response while it streams: let through piece by piece, its end noticed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from tokenmeter.capture.exchange import Exchange

__all__ = ["is_read", "watch_body"]


def is_read(response: Any) -> bool:
    """Whether the whole body is in memory already."""
    try:
        response.content  # noqa: B018 - raises where the body was not read
    except Exception:  # noqa: BLE001 - httpx and httpx2 each have their own ResponseNotRead
        return False
    return True


def watch_body(response: Any, exchange: Exchange) -> None:
    """Have `exchange` told how the body of `response` ends: read out, closed, failed or dropped."""
    body = response.stream
    response.stream = _watched_class(_flavour(body))(body, exchange)


def _flavour(body: Any) -> type[object]:
    """The byte stream class that httpx or httpx2 will insist on: ``SyncByteStream`` or ``AsyncByteStream``."""
    for kind in type(body).__mro__:
        if kind.__name__ in {"SyncByteStream", "AsyncByteStream"}:
            return kind
    raise TypeError(f"{type(body).__name__} is no byte stream that tokenmeter knows.")


def _watched_class(flavour: type[object]) -> type[Any]:
    made = _watched_classes.get(flavour)
    if made is None:
        watched = _WatchedBody if flavour.__name__ == "SyncByteStream" else _WatchedAsyncBody
        made = _watched_classes[flavour] = type(watched.__name__, (watched, flavour), {})
    return made


#: One class per flavour of httpx or httpx2.
_watched_classes: dict[type[object], type[Any]] = {}


class _Watched:
    def __init__(self, body: Any, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:  # what an SDK has hung onto its own body
        return getattr(self.__dict__["_body"], name)

    def __del__(self) -> None:
        exchange = self.__dict__.get("_exchange")
        if exchange is not None and not exchange.closed:
            exchange.abandon()


class _WatchedBody(_Watched):
    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        try:
            if exchange.follows_pieces:
                for piece in self._body:
                    exchange.piece(piece)
                    yield piece
            else:
                yield from self._body
        except Exception as error:
            exchange.failed(error)
            raise
        exchange.ended = True

    def close(self) -> None:
        try:
            self._body.close()
        finally:
            self._exchange.finish()


class _WatchedAsyncBody(_Watched):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async for piece in self._body:
                if exchange.follows_pieces:
                    await exchange.piece_async(piece)
                yield piece
        except Exception as error:
            exchange.failed(error)
            raise
        exchange.ended = True

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            await self._exchange.finish_async()
