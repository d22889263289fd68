"""Pricing rules: how a rate follows from another where no row states it.

They live as dated, sourced data in ``overrides.toml``; this module gives them their meaning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

from tokenmeter.money import ONE
from tokenmeter.pricing import edition
from tokenmeter.pricing.edition import Launch
from tokenmeter.pricing.price import TOKEN_CLASSES, Price, midnight

RuleKind = Literal["mode", "multiplier", "derived"]


class RateRule(NamedTuple):
    """One way in which a rate follows from another.

    Attributes:
        kind: ``mode``: the rate of a mode (``when``) is `factor` x the rate without it.
            ``multiplier``: list costs are multiplied by `factor` when `when` holds (geo, region), or where the
            model's name says where it is served.
            ``derived``: each of `sku_meters` costs `factor` x `base`.
        providers: Canonical provider ids of the call.
        models: Patterns of model ids it covers.
        except_models: Patterns it does not.
        when: ``(dimension, value)``; value ``*`` is anything, ``us-*`` what begins so. None = always.
        sku_meters: Meters it covers.
        factor: The factor.
        assumed: Whether nobody publishes the factor, so that what it makes is flagged ``region_rate_assumed``.
        base: The meter it is taken from.
        since: First instant.
        until: First instant at which it no longer holds.
        source: URL that says so.
        verified_on: Day on which it was read.
    """

    kind: RuleKind
    providers: frozenset[str]
    models: tuple[str, ...] = ("*",)
    except_models: tuple[str, ...] = ()
    when: tuple[str, str] | None = None
    sku_meters: frozenset[str] = TOKEN_CLASSES
    factor: Decimal = ONE
    assumed: bool = False
    base: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    source: str = ""
    verified_on: date | None = None

    def covers(self, names: Iterable[str]) -> bool:
        """Whether the rule is about the model that goes by `names`: its listed id, and how the call named it."""
        known = tuple(names)
        return _any(self.models, known) and not _any(self.except_models, known)

    def holds(self, at: datetime) -> bool:
        """Whether the rule is effective at `at`."""
        return (self.since is None or self.since <= at) and (self.until is None or at < self.until)

    def applies(self, dimension: str, value: str) -> bool:
        """Whether its condition is met by ``dimension = value``."""
        return self.when is not None and self.when[0] == dimension and fnmatchcase(value, self.when[1])


class Doubt(NamedTuple):
    """When nobody recorded what a name meant, or what it cost.

    Attributes:
        since: First instant of doubt; None = from the beginning.
        until: First instant at which it is known again.
    """

    since: datetime | None
    until: datetime

    def at(self, moment: datetime) -> bool:
        """Whether a price at `moment` is an assumption."""
        return moment < self.until and (self.since is None or self.since <= moment)


class Overrides(NamedTuple):
    """What the price data lacks, with source and date: further rows, rules, launches, limits and aliases.

    Attributes:
        groups: Tables of rows of models or meters that the catalog lacks or has wrong; see `prices` and `rows_of`.
        rules: See `RateRule`.
        launches: See `tokenmeter.pricing.edition.Launch`.
        limits: Model id pattern -> largest answer in tokens.
        aliases: provider -> {name: listed id}.
        doubts: (provider, name) of names that meant, or of models that cost, something else on a day nobody recorded.
        text: The file, for hashing.
    """

    groups: tuple[Mapping[str, Any], ...]
    rules: tuple[RateRule, ...]
    launches: tuple[Launch, ...]
    limits: tuple[tuple[str, int], ...]
    aliases: dict[str, dict[str, str]]
    doubts: dict[tuple[str, str], Doubt]
    text: str

    @property
    def prices(self) -> tuple[Price, ...]:
        """Every row."""
        return _parsed(each for group in self.groups for each in _spread(group, group["models"]))

    def rows_of(self, provider: str, model: str) -> tuple[Price, ...]:
        """The rows of one model; a process needs a few of them, so that not all are made at its start."""
        wanted = (group for group in self.groups if group["provider"] == provider and model in group["models"])
        return _parsed(each for group in wanted for each in _spread(group, (model,)))

    def max_output_tokens(self, model: str) -> int | None:
        """Largest answer `model` can give in tokens; None when unknown."""
        return next((limit for pattern, limit in self.limits if fnmatchcase(model, pattern)), None)


@cache
def load_overrides() -> Overrides:
    """The overrides shipped with this package."""
    text = (resources.files("tokenmeter.pricing") / "overrides.toml").read_text(encoding="utf-8")
    raw = _decoded(text)
    return Overrides(
        groups=tuple(raw["prices"]),
        rules=tuple(_rule(each) for each in raw["rules"]),
        launches=tuple(_launch(each) for each in raw["launches"]),
        limits=tuple((pattern, limit) for pattern, limit in raw["max_output_tokens"].items()),
        aliases=raw["aliases"],
        doubts={(each["provider"], name): _doubt(each) for each in raw["doubts"] for name in each["names"]},
        text=text,
    )


def _decoded(text: str) -> dict[str, Any]:
    """The file as JSON has it (days and amounts as text), from a kept file where one is at hand: it reads quicker."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    kept = edition.read_kept("overrides", digest)
    if kept is None:
        import tomllib  # noqa: PLC0415 - once per release

        kept = json.dumps(edition.json_value(tomllib.loads(text, parse_float=Decimal)), separators=(",", ":")).encode()
        edition.keep("overrides", digest, kept)
    decoded: dict[str, Any] = json.loads(kept)
    return decoded


def _parsed(rows: Iterable[Mapping[str, Any]]) -> tuple[Price, ...]:
    from tokenmeter.pricing.parse import parse_prices  # noqa: PLC0415 - at the first look-up of a model that has rows

    return parse_prices(rows, file="overrides.toml", origin="tokenmeter")


def _day(text: str) -> date:
    return date.fromisoformat(text)


def _spread(group: Mapping[str, Any], models: Iterable[str]) -> list[dict[str, Any]]:
    """One row per model, span of hours, period and meter of a group.

    ``{models = [...], rates = {meter = price}, hours = [span, ...], periods = [[from, to], ...], ...shared}``
    """
    shared = {key: value for key, value in group.items() if key not in {"models", "rates", "hours", "periods"}}
    hours: list[dict[str, Any]] = [{"hours": span} for span in group.get("hours", ())] or [{}]
    periods = [
        dict(zip(("effective_from", "effective_to"), each, strict=False)) for each in group.get("periods", ((),))
    ]
    return [
        {**shared, **span, **period, "model": model, "sku_meter": meter, "unit_price": price}
        for model in models
        for period in periods
        for span in hours
        for meter, price in group["rates"].items()
    ]


def _rule(raw: dict[str, Any]) -> RateRule:
    when = next(iter(raw["when"].items())) if "when" in raw else None
    meters = frozenset(raw.get("sku_meters", ("tokens",)))
    return RateRule(
        kind=raw["kind"],
        providers=frozenset(raw["providers"]),
        models=tuple(raw.get("models", ("*",))),
        except_models=tuple(raw.get("except_models", ())),
        when=when,
        sku_meters=meters - {"tokens"} | TOKEN_CLASSES if "tokens" in meters else meters,
        factor=Decimal(raw.get("factor", 1)),
        assumed=raw.get("assumed", False),
        base=raw.get("base"),
        since=midnight(_day(raw["since"])) if "since" in raw else None,
        until=midnight(_day(raw["until"])) if "until" in raw else None,
        source=raw["source"],
        verified_on=_day(raw["verified_on"]),
    )


def _launch(raw: dict[str, Any]) -> Launch:
    ((dimension, value),) = raw["when"].items()
    return Launch(
        providers=frozenset(raw["providers"]),
        mode=(dimension, value),
        since=_day(raw["since"]),
        recorded=(_day(raw["recorded"][0]), _day(raw["recorded"][1])),
        models=frozenset(raw.get("models", ())),
    )


def _doubt(raw: dict[str, Any]) -> Doubt:
    since = midnight(_day(raw["unknown_since"])) if "unknown_since" in raw else None
    return Doubt(since, midnight(_day(raw["known_since"])))


def _any(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
