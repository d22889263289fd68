"""Charts as the page draws them: shapes on a grid that is stretched to the page, axes, and what a pointer is told.

The server draws, so that a chart is there without scripts and on paper, and looks the same everywhere. A chart's plane
is ``WIDE`` units per bucket wide and `HIGH` units high, whatever the screen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from typing import Any, NamedTuple

from tokenmeter.dashboard.explore import REST, Finding, Series
from tokenmeter.dashboard.figures import exact, money, name, places, share
from tokenmeter.dashboard.outlook import Forecast
from tokenmeter.dashboard.questions import Form, Measure, Question, decimals_of, lasting, shown_as
from tokenmeter.dashboard.view import find_marks
from tokenmeter.display import compact_alike
from tokenmeter.money import EXACT, ZERO, add, multiply, ratio, round_to, subtract, total
from tokenmeter.reports import Row
from tokenmeter.values import dataclass

WIDE, HIGH = 10, 1000
_MOST_TICKS = 8
#: A limit so many times as high as the figures is named, and not drawn to scale: they would be a line along the bottom.
#: Of a sum that runs towards it, which is what such a chart is about, it is a broken line along the top.
_FAR = 5
_EDGE = Decimal(4)  # percent of the width within which a label is set flush with the side


class Mark(NamedTuple):
    """A rectangle or a path of the plane.

    Attributes:
        css: Class that colours it.
        path: What it is: the ``d`` of a path.
    """

    css: str
    path: str


class Tick(NamedTuple):
    """A mark of an axis.

    Attributes:
        at: Percent of the axis, from the left or the top.
        label: What stands there.
        anchor: How the label lies to `at`: ``start``, ``middle`` or ``end``.
        fine: Whether a narrow page leaves it out.
    """

    at: str
    label: str
    anchor: str = "middle"
    fine: bool = False


class LineKey(NamedTuple):
    """A line that stands for no series.

    Attributes:
        css: Class that colours it.
        words: What it is.
    """

    css: str
    words: str


class LegendKey(NamedTuple):
    """An entry of the legend.

    Attributes:
        css: Class that colours it.
        name: What it is.
        total: Its figure for the whole period; empty where figures cannot be added up.
        url: What shows or hides it.
        hidden: Whether it is left out.
    """

    css: str
    name: str
    total: str
    url: str
    hidden: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawn chart.

    Attributes:
        width: Of its plane.
        shapes: In the order they are drawn in.
        lines: What the lines mean that stand for no series.
        across: Marks of time.
        up: Marks of the figures.
        legend: What the colours mean.
        data: What a pointer is told, JSON-ready.
        empty: Whether there is nothing to draw.
    """

    width: int
    shapes: Sequence[Mark]
    lines: Sequence[LineKey]
    across: Sequence[Tick]
    up: Sequence[Tick]
    legend: Sequence[LegendKey]
    data: dict[str, Any]
    empty: bool


class _Plane(NamedTuple):
    """Where figures lie."""

    low: Decimal
    high: Decimal

    def y(self, value: Decimal | int) -> int:
        return int(multiply(ratio(subtract(self.high, value), subtract(self.high, self.low)), HIGH))

    def percent(self, value: Decimal) -> str:
        return _percent(self.y(value), HIGH)


def draw(answer: Finding, base: str, url: Callable[[Question], str]) -> Chart:
    """An answer as a chart.

    Args:
        answer: What was found.
        base: Path the dashboard is served under.
        url: The address of another question.
    """
    measure, form = answer.question.measure, answer.question.drawn
    colours = {one.key: "rest" if one.key == REST else f"c{at % 7 + 1}" for at, one in enumerate(answer.series)}
    shown = [one for one in answer.series if not one.hidden]
    before = _before(answer, form)
    stacks, paths = _figures(answer, shown, form)
    tops = [value for column in stacks for value in (_above(column), _below(column))]
    levels = [value for path in (*paths, before) for value in path if value is not None]
    ahead = answer.forecast if form == "running" else None
    figures = [*tops, *levels, *((ahead.high,) if ahead else ())]
    limits = [one.amount for one in answer.limits if _is_near(one.amount, figures)]
    plane, marks = _scale([*figures, *limits], measure, form)
    shapes = [*_bars(stacks, shown, colours, plane)] if form in {"bars", "share"} else []
    if form in {"lines", "running"}:
        names = [colours[one.key] for one in shown] if form == "lines" else ["c1"]
        for css, values in zip(names, paths, strict=True):
            shapes.append(Mark(f"line {css}", _path(values, plane)))
            if alone := _points(values, plane):
                shapes.append(Mark(f"line point {css}", alone))
    if any(value is not None for value in before):
        shapes.append(Mark("line before", _path(before, plane)))
    if ahead is not None:
        shapes += _cone(answer, plane)
    shapes += [Mark("line limit", f"M0 {plane.y(one)}H{_width(answer)}") for one in limits]
    if form == "running" and len(limits) < len(answer.limits):
        shapes.append(Mark("line limit beyond", f"M0 -25H{_width(answer)}"))
    return Chart(
        width=_width(answer),
        shapes=shapes,
        lines=list(_lines(answer, form, before, ahead, limits)),
        across=_across(answer),
        up=marks,
        legend=_legend(answer, colours, url) if form != "running" else [],
        data=_data(answer, base, shown, colours, before),
        empty=not tops and not levels,
    )


def _is_near(limit: Decimal, figures: Iterable[Decimal | int]) -> bool:
    """Whether there is anything left to see of the figures beside a limit."""
    highest = max(figures, default=0)
    return highest <= 0 or limit <= multiply(highest, _FAR)


def _lines(
    answer: Finding,
    form: Form,
    before: Sequence[Decimal | int | None],
    ahead: Forecast | None,
    limits: Collection[Decimal],
) -> Iterable[LineKey]:
    measure = answer.question.measure
    if form == "running":
        yield LineKey("c1", f"{measure.label} so far")
    if ahead is not None:
        yield LineKey("ahead", "what it may come to, with its band")
    if any(value is not None for value in before):
        yield LineKey("before", "the time before")
    for one in answer.limits:
        near = one.amount in limits
        css, beyond = "limit" if near or form != "running" else "limit beyond", "" if near else ", beyond the chart"
        yield LineKey(css, f"{one.words}: {shown_as(one.amount, measure)}{beyond}")


def _width(answer: Finding) -> int:
    return max(len(answer.buckets), 1) * WIDE


# -- figures


def _figures(
    answer: Finding, shown: Sequence[Series], form: Form
) -> tuple[list[list[Decimal]], list[list[Decimal | int | None]]]:
    """What is stacked per bucket, and what is drawn as lines."""
    if form == "running":
        return [], [_running(answer.by_bucket, answer)]
    if form == "lines":
        return [], [list(one.points) for one in shown]
    stacks = [[Decimal(one.points[at] or 0) for one in shown] for at in range(len(answer.buckets))]
    return ([_parts(column) for column in stacks] if form == "share" else stacks), []


def _parts(column: Sequence[Decimal]) -> list[Decimal]:
    whole = total(value for value in column if value > 0)
    return [ratio(value, whole) if value > 0 else ZERO for value in column]


def _running(rows: Sequence[Row], answer: Finding) -> list[Decimal | int | None]:
    """The sum up to the end of each bucket; nothing where time has not come yet."""
    sums = accumulate((Decimal(answer.question.measure.of(row) or 0) for row in rows), EXACT.add)
    now = answer.view.now
    return [None if row.bucket.start > now else value for row, value in zip(rows, sums, strict=True)]


def _before(answer: Finding, form: Form) -> list[Decimal | int | None]:
    """All of the time before, per bucket of now."""
    if not answer.question.compare or form == "share" or not answer.before:
        return []
    rows = answer.before[: len(answer.buckets)]
    return _running(rows, answer) if form == "running" else [answer.question.measure.of(row) for row in rows]


def _above(column: Iterable[Decimal]) -> Decimal:
    return total(value for value in column if value > 0)


def _below(column: Iterable[Decimal]) -> Decimal:
    return total(value for value in column if value < 0)


# -- shapes


def _bars(
    stacks: Sequence[Sequence[Decimal]], shown: Sequence[Series], colours: dict[str, str], plane: _Plane
) -> Iterable[Mark]:
    """All bars of a series as one path; credits hang below zero."""
    above, below = [ZERO] * len(stacks), [ZERO] * len(stacks)
    for position, one in enumerate(shown):
        path: list[str] = []
        for at, column in enumerate(stacks):
            value, side = column[position], above if column[position] >= 0 else below
            foot, side[at] = side[at], add(side[at], value)
            top, bottom = sorted((plane.y(side[at]), plane.y(foot)))
            if value:
                path.append(f"M{at * WIDE + 1} {top}h{WIDE - 2}v{max(bottom - top, 1)}h{2 - WIDE}z")
        if path:
            yield Mark(f"bar {colours[one.key]}", "".join(path))


def _path(values: Sequence[Decimal | int | None], plane: _Plane) -> str:
    """A line through the middles of buckets; it is broken where there is no figure."""
    path: list[str] = []
    drawing = False
    for at, value in enumerate(values):
        if value is not None:
            path.append(f"{'L' if drawing else 'M'}{at * WIDE + WIDE // 2} {plane.y(value)}")
        drawing = value is not None
    return "".join(path)


def _points(values: Sequence[Decimal | int | None], plane: _Plane) -> str:
    """Figures with none beside them: no line goes through them, so each is a point."""
    around = [None, *values, None]
    return "".join(
        f"M{at * WIDE + WIDE // 2} {plane.y(value)}h0"
        for at, (before, value, after) in enumerate(zip(around, values, around[2:], strict=False))
        if value is not None and before is None and after is None
    )


def _cone(answer: Finding, plane: _Plane) -> Iterable[Mark]:
    ahead = answer.forecast
    if ahead is None:
        return
    passed = [at for at, one in enumerate(answer.buckets) if one.start <= answer.view.now]
    x, y, end = passed[-1] * WIDE + WIDE // 2, plane.y(ahead.so_far), _width(answer)
    yield Mark("band", f"M{x} {y}L{end} {plane.y(ahead.high)}V{plane.y(ahead.low)}z")
    yield Mark("line ahead", f"M{x} {y}L{end} {plane.y(ahead.expected)}")


# -- axes


def _scale(values: Sequence[Decimal | int], measure: Measure, form: Form) -> tuple[_Plane, list[Tick]]:
    """From zero, or below where there are credits, to a round figure above the greatest."""
    if form == "share":
        plane, step = _Plane(ZERO, Decimal(1)), Decimal("0.25")
    else:
        low, high = min([ZERO, *map(Decimal, values)]), max([ZERO, *map(Decimal, values)])
        step = _round_step(subtract(high, low)) if high > low else Decimal(1)
        if measure.unit == "count":
            step = max(step, Decimal(1))
        plane = _Plane(multiply(step, _floor(ratio(low, step))), multiply(step, max(_ceiling(ratio(high, step)), 1)))
    marks = [plane.low]
    while marks[-1] < plane.high:
        marks.append(add(marks[-1], step))
    decimals = 0 if step == round_to(step, 0) else places([step])
    if form == "share" or decimals or measure.unit in {"usd", "share", "ms"}:
        texts = [_mark(mark, measure, form, decimals) for mark in marks]
    else:
        texts = compact_alike(marks)
    return plane, [Tick(plane.percent(mark), text) for mark, text in zip(marks, texts, strict=True)]


def _mark(value: Decimal, measure: Measure, form: Form, decimals: int) -> str:
    if form == "share" or measure.unit == "share":
        return share(value)
    if measure.unit == "usd":
        return money(value, decimals)
    if measure.unit == "ms":
        return lasting(value)
    return exact(value)


def _round_step(length: Decimal) -> Decimal:
    """1, 2 or 5 of some power of ten, so that four steps or so make up `length`."""
    rough = ratio(length, 4)
    power = Decimal(1).scaleb(rough.adjusted(), context=EXACT)
    return next(step for factor in (1, 2, 5, 10) if (step := multiply(power, factor)) >= rough)


def _floor(value: Decimal) -> int:
    whole = int(value)
    return whole - 1 if value < whole else whole


def _ceiling(value: Decimal) -> int:
    return -_floor(value.copy_negate())


def _across(answer: Finding) -> list[Tick]:
    """Marks at round instants of the calendar, as few as can be read."""
    local = [answer.view.local(one.start) for one in answer.buckets]
    chosen, form = find_marks(local, answer.unit, most=_MOST_TICKS)
    return [_across_tick(at, len(local), local[at], form, fine=place % 2 == 1) for place, at in enumerate(chosen)]


def _across_tick(at: int, of: int, moment: datetime, form: str, *, fine: bool) -> Tick:
    percent = ratio(multiply(Decimal(2 * at + 1), 50), of)
    anchor = "start" if percent < _EDGE else "end" if percent > 100 - int(_EDGE) else "middle"
    midnight = form == "%H:%M" and not moment.hour
    return Tick(_percent(2 * at + 1, 2 * of), moment.strftime("%-d %b" if midnight else form), anchor, fine)


def _percent(part: int, whole: int) -> str:
    return f"{part * 10000 // whole / 100:g}%"


def over_time(answer: Finding) -> dict[datetime, list[str]]:
    """The chart's figures as the table writes them: start of a bucket -> each series, and all together."""
    measure = answer.question.measure
    figures = [[*(one.points[at] for one in answer.series), measure.of(row)] for at, row in enumerate(answer.by_bucket)]
    decimals = decimals_of(measure, (value for values in figures for value in values))
    return {
        bucket.start: [shown_as(value, measure, decimals) for value in values]
        for bucket, values in zip(answer.buckets, figures, strict=True)
    }


def column_places(answer: Finding) -> dict[str, int | None]:
    """Decimals of each column of the table."""
    return {one.name: decimals_of(one, [one.of(row) for row in answer.rows]) for one in answer.columns}


# -- what the colours mean, and what a pointer is told


def _label(one: Series) -> str:
    return "all others" if one.key == REST else name(one.value)


def _legend(answer: Finding, colours: dict[str, str], url: Callable[[Question], str]) -> list[LegendKey]:
    measure, question = answer.question.measure, answer.question
    decimals = decimals_of(measure, (one.whole for one in answer.series))
    return [
        LegendKey(
            colours[one.key],
            _label(one),
            shown_as(one.whole, measure, decimals) if measure.adds else "",
            url(question.toggled(one.key)),
            one.hidden,
        )
        for one in answer.series
    ]


def _data(
    answer: Finding,
    base: str,
    shown: Sequence[Series],
    colours: dict[str, str],
    before: Sequence[Decimal | int | None],
) -> dict[str, Any]:
    """Labels, texts and addresses per bucket."""
    measure, view, question = answer.question.measure, answer.view, answer.question
    all_figures = [measure.of(row) for row in answer.by_bucket]
    decimals = decimals_of(measure, all_figures)
    deeper = "/entries" if answer.unit == "hour" else "/explore"
    asked = list(question.items()) if deeper == "/explore" else []
    zoomed = replace(view, period_text=None, since="SINCE", until="UNTIL", granularity=None)
    running = question.drawn == "running"
    texts = [
        {
            "name": _label(one),
            "css": colours[one.key],
            "texts": [shown_as(value, measure, decimals) for value in one.points],
        }
        for one in shown
        if not running
    ]
    return {
        "labels": [one.label.replace("T", " ") for one in answer.buckets],
        "links": [f"{base}{deeper}{view.during(one).url(*asked)}" for one in answer.buckets],
        "starts": [view.written(one.start) for one in answer.buckets]
        + [view.written(one.end) for one in answer.buckets[-1:]],
        "zoom": f"{base}/explore{zoomed.url(*question.items())}",
        "series": texts,
        "total": [
            shown_as(value, measure, decimals)
            for value in (_running(answer.by_bucket, answer) if running else all_figures)
        ],
        "before": [shown_as(value, measure, decimals) for value in before],
        "words": "so far" if running else "together" if measure.adds else question.over_all,
    }
