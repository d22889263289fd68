"""What is written down of one call."""

from __future__ import annotations

import json
import time
from typing import Any

from tokenmeter.call import Outcome
from tokenmeter.ledger import Entry, new_id
from tokenmeter.meter.authorization import Authorization
from tokenmeter.pricing import Rating
from tokenmeter.usage import Observation

#: Stands in for an answer that nobody saw.
NOTHING_SEEN = Observation()


def record_of(
    authorization: Authorization, outcome: Outcome, rating: Rating, *, price_list_hash: str, bound_violated: bool
) -> Entry:
    """The entry of one outcome.

    Args:
        authorization: What the call was allowed with.
        outcome: How it ended.
        rating: What it cost.
        price_list_hash: Which prices said so.
        bound_violated: Whether it used more than was held for it.
    """
    call = authorization.call
    seen = outcome.observation or NOTHING_SEEN
    reservation = authorization.reservation
    flags = seen.flags | rating.flags
    if outcome.observation is None and outcome.status in {"aborted", "timeout"}:
        flags |= {"billing_unknown"}
    if bound_violated:
        flags |= {"bound_violation"}
    response_id = seen.response_id or outcome.response_id
    bill_id = seen.bill_id or response_id
    return Entry(
        entry_id=outcome.entry_id or new_id(),
        occurred_at=authorization.started_at,
        provider=call.provider,
        endpoint=call.endpoint,
        operation=call.operation,
        request_model=call.facts.model,
        response_model=seen.response_model,
        response_id=response_id,
        request_id=outcome.request_id,
        status="error" if outcome.status == "ok" and seen.error_type else outcome.status,
        streamed=call.facts.streamed,
        attempts=outcome.attempts,
        latency_us=(time.perf_counter_ns() - authorization.started_ns) // 1000 if authorization.started_ns else None,
        first_token_us=outcome.first_token_us,
        service_tier=seen.service_tier,
        attribution=call.attribution,
        api_key=call.api_key,
        usage=seen.usage,
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source=rating.cost_source,
        flags=tuple(sorted(flags)) if flags else (),
        price_list_hash=rating.price_list_hash or price_list_hash,
        raw_usage=None if seen.raw_usage is None else usage_text(seen.raw_usage),
        error_type=outcome.error_type or seen.error_type,
        reservation_id=None if reservation is None else reservation.reservation_id,
        dedup_key=f"{call.provider}:{bill_id}" if seen.deduplicate and bill_id else None,
        trace_id=None if call.span is None else call.span.trace_id,
        span_id=None if call.span is None else call.span.span_id,
    )


def usage_text(value: Any) -> str:
    """A usage object as the JSON text that entries keep."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=str)
