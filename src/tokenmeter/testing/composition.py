"""What a text answer consists of before a wire format writes it: as scripted, else made from the request."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tokenmeter.testing import tokens
from tokenmeter.testing.context import Context
from tokenmeter.testing.script import ToolCall
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON
from tokenmeter.usage import Consumption, Usage

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
    if text is None and not calls:
        text = _structured(body) or tokens.echo(body)
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), None)
    if answer.text is None and text is not None and limit is not None and tokens.count(text) > limit:
        text, finish = tokens.cut(text, limit), "length"
    asked = body.get("service_tier")
    return Composition(
        model=answer.model or body.get("model") or "unknown",
        text=text,
        tool_calls=calls,
        reasoning=answer.reasoning,
        finish=finish,
        usage=_usage(context, read, text or "", calls, choices),
        service_tier=answer.service_tier or _SERVED_TIER.get(asked, asked) or "default",
        wire_usage=answer.usage,
    )


def _usage(
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
    thought = answer.reasoning_tokens
    if thought is None:
        thought = tokens.count(answer.reasoning or "")
    said = tokens.count(text) + sum(tokens.count(name + tokens.as_json(arguments)) for name, arguments in calls)
    return Usage({"input": tokens.prompt_tokens(context.body), "output": (said + thought) * choices}, thought * choices)


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
    return tuple((name, cast("dict[str, Any]", tokens.sample(schema))) for name, schema in wanted)


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
            return json.dumps(tokens.sample(schema))
        if found.get("type") == "json_object":
            return "{}"
    return None
