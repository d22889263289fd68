"""A closed month out of the live ledger into a file; and along the ledger's chain through such a file."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tokenmeter.errors import ConfigurationError, StoreUnavailableError, TamperedLedgerError, reason_of
from tokenmeter.stores.archive.layout import ArchiveRow, FileWriter, groups_in, records, rows_after
from tokenmeter.stores.archive.manifest import ArchivedMonth, Merkle, Proof, stretches_of
from tokenmeter.stores.archive.places import digest_of_file, joined, opened_copy, put_file, remove_file
from tokenmeter.stores.archive.shape import Shaper
from tokenmeter.stores.documents import Filing, NewDocument
from tokenmeter.stores.engine import Readable, Rows, read_head
from tokenmeter.stores.fold import AMOUNTS, FIRST, link
from tokenmeter.stores.slots import DAY, from_microseconds, to_microseconds


class RunChain:
    """Along the chain through a run: entries come, documents are known."""

    def __init__(self, first: int, head: bytes, documents: Mapping[int, bytes], *, of: int | None = None) -> None:
        self.next, self.head, self.entries = first, head, 0
        self.merkle = Merkle(of)
        self._documents = documents

    def entry(self, seq: int, body: str) -> None:
        """The next entry, after the documents before it."""
        while self.next < seq:
            document = self._documents.get(self.next)
            if document is None:
                raise TamperedLedgerError(f"Record {self.next} is gone: `tokenmeter verify` names all such.")
            self._link(document)
        self._link(hashlib.sha256(body.encode()).digest())
        self.entries += 1

    def through(self, path: Path, group: int | None = None) -> Iterator[tuple[int, str]]:
        """Take a file's entries, or those of one group of its rows: number and record of each, once it is taken."""
        for page in records(str(path), group=group):
            for seq, body in page:
                self.entry(seq, body)
                yield seq, body

    def compare(self, month: ArchivedMonth) -> None:
        """Make sure that all that was taken is what was sealed. To be asked for once.

        Raises:
            TamperedLedgerError: it does not lead from the hash before to the hash after.
        """
        outcome = (self.entries, self.next - 1, self.head.hex(), self.merkle.root().hex())
        if outcome != (month.entries, month.last_seq, month.head_after, month.root):
            raise TamperedLedgerError(f"The records in {month.url} are not those of the chain.")

    def _link(self, leaf: bytes) -> None:
        self.head = link(self.head, leaf)
        self.merkle.add(leaf)
        self.next += 1


def documents_in(book: Readable, first: int, last: int) -> dict[int, bytes]:
    """SHA-256 of each document of a run, as it was filed."""
    rows = book.read(
        lambda connection: connection.execute(
            "SELECT seq, body, leaf FROM documents WHERE seq BETWEEN ? AND ?", (first, last)
        ).fetchall()
    )
    return {seq: bytes(leaf or hashlib.sha256(body.encode()).digest()) for seq, body, leaf in rows}


def chain_before(book: Readable, month: ArchivedMonth, *, of: int | None = None) -> RunChain:
    """The chain as it is before a run; `of` as in `Merkle`."""
    documents = documents_in(book, month.first_seq, month.last_seq)
    return RunChain(month.first_seq, bytes.fromhex(month.head_before), documents, of=of)


class FollowedRun(NamedTuple):
    """Outcome of `follow`.

    Attributes:
        groups: Before each group of the file's rows: the chain's hash, and the number of the record that comes next.
        found: Hashes that were asked for, with the numbers of their records.
    """

    groups: list[tuple[bytes, int]]
    found: dict[str, int]


def follow(
    book: Readable,
    month: ArchivedMonth,
    path: Path,
    asked: Collection[str] = (),
    see: Callable[[int, str], object] | None = None,
) -> FollowedRun:
    """Along the chain through a file that should be a month's.

    Args:
        book: The ledger.
        month: What the file should be.
        path: The file.
        asked: Hashes to look for.
        see: Is shown the number and the record of every entry.

    Raises:
        TamperedLedgerError: it does not lead from the hash before to the hash after.
    """
    chain = chain_before(book, month)
    outcome = FollowedRun([], {})
    for number in range(groups_in(str(path))):
        outcome.groups.append((chain.head, chain.next))
        for seq, body in chain.through(path, number):
            if see is not None:
                see(seq, body)
            if asked and (digest := chain.head.hex()) in asked:
                outcome.found[digest] = seq
    chain.compare(month)
    return outcome


def prove(book: Readable, month: ArchivedMonth, path: Path, *, seq: int, record: str) -> Proof:
    """That a month's file has a record.

    Raises:
        TamperedLedgerError: the file is not what was sealed.
    """
    index = seq - month.first_seq
    chain = chain_before(book, month, of=index)
    for _ in chain.through(path):
        pass
    chain.compare(month)
    merkle = chain.merkle
    path_up = tuple(one.hex() for one in merkle.path)
    return Proof(record=record, index=index, size=merkle.count, path=path_up, root=month.root, month=month.month)


#: The record at which most entries of a month are before it and fewest of later ones.
_CUT = (
    "SELECT seq FROM (SELECT seq, sum(CASE WHEN occurred_at < ? THEN 1 ELSE -1 END) OVER (ORDER BY seq) AS lead "
    "FROM entries WHERE seq > ? AND seq <= ?) AS runs WHERE lead > 0 ORDER BY lead DESC, seq DESC LIMIT 1"
)

_FIRST = "SELECT min(seq) FROM entries WHERE occurred_at >= ? AND occurred_at < ? AND seq > ?"


class Cut(NamedTuple):
    """What is to be sealed: name of the month, the run before it, and the last record."""

    month: str
    before: ArchivedMonth | None
    last: int

    @property
    def first(self) -> int:
        """The first record."""
        return 1 if self.before is None else self.before.last_seq + 1

    @property
    def head(self) -> bytes:
        """Hash of the record before it."""
        return FIRST if self.before is None else bytes.fromhex(self.before.head_after)


class _Written:
    """What went into a file, as its manifest has it."""

    def __init__(self) -> None:
        self.sums = [0] * len(AMOUNTS)
        self.times: list[int] = []
        self.days: set[int] = set()

    def add(self, rows: Sequence[ArchiveRow]) -> None:
        columns = zip(*(row.amounts for row in rows), strict=True)
        self.sums = [sum(column, total) for total, column in zip(self.sums, columns, strict=True)]
        moments = [row.occurred_at for row in rows]
        self.days |= {moment // DAY for moment in moments}
        self.times = [min([*self.times[:1], *moments]), max([*self.times[1:], *moments])]


class Sealing:
    """Puts one month after the other into files.

    Args:
        book: The ledger.
        file: Files a document.
        place: Folder, or URL of one.
        progress: Told now and then how many entries were written.
    """

    def __init__(
        self,
        book: Readable,
        file: Callable[[NewDocument], Filing],
        place: str,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._book, self._file, self._place, self._progress = book, file, place, progress
        self._shaper, self._before = Shaper(), 0

    def seal(self, cut: Cut) -> ArchivedMonth:
        """Write a month and file its manifest, or take the one that somebody else filed at the same time.

        Raises:
            StoreUnavailableError: the place cannot be written.
            TamperedLedgerError: an entry is not what the chain says.
        """
        chain = RunChain(cut.first, cut.head, documents_in(self._book, cut.first, cut.last))
        try:
            with tempfile.TemporaryDirectory(prefix="tokenmeter-sealing-") as folder:
                path = Path(folder) / "month.parquet"
                written = self._write(path, cut, chain)
                url, sha256, size = self._put(path, cut)
        except OSError as error:
            raise StoreUnavailableError(
                f"{cut.month} cannot be written to the folder for temporary files: {reason_of(error)}. Nothing was "
                "dropped; make room there, or name another folder in TMPDIR."
            ) from error
        self._before += chain.entries
        found = ArchivedMonth(
            month=cut.month,
            first_seq=cut.first,
            last_seq=cut.last,
            entries=chain.entries,
            first_at=written.times[0],
            last_at=written.times[1],
            head_before=cut.head.hex(),
            head_after=chain.head.hex(),
            root=chain.merkle.root().hex(),
            sums=dict(zip(AMOUNTS, written.sums, strict=True)),
            url=url,
            sha256=sha256,
            bytes=size,
            days=tuple(stretches_of((day, day) for day in written.days)),
        )
        filing = self._file(found.draft())
        if filing.recorded:
            return found
        theirs = ArchivedMonth.of(filing.document)
        if theirs.url != url:
            remove_file(url)
        return theirs

    def _write(self, path: Path, cut: Cut, chain: RunChain) -> _Written:
        written, after = _Written(), cut.first - 1
        with contextlib.closing(FileWriter(str(path), self._shaper, cut.last - after)) as writer:
            while rows := self._book.read(partial(rows_after, after=after, last=cut.last)):
                for row, stored in rows:
                    chain.entry(row.seq, row.body)
                    if chain.head != stored:
                        raise TamperedLedgerError(
                            f"Entry {row.seq} is not what the chain says: `tokenmeter verify` names what was "
                            f"changed. {cut.month} was not sealed."
                        )
                page = [row for row, _ in rows]
                writer.write(page)
                written.add(page)
                after = page[-1].seq
                if self._progress is not None:
                    self._progress(self._before + chain.entries)
        return written

    def _put(self, path: Path, cut: Cut) -> tuple[str, str, int]:
        """Put a month's file in its place: where that is, SHA-256 and size."""
        with path.open("rb") as stream:
            sha256, size = digest_of_file(stream)
        url = joined(self._place, f"{self._folder()}/{cut.month}-{cut.first:012d}-{sha256[:8]}.parquet")
        put_file(path, url, sha256)
        return url, sha256, size

    def _folder(self) -> str:
        """Where in a place this ledger's files lie: many ledgers may share one."""
        identity: bytes = self._book.read(lambda connection: read_head(connection, "identity")[0])
        return identity.hex()


def bring_file(month: ArchivedMonth, there: ArchivedMonth) -> None:
    """Have a month's file in another place: as it lies there, or as a copy of the one that it has.

    Raises:
        StoreUnavailableError: it is in neither place, or cannot be written.
        TamperedLedgerError: another file lies there.
    """
    try:
        with opened_copy(there, check=True):
            return
    except StoreUnavailableError as error:
        absent = error
    with contextlib.ExitStack() as held:
        try:
            path = held.enter_context(opened_copy(month, check=True))
        except StoreUnavailableError as error:
            tried = ((there.url, absent), (month.url, error))
            told = " nor ".join(f"at {url} ({reason_of(one.__cause__ or one)})" for url, one in tried)
            raise StoreUnavailableError(f"The file of {month.month} lies neither {told}.") from error
        put_file(path, there.url, month.sha256)


def next_cut(connection: Rows, before: ArchivedMonth | None, through: int, now: datetime) -> Cut | None:
    """The next month to seal; None when there is none.

    A run ends before the first call of the running month, which nobody wants to look for in a file. Calls of months to
    come are a clock's mistake, and stop nothing.

    Args:
        connection: The ledger.
        before: The last run that is sealed.
        through: The first instant that is not to be sealed, microseconds since the epoch.
        now: Which month is the running one.
    """
    run = connection.execute
    last = 0 if before is None else before.last_seq
    begun, over = to_microseconds(start_of(now)), to_microseconds(end_of(f"{now:%Y-%m}"))
    (first,) = run(_FIRST, (begun, over, last)).fetchone()
    (moment,) = run("SELECT min(occurred_at) FROM entries WHERE seq > ?", (last,)).fetchone()
    while moment is not None and moment < through:
        month = f"{from_microseconds(moment):%Y-%m}"
        end = to_microseconds(end_of(month))
        (most,) = run("SELECT max(seq) FROM entries WHERE occurred_at < ? AND seq > ?", (end, last)).fetchone()
        row = run(_CUT, (end, last, most if first is None else min(most, first - 1))).fetchone()
        if row is not None:
            return Cut(month, before, row[0])
        statement = "SELECT min(occurred_at) FROM entries WHERE occurred_at >= ? AND seq > ?"
        (moment,) = run(statement, (end, last)).fetchone()
    return None


class Left(NamedTuple):
    """What of months that are over stays in the live ledger, behind calls of the running month.

    Attributes:
        entries: How many.
        since: The first of them.
        until: The last of them.
    """

    entries: int
    since: datetime
    until: datetime


def left_behind(connection: Rows, before: ArchivedMonth | None, through: int) -> Left | None:
    """What `next_cut` leaves; None where that is nothing."""
    row = connection.execute(
        "SELECT count(*), min(occurred_at), max(occurred_at) FROM entries WHERE occurred_at < ? AND seq > ?",
        (through, 0 if before is None else before.last_seq),
    ).fetchone()
    return Left(row[0], from_microseconds(row[1]), from_microseconds(row[2])) if row[0] else None


def start_of(moment: datetime) -> datetime:
    """The first instant of its month, UTC."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def end_of(month: str) -> datetime:
    """The first instant after a month, UTC.

    Raises:
        ConfigurationError: it is not a month.
    """
    try:
        start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        start = None
    if start is None or f"{start:%Y-%m}" != month:
        raise ConfigurationError(f"{month!r} is not a month; write it as 2026-09.")
    return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
