"""What every format of a usage object is read into: disjoint classes. And by what keys a format is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace

from tokenmeter.money import add
from tokenmeter.providers.wire import JSON
from tokenmeter.usage import Quantity, Usage
from tokenmeter.values import dataclass

NO_FLAGS: frozenset[str] = frozenset()
#: The sides of an exchange that a usage object should state: what went in, and what came out.
BOTH_SIDES = frozenset({"input", "output"})
INPUT_SIDE = frozenset({"input"})
#: What tokens are of, if not text.
MODALITIES = ("audio", "image", "video")


@dataclass(frozen=True, slots=True)
class Reading:
    """A usage object in disjoint classes.

    Cached tokens are a part of their prompt, which bounds them: what is stated beyond it is flagged and not billed.
    Other parts that contradict their total are kept as stated and flagged; the rest is then 0, so that no class is
    negative.

    Attributes:
        usage: The classes.
        prompt_tokens: The prompt's size with everything cached in it; None when it is a sum over several prompts.
        flags: Doubts.
        unsaid: The sides that it does not state: they are unknown, not zero.
        total: What both sides come to, where that is all that is stated of them.
    """

    usage: Usage
    prompt_tokens: int | None = None
    flags: frozenset[str] = NO_FLAGS
    unsaid: frozenset[str] = NO_FLAGS
    total: int | None = None


#: There is no usage object, or none that says anything.
NOTHING_SAID = Reading(Usage(), unsaid=BOTH_SIDES)


def said_by(
    usage: Usage, prompt: int | None, flags: set[str], totals: Mapping[str, int | None], whole: int | None = None
) -> Reading:
    """The reading of a usage object whose `totals`, by side, may be None where it does not state them.

    A part that was no number is as good as left out: what the rest makes of it is an estimate.

    Args:
        usage: The classes.
        prompt: The prompt's size.
        flags: Doubts.
        totals: What each side comes to.
        whole: What both come to, where that is stated.
    """
    if None in totals.values():
        unsaid = frozenset(side for side, total in totals.items() if total is None)
        return Reading(usage, prompt, frozenset(flags), unsaid, whole if unsaid == BOTH_SIDES else None)
    if "malformed_count" in flags:
        flags.add("estimated")
    return Reading(usage, prompt, frozenset(flags) if flags else NO_FLAGS)


def worked(reading: Reading, *, answered: bool) -> Reading:
    """`reading` of work that nobody measured beside it: its sides of 0 that cannot be are not said.

    Args:
        reading: What the usage object says.
        answered: Whether a model has answered, for which it takes a prompt and an answer; else neither may have come.
    """
    used = reading.usage
    unsaid = reading.unsaid
    if not used.input_tokens and (answered or used.output_tokens):
        unsaid |= {"input"}
    if not used.output_tokens and answered:
        unsaid |= {"output"}
    return reading if unsaid == reading.unsaid else replace(reading, unsaid=unsaid)


@dataclass(frozen=True, slots=True)
class Shape:
    """One format of usage objects.

    Attributes:
        read: Reads one.
        own: Keys that only this format has.
        shared: Keys that it has as well as others.
        nested: Keys of a body under which it is found, beside ``usage``.
        whole: Whether a body with such a key is a usage object itself; else the key may stand beside one.
        beside: Where a body says who it is and what decides its price: ``id``, ``model``, ``speed`` or ``tier`` -> its
            keys, from the outside in.
        last: Where the last event of a stream, which calls itself nothing, says what all of it used: keys, likewise.
    """

    read: Callable[[JSON], Reading]
    own: frozenset[str]
    shared: frozenset[str] = frozenset()
    nested: tuple[str, ...] = ()
    whole: bool = True
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    last: tuple[tuple[str, ...], ...] = ()


def put(quantities: dict[str, Quantity], meter: str, quantity: Quantity) -> None:
    """Add `quantity` to a class; nothing used leaves no class."""
    if quantity:
        quantities[meter] = add(quantities.get(meter, 0), quantity)


def split_input(
    quantities: dict[str, Quantity],
    prompt: int | None,
    flags: set[str],
    *,
    cached: int,
    parts: Mapping[str, int],
    hits: Mapping[str, int] | None,
) -> None:
    """Divide a prompt, whose size includes everything, into fresh and cached tokens, each by modality.

    Args:
        quantities: Classes; what they hold already is a part of the prompt (written to a cache).
        prompt: Its size; None where nobody said it, so that it bounds nothing.
        flags: Doubts are added here.
        cached: How much of it a cache served.
        parts: What of it is no text, by modality.
        hits: What of that the cache served, and of ``text`` where that is stated; None where nobody breaks it down.
    """
    rest = (prompt or 0) - (sum(map(int, quantities.values())) if quantities else 0)
    if parts or hits is not None:
        shares = _assumed_hits(cached, rest, parts, flags) if hits is None else _stated_hits(cached, hits, flags)
        for name in MODALITIES:
            size, hit = parts.get(name, 0), shares.get(name, 0)
            if hit > size:
                flags.add("cached_exceeds_input")
            put(quantities, f"input_{name}", max(size - hit, 0))
            put(quantities, f"cache_read_{name}", hit if prompt is None else min(hit, size))
            rest -= size
        cached = shares["text"]
    if cached > rest and prompt is not None:
        flags.add("cached_exceeds_input" if cached else "input_parts_exceed_total")
    rest = max(rest, 0)
    put(quantities, "input", max(rest - cached, 0))
    put(quantities, "cache_read", cached if prompt is None else min(cached, rest))


def _stated_hits(cached: int, hits: Mapping[str, int], flags: set[str]) -> dict[str, int]:
    """Cached tokens by modality, as the wire breaks them down; the rest is text."""
    rest = cached - sum(size for name, size in hits.items() if name != "text")
    stated = hits.get("text")
    if stated is not None and cached and stated != rest:
        flags.add("cached_split_mismatch")
    return {**hits, "text": max(rest, 0) if stated is None else max(stated, rest)}


def _assumed_hits(cached: int, rest: int, parts: Mapping[str, int], flags: set[str]) -> dict[str, int]:
    """Cached tokens by modality where nobody says: text is taken first, then the modalities in order."""
    if cached:
        flags.add("cached_modality_assumed")
    hits = {"text": min(cached, max(rest - sum(parts.values()), 0))}
    left = cached - hits["text"]
    for name, size in parts.items():
        hits[name] = min(left, size)
        left -= hits[name]
    hits["text"] += left
    return hits


def check_parts(
    prompt: int | None, parts: Mapping[str, int], words: int | None, flags: set[str], *, beside: int = 0
) -> None:
    """Flag a prompt whose breakdown by modality states its text beside others, and does not make it up.

    Some gateways leave out what is `beside` it: what a cache served or took.
    """
    if prompt and words and parts and prompt - words - sum(parts.values()) not in {0, beside}:
        flags.add("input_split_mismatch")


def split_output(
    quantities: dict[str, Quantity],
    answer: int,
    parts: Mapping[str, int],
    flags: set[str],
    *,
    meter: str = "output",
    words: int | None = None,
) -> None:
    """Divide an answer, whose size includes everything, by modality.

    Args:
        quantities: Classes.
        answer: Its size.
        parts: What of it is no text, by modality.
        flags: Doubts are added here.
        meter: Class of what no part claims.
        words: What of it is text, where that is not what is left.
    """
    rest = answer
    for name, part in parts.items():
        put(quantities, f"output_{name}", part)
        rest -= part
    if words is not None:
        put(quantities, "output", words)
        rest -= words
    if rest < 0:
        flags.add("output_parts_exceed_total")
    put(quantities, meter, max(rest, 0))


def has_unknown(details: JSON, known: frozenset[str], suffix: str = "_tokens") -> bool:
    """Whether `details` counts something under a name with `suffix` that is not `known`."""
    if known.issuperset(details):
        return False
    return any(
        value and not isinstance(value, bool | Mapping) and key.endswith(suffix) and key not in known
        for key, value in details.items()
    )


#: Cache writes of the usual lifetime, and of the one that a request may ask for instead.
_LONGER = {("cache_write_5m", "1h"): "cache_write_1h", ("cache_write_30m", "12h"): "cache_write_12h"}


def lasting(write_meter: str, ttl: str | None, flags: set[str]) -> str:
    """The class of cache writes of which no lifetime is stated, where the request asked for `ttl`."""
    if ttl == "several":
        flags.add("cache_ttl_assumed")
    return _LONGER.get((write_meter, ttl or ""), write_meter)
