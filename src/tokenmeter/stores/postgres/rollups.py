"""Sums of entries: what one entry adds, over which stretches sums are kept, and how they become report groups.

An entry is split into lines, one per meter it used or was charged for. A *series* is all lines with the same context,
meter and marks. Stores keep the sums of each series per stretch of UTC, quarter-hours at the finest: every current time
zone lies on quarter-hours, so any calendar period in any zone is made of such stretches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import NamedTuple

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, to_dollars
from tokenmeter.stores.base import DIMENSIONS, Aggregate
from tokenmeter.stores.postgres.codec import Amounts
from tokenmeter.stores.postgres.contexts import CONTEXT_FIELDS, Context, context_of
from tokenmeter.stores.values import MICRO, to_microseconds
from tokenmeter.usage import Quantity

__all__ = [
    "DAY",
    "ESTIMATED",
    "LEAD",
    "METER_UNPRICED",
    "QUARTER_HOUR",
    "SUMS",
    "UNPRICED",
    "Line",
    "Tally",
    "check_boundaries",
    "check_dimensions",
    "lines",
    "matches",
]

QUARTER_HOUR = 900 * 1_000_000
DAY = 96 * QUARTER_HOUR

#: Marks of a line. The first line of an entry leads: it alone is counted where lines are not told apart. On a
#: correction, unpriced means that it takes back what was unpriced: one entry less without a price.
LEAD, UNPRICED, ESTIMATED, METER_UNPRICED = 1, 2, 4, 8
#: What is summed per series, in order. Quantities are split into whole units and billionths.
SUMS = (
    "entries",
    "reasoning",
    "quantity",
    "quantity_nano",
    "list_micro",
    "list_pico",
    "contracted_micro",
    "contracted_pico",
    "billed_micro",
    "billed_pico",
)
_NANO = 1_000_000_000
#: Kind of entry -> what an unpriced one adds to their count: a correction takes its entry's back.
_UNPRICED_COUNTS = {"usage": 1, "correction": -1}
_FREE = (0, 0, 0)
_NANOUNIT = Decimal("1E-9")
_INDEX = {name: index for index, name in enumerate(CONTEXT_FIELDS)}
_KIND, _STATUS, _COST_SOURCE = _INDEX["kind"], _INDEX["status"], _INDEX["cost_source"]


class Line(NamedTuple):
    """What an entry adds to one series: its meter (None for cost that no meter explains), marks and `SUMS`."""

    sku_meter: str | None
    marks: int
    sums: tuple[int, ...]


def _parts(quantity: Quantity) -> tuple[int, int]:
    if isinstance(quantity, int):
        return quantity, 0
    nano = quantity.quantize(_NANOUNIT, rounding=ROUND_HALF_EVEN, context=EXACT).scaleb(9, context=EXACT)
    return divmod(int(nano), _NANO)


def lines(context: Context, amounts: Amounts) -> list[Line]:
    """`amounts` split by meter; the sums of all lines are the entry's own.

    Only entries of kind ``usage`` count requests and quantities; corrections and adjustments add money only. Cost that
    the charges do not explain gets a line of its own, without a meter.
    """
    counted = context[_KIND] == "usage"
    quantities: dict[str | None, Quantity] = dict(amounts.quantities.items())
    costs: dict[str | None, list[int]] = {}
    unpriced: set[str | None] = set()
    rest = [amounts.costs[0] or 0, amounts.costs[1] or 0, amounts.costs[2] or 0]
    for meter, quantity, *charged in amounts.charges:
        if meter not in amounts.quantities:
            quantities[meter] = quantities.get(meter, 0) + quantity
        own = costs.get(meter)
        if own is None:
            own = costs[meter] = [0, 0, 0]
        if charged[2] is None:
            unpriced.add(meter)
        for index, cost in enumerate(charged):
            if cost:
                own[index] += cost
                rest[index] -= cost
    if context[_COST_SOURCE] == "unpriced":
        unpriced.update(quantities.keys() - costs.keys() or (quantities or (None,) if not unpriced else ()))
    if not quantities or any(rest):
        quantities[None], costs[None] = 0, rest
    return _marked(quantities, costs, unpriced, amounts, counted=counted)


def _marked(
    quantities: Mapping[str | None, Quantity],
    costs: Mapping[str | None, Sequence[int]],
    unpriced: set[str | None],
    amounts: Amounts,
    *,
    counted: bool,
) -> list[Line]:
    marks = (UNPRICED if unpriced else 0) | (ESTIMATED if counted and amounts.estimated else 0)
    reasoning_at = "output" if "output" in quantities else next(iter(quantities))
    result: list[Line] = []
    lead = LEAD
    for meter, quantity in quantities.items():
        whole, nano = _parts(quantity) if counted else (0, 0)
        own = costs.get(meter, _FREE)
        result.append(
            Line(
                meter,
                marks | lead | (METER_UNPRICED if meter in unpriced else 0),
                (
                    1,
                    amounts.reasoning if counted and meter == reasoning_at else 0,
                    whole,
                    nano,
                    *divmod(own[0], MICRO),
                    *divmod(own[1], MICRO),
                    *divmod(own[2], MICRO),
                ),
            )
        )
        lead = 0
    return result


def check_boundaries(boundaries: Sequence[datetime]) -> list[int]:
    """`boundaries` in microseconds.

    Raises:
        ConfigurationError: fewer than two, not ascending, or without a time zone.
    """
    if len(boundaries) < 2:  # noqa: PLR2004 - a bucket has two ends
        raise ConfigurationError("A report needs at least two boundaries: its start and its end.")
    if any(boundary.tzinfo is None for boundary in boundaries):
        raise ConfigurationError("Boundaries must be aware instants; give each a time zone.")
    instants = [to_microseconds(boundary) for boundary in boundaries]
    if any(later < earlier for earlier, later in pairwise(instants)):
        raise ConfigurationError("Boundaries must ascend: the start of a period comes before its end.")
    return instants


def check_dimensions(names: Sequence[str]) -> None:
    """Refuse what entries cannot be grouped by.

    Raises:
        ConfigurationError: an unknown dimension.
    """
    for name in names:
        if name not in _INDEX and name not in DIMENSIONS and not name.startswith("tag:"):
            raise ConfigurationError(f"Unknown dimension {name!r}; use one of {', '.join(DIMENSIONS)} or 'tag:NAME'.")


def matches(entry: Entry, where: Mapping[str, frozenset[str | None]]) -> bool:
    """Whether `entry` meets every condition; one on ``sku_meter`` is met by anything it used or was charged for."""
    context = context_of(entry)
    for name, accepted in where.items():
        if name == "sku_meter":
            meters: set[str | None] = {*entry.usage.quantities, *(charge.sku_meter for charge in entry.charges)} or {
                None
            }
            if accepted.isdisjoint(meters):
                return False
        elif _value(name, context, None, entry.attribution.end_user, entry.attribution.tags) not in accepted:
            return False
    return True


def _value(
    name: str, context: Context, sku_meter: str | None, end_user: str | None, tags: Mapping[str, str]
) -> str | None:
    index = _INDEX.get(name)
    if index is not None:
        return context[index]
    if name == "sku_meter":
        return sku_meter
    if name == "end_user":
        return end_user
    return tags.get(name.removeprefix("tag:"))


class Cell(NamedTuple):
    """Where a series goes: its group, its meter, and how often each of its entries counts."""

    group: tuple[str | None, ...]
    sku_meter: str | None
    requests: bool
    error: bool
    unpriced: int
    estimated: bool


class _Total:
    """One group while it is added up; costs in picodollars, quantities in billionths."""

    __slots__ = (
        *("billed_cost", "contracted_cost", "entries", "errors", "estimated", "list_cost", "nano", "reasoning"),
        *("requests", "unpriced"),
    )

    def __init__(self) -> None:
        self.entries = self.requests = self.errors = self.unpriced = self.estimated = self.reasoning = 0
        self.list_cost = self.contracted_cost = self.billed_cost = 0
        self.nano: dict[str, int] = {}

    def aggregate(self, bucket: int, group: tuple[str | None, ...]) -> Aggregate:
        return Aggregate(
            bucket,
            group,
            requests=self.requests,
            errors=self.errors,
            unpriced=self.unpriced,
            estimated=self.estimated,
            quantities={meter: _quantity(nano) for meter, nano in self.nano.items() if nano},
            reasoning_output_tokens=self.reasoning,
            list_cost=to_dollars(self.list_cost),
            contracted_cost=to_dollars(self.contracted_cost),
            billed_cost=to_dollars(self.billed_cost),
        )


_NO_TAGS: Mapping[str, str] = {}


class Tally:
    """Adds lines or whole series into report groups.

    Attributes:
        needs_entries: Whether the sums of series cannot answer, because a dimension is not part of a series.
        fields: The fields of a context that matter; all others may be left None.
    """

    def __init__(self, by: Sequence[str], where: Mapping[str, frozenset[str | None]]) -> None:
        check_dimensions([*by, *where])
        self._by = tuple(by)
        self._where = where
        self._split = "sku_meter" in by
        # Without a split every entry counts once, at its lead; a filter on one meter makes that meter's line the one.
        self._every_line = self._split or len(where.get("sku_meter", ())) == 1
        mixed = not self._every_line and "sku_meter" in where
        self.needs_entries = mixed or any(name == "end_user" or name.startswith("tag:") for name in (*by, *where))
        self.fields = tuple(sorted({"kind", "status", *(name for name in (*by, *where) if name in _INDEX)}))
        self._totals: dict[tuple[int, tuple[str | None, ...]], _Total] = {}

    def context(self, values: Sequence[str | None]) -> Context:
        """A context of which only `fields` are known, by their `values` in order."""
        known = dict(zip(self.fields, values, strict=True))
        return tuple(known.get(name) for name in CONTEXT_FIELDS)

    def cell(
        self,
        context: Context,
        sku_meter: str | None,
        marks: int,
        end_user: str | None = None,
        tags: Mapping[str, str] = _NO_TAGS,
    ) -> Cell | None:
        """Where lines like this go; None when a condition leaves them out."""
        for name, accepted in self._where.items():
            if _value(name, context, sku_meter, end_user, tags) not in accepted:
                return None
        leads = self._every_line or bool(marks & LEAD)
        requests = leads and context[_KIND] == "usage"
        unpriced = leads and bool(marks & (METER_UNPRICED if self._every_line else UNPRICED))
        return Cell(
            tuple(_value(name, context, sku_meter, end_user, tags) for name in self._by),
            sku_meter,
            requests,
            requests and context[_STATUS] != "ok",
            unpriced * _UNPRICED_COUNTS.get(context[_KIND] or "", 0),
            requests and bool(marks & ESTIMATED),
        )

    def add(self, bucket: int, cell: Cell, sums: Sequence[int]) -> None:
        """Count `sums` (in the order of `SUMS`) in `cell`."""
        place = (bucket, cell.group)
        total = self._totals.get(place)
        if total is None:
            total = self._totals[place] = _Total()
        count = sums[0]
        total.entries += count
        if cell.requests:
            total.requests += count
            total.errors += count * cell.error
            total.estimated += count * cell.estimated
        total.unpriced += count * cell.unpriced
        total.reasoning += sums[1]
        meter = cell.sku_meter
        if meter is not None:
            total.nano[meter] = total.nano.get(meter, 0) + sums[2] * _NANO + sums[3]
        total.list_cost += sums[4] * MICRO + sums[5]
        total.contracted_cost += sums[6] * MICRO + sums[7]
        total.billed_cost += sums[8] * MICRO + sums[9]

    def add_entry(
        self, bucket: int, context: Context, amounts: Amounts, end_user: str | None, tags: Mapping[str, str]
    ) -> None:
        """Count one entry; where lines are not told apart, at the first line that is not left out."""
        first = True
        for line in lines(context, amounts):
            marks = line.marks | LEAD if first else line.marks & ~LEAD
            cell = self.cell(context, line.sku_meter, marks, end_user, tags)
            if cell is not None:
                first = False
                self.add(bucket, cell, line.sums)

    def result(self) -> list[Aggregate]:
        """The groups that have an entry, by bucket and then by value (not-set last)."""
        found = [total.aggregate(*place) for place, total in self._totals.items() if total.entries]
        return sorted(
            found, key=lambda total: (total.bucket, tuple((value is None, value or "") for value in total.group))
        )


def _quantity(nano: int) -> Quantity:
    whole, rest = divmod(nano, _NANO)
    return whole if not rest else Decimal(nano).scaleb(-9, context=EXACT)
