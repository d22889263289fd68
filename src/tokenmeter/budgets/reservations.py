"""The life of a hold: made before a call, kept while it runs, swept when nobody settles it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tokenmeter.budgets.book import BudgetBook
from tokenmeter.budgets.holds import estimated_entry, observation_of, taken_back, unanswered
from tokenmeter.budgets.opening import open_balances
from tokenmeter.budgets.plan import Plan
from tokenmeter.call import Call
from tokenmeter.errors import StoreBusyError
from tokenmeter.forks import after_fork_in_child
from tokenmeter.ledger import Entry, Reservation, ThresholdCrossing, new_id
from tokenmeter.pricing import Pricer, Rating
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.usage import Observation

__all__ = ["Held", "Reservations"]

_HOST = socket.gethostname()
#: Seconds between two looks for expired holds, and from the first call to the first look.
_SWEEP_EVERY = 60
_FIRST_SWEEP = 5
#: How often a plan is made anew when its counters moved before it was held.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Held:
    """What was held for a call.

    Attributes:
        reservation: The hold.
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
    """

    reservation: Reservation
    inject_max_output_tokens: int | None


class Reservations:
    """Holds in a store, under the budgets of a book.

    Args:
        book: The budgets.
        store: Where holds and counters are.
        pricer: Prices and terms.
        hold_time: How long a call may be in flight before its hold expires.
        rate: Rates the estimate of an expired hold; must not raise.
        fault: Told of faults that must not reach a caller.
    """

    def __init__(
        self,
        book: BudgetBook,
        store: Store,
        pricer: Pricer,
        *,
        hold_time: timedelta,
        rate: Callable[[Observation, Entry, datetime], Rating],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._book = book
        self._store = store
        self._pricer = pricer
        self._hold_time = hold_time
        self._rate = rate
        self._fault = fault
        self._sweep_due = time.monotonic() + _FIRST_SWEEP
        #: Whether new budgets have their opening balance.
        self.opened = not book

    def hold(self, call: Call, at: datetime, *, wait: bool) -> Held | None:
        """Hold what `call` may cost in every hard budget that applies; None when none does.

        Raises:
            BudgetExceededError: a budget has no room; nothing was held.
            StoreBusyError: ``wait=False`` and the store's lock is taken.
            StoreUnavailableError: the store fails.
        """
        self.open(wait=wait)
        self._sweep_sometimes()
        swept, attempt = False, 1
        while True:
            plan = self._book.plan(call, at=at, pricer=self._pricer, store=self._store, inject=attempt > 1)
            if not plan.claims:
                return None
            reservation = self._reservation(plan)
            try:
                self._store.reserve(reservation, wait=wait)
            except CapReachedError as stop:
                if stop.reserved and not swept:
                    swept = True
                    if self._make_room(wait=wait):
                        continue
                if not plan.injectable or attempt == _ATTEMPTS:
                    raise self._book.explain(stop, plan, store=self._store) from None
                attempt += 1
            else:
                return Held(reservation, plan.inject_max_output_tokens)

    def open(self, *, wait: bool) -> None:
        """Give new budgets the balance their window has already, once.

        Raises:
            StoreBusyError: ``wait=False``: the ledger has to be read first.
            StoreUnavailableError: it cannot be read.
        """
        if self.opened:
            return
        if not wait:
            raise StoreBusyError("New budgets have to be looked up in the ledger first; call again from a thread.")
        with _opening:
            if not self.opened:
                open_balances(self._book, self._store, self._pricer, self._store.now())
                self.opened = True

    def extend(self, reservation_id: str) -> None:
        """Give a hold its full time again. Never waits, never raises; a store behind a network is told by a thread."""
        until = self._store.now() + self._hold_time
        try:
            self._store.extend(reservation_id, until, wait=False)
        except StoreBusyError:
            _in_background("extend", lambda: self._quietly("extend a hold", self._store.extend, reservation_id, until))
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            self._fault("extend a hold", error)

    def sweep(self, now: datetime, *, wait: bool = True) -> int:
        """Turn holds that expired before `now` into estimated entries; how many.

        Raises:
            StoreBusyError: ``wait=False`` and the store's lock is taken; what was swept until then stays swept.
            StoreUnavailableError: the store fails.
        """
        swept = 0
        while batch := self._store.expired(now):
            found = sum(self._sweep_one(reservation, wait=wait) for reservation in batch)
            swept += found
            if not found:
                break
        return swept

    def take_back_estimate(self, reservation: Reservation) -> None:
        """After a settlement that found no hold: if it was swept, its estimate now stands beside the true entry."""
        try:
            estimate = self._store.entry(reservation.reservation_id)
            if estimate is not None:
                correction = taken_back(estimate)
                self._store.settle(correction, self._book.postings(correction, self._pricer))
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            self._fault("take back an expired hold's estimate", error)

    def announce(self, crossings: Sequence[ThresholdCrossing]) -> None:
        """Tell of crossed thresholds. Never raises."""
        if crossings:
            self._quietly("announce a crossed threshold", self._book.announce, crossings, self._store)

    def _reservation(self, plan: Plan) -> Reservation:
        return Reservation(
            reservation_id=new_id(),
            claims=plan.claims,
            created_at=plan.at,
            expires_at=plan.at + self._hold_time,
            owner=f"{_HOST}:{os.getpid()}",
            call=unanswered(plan.call, plan.at),
        )

    def _sweep_one(self, reservation: Reservation, *, wait: bool) -> bool:
        call = reservation.call
        rating = self._rate(observation_of(call), call, call.occurred_at)
        entry = estimated_entry(reservation, rating, self._pricer.price_list_hash)
        settlement = self._store.settle(
            entry,
            self._book.postings(entry, self._pricer),
            reservation_id=reservation.reservation_id,
            only_if_held=True,
            wait=wait,
        )
        self.announce(settlement.crossings)
        return settlement.hold_found

    def _make_room(self, *, wait: bool) -> bool:
        try:
            return self.sweep(self._store.now(), wait=wait) > 0
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the cap is reached, whatever the sweep might have found
            self._fault("sweep expired holds", error)
            return False

    def _sweep_sometimes(self) -> None:
        now = time.monotonic()
        if now >= self._sweep_due:
            self._sweep_due = now + _SWEEP_EVERY
            _in_background("sweep", lambda: self._quietly("sweep expired holds", self.sweep, self._store.now()))

    def _quietly(self, what: str, work: Callable[..., object], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self._fault(what, error)


def _in_background(name: str, work: Callable[[], object]) -> None:
    threading.Thread(target=work, name=f"tokenmeter-{name}", daemon=True).start()


_opening = threading.RLock()


@after_fork_in_child
def _renew_lock() -> None:
    global _opening  # noqa: PLW0603 - a lock held by another thread at the fork would never be freed in the child
    _opening = threading.RLock()
