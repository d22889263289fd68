"""What the dashboard makes of the ledger's figures."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import parse_qsl, urlencode

import pytest
from bs4 import BeautifulSoup

from tokenmeter.dashboard.chart import draw
from tokenmeter.dashboard.explore import REST, explore
from tokenmeter.dashboard.figures import (
    change,
    decimals,
    exact,
    money,
    name,
    number,
    places,
    price_words,
    share,
    unit_amount,
)
from tokenmeter.dashboard.overview import overview, savings
from tokenmeter.dashboard.questions import MEASURES, Question, figure_in
from tokenmeter.dashboard.reading import Memory, ReportReader
from tokenmeter.dashboard.view import MAX_BUCKETS, View, canonical, label_of_filter
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import ZERO
from tokenmeter.stores.engine import condition_on

NOW = datetime(2026, 11, 23, 13, 20, tzinfo=UTC)


def view(query="", **options):
    return View.parse(parse_qsl(query, keep_blank_values=True), now=NOW, **options)


@pytest.mark.parametrize(
    "query", ["period=last-7d", "period=2026-11", "period=all", "since=2026-11-01", "period=today"]
)
@pytest.mark.parametrize("tz", ["UTC", "Asia/Kathmandu", "America/New_York"])
def test_every_way_of_cutting_adds_up_to_the_total(meter, record, query, tz):
    for hours in (0, 1, 30, 200, 5000):
        record(at=NOW - timedelta(hours=hours, minutes=7), who={"member": f"m{hours % 7}"})
    seen = overview(ReportReader(meter.store), view(f"{query}&tz={tz}").bounded(meter.store))
    totals = seen.answer.totals
    for part in (seen.answer.by_bucket, seen.answer.rows, *(ranking.rows for ranking in seen.rankings)):
        assert sum((row.billed_cost for row in part), ZERO) == totals.billed_cost
        assert sum(row.requests for row in part) == totals.requests
    assert sum((cost for one in seen.answer.series for cost in one.points), ZERO) == totals.billed_cost


def test_the_chart_shows_the_dearest_values_and_all_others_as_one(meter, record):
    """More values than colours: what is stacked is the total, credits included."""
    for place in range(9):
        record(at=NOW - timedelta(days=place % 3), who={"member": f"m{place}"}, output=100 * (place + 1))
    record(at=NOW, who={"member": "m0"}, fields={"billed_cost": Decimal("-0.01"), "kind": "adjustment"})
    answer = asked(meter, "period=last-7d&by=member")
    assert [one.value for one in answer.series] == ["m8", "m7", "m6", "m5", "m4", "m3", None]
    assert answer.series[-1].key == REST
    assert sum((cost for one in answer.series for cost in one.points), ZERO) == answer.totals.billed_cost
    assert min(answer.series[-1].points) < 0
    drawn = draw(answer, "", lambda question: "?" + urlencode(list(question.items())))
    assert [key.name for key in drawn.legend][-1] == "all others"
    assert [key.url for key in drawn.legend][:2] == ["?by=member&hide=%3Dm8", "?by=member&hide=%3Dm7"]


def asked(meter, query, **options):
    items = parse_qsl(query, keep_blank_values=True)
    chosen = View.parse([pair for pair in items if pair[0] not in Question.NAMES], now=NOW)
    return explore(ReportReader(meter.store), chosen.bounded(meter.store), Question.parse(items), **options)


def test_the_bar_of_a_row_asks_for_no_other_rows_figure(meter, record):
    """A percentile is no field but worked out: of hundreds of rows each bar must not ask for all of them."""
    for place in range(9):
        record(at=NOW, who={"member": f"m{place}"}, output=100 * (place + 1))
    asked_of = []
    spend = MEASURES["spend"]
    counted = replace(spend, of=lambda row: (asked_of.append(row), spend.of(row))[1])
    today = view("period=today").bounded(meter.store)
    answer = explore(ReportReader(meter.store), today, Question(by="member", measure=counted))
    asked_of.clear()
    lengths = [answer.length(row) for row in answer.rows]
    assert len(asked_of) == len(answer.rows) == 9
    assert (lengths[0], min(lengths) > 0) == (100, True)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_every_measure_says_of_all_what_it_says_of_the_parts(meter, record, measure):
    took = {"latency_us": 2_000_000, "first_token_us": 500_000}
    record(at=NOW, who={"member": "ada"}, fields=took, input=600, cache_read=400, output=500)
    record(at=NOW, who={"member": "bob"}, fields={**took, "status": "error"}, input=200, output=100)
    answer = asked(meter, f"period=today&granularity=day&by=member&show={measure.name}")
    ada, bob = (next(one.whole for one in answer.series if one.value == name) for name in ("ada", "bob"))
    whole = measure.of(answer.totals)
    assert (whole == ada + bob) if measure.adds else min(ada, bob) <= whole <= max(ada, bob)
    assert all(one.points[-1] == one.whole for one in answer.series)


def test_percentiles_of_members_and_days_come_from_the_same_calls(meter, record):
    for days in range(3):
        for tenth in range(1, 101):
            took = {"latency_us": tenth * 10_000 * (days + 1), "first_token_us": tenth * 1000, "streamed": True}
            record(at=NOW - timedelta(days=days), who={"member": f"m{tenth % 2}"}, fields=took, output=100)
    answer = asked(meter, "period=last-7d&by=member&show=latency-p95&columns=first-token-p50,tokens-per-second")
    assert [round(value / 950) for value in [answer.question.measure.of(row) for row in answer.by_bucket][-3:]] == [
        3,
        2,
        1,
    ]
    assert answer.question.measure.of(answer.by_bucket[0]) is None
    near = dict(zip(("0", "1"), (abs(one.whole - 2550) / 2550 for one in answer.series), strict=True))
    assert max(near.values()) < Decimal("0.05")
    (first, second) = (figure_in(answer.rows[0], MEASURES[name]) for name in ("first-token-p50", "tokens-per-second"))
    assert first.endswith(" ms")
    assert Decimal(second.replace(",", "")) > 0
    drawn = draw(answer, "", lambda _: "")
    assert [tick.label for tick in drawn.up] == ["0 ms", "1 s", "2 s", "3 s"]
    assert drawn.data["words"] == "over all calls"


@pytest.mark.parametrize(
    ("output", "labels"),
    [
        (7_000, ["0", "2,000", "4,000", "6,000", "8,000"]),
        (19_000, ["0", "5k", "10k", "15k", "20k"]),
        (1_800_000, ["0", "0.5M", "1.0M", "1.5M", "2.0M"]),
        (190 * 10**12, ["0", "50T", "100T", "150T", "200T"]),
    ],
)
def test_the_marks_of_an_axis_are_in_one_unit_and_to_one_precision(meter, record, output, labels):
    """It was 50.0T below 100T, and 500k below 1.0M."""
    record(at=NOW, output=output)
    drawn = draw(asked(meter, "period=last-7d&show=output"), "", lambda _: "")
    assert [tick.label for tick in drawn.up] == labels


def test_how_long_calls_took_is_not_known_of_a_meter(meter, record):
    record(at=NOW, fields={"latency_us": 10})
    answer = asked(meter, "period=today&by=sku_meter&show=latency-p50")
    assert {one.whole for one in answer.series} == {None}


def test_tokens_are_told_apart_by_class(meter, record):
    record(at=NOW, input=600, cache_read=400, output=500)
    answer = asked(meter, "period=today&by=sku_meter&show=tokens")
    assert {one.value: one.whole for one in answer.series} == {"input": 600, "cache_read": 400, "output": 500}


def test_a_question_reads_back_from_its_address():
    text = (
        "by=tag%3Aenv&show=output&form=share&compare=none&hide=%3Dprod&hide=none&sort=-requests&find=pr&columns=errors"
    )
    question = Question.parse(parse_qsl(text))
    assert urlencode(list(question.items())) == text
    assert Question.parse(question.items()) == question
    assert (question.hidden, question.measure.name) == (("=prod", "none"), "output")


@pytest.mark.parametrize("wrong", ["show=fun", "form=pie", "columns=fun", "sort=fun", "by=fun"])
def test_a_question_that_is_not_known_is_refused_with_what_is(wrong):
    with pytest.raises(ConfigurationError, match=r"is one of|Known are|Did you mean"):
        Question.parse(parse_qsl(wrong))


def test_the_table_is_sorted_searched_and_says_how_many_there_are(meter, record):
    for member, tokens in (("ada", 900), ("adam", 500), ("bob", 700)):
        record(at=NOW, who={"member": member}, output=tokens)

    def names(query):
        return [row.group["member"] for row in asked(meter, f"period=today&by=member&{query}").rows]

    assert names("") == ["ada", "bob", "adam"]
    assert names("sort=-output") == ["adam", "bob", "ada"]
    assert names("sort=-value") == ["bob", "adam", "ada"]
    assert names("find=AD&sort=value") == ["ada", "adam"]
    answer = asked(meter, "period=today&by=member&find=bob")
    assert (answer.found, answer.totals.requests) == (1, 3)
    assert answer.share(answer.rows[0]).quantize(Decimal("0.001")) == Decimal("0.333")


def test_a_running_total_ends_at_the_total_and_stops_at_now(meter, record):
    for days in range(3):
        record(at=NOW - timedelta(days=days), output=100)
    answer = asked(meter, "period=this-month&form=running")
    told = draw(answer, "", lambda _: "").data["total"]
    assert told[22].startswith("$0.")
    assert told[23] == "\u2013"  # tomorrow
    assert draw(asked(meter, "period=last-7d"), "", lambda _: "").data["total"][-1] == "$0.00021"


def test_a_forecast_goes_by_the_same_weekdays_and_says_so(meter, record):
    """Weekdays of 1,000 tokens, free weekends: exactly as many more as weekdays are left."""
    for days in range(1, 29):
        at = NOW - timedelta(days=days)
        if at.weekday() < 5:
            record(at=at, output=1000)
    found = asked(meter, "period=this-month&show=output").forecast
    assert (found.so_far, found.expected) == (15_000, 21_000)  # 23 to 27 November and the 30th are left
    assert found.low == found.high == found.expected
    assert "same weekdays of the last 28 days" in found.words
    assert asked(meter, "period=last-month&show=output").forecast is None
    assert asked(meter, "since=2000-01-01&until=9000-01-01&show=output").forecast is None  # days of 7,000 years
    assert asked(meter, "since=2000-01-01&until=2027-10-01&show=output").forecast is not None


def test_a_forecast_needs_a_week_and_its_band_holds_what_differs(meter, record):
    for days in range(1, 7):
        record(at=NOW - timedelta(days=days), output=1000 * days)
    assert asked(meter, "period=this-month&show=output").forecast is None
    record(at=NOW - timedelta(days=7), output=1000)
    found = asked(meter, "period=this-month&show=output").forecast
    assert found.so_far <= found.low < found.expected < found.high
    assert "the days of the last 7 days" in found.words


def test_days_that_nobody_knows_the_cost_of_are_no_free_days_to_a_forecast(meter, record):
    for days in range(1, 29):
        at, free = NOW - timedelta(days=days), {} if days % 2 else {"model": "unheard-of-1"}
        record(at=at, output=1000, **free)
    found = asked(meter, "period=this-month").forecast
    assert found.expected == found.so_far / 11 * (11 + 8)  # eleven days of 22 had a price; eight are left, with today
    assert "the last 14 days" in found.words


def test_a_period_of_unknown_cost_has_no_forecast(meter, record):
    for days in range(10):
        record(at=NOW - timedelta(days=days), model="unheard-of-1")
    answer = asked(meter, "period=this-month")
    assert (answer.forecast, MEASURES["spend"].of(answer.totals)) == (None, None)


def test_a_request_costs_what_those_with_a_price_cost(meter, record):
    record(at=NOW, output=100)
    record(at=NOW, model="unheard-of-1", output=100)
    answer = asked(meter, "period=today&by=member")
    assert MEASURES["cost-per-request"].of(answer.totals) == MEASURES["spend"].of(answer.totals)


def test_a_meter_has_no_time_before_either(meter, record):
    for days in (0, 8):
        record(at=NOW - timedelta(days=days), fields={"latency_us": 1_000_000})
    assert draw(asked(meter, "by=sku_meter&show=latency-p95&period=last-7d"), "", lambda _: "").empty
    assert not draw(asked(meter, "by=model&show=latency-p95&period=last-7d"), "", lambda _: "").empty


def test_budget_lines_are_those_of_just_what_is_shown(make_meter, record):
    made = make_meter(
        [
            {"limit_usd": 30, "name": "all", "period": "month"},
            {"member": "ada", "limit_usd": 3, "name": "ada", "period": "day"},
            {"team": "x", "limit_usd": 9, "name": "x"},
        ]
    )
    here = made.budgets.remaining({}, NOW)

    def lines(query):
        return [(one.words, one.amount) for one in asked(made, query, balances=here).limits]

    assert lines("period=this-month") == [("even pace of all, by day", Decimal(1))]
    assert lines("period=this-month&form=running") == [("limit of all", Decimal(30))]
    assert lines("period=last-7d&form=running") == []
    assert lines("period=this-month&member=ada") == [("limit of ada", Decimal(3))]
    assert lines("period=this-month&show=tokens") == []


def test_the_lines_of_a_running_total_are_named(make_meter, record_in):
    made = make_meter([{"limit_usd": 30, "name": "all", "period": "month"}])
    for days in range(40):
        record_in(made, at=NOW - timedelta(days=days), who={"member": "ada"}, output=100_000 * (1 + days % 3))
    here = made.budgets.remaining({}, NOW)

    def lines(query):
        drawn = draw(asked(made, f"period=this-month&{query}", balances=here), "", lambda _: "")
        shapes = {css.removeprefix("line ") for css, _ in drawn.shapes if css.startswith("line ")}
        assert {line.css for line in drawn.lines} == shapes - ({key.css for key in drawn.legend})
        return [line.words for line in drawn.lines]

    ahead, limit = "what it may come to, with its band", "limit of all: $30.00"
    assert lines("form=running&by=member") == ["Spend so far", ahead, "the time before", limit]
    assert lines("form=running&by=member&compare=none") == ["Spend so far", ahead, limit]
    assert lines("form=running&show=requests")[0] == "Requests so far"
    assert lines("form=lines") == ["the time before", "even pace of all, by day: $1.00"]


@pytest.mark.parametrize(("cap", "drawn_to"), [(3, "$3"), (10, "$10"), (11, "$2"), (10**6, "$2")])
def test_a_limit_far_above_all_figures_is_named_and_leaves_them_their_height(make_meter, record_in, cap, drawn_to):
    made = make_meter([{"limit_usd": cap, "name": "all", "period": "day"}])
    record_in(made, at=NOW, fields={"billed_cost": Decimal(2), "cost_source": "billed"})
    asked_for = asked(made, "period=last-7d&compare=none", balances=made.budgets.remaining({}, NOW))
    drawn = draw(asked_for, "", lambda _: "")
    far = drawn_to == "$2"
    assert drawn.up[-1].label.removesuffix(".00") == drawn_to
    assert ("line limit" in [css for css, _ in drawn.shapes]) == (not far)
    assert [line.words for line in drawn.lines] == [f"limit of all: ${cap:,}.00" + ", beyond the chart" * far]
    asked_for = asked(made, "period=today&form=running&compare=none", balances=made.budgets.remaining({}, NOW))
    drawn = draw(asked_for, "", lambda _: "")  # a chart that is about the limit has it, along the top if it is far
    assert [css for css, _ in drawn.shapes if "limit" in css] == ["line limit beyond" if far else "line limit"]
    assert drawn.up[-1].label.removesuffix(".00") == drawn_to


@pytest.mark.parametrize(
    ("query", "marks"),
    [
        ("period=today", "23 Nov, 03:00, 06:00, 09:00, 12:00, 15:00, 18:00, 21:00"),
        ("period=last-7d&granularity=hour", "17 Nov, 18 Nov, 19 Nov, 20 Nov, 21 Nov, 22 Nov, 23 Nov"),
        ("period=this-month", "2 Nov, 9 Nov, 16 Nov, 23 Nov, 30 Nov"),
        ("since=2026-06-01&until=2026-11-01&granularity=day", "Jun 2026, Jul 2026, Aug 2026, Sep 2026, Oct 2026"),
        ("since=2024-01-01&until=2027-01-01", "Jan 2024, Jul 2024, Jan 2025, Jul 2025, Jan 2026, Jul 2026"),
    ],
)
def test_marks_of_time_stand_at_round_instants(meter, query, marks):
    drawn = draw(asked(meter, query), "", lambda _: "")
    assert ", ".join(tick.label for tick in drawn.across) == marks


def test_marks_of_money_are_round_and_reach_over_the_greatest(meter, record):
    record(at=NOW, fields={"billed_cost": Decimal("7.3"), "cost_source": "billed"})
    record(at=NOW - timedelta(days=1), fields={"billed_cost": Decimal("-1.1"), "kind": "adjustment"})
    drawn = draw(asked(meter, "period=last-7d"), "", lambda _: "")
    assert [tick.label for tick in drawn.up] == ["-$5", "$0", "$5", "$10"]
    assert [tick.at for tick in drawn.up] == ["100%", "66.6%", "33.3%", "0%"]


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


def test_a_tag_of_an_older_ledger_that_ends_as_is_not_does_is_followed_by_its_name():
    followed = view("member=ada&tag:paid!=no").with_filter("tag:paid!", "yes")
    assert followed.url() == "?period=last-30d&member=ada&tag%3Apaid%21=no&tag%3Apaid%21%3D=yes"
    assert view(followed.url()[1:]).filters == followed.filters
    assert [label_of_filter(name, ":") for name, _ in followed.filters] == ["member:", "tag paid is not", "tag paid!:"]
    assert [name for name, _ in followed.without_all("tag:paid!").filters] == ["member", "tag:paid!"]
    chosen = [(condition_on("tag:paid!"), "yes"), ("leave", "tag:paid!")]
    assert canonical(chosen) == "tag%3Apaid%21%21=yes"
    assert canonical([("add", "tag:paid!"), ("is", "yes")]) == "tag%3Apaid%21%3D=yes"


def test_the_form_becomes_a_short_url():
    sent = [
        ("period", "last-7d"),
        ("granularity", ""),
        ("tz", "UTC"),
        ("since", ""),
        ("add", "member"),
        ("is", " ada "),
    ]
    assert canonical([*sent, ("apply", "1")]) == "period=last-7d&member=ada"
    assert canonical([*sent, ("apply", "1")], tz="Asia/Tokyo") == "period=last-7d&tz=UTC&member=ada"
    assert canonical([("add", "team"), ("is", ""), ("period", "today")]) == "period=today&team="
    assert canonical([("period", "last-7d"), ("since", "2026-11-01"), ("apply", "1")]) == "since=2026-11-01"
    assert canonical([("period", "today")]) is None


def test_the_form_keeps_fractions_of_a_second(meter, record, serve):
    record(at=datetime(2026, 10, 24, 12, tzinfo=UTC))
    asked = {"since": "2026-10-24T11:00:00.25+00:00", "until": "2026-10-24T13:00:00.000001+00:00"}
    page = BeautifulSoup(serve(meter).get(f"/?{urlencode(asked)}")[2], "html.parser")
    form = page.find(id="more").find_parent("form")
    sent = [(one["name"], one.get("value", "")) for one in form.find_all("input")]
    again, meant = (view(query).query.period for query in (canonical(sent), urlencode(asked)))
    assert (again.start, again.end) == (meant.start, meant.end)


@pytest.mark.parametrize("offset", ["+02:00", "+01:00"])
def test_the_form_keeps_which_of_the_two_hours_is_meant_that_the_clocks_repeat(meter, record, serve, offset):
    for hours in (0, 1):
        record(at=datetime(2026, 10, 25, hours, 30, tzinfo=UTC), who={"member": f"m{hours}"})
    since, until = f"2026-10-25T02:00:00{offset}", f"2026-10-25T02:59:59{offset}"
    asked = {"since": since, "until": until, "tz": "Europe/Berlin"}
    page = BeautifulSoup(serve(meter).get(f"/?{urlencode(asked)}")[2], "html.parser")
    form = page.find(id="more").find_parent("form")
    sent = [(one["name"], one.get("value", "")) for one in form.find_all("input")]
    again, meant = (view(query).query.period for query in (canonical(sent), urlencode(asked)))
    assert (again.start, again.end) == (meant.start, meant.end)


def test_figures_are_written_for_people():
    assert (money(None), money(Decimal("1234.5")), money(Decimal("0.00012"))) == ("unknown", "$1,234.50", "$0.00012")
    assert (exact(Decimal("3E-7")), exact(Decimal("1.50")), exact(None)) == ("0.0000003", "1.5", "unknown")
    assert (number(12345), number(Decimal("1234.50"))) == ("12,345", "1,234.5")
    assert (change(3, 2), change(1, 2), change(5, 5), change(5, 0), change(0, 0)) == (
        *("+50%", "-50%", "no change", "new", "no change"),
    )
    assert (change(Decimal(-9), Decimal(1)), change(2, Decimal(-1))) == ("less", "more")
    assert [exact(Decimal(text), decimals([Decimal("0.125"), None])) for text in ("1.5", "-2")] == ["1.500", "-2.000"]
    assert (places([Decimal("0.0042")]), places([Decimal("0.0042"), Decimal(-5000)])) == (4, 4)
    assert change(Decimal(40), Decimal(2)) == "20-fold"
    assert (change(1, 1000), change(999, 1000), change(1001, 1000)) == (">99% less", "<1% less", "<1% more")
    assert (unit_amount(Decimal("0.004"), "usd"), unit_amount(Decimal(9000), "tokens")) == ("$0.004", "9,000 tokens")
    assert (unit_amount(ZERO, "usd"), unit_amount(Decimal("4E-8"), "usd")) == ("$0.00", "$0.00000004")
    assert unit_amount(Decimal("1.00368E-7"), "usd", mean=True) == "<$0.000001"
    assert unit_amount(Decimal("0.3"), "requests", mean=True) == "<1 request"
    assert unit_amount(Decimal("0.93"), "requests", mean=True) == "1 request"
    assert (share(None), share(Decimal("0.004"))) == ("\u2013", "<1%")
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
