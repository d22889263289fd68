"""Who serves, and bills, behind a base URL. Ids as in genai-prices."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["provider_of_url", "region_of_url"]

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
