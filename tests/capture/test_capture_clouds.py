"""Clients for clouds: recorded as the platform bills, priced as the platform prices, and signed as by the plain SDK."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

import tokenmeter
import tokenmeter.anthropic
import tokenmeter.openai

MESSAGES = [{"role": "user", "content": "Tell me about the sea, please."}]
ASKED = {"max_tokens": 64, "messages": MESSAGES}
AWS = {"aws_access_key": "AKIA0123456789", "aws_secret_key": "secret", "aws_region": "us-west-2"}


@dataclass(frozen=True)
class Platform:
    """A client class: how it is made, what it asks for, and who bills it at what factor of the model's base price."""

    name: str
    options: Any
    model: str
    provider: str
    factor: str | None = "1"
    served: str | None = None

    @property
    def sdk(self):
        return openai if "OpenAI" in self.name else anthropic

    def __str__(self):
        return f"{self.name}, {self.model}"


CLAUDE = {"input": Decimal(3), "output": Decimal(15)}  # Sonnet 4.5, dollars per million
GPT = {"input": Decimal("0.25"), "output": Decimal(2)}  # GPT-5 mini
BEDROCK = "anthropic.claude-sonnet-4-5-20250929-v1:0"
VERTEX = "claude-sonnet-4-5@20250929"


def _bedrock(url):
    return {**AWS, "base_url": url}


def _vertex(region):
    return lambda url: {"region": region, "project_id": "p", "access_token": "t", "base_url": f"{url}/v1"}


def _foundry(url):
    return {"api_key": "k" * 20, "base_url": f"{url}/anthropic"}


def _aws(url):
    return {**AWS, "workspace_id": "w", "base_url": url}


def _google_cloud(url):
    signed = {"skip_auth": True, "default_headers": {"authorization": "Bearer t"}}
    return {"project": "p", "location": "global", "base_url": url, **signed}


def _azure(url):
    return {"azure_endpoint": url, "api_key": "k" * 20, "api_version": "2025-04-01-preview"}


def _azure_deployment(url):
    return {**_azure(url), "azure_deployment": "our-deployment"}


def _bedrock_openai(url):
    return {"api_key": "k" * 20, "aws_region": "us-west-2", "base_url": f"{url}/v1"}


PLATFORMS = [
    # Bedrock's answers leave out the profile that decides their price.
    Platform("AnthropicBedrock", _bedrock, f"us.{BEDROCK}", "aws", "1.1", served="claude-sonnet-4-5-20250929"),
    Platform("AnthropicBedrock", _bedrock, f"global.{BEDROCK}", "aws", served="claude-sonnet-4-5-20250929"),
    Platform("AnthropicBedrock", _bedrock, "anthropic.claude-sonnet-77-v1:0", "aws", None),
    Platform("AnthropicBedrockMantle", _bedrock, BEDROCK, "aws", "1.1"),
    Platform("AnthropicVertex", _vertex("global"), VERTEX, "google"),
    Platform("AnthropicVertex", _vertex("us-east5"), VERTEX, "google", "1.1"),
    Platform("AnthropicFoundry", _foundry, "claude-sonnet-4-5", "azure"),
    Platform("AnthropicAWS", _aws, "claude-sonnet-4-5", "anthropic"),
    Platform("AnthropicGoogleCloud", _google_cloud, "claude-sonnet-4-5", "anthropic"),
    Platform("AzureOpenAI", _azure, "our-deployment", "azure", served="gpt-5-mini-2025-08-07"),
    Platform("AzureOpenAI", _azure_deployment, "whatever", "azure", None, served="our-own-model"),
    Platform("BedrockOpenAI", _bedrock_openai, "openai.gpt-oss-9000b", "aws", None),
]


@pytest.fixture(params=PLATFORMS, ids=str)
def platform(request, provider):
    one = request.param
    if one.served:
        provider.answer(model=one.served, times=None)
    return one


def _client(platform, kind, provider, meter=None):
    ours = tokenmeter.openai if platform.sdk is openai else tokenmeter.anthropic
    name = platform.name if kind == "sync" else f"Async{platform.name}"
    if "aws_secret_key" in platform.options(""):
        pytest.importorskip("botocore")
    made = getattr(platform.sdk if meter is None else ours, name, None)
    if made is None:
        pytest.skip("this SDK version has no such client")
    http = platform.sdk.DefaultHttpxClient if kind == "sync" else platform.sdk.DefaultAsyncHttpxClient
    client = made(**platform.options(provider.url), max_retries=0, http_client=http(verify=False))
    return client if meter is None else tokenmeter.wrap(client, meter)


async def _use(client, platform, do):
    """Every way to read an answer, once; what was said."""
    if platform.sdk is openai:
        resource, asked = client.chat.completions, {"messages": MESSAGES, "model": platform.model}
        # Who reads the bytes himself gets usage only if he asks for it.
        raw_stream = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    else:
        resource, asked = client.messages, {**ASKED, "model": platform.model}
        raw_stream = {**asked, "stream": True}
    said = [await do(resource.create(**asked))]
    said += [event async for event in do.each(resource.create(**asked, stream=True))]
    if hasattr(resource, "stream"):
        async with do.inside(resource.stream(**asked)) as stream:
            said.append(len([event async for event in do.each(stream)]))
    said.append(await do((await do(resource.with_raw_response.create(**asked))).parse()))
    async with do.inside(resource.with_streaming_response.create(**raw_stream)) as raw:
        said.append(len(b"".join([piece async for piece in do.each(raw.iter_bytes())])) > 0)
    return [_settled(value) for value in said]


def _settled(value):
    shown = value.model_dump(mode="json", exclude_unset=True) if hasattr(value, "model_dump") else value
    return re.sub(r"[a-z]+[-_][0-9a-f]{12,}\w*|('created': )\d+", r"\1ID", str(shown))


def _wire(request):
    """What left, without what is new in every request: the time and the signature over it."""
    headers = {name.lower(): value for name, value in request.headers}
    for new in ("x-amz-date", "content-length", "x-amz-content-sha256"):
        if new in headers:
            headers[new] = "..."
    if "authorization" in headers:
        headers["authorization"] = re.sub(r"/\d{8}/|Signature=\w+", "...", headers["authorization"])
    body = dict(request.json or {})
    if body.get("stream_options") == {"include_usage": True}:
        del body["stream_options"]
    return request.method, request.target, headers, body


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_recorded_priced_and_signed_as_on_that_platform(kind, platform, provider, meter, books, do):
    ours = _client(platform, kind, provider, meter)
    said = await _use(ours, platform, do)
    await do(ours.close())
    truth, sent = dict(provider.total.quantities), [_wire(request) for request in provider.requests]
    provider.reset()
    if platform.served:
        provider.answer(model=platform.served, times=None)
    plain = _client(platform, kind, provider)
    assert said == await _use(plain, platform, do)
    await do(plain.close())
    assert sent == [_wire(request) for request in provider.requests]
    entries = books.all()
    assert books.quantities() == truth
    assert [(entry.provider, entry.status) for entry in entries] == [(platform.provider, "ok")] * len(sent)
    assert not any("estimated" in entry.flags for entry in entries)
    assert {entry.model for entry in entries} == {platform.served or platform.model}
    for entry in entries:
        assert entry.list_cost == _cost(platform, entry.usage)
    assert meter.faults == 0


def _cost(platform, usage):
    """By hand, from the model's base price and the platform's factor; None where the platform lists no such model."""
    if platform.factor is None:
        return None
    prices = GPT if platform.sdk is openai else CLAUDE
    return (
        sum(prices[meter] * quantity for meter, quantity in usage.quantities.items()) / 10**6 * Decimal(platform.factor)
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("runtime", "billed_by"), [("bedrock", "aws"), ("vertex", "google")])
async def test_an_openai_client_for_a_cloud_is_recorded_as_that_clouds(
    runtime, billed_by, kind, provider, meter, books, do
):
    """``OpenAI(provider=...)``, also through an address of one's own (a VPC endpoint, a proxy)."""
    providers = pytest.importorskip(f"openai.providers.{runtime}", reason="this SDK version has no providers")
    url = f"{provider.url}/v1"
    if runtime == "bedrock":
        given = providers.bedrock(base_url=url, api_key="k" * 20, region="us-west-2")
    else:
        given = providers.vertex(base_url=url, token_provider=lambda: "token")
    named = tokenmeter.openai.OpenAI if kind == "sync" else tokenmeter.openai.AsyncOpenAI
    http = openai.DefaultHttpxClient if kind == "sync" else openai.DefaultAsyncHttpxClient
    client = tokenmeter.wrap(named(provider=given, max_retries=0, http_client=http(verify=False)), meter)
    asked = {"model": "openai.gpt-9000", "input": "Tell me about the sea, please."}
    await do(client.responses.create(**asked))
    assert [event async for event in do.each(client.responses.create(**asked, stream=True))]
    await do(client.close())
    assert [(entry.provider, entry.list_cost) for entry in books.all()] == [(billed_by, None)] * 2
    assert books.quantities() == dict(provider.total.quantities)
    assert {authorization[:7] for authorization in [r.header("authorization") for r in provider.requests]} == {
        "Bearer "
    }
    assert meter.faults == 0
