"""Moving a ledger to another store: copying it, comparing both ends, and telling writers where it went."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.paths import full_path
from tokenmeter.stores import open_store, store_path
from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.base import DIMENSIONS, Store, Verification
from tokenmeter.stores.copying import Copied, End, Progress, carry, compare_sums
from tokenmeter.stores.documents import MOVED, Filing, NewDocument
from tokenmeter.stores.engine import read_head
from tokenmeter.stores.slots import from_microseconds
from tokenmeter.stores.sqlite.end import SQLiteEnd, refuse_left_files
from tokenmeter.stores.urls import redacted
from tokenmeter.values import dataclass

#: Times that a ledger is copied again before it is retired, because somebody still writes to it.
_ATTEMPTS = 5
_GROUPS = (*sorted(DIMENSIONS), "sku_meter")


@runtime_checkable
class Movable(Store, Protocol):
    """A store that can be moved."""

    def end(self) -> End:
        """Its tables."""
        ...

    @property
    def archives(self) -> ParquetArchives:
        """Its closed months in files."""
        ...

    def file_after(self, head: str, draft: NewDocument) -> Filing | None:
        """File a document as the record after the one with this hash; None when another came first."""
        ...

    def file_with(self, work: Callable[[Any], NewDocument]) -> Filing:
        """Run ``work(connection)`` and file the document that it makes, in one transaction; for the ledger's owner."""
        ...

    def hand_on(self, take: Callable[[Sequence[tuple[bytes, bytes]]], object]) -> int:
        """Give what waits in this host's tail (records and their effects) to another ledger; how many records."""
        ...

    def count_waiting(self) -> int:
        """How many entries wait in this host's tail."""
        ...

    def take(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Take in records of another ledger, with their effects; those of entries that are there are left out."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """What `copy_ledger` did.

    Attributes:
        url: Where the copy is.
        entries: How many entries it has.
        documents: How many documents it has.
        head: Hash of its last record (hex); the source's, unless `behind` says otherwise.
        behind: How many records the source has by now that the copy does not; copy again.
        forwarded: Records that waited in the tail of the retired source, and were handed on.
        retired: Whether the source's last record says that it moved.
        verification: What `verify` says of the copy; None when that was left out.
    """

    url: str
    entries: int
    documents: int
    head: str
    behind: int
    forwarded: int
    retired: bool
    verification: Verification | None


def copy_ledger(
    source: str | Path,
    target: str | Path,
    *,
    retire: bool = False,
    check: bool = True,
    progress: Progress | None = None,
) -> Copy:
    """Copy a ledger to another store, byte for byte, and make sure that both ends say the same.

    Entries and documents keep their numbers, hashes and the chain's head; names keep their salts; series of invoices go
    on at the next number; budgets come with their history, their counters and the thresholds that were crossed; bills
    that were recorded are not recorded again; API keys keep their fingerprints. A copy that was interrupted goes on
    where it ended, and a second one brings what was recorded since.

    Args:
        source: URL of the ledger, or a file's path.
        target: URL of an empty store, or of an earlier copy; a file is made.
        retire: Whether the source ends with a record that says where it went. Programs that still write to it are told;
            what they record waits beside it, and the same command run again hands it on.
        check: Whether the chain and the sums of the copy are walked, too.
        progress: Told now and then how many records are done, and of how many.

    Raises:
        ConfigurationError: there is no such ledger, or both are the same.
        LedgerError: calls are under way, the target has records of its own, or the ends differ.
        StoreUnavailableError: either end cannot be used.
    """
    with opened(source) as origin:
        refuse_itself(origin, target)
        if (gone := moved_to(origin)) is not None and retire:
            return _hand_on(origin, target, gone, check=check)
        for _ in range(_ATTEMPTS if retire else 1):
            reached = _carry(origin.end(), target, progress)
            with opened(target) as copy:
                behind = _compare(origin, copy, reached)
                retired = retire and not behind and _retire(origin, copy.url, reached)
                if retire and not retired:
                    continue
                return _told(copy, behind=behind, retired=retired, check=check, progress=progress)
    raise LedgerError(
        "Programs still write to this ledger faster than it is copied. Stop them, or point them to the copy, and run "
        "the same command again: it brings what is missing and retires the ledger."
    )


@contextlib.contextmanager
def opened(url: str | Path) -> Generator[Movable]:
    """The ledger at `url`, which must be there."""
    path = store_path(url)
    if path is not None and not path.exists():
        raise ConfigurationError(
            f"There is no ledger at {path}. Name one that is there; `tokenmeter db copy LEDGER {path}` makes one there."
        )
    store = open_store(url)
    try:
        if not isinstance(store, Movable):
            raise ConfigurationError(f"A ledger at {store.url} cannot be copied.")
        yield store
    finally:
        store.close()


def moved_to(store: Movable) -> str | None:
    """Where a ledger went; None when it is where it was."""
    row = store.end().read(lambda rows: rows.execute("SELECT body FROM documents WHERE kind = ?", (MOVED,)).fetchone())
    return None if row is None else str(json.loads(json.loads(row[0])["body"])["to"])


def refuse_itself(origin: Movable, target: str | Path) -> None:
    """Refuse a target that is the ledger itself.

    Raises:
        ConfigurationError: it is.
    """
    path = store_path(target)
    url = redacted(str(target)) if path is None else f"sqlite:///{full_path(path)}"
    if url == origin.url:
        raise ConfigurationError(f"{url} is the ledger itself; name another one.")


def _carry(origin: End, target: str | Path, progress: Progress | None) -> Copied:
    path = store_path(target)
    if path is None:
        store = open_store(target)
        try:
            if not isinstance(store, Movable):
                raise ConfigurationError(f"Nothing can be copied to {store.url}.")
            return carry(origin, store.end(), progress=progress)
        finally:
            store.close()
    path = full_path(path)
    # A file gets its name when it is complete, so that no program takes half of it for a ledger.
    place = path if path.exists() else Path(f"{path}.partial")
    if place != path:
        refuse_left_files(path)
    end = SQLiteEnd.make(place, os.urandom(16))
    try:
        reached = carry(origin, end, progress=progress)
    except LedgerError as error:
        if place == path:
            raise
        raise LedgerError(
            f"{error} It is in {place}, which a copy that was broken off has left: if that was of another ledger, "
            "remove it, or name another target."
        ) from error
    finally:
        end.close()
    if place != path:
        refuse_left_files(path)
        place.replace(path)
        Path(f"{place}-lock").unlink(missing_ok=True)
    return reached


def _compare(origin: Movable, copy: Movable, reached: Copied) -> int:
    """How many records the origin has that the copy does not.

    Raises:
        LedgerError: the ends differ in something else.
    """
    differ = _differences(origin, copy)
    ours, theirs = _head(origin), _head(copy)
    if theirs != (reached.seq, reached.head):
        raise LedgerError("The copy was written to while it was made; name an empty store.")
    gone = moved_to(origin) is not None
    behind = ours[0] - reached.seq - gone
    if not behind and not gone and ours != theirs:
        differ.insert(0, "the head of the chain")
    if differ and not behind:
        raise LedgerError(
            f"The two ledgers differ in {', '.join(differ)}. Programs must go on with the source; throw the copy away, "
            "and make it anew in an empty store."
        )
    return behind


def _head(store: Movable) -> tuple[int, bytes]:
    seq, digest = store.end().read(lambda rows: read_head(rows, "seq, hash"))
    return seq, bytes(digest)


def _differences(origin: Movable, copy: Movable) -> list[str]:
    """What is not the same at both ends: tables, reports by every dimension, counters, documents, the secret."""
    differ = [f"the table {name}" for name in compare_sums(origin.end(), copy.end())]
    years = _years(origin)
    for name in _GROUPS:
        ours, theirs = ([_row(one) for one in end.aggregate(years, (name,))] for end in (origin, copy))
        if sorted(ours) != sorted(theirs):
            differ.append(f"the report by {name}")
    looks: dict[str, Callable[[Movable], Any]] = {
        "counters": lambda store: [(key, one.settled) for key, one in store.all_counters() if one.settled],
        "thresholds": lambda store: store.crossings(limit=1000),
        "documents": lambda store: [one for one in store.documents() if one.kind != MOVED],
        "the secret": lambda store: store.secret(),
    }
    return differ + [name for name, look in looks.items() if look(origin) != look(copy)]


def _row(one: Any) -> list[str]:
    """A group of a report, to be compared."""
    return [repr(sorted(one.quantities.items())), *(repr(getattr(one, n)) for n in one.__slots__ if n != "quantities")]


def _years(store: Movable) -> list[datetime]:
    """The years of the ledger's entries."""
    first, last = store.end().read(
        lambda rows: rows.execute("SELECT min(occurred_at), max(occurred_at) FROM entries").fetchone()
    )
    moments = [one for one in (first, last) if one is not None]
    moments += [moment for one in store.archives.listed() for moment in (one.first_at, one.last_at)]
    begin, end = (from_microseconds(pick(moments, default=0)).year for pick in (min, max))
    return [datetime(year, 1, 1, tzinfo=UTC) for year in range(begin, end + 2)]


def _retire(origin: Movable, url: str, reached: Copied) -> bool:
    """Put the last record into the origin, if nothing came meanwhile."""
    draft = NewDocument(kind=MOVED, key=MOVED, body=json.dumps({"to": url}))
    return origin.file_after(reached.head.hex(), draft) is not None


def _hand_on(origin: Movable, target: str | Path, gone: str, *, check: bool) -> Copy:
    """Give to the new place what waits in the tail of the old one."""
    with opened(target) as copy:
        if copy.url != gone:
            raise LedgerError(f"This ledger moved to {gone} already, not to {copy.url}.")
        handed: list[bytes] = []

        def take(records: Sequence[tuple[bytes, bytes]]) -> None:
            copy.take(records)
            handed.extend(record for record, _ in records)

        origin.hand_on(take)
        entries = sum(b'"record":"entry"' in record[:40] for record in handed)
        told = _told(copy, behind=0, retired=True, check=check, progress=None)
    return replace(told, forwarded=entries)


def _told(copy: Movable, *, behind: int, retired: bool, check: bool, progress: Progress | None) -> Copy:
    found = copy.verify(progress=progress) if check else None
    if found is not None and not found.ok:
        first = found.faults[0]
        raise LedgerError(
            f"The copy has {counted(len(found.faults), 'fault')}, the first: {first.where}: {first.detail} "
            "If `tokenmeter verify` finds it in the source, too, it was there before; --quick leaves this check out."
        )
    entries, documents, digest = copy.end().read(lambda rows: read_head(rows, "entries, documents, hash"))
    return Copy(copy.url, entries, documents, bytes(digest).hex(), behind, 0, retired, found)
