"""Usage objects: what every format of them is read into, and which format one is in, told by its own keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenmeter.providers import registry
from tokenmeter.providers.wire import JSON, section
from tokenmeter.usage import Quantity, Usage

__all__ = ["MODALITIES", "NO_FLAGS", "Reading", "Shape", "has_unknown", "is_usage", "put", "read_usage", "usage_of"]

NO_FLAGS: frozenset[str] = frozenset()
#: What tokens are of, if not text.
MODALITIES = ("audio", "image", "video")


@dataclass(frozen=True, slots=True)
class Reading:
    """A usage object in disjoint classes.

    A count that contradicts the total it should be inside of is kept as stated and flagged; the rest is then 0, so that
    no class is ever negative and nothing is clamped in silence.

    Attributes:
        usage: The classes.
        prompt_tokens: The prompt's size with everything cached in it; None when it is a sum over several prompts.
        flags: Doubts.
    """

    usage: Usage
    prompt_tokens: int | None = None
    flags: frozenset[str] = NO_FLAGS


@dataclass(frozen=True, slots=True)
class Shape:
    """One format of usage objects.

    Attributes:
        read: Reads one; raises `MalformedError` when a count is no number.
        own: Keys that only this format has.
        shared: Keys that it has as well as others.
        nested: Keys of a body under which it is found, beside ``usage``.
        whole: Whether a body with such a key is a usage object itself; else the key may stand beside one.
    """

    read: Callable[[JSON], Reading]
    own: frozenset[str]
    shared: frozenset[str] = frozenset()
    nested: tuple[str, ...] = ()
    whole: bool = True


def put(quantities: dict[str, Quantity], meter: str, quantity: Quantity) -> None:
    """Add `quantity` to a class; nothing used leaves no class."""
    if quantity:
        quantities[meter] = quantities.get(meter, 0) + quantity


def has_unknown(details: JSON, known: frozenset[str], suffix: str = "_tokens") -> bool:
    """Whether `details` counts something under a name with `suffix` that is not `known`."""
    if known.issuperset(details):
        return False
    return any(value and key.endswith(suffix) and key not in known for key, value in details.items())


# -- formats, told by their keys


@cache
def _usage_keys() -> frozenset[str]:
    return frozenset(key for shape in registry.shapes() if shape.whole for key in shape.own | shape.shared)


@cache
def _nested_keys() -> tuple[str, ...]:
    return ("usage", *(key for shape in registry.shapes() for key in shape.nested))


def is_usage(body: JSON) -> bool:
    """Whether `body` is itself a usage object, of whatever format."""
    return not _usage_keys().isdisjoint(body)


def usage_of(body: JSON) -> JSON:
    """The usage object in `body`, which may be one itself; empty when it has none."""
    return body if is_usage(body) else section(body, *_nested_keys())


def read_usage(usage: JSON) -> Reading | None:
    """Read a usage object by its own keys; None when no familiar one is in it.

    Raises:
        MalformedError: a count is no number.
    """
    known = registry.shapes()
    found = next((shape for shape in known if not shape.own.isdisjoint(usage)), None)
    found = found or next((shape for shape in known if not shape.shared.isdisjoint(usage)), None)
    return None if found is None else found.read(usage)
