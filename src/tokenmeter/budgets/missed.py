"""Budgets of which a process did not know while it recorded calls: it counts those in when it hears of them.

Such calls are in the ledger, and in no counter where somebody else had opened it before they arrived there.
"""

from __future__ import annotations

import atexit
import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from tokenmeter.budgets.counting import tally
from tokenmeter.budgets.definitions import InForce
from tokenmeter.budgets.holds import Fault
from tokenmeter.budgets.matching import Cap, scope_text
from tokenmeter.budgets.windows import microseconds
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import CounterKey
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import Store

log = logging.getLogger("tokenmeter")

#: For how long a process may not have heard of a budget, and then some; in microseconds.
_UNHEARD_US = 2_000_000

#: Counter -> its settled amount, and its window's end.
Due = Mapping[CounterKey, tuple[int, int | None]]


class MissedBudgets:
    """What one process has to count in.

    Args:
        store: The ledger.
        pricer: For tokens whose price is not known.
        fault: Told of what must not reach a caller.
        read: Reads what is in force, and tells `learn`.
    """

    def __init__(self, store: Store, pricer: Pricer, fault: Fault, read: Callable[[], object]) -> None:
        self._store, self._pricer, self._fault, self._read = store, pricer, fault, read
        self._left_since = store.left_since
        self._missed: dict[tuple[str, str], tuple[Cap, Mapping[str, str]]] = {}
        self._has_recorded = False

    def __bool__(self) -> bool:
        return bool(self._missed)

    def recording(self) -> None:
        """A call is about to be recorded."""
        if not self._has_recorded:
            self._has_recorded = True
            if self._store.hears_late:
                _LATE.add(self)

    def learn(self, before: InForce, now: InForce) -> None:
        """Other budgets are in force than before."""
        if before.generation is None:
            since, self._left_since = self._left_since, None
            if since is not None:  # another process left entries here that it cannot count in any more
                self._miss(cap for cap in now.caps.values() if cap.counted_since_us > since)
            return
        for key, name in (now.names or {}).items():
            if (before.names or {}).get(key) != name:  # what it spent under its other names counts in those of this one
                self._miss((cap for cap in now.caps.values() if cap.budget.api_key == name), api_key=key)
        if self._has_recorded:
            self.compare(before, now)
            self.count_in()

    def compare(self, before: InForce, now: InForce) -> None:
        """Something was recorded by what was in force before; `count_in` is to see to the rest."""
        if before is not now:
            self._miss(cap for name, cap in now.caps.items() if name not in before.caps)

    def _miss(self, caps: Iterable[Cap], **exact: str) -> None:
        for cap in caps:
            if cap.counts:
                scope = {**cap.budget.scope, **exact}
                self._missed[cap.counter_name, scope_text(scope)] = cap, scope

    def count_in(self) -> None:
        """Count in what is missed. Never raises."""
        if not self._missed:
            return
        missed, self._missed = self._missed, {}
        now = microseconds(self._store.now())
        try:
            count_in(missed.values(), (now, now - _UNHEARD_US), store=self._store, pricer=self._pricer)
        except StoreBusyError:  # the next call does it
            self._missed |= missed
        except Exception as error:  # noqa: BLE001 - the entries are recorded; `tokenmeter audit` finds the difference
            self._fault("count calls into a new budget", error)

    def finish(self) -> None:
        """Before this process ends: hear of what is new by now. Never raises."""
        _LATE.discard(self)
        if not (self._has_recorded and self._store.hears_late):
            return
        try:
            self._store.generation(ask=True)
            self._read()
            self.count_in()
        except Exception as error:  # noqa: BLE001 - the entries are recorded
            log.info("Whether there are new budgets could not be asked: %s", error)


def count_in(
    missed: Iterable[tuple[Cap, Mapping[str, str]]], moments: Collection[int], *, store: Store, pricer: Pricer
) -> None:
    """Have counters say what the ledger does, in the windows of `moments` (microseconds since the epoch).

    Args:
        missed: Limits, each with the scope whose counters are meant.
        moments: Of their windows.
        store: The ledger.
        pricer: For tokens whose price is not known.

    Raises:
        StoreBusyError: this thread is in the middle of a change of counters.
        StoreUnavailableError: the ledger cannot be read or written.
    """
    for cap, scope in missed:
        for start, end in {span for moment in moments for span in cap.spans(moment)}:
            count = partial(_due, cap, scope, start, end, store=store, pricer=pricer)
            if not _agree(count(), store, count):
                store.recount(count)


def _due(cap: Cap, scope: Mapping[str, str], start: int, end: int | None, *, store: Store, pricer: Pricer) -> Due:
    """What the counters of one window should hold."""
    sums = tally(cap, scope, start, end, store=store, pricer=pricer)
    return {CounterKey(cap.counter_name, text, start): (amount, end) for text, amount in sums.items()}


def _agree(due: Due, store: Store, count_again: Callable[[], Due]) -> bool:
    """Whether counters are as they are due, by what stood still while it was looked at."""
    standing = store.counters(list(due))
    return all(standing[key].settled == amount for key, (amount, _) in due.items()) and count_again() == due


#: Of ledgers that tell a process of new budgets after a while only.
_LATE: weakref.WeakSet[MissedBudgets] = weakref.WeakSet()


@atexit.register
def _finish_all() -> None:
    for missed in list(_LATE):
        missed.finish()
