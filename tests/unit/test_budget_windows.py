"""Windows are cut by the calendar of a zone, whatever daylight saving and month ends do."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenmeter.budgets.windows import ROLLING_STEPS, Window
from tokenmeter.stores.slots import from_microseconds, to_microseconds

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Sao_Paulo"]
MOMENTS = st.datetimes(datetime(2015, 1, 1), datetime(2035, 1, 1)).map(lambda naive: naive.replace(tzinfo=UTC))  # noqa: DTZ001
CALENDAR = ["hour", "day", "week", "month", "quarter", "year"]


def span(window, moment):
    start, end = window.span(to_microseconds(moment))
    return from_microseconds(start), from_microseconds(end)


def at(zone, *parts):
    return datetime(*parts, tzinfo=ZoneInfo(zone)).astimezone(UTC)


@pytest.mark.parametrize(
    ("period", "zone", "moment", "start", "end"),
    [
        # the day clocks go forward in New York has 23 hours, the day they go back 25
        ("day", "America/New_York", (2026, 3, 8, 12), (2026, 3, 8), (2026, 3, 9)),
        ("day", "America/New_York", (2026, 11, 1, 12), (2026, 11, 1), (2026, 11, 2)),
        # Lord Howe moves by half an hour
        ("day", "Australia/Lord_Howe", (2026, 4, 5, 12), (2026, 4, 5), (2026, 4, 6)),
        ("month", "Europe/Berlin", (2026, 3, 31, 23, 59), (2026, 3, 1), (2026, 4, 1)),
        ("month", "Asia/Kathmandu", (2028, 2, 29, 0, 0), (2028, 2, 1), (2028, 3, 1)),
        ("month", "UTC", (2026, 12, 31, 23, 59), (2026, 12, 1), (2027, 1, 1)),
        ("quarter", "America/Sao_Paulo", (2026, 5, 2), (2026, 4, 1), (2026, 7, 1)),
        ("year", "Europe/Berlin", (2026, 6, 1), (2026, 1, 1), (2027, 1, 1)),
        ("week", "Europe/Berlin", (2026, 3, 29, 12), (2026, 3, 23), (2026, 3, 30)),
    ],
)
def test_a_calendar_window_starts_and_ends_at_local_midnight(period, zone, moment, start, end):
    assert span(Window(period, zone), at(zone, *moment)) == (at(zone, *start), at(zone, *end))


def test_days_across_daylight_saving_are_23_and_25_hours_long():
    window = Window("day", "America/New_York")
    noons = [at("America/New_York", 2026, *day, 12) for day in [(3, 8), (11, 1)]]
    lengths = [end - start for start, end in (span(window, noon) for noon in noons)]
    assert lengths == [timedelta(hours=23), timedelta(hours=25)]


@pytest.mark.parametrize("first", [datetime(2026, 4, 4, 13, tzinfo=UTC), datetime(2026, 10, 3, 13, 30, tzinfo=UTC)])
def test_hours_are_cut_where_clocks_are_set_by_half_an_hour(first):
    window, moment, lengths = Window("hour", "Australia/Lord_Howe"), first, []
    for _ in range(4):
        start, end = span(window, moment)
        assert start == moment
        assert span(window, end - timedelta(microseconds=1)) == (start, end)
        lengths.append((end - start) // timedelta(minutes=1))
        moment = end
    assert lengths == [60, 60, 30, 60]


def test_a_week_may_start_on_sunday():
    window = Window("week", "UTC", week_start=6)
    assert span(window, datetime(2026, 11, 23, tzinfo=UTC))[0] == datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "moment", "start", "end"),
    [
        (15, (2026, 3, 14, 23), (2026, 2, 15), (2026, 3, 15)),
        (15, (2026, 3, 15), (2026, 3, 15), (2026, 4, 15)),
        (31, (2026, 2, 27), (2026, 1, 31), (2026, 2, 28)),
        (31, (2026, 2, 28), (2026, 2, 28), (2026, 3, 31)),
        (31, (2028, 2, 29), (2028, 2, 29), (2028, 3, 31)),
        (30, (2026, 1, 5), (2025, 12, 30), (2026, 1, 30)),
    ],
)
def test_an_anchored_month_begins_on_its_day_or_the_months_last(anchor, moment, start, end):
    zone = "Europe/Berlin"
    assert span(Window("month", zone, anchor=anchor), at(zone, *moment)) == (at(zone, *start), at(zone, *end))


def test_an_anchored_year_and_quarter_begin_in_january_and_every_third_month():
    moment = datetime(2026, 1, 5, tzinfo=UTC)
    year = span(Window("year", anchor=10), moment)
    assert year == (datetime(2025, 1, 10, tzinfo=UTC), datetime(2026, 1, 10, tzinfo=UTC))
    assert span(Window("quarter", anchor=10), moment)[0] == datetime(2025, 10, 10, tzinfo=UTC)


@given(MOMENTS, st.sampled_from(CALENDAR), st.sampled_from(ZONES), st.integers(1, 31), st.integers(0, 23))
@example(datetime(2011, 12, 30, 11, tzinfo=UTC), "day", "Pacific/Apia", 1, 2)  # the day that Samoa left out
@example(datetime(2011, 12, 30, 11, tzinfo=UTC), "month", "Pacific/Apia", 31, 2)
def test_windows_hold_their_moment_and_touch_without_gap_or_overlap(moment, period, zone, anchor, hour):
    anchor = anchor if period in {"month", "quarter", "year"} else 1
    window = Window(period, zone, anchor=anchor, reset_hour=0 if period == "hour" else hour)
    start, end = span(window, moment)
    assert start <= moment < end
    assert span(window, start) == (start, end)
    assert span(window, end - timedelta(microseconds=1)) == (start, end)
    assert span(window, end)[0] == end


@given(MOMENTS, st.sampled_from(["rolling-60s", "rolling-1h", "rolling-7s", "rolling-30d"]), st.integers(0, 10**13))
def test_any_stretch_of_a_rolling_windows_length_lies_inside_one_counter(moment, period, offset):
    window = Window(period)
    length = window.length_us
    first = to_microseconds(moment)
    second = first + offset % length  # two calls less than one length apart
    shared = set(window.spans(first)) & set(window.spans(second))
    assert shared
    assert all(start <= first <= second < end for start, end in shared)
    assert len(window.spans(first)) in {ROLLING_STEPS + 1, ROLLING_STEPS + 2}


def test_a_total_has_one_window_without_end():
    assert Window("total").spans(0) == ((0, None),)


@given(MOMENTS)
def test_instants_survive_as_microseconds(moment):
    assert from_microseconds(to_microseconds(moment)) == moment


def test_month_ends_are_real_dates_in_every_month_of_a_leap_year():
    for month in range(1, 13):
        start, end = span(Window("month"), datetime(2028, month, 28, tzinfo=UTC))
        assert (end - start).days == (date(2028 + month // 12, month % 12 + 1, 1) - date(2028, month, 1)).days
