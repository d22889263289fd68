"""Amounts people pay: minor units, rounding, and conversion from dollars at a rate that is written down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, ONE, parse_decimal

USD = "USD"
_CODE = re.compile(r"[A-Z]{3}$")
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
        ConfigurationError: not three letters.
    """
    if not _CODE.match(code.upper()):
        raise ConfigurationError(f"A currency is an ISO 4217 code such as 'EUR', not {code!r}.")
    return code.upper()


def minor_unit(currency: str) -> Decimal:
    """The smallest amount of `currency` there is: ``0.01`` for most."""
    return ONE.scaleb(-_DECIMALS.get(currency, 2), context=EXACT)


def round_money(amount: Decimal, currency: str) -> Decimal:
    """`amount` in whole minor units (cents) of `currency`; halves go away from zero, as on any invoice."""
    return amount.quantize(minor_unit(currency), rounding=ROUND_HALF_UP, context=EXACT)


def convert(dollars: Decimal, rate: ExchangeRate) -> Decimal:
    """Exact, not rounded."""
    return EXACT.multiply(dollars, rate.rate)


def money_text(amount: Decimal, currency: str) -> str:
    """For people: ``1,234.50 EUR``."""
    return f"{round_money(amount, currency):,f} {currency}"
