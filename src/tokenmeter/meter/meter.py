"""The way of one call: authorize before it leaves, settle when its answer is known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets import AlertTarget, Balance, Budget, Budgets, Grant
from tokenmeter.budgets.counting import passes_bound, with_held
from tokenmeter.budgets.delivery import EXIT_SECONDS
from tokenmeter.budgets.holds import PlannedHold
from tokenmeter.budgets.limits import LimitUnknownError
from tokenmeter.budgets.matching import Required
from tokenmeter.budgets.policy import Unit
from tokenmeter.budgets.rules import Rule
from tokenmeter.budgets.status import check_scope
from tokenmeter.call import ActiveSpan, Call, Outcome
from tokenmeter.dimensions import COUNTED_AS
from tokenmeter.errors import (
    BudgetExceededError,
    ConfigurationError,
    StoreBusyError,
    StoreError,
    StoreUnavailableError,
    TokenmeterError,
    shown,
)
from tokenmeter.interrupts import let_interrupt_through
from tokenmeter.ledger import Entry, check_entry
from tokenmeter.meter.plans import Plans
from tokenmeter.meter.recording import NOTHING_SEEN, Authorization, KeyRing, Unwritten, UnwrittenOutcomes, record_of
from tokenmeter.money import parse_decimal
from tokenmeter.periods import parse_instant
from tokenmeter.pricing import Pricer, Rating
from tokenmeter.pricing.corrections import WHOLE, with_assumed
from tokenmeter.processes import make_lock, may_wait, run_alone, run_patiently
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.stores.base import Fault, Settlement, Spooling, Store, take_back
from tokenmeter.stores.slots import from_microseconds
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.budgets.budgets import Held
    from tokenmeter.carrying import RequestFields
    from tokenmeter.telemetry import Spans

log = logging.getLogger("tokenmeter")

#: What a store or the memory that is full may do again later; anything else fails the same way each time.
_PASSES = (StoreUnavailableError, MemoryError, OSError)
_UNRATED = Rating(cost_source="unpriced", flags=frozenset({"rating_failed"}))
#: Entries to a transaction: large enough to be quick, small enough to be held in memory.
_BATCH = 8_192
#: Answers recorded by hand that are remembered: more than can be on their way.
_BY_HAND = 1_000


class Meter:
    """A ledger's store, a price list, terms and budgets, joined.

    Safe to share between threads, tasks and clients. Made by `tokenmeter.configure` or by hand; pass it to clients as
    ``wrap(client, meter=...)`` and to every reading function as ``meter=``.

    Args:
        store: Where entries, holds and counters are kept.
        pricer: Price list and terms.
        budgets: Caps to declare; the ledger may know others.
        alerts: Whom to tell of crossed thresholds besides the log.
        rules: What else is worth telling them (`tokenmeter.budgets.rules`).
        required: What every call has to be attributed to.
        source: File in which `budgets` are said, for the ledger's history; default: the code of this program.
        in_code: Names of those that code says beside the file.
        aliases: SHA-256 of an API key (hex) -> the user's name for it.
        providers: Prefix of a base URL -> id of the provider that serves and bills there; the longest one counts.
        unasked: Prefixes of base URLs, or provider ids, of hosts whose streams are not asked for their usage.
        observers: Called with each call's entry once it is recorded, in the caller's thread; must be quick. Before the
            entry of an answer comes the ``reversal`` of the estimate that it replaces, if there was one.
        hold_seconds: How long a call may be in flight before its hold expires; a live stream extends it.
        request_fields: Reads end user and tags from the requests themselves.
        spans: Tells the spans that calls are made in what they cost.

    Attributes:
        plans: What is known of calls that are alike.
        waiting: Outcomes that could not be written down yet.
        keys: The keys that clients have used.
        request_fields: As given.
        faults: How often something inside tokenmeter failed while the call itself went on.
        closed: Whether `close` was called.
        extend_every_ns: How often the hold of a stream that goes on is extended, in nanoseconds.
        by_hand: Ids of answers that were last recorded by hand -> their provider, and what they were recorded under. A
            stream that a metered client still reads may end after it, or a file of theirs be read by one.
    """

    def __init__(
        self,
        *,
        store: Store,
        pricer: Pricer,
        budgets: Iterable[Budget] = (),
        alerts: Iterable[AlertTarget] = (),
        rules: Iterable[Rule] = (),
        source: str | None = None,
        in_code: Collection[str] = (),
        required: Required | None = None,
        aliases: Mapping[str, str] | None = None,
        providers: Mapping[str, str] | None = None,
        unasked: Collection[str] = (),
        observers: Iterable[Callable[[Entry], object]] = (),
        hold_seconds: int = 900,
        request_fields: RequestFields | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.store = store
        self.pricer = pricer
        self.required = required or Required()
        self.hold_time = timedelta(seconds=hold_seconds)
        self.faults = 0
        self.closed = False
        self.spans = spans
        self.request_fields = request_fields
        self._observers = tuple(observers)
        self._providers = sorted((providers or {}).items(), key=lambda item: len(item[0]), reverse=True)
        self._unasked = frozenset(name if "://" in name else canonical_provider(name) for name in unasked)
        self._refusing: set[str] = set()
        self.keys = KeyRing(aliases or {}, secret=store.secret, fault=self.fault)
        self._logged: set[str] = set()
        self._prices_read = False
        self.by_hand: dict[str | None, tuple[str, str]] = {}
        self.waiting = UnwrittenOutcomes(self._settle_late)
        self.extend_every_ns = hold_seconds * 1_000_000_000 // 3
        self.budgets = Budgets(
            store,
            pricer,
            budgets,
            alerts=alerts,
            rules=rules,
            source=source,
            in_code=in_code,
            hold_time=self.hold_time,
            rate=self._rate,
            fault=self.fault,
        )

        self.plans = Plans(
            store,
            pricer,
            self.budgets,
            self._tell,
            self.fault,
            required=self.required,
            tells_all=bool(self._observers),
        )

    def __reduce__(self) -> NoReturn:
        # Pools and clusters send what a function names, and repeat why they cannot: a lock tells nobody what to do.
        raise TypeError(
            "A Meter is not pickled or copied: it holds the ledger that this process has open. Leave it out of what is "
            "sent to another process; configure tokenmeter and make the clients there (or keep the settings in "
            "tokenmeter.toml, which each process reads)."
        )

    # -- identity

    def identify(self, key: str | None) -> ApiKey | None:
        """`key` as the ledger knows it; None for no key. See `tokenmeter.meter.recording`."""
        return self.keys.identify(key)

    def provider_at(self, base_url: object) -> str | None:
        """The provider that the user named for a host of their own; None for every other host."""
        if not self._providers:
            return None
        url = str(base_url)
        return next((provider for prefix, provider in self._providers if url.startswith(prefix)), None)

    def attribution_of(self, body: Mapping[str, Any] | None, around: Attribution) -> Attribution:
        """On whose account a request with `body` goes: what it says itself, where that is asked for, then `around`."""
        return around if self.request_fields is None else self.request_fields.read(body).over(around)

    def asks_for_usage(self, provider: str, base_url: object) -> bool:
        """Whether streams of `provider` at `base_url` may be asked to state their usage."""
        if not self._unasked and not self._refusing:
            return True
        url, host = str(base_url), canonical_provider(provider)
        if url in self._refusing:
            return False
        return not any(url.startswith(name) if "://" in name else host == name for name in self._unasked)

    def stop_asking_for_usage(self, base_url: object) -> None:
        """Ask no further stream at `base_url` for its usage: the host refused one that was."""
        self._refusing.add(str(base_url))

    # -- before the call

    def authorize(self, call: Call, *, hold_id: str | None = None) -> Authorization:
        """Check every matching budget and hold what the call may cost.

        Args:
            call: The call.
            hold_id: Identity of the hold, for who may have to free it (`free`) after an interrupt; None = a new one.

        Raises:
            AttributionRequiredError: it lacks what every call has to be attributed to.
            BudgetExceededError: a hard cap would be passed; nothing was held and nothing must be sent.
            StoreUnavailableError: a hard cap applies, the store fails, and the budget says ``closed``.
            StoreBusyError: this thread must not wait (`tokenmeter.processes.run_at_once`), and would have to.
        """
        self.required.check(call)
        self._read_prices()
        authorization = Authorization(call, self.store.now(), time.perf_counter_ns())
        self._hold(authorization, hold_id)
        return authorization

    def _hold(self, authorization: Authorization, hold_id: str | None) -> None:
        """Hold what its call may cost; once more when something of ours fails amid it, as want of memory may pass."""
        call, at = authorization.call, authorization.started_at
        for again in (True, False):
            held: Held | None = None
            try:
                held = self.budgets.hold(call, at, hold_id=hold_id)
                self._take(authorization, held)
                return  # noqa: TRY300 - what fails here, too, frees what was held
            except (BudgetExceededError, StoreBusyError):
                raise
            except Exception as error:  # noqa: BLE001 - a fault of ours stops only calls that a cap must see
                ours = not isinstance(error, TokenmeterError)
                if held is not None:
                    held.runs.free()
                was_named = hold_id is not None  # what was held without a name, nobody could free
                if hold_id is not None and not isinstance(error, StoreError) and self.free(hold_id):
                    hold_id = None  # it came just after it was made
                let_interrupt_through(error)
                if not (again and ours and was_named):
                    self._without_store(authorization, error)
                    return
                self.fault("hold a call's budget", error)

    def _take(self, authorization: Authorization, held: Held | None) -> None:
        if held is not None:
            authorization.reservation, authorization.runs = held.reservation, held.runs
            authorization.inject_max_output_tokens = held.inject_max_output_tokens
            authorization.extend_due_ns = authorization.started_ns + self.extend_every_ns

    def resume(self, call: Call, started_us: int, started_ns: int, hold: PlannedHold | None = None) -> Authorization:
        """Leave for a call that left by its plan, for the general way to go on with."""
        authorization = Authorization(call, from_microseconds(started_us), started_ns)
        if hold is not None:
            authorization.reservation = hold.demands.reservation(hold, call)
            authorization.extend_due_ns = started_ns + self.extend_every_ns
        return authorization

    def _read_prices(self) -> None:
        """Before the first call, since an aborted stream may be settled where nothing can be waited for.

        It takes half a second; an event loop leaves it to a thread.
        """
        if self._prices_read:
            return
        if not (self.pricer.price_list.ready or may_wait()):
            raise StoreBusyError("The price data is still to be read from disk; call again from a thread.")
        self._prices_read = True
        try:
            self.pricer.price_list.prepare()
        except Exception as error:  # noqa: BLE001 - the call itself goes through; `reprice` can rate it later
            self.fault("read the price data", error)

    def go_without_store(self, call: Call, error: StoreError) -> Authorization:
        """Leave for a call for which nothing can be held, where its budgets let such calls pass.

        Raises:
            StoreUnavailableError: a hard cap applies, and the budget says ``closed``.
        """
        authorization = Authorization(call, self.store.now(), time.perf_counter_ns())
        self._without_store(authorization, error)
        return authorization

    def _without_store(self, authorization: Authorization, error: Exception) -> None:
        if isinstance(error, LimitUnknownError):
            raise error
        if self.budgets.fails_closed(authorization.call, authorization.started_at):
            raise StoreUnavailableError(
                f"A hard cap applies to this call and the ledger's store failed ({error}). The call was not sent. Mend "
                "the store (`tokenmeter doctor`), or set store_failure='open' on the budget to let such calls pass."
            ) from error
        self.fault("hold a call's budget", error)

    def extend(self, authorization: Authorization) -> None:
        """Keep a long stream's hold alive. Cheap enough to call for every event; never waits, never raises."""
        if authorization.reservation is None or time.perf_counter_ns() < authorization.extend_due_ns:
            return
        authorization.extend_due_ns = time.perf_counter_ns() + self.extend_every_ns
        self.budgets.holds.extend(authorization.reservation.reservation_id)

    # -- after the call

    def settle(self, authorization: Authorization, outcome: Outcome) -> Entry | None:
        """Rate what was seen and write it down, durably, before the caller gets the answer.

        Never raises, except `StoreBusyError` where this thread must not wait, and would have to: nothing was written.

        Returns:
            The entry as recorded; None when it was a repetition, or has to wait (`waiting`), since the store cannot
            be written, or this thread is in the middle of a write (a finaliser, a signal handler).
        """
        late = Unwritten(authorization, outcome)
        try:
            return self._settle(late)
        except StoreBusyError:
            if not may_wait():
                raise
        authorization.settled = True
        self.waiting.keep(late)
        return None

    def recorded_by_hand(self, provider: str, response_id: str, bill_id: str) -> None:
        """The answer is being recorded by hand, under `bill_id`: whoever ends reading it later finds it recorded."""
        self.by_hand[response_id] = provider, bill_id
        if len(self.by_hand) > _BY_HAND:
            self.by_hand.pop(next(iter(self.by_hand)), None)

    def _settle(self, late: Unwritten) -> Entry | None:
        """`settle`; what the store cannot take now waits.

        Raises:
            StoreBusyError: nothing was written.
        """
        try:
            entry, settlement = self._written(late)
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            let_interrupt_through(error)
            self._count_in_process(late)
            if isinstance(error, _PASSES):
                run_alone(_lock, self._count_fault, "wait")
                self.waiting.keep(late, error)
            else:
                self.fault("record a call", error)
            return None
        self._tell_of(late, entry, settlement)
        self.look_around()
        return entry if settlement.recorded else None

    def catch_up(self) -> Store:
        """The store, to be read: what waits in this program's memory is written first, if it can be by now."""
        self.waiting.catch_up()
        return self.store

    def look_around(self) -> None:
        """After a call was written down, so that the store works: write what waits, and see whom to tell of what."""
        if self.waiting.kept and may_wait():
            self.waiting.catch_up()
        self.budgets.telling.look_sometimes(faults=self.faults)

    def _settle_late(self, late: Unwritten) -> bool:
        """Write down what had to wait; False when it has to wait on."""
        try:
            entry, settlement = self._written(late)
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            let_interrupt_through(error)
            if isinstance(error, _PASSES):
                self.waiting.failed_again(error)
                return False
            self._count_in_process(late)
            self.fault("record a call", error)
            return True
        self._tell_of(late, entry, settlement)
        return True

    def _written(self, late: Unwritten) -> tuple[Entry, Settlement]:
        authorization, outcome = late.authorization, late.outcome
        seen = outcome.observation
        if self.by_hand and seen is not None and (there := self.by_hand.get(seen.response_id)) is not None:
            provider, bill_id = there
            if provider == authorization.call.provider:
                anew = seen.bill_id is not None and seen.bill_id.endswith(WHOLE)  # in place of what is there
                seen = replace(seen, deduplicate=True, bill_id=seen.bill_id if anew else bill_id)
                late.outcome = outcome = replace(outcome, observation=seen)
        self._read_prices()
        known = self.budgets.known
        if late.entry is None:
            entry = with_held(self._entry(authorization, outcome), authorization.reservation, known.caps)
            late.entry = with_assumed(entry, self.pricer)
        reservation = authorization.reservation if outcome.last else None
        settlement = self.store.settle(
            late.entry,
            self.budgets.postings(late.entry),
            reservation_id=None if reservation is None else reservation.reservation_id,
        )
        self.budgets.count_in_since(known)
        return late.entry, settlement

    def _tell_of(self, late: Unwritten, entry: Entry, settlement: Settlement) -> None:
        authorization = late.authorization
        self._count_in_process(late, recorded=settlement.recorded)
        if late.outcome.last and authorization.reservation is not None and not settlement.hold_found:
            run_patiently(self.budgets.holds.take_back_estimate, authorization.reservation)
        if settlement.recorded:
            if authorization.replaces is not None:
                # Told before the answer: a counter, which only rises, then rises by the difference.
                run_patiently(self.take_back, authorization.replaces, authorization.call)
            self._tell(entry, authorization.call.span)
            self.budgets.learn(entry, authorization.call.facts.service_tier)
            self.budgets.telling.announce(settlement.crossings)

    def _count_in_process(self, late: Unwritten, *, recorded: bool = True) -> None:
        """Count an outcome in the blocks and runs around its call, which end with this process; once."""
        authorization, entry = late.authorization, late.entry if recorded else None
        authorization.settled = True
        if late.counted:
            return
        late.counted = late.entry is not None
        runs = authorization.runs if late.outcome.last else None
        self.budgets.settle_runs(authorization.call, entry, runs)
        if entry is not None:
            _count_in_blocks(authorization.call, entry)

    def _tell(self, entry: Entry, span: ActiveSpan | None) -> None:
        if span is not None and self.spans is not None:
            try:
                run_patiently(self.spans.tell, span, entry)
            except Exception as error:  # noqa: BLE001 - as below
                self.fault("tell a span", error)
        for observe in self._observers:
            try:
                run_patiently(observe, entry)
            except Exception as error:  # noqa: BLE001 - the call's own result goes through
                self.fault("tell an observer", error)

    def release(self, authorization: Authorization) -> None:
        """Free the hold of a call that is not to be recorded (free endpoints). Never raises."""
        if authorization.runs is not None:
            authorization.runs.free()
        if authorization.reservation is None:
            authorization.settled = True
            return
        for is_last in (False, True):  # what fails once may pass, as want of memory does
            try:
                held = self.store.release(authorization.reservation.reservation_id)
            except Exception as error:  # noqa: BLE001 - the call's own result goes through; the hold expires
                if is_last or isinstance(error, StoreError):
                    self.fault("release a hold", error)
                    break
            else:
                if not held:
                    run_patiently(self.budgets.holds.take_back_estimate, authorization.reservation)
                break
        authorization.settled = True

    def free(self, hold_id: str) -> bool:
        """Free a hold of which an interrupt left unknown whether it was made: whether it was. Never raises."""
        try:
            return run_patiently(self.store.release, hold_id)
        except Exception as error:  # noqa: BLE001 - the interrupt itself goes through; the hold expires
            self.fault("release a hold", error)
            return True

    def take_back(self, estimate: Entry, call: Call) -> None:
        """Take back what was recorded of a call before its answer was known, after the answer was. Never raises.

        Args:
            estimate: The entry.
            call: The call that has the answer: the blocks and runs around it count the difference.
        """
        try:
            back = take_back(self.store.entries, estimate)
            if self.post(back):
                self.budgets.settle_runs(call, back, None)
                _count_in_blocks(call, back)
                self._tell(back, call.span)
        except StoreError as error:  # the whole answer is recorded
            self.fault("take back an estimate", error)

    def post(self, entry: Entry) -> bool:
        """Append an entry that no call made: a correction or an adjustment; budgets count it.

        Returns:
            False when it is in the ledger already.

        Raises:
            ConfigurationError: it is no entry, or a field of it is nothing that a ledger has a place for; the error
                names it. Nothing was recorded.
            StoreUnavailableError: it could not be recorded.
        """
        return next(self.post_all((entry,)))

    def post_all(self, entries: Iterable[Entry]) -> Iterator[bool]:
        """`post` for many entries, a thousand to a transaction; lazily, so take every answer.

        Yields:
            Per entry, in order: False when it is in the ledger already.

        Raises:
            ConfigurationError: as for `post`. Of a list or a tuple nothing was recorded; of what is read as it is
                posted, nothing from that transaction on.
            StoreUnavailableError: the rest could not be recorded.
        """
        if isinstance(entries, str | bytes) or not hasattr(entries, "__iter__"):
            raise ConfigurationError(f"entries must be several, each an Entry, not {shown(entries)}.")
        if isinstance(entries, Sequence):
            for entry in entries:
                check_entry(entry)
        return self._post_all(entries if isinstance(entries, Sequence) else map(check_entry, entries))

    def _post_all(self, entries: Iterable[Entry]) -> Iterator[bool]:
        waiting, known = (with_assumed(entry, self.pricer) for entry in entries), self.budgets.known
        while batch := [(entry, self.budgets.postings(entry)) for entry in islice(waiting, _BATCH)]:
            done = self.store.append(batch)
            self.budgets.count_in_since(known)
            known = self.budgets.known
            for settlement in done:
                self.budgets.telling.announce(settlement.crossings)
                yield settlement.recorded

    def fault(self, where: str, error: BaseException) -> None:
        """Count a fault of our own; log each kind once with its cause. The call's result goes through.

        Raises:
            BaseException: it is none, but what the handler of a signal raised (Celery's soft time limit).
        """
        let_interrupt_through(error)
        if run_alone(_lock, self._count_fault, f"{where}: {type(error).__name__}"):
            if isinstance(error, StoreError):  # its words say all there is
                log.error("tokenmeter could not %s; the call itself goes on: %s", where, error)
            else:
                log.error("tokenmeter could not %s; the call itself goes on", where, exc_info=error)

    def _count_fault(self, kind: str) -> bool:
        """Whether it is the first of its kind."""
        self.faults += 1
        first = kind not in self._logged
        self._logged.add(kind)
        return first

    @tell_wrong_arguments
    def flush(self, timeout: int = 10) -> int:
        """Wait until entries that only this process or host has are in the ledger, and alerts are handed over.

        This process has such entries while the ledger's folder cannot be written (`tokenmeter` keeps them in memory);
        this host, while the server of a PostgreSQL ledger is away (they are safe on its disk).

        Args:
            timeout: Seconds to wait at most.

        Returns:
            How many entries still wait.
        """
        self.waiting.catch_up()
        spooled = 0
        if isinstance(self.store, Spooling):
            spooled = self.store.flush(timeout)
            self.budgets.telling.announce(self.store.take_crossings())
        self.budgets.alerts.flush(timeout)
        return spooled + len(self.waiting)

    def close(self) -> None:
        """Hand over waiting alerts, let what goes on in threads end (10 seconds each at most), close the store."""
        self.waiting.close()
        self.budgets.missed.finish()
        self.closed = True
        self.budgets.alerts.close(EXIT_SECONDS)
        self.budgets.background.finish(EXIT_SECONDS)
        self.store.close()

    # -- budgets

    @tell_wrong_arguments
    def remaining(self, /, *, at: datetime | date | str | None = None, **scope: str) -> list[Balance]:
        """What budgets have left, and when they reset: one `Balance` per counter.

        Args:
            at: The instant whose windows are meant (a date or ISO text, too); default: now.
            **scope: Which budgets: ``member="ada"``, ...; tags as ``**{"tag:env": "prod"}``. Nothing means all.

        Raises:
            ConfigurationError: no budget can be about such a name, or `at` is no instant.
        """
        check_scope(scope)
        self.waiting.catch_up()
        return self.budgets.remaining(scope, self.store.now() if at is None else parse_instant(at))

    @tell_wrong_arguments
    def raise_budget(
        self,
        name: str,
        amount: Decimal | int | str,
        *,
        by: str,
        reason: str,
        unit: Unit | None = None,
        scope: Mapping[str, str] | None = None,
        at: datetime | date | str | None = None,
    ) -> Grant:
        """Raise a budget once, for one window; recorded in the ledger and seen by every process with its next call.

        Args:
            name: The budget's name.
            amount: How much is added to its limit, in its unit.
            by: Who decided it.
            reason: Why.
            unit: Which of its limits, where it has several: ``usd``, ``tokens``, ``requests`` or ``in_flight``.
            scope: Which counter, where the budget has a ``"*"``: ``{"member": "ada"}``.
            at: An instant in the window that is meant (a date or ISO text, too); default: now.

        Raises:
            ConfigurationError: no such budget or counter, or an amount that is not positive.
            StoreUnavailableError: it could not be recorded.
        """
        if parse_decimal(amount, name="amount") <= 0:
            raise ConfigurationError(f"amount must be positive, not {amount}; budgets.grant() also takes back.")
        return self.budgets.grant(name, amount, by=by, reason=reason, unit=unit, at=at, scope=scope)

    def audit_budgets(self, *, repair: bool = False) -> Sequence[Fault]:
        """Counters that differ from the ledger; see `Budgets.audit`."""
        return self.budgets.audit(repair=repair)

    @tell_wrong_arguments
    def sweep(self, now: datetime | date | str | None = None) -> int:
        """Turn expired holds into estimated entries, so that a crashed caller's spend is not forgotten.

        Args:
            now: Holds that expired before this instant (a date or ISO text, too); default: now.

        Returns:
            How many holds were swept.

        Raises:
            ConfigurationError: `now` is no instant.
        """
        return self.budgets.holds.sweep(self.store.now() if now is None else parse_instant(now))

    # -- entries

    def _entry(self, authorization: Authorization, outcome: Outcome) -> Entry:
        seen = outcome.observation or NOTHING_SEEN
        rating = self._rate(seen, authorization.call, authorization.started_at)
        held = authorization.reservation
        return record_of(
            authorization,
            outcome,
            rating,
            price_list_hash=self.pricer.price_list_hash,
            bound_violated=held is not None
            and passes_bound(held, seen.usage, rating.billed_cost, self.budgets.known.caps),
        )

    def _rate(self, observation: Observation, call: Call | Entry, at: datetime) -> Rating:
        try:
            return self.pricer.rate(
                observation,
                provider=call.provider,
                endpoint=call.endpoint,
                at=at,
                api_key=call.api_key,
                attribution=call.attribution,
            )
        except Exception as error:  # noqa: BLE001 - the usage is kept; `reprice` can rate it later
            self.fault("rate a call", error)
            return _UNRATED


def _count_in_blocks(call: Call, entry: Entry) -> None:
    for scope in call.scopes:
        scope.add(
            entry.usage,
            entry.list_cost,
            entry.billed_cost,
            unpriced=COUNTED_AS.get(entry.kind, 0) * (entry.cost_source == "unpriced"),
            requests=entry.requests,
        )


#: Reentrant, since a finaliser may settle a call in the middle of another one's.
_lock = make_lock()
