"""The tail: files beside a ledger that calls append their records to, and that a fold empties into the book.

A frame is ``magic 4 | length of the record | length of its effects | crc32 of both | record | effects``, integers of 4
bytes. The record is what the chain covers; the effects say what it does to counters and holds. One frame is one write
to a file opened for appending, so writers need no lock and a killed one leaves at most a torn frame, which readers
step over: no record can contain the magic, which is not UTF-8.

The tail has segments. A writer holds a shared lock on the one it writes to, so a segment is removed only when
everything in it is folded and nobody can append to it any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from pydantic_core import from_json, to_json

from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.processes import lock_file
from tokenmeter.stores.encoding import FORMAT
from tokenmeter.stores.urls import make_beside, make_private_file

#: Not for programs that are started; Windows has no such flag.
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

_MAGIC = b"\xf7tm1"
_HEAD = struct.Struct("<4sIII")
_PAGE = 1 << 20

#: Where a frame ends in its segment, its record, and its effects.
Frame = tuple[int, bytes, bytes]


class TornWriteError(OSError):
    """Only a part of some frames was written, which may hold whole ones."""


def wrote_nothing(error: BaseException) -> bool:
    """Whether a write that failed with `error` left nothing, so that what was to be written can be new again."""
    return not isinstance(error.__cause__, TornWriteError)


class TailGoneError(OSError):
    """The segment was removed or cut off under its writer."""


def frame(record: bytes, effects: bytes = b"") -> bytes:
    """One frame, ready to be written."""
    body = record + effects if effects else record
    return _HEAD.pack(_MAGIC, len(record), len(effects), zlib.crc32(body)) + body


def segment_path(ledger: Path, number: int) -> Path:
    """The file of a segment."""
    return Path(f"{ledger}-tail.{number}")


def segments(ledger: Path) -> list[int]:
    """Numbers of the segments that exist, ascending."""
    begin = f"{ledger.name}-tail."
    try:
        names = os.listdir(ledger.parent)  # noqa: PTH208 - names are all that is wanted
    except (FileNotFoundError, NotADirectoryError):
        return []
    ends = (name.removeprefix(begin) for name in names if name.startswith(begin))
    return sorted(int(end) for end in ends if end.isdecimal())


class Segment:
    """A segment open for appending. It keeps a shared lock until it is closed.

    Args:
        ledger: The ledger that it belongs to.
        number: Which segment.

    Raises:
        OSError: it cannot be opened; FileNotFoundError when there is none and `make` is not set.
    """

    __slots__ = ("_descriptor", "_device", "_inode", "_name", "_seen", "number", "path")

    def __init__(self, ledger: Path, number: int, *, make: bool = False) -> None:
        self.path, self.number = segment_path(ledger, number), number
        self._name, self._seen = str(self.path), 0
        if make:
            make_private_file(self.path, ledger)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | _CLOEXEC)
        try:
            lock_file(self._descriptor, shared=True)
            there = os.fstat(self._descriptor).st_nlink
            status = self.path.stat()  # compared with itself later: not all file systems say the same of both
            self._device, self._inode = status.st_dev, status.st_ino
        except BaseException:
            self.__del__()
            raise
        if not there:
            self.__del__()
            raise FileNotFoundError(errno.ENOENT, "was folded and removed", str(self.path))

    def append(self, framed: bytes, *, there: bool = False) -> int:
        """Write frames, durably for everything but a power cut; the segment's size before.

        Args:
            framed: The frames.
            there: Whether it is known that nobody has removed the file, so that only its size is looked at.

        Raises:
            TailGoneError: somebody removed, renamed or cut off the file.
            TornWriteError: the disk is full or fails, after a part was written.
            OSError: the disk is full or fails; nothing was written.
        """
        if there:
            size = os.lseek(self._descriptor, 0, os.SEEK_END)
        else:
            try:  # by its name: a file that was renamed takes records along
                status = os.stat(self._name)  # noqa: PTH116 - on the hot path
            except (FileNotFoundError, NotADirectoryError):
                size = -1
            except OSError as error:  # who gave up his rights cannot look there: the file says whether it has a name
                let_interrupt_through(error)
                status = os.fstat(self._descriptor)
                size = status.st_size if status.st_nlink else -1
            else:
                size = status.st_size if status.st_ino == self._inode and status.st_dev == self._device else -1
        if size < self._seen:
            raise TailGoneError(errno.ENOENT, "was removed or cut off", str(self.path))
        self._seen = size
        written = os.write(self._descriptor, framed)
        if written != len(framed) and not self._write_rest(framed, written):
            raise TornWriteError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return size

    def _write_rest(self, framed: bytes, written: int) -> bool:
        """Go on behind what was written of frames, or with all of them anew, should others have written between."""
        for _ in range(2):
            start = os.lseek(self._descriptor, 0, os.SEEK_END) - written
            try:
                while written < len(framed) and (more := os.write(self._descriptor, framed[written:])):
                    written += more
            except OSError as error:
                let_interrupt_through(error)
                raise TornWriteError(error.errno, error.strerror, str(self.path)) from error
            if os.pread(self._descriptor, len(framed), start) == framed:
                return True
            written = 0
        return False

    @property
    def in_place(self) -> bool:
        """Whether the file under its name is still the one that is open."""
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return self.has_name
        return (status.st_dev, status.st_ino) == (self._device, self._inode)

    @property
    def has_name(self) -> bool:
        """Whether it can be found under any name."""
        return bool(os.fstat(self._descriptor).st_nlink)

    def read(self) -> bytes:
        """All that is in it, also when it has no name any more."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def __del__(self) -> None:
        """Close with the last user: another thread may be about to write. A forked child's copy leaves the lock."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)


def first_frame(owner: bytes, number: int) -> bytes:
    """What a segment begins with: whose it is."""
    return frame(to_json({"format": FORMAT, "record": "segment", "ledger": owner.hex(), "number": number}))


class OwnSegment:
    """A segment that one process alone writes to, where the file system promises nothing to several.

    Args:
        ledger: The ledger that it belongs to.
        owner: Its identity.
        after: The highest number that is taken.

    Raises:
        OSError: it cannot be made.
    """

    __slots__ = ("_descriptor", "path")

    def __init__(self, ledger: Path, owner: bytes, after: int) -> None:
        self._descriptor = -1
        number = max(*segments(ledger), after, 0)
        while self._descriptor < 0:
            number += 1
            self.path = segment_path(ledger, number)
            with contextlib.suppress(FileExistsError):
                flags = os.O_WRONLY | os.O_APPEND | _CLOEXEC | getattr(os, "O_BINARY", 0)
                self._descriptor = make_beside(self.path, ledger, flags)
        self.append(first_frame(owner, number))

    def append(self, framed: bytes) -> None:
        """Write frames, durably.

        Raises:
            OSError: the disk is full or fails. What was written of them is a torn frame, which readers step over.
        """
        written = os.write(self._descriptor, framed)
        if written != len(framed):
            raise TornWriteError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._descriptor)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def owner_of(path: Path) -> bytes | None:
    """Identity of the ledger that a segment belongs to, as its first record says; None when it does not."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with path.open("rb") as file:
            head = file.read(512)
        for _, record, _ in _in(head, 0):
            return bytes.fromhex(from_json(record)["ledger"])
    return None


def frames(path: Path, start: int) -> Iterator[Frame]:
    """The whole frames of a segment from `start` on, as they are when each page is read.

    A torn frame is stepped over once a whole one stands behind it; the last one may still be growing.
    """
    with contextlib.suppress(FileNotFoundError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        while True:
            file.seek(start)
            data = file.read(_PAGE)
            found = yield from _in(data, start)
            if found is None:
                if len(data) < _PAGE:
                    return
                file.seek(start)
                data = file.read(_whole(data))  # one frame larger than a page
                found = yield from _in(data, start)
                if found is None:
                    return
            start = found


def _whole(data: bytes) -> int:
    _, length, more, _ = _HEAD.unpack_from(data)
    return max(_HEAD.size + length + more, 2 * _PAGE) if data[:4] == _MAGIC else 64 * _PAGE


def _in(data: bytes, offset: int) -> Generator[Frame, None, int | None]:
    """The whole frames in `data`, which begins at `offset`; at the end, where the last of them ends."""
    reached: int | None = None
    place, size = 0, len(data)
    while place + _HEAD.size <= size:
        magic, length, more, crc = _HEAD.unpack_from(data, place)
        begin = place + _HEAD.size
        middle, end = begin + length, begin + length + more
        if magic == _MAGIC and end <= size and zlib.crc32(data[begin:end]) == crc:
            place, reached = end, offset + end
            yield offset + end, data[begin:middle], data[middle:end]
            continue
        place = data.find(_MAGIC, place + 1)
        if place < 0:
            break
    return reached


def unfolded(ledger: Path, owner: bytes, places: Mapping[int, int]) -> Iterator[tuple[int, Frame]]:
    """What lies in a ledger's tail beyond the places that are reached: segment and frame."""
    for number in segments(ledger):
        path = segment_path(ledger, number)
        if owner_of(path) == owner:
            for framed in frames(path, places.get(number, 0)):
                yield number, framed


def remove_segment(ledger: Path, number: int, folded: int) -> bool:
    """Remove a segment if it is folded to its end and nobody has it open for writing; whether it is gone."""
    path = segment_path(ledger, number)
    try:
        descriptor = os.open(path, os.O_RDWR | _CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not lock_file(descriptor, wait=False):
            return False
        if os.fstat(descriptor).st_size > folded and any(frames(path, folded)):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True
