"""A journal without a tail: each record goes into the book in a transaction of its own.

For places where a tail and live counters cannot be shared safely: network file systems, where several machines may
write, and Windows, which has no shared locks on files. The same promises, more slowly.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tokenmeter.errors import StoreBusyError, StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.processes import HURRY, is_on_event_loop, process_name, run_at_once
from tokenmeter.stores.base import Counter
from tokenmeter.stores.effects import (
    Book,
    HoldGoneError,
    NewHold,
    OutdatedError,
    Post,
    Posted,
    Shared,
    claim_effects,
    extend_effects,
    refuse,
    settle_effects,
)
from tokenmeter.stores.encoding import quoted
from tokenmeter.stores.tail import OwnSegment, frame
from tokenmeter.stores.urls import unwritable

T = TypeVar("T")

#: Seconds for which a generation is taken to be the same.
_LOOK_EVERY = 1


class Transaction(Protocol):
    """One write transaction of a book."""

    def put(self, record: bytes, effects: bytes = b"") -> None:
        """Take a record into the book."""
        ...

    def counter(self, key: CounterKey) -> Counter:
        """Where a counter stood when the transaction began."""
        ...

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        """Claims of an open hold."""
        ...

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        """Whether the entry or its bill is there."""
        ...


class DirectBook(Book, Protocol):
    """A book that takes records in without a tail."""

    path: Path

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one transaction."""
        ...

    def count_changes(self) -> int:
        """A number that grows with every definition of a budget."""
        ...

    def file(self) -> tuple[int, int]:
        """See `tokenmeter.stores.effects.Book`."""
        ...


class DirectJournal(Shared):
    """See `tokenmeter.stores.journal.Journal`, whose methods these are.

    Args:
        book: The engine.
    """

    def __init__(self, book: DirectBook) -> None:
        super().__init__(book.find_name, self._define)
        self._book = book
        self._generation, self._renewals = 0, 0
        #: For which renewal it was looked up, and when: one value, since another thread may look at the same time.
        self._looked = (-1, 0)
        #: The file that definitions were made in, and how often another took its place.
        self._file, self._replaced = book.file(), 0
        #: What calls record after the ledger went elsewhere.
        self._beside: OwnSegment | None = None

    def _define(self, records: Sequence[bytes]) -> None:
        def work(transaction: Transaction) -> None:
            for record in records:
                transaction.put(record)

        self._put(work, None, b"".join(map(frame, records)))

    def _put(self, work: Callable[[Transaction], T], instead: T, framed: bytes) -> T:
        """Run `work` in a transaction. Of a ledger that went elsewhere what it is to take waits beside it.

        Args:
            work: Puts records.
            instead: What there is to say where these wait, as `framed`.
            framed: The same as frames.

        Raises:
            StoreUnavailableError: they cannot be written anywhere.
        """
        try:
            return self._book.transact(work)
        except StoreUnavailableError as error:
            if self._book.moved() is None:
                raise
            try:
                if self._beside is None:
                    after = self._book.stand(lambda standing: max(standing.places, default=0))
                    self._beside = OwnSegment(self._book.path, self._book.identity, after)
                self._beside.append(framed)
            except OSError as failure:
                raise unwritable(self._book.path, failure) from error
            self._book.trouble.failed(error)
            return instead

    @property
    def owner(self) -> bytes:  # type: ignore[override]
        """See `Shared`."""
        return quoted(process_name())

    @property
    def generation(self) -> int:
        """Changes when a plan may be out of date: at once when the file was replaced; else looked up once a second.

        On an event loop as far as it is known, where somebody writes at this moment: whatever goes by it is checked
        once more in the transaction that it ends in.

        Raises:
            StoreBusyError: it has to be looked up, and this thread must not wait.
        """
        if HURRY.on or not is_on_event_loop():
            return self._look()
        try:
            return run_at_once(self._look)
        except StoreBusyError:
            return self._generation

    def _look(self) -> int:
        file = self._file
        with contextlib.suppress(StoreUnavailableError):  # it is gone: whoever reads or writes is told
            file = self._book.file()
        if file != self._file:
            self._file, self._replaced = file, self._replaced + 1
            self.renew_generation()
        now, renewal = time.monotonic_ns() // 1_000_000_000, self._renewals
        looked_for, looked_at = self._looked
        if looked_for != renewal or now - looked_at >= _LOOK_EVERY:
            # It only grows: who is slower and looked before others knows less.
            counted = max(self._generation, self._book.count_changes() + (self._replaced << 32))
            if counted != self._generation:
                self.definitions.forget()  # a name may have been erased
                self._generation = counted
            self._looked = (renewal, now)
        return self._generation

    def _check(self, generation: int | None) -> None:
        if generation is not None and generation != self._look():
            raise OutdatedError

    def renew_generation(self) -> None:
        """Look at once."""
        self.definitions.forget()
        self._renewals += 1

    def append(self, record: bytes, *, generation: int | None = None) -> None:
        """Write an entry's record."""
        self._check(generation)
        self._put(lambda transaction: transaction.put(record), None, frame(record))

    def reserve(self, hold: NewHold, *, generation: int | None = None) -> None:
        """Hold every claim or none."""
        self._check(generation)

        def work(transaction: Transaction) -> None:
            held: dict[CounterKey, int] = {}
            for slot, limit, amount in hold.claims:
                counter, before = transaction.counter(slot.key), held.get(slot.key, 0)
                if limit is not None and counter.settled + counter.reserved + before + amount > limit:
                    refuse(slot, limit, amount, counter.settled, counter.reserved + before)
                held[slot.key] = before + amount
            transaction.put(hold.record, claim_effects(hold))

        self._book.transact(work)

    def settle(
        self,
        record: bytes,
        posts: Sequence[Post] = (),
        hold_id: str | None = None,
        *,
        generation: int | None = None,
    ) -> tuple[Post, ...]:
        """Write an entry's record, free its hold and move the counters."""
        self._check(generation)

        def work(transaction: Transaction) -> tuple[Post, ...]:
            if hold_id is not None and transaction.hold(hold_id) is None:
                raise HoldGoneError(hold_id)
            reached = _reached(transaction, posts)
            transaction.put(record, settle_effects(hold_id, posts))
            return reached

        nothing: tuple[Post, ...] = ()
        reached = self._put(work, nothing, frame(record, settle_effects(None, posts)))
        return tuple(one for one in reached if one[1] >= one[0].alert_at)

    def release(self, hold_id: str) -> bool:
        """Free a hold without an entry; False when there is none."""
        return self._on_hold(hold_id, settle_effects(hold_id, ()))

    def extend(self, hold_id: str, expires_at: int) -> bool:
        """Move a hold's expiry; False when there is none."""
        return self._on_hold(hold_id, extend_effects(hold_id, expires_at))

    def note(self, hold_id: str, effects: bytes) -> bool:
        """See `Shared`."""
        return self._on_hold(hold_id, effects)

    def _on_hold(self, hold_id: str, effects: bytes) -> bool:
        def work(transaction: Transaction) -> bool:
            if transaction.hold(hold_id) is None:
                return False
            transaction.put(b"", effects)
            return True

        return self._book.transact(work)

    def post(
        self,
        record: bytes,
        posts: Sequence[Post],
        *,
        entry_id: str,
        dedup_key: str | None = None,
        hold_id: str | None = None,
        only_if_held: bool = False,
        generation: int | None = None,
    ) -> Posted:
        """`settle` for any entry: one that may be there already, or whose hold may be gone."""
        self._check(generation)

        def work(transaction: Transaction) -> Posted:
            found = hold_id is not None and transaction.hold(hold_id) is not None
            freed = hold_id if found else None
            if transaction.has_entry(entry_id, dedup_key) or (only_if_held and not found):
                if freed is not None:
                    transaction.put(b"", settle_effects(freed, ()))
                return Posted(recorded=False, hold_found=found)
            reached = _reached(transaction, posts)
            transaction.put(record, settle_effects(freed, posts))
            return Posted(recorded=True, hold_found=found, reached=reached)

        if only_if_held:  # a sweep: what is held was carried along, and ends there
            return self._book.transact(work)
        return self._put(work, Posted(recorded=True), frame(record, settle_effects(None, posts)))

    def post_all(
        self, items: Sequence[tuple[bytes, str, str | None, Sequence[Post]]], *, generation: int | None = None
    ) -> list[Posted]:
        """Write many entries at once, each of them once."""
        self._check(generation)

        def work(transaction: Transaction) -> list[Posted]:
            seen, billed = set[str](), set[str]()
            added: dict[CounterKey, int] = {}
            done: list[Posted] = []
            for record, entry_id, dedup_key, posts in items:
                if entry_id in seen or dedup_key in billed or transaction.has_entry(entry_id, dedup_key):
                    done.append(Posted(recorded=False))
                    continue
                seen.add(entry_id)
                billed |= {dedup_key} if dedup_key is not None else set()
                reached: list[Post] = []
                for slot, amount in posts:
                    added[slot.key] = added.get(slot.key, 0) + amount
                    reached.append((slot, transaction.counter(slot.key).settled + added[slot.key]))
                transaction.put(record, settle_effects(None, posts))
                done.append(Posted(recorded=True, reached=tuple(reached)))
            return done

        return self._book.transact(work)

    def counters(self, keys: Iterable[CounterKey]) -> dict[CounterKey, Counter | None]:
        """Where counters stand."""
        return self._book.transact(lambda transaction: {key: transaction.counter(key) for key in keys})

    def recount(self, change: Callable[[], T]) -> T:
        """Run `change` of the book: nothing is derived from it."""
        return change()

    def open_counters(
        self,
        opening: Mapping[CounterKey, tuple[int, int | None]],
        insert: Callable[[Mapping[CounterKey, tuple[int, int | None]]], Collection[CounterKey]],
    ) -> None:
        """Give counters that never moved an amount."""
        insert(opening)

    def disturb(self) -> None:
        """Nothing is derived from the book."""

    def knows_hold(self, hold_id: str) -> bool:
        """Whether there is such a hold."""
        return self._book.hold(hold_id) is not None

    def close(self) -> None:
        """Let go of what lies beside a ledger that went elsewhere."""
        self._beside = None


def _reached(transaction: Transaction, posts: Sequence[Post]) -> tuple[Post, ...]:
    """Where counters will stand once `posts` are added."""
    reached: dict[CounterKey, int] = {}
    for slot, amount in posts:
        known = reached.get(slot.key)
        reached[slot.key] = (transaction.counter(slot.key).settled if known is None else known) + amount
    return tuple((slot, reached[slot.key]) for slot, _ in posts)
