"""Report groups of a ledger: from the kept sums where they can answer, else from entries."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, pairwise
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, to_dollars
from tokenmeter.stores.archive.archives import ParquetArchives
from tokenmeter.stores.archive.filters import ArchiveFilter, filter_of
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.base import Aggregate, EntryFilter
from tokenmeter.stores.engine import (
    FILTERS,
    SHARED,
    Engine,
    Rows,
    account_conditions,
    asked,
    check_dimensions,
    conditions,
)
from tokenmeter.stores.fold import MICRO, NANO, TYPED, AccountFacts, measured
from tokenmeter.stores.packing import Stretch, is_many, read_packed
from tokenmeter.stores.record import compact_json
from tokenmeter.stores.sketch import Latencies
from tokenmeter.stores.slots import Level, Term, is_slot, slots, terms
from tokenmeter.usage import Quantity

_COSTS = ("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico")
_MARKS = ("unpriced", "estimated", "reasoning")
_PLAIN = ", ".join(f"sum({name})" for name in ("n", *_MARKS, *TYPED, *_COSTS))
_OF_ENTRIES = ", ".join(("count(*)", *(f"sum({name})" for name in (*_MARKS, *TYPED, *_COSTS))))
_BY_METER = ", ".join(f"sum({name})" for name in ("n", *_MARKS, "quantity", "nano", *_COSTS))

#: So many stretches of entries are asked for one by one: nothing between them is read then.
_FEW_TERMS = 4
#: Accounts whose sums are looked up one by one, unless they are more than one of so many: then all rows are read.
_FEW_ACCOUNTS, _ONE_OF = 1_000, 4
#: A question about more months is about all time: only those of the ledger are looked for.
_MANY_MONTHS = 120

Group = tuple[str | None, ...]


class _Cell(NamedTuple):
    """Where an account's entries go: the values of its dimensions in order (None elsewhere), and how they count."""

    values: tuple[str | None, ...]
    counted: bool
    failed: bool


class _Total:
    """One group while it is added up; costs in picodollars, quantities in billionths."""

    __slots__ = ("costs", "entries", "errors", "estimated", "nano", "reasoning", "requests", "unpriced")

    def __init__(self) -> None:
        self.entries = self.requests = self.errors = self.unpriced = self.estimated = self.reasoning = 0
        self.costs = [0, 0, 0]
        self.nano: dict[str, int] = {}

    def aggregate(self, bucket: int, group: Group) -> Aggregate:
        first, second, third = map(to_dollars, self.costs)
        return Aggregate(
            bucket,
            group,
            requests=self.requests,
            errors=self.errors,
            unpriced=self.unpriced,
            estimated=self.estimated,
            quantities={meter: _quantity(nano) for meter, nano in self.nano.items() if nano},
            reasoning_output_tokens=self.reasoning,
            list_cost=first,
            contracted_cost=second,
            billed_cost=third,
        )


def _quantity(nano: int) -> Quantity:
    whole, rest = divmod(nano, NANO)
    return whole if not rest else Decimal(nano).scaleb(-9, context=EXACT)


def summed(
    connection: Rows,
    engine: Engine,
    instants: Sequence[int],
    by: Sequence[str],
    which: EntryFilter,
    *,
    archives: ParquetArchives,
    unpacked: list[Stretch],
) -> list[Aggregate]:
    """The groups of each bucket between `instants`; from `archives` where entries are asked for that are there.

    Args:
        connection: In a transaction.
        engine: Its words.
        instants: Edges of the buckets, microseconds since the epoch.
        by: Dimensions to group by.
        which: Conditions.
        archives: See above.
        unpacked: Is given the stretches that this would have read faster if they were packed.

    Raises:
        ConfigurationError: an unknown dimension.
    """
    check_dimensions(by, which.where)
    summing = _Summing(connection, engine, by, which.where, archives=archives)
    found = summing.run(instants)
    unpacked += summing.unpacked
    return found


class _Pieces(NamedTuple):
    """A question to the archive: for which files, edges, last record and entries; and the buckets of each piece.

    Attributes:
        asked: What `tokenmeter.stores.archive.shelf.Shelf.sums` takes first.
        buckets: Piece of time between two edges -> buckets that it is part of, each with a sign.
    """

    asked: tuple[Sequence[ArchivedMonth], Sequence[int], int, ArchiveFilter]
    buckets: Mapping[int, Sequence[tuple[int, int]]]


class _Grouping:
    """Which group an account's entries go to, and an entry's own values where it keeps them itself."""

    def __init__(
        self,
        connection: Rows,
        engine: Engine,
        by: Sequence[str],
        where: Mapping[str, frozenset[str | None]],
        *,
        archives: ParquetArchives,
    ) -> None:
        self._connection, self._engine, self._archives = connection, engine, archives
        self._by, self._where = tuple(by), where
        named = (*by, *(asked(key)[0] for key in where))
        self._fine = any(name == "end_user" or name.startswith("tag:") or name in FILTERS for name in named)
        #: What entries have to be told apart by, of what each keeps itself; filters are met before.
        tagged = any(name.startswith("tag:") for name in by)
        self._own = f"{'end_user' if 'end_user' in by else 'NULL'}, {'tags' if tagged else 'NULL'}"
        self._cell = self._only = ""
        self._cells: list[_Cell] = []
        self._cell_of: dict[int, int] = {}
        self._names: dict[Any, str | None] = {}
        self._tags: dict[int | str, dict[str, str]] = {}
        self._wanted: ArchiveFilter | None = None
        self._find_cells()

    def _find_cells(self) -> None:
        shared = [name if name in SHARED else "NULL" for name in self._by]
        wanted, values = account_conditions(self._where)
        rows = self._connection.execute(
            f"SELECT id, kind = 'usage', status != 'ok', {', '.join(shared) or 'NULL'} FROM contexts "  # noqa: S608 - names of our own
            f"WHERE {' AND '.join(wanted) or '1 = 1'}",
            values,
        )
        numbers: dict[_Cell, int] = {}
        for account, counted, failed, *group in rows:
            cell = _Cell(tuple(group[: len(self._by)]), bool(counted), bool(failed))
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

    def _archived(self, loose: Sequence[tuple[int, Term]]) -> Iterator[_Pieces]:
        """What is to be asked of the archive for these terms: one question for many of them, one each for a few."""
        groups = [loose] if len(loose) > _FEW_TERMS else [[one] for one in loose]
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
            yield _Pieces((files, edges, archived_to, self._wanted), buckets)

    def _group(self, spot: int, end_user: int | bytes | None, tags: int | str | None) -> Group:
        """The group of an entry; end user and tags by their rows, or as an archive has them by digest and as text."""
        values = self._cells[spot].values
        if not self._fine:
            return values
        return tuple(
            self._name(end_user) if name == "end_user" else self._tag(tags, name) if name.startswith("tag:") else value
            for name, value in zip(self._by, values, strict=True)
        )

    def _name(self, number: int | bytes | None) -> str | None:
        return None if number is None else self._look_up(number, "id" if isinstance(number, int) else "digest")

    def _look_up(self, key: object, column: str) -> str | None:
        if key not in self._names:
            row = self._connection.execute(
                f"SELECT coalesce(value, 'erased-' || lower(hex(substr(digest, 1, 4)))) FROM names WHERE {column} = ?",  # noqa: S608 - names of our own
                (key,),
            ).fetchone()
            self._names[key] = row[0] if row else None
        return self._names[key]

    def _tag(self, tags: int | str | None, name: str) -> str | None:
        if tags is None:
            return None
        if tags not in self._tags:
            body: str
            if isinstance(tags, str):
                body = tags
            else:
                (body,) = self._connection.execute("SELECT body FROM tagsets WHERE id = ?", (tags,)).fetchone()
            self._tags[tags] = json.loads(body)
        digest = self._tags[tags].get(name.removeprefix("tag:"))
        return None if digest is None else self._look_up(bytes.fromhex(digest), "digest")

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


class _Summing(_Grouping):
    """One report.

    Three ways lead to a group: kept sums per account; kept sums per account and meter, when meters are told apart or
    one of them is asked for; and entries, where no sum is kept (end users, tags, ends that lie on no slot).
    """

    def __init__(
        self,
        connection: Rows,
        engine: Engine,
        by: Sequence[str],
        where: Mapping[str, frozenset[str | None]],
        *,
        archives: ParquetArchives,
    ) -> None:
        super().__init__(connection, engine, by, where, archives=archives)
        self._meters = where.get("sku_meter")
        self._split = "sku_meter" in by
        self._mixed = self._meters is not None and not self._split and len(self._meters) > 1
        self._by_meter = self._split or self._meters is not None
        self._totals: dict[tuple[int, Group], _Total] = {}
        self._accounts: dict[int | bytes, AccountFacts] = {}
        self._rates: dict[str, str] = {}
        self.unpacked: list[Stretch] = []

    def run(self, instants: Sequence[int]) -> list[Aggregate]:
        kept: list[tuple[int, int, int]] = []
        loose: list[tuple[int, Term]] = []
        for bucket, (start, end) in enumerate(pairwise(instants)):
            whole = self._fine or self._mixed
            for term in (Term(1, None, start, end),) if whole else terms(start, end, hours=not self._by_meter):
                if term.level is None:
                    self._add_entries(bucket, term)
                    loose.append((bucket, term))
                else:
                    place = term.sign * (bucket + 1)
                    kept += [(place, term.level, slot) for slot in self._slots(term)]
        if kept and self._cells:
            self._add_kept(kept)
        for archived in self._archived(loose):
            self._add_archived(archived)
        found = [total.aggregate(*place) for place, total in self._totals.items() if total.entries]
        return sorted(found, key=_in_order)

    # -- kept sums

    def _add_kept(self, kept: Sequence[tuple[int, int, int]]) -> None:
        listed = compact_json(kept)
        if self._by_meter:
            self._add_rows("meter_sums", f"sku_meter AS meter, {_BY_METER}", listed)
            return
        packed, left = read_packed(self._connection, self._engine, kept, self._cell_of, len(self._cells))
        for bucket, number, sums in packed.totals() if packed else ():
            self._add(bucket, self._cells[number], None, sums)
        if left:
            read = self._add_rows("sums", f"NULL AS meter, {_PLAIN}", compact_json(left))
            stretches = {(int(level), slot) for _, level, slot in left}
            if is_many(read, len(stretches)):
                self.unpacked += sorted(stretches)
        self._add_rare_rows(listed)

    def _add_rows(self, table: str, amounts: str, listed: str) -> int:
        """Add rows of sums, each at its place; how many of them were asked for."""
        count, read = len(self._cells), 0
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, count(*), {amounts} "
            f"FROM slot {self._engine.join} {table} USING (level, slot) {self._only} GROUP BY spot, meter",
            (listed, count),
        )
        for spot, number, name, *sums in rows:
            if spot is not None:
                read += number
                place, cell = divmod(int(spot), count)
                sums = sums if place > 0 else [-value for value in sums]  # noqa: PLW2901 - with its sign
                self._add(abs(place) - 1, self._cells[cell], name, sums)
        return read

    def _add_rare_rows(self, listed: str) -> None:
        count = len(self._cells)
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, sku_meter, sum(quantity), sum(nano) "
            f"FROM slot {self._engine.join} rare_sums USING (level, slot) {self._only} GROUP BY spot, sku_meter",
            (listed, count),
        )
        for spot, name, whole, nano in rows:
            if spot is not None:
                place, number = divmod(int(spot), count)
                amount = whole * NANO + nano
                self._add_rare(abs(place) - 1, self._cells[number].values, name, amount if place > 0 else -amount)

    def _add(
        self, bucket: int, cell: _Cell, meter: str | None, sums: Sequence[int], group: Group | None = None
    ) -> None:
        """Count a row of sums: of one meter (``""``: cost that no meter explains), or of all (None)."""
        if meter is not None and self._meters is not None and (meter or None) not in self._meters:
            return
        values = cell.values if group is None else group
        if self._split:
            at = self._by.index("sku_meter")
            values = (*values[:at], meter or None, *values[at + 1 :])
        total = self._totals.get((bucket, values))
        if total is None:
            total = self._totals[bucket, values] = _Total()
        count, unpriced, estimated, reasoning, *rest = sums
        total.entries += count
        if cell.counted:
            total.requests += count
            total.errors += count * cell.failed
            total.estimated += estimated
        total.unpriced += unpriced
        total.reasoning += reasoning
        for index in range(3):
            total.costs[index] += rest[2 * index - 6] * MICRO + rest[2 * index - 5]
        if meter is None:
            for name, quantity in zip(TYPED, rest, strict=False):
                if quantity:
                    total.nano[name] = total.nano.get(name, 0) + quantity * NANO
        elif meter:
            total.nano[meter] = total.nano.get(meter, 0) + rest[0] * NANO + rest[1]

    def _add_rare(self, bucket: int, group: Group, meter: str, nano: int) -> None:
        total = self._totals.setdefault((bucket, group), _Total())
        total.nano[meter] = total.nano.get(meter, 0) + nano

    # -- entries

    def _add_entries(self, bucket: int, term: Term) -> None:
        wanted, values = conditions(self._where, term.start, term.end)
        clause = " AND ".join(wanted)
        if self._by_meter:
            rows = self._connection.execute(
                f"SELECT {self._cell} AS spot, account, {self._own}, body FROM entries WHERE {clause}",  # noqa: S608 - names of our own
                tuple(values),
            )
            self._add_measured(bucket, term.sign, rows.fetchall())
            return
        rows = self._connection.execute(
            f"SELECT {self._cell} AS spot, {self._own}, {_OF_ENTRIES} FROM entries WHERE {clause} GROUP BY 1, 2, 3",  # noqa: S608 - names of our own
            values,
        ).fetchall()
        for spot, end_user, tags, *sums in rows:
            if spot is not None and sums[0]:
                self._add(bucket, self._cells[int(spot)], None, sums, self._group(spot, end_user, tags))
        rows = self._connection.execute(
            f"SELECT {self._cell}, {self._own}, more FROM entries WHERE {clause} AND more IS NOT NULL",  # noqa: S608 - names of our own
            values,
        ).fetchall()
        for spot, end_user, tags, more in rows:
            if spot is not None:
                self._add_more(bucket, self._group(spot, end_user, tags), more, 1)

    def _add_more(self, bucket: int, group: Group, more: str, count: int) -> None:
        for meter, nano in json.loads(more).items():
            self._add_rare(bucket, group, meter, nano * count)

    def _add_archived(self, archived: _Pieces) -> None:
        shelf, asked = self._archives.shelf, archived.asked
        if self._by_meter:
            for piece, *row in shelf.records(*asked):
                for bucket, sign in archived.buckets.get(piece, ()):
                    self._add_measured(bucket, sign, [row])
            return
        sums, rare = shelf.sums(*asked, (*_MARKS, *TYPED, *_COSTS), own=self._own)
        for piece, spot, end_user, tags, *amounts in sums:
            for bucket, _ in archived.buckets.get(piece, ()):
                self._add(bucket, self._cells[int(spot)], None, amounts, self._group(int(spot), end_user, tags))
        for piece, spot, end_user, tags, more, count in rare:
            for bucket, _ in archived.buckets.get(piece, ()):
                self._add_more(bucket, self._group(spot, end_user, tags), more, count)

    def _add_measured(self, bucket: int, sign: int, rows: Iterable[Any]) -> None:
        """Entries meter by meter; where meters are not told apart, each counts once, at the first that is asked for.

        Args:
            bucket: See `Aggregate`.
            sign: See `Term`.
            rows: Number of the cell, account, end user, tags and record of each.
        """
        for spot, account, end_user, tags, body in rows:
            if spot is None:
                continue
            record = from_json(body)
            found = measured(record, self._facts(account), self._meter)
            group = self._group(spot, end_user, tags)
            first = True
            for meter, (count, unpriced, estimated, reasoning, nano, *costs) in found.lines.items():
                if self._meters is not None and (meter or None) not in self._meters:
                    continue
                marks = (count, unpriced, estimated)
                if self._mixed:
                    marks = (1, found.unpriced, found.estimated) if first else (0, 0, 0)
                parts = (divmod(cost, MICRO) for cost in costs)
                sums = (*marks, reasoning, *divmod(nano, NANO), *chain.from_iterable(parts))
                self._add(bucket, self._cells[int(spot)], meter, [sign * value for value in sums], group)
                first = False

    def _facts(self, account: int | bytes) -> AccountFacts:
        if account not in self._accounts:
            column = "id" if isinstance(account, int) else "digest"
            row = self._connection.execute(
                f"SELECT id, kind, cost_source FROM accounts WHERE {column} = ?",  # noqa: S608 - names of our own
                (account,),
            ).fetchone()
            self._accounts[account] = AccountFacts.of(*row)
        return self._accounts[account]

    def _meter(self, digest: str) -> str:
        if digest not in self._rates:
            row = self._connection.execute(
                "SELECT sku_meter FROM rates WHERE digest = ?", (bytes.fromhex(digest),)
            ).fetchone()
            self._rates[digest] = (row and row[0]) or "unknown"
        return self._rates[digest]


class _Kept(NamedTuple):
    """Rows of one cell and stretch, put together: counts in buckets as they are kept, and sums."""

    duration: list[bytes]
    first_token: list[bytes]
    sums: list[int]


class _Timing(_Grouping):
    """How long calls took: from the sketches of days and months, and from entries where there are none."""

    def run(self, instants: Sequence[int]) -> list[Latencies]:
        self._found: dict[tuple[int, Group], Latencies] = {}
        kept: list[tuple[int, int, int]] = []
        loose: list[tuple[int, Term]] = []
        for bucket, (start, end) in enumerate(pairwise(instants)):
            for term in (Term(1, None, start, end),) if self._fine else terms(start, end, hours=False):
                if term.level is None:
                    self._add_entries(bucket, term)
                    loose.append((bucket, term))
                else:
                    place = term.sign * (bucket + 1)
                    kept += [(place, term.level, slot) for slot in self._slots(term)]
        if kept and self._cells:
            self._add_kept(compact_json(kept))
        for archived in self._archived(loose):
            rows = self._archives.shelf.rows(*archived.asked, ("latency_us", "first_token_us", "output"))
            for piece, spot, _, end_user, tags, *times in rows:
                for bucket, sign in archived.buckets.get(piece, ()):
                    self._add_call(bucket, (spot, end_user, tags), times, sign)
        for one in self._found.values():
            one.drop_empty()
        found = [one for one in self._found.values() if one.duration.counts or one.first_token.counts]
        return sorted(found, key=_in_order)

    def _at(self, bucket: int, group: Group) -> Latencies:
        found = self._found.get((bucket, group))
        if found is None:
            found = self._found[bucket, group] = Latencies(bucket, group)
        return found

    def _add_kept(self, listed: str) -> None:
        count = len(self._cells)
        rows = self._connection.execute(
            f"WITH slot (place, level, slot) AS ({self._engine.slots}) "  # noqa: S608 - names of our own
            f"SELECT place * ? + {self._cell} AS spot, duration_us, duration, first_token_us, first_token, "
            f"generation_us, generated FROM slot {self._engine.join} latency_sums USING (level, slot) {self._only}",
            (listed, count),
        )
        found: dict[int, _Kept] = {}
        for spot, duration_us, duration, first_token_us, first_token, generation_us, generated in rows:
            if spot is None:
                continue
            kept = found.get(spot)
            if kept is None:
                kept = found[spot] = _Kept([], [], [0, 0, 0, 0])
            kept.duration.append(duration)
            kept.first_token.append(first_token)
            sums = kept.sums
            sums[0] += duration_us
            sums[1] += first_token_us
            sums[2] += generation_us
            sums[3] += generated
        for spot, kept in found.items():
            place, number = divmod(int(spot), count)
            sign = 1 if place > 0 else -1
            one = self._at(abs(place) - 1, self._cells[number].values)
            one.duration.merge(b"".join(kept.duration), kept.sums[0], sign)
            one.first_token.merge(b"".join(kept.first_token), kept.sums[1], sign)
            one.generation_us += sign * kept.sums[2]
            one.generated += sign * kept.sums[3]

    def _add_entries(self, bucket: int, term: Term) -> None:
        wanted, values = conditions(self._where, term.start, term.end)
        duration, first_token = map(self._engine.member.format, ("latency_us", "first_token_us"))
        rows = self._connection.execute(
            f"SELECT {self._cell}, {self._own}, {duration}, {first_token}, output FROM entries "  # noqa: S608 - names of our own
            f"WHERE {' AND '.join(wanted)}",
            values,
        ).fetchall()
        for spot, end_user, tags, *times in rows:
            if spot is not None:
                self._add_call(bucket, (int(spot), end_user, tags), times, term.sign)

    def _add_call(self, bucket: int, whose: tuple[int, Any, Any], times: Sequence[Any], sign: int) -> None:
        whole, first, output = times
        if self._cells[whose[0]].counted and (whole, first) != (None, None):
            self._at(bucket, self._group(*whose)).add(whole, first, output, sign)


def _in_order(one: Aggregate | Latencies) -> tuple[Any, ...]:
    return one.bucket, tuple((value is None, value or "") for value in one.group)


def timed(
    connection: Rows,
    engine: Engine,
    instants: Sequence[int],
    by: Sequence[str],
    which: EntryFilter,
    *,
    archives: ParquetArchives,
) -> list[Latencies]:
    """How long the calls of each group took, in each bucket between `instants`.

    Raises:
        ConfigurationError: an unknown dimension, or ``sku_meter``, which a whole call does not have.
    """
    check_dimensions(by, which.where)
    if "sku_meter" in {*by, *which.where}:
        raise ConfigurationError("A call takes its time as a whole: latencies cannot be told apart by sku_meter.")
    return _Timing(connection, engine, by, which.where, archives=archives).run(instants)
