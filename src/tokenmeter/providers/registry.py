"""The providers tokenmeter knows: one room each, loaded when it is first needed; and `observe`, which asks them all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from tokenmeter.call import RequestFacts
from tokenmeter.errors import PricingError
from tokenmeter.providers.context import Context, joined
from tokenmeter.providers.hosts import billing_name
from tokenmeter.providers.prompts import PromptRule
from tokenmeter.providers.wire import (
    JSON,
    BodyError,
    error_in,
    events_in,
    is_array,
    is_object,
    members,
    section,
    text,
    to_wire,
)
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.providers.base import Dialect
    from tokenmeter.providers.readings import Reading, Shape


#: The rooms with a wire format. Where a body would fit several, the first one reads it; the first one's format is also
#: what hosts speak that have no room of their own.
FORMATS = ("openai", "anthropic", "google")
#: All rooms: the last three are one file each, which adds a usage object of their own, as gateways and logs repeat it.
ROOMS = (*FORMATS, "amazon", "cohere", "ollama")


#: In the names of what is counted, or of objects of such.
_MEASURE = re.compile(
    r"(?:^|_)(?:tokens?|counts?|units|costs?|usage|cache|details|use|iterations|characters|seconds|duration|pages)(?:_|$)"
    r"|(?:Tokens?|Counts?|Units|Costs?|Usage|Cache|Details|Characters|Seconds|Duration)(?:[A-Z]|$)"
)
#: How names end of what decides a price, or of what is counted, in a word.
_WORDS = re.compile(r"(?:^|_)(?:tier|speed|geo|type|modality|ttl|model|size)$|(?:Tier|Type)$")
_WORD = re.compile(r"[\w.:/@+-]{1,64}")
#: Objects within each other in a usage object.
_DEEPEST = 4


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
    files = [*(f"{name}.usage" for name in FORMATS), *ROOMS[len(FORMATS) :]]
    return tuple(shape for file in files for shape in import_module(f"tokenmeter.providers.{file}").SHAPES)


@lru_cache(maxsize=4096)
def prompt_rule(provider: str, model: str | None) -> PromptRule:
    """What a model adds to a prompt at most, whoever serves it: as the room of its family says."""
    rules = _prompt_rules()
    name = model or ""
    found = next((rule for _, rule in rules if rule.word and _begins(rule.word, name)), None)
    found = found or next((rule for room, rule in rules if not rule.word and room == provider), None)
    return found or PromptRule("")


def _begins(word: str, name: str) -> bool:
    """Whether a model's name begins so, behind its maker's, its cloud's region's or a tuning's."""
    return re.search(rf"(?:^|[/:.@])(?:{word})(?![\w.])", name) is not None


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
    return counts_in(body) if is_usage(body) else section(body, *_nested_keys())


def counts_in(body: JSON) -> JSON:
    """What a body that is a usage object itself says of what was used.

    An answer may stand beside its counts (Llama's and Titan's on Bedrock, Ollama's, a row of somebody's own). Usage
    objects are kept and answers are not, so texts and vectors are left out, and what holds no counts.
    """
    return _only_counts(body, depth=_DEEPEST, measured=True)


def _only_counts(body: JSON, *, depth: int, measured: bool) -> JSON:
    """`body` without texts and vectors.

    Args:
        body: An object of the wire.
        depth: How many objects within each other are looked into.
        measured: Whether it is one of what was used; of another only numbers are kept whose names say that they are.
    """
    kept: dict[str, Any] = {}
    for key, value in body.items():
        measures = _MEASURE.search(key) is not None
        if is_object(value):
            found: Any = _only_counts(value, depth=depth - 1, measured=measures) if depth and measured else None
        elif isinstance(value, list):
            rows = members(body, key) if depth and measured else []
            found = [_only_counts(row, depth=depth - 1, measured=measures) for row in rows]
            found = found if any(found) else None
        elif isinstance(value, str):
            known = measures or (measured and _WORDS.search(key) is not None)
            found = value if known and _WORD.fullmatch(value) else None
        else:
            found = value if measures or measured else None
        if found or found == 0 or (value is None and measured):
            kept[key] = found
    return kept


def read_usage(usage: JSON) -> Reading | None:
    """Read a usage object by its own keys, of which the most decide; None when no familiar one is in it."""
    known = shapes()
    own = max(known, key=lambda shape: len(shape.own & usage.keys()))
    shared = (shape for shape in known if not shape.shared.isdisjoint(usage))
    found = next(shared, None) if own.own.isdisjoint(usage) else own
    return None if found is None else found.read(usage)


def last_events(events: Sequence[Any]) -> list[JSON]:
    """Of streams whose events are in a list whole, those that say what all of it used; none of other lists."""
    ways = [way for shape in shapes() for way in shape.last]
    parts = [event for event in events if is_object(event)]
    found = [event for event in parts if any(_found_at(event, way) for way in ways)]
    whole = bool(found) and found[-1] is parts[-1] and not any(section(part, "usage") for part in parts)
    return found if whole else []


def _found_at(body: JSON, way: Iterable[str]) -> JSON:
    for key in way:
        body = section(body, key)
    return body


def split_failure(events: list[Any]) -> tuple[list[Any], BodyError | None]:
    """What came of a stream before it failed, and how it did; all of it and None where its last event is no error.

    An event that says what was used beside what went wrong is kept.
    """
    parts = [one for one in events if is_object(one)]
    failure = error_in(parts[-1]) if parts else None
    if failure is None:
        return events, None
    rest = [one for one in parts if error_in(one) is None or _says_usage(one)]
    return (rest, failure._replace(answered=True)) if rest else (events, None)


def _says_usage(event: JSON) -> bool:
    return bool(section(event, "response", *_nested_keys()) or section(section(event, "delta"), "usage"))


def told_beside(body: JSON) -> dict[str, str]:
    """What a body says beside its usage, in the words of `Shape.beside`."""
    found: dict[str, str] = {}
    for name, (*way, last) in _beside():
        if (value := text(_found_at(body, way), last)) is not None:
            found[name] = value
    return found


@cache
def _beside() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(item for shape in shapes() for item in shape.beside.items())


#: HTTP verbs' method names: what is priced is the resource, whichever way its body was come by.
_METHODS = (".count", ".create", ".parse", ".poll", ".retrieve", ".stream")


def observe(
    body: Any,
    *,
    provider: str,
    endpoint: str,
    model: str | None = None,
    processing: str | None = None,
    region: str | None = None,
    service_tier: str | None = None,
    cost_unit: str | None = None,
    request: RequestFacts | None = None,
    final_only: bool = False,
) -> Observation:
    """Read a body that is not on its way any more.

    Args:
        body: An SDK object, decoded JSON or JSON text: a whole response, a bare usage object, a batch, a line of its
            output, an event, all events of a stream, an image, a transcription, a session.
        provider: Provider id, or another name of it.
        endpoint: SDK method path.
        model: Model the request or session named, for bodies that name none; for a response that used the image tool
            and does not say with which model, the image tool's.
        processing: ``"batch"`` where only the context says so.
        region: Cloud region or data zone.
        service_tier: Tier asked for, where the body does not say which one served.
        cost_unit: What a ``cost`` in its usage is, where the settings say so; see `RequestFacts.cost_unit`.
        request: What is known of the request besides; what the body leaves unsaid is then estimated from it.
        final_only: Whether what has not ended is no bill yet (``not_final``), or is taken as it stands.

    Returns:
        What the body says. Bills of what outlives it (`Observation.shared`) stand apart: record each once, or take
        `Observation.with_shared` for all of it at once.

    Raises:
        PricingError: `body` is no body at all.
    """
    provider = billing_name(provider)
    wire = to_wire(body)
    wire = events_in(wire) or wire
    if is_array(wire):
        wire, _ = split_failure(wire)
    if not isinstance(wire, dict | list) or not wire:
        raise PricingError(
            f"{type(body).__name__} is no response body: pass what the SDK returned, its .usage, or the decoded JSON."
        )
    name = endpoint
    for method in _METHODS:
        name = name.removesuffix(method)
    known = request or RequestFacts()
    facts = replace(
        known,
        model=model or known.model,
        processing=processing or known.processing,
        region=region or known.region,
        service_tier=service_tier or known.service_tier,
        cost_unit=cost_unit or known.cost_unit,
        tool_models=known.tool_models or _tool_models(model, wire),
    )
    if dialect_for(provider, name).named(name).operation == "count_tokens":
        return Observation(billable=False)  # a count of what was not asked
    room = _dialect_of(wire) or dialect_for(provider, name)
    if is_array(wire):
        is_known = room.named(name).kind != "unknown"
        last = last_events(wire)
        speakers = [(room, name)]
        if not is_known:  # its events say which format they have
            speakers += [(one, one.usual_endpoint({"messages": ()})) for one in map(dialect, FORMATS)]
        seen = None if last and not is_known else _read_streams(wire, speakers, provider, facts)
        if seen is not None:
            return seen
        wire = last or wire
    many = list(room.items(wire)) if room.named(endpoint).form == "items" else []
    if many:  # a batch that has its answers with it, a page
        return room.read_body(many, Context(provider, name, facts, final_only=final_only))
    read = room.read_body if isinstance(wire, list) else room.read_bounded  # a list of bodies is as long as it is
    return read(wire, Context(provider, name, facts, final_only=final_only))


def _read_streams(
    events: Sequence[Any], speakers: Iterable[tuple[Dialect, str]], provider: str, facts: RequestFacts
) -> Observation | None:
    """What streams whose events are in a list say to the first format that knows what was used; None of others."""
    seen: Observation | None = None
    for room, name in speakers:
        if streams := room.split_streams(events):
            readers = [room.stream(provider=provider, endpoint=name, request=facts) for _ in streams]
            for reader, parts in zip(readers, streams, strict=True):
                for event in parts:
                    reader.feed(event)
            seen = joined(reader.observation() for reader in readers)
            if "usage_unknown" not in seen.flags:
                break
    return seen


def _dialect_of(wire: Any) -> Dialect | None:
    """The wire format that a body names or its usage object shows, whichever door of its host it came through."""
    if not is_object(wire):
        return None
    named, usage = {text(wire, "type"), text(wire, "object")}, usage_of(wire)
    rooms = [dialect(name) for name in FORMATS]
    found = next((room for room in rooms if not room.bodies.isdisjoint(named)), None)
    return found or next((room for room in rooms if not room.usages.isdisjoint(usage)), None)


def _tool_models(model: str | None, wire: Any) -> Mapping[str, str]:
    """`model` is a tool's where the body's own model is another one."""
    if model is None:
        return {}
    for body in _bodies(wire):
        own = text(body, "model")
        if own is not None and (own == model or own.startswith(f"{model}-")):
            return {}
    return {"image_generation": model, "transcription": model}


def _bodies(wire: Any) -> Iterator[JSON]:
    if is_object(wire):
        yield wire
        for key in ("response", "body"):
            yield from _bodies(wire.get(key))
