"""Which `attribute` blocks are open here (their scopes), and how functions of every kind run inside a block.

And of calls that no block saw: which block they may belong to, because its thread or task waits for whoever made them.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import operator
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast

from tokenmeter import processes
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.interrupts import let_interrupt_through

P = ParamSpec("P")
R = TypeVar("R")

#: Innermost scope last. An immutable value: tasks and `contextvars.copy_context()` inherit it, nobody mutates it.
SCOPES: ContextVar[tuple[Any, ...]] = ContextVar("tokenmeter_scopes", default=())


class scopes_set_to:  # noqa: N801 - used as a verb, like contextlib.suppress
    """Run a ``with`` block inside exactly `scopes`, whatever is open around it, and leave what was open before."""

    __slots__ = ("_before", "_scopes", "_token")

    def __init__(self, scopes: tuple[Any, ...]) -> None:
        self._scopes = scopes

    # An interrupt may come at any line of these, as at those of `tokenmeter.attribute`.

    def __enter__(self) -> None:
        self._before = SCOPES.get()
        try:
            self._token = SCOPES.set(self._scopes)
        except BaseException:
            SCOPES.set(self._before)
            raise

    def __exit__(self, *_: object) -> None:
        # fmt: off
        try: SCOPES.reset(self._token)  # noqa: E701 - an interrupt at the line of a `try` alone is not caught
        # fmt: on
        except ValueError:  # a generator may be closed in another context, where only what was put there is taken away
            self._take_away()
        except BaseException:
            self._take_away()
            raise

    def _take_away(self) -> None:
        if SCOPES.get() == self._scopes:
            SCOPES.set(self._before)


class in_steps:  # noqa: N801 - as above
    """Run each step of a generator inside `block`. What the generator opened itself is open again in its next step."""

    __slots__ = ("_around", "_block", "_depth", "_opened")

    def __init__(self, block: AbstractContextManager[object]) -> None:
        self._block = block
        self._opened: tuple[Any, ...] = ()

    # A step begins and ends in one context. As above, of interrupts.

    def __enter__(self) -> None:
        self._around = SCOPES.get()
        try:
            self._block.__enter__()
            inside = SCOPES.get()
            self._depth = len(inside)
            if self._opened:
                SCOPES.set((*inside, *self._opened))
        except BaseException:
            SCOPES.set(self._around)
            raise

    def __exit__(self, *failure: object) -> None:
        # fmt: off
        try: self._leave(SCOPES.get(), failure)  # noqa: E701 - as above
        # fmt: on
        except BaseException:
            SCOPES.set(self._around)
            raise

    def _leave(self, scopes: tuple[Any, ...], failure: tuple[object, ...]) -> None:
        self._opened = scopes[self._depth :]
        if self._opened:
            SCOPES.set(scopes[: self._depth])
        self._block.__exit__(*cast("tuple[None, None, None]", failure))


_Block = Callable[[], AbstractContextManager[object]]


def runner_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What runs `function` inside a block: ``runner(make_block, function, *args, **kwargs)``.

    It is a function of the same kind: plain, coroutine, generator or async generator. A generator is inside its block
    only while it runs, never between its items.
    """
    kinds: tuple[tuple[Callable[[Any], bool], Callable[..., Any]], ...] = (
        (inspect.iscoroutinefunction, _await),
        (inspect.isasyncgenfunction, _iterate_async),
        (inspect.isgeneratorfunction, _iterate),
    )
    called = getattr(type(function), "__call__", None)  # noqa: B004 - an object may have a coroutine function there
    return next((runner for is_kind, runner in kinds if is_kind(function) or is_kind(called)), _call)


def decorate(function: Callable[P, R], block_of: Callable[[Callable[..., Any]], _Block]) -> Callable[P, R]:
    """`function`, or the method that a `staticmethod` or `classmethod` holds, with each run inside a block of its own.

    Raises:
        ConfigurationError: not a function; a class, whose methods would run after its block.
    """
    if isinstance(function, staticmethod | classmethod):
        method = cast("Any", function)
        return cast("Callable[P, R]", type(method)(decorate(method.__func__, block_of)))
    if inspect.isclass(function) or not callable(function):  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigurationError(
            f"@attribute(...) decorates functions and methods, not {shown(function)}; put it on each method that "
            "makes calls (of a property: below @property)."
        )
    runner, block = runner_of(function), block_of(function)

    def plain(*args: Any, **kwargs: Any) -> Any:
        return runner(block, function, *args, **kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return await runner(block, function, *args, **kwargs)

    inside = coroutine if inspect.iscoroutinefunction(runner) else plain
    return cast("Callable[P, R]", functools.wraps(function)(inside))


def _call(block: _Block, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with block():
        return function(*args, **kwargs)


async def _await(block: _Block, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with block():
        return await function(*args, **kwargs)


def _iterate(
    block: _Block, function: Callable[..., Generator[Any, Any, Any]], /, *args: Any, **kwargs: Any
) -> Generator[Any, Any, Any]:
    generator, inside = function(*args, **kwargs), in_steps(block())
    step: Callable[[], Any] = functools.partial(next, generator)
    while True:
        try:
            with inside:
                item = step()
        except StopIteration as stop:
            return stop.value
        try:
            sent = yield item
            step = functools.partial(generator.send, sent)
        except GeneratorExit:
            with inside:
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step = functools.partial(generator.throw, error)


async def _iterate_async(
    block: _Block, function: Callable[..., AsyncGenerator[Any, Any]], /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, Any]:
    generator, inside = function(*args, **kwargs), in_steps(block())
    step: Callable[[], Any] = generator.__anext__
    while True:
        try:
            with inside:
                item = await step()
        except StopAsyncIteration:
            return
        try:
            sent = yield item
            step = functools.partial(generator.asend, sent)
        except GeneratorExit:
            with inside:
                await generator.aclose()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the caller throws in belongs to the generator
            step = functools.partial(generator.athrow, error)


# -- calls that no block saw

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
            if _is(one, "run", _POOLS):  # since Python 3.14 a method of what has no future, too
                self.futures += [one.f_locals["self"].future] if hasattr(one.f_locals.get("self"), "future") else []
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
    frames: dict[int, FrameType] = {}
    if open_in and not processes.has_lost_threads:
        frames = _frames_of_threads()
        # Itself among its own values, with whoever called it, would be left to the garbage collector.
        frames.pop(threading.get_ident(), None)  # gevent gives greenlets numbers of their own
    for ident, scopes in tuple(open_in.items()):
        if ident in frames and work.is_awaited_at(frames[ident]):
            yield scopes
    for future in work.futures:
        yield from _blocks_awaiting(future)


def _frames_of_threads() -> dict[int, FrameType]:
    """Where each thread is.

    Python 3.11 may collect garbage within, while the list of threads is locked. A finaliser that lets others run
    (a client's closes its sockets) then stops the process for ever, if one of these is about to end. So nothing is
    collected meanwhile: the three calls are one step of the interpreter, which no thread and no interrupt can divide.
    """
    look = sys._current_frames  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - the only way to see them
    if sys.version_info >= (3, 12) or not gc.isenabled():
        return look()
    try:
        _, frames, _ = map(operator.call, (gc.disable, look, gc.enable))
    except BaseException:
        gc.enable()
        raise
    return cast("dict[int, FrameType]", frames)


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
