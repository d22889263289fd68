"""Where in the user's code something is done, for messages: file and line."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
R = TypeVar("R")

#: Whoever stands between the user's line and us, beside the standard library.
_BETWEEN = sys.stdlib_module_names | {
    *("tokenmeter", "openai", "anthropic", "google", "httpx", "httpx2", "httpcore", "httpcore2", "tenacity"),
    *("anyio", "uvloop"),
}


class _Handed(threading.local):
    place: str | None = None
    is_place = False


#: Whether this thread works for another one that waits for it, and the place there.
_handed = _Handed()


def place_in_code() -> str | None:
    """File and line of the user's code that runs here, or that waits for what runs here; None where there is none.

    A task goes no further than to its own beginning: who runs the event loop did not ask for it.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as `logging` does
    last = _beginning_of_task()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".", maxsplit=1)[0] not in _BETWEEN:
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = None if frame is last else frame.f_back
    return _handed.place


def say_place() -> str:
    """The same with its preposition, as a message has it; the task or the thread where no line is known."""
    place = place_in_code()
    if place is not None:
        return f"at {place}"
    task = _current_task()
    return f"in thread {threading.current_thread().name!r}" if task is None else f"in task {task.get_name()!r}"


def hand_place(work: Callable[P, R]) -> Callable[P, R]:
    """`work`, to be run in another thread while the caller waits for it: the place in the code is the caller's."""
    place = place_in_code()

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before = _handed.place, _handed.is_place
        _handed.place, _handed.is_place = place, True
        try:
            return work(*args, **kwargs)
        finally:
            _handed.place, _handed.is_place = before

    return run


def is_waited_for() -> bool:
    """Whether this thread runs what `hand_place` made, so that what is done here is done elsewhere."""
    return _handed.is_place


def _current_task() -> asyncio.Task[object] | None:
    loops = sys.modules.get("asyncio")
    try:
        return None if loops is None else loops.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _beginning_of_task() -> FrameType | None:
    """The outermost frame of the task that runs here; None outside of tasks."""
    task = _current_task()
    frame: FrameType | None = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    return frame
