"""A price (one row of a list, and when it holds), and the terms of the user: multipliers, discounts, model names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import MULTIPLIER_SCOPES, TOKEN_METERS
from tokenmeter.money import EXACT, ONE
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.values import dataclass

#: As a row's model: every model of the provider (hosted tools cost the same whichever model called them).
EVERY_MODEL = "*"
#: Meters that have prices per mode and place; hosted tools and other meters cost the same in each, unless a row says
#: otherwise. ``cache_write`` is the class whose lifetime nobody stated, from which 5 and 30 minutes inherit.
TOKEN_CLASSES = frozenset({*TOKEN_METERS, "cache_write"})
#: Layers, the strongest first.
Origin = Literal["user", "project", "tokenmeter", "genai-prices"]


#: Names of the days of the week, as rows write them.
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TOLD: Mapping[str, Callable[[Any], str]] = {
    "hours": lambda hours: f"{hours[0]:%H:%M}-{hours[1]:%H:%M}Z",
    "weekdays": lambda days: "+".join(map(dict(enumerate(WEEKDAYS, start=1)).__getitem__, days)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """When a price holds. None holds for the standard case only, never for "any".

    Attributes:
        service_tier: ``flex``, ``priority``, ``ultrafast``, ...; None = the standard tier.
        processing: ``batch``; None = synchronous.
        speed: ``fast``; None = standard.
        geo: Inference geography this very price is for; None = wherever (a geo multiplier may apply on top).
        region: Region or data zone this very price is for; None = wherever (a region multiplier may apply on top).
        endpoint: SDK method path this price is for, with the methods below it; None = every endpoint.
        min_input_tokens: Holds for prompts with strictly MORE tokens than this; 0 = every prompt.
        hours: Daily ``[start, end)`` in UTC; None = all day.
        weekdays: Days of the week in UTC, 1 = Monday ... 7 = Sunday; None = every day.
    """

    service_tier: str | None = None
    processing: str | None = None
    speed: str | None = None
    geo: str | None = None
    region: str | None = None
    endpoint: str | None = None
    min_input_tokens: int = 0
    hours: tuple[time, time] | None = None
    weekdays: tuple[int, ...] | None = None

    def described(self) -> dict[str, str]:
        """The conditions that are set, as text."""
        found: dict[str, str] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value:
                found[each.name] = _TOLD.get(each.name, str)(value)
        return found

    def hold_at(self, at: datetime) -> bool:
        """Whether day and hour are right; `at` in UTC."""
        if self.weekdays is not None and at.isoweekday() not in self.weekdays:
            return False
        if self.hours is None:
            return True
        start, end = (each.replace(tzinfo=None) for each in self.hours)
        moment = at.timetz().replace(tzinfo=None)
        return start <= moment < end if start <= end else moment >= start or moment < end


ANY_TIME = Conditions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one unit of one meter of one model costs, when, and who says so.

    Attributes:
        provider: Provider id (genai-prices' spelling).
        model: Model id of the price list.
        sku_meter: `tokenmeter.dimensions` meter.
        unit_price: US dollars per `per` units.
        per: Units that `unit_price` pays for, for example 1,000,000 tokens.
        effective_from: First instant (aware UTC) at which it holds; None = since ever.
        effective_to: First instant at which it no longer holds; None = until further notice.
        conditions: When it holds.
        source: URL or file that says so.
        verified_on: Day on which the source was read; None when unknown.
        origin: Layer the row comes from.
        rank: Among rows of one layer that hold at once, the higher wins.
    """

    provider: str
    model: str
    sku_meter: str
    unit_price: Decimal
    per: int = 1_000_000
    effective_from: datetime | None = None
    effective_to: datetime | None = None
    conditions: Conditions = ANY_TIME
    source: str | None = None
    verified_on: date | None = None
    origin: Origin = "user"
    rank: int = 0

    @property
    def per_unit(self) -> Decimal:
        """US dollars per single unit, exact to 60 digits."""
        return EXACT.divide(self.unit_price, Decimal(self.per))

    def holds(self, at: datetime) -> bool:
        """Whether the row is effective at `at` (aware)."""
        return _holds(self, at)

    def identity(self, price_list: str) -> str:
        """The row, its effective date and its price list in one line: what a charge keeps as ``price_id``."""
        conditions = ",".join(f"{key}={value}" for key, value in self.conditions.described().items())
        since = f"@{self.effective_from:%Y-%m-%d}" if self.effective_from else ""
        condition = f"[{conditions}]" if conditions else ""
        return f"{self.provider}/{self.model}/{self.sku_meter}{condition}{since}#{price_list[:12]}"

    def to_dict(self) -> Mapping[str, str]:
        """The row as text, for tables, exports and hashing."""
        row = {
            "provider": self.provider,
            "model": self.model,
            "sku_meter": self.sku_meter,
            "unit_price": f"{self.unit_price:f}",
            "per": str(self.per),
            "effective_from": self.effective_from.isoformat() if self.effective_from else "",
            "effective_to": self.effective_to.isoformat() if self.effective_to else "",
            **self.conditions.described(),
            "source": self.source or "",
            "verified_on": self.verified_on.isoformat() if self.verified_on else "",
            "origin": self.origin,
        }
        return {key: value for key, value in row.items() if value}


def midnight(day: date) -> datetime:
    """The first instant of a UTC day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


#: Spellings of the standard case on the wire.
_STANDARD: Mapping[str, frozenset[str]] = {
    "service_tier": frozenset({"default", "standard", "auto", "on_demand", "standard_only", ""}),
    "processing": frozenset({"sync", "standard", ""}),
    "speed": frozenset({"standard", ""}),
    "geo": frozenset({"global", "not_available", ""}),
    "region": frozenset({"global", ""}),
}


#: What these are known to say, beside what rows of one's own have prices for.
KNOWN_MODES = {
    "service_tier": frozenset({
        *("auto", "default", "standard", "standard_only", "on_demand", "flex", "scale", "priority", "fast"),
        *("ultrafast", "batch", "offpeak", "performance", "provisioned", "reserved"),
    }),
    "speed": frozenset({"fast", "standard"}),
}  # fmt: skip


def canonical_condition(dimension: str, value: str | None) -> str | None:
    """A condition's value in its one spelling; None for every spelling of the standard case."""
    if value is None:
        return None
    text = value.strip().lower()
    if text in _STANDARD.get(dimension, ()):
        return None
    # OpenAI renamed its priority processing to fast mode; both are asked for, answered and billed alike.
    return "priority" if dimension == "service_tier" and text == "fast" else text


_EVER = datetime.min.replace(tzinfo=UTC)
_NO_MAPS: Mapping[str, Mapping[str, str]] = MappingProxyType({})
_NO_UNITS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplier:
    """A platform multiplier and what it is about.

    Attributes:
        factor: For example ``Decimal("1.05")``.
        scope: ``(name, value)`` pairs out of `MULTIPLIER_SCOPES`; all must agree with the call; empty = every call.
            ``api_key`` is the key's alias or label (``...last4``).
        effective_from: First instant (aware UTC) it holds.
        effective_to: First instant it no longer holds.
    """

    factor: Decimal
    scope: tuple[tuple[str, str], ...] = ()
    effective_from: datetime | None = None
    effective_to: datetime | None = None

    @property
    def specificity(self) -> tuple[int, ...]:
        """Orders multipliers: one that names a more specific thing beats any that does not."""
        named = {name for name, _ in self.scope}
        return tuple(int(name in named) for name in MULTIPLIER_SCOPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discount:
    """A negotiated discount: upstream cost times `factor`.

    Attributes:
        factor: What remains to be paid: ``Decimal("0.8")`` for 20% off.
        provider: Provider id; None = all.
        model: Model as listed or as named by the provider; None = all.
        sku_meter: Meter; None = all.
        effective_from: First instant (aware UTC) it holds.
        effective_to: First instant it no longer holds.
    """

    factor: Decimal
    provider: str | None = None
    model: str | None = None
    sku_meter: str | None = None
    effective_from: datetime | None = None
    effective_to: datetime | None = None

    @property
    def specificity(self) -> tuple[bool, bool, bool]:
        """Model beats meter beats provider."""
        return self.model is not None, self.sku_meter is not None, self.provider is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeQuota:
    """What a provider gives free of charge in each day or month, to a project and not to a call.

    Attributes:
        name: How it is called on what it credits.
        provider: Provider id.
        sku_meter: Meter of which it is.
        quantity: How much of it is free in each window.
        per: ``day`` or ``month``.
        models: Patterns (``gemini-3*``) of models that share it; empty = all.
        api_keys: Aliases or labels of the keys of the project that it is given to; empty = all.
        tz: Time zone in which its windows begin.
        effective_from: First instant (aware UTC) it holds.
        effective_to: First instant it no longer holds.
    """

    name: str
    provider: str
    sku_meter: str
    quantity: int
    per: Literal["day", "month"]
    models: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    tz: str = "UTC"
    effective_from: datetime | None = None
    effective_to: datetime | None = None

    def holds(self, at: datetime) -> bool:
        """Whether it was given at that instant."""
        return _holds(self, at)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the user agreed with providers and asks of the platform's own users.

    Of several multipliers (or discounts) that fit a call exactly one applies: the most specific; among equals, the one
    that took effect last; among those, the one written last. Factors are never stacked.

    Attributes:
        multipliers: Platform multipliers; none fits = 1.
        discounts: Negotiated discounts; none fits = 1.
        model_maps: provider (or ``*``) -> {name: model}. Azure deployments and private aliases.
        cost_units: Provider id or prefix of a base URL -> what the ``cost`` in its usage is, where the user says so;
            see `tokenmeter.call.RequestFacts.cost_unit`.
        free_quotas: What providers give free of charge; calls are priced at the list, and it is credited afterwards.
    """

    multipliers: tuple[Multiplier, ...] = ()
    discounts: tuple[Discount, ...] = ()
    model_maps: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: _NO_MAPS)
    cost_units: Mapping[str, str] = field(default_factory=lambda: _NO_UNITS)
    free_quotas: tuple[FreeQuota, ...] = ()

    def cost_unit(self, provider: str, url: str = "") -> str | None:
        """What the user says of costs that `provider`, at a base `url`, puts into its usage; the URL goes first."""
        if not self.cost_units:
            return None
        matches = [prefix for prefix in self.cost_units if "://" in prefix and url.startswith(prefix)]
        return self.cost_units.get(max(matches, key=len) if matches else canonical_provider(provider))

    def model(self, provider: str, name: str) -> str:
        """The model that `name` stands for at `provider`."""
        for scope in (provider, "*"):
            mapped = self.model_maps.get(scope)
            if mapped and name in mapped:
                return mapped[name]
        return name

    def discount(self, *, provider: str, models: Iterable[str], sku_meter: str, at: datetime) -> Decimal:
        """The negotiated factor on a meter of a model."""
        names = {name.lower() for name in models}
        fitting = [
            (rule.specificity, _since(rule.effective_from), position, rule.factor)
            for position, rule in enumerate(self.discounts)
            if _holds(rule, at)
            and rule.provider in {None, provider}
            and (rule.model is None or rule.model in names)
            and rule.sku_meter in {None, sku_meter}
        ]
        return max(fitting)[-1] if fitting else ONE


class Multipliers:
    """Platform multipliers, each found by one thing that it names, so that a call does not look at all of them.

    Args:
        rules: The multipliers, as they were written.
    """

    def __init__(self, rules: Iterable[Multiplier]) -> None:
        #: A name and a value -> position, rule and scope of those that are found by it; by "" those that name nothing.
        self._found_by: dict[tuple[str, str], list[tuple[int, Multiplier, tuple[tuple[str, str], ...]]]] = {}
        for position, rule in enumerate(rules):
            scope = tuple((name, value.lower() if name == "model" else value) for name, value in rule.scope)
            self._found_by.setdefault(scope[0] if scope else ("", ""), []).append((position, rule, scope))
        self._names = {name for name, _ in self._found_by}

    def factor(
        self,
        *,
        provider: str,
        models: Iterable[str | None],
        at: datetime,
        api_key: ApiKey | None,
        attribution: Attribution,
    ) -> Decimal:
        """The platform multiplier of a call.

        Args:
            provider: Provider id.
            models: Names the call's model goes by.
            at: When the call left.
            api_key: Key used.
            attribution: On whose account.
        """
        if not self._found_by:
            return ONE
        called: dict[str, set[str | None]] = {
            "": {""},
            "provider": {canonical_provider(provider)},
            "model": {name.lower() for name in models if name},
            "api_key": {api_key.alias, api_key.label} if api_key else set(),
        }

        def values(name: str) -> set[str | None]:
            return called[name] if name in called else {getattr(attribution, name)}

        fitting = [
            (rule.specificity, _since(rule.effective_from), position, rule.factor)
            for name in self._names
            for value in values(name)
            if value is not None
            for position, rule, scope in self._found_by.get((name, value), ())
            if _holds(rule, at) and all(wanted in values(each) for each, wanted in scope)
        ]
        return max(fitting)[-1] if fitting else ONE


def _holds(rule: Price | Multiplier | Discount | FreeQuota, at: datetime) -> bool:
    return (rule.effective_from is None or rule.effective_from <= at) and (
        rule.effective_to is None or at < rule.effective_to
    )


def _since(moment: datetime | None) -> datetime:
    return moment or _EVER
