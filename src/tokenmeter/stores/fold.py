"""From records to rows: what every engine does with a record when it takes it into the book.

The rows repeat what records say, in columns that SQL can add up. `measured` is the one place that says what an entry
adds to which sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from operator import add
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.ledger import CounterKey
from tokenmeter.money import EXACT
from tokenmeter.stores.record import costs_of
from tokenmeter.stores.sketch import Latencies
from tokenmeter.stores.slots import HOUR

#: What the first record is linked to.
FIRST = bytes(32)
#: Picodollars in a microdollar: where summed money columns are split.
MICRO = 1_000_000
#: Billionths: in these quantities are summed.
NANO = 1_000_000_000
#: Meters with a column of their own.
TYPED = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_PLACE = {meter: place for place, meter in enumerate(TYPED)}
#: Columns of an entry, and of a sum, that add up: marks, quantities, costs in two parts each.
AMOUNTS = (
    *("unpriced", "estimated", "reasoning"),
    *TYPED,
    *("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico"),
)
#: The same of a sum meter by meter.
METER_AMOUNTS = (
    *("n", "unpriced", "estimated", "reasoning", "quantity", "nano"),
    *("list_micro", "list_pico", "contracted_micro", "contracted_pico", "billed_micro", "billed_pico"),
)
_NANOUNIT = Decimal("1E-9")


def advance(before: bytes, record: bytes) -> bytes:
    """The chain's hash after `record`: SHA-256 over the hash before it and the record's own SHA-256."""
    return link(before, hashlib.sha256(record).digest())


def link(before: bytes, leaf: bytes) -> bytes:
    """As `advance`, from the record's SHA-256."""
    return hashlib.sha256(before + leaf).digest()


class AccountFacts(NamedTuple):
    """What the fold has to know of an account.

    Attributes:
        number: Its row.
        counted: Whether its entries are calls; corrections and adjustments add money only.
        correcting: Whether they are corrections.
        priceless: Whether its ``cost_source`` is ``unpriced``.
        estimated: Whether it is ``estimated``.
    """

    number: int
    counted: bool
    correcting: bool
    priceless: bool
    estimated: bool

    @classmethod
    def of(cls, number: int, kind: str, cost_source: str) -> AccountFacts:
        """From the account's columns."""
        return cls(number, kind == "usage", kind == "correction", cost_source == "unpriced", cost_source == "estimated")


class Measured(NamedTuple):
    """What an entry adds to sums.

    Attributes:
        lines: Meter -> `METER_AMOUNTS` of the entry, but quantities in billionths and costs in picodollars, each one
            number. The meter ``""`` stands for cost that no meter explains.
        amounts: `AMOUNTS` of the entry.
        more: Meter -> billionths, of quantities without a column among `amounts`.
        times: Microseconds of a call until its end, and until its first token; None where it is not known.
    """

    lines: dict[str, list[int]]
    amounts: tuple[int, ...]
    more: dict[str, int]
    times: tuple[int | None, int | None]

    @property
    def unpriced(self) -> int:
        """+1 for a call with a meter of unknown price, -1 for a correction that takes one back."""
        return self.amounts[0]

    @property
    def estimated(self) -> int:
        """1 for a call whose usage or cost is estimated."""
        return self.amounts[1]


def _nano(quantity: Any) -> int:
    if isinstance(quantity, int):
        return quantity * NANO
    number = Decimal(quantity)
    return int(number.quantize(_NANOUNIT, rounding=ROUND_HALF_EVEN, context=EXACT).scaleb(9, context=EXACT))


def measured(  # noqa: C901, PLR0912, PLR0915 - one pass over every entry; each branch is a rule of what reports count
    record: Mapping[str, Any], account: AccountFacts, meter_of: Callable[[str], str]
) -> Measured:
    """What the entry of `record` adds to sums; `meter_of` says which meter a rate is for."""
    get = record.get
    counted = account.counted
    estimated = 1 if counted and (account.estimated or "estimated" in get("flags", ())) else 0
    lines: dict[str, list[int]] = {}
    typed = [0, 0, 0, 0, 0]
    more: dict[str, int] = {}
    quantities: Mapping[str, Any] = get("quantities", _NOTHING)
    for meter, quantity in quantities.items():
        if not counted or not quantity:
            nano = 0
        elif type(quantity) is int:
            nano = quantity * NANO
            place = _PLACE.get(meter)
            if place is None:
                more[meter] = nano
            else:
                typed[place] = quantity
        else:
            nano = _nano(quantity)
            _keep(meter, nano, typed, more)
        lines[meter] = [1, 0, estimated, 0, nano, 0, 0, 0]
    left, centre, right = first, second, third = [cost or 0 for cost in costs_of(record)]
    charged: set[str] = set()
    priceless: set[str] = set()
    beyond: set[str] | None = None
    for charge in get("charges", ()):
        meter = meter_of(charge["rate"])
        line = lines.get(meter)
        if line is None:
            line = lines[meter] = [1, 0, estimated, 0, 0, 0, 0, 0]
        if counted and meter not in quantities:
            line[4] += _nano(charge["quantity"])
            beyond = {meter} if beyond is None else beyond | {meter}
        charged.add(meter)
        # As `costs_of` says, without the call: three in four of all steps are made here.
        listed = charge.get("list")
        contracted = charge.get("contracted", listed)
        billed = charge.get("billed", contracted)
        if listed:
            line[5] += listed
            left -= listed
        if contracted:
            line[6] += contracted
            centre -= contracted
        if billed:
            line[7] += billed
            right -= billed
        elif billed is None:
            priceless.add(meter)
    if beyond:
        for meter in lines:
            if meter in beyond:
                _keep(meter, lines[meter][4], typed, more)
    if account.priceless and lines:
        priceless.update(lines.keys() - charged or (() if priceless else lines.keys()))
    if not lines or left or centre or right:
        lines[""] = [1, 0, estimated, 0, 0, left, centre, right]
        if account.priceless and not priceless:
            priceless.add("")
    mark = 0 if not priceless else 1 if counted else -1 if account.correcting else 0
    if mark:
        for meter in priceless:
            lines[meter][1] = mark
    reasoning = get("reasoning", 0) if counted else 0
    if reasoning:
        lines["output" if "output" in lines else next(iter(lines))][3] = reasoning
    costs = divmod(first, MICRO)
    contracted_costs = costs if second == first else divmod(second, MICRO)
    billed_costs = contracted_costs if third == second else divmod(third, MICRO)
    amounts = (mark, estimated, reasoning, *typed, *costs, *contracted_costs, *billed_costs)
    return Measured(lines, amounts, more, (get("latency_us"), get("first_token_us")) if counted else _UNTIMED)


def _keep(meter: str, nano: int, typed: list[int], more: dict[str, int]) -> None:
    """Put a quantity where it is kept: whole ones of some meters have a column."""
    whole, rest = divmod(nano, NANO)
    place = _PLACE.get(meter)
    if place is not None and not rest:
        typed[place] = whole
    elif nano:
        more[meter] = nano


_NOTHING: Mapping[str, Any] = {}
_UNTIMED = (None, None)
_OUTPUT = AMOUNTS.index("output")


def add_lines(lines: dict[str, list[int]], more: Mapping[str, list[int]]) -> None:
    """Add up amounts meter by meter."""
    for meter, line in more.items():
        known = lines.get(meter)
        lines[meter] = line if known is None else list(map(add, known, line))


def identity_column(text: str) -> bytes | str:
    """32 lower hex digits as 16 bytes; any other text as it is."""
    if len(text) == 32:  # noqa: PLR2004 - see above
        try:
            identity = bytes.fromhex(text)
        except ValueError:
            return text
        if identity.hex() == text:
            return identity
    return text


@dataclass(slots=True)
class Batch:
    """What one transaction adds to the book, gathered record by record.

    Attributes:
        sums: (hour, account) -> count of entries and their `AMOUNTS`.
        rare: (hour, account, meter) -> billionths, of meters without a column.
        meters: (day, account) -> meter -> `Measured.lines`, added up.
        latencies: (day, account) -> how long its calls took.
        posts: Counter -> what is added to its settled amount, and the end of its window.
        holds: Identity -> expiry, claims and record, of holds that are open at the end.
        freed: Holds that are not.
        extended: Identity -> new expiry.
    """

    sums: dict[tuple[int, int], Sequence[int]] = field(default_factory=dict[tuple[int, int], Sequence[int]])
    rare: dict[tuple[int, int, str], int] = field(default_factory=dict[tuple[int, int, str], int])
    meters: dict[tuple[int, int], dict[str, list[int]]] = field(
        default_factory=dict[tuple[int, int], dict[str, list[int]]]
    )
    latencies: dict[tuple[int, int], Latencies] = field(default_factory=dict[tuple[int, int], Latencies])
    posts: dict[CounterKey, tuple[int, int | None]] = field(default_factory=dict[CounterKey, tuple[int, int | None]])
    holds: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    freed: list[str] = field(default_factory=list[str])
    extended: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, occurred_at: int, number: int, found: Measured) -> None:
        """Add an entry to the sums, by its time and its account's row. What was found is the batch's from now on."""
        hour = occurred_at // HOUR
        place = (hour, number)
        total = self.sums.get(place)
        added = (1, *found.amounts)
        self.sums[place] = added if total is None else list(map(add, total, added))
        place = (hour // 24, number)
        if found.times != _UNTIMED:
            taken = self.latencies.get(place)
            if taken is None:
                taken = self.latencies[place] = Latencies()
            taken.add(*found.times, found.amounts[_OUTPUT])
        lines = self.meters.get(place)
        if lines is None:
            self.meters[place] = found.lines
        else:
            add_lines(lines, found.lines)
        for meter, nano in found.more.items():
            key = (hour, number, meter)
            self.rare[key] = self.rare.get(key, 0) + nano

    def affect(self, effects: Mapping[str, Any], record: bytes, *, counted: bool) -> None:
        """What a frame does to counters and holds; `counted` is False for an entry that was there already."""
        hold = effects.get("hold")
        if hold is not None:
            expires_at = from_json(record)["expires_at"]
            self.holds.setdefault(hold, [expires_at, effects["claims"], record])
        freed = effects.get("free")
        if freed is not None:
            self.holds.pop(freed, None)
            self.freed.append(freed)
        extended = effects.get("extend")
        if extended is not None:
            known = self.holds.get(extended)
            if known is None:
                self.extended[extended] = effects["until"]
            else:
                known[0] = effects["until"]
        if counted:
            for budget, scope, start, end, amount in effects.get("post", ()):
                key = CounterKey(budget, scope, start)
                before, known_end = self.posts.get(key, (0, None))
                self.posts[key] = (before + amount, known_end if end is None else end)
