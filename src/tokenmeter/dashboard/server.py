"""Serving the dashboard from this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import uvicorn

from tokenmeter.dashboard.asgi import app
from tokenmeter.dashboard.security import is_loopback
from tokenmeter.errors import ConfigurationError
from tokenmeter.meter import Meter

__all__ = ["PORT", "make_server", "serve"]

PORT = 8484


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
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"{host} can be reached by others: give a token (--token-file, or TOKENMETER_DASHBOARD_TOKEN), or bind "
            "127.0.0.1 and reach it through an SSH tunnel."
        )
    named = [] if is_loopback(host) else [host]
    return uvicorn.Server(
        uvicorn.Config(
            app(meter, tz=tz, token=token, hosts=(*named, *allow_hosts)),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            ws="none",
            lifespan="off",
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
    try:
        listening = server.config.bind_socket()
    except SystemExit:  # how uvicorn says that it cannot bind
        raise ConfigurationError(
            f"{host}:{port} is taken or not an address of this machine; try another --port."
        ) from None
    with listening:
        listening.listen()  # who opens the address at once waits, and is not refused
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])
