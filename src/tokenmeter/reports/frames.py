"""Reports as data frames and as a chart. pandas, polars and plotly are only needed by whoever asks for them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.reports.fields import Field, report_fields
from tokenmeter.reports.query import END
from tokenmeter.reports.writers import import_extra

if TYPE_CHECKING:
    from tokenmeter.reports.report import Report
    from tokenmeter.reports.row import Row

__all__ = ["chart", "pandas_frame", "polars_frame"]

_MAX_SERIES = 12
#: What adds up, so that bars may be stacked and the rest summed.
_VALUES = (
    "billed_cost",
    "contracted_cost",
    "list_cost",
    "requests",
    "errors",
    "unpriced",
    "estimated",
    "input_tokens",
    "output_tokens",
)


def pandas_frame(report: Report) -> Any:
    """One line per row; costs stay exact as ``decimal.Decimal`` objects, counts are integers, instants UTC."""
    pandas = import_extra("pandas", "to_pandas()")
    columns = {one.name: _column(report, one) for one in report_fields(report)}
    frame = pandas.DataFrame({name: pandas.Series(values, dtype=object) for name, values in columns.items()})
    for one in report_fields(report):
        if one.kind == "integer":
            frame[one.name] = frame[one.name].astype("int64")
        elif one.kind == "instant" and report.period.end != END:  # an open end is None, which no unit of time holds
            frame[one.name] = pandas.to_datetime(frame[one.name], utc=True)
    return frame


def polars_frame(report: Report) -> Any:
    """One line per row; costs are ``Decimal(38, 12)``, quantities ``Decimal(38, 9)``, instants UTC."""
    polars = import_extra("polars", "to_polars()")
    types = {
        "text": polars.String,
        "integer": polars.Int64,
        "instant": polars.Datetime("us", "UTC"),
        "money": polars.Decimal(38, 12),
        "quantity": polars.Decimal(38, 9),
    }
    return polars.DataFrame(
        [
            polars.Series(one.name, _column(report, one), dtype=types[one.kind], strict=False)
            for one in report_fields(report)
        ]
    )


def _column(report: Report, one: Field[Row]) -> list[Any]:
    values = [one.pick(row) for row in report.rows]
    return [None if value is None else Decimal(value) for value in values] if one.kind == "quantity" else values


def chart(report: Report, *, value: str = "billed_cost") -> Any:
    """A plotly figure: bars over time, stacked by group, with a granularity; else one bar per group.

    Groups beyond the dozen dearest are summed as ``others``.

    Raises:
        ConfigurationError: `value` is nothing that adds up, or plotly is not installed.
    """
    if value not in _VALUES:
        raise ConfigurationError(f"A chart shows {', '.join(_VALUES)}, not {value!r}.")
    graph = import_extra("plotly.graph_objects", "plot()")
    figure = graph.Figure()
    if report.granularity:
        for name, points in _series(report, value).items():
            labels = list(dict.fromkeys(row.bucket.label for row in report.rows))
            figure.add_bar(name=name, x=labels, y=[str(points.get(label, 0)) for label in labels])
        figure.update_layout(barmode="stack")
    else:
        rows = report.rows[:_MAX_SERIES]
        rest = report.rows[_MAX_SERIES:]
        names, amounts = [_name(row) for row in rows], [str(getattr(row, value)) for row in rows]
        if rest:
            names.append(f"({len(rest)} others)")
            amounts.append(str(sum((getattr(row, value) for row in rest), Decimal(0))))
        figure.add_bar(x=names, y=amounts)
    unit = "US dollars" if value.endswith("cost") else value.replace("_", " ")
    figure.update_layout(
        title=f"{value.replace('_', ' ')}, {report.period.label} ({report.tz})",
        xaxis={"type": "category"},
        yaxis={"title": unit, "type": "linear"},
    )
    return figure


def _series(report: Report, value: str) -> dict[str, dict[str, Decimal]]:
    totals: dict[str, Decimal] = {}
    for row in report.rows:
        totals[_name(row)] = totals.get(_name(row), Decimal(0)) + getattr(row, value)
    kept = set(sorted(totals, key=lambda name: -totals[name])[:_MAX_SERIES])
    series: dict[str, dict[str, Decimal]] = {}
    for row in report.rows:
        name = _name(row) if _name(row) in kept else "others"
        points = series.setdefault(name, {})
        points[row.bucket.label] = points.get(row.bucket.label, Decimal(0)) + getattr(row, value)
    return series


def _name(row: Row) -> str:
    return ", ".join(value or "(none)" for value in row.group.values()) or "all"
