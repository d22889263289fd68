"""All budgets of a meter: what they ask of a call, what an entry adds to them, and how they are changed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache, partial
from operator import attrgetter

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import ApiKey
from tokenmeter.budgets.alerts import AlertTarget
from tokenmeter.budgets.bounds import Ceilings, Expectations, Sizes, longest_prompt
from tokenmeter.budgets.counting import BILLING_UNKNOWN, Openings, audit, count, spent_by, with_held
from tokenmeter.budgets.definitions import InForce
from tokenmeter.budgets.grants import add_grants, granted_to
from tokenmeter.budgets.holds import Amounts, Fault, Holds, Rate, Sent, unanswered
from tokenmeter.budgets.limits import AskedLimits, find_key
from tokenmeter.budgets.matching import Cap, CapIndex, Matched, Matching, Subject, parse_scope
from tokenmeter.budgets.missed import MissedBudgets
from tokenmeter.budgets.plan import Demand, HeldBudget, UnboundedError, explain, make_plan, refuse
from tokenmeter.budgets.policy import (
    Budget,
    Unit,
    limit_table,
    threshold_amounts,
)
from tokenmeter.budgets.registry import Registry
from tokenmeter.budgets.rules import Rule
from tokenmeter.budgets.runs import Run, RunClaims, runs_of
from tokenmeter.budgets.status import Balance, balances, keys_called
from tokenmeter.budgets.telling import Telling, tell_of_unanswered, tell_who_passes
from tokenmeter.budgets.tokens import TokenCounter
from tokenmeter.call import Call, PlainRequest, RequestFacts
from tokenmeter.errors import StoreBusyError, StoreError
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.pricing import Pricer
from tokenmeter.processes import Background, may_wait, process_name
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.stores.base import Fault as CounterFault
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.values import dataclass

#: How often a plan is made anew when its counters moved before it was held.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Held:
    """What was held for a call.

    Attributes:
        reservation: The hold in the store; None when only runs hold something.
        inject_max_output_tokens: Output cap that a budget wants set on the request; None = send it as written.
        runs: What is held in the runs around the call (`tokenmeter.budget`): to be freed when its hold ends.
    """

    reservation: Reservation | None
    inject_max_output_tokens: int | None
    runs: RunClaims


class Budgets(Registry):
    """The budgets of one ledger at work: what they ask of a call, and what an entry adds to them.

    Args:
        store: The ledger.
        pricer: Its prices and terms.
        declared: Budgets of the settings or of code; exact repetitions count once.
        alerts: Whom to tell of crossed thresholds, and of what rules find, besides the log.
        rules: What else is worth telling; looked at every five minutes while calls are made.
        source: File in which the declared ones are said; default: the code of this program.
        in_code: Names of those that code says beside the file.
        hold_time: How long a call may be in flight before its hold expires.
        rate: Rates the estimate of an expired hold; must not raise.
        fault: Told of faults that must not reach a caller.

    Attributes:
        missed: Budgets of which this process did not know while it recorded calls.
        holds: What becomes of holds after they were made.
        telling: What is told of budgets, and to whom.
        background: What of both goes on in threads.

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
        rules: Iterable[Rule] = (),
        source: str | None = None,
        in_code: Collection[str] = (),
        hold_time: timedelta,
        rate: Rate,
        fault: Fault,
    ) -> None:
        super().__init__(store, pricer, declared, source=source, in_code=in_code, fault=fault)
        self.background = Background()
        self.telling = Telling(
            store,
            alerts,
            rules,
            caps=lambda: self._state.caps,
            limit_of=lambda cap, scope, key: self._limit(
                self._state, cap, scope, key, to_microseconds(store.now()), renew=False
            ),
            limits_before=self._limits_before,
            balances=partial(self.remaining, {}),
            fault=fault,
            background=self.background,
        )
        self.alerts = self.telling.queue
        self.holds = Holds(
            store,
            pricer,
            hold_time=hold_time,
            rate=rate,
            fault=fault,
            background=self.background,
            postings=self.postings,
            with_held=lambda entry, reservation: with_held(entry, reservation, self._state.caps),
            announce=self.telling.announce,
        )
        self._learned = Expectations()
        self._tokens = TokenCounter()
        self._ceilings = Ceilings()
        self._asked = AskedLimits(store)
        self._openings = Openings(store, pricer, fault)
        self.missed = MissedBudgets(store, pricer, fault, read=self._read, in_force=lambda: self._state)
        #: Whether streams have holds without claims, for which a journal asks nobody.
        self.keeps_open_calls = hasattr(store, "journal")

    # -- before the call

    def hold(self, call: Call, at: datetime, *, hold_id: str | None = None) -> Held | None:
        """Hold what `call` may cost in every hard budget that applies; None when none does.

        Args:
            call: The call.
            at: When it leaves.
            hold_id: Identity of the hold, for who may have to free it after an interrupt; None = a new one.

        Raises:
            BudgetExceededError: a budget has no room; nothing was held.
            StoreBusyError: this thread must not wait, and would have to.
            StoreUnavailableError: the store fails, or a limit is not known.
        """
        state, runs = self._in_force_for(call), runs_of(call.scopes)
        self.telling.catch_up_sometimes()
        self.holds.sweep_sometimes()  # also where no cap is: streams of others may be under way
        if not (state.hard or runs):
            return self._open_call(Demand(call, at), hold_id)
        tell_who_passes(state, call, at, self._told, made=False)
        swept, attempt = False, 1
        while True:
            plan = self._plan(state, call, at, runs, inject=attempt > 1)
            if not plan.claims:
                return self._open_call(plan, hold_id)
            try:
                return self._reserve(plan, hold_id=hold_id)
            except CapReachedError as stop:
                if stop.reserved and not swept:
                    swept = True
                    if self.holds.make_room():
                        continue
                if not plan.injectable or attempt == _ATTEMPTS:
                    raise explain(stop, plan, store=self._store, wait=self._learned.wait(plan.call)) from None
                attempt += 1

    def look_at_made(self, call: Call) -> None:
        """As `hold` does, tell of a call recorded by hand which no cap on each member (or the like) catches."""
        tell_who_passes(self._state, call, self._store.now(), self._told, made=True)

    def _in_force_for(self, call: Call) -> InForce:
        """What is in force, once everybody knows what its key is called, and what was missed is counted in."""
        state = self._current()
        if call.api_key is not None and call.api_key.alias is not None:
            state = self._with_name(state, call.api_key)
        if self.missed:
            if not may_wait():
                raise StoreBusyError("Calls have to be counted into a budget first; call again from a thread.")
            self.missed.count_in()
        return state

    def _open_call(self, plan: Demand, hold_id: str | None) -> Held | None:
        """Note down that a stream is under way which no cap is about: should this process die, it is found."""
        if not (plan.call.facts.streamed and self.keeps_open_calls):
            return None
        reservation = self._reservation(plan, (), hold_id or new_id())
        try:
            self._store.reserve(reservation)
        except StoreBusyError:  # an event loop does not wait for it
            return None
        except Exception as error:  # noqa: BLE001 - nothing depends on it
            self._fault("note down a stream", error)
            if not isinstance(error, StoreError):  # it may have come just after it was noted down
                with contextlib.suppress(StoreError):  # then it ends with its time
                    self._store.release(reservation.reservation_id)
            return None
        return Held(reservation, None, RunClaims({}))

    def _reserve(self, plan: Demand, *, hold_id: str | None) -> Held:
        """Hold everything a plan asks for, or nothing.

        Raises:
            CapReachedError: something has no room.
        """
        in_runs = plan.claims_of_runs()
        of_runs = {claim for claims in in_runs.values() for claim in claims}
        stored = tuple(claim for claim in plan.claims if claim not in of_runs) if of_runs else plan.claims
        held = RunClaims.hold(in_runs)
        if not stored:
            return Held(None, plan.inject_max_output_tokens, held)
        reservation = self._reservation(plan, stored, hold_id or new_id())
        try:
            self._store.reserve(reservation)
        except BaseException:
            held.free()
            raise
        return Held(reservation, plan.inject_max_output_tokens, held)

    def find(self, call: Call, at: datetime) -> Matched:
        """Every limit that applies to `call`, hard and soft, with its counters, and until when that is so.

        Raises:
            StoreBusyError: the ledger has to be read, and this thread must not wait.
            StoreUnavailableError: the ledger cannot be read, or a limit is not known.
        """
        state, now = self._current(), to_microseconds(at)
        caps = self._match(state, state.every, Subject.of_call(call), at)
        hard = [one.cap for one in caps if one.limit is not None]
        return Matched(
            caps=tuple(sorted(caps, key=lambda one: one.keys[0][0])),
            until_us=min([state.next_date(now), *(self._until(state, one, now) for one in caps)]),
            generation=state.generation,
            plannable=not runs_of(call.scopes)
            and all(cap.budget.estimate == "strict" for cap in hard)
            and not any(one.cap.budget.asks for one in caps),
        )

    @property
    def singled_out(self) -> tuple[str, ...]:
        """What budgets look at besides who, which key, which model: ``end_user`` and tags, as ``tag:NAME``."""
        return self._state.singled_out

    def amounts(
        self, sent: Sent, facts: RequestFacts | PlainRequest, at_us: int, known: dict[tuple[str, int], Sizes]
    ) -> Amounts | None:
        """What a call may use at most; None where that is for the general way to say.

        Args:
            sent: The call.
            facts: Of its request.
            at_us: When it leaves, in microseconds since the epoch.
            known: What was worked out for calls like it; sizes of one length of prompt hold for a minute.
        """
        if facts.unbounded is not None:
            return None
        longest = longest_prompt(sent.provider, facts, self._pricer.terms)
        if longest is None:
            return None
        kind = (facts.cache_writes, longest.bit_length())
        sizes, ceilings = known.get(kind), self._ceilings
        if sizes is None or at_us >= sizes.until_us or sizes.tiers != ceilings.tiers:
            tiers, call = ceilings.tiers, sent.call
            ceiling = ceilings.of(call, from_microseconds(at_us), self._pricer, prompt_tokens=longest)
            sizes = Sizes.of(call, ceiling, at_us=at_us, tiers=tiers)
            if sizes is None:
                return None
            known[kind] = sizes
        return sizes.amounts(facts, longest, self._tokens)

    def settled(self, call: Entry, output: int, cost: int, latency_us: int) -> None:
        """As `learn`, of a call that was recorded by its plan.

        Args:
            call: An entry of a call like it.
            output: Tokens of its answer.
            cost: Picodollars.
            latency_us: Microseconds that it took.
        """
        if time.monotonic() >= self.holds.sweep_due:  # no cap need be about this call: others' streams have holds, too
            self.holds.sweep_sometimes()
        if self._state.any_hard:
            route, model = call.attribution.route, call.request_model
            self._learned.learn_amounts(route, model, output=output, cost=cost, latency_us=latency_us)

    @staticmethod
    def _until(state: InForce, one: Matching, now: int) -> int:
        """First instant at which one limit's counters, or its grants, may differ."""
        granted = granted_to(state.policy.grants, one.cap, one.keys[0][0].scope)
        moments = (to_microseconds(at) for grant in granted for at in (grant.starts, grant.expires) if at is not None)
        return min([one.cap.until(now), *(moment for moment in moments if moment > now)])

    def _match(self, state: InForce, index: CapIndex, subject: Subject, at: datetime) -> list[Matching]:
        now = to_microseconds(at)
        matched: list[Matching] = []
        for cap, scope in index.find(subject, at):
            keys = cap.keys(scope, now)
            self._openings.open(cap, scope, keys)
            limit = self._limit(state, cap, scope, keys[0][0], now, api_key=subject.api_key)
            thresholds = tuple(threshold_amounts(cap.budget, limit)) if limit and cap.budget.thresholds else ()
            matched.append(Matching(cap, scope, keys, limit if cap.budget.hard else None, thresholds))
        return matched

    def _plan(self, state: InForce, call: Call, at: datetime, runs: Sequence[Run], *, inject: bool) -> Demand:
        holds = [hold for run in runs for hold in run.holds()]
        matched = self._match(state, state.hard, Subject.of_call(call), at)
        holds += (HeldBudget(one.cap, one.scope, one.keys, one.limit or 0) for one in matched)
        if not holds:
            return Demand(call, at)
        longest = longest_prompt(call.provider, call.facts, self._pricer.terms)
        try:
            return make_plan(
                call,
                at,
                holds,
                ceiling=self._ceilings.of(call, at, self._pricer, prompt_tokens=longest),
                learned=self._learned,
                store=self._store,
                tokens=self._tokens,
                inject=inject,
            )
        except UnboundedError as error:
            raise refuse(error, call, at, store=self._store) from None

    def _limit(
        self,
        state: InForce,
        cap: Cap,
        scope: Mapping[str, str],
        key: CounterKey,
        now: int,
        *,
        api_key: ApiKey | None = None,
        renew: bool = True,
    ) -> int:
        """The limit of one counter now, with what was granted in its window; `renew` as of `AskedLimits.of`."""
        limit = self._asked.of(cap, scope, api_key, renew=renew)
        grants = state.policy.grants
        if not grants or not cap.counts:
            return limit
        here = [grant for grant in granted_to(grants, cap, key.scope) if grant.window_start == key.window_start]
        return add_grants(limit, here, now, self._spent_before(cap, scope, key)) if here else limit

    def _spent_before(self, cap: Cap, scope: Mapping[str, str], key: CounterKey) -> Callable[[int], int]:
        """What a counter had settled before an instant."""
        return lambda moment: count(cap, scope, key.window_start, moment, store=self._store, pricer=self._pricer)

    def _limits_before(self, cap: Cap, scope: Mapping[str, str], key: CounterKey) -> Iterator[tuple[Budget, int]]:
        """What else one counter was limited to, the latest first, where no function said it."""
        name, policy = cap.budget.name, self._state.policy
        granted = granted_to(policy.grants, cap, key.scope)
        here = [grant for grant in granted if grant.window_start == key.window_start]
        for change in reversed(policy.changes.get(name, ())):
            before = change.budget
            if before is None or before.asks or cap.unit not in before.units or before.scope != cap.budget.scope:
                continue
            limit = self._asked.of(Cap(before, cap.unit), scope)
            for filed in range(len(here), 0, -1):
                then = to_microseconds(here[filed - 1].starts)
                yield before, add_grants(limit, here[:filed], then, self._spent_before(cap, scope, key))
            yield before, limit

    def _reservation(self, plan: Demand, claims: tuple[Claim, ...], hold_id: str) -> Reservation:
        return Reservation(
            reservation_id=hold_id,
            claims=claims,
            created_at=plan.at,
            expires_at=plan.at + self.holds.hold_time,
            owner=process_name(),
            call=unanswered(plan.call, plan.at),
        )

    def fails_closed(self, call: Call, at: datetime) -> bool:
        """Whether `call` must not leave while the store fails."""
        found = self._state.hard.find(Subject.of_call(call), at)
        return any(cap.budget.store_failure == "closed" for cap, _ in found)

    # -- after the call

    def _obey(self, state: InForce) -> None:
        """See `Registry`: what was recorded before a budget was known is counted in."""
        before = self._state
        super()._obey(state)
        self.missed.learn(before, state)

    @property
    def known(self) -> InForce:
        """What calls go by at this moment; see `count_in_since`."""
        return self._state

    def count_in_since(self, known: InForce) -> None:
        """After something was written: count it in where other budgets are in force by now than were `known` before."""
        if known is not self._state:
            self.missed.compare(known, self._state)
            if may_wait():
                self.missed.count_in()

    def postings(self, entry: Entry) -> tuple[Posting, ...]:
        """What `entry` adds to the counters, hard and soft, in key order.

        Tokens whose price is not known count at the dearest known rate, never at nothing.

        Raises:
            StoreBusyError: the ledger has to be read first, and this thread must not wait.
        """
        state = self._current()
        self.missed.recording()
        if self.missed and may_wait():
            self.missed.count_in()
        if not state.counting:
            return ()
        now = to_microseconds(entry.occurred_at)
        spent: dict[Unit, int] = {}
        postings: list[Posting] = []
        found = state.counting.find(Subject.of_entry(entry), entry.occurred_at)
        if BILLING_UNKNOWN in entry.flags:
            tell_of_unanswered(entry, [cap for cap, _ in found], self._told)
        for cap, scope in found:
            unit = cap.unit
            if unit not in spent:
                spent[unit] = spent_by(entry, unit, self._pricer)
            if not (amount := spent[unit]):
                continue
            keys = cap.keys(scope, now)
            self._openings.open_quietly(cap, scope, keys)
            amounts = self._thresholds(state, cap, scope, keys[0][0], now, api_key=entry.api_key)
            postings += [
                Posting(key, amount, amounts if cap.alerts_at(key.window_start) else (), end) for key, end in keys
            ]
        if len(postings) > 1:
            postings.sort(key=_posting_key)
        return tuple(postings)

    def settle_runs(self, call: Call, entry: Entry | None, held: RunClaims | None) -> None:
        """Count a recorded entry in the runs around its call, and free what was held there."""
        if entry is not None:
            for run in runs_of(call.scopes):
                run.post(partial(spent_by, entry, pricer=self._pricer))
        if held is not None:
            held.free()

    def _thresholds(
        self,
        state: InForce,
        cap: Cap,
        scope: Mapping[str, str],
        key: CounterKey,
        now: int,
        *,
        api_key: ApiKey | None,
    ) -> tuple[int, ...]:
        if not cap.budget.thresholds:
            return ()
        # An event loop need not go to a thread for it: the call was let in by an answer. Soft budgets let in unasked.
        renew = not cap.budget.hard or may_wait()
        try:
            limit = self._limit(state, cap, scope, key, now, api_key=api_key, renew=renew)
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - an alert less; the entry counts
            self._fault("look up a budget's limit", error)
            return ()
        return tuple(threshold_amounts(cap.budget, limit)) if limit else ()

    def learn(self, entry: Entry, asked: str | None = None) -> None:
        """Remember what a call used and how long it took: what others are expected to, and have to wait.

        Args:
            entry: What was recorded of it.
            asked: The service tier that its request named.
        """
        if self._state.hard:
            self._learned.learn(entry)
            self._ceilings.learn(entry, asked)

    # -- reading

    def remaining(self, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
        """Where the budgets stand that concern `wanted` (field -> value, tags as ``tag:NAME``); nothing is written."""
        state, labels = self._read(), cache(self._store.key_labels)

        def limit_of(cap: Cap, scope: Mapping[str, str], key: CounterKey) -> int:
            by_key = cap.budget.limit is not None and cap.budget.open_field == "api_key"
            api_key = find_key(scope["api_key"], labels()) if by_key else None
            return self._limit(state, cap, scope, key, to_microseconds(at), api_key=api_key)

        def named(cap: Cap) -> Iterator[Mapping[str, str]]:
            by_fingerprint = cap.budget.api_key == "*" or cap.names_one_key
            for scope in named_so(cap):
                keys = keys_called(self._store, scope["api_key"]) if by_fingerprint else ()
                yield from ({**scope, "api_key": key} for key in keys)
                if not keys:
                    yield scope

        def named_so(cap: Cap) -> Iterator[Mapping[str, str]]:
            budget = cap.budget
            for value in limit_table(budget) or ():
                yield budget.scope | {str(budget.open_field): value}
            for (name, unit, text), granted in state.policy.grants.items():
                starts = {start for start, _ in cap.spans(to_microseconds(at))}
                if (name, unit) == (budget.name, cap.unit) and any(one.window_start in starts for one in granted):
                    yield parse_scope(text)

        return balances(state.caps.values(), self._store, self._pricer, wanted, at, limit_of=limit_of, named=named)

    def audit(self, *, repair: bool = False) -> Sequence[CounterFault]:
        """Counters of budgets in force that differ from the ledger; see `tokenmeter.budgets.counting.audit`."""
        return audit(self._read().caps, self._store, self._pricer, now=self._store.now(), repair=repair)

    @tell_wrong_arguments
    def forget_limits(self, name: str, value: str | None = None) -> None:
        """Ask a budget's limit function again with this process's next call: for one member (or the like), or for all.

        Other processes go on by the answer that each has, for `Budget.refresh` seconds at the most from when it asked.
        """
        self._asked.forget(name, value)


_posting_key = attrgetter("key")
