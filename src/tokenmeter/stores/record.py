"""The record: how an entry is written down, for every engine and for good.

A record is one JSON object of named values; what is not known is left out, and `FORMAT` says by which rules it was
written. The chain covers exactly these bytes, so a later release may add a name and still verify what is there. What
many entries share stands in records of its own (`tokenmeter.stores.definitions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any

from pydantic_core import from_json

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import KEPT_WHO
from tokenmeter.ledger import COLUMNS, MOST_COST, MOST_COUNTED, Charge, Claim, CounterKey, Entry, Reservation
from tokenmeter.money import to_dollars, to_picodollars
from tokenmeter.stores.definitions import Account, Definitions, Rate, parse_factors
from tokenmeter.stores.encoding import (
    LONGEST,
    SHORTENED,
    Template,
    encode_json,
    storable_text,
)
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.usage import Quantity, Usage

#: The same in picodollars.
_MOST_COST = MOST_COST * 10**12

_NO_COLUMNS = (None,) * len(COLUMNS)
_columns_of: Callable[[Entry], tuple[str | int | None, ...]] = attrgetter(*COLUMNS)


# -- an entry as a record, and back


def encode_entry(entry: Entry, shared: Definitions) -> bytes:  # noqa: C901, PLR0912, PLR0915 - one branch for each name that may be absent
    """The record of any entry.

    Raises:
        ValueError: a cost is finer than one picodollar.
        OverflowError: a quantity, a count or a cost is more than a ledger can add up.
    """
    used, latency_us, first_token_us = entry.usage, entry.latency_us, entry.first_token_us
    charges: list[dict[str, Any]] = []
    for charge in entry.charges:
        line: dict[str, Any] = {"rate": "", "quantity": charge.quantity}
        _put_costs(line, charge)
        charges.append(line)
        _check(charge.quantity)
    costs: dict[str, Any] = {}
    _put_costs(costs, entry)
    _check(
        *used.quantities.values(), used.reasoning_output_tokens, entry.attempts, latency_us or 0, first_token_us or 0
    )
    columns = _columns_of(entry)
    if columns != _NO_COLUMNS:
        _check(*(value for value in columns if isinstance(value, int)))
    # Only now, since definitions are written: a refused entry leaves nothing behind.
    for line, charge in zip(charges, entry.charges, strict=True):
        line["rate"] = shared.rate_of(charge)
    account = shared.account_of(entry)
    template = Template(account)
    who, flags = entry.attribution, entry.flags
    if shared.shortens(account):
        flags = tuple(sorted({*flags, SHORTENED}))
    values: dict[str, Any] = {
        "id": entry.entry_id,
        "occurred_at": to_microseconds(entry.occurred_at),
        "recorded_at": to_microseconds(entry.recorded_at),
    }
    # One by one, in the order of `Template.body`: this is most of what an import costs.
    if entry.response_id is not None:
        values["response_id"] = storable_text(entry.response_id)  # a column of its own, which is searched
    if entry.request_id is not None:
        values["request_id"] = entry.request_id
    if entry.streamed:
        values["streamed"] = True
    if entry.attempts != 1:
        values["attempts"] = entry.attempts
    if latency_us is not None:
        values["latency_us"] = latency_us
    if first_token_us is not None:
        values["first_token_us"] = first_token_us
    if who.end_user is not None:
        values["end_user"] = shared.name("end_user", who.end_user)
    if who.tags:
        values["tags"] = {tag: shared.name(f"tag:{tag}", value) for tag, value in who.tags.items()}
    if used.quantities:
        values["quantities"] = dict(used.quantities)
    if used.reasoning_output_tokens:
        values["reasoning"] = used.reasoning_output_tokens
    if charges:
        values["charges"] = charges
    values |= costs
    if flags:
        values["flags"] = list(flags)
    if entry.raw_usage is not None:
        values["raw_usage"] = _parsed(entry.raw_usage)
    if columns != _NO_COLUMNS:
        values |= {name: value for name, value in zip(COLUMNS, columns, strict=True) if value is not None}
    if entry.trace_id is not None:
        values["trace_id"] = entry.trace_id
    if entry.span_id is not None:
        values["span_id"] = entry.span_id
    if entry.reservation_id is not None:
        values["reservation"] = entry.reservation_id
    if entry.dedup_key is not None:
        values["dedup_key"] = kept_key(entry.dedup_key)
    return template.body(values)


def _check(*quantities: Quantity) -> None:
    for quantity in quantities:
        if not -MOST_COUNTED <= quantity <= MOST_COUNTED:
            raise OverflowError(f"{quantity} is more than a ledger can count.")


def kept_key(key: str | None) -> str | None:
    """A dedup key as records keep it, and as it is to be looked for: a long one ends in its digest."""
    if key is None:
        return None
    key = storable_text(key)
    if len(key) <= LONGEST:
        return key
    return f"{key[:400]}:{hashlib.sha256(key.encode()).hexdigest()}"


def _parsed(text: str) -> Any:
    """The usage object of a JSON text that can be made again from it; else the text."""
    try:
        value: Any = from_json(text.encode())
    except (ValueError, UnicodeEncodeError):
        return text
    is_object = type(value) in {dict, list}  # `isinstance` would make its type partly unknown
    return value if is_object and encode_json(value).decode() == text else text


def _put_costs(named: dict[str, Any], line: Entry | Charge) -> None:
    """Note the costs of an entry or a charge, each where it is not as the one before."""
    same: Decimal | None = None
    before: int | None = None
    for name, amount in (("list", line.list_cost), ("contracted", line.contracted_cost), ("billed", line.billed_cost)):
        if amount is same:
            continue
        same = amount
        picodollars = None if amount is None else to_picodollars(amount)
        if picodollars is not None and not -_MOST_COST <= picodollars <= _MOST_COST:
            raise OverflowError(f"{amount} USD is more than a ledger can count.")
        if picodollars != before:
            named[name] = before = picodollars


def costs_of(named: Mapping[str, Any]) -> tuple[int | None, int | None, int | None]:
    """List, contracted and billed cost of an entry or a charge, in picodollars."""
    first = named.get("list")
    second = named.get("contracted", first)
    return first, second, named.get("billed", second)


def _dollars(amount: int | None) -> Decimal | None:
    return None if amount is None else to_dollars(amount)


def _quantity(value: int | str) -> Quantity:
    return Decimal(value) if isinstance(value, str) else value


def _decode_charge(charge: Mapping[str, Any], rate: Rate) -> Charge:
    first, second, third = costs_of(charge)
    return Charge(
        model=rate.model,
        sku_meter=rate.sku_meter,
        quantity=_quantity(charge["quantity"]),
        unit=rate.unit,
        list_unit_price=None if rate.list_unit_price is None else Decimal(rate.list_unit_price),
        multipliers=dict(parse_factors(rate.multipliers)),
        list_cost=_dollars(first),
        contracted_cost=_dollars(second),
        billed_cost=_dollars(third),
        price_id=rate.price_id,
        source=rate.source,
        role=rate.role,
    )


def decode_entry(
    record: Mapping[str, Any], account: Account, rate: Callable[[str], Rate], name: Callable[[str], str]
) -> Entry:
    """The entry of a record.

    Args:
        record: The record, parsed.
        account: What its ``account`` names, with texts in place of names.
        rate: Digest -> rate.
        name: Digest -> text.
    """
    get = record.get
    first, second, third = costs_of(record)
    fingerprint = account.api_key_fingerprint
    raw: Any = get("raw_usage")
    values: dict[str, Any] = {  # fields of an account are plain text, those of an entry closed sets
        **{name: record[name] for name in COLUMNS if name in record},
        "kind": account.kind,
        "status": account.status,
        "cost_source": account.cost_source,
    }
    return Entry(
        entry_id=record["id"],
        occurred_at=from_microseconds(record["occurred_at"]),
        recorded_at=from_microseconds(record["recorded_at"]),
        provider=account.provider,
        endpoint=account.endpoint,
        operation=account.operation,
        request_model=account.request_model,
        response_model=account.response_model,
        response_id=get("response_id"),
        request_id=get("request_id"),
        streamed=get("streamed", False),
        attempts=get("attempts", 1),
        latency_us=get("latency_us"),
        first_token_us=get("first_token_us"),
        service_tier=account.service_tier,
        attribution=Attribution.as_filed(
            {
                **{name: getattr(account, name) for name in KEPT_WHO},
                "end_user": name(record["end_user"]) if "end_user" in record else None,
            },
            {tag: name(value) for tag, value in get("tags", {}).items()},
        ),
        api_key=None
        if fingerprint is None
        else ApiKey(fingerprint, account.api_key_last4 or "", account.api_key_alias),
        usage=Usage({meter: _quantity(value) for meter, value in get("quantities", {}).items()}, get("reasoning", 0)),
        charges=tuple(_decode_charge(charge, rate(charge["rate"])) for charge in get("charges", ())),
        list_cost=_dollars(first),
        contracted_cost=_dollars(second),
        billed_cost=_dollars(third),
        flags=tuple(get("flags", ())),
        price_list_hash=account.price_list_hash,
        raw_usage=raw if raw is None or isinstance(raw, str) else encode_json(raw).decode(),
        reservation_id=get("reservation"),
        dedup_key=get("dedup_key"),
        trace_id=get("trace_id"),
        span_id=get("span_id"),
        **values,
    )


# -- holds


def decode_hold(
    record: Mapping[str, Any], claims: Sequence[Sequence[Any]], expires_at: datetime, call: Entry
) -> Reservation:
    """The reservation of a hold's record; `claims` as effects say them (see `Shared.claims`)."""
    return Reservation(
        reservation_id=record["id"],
        claims=tuple(
            Claim(CounterKey(budget, scope, start), limit, amount, end)
            for budget, scope, start, end, amount, limit in claims
        ),
        created_at=from_microseconds(record["created_at"]),
        expires_at=expires_at,
        owner=record["owner"],
        call=call,
    )
