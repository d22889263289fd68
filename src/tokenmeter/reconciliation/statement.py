"""What a provider says it served and billed, in neutral terms: disjoint tokens per class, and US dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import NamedTuple

from tokenmeter.periods import Period
from tokenmeter.semconv import CACHE_READ_METERS, CACHE_WRITE_METERS, INPUT_METERS, OUTPUT_METERS

__all__ = ["GRAIN", "TOKEN_CLASSES", "Bucket", "CostLine", "ProviderStatement", "UsageLine", "class_of"]

#: Classes of tokens that both sides can tell apart; disjoint.
TOKEN_CLASSES = ("input", "cache_read", "cache_write", "output")
#: What a statement can be split by, besides the UTC day.
GRAIN = ("model", "api_key", "service_tier")


class Bucket(NamedTuple):
    """Where amounts are compared; a name the comparison does not split by is None."""

    day: date
    model: str | None = None
    api_key: str | None = None
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
        watermark: Until when it is complete; None = it does not say.
    """

    provider: str
    period: Period
    source: str
    grain: tuple[str, ...] = ("model",)
    usage: tuple[UsageLine, ...] | None = None
    costs: tuple[CostLine, ...] | None = None
    classes: tuple[str, ...] = TOKEN_CLASSES
    tokenless: tuple[str, ...] = field(default=())
    watermark: datetime | None = None


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
