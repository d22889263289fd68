"""The user's own terms: platform multipliers, negotiated discounts, and names for models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Literal

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import MULTIPLIER_SCOPES
from tokenmeter.money import ONE
from tokenmeter.providers.hosts import canonical_provider

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
        factor: What remains to be paid: ``Decimal("0.8")`` for 20 % off.
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

    def platform(
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
            provider: Canonical provider id.
            models: Names the call's model goes by.
            at: When the call left.
            api_key: Key used.
            attribution: On whose account.
        """
        if not self.multipliers:
            return ONE
        names = {name.lower() for name in models if name}
        keys = {api_key.alias, api_key.label} if api_key else set[str | None]()

        def agrees(name: str, value: str) -> bool:
            if name == "api_key":
                return value in keys
            if name == "model":
                return value.lower() in names
            if name == "provider":
                return value == provider
            return bool(value == getattr(attribution, name))

        fitting = [
            (rule.specificity, _since(rule.effective_from), position, rule.factor)
            for position, rule in enumerate(self.multipliers)
            if _holds(rule, at) and all(agrees(name, value) for name, value in rule.scope)
        ]
        return max(fitting)[-1] if fitting else ONE

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


def _holds(rule: Multiplier | Discount | FreeQuota, at: datetime) -> bool:
    return (rule.effective_from is None or rule.effective_from <= at) and (
        rule.effective_to is None or at < rule.effective_to
    )


def _since(moment: datetime | None) -> datetime:
    return moment or _EVER
