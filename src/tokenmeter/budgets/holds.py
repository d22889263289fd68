"""What becomes of a hold that nobody settled: an estimated entry, which a late answer takes back again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from tokenmeter.call import Call
from tokenmeter.estimation import input_estimate
from tokenmeter.ledger import Charge, Entry, Reservation, new_id, utcnow
from tokenmeter.pricing import Rating
from tokenmeter.usage import Consumption, Observation, Usage

__all__ = ["EXPIRED", "TAKEN_BACK", "estimated_entry", "observation_of", "taken_back", "unanswered"]

#: Flags of the two entries.
EXPIRED = "expired_hold"
TAKEN_BACK = "late_settlement"


def unanswered(call: Call, at: datetime) -> Entry:
    """`call` with its estimated prompt, not yet rated, to be kept with its hold. Every call makes one: it is cheap."""
    observation = input_estimate(call)
    facts = call.facts
    return Entry(
        occurred_at=at,
        provider=call.provider,
        endpoint=call.endpoint,
        operation=call.operation,
        request_model=facts.model,
        status="aborted",
        streamed=facts.streamed,
        service_tier=facts.service_tier,
        attribution=call.attribution,
        api_key=call.api_key,
        usage=observation.usage,
        flags=("estimated",),
    )


def observation_of(entry: Entry) -> Observation:
    """The estimated prompt of an `unanswered` entry, to be rated."""
    consumption = Consumption(
        model=entry.request_model,
        usage=entry.usage,
        service_tier=entry.service_tier,
        prompt_tokens=entry.usage.input_tokens,
    )
    return Observation(consumptions=(consumption,), flags=frozenset(entry.flags))


def estimated_entry(reservation: Reservation, rating: Rating, price_list_hash: str | None) -> Entry:
    """The entry of an expired hold. It bears the hold's identity, so that a late answer finds it."""
    call = reservation.call
    return replace(
        call,
        entry_id=reservation.reservation_id,
        recorded_at=utcnow(),
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source="unpriced" if rating.cost_source == "unpriced" else "estimated",
        flags=tuple(sorted({*call.flags, *rating.flags, EXPIRED})),
        price_list_hash=price_list_hash,
        reservation_id=reservation.reservation_id,
    )


def taken_back(estimate: Entry) -> Entry:
    """The correction that takes an expired hold's estimate back, once the call has been settled after all."""
    return replace(
        estimate,
        entry_id=new_id(),
        kind="correction",
        recorded_at=utcnow(),
        usage=Usage({meter: -quantity for meter, quantity in estimate.usage.quantities.items()}),
        charges=tuple(_negative(charge) for charge in estimate.charges),
        list_cost=_minus(estimate.list_cost),
        contracted_cost=_minus(estimate.contracted_cost),
        billed_cost=_minus(estimate.billed_cost),
        flags=tuple(sorted({*estimate.flags, TAKEN_BACK})),
        corrects=estimate.entry_id,
        dedup_key=f"{TAKEN_BACK}:{estimate.entry_id}",
    )


def _negative(charge: Charge) -> Charge:
    return replace(
        charge,
        quantity=-charge.quantity,
        list_cost=_minus(charge.list_cost),
        contracted_cost=_minus(charge.contracted_cost),
        billed_cost=_minus(charge.billed_cost),
    )


def _minus(amount: Decimal | None) -> Decimal | None:
    return None if amount is None else -amount
