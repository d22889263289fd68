"""Draws the way of one call, `call.svg`: ``python docs/images/call.py``."""

from __future__ import annotations

from html import escape
from pathlib import Path

#: (side, what happens, where). ``out`` = before the request leaves, ``wire`` = the SDK's own, ``back`` = after it.
STEPS = (
    ("out", "The SDK is about to send: path, body and key are looked at", "capture/stainless.py, capture/opening.py"),
    ("out", "Which endpoint is it, and does it make a bill?", "providers/<room>/requests.py"),
    ("out", "Whose key, on whose account?", "meter/recording.py, attribution.py"),
    (
        "out",
        "Has a call like it been planned? Prices, account and caps of its plan hold until something changes",
        "meter/plans.py",
    ),
    (
        "out",
        "With caps: hold the upper bound, or raise BudgetExceededError",
        "budgets/, stores/journal.py, stores/live.py",
    ),
    ("wire", "HTTP request and response, by the SDK", "openai, anthropic"),
    ("back", "Whole body, or events as they are read", "capture/responses.py, capture/readings.py"),
    ("back", "What was used: disjoint token classes; unknown is unknown", "providers/<room>/dialect.py or usage.py"),
    ("back", "What it costs: list, contracted, billed; exact", "pricing/sheet.py"),
    (
        "back",
        "One record, appended to the tail; hold and counters settled",
        "stores/record.py, stores/journal.py, stores/tail.py",
    ),
    ("later", "Records are folded into the book: chain, columns, sums", "stores/fold.py, stores/sqlite/book.py"),
)
COLOURS = {"out": "#0f766e", "wire": "#64748b", "back": "#1d4ed8", "later": "#92400e"}
TITLES = {"out": "before it leaves", "wire": "on the wire", "back": "when it is answered", "later": "later, in passing"}
WIDTH, STEP, TOP, LEFT = 860, 58, 20, 150


def draw() -> str:
    """The picture as SVG."""
    height = TOP + STEP * len(STEPS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">',
        "<title>The way of one call</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    before = None
    for number, (side, what, where) in enumerate(STEPS):
        y, colour = TOP + number * STEP, COLOURS[side]
        if side != before:
            parts.append(f'<text x="12" y="{y + 20}" font-size="13" fill="{colour}">{escape(TITLES[side])}</text>')
        if number:
            parts.append(f'<line x1="{LEFT + 8}" y1="{y - 12}" x2="{LEFT + 8}" y2="{y - 2}" stroke="#94a3b8"/>')
        parts += [
            (
                f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - 12}" height="{STEP - 12}" rx="5" fill="#f8fafc"'
                f' stroke="{colour}"/>'
            ),
            f'<text x="{LEFT + 14}" y="{y + 19}" font-size="13.5" fill="#0f172a">{escape(what)}</text>',
            (
                f'<text x="{LEFT + 14}" y="{y + 37}" font-size="12" fill="{colour}" font-family="monospace">'
                f"{escape(where)}</text>"
            ),
        ]
        before = side
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
