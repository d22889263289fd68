"""Leases: room under caps that this host got of the server, and gives out by itself while holds are many."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import psycopg

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import Claim, CounterKey
from tokenmeter.processes import OnceForAll
from tokenmeter.stores.base import CapReachedError, LockedError
from tokenmeter.stores.effects import NewHold, SlotClaim, Standing, claim_effects
from tokenmeter.stores.live import Live
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.fold import json_text, parts
from tokenmeter.stores.postgres.sessions import ServerRows
from tokenmeter.stores.tail import frame
from tokenmeter.stores.writer import Writer

#: SQLSTATE of our own: a claim does not fit.
_CAP_REACHED = "TMCAP"
_MOST_HELD = 20_000
#: For how long a host spends its leases without hearing of the server, in nanoseconds; `reserve` knows the same.
_LEASE_NS = 2_000_000_000
#: Holds that a lease is to be good for; and how many of a process on a counter, in its time, make one worth while.
_LEASED_HOLDS, _BUSY = 64, 8


class _LeasedError(CapReachedError):
    """The claim would fit if other leases were given back."""

    def __init__(self, stop: CapReachedError) -> None:
        super().__init__(stop.claim, stop.settled, stop.reserved)


class LeasingWriter(Writer, ABC):
    """Writes to the tail of one host, and gives out what the server leased to it. Safe for threads and processes.

    Args:
        book: The server's.
    """

    def __init__(self, book: PostgresBook) -> None:
        self._server = book
        super().__init__(book.path, book)

    def _start(self) -> None:
        super()._start()
        self._holds: dict[str, int] = {}
        self._lessee = False
        self._held: dict[CounterKey, tuple[int, int]] = {}
        self._recalls: dict[CounterKey, OnceForAll] = {}
        self._jams: dict[CounterKey, tuple[float, str]] = {}

    @abstractmethod
    def send(self) -> None:
        """Send what waits, from this thread.

        Raises:
            StoreError: it cannot be sent now; it waits.
        """

    @abstractmethod
    def _write_framed(self, framed: bytes) -> None:
        """Write frames to the tail, and have them sent."""

    # -- on the server

    def _check_jams(self, hold: NewHold, since: float) -> None:
        """Let no call that waited behind another for a connection, or for the tail to be sent, wait as long once more.

        Raises:
            LockedError: since then another waited in vain for one of the same counters.
        """
        for slot, *_ in hold.claims if self._jams else ():
            ended_at, reason = self._jams.get(slot.key, (0.0, ""))
            if ended_at > since:
                raise LockedError(reason)

    def _note_jam(self, hold: NewHold, error: LockedError) -> None:
        if len(self._jams) > _MOST_HELD:
            self._jams.clear()
        self._jams.update((slot.key, (time.monotonic(), str(error))) for slot, *_ in hold.claims)

    def _hold(self, hold: NewHold, since: float) -> None:
        """Hold on the server, which leases this host more of the same where holds are many.

        Raises:
            CapReachedError: something does not fit.
            LockedError: another session has a counter locked; see `_check_jams`.
        """
        claims = hold.claims
        asked = {
            "id": hold.hold_id,
            "expires_at": hold.expires_at,
            "body": hold.record.decode(),
            "claims": [[*parts(slot.key), slot.window_end, amount, limit] for slot, limit, amount in claims],
        }
        lease: dict[str, Any] = {}
        asked_at = time.monotonic_ns()
        if self._is_busy(claims, asked_at) and (live := self._live) is not None:
            lease = {"host": self._server.identity.hex(), "epoch": live.lease[0].hex(), "lease": _LEASED_HOLDS}

        def ask(rows: ServerRows) -> Any:
            try:
                self._check_jams(hold, since)
            except LockedError as error:  # nothing is wrong with the connection
                return error
            return rows.execute("SELECT reserve(?)", (json_text({**asked, **lease}),)).fetchall()[0][0]

        try:
            done = self._server.ask(ask)
        except StoreUnavailableError as error:
            cause = error.__cause__
            if not isinstance(cause, psycopg.Error) or cause.sqlstate != _CAP_REACHED:
                raise
            missed: dict[str, Any] = json.loads(cause.diag.message_detail or "{}")
            slot, limit, amount = claims[int(missed["missed"])]
            claim = Claim(slot.key, limit, amount, slot.window_end)
            stop = CapReachedError(claim, int(missed["settled"]), int(missed["reserved"]))
            raise (_LeasedError(stop) if missed["leased"] else stop) from None
        if isinstance(done, LockedError):
            raise done
        given = [int(amount) for amount in done["leased"]]
        if lease and any(given):
            self._take_lease(bytes.fromhex(lease["epoch"]), asked_at + _LEASE_NS, hold, given)

    # -- from what is leased

    def _is_busy(self, claims: Sequence[SlotClaim], now: int) -> bool:
        """Whether this process holds of every one of these counters so often that leases are worth while."""
        if len(self._held) > _MOST_HELD:
            self._held.clear()
        busy = True
        for slot, *_ in claims:
            since, count = self._held.get(slot.key, (now, 0))
            since, count = (now, 1) if now - since > _LEASE_NS else (since, count + 1)
            self._held[slot.key] = (since, count)
            busy = busy and count > _BUSY
        return busy

    def _spend(self, hold: NewHold) -> bool:
        """Hold out of this host's leases; False where they do not suffice.

        A counter's place in the live file has the room that is left, and the highest limit under which it was given.
        """
        live = self._live
        if live is None or live.lease[1] <= time.monotonic_ns():
            return False

        def work(live: Live) -> bool:
            live = self._place(hold.claims, live)
            epoch, until, latest = live.lease
            if until <= time.monotonic_ns() or hold.expires_at > latest:
                return False
            moved: dict[int, tuple[int, int]] = {}
            for slot, limit, amount in hold.claims:
                place = live.places[slot]
                room, given_under = moved.get(place) or live.read(place)
                if amount > room or limit is None or limit < given_under:
                    return False
                moved[place] = (room - amount, given_under)
            live.dirty = True
            try:
                self._write_framed(frame(hold.record, lease_effects(hold, epoch)))
            except StoreUnavailableError:
                live.dirty = False
                raise
            for place, (room, given_under) in moved.items():
                live.write(place, room, given_under)
            live.dirty = False
            self._holds[hold.hold_id] = hold.expires_at
            return True

        return self._locked(work)

    def _take_lease(self, epoch: bytes, until: int, hold: NewHold, given: Sequence[int]) -> None:
        """Add to what this host may give out. What was given to an epoch that is over goes back with its end."""

        def work(live: Live) -> None:
            live = self._place(hold.claims, live)
            now_epoch, before, latest = live.lease
            if now_epoch != epoch:
                return
            live.dirty = True
            for (slot, limit, _), amount in zip(hold.claims, given, strict=True):
                if amount:
                    place = live.places[slot]
                    room, given_under = live.read(place)
                    live.write(place, room + amount, max(given_under, limit or 0))
            live.renew_lease(max(before, until), max(latest, hold.expires_at + _LEASE_NS // 1000))
            live.dirty = False

        self._lessee = True
        self._locked(work)

    def _until_lapse(self) -> float | None:
        """Seconds until this host has to give back what it leases; None when this process never leased."""
        if not self._lessee:
            return None
        live = self._live
        return 0.0 if live is None else max(0.0, (live.lease[1] - time.monotonic_ns()) / 1e9)

    def _give_back_lapsed(self) -> None:
        self.give_back(lapsed=True)
        self._lessee = self._until_lapse() != 0

    def give_back(self, *, lapsed: bool = False) -> None:
        """Give back what is left of this host's leases.

        An epoch ends when the live file is made anew: no hold is made from its leases any more. Then the tail is sent,
        so that the server knows every one that was, and only then the rest is given back.

        Args:
            lapsed: Only those whose time is over.

        Raises:
            StoreError: the server cannot be asked; they lapse.
        """
        book = self._server
        epochs = {bytes(row[0]) for row in book.fetch("SELECT epoch FROM lessees WHERE host = ?", (book.identity,))}
        current: list[bytes] = []

        def end(live: Live) -> None:
            epoch, until, _ = live.lease
            if epoch in epochs and (not lapsed or until <= time.monotonic_ns()):
                live = self._remake()
                epoch = live.lease[0]
            current.append(epoch)

        self._locked(end)
        if over := epochs - set(current):
            self.send()
            book.fetch("SELECT return_leases(?, ?)", (book.identity, list(over)))

    def _recall(self, stop: CapReachedError, deadline: float) -> bool:
        """After a refusal: have leases come back that would make the claim fit; False when there are none."""
        if not isinstance(stop, _LeasedError) or time.monotonic() > deadline:
            return False
        key = stop.claim.key
        try:
            self._recalls.setdefault(key, OnceForAll()).run(partial(self._recall_of, key))
        finally:
            self._recalls.pop(key, None)
        return True

    def _recall_of(self, key: CounterKey) -> None:
        self.give_back()
        if self._server.fetch("SELECT recall_leases(?, ?, ?)", parts(key))[0][0]:
            time.sleep(0.02)

    def _stand(
        self,
        standing: Standing,  # noqa: ARG002 - see below
        numbers: Sequence[int],  # noqa: ARG002
        floor: int,  # noqa: ARG002
        also: Collection[CounterKey],
    ) -> dict[CounterKey, tuple[int, int]]:
        """A live file that is made anew begins an epoch without leases; those of the one before go back."""
        self._lessee = True
        return dict.fromkeys(also, (0, 0))


def lease_effects(hold: NewHold, epoch: bytes) -> bytes:
    """What making a hold out of leases does."""
    return claim_effects(hold)[:-1] + b',"lease":"%b"}' % epoch.hex().encode()
