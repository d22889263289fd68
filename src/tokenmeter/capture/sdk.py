"""What capture must be told about one SDK, since it imports none, and what it remembers of one client."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import ref

from tokenmeter.attribution import NOBODY, Attribution
from tokenmeter.dimensions import Status
from tokenmeter.errors import ConfigurationError, StoreUnavailableError
from tokenmeter.interrupts import came_from_outside, let_interrupt_through
from tokenmeter.processes import is_disabled
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter.meter import Meter
    from tokenmeter.providers.base import Dialect, Endpoint

log = logging.getLogger("tokenmeter")

#: What gateways say of an answer out of their own cache, which no provider was asked for. LiteLLM names the key of
#: its cache then, and only then; Cloudflare's, Helicone's and Portkey's say of each answer what it was.
LITELLM_HIT = b"x-litellm-cache-key"
CACHES = frozenset({LITELLM_HIT, b"cf-aig-cache-status", b"helicone-cache", b"x-portkey-cache-status"})
HITS = frozenset({b"HIT", b"SEMANTIC HIT"})
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

    def request_id(self, headers: Mapping[str, str]) -> str | None:
        """The provider's id of a request, from its response's headers."""
        for name in self.request_id_headers:
            if found := headers.get(name):
                return found
        return None

    def status_of(self, error: BaseException) -> Status:
        """How a call ended that raised `error`."""
        if not isinstance(error, self.status_error) and came_from_outside(error):
            return "aborted"
        if isinstance(error, self.timeout_error) or "Timeout" in type(error).__name__:
            return "timeout"
        return "error"


@dataclass(frozen=True, slots=True)
class ClientHost:
    """Who serves a client.

    Attributes:
        url: The client's base URL, as the SDK's own object.
        provider: Provider id.
        region: Cloud region or data zone, where it decides the price.
        cost_unit: What the user's settings say of the costs in its usage.
        meter: The meter whose settings were asked; not kept alive.
    """

    url: Any
    provider: str
    region: str | None
    cost_unit: str | None
    meter: ref[Meter]


@dataclass(slots=True)
class Binding:
    """What one client is metered with. Lives on the client, so nothing of ours keeps a client alive.

    Attributes:
        sdk: The client's SDK.
        own_meter: The meter given to `tokenmeter.wrap`; None = the default meter, looked up at each call.
        attribution: Client-level attribution; `attribute` blocks win over it.
        met: Whether `meet` was called.
        endpoints: What was called by method and URL, None for what makes no bill.
        kinds: What calls have in common, by method, URL, key, and whether that is the client's own.
    """

    sdk: Sdk
    own_meter: Meter | None = None
    attribution: Attribution = NOBODY
    _host: ClientHost | None = field(default=None, repr=False)
    met: bool = field(default=False, repr=False)
    endpoints: dict[tuple[str, str], Endpoint | None] = field(default_factory=dict, repr=False)  # pyright: ignore[reportUnknownVariableType]
    kinds: dict[tuple[str, str, str | None, bool], Any] = field(default_factory=dict, repr=False)  # pyright: ignore[reportUnknownVariableType]

    def __deepcopy__(self, memo: dict[int, Any]) -> Binding:
        """That of a copied client: the same meter and attribution; what was looked up is looked up anew."""
        return Binding(self.sdk, self.own_meter, self.attribution)

    async def meet(self) -> None:
        """Have the default meter made in a thread: its settings and its store are read from disk.

        Raises:
            ConfigurationError: as from `meter`.
        """
        if self.own_meter is None:
            from tokenmeter.capture.settlement import in_thread  # noqa: PLC0415 - a client may be made and never used

            # Whether this very call may be stopped is not known yet: it may make no bill.
            with contextlib.suppress(UnopenedStoreError):
                await in_thread(self.meter)
        self.met = True

    def meter(self) -> Meter | None:
        """The meter for the next call; None when the default one cannot be had (logged).

        Raises:
            ConfigurationError: the user's settings are wrong; a budget in them might have stopped this call.
            UnopenedStoreError: its store cannot be opened, and a budget in the settings might have stopped this call.
        """
        if self.own_meter is not None:
            return self.own_meter
        try:
            return self.sdk.default_meter()
        except (ConfigurationError, UnopenedStoreError):
            raise
        except Exception as error:  # noqa: BLE001 - the call itself goes on
            complain("find its meter, and records nothing", error)
            return None

    def host(self, client: Any, meter: Meter) -> ClientHost:
        """Who serves `client`, worked out once per base URL; the user's own hosts come first."""
        url, known = client.base_url, self._host
        if known is None or known.meter() is not meter or (url is not known.url and str(url) != str(known.url)):
            provider = meter.provider_at(url) or self.sdk.provider(client)
            unit = meter.pricer.terms.cost_unit(provider, str(url))
            known = ClientHost(url, provider, self.sdk.region(client), unit, ref(meter))
            self._host = known
        return known

    def copy(self) -> Binding:
        """For a copy of the client."""
        return Binding(self.sdk, self.own_meter, self.attribution, met=self.met)


class UnopenedStoreError(StoreUnavailableError):
    """The store could not be opened when it was first needed, and something in the settings may stop this call."""


class UnreadBody(dict[str, Any]):
    """Stands for a body that is no JSON object, or is sent as it is: nothing is known of it, so it has no bound."""

    __slots__ = ()


def complain(what: str, error: Exception) -> None:
    """Log a fault that happened before there was a meter to count it: the 1st, 10th, 100th, ... of each kind.

    Raises:
        BaseException: as `Meter.fault`.
    """
    let_interrupt_through(error)
    kind = f"{what}: {type(error).__name__}"
    _complained[kind] += 1
    often = _complained[kind]
    if often == 1:
        log.error("tokenmeter could not %s; the call itself goes on", what, exc_info=error)
    elif str(often).rstrip("0") == "1":
        log.error("tokenmeter could not %s, %d times by now; the calls themselves go on: %s", what, often, error)


_complained: Counter[str] = Counter()


def binding_of(client: Any) -> Binding | None:
    """What a client is to be metered with now; None for a client of the plain SDK, and while tokenmeter is off."""
    if is_disabled():
        return None
    found: Binding | None = client.__dict__.get(BINDING)
    return bound_to(client) if found is None else found


def bound_to(client: Any) -> Binding | None:
    """The binding of a metered client, made at its first use; None for a client of the plain SDK."""
    found: Binding | None = client.__dict__.get(BINDING)
    if found is None:
        template: Binding | None = getattr(client, TEMPLATE, None)
        if template is not None:
            found = client.__dict__[BINDING] = template.copy()
    return found


def twice(meter: Meter | None, act: Callable[[], object], what: str = "record a call") -> None:
    """Run `act`, and once more when something of ours fails amid it: that may pass, as want of memory does.

    Never raises. For what can be begun anew, however far it got.

    Args:
        meter: Is told of faults; None where it is not known, and they are only logged.
        act: What is done.
        what: The same in words.
    """
    for _ in range(2):
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the caller gets his answer
            (complain if meter is None else meter.fault)(what, error)
        else:
            return


@cache
def load_dialect(room: str) -> Dialect:
    """The wire format of a provider's room, loaded when it is first needed."""
    from tokenmeter.providers.registry import dialect, shapes  # noqa: PLC0415 - a client may be made and never used

    # A finaliser reads what an abandoned stream left, amid whatever runs just then, an import among it: what it may
    # need is loaded before a call can leave.
    shapes()
    return dialect(room)
