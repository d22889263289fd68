"""Reading the ledger for a page: each report once, what sums of sums give, what was read last, what makes it quick."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from typing import Any, Generic, NamedTuple, TypeVar

from tokenmeter.errors import StoreError
from tokenmeter.periods import CalendarUnit, Period
from tokenmeter.reports import Report, Row
from tokenmeter.reports.query import Query, cut
from tokenmeter.reports.report import read_report
from tokenmeter.stores.base import Store
from tokenmeter.stores.sketch import Latencies
from tokenmeter.stores.store import BookStore

T = TypeVar("T")
#: Rows that are summed up here rather than read again.
MOST_SUMMED = 3_000
#: Seconds between two rounds of packing, and without a question before it goes on.
_EVERY, _QUIET = 3_600, 2
_log = logging.getLogger("tokenmeter")
#: Bucket and value.
Place = tuple[int, str | None]


class ReportKey(NamedTuple):
    """What a report is known by."""

    by: tuple[str, ...]
    granularity: CalendarUnit | None
    start: datetime
    end: datetime
    tz: str
    where: frozenset[tuple[str, frozenset[str | None]]]

    @classmethod
    def of(cls, query: Query) -> ReportKey:
        """That of a query."""
        period = query.period
        return cls(query.by, query.granularity, period.start, period.end, period.tz, frozenset(query.where.items()))


class ReportReader:
    """Reports of one unchanged ledger, each read once, whatever is asked of it: another measure or form reads nothing.

    Args:
        store: The ledger. Where dimensions and filters have kept sums, only these are read.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.RLock()
        self._known: dict[ReportKey, Report] = {}
        self._times: dict[ReportKey, Mapping[Place, Latencies]] = {}

    def __call__(self, query: Query) -> Report:
        """The answer to a query; summed up from another one where that was split further."""
        key = ReportKey.of(query)
        with self._lock:  # who asks the same at the same time waits for it
            if key not in self._known:
                self._known[key] = self._summed_up(key) or read_report(self.store, query)
            return self._known[key]

    def cut(self, query: Query) -> list[Period]:
        """The query's buckets."""
        return cut(self.store, query)

    def times(self, query: Query) -> Mapping[Place, Latencies]:
        """How long calls took: bucket and value -> what is known, which of meters is nothing."""
        key = ReportKey.of(query)
        with self._lock:
            if key not in self._times:
                parts = [] if "sku_meter" in (*query.by, *query.where) else self.cut(query)
                edges = [part.start for part in parts] + [part.end for part in parts[-1:]]
                found = self.store.latencies(edges, query.by, query.filter) if parts else ()
                self._times[key] = {(one.bucket, one.group[0] if one.group else None): one for one in found}
            return self._times[key]

    def _summed_up(self, key: ReportKey) -> Report | None:
        """The answer by one dimension or by none, where one that is split further is known of the same calls."""
        if len(key.by) > 1 or "sku_meter" in key.by:
            return None
        for known, report in self._known.items():
            inside = known.by and {*key.by} <= {*known.by} and "sku_meter" not in known.by
            if inside and known._replace(by=key.by) == key and len(report.rows) <= MOST_SUMMED:
                return replace(report, by=key.by, rows=tuple(_summed(report.rows, key.by)))
        return None


def per_value(rows: Iterable[Row], dimension: str) -> list[Row]:
    """`rows`, which may be split further, summed per value of `dimension` over all time."""
    return list(_sums(rows, lambda row: row.group[dimension], lambda row: {dimension: row.group[dimension]}))


def _summed(rows: Iterable[Row], by: Sequence[str]) -> Iterator[Row]:
    """`rows` per bucket and value of these dimensions alone."""

    def group(row: Row) -> dict[str, str | None]:
        return {name: row.group[name] for name in by}

    return _sums(rows, lambda row: (row.bucket.start, *group(row).values()), group)


def _sums(
    rows: Iterable[Row], key: Callable[[Row], object], group: Callable[[Row], dict[str, str | None]]
) -> Iterator[Row]:
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    for alike in found.values():
        whole = alike[0] if len(alike) == 1 else Row.total(alike, alike[0].bucket)
        yield replace(whole, group=group(alike[0]))


class Memory(Generic[T]):
    """The last reading of each of a few keys.

    Who asks for one that is being made waits for it; a failed one is forgotten.

    Args:
        most: How many keys are kept.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[str, Future[T]]] = OrderedDict()

    def get(self, key: Hashable, state: str, make: Callable[[], T]) -> T:
        """The reading called `key` of a ledger in that `state`, made by `make` unless it is the one that is kept."""
        mine = Future[T]()
        with self._lock:
            known, found = self._kept.get(key, ("", mine))
            if known != state:
                found = mine
            self._kept[key] = (state, found)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if found is mine:
            self._fulfil(key, mine, make)
        return found.result()

    def _fulfil(self, key: Hashable, mine: Future[T], make: Callable[[], T]) -> None:
        try:
            mine.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whoever asked raises it
            with self._lock:
                if self._kept.get(key, ("", None))[1] is mine:
                    del self._kept[key]
            mine.set_exception(error)


class Packer:
    """Packs a ledger's sums while nobody asks for anything, in a thread that ends when all are.

    Args:
        store: The ledger; one without kept sums of ours has nothing to be packed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store if isinstance(store, BookStore) else None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._begun: float | None = None  # not money: seconds
        self._asked: float | None = None  # not money: seconds

    def begin(self) -> None:
        """Start a round, unless the last one began within an hour."""
        now = time.monotonic()
        if self._store is not None and (self._begun is None or now >= self._begun + _EVERY):
            self._begun = now
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, args=[self._store], name="tokenmeter-pack", daemon=True)
            self._thread.start()

    def wait_for(self) -> None:
        """Somebody asks, or was answered: nothing is packed for a moment."""
        self._asked = time.monotonic()

    def stop(self) -> None:
        """End a round that is under way."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self._begun = None

    def _run(self, store: BookStore[Any, Any]) -> None:
        try:
            if self._is_quiet():
                store.pack(self._is_ready)
        except StoreError as error:  # reports are read from rows
            _log.debug("The ledger's sums cannot be packed now: %s", error)

    def _is_ready(self) -> bool:
        """Before each few stretches of a large ledger, whose questions are answered with numpy: it is loaded here."""
        import_module("numpy")
        return self._is_quiet()

    def _is_quiet(self) -> bool:
        """Wait until nobody has asked for a moment; False when it is to end."""
        while self._asked is not None and (rest := self._asked + _QUIET - time.monotonic()) > 0:
            if self._stopping.wait(rest):
                break
        return not self._stopping.is_set()
