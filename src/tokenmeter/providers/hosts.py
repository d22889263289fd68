"""Hosts of shared wire formats: who serves, and bills, behind a base URL, and what each one does differently."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from tokenmeter.money import EXACT, add
from tokenmeter.providers.wire import JSON, amount, count, section
from tokenmeter.usage import Quantity, SuppliedCost

__all__ = [
    "HIDDEN_OUTPUT",
    "billed_tier",
    "extra_meters",
    "provider_of_url",
    "region_of_url",
    "supplied_cost",
    "write_meter",
]

# -- by URL; ids as in genai-prices

#: Pattern of the URL without its scheme -> provider id. First match wins.
_HOSTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"{pattern}(?=[:/]|$)"), provider)
    for pattern, provider in (
        (r"([a-z]{2}\.)?api\.openai\.com", "openai"),
        (r"api\.anthropic\.com", "anthropic"),
        (r"[^/]*(openai\.azure\.com|azure-api\.net|cognitiveservices\.azure\.com|services\.ai\.azure\.com)", "azure"),
        (r"(bedrock[a-z-]*)\.[a-z0-9.-]*(amazonaws\.com|api\.aws)", "aws"),
        (r"[^/]*googleapis\.com", "google"),
        (r"(api\.)?openrouter\.ai", "openrouter"),
        (r"api\.groq\.com", "groq"),
        (r"api\.mistral\.ai", "mistral"),
        (r"api\.deepseek\.com", "deepseek"),
        (r"api\.x\.ai", "x-ai"),
        (r"api\.together\.(xyz|ai)", "together"),
        (r"api\.fireworks\.ai", "fireworks"),
        (r"api\.perplexity\.ai", "perplexity"),
        (r"api\.cerebras\.ai", "cerebras"),
        (r"api\.cohere\.(ai|com)", "cohere"),
        (r"api\.moonshot\.(ai|cn)", "moonshotai"),
        (r"api\.z\.ai", "zai"),
        (r"open\.bigmodel\.cn", "zhipuai"),
        (r"api\.minimaxi?\.(com|io)", "minimax"),
        (r"api\.novita\.ai", "novita"),
        (r"inference\.baseten\.co", "baseten"),
        (r"api\.arcee\.ai", "arcee"),
        (r"api\.avian\.io", "avian"),
        (r"api\.doubleword\.ai", "doubleword"),
        (r"api\.cloudflare\.com/client/v4/accounts/[^/]+/ai", "cloudflare"),
        (r"[^/]*(cloud\.databricks\.com|azuredatabricks\.net|gcp\.databricks\.com)", "databricks"),
        (r"api\.githubcopilot\.com", "github-copilot"),
        (r"[^/]+\.modal\.(run|direct)", "modal"),
        (r"oai\.endpoints\.kepler\.ai\.cloud\.ovh\.net", "ovhcloud"),
        (r"api\.voyageai\.com", "voyageai"),
        (r"api\.meta\.ai", "meta"),
    )
)
_HUGGING_FACE = re.compile(r"router\.huggingface\.co/([a-z-]+)")
_DATA_ZONE = re.compile(r"([a-z]{2})\.api\.openai\.com")
_CLOUD_REGION = re.compile(r"bedrock[a-z-]*\.([a-z0-9-]+)\.(amazonaws\.com|api\.aws)")


@lru_cache(maxsize=256)
def provider_of_url(url: str) -> str | None:
    """Provider id of a base URL; None for a host nobody knows (a proxy, a server of one's own)."""
    bare = url.partition("://")[2]
    if routed := _HUGGING_FACE.match(bare):
        return f"huggingface_{routed[1]}"
    return next((provider for pattern, provider in _HOSTS if pattern.match(bare)), None)


@lru_cache(maxsize=256)
def region_of_url(url: str) -> str | None:
    """Cloud region or data zone that a base URL names; None when it names none."""
    bare = url.partition("://")[2]
    found = _DATA_ZONE.match(bare) or _CLOUD_REGION.match(bare)
    return found[1] if found else None


# -- costs and tiers

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
    """The cost the biller itself put into `usage`, in US dollars; None when it put none, or one that is no amount."""
    if _COST_FIELDS.isdisjoint(usage):
        return None
    for source in _SOURCES:
        if source.field in usage and (cost := source.read(provider, usage)) is not None:
            return SuppliedCost(cost, f"usage.{source.field}")
    return None


def _credits(provider: str, usage: JSON) -> Decimal | None:
    """OpenRouter's ``cost`` (1 credit = 1 dollar); with one's own key the upstream bill comes on top."""
    if isinstance(usage.get("cost"), dict):  # Perplexity itemises: its total is the bill
        return amount(section(usage, "cost"), "total_cost", flags=set())
    cost = amount(usage, "cost", flags=set())
    if cost is None or (not cost and provider not in _BILLING_HOSTS):
        return None
    if usage.get("is_byok") is True:
        upstream = amount(section(usage, "cost_details"), "upstream_inference_cost", flags=set())
        return cost if upstream is None else EXACT.add(cost, upstream)
    return cost


def _ticks(_provider: str, usage: JSON) -> Decimal | None:
    ticks = amount(usage, "cost_in_usd_ticks", flags=set())
    return None if ticks is None else EXACT.multiply(ticks, _TICK)


def _minor_units(_provider: str, usage: JSON) -> Decimal | None:
    """Managed agents' ``list_cost``: minor units as text, so "2500" is $25.00."""
    cost = section(usage, "list_cost")
    minor = amount(cost, "amount", flags=set())
    return None if minor is None or cost.get("currency") != "USD" else EXACT.multiply(minor, _CENT)


@dataclass(frozen=True, slots=True)
class _Source:
    field: str
    read: Callable[[str, JSON], Decimal | None]


_SOURCES = (_Source("list_cost", _minor_units), _Source("cost", _credits), _Source("cost_in_usd_ticks", _ticks))
_COST_FIELDS = frozenset(source.field for source in _SOURCES)


# -- meters that only one host has


def extra_meters(provider: str, usage: JSON, model: str | None, flags: set[str]) -> dict[str, Quantity]:
    """What a host bills beside tokens; doubts are added to `flags`."""
    meters: dict[str, Quantity] = {}
    if model and "-search-" in model and provider in {"openai", "azure"} and _SEARCHES_ALWAYS.search(model):
        meters["web_searches"] = 1
    if _EXTRA_KEYS.isdisjoint(usage):
        return meters
    for name, meter in _EXTRA_FIELDS.items():
        if usage.get(name) and (quantity := amount(usage, name, flags=flags)):
            meters[meter] = int(quantity) if quantity == int(quantity) else quantity
    tools = section(usage, "server_side_tool_usage_details")
    for name, meter in _EXTRA_TOOLS.items():
        if calls := count(tools, name, flags=flags):
            meters[meter] = add(meters.get(meter, 0), calls)
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
