"""Metrics by the GenAI conventions, beside the ledger and never instead of it."""

from __future__ import annotations

import pytest

import tokenmeter
import tokenmeter.default
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.telemetry import EntryMetrics

pytest.importorskip("opentelemetry.sdk.metrics")


def points(reader):
    data = reader.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


@pytest.fixture
def reader():
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    reader.provider = provider
    yield reader
    provider.shutdown()


def test_each_call_is_recorded_by_the_conventions_names(reader, fake_provider):
    from tokenmeter.openai import OpenAI

    meter = tokenmeter.make_meter(store="memory:", config={}, observers=[EntryMetrics(reader.provider)])
    with OpenAI(base_url=fake_provider.openai_url, api_key="sk-metrics-test-0001") as client:
        tokenmeter.wrap(client, meter=meter)
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
        client.chat.completions.create(model="nobody-knows", messages=[{"role": "user", "content": "Hi"}])
    seen = points(reader)
    tokens = {
        (point.attributes["gen_ai.request.model"], point.attributes["gen_ai.token.type"]): point.sum
        for point in seen["gen_ai.client.token.usage"]
    }
    first, second = tokenmeter.entries(meter=meter)
    assert tokens[("gpt-5-mini", "input")] == first.usage.input_tokens
    assert tokens[("gpt-5-mini", "output")] == first.usage.output_tokens
    assert tokens[("nobody-knows", "input")] == second.usage.input_tokens
    (cost,) = seen["tokenmeter.client.cost"]
    assert cost.value == pytest.approx(float(first.billed_cost))
    assert cost.attributes["gen_ai.provider.name"] == "openai"
    assert [point.value for point in seen["tokenmeter.client.unpriced"]] == [1]
    assert sum(point.count for point in seen["gen_ai.client.operation.duration"]) == 2


def test_a_failing_observer_does_not_break_the_call(fake_provider):
    from tokenmeter.openai import OpenAI

    def broken(entry):
        raise RuntimeError("no collector")

    meter = tokenmeter.make_meter(store="memory:", config={}, observers=[broken])
    with OpenAI(base_url=fake_provider.openai_url, api_key="sk-metrics-test-0001") as client:
        tokenmeter.wrap(client, meter=meter)
        assert client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}]).choices
    assert meter.faults == 1
    assert len(list(tokenmeter.entries(meter=meter))) == 1


@pytest.mark.parametrize(
    ("provider", "name"), [("mistral", "mistral_ai"), ("azure", "azure.ai.openai"), ("groq", "groq")]
)
def test_providers_go_by_the_conventions_well_known_names(reader, provider, name):
    call = Entry(occurred_at=utcnow(), provider=provider, endpoint="chat.completions", operation="chat", latency_us=10)
    EntryMetrics(reader.provider)(call)
    (point,) = points(reader)["gen_ai.client.operation.duration"]
    assert point.attributes["gen_ai.provider.name"] == name
