"""Live counters: budget counters that all processes of a machine share, in a file mapped into memory.

They are derived: the book and the tail say the same, and the file is made anew from them whenever it is missing, was
left half changed, or belongs to another ledger file or another start of the machine. A file is never enlarged or
emptied in place, since a process that touches a page that is gone would die of it: a new one takes its place, and the
old one says so to those who still have it mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import weakref
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tokenmeter.ledger import CounterKey
from tokenmeter.processes import lock_file
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.urls import open_beside
from tokenmeter.values import dataclass

#: Where in the mapping `Live.state` is, that with the generation, both with `Live.dirty`, and that alone, for who looks
#: before every record.
STATE, SITUATION, QUIET, DIRTY = slice(8, 16), slice(8, 24), slice(8, 25), 24
#: Where it is what `Live.mark_swept` changes.
SWEPT = slice(128, 136)
#: Above anything a counter can hold.
NEVER = 1 << 126
_MAGIC = b"tmlive1\n"
#: magic, retired, segment, generation, dirty, ledger, capacity, used, floor, boot, device, inode
_HEAD = struct.Struct("<8sIIQ8x16sQQq16sQQ")
_GENERATION = struct.Struct("<Q")
_RETIRED_AT, _SEGMENT_AT, _GENERATION_AT, _USED_AT = 8, 12, 16, 56
#: epoch, when leases lapse, and the latest expiry of a hold made from them
_LEASE_AT, _LEASE = 104, struct.Struct("<8sQQ")
_BASE, _WIDTH = 256, 48
#: Where, behind a counter's place, what was settled and what is reserved begin; each is an integer of `AMOUNT` bytes.
SETTLED, RESERVED, AMOUNT = 16, 32, 16
_PAIR = struct.Struct("<QqQq")
_LEAST = 1024


@cache
def _boot() -> bytes:
    """Which start of the machine this is; random where the system does not tell, so that nothing is taken over."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)


class Slot:
    """One live counter as a process knows it.

    Attributes:
        key: The counter.
        window_end: End of its window in microseconds since the epoch; None when it never ends.
        alert_at: The settled amount from which a settlement reports this slot.
        thresholds: The settled amounts that alert, ascending, for whoever folds a record and so knows where it stands.
    """

    __slots__ = ("alert_at", "begin", "digest", "key", "thresholds", "window_end")

    def __init__(self, key: CounterKey, window_end: int | None, alert_at: int = NEVER) -> None:
        self.key, self.window_end, self.alert_at = key, window_end, alert_at
        self.thresholds: tuple[int, ...] = ()
        self.digest = digest_of(key)
        row = compact_json([key.budget, key.scope, key.window_start, window_end])
        #: Beginning of the counter's row in the effects of a frame.
        self.begin = row[:-1].encode() + b","


def digest_of(key: CounterKey) -> bytes:
    """16 bytes that stand for `key` in the file."""
    text = compact_json([key.budget, key.scope, key.window_start])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


@dataclass(frozen=True, slots=True)
class LiveHeader:
    """What a live file says of itself.

    Attributes:
        ledger: Identity of the ledger, 16 bytes.
        file: Device and inode of the ledger file.
        segment: The segment of the tail that is written to.
        generation: Changes whenever what processes remember may be out of date.
        floor: Counters of windows that ended before are not in it (microseconds since the epoch).
    """

    ledger: bytes
    file: tuple[int, int]
    segment: int
    generation: int
    floor: int


class Live:
    """One mapped file. Everything but `state`, `generation` and `header` needs its lock.

    Attributes:
        map: The mapping.
        descriptor: Its file, for locking.
        places: Counters that were looked up -> where they are.
    """

    __slots__ = ("__weakref__", "_capacity", "descriptor", "map", "places", "size")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.places: dict[Slot, int] = {}
        # Another thread may still look at the mapping when a new file takes over: it goes with its last user.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.size = os.fstat(descriptor).st_size
        self.map = mmap.mmap(descriptor, self.size)
        self._capacity = (self.size - _BASE) // _WIDTH

    @classmethod
    def locked(cls, path: Path, ledger: Path) -> tuple[int | None, Live | None]:
        """Open and lock the file: its mapping, or a locked descriptor of what has to be made anew.

        Raises:
            OSError: it cannot be made.
        """
        while True:
            descriptor = open_beside(path, ledger)
            try:
                lock_file(descriptor)
                status = os.fstat(descriptor)
                if not status.st_nlink:
                    os.close(descriptor)
                    continue
                if status.st_size < _BASE + _WIDTH or os.read(descriptor, 8) != _MAGIC:
                    return descriptor, None
                return None, cls(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise

    @classmethod
    def make(cls, path: Path, ledger: Path, header: LiveHeader, counters: Mapping[bytes, tuple[int, int]]) -> Live:
        """Put a new file in place of the one at `path`, whose lock the caller holds. The new one comes locked.

        Args:
            path: Where.
            ledger: Whose counters they are.
            header: What it says of itself.
            counters: Digest -> settled and reserved amount.

        Raises:
            OSError: there is no room.
        """
        capacity = max(_LEAST, 4 * len(counters))
        fresh = Path(f"{path}.{os.getpid()}")
        descriptor = open_beside(fresh, ledger, os.O_TRUNC)
        try:
            try:
                _allocate(descriptor, _BASE + capacity * _WIDTH)
                lock_file(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            live = cls(descriptor)
            for digest, (settled, reserved) in counters.items():
                live.write(live.add(digest), settled, reserved)
            _HEAD.pack_into(
                live.map,
                0,
                _MAGIC,
                0,
                header.segment,
                header.generation,
                header.ledger,
                capacity,
                len(counters),
                header.floor,
                _boot(),
                *header.file,
            )
            _LEASE.pack_into(live.map, _LEASE_AT, os.urandom(8), 0, 0)
            live.mark_swept()
            fresh.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        return live

    @property
    def header(self) -> LiveHeader:
        """What the file says of itself."""
        _, _, segment, generation, ledger, _, _, floor, _, *file = _HEAD.unpack_from(self.map)
        return LiveHeader(ledger, (file[0], file[1]), segment, generation, floor)

    @property
    def sound(self) -> bool:
        """Whether its counters can be used: not half changed, of this start of the machine, still at its path."""
        status = os.fstat(self.descriptor)
        return (
            not self.map[DIRTY]
            and bool(status.st_nlink)
            and status.st_size == self.size
            and _HEAD.unpack_from(self.map)[8] == _boot()
        )

    @property
    def there(self) -> bool:
        """Whether the file is still the one at its path, and whole."""
        status = os.fstat(self.descriptor)
        return bool(status.st_nlink) and status.st_size == self.size

    @property
    def whole(self) -> bool:
        """Whether nobody cut the file off: to touch what is gone of a mapping ends the process."""
        return os.lseek(self.descriptor, 0, os.SEEK_END) == self.size

    @property
    def dirty(self) -> bool:
        """Whether somebody left it half changed."""
        return bool(self.map[DIRTY])

    @dirty.setter
    def dirty(self, value: bool) -> None:
        self.map[DIRTY] = value

    @property
    def state(self) -> bytes:
        """What a writer compares before each record: it changes with the segment, and when the file was replaced."""
        return self.map[STATE]

    def retire(self) -> None:
        """Tell everyone who has it mapped to look for the new one."""
        self.map[_RETIRED_AT] = 1

    @property
    def generation(self) -> int:
        """See `LiveHeader.generation`."""
        found: int = _GENERATION.unpack_from(self.map, _GENERATION_AT)[0]
        return found

    @generation.setter
    def generation(self, value: int) -> None:
        _GENERATION.pack_into(self.map, _GENERATION_AT, value)

    def mark_swept(self) -> None:
        """Tell everyone that a hold was swept: what they remember of their own may be out of date. Needs the lock."""
        self.map[SWEPT] = os.urandom(8)

    def use_segment(self, number: int) -> None:
        """Send all writers to another segment."""
        struct.pack_into("<I", self.map, _SEGMENT_AT, number)

    # -- leases: room under caps that a server gave this machine

    @property
    def lease(self) -> tuple[bytes, int, int]:
        """What leases hold for: the file's epoch (8 bytes of its own), until when they may be spent, latest expiry.

        The second is in nanoseconds of `time.monotonic_ns`, 0 for not at all; the third is how late a hold made from
        them may expire, in microseconds since the epoch.
        """
        epoch, until, expiry = _LEASE.unpack_from(self.map, _LEASE_AT)
        return epoch, until, expiry

    def renew_lease(self, until: int, expiry: int) -> None:
        """Set what `lease` says. Needs the lock."""
        struct.pack_into("<QQ", self.map, _LEASE_AT + 8, until, expiry)

    # -- counters

    @property
    def full(self) -> bool:
        """Whether a new counter needs a larger file."""
        used: int = _GENERATION.unpack_from(self.map, _USED_AT)[0]
        return 2 * (used + 1) > self._capacity

    def find(self, digest: bytes) -> int | None:
        """Where a counter is."""
        place, found = self._probe(digest)
        return place if found else None

    def add(self, digest: bytes) -> int:
        """Make a place for a counter that has none."""
        place, found = self._probe(digest)
        if not found:
            self.map[place : place + 16] = digest
            _GENERATION.pack_into(self.map, _USED_AT, _GENERATION.unpack_from(self.map, _USED_AT)[0] + 1)
        return place

    def _probe(self, digest: bytes) -> tuple[int, bool]:
        index = int.from_bytes(digest[:8], "little") % self._capacity
        while True:
            place = _BASE + index * _WIDTH
            there = self.map[place : place + 16]
            if there == digest:
                return place, True
            if not any(there):
                return place, False
            index = (index + 1) % self._capacity

    def read(self, place: int) -> tuple[int, int]:
        """Settled and reserved amount of the counter at `place`."""
        low, high, low_reserved, high_reserved = _PAIR.unpack_from(self.map, place + 16)
        return high << 64 | low, high_reserved << 64 | low_reserved

    def write(self, place: int, settled: int, reserved: int) -> None:
        """Set the counter at `place`."""
        self.map[place + 16 : place + _WIDTH] = pack(settled, reserved)


def pack(settled: int, reserved: int) -> bytes:
    """A counter's amounts as they lie in the file.

    Raises:
        OverflowError: one has more than 127 bits.
    """
    return settled.to_bytes(16, "little", signed=True) + reserved.to_bytes(16, "little", signed=True)


def lock_live(path: Path, ledger: Path) -> int | None:
    """Keep everyone from a ledger's live counters: the file, made if there is none, locked; None while it is not free.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = open_beside(path, ledger)
    if lock_file(descriptor, wait=False) and os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def remove_live(descriptor: int, path: Path) -> None:
    """Have whoever has the file that `lock_live` locked make the counters anew; unlocks it."""
    try:
        if os.fstat(descriptor).st_size > _BASE:
            for place in (DIRTY, _RETIRED_AT):
                os.pwrite(descriptor, b"\1", place)
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Reserve the space now: a mapped page without room on the disk would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.write(descriptor, bytes(size))
