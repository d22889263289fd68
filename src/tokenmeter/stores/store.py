"""What the stores of all engines do alike: how a ledger is read, verified, and handed on.

An engine's store adds how an entry is written, where counters stand, and what is to be known of its health.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from pydantic_core import from_json

from tokenmeter.display import counted
from tokenmeter.late import LateModule, LateObject
from tokenmeter.ledger import CounterKey, Entry, Reservation
from tokenmeter.processes import has_ended
from tokenmeter.stores.base import Aggregate, Crossing, EntryFilter, Latencies, SumsDifference, Verification
from tokenmeter.stores.book import FoldingBook
from tokenmeter.stores.documents import Document, DocumentQuery
from tokenmeter.stores.effects import NewHold, Shared, name_effects, note_effects
from tokenmeter.stores.encoding import hold_record, quoted, quoted_text
from tokenmeter.stores.engine import asked, check_boundaries, read_head
from tokenmeter.stores.naming import NO_NAMES, KeyNames
from tokenmeter.stores.reading import EntryReader
from tokenmeter.stores.record import decode_hold, encode_entry
from tokenmeter.stores.slots import Stretch, from_microseconds, to_microseconds
from tokenmeter.stores.tail import Frame, unfolded
from tokenmeter.usage import Usage

if TYPE_CHECKING:
    from tokenmeter.stores import audit, packing, rebuilding, summing, timing
    from tokenmeter.stores.archive import archives
    from tokenmeter.stores.grouping import Grouping
    from tokenmeter.stores.packed import PackedKind
else:  # no call needs these
    archives = LateModule("tokenmeter.stores.archive.archives")
    audit = LateModule("tokenmeter.stores.audit")
    packing = LateModule("tokenmeter.stores.packing")
    rebuilding = LateModule("tokenmeter.stores.rebuilding")
    summing = LateModule("tokenmeter.stores.summing")
    timing = LateModule("tokenmeter.stores.timing")

B = TypeVar("B", bound=FoldingBook)
J = TypeVar("J", bound=Shared)
T = TypeVar("T")

#: Rows to a page.
_PAGE = 500
#: Holds of ended processes that are handed out at a time: a call may be waiting.
_MOST_LEFT = 1_000
#: Kinds of names that are tags: each is looked up by the index behind the one before, however many values it has.
_TAGS = """
WITH RECURSIVE found (kind) AS (
    SELECT min(kind) FROM names WHERE kind >= 'tag:' AND kind < 'tag;'
    UNION ALL
    SELECT (SELECT min(n.kind) FROM names AS n WHERE n.kind > f.kind AND n.kind < 'tag;') FROM found AS f
    WHERE f.kind IS NOT NULL
)
SELECT kind FROM found WHERE kind IS NOT NULL LIMIT 100
"""
#: A record and its effects.
Record = tuple[bytes, bytes]


class BookStore(ABC, Generic[B, J]):
    """See `tokenmeter.stores.base.Store`.

    Args:
        book: Where everything is that is folded.

    Attributes:
        archives: Months that are in files.
        journal: What calls write to; see `tokenmeter.stores.journal.Journal`.
    """

    journal: J

    def __init__(self, book: B) -> None:
        self._book = book
        made = cache(lambda: archives.ParquetArchives(book, self.file, self._fold))
        self.archives = book.archives = cast("archives.ParquetArchives", LateObject(made))
        self._keys = KeyNames(self.secret)
        self._reader = EntryReader(book, self.archives, self._keys)

    # -- what an engine does

    @abstractmethod
    def file(self, draft: Any) -> Any:
        """See `tokenmeter.stores.base.Store`."""

    @abstractmethod
    def secret(self) -> bytes:
        """See `tokenmeter.stores.base.Store`."""

    @abstractmethod
    def _fold(self) -> None:
        """Before a reader looks: what just returned is then in the book. What cannot be folded now waits."""

    def _look(self) -> None:
        """`_fold`, and see to it that the book can be read."""
        self._fold()

    @abstractmethod
    def _change(self, work: Callable[[Any], T]) -> T:
        """Run `work` in a transaction that may change everything."""

    @abstractmethod
    def _places(self) -> Mapping[int, int]:
        """Segment of this host's tail -> how far it is folded."""

    @abstractmethod
    def _note_places(self, reached: Mapping[int, int]) -> None:
        """Say so."""

    # -- holds

    def reserve(self, reservation: Reservation) -> None:
        """Hold every claim or none; holding the same reservation again changes nothing."""
        journal, hold_id, expires_at = self.journal, reservation.reservation_id, to_microseconds(reservation.expires_at)
        call = encode_entry(reservation.call, journal.definitions)
        created_at = to_microseconds(reservation.created_at)
        record = hold_record(hold_id, created_at, expires_at, quoted(reservation.owner), call)
        claims = [
            (journal.slot(claim.key, claim.window_end), claim.limit, claim.amount)
            for claim in sorted(reservation.claims, key=lambda claim: claim.key)
        ]
        journal.reserve(NewHold(hold_id, expires_at, claims, record))

    def release(self, reservation_id: str) -> bool:
        """Free a hold without an entry."""
        return self.journal.release(reservation_id)

    def extend(self, reservation_id: str, expires_at: datetime) -> bool:
        """Move a hold's expiry."""
        return self.journal.extend(reservation_id, to_microseconds(expires_at))

    def note(self, reservation_id: str, usage: Usage) -> bool:
        """Have a hold say what its call has used so far."""
        return self.journal.note(reservation_id, note_effects(reservation_id, usage))

    def name_answer(self, reservation_id: str, response_id: str) -> bool:
        """Have a hold say by which id the answer of its call is to be read."""
        return self.journal.note(reservation_id, name_effects(reservation_id, response_id))

    # -- reading

    def _ask(self, statement: str, values: Sequence[Any] = ()) -> Sequence[Any]:
        """Rows of one statement, of all that has been written."""
        self._look()
        return self._book.fetch(statement, values)

    def _head(self, columns: str) -> Sequence[Any]:
        """Columns of the ledger's head, of all that has been written."""
        self._look()
        return self._book.read(lambda connection: read_head(connection, columns))

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed by the ledger's clock, oldest first."""
        return self._find_holds("expires_at <= ? ORDER BY expires_at, hold_id LIMIT ?", (to_microseconds(now), limit))

    def held_for(self, response_id: str) -> Sequence[Reservation]:
        """Holds whose call says that its answer is read by this id."""
        text = re.sub(r"([!%_])", r"!\1", quoted_text(response_id))
        found = self._find_holds("body LIKE ? ESCAPE '!' ORDER BY expires_at, hold_id", (f"%{text}%",))
        return [one for one in found if one.call.response_id == response_id]

    def left(self) -> Sequence[Reservation]:
        """Holds whose process has ended, as far as this machine can tell of its own: the oldest thousand."""
        ended = [owner for owner in self._owners() if has_ended(owner)][:_PAGE]
        among = f"{self._owner} IN ({', '.join('?' * len(ended))}) ORDER BY expires_at, hold_id LIMIT ?"
        return self._find_holds(among, (*ended, _MOST_LEFT)) if ended else []

    def _owners(self) -> Mapping[str, int]:
        """Who has open holds, and how many."""
        return dict(self._ask(f"SELECT {self._owner}, count(*) FROM holds GROUP BY 1 ORDER BY 1"))  # noqa: S608 - words of our own

    @property
    def _owner(self) -> str:
        return self._book.engine.member.format("owner")

    def _find_holds(self, which: str, values: Sequence[Any]) -> list[Reservation]:
        self._look()

        def work(connection: Any) -> list[Reservation]:
            rows = connection.execute(f"SELECT expires_at, claims, body FROM holds WHERE {which}", values).fetchall()  # noqa: S608 - words of our own
            found: list[Reservation] = []
            for expires_at, claims, body in rows:
                record = from_json(body)
                call = self._reader.call(connection, record["call"])
                found.append(decode_hold(record, json.loads(claims), from_microseconds(expires_at), call))
            return found

        return self._book.read(work)

    def _tell_left_holds(self) -> Iterator[str]:
        """What `doctor` says of holds whose process has ended, as far as this machine can tell of its own."""
        left = sum(holds for owner, holds in self._owners().items() if has_ended(owner))
        if left:
            told = counted(
                left, "hold of a process that has ended: it is", "holds of processes that have ended: they are"
            )
            yield f"{told} booked by whichever process makes a call next, within a minute, or by tokenmeter.sweep()."

    def _tell_refused(self) -> Iterator[str]:
        """What an erasure says of records that nobody could read: names may stand in them, as in what they count on."""
        ((kept,),) = self._book.fetch("SELECT count(*) FROM refused")
        if kept:
            told = counted(kept, "record that was refused and may name", "records that were refused and may name")
            yield f"The table 'refused': {told} the person. Read what they say, and delete them there."

    def _walk_counters(self, columns: str) -> Iterator[Sequence[Any]]:
        """Rows of the table of counters (``c``), in key order, page by page; `columns` begin with the key."""
        last: Sequence[Any] = ("", "", -(2**63))
        while True:
            rows = self._book.fetch(
                f"SELECT {columns} FROM counters AS c WHERE (budget, scope, window_start) > (?, ?, ?) "  # noqa: S608 - words of our own
                "ORDER BY budget, scope, window_start LIMIT ?",
                (*last, _PAGE),
            )
            yield from rows
            if len(rows) < _PAGE:
                return
            last = rows[-1][:3]

    def crossings(
        self, *, limit: int = 100, since: datetime | None = None, budgets: Collection[str] | None = None
    ) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first; or all since some instant."""
        asked: list[tuple[str, Sequence[str | int]]] = []
        if budgets is not None:
            asked.append((f"budget IN ({', '.join('?' * len(budgets)) or 'NULL'})", list(budgets)))
        if since is not None:
            asked.append(("crossed_at >= ?", [to_microseconds(since)]))
        which = f"WHERE {' AND '.join(words for words, _ in asked)}" if asked else ""
        return [
            Crossing(CounterKey(budget, scope, start), int(threshold), from_microseconds(at), entry_id)
            for budget, scope, start, threshold, at, entry_id in self._ask(
                "SELECT budget, scope, window_start, threshold, crossed_at, entry_id FROM crossings "  # noqa: S608 - words of our own
                f"{which} ORDER BY crossed_at DESC, {self._book.engine.largest.format('threshold')}, budget, scope "
                f"{'LIMIT ?' if since is None else ''}",
                (*(value for _, values in asked for value in values), *([limit] if since is None else [])),
            )
        ]

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        self._look()
        self._keys.make_fingerprints()
        return self._reader.entry(entry_id)

    def recorded_under(self, keys: Sequence[str]) -> Sequence[Entry]:
        """Entries by their dedup keys, in the order of the chain."""
        self._look()
        self._keys.make_fingerprints()
        return self._reader.recorded_under(keys)

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, those of one moment in the order of the chain; lazily, page by page."""
        self._look()
        self._keys.make_fingerprints()
        yield from self._reader.entries(which or EntryFilter(), newest_first=newest_first)

    def follow(self, after: int | None = None, which: EntryFilter | None = None) -> tuple[int, Sequence[Entry]]:
        """What has been recorded since, in the order of the chain, some hundreds at once."""
        self._look()
        self._keys.make_fingerprints()
        return self._reader.follow(after, (which or EntryFilter()).where)

    def span(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime] | None:
        """Where the first and the last entry in between lie at most."""
        self._look()
        return self._reader.span(since, until)

    def tag_names(self) -> Sequence[str]:
        """Names of the tags that entries have, in order; of very many the first hundred."""
        return [kind.removeprefix("tag:") for (kind,) in self._ask(_TAGS)]

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group: from the kept sums where they can answer, else from entries."""
        return self._add_up(summing.Summing, boundaries, by, which)

    def call_keys(self, names: Mapping[str, str]) -> None:
        """Go by these names of API keys (key -> name) where something is read, before the ledger's own."""
        self._keys.lay_over(names)

    def key_names(self) -> Mapping[str, str]:
        """Per fingerprint the name that the ledger itself has for an API key now."""
        self._look()
        labels = self._book.read(self._keys.read).in_ledger
        return {key: name for key, name in labels.items() if not name.startswith("...")}

    def key_labels(self) -> Mapping[str, str]:
        """Per fingerprint what an API key is called now, or ``...last4``: by `call_keys` first."""
        self._look()
        self._keys.make_fingerprints()
        return self._book.read(self._keys.labels)

    def latencies(
        self, boundaries: Sequence[datetime], by: Sequence[str] = (), which: EntryFilter | None = None
    ) -> Sequence[Latencies]:
        """How long calls took: from the kept sketches where they can answer, else from entries."""
        return self._add_up(timing.Timing, boundaries, by, which)

    def _add_up(
        self,
        how: Callable[..., Grouping[T]],
        boundaries: Sequence[datetime],
        by: Sequence[str],
        which: EntryFilter | None,
    ) -> list[T]:
        """What `how` finds; and what it would have read faster if it was packed, is."""
        instants, where = check_boundaries(boundaries), (which or EntryFilter()).where
        self._look()
        self._keys.make_fingerprints()

        def work(connection: Any) -> tuple[list[T], Mapping[PackedKind, Sequence[Stretch]]]:
            about_keys = any(asked(each)[0] == "api_key" for each in (*by, *where))
            names = self._keys.read(connection) if about_keys else NO_NAMES
            wanted = names.by_fingerprint(where)
            grouping = how(connection, self._book.engine, by, wanted, archives=self.archives, key_labels=names.labels)
            return grouping.run(instants), grouping.unpacked

        found, unpacked = self._book.read(work)
        for kind, stretches in unpacked.items():
            if stretches and packing.is_packed_at_once(kind):
                self._book.pack(stretches, {kind})
        return found

    def pack(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Pack the kept sums of all that is over, the last first, where reports read them faster so.

        Args:
            go_on: Asked before each few of them; it may wait until nobody else needs the processor.

        Raises:
            StoreUnavailableError: the ledger cannot be read or written now.
        """
        self._look()
        self._book.pack_all(go_on)

    def documents(self, which: DocumentQuery = DocumentQuery()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing, page by page."""
        return self._reader.documents(which)

    def identity(self) -> str:
        """What tells the ledger from every other one."""
        return bytes(self._head("identity")[0]).hex()

    def pulse(self) -> str:
        """A text that differs after every write; behind its last dot is the number of holds."""
        return ".".join(map(str, self._head("entries, documents, (SELECT count(*) FROM holds)")))

    # -- care

    def verify(
        self,
        *,
        head: str | None = None,
        since: str | None = None,
        deep: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Walk the chain of all records, compare every column with its record, and re-derive the sums."""
        self._look()
        return audit.audit(self._book, self.archives, head=head, since=since, deep=deep, progress=progress)

    def rebuild(
        self, *, dry_run: bool = False, deep: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Sequence[SumsDifference]:
        """Make every kept sum anew that is not what its entries come to."""
        self._look()
        return rebuilding.rebuild(
            self._book.read, None if dry_run else self._change, self.archives, deep=deep, progress=progress
        )

    # -- moving

    def hand_on(self, take: Callable[[Sequence[Record]], object]) -> int:
        """Give what waits in this host's tail to another ledger; how many records."""
        waiting = self._waiting_frames()
        take([(record, effects) for _, (_, record, effects) in waiting])
        self._note_places({segment: end for segment, (end, _, _) in waiting})
        return len(waiting)

    def count_waiting(self) -> int:
        """How many entries wait in this host's tail."""
        return sum(b'"record":"entry"' in record[:40] for _, (_, record, _) in self._waiting_frames())

    def _waiting_frames(self) -> list[tuple[int, Frame]]:
        return list(unfolded(self._book.path, self._book.identity, self._places()))
