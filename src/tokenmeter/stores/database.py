"""One SQLite file: creating it, locking it, writing to it and reading it, with threads, processes and forks about.

The rules, and why, are in docs/explanation/storage.md.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.stores.codec import CONTEXT_FIELDS, RATE_FIELDS
from tokenmeter.stores.filesystem import is_network, make_private_file
from tokenmeter.stores.migrations import migrate
from tokenmeter.stores.shared import SharedRows
from tokenmeter.stores.sidelock import SideLock

if TYPE_CHECKING:
    import sqlite3
else:  # one SQLite library per process: the one that sqlite-utils takes
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

__all__ = ["Database", "Session", "sqlite3"]

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

#: Seconds a write waits for its turn before it gives up.
PATIENCE = 30.0
#: WAL pages (4 KiB) between checkpoints.
_CHECKPOINT_PAGES = 4000
_BUSY_CODES = {5, 6, 15}  # SQLITE_BUSY, SQLITE_LOCKED, SQLITE_PROTOCOL
_FILE_GONE = (0, 0)


class _ReplacedError(Exception):
    """The file under the path is no longer the one that is open."""


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 - on the hot path
    except FileNotFoundError:
        return _FILE_GONE
    return status.st_dev, status.st_ino


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "locked" in str(error) or "busy" in str(error)
    return code & 0xFF in _BUSY_CODES


def _pause(attempt: int) -> None:
    time.sleep(random.uniform(0.00005, min(0.0002 * (attempt + 1), 0.005)))  # noqa: S311 - jitter, not a secret


class Session:
    """One open connection and what is known through it.

    Attributes:
        connection: Autocommit; transactions are begun and ended by `Database`.
        contexts: Rows of that table.
        rates: Rows of that table.
        series: Rows of that table.
        crossings: Thresholds known to be reported.
    """

    def __init__(self, path: str, connection: sqlite3.Connection, *, wal: bool) -> None:
        self.connection = connection
        self.contexts = SharedRows("contexts", CONTEXT_FIELDS)
        self.rates = SharedRows("rates", RATE_FIELDS)
        self.series = SharedRows("series", ("context", "sku_meter", "marks"))
        self.crossings: set[tuple[str, str, int, int]] = set()
        self._paths = (path, path + "-wal") if wal else (path,)
        self._identities = [_identity(name) for name in self._paths]

    def moved(self) -> bool:
        """Whether the path now names another file than the one this connection has open."""
        return [_identity(name) for name in self._paths] != self._identities

    def let_go(self) -> None:
        """Close the connection if that is safe.

        Closing removes the log by its name. When the file was replaced, that would be the log of the new one; when only
        the log is gone, closing folds back what the still open descriptor holds.
        """
        now = [_identity(name) for name in self._paths]
        if now[0] == self._identities[0] and now[-1] in {self._identities[-1], _FILE_GONE}:
            self.connection.close()
        else:
            _keep_for_ever(self.connection)

    def check_place(self) -> None:
        """Refuse to commit to a file that nobody will ever read again."""
        if self.moved():
            raise _ReplacedError

    def committed(self) -> None:
        """Remember what the transaction added."""
        for rows in (self.contexts, self.rates, self.series):
            rows.committed()

    def rolled_back(self) -> None:
        """Forget what the transaction added."""
        for rows in (self.contexts, self.rates, self.series):
            rows.forget()


def _keep_for_ever(value: object) -> None:
    """Leak `value`: closing an inherited or orphaned connection would take the new file's WAL along."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


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
                except _ReplacedError:
                    log.warning(
                        "The ledger file %s was replaced while it was open; going on with the new one.", self.path
                    )
                    self._close_idle()
                except sqlite3.Error as error:
                    raise self._explained(error) from error

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
            raise self._explained(error) from error
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
    def _turn(self, *, wait: bool) -> Any:
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
                    if not _is_busy(error):
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
                if not _is_busy(error):
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
                raise self._explained(error) from error
            except OSError as error:
                raise self._unusable(error) from error
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
                    if not _is_busy(error):
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
                raise self._explained(error) from error
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
        self._mutex.acquire(timeout=self.patience)
        self._close_idle()

    def after_fork_in_parent(self) -> None:
        """Go on; connections open again when they are needed."""
        with contextlib.suppress(RuntimeError):
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Start afresh: no inherited connection is used or closed, no inherited lock is trusted."""
        self._mutex = threading.Lock()
        self._lock.close()
        for session in self._idle():
            _keep_for_ever(session.connection)
        self._lent = 0
        self._pid = os.getpid()

    # -- errors

    def _explained(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if "disk is full" in text:
            advice = "the disk is full. Nothing was written and nothing is lost; free some space."
        elif "not a database" in text or "malformed" in text:
            advice = (
                "the file is damaged or not an SQLite database. Nothing was written. "
                "Put it aside and restore a backup, or name another file."
            )
        elif "readonly" in text or "unable to open" in text:
            advice = "it cannot be written. Check the permissions of the file and its directory, or name another file."
        else:
            advice = f"SQLite failed: {text}."
        return StoreUnavailableError(f"{self.path}: {advice}")

    def _unusable(self, error: OSError) -> StoreError:
        reason = errno.errorcode.get(error.errno or 0, "") + f" ({error.strerror})"
        return StoreUnavailableError(
            f"{self.path} cannot be used: {reason}. Check the permissions of its directory, or name another file in "
            "configure(store=...) or TOKENMETER_STORE."
        )


_DATABASES: weakref.WeakSet[Database] = weakref.WeakSet()


def _each(action: Callable[[Database], None]) -> Callable[[], None]:
    def run() -> None:
        for database in list(_DATABASES):
            action(database)

    return run


atexit.register(_each(Database.close))
os.register_at_fork(
    before=_each(Database.before_fork),
    after_in_parent=_each(Database.after_fork_in_parent),
    after_in_child=_each(Database.after_fork_in_child),
)
