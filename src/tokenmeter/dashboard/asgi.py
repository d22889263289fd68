"""The ASGI application: routes, the token's door, errors in words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tokenmeter.dashboard.books import Books
from tokenmeter.dashboard.budgets import BudgetPages
from tokenmeter.dashboard.live import Pulse, entries_of, pulse_of
from tokenmeter.dashboard.pages import Pages
from tokenmeter.dashboard.rendering import base_of, page, prepare
from tokenmeter.dashboard.security import Door, HostCheck, SafeHeaders
from tokenmeter.default import default_meter
from tokenmeter.errors import ConfigurationError, StoreError, TokenmeterError
from tokenmeter.meter import Meter
from tokenmeter.periods import zone

__all__ = ["app"]

_STATIC = Path(__file__).parent / "static"
#: Seconds a wrong token waits for its answer.
_WRONG_TOKEN_PAUSE = 1.0
_LONGEST_FORM = 4096


def app(
    meter: Meter | None = None, *, tz: str | None = None, token: str | None = None, hosts: Sequence[str] | None = None
) -> Starlette:
    """The dashboard as an ASGI application, to be served alone or mounted under a path of your own server.

    Mounted without a token it asks nobody who they are: put it behind your own login.

    Args:
        meter: Whose ledger and budgets to show; the default meter otherwise. Nothing is ever written to it.
        tz: IANA time zone that pages start with; None = the browser's.
        token: What viewers have to know; None = no login of its own.
        hosts: Host names it answers to, besides ``localhost`` and IP addresses; None = any, for a server that checks
            them itself.

    Raises:
        ConfigurationError: an unknown zone, or a token too short to be safe.
    """
    if tz is not None:
        zone(tz)
    chosen = meter or default_meter()
    pages, books = Pages(chosen, tz=tz), Books(chosen, tz=tz)
    pulse = Pulse(lambda: pulse_of(chosen.store))
    door = Door(token) if token is not None else None
    prepare()

    async def events(request: Request) -> Response:
        part = str if "holds" in request.query_params else entries_of
        return StreamingResponse(
            pulse.events(part), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    routes = [
        *pages.routes(),
        *BudgetPages(chosen, tz=tz).routes(),
        *books.routes(),
        Route("/events", events),
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    middleware = [Middleware(SafeHeaders)]
    if hosts is not None:
        middleware.append(Middleware(HostCheck, hosts=tuple(hosts)))
    if door is not None:
        routes.insert(0, Route("/login", _login(door), methods=["GET", "POST"]))
        middleware.append(Middleware(door.guard))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={TokenmeterError: _failed, HTTPException: _refused, OverflowError: _out_of_time},
    )


def _login(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def login(request: Request) -> Response:
        wrong = False
        if request.method == "POST":
            form = parse_qs((await request.body())[:_LONGEST_FORM].decode(errors="replace"))
            if door.knows(form.get("token", [""])[0].strip()):
                return door.welcome(request, base_of(request))
            wrong = True
            await asyncio.sleep(_WRONG_TOKEN_PAUSE)
        return page(request, "login.html", status=401 if wrong else 200, title="Log in", door=True, wrong=wrong)

    return login


def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, ConfigurationError):
        return page(request, "error.html", status=400, title="That cannot be shown", message=str(error))
    status = 503 if isinstance(error, StoreError) else 500
    return page(request, "error.html", status=status, title="The ledger cannot be read", message=str(error))


def _out_of_time(request: Request, _: Exception) -> Response:
    words = "That date lies beyond the calendar; choose one between the years 2 and 9998."
    return page(request, "error.html", status=400, title="That cannot be shown", message=words)


def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = "There is no such page." if status == HTTPStatus.NOT_FOUND else HTTPStatus(status).description
    return page(request, "error.html", status=status, title=HTTPStatus(status).phrase, message=words)
