"""Values as they come off the wire: SDK objects to plain JSON, counts to int, amounts to exact Decimal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, TypeGuard, cast

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
    text. Fields nobody set stay out; fields the SDK does not know (a compatible host's ``cost``) stay in.
    """
    if isinstance(value, str | bytes | bytearray):
        return _from_text(value)
    return _plain(value)


def _from_text(value: str | bytes | bytearray) -> Any:
    try:
        # Parsed as Decimal, so that a cost keeps every digit that was written.
        return json.loads(value, parse_float=Decimal)
    except (ValueError, RecursionError):
        return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line per kind of value reads best
    if value is None or isinstance(value, str | bool | int | float | Decimal):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Any", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in cast("Any", value)]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Enum):
        return _plain(value.value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _plain(dump(mode="python", by_alias=True, exclude_unset=True, warnings=False))
    dump = getattr(value, "dict", None)
    if callable(dump):  # pydantic 1, which old SDK versions may run on
        return _plain(dump(by_alias=True, exclude_unset=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def is_object(value: Any) -> TypeGuard[JSON]:
    """Whether `value` is a decoded JSON object."""
    return isinstance(value, dict)


def is_array(value: Any) -> TypeGuard[list[Any]]:
    """Whether `value` is a decoded JSON array."""
    return isinstance(value, list)


def section(body: JSON, *names: str) -> JSON:
    """The first of `names` that holds a JSON object in `body`; an empty one when none does."""
    for name in names:
        value = body.get(name)
        if isinstance(value, dict):
            return cast("JSON", value)
    return _NOTHING


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
        elif value is not None and (known is None or value != 0 or value is False):
            merged[key] = value
    return merged


def count(body: JSON, *names: str, flags: set[str]) -> int | None:
    """The first of `names` that holds a count in `body`; None when none does, so that nobody said it.

    An integer in another dress (``"900"``, ``900.0``) is that integer, flagged ``nonstandard_count``. What is no count
    (a negative number, a fraction, a boolean, more than one bill can hold) is not said, flagged ``malformed_count``.
    """
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if type(value) is int and 0 <= value <= MOST:
            return value
        number = _number(value)
        if number is not None and number == int(number):
            flags.add("nonstandard_count")
            return int(number)
        flags.add("malformed_count")
    return None


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
