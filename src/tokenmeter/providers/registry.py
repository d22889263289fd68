"""The providers tokenmeter knows: one room each, in `tokenmeter.providers`, loaded when it is first needed."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tokenmeter.providers.base import Dialect, Room
    from tokenmeter.providers.shapes import Shape

__all__ = ["ROOMS", "dialect", "dialect_for", "room", "shapes"]

#: The rooms. Where a body would fit several, the first one reads it; the first one's format is also what hosts speak
#: that have no room of their own.
ROOMS = ("openai", "anthropic", "google", "amazon")


@cache
def room(name: str) -> Room:
    """The room of `name`, one of `ROOMS`."""
    return cast("Room", import_module(f"tokenmeter.providers.{name}").ROOM)


@cache
def dialect(name: str) -> Dialect:
    """The wire format of the room of `name`.

    Raises:
        LookupError: the room has no wire format of its own.
    """
    found = room(name).dialect
    if found is None:
        raise LookupError(f"{name} has no wire format of its own")
    return found


def dialect_for(provider: str, endpoint: str) -> Dialect:
    """The wire format that `endpoint` of `provider` speaks: the endpoint's own, else the provider's."""
    known = [found for name in ROOMS if (found := room(name).dialect) is not None]
    for found in known:
        if endpoint.startswith(found.endpoints):
            return found
    return next((found for found in known if found.name == provider), known[0])


@cache
def shapes() -> tuple[Shape, ...]:
    """The usage objects of all rooms."""
    return tuple(shape for name in ROOMS for shape in room(name).shapes)
