"""The OpenAI SDK's clients, metered: import them from here in place of ``openai``.

Every name of the ``openai`` package can be imported from here. The client classes are subclasses of the SDK's, under
the same names; everything else is the SDK's own.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokenmeter.capture import Binding, Sdk, bind, metered_class
from tokenmeter.capture.sockets import watch_resource, watch_resources
from tokenmeter.errors import ConfigurationError
from tokenmeter.providers.hosts import provider_of_url, region_of_url

try:
    import openai as _sdk
except ImportError as missing:
    raise ConfigurationError(
        "tokenmeter.openai needs the OpenAI SDK. Install it: pip install 'tokenmeter-sdk[openai]'"
    ) from missing

if TYPE_CHECKING:
    # To a type checker the metered classes are the SDK's.
    from openai import (
        AsyncAzureOpenAI,
        AsyncBedrockOpenAI,
        AsyncClient,
        AsyncOpenAI,
        AzureOpenAI,
        BedrockOpenAI,
        Client,
        OpenAI,
    )

    from tokenmeter.meter import Meter
    from tokenmeter.providers.base import Dialect

__all__ = [
    "AsyncAzureOpenAI",
    "AsyncBedrockOpenAI",
    "AsyncClient",
    "AsyncOpenAI",
    "AzureOpenAI",
    "BedrockOpenAI",
    "Client",
    "OpenAI",
]

#: The SDK's client classes, each after those it derives from. Which of them exist depends on the SDK's version.
_CLIENT_CLASSES = (
    "OpenAI",
    "AsyncOpenAI",
    "AzureOpenAI",
    "AsyncAzureOpenAI",
    "BedrockOpenAI",
    "AsyncBedrockOpenAI",
)
_ALIASES = {"Client": "OpenAI", "AsyncClient": "AsyncOpenAI"}
#: Classes behind ``openai.chat...``, which the SDK makes at the first such call.
_MODULE_CLIENT_CLASSES = ("_ModuleClient", "_AzureModuleClient", "_BedrockModuleClient")
_PROVIDERS = {"Azure": "azure", "Bedrock": "aws"}
#: By the name of what ``OpenAI(provider=...)`` was configured with.
_RUNTIMES = {"bedrock": "aws", "vertex": "google"}


# -- what capture must know of this SDK


def _provider(client: Any) -> str:
    known = provider_of_url(str(client.base_url))
    if known is not None:
        return known
    runtime = getattr(getattr(client, "_provider_runtime", None), "name", None)
    if runtime in _RUNTIMES:
        return _RUNTIMES[runtime]
    names = {kind.__name__.removeprefix("Async") for kind in type(client).__mro__}
    return next((provider for word, provider in _PROVIDERS.items() if f"{word}OpenAI" in names), "openai")


def _region(client: Any) -> str | None:
    found = region_of_url(str(client.base_url))
    for owner in (client, getattr(client, "_provider_runtime", None)):
        for name in ("aws_region", "region"):
            found = found or getattr(owner, name, None)
    return found if isinstance(found, str) else None


def _api_key(client: Any) -> str | None:
    key = client.api_key
    if not isinstance(key, str) or key in _PLACEHOLDERS:
        key = getattr(client, "_azure_ad_token", None) or getattr(client, "admin_api_key", None)
    return key if isinstance(key, str) else None


def _asks_for_key(client: Any) -> bool:
    return any(getattr(client, provider, None) is not None for provider in _KEY_PROVIDERS)


#: Client attributes that hold the function which the SDK asks for a key or token.
_KEY_PROVIDERS = ("_api_key_provider", "_azure_ad_token_provider", "_bedrock_token_provider")
#: What the SDK puts where a key would be, when it authenticates otherwise.
_PLACEHOLDERS = frozenset({"", "<missing API key>", "workload-identity-auth"})


def _is_usage_chunk(chunk: Any) -> bool:
    """Whether a chunk is the one that ``include_usage`` adds: usage and no choices."""
    return not getattr(chunk, "choices", True) and getattr(chunk, "usage", None) is not None


def _hide_usage(value: Any) -> None:
    """A stream stays of the SDK's own class: only the iterator behind it changes."""
    is_stream, is_async_stream = isinstance(value, _sdk.Stream), isinstance(value, _sdk.AsyncStream)
    if is_stream or is_async_stream:
        state = value.__dict__
        state["_iterator"] = (_without_usage if is_stream else _without_usage_async)(state["_iterator"])


def _without_usage(chunks: Any) -> Iterator[Any]:
    with closing(chunks):
        for chunk in chunks:
            if not _is_usage_chunk(chunk):
                yield chunk


async def _without_usage_async(chunks: Any) -> AsyncIterator[Any]:
    async with aclosing(chunks):
        async for chunk in chunks:
            if not _is_usage_chunk(chunk):
                yield chunk


@functools.cache
def _dialect() -> Dialect:
    from tokenmeter.providers.registry import dialect  # noqa: PLC0415 - a client may be made and never used

    return dialect("openai")


def _default_meter() -> Meter:
    from tokenmeter.default import default_meter  # noqa: PLC0415 - reads settings and prices, which a client may not need

    return default_meter()


_SDK = Sdk(
    name="openai",
    dialect=_dialect,
    provider=_provider,
    region=_region,
    api_key=_api_key,
    asks_for_key=_asks_for_key,
    request_id_headers=("x-request-id", "apim-request-id", "x-amzn-requestid", "request-id"),
    default_meter=_default_meter,
    error=_sdk.OpenAIError,
    status_error=_sdk.APIStatusError,
    timeout_error=_sdk.APITimeoutError,
    stream_classes=frozenset({_sdk.Stream, _sdk.AsyncStream}),
    hide_usage=_hide_usage,
)


# -- the classes


def _made() -> dict[str, type[Any]]:
    made: dict[type[Any], type[Any]] = {}
    for name in _CLIENT_CLASSES:
        plain = getattr(_sdk, name, None)
        if plain is not None:
            parents = tuple(made[base] for base in plain.__bases__ if base in made)
            made[plain] = metered_class(plain, Binding(_SDK), parents=parents, module=__name__)
    named = {kind.__name__: kind for kind in made.values()}
    return named | {alias: named[name] for alias, name in _ALIASES.items()}


if not TYPE_CHECKING:
    globals().update(_made())
    __all__ = [name for name in __all__ if name in globals()]  # older SDKs have fewer


def _watch_new_resources() -> None:
    """WebSocket connections are opened by resources, which the SDK makes when they are first asked for."""
    module: Any = import_module("openai._resource")
    for name in ("SyncAPIResource", "AsyncAPIResource"):
        kind: Any = getattr(module, name)
        kind.__init__ = _watching(kind.__init__)


def _watching(plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def __init__(self: Any, client: Any) -> None:  # noqa: N807 - it becomes that method
        plain(self, client)
        watch_resource(self)

    return __init__


_watch_new_resources()


def __getattr__(name: str) -> Any:
    return getattr(_sdk, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_sdk)})


# -- clients made elsewhere


def bind_client(client: Any, meter: Meter | None, attribution: Any) -> None:
    """Meter a client of the SDK in place."""
    bind(client, Binding(_SDK, meter, attribution))
    watch_resources(client)


def bind_module(module: ModuleType, meter: Meter | None, attribution: Any) -> None:
    """Meter the module-level client behind ``openai.chat...``, now or when the SDK makes it."""
    template = Binding(_SDK, meter, attribution)
    for name in _MODULE_CLIENT_CLASSES:
        plain = getattr(module, name, None)
        if plain is not None:
            setattr(module, name, metered_class(plain, template))  # or the same again, with other settings
    made = getattr(module, "_client", None)
    if made is not None:
        bind(made, template.copy())
