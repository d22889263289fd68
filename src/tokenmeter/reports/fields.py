"""The columns of exported tables: their names, kinds and where their values come from. Their order never changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Generic, Literal, TypeVar

from tokenmeter.dimensions import ALL_METERS, WHO, unit_of
from tokenmeter.ledger import COLUMNS, Charge, Entry
from tokenmeter.money import COSTS, ONE, quantize
from tokenmeter.periods import zone
from tokenmeter.reports.query import closed
from tokenmeter.reports.rows import COUNTS, LATENCY_MEASURES, TOKEN_VIEWS, Row, Sheet
from tokenmeter.usage import Quantity, Usage

R = TypeVar("R")
#: text; whole numbers; US dollars to 12 decimals; money that does not add up over rows; unit prices and factors;
#: quantities; instants, and those on whole seconds; days (a workbook of a statement may say a month there); yes/no;
#: JSON text.
Kind = Literal["text", "integer", "money", "balance", "price", "quantity", "instant", "second", "day", "flag", "json"]

#: Meters that are never a quantity of their own: a request is counted, a supplied cost is money.
_QUANTITY_METERS = tuple(meter for meter in ALL_METERS if meter not in {"requests", "provider_cost", "adjustment"})


@dataclass(frozen=True)  # no slots: on Python 3.11 a frozen, slotted, generic class cannot be made as Field[R](...)
class Field(Generic[R]):
    """One column of an exported table.

    Attributes:
        name: Heading.
        kind: How values are written.
        pick: The value of a record; None = empty.
        summed: Whether the manifest states its sum.
    """

    name: str
    kind: Kind
    pick: Callable[[R], Any]
    summed: bool = False


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """A charge with the entry it belongs to; `position` counts from 0."""

    entry: Entry
    position: int
    charge: Charge


def json_value(value: Any, kind: Kind) -> Any:
    """A value as JSON has it; decimals as text without exponent, instants in ISO 8601 (UTC)."""
    return None if value is None else _JSON_VALUE[kind](value)


def _digits(quantity: Quantity) -> str:
    digits = f"{Decimal(quantity):f}"
    return digits if "." in digits else f"{digits}.0"  # readers that guess types must not take it for integers


def _instant(moment: datetime, timespec: str = "microseconds") -> str:
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


_JSON_VALUE: Mapping[Kind, Callable[[Any], Any]] = {
    "text": str,
    "integer": int,
    "money": lambda dollars: f"{quantize(dollars):f}",
    "balance": lambda dollars: f"{quantize(dollars):f}",
    "price": lambda price: f"{price:f}",
    "quantity": _digits,
    "instant": _instant,
    "second": lambda moment: _instant(moment, "seconds"),
    "day": str,
    "flag": bool,
    "json": json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str, sort_keys=True).encode,
}


# -- a report's rows


def report_fields(report: Sheet) -> list[Field[Row]]:
    """Columns of a report: its time and dimensions, then counts, tokens, other meters, costs, and times."""
    time = [
        Field[Row]("period_start", "instant", lambda row: closed(row.bucket.start)),
        Field[Row]("period_end", "instant", lambda row: closed(row.bucket.end)),
    ]
    if report.granularity:
        time.insert(0, _bucket(report.granularity))
    counts = [Field[Row](name, "integer", _attribute(name), summed="sku_meter" not in report.by) for name in COUNTS]
    views = [Field[Row](name, "integer", _view(name)) for name in TOKEN_VIEWS]
    meters = [Field[Row](meter, _kind(meter), _meter(meter), summed=True) for meter in _meters_of(report)]
    costs = [Field[Row](name, "money", _known_cost(name), summed=True) for name in COSTS]
    times = [
        Field[Row](name, "quantity" if "per_second" in name else "integer", _attribute(name))
        for name in LATENCY_MEASURES
    ]
    return [*time, *map(_dimension, report.by), *counts, *views, *meters, *costs, *(times if report.latency else ())]


def _bucket(granularity: str) -> Field[Row]:
    """The column of buckets: days as days, anything else by its label."""
    if granularity == "day":
        return Field(granularity, "day", lambda row: row.bucket.start.astimezone(zone(row.bucket.tz)).date())
    return Field(granularity, "text", lambda row: row.bucket.label)


def _attribute(name: str) -> Callable[[Any], Any]:
    return lambda record: getattr(record, name)


def _view(name: str) -> Callable[[Any], Any]:
    return lambda record: getattr(record.usage, name)


def _meter(meter: str) -> Callable[[Any], Quantity]:
    return lambda record: record.usage[meter]


def _kind(meter: str) -> Kind:
    return "quantity" if unit_of(meter) in {"Seconds", "Units"} else "integer"


def _dimension(name: str) -> Field[Row]:
    return Field(name, "text", lambda row: row.group[name])


def _known_cost(name: str) -> Callable[[Row], Decimal | None]:
    return lambda row: getattr(row, name) if row.cost_known else None


def _meters_of(report: Sheet) -> list[str]:
    """Every standard meter, so that the columns never depend on the data; a user's own meters after them."""
    own = {meter for row in report.rows for meter in row.usage.quantities}
    return [*_QUANTITY_METERS, *sorted(own.difference(ALL_METERS))]


# -- entries and their charges


def entry_fields() -> list[Field[Entry]]:
    """Columns of raw entries: every field of `tokenmeter.Entry`, each token class in a column of its own."""
    return [
        *_ENTRY_HEAD,
        *(Field[Entry](name, "text", _attributed(name)) for name in WHO),
        *_ENTRY_KEY,
        *(Field[Entry](name, "integer", _view(name)) for name in TOKEN_VIEWS),
        *(Field[Entry](meter, _kind(meter), _meter(meter), summed=True) for meter in _QUANTITY_METERS),
        Field[Entry]("other_quantities", "json", lambda entry: _other(entry.usage)),
        *(Field[Entry](name, "money", _attribute(name), summed=True) for name in COSTS),
        *_ENTRY_TAIL,
        *(Field[Entry](name, kind, _attribute(name)) for name, kind in COLUMNS.items() if name not in _PLACED),
    ]


def _attributed(name: str) -> Callable[[Entry], str | None]:
    return lambda entry: getattr(entry.attribution, name)


def _other(usage: Usage) -> Mapping[str, Quantity] | None:
    return {meter: amount for meter, amount in usage.quantities.items() if meter not in _QUANTITY_METERS} or None


_ENTRY_HEAD: Sequence[Field[Entry]] = (
    Field("entry_id", "text", _attribute("entry_id")),
    Field("kind", "text", _attribute("kind")),
    Field("occurred_at", "instant", _attribute("occurred_at")),
    Field("recorded_at", "instant", _attribute("recorded_at")),
    Field("provider", "text", _attribute("provider")),
    Field("endpoint", "text", _attribute("endpoint")),
    Field("operation", "text", _attribute("operation")),
    Field("model", "text", _attribute("model")),
    Field("request_model", "text", _attribute("request_model")),
    Field("response_model", "text", _attribute("response_model")),
    Field("response_id", "text", _attribute("response_id")),
    Field("request_id", "text", _attribute("request_id")),
    Field("status", "text", _attribute("status")),
    Field("error_type", "text", _attribute("error_type")),
    Field("streamed", "flag", _attribute("streamed")),
    Field("attempts", "integer", _attribute("attempts")),
    Field("latency_us", "integer", _attribute("latency_us")),
    Field("first_token_us", "integer", _attribute("first_token_us")),
    Field("service_tier", "text", _attribute("service_tier")),
)
_ENTRY_KEY: Sequence[Field[Entry]] = (
    Field("tags", "json", lambda entry: dict(entry.attribution.tags) or None),
    Field("api_key", "text", lambda entry: entry.api_key and entry.api_key.label),
    Field("api_key_fingerprint", "text", lambda entry: entry.api_key and entry.api_key.fingerprint),
)
_ENTRY_TAIL: Sequence[Field[Entry]] = (
    Field("cost_source", "text", _attribute("cost_source")),
    Field("flags", "json", lambda entry: list(entry.flags) or None),
    Field("price_list_hash", "text", _attribute("price_list_hash")),
    Field("raw_usage", "text", _attribute("raw_usage")),
    Field("corrects", "text", _attribute("corrects")),
    Field("dedup_key", "text", _attribute("dedup_key")),
    Field("trace_id", "text", _attribute("trace_id")),
    Field("span_id", "text", _attribute("span_id")),
)

#: Columns that have a place of their own above; a newer one stands at the end, so that no column ever moves.
_PLACED = {one.name for one in (*_ENTRY_HEAD, *_ENTRY_TAIL)}


def charge_fields() -> list[Field[ChargeLine]]:
    """Columns of charge lines: what was used, its price, each factor, its three costs, and whose it is."""
    return [
        Field("entry_id", "text", lambda line: line.entry.entry_id),
        Field("line", "integer", lambda line: line.position),
        Field("kind", "text", lambda line: line.entry.kind),
        Field("occurred_at", "instant", lambda line: line.entry.occurred_at),
        Field("provider", "text", lambda line: line.entry.provider),
        Field("model", "text", lambda line: line.charge.model),
        Field("sku_meter", "text", lambda line: line.charge.sku_meter),
        Field("role", "text", lambda line: line.charge.role),
        Field("quantity", "quantity", lambda line: line.charge.quantity),
        Field("unit", "text", lambda line: line.charge.unit),
        Field("list_unit_price", "price", lambda line: line.charge.list_unit_price),
        Field("multipliers", "json", lambda line: dict(line.charge.multipliers) or None),
        Field("platform_multiplier", "price", lambda line: line.charge.multipliers.get("platform", ONE)),
        Field("list_cost", "money", lambda line: line.charge.list_cost, summed=True),
        Field("contracted_cost", "money", lambda line: line.charge.contracted_cost, summed=True),
        Field("billed_cost", "money", lambda line: line.charge.billed_cost, summed=True),
        Field("price_id", "text", lambda line: line.charge.price_id),
        Field("price_source", "text", lambda line: line.charge.source),
        *(Field[ChargeLine](name, "text", _line_owner(name)) for name in WHO),
        Field("tags", "json", lambda line: dict(line.entry.attribution.tags) or None),
        Field("api_key", "text", lambda line: line.entry.api_key and line.entry.api_key.label),
    ]


def _line_owner(name: str) -> Callable[[ChargeLine], str | None]:
    return lambda line: getattr(line.entry.attribution, name)
