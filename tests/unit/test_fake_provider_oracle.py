"""FakeProvider's books and tokenmeter's dialects were written apart; they must read every usage object alike."""

from __future__ import annotations

import json
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmeter.providers.anthropic.dialect import AnthropicDialect
from tokenmeter.providers.openai.dialect import OpenAIDialect
from tokenmeter.testing import FakeProvider

counts = st.integers(0, 10_000_000)
#: A provider bills some of either side; what a zero means is tested by itself.
some = st.integers(1, 10_000_000)
OPENAI = st.fixed_dictionaries({"input": some, "cache_read": counts, "cache_write_30m": counts, "output": some})
ANTHROPIC = st.fixed_dictionaries(
    {
        "input": some,
        "cache_read": counts,
        "cache_write_5m": counts,
        "cache_write_1h": counts,
        "output": some,
        "web_searches": st.integers(0, 3),
    }
)
HELLO = [{"role": "user", "content": "Hello"}]
ENDPOINTS = {
    "chat": ("/v1/chat/completions", {"model": "gpt-5", "messages": HELLO}, OpenAIDialect()),
    "responses": ("/v1/responses", {"model": "gpt-5", "input": "Hello"}, OpenAIDialect()),
    "messages": ("/v1/messages", {"model": "claude-sonnet-5", "max_tokens": 9, "messages": HELLO}, AnthropicDialect()),
}


@pytest.fixture(scope="module")
def provider():
    with FakeProvider() as running:
        yield running


def served(provider, path, body) -> bytes:
    headers = {"authorization": "Bearer k", "anthropic-version": "2023-06-01"} if "messages" in path else {}
    request = urllib.request.Request(  # noqa: S310 - our own server
        provider.url + path, json.dumps(body).encode(), {"authorization": "Bearer k", **headers}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310 - as above
        return response.read()


def observed(name, provider, *, stream):
    path, body, dialect = ENDPOINTS[name]
    if stream:
        body = {**body, "stream": True, **({"stream_options": {"include_usage": True}} if name == "chat" else {})}
    data = served(provider, path, body)
    endpoint = dialect.endpoint("POST", path)
    context = {
        "provider": provider.truth[-1].provider,
        "endpoint": endpoint.path,
        "request": dialect.request_facts(endpoint, body),
    }
    if not stream:
        return dialect.read(json.loads(data), **context)
    reader = dialect.stream(**context)
    for line in data.splitlines():
        if line.startswith(b"data: {"):
            reader.feed(json.loads(line[6:]))
    assert reader.terminal
    return reader.observation()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ENDPOINTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_usage_is_read_as_it_was_billed(provider, name, stream, data):
    meters = data.draw(ANTHROPIC if name == "messages" else OPENAI)
    provider.reset()
    provider.answer(meters=meters)
    observation = observed(name, provider, stream=stream)
    (truth,) = provider.truth
    assert dict(observation.usage.quantities) == {meter: n for meter, n in meters.items() if n}
    assert observation.response_id == truth.response_id
    assert observation.response_model == truth.model
    named = {"standard": "default"}  # Anthropic's word for it
    assert observation.consumptions[0].service_tier == named.get(truth.service_tier, truth.service_tier)


@pytest.mark.parametrize("mode", ["cumulative", "last_choice", "always"])
def test_every_way_of_reporting_stream_usage_is_read_as_it_was_billed(provider, mode):
    provider.reset()
    provider.answer(meters={"input": 70, "cache_read": 20, "output": 25}, stream_usage=mode)
    assert dict(observed("chat", provider, stream=True).usage.quantities) == {
        "input": 70,
        "cache_read": 20,
        "output": 25,
    }
