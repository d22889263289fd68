"""genai-prices' model records as price rows: dated sets, daily hours, tiers, variants by context.

A variant whose recorded start is only the day on which the catalog began to record it is carried back to its launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple, cast

from tokenmeter.money import EXACT, ZERO
from tokenmeter.pricing.edition import Record
from tokenmeter.pricing.price import Conditions, Price, midnight

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
    "output_reasoning_mtok": ("output_reasoning", 1_000_000),
    "output_citation_mtok": ("output_citation", 1_000_000),
    "input_document_kpages": ("document_pages", 1_000),
    "input_annotated_document_kpages": ("annotated_pages", 1_000),
    "input_text_messages_kcount": ("text_messages", 1_000),
}
#: A flat or tiered price: (threshold, price) steps, ascending; the first threshold is 0.
_Steps = tuple[tuple[int, Decimal], ...]
_MODES = {"service_tier", "processing", "speed"}
#: What a variant may depend on that no request of ours tells: which search was configured, by which route it went. Such
#: a variant is left out, so that its model costs what it costs without.
_UNTOLD = {"search_type", "route"}
#: Tiers that the catalog lists under a second name: the standard one, and OpenAI's fast (= priority).
_OTHER_SPELLINGS = {"default", "fast"}


class Launch(NamedTuple):
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


def price_rows(provider: str, record: Record, launches: Sequence[Launch], *, source: str) -> Iterator[Price]:
    """Every price of a model record.

    Args:
        provider: Catalog provider it is listed under.
        record: The record.
        launches: Since when modes were sold that the catalog recorded later.
        source: What the rows name as their source.
    """
    model = record["id"]
    chain = _chain(record["prices"])
    for rank, (since, until, hours, prices) in enumerate(chain):
        window = _PriceStretch(provider, model, since, until, Conditions(hours=hours), rank, source)
        yield from window.rows(prices)
    for position, variant in enumerate(cast("Sequence[Record]", record.get("price_variants") or ())):
        when = cast("Mapping[str, str]", variant["when"])
        mode = {key: value for key, value in when.items() if key in _MODES}
        if len(mode) < len(when) or mode.get("service_tier") in _OTHER_SPELLINGS:
            continue
        since = _start(variant)
        prices = _values(variant["prices"]) or _tokens_of(_standard_at(chain, since))
        conditions = Conditions(
            service_tier=mode.get("service_tier"), processing=mode.get("processing"), speed=mode.get("speed")
        )
        window = _PriceStretch(provider, model, since, None, conditions, -position, source)
        yield from window.rows(prices)
        launch = _launch(launches, provider, model, mode, since)
        if launch and since:
            yield from _carried_back(window, prices, chain, launch)


def unknown_terms(record: Record) -> set[str]:
    """What of a model record's prices nobody here can read: keys of prices, of contexts and of constraints."""
    prices: Record | Sequence[Record] = record["prices"]
    dated = [{"prices": prices}] if isinstance(prices, Mapping) else list(prices)
    variants = cast("Sequence[Record]", record.get("price_variants") or ())
    found: set[str] = set()
    for each in (*dated, *variants):
        found |= each["prices"].keys() - _METERS.keys()
        found |= (each.get("when") or {}).keys() - _MODES - _UNTOLD
        found |= (each.get("constraint") or {}).keys() - {"start_date", "start_time", "end_time"}
    return found


def _tokens_of(standard: Mapping[str, _Steps]) -> Mapping[str, _Steps]:
    """The token classes of a price set: what a mode without rates of its own is billed at."""
    return {key: value for key, value in standard.items() if key.endswith("_mtok")}


#: Standard price sets as (since, until, daily hours, prices), in the catalog's order.
_Chain = list[tuple[date | None, date | None, tuple[time, time] | None, Mapping[str, _Steps]]]


def _chain(prices: Record | Sequence[Record]) -> _Chain:
    """Standard price sets as (since, until, daily hours, prices); a later set replaces the earlier as a whole."""
    if isinstance(prices, Mapping):
        return [(None, None, None, _values(prices))]
    sets: _Chain = []
    starts = [_start(each) for each in prices]
    for position, each in enumerate(prices):
        hours = _hours(each)
        later = [start for start in starts[position + 1 :] if start is not None]
        until = min(later) if later and hours is None else None
        sets.append((starts[position] if position else None, until, hours, _values(each["prices"])))
    return sets


def _start(dated: Record) -> date | None:
    """The day from which a price set holds."""
    constraint: Record = dated.get("constraint") or {}
    return date.fromisoformat(constraint["start_date"]) if "start_date" in constraint else None


def _hours(dated: Record) -> tuple[time, time] | None:
    constraint: Record = dated.get("constraint") or {}
    if "start_time" not in constraint:
        return None
    return time.fromisoformat(constraint["start_time"]), time.fromisoformat(constraint["end_time"])


def _standard_at(chain: _Chain, day: date | None) -> Mapping[str, _Steps]:
    """The standard set in force on a day (None: the first), outside of daily hours."""
    current = chain[0][3]
    for since, _, hours, prices in chain:
        if hours is None and (since is None or (day is not None and since <= day)):
            current = prices
    return current


def _values(prices: Record) -> Mapping[str, _Steps]:
    return {key: _steps(value) for key, value in prices.items() if key in _METERS}


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


def _carried_back(
    window: _PriceStretch, prices: Mapping[str, _Steps], chain: _Chain, launch: Launch
) -> Iterator[Price]:
    """The variant's rates from its launch until its record begins, in the same proportion to the standard rates."""
    recorded: date = window.since or launch.since
    reference = _standard_at(chain, recorded)
    for since, until, hours, standard in chain:
        begin = max(since or launch.since, launch.since)
        end = min(until or recorded, recorded)
        if hours is not None or begin >= end:
            continue
        scaled = {key: _in_proportion(value, reference.get(key), standard.get(key)) for key, value in prices.items()}
        earlier = window._replace(since=begin, until=end)
        yield from earlier.rows({key: value for key, value in scaled.items() if value is not None})


def _in_proportion(value: _Steps, reference: _Steps | None, standard: _Steps | None) -> _Steps | None:
    """`value` while `standard` was in force, if it belongs to `reference`; None where no proportion is known."""
    if standard == reference:
        return value
    if standard is None or not reference or not reference[0][1]:
        return None
    ratio = EXACT.divide(value[0][1], reference[0][1])
    return tuple((start, EXACT.multiply(price, ratio)) for start, price in standard)


def _steps(value: Any) -> _Steps:
    if isinstance(value, Mapping):
        tiered: Record = value  # pyright: ignore[reportUnknownVariableType]
        tiers = ((int(tier["start"]), Decimal(tier["price"])) for tier in tiered.get("tiers") or ())
        return ((0, Decimal(tiered["base"])), *tiers)
    return ((0, Decimal(value)),)


class _PriceStretch(NamedTuple):
    """A stretch of time in which one price set of one model holds."""

    provider: str
    model: str
    since: date | None
    until: date | None
    conditions: Conditions
    rank: int
    source: str

    def rows(self, prices: Mapping[str, _Steps]) -> Iterator[Price]:
        if not prices and self.model.endswith(":free"):
            prices = {"input_mtok": ((0, ZERO),), "output_mtok": ((0, ZERO),)}
        for key, value in prices.items():
            if key == "audio_hours" and "input_audio_hours" in prices:
                continue
            meter, per = _METERS[key]
            for threshold, price in value:
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
