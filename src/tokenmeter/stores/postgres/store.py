"""The ledger on a PostgreSQL server: for many machines."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from tokenmeter.errors import StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.ledger import CounterKey, Entry, Posting, Reservation, utcnow
from tokenmeter.stores.base import (
    Aggregate,
    CapReachedError,
    Counter,
    Crossing,
    EntryFilter,
    Fault,
    Health,
    Settlement,
    Verification,
)
from tokenmeter.stores.documents import Document, Filing, NewDocument, Request
from tokenmeter.stores.postgres.address import Address
from tokenmeter.stores.postgres.audit import audit
from tokenmeter.stores.postgres.condition import describe
from tokenmeter.stores.postgres.documents import audit as audit_documents
from tokenmeter.stores.postgres.draining import Drainer
from tokenmeter.stores.postgres.failures import explain
from tokenmeter.stores.postgres.filing import PAGE, file_document, read_page
from tokenmeter.stores.postgres.leases import Leases
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.reading import Reader
from tokenmeter.stores.postgres.records import encode_hold, encode_record, read_hold
from tokenmeter.stores.postgres.schema import apply, check, queries, state
from tokenmeter.stores.postgres.shipping import Shipping
from tokenmeter.stores.postgres.spool import Spool
from tokenmeter.stores.values import to_microseconds

__all__ = ["PostgresStore"]

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

_SQL = queries()
_PAGE = 500
#: Seconds after which the server is asked whether budgets have changed.
_ASK_GENERATION_EVERY = 1


class PostgresStore:
    """See `tokenmeter.stores.base.Store`.

    An entry is acknowledged when it is stored on the server; while that is away, when it is in the local spool, from
    which it is sent later, once. A hold is made on the server or not at all. With ``wait=False`` every method that
    would talk to the server raises `StoreBusyError`, so that an event loop never waits for the network.

    Args:
        url: ``postgresql://user@host:5432/db`` with any libpq parameter, and our own: ``schema`` (``tokenmeter``),
            ``spool`` (folder), ``spool_mb`` (256), ``pool`` (connections, 4), ``leases`` (0).

    Raises:
        ConfigurationError: the URL is wrong, or the server refuses this user or database.
        SchemaVersionError: the server's schema does not fit this release.
    """

    def __init__(self, url: str) -> None:
        self.address = Address.parse(url)
        self.url = self.address.url
        self._pool = Pool(self.address)
        self._spool = Spool(self.address.spool, most_bytes=self.address.spool_bytes)
        self._shipping = Shipping(self._pool, self._spool)
        self._leases = Leases(self._pool, self.address.leases) if self.address.leases else None
        self._drainer = Drainer(self._pool, self._spool, self._shipping, self._leases)
        self._checked = False
        self._generation: int | None = None
        self._generation_due = time.monotonic()
        try:
            self._check_schema()
        except StoreUnavailableError as error:
            log.warning("The PostgreSQL store is away; entries go to the spool until it is back. %s", error)

    def _check_schema(self) -> None:
        """Make the schema where there is none and we may; refuse one that does not fit."""
        try:
            self._pool.run(lambda connection, _: self._set_up(connection))
        except psycopg.Error as error:
            raise explain(error, self.address) from error
        self._checked = True

    def _set_up(self, connection: Connection[Any]) -> None:
        found = state(connection)
        if not found.applied:
            apply(connection, self.address.schema)
            found = state(connection)
        check(found)

    def _run(self, work: Callable[[Connection[Any]], T], *, wait: bool = True) -> T:
        """Run ``work(connection)`` on the server, with its errors as ours."""
        if not wait:
            raise StoreBusyError("The PostgreSQL store needs the network; call again from a thread.")
        if not self._checked:
            self._check_schema()
        try:
            return self._pool.run(lambda connection, _: work(connection))
        except psycopg.Error as error:
            raise explain(error, self.address) from error

    def _value(self, query: str, values: Sequence[Any], *, wait: bool = True) -> Any:
        def work(connection: Connection[Any]) -> Any:
            row = connection.execute(_SQL[query], values).fetchone()
            return row[0] if row else None

        return self._run(work, wait=wait)

    def _rows(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._run(lambda connection: connection.execute(_SQL[query], values).fetchall())

    def now(self) -> datetime:
        """The server's clock, to the second, as this host knows it from its last connection."""
        return utcnow() + timedelta(microseconds=self._pool.skew_us)

    # -- writing

    def settle(
        self,
        entry: Entry,
        postings: Sequence[Posting] = (),
        *,
        reservation_id: str | None = None,
        only_if_held: bool = False,
        wait: bool = True,
    ) -> Settlement:
        """Append `entry`, move the counters, free the hold, add to the sums: one transaction on the server.

        While the server is away the entry goes to the spool and counts as recorded; its counters move, its hold is
        freed and a repetition is found out when it arrives.
        """
        if not wait:
            raise StoreBusyError("The PostgreSQL store needs the network; call again from a thread.")
        draws = self._leases.take(reservation_id) if self._leases else ()
        record = encode_record(
            entry, postings, reservation_id=reservation_id, only_if_held=only_if_held and not draws, draws=draws
        )
        self._drainer.start()
        if not self._checked and not self._pool.down:
            with contextlib.suppress(StoreUnavailableError):
                self._check_schema()
        settlement = self._shipping.send_now(record) if only_if_held else self._shipping.settle(record)
        if not draws:
            return settlement
        if not settlement.recorded and self._leases:
            self._leases.put_back(draws)
        return replace(settlement, hold_found=True)

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Append many entries on the server, in one transaction; nothing goes to the spool."""
        if not self._checked:
            self._check_schema()
        return self._shipping.send_all(
            [encode_record(entry, postings, reservation_id=None, only_if_held=False) for entry, postings in batch]
        )

    def reserve(self, reservation: Reservation, *, wait: bool = True) -> None:
        """Hold every claim or none; holding the same reservation again changes nothing."""
        if self._leases is not None:
            if wait:
                self._drainer.start()
            if self._leases.hold(reservation, wait=wait):
                return
        try:
            self._hold(reservation, wait=wait)
        except CapReachedError:
            if self._leases is None or not self._leases.give_up(reservation.claims):
                raise
            self._hold(reservation, wait=wait)

    def _hold(self, reservation: Reservation, *, wait: bool) -> None:
        missed: dict[str, Any] | None = self._value("reserve", [encode_hold(reservation)], wait=wait)
        if missed is not None:
            raise CapReachedError(
                reservation.claims[int(missed["claim"])], int(missed["settled"]), int(missed["reserved"])
            )

    def release(self, reservation_id: str, *, wait: bool = True) -> bool:
        """Free a hold without an entry."""
        if self._leases is not None and self._leases.release(reservation_id):
            return True
        return bool(self._value("release", [reservation_id], wait=wait))

    def extend(self, reservation_id: str, expires_at: datetime, *, wait: bool = True) -> bool:
        """Move a hold's expiry."""
        if self._leases is not None and self._leases.knows(reservation_id):
            return True
        return bool(self._value("extend", [reservation_id, to_microseconds(expires_at)], wait=wait))

    def set_counters(self, settled: Mapping[CounterKey, int]) -> None:
        """SET the settled amounts; for the ledger's owner."""
        keys = list(settled)
        columns = [[key.budget for key in keys], [key.scope for key in keys], [key.window_start for key in keys]]
        self._rows("set_counters", [*columns, list(settled.values())])

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Give counters that never moved what their window holds already."""
        keys = list(settled)
        columns = [[key.budget for key in keys], [key.scope for key in keys], [key.window_start for key in keys]]
        amounts, ends = [settled[key][0] for key in keys], [settled[key][1] for key in keys]
        self._rows("open_counters", [*columns, amounts, ends])

    def secret(self) -> bytes:
        """The ledger's own secret, kept on the server; remembered in the spool for times when that is away."""
        try:
            value = bytes(self._value("secret", [os.urandom(32)]))
        except StoreUnavailableError:
            with contextlib.suppress(StoreError):
                remembered = self._spool.note("secret")
                if remembered is not None:
                    return remembered
            raise
        with contextlib.suppress(StoreError):
            if self._spool.note("secret") != value:
                self._spool.remember("secret", value)
        return value

    def flush(self, timeout: float = 10.0) -> int:
        """Send what waits in this host's spool, from this thread; how many entries are left after `timeout` seconds.

        Raises:
            StoreUnavailableError: the spool cannot be read.
        """
        return self._drainer.flush(timeout)

    # -- reading

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed by the server's clock, oldest first.

        What waits in this host's spool is sent first: those calls are not lost, only late.
        """
        self._drainer.tend()
        rows = self._rows("expired_holds", [to_microseconds(now), limit])
        return [read_hold(row) for row in rows]

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""
        if not keys:
            return {}
        columns = [[key.budget for key in keys], [key.scope for key in keys], [key.window_start for key in keys]]
        found = dict(map(_counter, self._rows("counters", columns)))
        return {key: found.get(key, Counter()) for key in keys}

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order, in short read transactions."""
        last: tuple[Any, ...] = ("", "", -(2**63))
        while True:
            rows = self._rows("all_counters", [*last, _PAGE])
            yield from map(_counter, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1][:3]

    def crossings(self, *, limit: int = 100) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first."""
        return [
            Crossing(CounterKey(budget, scope, window_start), int(threshold), at.astimezone(UTC), entry_id)
            for budget, scope, window_start, threshold, at, entry_id in self._rows("crossings", [limit])
        ]

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        return self._run(lambda connection: Reader(connection).entry(entry_id))

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, page by page, each page in a read transaction of its own."""
        which = which or EntryFilter()
        last: tuple[int, int] | None = None
        while True:
            page, last = self._run(partial(_page, which=which, after=last, newest_first=newest_first))
            yield from page
            if last is None:
                return

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group: from the kept sums where they can answer, else from entries."""
        with self._lend() as connection:
            return Reader(connection).aggregate(boundaries, by, which)

    @contextlib.contextmanager
    def _lend(self) -> Generator[Connection[Any]]:
        if not self._checked:
            self._check_schema()
        with self._pool.lend(snapshot=True) as connection:
            yield connection

    # -- documents

    def file(self, draft: NewDocument) -> Filing:
        """File a document once."""
        if not self._checked:
            self._check_schema()
        try:
            return self._pool.run(lambda connection, lost: file_document(connection, draft, lost=lost))
        except psycopg.Error as error:
            raise explain(error, self.address) from error
        finally:
            self._generation = None

    def generation(self) -> int:
        """How many documents of kind ``budget`` there are, as this process last heard: asked again every second.

        Only the first question waits for the server; later ones are asked by a thread, so that no call does.
        """
        known = self._generation
        if known is None:
            return self._ask_generation()
        if time.monotonic() >= self._generation_due:
            self._generation_due = time.monotonic() + _ASK_GENERATION_EVERY
            threading.Thread(target=self._ask_quietly, name="tokenmeter-generation", daemon=True).start()
        return known

    def _ask_generation(self) -> int:
        found: int = self._value("generation", [])
        self._generation, self._generation_due = found, time.monotonic() + _ASK_GENERATION_EVERY
        return found

    def _ask_quietly(self) -> None:
        with contextlib.suppress(Exception):  # the server is away: what is known holds on
            self._ask_generation()

    def documents(self, which: Request = Request()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing, page by page."""
        last = which.after
        while True:
            page = self._run(partial(read_page, which=which, after=last))
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1].position

    # -- care

    def verify(
        self,
        *,
        head: str | None = None,
        since: str | None = None,  # noqa: ARG002 - the protocol's: all of it is looked at
        progress: Callable[[int, int], object] | None = None,  # noqa: ARG002 - the protocol's
    ) -> Verification:
        """Walk the hash chains, re-derive the sums, and compare holds with counters."""
        with self._lend() as connection:
            outcome = audit(connection)
        faults = [*outcome.faults, *audit_documents(self.documents())]
        if head is not None and head != outcome.head:
            faults.append(Fault("head", head, "It is not the last one; earlier heads cannot be looked up here."))
        return replace(outcome, faults=tuple(faults))

    def pulse(self) -> str:
        """A text that differs after every write; cheap enough to be asked every second."""
        return ".".join(map(str, self._rows("pulse", [])[0]))

    def health(self) -> Health:
        """Facts of server and spool, and what to mind. Answers while the server is away, too."""
        return describe(
            self._pool,
            self._spool,
            rows=lambda name: self._rows(name, []),
            counts={"spooled_entries": self._shipping.spooled, "refused_entries": self._shipping.refused},
        )

    def close(self) -> None:
        """Send what waits (for a moment at most), then let go of connections and files."""
        self._drainer.tend()
        self._drainer.close()
        if self._leases is not None:
            self._leases.close()
        self._shipping.close()
        self._pool.close()
        self._spool.close()


def _page(
    connection: Connection[Any], *, which: EntryFilter, after: tuple[int, int] | None, newest_first: bool
) -> tuple[list[Entry], tuple[int, int] | None]:
    return Reader(connection).page(which, after, newest_first=newest_first)


def _counter(row: Sequence[Any]) -> tuple[CounterKey, Counter]:
    budget, scope, window_start, settled, reserved = row
    return CounterKey(budget, scope, window_start), Counter(int(settled), int(reserved))
