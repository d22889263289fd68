"""From records to rows: what every engine does with a record when it takes it into the book.

The rows repeat what records say, in columns that SQL can add up. `measured` is the one place that says what an entry
adds to which sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import chain
from operator import add
from typing import Any, NamedTuple

from pydantic_core import from_json

from tokenmeter.dimensions import COUNTED_AS
from tokenmeter.ledger import CounterKey
from tokenmeter.money import EXACT
from tokenmeter.stores.encoding import note_usage
from tokenmeter.stores.record import costs_of
from tokenmeter.stores.sketch import LatencySums
from tokenmeter.stores.slots import HOUR, Stretch, month_of, week_of
from tokenmeter.values import dataclass

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
        counted: 1 if its entries are calls, or growths of some, -1 if they take them back; 0 for corrections and
            adjustments, which add money only.
        correcting: Whether they are corrections.
        priceless: Whether its ``cost_source`` is ``unpriced``.
        estimated: Whether it is ``estimated``.
    """

    number: int
    counted: int
    correcting: bool
    priceless: bool
    estimated: bool

    @classmethod
    def of(cls, number: int, kind: str, cost_source: str) -> AccountFacts:
        """From the account's columns."""
        counted = COUNTED_AS.get(kind, 0)
        return cls(number, counted, kind == "correction", cost_source == "unpriced", cost_source == "estimated")


class Measured(NamedTuple):
    """What an entry adds to sums.

    Attributes:
        meters: Each meter once. ``""`` stands for cost that no meter explains.
        lines: `LINE` numbers for each of them: `METER_AMOUNTS`, but quantities in billionths and costs in picodollars,
            each one number.
        amounts: `AMOUNTS` of the entry.
        more: Meter -> billionths, of quantities without a column among `amounts`.
        times: Microseconds of a call until its end, and until its first token; None where it is not known.
    """

    meters: tuple[str, ...]
    lines: tuple[int, ...]
    amounts: tuple[int, ...]
    more: Mapping[str, int]
    times: tuple[int | None, int | None]

    @property
    def unpriced(self) -> int:
        """+1 for a call with a meter of unknown price, -1 for a correction or a reversal that takes one back."""
        return self.amounts[0]

    @property
    def estimated(self) -> int:
        """1 for a call whose usage or cost is estimated, -1 for what takes it back."""
        return self.amounts[1]


#: Numbers to a meter in `Measured.lines`.
LINE = 8
_UNPRICED, _REASONING, _QUANTITY, _LIST, _CONTRACTED, _BILLED = 1, 3, 4, 5, 6, 7
#: Lines by meter, as they are added up: tuples of numbers, which a collection of garbage does not walk.
MeterLines = tuple[tuple[str, ...], tuple[int, ...]]


def split_lines(lines: MeterLines) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each meter with its `LINE` numbers."""
    meters, numbers = lines
    return ((meter, numbers[at * LINE : at * LINE + LINE]) for at, meter in enumerate(meters))


def add_lines(known: MeterLines | None, more: MeterLines) -> MeterLines:
    """Add up amounts meter by meter."""
    if known is None:
        return more
    if known[0] == more[0]:  # as nearly always with the entries of an account
        return more[0], tuple(map(add, known[1], more[1]))
    found = dict(split_lines(known))
    for meter, line in split_lines(more):
        found[meter] = tuple(map(add, found[meter], line)) if meter in found else line
    return tuple(found), tuple(chain.from_iterable(found.values()))


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
    estimated = counted if account.estimated or "estimated" in get("flags", ()) else 0
    typed = [0, 0, 0, 0, 0]
    more: dict[str, int] = {}
    quantities: Mapping[str, Any] = get("quantities", _NOTHING)
    meters, lines = [*quantities], list[int]()
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
        lines += (1, 0, estimated, 0, nano, 0, 0, 0)
    left, centre, right = first, second, third = [cost or 0 for cost in costs_of(record)]
    unpriced: list[str] = []
    charges: Sequence[Mapping[str, Any]] = get("charges", ())
    for charge in charges:
        meter = meter_of(charge["rate"])
        if meter not in meters:
            meters.append(meter)
            lines += (1, 0, estimated, 0, 0, 0, 0, 0)
        at = meters.index(meter) * LINE
        if counted and meter not in quantities:
            lines[at + _QUANTITY] += _nano(charge["quantity"])
        # As `costs_of` says, without the call: three in four of all steps are made here.
        listed = charge.get("list")
        contracted = charge.get("contracted", listed)
        billed = charge.get("billed", contracted)
        if listed:
            lines[at + _LIST] += listed
            left -= listed
        if contracted:
            lines[at + _CONTRACTED] += contracted
            centre -= contracted
        if billed:
            lines[at + _BILLED] += billed
            right -= billed
        elif billed is None:
            unpriced.append(meter)
    if counted:
        for place in range(len(quantities), len(meters)):
            _keep(meters[place], lines[place * LINE + _QUANTITY], typed, more)
    if account.priceless and meters:
        charged = {meter_of(charge["rate"]) for charge in charges}
        unpriced += [meter for meter in meters if meter not in charged] or (() if unpriced else meters)
    if not meters or left or centre or right:
        if account.priceless and not unpriced:
            unpriced.append("")
        meters.append("")
        lines += (1, 0, estimated, 0, 0, left, centre, right)
    mark = 0 if not unpriced else counted or (-1 if account.correcting else 0)
    if mark:
        for meter in unpriced:
            lines[meters.index(meter) * LINE + _UNPRICED] = mark
    reasoning = get("reasoning", 0) if counted else 0
    if reasoning:
        lines[(meters.index("output") if "output" in meters else 0) * LINE + _REASONING] = reasoning
    costs = divmod(first, MICRO)
    contracted_costs = costs if second == first else divmod(second, MICRO)
    billed_costs = contracted_costs if third == second else divmod(third, MICRO)
    amounts = (mark, estimated, reasoning, *typed, *costs, *contracted_costs, *billed_costs)
    times = (get("latency_us"), get("first_token_us")) if counted > 0 else _UNTIMED
    return Measured(tuple(meters), tuple(lines), amounts, more, times)


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
        meters: (day, account) -> `Measured.meters` and `Measured.lines`, added up.
        latencies: (day, account) -> how long its calls took.
        posts: Counter -> what is added to its settled amount, and the end of its window.
        holds: Identity -> expiry, claims and record, of holds that are open at the end.
        freed: Holds that are not.
        extended: Identity -> new expiry.
        noted: Identity -> effects that say what its call has used so far, or who answers it: see `note_usage`.
    """

    sums: dict[tuple[int, int], Sequence[int]] = field(default_factory=dict[tuple[int, int], Sequence[int]])
    rare: dict[tuple[int, int, str], int] = field(default_factory=dict[tuple[int, int, str], int])
    meters: dict[tuple[int, int], MeterLines] = field(default_factory=dict[tuple[int, int], MeterLines])
    latencies: dict[tuple[int, int], LatencySums] = field(default_factory=dict[tuple[int, int], LatencySums])
    posts: dict[CounterKey, tuple[int, int | None]] = field(default_factory=dict[CounterKey, tuple[int, int | None]])
    holds: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    freed: list[str] = field(default_factory=list[str])
    extended: dict[str, int] = field(default_factory=dict[str, int])
    noted: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def count(self, occurred_at: int, number: int, found: Measured) -> None:
        """Add an entry to the sums, by its time and its account's row."""
        meters, lines, amounts, more, times = found
        hour = occurred_at // HOUR
        place = (hour, number)
        total = self.sums.get(place)
        added = (1, *amounts)
        self.sums[place] = added if total is None else tuple(map(add, total, added))
        place = (hour // 24, number)
        self.meters[place] = add_lines(self.meters.get(place), (meters, lines))
        if times != _UNTIMED:
            taken = self.latencies.get(place)
            if taken is None:
                taken = self.latencies[place] = LatencySums()
            taken.add(*times, amounts[_OUTPUT])
        for meter, nano in more.items():
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
            self.noted.pop(freed, None)
            self.freed.append(freed)
        extended = effects.get("extend")
        if extended is not None:
            known = self.holds.get(extended)
            if known is None:
                self.extended[extended] = effects["until"]
            else:
                known[0] = effects["until"]
        if (of_hold := effects.get("note") or effects.get("name")) is not None:
            known = self.holds.get(of_hold)
            if known is None:
                self.noted[of_hold] = {**self.noted.get(of_hold, {}), **effects}
            else:
                known[2] = note_usage(known[2], effects)
        if counted:
            for budget, scope, start, end, amount in effects.get("post", ()):
                key = CounterKey(budget, scope, start)
                before, known_end = self.posts.get(key, (0, None))
                self.posts[key] = (before + amount, known_end if end is None else end)


def sum_rows(batch: Batch) -> Iterator[tuple[str, Iterable[tuple[Any, ...]]]]:
    """What a batch gathered as rows of the tables of sums: of hours, days, weeks and months; made as they are taken."""
    days = _coarser(batch.sums, _day_of)
    levels = ((0, batch.sums), (1, days), (2, _coarser(days, month_of)), (3, _coarser(days, week_of)))
    yield (
        "sums",
        ((level, *place, *amounts) for level, sums in levels for place, amounts in sums.items()),
    )
    rare: dict[tuple[int, int, int, str], int] = {}
    for (hour, account, meter), nano in batch.rare.items():
        day = hour // 24
        for level, slot in ((0, hour), (1, day), (2, month_of(day)), (3, week_of(day))):
            key = (level, slot, account, meter)
            rare[key] = rare.get(key, 0) + nano
    yield "rare_sums", ((*key, *divmod(nano, NANO)) for key, nano in rare.items())
    months: dict[tuple[int, int], MeterLines] = {}
    taken: dict[tuple[int, int], LatencySums] = {}
    for (day, account), lines in batch.meters.items():
        month = (month_of(day), account)
        months[month] = add_lines(months.get(month), lines)
    for (day, account), some in batch.latencies.items():
        taken.setdefault((month_of(day), account), LatencySums()).take(some)
    yield (
        "meter_sums",
        (
            (
                *(level, *place, meter, count, unpriced, estimated, reasoning),
                *(*divmod(nano, NANO), *divmod(first, MICRO), *divmod(second, MICRO), *divmod(third, MICRO)),
            )
            for level, groups in ((1, batch.meters), (2, months))
            for place, lines in groups.items()
            for meter, (count, unpriced, estimated, reasoning, nano, first, second, third) in split_lines(lines)
        ),
    )
    yield (
        "latency_sums",
        (
            (level, *place, *some.row())
            for level, groups in ((1, batch.latencies), (2, taken))
            for place, some in groups.items()
        ),
    )


def stretches_of(batch: Batch) -> set[Stretch]:
    """The stretches that a batch adds to the sums of."""
    hours = {hour for hour, _ in batch.sums}
    days = {hour // 24 for hour in hours}
    found: set[Stretch] = {(0, hour) for hour in hours}
    for level, slot_of in ((2, month_of), (3, week_of)):
        found |= {(level, slot_of(day)) for day in days}
    return found | {(1, day) for day in days}


def _coarser(
    sums: Mapping[tuple[int, int], Sequence[int]], slot_of: Callable[[int], int]
) -> dict[tuple[int, int], Sequence[int]]:
    """Sums by slot and account, added up to longer slots."""
    found: dict[tuple[int, int], Sequence[int]] = {}
    for (slot, account), amounts in sums.items():
        place = (slot_of(slot), account)
        known = found.get(place)
        found[place] = amounts if known is None else tuple(map(add, known, amounts))
    return found


def _day_of(hour: int) -> int:
    return hour // 24
