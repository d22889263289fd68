"""A ledger in one SQLite file: for one machine, any number of threads and processes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenmeter.ledger import CounterKey, Entry, Posting, Reservation, utcnow
from tokenmeter.stores.audit import audit
from tokenmeter.stores.balances import Balances, take_hold
from tokenmeter.stores.base import (
    Aggregate,
    Counter,
    Crossing,
    EntryFilter,
    Health,
    Settlement,
    Verification,
)
from tokenmeter.stores.booking import Booking, Draft
from tokenmeter.stores.codec import COLUMNS, decode_claims, encode_claims, storable
from tokenmeter.stores.database import PATIENCE, Database
from tokenmeter.stores.documents import Document, Filing, NewDocument, Request
from tokenmeter.stores.filing import file_document, read_documents
from tokenmeter.stores.migrations import SCHEMA_VERSION, queries
from tokenmeter.stores.rollups import (
    check_boundaries,
    check_dimensions,
    matches,
)
from tokenmeter.stores.rows import entry_of
from tokenmeter.stores.selection import conditions
from tokenmeter.stores.session import Session, sqlite3
from tokenmeter.stores.summing import summed
from tokenmeter.stores.values import compact_json, from_microseconds, to_microseconds

__all__ = ["SQLiteStore"]

T = TypeVar("T")
_SQL = queries()
_PAGE = 500
_NAMES = ", ".join(COLUMNS)


class SQLiteStore:
    """See `tokenmeter.stores.base.Store`.

    Args:
        path: The file; made if it is missing, in a directory that only its owner can read.
        patience: Seconds a write waits for its turn.

    Raises:
        StoreUnavailableError: the file cannot be used.
        SchemaVersionError: a newer release wrote it.
    """

    def __init__(self, path: Path, *, patience: float = PATIENCE) -> None:
        self._database = Database(path, patience=patience)
        self.path = self._database.path
        self.url = f"sqlite:///{self.path}"

    def now(self) -> datetime:
        """This machine's clock."""
        return utcnow()

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
        """Append `entry`, move the counters, free the hold, add to the sums: one transaction."""

        def work(session: Session, drafts: Sequence[Draft]) -> Settlement:
            claims = None if reservation_id is None else take_hold(session, reservation_id)
            held = claims is not None
            balances = Balances(session)
            if claims:
                balances.free(claims)
            booking = Booking(session)
            recorded = (held or not only_if_held) and booking.append(drafts[0])
            crossings = balances.post(postings, entry) if recorded else ()
            booking.write()
            balances.write()
            return Settlement(recorded=recorded, crossings=crossings, hold_found=held)

        return self._write([entry], work, wait=wait)

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Append many entries in one transaction."""

        def work(session: Session, drafts: Sequence[Draft]) -> list[Settlement]:
            booking, balances = Booking(session), Balances(session)
            settlements: list[Settlement] = []
            for draft, (entry, postings) in zip(drafts, batch, strict=True):
                recorded = booking.append(draft)
                crossings = balances.post(postings, entry) if recorded else ()
                settlements.append(Settlement(recorded=recorded, crossings=crossings))
            booking.write()
            balances.write()
            return settlements

        return self._write([entry for entry, _ in batch], work)

    def _write(
        self, entries: Sequence[Entry], work: Callable[[Session, Sequence[Draft]], T], *, wait: bool = True
    ) -> T:
        try:
            drafts = [Draft(entry) for entry in entries]
            return self._database.write(lambda session: work(session, drafts), wait=wait)
        except UnicodeEncodeError:  # rare: a provider named something in half a character
            escaped = [Draft(storable(entry)) for entry in entries]
            return self._database.write(lambda session: work(session, escaped), wait=wait)

    def reserve(self, reservation: Reservation, *, wait: bool = True) -> None:
        """Hold every claim or none; holding the same reservation again changes nothing."""

        def work(session: Session, drafts: Sequence[Draft]) -> None:
            run = session.connection.execute
            if run(_SQL["hold"], (reservation.reservation_id,)).fetchone():
                return
            balances = Balances(session)
            balances.hold(reservation.claims)
            balances.write()
            run(
                _SQL["add_hold"],
                (
                    reservation.reservation_id,
                    to_microseconds(reservation.created_at),
                    to_microseconds(reservation.expires_at),
                    reservation.owner,
                    encode_claims(reservation.claims),
                    compact_json(drafts[0].row(session)[0]),
                ),
            )

        self._write([reservation.call], work, wait=wait)

    def release(self, reservation_id: str, *, wait: bool = True) -> bool:
        """Free a hold without an entry."""

        def work(session: Session) -> bool:
            claims = take_hold(session, reservation_id)
            if claims is None:
                return False
            balances = Balances(session)
            balances.free(claims)
            balances.write()
            return True

        return self._database.write(work, wait=wait)

    def extend(self, reservation_id: str, expires_at: datetime, *, wait: bool = True) -> bool:
        """Move a hold's expiry."""
        values = (to_microseconds(expires_at), reservation_id)
        return self._database.write(
            lambda session: bool(session.connection.execute(_SQL["extend_hold"], values).rowcount), wait=wait
        )

    def set_counters(self, settled: Mapping[CounterKey, int]) -> None:
        """SET the settled amounts."""

        def work(session: Session) -> None:
            balances = Balances(session)
            for key, amount in settled.items():
                balances.set_settled(key, amount)
            balances.write()

        self._database.write(work)

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Give counters that never moved what their window holds already."""

        def work(session: Session) -> None:
            balances = Balances(session)
            for key, (amount, window_end) in settled.items():
                balances.open(key, amount, window_end)
            balances.write()

        self._database.write(work)

    def secret(self) -> bytes:
        """The ledger's own secret: made once, in the ledger."""

        def work(session: Session) -> bytes:
            session.connection.execute(_SQL["make_secret"], (os.urandom(32),))
            value: bytes = session.connection.execute(_SQL["secret"]).fetchone()[0]
            return value

        return self._database.write(work)

    # -- reading

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed, oldest first."""

        def work(session: Session) -> list[Reservation]:
            rows = session.connection.execute(_SQL["expired_holds"], (to_microseconds(now), limit)).fetchall()
            return [
                Reservation(
                    reservation_id=reservation_id,
                    claims=decode_claims(claims),
                    created_at=from_microseconds(created_at),
                    expires_at=from_microseconds(expires_at),
                    owner=owner,
                    call=entry_of(session, json.loads(call)),
                )
                for reservation_id, claims, created_at, expires_at, owner, call in rows
            ]

        return self._database.read(work)

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""

        def work(session: Session) -> dict[CounterKey, Counter]:
            balances = Balances(session)
            return {key: balances.state(key) for key in keys}

        return self._database.read(work)

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order, in short read transactions."""
        last: tuple[Any, ...] = ("", "", -(2**63))
        while True:
            rows = self._fetch(_SQL["all_counters"], (*last, _PAGE))
            for budget, scope, start, settled, reserved in rows:
                yield CounterKey(budget, scope, start), Counter(int(settled), int(reserved))
            if len(rows) < _PAGE:
                return
            last = rows[-1][:3]

    def _fetch(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._database.read(lambda session: session.connection.execute(statement, values).fetchall())

    def crossings(self, *, limit: int = 100) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first."""
        return [
            Crossing(CounterKey(*key), int(threshold), None if at is None else from_microseconds(at), entry_id)
            for *key, threshold, at, entry_id in self._fetch(_SQL["crossings"], (limit,))
        ]

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""

        def work(session: Session) -> Entry | None:
            row = session.connection.execute(f"SELECT {_NAMES} FROM entries WHERE entry_id = ?", (entry_id,)).fetchone()  # noqa: S608 - names of our own
            return None if row is None else entry_of(session, row)

        return self._database.read(work)

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, page by page, each page in a read transaction of its own."""
        which = which or EntryFilter()
        check_dimensions(list(which.where))
        wanted, values = conditions(which.where, _instant(which.since), _instant(which.until))
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        last: tuple[int, int] | None = None
        while True:
            after = [] if last is None else [f"occurred_at {beyond}= ? AND (occurred_at {beyond} ? OR seq {beyond} ?)"]
            place = [] if last is None else [last[0], *last]
            clause = " AND ".join([*wanted, *after]) or "1"
            statement = (
                f"SELECT seq, {_NAMES} FROM entries WHERE {clause} "  # noqa: S608 - names of our own
                f"ORDER BY occurred_at {order}, seq {order} LIMIT {_PAGE}"
            )
            page = self._database.read(partial(_page, statement=statement, values=[*values, *place]))
            for _, entry in page:
                if matches(entry, which.where):
                    yield entry
            if len(page) < _PAGE:
                return
            seq, entry = page[-1]
            last = (to_microseconds(entry.occurred_at), seq)

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group: from the kept sums where they can answer, else from entries."""
        instants = check_boundaries(boundaries)
        return self._database.read(partial(summed, instants=instants, by=by, which=which or EntryFilter()))

    # -- documents

    def file(self, draft: NewDocument) -> Filing:
        """File a document once."""
        return file_document(self._database, draft)

    def generation(self) -> int:
        """How many documents of kind ``budget`` there are."""
        count: int = self._fetch("SELECT count(*) FROM documents WHERE kind = 'budget'")[0][0]
        return count

    def documents(self, which: Request = Request()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing."""
        return read_documents(self._database, which)

    # -- care

    def verify(self) -> Verification:
        """Walk the hash chain, re-derive the sums, and compare holds with counters."""
        fresh = Database(self.path)  # knows nothing yet: what was remembered is not what is checked
        try:
            return audit(fresh)
        finally:
            fresh.close()

    def health(self) -> Health:
        """Facts of the file and of SQLite, and what to mind."""
        entries, head = self._fetch(_SQL["head"])[0]
        facts: dict[str, Any] = {
            "store": "sqlite",
            "path": str(self.path),
            "sqlite_version": sqlite3.sqlite_version,
            "schema_version": SCHEMA_VERSION,
            "journal_mode": self._fetch("PRAGMA journal_mode")[0][0],
            "entries": entries,
            "head": head.hex(),
            "pending_holds": self._fetch(_SQL["count_holds"])[0][0],
        }
        status = self.path.stat()
        facts["bytes"] = status.st_size
        facts["permissions"] = stat.filemode(status.st_mode)
        log = Path(f"{self.path}-wal")
        facts["wal_bytes"] = log.stat().st_size if log.exists() else 0
        return Health(facts, tuple(_warnings(status.st_mode, wal=self._database.wal)))

    def close(self) -> None:
        """Close the file. Using the store again opens it again."""
        self._database.close()


def _warnings(mode: int, *, wal: bool) -> Iterator[str]:
    if stat.S_IMODE(mode) & 0o077:
        yield "Others may read the ledger: set its permissions to 0600."
    if not wal:
        yield "The file is on a network file system: it works, more slowly; for many machines use PostgreSQL."
    elif (3, 7, 0) <= sqlite3.sqlite_version_info < (3, 51, 3):
        yield (
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset race (fixed in 3.51.3). tokenmeter guards its own "
            "writes with a lock file; do not write to the ledger with other programs."
        )


def _instant(moment: datetime | None) -> int | None:
    return None if moment is None else to_microseconds(moment)


def _page(session: Session, statement: str, values: Sequence[Any]) -> list[tuple[int, Entry]]:
    rows = session.connection.execute(statement, values).fetchall()
    return [(seq, entry_of(session, row)) for seq, *row in rows]
