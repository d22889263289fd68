"""The columns of exported tables: their names, kinds and where their values come from. Their order never changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

from tokenmeter.dimensions import ALL_METERS, DIMENSIONS, DIVISIBLE, WHO, unit_of
from tokenmeter.ledger import COLUMNS, Charge, Entry
from tokenmeter.money import COSTS, ONE, quantize
from tokenmeter.periods import CALENDAR_UNITS, zone
from tokenmeter.reports.query import closed
from tokenmeter.reports.rows import COUNTS, LATENCY_MEASURES, TOKEN_VIEWS, Row, Sheet
from tokenmeter.usage import Quantity, Usage
from tokenmeter.values import dataclass

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


def read_off(kind: Kind, *paths: str, summed: bool = False) -> list[Field[Any]]:
    """Columns that say an attribute of a record as it is, or one of an attribute's; each is named like it."""
    return [Field(path.rpartition(".")[2], kind, attrgetter(path), summed) for path in paths]


_TOKEN_VIEWS = read_off("integer", *(f"usage.{name}" for name in TOKEN_VIEWS), summed=True)


# -- a report's rows


def report_fields(report: Sheet) -> list[Field[Row]]:
    """Columns of a report: its time and dimensions, then counts, tokens, other meters, costs, and times."""
    time = [
        Field[Row]("period_start", "instant", lambda row: closed(row.bucket.start)),
        Field[Row]("period_end", "instant", lambda row: closed(row.bucket.end)),
    ]
    if report.granularity:
        time.insert(0, _bucket(report.granularity))
    counts = read_off("integer", *COUNTS, summed="sku_meter" not in report.by)
    meters = [Field[Row](_column_of(meter), _kind(meter), _meter(meter), summed=True) for meter in _meters_of(report)]
    costs = [Field[Row](name, "money", _known_cost(name), summed=True) for name in COSTS]
    times = [
        Field[Row](name, "quantity" if "per_second" in name else "integer", attrgetter(name))
        for name in LATENCY_MEASURES
    ]
    return [
        *time,
        *map(_dimension, report.by),
        *counts,
        *_TOKEN_VIEWS,
        *meters,
        *costs,
        *(times if report.latency else ()),
    ]


def _bucket(granularity: str) -> Field[Row]:
    """The column of buckets: days as days, anything else by its label."""
    if granularity == "day":
        return Field(granularity, "day", lambda row: row.bucket.start.astimezone(zone(row.bucket.tz)).date())
    return Field(granularity, "text", lambda row: row.bucket.label)


def _meter(meter: str) -> Callable[[Any], Quantity]:
    return lambda record: record.usage[meter]


def _kind(meter: str) -> Kind:
    return "quantity" if unit_of(meter) in DIVISIBLE else "integer"


def _dimension(name: str) -> Field[Row]:
    return Field(name, "text", lambda row: row.group[name])


def _known_cost(name: str) -> Callable[[Row], Decimal | None]:
    return lambda row: getattr(row, name) if row.cost_known else None


def _meters_of(report: Sheet) -> list[str]:
    """Every standard meter, so that the columns never depend on the data; a user's own meters after them."""
    own = {meter for row in report.rows for meter in row.usage.quantities}
    return [*_QUANTITY_METERS, *sorted(own.difference(ALL_METERS))]


#: What columns of a report can be called that are no meters.
_TAKEN = frozenset(
    {
        *("period_start", "period_end", *CALENDAR_UNITS),
        *(*DIMENSIONS, *COUNTS, *TOKEN_VIEWS, *COSTS, *LATENCY_MEASURES),
    }
)


def _column_of(meter: str) -> str:
    """What a meter's column is called; one of a user's own may bear the name of another column."""
    return f"meter:{meter}" if meter in _TAKEN or meter.startswith(("meter:", "tag:")) else meter


# -- entries and their charges


def entry_fields() -> list[Field[Entry]]:
    """Columns of raw entries: every field of `tokenmeter.Entry`, each token class in a column of its own."""
    return [
        *_ENTRY_HEAD,
        *read_off("text", *(f"attribution.{name}" for name in WHO)),
        *_ENTRY_KEY,
        *_TOKEN_VIEWS,
        *(Field[Entry](meter, _kind(meter), _meter(meter), summed=True) for meter in _QUANTITY_METERS),
        Field[Entry]("other_quantities", "json", lambda entry: _other(entry.usage)),
        *read_off("money", *COSTS, summed=True),
        *_ENTRY_TAIL,
        *(Field[Entry](name, kind, attrgetter(name)) for name, kind in COLUMNS.items() if name not in _PLACED),
    ]


def _other(usage: Usage) -> Mapping[str, Quantity] | None:
    return {meter: amount for meter, amount in usage.quantities.items() if meter not in _QUANTITY_METERS} or None


_ENTRY_HEAD: Sequence[Field[Entry]] = (
    *read_off("text", "entry_id", "kind"),
    *read_off("instant", "occurred_at", "recorded_at"),
    *read_off("text", "provider", "endpoint", "operation", "model", "request_model", "response_model"),
    *read_off("text", "response_id", "request_id", "status", "error_type"),
    *read_off("flag", "streamed"),
    *read_off("integer", "attempts", "latency_us", "first_token_us"),
    *read_off("text", "service_tier"),
)
_ENTRY_KEY: Sequence[Field[Entry]] = (
    Field("tags", "json", lambda entry: dict(entry.attribution.tags) or None),
    Field("api_key", "text", lambda entry: entry.api_key and entry.api_key.label),
    Field("api_key_fingerprint", "text", lambda entry: entry.api_key and entry.api_key.fingerprint),
)
_ENTRY_TAIL: Sequence[Field[Entry]] = (
    *read_off("text", "cost_source"),
    Field("flags", "json", lambda entry: list(entry.flags) or None),
    *read_off("text", "price_list_hash", "raw_usage", "corrects", "dedup_key", "trace_id", "span_id"),
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
        *read_off("money", *(f"charge.{name}" for name in COSTS), summed=True),
        Field("price_id", "text", lambda line: line.charge.price_id),
        Field("price_source", "text", lambda line: line.charge.source),
        *read_off("text", *(f"entry.attribution.{name}" for name in WHO)),
        Field("tags", "json", lambda line: dict(line.entry.attribution.tags) or None),
        Field("api_key", "text", lambda line: line.entry.api_key and line.entry.api_key.label),
    ]
