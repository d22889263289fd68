"""The verbs that read or write a ledger, for event loops: each waits in a thread, so that the loop goes on."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from tokenmeter import verbs
from tokenmeter.places import hand_place

P = ParamSpec("P")
R = TypeVar("R")

#: Entries that are read from the ledger at a time.
_PAGE = 500


def _in_thread(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    async def function(*args: P.args, **kwargs: P.kwargs) -> R:
        # What writes must end, though nobody waits for it any more.
        return await asyncio.shield(asyncio.to_thread(hand_place(verb), *args, **kwargs))

    _name_after(verb, function, "in a thread")
    return function


def _in_pages(verb: Callable[P, Iterator[R]]) -> Callable[P, AsyncIterator[R]]:
    async def function(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        # One thread from the beginning to the end: the reading belongs to the thread that began it.
        with ThreadPoolExecutor(1, thread_name_prefix=f"tokenmeter-{verb.__name__}") as reader:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(reader, functools.partial(verb, *args, **kwargs))
            try:
                while page := await loop.run_in_executor(reader, lambda: list(islice(found, _PAGE))):
                    for one in page:
                        yield one
            finally:
                close = getattr(found, "close", None)
                if close is not None:
                    reader.submit(close)

    _name_after(verb, function, "read in a thread a page at a time")
    signature = inspect.signature(verb)
    shown = signature.replace(return_annotation=f"Async{signature.return_annotation}")
    function.__signature__ = shown  # type: ignore[attr-defined]
    return function


def _name_after(verb: Callable[..., Any], function: Any, how: str) -> None:
    name = f"a{verb.__name__}"
    told = f"As `tokenmeter.{verb.__name__}`, {how}, so that the event loop goes on."
    functools.update_wrapper(function, verb, assigned=("__annotations__",))
    function.__name__, function.__qualname__, function.__module__, function.__doc__ = name, name, "tokenmeter", told


areport = _in_thread(verbs.report)
aremaining = _in_thread(verbs.remaining)
averify = _in_thread(verbs.verify)
arecord = _in_thread(verbs.record)
aflush = _in_thread(verbs.flush)
aentries = _in_pages(verbs.entries)
