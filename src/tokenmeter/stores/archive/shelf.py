"""Archive files read with DuckDB: groups, single entries, and records in the order of their occurrence."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import tempfile
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.processes import after_fork_in_child
from tokenmeter.stores.archive.layout import RECORD_COLUMNS, identity_parts, record_of
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.archive.places import import_extra, is_private, kept_path, local_copy
from tokenmeter.stores.engine import asked
from tokenmeter.stores.fold import AMOUNTS
from tokenmeter.stores.slots import from_microseconds, to_microseconds

#: Bytes that a query may take before it goes to the disk, and threads.
_MEMORY, _THREADS = "2GB", 4
#: Entries that are put in order at once.
_AT_ONCE, _PAGE, _MOST = 40_000, 2_000, 1 << 62
_COSTS_OF = {
    "contracted_micro": "coalesce(contracted_micro, list_micro)",
    "contracted_pico": "coalesce(contracted_pico, list_pico)",
    "billed_micro": "coalesce(billed_micro, contracted_micro, list_micro)",
    "billed_pico": "coalesce(billed_pico, contracted_pico, list_pico)",
}
_COST_COLUMNS = ", ".join(f"{what} AS {name}" for name, what in _COSTS_OF.items())
#: Most bytes and files of totals that are kept on this machine.
_MOST_BYTES, _MOST_FILES = 8 << 30, 2_000
#: A file's totals are made where it has so many entries, and kept where there are so many times fewer of them.
_WORTH, _WORTH_TIMES = 100_000, 8
_ADDED = ", ".join(f"sum({_COSTS_OF.get(name, name)})::BIGINT AS {name}" for name in AMOUNTS)
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


class ArchiveFilter(NamedTuple):
    """Which entries of the archive; None accepts all.

    Attributes:
        accounts: Digest -> a number of the asker's, which groups come with.
        end_users: Digests, None among them for entries without.
        tags: Sets of tags as JSON text, None among them for entries without.
        ids: Conditions on what is filtered by only (`FILTERS`), as in `EntryFilter.where`.
    """

    accounts: Mapping[bytes, int] | None = None
    end_users: frozenset[bytes | None] | None = None
    tags: frozenset[str | None] | None = None
    ids: Mapping[str, frozenset[str | None]] = MappingProxyType({})

    @property
    def few(self) -> bool:
        """Whether what is wanted is next to nothing, however much is looked through."""
        return any(asked(key)[1] and None not in accepted for key, accepted in self.ids.items())


def open_duckdb(database: str = ":memory:") -> Any:
    """A DuckDB database that keeps within bounds of memory."""
    duckdb = import_extra("duckdb")
    connection = duckdb.connect(database)
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    connection.execute(f"SET threads = {min(_THREADS, os.cpu_count() or 1)}")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET temp_directory = ?", [f"{tempfile.gettempdir()}/tokenmeter-duckdb-{os.getpid()}"])
    return connection


class Shelf:
    """Archive files that are open for reading; what was read stays open. Safe for threads and forks."""

    def __init__(self) -> None:
        self._database: Any = None
        self._lock = threading.Lock()
        self._known_totals: dict[tuple[str, str], tuple[str | None, int, int]] = {}
        _SHELVES.add(self)

    def after_fork_in_child(self) -> None:
        """Leave the parent's database alone for ever: whoever closes it would wait for threads that are not here."""
        if self._database is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        self._database, self._lock = None, threading.Lock()

    @contextlib.contextmanager
    def _cursor(self) -> Generator[Any]:
        with self._lock:
            if self._database is None:
                self._database = open_duckdb()
            cursor = self._database.cursor()
        try:
            yield cursor
        except import_extra("duckdb").Error as error:
            raise StoreUnavailableError(f"Archived months cannot be read: {error}") from error
        finally:
            cursor.close()

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
        with self._cursor() as cursor:

            def add_up(
                totals: Mapping[str, str], whole: Mapping[int, int]
            ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
                found, rare = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
                added_up = [one for one in files if one.sha256 in totals]
                parts: list[tuple[Sequence[ArchivedMonth], Mapping[int, int], Mapping[str, str] | None]] = [
                    ([one for one in files if one.sha256 not in totals], {}, None),
                    (
                        [one for one in added_up if any(month not in whole for month in _months_of(one, span))],
                        whole,
                        None,
                    ),
                    (added_up, whole, totals),
                ]
                for some, months, given in parts:
                    if not some:
                        continue
                    source, values = self._source(cursor, some, span, archived_to, wanted, months=months, totals=given)
                    rows = cursor.execute(f"SELECT {groups}, {added} FROM ({source}) GROUP BY 1, 2, 3, 4", values)  # noqa: S608 - names of our own
                    found += rows.fetchall()
                    rows = cursor.execute(
                        f"SELECT {groups}, more, sum(n) FROM ({source}) WHERE more IS NOT NULL GROUP BY 1, 2, 3, 4, 5",  # noqa: S608 - as above
                        values,
                    )
                    rare += rows.fetchall()
                return found, rare

            totals, whole = self._totals(cursor, files, edges, archived_to, wanted, own=own)
            try:
                return add_up(totals, whole)
            except import_extra("duckdb").Error:
                if all(Path(path).exists() for path in totals.values()):
                    raise
                return add_up({}, {})  # some were removed meanwhile, to make room for others: the files answer

    def _totals(
        self,
        cursor: Any,
        files: Sequence[ArchivedMonth],
        edges: Sequence[int],
        archived_to: int,
        wanted: ArchiveFilter,
        *,
        own: str,
    ) -> tuple[dict[str, str], dict[int, int]]:
        """SHA-256 of files of which totals by end user, or by tags, answer a question, with the paths of these.

        And the months that they answer for: those that lie in one piece of time, first microsecond -> first one after.
        """
        named = [
            name
            for name, accepted in (("end_user", wanted.end_users), ("tags", wanted.tags))
            if accepted is not None or name in own.split(", ")
        ]
        large = [one for one in files if one.entries >= _WORTH and one.last_seq <= archived_to]
        if len(named) != 1 or wanted.ids or not large:
            return {}, {}
        months = {month: end for one in large for month, end in _months_of(one, (edges[0], edges[-1])).items()}
        whole = {
            month: end
            for month, end in months.items()
            if edges[0] <= month and end <= edges[-1] and bisect_right(edges, month) == bisect_left(edges, end)
        }
        found: dict[str, str] = {}
        for one in large:
            if any(month in whole for month in _months_of(one, (edges[0], edges[-1]))):
                path = self._total(cursor, one, named[0])
                if path is not None:
                    found[one.sha256] = path
        return found, whole

    def _total(self, cursor: Any, file: ArchivedMonth, name: str) -> str | None:
        key = file.sha256, name
        known = self._known_totals.get(key)
        if known is None or known != _stamp(known[0]):  # whoever clears the cache may do so at any time
            known = self._known_totals[key] = _stamp(_totals_of(cursor, file, name))
        return known[0]

    def prepare(self, file: ArchivedMonth) -> None:
        """Make what reports by end user and by tag are answered from, so that the first of them need not."""
        if file.entries >= _WORTH:
            with self._cursor() as cursor:
                for name in ("end_user", "tags"):
                    self._total(cursor, file, name)

    def rows(
        self,
        files: Sequence[ArchivedMonth],
        edges: Sequence[int],
        archived_to: int,
        wanted: ArchiveFilter,
        columns: Sequence[str],
    ) -> Iterator[tuple[Any, ...]]:
        """Piece, asker's number, account, end user, tags and `columns` of each entry, in no order; see `sums`."""
        with self._cursor() as cursor:
            source, values = self._source(cursor, files, (edges[0], edges[-1]), archived_to, wanted)
            named = f"{_piece(edges)}, spot, account, end_user, tags, {', '.join(columns)}"
            cursor.execute(f"SELECT {named} FROM ({source})", values)  # noqa: S608 - names of our own
            while rows := cursor.fetchmany(_PAGE):
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
            with self._cursor() as cursor:
                source, values = self._source(cursor, near, (start, end), archived_to, wanted)
                place = ""
                if after is not None:
                    place = f"WHERE (epoch_us(occurred_at), seq) {beyond} (?, ?)"
                    values = [*values, *after]
                cursor.execute(
                    f"SELECT epoch_us(occurred_at), seq, account, {_RECORD} FROM ({source}) {place} "  # noqa: S608 - names of our own
                    f"ORDER BY 1 {order}, 2 {order}",
                    values,
                )
                while rows := cursor.fetchmany(_PAGE):
                    for moment, seq, account, *columns in rows:
                        yield (moment, seq), account, record_of(columns)

    def entry(self, files: Sequence[ArchivedMonth], archived_to: int, entry_id: str) -> tuple[bytes, str] | None:
        """Account and record of an entry, by its id."""
        return self._find("account", files, archived_to, entry_id)

    def place(self, files: Sequence[ArchivedMonth], entry_id: str) -> tuple[int, str] | None:
        """Record number and record of an entry, by its id, whether it is live as well or not."""
        return self._find("seq", files, _MOST, entry_id)

    def _find(
        self, column: str, files: Sequence[ArchivedMonth], archived_to: int, entry_id: str
    ) -> tuple[Any, str] | None:
        writer, counter = identity_parts(entry_id)
        with self._cursor() as cursor:
            source, values = self._source(cursor, files, (None, None), archived_to, ArchiveFilter())
            same = "counter IS NULL" if counter is None else "counter = ?"
            row = cursor.execute(
                f"SELECT {column}, {_RECORD} FROM ({source}) WHERE writer = ? AND {same} LIMIT 1",  # noqa: S608 - names of our own
                [*values, writer, *(() if counter is None else (counter,))],
            ).fetchone()
        return None if row is None else (row[0], record_of(row[1:]))

    @staticmethod
    def _source(
        cursor: Any,
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
            cursor: What it will run on.
            files: See `sums`, and so the next three.
            span: Between which instants.
            archived_to: As above.
            wanted: As above.
            months: Leave these out; of `totals`: only these. First microsecond -> first one after.
            totals: Read these instead of the files.
        """
        values: list[Any]
        if totals is None:
            rows = f"SELECT 1 AS n, epoch_us(occurred_at) AS at_us, * REPLACE ({_COST_COLUMNS}) FROM read_parquet(?)"  # noqa: S608 - names of our own
            values = [[str(local_copy(one.url, one.sha256)) for one in files], archived_to]
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
            _register(cursor, "cells", numbers, {"account": "digest", "spot": "int"})
            spot, join = "cells.spot", "JOIN cells USING (account)"
        for name, kind, accepted in (("end_user", "digest", wanted.end_users), ("tags", "text", wanted.tags)):
            if accepted is not None:
                _register(cursor, f"wanted_{name}", {name: [one for one in accepted if one is not None]}, {name: kind})
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
        source = f"SELECT {spot} AS spot, e.* FROM ({rows}) AS e {join} WHERE {' AND '.join(conditions)}"  # noqa: S608 - as above
        return source, values


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


def _months_of(file: ArchivedMonth, span: tuple[int, int]) -> dict[int, int]:
    """Months (UTC) that a file has entries of within a span; first microsecond -> first one after."""
    found: dict[int, int] = {}
    moment, last = max(file.first_at, span[0]), min(file.last_at, span[1] - 1)
    while moment <= last:
        day = from_microseconds(moment)
        first = day.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        moment = to_microseconds(first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1))
        found[to_microseconds(first)] = moment
    return found


def _totals_of(cursor: Any, file: ArchivedMonth, name: str) -> str | None:
    """Path of a file's totals by month, account and `name`; made if need be. None where they are not worth it.

    They are kept on this machine, under the digest of what they are made of, and have to come to what the manifest
    says. In a folder that others may write to none are kept, nor believed.
    """
    kept = kept_path(f"{file.sha256}.by-{name}.parquet")
    too_many = kept.with_suffix(".too-many")
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_private(kept.parent) or too_many.exists():
            return None
        if not kept.exists() or not _come_to(cursor, str(kept), file):
            with tempfile.TemporaryDirectory(prefix=".adding-", dir=kept.parent) as folder:
                made = Path(folder) / "totals.parquet"
                target = str(made).replace("'", "''")
                ((count,),) = cursor.execute(
                    f"COPY (SELECT epoch_us(date_trunc('month', make_timestamp(epoch_us(occurred_at)))) AS at_us, "  # noqa: S608 - names of our own
                    f"account, {name}, more, count(*) AS n, {_ADDED} FROM read_parquet(?) GROUP BY ALL) TO '{target}' "
                    "(FORMAT parquet, COMPRESSION zstd)",
                    [str(local_copy(file.url, file.sha256))],
                ).fetchall()
                if count > file.entries // _WORTH_TIMES:
                    too_many.touch()
                    return None
                if not _come_to(cursor, str(made), file):
                    return None
                _make_room(kept.parent, made.stat().st_size)
                made.replace(kept)
    except (OSError, import_extra("duckdb").Error):
        return None  # the file itself answers, or says what is wrong
    return str(kept)


def _make_room(folder: Path, size: int) -> None:
    """Remove the oldest totals, of whatever ledgers, until there is room for `size` bytes more."""
    kept = sorted(folder.glob("*.by-*"), key=lambda one: one.stat().st_mtime)
    left, number = _MOST_BYTES - size - sum(one.stat().st_size for one in kept), len(kept)
    for one in kept:
        if left >= 0 and number < _MOST_FILES:
            return
        left, number = left + one.stat().st_size, number - 1
        one.unlink(missing_ok=True)


def _stamp(path: str | None) -> tuple[str | None, int, int]:
    """A file as it is now, so that another in its place is told from it; zeros where there is none."""
    try:
        status = None if path is None else os.stat(path)  # noqa: PTH116 - a text, as the asker needs it
    except OSError:
        status = None
    return (path, 0, 0) if status is None else (path, status.st_mtime_ns, status.st_ino)


def _come_to(cursor: Any, path: str, file: ArchivedMonth) -> bool:
    """Whether totals are those of a file, as its manifest has them."""
    try:
        names = [name for name in file.sums if name in AMOUNTS]
        sums = ", ".join(f"sum({name})" for name in ("n", *names))
        (found,) = cursor.execute(f"SELECT {sums} FROM read_parquet(?)", [path]).fetchall()  # noqa: S608 - names of our own
    except import_extra("duckdb").Error:
        return False
    return list(found) == [file.entries, *(file.sums[name] for name in names)]


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


def ids_in(path: str) -> list[tuple[bytes, int, int]]:
    """Whose entries are in a file: writer, lowest and highest counter; -1 for an id that has none."""
    connection = open_duckdb()
    try:
        rows: list[tuple[bytes, int, int]] = connection.execute(
            "SELECT writer, coalesce(min(counter), -1), coalesce(max(counter), -1) FROM read_parquet(?) "
            "GROUP BY writer, counter IS NULL",
            [path],
        ).fetchall()
        return rows
    finally:
        connection.close()
