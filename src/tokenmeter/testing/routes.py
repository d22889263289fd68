"""Which endpoint a request goes to: the providers' paths, under any base path and in the clouds' own spellings."""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, Any

from tokenmeter.testing import (
    admin,
    anthropic_jobs,
    anthropic_messages,
    openai_chat,
    openai_jobs,
    openai_responses,
)
from tokenmeter.testing.anthropic_messages import cloud_endpoint
from tokenmeter.testing.context import Route, Served
from tokenmeter.testing.google import google_endpoint
from tokenmeter.testing.wire import JSON, Request, json_reply
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenmeter.testing.context import Endpoint, Provider

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


def _kept(store: str) -> Endpoint:
    """What answers with the object of a store that the path names."""
    return lambda context: Served(reply=json_reply(context.state.get(store, context.params[0])))


OPENAI: Sequence[Route] = (
    Route("POST", "/chat/completions", "chat.completions", openai_chat.chat_completions),
    Route("POST", "/completions", "completions", openai_chat.completions),
    Route("POST", "/responses", "responses", openai_responses.create),
    Route("POST", "/responses/compact", "responses.compact", openai_responses.compact),
    Route("POST", "/responses/input_tokens", "responses.input_tokens", openai_responses.input_tokens),
    Route("GET", "/responses/{}", "responses.retrieve", openai_responses.retrieve),
    Route("DELETE", "/responses/{}", "responses.delete", openai_responses.delete),
    Route("POST", "/responses/{}/cancel", "responses.cancel", openai_responses.cancel),
    Route("GET", "/responses/{}/input_items", "responses.input_items", openai_responses.input_items),
    Route("POST", "/embeddings", "embeddings", openai_chat.embeddings),
    Route("POST", "/moderations", "moderations", openai_chat.moderations),
    Route("POST", "/decisions", "decisions", openai_responses.decide),
    Route("POST", "/images/generations", "images.generate", openai_jobs.generate_images),
    Route("POST", "/images/edits", "images.edit", openai_jobs.edit_images),
    Route("POST", "/audio/speech", "audio.speech", openai_jobs.speak),
    Route("POST", "/audio/transcriptions", "audio.transcriptions", openai_jobs.transcribe),
    Route("POST", "/audio/translations", "audio.translations", openai_jobs.translate),
    Route("POST", "/videos", "videos", openai_jobs.create_video),
    Route("GET", "/videos/{}", "videos.retrieve", _kept("videos")),
    Route("GET", "/videos/{}/content", "videos.content", openai_jobs.video_content),
    Route("GET", "/models", "models", openai_jobs.list_models),
    Route("GET", "/models/{}", "models.retrieve", openai_jobs.model),
    Route("POST", "/files", "files", openai_jobs.upload),
    Route("GET", "/files", "files.list", openai_jobs.list_files),
    Route("GET", "/files/{}", "files.retrieve", _kept("files")),
    Route("DELETE", "/files/{}", "files.delete", openai_jobs.delete_file),
    Route("GET", "/files/{}/content", "files.content", openai_jobs.content),
    Route("POST", "/batches", "batches", openai_jobs.create_batch),
    Route("GET", "/batches", "batches.list", openai_jobs.list_batches),
    Route("GET", "/batches/{}", "batches.retrieve", _kept("batches")),
    Route("POST", "/batches/{}/cancel", "batches.cancel", openai_jobs.cancel_batch),
    Route("POST", "/fine_tuning/jobs", "fine_tuning.jobs", openai_jobs.create_tuning),
    Route("GET", "/fine_tuning/jobs/{}", "fine_tuning.jobs.retrieve", _kept("tunings")),
    Route("GET", "/organization/usage/{}", "admin.organization.usage", admin.openai_usage),
    Route("GET", "/organization/costs", "admin.organization.costs", admin.openai_costs),
)
ANTHROPIC: Sequence[Route] = (
    Route("POST", "/messages", "messages", anthropic_messages.create),
    Route("POST", "/messages/count_tokens", "messages.count_tokens", anthropic_messages.count_tokens),
    Route("POST", "/messages/batches", "messages.batches", anthropic_jobs.create_batch),
    Route("GET", "/messages/batches", "messages.batches.list", anthropic_jobs.list_batches),
    Route("GET", "/messages/batches/{}", "messages.batches.retrieve", _kept("message_batches")),
    Route("DELETE", "/messages/batches/{}", "messages.batches.delete", anthropic_jobs.delete_batch),
    Route("GET", "/messages/batches/{}/results", "messages.batches.results", anthropic_jobs.batch_results),
    Route("POST", "/messages/batches/{}/cancel", "messages.batches.cancel", anthropic_jobs.cancel_batch),
    Route("GET", "/models", "models", anthropic_jobs.list_models),
    Route("GET", "/models/{}", "models.retrieve", anthropic_jobs.model),
    Route("POST", "/sessions", "beta.sessions", anthropic_jobs.create),
    Route("GET", "/sessions", "beta.sessions.list", anthropic_jobs.list_sessions),
    Route("GET", "/sessions/{}", "beta.sessions.retrieve", _kept("sessions")),
    Route("POST", "/sessions/{}", "beta.sessions.update", anthropic_jobs.update),
    Route("POST", "/sessions/{}/archive", "beta.sessions.archive", anthropic_jobs.archive),
    Route("POST", "/sessions/{}/events", "beta.sessions.events", anthropic_jobs.send_events),
    Route("GET", "/sessions/{}/events", "beta.sessions.events.list", anthropic_jobs.list_events),
    Route("GET", "/sessions/{}/events/stream", "beta.sessions.events.stream", anthropic_jobs.stream_events),
    Route("GET", "/organizations/analytics/usage", "organization.analytics.usage", admin.analytics_usage),
    Route("GET", "/organizations/analytics/cost", "organization.analytics.cost", admin.analytics_cost),
    Route("GET", "/organizations/usage_report/messages", "organization.usage_report", admin.usage_report),
    Route("GET", "/organizations/cost_report", "organization.cost_report", admin.cost_report),
)
_TABLES: dict[Provider, _Table] = {"openai": _Table(OPENAI), "anthropic": _Table(ANTHROPIC)}


def find(request: Request) -> Match:
    """The endpoint of a request. Any base path is accepted, as compatible hosts have them."""
    if google := google_endpoint(request):
        return Match(
            provider="google", name=google.name, serve=google.serve, params=google.params, implied=google.implied
        )
    # A cloud's URL names the model, which none of the tables' does.
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
