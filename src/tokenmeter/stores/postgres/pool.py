"""A few connections for one process: retries, a pause after failures, forks, and poolers in between."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from random import SystemRandom
from typing import TypeVar

import psycopg

from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.processes import KNOWN, after_fork_in_child, notice_fork
from tokenmeter.stores.postgres.sessions import (
    STATEMENT_SECONDS,
    Address,
    Connection,
    explain,
    is_conflict,
    is_outage,
    open_session,
    reason_of,
    transaction,
)

T = TypeVar("T")

#: Not the program's own `random`, whose sequence is the program's.
_DICE = SystemRandom()
#: How long a call waits for one of the connections.
_PATIENCE = 15.0
_ATTEMPTS = 3
_CONFLICT_ATTEMPTS = 12
#: A server that does not even refuse is not asked again by the same call.
_RETRY_SECONDS = 3.0
_PROBE_SECONDS = 5.0
_LONGEST_PAUSE = 5.0
_abandoned: list[Connection] = []


class _Places:
    """Room for so many at a time. Who waits gets it in turn, and goes on waiting as long as others are served."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._served = 0
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def take(self, patience: float) -> bool:
        """Whether a place was had before nobody gave one back for so many seconds."""
        with self._mutex:
            if self._free:
                self._free -= 1
                return True
            if not patience:
                return False
            mine = threading.Event()
            self._waiting.append(mine)
        given = False
        try:
            served = None
            while not given and served != self._served:
                served = self._served
                given = mine.wait(patience)
            return given
        finally:
            if not given:
                self._leave(mine)

    def _leave(self, mine: threading.Event) -> None:
        with self._mutex:
            given = mine not in self._waiting
            if not given:
                self._waiting.remove(mine)
        if given:
            self.give_back()

    def give_back(self) -> None:
        """Give a place to whoever waits longest."""
        with self._mutex:
            self._served += 1
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


class Pool:
    """Connections to one server, opened when needed, at most `Address.pool` of them, and those of who reads.

    Every call runs in autocommit mode: one statement, one transaction, one round trip. Behind a pooler it takes two
    more, as every transaction has to name the schema. After the server failed, calls fail at once for a pause that
    doubles from 0.2 to 5 seconds, so that an outage costs a call no time.

    Attributes:
        failures: How often the server could not be used.
        skew_us: The server's clock less this host's, in whole seconds (as microseconds).
        pooled: Whether a pooler such as PgBouncer was met between this host and the server.
        encrypted: Whether the connection made last speaks TLS.
        exposed: Whether it crosses a network without.
        read_only: Whether that server takes no writes, as a replica does.
        seconds: Most that a statement of a call may take.
    """

    seconds = STATEMENT_SECONDS

    def __init__(self, address: Address) -> None:
        self.address = address
        self.failures = 0
        self.skew_us = 0
        self.pooled = self.encrypted = self.exposed = self.read_only = False
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: list[Connection] = []
        self._apart: list[Connection] = []  # with no limit to a statement's time
        self._open: list[Connection] = []
        self._mutex = threading.Lock()
        self._closer = weakref.finalize(self, _close_idle, (self._idle, self._apart), self._mutex, self._pid)
        self._places, self._reading = _Places(self.address.pool), _Places(self.address.pool)
        self._lent = threading.local()
        self._pause = 0.0
        self._resume_at = 0.0
        self._reason = ""

    @property
    def down(self) -> bool:
        """Whether calls fail at once just now."""
        return time.monotonic() < self._resume_at

    def run(self, work: Callable[[Connection, int], T], *, scope: str | None = None) -> T:
        """Run ``work(connection, lost)`` and again when a connection is lost or a deadlock was broken.

        Args:
            work: Gets a connection and how many earlier ones were lost, of which each may have done its work unseen.
            scope: ``transaction`` for several statements that are one, ``snapshot`` for reading one state of the
                ledger; None: every statement is a transaction.

        Raises:
            StoreUnavailableError: the server cannot be used.
            psycopg.Error: the statement itself is refused.
        """
        if not KNOWN[0]:
            notice_fork()
        self._ask_leave()
        deadline = time.monotonic() + _RETRY_SECONDS
        conflicts = lost = 0
        while True:
            try:
                with self._connection() as connection, self._scope(connection, scope):
                    result = work(connection, lost)
            except ConfigurationError as error:
                if isinstance(error.__cause__, psycopg.Error):  # a password was changed, a certificate has run out
                    self._failed(error)
                raise
            except psycopg.Error as error:
                conflicts += is_conflict(error)
                if is_conflict(error) and conflicts < _CONFLICT_ATTEMPTS:
                    time.sleep(_DICE.uniform(0, 0.004 * 2 ** min(conflicts, 6)))
                    continue
                if not is_outage(error):
                    self._works()
                    raise
                lost += 1
                self._discard_idle()
                if lost >= _ATTEMPTS or time.monotonic() > deadline:
                    self._failed(error)
                    raise explain(error, self.address) from error
                time.sleep(_DICE.uniform(0.01, 0.05) * lost)
            else:
                self._works()
                return result

    def _ask_leave(self) -> None:
        """Fail while the server is left alone; then let one call find out whether it is back, without the others."""
        if self.down:
            raise self._away()
        if self._pause:
            self._resume_at = time.monotonic() + _PROBE_SECONDS

    def _away(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The PostgreSQL store {self.address.url} was away a moment ago: {self._reason.rstrip('.')}."
        )

    @contextmanager
    def lend(self, *, snapshot: bool = False) -> Generator[Connection]:
        """A connection apart from the pool's places, for one transaction that may take its time.

        One is kept for the next who reads: to connect takes longer than most that is read.

        Args:
            snapshot: Only read, and see one state of the ledger throughout.

        Raises:
            StoreUnavailableError: the server cannot be used.
        """
        if not KNOWN[0]:
            notice_fork()
        connection: Connection | None = None
        with self._reading_place():
            try:
                with ExitStack() as scope:
                    connection = self._begin_apart(scope, snapshot=snapshot)
                    yield connection
                self._works()  # no call has to wait for the end of its pause: whoever could read may write
            except psycopg.Error as error:
                raise explain(error, self.address) from error
            finally:
                if connection is not None:
                    self._take_back(connection, again=snapshot)

    @contextmanager
    def _reading_place(self) -> Generator[None]:
        """Room for one more who reads: a server has few connections, and a program may have a thousand threads.

        A thread that reads already has it.
        """
        lent = self._lent
        if getattr(lent, "within", False):
            yield
            return
        places = self._reading
        self._take_place(places)
        lent.within = True
        try:
            yield
        finally:
            lent.within = False
            places.give_back()

    def _begin_apart(self, scope: ExitStack, *, snapshot: bool) -> Connection:
        """A connection with a transaction that ends with `scope`: the one that was kept, if the server still has it."""
        with self._mutex:
            kept = self._apart.pop() if snapshot and self._apart else None
        if kept is not None:
            try:
                kept.seconds = self.seconds  # as long as a server that hangs is waited for
                kept.execute("")
                kept.seconds = 0
                scope.enter_context(transaction(kept, self.address, snapshot=snapshot))
            except BaseException as error:
                self._close(kept)
                if not isinstance(error, psycopg.Error):
                    raise
            else:
                return kept
        connection = self._connect(seconds=0)
        connection.prepare_threshold = None  # what is read differs too much for one plan to serve
        try:
            scope.enter_context(transaction(connection, self.address, snapshot=snapshot))
        except BaseException:
            self._close(connection)
            raise
        return connection

    def _take_back(self, connection: Connection, *, again: bool) -> None:
        """Keep a connection for the next who reads, if it is in order and none is kept; else close it."""
        idle = again and connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        with self._mutex:
            if keep := idle and not self._apart and self._pid == os.getpid():
                self._apart.append(connection)
        if not keep:
            self._close(connection)

    def close(self) -> None:
        """Close idle connections; using the pool again opens new ones."""
        if self._pid == os.getpid():
            self._discard_idle()

    def after_fork_in_child(self) -> None:
        """Start afresh. Inherited connections are kept, unused and unclosed: they are the parent's."""
        self._closer.detach()
        _abandoned.extend(self._open)
        self._begin()

    def _scope(self, connection: Connection, scope: str | None) -> AbstractContextManager[None]:
        """What a call needs around it: a transaction that names the schema, where a session does not last."""
        if scope is None and not self.pooled:
            return nullcontext()
        return transaction(connection, self.address, snapshot=scope == "snapshot")

    @contextmanager
    def _connection(self) -> Generator[Connection]:
        places = self._places
        self._take_place(places)
        try:
            with self._mutex:
                connection = self._idle.pop() if self._idle else None
            connection = connection or self._connect()
            healthy = False
            try:
                yield connection
                healthy = True
            except psycopg.Error:
                healthy = not connection.broken and not connection.closed
                raise
            finally:
                if healthy:
                    with self._mutex:
                        self._idle.append(connection)
                else:
                    self._close(connection)
        finally:
            places.give_back()

    def _take_place(self, places: _Places) -> None:
        if places.take(0):
            return
        if not places.take(_PATIENCE):
            raise StoreUnavailableError(
                f"All {self.address.pool} connections of this process were busy for {_PATIENCE:g} seconds; "
                "add pool=N to the PostgreSQL URL."
            )
        if self.down:  # the server failed those who were before us
            places.give_back()
            raise self._away()

    def _connect(self, *, seconds: int | None = None) -> Connection:
        session = open_session(self.address, seconds=self.seconds if seconds is None else seconds)
        with self._mutex:
            self._open.append(session.connection)
        self.skew_us = session.skew_us
        self.pooled |= session.pooled
        self.encrypted, self.exposed, self.read_only = session.encrypted, session.exposed, session.read_only
        return session.connection

    def _discard_idle(self) -> None:
        for connection in _take_idle((self._idle, self._apart), self._mutex):
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        connection.close()
        with self._mutex:
            if connection in self._open:
                self._open.remove(connection)

    def _works(self) -> None:
        self._pause = self._resume_at = 0.0

    def _failed(self, error: Exception) -> None:
        self._reason = reason_of(error)
        self.failures += 1
        self._pause = min(max(0.2, self._pause * 2), _LONGEST_PAUSE)
        self._resume_at = time.monotonic() + self._pause * _DICE.uniform(0.7, 1.0)


def _take_idle(kept: tuple[list[Connection], ...], mutex: threading.Lock) -> list[Connection]:
    with mutex:
        idle = [connection for some in kept for connection in some]
        for some in kept:
            some.clear()
    return idle


def _close_idle(kept: tuple[list[Connection], ...], mutex: threading.Lock, pid: int) -> None:
    """Close connections in the process that opened them: at a pool's end, or at the interpreter's.

    There a thread may be amid a statement: a connection that is closed under it reads memory that was freed.
    """
    if pid == os.getpid():
        for connection in _take_idle(kept, mutex):
            connection.close()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


@after_fork_in_child
def _after_fork() -> None:
    for pool in list(_POOLS):
        pool.after_fork_in_child()
