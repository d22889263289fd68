"""The dearest a call could come to be billed, per unit: what a budget holds before the answer is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from tokenmeter.call import RequestFacts
from tokenmeter.dimensions import INPUT_METERS, OUTPUT_METERS
from tokenmeter.money import EXACT
from tokenmeter.pricing.card import Circumstances, RateCard
from tokenmeter.pricing.price_list import ListedModel
from tokenmeter.pricing.terms import Terms


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
    prompt_tokens: int | None = None,
) -> Ceiling:
    """The dearest rates at which `listed` could bill a call with these facts.

    Tier, speed, batch and region are what the request says; a tier it names may also be served as standard. Where an
    account's default is a dearer tier, answers say so: ask again with that tier. Geography may be any, since the
    account's workspace decides it.

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
    contexts = tuple(_contexts(card, facts, endpoint))
    longest = prompt_tokens if prompt_tokens is not None else max((0, *card.thresholds)) + 1
    sizes = (0, *(threshold + 1 for threshold in card.thresholds if threshold < longest))
    dearest = _Dearest(listed, contexts, sizes, at, terms, platform)
    return Ceiling(
        input=dearest.of(INPUT_METERS),
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


def _contexts(card: RateCard, facts: RequestFacts, endpoint: str) -> Iterator[Circumstances]:
    named = Circumstances(
        service_tier=facts.service_tier,
        processing=facts.processing,
        speed=facts.speed,
        geo=None,
        region=facts.region,
        endpoint=endpoint,
    ).plain()
    tiers: set[str | None] = {None, named.service_tier}
    speeds = {None, named.speed}
    for tier in tiers:
        for speed in speeds:
            for geo in {None, *_ruled(card, "geo")}:
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
