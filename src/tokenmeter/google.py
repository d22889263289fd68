"""Google's Gen AI SDK, metered: ``from tokenmeter.google import genai`` in place of ``from google import genai``.

`genai` has every name of ``google.genai``; its `Client` is a subclass of the SDK's, under the same name. `Client`, and
every other name of the SDK, can be imported from here as well.
"""
# ruff: noqa: PLC0414 - an alias of the same name is how a type checker is told that it is handed on

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tokenmeter.capture.genai import bind, watch_resources, watch_streams
from tokenmeter.capture.sdk import Binding, Sdk, load_dialect
from tokenmeter.errors import ConfigurationError

try:
    from google import genai as _sdk
    from google.genai import chats as _chats
    from google.genai import client as _client
    from google.genai import errors as _errors
    from google.genai import models as _models
except ImportError as missing:
    if missing.name not in {"google", "google.genai"}:  # it is there, and something that it needs is not
        raise
    raise ConfigurationError(
        "tokenmeter.google needs Google's Gen AI SDK. Install it: pip install 'tokenmeter-sdk[google]'"
    ) from missing

if TYPE_CHECKING:
    # To a type checker every name here is the SDK's own.
    from google import genai as genai
    from google.genai import Client as Client
    from google.genai import chats as chats
    from google.genai import errors as errors
    from google.genai import live as live
    from google.genai import models as models
    from google.genai import types as types

    from tokenmeter.meter import Meter


# -- what capture must know of this SDK. Its "client" is the API client that all resources of a `Client` hold.


def _find_provider(api: Any) -> str:
    del api  # both of its APIs are Google's
    return "google"


def _find_region(api: Any) -> str | None:
    """Vertex AI's location; None for the Gemini API."""
    return (getattr(api, "location", None) or "global") if getattr(api, "vertexai", None) else None


def _find_key(api: Any) -> str | None:
    key = getattr(api, "api_key", None)
    # A token for the Live API lives for minutes.
    return key if isinstance(key, str) and key and not key.startswith("auth_tokens/") else None


def _asks_for_key(api: Any) -> bool:
    del api
    return False


def _default_meter() -> Meter:
    from tokenmeter.default import meter_for_calls  # noqa: PLC0415 - reads settings and prices, which a client may not need

    return meter_for_calls()


class _NeverRaised(Exception):  # noqa: N818 - the SDK has no error of its own for a timeout: it shows its transport's
    pass


_SDK = Sdk(
    name="google",
    dialect=functools.partial(load_dialect, "google"),
    provider=_find_provider,
    region=_find_region,
    api_key=_find_key,
    asks_for_key=_asks_for_key,
    request_id_headers=(),
    default_meter=_default_meter,
    error=_errors.APIError,
    status_error=_errors.APIError,
    timeout_error=_NeverRaised,
)


def _generated_sdk() -> Sdk | None:
    """What capture must know of the client behind interactions, where Stainless generated it: 1.55 to 2.8."""
    if not hasattr(_client, "GeminiNextGenAPIClient"):
        return None
    generated: Any = importlib.import_module("google.genai._interactions")
    return replace(
        _SDK,
        region=_generated_region,
        error=generated.APIError,
        status_error=generated.APIStatusError,
        timeout_error=generated.APITimeoutError,
    )


def _generated_region(client: Any) -> str | None:
    return (getattr(client, "_vertex_location", None) or "global") if getattr(client, "_is_vertex", None) else None


# -- the client


if not TYPE_CHECKING:

    class Client(_sdk.Client):  # noqa: D101 - the SDK's own docstring
        __doc__ = _sdk.Client.__doc__

        @functools.wraps(_sdk.Client.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            bind(self, Binding(_SDK))

    class _Genai(ModuleType):
        """``google.genai`` with the metered client."""

        def __getattr__(self, name: str) -> Any:
            return getattr(_sdk, name)

        def __dir__(self) -> list[str]:
            return sorted({*self.__dict__, *dir(_sdk)})

    genai = _Genai("google.genai", _sdk.__doc__)
    genai.__dict__.update(Client=Client, __all__=list(_sdk.__all__), __version__=_sdk.__version__)
    __all__ = ["Client", "genai"]

    def __getattr__(name: str) -> Any:
        return getattr(_sdk, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *dir(_sdk)})


watch_resources(_client.Client, _client.AsyncClient, generated=_generated_sdk())
watch_streams(
    *((kind, "generate_content_stream") for kind in (_models.Models, _models.AsyncModels)),
    *((kind, "send_message_stream") for kind in (_chats.Chat, _chats.AsyncChat)),
)


# -- clients made elsewhere


def bind_client(client: Any, meter: Meter | None, attribution: Any) -> None:
    """Meter a client of the SDK in place."""
    bind(client, Binding(_SDK, meter, attribution))
