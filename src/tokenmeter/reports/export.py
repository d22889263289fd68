"""Exports: CSV, JSON Lines and Parquet, written record by record, each with a manifest that lets a reader check it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from tokenmeter.ledger import Entry, utcnow
from tokenmeter.money import EXACT, ZERO
from tokenmeter.reports.fields import ChargeLine, Field, charge_fields, entry_fields, json_value
from tokenmeter.reports.query import Query, closed, read_entries
from tokenmeter.reports.writers import WRITERS, Target, format_of, is_stream, opened, refuse_existing, write_whole
from tokenmeter.stores.base import Store
from tokenmeter.stores.urls import redacted
from tokenmeter.values import dataclass

R = TypeVar("R")
_REPORT_EVERY = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an export holds, to check it by. Beside a file it is ``FILE.manifest.json``.

    Attributes:
        dataset: ``report``, ``entries``, ``charges``, or a FOCUS dataset.
        format: ``csv``, ``jsonl``, ``parquet`` or ``xlsx``.
        file: Name of the file; None for an open stream.
        rows: How many records, headings not counted.
        columns: Headings, in order.
        control_totals: Sum per summed column, as decimal text.
        since: First instant covered, inclusive; None = from the beginning of the ledger.
        until: First instant not covered; None = no end.
        tz: Zone in which the calendar was cut.
        where: Filters: dimension -> accepted values.
        ledger: ``url`` of the store (without password) and ``head``, the hash of its last entry when the export began,
            where the store keeps one; for exports of entries also ``first_entry`` and ``last_entry``.
        bytes: Size.
        sha256: Of the file's bytes.
        created_at: ISO 8601, UTC.
        notes: Remarks on what the format cannot say.
    """

    dataset: str
    format: str
    file: str | None
    rows: int
    columns: tuple[str, ...]
    control_totals: Mapping[str, str]
    since: str | None = None
    until: str | None = None
    tz: str = "UTC"
    where: Mapping[str, Sequence[str | None]] = field(default_factory=dict[str, Sequence[str | None]])
    ledger: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    bytes: int
    sha256: str
    created_at: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The manifest as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


@dataclass(slots=True, kw_only=True)
class Origin:
    """Where records come from. `ledger` and `notes` may grow until the last record has passed.

    Attributes:
        dataset: As in `Manifest`.
        query: What was asked.
        ledger: As in `Manifest`.
        notes: As in `Manifest`.
    """

    dataset: str
    query: Query = field(default_factory=Query)
    ledger: dict[str, str | None] = field(default_factory=dict[str, str | None])
    notes: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, store: Store, dataset: str, query: Query) -> Origin:
        """Records of `store`, with the ledger's head as it stands now."""
        return cls(dataset=dataset, query=query, ledger=ledger_facts(store))

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the origin."""
        period, where = self.query.period, self.query.where
        return {
            "dataset": self.dataset,
            "since": json_value(closed(period.start), "instant"),
            "until": json_value(closed(period.end), "instant"),
            "tz": period.tz,
            "where": {name: sorted(values, key=lambda one: (one is None, one or "")) for name, values in where.items()},
            "ledger": self.ledger,
            "notes": tuple(self.notes),
        }

    def watch(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Pass `entries` on and remember the first and the last."""
        for entry in entries:
            self.ledger.setdefault("first_entry", entry.entry_id)
            self.ledger["last_entry"] = entry.entry_id
            yield entry


def ledger_facts(store: Store) -> dict[str, str | None]:
    """What a manifest says of a ledger: its ``url`` without password, and its ``head`` as it stands now."""
    head = store.health().facts.get("head")
    return {"url": re.sub(r"//[^@/]*@", "//", redacted(store.url)), "head": None if head is None else str(head)}


# -- what can be exported


def export_entries(
    store: Store,
    target: Target,
    *,
    format: str | None = None,  # noqa: A002 - what everybody calls it
    query: Query | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Write raw entries in order of their occurrence, one at a time: memory does not grow with the ledger.

    Args:
        store: The ledger.
        target: A path (its ending names the format) or an open stream. Beside a path a manifest is written.
        format: ``csv``, ``jsonl``, ``parquet`` or ``xlsx``, where the ending does not say.
        query: Which entries; all by default.
        overwrite: Whether an existing file may be replaced.
        progress: Called now and then with the number of records written.

    Raises:
        ConfigurationError: an unknown format, a missing extra, a missing folder, an existing file.
    """
    origin = Origin.of(store, "entries", query or Query())
    records = origin.watch(read_entries(store, origin.query))
    return write(records, entry_fields(), target, origin, format=format, overwrite=overwrite, progress=progress)


def export_charges(
    store: Store,
    target: Target,
    *,
    format: str | None = None,  # noqa: A002 - what everybody calls it
    query: Query | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Write every charge line with its unit price, factors and costs; arguments as for `export_entries`."""
    origin = Origin.of(store, "charges", query or Query())
    records = (
        ChargeLine(entry, position, charge)
        for entry in origin.watch(read_entries(store, origin.query))
        for position, charge in enumerate(entry.charges)
    )
    return write(records, charge_fields(), target, origin, format=format, overwrite=overwrite, progress=progress)


# -- writing


def write(
    records: Iterable[R],
    fields: Sequence[Field[R]],
    target: Target,
    origin: Origin,
    *,
    format: str | None = None,  # noqa: A002 - as above
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Manifest:
    """Write `records` as one table and its manifest; see `export_entries` for the arguments."""
    kind = format_of(target, format)
    path = Path(target) if isinstance(target, (str, os.PathLike)) and not is_stream(Path(target)) else None
    beside = None if path is None else path.with_name(f"{path.name}.manifest.json")
    if path is not None and beside is not None and not overwrite:
        refuse_existing(path)
        refuse_existing(beside)
    sums = _Sums(fields, progress)
    with opened(target, overwrite=overwrite) as sink:
        WRITERS[kind](sums.watch(records), fields, sink)
    manifest = Manifest(
        format=kind,
        file=None if path is None else path.name,
        rows=sums.rows,
        columns=tuple(one.name for one in fields),
        control_totals={one.name: json_value(total, one.kind) for one, total in sums.totals()},
        bytes=sink.size,
        sha256=sink.sha256,
        created_at=json_value(utcnow(), "instant"),
        **origin.facts(),
    )
    if beside is not None:
        write_whole(beside, manifest.to_json(), overwrite=overwrite)
    return manifest


class _Sums:
    """Counts records and adds up their summed columns while they pass."""

    def __init__(self, fields: Sequence[Field[Any]], progress: Callable[[int], object] | None) -> None:
        self.rows = 0
        self._fields = fields
        self._summed = [index for index, one in enumerate(fields) if one.summed]
        self._sums: dict[int, Decimal] = {}
        self._progress = progress

    def watch(self, records: Iterable[R]) -> Iterator[list[Any]]:
        """Each record's values, in the order of the fields."""
        picks = [one.pick for one in self._fields]
        for record in records:
            values = [pick(record) for pick in picks]
            for index in self._summed:
                if values[index]:
                    self._sums[index] = EXACT.add(self._sums.get(index, ZERO), values[index])
            self.rows += 1
            if self._progress and not self.rows % _REPORT_EVERY:
                self._progress(self.rows)
            yield values
        if self._progress:
            self._progress(self.rows)

    def totals(self) -> Iterator[tuple[Field[Any], Decimal]]:
        """Each summed field with its sum."""
        for index in self._summed:
            yield self._fields[index], self._sums.get(index, ZERO)
