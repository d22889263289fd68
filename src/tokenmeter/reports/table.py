"""Reports as text for terminals and as HTML for notebooks, in columns that fit a given width.

Rounded for people; exact figures are in the exports.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from html import escape
from itertools import zip_longest

from tokenmeter.dimensions import TOKEN_METERS, in_order, unit_of
from tokenmeter.display import (
    amount,
    compact,
    count,
    counted,
    money_places,
    share,
    text_width,
    visible,
)
from tokenmeter.money import EXACT, PICODOLLAR
from tokenmeter.periods import Period, zone
from tokenmeter.reports.query import BEGINNING, END
from tokenmeter.reports.rows import Row, Sheet
from tokenmeter.stores.engine import asked
from tokenmeter.usage import Quantity
from tokenmeter.values import dataclass

_GAP = "  "
_ELLIPSIS = "…"
#: Lines that one text is folded into at most.
_MOST_LINES = 6


@dataclass(frozen=True, slots=True)
class Column:
    """One column; in a report its last cell belongs to the totals line.

    Attributes:
        head: Heading.
        cells: One per line.
        right: Whether it is aligned to the right.
        shrinks: Whether long cells may be folded into several lines.
        narrow: The same cells in fewer characters, where there are such.
        narrow_head: A shorter heading to go with them.
        drop: Left out, lowest first, when there is no room; None = never.
        glued: Whether it follows the column before it without a gap.
        most: Terminal cells it may take; longer texts are folded. None = as many as they need.
    """

    head: str
    cells: tuple[str, ...]
    right: bool = False
    shrinks: bool = False
    narrow: tuple[str, ...] = ()
    narrow_head: str = ""
    drop: int | None = None
    glued: bool = False
    most: int | None = None

    @property
    def width(self) -> int:
        """Terminal cells of its widest line."""
        widest = max(text_width(cell) for cell in (self.head, *self.cells))
        return widest if self.most is None else min(widest, self.most)


# -- fitting


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """`columns` made to fit `width`, giving up the least important things first; too narrow a width overflows.

    What identifies a row is folded, never left out; figures are left out before it is folded much.
    """
    result = _shrink(columns, width, floor=24)
    if _total(result) > width:
        result = _drop([_narrow(column) for column in columns], width)
    return _shrink(result, width, floor=8)


def _shrink(columns: Sequence[Column], width: int, *, floor: int) -> list[Column]:
    """Fold the widest text columns, evenly, down to `floor` cells at least."""
    sizes = {index: column.width for index, column in enumerate(columns) if column.shrinks}
    excess = _total(columns) - width
    while excess > 0 and sizes:
        widest = max(sizes, key=lambda index: sizes[index])
        if sizes[widest] <= floor:
            break
        sizes[widest] -= 1
        excess -= 1
    return [
        replace(column, most=sizes[index]) if sizes.get(index, column.width) < column.width else column
        for index, column in enumerate(columns)
    ]


def _narrow(column: Column) -> Column:
    return replace(column, head=column.narrow_head or column.head, cells=column.narrow or column.cells)


def _drop(columns: Sequence[Column], width: int) -> list[Column]:
    """Leave out what matters least, until texts of twelve cells have room beside the rest."""
    result = list(columns)
    while _total(_shrink(result, width, floor=12)) > width:
        droppable = [column for column in result if column.drop is not None]
        if not droppable:
            break
        result.remove(min(droppable, key=lambda column: column.drop or 0))
    return _shrink(result, width, floor=12)


def _total(columns: Sequence[Column]) -> int:
    gaps = sum(len(_GAP) for column in columns[1:] if not column.glued)
    return sum(column.width for column in columns) + gaps


def render(columns: Sequence[Column], *, totals: bool = True) -> list[str]:
    """Heading, rule and lines; with `totals` the last line stands under a rule of its own."""
    widths = [column.width for column in columns]  # of all its cells: once, and not for each line
    heads = _lines([column.head for column in columns], columns, widths)
    rows = [_lines(cells, columns, widths) for cells in zip(*(column.cells for column in columns), strict=True)]
    rule = "-" * _total(columns)
    if totals and len(rows) > 1:
        rows.insert(-1, [rule])
    return [*heads, rule, *(line for row in rows for line in row)]


def _lines(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    """A row: one line, or as many as its longest text takes."""
    folded = [
        [cell] if column.most is None else _folded(cell, column.most)
        for cell, column in zip(cells, columns, strict=True)
    ]
    return [_line(parts, columns, widths) for parts in zip_longest(*folded, fillvalue="")]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    parts: list[str] = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        padding = " " * (width - text_width(cell))
        parts.append("" if not parts or column.glued else _GAP)
        parts.append(padding + cell if column.right else cell + padding)
    return "".join(parts).rstrip()


def _folded(text: str, size: int) -> list[str]:
    """`text` in lines of at most `size` cells; of a very long one the beginning."""
    lines = [""]
    for letter in text:
        if text_width(lines[-1] + letter) > size and lines[-1]:
            if len(lines) == _MOST_LINES:
                lines[-1] = lines[-1][:-1] + _ELLIPSIS
                break
            lines.append("")
        lines[-1] += letter
    return lines


MAX_ROWS = 100
_NOT_SET = "(none)"
_MONEY_METERS = frozenset({"provider_cost", "adjustment"})


@dataclass(frozen=True, slots=True)
class _ShownRows:
    """What is shown of a report: its first rows, the sum of the others, and the totals."""

    report: Sheet
    rows: Sequence[Row]
    others: int
    totals: Row

    @property
    def shown(self) -> list[Row]:
        return [*self.rows, self.totals]


def text(report: Sheet, *, width: int | None = None, max_rows: int | None = MAX_ROWS) -> str:
    """The report as an aligned table of at most `width` columns (None = the terminal's)."""
    if not report.rows:
        return f"{_title(report)}\n{_nothing(report)}"
    width = width or shutil.get_terminal_size(fallback=(120, 24)).columns
    view = _view(report, max_rows)
    columns = _columns(view)
    fitted = fit(columns, width)
    lines = [_title(report), "", *render(fitted)]
    notes = [
        line
        for note in (*_lacking(columns, fitted, width), *_notes(view))
        for line in textwrap.wrap(note, width, subsequent_indent="  ")
    ]
    return "\n".join([*lines, "", *notes] if notes else lines)


def summary(report: Sheet) -> str:
    """The report in a few words: what was asked, how many rows, their totals."""
    totals = report.totals
    cost = amount(totals.billed_cost, money_places([totals.billed_cost])) if totals.cost_known else "unpriced"
    by = f"by {', '.join(report.by)}, " if report.by else ""
    rows = counted(len(report.rows), "row")
    return f"{by}{_stretch(report.period)} ({report.tz}): {rows}, {counted(totals.requests, 'request')}, {cost} billed"


def html(report: Sheet) -> str:
    """The report as an HTML table; every name in it is escaped."""
    if not report.rows:
        return f"<p><b>{escape(_title(report))}</b><br>{escape(_nothing(report))}</p>"
    view = _view(report, MAX_ROWS)
    columns = _columns(view)
    head = "".join(_cell("th", column.head, column) for column in columns)
    body = "".join(
        f"<tr>{''.join(_cell('td', column.cells[index], column) for column in columns)}</tr>"
        for index in range(len(view.rows))
    )
    foot = "".join(_cell("th", column.cells[-1], column) for column in columns)
    notes = "".join(f"<div>{escape(note)}</div>" for note in _notes(view))
    return (
        f"<div><b>{escape(_title(report))}</b><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"<tfoot><tr>{foot}</tr></tfoot></table>{notes}</div>"
    )


def _cell(kind: str, content: str, column: Column) -> str:
    return f'<{kind} style="text-align:{"right" if column.right else "left"}">{escape(content)}</{kind}>'


def _view(report: Sheet, max_rows: int | None) -> _ShownRows:
    rows = list(report.rows) if report.by or report.granularity else []  # else they are the totals
    if max_rows is None or len(rows) <= max_rows:
        return _ShownRows(report, rows, 0, report.totals)
    # The line of the others takes a row's place.
    hidden = rows[max(1, max_rows) - 1 :]
    return _ShownRows(report, [*rows[: -len(hidden)], Row.total(hidden, report.period)], len(hidden), report.totals)


# -- columns


def _columns(view: _ShownRows) -> list[Column]:
    return [*_names(view), *_counts(view), *_quantities(view), *_times(view), *_costs(view)]


def _names(view: _ShownRows) -> list[Column]:
    report = view.report
    columns: list[list[str]] = []
    heads: list[str] = []
    if report.granularity:
        heads.append(report.granularity)
        columns.append([row.bucket.label for row in view.rows])
    for dimension in report.by:
        heads.append(dimension)
        columns.append([visible(row.group.get(dimension) or _NOT_SET) for row in view.rows])
    if not heads:
        heads, columns = [""], [[]]
    if view.others:
        for cells in columns:
            cells[-1] = ""
        columns[0][-1] = f"({view.others:,} others)"
    for position, cells in enumerate(columns):
        cells.append("" if position else "total")
    return [
        Column(head, tuple(cells), shrinks=head != report.granularity)  # a time that is cut says nothing
        for head, cells in zip(heads, columns, strict=True)
    ]


def _counts(view: _ShownRows) -> list[Column]:
    requests = replace(_numbers("requests", view, lambda row: row.requests), drop=8)
    if not view.totals.errors:
        return [requests]
    return [requests, replace(_numbers("errors", view, lambda row: row.errors), drop=3)]


def _quantities(view: _ShownRows) -> list[Column]:
    if "sku_meter" in view.report.by:
        return _single_quantity(view)
    columns = [
        replace(_numbers("input", view, lambda row: row.input_tokens), drop=6),
        Column("cached", tuple(share(row.cached_share) for row in view.shown), right=True, drop=4),
        replace(_numbers("output", view, lambda row: row.output_tokens), drop=7),
    ]
    for meter, _ in in_order(view.totals.usage.quantities):
        if meter not in TOKEN_METERS and meter not in _MONEY_METERS:
            head = meter.replace("_", " ")
            columns.append(replace(_numbers(head, view, lambda row, m=meter: row.usage[m]), drop=2))  # type: ignore[misc]
    return columns


def _single_quantity(view: _ShownRows) -> list[Column]:
    """One meter per row: its quantity and unit instead of token columns."""
    meters = [row.group["sku_meter"] if row.group else None for row in view.rows]
    cells = ["" if meter is None else count(row.usage[meter]) for meter, row in zip(meters, view.rows, strict=True)]
    units = ["" if meter is None else unit_of(meter) for meter in meters]
    return [Column("quantity", (*cells, ""), right=True), Column("unit", (*units, ""), drop=2)]


def _numbers(head: str, view: _ShownRows, pick: Callable[[Row], Quantity]) -> Column:
    values = [pick(row) for row in view.shown]
    return Column(head, tuple(map(count, values)), right=True, narrow=tuple(map(compact, values)))


def _times(view: _ShownRows) -> list[Column]:
    if not view.report.latency:
        return []
    shown = (("p50", "latency_p50_us"), ("p95", "latency_p95_us"), ("p99", "latency_p99_us"))
    columns = [_seconds(head, view, name) for head, name in shown]
    if any(row.first_token_p50_us is not None for row in view.shown):
        columns += [_seconds(f"first token p{one}", view, f"first_token_p{one}_us") for one in (50, 95)]
    rates = tuple("" if (rate := row.output_tokens_per_second) is None else count(int(rate)) for row in view.shown)
    return [*columns, Column("tokens/s", rates, right=True, drop=3)] if any(rates) else columns


def _seconds(head: str, view: _ShownRows, name: str) -> Column:
    times: list[int | None] = [getattr(row, name) for row in view.shown]
    return Column(head, tuple("" if time is None else _rounded(time) for time in times), right=True, drop=3)


def _rounded(microseconds: int) -> str:
    hundredths = (microseconds + 5_000) // 10_000
    return f"{hundredths // 100:,}.{hundredths % 100:02d} s"


def _costs(view: _ShownRows) -> list[Column]:
    columns = [replace(_money("list cost", view, lambda row: row.list_cost), drop=5)]
    # Without discounts it would say the list cost again.
    if any(row.contracted_cost != row.list_cost for row in view.shown):
        columns.append(replace(_money("contracted", view, lambda row: row.contracted_cost), drop=1))
    columns.append(_money("billed cost", view, lambda row: row.billed_cost))
    marks = tuple(("*" if row.unpriced > 0 else "") + ("~" if row.estimated else "") for row in view.shown)
    return [*columns, Column("", marks, glued=True)] if any(marks) else columns


def _money(head: str, view: _ShownRows, pick: Callable[[Row], Decimal]) -> Column:
    places = money_places(pick(row) for row in view.shown)
    cells = tuple(amount(pick(row), places) if row.cost_known else "unpriced" for row in view.shown)
    return Column(head, cells, right=True, narrow_head=head.removesuffix(" cost"))


# -- words


def _lacking(columns: Sequence[Column], shown: Sequence[Column], width: int) -> list[str]:
    """What had no room."""
    heads = {column.head for column in shown}
    missing = [column.head for column in columns if not {column.head, column.narrow_head or column.head} & heads]
    return [f"No room in {width} columns for: {', '.join(missing)}."] if missing else []


def _condition(key: str) -> str:
    name, wanted = asked(key)
    return f"{name} =" if wanted else f"{name} !="


def _title(report: Sheet) -> str:
    by = f" by {', '.join(report.by)}" if report.by else ""
    per = f" per {report.granularity}" if report.granularity else ""
    where = "".join(f", {_condition(name)} {_values(accepted)}" for name, accepted in report.where.items())
    # A filter's value is anybody's text: it may hold what moves the cursor.
    return visible(f"Usage and cost{by}{per}: {_stretch(report.period)} ({report.tz}){where}")


def _stretch(period: Period) -> str:
    """The period's label; a relative one (``last-7d``) or none at all with its two ends."""
    if period.label[:1].isdigit() or period.start == BEGINNING or period.end == END:
        return period.label
    start, end = (
        moment.astimezone(zone(period.tz)).strftime("%Y-%m-%d %H:%M") for moment in (period.start, period.end)
    )
    return f"{period.label} {start} to {end}".strip()


def _values(accepted: Iterable[str | None]) -> str:
    return " or ".join(sorted(_NOT_SET if value is None else value for value in accepted))


def _nothing(report: Sheet) -> str:
    if report.where:
        return "No entries match. Widen the period or loosen the filters; values are matched exactly."
    if report.period.label == "all time":
        return "The ledger is empty. Make a call through a metered client and it is here at once."
    return "No entries in this period. A report without a period covers all time; check the time zone, too."


def _notes(view: _ShownRows) -> list[str]:
    totals = view.totals
    notes = [note] if (note := _multiplier(view.report)) else []
    if totals.unpriced:
        notes.append(
            f"* {_of(totals.unpriced, totals.requests)} recorded without a known price for a part of the usage: unless "
            "repriced since, that part's cost is missing here, it is not zero."
        )
    if totals.estimated:
        notes.append(f"~ {_of(totals.estimated, totals.requests)} recorded with estimated usage or cost.")
    return notes


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {counted(whole, 'request')} {'was' if part == 1 else 'were'}"


def _multiplier(report: Sheet) -> str | None:
    """How billed cost comes about, from the rows' own figures."""
    totals = report.totals
    if totals.billed_cost == totals.contracted_cost or not totals.contracted_cost:
        return None
    base = "list cost" if totals.contracted_cost == totals.list_cost else "contracted cost"
    factor = EXACT.quantize(EXACT.divide(totals.billed_cost, totals.contracted_cost), Decimal("1E-5"))
    if all(_is_product(row, factor) for row in report.rows):
        return f"Billed cost is {base} x {_decimal_text(factor)} (platform multiplier)."
    mean = _decimal_text(EXACT.quantize(factor, Decimal("1E-3")))
    return f"Billed cost is {mean} x {base} on average (platform multipliers, adjustments)."


def _is_product(row: Row, factor: Decimal) -> bool:
    """Whether every charge in the row has this factor; each may be rounded by a picodollar."""
    off = EXACT.abs(EXACT.subtract(row.billed_cost, EXACT.multiply(row.contracted_cost, factor)))
    return off <= EXACT.multiply(PICODOLLAR, (row.requests + 1) * 20)


def _decimal_text(number: Decimal) -> str:
    return f"{number.normalize(EXACT):f}"
