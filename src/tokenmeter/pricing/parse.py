"""Prices, discounts and multipliers as users write them (decoded TOML tables), checked row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ZERO, parse_decimal
from tokenmeter.periods import parse_instant
from tokenmeter.pricing.matching import canonical_provider
from tokenmeter.pricing.price import Conditions, Origin, Price, plain
from tokenmeter.pricing.terms import SCOPES, Discount, Multiplier
from tokenmeter.semconv import TOKEN_METERS, unit_of

__all__ = ["parse_discounts", "parse_multipliers", "parse_prices"]

_CONDITIONS = ("service_tier", "processing", "speed", "geo", "region", "endpoint")
_PRICE_FIELDS = {
    *("provider", "model", "sku_meter", "unit_price", "per", "effective_from", "effective_to", "conditions"),
    *("source", "verified_on", "min_input_tokens", *_CONDITIONS),
}
_METERS_BESIDES = {"cache_write"}  # the class whose lifetime nobody stated


def parse_prices(rows: Iterable[Mapping[str, Any]], *, file: str, origin: Origin = "user") -> tuple[Price, ...]:
    """``[[prices]]`` tables as rows of a price list.

    Each needs ``provider``, ``model``, ``sku_meter`` and ``unit_price`` (US dollars per ``per`` units; ``per`` is
    1,000,000 for tokens and characters, else 1). Conditions (``service_tier``, ``processing``, ``speed``, ``geo``,
    ``region``, ``endpoint``, ``min_input_tokens``) stand in the row or in its ``conditions`` table.

    Args:
        rows: The decoded tables; read TOML with ``parse_float=Decimal``.
        file: Name of the file they come from, for messages.
        origin: Layer they form.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    return tuple(_Row("prices", number, raw, file).price(origin) for number, raw in _numbered("prices", rows, file))


def parse_discounts(rows: Iterable[Mapping[str, Any]], *, file: str) -> tuple[Discount, ...]:
    """``[[discounts]]`` tables: ``factor`` (0.8 = 20 % off) by ``provider``, ``model``, ``sku_meter`` and dates.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    return tuple(_Row("discounts", number, raw, file).discount() for number, raw in _numbered("discounts", rows, file))


def parse_multipliers(rows: Iterable[Mapping[str, Any]], *, file: str) -> tuple[Multiplier, ...]:
    """``[[multipliers]]`` tables: ``factor`` by any of the scope fields (``api_key``, ``member``, ...) and dates.

    Raises:
        ConfigurationError: names file, row, field and reason.
    """
    numbered = _numbered("multipliers", rows, file)
    return tuple(_Row("multipliers", number, raw, file).multiplier() for number, raw in numbered)


def _numbered(table: str, rows: Any, file: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    if not isinstance(rows, Iterable) or isinstance(rows, (str, Mapping)):
        raise ConfigurationError(f"{file}: {table} must be an array of tables; write [[{table}]] above each row.")
    for number, raw in enumerate(rows, start=1):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if not isinstance(raw, Mapping):
            raise ConfigurationError(f"{file}: [[{table}]] row {number} must be a table, not {raw!r}.")
        yield number, raw  # pyright: ignore[reportUnknownVariableType] - decoded TOML


class _Row:
    """One table, its place in its file, and readers that say what is wrong with it."""

    def __init__(self, table: str, number: int, raw: Mapping[str, Any], file: str) -> None:
        self.raw = raw
        line = raw.get("__line__")
        self._place = f"{file}: [[{table}]] row {number}" + (f" (line {line})" if line else "")

    def price(self, origin: Origin) -> Price:
        self._known_only(_PRICE_FIELDS)
        meter = self._meter(required=True) or ""
        by_million = meter in TOKEN_METERS or meter in {"characters", *_METERS_BESIDES}
        per = self._whole("per", 1_000_000 if by_million else 1)
        if per < 1:
            raise self._wrong("per", "must be at least 1")
        since, until = self._dates()
        return Price(
            provider=canonical_provider(self._text("provider", required=True) or ""),
            model=(self._text("model", required=True) or "").lower(),
            sku_meter=meter,
            unit_price=self._number("unit_price"),
            per=per,
            effective_from=since,
            effective_to=until,
            conditions=self._conditions(),
            source=self._text("source") or self._place.split(":")[0],
            verified_on=self._day("verified_on"),
            origin=origin,
        )

    def discount(self) -> Discount:
        self._known_only({"factor", "provider", "model", "sku_meter", "effective_from", "effective_to", "name"})
        since, until = self._dates()
        provider = self._text("provider")
        model = self._text("model")
        return Discount(
            factor=self._number("factor"),
            provider=canonical_provider(provider) if provider else None,
            model=model.lower() if model else None,
            sku_meter=self._meter(required=False),
            effective_from=since,
            effective_to=until,
        )

    def multiplier(self) -> Multiplier:
        self._known_only({"factor", "effective_from", "effective_to", "name", *SCOPES})
        since, until = self._dates()
        scope = {name: self._text(name) for name in SCOPES}
        if scope["provider"]:
            scope["provider"] = canonical_provider(scope["provider"])
        named = tuple((name, value) for name, value in scope.items() if value)
        return Multiplier(factor=self._number("factor"), scope=named, effective_from=since, effective_to=until)

    # -- fields

    def _wrong(self, name: str, reason: str) -> ConfigurationError:
        return ConfigurationError(f"{self._place}, field {name!r}: {reason}.")

    def _known_only(self, known: set[str]) -> None:
        for name in self.raw:
            if name not in known and name != "__line__":
                raise self._wrong(name, f"is unknown; the fields are {', '.join(sorted(known))}")

    def _text(self, name: str, *, required: bool = False) -> str | None:
        value = self.raw.get(name)
        if value is None:
            if required:
                raise self._wrong(name, "is missing")
            return None
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(name, f"must be a non-empty text, not {value!r}")
        return value.strip()

    def _meter(self, *, required: bool) -> str | None:
        meter = self._text("sku_meter", required=required)
        if meter is not None and meter not in _METERS_BESIDES and unit_of(meter) in {"Units", "USD"}:
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
        table = self.raw.get("conditions", {})
        if not isinstance(table, Mapping):
            raise self._wrong("conditions", "must be a table such as { service_tier = 'flex' }")
        raw: dict[str, Any] = {**table, **{key: value for key, value in self.raw.items() if key in _PRICE_FIELDS}}
        inner = _Row("", 0, raw, "")
        inner._place = self._place
        for name in table:  # pyright: ignore[reportUnknownVariableType] - decoded TOML
            if name not in {*_CONDITIONS, "min_input_tokens"}:
                raise self._wrong(f"conditions.{name}", "is no condition")
        values = {name: inner._text(name) for name in _CONDITIONS}
        return Conditions(
            service_tier=plain("service_tier", values["service_tier"]),
            processing=plain("processing", values["processing"]),
            speed=plain("speed", values["speed"]),
            geo=plain("geo", values["geo"]),
            region=plain("region", values["region"]),
            endpoint=values["endpoint"],
            min_input_tokens=inner._whole("min_input_tokens", 0),
        )
