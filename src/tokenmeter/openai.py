"""The OpenAI SDK's clients, metered: import them from here in place of ``openai``.

Every name of the ``openai`` package can be imported from here. The client classes are subclasses of the SDK's, under
the same names; everything else is the SDK's own. ``from tokenmeter import openai`` stands in for ``import openai``:
what is set on it (``openai.api_key = ...``) is set on the SDK's module, and ``openai.chat...`` is metered.
"""
# ruff: noqa: PLC0414 - an alias of the same name is how a type checker is told that it is handed on

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokenmeter.attribution import NOBODY
from tokenmeter.capture.sdk import TEMPLATE, Binding, Sdk, load_dialect
from tokenmeter.capture.stainless import bind, metered_class, metered_classes
from tokenmeter.errors import ConfigurationError

try:
    import openai as _sdk
except ImportError as missing:
    if missing.name != "openai":  # it is there, and something that it needs is not
        raise
    raise ConfigurationError(
        "tokenmeter.openai needs the OpenAI SDK. Install it: pip install 'tokenmeter-sdk[openai]'"
    ) from missing

if TYPE_CHECKING:
    # To a type checker every name here is the SDK's own, and there is no other.
    from openai import *  # noqa: F403 # pyright: ignore[reportWildcardImportFromLibrary] - to hand on every name is the point
    from openai import VERSION as VERSION
    from openai import APIResponse as APIResponse
    from openai import AssistantEventHandler as AssistantEventHandler
    from openai import AsyncAPIResponse as AsyncAPIResponse
    from openai import AsyncAssistantEventHandler as AsyncAssistantEventHandler
    from openai import AsyncAzureOpenAI as AsyncAzureOpenAI
    from openai import AzureOpenAI as AzureOpenAI
    from openai import HttpxBinaryResponseContent as HttpxBinaryResponseContent
    from openai import pydantic_function_tool as pydantic_function_tool
    from openai import resources as resources

    from tokenmeter.meter import Meter

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
#: Where the SDK has what stands for ``openai.chat`` and its siblings.
_PROXIES = "openai._module_client"
#: What the SDK's module-level client is made from.
_MODULE_SETTINGS = frozenset(
    {
        *("api_key", "admin_api_key", "organization", "project", "webhook_secret", "base_url", "timeout"),
        *("max_retries", "default_headers", "default_query", "http_client", "api_type", "api_version"),
        *("azure_endpoint", "azure_ad_token", "azure_ad_token_provider", "bedrock_token_provider"),
    }
)
#: Classes behind ``openai.chat...``, which the SDK makes at the first such call.
_MODULE_CLIENT_CLASSES = ("_ModuleClient", "_AzureModuleClient", "_BedrockModuleClient")
_PROVIDERS = {"Azure": "azure", "Bedrock": "aws"}
#: By the name of what ``OpenAI(provider=...)`` was configured with.
_RUNTIMES = {"bedrock": "aws", "vertex": "google"}


# -- what capture must know of this SDK


def _find_provider(client: Any) -> str:
    from tokenmeter.providers.hosts import provider_of_url  # noqa: PLC0415 - a client may be made and never used

    known = provider_of_url(str(client.base_url))
    if known is not None:
        return known
    runtime = getattr(getattr(client, "_provider_runtime", None), "name", None)
    if runtime in _RUNTIMES:
        return _RUNTIMES[runtime]
    names = {kind.__name__.removeprefix("Async") for kind in type(client).__mro__}
    return next((provider for word, provider in _PROVIDERS.items() if f"{word}OpenAI" in names), "openai")


def _find_region(client: Any) -> str | None:
    from tokenmeter.providers.hosts import region_of_url  # noqa: PLC0415 - as above

    found = region_of_url(str(client.base_url))
    for owner in (client, getattr(client, "_provider_runtime", None)):
        for name in ("aws_region", "region"):
            found = found or getattr(owner, name, None)
    return found if isinstance(found, str) else None


def _find_key(client: Any) -> str | None:
    key = client.api_key
    if not isinstance(key, str) or key in _PLACEHOLDERS:
        key = getattr(client, "_azure_ad_token", None) or getattr(client, "admin_api_key", None)
    return key if isinstance(key, str) else None


def _asks_for_key(client: Any) -> bool:
    for name in _KEY_PROVIDERS:  # noqa: SIM110 - a generator costs every call four frames
        if getattr(client, name, None) is not None:
            return True
    return False


#: Client attributes that hold the function which the SDK asks for a key or token.
_KEY_PROVIDERS = ("_api_key_provider", "_azure_ad_token_provider", "_bedrock_token_provider")
#: What the SDK puts where a key would be, when it authenticates otherwise.
_PLACEHOLDERS = frozenset({"", "<missing API key>", "workload-identity-auth"})


def _default_meter() -> Meter:
    from tokenmeter.default import meter_for_calls  # noqa: PLC0415 - reads settings and prices, which a client may not need

    return meter_for_calls()


_SDK = Sdk(
    name="openai",
    dialect=functools.partial(load_dialect, "openai"),
    provider=_find_provider,
    region=_find_region,
    api_key=_find_key,
    asks_for_key=_asks_for_key,
    request_id_headers=("x-request-id", "apim-request-id", "x-amzn-requestid", "request-id"),
    default_meter=_default_meter,
    error=_sdk.OpenAIError,
    status_error=_sdk.APIStatusError,
    timeout_error=_sdk.APITimeoutError,
)


# -- the classes


if not TYPE_CHECKING:
    globals().update(metered_classes(_sdk, _SDK, _CLIENT_CLASSES, aliases=_ALIASES, module=__name__))
    __all__ = _sdk.__all__ + [name for name in _CLIENT_CLASSES if name in globals() and name not in _sdk.__all__]

    class _StandIn(ModuleType):
        """This module: what the SDK's module-level client is made from is set where that client looks for it."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _MODULE_SETTINGS:
                setattr(_sdk, name, value)
            else:
                super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            if name in _MODULE_SETTINGS:  # a test that takes back what it had put there
                delattr(_sdk, name)
            else:
                super().__delattr__(name)

    sys.modules[__name__].__class__ = _StandIn

    def __getattr__(name: str) -> Any:
        found = getattr(_sdk, name)
        return _metered_proxy(type(found))() if type(found).__module__ == _PROXIES else found

    @functools.cache
    def _metered_proxy(kind: type[Any]) -> type[Any]:
        """What stands for ``openai.chat`` and its siblings here: once it is used, the client behind it is metered."""

        def __load__(self: Any) -> Any:  # noqa: N807 - it becomes that method
            if not any(TEMPLATE in vars(getattr(_sdk, name, object)) for name in _MODULE_CLIENT_CLASSES):
                bind_module(_sdk, None, NOBODY)
            return kind.__load__(self)

        return type(kind.__name__, (kind,), {"__load__": __load__, "__module__": kind.__module__})

    def __dir__() -> list[str]:
        return sorted({*globals(), *dir(_sdk)})


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
        if hasattr(self, "connect"):
            from tokenmeter.capture.sockets import watch_resource  # noqa: PLC0415 - few resources open sockets

            watch_resource(self)

    return __init__


_watch_new_resources()


# -- clients made elsewhere


def bind_client(client: Any, meter: Meter | None, attribution: Any) -> None:
    """Meter a client of the SDK in place."""
    from tokenmeter.capture.sockets import watch_resources  # noqa: PLC0415 - loaded for clients made elsewhere

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
