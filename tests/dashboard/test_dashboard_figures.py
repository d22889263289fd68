"""What the dashboard makes of the ledger's figures."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tokenmeter.dashboard.chart import chart_data
from tokenmeter.dashboard.figures import change, decimals, exact, money, name, number, places, price_words, unit_amount
from tokenmeter.dashboard.memory import Memory
from tokenmeter.dashboard.overview import overview, savings
from tokenmeter.dashboard.view import MAX_BUCKETS, View, canonical
from tokenmeter.money import ZERO

NOW = datetime(2026, 11, 23, 13, 20, tzinfo=UTC)


def view(query="", **options):
    from urllib.parse import parse_qsl

    return View.parse(parse_qsl(query, keep_blank_values=True), now=NOW, **options)


@pytest.mark.parametrize(
    "query", ["period=last-7d", "period=2026-11", "period=all", "since=2026-11-01", "period=today"]
)
@pytest.mark.parametrize("tz", ["UTC", "Asia/Kathmandu", "America/New_York"])
def test_every_way_of_cutting_adds_up_to_the_total(meter, record, query, tz):
    for hours in (0, 1, 30, 200, 5000):
        record(at=NOW - timedelta(hours=hours, minutes=7), who={"member": f"m{hours % 7}"})
    seen = overview(meter.store, view(f"{query}&tz={tz}").bounded(meter.store))
    for part in (
        [bar.total for bar in seen.bars],
        [row for bar in seen.bars for row in bar.parts.values()],
        *(list(ranking.rows) for ranking in seen.rankings),
    ):
        assert sum((row.billed_cost for row in part), ZERO) == seen.totals.billed_cost
        assert sum(row.requests for row in part) == seen.totals.requests


def test_the_chart_shows_the_dearest_values_and_all_others_as_one(meter, record):
    """More values than colours: what is stacked is the total, credits included."""
    for place in range(9):
        record(at=NOW - timedelta(days=place % 3), who={"member": f"m{place}"}, output=100 * (place + 1))
    record(at=NOW, who={"member": "m0"}, fields={"billed_cost": Decimal("-0.01"), "kind": "adjustment"})
    chosen = view("period=last-7d&model=gpt-5-mini")
    seen = overview(meter.store, chosen)
    spend = chart_data(seen, chosen, "")["spend"]
    assert [one["name"] for one in spend] == ["m8", "m7", "m6", "m5", "m4", "m3", "others"]
    assert sum(Decimal(value) for one in spend for value in one["values"]) == seen.totals.billed_cost
    assert min(Decimal(value) for value in spend[-1]["values"]) < 0


def test_savings_are_the_cached_tokens_at_the_models_own_fresh_price_less_their_cost(meter, record):
    record(at=NOW, input=1_000_000, cache_read=1_000_000, output=1)
    record(at=NOW, model="claude-sonnet-4-5", provider="anthropic", input=1_000_000, cache_write_5m=1_000_000)
    found = savings(meter.store, view("period=2026-11"))
    assert found.list_cost == (Decimal("0.25") - Decimal("0.025")) + (Decimal(3) - Decimal("3.75"))
    assert found.unknown_tokens == 0


def test_cached_tokens_without_a_price_to_compare_with_are_said_not_guessed(meter, record):
    record(at=NOW, model="unheard-of-1", input=5, cache_read=70)
    record(at=NOW, model="gpt-5", cache_read=8, output=1)
    found = savings(meter.store, view("period=2026-11"))
    assert (found.list_cost, found.unknown_tokens) == (0, 78)


def test_a_running_period_is_compared_with_as_much_of_the_time_before():
    running, over = view("period=this-month").previous(), view("period=last-month").previous()
    assert (running.start, running.end) == (
        datetime(2026, 10, 9, 10, 30, tzinfo=UTC),
        datetime(2026, 11, 1, tzinfo=UTC),
    )
    assert (over.start, over.end) == (datetime(2026, 8, 31, tzinfo=UTC), datetime(2026, 10, 1, tzinfo=UTC))
    assert view("period=all").previous() is None


@pytest.mark.parametrize("query", ["period=2026&granularity=hour", "since=2000-01-01&until=2026-01-01&granularity=day"])
def test_more_bars_than_can_be_seen_are_made_coarser_and_it_is_said(query):
    cut, coarser = view(query).over_time()
    assert coarser
    assert (cut.period.end - cut.period.start) / timedelta(
        days={"day": 1, "week": 7, "month": 30}[cut.granularity]
    ) < MAX_BUCKETS


@pytest.mark.parametrize(
    "query", ["period=last-7d&tz=Asia%2FTokyo&member=a%26b&member=&tag%3Ax%3Dy=z", "since=2026-11-01"]
)
def test_the_url_of_a_view_makes_the_same_view(query):
    again = view(view(query).url()[1:])
    assert (again.query, again.filters, again.url()) == (view(query).query, view(query).filters, view(query).url())


def test_the_form_becomes_a_short_url():
    sent = [
        ("period", "last-7d"),
        ("granularity", ""),
        ("tz", "UTC"),
        ("since", ""),
        ("add", "member"),
        ("is", " ada "),
    ]
    assert canonical([*sent, ("apply", "1")]) == "period=last-7d&tz=UTC&member=ada"
    assert canonical([("add", "team"), ("is", ""), ("period", "today")]) == "period=today&team="
    assert canonical([("period", "last-7d"), ("since", "2026-11-01"), ("apply", "1")]) == "since=2026-11-01"
    assert canonical([("period", "today")]) is None


def test_figures_are_written_for_people():
    assert (money(None), money(Decimal("1234.5")), money(Decimal("0.00012"))) == ("unknown", "$1,234.50", "$0.00012")
    assert (exact(Decimal("3E-7")), exact(Decimal("1.50")), exact(None)) == ("0.0000003", "1.5", "unknown")
    assert (number(12345), number(Decimal("1234.50"))) == ("12,345", "1,234.5")
    assert (change(3, 2), change(1, 2), change(5, 5), change(5, 0), change(0, 0)) == (
        *("+50%", "-50%", "no change", "new", "no change"),
    )
    assert (change(Decimal(-9), Decimal(1)), change(2, Decimal(-1))) == ("less", "more")
    assert [exact(Decimal(text), decimals([Decimal("0.125"), None])) for text in ("1.5", "-2")] == ["1.500", "-2.000"]
    assert (places([Decimal("0.0042")]), places([Decimal("0.0042"), Decimal(-5000)])) == (4, 2)
    assert change(Decimal(40), Decimal(2)) == "20-fold"
    assert (unit_amount(Decimal("0.004"), "usd"), unit_amount(Decimal(9000), "tokens")) == ("$0.0040", "9,000 tokens")
    assert (name("a\u202eb"), name(None)) == ("a?b", "(not set)")


def test_a_charges_price_is_told_with_its_date_and_list(meter, record):
    entry = record(at=NOW, model="gpt-5")
    (row, since) = price_words(entry.charges[0].price_id)
    assert row == "openai/gpt-5/input"
    assert since.endswith(f"price list {meter.pricer.price_list_hash[:12]}")
    assert price_words(f"acme/m/input[tier=flex]@2026-10-01#{'a' * 12}*0.5*1.1") == [
        "acme/m/input[tier=flex] *0.5*1.1",
        f"in effect from 2026-10-01, price list {'a' * 12}",
    ]
    assert price_words("an importer's own") == ["an importer's own"]


def test_viewers_of_one_page_share_a_reading_and_a_failed_one_is_made_again():
    memory, made, gate = Memory(most=2), [], threading.Event()

    def make():
        gate.wait(5)
        made.append(1)
        return len(made)

    found = []
    viewers = [threading.Thread(target=lambda: found.append(memory.get("a", "7", make))) for _ in range(8)]
    for viewer in viewers:
        viewer.start()
    gate.set()
    for viewer in viewers:
        viewer.join()
    assert found == [1] * 8
    with pytest.raises(ZeroDivisionError):
        memory.get("b", "7", lambda: 1 // 0)
    assert memory.get("b", "7", lambda: 7) == 7
    assert memory.get("b", "8", lambda: 8) == 8
    assert memory.get("b", "8", lambda: 9) == 8
    memory.get("c", "8", lambda: 1)
    assert memory.get("a", "7", make) == 2  # the two asked for last are kept


def test_a_missing_extra_names_the_command_that_installs_it():
    code = "import sys; sys.modules['starlette'] = None; import tokenmeter.dashboard"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'tokenmeter-sdk[dashboard]'" in done.stderr
