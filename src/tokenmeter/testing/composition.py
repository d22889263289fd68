"""What a text answer consists of before a wire format writes it: as scripted, else made from the request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from tokenmeter.dimensions import CACHE_READ_METERS
from tokenmeter.money import add, total
from tokenmeter.testing.context import Context, ToolCall
from tokenmeter.testing.samples import sample_arguments
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, count, part
from tokenmeter.usage import Consumption, Quantity, Usage
from tokenmeter.values import dataclass

_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
#: The tier that serves a request for another: ``fast`` is OpenAI's newer word for ``priority``.
_SERVED_TIER = {"auto": "default", None: "default", "fast": "priority"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """A text answer.

    Attributes:
        model: Model that answers.
        text: What it says; None for an answer of tool calls only.
        tool_calls: Tools it calls.
        reasoning: What it thinks aloud; None when it does not.
        finish: ``stop``, ``length`` or ``tool_calls``.
        usage: What is billed for it.
        service_tier: OpenAI tier that serves it.
        wire_usage: Scripted usage object to send as it is.
    """

    model: str
    text: str | None
    tool_calls: tuple[ToolCall, ...]
    reasoning: str | None
    finish: str
    usage: Usage
    service_tier: str
    wire_usage: Mapping[str, Any] | None

    def generated(self, share: float) -> int:
        """Output tokens generated when `share` of the text (0 to 1) is out."""
        return round(int(self.usage["output"]) * share)

    def bill(self, response_id: str, wire_usage: Any, *also: Consumption, **context: Any) -> Bill:
        """The bill for it.

        Args:
            response_id: Id of the answer.
            wire_usage: The usage object sent.
            *also: Consumptions of other models or tools in the same answer.
            **context: Attributes of the main `Consumption` (``speed``, ``geo``, ``service_tier``).
        """
        tier = context.pop("service_tier", self.service_tier)
        main = Consumption(
            model=self.model,
            usage=self.usage,
            service_tier=tier,
            prompt_tokens=self.usage.input_tokens,
            **context,
        )
        return Bill(
            model=self.model,
            response_id=response_id,
            consumptions=(main, *also),
            wire_usage=wire_usage,
            service_tier=tier,
        )


def compose(context: Context, read: Callable[[Mapping[str, Any]], Usage], *, choices: int = 1) -> Composition:
    """Make up the answer to a request.

    Args:
        context: The request.
        read: Reads meters from a scripted usage object of this wire format.
        choices: How many answers were asked for; output is billed for each.
    """
    answer, body = context.answer, context.body
    calls = tuple(answer.tool_calls) or _forced_calls(context)
    text, finish = answer.text, "tool_calls" if calls else "stop"
    # A model that must call a tool says nothing beside it.
    if text is None and not calls:
        text = _structured(body) or echo(body)
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), None)
    if answer.text is None and text is not None and limit is not None and count_tokens(text) > limit:
        text, finish = cut_to_tokens(text, limit), "length"
    asked = body.get("service_tier")
    return Composition(
        model=answer.model or body.get("model") or "unknown",
        text=text,
        tool_calls=calls,
        reasoning=answer.reasoning,
        finish=finish,
        usage=_usage_of(context, read, text or "", calls, choices),
        service_tier=answer.service_tier or _SERVED_TIER.get(asked, asked) or "default",
        wire_usage=answer.usage,
    )


def _usage_of(
    context: Context,
    read: Callable[[Mapping[str, Any]], Usage],
    text: str,
    calls: tuple[ToolCall, ...],
    choices: int,
) -> Usage:
    answer = context.answer
    if answer.meters is not None:
        return Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    if answer.usage is not None:
        return read(answer.usage)
    # Reasoning is billed as answer, whether or not its text is shown.
    thought = answer.reasoning_tokens
    if thought is None:
        thought = count_tokens(answer.reasoning or "")
    said = count_tokens(text) + sum(count_tokens(name + arguments_text(arguments)) for name, arguments in calls)
    return Usage({"input": prompt_tokens(context.body), "output": (said + thought) * choices}, thought * choices)


def _forced_calls(context: Context) -> tuple[ToolCall, ...]:
    """A call of the tool that the request insists on, with arguments that fit its schema."""
    if context.answer.text is not None:
        return ()
    choice: Any = context.body.get("tool_choice")
    tools = [_tool(tool) for tool in cast("list[JSON]", context.body.get("tools") or [])]
    if choice in {"required", "any"} if isinstance(choice, str) else _kind(choice) == "any":
        wanted = tools[:1]
    elif isinstance(choice, dict):
        named = cast("JSON", choice)
        name = named.get("name") or named.get("function", {}).get("name")
        wanted = [tool for tool in tools if tool[0] == name]
    else:
        wanted = []
    return tuple((name, cast("dict[str, Any]", sample_arguments(schema))) for name, schema in wanted)


def _kind(choice: Any) -> Any:
    return cast("JSON", choice).get("type") if isinstance(choice, dict) else None


def _tool(tool: JSON) -> tuple[str, JSON]:
    inner: JSON = tool.get("function") or tool
    schema: JSON = inner.get("parameters") or inner.get("input_schema") or {"type": "object"}
    return str(inner.get("name") or inner.get("type")), schema


def _structured(body: JSON) -> str | None:
    """An answer in the JSON shape that the request demands, if it does."""
    for outer, inner in (
        ("response_format", None),
        ("text", "format"),
        ("output_config", "format"),
        ("output_format", None),
    ):
        form: Any = body.get(outer)
        if inner is not None:
            form = cast("JSON", form).get(inner) if isinstance(form, dict) else None
        if not isinstance(form, dict):
            continue
        found = cast("JSON", form)
        schema = found.get("schema") or found.get("json_schema", {}).get("schema")
        if schema:
            return json.dumps(sample_arguments(schema))
        if found.get("type") == "json_object":
            return "{}"
    return None


_BYTES_PER_TOKEN = 4
_MEDIA_TOKENS = 85
_MEDIA = frozenset({"image", "image_url", "input_image", "input_audio", "input_file", "file", "document", "audio"})
#: Parts of a request body that are prompt.
_PROMPT = ("system", "instructions", "messages", "input", "prompt", "tools", "functions", "questions", "content")
_EXCERPT = 60


def count_tokens(text: str) -> int:
    """Tokens of `text`: a token for every four UTF-8 bytes begun."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def cut_to_tokens(text: str, tokens: int) -> str:
    """The longest beginning of `text` within `tokens`."""
    return text.encode("utf-8", "ignore")[: tokens * _BYTES_PER_TOKEN].decode("utf-8", "ignore")


def split_words(text: str) -> list[str]:
    """`text` in the pieces a stream sends: words with the space before them."""
    pieces = text.split(" ")
    return [piece if number == 0 else f" {piece}" for number, piece in enumerate(pieces)] if text else []


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of everything in a request body that is prompt; at least 1."""
    return max(1, sum(_tokens(body[name]) for name in _PROMPT if name in body))


def _tokens(value: Any) -> int:
    if isinstance(value, str):
        return count_tokens(value)
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        if mapping.get("type") in _MEDIA:
            return _MEDIA_TOKENS
        return sum(_tokens(part) for part in mapping.values())
    if isinstance(value, list):
        parts = cast("list[object]", value)
        if parts and all(isinstance(part, int) for part in parts):
            return len(parts)  # token ids
        return sum(map(_tokens, parts))
    return 0


def echo(body: Mapping[str, Any]) -> str:
    """The default answer: it repeats the beginning of what was said last."""
    said = _last_text([body[name] for name in ("prompt", "input", "messages") if name in body])
    return f"You said: {said[:_EXCERPT]}" if said else "Hello."


def _last_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        return _last_text(mapping.get("content", mapping.get("text")))
    if isinstance(value, list):
        for part in reversed(cast("list[object]", value)):
            if found := _last_text(part):
                return found
    return ""


def arguments_text(arguments: Mapping[str, Any] | str) -> str:
    """Tool arguments as the JSON text providers send."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


_REALTIME_FRESH = {"text_tokens": "input", "audio_tokens": "input_audio", "image_tokens": "input_image"}
_REALTIME_CACHED = {"text_tokens": "cache_read", "audio_tokens": "cache_read_audio", "image_tokens": "cache_read_image"}


def _cached(usage: Usage) -> int:
    return int(total(usage[meter] for meter in CACHE_READ_METERS))


def chat_usage(usage: Usage) -> JSON:
    """``CompletionUsage``: the prompt includes its cached, written, audio and image tokens."""
    prompt_details: JSON = {"cached_tokens": _cached(usage), "audio_tokens": usage["input_audio"]}
    if written := int(add(usage["cache_write_30m"], usage["cache_write_12h"])):
        prompt_details["cache_write_tokens"] = written
    if usage["input_image"]:
        prompt_details["image_tokens"] = usage["input_image"]
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": prompt_details,
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_output_tokens,
            "audio_tokens": usage["output_audio"],
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def responses_usage(usage: Usage) -> JSON:
    """``ResponseUsage``: input includes cached and written tokens."""
    half_hour, half_day = int(usage["cache_write_30m"]), int(usage["cache_write_12h"])
    details: JSON = {"cached_tokens": _cached(usage), "cache_write_tokens": half_hour + half_day}
    if half_day:
        details["cache_write_tokens_details"] = {"ttl_30m_tokens": half_hour, "ttl_12h_tokens": half_day}
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": details,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
        "total_tokens": usage.total_tokens,
    }


def messages_usage(usage: Usage, *, service_tier: str | None, geo: str | None, speed: str | None) -> JSON:
    """Anthropic's ``Usage``: input excludes what was read from or written to the cache."""
    searches = int(usage["web_searches"])
    wire: JSON = {
        "input_tokens": int(usage["input"]),
        "cache_creation_input_tokens": usage.cache_write_input_tokens,
        "cache_read_input_tokens": _cached(usage),
        "cache_creation": _creation(usage),
        "output_tokens": usage.output_tokens,
        "server_tool_use": {"web_search_requests": searches, "web_fetch_requests": 0} if searches else None,
        "service_tier": service_tier,
        "inference_geo": geo or "global",
    }
    if usage.reasoning_output_tokens:
        wire["output_tokens_details"] = {"thinking_tokens": usage.reasoning_output_tokens}
    if speed:
        wire["speed"] = speed
    return wire


def realtime_usage(usage: Usage) -> JSON:
    """Realtime's usage: what was cached is inside each modality."""
    cached = {name: int(usage[meter]) for name, meter in _REALTIME_CACHED.items()}
    inside = {name: int(usage[meter]) + cached[name] for name, meter in _REALTIME_FRESH.items()}
    return {
        "total_tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "input_token_details": {**inside, "cached_tokens": _cached(usage), "cached_tokens_details": cached},
        "output_token_details": {"text_tokens": int(usage["output"]), "audio_tokens": int(usage["output_audio"])},
    }


def iteration_usage(usage: Usage, *, kind: str, model: str | None) -> JSON:
    """One entry of the beta ``usage.iterations``."""
    wire: JSON = {
        "type": kind,
        "input_tokens": int(usage["input"]),
        "cache_creation_input_tokens": usage.cache_write_input_tokens,
        "cache_read_input_tokens": _cached(usage),
        "cache_creation": _creation(usage),
        "output_tokens": usage.output_tokens,
    }
    if model is not None and kind != "compaction":
        wire["model"] = model
    return wire


def _creation(usage: Usage) -> JSON:
    return {
        "ephemeral_5m_input_tokens": int(usage["cache_write_5m"]),
        "ephemeral_1h_input_tokens": int(usage["cache_write_1h"]),
    }


def _usage(meters: Mapping[str, Quantity], reasoning: int) -> Usage:
    return Usage({meter: quantity for meter, quantity in meters.items() if quantity > 0}, reasoning)


def read_chat(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted ``CompletionUsage``."""
    prompt, completion = part(wire, "prompt_tokens_details"), part(wire, "completion_tokens_details")
    inside = {
        "cache_read": count(prompt, "cached_tokens"),
        "cache_write_30m": count(prompt, "cache_write_tokens"),
        "input_audio": count(prompt, "audio_tokens"),
        "input_image": count(prompt, "image_tokens"),
    }
    spoken = count(completion, "audio_tokens")
    return _usage(
        {
            **inside,
            "input": count(wire, "prompt_tokens") - sum(inside.values()),
            "output": count(wire, "completion_tokens") - spoken,
            "output_audio": spoken,
        },
        count(completion, "reasoning_tokens"),
    )


def read_responses(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted ``ResponseUsage``."""
    details = part(wire, "input_tokens_details")
    cached, written = count(details, "cached_tokens"), count(details, "cache_write_tokens")
    half_day = count(part(details, "cache_write_tokens_details"), "ttl_12h_tokens")
    return _usage(
        {
            "input": count(wire, "input_tokens") - cached - written,
            "cache_read": cached,
            "cache_write_30m": written - half_day,
            "cache_write_12h": half_day,
            "output": count(wire, "output_tokens"),
        },
        count(part(wire, "output_tokens_details"), "reasoning_tokens"),
    )


def read_messages(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted Anthropic ``Usage``; cache writes without a TTL are the 5-minute ones."""
    written = count(wire, "cache_creation_input_tokens")
    creation = part(wire, "cache_creation")
    hour = count(creation, "ephemeral_1h_input_tokens")
    return _usage(
        {
            "input": count(wire, "input_tokens"),
            "cache_read": count(wire, "cache_read_input_tokens"),
            "cache_write_5m": max(written - hour, count(creation, "ephemeral_5m_input_tokens")),
            "cache_write_1h": hour,
            "output": count(wire, "output_tokens"),
            "web_searches": count(part(wire, "server_tool_use"), "web_search_requests"),
        },
        count(part(wire, "output_tokens_details"), "thinking_tokens"),
    )


def read_realtime(wire: Mapping[str, Any]) -> Usage:
    """Meters of a scripted usage of ``response.done``."""
    inside, out = part(wire, "input_token_details"), part(wire, "output_token_details")
    cached = part(inside, "cached_tokens_details")
    meters = {meter: count(cached, name) for name, meter in _REALTIME_CACHED.items()}
    for name, meter in _REALTIME_FRESH.items():
        meters[meter] = count(inside, name) - count(cached, name)
    meters |= {"output": count(out, "text_tokens"), "output_audio": count(out, "audio_tokens")}
    return _usage(meters, 0)
