"""Attribution of what a web application calls: one block around each request, for ASGI and WSGI.

Middleware is the one place whose context every part of a request inherits: endpoints, threads of synchronous ones,
streamed bodies, background tasks, sockets. What is only known further in (the user, once a dependency or a view has
found out) is added with `attribute_request`, from anywhere within the request.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack, cast

from tokenmeter.attribution import UNFIT, Attribution, Scope, attribute, current_scopes
from tokenmeter.dimensions import WHO, WhoArguments
from tokenmeter.errors import ConfigurationError
from tokenmeter.running import in_steps, scopes_set_to

__all__ = [
    "AsgiAttributionMiddleware",
    "AttributionMiddleware",
    "Request",
    "WsgiAttributionMiddleware",
    "attribute_request",
]

log = logging.getLogger("tokenmeter")


class Request(Mapping[str, Any]):
    """A request as an attribution function sees it. As a mapping it is the server's own: ASGI scope or WSGI environ.

    Attributes:
        path: Path of the URL, as the application sees it (``/summarise``).
        method: ``GET``, ``POST``, ...; ``WEBSOCKET`` for a socket.
        headers: Names in lower case -> value; several of one name are joined by a comma.
    """

    __slots__ = ("_server", "headers", "method", "path")

    def __init__(self, server: Mapping[str, Any]) -> None:
        self._server = server
        if "wsgi.version" in server:
            self.path = _from_wsgi(f"{server.get('PATH_INFO') or '/'}")
            self.method = f"{server.get('REQUEST_METHOD', '')}"
            self.headers = dict(_wsgi_headers(server))
        else:
            self.path = f"{server.get('path') or '/'}"
            self.method = f"{server.get('method', 'WEBSOCKET')}"
            self.headers = _asgi_headers(server)

    def __getitem__(self, name: str) -> Any:
        return self._server[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._server)

    def __len__(self) -> int:
        return len(self._server)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"


class AttributionMiddleware:
    """Attributes what an application calls while it serves a request.

    Works for ASGI (FastAPI, Starlette, Django's ``get_asgi_application()``, ...) and WSGI (Flask, Django's
    ``get_wsgi_application()``, ...); which one it is, is seen by the application. An application that hides it is
    named by using `AsgiAttributionMiddleware` or `WsgiAttributionMiddleware`.

    Streamed bodies, background tasks and sockets are inside the request's block until they end. The application's
    answers pass unchanged.

    Args:
        app: The application.
        attribution: Says on whose account a request goes: a function of the `Request` that returns an `Attribution`,
            a mapping of its fields, or None. For ASGI it may be a coroutine function. A text that no account may be
            called by (empty or blank, too long, with control characters) is left out, and the first one told in the
            log: what a client sends must not break his request. What the function raises is raised to the server: a
            request whose payer cannot be told must not pass the payer's budget; ``require`` refuses calls that lack
            one. Default: nobody, until `attribute_request` says more.

    Raises:
        ConfigurationError: `attribution` is no function, or returned something else.

    Examples:
        >>> app.add_middleware(AttributionMiddleware, attribution=lambda request: {"route": request.path})
        ... # doctest: +SKIP
        >>> flask_app.wsgi_app = AttributionMiddleware(flask_app.wsgi_app, attribution=...)  # doctest: +SKIP
    """

    def __new__(cls, app: Any, *, attribution: Callable[[Request], Any] | None = None) -> AttributionMiddleware:  # noqa: ARG004, PYI034
        """One of the two kinds."""
        if cls is AttributionMiddleware:
            return object.__new__(AsgiAttributionMiddleware if _is_asgi(app) else WsgiAttributionMiddleware)
        return object.__new__(cls)

    def __init__(self, app: Any, *, attribution: Callable[[Request], Any] | None = None) -> None:
        if attribution is not None and not callable(attribution):  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError(
                "attribution must be a function of the request, such as "
                "lambda request: Attribution(member=request.headers.get('x-user'))."
            )
        self.app = app
        self._attribution = attribution

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Serve one request."""
        raise NotImplementedError


class AsgiAttributionMiddleware(AttributionMiddleware):
    """`AttributionMiddleware` for an ASGI application."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or socket."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        with _leaving_out():
            found: Any = None if self._attribution is None else self._attribution(Request(scope))
            if inspect.isawaitable(found):
                found = await found
            block = _request_block(found)
        with block:
            await self.app(scope, receive, send)


class WsgiAttributionMiddleware(AttributionMiddleware):
    """`AttributionMiddleware` for a WSGI application."""

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """Serve one request."""
        with _leaving_out():
            block = _request_block(None if self._attribution is None else self._attribution(Request(environ)))
        with block as scope:
            body: Iterable[bytes] = self.app(environ, start_response)
            wrapper = environ.get("wsgi.file_wrapper")
            if isinstance(body, list | tuple) or (isinstance(wrapper, type) and isinstance(body, wrapper)):
                return cast("Iterable[bytes]", body)  # nothing more is called; servers send these in ways of their own
            scope.begun = True  # or so it may be: the body is still to come
            return _Body(body, scope)


class _Body:
    """A response's body, each piece of which is made inside the request's block."""

    def __init__(self, body: Iterable[bytes], scope: Scope) -> None:
        self._inside = in_steps(scopes_set_to((scope,)))
        self._body = body
        with self._inside:
            self._pieces = iter(body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._inside:
            return next(self._pieces)

    def close(self) -> None:
        """Called by the server at the end, however it came."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._inside:
                close()


def attribute_request(
    attribution: Attribution | None = None,
    /,
    *,
    tags: Mapping[str, str] | None = None,
    **who: Unpack[WhoArguments],
) -> None:
    """Attribute what the present request calls from now on, from anywhere within it: a dependency, a view, a thread.

    Unlike an `attribute` block it needs no end, and holds for the rest of the request wherever it was said, so it is
    the way for dependencies that run in a thread. Arguments as for `tokenmeter.attribute`; what is left out stays. So
    it is with a text that no account may be called by, see `AttributionMiddleware`.

    Raises:
        ConfigurationError: no `AttributionMiddleware` is around this code, or a value is no text.

    Examples:
        >>> def current_user(token: str) -> User:  # doctest: +SKIP
        ...     user = users.find(token)
        ...     attribute_request(member=user.name)
        ...     return user
    """
    request = next((scope for scope in current_scopes() if isinstance(scope.opened_by, _RequestBlock)), None)
    if request is None:
        raise ConfigurationError(
            "attribute_request() was called outside of a request that AttributionMiddleware knows; add "
            "tokenmeter.web.AttributionMiddleware to the application, or use `with tokenmeter.attribute(...)`. "
            "Django's test client goes past what is around the application; docs/how-to/test-your-app.md has one that "
            "does not."
        )
    with _leaving_out():
        named = Attribution(tags=tags or {}, **who)
    request.refine(named if attribution is None else named.over(attribution))


class _RequestBlock(attribute):
    """The block around one request."""

    place = "the request (tokenmeter.web)"


@contextmanager
def _leaving_out() -> Generator[None]:
    """Inside, a text that no account may be called by is left out of an attribution."""
    token = UNFIT.set(_tell)
    try:
        yield
    finally:
        UNFIT.reset(token)


def _tell(what: str, error: ConfigurationError) -> None:
    if what not in _told:
        _told.add(what)
        log.warning("A request is attributed without its %s, as others like it will be: %s", what, error)


_told: set[str] = set()


def _request_block(found: Any) -> _RequestBlock:
    if found is None:
        return _RequestBlock()
    if isinstance(found, Attribution):
        return _RequestBlock(found)
    if isinstance(found, Mapping):
        unknown = set(cast("Mapping[str, Any]", found)) - {*WHO, "tags"}
        if not unknown:
            return _RequestBlock(**cast("Mapping[str, Any]", found))
        raise ConfigurationError(
            f"The attribution function returned unknown fields: {', '.join(sorted(map(str, unknown)))}; known are "
            f"{', '.join(WHO)} and tags."
        )
    raise ConfigurationError(
        f"The attribution function must return an Attribution, a mapping of its fields or None, not "
        f"{type(found).__name__}{'; for WSGI it cannot be a coroutine function' if inspect.isawaitable(found) else ''}."
    )


def _is_asgi(app: Any) -> bool:
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(app, "__call__", None)):  # noqa: B004
        return True
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return False
    wanted = sum(
        parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD} for parameter in parameters
    )
    if wanted == 1:
        raise ConfigurationError(
            "AttributionMiddleware takes an ASGI or WSGI application. In Django wrap the one in wsgi.py or asgi.py: "
            "application = AttributionMiddleware(get_wsgi_application(), ...), not in MIDDLEWARE."
        )
    return wanted == 3  # noqa: PLR2004 - scope, receive, send


def _asgi_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _from_wsgi(text: str) -> str:
    """A text as it was sent: WSGI has its bytes as letters of Latin-1 (PEP 3333)."""
    try:
        return text.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:  # a server that decoded it
        return text


def _wsgi_headers(environ: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        if name.startswith("HTTP_"):
            yield name[5:].lower().replace("_", "-"), value
        elif name in {"CONTENT_TYPE", "CONTENT_LENGTH"} and value:
            yield name.lower().replace("_", "-"), value
