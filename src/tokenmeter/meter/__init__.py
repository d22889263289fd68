"""The meter: a store, prices, terms and budgets, joined into the way of one call."""

from tokenmeter.meter.authorization import Authorization
from tokenmeter.meter.meter import Meter

__all__ = ["Authorization", "Meter"]
