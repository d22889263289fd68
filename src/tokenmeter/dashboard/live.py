"""Live pages: one look at the ledger per moment, shared by everybody who watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from starlette.concurrency import run_in_threadpool

from tokenmeter.errors import StoreError

log = logging.getLogger("tokenmeter")

#: Seconds between two looks while somebody watches.
_EVERY = 0.7
#: Seconds of silence after which a line is sent, so that a viewer who left is noticed.
_SILENCE = 15.0


def entries_of(pulse: str) -> str:
    """The part of a pulse that only entries change: a call on its way is not in it."""
    return pulse.rpartition(".")[0] or pulse


class Pulse:
    """Looks at the ledger while somebody watches, and tells all watchers of every change.

    Args:
        probe: What changes when the ledger does; called in a worker thread.
    """

    def __init__(self, probe: Callable[[], str]) -> None:
        self._probe = probe
        self._watchers: set[asyncio.Queue[str]] = set()
        self._task: asyncio.Task[None] | None = None
        self.looks = 0

    @property
    def watching(self) -> int:
        """How many watch."""
        return len(self._watchers)

    async def events(
        self, part: Callable[[str], str] = str, *, still: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[str]:
        """Server-sent events: ``change`` with the state now, then one for every other state.

        Args:
            part: What of the pulse the viewer watches.
            still: Whether he may watch any longer; it is asked before anything is told.
        """
        news: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(news)
        self._begin()
        try:
            yield "retry: 2000\n\n"
            told = part(await self.look())
            yield f"event: change\ndata: {told}\n\n"
            while still():
                try:
                    state = part(await asyncio.wait_for(news.get(), _SILENCE))
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if state != told and still():
                    told = state
                    yield f"event: change\ndata: {told}\n\n"
        finally:
            self._watchers.discard(news)
            self._end()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    def _end(self) -> None:
        if self._task is not None and not self._watchers:
            self._task.cancel()
            self._task = None

    async def look(self) -> str:
        """The state now; ``unknown`` while the store is out of reach."""
        self.looks += 1
        try:
            return await run_in_threadpool(self._probe)
        except StoreError as error:
            log.debug("The dashboard could not look at the ledger: %s", error)
            return "unknown"

    async def _watch(self) -> None:
        known: str | None = None
        while True:
            state = await self.look()
            if state != known:
                known = state
                for news in self._watchers:
                    news.put_nowait(state)  # also the first: it may be newer than what a viewer was told
            await asyncio.sleep(_EVERY)
