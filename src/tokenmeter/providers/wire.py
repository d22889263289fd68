"""Values as they come off the wire: SDK objects to plain JSON, counts to int, amounts to exact Decimal."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, NamedTuple, TypeGuard, cast

#: A decoded JSON object.
JSON = Mapping[str, Any]

_NOTHING: dict[str, Any] = {}
#: No bill counts more: the largest batch is some 10^11 tokens. A higher number is a fault of whoever sent it.
MOST = 10**12
#: Characters of the longest name that is kept: a hostile host's would be stored with every entry.
LONGEST_NAME = 512
#: Characters of the longest number that is looked at.
_LONGEST = 64


def to_wire(value: Any) -> Any:
    """`value` as plain JSON values, without importing the SDK it comes from.

    Takes what an SDK returns (pydantic models of either major version, dataclasses, TypedDicts), decoded JSON, or JSON
    text. Fields nobody set stay out; fields the SDK does not know (a compatible host's ``cost``) stay in. What is
    nested deeper than Python reaches, or holds itself, is None.
    """
    if isinstance(value, str | bytes | bytearray):
        return _from_text(value)
    try:
        return _json_value(value)
    except RecursionError:
        return None


def _from_text(value: str | bytes | bytearray) -> Any:
    try:
        # Parsed as Decimal, so that a cost keeps every digit that was written.
        return json.loads(value, parse_float=Decimal)
    except (ValueError, RecursionError):
        return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")


def _json_value(value: Any) -> Any:  # noqa: PLR0911 - one line per kind of value reads best
    if value is None or isinstance(value, str | bool | int | float | Decimal):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        return _object(cast("Any", value))
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_value(item) for item in cast("Any", value)]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Enum):
        return _json_value(value.value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _json_value(dump(mode="python", by_alias=True, exclude_unset=True, warnings=False))
    dump = getattr(value, "dict", None)
    if callable(dump):  # pydantic 1, which old SDK versions may run on
        return _json_value(dump(by_alias=True, exclude_unset=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _json_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def _object(value: Mapping[Any, Any]) -> Any:
    framed = _in_frame(value)
    return {str(key): _json_value(item) for key, item in value.items()} if framed is None else _from_text(framed)


def _in_frame(value: Mapping[Any, Any]) -> bytes | None:
    """The JSON in a frame of Amazon Bedrock's streams, as boto3 hands it out or a log has it; None where it is none.

    Source: Amazon Bedrock API reference, InvokeModelWithResponseStream, PayloadPart.
    """
    part: Any = value.get("chunk") if len(value) == 1 else None
    held: Any = cast("Any", part).get("bytes") if isinstance(part, Mapping) else None
    if isinstance(held, str):
        try:
            return base64.b64decode(held, validate=True)
        except ValueError:
            return None
    return bytes(held) if isinstance(held, bytes | bytearray) else None


#: `type` of any value: where `is_object` would be a call too many, and a type checker would know its answer by half.
type_of: Callable[[Any], object] = type


def is_object(value: Any) -> TypeGuard[JSON]:
    """Whether `value` is a decoded JSON object."""
    return isinstance(value, dict)


def is_array(value: Any) -> TypeGuard[list[Any]]:
    """Whether `value` is a decoded JSON array."""
    return isinstance(value, list)


def instant(body: JSON, name: str) -> datetime | None:
    """When something was, said in ISO text with a zone or in seconds since the epoch; None where it is not said."""
    value = body.get(name)
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
        else:
            found = datetime.fromtimestamp(cast("int", value), UTC)
    except (OSError, OverflowError, TypeError, ValueError):
        return None
    return None if found.tzinfo is None else found.astimezone(UTC)


def section(body: JSON, *names: str) -> JSON:
    """The first of `names` that holds a JSON object in `body`; an empty one when none does."""
    for name in names:
        value = body.get(name)
        if isinstance(value, dict):
            return cast("JSON", value)
    return _NOTHING


def part(usage: JSON, *names: str, flags: set[str]) -> JSON:
    """As `section`, of a usage object: what stands where an object should is no count, flagged ``malformed_count``."""
    for name in names:
        value = usage.get(name)
        if is_object(value):
            return value
        if value:  # an empty list or text says nothing, as null does
            flags.add("malformed_count")
    return _NOTHING


def entries(usage: JSON, name: str, *, flags: set[str]) -> list[JSON]:
    """As `members`, of a usage object: what is no list of objects is flagged ``malformed_count``."""
    value, found = usage.get(name), members(usage, name)
    if value and (not is_array(value) or len(found) < len(value)):
        flags.add("malformed_count")
    return found


def members(body: JSON, name: str) -> list[JSON]:
    """The JSON objects in the list `body[name]`; empty when there is none."""
    value = body.get(name)
    return [item for item in value if is_object(item)] if is_array(value) else []


def text(body: JSON, name: str) -> str | None:
    """`body[name]` when it is a non-empty name or word; a longer one than any real name is shortened."""
    value = body.get(name)
    if not isinstance(value, str) or not value:
        return None
    return value if len(value) <= LONGEST_NAME else shortened(value)


def shortened(value: str) -> str:
    """The beginning of a name that no provider would give."""
    return f"{value[: LONGEST_NAME - 1]}…"


def latest(before: JSON, after: JSON) -> dict[str, Any]:
    """What is known of a usage object that a stream repeats: its counts are cumulative, so the last word stands.

    Nulls say nothing, and no more does a 0 after a count: what was used stays used.
    """
    merged = dict(before)
    for key, value in after.items():
        known = merged.get(key)
        if is_object(value) and is_object(known):
            merged[key] = latest(known, value)
        elif value is not None and (known is None or not _is_zero(value)):
            merged[key] = value
    return merged


def _is_zero(value: Any) -> bool:
    return _number(value) == 0


def count(body: JSON, *names: str, flags: set[str]) -> int | None:
    """The first of `names` that holds a count in `body`; None when none does, so that nobody said it.

    A zero beside a count under another of the names is a field that the host does not fill. An integer in another dress
    (``"900"``, ``900.0``) is that integer, flagged ``nonstandard_count``. What is no count (a negative number, a
    fraction, a boolean, more than one bill can hold) is not said, flagged ``malformed_count``.
    """
    zero: int | None = None
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if type(value) is int and 0 <= value <= MOST:
            if value:
                return value
            zero = 0
            continue
        number = _number(value)
        if number is not None and number == int(number):
            flags.add("nonstandard_count")
            if number:
                return int(number)
            zero = 0
        else:
            flags.add("malformed_count")
    return zero


def amount(body: JSON, *names: str, flags: set[str]) -> Decimal | None:
    """The first of `names` that holds a number (or decimal text) of zero or more in `body`, exactly as it was written.

    None when none does; what is no such number is flagged ``malformed_amount``.
    """
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if (number := _number(value)) is not None:
            return number
        flags.add("malformed_amount")
    return None


def _number(value: Any) -> Decimal | None:
    """`value` as a number between zero and what one bill can hold; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    if isinstance(value, str) and len(value) > _LONGEST:
        return None
    try:
        # A binary fraction's shortest text is what the provider wrote.
        number = Decimal(value if isinstance(value, int) else str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 <= number <= MOST else None


def utf8_length(value: str) -> int:
    """Length of `value` in UTF-8 bytes; lone surrogates count as three."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


#: Where in the parts of an answer stands what a model wrote, not what it is called or where it lies.
_WRITTEN = ("text", "thinking", "content", "summary", "transcript", "refusal", "arguments", "input", "name", "code")


def written_bytes(*values: Any) -> int:
    """UTF-8 bytes of what a model wrote into `values`: texts, parts with text in them, lists of either."""
    size, stack = 0, list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            size += utf8_length(value)
        elif is_array(value):
            stack += value
        elif is_object(value):
            stack += map(value.get, _WRITTEN)
    return size


class BodyError(NamedTuple):
    """What an error body says.

    Attributes:
        kind: Its type or code, as it calls it; ``"error"`` where it does not.
        answered: Whether there is something of an answer beside it, which may be billed.
    """

    kind: str
    answered: bool


#: What error bodies are made of, over all hosts, proxies and frameworks in front of them.
_OF_ERRORS = frozenset(
    {
        "code",
        "detail",
        "details",
        "documentation_url",
        "error",
        "error_code",
        "error_message",
        "error_msg",
        "error_type",
        "errors",
        "extensions",
        "instance",
        "loc",
        "message",
        "meta",
        "msg",
        "object",
        "param",
        "path",
        "reason",
        "requestId",
        "request_id",
        "service",
        "status",
        "statusCode",
        "status_code",
        "success",
        "timestamp",
        "title",
        "trace_id",
        "type",
    }
)
_TELLING = ("detail", "message", "msg", "error_message", "error_msg", "title", "statusCode")
_KINDS = ("code", "type", "status", "error_code", "error_type", "statusCode", "status_code")
_ANSWERS = ("choices", "content", "output", "candidates", "data", "results", "embeddings", "text")
_HTTP_ERROR = 400
_EXCEPTION = "Exception"
#: Under which an answer has all events of its stream in a list.
_EVENTS = ("stream", "body")


def error_in(body: Any) -> BodyError | None:
    """What went wrong, as an error body says it; None for every other body.

    Args:
        body: Decoded JSON, whoever wrote it: a provider, a gateway, a proxy.
    """
    if is_array(body):
        found = [error_in(one) for one in body]
        return found[0] if found and all(found) else None
    if not is_object(body):
        return None
    if "custom_id" in body and not body.get("error"):
        return _error_of_line(body)
    status, inner = body.get("status_code", body.get("status")), section(body, "body")
    if inner and type(status) is int:  # an answer with its HTTP status
        return (error_in(inner) or BodyError(str(status), answered=False)) if status >= _HTTP_ERROR else error_in(inner)
    refused = section(body, "base_resp").get("status_code")  # as MiniMax says it of every answer: 0 is none
    said = body.get("error") or body.get("errors") or (refused and {"code": refused})
    marked = bool(said) or "error" in (body.get("type"), body.get("object"))  # a tuple: either may be what has no hash
    if not marked and not (body.keys() <= _OF_ERRORS and any(isinstance(body.get(name), str) for name in _TELLING)):
        return _error_of_event(body)
    told = said[0] if is_array(said) and said else said
    answered = any(body.get(name) for name in _ANSWERS)
    return BodyError(_kind(told if is_object(told) else {}, body), answered)


def kind_of_error(event: JSON) -> str:
    """What an event of a stream that says that it failed calls it."""
    error = error_in(event)
    return error.kind if error else "error"


def _error_of_event(event: JSON) -> BodyError | None:
    """What went wrong, as an event says it that is called by it, or that ends a message with it."""
    delta = section(event, "delta")
    if delta.get("error"):
        return BodyError(text(delta, "finish_reason") or "error", answered=False)
    name = next(iter(event)) if len(event) == 1 else ""
    return BodyError(name, answered=False) if name.endswith(_EXCEPTION) and section(event, name) else None


def events_in(body: Any) -> list[Any]:
    """The events of a stream that was read into a list where its answer had the stream; none of any other body."""
    for name in _EVENTS if is_object(body) else ():
        found = body.get(name)
        if is_array(found) and found and all(map(is_object, found)):
            return found
    return []


def _error_of_line(line: JSON) -> BodyError | None:
    """What went wrong with a request of a batch."""
    result = section(line, "result")
    kind = text(result, "type")
    if kind is None or kind == "succeeded":
        return error_in(section(line, "response"))
    return error_in(result.get("error")) or BodyError(kind, answered=False)


def _kind(told: JSON, body: JSON) -> str:
    for source in (told, body):
        for name in _KINDS:
            value = source.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool) and value not in {"", "error"}:
                return str(value)
    return "error"
