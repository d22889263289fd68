"""The journal: what calls write to. A record goes to the tail, a cap moves live counters; the book follows later.

Nothing here waits for the book, save when the live counters have to be made anew from it.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from tokenmeter.errors import SchemaVersionError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.processes import Background, after_fork_in_child, run_patiently
from tokenmeter.stores.base import Counter
from tokenmeter.stores.effects import (
    Book,
    HoldGoneError,
    NewHold,
    OutdatedError,
    Post,
    Posted,
    SlotClaim,
    WrittenIds,
    claim_effects,
    extend_effects,
    refuse,
    settle_effects,
)
from tokenmeter.stores.live import AMOUNT, DIRTY, RESERVED, SETTLED, STATE, SWEPT, Live, digest_of
from tokenmeter.stores.tail import frame, wrote_nothing
from tokenmeter.stores.writer import Writer

T = TypeVar("T")

#: Records of this process between two folds, and seconds until one that failed is tried again.
FOLD_EVERY, FOLD_AGAIN = 2048, 5.0
#: Most seconds that closing waits for a fold.
_FOLD_SECONDS = 10
#: What becomes of an entry that no budget is about.
_RECORDED, _REPEATED = Posted(recorded=True), Posted(recorded=False)


class Journal(Writer):
    """The tail and the live counters of one ledger, as one process uses them. Safe for threads.

    Args:
        ledger: Path of the ledger file; the journal's files lie beside it.
        book: The engine.

    Attributes:
        definitions: Digests of what records share.
    """

    def __init__(self, ledger: Path, book: Book) -> None:
        super().__init__(ledger, book)
        _JOURNALS.add(self)
        self._locked(self._forget_holds)

    def _start(self) -> None:
        super()._start()
        self._holds: dict[str, NewHold] = {}
        self._written = WrittenIds()
        self._unfolded = 0
        self._doubted = False
        self._background = Background()
        self._fold_at = 0.0

    # -- the way of a call

    def append(self, record: bytes, effects: bytes = b"", *, generation: int | None = None) -> None:
        """Write an entry's record. It is safe from everything but a power cut when this returns. Takes no lock.

        Args:
            record: The record.
            effects: What it does to counters and holds that are not live ones.
            generation: That of what the record goes by; None = any.

        Raises:
            OutdatedError: the ledger's generation is another; nothing was written.
            StoreUnavailableError: it cannot be written anywhere.
        """
        self._write_as_of(generation, frame(record, effects))
        self._count()

    def reserve(self, hold: NewHold, *, generation: int | None = None) -> None:
        """Hold every claim or none. Without claims it takes no lock, and nothing goes by a generation."""
        framed = frame(hold.record, claim_effects(hold))
        if hold.claims:
            self._locked(self._reserve, framed, hold, generation)
        else:
            self._write(framed)
            self._holds[hold.hold_id] = hold

    def settle(
        self,
        record: bytes,
        posts: Sequence[Post] = (),
        hold_id: str | None = None,
        *,
        generation: int | None = None,
    ) -> Sequence[Post]:
        """Write an entry's record, free its hold and move the counters.

        Returns:
            Slots whose settled amount, which comes with them, is at their `alert_at` or above.

        Raises:
            HoldGoneError: the hold may be gone.
            OutdatedError: see `append`.
            StoreUnavailableError: nothing was written.
            StoreBusyError: nothing was written: see `_locked`.
        """
        if hold_id is None and not posts:
            self.append(record, generation=generation)
            return ()
        held = None if hold_id is None else self._take(hold_id)
        reached = self._settle(record, posts, hold_id, held, generation)
        self._count()
        for slot, settled in reached:
            if settled >= slot.alert_at:
                return [one for one in reached if one[1] >= one[0].alert_at]
        return ()

    def release(self, hold_id: str) -> bool:
        """Free a hold without an entry; False when there is none."""
        try:
            self._settle(b"", (), hold_id, self._take(hold_id))
        except HoldGoneError:
            return self._exclusively(partial(self._release_any, hold_id))
        return True

    def extend(self, hold_id: str, expires_at: int) -> bool:
        """Move a hold's expiry (microseconds since the epoch); False when there is none.

        Raises:
            StoreBusyError: others would have to be waited for: see `_locked`.
        """
        framed = frame(b"", extend_effects(hold_id, expires_at))
        known = self._holds.get(hold_id)
        if known is None or known.expires_at <= time.time_ns() // 1000:

            def work(_: Live) -> bool:
                if self._book.hold(hold_id) is None:
                    return False
                self._write(framed)
                return True

            return self._exclusively(work)

        def quick(_: Live) -> bool:
            self._write(framed)
            self._holds[hold_id] = known._replace(expires_at=expires_at)
            return True

        return self._locked(quick)

    def note(self, hold_id: str, effects: bytes) -> bool:
        """See `Shared`. Takes no lock: whether the hold is there is found out when it is folded."""
        if hold_id not in self._holds:
            return False
        self._write(frame(b"", effects))
        return True

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
        """`settle` for any entry: one that may be there already, or whose hold may be gone.

        Raises:
            OutdatedError: see `append`.
            StoreUnavailableError: nothing was written.
            StoreBusyError: nothing was written: see `_locked`.
        """
        known = None if hold_id is None else self._holds.get(hold_id)
        if dedup_key is None and not only_if_held and self._written.is_new(entry_id):
            try:
                held = None if hold_id is None else self._take(hold_id)
                self._written.first_time(entry_id)  # before: after an interrupt nobody can tell whether it was written
                reached = self._settle(record, posts, hold_id, held, generation)
            except (StoreBusyError, OutdatedError):
                self._written.forget(entry_id)
                raise
            except StoreUnavailableError as error:
                if wrote_nothing(error):  # when it can be written, the ledger need not be asked for each that waited
                    self._written.forget(entry_id)
                raise
            except HoldGoneError:
                self._written.forget(entry_id)
                known = None
            else:
                self._count()
                return Posted(recorded=True, hold_found=hold_id is not None, reached=tuple(reached))
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
                    generation=generation,
                ),
            )
        except (StoreUnavailableError, SchemaVersionError):
            if only_if_held:
                raise
            # The book cannot be asked. The record is kept and frees its hold; a fold leaves out what is there already.
            try:
                reached = self._settle(record, posts, hold_id, known)
            except HoldGoneError:
                known, reached = None, self._settle(record, posts, hold_id, None)
            # Where it is not sure that the hold was there, its claims stay until the book can tell.
            self._doubted = self._doubted or (hold_id is not None and known is None)
            self._count()
            return Posted(recorded=True, hold_found=known is not None, reached=tuple(reached))

    def post_all(
        self, items: Sequence[tuple[bytes, str, str | None, Sequence[Post]]], *, generation: int | None = None
    ) -> list[Posted]:
        """Write many entries at once, each of them once.

        Args:
            items: Record, identity, dedup key and postings of each.
            generation: See `append`.

        Raises:
            OutdatedError: see `append`.
        """

        def work(live: Live) -> list[Posted]:
            if generation is not None and generation != self._as_of:
                raise OutdatedError
            asked = [entry_id for _, entry_id, _, _ in items if not self._written.first_time(entry_id)]
            known, billed = self._book.known(asked, [key for _, _, key, _ in items])
            live = self._place([post for item in items for post in item[3]], live)
            moved: dict[int, bytes] = {}
            framed: list[bytes] = []
            done: list[Posted] = []
            for record, entry_id, dedup_key, posts in items:
                if entry_id in known or dedup_key in billed:
                    done.append(_REPEATED)
                    continue
                known.add(entry_id)
                if dedup_key is not None:
                    billed.add(dedup_key)
                if not posts:
                    framed.append(frame(record))
                    done.append(_RECORDED)
                    continue
                framed.append(frame(record, settle_effects(None, posts)))
                done.append(Posted(recorded=True, reached=tuple(_settle((), posts, live, moved))))
            if framed:
                self._change(live, b"".join(framed), moved)
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
            live = self._place([(slot,) for slot in new.values()], live)
            live.dirty = True
            for key, slot in new.items():
                place = live.places[slot]
                _, reserved = live.read(place)
                live.write(place, opening[key][0], reserved)
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
            run_patiently(self._locked, _make_dirty)

    # -- inside the lock

    def _reserve(self, live: Live, framed: bytes, hold: NewHold, generation: int | None) -> None:
        there, folder = self._all_there(), None
        if not there:
            folder = self._look_at_folder()
            live = self._check_files(live)
            self._note(live)
        if generation is not None and generation != self._as_of:
            raise OutdatedError
        try:
            moved = _hold(hold.claims, live)
        except KeyError:  # a counter that has not been looked up yet
            live = self._place(hold.claims, live)
            moved = _hold(hold.claims, live)
        self._change(live, framed, moved, there=there)
        if folder is not None:
            self._folder_seen = folder
        self._holds[hold.hold_id] = hold

    def _settle(
        self,
        record: bytes,
        posts: Sequence[Post],
        hold_id: str | None,
        held: NewHold | None,
        generation: int | None = None,
    ) -> Sequence[Post]:
        framed = frame(record, settle_effects(hold_id, posts))
        claims = () if held is None else held.claims
        try:
            if claims or posts:
                return self._locked(self._settle_locked, framed, posts, claims, generation, held is not None)
            if held is not None:
                self._check_swept()
            self._write_as_of(generation, framed)
        except (StoreUnavailableError, StoreBusyError, OutdatedError):
            if hold_id is not None and held is not None:
                self._holds[hold_id] = held
            raise
        return ()

    def _check_swept(self) -> None:
        """Go by nothing that is remembered of holds where somebody has swept one: another's clock may be wrong.

        Raises:
            HoldGoneError: as said there.
        """
        live = self._live
        if live is not None and not (live.there and live.map[STATE] == self._state):
            self._renew_if_possible()
            live = self._live
        if live is not None and live.whole and live.map[SWEPT] != self._unswept:
            self._forget_holds(live)
            raise HoldGoneError

    def _write_as_of(self, generation: int | None, framed: bytes) -> None:
        if generation is None:
            self._write(framed)
        elif self.generation == generation:  # which has just looked at the files
            self._append(framed)
        else:
            raise OutdatedError

    def _settle_locked(  # noqa: PLR0917 - by their places: see `_locked`
        self,
        live: Live,
        framed: bytes,
        posts: Sequence[Post],
        claims: Sequence[SlotClaim],
        generation: int | None = None,
        is_held: bool = False,
    ) -> Sequence[Post]:
        if generation is not None and generation != self._as_of:
            raise OutdatedError
        if is_held and live.map[SWEPT] != self._unswept:
            self._forget_holds(live)
            raise HoldGoneError
        moved: dict[int, bytes] = {}
        try:
            reached = _settle(claims, posts, live, moved)
        except KeyError:  # a counter that has not been looked up yet
            live = self._place((*claims, *posts), live)
            moved.clear()
            reached = _settle(claims, posts, live, moved)
        self._change(live, framed, moved)
        return reached

    def _post(
        self,
        record: bytes,
        posts: Sequence[Post],
        live: Live,
        *,
        entry_id: str,
        dedup_key: str | None,
        hold_id: str | None,
        only_if_held: bool,
        generation: int | None,
    ) -> Posted:
        if generation is not None and generation != self._as_of:
            raise OutdatedError
        rows = None if hold_id is None else self._book.hold(hold_id)
        claims = () if rows is None else self.claims(rows)
        found = rows is not None
        repeated = self._book.has_entry(entry_id, dedup_key)
        if repeated or (only_if_held and not found):
            if found and hold_id is not None:
                self._settle_locked(live, frame(b"", settle_effects(hold_id, ())), (), claims)
                self._holds.pop(hold_id, None)
            return Posted(recorded=False, hold_found=found)
        framed = frame(record, settle_effects(hold_id if found else None, posts))
        if only_if_held:
            live.mark_swept()
        if claims or posts:
            reached = self._settle_locked(live, framed, posts, claims)
        else:
            self._write(framed)
            reached = ()
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        return Posted(recorded=True, hold_found=found, reached=tuple(reached))

    def _release_any(self, hold_id: str, live: Live) -> bool:
        rows = self._book.hold(hold_id)
        if rows is None:
            return False
        framed = frame(b"", settle_effects(hold_id, ()))
        self._settle_locked(live, framed, (), self.claims(rows))
        return True

    def _change(self, live: Live, framed: bytes, moved: Mapping[int, bytes], *, there: bool = False) -> None:
        """Write a frame and move counters as one: whoever finds this half done makes the counters anew.

        Args:
            live: The counters.
            framed: The frame, or several.
            moved: Where in the mapping -> the amount that is to be there.
            there: See `Segment.append`.
        """
        memory = live.map
        memory[DIRTY] = True
        try:
            self._append(framed, there=there)
        except StoreUnavailableError as error:
            memory[DIRTY] = not wrote_nothing(error)
            raise
        for at, amount in moved.items():
            memory[at : at + AMOUNT] = amount
        memory[DIRTY] = False

    # -- folding in the background

    def _count(self) -> None:
        self._unfolded += 1
        trouble = self._book.trouble.reason is not None
        if self._unfolded >= FOLD_EVERY or (trouble and time.monotonic() > self._fold_at):
            self._unfolded = 0
            self._fold_at = time.monotonic() + FOLD_AGAIN
            if not self._background.is_busy:
                self._background.run("fold", self._fold)  # if none begins any more, the next process folds

    def close(self) -> None:
        """Let a fold that is under way end, and let go of the files; using the journal again opens them again."""
        self._background.finish(_FOLD_SECONDS)
        super().close()

    def _fold(self) -> None:
        with contextlib.suppress(StoreError):  # told by the book; tried again later
            self.check_tail()
            self._book.fold()
            self.resolve_doubts()

    def resolve_doubts(self) -> None:
        """Once the book was folded: have the counters made anew where it was not sure whether a hold was there."""
        if self._doubted:
            self._doubted = False
            self.disturb()

    # -- holds and identities

    def _take(self, hold_id: str) -> NewHold:
        held = self._holds.pop(hold_id, None)
        if held is None or held.expires_at <= time.time_ns() // 1000:
            raise HoldGoneError(hold_id)
        return held

    def knows_hold(self, hold_id: str) -> bool:
        """Whether this process holds it."""
        return hold_id in self._holds

    def after_fork_in_child(self) -> None:
        """Share no lock and no file with the parent; its holds are its own."""
        self._start()


# What is to be where in the mapping, as `Journal._change` takes it. A counter may come twice.


def _hold(claims: Sequence[SlotClaim], live: Live) -> dict[int, bytes]:
    """Once all of `claims` are held.

    Raises:
        CapReachedError: one does not fit.
        KeyError: one is to be looked up first.
    """
    memory, places = live.map, live.places
    moved: dict[int, bytes] = {}
    for slot, limit, amount in claims:
        at, settled_at = places[slot] + RESERVED, places[slot] + SETTLED
        reserved = int.from_bytes(moved.get(at) or memory[at : at + AMOUNT], "little", signed=True)
        settled = int.from_bytes(memory[settled_at : settled_at + AMOUNT], "little", signed=True)
        if limit is not None and settled + reserved + amount > limit:
            refuse(slot, limit, amount, settled, reserved)
        moved[at] = (reserved + amount).to_bytes(AMOUNT, "little", signed=True)
    return moved


def _settle(claims: Sequence[SlotClaim], posts: Sequence[Post], live: Live, moved: dict[int, bytes]) -> list[Post]:
    """Once `claims` are free and `posts` are added, which goes into `moved`; where counters of `posts` stand then.

    Raises:
        KeyError: one is to be looked up first.
    """
    memory, places = live.map, live.places
    for slot, _, amount in claims:
        at = places[slot] + RESERVED
        reserved = int.from_bytes(moved.get(at) or memory[at : at + AMOUNT], "little", signed=True)
        moved[at] = (reserved - amount).to_bytes(AMOUNT, "little", signed=True)
    reached: list[Post] = []
    for slot, amount in posts:
        at = places[slot] + SETTLED
        settled = int.from_bytes(moved.get(at) or memory[at : at + AMOUNT], "little", signed=True) + amount
        moved[at] = settled.to_bytes(AMOUNT, "little", signed=True)
        reached.append((slot, settled))
    return reached


def _make_dirty(live: Live) -> None:
    live.dirty = True


_JOURNALS: weakref.WeakSet[Journal] = weakref.WeakSet()


@after_fork_in_child
def _renew_all() -> None:
    for journal in list(_JOURNALS):
        journal.after_fork_in_child()
