"""All budgets of a meter: what they ask of a call, what an entry adds to them, and how they are changed."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from pathlib import Path

from tokenmeter.budgets.alerts import Alert, AlertQueue, AlertTarget
from tokenmeter.budgets.bounds import Ceilings, Expectations, picodollars
from tokenmeter.budgets.counting import count, spent_by
from tokenmeter.budgets.definitions import (
    Change,
    Grant,
    Policy,
    file_change,
    file_grant,
    grants_of,
    history,
    read_policy,
    whoami,
)
from tokenmeter.budgets.holds import Fault, Holds, Rate, unanswered
from tokenmeter.budgets.limits import AskedLimits, room
from tokenmeter.budgets.matching import Cap, CapIndex, Subject, parse_scope
from tokenmeter.budgets.plan import Hold, Plan, UnboundedError, explain, make_plan, refuse
from tokenmeter.budgets.policy import (
    IN_FLIGHT,
    Budget,
    Unit,
    amount_of,
    check_consistent,
    parse_limit,
    threshold_amounts,
)
from tokenmeter.budgets.status import Balance, audit, balances
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.call import Call
from tokenmeter.errors import ConfigurationError, StoreBusyError
from tokenmeter.forks import after_fork_in_child
from tokenmeter.ledger import CounterKey, Entry, Posting, Reservation, ThresholdCrossing, new_id
from tokenmeter.money import ZERO, parse_decimal
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.stores.base import Fault as CounterFault
from tokenmeter.usage import Usage

__all__ = ["Budgets", "Held"]

log = logging.getLogger("tokenmeter")

_HOST = socket.gethostname()
#: How often a plan is made anew when its counters moved before it was held.
_ATTEMPTS = 3
_MOST_OPENED = 65_536


@dataclass(frozen=True, slots=True)
class Held:
    """What was held for a call.

    Attributes:
        reservation: The hold.
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
    """

    reservation: Reservation
    inject_max_output_tokens: int | None


@dataclass(frozen=True, slots=True)
class _InForce:
    """The budgets of one generation of the ledger's policy, prepared."""

    generation: int | None
    policy: Policy
    changes: Mapping[str, Change]
    caps: Mapping[str, Cap]
    all: CapIndex
    hard: CapIndex
    applied: bool

    @classmethod
    def of(cls, policy: Policy, changes: Mapping[str, Change], *, generation: int | None, applied: bool) -> _InForce:
        caps = [
            Cap(change.budget, unit, era=change.era, defined_at=change.counted_since)
            for change in changes.values()
            if change.budget is not None
            for unit in change.budget.units
        ]
        return cls(
            generation,
            policy,
            changes,
            {cap.counter_name: cap for cap in caps},
            CapIndex(cap for cap in caps if cap.counts),
            CapIndex(cap for cap in caps if cap.budget.hard),
            applied,
        )


class Budgets:
    """The budgets of one ledger, as one process sees them.

    Which budgets there are is said by the ledger: each definition is a document in it, so that every process obeys the
    same ones and learns of a change with its next call. The budgets given here are declared: they are filed when the
    first call needs them, unless the ledger has them already.

    Args:
        store: The ledger.
        pricer: Its prices and terms.
        declared: Budgets of the settings or of code; exact repetitions count once.
        alerts: Whom to tell of crossed thresholds besides the log.
        source: Where the declared ones are said; default: the code of this program.
        hold_time: How long a call may be in flight before its hold expires.
        rate: Rates the estimate of an expired hold; must not raise.
        fault: Told of faults that must not reach a caller.

    Raises:
        ConfigurationError: declared budgets contradict each other.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        declared: Iterable[Budget] = (),
        *,
        alerts: Iterable[AlertTarget] = (),
        source: str | None = None,
        hold_time: timedelta,
        rate: Rate,
        fault: Fault,
    ) -> None:
        self.declared = check_consistent(declared)
        self.alerts = AlertQueue(alerts)
        self._source = source or f"code of {Path(sys.argv[0]).name or 'python'}"
        self._store = store
        self._pricer = pricer
        self._fault = fault
        self._holds = Holds(
            store,
            pricer,
            hold_time=hold_time,
            rate=rate,
            fault=fault,
            postings=self.postings,
            announce=self.announce,
        )
        self._learned = Expectations()
        self._ceilings = Ceilings()
        self._asked = AskedLimits()
        self._opened: set[CounterKey] = set()
        self._told: set[tuple[str, int]] = set()
        self._state = self._declared_only()

    # -- which budgets there are

    @property
    def in_force(self) -> tuple[Budget, ...]:
        """The budgets that count now: what the ledger says, and what is declared and not filed yet. Nothing is written.

        Raises:
            StoreUnavailableError: the ledger cannot be read.
        """
        return tuple(change.budget for change in self._read().changes.values() if change.budget is not None)

    @property
    def caps(self) -> Mapping[str, Cap]:
        """The limits in force, prepared, by their counters' name."""
        return self._read().caps

    def changes(self) -> list[Change]:
        """The definitions in force, each with who said it, when and where."""
        return list(self._read().changes.values())

    def history(self, name: str | None = None) -> list[Change]:
        """Every definition, change and end of one budget, or of all, the first first."""
        return history(self._read().policy, name)

    def grants(self, name: str, scope: Mapping[str, str] | None = None) -> list[Grant]:
        """The grants of a budget, or of one of its counters, the first first."""
        return grants_of(self._read().policy, name, scope)

    def _declared_only(self) -> _InForce:
        return _InForce.of(Policy(), _joined(Policy(), self.declared, self._source), generation=None, applied=False)

    def _read(self) -> _InForce:
        """The budgets in force, for reading: nothing is written."""
        generation = self._store.generation()
        state = self._state
        if state.generation != generation:
            policy = read_policy(self._store)
            changes = self._with_functions(_joined(policy, self.declared, self._source))
            state = _InForce.of(policy, changes, generation=generation, applied=not self.declared)
            if self._state.generation is None or state.applied:
                self._state = state
        return state

    def _current(self, *, wait: bool) -> _InForce:
        """The budgets in force, for calls: what is declared is filed first, once.

        Raises:
            StoreBusyError: ``wait=False`` and the ledger has to be asked.
        """
        state = self._state
        try:
            if state.applied and state.generation == self._store.generation():
                return state
            if wait:
                with _reading:
                    return self._apply_declared()
        except Exception as error:  # noqa: BLE001 - what is known holds on; a hard cap's own reserve fails closed
            self._fault("read the ledger's budgets", error)
            return state
        raise StoreBusyError("The ledger's budgets have to be read first; call again from a thread.")

    def _apply_declared(self) -> _InForce:
        while True:
            generation = self._store.generation()
            if self._state.applied and self._state.generation == generation:
                return self._state
            policy = read_policy(self._store)
            if self._state.applied or not self._file_declared(policy):
                break
        changes = self._with_functions(policy.in_force())
        self._state = _InForce.of(policy, changes, generation=generation, applied=True)
        self._tell_contradictions(policy)
        return self._state

    def _file_declared(self, policy: Policy) -> bool:
        """File what this process declares and the ledger does not have; whether anything was filed."""
        filed = False
        for budget in self.declared:
            if _is_news(policy, budget, self._source):
                versions = policy.changes.get(budget.name, ())
                file_change(
                    self._store,
                    budget.name,
                    budget,
                    version=len(versions) + 1,
                    by=whoami(),
                    reason="declared",
                    source=self._source,
                )
                filed = True
        return filed

    def _with_functions(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Limit functions are known to the ledger by name; the process that has them puts them in."""
        own = {budget.name: budget for budget in self.declared if callable(budget.limit)}
        return {
            name: replace(change, budget=own[name])
            if name in own and change.budget is not None and _is_same(own[name], change.budget)
            else change
            for name, change in changes.items()
        }

    def _tell_contradictions(self, policy: Policy) -> None:
        """Say where the ledger says otherwise than this process, once per version."""
        for budget in self.declared:
            change = policy.changes[budget.name][-1]
            if (change.budget is not None and _is_same(budget, change.budget)) or (
                budget.name,
                change.version,
            ) in self._told:
                continue
            self._told.add((budget.name, change.version))
            when = "" if change.at is None else f" on {change.at:%Y-%m-%d %H:%M} UTC"
            if change.budget is None:
                counts = f"it was ended in the ledger{when} by {change.by} ({change.reason}), and stays ended"
            else:
                counts = (
                    f"in the ledger it is {change.budget!r}, set{when} by {change.by} ({change.source}): that counts"
                )
            log.warning(
                "Budget %r is declared in %s as %r, but %s. To agree, change the declaration, or apply it with "
                "`tokenmeter budgets apply` or meter.budgets.set(...).",
                budget.name,
                self._source,
                budget,
                counts,
            )
        if self._source.startswith("code of "):
            return
        here = {budget.name for budget in self.declared}
        for name, change in policy.in_force().items():
            if change.source == self._source and name not in here and (name, change.version) not in self._told:
                self._told.add((name, change.version))
                log.warning(
                    "Budget %r is in force and was declared in %s, where it no longer stands. "
                    "`tokenmeter budgets retire %s` ends it.",
                    name,
                    self._source,
                    name,
                )

    # -- changing them

    def set(self, budget: Budget, *, by: str | None = None, reason: str = "", source: str = "run time") -> Change:
        """Define a budget, or change the one of this name; every process obeys it with its next call.

        What was spent stays counted: another limit keeps the counters, another scope counts anew from the ledger.

        Args:
            budget: The definition.
            by: Who decided it; default: the account this program runs under.
            reason: Why.
            source: Where it was said.

        Returns:
            The definition in force.

        Raises:
            StoreUnavailableError: it could not be recorded.
        """
        return self._change(budget.name, budget, by=by or whoami(), reason=reason, source=source)

    def retire(self, name: str, *, by: str | None = None, reason: str = "", source: str = "run time") -> Change:
        """End a budget. Its history stays; setting it again counts from the ledger.

        Raises:
            ConfigurationError: no budget of this name is in force.
            StoreUnavailableError: it could not be recorded.
        """
        self._named(self._read_applied(), name)
        return self._change(name, None, by=by or whoami(), reason=reason, source=source)

    def _change(self, name: str, budget: Budget | None, *, by: str, reason: str, source: str) -> Change:
        while True:
            versions = self._read_applied().policy.changes.get(name, ())
            last = versions[-1] if versions else None
            if last is not None and _is_same_or_gone(last.budget, budget):
                return last
            file_change(self._store, name, budget, version=len(versions) + 1, by=by, reason=reason, source=source)

    def apply(
        self,
        budgets: Iterable[Budget],
        *,
        source: str,
        by: str | None = None,
        reason: str = "applied",
        dry_run: bool = False,
    ) -> list[Change]:
        """Make the ledger say what `budgets` say, and end those that `source` said earlier and says no longer.

        Args:
            budgets: All budgets of that source.
            source: Where they stand.
            by: Who applies them; default: the account this program runs under.
            reason: Why.
            dry_run: Say what would change, and change nothing.

        Returns:
            What changed, or would; a change that is not filed has no `Change.document_id`.

        Raises:
            ConfigurationError: they contradict each other.
            StoreUnavailableError: the ledger cannot be read or written.
        """
        wanted = {budget.name: budget for budget in check_consistent(budgets)}
        policy = read_policy(self._store)
        in_force = policy.in_force()
        due: dict[str, Budget | None] = {
            name: budget
            for name, budget in wanted.items()
            if name not in in_force or not _is_same_or_gone(in_force[name].budget, budget)
        }
        due |= {name: None for name, change in in_force.items() if change.source == source and name not in wanted}
        who = by or whoami()
        if dry_run:
            return [
                Change(
                    name=name,
                    version=len(policy.changes.get(name, ())) + 1,
                    what="retire" if budget is None else "set",
                    budget=budget,
                    at=None,
                    by=who,
                    reason=reason,
                    source=source,
                )
                for name, budget in due.items()
            ]
        return [self._change(name, budget, by=who, reason=reason, source=source) for name, budget in due.items()]

    def grant(
        self,
        name: str,
        amount: Decimal | int | str,
        *,
        by: str,
        reason: str,
        scope: Mapping[str, str] | None = None,
        unit: Unit | None = None,
        at: datetime | None = None,
        expires: datetime | date | str | None = None,
        key: str | None = None,
    ) -> Grant:
        """Give one counter of a budget more room: a raise for one window, or prepaid credit on one that never resets.

        What expires first is spent first; what is left of it at its expiry is gone.

        Args:
            name: The budget's name.
            amount: How much, in the budget's unit; negative takes back.
            by: Who decided it.
            reason: Why.
            scope: Which counter, where the budget has a ``"*"``: ``{"member": "ada"}``.
            unit: Which limit, where the budget has several.
            at: An instant in the window that is meant, from which on it counts; default: now.
            expires: First instant at which what is left of it is gone; default: with the window.
            key: Identity of the grant, such as a payment's: the same key is granted once, however often it is sent.

        Returns:
            The grant as it stands in the ledger.

        Raises:
            ConfigurationError: no such budget or counter, or a wrong amount or expiry.
            StoreUnavailableError: it could not be recorded.
        """
        state = self._read_applied()
        budget = self._named(state, name)
        cap = _cap_of(state, budget, unit)
        full = _full_scope(budget, scope or {})
        number = parse_decimal(amount, name="amount")
        if not number:
            raise ConfigurationError("amount must not be zero.")
        if parse_limit(abs(number), cap.unit, name="amount") == 0 or cap.rolling or not cap.counts:
            raise ConfigurationError(f"Budget {name!r} is a rate limit; change its limit instead of granting more.")
        begins = at or self._store.now()
        ends = None if expires is None else parse_instant(expires, budget.tz)
        if ends is not None and ends <= begins:
            raise ConfigurationError(f"expires must be later than {begins.isoformat()}, not {ends.isoformat()}.")
        (window_start, _), *_ = cap.spans(microseconds(begins))
        grant = Grant(
            grant_id=key or new_id(),
            budget=name,
            scope=full,
            unit=cap.unit,
            amount=number,
            starts=begins,
            expires=ends,
            window_start=window_start,
            at=self._store.now(),
            by=by,
            reason=reason,
        )
        file_grant(self._store, grant)
        filed = (one for one in self.grants(name) if one.grant_id == grant.grant_id)
        return next(filed)

    def forget_limits(self, name: str, value: str | None = None) -> None:
        """Ask a budget's limit function again with the next call: for one member (or the like), or for all."""
        self._asked.forget(name, value)

    def _read_applied(self) -> _InForce:
        return self._current(wait=True)

    @staticmethod
    def _named(state: _InForce, name: str) -> Budget:
        change = state.changes.get(name)
        if change is None or change.budget is None:
            names = ", ".join(map(repr, state.changes)) or "none"
            raise ConfigurationError(f"No budget is called {name!r}; in force: {names}.")
        return change.budget

    # -- before the call

    def hold(self, call: Call, at: datetime, *, wait: bool) -> Held | None:
        """Hold what `call` may cost in every hard budget that applies; None when none does.

        Raises:
            BudgetExceededError: a budget has no room; nothing was held.
            StoreBusyError: ``wait=False`` and the store's lock is taken.
            StoreUnavailableError: the store fails, or a limit is not known.
        """
        state = self._current(wait=wait)
        if not state.hard:
            return None
        self._holds.sweep_sometimes()
        swept, attempt = False, 1
        while True:
            plan = self._plan(state, call, at, inject=attempt > 1, wait=wait)
            if not plan.claims:
                return None
            reservation = self._reservation(plan)
            try:
                self._store.reserve(reservation, wait=wait)
            except CapReachedError as stop:
                if stop.reserved and not swept:
                    swept = True
                    if self._holds.make_room(wait=wait):
                        continue
                if not plan.injectable or attempt == _ATTEMPTS:
                    raise explain(stop, plan, store=self._store, wait=self._learned.wait(plan.call)) from None
                attempt += 1
            else:
                return Held(reservation, plan.inject_max_output_tokens)

    def _plan(self, state: _InForce, call: Call, at: datetime, *, inject: bool, wait: bool) -> Plan:
        found = state.hard.find(Subject.of_call(call), at)
        if not found:
            return Plan(call, at)
        now = microseconds(at)
        holds: list[Hold] = []
        for cap, scope in found:
            keys = cap.keys(scope, now)
            self._open(cap, scope, keys, wait=wait)
            if not wait and not self._asked.is_known(cap, scope):
                raise StoreBusyError("A limit function has to be asked; call again from a thread.")
            holds.append(Hold(cap, scope, keys, self._limit(state, cap, scope, keys[0][0], now)))
        try:
            return make_plan(
                call,
                at,
                holds,
                ceiling=self._ceilings.of(call, at, self._pricer),
                learned=self._learned,
                store=self._store,
                inject=inject,
            )
        except UnboundedError as error:
            raise refuse(error, call, at, store=self._store) from None

    def _limit(self, state: _InForce, cap: Cap, scope: Mapping[str, str], key: CounterKey, now: int) -> int:
        """The limit of one counter now, with what was granted in its window."""
        limit = self._asked.of(cap, scope)
        granted = state.policy.grants.get((cap.budget.name, cap.unit, key.scope))
        if not granted or not cap.counts:
            return limit
        here = [grant for grant in granted if grant.window_start == key.window_start]

        def spent_before(moment: int) -> int:
            return count(cap, scope, key.window_start, moment, store=self._store, pricer=self._pricer)

        return room(limit, here, now, spent_before) if here else limit

    def _open(
        self, cap: Cap, scope: Mapping[str, str], keys: Iterable[tuple[CounterKey, int | None]], *, wait: bool
    ) -> None:
        """Give counters of windows that began before their budget was defined what the ledger holds already.

        Raises:
            StoreBusyError: ``wait=False``: the ledger has to be read first.
            StoreUnavailableError: it cannot be read.
        """
        new = [
            (key, end)
            for key, end in keys
            if key.window_start < cap.counted_since_us and key not in self._opened and cap.counts
        ]
        if not new:
            return
        if not wait:
            raise StoreBusyError("A new budget has to be looked up in the ledger first; call again from a thread.")
        known = self._store.counters([key for key, _ in new])
        opening: dict[CounterKey, tuple[int, int | None]] = {}
        for key, end in new:
            if not (known[key].settled or known[key].reserved):
                amount = count(cap, scope, key.window_start, end, store=self._store, pricer=self._pricer)
                if amount:
                    opening[key] = (amount, end)
        if opening:
            self._store.open_counters(opening)
        if len(self._opened) >= _MOST_OPENED:
            self._opened.clear()
        self._opened.update(key for key, _ in new)

    def _reservation(self, plan: Plan) -> Reservation:
        return Reservation(
            reservation_id=new_id(),
            claims=plan.claims,
            created_at=plan.at,
            expires_at=plan.at + self._holds.hold_time,
            owner=f"{_HOST}:{os.getpid()}",
            call=unanswered(plan.call, plan.at),
        )

    def fails_closed(self, call: Call, at: datetime) -> bool:
        """Whether `call` must not leave while the store fails."""
        found = self._state.hard.find(Subject.of_call(call), at)
        return any(cap.budget.store_failure == "closed" for cap, _ in found)

    def extend(self, reservation_id: str) -> None:
        """Give a hold its full time again. Never waits, never raises."""
        self._holds.extend(reservation_id)

    def sweep(self, now: datetime) -> int:
        """Turn holds that expired before `now` into estimated entries; how many.

        Raises:
            StoreUnavailableError: the store fails.
        """
        return self._holds.sweep(now)

    # -- after the call

    def postings(self, entry: Entry, *, wait: bool = True) -> tuple[Posting, ...]:
        """What `entry` adds to the counters, hard and soft, in key order.

        Tokens whose price is not known count at the dearest known rate, never at nothing.

        Raises:
            StoreBusyError: ``wait=False``: the ledger has to be read first.
        """
        state = self._current(wait=wait)
        if not state.all:
            return ()
        now = microseconds(entry.occurred_at)
        spent: dict[Unit, int] = {}
        postings: list[Posting] = []
        for cap, scope in state.all.find(Subject.of_entry(entry), entry.occurred_at):
            unit = cap.unit
            if unit not in spent:
                spent[unit] = spent_by(entry, unit, self._pricer)
            if not (amount := spent[unit]):
                continue
            keys = cap.keys(scope, now)
            self._open_quietly(cap, scope, keys, wait=wait)
            amounts = self._thresholds(state, cap, scope, keys[0][0], now)
            postings += [
                Posting(key, amount, amounts if cap.alerts_at(key.window_start) else (), end) for key, end in keys
            ]
        if len(postings) > 1:
            postings.sort(key=_posting_key)
        return tuple(postings)

    def _open_quietly(
        self, cap: Cap, scope: Mapping[str, str], keys: Iterable[tuple[CounterKey, int | None]], *, wait: bool
    ) -> None:
        try:
            self._open(cap, scope, keys, wait=wait)
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the entry is recorded whatever comes of it
            self._fault("look up a new budget in the ledger", error)

    def _thresholds(
        self, state: _InForce, cap: Cap, scope: Mapping[str, str], key: CounterKey, now: int
    ) -> tuple[int, ...]:
        if not cap.budget.thresholds:
            return ()
        try:
            limit = self._limit(state, cap, scope, key, now)
        except Exception as error:  # noqa: BLE001 - an alert less; the entry counts
            self._fault("look up a budget's limit", error)
            return ()
        return tuple(threshold_amounts(cap.budget, limit)) if limit else ()

    def bound_violated(self, reservation: Reservation, usage: Usage, billed_cost: Decimal | None) -> bool:
        """Whether a call used more than the strict bound that was held for it."""
        spent: dict[Unit, int] = {
            "usd": picodollars(billed_cost or ZERO),
            "tokens": usage.total_tokens,
            "requests": 1,
            IN_FLIGHT: 1,
        }
        caps = self._state.caps
        held = ((claim.amount, caps.get(claim.key.budget)) for claim in reservation.claims)
        return any(cap is not None and amount < spent[cap.unit] and cap.strict for amount, cap in held)

    def learn(self, entry: Entry) -> None:
        """Remember what a call used and how long it took: what others are expected to, and have to wait."""
        if self._state.hard:
            self._learned.learn(entry)

    def take_back_estimate(self, reservation: Reservation) -> None:
        """After a settlement that found no hold: if it was swept, its estimate now stands beside the true entry."""
        self._holds.take_back_estimate(reservation)

    def announce(self, crossings: Sequence[ThresholdCrossing]) -> None:
        """Tell of crossed thresholds. Never waits for a target, never raises."""
        for crossing in crossings:
            try:
                cap = self._state.caps.get(crossing.key.budget)
                if cap is not None:
                    self.alerts.submit(self._alert(cap, crossing))
            except Exception as error:  # noqa: BLE001 - nobody waits for it
                self._fault("announce a crossed threshold", error)

    def _alert(self, cap: Cap, crossing: ThresholdCrossing) -> Alert:
        key = crossing.key
        scope = parse_scope(key.scope)
        limit = self._limit(self._state, cap, scope, key, microseconds(self._store.now()))
        start, end = next(
            (span for span in cap.spans(key.window_start) if span[0] == key.window_start), (key.window_start, None)
        )
        percents = threshold_amounts(cap.budget, limit)
        return Alert(
            budget=cap.budget.name,
            scope=scope,
            unit=cap.unit,
            threshold=percents.get(crossing.threshold, crossing.threshold * 100 // max(limit, 1)),
            limit=amount_of(cap.unit, limit),
            spent=amount_of(cap.unit, crossing.settled),
            window_start=from_microseconds(start),
            window_end=None if end is None else from_microseconds(end),
            at=self._store.now(),
            hard=cap.budget.hard,
        )

    # -- reading

    def remaining(self, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
        """Where the budgets stand that concern `wanted` (field -> value, tags as ``tag:NAME``); nothing is written."""
        state = self._read()

        def limit_of(cap: Cap, scope: Mapping[str, str], key: CounterKey) -> int:
            return self._limit(state, cap, scope, key, microseconds(at))

        def named(cap: Cap) -> Iterator[Mapping[str, str]]:
            budget = cap.budget
            if isinstance(budget.limit, Mapping):
                for value in budget.limit:
                    yield budget.scope | {str(budget.open_field): value}
            for (name, unit, text), granted in state.policy.grants.items():
                starts = {start for start, _ in cap.spans(microseconds(at))}
                if (name, unit) == (budget.name, cap.unit) and any(one.window_start in starts for one in granted):
                    yield parse_scope(text)

        return balances(state.caps.values(), self._store, self._pricer, wanted, at, limit_of=limit_of, named=named)

    def audit(self, *, repair: bool = False) -> Sequence[CounterFault]:
        """Counters of budgets in force that differ from the ledger; see `tokenmeter.budgets.status.audit`."""
        return audit(self._read().caps, self._store, self._pricer, now=self._store.now(), repair=repair)


def _joined(policy: Policy, declared: Iterable[Budget], source: str) -> dict[str, Change]:
    """What is in force, and what would be once `declared` is filed."""
    joined = policy.in_force()
    for budget in declared:
        if _is_news(policy, budget, source):
            before = joined.get(budget.name)
            joined[budget.name] = Change(
                name=budget.name,
                version=len(policy.changes.get(budget.name, ())) + 1,
                what="set",
                budget=budget,
                at=None,
                by=whoami(),
                reason="declared",
                source=source,
                era=1 if before is None else before.era,
                counted_since=None if before is None else before.counted_since,
            )
    return joined


def _is_news(policy: Policy, budget: Budget, source: str) -> bool:
    """Whether a declaration is to be filed: nobody said anything yet, or this source said otherwise the last time.

    What the source said before was overruled by whoever changed it since; another source's word is not overruled by a
    mere declaration.
    """
    versions = policy.changes.get(budget.name)
    if not versions:
        return True
    said = policy.said_by(source, budget.name)
    return (
        said is not None
        and said.budget is not None
        and not _is_same(said.budget, budget)
        and not (versions[-1].budget is not None and _is_same(versions[-1].budget, budget))
    )


def _is_same(one: Budget, other: Budget) -> bool:
    return one.to_dict() == other.to_dict()


def _is_same_or_gone(one: Budget | None, other: Budget | None) -> bool:
    return one is other or (one is not None and other is not None and _is_same(one, other))


def _cap_of(state: _InForce, budget: Budget, unit: Unit | None) -> Cap:
    found = [cap for cap in state.caps.values() if cap.budget.name == budget.name and unit in {None, cap.unit}]
    if len(found) != 1:
        raise ConfigurationError(
            f"Budget {budget.name!r} limits {', '.join(budget.units)}; say which is meant with unit=."
        )
    return found[0]


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


_posting_key = attrgetter("key")

_reading = threading.RLock()


@after_fork_in_child
def _renew_lock() -> None:
    global _reading  # noqa: PLW0603 - a lock held by another thread at the fork would never be freed in the child
    _reading = threading.RLock()
