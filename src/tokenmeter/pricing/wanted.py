"""The context in which a line was priced, or waits for a price: its ``price_id`` keeps it, to be rated again."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, cast

from tokenmeter.pricing.card import Context
from tokenmeter.usage import Consumption, Usage

__all__ = ["Wanted", "with_context"]

_PREFIX = "unpriced "
_MARK = "|"


class Wanted(NamedTuple):
    """The context of a line. The fields mean what they mean in `tokenmeter.usage.Consumption`."""

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
        """The context that `price_id` carries; None for a line that no list has priced (a cost the biller stated)."""
        if price_id is None:
            return None
        if price_id.startswith(_PREFIX):
            return cls(**cast("dict[str, Any]", json.loads(price_id[len(_PREFIX) :])))
        told = price_id.partition(_MARK)[2]
        context: dict[str, Any] = dict(each.split("=", 1) for each in told.split(",") if "=" in each)
        return cls(**context)

    def price_id(self) -> str:
        """The context in one line, for a line without a price; only what is known is named."""
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


def with_context(price_id: str, context: Context) -> str:
    """A price's identity with the context it was found in, as far as that is not the standard one."""
    told = [
        f"{name}={value}"
        for name in ("service_tier", "processing", "speed", "geo", "region")
        if (value := getattr(context, name)) is not None
    ]
    return f"{price_id}{_MARK}{','.join(told)}" if told else price_id
