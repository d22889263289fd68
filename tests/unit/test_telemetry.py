"""Metrics by the GenAI conventions, beside the ledger and never instead of it."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

import tokenmeter
import tokenmeter.default
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.telemetry import OpenTelemetryMetrics

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

    reader: Any = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    reader.provider = provider
    yield reader
    provider.shutdown()


def test_each_call_is_recorded_by_the_conventions_names(reader, fake_provider):
    from tokenmeter.openai import OpenAI

    meter = tokenmeter.make_meter(
        store="memory:", config={}, observers=[OpenTelemetryMetrics(provider=reader.provider)]
    )
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
    OpenTelemetryMetrics(provider=reader.provider)(call)
    (point,) = points(reader)["gen_ai.client.operation.duration"]
    assert point.attributes["gen_ai.provider.name"] == name


HERE = {"provider": "openai", "endpoint": "chat.completions"}
CHAT = {
    "object": "chat.completion",
    "model": "gpt-5-mini",
    "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
}


def record(meter, number, **attribution):
    with tokenmeter.attribute(**attribution):
        return meter.record({**CHAT, "id": f"chatcmpl-{number}"}, **HERE)


class TestReplacedEstimates:
    """A counter only rises: an answer adds what it is more than the estimate that it replaces; what is less is owed."""

    def told(self, reader, registry):
        """Calls, tokens and cost, by the scrape and by what OpenTelemetry exports."""
        seen, scraped = points(reader), {}
        for family in registry.collect():
            for sample in family.samples:
                name = (sample.name, sample.labels.get("type"))
                scraped[name] = scraped.get(name, 0) + sample.value
        tokens = dict.fromkeys(("input", "output"), 0)
        for point in seen["gen_ai.client.token.usage"]:
            tokens[point.attributes["gen_ai.token.type"]] += point.sum
        cost = sum(point.value for point in seen["tokenmeter.client.cost"])
        by_scrape = {kind: scraped.get(("tokenmeter_tokens_total", kind), 0) for kind in tokens}
        assert by_scrape == tokens
        assert scraped["tokenmeter_cost_usd_total", None] == pytest.approx(cost)
        return scraped["tokenmeter_calls_total", None], tokens["input"], tokens["output"], cost

    @pytest.fixture
    def registry(self):
        return pytest.importorskip("prometheus_client").CollectorRegistry()

    @pytest.fixture
    def meter(self, reader, registry):
        from tokenmeter.telemetry import PrometheusMetrics

        metrics = [
            OpenTelemetryMetrics(["status"], provider=reader.provider),
            PrometheusMetrics(registry=registry),
        ]
        return tokenmeter.make_meter(store="memory:", config={}, observers=metrics)

    @pytest.fixture
    def break_off(self, fake_provider, meter):
        """Break a stream off; its id, and when it was made."""
        from tokenmeter.openai import OpenAI

        def break_off():
            with OpenAI(base_url=fake_provider.openai_url, api_key="sk-metrics-test-0001") as client:
                tokenmeter.wrap(client, meter=meter)
                ask = [{"role": "user", "content": "Hi, how are you today? " * 20}]
                with client.chat.completions.create(model="gpt-5-mini", messages=ask, stream=True) as stream:
                    first = next(iter(stream))
            return {"id": first.id, "created": first.created}

        return break_off

    def reported(self, meter):
        totals = meter.report().totals
        used = totals.usage
        return totals.requests, used.input_tokens, used.output_tokens, pytest.approx(float(totals.billed_cost))

    def test_by_more_count_once_in_what_is_scraped(self, reader, registry, meter, break_off):
        whole = break_off()
        assert self.told(reader, registry) == self.reported(meter)
        assert meter.record({**CHAT, **whole}, **HERE) is not None
        assert self.told(reader, registry) == self.reported(meter) == (1, 1000, 100, pytest.approx(0.00045))

    def test_by_less_are_made_up_for_by_the_next_call_of_the_model(self, reader, registry, meter, break_off):
        whole = break_off()
        before = self.told(reader, registry)
        small = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        meter.record({**CHAT, **whole, "usage": small}, **HERE)
        after = self.told(reader, registry)
        assert all(now >= then for now, then in zip(after, before, strict=True)), "no counter falls"
        assert after[0] == 1
        assert after[1] > self.reported(meter)[1]
        record(meter, 1)
        assert self.told(reader, registry) == self.reported(meter)
        assert self.reported(meter)[:3] == (2, 1001, 101)

    def test_are_told_to_observers_before_their_answer_so_that_sums_of_entries_are_right(
        self, fake_provider, break_off, meter
    ):
        told = []
        meter._observers = (told.append,)
        whole = break_off()
        meter.record({**CHAT, **whole}, **HERE)
        assert [(one.kind, one.requests) for one in told] == [("usage", 1), ("reversal", -1), ("usage", 1)]
        assert sum(one.billed_cost for one in told) == meter.report().totals.billed_cost


class TestLabels:
    def test_nobody_is_named_unless_allowed(self, reader):
        meter = tokenmeter.make_meter(
            store="memory:", config={}, observers=[OpenTelemetryMetrics(["team", "tag:env"], provider=reader.provider)]
        )
        record(meter, 1, member="ada", team="search", route="/a", tags={"env": "prod", "x": "y"})
        record(meter, 2, member="grace")
        found = [dict(point.attributes) for point in points(reader)["tokenmeter.client.cost"]]
        own = {name: value for attributes in found for name, value in attributes.items() if name.startswith("tokenm")}
        assert own == {"tokenmeter.team": "search", "tokenmeter.tag.env": "prod"}
        assert len(found) == 2

    @pytest.mark.parametrize("name", ["nonsense", "tag:", "tag:a b", "tag:é", "entry_id", "", "attribution"])
    def test_what_is_no_label_is_refused_with_what_there_is(self, name):
        with pytest.raises(tokenmeter.ConfigurationError, match=r"allowed are member, .* and tag:NAME"):
            tokenmeter.make_meter(store="memory:", config={"metrics_labels": [name]})

    def test_what_no_metrics_are_is_refused(self):
        with pytest.raises(tokenmeter.ConfigurationError, match="metrics"):
            tokenmeter.make_meter(store="memory:", config={"metrics": "statsd"})


def test_gauges_are_read_from_the_last_meter_and_never_break_a_collection(reader):
    budgets = [tokenmeter.Budget(member="*", limit_requests=4, name="each"), tokenmeter.Budget(limit_usd=1, name="all")]
    for calls in (1, 3):
        metrics = OpenTelemetryMetrics(provider=reader.provider)
        meter = tokenmeter.make_meter(store="memory:", config={}, budgets=budgets)
        metrics.watch(meter)
        for number in range(calls):
            record(meter, number, member="ada")
        record(meter, "g", member="grace")
    seen = points(reader)
    used = {point.attributes["tokenmeter.budget"]: point.value for point in seen["tokenmeter.budget.used"]}
    assert used["each"] == 0.75, "the fullest of a budget's counters, without its member's name"
    assert 0 < used["all"] < 0.01
    assert [point.value for point in seen["tokenmeter.faults"]] == [0]
    assert [point.value for point in seen["tokenmeter.entries.waiting"]] == [0]
    meter.remaining = lambda: 1 / 0
    assert "tokenmeter.budget.used" not in points(reader)
    assert meter.faults == 1
    meter.close()
    assert reader.get_metrics_data() is None


class TestPrometheus:
    @pytest.fixture
    def registry(self):
        return pytest.importorskip("prometheus_client").CollectorRegistry()

    @pytest.fixture
    def make(self, registry):
        from tokenmeter.telemetry import PrometheusMetrics

        def make(*labels):
            metrics = PrometheusMetrics(labels, registry=registry)
            meter = tokenmeter.make_meter(
                store="memory:",
                config={},
                budgets=[tokenmeter.Budget(team="*", limit_requests=4, name="each")],
                observers=[metrics],
            )
            metrics.watch(meter)
            return meter

        return make

    def test_what_a_scrape_gives(self, registry, make):
        from prometheus_client import generate_latest

        meter = make("team", "tag:env")
        first = record(meter, 1, team="search", member="ada", tags={"env": "prod"})
        record(meter, 2, team="search", tags={"env": "prod"})
        meter.record({**CHAT, "model": "nobody-knows"}, **HERE)
        labels = {"provider": "openai", "model": "gpt-5-mini", "operation": "chat", "team": "search", "tag_env": "prod"}
        value = registry.get_sample_value
        assert value("tokenmeter_calls_total", {**labels, "status": "ok"}) == 2
        assert value("tokenmeter_tokens_total", {**labels, "type": "input"}) == 2000
        assert value("tokenmeter_tokens_total", {**labels, "type": "output"}) == 200
        assert value("tokenmeter_cost_usd_total", labels) == pytest.approx(2 * float(first.billed_cost))
        unknown = {**labels, "model": "nobody-knows", "team": "", "tag_env": ""}
        assert value("tokenmeter_unpriced_total", unknown) == 1
        assert value("tokenmeter_budget_used_ratio", {"budget": "each", "team": "search", "tag_env": ""}) == 0.5
        assert value("tokenmeter_faults") == 0
        assert value("tokenmeter_entries_waiting") == 0
        assert b"ada" not in generate_latest(registry)

    def test_a_meter_made_anew_goes_on_counting_and_other_labels_begin_anew(self, registry, make):
        plain = {"provider": "openai", "model": "gpt-5-mini", "operation": "chat", "status": "ok"}
        for number in range(2):
            record(make(), number)
        assert registry.get_sample_value("tokenmeter_calls_total", plain) == 2
        record(make("team"), 3, team="a")
        assert registry.get_sample_value("tokenmeter_calls_total", {**plain, "team": "a"}) == 1
        assert registry.get_sample_value("tokenmeter_calls_total", plain) is None

    def test_by_setting(self, fake_provider):
        import prometheus_client

        meter = tokenmeter.make_meter(store="memory:", config={}, metrics="prometheus", metrics_labels=["project"])
        record(meter, 1, project="by-setting")
        assert b'project="by-setting"' in prometheus_client.generate_latest()


class TestSpans:
    @pytest.fixture
    def exporter(self):
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter: Any = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        exporter.tracer = provider.get_tracer("test")
        exporter.told = lambda: {span.name: dict(span.attributes) for span in exporter.get_finished_spans()}
        return exporter

    @pytest.fixture
    def client(self, fake_provider):
        from tokenmeter.openai import OpenAI

        meter = tokenmeter.make_meter(store="memory:", config={}, traces=True)
        client: Any = OpenAI(base_url=fake_provider.openai_url, api_key="sk-spans-test-0001")
        with client:
            client.meter = meter
            yield tokenmeter.wrap(client, meter)

    ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}]}  # noqa: RUF012

    def test_the_active_span_says_what_its_calls_came_to(self, exporter, client):
        with exporter.tracer.start_as_current_span("request") as span:
            span.set_attribute("gen_ai.usage.input_tokens", 7)
            client.chat.completions.create(**self.ASK)
            client.chat.completions.create(**self.ASK)
        first, second = client.meter.entries()
        assert exporter.told()["request"] == {
            "gen_ai.usage.input_tokens": 7,
            "tokenmeter.calls": 2,
            "tokenmeter.input_tokens": first.usage.input_tokens + second.usage.input_tokens,
            "tokenmeter.output_tokens": first.usage.output_tokens + second.usage.output_tokens,
            "tokenmeter.list_cost": pytest.approx(float(first.list_cost + second.list_cost)),
            "tokenmeter.billed_cost": pytest.approx(float(first.billed_cost + second.billed_cost)),
            "tokenmeter.entry_ids": (first.entry_id, second.entry_id),
        }

    def test_an_answer_that_is_recorded_after_its_estimate_is_counted_once(self, exporter, client, fake_provider):
        import openai

        fake_provider.answer("one two three four five six seven eight nine ten " * 5)
        with exporter.tracer.start_as_current_span("request"), tokenmeter.attribute(member="ada") as block:
            stream = client.responses.create(model="gpt-5-mini", input="Hi", stream=True)
            for number, event in enumerate(stream):
                if number == 0:
                    asked = event.response.id
                if number == 6:
                    break
            stream.close()
            with openai.OpenAI(base_url=fake_provider.openai_url, api_key="sk-spans-test-0001") as plain:
                answer = plain.responses.retrieve(asked)
            client.meter.record(answer, provider="openai", endpoint="responses")
        told = exporter.told()["request"]
        entries = list(client.meter.entries())
        assert len(entries) == 3  # the estimate, what takes it back, and the answer
        assert told["tokenmeter.calls"] == block.requests == 1
        assert told["tokenmeter.output_tokens"] == answer.usage.output_tokens
        assert told["tokenmeter.billed_cost"] == pytest.approx(float(block.billed_cost))

    def test_a_stream_belongs_to_the_span_it_was_opened_in(self, exporter, client):
        with exporter.tracer.start_as_current_span("opened"):
            stream = client.chat.completions.create(**self.ASK, stream=True)
            with exporter.tracer.start_as_current_span("read"):
                assert list(stream)
        told = exporter.told()
        assert told["opened"]["tokenmeter.calls"] == 1
        assert told["read"] == {}

    def test_a_span_that_has_ended_and_no_span_at_all_are_left_alone(self, exporter, client):
        with exporter.tracer.start_as_current_span("ended"):
            stream = client.chat.completions.create(**self.ASK, stream=True)
        assert list(stream)
        client.chat.completions.create(**self.ASK)
        assert exporter.told() == {"ended": {}}
        assert client.meter.faults == 0
        assert len(list(client.meter.entries())) == 2

    def test_an_entry_names_its_trace_and_span_and_is_found_by_them(self, exporter, client):
        from tokenmeter.dimensions import DIMENSIONS

        spans = []
        for _ in range(2):  # the first call goes the general way, the second by a plan
            with exporter.tracer.start_as_current_span("request") as span:
                client.chat.completions.create(**self.ASK)
                list(client.chat.completions.create(**self.ASK, stream=True))
                spans.append(span.get_span_context())
        client.chat.completions.create(**self.ASK)
        meter = client.meter
        *traced, alone = meter.entries()
        assert [(entry.trace_id, entry.span_id) for entry in traced] == [
            (f"{here.trace_id:032x}", f"{here.span_id:016x}") for here in spans for _ in range(2)
        ]
        assert (alone.trace_id, alone.span_id) == (None, None)
        first, second = (f"{here.trace_id:032x}" for here in spans)
        assert list(meter.entries(where={"trace_id": first})) == traced[:2]
        assert list(meter.entries(where={"trace_id": None})) == [alone]
        found = meter.report(by="model", where={"trace_id": [first, second]}, period="today").totals
        assert (found.requests, found.billed_cost) == (4, sum(entry.billed_cost for entry in traced))
        assert "trace_id" not in DIMENSIONS
        with pytest.raises(tokenmeter.ConfigurationError, match="trace_id"):
            meter.report(by="trace_id")

    def test_a_trace_that_is_not_sampled_is_on_the_entry_all_the_same(self, client):
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

        here = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(0))
        with use_span(NonRecordingSpan(here)):
            client.chat.completions.create(**self.ASK)
        (entry,) = client.meter.entries()
        assert (entry.trace_id, entry.span_id) == (f"{0xABC:032x}", f"{0xDEF:016x}")
        assert client.meter.faults == 0

    def test_a_span_that_cannot_be_read_costs_no_entry(self, client, caplog):
        from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, use_span

        class Foreign(NonRecordingSpan):
            def get_span_context(self):
                raise RuntimeError("of another tracer")

        with use_span(Foreign(INVALID_SPAN_CONTEXT)):
            for _ in range(2):  # the first call goes the general way, the second by a plan
                client.chat.completions.create(**self.ASK)
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            client.meter.record(usage, provider="openai", endpoint="chat.completions", model="gpt-5-mini")
        assert [entry.trace_id for entry in client.meter.entries()] == [None] * 3
        assert caplog.text.count("The active span cannot be read") == 1

    def test_a_hold_that_expires_keeps_its_trace(self, exporter, fake_provider):
        budgets = [tokenmeter.Budget(limit_usd=5)]
        with closing(tokenmeter.make_meter(store="memory:", config={}, traces=True, budgets=budgets)) as meter:
            with exporter.tracer.start_as_current_span("request") as span:
                held = meter.hold(provider="openai", endpoint="chat.completions", request=self.ASK).__enter__()
            (reservation,) = meter.store.expired(meter.store.now() + timedelta(days=1))
            assert reservation.call.trace_id == f"{span.get_span_context().trace_id:032x}"
            held.__exit__(None, None, None)
