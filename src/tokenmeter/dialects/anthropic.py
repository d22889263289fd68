"""Anthropic's wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it.

Source of all shapes: ``anthropic.types`` and ``anthropic.types.beta``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.dialects import sessions
from tokenmeter.dialects.anthropic_streams import MessageStream
from tokenmeter.dialects.base import Endpoint, StreamReader
from tokenmeter.dialects.context import Context, joined, unknown
from tokenmeter.dialects.familiar import is_usage, read_usage, usage_of
from tokenmeter.dialects.iterations import groups_of
from tokenmeter.dialects.jobs import in_batch
from tokenmeter.dialects.requests import anthropic_facts
from tokenmeter.dialects.routes import anthropic_endpoint
from tokenmeter.dialects.wire import JSON, MalformedError, is_array, is_object, section, text
from tokenmeter.usage import Observation

__all__ = ["AnthropicDialect", "read_anthropic"]

_Reader = Callable[[JSON, Context], Observation]


class AnthropicDialect:
    """Reads Anthropic's format; see `tokenmeter.dialects.base.Dialect`."""

    name = "anthropic"

    def endpoint(self, method: str, path: str) -> Endpoint:
        """The endpoint of an HTTP method and URL path."""
        return anthropic_endpoint(method, path)

    def request_facts(self, endpoint: Endpoint, body: Mapping[str, Any] | None) -> RequestFacts:
        """The facts of a request body."""
        return anthropic_facts(endpoint, body)

    def read(self, body: Any, *, provider: str, endpoint: str, request: RequestFacts) -> Observation:
        """Usage of a whole decoded body."""
        return read_anthropic(body, Context(provider, endpoint, request))

    def stream(self, *, provider: str, endpoint: str, request: RequestFacts) -> StreamReader:
        """A fresh reader for one stream."""
        return MessageStream(Context(provider, endpoint, request), read_anthropic)


def read_anthropic(body: Any, context: Context) -> Observation:
    """Usage of `body`, whatever it is; an unknown shape is flagged ``usage_unknown``."""
    try:
        if is_array(body) and body:
            return joined(read_anthropic(part, context) for part in body)
        if not is_object(body):
            return unknown({}, None, model=context.request.model)
        return _reader(body, context)(body, context)
    except MalformedError:
        named: JSON = body if is_object(body) else {}
        return unknown(named, named.get("usage"), model=context.request.model)


def _reader(body: JSON, context: Context) -> _Reader:
    if "custom_id" in body and "result" in body:
        return batch_line
    kind = body.get("type")
    if kind == "error":
        return _refused
    if isinstance(kind, str) and kind in sessions.BY_TYPE:
        return sessions.BY_TYPE[kind]
    if context.endpoint.startswith("beta.sessions"):
        return sessions.other_event if ".events" in context.endpoint else sessions.session
    if context.endpoint.startswith("beta.dreams"):
        return sessions.dream
    return message


def _refused(_body: JSON, _context: Context) -> Observation:
    """An error in place of an answer."""
    return Observation(billable=False)


def batch_line(body: JSON, context: Context) -> Observation:
    """One result of a message batch: billed when it succeeded, at batch rates; errors and the rest are free."""
    result = section(body, "result")
    if result.get("type") != "succeeded":
        return Observation(response_id=text(body, "custom_id"), billable=False)
    seen = read_anthropic(section(result, "message"), in_batch(context))
    return replace(seen, deduplicate=True, bill_id=text(body, "custom_id"))


def message(body: JSON, context: Context) -> Observation:
    """A message, or the usage object of one."""
    if ".batches" in context.endpoint:
        context = in_batch(context)
    wire = usage_of(body)
    model = text(body, "model")
    if not wire or (not is_usage(wire) and read_usage(wire) is None):
        return unknown(body, body.get("usage"), model=model or context.request.model, deduplicate=True)
    groups, flags = groups_of(wire, model, context)
    refused = body.get("stop_reason") == "refusal" and body.get("content") == []
    return Observation(
        consumptions=groups,
        response_model=model,
        response_id=text(body, "id"),
        service_tier=text(wire, "service_tier"),
        # A refusal before any output is not billed (https://platform.claude.com/docs, "Refusals and fallback").
        flags=flags | {"unbilled_refusal"} if refused else flags,
        raw_usage=wire,
        billable=not refused,
        deduplicate=True,
    )
