"""The plain shapes of OpenAI's answers and requests, read in one go: every count said and none in doubt.

What is not plain is left to the general reader (`tokenmeter.providers.openai.bodies`), which says the same of what is:
tests/properties hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenmeter.call import PlainRequest
from tokenmeter.providers.base import Plain, PlainReader
from tokenmeter.providers.openai.extras import own_tools
from tokenmeter.providers.openai.requests import chat_limit, is_agent, response_limit
from tokenmeter.providers.prompts import are_functions, measure_plain, named
from tokenmeter.providers.wire import JSON, LONGEST_NAME, MOST, is_array, is_object

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


# -- requests

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
    return _read_request(body, chat_limit)


def read_response_request(body: JSON) -> PlainRequest | None:
    """A request for a response to plain texts."""
    return _read_request(body, response_limit)


def _read_request(body: JSON, limit: Callable[[JSON], int | None]) -> PlainRequest | None:
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
    choices = 1 if many is None else max(many, 1)
    tier = tier and named(tier)
    return PlainRequest(model, *measured, limit(body), choices, bool(get("stream")), tier)


@lru_cache(maxsize=256)
def _is_ordinary(model: str) -> bool:
    """Whether this is a model's name, and it asks no other models."""
    return 0 < len(model) <= LONGEST_NAME and not is_agent(model)


PLAIN_REQUESTS = {"chat.completions": read_chat_request, "responses": read_response_request}
