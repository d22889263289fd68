"""The kept sums held against the entries that they come from, and made anew where they differ.

Sums are derived: nothing that is rebuilt here is a record of the chain. `tokenmeter.stores.audit` counts differences,
`rebuild` puts them right.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from operator import add
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic_core import from_json

from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.archive.manifest import ArchivedDays
from tokenmeter.stores.base import SumsDifference
from tokenmeter.stores.book import LATENCIES, SUM_COLUMNS, SUM_TABLES
from tokenmeter.stores.engine import ArchiveFilter, Rows, each, look_up
from tokenmeter.stores.fold import AMOUNTS, METER_AMOUNTS, MICRO, NANO, AccountFacts, Batch, measured, sum_rows
from tokenmeter.stores.packing import differing, drop
from tokenmeter.stores.reading import UNREADABLE
from tokenmeter.stores.sketch import PAIR, joined, unpacked
from tokenmeter.stores.slots import DAY, Level, ends, label, month_of, start_of, week_of

T = TypeVar("T")

_COSTS = ("list", "contracted", "billed")
#: The first day and the last that there can be.
_FIRST_DAY, _LAST_DAY = ends(Level.DAY)
#: Rows of longer stretches, and of what is no stretch of time at all.
_LONGER = "level NOT IN (0, 1) OR " + " OR ".join(
    f"level = {int(level)} AND NOT slot BETWEEN {ends(level)[0]} AND {ends(level)[1]}"
    for level in (Level.HOUR, Level.DAY)
)
_NO_BUCKET = -2
#: What is kept by week, too.
_BY_WEEK = {"sums", "rare_sums"}
#: Table of sums -> what `joined_amounts` gives, in words.
_NAMES = {
    "sums": ("n", *AMOUNTS[:-6], *_COSTS),
    "rare_sums": ("nano",),
    "meter_sums": (*METER_AMOUNTS[:4], "nano", *_COSTS),
    "latency_sums": LATENCIES,
}


class Wrong(NamedTuple):
    """A row of a table of sums that is kept otherwise than it should be; None where there is, or should be, none."""

    table: str
    key: tuple[Any, ...]
    kept: tuple[Any, ...] | None
    due: tuple[Any, ...] | None

    def told(self) -> SumsDifference:
        """The same in words."""
        names, (level, slot, account, *meter) = _NAMES[self.table], self.key
        nothing = (0,) * len(names)
        kept, due = (
            nothing if amounts is None else tuple(map(_as_number, joined_amounts(self.table, amounts)))
            for amounts in (self.kept, self.due)
        )
        changes = {name: (was, is_due) for name, was, is_due in zip(names, kept, due, strict=True) if was != is_due}
        return SumsDifference(self.table, label(level, slot), account, meter[0] if meter else None, changes)


def _as_number(value: int | Counter[int]) -> int:
    return value if isinstance(value, int) else value.total()


class SharedRows:
    """What one has to know of accounts and rates along a ledger, looked up once."""

    def __init__(self) -> None:
        self._accounts: dict[str, AccountFacts] = {}
        self._rates: dict[str, str] = {}
        self._met: set[int] = set()

    def meet(self, connection: Rows, numbers: Iterable[int]) -> None:
        """Look up accounts that entries have in their rows, all at once: `account` asks for each by itself."""
        new = set(numbers) - self._met
        self._met |= new
        for digest, *facts in look_up(
            connection, "SELECT digest, id, kind, cost_source FROM accounts WHERE id IN", new
        ):
            self._accounts[digest.hex()] = AccountFacts.of(*facts)

    def account(self, connection: Rows, digest: str) -> AccountFacts:
        """The account with this digest."""
        known = self._accounts.get(digest)
        if known is None:
            statement = "SELECT id, kind, cost_source FROM accounts WHERE digest = ?"
            row = connection.execute(statement, (bytes.fromhex(digest),)).fetchone()
            known = self._accounts[digest] = AccountFacts.of(*row)
        return known

    def meter(self, connection: Rows, digest: str) -> str:
        """The meter of the rate with this digest."""
        known = self._rates.get(digest)
        if known is None:
            statement = "SELECT sku_meter FROM rates WHERE digest = ?"
            row = connection.execute(statement, (bytes.fromhex(digest),)).fetchone()
            known = self._rates[digest] = row[0] or "unknown"
        return known


def days(
    connection: Rows,
    *,
    since: int,
    shared: SharedRows,
    archives: ParquetArchives,
    deep: bool,
    done: Container[int] = (),
) -> tuple[int | None, list[Wrong]]:
    """Sums of the first UTC day from `since` on that has any, and is not `done`: those that are wrong.

    Unless `deep`, a day of which entries are in archived files is none either.

    Returns:
        The day after it, None at the end; and the rows.
    """
    archived = ArchivedDays() if deep else ArchivedDays(archives.within(connection)[0])
    day = _first_day(connection, since)
    while day is not None and (day in done or day in archived):
        day = _first_day(connection, archived.beyond(day + 1))
    if day is None:
        return None, []
    return day + 1, wrong_sums(connection, day, _counted(connection, day, shared, archives))


def _first_day(connection: Rows, since: int) -> int | None:
    """The first UTC day from `since` on that has entries or sums."""
    since = max(since, _FIRST_DAY)
    statement, units = _ends_of_sums("min")
    found_ends = connection.execute(
        f"SELECT {DAY}, min(occurred_at) FROM entries WHERE occurred_at >= ? UNION ALL {statement}",  # noqa: S608 - names of our own
        (since * DAY, *(since * unit for unit in units)),
    )
    return min((int(end) // unit for unit, end in found_ends.fetchall() if end is not None), default=None)


def wrong_sums(connection: Rows, day: int, batch: Batch) -> list[Wrong]:
    """Sums of a day and its hours that are kept otherwise than its entries, which `batch` has, come to."""
    found: list[Wrong] = []
    for table, rows in sum_rows(batch):
        kept = each(
            connection,
            f"SELECT {SUM_COLUMNS[table]} FROM {table} "  # noqa: S608 - names of our own
            "WHERE level = 0 AND slot BETWEEN ? AND ? OR level = 1 AND slot = ?",
            (day * 24, day * 24 + 23, day),
        )
        found += _compared(table, kept, (row for row in rows if row[0] < Level.MONTH))
    return found


def _ends_of_sums(end: str) -> tuple[str, list[int]]:
    """A query for the first or last (``min``, ``max``) hour and day of each table of sums; how many slots a day has."""
    found = [(table, level, unit) for table in SUM_TABLES for level, unit in ((Level.HOUR, 24), (Level.DAY, 1))]
    parts = (
        f"SELECT {unit}, {end}(slot) FROM {table} "  # noqa: S608 - names of our own
        f"WHERE level = {int(level)} AND slot >= ? AND slot <= {ends(level)[1]}"
        for table, level, unit in found
    )
    return " UNION ALL ".join(parts), [unit for *_, unit in found]


def _counted(connection: Rows, day: int, shared: SharedRows, archives: ParquetArchives) -> Batch:
    batch = Batch()
    span = (day * DAY, (day + 1) * DAY)
    which = "FROM entries WHERE occurred_at >= ? AND occurred_at < ?"
    shared.meet(connection, (number for (number,) in connection.execute(f"SELECT DISTINCT account {which}", span)))
    rows = each(connection, f"SELECT body {which}", span)
    files, archived_to = archives.within(connection, *span)
    archived = archives.shelf.records(files, span, archived_to, ArchiveFilter()) if files else ()
    for *_, body in itertools.chain(rows, archived):
        try:
            record = from_json(body)
            account = shared.account(connection, record["account"])
            found = measured(record, account, partial(shared.meter, connection))
            batch.count(record["occurred_at"], account.number, found)
        except UNREADABLE:
            continue  # `verify` tells of it
    return batch


def wrong_hours(connection: Rows, until: int) -> list[Wrong]:
    """Sums of UTC days before `until` that are not those of their hours; the day's row as kept and as it should be."""
    found: list[Wrong] = []
    for table in sorted(_BY_WEEK):
        _, _, account, *more = SUM_COLUMNS[table].split(", ")
        key, amounts = [account, *more[: SUM_TABLES[table] - 3]], more[SUM_TABLES[table] - 3 :]
        added = ", ".join(f"sum({name})" for name in amounts)
        day = "(slot - (slot % 24 + 24) % 24) / 24"
        by_hours = each(
            connection,
            f"SELECT 1, {day}, {', '.join(key)}, {added} FROM {table} "  # noqa: S608 - names of our own
            f"WHERE level = 0 AND slot BETWEEN ? AND ? GROUP BY {day}, {', '.join(key)}",
            (_FIRST_DAY * 24, until * 24 - 1),
        )
        due = [tuple(map(_whole, row)) for row in by_hours]
        kept = each(
            connection,
            f"SELECT {SUM_COLUMNS[table]} FROM {table} WHERE level = 1 AND slot BETWEEN ? AND ?",  # noqa: S608 - as above
            (_FIRST_DAY, until - 1),
        )
        found += _compared(table, kept, due)
    return found


def _whole(value: Any) -> Any:
    """A server's sum of integers is a number without a fraction."""
    return value if isinstance(value, str) else int(value)


def longer(connection: Rows, instead: Sequence[Wrong] = (), *, since: int | None = None) -> list[Wrong]:
    """Sums of UTC months and weeks that are not those of their days, or of what is due `instead` of some of these.

    Also those of stretches that no calendar has, or only those of the day `since` and later ones.
    """
    if since is not None and since > _LAST_DAY:
        return []
    first_day, which, least = _FIRST_DAY, _LONGER, dict[Level, int]()
    if since is not None:
        least = {Level.MONTH: month_of(since), Level.WEEK: week_of(since)}
        first_day = min(start_of(level, slot) for level, slot in least.items()) // DAY
        which = " OR ".join(f"(level = {int(level)} AND slot >= {slot})" for level, slot in least.items())
    found: list[Wrong] = []
    known = {(one.table, one.key): one.due for one in instead if one.key[0] == Level.DAY}
    for table, width in SUM_TABLES.items():
        slots = ((Level.MONTH, month_of), (Level.WEEK, week_of)) if table in _BY_WEEK else ((Level.MONTH, month_of),)
        due: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        added = _added if table == "latency_sums" else add
        rows = each(
            connection,
            f"SELECT {SUM_COLUMNS[table]} FROM {table} WHERE level = 1 AND slot BETWEEN ? AND ?",  # noqa: S608 - names of our own
            (first_day, _LAST_DAY),
        )
        put = ((*key, *row) for (of, key), row in known.items() if of == table and row is not None)
        for row in itertools.chain((row for row in rows if (table, tuple(row[:width])) not in known), put):
            amounts = tuple(row[width:])
            for level, slot_of in slots:
                slot = slot_of(row[1])
                if slot < least.get(level, slot):
                    continue
                key = (int(level), slot, *row[2:width])
                before = due.get(key)
                due[key] = amounts if before is None else tuple(map(added, before, amounts))
        kept = each(connection, f"SELECT {SUM_COLUMNS[table]} FROM {table} WHERE {which}")  # noqa: S608 - as above
        found += _compared(table, kept, ((*key, *amounts) for key, amounts in due.items()))
    return found


def _added(first: Any, second: Any) -> Any:
    return joined(first, second) if isinstance(first, bytes) else add(first, second)


def _compared(table: str, kept: Iterable[Sequence[Any]], due: Iterable[Sequence[Any]]) -> Iterator[Wrong]:
    width = SUM_TABLES[table]
    left = {tuple(row[:width]): tuple(row[width:]) for row in due}
    for row in kept:
        key, amounts = tuple(row[:width]), tuple(row[width:])
        should = left.pop(key, None)
        if should != amounts and (should is None or joined_amounts(table, should) != joined_amounts(table, amounts)):
            yield Wrong(table, key, amounts, should)
    for key, amounts in left.items():
        yield Wrong(table, key, None, amounts)


def joined_amounts(table: str, amounts: Sequence[Any]) -> tuple[Any, ...]:
    """Amounts with their two parts put together: the lower part of a sum may be larger than that of an entry."""
    if table == "latency_sums":
        return (amounts[0], _calls(amounts[1]), amounts[2], _calls(amounts[3]), *amounts[4:])
    if table == "rare_sums":
        return (amounts[0] * NANO + amounts[1],)
    head, costs = amounts[:-6], amounts[-6:]
    if table == "meter_sums":
        head = (*head[:4], head[4] * NANO + head[5])
    return (*head, *(costs[index] * MICRO + costs[index + 1] for index in (0, 2, 4)))


def _calls(sketch: bytes) -> Counter[int]:
    """Calls by bucket; a part of a pair, which nobody writes, counts in none."""
    rest = len(sketch) % PAIR
    return Counter({**dict(unpacked(sketch)), **({_NO_BUCKET: rest} if rest else {})})


class RebuildTransaction(Protocol):
    """Runs what it is given in one transaction."""

    def __call__(self, work: Callable[[Any], T], /) -> T:
        """Run `work`."""
        ...


def rebuild(
    read: RebuildTransaction,
    write: RebuildTransaction | None,
    archives: ParquetArchives,
    *,
    deep: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> list[SumsDifference]:
    """Make every kept sum anew that is not what its entries come to. Others go on recording meanwhile.

    A day is looked at in a read transaction first, and once more in a write transaction only if something is wrong.

    Args:
        read: For looking.
        write: For writing, with no fold beside it; None only to look.
        archives: Where entries are that are in files only.
        deep: Whether days are looked at, too, whose entries are in archived files; the files are read.
        progress: Told how many days are done, and of how many.

    Returns:
        What was wrong.
    """
    shared, found = SharedRows(), list[Wrong]()
    first, last = read(_span)
    day: int | None = first
    while day is not None:
        look = partial(days, since=day, shared=shared, archives=archives, deep=deep)
        day, wrong = read(look)
        if wrong and write is not None:
            day, wrong = write(partial(_mend, look))
        found += wrong
        if progress is not None:
            progress((last if day is None else min(day, last)) - first, last - first)
    sum_up = partial(_longer, instead=found if write is None else ())
    _, wrong = read(sum_up)
    if wrong and write is not None:
        _, wrong = write(partial(_mend, sum_up))
    if write is not None and (astray := list(differing(read))):
        write(partial(drop, stretches=astray))
    return [one.told() for one in (*found, *wrong)]


def _longer(connection: Rows, *, instead: Sequence[Wrong]) -> tuple[None, list[Wrong]]:
    return None, longer(connection, instead)


def _mend(look: Callable[[Rows], tuple[int | None, list[Wrong]]], connection: Rows) -> tuple[int | None, list[Wrong]]:
    """Look again, now that nobody writes, and put right what is wrong."""
    day, wrong = look(connection)
    _put(connection, wrong)
    return day, wrong


def _span(connection: Rows) -> tuple[int, int]:
    """The first day to look at, and the day after the last."""
    found: list[int] = []
    for end in ("min", "max"):
        statement, units = _ends_of_sums(end)
        rows = connection.execute(
            f"SELECT {DAY}, {end}(occurred_at) FROM entries UNION ALL {statement}",  # noqa: S608 - names of our own
            [_FIRST_DAY * unit for unit in units],
        )
        found += [int(slot) // unit for unit, slot in rows.fetchall() if slot is not None]
    first, last = min(found, default=0), max(found, default=-1) + 1
    return first, max(first, last)


def _put(connection: Rows, wrong: Iterable[Wrong]) -> None:
    """Put rows right."""
    for table, key, kept, due in wrong:
        columns = SUM_COLUMNS[table]
        if kept is not None:
            where = " AND ".join(f"{name} = ?" for name in columns.split(", ")[: len(key)])
            connection.execute(f"DELETE FROM {table} WHERE {where}", key)  # noqa: S608 - names of our own
        connection.execute("DELETE FROM packed_sums WHERE level = ? AND slot = ?", key[:2])
        if due is not None:
            row = (*key, *due)
            places = ", ".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", row)  # noqa: S608 - as above
