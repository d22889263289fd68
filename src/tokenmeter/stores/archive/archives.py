"""A ledger's archived months: sealing, dropping, bringing back and checking them, and finding what is in them."""

from __future__ import annotations

import contextlib
import itertools
import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenmeter.display import counted
from tokenmeter.errors import (
    ConfigurationError,
    LedgerError,
    StoreUnavailableError,
    TamperedLedgerError,
    TokenmeterError,
)
from tokenmeter.ledger import utcnow
from tokenmeter.stores.archive.checking import ArchiveCheck, check_months
from tokenmeter.stores.archive.layout import identity_parts, records
from tokenmeter.stores.archive.manifest import KIND, PLACE, ArchivedMonth, Proof
from tokenmeter.stores.archive.places import look_for, opened_copy, place_of
from tokenmeter.stores.archive.sealing import (
    Cut,
    Left,
    RunChain,
    Sealing,
    bring_file,
    documents_in,
    end_of,
    follow,
    left_behind,
    next_cut,
    prove,
)
from tokenmeter.stores.archive.shelf import Shelf, ids_in
from tokenmeter.stores.archive.star import open_star
from tokenmeter.stores.documents import Filing, NewDocument
from tokenmeter.stores.engine import Readable, Rows, read_head
from tokenmeter.stores.slots import to_microseconds

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PAGE = 2_000


class ArchiveBook(Readable, Protocol):
    """What a book can do with entries that are in a file as well."""

    def let_go(self, last: int, ids: Sequence[tuple[bytes, int, int]]) -> bool:
        """Drop some of the first entries up to record `last`, and say in the same transaction how far they are gone.

        Args:
            last: The last record that may go.
            ids: Whose they are, to be kept: see `tokenmeter.stores.archive.shelf.ids_in`.

        Returns:
            Whether there may be more of them.
        """
        ...

    def take_back(self, gone: int, before: int, head: bytes, rows: Sequence[tuple[int, bytes, bytes]]) -> bool:
        """Bring entries back, the last ones that are gone.

        Args:
            gone: The last record that is gone now.
            before: The last record that is gone then.
            head: Its hash.
            rows: Number, record and hash of each.

        Returns:
            False where another one is the last that is gone: somebody else drops or brings back. Nothing was done.
        """
        ...


class ParquetArchives:
    """The archived months of one ledger.

    Args:
        book: The ledger.
        file: Files a document.
        fold: Takes in what waits.
    """

    def __init__(self, book: ArchiveBook, file: Callable[[NewDocument], Filing], fold: Callable[[], object]) -> None:
        self._book, self._file, self._fold = book, file, fold
        self._shelf = Shelf()
        self._known: tuple[int, int, list[ArchivedMonth]] = (0, 0, [])

    # -- what there is

    def months(self, connection: Rows) -> list[ArchivedMonth]:
        """Every sealed run, in the order of the chain, as the ledger of `connection` has it."""
        return self._as_of(connection)[1]

    def _as_of(self, connection: Rows) -> tuple[int, list[ArchivedMonth]]:
        """The last record that is in a file only, and the sealed runs, whatever state another thread sees meanwhile."""
        run = connection.execute
        (archived_to,) = read_head(connection, "archived_to")
        kinds = (KIND, PLACE)
        (count,) = run("SELECT count(*) FROM documents WHERE kind IN (?, ?)", kinds).fetchone()
        known = self._known
        if known[:2] != (archived_to, count):
            bodies = run("SELECT kind, body FROM documents WHERE kind IN (?, ?) ORDER BY seq", kinds).fetchall()
            months = [one.less(_gone_of(connection, one, archived_to)) for one in ArchivedMonth.all_of(bodies)]
            known = self._known = archived_to, count, months
        return archived_to, known[2]

    def listed(self) -> list[ArchivedMonth]:
        """Every sealed run, in the order of the chain."""
        self._fold()
        return list(self._book.read(self.months))

    # -- sealing

    def seal(
        self, through: str, to: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> list[ArchivedMonth]:
        """Write every month up to and including `through` that is not sealed yet into a file each.

        Args:
            through: ``2026-09``, a month that is over (UTC).
            to: Folder, or URL of one: ``s3://bucket/usage``.
            progress: Told now and then how many entries were written.

        Returns:
            What was sealed, in order; nothing where all was.

        Raises:
            ConfigurationError: not a month, or one that is not over; no such place; a missing extra.
            StoreUnavailableError: the place cannot be written.
            TamperedLedgerError: an entry is not what the chain says.
        """
        end, now = end_of(through), utcnow()
        if end > now:
            raise ConfigurationError(f"{through} is not over (UTC): a month is sealed when it is.")
        place = place_of(to)
        self._fold()
        sealing, sealed = Sealing(self._book, self._file, place, progress), list[ArchivedMonth]()

        def following(connection: Rows) -> Cut | None:
            return next_cut(connection, self._last(connection), to_microseconds(end), now)

        with _telling("Sealed", sealed):
            while (cut := self._book.read(following)) is not None:
                sealed.append(sealing.seal(cut))
        return sealed

    def left_behind(self, through: str) -> Left | None:
        """What of months up to `through` no run can hold as yet: it was recorded after calls of the running month."""
        self._fold()
        end = to_microseconds(end_of(through))
        return self._book.read(lambda connection: left_behind(connection, self._last(connection), end))

    def _last(self, connection: Rows) -> ArchivedMonth | None:
        return next(reversed(self.months(connection)), None)

    def move(
        self, to: str | os.PathLike[str], *, progress: Callable[[int], object] | None = None
    ) -> list[ArchivedMonth]:
        """Have the files of every sealed month in another place, and say so in the chain.

        A file that lies there already is taken as it is, any other is copied from where it was. Old files stay.

        Args:
            to: Folder, or URL of one.
            progress: Told after each month how many entries were moved.

        Returns:
            What was moved, in order; nothing where all is there.

        Raises:
            ConfigurationError: no such place; a missing extra.
            StoreUnavailableError: a file is in neither place, or cannot be written; all others were moved.
        """
        place, number = place_of(to), 0
        moved, missed = list[ArchivedMonth](), list[TokenmeterError]()
        for month in self.listed():
            there = month.moved_to(place)
            if there.url == month.url:
                continue
            try:
                bring_file(month, there)
            except (StoreUnavailableError, TamperedLedgerError) as error:
                missed.append(error)
                continue
            number += 1
            while not self._file(there.place(number)).recorded:
                number += 1
            moved.append(there)
            if progress is not None:
                progress(sum(one.entries for one in moved))
        if missed:
            others = f" Moved: {', '.join(one.month for one in moved)}." if moved else ""
            raise StoreUnavailableError(
                f"{counted(len(missed), 'month was', 'months were')} not moved, the first: {missed[0]}{others}"
            )
        return moved

    # -- for other tools

    def connect(self, path: str | os.PathLike[str] | None = None) -> DuckDBPyConnection:
        """The ledger as tables of DuckDB; see `tokenmeter.stores.archive.star`."""
        self._fold()
        with contextlib.ExitStack() as held:
            connection = open_star(
                self._book,
                self.within,
                lambda month: held.enter_context(opened_copy(month)),
                path,
            )
            weakref.finalize(connection, held.pop_all().close)  # its views read the files as long as it is there
            return connection

    def prove(self, entry_id: str) -> Proof:
        """See `tokenmeter.Meter.prove`."""
        self._fold()
        months = self._book.read(self.months)
        found = self._shelf.place(months, entry_id) if months else None
        if found is None:
            raise LedgerError(
                f"No sealed month has an entry {entry_id}: one can be proved once its month is in a file "
                "(`tokenmeter archive seal`)."
            )
        seq, record = found
        month = next(one for one in months if one.first_seq <= seq <= one.last_seq)
        with opened_copy(month, check=True) as path:
            return prove(self._book, month, path, seq=seq, record=record)

    # -- dropping and bringing back

    def drop(
        self, through: str | None = None, *, progress: Callable[[int], object] | None = None
    ) -> list[ArchivedMonth]:
        """Drop the entries of sealed months from the live ledger, once their files were read and found whole.

        Args:
            through: The last month to drop; None = all that are sealed. What of these months came late and lies
                behind a later one stays: the ledger loses its first entries, never some amid others.
            progress: Told now and then at which record of a file it is.

        Returns:
            What was dropped.

        Raises:
            StoreUnavailableError: a file cannot be read. Its entries stay.
            TamperedLedgerError: a file is not what was sealed. Its entries stay.
        """
        if through is not None:
            end_of(through)
        dropped: list[ArchivedMonth] = []
        for month in self.listed():
            if through is not None and month.month > through:
                break
            if not month.dropped:
                with _telling("Dropped", dropped):
                    self._let_go(month, progress)
                dropped.append(month.less(month.entries))
        return dropped

    def _let_go(self, month: ArchivedMonth, progress: Callable[[int], object] | None) -> None:
        """Drop what of a month is in the live ledger."""
        with opened_copy(month, check=True) as path:
            follow(self._book, month, path, see=_now_and_then(progress))
            ids = ids_in(str(path))
        while self._book.let_go(month.last_seq, ids):
            if progress is not None:
                progress(month.last_seq)
        self._shelf.prepare(month)

    def dropped(self) -> Iterator[list[tuple[int, str]]]:
        """Number and record of every entry that is in files only, in the order of the chain, by pages.

        Raises:
            StoreUnavailableError: a file cannot be read.
            TamperedLedgerError: a file is not what was sealed.
        """
        months, archived_to = self._book.read(self.within)
        for month in months:
            with opened_copy(month, check=True) as path:
                for page in records(str(path)):
                    if kept := [(seq, body) for seq, body in page if seq <= archived_to]:
                        yield kept

    def restore(
        self, since: str | None = None, *, progress: Callable[[int], object] | None = None
    ) -> list[ArchivedMonth]:
        """Bring the entries of dropped months back into the live ledger, the latest first. Their files stay.

        Args:
            since: The first month to bring back; None = all. What was sealed behind it comes along, also what of
                earlier months came late.
            progress: Told now and then at which record of a file it is.

        Returns:
            What was brought back, the latest first.

        Raises:
            LedgerError: somebody else drops or brings back at the same time.
            StoreUnavailableError: a file cannot be read.
            TamperedLedgerError: a file is not what was sealed.
        """
        if since is not None:
            end_of(since)
        restored: list[ArchivedMonth] = []
        (archived_to,) = self._book.read(lambda connection: read_head(connection, "archived_to"))
        wanted = itertools.dropwhile(lambda one: since is not None and one.month < since, self.listed())
        for month in reversed(list(wanted)):
            if not month.gone:
                continue
            with _telling("Brought back", restored), opened_copy(month, check=True) as path:
                archived_to = self._take_back(month, path, archived_to, progress)
            restored.append(month.less(0))
        return restored

    def _take_back(
        self, month: ArchivedMonth, path: Path, archived_to: int, progress: Callable[[int], object] | None
    ) -> int:
        """Bring back what of a month is gone; up to which record entries are gone then."""
        groups = follow(self._book, month, path, see=_now_and_then(progress)).groups
        documents = documents_in(self._book, month.first_seq, month.last_seq)
        for number, (head, first) in reversed(list(enumerate(groups))):
            chain = RunChain(first, head, documents)
            rows: list[tuple[int, bytes, bytes]] = []
            starts: list[tuple[int, bytes]] = []
            for page in records(str(path), group=number):
                for seq, body in page:
                    if seq <= archived_to:
                        # Documents before it are back, too: else a run that begins with one is never all back.
                        starts.append((chain.next - 1, chain.head))
                        chain.entry(seq, body)
                        rows.append((seq, body.encode(), chain.head))
            while rows:
                at = max(0, len(rows) - _PAGE)
                if not self._book.take_back(archived_to, *starts[at], rows[at:]):
                    raise LedgerError(
                        f"Somebody else drops or brings back months at the same time; {month.month} is not all back. "
                        "Run it again when they are done."
                    )
                archived_to = starts[at][0]
                if progress is not None:
                    progress(archived_to)
                del rows[at:], starts[at:]
        return archived_to

    # -- checking

    def verify(self, *, deep: bool, heads: Sequence[str | None] = ()) -> ArchiveCheck:
        """How many entries are in files, and what is wrong with these; see `check_months`."""
        self._fold()
        return check_months(self._book, self.months, deep=deep, heads=heads)

    def unreadable(self) -> list[str]:
        """See `tokenmeter.stores.base.Archives`."""
        found: list[str] = []
        for month in self.listed():
            if month.gone:
                try:
                    look_for(month)
                except StoreUnavailableError as error:
                    found.append(str(error))
        return found

    # -- reading; inside a read transaction of the ledger

    def within(
        self, connection: Rows, start: int | None = None, end: int | None = None
    ) -> tuple[list[ArchivedMonth], int]:
        """Files with entries between two instants that are no longer in the live ledger, and the last such record."""
        archived_to, months = self._as_of(connection)
        return [one for one in months if one.gone and one.may_hold(start, end)], archived_to

    def entry(self, connection: Rows, entry_id: str) -> tuple[bytes, str] | None:
        """Account (digest) and record of an archived entry, by its id."""
        files, archived_to = self.within(connection)
        writer, counter = identity_parts(entry_id)
        number = -1 if counter is None else counter
        ranges = "SELECT 1 FROM archived_ids WHERE writer = ? AND first <= ? AND last >= ? LIMIT 1"
        if not files or connection.execute(ranges, (writer, number, number)).fetchone() is None:
            return None
        return self._shelf.entry(files, archived_to, entry_id)

    def at(self, connection: Rows, seq: int) -> tuple[bytes, str] | None:
        """Account (digest) and record of an archived entry, by its record number."""
        files, archived_to = self.within(connection)
        return self._shelf.at(files, archived_to, seq)

    def has_any(self, connection: Rows) -> bool:
        """Whether any entry is in files only."""
        return connection.execute("SELECT 1 FROM archived_ids LIMIT 1").fetchone() is not None

    def has(self, connection: Rows, entry_id: str, strangers: set[bytes] | None = None) -> bool:
        """Whether an entry is archived; see `tokenmeter.stores.book.Archived`."""
        writer, _ = identity_parts(entry_id)
        known = set[bytes]() if strangers is None else strangers
        if writer in known:
            return False
        if connection.execute("SELECT 1 FROM archived_ids WHERE writer = ? LIMIT 1", (writer,)).fetchone() is None:
            known.add(writer)
            return False
        return self.entry(connection, entry_id) is not None

    @property
    def shelf(self) -> Shelf:
        """The files, open for reading."""
        return self._shelf


def _gone_of(connection: Rows, month: ArchivedMonth, archived_to: int) -> int:
    """How many entries of a month are in its file only: its records up to the last that is gone, without documents."""
    if not month.first_seq <= archived_to < month.last_seq:
        return month.entries if month.last_seq <= archived_to else 0
    documents = "SELECT count(*) FROM documents WHERE seq BETWEEN ? AND ?"
    (stay,) = connection.execute(documents, (month.first_seq, archived_to)).fetchone()
    return int(archived_to - month.first_seq + 1 - stay)


def _now_and_then(progress: Callable[[int], object] | None) -> Callable[[int, str], object] | None:
    """What sees each record of a file, to tell `progress` of some."""
    return None if progress is None else lambda seq, _: progress(seq) if seq % _PAGE == 0 else None


@contextlib.contextmanager
def _telling(what: str, done: Sequence[ArchivedMonth]) -> Generator[None]:
    """Have an error say with which months all went well before it."""
    try:
        yield
    except TokenmeterError as error:
        if done:
            error.args = (f"{error} {what} before that: {', '.join(one.month for one in done)}.",)
        raise
