"""How records show themselves to people: one short line as ``repr``, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from html import escape

from tokenmeter.money import EXACT, quantize

_CELL = "padding: .15em .8em; vertical-align: top"


def number_text(number: Decimal) -> str:
    """A number in full, without an exponent and without zeros at its end."""
    if not number.is_finite():
        return "unlimited"
    text = f"{number:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def dollars(amount: Decimal | None) -> str:
    """US dollars with every digit that counts; ``unpriced`` for what has no price."""
    if amount is None:
        return "unpriced"
    exact = quantize(amount).normalize(EXACT)
    return f"-${number_text(exact.copy_abs())}" if exact < 0 else f"${number_text(exact)}"


def unit_word(amount: Decimal, unit: str) -> str:
    """What a budget's unit is called after an amount of it: ``1 request``, ``2 requests``, ``2 in flight``."""
    return (unit.removesuffix("s") if amount in {1, -1} else unit).replace("_", " ")


def counted(number: int, one: str, many: str | None = None) -> str:
    """How many of what, in words that agree with the number: ``1 call``, ``2,048 calls``, ``1 row is gone``.

    Args:
        number: How many.
        one: The words after 1.
        many: The words after any other number; default ``one`` with an s.
    """
    return f"{number:,} {one if abs(number) == 1 else many or f'{one}s'}"


def facts_html(
    title: str, facts: Mapping[str, object], *, columns: Sequence[str] = (), rows: Iterable[Sequence[object]] = ()
) -> str:
    """A title, facts by name (None and empty ones left out), and rows under `columns`."""
    parts = [f"<b>{escape(title)}</b>"]
    known = {name: str(value) for name, value in facts.items() if value is not None and value != ""}
    if known:
        lines = "".join(
            f'<tr><th style="{_CELL}; text-align: left">{escape(name)}</th>'
            f'<td style="{_CELL}; text-align: left">{escape(value)}</td></tr>'
            for name, value in known.items()
        )
        parts.append(f"<table><tbody>{lines}</tbody></table>")
    found = list(rows)
    if found:
        head = "".join(f'<th style="{_CELL}; text-align: left">{escape(name)}</th>' for name in columns)
        body = "".join(
            "<tr>"
            + "".join(f'<td style="{_CELL}; text-align: left">{escape(str(cell))}</td>' for cell in row)
            + "</tr>"
            for row in found
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    return f"<div>{''.join(parts)}</div>"
