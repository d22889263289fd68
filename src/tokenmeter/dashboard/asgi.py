"""The ASGI application: routes, the token's door, errors in words."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from http import HTTPStatus
from importlib import resources
from pathlib import PurePath
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenmeter.api import Meter
from tokenmeter.dashboard.acts import Acts
from tokenmeter.dashboard.books import DocumentPages
from tokenmeter.dashboard.budgets import BudgetPages
from tokenmeter.dashboard.pages import Pages
from tokenmeter.dashboard.reading import Packer
from tokenmeter.dashboard.rendering import page, prepare
from tokenmeter.dashboard.security import (
    HEADERS,
    Bounded,
    Door,
    HostCheck,
    Paced,
    SafeHeaders,
    WholePath,
    Whom,
    Whose,
    base_of,
    check_own_page,
    frame_policy,
)
from tokenmeter.default import default_meter
from tokenmeter.errors import ConfigurationError, StoreError, TokenmeterError
from tokenmeter.periods import zone
from tokenmeter.serving.access import ACCESS, STILL, Access, Token, Tokens
from tokenmeter.serving.access import AccessScope as LedgerScope
from tokenmeter.serving.acting import add_verbs
from tokenmeter.serving.lens import Lens, ReadableMeter, look_through, pulse_of
from tokenmeter.serving.probes import Probes, Pulse, entries_of, metrics_of
from tokenmeter.serving.problems import BROKEN, tell_error
from tokenmeter.serving.rest import make_api
from tokenmeter.settings import Only
from tokenmeter.stores.packing import only_answer

_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LONGEST_FORM = 4096
#: Scopes whose pages are kept ready, and live pages at once.
_MOST_SCOPES = 128
_MOST_WATCHERS = 100


def app(
    meter: Meter | None = None,
    *,
    tz: str | None = None,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    only: Only | Whom | None = None,
    requests_per_minute: int = 600,
    frame_ancestors: str | Sequence[str] = (),
) -> Starlette:
    """The dashboard and the usage API as an ASGI application, to be served alone or mounted in a server of your own.

    Who may look is asked by the tokens of the settings (``[dashboard.tokens]``) and by `token`, where there are any.
    With `only`, and where there are none, it asks nobody who they are: put it behind your own login.

    Args:
        meter: Whose ledger and budgets to show; the default meter otherwise. Only a token with the right to act writes
            to it.
        tz: IANA time zone that pages start with; None = the browser's.
        token: What viewers have to know, for one that may see everything.
        hosts: Host names it answers to, besides ``localhost`` and IP addresses; None = any, for a server that checks
            them itself.
        only: What is seen, such as ``{"member": "ada"}``: on the pages, in exports, in the API. Or a function of the
            request (Starlette's) that returns that for whoever asks, ``"everything"``, or None for nothing at all; it
            may be a coroutine function. Where it returns something else nothing is seen, and the log says so. The
            tokens of the settings then count for nothing.
        requests_per_minute: How often one viewer may ask; a sixth of that at once.
        frame_ancestors: Whose pages may show these in a frame: origins such as ``https://portal.example.com``, or
            ``self`` for the origin they have themselves; nobody's otherwise. Nothing is done from within a frame.

    Raises:
        ConfigurationError: an unknown zone or dimension, an `only` that names nothing, a token too short to be safe, or
            what is no origin.
    """
    if tz is not None:
        zone(tz)
    if only is not None and not callable(only):
        LedgerScope.of(only)  # said here, not to the first who looks
    if requests_per_minute < 1:
        raise ConfigurationError(f"requests_per_minute= is at least 1, not {requests_per_minute!r}.")
    chosen = meter or default_meter()
    sites, probes, packer = _Sites(chosen, tz), Probes(chosen), Packer(chosen.store)
    tokens = Tokens(
        chosen.settings if only is None else None, None if token is None else Token(Door.check(token), Access())
    )
    door = Door(tokens)
    prepare()
    made = Starlette(
        routes=[
            Route("/healthz", probes.health),
            Route("/readyz", probes.ready),
            _mount_api(_Api(chosen, sites, tokens)),
            *_static_routes(),
            Route("/login", _login(door), methods=["GET", "POST"]),
            Route("/logout", _logout(door), methods=["POST"]),
            *Acts(chosen, sites).routes(),
        ],
        middleware=[
            Middleware(WholePath),
            Middleware(SafeHeaders, frames=frame_policy(frame_ancestors)),
            *([] if hosts is None else [Middleware(HostCheck, hosts=tuple(hosts))]),
            Middleware(door.guard),
            *([] if only is None else [Middleware(Whose, only=only)]),
            Middleware(Paced, per_minute=requests_per_minute),
            Middleware(Bounded),
            Middleware(PackWhenQuiet, packer=packer),
        ],
        lifespan=lambda _: _packing(packer),
        exception_handlers={
            TokenmeterError: _failed,
            HTTPException: _refused,
            OverflowError: _out_of_time,
            Exception: _broken,
        },
    )
    # No mount: what is no route with this method but one with another is refused as that, and not sought among pages.
    made.router.default, made.router.redirect_slashes = sites, False
    return made


@asynccontextmanager
async def _packing(packer: Packer) -> AsyncGenerator[None]:
    """While a server of its own is up; in another's it begins with the first question."""
    packer.begin()
    yield
    await run_in_threadpool(packer.stop)


class PackWhenQuiet:
    """Has sums packed while nobody asks: no question waits for it."""

    def __init__(self, app: ASGIApp, packer: Packer) -> None:
        self._app, self._packer = app, packer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._packer.wait_for()
        self._packer.begin()
        with only_answer():
            await self._app(scope, receive, send)
        self._packer.wait_for()


def _static_routes() -> list[Route]:
    """Styles and scripts, read once: the package may be in an archive, where they are no files."""
    files = (resources.files("tokenmeter.dashboard") / "static").iterdir()
    return [Route(f"/static/{one.name}", _sender(one.read_bytes(), _KINDS[PurePath(one.name).suffix])) for one in files]


def _sender(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {"etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def send(request: Request) -> Response:
        if headers["etag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return send


class _Api:
    """The usage API; with what acts as soon as there is a token that may.

    Args:
        meter: The whole.
        sites: What each may see of it.
        tokens: Who there is.
    """

    def __init__(self, meter: Meter, sites: _Sites, tokens: Tokens) -> None:
        self._meter, self._sites, self._tokens = meter, sites, tokens
        self._reading = make_api(self._look)

    def _look(self, access: Access) -> ReadableMeter:
        return self._sites.of(access).sight

    @cached_property
    def _acting(self) -> FastAPI:
        made = make_api(self._look)
        add_verbs(made, self._meter)
        return made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope.get("method") == "HEAD":  # the server sends the head alone
            scope = {**scope, "method": "GET"}
        acts = any(one.access.can - {"read"} for one in self._tokens.now)
        await (self._acting if acts else self._reading)(scope, receive, send)


def _mount_api(api: _Api) -> Mount:
    """All below /api; names with a line break in them, too, which a mount's own pattern leaves to the pages."""
    mount = Mount("/api", api)
    mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)
    return mount


class _Site:
    """The pages of one scope."""

    def __init__(self, sight: ReadableMeter, tz: str | None, events: Callable[[Request], Awaitable[Response]]) -> None:
        async def metrics(request: Request) -> Response:
            return await run_in_threadpool(metrics_of, sight, request)

        self.sight = sight
        pages, books = Pages(sight, tz=tz), DocumentPages(sight, tz=tz)
        self.router = Router(
            [
                *pages.routes(),
                *BudgetPages(sight, tz=tz).routes(),
                *books.routes(),
                Route("/events", events),
                Route("/metrics", metrics),
            ],
            redirect_slashes=False,
        )


class _Sites:
    """The pages, for each scope that is looked at: what one of them read, none of another is shown.

    Args:
        meter: The whole.
        tz: Zone that pages start with.
    """

    def __init__(self, meter: Meter, tz: str | None) -> None:
        self._meter, self._tz = meter, tz
        self._pulse = Pulse(lambda: pulse_of(meter.store))
        self._lock = threading.Lock()
        self._kept: OrderedDict[LedgerScope, _Site] = OrderedDict()

    def of(self, access: Access) -> _Site:
        """The pages of an access's scope."""
        with self._lock:
            found = self._kept.get(access.scope)
            if found is None:
                found = _Site(look_through(self._meter, access.scope), self._tz, self._events)
                self._kept[access.scope] = found
            self._kept.move_to_end(access.scope)
            while len(self._kept) > _MOST_SCOPES:
                self._kept.popitem(last=False)
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show whoever asks what he may see."""
        access: Access = scope.get(ACCESS) or Access()
        if "read" not in access.can:
            raise HTTPException(403, "This token may not read.")
        await self.of(access).router(scope, receive, send)

    async def _events(self, request: Request) -> Response:
        if self._pulse.watching >= _MOST_WATCHERS:
            raise HTTPException(503, headers={"retry-after": "30"})
        access: Access = request.scope.get(ACCESS) or Access()
        store, holds = self.of(access).sight.store, "holds" in request.query_params

        def part(pulse: str) -> str:
            seen = store.pulse_at(pulse) if isinstance(store, Lens) else pulse
            return seen if holds else entries_of(seen)

        events = self._pulse.events(part, still=request.scope.get(STILL) or (lambda: True))
        return StreamingResponse(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _login(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def login(request: Request) -> Response:
        wrong, seconds = False, 0
        if request.method == "POST":
            if request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
                raise HTTPException(403, "Log in on this page; a page of others cannot do it for you.")
            form = parse_qs((await request.body())[:_LONGEST_FORM].decode(errors="replace"))
            said = form.get("token", [""])[0].strip()
            seconds = door.wait(request, said)
            token = None if seconds else door.open(request, said)
            if token is not None:
                return door.welcome(request, base_of(request), token)
            wrong = not seconds
        status = 429 if seconds else 401 if wrong else 200
        answer = page(request, "login.html", status=status, title="Log in", door=True, wrong=wrong, seconds=seconds)
        if seconds:
            answer.headers["retry-after"] = str(seconds)
        return answer

    return login


def _logout(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def logout(request: Request) -> Response:
        form = parse_qs((await request.body())[:_LONGEST_FORM].decode(errors="replace"))
        check_own_page(request, form.get("proof", [""])[0])
        return door.log_out(base_of(request))

    return logout


def _failed(request: Request, error: Exception) -> Response:
    if isinstance(error, ConfigurationError):
        return page(request, "error.html", status=400, title="That cannot be shown", message=str(error))
    words, away = tell_error(request, error), isinstance(error, StoreError)
    status = 503 if away else 500
    return page(request, "error.html", status=status, title="The ledger cannot be read", message=words, away=away)


def _out_of_time(request: Request, _: Exception) -> Response:
    words = "That date lies beyond the calendar; choose one between the years 2 and 9998."
    return page(request, "error.html", status=400, title="That cannot be shown", message=words)


def _broken(request: Request, _: Exception) -> Response:
    answer = page(request, "error.html", status=500, title="Something failed", message=BROKEN)
    answer.headers.update(HEADERS)  # nothing behind this adds them
    return answer


def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    phrase, said = HTTPStatus(status).phrase, error.detail if isinstance(error, HTTPException) else ""
    words = said if said != phrase else HTTPStatus(status).description
    if status == HTTPStatus.NOT_FOUND:
        words = "There is no such page."
    answer = page(request, "error.html", status=status, title=phrase, message=words)
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer
