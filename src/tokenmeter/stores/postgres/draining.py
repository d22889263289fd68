"""What was left in the spool, by this process or by one that is no more: sent by one drainer per host at a time."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from random import SystemRandom

import psycopg

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.forks import after_fork_in_child
from tokenmeter.stores.postgres.failures import reason_of
from tokenmeter.stores.postgres.leases import Leases
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.shipping import BATCH, Shipping, crossings_of
from tokenmeter.stores.postgres.spool import Spool, SpooledRecord

__all__ = ["Drainer"]

log = logging.getLogger("tokenmeter")

#: Not the program's own `random`, whose sequence is the program's.
_DICE = SystemRandom()
#: A drainer that dies frees its place after this many seconds; one that lives renews it with every batch.
_LEASE_SECONDS = 5
_ROUND_SECONDS = 1.0


class Drainer:
    """Empties the spool, from a thread of its own or from the caller's (`flush`).

    A second drainer would do no harm, as the server takes every entry once; the lease keeps the processes of a host
    from all rushing at a server that has just come back.
    """

    def __init__(self, pool: Pool, spool: Spool, shipping: Shipping, leases: Leases | None) -> None:
        self._pool = pool
        self._leases = leases
        self._spool = spool
        self._shipping = shipping
        self._begin()
        _DRAINERS.add(self)

    def _begin(self) -> None:
        self._holder = uuid.uuid4().hex
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """See that a thread looks after the spool."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._stop = threading.Event()
                self._thread = threading.Thread(
                    target=_drain_until, args=(weakref.ref(self), self._stop), name="tokenmeter-drainer", daemon=True
                )
                self._thread.start()

    def flush(self, timeout: float) -> int:
        """Send what waits in this host's spool, from this thread.

        Args:
            timeout: Seconds after which nothing more is begun; one statement may take a few more.

        Returns:
            How many records are left (of other processes too, and such as are being sent just now).
        """
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(StoreUnavailableError, ConfigurationError):
                self._shipping.confirm()
                self.drain()
            left = self._spool.backlog().records
            if not left or time.monotonic() >= deadline:
                return left
            time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))

    def drain(self) -> None:
        """Send every record whose writer has left it.

        Raises:
            StoreUnavailableError: the server or the spool is away.
        """
        if self._pool.down or not self._spool.exists() or not self._spool.due(1):
            return
        if not self._spool.lease(self._holder, _LEASE_SECONDS):
            return
        try:
            while (records := self._spool.due(BATCH)) and not self._stop.is_set():
                self._forward(records)
                self._spool.lease(self._holder, _LEASE_SECONDS)
        finally:
            self._spool.end_lease(self._holder)

    def tend(self) -> None:
        """One round: the spool and the leases. What fails is tried again in the next."""
        for chore in (self._shipping.confirm, self.drain, *((self._leases.tend,) if self._leases else ())):
            try:
                chore()
            except Exception as error:
                log.debug("The spool or a lease could not be looked after", exc_info=error)

    def _forward(self, records: Sequence[SpooledRecord]) -> None:
        try:
            answer, _ = self._shipping.post([record.body for record in records])
        except psycopg.Error as error:
            if len(records) > 1:  # one of them is refused; each must speak for itself
                for record in records:
                    self._forward([record])
            else:
                self._put_aside(records[0], error)
        else:
            self._shipping.report_later(crossings_of(answer))
            self._spool.remove([record.number for record in records])

    def _put_aside(self, record: SpooledRecord, error: psycopg.Error) -> None:
        self._shipping.refused += 1
        self._spool.refuse(record.number, reason_of(error))
        log.error("The PostgreSQL store refused an entry; it stays in %s: %s", self._spool.path, error)

    def close(self) -> None:
        """Stop the thread. What is left stays in the spool for the next process."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)
        self._begin()

    def after_fork_in_child(self) -> None:
        """Start afresh: the thread and the lease are the parent's."""
        self._begin()
        if self._leases is not None:
            self._leases.after_fork_in_child()


def _drain_until(drainer: weakref.ref[Drainer], stop: threading.Event) -> None:
    """Until stopped or forgotten. No reference is held while it sleeps."""
    while not stop.wait(_DICE.uniform(0.5, 1.0) * _ROUND_SECONDS):
        owner = drainer()
        if owner is None:
            return
        owner.tend()
        del owner


_DRAINERS: weakref.WeakSet[Drainer] = weakref.WeakSet()


@after_fork_in_child
def _after_fork() -> None:
    for drainer in list(_DRAINERS):
        drainer.after_fork_in_child()
