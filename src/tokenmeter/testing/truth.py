"""The provider's own books: what it billed for every request, independent of anything a client recorded.

And its usage and cost reports: which of these records they show, summed over buckets of time and groups.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from tokenmeter.money import multiply, round_to
from tokenmeter.testing.wire import Request
from tokenmeter.usage import Consumption, Quantity, Usage
from tokenmeter.values import dataclass

GroupBy = Literal["model", "request_model", "api_key", "endpoint", "provider", "service_tier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What one answer costs, in quantities.

    Attributes:
        model: Model that answered.
        response_id: Id of the answer.
        consumptions: Quantities per model and context; empty for a free answer.
        wire_usage: The usage object sent to the client; None when none was sent.
        service_tier: Tier that served it.
        custom_id: The caller's own id of a batch line.
        free: The provider waives it.
    """

    model: str | None = None
    response_id: str | None = None
    consumptions: tuple[Consumption, ...] = ()
    wire_usage: Any = None
    service_tier: str | None = None
    custom_id: str | None = None
    free: bool = False

    @property
    def billed(self) -> bool:
        """Whether anything is due."""
        return not self.free and any(part.usage for part in self.consumptions)

    def cut_at(self, generated: int) -> Bill:
        """The bill for the same answer when generation stopped after `generated` output tokens."""
        return replace(self, consumptions=tuple(_cut(part, generated) for part in self.consumptions))

    def for_line(self, custom_id: str) -> Bill:
        """The bill as that of one line of a batch."""
        parts = tuple(replace(part, processing="batch") for part in self.consumptions)
        return replace(self, custom_id=custom_id, consumptions=parts)


def _cut(part: Consumption, generated: int) -> Consumption:
    if part.role != "message" or not part.usage["output"]:
        return part
    output = min(int(part.usage["output"]), generated)
    quantities = {**part.usage.quantities, "output": output}
    return replace(part, usage=Usage(quantities, min(part.usage.reasoning_output_tokens, output)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the provider knows of one request (or of one line of a batch).

    Attributes:
        sequence: Order in the books, from 1.
        at: When it was served, aware UTC.
        provider: ``openai`` or ``anthropic``: whose wire format was spoken.
        endpoint: SDK method path (``chat.completions``, ``messages``, ...); None for an unknown URL.
        method: HTTP method.
        path: URL path.
        request_model: Model the caller named.
        model: Model that answered.
        api_key_last4: Last four characters of the key; empty without one.
        api_key_sha256: SHA-256 of the key, hex; None without one.
        request_id: Value of the request-id response header.
        response_id: Id of the answer.
        custom_id: The caller's own id of a batch line.
        status: HTTP status; 0 when the connection was reset before an answer.
        billed: Whether it costs anything.
        streamed: Whether the answer was an event stream.
        complete: Whether the whole answer was sent; False for a cut or abandoned one.
        usage: The usage object as sent to the client; None when none was.
        consumptions: Disjoint quantities per model and context, also of an answer that was waived.
        service_tier: Tier that served it.
    """

    sequence: int
    at: datetime
    provider: str
    endpoint: str | None
    method: str
    path: str
    request_model: str | None
    model: str | None
    api_key_last4: str
    api_key_sha256: str | None
    request_id: str
    response_id: str | None
    custom_id: str | None = None
    status: int
    billed: bool
    streamed: bool
    complete: bool
    usage: Any
    consumptions: tuple[Consumption, ...]
    service_tier: str | None

    @property
    def meters(self) -> Usage:
        """Everything billed for this request, as disjoint quantities."""
        return Usage.total(part.usage for part in self.consumptions) if self.billed else Usage()

    @property
    def api_key_id(self) -> str | None:
        """The key's id in the provider's usage reports."""
        return None if self.api_key_sha256 is None else f"key_{self.api_key_sha256[:16]}"


class Books:
    """The records of one provider, safe to read and write from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[Truth] = []

    def record(self, bill: Bill | None, **facts: Any) -> Truth:
        """Enter a request; `bill` None means it costs nothing.

        Args:
            bill: What it costs.
            **facts: The other attributes of `Truth`, without the sequence; ``api_key`` instead of its two digests.
        """
        due = bill or Bill()
        key: str | None = facts.pop("api_key")
        with self._lock:
            truth = Truth(
                sequence=len(self._records) + 1,
                api_key_last4=(key or "")[-4:],
                api_key_sha256=None if key is None else hashlib.sha256(key.encode()).hexdigest(),
                model=due.model,
                response_id=due.response_id,
                custom_id=due.custom_id,
                billed=due.billed,
                usage=due.wire_usage,
                consumptions=due.consumptions,
                service_tier=due.service_tier,
                **facts,
            )
            self._records.append(truth)
        return truth

    def amend(self, sequence: int, **changes: Any) -> None:
        """Re-state a record, once it is known how its delivery ended."""
        with self._lock:
            if sequence <= len(self._records):  # else the books were reset in between
                self._records[sequence - 1] = replace(self._records[sequence - 1], **changes)

    def snapshot(self) -> list[Truth]:
        """All records in order."""
        with self._lock:
            return list(self._records)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._records.clear()

    def totals(self, by: GroupBy) -> Mapping[str | None, Usage]:
        """Billed quantities per value of `by`; ``model`` and ``service_tier`` go by each consumption's own."""
        groups: dict[str | None, Usage] = {}
        for truth in self.snapshot():
            for part in truth.consumptions if truth.billed else ():
                value = _group(truth, part, by)
                groups[value] = groups.get(value, Usage()) + part.usage
        return groups


def _group(truth: Truth, part: Consumption, by: GroupBy) -> str | None:
    match by:
        case "model":
            return part.model
        case "service_tier":
            return part.service_tier
        case "api_key":
            return truth.api_key_last4
        case "request_model":
            return truth.request_model
        case "endpoint":
            return truth.endpoint
        case "provider":
            return truth.provider


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
