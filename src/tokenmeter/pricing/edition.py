"""Editions of the base data: genai-prices as it is installed, or as it was published later. Data only.

Importing the installed package builds some forty thousand objects and takes half a second. So its data is kept once, in
the form in which genai-prices publishes it (a JSON array), one provider to a line: a process reads the lines it needs.
The kept file is named after the data it was made from and after its own content, so it is never out of date and a
damaged one is never read; whatever goes wrong with it, the package is imported instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from tokenmeter.errors import PricingError, StoreUnavailableError
from tokenmeter.money import EXACT, ZERO
from tokenmeter.paths import user_folder
from tokenmeter.pricing.price import Conditions, Price, midnight

#: A provider, model or price set as published: decoded JSON, numbers as text or Decimal.
Record = Mapping[str, Any]

#: What the kept form carries; names, descriptions and extractors are left out.
_PROVIDER_FIELDS = ("id", "fallback_model_providers")
_MODEL_FIELDS = ("id", "match", "context_window", "prices", "price_variants")
_LINE = re.compile(rb'\{"id":"([^"\\]+)"')
#: Kept files of so many editions stay: environments with different releases share the folder.
_MOST_FILES = 4


class Edition:
    """One edition of the base data.

    Args:
        content: Its kept form (`keepable`).
        name: What rows of it name as their source, for example ``genai-prices 0.2.3``.
        digest: Identity of the data it was made from; default: SHA-256 of `content`.
    """

    def __init__(self, content: bytes, *, name: str | None = None, digest: str | None = None) -> None:
        self.content = content
        self.digest = digest or hashlib.sha256(content).hexdigest()
        self.name = name or f"genai-prices {self.digest[:12]}"
        self._lines = {found[1].decode(): line for line in content.splitlines() if (found := _LINE.match(line))}

    @classmethod
    def parse(cls, published: bytes | str) -> Edition:
        """An edition from what genai-prices publishes, or from a kept one.

        Raises:
            PricingError: it is no price list.
        """
        try:
            providers = json.loads(published, parse_float=Decimal, parse_constant=Decimal)
        except (ValueError, RecursionError) as error:
            raise PricingError(f"The price list is no valid JSON ({error}).") from error
        if not isinstance(providers, list):
            raise PricingError("The price list must be a JSON array of providers, as genai-prices publishes it.")
        return cls(keepable(cast("Iterable[Any]", providers)))

    def __contains__(self, provider: str) -> bool:
        return provider in self._lines

    def __iter__(self) -> Iterator[str]:
        """Ids of the providers."""
        return iter(self._lines)

    def provider(self, provider: str) -> Record:
        """The record of a provider.

        Raises:
            KeyError: it is not listed.
        """
        record: Record = json.loads(self._lines[provider].rstrip(b","))
        return record


def keepable(providers: Iterable[Any]) -> bytes:
    """Providers, decoded from JSON or as the package's objects, as a JSON array with one provider to a line.

    Raises:
        PricingError: a record lacks what every record has.
    """
    lines: list[str] = []
    for number, provider in enumerate(providers, start=1):
        record = _chosen(provider, _PROVIDER_FIELDS)
        listed = _field(provider, "models")
        if not isinstance(listed, list) or not isinstance(record.get("id"), str):
            raise PricingError(f"The price list's provider {number} has no id or no list of models.")
        models = [_chosen(model, _MODEL_FIELDS) for model in cast("Iterable[Any]", listed)]
        if not all(isinstance(model.get("id"), str) and {"match", "prices"} <= model.keys() for model in models):
            raise PricingError(f"The price list's provider {record['id']!r} has a model without id, match or prices.")
        record["models"] = models
        lines.append(json.dumps(record, separators=(",", ":"), ensure_ascii=True))
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def _field(record: Any, name: str) -> Any:
    """A field of a decoded record or of one of the package's objects."""
    return cast("Record", record).get(name) if isinstance(record, Mapping) else getattr(record, name, None)


def _chosen(record: Any, names: Iterable[str]) -> dict[str, Any]:
    fields = ((name, _field(record, name)) for name in names)
    return {name: json_value(value) for name, value in fields if value is not None}


def json_value(value: Any) -> Any:
    """JSON's own kinds; exact numbers and days as text, the package's objects by their fields."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, time | date):
        return value.isoformat()
    if isinstance(value, list):
        return [json_value(each) for each in cast("Iterable[Any]", value)]
    decoded = isinstance(value, Mapping)  # a null in it is a fault; an object's None is what it has not
    fields = cast("Record", value if decoded else vars(value))
    return {name.rstrip("_"): json_value(each) for name, each in fields.items() if decoded or each is not None}


@cache
def installed() -> Edition:
    """The edition that is installed: from the kept file, else from the package (which is then kept)."""
    digest = installed_digest()
    release, content = _read_kept("genai-prices", digest)
    if content is not None:
        return Edition(content, name=f"genai-prices {release}", digest=digest)
    from importlib.metadata import version  # noqa: PLC0415 - as below

    from genai_prices import data  # noqa: PLC0415 - half a second: only when no kept file is at hand

    release = version("genai-prices")
    content = keepable(data.providers)
    keep(f"genai-prices-{release}", digest, content)
    return Edition(content, name=f"genai-prices {release}", digest=digest)


def is_read() -> bool:
    """Whether `installed` answers at once, with nothing to be read from disk."""
    return installed.cache_info().currsize > 0


@cache
def installed_file() -> Path | None:
    """The file with the installed data, or the archive that it is in; None where it is installed without sources."""
    package = importlib.util.find_spec("genai_prices")
    if package is None or package.origin is None:
        return None
    data = Path(package.origin).with_name("data.py")
    return next((file for file in (data, *data.parents) if file.is_file()), None)


@cache
def installed_digest() -> str:
    """SHA-256 of the installed data, known without importing it: the same on every machine that has this release."""
    package = importlib.util.find_spec("genai_prices")
    if package is not None and package.origin is not None:
        data: Any = package.loader  # which reads from an archive, too
        with suppress(OSError, AttributeError):
            return hashlib.sha256(data.get_data(str(Path(package.origin).with_name("data.py")))).hexdigest()
    from genai_prices import data  # noqa: PLC0415 - installed without sources: only then it is read

    return hashlib.sha256(keepable(data.providers)).hexdigest()


def _folder() -> Path:
    return user_folder("cache", "XDG_CACHE_HOME to a folder")


def read_kept(name: str, digest: str) -> bytes | None:
    """What was kept under `name` of the data with this digest; None when there is nothing, or it was changed."""
    return _read_kept(name, digest)[1]


def _read_kept(name: str, digest: str) -> tuple[str, bytes | None]:
    """What stands in the file's name between `name` and the digest, and the content; of this user's own files only."""
    with suppress(OSError, StoreUnavailableError):  # no home, or one that may not be read
        for file in _folder().glob(f"{name}-*{digest[:16]}-*.json"):
            content = file.read_bytes()
            own = not hasattr(os, "geteuid") or file.stat().st_uid == os.geteuid()
            if own and hashlib.sha256(content).hexdigest()[:16] == file.stem.rpartition("-")[2]:
                return file.stem.removeprefix(f"{name}-").partition(f"-{digest[:16]}")[0], content
    return "", None


def keep(kind: str, digest: str, content: bytes) -> None:
    """Keep what was made from the data with this digest, in one step. Where that cannot be done, nothing is kept."""
    name = f"{kind}-{digest[:16]}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    import tempfile  # noqa: PLC0415 - once per release

    with suppress(OSError, StoreUnavailableError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=".kept-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(written).replace(folder / name)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise
        family = kind.partition("-")[0]
        files = sorted(folder.glob(f"{family}-*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[_MOST_FILES:]:
            old.unlink(missing_ok=True)


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
        # A mode without rates of its own is billed at the standard ones, as far as they are of tokens.
        standard = _standard_at(chain, since).items()
        prices = _values(variant["prices"]) or {key: value for key, value in standard if key.endswith("_mtok")}
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
