"""Costs that the biller itself puts on the wire, and the words it has for its tiers."""

from __future__ import annotations

from decimal import Decimal

from tokenmeter.money import EXACT, ONE, ZERO
from tokenmeter.providers.hosts import host_of
from tokenmeter.providers.wire import JSON, amount, is_object, section
from tokenmeter.usage import SuppliedCost

__all__ = ["billed_tier", "supplied_cost"]

#: Words for tiers that have another name on the bill: Anthropic's and Groq's standard, and OpenAI's ``fast``, which is
#: answered as ``priority``.
_TIER_NAMES = {"standard": "default", "standard_only": "default", "on_demand": "default", "fast": "priority"}
_FIELDS = frozenset({"cost", "cost_in_usd_ticks", "list_cost"})
#: US dollars in the units a host may state its cost in; see `RequestFacts.cost_unit`.
_UNITS = {"usd": ONE, "cents": Decimal("0.01")}
#: x-ai counts in ticks of 10^-10 dollars (https://docs.x.ai/developers/cost-tracking).
_TICK = Decimal("1E-10")


def billed_tier(tier: str | None) -> str | None:
    """`tier` as it is billed; ``auto`` is a wish, not a tier."""
    return None if tier is None or tier == "auto" else _TIER_NAMES.get(tier, tier)


def supplied_cost(provider: str, usage: JSON, unit: str | None, flags: set[str]) -> SuppliedCost | None:
    """The cost that stands in `usage`, in US dollars; None when none does, or one that is no amount (flagged).

    Args:
        provider: Provider id.
        usage: The usage object.
        unit: What the user's settings say of the host's ``cost``; see `RequestFacts.cost_unit`.
        flags: Doubts are added here.
    """
    if _FIELDS.isdisjoint(usage):
        return None
    # Managed agents state minor units as text: "2500" is $25.00. Both of these fields name their own unit.
    listed = section(usage, "list_cost")
    if listed.get("currency") == "USD" and (minor := amount(listed, "amount", flags=flags)) is not None:
        return SuppliedCost(EXACT.multiply(minor, _UNITS["cents"]), "usage.list_cost")
    if (ticks := amount(usage, "cost_in_usd_ticks", flags=flags)) is not None:
        return SuppliedCost(EXACT.multiply(ticks, _TICK), "usage.cost_in_usd_ticks")
    if unit == "ignore":
        return None
    return _cost(provider, usage, unit, flags)


def _cost(provider: str, usage: JSON, unit: str | None, flags: set[str]) -> SuppliedCost | None:
    """The field that many hosts have and each in its own unit: believed only where that unit is known."""
    stated = usage.get("cost")
    cost = amount(stated, "total_cost", flags=flags) if is_object(stated) else amount(usage, "cost", flags=flags)
    believed = unit is not None or host_of(provider).bills_cost
    if cost is None or (not cost and not believed):
        return None
    if unit is not None:
        cost = EXACT.multiply(cost, _UNITS.get(unit) or Decimal(unit))
    elif usage.get("is_byok") is True:  # with a key of one's own the upstream's bill comes on top
        upstream = amount(section(usage, "cost_details"), "upstream_inference_cost", flags=flags)
        cost = EXACT.add(cost, upstream or ZERO)
    return SuppliedCost(cost, "usage.cost", believed=believed)
