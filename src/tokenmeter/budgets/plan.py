"""What one call asks of the budgets that apply to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from tokenmeter.budgets.caps import Cap
from tokenmeter.call import Call
from tokenmeter.estimation import Bound, Expectations, bound, picodollars
from tokenmeter.ledger import Claim, CounterKey
from tokenmeter.stores.base import Store

if TYPE_CHECKING:
    from tokenmeter.pricing import Ceiling

__all__ = ["Hold", "Plan", "UnboundedError", "injected", "make_plan"]

#: No smaller output cap is ever set on a request: some endpoints refuse less.
LEAST_INJECTED = 16


@dataclass(frozen=True, slots=True)
class Hold:
    """One hard budget that applies to a call.

    Attributes:
        cap: The budget.
        scope: Scope values of its counter.
        keys: Its counters with their windows' ends: one, or all overlapping windows of a rate limit.
    """

    cap: Cap
    scope: dict[str, str]
    keys: Sequence[tuple[CounterKey, int | None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to be held for a call.

    Attributes:
        call: The call, with the output cap that is to be injected, if any.
        at: When it leaves.
        holds: The hard budgets that apply.
        claims: What is asked of their counters, in key order; empty when no hard budget applies.
        bound: The call's upper bound; None when only requests are counted.
        inject_max_output_tokens: Output cap to set on the request; None = send it as written.
    """

    call: Call
    at: datetime
    holds: Sequence[Hold] = ()
    claims: tuple[Claim, ...] = ()
    bound: Bound | None = None
    inject_max_output_tokens: int | None = None

    def hold_of(self, key: CounterKey) -> Hold:
        """The hold that a claim's counter belongs to."""
        return next(hold for hold in self.holds for own, _ in hold.keys if own == key)


class UnboundedError(Exception):
    """A call has no upper bound and `hold` only admits calls that have one. Turned into an error for the caller."""

    def __init__(self, hold: Hold, upper: Bound) -> None:
        super().__init__(hold, upper)
        self.hold = hold
        self.upper = upper


def make_plan(
    call: Call,
    at: datetime,
    holds: Sequence[Hold],
    *,
    ceiling: Ceiling | None,
    learned: Expectations,
    store: Store,
) -> Plan:
    """Bound `call` and turn its holds into claims.

    Raises:
        UnboundedError: it has no upper bound, and a budget refuses such calls.
    """
    if all(hold.cap.unit == "requests" for hold in holds):
        return Plan(call, at, holds, _claims(holds, [1] * len(holds)))
    upper = bound(call, ceiling)
    inject = injected(call, upper, holds, store) if any(hold.cap.budget.inject_max_tokens for hold in holds) else None
    if inject is not None:
        call = replace(call, facts=replace(call.facts, max_output_tokens=inject))
        upper = bound(call, ceiling)
    amounts = [_amount(hold, call, upper, learned) for hold in holds]
    return Plan(call, at, holds, _claims(holds, amounts), upper, inject)


def _claims(holds: Sequence[Hold], amounts: Sequence[int]) -> tuple[Claim, ...]:
    claims = [
        Claim(key, hold.cap.limit, amount, end)
        for hold, amount in zip(holds, amounts, strict=True)
        for key, end in hold.keys
    ]
    if len(claims) > 1:
        claims.sort(key=lambda claim: claim.key)
    return tuple(claims)


def _amount(hold: Hold, call: Call, upper: Bound, learned: Expectations) -> int:
    budget, unit = hold.cap.budget, hold.cap.unit
    most = upper.amount(unit)
    if most is None and budget.unbounded == "refuse":
        raise UnboundedError(hold, upper)
    if most is not None and budget.estimate == "strict":
        return most
    likely = learned.amount(call, upper, unit)
    if likely is not None:
        return likely
    return _at_least(call, upper, unit) if most is None else most


def _at_least(call: Call, upper: Bound, unit: str) -> int:
    """What is known of a call without a bound; never nothing, so that a spent budget stops it."""
    each = call.facts.max_output_tokens or upper.max_output_tokens or 0
    output = each * call.facts.choices
    if unit == "tokens":
        return max(call.facts.input_bytes + output, 1)
    if upper.input_cost is None or upper.output_rate is None:
        return 1
    return max(picodollars(upper.input_cost + upper.output_rate * output), 1)


def injected(call: Call, upper: Bound, holds: Sequence[Hold], store: Store) -> int | None:
    """The output cap that all budgets can still pay for; None when the request stays as written.

    It stays so when the caller named a cap, when the model's own maximum fits, and when the answer cannot be priced.
    """
    if call.facts.max_output_tokens is not None or not set(upper.reasons) <= {"no_output_cap"}:
        return None
    paying = [hold for hold in holds if hold.cap.unit != "requests"]
    counters = store.counters([key for hold in paying for key, _ in hold.keys])
    affordable: list[int] = []
    for hold in paying:
        taken = max(counters[key].settled + counters[key].reserved for key, _ in hold.keys)
        most = upper.affordable_output_tokens(hold.cap.unit, hold.cap.limit - taken)
        if most is None:
            return None
        affordable.append(most)
    least = min(affordable)
    if upper.max_output_tokens is not None and least >= upper.max_output_tokens:
        return None
    return max(least, LEAST_INJECTED)
