"""How long calls took: percentiles over any stretch and any dimension, the same from kept sketches and from entries."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.dimensions import TOOL_OPERATION
from tokenmeter.errors import ConfigurationError
from tokenmeter.stores import packing
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.sketch import Sketch
from tokenmeter.usage import Usage

START = datetime(2026, 3, 1, tzinfo=UTC)
EVER = [START, datetime(2026, 6, 1, tzinfo=UTC)]


@pytest.fixture
def fill(store, make_entry):
    def fill(times, *, at=START, **given):
        entries = [
            make_entry(occurred_at=at + timedelta(hours=7 * number), latency_us=time, **given)
            for number, time in enumerate(times)
        ]
        store.append([(entry, ()) for entry in entries])
        return entries

    return fill


def test_percentiles_are_within_their_error_and_sums_are_exact(store, fill):
    times = [number * 1000 for number in range(1, 201)]
    fill(times, first_token_us=None)
    (found,) = store.latencies(EVER)
    assert (found.bucket, found.group) == (0, ())
    assert (found.duration.count, found.duration.total_us) == (200, sum(times))
    assert found.duration.mean_us == 100_500
    for percent, exact in ((50, 100_000), (95, 190_000), (Decimal("99.5"), 199_000), (100, 200_000)):
        assert abs(found.duration.percentile(percent) - exact) <= exact * Decimal("0.022")
    assert (found.first_token.count, found.first_token.percentile(50)) == (0, None)


def test_groups_follow_the_dimensions_and_the_filter(store, fill):
    fill([1000, 3000], attribution=Attribution(member="ada", tags={"env": "prod"}))
    fill([9000], attribution=Attribution(member="bob"), status="error")
    by_member = {one.group: one.duration.total_us for one in store.latencies(EVER, ["member"])}
    assert by_member == {("ada",): 4000, ("bob",): 9000}
    by_tag = {one.group: one.duration.count for one in store.latencies(EVER, ["tag:env", "status"])}
    assert by_tag == {("prod", "ok"): 2, (None, "error"): 1}
    good = EntryFilter(where={"status": frozenset({"ok"})})
    assert [one.duration.count for one in store.latencies(EVER, (), good)] == [2]


@pytest.mark.parametrize("hours", [0, 5, 17])
def test_buckets_that_lie_on_no_day_say_the_same_as_the_entries(store, fill, hours):
    entries = fill([1000 + 37 * number for number in range(120)], first_token_us=500)
    cuts = [START + timedelta(days=3 * number, hours=hours, minutes=20 * bool(hours)) for number in range(9)]
    found = {one.bucket: one for one in store.latencies(cuts)}
    for bucket, (since, until) in enumerate(pairwise(cuts)):
        inside = [entry.latency_us for entry in entries if since <= entry.occurred_at < until]
        expected = Sketch()
        for time in inside:
            expected.add(time)
        assert found[bucket].duration == expected
        assert found[bucket].first_token.count == len(inside)


def test_tokens_per_second_leave_out_the_wait_for_the_first(store, fill):
    fill([2_000_000], first_token_us=500_000, usage=Usage({"input": 10, "output": 300}))
    fill([1_000_000], first_token_us=None, usage=Usage({"input": 10, "output": 50}))
    (found,) = store.latencies(EVER)
    assert (found.generation_us, found.generated) == (2_500_000, 350)
    assert found.tokens_per_second == 140


def test_what_was_not_timed_and_corrections_are_left_out(store, fill, make_entry):
    store.settle(make_entry(latency_us=None, first_token_us=None, occurred_at=START))
    assert store.latencies(EVER) == []
    fill([5000], kind="adjustment")
    assert store.latencies(EVER) == []
    fill([0])
    (found,) = store.latencies(EVER)
    assert (found.duration.count, found.duration.percentile(50)) == (1, 0)


@pytest.mark.parametrize("is_packed", [False, True])
def test_parts_of_calls_that_have_times_of_their_own_are_no_calls_wherever_they_are_read(
    store, fill, make_entry, is_packed, monkeypatch
):
    """Kept sketches counted a tool's time, and that of what a session used later, among the calls'."""
    fill([1_000_000])
    fill([9_000_000], operation=TOOL_OPERATION)
    fill([9_000_000], kind="growth")
    if is_packed:
        pytest.importorskip("numpy")
        monkeypatch.setattr(packing, "_MANY", 1)
        monkeypatch.setattr(packing, "_DENSE", 0)
        store.pack()
    kept, read = (store.latencies(EVER, by) for by in ((), ("end_user",)))
    assert [(one.duration.count, one.duration.mean_us) for one in (*kept, *read)] == [(1, 1_000_000)] * 2
    assert store.verify().ok


def test_a_call_has_no_time_per_meter(store):
    with pytest.raises(ConfigurationError, match="sku_meter"):
        store.latencies(EVER, ["sku_meter"])
    with pytest.raises(ConfigurationError, match="Unknown dimension"):
        store.latencies(EVER, ["colour"])


def test_many_folds_add_up_and_verify(store, make_entry):
    for number in range(30):
        store.settle(make_entry(occurred_at=START + timedelta(minutes=number), latency_us=1000 * number))
        assert store.latencies(EVER)[0].duration.count == number + 1
    assert store.verify().faults == ()
