"""What hosts of a shared wire format do differently: costs they supply, names they use. Data first, rules after."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from tokenmeter.dialects.wire import JSON, amount, count, section
from tokenmeter.usage import Quantity, SuppliedCost

__all__ = ["HIDDEN_OUTPUT", "billed_tier", "extra_meters", "supplied_cost", "write_meter"]

#: Hosts whose ``total_tokens`` holds output (thinking) that ``completion_tokens`` leaves out.
HIDDEN_OUTPUT = frozenset({"google", "google-vertex", "vertex"})
#: Words for tiers that have another name on the bill: Anthropic's and Groq's standard, and OpenAI's ``fast``, which is
#: answered as ``priority``.
_TIER_NAMES = {"standard": "default", "standard_only": "default", "on_demand": "default", "fast": "priority"}
#: Hosts for which ``usage.cost`` is the bill, so that 0 means free. Elsewhere 0 is a field nobody filled.
_BILLING_HOSTS = frozenset({"openrouter"})
_CENT = Decimal("0.01")
#: x-ai counts in ticks of 10^-10 dollars (https://docs.x.ai/developers/cost-tracking).
_TICK = Decimal("1E-10")


def billed_tier(tier: str | None) -> str | None:
    """`tier` as it is billed; ``auto`` is a wish, not a tier."""
    return None if tier is None or tier == "auto" else _TIER_NAMES.get(tier, tier)


def write_meter(model: str | None) -> str:
    """Class of cache writes without a lifetime: Claude's are Anthropic's five-minute ones on every host."""
    return "cache_write_5m" if model and "claude" in model else "cache_write_30m"


def supplied_cost(provider: str, usage: JSON) -> SuppliedCost | None:
    """The cost the biller itself put into `usage`, in US dollars; None when it put none.

    Raises:
        MalformedError: the amount is no number.
    """
    if _COST_FIELDS.isdisjoint(usage):
        return None
    for source in _SOURCES:
        if source.field in usage and (cost := source.read(provider, usage)) is not None:
            return SuppliedCost(cost, f"usage.{source.field}")
    return None


def _credits(provider: str, usage: JSON) -> Decimal | None:
    """OpenRouter's ``cost`` (1 credit = 1 dollar); with one's own key the upstream bill comes on top."""
    if isinstance(usage.get("cost"), dict):  # Perplexity itemises: its total is the bill
        return amount(section(usage, "cost"), "total_cost")
    cost = amount(usage, "cost")
    if cost is None or (not cost and provider not in _BILLING_HOSTS):
        return None
    if usage.get("is_byok") is True:
        cost += amount(section(usage, "cost_details"), "upstream_inference_cost") or 0
    return cost


def _ticks(_provider: str, usage: JSON) -> Decimal | None:
    ticks = amount(usage, "cost_in_usd_ticks")
    return None if ticks is None else ticks * _TICK


def _minor_units(_provider: str, usage: JSON) -> Decimal | None:
    """Managed agents' ``list_cost``: minor units as text, so "2500" is $25.00."""
    cost = section(usage, "list_cost")
    minor = amount(cost, "amount")
    return None if minor is None or cost.get("currency") != "USD" else minor * _CENT


@dataclass(frozen=True, slots=True)
class _Source:
    field: str
    read: Callable[[str, JSON], Decimal | None]


_SOURCES = (_Source("list_cost", _minor_units), _Source("cost", _credits), _Source("cost_in_usd_ticks", _ticks))
_COST_FIELDS = frozenset(source.field for source in _SOURCES)


# -- meters that only one host has


def extra_meters(provider: str, usage: JSON, model: str | None) -> dict[str, Quantity]:
    """What a host bills beside tokens.

    Raises:
        MalformedError: a count is no number.
    """
    meters: dict[str, Quantity] = {}
    if model and "-search-" in model and provider in {"openai", "azure"} and _SEARCHES_ALWAYS.search(model):
        meters["web_searches"] = 1
    if _EXTRA_KEYS.isdisjoint(usage):
        return meters
    for name, meter in _EXTRA_FIELDS.items():
        if usage.get(name) and (quantity := amount(usage, name)):
            meters[meter] = int(quantity) if quantity == int(quantity) else quantity
    tools = section(usage, "server_side_tool_usage_details")
    for name, meter in _EXTRA_TOOLS.items():
        if calls := count(tools, name):
            meters[meter] = meters.get(meter, 0) + calls
    return meters


#: Chat models that search the web on every request (https://platform.openai.com/docs/guides/tools-web-search).
_SEARCHES_ALWAYS = re.compile(r"-search-(preview|api)\b")
#: Mistral's voice models count audio in seconds; x-ai's live search counts sources.
_EXTRA_FIELDS = {"prompt_audio_seconds": "seconds_audio", "num_sources_used": "search_sources"}
_EXTRA_KEYS = frozenset({*_EXTRA_FIELDS, "server_side_tool_usage_details"})
#: x-ai's agent tools, by call.
_EXTRA_TOOLS = {
    "web_search_calls": "web_searches",
    "x_search_calls": "web_searches",
    "file_search_calls": "file_searches",
    "document_search_calls": "file_searches",
}
