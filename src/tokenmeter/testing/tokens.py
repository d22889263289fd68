"""A stable stand-in for tokenizers, and texts and tool arguments made up from a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

_BYTES_PER_TOKEN = 4
_MEDIA_TOKENS = 85
_MEDIA = frozenset({"image", "image_url", "input_image", "input_audio", "input_file", "file", "document", "audio"})
#: Parts of a request body that are prompt.
_PROMPT = ("system", "instructions", "messages", "input", "prompt", "tools", "functions", "questions", "content")
_EXCERPT = 60


def count(text: str) -> int:
    """Tokens of `text`: a token for every four UTF-8 bytes begun."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def cut(text: str, tokens: int) -> str:
    """The longest beginning of `text` within `tokens`."""
    return text.encode("utf-8", "ignore")[: tokens * _BYTES_PER_TOKEN].decode("utf-8", "ignore")


def words(text: str) -> list[str]:
    """`text` in the pieces a stream sends: words with the space before them."""
    pieces = text.split(" ")
    return [piece if number == 0 else f" {piece}" for number, piece in enumerate(pieces)] if text else []


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of everything in a request body that is prompt; at least 1."""
    return max(1, sum(_tokens(body[name]) for name in _PROMPT if name in body))


def _tokens(value: Any) -> int:
    if isinstance(value, str):
        return count(value)
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


def sample(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """The smallest value that fits a JSON schema, for tool arguments and structured answers."""
    top = root or schema
    if reference := schema.get("$ref"):
        return sample(_resolve(cast("str", reference), top), top)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("enum", "examples"):
        if schema.get(name):
            return schema[name][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return sample(schema[name][0], top)
    return _sample_type(schema, top)


def _sample_type(schema: Mapping[str, Any], top: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind if isinstance(kind, str) else cast("list[str]", kind)[0]:
        case "object":
            properties = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties", {}))
            wanted = cast("Iterable[str]", schema.get("required", properties))
            return {name: sample(properties[name], top) for name in wanted if name in properties}
        case "array":
            return [sample(schema.get("items", {}), top) for _ in range(schema.get("minItems", 1))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return "x" * max(schema.get("minLength", 0), 1)


def _resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    node: Any = root  # a pointer may pass through lists
    for name in reference.removeprefix("#").strip("/").split("/"):
        if name:
            node = node[name.replace("~1", "/").replace("~0", "~")]
    return cast("Mapping[str, Any]", node)


def as_json(arguments: Mapping[str, Any] | str) -> str:
    """Tool arguments as the JSON text providers send."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
