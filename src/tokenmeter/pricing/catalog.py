"""genai-prices as a price list: data only, read lazily, one model at a time. The only reader of ``genai_prices``.

Neither its matching (prefix and containment clauses match models that do not exist yet) nor its arithmetic is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmeter.money import EXACT, ZERO
from tokenmeter.pricing.matching import listed_names, undated
from tokenmeter.pricing.price import Conditions, Price, midnight

if TYPE_CHECKING:
    from genai_prices import types as genai

__all__ = ["Catalog", "CatalogModel", "Launch"]

#: genai-prices' price keys as our meters and the units one price pays for. `cache_write` is the class without a
#: stated lifetime, from which the TTL classes inherit (see `tokenmeter.pricing.card`).
_METERS: dict[str, tuple[str, int]] = {
    "input_mtok": ("input", 1_000_000),
    "input_audio_mtok": ("input_audio", 1_000_000),
    "input_image_mtok": ("input_image", 1_000_000),
    "input_video_mtok": ("input_video", 1_000_000),
    "cache_read_mtok": ("cache_read", 1_000_000),
    "cache_audio_read_mtok": ("cache_read_audio", 1_000_000),
    "cache_image_read_mtok": ("cache_read_image", 1_000_000),
    "cache_video_read_mtok": ("cache_read_video", 1_000_000),
    "cache_write_mtok": ("cache_write", 1_000_000),
    "cache_write_5m_mtok": ("cache_write_5m", 1_000_000),
    "cache_write_1h_mtok": ("cache_write_1h", 1_000_000),
    "output_mtok": ("output", 1_000_000),
    "output_audio_mtok": ("output_audio", 1_000_000),
    "output_image_mtok": ("output_image", 1_000_000),
    "output_video_mtok": ("output_video", 1_000_000),
    "input_mchars": ("characters", 1_000_000),
    "input_audio_hours": ("seconds_audio", 3_600),
    "audio_hours": ("seconds_audio", 3_600),
    "web_searches_kcount": ("web_searches", 1_000),
    "storage_searches_kcount": ("file_searches", 1_000),
    "requests_kcount": ("requests", 1_000),
}
_MODES = {"service_tier", "processing", "speed"}


@dataclass(frozen=True, slots=True)
class Launch:
    """When a mode was first sold, where the catalog only knows since when it recorded the mode's rates.

    Attributes:
        providers: Catalog providers it is about.
        mode: The condition, for example ``("processing", "batch")``.
        since: First day it was sold.
        recorded: First and last day on which the catalog began its records of it.
        models: Only these models; empty = all that have a row.
    """

    providers: frozenset[str]
    mode: tuple[str, str]
    since: date
    recorded: tuple[date, date]
    models: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that the catalog lists.

    Attributes:
        provider: Catalog provider whose rows these are (Azure's GPT models are listed under ``openai``).
        model: The catalog's id.
        context_window: Largest prompt in tokens; None when unknown.
        rows: Its prices.
    """

    provider: str
    model: str
    context_window: int | None
    rows: tuple[Price, ...]


class Catalog:
    """The installed genai-prices data. Importing this module does not import it; the first look-up does."""

    def __init__(self, launches: Iterable[Launch] = ()) -> None:
        self._launches = tuple(launches)
        self._found: dict[tuple[str, str], CatalogModel] = {}

    @property
    def version(self) -> str:
        """The installed version, without importing it."""
        return importlib.metadata.version("genai-prices")

    @property
    def digest(self) -> str:
        """SHA-256 of the data, without importing it: the same data gives the same digest on every machine."""
        return _digest(self.version)

    def find(self, provider: str, names: Iterable[str]) -> CatalogModel | None:
        """The model listed under the first of `names` that is listed, at `provider` or where it takes its models from."""
        listed = _providers().get(provider)
        if listed is None:
            return None
        wanted = tuple(names)
        for source in (provider, *(listed.fallback_model_providers or ())):
            index = _index(source)
            for name in wanted:
                info = index.get(name)
                if info is not None:
                    return self._model(source, info)
        return None

    def models(self) -> Iterator[tuple[str, str]]:
        """Every (provider, model id) listed."""
        for provider in _providers().values():
            for info in provider.models:
                yield provider.id, info.id

    def get(self, provider: str, model: str) -> CatalogModel:
        """The model with exactly this id.

        Raises:
            KeyError: not listed.
        """
        return self._model(provider, next(i for i in _providers()[provider].models if i.id == model))

    def _model(self, provider: str, info: genai.ModelInfo) -> CatalogModel:
        key = (provider, info.id)
        found = self._found.get(key)
        if found is None:
            rows = tuple(_rows(provider, info, self._launches))
            found = self._found[key] = CatalogModel(provider, info.id, info.context_window, rows)
        return found


@cache
def _providers() -> Mapping[str, genai.Provider]:
    from genai_prices import data  # noqa: PLC0415 - half a second: paid by the first look-up, never by an import

    return {provider.id: provider for provider in data.providers}


@cache
def _digest(version: str) -> str:
    package = importlib.util.find_spec("genai_prices")
    data = Path(package.origin).with_name("data.py") if package and package.origin else None
    content = data.read_bytes() if data and data.is_file() else version.encode()
    return hashlib.sha256(content).hexdigest()


# -- names


@cache
def _index(provider: str) -> Mapping[str, genai.ModelInfo]:
    """Name -> model. An id beats a declared alias, which beats the stem of an open-ended clause."""
    index: dict[str, genai.ModelInfo] = {}
    models = _providers()[provider].models
    for info in models:
        index.setdefault(info.id.lower(), info)
    for info in models:
        for name in _aliases(info.match, declared=True):
            index.setdefault(name, info)
    derived: dict[str, set[str]] = {}
    for info in models:
        for name in (*listed_names(provider, info.id.lower()), *_aliases(info.match, declared=False)):
            if name not in index or name in derived:
                index.setdefault(name, info)
                derived.setdefault(name, set()).add(info.id)
    for name, ids in derived.items():
        if len(ids) > 1 and not _same_prices(models, ids):
            del index[name]
    return index


def _same_prices(models: list[genai.ModelInfo], ids: set[str]) -> bool:
    """Whether it makes no difference which of several models a name means."""
    first, *others = (info.prices for info in models if info.id in ids)
    return all(prices == first for prices in others)


def _aliases(clause: Any, *, declared: bool) -> Iterator[str]:
    """Full names out of a match clause: what ``equals`` says, or the stem that an open-ended clause starts from."""
    for inner in (*getattr(clause, "or_", ()), *getattr(clause, "and_", ())):
        yield from _aliases(inner, declared=declared)
    if declared:
        name = getattr(clause, "equals", None)
        if name:
            yield name.lower()
        return
    for kind in ("starts_with", "contains", "ends_with"):
        text = getattr(clause, kind, None)
        if text:
            stem = text.lower().strip("-@:/.")
            yield stem
            if shorter := undated(stem):
                yield shorter


# -- prices


def _rows(provider: str, info: genai.ModelInfo, launches: tuple[Launch, ...]) -> Iterator[Price]:
    chain = _chain(info.prices)
    for rank, (since, until, hours, prices) in enumerate(chain):
        window = _Window(provider, info, since, until, Conditions(hours=hours), rank)
        yield from window.rows(prices)
    for position, variant in enumerate(info.price_variants or ()):
        mode = {key: value for key, value in variant.when.items() if key in _MODES}
        if len(mode) < len(variant.when) or mode == {"service_tier": "default"}:
            continue
        since = getattr(variant.constraint, "start_date", None)
        prices = _values(variant.prices) or _tokens_of(_standard_at(chain, since))
        window = _Window(provider, info, since, None, Conditions(**mode), -position)
        yield from window.rows(prices)
        launch = _launch(launches, provider, info.id, mode, since)
        if launch and since:
            yield from _carried_back(window, prices, chain, launch)


def _tokens_of(standard: Mapping[str, Any]) -> Mapping[str, Any]:
    """The token classes of a price set: what a mode without rates of its own is billed at."""
    return {key: value for key, value in standard.items() if key.endswith("_mtok")}


_Chain = list[tuple[date | None, date | None, tuple[time, time] | None, Mapping[str, Any]]]


def _chain(prices: Any) -> _Chain:
    """Standard price sets as (since, until, daily hours, prices); a later set replaces the earlier as a whole."""
    if not isinstance(prices, list):
        return [(None, None, None, _values(prices))]
    sets: _Chain = []
    starts = [getattr(each.constraint, "start_date", None) for each in prices]
    for position, each in enumerate(prices):
        hours = None
        if hasattr(each.constraint, "start_time"):
            hours = (each.constraint.start_time, each.constraint.end_time)
        later = [start for start in starts[position + 1 :] if start is not None]
        until = min(later) if later and hours is None else None
        sets.append((starts[position] if position else None, until, hours, _values(each.prices)))
    return sets


def _standard_at(chain: _Chain, day: date | None) -> Mapping[str, Any]:
    """The standard set in force on a day (None: the first), outside of daily hours."""
    current = chain[0][3]
    for since, _, hours, prices in chain:
        if hours is None and (since is None or (day is not None and since <= day)):
            current = prices
    return current


def _values(prices: Any) -> Mapping[str, Any]:
    return {key: value for key, value in vars(prices).items() if value is not None and key in _METERS}


def _launch(
    launches: tuple[Launch, ...], provider: str, model: str, mode: Mapping[str, str], since: date | None
) -> Launch | None:
    if since is None or len(mode) != 1:
        return None
    (condition,) = mode.items()
    for launch in launches:
        fits = provider in launch.providers and launch.mode == condition
        if fits and (not launch.models or model in launch.models) and launch.recorded[0] <= since <= launch.recorded[1]:
            return launch
    return None


def _carried_back(window: _Window, prices: Mapping[str, Any], chain: _Chain, launch: Launch) -> Iterator[Price]:
    """The variant's rates from its launch until its record begins, in the same proportion to the standard rates."""
    recorded: date = window.since or launch.since
    reference = _standard_at(chain, recorded)
    for since, until, hours, standard in chain:
        begin = max(since or launch.since, launch.since)
        end = min(until or recorded, recorded)
        if hours is not None or begin >= end:
            continue
        scaled = {key: _in_proportion(value, reference.get(key), standard.get(key)) for key, value in prices.items()}
        earlier = _Window(window.provider, window.info, begin, end, window.conditions, window.rank)
        yield from earlier.rows({key: value for key, value in scaled.items() if value is not None})


def _in_proportion(value: Any, reference: Any, standard: Any) -> Any:
    """`value` while `standard` was in force, if it belongs to `reference`; None where no proportion is known."""
    if standard == reference:
        return value
    base, base_reference = _base(value), _base(reference)
    if standard is None or base is None or not base_reference:
        return None
    ratio = EXACT.divide(base, base_reference)
    return [(start, EXACT.multiply(price, ratio)) for start, price in _steps(standard)]


def _base(value: Any) -> Decimal | None:
    return None if value is None else _steps(value)[0][1]


def _steps(value: Any) -> list[tuple[int, Decimal]]:
    """(threshold, price) steps of a flat or tiered price; the first threshold is 0."""
    if isinstance(value, Decimal):
        return [(0, value)]
    if isinstance(value, list):
        return value  # pyright: ignore[reportUnknownVariableType] - made by _in_proportion
    return [(0, value.base), *((tier.start, tier.price) for tier in value.tiers)]


@dataclass(frozen=True, slots=True)
class _Window:
    """A stretch of time in which one price set of one model holds."""

    provider: str
    info: genai.ModelInfo
    since: date | None
    until: date | None
    conditions: Conditions
    rank: int

    def rows(self, prices: Mapping[str, Any]) -> Iterator[Price]:
        if not prices and self.info.id.endswith(":free"):
            prices = {"input_mtok": ZERO, "output_mtok": ZERO}
        for key, value in prices.items():
            if key == "audio_hours" and "input_audio_hours" in prices:
                continue
            meter, per = _METERS[key]
            for threshold, price in _steps(value):
                if price >= 0:
                    yield self._row(meter, per, threshold, price)

    def _row(self, meter: str, per: int, threshold: int, price: Decimal) -> Price:
        known = self.conditions
        conditions = Conditions(
            service_tier=known.service_tier,
            processing=known.processing,
            speed=known.speed,
            hours=known.hours,
            min_input_tokens=threshold,
        )
        return Price(
            provider=self.provider,
            model=self.info.id,
            sku_meter=meter,
            unit_price=price,
            per=per,
            effective_from=_instant(self.since),
            effective_to=_instant(self.until),
            conditions=conditions,
            source=f"genai-prices {_version()}",
            origin="genai-prices",
            rank=self.rank,
        )


def _instant(day: date | None) -> datetime | None:
    return None if day is None else midnight(day)


@cache
def _version() -> str:
    return importlib.metadata.version("genai-prices")
