"""Which `attribute` blocks are open here (their scopes), and how functions of every kind run inside a block."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, cast

from tokenmeter.errors import ConfigurationError, shown

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
