"""What one call asks of the budgets that apply to it, and why it was stopped where that did not fit."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Protocol

from tokenmeter.budgets.bounds import Bound, Expectations, bound, picodollars
from tokenmeter.budgets.matching import Cap, Keys
from tokenmeter.budgets.policy import IN_FLIGHT, amount_of
from tokenmeter.budgets.tokens import TokenCounter
from tokenmeter.call import Call
from tokenmeter.errors import BudgetExceededError, BudgetReservedError, RequestTooLargeError, StoreError
from tokenmeter.ledger import Claim, CounterKey
from tokenmeter.money import EXACT, add, multiply
from tokenmeter.pricing import Ceiling
from tokenmeter.stores.base import CapReachedError, Counter, Store
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.values import dataclass

#: Limits that every call takes one of, whatever it costs.
_BY_CALL = frozenset({"requests", IN_FLIGHT})

#: No smaller output cap is ever set on a request: some endpoints refuse less.
LEAST_INJECTED = 16


class LocalCounters(Protocol):
    """Counters of this process alone."""

    @property
    def place(self) -> str:
        """Where in the code they begin."""
        ...

    def counter(self, key: CounterKey) -> Counter:
        """Where one stands."""
        ...


@dataclass(frozen=True, slots=True)
class HeldBudget:
    """One hard budget that applies to a call.

    Attributes:
        cap: The budget's limit.
        scope: Scope values of its counter.
        keys: Its counters with their windows' ends: one, or all overlapping windows of a rate limit.
        limit: What the limit is now, for this scope: grants and the member's own limit included.
        run: Whose counter it is, where it is in no store (`tokenmeter.budget`).
    """

    cap: Cap
    scope: dict[str, str]
    keys: Keys
    limit: int
    run: LocalCounters | None = None


@dataclass(frozen=True, slots=True)
class Demand:
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
    holds: Sequence[HeldBudget] = ()
    claims: tuple[Claim, ...] = ()
    bound: Bound | None = None
    injectable: bool = False
    inject_max_output_tokens: int | None = None

    def claims_of_runs(self) -> dict[Any, list[Claim]]:
        """What is asked of counters that are in no store, per run."""
        runs = {key: hold.run for hold in self.holds if hold.run is not None for key, _ in hold.keys}
        found: dict[Any, list[Claim]] = {}
        for claim in self.claims if runs else ():
            if claim.key in runs:
                found.setdefault(runs[claim.key], []).append(claim)
        return found

    def hold_of(self, key: CounterKey) -> HeldBudget:
        """The hold that a claim's counter belongs to."""
        return next(hold for hold in self.holds for own, _ in hold.keys if own == key)


class UnboundedError(Exception):
    """A call has no upper bound and `hold` only admits calls that have one. Turned into an error for the caller."""

    def __init__(self, hold: HeldBudget, upper: Bound) -> None:
        super().__init__(hold, upper)
        self.hold = hold
        self.upper = upper


def make_plan(
    call: Call,
    at: datetime,
    holds: Sequence[HeldBudget],
    *,
    ceiling: Ceiling | None,
    learned: Expectations,
    store: Store,
    tokens: TokenCounter | None,
    inject: bool,
) -> Demand:
    """Bound `call` and turn its holds into claims.

    Args:
        call: The call.
        at: When it leaves.
        holds: The hard budgets that apply to it.
        ceiling: The dearest rates that can apply to it; None for an unknown model.
        learned: For budgets that go by expectations.
        store: To look up what the budgets can still pay for, if a cap is to be injected.
        tokens: Counts the prompt's longer texts, where a tokenizer is at hand.
        inject: Inject a cap, where that is wanted: the model's own maximum did not fit. A model whose maximum is not
            known gets one in any case.

    Raises:
        UnboundedError: it has no upper bound, and a budget refuses such calls.
    """
    if all(hold.cap.unit in _BY_CALL for hold in holds):
        return Demand(call, at, holds, _claims(holds, [_by_call(hold, call) for hold in holds]))
    upper = bound(call, ceiling, tokens)
    injectable = _is_injectable(call, upper, holds)
    cap = injected(upper, holds, store) if injectable and (inject or upper.output_tokens is None) else None
    if cap is not None:
        call = replace(call, facts=replace(call.facts, max_output_tokens=cap))
        upper = bound(call, ceiling, tokens)
    most = {unit: upper.amount(unit) for unit in {hold.cap.unit for hold in holds}}
    amounts = [_amount(hold, call, upper, most[hold.cap.unit], learned) for hold in holds]
    return Demand(call, at, holds, _claims(holds, amounts), upper, injectable, cap)


def _by_call(hold: HeldBudget, call: Call) -> int:
    """What a call takes of a limit that every call takes one of: a session is one request, however long it goes on."""
    return 0 if call.goes_on and hold.cap.unit != IN_FLIGHT else 1


_claim_key = attrgetter("key")


def _claims(holds: Sequence[HeldBudget], amounts: Sequence[int]) -> tuple[Claim, ...]:
    claims = [
        Claim(key, hold.limit, amount or int(not hold.limit), end)  # a limit of zero stops what costs nothing as well
        for hold, amount in zip(holds, amounts, strict=True)
        for key, end in hold.keys
    ]
    if len(claims) > 1:
        claims.sort(key=_claim_key)
    return tuple(claims)


def _amount(hold: HeldBudget, call: Call, upper: Bound, most: int | None, learned: Expectations) -> int:
    budget, unit = hold.cap.budget, hold.cap.unit
    if unit in _BY_CALL:
        return _by_call(hold, call)
    if most is None and upper.cost_at_dearest is not None and unit == "usd" and budget.unknown_price == "hold":
        return picodollars(upper.cost_at_dearest)
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
    return max(picodollars(add(upper.input_cost, multiply(upper.output_rate, output))), 1)


def _is_injectable(call: Call, upper: Bound, holds: Sequence[HeldBudget]) -> bool:
    """Whether the request may get an output cap: a budget wants it, the caller named none, nothing else is unknown."""
    return (
        call.facts.max_output_tokens is None
        and not call.facts.unclear_limit
        and not call.as_written
        and upper.output_tokens != 0
        and set(upper.reasons) <= {"no_output_cap", "unknown_price"}
        and any(hold.cap.budget.inject_max_tokens for hold in holds)
    )


def injected(upper: Bound, holds: Sequence[HeldBudget], store: Store) -> int | None:
    """The output cap that all budgets can still pay for; None when the model's own maximum fits after all."""
    paying = [hold for hold in holds if hold.cap.unit not in _BY_CALL]
    counters = _counters(paying, store)
    affordable: list[int] = []
    for hold in paying:
        taken = max(counters[key].settled + counters[key].reserved for key, _ in hold.keys)
        most = upper.affordable_output_tokens(hold.cap.unit, hold.limit - taken)
        if most is None:
            return None
        affordable.append(most)
    least = min(affordable)
    if upper.max_output_tokens is not None and least >= upper.max_output_tokens:
        return None
    return max(least, LEAST_INJECTED)


def explain(stop: CapReachedError, plan: Demand, *, store: Store, wait: Decimal) -> BudgetExceededError:
    """The error for a claim that did not fit.

    Settled spending that leaves no room is `BudgetExceededError`; room that only calls in flight take is
    `BudgetReservedError`; a call that needs more than the settled spending leaves is `RequestTooLargeError`.

    Args:
        stop: What the store said.
        plan: What was asked of it.
        store: To look up a rate limit's other windows.
        wait: Seconds after which a call in flight has likely ended.
    """
    claim, hold = stop.claim, plan.hold_of(stop.claim.key)
    cap, room = hold.cap, hold.limit - stop.settled
    affordable = plan.bound.affordable_output_tokens(cap.unit, room) if plan.bound else None
    free_at = _free_at(hold, claim.amount, store) if cap.rolling else claim.window_end
    until_free = _until_free(cap, free_at, plan.at)
    values = _fields(hold, Counter(stop.settled, stop.reserved), plan.call)
    values["requested"] = amount_of(cap.unit, claim.amount)
    values |= _until(cap, free_at)
    values["model"] = plan.call.facts.model
    if claim.amount <= room:
        soonest = wait if until_free is None else min(wait, until_free)
        reason = "Calls in flight hold the rest; try again when they have ended."
        return BudgetReservedError(reason, retry_after=soonest, **values)
    if room > 0 and (claim.amount > hold.limit or affordable):
        reason = "It needs more than the window has left; ask for fewer output tokens or send a shorter prompt."
        return RequestTooLargeError(reason, retry_after=until_free, max_affordable_output_tokens=affordable, **values)
    return BudgetExceededError(_say_what_helps(hold, room, values["resets_at"]), retry_after=until_free, **values)


def refuse(error: UnboundedError, call: Call, at: datetime, *, store: Store) -> RequestTooLargeError:
    """The error for a call without an upper bound, under a budget that only admits calls which have one."""
    hold = error.hold
    key, end = hold.keys[0]
    return RequestTooLargeError(
        f"That is because {error.upper.explain()}. {_mend(error)}",
        requested=None,
        retry_after=_until_free(hold.cap, end, at),
        **_until(hold.cap, end),
        model=call.facts.model,
        **_fields(hold, _read([hold], store)[key], call),
    )


def _say_what_helps(hold: HeldBudget, room: int, resets_at: datetime | None) -> str:
    """What lets calls pass again: shorter ones, where something is left, and what helps where waiting does not."""
    unit, helps = hold.cap.unit, list[str]()
    if room > 0:
        left = f"${amount_of(unit, room):f}" if unit == "usd" else f"{room} {unit}"
        helps.append(f"What is left, {left}, is for smaller calls, such as with a shorter prompt.")
    elif hold.run is not None:
        helps.append("That is all this run may use.")
    if hold.run is not None:
        helps.append("What is left to do needs another run, or a larger limit.")
    elif resets_at is None:
        helps.append(
            f"It never resets: grant it more (`tokenmeter budgets grant {shlex.quote(hold.cap.budget.name)} ...`), or "
            "raise its limit."
        )
    return " ".join(helps)


def _until_free(cap: Cap, free_at: int | None, at: datetime) -> Decimal | None:
    """Seconds until the window ends, or before that the budget; None when neither does."""
    until = cap.ends_first(free_at)
    return None if until is None else EXACT.scaleb(Decimal(max(until - to_microseconds(at), 0)), -6)


def _until(cap: Cap, free_at: int | None) -> dict[str, Any]:
    """Until when a cap stops calls: the end of the window, or before that of the budget."""
    until = cap.ends_first(free_at)
    return {"resets_at": None if until is None else from_microseconds(until), "ends": cap.ends_with(free_at)}


def _mend(error: UnboundedError) -> str:
    if error.upper.reasons == ("unknown_price",):
        return "Give the model a price ([[prices]]), or set unknown_price='hold' on the budget."
    if "started" in error.upper.reasons:
        return (
            "Set unbounded='expected' on the budget to let such work start while the budget has room; "
            "what it costs counts then."
        )
    return "Change that, or set unbounded='expected' on the budget to hold what such calls usually use."


def _fields(hold: HeldBudget, counter: Counter, call: Call) -> dict[str, Any]:
    unit, key = hold.cap.unit, call.api_key if "api_key" in hold.scope else None
    return {
        "budget": hold.cap.budget.name,
        "scope": hold.scope,
        "unit": unit,
        "limit": amount_of(unit, hold.limit),
        "spent": amount_of(unit, counter.settled),
        "reserved": amount_of(unit, counter.reserved),
        "key_name": None if key is None else key.name,
        "place": None if hold.run is None else hold.run.place,
    }


def _counters(holds: Sequence[HeldBudget], store: Store) -> Mapping[CounterKey, Counter]:
    """Where the counters of `holds` stand."""
    stored = [key for hold in holds if hold.run is None for key, _ in hold.keys]
    local = {key: hold.run.counter(key) for hold in holds if hold.run is not None for key, _ in hold.keys}
    return {**(store.counters(stored) if stored else {}), **local}


def _read(holds: Sequence[HeldBudget], store: Store) -> Mapping[CounterKey, Counter]:
    """Counters that complete an error's figures. A store that fails now has said no already: that stands."""
    try:
        return _counters(holds, store)
    except StoreError:
        return {key: Counter() for hold in holds for key, _ in hold.keys}


def _free_at(hold: HeldBudget, amount: int, store: Store) -> int | None:
    """When a rate limit has room again: the end of its last window that is too full now."""
    counters = _read([hold], store)
    full = [
        end
        for key, end in hold.keys
        if counters[key].settled + counters[key].reserved + amount > hold.limit or amount > hold.limit
    ]
    return full[-1] if full else hold.keys[0][1]
