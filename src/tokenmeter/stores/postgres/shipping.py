"""The way of an entry to the server: spooled, sent with whoever else is waiting, forgotten once it is stored."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import Connection

from tokenmeter.errors import StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.stores.base import Settlement
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.records import Record, batch_text
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.spool import Spool, SpooledRecord

__all__ = ["STRIPES", "Shipping"]

log = logging.getLogger("tokenmeter")

_SQL = queries()
#: Writers are spread over this many hash chains and sets of sums, so that they need not wait for each other.
STRIPES = 16
_BATCH = 500
_LEASE_SECONDS = 60
_DRAIN_SECONDS = 1.0


class _Ticket:
    """One record that a thread waits for."""

    __slots__ = ("done", "error", "number", "record", "settlement")

    def __init__(self, record: Record, number: int | None) -> None:
        self.record = record
        self.number = number
        self.done = False
        self.settlement: Settlement | None = None
        self.error: Exception | None = None


class Shipping:
    """Sends records to the server, each exactly once, in batches that form by themselves under load.

    Attributes:
        spooled: Entries of this process that were left to the drainer because the server was away.
        refused: Entries that the server refused for their content.
    """

    def __init__(self, pool: Pool, spool: Spool) -> None:
        self._pool = pool
        self._spool = spool
        self.spooled = 0
        self.refused = 0
        self._begin()
        _SHIPPINGS.add(self)

    def _begin(self) -> None:
        self._holder = uuid.uuid4().hex
        self._stripe = random.randrange(STRIPES)  # noqa: S311 - spreads writers
        self._turn = threading.Lock()
        self._mutex = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._late_crossings: list[ThresholdCrossing] = []
        self._stop = threading.Event()
        self._drainer: threading.Thread | None = None

    # -- one settlement

    def settle(self, record: Record) -> Settlement:
        """Acknowledge `record`: stored on the server or, while that is away, kept in the spool.

        Raises:
            StoreUnavailableError: neither the server nor the spool took it.
            StoreError: the server refused its content.
        """
        number, trouble = self._keep(record)
        self._start_drainer()
        if not self._pool.down:
            ticket = _Ticket(record, number)
            self._send(ticket)
            if ticket.settlement is not None:
                return self._with_late_crossings(ticket.settlement)
            if ticket.error is not None and not isinstance(ticket.error, StoreUnavailableError):
                raise ticket.error
            trouble = trouble or ticket.error
        if number is None:
            raise StoreUnavailableError(
                f"Neither the PostgreSQL store {self._pool.address.url} nor the spool {self._spool.path} took the entry; "
                "it is not recorded. Bring the server back, or make room for the spool (spool_mb= and spool= in the URL)."
            ) from trouble
        with contextlib.suppress(StoreError):
            self._spool.leave([number])
        with self._mutex:
            self.spooled += 1
        return self._with_late_crossings(
            Settlement(recorded=True, hold_found=record.reservation_id is not None)
        )

    def send_now(self, record: Record) -> Settlement:
        """Store `record` on the server or not at all.

        Raises:
            StoreUnavailableError: the server is away.
        """
        ticket = _Ticket(record, None)
        self._send(ticket)
        if ticket.settlement is None:
            raise ticket.error or StoreUnavailableError("The entry was not sent.")
        return ticket.settlement

    def _keep(self, record: Record) -> tuple[int | None, Exception | None]:
        try:
            return self._spool.add(record.body), None
        except StoreError as error:  # a full or read-only disk: the server alone must take the entry
            return None, error

    def _send(self, ticket: _Ticket) -> None:
        """Send the ticket, alone or in somebody's batch. Whoever gets the turn sends for all that wait."""
        with self._mutex:
            self._waiting.append(ticket)
        while not ticket.done:
            with self._turn:
                if not ticket.done:
                    self._ship(self._next_batch())

    def _next_batch(self) -> list[_Ticket]:
        batch: list[_Ticket] = []
        seen: set[str] = set()
        with self._mutex:
            while self._waiting and len(batch) < _BATCH and self._waiting[0].record.entry_id not in seen:
                ticket = self._waiting.popleft()
                seen.add(ticket.record.entry_id)
                batch.append(ticket)
        return batch

    def _ship(self, batch: Sequence[_Ticket]) -> None:
        try:
            answer, again = self._post([ticket.record.body for ticket in batch])
        except psycopg.Error as error:
            if len(batch) > 1:  # one of them is refused; each must speak for itself
                for ticket in batch:
                    self._ship([ticket])
                return
            self._put_aside(batch[0], error)
        except BaseException as error:  # noqa: BLE001 - every waiting thread must learn of it
            for ticket in batch:
                ticket.error = error if isinstance(error, Exception) else StoreUnavailableError(repr(error))
                ticket.done = True
            if not isinstance(error, Exception):
                raise
        else:
            self._hand_out(batch, answer, again=again)

    def _post(self, bodies: Sequence[str]) -> tuple[dict[str, Any], bool]:
        """The server's answer, and whether an earlier attempt may have been stored unseen."""
        text = batch_text(bodies, stripe=self._stripe)

        def work(connection: Connection[Any], attempt: int) -> tuple[dict[str, Any], bool]:
            row = connection.execute(_SQL["settle"], [text]).fetchone()
            return (row[0] if row else {}), attempt > 0

        return self._pool.run(work)

    def _hand_out(self, batch: Sequence[_Ticket], answer: dict[str, Any], *, again: bool) -> None:
        recorded = set(answer["recorded"])
        if again:  # the first attempt's answer was lost: what is known now was recorded by it
            recorded |= set(answer["known"])
        held = set(answer["held"])
        crossings = [_crossing(row) for row in answer["crossings"]]
        numbers = [ticket.number for ticket in batch if ticket.number is not None]
        with contextlib.suppress(StoreError):  # sent again later, it changes nothing
            self._spool.remove(numbers)
        for place, ticket in enumerate(batch):
            own = tuple(crossing for crossing in crossings if crossing.key in ticket.record.keys and place in recorded)
            crossings = [crossing for crossing in crossings if crossing not in own]
            ticket.settlement = Settlement(
                recorded=place in recorded, crossings=own, hold_found=ticket.record.reservation_id in held
            )
            ticket.done = True
        with self._mutex:
            self._late_crossings += crossings

    def _put_aside(self, ticket: _Ticket, error: psycopg.Error) -> None:
        reason = str(error).strip().splitlines()[0]
        self.refused += 1
        if ticket.number is not None:
            with contextlib.suppress(StoreError):
                self._spool.refuse(ticket.number, reason)
        refusal = StoreError(
            f"The PostgreSQL store refused an entry: {reason}. It is kept in {self._spool.path}; see `tokenmeter doctor`."
        )
        refusal.__cause__ = error
        ticket.error = refusal
        ticket.done = True

    def _with_late_crossings(self, settlement: Settlement) -> Settlement:
        """Thresholds crossed by entries that went through the spool are reported with the next settlement."""
        if not self._late_crossings:
            return settlement
        with self._mutex:
            late, self._late_crossings = self._late_crossings, []
        return Settlement(
            recorded=settlement.recorded,
            crossings=(*settlement.crossings, *late),
            hold_found=settlement.hold_found,
        )

    # -- what was left behind

    def flush(self, timeout: float) -> int:
        """Send what waits in this host's spool, from this thread.

        Args:
            timeout: Most seconds to take.

        Returns:
            How many records are left (of other processes too, and such as are being sent just now).
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(StoreUnavailableError):
                self._drain()
            left = self._spool.backlog().records
            if not left or time.monotonic() >= deadline:
                return left
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))

    def _drain(self) -> None:
        """Send every record whose writer has left it; one drainer per spool at a time."""
        if self._pool.down or not self._spool.due(1) or not self._spool.lease(self._holder, _LEASE_SECONDS):
            return
        try:
            while records := self._spool.due(_BATCH):
                self._forward(records)
                self._spool.lease(self._holder, _LEASE_SECONDS)
        finally:
            self._spool.end_lease(self._holder)

    def _forward(self, records: Sequence[SpooledRecord]) -> None:
        try:
            answer, _ = self._post([record.body for record in records])
        except psycopg.Error as error:
            if len(records) > 1:
                for record in records:
                    self._forward([record])
                return
            self.refused += 1
            self._spool.refuse(records[0].number, str(error).strip().splitlines()[0])
            log.error("The PostgreSQL store refused a spooled entry; it stays in %s", self._spool.path, exc_info=error)
            return
        with self._mutex:
            self._late_crossings += [_crossing(row) for row in answer["crossings"]]
        self._spool.remove([record.number for record in records])

    def _start_drainer(self) -> None:
        if self._drainer is not None and self._drainer.is_alive():
            return
        with self._mutex:
            if self._drainer is None or not self._drainer.is_alive():
                self._stop.clear()
                self._drainer = threading.Thread(
                    target=_drain_for_ever, args=(weakref.ref(self), self._stop), name="tokenmeter-drainer", daemon=True
                )
                self._drainer.start()

    def tend(self) -> None:
        """One round of the drainer's; never raises."""
        try:
            self._drain()
        except Exception as error:  # noqa: BLE001 - tried again next round; the records stay where they are
            log.debug("The spool could not be drained", exc_info=error)

    # -- life

    def close(self) -> None:
        """Stop the drainer. What is left stays in the spool for the next process."""
        self._stop.set()
        drainer = self._drainer
        if drainer is not None and drainer is not threading.current_thread():
            drainer.join(timeout=5)
        self._drainer = None

    def after_fork_in_child(self) -> None:
        """Start afresh: the threads and the tickets are the parent's."""
        self._begin()
        self._spool.after_fork_in_child()


def _drain_for_ever(shipping: weakref.ref[Shipping], stop: threading.Event) -> None:
    """Until stopped or forgotten. It holds no reference to its owner while it sleeps."""
    while not stop.wait(random.uniform(0.5, 1.0) * _DRAIN_SECONDS):  # noqa: S311 - jitter
        owner = shipping()
        if owner is None:
            return
        owner.tend()
        del owner


def _crossing(row: Sequence[Any]) -> ThresholdCrossing:
    budget, scope, window_start, threshold, settled = row
    return ThresholdCrossing(CounterKey(budget, scope, window_start), int(threshold), int(settled))


_SHIPPINGS: weakref.WeakSet[Shipping] = weakref.WeakSet()


def _after_fork() -> None:
    for shipping in list(_SHIPPINGS):
        shipping.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork)
