"""Crossed thresholds are remembered: when, and by which entry. Every kind of store."""

from datetime import UTC, datetime, timedelta


def told(store, **options):
    return [(one.key, one.threshold, one.entry_id) for one in store.crossings(**options)]


def test_a_crossing_tells_when_and_by_which_entry(store, make_entry, make_key, make_posting):
    """The last comes first, and of one entry's the highest; what crosses nothing, or again, is not told."""
    assert list(store.crossings()) == []
    ada, bob = make_key(), make_key(scope="member=bob")
    began = datetime.now(UTC)
    calls = []
    for key, amount in ((ada, 49), (ada, 1), (bob, 79), (ada, 60), (ada, -90), (ada, 90)):
        calls.append(make_entry().entry_id)
        store.settle(make_entry(entry_id=calls[-1]), [make_posting(key, amount, 50, 80, 100)])
    expected = [(ada, 100, calls[3]), (ada, 80, calls[3]), (bob, 50, calls[2]), (ada, 50, calls[1])]
    assert told(store) == expected
    assert told(store, limit=3) == expected[:3]
    assert told(store, limit=1, since=store.crossings()[2].crossed_at) == expected[:3]
    for one in store.crossings():
        assert one.crossed_at.tzinfo is UTC
        assert abs(one.crossed_at - began) < timedelta(minutes=5)


def test_of_many_entries_in_one_transaction_the_right_one_is_told(store, make_entry, make_key, make_posting):
    """Each amount is what the counter held after that entry, not after all of them."""
    key, other = make_key(), make_key("other")
    calls = [make_entry() for _ in range(4)]
    amounts = (40, 20, 30, 30)
    store.append(
        [
            (call, [make_posting(key, amount, 50, 80, 115), make_posting(other, 1, 3)])
            for call, amount in zip(calls, amounts, strict=True)
        ]
    )
    assert sorted((one.key, one.threshold, one.entry_id) for one in store.crossings()) == [
        (key, 50, calls[1].entry_id),
        (key, 80, calls[2].entry_id),
        (key, 115, calls[3].entry_id),
        (other, 3, calls[2].entry_id),
    ]


def test_amounts_beyond_64_bits_are_told_exactly(store, make_entry, make_key, make_posting):
    store.settle(make_entry(), [make_posting(make_key(), 10**30, 9, 10**29, 10**30)])
    assert [one.threshold for one in store.crossings()] == [10**30, 10**29, 9]
