"""Why a call was stopped, as the error a caller can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tokenmeter.budgets.plan import Hold, Plan, UnboundedError
from tokenmeter.budgets.raises import raised_key
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.call import Call
from tokenmeter.errors import BudgetExceededError, BudgetReservedError, RequestTooLargeError, StoreError
from tokenmeter.ledger import CounterKey
from tokenmeter.stores.base import CapReachedError, Counter, Store

__all__ = ["explain", "refuse"]


def explain(stop: CapReachedError, plan: Plan, *, store: Store, wait: Decimal) -> BudgetExceededError:
    """The error for a claim that did not fit.

    Settled spending that leaves no room is `BudgetExceededError`; room that only calls in flight take is
    `BudgetReservedError`; a call that needs more than the settled spending leaves is `RequestTooLargeError`.

    Args:
        stop: What the store said.
        plan: What was asked of it.
        store: To look up raises and a rate limit's other windows.
        wait: Seconds after which a call in flight has likely ended.
    """
    claim, hold = stop.claim, plan.hold_of(stop.claim.key)
    cap, room = hold.cap, hold.cap.limit - stop.settled
    affordable = plan.bound.affordable_output_tokens(cap.unit, room) if plan.bound else None
    free_at = _free_at(hold, claim.amount, store) if cap.rolling else claim.window_end
    until_reset = None if free_at is None else Decimal(max(free_at - microseconds(plan.at), 0)).scaleb(-6)
    values = _fields(hold, claim.key, Counter(stop.settled, stop.reserved), store)
    values["requested"] = cap.budget.amount(claim.amount)
    values["resets_at"] = None if free_at is None else from_microseconds(free_at)
    values["model"] = plan.call.facts.model
    if claim.amount <= room:
        soonest = wait if until_reset is None else min(wait, until_reset)
        reason = "Calls in flight hold the rest; try again when they have ended."
        return BudgetReservedError(reason, retry_after=soonest, **values)
    if room > 0 and (claim.amount > cap.limit or affordable):
        reason = "It needs more than the window has left; ask for fewer output tokens or send a shorter prompt."
        return RequestTooLargeError(reason, max_affordable_output_tokens=affordable, **values)
    return BudgetExceededError(retry_after=until_reset, **values)


def refuse(error: UnboundedError, call: Call, *, store: Store) -> RequestTooLargeError:
    """The error for a call without an upper bound, under a budget that only admits calls which have one."""
    hold = error.hold
    key, end = hold.keys[0]
    return RequestTooLargeError(
        f"That is because {error.upper.explain()}. Change that, or set unbounded='expected' on the budget to hold what "
        "such calls usually use.",
        requested=None,
        resets_at=None if end is None else from_microseconds(end),
        model=call.facts.model,
        **_fields(hold, key, store.counters([key])[key], store),
    )


def _fields(hold: Hold, key: CounterKey, counter: Counter, store: Store) -> dict[str, Any]:
    budget = hold.cap.budget
    more = raised_key(key)
    raised = 0 if hold.cap.rolling else _read(store, [more])[more].settled
    return {
        "budget": budget.name,
        "scope": hold.scope,
        "unit": budget.unit,
        "limit": budget.amount(hold.cap.limit + raised),
        "spent": budget.amount(counter.settled + raised),
        "reserved": budget.amount(counter.reserved),
    }


def _read(store: Store, keys: Sequence[CounterKey]) -> Mapping[CounterKey, Counter]:
    """Counters that complete an error's figures. A store that fails now has said no already: that stands."""
    try:
        return store.counters(keys)
    except StoreError:
        return dict.fromkeys(keys, Counter())


def _free_at(hold: Hold, amount: int, store: Store) -> int | None:
    """When a rate limit has room again: the end of its last window that is too full now."""
    counters = _read(store, [key for key, _ in hold.keys])
    full = [
        end
        for key, end in hold.keys
        if counters[key].settled + counters[key].reserved + amount > hold.cap.limit or amount > hold.cap.limit
    ]
    return full[-1] if full else hold.keys[0][1]
