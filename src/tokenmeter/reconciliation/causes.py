"""Why two books differ: the causes, what each allows, and one difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from tokenmeter.money import quantize
from tokenmeter.reconciliation.statement import Bucket

Cause = Literal[
    "unrecorded",
    "unbilled",
    "estimated",
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
    "empty": "the statement has nothing at all: another organization, project or month, or a report not filled yet",
    "partial": "the statement has no rows for so early or so late a day: cut off, or made before the period ended",
    "repeated": "what differs is exactly the rows that stand in the statement twice, word for word",
    "names": "the same traffic under another name of model, key or project",
    "unrecorded": "the provider counted traffic that did not pass tokenmeter",
    "price": "the same tokens, at another price",
    "unpriced": "the ledger does not know the price",
    "unbilled": "the ledger has what the provider did not count: aborted or failed calls",
    "estimated": "the ledger estimated usage that the provider counted",
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
    {"rounding", "late", "timing", "requests", "refused", "credit", "refund", "tax", "fee"}
)


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
        }
