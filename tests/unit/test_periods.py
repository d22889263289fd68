"""Periods: cut on the calendar of a time zone, daylight saving and odd offsets included."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmeter.errors import ConfigurationError
from tokenmeter.periods import CALENDAR_UNITS, Period, buckets, floor, parse_instant, parse_period

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
         "Pacific/Apia", "America/St_Johns", "Africa/Cairo"]  # fmt: skip
INSTANTS = st.datetimes(datetime(2019, 1, 1), datetime(2031, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))  # noqa: DTZ001


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@given(INSTANTS, st.sampled_from(CALENDAR_UNITS), st.sampled_from(ZONES))
def test_every_instant_is_in_the_unit_it_floors_to_and_units_touch(moment, unit, tz):
    period = floor(moment, unit, tz)
    assert moment in period
    assert floor(period.start, unit, tz).start == period.start
    following = floor(period.end, unit, tz)
    assert following.start == period.end or unit == "hour"


@given(INSTANTS, st.integers(1, 40 * 86400), st.sampled_from(CALENDAR_UNITS[1:]), st.sampled_from(ZONES))
def test_buckets_cover_a_period_without_gap_or_overlap(start, seconds, unit, tz):
    period = Period(start, start + timedelta(seconds=seconds), tz)
    cut = buckets(period, unit)
    assert cut[0].start == period.start
    assert cut[-1].end == period.end
    assert all(a.end == b.start for a, b in pairwise(cut))


def test_a_day_with_daylight_saving_has_23_or_25_hours():
    assert parse_period("2026-03-29", "Europe/Berlin").end - parse_period("2026-03-29", "Europe/Berlin").start == (
        timedelta(hours=23)
    )
    long_day = parse_period("2026-10-25", "Europe/Berlin")
    assert long_day.end - long_day.start == timedelta(hours=25)
    assert len(buckets(long_day, "hour")) == 25


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize(
    "text", ["2026-W47", "2026-W01", "2026-W53", "last-week", "this-week", "2026-Q4", "last-month"]
)
def test_what_a_period_is_called_is_read_as_the_same_period(text, tz):
    asked = parse_period(text, tz, now=utc(2026, 11, 23, 12))
    assert parse_period(asked.label, tz) == asked


@pytest.mark.parametrize(
    ("text", "tz", "start", "end"),
    [
        ("2026-11", "UTC", utc(2026, 11, 1), utc(2026, 12, 1)),
        ("2026-11", "Asia/Kathmandu", utc(2026, 10, 31, 18, 15), utc(2026, 11, 30, 18, 15)),
        ("2026-12", "America/New_York", utc(2026, 12, 1, 5), utc(2027, 1, 1, 5)),
        ("2026-Q4", "UTC", utc(2026, 10, 1), utc(2027, 1, 1)),
        ("2026", "UTC", utc(2026, 1, 1), utc(2027, 1, 1)),
        ("2026-W47", "UTC", utc(2026, 11, 16), utc(2026, 11, 23)),
        ("2024-02-29", "UTC", utc(2024, 2, 29), utc(2024, 3, 1)),
        ("today", "UTC", utc(2026, 11, 23), utc(2026, 11, 24)),
        ("yesterday", "UTC", utc(2026, 11, 22), utc(2026, 11, 23)),
        ("last-7d", "UTC", utc(2026, 11, 17), utc(2026, 11, 24)),
        ("last-24h", "UTC", utc(2026, 11, 22, 12), utc(2026, 11, 23, 12)),
        ("this-month", "UTC", utc(2026, 11, 1), utc(2026, 12, 1)),
        ("last-month", "UTC", utc(2026, 10, 1), utc(2026, 11, 1)),
        ("last-3m", "UTC", utc(2026, 9, 1), utc(2026, 12, 1)),
    ],
)
def test_people_write_periods_in_many_ways(text, tz, start, end):
    period = parse_period(text, tz, now=utc(2026, 11, 23, 12))
    assert (period.start, period.end) == (start, end)


@pytest.mark.parametrize("bad", ["", "2026-13", "2026-02-30", "soon", "last-0d", "2026-W60", "20261"])
def test_an_unreadable_period_is_refused_with_examples(bad):
    with pytest.raises(ConfigurationError, match=r"2026-11|at least 1"):
        parse_period(bad)


def test_an_unknown_zone_is_refused():
    with pytest.raises(ConfigurationError, match="IANA"):
        parse_period("today", "Mars/Olympus")


def test_naive_instants_are_read_in_the_zone_and_aware_ones_are_kept():
    assert parse_instant("2026-11-23T10:00", "Europe/Berlin") == utc(2026, 11, 23, 9)
    assert parse_instant("2026-11-23T10:00+05:45") == utc(2026, 11, 23, 4, 15)
    assert parse_instant(date(2026, 11, 23), "Asia/Kolkata") == utc(2026, 11, 22, 18, 30)
    assert parse_instant("2026-11-23") == utc(2026, 11, 23)


def test_a_week_may_start_on_sunday():
    assert floor(utc(2026, 11, 23), "week", week_start=6).start == utc(2026, 11, 22)


@pytest.mark.parametrize(
    ("start", "end", "tz", "label"),
    [
        ("2026-10-01T00:00", "2026-10-15T00:00", "UTC", "2026-10-01 to 2026-10-15"),
        ("2026-09-30T22:00", "2026-10-14T22:00", "Europe/Berlin", "2026-10-01 to 2026-10-15"),
        ("2026-10-01T00:00", "2026-10-01T12:30", "UTC", "2026-10-01T00:00:00 to 2026-10-01T12:30:00"),
        ("0001-01-01T00:00", "2026-10-01T00:00", "America/New_York", "0001-01-01 to 2026-10-01"),
    ],
)
def test_a_period_without_a_label_is_called_by_its_ends(start, end, tz, label):
    first, last = (datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (start, end))
    assert Period(first, last, tz).label == label
