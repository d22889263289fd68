"""Whatever is recorded, however it is cut and whichever way it leaves: the sums agree to the picodollar."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dimensions import DIMENSIONS, TOKEN_METERS, unit_of
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import to_dollars
from tokenmeter.periods import Period, buckets
from tokenmeter.reports import Query, export_entries, read_report
from tokenmeter.stores import packing
from tokenmeter.stores.sqlite import MemoryStore
from tokenmeter.usage import Usage


def build(store, **asked):
    return read_report(store, Query.parse(**asked))


COSTS = ("list_cost", "contracted_cost", "billed_cost")
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
)
BEGIN, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

names = st.sampled_from([None, "ada", "bob", "=cmd()", "李", 'quo"te, comma'])
moments = st.one_of(
    st.datetimes(BEGIN.replace(tzinfo=None), END.replace(tzinfo=None) - timedelta(microseconds=1)),
    # around the changes of daylight saving, where days have 23, 23.5, 24.5 or 25 hours
    st.integers(0, 8 * 3600).map(lambda s: datetime(2026, 3, 28, 22) + timedelta(seconds=s * 4)),  # noqa: DTZ001 - made aware below
    st.integers(0, 8 * 3600).map(lambda s: datetime(2026, 10, 24, 22) + timedelta(seconds=s * 4)),  # noqa: DTZ001 - made aware below
)
picodollars = st.integers(0, 10**15)


@st.composite
def charges(draw: st.DrawFn) -> Charge:
    meter = draw(st.sampled_from(TOKEN_METERS))
    priced = draw(st.integers(0, 9)) > 0
    costs = {name: to_dollars(draw(picodollars)) if priced else None for name in COSTS}
    return Charge(
        model=draw(st.sampled_from(["gpt-5", "claude-opus-4-1"])),
        sku_meter=meter,
        quantity=draw(st.integers(1, 10**9)),
        unit=unit_of(meter),
        list_unit_price=None,
        **costs,
    )


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    lines = draw(st.lists(charges(), max_size=4, unique_by=lambda line: line.sku_meter))
    known = {name: [getattr(line, name) for line in lines if line.billed_cost is not None] for name in COSTS}
    sums = {name: sum(amounts, Decimal(0)) if amounts else None for name, amounts in known.items()}
    return Entry(
        occurred_at=draw(moments).replace(tzinfo=UTC),
        provider=draw(st.sampled_from(["openai", "anthropic"])),
        endpoint="responses",
        operation="chat",
        response_model=draw(st.sampled_from(["gpt-5", "claude-opus-4-1", None])),
        status=draw(st.sampled_from(["ok", "ok", "error", "aborted"])),
        attribution=Attribution(member=draw(names), team=draw(names), end_user=draw(names), tags=draw(tags)),
        api_key=draw(st.sampled_from([None, ApiKey("a" * 32, "1234", "prod"), ApiKey("b" * 32, "5678")])),
        usage=Usage({line.sku_meter: line.quantity for line in lines}),
        charges=tuple(lines),
        cost_source="unpriced" if any(line.billed_cost is None for line in lines) else "computed" if lines else "none",
        **sums,
    )


tags = st.dictionaries(st.sampled_from(["env", "job"]), st.sampled_from(["a", "b"]), max_size=2)
ledgers = st.lists(entries(), max_size=25)


def ledger(recorded: list[Entry]) -> MemoryStore:
    store = MemoryStore()
    for entry in recorded:
        store.settle(entry)
    return store


def truth(recorded: list[Entry]) -> dict[str, Decimal]:
    return {name: sum((getattr(entry, name) or Decimal(0) for entry in recorded), Decimal(0)) for name in COSTS}


@few
@given(ledgers, st.lists(st.sampled_from([*DIMENSIONS, "tag:env"]), max_size=4, unique=True))
def test_the_sum_of_any_partition_is_the_total(recorded: list[Entry], by: list[str]) -> None:
    report = build(ledger(recorded), by=by)
    for name, amount in truth(recorded).items():
        assert sum((getattr(row, name) for row in report.rows), Decimal(0)) == amount
        assert getattr(report.totals, name) == amount
    assert report.totals.requests == len(recorded)
    assert report.totals.usage.quantities == Usage.total(entry.usage for entry in recorded).quantities


@few
@given(ledgers, st.sampled_from(ZONES), st.sampled_from(["hour", "day", "week", "month", "quarter", "year"]))
def test_every_calendar_in_every_zone_adds_up_to_the_total(recorded: list[Entry], tz: str, unit: str) -> None:
    report = build(ledger(recorded), by="member", granularity=unit, tz=tz)
    for name, amount in truth(recorded).items():
        assert sum((getattr(row, name) for row in report.rows), Decimal(0)) == amount
    for row in report.rows:
        assert row.requests == sum(
            entry.occurred_at in row.bucket and entry.attribution.member == row["member"] for entry in recorded
        )


@few
@given(ledgers, st.sampled_from(ZONES), st.sampled_from(["hour", "day", "week", "month"]))
def test_reports_of_the_parts_add_up_to_the_report_of_the_whole(recorded: list[Entry], tz: str, unit: str) -> None:
    store = ledger(recorded)
    whole = build(store, period=Period(datetime(2026, 10, 20, tzinfo=UTC), datetime(2026, 10, 30, tzinfo=UTC), tz))
    parts = [build(store, period=part) for part in buckets(whole.period, unit)]  # type: ignore[arg-type]
    assert sum((part.totals.billed_cost for part in parts), Decimal(0)) == whole.totals.billed_cost
    assert sum(part.totals.requests for part in parts) == whole.totals.requests


@settings(few, max_examples=20)
@given(
    ledgers,
    ledgers,
    st.sampled_from(ZONES),
    st.sampled_from(["day", "week", "month"]),
    st.sampled_from([(), ("member",), ("provider", "status")]),
)
def test_packed_sums_are_those_of_the_entries_also_of_late_ones(
    recorded: list[Entry], late: list[Entry], tz: str, unit: str, by: tuple[str, ...]
) -> None:
    """Each question is asked of rows, of what it packed, and of what was packed altogether."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_MANY", 1)
        patch.setattr(packing, "_DENSE", 0)
        store = ledger(recorded)
        for known in (recorded, recorded + late):
            for time in range(3):
                if time == 2:
                    store.pack()
                report = build(store, by=by, granularity=unit, tz=tz, since="2025-12-31", until="2027-01-02")
                for name, amount in truth(known).items():
                    assert getattr(report.totals, name) == amount
                for row in report.rows:
                    inside = [entry for entry in known if entry.occurred_at in row.bucket and belongs(entry, row, by)]
                    assert row.requests == len(inside)
                    assert truth(inside) == {name: getattr(row, name) for name in COSTS}
            for entry in late if known is recorded else ():
                store.settle(entry)
        assert store.verify().ok
        store.close()


def belongs(entry: Entry, row: Any, by: tuple[str, ...]) -> bool:
    values = {"member": entry.attribution.member, "provider": entry.provider, "status": entry.status}
    return all(values[name] == row[name] for name in by)


def parsed(text: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(text)))


def money(records: list[dict[str, Any]], name: str) -> Decimal:
    return sum((Decimal(record[name]) for record in records if record[name] not in (None, "")), Decimal(0))


@settings(few, max_examples=25)
@given(
    ledgers, st.sampled_from(ZONES), st.sampled_from([(), ("member",), ("model", "sku_meter"), ("end_user", "tag:env")])
)
def test_report_csv_jsonl_parquet_and_focus_agree(recorded: list[Entry], tz: str, by: tuple[str, ...]) -> None:
    store = ledger(recorded)
    report = build(store, by=by, since="2026-03-01", until="2026-11-01", tz=tz)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        report.to_parquet(place / "report.parquet")
        report.to_focus(place)
        query = Query.parse(since="2026-03-01", until="2026-11-01", tz=tz)
        export_entries(store, place / "entries.jsonl", query=query)
        tables = [
            parsed(report.to_csv()),
            [json.loads(line) for line in report.to_jsonl().splitlines()],
            pyarrow.parquet.read_table(place / "report.parquet").to_pylist(),
            [json.loads(line) for line in (place / "entries.jsonl").read_text().splitlines()],
        ]
        focus = parsed((place / "cost_and_usage.csv").read_text())
        invoices = parsed((place / "invoice_detail.csv").read_text())
    for name in COSTS:
        for table in tables:
            assert money(table, name) == getattr(report.totals, name)
    assert money(focus, "ListCost") == report.totals.list_cost
    assert money(focus, "ContractedCost") == report.totals.contracted_cost
    assert money(focus, "BilledCost") == money(invoices, "BilledCost") == report.totals.billed_cost
    assert sum(Decimal(row["x_Quantity"]) for row in focus) == sum(map(int, report.totals.usage.quantities.values()))
