from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation, localcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tokenmeter.api import Meter
from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.money import ZERO, ratio, total
from tokenmeter.reports import Query, export_charges, export_entries, read_entries, read_report
from tokenmeter.stores.base import Store


def build(store, **asked):
    return read_report(store, Query.parse(**asked))


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_a_report_sums_requests_tokens_and_costs_per_group(month: Store) -> None:
    report = build(month, by="member", period="2026-11")
    ada = next(row for row in report.rows if row["member"] == "ada")
    assert (ada.requests, ada.errors, ada.unpriced, ada.estimated) == (2, 0, 1, 0)
    assert ada.usage["input"] == 650
    assert ada.input_tokens == 1_050
    assert ada.output_tokens == 505
    assert ada.cached_share == ratio(400, 1_050)
    assert ada.list_cost == Decimal("0.00116")
    assert ada.billed_cost == Decimal("0.001218")


def test_totals_are_the_sum_of_the_rows(month: Store) -> None:
    report = build(month, by=["member", "model"], period="2026-11")
    assert report.totals.requests == sum(row.requests for row in report.rows) == 6
    assert report.totals.billed_cost == total(row.billed_cost for row in report.rows)
    assert report.totals.usage["output"] == 534
    assert report.totals.usage["web_searches"] == 2


def test_rows_come_dearest_first(month: Store) -> None:
    report = build(month, by="model", period="2026-11")
    assert [row["model"] for row in report.rows] == ["claude-opus-4-1", "gpt-5-mini", "unheard-of"]


def test_rows_with_a_granularity_come_in_order_of_time_then_dearest_first(month: Store) -> None:
    report = build(month, by="member", period="2026-11", granularity="day")
    assert [(row.bucket.label, row["member"]) for row in report.rows][:4] == [
        ("2026-11-02", "bob"),
        ("2026-11-02", "ada"),
        ("2026-11-03", "bob"),
        ("2026-11-03", None),
    ]


@pytest.mark.parametrize("dimension", [*DIMENSIONS, "tag:env"])
def test_every_dimension_partitions_the_total(month: Store, dimension: str) -> None:
    report = build(month, by=dimension)
    assert total(row.billed_cost for row in report.rows) == build(month).totals.billed_cost
    assert sum(row.usage["input"] for row in report.rows) == build(month).totals.usage["input"]


def test_a_split_by_meter_counts_each_request_once_in_the_totals(month: Store) -> None:
    report = build(month, by="sku_meter", period="2026-11")
    assert report.totals.requests == 6
    assert sum(row.requests for row in report.rows) > 6
    assert report.totals.billed_cost == build(month, period="2026-11").totals.billed_cost


def test_filters_accept_a_value_several_values_and_not_set(month: Store) -> None:
    def requests(**where: object) -> int:
        return build(month, period="2026-11", where=where).totals.requests

    assert requests(member="ada") == 2
    assert requests(member=["ada", "bob"]) == 4
    assert requests(member=None) == 1
    assert requests(member=["ada", None], model="unheard-of") == 1
    assert build(month, where={"tag:env": "prod"}).totals.requests == 3


def test_the_calendar_is_cut_in_the_given_time_zone(month: Store) -> None:
    assert build(month, period="2026-11", tz="UTC").totals.requests == 6
    assert build(month, period="2026-11", tz="Asia/Kathmandu").totals.requests == 6
    assert build(month, period="2026-10", tz="Asia/Kathmandu").totals.requests == 0
    days = build(month, by=(), period="2026-11", tz="America/New_York", granularity="day")
    assert "2026-11-02" in [row.bucket.label for row in days.rows]
    assert "2026-11-03" in [row.bucket.label for row in days.rows]


def test_the_hour_that_daylight_saving_repeats_is_told_apart(store: Store, make_entry: Callable[..., Entry]) -> None:
    for at in ("2026-10-25T00:30", "2026-10-25T01:30"):
        store.settle(make_entry(at, input=1))
    report = build(store, period="2026-10-25", granularity="hour", tz="Europe/Berlin")
    assert [row.bucket.label for row in report.rows] == ["2026-10-25T02:00+0200", "2026-10-25T02:00+0100"]


def test_open_ends_take_their_calendar_from_the_ledger(month: Store) -> None:
    report = build(month, granularity="month")
    assert [(row.bucket.label, row.requests) for row in report.rows] == [("2026-10", 1), ("2026-11", 6)]
    assert sum(row.requests for row in build(month, since="2026-11-03", granularity="day").rows) == 4


def test_since_is_inclusive_and_until_exclusive(month: Store) -> None:
    assert build(month, since="2026-11-02T10:00", until="2026-11-02T11:00").totals.requests == 1
    assert build(month, since=date(2026, 11, 3), until=date(2026, 11, 4)).totals.requests == 2


def test_relative_periods_count_from_now(month: Store) -> None:
    assert build(month, period="this-month", now=NOW).totals.requests == 6
    assert build(month, period="last-month", now=NOW).period.label == "2026-10"
    assert build(month, period="last-24h", now=NOW).totals.requests == 0


def test_an_entry_is_in_the_next_report(store: Store, make_entry: Callable[..., Entry]) -> None:
    for count in range(1, 4):
        store.settle(make_entry(input=1))
        assert build(store, by="model").totals.requests == count


def test_unknown_cost_is_not_zero(month: Store) -> None:
    row = next(row for row in build(month, by="model").rows if row["model"] == "unheard-of")
    assert not row.cost_known
    assert row.to_dict()["billed_cost"] is None
    assert row.usage["input"] == 50


def test_dimensions_are_given_as_text_or_list(month: Store) -> None:
    assert build(month, by="member, model").by == ("member", "model")
    assert build(month, by=["member", "model", "member"]).by == ("member", "model")


def test_all_is_the_period_of_who_names_none():
    assert Query.parse(by="member", period=" all ") == Query.parse(by="member")
    with pytest.raises(ConfigurationError, match="not both"):
        Query.parse(by="member", period="all", since="2026-11-01")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"by": "modle"}, "Did you mean 'model'"),
        ({"by": "key"}, "'api_key'"),
        ({"by": "env"}, "'tag:env'"),
        ({"by": ""}, "Known are provider"),
        ({"by": [3]}, "named by a text"),
        ({"where": {"membr": "ada"}}, "Did you mean 'member'"),
        ({"where": {"member": []}}, "leave the filter out"),
        ({"where": {"member": 3}}, "takes texts"),
        ({"period": "2026-11", "since": "2026-11-01"}, "not both"),
        ({"since": "2026-12-01", "until": "2026-11-01"}, "swap them"),
        ({"since": "2026-12-01", "until": "2026-12-01"}, "is empty"),
        ({"period": "November"}, "'2026-11'"),
        ({"since": "yesterday-ish"}, "is not an instant"),
        ({"granularity": "fortnight"}, "hour, day, week"),
        ({"tz": "Mars/Olympus"}, "IANA"),
        ({"by": 5}, "list of names"),
        ({"where": ["member"]}, "mapping"),
        ({"since": 5}, "ISO 8601"),
        ({"since": date(1, 1, 1), "tz": "Asia/Tokyo"}, "years 1 to 9999"),
        ({"until": "9999-12-31T23:59", "tz": "America/New_York"}, "years 1 to 9999"),
        ({"period": "9999-12-31"}, "Unknown period"),
        ({"period": "0001", "tz": "Asia/Tokyo"}, "years 1 to 9999"),
    ],
)
def test_what_cannot_be_asked_is_answered_with_what_can(store: Store, arguments: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigurationError, match=r".*") as error:
        build(store, **arguments)  # type: ignore[arg-type]
    assert hint in str(error.value)


def test_entries_are_checked_at_once_and_read_lazily(month: Store) -> None:
    meter = SimpleNamespace(catch_up=lambda: month)
    with pytest.raises(ConfigurationError):
        Meter.entries(meter, where={"membr": "ada"})
    found = Meter.entries(meter, period="2026-11", where={"member": "bob"}, newest_first=True)
    assert iter(found) is found
    assert [entry.occurred_at.day for entry in found] == [3, 2]


def test_a_report_survives_pickling_without_its_store(month: Store) -> None:
    report = build(month, by="member", period="2026-11")
    again = pickle.loads(pickle.dumps(report))  # noqa: S301 - our own bytes
    assert again == report
    assert again.source is None
    assert str(again) == str(report)
    assert again.to_csv() == report.to_csv()


def test_a_report_and_its_rows_are_a_line_in_a_console(month: Store) -> None:
    report = build(month, by="member", period="2026-11")
    assert repr(report) == "<Report by member, 2026-11 (UTC): 4 rows, 6 requests, $0.0565 billed>"
    assert repr(report.rows[0]) == "<Row 2026-11 member=bob: 2 requests, $0.05524575 billed>"


def test_a_filter_on_a_meter_means_one_thing_on_every_output(month: Store, tmp_path: Path) -> None:
    where = {"sku_meter": "output"}
    report = build(month, where=where)
    query = Query.parse(where=where)
    entries = list(read_entries(month, query))
    assert 0 < report.totals.billed_cost < build(month).totals.billed_cost
    assert total(entry.billed_cost or ZERO for entry in entries) == report.totals.billed_cost
    assert sum(entry.usage["output"] for entry in entries) == report.totals.usage["output"]
    assert len(entries) == report.totals.requests
    manifests = {
        "entries": export_entries(month, tmp_path / "entries.csv", query=query),
        "charges": export_charges(month, tmp_path / "charges.csv", query=query),
        "report": report.export(tmp_path / "report.csv"),
    }
    written = {name: Decimal(manifest.control_totals["billed_cost"]) for name, manifest in manifests.items()}
    focus = report.to_focus(tmp_path / "focus")["cost_and_usage"]
    assert set(written.values()) == {Decimal(focus.control_totals["BilledCost"])} == {report.totals.billed_cost}


@pytest.mark.parametrize("meters", [["output"], ["input", "output"], [None], ["input", None]])
def test_several_meters_and_cost_that_none_explains_add_up_in_entries_too(
    month: Store, make_entry: Callable[..., Entry], meters: list[str | None]
) -> None:
    month.settle(make_entry("2026-11-20T10:00", fields={"kind": "adjustment", "billed_cost": Decimal("1.5")}))
    report = build(month, where={"sku_meter": meters})
    entries = read_entries(month, Query.parse(where={"sku_meter": meters}))
    assert total(entry.billed_cost or ZERO for entry in entries) == report.totals.billed_cost


def test_nothing_shown_depends_on_the_callers_decimal_context(month: Store, tmp_path: Path) -> None:
    report = build(month, by="member", period="2026-11")
    plain = (str(report), report.to_csv(), report.to_dict(), repr(report.rows), report.plot().to_json())
    with localcontext(Context(prec=3, traps=[Inexact, InvalidOperation])):
        again = build(month, by="member", period="2026-11")
        assert (str(again), again.to_csv(), repr(again.rows), again.plot().to_json()) == (*plain[:2], *plain[3:])
        assert again.rows == report.rows
        again.to_focus(tmp_path / "focus")


def test_to_dict_is_json_ready_and_exact(month: Store) -> None:
    report = build(month, by="member", period="2026-11", where={"member": "ada"}).to_dict()
    assert report["period"] == {
        "label": "2026-11",
        "start": "2026-11-01T00:00:00+00:00",
        "end": "2026-12-01T00:00:00+00:00",
        "tz": "UTC",
    }
    assert report["totals"]["billed_cost"] == "0.001218000000"
    assert report["rows"][0]["quantities"] == {"input": 650, "cache_read": 400, "output": 505}
    assert build(month).to_dict()["period"]["start"] is None


def test_meters_are_told_in_one_order_however_a_store_gives_them(month: Store) -> None:
    report = build(month, by="model")
    amounts = {"my_meter": 1, "web_searches": 2, "output": 3, "container_sessions": 4, "input": 5, "a_meter": 6}
    told = []
    for given in (amounts, dict(reversed(amounts.items()))):
        rows = tuple(replace(row, usage=replace(row.usage, quantities=given)) for row in report.rows)
        totals = replace(report.totals, usage=replace(report.totals.usage, quantities=given))
        made = replace(report, rows=rows, totals=totals)
        told.append((str(made), [list(row.to_dict()["quantities"]) for row in made.rows]))
    assert told[0] == told[1]
    assert told[0][1][0] == ["input", "output", "web_searches", "container_sessions", "a_meter", "my_meter"]


def test_a_query_without_conditions_covers_all_time() -> None:
    assert Query().filter.since is None
    assert Query.parse().filter.until is None


def test_bookkeeping_without_usage_or_cost_makes_no_row(store: Store, make_entry: Callable[..., Entry]) -> None:
    store.settle(make_entry(who={"member": "ada"}, input=1))
    store.settle(make_entry(fields={"kind": "adjustment", "billed_cost": Decimal(0)}))
    assert [row["member"] for row in build(store, by="member").rows] == ["ada"]


def test_centuries_cut_into_hours_cost_no_more_than_the_hours_in_use(month: Store) -> None:
    report = build(month, by="member", granularity="hour", since="1900-01-01", until="2900-01-01")
    assert report.totals == replace(build(month).totals, bucket=report.totals.bucket)
    assert report.rows[0].bucket.label == "2026-10-31T23:00"


def test_a_period_within_a_bucket_keeps_its_own_ends_and_entries(month: Store) -> None:
    report = build(month, granularity="day", since="2026-11-02T10:30", until="2026-11-03T06:00")
    assert [row.requests for row in report.rows] == [1, 1]
    assert report.rows[0].bucket.start == datetime(2026, 11, 2, 10, 30, tzinfo=UTC)
    assert report.rows[-1].bucket.end == datetime(2026, 11, 3, 6, tzinfo=UTC)


def test_the_last_instant_there_is_means_no_end(month: Store) -> None:
    assert build(month, until=datetime.max.replace(tzinfo=UTC)).totals.requests == build(month).totals.requests
