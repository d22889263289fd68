"""Forks: a child must not find SQLite in the middle of something another thread did, and trusts no inherited file.

SQLite has locks for the whole process (memory, open files). One that another thread holds at the fork is held in the
child for ever: its first call to SQLite would never come back. So a fork waits for what is under way.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Protocol

from tokenmeter.processes import around_fork

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds a fork waits for what is under way; later the child does with what it inherits.
FORK_PATIENCE = 5.0
_PAUSE_SECONDS = 0.001


class Forked(Protocol):
    """What has to do something before and after a fork."""

    def before_fork(self) -> None:
        """Nothing is read by another thread any more."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin afresh."""


class Reading:
    """One read that is under way: a fork by another thread waits for its end, and it waits for a fork's."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def begin(self) -> None:
        """Wait while another thread forks, unless this one is in the middle of a read already."""
        until = time.monotonic() + 2 * FORK_PATIENCE  # more than a fork takes
        is_inner = any(reading.is_of(self._thread) for reading in tuple(_under_way))
        while True:
            _under_way.add(self)  # first said, then looked: the fork does it the other way round
            if is_inner or _forking in {None, self._thread} or time.monotonic() > until:
                return
            self.end()
            time.sleep(_PAUSE_SECONDS)

    def end(self) -> None:
        """Say that it is over; does nothing the second time."""
        _under_way.discard(self)

    def is_of(self, thread: int) -> bool:
        """Whether it is the thread's own."""
        return self._thread == thread


_under_way: set[Reading] = set()
#: The thread that forks, if any.
_forking: int | None = None
_asked: weakref.WeakSet[Forked] = weakref.WeakSet()


def ask_at_forks(one: Forked) -> None:
    """Have `one` told of every fork, for as long as somebody else has it."""
    _asked.add(one)


def _before() -> None:
    global _forking  # noqa: PLW0603 - one fork at a time, whichever thread it is
    me = _forking = threading.get_ident()
    until = time.monotonic() + FORK_PATIENCE
    while any(not reading.is_of(me) for reading in tuple(_under_way)) and time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)
    _tell(lambda one: one.before_fork())


def _after_in_parent() -> None:
    global _forking  # noqa: PLW0603 - as above
    _forking = None
    _tell(lambda one: one.after_fork_in_parent())


def _after_in_child() -> None:
    global _forking, _under_way  # noqa: PLW0603 - as above
    _forking, me = None, threading.get_ident()
    _under_way = {reading for reading in tuple(_under_way) if reading.is_of(me)}
    _tell(lambda one: one.after_fork_in_child())


def _tell(act: Callable[[Forked], None]) -> None:
    for one in list(_asked):
        act(one)


around_fork(before=_before, parent=_after_in_parent, child=_after_in_child)
