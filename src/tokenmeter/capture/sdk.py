"""What capture must be told about one SDK, since it imports none, and what it remembers of one client."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio
import anyio.to_thread

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.errors import ConfigurationError

if TYPE_CHECKING:
    from tokenmeter.meter import Meter
    from tokenmeter.providers.base import Dialect

__all__ = ["BINDING", "TEMPLATE", "Binding", "Host", "Sdk", "binding_of", "complain"]

log = logging.getLogger("tokenmeter")

#: Name of the client attribute that holds its `Binding`.
BINDING = "_tokenmeter"
#: Name of the class attribute of metered classes: the `Binding` their clients start with.
TEMPLATE = "_tokenmeter_template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sdk:
    """One provider's SDK, seen from capture.

    Attributes:
        name: Provider id when neither the client's class nor its URL says another (``openai``, ``anthropic``).
        dialect: Gives the reader of the SDK's wire format, always the same one.
        provider: Provider id of a client, from its class and base URL.
        region: Cloud region or data zone of a client, where it decides the price; else None.
        api_key: Text of the key a client uses right now; None when it has none, or a short-lived token.
        asks_for_key: Whether a client asks a function of its user's for the key of each request.
        request_id_headers: Response headers that may hold the provider's id of the request.
        default_meter: The meter for clients that were not given one.
        error: Root of the SDK's errors.
        status_error: Raised for an answer with an error status; has ``response`` and ``status_code``.
        timeout_error: Raised when nobody answered in time.
        stream_classes: Classes of streams that a usage chunk can be hidden from.
        hide_usage: Makes a stream of theirs leave out the usage chunk that only we asked for; anything else stays.
    """

    name: str
    dialect: Callable[[], Dialect]
    provider: Callable[[Any], str]
    region: Callable[[Any], str | None]
    api_key: Callable[[Any], str | None]
    asks_for_key: Callable[[Any], bool]
    request_id_headers: tuple[str, ...]
    default_meter: Callable[[], Meter]
    error: type[Exception]
    status_error: type[Exception]
    timeout_error: type[Exception]
    stream_classes: frozenset[type[Any]]
    hide_usage: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Host:
    """Who serves a client.

    Attributes:
        url: The client's base URL, as the SDK's own object.
        provider: Provider id.
        region: Cloud region or data zone, where it decides the price.
        meter: The meter whose settings were asked; not kept alive.
    """

    url: Any
    provider: str
    region: str | None
    meter: ref[Meter]


@dataclass(slots=True)
class Binding:
    """What one client is metered with. Lives on the client, so nothing of ours keeps a client alive.

    Attributes:
        sdk: The client's SDK.
        own_meter: The meter given to `tokenmeter.wrap`; None = the default meter, looked up at each call.
        attribution: Client-level attribution; `attribute` blocks win over it.
    """

    sdk: Sdk
    own_meter: Meter | None = None
    attribution: Attribution = NOBODY
    _host: Host | None = field(default=None, repr=False)
    _met: bool = field(default=False, repr=False)

    async def meet(self) -> None:
        """Have the default meter made in a thread: its settings and its store are read from disk.

        Raises:
            ConfigurationError: as from `meter`.
        """
        if self.own_meter is None and not self._met:
            await anyio.to_thread.run_sync(self.meter, limiter=anyio.CapacityLimiter(1))
            self._met = True

    def meter(self) -> Meter | None:
        """The meter for the next call; None when the default one cannot be had (logged).

        Raises:
            ConfigurationError: the user's settings are wrong; a budget in them might have stopped this call.
        """
        if self.own_meter is not None:
            return self.own_meter
        try:
            return self.sdk.default_meter()
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("find its meter, and records nothing", error)
            return None

    def host(self, client: Any, meter: Meter) -> Host:
        """Who serves `client`, worked out once per base URL; the user's own hosts come first."""
        url, known = client.base_url, self._host
        if known is None or known.meter() is not meter or (url is not known.url and str(url) != str(known.url)):
            provider = meter.provider_at(url) or self.sdk.provider(client)
            known = Host(url, provider, self.sdk.region(client), ref(meter))
            self._host = known
        return known

    def copy(self) -> Binding:
        """For a copy of the client."""
        return Binding(self.sdk, self.own_meter, self.attribution, _met=self._met)


def complain(what: str, error: Exception) -> None:
    """Log a fault that happened before there was a meter to count it; each kind once."""
    kind = f"{what}: {type(error).__name__}"
    if kind not in _complained:
        _complained.add(kind)
        log.error("tokenmeter could not %s; the call itself goes on", what, exc_info=error)


_complained: set[str] = set()


def binding_of(client: Any) -> Binding | None:
    """The binding of a metered client, made at its first use; None for a client of the plain SDK."""
    found: Binding | None = client.__dict__.get(BINDING)
    if found is None:
        template: Binding | None = getattr(client, TEMPLATE, None)
        if template is not None:
            found = client.__dict__[BINDING] = template.copy()
    return found
