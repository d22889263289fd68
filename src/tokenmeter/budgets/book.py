"""All budgets of a meter: what they ask of a call, what an entry posts to them, and whom they tell."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from operator import attrgetter

from tokenmeter.budgets.alerts import Alert, AlertQueue, AlertTarget
from tokenmeter.budgets.caps import Cap, CapIndex
from tokenmeter.budgets.ceilings import Ceilings
from tokenmeter.budgets.holds import TAKEN_BACK
from tokenmeter.budgets.plan import Hold, Plan, UnboundedError, make_plan
from tokenmeter.budgets.policy import Budget, Unit, check_consistent
from tokenmeter.budgets.raises import is_raise, raise_entry, raise_postings, raised_key
from tokenmeter.budgets.scopes import Subject, parse_scope
from tokenmeter.budgets.status import Balance, balances
from tokenmeter.budgets.stops import explain, refuse
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.call import Call
from tokenmeter.errors import BudgetExceededError, ConfigurationError
from tokenmeter.estimation import Expectations, picodollars
from tokenmeter.ledger import Entry, Posting, Reservation, ThresholdCrossing
from tokenmeter.money import EXACT, ZERO, quantize
from tokenmeter.pricing import Pricer
from tokenmeter.semconv import OUTPUT_METERS
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.usage import Usage

__all__ = ["BudgetBook"]

log = logging.getLogger("tokenmeter")


class BudgetBook:
    """The budgets of one meter. True when there are any.

    Args:
        budgets: The budgets; exact repetitions count once.
        alerts: Whom to tell of crossed thresholds besides the log: functions of an `Alert`, or
            `tokenmeter.budgets.webhook.Webhook`.

    Raises:
        ConfigurationError: budgets contradict each other.
    """

    def __init__(self, budgets: Iterable[Budget] = (), *, alerts: Iterable[AlertTarget] = ()) -> None:
        self.budgets = check_consistent(budgets)
        self.alerts = AlertQueue(alerts)
        self._caps = {budget.counter_name: Cap(budget) for budget in self.budgets}
        self._all = CapIndex(self._caps.values())
        self._hard = CapIndex(cap for cap in self._caps.values() if cap.budget.hard)
        self._learned = Expectations()
        self._ceilings = Ceilings()
        self._learns = any(budget.hard for budget in self.budgets)

    def __bool__(self) -> bool:
        return bool(self.budgets)

    # -- before the call

    def plan(self, call: Call, *, at: datetime, pricer: Pricer, store: Store, inject: bool = False) -> Plan:
        """What `call` asks of the hard budgets that apply to it; with `inject`, after it did not fit.

        Raises:
            BudgetExceededError: it has no upper bound, and a budget refuses such calls.
        """
        found = self._hard.find(Subject.of_call(call), at)
        if not found:
            return Plan(call, at)
        now = microseconds(at)
        holds = [Hold(cap, scope, cap.keys(scope, now)) for cap, scope in found]
        try:
            return make_plan(
                call,
                at,
                holds,
                ceiling=self._ceilings.of(call, at, pricer),
                learned=self._learned,
                store=store,
                inject=inject,
            )
        except UnboundedError as error:
            raise refuse(error, call, store=store) from None

    def explain(self, stop: CapReachedError, plan: Plan, *, store: Store) -> BudgetExceededError:
        """The error for a plan whose claim did not fit."""
        return explain(stop, plan, store=store, wait=self._learned.wait(plan.call))

    def fails_closed(self, call: Call, at: datetime) -> bool:
        """Whether `call` must not leave while the store fails."""
        found = self._hard.find(Subject.of_call(call), at)
        return any(cap.budget.store_failure == "closed" for cap, _ in found)

    # -- after the call

    def postings(self, entry: Entry, pricer: Pricer) -> tuple[Posting, ...]:
        """What `entry` adds to the counters, hard and soft, in key order.

        Tokens whose price is not known count at the dearest known rate, never at nothing.
        """
        if is_raise(entry):
            return tuple(sorted(raise_postings(entry, self._caps), key=lambda posting: posting.key))
        now = microseconds(entry.occurred_at)
        spent: dict[Unit, int] = {}
        postings: list[Posting] = []
        for cap, scope in self._all.find(Subject.of_entry(entry), entry.occurred_at):
            unit = cap.unit
            if unit not in spent:
                spent[unit] = _spent(unit, entry, pricer)
            if amount := spent[unit]:
                postings += [
                    Posting(key, amount, cap.thresholds_of(key.window_start), end) for key, end in cap.keys(scope, now)
                ]
        if len(postings) > 1:
            postings.sort(key=_posting_key)
        return tuple(postings)

    def bound_violated(self, reservation: Reservation, usage: Usage, billed_cost: Decimal | None) -> bool:
        """Whether a call used more than the strict bound that was held for it."""
        spent: dict[Unit, int] = {
            "usd": picodollars(billed_cost or ZERO),
            "tokens": usage.total_tokens,
            "requests": 1,
        }
        caps = ((claim.amount, self._caps[claim.key.budget]) for claim in reservation.claims)
        return any(amount < spent[cap.unit] and cap.strict for amount, cap in caps)

    def learn(self, entry: Entry) -> None:
        """Remember what a call used and how long it took: what others are expected to, and have to wait."""
        if self._learns:
            self._learned.learn(entry)

    def announce(self, crossings: Sequence[ThresholdCrossing], store: Store) -> None:
        """Tell of crossed thresholds. Never waits for a target."""
        for crossing in crossings:
            cap = self._caps.get(crossing.key.budget)
            if cap is not None:
                self.alerts.submit(self._alert(cap, crossing, store))

    def _alert(self, cap: Cap, crossing: ThresholdCrossing, store: Store) -> Alert:
        key, amount = crossing.key, cap.budget.amount
        raises = raised_key(key)
        raised = 0 if cap.rolling else store.counters([raises])[raises].settled
        start, end = next(
            (span for span in cap.spans(key.window_start) if span[0] == key.window_start), (key.window_start, None)
        )
        return Alert(
            budget=cap.budget.name,
            scope=parse_scope(key.scope),
            unit=cap.unit,
            threshold=cap.percents[crossing.threshold],
            limit=amount(cap.limit + raised),
            spent=amount(crossing.settled + raised),
            window_start=from_microseconds(start),
            window_end=None if end is None else from_microseconds(end),
            at=store.now(),
            hard=cap.budget.hard,
        )

    # -- reading and changing

    def remaining(self, store: Store, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
        """Where the budgets stand that concern `wanted` (scope field -> value, tags as ``tag:NAME``)."""
        return balances(self._caps.values(), store, wanted, at)

    def raise_entry(
        self, name: str, amount: object, *, by: str, reason: str, at: datetime, scope: Mapping[str, str]
    ) -> Entry:
        """The entry that raises the budget called `name` once, in the window around `at`; see `Meter.raise_budget`.

        Raises:
            ConfigurationError: no such budget, a scope value is missing or foreign, or the amount is not positive.
        """
        cap = next((cap for cap in self._caps.values() if cap.budget.name == name), None)
        if cap is None:
            names = ", ".join(repr(budget.name) for budget in self.budgets) or "none"
            raise ConfigurationError(f"No budget is called {name!r}; configured: {names}.")
        return raise_entry(cap, _full_scope(cap.budget, scope), amount, by=by, reason=reason, at=at)

    @property
    def caps(self) -> Mapping[str, Cap]:
        """The prepared budgets by counter name."""
        return self._caps


_posting_key = attrgetter("key")


def _spent(unit: Unit, entry: Entry, pricer: Pricer) -> int:
    if unit == "usd":
        cost = entry.billed_cost or ZERO
        if entry.cost_source == "unpriced" or entry.kind == "correction":
            cost += _dearest(entry, pricer)
        return picodollars(cost)
    back = TAKEN_BACK in entry.flags
    if entry.kind != "usage" and not back:  # any other correction puts a cost right, not a use
        return 0
    if unit == "tokens":
        return entry.usage.total_tokens
    return -1 if back else 1


def _dearest(entry: Entry, pricer: Pricer) -> Decimal:
    """What the unpriced tokens of `entry` cost at the dearest known rates of its provider.

    A correction that prices them later takes their unpriced lines back, and with them this estimate.
    """
    if all(charge.billed_cost is not None for charge in entry.charges):
        return ZERO
    rates = pricer.dearest_known(
        provider=entry.provider, at=entry.occurred_at, api_key=entry.api_key, attribution=entry.attribution
    )
    cost = ZERO
    for charge in entry.charges:
        if charge.billed_cost is None and charge.unit == "Tokens":
            rate = rates.output if charge.sku_meter in OUTPUT_METERS else rates.input
            cost += EXACT.multiply(rate or ZERO, charge.quantity)
    return quantize(cost)


def _full_scope(budget: Budget, given: Mapping[str, str]) -> dict[str, str]:
    scope = budget.scope
    foreign = given.keys() - scope.keys()
    missing = [name for name, value in scope.items() if value == "*" and name not in given]
    if foreign or missing:
        raise ConfigurationError(
            f"Budget {budget.name!r} has the scope {scope or 'all calls'}; "
            + (
                f"say which {', '.join(missing)} is meant."
                if missing
                else f"{', '.join(sorted(foreign))} is not in it."
            )
        )
    for name, value in given.items():
        if scope[name] not in ("*", value):
            raise ConfigurationError(f"Budget {budget.name!r} is for {name}={scope[name]!r}, not {value!r}.")
    return {name: given.get(name, value) for name, value in scope.items()}
