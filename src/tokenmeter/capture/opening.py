"""The call that a client is about to make: whether it is metered, what it shares with the ones before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import ref

from tokenmeter.attribution import Attribution, Scope
from tokenmeter.call import ActiveSpan
from tokenmeter.capture.calls import InFlight
from tokenmeter.capture.description import Kind, is_given, whose
from tokenmeter.capture.sdk import Binding, UnopenedStoreError, complain
from tokenmeter.errors import ConfigurationError
from tokenmeter.meter import Meter
from tokenmeter.providers.hosts import ROUTERS, routed_provider

if TYPE_CHECKING:
    from tokenmeter.providers.base import Endpoint


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
    place = (method, url)
    endpoint = binding.endpoints[place] if place in binding.endpoints else _endpoint(client, binding, method, url)
    if endpoint is None:
        return None
    meter = binding.own_meter
    if meter is None and (meter := binding.meter()) is None:
        return None
    for by_plan in (True, False):
        try:
            text = key or binding.sdk.api_key(client)
            kind: Kind | None = binding.kinds.get((*place, text, key is None))
            if kind is None or kind.base_url is not client.base_url or kind.meter() is not meter:
                kind = _kind(client, binding, meter, endpoint, (*place, text, key is None))
            if kind.provider in ROUTERS and body is not None and isinstance(body.get("model"), str):
                kind = kind._replace(provider=routed_provider(kind.provider, body["model"]))
            who = whose(binding, meter, body)
            plan_key = _plan_key(meter, kind, who, body, streamed=streamed) if by_plan else None
            return InFlight(binding, meter, kind, who, body, streamed=streamed, plan_key=plan_key)
        except Exception as error:  # noqa: BLE001 - the call itself goes on; what failed once may pass
            meter.fault("see a call", error)
    return None


def _kind(
    client: Any, binding: Binding, meter: Meter, endpoint: Endpoint, place: tuple[str, str, str | None, bool]
) -> Kind:
    _, _, text, its_own = place
    host, api_key, dialect = binding.host(client, meter), meter.identify(text), binding.sdk.dialect()
    on_demand = its_own and binding.sdk.asks_for_key(client)
    alike: tuple[str | None, ...] | None = None
    if endpoint.kind == "billed" and not on_demand:
        alike = (host.provider, endpoint.path, host.region, None if api_key is None else api_key.fingerprint)
    kind = Kind(
        ref(meter),
        client.base_url,
        endpoint,
        on_demand,
        host.provider,
        host.region,
        host.cost_unit,
        api_key,
        alike,
        dialect.singular_fields,
        dialect.plain_requests.get(endpoint.path),
        dialect.plain.get(endpoint.path),
    )
    if alike is not None and text in meter.keys.known:  # else the ledger's secret could not be read
        if len(binding.kinds) >= _MOST_KINDS:
            binding.kinds.clear()
        binding.kinds[place] = kind
    return kind


#: What a client called that is remembered at most: ids may be part of a URL, and keys may be short-lived.
_MOST_KINDS = 256


def _endpoint(client: Any, binding: Binding, method: str, url: str) -> Endpoint | None:
    """What is called; None for what makes no bill."""
    try:
        dialect = binding.sdk.dialect()
        endpoint = dialect.endpoint(method.upper(), url)
        if (elsewhere := dialect.endpoints_at(method.upper(), url)) and (meter := binding.meter()) is not None:
            endpoint = elsewhere.get(binding.host(client, meter).provider, endpoint)
    except (ConfigurationError, UnopenedStoreError):
        raise
    except Exception as error:  # noqa: BLE001 - the call itself goes on
        complain("see what is called", error)
        return None
    made = endpoint.kind in {"polled", "starts"} or (method.upper() == "POST" and endpoint.billed)
    if len(binding.endpoints) >= _MOST_KINDS:
        binding.endpoints.clear()
    binding.endpoints[method, url] = endpoint if made else None
    return endpoint if made else None


def _plan_key(
    meter: Meter,
    kind: Kind,
    who: tuple[Attribution, tuple[Scope, ...], ActiveSpan | None],
    body: Mapping[str, Any] | None,
    *,
    streamed: bool,
) -> tuple[Any, ...] | None:
    """What tells calls apart; None for one that no plan is made for."""
    if body is None or kind.alike is None:
        return None
    if not kind.singular.isdisjoint(body) and any(is_given(body.get(name)) for name in kind.singular):
        return None
    model, tier = body.get("model"), body.get("service_tier")
    if type(model) is not str:
        return None
    for scope in who[1]:
        if scope.limits_calls:
            return None
    if tier is not None and type(tier) is not str:
        if is_given(tier):
            return None
        tier = None
    return meter.plans.key(who[0], (kind.alike, model, tier, streamed))
