"""The record: what is written, once and for ever, about every call."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args

from tokenmeter.attribution import NOBODY, ApiKey, Attribution
from tokenmeter.dimensions import REQUESTS_AS, TOOL_OPERATION, WHO, CostSource, EntryKind, Status
from tokenmeter.display import dollars, facts_html, number_text
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import COSTS, PICODOLLAR, negate, quantize, total
from tokenmeter.processes import KNOWN, after_fork_in_child, notice_fork
from tokenmeter.texts import check_text
from tokenmeter.usage import Quantity, Usage
from tokenmeter.values import dataclass

__all__ = [
    "CHARGE_COLUMNS",
    "Charge",
    "Claim",
    "CounterKey",
    "Entry",
    "Posting",
    "Reservation",
    "ThresholdCrossing",
    "charge_cells",
    "is_own",
    "new_id",
    "utcnow",
]

_NO_MULTIPLIERS: Mapping[str, Decimal] = MappingProxyType({})


def utcnow() -> datetime:
    """Now, as an aware UTC instant."""
    return datetime.now(UTC)


_writer = os.urandom(10).hex()
_counter = itertools.count(1)


@after_fork_in_child
def _renew_writer() -> None:
    global _writer, _counter
    _writer, _counter = os.urandom(10).hex(), itertools.count(1)


def new_id() -> str:
    """An identity that nobody else gives, on this host or another: 10 random bytes of this process, 6 of a counter.

    32 hex digits. Ids of one process ascend; those of several say nothing about time.
    """
    if not KNOWN[0]:
        notice_fork()
    return _writer + next(_counter).to_bytes(6).hex()


def is_own(identity: str) -> bool:
    """Whether `new_id` of this process gave `identity`."""
    return identity.startswith(_writer) and len(identity) == 32  # noqa: PLR2004 - see `new_id`


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of an entry: ``billed_cost = quantity x list_unit_price x every multiplier``, to 12 decimals.

    Attributes:
        model: The model that did the work.
        sku_meter: What was used (`tokenmeter.dimensions`).
        quantity: How much, in `unit`.
        unit: FOCUS PricingUnit: ``Tokens``, ``Seconds``, ``Searches``, ...
        list_unit_price: US dollars per single unit at the public price; None when no price is known.
        multipliers: Factors by name, in the order they apply: ``geo`` and ``region`` lead to `list_cost`,
            ``discount`` to `contracted_cost`, ``platform`` to `billed_cost`. A factor of 1 is left out.
        list_cost: Upstream cost at public prices, US dollars; None = unpriced.
        contracted_cost: Upstream cost after negotiated discounts; None = unpriced.
        billed_cost: `contracted_cost` x platform multiplier; None = unpriced.
        price_id: Row, effective date and price list that gave the unit price, and the mode and place that it is for.
            Where the tokens of `model` in this `role` are not one prompt: ``prompt=`` its own size, or ``unknown``.
        source: Where that row comes from (a URL or the layer's name).
        role: What the charge group was for (`tokenmeter.usage.Consumption.role`).
    """

    model: str | None
    sku_meter: str
    quantity: Quantity
    unit: str
    list_unit_price: Decimal | None
    multipliers: Mapping[str, Decimal] = field(default_factory=lambda: _NO_MULTIPLIERS)
    list_cost: Decimal | None
    contracted_cost: Decimal | None
    billed_cost: Decimal | None
    price_id: str | None = None
    source: str | None = None
    role: str = "message"

    def negated(self) -> Charge:
        """The line that takes this one back."""
        return replace(
            self,
            quantity=negate(self.quantity),
            list_cost=negate(self.list_cost),
            contracted_cost=negate(self.contracted_cost),
            billed_cost=negate(self.billed_cost),
        )


#: Headings of `charge_cells`.
CHARGE_COLUMNS = ("model", "meter", "quantity", "unit", "unit price", "list cost", "billed cost")


def charge_cells(charges: Iterable[Charge]) -> Iterator[tuple[str, ...]]:
    """What a table of charges shows of each."""
    for charge in charges:
        yield (
            charge.model or "",
            charge.sku_meter,
            number_text(Decimal(charge.quantity)),
            charge.unit,
            dollars(charge.list_unit_price),
            dollars(charge.list_cost),
            dollars(charge.billed_cost),
        )


def column(kind: Literal["text", "integer"]) -> Any:
    """A field of an entry that is None, or kept and exported as it is, under its name."""
    return field(default=None, metadata={"column": kind})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """One call, reversal, correction or adjustment. Immutable: what was wrong is put right by a further entry.

    Attributes:
        entry_id: Identity (`new_id`).
        kind: ``usage`` for a call; ``growth`` for what more a session has used than was recorded of it; ``reversal``
            takes an earlier entry of one back whole (an estimate, once the answer is known): its cost, its usage, and
            that it was a call; ``correction`` re-states an earlier entry's cost by its difference; ``adjustment`` posts
            an agreed amount (reconciliation, credit).
        occurred_at: When the call left, aware UTC. Prices, budgets' windows and reports go by it.
        recorded_at: When it was settled, aware UTC.
        provider: Provider id as in genai-prices (``openai``, ``anthropic``, ``azure``, ...).
        endpoint: SDK method path, for example ``chat.completions``.
        operation: OpenTelemetry ``gen_ai.operation.name`` (``chat``, ``embeddings``, ...); ``execute_tool`` for what
            calls set to work and may share (a container): it costs, and is no request.
        request_model: Model the caller named.
        response_model: Model the provider named.
        response_id: Provider's id of the answer.
        request_id: Provider's id of the HTTP request.
        status: ``ok``, ``error``, ``aborted`` or ``timeout``.
        streamed: Whether the answer came as a stream.
        attempts: HTTP requests it took, retries included.
        latency_us: Microseconds from the request until the answer's end; None when unknown.
        first_token_us: Microseconds until the first event of a stream.
        service_tier: Tier that served the call.
        attribution: On whose account.
        api_key: Which key; None when the client had none.
        usage: All charge groups together, disjoint.
        charges: The lines. Their sums are the three costs below.
        list_cost: US dollars, 12 decimals; None when nothing in it is priced, else the sum of the priced lines.
        contracted_cost: As above, after negotiated discounts.
        billed_cost: As above, times the platform multiplier.
        cost_source: How the cost is known.
        flags: Sorted remarks and doubts.
        price_list_hash: Hash of the price list that rated it.
        raw_usage: The usage object off the wire, as JSON text.
        error_type: Class name of the error a failed call raised.
        corrects: entry_id of the entry that a correction re-states, or a reversal takes back.
        reservation_id: The hold this entry settled.
        dedup_key: Key under which the same bill is recorded once only, else None.
        trace_id: OpenTelemetry trace that the call was made in, 32 hex digits; None without one (setting ``traces``).
        span_id: Span of it, 16 hex digits.
    """

    entry_id: str = field(default_factory=new_id)
    kind: EntryKind = "usage"
    occurred_at: datetime
    recorded_at: datetime = field(default_factory=utcnow)
    provider: str
    endpoint: str
    operation: str
    request_model: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    request_id: str | None = None
    status: Status = "ok"
    streamed: bool = False
    attempts: int = 1
    latency_us: int | None = None
    first_token_us: int | None = None
    service_tier: str | None = None
    attribution: Attribution = NOBODY
    api_key: ApiKey | None = None
    usage: Usage = field(default_factory=Usage)
    charges: tuple[Charge, ...] = ()
    list_cost: Decimal | None = None
    contracted_cost: Decimal | None = None
    billed_cost: Decimal | None = None
    cost_source: CostSource = "none"
    flags: tuple[str, ...] = ()
    price_list_hash: str | None = None
    raw_usage: str | None = None
    error_type: str | None = column("text")
    corrects: str | None = column("text")
    reservation_id: str | None = None
    dedup_key: str | None = None
    trace_id: str | None = None
    span_id: str | None = None

    def __repr__(self) -> str:
        what = " ".join(filter(None, (self.provider, self.model or self.endpoint)))
        kind = self.status if self.kind == "usage" else self.kind
        who = {name: value for name in WHO if (value := getattr(self.attribution, name))}
        whose = f" ({', '.join(f'{name}={value}' for name, value in who.items())})" if who else ""
        tokens = f"{self.usage.input_tokens:,} in, {self.usage.output_tokens:,} out"
        cost = dollars(self.billed_cost, partly=self.cost_source == "unpriced")
        return f"<Entry {self.occurred_at:%Y-%m-%d %H:%M:%S} {what} {kind}: {tokens}, {cost}{whose}>"

    def _repr_html_(self) -> str:
        partly = self.cost_source == "unpriced"
        account = {name: getattr(self.attribution, name) for name in WHO}
        tags = ", ".join(f"{name}={value}" for name, value in self.attribution.tags.items())
        facts = {
            "occurred at": f"{self.occurred_at:%Y-%m-%d %H:%M:%S} UTC",
            "provider": self.provider,
            "endpoint": self.endpoint,
            "status": self.status if self.error_type is None else f"{self.status} ({self.error_type})",
            **account,
            "tags": tags,
            "key": None if self.api_key is None else self.api_key.label,
            "list cost": dollars(self.list_cost, partly=partly),
            "billed cost": dollars(self.billed_cost, partly=partly),
            "flags": ", ".join(self.flags),
            "trace": self.trace_id,
            "entry": self.entry_id,
        }
        return facts_html(
            f"Entry: {self.model or self.endpoint}", facts, columns=CHARGE_COLUMNS, rows=charge_cells(self.charges)
        )

    @property
    def model(self) -> str | None:
        """The model reports group by: the response's, else the request's."""
        return self.response_model or self.request_model

    @property
    def requests(self) -> int:
        """As how many requests reports and caps count it: 1 for a call, -1 for what takes one back, else 0.

        A correction is none, nor is a tool that calls set to work, or what a session has used since it was last read.
        """
        return 0 if self.operation == TOOL_OPERATION else REQUESTS_AS.get(self.kind, 0)


#: Every `column` of an entry and its kind, in the order in which records have them.
COLUMNS: Mapping[str, Literal["text", "integer"]] = {
    one.name: one.metadata["column"] for one in fields(Entry) if "column" in one.metadata
}


#: Most of anything in an entry, and most dollars: sums of thousands, or dozens, of such stay within what stores add up.
MOST_COUNTED, MOST_COST = 10**15, 10**11
_DIGITS = {MOST_COUNTED: 15, MOST_COST: 11}

_TEXT = ((str,), "a text")
_TEXT_OR_NONE = ((str, NoneType), "a text, or None")
_COUNT = ((int,), "a whole number")
_COUNT_OR_NONE = ((int, NoneType), "a whole number, or None")
_QUANTITY = ((int, Decimal), "a whole number or a Decimal")
_DOLLARS = ((int, Decimal, NoneType), "US dollars as a Decimal, or None for unknown")
_MOMENT = ((datetime,), "an instant: a datetime with a time zone")
#: Field -> its kinds, and what they are called; any other is a text, or None.
_OF_ENTRY: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("entry_id", "kind", "provider", "endpoint", "operation", "status", "cost_source"), _TEXT),
    **dict.fromkeys(("occurred_at", "recorded_at"), _MOMENT),
    "streamed": ((bool,), "True or False"),
    "attempts": _COUNT,
    **dict.fromkeys(("latency_us", "first_token_us"), _COUNT_OR_NONE),
    **{name: _COUNT_OR_NONE for name, kind in COLUMNS.items() if kind == "integer"},
    "attribution": ((Attribution,), "an Attribution"),
    "api_key": ((ApiKey, NoneType), "an ApiKey, or None"),
    "usage": ((Usage,), "a Usage"),
    "charges": ((tuple, list), "a tuple of Charges"),
    "flags": ((tuple, list), "a tuple of texts"),
    **dict.fromkeys(COSTS, _DOLLARS),
}
_OF_CHARGE: Mapping[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("sku_meter", "unit", "role"), _TEXT),
    "quantity": _QUANTITY,
    "multipliers": ((Mapping,), "a mapping of names to Decimals"),
    **dict.fromkeys(("list_unit_price", *COSTS), _DOLLARS),
}
_OF_USAGE: Mapping[str, tuple[tuple[type, ...], str]] = {
    "quantities": ((Mapping,), "a mapping of meters to quantities"),
    "reasoning_output_tokens": _COUNT,
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "kind": get_args(EntryKind),
    "status": get_args(Status),
    "cost_source": get_args(CostSource),
}
#: What an entry may be dated.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


class _Kinds:
    """Which kinds the fields of a record are of, compared at once: records come in few combinations of them."""

    def __init__(self, made: type, kinds: Mapping[str, tuple[tuple[type, ...], str]]) -> None:
        self._kinds = {one.name: kinds.get(one.name, _TEXT_OR_NONE) for one in fields(made)}
        self._values: Callable[[Any], tuple[Any, ...]] = attrgetter(*self._kinds)
        self._right: set[tuple[type, ...]] = set()

    def check(self, where: str, record: object) -> None:
        values = self._values(record)
        found = tuple(map(type, values))
        if found in self._right:
            return
        for (name, (kind, said)), value in zip(self._kinds.items(), values, strict=True):
            if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
                raise ConfigurationError(f"{where}.{name} must be {said}, not {shown(value)}.")
        if len(self._right) < _MOST_COMBINATIONS:
            self._right.add(found)


_MOST_COMBINATIONS = 256
_KINDS_OF_ENTRY, _KINDS_OF_CHARGE, _KINDS_OF_USAGE = (
    _Kinds(Entry, _OF_ENTRY),
    _Kinds(Charge, _OF_CHARGE),
    _Kinds(Usage, _OF_USAGE),
)


def check_entry(entry: Entry) -> Entry:
    """`entry`, every field of which a ledger has a place for.

    Raises:
        ConfigurationError: a field is of another kind, or more than a ledger can count; or the costs are not the sums
            of the priced lines, so that reports by call and by line would differ.
    """
    if not isinstance(entry, Entry):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise ConfigurationError(f"entry must be an Entry, not {shown(entry)}.")
    _KINDS_OF_ENTRY.check("entry", entry)
    _check_words(entry)
    for name in ("occurred_at", "recorded_at"):
        moment: datetime = getattr(entry, name)
        if moment.tzinfo is None or not _EARLIEST <= moment < _LATEST:
            raise ConfigurationError(
                f"entry.{name} must be an instant with a time zone, from 1970 until 2200, not {shown(moment)}."
            )
    for name in ("attempts", "latency_us", "first_token_us"):
        if not 0 <= (getattr(entry, name) or 0) <= MOST_COUNTED:
            raise ConfigurationError(f"entry.{name} must be 0 to {MOST_COUNTED}, not {shown(getattr(entry, name))}.")
    _KINDS_OF_USAGE.check("entry.usage", entry.usage)
    _check_number("entry.usage.reasoning_output_tokens", entry.usage.reasoning_output_tokens, MOST_COUNTED)
    for meter, quantity in entry.usage.quantities.items():
        check_text(meter, "a meter of entry.usage")
        _check_number(f"entry.usage[{meter!r}]", quantity, MOST_COUNTED)
    for number, charge in enumerate(entry.charges):
        _check_charge(number, charge)
    _check_costs(entry)
    return entry


def _check_words(entry: Entry) -> None:
    check_text(entry.entry_id, "entry.entry_id")
    for name in ("provider", "endpoint", "operation"):
        if not getattr(entry, name):
            raise ConfigurationError(f"entry.{name} must be a non-empty text.")
    for name, words in _WORDS.items():
        if (word := getattr(entry, name)) not in words:
            raise ConfigurationError(f"entry.{name} must be one of {', '.join(words)}, not {shown(word)}.")
    for flag in entry.flags:
        check_text(flag, "a flag in entry.flags")


def _check_charge(number: int, charge: Charge) -> None:
    where = f"entry.charges[{number}]"
    if not isinstance(charge, Charge):  # pyright: ignore[reportUnnecessaryIsInstance] - as above
        raise ConfigurationError(f"{where} must be a Charge, not {shown(charge)}.")
    _KINDS_OF_CHARGE.check(where, charge)
    check_text(charge.sku_meter, f"{where}.sku_meter")
    _check_number(f"{where}.quantity", charge.quantity, MOST_COUNTED)
    if charge.list_unit_price is not None:
        _check_number(f"{where}.list_unit_price", charge.list_unit_price, MOST_COST)
    for name in COSTS:
        _check_dollars(f"{where}.", name, getattr(charge, name))
    for name, factor in charge.multipliers.items():
        check_text(name, f"a name in {where}.multipliers")
        _check_number(f"{where}.multipliers[{name!r}]", factor, MOST_COUNTED)


def _check_costs(entry: Entry) -> None:
    for name in COSTS:
        cost = getattr(entry, name)
        _check_dollars("entry.", name, cost)
        if not entry.charges or cost is None:
            continue
        known = [part for charge in entry.charges if (part := getattr(charge, name)) is not None]
        if cost != (known[0] if len(known) == 1 else total(known)):
            raise ConfigurationError(
                f"entry.{name} must be the sum of its charges', {total(known)}, or None for unknown, not {shown(cost)}."
            )


def _check_dollars(where: str, name: str, value: Decimal | int | None) -> None:
    if value is None:
        return
    _check_number(f"{where}{name}", value, MOST_COST)
    if type(value) is Decimal and not value.same_quantum(PICODOLLAR) and value != quantize(value):
        raise ConfigurationError(f"{where}{name} must be rounded to 12 decimals, not {shown(value)}.")


def _check_number(where: str, value: object, most: int) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        fits = -most <= value <= most
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise ConfigurationError(f"{where} must be a finite number, not {value}.")
        fits = value.adjusted() < _DIGITS[most] or -most <= value <= most
    else:
        raise ConfigurationError(f"{where} must be {_QUANTITY[1]}, not {shown(value)}.")
    if not fits:
        raise ConfigurationError(f"{where} is more than a ledger can count: {shown(value)}.")


@dataclass(frozen=True, slots=True, order=True)
class CounterKey:
    """Identity of one budget counter. A new window is a new counter; nothing is ever reset.

    Attributes:
        budget: Budget name.
        scope: Scope values, ``member=ada``; empty for a budget over everything.
        window_start: Start of the window as microseconds since the epoch; 0 for a budget that never resets.
    """

    budget: str
    scope: str
    window_start: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What one call asks of one counter, in the budget's integer unit (picodollars, tokens or requests).

    Attributes:
        key: The counter.
        limit: Cap of the counter; None for a counter that only counts (soft budget).
        amount: What to hold.
        window_end: End of the window in microseconds since the epoch; None when it never ends.
    """

    key: CounterKey
    limit: int | None
    amount: int
    window_end: int | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A hold: identity, expiry, owner and claims. It is a row of its own, so it can be settled once and expire.

    Attributes:
        reservation_id: Identity (`new_id`).
        claims: In sorted key order.
        created_at: Aware UTC.
        expires_at: Aware UTC; a live stream moves it.
        owner: ``host:pid`` of the process that holds it.
        call: What an expired hold is turned into: an `Entry` with the estimated input cost.
    """

    reservation_id: str
    claims: tuple[Claim, ...]
    created_at: datetime
    expires_at: datetime
    owner: str
    call: Entry


@dataclass(frozen=True, slots=True)
class Posting:
    """What an entry adds to one budget counter when it settles.

    Attributes:
        key: The counter.
        amount: Integer, in the budget's unit; may be negative in a correction.
        thresholds: Absolute amounts, ascending, whose first crossing in this window is to be reported.
        window_end: End of the window in microseconds since the epoch; None when it never ends.
    """

    key: CounterKey
    amount: int
    thresholds: tuple[int, ...] = ()
    window_end: int | None = None


@dataclass(frozen=True, slots=True)
class ThresholdCrossing:
    """A threshold that a settlement crossed; the store reports each at most once, over all processes.

    Attributes:
        key: The counter.
        threshold: The absolute amount crossed.
        settled: The counter after the settlement.
    """

    key: CounterKey
    threshold: int
    settled: int

    @property
    def crossing_id(self) -> str:
        """Its identity; the same whatever becomes of the limit, of which it is another percentage then."""
        parts = (self.key.budget, self.key.scope, str(self.key.window_start), str(self.threshold))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
