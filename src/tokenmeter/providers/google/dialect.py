"""Google's room: the wire format of the Gemini API and of Vertex AI, as Google's own SDK speaks it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Dialect, Endpoint, StreamReader
from tokenmeter.providers.context import Context
from tokenmeter.providers.google import bodies, requests
from tokenmeter.providers.google.plain import PLAIN
from tokenmeter.providers.google.streams import ENDS, AnswerStream, InteractionStream
from tokenmeter.providers.wire import JSON, text
from tokenmeter.usage import Observation


class GoogleDialect(Dialect):
    """Google's wire format."""

    name = "google"
    models = ("gemini", "imagen", "veo-", "lyria")
    plain = PLAIN
    singular_fields = frozenset({"serviceTier", "background"})
    endpoints = (
        "models.",
        "interactions",
        "decisions",
        "voices",
        "live",
        "batches",
        "files.download",
        "operations",
        "caches",
        "tunings",
        "file_search_stores",
    )

    def begins_stream(self, event: JSON) -> bool:
        """As `Dialect.begins_stream`; one that is read on from where it broke off begins anywhere before its end."""
        kind = text(event, "event_type")
        return kind is not None and kind not in ENDS

    def ends_stream(self, event: JSON) -> bool:
        """As `Dialect.ends_stream`."""
        return text(event, "event_type") in ENDS

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return requests.endpoint(method, path)

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return requests.BILLED

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path."""
        return requests.endpoint_named(path) or super().named(path)

    def usual_endpoint(self, body: Mapping[str, Any]) -> str:
        """The SDK method path of what a request body is most likely for."""
        if "messages" in body:
            return "chat.completions"  # as its hosts for other SDKs take it
        model = str(body.get("model", "")).lower()
        for word, path in (("embed", "embed_content"), ("imagen", "generate_images"), ("veo", "generate_videos")):
            if word in model:
                return f"models.{path}"
        return "interactions.create" if "input" in body else "models.generate_content"

    def as_sent(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request body that the SDK makes of the arguments of a call."""
        return requests.as_sent(arguments)

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body."""
        return requests.request_facts(endpoint, body)

    def read_body(self, body: Any, context: Context) -> Observation:
        """Usage of a whole decoded body."""
        return bodies.read_body(body, context)

    def items(self, body: Any) -> Sequence[Any]:
        """The answers of a batch."""
        return bodies.items(body)

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        context = Context(provider, endpoint, request)
        if endpoint.startswith(("interactions", "decisions")):
            return InteractionStream(context, self.read_bounded)
        return AnswerStream(context, self.read_bounded)

    def output_cap(self, endpoint: Endpoint, body: Mapping[str, Any], tokens: int, *, provider: str) -> tuple[str, Any]:
        """The field that limits the answer's tokens, with its value."""
        del provider
        return requests.output_cap(endpoint, body, tokens)


DIALECT = GoogleDialect()
