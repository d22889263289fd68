"""The formats of exports: CSV, JSON Lines, Parquet and XLSX, each written record by record."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT
from tokenmeter.reports.fields import Field, Kind, plain
from tokenmeter.reports.sink import Sink, Target
from tokenmeter.reports.xlsx import write_xlsx

ExportFormat = Literal["csv", "jsonl", "parquet", "xlsx"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = ("csv", "jsonl", "parquet", "xlsx")

_BATCH = 10_000
#: A spreadsheet runs a cell that begins with one of these as a formula; full-width forms count, too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def format_of(target: Target, format: str | None) -> ExportFormat:  # noqa: A002 - what everybody calls it
    """The format asked for, else the one that the target's ending names, else CSV.

    Raises:
        ConfigurationError: none that is known.
    """
    name = format
    if name is None and isinstance(target, (str, os.PathLike)):
        name = Path(target).suffix.removeprefix(".").lower() or None
    name = {"ndjson": "jsonl", "pq": "parquet"}.get(name or "csv", name or "csv")
    for known in EXPORT_FORMATS:
        if known == name:
            return known
    raise ConfigurationError(f"Unknown export format {name!r}; use one of {', '.join(EXPORT_FORMATS)}.")


def _write_csv(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """RFC 4180: commas, CRLF, quotes where needed. Text that a spreadsheet would run gets an apostrophe in front."""
    line = io.StringIO()
    writer = csv.writer(line)

    def put(cells: Iterable[Any]) -> None:
        writer.writerow(cells)
        sink.write(line.getvalue().encode())
        line.seek(0)
        line.truncate()

    put(_defused(one.name) for one in fields)
    cells = [_CELLS.get(one.kind) for one in fields]
    for values in records:
        put(value if cell is None or value is None else cell(value) for cell, value in zip(cells, values, strict=True))


def _defused(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


#: How a CSV cell is written, by kind; whole numbers as they are.
_CELLS: Mapping[Kind, Callable[[Any], str]] = {
    "text": _defused,
    "json": lambda value: _defused(plain(value, "json")),
    "flag": lambda value: "true" if value else "false",
    "money": lambda value: plain(value, "money"),
    "price": lambda value: plain(value, "price"),
    "quantity": lambda value: plain(value, "quantity"),
    "instant": lambda value: plain(value, "instant"),
    "second": lambda value: plain(value, "second"),
}


def _write_jsonl(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """One JSON object per line; decimals are text, so that no reader rounds them."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
    for values in records:
        record = {
            one.name: value if one.kind == "json" else plain(value, one.kind)
            for one, value in zip(fields, values, strict=True)
        }
        sink.write(f"{encode(record)}\n".encode())


def _write_parquet(records: Iterable[list[Any]], fields: Sequence[Field[Any]], sink: Sink) -> None:
    """Parquet with exact decimals, in row groups of 10,000."""
    table = import_extra("pyarrow", "Parquet")
    parquet = import_extra("pyarrow.parquet", "Parquet")
    types = {
        "text": table.string(),
        "json": table.string(),
        "integer": table.int64(),
        "flag": table.bool_(),
        "instant": table.timestamp("us", tz="UTC"),
        "second": table.timestamp("s", tz="UTC"),
        "money": table.decimal128(38, 12),
        "price": table.decimal128(38, 24),
        "quantity": table.decimal128(38, 9),
    }
    schema = table.schema([(one.name, types[one.kind]) for one in fields])
    with parquet.ParquetWriter(table.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        rows = iter(records)
        while batch := list(islice(rows, _BATCH)):
            columns = [
                [_exact(value, one.kind) for value in column]
                for one, column in zip(fields, zip(*batch, strict=True), strict=True)
            ]
            writer.write_batch(table.record_batch(columns, schema=schema))


def _exact(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind in _PLACES:
        return EXACT.quantize(Decimal(value), _PLACES[kind])
    return plain(value, kind) if kind == "json" else value


_PLACES: Mapping[str, Decimal] = {"money": Decimal("1E-12"), "price": Decimal("1E-24"), "quantity": Decimal("1E-9")}
WRITERS: Mapping[ExportFormat, Callable[[Iterable[list[Any]], Sequence[Field[Any]], Sink], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "xlsx": write_xlsx,
}


def import_extra(module: str, purpose: str) -> Any:
    """An optional package.

    Raises:
        ConfigurationError: it is not installed; the message says the command.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigurationError(f"{purpose} needs {package}, which is not installed: pip install {package}") from error
