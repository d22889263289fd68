"""Prices and rating: usage in, exact charges out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokenmeter.pricing.price import Conditions, Discount, Multiplier, Price, Terms
from tokenmeter.pricing.price_list import ListedModel, PriceList
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.rating import Rating

if TYPE_CHECKING:
    from tokenmeter.pricing.parse import parse_discounts, parse_free_quotas, parse_multipliers, parse_prices
    from tokenmeter.pricing.sheet import Ceiling

#: Loaded when first asked for: a call with neither caps nor prices of the user's own does without.
_LATER = {
    "Ceiling": "sheet",
    "parse_discounts": "parse",
    "parse_free_quotas": "parse",
    "parse_multipliers": "parse",
    "parse_prices": "parse",
}


if not TYPE_CHECKING:  # as in `tokenmeter` itself

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
        return value


__all__ = [
    "Ceiling",
    "Conditions",
    "Discount",
    "ListedModel",
    "Multiplier",
    "Price",
    "PriceList",
    "Pricer",
    "Rating",
    "Terms",
    "parse_discounts",
    "parse_free_quotas",
    "parse_multipliers",
    "parse_prices",
]
