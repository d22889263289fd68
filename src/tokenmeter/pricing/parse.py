"""Prices, discounts, multipliers and free quotas as users write them (decoded TOML tables), checked row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, Literal, cast

from tokenmeter.dimensions import MULTIPLIER_SCOPES, unit_of
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import ZERO, parse_decimal
from tokenmeter.periods import parse_instant, zone
from tokenmeter.pricing.price import (
    EVERY_MODEL,
    KNOWN_MODES,
    TOKEN_CLASSES,
    WEEKDAYS,
    Conditions,
    Discount,
    FreeQuota,
    Multiplier,
    Origin,
    Price,
    canonical_condition,
)
from tokenmeter.providers.hosts import canonical_provider
from tokenmeter.texts import suggest

#: A million tokens cost $0.0011 to $600, over all lists. A price far from that, of which nobody says for how many it
#: is, is one of another unit.
_LEAST_MILLION, _MOST_MILLION = Decimal("0.0001"), Decimal(10_000)
#: A discount's factor beyond is a number of percent.
_MOST_FACTOR = Decimal(2)
#: How much of a word a slip for it has.
_ALIKE = 0.8  # not money
_PROCESSING = frozenset({"batch"})
_CONDITIONS = ("service_tier", "processing", "speed", "geo", "region", "endpoint")
_PRICE_FIELDS = {
    *("provider", "model", "sku_meter", "unit_price", "per", "effective_from", "effective_to", "conditions"),
    *("source", "verified_on", "min_input_tokens", "hours", "weekdays", *_CONDITIONS),
}


def parse_prices(
    rows: Iterable[Mapping[str, Any]], *, file: str, origin: Origin = "user", lines: Sequence[int] = ()
) -> tuple[Price, ...]:
    """``[[prices]]`` tables as rows of a price list.

    Each needs ``provider``, ``model``, ``sku_meter`` and ``unit_price`` (US dollars per ``per`` units; ``per`` is
    1,000,000 for tokens and characters, else 1). Conditions (``service_tier``, ``processing``, ``speed``, ``geo``,
    ``region``, ``endpoint``, ``min_input_tokens``) stand in the row or in its ``conditions`` table.

    Args:
        rows: The decoded tables; read TOML with ``parse_float=Decimal``.
        file: Name of the file they come from, for messages.
        origin: Layer they form.
        lines: Line of each row in the file, where known (`table_lines`), for messages.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    return tuple(row.price(origin) for row in _rows("prices", rows, file, lines))


def parse_discounts(rows: Iterable[Mapping[str, Any]], *, file: str, lines: Sequence[int] = ()) -> tuple[Discount, ...]:
    """``[[discounts]]`` tables: ``factor`` (0.8 = 20% off) by ``provider``, ``model``, ``sku_meter`` and dates.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    return tuple(row.discount() for row in _rows("discounts", rows, file, lines))


def parse_multipliers(
    rows: Iterable[Mapping[str, Any]], *, file: str, lines: Sequence[int] = ()
) -> tuple[Multiplier, ...]:
    """``[[multipliers]]`` tables: ``multiplier`` by any of the scope fields (``api_key``, ``member``, ...) and dates.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    return tuple(row.multiplier() for row in _rows("multipliers", rows, file, lines))


def parse_free_quotas(
    rows: Iterable[Mapping[str, Any]], *, file: str, lines: Sequence[int] = ()
) -> tuple[FreeQuota, ...]:
    """``[[free_quotas]]`` tables: ``provider``, ``sku_meter``, ``quantity`` and ``per``; see `FreeQuota`.

    Raises:
        ConfigurationError: names file, row, field and reason; or two quotas have one name.
    """
    quotas = tuple(row.free_quota() for row in _rows("free_quotas", rows, file, lines))
    names = [quota.name for quota in quotas]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"{file}: two [[free_quotas]] are called {twice!r}; give each its own name.")
    return quotas


def table_lines(text: str, table: str) -> list[int]:
    """Line numbers (from 1) of the ``[[table]]`` headers in TOML text, in order."""
    header = re.compile(rf"\s*\[\[\s*{re.escape(table)}\s*\]\]")
    return [number for number, line in enumerate(text.split("\n"), start=1) if header.match(line)]


def _rows(table: str, rows: Any, file: str, lines: Sequence[int]) -> Iterator[_PriceTable]:
    if not hasattr(rows, "__iter__") or isinstance(rows, (str, Mapping)):
        raise ConfigurationError(f"{file}: {table} must be an array of tables; write [[{table}]] above each row.")
    for number, raw in enumerate(rows, start=1):
        line = lines[number - 1] if number <= len(lines) else None
        place = f"{file}: [[{table}]] row {number}" + (f" (line {line})" if line else "")
        if not isinstance(raw, Mapping):
            raise ConfigurationError(f"{place} must be a table, not {raw!r}.")
        yield _PriceTable(cast("Mapping[str, Any]", raw), place, file)


class _PriceTable:
    """One table, its place in its file, and readers that say what is wrong with it."""

    def __init__(self, raw: Mapping[str, Any], place: str, file: str) -> None:
        self.raw = raw
        self._place = place
        self._file = file

    def price(self, origin: Origin) -> Price:
        self._known_only(_PRICE_FIELDS)
        meter = self._meter(required=True) or ""
        by_million = meter in TOKEN_CLASSES or meter == "characters"
        per = self._whole("per", 1_000_000 if by_million else 1)
        if per < 1:
            raise self._wrong("per", "must be at least 1")
        since, until = self._dates()
        return Price(
            provider=canonical_provider(self._text("provider", required=True) or ""),
            model=self._model(),
            sku_meter=meter,
            unit_price=self._unit_price(by_million=by_million),
            per=per,
            effective_from=since,
            effective_to=until,
            conditions=self._conditions(),
            source=self._text("source") or self._file,
            verified_on=self._day("verified_on"),
            origin=origin,
        )

    def _unit_price(self, *, by_million: bool) -> Decimal:
        price = self._number("unit_price")
        if by_million and price and "per" not in self.raw and not _LEAST_MILLION <= price <= _MOST_MILLION:
            said = f"{shown(self.raw['unit_price'])} US dollars cannot be what a million costs"
            raise self._wrong("unit_price", f"{said}; write per = 1 beside it if it is for one")
        return price

    def _model(self) -> str:
        model = (self._text("model", required=True) or "").lower()
        if "*" in model and model != EVERY_MODEL:
            raise self._wrong(
                "model", "must be one model's name, or '*' for every model of the provider; patterns are not read"
            )
        return model

    def discount(self) -> Discount:
        self._known_only({"factor", "provider", "model", "sku_meter", "effective_from", "effective_to"})
        since, until = self._dates()
        provider = self._text("provider")
        model = self._text("model")
        factor = self._number("factor")
        if factor > _MOST_FACTOR:
            raise self._wrong(
                "factor", f"is what is left of the price (0.8 for 20% off), not {shown(self.raw['factor'])}"
            )
        return Discount(
            factor=factor,
            provider=canonical_provider(provider) if provider else None,
            model=model.lower() if model else None,
            sku_meter=self._meter(required=False),
            effective_from=since,
            effective_to=until,
        )

    def multiplier(self) -> Multiplier:
        self._known_only({"multiplier", "factor", "effective_from", "effective_to", *MULTIPLIER_SCOPES})
        since, until = self._dates()
        scope = {name: self._text(name) for name in MULTIPLIER_SCOPES}
        if scope["provider"]:
            scope["provider"] = canonical_provider(scope["provider"])
        named = tuple((name, value) for name, value in scope.items() if value)
        field = "factor" if "factor" in self.raw and "multiplier" not in self.raw else "multiplier"
        return Multiplier(factor=self._number(field), scope=named, effective_from=since, effective_to=until)

    def free_quota(self) -> FreeQuota:
        fields = {"name", "provider", "sku_meter", "quantity", "per", "models", "api_keys", "tz"}
        self._known_only({*fields, "effective_from", "effective_to"})
        since, until = self._dates()
        per, tz = self._text("per", required=True), self._text("tz") or "UTC"
        if per not in {"day", "month"}:
            raise self._wrong("per", f"must be day or month, not {per!r}")
        try:
            zone(tz)
        except ConfigurationError as error:
            raise self._wrong("tz", str(error).rstrip(".")) from None
        meter = self._meter(required=True) or ""
        models = tuple(model.lower() for model in self._texts("models"))
        quantity = self._whole("quantity", 0)
        if not quantity:
            raise self._wrong("quantity", "must say how many are free, at least 1")
        return FreeQuota(
            name=self._text("name") or " ".join((meter, *models)),
            provider=canonical_provider(self._text("provider", required=True) or ""),
            sku_meter=meter,
            quantity=quantity,
            per=cast("Literal['day', 'month']", per),
            models=models,
            api_keys=self._texts("api_keys"),
            tz=tz,
            effective_from=since,
            effective_to=until,
        )

    # -- fields

    def _wrong(self, name: str, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._place}, field {name!r}: {reason}.")

    def _known_only(self, known: set[str]) -> None:
        for name in self.raw:
            if name not in known:
                wrong = self._wrong(name, f"is unknown; the fields are {', '.join(sorted(known))}")
                raise ConfigurationError(f"{wrong}{suggest(name, known)}")

    def _text(self, name: str, *, required: bool = False) -> str | None:
        value = self.raw.get(name)
        if value is None:
            if required:
                raise self._wrong(name, "is missing")
            return None
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, f"must be a non-empty text, not {value!r}")
        return value.strip()

    def _texts(self, name: str) -> tuple[str, ...]:
        value: Any = self.raw.get(name, [])
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in cast("Any", value)):
            raise self._wrong(name, f"must be a list of names, not {value!r}")
        return tuple(cast("list[str]", value))

    def _meter(self, *, required: bool) -> str | None:
        meter = self._text("sku_meter", required=required)
        if meter is not None and meter not in TOKEN_CLASSES and unit_of(meter) in {"Units", "USD"}:
            raise self._wrong("sku_meter", f"{meter!r} is no meter that usage is counted in; see the pricing reference")
        return meter

    def _number(self, name: str) -> Decimal:
        if name not in self.raw:
            raise self._wrong(name, "is missing")
        try:
            number = parse_decimal(self.raw[name], name=name)
        except ConfigurationError as error:
            raise self._wrong(name, str(error).rstrip(".")) from None
        if number < ZERO:
            raise self._wrong(name, f"must not be negative, not {number}")
        return number

    def _whole(self, name: str, default: int) -> int:
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, f"must be a whole number of at least 0, not {value!r}")
        return value

    def _day(self, name: str) -> date | None:
        moment = self._instant(name)
        return None if moment is None else moment.date()

    def _instant(self, name: str) -> datetime | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, str | date) or isinstance(value, time):
            raise self._wrong(name, f"must be a date such as 2026-11-23, not {value!r}")
        try:
            return parse_instant(value).astimezone(UTC)
        except ConfigurationError as error:
            raise self._wrong(name, str(error).rstrip(".")) from None

    def _dates(self) -> tuple[datetime | None, datetime | None]:
        since, until = self._instant("effective_from"), self._instant("effective_to")
        if since and until and until <= since:
            raise self._wrong("effective_to", "must be later than effective_from")
        return since, until

    def _conditions(self) -> Conditions:
        table: Any = self.raw.get("conditions", {})
        if not isinstance(table, Mapping):
            raise self._wrong("conditions", "must be a table such as { service_tier = 'flex' }")
        stated = cast("Mapping[str, Any]", table)
        for name in stated:
            if name not in {*_CONDITIONS, "min_input_tokens", "hours", "weekdays"}:
                raise self._wrong(f"conditions.{name}", "is no condition")
        merged = _PriceTable({**stated, **self.raw}, self._place, self._file)
        values = {name: merged._text(name) for name in _CONDITIONS}
        return Conditions(
            service_tier=merged._mode("service_tier"),
            processing=merged._mode("processing"),
            speed=merged._mode("speed"),
            geo=canonical_condition("geo", values["geo"]),
            region=canonical_condition("region", values["region"]),
            endpoint=values["endpoint"],
            min_input_tokens=merged._whole("min_input_tokens", 0),
            hours=merged._hours(),
            weekdays=merged._weekdays(),
        )

    def _mode(self, name: str) -> str | None:
        """A mode's name; one that is a slip for a known one would be a price that no call gets."""
        value = canonical_condition(name, self._text(name))
        known = KNOWN_MODES.get(name, _PROCESSING)
        if value is None or value in known:
            return value
        near = next(iter(get_close_matches(value, known, n=1, cutoff=_ALIKE)), None)
        if near is not None and (known is _PROCESSING or near not in value):
            raise self._wrong(name, f"{value!r} is no mode; did you mean {near!r}")
        return value

    def _hours(self) -> tuple[time, time] | None:
        text = self._text("hours")
        if text is None:
            return None
        try:
            start, end = (time.fromisoformat(each.strip()).replace(tzinfo=UTC) for each in text.split("-"))
        except ValueError:
            raise self._wrong("hours", f"must be a span in UTC such as '01:00-04:00', not {text!r}") from None
        if start == end:
            raise self._wrong("hours", "must not begin and end at the same time; leave it out for all day")
        return start, end

    def _weekdays(self) -> tuple[int, ...] | None:
        text = self._text("weekdays")
        if text is None:
            return None
        days: set[int] = set()
        for part in text.split(","):
            first, dash, last = (each.strip().capitalize() for each in part.partition("-"))
            if first not in WEEKDAYS or (dash and last not in WEEKDAYS):
                raise self._wrong("weekdays", f"must be days such as 'Mon-Fri' or 'Sat,Sun', not {text!r}")
            begin, end = WEEKDAYS.index(first), WEEKDAYS.index(last or first)
            days.update(1 + day % 7 for day in range(begin, end + 1 if begin <= end else end + 8))
        return tuple(sorted(days))
