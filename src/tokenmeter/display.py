"""How figures, texts and records show themselves to people: rounded where that loses nothing they look for.

Exact figures are in the exports.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from html import escape

from tokenmeter.money import EXACT, ONE, quantize, round_to

_CENTS, _FEW_PLACES, _MOST_PLACES = 2, 4, 6
_THOUSANDS = 1000
#: Invisible, but part of how Persian, Indic scripts and emoji are spelled.
_JOINERS = "\u200c\u200d"
_CELL = "padding: .15em .8em; vertical-align: top"


def number_text(number: Decimal) -> str:
    """A number in full, without an exponent and without zeros at its end."""
    if not number.is_finite():
        return "unlimited"
    text = f"{number:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def dollars(amount: Decimal | None, *, partly: bool = False) -> str:
    """US dollars with every digit that counts; ``unpriced`` for what has no price.

    Args:
        amount: How many; None where nothing is known.
        partly: Whether more was used that has no price: ``$0.50 + unpriced``.
    """
    if amount is None:
        return "unpriced"
    exact = quantize(amount).normalize(EXACT)
    shown = f"-${number_text(exact.copy_abs())}" if exact < 0 else f"${number_text(exact)}"
    return f"{shown} + unpriced" if partly else shown


def unit_word(amount: Decimal, unit: str) -> str:
    """What a budget's unit is called after an amount of it: ``1 request``, ``2 requests``, ``2 in flight``."""
    return (unit.removesuffix("s") if amount in {1, -1} else unit).replace("_", " ")


def some_of(names: Sequence[str], glue: str) -> str:
    """Names with `glue` between two, of many the first ten and how many more there are: ``a, b, c and 1,990 more``."""
    return glue.join(names[:10]) + (f" and {len(names) - 10:,} more" if names[10:] else "")


def counted(number: int, one: str, many: str | None = None) -> str:
    """How many of what, in words that agree with the number: ``1 call``, ``2,048 calls``, ``1 row is gone``.

    Args:
        number: How many.
        one: The words after 1.
        many: The words after any other number; default ``one`` with an s.
    """
    return f"{number:,} {one if abs(number) == 1 else many or f'{one}s'}"


def count(quantity: Decimal | int) -> str:
    """A quantity with thousands separators: ``1,234,567``, ``12.5``."""
    return f"{quantity:,}" if isinstance(quantity, int) else f"{round_to(quantity, 1):,f}"


def compact(quantity: Decimal | int) -> str:
    """A quantity in at most six characters: ``9,950``, ``12.3k``, ``1.5M``."""
    number = Decimal(quantity)
    if number.copy_abs() < 10_000:  # noqa: PLR2004 - five characters are as short as it gets
        return count(quantity)
    size, letter = _size(number)
    scaled = EXACT.divide(number, size)
    return f"{round_to(scaled, 1 if scaled.copy_abs() < 100 else 0):f}{letter}"  # noqa: PLR2004 - digits


def compact_alike(quantities: Sequence[Decimal]) -> list[str]:
    """Whole quantities as marks of one axis, in one unit and to one precision: ``0``, ``0.5M``, ``1.0M``."""
    greatest = max(one.copy_abs() for one in quantities)
    if greatest < 10_000:  # noqa: PLR2004 - as `compact`
        return [count(int(one)) for one in quantities]
    size, letter = _size(greatest)
    scaled = [EXACT.divide(one, size) for one in quantities]
    decimals = max(-int(one.normalize(EXACT).as_tuple().exponent) for one in scaled if one)
    return [f"{round_to(one, max(decimals, 0)):f}{letter}" if one else "0" for one in scaled]


def _size(number: Decimal) -> tuple[Decimal, str]:
    """By what a quantity of four digits or more is divided, and the letter that says so."""
    sizes = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
    return next((Decimal(size), letter) for size, letter in sizes if number.copy_abs() >= size)


def share(part: Decimal | None) -> str:
    """A part of a whole in percent, or more than all of it; never rounded up to all or down to nothing."""
    if part is None:
        return "-"
    percent = EXACT.multiply(part.copy_abs(), Decimal(100))
    sign = "-" if part < 0 else ""
    if 0 < percent < 1:
        return f"{sign}<1%"
    return f"{sign}>99%" if 99 < percent < 100 else f"{sign}{round_to(percent, 0):,f}%"  # noqa: PLR2004 - percent


def money_places(amounts: Iterable[Decimal]) -> int:
    """Decimals that show what amounts have below a cent: four, or six where four show nothing of it; two without any.

    The one rule by which tables, pages and cards round dollars; of a column, so that its figures line up. The smallest
    amount shows with two figures, none with zeros that say nothing. From $1,000 on cents do, unless a smaller amount
    beside it would not show at all.
    """
    known = list(amounts)
    fine = [one.normalize(EXACT) for one in known if not _in_cents(one)]
    if any(one.copy_abs() >= _THOUSANDS for one in known):
        fine = [one for one in fine if not round_to(one, _CENTS)]
    if not fine:
        return _CENTS
    least = _FEW_PLACES if any(not _in_cents(round_to(one, _FEW_PLACES)) for one in fine) else _MOST_PLACES
    smallest = max(1 - one.adjusted() for one in fine)
    written = max(-int(one.as_tuple().exponent) for one in fine)
    return min(max(least, smallest), written, _MOST_PLACES)


def _in_cents(value: Decimal) -> bool:
    return value == round_to(value, _CENTS)


def amount(value: Decimal, places: int) -> str:
    """Dollars rounded to `places` decimals: ``$1,234.50``; what would round to nothing shows as ``<$0.000001``.

    Nothing at all is ``$0.00`` wherever it stands: zeros behind it would look like an amount that was rounded.
    """
    shown = round_to(value, places if value else min(places, _CENTS))
    if value and not shown:
        least = f"<${Decimal(f'1E-{places}'):f}"
        return least if value > 0 else f"-{least}"
    return f"-${shown.copy_negate():,f}" if shown < 0 else f"${shown:,f}"


def unit_amount(value: Decimal, unit: str, *, mean: bool = False) -> str:
    """An amount in a budget's unit, in full where rounding would leave nothing of it; an infinite one is no cap.

    A `mean` is rounded even so: nobody spent it, and its digits do not end.
    """
    if not value.is_finite():
        return "no cap"
    if unit == "usd":
        places = money_places([value])
        return dollars(value) if value and not (mean or round_to(value, places)) else amount(value, places)
    whole = round_to(value, 0)
    if mean and value > 0 and not whole:
        return f"<1 {unit_word(ONE, unit)}"
    return f"{whole:,f} {unit_word(whole, unit)}"


def visible(text: str) -> str:
    """`text` without characters that would move the cursor, colour the terminal or reverse the writing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in _JOINERS else "?" for letter in text)


def text_width(text: str) -> int:
    """Terminal cells of `text`: East Asian wide characters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter) or letter in _JOINERS:
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


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
