"""Comparing the two books bucket by bucket, and saying why they differ. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from tokenmeter.display import counted
from tokenmeter.money import EXACT, ONE, ZERO, magnitude, multiply, negate, round_to
from tokenmeter.reconciliation.result import CAUSES, POSTABLE, Cause, Discrepancy
from tokenmeter.reconciliation.statement import (
    QUARTER,
    Bucket,
    CostKind,
    LedgerSide,
    ProviderStatement,
    Side,
    align_models,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tokenmeter.periods import Period

_UNIT_RATIOS = (Decimal(98), Decimal(102))
#: Below this share of the amount a small difference is rounding, not another price.
_SHARE = Decimal("0.005")
#: What sums of picodollars and of a provider's binary fractions may be off.
_NOISE = Decimal("1E-9")
_HALF = Decimal("0.5")
_DAY = timedelta(days=1)
_NO_TRAFFIC: Mapping[CostKind, Cause] = {"credit": "credit", "refund": "refund", "tax": "tax", "fee": "fee"}
_DAY_QUARTERS = 86_400 // QUARTER
_EPOCH_DAY = date(1970, 1, 1)
#: So many days must differ, and agree once moved, before a statement is taken to be cut in another zone.
_FEWEST = 2
#: What each side may have names of its own for; a tier is not among them, it has a price.
_NAMED = ("model", "api_key", "project")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides of every bucket, and their discrepancies, in order of day and name."""

    ours: Mapping[Bucket, Side]
    theirs: Mapping[Bucket, Side]
    discrepancies: tuple[Discrepancy, ...]
    notes: tuple[str, ...] = ()


class _Rules(NamedTuple):
    """What the causes are judged by.

    Attributes:
        has_usage: Whether the statement counts tokens.
        complete_until: What ends later may still grow.
        tolerance: US dollars per bucket.
        quantum: The finest unit of the statement's amounts.
    """

    has_usage: bool
    complete_until: datetime
    tolerance: Decimal
    quantum: Decimal


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
    rules = _Rules(has_usage, complete_until, tolerance, quantum)
    found = [
        discrepancy
        for bucket in sorted({*ours, *theirs}, key=_order)
        if (discrepancy := _judge(bucket, ours.get(bucket, Side()), theirs.get(bucket, Side()), statement, rules))
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
        found = _with_names(found, ours, theirs, rules)
    return Comparison(ours, theirs, tuple(sorted((*found, *_no_traffic(statement)), key=_place)), tuple(notes))


def _place(one: Discrepancy) -> tuple[object, ...]:
    return *_order(one.bucket), one.cause


def _no_traffic(statement: ProviderStatement) -> Iterator[Discrepancy]:
    """Credits, refunds, tax and fees: each is its own cause, by day and item."""
    sums: dict[tuple[date, Cause, str], Decimal] = {}
    for cost in statement.costs or ():
        if (cause := _NO_TRAFFIC.get(cost.kind)) and cost.amount:
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


def _with_names(
    found: Sequence[Discrepancy], ours: Mapping[Bucket, Side], theirs: Mapping[Bucket, Side], rules: _Rules
) -> list[Discrepancy]:
    """Traffic that the other side has under another name is no reason to adjust anything."""
    strangers = any(_are_strangers(name, ours, theirs) for name in _NAMED)
    only_theirs = [one for one in found if one.cause == "unrecorded" and not one.ours_tokens and not one.ours_cost]
    only_ours = [one for one in found if one.cause in {"unbilled", "estimated"}]
    only_ours = [one for one in only_ours if not one.theirs_tokens and not one.theirs_cost]
    pairs: set[Bucket] = set()
    for one in only_theirs:
        for other in only_ours:
            apart = sum(name != known for name, known in zip(one.bucket, other.bucket, strict=True))
            if (
                one.bucket.day == other.bucket.day
                and apart == 1
                and other.bucket not in pairs
                and _mirrors(one, other, theirs[one.bucket].lines, rules)
            ):
                pairs |= {one.bucket, other.bucket}
                break
    return [
        _now(one, "names") if one.cause in POSTABLE and (strangers or one.bucket in pairs) else one for one in found
    ]


def _are_strangers(name: str, ours: Mapping[Bucket, Side], theirs: Mapping[Bucket, Side]) -> bool:
    """Whether the sides have no name of a kind in common; that the ledger knows no key or project is a name, too."""
    mine, its = (
        {getattr(one, name) for one, side in sides.items() if side.tokens or side.cost} for sides in (ours, theirs)
    )
    return bool(mine and its) and not mine & its and None not in (mine | its if name == "model" else its)


def _mirrors(one: Discrepancy, other: Discrepancy, lines: int, rules: _Rules) -> bool:
    if rules.has_usage:
        return {name: -count for name, count in one.tokens.items()} == dict(other.tokens)
    off = magnitude(EXACT.add(one.amount or ZERO, other.amount or ZERO))
    return off <= max(multiply(rules.quantum, lines, _HALF), _NOISE)


def _zone_offset(
    period: Period,
    quarters: Sequence[tuple[int, Bucket, int, Decimal]],
    theirs: Mapping[Bucket, Side],
    found: Iterable[Discrepancy],
    rules: _Rules,
) -> timedelta | None:
    """How far from UTC the statement's days begin, if that explains what differs; None if not.

    The first and the last day are left out: what moves over the period's ends cannot be seen.
    """
    first, last = period.start.date(), (period.end - _DAY).date()
    inner = {bucket: side for bucket, side in theirs.items() if first < bucket.day < last}
    differing = [one for one in found if one.cause in POSTABLE | {"timing"} and first < one.bucket.day < last]
    if len(differing) < _FEWEST or len(inner) < _FEWEST:
        return None
    for steps in sorted(range(-_DAY_QUARTERS, _DAY_QUARTERS + 1), key=lambda count: (count % 4 != 0, abs(count))):
        if not steps:
            continue
        days: dict[Bucket, tuple[int, Decimal]] = {}
        for quarter, bucket, tokens, cost in quarters:
            day = _EPOCH_DAY + timedelta(days=(quarter + steps) // _DAY_QUARTERS)
            if first < day < last:
                known = days.get(bucket._replace(day=day), (0, ZERO))
                days[bucket._replace(day=day)] = known[0] + tokens, EXACT.add(known[1], cost)
        if days.keys() == inner.keys() and all(_agrees(days[bucket], side, rules) for bucket, side in inner.items()):
            return timedelta(seconds=steps * QUARTER)
    return None


def _agrees(ours: tuple[int, Decimal], theirs: Side, rules: _Rules) -> bool:
    if rules.has_usage and ours[0] != sum(theirs.tokens.values()):
        return False
    if theirs.cost is None:
        return rules.has_usage
    steps = EXACT.multiply(rules.quantum, Decimal(theirs.lines))
    return magnitude(EXACT.subtract(ours[1], theirs.cost)) <= max(EXACT.multiply(steps, _HALF), _NOISE)


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
    result.adjusted = EXACT.add(result.adjusted, other.adjusted)
    return result


def _quantum(statement: ProviderStatement) -> Decimal:
    """The finest decimal any of the statement's amounts is written with."""
    exponents = [cost.amount.as_tuple().exponent for cost in statement.costs or () if cost.amount]
    finest = min((exponent for exponent in exponents if isinstance(exponent, int)), default=-12)
    return ONE.scaleb(min(finest, 0), context=EXACT)


def _judge(bucket: Bucket, ours: Side, theirs: Side, statement: ProviderStatement, rules: _Rules) -> Discrepancy | None:
    tokens: dict[str, int] = {}
    if rules.has_usage:
        differences = {name: theirs.tokens.get(name, 0) - ours.tokens.get(name, 0) for name in statement.classes}
        tokens = {name: count for name, count in differences.items() if count}
    amount = None
    if statement.costs is not None:
        amount = EXACT.subtract(theirs.cost or ZERO, ours.cost or ZERO)
    told = theirs.requests is not None
    requests = (theirs.requests or 0) - (ours.requests or 0) if told else None
    verdict = _late(bucket, tokens, amount, rules) or (
        _by_tokens(tokens, amount, ours, theirs) if tokens else _by_money(amount, ours, theirs, rules)
    )
    if verdict is None and requests:
        verdict = "requests", f"{theirs.requests} against {counted(ours.requests or 0, 'request')}"
    if verdict is None:
        return None
    cause, detail = verdict
    return Discrepancy(
        bucket=bucket,
        cause=cause,
        amount=amount,
        tokens=tokens,
        ours_tokens=ours.total_tokens,
        theirs_tokens=theirs.total_tokens,
        ours_cost=ours.cost,
        theirs_cost=theirs.cost,
        requests=requests,
        detail=f"{CAUSES[cause]}{f'; {detail}' if detail else ''}",
    )


Verdict = tuple[Cause, str]


def _late(bucket: Bucket, tokens: Mapping[str, int], amount: Decimal | None, rules: _Rules) -> Verdict | None:
    """A bucket that ends after the watermark and is behind ours will still grow."""
    end = datetime.combine(bucket.day, time(), UTC) + _DAY
    if end <= rules.complete_until:
        return None
    behind = any(count < 0 for count in tokens.values()) if tokens else amount is not None and amount < negate(_NOISE)
    ahead = any(count > 0 for count in tokens.values())
    return ("late", f"complete until {rules.complete_until:%Y-%m-%d %H:%M} UTC") if behind and not ahead else None


def _by_tokens(tokens: Mapping[str, int], amount: Decimal | None, ours: Side, theirs: Side) -> Verdict:
    if tokens == {name: count for name, count in ours.waived.items() if count}:
        return "refused", ""
    cached = ours.tokens.get("cache_read", 0) + ours.tokens.get("cache_write", 0)
    if cached and dict(tokens) in ({"input": cached}, {"input": -cached}):
        whose = "their" if tokens["input"] > 0 else "the ledger's"
        return "cache_convention", f"{whose} input exceeds by exactly the {cached} cached tokens"
    settled = "; adjustments have settled the cost" if ours.adjusted and amount is not None and not amount else ""
    net = sum(count for name, count in tokens.items() if name != "web_searches") or sum(tokens.values())
    if net > 0:
        return "unrecorded", f"{net} of {theirs.total_tokens} tokens{settled}"
    if ours.estimated:
        return "estimated", f"{counted(ours.estimated, 'call is', 'calls are')} estimated{settled}"
    return "unbilled", f"{-net} of our {ours.total_tokens} tokens{settled}"


def _by_money(amount: Decimal | None, ours: Side, theirs: Side, rules: _Rules) -> Verdict | None:
    if amount is None or magnitude(amount) <= _NOISE:
        return None
    mine, its = ours.cost or ZERO, theirs.cost or ZERO
    ratio = EXACT.divide(its, mine) if mine else ZERO
    if _is_hundredfold(ratio):
        return "unit", f"theirs is {round_to(ratio, 4):f} times ours"
    both = ours.cost is not None and theirs.cost is not None
    if both and magnitude(amount) <= multiply(rules.quantum, _HALF, max(1, theirs.lines)):
        return "rounding", f"{theirs.lines} amounts in steps of ${rules.quantum:f}"
    if ours.unpriced:
        return "unpriced", f"{ours.unpriced} of our charges"
    if both and magnitude(amount) <= min(rules.tolerance, multiply(magnitude(its), _SHARE)):
        return "rounding", "within the tolerance"
    return _one_sided(mine, its) or ("price", f"theirs is {round_to(ratio, 4):f} times ours")


def _one_sided(mine: Decimal, its: Decimal) -> Verdict | None:
    if not mine:
        return "unrecorded", "a cost without tokens"
    return None if its else ("unbilled", "no cost on their side")


def _is_hundredfold(ratio: Decimal) -> bool:
    least, most = _UNIT_RATIOS
    return ratio > 0 and (least <= ratio <= most or least <= EXACT.divide(ONE, ratio) <= most)


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
