"""Who may look: hosts a request may be meant for, a token, and what a browser may do with the pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenmeter.errors import ConfigurationError

__all__ = ["HEADERS", "Door", "HostCheck", "SafeHeaders", "is_loopback"]

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
            refusal = PlainTextResponse(
                "This dashboard does not answer to that host name. Open it by its IP address, or name the host with "
                "--allow-host.\n",
                status_code=421,
            )
            await refusal(scope, receive, send)
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


class SafeHeaders:
    """Adds `HEADERS` to every answer, and keeps figures out of caches."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_safely if scope["type"] == "http" else send)


class Door:
    """Lets in who knows the token: by its cookie, or by ``Authorization: Bearer``.

    The cookie holds a proof made from the token and a secret of this process; it ends with the process.

    Args:
        token: What one has to know.

    Raises:
        ConfigurationError: a token that could be guessed.
    """

    def __init__(self, token: str) -> None:
        if len(token) < _LEAST_LENGTH:
            raise ConfigurationError(
                f"A token needs at least {_LEAST_LENGTH} characters; make one with "
                "`python -c 'import secrets; print(secrets.token_urlsafe())'`."
            )
        self._token = token.encode()
        self._proof = hmac.new(secrets.token_bytes(32), self._token, hashlib.sha256).hexdigest().encode()

    def knows(self, token: str) -> bool:
        """Whether that is the token; takes as long for any wrong one."""
        return hmac.compare_digest(
            hashlib.sha256(token.encode(errors="replace")).digest(), hashlib.sha256(self._token).digest()
        )

    def admits(self, connection: HTTPConnection) -> bool:
        """Whether a request comes from somebody who was let in."""
        scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.knows(credentials.strip()):
            return True
        cookie = connection.cookies.get(_COOKIE, "")
        return hmac.compare_digest(cookie.encode(errors="replace"), self._proof)

    def welcome(self, connection: HTTPConnection, base: str) -> RedirectResponse:
        """To the first page, with the cookie."""
        response = RedirectResponse(f"{base}/", status_code=303)
        response.set_cookie(
            _COOKIE,
            self._proof.decode(),
            path=f"{base}/",
            httponly=True,
            samesite="strict",
            secure=connection.url.scheme == "https",
        )
        return response

    def guard(self, app: ASGIApp) -> ASGIApp:
        """`app` behind this door. Its login page and its style stand open."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            connection = HTTPConnection(scope)
            base = scope.get("root_path", "").rstrip("/")
            path = scope["path"].removeprefix(base)
            if path in {"/login", "/static/dashboard.css"} or self.admits(connection):
                await app(scope, receive, send)
            elif "text/html" in connection.headers.get("accept", ""):
                await RedirectResponse(f"{base}/login", status_code=303)(scope, receive, send)
            else:
                refusal = PlainTextResponse(
                    "Log in first, or send the token as 'Authorization: Bearer ...'.\n",
                    status_code=401,
                    headers={"www-authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)

        return guarded
