"""OpenAI's decisions: answers to questions about an input."""

from __future__ import annotations

from typing import Any, cast

from tokenmeter.testing import tokens
from tokenmeter.testing.context import Context, Served, merged
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, json_reply
from tokenmeter.testing.wire_usage import read_responses, responses_usage
from tokenmeter.usage import Consumption, Usage

__all__ = ["decide"]


def decide(context: Context) -> Served:
    """``POST /decisions``: the first choice and the first level always win."""
    answer, questions = context.answer, cast("list[JSON]", context.need("questions"))
    model = answer.model or context.need("model")
    if answer.meters is not None:
        usage = Usage(dict(answer.meters), answer.reasoning_tokens or 0)
    elif answer.usage is not None:
        usage = read_responses(answer.usage)
    else:
        usage = Usage({"input": tokens.prompt_tokens(context.body), "output": len(questions)})
    wire = answer.usage or responses_usage(usage)
    body = {"model": model, "answers": [_answer(question) for question in questions], "usage": wire}
    part = Consumption(model=model, usage=usage, prompt_tokens=usage.input_tokens)
    return Served(
        reply=json_reply(merged(body, answer.fields)),
        bill=Bill(model=model, consumptions=(part, *answer.also), wire_usage=wire),
    )


def _answer(question: JSON) -> JSON:
    kind = question.get("type")
    found: JSON = {"type": kind}
    match kind:
        case "choice":
            values = [choice["value"] for choice in question["choices"]]
            found |= {"choice": values[0], "confidence": 1.0, "probabilities": _certain("value", values)}
        case "score":
            labels = [level["label"] for level in question["levels"]]
            steps = [{**one, "value": index} for index, one in enumerate(_certain("label", labels))]
            found |= {"score": 0.0, "confidence": 1.0, "probabilities": steps}
        case _:
            found["probability"] = 1.0
    if "name" in question:
        found["name"] = question["name"]
    return found


def _certain(name: str, values: list[Any]) -> list[JSON]:
    return [{name: value, "probability": 1.0 if index == 0 else 0.0} for index, value in enumerate(values)]
