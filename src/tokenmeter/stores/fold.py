"""From records to rows: what every engine does with a record when it takes it into the book.

The rows repeat what records say, in columns that SQL can add up. `Line` and `measured` are the one place that says
what an entry adds to which sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from operator import add
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.ledger import CounterKey
from tokenmeter.money import EXACT
from tokenmeter.stores.record import costs_of
from tokenmeter.stores.sketch import Latencies
from tokenmeter.stores.values import MICRO, compact_json, from_microseconds

__all__ = [
    "FIRST",
    "HOUR",
    "NANO",
    "TYPED",
    "AccountFacts",
    "Batch",
    "EntryRow",
    "Measured",
    "advance",
    "entry_row",
    "identity_column",
    "link",
    "measured",
    "month_of",
    "split",
]

#: What the first record is linked to.
FIRST = bytes(32)
HOUR = 3_600_000_000
#: Billionths: in these quantities are summed.
NANO = 1_000_000_000
#: Meters with a column of their own.
TYPED = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_TYPED = frozenset(TYPED)
_NANOUNIT = Decimal("1E-9")
_WHOLE = 1 << 62


def advance(before: bytes, record: bytes) -> bytes:
    """The chain's hash after `record`: SHA-256 over the hash before it and the record's own SHA-256."""
    return link(before, hashlib.sha256(record).digest())


def link(before: bytes, leaf: bytes) -> bytes:
    """As `advance`, from the record's SHA-256."""
    return hashlib.sha256(before + leaf).digest()


@lru_cache(maxsize=4096)
def month_of(day: int) -> int:
    """Number of the month (year x 12 + month - 1) that a day since 1970 is in."""
    date = from_microseconds(day * 24 * HOUR)
    return date.year * 12 + date.month - 1


def split(amount: int) -> tuple[int, int]:
    """Picodollars as whole microdollars and the picodollars over, so that no sum of 64-bit integers overflows."""
    return divmod(amount, MICRO)


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
        lines: Meter -> quantity in billionths, list, contracted and billed picodollars, and whether it is unpriced.
            The meter ``""`` stands for cost that no meter explains.
        costs: The entry's own list, contracted and billed picodollars.
        unpriced: +1 for a call with a meter of unknown price, -1 for a correction that takes one back.
        estimated: 1 for a call whose usage or cost is estimated.
        reasoning: Reasoning tokens of a call.
        times: Microseconds of a call until its end, and until its first token; None where it is not known.
    """

    lines: dict[str, list[int]]
    costs: tuple[int, int, int]
    unpriced: int
    estimated: int
    reasoning: int
    times: tuple[int | None, int | None]


def _nano(quantity: Any) -> int:
    if isinstance(quantity, int):
        return quantity * NANO
    number = Decimal(quantity)
    return int(number.quantize(_NANOUNIT, rounding=ROUND_HALF_EVEN, context=EXACT).scaleb(9, context=EXACT))


def measured(  # noqa: C901 - one pass; every branch is a rule of what reports count
    record: Mapping[str, Any], account: AccountFacts, meter_of: Callable[[str], str]
) -> Measured:
    """What the entry of `record` adds to sums; `meter_of` says which meter a rate is for."""
    get = record.get
    quantities: Mapping[str, Any] = get("quantities", _NOTHING)
    counted = account.counted
    lines = {meter: [_nano(quantity) if counted else 0, 0, 0, 0, 0] for meter, quantity in quantities.items()}
    first, second, third = (cost or 0 for cost in costs_of(record))
    left, centre, right = first, second, third
    charged: set[str] = set()
    unpriced = False
    for charge in get("charges", ()):
        meter = meter_of(charge["rate"])
        line = lines.get(meter)
        if line is None:
            line = lines[meter] = [0, 0, 0, 0, 0]
        if meter not in quantities and counted:
            line[0] += _nano(charge["quantity"])
        charged.add(meter)
        listed, contracted, billed = costs_of(charge)
        if billed is None:
            line[4] = unpriced = True
        if listed:
            line[1] += listed
            left -= listed
        if contracted:
            line[2] += contracted
            centre -= contracted
        if billed:
            line[3] += billed
            right -= billed
    if account.priceless and lines:
        for meter in lines.keys() - charged or (() if unpriced else lines.keys()):
            lines[meter][4] = unpriced = True
    if not lines or left or centre or right:
        lines[""] = [0, left, centre, right, account.priceless and not unpriced]
        unpriced = unpriced or account.priceless
    estimated = counted and (account.estimated or "estimated" in get("flags", ()))
    mark = 0 if not unpriced else 1 if counted else -1 if account.correcting else 0
    times = (get("latency_us"), get("first_token_us")) if counted else _UNTIMED
    return Measured(lines, (first, second, third), mark, int(estimated), get("reasoning", 0) if counted else 0, times)


_NOTHING: Mapping[str, Any] = {}
_UNTIMED = (None, None)
_OUTPUT = TYPED.index("output")


class EntryRow(NamedTuple):
    """An entry's columns after its number and before its record; end user and tags still by digest and text."""

    occurred_at: int
    account: int
    end_user: str | None
    tags: str | None
    amounts: tuple[int, ...]
    more: str | None
    trace_id: str | None


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


def entry_row(record: Mapping[str, Any], account: AccountFacts, found: Measured) -> EntryRow:
    """The columns of an entry; `amounts` are marks, reasoning, `TYPED` quantities and costs, in the table's order."""
    lines = found.lines
    typed = [0] * len(TYPED)
    more: dict[str, str | int] = {}
    for meter, (nano, *_) in lines.items():
        if not nano:
            continue
        whole, rest = divmod(nano, NANO)
        if meter in _TYPED and not rest:
            typed[TYPED.index(meter)] = whole
        else:
            more[meter] = nano
    first, second, third = found.costs
    tags = record.get("tags")
    return EntryRow(
        record["occurred_at"],
        account.number,
        record.get("end_user"),
        compact_json(tags) if tags else None,
        (
            found.unpriced,
            found.estimated,
            found.reasoning,
            *typed,
            *divmod(first, MICRO),
            *divmod(second, MICRO),
            *divmod(third, MICRO),
        ),
        compact_json(more) if more else None,
        record.get("trace_id"),
    )


@dataclass(slots=True)
class Batch:
    """What one transaction adds to the book, gathered record by record.

    Attributes:
        sums: (hour, account) -> count of entries and the `EntryRow.amounts`, costs as whole picodollars.
        rare: (hour, account, meter) -> billionths, of meters without a column.
        meters: (day, account, meter) -> count, unpriced, estimated, reasoning, billionths, three costs.
        latencies: (day, account) -> how long its calls took.
        posts: Counter -> what is added to its settled amount, and the end of its window.
        holds: Identity -> expiry, claims and record, of holds that are open at the end.
        freed: Holds that are not.
        extended: Identity -> new expiry.
    """

    sums: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])
    rare: dict[tuple[int, int, str], int] = field(default_factory=dict[tuple[int, int, str], int])
    meters: dict[tuple[int, int, str], list[int]] = field(default_factory=dict[tuple[int, int, str], list[int]])
    latencies: dict[tuple[int, int], Latencies] = field(default_factory=dict[tuple[int, int], Latencies])
    posts: dict[CounterKey, tuple[int, int | None]] = field(default_factory=dict[CounterKey, tuple[int, int | None]])
    holds: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    freed: list[str] = field(default_factory=list[str])
    extended: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, row: EntryRow, found: Measured) -> None:
        """Add an entry to the sums."""
        hour, number = row.occurred_at // HOUR, row.account
        unpriced, estimated, reasoning, *rest = row.amounts
        added = [1, unpriced, estimated, reasoning, *rest[: len(TYPED)], *found.costs]
        total = self.sums.get((hour, number))
        self.sums[hour, number] = added if total is None else list(map(add, total, added))
        day = hour // 24
        if found.times != _UNTIMED:
            taken = self.latencies.get((day, number))
            if taken is None:
                taken = self.latencies[day, number] = Latencies()
            taken.add(*found.times, rest[_OUTPUT])
        reasoning_at = "output" if "output" in found.lines else next(iter(found.lines))
        mark = found.unpriced
        for meter, (nano, listed, contracted, billed, priceless) in found.lines.items():
            line = self.meters.get((day, number, meter))
            if line is None:
                line = self.meters[day, number, meter] = [0] * 8
            line[0] += 1
            if priceless:
                line[1] += mark
            line[2] += estimated
            if meter == reasoning_at:
                line[3] += reasoning
            line[4] += nano
            line[5] += listed
            line[6] += contracted
            line[7] += billed
            if nano and (meter not in _TYPED or nano % NANO):
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
