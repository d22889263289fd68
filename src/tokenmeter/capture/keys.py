"""Which key a request leaves with, where the SDK asks a function of its user's for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

__all__ = ["key_in"]

_BEARER = "bearer "
_KEY_HEADERS = frozenset({"api-key", "x-api-key"})


def key_in(headers: Any) -> str | None:
    """The key or token that request headers carry; None for none, or for a signature.

    Args:
        headers: Of a built request, or of a request's options, where values may also say that a header is left out.
    """
    if not isinstance(headers, Mapping):
        return None
    found: str | None = None
    for name, value in cast("Mapping[str, Any]", headers).items():
        if not isinstance(value, str):
            continue
        if name.lower() == "authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip() or None
        if name.lower() in _KEY_HEADERS:
            found = value or found
    return found
