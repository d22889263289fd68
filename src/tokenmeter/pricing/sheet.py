"""Rates worked out: what each meter of one model costs in one context and time, and the dearest it could come to.

The context in which a line was priced, or waits for a price: its ``price_id`` keeps it, to be rated again.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, cast

from tokenmeter.call import RequestFacts
from tokenmeter.dimensions import CACHE_READ_METERS, CACHE_WRITE_METERS, INPUT_METERS, OUTPUT_METERS, unit_of
from tokenmeter.ledger import Charge
from tokenmeter.money import EXACT, ONE, quantize, to_dollars
from tokenmeter.pricing.card import Circumstances, Quote, RateCard
from tokenmeter.pricing.price import Terms
from tokenmeter.pricing.price_list import ListedModel
from tokenmeter.providers.hosts import host_of
from tokenmeter.usage import Consumption, Quantity, Usage
from tokenmeter.values import dataclass

_CACHED = frozenset((*CACHE_READ_METERS, *CACHE_WRITE_METERS))

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
        flags: What an entry priced by it must say: ``cache_rate_assumed``, ``price_date_assumed``,
            ``region_rate_assumed``.
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

    def _work_out(self, sku_meter: str) -> UnitRate | str:
        card, context, at = self._listed.card, self._context, self._at
        quote = card.quote(sku_meter, context, at, self._prompt_tokens)
        if quote is None:
            return self._why_not(sku_meter)
        places = card.places(quote, sku_meter, context, at)
        if isinstance(places, str):
            return f"unknown_{places}"
        factors = {place.name: place.value for place in places if place.value != ONE}
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
        assumed = card.assumes(quote, sku_meter, context) or self._is_outgrown(quote, sku_meter)
        flags = {"cache_rate_assumed"} if assumed else set[str]()
        if card.doubted is not None and card.doubted.at(at):
            flags.add("price_date_assumed")
        if any(place.rule.assumed for place in places):
            flags.add("region_rate_assumed")
        return UnitRate(quote, factors, price_id, unit_of(sku_meter), rates, _whole(rates), frozenset(flags))

    def _is_outgrown(self, quote: Quote, sku_meter: str) -> bool:
        """Whether a cached class costs what it costs in shorter prompts, where the input has a price for long ones."""
        row = quote.row
        if sku_meter not in _CACHED or not row.sku_meter.startswith("cache_") or row.origin == "user":
            return False
        whole = self._listed.card.quote("input", self._context, self._at, self._prompt_tokens)
        return whole is not None and whole.row.conditions.min_input_tokens > row.conditions.min_input_tokens

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
#: Where a line says the size of its prompt, what it says if nobody knows it: the tokens are of several prompts.
UNKNOWN_SIZE: Final = "unknown"
_SIZE = re.compile(rf"(?<=[{re.escape(_MARK)},])prompt=(?:\d+|{UNKNOWN_SIZE})$")
_OVER = re.compile(r"\[(?:[^\]]*,)?min_input_tokens=(\d+)[,\]]")


class LineConditions(NamedTuple):
    """The context of a line. The fields mean what they mean in `tokenmeter.usage.Consumption`.

    `prompt_tokens` is None where the line does not tell it: the tokens of its group are one prompt, all of it.
    """

    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    endpoint: str | None = None
    prompt_tokens: int | Literal["unknown"] | None = None

    @classmethod
    def of(cls, consumption: Consumption) -> LineConditions:
        """The context of a charge group."""
        return cls(
            service_tier=consumption.service_tier,
            processing=consumption.processing,
            speed=consumption.speed,
            geo=consumption.geo,
            region=consumption.region,
            endpoint=consumption.endpoint,
            prompt_tokens=consumption.prompt_tokens,
        )

    @classmethod
    def parse(cls, price_id: str | None) -> LineConditions | None:
        """The context that `price_id` carries; None for a line that no list has priced (a cost the biller stated)."""
        if price_id is None:
            return None
        if price_id.startswith(_PREFIX):
            known = cls(**cast("dict[str, Any]", json.loads(price_id[len(_PREFIX) :])))
            return known if known.prompt_tokens is not None else known._replace(prompt_tokens=UNKNOWN_SIZE)
        listed, _, told = price_id.partition(_MARK)
        context: dict[str, Any] = dict(each.split("=", 1) for each in told.split(",") if "=" in each)
        size = context.pop("prompt", None)
        if listed.partition("/")[2].startswith("global."):  # a row of its own, and elsewhere the standard case
            context.setdefault("region", "global")
        return cls(**context, prompt_tokens=int(size) if size and size != UNKNOWN_SIZE else size)

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
            endpoint=self.endpoint,
            prompt_tokens=None if self.prompt_tokens == UNKNOWN_SIZE else self.prompt_tokens,
        )


def with_context(price_id: str, context: Circumstances) -> str:
    """A price's identity with the context it was found in, as far as that is not the standard one."""
    told = [
        f"{name}={value}"
        for name in ("service_tier", "processing", "speed", "geo", "region")
        if (value := getattr(context, name)) is not None
    ]
    return f"{price_id}{_MARK}{','.join(told)}" if told else price_id


def with_endpoint(line: Charge, endpoint: str) -> Charge:
    """A priced line that tells the endpoint of its work, which is not that of its entry."""
    return _with_mark(line, f"endpoint={endpoint}")


def with_size(line: Charge, prompt_tokens: int | None) -> Charge:
    """A priced line that tells the size of its prompt; None says that nobody knows it."""
    return _with_mark(line, f"prompt={UNKNOWN_SIZE if prompt_tokens is None else prompt_tokens}")


def _with_mark(line: Charge, told: str) -> Charge:
    price_id = line.price_id or ""
    return replace(line, price_id=f"{price_id}{',' if _MARK in price_id else _MARK}{told}")


def without_size(price_id: str | None) -> str | None:
    """The price alone, without the size of the prompt that one line of it was for."""
    return None if price_id is None else _SIZE.sub("", price_id).rstrip(f"{_MARK},")


def size_over(price_id: str | None) -> int | None:
    """More tokens than how many a prompt has whose line bears this price; None where it is for prompts of any size."""
    found = _OVER.search(price_id or "")
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """Upper bounds of billed US dollars per single unit, multipliers and discounts included; None = not sold.

    Attributes:
        input: Per prompt token of any class (cache writes and long prompts included).
        output: Per answer token of any class.
        web_search: Per hosted web search.
        file_search: Per hosted file search.
        container_session: Per code container.
        image: Per image, where images are sold by the piece.
        character: Per character of text to be spoken.
        audio_second: Per second of audio.
        video_second: Per second of video.
        request: Per request, where requests have a price.
        context_window: Largest prompt in tokens; None when unknown.
        max_output_tokens: Largest answer in tokens; None when unknown.
        model: What the name that was asked for stands for, whose own rules of prompts hold; None = that name.
        known: False when these are other models' rates, because this model is unknown.
    """

    input: Decimal | None = None
    output: Decimal | None = None
    web_search: Decimal | None = None
    file_search: Decimal | None = None
    container_session: Decimal | None = None
    image: Decimal | None = None
    character: Decimal | None = None
    audio_second: Decimal | None = None
    video_second: Decimal | None = None
    request: Decimal | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    model: str | None = None
    known: bool = True

    def of_pieces(self, pieces: Mapping[str, int]) -> tuple[tuple[str, int, Decimal], ...] | None:
        """What a request asks for by the piece, as lines: meter, quantity, rate; None where that is not how it is sold.

        Args:
            pieces: By meter, as `RequestFacts` has them.
        """
        if self.output is not None or not pieces:
            return None
        sold = {"characters": self.character, "images": self.image, "seconds_video": self.video_second}
        lines: list[tuple[str, int, Decimal]] = []
        for meter, quantity in pieces.items():
            rate = sold.get("seconds_video" if meter.startswith("seconds_video") else meter)
            if rate is None:
                return None
            lines.append((meter, quantity, rate))
        return tuple(lines)


def ceiling_of(
    listed: ListedModel,
    *,
    facts: RequestFacts,
    endpoint: str,
    at: datetime,
    terms: Terms,
    platform: Decimal,
    prompt_tokens: int | None,
) -> Ceiling:
    """The dearest rates at which `listed` could bill a call with these facts.

    Tier, speed, batch and region are what the request says; a tier it names may also be served as standard, unless the
    host keeps to it. Where it is served in a dearer one all the same, answers say so: ask again with that tier.
    Geography may be any, since the account's workspace decides it.

    Args:
        listed: The model's prices.
        facts: Of the request.
        endpoint: SDK method path.
        at: When it leaves.
        terms: Discounts.
        platform: The platform multiplier.
        prompt_tokens: Upper bound of the prompt: bands of longer prompts do not count; None = they all do.
    """
    card = listed.card
    contexts = tuple(_contexts(listed, facts, endpoint))
    longest = prompt_tokens if prompt_tokens is not None else max((0, *card.thresholds)) + 1
    sizes = (0, *(threshold + 1 for threshold in card.thresholds if threshold < longest))
    dearest = _Dearest(listed, contexts, sizes, at, terms, platform)
    written = facts.cache_writes if host_of(listed.provider).caches_marked else "any"
    return Ceiling(
        input=dearest.of(_PROMPTS_METERS[written]),
        output=dearest.of(OUTPUT_METERS),
        web_search=dearest.of(("web_searches",)),
        file_search=dearest.of(("file_searches",)),
        container_session=dearest.of(meter for meter in card.meters if meter.startswith("container_sessions")),
        image=dearest.of(("images",)),
        character=dearest.of(("characters",)),
        audio_second=dearest.of(("seconds_audio",)),
        video_second=dearest.of(meter for meter in card.meters if meter.startswith("seconds_video")),
        request=dearest.of(("requests",)),
        context_window=listed.context_window,
        max_output_tokens=listed.max_output_tokens,
    )


#: What tokens of a prompt may be billed as, by `RequestFacts.cache_writes`.
_PROMPTS_METERS = {
    "any": INPUT_METERS,
    "usual": tuple(meter for meter in INPUT_METERS if meter not in {"cache_write_1h", "cache_write_12h"}),
    "none": tuple(meter for meter in INPUT_METERS if meter not in CACHE_WRITE_METERS),
}


def _contexts(listed: ListedModel, facts: RequestFacts, endpoint: str) -> Iterator[Circumstances]:
    named = Circumstances(
        service_tier=facts.service_tier,
        processing=facts.processing,
        speed=facts.speed,
        geo=None,
        region=facts.region,
        endpoint=endpoint,
    ).canonical()
    kept = named.service_tier == "flex" and host_of(listed.provider).keeps_flex
    tiers: set[str | None] = {named.service_tier} if kept else {None, named.service_tier}
    speeds = {None, named.speed}
    for tier in tiers:
        for speed in speeds:
            for geo in {None, *_ruled(listed.card, "geo")}:
                yield named._replace(service_tier=tier, speed=speed, geo=geo)


def _ruled(card: RateCard, dimension: str) -> Iterator[str]:
    """Values of a dimension that some rule of this model prices."""
    for rule in card.rules:
        if rule.when and rule.when[0] == dimension and rule.when[1] != "*":
            yield rule.when[1]


@dataclass(frozen=True, slots=True)
class _Dearest:
    listed: ListedModel
    contexts: tuple[Circumstances, ...]
    sizes: tuple[int, ...]
    at: datetime
    terms: Terms
    platform: Decimal

    def of(self, meters: Iterable[str]) -> Decimal | None:
        """The highest billed rate any of `meters` could have; None when none is sold."""
        rates = [rate for meter in meters if self._sold(meter) for rate in self._rates(meter)]
        return max(rates, default=None)

    def _sold(self, meter: str) -> bool:
        """Audio and image classes that merely inherit the text price add nothing; those with an own price do."""
        card = self.listed.card
        return meter in card or meter.startswith("cache_write") or meter in {"input", "output"}

    def _rates(self, meter: str) -> Iterator[Decimal]:
        card = self.listed.card
        discount = self.terms.discount(
            provider=card.provider, models=(self.listed.model, self.listed.name), sku_meter=meter, at=self.at
        )
        for context in self.contexts:
            for size in self.sizes:
                quote = card.quote(meter, context, self.at, size)
                if quote is None:
                    continue
                places = card.places(quote, meter, context, self.at)
                if isinstance(places, str):
                    continue
                rate = quote.per_unit
                for place in (*(each.value for each in places), discount, self.platform):
                    rate = EXACT.multiply(rate, place)
                yield rate
