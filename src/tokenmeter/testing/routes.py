"""Which URL is which endpoint of which provider."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tokenmeter.testing import (
    anthropic_messages,
    openai_chat,
    openai_embeddings,
    openai_responses,
)
from tokenmeter.testing.context import Endpoint
from tokenmeter.testing.wire import Request

__all__ = ["Match", "Provider", "find"]

Provider = Literal["openai", "anthropic"]


class _Route(NamedTuple):
    method: str
    path: str
    name: str
    serve: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where a request goes.

    Attributes:
        provider: Whose wire format is spoken.
        name: SDK method path; None for an unknown URL.
        serve: The endpoint; None for an unknown URL.
        params: Captured parts of the path.
        model: Model named by the URL (an Azure deployment).
        azure: Whether it was an Azure URL.
    """

    provider: Provider
    name: str | None = None
    serve: Endpoint | None = None
    params: tuple[str, ...] = ()
    model: str | None = None
    azure: bool = False


_OPENAI: Sequence[_Route] = (
    _Route("POST", "/chat/completions", "chat.completions", openai_chat.chat_completions),
    _Route("POST", "/completions", "completions", openai_chat.completions),
    _Route("POST", "/responses", "responses", openai_responses.create),
    _Route("POST", "/responses/compact", "responses.compact", openai_responses.compact),
    _Route("POST", "/responses/input_tokens", "responses.input_tokens", openai_responses.input_tokens),
    _Route("GET", "/responses/{}", "responses.retrieve", openai_responses.retrieve),
    _Route("DELETE", "/responses/{}", "responses.delete", openai_responses.delete),
    _Route("POST", "/responses/{}/cancel", "responses.cancel", openai_responses.cancel),
    _Route("GET", "/responses/{}/input_items", "responses.input_items", openai_responses.input_items),
    _Route("POST", "/embeddings", "embeddings", openai_embeddings.embeddings),
    _Route("POST", "/moderations", "moderations", openai_embeddings.moderations),
)
_ANTHROPIC: Sequence[_Route] = (
    _Route("POST", "/messages", "messages", anthropic_messages.create),
    _Route("POST", "/messages/count_tokens", "messages.count_tokens", anthropic_messages.count_tokens),
)

_AZURE = re.compile(r"^.*?/openai/deployments/([^/]+)(/.+)$")
_VERSION = re.compile(r"^(?:/.*?)?/v1(?=/)|^.*?/openai(?=/)")


class _Table:
    """Routes by method and path: plain paths by lookup, those with parameters by pattern."""

    def __init__(self, routes: Sequence[_Route]) -> None:
        self._plain = {(route.method, route.path): route for route in routes if "{}" not in route.path}
        self._patterns = [
            (route.method, re.compile(route.path.replace("{}", "([^/]+)")), route)
            for route in routes
            if "{}" in route.path
        ]

    def find(self, method: str, path: str) -> tuple[_Route, tuple[str, ...]] | None:
        wanted = "GET" if method == "HEAD" else method
        if plain := self._plain.get((wanted, path)):
            return plain, ()
        for verb, pattern, route in self._patterns:
            if verb == wanted and (found := pattern.fullmatch(path)):
                return route, found.groups()
        return None


_TABLES: dict[Provider, _Table] = {"openai": _Table(_OPENAI), "anthropic": _Table(_ANTHROPIC)}


def find(request: Request) -> Match:
    """The endpoint of a request. Any base path is accepted, as compatible hosts have them."""
    path, model, azure = request.path, None, False
    if deployment := _AZURE.match(path):
        model, path, azure = deployment[1], deployment[2], True
    else:
        azure = path.startswith("/openai/")
        path = _VERSION.sub("", path, count=1)
    path = path.rstrip("/") or "/"
    provider: Provider = "anthropic" if _is_anthropic(request, path) else "openai"
    if (found := _TABLES[provider].find(request.method, path)) is None:
        return Match(provider=provider, azure=azure)
    route, params = found
    return Match(provider=provider, name=route.name, serve=route.serve, params=params, model=model, azure=azure)


def _is_anthropic(request: Request, path: str) -> bool:
    if request.header("anthropic-version") is not None or request.header("x-api-key") is not None:
        return True
    return path.startswith("/messages")
