"""A rate card: every price of one model, and which of them applies in a given context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import NamedTuple

from tokenmeter.money import EXACT, ONE
from tokenmeter.pricing.price import EVERY_MODEL, TOKEN_CLASSES, Price, canonical_condition
from tokenmeter.pricing.rules import Doubt, RateRule

#: Where a class without a price of its own takes it from, nearest first. A modality falls back to text, a cache read
#: without a discount is a fresh input token. A write of a longer lifetime never falls back: it would be too cheap.
_NEAREST: dict[str, tuple[str, ...]] = {
    "input_audio": ("input",),
    "input_image": ("input",),
    "input_video": ("input",),
    "cache_read": ("input",),
    "cache_read_audio": ("input_audio", "cache_read", "input"),
    "cache_read_image": ("input_image", "cache_read", "input"),
    "cache_read_video": ("input_video", "cache_read", "input"),
    "cache_write": ("input",),
    "cache_write_5m": ("cache_write", "input"),
    "cache_write_30m": ("cache_write", "input"),
    "output_audio": ("output",),
    "output_image": ("output",),
    "output_video": ("output",),
}
_MODES = ("speed", "service_tier", "processing")
_PLACES = ("geo", "region")


class Circumstances(NamedTuple):
    """What, besides the model and the moment, decides a price. None = the standard case."""

    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    endpoint: str | None = None

    def canonical(self) -> Circumstances:
        """The same context, its values as they came off the wire put into their one spelling."""
        tier = canonical_condition("service_tier", self.service_tier)
        mode = canonical_condition("processing", self.processing)
        if tier == "batch":  # Anthropic says so in the tier
            tier, mode = None, "batch"
        places = canonical_condition("geo", self.geo), canonical_condition("region", self.region)
        return Circumstances(tier, mode, canonical_condition("speed", self.speed), *places, self.endpoint)

    def standard(self) -> Circumstances:
        """The same context in no mode at all."""
        return Circumstances(endpoint=self.endpoint, geo=self.geo, region=self.region)

    def without(self, dimension: str) -> Circumstances:
        """The same context in the standard case of one dimension."""
        return self._replace(**{dimension: None})

    @property
    def modes(self) -> tuple[str, ...]:
        """Names of the modes that are not standard."""
        return tuple(name for name in _MODES if getattr(self, name) is not None)


class Quote(NamedTuple):
    """The public price of one unit of one meter in one context.

    Attributes:
        per_unit: US dollars per single unit.
        row: The row it comes from.
        rules: Rules by which it follows from that row.
    """

    per_unit: Decimal
    row: Price
    rules: tuple[RateRule, ...] = ()

    def times(self, rule: RateRule) -> Quote:
        """This quote under one more rule."""
        return Quote(EXACT.multiply(self.per_unit, rule.factor), self.row, (*self.rules, rule))


class Factor(NamedTuple):
    """A multiplier on list cost for where a call was served, and the rule that says so."""

    name: str
    value: Decimal
    rule: RateRule


class RateCard:
    """The prices of one model as one provider sells it.

    Args:
        provider: Canonical provider id of the call.
        model: Listed model id.
        rows: Its prices of all layers, the strongest layer first.
        rules: Rules; those about this provider and model count.
        name: How the call named the model, where that differs.
        names: What the rows may call it, the most literal first.
        doubted: When nobody recorded what the name meant or cost, so that the price is an assumption.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        rows: Iterable[Price],
        rules: Iterable[RateRule],
        *,
        name: str | None = None,
        names: Iterable[str] = (),
        doubted: Doubt | None = None,
    ) -> None:
        self.doubted = doubted
        self.provider = provider
        self.model = model
        self.rows = tuple(rows)
        known = (model, name.lower()) if name else (model,)
        self.rules = tuple(rule for rule in rules if provider in rule.providers and rule.covers(known))
        self._literal = {each: -place for place, each in enumerate(names, 1)}
        self._by_meter: dict[str, list[Price]] = {}
        for row in self.rows:
            self._by_meter.setdefault(row.sku_meter, []).append(row)
        self._mode_rules = [rule for rule in self.rules if rule.kind == "mode"]
        self._derived = [rule for rule in self.rules if rule.kind == "derived"]
        self._place_rules = [rule for rule in self.rules if rule.kind == "multiplier"]
        self._placed_by_name = [rule for rule in self._place_rules if rule.when is None]
        self.thresholds = tuple(sorted({row.conditions.min_input_tokens for row in self.rows} - {0}))
        doubts = {doubted.since, doubted.until} if doubted else set[datetime | None]()
        self.boundaries = tuple(sorted(_instants(self.rows, self.rules) | {each for each in doubts if each}))
        self.clock = tuple(sorted(_clock(self.rows)))

    def changes_after(self, at: datetime) -> datetime | None:
        """The first instant later than `at` at which some price may change; None when none is known."""
        ahead = [moment for moment in self.boundaries if moment > at][:1]
        if self.clock:
            days = (at.date(), at.date() + timedelta(days=1))
            ahead += [moment for day in days for each in self.clock if (moment := datetime.combine(day, each)) > at]
        return min(ahead, default=None)

    @property
    def meters(self) -> Iterable[str]:
        """Every meter that has a row."""
        return self._by_meter.keys()

    def __contains__(self, sku_meter: str) -> bool:
        return sku_meter in self._by_meter

    def quote(self, sku_meter: str, context: Circumstances, at: datetime, prompt_tokens: int) -> Quote | None:
        """The public price of a meter, or None when none is known. It is never another mode's price by accident.

        Args:
            sku_meter: What was used.
            context: In which context.
            at: When the call left, aware UTC.
            prompt_tokens: Size of the prompt that chooses a long-context tier.
        """
        found = self._own(sku_meter, context, at, prompt_tokens)
        if found is not None:
            return found
        for rule in self._derived:
            if sku_meter in rule.sku_meters and rule.base and rule.holds(at):
                base = self.quote(rule.base, context, at, prompt_tokens)
                return None if base is None else base.times(rule)
        if context.modes and self._own(sku_meter, context.standard(), at, prompt_tokens) is not None:
            return None  # the class has a price of its own, only not in this mode
        nearest = (self._own(each, context, at, prompt_tokens) for each in _NEAREST.get(sku_meter, ()))
        return next((quote for quote in nearest if quote is not None), None)

    def _own(self, sku_meter: str, context: Circumstances, at: datetime, prompt_tokens: int) -> Quote | None:
        """The price of exactly this meter: its row, or what the mode makes of the row it has in the standard case."""
        row = self._row(sku_meter, context, at, prompt_tokens)
        if row is not None:
            return Quote(row.per_unit, row)
        if not context.modes:
            return None
        if sku_meter in TOKEN_CLASSES and not self._leaves_out(context, at, prompt_tokens):
            return self._by_rule(sku_meter, context, at, prompt_tokens)
        # What is sold by the piece costs the same in every mode, unless a rule names it.
        ruled = None if sku_meter in TOKEN_CLASSES else self._by_rule(sku_meter, context, at, prompt_tokens)
        return ruled or self._own(sku_meter, context.standard(), at, prompt_tokens)

    def _by_rule(self, sku_meter: str, context: Circumstances, at: datetime, prompt_tokens: int) -> Quote | None:
        """The price that a mode's rule makes of the price without that mode; rules of several modes compose."""
        for dimension in context.modes:
            value = getattr(context, dimension)
            for rule in self._mode_rules:
                if rule.applies(dimension, value) and sku_meter in rule.sku_meters and rule.holds(at):
                    base = self._own(sku_meter, context.without(dimension), at, prompt_tokens)
                    if base is not None:
                        return base.times(rule)
        return None

    def _leaves_out(self, context: Circumstances, at: datetime, prompt_tokens: int) -> bool:
        """Whether the one mode is listed for this model: a class its list leaves out keeps its standard price."""
        return len(context.modes) == 1 and self._row("input", context, at, prompt_tokens) is not None

    def _row(self, sku_meter: str, context: Circumstances, at: datetime, prompt_tokens: int) -> Price | None:
        best: Price | None = None
        best_key: tuple[int, ...] = ()
        for position, row in enumerate(self._by_meter.get(sku_meter, ())):
            if row.holds(at) and row.conditions.hold_at(at) and _met(row, context, prompt_tokens):
                key = self._strength(row, position)
                if best is None or key > best_key:
                    best, best_key = row, key
        return best

    def in_force(self, at: datetime) -> Iterator[Price]:
        """The rows by which calls are priced at `at`, at whatever hour: those that no stronger row leaves unused."""
        for rows in self._by_meter.values():
            held = [(self._strength(row, position), row) for position, row in enumerate(rows) if row.holds(at)]
            for _, row in held:
                asked = row.conditions
                context = Circumstances(*(getattr(asked, name) for name in Circumstances._fields))
                rivals = (
                    (strength, other)
                    for strength, other in held
                    if other.conditions.hours in {None, asked.hours}
                    and other.conditions.weekdays in {None, asked.weekdays}
                    and _met(other, context, asked.min_input_tokens + 1)
                )
                if max(rivals, key=itemgetter(0))[1] is row:
                    yield row

    def _strength(self, row: Price, position: int) -> tuple[int, ...]:
        """How strong a row is among those that hold: the first part that differs decides.

        The user's rows go before the project's, and those before all others. Then a row of the seller itself goes
        before one of the maker whose model it resells; then one that names the model before one for every model. (What
        is shipped for every model only fills gaps: the catalog goes before it.) Then the name that is nearest to the
        call's: a snapshot's row goes before its family's. Then the narrower place or hours, the rank, the higher tier,
        the later date, the later row.
        """
        conditions = row.conditions
        named = row.model != EVERY_MODEL
        known = 2 if named and row.origin != "genai-prices" else int(row.origin != "tokenmeter")
        literal = self._literal.get(row.model, -len(self._literal) - 1)
        narrowing = (conditions.geo, conditions.region, conditions.endpoint, conditions.hours, conditions.weekdays)
        narrow = sum(value is not None for value in narrowing)
        since = int(row.effective_from.timestamp()) if row.effective_from else 0
        own = row.provider == self.provider
        layer = _LAYERS.get(row.origin, 0)
        return layer, own, known, literal, narrow, row.rank, conditions.min_input_tokens, since, position

    def assumes(self, quote: Quote, sku_meter: str, context: Circumstances) -> bool:
        """Whether a quote stands in for the rate of a cached class that nobody publishes.

        So does the standard rate where the list of a mode leaves the class out, unless a rule of that mode does so,
        too: the discount may be that of the other classes, or gone altogether.
        """
        if not sku_meter.startswith("cache_"):
            return False
        if not quote.row.sku_meter.startswith("cache_"):
            return all(rule.kind != "derived" for rule in quote.rules)
        if quote.rules or all(getattr(quote.row.conditions, mode) is not None for mode in context.modes):
            return False
        of_tokens = (rule for rule in self._mode_rules if not rule.sku_meters.isdisjoint(TOKEN_CLASSES))
        return not any(
            rule.applies(mode, getattr(context, mode)) and sku_meter not in rule.sku_meters
            for rule in of_tokens
            for mode in context.modes
        )

    def places(self, quote: Quote, sku_meter: str, context: Circumstances, at: datetime) -> tuple[Factor, ...] | str:
        """Multipliers for where the call was served, or the name of the place that is unknown.

        One of 1 is left out, unless it is an assumption about a price that is not the user's own.
        """
        if sku_meter not in TOKEN_CLASSES:
            return ()
        found: list[Factor] = []
        for dimension in _PLACES:
            value = getattr(context, dimension)
            if value is None or getattr(quote.row.conditions, dimension) == value:
                continue
            factor = self._place(dimension, value, at)
            if factor is None:
                return dimension
            found.append(factor)
        if context.region is None:  # else the name says it once more
            found += [Factor("region", rule.factor, rule) for rule in self._placed_by_name if rule.holds(at)]
        shipped = quote.row.origin not in _LAYERS
        return tuple(each for each in found if each.value != ONE or (each.rule.assumed and shipped))

    def _place(self, dimension: str, value: str, at: datetime) -> Factor | None:
        for rule in self._place_rules:
            if rule.applies(dimension, value) and rule.holds(at):
                return Factor(dimension, rule.factor, rule)
        return None


_MIDNIGHT = time(tzinfo=UTC)
_LAYERS = {"user": 2, "project": 1}


def find_in_force(rows: Iterable[Price], at: datetime) -> Iterator[Price]:
    """Of rows of many models those by which calls to each are priced at `at`, model by model.

    Args:
        rows: Of each model the strongest layer first.
        at: Aware UTC.
    """
    models: dict[tuple[str, str], list[Price]] = {}
    for row in rows:
        models.setdefault((row.provider, row.model.lower()), []).append(row)
    for (provider, model), each in models.items():
        yield from RateCard(provider, model, each, ()).in_force(at)


def _met(row: Price, context: Circumstances, prompt_tokens: int) -> bool:
    """Whether a row's conditions are met, those of the clock aside."""
    conditions = row.conditions
    return (
        conditions.service_tier == context.service_tier
        and conditions.processing == context.processing
        and conditions.speed == context.speed
        and conditions.geo in {None, context.geo}
        and conditions.region in {None, context.region}
        and (conditions.endpoint is None or _is_of(context.endpoint, conditions.endpoint))
        and (not conditions.min_input_tokens or prompt_tokens > conditions.min_input_tokens)
    )


def _is_of(endpoint: str | None, wanted: str) -> bool:
    """Whether `endpoint` is `wanted` or one of its methods: ``beta.responses`` and ``responses.retrieve`` are."""
    bare = (endpoint or "").removeprefix("beta.")
    return bare == wanted or bare.startswith(f"{wanted}.")


def _clock(rows: Iterable[Price]) -> set[time]:
    """Every time of day at which some price may change."""
    clock = {moment for row in rows for moment in row.conditions.hours or ()}
    return clock | {_MIDNIGHT} if any(row.conditions.weekdays for row in rows) else clock


def _instants(rows: Iterable[Price], rules: Iterable[RateRule]) -> set[datetime]:
    """Every instant at which some price may change."""
    moments = {moment for row in rows for moment in (row.effective_from, row.effective_to)}
    moments |= {moment for rule in rules for moment in (rule.since, rule.until)}
    return {moment for moment in moments if moment is not None}
