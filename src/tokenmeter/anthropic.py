"""The Anthropic SDK's clients, metered: ``from tokenmeter.anthropic import Anthropic``.

Every name of the ``anthropic`` package can be imported from here. The client classes are subclasses of the SDK's, under
the same names; everything else is the SDK's own.
"""
# ruff: noqa: PLC0414 - an alias of the same name is how a type checker is told that it is handed on

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.sdk import Binding, Sdk, load_dialect
from tokenmeter.capture.stainless import bind, metered_classes
from tokenmeter.errors import ConfigurationError

try:
    import anthropic as _sdk
except ImportError as missing:
    if missing.name != "anthropic":  # it is there, and something that it needs is not
        raise
    raise ConfigurationError(
        "tokenmeter.anthropic needs the Anthropic SDK. Install it: pip install 'tokenmeter-sdk[anthropic]'"
    ) from missing

if TYPE_CHECKING:
    # To a type checker every name here is the SDK's own, and there is no other.
    from anthropic import *  # noqa: F403 # pyright: ignore[reportWildcardImportFromLibrary] - to hand on every name is the point
    from anthropic import AnthropicAWS as AnthropicAWS
    from anthropic import AnthropicFoundry as AnthropicFoundry
    from anthropic import AnthropicGoogleCloud as AnthropicGoogleCloud
    from anthropic import APIResponse as APIResponse
    from anthropic import AsyncAnthropicAWS as AsyncAnthropicAWS
    from anthropic import AsyncAnthropicFoundry as AsyncAnthropicFoundry
    from anthropic import AsyncAnthropicGoogleCloud as AsyncAnthropicGoogleCloud
    from anthropic import AsyncAPIResponse as AsyncAPIResponse
    from anthropic import resources as resources
    from anthropic.lib.bedrock import AnthropicBedrock as AnthropicBedrock
    from anthropic.lib.bedrock import AnthropicBedrockMantle as AnthropicBedrockMantle
    from anthropic.lib.bedrock import AsyncAnthropicBedrock as AsyncAnthropicBedrock
    from anthropic.lib.bedrock import AsyncAnthropicBedrockMantle as AsyncAnthropicBedrockMantle
    from anthropic.lib.streaming import AsyncMessageStream as AsyncMessageStream
    from anthropic.lib.streaming import AsyncMessageStreamManager as AsyncMessageStreamManager
    from anthropic.lib.streaming import MessageStream as MessageStream
    from anthropic.lib.streaming import MessageStreamEvent as MessageStreamEvent
    from anthropic.lib.streaming import MessageStreamManager as MessageStreamManager
    from anthropic.lib.vertex import AnthropicVertex as AnthropicVertex
    from anthropic.lib.vertex import AsyncAnthropicVertex as AsyncAnthropicVertex

    from tokenmeter.meter import Meter

#: The SDK's client classes, each after those it derives from. Which of them exist depends on the SDK's version.
_CLIENT_CLASSES = (
    "Anthropic",
    "AsyncAnthropic",
    "AnthropicBedrock",
    "AsyncAnthropicBedrock",
    "AnthropicBedrockMantle",
    "AsyncAnthropicBedrockMantle",
    "AnthropicVertex",
    "AsyncAnthropicVertex",
    "AnthropicFoundry",
    "AsyncAnthropicFoundry",
    "AnthropicAWS",
    "AsyncAnthropicAWS",
    "AnthropicGoogleCloud",
    "AsyncAnthropicGoogleCloud",
)
_ALIASES = {"Client": "Anthropic", "AsyncClient": "AsyncAnthropic"}
#: By class. AnthropicAWS and AnthropicGoogleCloud reach Anthropic's own API, with its model names and prices.
_PROVIDERS = {
    "AnthropicBedrock": "aws",
    "AnthropicBedrockMantle": "aws",
    "AnthropicVertex": "google",
    "AnthropicFoundry": "azure",
    "AnthropicAWS": "anthropic",
    "AnthropicGoogleCloud": "anthropic",
}


# -- what capture must know of this SDK


def _find_provider(client: Any) -> str:
    from tokenmeter.providers.hosts import provider_of_url  # noqa: PLC0415 - a client may be made and never used

    for kind in type(client).__mro__:
        if provider := _PROVIDERS.get(kind.__name__.removeprefix("Async")):
            return provider
    return provider_of_url(str(client.base_url)) or "anthropic"


def _find_region(client: Any) -> str | None:
    from tokenmeter.providers.hosts import region_of_url  # noqa: PLC0415 - as above

    if _find_provider(client) == "anthropic":  # its price goes by the geography that the answer names
        return None
    for name in ("aws_region", "region"):
        region = getattr(client, name, None)
        if isinstance(region, str):
            return region
    return region_of_url(str(client.base_url))


def _find_key(client: Any) -> str | None:
    for name in ("api_key", "auth_token"):
        key = getattr(client, name, None)
        if isinstance(key, str) and key:
            return key
    return None


def _asks_for_key(client: Any) -> bool:
    return getattr(client, "_azure_ad_token_provider", None) is not None


def _default_meter() -> Meter:
    from tokenmeter.default import meter_for_calls  # noqa: PLC0415 - reads settings and prices, which a client may not need

    return meter_for_calls()


_SDK = Sdk(
    name="anthropic",
    dialect=functools.partial(load_dialect, "anthropic"),
    provider=_find_provider,
    region=_find_region,
    api_key=_find_key,
    asks_for_key=_asks_for_key,
    request_id_headers=("request-id", "x-amzn-requestid", "x-request-id"),
    default_meter=_default_meter,
    error=_sdk.AnthropicError,
    status_error=_sdk.APIStatusError,
    timeout_error=_sdk.APITimeoutError,
)


# -- the classes


def _teach_exact_type_check(metered: dict[str, type[Any]]) -> None:
    """The SDK gives its default credential chain to clients of exactly its two base classes: count ours as such."""
    module: Any = import_module("anthropic._client")
    plain_check = getattr(module, "_is_base_client", None)
    if plain_check is None:  # an SDK without credential chain
        return
    base_classes = (metered["Anthropic"], metered["AsyncAnthropic"])

    def _is_base_client(client: object) -> bool:
        return type(client) in base_classes or plain_check(client)

    module._is_base_client = _is_base_client  # noqa: SLF001 - the SDK has no public way


if not TYPE_CHECKING:
    globals().update(metered_classes(_sdk, _SDK, _CLIENT_CLASSES, aliases=_ALIASES, module=__name__))
    __all__ = _sdk.__all__ + [name for name in _CLIENT_CLASSES if name in globals() and name not in _sdk.__all__]
    _teach_exact_type_check(globals())

    def __getattr__(name: str) -> Any:
        return getattr(_sdk, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *dir(_sdk)})


# -- clients made elsewhere


def bind_client(client: Any, meter: Meter | None, attribution: Any) -> None:
    """Meter a client of the SDK in place."""
    bind(client, Binding(_SDK, meter, attribution))
