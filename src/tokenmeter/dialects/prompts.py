"""The size of a prompt, found without keeping or copying it: this runs before every call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from tokenmeter.dialects.wire import to_wire, utf8_length

__all__ = ["PromptSize", "measure"]

#: Parts whose payload is a picture: counted in images, never as text.
_IMAGE_TYPES = frozenset({"image", "image_url", "input_image", "computer_screenshot", "image_generation_call"})
#: Keys that name content which lies elsewhere, so that its size is not known here.
_REMOTE_KEYS = frozenset({"file_id", "file_url", "file_ids"})
_PUNCTUATION = 4  # quotes, colon and comma around a key or a value


@dataclass(slots=True)
class PromptSize:
    """Size of what is sent as prompt.

    Attributes:
        size: UTF-8 bytes of all text, with the JSON around it: no fewer than its tokens.
        images: Pictures, whose tokens their bytes do not bound.
        remote: Whether files are named that lie elsewhere.
    """

    size: int = 0
    images: int = 0
    remote: bool = False


def measure(parts: Iterable[Any]) -> PromptSize:
    """Measure `parts`, each any JSON value (SDK objects are turned into JSON first)."""
    result = PromptSize()
    stack: list[Any] = list(parts)
    pop, push = stack.pop, stack.append
    size = 0
    while stack:
        value = pop()
        kind = type(value)
        if kind is str:
            size += (len(value) if value.isascii() else utf8_length(value)) + _PUNCTUATION
        elif kind is dict:
            part = value.get("type")
            if part is not None and type(part) is str and part in _IMAGE_TYPES:
                result.images += 1
                continue
            for key, item in value.items():
                size += len(key) + _PUNCTUATION
                if type(item) is str:
                    size += (len(item) if item.isascii() else utf8_length(item)) + _PUNCTUATION
                    if key in _REMOTE_KEYS:
                        result.remote = True
                elif item is not None:
                    push(item)
            if part in {"url", "file", "document_url"} and "source" not in value:
                result.remote = result.remote or "url" in value or "file_id" in value
        elif kind is list or kind is tuple:
            if value and type(value[0]) is int:
                size += _PUNCTUATION * len(value)  # a prompt of token ids
            else:
                stack.extend(value)
        elif kind is int or kind is float or kind is bool:
            size += len(repr(value)) + _PUNCTUATION
        elif value is not None:
            size += _other(value, stack)
    result.size = size
    return result


def _other(value: Any, stack: list[Any]) -> int:
    """Anything else: mappings and SDK objects are unfolded; what cannot be looked into counts nothing."""
    if isinstance(value, str):
        return utf8_length(value) + _PUNCTUATION
    if isinstance(value, Mapping):
        stack.append(dict(cast("Mapping[str, Any]", value)))
        return 0
    if isinstance(value, int | float):
        return len(repr(value)) + _PUNCTUATION
    plain = to_wire(value) if hasattr(value, "model_dump") or hasattr(value, "dict") else None
    if isinstance(plain, dict | list):
        stack.append(plain)
    return 0
