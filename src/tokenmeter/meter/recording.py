"""One call as the meter has it: leave for it to go, the key it goes by, and what is written down of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from tokenmeter.attribution import ApiKey, hash_key
from tokenmeter.budgets.runs import RunClaims
from tokenmeter.call import Call, Outcome
from tokenmeter.errors import StoreError
from tokenmeter.ledger import Entry, Reservation, new_id
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


@dataclass(slots=True)
class Authorization:
    """Leave to make one call; hand it back to `Meter.settle`.

    Attributes:
        call: The call.
        started_at: When it left, aware UTC.
        started_ns: The same on the performance counter; 0 for a call that nobody watched.
        reservation: The hold, if a budget applies.
        runs: What is held in the runs around the call (`tokenmeter.budget`), if any.
        settled: Whether an outcome was written (or given up on).
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
        extend_due_ns: When the hold is next worth extending, on the performance counter.
    """

    call: Call
    started_at: datetime
    started_ns: int
    reservation: Reservation | None = None
    runs: RunClaims | None = None
    settled: bool = False
    inject_max_output_tokens: int | None = None
    extend_due_ns: int = 0


#: Fingerprint of every key while the ledger's secret cannot be read.
UNKNOWN = "unknown"
#: Keys whose fingerprint is remembered at most; short-lived tokens would otherwise pile up.
_MOST_KEYS = 1_000


class KeyRing:
    """The keys this process has used. A key's text is kept only in its memory.

    Args:
        aliases: SHA-256 of a key (hex) -> the user's name for it.
        secret: Reads the ledger's secret.
        fault: Told what failed.
    """

    def __init__(
        self,
        aliases: Mapping[str, str],
        *,
        secret: Callable[[], bytes],
        fault: Callable[[str, BaseException], None],
    ) -> None:
        self._aliases = dict(aliases)
        self._read_secret = secret
        self._fault = fault
        #: By their text.
        self.known: dict[str | None, ApiKey] = {}
        self._secret: bytes | None = None

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self.known)

    def identify(self, key: str | None) -> ApiKey | None:
        """`key` as the ledger knows it; None for no key.

        While the store cannot say its secret the key has no fingerprint, but budgets on it still apply.
        """
        if not key:
            return None
        known = self.known.get(key)
        if known is not None:
            return known
        alias = self._aliases.get(hash_key(key))
        try:
            if self._secret is None:
                self._secret = self._read_secret()
        except StoreError as error:
            self._fault("read the ledger's secret", error)
            return replace(ApiKey.identify(key, secret=b"", alias=alias), fingerprint=UNKNOWN)
        if len(self.known) >= _MOST_KEYS:
            self.known.clear()
        known = self.known[key] = ApiKey.identify(key, secret=self._secret, alias=alias)
        return known
