"""What an unpriced line was waiting for: the context in which a price must be found later."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, cast

from tokenmeter.usage import Consumption, Usage

__all__ = ["Wanted"]

_PREFIX = "unpriced "


class Wanted(NamedTuple):
    """The context of an unpriced line; kept as the line's ``price_id`` so that it can be priced later.

    The fields mean what they mean in `tokenmeter.usage.Consumption`.
    """

    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    prompt_tokens: int | None = None

    @classmethod
    def of(cls, consumption: Consumption) -> Wanted:
        """The context of a charge group."""
        return cls(
            service_tier=consumption.service_tier,
            processing=consumption.processing,
            speed=consumption.speed,
            geo=consumption.geo,
            region=consumption.region,
            prompt_tokens=consumption.prompt_tokens,
        )

    @classmethod
    def parse(cls, price_id: str | None) -> Wanted | None:
        """The context that `price_id` carries; None when it carries none."""
        if price_id is None or not price_id.startswith(_PREFIX):
            return None
        return cls(**cast("dict[str, Any]", json.loads(price_id[len(_PREFIX) :])))

    def price_id(self) -> str:
        """The context in one line; only what is known is named."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return _PREFIX + json.dumps(known, separators=(",", ":"))

    def consumption(self, model: str | None, usage: Usage, role: str) -> Consumption:
        """A charge group in this context."""
        return Consumption(
            model=model,
            usage=usage,
            role=role,
            service_tier=self.service_tier,
            processing=self.processing,
            speed=self.speed,
            geo=self.geo,
            region=self.region,
            prompt_tokens=self.prompt_tokens,
        )
