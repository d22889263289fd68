"""The journal: what calls write to. A record goes to the tail, a cap moves live counters; the book follows later.

Nothing here waits for the book, save when the live counters have to be made anew from it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic_core import from_json, to_json

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.file_locks import lock_file, unlock_file
from tokenmeter.forks import after_fork_in_child
from tokenmeter.ledger import Claim, CounterKey, is_own, new_id
from tokenmeter.stores.base import CapReachedError, Counter
from tokenmeter.stores.live import Live, LiveHeader, Slot, digest_of, pack
from tokenmeter.stores.record import FORMAT, Account, Definitions, Rate, hold_record
from tokenmeter.stores.tail import Segment, TailGoneError, frame, frames, owner_of, segment_path, segments
from tokenmeter.stores.trouble import Trouble

__all__ = [
    "Book",
    "HoldGoneError",
    "Journal",
    "Posted",
    "SlotClaim",
    "Standing",
    "claim_effects",
    "extend_effects",
    "settle_effects",
]

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

#: Size at which a segment of the tail is followed by a new one.
SEGMENT_BYTES = 8 << 20
#: Records of this process between two folds, and seconds until one that failed is tried again.
FOLD_EVERY, FOLD_AGAIN = 2048, 5.0
_DAY = 86_400_000_000
_MOST_IDS = 20_000
_GONE = (0, 0)

#: A counter that a call claims, its limit (None: it only counts), and the amount to hold.
SlotClaim = tuple[Slot, int | None, int]
#: Claims of a hold of this process, and its expiry.
_Held = tuple[Sequence[SlotClaim], int]


class HoldGoneError(Exception):
    """The hold may have expired and been swept; nothing was written. `Journal.post` finds out."""


class Standing(Protocol):
    """One state of the book: what live counters are made from."""

    #: Segment -> how far it is folded.
    places: Mapping[int, int]

    def settled(self, floor: int, also: Collection[CounterKey]) -> dict[CounterKey, int]:
        """Settled amounts: of windows that had not ended at `floor`, and of the counters in `also`."""
        ...

    def holds(self) -> dict[str, Sequence[Sequence[Any]]]:
        """Open holds: identity -> ``[[budget, scope, window start, window end, amount, limit], ...]``."""
        ...


class Book(Protocol):
    """What an engine does for its journal."""

    @property
    def identity(self) -> bytes:
        """The ledger's own 16 bytes."""
        ...

    @property
    def trouble(self) -> Trouble:
        """What keeps records from being folded, if anything does."""
        ...

    def file(self) -> tuple[int, int]:
        """Device and inode of the ledger file, or what else tells that it is still the same.

        Raises:
            StoreUnavailableError: it is gone, or another ledger is in its place.
        """
        ...

    def stand(self, work: Callable[[Standing], T]) -> T:
        """Run `work` on one state of the book."""
        ...

    def find_name(self, kind: str, value: str) -> str | None:
        """Digest of a name that is in the book."""
        ...

    def fold(self) -> int:
        """Move what is in the tail into the book; how many records."""
        ...

    def has_entry(self, entry_id: str, dedup_key: str | None) -> bool:
        """Whether the entry or its bill is in the book."""
        ...

    def known(self, entry_ids: Sequence[str], dedup_keys: Sequence[str | None]) -> set[str]:
        """Those of the identities and keys that are in the book."""
        ...

    def hold(self, hold_id: str) -> Sequence[Sequence[Any]] | None:
        """Claims of an open hold that is in the book."""
        ...


@dataclass(frozen=True, slots=True)
class Posted:
    """What `Journal.post` did: see `tokenmeter.stores.base.Settlement`; `reached` says where counters stand now."""

    recorded: bool
    hold_found: bool = False
    reached: tuple[tuple[Slot, int], ...] = ()


class Journal:
    """The tail and the live counters of one ledger, as one process uses them. Safe for threads.

    Args:
        ledger: Path of the ledger file; the journal's files lie beside it.
        book: The engine.

    Attributes:
        definitions: Digests of what records share.
    """

    def __init__(self, ledger: Path, book: Book) -> None:
        self._ledger, self._book = ledger, book
        self._live_path = Path(f"{ledger}-live")
        self.definitions = Definitions(self._find_name, self._define)
        self._start()
        _JOURNALS.add(self)
        self._locked(lambda _: None)

    def _start(self) -> None:
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._mutex = threading.RLock()
        self._owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` asks
        self._live: Live | None = None
        self._state = b""
        self._file = (0, 0)
        self._segment: Segment | None = None
        self._holds: dict[str, _Held] = {}
        self._slots: dict[CounterKey, Slot] = {}
        self._written: set[str] = set()
        self._written_since = new_id()
        self._renew_at = 0.0
        self._generation = 0
        self._unfolded = 0
        self._folder: threading.Thread | None = None
        self._fold_at = 0.0

    # -- what a plan asks once

    new_id = staticmethod(new_id)

    @property
    def generation(self) -> int:
        """Changes when a plan may be out of date: a budget was defined anew, a name erased, the ledger replaced."""
        live = self._live
        if live is None or live.state != self._state:
            self._renew_if_possible()
            live = self._live
        if live is not None:
            self._generation = live.generation
        return self._generation

    def renew_generation(self) -> None:
        """Make every process on this ledger throw its plans away."""

        def change(live: Live) -> None:
            live.generation += 1

        self.definitions.forget()
        self._locked(change)

    def account(self, account: Account) -> str:
        """The digest that stands for `account` in records."""
        return self.definitions.account(account)

    def rate(self, rate: Rate) -> str:
        """The digest that stands for `rate` in records."""
        return self.definitions.rate(rate)

    def name(self, kind: str, value: str) -> str:
        """The digest that stands for a text that may have to be erased: kind ``end_user`` or ``tag:NAME``."""
        return self.definitions.name(kind, value)

    def slot(self, key: CounterKey, window_end: int | None = None) -> Slot:
        """The live counter of `key`. One object per counter, so that its `alert_at` is the process's."""
        slot = self._slots.get(key)
        if slot is None or slot.window_end != window_end:
            if len(self._slots) >= Definitions.MOST:
                self._slots = {}
            slot = self._slots[key] = Slot(key, window_end)
        return slot

    # -- the way of a call

    def append(self, record: bytes, effects: bytes = b"") -> None:
        """Write an entry's record. It is safe from everything but a power cut when this returns. Takes no lock.

        Args:
            record: The record.
            effects: What it does to counters and holds that are not live ones.

        Raises:
            StoreUnavailableError: it cannot be written anywhere.
        """
        self._write(frame(record, effects))
        self._count()

    def reserve(
        self,
        hold_id: str,
        expires_at: int,
        claims: Sequence[SlotClaim],
        call: bytes,
        *,
        created_at: int | None = None,
        owner: str | None = None,
    ) -> None:
        """Hold every claim or none. The hold is in the tail when this returns.

        Args:
            hold_id: A new identity.
            expires_at: Microseconds since the epoch.
            claims: In the order in which a refusal is to be looked for.
            call: Record of the entry that the hold becomes when it expires.
            created_at: Microseconds since the epoch; now, if not given.
            owner: Who holds it; this process, if not given.

        Raises:
            CapReachedError: a claim does not fit; nothing was held.
            StoreUnavailableError: it cannot be known whether it fits.
            StoreBusyError: see `_locked`.
        """
        now = time.time_ns() // 1000 if created_at is None else created_at
        record = hold_record(hold_id, now, expires_at, owner or self._owner, call)
        framed = frame(record, claim_effects(hold_id, claims))
        self._locked(partial(self._reserve, framed=framed, hold_id=hold_id, expires_at=expires_at, claims=claims))

    def settle(
        self, record: bytes, posts: Sequence[tuple[Slot, int]] = (), hold_id: str | None = None
    ) -> tuple[tuple[Slot, int], ...]:
        """Write an entry's record, free its hold and move the counters.

        Returns:
            Slots whose settled amount, which comes with them, is at their `alert_at` or above.

        Raises:
            HoldGoneError: the hold may be gone.
            StoreUnavailableError: nothing was written.
            StoreBusyError: nothing was written, since a finaliser or signal handler calls this in the middle of it.
        """
        if hold_id is None and not posts:
            self.append(record)
            return ()
        reached = self._settle(record, posts, hold_id, None if hold_id is None else self._take(hold_id))
        self._count()
        return tuple(one for one in reached if one[1] >= one[0].alert_at)

    def release(self, hold_id: str) -> bool:
        """Free a hold without an entry; False when there is none."""
        try:
            held = self._take(hold_id)
        except HoldGoneError:
            return self._exclusively(partial(self._release_any, hold_id))
        self._settle(b"", (), hold_id, held)
        return True

    def extend(self, hold_id: str, expires_at: int) -> bool:
        """Move a hold's expiry (microseconds since the epoch); False when there is none."""
        framed = frame(b"", extend_effects(hold_id, expires_at))
        known = self._holds.get(hold_id)
        if known is None or known[1] <= time.time_ns() // 1000:

            def work(_: Live) -> bool:
                if self._book.hold(hold_id) is None:
                    return False
                self._write(framed)
                return True

            return self._exclusively(work)

        def quick(_: Live) -> bool:
            self._write(framed)
            self._holds[hold_id] = (known[0], expires_at)
            return True

        return self._locked(quick)

    def post(
        self,
        record: bytes,
        posts: Sequence[tuple[Slot, int]],
        *,
        entry_id: str,
        dedup_key: str | None = None,
        hold_id: str | None = None,
        only_if_held: bool = False,
    ) -> Posted:
        """`settle` for any entry: one that may be there already, or whose hold may be gone.

        Raises:
            StoreUnavailableError: nothing was written.
        """
        if dedup_key is None and not only_if_held and self._is_new(entry_id):
            try:
                held = None if hold_id is None else self._take(hold_id)
            except HoldGoneError:
                pass
            else:
                self._written.add(entry_id)  # first: after an interrupt nobody can tell whether it was written
                reached = self._settle(record, posts, hold_id, held)
                self._count()
                return Posted(recorded=True, hold_found=hold_id is not None, reached=reached)
        try:
            return self._exclusively(
                partial(
                    self._post,
                    record,
                    posts,
                    entry_id=entry_id,
                    dedup_key=dedup_key,
                    hold_id=hold_id,
                    only_if_held=only_if_held,
                )
            )
        except StoreUnavailableError:
            if only_if_held:
                raise
            # The book cannot be asked. The record is kept; the fold leaves out what is there already.
            reached = self._settle(record, posts, None, None)
            self._count()
            return Posted(recorded=True, reached=reached)

    def post_all(self, items: Sequence[tuple[bytes, str, str | None, Sequence[tuple[Slot, int]]]]) -> list[Posted]:
        """Write many entries at once, each of them once.

        Args:
            items: Record, identity, dedup key and postings of each.
        """

        def work(live: Live) -> list[Posted]:
            known = self._book.known([item[1] for item in items], [item[2] for item in items])
            place = self._place([post for item in items for post in item[3]], live)
            standing: dict[int, tuple[int, int]] = {}
            framed: list[bytes] = []
            done: list[Posted] = []
            for record, entry_id, dedup_key, posts in items:
                if entry_id in known or (dedup_key is not None and dedup_key in known):
                    done.append(Posted(recorded=False))
                    continue
                known.add(entry_id)
                if dedup_key is not None:
                    known.add(dedup_key)
                framed.append(frame(record, settle_effects(None, posts)))
                reached: list[tuple[Slot, int]] = []
                for slot, amount in posts:
                    settled, reserved = standing.get(slot.place) or place.read(slot.place)
                    standing[slot.place] = (settled + amount, reserved)
                    reached.append((slot, settled + amount))
                done.append(Posted(recorded=True, reached=tuple(reached)))
            if framed:
                self._change(place, b"".join(framed), standing)
            return done

        done = self._exclusively(work)
        self._book.fold()
        return done

    def open_counters(
        self,
        opening: Mapping[CounterKey, tuple[int, int | None]],
        insert: Callable[[Mapping[CounterKey, tuple[int, int | None]]], Collection[CounterKey]],
    ) -> None:
        """Give counters that never moved an amount; `insert` puts those into the book that it does not have."""

        def work(live: Live) -> None:
            live.dirty = True
            new = {key: self.slot(key, opening[key][1]) for key in insert(opening)}
            live = self._find_places(list(new.values()), live)
            live.dirty = True
            for key, slot in new.items():
                _, reserved = live.read(slot.place)
                live.write(slot.place, opening[key][0], reserved)
            live.dirty = False

        self._exclusively(work)

    def counters(self, keys: Iterable[CounterKey]) -> dict[CounterKey, Counter | None]:
        """Where counters stand; None for one that only the book can tell."""

        def work(live: Live) -> dict[CounterKey, Counter | None]:
            places = {key: live.find(digest_of(key)) for key in keys}
            return {key: None if place is None else Counter(*live.read(place)) for key, place in places.items()}

        return self._locked(work)

    def recount(self, change: Callable[[], T]) -> T:
        """Run `change` of the book while no counter moves, and make the live ones anew from it."""

        def work(live: Live) -> T:
            live.dirty = True
            return change()

        done = self._exclusively(work)
        self._locked(lambda _: None)
        return done

    def disturb(self) -> None:
        """The fold left something out that the live counters had counted: have them made anew."""
        with contextlib.suppress(StoreBusyError):
            self._locked(_make_dirty)

    # -- inside the lock

    def _reserve(
        self, live: Live, *, framed: bytes, hold_id: str, expires_at: int, claims: Sequence[SlotClaim]
    ) -> None:
        live = self._place(claims, self._check_files(live))
        moved: dict[int, tuple[int, int]] = {}
        for slot, limit, amount in claims:
            place = slot.place
            settled, reserved = moved.get(place) or live.read(place)
            if limit is not None and settled + reserved + amount > limit:
                raise CapReachedError(Claim(slot.key, limit, amount, slot.window_end), settled, reserved)
            moved[place] = (settled, reserved + amount)
        self._change(live, framed, moved)
        self._holds[hold_id] = (claims, expires_at)

    def _settle(
        self, record: bytes, posts: Sequence[tuple[Slot, int]], hold_id: str | None, held: _Held | None
    ) -> tuple[tuple[Slot, int], ...]:
        framed = frame(record, settle_effects(hold_id, posts))
        claims = () if held is None else held[0]
        if not claims and not posts:
            self._write(framed)
            return ()
        try:
            return self._locked(partial(self._settle_locked, framed=framed, posts=posts, claims=claims))
        except (StoreUnavailableError, StoreBusyError):
            if hold_id is not None and held is not None:
                self._holds[hold_id] = held
            raise

    def _settle_locked(
        self, live: Live, *, framed: bytes, posts: Sequence[tuple[Slot, int]], claims: Sequence[SlotClaim]
    ) -> tuple[tuple[Slot, int], ...]:
        live = self._place(posts, self._place(claims, live))
        if claims and live.serial != claims[0][0].home:  # the counters were made anew between the two
            live = self._place(claims, live)
        moved: dict[int, tuple[int, int]] = {}
        for slot, _, amount in claims:
            place = slot.place
            settled, reserved = moved.get(place) or live.read(place)
            moved[place] = (settled, reserved - amount)
        for slot, amount in posts:
            place = slot.place
            settled, reserved = moved.get(place) or live.read(place)
            moved[place] = (settled + amount, reserved)
        self._change(live, framed, moved)
        return tuple([(slot, moved[slot.place][0]) for slot, _ in posts])

    def _post(
        self,
        record: bytes,
        posts: Sequence[tuple[Slot, int]],
        live: Live,
        *,
        entry_id: str,
        dedup_key: str | None,
        hold_id: str | None,
        only_if_held: bool,
    ) -> Posted:
        rows = None if hold_id is None else self._book.hold(hold_id)
        claims = () if rows is None else self._claims(rows)
        found = rows is not None
        repeated = self._book.has_entry(entry_id, dedup_key)
        if repeated or (only_if_held and not found):
            if found and hold_id is not None:
                self._settle_locked(live, framed=frame(b"", settle_effects(hold_id, ())), posts=(), claims=claims)
                self._holds.pop(hold_id, None)
            return Posted(recorded=False, hold_found=found)
        framed = frame(record, settle_effects(hold_id if found else None, posts))
        if claims or posts:
            reached = self._settle_locked(live, framed=framed, posts=posts, claims=claims)
        else:
            self._write(framed)
            reached = ()
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        return Posted(recorded=True, hold_found=found, reached=reached)

    def _release_any(self, hold_id: str, live: Live) -> bool:
        rows = self._book.hold(hold_id)
        if rows is None:
            return False
        framed = frame(b"", settle_effects(hold_id, ()))
        self._settle_locked(live, framed=framed, posts=(), claims=self._claims(rows))
        return True

    def _claims(self, rows: Sequence[Sequence[Any]]) -> tuple[SlotClaim, ...]:
        return tuple(
            (self.slot(CounterKey(budget, scope, start), end), limit, amount)
            for budget, scope, start, end, amount, limit in rows
        )

    def _change(self, live: Live, framed: bytes, moved: Mapping[int, tuple[int, int]]) -> None:
        """Write a frame and move counters as one: whoever finds this half done makes the counters anew."""
        packed = [(place, pack(settled, reserved)) for place, (settled, reserved) in moved.items()]
        live.dirty = True
        try:
            self._append(framed)
        except StoreUnavailableError:
            live.dirty = False
            raise
        memory = live.map
        for place, pair in packed:
            memory[place + 16 : place + 48] = pair
        live.dirty = False

    def _place(self, wanted: Sequence[Sequence[Any]], live: Live) -> Live:
        """Look up where slots (the first of each row) are; counters that have no place yet get one."""
        serial = live.serial
        for slot, *_ in wanted:
            if slot.home != serial:
                return self._find_places([row[0] for row in wanted], live)
        return live

    def _find_places(self, wanted: Sequence[Slot], live: Live) -> Live:
        for slot in wanted:
            place = live.find(slot.digest)
            if place is None:
                if live.full or (slot.window_end is not None and slot.window_end < live.header.floor):
                    return self._find_places(wanted, self._remake(also=[other.key for other in wanted]))
                live.dirty = True
                place = live.add(slot.digest)
                live.dirty = False
            slot.home, slot.place = live.serial, place
        return live

    def _check_files(self, live: Live) -> Live:
        """Refuse to hold anything for a ledger that is gone: its caps would start anew."""
        if not live.there:
            unlock_file(live.descriptor)
            self._live = None
            live = self._acquire_any()
        there = _file_at(self._ledger)
        if there == self._file and there != _GONE:
            return live
        file = self._book.file()
        if file != live.header.file:
            live = self._remake()
        self._file = file
        return live

    # -- the lock

    def _locked(self, work: Callable[[Live], T]) -> T:
        """Run `work` with the counters to itself, among all threads and processes.

        Raises:
            StoreBusyError: a finaliser or signal handler came in the middle of it, in this very thread.
        """
        if self._owned():
            raise StoreBusyError("The ledger's counters are being changed further up in this thread.")
        try:
            try:
                return work(self._acquire())
            finally:
                self._unlock()
        finally:  # an interrupt may come just as the lock is to be given back
            if self._owned():
                self._unlock()

    def _exclusively(self, work: Callable[[Live], T]) -> T:
        """`_locked`, with everything in the tail folded: the book then tells all there is."""
        if self._owned():
            raise StoreBusyError("The ledger's counters are being changed further up in this thread.")
        self._book.fold()  # most of it without the lock

        def folded(live: Live) -> T:
            self._book.fold()
            return work(live)

        return self._locked(folded)

    def _acquire(self) -> Live:
        self._mutex.acquire()
        live = self._live
        if live is not None:
            lock_file(live.descriptor)
            if live.state == self._state and not live.dirty:
                return live
            unlock_file(live.descriptor)
        return self._acquire_any()

    def _acquire_any(self) -> Live:
        """The live file as it is now, made anew if need be, and locked. Needs the mutex."""
        while True:
            live = self._live
            if live is None:
                live = self._open()
            else:
                lock_file(live.descriptor)
            if not live.there:
                unlock_file(live.descriptor)
                self._live = None
                continue
            if live.dirty:
                live = self._remake()
            if live.state != self._state:
                self._follow(live)
            return live

    def _unlock(self) -> None:
        if self._owned():
            if self._live is not None:
                unlock_file(self._live.descriptor)
            self._mutex.release()

    def _open(self) -> Live:
        """The live file of this ledger, locked and sound. Needs the mutex."""
        try:
            bare, live = Live.locked(self._live_path)
        except OSError as error:
            raise _unwritable(self._live_path, error) from error
        try:
            self._file = _file_at(self._ledger)
            if live is not None:
                header = live.header
                if live.sound and header.ledger == self._book.identity and self._file in {header.file, _GONE}:
                    self._live = live
                    return live
            self._live = live
            return self._remake()
        finally:
            if bare is not None:
                os.close(bare)

    def _remake(self, also: Collection[CounterKey] = ()) -> Live:
        """Make the live counters from the book and the tail. Needs the lock; comes with that of the new file."""
        old = self._live
        before = None if old is None else old.header
        floor = time.time_ns() // 1000 - _DAY
        every = segments(self._ledger)
        numbers = [number for number in every if owner_of(segment_path(self._ledger, number)) == self._book.identity]

        def work(standing: Standing) -> tuple[dict[CounterKey, tuple[int, int]], Mapping[int, int]]:
            return self._stand(standing, numbers, floor, also), standing.places

        balances, places = self._book.stand(work)
        self._file = self._book.file()
        number = max(*places, *every, 0, 0)
        if number not in numbers or self._is_cut_off(number, places):  # none yet, or removed, or another ledger's
            number += 1
            self._begin(number)
        header = LiveHeader(
            self._book.identity,
            self._file,
            number,
            time.time_ns() if before is None or before.ledger != self._book.identity else before.generation,
            floor,
        )
        try:
            live = Live.make(self._live_path, header, {digest_of(key): pair for key, pair in balances.items()})
        except OSError as error:
            raise _unwritable(self._live_path, error) from error
        self._live = live
        if old is not None:
            old.retire()
            unlock_file(old.descriptor)
        return live

    def _stand(
        self, standing: Standing, numbers: Sequence[int], floor: int, also: Collection[CounterKey]
    ) -> dict[CounterKey, tuple[int, int]]:
        holds = {hold: list(rows) for hold, rows in standing.holds().items()}
        added: dict[CounterKey, int] = {}
        for number in numbers:
            for _, _, effects in frames(segment_path(self._ledger, number), standing.places.get(number, 0)):
                if effects:
                    _apply(from_json(effects), holds, added)
        reserved: dict[CounterKey, int] = {}
        for rows in holds.values():
            for budget, scope, start, _, amount, _ in rows:
                key = CounterKey(budget, scope, start)
                reserved[key] = reserved.get(key, 0) + amount
        settled = standing.settled(floor, {*also, *added, *reserved})
        return {
            key: (settled.get(key, 0) + added.get(key, 0), reserved.get(key, 0))
            for key in {*settled, *added, *reserved, *also}
        }

    # -- the tail

    def _follow(self, live: Live) -> None:
        """Write to the segment that the live file names. Needs the lock."""
        number = live.header.segment
        if self._segment is None or self._segment.number != number:
            try:
                self._segment = Segment(self._ledger, number)
            except FileNotFoundError:
                self._replace_tail(live)
            except OSError as error:
                raise _unwritable(segment_path(self._ledger, number), error) from error
        self._state = live.state

    def _replace_tail(self, live: Live) -> None:
        """The tail was removed: go on with a new one, and define again what records name. Needs the lock."""
        log.error(
            "%s-tail was removed or cut off while it was in use; calls that were not yet in the ledger are lost",
            self._ledger,
        )
        number = max(live.header.segment, *segments(self._ledger), 0) + 1
        self._segment = self._begin(number)
        live.use_segment(number)
        live.generation += 1
        self.definitions.forget()
        self._state = live.state

    def _begin(self, number: int) -> Segment:
        """Make a new segment. It says whose it is."""
        path = segment_path(self._ledger, number)
        record = {"format": FORMAT, "record": "segment", "ledger": self._book.identity.hex(), "number": number}
        try:
            segment = Segment(self._ledger, number, make=True)
            segment.append(frame(to_json(record)))
        except OSError as error:
            raise _unwritable(path, error) from error
        return segment

    def _write(self, framed: bytes) -> None:
        live = self._live
        if live is None or live.state != self._state:
            self._renew_if_possible()
        self._append(framed)

    def _append(self, framed: bytes) -> None:
        try:
            segment = self._segment or self._last_segment()
            size = segment.append(framed)
        except TailGoneError:
            self._with_lock(self._follow_again)
            self._write(framed)
        except OSError as error:
            raise _unwritable(segment_path(self._ledger, 0).with_suffix(""), error) from error
        else:
            if size > SEGMENT_BYTES:
                with contextlib.suppress(StoreError):  # the full one takes more
                    self._with_lock(partial(self._turn_over, full=segment.number))

    def _renew_if_possible(self) -> None:
        """After the live file or the segment was replaced. While the book cannot be asked, all stays as it was."""
        if not self._owned() and time.monotonic() > self._renew_at:
            try:
                self._locked(lambda _: None)
            except StoreUnavailableError as error:
                self._renew_at = time.monotonic() + 1
                self._book.trouble.failed(error)

    def _last_segment(self) -> Segment:
        number = max(segments(self._ledger), default=0)
        own = number and owner_of(segment_path(self._ledger, number)) == self._book.identity
        self._segment = Segment(self._ledger, number) if own else self._begin(number + 1)
        return self._segment

    def _is_cut_off(self, number: int, places: Mapping[int, int]) -> bool:
        """Whether more was folded of a segment than there is now (after a power cut): what is added would be missed."""
        return segment_path(self._ledger, number).stat().st_size < places.get(number, 0)

    def _follow_again(self, live: Live) -> None:
        number, self._segment = live.header.segment, None
        path = segment_path(self._ledger, number)
        if path.exists() and self._is_cut_off(number, self._book.stand(lambda standing: standing.places)):
            self._replace_tail(live)
        else:
            self._follow(live)

    def _turn_over(self, live: Live, full: int) -> None:
        if live.header.segment == full:
            self._segment = self._begin(full + 1)
            live.use_segment(full + 1)
        self._follow(live)

    def _with_lock(self, work: Callable[[Live], None]) -> None:
        """`_locked`, from within the lock or without."""
        if self._owned() and self._live is not None:
            work(self._live)
        else:
            self._locked(work)

    def _define(self, records: Sequence[bytes]) -> None:
        self._write(b"".join(map(frame, records)))

    def _find_name(self, kind: str, value: str) -> str | None:
        with contextlib.suppress(StoreError):
            return self._book.find_name(kind, value)
        return None

    # -- folding in the background

    def _count(self) -> None:
        self._unfolded += 1
        if self._unfolded >= FOLD_EVERY or (self._book.trouble and time.monotonic() > self._fold_at):
            self._unfolded = 0
            self._fold_at = time.monotonic() + FOLD_AGAIN
            if self._folder is None or not self._folder.is_alive():
                self._folder = threading.Thread(target=self._fold, name="tokenmeter-fold", daemon=True)
                with contextlib.suppress(RuntimeError):  # the interpreter is going down: the next process folds
                    self._folder.start()

    def _fold(self) -> None:
        with contextlib.suppress(StoreError):  # told by the book; tried again later
            self._book.fold()

    # -- holds and identities

    def _take(self, hold_id: str) -> _Held:
        held = self._holds.pop(hold_id, None)
        if held is None or held[1] <= time.time_ns() // 1000:
            raise HoldGoneError(hold_id)
        return held

    def _is_new(self, entry_id: str) -> bool:
        """Whether nobody can have written this entry yet."""
        if len(self._written) >= _MOST_IDS:
            self._written, self._written_since = set(), new_id()
        return is_own(entry_id) and entry_id > self._written_since and entry_id not in self._written

    def first_time(self, entry_id: str) -> bool:
        """Whether nobody can have written this entry yet; it counts as written then."""
        if not self._is_new(entry_id):
            return False
        self._written.add(entry_id)
        return True

    def recorded(self, entry_id: str) -> bool:
        """Whether an entry's record is written: for a caller who was interrupted while it wrote it. Slow.

        Raises:
            StoreUnavailableError: the book cannot be asked.
        """
        return self._exclusively(lambda _: self._book.has_entry(entry_id, None))

    def knows_hold(self, hold_id: str) -> bool:
        """Whether this process holds it."""
        return hold_id in self._holds

    def close(self) -> None:
        """Let go of the files; using the journal again opens them again."""
        with self._mutex:
            self._live, self._segment, self._state = None, None, b""

    def after_fork_in_child(self) -> None:
        """Share no lock and no file with the parent; its holds are its own."""
        self._start()


def _file_at(path: Path) -> tuple[int, int]:
    """Device and inode."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on the hot path
    except FileNotFoundError:
        return _GONE
    return status.st_dev, status.st_ino


def _make_dirty(live: Live) -> None:
    live.dirty = True


def claim_effects(hold_id: str, claims: Sequence[SlotClaim]) -> bytes:
    """What making a hold does."""
    rows = b",".join(
        b"%b%d,%b]" % (slot.begin, amount, b"null" if limit is None else b"%d" % limit)
        for slot, limit, amount in claims
    )
    return b'{"hold":%b,"claims":[%b]}' % (to_json(hold_id), rows)


def extend_effects(hold_id: str, expires_at: int) -> bytes:
    """What moving a hold's expiry does."""
    return b'{"extend":%b,"until":%d}' % (to_json(hold_id), expires_at)


def settle_effects(hold_id: str | None, posts: Sequence[tuple[Slot, int]]) -> bytes:
    """What settling does: frees the hold, if there is one, and adds to counters."""
    rows = b",".join(b"%b%d]" % (slot.begin, amount) for slot, amount in posts)
    if hold_id is None:
        return b'{"post":[%b]}' % rows if rows else b""
    return b'{"free":%b,"post":[%b]}' % (to_json(hold_id), rows)


def _apply(effects: Mapping[str, Any], holds: dict[str, list[Any]], added: dict[CounterKey, int]) -> None:
    if "hold" in effects:
        holds.setdefault(effects["hold"], effects["claims"])
    if "free" in effects:
        holds.pop(effects["free"], None)
    for budget, scope, start, _, amount in effects.get("post", ()):
        key = CounterKey(budget, scope, start)
        added[key] = added.get(key, 0) + amount


def _unwritable(path: Path, error: OSError) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{path} cannot be written: {error.strerror}. Nothing was recorded. Free some space, or mend the permissions."
    )


_JOURNALS: weakref.WeakSet[Journal] = weakref.WeakSet()


@after_fork_in_child
def _renew_all() -> None:
    for journal in list(_JOURNALS):
        journal.after_fork_in_child()
