"""The answer to a query: rows, totals, and the forms they can take."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import CalendarUnit, Period
from tokenmeter.reports import table
from tokenmeter.reports.query import Accepted, Instant, Query, cut
from tokenmeter.stores.base import Aggregate, Store
from tokenmeter.usage import Usage

__all__ = ["Report", "Row", "build"]

_ALL = Period(datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), "UTC", "all time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Sums over the entries of one group in one bucket of time.

    Attributes:
        bucket: The bucket: ``label``, ``start`` and ``end`` (aware UTC). The whole period without a granularity.
        group: dimension -> value; None = the entries do not name it.
        requests: Calls, failed ones included.
        errors: Of these, how many failed or were aborted.
        unpriced: Entries with a meter of unknown price: their cost is missing, in part or whole, from the three costs.
        estimated: Entries whose usage or cost is estimated.
        usage: Quantity per meter (tokens per disjoint class, seconds, searches, ...) and the inclusive token views.
        list_cost: US dollars at public prices, exact: the sum of what is priced.
        contracted_cost: US dollars after negotiated discounts.
        billed_cost: US dollars after discounts and the platform multiplier.
    """

    bucket: Period
    group: Mapping[str, str | None]
    requests: int = 0
    errors: int = 0
    unpriced: int = 0
    estimated: int = 0
    usage: Usage = field(default_factory=Usage)
    list_cost: Decimal = ZERO
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO

    def __getitem__(self, dimension: str) -> str | None:
        return self.group[dimension]

    @property
    def input_tokens(self) -> int:
        """All prompt tokens, cache reads and writes included."""
        return self.usage.input_tokens

    @property
    def output_tokens(self) -> int:
        """All answer tokens, reasoning included."""
        return self.usage.output_tokens

    @property
    def cached_share(self) -> Decimal | None:
        """The part of `input_tokens` that was read from a cache, 0 to 1; None without input."""
        tokens = self.usage.input_tokens
        return Decimal(self.usage.cache_read_input_tokens) / tokens if tokens else None

    @property
    def cost_known(self) -> bool:
        """False when nothing in this row has a price: its costs are then unknown, not zero."""
        return not (self.unpriced and not self.list_cost and not self.billed_cost)

    @classmethod
    def total(cls, rows: Iterable[Row], bucket: Period) -> Row:
        """All `rows` as one, without a group."""
        rows = tuple(rows)
        return cls(
            bucket=bucket,
            group={},
            requests=sum(row.requests for row in rows),
            errors=sum(row.errors for row in rows),
            unpriced=sum(row.unpriced for row in rows),
            estimated=sum(row.estimated for row in rows),
            usage=Usage.total(row.usage for row in rows),
            list_cost=_sum(row.list_cost for row in rows),
            contracted_cost=_sum(row.contracted_cost for row in rows),
            billed_cost=_sum(row.billed_cost for row in rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Usage and cost, grouped. ``print(report)`` shows a table; the ``to_...`` methods hand the exact figures on.

    Attributes:
        rows: Dearest first; in order of time first when there is a granularity.
        totals: All rows together, each entry counted once.
        by: The dimensions it is grouped by.
        period: The stretch of time it covers.
        granularity: Calendar unit of the buckets; None for one bucket.
        where: The filters that were applied.
        created_at: When it was read, aware UTC.
    """

    rows: tuple[Row, ...]
    totals: Row
    by: tuple[str, ...] = ()
    period: Period = _ALL
    granularity: CalendarUnit | None = None
    where: Mapping[str, frozenset[str | None]] = field(default_factory=dict[str, frozenset[str | None]])
    created_at: datetime = _ALL.start

    @property
    def tz(self) -> str:
        """The IANA time zone the calendar was cut in."""
        return self.period.tz

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return table.text(self)

    def _repr_html_(self) -> str:
        return table.html(self)

    def to_text(self, *, width: int | None = None, max_rows: int | None = table.MAX_ROWS) -> str:
        """The table that ``print`` shows.

        Args:
            width: Columns to fit into; None = the terminal's.
            max_rows: Rows to show before the rest is summed into one line; None = all.
        """
        return table.text(self, width=width, max_rows=max_rows)


def build(
    store: Store,
    *,
    by: str | Iterable[str] = (),
    since: Instant | None = None,
    until: Instant | None = None,
    period: str | Period | None = None,
    granularity: str | None = None,
    where: Mapping[str, Accepted] | None = None,
    tz: str = "UTC",
    now: datetime | None = None,
) -> Report:
    """Read a report from a store.

    Args:
        store: The ledger.
        by: Dimensions to group by (`tokenmeter.stores.base.DIMENSIONS`, or ``tag:NAME``): a name, several separated by
            commas, or a list.
        since: First instant; a date or a naive one is read in `tz`. None = from the beginning.
        until: First instant after the report. None = no end.
        period: Instead of these: ``"2026-11"``, ``"today"``, ``"last-7d"``, ... (`tokenmeter.periods.parse_period`).
        granularity: Also cut into ``hour``, ``day``, ``week``, ``month``, ``quarter`` or ``year`` of `tz`.
        where: dimension -> accepted value, None for "not set", or a list of these.
        tz: IANA time zone of the calendar.
        now: What ``today`` and its like count from; the clock's time by default.

    Raises:
        ConfigurationError: an unknown dimension, period, unit or zone, or a period that ends before it starts.
    """
    query = Query.parse(
        by=by, since=since, until=until, period=period, granularity=granularity, where=where, tz=tz, now=now
    )
    return run(store, query, now=now)


def run(store: Store, query: Query, *, now: datetime | None = None) -> Report:
    """Read the report of a query that was parsed already."""
    parts = cut(store, query)
    boundaries = [part.start for part in parts] + [parts[-1].end]
    sums = store.aggregate(boundaries, query.by, query.filter)
    rows = [_row(parts[one.bucket], query.by, one) for one in sums]
    rows.sort(key=_by_time_and_cost if query.granularity else _by_cost)
    return Report(
        rows=tuple(rows),
        totals=_totals(store, query, rows),
        by=query.by,
        period=query.period,
        granularity=query.granularity,
        where=query.where,
        created_at=(now or datetime.now(UTC)).astimezone(UTC),
    )


def _row(bucket: Period, by: Sequence[str], sums: Aggregate) -> Row:
    return Row(
        bucket=bucket,
        group=dict(zip(by, sums.group, strict=True)),
        requests=sums.requests,
        errors=sums.errors,
        unpriced=sums.unpriced,
        estimated=sums.estimated,
        usage=Usage({m: q for m, q in sums.quantities.items() if q}, sums.reasoning_output_tokens),
        list_cost=sums.list_cost,
        contracted_cost=sums.contracted_cost,
        billed_cost=sums.billed_cost,
    )


def _totals(store: Store, query: Query, rows: Sequence[Row]) -> Row:
    total = Row.total(rows, query.period)
    if "sku_meter" not in query.by:
        return total
    # An entry is in one row for each of its meters (in none without any): count the entries themselves.
    counted = store.aggregate([query.period.start, query.period.end], (), query.filter)
    return Row(
        bucket=query.period,
        group={},
        requests=sum(one.requests for one in counted),
        errors=sum(one.errors for one in counted),
        unpriced=sum(one.unpriced for one in counted),
        estimated=sum(one.estimated for one in counted),
        usage=Usage(total.usage.quantities, sum(one.reasoning_output_tokens for one in counted)),
        list_cost=total.list_cost,
        contracted_cost=total.contracted_cost,
        billed_cost=total.billed_cost,
    )


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return functools.reduce(EXACT.add, amounts, ZERO)


def _by_cost(row: Row) -> tuple[Any, ...]:
    names = tuple((value is None, value or "") for value in row.group.values())
    return (-row.billed_cost, -row.list_cost, -row.usage.total_tokens, -row.requests, names)


def _by_time_and_cost(row: Row) -> tuple[Any, ...]:
    return (row.bucket.start, *_by_cost(row))
