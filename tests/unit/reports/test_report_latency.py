"""How long calls took, as a report says it: rows, totals, tables, exports."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.money import magnitude, multiply, subtract
from tokenmeter.reports import Query, read_report
from tokenmeter.stores.sqlite import MemoryStore
from tokenmeter.usage import Usage

START = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.fixture
def store():
    store = MemoryStore()
    for number in range(100):
        store.settle(
            Entry(
                occurred_at=START + timedelta(hours=number),
                provider="openai",
                endpoint="chat.completions",
                operation="chat",
                request_model="quick" if number % 2 else "slow",
                latency_us=1_000_000 if number % 2 else 8_000_000,
                first_token_us=500_000 if number % 2 else None,
                usage=Usage({"input": 5, "output": 100}),
            )
        )
    yield store
    store.close()


def read(store, **asked):
    return read_report(store, Query.parse(latency=True, **asked))


def near(found, exact):
    return magnitude(subtract(found, exact)) <= multiply(exact, Decimal("0.022"))


def test_rows_and_totals_have_percentiles_of_their_calls(store):
    report = read(store, by="model")
    rows = {row["model"]: row for row in report.rows}
    assert near(rows["quick"].latency_p99_us, 1_000_000)
    assert near(rows["slow"].latency_p50_us, 8_000_000)
    assert (rows["slow"].first_token_p50_us, rows["quick"].output_tokens_per_second) == (None, 200)
    assert report.totals.latency.duration.count == 100
    assert near(report.totals.latency_p50_us, 1_000_000)
    assert near(report.totals.latency_p95_us, 8_000_000)


def test_each_bucket_has_its_own(store):
    report = read(store, granularity="day", tz="Europe/Berlin")
    assert sum(row.latency.duration.count for row in report.rows) == 100
    assert all(row.latency.duration.count == row.requests for row in report.rows)


def test_the_table_shows_them_when_asked(store):
    text = read(store, by="model").to_text(width=160)
    heads = ("p50", "p95", "p99", "first token p50", "first token p95", "tokens/s")
    assert all(head in text.splitlines()[2] for head in heads)
    assert "7.86 s" in text
    assert "p95" not in read_report(store, Query.parse(by="model")).to_text(width=160)


def test_exports_have_a_column_for_each(store):
    report = read(store, by="model")
    line = json.loads(report.to_jsonl().splitlines()[0])
    assert line["latency_p50_us"] == report.rows[0].latency_p50_us
    assert "latency_p50_us" in report.to_dict()["totals"]
    assert "latency_p50_us" not in read_report(store, Query.parse()).to_dict()["totals"]


def test_a_filter_asks_the_calls_that_went_well(store):
    assert read(store, where={"status": "error"}).rows == ()


def test_meters_have_no_times(store):
    with pytest.raises(ConfigurationError, match="sku_meter"):
        read(store, by="sku_meter")
