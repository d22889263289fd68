"""Metering clients that somebody else made."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenmeter.meter import Meter


class AnyClient(Protocol):
    """What every client of OpenAI's and Anthropic's SDKs has."""

    @property
    def base_url(self) -> Any:
        """Where it sends to."""
        ...

    @property
    def request(self) -> Callable[..., Any]:
        """What every call goes through."""
        ...


class GoogleClient(Protocol):
    """What the client of Google's SDK has."""

    @property
    def aio(self) -> Any:
        """Its async sister, which is metered with it."""
        ...

    @property
    def models(self) -> Any:
        """What most calls go through."""
        ...


ClientT = TypeVar("ClientT", bound=AnyClient | GoogleClient | ModuleType)

#: The SDKs' packages -> our module that knows each.
_SDKS = {"openai": "openai", "anthropic": "anthropic", "google.genai": "google"}


@tell_wrong_arguments
def wrap(client: ClientT, meter: Meter | None = None, *, attribution: Attribution = NOBODY) -> ClientT:
    """Meter a client in place: its type, its settings and the resources taken from it before all stay.

    Works for every client class of the OpenAI, Anthropic and Google SDKs, sync and async, subclasses included, for our
    own classes (where it sets the meter and the attribution), and for the ``openai`` module itself, whose
    ``openai.chat.completions.create(...)`` is metered then. Wrapping twice meters once; the later settings hold.
    Copies (``with_options``) keep what the original had.

    Args:
        client: The client, or the ``openai`` module.
        meter: Where to record; default: the default meter (`tokenmeter.configure`), looked up at each call.
        attribution: On whose account its calls go where no `tokenmeter.attribute` block says otherwise.

    Returns:
        The same object.

    Raises:
        ConfigurationError: not a client of these SDKs.

    Examples:
        >>> client = wrap(openai.OpenAI(), attribution=Attribution(team="search"))  # doctest: +SKIP
    """
    if isinstance(client, ModuleType):
        if client.__name__ != "openai":
            raise ConfigurationError(f"wrap() takes the openai module or a client, not the module {client.__name__!r}.")
        import_module("tokenmeter.openai").bind_module(client, meter, attribution)
        return client
    import_module(f"tokenmeter.{_find_sdk(client)}").bind_client(client, meter, attribution)
    return client


def _find_sdk(client: object) -> str:
    if callable(getattr(client, "request", None)) or hasattr(client, "_api_client"):
        for kind in type(client).__mro__:
            for package, module in _SDKS.items():
                if f"{kind.__module__}.".startswith(f"{package}."):
                    return module
    raise ConfigurationError(
        "wrap() takes a client of the OpenAI, Anthropic or Google SDK (such as openai.OpenAI()), "
        f"not {type(client).__name__}."
    )
