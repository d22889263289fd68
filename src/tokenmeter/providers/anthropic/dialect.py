"""Anthropic's room: its wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.anthropic import bodies, requests, routes
from tokenmeter.providers.anthropic.plain import PLAIN, PLAIN_REQUESTS
from tokenmeter.providers.anthropic.streams import MessageStream
from tokenmeter.providers.base import Dialect, Endpoint, StreamReader
from tokenmeter.providers.context import Context
from tokenmeter.usage import Observation


class AnthropicDialect(Dialect):
    """Anthropic's wire format."""

    name = "anthropic"
    models = ("claude",)
    plain = PLAIN
    plain_requests = PLAIN_REQUESTS
    singular_fields = frozenset({"speed", "fallbacks", "inference_geo"})
    endpoints = ("messages", "beta.messages", "beta.sessions", "beta.dreams")

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return routes.endpoint(method, path)

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path."""
        return routes.named(path) or super().named(path)

    def usual_endpoint(self, body: Mapping[str, Any]) -> str:
        """The SDK method path of what a request body is most likely for."""
        del body
        return "messages"

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body."""
        return requests.request_facts(endpoint, body)

    def read_body(self, body: Any, context: Context) -> Observation:
        """Usage of a whole decoded body."""
        return bodies.read_body(body, context)

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        return MessageStream(Context(provider, endpoint, request), self.read_bounded)

    def output_cap(self, endpoint: Endpoint, body: Mapping[str, Any], tokens: int, *, provider: str) -> tuple[str, Any]:
        """The field that limits the answer's tokens, with its value."""
        del body, provider
        return ("max_tokens_to_sample" if endpoint.path == "completions" else "max_tokens"), tokens


DIALECT = AnthropicDialect()
