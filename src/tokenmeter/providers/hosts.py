"""Hosts: who serves, and bills, behind a base URL, by what names each is known, and what its usage leaves out.

A host of a shared wire format needs a row here and nothing else. Ids are those of genai-prices.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tokenmeter.values import dataclass


@dataclass(frozen=True, slots=True)
class Host:
    """Who serves and bills.

    Attributes:
        id: Provider id.
        urls: Patterns of its base URLs, without the scheme.
        names: Other words for it, as callers and other tools use them.
        company: FOCUS ``ServiceProviderName``; None: as the id.
        service: FOCUS ``ServiceName``; None: the id, and "API".
        otel: OpenTelemetry's ``gen_ai.provider.name``; None: as the id.
        bills_cost: Whether the ``cost`` in its usage is its bill, in US dollars, so that 0 means free. Elsewhere nobody
            knows its unit, and 0 is a field nobody filled.
        hidden_output: Whether its ``total_tokens`` holds output (thinking) that the answer's tokens leave out.
        least_audio: Seconds that it bills a transcription for at least.
        keeps_flex: Whether a request for the flex tier is served in it or refused, and never in a dearer one.
        caches_marked: Whether of a prompt whose format has marks for it no more is billed as written to a cache than
            what is marked.
    """

    id: str
    urls: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    company: str | None = None
    service: str | None = None
    otel: str | None = None
    bills_cost: bool = False
    hidden_output: bool = False
    least_audio: int = 0
    keeps_flex: bool = False
    caches_marked: bool = False


#: Of several patterns that match a URL the first one counts.
_HOSTS = (
    Host(
        "openai",
        (r"([a-z]{2}\.)?api\.openai\.com",),
        company="OpenAI",
        service="OpenAI API",
        keeps_flex=True,  # else a 429 that costs nothing: developers.openai.com/api/docs/guides/flex-processing
    ),
    Host("anthropic", (r"api\.anthropic\.com",), company="Anthropic", service="Claude API", caches_marked=True),
    Host(
        "azure",
        (
            r"[^/]*(openai\.azure\.(com|us)|azure-api\.(net|us)|cognitiveservices\.azure\.(com|us))",
            r"[^/]*(services\.ai\.azure\.com|models\.ai\.azure\.com)",
            r"[a-z0-9-]+\.api\.cognitive\.microsoft\.(com|us)",
        ),
        names=(
            *("azure.ai.inference", "azure.ai.openai", "azure_ai", "azure_openai", "foundry"),
            *("azure-ai", "azure-cognitive-services", "azure-openai"),
        ),
        company="Microsoft",
        service="Azure OpenAI",
        otel="azure.ai.openai",
        keeps_flex=True,  # else a 400: learn.microsoft.com/azure/foundry/openai/how-to/flex-processing
        caches_marked=True,
    ),
    Host(
        "aws",
        (r"(bedrock[a-z-]*)\.[a-z0-9.-]*(amazonaws\.com|api\.aws)",),
        names=("amazon-bedrock", "anthropic_bedrock", "aws.bedrock", "aws_bedrock", "bedrock"),
        company="Amazon Web Services",
        service="Amazon Bedrock",
        otel="aws.bedrock",
        caches_marked=True,
    ),
    Host(
        "google",
        (r"[^/]*googleapis\.com",),
        names=(
            "anthropic_vertex",
            "gcp.gemini",
            "gcp.gen_ai",
            "gcp.vertex_ai",
            "gemini",
            "google-vertex",
            "google-vertex-anthropic",
            "vertex",
            "vertex-ai",
            "vertex_ai",
        ),
        company="Google Cloud",
        service="Vertex AI",
        otel="gcp.vertex_ai",
        hidden_output=True,
        keeps_flex=True,  # else a 503 or 429: ai.google.dev/gemini-api/docs/flex-inference, "no server-side fallback"
        caches_marked=True,
    ),
    Host(
        "openrouter",
        (r"((api|eu|us)\.)?openrouter\.ai",),
        company="OpenRouter",
        service="OpenRouter API",
        bills_cost=True,  # 1 credit is 1 dollar
    ),
    Host("groq", (r"api\.groq\.com",), least_audio=10),
    Host(
        "mistral",
        (r"(api|codestral)\.mistral\.ai",),
        names=("mistral-ai", "mistral_ai", "mistralai"),
        otel="mistral_ai",
    ),
    Host("deepseek", (r"api\.deepseek\.com",)),
    Host("x-ai", (r"([a-z0-9-]+\.)?api\.x\.ai",), names=("grok", "x_ai", "xai"), otel="x_ai"),
    Host("together", (r"api\.together\.(xyz|ai)",), names=("together-ai", "together_ai", "togetherai")),
    Host("fireworks", (r"(us\.)?api\.fireworks\.ai",), names=("fireworks-ai", "fireworks_ai")),
    Host("perplexity", (r"api\.perplexity\.ai",), names=("perplexity-ai", "perplexity_ai"), bills_cost=True),
    Host("deepinfra", (r"api\.deepinfra\.com",), company="Deep Infra", bills_cost=True),
    Host("cerebras", (r"api\.cerebras\.ai",)),
    Host("cohere", (r"api\.cohere\.(ai|com)",)),
    Host("moonshotai", (r"api\.moonshot\.(ai|cn)",), names=("moonshot", "moonshotai-cn")),
    Host("zai", (r"api\.z\.ai",)),
    Host("zhipuai", (r"open\.bigmodel\.cn",), names=("zhipu",)),
    Host("minimax", (r"api\.minimaxi?\.(com|io)",), names=("minimax-cn",)),
    Host("novita", (r"api\.novita\.ai",), names=("novita-ai",)),
    Host("baseten", (r"inference\.baseten\.co",)),
    Host("arcee", (r"api\.arcee\.ai",)),
    Host("avian", (r"api\.avian\.io",)),
    Host("doubleword", (r"api\.doubleword\.ai",)),
    Host(
        "cloudflare",
        (r"api\.cloudflare\.com/client/v4/accounts/[^/]+/ai",),
        names=("cloudflare-workers-ai", "workers-ai"),
    ),
    Host("databricks", (r"[^/]*(cloud\.databricks\.com|azuredatabricks\.net|gcp\.databricks\.com)",)),
    Host("github-copilot", (r"api\.((individual|business|enterprise)\.)?githubcopilot\.com",)),
    Host("huggingface", (r"router\.huggingface\.co",)),
    Host("modal", (r"[^/]+\.modal\.(run|direct)",)),
    Host("ovhcloud", (r"oai\.endpoints\.kepler\.ai\.cloud\.ovh\.net",)),
    Host("voyageai", (r"api\.voyageai\.com",), names=("voyage",)),
    Host("meta", (r"api\.meta\.ai",)),
)
#: Whom Hugging Face is told to ask by the path; by the path of its own version (``v1``) it chooses, or the model says.
_HUGGING_FACE = re.compile(r"router\.huggingface\.co/(?!v\d+(?:/|$))([a-z0-9-]+)(?=/|$)")
#: Hosts that ask somebody else to answer, and whose requests name him behind the model: ``openai/gpt-oss-120b:groq``.
ROUTERS = frozenset({"huggingface"})
#: What may stand there in place of a name.
_WISHES = frozenset({"cheapest", "fastest", "preferred"})
_ROUTED = re.compile(r"[^:]+:([a-z0-9-]+)")
#: Where in a URL stands in which region, or data zone, the work is done.
_REGIONS = (
    re.compile(r"([a-z]{2})\.api\.(?:openai\.com|fireworks\.ai)(?=[:/]|$)"),
    re.compile(r"([a-z0-9-]+)\.api\.x\.ai(?=[:/]|$)"),
    re.compile(r"bedrock[a-z-]*\.([a-z0-9-]+)\.(?:amazonaws\.com|api\.aws)"),
    re.compile(r"([a-z0-9-]+)-aiplatform\.googleapis\.com(?=[:/]|$)"),
    re.compile(r"aiplatform\.([a-z0-9-]+)\.rep\.googleapis\.com(?=[:/]|$)"),
)
_BY_NAME = {name: host for host in _HOSTS for name in (host.id, *host.names)}


@lru_cache(maxsize=256)
def canonical_provider(provider: str) -> str:
    """The price list's id of a provider: ``bedrock`` is ``aws``, ``vertex`` is ``google``; others stay as they are."""
    name = provider.strip().lower()
    known = _BY_NAME.get(name)
    return known.id if known is not None else name


@lru_cache(maxsize=256)
def billing_name(provider: str) -> str:
    """`canonical_provider` of a host that is known by any of its names; any other stays as it is written."""
    return canonical_provider(provider) if provider.strip().lower() in _BY_NAME else provider


def names() -> frozenset[str]:
    """Every name by which a host is known."""
    return frozenset(_BY_NAME)


def host_of(provider: str) -> Host:
    """What is known of a provider, by any of its names."""
    name = canonical_provider(provider)
    return _BY_NAME.get(name) or Host(name)


@lru_cache(maxsize=256)
def provider_of_url(url: str) -> str | None:
    """Provider id of a base URL; None for a host nobody knows (a proxy, a server of one's own)."""
    bare = url.partition("://")[2]
    if routed := _HUGGING_FACE.match(bare):
        return f"huggingface_{routed[1]}"
    # A pattern is compiled when it is asked: a process that knows one host needs no other's.
    return next(
        (host.id for host in _HOSTS for pattern in host.urls if re.match(rf"{pattern}(?=[:/]|$)", bare)),
        None,
    )


@lru_cache(maxsize=1024)
def routed_provider(router: str, model: str) -> str:
    """Provider id of who answers a request for `model` to one of `ROUTERS`; the router's, where it chooses."""
    named = _ROUTED.fullmatch(model)
    return router if named is None or named[1] in _WISHES else f"{router}_{named[1]}"


@lru_cache(maxsize=256)
def region_of_url(url: str) -> str | None:
    """Cloud region or data zone that a base URL names; None when it names none."""
    bare = url.partition("://")[2]
    return next((found[1] for pattern in _REGIONS if (found := pattern.match(bare))), None)
