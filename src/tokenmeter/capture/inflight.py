"""One logical call on its way: from the moment the caller made it until all its billed responses are settled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.attribution import current_attribution, scopes_of_call
from tokenmeter.call import Call, Outcome
from tokenmeter.capture.exchange import Exchange
from tokenmeter.capture.readings import Readings
from tokenmeter.capture.sdk import Binding, complain
from tokenmeter.capture.settlement import (
    Settling,
    authorize_async,
    watch,
)
from tokenmeter.errors import BudgetExceededError, ConfigurationError, StoreUnavailableError
from tokenmeter.semconv import Status
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Endpoint, StreamReader

__all__ = ["REFUSALS", "InFlight", "describe", "leave", "open_call"]

#: What `Meter.authorize` stops a call with; all of it reaches the caller.
REFUSALS = (BudgetExceededError, ConfigurationError, StoreUnavailableError)


class InFlight:
    """A call that was made, with leave or waiting for it.

    Attributes:
        binding: What the client is metered with.
        meter: Where it is settled, even if the default meter changes meanwhile.
        endpoint: What is called.
        attempts: HTTP requests sent so far.
        include_usage_injected: Whether the request asks for a usage chunk that the caller did not ask for.
        key_on_demand: Whether the SDK asks a function of its user's for the key of each request.
        awaits_key: Whether leave cannot be asked for yet, since the key is not known.
    """

    __slots__ = (
        "_authorization",
        "_background",
        "_call",
        "_finished",
        "_opened",
        "_readings",
        "_returned",
        "attempts",
        "awaits_key",
        "binding",
        "endpoint",
        "include_usage_injected",
        "key_on_demand",
        "meter",
    )

    def __init__(
        self,
        binding: Binding,
        meter: Meter,
        endpoint: Endpoint,
        call: Call,
        *,
        background: bool = False,
        key_on_demand: bool = False,
    ) -> None:
        self.binding = binding
        self.meter = meter
        self.endpoint = endpoint
        self.attempts = 0
        self.include_usage_injected = False
        self._call = call
        self._background = background  # it will be read again, and must bill once
        self._authorization: Authorization  # from `authorize` on
        self.key_on_demand = self.awaits_key = key_on_demand
        if key_on_demand:
            self._authorization = self._leave()
        self._opened = 0
        self._finished: list[Exchange] = []
        self._readings = Readings(meter, endpoint)
        self._returned = False

    # -- leave

    def authorize(self) -> None:
        """Ask the meter for leave.

        Raises:
            BudgetExceededError: nothing must be sent.
        """
        self.awaits_key = False
        if not self.endpoint.billed:
            self._authorization = self._leave()
            return
        try:
            self._authorization = self.meter.authorize(self._call)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)
            self._authorization = self._leave()

    async def authorize_async(self) -> None:
        """As `authorize`, without making the event loop wait."""
        self.awaits_key = False
        if not self.endpoint.billed:
            self._authorization = self._leave()
            return
        try:
            self._authorization = await authorize_async(self.meter, self._call)
        except REFUSALS:
            raise
        except Exception as error:  # noqa: BLE001 - only a budget stops a call
            self.meter.fault("authorize", error)
            self._authorization = self._leave()

    def _leave(self) -> Authorization:
        """Leave without asking a budget: nothing new is billed, or the budgets failed."""
        return leave(self.meter, self._call)

    @property
    def provider(self) -> str:
        """Who serves the call."""
        return self._call.provider

    @property
    def output_cap(self) -> int | None:
        """The output cap that a budget wants set on the request."""
        return self._authorization.inject_max_output_tokens

    def learn_key(self, key: str | None) -> bool:
        """Take the key that a request was prepared with; whether it is what leave was waiting for."""
        try:
            known = self.meter.identify(key)
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            self.meter.fault("identify a key", error)
            return False
        if known != self._authorization.call.api_key:
            self._call = self._authorization.call = replace(self._authorization.call, api_key=known)
        return self.awaits_key and known is not None

    # -- responses

    def respond(self, headers: Mapping[str, str], *, streamed: bool) -> Exchange:
        """Open the exchange of one response with a success status."""
        exchange = Exchange(self, headers, streamed=streamed)
        self._opened += 1
        if streamed:
            watch(exchange)
        return exchange

    def stream_reader(self) -> StreamReader:
        """A fresh reader for one stream of this call."""
        call = self._call
        return self.binding.sdk.dialect().stream(provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def read(self, body: Any) -> Observation:
        """Usage of a whole decoded body."""
        call = self._call
        return self.binding.sdk.dialect().read(body, provider=call.provider, endpoint=call.endpoint, request=call.facts)

    def request_id(self, headers: Mapping[str, str]) -> str | None:
        """The provider's id of a request, from its response's headers."""
        for name in self.binding.sdk.request_id_headers:
            if found := headers.get(name):
                return found
        return None

    def elapsed_us(self) -> int:
        """Microseconds since the call was made."""
        return (time.perf_counter_ns() - self._authorization.started_ns) // 1000

    def status_of(self, error: BaseException) -> Status:
        """How a call ended that raised `error`."""
        if not isinstance(error, Exception):  # cancelled, interrupted, generator closed
            return "aborted"
        if isinstance(error, self.binding.sdk.timeout_error) or "Timeout" in type(error).__name__:
            return "timeout"
        return "error"

    @property
    def holds(self) -> bool:
        """Whether a budget holds something for this call."""
        return self._authorization.reservation is not None

    def keep_hold(self) -> None:
        """Keep the hold from expiring while a stream lasts."""
        self.meter.extend(self._authorization)

    # -- the end

    def line(self, seen: Observation, request_id: str | None) -> Settling | None:
        """One of many bills: a line of a results file, an object of a page, an event; None when it is not billed."""
        if self._is_left_out(seen):
            return None
        return self._readings.line(self._authorization, Outcome(observation=seen, request_id=request_id, last=False))

    def finished(self, exchange: Exchange) -> list[Settling]:
        """An exchange has come to its end: what is to be written down now."""
        if not self._returned:
            # Middleware may send again: only when the call returns is it known which response was the last.
            self._finished.append(exchange)
            return []
        self._opened -= 1
        return self._settlings([exchange])

    def _settlings(self, exchanges: list[Exchange]) -> list[Settling]:
        found: list[Settling] = []
        for number, exchange in enumerate(exchanges, 1):
            seen = exchange.observation
            if self._is_left_out(seen):
                if self.endpoint.kind != "polled":
                    self._readings.begun(self._authorization, seen)
                continue
            if seen.deduplicate and self.endpoint.kind != "polled" and not self._background:
                seen = replace(seen, deduplicate=False)  # every call is a bill of its own, whatever id it came with
            outcome = exchange.outcome(seen, last=not self._opened and number == len(exchanges))
            if self.endpoint.kind == "polled":
                found.append(self._readings.bill(self._authorization, outcome))
            else:
                found.append(Settling(self.meter, self._authorization, outcome))
        return found

    def _is_left_out(self, seen: Observation) -> bool:
        """Whether a response makes no entry: a reading of what is billed elsewhere, or not final yet."""
        if self.endpoint.kind == "polled":
            return not (seen.billable and seen.deduplicate)
        return self.endpoint.kind == "starts" or "not_final" in seen.flags

    def returned(self) -> list[Settling]:
        """The call returned a value: what is to be written down before the caller gets it."""
        self._returned = True
        finished, self._finished = self._finished, []
        self._opened -= len(finished)
        if not finished and not self._opened:  # middleware answered by itself: nothing was billed
            self.meter.release(self._authorization)
        return self._settlings(finished)

    def raised(self, error: BaseException) -> list[Settling]:
        """The call raised: what is to be written down before the caller gets the error."""
        if self._finished or self._opened:
            for exchange in self._finished[-1:]:
                exchange.failed(error)
            return self.returned()
        self._returned = True
        if not self.attempts or not self.endpoint.billed:  # nothing ever left, or it was free
            self.meter.release(self._authorization)
            return []
        response = getattr(error, "response", None)
        outcome = Outcome(
            status=self.status_of(error),
            observation=_unanswered(error),
            request_id=None if response is None else self.request_id(response.headers),
            attempts=self.attempts,
            error_type=type(error).__name__,
        )
        return [Settling(self.meter, self._authorization, outcome)]


#: What httpx and httpx2 raise before anything was sent.
_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})


def _unanswered(error: BaseException) -> Observation:
    """What is known of a call that raised: a refusal costs nothing, a lost answer may have been billed."""
    cause = error.__cause__
    unsent = type(cause).__name__ in _UNSENT or "client has been closed" in f"{error} {cause}"
    if unsent or getattr(error, "response", None) is not None:
        return Observation()
    return Observation(flags=frozenset({"billing_unknown"}))


def open_call(client: Any, binding: Binding, options: Any, *, stream: bool) -> InFlight | None:
    """The call that `options` describe; None when it is free, or when it cannot be metered (logged).

    Raises:
        ConfigurationError: the user's settings are wrong.
    """
    endpoint = _endpoint(binding, options)
    meter = None if endpoint is None else binding.meter()
    if endpoint is None or meter is None:
        return None
    try:
        body = effective_body(options)
        call = describe(client, binding, meter, endpoint, body, stream=stream)
    except Exception as error:  # noqa: BLE001 - the call itself goes on
        meter.fault("see a call", error)
        return None
    return InFlight(
        binding,
        meter,
        endpoint,
        call,
        background=body is not None and body.get("background") is True,
        key_on_demand=binding.sdk.asks_for_key(client),
    )


def _endpoint(binding: Binding, options: Any) -> Endpoint | None:
    """What is called; None for what makes no bill."""
    try:
        method = options.method.upper()
        endpoint = binding.sdk.dialect().endpoint(method, str(options.url))
    except Exception as error:  # noqa: BLE001 - the call itself goes on
        complain("see what is called", error)
        return None
    return endpoint if endpoint.kind in {"polled", "starts"} or (method == "POST" and endpoint.billed) else None


def describe(
    client: Any, binding: Binding, meter: Meter, endpoint: Endpoint, body: Mapping[str, Any] | None, *, stream: bool
) -> Call:
    """What accounting needs to know of a call with this body, made right here."""
    facts = binding.sdk.dialect().request_facts(endpoint, body)
    host = binding.host(client, meter)
    if facts.streamed != stream or host.region is not None:
        facts = replace(facts, streamed=stream, region=host.region)
    return Call(
        provider=meter.provider_at(host.url) or host.provider,
        endpoint=endpoint.path,
        operation=endpoint.operation,
        facts=facts,
        attribution=current_attribution().over(binding.attribution),
        scopes=scopes_of_call(),
        api_key=meter.identify(binding.sdk.api_key(client)),
    )


def leave(meter: Meter, call: Call) -> Authorization:
    """Leave for a call that no budget is asked about."""
    from tokenmeter.meter import Authorization  # noqa: PLC0415 - there is a meter by now, which importing us need not load

    return Authorization(call, meter.store.now(), time.perf_counter_ns())


def effective_body(options: Any) -> Mapping[str, Any] | None:
    """The JSON body that is about to be sent, ``extra_body`` merged in; None when it is not a JSON object."""
    body, extra = options.json_data, options.extra_json
    if isinstance(extra, Mapping) and extra and (body is None or isinstance(body, Mapping)):
        return {**cast("Mapping[str, Any]", body or {}), **cast("Mapping[str, Any]", extra)}
    return cast("Mapping[str, Any]", body) if isinstance(body, Mapping) else None
