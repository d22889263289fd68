"""A report as a data frame or a chart, for who has pandas, polars or plotly."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, Literal

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import COSTS, EXACT, ZERO
from tokenmeter.reports.fields import Field, report_fields
from tokenmeter.reports.query import END
from tokenmeter.reports.rows import COUNTS, Row, Sheet
from tokenmeter.reports.writers import import_extra

_MAX_SERIES = 12
#: What adds up, so that bars may be stacked and the rest summed.
_VALUES = (*reversed(COSTS), *COUNTS, "input_tokens", "output_tokens")

Decimals = Literal["exact", "float"]


def pandas_frame(report: Sheet, *, decimals: Decimals = "exact", nonzero: bool = False) -> Any:
    """One line per row; counts are integers, instants UTC, days without a zone, costs as `decimals` says."""
    pandas = import_extra("pandas", "to_pandas()")
    columns: dict[str, Any] = {}
    for one, values in _columns(report, decimals, nonzero=nonzero):
        column = pandas.Series(values, dtype=object)
        if one.kind == "integer":
            # Of a row without a timed call there is no latency: a kind of column that can be without a number.
            column = column.astype("Int64" if None in values else "int64")
        elif one.kind == "instant" and report.period.end != END:  # an open end is None, which no unit of time holds
            column = pandas.to_datetime(column, utc=True)
        elif one.kind == "day":
            column = pandas.to_datetime(column)
        elif decimals == "float" and one.kind in _FRACTIONS:
            column = column.astype("float64")
        columns[one.name] = column
    return pandas.DataFrame(columns)


def polars_frame(report: Sheet, *, decimals: Decimals = "exact", nonzero: bool = False) -> Any:
    """One line per row; exact costs and quantities are ``Decimal(38, 12)``, days ``Date``."""
    polars = import_extra("polars", "to_polars()")
    types = {
        "text": polars.String,
        "integer": polars.Int64,
        "instant": polars.Datetime("us", "UTC"),
        "day": polars.Date,
        **dict.fromkeys(_FRACTIONS, polars.Decimal(38, 12)),
    }
    if decimals == "float":
        types |= dict.fromkeys(_FRACTIONS, polars.Float64)
    return polars.DataFrame(
        [
            polars.Series(one.name, values, dtype=types[one.kind], strict=False)
            for one, values in _columns(report, decimals, nonzero=nonzero)
        ]
    )


#: Kinds of columns whose values are decimals.
_FRACTIONS = ("money", "quantity")


def _columns(report: Sheet, decimals: str, *, nonzero: bool) -> Iterator[tuple[Field[Row], list[Any]]]:
    """Each column with its values; with `nonzero` only those that say something."""
    if decimals not in ("exact", "float"):
        raise ConfigurationError(f"decimals= takes 'exact' (decimal.Decimal) or 'float', not {decimals!r}.")
    for one in report_fields(report):
        values = [one.pick(row) for row in report.rows]
        if nonzero and one.kind in ("integer", *_FRACTIONS) and not any(values):
            continue
        if one.kind in _FRACTIONS:
            shape = Decimal if decimals == "exact" else float  # not money any more: asked for, to look at and to plot
            values = [None if value is None else shape(value) for value in values]
        yield one, values


def chart(report: Sheet, *, value: str = "billed_cost") -> Any:
    """A plotly figure: bars over time, stacked by group, with a granularity; else one bar per group.

    Groups beyond the dozen dearest are summed as ``(3 others)``.

    Raises:
        ConfigurationError: `value` is nothing that adds up, or plotly is not installed.
    """
    if value not in _VALUES:
        raise ConfigurationError(f"A chart shows {', '.join(_VALUES)}, not {value!r}.")
    graph = import_extra("plotly.graph_objects", "plot()")
    figure = graph.Figure()
    if report.granularity:
        for name, points in _series(report, value):
            labels = list(dict.fromkeys(row.bucket.label for row in report.rows))
            figure.add_bar(name=name, x=labels, y=[str(points.get(label, 0)) for label in labels])
        figure.update_layout(barmode="stack")
    else:
        rows = report.rows[:_MAX_SERIES]
        rest = report.rows[_MAX_SERIES:]
        names, amounts = [_name(row) for row in rows], [str(getattr(row, value)) for row in rows]
        if rest:
            names.append(f"({len(rest)} others)")
            amounts.append(str(_sum(getattr(row, value) for row in rest)))
        figure.add_bar(x=names, y=amounts)
    unit = "US dollars" if value.endswith("cost") else value.replace("_", " ")
    figure.update_layout(
        title=f"{value.replace('_', ' ')}, {report.period.label} ({report.tz})",
        xaxis={"type": "category"},
        yaxis={"title": unit, "type": "linear"},
    )
    return figure


def _series(report: Sheet, value: str) -> Iterator[tuple[str, dict[str, Decimal]]]:
    """Each group's name and its values by the label of their time; told apart by what they are, not by their names."""
    totals: dict[tuple[str | None, ...], Decimal] = {}
    names: dict[tuple[str | None, ...], str] = {}
    for row in report.rows:
        group = tuple(row.group.values())
        totals[group] = EXACT.add(totals.get(group, ZERO), getattr(row, value))
        names[group] = _name(row)
    kept = set(sorted(totals, key=lambda group: totals[group], reverse=True)[:_MAX_SERIES])
    series: dict[tuple[str | None, ...] | None, dict[str, Decimal]] = {}
    for row in report.rows:
        group = tuple(row.group.values())
        points = series.setdefault(group if group in kept else None, {})
        points[row.bucket.label] = EXACT.add(points.get(row.bucket.label, ZERO), getattr(row, value))
    for one, points in series.items():
        yield f"({len(totals) - len(kept)} others)" if one is None else names[one], points


def _name(row: Row) -> str:
    return ", ".join(value or "(none)" for value in row.group.values()) or "all"


def _sum(values: Iterable[Decimal | int]) -> Decimal:
    return functools.reduce(EXACT.add, values, ZERO)
