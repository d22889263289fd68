"""Processes: the switch that turns tokenmeter off in one, what tells one from another, locks, forks, the end.

``TOKENMETER_DISABLED=1`` is the switch. Locks between processes are on open files: `flock`, and on Windows a byte far
behind the end of the file. They are ours, since a lock here belongs to a descriptor that the store holds anyway;
`filelock` opens files of its own. Where there is no fork (Windows), a forked child has nothing to put right.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import mmap
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, Unpack
from weakref import WeakSet

from tokenmeter.errors import StoreUnavailableError

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: None on Windows.
_register = getattr(os, "register_at_fork", None)
#: What is done in a forked child, in this order.
_in_child: list[Callable[[], object]] = []


def after_fork_in_child(mend: Callable[[], object]) -> Callable[[], object]:
    """Have `mend` called in every forked child, before anything of ours. Usable as a decorator of a module's function.

    A lock that another thread held at the fork is never freed in the child: `make_lock`, or renew it. What only the
    parent may write down or close is forgotten.
    """
    _in_child.append(mend)
    return mend


def around_fork(*, before: Callable[[], object], parent: Callable[[], object], child: Callable[[], object]) -> None:
    """Have `before` called before every fork of Python's, then `parent` in the parent and `child` in the child."""
    after_fork_in_child(child)
    if _register is not None:
        _register(before=before, after_in_parent=parent)


#: Linux's ``MADV_WIPEONFORK``, for which Python has no name.
_WIPE_ON_FORK = 18


class _ByPid:
    """Where memory that a fork empties cannot be had, the system is asked each time."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> int:
        return os.getpid() == self._pid

    def __setitem__(self, _: int, value: int) -> None:
        self._pid = os.getpid() if value else 0


def _make_mark() -> mmap.mmap | _ByPid:
    if sys.platform != "linux":
        return _ByPid()
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        page.madvise(-1)
        return _ByPid()  # whoever takes any advice (an emulator) follows none
    try:
        page.madvise(_WIPE_ON_FORK)
    except OSError:
        return _ByPid()
    page[0] = 1
    return page


#: ``KNOWN[0]`` is 0 in a forked child, however it was forked, until `notice_fork`. To look takes no time.
KNOWN = _make_mark()
#: Whether Python still counts threads that only a parent has: to look at what they run ends the process.
has_lost_threads = False
#: The last process that Python was told of, and process and thread in which `_in_child` is being done.
_told_pid, _mender = os.getpid(), (0, 0)
_mending = threading.RLock()


def notice_fork() -> None:
    """Put right what a fork left, if it was not yet. Asked for where ``KNOWN[0]`` is 0, before anything else is done.

    Python is not told of every fork: uWSGI forks its workers so. Two of them that took each other for one process would
    give the same ids, and write over each other's records.
    """
    if _mender != (os.getpid(), threading.get_ident()):  # else what is being done asks
        run_alone(_mending, _mend)


def _mend() -> None:
    global _mender, has_lost_threads  # noqa: PLW0603 - the child is another process
    if KNOWN[0]:
        return
    _mender, has_lost_threads = (os.getpid(), threading.get_ident()), _told_pid != os.getpid()
    try:
        for mend in _in_child:
            try:
                mend()
            except Exception as error:  # noqa: BLE001 - the others are done, and the call that noticed goes on
                sys.excepthook(type(error), error, error.__traceback__)
        KNOWN[0] = 1
    finally:  # after an interrupt it is done again
        _mender = (0, 0)


def _begin_anew() -> None:
    """Python knows that this is another process now, and has none of a parent's threads in its books."""
    global _told_pid  # noqa: PLW0603 - as above
    _told_pid = os.getpid()
    _mending._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `concurrent.futures` does
    KNOWN[0] = 0
    notice_fork()


if _register is not None:
    _register(after_in_child=_begin_anew)

# SnapStart of AWS Lambda begins many instances with the memory of one process: each is a process of its own.
if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start":
    with contextlib.suppress(ImportError):  # it is part of that runtime
        importlib.import_module("snapshot_restore_py").register_after_restore(_begin_anew)


#: What `run_at_exit` was given, in that order.
_at_exit: list[Callable[[], object]] = []
#: The process that runs them without `atexit`, if it is one that ends so.
_ends_itself = 0


def run_at_exit(work: Callable[[], object]) -> Callable[[], object]:
    """Have `work` called when this process ends in order, what was given last first. Usable as a decorator.

    A child of `multiprocessing` or its like that was forked, by a fork server, too, ends without `atexit`: there it is
    called once the child's work is done and, where anybody waits for them, its threads have ended. `work` may be called
    twice.
    """
    atexit.register(work)
    _at_exit.append(work)
    _follow_multiprocessing()
    return work


#: `multiprocessing`, and those that are made of it: of datasets and notebooks, and of Celery.
_KINDS = ("multiprocessing", "multiprocess", "billiard")


def _is_child_of(package: str) -> bool:
    process = sys.modules.get(f"{package}.process")
    if process is None:
        return False
    if hasattr(process, "parent_process"):
        return process.parent_process() is not None
    return getattr(process.current_process(), "_parent_pid", None) is not None


def _follow_multiprocessing(_key: object = None) -> None:
    """In a child of `multiprocessing` or its like: have `_end` called at its end. Nothing is imported for it."""
    global _ends_itself  # noqa: PLW0603 - once per process
    for package in _KINDS if _ends_itself != os.getpid() else ():
        if (util := sys.modules.get(f"{package}.util")) and _is_child_of(package):
            _ends_itself = os.getpid()
            # Celery's children wait for no threads: what is to be done, this one does.
            util.Finalize(None, _run_last if package == "billiard" else _end, exitpriority=_LAST)
            return


#: Less than whatever else is to be done at the end of such a child: its queues are flushed at -5.
_LAST = -1000


@after_fork_in_child
def _follow_fork() -> None:
    # What is to be done at its end `multiprocessing` forgets in a new child, and then calls what is named here.
    for package in _KINDS:
        if util := sys.modules.get(f"{package}.util"):
            util.register_after_fork(_follow_fork, _follow_multiprocessing)


def _end() -> None:
    # What is asked to wait for all threads comes next, so this is a thread: theirs may have streams under way.
    threading.Thread(target=_run_after_threads, name="tokenmeter-end").start()


def _run_after_threads() -> None:
    ours = {threading.current_thread(), threading.main_thread()}
    while others := [thread for thread in threading.enumerate() if not thread.daemon and thread not in ours]:
        others[0].join()
    _run_last()


def _run_last() -> None:
    with contextlib.ExitStack() as stack:
        for work in _at_exit:
            stack.callback(work)


#: Another object in every forked child: whose something is, is told by it. ``KNOWN`` is looked at before.
this_process = object()


@after_fork_in_child
def _renew_process() -> None:
    global this_process  # noqa: PLW0603 - the child is another process
    this_process = object()


def is_parents(made_in: object) -> bool:
    """Whether something is a parent's of this process, since `this_process` was another one when it was made."""
    if not KNOWN[0]:
        notice_fork()
    return made_in is not this_process


_name: tuple[int, str] = (0, "")


def process_name() -> str:
    """``host:pid`` of this process; on Linux with two marks behind, of where the pid counts and of when it began."""
    global _name  # noqa: PLW0603 - asked for with every hold
    pid = os.getpid()
    if _name[0] != pid:
        name, began = f"{socket.gethostname()}:{pid}", _beginning(pid)
        _name = pid, f"{name}:{where}:{began}" if (where := _namespace()) and began else name
    return _name[1]


def has_ended(name: str) -> bool:
    """Whether the process of that `process_name` has ended; False where that cannot be told from here."""
    host, _, marks = name.partition(":")
    pid, *rest = marks.split(":")
    if len(rest) != 2 or host != socket.gethostname() or rest[0] != _namespace() or not pid.isdecimal():  # noqa: PLR2004
        return False
    return _beginning(int(pid)) != rest[1]


def _namespace() -> str | None:
    """A mark of this start of the machine and of the set of processes that can be seen here."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return hashlib.sha256(f"{boot}{Path('/proc/self/ns/pid').readlink()}".encode()).hexdigest()[:12]
    return None


def _beginning(pid: int) -> str | None:
    """When a process began, in the system's ticks; None for one that is not there, or only waits to be forgotten."""
    with contextlib.suppress(OSError):
        state, *rest = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return None if state in {"Z", "X"} else rest[18]
    return None


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: By whether a lock is shared, and whether it is waited for.
_FLAGS: dict[tuple[bool, bool], int] = (
    {}
    if fcntl is None
    else {
        (shared, wait): (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        for shared in (False, True)
        for wait in (False, True)
    }
)

#: Whether there are shared locks, and open files can be renamed and removed: not on Windows.
CAN_SHARE = fcntl is not None
#: Windows keeps others from reading what is locked, so it is a byte that no file has.
_FAR = 1 << 40
_PAUSE_SECONDS = 0.005


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock the open file; the lock is freed by `unlock_file`, when its last descriptor is closed, and by a crash.

    Args:
        descriptor: The file, open for reading and writing.
        shared: Whether others may hold it shared at the same time. Windows has no such lock here: it is exclusive.
        wait: Whether to wait until it is free.

    Returns:
        False when it is not free and `wait` is False.
    """
    if fcntl is None:
        return _lock_byte(descriptor, wait=wait)
    try:
        fcntl.flock(descriptor, _FLAGS[shared, wait])
    except BlockingIOError:
        return False
    return True


def unlock_file(descriptor: int) -> None:
    """Free the lock; does nothing when there is none."""
    if fcntl is None:
        _unlock_byte(descriptor)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lock_byte(descriptor: int, *, wait: bool) -> bool:
    msvcrt = _msvcrt()
    while True:
        try:
            _at_far(descriptor, lambda: msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1))
        except OSError:
            if not wait:
                return False
            time.sleep(_PAUSE_SECONDS)
        else:
            return True


def _unlock_byte(descriptor: int) -> None:
    msvcrt = _msvcrt()
    try:
        _at_far(descriptor, lambda: msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1))
    except OSError:  # it was not locked
        return


def _at_far(descriptor: int, act: Any) -> None:
    """Run `act` with the file's position at the byte that stands for the lock."""
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        act()
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def _msvcrt() -> Any:
    import msvcrt  # noqa: PLC0415 - Windows only

    return msvcrt


_LOCKS: WeakSet[Any] = WeakSet()


def make_lock() -> Any:
    """A `threading.RLock` that is free in a forked child, whichever other thread held it at the fork."""
    lock = threading.RLock()
    _LOCKS.add(lock)
    return lock


@after_fork_in_child
def _free_locks() -> None:
    for lock in list(_LOCKS):
        if not lock._is_owned():  # noqa: SLF001 - as `threading.Condition` asks: who forks amid his own work goes on with it
            lock._at_fork_reinit()  # noqa: SLF001 - as `concurrent.futures` does


def run_alone(lock: Any, work: Callable[[Unpack[Ts]], T], *given: *Ts) -> T:
    """Run `work` with a reentrant lock; whatever is raised at whichever line, here too, the lock is free afterwards.

    At the end of a ``with`` block an exception may come just before the lock is given back.

    Args:
        lock: A `threading.RLock`.
        work: Given `given`. Where this thread has the lock already, it keeps it.
        given: See `work`.
    """
    if lock._is_owned():  # noqa: SLF001 - as `threading.Condition` asks
        return work(*given)
    try:
        try:
            lock.acquire()
            return work(*given)
        finally:
            if lock._is_owned():  # noqa: SLF001 - as above
                lock.release()
    finally:
        if lock._is_owned():  # noqa: SLF001 - as above
            lock.release()


class OnceForAll:
    """Work that many threads want done at once: one does it, for all that asked for it before it was begun."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self._begun = 0
        self._came_of_it: tuple[Any, StoreUnavailableError | None] | None = None

    def run(self, work: Callable[[], T]) -> T:
        """What `work` gives, here or in the thread that was first.

        Args:
            work: The same for all. Where the store cannot be used, nobody tries once more; what else it raises is the
                first one's, and the next one does it.
        """
        if not may_wait():
            return work()
        return run_alone(self._lock, self._run, work, self._begun)

    def _run(self, work: Callable[[], T], asked: int) -> T:
        if self._begun == asked or self._came_of_it is None:
            self._begun += 1
            self._came_of_it = None
            try:
                given = work()
            except StoreUnavailableError as error:
                self._came_of_it = None, error
                raise
            self._came_of_it = given, None
            return given
        found, failed = self._came_of_it
        if failed is not None:
            raise StoreUnavailableError(str(failed)) from failed
        shared: T = found
        return shared


class _Hurry(threading.local):
    on = False


#: Whether this thread is within `run_at_once`, or was when it was interrupted: `may_wait` tells.
HURRY = _Hurry()


def run_at_once(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Run `work` on a thread that must not wait: one with an event loop, or in which a finaliser runs.

    Whatever of ours would wait in it, for a lock, a server or a file to be read, asks `may_wait` and raises
    `StoreBusyError` instead; nothing was written then. A thread that is begun in it may wait.

    Args:
        work: Given `given` and `named`.
        given: See `work`.
        named: See `work`.
    """
    outer = HURRY.on
    HURRY.on = True
    try:
        return work(*given, **named)
    finally:
        HURRY.on = outer


def run_patiently(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Run `work` as if there were no `run_at_once` around: what is of the application's, or cannot be put off."""
    outer = HURRY.on
    HURRY.on = False
    try:
        return work(*given, **named)
    finally:
        HURRY.on = outer


def may_wait() -> bool:
    """Whether this thread may wait, here and now: not within `run_at_once`."""
    if not HURRY.on:
        return True
    if is_on_stack(run_at_once):
        return False
    HURRY.on = False
    return True


class Background:
    """Work of one owner in threads of its own, for which the owner waits before it lets go of its things."""

    def __init__(self) -> None:
        self._threads: set[threading.Thread] = set()

    @property
    def is_busy(self) -> bool:
        """Whether something that was begun in this process is not done yet."""
        return any(thread.is_alive() for thread in tuple(self._threads))

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Begin `work`, which must not raise, in a thread. Never waits; not done where no thread can be had."""

        def run() -> None:
            try:
                work()
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"tokenmeter-{name}", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # too many there are, or the interpreter ends
            self._threads.discard(thread)

    def finish(self, seconds: float) -> None:  # not money: seconds
        """Wait until what was begun is done, for so many seconds at most, or until it is up to this very thread."""
        until = time.monotonic() + seconds
        for thread in tuple(self._threads):
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0))


def is_on_event_loop() -> bool:
    """Whether an asyncio loop runs in this thread. Where nobody uses asyncio it is not imported for that."""
    loops = sys.modules.get("asyncio")
    try:
        return loops is not None and loops.get_running_loop() is not None
    except RuntimeError:
        return False


def is_on_stack(function: Callable[..., object]) -> bool:
    """Whether this thread is within a call of `function`.

    A mark alone does not tell: an interrupt may have come before it was taken away.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - who called
    while frame is not None:
        if frame.f_code is function.__code__:
            return True
        frame = frame.f_back
    return False


VARIABLE = "TOKENMETER_DISABLED"
_OFF = frozenset({"", "0", "false", "no", "off"})


#: The variables as they lie in `os.environ`, where that can be seen: asked before every call.
_variables: Any = getattr(os.environ, "_data", os.environ)
_encoded = os.environ.encodekey(VARIABLE) if _variables is not os.environ else VARIABLE


def is_disabled() -> bool:
    """Whether clients are the SDK's own for now: nothing is recorded, held or opened, and no budget stops a call."""
    if _encoded not in _variables:
        return False
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF
