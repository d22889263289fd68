"""What every reader of a body has in hand, and the two ways all of them end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tokenmeter.call import RequestFacts
from tokenmeter.providers import hosts
from tokenmeter.providers.shapes import Reading
from tokenmeter.providers.wire import JSON, text
from tokenmeter.usage import Consumption, Observation, Usage

__all__ = ["Context", "joined", "observation", "pending", "unknown"]


@dataclass(frozen=True, slots=True)
class Context:
    """Where a body came from.

    Attributes:
        provider: Provider id.
        endpoint: SDK method path.
        request: Facts of the request; defaults where only the body is known.
        final_only: Whether a bill that may still grow is to be left out (live calls), or taken as it stands.
    """

    provider: str
    endpoint: str
    request: RequestFacts
    final_only: bool = True

    def in_batch(self) -> Context:
        """The same context, with its work done in a batch."""
        return replace(self, request=replace(self.request, processing="batch"))

    def consumption(
        self,
        reading: Reading,
        *,
        model: str | None,
        wire: JSON | None = None,
        tier: str | None = None,
        role: str = "message",
    ) -> Consumption:
        """A charge group of `reading` in this context; `wire` is the usage object that may carry a supplied cost."""
        request = self.request
        return Consumption(
            model=model or request.model,
            usage=reading.usage,
            service_tier=hosts.billed_tier(tier or request.service_tier),
            processing=request.processing,
            speed=request.speed,
            region=request.region,
            role=role,
            prompt_tokens=reading.prompt_tokens,
            supplied_cost=hosts.supplied_cost(self.provider, wire) if wire else None,
        )


def observation(
    reading: Reading,
    group: Consumption,
    body: JSON,
    wire: JSON,
    *,
    tier: str | None = None,
    deduplicate: bool = False,
) -> Observation:
    """The usual end: one charge group, named by the body it came with."""
    return Observation(
        consumptions=(group,),
        response_model=text(body, "model"),
        response_id=text(body, "id"),
        service_tier=tier,
        flags=reading.flags,
        raw_usage=wire,
        deduplicate=deduplicate,
    )


def unknown(body: JSON, wire: Any, *, model: str | None = None, deduplicate: bool = False) -> Observation:
    """The other end: something was used, and nobody can say what. It is unpriced, never zero.

    A polled body is only written down for its charge groups, so it gets an empty one.
    """
    group = Consumption(model=model or text(body, "model"), usage=Usage())
    return Observation(
        consumptions=(group,) if deduplicate else (),
        response_model=model or text(body, "model"),
        response_id=text(body, "id"),
        service_tier=text(body, "service_tier"),
        flags=frozenset({"usage_unknown"}),
        raw_usage=wire,
        deduplicate=deduplicate,
    )


def pending(body: JSON) -> Observation:
    """Work that has not ended: its bill comes with a later body of the same id, which this one must not shut out."""
    return Observation(
        response_model=text(body, "model"),
        response_id=text(body, "id"),
        flags=frozenset({"not_final"}),
        billable=False,
    )


def joined(observations: Iterable[Observation]) -> Observation:
    """Many observations as one, for a body that holds many bills."""
    parts = tuple(observations)
    first = parts[0] if parts else Observation(billable=False)
    if len(parts) < 2:  # noqa: PLR2004 - one is itself
        return first
    raw = [part.raw_usage for part in parts if part.raw_usage is not None]
    return Observation(
        consumptions=tuple(group for part in parts for group in part.consumptions if part.billable),
        response_model=first.response_model,
        response_id=first.response_id,
        service_tier=first.service_tier,
        flags=frozenset(flag for part in parts for flag in part.flags),
        raw_usage=raw or None,
        billable=any(part.billable for part in parts),
        deduplicate=all(part.deduplicate for part in parts),
    )
