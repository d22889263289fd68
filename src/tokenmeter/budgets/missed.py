"""Budgets of which a process did not know while it recorded calls.

Such calls are in the ledger, and in no counter where somebody else had opened it before they arrived there. A process
counts them in when it hears of a budget; a store to which they come later has whoever brings them count them in.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from tokenmeter.budgets.counting import tally
from tokenmeter.budgets.definitions import InForce, Policy, read_policy
from tokenmeter.budgets.holds import Fault
from tokenmeter.budgets.matching import Cap, scope_text
from tokenmeter.errors import StoreBusyError, StoreError
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import CounterKey
from tokenmeter.pricing import Pricer
from tokenmeter.processes import run_at_exit
from tokenmeter.stores.base import Store
from tokenmeter.stores.slots import to_microseconds

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
        in_force: By what this process counts at this moment.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        fault: Fault,
        *,
        read: Callable[[], object],
        in_force: Callable[[], InForce],
    ) -> None:
        self._store, self._pricer, self._fault, self._read, self._in_force = store, pricer, fault, read, in_force
        self._missed: dict[tuple[str, str], tuple[Cap, Mapping[str, str]]] = {}
        self._has_recorded = False
        self._then = Policy()
        store.policy = self

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
            return
        self._miss(_renamed(before, now))
        if self._has_recorded:
            self.compare(before, now)
            self.count_in()

    def compare(self, before: InForce, now: InForce) -> None:
        """Something was recorded by what was in force before; `count_in` is to see to the rest."""
        if before is not now:
            self._miss(_added(before, now))

    def _miss(self, found: Iterable[tuple[Cap, Mapping[str, str]]]) -> None:
        for cap, scope in found:
            if cap.counts:
                self._missed[cap.counter_name, scope_text(scope)] = cap, scope

    # -- for the store: see `PolicyReader`

    @property
    def heard(self) -> int:
        """Position of the last document of budgets by which this process counts."""
        return self._in_force().policy.position

    def due(self, heard: int, moments: Collection[int]) -> Due:
        """What the counters should hold of the budgets that came after the document at `heard`.

        Raises:
            StoreUnavailableError: the ledger cannot be read.
        """
        try:
            then = read_policy(self._store, self._then if self._then.position <= heard else None, until=heard)
            now = read_policy(self._store, then)
            self._then = then
            if then.revision == now.revision:  # grants leave the caps as they are
                return {}
            names = self._store.key_names()
            new = {key for key, said in now.names.items() if then.names.get(key) != said}
            old = {key: name for key, name in names.items() if key not in new}
            old |= {key: then.names[key][0] for key in new & then.names.keys()}
            before, after = _prepare(then, old), _prepare(now, names)
            found: dict[CounterKey, tuple[int, int | None]] = {}
            for cap, scope in (*_renamed(before, after), *_added(before, after)):
                for start, end in {span for moment in moments for span in cap.spans(moment)} if cap.counts else ():
                    found |= _due(cap, scope, start, end, store=self._store, pricer=self._pricer)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - the entries come into the ledger; `tokenmeter audit` finds the difference
            self._fault("count calls into a new budget", error)
            return {}
        return found

    def count_in(self) -> None:
        """Count in what is missed. Never raises."""
        if not self._missed:
            return
        missed, self._missed = self._missed, {}
        now = to_microseconds(self._store.now())
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
            let_interrupt_through(error)
            log.info("Whether there are new budgets could not be asked: %s", error)


def _prepare(policy: Policy, names: Mapping[str, str]) -> InForce:
    return InForce.of(policy, policy.in_force(), generation=None, applied=True, aliases=lambda: names)


def _added(before: InForce, now: InForce) -> Iterator[tuple[Cap, Mapping[str, str]]]:
    """Limits that were not in force before, each with its scope."""
    for name, cap in now.caps.items():
        if name not in before.caps:
            keys = _keys_called(cap.budget.api_key, now)
            yield from ((cap, {**cap.budget.scope, "api_key": key}) for key in keys)
            if not keys:
                yield cap, cap.budget.scope


def _renamed(before: InForce, now: InForce) -> Iterator[tuple[Cap, Mapping[str, str]]]:
    """Limits of names that keys were given: what a key spent under its other names counts there, too."""
    for cap in now.caps.values():
        for key in _keys_called(cap.budget.api_key, now):
            if (before.names or {}).get(key) != cap.budget.api_key:
                yield cap, {**cap.budget.scope, "api_key": key}


def _keys_called(name: str | None, now: InForce) -> list[str]:
    """Fingerprints of the keys of that name: all that such a key spent counts, however it was called then."""
    return [key for key, called in (now.names or {}).items() if called == name]


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


@run_at_exit
def _finish_all() -> None:
    for missed in list(_LATE):
        missed.finish()
