"""Prices and rating: usage in, exact charges out."""

from tokenmeter.pricing.ceiling import Ceiling
from tokenmeter.pricing.parse import parse_discounts, parse_multipliers, parse_prices
from tokenmeter.pricing.price import Conditions, Price
from tokenmeter.pricing.price_list import ListedModel, PriceList
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.rating import Rating
from tokenmeter.pricing.terms import Discount, Multiplier, Terms

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
    "parse_multipliers",
    "parse_prices",
]
