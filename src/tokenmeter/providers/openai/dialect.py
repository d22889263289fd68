"""OpenAI's room: its wire format, which compatible hosts speak as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers.base import Dialect, Endpoint, StreamReader
from tokenmeter.providers.context import Context
from tokenmeter.providers.openai import bodies, requests, streams
from tokenmeter.providers.openai.plain import PLAIN, PLAIN_REQUESTS
from tokenmeter.providers.wire import JSON, is_object, section, text
from tokenmeter.usage import Observation

#: What stands in the name of a model that does not write -> what it is called for.
_USUAL = (
    *(("embed", "embeddings"), ("moderation", "moderations"), ("tts", "audio.speech")),
    *(("whisper", "audio.transcriptions"), ("transcribe", "audio.transcriptions")),
    *(("image", "images.generate"), ("dall-e", "images.generate"), ("sora", "videos")),
)


class OpenAIDialect(Dialect):
    """OpenAI's wire format, as OpenAI, Azure and every compatible host speak it."""

    name = "openai"
    bodies = frozenset({"chat.completion", "chat.completion.chunk", "response", "text_completion"})
    beginnings = frozenset({
        *("chat.completion.chunk", "image_edit.partial_image", "image_generation.partial_image", "session.created"),
        *("speech.audio.delta", "transcript.text.delta", "transcript.text.segment"),
    })  # fmt: skip
    plain = PLAIN
    plain_requests = PLAIN_REQUESTS
    #: ``api.anthropic.com`` serves some of them too.
    endpoints = (
        "audio",
        "batches",
        "beta.agents",
        "beta.realtime",
        "beta.responses",
        "beta.threads",
        "chat",
        "decisions",
        "embeddings",
        "evals",
        "fine_tuning",
        "images",
        "live",
        "realtime",
        "responses",
        "videos",
    )

    usages = frozenset({"input_token_details", "output_token_details"})  # its own, and LangChain's of any model
    singular_fields = frozenset({"background", "background_options", "prompt_cache_options", "web_search_options"})
    socket_events = streams.SOCKET_EVENTS

    def begins_stream(self, event: JSON) -> bool:
        """As `Dialect.begins_stream`; a response that is read on from where it broke off begins anywhere."""
        kind = text(event, "type") or ""
        if kind.startswith("response."):
            return kind not in streams.ANSWERS
        # A part of a completion looks like a whole one: parts of one have its id.
        completion = text(event, "object") == "text_completion" and bool(text(event, "id"))
        return completion or super().begins_stream(event)

    def ends_stream(self, event: JSON) -> bool:
        """As `Dialect.ends_stream`."""
        return text(event, "type") in streams.TERMINAL

    def split_streams(self, events: Sequence[Any]) -> list[list[JSON]]:
        """As `Dialect.split_streams`; the SDK's helper for chats hands out chunks in events of its own."""
        return super().split_streams([section(one, "chunk") or one for one in events if is_object(one)])

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return requests.endpoint(method, path)

    def endpoints_at(self, method: str, path: str) -> Mapping[str, Endpoint]:
        """By provider: what it alone bills at a path."""
        return requests.endpoints_at(method, path)

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return requests.ROUTES.billed()

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path."""
        return requests.endpoint_named(path) or super().named(path)

    def usual_endpoint(self, body: Mapping[str, Any]) -> str:
        """The SDK method path of what a request body is most likely for."""
        model = str(body.get("model", "")).lower()
        usual = "responses" if "input" in body else "chat.completions"
        return usual if "messages" in body else next((path for word, path in _USUAL if word in model), usual)

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body."""
        return requests.request_facts(endpoint, body)

    def read_body(self, body: Any, context: Context) -> Observation:
        """Usage of a whole decoded body."""
        return bodies.read_body(body, context)

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        return streams.open_stream(Context(provider, endpoint, request), self.read_bounded)

    def output_cap(self, endpoint: Endpoint, body: Mapping[str, Any], tokens: int, *, provider: str) -> tuple[str, Any]:
        """The field that limits the answer's tokens, with its value."""
        if endpoint.path.startswith("conversations"):
            return "completion_args", {**section(body, "completion_args"), "max_tokens": tokens}
        return requests.output_cap_field(endpoint, provider), tokens

    def usage_request(self, endpoint: Endpoint, body: Mapping[str, Any]) -> tuple[str, Any] | None:
        """What asks a stream for its usage chunk."""
        return requests.usage_request(endpoint, body)

    def refuses_usage_request(self, message: str) -> bool:
        """Whether `message` refuses what `usage_request` added."""
        return requests.refuses_usage_request(message)

    def usage_hider(self) -> Callable[[Any], bool]:
        """Hides from one stream what only `usage_request` put there."""
        return requests.UsageHider().take_off


DIALECT = OpenAIDialect()
