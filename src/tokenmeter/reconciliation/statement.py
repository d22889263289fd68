"""What a provider says it served and billed, in neutral terms: disjoint tokens per class, and US dollars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS, INPUT_METERS, OUTPUT_METERS
from tokenmeter.errors import ReconciliationError
from tokenmeter.money import EXACT
from tokenmeter.periods import Period

#: Classes of tokens that both sides can tell apart; disjoint.
TOKEN_CLASSES = ("input", "cache_read", "cache_write", "output")
#: What a statement can be split by, besides the UTC day. A project is OpenAI's project or Anthropic's workspace.
GRAIN = ("model", "api_key", "project", "service_tier")
#: What an amount is for. Only ``usage`` is traffic that a ledger of calls could have.
CostKind = Literal["usage", "credit", "refund", "tax", "fee"]
_KINDS: tuple[tuple[CostKind, re.Pattern[str]], ...] = (
    ("tax", re.compile(r"\b(tax(es)?|vat|gst|hst|pst)\b", re.IGNORECASE)),
    ("refund", re.compile(r"\b(refund(s|ed)?|chargeback)\b", re.IGNORECASE)),
    ("credit", re.compile(r"\b(credits?|grants?|promo(tion(al)?)?|coupon|discount|adjustment)\b", re.IGNORECASE)),
    (
        "fee",
        re.compile(
            r"\b(fees?|surcharge|rounding|support( plan)?|seats?|subscription|minimum commitment|true-?up)\b",
            re.IGNORECASE,
        ),
    ),
)


class Bucket(NamedTuple):
    """Where amounts are compared; a name the comparison does not split by is None."""

    day: date
    model: str | None = None
    api_key: str | None = None
    project: str | None = None
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What the provider counted in a bucket: tokens per class (and ``web_searches``), and requests if it says."""

    bucket: Bucket
    tokens: Mapping[str, int]
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class CostLine:
    """What the provider billed in a bucket for one item, in US dollars as exactly as it says."""

    bucket: Bucket
    item: str
    amount: Decimal
    kind: CostKind = "usage"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderStatement:
    """A provider's own books over a period.

    Attributes:
        provider: ``openai``, ``anthropic``, ...
        period: What was asked for, in whole UTC days.
        source: Where it comes from, for people.
        grain: Names of `GRAIN` that every line tells.
        usage: Its usage lines; None when it has no such layer.
        costs: Its cost lines; None when it has no such layer.
        classes: What of `UsageLine.tokens` it counts at all.
        tokenless: Beginnings of endpoint names whose usage it does not count in tokens.
        quantum: The finest unit of its amounts, US dollars; None = as its amounts are written.
        watermark: Until when it is complete; None = it does not say.
        notes: What was odd about it: files given twice, rows that repeat.
    """

    provider: str
    period: Period
    source: str
    grain: tuple[str, ...] = ("model",)
    usage: tuple[UsageLine, ...] | None = None
    costs: tuple[CostLine, ...] | None = None
    classes: tuple[str, ...] = TOKEN_CLASSES
    tokenless: tuple[str, ...] = field(default=())
    quantum: Decimal | None = None
    watermark: datetime | None = None
    notes: tuple[str, ...] = ()


_CLASS = {
    **dict.fromkeys(INPUT_METERS, "input"),
    **dict.fromkeys(CACHE_READ_METERS, "cache_read"),
    **dict.fromkeys(CACHE_WRITE_METERS, "cache_write"),
    **dict.fromkeys(OUTPUT_METERS, "output"),
    "web_searches": "web_searches",
}


def class_of(sku_meter: str) -> str | None:
    """The class a meter is compared in; None for what no statement counts."""
    return _CLASS.get(sku_meter)


def kind_of_cost(item: str | None, amount: Decimal, *, model: str | None) -> CostKind:
    """What an amount is for, by its words: a line that names a model's tokens is usage, whatever its sign.

    Args:
        item: The line's text: line item, cost type, description.
        amount: The amount.
        model: The model it names, if any.
    """
    if model is None:
        for kind, words in _KINDS:
            if words.search((item or "").replace("_", " ")):
                return kind
        if amount < 0:
            return "credit"
    return "usage"


def in_dollars(amount: Decimal, currency: str | None, rates: Mapping[str, Decimal], *, where: str) -> Decimal:
    """An amount in US dollars.

    Args:
        amount: The amount.
        currency: ISO 4217 code in any case; nothing means dollars.
        rates: US dollars per unit of other currencies.
        where: Where it stands, for the message.

    Raises:
        ReconciliationError: another currency without a rate.
    """
    code = (currency or "USD").strip().upper()
    if code in {"", "USD", "US$", "$"}:
        return amount
    if code not in rates:
        raise ReconciliationError(
            f"{where}: the amount is in {code}, the ledger in US dollars; give exchange_rates={{'{code}': ...}} "
            f"(--rate {code}=...), the dollars per {code}."
        )
    return EXACT.multiply(amount, rates[code])


def tier_name(tier: str | None, *, batch: bool = False) -> str:
    """One name for a tier on both sides: ``standard`` where nothing is said, ``batch`` for whatever ran in one."""
    if batch:
        return "batch"
    name = (tier or "").strip().lower()
    return "standard" if name in {"", "default", "auto", "standard", "none", "sync"} else name
