"""What accounting needs to know of a call that is about to be made: who makes it, who serves it, what it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.attribution import NOBODY, ApiKey, Attribution, Scope, scopes_of_call
from tokenmeter.call import ActiveSpan, Call, PlainRequest, RequestFacts
from tokenmeter.capture.sdk import Binding, UnreadBody, complain
from tokenmeter.meter import Authorization, Meter
from tokenmeter.providers.prompts import UNREADABLE, named

if TYPE_CHECKING:
    from weakref import ref

    from tokenmeter.providers.base import Endpoint, PlainReader


class Kind(NamedTuple):
    """What calls of one client to one URL with one key have in common, while its base URL and its meter are the same.

    Attributes:
        meter: Where they are settled; not kept alive.
        base_url: The client's, as the SDK's own object.
        endpoint: What is called.
        key_on_demand: Whether the SDK asks a function of its user's for the key of each request.
        provider: Provider id.
        region: Cloud region or data zone, where it decides the price.
        cost_unit: What the host means by a cost it states; None = as its provider does.
        api_key: Which key is used.
        alike: The part of a plan's key that they share; None where no plan is made for them.
        singular: Fields of a request that make a call unlike any other.
        read_request: Reads a plain request, if the endpoint has such.
        read_answer: Reads a plain answer, if it has such.
    """

    meter: ref[Meter]
    base_url: Any
    endpoint: Endpoint
    key_on_demand: bool
    provider: str
    region: str | None
    cost_unit: str | None
    api_key: ApiKey | None
    alike: tuple[str | None, ...] | None
    singular: frozenset[str]
    read_request: Callable[[Mapping[str, Any]], PlainRequest | None] | None
    read_answer: PlainReader | None


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


def identify(client: Any, binding: Binding, meter: Meter, body: Mapping[str, Any] | None) -> Identity:
    """Who is about to make a call with `client`, and who serves it."""
    host, key = binding.host(client, meter), meter.identify(binding.sdk.api_key(client))
    return Identity(host.provider, host.region, host.cost_unit, key, *whose(binding, meter, body))


def whose(
    binding: Binding, meter: Meter, body: Mapping[str, Any] | None
) -> tuple[Attribution, tuple[Scope, ...], ActiveSpan | None]:
    """On whose account a call is that is made right here; the blocks to count into, and the span, where it is told."""
    scopes = scopes_of_call()
    who = scopes[-1].attribution if scopes else NOBODY
    if meter.request_fields is not None:
        who = meter.attribution_of(body, who)
    if binding.attribution is not NOBODY:
        who = who.over(binding.attribution)
    return who, scopes, None if meter.spans is None else meter.spans.current()


def describe(
    binding: Binding,
    endpoint: Endpoint,
    identity: Identity,
    body: Mapping[str, Any] | None,
    *,
    streamed: bool,
) -> Call:
    """What accounting needs to know of a call with this body, made right here."""
    facts: RequestFacts | None = None
    for _ in range(2):  # what fails once may pass, as want of memory does
        try:
            facts = binding.sdk.dialect().request_facts(endpoint, body)
            break
        except Exception as error:  # noqa: BLE001 - the call itself goes on, recorded, where no cap is about it
            complain("read a request", error)
    if facts is None:
        facts = RequestFacts(model=None if body is None else named(body.get("model")), unbounded=UNREADABLE)
    if type(body) is UnreadBody:
        facts = replace(facts, unbounded=UNREADABLE)
    if facts.streamed != streamed or identity.region is not None or identity.cost_unit is not None:
        facts = replace(facts, streamed=streamed, region=identity.region, cost_unit=identity.cost_unit)
    return call_of(identity, endpoint, facts)


def call_of(identity: Identity, endpoint: Endpoint, facts: RequestFacts) -> Call:
    """A call to `endpoint` by whom `identity` says, that asks for what `facts` say."""
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


def give_leave(meter: Meter, call: Call) -> Authorization:
    """Leave for a call that no budget is asked about."""
    return Authorization(call, meter.store.now(), time.perf_counter_ns())


#: Names of the types by which SDKs mark a field that the caller left out.
_MARKERS = frozenset({"Omit", "NotGiven"})


def is_given(value: Any) -> bool:
    """Whether a field of a request says anything; SDKs have markers for those that the caller left out."""
    return value is not None and type(value).__name__ not in _MARKERS


def given_fields(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A request without the fields that the caller left out: Anthropic's SDK hands on all it knows, marked so."""
    marks = _marks(frozenset(map(type, body.values())))
    return {name: value for name, value in body.items() if type(value) not in marks} if marks else body


@lru_cache(maxsize=256)
def _marks(kinds: frozenset[type]) -> frozenset[type]:
    """Those of the types of a request's values that SDKs mark a field with which was left out."""
    return frozenset(kind for kind in kinds if kind.__name__ in _MARKERS)
