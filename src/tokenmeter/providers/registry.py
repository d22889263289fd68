"""The providers tokenmeter knows: one room each, in `tokenmeter.providers`, loaded when it is first needed."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, cast

from tokenmeter.providers.prompts import PromptRule
from tokenmeter.providers.wire import JSON, section

if TYPE_CHECKING:
    from tokenmeter.providers.base import Dialect
    from tokenmeter.providers.shapes import Reading, Shape

#: The rooms with a wire format. Where a body would fit several, the first one reads it; the first one's format is also
#: what hosts speak that have no room of their own.
FORMATS = ("openai", "anthropic", "google")
#: All rooms: the last one only adds a usage object of its own, as gateways and logs repeat it.
ROOMS = (*FORMATS, "amazon")


@cache
def dialect(name: str) -> Dialect:
    """The wire format of the room of `name`.

    Raises:
        LookupError: the room has no wire format of its own.
    """
    if name not in FORMATS:
        raise LookupError(f"{name} has no wire format of its own")
    return cast("Dialect", import_module(f"tokenmeter.providers.{name}.dialect").DIALECT)


def dialect_for(provider: str, endpoint: str) -> Dialect:
    """The wire format that `endpoint` of `provider` speaks: the endpoint's own, else the provider's.

    Where several have an endpoint of that name, the provider's is meant.
    """
    known = [dialect(name) for name in FORMATS]
    fits = [found for found in known if endpoint.startswith(found.endpoints)]
    return next((found for found in fits or known if found.name == provider), (fits or known)[0])


@cache
def shapes() -> tuple[Shape, ...]:
    """The usage objects of all rooms. Of no room is more than these loaded."""
    return tuple(shape for name in ROOMS for shape in import_module(f"tokenmeter.providers.{name}.usage").SHAPES)


@lru_cache(maxsize=4096)
def prompt_rule(provider: str, model: str | None) -> PromptRule:
    """What a model adds to a prompt at most, whoever serves it: as the room of its family says."""
    rules = _prompt_rules()
    name = model or ""
    found = next((rule for _, rule in rules if rule.word and rule.word in name), None)
    found = found or next((rule for room, rule in rules if not rule.word and room == provider), None)
    return found or PromptRule("")


@cache
def _prompt_rules() -> tuple[tuple[str, PromptRule], ...]:
    return tuple(
        (name, rule) for name in FORMATS for rule in import_module(f"tokenmeter.providers.{name}.requests").PROMPT_RULES
    )


# -- usage objects of whatever format, told by their keys


@cache
def _usage_keys() -> frozenset[str]:
    return frozenset(key for shape in shapes() if shape.whole for key in shape.own | shape.shared)


@cache
def _nested_keys() -> tuple[str, ...]:
    return ("usage", *(key for shape in shapes() for key in shape.nested))


def is_usage(body: JSON) -> bool:
    """Whether `body` is itself a usage object, of whatever format."""
    return not _usage_keys().isdisjoint(body)


def usage_of(body: JSON) -> JSON:
    """The usage object in `body`, which may be one itself; empty when it has none."""
    if found := section(body, "usage"):
        return found
    return body if is_usage(body) else section(body, *_nested_keys())


def read_usage(usage: JSON) -> Reading | None:
    """Read a usage object by its own keys; None when no familiar one is in it."""
    known = shapes()
    found = next((shape for shape in known if not shape.own.isdisjoint(usage)), None)
    found = found or next((shape for shape in known if not shape.shared.isdisjoint(usage)), None)
    return None if found is None else found.read(usage)
