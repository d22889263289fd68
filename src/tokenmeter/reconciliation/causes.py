"""Why two books differ: the causes, what each allows, one difference, and how a bucket's is judged. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from tokenmeter.display import counted
from tokenmeter.money import EXACT, ONE, ZERO, magnitude, multiply, negate, quantize, round_to
from tokenmeter.reconciliation.statement import Bucket, CostKind, ProviderStatement, Side
from tokenmeter.values import dataclass

Cause = Literal[
    "unrecorded",
    "unbilled",
    "estimated",
    "adjusted",
    "refused",
    "price",
    "unpriced",
    "unit",
    "cache_convention",
    "names",
    "zone",
    "empty",
    "partial",
    "repeated",
    "credit",
    "refund",
    "tax",
    "fee",
    "late",
    "timing",
    "requests",
    "rounding",
]
#: What each cause means, most serious first.
CAUSES: Mapping[Cause, str] = {
    "unit": "amounts a hundredfold apart: cents were taken for dollars, or the other way round",
    "cache_convention": "cached tokens were counted in the input as well: one side's input includes them",
    "zone": "the statement's days are cut in another time zone",
    "empty": (
        "the statement has nothing at all, or no costs at all: another organization, project or month, or a report not "
        "filled yet"
    ),
    "partial": "the statement has no rows for so early or so late a day: cut off, or made before the period ended",
    "repeated": "what differs is exactly the rows that stand in the statement twice, word for word",
    "names": "the same traffic under another name of model, key or project",
    "unrecorded": "the provider counted traffic that did not pass tokenmeter",
    "price": "the same tokens, at another price",
    "unpriced": "the ledger does not know the price",
    "unbilled": "the ledger has what the provider did not count: aborted or failed calls",
    "estimated": "the ledger estimated usage that the provider counted",
    "adjusted": "the provider counted other tokens, and adjustments in the ledger have settled what they cost",
    "refused": "the usage report counts refused answers, which are not billed",
    "credit": "a credit or grant: no traffic, so nothing a ledger of calls could have",
    "refund": "money given back: no traffic",
    "tax": "tax on the provider's bill: no traffic",
    "fee": "a fee, seats, support or rounding on the provider's bill: no traffic",
    "late": "the provider's report is not complete yet",
    "timing": "the same traffic on the neighbouring day: calls around midnight UTC",
    "requests": "the same tokens in another number of requests",
    "rounding": "the provider rounds its amounts",
}
#: Causes for which an adjustment can be proposed; the others are no money, or will pass.
POSTABLE: frozenset[Cause] = frozenset({"unrecorded", "price", "unpriced", "unbilled", "estimated"})
#: Causes that need nobody's attention: explained, or no money.
HARMLESS: frozenset[Cause] = frozenset(
    {"rounding", "late", "timing", "requests", "refused", "adjusted", "credit", "refund", "tax", "fee"}
)
#: What an amount that no traffic has is for -> its cause.
NO_TRAFFIC: Mapping[CostKind, Cause] = {"credit": "credit", "refund": "refund", "tax": "tax", "fee": "fee"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """One difference.

    Attributes:
        bucket: Where: UTC day, and what the statement is split by.
        cause: Why, most likely; see `CAUSES`.
        amount: Theirs less ours, US dollars; None when there is no cost to compare.
        tokens: Class -> theirs less ours; empty when they agree.
        ours_tokens: Ours, all classes together.
        theirs_tokens: Theirs.
        ours_cost: Ours, after negotiated discounts and before the platform multiplier.
        theirs_cost: Theirs.
        requests: Theirs less ours; None when theirs are not told.
        detail: The cause in words, with what is special here.
        adjustments: How many adjustments ours had in it already.
    """

    bucket: Bucket
    cause: Cause
    amount: Decimal | None
    tokens: Mapping[str, int] = field(default_factory=dict[str, int])
    ours_tokens: int = 0
    theirs_tokens: int = 0
    ours_cost: Decimal | None = None
    theirs_cost: Decimal | None = None
    requests: int | None = None
    detail: str = ""
    adjustments: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; decimals are text."""
        money = {name: getattr(self, name) for name in ("amount", "ours_cost", "theirs_cost")}
        return {
            "day": self.bucket.day.isoformat(),
            "model": self.bucket.model,
            "api_key": self.bucket.api_key,
            "project": self.bucket.project,
            "service_tier": self.bucket.service_tier,
            "cause": self.cause,
            **{name: None if value is None else f"{quantize(value):f}" for name, value in money.items()},
            "tokens": dict(self.tokens),
            "ours_tokens": self.ours_tokens,
            "theirs_tokens": self.theirs_tokens,
            "requests": self.requests,
            "detail": self.detail,
            "adjustments": self.adjustments,
        }


_UNIT_RATIOS = (Decimal(98), Decimal(102))
#: Below this share of the amount a small difference is rounding, not another price.
_SHARE = Decimal("0.005")
#: What sums of picodollars and of a provider's binary fractions may be off.
NOISE = Decimal("1E-9")
#: So many adjustments of a bucket are named.
_NAMED_ADJUSTMENTS = 8
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
        _by_tokens(tokens, amount, ours, theirs, rules) if tokens else _by_money(amount, ours, theirs, rules)
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
        adjustments=len(ours.adjustments),
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


def _by_tokens(tokens: Mapping[str, int], amount: Decimal | None, ours: Side, theirs: Side, rules: Rules) -> Verdict:
    if tokens == {name: count for name, count in ours.waived.items() if count}:
        return "refused", ""
    cached = ours.tokens.get("cache_read", 0) + ours.tokens.get("cache_write", 0)
    if cached and dict(tokens) in ({"input": cached}, {"input": -cached}):
        whose = "their" if tokens["input"] > 0 else "the ledger's"
        return "cache_convention", f"{whose} input exceeds by exactly the {cached} cached tokens"
    paid = amount is not None and (magnitude(amount) <= NOISE or _rounding(amount, ours, theirs, rules) is not None)
    if ours.adjustments and paid:
        return "adjusted", "; ".join(ours.adjustments[:_NAMED_ADJUSTMENTS])
    net = sum(count for name, count in tokens.items() if name != "web_searches") or sum(tokens.values())
    if net > 0:
        return "unrecorded", f"{net} of {theirs.total_tokens} tokens"
    if ours.estimated:
        return "estimated", f"{counted(ours.estimated, 'call is', 'calls are')} estimated"
    return "unbilled", f"{-net} of our {ours.total_tokens} tokens"


def _by_money(amount: Decimal | None, ours: Side, theirs: Side, rules: Rules) -> Verdict | None:
    if amount is None or magnitude(amount) <= NOISE:
        return None
    mine, its = ours.cost or ZERO, theirs.cost or ZERO
    ratio = EXACT.divide(its, mine) if mine else ZERO
    if _is_hundredfold(ratio):
        return "unit", f"theirs is {round_to(ratio, 4):f} times ours"
    rounding = _rounding(amount, ours, theirs, rules)
    if ours.unpriced and (rounding is None or rounding == _TOLERATED):
        return "unpriced", f"{ours.unpriced} of our charges"
    if rounding is not None:
        return "rounding", rounding
    return _one_sided(mine, its) or ("price", f"theirs is {round_to(ratio, 4):f} times ours")


_TOLERATED = "within the tolerance"


def _rounding(amount: Decimal, ours: Side, theirs: Side, rules: Rules) -> str | None:
    """Why a difference is a matter of the provider's decimals; None where it is more."""
    if ours.cost is None or theirs.cost is None:
        return None
    if magnitude(amount) <= multiply(rules.quantum, _HALF, max(1, theirs.lines)):
        return f"{theirs.lines} amounts in steps of ${rules.quantum:f}"
    least = min(rules.tolerance, multiply(magnitude(theirs.cost), _SHARE))
    return _TOLERATED if magnitude(amount) <= least else None


def _one_sided(mine: Decimal, its: Decimal) -> Verdict | None:
    if not mine:
        return "unrecorded", "a cost without tokens"
    return None if its else ("unbilled", "no cost on their side")


def _is_hundredfold(ratio: Decimal) -> bool:
    least, most = _UNIT_RATIOS
    return ratio > 0 and (least <= ratio <= most or least <= EXACT.divide(ONE, ratio) <= most)
