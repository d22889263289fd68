"""One logical call on its way: from the moment the caller made it until all its billed responses are settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tokenmeter import processes
from tokenmeter.attribution import Attribution, Scope
from tokenmeter.call import ActiveSpan, Call, Outcome, PlainRequest, RequestFacts
from tokenmeter.capture.description import Identity, Kind, call_of, describe, give_leave, given_fields
from tokenmeter.capture.readings import Readings
from tokenmeter.capture.recent import learn_size, waiting, with_known
from tokenmeter.capture.responses import Exchange
from tokenmeter.capture.sdk import Binding, twice
from tokenmeter.capture.settlement import (
    Settling,
    authorize_async,
    catch_up,
    catch_up_async,
    has_waiting,
    settle,
    settle_async,
    watch,
)
from tokenmeter.errors import (
    AttributionRequiredError,
    BudgetExceededError,
    ConfigurationError,
    StoreBusyError,
    StoreUnavailableError,
)
from tokenmeter.interrupts import came_from_outside
from tokenmeter.ledger import new_id
from tokenmeter.meter import Authorization, Meter
from tokenmeter.stores.base import LockedError
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.budgets.holds import PlannedHold
    from tokenmeter.providers.base import Plain, StreamReader

T = TypeVar("T")
#: What `Meter.authorize` stops a call with; all of it reaches the caller.
REFUSALS = (AttributionRequiredError, BudgetExceededError, ConfigurationError, StoreUnavailableError)


#: What an answer that came whole says of how it ended, and a stream that came to its end.
_WENT_WELL = (None, "ok")


class InFlight:
    """A call that was made, with leave or waiting for it.

    Args:
        binding: What the client is metered with.
        meter: Where it is settled, even if the default meter changes meanwhile.
        kind: What is called, who serves it, and with which key.
        who: Who makes it.
        body: The JSON object that is about to be sent; None for none.
        streamed: Whether an event stream is asked for.
        plan_key: What tells it from calls that are not like it; None for one that no plan is made for.

    Attributes:
        answers: Its responses so far.
        answering: The response whose body the SDK is decoding right now, while the call is on its way.
        attempts: HTTP requests sent so far.
        lost_try: Whether one of them may have been billed though nobody heard its answer.
        awaits_key: Whether leave cannot be asked for yet, since the key is not known.
        goes_freely: Whether nobody is to be asked for leave, and nothing is to be changed about its request.
        usage_asked: Whether the request asks for a usage chunk that the caller did not ask for.
        attribution: On whose account it goes.
        scopes: Open `attribute` blocks to count into.
        span: The span it is made in, where spans are told.
        started_us: When it was made, in microseconds since the epoch.
        started_ns: The same, on the performance counter.
        streamed: As given.
        plan: The plan of calls like it, while it goes by one.
        hold: What that holds for it.
    """

    __slots__ = (
        "_authorization",
        "_body",
        "_call",
        "_hold_id",
        "_key",
        "_made_in",
        "_read_answer",
        "_readings",
        "_request",
        "_returned",
        "answering",
        "answers",
        "api_key",
        "attempts",
        "attribution",
        "awaits_key",
        "binding",
        "cost_unit",
        "endpoint",
        "goes_freely",
        "hold",
        "key_on_demand",
        "lost_try",
        "meter",
        "plan",
        "provider",
        "region",
        "scopes",
        "span",
        "started_ns",
        "started_us",
        "streamed",
        "usage_asked",
    )

    def __init__(
        self,
        binding: Binding,
        meter: Meter,
        kind: Kind,
        who: tuple[Attribution, tuple[Scope, ...], ActiveSpan | None],
        body: Mapping[str, Any] | None,
        *,
        streamed: bool,
        plan_key: tuple[Any, ...] | None,
    ) -> None:
        self.binding = binding
        self.meter = meter
        _, _, self.endpoint, self.key_on_demand, self.provider, self.region, self.cost_unit, self.api_key, *_ = kind
        self._read_answer = kind.read_answer
        self.attribution, self.scopes, self.span = who
        self.awaits_key = self.key_on_demand
        self.answering: Exchange | None = None
        self.attempts = 0
        self.lost_try = False
        self.usage_asked = False
        self._body = body
        if not processes.KNOWN[0]:
            processes.notice_fork()
        self._made_in = processes.this_process
        self.streamed = streamed
        self.answers: list[Exchange] = []
        self._hold_id: str | None = None
        self.hold: PlannedHold | None = None
        self._readings: Readings | None = None
        self._returned = False
        self._authorization: Authorization | None = None
        self._call: Call | None = None
        self._key = plan_key
        plans = meter.plans
        plan = self.plan = None if plan_key is None else plans.find(plan_key)
        self.started_us = plans.now_us()
        self.started_ns = time.perf_counter_ns()
        self._request: PlainRequest | None = None
        self.goes_freely = plan is not None
        if plan is None:  # right here: a body may change while its answer is awaited
            self._call = self._described()
            self._authorization = give_leave(meter, self._call)
        elif plan.demands.any or streamed:
            self.goes_freely = False
            request = None
            if kind.read_request is not None and body is not None:
                request = kind.read_request(given_fields(body))
            if request is None:
                self._call = self._described()
            else:
                self._request = request if request.streamed == streamed else request._replace(streamed=streamed)

    @property
    def call(self) -> Call:
        """What accounting needs to know of it."""
        if self._call is None:
            self._call = self._described()
        return self._call

    @property
    def facts(self) -> RequestFacts | PlainRequest:
        """What accounting needs of its request."""
        return self._request or self.call.facts

    def _described(self) -> Call:
        who = self.attribution, self.scopes, self.span
        identity = Identity(self.provider, self.region, self.cost_unit, self.api_key, *who)
        if self._request is not None:
            return call_of(identity, self.endpoint, self._request.facts(region=self.region, cost_unit=self.cost_unit))
        call = describe(self.binding, self.endpoint, identity, self._body, streamed=self.streamed)
        call = with_known(self.meter, call, self.endpoint.subject)
        starter = waiting(self.meter, self.endpoint.subject) if self.endpoint.kind == "polled" else None
        if starter is None:
            return call
        # What a host leaves unsaid is known from the request that started it.
        sizes = call.facts.sizes
        return replace(call, facts=replace(starter.facts, streamed=self.streamed, background=True, sizes=sizes))

    @property
    def authorization(self) -> Authorization:
        """Leave for it."""
        if self._authorization is None:
            self._authorization = self.meter.resume(self.call, self.started_us, self.started_ns, self.hold)
        return self._authorization

    # -- leave

    def stay_as_written(self) -> None:
        """Nothing can be put into its request: what is held for it goes by no output cap that is not sent."""
        self._call = replace(self.call, as_written=True)

    def authorize(self) -> None:
        """Ask the meter for leave, unless nothing new is billed or no budget is to be asked.

        Raises:
            BudgetExceededError: nothing must be sent.
        """
        for _ in range(2):  # what fails once may pass, as want of memory does
            try:
                hold_id = self._ask_plan()
                if hold_id is not None:
                    self._take(self.meter.authorize(self._asked(), hold_id=hold_id))
            except REFUSALS:
                raise
            except Exception as error:  # noqa: BLE001 - only a budget stops a call
                self._forget_leave(error)
            else:
                return

    async def authorize_async(self) -> None:
        """As `authorize`, without making the event loop wait."""
        for _ in range(2):
            try:
                hold_id = processes.run_at_once(self._ask_plan)
                if hold_id is not None:
                    self._take(await authorize_async(self.meter, self._asked(), hold_id))
            except REFUSALS:
                raise
            except Exception as error:  # noqa: BLE001 - only a budget stops a call
                self._forget_leave(error)
            else:
                return

    def _forget_leave(self, error: Exception) -> None:
        """Something of ours failed amid asking for leave, perhaps just after something was held."""
        self.meter.fault("authorize", error)
        if self._hold_id is not None and not self._holds:
            self.meter.free(self._hold_id)

    def _ask_plan(self) -> str | None:
        """Have what the call may use held by its plan; the identity of a hold that is for the meter to make, if any."""
        self.awaits_key = False
        plan, locked = self.plan, None
        if self.goes_freely or self.hold is not None:
            return None
        if plan is not None:
            self._hold_id = new_id()
            try:
                self.hold = self.meter.plans.hold(plan, self, self.started_us, self._hold_id)
            except LockedError as error:
                locked = error
            except Exception as error:  # noqa: BLE001 - the general way says what comes of it
                self.meter.fault("hold a call's budget by its plan", error)
                self.meter.free(self._hold_id)  # it may have come just after it was made
            if self.hold is not None:
                return None
            self.plan = None
        if not (self.endpoint.billed or self.endpoint.kind == "starts"):
            return None
        if locked is not None:  # the general way would wait for the same as long once more
            self._take(self.meter.go_without_store(self._asked(), locked))
            return None
        self._hold_id = new_id()
        return self._hold_id

    def _asked(self) -> Call:
        """What leave is asked for: of work that is billed where it is read, nobody knows beforehand what it costs."""
        call = self.call
        return replace(call, facts=replace(call.facts, unbounded="started")) if self.endpoint.kind == "starts" else call

    def _take(self, given: Authorization) -> None:
        if self.endpoint.kind == "starts":  # its bills come hours later, each with an entry of its own
            self.meter.release(given)
        else:
            self._authorization = given

    def learn_key(self, key: str | None) -> bool:
        """Take the key that a request was prepared with; whether it is what leave was waiting for."""
        try:
            known = self.meter.identify(key)
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            self.meter.fault("identify a key", error)
            return False
        if known != self.call.api_key:
            self._call = self.authorization.call = replace(self.call, api_key=known)
        return self.awaits_key and known is not None

    @property
    def output_cap(self) -> int | None:
        """The output cap that a budget wants set on the request."""
        return None if self._authorization is None else self._authorization.inject_max_output_tokens

    @property
    def sent_as_written(self) -> bool:
        """Whether nothing is to be changed about the request, as far as that is known without looking at it."""
        return self._authorization is None and not self.streamed

    def keep_hold(self) -> None:
        """A stream goes on: what is held for it stays held."""
        if self._authorization is not None or time.perf_counter_ns() - self.started_ns >= self.meter.extend_every_ns:
            self.meter.extend(self.authorization)

    def note(self, seen: Observation) -> None:
        """Have the ledger know what a stream has said so far, should this process not live to say more."""
        if self._is_left_out(seen):
            return
        if (hold_id := self._held_as()) is not None:
            self.meter.budgets.holds.note(hold_id, seen.usage)

    def _held_as(self) -> str | None:
        """The identity of what is held for it in the ledger, if anything is."""
        if self.hold is not None:
            return self.hold.hold_id
        held = None if self._authorization is None else self._authorization.reservation
        return None if held is None else held.reservation_id

    # -- responses

    def read(self, body: Any) -> Observation:
        """Usage of a whole decoded body."""
        call = self.call
        dialect = self.binding.sdk.dialect()
        return dialect.read(body, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def open_stream(self) -> StreamReader:
        """A fresh reader for one stream."""
        call = self.call
        dialect = self.binding.sdk.dialect()
        return dialect.stream(provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def respond(self, headers: Mapping[str, str], *, streamed: bool) -> Exchange:
        """Open the exchange of one response with a success status."""
        exchange = Exchange(
            self.meter,
            self,
            self.binding.sdk,
            request_id=self.binding.sdk.request_id(headers),
            attempts=self.attempts or 1,
            streamed=streamed,
            holding=streamed and self._holds,
        )
        self.answers.append(exchange)
        if streamed:
            watch(exchange)
        return exchange

    def take_back(self, before: int) -> None:
        """Forget the answers but the first `before`: they could not be watched."""
        for exchange in self.answers[before:]:
            exchange.void()
        del self.answers[before:]

    def watch_answer(self, begin: Callable[[], T], *, streamed: bool) -> T | None:
        """What `begin` gives, which is to open and read the exchange of an answer. Never raises.

        None when that fails, and fails again: what the answer used is recorded as unknown then.
        """
        for _ in range(2):  # what fails once may pass, as want of memory does
            before = len(self.answers)
            try:
                return begin()
            except Exception as error:  # noqa: BLE001 - the caller gets his answer
                self.meter.fault("watch a response", error)
                self.take_back(before)
        self.answered_unseen(streamed=streamed)
        return None

    def answered_unseen(self, *, streamed: bool) -> None:
        """There is an answer of which nothing can be learnt: what it used is recorded as unknown."""
        try:
            self.respond({}, streamed=streamed).give_up()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.meter.fault("watch a response", error)

    @property
    def _holds(self) -> bool:
        """Whether anything is held for it in the ledger."""
        return self._held_as() is not None

    def line(self, seen: Observation, request_id: str | None) -> Settling | None:
        """One of many bills in an answer; None when it is not billed."""
        learn_size(self.meter, seen)
        if self._is_left_out(seen) or processes.is_parents(self._made_in):
            return None
        outcome = Outcome(observation=seen, request_id=request_id, last=False)
        return self._read_elsewhere().line(self.authorization, outcome)

    def tried_in_vain(self, error: BaseException | None) -> None:
        """The SDK is about to send again what nobody answered, for `error`."""
        self.lost_try |= type(error).__name__ not in _UNSENT

    def answered(self, exchange: Exchange) -> list[Settling] | None:
        """Nothing more will come of an answer: what is to be written down.

        None until the call has returned: middleware may send again, and only then is it known which was the last.
        """
        # Forked on its way, it is the parent's to write down.
        if not processes.KNOWN[0] or self._made_in is not processes.this_process:
            return []
        if not self._returned:
            return None
        alone = len(self.answers) == 1
        plain: Plain | None = None
        if alone and self._key is not None and exchange.body is not None and exchange.status in _WENT_WELL:
            plain = None if self._read_answer is None else self._read_answer(exchange.body)
            if plain is not None and self.plan is not None and not self.lost_try:
                return [Planned(self, exchange, plain)]
        last = alone or all(other.closed for other in self.answers)
        return list(self.general(exchange, plain, last=last))

    def _read_elsewhere(self) -> Readings:
        if self._readings is None:
            self._readings = Readings(self.meter, self.endpoint)
        return self._readings

    def general(
        self, exchange: Exchange, plain: Plain | None, *, last: bool, entry_id: str | None = None
    ) -> Iterator[Settling]:
        """What is to be written down of an answer, the general way; under an identity that it had before, if any."""
        polled = self.endpoint.kind == "polled"
        seen = exchange.observation
        if self.lost_try:
            seen = replace(seen, flags=seen.flags | {"lost_try"})
        learn_size(self.meter, seen)
        if self._is_left_out(seen):
            if not polled:
                self._read_elsewhere().begun(self.authorization, seen)
                if seen.response_id is not None and (hold_id := self._held_as()) is not None:
                    # whoever reads it, it is this call's
                    self.meter.budgets.holds.name_answer(hold_id, seen.response_id)
            return
        if seen.deduplicate and not (polled or self.endpoint.kept or self.call.facts.background):
            seen = replace(seen, deduplicate=False)  # every call is a bill of its own, whatever id it came with
        outcome = exchange.outcome(seen, last=last, entry_id=entry_id)
        settling = self._read_elsewhere().bill(self.authorization, outcome) if polled else None
        account = self.authorization if settling is None else settling.authorization
        for bill in seen.shared:
            yield Settling(self.meter, account, exchange.outcome(bill, last=False))
        if settling is not None:
            yield settling
        elif plain is None or self._key is None:
            yield Settling(self.meter, self.authorization, outcome)
        else:
            yield Learning(self.meter, self.authorization, outcome, self._key, plain)

    def _is_left_out(self, seen: Observation) -> bool:
        """Whether a response makes no entry: a reading of what is billed elsewhere, or not final yet."""
        if self.endpoint.kind == "polled":
            return not (seen.billable and seen.deduplicate)
        return self.endpoint.kind == "starts" or "not_final" in seen.flags

    # -- the end

    def returned(self) -> None:
        """The call returned a value: write down what it cost, before the caller gets it. Never raises."""
        try:
            due = self._due()
            for settling in due:
                settle(settling)
            for exchange in self.answers:
                exchange.let_go()
            if not due and has_waiting():
                catch_up()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.recover(error)

    def recover(self, error: BaseException) -> None:
        """Something of ours failed after the call had returned: write down the rest of what it cost. Never raises."""
        self.meter.fault("record a call", error)
        twice(self.meter, self._write_down)

    def _write_down(self) -> None:
        for settling in self._due():
            settle(settling)

    async def returned_async(self) -> None:
        """As `returned`, without making the event loop wait."""
        try:
            due = self._due()
            for settling in due:
                await settle_async(settling)
            for exchange in self.answers:
                exchange.let_go()
            if not due and has_waiting():
                await catch_up_async()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            self.meter.fault("record a call", error)
            self.returned()

    def raised(self, error: BaseException) -> None:
        """The call raised `error`: write down what it may have cost, before the caller gets it. Never raises."""
        twice(self.meter, lambda: self._write_down_after(error))

    def _write_down_after(self, error: BaseException) -> None:
        for settling in self._due_after(error):
            settle(settling)

    async def raised_async(self, error: BaseException) -> None:
        """As `raised`, without making the event loop wait."""
        try:
            for settling in self._due_after(error):
                await settle_async(settling)
        except Exception as fault:  # noqa: BLE001 - the caller gets the SDK's error
            self.meter.fault("record a call", fault)
            self.raised(error)

    def _due(self) -> list[Settling]:
        self._returned = True
        if not self.answers:  # middleware answered by itself: nothing was billed
            self._release()
            return []
        if len(self.answers) == 1:
            (exchange,) = self.answers
            return exchange.unwritten() if exchange.closed else []
        return [settling for exchange in self.answers if exchange.closed for settling in exchange.unwritten()]

    def _due_after(self, error: BaseException) -> list[Settling]:
        """What is to be written down of a call that raised; where an interrupt came amid the writing, the rest."""
        if self.answers:
            for exchange in self.answers:
                exchange.stop(error)
            return self._due()
        self._returned = True
        if processes.is_parents(self._made_in):
            return []
        if not self.attempts or not self.endpoint.billed:  # nothing ever left, or it was free
            self._release(interrupted=came_from_outside(error))
            return []
        sdk, response = self.binding.sdk, _response_of(error)
        outcome = Outcome(
            status=sdk.status_of(error),
            observation=_LOST if self.lost_try else _unanswered(error),
            request_id=None if response is None else sdk.request_id(response.headers),
            attempts=self.attempts,
            error_type=type(error).__name__,
            entry_id=new_id(),
        )
        return [Settling(self.meter, self.authorization, outcome)]

    def _release(self, *, interrupted: bool = False) -> None:
        if processes.is_parents(self._made_in):
            return
        if self._holds:
            self.meter.release(self.authorization)
        elif interrupted and self._hold_id is not None:
            self.meter.free(self._hold_id)
        elif self._authorization is not None:
            self.meter.release(self._authorization)


class Planned(Settling):
    """A call with a plain answer, like one before it."""

    __slots__ = ("_call", "_entry_id", "_exchange", "_plain", "_rest")

    def __init__(self, call: InFlight, exchange: Exchange, plain: Plain) -> None:
        self.meter = call.meter
        self.done = False
        self._begun_in = None
        self._call = call
        self._exchange = exchange
        self._plain = plain
        self._entry_id = new_id()
        self._rest: list[Settling] | None = None

    def record(self) -> None:
        """Write it down by the plan; the general way, where that is not possible."""
        call, meter = self._call, self.meter
        if self._rest is None:
            if call.plan is not None and self._plain.response_id not in meter.by_hand:
                try:
                    if meter.plans.write(call.plan, call, self._exchange, self._plain, self._entry_id):
                        if meter.budgets.telling.looks or meter.waiting.kept:
                            meter.look_around()
                        return
                except (StoreBusyError, StoreUnavailableError) as error:  # the general way tries once more
                    if isinstance(error, StoreBusyError) and not processes.may_wait():
                        raise
                except Exception as error:  # noqa: BLE001 - as above
                    meter.fault("record a call by its plan", error)
            # Under the same identity: should it be written already, it counts once.
            self._rest = list(call.general(self._exchange, self._plain, last=True, entry_id=self._entry_id))
        for settling in self._rest:
            settling.write()

    def _is_recorded(self) -> bool:
        return self._rest is None and self.meter.store.entry(self._entry_id) is not None


class Learning(Settling):
    """The outcome of a call with a plain answer, from which later ones like it are written down."""

    __slots__ = ("_key", "_plain")

    def __init__(
        self, meter: Meter, authorization: Authorization, outcome: Outcome, key: tuple[Any, ...], plain: Plain
    ) -> None:
        super().__init__(meter, authorization, outcome)
        self._key = key
        self._plain = plain

    def record(self) -> None:
        """Hand the outcome to the meter, and learn from what became of it."""
        entry = self.meter.settle(self.authorization, self.outcome)
        seen = self.outcome.observation
        if entry is None or seen is None or len(seen.consumptions) != 1 or seen.shared:
            return
        try:
            self.meter.plans.learn(self._key, self.authorization.call, self._plain, entry, seen.consumptions[0])
        except StoreBusyError:  # the next call like it is learned from
            return
        except Exception as error:  # noqa: BLE001 - the entry is recorded
            self.meter.fault("learn from a call", error)


#: What httpx, httpx2 and aiohttp raise before anything was sent.
_UNSENT = frozenset(
    {
        *("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"),
        *("ClientConnectorDNSError", "ClientConnectorError", "ClientProxyConnectionError", "ConnectionTimeoutError"),
    }
)
#: What is known of a request that left and that nobody answered.
_LOST = Observation(flags=frozenset({"billing_unknown"}))


def _response_of(error: BaseException) -> Any:
    """The response that an SDK's error is about; None where there was none."""
    response = getattr(error, "response", None)
    return getattr(error, "raw_response", None) if response is None else response


def _unanswered(error: BaseException) -> Observation:
    """What is known of a call that raised: a refusal costs nothing, a lost answer may have been billed."""
    cause = error.__cause__
    unsent = type(cause).__name__ in _UNSENT or "client has been closed" in f"{error} {cause}"
    return Observation() if unsent or _response_of(error) is not None else _LOST
