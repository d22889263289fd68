"""One process's hand on a ledger's files: the segment of the tail that it writes to, and the live counters' lock.

Everything that can happen to these files under a running process is dealt with here: they are removed, replaced, cut
off, full, left half changed, or those of another ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

from pydantic_core import from_json

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.processes import HURRY, KNOWN, lock_file, may_wait, notice_fork, process_name, unlock_file
from tokenmeter.stores.definitions import Definitions
from tokenmeter.stores.effects import Book, Shared, Standing, apply_effects
from tokenmeter.stores.encoding import quoted
from tokenmeter.stores.live import DIRTY, QUIET, SITUATION, STATE, SWEPT, Live, LiveHeader, digest_of
from tokenmeter.stores.tail import Segment, TailGoneError, first_frame, frame, frames, owner_of, segment_path, segments
from tokenmeter.stores.urls import unwritable

log = logging.getLogger("tokenmeter")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Size at which a segment of the tail is followed by a new one.
SEGMENT_BYTES = 8 << 20
_DAY = 86_400_000_000
_GONE = (0, 0)
#: More than a file system's clock may be behind, in nanoseconds (FAT writes down every other second).
_TICK_NS = 3_000_000_000
_TAKEN = "The ledger's counters are being changed by others; call again from a thread."


class Writer(Shared):
    """Writes frames to the tail, and opens the live counters of one ledger under their lock. Safe for threads.

    Args:
        ledger: Path of the ledger file; the files lie beside it.
        book: The engine.
    """

    def __init__(self, ledger: Path, book: Book) -> None:
        super().__init__(self._find_name, self._define)
        self._ledger, self._book = ledger, book
        self._ledger_name = str(ledger)
        self._folder_name = str(ledger.parent)
        self._live_path = Path(f"{ledger}-live")
        self._start()

    def _start(self) -> None:
        self.owner = quoted(process_name())
        self._mutex = threading.RLock()
        self._owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` asks
        self._live: Live | None = None
        self._state = self._situation = b""
        #: What the mapping says where nothing has changed since the lock was last held, and the generation it says;
        #: both only change under the lock.
        self._quiet, self._as_of = b"", 0
        self._moved: str | None = None
        self._file = (0, 0)
        self._segment: Segment | None = None
        self._slots = {}
        self._renew_at = 0.0
        self._generation = 0
        self._holds: dict[str, Any] = {}
        #: What the mapping says where nobody on this machine has swept a hold that this process remembers.
        self._unswept = b""
        self._folder_seen: tuple[int, int, int] | None = None
        self._look_again = 0.0

    @property
    def generation(self) -> int:
        """Changes when a plan may be out of date: a budget was defined anew, a name erased, the ledger replaced."""
        live = self._live
        there = False
        if live is not None:
            status = os.fstat(live.descriptor)
            # Nobody changes what a file without a name says: whoever comes next makes another one.
            there = bool(status.st_size == live.size and status.st_nlink)
            if there and live.map[SITUATION] == self._situation:
                return self._generation
        if live is None or not there or live.state != self._state:
            self._renew_if_possible()
            live = self._live
        if live is not None and live.whole:
            situation = live.map[SITUATION]
            if situation[:8] == self._state:
                self._situation = situation
            generation = int.from_bytes(situation[8:], "little")
            if generation != self._generation:
                self._generation = generation
                self.definitions.forget()  # a name may have been erased
        return self._generation

    def turn_over(self) -> None:
        """Go on in a new segment: the one before is removed once it is folded and nobody writes to it any more."""
        self._locked(lambda live: self._turn_over(live, full=live.header.segment))

    def renew_generation(self) -> None:
        """Make every process on this ledger throw its plans away."""

        def change(live: Live) -> None:
            live.generation += 1

        self.definitions.forget()
        self._locked(change)

    def _forget_holds(self, live: Live) -> None:
        """Ask the ledger about each hold of this process from now on."""
        self._unswept = live.map[SWEPT]
        self._holds.clear()

    def close(self) -> None:
        """Let go of the files; using the journal again opens them again."""
        with self._mutex:
            self._live, self._segment, self._state = None, None, b""

    # -- the lock

    def _locked(self, work: Callable[[Live, Unpack[Ts]], T], *given: *Ts) -> T:
        """Run `work` with the counters to itself, among all threads and processes.

        Args:
            work: Given the `Live` counters, and `given`.
            given: See `work`.

        Raises:
            StoreBusyError: somebody has them, and this thread must not wait; or a finaliser or signal handler came in
                the middle of it, in this very thread.
        """
        if not KNOWN[0]:
            notice_fork()
        if self._owned():
            raise StoreBusyError("The ledger's counters are being changed further up in this thread.")
        try:
            try:
                return work(self._acquire(), *given)
            finally:
                self._unlock()
        finally:  # an interrupt may come just as the lock is to be given back
            if self._owned():
                self._unlock()

    def _exclusively(self, work: Callable[[Live], T]) -> T:
        """`_locked`, with everything in the tail folded: the book then tells all there is."""
        if self._owned() or not may_wait():
            raise StoreBusyError("The ledger's counters are being changed, or the ledger would have to be read first.")
        self._book.fold()  # most of it without the lock

        def folded(live: Live) -> T:
            self._book.fold()
            return work(live)

        return self._locked(folded)

    def _acquire(self) -> Live:
        wait = not HURRY.on or may_wait()  # mostly decided without a call
        if not self._mutex.acquire(wait):
            raise StoreBusyError(_TAKEN)
        live = self._live
        if live is not None:
            if not lock_file(live.descriptor, wait=wait):
                raise StoreBusyError(_TAKEN)
            memory = live.map
            status = os.fstat(live.descriptor)
            # What is gone of a mapping must not be touched; and a file without a name is nobody else's any more.
            if status.st_size == live.size and status.st_nlink:
                if memory[QUIET] == self._quiet:
                    return live
                if memory[STATE] == self._state and not memory[DIRTY]:
                    self._note(live)
                    return live
            unlock_file(live.descriptor)
        if not wait:
            raise StoreBusyError("The ledger's counters have to be made anew.")
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
            self._note(live)
            return live

    def _note(self, live: Live) -> None:
        """Take note of what the mapping says. Needs the lock."""
        self._as_of, self._quiet = live.generation, live.map[QUIET] if live.state == self._state else b""

    def _unlock(self) -> None:
        if self._owned():
            if self._live is not None:
                unlock_file(self._live.descriptor)
            self._mutex.release()

    def _open(self) -> Live:
        """The live file of this ledger, locked and sound. Needs the mutex."""
        try:
            bare, live = Live.locked(self._live_path, self._ledger)
        except OSError as error:
            raise unwritable(self._live_path, error) from error
        try:
            self._file = _file_at(self._ledger_name)
            self._look_where()
            if live is not None:
                header = live.header
                if live.sound and header.ledger == self._book.identity and self._file in {header.file, _GONE}:
                    self._live = live
                    return live
            self._live = live
            try:
                return self._remake()
            except BaseException:  # what it says is of another file: nothing is to be held by it
                self._live = None
                raise
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
        self._look_where()
        number = max(*places, *every, 0, 0)
        if number not in numbers or self._is_cut_off(number, places):  # none yet, or removed, or another ledger's
            number += 1
            self._begin(number)
        header = LiveHeader(
            self._book.identity,
            self._file,
            number,
            # Of another file nobody knows what it says of budgets, and what it has of definitions.
            before.generation
            if before is not None and (before.ledger, before.file) == (self._book.identity, self._file)
            else time.time_ns(),
            floor,
        )
        try:
            live = Live.make(
                self._live_path, self._ledger, header, {digest_of(key): pair for key, pair in balances.items()}
            )
        except OSError as error:
            raise unwritable(self._live_path, error) from error
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
                    apply_effects(from_json(effects), holds, added)
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

    # -- where counters are; inside the lock

    def _place(self, wanted: Sequence[Sequence[Any]], live: Live) -> Live:
        """Look up where slots (the first of each row) are, for `Live.places`; a counter without a place gets one."""
        if len(live.places) > Definitions.MOST:
            live.places.clear()
        for slot, *_ in wanted:
            if slot in live.places:
                continue
            place = live.find(slot.digest)
            if place is None:
                if live.full or (slot.window_end is not None and slot.window_end < live.header.floor):
                    return self._place(wanted, self._remake(also=[row[0].key for row in wanted]))
                live.dirty = True
                place = live.add(slot.digest)
                live.dirty = False
            live.places[slot] = place
        return live

    def _check_files(self, live: Live) -> Live:
        """Refuse to hold anything for a ledger that is gone: its caps would start anew."""
        if not live.there:
            unlock_file(live.descriptor)
            self._live = None
            live = self._acquire_any()
        if self._moved is not None:
            raise StoreUnavailableError(self._moved)
        try:
            there = _file_at(self._ledger_name)
        except PermissionError:  # a program that gave up its rights: it goes by the counters, which it has open
            return live
        if there == self._file and there != _GONE:
            return live
        file = self._book.file()
        if file != live.header.file:
            live = self._remake()
        self._file = file
        return live

    def _all_there(self) -> bool:
        """Whether no file of the ledger was removed or replaced since they were looked at: by one look at the folder.

        Whatever is made, removed or renamed in it gives the folder a new time of change. A file system's clock may tick
        as seldom as every other second, so a time is only relied on once it lies well behind the look it came from.
        """
        if self._folder_seen is None:
            return False
        if _folder_at(self._folder_name) == self._folder_seen and self._moved is None:
            return True
        self._folder_seen = None
        return False

    def _look_at_folder(self) -> tuple[int, int, int] | None:
        """What `_all_there` may go by if a look at every file that follows finds them in place."""
        if self._folder_seen is not None or time.monotonic() < self._look_again:
            return self._folder_seen
        self._look_again = time.monotonic() + _TICK_NS / 1e9
        seen = _folder_at(self._folder_name)
        return None if seen is None or time.time_ns() - seen[2] < _TICK_NS else seen

    def _look_where(self) -> None:
        with contextlib.suppress(StoreError):  # the fold finds out
            self._moved = self._book.moved()

    # -- the tail

    def _follow(self, live: Live) -> None:
        """Write to the segment that the live file names. Needs the lock."""
        number, left = live.header.segment, self._segment
        if left is None or left.number != number:
            try:
                self._segment = Segment(self._ledger, number)
            except FileNotFoundError:
                self._replace_tail(live)
            except OSError as error:
                raise unwritable(segment_path(self._ledger, number), error) from error
            self._bring_over(left)
        self._state = live.state

    def _replace_tail(self, live: Live) -> None:
        """The tail is gone: go on with a new one, and define again what records name. Needs the lock."""
        log.error(
            "%s-tail was removed, replaced or cut off while it was in use; what no program has open any more is lost",
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
        try:
            segment = Segment(self._ledger, number, make=True)
            segment.append(first_frame(self._book.identity, number))
        except OSError as error:
            raise unwritable(path, error) from error
        return segment

    def _write(self, framed: bytes) -> None:
        live = self._live
        if live is not None:
            status = os.fstat(live.descriptor)
            if status.st_size == live.size and status.st_nlink and live.map[STATE] == self._state:
                self._append(framed)
                return
        self._renew_if_possible()
        self._append(framed)

    def _append(self, framed: bytes, *, there: bool = False) -> None:
        if not KNOWN[0]:
            notice_fork()
        try:
            segment = self._segment or self._last_segment()
            size = segment.append(framed, there=there)
        except TailGoneError:
            self._append_elsewhere(framed)
        except OSError as error:
            raise unwritable(segment_path(self._ledger, 0).with_suffix(""), error) from error
        else:
            if size > SEGMENT_BYTES:
                with contextlib.suppress(StoreError):  # the full one takes more
                    self._with_lock(partial(self._turn_over, full=segment.number))

    def _append_elsewhere(self, framed: bytes) -> None:
        """Write to the segment that takes the place of one that is gone."""
        left = self._segment
        try:
            self._with_lock(self._follow_again)
        except StoreUnavailableError as error:
            if left is None or not left.has_name:
                raise
            self._book.trouble.failed(error)
            left.append(framed, there=True)  # it was moved with all there is: put back, it is found
        else:
            self._write(framed)

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
        segment = self._segment = Segment(self._ledger, number) if own else self._begin(number + 1)
        return segment  # as another thread follows the tail, there may be none again by now

    def _is_cut_off(self, number: int, places: Mapping[int, int]) -> bool:
        """Whether more was folded of a segment than there is now (after a power cut): what is added would be missed."""
        return segment_path(self._ledger, number).stat().st_size < places.get(number, 0)

    def _follow_again(self, live: Live) -> None:
        number, left = live.header.segment, self._segment
        path = segment_path(self._ledger, number)
        self._segment = None
        try:
            if path.exists() and (
                owner_of(path) != self._book.identity
                or self._is_cut_off(number, self._book.stand(lambda standing: standing.places))
            ):
                self._replace_tail(live)
            else:
                self._follow(live)
        except StoreUnavailableError:
            self._segment = left
            raise
        self._bring_over(left)

    def _bring_over(self, left: Segment | None) -> None:
        """Write down once more what is in a segment that nobody finds any more; a fold takes every entry once."""
        if left is not None and self._segment is not None and not left.in_place:
            self._segment.append(left.read())
            log.warning("%s was renamed or replaced; what was written to it is in %s", left.path, self._segment.path)

    def check_tail(self) -> None:
        """See whether the ledger, and the segment that is written to, are still those that a fold finds."""
        with contextlib.suppress(StoreError, OSError):  # told by the fold; a program that gave up its rights goes on
            if _file_at(self._ledger_name) not in {self._file, _GONE}:
                self._with_lock(lambda live: self._note(self._check_files(live)))
        segment = self._segment
        if segment is not None and not segment.in_place and self._ledger.exists():
            with contextlib.suppress(StoreError):  # told by the fold
                self._with_lock(self._follow_again)

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
        try:
            return self._book.find_name(kind, value)
        except StoreBusyError:  # a thread asks
            raise
        except StoreError:
            return None


def _file_at(path: str) -> tuple[int, int]:
    """Device and inode."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on the hot path
    except (FileNotFoundError, NotADirectoryError):
        return _GONE
    return status.st_dev, status.st_ino


def _folder_at(path: str) -> tuple[int, int, int] | None:
    """Device, inode, and when something in it was last made, removed or renamed (nanoseconds); None when it is gone."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on the hot path
    except OSError:
        return None
    # Who restores files can set back when it was modified; and what Windows calls a change is when it was made.
    return status.st_dev, status.st_ino, max(status.st_ctime_ns, status.st_mtime_ns)
