"""The provider's own usage and cost reports: which records they show, summed over buckets of time and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from tokenmeter.money import multiply, round_to
from tokenmeter.testing.truth import Truth
from tokenmeter.testing.wire import Request
from tokenmeter.usage import Consumption, Quantity, Usage

_ONE = Decimal(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """How the provider reports; what it leaves out, delays or rounds is there to be found by reconciliation.

    Attributes:
        prices: US dollars per unit, by model and meter: ``{"gpt-5": {"input": "0.00000125"}}``; under ``"*"`` those of
            all other models. What has no price costs nothing.
        delay: Records younger than this are not in the reports yet.
        decimals: Each reported dollar amount is rounded to so many places; None = exact.
        count_refused: Whether the usage report (not the costs) counts answers that were not billed.
    """

    prices: Mapping[str, Mapping[str, Decimal | str]] = field(default_factory=dict[str, Mapping[str, Decimal | str]])
    delay: timedelta = timedelta(0)
    decimals: int | None = None
    count_refused: bool = False

    def price(self, model: str | None, sku_meter: str) -> Decimal:
        """Dollars per unit."""
        listed = self.prices.get(model or "*", self.prices.get("*", {}))
        return Decimal(listed.get(sku_meter, 0))

    def amount(self, dollars: Decimal) -> Decimal:
        """`dollars` as a report shows it."""
        return dollars if self.decimals is None else round_to(dollars, self.decimals)


class Row(NamedTuple):
    """One consumption of one record; `requests` is 1 for a record's first."""

    truth: Truth
    part: Consumption
    requests: int


class Span(NamedTuple):
    """A bucket of time: aware UTC, the end excluded."""

    start: datetime
    end: datetime


class Cost(NamedTuple):
    """What one meter of one consumption costs, in dollars."""

    row: Row
    sku_meter: str
    quantity: Quantity
    dollars: Decimal


def rows(records: Iterable[Truth], reports: Reports, *, provider: str, now: datetime) -> list[Row]:
    """The rows that a provider's usage report shows at `now`."""
    shown = [
        truth
        for truth in records
        if truth.provider == provider
        and truth.at <= now - reports.delay
        and (truth.billed or (reports.count_refused and truth.consumptions))
    ]
    return [
        Row(truth, part, 1 if number == 0 else 0) for truth in shown for number, part in enumerate(truth.consumptions)
    ]


def costs(found: Iterable[Row], reports: Reports) -> Iterator[Cost]:
    """What the billed rows cost, meter by meter; only what has a price."""
    for row in found:
        if row.truth.billed:
            for sku_meter, quantity in row.part.usage.quantities.items():
                if price := reports.price(row.part.model, sku_meter):
                    yield Cost(row, sku_meter, quantity, multiply(quantity, price))


def spans(start: datetime, end: datetime, width: timedelta) -> list[Span]:
    """Buckets over a range, aligned to whole widths of UTC."""
    epoch = datetime.fromtimestamp(0, UTC)
    first = start - (start - epoch) % width
    count = max(0, -((first - end) // width))
    return [Span(first + width * number, first + width * (number + 1)) for number in range(count)]


def grouped(found: Iterable[Row], key: Callable[[Row], tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], Usage, int]]:
    """Rows summed by `key`: the key, what was used, and how many requests; in a stable order."""
    sums: dict[tuple[Any, ...], tuple[Usage, int]] = {}
    for row in found:
        usage, requests = sums.get(key(row), (Usage(), 0))
        sums[key(row)] = usage + row.part.usage, requests + row.requests
    return [(group, *sums[group]) for group in sorted(sums, key=repr)]


def list_param(request: Request, name: str) -> list[str]:
    """A parameter that may be given many times, with or without brackets, or joined by commas."""
    given = [*request.query.get(name, []), *request.query.get(f"{name}[]", [])]
    return [value for text in given for value in text.split(",") if value]


def page(items: Sequence[Any], request: Request, *, usual: int) -> tuple[list[Any], str | None]:
    """One page of `items` by the request's ``limit`` and ``page``, and the token of the next."""
    limit = int((request.query.get("limit") or [str(usual)])[0])
    start = int((request.query.get("page") or ["0"])[0].removeprefix("page_") or 0)
    end = start + limit
    return list(items[start:end]), f"page_{end}" if end < len(items) else None
