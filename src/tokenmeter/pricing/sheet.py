"""Rates worked out: what each meter of one model costs in one context, during one window of time.

The context in which a line was priced, or waits for a price: its ``price_id`` keeps it, to be rated again.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tokenmeter.dimensions import unit_of
from tokenmeter.ledger import Charge
from tokenmeter.money import EXACT, ONE, quantize, to_dollars
from tokenmeter.pricing.card import Circumstances, Quote
from tokenmeter.usage import Consumption, Quantity, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from tokenmeter.pricing.price_list import ListedModel
    from tokenmeter.pricing.terms import Terms

_NO_FLAGS: frozenset[str] = frozenset()


class UnitRate(NamedTuple):
    """The price of one unit of one meter, with every multiplier.

    Attributes:
        quote: Public price and where it comes from.
        factors: Multipliers by name, in the order they apply; those of 1 are left out.
        price_id: What charges keep.
        unit: FOCUS unit.
        rates: US dollars per unit at list, contracted and billed terms.
        whole: The same in picodollars where all three are whole numbers: a line is then one exact integer product.
        flags: What an entry priced by it must say: ``cache_rate_assumed``, ``price_date_assumed``.
    """

    quote: Quote
    factors: Mapping[str, Decimal]
    price_id: str
    unit: str
    rates: tuple[Decimal, Decimal, Decimal]
    whole: tuple[int, int, int] | None
    flags: frozenset[str] = _NO_FLAGS

    def line(self, model: str | None, sku_meter: str, quantity: Quantity, role: str) -> Charge:
        """The charge for `quantity`, rounded half-even to picodollars once per stage."""
        whole = self.whole
        if whole is not None and type(quantity) is int:
            list_cost = to_dollars(quantity * whole[0])
            contracted = list_cost if whole[1] == whole[0] else to_dollars(quantity * whole[1])
            billed = contracted if whole[2] == whole[1] else to_dollars(quantity * whole[2])
        else:
            amount = Decimal(quantity)
            list_cost, contracted, billed = (quantize(EXACT.multiply(amount, rate)) for rate in self.rates)
        return Charge(
            model=model,
            sku_meter=sku_meter,
            quantity=quantity,
            unit=self.unit,
            list_unit_price=self.quote.per_unit,
            multipliers=self.factors,
            list_cost=list_cost,
            contracted_cost=contracted,
            billed_cost=billed,
            price_id=self.price_id,
            source=self.quote.row.source,
            role=role,
        )


class RateSheet:
    """Rates of one model in one context, for prompts of one size band, during one window of time.

    `Pricer.sheet` gives one; `Pricer.rate` multiplies by the same. So whoever keeps a sheet for calls that repeat, and
    multiplies its whole rates by token counts (`costs`), comes to the cost that `Pricer.rate` comes to.

    Args:
        listed: The model.
        context: The context.
        at: A moment of the window.
        prompt_tokens: A prompt size of the band.
        terms: Discounts.
        platform: Platform multiplier.
        price_list_hash: For price ids.
        until: First instant (aware UTC) at which a rate may differ; None = never, as far as is known.

    Attributes:
        prompt_band: ``(over, upto)``: the sheet is for prompts with more than `over` and at most `upto` tokens; `upto`
            is None where there is no dearer tier.
        price_list_hash: Hash of the price list.
    """

    def __init__(
        self,
        listed: ListedModel,
        *,
        context: Circumstances,
        at: datetime,
        prompt_tokens: int,
        terms: Terms,
        platform: Decimal,
        price_list_hash: str,
        until: datetime | None = None,
    ) -> None:
        self.until = until
        self.price_list_hash = price_list_hash
        self.prompt_band = _band(listed.card.thresholds, prompt_tokens)
        self._listed = listed
        self._context = context
        self._at = at
        self._prompt_tokens = prompt_tokens
        self._terms = terms
        self._platform = platform
        self._rates: dict[str, UnitRate | str] = {}

    def rate(self, sku_meter: str) -> UnitRate | str:
        """The rate of a meter; or, when there is none, the flag that says why."""
        try:
            return self._rates[sku_meter]
        except KeyError:
            rate = self._rates[sku_meter] = self._work_out(sku_meter)
            return rate

    @property
    def per_request(self) -> UnitRate | None:
        """The price of the request itself, for models that have one."""
        if "requests" not in self._listed.card:
            return None
        rate = self.rate("requests")
        return None if isinstance(rate, str) else rate

    def costs(self, quantities: Mapping[str, int]) -> tuple[int, int, int] | None:
        """What a call that used `quantities` costs at list, contracted and billed terms, in whole picodollars.

        None when that takes more than integers: a rate is finer than a picodollar, unknown, or worth a flag. Then
        `Pricer.rate` says everything.
        """
        listed = contracted = billed = 0
        used = False
        for meter, quantity in quantities.items():
            if not quantity:
                continue
            used = True
            rate = self.rate(meter)
            if isinstance(rate, str) or rate.whole is None or rate.flags:
                return None
            listed += quantity * rate.whole[0]
            contracted += quantity * rate.whole[1]
            billed += quantity * rate.whole[2]
        request = self.per_request if used and "requests" not in quantities else None
        if request is not None:
            if request.whole is None:
                return None
            listed += request.whole[0]
            contracted += request.whole[1]
            billed += request.whole[2]
        return listed, contracted, billed

    def _work_out(self, sku_meter: str) -> UnitRate | str:
        card, context, at = self._listed.card, self._context, self._at
        quote = card.quote(sku_meter, context, at, self._prompt_tokens)
        if quote is None:
            return self._why_not(sku_meter)
        places = card.places(quote, sku_meter, context, at)
        if isinstance(places, str):
            return f"unknown_{places}"
        factors = {place.name: place.value for place in places}
        list_rate = _product(quote.per_unit, factors.values())
        discount = self._terms.discount(
            provider=card.provider,
            models=(self._listed.model, self._listed.name),
            sku_meter=sku_meter,
            at=at,
        )
        contracted = EXACT.multiply(list_rate, discount)
        rates = (list_rate, contracted, EXACT.multiply(contracted, self._platform))
        factors |= {
            name: value for name, value in (("discount", discount), ("platform", self._platform)) if value != ONE
        }
        identity = "".join((quote.row.identity(self.price_list_hash), *(f"*{rule.factor}" for rule in quote.rules)))
        price_id = with_context(identity, context)
        flags = {"cache_rate_assumed"} if quote.assumes_for(sku_meter) else set[str]()
        if card.assumed_before is not None and at < card.assumed_before:
            flags.add("price_date_assumed")
        return UnitRate(quote, factors, price_id, unit_of(sku_meter), rates, _whole(rates), frozenset(flags))

    def _why_not(self, sku_meter: str) -> str:
        """Which part of the context has no price: the mode that would have to go for there to be one."""
        context = self._context
        for dimension in context.modes:
            if self._listed.card.quote(sku_meter, context.without(dimension), self._at, self._prompt_tokens):
                return f"unknown_{dimension}"
        if context.modes:
            plain = Circumstances(endpoint=context.endpoint, geo=context.geo, region=context.region)
            if self._listed.card.quote(sku_meter, plain, self._at, self._prompt_tokens):
                return f"unknown_{context.modes[0]}"
        return "unpriced_meter"


def _band(thresholds: Sequence[int], prompt_tokens: int) -> tuple[int, int | None]:
    """Between which sizes of a prompt no tier begins: ``(over, upto)``."""
    position = bisect_left(thresholds, prompt_tokens)
    over = thresholds[position - 1] if position else -1
    return over, thresholds[position] if position < len(thresholds) else None


def _product(value: Decimal, factors: Iterable[Decimal]) -> Decimal:
    for factor in factors:
        value = EXACT.multiply(value, factor)
    return value


def _whole(rates: tuple[Decimal, Decimal, Decimal]) -> tuple[int, int, int] | None:
    scaled = [rate.scaleb(12, context=EXACT) for rate in rates]
    whole = [int(each) for each in scaled]
    return (whole[0], whole[1], whole[2]) if whole == scaled else None


_PREFIX = "unpriced "
_MARK = "|"


class LineConditions(NamedTuple):
    """The context of a line. The fields mean what they mean in `tokenmeter.usage.Consumption`."""

    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    prompt_tokens: int | None = None

    @classmethod
    def of(cls, consumption: Consumption) -> LineConditions:
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
    def parse(cls, price_id: str | None) -> LineConditions | None:
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


def with_context(price_id: str, context: Circumstances) -> str:
    """A price's identity with the context it was found in, as far as that is not the standard one."""
    told = [
        f"{name}={value}"
        for name in ("service_tier", "processing", "speed", "geo", "region")
        if (value := getattr(context, name)) is not None
    ]
    return f"{price_id}{_MARK}{','.join(told)}" if told else price_id
