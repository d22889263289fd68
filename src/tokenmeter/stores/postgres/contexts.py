"""What many entries have in common, as rows of text: who, what, under which terms; and the terms of a charge."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tokenmeter.ledger import Charge, Entry
from tokenmeter.stores.values import compact_json

__all__ = ["CONTEXT_FIELDS", "RATE_FIELDS", "Context", "Rate", "context_of", "decode_multipliers", "rate_of"]

#: What `Context` holds, in order. ``model`` and ``api_key`` are what reports group by; they follow from the others.
CONTEXT_FIELDS = (
    "kind",
    "provider",
    "endpoint",
    "operation",
    "request_model",
    "response_model",
    "status",
    "service_tier",
    "cost_source",
    "member",
    "team",
    "organization",
    "project",
    "route",
    "api_key_fingerprint",
    "api_key_last4",
    "api_key_alias",
    "price_list_hash",
    "model",
    "api_key",
)
#: What `Rate` holds, in order. Prices and factors are decimal text; ``multipliers`` is JSON, None for none.
RATE_FIELDS = ("model", "sku_meter", "unit", "list_unit_price", "multipliers", "price_id", "source", "role")

#: Values in the order of `CONTEXT_FIELDS`.
Context = tuple[str | None, ...]
#: Values in the order of `RATE_FIELDS`.
Rate = tuple[Any, ...]


def context_of(entry: Entry) -> Context:
    """Who, what and under which terms, in the order of `CONTEXT_FIELDS`."""
    who = entry.attribution
    key = entry.api_key
    return (
        entry.kind,
        entry.provider,
        entry.endpoint,
        entry.operation,
        entry.request_model,
        entry.response_model,
        entry.status,
        entry.service_tier,
        entry.cost_source,
        who.member,
        who.team,
        who.organization,
        who.project,
        who.route,
        *((None, None, None) if key is None else (key.fingerprint, key.last4, key.alias)),
        entry.price_list_hash,
        entry.model,
        None if key is None else key.label,
    )


def rate_of(charge: Charge) -> Rate:
    """Everything of a charge but its amounts."""
    price = charge.list_unit_price
    multipliers = charge.multipliers
    return (
        charge.model,
        charge.sku_meter,
        charge.unit,
        None if price is None else str(price),
        _encode_multipliers(tuple(multipliers.items())) if multipliers else None,
        charge.price_id,
        charge.source,
        charge.role,
    )


@lru_cache(maxsize=1024)
def _encode_multipliers(multipliers: tuple[tuple[str, Decimal], ...]) -> str:
    return compact_json(multipliers)


@lru_cache(maxsize=1024)
def decode_multipliers(text: str | None) -> tuple[tuple[str, Decimal], ...]:
    """Name and factor of each, from a rate's ``multipliers``."""
    return tuple((name, Decimal(factor)) for name, factor in json.loads(text)) if text else ()
