"""Entries and holds as plain rows, and back: integers, text and None only, so that any SQL store can keep them.

What many entries have in common is kept once: the `Context` (who, what, under which terms) and the `Rate` of a charge
(everything of it but its amounts). A row points at both.

Money is integer picodollars. Where a column is to be summed it is split into whole microdollars and the picodollars
over, so that no sum of 64-bit integers can overflow: ``amount = micro * 10**6 + pico``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any, NamedTuple

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry
from tokenmeter.money import to_dollars, to_picodollars
from tokenmeter.stores.postgres.contexts import CONTEXT_FIELDS, Context, Rate, decode_multipliers
from tokenmeter.stores.values import MICRO, compact_json, from_microseconds, to_microseconds
from tokenmeter.usage import Quantity, Usage

__all__ = [
    "COLUMNS",
    "Amounts",
    "decode_amounts",
    "decode_claims",
    "decode_entry",
    "encode_amounts",
    "encode_claims",
    "encode_entry",
    "storable",
]

#: Columns of an entry's row, in order, after its number and before its hash.
COLUMNS = (
    "entry_id",
    "occurred_at",
    "recorded_at",
    "context",
    "response_id",
    "request_id",
    "streamed",
    "attempts",
    "latency_us",
    "first_token_us",
    "end_user",
    "tags",
    "quantities",
    "reasoning_output_tokens",
    "charges",
    "list_micro",
    "list_pico",
    "contracted_micro",
    "contracted_pico",
    "billed_micro",
    "billed_pico",
    "flags",
    "raw_usage",
    "error_type",
    "corrects",
    "reservation_id",
    "dedup_key",
)


class Amounts(NamedTuple):
    """What an entry is made of, in integers.

    Attributes:
        quantities: sku_meter -> quantity used.
        charges: Per charge: sku_meter, quantity, list, contracted and billed cost in picodollars (None = unpriced).
        costs: The entry's own list, contracted and billed cost in picodollars.
        reasoning: Reasoning tokens.
        estimated: Whether usage or cost is estimated.
    """

    quantities: Mapping[str, Quantity]
    charges: Sequence[tuple[str, Quantity, int | None, int | None, int | None]]
    costs: tuple[int | None, int | None, int | None]
    reasoning: int
    estimated: bool


def storable(entry: Entry) -> Entry:
    """`entry` with lone surrogates, which no UTF-8 text can hold, written as escapes."""
    texts: dict[str, Any] = {
        name: value.encode("utf-8", "backslashreplace").decode()
        for name in (field.name for field in fields(entry))
        if isinstance(value := getattr(entry, name), str)
    }
    charges = tuple(
        replace(charge, model=charge.model and charge.model.encode("utf-8", "backslashreplace").decode())
        for charge in entry.charges
    )
    return replace(entry, **texts, charges=charges)


def _picodollars(amount: Decimal | None) -> int | None:
    return None if amount is None else to_picodollars(amount)


def encode_amounts(entry: Entry) -> Amounts:
    """The integers of an entry.

    Raises:
        ValueError: a cost is finer than one picodollar.
    """
    return Amounts(
        entry.usage.quantities,
        [
            (
                charge.sku_meter,
                charge.quantity,
                _picodollars(charge.list_cost),
                _picodollars(charge.contracted_cost),
                _picodollars(charge.billed_cost),
            )
            for charge in entry.charges
        ],
        (_picodollars(entry.list_cost), _picodollars(entry.contracted_cost), _picodollars(entry.billed_cost)),
        entry.usage.reasoning_output_tokens,
        entry.cost_source == "estimated" or "estimated" in entry.flags,
    )


def _split(amount: int | None) -> tuple[int | None, int | None]:
    return (None, None) if amount is None else divmod(amount, MICRO)


def encode_entry(entry: Entry, amounts: Amounts, context: int, rates: Sequence[int]) -> tuple[Any, ...]:
    """The row of an entry, in the order of `COLUMNS`.

    Args:
        entry: The entry.
        amounts: Its `encode_amounts`.
        context: Row id of its context.
        rates: Row ids of its charges' rates, in order.
    """
    charges = [(rate, *charge[1:]) for rate, charge in zip(rates, amounts.charges, strict=True)]
    tags = entry.attribution.tags
    return (
        entry.entry_id,
        to_microseconds(entry.occurred_at),
        to_microseconds(entry.recorded_at),
        context,
        entry.response_id,
        entry.request_id,
        int(entry.streamed),
        entry.attempts,
        entry.latency_us,
        entry.first_token_us,
        entry.attribution.end_user,
        compact_json(dict(tags)) if tags else None,
        compact_json(dict(amounts.quantities)) if amounts.quantities else None,
        amounts.reasoning,
        compact_json(charges) if charges else None,
        *_split(amounts.costs[0]),
        *_split(amounts.costs[1]),
        *_split(amounts.costs[2]),
        compact_json(entry.flags) if entry.flags else None,
        entry.raw_usage,
        entry.error_type,
        entry.corrects,
        entry.reservation_id,
        entry.dedup_key,
    )


def _quantity(value: int | str) -> Quantity:
    return Decimal(value) if isinstance(value, str) else value


def _joined(micro: int | None, pico: int | None) -> int | None:
    return None if micro is None or pico is None else micro * MICRO + pico


def _dollars(amount: int | None) -> Decimal | None:
    return None if amount is None else to_dollars(amount)


def _decode_quantities(text: str | None) -> dict[str, Quantity]:
    """sku_meter -> quantity from a row's JSON."""
    return {meter: _quantity(value) for meter, value in json.loads(text).items()} if text else {}


def decode_amounts(
    *,
    quantities: str | None,
    reasoning: int,
    charges: str | None,
    costs: Sequence[int | None],
    flags: str | None,
    cost_source: str | None,
    rates: Callable[[int], Rate],
) -> Amounts:
    """`Amounts` straight from a row's columns, without making an entry.

    Args:
        quantities: Column of that name.
        reasoning: Column ``reasoning_output_tokens``.
        charges: Column of that name.
        costs: The six cost columns, in order.
        flags: Column of that name.
        cost_source: From the row's context.
        rates: Row id -> rate.
    """
    lines = json.loads(charges) if charges else ()
    return Amounts(
        _decode_quantities(quantities),
        [(rates(rate)[1], _quantity(quantity), *money) for rate, quantity, *money in lines],
        (_joined(costs[0], costs[1]), _joined(costs[2], costs[3]), _joined(costs[4], costs[5])),
        reasoning,
        cost_source == "estimated" or (flags is not None and "estimated" in json.loads(flags)),
    )


def _decode_charge(rate: Rate, quantity: int | str, costs: Sequence[int | None]) -> Charge:
    model, meter, unit, price, multipliers, price_id, source, role = rate
    return Charge(
        model=model,
        sku_meter=meter,
        quantity=_quantity(quantity),
        unit=unit,
        list_unit_price=None if price is None else Decimal(price),
        multipliers=dict(decode_multipliers(multipliers)),
        list_cost=_dollars(costs[0]),
        contracted_cost=_dollars(costs[1]),
        billed_cost=_dollars(costs[2]),
        price_id=price_id,
        source=source,
        role=role,
    )


def decode_entry(row: Sequence[Any], context: Context, rates: Callable[[int], Rate]) -> Entry:
    """The entry of a row.

    Args:
        row: Values in the order of `COLUMNS`.
        context: What its ``context`` column points at.
        rates: Row id -> rate.
    """
    value = dict(zip(COLUMNS, row, strict=True))
    about: dict[str, Any] = dict(zip(CONTEXT_FIELDS, context, strict=True))
    fingerprint = about["api_key_fingerprint"]
    return Entry(
        entry_id=value["entry_id"],
        kind=about["kind"],
        occurred_at=from_microseconds(value["occurred_at"]),
        recorded_at=from_microseconds(value["recorded_at"]),
        provider=about["provider"],
        endpoint=about["endpoint"],
        operation=about["operation"],
        request_model=about["request_model"],
        response_model=about["response_model"],
        response_id=value["response_id"],
        request_id=value["request_id"],
        status=about["status"],
        streamed=bool(value["streamed"]),
        attempts=value["attempts"],
        latency_us=value["latency_us"],
        first_token_us=value["first_token_us"],
        service_tier=about["service_tier"],
        attribution=Attribution(
            member=about["member"],
            team=about["team"],
            organization=about["organization"],
            project=about["project"],
            route=about["route"],
            end_user=value["end_user"],
            tags=json.loads(value["tags"]) if value["tags"] else {},
        ),
        api_key=None if fingerprint is None else ApiKey(fingerprint, about["api_key_last4"], about["api_key_alias"]),
        usage=Usage(_decode_quantities(value["quantities"]), value["reasoning_output_tokens"]),
        charges=tuple(
            _decode_charge(rates(rate), quantity, costs) for rate, quantity, *costs in json.loads(value["charges"])
        )
        if value["charges"]
        else (),
        list_cost=_dollars(_joined(value["list_micro"], value["list_pico"])),
        contracted_cost=_dollars(_joined(value["contracted_micro"], value["contracted_pico"])),
        billed_cost=_dollars(_joined(value["billed_micro"], value["billed_pico"])),
        cost_source=about["cost_source"],
        flags=tuple(json.loads(value["flags"])) if value["flags"] else (),
        price_list_hash=about["price_list_hash"],
        raw_usage=value["raw_usage"],
        error_type=value["error_type"],
        corrects=value["corrects"],
        reservation_id=value["reservation_id"],
        dedup_key=value["dedup_key"],
    )


def encode_claims(claims: Sequence[Claim]) -> str:
    """A hold's claims as JSON."""
    return compact_json(
        [(c.key.budget, c.key.scope, c.key.window_start, c.limit, c.amount, c.window_end) for c in claims]
    )


def decode_claims(text: str) -> tuple[Claim, ...]:
    """Claims from their JSON."""
    return tuple(
        Claim(CounterKey(budget, scope, start), limit, amount, end)
        for budget, scope, start, limit, amount, end in json.loads(text)
    )
