"""The Grafana dashboard asks only for metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "tokenmeter.json"


def test_every_panel_asks_for_metrics_and_labels_that_exist():
    prometheus = pytest.importorskip("prometheus_client")
    from tokenmeter.ledger import Entry, utcnow
    from tokenmeter.telemetry import PrometheusMetrics

    registry = prometheus.CollectorRegistry()
    PrometheusMetrics(registry=registry)(
        Entry(occurred_at=utcnow(), provider="openai", endpoint="responses", operation="chat", latency_us=1)
    )
    names = {sample.name for family in registry.collect() for sample in family.samples} | {
        "tokenmeter_tokens_total", "tokenmeter_cost_usd_total", "tokenmeter_unpriced_total",
        "tokenmeter_budget_used_ratio", "tokenmeter_faults", "tokenmeter_entries_waiting",
    }  # fmt: skip
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = {name for panel in panels for name in re.findall(r"tokenmeter_\w+", panel["targets"][0]["expr"])}
    assert asked <= names
    assert len({panel["id"] for panel in panels}) == len(panels) == 8
