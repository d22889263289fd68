"""The answer to a query: rows, totals, and the forms they can take."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from dataclasses import field, fields, replace
from datetime import datetime
from operator import add
from pathlib import Path
from typing import Any, Protocol, overload

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.money import Costs
from tokenmeter.periods import Period
from tokenmeter.reports import table
from tokenmeter.reports.export import Manifest, Origin, ledger_facts, write
from tokenmeter.reports.fields import report_fields
from tokenmeter.reports.focus import FocusTerms, export_focus
from tokenmeter.reports.frames import Decimals, chart, pandas_frame, polars_frame
from tokenmeter.reports.query import Query, cut
from tokenmeter.reports.rows import Row, Sheet
from tokenmeter.reports.writers import ExportFormat, Target, format_of
from tokenmeter.stores.base import Aggregate, Store
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass


class Source(Protocol):
    """The ledger that a report was read from, as far as its exports need it."""

    def facts(self) -> dict[str, str | None]:
        """What a manifest says of it: ``url`` without password, ``head``."""
        ...

    def export_focus(self, folder: str | Path, **options: Any) -> dict[str, Manifest]:
        """Write its entries as FOCUS datasets; options as of `tokenmeter.reports.export_focus`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(Sheet):
    """Usage and cost, grouped. ``print(report)`` shows a table; the ``to_...`` methods hand the exact figures on.

    A plain value: it is pickled and compared by what it says. Only `to_focus` and the ledger's name in a manifest need
    the ledger it came from, which is not pickled.

    Attributes:
        rows: Dearest first; in order of time first when there is a granularity.
        totals: All rows together, each entry counted once.
        by: The dimensions it is grouped by.
        period: The stretch of time it covers.
        granularity: Calendar unit of the buckets; None for one bucket.
        where: The filters that were applied.
        created_at: When it was read, aware UTC.
        source: The ledger it was read from; None after unpickling.
    """

    source: Source | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<Report {table.summary(self)}>"

    def __str__(self) -> str:
        return table.text(self)

    def _repr_html_(self) -> str:
        return table.html(self)

    def to_text(self, *, width: int | None = None, max_rows: int | None = table.MAX_ROWS) -> str:
        """The table that ``print`` shows.

        Args:
            width: Columns to fit into; None = the terminal's. What has no room is named below the table.
            max_rows: Rows to show before the rest is summed into one line; None = all.
        """
        return table.text(self, width=width, max_rows=max_rows)

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON-ready values; costs as decimal text."""
        query = self._query
        return {
            "period": {
                "label": self.period.label,
                "start": None if query.filter.since is None else query.filter.since.isoformat(),
                "end": None if query.filter.until is None else query.filter.until.isoformat(),
                "tz": self.tz,
            },
            "by": list(self.by),
            "granularity": self.granularity,
            "where": {name: sorted(values, key=str) for name, values in self.where.items()},
            "created_at": self.created_at.isoformat(),
            "currency": "USD",
            "rows": [row.to_dict() for row in self.rows],
            "totals": self.totals.to_dict(),
        }

    @overload
    def to_csv(self, target: None = None) -> str: ...
    @overload
    def to_csv(self, target: Target, *, overwrite: bool = False) -> Manifest: ...
    def to_csv(self, target: Target | None = None, *, overwrite: bool = False) -> str | Manifest:
        """One line per row, each token class, meter and cost in a column of its own, exact (RFC 4180).

        Text that a spreadsheet would run as a formula gets an apostrophe in front.

        Args:
            target: A path or an open stream; None = return the text. Beside a path a manifest is written.
            overwrite: Whether an existing file may be replaced.

        Raises:
            ConfigurationError: the file exists, or its folder does not.
        """
        return self._text("csv") if target is None else self._write("csv", target, overwrite=overwrite)

    @overload
    def to_jsonl(self, target: None = None) -> str: ...
    @overload
    def to_jsonl(self, target: Target, *, overwrite: bool = False) -> Manifest: ...
    def to_jsonl(self, target: Target | None = None, *, overwrite: bool = False) -> str | Manifest:
        """One JSON object per row, with the same columns and arguments as `to_csv`."""
        return self._text("jsonl") if target is None else self._write("jsonl", target, overwrite=overwrite)

    def to_parquet(self, target: Target, *, overwrite: bool = False) -> Manifest:
        """Parquet with exact decimals (needs pyarrow), with the same columns and arguments as `to_csv`."""
        return self._write("parquet", target, overwrite=overwrite)

    def to_xlsx(self, target: Target, *, overwrite: bool = False) -> Manifest:
        """An Excel workbook (extra ``xlsx``), with the same columns and arguments as `to_csv`, and a row of sums."""
        return self._write("xlsx", target, overwrite=overwrite)

    def export(self, target: Target, *, format: str | None = None, overwrite: bool = False) -> Manifest:  # noqa: A002 - what everybody calls it
        """`to_csv`, `to_jsonl`, `to_parquet` or `to_xlsx`, by `format` or by the target's ending."""
        return self._write(format_of(target, format), target, overwrite=overwrite)

    def to_pandas(self, *, decimals: Decimals = "exact", nonzero: bool = False) -> Any:
        """A ``pandas.DataFrame`` with the columns of `to_csv`.

        Args:
            decimals: ``exact``: costs are ``decimal.Decimal`` objects; ``float``: binary fractions, not exact, which
                ``.plot()`` and ``.describe()`` need.
            nonzero: Leave out columns in which every row is zero or unknown.

        Raises:
            ConfigurationError: pandas is not installed, or another word for `decimals`.
        """
        return pandas_frame(self, decimals=decimals, nonzero=nonzero)

    def to_polars(self, *, decimals: Decimals = "exact", nonzero: bool = False) -> Any:
        """A ``polars.DataFrame``; arguments and errors as for `to_pandas`."""
        return polars_frame(self, decimals=decimals, nonzero=nonzero)

    def to_focus(
        self,
        folder: str | Path,
        *,
        version: str = "1.4",
        terms: FocusTerms | None = None,
        format: str = "csv",  # noqa: A002 - what everybody calls it
        overwrite: bool = False,
    ) -> dict[str, Manifest]:
        """Write the entries of this report's period and filters as FOCUS datasets into a folder.

        The rows are FOCUS's own (per hour, key, member, model and meter), read from the ledger again; see
        `tokenmeter.reports.export_focus`.

        Raises:
            ConfigurationError: an unknown version or format, a file that exists, or a report without a ledger.
        """
        if self.source is None:
            raise ConfigurationError("This report was unpickled and no longer knows its ledger; build it again.")
        return self.source.export_focus(
            folder, version=version, query=self._query, terms=terms, format=format, overwrite=overwrite
        )

    def plot(self, value: str = "billed_cost") -> Any:
        """A plotly figure of a cost, count or token sum of the rows: over time with a granularity, else per group.

        Args:
            value: ``billed_cost``, ``list_cost``, ``contracted_cost``, ``requests``, ``errors``, ``unpriced``,
                ``estimated``, ``input_tokens`` or ``output_tokens``.

        Raises:
            ConfigurationError: `value` is none of these, or plotly is not installed.
        """
        return chart(self, value=value)

    @property
    def _query(self) -> Query:
        return Query(
            by=self.by, period=self.period, granularity=self.granularity, where=self.where, latency=self.latency
        )

    def _text(self, format_: ExportFormat) -> str:
        text = io.StringIO(newline="")
        self._write(format_, text)
        return text.getvalue()

    def _write(self, format_: ExportFormat, target: Target, *, overwrite: bool = False) -> Manifest:
        origin = Origin(dataset="report", query=self._query, ledger={} if self.source is None else self.source.facts())
        return write(self.rows, report_fields(self), target, origin, format=format_, overwrite=overwrite)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "source"}
        return functools.partial(Report, **values), ()


@dataclass(frozen=True, slots=True)
class _Ledger:
    """A store as the source of a report."""

    store: Store

    def facts(self) -> dict[str, str | None]:
        """See `Source`."""
        return ledger_facts(self.store)

    def export_focus(self, folder: str | Path, **options: Any) -> dict[str, Manifest]:
        """See `Source`."""
        return export_focus(self.store, folder, **options)


def read_report(store: Store, query: Query) -> Report:
    """Read the answer to `query`; see `tokenmeter.report`."""
    parts = cut(store, query)
    boundaries = [part.start for part in parts] + [part.end for part in parts[-1:]]
    sums = store.aggregate(boundaries, query.by, query.filter) if parts else ()
    found = (_row(parts[one.bucket] if query.granularity else query.period, query.by, one) for one in sums)
    rows = [row for row in found if not row.empty]
    rows.sort(key=_by_time_and_cost if query.granularity else _by_cost)
    totals = _totals(store, query, boundaries, rows)
    if query.latency and parts:
        rows, totals = _timed(store, query, boundaries, rows, totals)
    return Report(
        rows=tuple(rows),
        totals=totals,
        by=query.by,
        period=query.period,
        granularity=query.granularity,
        where=query.where,
        created_at=utcnow(),
        latency=query.latency,
        source=_Ledger(store),
    )


def _timed(
    store: Store, query: Query, boundaries: Sequence[datetime], rows: Sequence[Row], totals: Row
) -> tuple[list[Row], Row]:
    """The same with how long the calls took."""
    found = {(one.bucket, one.group): one for one in store.latencies(boundaries, query.by, query.filter)}
    places = {start: bucket for bucket, start in enumerate(boundaries[:-1])} if query.granularity else {}
    timed = [
        replace(row, latency=found.get((places.get(row.bucket.start, 0), tuple(row.group.values())))) for row in rows
    ]
    whole = functools.reduce(add, found.values()) if found else None
    return timed, replace(totals, latency=whole)


def _row(bucket: Period, by: Sequence[str], sums: Aggregate) -> Row:
    return Row(
        bucket=bucket,
        group=dict(zip(by, sums.group, strict=True)),
        requests=sums.requests,
        errors=sums.errors,
        unpriced=sums.unpriced,
        estimated=sums.estimated,
        usage=Usage({m: q for m, q in sums.quantities.items() if q}, sums.reasoning_output_tokens),
        **Costs.of(sums)._asdict(),
    )


def _totals(store: Store, query: Query, boundaries: Sequence[datetime], rows: Sequence[Row]) -> Row:
    total = Row.total(rows, query.period)
    if "sku_meter" not in query.by or not boundaries:
        return total
    # An entry is in one row for each of its meters (in none without any): count the entries themselves.
    counted = store.aggregate([boundaries[0], boundaries[-1]], (), query.filter)
    return Row(
        bucket=query.period,
        group={},
        requests=sum(one.requests for one in counted),
        errors=sum(one.errors for one in counted),
        unpriced=sum(one.unpriced for one in counted),
        estimated=sum(one.estimated for one in counted),
        usage=Usage(total.usage.quantities, sum(one.reasoning_output_tokens for one in counted)),
        **Costs.of(total)._asdict(),
    )


def _by_cost(row: Row) -> tuple[Any, ...]:
    names = tuple((value is None, value or "") for value in row.group.values())
    return (row.billed_cost.copy_negate(), row.list_cost.copy_negate(), -row.usage.total_tokens, -row.requests, names)


def _by_time_and_cost(row: Row) -> tuple[Any, ...]:
    return (row.bucket.start, *_by_cost(row))
