"""Counters and holds inside one transaction: read once, changed in Python's integers, written once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, ThresholdCrossing
from tokenmeter.stores.base import CapReachedError, Counter
from tokenmeter.stores.codec import decode_claims
from tokenmeter.stores.migrations import queries
from tokenmeter.stores.session import Session
from tokenmeter.stores.values import to_microseconds

__all__ = ["Balances", "take_hold"]

_SQL = queries()


@dataclass(slots=True)
class _Balance:
    settled: int
    reserved: int
    window_end: int | None = None


class Balances:
    """The counters that one transaction touches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._balances: dict[CounterKey, _Balance] = {}

    def _balance(self, key: CounterKey) -> _Balance:
        balance = self._balances.get(key)
        if balance is None:
            row = self._session.connection.execute(
                _SQL["counter"], (key.budget, key.scope, key.window_start)
            ).fetchone()
            balance = self._balances[key] = _Balance(int(row[0]), int(row[1])) if row else _Balance(0, 0)
        return balance

    def hold(self, claims: Sequence[Claim]) -> None:
        """Reserve every claim, in key order.

        Raises:
            CapReachedError: one does not fit; roll the transaction back.
        """
        for claim in sorted(claims, key=lambda claim: claim.key):
            balance = self._balance(claim.key)
            if claim.limit is not None and balance.settled + balance.reserved + claim.amount > claim.limit:
                raise CapReachedError(claim, balance.settled, balance.reserved)
            balance.reserved += claim.amount
            balance.window_end = claim.window_end

    def free(self, claims: Sequence[Claim]) -> None:
        """Give back what `claims` reserved."""
        for claim in claims:
            self._balance(claim.key).reserved -= claim.amount

    def post(self, postings: Sequence[Posting], entry: Entry) -> tuple[ThresholdCrossing, ...]:
        """Add what `entry` posts to the settled amounts; thresholds nobody has reported yet are reported now."""
        return tuple(crossing for posting in postings for crossing in self._post(posting, entry))

    def _post(self, posting: Posting, entry: Entry) -> Iterator[ThresholdCrossing]:
        balance = self._balance(posting.key)
        balance.settled += posting.amount
        balance.window_end = posting.window_end
        for threshold in posting.thresholds:
            if threshold <= balance.settled and self._first_to_report(posting.key, threshold, entry):
                yield ThresholdCrossing(posting.key, threshold, balance.settled)

    def _first_to_report(self, key: CounterKey, threshold: int, entry: Entry) -> bool:
        place = (key.budget, key.scope, key.window_start, threshold)
        if place in self._session.crossings:
            return False
        values = (*place[:3], str(threshold), to_microseconds(entry.recorded_at), entry.entry_id)
        added = self._session.connection.execute(_SQL["add_crossing"], values).rowcount
        if not added:  # by an earlier transaction, perhaps another process's: that stays so
            self._session.crossings.add(place)
        return bool(added)

    def set_settled(self, key: CounterKey, amount: int) -> None:
        """Replace the settled amount."""
        self._balance(key).settled = amount

    def open(self, key: CounterKey, amount: int, window_end: int | None) -> None:
        """Set the settled amount of a counter that never moved."""
        balance = self._balance(key)
        if not (balance.settled or balance.reserved):
            balance.settled, balance.window_end = amount, window_end

    def state(self, key: CounterKey) -> Counter:
        """What the counter holds now."""
        balance = self._balance(key)
        return Counter(balance.settled, balance.reserved)

    def write(self) -> None:
        """Write every counter that was touched."""
        if not self._balances:
            return
        self._session.connection.executemany(
            _SQL["set_counter"],
            [
                (key.budget, key.scope, key.window_start, b.window_end, str(b.settled), str(b.reserved))
                for key, b in self._balances.items()
            ],
        )


def take_hold(session: Session, reservation_id: str) -> tuple[Claim, ...] | None:
    """Remove a hold's row; its claims, or None when there is no such hold."""
    row = session.connection.execute(_SQL["hold"], (reservation_id,)).fetchone()
    if row is None:
        return None
    session.connection.execute(_SQL["remove_hold"], (reservation_id,))
    return decode_claims(row[0])
