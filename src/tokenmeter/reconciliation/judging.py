"""One bucket: whether the two sides differ, by how much, and why most likely. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from tokenmeter.display import counted
from tokenmeter.money import EXACT, ONE, ZERO, magnitude, multiply, negate, round_to
from tokenmeter.reconciliation.causes import CAUSES, Cause, Discrepancy
from tokenmeter.reconciliation.statement import Bucket, ProviderStatement, Side

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIT_RATIOS = (Decimal(98), Decimal(102))
#: Below this share of the amount a small difference is rounding, not another price.
_SHARE = Decimal("0.005")
#: What sums of picodollars and of a provider's binary fractions may be off.
NOISE = Decimal("1E-9")
_HALF = Decimal("0.5")
_DAY = timedelta(days=1)


class Rules(NamedTuple):
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


def judge(bucket: Bucket, ours: Side, theirs: Side, statement: ProviderStatement, rules: Rules) -> Discrepancy | None:
    """The difference of the two sides and its likeliest cause; None where they agree."""
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


def _late(bucket: Bucket, tokens: Mapping[str, int], amount: Decimal | None, rules: Rules) -> Verdict | None:
    """A bucket that ends after the watermark and is behind ours will still grow."""
    end = datetime.combine(bucket.day, time(), UTC) + _DAY
    if end <= rules.complete_until:
        return None
    behind = any(count < 0 for count in tokens.values()) if tokens else amount is not None and amount < negate(NOISE)
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


def _by_money(amount: Decimal | None, ours: Side, theirs: Side, rules: Rules) -> Verdict | None:
    if amount is None or magnitude(amount) <= NOISE:
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
