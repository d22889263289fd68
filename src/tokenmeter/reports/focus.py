"""The ledger in FOCUS, the FinOps Open Cost and Usage Specification: 1.4 (three datasets) and 1.2.

Cost and Usage has one row per hour, API key, attribution, model, price and meter. FOCUS 1.4 has no columns for tokens,
models or tiers; they are in ``SkuPriceDetails`` and in columns that begin with ``x_``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.reports.export import Manifest, Origin, write
from tokenmeter.reports.fields import Field
from tokenmeter.reports.focus_books import Books, FocusTerms
from tokenmeter.reports.focus_columns import (
    billing_period_fields,
    cost_and_usage_fields,
    invoice_detail_fields,
)
from tokenmeter.reports.focus_rows import CostRow, cost_rows
from tokenmeter.reports.issued import read_issued
from tokenmeter.reports.query import Query, read_entries
from tokenmeter.reports.sink import refuse_existing
from tokenmeter.stores.base import Store

__all__ = ["FOCUS_VERSIONS", "FocusTerms", "export_focus"]

FOCUS_VERSIONS = ("1.4", "1.2")
_DATASETS = ("cost_and_usage", "invoice_detail", "billing_period")


def export_focus(
    store: Store,
    folder: str | Path,
    *,
    version: str = "1.4",
    query: Query | None = None,
    terms: FocusTerms | None = None,
    format: str = "csv",  # noqa: A002 - what everybody calls it
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Manifest]:
    """Write FOCUS datasets into a folder: ``cost_and_usage``, and for 1.4 ``invoice_detail`` and ``billing_period``.

    Memory holds the rows of one hour, and one line per invoice line.

    Args:
        store: The ledger.
        folder: Made when it is missing.
        version: ``"1.4"`` or ``"1.2"``.
        query: Which entries, and the time zone of billing months and hours; all, in UTC, by default.
        terms: Issuer, default account and payment terms.
        format: ``csv``, ``jsonl``, ``parquet`` or ``xlsx``.
        overwrite: Whether existing files may be replaced.
        progress: Called now and then with the number of Cost and Usage rows written.

    Returns:
        Dataset name -> its manifest.

    Raises:
        ConfigurationError: an unknown version or format, or a file that exists.
    """
    if version not in FOCUS_VERSIONS:
        raise ConfigurationError(f"Unknown FOCUS version {version!r}; use {' or '.join(FOCUS_VERSIONS)}.")
    query = query or Query()
    place = _folder(folder, version, format, overwrite=overwrite)
    books = Books(terms or FocusTerms(), read_issued(store))
    origin = Origin.of(store, f"FOCUS {version} Cost and Usage", query)
    entries = origin.watch(read_entries(store, query))
    columns = cost_and_usage_fields(books, version=version, head=origin.ledger["head"])
    rows = _noting(books.watch(cost_rows(entries, query.period.tz)), books, origin)
    written = {
        "cost_and_usage": write(
            rows, columns, place / f"cost_and_usage.{format}", origin, overwrite=overwrite, progress=progress
        )
    }
    if version == "1.2":
        return written
    for name, records, fields in _other_datasets(books):
        part = Origin(dataset=f"FOCUS {version} {name}", query=query, ledger=origin.ledger)
        file = name.lower().replace(" ", "_")
        written[file] = write(records, fields, place / f"{file}.{format}", part, overwrite=overwrite)
    return written


def _folder(folder: str | Path, version: str, format: str, *, overwrite: bool) -> Path:  # noqa: A002 - as above
    """The folder, ready to take every dataset: none is written when one of them cannot be."""
    place = Path(folder)
    if not overwrite:
        for name in _DATASETS if version == "1.4" else _DATASETS[:1]:
            refuse_existing(place / f"{name}.{format}")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{str(place)!r} cannot be made a folder: {error.strerror}. Name another.") from error
    return place


def _other_datasets(books: Books) -> Iterator[tuple[str, Iterable[Any], Sequence[Field[Any]]]]:
    yield "Invoice Detail", books.lines.values(), invoice_detail_fields(books)
    yield "Billing Period", books.periods, billing_period_fields()


def _noting(rows: Iterator[CostRow], books: Books, origin: Origin) -> Iterator[CostRow]:
    yield from rows
    if books.unpriced:
        origin.notes.append(
            f"Rows of usage without a known price: {books.unpriced:,}. FOCUS allows no empty cost: they say 0, and "
            "x_CostSource says 'unpriced'. Their quantity is in x_Quantity."
        )
