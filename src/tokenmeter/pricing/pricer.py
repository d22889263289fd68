"""Rating observations, and bounding calls before they leave: a price list and terms."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tokenmeter.attribution import NOBODY, ApiKey, Attribution
from tokenmeter.call import RequestFacts
from tokenmeter.ledger import Charge
from tokenmeter.money import EXACT
from tokenmeter.pricing.card import Circumstances
from tokenmeter.pricing.price import Discount, Multiplier, Multipliers, Price, Terms
from tokenmeter.pricing.price_list import ListedModel, PriceList
from tokenmeter.pricing.rating import (
    Rating,
    compare,
    main_group,
    priced_lines,
    supplied_line,
    tells_sizes,
    total,
    unpriced_lines,
)
from tokenmeter.pricing.sheet import Ceiling, RateSheet, ceiling_of
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.usage import Consumption, Observation

_MOST_KEPT = 10_000
_NOTHING = Rating()
#: Something was used, and nobody can say how much: never the same as nothing.
_UNKNOWN = Rating(cost_source="unpriced")


class _WorkedPrices(NamedTuple):
    """A price list, and what was worked out from it: they change together."""

    price_list: PriceList
    models: dict[tuple[str, str | None, str | None], ListedModel | None]
    sheets: dict[tuple[object, ...], RateSheet]
    standard: dict[str, tuple[Sequence[Price], Sequence[datetime]]]
    highest: dict[tuple[str, int], tuple[Decimal | None, Decimal | None]]


class Pricer:
    """Rates observations by a price list and the user's terms. Safe to share; keeps every rate it has worked out.

    Args:
        price_list: The prices.
        terms: Platform multipliers, negotiated discounts, names for models.
    """

    def __init__(self, price_list: PriceList, terms: Terms | None = None) -> None:
        self._worked = _WorkedPrices(price_list, {}, {}, {}, {})
        given = terms or Terms()
        maps = {canonical_provider(provider): dict(names) for provider, names in given.model_maps.items()}
        units = {name if "://" in name else canonical_provider(name): unit for name, unit in given.cost_units.items()}
        self.terms = replace(given, model_maps=maps, cost_units=units)
        self._multipliers = Multipliers(given.multipliers)
        dated: tuple[Multiplier | Discount, ...] = (*given.multipliers, *given.discounts)
        changes = {moment for each in dated for moment in (each.effective_from, each.effective_to)}
        self._changes = tuple(sorted(moment for moment in changes if moment is not None))

    @property
    def price_list(self) -> PriceList:
        """The prices in use."""
        return self._worked.price_list

    def adopt(self, price_list: PriceList) -> None:
        """Rate by another list from now on. What is being rated now is rated by one of the two, as a whole."""
        self._worked = _WorkedPrices(price_list, {}, {}, {}, {})

    @property
    def price_list_hash(self) -> str:
        """`PriceList.hash`."""
        return self.price_list.hash

    def find(self, provider: str, model: str | None, region: str | None = None) -> ListedModel | None:
        """The listed model that `model` means at `provider`; the user's own names for models are resolved first."""
        return self._find(self._worked, provider, model, region)

    def _find(self, worked: _WorkedPrices, provider: str, model: str | None, region: str | None) -> ListedModel | None:
        key = (provider, model, region)
        try:
            return worked.models[key]
        except KeyError:
            _keep_small(worked.models)
            mapped = self.terms.model(canonical_provider(provider), model) if model else None
            found = worked.models[key] = worked.price_list.find(provider, mapped, region)
            return found

    def with_meant_model(self, provider: str, facts: RequestFacts) -> RequestFacts:
        """`facts`, which say what their model's name stands for at `provider` by the user's settings."""
        if not (facts.model and self.terms.model_maps):
            return facts
        meant = self.terms.model(canonical_provider(provider), facts.model)
        return facts if meant == facts.model else replace(facts, stands_for=meant)

    def rate(
        self,
        observation: Observation,
        *,
        provider: str,
        endpoint: str,
        at: datetime,
        api_key: ApiKey | None = None,
        attribution: Attribution = NOBODY,
        fee: bool = True,
    ) -> Rating:
        """What `observation` costs.

        Args:
            observation: What the provider said was used.
            provider: Provider id.
            endpoint: SDK method path.
            at: When the call left, aware.
            api_key: Key used, for multipliers by key.
            attribution: On whose account, for multipliers by member, team, ...
            fee: Whether a price of the request itself, where there is one, is due; it is once for each observation.
        """
        if not observation.billable:
            return _NOTHING
        if not observation.consumptions:
            return _UNKNOWN if "usage_unknown" in observation.flags else _NOTHING
        moment = at if at.tzinfo is UTC else at.astimezone(UTC)
        worked = self._worked
        charges: list[Charge] = []
        flags: set[str] = set()
        sizes = tells_sizes(observation.consumptions)
        main = main_group(observation) if fee else None
        for place, consumption in enumerate(observation.consumptions):
            listed = self._listed(worked, provider, consumption)
            models = (consumption.model, listed.model if listed else None)
            platform = self._multipliers.factor(
                provider=provider, models=models, at=moment, api_key=api_key, attribution=attribution
            )
            supplied = consumption.supplied_cost
            if supplied is not None and supplied.believed:
                charges.append(supplied_line(consumption, platform))
                continue
            if listed is None:
                flags.add("unknown_model")
                lines = list(unpriced_lines(consumption))
            else:
                if consumption.prompt_tokens is None and _ambiguous(consumption, listed):
                    flags.add("tier_ambiguous")
                sheet = self._sheet_for(worked, listed, consumption, endpoint=endpoint, at=moment, platform=platform)
                lines = priced_lines(consumption, sheet, flags, fee=place == main, sized=sizes[place])
            if supplied is not None:
                compare(supplied, lines, flags)
            charges += lines
        estimated = "estimated" in observation.flags
        rating = total(tuple(charges), flags, estimated=estimated, price_list_hash=worked.price_list.hash)
        # Of a bill with an unknown part the rest is known, and is not the bill, unless who sends it stated all of it.
        if "usage_unknown" in observation.flags and not all(map(_is_stated, observation.consumptions)):
            return replace(rating, cost_source="unpriced") if charges else _UNKNOWN
        return rating

    def _sheet_for(
        self,
        worked: _WorkedPrices,
        listed: ListedModel,
        consumption: Consumption,
        *,
        endpoint: str,
        at: datetime,
        platform: Decimal,
    ) -> RateSheet:
        """The rates of a group whose model is listed."""
        return self._sheet(
            worked,
            listed,
            (
                consumption.service_tier,
                consumption.processing,
                consumption.speed,
                consumption.geo,
                consumption.region,
                consumption.endpoint or endpoint,
            ),
            at=at,
            prompt_tokens=consumption.prompt_tokens or 0,
            platform=platform,
        )

    def _listed(self, worked: _WorkedPrices, provider: str, consumption: Consumption) -> ListedModel | None:
        """Whose prices a group has: what no model did (a container) costs the same whichever asked for it."""
        if consumption.model is not None:
            return self._find(worked, provider, consumption.model, consumption.region)
        tools = worked.price_list.every_model(provider)
        sold = tools is not None and all(meter in tools.card for meter in consumption.usage.quantities)
        return tools if sold else None

    def sheet(
        self,
        provider: str,
        model: str | None,
        *,
        mode: Circumstances,
        at: datetime,
        prompt_tokens: int = 0,
        api_key: ApiKey | None = None,
        attribution: Attribution = NOBODY,
    ) -> RateSheet | None:
        """The rates that `rate` multiplies by, for who rates many calls alike; None for an unknown model.

        Args:
            provider: Provider id.
            model: Model as the provider names it.
            mode: Tier, processing, speed, place and endpoint, as they came off the wire.
            at: When the call left, aware; the sheet holds until its ``until``.
            prompt_tokens: Size of the prompt; the sheet holds within its ``prompt_band``.
            api_key: Key used, for multipliers by key.
            attribution: On whose account, for multipliers by member, team, ...
        """
        worked = self._worked
        listed = self._find(worked, provider, model, mode.region)
        if listed is None:
            return None
        moment = at if at.tzinfo is UTC else at.astimezone(UTC)
        platform = self._multipliers.factor(
            provider=provider, models=(model, listed.model), at=moment, api_key=api_key, attribution=attribution
        )
        return self._sheet(worked, listed, mode, at=moment, prompt_tokens=prompt_tokens, platform=platform)

    def ceiling(
        self,
        *,
        provider: str,
        endpoint: str,
        facts: RequestFacts,
        at: datetime,
        api_key: ApiKey | None = None,
        attribution: Attribution = NOBODY,
        prompt_tokens: int | None = None,
    ) -> Ceiling | None:
        """The dearest billed rates at which a call with these facts could be served; None for an unknown model."""
        listed = self.find(provider, facts.model, facts.region)
        if listed is None:
            return None
        moment = at.astimezone(UTC)
        models = (facts.model, listed.model)
        platform = self._multipliers.factor(
            provider=provider, models=models, at=moment, api_key=api_key, attribution=attribution
        )
        return ceiling_of(
            listed,
            facts=facts,
            endpoint=endpoint,
            at=moment,
            terms=self.terms,
            platform=platform,
            prompt_tokens=prompt_tokens,
        )

    def dearest_known(
        self,
        *,
        provider: str,
        at: datetime,
        api_key: ApiKey | None = None,
        attribution: Attribution = NOBODY,
    ) -> Ceiling:
        """Rates to hold for a model that no row names: the dearest standard token rates of any model at `provider`.

        Of all providers when this one is unknown too. The result's `known` is False.
        """
        moment = at.astimezone(UTC)
        canonical = canonical_provider(provider)
        highest = self._highest(canonical, moment)
        platform = self._multipliers.factor(
            provider=provider, models=(), at=moment, api_key=api_key, attribution=attribution
        )
        billed = [None if rate is None else EXACT.multiply(rate, platform) for rate in highest]
        return Ceiling(input=billed[0], output=billed[1], known=False)

    def knows_dearest(self, provider: str) -> bool:
        """Whether `dearest_known` answers at once; else it looks at every price first."""
        known = self._worked.standard
        return "" in known or canonical_provider(provider) in known

    def _highest(self, provider: str, at: datetime) -> tuple[Decimal | None, Decimal | None]:
        worked = self._worked
        rows, changes = self._standard(worked, provider)
        key = (provider, bisect_right(changes, at))
        found = worked.highest.get(key)
        if found is None:
            held = [row for row in rows if row.holds(at)]
            dearest = [
                max((row.per_unit for row in held if row.sku_meter == meter), default=None)
                for meter in ("input", "output")
            ]
            _keep_small(worked.highest)
            found = worked.highest[key] = (dearest[0], dearest[1])
        return found if not provider or found != (None, None) else self._highest("", at)

    def _standard(self, worked: _WorkedPrices, provider: str) -> tuple[Sequence[Price], Sequence[datetime]]:
        """The standard token rates of a provider's models, of all providers for ``""``, and when they change."""
        found = worked.standard.get(provider)
        if found is None:
            rows = [
                row
                for row in worked.price_list.rows_of(provider or None)
                if row.sku_meter in {"input", "output"} and not row.conditions.described()
            ]
            changes = {moment for row in rows for moment in (row.effective_from, row.effective_to) if moment}
            _keep_small(worked.standard)
            found = worked.standard[provider] = (rows, sorted(changes))
        return found

    def _sheet(
        self,
        worked: _WorkedPrices,
        listed: ListedModel,
        mode: tuple[str | None, ...],
        *,
        at: datetime,
        prompt_tokens: int,
        platform: Decimal,
    ) -> RateSheet:
        """The sheet of a model; one is kept per mode, window of time, prompt band and multiplier.

        `mode` has the fields of `Circumstances` in their order, as they came off the wire.
        """
        card = listed.card
        key = (
            listed.provider,
            listed.name,
            mode,
            bisect_left(card.thresholds, prompt_tokens),
            bisect_right(card.boundaries, at),
            (at.toordinal(), bisect_right(card.clock, at.timetz())) if card.clock else None,
            bisect_right(self._changes, at) if self._changes else 0,
            platform,
        )
        sheet = worked.sheets.get(key)
        if sheet is None:
            _keep_small(worked.sheets)
            ends = (card.changes_after(at), _next(self._changes, at))
            sheet = worked.sheets[key] = RateSheet(
                listed,
                context=Circumstances(*mode).canonical(),
                at=at,
                prompt_tokens=prompt_tokens,
                terms=self.terms,
                platform=platform,
                price_list_hash=worked.price_list.hash,
                until=min((end for end in ends if end is not None), default=None),
            )
        return sheet


def _next(moments: Sequence[datetime], at: datetime) -> datetime | None:
    """The first of sorted `moments` that is later than `at`."""
    position = bisect_right(moments, at)
    return moments[position] if position < len(moments) else None


def _keep_small(cache: dict[Any, Any]) -> None:
    """Start over rather than grow for ever, where names come from strangers."""
    if len(cache) >= _MOST_KEPT:
        cache.clear()


def _is_stated(consumption: Consumption) -> bool:
    return consumption.supplied_cost is not None and consumption.supplied_cost.believed


def _ambiguous(consumption: Consumption, listed: ListedModel) -> bool:
    """Whether one of several unseen prompts could have been long enough for a dearer tier."""
    thresholds = listed.card.thresholds
    return bool(thresholds) and consumption.usage.input_tokens > thresholds[0]
