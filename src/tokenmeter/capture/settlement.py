"""Writing outcomes down from wherever a call may end: a thread, an event loop, a finaliser, the interpreter's exit.

A finaliser can run at any allocation, also while this thread is inside the meter or the store and holds one of their
locks. Therefore it never waits: what it cannot write at once is put by and written after the next call, or at exit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakSet

import anyio
import anyio.to_thread

from tokenmeter.call import Call, Outcome
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import new_id
from tokenmeter.places import hand_place
from tokenmeter.processes import after_fork_in_child, is_on_stack, may_wait, run_at_exit, run_at_once

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter

T = TypeVar("T")


class Open(Protocol):
    """Something that still has to be written down before the process ends."""

    def abandon(self) -> None:
        """Write it down now, as far as it is known. Must not raise."""
        ...


#: The thread of what an interrupt ended: no thread has this number.
_NOBODY = 0


class Settling:
    """One outcome on its way into the ledger. Written once, however often that is begun.

    Attributes:
        done: Whether nothing is left to do.
    """

    __slots__ = ("_begun_in", "authorization", "done", "meter", "outcome")

    def __init__(self, meter: Meter, authorization: Authorization, outcome: Outcome) -> None:
        self.meter = meter
        self.authorization = authorization
        # What fails amid its writing is asked for by its identity: else it might be written twice.
        self.outcome = outcome if outcome.entry_id is not None else replace(outcome, entry_id=new_id())
        self.done = False
        self._begun_in: int | None = None

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read first, for which an event loop must not wait."""
        return False

    def record(self) -> None:
        """Hand the outcome to the meter."""
        self.meter.settle(self.authorization, self.outcome)

    def write(self) -> None:
        """Settle.

        Raises:
            StoreBusyError: the store is busy and this thread must not wait; nothing was written.
        """
        if self.done or self._begun_in not in {None, _NOBODY, get_ident()}:
            return
        try:
            for _ in range(2):  # what fails once may pass, as want of memory does
                try:
                    if self._begun_in is None or not self._is_recorded():
                        self._begun_in = get_ident()
                        self.record()
                    break
                except StoreBusyError:
                    raise
                except Exception as error:  # noqa: BLE001 - the call's own result goes through
                    self.meter.fault("settle", error)
        except StoreBusyError:
            self._begun_in = None
            if not may_wait():
                raise
            self.meter.fault("settle", StoreBusyError("the store stayed busy although asked to wait"))
        except BaseException:  # an interrupt: whoever comes next goes on, in any thread
            self._begun_in = _NOBODY
            raise
        self.done = True

    def _is_recorded(self) -> bool:
        """Whether an earlier beginning, which an interrupt ended, got as far as the ledger."""
        return self.meter.store.entry(self.outcome.entry_id or "") is not None


class _SettlingThread(threading.local):
    inside = False


_this_thread = _SettlingThread()


def _is_inside() -> bool:
    """Whether this thread is writing an outcome right now, and whoever asks came in the middle of it."""
    if not _this_thread.inside:
        return False
    if is_on_stack(_write):
        return True
    _this_thread.inside = False
    return False


_put_by: deque[Settling] = deque()
_open: WeakSet[Open] = WeakSet()
_exit_hook_set = False


def settle(settling: Settling) -> None:
    """Write one outcome, waiting for the store's lock if need be. Never raises."""
    if (
        _this_thread.inside and _is_inside()
    ):  # a signal handler or an observer amid another one: it would wait for itself
        _put_by_for_later(settling)
        return
    _write(settling)
    if _put_by:
        _catch_up()


async def settle_async(settling: Settling) -> None:
    """Write one outcome without ever making the event loop wait for a lock. Never raises, except a cancellation.

    A cancelled task does not lose the outcome: the thread that waits for the lock goes on.
    """
    if settling.looks_up or not run_at_once(_write, settling):
        await in_thread(settle, settling)
        return
    if _put_by:
        run_at_once(_catch_up)
        if any(waiting.looks_up for waiting in tuple(_put_by)):
            await catch_up_async()


def has_waiting() -> bool:
    """Whether anything was put by."""
    return bool(_put_by)


def catch_up() -> None:
    """Write what was put by."""
    if _put_by and not _is_inside():
        _catch_up()


async def catch_up_async() -> None:
    """Write what was put by, without making the event loop wait."""
    if _put_by:
        await in_thread(_catch_up)


async def in_thread(work: Callable[..., object], *arguments: Any) -> None:
    """Run `work` in a thread of its own, and to its end whatever becomes of the task."""
    with anyio.CancelScope(shield=True):
        await _apart(partial(work, *arguments))


async def _apart(work: Callable[[], T]) -> T:
    begun: list[bool] = []

    def run() -> T:
        begun.append(True)
        return work()

    try:
        return await anyio.to_thread.run_sync(run, limiter=anyio.CapacityLimiter(1))
    except RuntimeError:
        if begun:
            raise
        return work()  # no thread can be had: better that the loop waits for a lock than that a call is lost


def settle_from_anywhere(settling: Settling) -> None:
    """Write one outcome from a finaliser or another place that must not wait. Never raises, never blocks."""
    if _is_inside() or settling.looks_up or not run_at_once(_write, settling):
        _put_by_for_later(settling)


def _put_by_for_later(settling: Settling) -> None:
    _set_exit_hook()
    _put_by.append(settling)


def _write(settling: Settling) -> bool:
    outer = _this_thread.inside
    _this_thread.inside = True
    try:
        settling.write()
    except StoreBusyError:
        return False
    finally:
        _this_thread.inside = outer
    return True


def _catch_up() -> None:
    at = 0
    while at < len(_put_by):
        try:
            settling = _put_by[at]  # it stays there while it is written: an interrupt must not take it away
        except IndexError:  # another thread wrote the last one
            return
        if (settling.looks_up and not may_wait()) or not _write(settling):
            return
        if not settling.done:  # another thread is writing it
            at += 1
            continue
        with suppress(ValueError):  # another thread took it off
            _put_by.remove(settling)


async def authorize_async(meter: Meter, call: Call, hold_id: str) -> Authorization:
    """`Meter.authorize` without ever making the event loop wait for a lock; a cancelled task leaves no hold behind.

    Raises:
        BudgetExceededError: a hard cap would be passed.
    """
    try:
        return run_at_once(meter.authorize, call, hold_id=hold_id)
    except StoreBusyError:
        waiting = _Waiting(meter, call, hold_id)
        try:
            return await _apart(hand_place(waiting.authorize))
        except BaseException:
            waiting.give_back()
            raise


class _Waiting:
    """An authorization that a thread waits for; given back if nobody takes it."""

    def __init__(self, meter: Meter, call: Call, hold_id: str) -> None:
        self._meter = meter
        self._call = call
        self._hold_id = hold_id
        self._given_back = False
        self._granted: Authorization | None = None
        self._lock = threading.Lock()

    def authorize(self) -> Authorization:
        granted = self._meter.authorize(self._call, hold_id=self._hold_id)
        with self._lock:
            self._granted = granted
            given_back = self._given_back
        if given_back:
            self._meter.release(granted)
        return granted

    def give_back(self) -> None:
        with self._lock:
            self._given_back = True
            granted = self._granted
        if granted is not None:
            self._meter.release(granted)


# -- the end of the process


def watch(item: Open) -> None:
    """Have `item` written down at the interpreter's exit, should it still be open then. Keeps no strong reference."""
    _set_exit_hook()
    _open.add(item)


def _set_exit_hook() -> None:
    global _exit_hook_set  # noqa: PLW0603 - once per process, and late: it must run before the store is closed
    if not _exit_hook_set:
        _exit_hook_set = True
        run_at_exit(_at_exit)


def _at_exit() -> None:
    for item in list(_open):
        item.abandon()
    _catch_up()


@after_fork_in_child
def _forget() -> None:
    """In a forked child: streams and outcomes of the parent are the parent's to write down."""
    _open.clear()
    _put_by.clear()
    _this_thread.inside = False
