"""One SQLite file: creating it, locking it, writing to it and reading it, with threads, processes and forks about.

The rules, and why, are in docs/explanation/storage.md.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import TypeVar

from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.paths import full_path
from tokenmeter.processes import HURRY, KNOWN, may_wait, notice_fork, run_at_exit
from tokenmeter.stores.sqlite.opened import (
    FORK_PATIENCE,
    OpenFile,
    ReadUnderWay,
    ask_at_forks,
    explained,
    identity,
    is_busy,
    keep_for_ever,
    sqlite3,
)
from tokenmeter.stores.urls import SideLock, can_share_memory, is_mounted_alone, is_network, make_private_file, unusable

__all__ = ["PATIENCE", "Database", "sqlite3"]


T = TypeVar("T")

#: Not the program's own `random`, whose sequence is the program's.
_DICE = SystemRandom()
#: Seconds a transaction waits for another program, and for threads and processes of our own.
PATIENCE, _PEER_PATIENCE = 1.0, 10.0
#: WAL pages (4 KiB) between checkpoints.
_CHECKPOINT_PAGES = 4000


class _FileMovedError(Exception):
    """The file under the path is no longer the one that is open."""


class Database:
    """An SQLite file, shared by threads and processes.

    One connection writes, behind a mutex; readers take connections of their own, so that a report never delays a write.
    The file is made when the database is opened first, and never again: what was removed stays removed.

    Attributes:
        path: Absolute, symbolic links resolved.
        wal: Whether the file is in WAL mode; False on a network file system, and where no memory can be shared.

    Args:
        path: The file; made if it is missing.
        patience: Seconds a transaction waits for its turn.
        refuse: Raises for a file that is no ledger of this release; only reads. Called before anything is made beside
            the file or changed in it.
        prepare: Makes the tables, or checks them; called under the lock whenever a connection is opened for writing.
        check: Called at the beginning of every write transaction.

    Raises:
        ConfigurationError: it is a directory.
        StoreUnavailableError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        refuse: Callable[[sqlite3.Connection, Path], None],
        prepare: Callable[[sqlite3.Connection, Path], None],
        check: Callable[[sqlite3.Connection, Path], None] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.path = full_path(path)
        if self.path.is_dir():
            raise ConfigurationError(
                f"{self.path} is a directory; name a file in it, such as {self.path / 'ledger.db'}."
            )
        self.patience = patience
        self.wal = True
        self._refuse, self._prepare_tables, self._check = refuse, prepare, check
        self._lock_path = Path(f"{self.path}-lock")
        self._lock = SideLock(self.path)
        self._made = self._is_cut = False
        self._start()
        _DATABASES.add(self)
        ask_at_forks(self)
        self._in_turn(self._session)
        self._made = True

    def _start(self) -> None:
        self._mutex = threading.RLock()
        self._owned: Callable[[], bool] = self._mutex._is_owned  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` asks
        self._writer: OpenFile | None = None
        self._readers: list[OpenFile] = []
        self._pid = os.getpid()
        self._forking = False

    def write(self, work: Callable[[sqlite3.Connection], T], *, patience: float | None = None) -> T:
        """Run `work` in one transaction and commit it. It may run again if the file was put back meanwhile.

        Raises:
            StoreBusyError: this thread is in the middle of a write: a finaliser or a signal handler asks for another.
            StoreUnavailableError: the file cannot be written; nothing was.
        """
        if not KNOWN[0]:
            notice_fork()
        if self._owned():
            raise StoreBusyError(f"{self.path} is being written to further up in this thread.")

        def transact(deadline: float) -> T:
            while True:
                session = self._session(deadline)
                with contextlib.suppress(_FileMovedError):
                    return self._transact(session, work, deadline)
                self._close_idle(deadline)

        return self._in_turn(transact, patience)

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one read transaction: it sees one state of the ledger and nobody waits for it.

        Raises:
            StoreBusyError: who writes would have to be waited for, which only happens without WAL, and this thread must
                not wait.
            StoreUnavailableError: the file cannot be read.
        """
        if not KNOWN[0]:
            notice_fork()
        reading = ReadUnderWay()
        try:
            try:
                reading.begin()
                return self._read(work)
            finally:
                reading.end()
        finally:  # an interrupt may come just as it ends
            reading.end()

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        session = self._lend()
        healthy, wait = False, self.wal or not HURRY.on or may_wait()
        try:
            if not self.wal:
                session.connection.execute(f"PRAGMA busy_timeout = {round(self.patience * 1000) if wait else 0}")
            session.connection.execute("BEGIN")
            try:
                result = work(session.connection)
                healthy = True
                return result
            finally:
                session.connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            if not wait and is_busy(error):
                raise self._taken() from error
            raise explained(self.path, error) from error
        finally:
            if healthy and session.is_sound():
                self._readers.append(session)
            else:
                session.let_go()

    def file(self) -> tuple[int, int]:
        """Device and inode of the file.

        Raises:
            StoreUnavailableError: it is gone, or another ledger is in its place.
        """
        if not KNOWN[0]:
            notice_fork()

        def look(deadline: float) -> tuple[int, int]:
            if self._session(deadline).moved():
                self._close_idle(deadline)
                self._session(deadline)
            return identity(str(self.path))

        return self._in_turn(look)

    def checkpoint(self) -> bool:
        """Move the log into the file and wait for the disk; False when some of it has to stay in the log."""
        return self._move_log("PASSIVE")

    def empty_log(self) -> bool:
        """Move all of the log into the file and leave the log empty; False when somebody still reads from it."""
        return self._move_log("TRUNCATE")

    def _move_log(self, how: str) -> bool:
        if not self.wal:
            return True

        def work(deadline: float) -> bool:
            session = self._session(deadline)
            if session.connection.in_transaction:  # further up in this thread, whose lock is not given back here
                return False
            self._take_lock(deadline)
            try:
                if session.moved():
                    return False
                busy, pages, moved = session.connection.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
            finally:
                self._lock.release()
            return not busy and bool(pages == moved)

        return self._in_turn(work)

    def close(self, *, patience: float | None = None) -> None:
        """Close every idle connection; after `patience` seconds without the lock. Using the database again opens it."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(StoreError):
            self._in_turn(self._close_idle, patience)
        self._lock.close()

    # -- turns and transactions

    def _in_turn(self, work: Callable[[float], T], patience: float | None = None) -> T:
        """Run `work`, given its deadline, with the writing connection to itself.

        Raises:
            StoreBusyError: somebody else is at it, and this thread must not wait.
            StoreUnavailableError: the file or the disk does not do what is asked of it.
        """
        seconds = self.patience if patience is None else patience
        if self._owned():
            return work(time.monotonic() + seconds)
        try:
            try:
                wait = not HURRY.on or may_wait()
                if not self._mutex.acquire(wait, _PEER_PATIENCE if wait else -1):
                    raise self._too_busy() if wait else self._taken()
                return work(time.monotonic() + seconds)
            except sqlite3.Error as error:
                raise explained(self.path, error) from error
            except OSError as error:
                raise unusable(self.path, error) from error
            finally:
                self._give_turn()
        finally:  # an interrupt may come just as the turn is to be given back
            self._give_turn()

    def _give_turn(self) -> None:
        if self._owned():
            self._mutex.release()

    def _transact(self, session: OpenFile, work: Callable[[sqlite3.Connection], T], deadline: float) -> T:
        connection = session.connection
        try:
            try:
                if session.moved():
                    raise _FileMovedError
                self._begin(connection, deadline)
                if self._check is not None:
                    self._check(connection, self.path)
                result = work(connection)
                if session.moved():
                    raise _FileMovedError
                self._commit(connection, deadline)
                return result
            finally:
                self._end(connection)
        finally:  # as in `_in_turn`
            self._end(connection)

    def _begin(self, connection: sqlite3.Connection, deadline: float) -> None:
        """Take the side lock and begin: SQLite up to 3.51.2 can lose a WAL reset to a checkpoint without it."""
        patience = deadline - time.monotonic()
        peers = time.monotonic() + _PEER_PATIENCE
        attempt, until = 0, peers
        while True:
            if self._lock.acquire():
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    if not is_busy(error):
                        raise
                    self._lock.release()
                    if until == peers:  # it is another program that has it
                        until = time.monotonic() + patience
                else:
                    return
            self._wait(attempt, until)
            attempt += 1

    def _commit(self, connection: sqlite3.Connection, deadline: float) -> None:
        attempt = 0
        while True:
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise
                self._wait(attempt, deadline)  # a rollback journal waits for its readers
                attempt += 1
            else:
                return

    def _end(self, connection: sqlite3.Connection) -> None:
        """Leave no transaction and no lock behind, whatever happened."""
        if connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # some errors have rolled back already
                connection.execute("ROLLBACK")
        self._lock.release()

    def _take_lock(self, deadline: float) -> None:
        attempt, until = 0, max(deadline, time.monotonic() + _PEER_PATIENCE)
        while not self._lock.acquire():
            self._wait(attempt, until)
            attempt += 1

    def _wait(self, attempt: int, deadline: float) -> None:
        if not may_wait():
            raise self._taken()
        if time.monotonic() > deadline:
            raise self._too_busy()
        time.sleep(_DICE.uniform(0.00005, min(0.0002 * (attempt + 1), 0.005)))

    def _taken(self) -> StoreBusyError:
        return StoreBusyError(f"{self.path} is being written to; call again from a thread.")

    def _too_busy(self) -> StoreError:
        return StoreUnavailableError(
            f"{self.path} is locked by another program. See who has it open (for example with lsof) and end a program "
            "that hangs."
        )

    # -- connections

    def _session(self, deadline: float) -> OpenFile:
        """The writing session, opened if need be. Needs the turn."""
        if self._writer is None:
            self._writer = self._open(deadline)
        self._renew_index(self._writer, deadline)
        return self._writer

    def _renew_index(self, session: OpenFile, deadline: float) -> None:
        """See `OpenFile.renew_index`. Needs the turn."""
        if session.lacks_index():
            self._take_lock(deadline)
            try:
                session.renew_index()
            finally:
                self._lock.release()

    def _refuse_second_name(self) -> None:
        """Refuse a file that others know by a name with another folder around it, or another name.

        SQLite's log, the tail and the counters lie beside a name: who writes under another overwrites what is in them.
        """
        with contextlib.suppress(OSError):  # told when it is opened
            status = self.path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                raise StoreUnavailableError(
                    f"{self.path} is one of {status.st_nlink} names (hard links) of the same file. Whoever writes "
                    "under another name destroys what was written under this one: keep one name and remove the others, "
                    "or copy the ledger (`tokenmeter db backup`)."
                )
        if is_mounted_alone(self.path):
            raise StoreUnavailableError(
                f"{self.path} is mounted as a single file, so that the files beside it, which belong to it, would stay "
                "behind. Mount the folder it lies in."
            )

    def _look(self) -> None:
        """Refuse a file that is not ours before the lock is made beside it; with one there, the lock is taken first."""
        if not self.path.stat().st_size or self._lock_path.exists():
            return
        with contextlib.closing(self._connect()) as connection:
            try:
                self._refuse(connection, self.path)
            except sqlite3.Error as error:
                if not is_busy(error):  # else it is looked at again when it is free
                    raise

    def _open(self, deadline: float) -> OpenFile:
        if self._is_cut:
            raise StoreUnavailableError(
                f"{self.path}-wal was emptied or cut off while it was in use. End every program that has the ledger "
                "open: the next one to open it takes the entries that were in it from the tail."
            )
        if self._made and not (self.path.exists() and self.path.stat().st_size):
            what = "emptied" if self.path.exists() else "removed"
            raise StoreUnavailableError(
                f"{self.path} was {what} while it was in use. Put it back, or start the program anew to begin another "
                "ledger."
            )
        make_private_file(self.path)
        self._refuse_second_name()
        self._look()
        self.wal = not is_network(self.path) and can_share_memory(self.path.parent)
        attempt = 0
        self._take_lock(deadline)
        try:
            while True:
                connection = self._connect()
                try:
                    if not self.wal:  # so that a log which is there can be read without shared memory
                        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                    self._refuse(connection, self.path)
                    self._set_up(connection)
                    self._prepare_tables(connection, self.path)
                    return OpenFile(self.path, connection, wal=self.wal)
                except sqlite3.Error as error:
                    connection.close()
                    if not is_busy(error):
                        raise
                    self._wait(attempt, deadline)
                    attempt += 1
                except BaseException:
                    connection.close()
                    raise
        finally:
            self._lock.release()

    def _connect(self, timeout: float = 0.0) -> sqlite3.Connection:
        return sqlite3.connect(
            str(self.path), timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def _set_up(self, connection: sqlite3.Connection) -> None:
        mode = "WAL" if self.wal else "DELETE"
        self.wal = connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == "wal"
        connection.execute("PRAGMA locking_mode = NORMAL")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if self.wal else 'FULL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the WAL

    def _lend(self) -> OpenFile:
        """A session for reading. Nobody waits for a write that is under way."""
        try:
            writer = self._writer
            if writer is None or writer.lacks_index() or writer.moved():
                self.file()
            while self._readers:
                session = self._readers.pop()
                if not session.moved():
                    return session
                session.let_go()
        except OSError as error:
            raise unusable(self.path, error) from error
        try:
            connection = self._connect(timeout=self.patience)
            connection.execute("PRAGMA query_only = ON")
        except sqlite3.Error as error:
            raise explained(self.path, error) from error
        return OpenFile(self.path, connection, wal=self.wal)

    def _close_idle(self, deadline: float) -> None:
        """Close connections under the side lock: the last one to close checkpoints. Needs the turn."""
        sessions = [*self._readers, *((self._writer,) if self._writer else ())]
        if not sessions:
            return
        with contextlib.suppress(OSError, StoreUnavailableError):
            self._take_lock(deadline)
        self._readers, self._writer = [], None
        try:
            for session in sessions:
                with contextlib.suppress(OSError):  # where nobody may look
                    session.renew_index()
                session.let_go()
                self._is_cut = self._is_cut or session.is_cut
        finally:
            self._lock.release()

    # -- processes

    def before_fork(self) -> None:
        """Close what can be closed: a child that inherits an open SQLite file believes it holds locks it does not."""
        self._forking = not self._owned() and self._mutex.acquire(timeout=FORK_PATIENCE)
        if self._forking:
            self._close_idle(time.monotonic() + self.patience)

    def after_fork_in_parent(self) -> None:
        """Go on; connections open again when they are needed."""
        if self._forking:
            self._forking = False
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Start afresh: no inherited connection is used or closed, no inherited lock is trusted."""
        self._lock.close()
        for session in [*self._readers, *((self._writer,) if self._writer else ())]:
            keep_for_ever(session.connection)
        self._start()


_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()


@run_at_exit
def _close_all() -> None:
    for database in list(_DATABASES):
        database.close()
