"""A ledger in this process's memory: for tests and trials. It is gone when the process ends."""

from __future__ import annotations

import bisect
import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, ThresholdCrossing, utcnow
from tokenmeter.stores.base import (
    Aggregate,
    CapReachedError,
    Counter,
    Crossing,
    EntryFilter,
    Health,
    Settlement,
    Verification,
)
from tokenmeter.stores.codec import encode_amounts
from tokenmeter.stores.contexts import context_of
from tokenmeter.stores.documents import Document, Filing, NewDocument, Request, place
from tokenmeter.stores.rollups import Tally, check_boundaries, check_dimensions, matches
from tokenmeter.stores.values import to_microseconds

__all__ = ["MemoryStore"]


@dataclass(slots=True)
class _Balance:
    settled: int = 0
    reserved: int = 0
    reported: set[int] = field(default_factory=set[int])


class MemoryStore:
    """See `tokenmeter.stores.base.Store`. Its lock is held for microseconds, so ``wait`` makes no difference.

    Example:
        >>> MemoryStore().counters([])
        {}
    """

    url = "memory:"

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._dedup_keys: set[str] = set()
        self._order: list[tuple[int, int, str]] = []
        self._balances: dict[CounterKey, _Balance] = {}
        self._holds: dict[str, Reservation] = {}
        self._crossings: list[Crossing] = []
        self._documents: list[Document] = []
        self._secret = os.urandom(32)

    def now(self) -> datetime:
        """This machine's clock."""
        return utcnow()

    def settle(
        self,
        entry: Entry,
        postings: Sequence[Posting] = (),
        *,
        reservation_id: str | None = None,
        only_if_held: bool = False,
        wait: bool = True,  # noqa: ARG002 - the protocol's
    ) -> Settlement:
        """Append `entry`, move the counters, free the hold."""
        encode_amounts(entry)  # what other stores refuse is refused here too
        with self._lock:
            held = reservation_id is not None and self._free(reservation_id)
            repeated = entry.entry_id in self._entries or (
                entry.dedup_key is not None and entry.dedup_key in self._dedup_keys
            )
            if repeated or (only_if_held and not held):
                return Settlement(recorded=False, hold_found=held)
            bisect.insort(self._order, (to_microseconds(entry.occurred_at), len(self._entries), entry.entry_id))
            self._entries[entry.entry_id] = entry
            if entry.dedup_key is not None:
                self._dedup_keys.add(entry.dedup_key)
            crossings = [crossing for posting in postings for crossing in self._post(posting, entry)]
            return Settlement(recorded=True, crossings=tuple(crossings), hold_found=held)

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Append many entries."""
        for entry, _ in batch:
            encode_amounts(entry)  # all or none
        with self._lock:
            return [self.settle(entry, postings) for entry, postings in batch]

    def _post(self, posting: Posting, entry: Entry) -> Iterator[ThresholdCrossing]:
        balance = self._balance(posting.key)
        balance.settled += posting.amount
        for threshold in posting.thresholds:
            if threshold <= balance.settled and threshold not in balance.reported:
                balance.reported.add(threshold)
                self._crossings.append(Crossing(posting.key, threshold, entry.recorded_at, entry.entry_id))
                yield ThresholdCrossing(posting.key, threshold, balance.settled)

    def _balance(self, key: CounterKey) -> _Balance:
        return self._balances.setdefault(key, _Balance())

    def reserve(self, reservation: Reservation, *, wait: bool = True) -> None:  # noqa: ARG002 - the protocol's
        """Hold every claim or none; holding the same reservation again changes nothing."""
        with self._lock:
            if reservation.reservation_id in self._holds:
                return
            held: list[Claim] = []
            for claim in sorted(reservation.claims, key=lambda claim: claim.key):
                balance = self._balance(claim.key)
                if claim.limit is not None and balance.settled + balance.reserved + claim.amount > claim.limit:
                    self._move(held, -1)
                    raise CapReachedError(claim, balance.settled, balance.reserved)
                self._move([claim], 1)
                held.append(claim)
            self._holds[reservation.reservation_id] = reservation

    def _move(self, claims: Sequence[Claim], sign: int) -> None:
        for claim in claims:
            self._balance(claim.key).reserved += sign * claim.amount

    def _free(self, reservation_id: str) -> bool:
        hold = self._holds.pop(reservation_id, None)
        if hold is None:
            return False
        self._move(hold.claims, -1)
        return True

    def release(self, reservation_id: str, *, wait: bool = True) -> bool:  # noqa: ARG002 - the protocol's
        """Free a hold without an entry."""
        with self._lock:
            return self._free(reservation_id)

    def extend(
        self,
        reservation_id: str,
        expires_at: datetime,
        *,
        wait: bool = True,  # noqa: ARG002 - the protocol's
    ) -> bool:
        """Move a hold's expiry."""
        with self._lock:
            hold = self._holds.get(reservation_id)
            if hold is None:
                return False
            self._holds[reservation_id] = replace(hold, expires_at=expires_at)
            return True

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed, oldest first."""
        with self._lock:
            late = sorted(
                (hold for hold in self._holds.values() if hold.expires_at <= now),
                key=lambda hold: (hold.expires_at, hold.reservation_id),
            )
        return late[:limit]

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""
        with self._lock:
            balances = {key: self._balances.get(key) or _Balance() for key in keys}
            return {key: Counter(balance.settled, balance.reserved) for key, balance in balances.items()}

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order."""
        with self._lock:
            state = sorted((key, Counter(b.settled, b.reserved)) for key, b in self._balances.items())
        yield from state

    def set_counters(self, settled: Mapping[CounterKey, int]) -> None:
        """SET the settled amounts."""
        with self._lock:
            for key, amount in settled.items():
                self._balance(key).settled = amount

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Give counters that never moved what their window holds already."""
        with self._lock:
            for key, (amount, _) in settled.items():
                balance = self._balance(key)
                if not (balance.settled or balance.reserved):
                    balance.settled = amount

    def crossings(self, *, limit: int = 100) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first."""
        with self._lock:
            found = sorted(self._crossings, key=lambda one: (one.crossed_at, one.threshold), reverse=True)
        return found[:limit]

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        return self._entries.get(entry_id)

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, as they stood when the iteration began."""
        which = which or EntryFilter()
        check_dimensions(list(which.where))
        with self._lock:
            order = self._within(
                None if which.since is None else to_microseconds(which.since),
                None if which.until is None else to_microseconds(which.until),
            )
        for _, _, entry_id in reversed(order) if newest_first else order:
            entry = self._entries[entry_id]
            if not which.where or matches(entry, which.where):
                yield entry

    def _within(self, since: int | None, until: int | None) -> list[tuple[int, int, str]]:
        first = 0 if since is None else bisect.bisect_left(self._order, (since,))
        last = len(self._order) if until is None else bisect.bisect_left(self._order, (until,))
        return self._order[first:last]

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group."""
        instants = check_boundaries(boundaries)
        tally = Tally(by, (which or EntryFilter()).where)
        for bucket, (start, end) in enumerate(pairwise(instants)):
            with self._lock:
                order = self._within(start, end)
            for _, _, entry_id in order:
                entry = self._entries[entry_id]
                who = entry.attribution
                tally.add_entry(bucket, context_of(entry), encode_amounts(entry), who.end_user, who.tags)
        return tally.result()

    def file(self, draft: NewDocument) -> Filing:
        """File a document once."""
        with self._lock:
            taken = next((d for d in self._documents if (d.kind, d.key) == (draft.kind, draft.key)), None)
            if taken is not None:
                return Filing(taken, recorded=False)
            last = self._documents[-1] if self._documents else None
            document = place(
                draft,
                last=None if last is None else (last.position, last.hash),
                numbered=max((d.number or 0 for d in self._documents if d.series == draft.series), default=0),
                anchor=self.verify().head,
            )
            self._documents.append(document)
            return Filing(document, recorded=True)

    def generation(self) -> int:
        """How many documents of kind ``budget`` there are."""
        with self._lock:
            return sum(document.kind == "budget" for document in self._documents)

    def documents(self, which: Request = Request()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing."""
        with self._lock:
            found = [document for document in self._documents if which.accepts(document)]
        yield from found

    def verify(self) -> Verification:
        """Entries in memory are immutable objects; there is nothing to compare them with."""
        with self._lock:
            head = hashlib.sha256("".join(self._entries).encode()).hexdigest()
            return Verification(len(self._entries), head)

    def health(self) -> Health:
        """How much is in it."""
        with self._lock:
            facts = {"store": "memory", "entries": len(self._entries), "pending_holds": len(self._holds)}
        return Health(facts, ("Everything is lost when this process ends.",))

    def secret(self) -> bytes:
        """Random bytes that live as long as this store."""
        return self._secret

    def close(self) -> None:
        """Nothing to let go of: the content stays readable."""
