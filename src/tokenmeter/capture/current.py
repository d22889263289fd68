"""Which call's request is being sent in this context."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from tokenmeter.capture.inflight import InFlight

__all__ = ["current_call", "sending"]


class sending:  # noqa: N801 - used as a verb, like contextlib.suppress
    """While a `request()` runs, the hooks below it find its call. Never kept longer.

    Args:
        call: The call; None for one that makes no bill, and must not be taken for the one around it when a key
            provider or middleware makes it.
    """

    __slots__ = ("_outer", "call")

    def __init__(self, call: InFlight | None) -> None:
        self.call = call

    def __enter__(self) -> None:
        self._outer = _CURRENT.get()
        _CURRENT.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # No token: a coroutine may be closed in another context than the one it ran in.
        if _CURRENT.get() is self:
            _CURRENT.set(self._outer)


def current_call() -> InFlight | None:
    """The call whose request is being sent; None outside of a metered one."""
    found = _CURRENT.get()
    return None if found is None else found.call


_CURRENT: ContextVar[sending | None] = ContextVar("tokenmeter_sending", default=None)
