"""Anthropic's room: its wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tokenmeter.call import PlainRequest, RequestFacts
from tokenmeter.providers.anthropic import bodies, requests
from tokenmeter.providers.base import Dialect, Endpoint, Plain, PlainReader, Read, StreamReader
from tokenmeter.providers.context import Context, as_estimate
from tokenmeter.providers.prompts import are_functions, is_unclear, measure_plain, named, read_limit, tokens_of
from tokenmeter.providers.registry import read_usage
from tokenmeter.providers.wire import (
    JSON,
    LONGEST_NAME,
    MOST,
    count,
    is_object,
    kind_of_error,
    latest,
    section,
    text,
    type_of,
    utf8_length,
)
from tokenmeter.usage import Observation

# -- plain answers and requests, read in one go, every count said: the general readers say the same of them

_COUNTS = frozenset({"input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"})
#: Keys that say nothing more when they hold nothing.
_USAGE = _COUNTS | {
    "cache_creation",
    "inference_geo",
    "output_tokens_details",
    "server_tool_use",
    "service_tier",
    "speed",
}
_PLAIN_SPEEDS = (None, "standard")
_PLAIN_GEOGRAPHIES = (None, "global", "not_available")
_WRITTEN = ("cache_creation_input_tokens",)
_BY_SERVER = ("web_search_tool_result", "server_tool_use")


def _says(counts: JSON, names: Iterable[str]) -> bool:
    """Whether any of `counts` is more than nothing, or no count."""
    for name in names:
        value = counts.get(name)
        if value is not None and (type(value) is not int or value):
            return True
    return False


def _thinking(details: Any) -> int | None:
    """Tokens of thinking among the output; None where there is any doubt."""
    if details is None:
        return 0
    if not is_object(details) or not details.keys() <= {"thinking_tokens"}:
        return None
    thinking = details.get("thinking_tokens", 0)
    return thinking if type(thinking) is int and 0 <= thinking <= MOST else None


def read_message(body: JSON) -> Plain | None:
    """A message, or what a stream of one came to."""
    usage, get = body.get("usage"), body.get
    if not is_object(usage) or not _USAGE.issuperset(usage) or get("stop_reason") == "refusal" or get("container"):
        return None
    content: Any = get("content")
    searched = False
    for block in content if type_of(content) is list else ():
        searched = searched or (type_of(block) is dict and block.get("type") in _BY_SERVER)
    fresh, answer = usage.get("input_tokens"), usage.get("output_tokens")
    cached = usage.get("cache_read_input_tokens")
    if cached is None:
        cached = 0
    if type(fresh) is not int or type(answer) is not int or type(cached) is not int:
        return None
    if not (0 <= fresh <= MOST and 0 < answer <= MOST and 0 <= cached <= MOST and fresh + cached):
        return None
    thinking = _thinking(usage.get("output_tokens_details"))
    tier = usage.get("service_tier")
    odd = tier == "batch" or thinking is None or usage.get("speed") not in _PLAIN_SPEEDS or _says(usage, _WRITTEN)
    if odd or searched or usage.get("server_tool_use") or usage.get("inference_geo") not in _PLAIN_GEOGRAPHIES:
        return None
    split = usage.get("cache_creation")
    if split and (not is_object(split) or _says(split, split)):
        return None
    quantities: dict[str, int] = {}
    if fresh:
        quantities["input"] = fresh
    if cached:
        quantities["cache_read"] = cached
    quantities["output"] = answer
    return Plain(get("model"), get("id"), tier, quantities, fresh + cached, thinking or 0, usage)


def _written(usage: JSON) -> int:
    return count(usage, *_WRITTEN, flags=set()) or 0


#: Endpoint -> the ``type`` that a plain answer of it says it is, and its reader.
PLAIN: dict[str, PlainReader] = {"messages": PlainReader("type", "message", read_message)}
_PROMPT = frozenset({"messages", "system", "tools"})


def read_request(body: JSON) -> PlainRequest | None:
    """A request of plain texts."""
    get = body.get
    model = get("model")
    if not requests.PLAIN_FIELDS.issuperset(body) or type(model) is not str or not 0 < len(model) <= LONGEST_NAME:
        return None
    if "tools" in body and not are_functions(body["tools"], (None, "custom")):
        return None
    measured = measure_plain(body, _PROMPT)
    if measured is None:
        return None
    said = get("max_tokens")
    limit = read_limit(said)
    return PlainRequest(
        model,
        *(measured[0], (), limit, 1, bool(get("stream")), named(get("service_tier"))),
        cache_writes="none",
        bare=requests.BARE.issuperset(body),
        unclear_limit=limit is None and is_unclear(said),
    )


PLAIN_REQUESTS = {"messages": read_request}


# -- the dialect


class AnthropicDialect(Dialect):
    """Anthropic's wire format."""

    name = "anthropic"
    bodies = frozenset({"message"})
    beginnings = frozenset({"message_start"})
    pages = frozenset({"first_id", "has_more", "last_id", "next_page"})
    models = ("claude",)
    plain = PLAIN
    plain_requests = PLAIN_REQUESTS
    singular_fields = frozenset({"billing_policy", "speed", "fallbacks", "inference_geo"})
    endpoints = ("messages", "beta.messages", "beta.sessions", "beta.dreams")

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return requests.endpoint(method, path)

    def billed(self) -> Iterable[str]:
        """SDK method paths that are billed when they answer."""
        return requests.ROUTES.billed()

    def named(self, path: str) -> Endpoint:
        """The endpoint of an SDK method path."""
        return requests.ROUTES.named(path) or super().named(path)

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


class MessageStream:
    """Events of one message. Lifetimes of cache writes, tier, speed and geography stay as the start gave them."""

    __slots__ = (
        *("_bytes", "_called", "_content", "_context", "_counted", "_failed", "_message", "_read", "_searches"),
        *("_stop", "_terminal", "_usage"),
    )

    def __init__(self, context: Context, read: Read) -> None:
        self._context = context
        self._read = read
        self._searches: list[JSON] = []
        self._bytes = 0
        self._called: list[JSON] = []  # the first search that code asked for
        self._content = False
        self._counted = False  # the output, that is: the start only holds its place
        self._failed: str | None = None
        self._message: dict[str, Any] = {}
        self._stop: str | None = None
        self._terminal = False
        self._usage: dict[str, Any] = {}

    @property
    def terminal(self) -> bool:
        """Whether the message has ended: its usage is final."""
        return self._terminal

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take an event."""
        delta: Any = event.get("delta")
        if type_of(delta) is not dict or "usage" in event:
            self._take(event)
            return
        words = delta.get("text")
        if words is None:
            words = delta.get("partial_json") or delta.get("thinking")
            if words is None and "usage" in delta:
                self._take(event)
        if type(words) is str:
            self._bytes += len(words) if words.isascii() else utf8_length(words)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "message_delta":
            delta = section(event, "delta")
            self._count(section(event, "usage") or section(delta, "usage"))
            self._stop = text(delta, "stop_reason") or self._stop
            if delta.get("container"):
                self._message["container"] = delta["container"]
            self._terminal = self._terminal or self._stop is not None
        elif kind == "message_start":
            message = section(event, "message")
            self._message = {key: message[key] for key in ("id", "model", "type", "container") if message.get(key)}
            self._usage = latest(self._usage, section(message, "usage"))
        elif kind == "message_stop":
            self._count(section(event, "usage") or section(section(event, "message"), "usage"))
            self._terminal = True
        elif kind == "error":
            self._failed = kind_of_error(event)
        elif kind == "content_block_start":
            block = section(event, "content_block")
            self._content = self._content or block.get("type") != "fallback"
            self._bytes += bodies.content_bytes({"content": [block]})  # deltas follow, or hosts put all of it here
            if not self._called and bodies.is_called_by_code(block):
                self._called = [{"name": block["name"], "caller": block["caller"]}]
            if bodies.is_search(block):
                self._searches.append({"type": block["type"], "content": []})
            elif bodies.is_unknown_tool(block):
                self._searches.append({"type": block["type"], "name": text(block, "name")})

    def _count(self, usage: JSON) -> None:
        """Take counts of the end of a message, which hosts put into several places."""
        stated = usage.get("output_tokens") is not None
        if not self._counted and (stated or (usage and read_usage(usage) is not None)):
            self._counted = True  # a gateway may hand on what its host said in a format of its own
            self._usage.pop("output_tokens", None)
        before = self._usage
        self._usage = latest(before, usage)
        split = section(before, "cache_creation")
        if split and not section(usage, "cache_creation") and _written(usage) > _written(before):
            # The start broke down what the first turn wrote: of what later ones did it does not say that it was none.
            self._usage["cache_creation"] = {lifetime: tokens for lifetime, tokens in split.items() if tokens}

    def body(self) -> Any:
        """The message."""
        if self._failed or not (self._terminal and self._counted and self._content):
            return None
        return {**self._message, "stop_reason": self._stop, "usage": self._usage, **self._shown()}

    def _shown(self) -> dict[str, Any]:
        """What of the content says how the call is billed."""
        if not self._content:
            return {"content": []}
        shown = [*self._called, *self._searches]
        return {"content": shown} if shown else {}

    def observation(self) -> Observation:
        """The final usage; of a stream cut short the input it began with, and an estimate of what was received."""
        usage = dict(self._usage)
        final = self._terminal and self._counted
        if not final:
            stated, received = count(usage, "output_tokens", flags=set()), tokens_of(self._bytes)
            if usage and (stated is None or stated < received):
                usage["output_tokens"] = received
        body = {**self._message, "stop_reason": self._stop, "usage": usage, **self._shown()}
        seen = self._read(body, replace(self._context, received=self._bytes))
        if self._failed:
            seen = replace(seen, error_type=self._failed)
        return seen if final else as_estimate(seen)
