"""One logical call on its way: from the moment the caller made it until all its billed responses are settled."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.attribution import ApiKey, Attribution, Scope, current_attribution, scopes_of_call
from tokenmeter.call import ActiveSpan, Call, Outcome
from tokenmeter.capture.readings import Readings, waiting
from tokenmeter.capture.responses import Exchange
from tokenmeter.capture.sdk import Binding, complain
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
from tokenmeter.ledger import new_id
from tokenmeter.meter import Authorization, Meter
from tokenmeter.meter.plans import Answered
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.budgets.demands import PlannedHold
    from tokenmeter.providers.base import Endpoint, Plain, StreamReader

__all__ = ["REFUSALS", "Identity", "InFlight", "describe", "identify", "leave", "open_call"]

#: What `Meter.authorize` stops a call with; all of it reaches the caller.
REFUSALS = (AttributionRequiredError, BudgetExceededError, ConfigurationError, StoreUnavailableError)


class InFlight:
    """A call that was made, with leave or waiting for it.

    Args:
        binding: What the client is metered with.
        meter: Where it is settled, even if the default meter changes meanwhile.
        endpoint: What is called.
        identity: Who makes it, and who serves it.
        body: The JSON object that is about to be sent; None for none.
        streamed: Whether an event stream is asked for.
        key_on_demand: Whether the SDK asks a function of its user's for the key of each request.

    Attributes:
        answering: The response whose body the SDK is decoding right now, while the call is on its way.
        attempts: HTTP requests sent so far.
        awaits_key: Whether leave cannot be asked for yet, since the key is not known.
        usage_asked: Whether the request asks for a usage chunk that the caller did not ask for.
        started_ns: When it was made, on the performance counter.
    """

    __slots__ = (
        "_answers",
        "_authorization",
        "_body",
        "_call",
        "_hold",
        "_hold_id",
        "_identity",
        "_key",
        "_plan",
        "_readings",
        "_returned",
        "_started_us",
        "_streamed",
        "answering",
        "attempts",
        "awaits_key",
        "binding",
        "endpoint",
        "key_on_demand",
        "meter",
        "started_ns",
        "usage_asked",
    )

    def __init__(
        self,
        binding: Binding,
        meter: Meter,
        endpoint: Endpoint,
        identity: Identity,
        body: Mapping[str, Any] | None,
        *,
        streamed: bool,
        key_on_demand: bool,
    ) -> None:
        self.binding = binding
        self.meter = meter
        self.endpoint = endpoint
        self.answering: Exchange | None = None
        self.attempts = 0
        self.usage_asked = False
        self.key_on_demand = self.awaits_key = key_on_demand
        self._identity = identity
        self._body = body
        self._streamed = streamed
        self._answers: list[Exchange] = []
        self._hold_id: str | None = None
        self._hold: PlannedHold | None = None
        self._readings: Readings | None = None
        self._returned = False
        self._authorization: Authorization | None = None
        self._call: Call | None = None
        self._key = None if key_on_demand else _plan_key(binding, meter, endpoint, identity, body, streamed=streamed)
        self._plan = None if self._key is None else meter.plans.find(self._key)
        self._started_us = meter.plans.now_us()
        self.started_ns = time.perf_counter_ns()
        if self._plan is None or streamed or self._plan.demands.any:
            self._call = self._described()  # right here: a body may change while its answer is awaited
        if self._plan is None:
            self._authorization = leave(meter, self._call or self._described())

    @property
    def provider(self) -> str:
        """Who serves the call."""
        return self._identity.provider

    @property
    def call(self) -> Call:
        """What accounting needs to know of it."""
        if self._call is None:
            self._call = self._described()
        return self._call

    def _described(self) -> Call:
        call = describe(self.binding, self.endpoint, self._identity, self._body, streamed=self._streamed)
        starter = waiting(self.meter, self.endpoint.subject) if self.endpoint.kind == "polled" else None
        if starter is None:
            return call
        # What a host leaves unsaid is known from the request that started it.
        return replace(call, facts=replace(starter.facts, streamed=self._streamed, background=True))

    @property
    def authorization(self) -> Authorization:
        """Leave for it."""
        if self._authorization is None:
            self._authorization = self.meter.resume(self.call, self._started_us, self.started_ns, self._hold)
        return self._authorization

    # -- leave

    def authorize(self) -> None:
        """Ask the meter for leave, unless nothing new is billed or no budget is to be asked.

        Raises:
            BudgetExceededError: nothing must be sent.
        """
        hold_id = self._ask_plan()
        if hold_id is None:
            return
        try:
            self._authorization = self.meter.authorize(self.call, hold_id=hold_id)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)

    async def authorize_async(self) -> None:
        """As `authorize`, without making the event loop wait."""
        hold_id = self._ask_plan()
        if hold_id is None:
            return
        try:
            self._authorization = await authorize_async(self.meter, self.call, hold_id)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)

    def _ask_plan(self) -> str | None:
        """Have what the call may use held by its plan; the identity of a hold that is for the meter to make, if any."""
        self.awaits_key = False
        plan = self._plan
        if plan is not None:
            if not (plan.demands.any or self._streamed):
                return None
            self._hold_id = new_id()
            try:
                self._hold = self.meter.plans.hold(plan, self.call, self._started_us, self._hold_id)
            except Exception as error:  # noqa: BLE001 - the general way says what comes of it
                self.meter.fault("hold a call's budget by its plan", error)
            if self._hold is not None:
                return None
            self._plan = None
        if not self.endpoint.billed:
            return None
        self._hold_id = new_id()
        return self._hold_id

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

    def keep_hold(self) -> None:
        """A stream goes on: what is held for it stays held."""
        self.meter.extend(self.authorization)

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
            holding=self._holds,
        )
        self._answers.append(exchange)
        if streamed:
            watch(exchange)
        return exchange

    @property
    def _holds(self) -> bool:
        """Whether anything is held for it in the ledger."""
        if self._hold is not None:
            return self._hold.hold_id is not None
        return self._authorization is not None and self._authorization.reservation is not None

    def line(self, seen: Observation, request_id: str | None) -> Settling | None:
        """One of many bills in an answer; None when it is not billed."""
        if self._is_left_out(seen):
            return None
        outcome = Outcome(observation=seen, request_id=request_id, last=False)
        return self._read_elsewhere().line(self.authorization, outcome)

    def answered(self, exchange: Exchange) -> list[Settling] | None:
        """Nothing more will come of an answer: what is to be written down.

        None until the call has returned: middleware may send again, and only then is it known which was the last.
        """
        if not self._returned:
            return None
        alone = len(self._answers) == 1
        last = alone or all(other.closed for other in self._answers)
        plain = self._plain(exchange) if alone else None
        if plain is not None and self._plan is not None:
            return [Planned(self, exchange, plain)]
        return list(self.general(exchange, plain, last=last))

    def _read_elsewhere(self) -> Readings:
        if self._readings is None:
            self._readings = Readings(self.meter, self.endpoint)
        return self._readings

    def _plain(self, exchange: Exchange) -> Plain | None:
        """What a plain answer says; None for any other."""
        if self._key is None or exchange.body is None or exchange.status not in {None, "ok"}:
            return None
        reader = self.binding.sdk.dialect().plain.get(self.endpoint.path)
        return None if reader is None else reader(exchange.body)

    def write_planned(self, exchange: Exchange, plain: Plain, entry_id: str) -> bool:
        """Write down a plain answer by the plan of calls like this one; whether that was possible."""
        if self._plan is None:
            return False
        meter, who = self.meter, self._identity
        answered = Answered(
            entry_id,
            self._hold,
            plain,
            who.attribution,
            who.scopes,
            who.span,
            self._started_us,
            self.started_ns,
            exchange.request_id,
            exchange.attempts,
            self._streamed,
            exchange.first_token_us,
        )
        try:
            written = meter.plans.write(self._plan, answered)
        except (StoreUnavailableError, StoreBusyError):
            return False  # the general way tries once more, from a thread if need be
        except Exception as error:  # noqa: BLE001 - as above
            meter.fault("record a call by its plan", error)
            return False
        if written and meter.budgets.rules:
            meter.budgets.check_rules_sometimes(faults=meter.faults)
        return written

    def general(self, exchange: Exchange, plain: Plain | None, *, last: bool) -> Iterator[Settling]:
        """What is to be written down of an answer, the general way."""
        polled = self.endpoint.kind == "polled"
        seen = exchange.observation
        if self._is_left_out(seen):
            if not polled:
                self._read_elsewhere().begun(self.authorization, seen)
            return
        if seen.deduplicate and not polled and not self.call.facts.background:
            seen = replace(seen, deduplicate=False)  # every call is a bill of its own, whatever id it came with
        outcome = exchange.outcome(seen, last=last)
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
        """The call returned a value: write down what it cost, before the caller gets it."""
        for settling in self._due():
            settle(settling)
        catch_up()

    async def returned_async(self) -> None:
        """As `returned`, without making the event loop wait."""
        for settling in self._due():
            await settle_async(settling)
        if has_waiting():
            await catch_up_async()

    def raised(self, error: BaseException) -> None:
        """The call raised `error`: write down what it may have cost, before the caller gets it."""
        for settling in self._due_after(error):
            settle(settling)

    async def raised_async(self, error: BaseException) -> None:
        """As `raised`, without making the event loop wait."""
        for settling in self._due_after(error):
            await settle_async(settling)

    def _due(self) -> list[Settling]:
        self._returned = True
        if not self._answers:  # middleware answered by itself: nothing was billed
            self._release()
            return []
        return [settling for exchange in self._answers if exchange.closed for settling in exchange.unwritten()]

    def _due_after(self, error: BaseException) -> list[Settling]:
        """What is to be written down of a call that raised; where an interrupt came amid the writing, the rest."""
        if self._answers:
            for exchange in self._answers:
                exchange.stop(error)
            return self._due()
        self._returned = True
        if not self.attempts or not self.endpoint.billed:  # nothing ever left, or it was free
            self._release(interrupted=not isinstance(error, Exception))
            return []
        sdk, response = self.binding.sdk, _response_of(error)
        outcome = Outcome(
            status=sdk.status_of(error),
            observation=_unanswered(error),
            request_id=None if response is None else sdk.request_id(response.headers),
            attempts=self.attempts,
            error_type=type(error).__name__,
            entry_id=new_id(),
        )
        return [Settling(self.meter, self.authorization, outcome)]

    def _release(self, *, interrupted: bool = False) -> None:
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

    def record(self, *, wait: bool) -> None:
        """Write it down by the plan; the general way, where that is not possible."""
        if self._rest is None:
            if self._call.write_planned(self._exchange, self._plain, self._entry_id):
                return
            self._rest = list(self._call.general(self._exchange, self._plain, last=True))
        for settling in self._rest:
            settling.write(wait=wait)

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

    def record(self, *, wait: bool) -> None:
        """Hand the outcome to the meter, and learn from what became of it."""
        entry = self.meter.settle(self.authorization, self.outcome, wait=wait)
        seen = self.outcome.observation
        if entry is None or seen is None or len(seen.consumptions) != 1 or seen.shared:
            return
        try:
            self.meter.plans.learn(self._key, self.authorization.call, self._plain, entry, seen.consumptions[0])
        except Exception as error:  # noqa: BLE001 - the entry is recorded
            self.meter.fault("learn from a call", error)


#: What httpx and httpx2 raise before anything was sent.
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


def _response_of(error: BaseException) -> Any:
    """The response that an SDK's error is about; None where there was none."""
    response = getattr(error, "response", None)
    return getattr(error, "raw_response", None) if response is None else response


def _unanswered(error: BaseException) -> Observation:
    """What is known of a call that raised: a refusal costs nothing, a lost answer may have been billed."""
    cause = error.__cause__
    unsent = type(cause).__name__ in _UNSENT or "client has been closed" in f"{error} {cause}"
    if unsent or _response_of(error) is not None:
        return Observation()
    return Observation(flags=frozenset({"billing_unknown"}))


def open_call(
    client: Any,
    binding: Binding,
    method: str,
    url: str,
    body: Mapping[str, Any] | None,
    *,
    streamed: bool,
    key: str | None = None,
) -> InFlight | None:
    """The call that `client` is about to make; None when it is free, or when it cannot be metered (logged).

    Args:
        client: The client, as its `Sdk` knows it.
        binding: What it is metered with.
        method: HTTP method.
        url: URL or path.
        body: The JSON object that is about to be sent; None for none.
        streamed: Whether an event stream is asked for.
        key: The key that this very request names in a header, where it does.

    Raises:
        ConfigurationError: the user's settings are wrong.
    """
    endpoint = _endpoint(binding, method, url)
    meter = None if endpoint is None else binding.meter()
    if endpoint is None or meter is None:
        return None
    try:
        return InFlight(
            binding,
            meter,
            endpoint,
            identify(client, binding, meter, body, key=key),
            body,
            streamed=streamed,
            key_on_demand=key is None and binding.sdk.asks_for_key(client),
        )
    except Exception as error:  # noqa: BLE001 - the call itself goes on
        meter.fault("see a call", error)
        return None


def _endpoint(binding: Binding, method: str, url: str) -> Endpoint | None:
    """What is called; None for what makes no bill."""
    try:
        method = method.upper()
        endpoint = binding.sdk.dialect().endpoint(method, url)
    except Exception as error:  # noqa: BLE001 - the call itself goes on
        complain("see what is called", error)
        return None
    return endpoint if endpoint.kind in {"polled", "starts"} or (method == "POST" and endpoint.billed) else None


class Identity(NamedTuple):
    """Who makes a call, and who serves it.

    Attributes:
        provider: Provider id.
        region: Cloud region or data zone, where it decides the price.
        cost_unit: What the host means by a cost it states; None = as its provider does.
        api_key: Which key is used.
        attribution: On whose account.
        scopes: Open `attribute` blocks to count into.
        span: The span it is made in, where spans are told.
    """

    provider: str
    region: str | None
    cost_unit: str | None
    api_key: ApiKey | None
    attribution: Attribution
    scopes: tuple[Scope, ...]
    span: ActiveSpan | None


def identify(
    client: Any, binding: Binding, meter: Meter, body: Mapping[str, Any] | None, *, key: str | None = None
) -> Identity:
    """Who is about to make a call with `client`, and who serves it; `key` is what the request itself names."""
    host = binding.host(client, meter)
    return Identity(
        host.provider,
        host.region,
        host.cost_unit,
        meter.identify(key or binding.sdk.api_key(client)),
        meter.attribution_of(body, current_attribution()).over(binding.attribution),
        scopes_of_call(),
        None if meter.spans is None else meter.spans.current(),
    )


def _plan_key(
    binding: Binding,
    meter: Meter,
    endpoint: Endpoint,
    identity: Identity,
    body: Mapping[str, Any] | None,
    *,
    streamed: bool,
) -> tuple[Any, ...] | None:
    """What tells calls apart; None for one that no plan is made for."""
    if body is None or endpoint.kind != "billed":
        return None
    singular = binding.sdk.dialect().singular_fields
    if not singular.isdisjoint(body) and any(_is_given(body.get(name)) for name in singular):
        return None
    model, tier = body.get("model"), body.get("service_tier")
    if type(model) is not str:
        return None
    for scope in identity.scopes:
        if type(scope) is not Scope:
            return None  # a block with a budget of its own
    if type(tier) is not str:
        if _is_given(tier):
            return None
        tier = None
    key = identity.api_key
    return meter.plans.key(
        identity.attribution,
        identity.provider,
        endpoint.path,
        identity.region,
        None if key is None else key.fingerprint,
        model,
        tier,
        streamed,
    )


def _is_given(value: Any) -> bool:
    """Whether a field of a request says anything; SDKs have markers for those that the caller left out."""
    return value is not None and type(value).__name__ not in {"Omit", "NotGiven"}


def describe(
    binding: Binding, endpoint: Endpoint, identity: Identity, body: Mapping[str, Any] | None, *, streamed: bool
) -> Call:
    """What accounting needs to know of a call with this body, made right here."""
    facts = binding.sdk.dialect().request_facts(endpoint, body)
    if facts.streamed != streamed or identity.region is not None or identity.cost_unit is not None:
        facts = replace(facts, streamed=streamed, region=identity.region, cost_unit=identity.cost_unit)
    return Call(
        provider=identity.provider,
        endpoint=endpoint.path,
        operation=endpoint.operation,
        facts=facts,
        attribution=identity.attribution,
        scopes=identity.scopes,
        api_key=identity.api_key,
        span=identity.span,
    )


def leave(meter: Meter, call: Call) -> Authorization:
    """Leave for a call that no budget is asked about."""
    return Authorization(call, meter.store.now(), time.perf_counter_ns())
