"""Exact money: ``Decimal`` dollars in records, integer picodollars (10^-12 USD) in stores. Never a binary fraction."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

from tokenmeter.errors import ConfigurationError

__all__ = ["EXACT", "ONE", "PICODOLLAR", "ZERO", "parse_decimal", "quantize", "to_dollars", "to_picodollars"]

PICODOLLAR = Decimal("1E-12")
ZERO = Decimal(0)
ONE = Decimal(1)

#: Wide enough that a product of a quantity, a unit price and a few multipliers is never rounded before `quantize`.
EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)


def quantize(amount: Decimal) -> Decimal:
    """`amount` rounded half-even to whole picodollars: the one rounding a charge line ever sees."""
    return amount.quantize(PICODOLLAR, rounding=ROUND_HALF_EVEN, context=EXACT)


def to_picodollars(amount: Decimal) -> int:
    """Dollars as integer picodollars.

    Raises:
        ValueError: `amount` is finer than a picodollar; `quantize` it first.
    """
    scaled = EXACT.scaleb(amount, 12)
    whole = int(scaled)
    if whole != scaled:
        raise ValueError(f"{amount} USD is finer than one picodollar; quantize it first.")
    return whole


def to_dollars(picodollars: int) -> Decimal:
    """Integer picodollars as dollars with exactly twelve decimals."""
    return Decimal(picodollars).scaleb(-12, context=EXACT)


def parse_decimal(value: object, *, name: str) -> Decimal:
    """A user's number as an exact Decimal.

    Accepts int, Decimal and decimal text. A Python binary fraction is taken as its shortest text, which is what the
    user typed (``0.1`` becomes exactly ``Decimal("0.1")``).

    Raises:
        ConfigurationError: not a finite number.
    """
    if isinstance(value, bool) or value is None:
        raise ConfigurationError(f"{name} must be a number such as '1.05', not {value!r}.")
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except InvalidOperation:
        raise ConfigurationError(f"{name} must be a number such as '1.05', not {value!r}.") from None
    if not number.is_finite():
        raise ConfigurationError(f"{name} must be a finite number, not {value!r}.")
    return number
