"""Which model a name means: strict, so that a new model is unknown rather than billed as its neighbour."""

import pytest

from tokenmeter.pricing import PriceList, Pricer, Terms


@pytest.fixture(scope="module")
def prices():
    return PriceList.load()


@pytest.mark.parametrize(
    ("provider", "name", "listed"),
    [
        ("openai", "gpt-5", "gpt-5"),
        ("openai", "GPT-5", "gpt-5"),
        ("openai", "gpt-5-2025-08-07", "gpt-5"),
        ("openai", "gpt-6-sol-2026-09-22", "gpt-6-sol"),
        ("openai", "gpt-5.6", "gpt-5.6-sol"),
        ("openai", "omni-moderation-latest", "omni-moderation"),
        ("openai", "ft:gpt-4o-mini-2024-07-18:acme:name:id", "ft:gpt-4o-mini"),
        ("openai", "ft:gpt-3.5-turbo-0125:acme::id", "ft:gpt-3.5-turbo-"),
        ("anthropic", "claude-opus-4-1-20250805", "claude-opus-4-1"),
        ("anthropic", "claude-opus-4-20250514", "claude-opus-4-0"),
        ("anthropic", "claude-3-5-sonnet-latest", "claude-3-5-sonnet"),
        ("anthropic", "claude-3-7-sonnet-20250219", "claude-3-7-sonnet-latest"),
        ("bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("bedrock", "anthropic.claude-haiku-4-5-20251001-v1:0", "regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("bedrock", "claude-haiku-4-5-20251001", "regional.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("aws", "global.anthropic.claude-opus-5-5", "global.anthropic.claude-opus-5-5"),
        ("aws", "arn:aws:bedrock:us-east-1:1:inference-profile/eu.anthropic.claude-sonnet-5", None),
        ("aws", "us.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("aws", "amazon.titan-embed-text-v2:0", "amazon.titan-embed-text-v2:0"),
        ("vertex", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("vertex", "publishers/anthropic/models/claude-opus-5-5@default", "claude-opus-5-5"),
        ("google", "models/gemini-2.5-flash-001", "gemini-2.5-flash"),
        ("google", "gemini-2.5-pro-preview-06-05", "gemini-2.5-pro"),
        ("azure", "gpt-4o-2024-08-06", "gpt-4o"),
        ("azure.ai.openai", "gpt-35-turbo", "gpt-3.5-turbo"),
        ("azure", "gpt-35-turbo-1106", "gpt-3.5-turbo-1106"),
        ("azure", "gpt-4.1-mini-2025-04-14.ft-0e208cf33a6a4669-suffix", "gpt-4.1-mini"),
        ("azure", "azure/gpt-4o-2024-08-06.ft-0e208cf33a6a4669:ckpt-step-100", "gpt-4o"),
        ("xai", "grok-4-0709", "grok-4-0709"),
        ("openrouter", "anthropic/claude-3.7-sonnet:thinking", "anthropic/claude-3.7-sonnet"),
        ("openai", "openai/gpt-5", "gpt-5"),
        ("openai", "openai/gpt-5-2025-08-07", "gpt-5"),
        ("openai", "openai/ft:gpt-4o-mini-2024-07-18:acme::id", "ft:gpt-4o-mini"),
        ("xai", "xai/grok-4-0709", "grok-4-0709"),
        ("azure", "azure/gpt-4o-2024-08-06", "gpt-4o"),
        ("anthropic", "anthropic/claude-sonnet-4-5", "claude-sonnet-4-5"),
        ("google", "gemini/gemini-2.5-pro", "gemini-2.5-pro"),
        ("together", "together_ai/openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("fireworks_ai", "fireworks_ai/accounts/fireworks/models/gpt-oss-120b", "gpt-oss-120b"),
        ("openrouter", "openrouter/openai/gpt-5", "openai/gpt-5"),
    ],
)
def test_names_that_providers_use_are_found(prices, provider, name, listed):
    found = prices.find(provider, name)
    assert found is not None, name
    assert listed is None or found.model == listed


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("anthropic", "claude-opus-4-10"),
        ("anthropic", "claude-opus-4-10-20270101"),
        ("anthropic", "claude-3-5-haiku-ultra"),
        ("anthropic", "my-claude-opus-4-1"),
        ("anthropic", "claude-opus-4-1-20251345"),
        ("anthropic", "claude-opus-4-1-v1"),
        ("openai", "gpt-5-nano-plus"),
        ("openai", "gpt-4o-audio-preview-next"),
        ("openai", "gpt-5.99"),
        ("openai", "gpt-4o-2024-02-30"),
        ("openai", "moderation"[::-1]),
        ("openai", "us.anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("openai", "azure/gpt-5"),
        ("openai", "openai/openai/gpt-5"),
        ("openai", "/gpt-5"),
        ("openai", "openai/"),
        ("aws", "us.anthropic.claude-haiku-9-20270101-v1:0"),
        ("google", "gemini-2.5-pro-tts-new"),
        ("google", "claude-opus-4-10"),
        ("azure", "my-deployment"),
        ("azure", "gpt-4.1.ft-"),
        ("openai", "gpt-4.1-2025-04-14.ft-0e208cf33a6a4669"),
        ("nobody", "gpt-5"),
        ("openai", ""),
        ("openai", None),
        ("openai", "*"),
    ],
)
def test_a_name_that_no_rule_explains_is_unknown(prices, provider, name):
    assert prices.find(provider, name) is None


def test_a_bedrock_name_without_profile_takes_the_global_row_where_the_region_says_so(prices):
    name = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    assert prices.find("aws", name, "global").model.startswith("global.")
    assert prices.find("aws", name, "us-east-1").model.startswith("regional.")


def test_deployments_and_private_names_are_mapped_before_matching(prices):
    terms = Terms(model_maps={"azure": {"prod-chat": "gpt-4o"}, "*": {"house-model": "gpt-5-mini"}})
    pricer = Pricer(prices, terms)
    assert pricer.find("azure", "prod-chat").model == "gpt-4o"
    assert pricer.find("openai", "house-model").model == "gpt-5-mini"
    assert pricer.find("openai", "prod-chat") is None
