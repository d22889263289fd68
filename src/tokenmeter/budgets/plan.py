"""What one call asks of the budgets that apply to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import attrgetter

from tokenmeter.budgets.caps import Cap, Keys
from tokenmeter.call import Call
from tokenmeter.estimation import Bound, Expectations, bound, picodollars
from tokenmeter.ledger import Claim, CounterKey
from tokenmeter.pricing import Ceiling
from tokenmeter.stores.base import Store

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
    keys: Keys


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to be held for a call.

    Attributes:
        call: The call, with the output cap that is to be injected, if any.
        at: When it leaves.
        holds: The hard budgets that apply.
        claims: What is asked of their counters, in key order; empty when no hard budget applies.
        bound: The call's upper bound; None when only requests are counted.
        injectable: Whether a smaller plan can be made by injecting an output cap.
        inject_max_output_tokens: Output cap to set on the request; None = send it as written.
    """

    call: Call
    at: datetime
    holds: Sequence[Hold] = ()
    claims: tuple[Claim, ...] = ()
    bound: Bound | None = None
    injectable: bool = False
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
    inject: bool = False,
) -> Plan:
    """Bound `call` and turn its holds into claims.

    Args:
        call: The call.
        at: When it leaves.
        holds: The hard budgets that apply to it.
        ceiling: The dearest rates that can apply to it; None for an unknown model.
        learned: For budgets that go by expectations.
        store: To look up what the budgets can still pay for, if a cap is to be injected.
        inject: Inject a cap, where that is wanted: the model's own maximum did not fit. A model whose maximum is not
            known gets one in any case.

    Raises:
        UnboundedError: it has no upper bound, and a budget refuses such calls.
    """
    if all(hold.cap.unit == "requests" for hold in holds):
        return Plan(call, at, holds, _claims(holds, [1] * len(holds)))
    upper = bound(call, ceiling)
    injectable = _is_injectable(call, upper, holds)
    cap = injected(upper, holds, store) if injectable and (inject or upper.output_tokens is None) else None
    if cap is not None:
        call = replace(call, facts=replace(call.facts, max_output_tokens=cap))
        upper = bound(call, ceiling)
    most = {unit: upper.amount(unit) for unit in {hold.cap.unit for hold in holds}}
    amounts = [_amount(hold, call, upper, most[hold.cap.unit], learned) for hold in holds]
    return Plan(call, at, holds, _claims(holds, amounts), upper, injectable, cap)


_claim_key = attrgetter("key")


def _claims(holds: Sequence[Hold], amounts: Sequence[int]) -> tuple[Claim, ...]:
    claims = [
        Claim(key, hold.cap.limit, amount, end)
        for hold, amount in zip(holds, amounts, strict=True)
        for key, end in hold.keys
    ]
    if len(claims) > 1:
        claims.sort(key=_claim_key)
    return tuple(claims)


def _amount(hold: Hold, call: Call, upper: Bound, most: int | None, learned: Expectations) -> int:
    budget, unit = hold.cap.budget, hold.cap.unit
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


def _is_injectable(call: Call, upper: Bound, holds: Sequence[Hold]) -> bool:
    """Whether the request may get an output cap: a budget wants it, the caller named none, nothing else is unknown."""
    return (
        call.facts.max_output_tokens is None
        and upper.output_tokens != 0
        and set(upper.reasons) <= {"no_output_cap", "unknown_price"}
        and any(hold.cap.budget.inject_max_tokens for hold in holds)
    )


def injected(upper: Bound, holds: Sequence[Hold], store: Store) -> int | None:
    """The output cap that all budgets can still pay for; None when the model's own maximum fits after all."""
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
