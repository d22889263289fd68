"""What every store must be able to do. One contract suite (tests/contract) runs over all of them.

Stores know entries, holds and counters; what a budget means is not their business. Every write is one transaction.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.display import counted, facts_html
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, ThresholdCrossing
from tokenmeter.pricing.corrections import reversal
from tokenmeter.stores.documents import Document, DocumentQuery, Filing, NewDocument
from tokenmeter.stores.sketch import Latencies
from tokenmeter.usage import Quantity, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from tokenmeter.stores.archive.manifest import ArchivedMonth, Proof
    from tokenmeter.stores.archive.sealing import Left

__all__ = [
    "DIMENSIONS",
    "Aggregate",
    "Archives",
    "CapReachedError",
    "Counter",
    "Crossing",
    "EntryFilter",
    "Fault",
    "Health",
    "Latencies",
    "Settlement",
    "Spooling",
    "Store",
    "SumsDifference",
    "Verification",
    "take_back",
]


class CapReachedError(Exception):
    """A claim did not fit; nothing was held. Turned into `BudgetExceededError` by the budgets.

    Attributes:
        claim: The first claim, in key order, that did not fit.
        settled: Its counter's settled amount.
        reserved: What other calls hold of it.
    """

    def __init__(self, claim: Claim, settled: int, reserved: int) -> None:
        super().__init__(claim, settled, reserved)
        self.claim = claim
        self.settled = settled
        self.reserved = reserved


class LockedError(StoreUnavailableError):
    """What was to be changed stayed locked by somebody else for as long as it is waited for. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Counter:
    """State of one budget counter, in the budget's integer unit."""

    settled: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """A threshold that was crossed, as the store remembers it.

    Attributes:
        key: The counter.
        threshold: The absolute amount that was crossed, in the budget's integer unit.
        crossed_at: When it was recorded, aware UTC; None when nobody noted it.
        entry_id: The entry that took the counter there; None when nobody noted it.
    """

    key: CounterKey
    threshold: int
    crossed_at: datetime | None
    entry_id: str | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a settlement did.

    Attributes:
        recorded: False when the same entry_id or dedup_key was in the ledger already: nothing was written or counted.
        crossings: Thresholds crossed for the first time in their window.
        hold_found: False when the hold had expired and been swept (or there was none).
    """

    recorded: bool
    crossings: tuple[ThresholdCrossing, ...] = ()
    hold_found: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryFilter:
    """Which entries. All conditions must hold.

    Attributes:
        since: First instant of ``occurred_at``, inclusive (aware); None = from the beginning.
        until: First instant after, exclusive; None = no end.
        where: dimension (`DIMENSIONS` or ``tag:NAME``) -> accepted values; None among them accepts "not set". With
            ``!`` behind the dimension all values but these are accepted, and "not set" unless None is among them
            (`engine.condition_on` writes it).
    """

    since: datetime | None = None
    until: datetime | None = None
    where: Mapping[str, frozenset[str | None]] = field(default_factory=dict[str, frozenset[str | None]])


def take_back(find: Callable[[EntryFilter], Iterable[Entry]], estimate: Entry) -> Entry:
    """The entry that takes an estimate back, and what has corrected it since; it is not recorded yet.

    Args:
        find: Finds entries, as `Store.entries` does.
        estimate: What was recorded of a call before its answer was known.
    """
    near = EntryFilter(
        since=estimate.occurred_at,
        until=estimate.occurred_at + timedelta(microseconds=1),
        where={"kind": frozenset({"correction"})},
    )
    return reversal(estimate, [one for one in find(near) if one.corrects == estimate.entry_id])


@dataclass(slots=True)
class Aggregate:
    """Sums over the entries of one group.

    Attributes:
        bucket: Index into the boundaries that were asked for.
        group: Values of the asked dimensions, in order; None = not set.
        entries: Entries of any kind; of those that are split into charges, charges' meters.
        requests: Calls: `tokenmeter.ledger.Entry.requests` of each entry, added up.
        errors: Of these, how many were not ``ok``.
        unpriced: Entries with a meter of unknown price, less those that a correction has priced since.
        estimated: Entries whose usage or cost is estimated.
        quantities: sku_meter -> sum.
        reasoning_output_tokens: Informational.
        list_cost: US dollars, exact.
        contracted_cost: US dollars, exact.
        billed_cost: US dollars, exact.
    """

    bucket: int
    group: tuple[str | None, ...]
    entries: int = 0
    requests: int = 0
    errors: int = 0
    unpriced: int = 0
    estimated: int = 0
    quantities: dict[str, Quantity] = field(default_factory=dict[str, Quantity])
    reasoning_output_tokens: int = 0
    list_cost: Decimal = Decimal(0)
    contracted_cost: Decimal = Decimal(0)
    billed_cost: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing `Store.verify` found.

    Attributes:
        kind: ``edited``, ``missing``, ``cut``, ``rollup`` (a kept sum), ``counter``, ``anchor`` (a document was filed
            on another ledger than the one before it), ``archive`` (an archived month's file is gone or is not the
            one that was sealed), ``head`` (the head that was asked for is not in the chain),
            ``trigger`` (a guard against changes is gone or was replaced, or somebody has a trigger of his own),
            ``table`` (a table, column, view or function of the ledger is gone or was replaced, or what could not be
            checked for it), ``secret``, or ``unchecked`` (what budgets used could not be counted now).
        where: Which record, sum or counter.
        detail: In words.
    """

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class SumsDifference:
    """A kept figure that is not what it comes from.

    Attributes:
        table: ``sums``, ``rare_sums``, ``meter_sums``, ``latency_sums``, or ``counters``.
        of: Which hour, day or month (UTC); the budget and scope of a counter.
        account: Number of the account; None for a counter.
        sku_meter: The meter; None for sums of all.
        changes: Column -> what is kept, and what it should be: costs in picodollars, ``nano`` in billionths of a unit,
            times in microseconds.
    """

    table: str
    of: str
    account: int | None
    sku_meter: str | None
    changes: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """Outcome of `Store.verify`.

    Attributes:
        entries: How many entries were checked.
        head: Hash of the last record (hex).
        faults: What does not add up; empty when all is well.
        after_head: How many records came after the head that was asked for; None when none was, or it is not there.
    """

    entries: int
    head: str
    faults: tuple[Fault, ...] = ()
    after_head: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def __repr__(self) -> str:
        found = "ok" if self.ok else counted(len(self.faults), "fault")
        return f"<Verification {found}: {counted(self.entries, 'entry', 'entries')}, head {self.head[:12]}>"

    def _repr_html_(self) -> str:
        facts = {
            "outcome": "ok" if self.ok else counted(len(self.faults), "fault"),
            "entries": f"{self.entries:,}",
            "head": self.head,
        }
        found = [[getattr(fault, part.name) for part in fields(fault)] for fault in self.faults]
        return facts_html("Verification", facts, columns=[part.name for part in fields(Fault)], rows=found)


@dataclass(frozen=True, slots=True)
class Health:
    """What `tokenmeter doctor` prints of a store: name -> value, and warnings in words."""

    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Spooling(Protocol):
    """What a store on a server can also do: it acknowledges on this host and ships afterwards."""

    def flush(self, timeout: int) -> int:
        """Send what waits on this host; how many entries are left after `timeout` seconds."""
        ...

    def take_crossings(self) -> Sequence[ThresholdCrossing]:
        """Crossings that this process has found when it sent records, and that nobody has told yet."""
        ...


class Archives(Protocol):
    """Closed months of a ledger in files; every other method of a store reads them as if they were still there."""

    def listed(self) -> Sequence[ArchivedMonth]:
        """Every sealed month, in the order of the chain."""
        ...

    def seal(
        self, through: str, to: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> Sequence[ArchivedMonth]:
        """Write every month up to and including `through` (``2026-09``) that is not sealed yet into a file in `to`."""
        ...

    def drop(
        self, through: str | None = None, *, progress: Callable[[int], object] | None = None
    ) -> Sequence[ArchivedMonth]:
        """Drop the entries of sealed months from the live ledger, once their files were read and found whole."""
        ...

    def left_behind(self, through: str) -> Left | None:
        """What of months up to `through` no file can hold as yet: it was recorded after calls of the running month."""
        ...

    def restore(
        self, since: str | None = None, *, progress: Callable[[int], object] | None = None
    ) -> Sequence[ArchivedMonth]:
        """Bring the entries of dropped months, from `since` on and what lies behind, back into the live ledger."""
        ...

    def move(
        self, to: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> Sequence[ArchivedMonth]:
        """Have the files of every sealed month in another place, where they may lie already. The old ones stay."""
        ...

    def unreadable(self) -> Sequence[str]:
        """Why files of dropped months cannot be read, in words; places are asked, and no file is read."""
        ...

    def prove(self, entry_id: str) -> Proof:
        """That a sealed month has an entry."""
        ...

    def connect(self, path: str | os.PathLike[str] | None = None) -> DuckDBPyConnection:
        """The whole ledger as tables of DuckDB, in memory or in a file."""
        ...


class PolicyReader(Protocol):
    """What a store knows of budgets."""

    @property
    def heard(self) -> int:
        """Position of the last document of budgets by which this process counts; 0 = it has read none."""
        ...

    def due(self, heard: int, moments: Collection[int]) -> Mapping[CounterKey, tuple[int, int | None]]:
        """What counters should hold that may have missed entries: their settled amount, and the end of their window.

        Args:
            heard: By what those entries were counted, the least.
            moments: When they occurred, in microseconds since the epoch.
        """
        ...


@runtime_checkable
class Store(Protocol):
    """An append-only ledger with atomic holds. Safe for threads and, where files or servers are shared, processes.

    Within `tokenmeter.processes.run_at_once` a method raises `StoreBusyError` where it would have to wait for a lock;
    nothing is then written. All other failures raise `StoreUnavailableError` with the driver's error as cause.
    """

    url: str

    @property
    def archives(self) -> Archives:
        """Closed months in files."""
        ...

    def now(self) -> datetime:
        """The ledger's clock, aware UTC: it decides windows and expiry for all who share the ledger. Asks nobody."""
        ...

    #: Whether what others file of budgets is known here after a while only; see `generation`.
    hears_late: bool
    #: By what this process counts, if it counts; set by who does. Asked where entries come into the ledger later than
    #: they were recorded: whoever recorded them may not have heard of today's budgets, and may have ended.
    policy: PolicyReader | None
    #: Told of thresholds whose crossing could not be written down with its entry, once it is; set by who alerts.
    tell_late: Callable[[Sequence[ThresholdCrossing]], object] | None

    def settle(
        self,
        entry: Entry,
        postings: Sequence[Posting] = (),
        *,
        reservation_id: str | None = None,
        only_if_held: bool = False,
    ) -> Settlement:
        """Append `entry`, move the counters, free the hold, update rollups and thresholds: one transaction, durable.

        Args:
            entry: What to append.
            postings: What it adds to the budgets' counters.
            reservation_id: The hold it settles.
            only_if_held: Write nothing if that hold is gone: for the sweeper, which may come second.
        """
        ...

    def append(self, batch: Sequence[tuple[Entry, Sequence[Posting]]]) -> Sequence[Settlement]:
        """Append entries that no hold waits for, with their postings, in few transactions; what each did, in order.

        Some thousands at a time are a good measure: what one batch adds to a sum is written once.
        """
        ...

    def reserve(self, reservation: Reservation) -> None:
        """Hold every claim or none.

        Raises:
            CapReachedError: a claim with a limit does not fit (settled + reserved + amount > limit).
        """
        ...

    def release(self, reservation_id: str) -> bool:
        """Free a hold without an entry; False when there is none (idempotent)."""
        ...

    def extend(self, reservation_id: str, expires_at: datetime) -> bool:
        """Move a hold's expiry; False when the hold is gone."""
        ...

    def note(self, reservation_id: str, usage: Usage) -> bool:
        """Have a hold say what its call has used so far, in place of what it said before.

        It becomes the usage of `Reservation.call`, should nobody settle the hold. False when this process has no such
        hold: nothing is written then.
        """
        ...

    def name_answer(self, reservation_id: str, response_id: str) -> bool:
        """Have a hold say by which id the answer of its call is to be read, perhaps by others; as `note`."""
        ...

    def expired(self, now: datetime, *, limit: int = 100) -> Sequence[Reservation]:
        """Holds whose expiry has passed; the sweeper settles each by its reservation_id."""
        ...

    def left(self) -> Sequence[Reservation]:
        """Holds whose process has ended, as far as this machine can tell: the oldest thousand."""
        ...

    def held_for(self, response_id: str) -> Sequence[Reservation]:
        """Holds whose call says that its answer is read by this id (`name_answer`)."""
        ...

    def counters(self, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
        """State of the named counters; a counter that never moved is zero."""
        ...

    def all_counters(self) -> Iterator[tuple[CounterKey, Counter]]:
        """Every counter, in key order."""
        ...

    def recount(self, count: Callable[[], Mapping[CounterKey, tuple[int, int | None]]]) -> None:
        """Have counters say what `count` finds in the ledger: meanwhile no entry is added, and no counter moves.

        Args:
            count: Reads entries and sums, and nothing else of the store. It says counter -> settled amount, and its
                window's end in microseconds since the epoch (None = never). It may be called again.
        """
        ...

    def open_counters(self, settled: Mapping[CounterKey, tuple[int, int | None]]) -> None:
        """Give counters that never moved what their window holds already; leave every other one alone.

        Args:
            settled: Counter -> its settled amount, and its window's end in microseconds since the epoch (None = never).
        """
        ...

    def crossings(
        self, *, limit: int = 100, since: datetime | None = None, budgets: Collection[str] | None = None
    ) -> Sequence[Crossing]:
        """The thresholds that were crossed last, the last first; of one moment the highest first.

        Args:
            limit: So many at most.
            since: All from this instant on in their place, however many they are.
            budgets: Only of counters with these names (`CounterKey.budget`).
        """
        ...

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        ...

    def recorded_under(self, keys: Sequence[str]) -> Sequence[Entry]:
        """Entries by their dedup keys, a few hundred at most, in the order of the chain."""
        ...

    def entries(self, which: EntryFilter | None = None, *, newest_first: bool = False) -> Iterator[Entry]:
        """Entries in order of their occurrence, lazily and in short read transactions."""
        ...

    def follow(self, after: int | None = None, which: EntryFilter | None = None) -> tuple[int, Sequence[Entry]]:
        """What has been recorded since, in the order of the chain, some hundreds at once; not what is archived by now.

        Args:
            after: The number that the question before gave; None = nothing yet.
            which: Conditions; its since/until are ignored.

        Returns:
            The number of the last record that was looked at, and the entries. It is `after` once there is no more.
        """
        ...

    def span(self, since: datetime | None, until: datetime | None) -> tuple[datetime, datetime] | None:
        """Where the first and last entry in between lie at most, without a look into files; None where none does."""
        ...

    def tag_names(self) -> Sequence[str]:
        """Names of the tags that entries have, in order; of very many the first hundred."""
        ...

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None = None
    ) -> Sequence[Aggregate]:
        """Sums per time bucket and group.

        Args:
            boundaries: Ascending instants (aware), at least two; bucket i is ``[boundaries[i], boundaries[i+1])``.
            by: Dimensions to group by; ``sku_meter`` among them splits entries into charges (counts of requests are
                then given to the groups an entry has a charge in).
            which: Further conditions; its since/until are ignored.
        """
        ...

    def latencies(
        self, boundaries: Sequence[datetime], by: Sequence[str] = (), which: EntryFilter | None = None
    ) -> Sequence[Latencies]:
        """How long calls took, per time bucket and group; groups without a timed call are left out.

        Args:
            boundaries: As for `aggregate`.
            by: Dimensions to group by, but not ``sku_meter``.
            which: Further conditions; its since/until are ignored.

        Raises:
            ConfigurationError: an unknown dimension, or ``sku_meter`` among them.
        """
        ...

    def file(self, draft: NewDocument) -> Filing:
        """File a document once: numbered without gaps in its series, linked to the one before, never changed.

        A key that is taken is not filed again, nor a number that the draft says; a document that has it comes back.
        """
        ...

    def identity(self) -> str:
        """What tells the ledger from every other, 32 hex digits. Copies, backups and a ledger that moved have it."""
        ...

    def generation(self, *, ask: bool = False) -> int:
        """A number that changes whenever anybody files a document of kind ``budget``: cheap enough for every call.

        Args:
            ask: Ask the ledger itself. Else a store over a network may say what it heard within the last second.
        """
        ...

    def documents(self, which: DocumentQuery = DocumentQuery()) -> Iterator[Document]:  # noqa: B008 - immutable
        """Filed documents, in the order of their filing, lazily."""
        ...

    def verify(
        self,
        *,
        head: str | None = None,
        since: str | None = None,
        deep: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> Verification:
        """Walk the hash chain and re-derive the kept sums.

        Args:
            head: A head that was kept (from an earlier verification, a document's anchor): must be in the chain.
            since: A head up to which all was verified before: what lies before it is not looked at again.
            deep: Whether archived months are looked into, record by record; else their files are compared with the
                digests that the chain has.
            progress: Told now and then how many records are done, and of how many.
        """
        ...

    def rebuild(
        self, *, dry_run: bool = False, deep: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Sequence[SumsDifference]:
        """Make every kept sum anew that is not what its entries come to; no record of the chain is touched.

        Args:
            dry_run: Only say what is wrong.
            deep: Look at days, too, whose entries are in archived files, and read the files.
            progress: Told now and then how many days are done, and of how many.

        Returns:
            What was wrong; empty when all sums were right.

        Raises:
            ConfigurationError: only the owner of a shared ledger may do this.
        """
        ...

    def health(self) -> Health:
        """Facts and hazards, for ``doctor``."""
        ...

    def call_keys(self, names: Mapping[str, str]) -> None:
        """Go by these names of API keys (key -> name) where something is read, before the ledger's own.

        Nothing is written; the keys themselves are forgotten once their fingerprints are known.
        """
        ...

    def key_names(self) -> Mapping[str, str]:
        """Per fingerprint the name that the ledger itself has for an API key now, whatever `call_keys` was told.

        Raises:
            StoreUnavailableError: it cannot be read.
        """
        ...

    def key_labels(self) -> Mapping[str, str]:
        """Per fingerprint what an API key is called now, or ``...last4``: by `call_keys` first.

        Raises:
            StoreUnavailableError: it cannot be read.
        """
        ...

    def secret(self) -> bytes:
        """The ledger's own secret for fingerprints of API keys: made once, kept beside the data, never exported."""
        ...

    def close(self) -> None:
        """Let go of files and connections. The store can be opened again by its URL."""
        ...
