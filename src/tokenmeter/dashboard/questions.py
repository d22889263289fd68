"""Questions: what may be asked of a ledger, by which dimension and measure, and how an address says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Literal, cast

from tokenmeter.dashboard.figures import NO_FIGURE, count, exact, money, places, share
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import multiply, ratio, round_to
from tokenmeter.reports import Row
from tokenmeter.reports.query import parse_by
from tokenmeter.stores.sketch import Latencies, Sketch
from tokenmeter.values import dataclass

Unit = Literal["usd", "count", "share", "ms", "rate"]
Form = Literal["bars", "lines", "share", "running"]

#: How a chart may be drawn, and what that is called.
FORMS: Mapping[Form, str] = {"bars": "Bars", "lines": "Lines", "share": "Share", "running": "Running total"}


@dataclass(frozen=True, slots=True)
class Measure:
    """What is counted.

    Attributes:
        name: In the address.
        label: In words.
        unit: What a figure of it is.
        of: A row's figure; None where it has none.
        adds: Whether figures of several rows may be added up, and so be stacked.
        timed: Whether it is about how long calls took.
        budgeted: The unit of budgets that limit it.
    """

    name: str
    label: str
    unit: Unit
    of: Callable[[Row], Decimal | int | None]
    adds: bool = True
    timed: bool = False
    budgeted: str | None = None


def _priced(row: Row) -> Decimal | None:
    return row.billed_cost if row.cost_known else None


def _fresh(row: Row) -> int:
    return row.input_tokens - row.usage.cache_read_input_tokens - row.usage.cache_write_input_tokens


def _per(part: Decimal | int, whole: int) -> Decimal | None:
    return ratio(part, whole) if whole else None


def _took(name: str, label: str, figure: Callable[[Latencies], Decimal | int | None], unit: Unit = "ms") -> Measure:
    def of(row: Row) -> Decimal | int | None:
        return None if row.latency is None else figure(row.latency)

    return Measure(name, label, unit, of, adds=False, timed=True)


def _percentile(of: str, percent: int) -> Callable[[Latencies], Decimal | None]:
    def figure(times: Latencies) -> Decimal | None:
        sketch: Sketch = getattr(times, of)
        found = sketch.percentile(percent)
        return None if found is None else ratio(found, 1000)

    return figure


MEASURES: Mapping[str, Measure] = {
    one.name: one
    for one in (
        Measure("spend", "Spend", "usd", _priced, budgeted="usd"),
        Measure("list", "List cost", "usd", lambda row: row.list_cost if row.cost_known else None),
        Measure("requests", "Requests", "count", lambda row: row.requests, budgeted="requests"),
        Measure("errors", "Failed requests", "count", lambda row: row.errors),
        Measure("error-share", "Share that failed", "share", lambda row: _per(row.errors, row.requests), adds=False),
        Measure("tokens", "Tokens", "count", lambda row: row.usage.total_tokens, budgeted="tokens"),
        Measure("fresh-input", "Fresh input tokens", "count", _fresh),
        Measure("cache-read", "Tokens read from caches", "count", lambda row: row.usage.cache_read_input_tokens),
        Measure("cache-write", "Tokens written to caches", "count", lambda row: row.usage.cache_write_input_tokens),
        Measure("output", "Output tokens", "count", lambda row: row.output_tokens),
        Measure("reasoning", "Reasoning tokens", "count", lambda row: row.usage.reasoning_output_tokens),
        Measure("cached-share", "Cached share of input", "share", lambda row: row.cached_share, adds=False),
        Measure(
            "cost-per-request",
            "Cost per request",
            "usd",
            lambda row: _per(row.billed_cost, row.requests - row.unpriced) if row.cost_known else None,
            adds=False,
        ),
        Measure(
            "cost-per-million",
            "Cost per million tokens",
            "usd",
            lambda row: _per(multiply(row.billed_cost, 1_000_000), row.usage.total_tokens) if row.cost_known else None,
            adds=False,
        ),
        *(
            _took(f"{name}-p{percent}", f"{label}, {percent}th percentile", _percentile(of, percent))
            for name, label, of in (("latency", "Latency", "duration"), ("first-token", "First token", "first_token"))
            for percent in (50, 95, 99)
        ),
        _took("tokens-per-second", "Output tokens per second", lambda times: times.tokens_per_second, "rate"),
    )
}

#: Columns of the table, unless others are asked for.
_COLUMNS = ("requests", "tokens", "cached-share", "cost-per-request", "spend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, beside the period and the filters: its part of an address.

    Attributes:
        by: Dimension that tells the series apart.
        measure: What is counted.
        form: How it is drawn.
        compare: Whether the time before is drawn, too.
        hidden: Keys of series that are left out of the chart.
        sort: Column the table is sorted by; ``value`` = by name. A ``-`` in front turns the order round.
        find: Part of the names the table shows.
        columns: Of the table.
    """

    by: str = "model"
    measure: Measure = MEASURES["spend"]
    form: Form = "bars"
    compare: bool = True
    hidden: tuple[str, ...] = ()
    sort: str = ""
    find: str = ""
    columns: tuple[str, ...] = _COLUMNS

    @property
    def timed(self) -> bool:
        """Whether the table tells how long calls took."""
        return self.measure.timed or any(MEASURES[name].timed for name in self.columns)

    #: Names of its parameters.
    NAMES = ("by", "show", "form", "compare", "hide", "sort", "find", "columns")

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]]) -> Question:
        """The question of an address; parameters of others are passed over.

        Raises:
            ConfigurationError: a dimension, measure, form or column that is not known.
        """
        several: dict[str, list[str]] = {}
        for name, value in items:
            several.setdefault(name, []).append(value.strip())
        given = {name: values[-1] for name, values in several.items() if values[-1]}
        (by,) = parse_by([given.get("by", "model")])
        measure = MEASURES[_known("show", given.get("show", "spend"), MEASURES)]
        form = cast("Form", _known("form", given.get("form", "bars"), FORMS))
        columns = tuple(dict.fromkeys(one for text in several.get("columns", ()) for one in text.split(",") if one))
        for name in columns:
            _known("columns", name, MEASURES)
        sort = given.get("sort", "")
        if sort:
            _known("sort", sort.removeprefix("-"), ("value", *MEASURES))
        return cls(
            by=by,
            measure=measure,
            form=form,
            compare=given.get("compare") != "none",
            hidden=tuple(dict.fromkeys(several.get("hide", ()))),
            sort=sort,
            find=given.get("find", ""),
            columns=columns or _COLUMNS,
        )

    @property
    def drawn(self) -> Form:
        """How it is drawn: what cannot be added up is drawn as lines."""
        return self.form if self.measure.adds else "lines"

    @property
    def over_all(self) -> str:
        """How the figure of all together comes about, in words."""
        return "in all" if self.measure.adds else "over all calls"

    def items(self) -> Iterator[tuple[str, str]]:
        """The parameters that make this question again."""
        plain = Question()
        if self.by != plain.by:
            yield "by", self.by
        if self.measure != plain.measure:
            yield "show", self.measure.name
        if self.form != plain.form:
            yield "form", self.form
        if not self.compare:
            yield "compare", "none"
        for key in self.hidden:
            yield "hide", key
        for name in ("sort", "find"):
            if getattr(self, name):
                yield name, getattr(self, name)
        if self.columns != plain.columns:
            yield "columns", ",".join(self.columns)

    def but(self, **changes: object) -> Question:
        """The same with something else in it; another dimension or measure begins with everything in sight."""
        if "measure" in changes:
            changes["measure"] = MEASURES[str(changes["measure"])]
        if "by" in changes and changes["by"] != self.by:
            changes = {"hidden": (), "find": "", **changes}
        return replace(self, **changes)  # type: ignore[arg-type]

    def toggled(self, key: str) -> Question:
        """The same with one series hidden, or shown again."""
        hidden = self.hidden
        return replace(self, hidden=tuple(one for one in hidden if one != key) if key in hidden else (*hidden, key))

    def turned(self, column: str) -> Question:
        """The same sorted by a column; a second time the other way round."""
        return replace(self, sort=f"-{column}" if self.sort == column else column)


def _known(name: str, value: str, known: Iterable[str]) -> str:
    if value not in known:
        raise ConfigurationError(f"{name}= is one of {', '.join(known)}, not {value[:64]!r}.")
    return value


# -- its figures


def shown_as(value: Decimal | int | None, measure: Measure, decimals: int | None = None) -> str:
    """A figure of a measure, for people."""
    if value is None:
        return NO_FIGURE
    if measure.unit == "usd":
        return money(Decimal(value), decimals)
    if measure.unit == "share":
        return share(Decimal(value))
    if measure.unit == "ms":
        return lasting(Decimal(value))
    return f"{round_to(value, 1):,f}" if measure.unit == "rate" else count(int(value))


def lasting(milliseconds: Decimal) -> str:
    """A time, for people."""
    if milliseconds < 1000:  # noqa: PLR2004 - a second
        return f"{exact(round_to(milliseconds, 0 if milliseconds >= 10 else 1))} ms"  # noqa: PLR2004 - two digits
    return f"{exact(round_to(ratio(milliseconds, 1000), 2))} s"


def figure_in(row: Row, measure: Measure, decimals: int | None = None) -> str:
    """A row's figure of a measure, for people."""
    return shown_as(measure.of(row), measure, decimals)


def decimals_of(measure: Measure, values: Iterable[Decimal | int | None]) -> int | None:
    """How many decimals its figures are written with, all alike; None = each as it is."""
    return places(Decimal(one) for one in values if one) if measure.unit == "usd" else None
