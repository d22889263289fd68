"""genai-prices' model records as price rows: dated sets, daily hours, tiers, variants by context.

A variant whose recorded start is only the day on which the catalog began to record it is carried back to its launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tokenmeter.money import EXACT, ZERO
from tokenmeter.pricing.price import Conditions, Price, midnight

if TYPE_CHECKING:
    from genai_prices import types as genai

__all__ = ["Launch", "price_rows"]

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
#: Tiers that the catalog lists under a second name: the standard one, and OpenAI's fast (= priority).
_OTHER_SPELLINGS = {"default", "fast"}


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


def price_rows(provider: str, info: genai.ModelInfo, launches: Sequence[Launch], *, source: str) -> Iterator[Price]:
    """Every price of a model record.

    Args:
        provider: Catalog provider it is listed under.
        info: The record.
        launches: Since when modes were sold that the catalog recorded later.
        source: What the rows name as their source.
    """
    chain = _chain(info.prices)
    for rank, (since, until, hours, prices) in enumerate(chain):
        window = _Window(provider, info.id, since, until, Conditions(hours=hours), rank, source)
        yield from window.rows(prices)
    for position, variant in enumerate(info.price_variants or ()):
        mode = {key: value for key, value in variant.when.items() if key in _MODES}
        if len(mode) < len(variant.when) or mode.get("service_tier") in _OTHER_SPELLINGS:
            continue
        since = getattr(variant.constraint, "start_date", None)
        prices = _values(variant.prices) or _tokens_of(_standard_at(chain, since))
        conditions = Conditions(
            service_tier=mode.get("service_tier"), processing=mode.get("processing"), speed=mode.get("speed")
        )
        window = _Window(provider, info.id, since, None, conditions, -position, source)
        yield from window.rows(prices)
        launch = _launch(launches, provider, info.id, mode, since)
        if launch and since:
            yield from _carried_back(window, prices, chain, launch)


def _tokens_of(standard: Mapping[str, Any]) -> Mapping[str, Any]:
    """The token classes of a price set: what a mode without rates of its own is billed at."""
    return {key: value for key, value in standard.items() if key.endswith("_mtok")}


#: Standard price sets as (since, until, daily hours, prices), in the catalog's order.
_Chain = list[tuple[date | None, date | None, tuple[time, time] | None, Mapping[str, Any]]]


def _chain(prices: genai.ModelPrice | list[genai.ConditionalPrice]) -> _Chain:
    """Standard price sets as (since, until, daily hours, prices); a later set replaces the earlier as a whole."""
    if not isinstance(prices, list):
        return [(None, None, None, _values(prices))]
    sets: _Chain = []
    starts: list[date | None] = [getattr(each.constraint, "start_date", None) for each in prices]
    for position, each in enumerate(prices):
        hours = _hours(each.constraint)
        later = [start for start in starts[position + 1 :] if start is not None]
        until = min(later) if later and hours is None else None
        sets.append((starts[position] if position else None, until, hours, _values(each.prices)))
    return sets


def _hours(constraint: Any) -> tuple[time, time] | None:
    return (constraint.start_time, constraint.end_time) if hasattr(constraint, "start_time") else None


def _standard_at(chain: _Chain, day: date | None) -> Mapping[str, Any]:
    """The standard set in force on a day (None: the first), outside of daily hours."""
    current = chain[0][3]
    for since, _, hours, prices in chain:
        if hours is None and (since is None or (day is not None and since <= day)):
            current = prices
    return current


def _values(prices: genai.ModelPrice) -> Mapping[str, Any]:
    known: dict[str, Any] = vars(prices)
    return {key: value for key, value in known.items() if value is not None and key in _METERS}


def _launch(
    launches: Sequence[Launch], provider: str, model: str, mode: Mapping[str, str], since: date | None
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
        earlier = replace(window, since=begin, until=end)
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
    model: str
    since: date | None
    until: date | None
    conditions: Conditions
    rank: int
    source: str

    def rows(self, prices: Mapping[str, Any]) -> Iterator[Price]:
        if not prices and self.model.endswith(":free"):
            prices = {"input_mtok": ZERO, "output_mtok": ZERO}
        for key, value in prices.items():
            if key == "audio_hours" and "input_audio_hours" in prices:
                continue
            meter, per = _METERS[key]
            for threshold, price in _steps(value):
                if price >= 0:
                    yield self._row(meter, per, threshold, price)

    def _row(self, meter: str, per: int, threshold: int, price: Decimal) -> Price:
        return Price(
            provider=self.provider,
            model=self.model,
            sku_meter=meter,
            unit_price=price,
            per=per,
            effective_from=_instant(self.since),
            effective_to=_instant(self.until),
            conditions=replace(self.conditions, min_input_tokens=threshold),
            source=self.source,
            origin="genai-prices",
            rank=self.rank,
        )


def _instant(day: date | None) -> datetime | None:
    return None if day is None else midnight(day)
