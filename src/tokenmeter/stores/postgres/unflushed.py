"""Records that the server has, but perhaps not yet on its disk: kept in the spool until it says so."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection

from tokenmeter.errors import StoreError
from tokenmeter.stores.postgres.failures import explain
from tokenmeter.stores.postgres.pool import Pool, Seat
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.postgres.spool import Spool

__all__ = ["Unflushed"]

_SQL = queries()


@dataclass(slots=True)
class _Batch:
    """Numbers in the spool, and a position in the server's log behind them; None until the server named one."""

    numbers: Sequence[int]
    before: int | None = None


class Unflushed:
    """Batches that were committed without waiting for the server's disk.

    All go over one connection: while it lives, the server cannot have crashed, so a later position in its log lies
    behind every earlier batch. When it breaks, the batches are left to the drainer. Not safe for threads: the caller
    takes turns.

    Attributes:
        seat: The connection.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._batches: list[_Batch] = []
        self._backend: int | None = None
        self.seat = Seat(self.send_again)

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(self, numbers: Sequence[int]) -> None:
        """Remember a batch that was just answered."""
        self._batches.append(_Batch(numbers))

    def ask(self, pool: Pool) -> None:
        """Ask the server how far it has flushed.

        Raises:
            StoreUnavailableError: it is away.
        """
        try:
            self.learn(pool.run(_log_position, seat=self.seat))
        except psycopg.Error as error:
            raise explain(error, pool.address) from error

    def learn(self, log: Sequence[int]) -> None:
        """Forget what is flushed.

        Args:
            log: Server process, position written and position flushed, as of after every batch added so far.
        """
        backend, written, flushed = log
        if backend != self._backend:  # another connection: what came over the last one is in doubt
            self.send_again()
            self._backend = backend
        kept: list[_Batch] = []
        done: list[int] = []
        for batch in self._batches:
            batch.before = written if batch.before is None else batch.before
            if batch.before <= flushed:
                done += batch.numbers
            else:
                kept.append(batch)
        self._batches = kept
        self.forget(done)

    def forget(self, numbers: Sequence[int]) -> None:
        """Take records out of the spool."""
        if numbers:
            with contextlib.suppress(StoreError):  # sent again by the drainer, it changes nothing
                self._spool.remove(numbers)

    def send_again(self) -> None:
        """The connection broke, perhaps as the server crashed: the drainer sends what is in doubt once more."""
        batches, self._batches = self._batches, []
        numbers = [number for batch in batches for number in batch.numbers]
        if numbers:
            with contextlib.suppress(StoreError):  # the drainer finds it some seconds later
                self._spool.leave(numbers)


def _log_position(connection: Connection[Any], _: int) -> Sequence[int]:
    row = connection.execute(_SQL["log_position"]).fetchone()
    return row[0] if row else (0, 0, 0)
