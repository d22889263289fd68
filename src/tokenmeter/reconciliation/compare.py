"""Comparing the two books bucket by bucket, and saying why they differ. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import NamedTuple

from tokenmeter.money import EXACT, ONE, ZERO
from tokenmeter.reconciliation.books import Side, align_models
from tokenmeter.reconciliation.discrepancy import CAUSES, Cause, Discrepancy
from tokenmeter.reconciliation.statement import Bucket, ProviderStatement

__all__ = ["Comparison", "compare"]

_UNIT_RATIOS = (Decimal(98), Decimal(102))
#: Below this share of the amount a small difference is rounding, not another price.
_SHARE = Decimal("0.005")
#: What sums of picodollars and of a provider's binary fractions may be off.
_NOISE = Decimal("1E-9")
_HALF = Decimal("0.5")
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides of every bucket, and their discrepancies, in order of day and name."""

    ours: Mapping[Bucket, Side]
    theirs: Mapping[Bucket, Side]
    discrepancies: tuple[Discrepancy, ...]


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
    statement: ProviderStatement, ledger: Mapping[Bucket, Side], *, complete_until: datetime, tolerance: Decimal
) -> Comparison:
    """Compare.

    Args:
        statement: Theirs.
        ledger: Ours, in the statement's grain.
        complete_until: The statement's watermark, or what is assumed where it has none.
        tolerance: US dollars per bucket up to which a small relative difference counts as rounding.
    """
    theirs = _their_sides(statement)
    names = [{bucket.model for bucket in sides} for sides in (ledger, theirs)]
    rename = align_models(*names)
    ours, theirs = _renamed(ledger, rename), _renamed(theirs, rename)
    rules = _Rules(statement.usage is not None, complete_until, tolerance, _quantum(statement))
    found = [
        discrepancy
        for bucket in sorted({*ours, *theirs}, key=_order)
        if (discrepancy := _judge(bucket, ours.get(bucket, Side()), theirs.get(bucket, Side()), statement, rules))
    ]
    return Comparison(ours, theirs, tuple(_with_timing(found)))


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
    result.adjusted += other.adjusted
    return result


def _quantum(statement: ProviderStatement) -> Decimal:
    """The finest decimal any of the statement's amounts uses."""
    exponents = [cost.amount.normalize().as_tuple().exponent for cost in statement.costs or () if cost.amount]
    finest = min((exponent for exponent in exponents if isinstance(exponent, int)), default=-12)
    return ONE.scaleb(min(finest, 0))


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
        verdict = "requests", f"{theirs.requests} against {ours.requests or 0} requests"
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
    behind = any(count < 0 for count in tokens.values()) if tokens else amount is not None and amount < -_NOISE
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
        return "estimated", f"{ours.estimated} calls are estimated{settled}"
    return "unbilled", f"{-net} of our {ours.total_tokens} tokens{settled}"


def _by_money(amount: Decimal | None, ours: Side, theirs: Side, rules: _Rules) -> Verdict | None:
    if amount is None or abs(amount) <= _NOISE:
        return None
    mine, its = ours.cost or ZERO, theirs.cost or ZERO
    ratio = EXACT.divide(its, mine) if mine else ZERO
    if _is_hundredfold(ratio):
        return "unit", f"theirs is {ratio:.4f} times ours"
    if abs(amount) <= rules.quantum * _HALF * max(1, theirs.lines):
        return "rounding", f"{theirs.lines} amounts in steps of ${rules.quantum:f}"
    if ours.unpriced:
        return "unpriced", f"{ours.unpriced} of our charges"
    if abs(amount) <= min(rules.tolerance, abs(its) * _SHARE):
        return "rounding", "within the tolerance"
    return _one_sided(mine, its) or ("price", f"theirs is {ratio:.4f} times ours")


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
