"""What a report holds: rows of usage, cost and times, and their totals. Plain values."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from decimal import Decimal
from operator import add
from typing import Any

from tokenmeter.dimensions import in_order
from tokenmeter.display import counted
from tokenmeter.money import COSTS, EXACT, ZERO, Costs, quantize
from tokenmeter.periods import CalendarUnit, Period
from tokenmeter.reports.query import BEGINNING, EVER, closed
from tokenmeter.stores.base import Latencies
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass

#: The inclusive token counts of `Usage`, as OpenTelemetry names them.
TOKEN_VIEWS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
    "total_tokens",
)
#: How long calls took: properties of `Row`, in microseconds but for the last.
LATENCY_MEASURES = (
    *(f"{what}_p{percent}_us" for what in ("latency", "first_token") for percent in (50, 95, 99)),
    "output_tokens_per_second",
)
_SHARE = EXACT.copy()
_SHARE.prec = 28
#: A row's counts of entries.
COUNTS = ("requests", "errors", "unpriced", "estimated")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """Sums over the entries of one group in one bucket of time.

    Attributes:
        bucket: The bucket: ``label``, ``start`` and ``end`` (aware UTC). The whole period without a granularity.
        group: dimension -> value; None = the entries do not name it.
        requests: Calls, failed ones included.
        errors: Of these, how many failed or were aborted.
        unpriced: Entries with a meter of unknown price, less those that a correction has priced since: their cost is
            missing, in part or whole, from the three costs.
        estimated: Entries whose usage or cost is estimated.
        usage: Quantity per meter (tokens per disjoint class, seconds, searches, ...) and the inclusive token views.
        list_cost: US dollars at public prices, exact: the sum of what is priced.
        contracted_cost: US dollars after negotiated discounts.
        billed_cost: US dollars after discounts and the platform multiplier.
        latency: How long the calls took, where the report was asked for it: exact counts and sums, and percentiles that
            are at most 2.2% off. `LATENCY_MEASURES` name those that tables and exports show.
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
    latency: Latencies | None = None

    def __repr__(self) -> str:
        group = "".join(f" {name}={value}" for name, value in self.group.items())
        cost = f"${quantize(self.billed_cost).normalize(EXACT):f}" if self.cost_known else "unpriced"
        return f"<Row {self.bucket.label}{group}: {counted(self.requests, 'request')}, {cost} billed>"

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
        return _SHARE.divide(Decimal(self.usage.cache_read_input_tokens), Decimal(tokens)) if tokens else None

    @property
    def latency_p50_us(self) -> int | None:
        """Half of the calls took no longer, microseconds; None where no call was timed."""
        return None if self.latency is None else self.latency.duration.percentile(50)

    @property
    def latency_p95_us(self) -> int | None:
        """95 of 100 calls took no longer, microseconds."""
        return None if self.latency is None else self.latency.duration.percentile(95)

    @property
    def latency_p99_us(self) -> int | None:
        """99 of 100 calls took no longer, microseconds."""
        return None if self.latency is None else self.latency.duration.percentile(99)

    @property
    def first_token_p50_us(self) -> int | None:
        """Half of the streamed calls brought their first token no later, microseconds."""
        return None if self.latency is None else self.latency.first_token.percentile(50)

    @property
    def first_token_p95_us(self) -> int | None:
        """95 of 100 streamed calls brought their first token no later, microseconds."""
        return None if self.latency is None else self.latency.first_token.percentile(95)

    @property
    def first_token_p99_us(self) -> int | None:
        """99 of 100 streamed calls brought their first token no later, microseconds."""
        return None if self.latency is None else self.latency.first_token.percentile(99)

    @property
    def output_tokens_per_second(self) -> Decimal | None:
        """Output tokens per second, from the first token on where it is known, to three places."""
        return None if self.latency is None else self.latency.tokens_per_second

    @property
    def cost_known(self) -> bool:
        """False when nothing in this row has a price: its costs are then unknown, not zero."""
        return not (self.unpriced > 0 and not self.list_cost and not self.billed_cost)

    @property
    def empty(self) -> bool:
        """Whether it says nothing: only bookkeeping entries without usage or cost are in it."""
        return not (self.requests or self.usage or self.list_cost or self.contracted_cost or self.billed_cost)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values: costs and fractional quantities as decimal text, unknown costs None."""
        start, end = closed(self.bucket.start), closed(self.bucket.end)
        costs = {name: getattr(self, name) for name in COSTS}
        return {
            "bucket": {
                "label": self.bucket.label,
                "start": None if start is None else start.isoformat(),
                "end": None if end is None else end.isoformat(),
            },
            "group": dict(self.group),
            **{name: getattr(self, name) for name in COUNTS},
            **{name: getattr(self.usage, name) for name in TOKEN_VIEWS},
            "quantities": {m: q if isinstance(q, int) else f"{q:f}" for m, q in in_order(self.usage.quantities)},
            **{name: f"{quantize(cost):f}" if self.cost_known else None for name, cost in costs.items()},
            **({} if self.latency is None else {name: _json_measure(getattr(self, name)) for name in LATENCY_MEASURES}),
        }

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
            **Costs.total(rows)._asdict(),
            latency=functools.reduce(add, timed) if (timed := [one for row in rows if (one := row.latency)]) else None,
        )


def _json_measure(measure: int | Decimal | None) -> int | str | None:
    return f"{measure:f}" if isinstance(measure, Decimal) else measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Rows, their totals, and the question they answer.

    Attributes:
        rows: Dearest first; in order of time first when there is a granularity.
        totals: All rows together, each entry counted once.
        by: The dimensions it is grouped by.
        period: The stretch of time it covers.
        granularity: Calendar unit of the buckets; None for one bucket.
        where: The filters that were applied.
        created_at: When it was read, aware UTC.
        latency: Whether it was asked how long calls took.
    """

    rows: tuple[Row, ...]
    totals: Row
    by: tuple[str, ...] = ()
    period: Period = EVER
    granularity: CalendarUnit | None = None
    where: Mapping[str, frozenset[str | None]] = field(default_factory=dict[str, frozenset[str | None]])
    created_at: datetime = BEGINNING
    latency: bool = False

    @property
    def tz(self) -> str:
        """The IANA time zone the calendar was cut in."""
        return self.period.tz

    def __len__(self) -> int:
        return len(self.rows)
