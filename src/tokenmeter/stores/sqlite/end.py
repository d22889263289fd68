"""An SQLite ledger as one end of a copy: its tables as they are, without the tail and the counters beside it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote

from pydantic_core import from_json

from tokenmeter.errors import LedgerError, StoreUnavailableError
from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.definitions import PERSONAL
from tokenmeter.stores.engine import Engine, in_pages, look_up
from tokenmeter.stores.fold import identity_column
from tokenmeter.stores.sqlite.book import ENGINE, SQLiteBook
from tokenmeter.stores.sqlite.database import PATIENCE, Database, sqlite3
from tokenmeter.stores.sqlite.opened import explained, is_busy
from tokenmeter.stores.sqlite.schema import check_file, check_version, migrate, refuse_stranger
from tokenmeter.stores.tail import frames, segment_path, segments
from tokenmeter.stores.urls import make_private_file

if TYPE_CHECKING:
    from sqlite3 import Connection

log = logging.getLogger("tokenmeter")
T = TypeVar("T")

#: What SQLite keeps a part of a file in, beside it: changes that are not in it yet, or pages as they were before some.
LOGS = ("-wal", "-journal")
_KINDS = {"INTEGER": "integer", "TEXT": "text", "BLOB": "bytes"}


def tables_of(connection: Connection) -> dict[str, dict[str, str]]:
    """Table -> column -> ``integer``, ``text`` or ``bytes``."""
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite@_%' ESCAPE '@'"
    ).fetchall()
    return {
        name: {
            column: _KINDS[kind]
            for column, kind in connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,))
        }
        for (name,) in names
    }


def _stream(connection: Connection, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
    for row in connection.execute(statement, values):  # noqa: UP028 - that would close the cursor, perhaps after the file
        yield row


class SQLiteEnd:
    """See `tokenmeter.stores.copying.End`.

    Args:
        database: The file.
        fold: Moves what is in the tail into it.
    """

    def __init__(self, database: Database, fold: Callable[[], object] = int) -> None:
        self._database = database
        self.fold = fold

    @classmethod
    def make(cls, path: Path, identity: bytes) -> SQLiteEnd:
        """A file to copy to: as it was left, or made for the ledger with this identity.

        Raises:
            StoreUnavailableError: it cannot be written, or is something else.
        """
        prepare = partial(migrate, identity=identity)
        return cls(Database(path, refuse=refuse_stranger, prepare=prepare, check=check_version))

    identity = staticmethod(identity_column)

    def read(self, work: Callable[[Any], T]) -> T:
        """See `tokenmeter.stores.copying.End`."""
        return self._database.read(work)

    def write(self, work: Callable[[Any], T]) -> T:
        """See `tokenmeter.stores.copying.End`."""
        return self._database.write(work)

    tables = staticmethod(tables_of)
    stream = staticmethod(_stream)

    def put(self, connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """See `tokenmeter.stores.copying.End`."""
        places = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)  # noqa: S608 - names of our own

    def finish(self, connection: Connection) -> None:
        """See `tokenmeter.stores.copying.End`."""

    def seal(self) -> None:
        """Leave the file in one piece, with nothing beside it."""
        self._database.close()
        connection = sqlite3.connect(str(self._database.path), isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()
        Path(f"{self._database.path}-lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


class LedgerFile:
    """A ledger file that nobody writes to, such as a backup: nothing is made beside it, and it is never changed.

    Args:
        path: The file.

    Raises:
        StoreUnavailableError: it cannot be read, or is no ledger.
        SchemaVersionError: a newer release wrote it.
        LedgerError: it is in use as a ledger.
    """

    engine: Engine = ENGINE

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StoreUnavailableError(f"There is no file {path}.")
        for name in _logs_of(path):
            raise LedgerError(
                f"{path} is in use, or was not closed: part of it is still in {name}. A file that "
                "`tokenmeter db backup` wrote has nothing beside it; make one, or use `tokenmeter db copy`."
            )
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise explained(path, error) from error
        try:
            check_file(self._connection, path)
        except BaseException as error:
            self._connection.close()
            if isinstance(error, sqlite3.Error):
                raise explained(path, error) from error
            raise

    def fold(self) -> None:
        """Nothing waits beside it."""

    def read(self, work: Callable[[Any], T]) -> T:
        """Run `work`; there is one state only."""
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            raise explained(self.path, error) from error

    tables = staticmethod(tables_of)
    stream = staticmethod(_stream)

    @property
    def archives(self) -> ParquetArchives:
        """Its closed months in files."""
        return ParquetArchives(self, self._refuse, int)

    def let_go(self, last: int, ids: Sequence[tuple[bytes, int, int]]) -> bool:  # noqa: ARG002 - the protocol's
        """Refused: the file is never changed."""
        return self._refuse()

    def take_back(self, gone: int, before: int, head: bytes, rows: Sequence[tuple[int, bytes, bytes]]) -> bool:  # noqa: ARG002 - the protocol's
        """Refused: the file is never changed."""
        return self._refuse()

    def _refuse(self, *_: object) -> NoReturn:
        raise LedgerError(f"{self.path} is a backup, and never changed: restore it first.")

    def check_pages(self) -> None:
        """Look at every page of the file.

        Raises:
            StoreUnavailableError: it is damaged.
        """
        (said,) = self.read(lambda connection: connection.execute("PRAGMA quick_check(1)").fetchone())
        if said != "ok":
            raise StoreUnavailableError(f"{self.path} is damaged: {said}. It is not to be relied on.")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def refuse_left_files(path: Path) -> None:
    """Refuse a name for a new file where what lies beside it would be taken for a part of it: a log, a tail.

    Raises:
        LedgerError: as said.
    """
    tails = (segment_path(path, number) for number in segments(path))
    left = [*_logs_of(path), *(tail.name for tail in tails if next(islice(frames(tail, 0), 1, None), None))]
    if left:
        raise LedgerError(
            f"{', '.join(left)} beside {path} would be taken for a part of the new file: a ledger of that name is in "
            "use, or was not closed. End programs that use it and move these files away, or name another file."
        )


def _logs_of(path: Path) -> Iterator[str]:
    """Names of the logs beside an SQLite file that SQLite would read with it."""
    for end in LOGS:
        log = Path(f"{path}{end}")
        if log.exists() and log.stat().st_size:
            yield log.name


def copy_file(source: Callable[[Callable[[Connection], None]], None], target: Path) -> None:
    """Write one state of a ledger to a new file, in one step, while others go on writing to the ledger.

    In several steps it would begin anew whenever somebody commits. When this returns, the file is on the disk.

    Args:
        source: Runs what it is given on a connection to the ledger.
        target: The file; must not be there.

    Raises:
        StoreUnavailableError: it cannot be written.
    """

    def write(live: Connection) -> None:
        try:
            live.backup(connection, pages=-1)
        except sqlite3.Error as error:
            # Nothing is written to the ledger: it is not the one whose disk is full.
            unwritten = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_READONLY}
            if getattr(error, "sqlite_errorcode", None) in unwritten:
                raise explained(target, error) from error
            raise

    try:
        make_private_file(target)
        connection = sqlite3.connect(str(target), isolation_level=None)
        try:
            source(write)
            connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            connection.close()
        with target.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        for end in ("", "-journal"):
            with contextlib.suppress(OSError):
                Path(f"{target}{end}").unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise explained(target, error) from error
        if isinstance(error, OSError):
            raise StoreUnavailableError(f"{target} cannot be written: {error.strerror or error}.") from error
        raise


#: What records name -> the columns that say it, which of its rows do, and which are taken for known: a name that was
#: erased has a pseudonym in its place, and no salt.
_DEFINED = {
    "names": ("lower(hex(salt)), kind, value", "salt IS NOT NULL", "kind <> ''"),
    "accounts": ("body", "body IS NOT NULL", "body IS NOT NULL"),
    "rates": ("body", "body IS NOT NULL", "body IS NOT NULL"),
}


def take_definitions(source: Path, target: Path) -> None:
    """Define in a ledger file that nobody uses what another state of the same ledger has defined and it has not.

    Records in the tail name it, and the segment that said it may be folded and gone. Accounts of whom the source has no
    name any more, since somebody was erased, are left out where no record in the tail is of theirs. A file that is
    damaged gives what can still be read of it; the log tells of it.

    Args:
        source: The ledger's file; it is only read. The caller holds its side lock.
        target: The file, in one piece before and after.

    Raises:
        StoreUnavailableError: another program has the source locked, or the target cannot be written.
    """
    book = SQLiteBook(target, patience=PATIENCE)
    end = SQLiteEnd(book.database)
    nameless: set[bytes] = set()
    try:
        for table, (columns, said, _) in _DEFINED.items():
            with _told_of_damage(source), contextlib.closing(_connect(source)) as connection:
                row = connection.execute("SELECT identity FROM ledger").fetchone()
                if row is None or row[0] != book.identity:
                    return
                for page in in_pages(connection, f"id, digest, {said}, {columns}", table):
                    rows: dict[bytes, Sequence[Any]] = {digest: row for _, digest, is_said, *row in page if is_said}
                    if table == "names":
                        nameless.update(digest for _, digest, *_ in page if digest not in rows)
                    elif table == "accounts" and nameless:
                        rows = _leave_out(source, rows, book.database.read(partial(_without_name, digests=nameless)))
                    book.database.write(partial(_define_missing, book, table, rows))
    finally:
        end.seal()


def _without_name(connection: Connection, *, digests: Collection[bytes]) -> set[str]:
    """Those digests (hex) that have no name here, either."""
    known = look_up(connection, "SELECT digest FROM names WHERE salt IS NOT NULL AND digest IN", digests)
    return {digest.hex() for digest in set(digests).difference(digest for (digest,) in known)}


def _leave_out(ledger: Path, rows: dict[bytes, Sequence[Any]], nameless: Collection[str]) -> dict[bytes, Sequence[Any]]:
    """Accounts but those of digests without a name, unless a record in the ledger's tail is of theirs."""
    theirs: set[str] = set()
    for digest, (body,) in rows.items():
        with contextlib.suppress(ValueError, AttributeError):  # of a damaged file
            said = from_json(body)
            if any(said.get(field) in nameless for field in PERSONAL):
                theirs.add(digest.hex())
    if theirs:
        for number in segments(ledger):
            for _, record, _ in frames(segment_path(ledger, number), 0):
                if b'"record":"entry"' in record[:40]:  # others have effects only, or define
                    theirs.discard(from_json(record).get("account", ""))
    return {digest: row for digest, row in rows.items() if digest.hex() not in theirs}


def _connect(path: Path) -> Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=PATIENCE)


@contextlib.contextmanager
def _told_of_damage(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if is_busy(error):
            raise explained(path, error) from error
        log.warning(
            "%s Entries in the tail beside it whose account was defined in that file alone are recorded without one: "
            "tokenmeter verify tells whether there are any.",
            explained(path, error),
        )


def _define_missing(book: SQLiteBook, table: str, rows: Mapping[bytes, Sequence[Any]], connection: Connection) -> None:
    known = f"SELECT digest FROM {table} WHERE {_DEFINED[table][2]} AND digest IN"  # noqa: S608 - names of our own
    for digest in rows.keys() - {one for (one,) in look_up(connection, known, rows)}:
        if table == "names":
            salt, kind, value = rows[digest]
            record, values = b"", {"digest": digest.hex(), "salt": salt, "kind": kind, "value": value}
        else:
            record = rows[digest][0].encode()
            values = from_json(record)
        book.define(connection, table.removesuffix("s"), record, values)
