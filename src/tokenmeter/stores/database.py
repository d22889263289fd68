"""One SQLite file: creating it, locking it, writing to it and reading it, with threads, processes and forks about.

The rules, and why, are in docs/explanation/storage.md.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from random import SystemRandom
from typing import TypeVar

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.forks import around_fork
from tokenmeter.stores.failures import explained, is_busy, unusable
from tokenmeter.stores.filesystem import is_network, make_private_file
from tokenmeter.stores.migrations import migrate
from tokenmeter.stores.session import ReplacedError, Session, keep_for_ever, sqlite3
from tokenmeter.stores.sidelock import SideLock

__all__ = ["PATIENCE", "Database"]

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

#: Not the program's own `random`, whose sequence is the program's.
_DICE = SystemRandom()
#: Seconds a write waits for its turn before it gives up.
PATIENCE = 30.0
#: Seconds a fork waits for a write that is under way; later the child does with what it inherits.
_FORK_PATIENCE = 5.0
#: WAL pages (4 KiB) between checkpoints.
_CHECKPOINT_PAGES = 4000


def _pause(attempt: int) -> None:
    time.sleep(_DICE.uniform(0.00005, min(0.0002 * (attempt + 1), 0.005)))


class Database:
    """An SQLite file, shared by threads and processes.

    One connection writes, behind a mutex; readers take connections of their own, so that a report never delays a call.

    Attributes:
        path: Absolute, symbolic links resolved.
        wal: Whether the file is in WAL mode; False on a network file system.

    Args:
        path: The file; made if it is missing.
        patience: Seconds a write waits for its turn.
        prepare: Makes the tables; called under the lock whenever a connection is opened for writing.
    """

    def __init__(
        self,
        path: Path,
        *,
        patience: float = PATIENCE,
        prepare: Callable[[sqlite3.Connection, Path], None] = migrate,
    ) -> None:
        self.path = Path(os.path.realpath(Path(path).expanduser()))
        self.patience = patience
        self._bring_up_to_date = prepare
        self.wal = True
        self._mutex = threading.Lock()
        self._lock = SideLock(Path(f"{self.path}-lock"))
        self._writer: Session | None = None
        self._readers: list[Session] = []
        self._lent = 0
        self._pid = os.getpid()
        self._forking = False
        _DATABASES.add(self)
        with self._turn(wait=True) as deadline:
            self._session(deadline)

    def write(self, work: Callable[[Session], T], *, wait: bool = True) -> T:
        """Run `work` in one transaction and commit it. It may run again if the file was replaced meanwhile.

        Raises:
            StoreBusyError: ``wait=False`` and somebody else is writing.
            StoreUnavailableError: the file cannot be written; nothing was.
        """
        self._check_process()
        with self._turn(wait=wait) as deadline:
            while True:
                session = self._session(deadline)
                try:
                    return self._transact(session, work, deadline)
                except ReplacedError:
                    log.warning(
                        "The ledger file %s was replaced while it was open; going on with the new one.", self.path
                    )
                    self._close_idle()
                except sqlite3.Error as error:
                    raise explained(self.path, error) from error

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one read transaction: it sees one state of the ledger and nobody waits for it.

        Raises:
            StoreUnavailableError: the file cannot be read.
        """
        self._check_process()
        session = self._lend()
        healthy = False
        try:
            session.connection.execute("BEGIN")
            try:
                result = work(session)
                healthy = True
                return result
            finally:
                session.connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise explained(self.path, error) from error
        finally:
            self._take_back(session, healthy=healthy)

    def close(self) -> None:
        """Close every idle connection. Using the database again opens it again."""
        if self._pid != os.getpid():
            return
        with self._mutex:
            self._close_idle()
            self._lock.close()

    # -- turns and transactions

    @contextlib.contextmanager
    def _turn(self, *, wait: bool) -> Generator[float | None]:
        if not (self._mutex.acquire(timeout=self.patience) if wait else self._mutex.acquire(blocking=False)):
            raise self._too_busy(wait=wait)
        try:
            yield time.monotonic() + self.patience if wait else None
        finally:
            self._mutex.release()

    def _transact(self, session: Session, work: Callable[[Session], T], deadline: float | None) -> T:
        self._begin(session, deadline)
        try:
            result = work(session)
            session.check_place()
            self._commit(session, deadline)
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # some errors have rolled back already
                session.connection.execute("ROLLBACK")
            session.rolled_back()
            raise
        finally:
            self._lock.release()
        session.committed()
        return result

    def _begin(self, session: Session, deadline: float | None) -> None:
        """Take the side lock and begin: SQLite up to 3.51.2 can lose a WAL reset to a checkpoint without it."""
        attempt = 0
        while True:
            if self._lock.acquire():
                try:
                    session.connection.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    self._lock.release()
                    if not is_busy(error):
                        raise
                else:
                    return
            self._wait(attempt, deadline)
            attempt += 1

    def _commit(self, session: Session, deadline: float | None) -> None:
        attempt = 0
        while True:
            try:
                session.connection.execute("COMMIT")
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise
                self._wait(attempt, deadline)  # a rollback journal waits for its readers
                attempt += 1
            else:
                return

    def _wait(self, attempt: int, deadline: float | None) -> None:
        if deadline is None or time.monotonic() > deadline:
            raise self._too_busy(wait=deadline is not None)
        _pause(attempt)

    def _too_busy(self, *, wait: bool) -> StoreError:
        if not wait:
            return StoreBusyError(f"Somebody else is writing to {self.path}.")
        return StoreUnavailableError(
            f"{self.path} was locked by another process for {self.patience:g} seconds; nothing was written. "
            "See who has it open (for example with lsof) and end a process that hangs."
        )

    # -- connections

    def _session(self, deadline: float | None) -> Session:
        """The writing session, opened if need be. Needs the mutex."""
        if self._writer is None:
            try:
                self._writer = self._open(deadline)
            except sqlite3.Error as error:
                raise explained(self.path, error) from error
            except OSError as error:
                raise unusable(self.path, error) from error
        return self._writer

    def _open(self, deadline: float | None) -> Session:
        make_private_file(self.path)
        self.wal = not is_network(self.path)
        attempt = 0
        while not self._lock.acquire():
            self._wait(attempt, deadline)
            attempt += 1
        try:
            while True:
                connection = self._connect()
                try:
                    self._prepare(connection)
                    self._bring_up_to_date(connection, self.path)
                    return Session(str(self.path), connection, wal=self.wal)
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

    def _prepare(self, connection: sqlite3.Connection) -> None:
        mode = "WAL" if self.wal else "DELETE"
        self.wal = connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0] == "wal"
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if self.wal else 'FULL'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the WAL

    def _lend(self) -> Session:
        with self._turn(wait=True) as deadline:
            writer = self._session(deadline)
            if writer.moved():
                self._close_idle()
                self._session(deadline)
            self._lent += 1
            if self._readers:
                return self._readers.pop()
        try:
            connection = self._connect(timeout=self.patience)
            connection.execute("PRAGMA query_only = ON")
            return Session(str(self.path), connection, wal=self.wal)
        except BaseException as error:
            self._lent -= 1
            if isinstance(error, sqlite3.Error):
                raise explained(self.path, error) from error
            raise

    def _take_back(self, session: Session, *, healthy: bool) -> None:
        with self._mutex:
            self._lent -= 1
            if healthy and not session.moved():
                self._readers.append(session)
            else:
                session.let_go()

    def _idle(self) -> list[Session]:
        """Hand over every idle session, the writing one last."""
        sessions = [*self._readers, *((self._writer,) if self._writer else ())]
        self._readers, self._writer = [], None
        return sessions

    def _close_idle(self) -> None:
        """Close connections under the side lock: the last one to close checkpoints. Needs the mutex."""
        sessions = self._idle()
        if not sessions:
            return
        attempt = 0
        deadline = time.monotonic() + self.patience
        with contextlib.suppress(OSError, StoreError):
            while not self._lock.acquire():
                self._wait(attempt, deadline)
                attempt += 1
        try:
            for session in sessions:
                session.let_go()
        finally:
            self._lock.release()

    # -- processes

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # a fork that Python's hooks did not see
            self.after_fork_in_child()

    def before_fork(self) -> None:
        """Close what can be closed: a child that inherits an open SQLite file believes it holds locks it does not."""
        self._forking = self._mutex.acquire(timeout=min(self.patience, _FORK_PATIENCE))
        if self._forking:
            self._close_idle()

    def after_fork_in_parent(self) -> None:
        """Go on; connections open again when they are needed."""
        if self._forking:
            self._forking = False
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Start afresh: no inherited connection is used or closed, no inherited lock is trusted."""
        self._mutex = threading.Lock()
        self._forking = False
        self._lock.close()
        for session in self._idle():
            keep_for_ever(session.connection)
        self._lent = 0
        self._pid = os.getpid()


_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()


def _each(action: Callable[[Database], None]) -> Callable[[], None]:
    def run() -> None:
        for database in list(_DATABASES):
            action(database)

    return run


atexit.register(_each(Database.close))
around_fork(
    before=_each(Database.before_fork),
    parent=_each(Database.after_fork_in_parent),
    child=_each(Database.after_fork_in_child),
)
