"""Who may look: hosts a request may be meant for, a token, and what a browser may do with the pages."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import inspect
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, Literal
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmeter.errors import ConfigurationError
from tokenmeter.serving.access import (
    ACCESS,
    BEARER,
    PAGE_PROOF,
    STILL,
    Access,
    Limiter,
    Token,
    Tokens,
    address_of,
    is_made,
)
from tokenmeter.serving.access import AccessScope as LedgerScope
from tokenmeter.serving.problems import problem
from tokenmeter.settings import Only

#: What a browser leaves as it is in a path, but for the semicolon, which would end the path of a cookie.
_PLAIN = "/!$&'()*+,:=@|[]"
#: A function of the request that says which part of the ledger it sees.
Said = Only | Literal["everything"] | None
Whom = Callable[[Request], Said | Awaitable[Said]]

#: Nothing but this server's own scripts, styles and data; no frames, no inline code.
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_NO_FRAMES = "frame-ancestors 'none'"
#: An origin as a browser knows it; plain http only of this machine.
_ORIGIN = re.compile(
    r"https://[a-z0-9.-]+(:\d{1,5})?|http://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE
)
#: What no page of others shows in a frame, whoever may show the rest.
_UNFRAMED = ("/login", "/acts/")
log = logging.getLogger("tokenmeter")
#: What needs no token.
_OPEN = ("/login", "/healthz", "/readyz", "/static/dashboard.css", "/static/icon.svg")
_LONGEST_NUMBER = 10
#: Bytes of a request's head.
LONGEST_HEAD = 16_384
_COOKIE = "tokenmeter_dashboard"
_LEAST_LENGTH = 16


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class HostCheck:
    """Refuses requests for a foreign host name: a web page whose own name was rebound to this address (DNS rebinding).

    Args:
        app: What is guarded.
        hosts: Names accepted besides ``localhost`` and IP addresses, which cannot be rebound.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 421."""
        if scope["type"] == "http" and not self._accepts(Headers(scope=scope).get("host", "")):
            words = (
                "This dashboard does not answer to that host name. Open it by its IP address, or name the host with "
                "--allow-host."
            )
            await refusal(421, words, scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _accepts(self, header: str) -> bool:
        host = header.lower()
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]
        if name == "localhost" or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def frame_policy(origins: str | Sequence[str]) -> str:
    """What the policy of a page says of who may show it in a frame.

    Raises:
        ConfigurationError: something is neither ``self`` nor an origin.
    """
    named = [origins] if isinstance(origins, str) else list(origins)
    for one in named:
        if one != "self" and not _ORIGIN.fullmatch(one):
            raise ConfigurationError(
                f"frame_ancestors= takes 'self' and origins such as 'https://portal.example.com', without a path and "
                f"each by name, not {one!r}."
            )
    return f"frame-ancestors {' '.join(repr(one) if one == 'self' else one for one in named)}" if named else _NO_FRAMES


class SafeHeaders:
    """Adds `HEADERS` to every answer, and keeps figures out of caches.

    Args:
        app: What is guarded.
        frames: Who may show its pages in a frame; see `frame_policy`.
    """

    def __init__(self, app: ASGIApp, frames: str = _NO_FRAMES) -> None:
        self._app = app
        framed = {**HEADERS, "content-security-policy": HEADERS["content-security-policy"].replace(_NO_FRAMES, frames)}
        del framed["x-frame-options"]  # which knows no origins
        self._framed = HEADERS if frames == _NO_FRAMES else framed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                chosen = HEADERS if path_of(scope).startswith(_UNFRAMED) else self._framed
                for name, value in chosen.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_safely if scope["type"] == "http" else send)


class WholePath:
    """Gives a request its whole path, where a proxy took off what the application around it calls its root path.

    FastAPI's ``root_path`` names that without putting it in front of the path, as a server does: below such a mount no
    route is found. Links and cookies have it either way.

    Args:
        app: What is served.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http":
            base, taken_off = _base(scope), str(scope.get("app_root_path", scope.get("root_path", ""))).rstrip("/")
            whole = f"{taken_off}{scope['path']}"
            if taken_off and not f"{scope['path']}/".startswith(f"{base}/") and f"{whole}/".startswith(f"{base}/"):
                scope = {**scope, "path": whole, "raw_path": quote(whole, safe=_PLAIN).encode()}
        await self._app(scope, receive, send)


class Bounded:
    """Bounds what a request may send: how much, and how long it may pause.

    Args:
        app: What is guarded.
        most: Bytes of a body.
        patience: Seconds between two parts of a body.
    """

    def __init__(self, app: ASGIApp, most: int = 1_000_000, patience: int = 20) -> None:
        self._app, self._most, self._patience = app, most, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 408, 413 or 431."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _head_of(scope) > LONGEST_HEAD:
            words = f"A request's head may have {LONGEST_HEAD:,} bytes at most."
            await refusal(431, words, scope)(scope, receive, send)
            return
        got, ended = 0, False

        async def receive_some() -> Message:
            nonlocal got, ended
            if ended:  # from here on it only tells when the client leaves
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._patience)
            except TimeoutError:
                raise HTTPException(408, "The request did not arrive in time.") from None
            got += len(message.get("body", b""))
            if got > self._most:
                raise HTTPException(413, f"A request may have {self._most:,} bytes at most.")
            ended = not message.get("more_body", False)
            return message

        said = Headers(scope=scope).get("content-length") or "0"  # a WSGI server may say "" where there is no body
        if said.isdecimal() and len(said) < _LONGEST_NUMBER and int(said) <= self._most:
            await self._app(scope, receive_some, send)
        else:
            await refusal(413, f"A request may have {self._most:,} bytes at most.", scope)(scope, receive, send)


def _head_of(scope: Scope) -> int:
    """Bytes of a request's path, query and headers."""
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or b"") + len(scope["query_string"])


class Door:
    """Lets in who has a token: by a cookie of the login page, or by ``Authorization: Bearer``.

    The cookie holds a proof made from the token's hash and a secret of this process; it ends with the process, and as
    soon as the token is no longer good. An address that sent wrong tokens has to wait: its next ones are then not even
    looked at, but for those that tokenmeter made, whose 256 random bits nobody guesses: other programs of that address
    stay in.

    Args:
        tokens: What each gives access to.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._secret = secrets.token_bytes(32)
        self._tokens = tokens
        self._wrong = Limiter(burst=10, every=6)

    @staticmethod
    def check(token: str) -> str:
        """The digest of a token that a person chose.

        Raises:
            ConfigurationError: it could be guessed.
        """
        if len(token) < _LEAST_LENGTH:
            raise ConfigurationError(
                f"A token needs at least {_LEAST_LENGTH} characters; make one with "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`."
            )
        return hashlib.sha256(token.encode(errors="replace")).hexdigest()

    def wait(self, connection: HTTPConnection, token: str) -> int:
        """Seconds until a token is looked at that comes from this address; 0 = now."""
        if is_made(token) and self._find(token) is not None:
            return 0
        return ceil(self._wrong.wait(_address(connection)))

    def _find(self, token: str) -> Token | None:
        digest = hashlib.sha256(token.encode(errors="replace")).hexdigest()
        found = [one for one in self._tokens.now if hmac.compare_digest(one.digest, digest) and one.good]
        return found[0] if found else None

    def open(self, connection: HTTPConnection, token: str) -> Token | None:
        """The known token that this is; a wrong one is held against the address it came from."""
        if (found := self._find(token)) is None:
            self._wrong.count(_address(connection))
        return found

    def remembered(self, connection: HTTPConnection) -> Token | None:
        """The token that the connection's cookie proves."""
        cookie = connection.cookies.get(_COOKIE, "").encode(errors="replace")
        known = [one for one in self._tokens.now if hmac.compare_digest(cookie, self._proof(one).encode()) and one.good]
        return known[0] if known else None

    def still_good(self, token: Token) -> bool:
        """Whether a token that came in would come in now."""
        return token in self._tokens.now and token.good

    def _proof(self, token: Token, of: str = "login") -> str:
        return hmac.new(self._secret, f"{of} {token.digest}".encode(), hashlib.sha256).hexdigest()

    def welcome(self, connection: HTTPConnection, base: str, token: Token) -> RedirectResponse:
        """To the first page, with the cookie."""
        response = RedirectResponse(f"{base}/", status_code=303)
        response.set_cookie(
            _COOKIE,
            self._proof(token),
            path=f"{base}/",
            httponly=True,
            samesite="strict",
            secure=connection.url.scheme == "https",
        )
        return response

    def log_out(self, base: str) -> RedirectResponse:
        """To the login page, without the cookie."""
        response = RedirectResponse(f"{base}/login", status_code=303)
        response.delete_cookie(_COOKIE, path=f"{base}/")
        return response

    def guard(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this door, from the first token on. Its login page, its style and its probes stand open."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or path_of(scope) in _OPEN or not self._tokens.asked_for:
                await app(scope, receive, send)
                return
            connection = HTTPConnection(scope)
            scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
            bearer, credentials = scheme.lower() == "bearer", credentials.strip()
            if bearer and (seconds := self.wait(connection, credentials)):
                await slow_down("Too many wrong tokens came from your address.", seconds, scope)(scope, receive, send)
                return
            token = self.open(connection, credentials) if bearer else self.remembered(connection)
            if token is not None:
                scope[ACCESS], scope[BEARER], scope[STILL] = token.access, bearer, partial(self.still_good, token)
                if not bearer:
                    scope[PAGE_PROOF] = self._proof(token, "page")
                await app(scope, receive, send)
            elif "text/html" in connection.headers.get("accept", "") and not path_of(scope).startswith("/api/"):
                await RedirectResponse(f"{base_of(scope)}/login", status_code=303)(scope, receive, send)
            else:
                words = "Log in first, or send a token that is good as 'Authorization: Bearer ...'."
                await refusal(401, words, scope, {"www-authenticate": "Bearer"})(scope, receive, send)

        return guarded


class Whose:
    """Decides for each request which part of the ledger it sees, as the application around it says.

    Args:
        app: What is guarded.
        only: The part; or a function of the request that returns it, or ``"everything"``, or None for nothing at all.
            It may be a coroutine function.
    """

    def __init__(self, app: ASGIApp, only: Only | Whom) -> None:
        self._app, self._only = app, only
        self._fixed = None if callable(only) else Access(scope=LedgerScope.of(only))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with what it may see, or answer 403."""
        if scope["type"] != "http" or path_of(scope) in _OPEN:
            await self._app(scope, receive, send)
            return
        access = self._fixed or await self._ask(Request(scope))
        if access is None:
            await refusal(403, "There is nothing here that you may see.", scope)(scope, receive, send)
            return
        known: Access | None = scope.get(ACCESS)
        scope[ACCESS] = access if known is None else replace(known, scope=access.scope, can=frozenset({"read"}))
        await self._app(scope, receive, send)

    async def _ask(self, request: Request) -> Access | None:
        if not callable(self._only):
            return None
        answer = self._only(request)
        said = await answer if inspect.isawaitable(answer) else answer
        if said is None:
            return None
        if said == "everything":
            return Access()
        try:
            return Access(scope=LedgerScope.of(said))
        except ConfigurationError as error:
            log.error("Nothing is shown: the function given as only= answered %r. %s", said, error)  # noqa: TRY400 - it says all
            return None


class Paced:
    """Bounds how often somebody may ask: who is known by his name, others by their address.

    Args:
        app: What is guarded.
        per_minute: Requests; a sixth of them may come at once.
    """

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self._app = app
        self._limiter = Limiter(burst=max(per_minute // 6, 1), every=60 / per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 429."""
        if scope["type"] == "http" and not path_of(scope).startswith(("/static/", *_OPEN)):
            access: Access | None = scope.get(ACCESS)
            who = (access and access.name) or f"@{_address(HTTPConnection(scope))}"
            if seconds := ceil(self._limiter.wait(who)):
                await slow_down("You ask more often than this server allows.", seconds, scope)(scope, receive, send)
                return
            self._limiter.count(who)
        await self._app(scope, receive, send)


def check_own_page(request: Request, proof: str) -> None:
    """Refuse what a page of somebody else may have sent.

    Args:
        request: With the cookie of whoever is logged in.
        proof: What the form says; only a page of his own has it.

    Raises:
        HTTPException: it may not be his.
    """
    known: str = request.scope.get(PAGE_PROOF, "")
    same = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if not known or not same or not hmac.compare_digest(known.encode(), proof.encode(errors="replace")):
        raise HTTPException(403, "This did not come from a page that you were shown; open the page again.")
    if request.headers.get("sec-fetch-dest", "document") != "document":
        raise HTTPException(
            403, "Nothing is done from within a frame, where a click may be led; open the page by itself."
        )


def base_of(asked: Mapping[str, Any]) -> str:
    """The path that the dashboard is served under, as links, redirects and cookies have it: no slash at its end.

    Args:
        asked: A request, or its ASGI scope.
    """
    return quote(_base(asked), safe=_PLAIN)


def path_of(asked: Mapping[str, Any]) -> str:
    """The path of a request (or its scope) below that, as it is meant: nothing in it is encoded."""
    return str(asked["path"]).removeprefix(_base(asked))


def _base(asked: Mapping[str, Any]) -> str:
    return str(asked.get("root_path", "")).rstrip("/")


def refusal(status: int, words: str, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says no: a problem (RFC 9457) for the usage API, else a line of text."""
    if path_of(scope).startswith("/api/"):
        return problem(status, words, headers=headers)
    return PlainTextResponse(f"{words}\n", status_code=status, headers=headers)


def slow_down(words: str, seconds: int, scope: Scope) -> Response:
    """429, with when to come again."""
    return refusal(429, f"{words} Come again in {seconds} s.", scope, {"retry-after": str(seconds)})


def _address(connection: HTTPConnection) -> str:
    client = connection.client
    return address_of(None if client is None else (client.host, client.port))
