"""Which group of a report, or of latencies, accounts and entries belong to, and what they are read from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from tokenmeter.dimensions import REQUESTS_AS, TOOL_OPERATION
from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.base import Aggregate
from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import (
    FILTERS,
    SHARED,
    ArchiveFilter,
    Engine,
    Rows,
    account_conditions,
    asked,
    check_dimensions,
    conditions,
    each,
    filter_of,
)
from tokenmeter.stores.packed import PackedKind
from tokenmeter.stores.packing import Place
from tokenmeter.stores.sketch import Latencies
from tokenmeter.stores.slots import Level, Stretch, Term, is_slot, slots, terms

#: So many stretches of entries are asked for one by one: nothing between them is read then.
FEW_TERMS = 4
#: Accounts whose sums are looked up one by one, unless they are more than one of so many: then all rows are read.
_FEW_ACCOUNTS, _ONE_OF = 1_000, 4
#: A question about more months is about all time: only those of the ledger are looked for.
_MANY_MONTHS = 120
#: Names and sets of tags are read so many numbers at a time: one by one, a report by end user asks once for each.
_TOGETHER = 512
_NAMES = (
    "SELECT id, digest, coalesce(value, 'erased-' || lower(hex(substr(digest, 1, 4)))) FROM names "
    "WHERE id >= ? AND id < ?"
)
_TAGSETS = "SELECT id, body FROM tagsets WHERE id >= ? AND id < ?"

Group = tuple[str | None, ...]
T = TypeVar("T")


class Cell(NamedTuple):
    """Where an account's entries go: the values of its dimensions in order (None elsewhere), and how they count.

    Attributes:
        values: See above.
        counted: As how many requests each counts: 1, 0, or -1 where they take calls back.
        failed: Whether these are errors.
    """

    values: tuple[str | None, ...]
    counted: int
    failed: bool


class Pieces(NamedTuple):
    """A question to the archive: for which files, edges, last record and entries; and the buckets of each piece.

    Attributes:
        asked: What `tokenmeter.stores.archive.shelf.Shelf.sums` takes first.
        buckets: Piece of time between two edges -> buckets that it is part of, each with a sign.
    """

    asked: tuple[Sequence[ArchivedMonth], Sequence[int], int, ArchiveFilter]
    buckets: Mapping[int, Sequence[tuple[int, int]]]


class Grouping(ABC, Generic[T]):
    """Which group an account's entries go to, and an entry's own values where it keeps them itself.

    Args:
        connection: In a transaction.
        engine: Its words.
        by: Dimensions to group by.
        where: Conditions; see `EntryFilter`.
        archives: Where entries are that are in files only.
        key_labels: Fingerprint of an API key -> what it is called now.

    Raises:
        ConfigurationError: an unknown dimension.

    Attributes:
        unpacked: Stretches that this would have read faster if that kind of them was packed.
    """

    def __init__(
        self,
        connection: Rows,
        engine: Engine,
        by: Sequence[str],
        where: Mapping[str, frozenset[str | None]],
        *,
        archives: ParquetArchives,
        key_labels: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        check_dimensions(by, where)
        self._connection, self._engine, self._archives = connection, engine, archives
        self._by, self._where = tuple(by), where
        self._key_labels = key_labels
        named = (*by, *(asked(key)[0] for key in where))
        self._fine = any(name == "end_user" or name.startswith("tag:") or name in FILTERS for name in named)
        #: What entries have to be told apart by, of what each keeps itself; filters are met before.
        tagged = any(name.startswith("tag:") for name in by)
        self._own = f"{'end_user' if 'end_user' in by else 'NULL'}, {'tags' if tagged else 'NULL'}"
        self._cell = self._only = ""
        self._cells: list[Cell] = []
        self._cell_of: dict[int, int] = {}
        self._names: dict[int | bytes | None, str | None] = {None: None}
        self._tags: dict[int | str, dict[str, str]] = {}
        self._wanted: ArchiveFilter | None = None
        self.unpacked: dict[PackedKind, list[Stretch]] = {}
        self._find_cells()

    @abstractmethod
    def run(self, instants: Sequence[int]) -> list[T]:
        """The groups of each bucket between `instants` (microseconds since the epoch), in order."""

    def _find_cells(self) -> None:
        shared = [name if name in SHARED else "NULL" for name in self._by]
        wanted, values = account_conditions(self._where)
        rows = self._connection.execute(
            f"SELECT id, kind, operation, status != 'ok', "  # noqa: S608 - names of our own
            f"api_key_fingerprint, {', '.join(shared) or 'NULL'} FROM contexts "
            f"WHERE {' AND '.join(wanted) or '1 = 1'}",
            values,
        )
        numbers: dict[Cell, int] = {}
        for account, kind, operation, failed, key, *group in rows:
            called = tuple(
                self._key_labels.get(key, value) if name == "api_key" else value
                for name, value in zip(self._by, group, strict=False)  # without dimensions there is one NULL
            )
            counted = 0 if operation == TOOL_OPERATION else REQUESTS_AS.get(kind, 0)
            cell = Cell(called, counted, bool(failed))
            self._cell_of[account] = numbers.setdefault(cell, len(numbers))
        self._cells = list(numbers)
        self._cell = self._engine.cells(self._connection, self._cell_of)
        self._only = self._account_condition() if wanted else ""

    def _account_condition(self) -> str:
        """Narrows sums to the accounts that are asked for; empty where they are so many that all rows are read."""
        (last,) = self._connection.execute("SELECT max(id) FROM accounts").fetchone()
        if len(self._cell_of) > min(_FEW_ACCOUNTS, (last or 0) // _ONE_OF):
            return ""
        return f"WHERE account IN ({', '.join(map(str, self._cell_of))})"

    def _cut(self, instants: Sequence[int], *, fine: bool, hours: bool) -> tuple[list[Place], list[tuple[int, Term]]]:
        """The buckets between `instants` as kept sums, and as what is left for entries, by bucket."""
        kept: list[Place] = []
        loose: list[tuple[int, Term]] = []
        for bucket, (start, end) in enumerate(pairwise(instants)):
            for term in (Term(1, None, start, end),) if fine else terms(start, end, hours=hours):
                if term.level is None:
                    loose.append((bucket, term))
                else:
                    place = term.sign * (bucket + 1)
                    kept += [(place, int(term.level), slot) for slot in self._slots(term)]
        return kept, loose

    def _slots(self, term: Term) -> range:
        """The slots of `term`; of all time, those months between the first and the last that the ledger has."""
        wanted = slots(term)
        if term.level is not Level.MONTH or len(wanted) <= _MANY_MONTHS:
            return wanted
        first, last = self._connection.execute(
            "SELECT (SELECT min(slot) FROM sums WHERE level = ?), (SELECT max(slot) FROM sums WHERE level = ?)",
            (Level.MONTH, Level.MONTH),
        ).fetchone()
        if not (is_slot(Level.MONTH, first) and is_slot(Level.MONTH, last)):
            return wanted if first is not None else range(0)
        return range(max(wanted.start, first), min(wanted.stop, last + 1))

    def _questions(self, loose: Sequence[tuple[int, Term]]) -> Iterator[tuple[str, str, Sequence[Any]]]:
        """What asks for the entries of some stretches: one statement for many of them, one each for a few.

        Returns:
            Of each statement its begin, up to the stretch's place (as of `Place`), the rest of it from ``FROM`` on, and
            its values.
        """
        placed = [(term.sign * (bucket + 1), term.start, term.end) for bucket, term in loose]
        if len(placed) <= FEW_TERMS:
            for place, start, end in placed:
                wanted, values = conditions(self._where, start, end)
                yield f"SELECT {place},", f"FROM entries WHERE {' AND '.join(wanted)}", values
            return
        wanted, values = conditions(self._where, None, None)
        within = "entries ON occurred_at >= since AND occurred_at < until"
        yield (
            f"WITH stretch (place, since, until) AS ({self._engine.slots}) SELECT place,",
            f"FROM stretch {self._engine.join} {within} WHERE {' AND '.join(wanted) or '1 = 1'}",
            [compact_json(placed), *values],
        )

    def _entries(self, columns: str, loose: Sequence[tuple[int, Term]]) -> Iterator[tuple[int, int, Sequence[Any]]]:
        """Columns of the entries of some stretches: bucket, sign, and the columns, one entry after the other."""
        for select, of, values in self._questions(loose):
            for place, *row in each(self._connection, f"{select} {columns} {of}", values):
                yield abs(place) - 1, 1 if place > 0 else -1, row

    def _archived(self, loose: Sequence[tuple[int, Term]]) -> Iterator[Pieces]:
        """What is to be asked of the archive for these terms: one question for many of them, one each for a few."""
        groups = [loose] if len(loose) > FEW_TERMS else [[one] for one in loose]
        for group in groups if self._cells else ():
            edges = sorted({edge for _, term in group for edge in (term.start, term.end)})
            files, archived_to = self._archives.within(self._connection, edges[0], edges[-1])
            if not files:
                continue
            if self._wanted is None:
                self._wanted = filter_of(self._connection, self._where, self._cell_of)
            buckets: dict[int, list[tuple[int, int]]] = {}
            for bucket, term in group:
                for piece in range(bisect_left(edges, term.start), bisect_left(edges, term.end)):
                    buckets.setdefault(piece, []).append((bucket, term.sign))
            yield Pieces((files, edges, archived_to, self._wanted), buckets)

    def _group(self, spot: int, end_user: int | bytes | None, tags: int | str | None) -> Group:
        """The group of an entry; end user and tags by their rows, or as an archive has them by digest and as text."""
        values = self._cells[spot].values
        if not self._fine:
            return values
        return tuple(
            self._name(end_user) if name == "end_user" else self._tag(tags, name) if name.startswith("tag:") else value
            for name, value in zip(self._by, values, strict=True)
        )

    def _name(self, key: int | bytes | None) -> str | None:
        """The name of this number or digest. Its neighbours, which were met when it was, are read with it."""
        if key not in self._names:
            self._names[key] = None
            where = self._number_of(key) if isinstance(key, bytes) else key
            for number, digest, name in () if where is None else self._together(_NAMES, where):
                self._names[number] = self._names[bytes(digest)] = name
        return self._names[key]

    def _number_of(self, digest: bytes) -> int | None:
        row = self._connection.execute("SELECT id FROM names WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else int(row[0])

    def _together(self, statement: str, number: int) -> Any:
        """Rows whose numbers are near this one."""
        first = number - number % _TOGETHER
        return self._connection.execute(statement, (first, first + _TOGETHER))

    def _tag(self, tags: int | str | None, name: str) -> str | None:
        if tags is None:
            return None
        if tags not in self._tags:
            bodies = ((tags, tags),) if isinstance(tags, str) else self._together(_TAGSETS, tags)
            self._tags.update((number, json.loads(body)) for number, body in bodies)
        digest = self._tags[tags].get(name.removeprefix("tag:"))
        return None if digest is None else self._name(bytes.fromhex(digest))


def in_order(one: Aggregate | Latencies) -> tuple[Any, ...]:
    """What groups are sorted by."""
    return one.bucket, tuple((value is None, value or "") for value in one.group)
