"""Which URL is which endpoint of which provider."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenmeter.testing.anthropic_messages import cloud_endpoint
from tokenmeter.testing.endpoints import ANTHROPIC, OPENAI
from tokenmeter.testing.google import google_endpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenmeter.testing.context import Endpoint, Provider, Route
    from tokenmeter.testing.wire import JSON, Request

_AZURE = re.compile(r"^.*?/openai/deployments/([^/]+)(/.+)$")
#: Whatever stands before an endpoint's path: a host's base path, the version, Azure's ``/openai``.
_BASE = re.compile(r"^(?:/.*?)?/v1(?=/)|^.*?/openai(?=/)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a request goes.

    Attributes:
        provider: Whose wire format is spoken.
        name: SDK method path; None for an unknown URL.
        serve: The endpoint; None for an unknown URL.
        params: Captured parts of the path.
        implied: Parameters that the URL implies: an Azure deployment's model, a cloud's model and streaming.
        azure: Whether it was an Azure URL.
    """

    provider: Provider
    name: str | None = None
    serve: Endpoint | None = None
    params: tuple[str, ...] = ()
    implied: JSON = field(default_factory=dict[str, Any])
    azure: bool = False


class _Table:
    """Routes by method and path: plain paths by lookup, those with parameters by pattern."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._plain = {(route.method, route.path): route for route in routes if "{}" not in route.path}
        self._patterns = [
            (re.compile(route.path.replace("{}", "([^/]+)")), route) for route in routes if "{}" in route.path
        ]

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
        wanted = "GET" if method == "HEAD" else method
        if plain := self._plain.get((wanted, path)):
            return plain, ()
        for pattern, route in self._patterns:
            if route.method == wanted and (found := pattern.fullmatch(path)):
                return route, found.groups()
        return None


_TABLES: dict[Provider, _Table] = {"openai": _Table(OPENAI), "anthropic": _Table(ANTHROPIC)}


def find(request: Request) -> Match:
    """The endpoint of a request. Any base path is accepted, as compatible hosts have them."""
    if google := google_endpoint(request):
        return Match(
            provider="google", name=google.name, serve=google.serve, params=google.params, implied=google.implied
        )
    if cloud := cloud_endpoint(request.path):
        name, serve, implied = cloud
        return Match(provider="anthropic", name=name, serve=serve, implied=implied)
    implied, azure = {}, request.path.startswith("/openai/")
    if deployment := _AZURE.match(request.path):
        azure, implied, path = True, {"model": deployment[1]}, deployment[2]
    else:
        path = _BASE.sub("", request.path, count=1)
        if azure:
            path = path.removeprefix("/v1")
    path = path.rstrip("/") or "/"
    provider: Provider = "anthropic" if _is_anthropic(request, path) else "openai"
    if (found := _TABLES[provider].find(request.method, path)) is None:
        return Match(provider=provider, azure=azure)
    route, params = found
    beta = "beta" in request.query and route.name.startswith(("messages", "responses"))
    name = f"beta.{route.name}" if beta else route.name
    return Match(provider=provider, name=name, serve=route.serve, params=params, implied=implied, azure=azure)


def _is_anthropic(request: Request, path: str) -> bool:
    return (
        request.header("anthropic-version") is not None
        or request.header("x-api-key") is not None
        or path.startswith("/messages")
    )
