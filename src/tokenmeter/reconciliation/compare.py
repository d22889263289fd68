"""Comparing the two books bucket by bucket, and saying why they differ. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from tokenmeter.money import EXACT, ONE, ZERO, magnitude, multiply, negate
from tokenmeter.reconciliation.causes import CAUSES, NO_TRAFFIC, NOISE, POSTABLE, Cause, Discrepancy, Rules, judge
from tokenmeter.reconciliation.names import align_models
from tokenmeter.reconciliation.statement import (
    QUARTER,
    Bucket,
    LedgerSide,
    ProviderStatement,
    Side,
)
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokenmeter.periods import Period

_HALF = Decimal("0.5")
_DAY = timedelta(days=1)
_DAY_QUARTERS = 86_400 // QUARTER
_EPOCH_DAY = date(1970, 1, 1)
#: So many days must differ before a statement is taken to be cut in another zone, or to be cut off.
_FEWEST = 2
#: What may be said of a bucket that a statement has nothing of.
_SILENT: frozenset[Cause] = frozenset({"unbilled", "estimated", "unpriced", "price"})
#: What each side may have names of its own for; a tier is not among them, it has a price.
_NAMED = ("model", "api_key", "project")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides of every bucket, and their discrepancies, in order of day and name."""

    ours: Mapping[Bucket, Side]
    theirs: Mapping[Bucket, Side]
    discrepancies: tuple[Discrepancy, ...]
    notes: tuple[str, ...] = ()


def compare(
    statement: ProviderStatement, ledger: LedgerSide, *, complete_until: datetime, tolerance: Decimal
) -> Comparison:
    """Compare.

    Args:
        statement: Theirs.
        ledger: Ours, in the statement's grain.
        complete_until: The statement's watermark, or what is assumed where it has none.
        tolerance: US dollars per bucket up to which a small relative difference counts as rounding.
    """
    theirs = _their_sides(statement)
    names = [{bucket.model for bucket in sides} for sides in (ledger.sides, theirs)]
    rename = align_models(*names)
    ours, theirs = _renamed(ledger.sides, rename), _renamed(theirs, rename)
    quantum = _quantum(statement) if statement.quantum is None else statement.quantum
    counted = any(side.tokens for side in theirs.values())
    billed = any(side.cost is not None for side in theirs.values())
    # Counts that are all missing, beside costs, are no counts of nothing: the costs alone are compared.
    has_usage = statement.usage is not None and (counted or not billed)
    rules = Rules(has_usage, complete_until, tolerance, quantum)
    found = [
        discrepancy
        for bucket in sorted({*ours, *theirs}, key=_order)
        if (discrepancy := judge(bucket, ours.get(bucket, Side()), theirs.get(bucket, Side()), statement, rules))
    ]
    notes: list[str] = []
    found = _with_timing(found)
    if not counted and not billed:
        found = [_now(one, "empty") if one.cause in POSTABLE else one for one in found]
    elif statement.costs is not None and not billed:
        notes.append("The statement has no costs at all: only tokens were compared, and nothing is proposed.")
        found = [_without_costs(one) for one in found]
    elif statement.usage is not None and not counted:
        notes.append("The statement counts no tokens at all: only costs were compared.")
    moved = [
        (quarter, bucket._replace(model=rename(bucket.model)), *sums)
        for (quarter, bucket), sums in ledger.quarters.items()
    ]
    if shifted := sorted(statement.begins - {time()}):
        begins = ", ".join(f"{each:%H:%M}" for each in shifted)
        notes.append(f"The statement's days begin at {begins} UTC: have it cut in UTC, then compare again.")
        found = [_now(one, "zone") if one.cause in POSTABLE | {"timing"} else one for one in found]
    elif (offset := _zone_offset(statement.period, moved, theirs, found, rules)) is not None:
        notes.append(f"The statement's days begin at {_clock(offset)}: have it cut in UTC, then compare again.")
        found = [_now(one, "zone") if one.cause in POSTABLE | {"timing"} else one for one in found]
    else:
        found = _with_names(_with_repeats(_with_reach(found, statement), statement, rename), ours, theirs, rules)
    return Comparison(ours, theirs, tuple(sorted((*found, *_no_traffic(statement)), key=_place)), tuple(notes))


def _place(one: Discrepancy) -> tuple[object, ...]:
    return *_order(one.bucket), one.cause


def _no_traffic(statement: ProviderStatement) -> Iterator[Discrepancy]:
    """Credits, refunds, tax and fees: each is its own cause, by day and item."""
    sums: dict[tuple[date, Cause, str], Decimal] = {}
    for cost in statement.costs or ():
        if (cause := NO_TRAFFIC.get(cost.kind)) and cost.amount:
            key = cost.bucket.day, cause, cost.item
            sums[key] = EXACT.add(sums.get(key, ZERO), cost.amount)
    for (day, cause, item), amount in sums.items():
        detail = f"{CAUSES[cause]}; {item}" if item else CAUSES[cause]
        yield Discrepancy(bucket=Bucket(day), cause=cause, amount=amount, theirs_cost=amount, detail=detail)


def _now(one: Discrepancy, cause: Cause) -> Discrepancy:
    return replace(one, cause=cause, detail=CAUSES[cause])


def _without_costs(one: Discrepancy) -> Discrepancy:
    """A difference from a statement without any cost: that all this was for nothing is not what it says."""
    if one.cause not in POSTABLE:
        return one
    return replace(one, amount=None) if one.tokens else _now(one, "empty")


def _with_reach(found: Sequence[Discrepancy], statement: ProviderStatement) -> list[Discrepancy]:
    """Days before a statement's first row, or after its last: of several it says nothing, rather than that they cost 0.

    A single such day is one that the provider had nothing to say of, as within the statement. Where it is silent of
    several, it may have been cut off amid the day next to them, and what that day has less is no difference, either.
    """
    if statement.reach is None:
        return list(found)
    first, last = statement.reach
    silent = {one.bucket.day for one in found if one.cause in _SILENT and not one.theirs_cost}
    beyond = [{day for day in silent if day < first}, {day for day in silent if day > last}]
    untold = {day for days in beyond if len(days) >= _FEWEST for day in days}
    edges = {edge for edge, days in zip((first, last), beyond, strict=True) if len(days) >= _FEWEST}
    return [
        _now(one, "partial")
        if (one.cause in _SILENT and not one.theirs_cost and one.bucket.day in untold)
        or (one.cause in POSTABLE and one.bucket.day in edges and _has_less(one))
        else one
        for one in found
    ]


def _has_less(one: Discrepancy) -> bool:
    """Whether the statement has less of everything that differs."""
    return all(count <= 0 for count in one.tokens.values()) and (one.amount is None or one.amount <= 0)


def _with_repeats(
    found: Sequence[Discrepancy], statement: ProviderStatement, rename: Callable[[str | None], str | None]
) -> list[Discrepancy]:
    """Where all that differs stands in the statement twice, it is the statement that may be wrong."""
    again = replace(
        statement,
        usage=tuple(line for line in statement.usage or () if line.again),
        costs=tuple(line for line in statement.costs or () if line.again),
    )
    twice = _renamed(_their_sides(again), rename)
    return [
        _now(one, "repeated")
        if one.cause in POSTABLE and (side := twice.get(one.bucket)) is not None and _explains(side, one)
        else one
        for one in found
    ]


def _explains(side: Side, one: Discrepancy) -> bool:
    tokens = {name: count for name, count in side.tokens.items() if count}
    off = EXACT.subtract(one.amount or ZERO, side.cost or ZERO)
    return dict(one.tokens) == tokens and magnitude(off) <= NOISE


def _with_names(
    found: Sequence[Discrepancy], ours: Mapping[Bucket, Side], theirs: Mapping[Bucket, Side], rules: Rules
) -> list[Discrepancy]:
    """Traffic that the other side has under another name is no reason to adjust anything."""
    strangers = any(_are_strangers(name, ours, theirs) for name in _NAMED)
    only_theirs = [one for one in found if one.cause == "unrecorded" and not one.ours_tokens and not one.ours_cost]
    only_ours = [one for one in found if one.cause in {"unbilled", "estimated"}]
    only_ours = [one for one in only_ours if not one.theirs_tokens and not one.theirs_cost]
    pairs: set[Bucket] = set()
    unnamed = _Unnamed(only_ours, rules)
    for one in only_theirs:
        other = unnamed.take(one, theirs[one.bucket].lines)
        if other is not None:
            pairs |= {one.bucket, other.bucket}
    return [
        _now(one, "names") if one.cause in POSTABLE and (strangers or one.bucket in pairs) else one for one in found
    ]


def _are_strangers(name: str, ours: Mapping[Bucket, Side], theirs: Mapping[Bucket, Side]) -> bool:
    """Whether the sides have no name of a kind in common; that the ledger knows no key or project is a name, too."""
    mine, its = (
        {getattr(one, name) for one, side in sides.items() if side.tokens or side.cost} for sides in (ours, theirs)
    )
    return bool(mine and its) and not mine & its and None not in (mine | its if name == "model" else its)


class _Unnamed:
    """What the ledger alone has, to be found by who has the same under one other name; each is found once."""

    def __init__(self, found: Sequence[Discrepancy], rules: Rules) -> None:
        self._found, self._rules = found, rules
        self._places: dict[tuple[object, ...], list[tuple[Decimal, int]]] = {}
        for number, one in enumerate(found):
            for place in self._but_one_name(one.bucket, one.tokens):
                self._places.setdefault(place, []).append((self._amount(one), number))
        for some in self._places.values():
            some.sort()

    def take(self, one: Discrepancy, lines: int) -> Discrepancy | None:
        """The first that is `one` with the other sign: in tokens, else in what its `lines` may be off by rounding."""
        amount, room = negate(self._amount(one)), ZERO
        if not self._rules.has_usage:
            room = max(multiply(self._rules.quantum, lines, _HALF), NOISE)
        least, most = (EXACT.subtract(amount, room), -1), (EXACT.add(amount, room), len(self._found))
        numbers = [
            number
            for place in self._but_one_name(one.bucket, {name: -count for name, count in one.tokens.items()})
            for some in (self._places.get(place, []),)
            for _, number in some[bisect_left(some, least) : bisect_right(some, most)]
        ]
        if not numbers:
            return None
        taken = self._found[min(numbers)]
        for place in self._but_one_name(taken.bucket, taken.tokens):
            self._places[place].remove((self._amount(taken), min(numbers)))
        return taken

    def _amount(self, one: Discrepancy) -> Decimal:
        return ZERO if self._rules.has_usage else one.amount or ZERO

    def _but_one_name(self, bucket: Bucket, tokens: Mapping[str, int]) -> Iterator[tuple[object, ...]]:
        """The bucket without each of its names in turn, and the tokens where they tell."""
        counts = frozenset(tokens.items()) if self._rules.has_usage else None
        for place in range(1, len(bucket)):
            yield place, bucket[:place], bucket[place + 1 :], counts


def _zone_offset(
    period: Period,
    quarters: Sequence[tuple[int, Bucket, int, Decimal]],
    theirs: Mapping[Bucket, Side],
    found: Iterable[Discrepancy],
    rules: Rules,
) -> timedelta | None:
    """How far from UTC the statement's days begin, if that explains what differs; None if not.

    The first and the last day are left out: what moves over the period's ends cannot be seen.
    """
    first, last = (_number(moment.date()) for moment in (period.start, period.end - _DAY))
    inner: dict[Bucket, dict[int, Side]] = {}
    for bucket, side in theirs.items():
        if first < (day := _number(bucket.day)) < last:
            inner.setdefault(bucket._replace(day=_EPOCH_DAY), {})[day] = side
    differing = [one for one in found if one.cause in POSTABLE | {"timing"} and first < _number(one.bucket.day) < last]
    if len(differing) < _FEWEST or sum(map(len, inner.values())) < _FEWEST:
        return None
    # By who it is of: a start of days that is not theirs shows with the first of them, however many there are.
    groups: dict[Bucket, list[tuple[int, int, Decimal]]] = {group: [] for group in inner}
    for quarter, bucket, tokens, cost in quarters:
        groups.setdefault(bucket._replace(day=_EPOCH_DAY), []).append((quarter, tokens, cost))
    for steps in sorted(range(-_DAY_QUARTERS, _DAY_QUARTERS + 1), key=lambda count: (count % 4 != 0, abs(count))):
        if steps and all(
            _is_cut_at(steps, some, inner.get(group, {}), range(first + 1, last), rules)
            for group, some in groups.items()
        ):
            return timedelta(seconds=steps * QUARTER)
    return None


def _number(day: date) -> int:
    return (day - _EPOCH_DAY).days


def _is_cut_at(
    steps: int, quarters: Iterable[tuple[int, int, Decimal]], theirs: Mapping[int, Side], seen: range, rules: Rules
) -> bool:
    """Whether days that begin so many quarters earlier have of one account what the statement's days have."""
    days: dict[int, tuple[int, Decimal]] = {}
    for quarter, tokens, cost in quarters:
        day = (quarter + steps) // _DAY_QUARTERS
        if day in seen:
            known = days.get(day, (0, ZERO))
            days[day] = known[0] + tokens, EXACT.add(known[1], cost)
    return days.keys() == theirs.keys() and all(_agrees(days[day], side, rules) for day, side in theirs.items())


def _agrees(ours: tuple[int, Decimal], theirs: Side, rules: Rules) -> bool:
    if rules.has_usage and ours[0] != sum(theirs.tokens.values()):
        return False
    if theirs.cost is None:
        return rules.has_usage
    steps = EXACT.multiply(rules.quantum, Decimal(theirs.lines))
    return magnitude(EXACT.subtract(ours[1], theirs.cost)) <= max(EXACT.multiply(steps, _HALF), NOISE)


def _clock(offset: timedelta) -> str:
    minutes = int(offset.total_seconds()) // 60
    return f"UTC{'+' if minutes >= 0 else '-'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _order(bucket: Bucket) -> tuple[object, ...]:
    return bucket.day, *((name is None, name or "") for name in bucket[1:])


def _their_sides(statement: ProviderStatement) -> dict[Bucket, Side]:
    sides: dict[Bucket, Side] = {}
    for line in statement.usage or ():
        side = sides.setdefault(line.bucket, Side())
        side.count(line.tokens)
        if line.requests is not None:
            side.requests = (side.requests or 0) + line.requests
    for cost in statement.costs or ():
        if cost.kind == "usage":
            sides.setdefault(cost.bucket, Side()).bill(cost.amount)
    return sides


def _renamed(sides: Mapping[Bucket, Side], rename: Callable[[str | None], str | None]) -> dict[Bucket, Side]:
    result: dict[Bucket, Side] = {}
    for bucket, side in sides.items():
        name = bucket._replace(model=rename(bucket.model))
        known = result.get(name)
        result[name] = side if known is None else _joined(known, side)
    return result


def _joined(one: Side, other: Side) -> Side:
    result = replace(one, tokens=dict(one.tokens), waived=dict(one.waived))
    result.count(other.tokens)
    for name, count in other.waived.items():
        result.waived[name] = result.waived.get(name, 0) + count
    if other.requests is not None:
        result.requests = (one.requests or 0) + other.requests
    if other.cost is not None:
        result.cost = EXACT.add(one.cost or ZERO, other.cost)
    result.lines += other.lines
    result.unpriced += other.unpriced
    result.estimated += other.estimated
    result.adjustments += other.adjustments
    return result


def _quantum(statement: ProviderStatement) -> Decimal:
    """The finest decimal any of the statement's amounts is written with."""
    exponents = [cost.amount.as_tuple().exponent for cost in statement.costs or () if cost.amount]
    finest = min((exponent for exponent in exponents if isinstance(exponent, int)), default=-12)
    return ONE.scaleb(min(finest, 0), context=EXACT)


def _with_timing(found: Iterable[Discrepancy]) -> list[Discrepancy]:
    """Differences that the neighbouring day takes back are a matter of the day they were counted on."""
    result = list(found)
    waiting: dict[tuple[object, ...], int] = {}
    for index, one in enumerate(result):
        if not one.tokens or one.cause not in {"unrecorded", "unbilled", "estimated"}:
            continue
        day, *names = one.bucket
        before = waiting.get((day - _DAY, *names))
        if before is not None and result[before].tokens == {name: -count for name, count in one.tokens.items()}:
            for each in (before, index):
                result[each] = replace(result[each], cause="timing", detail=CAUSES["timing"])
        else:
            waiting[one.bucket] = index
    return result
