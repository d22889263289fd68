"""Room of hot budgets, reserved ahead: calls are held against it in this process, without asking the server."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from tokenmeter.errors import StoreBusyError, StoreError
from tokenmeter.ledger import Claim, CounterKey, Reservation
from tokenmeter.stores.postgres.failures import explain
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.records import Draw
from tokenmeter.stores.postgres.schema import queries

__all__ = ["Leases"]

_SQL = queries()
T = TypeVar("T")
_SECONDS = 60
#: This process stops using a lease so long before the server may give it to others.
_MARGIN = 15.0
_IDLE = 2.0
#: A lease must be good for several calls like the one that asks for it, else that call asks for itself.
_LEAST_CALLS = 4
#: After the server had too little left for a lease, calls ask for themselves for so long.
_RETRY = 0.5


@dataclass(slots=True)
class _Slice:
    """One lease: what is left of it, and what calls in flight hold."""

    lease_id: str
    left: int
    usable_until: float
    used_at: float
    in_flight: int = 0


@dataclass(slots=True)
class _Held:
    claims: list[tuple[CounterKey, _Slice, int]] = field(default_factory=list[tuple[CounterKey, _Slice, int]])


class Leases:
    """Leased parts of counters, by key.

    A lease is reserved on the server before it is used, so a cap is never passed. It is 1/`parts` of what the counter
    has left: large while the cap is far, smaller near it, none at its end, where every call asks the server.

    What a process that dies had leased is free again after a minute; its calls in flight are not known to the server
    and leave no estimated entry. That is the price, and why leases are an option.
    """

    def __init__(self, pool: Pool, parts: int) -> None:
        self._pool = pool
        self._parts = parts
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Start afresh: leases are the parent's."""
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._slices: dict[CounterKey, _Slice] = {}
        self._held: dict[str, _Held] = {}
        self._none_until: dict[CounterKey, float] = {}

    def hold(self, reservation: Reservation, *, wait: bool) -> bool:
        """Hold every claim against leases; False when one of them must be asked for on the server.

        Raises:
            StoreBusyError: ``wait=False`` and a lease must be fetched first.
        """
        claims = [claim for claim in reservation.claims if claim.limit is not None]
        if not claims or len({claim.key for claim in claims}) < len(claims):
            return False
        if not self._lock.acquire(blocking=wait):
            raise StoreBusyError("A lease is being fetched; call again from a thread.")
        try:
            if reservation.reservation_id in self._held:
                return True
            slices = [self._slice(claim, wait=wait) for claim in claims]
            if any(found is None for found in slices):
                return False
            held = _Held()
            for claim, found in zip(claims, slices, strict=True):
                if found is not None:
                    found.left -= claim.amount
                    found.in_flight += claim.amount
                    held.claims.append((claim.key, found, claim.amount))
            self._held[reservation.reservation_id] = held
            return True
        finally:
            self._lock.release()

    def _slice(self, claim: Claim, *, wait: bool) -> _Slice | None:
        """A lease with room for `claim`, fetched if need be. Needs the lock."""
        now = time.monotonic()
        found = self._slices.get(claim.key)
        if found is not None and found.left >= claim.amount and now < found.usable_until:
            found.used_at = now
            return found
        if now < self._none_until.get(claim.key, 0.0):
            return None
        if not wait:
            raise StoreBusyError("A lease must be fetched; call again from a thread.")
        if found is not None:
            del self._slices[claim.key]
            self._give_back(found)
        fetched = self._fetch(claim, now)
        if fetched is None:
            self._none_until[claim.key] = now + _RETRY
        else:
            self._slices[claim.key] = fetched
        return fetched

    def _fetch(self, claim: Claim, now: float) -> _Slice | None:
        key = claim.key
        lease_id = uuid.uuid4().hex
        values = [
            *(lease_id, key.budget, key.scope, key.window_start, claim.window_end, claim.limit, self._parts),
            *(max(1, claim.amount * _LEAST_CALLS), _SECONDS, self._owner),
        ]
        amount = int(self._run(lambda connection, _: _value(connection, "lease", values)) or 0)
        return _Slice(lease_id, amount, now + _SECONDS - _MARGIN, now) if amount else None

    def take(self, reservation_id: str | None) -> tuple[Draw, ...]:
        """What a call held, to be freed with its entry; it is no longer this object's."""
        if reservation_id is None or not self._held:
            return ()
        with self._lock:
            held = self._held.pop(reservation_id, None)
            if held is None:
                return ()
            for _, found, amount in held.claims:
                found.in_flight -= amount
            return tuple((found.lease_id, amount) for _, found, amount in held.claims)

    def put_back(self, draws: Sequence[Draw]) -> None:
        """What was taken was not used: the entry was a repetition."""
        for lease_id, amount in draws:
            self._return(lease_id, amount)

    def knows(self, reservation_id: str) -> bool:
        """Whether a reservation is held here."""
        return reservation_id in self._held

    def release(self, reservation_id: str) -> bool:
        """Free a call's hold; False when it is not held here."""
        if reservation_id not in self._held:
            return False
        with self._lock:
            held = self._held.pop(reservation_id, None)
            for _, found, amount in held.claims if held else ():
                found.in_flight -= amount
                found.left += amount
            return held is not None

    def give_up(self, claims: Sequence[Claim]) -> bool:
        """Give back what is left of the leases on these counters; whether there was any."""
        gave = False
        with self._lock:
            for claim in claims:
                lease = self._slices.get(claim.key)
                if lease is not None:
                    self._none_until[claim.key] = time.monotonic() + _RETRY
                    gave |= self._give_back(lease)
        return gave

    def _give_back(self, lease: _Slice) -> bool:
        left, lease.left = lease.left, 0
        return left > 0 and self._return(lease.lease_id, left)

    def tend(self) -> None:
        """Renew leases that calls are held against, give idle ones back, free those of dead processes."""
        if self._pool.down:
            return
        with self._lock:
            now = time.monotonic()
            for key, lease in list(self._slices.items()):
                if now - lease.used_at > _IDLE or now >= lease.usable_until:
                    self._give_back(lease)
                    del self._slices[key]
            self._renew(now)
            self._none_until = {key: until for key, until in self._none_until.items() if until > now}
        self._run(lambda connection, _: _value(connection, "reclaim_leases", []))

    def _renew(self, now: float) -> None:
        held = {lease.lease_id: lease for hold in self._held.values() for _, lease, _ in hold.claims}
        ageing = held | {lease.lease_id: lease for lease in self._slices.values()}
        ageing = {number: lease for number, lease in ageing.items() if lease.usable_until - now < _SECONDS / 2}
        if not ageing:
            return
        query = [list(ageing), _SECONDS]
        rows = self._run(lambda connection, _: connection.execute(_SQL["renew_leases"], query).fetchall())
        for (lease_id,) in rows:
            ageing[lease_id].usable_until = now + _SECONDS - _MARGIN

    def close(self) -> None:
        """Give everything back that no call is held against."""
        try:
            with self._lock:
                for lease in self._slices.values():
                    self._give_back(lease)
                self._slices.clear()
        except StoreError:
            self._slices.clear()  # the leases expire

    def _return(self, lease_id: str, amount: int) -> bool:
        """Give an amount back. Not tried twice: twice given back would be room for a call too many."""

        def work(connection: Connection[Any], lost: int) -> bool:
            return not lost and bool(_value(connection, "return_lease", [lease_id, amount]))

        return self._run(work)

    def _run(self, work: Callable[[Connection[Any], int], T]) -> T:
        try:
            return self._pool.run(work)
        except psycopg.Error as error:
            raise explain(error, self._pool.address) from error


def _value(connection: Connection[Any], query: str, values: Sequence[Any]) -> Any:
    row = connection.execute(_SQL[query], values).fetchone()
    return row[0] if row else None
