"""Reading the ledger through one connection: entries, and sums for reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from psycopg import Connection, sql

from tokenmeter.ledger import Entry
from tokenmeter.stores.base import Aggregate, EntryFilter
from tokenmeter.stores.postgres.codec import COLUMNS, Amounts, decode_amounts, decode_entry
from tokenmeter.stores.postgres.contexts import CONTEXT_FIELDS, RATE_FIELDS, Context, Rate
from tokenmeter.stores.postgres.rollups import SUMS, Cell, Tally, check_boundaries, check_dimensions, matches
from tokenmeter.stores.postgres.schema import queries
from tokenmeter.stores.postgres.slots import Level, Term, terms
from tokenmeter.stores.values import to_microseconds

__all__ = ["PAGE", "Reader"]

_SQL = queries()
PAGE = 500
_READ = 5000
_CONTEXT = COLUMNS.index("context")
_CHARGES = COLUMNS.index("charges")
_NAMES = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
_SUMS_OF = (
    "SELECT bucket, marks, nullif(sku_meter, ''), {fields}, "  # noqa: S608 - names of our own
    + ", ".join(f"sum(sign * {name})" for name in SUMS)
    + " FROM unnest(%s::bigint[], %s::bigint[], %s::smallint[], %s::bigint[], %s::bigint[])"
    " AS term (bucket, sign, at, first, last)"
    " JOIN sums ON level = term.at AND until > term.first AND until <= term.last"
    " JOIN contexts ON contexts.id = context {clause} GROUP BY bucket, marks, sku_meter, {fields}"
)
_COSTS = ("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico")
Where = Mapping[str, frozenset[str | None]]


@dataclass(frozen=True, slots=True)
class Found:
    """An entry's row, looked through.

    Attributes:
        context_id: Row id of its context.
        context: That row.
        amounts: Its integers.
        rates: The rates of its charges, in order.
        end_user: As in the entry.
        tags: As in the entry.
    """

    context_id: int
    context: Context
    amounts: Amounts
    rates: Sequence[Rate]
    end_user: str | None
    tags: Mapping[str, str]


class Reader:
    """Entries and sums, with the rows they share looked up once."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self._contexts: dict[int, Context] = {}
        self._rates: dict[int, Rate] = {}

    # -- shared rows

    def learn(self, contexts: Iterable[int], charges: Iterable[str | None]) -> None:
        """Look up the contexts and the rates of these charges that are not known yet, in one go each."""
        self._look_up("contexts", contexts, self._contexts)
        numbers = {line[0] for text in charges if text for line in json.loads(text)}
        self._look_up("rates", numbers, self._rates)

    def _look_up(self, table: str, wanted: Iterable[int], known: dict[int, tuple[str | None, ...]]) -> None:
        missing = list({number for number in wanted if number not in known})
        if missing:
            columns = _SHARED[table]
            query = sql.SQL("SELECT id, {} FROM {} WHERE id = ANY (%s)").format(columns, sql.Identifier(table))
            for number, *values in self._connection.execute(query, [missing]):
                known[number] = tuple(values)

    def shared(self, table: str, numbers: Iterable[int]) -> Mapping[int, tuple[str | None, ...]]:
        """Rows of ``contexts`` or ``rates`` by id."""
        known = self._contexts if table == "contexts" else self._rates
        self._look_up(table, numbers, known)
        return known

    def context(self, number: int) -> Context:
        """A context that was learned."""
        return self._contexts[number]

    def rate(self, number: int) -> Rate:
        """A rate that was learned."""
        return self._rates[number]

    def find(self, row: Sequence[Any]) -> Found:
        """What an entry's row (in the order of `COLUMNS`) is made of.

        Raises:
            LookupError, ValueError, TypeError: somebody edited the row.
        """
        value = dict(zip(COLUMNS, row, strict=True))
        numbers = [line[0] for line in json.loads(value["charges"] or "[]")]
        if value["context"] not in self._contexts or any(number not in self._rates for number in numbers):
            self.learn([value["context"]], [value["charges"]])
        context = self.context(value["context"])
        amounts = decode_amounts(
            quantities=value["quantities"],
            reasoning=value["reasoning_output_tokens"],
            charges=value["charges"],
            costs=[value[name] for name in _COSTS],
            flags=value["flags"],
            cost_source=context[_COST_SOURCE],
            rates=self.rate,
        )
        tags: dict[str, str] = json.loads(value["tags"] or "{}")
        rates = [self.rate(number) for number in numbers]
        return Found(value["context"], context, amounts, rates, value["end_user"], tags)

    # -- entries

    def entry(self, entry_id: str) -> Entry | None:
        """One entry, or None."""
        query = sql.SQL("SELECT {} FROM entries WHERE entry_id = %s").format(_NAMES)
        found = self._decode(self._connection.execute(query, [entry_id]).fetchall())
        return found[0] if found else None

    def page(
        self, which: EntryFilter, after: tuple[int, int] | None, *, newest_first: bool
    ) -> tuple[list[Entry], tuple[int, int] | None]:
        """A page of entries beyond `after`, and the place of its last; None when there are no more."""
        check_dimensions(list(which.where))
        wanted, values = _conditions(which.where, _instant(which.since), _instant(which.until))
        if after is not None:
            wanted.append(
                sql.SQL("(occurred_at, number) < (%s, %s)" if newest_first else "(occurred_at, number) > (%s, %s)")
            )
            values += after
        order = sql.SQL("DESC" if newest_first else "ASC")
        query = sql.SQL("SELECT number, {} FROM entries {} ORDER BY occurred_at {}, number {} LIMIT {}").format(
            _NAMES, _clause(wanted), order, order, PAGE
        )
        rows = self._connection.execute(query, values).fetchall()
        entries = self._decode([row[1:] for row in rows])
        last = (to_microseconds(entries[-1].occurred_at), rows[-1][0]) if len(rows) == PAGE else None
        return [entry for entry in entries if matches(entry, which.where)], last

    def _decode(self, rows: Sequence[Sequence[Any]]) -> list[Entry]:
        self.learn((row[_CONTEXT] for row in rows), (row[_CHARGES] for row in rows))
        return [decode_entry(row, self.context(row[_CONTEXT]), self.rate) for row in rows]

    # -- sums

    def aggregate(
        self, boundaries: Sequence[datetime], by: Sequence[str], which: EntryFilter | None
    ) -> Sequence[Aggregate]:
        """See `tokenmeter.stores.base.Store.aggregate`."""
        instants = check_boundaries(boundaries)
        where = (which or EntryFilter()).where
        tally = Tally(by, where)
        kept: list[tuple[int, int, Level, int, int]] = []
        for bucket, (start, end) in enumerate(pairwise(instants)):
            for term in (Term(1, None, start, end),) if tally.needs_entries else terms(start, end):
                if term.level is None:
                    self._add_entries(tally, bucket, term, where)
                else:
                    kept.append((bucket, term.sign, term.level, term.start, term.end))
        if kept:
            self._add_sums(tally, kept, where)
        return tally.result()

    def _add_sums(self, tally: Tally, kept: Sequence[tuple[int, int, Level, int, int]], where: Where) -> None:
        """Add whole slots up: bucket, sign, level, start and end of each term."""
        fields = sql.SQL(", ").join(map(sql.Identifier, tally.fields))
        wanted, values = _of_context(where)
        query = sql.SQL(_SUMS_OF).format(fields=fields, clause=_clause(wanted))
        rows = self._connection.execute(query, [*map(list, zip(*kept, strict=True)), *values]).fetchall()
        cells: dict[tuple[Any, ...], Cell | None] = {}
        width = 2 + len(tally.fields)
        for bucket, *row in rows:
            series, sums = tuple(row[:width]), row[width:]
            if series not in cells:
                marks, sku_meter, *known = series
                cells[series] = tally.cell(tally.context(known), sku_meter, marks)
            cell = cells[series]
            if cell is not None:
                tally.add(bucket, cell, [int(value) for value in sums])

    def _add_entries(self, tally: Tally, bucket: int, term: Term, where: Where) -> None:
        wanted, values = _conditions(where, term.start, term.end)
        query = sql.SQL("SELECT {} FROM entries {}").format(_NAMES, _clause(wanted))
        with self._connection.cursor("amounts") as cursor:
            cursor.execute(query, values)
            while rows := cursor.fetchmany(_READ):
                self.learn((row[_CONTEXT] for row in rows), (row[_CHARGES] for row in rows))
                for row in rows:
                    found = self.find(row)
                    tally.add_entry(bucket, found.context, found.amounts, found.end_user, found.tags)


_COST_SOURCE = CONTEXT_FIELDS.index("cost_source")
_SHARED = {
    "contexts": sql.SQL(", ").join(map(sql.Identifier, CONTEXT_FIELDS)),
    "rates": sql.SQL(", ").join(map(sql.Identifier, RATE_FIELDS)),
}


def _instant(moment: datetime | None) -> int | None:
    return None if moment is None else to_microseconds(moment)


def _clause(wanted: Sequence[sql.Composable]) -> sql.Composable:
    return sql.SQL("WHERE ") + sql.SQL(" AND ").join(wanted) if wanted else sql.SQL("")


def _conditions(where: Where, since: int | None, until: int | None) -> tuple[list[sql.Composable], list[Any]]:
    """SQL conditions and their values. Tags and meters are not among them: they are looked at row by row."""
    wanted: list[sql.Composable] = []
    values: list[Any] = []
    for instant, condition in ((since, sql.SQL("occurred_at >= %s")), (until, sql.SQL("occurred_at < %s"))):
        if instant is not None:
            wanted.append(condition)
            values.append(instant)
    if "end_user" in where:
        wanted.append(_accepts("end_user", where["end_user"]))
        values.append([value for value in where["end_user"] if value is not None])
    inner, inner_values = _of_context(where)
    if inner:
        wanted.append(sql.SQL("context IN (SELECT id FROM contexts {})").format(_clause(inner)))
        values += inner_values
    return wanted, values


def _of_context(where: Where) -> tuple[list[sql.Composable], list[Any]]:
    """The conditions among them that concern contexts, over a row of that table."""
    names = [name for name in where if name in CONTEXT_FIELDS]
    values = [[value for value in where[name] if value is not None] for name in names]
    return [_accepts(name, where[name]) for name in names], values


def _accepts(column: str, accepted: frozenset[str | None]) -> sql.Composable:
    name = sql.Identifier(column)
    condition = sql.SQL("{} = ANY (%s::text[])").format(name)
    return sql.SQL("({} OR {} IS NULL)").format(condition, name) if None in accepted else condition
