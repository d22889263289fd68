"""One logical call on its way: from the moment the caller made it until all its billed responses are settled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenmeter.attribution import current_attribution, scopes_of_call
from tokenmeter.call import Call, Outcome
from tokenmeter.capture.readings import Readings, waiting
from tokenmeter.capture.responses import Exchange, Reader
from tokenmeter.capture.sdk import Binding, complain
from tokenmeter.capture.settlement import Settling, authorize_async, settle, settle_async, watch
from tokenmeter.errors import AttributionRequiredError, BudgetExceededError, ConfigurationError, StoreUnavailableError
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Endpoint

__all__ = ["REFUSALS", "InFlight", "describe", "leave", "open_call"]

#: What `Meter.authorize` stops a call with; all of it reaches the caller.
REFUSALS = (AttributionRequiredError, BudgetExceededError, ConfigurationError, StoreUnavailableError)


class InFlight:
    """A call that was made, with leave or waiting for it.

    Args:
        binding: What the client is metered with.
        meter: Where it is settled, even if the default meter changes meanwhile.
        reader: Reads its answers.
        key_on_demand: Whether the SDK asks a function of its user's for the key of each request.

    Attributes:
        answering: The response whose body the SDK is decoding right now, while the call is on its way.
        attempts: HTTP requests sent so far.
        awaits_key: Whether leave cannot be asked for yet, since the key is not known.
        usage_asked: Whether the request asks for a usage chunk that the caller did not ask for.
    """

    __slots__ = (
        "_finished",
        "_opened",
        "_readings",
        "_returned",
        "answering",
        "attempts",
        "authorization",
        "awaits_key",
        "binding",
        "key_on_demand",
        "meter",
        "reader",
        "usage_asked",
    )

    def __init__(self, binding: Binding, meter: Meter, reader: Reader, *, key_on_demand: bool) -> None:
        self.binding = binding
        self.meter = meter
        self.reader = reader
        self.answering: Exchange | None = None
        self.attempts = 0
        self.usage_asked = False
        self.authorization = leave(meter, reader.call)
        self.key_on_demand = self.awaits_key = key_on_demand
        self._opened = 0
        self._finished: list[Exchange] = []
        self._readings = Readings(meter, reader.endpoint)
        self._returned = False

    @property
    def endpoint(self) -> Endpoint:
        """What is called."""
        return self.reader.endpoint

    # -- leave

    def authorize(self) -> None:
        """Ask the meter for leave, unless nothing new is billed.

        Raises:
            BudgetExceededError: nothing must be sent.
        """
        self.awaits_key = False
        if not self.endpoint.billed:
            return
        try:
            self.authorization = self.meter.authorize(self.reader.call)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)

    async def authorize_async(self) -> None:
        """As `authorize`, without making the event loop wait."""
        self.awaits_key = False
        if not self.endpoint.billed:
            return
        try:
            self.authorization = await authorize_async(self.meter, self.reader.call)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)

    def learn_key(self, key: str | None) -> bool:
        """Take the key that a request was prepared with; whether it is what leave was waiting for."""
        try:
            known = self.meter.identify(key)
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            self.meter.fault("identify a key", error)
            return False
        if known != self.reader.call.api_key:
            self.reader.call = self.authorization.call = replace(self.reader.call, api_key=known)
        return self.awaits_key and known is not None

    # -- responses

    def respond(self, headers: Mapping[str, str], *, attempts: int, streamed: bool) -> Exchange:
        """Open the exchange of one response with a success status."""
        exchange = Exchange(
            self.meter,
            self.authorization,
            self.reader,
            self.binding.sdk,
            headers,
            attempts=attempts,
            streamed=streamed,
            line=self._line,
            done=self._done,
        )
        self._opened += 1
        if streamed:
            watch(exchange)
        return exchange

    def _line(self, seen: Observation, request_id: str | None) -> Settling | None:
        if self._is_left_out(seen):
            return None
        return self._readings.line(self.authorization, Outcome(observation=seen, request_id=request_id, last=False))

    def _done(self, exchange: Exchange) -> list[Settling]:
        if not self._returned:
            # Middleware may send again: only when the call returns is it known which response was the last.
            self._finished.append(exchange)
            return []
        self._opened -= 1
        return self._settlings([exchange])

    def _settlings(self, exchanges: list[Exchange]) -> list[Settling]:
        found: list[Settling] = []
        polled = self.endpoint.kind == "polled"
        for number, exchange in enumerate(exchanges, 1):
            seen = exchange.observation
            if self._is_left_out(seen):
                if not polled:
                    self._readings.begun(self.authorization, seen)
                continue
            if seen.deduplicate and not polled and not self.reader.call.facts.background:
                seen = replace(seen, deduplicate=False)  # every call is a bill of its own, whatever id it came with
            found.extend(
                Settling(self.meter, self.authorization, exchange.outcome(bill, last=False)) for bill in seen.shared
            )
            outcome = exchange.outcome(seen, last=not self._opened and number == len(exchanges))
            if polled:
                found.append(self._readings.bill(self.authorization, outcome))
            else:
                found.append(Settling(self.meter, self.authorization, outcome))
        return found

    def _is_left_out(self, seen: Observation) -> bool:
        """Whether a response makes no entry: a reading of what is billed elsewhere, or not final yet."""
        if self.endpoint.kind == "polled":
            return not (seen.billable and seen.deduplicate)
        return self.endpoint.kind == "starts" or "not_final" in seen.flags

    # -- the end

    def returned(self) -> None:
        """The call returned a value: write down what it cost, before the caller gets it."""
        for settling in self._on_return():
            settle(settling)

    async def returned_async(self) -> None:
        """As `returned`, without making the event loop wait."""
        for settling in self._on_return():
            await settle_async(settling)

    def raised(self, error: BaseException) -> None:
        """The call raised `error`: write down what it may have cost, before the caller gets it."""
        for settling in self._on_error(error):
            settle(settling)

    async def raised_async(self, error: BaseException) -> None:
        """As `raised`, without making the event loop wait."""
        for settling in self._on_error(error):
            await settle_async(settling)

    def _on_return(self) -> list[Settling]:
        self._returned = True
        finished, self._finished = self._finished, []
        self._opened -= len(finished)
        if not finished and not self._opened:  # middleware answered by itself: nothing was billed
            self.meter.release(self.authorization)
        return self._settlings(finished)

    def _on_error(self, error: BaseException) -> list[Settling]:
        if self._finished or self._opened:
            for exchange in self._finished[-1:]:
                exchange.failed(error)
            return self._on_return()
        self._returned = True
        if not self.attempts or not self.endpoint.billed:  # nothing ever left, or it was free
            self.meter.release(self.authorization)
            return []
        sdk, response = self.binding.sdk, getattr(error, "response", None)
        outcome = Outcome(
            status=sdk.status_of(error),
            observation=_unanswered(error),
            request_id=None if response is None else sdk.request_id(response.headers),
            attempts=self.attempts,
            error_type=type(error).__name__,
        )
        return [Settling(self.meter, self.authorization, outcome)]


#: What httpx and httpx2 raise before anything was sent.
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


def _unanswered(error: BaseException) -> Observation:
    """What is known of a call that raised: a refusal costs nothing, a lost answer may have been billed."""
    cause = error.__cause__
    unsent = type(cause).__name__ in _UNSENT or "client has been closed" in f"{error} {cause}"
    if unsent or getattr(error, "response", None) is not None:
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
        call = describe(client, binding, meter, endpoint, body, streamed=streamed, key=key)
        starter = waiting(meter, endpoint.subject) if endpoint.kind == "polled" else None
        if starter is not None:  # what a host leaves unsaid is known from the request that started it
            call = replace(call, facts=replace(starter.facts, streamed=streamed, background=True))
        return InFlight(
            binding,
            meter,
            Reader(binding.sdk.dialect(), endpoint, call),
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


def describe(
    client: Any,
    binding: Binding,
    meter: Meter,
    endpoint: Endpoint,
    body: Mapping[str, Any] | None,
    *,
    streamed: bool,
    key: str | None = None,
) -> Call:
    """What accounting needs to know of a call with this body, made right here."""
    facts = binding.sdk.dialect().request_facts(endpoint, body)
    host = binding.host(client, meter)
    if facts.streamed != streamed or host.region is not None or host.cost_unit is not None:
        facts = replace(facts, streamed=streamed, region=host.region, cost_unit=host.cost_unit)
    return Call(
        provider=meter.provider_at(host.url) or host.provider,
        endpoint=endpoint.path,
        operation=endpoint.operation,
        facts=facts,
        attribution=meter.attribution_of(body, current_attribution()).over(binding.attribution),
        scopes=scopes_of_call(),
        api_key=meter.identify(key or binding.sdk.api_key(client)),
        span=meter.spans and meter.spans.current(),
    )


def leave(meter: Meter, call: Call) -> Authorization:
    """Leave for a call that no budget is asked about."""
    from tokenmeter.meter import Authorization  # noqa: PLC0415 - there is a meter by now, which importing us need not load

    return Authorization(call, meter.store.now(), time.perf_counter_ns())
