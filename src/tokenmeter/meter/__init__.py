"""The meter: a store, prices, terms and budgets, joined into the way of one call."""

from tokenmeter.meter.meter import Meter
from tokenmeter.meter.recording import Authorization

__all__ = ["Authorization", "Meter"]
