"""OpenAI's embeddings and moderations."""

from __future__ import annotations

import base64
import hashlib
import math
from array import array
from collections.abc import Iterable
from typing import Any, cast

from tokenmeter.testing import tokens
from tokenmeter.testing.context import Context, Served, merged
from tokenmeter.testing.truth import Bill
from tokenmeter.testing.wire import JSON, json_reply
from tokenmeter.usage import Consumption, Usage

__all__ = ["embeddings", "moderations"]

_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL_DIMENSIONS = 1536
_CATEGORIES = {
    "harassment": ["text"],
    "harassment/threatening": ["text"],
    "hate": ["text"],
    "hate/threatening": ["text"],
    "illicit": ["text"],
    "illicit/violent": ["text"],
    "self-harm": ["text", "image"],
    "self-harm/instructions": ["text", "image"],
    "self-harm/intent": ["text", "image"],
    "sexual": ["text", "image"],
    "sexual/minors": ["text"],
    "violence": ["text", "image"],
    "violence/graphic": ["text", "image"],
}


def embeddings(context: Context) -> Served:
    """``POST /embeddings``: unit vectors that depend on the input alone, as floats or base64."""
    body, answer = context.body, context.answer
    model = answer.model or context.need("model")
    inputs = _inputs(context.need("input"))
    size = body.get("dimensions") or _DIMENSIONS.get(body.get("model", ""), _USUAL_DIMENSIONS)
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(item, size, packed=packed)}
        for index, item in enumerate(inputs)
    ]
    used = (answer.usage or {}).get("prompt_tokens", tokens.prompt_tokens({"input": body["input"]}))
    usage = Usage(dict(answer.meters) if answer.meters is not None else {"input": used})
    wire = answer.usage or {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    whole: JSON = {"object": "list", "data": data, "model": model}
    if not answer.omit_usage:
        whole["usage"] = wire
    part = Consumption(model=model, usage=usage, prompt_tokens=usage.input_tokens)
    bill = Bill(model=model, consumptions=(part, *answer.also), wire_usage=whole.get("usage"))
    return Served(reply=json_reply(merged(whole, answer.fields)), bill=bill)


def _inputs(value: Any) -> list[Any]:
    if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int)):
        return [value]  # one text, or one text as token ids
    return list(cast("Iterable[Any]", value))


def _vector(item: Any, size: int, *, packed: bool) -> list[float] | str:
    raw = hashlib.shake_256(repr(item).encode()).digest(size)
    length = math.sqrt(sum((byte - 127.5) ** 2 for byte in raw))
    vector = array("f", [(byte - 127.5) / length for byte in raw])
    return base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()


def moderations(context: Context) -> Served:
    """``POST /moderations``: nothing is ever flagged, and nothing billed."""
    value = context.need("input")
    texts = value if isinstance(value, list) and all(isinstance(item, str) for item in value) else [value]  # pyright: ignore[reportUnknownVariableType]
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 0.0),
        "category_applied_input_types": _CATEGORIES,
    }
    model = context.answer.model or context.body.get("model") or "omni-moderation-latest"
    body: JSON = {"id": context.new_id("modr-"), "model": model, "results": [result] * len(texts)}  # pyright: ignore[reportUnknownArgumentType]
    return Served(reply=json_reply(body), bill=Bill(model=model, response_id=body["id"]))
