"""Archive files read with DuckDB: groups, single entries, and records in the order of their occurrence."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.processes import after_fork_in_child
from tokenmeter.stores.archive.layout import RECORD_COLUMNS, identity_parts, record_of
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.archive.places import check_file, import_extra, reading_file
from tokenmeter.stores.archive.totals import COST_COLUMNS, KeptTotals, Opened, months_of
from tokenmeter.stores.engine import ArchiveFilter, asked

#: Bytes that a query may take before it goes to the disk, and threads.
_MEMORY, _THREADS = "2GB", 4
#: Entries that are put in order at once.
_AT_ONCE, _PAGE, _MOST = 40_000, 2_000, 1 << 62
_RECORD = ", ".join("epoch_us(occurred_at)" if name == "occurred_at" else name for name in RECORD_COLUMNS)

#: A call's own trace in a record or its shape. Behind it there are texts only: a tag or a provider's usage may have
#: something of that name, too. (Without a question mark, which would be a value's place.)
_TEXT = r'"(([^"\\]|\\.)*)"'
_TRACE = "'" + rf',"trace_id":{_TEXT}(,"(span_id|reservation|dedup_key)":{_TEXT})*\}}$' + "'"
_SAID = f"regexp_extract(coalesce(e.shape, e.body), {_TRACE}, 1)"
_AMONG_TEXTS = rf"e.texts[1 + TRY_CAST(regexp_extract({_SAID}, '^%\(t([0-9]+)\)s$', 1) AS INTEGER)]"
#: Ids that entries are found by -> whether an entry has one of a list, and whether it has none. A record that is kept
#: whole names its trace in the body; others have it among their texts, at the place that the shape says.
_NAMED = {
    "trace_id": (
        (
            f"coalesce(CASE WHEN e.shape IS NULL THEN list_contains(?::VARCHAR[], nullif({_SAID}, '')) "
            f"WHEN list_has_any(e.texts, ?::VARCHAR[]) THEN list_contains(?::VARCHAR[], {_AMONG_TEXTS}) END, false)"
        ),
        f"NOT regexp_matches(coalesce(e.shape, e.body), {_TRACE})",
    ),
    "response_id": ("coalesce(list_contains(?::VARCHAR[], e.response_id), false)", "e.response_id IS NULL"),
}


def open_duckdb(database: str = ":memory:") -> Any:
    """A DuckDB database that keeps within bounds of memory."""
    duckdb = import_extra("duckdb")
    connection = duckdb.connect(database)
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    connection.execute(f"SET threads = {min(_THREADS, os.cpu_count() or 1)}")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET temp_directory = ?", [_make_overflow(connection)])
    return connection


@contextlib.contextmanager
def asking_duckdb(
    what: str = "Archived months cannot be read", files: Mapping[Path, ArchivedMonth] = MappingProxyType({})
) -> Generator[None]:
    """Have what DuckDB raises be an error of ours.

    Args:
        what: What cannot be done then.
        files: Files that are read, as they are when it fails: one that is not what was sealed is named.
    """
    failure = import_extra("duckdb").Error
    try:
        yield
    except failure as error:
        for path, month in files.items():
            with reading_file():
                check_file(path, month)
        said = str(error).partition("\n")[0].rstrip(".")  # behind it there are lines of our own SQL
        raise StoreUnavailableError(f"{what}: {said}. `tokenmeter verify` tells whether a file is at fault.") from error


def _make_overflow(connection: Any) -> str:
    """A folder that nobody else can read or guess, for what does not fit into memory; none where none can be made."""
    try:
        folder = tempfile.mkdtemp(prefix="tokenmeter-duckdb-")
    except OSError:
        return ""

    def remove(made_by: int) -> None:
        if made_by == os.getpid():  # a forked child has it from its parent
            shutil.rmtree(folder, ignore_errors=True)

    weakref.finalize(connection, remove, os.getpid())
    return folder


class Shelf:
    """Archive files that are open for reading; what was read stays open. Safe for threads and forks."""

    def __init__(self) -> None:
        self._database: Any = None
        self._lock = threading.Lock()
        self._totals = KeptTotals()
        _SHELVES.add(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent's database alone for ever: whoever closes it would wait for threads that are not here."""
        if self._database is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        self._database, self._lock = None, threading.Lock()

    @contextlib.contextmanager
    def _open(self) -> Generator[Opened]:
        with self._lock:
            if self._database is None:
                self._database = open_duckdb()
            cursor = self._database.cursor()
        files = dict[Path, ArchivedMonth]()
        with contextlib.closing(cursor), contextlib.ExitStack() as held, asking_duckdb(files=files):
            yield Opened(cursor, held, files)

    def sums(
        self,
        files: Sequence[ArchivedMonth],
        edges: Sequence[int],
        archived_to: int,
        wanted: ArchiveFilter,
        columns: Sequence[str],
        *,
        own: str,
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Groups by piece of time, by the asker's number of the account and by what else `own` names.

        Args:
            files: The files to read.
            edges: Ascending instants, microseconds since the epoch; piece i lies between edge i and the next.
            archived_to: Records after this one are in the live ledger.
            wanted: Which; its `accounts` have the numbers.
            columns: What is summed.
            own: Two columns, or NULL in place of one: ``end_user, tags``.

        Returns:
            Rows of piece, number, end user (digest), tags (JSON text), count and sums; and rows of the same four, the
            column ``more`` and how many entries have just that.
        """
        groups = f"{_piece(edges)}, spot, {own}"
        added = ", ".join(f"sum({name})" for name in ("n", *columns))
        span = (edges[0], edges[-1])
        with self._open() as opened:
            totals, whole = self._totals.answering(opened, files, edges, archived_to, wanted, own=own)
            added_up = [one for one in files if one.sha256 in totals]
            parts: list[tuple[Sequence[ArchivedMonth], Mapping[int, int], Mapping[str, str] | None]] = [
                ([one for one in files if one.sha256 not in totals], {}, None),
                ([one for one in added_up if any(month not in whole for month in months_of(one, span))], whole, None),
                (added_up, whole, totals),
            ]
            found, rare = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
            for some, months, given in parts:
                if not some:
                    continue
                source, values = self._source(opened, some, span, archived_to, wanted, months=months, totals=given)
                rows = opened.cursor.execute(
                    f"SELECT {groups}, {added}, count(more) FROM ({source}) GROUP BY 1, 2, 3, 4",  # noqa: S608 - names of our own
                    values,
                ).fetchall()
                found += [row[:-1] for row in rows]
                if not any(row[-1] for row in rows):
                    continue
                rows = opened.cursor.execute(
                    f"SELECT {groups}, more, sum(n) FROM ({source}) WHERE more IS NOT NULL GROUP BY 1, 2, 3, 4, 5",  # noqa: S608 - as above
                    values,
                )
                rare += rows.fetchall()
            return found, rare

    def prepare(self, file: ArchivedMonth) -> None:
        """Make what reports by end user and by tag are answered from, so that the first of them need not."""
        if self._totals.is_worth(file):
            with self._open() as opened:
                for name in ("end_user", "tags"):
                    self._totals.find(opened, file, name)

    def rows(
        self,
        files: Sequence[ArchivedMonth],
        edges: Sequence[int],
        archived_to: int,
        wanted: ArchiveFilter,
        columns: Sequence[str],
    ) -> Iterator[tuple[Any, ...]]:
        """Piece, asker's number, account, end user, tags and `columns` of each entry, in no order; see `sums`."""
        with self._open() as opened:
            source, values = self._source(opened, files, (edges[0], edges[-1]), archived_to, wanted)
            named = f"{_piece(edges)}, spot, account, end_user, tags, {', '.join(columns)}"
            opened.cursor.execute(f"SELECT {named} FROM ({source})", values)  # noqa: S608 - names of our own
            while rows := opened.cursor.fetchmany(_PAGE):
                yield from rows

    def records(
        self, files: Sequence[ArchivedMonth], edges: Sequence[int], archived_to: int, wanted: ArchiveFilter
    ) -> Iterator[tuple[int, int | None, bytes, bytes | None, str | None, str]]:
        """Piece, asker's number, account, end user, tags and record of each entry, in no order; see `sums`."""
        for piece, spot, account, end_user, tags, *columns in self.rows(files, edges, archived_to, wanted, (_RECORD,)):
            yield piece, spot, account, end_user, tags, record_of(columns)

    def entries(
        self,
        files: Sequence[ArchivedMonth],
        span: tuple[int | None, int | None],
        archived_to: int,
        wanted: ArchiveFilter,
        *,
        newest_first: bool,
        after: tuple[int, int] | None = None,
    ) -> Iterator[tuple[tuple[int, int], bytes, str]]:
        """Place (occurrence, record number), account and record of entries, in the order of their occurrence.

        Some ten thousand are put in order at a time, however many there are.

        Args:
            files: As for `sums`, and so the next three.
            span: As above.
            archived_to: As above.
            wanted: As above.
            newest_first: Backwards.
            after: Begin behind this place.
        """
        order = "DESC" if newest_first else "ASC"
        beyond = "<" if newest_first else ">"
        at_once = _MOST if wanted.few else _AT_ONCE
        for start, end in _stretches(files, span, newest_first=newest_first, after=after, at_once=at_once):
            near = [one for one in files if one.first_at < end and one.last_at >= start]
            if not near:
                continue
            with self._open() as opened:
                source, values = self._source(opened, near, (start, end), archived_to, wanted)
                place = ""
                if after is not None:
                    place = f"WHERE (epoch_us(occurred_at), seq) {beyond} (?, ?)"
                    values = [*values, *after]
                opened.cursor.execute(
                    f"SELECT epoch_us(occurred_at), seq, account, {_RECORD} FROM ({source}) {place} "  # noqa: S608 - names of our own
                    f"ORDER BY 1 {order}, 2 {order}",
                    values,
                )
                while rows := opened.cursor.fetchmany(_PAGE):
                    for moment, seq, account, *columns in rows:
                        yield (moment, seq), account, record_of(columns)

    def entry(self, files: Sequence[ArchivedMonth], archived_to: int, entry_id: str) -> tuple[bytes, str] | None:
        """Account and record of an entry, by its id."""
        return self._find("account", files, archived_to, *_is(entry_id))

    def at(self, files: Sequence[ArchivedMonth], archived_to: int, seq: int) -> tuple[bytes, str] | None:
        """The same of the entry with a record number."""
        holding = [one for one in files if one.first_seq <= seq <= one.last_seq]
        return self._find("account", holding, archived_to, "seq = ?", (seq,)) if holding else None

    def place(self, files: Sequence[ArchivedMonth], entry_id: str) -> tuple[int, str] | None:
        """Record number and record of an entry, by its id, whether it is live as well or not."""
        return self._find("seq", files, _MOST, *_is(entry_id))

    def _find(
        self, column: str, files: Sequence[ArchivedMonth], archived_to: int, which: str, wanted: Sequence[Any]
    ) -> tuple[Any, str] | None:
        with self._open() as opened:
            source, values = self._source(opened, files, (None, None), archived_to, ArchiveFilter())
            row = opened.cursor.execute(
                f"SELECT {column}, {_RECORD} FROM ({source}) WHERE {which} LIMIT 1",  # noqa: S608 - names of our own
                [*values, *wanted],
            ).fetchone()
        return None if row is None else (row[0], record_of(row[1:]))

    @staticmethod
    def _source(
        opened: Opened,
        files: Sequence[ArchivedMonth],
        span: tuple[int | None, int | None],
        archived_to: int,
        wanted: ArchiveFilter,
        *,
        months: Mapping[int, int] = MappingProxyType({}),
        totals: Mapping[str, str] | None = None,
    ) -> tuple[str, list[Any]]:
        """A query for the wanted rows with every column, and its values.

        Args:
            opened: What it will run on.
            files: See `sums`, and so the next three.
            span: Between which instants.
            archived_to: As above.
            wanted: As above.
            months: Leave these out; of `totals`: only these. First microsecond -> first one after.
            totals: Read these instead of the files.
        """
        values: list[Any]
        if totals is None:
            rows = f"SELECT 1 AS n, epoch_us(occurred_at) AS at_us, * REPLACE ({COST_COLUMNS}) FROM read_parquet(?)"  # noqa: S608 - names of our own
            values = [[opened.path(one) for one in files], archived_to]
            conditions = ["seq <= ?"]
            for month, end in months.items():
                conditions.append("NOT (e.occurred_at >= make_timestamptz(?) AND e.occurred_at < make_timestamptz(?))")
                values += [month, end]
        else:
            rows = "SELECT * FROM read_parquet(?)"
            values = [list(totals.values()), list(months)]
            conditions, span = ["list_contains(?::BIGINT[], e.at_us)"], (None, None)
        for instant, sign in zip(span, (">=", "<"), strict=True):
            if instant is not None:
                conditions.append(f"e.occurred_at {sign} make_timestamptz(?)")
                values.append(instant)
        spot, join = "NULL", ""
        if wanted.accounts is not None:
            numbers: dict[str, list[Any]] = {"account": list(wanted.accounts), "spot": list(wanted.accounts.values())}
            _register(opened.cursor, "cells", numbers, {"account": "digest", "spot": "int"})
            spot, join = "cells.spot", "JOIN cells USING (account)"
        admitted, more = _admitted(opened.cursor, wanted)
        conditions += admitted
        source = f"SELECT {spot} AS spot, e.* FROM ({rows}) AS e {join} WHERE {' AND '.join(conditions)}"  # noqa: S608 - as above
        return source, [*values, *more]


_SHELVES: weakref.WeakSet[Shelf] = weakref.WeakSet()


@after_fork_in_child
def _renew_all() -> None:
    for shelf in list(_SHELVES):
        shelf.after_fork_in_child()


def _piece(edges: Sequence[int]) -> str:
    """Which piece of time an entry is in, as SQL; a search by halves, since there may be thousands."""

    def between(first: int, last: int) -> str:
        if last - first == 1:
            return str(first)
        middle = (first + last) // 2
        return f"CASE WHEN at_us < {edges[middle]} THEN {between(first, middle)} ELSE {between(middle, last)} END"

    return between(0, len(edges) - 1)


def _admitted(cursor: Any, wanted: ArchiveFilter) -> tuple[list[str], list[Any]]:
    """Conditions on end users, tags and ids, as SQL, and their values."""
    conditions, values = list[str](), list[Any]()
    for name, kind, accepted in (("end_user", "digest", wanted.end_users), ("tags", "text", wanted.tags)):
        if accepted is not None:
            named = [one for one in accepted if one is not None]
            _register(cursor, f"wanted_{name}", {name: named}, {name: kind})
            condition = f"e.{name} IN (SELECT {name} FROM wanted_{name})"  # noqa: S608 - names of our own
            conditions.append(f"({condition} OR e.{name} IS NULL)" if None in accepted else condition)
    for condition, accepted in wanted.ids.items():
        name, kept = asked(condition)
        if name == "response_id" and kept and accepted and None not in accepted:  # so that Bloom filters are asked
            conditions.append(f"e.response_id IN ({', '.join('?' * len(accepted))})")
            values += accepted
            continue
        found, absent = _NAMED[name]
        found = f"({found} OR {absent})" if None in accepted else found
        conditions.append(found if kept else f"NOT {found}")
        values += [[one for one in accepted if one is not None]] * found.count("?")
    return conditions, values


def _register(cursor: Any, name: str, columns: Mapping[str, list[Any]], kinds: Mapping[str, str]) -> None:
    arrow = import_extra("pyarrow")
    types = {"digest": arrow.binary(), "int": arrow.int64(), "text": arrow.string()}
    cursor.register(name, arrow.table({one: arrow.array(values, types[kinds[one]]) for one, values in columns.items()}))


def _stretches(
    files: Sequence[ArchivedMonth],
    span: tuple[int | None, int | None],
    *,
    newest_first: bool,
    after: tuple[int, int] | None,
    at_once: int,
) -> Iterator[tuple[int, int]]:
    """Stretches of time that hold about `at_once` entries each, if entries come evenly within a file."""
    edges: set[int] = set()
    for one in files:
        pieces = -(-one.entries // at_once)
        width = one.last_at + 1 - one.first_at
        edges |= {one.first_at + width * piece // pieces for piece in range(pieces + 1)}
    since, until = span
    if after is not None:
        since, until = (since, after[0] + 1) if newest_first else (after[0], until)
    inner = sorted(edge for edge in edges if (since is None or edge > since) and (until is None or edge < until))
    first, last = min(edges, default=0), max(edges, default=0)
    ends = [first if since is None else max(since, first), *inner, last if until is None else min(until, last)]
    found = [(start, end) for start, end in itertools.pairwise(ends) if start < end]
    yield from reversed(found) if newest_first else found


def _is(entry_id: str) -> tuple[str, tuple[Any, ...]]:
    """The condition that a row is of an entry, and its values."""
    writer, counter = identity_parts(entry_id)
    if counter is None:
        return "writer = ? AND counter IS NULL", (writer,)
    return "writer = ? AND counter = ?", (writer, counter)


def ids_in(path: str) -> list[tuple[bytes, int, int]]:
    """Whose entries are in a file: writer, lowest and highest counter; -1 for an id that has none."""
    with asking_duckdb(), contextlib.closing(open_duckdb()) as connection:
        rows: list[tuple[bytes, int, int]] = connection.execute(
            "SELECT writer, coalesce(min(counter), -1), coalesce(max(counter), -1) FROM read_parquet(?) "
            "GROUP BY writer, counter IS NULL",
            [path],
        ).fetchall()
        return rows
