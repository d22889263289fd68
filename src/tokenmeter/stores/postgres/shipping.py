"""The way of an entry to the server: spooled, sent with whoever else is waiting, forgotten once it is stored."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from random import SystemRandom
from typing import Any

import psycopg
from psycopg import Connection

from tokenmeter.errors import StoreError, StoreUnavailableError
from tokenmeter.forks import after_fork_in_child
from tokenmeter.ledger import CounterKey, ThresholdCrossing
from tokenmeter.stores.base import Settlement
from tokenmeter.stores.postgres.failures import explain, is_refusal, reason_of
from tokenmeter.stores.postgres.pool import Pool, Seat
from tokenmeter.stores.postgres.records import Record, batch_text
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.postgres.spool import OWN_SECONDS, Spool
from tokenmeter.stores.postgres.unflushed import Unflushed

__all__ = ["BATCH", "STRIPES", "RefusedError", "Shipping", "crossings_of"]

log = logging.getLogger("tokenmeter")

_SQL = queries()
#: Not the program's own `random`, whose sequence is the program's.
_DICE = SystemRandom()
#: Writers are spread over this many hash chains and sets of sums, so that they need not wait for each other.
STRIPES = 16
BATCH = 500
_CONFIRM_SECONDS = 1.0


class RefusedError(StoreError):
    """The server refused an entry for its content; it is kept in the spool."""


class _Ticket:
    """One record that a thread waits for."""

    __slots__ = ("_added_at", "done", "error", "number", "record", "settlement")

    def __init__(self, record: Record, number: int | None) -> None:
        self.record = record
        self.number = number
        self.done = False
        self.settlement: Settlement | None = None
        self.error: Exception | None = None
        self._added_at = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the drainer may have sent it, too."""
        return time.monotonic() - self._added_at > OWN_SECONDS - 1


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
        self._stripe = _DICE.randrange(STRIPES)
        self._turn = threading.Lock()
        self._mutex = threading.Lock()
        self._waiting: deque[_Ticket] = deque()
        self._late_crossings: list[ThresholdCrossing] = []
        self._unflushed = Unflushed(self._spool)

    # -- one settlement

    def settle(self, record: Record) -> Settlement:
        """Acknowledge `record`: stored on the server or, while that is away, kept in the spool.

        Raises:
            StoreUnavailableError: neither the server nor the spool took it.
            RefusedError: the server refused its content.
        """
        away = self._pool.down
        number, trouble = self._keep(record, away=away)
        if not away:
            ticket = _Ticket(record, number)
            self._send(ticket)
            if ticket.settlement is not None:
                return self._with_late_crossings(ticket.settlement)
            if isinstance(ticket.error, RefusedError):
                raise ticket.error
            trouble = trouble or ticket.error
        if number is None:
            raise StoreUnavailableError(
                f"Neither the PostgreSQL store {self._pool.address.url} nor the spool {self._spool.path} took the "
                "entry; it is not recorded. Bring the server back, or make room for the spool (spool= and spool_mb= "
                "in the URL)."
            ) from trouble
        if not away:
            with contextlib.suppress(StoreError):
                self._spool.leave([number])
        with self._mutex:
            self.spooled += 1
        return self._with_late_crossings(Settlement(recorded=True, hold_found=record.reservation_id is not None))

    def send_now(self, record: Record) -> Settlement:
        """Store `record` on the server or not at all.

        Raises:
            StoreUnavailableError: the server is away.
        """
        return self.send_all([record])[0]

    def send_all(self, records: Sequence[Record]) -> list[Settlement]:
        """Store `records` on the server, `BATCH` of them at a time.

        Raises:
            StoreUnavailableError: the server is away.
            RefusedError: the server refused one of them for its content.
        """
        tickets = [_Ticket(record, None) for record in records]
        self._send(*tickets)
        return [_settled(ticket) for ticket in tickets]

    def _keep(self, record: Record, *, away: bool) -> tuple[int | None, Exception | None]:
        try:
            return self._spool.add(record.body, due=away), None
        except StoreError as error:  # a full or read-only disk: the server alone must take the entry
            return None, error

    def _send(self, *tickets: _Ticket) -> None:
        """Send the tickets, alone or in somebody's batch. Whoever gets the turn sends for all that wait."""
        with self._mutex:
            self._waiting.extend(tickets)
        for ticket in tickets:
            while not ticket.done:
                with self._turn:
                    if not ticket.done:
                        self._ship(self._next_batch())

    def _next_batch(self) -> list[_Ticket]:
        batch: list[_Ticket] = []
        seen: set[str] = set()
        with self._mutex:
            while self._waiting and len(batch) < BATCH and self._waiting[0].record.entry_id not in seen:
                ticket = self._waiting.popleft()
                seen.add(ticket.record.entry_id)
                batch.append(ticket)
        return batch

    def _ship(self, batch: Sequence[_Ticket]) -> None:
        # Behind a pooler nobody can tell how far the server's log is flushed: the next answer may be another process's.
        kept = not self._pool.pooled and all(ticket.number is not None for ticket in batch)
        try:
            answer, again = self.post([ticket.record.body for ticket in batch], kept=kept, seat=self._unflushed.seat)
        except psycopg.Error as error:
            if len(batch) > 1:  # one of them is refused; each must speak for itself
                for ticket in batch:
                    self._ship([ticket])
                return
            self._put_aside(batch[0], error)
        except BaseException as error:
            for ticket in batch:
                ticket.error = error if isinstance(error, Exception) else StoreUnavailableError(repr(error))
                ticket.done = True
            if not isinstance(error, Exception):
                raise
        else:
            self._unflushed.learn(answer["log"])
            self._hand_out(batch, answer, again=again)
            numbers = [ticket.number for ticket in batch if ticket.number is not None]
            if kept:
                self._unflushed.add(numbers)
            else:
                self._unflushed.forget(numbers)

    def post(
        self, bodies: Sequence[str], *, kept: bool = False, seat: Seat | None = None
    ) -> tuple[dict[str, Any], bool]:
        """Store records; the server's answer, and whether an earlier attempt may have been stored unseen.

        Args:
            bodies: The records.
            kept: The caller keeps them until the server has flushed them; it need not wait for its disk.
            seat: On whose connection.

        Raises:
            StoreUnavailableError: the server is away or not set up; sending again is safe.
            psycopg.Error: the server refused one of them for its content; none was stored.
        """
        text = batch_text(bodies, stripe=self._stripe, kept=kept)

        def work(connection: Connection[Any], lost: int) -> tuple[dict[str, Any], bool]:
            row = connection.execute(_SQL["settle"], [text]).fetchone()
            return (row[0] if row else {}), lost > 0

        try:
            return self._pool.run(work, seat=seat)
        except psycopg.Error as error:
            if is_refusal(error):
                raise
            raise explain(error, self._pool.address) from error  # no schema, no right: that can be put right

    def _hand_out(self, batch: Sequence[_Ticket], answer: dict[str, Any], *, again: bool) -> None:
        recorded = set(answer["recorded"])
        known = set(answer["known"])
        held = set(answer["held"])
        crossings = crossings_of(answer)
        for place, ticket in enumerate(batch):
            if place in known and (again or ticket.overdue):
                recorded.add(place)  # by our own earlier attempt or by the drainer, which left us no answer
            own = tuple(crossing for crossing in crossings if crossing.key in ticket.record.keys and place in recorded)
            crossings = [crossing for crossing in crossings if crossing not in own]
            ticket.settlement = Settlement(
                recorded=place in recorded, crossings=own, hold_found=ticket.record.reservation_id in held
            )
            ticket.done = True
        self.report_later(crossings)

    # -- what the server has, but perhaps not on its disk

    def confirm(self) -> bool:
        """Ask how far the server has flushed, and forget what that covers; whether anything is left unconfirmed.

        Raises:
            StoreUnavailableError: the server is away.
        """
        if self._unflushed and not self._pool.down:
            with self._turn:
                self._unflushed.ask(self._pool)
        return bool(self._unflushed)

    def close(self) -> None:
        """Wait for what is unconfirmed (for a moment at most), then let go of the connection."""
        deadline = time.monotonic() + _CONFIRM_SECONDS
        with contextlib.suppress(StoreError):
            while self.confirm() and time.monotonic() < deadline:
                time.sleep(0.02)
        with self._turn:
            self._unflushed.send_again()
            self._pool.vacate(self._unflushed.seat)

    def report_later(self, crossings: Sequence[ThresholdCrossing]) -> None:
        """Thresholds crossed by an entry that nobody waits for are reported with the next settlement."""
        with self._mutex:
            self._late_crossings += crossings

    def _put_aside(self, ticket: _Ticket, error: psycopg.Error) -> None:
        reason = reason_of(error)
        self.refused += 1
        if ticket.number is not None:
            with contextlib.suppress(StoreError):
                self._spool.refuse(ticket.number, reason)
        ticket.error = RefusedError(
            f"The PostgreSQL store refused an entry: {reason}. It is kept in {self._spool.path}; "
            "`tokenmeter doctor` shows it."
        )
        ticket.error.__cause__ = error
        ticket.done = True

    def _with_late_crossings(self, settlement: Settlement) -> Settlement:
        if not self._late_crossings:
            return settlement
        with self._mutex:
            late, self._late_crossings = self._late_crossings, []
        return Settlement(
            recorded=settlement.recorded,
            crossings=(*settlement.crossings, *late),
            hold_found=settlement.hold_found,
        )

    def after_fork_in_child(self) -> None:
        """Start afresh: the tickets are the parent's."""
        self._begin()
        self._spool.after_fork_in_child()


def _settled(ticket: _Ticket) -> Settlement:
    if ticket.settlement is None:
        raise ticket.error or StoreUnavailableError("The entry was not sent.")
    return ticket.settlement


def crossings_of(answer: dict[str, Any]) -> list[ThresholdCrossing]:
    """The thresholds that the server's answer reports."""
    return [
        ThresholdCrossing(CounterKey(budget, scope, window_start), int(threshold), int(settled))
        for budget, scope, window_start, threshold, settled in answer["crossings"]
    ]


_SHIPPINGS: weakref.WeakSet[Shipping] = weakref.WeakSet()


@after_fork_in_child
def _after_fork() -> None:
    for shipping in list(_SHIPPINGS):
        shipping.after_fork_in_child()
