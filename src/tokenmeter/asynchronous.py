"""The verbs that read or write a ledger, for event loops: each waits in a thread, so that the loop goes on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from tokenmeter import default
from tokenmeter.ledger import Entry

P = ParamSpec("P")
R = TypeVar("R")

#: Entries that are read from the ledger at a time.
_PAGE = 500


def _in_thread(verb: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    async def function(*args: P.args, **kwargs: P.kwargs) -> R:
        # What writes must end, though nobody waits for it any more.
        return await asyncio.shield(asyncio.to_thread(verb, *args, **kwargs))

    name = f"a{verb.__name__}"
    told = f"As `tokenmeter.{verb.__name__}`, in a thread, so that the event loop goes on."
    functools.update_wrapper(function, verb, assigned=("__annotations__",))
    function.__name__, function.__qualname__, function.__module__, function.__doc__ = name, name, "tokenmeter", told
    return function


areport = _in_thread(default.report)
aremaining = _in_thread(default.remaining)
averify = _in_thread(default.verify)
arecord = _in_thread(default.record)
aflush = _in_thread(default.flush)


async def aentries(**options: Any) -> AsyncIterator[Entry]:
    """As `tokenmeter.entries`, read in a thread a page at a time, so that the event loop goes on.

    Args:
        **options: As for `tokenmeter.entries`.
    """
    # One thread from the beginning to the end: the reading belongs to the thread that began it.
    with ThreadPoolExecutor(1, thread_name_prefix="tokenmeter-entries") as reader:
        loop = asyncio.get_running_loop()
        entries = await loop.run_in_executor(reader, functools.partial(default.entries, **options))
        try:
            while page := await loop.run_in_executor(reader, lambda: list(islice(entries, _PAGE))):
                for entry in page:
                    yield entry
        finally:
            close = getattr(entries, "close", None)
            if close is not None:
                reader.submit(close)
