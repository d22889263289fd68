"""The Grafana dashboard asks only for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from urllib.request import urlopen

import pytest

import tokenmeter

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "tokenmeter.json"


@pytest.fixture
def scraped():
    """Name of a sample -> its labels, from `/metrics` of a program that made a call of which a part has no price."""
    prometheus = pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from tokenmeter.ledger import Entry, utcnow
    from tokenmeter.telemetry import PrometheusMetrics
    from tokenmeter.usage import Usage

    registry = prometheus.CollectorRegistry()
    metrics = PrometheusMetrics(registry=registry)
    meter = tokenmeter.make_meter(store="memory:", config={}, budgets=[{"limit_requests": 10}])
    metrics.watch(meter)
    metrics(
        Entry(
            occurred_at=utcnow(), provider="openai", endpoint="responses", operation="chat", latency_us=1,
            usage=Usage({"input": 1, "output": 1}), billed_cost=Decimal("0.01"), cost_source="unpriced",
        )
    )  # fmt: skip
    server, thread = prometheus.start_http_server(0, "127.0.0.1", registry)
    with urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    server.shutdown()
    server.server_close()
    thread.join()
    meter.close()
    return {one.name: set(one.labels) for family in text_string_to_metric_families(text) for one in family.samples}


def test_every_panel_asks_for_metrics_and_labels_that_exist(scraped):
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    for expression in (panel["targets"][0]["expr"] for panel in panels):
        asked = re.findall(r"tokenmeter_\w+", expression)
        assert asked
        assert set(asked) <= scraped.keys()
        groups = re.findall(r"(?:by|ignoring) \(([\w, ]+)\)", expression)
        assert {name for group in groups for name in group.split(", ")} <= set.union(*(scraped[one] for one in asked))
    assert len({panel["id"] for panel in panels}) == len(panels) == 8
