"""What others ask a server again and again: whether it is well, figures for Prometheus, whether something is new."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from operator import attrgetter
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tokenmeter.errors import StoreError, TokenmeterError
from tokenmeter.reports import Query, read_report
from tokenmeter.serving.lens import ReadableMeter, pulse_of

#: Seconds that a ledger has for its answer.
_PATIENCE = 5


class Probes:
    """``/healthz`` and ``/readyz``. They stand open, so they say nothing but yes or no.

    However many ask, the ledger is asked once at a time: who asks meanwhile gets the same answer.

    Args:
        sight: The meter.
    """

    def __init__(self, sight: ReadableMeter) -> None:
        self._sight = sight
        self._asking: dict[Callable[[], object], asyncio.Task[bool]] = {}

    async def health(self, _: Request) -> Response:
        """Whether the ledger answers: 200, or 503."""
        return _tell_state(await self._ask(self._look))

    async def ready(self, _: Request) -> Response:
        """Whether a report and the budgets can be read: 200, or 503."""
        return _tell_state(await self._ask(self._read))

    def _look(self) -> object:
        return pulse_of(self._sight.store)

    def _read(self) -> object:
        now = self._sight.store.now()
        return self._sight.store.aggregate([now, now], ()), self._sight.budgets.in_force, self._sight.pricer.price_list

    async def _ask(self, question: Callable[[], object]) -> bool:
        known = self._asking.get(question)
        if known is None or known.done():
            known = self._asking[question] = asyncio.create_task(_is_answered(question))
        try:
            # Who gives up leaves the question running: whoever asks next gets its answer.
            return await asyncio.wait_for(asyncio.shield(known), _PATIENCE)
        except TimeoutError:
            return False


async def _is_answered(question: Callable[[], object]) -> bool:
    try:
        await run_in_threadpool(question)
    except (TokenmeterError, OSError):
        return False
    return True


def _tell_state(well: bool) -> Response:
    if well:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable"}, status_code=503, headers={"retry-after": "5"})


# -- Prometheus


def metrics_of(sight: ReadableMeter, request: Request) -> Response:
    """The ledger's sums and the budgets' counters, in the format that a scrape asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(sight))
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), media_type=content_type)


class _Figures(Collector):
    """Figures of a ledger. Binary fractions, as Prometheus has it: for graphs and alerts, not for bills."""

    def __init__(self, sight: ReadableMeter) -> None:
        self._sight = sight

    def collect(self) -> Iterator[Metric]:
        """Read everything; a ledger that does not answer is ``tokenmeter_ledger_up 0`` and nothing else."""
        try:
            found = [*self._collect_sums(), *self._collect_budgets()]
        except TokenmeterError:
            found = []
        yield _make_gauge("ledger_up", "Whether the ledger answers", int(bool(found)))
        yield from found

    def _collect_sums(self) -> Iterator[Metric]:
        sums = read_report(self._sight.store, Query(by=("provider", "model"))).rows
        for name, told, pick in _SUMS:
            family = GaugeMetricFamily(f"tokenmeter_ledger_{name}", told, labels=("provider", "model"))
            for one in sums:
                family.add_metric([value or "" for value in one.group.values()], float(pick(one)))
            yield family
        tokens = GaugeMetricFamily("tokenmeter_ledger_tokens", "Tokens", labels=("provider", "model", "sku_meter"))
        for one in sums:
            for meter, quantity in sorted(one.usage.quantities.items()):
                if isinstance(quantity, int):
                    tokens.add_metric([*(value or "" for value in one.group.values()), meter], quantity)
        yield tokens

    def _collect_budgets(self) -> Iterator[Metric]:
        found = self._sight.budgets.remaining({}, self._sight.store.now())
        labels = ("budget", "scope", "unit")
        for name, told in (
            ("limit", "Limit of the window"),
            ("spent", "Used by settled calls in the window"),
            ("reserved", "Held by calls in flight"),
        ):
            family = GaugeMetricFamily(f"tokenmeter_budget_{name}", told, labels=labels)
            for one in found:
                scope = ",".join(f"{field}={value}" for field, value in sorted(one.scope.items()))
                family.add_metric((one.budget, scope, one.unit), float(getattr(one, name)))
            yield family


def _make_gauge(name: str, told: str, value: int) -> Metric:
    return GaugeMetricFamily(f"tokenmeter_{name}", told, value=value)


#: Gauges: a correction lowers costs, a reversal everything. Of a counter that falls, Prometheus takes it that it began
#: anew from 0, and that all it shows was added since.
_SUMS: tuple[tuple[str, str, attrgetter[Any]], ...] = (
    ("requests", "Calls", attrgetter("requests")),
    ("errors", "Calls that failed", attrgetter("errors")),
    ("unpriced", "Entries with a meter of unknown price", attrgetter("unpriced")),
    ("list_cost_usd", "Cost at public prices, US dollars", attrgetter("list_cost")),
    ("billed_cost_usd", "Billed cost, US dollars", attrgetter("billed_cost")),
)


# -- live pages

log = logging.getLogger("tokenmeter")

#: Seconds between two looks while somebody watches.
_EVERY = 0.7
#: Seconds of silence after which a line is sent, so that a viewer who left is noticed.
_SILENCE = 15.0
_UNKNOWN = "unknown"


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
            part: What of the pulse the viewer watches; called in a worker thread.
            still: Whether he may watch any longer; it is asked before anything is told.
        """
        news: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(news)
        self._begin()
        try:
            yield "retry: 2000\n\n"
            told = await self._see(part, await self.look())
            yield f"event: change\ndata: {told}\n\n"
            while still():
                try:
                    whole = await asyncio.wait_for(news.get(), _SILENCE)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                state = await self._see(part, whole)
                if state != told and still():
                    told = state
                    yield f"event: change\ndata: {told}\n\n"
        finally:
            self._watchers.discard(news)
            self._end()

    async def _see(self, part: Callable[[str], str], whole: str) -> str:
        """What a viewer sees of a state; ``unknown`` while that cannot be read."""
        try:
            return whole if whole == _UNKNOWN else await run_in_threadpool(part, whole)
        except StoreError as error:
            log.debug("The dashboard could not look at a part of the ledger: %s", error)
            return _UNKNOWN

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
            return _UNKNOWN

    async def _watch(self) -> None:
        known: str | None = None
        while True:
            state = await self.look()
            if state != known:
                known = state
                for news in self._watchers:
                    news.put_nowait(state)  # also the first: it may be newer than what a viewer was told
            await asyncio.sleep(_EVERY)
