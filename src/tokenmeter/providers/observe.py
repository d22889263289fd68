"""From whatever a user holds in hand to an `Observation`: the same readers a live call goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.errors import PricingError
from tokenmeter.providers.context import Context
from tokenmeter.providers.registry import dialect_for
from tokenmeter.providers.wire import JSON, is_object, text, to_wire
from tokenmeter.usage import Observation

#: HTTP verbs' method names: what is priced is the resource, whichever way its body was come by.
_METHODS = (".create", ".retrieve", ".parse", ".stream", ".poll")


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
            output, an event, an image, a transcription, a session.
        provider: Provider id.
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
    wire = to_wire(body)
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
    return dialect_for(provider, name).read_body(wire, Context(provider, name, facts, final_only=final_only))


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
