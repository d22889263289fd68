"""Calls that no block saw: which block they may belong to, because its thread or task waits for whoever made them."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.running import SCOPES

#: Whose frames stand between a line that waits and what it waits for; the last one has pools of threads as well.
_POOLS, _PROCESSES = "concurrent.futures.thread", "multiprocessing.pool"
_WAITING = frozenset({"threading", "concurrent.futures._base", _POOLS, _PROCESSES})
#: Frames that are looked at of each thread, and values in a collection.
_DEEP, _WIDE = 100, 1_000


class _ThisThread(threading.local):
    opens_blocks = False
    name = ""

    def find_name(self) -> str:
        """The thread's name, looked up once."""
        self.name = threading.current_thread().name
        return self.name


class Strays:
    """What this process knows of calls outside of every block.

    Attributes:
        numbers: Gives each of them its own.
        last: The last one that was made in a thread that opens no blocks: its number and the thread's name.
        empty: The last block that ended without a call, and when.
        told: What was said already, by place in the user's code.
        open_in: Thread -> the blocks that are open in it; not of those that run an event loop.
        looks: For how many more calls it is looked who waits for them; none before the first block.
    """

    MOST_LOOKS = 1_000

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.last: tuple[int, str] = (0, "")
        self.empty: tuple[Any, int] | None = None
        self.told: set[tuple[str, str]] = set()
        self.open_in: dict[int, tuple[Any, ...]] = {}
        self.looks = 0
        self.any_opened = False

    def opened(self, scopes: tuple[Any, ...], *, on_loop: bool) -> None:
        """These blocks are open here now."""
        if not self.any_opened:
            self.any_opened, self.looks = True, self.MOST_LOOKS
        if not on_loop:
            self.open_in[threading.get_ident()] = scopes

    def left(self, scopes: tuple[Any, ...]) -> None:
        """These are those that still are."""
        if scopes:
            self.open_in[threading.get_ident()] = scopes
        else:
            self.open_in.pop(threading.get_ident(), None)

    def find_waiting(self) -> tuple[Any, ...]:
        """The blocks around who waits for what this thread does; none where nobody is seen to. No error is raised."""
        self.looks -= 1
        try:
            return next((scopes for scopes in _find(self.open_in) if scopes), ())
        except Exception as error:  # noqa: BLE001 - frames and futures of others may be of any make
            let_interrupt_through(error)
            return ()


STRAYS = Strays()
this_thread = _ThisThread()


class _Work:
    """What runs in this thread, as whoever waits for it knows it."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.futures: list[Any] = []
        self.jobs: set[int] = set()
        for one in _frames(sys._getframe()):  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as `logging` does
            if _is(one, "run", _POOLS):
                self.futures.append(one.f_locals["self"].future)
            elif _is(one, "worker", _PROCESSES):
                self.jobs.add(one.f_locals["job"])

    def is_awaited_at(self, frame: FrameType) -> bool:
        """Whether a thread that is at `frame` waits for it."""
        for one in _frames(frame):
            if one.f_globals.get("__name__") not in _WAITING:
                return False
            if any(self._has(value) for value in tuple(one.f_locals.values())):
                return True
            if _is(one, "shutdown", _POOLS) and self.thread in tuple(one.f_locals["self"]._threads):  # noqa: SLF001
                return True
        return False

    def _has(self, value: object) -> bool:
        if isinstance(value, list | set | tuple):
            return len(value) <= _WIDE and any(self._is(item) for item in tuple(value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return self._is(value)

    def _is(self, value: object) -> bool:
        return (
            value is self.thread
            or any(value is future for future in self.futures)
            or (bool(self.jobs) and getattr(value, "_job", None) in self.jobs)
        )


def _find(open_in: dict[int, tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    work = _Work()
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the only way to see them
    for ident, scopes in tuple(open_in.items()):
        if ident in frames and ident != work.thread.ident and work.is_awaited_at(frames[ident]):
            yield scopes
    for future in work.futures:
        yield from _blocks_awaiting(future)


def _is(frame: FrameType, function: str, module: str) -> bool:
    return frame.f_code.co_name == function and frame.f_globals.get("__name__") == module


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(_DEEP):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _blocks_awaiting(future: Any) -> Iterator[tuple[Any, ...]]:
    """The blocks around the tasks that await a pool's future: its asyncio future goes on in their contexts."""
    for callback in tuple(future._done_callbacks):  # noqa: SLF001 - where asyncio chains its own
        for cell in getattr(callback, "__closure__", None) or ():
            for waiting in getattr(cell.cell_contents, "_callbacks", None) or ():
                _, context = waiting
                yield context.get(SCOPES, ())
