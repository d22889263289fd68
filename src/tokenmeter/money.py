"""Exact money: ``Decimal`` dollars in records, integer picodollars (10^-12 USD) in stores. Never a binary fraction.

Python's Decimal operators round to the precision of whatever context the calling program has set, in its rounding, and
raise its traps. So nothing in tokenmeter uses them: sums and products are formed by the functions of this module, in a
context of its own. ``tests/typing/exact_decimals.py`` makes every operator elsewhere an error of the type check.

What people pay in other currencies is here too: minor units, rounding, and conversion at a rate that is written down.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import (
    ROUND_HALF_EVEN,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from typing import Any, NamedTuple, Protocol, Self, overload

from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.values import dataclass

PICODOLLAR = Decimal("1E-12")
ZERO = Decimal(0)
ONE = Decimal(1)
#: No line of one answer comes to so many US dollars: a cost beyond is a fault of whoever stated it or its quantity, and
#: some dozens of such would be more than the sums of a ledger can hold.
MOST_DOLLARS = 10**8

#: Wide enough that a product of a quantity, a unit price and a few multipliers is never rounded before `quantize`.
#: Every setting is stated, since what is left out would be taken from the program's default context.
EXACT = Context(
    prec=60,
    rounding=ROUND_HALF_EVEN,
    Emin=-999_999,
    Emax=999_999,
    capitals=1,
    clamp=0,
    flags=[],
    traps=[DivisionByZero, InvalidOperation, Overflow],
)
#: The same, but whatever would have to be rounded is an error.
_UNROUNDED = EXACT.copy()
_UNROUNDED.traps[Inexact] = True
#: What people give has as many digits before its point at most: together with twelve decimals and a factor it is exact.
_MOST_DIGITS = 40
#: A markup outside of these is a slip of the pen, not a price.
_LEAST_FACTOR, _MOST_FACTOR = Decimal("1E-6"), Decimal("1E6")
_RATIO = EXACT.copy()
_RATIO.prec = 28


@overload
def add(first: int, second: int, /) -> int: ...
@overload
def add(first: Decimal, second: Decimal | int, /) -> Decimal: ...
@overload
def add(first: Decimal | int, second: Decimal, /) -> Decimal: ...
@overload
def add(first: Decimal | int, second: Decimal | int, /) -> Decimal | int: ...
def add(first: Decimal | int, second: Decimal | int, /) -> Decimal | int:
    """``first + second``; of two integers an integer."""
    return first + second if isinstance(first, int) and isinstance(second, int) else EXACT.add(first, second)


def subtract(first: Decimal | int, second: Decimal | int, /) -> Decimal:
    """``first - second``."""
    return EXACT.subtract(first, second)


def multiply(first: Decimal | int, *others: Decimal | int) -> Decimal:
    """The product of all."""
    product = Decimal(first)
    for other in others:
        product = EXACT.multiply(product, other)
    return product


def divide(first: Decimal | int, second: Decimal | int, /) -> Decimal:
    """``first / second``, to 60 digits.

    Raises:
        ZeroDivisionError: `second` is zero.
    """
    return EXACT.divide(first, second)


def ratio(first: Decimal | int, second: Decimal | int, /) -> Decimal:
    """``first / second`` to 28 digits: a share or a mean, which nobody multiplies money by.

    Raises:
        ZeroDivisionError: `second` is zero.
    """
    return _RATIO.divide(first, second)


def total(amounts: Iterable[Decimal | int]) -> Decimal:
    """The sum; ``Decimal(0)`` of nothing."""
    result = ZERO
    for amount in amounts:
        result = EXACT.add(result, amount)
    return result


@overload
def negate(amount: int, /) -> int: ...
@overload
def negate(amount: Decimal, /) -> Decimal: ...
@overload
def negate(amount: None, /) -> None: ...
@overload
def negate(amount: Decimal | None, /) -> Decimal | None: ...
def negate(amount: Decimal | int | None, /) -> Decimal | int | None:
    """``-amount``, every digit kept, nothing without a sign; an integer of an integer, and unknown of unknown."""
    if amount is None:
        return None
    return -amount if isinstance(amount, int) else EXACT.minus(amount)


def magnitude(amount: Decimal, /) -> Decimal:
    """`amount` without its sign."""
    return amount.copy_abs()


#: The names of `Costs`, on every record that has them.
COSTS = ("list_cost", "contracted_cost", "billed_cost")


class Costed(Protocol):
    """Whatever has the three costs: an entry, a charge, a rating, a row of sums. None = unknown."""

    @property
    def list_cost(self) -> Decimal | None:
        """US dollars at public prices."""

    @property
    def contracted_cost(self) -> Decimal | None:
        """US dollars after negotiated discounts."""

    @property
    def billed_cost(self) -> Decimal | None:
        """US dollars after discounts and the platform multiplier."""


class Costs(NamedTuple):
    """The three costs of whatever has a price, US dollars, as one value; what has no price adds nothing."""

    list_cost: Decimal = ZERO
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO

    @classmethod
    def of(cls, record: Costed) -> Self:
        """Those of one record, as far as they are known."""
        return cls(record.list_cost or ZERO, record.contracted_cost or ZERO, record.billed_cost or ZERO)

    @classmethod
    def total(cls, records: Iterable[Costed]) -> Self:
        """Those of all `records` together."""
        result = cls()
        for record in records:
            result = result.plus(cls.of(record))
        return result

    def plus(self, other: Costs) -> Self:
        """Both together."""
        return type(self)(*map(EXACT.add, self, other))

    def minus(self, other: Costs) -> Self:
        """What is left of these without `other`."""
        return type(self)(*map(EXACT.subtract, self, other))


def round_to(amount: Decimal | int, places: int, *, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """`amount` with exactly `places` decimals, for showing and for currencies; what comes to nothing has no sign."""
    return EXACT.plus(Decimal(amount).quantize(ONE.scaleb(-places, context=EXACT), rounding=rounding, context=EXACT))


def quantize(amount: Decimal) -> Decimal:
    """`amount` rounded half-even to whole picodollars: the one rounding a charge line ever sees."""
    return EXACT.plus(amount.quantize(PICODOLLAR, rounding=ROUND_HALF_EVEN, context=EXACT))


def to_picodollars(amount: Decimal) -> int:
    """Dollars as integer picodollars.

    Raises:
        ValueError: `amount` is finer than a picodollar; `quantize` it first.
    """
    try:
        return int(_UNROUNDED.to_integral_exact(EXACT.scaleb(amount, 12)))
    except Inexact:
        raise ValueError(f"{amount} USD is finer than one picodollar; quantize it first.") from None


def to_dollars(picodollars: int) -> Decimal:
    """Integer picodollars as dollars with exactly twelve decimals."""
    return EXACT.scaleb(picodollars, -12)  # a fifth of the time that a Decimal of one's own takes


def parse_decimal(value: object, *, name: str) -> Decimal:
    """A user's number as an exact Decimal.

    Accepts int, Decimal and decimal text. A Python binary fraction is taken as its shortest text, which is what the
    user typed (``0.1`` becomes exactly ``Decimal("0.1")``).

    Raises:
        ConfigurationError: not a finite number.
    """
    if isinstance(value, bool) or value is None:
        raise ConfigurationError(f"{name} must be a number such as '1.05', not {shown(value)}.")
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except Exception as error:
        raise ConfigurationError(f"{name} must be a number such as '1.05', not {shown(value)}.") from error
    if not number.is_finite():
        raise ConfigurationError(f"{name} must be a finite number, not {shown(value)}.")
    if number.adjusted() >= _MOST_DIGITS:
        raise ConfigurationError(f"{name} has at most {_MOST_DIGITS} digits before its point, not {shown(value)}.")
    return number


def parse_multiplier(value: object) -> Decimal:
    """A platform's factor on what the providers take.

    Raises:
        ConfigurationError: not a number, or outside of what is no slip of the pen.
    """
    number = parse_decimal(value, name="multiplier")
    if number <= 0:
        raise ConfigurationError(f"multiplier must be greater than zero, not {shown(value)}; 1 means no markup.")
    if not _LEAST_FACTOR <= number <= _MOST_FACTOR:
        raise ConfigurationError(
            f"multiplier must lie between {_LEAST_FACTOR:f} and {_MOST_FACTOR:f}, not {shown(value)}."
        )
    return number


USD = "USD"
#: Codes of ISO 4217 in which somebody may be billed.
_CURRENCIES = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF "
    "CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF "
    "GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD "
    "LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP "
    "PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP "
    "TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG"
)
#: Decimals of the currencies that do not have two (ISO 4217, table A.1).
_DECIMALS = {
    **dict.fromkeys(
        ("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV"), 0
    ),
    **dict.fromkeys(("XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}


@dataclass(frozen=True, slots=True)
class ExchangeRate:
    """How dollars became the invoice's currency.

    Attributes:
        rate: Units of the currency per US dollar.
        source: Who quoted it, for example ``"ECB"``.
        date: The day it was quoted for, as text.
    """

    rate: Decimal = ONE
    source: str | None = None
    date: str | None = None

    @classmethod
    def parse(cls, value: object, *, currency: str) -> ExchangeRate:
        """A rate from a number, a mapping with ``rate``, ``source`` and ``date``, or None for dollars.

        Raises:
            ConfigurationError: no rate for a foreign currency, or not a positive number.
        """
        if isinstance(value, ExchangeRate):
            return value
        if value is None:
            if currency == USD:
                return cls()
            raise ConfigurationError(
                f"The ledger is in US dollars; for {currency} give exchange_rate=, the {currency} per dollar."
            )
        given: dict[str, Any] = dict(value) if isinstance(value, dict) else {"rate": value}  # pyright: ignore[reportUnknownArgumentType]
        rate = parse_decimal(given.get("rate"), name="exchange_rate")
        if rate <= 0 or (currency == USD and rate != ONE):
            raise ConfigurationError(f"exchange_rate must be positive, and 1 for US dollars, not {rate}.")
        source, date = given.get("source"), given.get("date")
        return cls(rate, None if source is None else str(source), None if date is None else str(date))

    def to_dict(self) -> dict[str, str | None]:
        """JSON-ready values."""
        return {"rate": f"{self.rate:f}", "source": self.source, "date": self.date}


def check_currency(code: str) -> str:
    """`code` in capitals.

    Raises:
        ConfigurationError: no currency has it.
    """
    if code.upper() not in _CURRENCIES.split():
        raise ConfigurationError(f"A currency is an ISO 4217 code such as 'EUR', not {shown(code)}.")
    return code.upper()


def minor_unit(currency: str) -> Decimal:
    """The smallest amount of `currency` there is: ``0.01`` for most."""
    return ONE.scaleb(-_DECIMALS.get(currency, 2), context=EXACT)


def round_money(amount: Decimal, currency: str) -> Decimal:
    """`amount` in whole minor units (cents) of `currency`; halves go away from zero, as on any invoice.

    What comes to nothing has no sign: no paper says ``-0.00``, and the rules of electronic invoices refuse it.
    """
    return EXACT.plus(amount.quantize(minor_unit(currency), rounding=ROUND_HALF_UP, context=EXACT))


def convert(dollars: Decimal, rate: ExchangeRate) -> Decimal:
    """Exact, not rounded."""
    return EXACT.multiply(dollars, rate.rate)


def money_text(amount: Decimal, currency: str) -> str:
    """For people: ``1,234.50 EUR``."""
    return f"{round_money(amount, currency):,f} {currency}"
