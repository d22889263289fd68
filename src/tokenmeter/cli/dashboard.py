"""``dashboard``: the web pages over the ledger."""

from __future__ import annotations

import os
import secrets
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.cli.console import out
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.errors import ConfigurationError

__all__ = ["dashboard"]

_VARIABLE = "TOKENMETER_DASHBOARD_TOKEN"


@command(app, "dashboard", examples=["tokenmeter dashboard --tz Europe/Berlin --open"], options=("store", "config"))
def dashboard(
    frame: Frame,
    *,
    host: Annotated[str, typer.Option(help="Address to bind; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 = any free one.", min=0, max=65535)] = 8484,
    token_file: Annotated[
        Path | None,
        typer.Option(help=f"File that holds the token viewers log in with; or set {_VARIABLE}.", show_default=False),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Host name it answers to, besides localhost and IP addresses; repeat it.", show_default=False
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    tz: Annotated[
        str | None,
        typer.Option(
            "--tz", envvar="TOKENMETER_TZ", help="IANA time zone that pages start with.", show_default="the browser's"
        ),
    ] = None,
) -> None:
    """Serve the dashboard on this machine until Ctrl+C: spend, entries, budgets, invoices, exports. It never writes."""
    from tokenmeter.dashboard import serve  # noqa: PLC0415 - an extra of its own
    from tokenmeter.dashboard.security import is_loopback  # noqa: PLC0415 - as above

    token = _token(token_file)
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(24)
        out.print(
            f"Others can reach {host}, so viewers need this token, new with every start:\n  {token}", markup=False
        )

    def ready(address: str) -> None:
        out.print(f"Dashboard at {address} (Ctrl+C ends it)", markup=False)
        if open_browser:
            webbrowser.open(address)

    with frame.meter() as meter:
        serve(meter, host=host, port=port, tz=tz, token=token, allow_hosts=allow_host or (), ready=ready)


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"The token file {str(file)!r} cannot be read: {error.strerror}.") from error
