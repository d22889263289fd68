"""A server of its own for the dashboard, with an end to clients that never finish asking or never listen."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokenmeter.api import Meter
from tokenmeter.dashboard.asgi import app
from tokenmeter.dashboard.security import LONGEST_HEAD, is_loopback
from tokenmeter.default import default_meter
from tokenmeter.errors import ConfigurationError

PORT = 8484
#: Connections at once; a live page holds one. Who comes then takes the place of who has gone longest without asking.
_MOST_CONNECTIONS = 256
#: Seconds until a request's head must have come, and until a client must have taken what waits for it.
_PATIENCE = 15


class Protocol(H11Protocol):
    """uvicorn's HTTP, with an end to clients that come in great numbers, never finish asking or never listen."""

    _slow: asyncio.TimerHandle | None = None
    _deaf: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, but not for ever; hang up on somebody where too many are connected."""
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            self._longest_waiting().hang_up()
        self._slow = self.loop.call_later(_PATIENCE, transport.abort)

    @property
    def gives_up(self) -> float | None:  # not money: seconds
        """When it is hung up on unless a whole request comes, by the loop's clock; None = it is being served."""
        return None if self._slow is None else self._slow.when()

    def _longest_waiting(self) -> Protocol:
        """Whose request has been waited for longest; this one where all others are being served."""
        others = [one for one in self.connections if isinstance(one, Protocol) and one.gives_up is not None]
        return min(others, key=lambda one: one.gives_up or 0, default=self)

    def hang_up(self) -> None:
        """At once, whatever is under way."""
        self._hear_request()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._hear_request()
        self._be_heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The time for a request's head runs from its first byte until it is whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._hear_request()
        elif self._slow is None:
            self._slow = self.loop.call_later(_PATIENCE, self.transport.abort)

    def pause_writing(self) -> None:
        """The client takes nothing: it has some time."""
        super().pause_writing()
        self._wait_to_be_heard()

    def resume_writing(self) -> None:
        """It does."""
        self._be_heard()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Nobody asks any more: hang up, also on who has not taken all of the last answer."""
        super().timeout_keep_alive_handler()
        self._wait_to_be_heard()

    def _hear_request(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _wait_to_be_heard(self) -> None:
        self._be_heard()
        self._deaf = self.loop.call_later(_PATIENCE, self.transport.abort)

    def _be_heard(self) -> None:
        if self._deaf is not None:
            self._deaf.cancel()
            self._deaf = None


def make_server(
    meter: Meter | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    tz: str | None = None,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
) -> uvicorn.Server:
    """A server that is ready to run; arguments as for `serve`."""
    if not host:
        raise ConfigurationError(
            "host names no address to bind: give 127.0.0.1, or 0.0.0.0 for every one of this machine."
        )
    chosen = meter or default_meter()
    known = token is not None or (chosen.settings is not None and chosen.settings.dashboard.tokens)
    if not known and not is_loopback(host):
        raise ConfigurationError(
            f"{host} can be reached by others: make tokens (`tokenmeter dashboard token create NAME`), give one "
            "(--token-file, or TOKENMETER_DASHBOARD_TOKEN), or bind 127.0.0.1 and reach it through an SSH tunnel."
        )
    named = [] if is_loopback(host) else [host]
    return uvicorn.Server(
        uvicorn.Config(
            app(chosen, tz=tz, token=token, hosts=(*named, *allow_hosts)),
            http=Protocol,
            h11_max_incomplete_event_size=LONGEST_HEAD,
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=1,  # live pages never hang up by themselves
        )
    )


def serve(
    meter: Meter | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    tz: str | None = None,
    token: str | None = None,
    allow_hosts: Sequence[str] = (),
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        meter: Whose ledger and budgets; the default meter otherwise.
        host: Address to bind. Any but this machine's own needs a token.
        port: Port to bind; 0 = any free one.
        tz: IANA time zone that pages start with; None = the browser's.
        token: What viewers have to know.
        allow_hosts: Host names it answers to, besides ``localhost`` and IP addresses.
        ready: Called with the address once it can be opened.

    Raises:
        ConfigurationError: an address that others can reach without a token, or one that cannot be bound.
    """
    server = make_server(meter, host=host, port=port, tz=tz, token=token, allow_hosts=allow_hosts)
    with _listen(host, port) as listening:  # who opens the address at once waits, and is not refused
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. uvicorn's own logs that it cannot, ends the process, and does not say what to do."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigurationError(_tell_unbound(host, port, error)) from None


def _tell_unbound(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    looked_up = isinstance(error.__context__, socket.gaierror)  # which `create_server` makes a plain OSError of
    if isinstance(error, OverflowError):
        return f"{port} is no port; those are 0 (any free one) to 65535."
    if number == errno.EADDRINUSE:
        return f"Port {port} of {host} is taken by another program; try another --port, or 0 for any free one."
    if number in {errno.EACCES, errno.EPERM}:
        return f"Port {port} of {host} is not for this user; try a --port above 1023."
    if looked_up or isinstance(error, UnicodeError) or number in {errno.EADDRNOTAVAIL, errno.EINVAL}:
        return (
            f"{host!r} is no address of this machine; --host takes 127.0.0.1 (only this machine comes in), 0.0.0.0 "
            "(every network that it is in), or an address that it has."
        )
    return f"{host}:{port} cannot be listened on: {error}."
