"""The overview's chart as data for the script: plain lists, drawn in the browser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from tokenmeter.dashboard.figures import name
from tokenmeter.dashboard.overview import Overview
from tokenmeter.dashboard.view import View
from tokenmeter.money import EXACT, ZERO, quantize
from tokenmeter.reports import Row

__all__ = ["chart_data"]


def _written(row: Row) -> int:
    return row.usage.cache_write_input_tokens


_CLASSES: tuple[tuple[str, Callable[[Row], int]], ...] = (
    ("fresh input", lambda row: row.input_tokens - row.usage.cache_read_input_tokens - _written(row)),
    ("cache write", _written),
    ("cache read", lambda row: row.usage.cache_read_input_tokens),
    ("output", lambda row: row.output_tokens),
)


def chart_data(seen: Overview, view: View, base: str) -> dict[str, Any]:
    """Labels, links and stacked series of spend (decimal text, US dollars) and tokens.

    Args:
        seen: What to draw.
        view: What the page shows; each bar leads to its entries.
        base: Path the dashboard is served under.
    """
    bars = seen.bars
    spend = [
        {
            "name": name(value),
            "values": [_text(bar.parts[value].billed_cost if value in bar.parts else ZERO) for bar in bars],
        }
        for value in seen.shown
    ]
    if seen.others:
        rest = [_rest(bar.total, bar.parts.values()) for bar in bars]
        spend.append({"name": "others", "values": [_text(cost) for cost in rest]})
    return {
        "labels": [bar.bucket.label.replace("T", " ") for bar in bars],
        "links": [f"{base}/entries{view.during(bar.bucket).url()}" for bar in bars],
        "spend": spend,
        "tokens": [{"name": title, "values": [count(bar.total) for bar in bars]} for title, count in _CLASSES],
    }


def _rest(total: Row, shown: Iterable[Row]) -> Decimal:
    cost = total.billed_cost
    for row in shown:
        cost = EXACT.subtract(cost, row.billed_cost)
    return cost


def _text(cost: Decimal) -> str:
    return f"{quantize(cost):f}"
