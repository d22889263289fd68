"""A cancellation, seen when it comes.

What is cancelled first closes its connection, for which it waits for the loop again. The process of a server that
stops may have ended by then: uvicorn cancels its tasks, and kills itself one or two turns of the loop later.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from tokenmeter.interrupts import came_from_outside

if TYPE_CHECKING:
    from tokenmeter.capture.responses import Exchange

#: Nanoseconds by which a loop's timer may be ahead of our clock.
_EARLY = 50_000_000
#: Later than anything waits.
_NEVER = 1 << 63


def break_off(exchange: Exchange, error: BaseException) -> None:
    """`error` was raised where an event was awaited. One that is no `Exception` ends the stream."""
    if not exchange.settled:
        exchange.failed(error)
        if came_from_outside(error):  # an older SDK does not close what it leaves
            exchange.abandon()


def timer(seconds: Any) -> int:
    """When what waits for so many seconds from now on gives up, in nanoseconds of the monotonic clock."""
    try:
        return time.monotonic_ns() + int(seconds * 1_000_000_000)
    except (TypeError, ValueError, OverflowError):  # none, or without an end: transports take both
        return _NEVER


class Step:
    """The wait for the next piece or event of a stream.

    Args:
        waiting: Waits.
        exchange: Is written down as soon as it is cancelled.
        until: From this moment on (`timer`) the transport itself may cancel it, to raise an error of its own.
    """

    __slots__ = ("_exchange", "_until", "_waiting")

    def __init__(self, waiting: Coroutine[Any, Any, Any], exchange: Exchange, until: int) -> None:
        self._waiting = waiting
        self._exchange = exchange
        self._until = until

    def __await__(self) -> Step:
        return self

    def __iter__(self) -> Step:
        return self

    def __next__(self) -> Any:
        return self._waiting.send(None)

    def send(self, value: Any) -> Any:
        """Go on waiting."""
        return self._waiting.send(value)

    def throw(self, kind: Any, error: Any = None, *_trace: Any) -> Any:
        """Something is raised where this waits; ``throw(error)`` or, as older callers have it, its type before it."""
        error = kind if error is None else error
        waits_for = self._waiting.throw(error)  # raises, unless it waits again before it does
        cancelled = isinstance(error, BaseException) and not isinstance(error, Exception)
        if cancelled and time.monotonic_ns() + _EARLY < self._until:
            break_off(self._exchange, error)
        return waits_for

    def close(self) -> None:
        """Nobody waits any more."""
        self._waiting.close()
