"""A ledger on a PostgreSQL server, for any number of hosts."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection
from pydantic_core import from_json, to_json

from tokenmeter.errors import ConfigurationError, StoreBusyError, StoreError, StoreUnavailableError
from tokenmeter.forks import after_fork_in_child
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, ThresholdCrossing, utcnow
from tokenmeter.stores.audit import audit
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
from tokenmeter.stores.journal import Journal
from tokenmeter.stores.postgres.address import Address
from tokenmeter.stores.postgres.book import NeedsServerError, PostgresBook, json_text
from tokenmeter.stores.postgres.condition import describe
from tokenmeter.stores.postgres.failures import explain
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.rows import ServerRows
from tokenmeter.stores.postgres.schema import apply, check, state
from tokenmeter.stores.postgres.spool import Sender, Spool
from tokenmeter.stores.reading import Reader, document_of, document_record
from tokenmeter.stores.record import decode_hold, encode_entry, hold_record
from tokenmeter.stores.selection import check_boundaries
from tokenmeter.stores.summing import summed
from tokenmeter.stores.tail import frames, segment_path, segments
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["PostgresStore"]

log = logging.getLogger("tokenmeter")
_PAGE = 500
_ASK_GENERATION_EVERY = 1.0
#: SQLSTATE of our own: a claim does not fit.
_CAP_REACHED = "TMCAP"
_NETWORK = "The PostgreSQL store needs the network; call again from a thread."


class PostgresStore:
    """See `tokenmeter.stores.base.Store`.

    An entry is acknowledged when it is in the tail of this host, from which a thread sends it within milliseconds, and
    again and again while the server is away. A hold is made on the server or not at all. With ``wait=False`` a method
    that has to ask the server raises `StoreBusyError`, so that an event loop never waits for the network.

    Args:
        url: ``postgresql://user@host:5432/db`` with any libpq parameter, and our own: ``schema`` (``tokenmeter``),
            ``spool`` (folder), ``spool_mb`` (256), ``pool`` (connections, 4).

    Raises:
        ConfigurationError: the URL is wrong, or the server refuses this user or database.
        SchemaVersionError: the server's schema does not fit this release.
    """

    journal = None  # the server counts, not this host

    def __init__(self, url: str) -> None:
        self.address = Address.parse(url)
        self.url = self.address.url
        self._pool = Pool(self.address)
        self._checked = False
        try:
            self._check_schema()
        except StoreUnavailableError as error:
            log.warning("The PostgreSQL store is away; entries wait in the spool until it is back. %s", error)
        self._spool = Spool(self.address.spool)
        self._book = PostgresBook(self._pool, self._spool.path, self._spool.host)
        self._journal = Journal(self._spool.path, self._book)
        self._reader = Reader(self._book)
        self._sender = Sender(self._send)
        self._generation: int | None = None
        self._generation_due = time.monotonic()
        self._start()
        _STORES.add(self)
        if self._may_write and self._book.waiting() and segments(self._spool.path):
            self._sender.wake()

    def _start(self) -> None:
        self._holds: dict[str, int] = {}
        self._sent = -1
        self._late_lock = threading.Lock()

    def after_fork_in_child(self) -> None:
        """The parent's holds are its own, its thread is not here."""
        self._start()
        self._book.after_fork_in_child()

    def _check_schema(self) -> None:
        """Make the schema where there is none and we may; refuse one that does not fit."""
        try:
            self._pool.run(lambda connection, _: self._set_up(connection))
        except psycopg.Error as error:
            raise explain(error, self.address) from error
        self._checked = True
        if self._pool.read_only:
            log.warning(
                "The PostgreSQL server of %s only reads, as a replica does: nothing can be recorded there. Name the "
                "primary, or add target_session_attrs=read-write.",
                self.url,
            )

    _may_write = True

    def _set_up(self, connection: Connection[Any]) -> None:
        found = state(connection)
        if not found.applied:
            apply(connection, self.address.schema)
            found = state(connection)
        check(found)
        row = connection.execute("SELECT has_function_privilege('fold(json)', 'EXECUTE')").fetchone()
        self._may_write = bool(row and row[0]) and not self._pool.read_only

    def _ready(self) -> None:
        if not self._checked:
            try:
                self._check_schema()
            except ConfigurationError as error:  # the program runs already: nothing is lost for it
                raise StoreUnavailableError(str(error)) from error

    def _fetch(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        self._ready()
        return self._book.fetch(statement, values)

    def now(self) -> datetime:
        """The server's clock, to the second, as this host knows it from its last connection."""
        return utcnow() + timedelta(microseconds=self._pool.skew_us)

    # -- the tail

    def _write(self, record: bytes, effects: Mapping[str, Any]) -> None:
        if self._book.trouble and self._book.waiting() > self.address.spool_bytes:
            raise StoreUnavailableError(
                f"The spool of {self.url} is full ({self.address.spool_bytes >> 20} MiB) and the server is away: the "
                "entry was not recorded. Add spool_mb=N to the URL for more room."
            )
        self._journal.append(record, to_json(effects) if effects else b"")
        self._sender.wake()

    def _send(self) -> int:
        """Fold the tail.

        Raises:
            StoreError: it cannot be sent now; it waits.
        """
        self._ready_to_send()
        made = self._journal.definitions.made
        moved = self._book.fold()
        self._sent = made
        return moved

    def _ready_to_send(self) -> None:
        try:
            self._ready()
        except StoreError as error:
            self._book.trouble.failed(error)
            raise

    def _fold(self) -> None:
        """Before a reader looks: what just returned is then on the server. What cannot be sent now waits."""
        if self._may_write:
            with contextlib.suppress(StoreUnavailableError, StoreBusyError):
                self._send()

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
        """Write `entry` to the tail, with what it adds to counters and the hold that it frees; the server follows.

        An entry that may be there already is asked for on the server first. While that is away it counts as recorded,
        and a repetition is found out when it arrives.
        """
        now = to_microseconds(self.now())
        held = reservation_id is None or self._holds.get(reservation_id, 0) > now
        simple = held and not only_if_held and entry.dedup_key is None
        if not wait and not simple:
            raise StoreBusyError(_NETWORK)
        record = self._encode(entry, wait=wait)
        if not (simple and self._journal.first_time(entry.entry_id)):
            if not wait:
                raise StoreBusyError(_NETWORK)
            return self._settle_known(entry, record, postings, reservation_id, only_if_held=only_if_held)
        self._write(record, _effects(entry, postings, reservation_id))
        if reservation_id is not None:
            self._holds.pop(reservation_id, None)
        return Settlement(
            recorded=True, crossings=self._crossed(postings, wait=wait), hold_found=reservation_id is not None
        )

    def _encode(self, entry: Entry, *, wait: bool = True) -> bytes:
        work = partial(encode_entry, entry, self._journal.definitions)
        if wait:
            return work()
        try:
            return self._book.inline(work)
        except NeedsServerError:
            raise StoreBusyError(_NETWORK) from None

    def _settle_known(
        self, entry: Entry, record: bytes, postings: Sequence[Posting], hold_id: str | None, *, only_if_held: bool
    ) -> Settlement:
        """Settle an entry that may be in the ledger, or whose hold may be gone."""
        dedup_key: str | None = from_json(record).get("dedup_key")
        try:
            self._send()
            held = hold_id is not None and self._book.hold(hold_id) is not None
            repeated = self._book.has_entry(entry.entry_id, dedup_key)
            if repeated or (only_if_held and not held):
                if held and hold_id is not None:
                    self._release(hold_id)
                return Settlement(recorded=False, crossings=self._take_late(), hold_found=held)
        except StoreUnavailableError:
            if only_if_held:
                raise
            self._write(record, _effects(entry, postings, hold_id))
            return Settlement(recorded=True, crossings=self._take_late())
        needed = {"needed": hold_id} if only_if_held else {}
        self._write(record, _effects(entry, postings, hold_id if held else None) | needed)
        if hold_id is not None:
            self._holds.pop(hold_id, None)
        recorded = True
        with contextlib.suppress(StoreUnavailableError):  # it is written, and arrives
            self._send()
            recorded = self._book.has_entry(entry.entry_id, None)
        return Settlement(recorded=recorded, crossings=self._take_late(), hold_found=held)

    def _crossed(self, postings: Sequence[Posting], *, wait: bool) -> tuple[ThresholdCrossing, ...]:
        """Crossings to report. The server is asked where a threshold may be behind, by all that this process knows."""
        due = False
        settled, told = self._book.settled, self._book.told
        for posting in postings:
            if not posting.thresholds:
                continue
            known = settled.get(posting.key)
            if known is None:
                due = True
                continue
            settled[posting.key] = known = known + posting.amount
            due = due or any(one <= known and (posting.key, one) not in told for one in posting.thresholds)
        if due and wait:
            with contextlib.suppress(StoreError):
                self._send()
        return self._take_late()

    def _take_late(self) -> tuple[ThresholdCrossing, ...]:
        if not self._book.late:
            return ()
        with self._late_lock:
            found, self._book.late = tuple(self._book.late), []
        return found

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Write many entries at once: all, or none when one cannot be written or the server is away."""
        if not batch:
            return []
        records = [encode_entry(entry, self._journal.definitions) for entry, _ in batch]
        keys: list[str | None] = [from_json(record).get("dedup_key") for record in records]
        self._send()
        known = self._book.known([entry.entry_id for entry, _ in batch], keys)
        fresh: list[bool] = []
        for (entry, postings), record, key in zip(batch, records, keys, strict=True):
            new = entry.entry_id not in known and (key is None or key not in known)
            fresh.append(new)
            if new:
                known |= {entry.entry_id} | ({key} if key is not None else set())
                self._write(record, _effects(entry, postings, None))
        self._send()
        late = self._take_late()
        last = max((place for place, new in enumerate(fresh) if new), default=0)
        return [Settlement(new, late if place == last else ()) for place, new in enumerate(fresh)]

    def reserve(self, reservation: Reservation, *, wait: bool = True) -> None:
        """Hold every claim or none; holding the same reservation again changes nothing."""
        if not wait:
            raise StoreBusyError(_NETWORK)
        hold_id = reservation.reservation_id
        if hold_id in self._holds:
            return
        expires_at = to_microseconds(reservation.expires_at)
        call = self._encode(reservation.call)
        body = hold_record(hold_id, to_microseconds(reservation.created_at), expires_at, reservation.owner, call)
        claims = sorted(reservation.claims, key=lambda claim: claim.key)
        hold = json_text(
            {
                "id": hold_id,
                "expires_at": expires_at,
                "body": body.decode(),
                "claims": [
                    [
                        claim.key.budget,
                        claim.key.scope,
                        claim.key.window_start,
                        claim.window_end,
                        claim.amount,
                        claim.limit,
                    ]
                    for claim in claims
                ],
            }
        )
        self._ready()
        if self._journal.definitions.made != self._sent:
            self._send()  # whoever sweeps the hold has to be able to read it
        try:
            self._hold(hold, claims)
        except CapReachedError:
            if not self._book.waiting():
                raise
            self._send()  # it may free room
            self._hold(hold, claims)
        self._holds[hold_id] = expires_at

    def _hold(self, hold: str, claims: Sequence[Claim]) -> None:
        try:
            self._book.fetch("SELECT reserve(?)", (hold,))
        except StoreUnavailableError as error:
            cause = error.__cause__
            if not isinstance(cause, psycopg.Error) or cause.sqlstate != _CAP_REACHED:
                raise
            missed: dict[str, Any] = json.loads(cause.diag.message_detail or "{}")
            raise CapReachedError(
                claims[int(missed["missed"])], int(missed["settled"]), int(missed["reserved"])
            ) from None

    def release(self, reservation_id: str, *, wait: bool = True) -> bool:
        """Free a hold without an entry."""
        if not wait:
            raise StoreBusyError(_NETWORK)
        if self._holds.pop(reservation_id, None) is None:
            self._send()
            return self._release(reservation_id)
        try:
            return self._release(reservation_id)
        except StoreUnavailableError:
            self._write(b"", {"free": reservation_id})
            return True

    def _release(self, reservation_id: str) -> bool:
        self._holds.pop(reservation_id, None)
        return bool(self._fetch("SELECT release(?)", (reservation_id,))[0][0])

    def extend(self, reservation_id: str, expires_at: datetime, *, wait: bool = True) -> bool:
        """Move a hold's expiry."""
        if not wait:
            raise StoreBusyError(_NETWORK)
        until = to_microseconds(expires_at)
        if reservation_id not in self._holds:
            self._send()
        done = bool(self._fetch("SELECT extend(?, ?)", (reservation_id, until))[0][0])
        if done and reservation_id in self._holds:
            self._holds[reservation_id] = until
        return done

    def set_counters(self, settled: Mapping[CounterKey, int]) -> None:
        """SET the settled amounts; for the ledger's owner."""
        self._fold()
        rows = json_text([[key.budget, key.scope, key.window_start, amount] for key, amount in settled.items()])
        self._fetch(
            "INSERT INTO counters (budget, scope, window_start, settled) "
            'SELECT (c->>0) COLLATE "C", (c->>1) COLLATE "C", (c->>2)::bigint, (c->>3)::numeric '
            "FROM json_array_elements(CAST(? AS json)) AS c ORDER BY 1, 2, 3 "
            "ON CONFLICT (budget, scope, window_start) DO UPDATE SET settled = excluded.settled RETURNING 1",
            (rows,),
        )
        self._book.settled.clear()

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Set the settled amount of counters that never moved; all others stay as they are.

        Args:
            settled: Counter -> settled amount, and the end of its window.
        """
        self._send()
        rows = [[key.budget, key.scope, key.window_start, end, amount] for key, (amount, end) in settled.items()]
        self._fetch("SELECT open_counters(?)", (json_text(rows),))

    def secret(self) -> bytes:
        """The ledger's own secret, kept on the server; remembered in the spool for times when that is away."""
        try:
            value = bytes(self._fetch("SELECT ledger_secret()")[0][0])
        except StoreUnavailableError:
            remembered = self._spool.remembered_secret()
            if remembered is None:
                raise
            return remembered
        self._spool.remember_secret(value)
        return value

    def flush(self, timeout: float = 10.0) -> int:
        """Send what waits in this host's spool, from this thread; how many entries are left after `timeout` seconds.

        Raises:
            StoreUnavailableError: the spool cannot be read.
        """
        deadline = time.monotonic() + timeout
        while self._waiting():
            try:
                self._send()
            except StoreError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
        return self._waiting()

    def _waiting(self) -> int:
        """Entries in the tail that are not on the server, as far as this process knows."""
        path = self._spool.path
        return sum(
            b'"record":"entry"' in record[:40]
            for number in segments(path)
            for _, record, _ in frames(segment_path(path, number), self._book.reached(number))
        )

    # -- reading

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed by the server's clock, oldest first."""
        self._fold()
        self._ready()

        def work(rows: ServerRows) -> list[Reservation]:
            found: list[Reservation] = []
            statement = (
                "SELECT expires_at, claims, body FROM holds WHERE expires_at <= ? ORDER BY expires_at, hold_id LIMIT ?"
            )
            for expires_at, claims, body in rows.execute(statement, (to_microseconds(now), limit)).fetchall():
                record = from_json(body)
                call = self._reader.call(rows, record["call"])
                found.append(decode_hold(record, json.loads(claims), from_microseconds(expires_at), call))
            return found

        return self._book.run(work)

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters."""
        if not keys:
            return {}
        self._fold()
        wanted = json_text([[key.budget, key.scope, key.window_start] for key in keys])
        found = dict(
            map(
                _counter,
                self._fetch(
                    "SELECT budget, scope, window_start, settled, reserved FROM counters JOIN "
                    "json_array_elements(CAST(? AS json)) AS w ON budget = w->>0 AND scope = w->>1 "
                    "AND window_start = (w->>2)::bigint",
                    (wanted,),
                ),
            )
        )
        return {key: found.get(key, Counter()) for key in keys}

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order, in short read transactions."""
        self._fold()
        last: tuple[Any, ...] = ("", "", -(2**63))
        while True:
            rows = self._fetch(
                "SELECT budget, scope, window_start, settled, reserved FROM counters "
                "WHERE (budget, scope, window_start) > (?, ?, ?) ORDER BY budget, scope, window_start LIMIT ?",
                (*last, _PAGE),
            )
            yield from map(_counter, rows)
            if len(rows) < _PAGE:
                return
            last = rows[-1][:3]

    def crossings(self, *, limit: int = 100) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first."""
        self._fold()
        return [
            Crossing(CounterKey(budget, scope, start), threshold, from_microseconds(at), entry_id)
            for budget, scope, start, threshold, at, entry_id in self._fetch(
                "SELECT budget, scope, window_start, threshold, crossed_at, entry_id FROM crossings "
                "ORDER BY crossed_at DESC, threshold DESC, budget, scope LIMIT ?",
                (limit,),
            )
        ]

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        self._fold()
        self._ready()
        return self._reader.entry(entry_id)

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, those of one moment in the order of the chain; lazily, page by page."""
        self._fold()
        self._ready()
        yield from self._reader.entries(which or EntryFilter(), newest_first=newest_first)

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group: from the kept sums where they can answer, else from entries."""
        instants = check_boundaries(boundaries)
        self._fold()
        self._ready()
        return self._book.read(
            partial(summed, engine=self._book.engine, instants=instants, by=by, which=which or EntryFilter())
        )

    # -- documents

    def file(self, draft: NewDocument) -> Filing:
        """File a document once: a record of the same chain as the entries, numbered without gaps in its series."""
        self._send()
        try:
            return self._book.run(partial(_file, draft=draft), scope="transaction")
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
        found: int = self._fetch("SELECT budget_generation()")[0][0]
        if self._generation not in {None, found}:
            self._reader.forget()
        self._generation, self._generation_due = found, time.monotonic() + _ASK_GENERATION_EVERY
        return found

    def _ask_quietly(self) -> None:
        with contextlib.suppress(Exception):  # the server is away: what is known holds on
            self._ask_generation()

    def documents(self, which: Request = Request()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing, page by page."""
        self._ready()
        return self._reader.documents(which)

    # -- care

    def verify(
        self,
        *,
        head: str | None = None,
        since: str | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Walk the chain, compare columns with their records, re-derive the sums, and compare holds with counters."""
        self._fold()
        self._ready()
        outcome = audit(self._book, head=head, since=since, progress=progress)
        wrong = self._book.read(lambda rows: rows.execute(_UNEVEN).fetchall())
        faults = [
            Fault("counter", f"{budget} {scope} {start}", f"{reserved} is reserved, and {held} is held.")
            for budget, scope, start, reserved, held in wrong
        ]
        return replace(outcome, faults=(*outcome.faults, *faults))

    def pulse(self) -> str:
        """A text that differs after every write; behind its last dot is the number of holds."""
        self._fold()
        return ".".join(map(str, self._fetch("SELECT entries, documents, (SELECT count(*) FROM holds) FROM ledger")[0]))

    def health(self) -> Health:
        """Facts of server and spool, and what to mind. Answers while the server is away, too."""
        self._fold()
        return describe(self._pool, self._spool, self._book, waiting=self._waiting, fetch=self._fetch)

    def close(self) -> None:
        """Send what waits, then let go of connections and files. Using the store again opens them again."""
        self._fold()
        self._sender.close()
        self._journal.close()
        self._pool.close()

    def finish(self) -> None:
        """At exit: send what waits, if the server is there."""
        if self._may_write and not self._pool.down and self._book.waiting():
            self._fold()


#: Counters whose reserved amount is not what is held of them.
_UNEVEN = """
    SELECT budget, scope, window_start, sum(reserved), sum(claimed)
    FROM (
        SELECT budget, scope, window_start, reserved, 0::numeric AS claimed FROM counters
        UNION ALL
        SELECT claim->>0, claim->>1, (claim->>2)::bigint, 0, (claim->>4)::numeric
        FROM holds, jsonb_array_elements(claims::jsonb) AS claim
    ) AS both_sides
    GROUP BY 1, 2, 3 HAVING sum(reserved) <> sum(claimed)
"""


def _effects(entry: Entry, postings: Sequence[Posting], hold_id: str | None) -> dict[str, Any]:  # noqa: ARG001
    effects: dict[str, Any] = {}
    if hold_id is not None:
        effects["free"] = hold_id
    if postings:
        effects["post"] = [
            [one.key.budget, one.key.scope, one.key.window_start, one.window_end, one.amount] for one in postings
        ]
        if any(one.thresholds for one in postings):
            effects["alert"] = [list(one.thresholds) for one in postings]
    return effects


def _file(rows: ServerRows, *, draft: NewDocument) -> Filing:
    place = rows.execute("SELECT document_place(?, ?, ?)", (draft.kind, draft.key, draft.series)).fetchall()[0][0]
    if place["taken"]:
        position, body, digest = place["taken"]
        return Filing(document_of(position, body, bytes.fromhex(digest)), recorded=False)
    number = None if draft.series is None else (place["numbered"] or 0) + 1
    record = document_record(draft, number, place["hash"]).decode()
    after = bytes(rows.execute("SELECT file_document(?)", (record,)).fetchall()[0][0])
    return Filing(document_of(place["position"] + 1, record, after), recorded=True)


def _counter(row: Sequence[Any]) -> tuple[CounterKey, Counter]:
    budget, scope, window_start, settled, reserved = row
    return CounterKey(budget, scope, window_start), Counter(settled, reserved)


_STORES: weakref.WeakSet[PostgresStore] = weakref.WeakSet()


def _each(action: Callable[[PostgresStore], None]) -> Callable[[], None]:
    def run() -> None:
        for store in list(_STORES):
            action(store)

    return run


@after_fork_in_child
def _renew_all() -> None:
    _each(PostgresStore.after_fork_in_child)()


atexit.register(_each(PostgresStore.finish))
