"""OpenAI's room: its wire format, which compatible hosts speak as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenmeter.call import PlainRequest, RequestFacts
from tokenmeter.providers.base import Dialect, Endpoint, Plain, PlainReader, StreamReader
from tokenmeter.providers.context import Context
from tokenmeter.providers.openai import bodies, requests, streams
from tokenmeter.providers.openai.extras import own_tools
from tokenmeter.providers.prompts import are_functions, is_unclear, measure_plain, named
from tokenmeter.providers.wire import JSON, LONGEST_NAME, MOST, is_array, is_object, section, text
from tokenmeter.usage import Observation

#: What stands in the name of a model that does not write -> what it is called for.
_USUAL = (
    *(("embed", "embeddings"), ("moderation", "moderations"), ("tts", "audio.speech")),
    *(("whisper", "audio.transcriptions"), ("transcribe", "audio.transcriptions")),
    *(("image", "images.generate"), ("dall-e", "images.generate"), ("sora", "videos")),
)

# -- plain answers and requests, read in one go, every count said: the general readers say the same of them

#: Keys of a usage object that say nothing more, where they are at all.
_CHAT_USAGE = frozenset(
    {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"}
)
_RESPONSE_USAGE = frozenset(
    {"input_tokens", "output_tokens", "total_tokens", "input_tokens_details", "output_tokens_details"}
)
_EMBEDDING_USAGE = frozenset({"prompt_tokens", "total_tokens"})
#: Parts of a sum that cost what the sum costs.
_INSIDE = frozenset({"reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"})
_NOTHING: frozenset[str] = frozenset()
_INTEGERS = frozenset({int})
#: In the names of models that search the web on every request.
_SEARCHES = "-search-"
#: Output items behind which nothing else is billed.
_PLAIN_ITEMS = ("message", "reasoning", "function_call")


def _inclusive(
    usage: Any, prompt: Any, answer: Any, inputs: Any, outputs: Any
) -> tuple[dict[str, int], int, int] | None:
    """Quantities, prompt and reasoning where totals include their breakdowns; None where there is any doubt."""
    if type(prompt) is not int or type(answer) is not int or not (0 < prompt <= MOST and 0 < answer <= MOST):
        return None
    cached = 0 if inputs is None else _only(inputs, "cached_tokens", _NOTHING)
    reasoning = 0 if outputs is None else _only(outputs, "reasoning_tokens", _INSIDE)
    if cached is None or reasoning is None or cached > prompt or reasoning > answer:
        return None
    total = usage.get("total_tokens")
    if type(total) is not int or total != prompt + answer:
        return None
    if not cached:
        return {"input": prompt, "output": answer}, prompt, reasoning
    if cached == prompt:
        return {"cache_read": cached, "output": answer}, prompt, reasoning
    return {"input": prompt - cached, "cache_read": cached, "output": answer}, prompt, reasoning


def _only(details: Any, name: str, harmless: frozenset[str]) -> int | None:
    """The one part of a sum that counts; None where another one does, or it is no count."""
    if not is_object(details):
        return None
    values, found = details.values(), 0
    if _INTEGERS.issuperset(map(type, values)) and min(values, default=0) >= 0:
        found = int(details.get(name, 0))
        if sum(values) == found <= MOST:
            return found  # nearly always: there is no other part
    for key, value in details.items():
        if value is None:
            continue
        if type(value) is not int or not 0 <= value <= MOST or (value and key != name and key not in harmless):
            return None
        if key == name:
            found = value
    return found


def read_chat(body: JSON) -> Plain | None:
    """A chat completion, or what a stream of one came to."""
    usage, get = body.get("usage"), body.get
    if not is_object(usage) or not _CHAT_USAGE.issuperset(usage) or _SEARCHES in str(get("model")):
        return None
    choices = get("choices")
    for choice in choices if is_array(choices) else ():
        message = choice.get("message") if is_object(choice) else None
        if not is_object(message):
            continue
        if "executed_tools" in message or (choice.get("finish_reason") == "tool_calls" and own_tools(message)):
            return None
    if "usage_breakdown" in body or "web_search" in body:
        return None
    prompt = usage.get("prompt_tokens")
    inputs, outputs = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    found = _inclusive(usage, prompt, usage.get("completion_tokens"), inputs, outputs)
    if found is None:
        return None
    return Plain(get("model"), get("id"), get("service_tier"), *found, usage)


def read_response(body: JSON) -> Plain | None:
    """A response without hosted tools."""
    usage, get = body.get("usage"), body.get
    if not is_object(usage) or not _RESPONSE_USAGE.issuperset(usage) or get("tool_usage") or get("background"):
        return None
    if get("status") == "failed":
        return None
    items = get("output")
    if not is_array(items) or _SEARCHES in str(get("model")):
        return None
    for item in items:
        if not is_object(item) or item.get("type") not in _PLAIN_ITEMS or "svg_usage" in item:
            return None
    prompt = usage.get("input_tokens")
    inputs, outputs = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    found = _inclusive(usage, prompt, usage.get("output_tokens"), inputs, outputs)
    if found is None:
        return None
    return Plain(get("model"), get("id"), get("service_tier"), *found, usage)


def read_embeddings(body: JSON) -> Plain | None:
    """A list of embeddings."""
    usage = body.get("usage")
    if not is_object(usage) or not _EMBEDDING_USAGE.issuperset(usage):
        return None
    prompt = usage.get("prompt_tokens")
    total = usage.get("total_tokens", prompt)
    if type(prompt) is not int or not 0 < prompt <= MOST or type(total) is not int or total != prompt:
        return None
    return Plain(body.get("model"), body.get("id"), body.get("service_tier"), {"input": prompt}, prompt, 0, usage)


#: Endpoint -> the ``object`` that a plain answer of it says it is, and its reader.
PLAIN: dict[str, PlainReader] = {
    "chat.completions": PlainReader("object", "chat.completion", read_chat),
    "responses": PlainReader("object", "response", read_response),
    "embeddings": PlainReader("object", "list", read_embeddings),
}


#: Fields that say nothing of the prompt, or of how much may be answered, beyond what is read here.
_REQUEST = frozenset({
    *("model", "messages", "input", "instructions", "max_tokens", "max_completion_tokens", "max_output_tokens", "n"),
    *("temperature", "top_p", "stream", "stream_options", "stop", "seed", "user", "service_tier", "metadata", "store"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "parallel_tool_calls"),
    *("reasoning", "reasoning_effort", "verbosity", "prompt_cache_key", "safety_identifier", "truncation"),
    *("tools", "tool_choice"),
})  # fmt: skip
_PROMPT = frozenset({"messages", "input", "instructions", "tools"})


def read_chat_request(body: JSON) -> PlainRequest | None:
    """A chat of plain texts."""
    return _read_request(body, requests.CHAT_LIMITS)


def read_response_request(body: JSON) -> PlainRequest | None:
    """A request for a response to plain texts."""
    return _read_request(body, requests.RESPONSE_LIMITS)


def _read_request(body: JSON, limits: Sequence[str]) -> PlainRequest | None:
    get = body.get
    model, many, tier = get("model"), get("n"), get("service_tier")
    if not _REQUEST.issuperset(body) or type(model) is not str or not _is_ordinary(model):
        return None
    if many is not None and type(many) is not int:
        return None
    if "tools" in body and not are_functions(body["tools"], ("function",)):
        return None
    measured = measure_plain(body, _PROMPT)
    if measured is None:
        return None
    choices, said = 1 if many is None else max(many, 1), tuple(map(get, limits))
    longest, tier = requests.read_longest(*said), tier and named(tier)
    unclear = longest is None and said.count(None) < len(said) and is_unclear(*said)
    return PlainRequest(model, *measured, longest, choices, bool(get("stream")), tier, unclear_limit=unclear)


@lru_cache(maxsize=256)
def _is_ordinary(model: str) -> bool:
    """Whether this is a model's name, and it asks no other models."""
    return 0 < len(model) <= LONGEST_NAME and not requests.is_agent(model)


PLAIN_REQUESTS = {"chat.completions": read_chat_request, "responses": read_response_request}


# -- the dialect


class OpenAIDialect(Dialect):
    """OpenAI's wire format, as OpenAI, Azure and every compatible host speak it."""

    name = "openai"
    bodies = frozenset({"chat.completion", "chat.completion.chunk", "response", "text_completion"})
    beginnings = frozenset({
        *("chat.completion.chunk", "image_edit.partial_image", "image_generation.partial_image", "session.created"),
        *("speech.audio.delta", "transcript.text.delta", "transcript.text.segment"),
    })  # fmt: skip
    pages = frozenset({"first_id", "has_more", "last_id"})
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
        """As `Dialect.begins_stream`; a response that is read on from where it broke off begins anywhere, as a run."""
        kind, of_run = text(event, "type") or "", text(event, "event") or ""
        if of_run.startswith("thread."):
            return of_run not in streams.RUN_ENDINGS
        if kind.startswith("response."):
            return kind not in streams.ANSWERS
        # A part of a completion looks like a whole one: parts of one have its id.
        completion = text(event, "object") == "text_completion" and bool(text(event, "id"))
        return completion or super().begins_stream(event)

    def ends_stream(self, event: JSON) -> bool:
        """As `Dialect.ends_stream`."""
        return text(event, "type") in streams.TERMINAL or text(event, "event") in streams.RUN_ENDINGS

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
        return requests.output_cap_field(endpoint, body, provider), tokens

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
