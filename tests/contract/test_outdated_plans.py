"""What a call goes by may be out of date when it leaves or ends: the journal says so, and does nothing."""

from datetime import timedelta

import pytest

from tokenmeter.ledger import CounterKey, new_id
from tokenmeter.stores.base import Counter
from tokenmeter.stores.effects import NewHold, OutdatedError
from tokenmeter.stores.encoding import hold_record
from tokenmeter.stores.record import encode_entry
from tokenmeter.stores.slots import to_microseconds

KEY = CounterKey("cap", "", 0)


@pytest.fixture
def claim(store):
    return [(store.journal.slot(KEY), 100, 7)]


@pytest.fixture
def later(store):
    return to_microseconds(store.now() + timedelta(minutes=15))


def record_of(store, entry):
    return encode_entry(entry, store.journal.definitions)


def hold_of(store, entry, expires_at, claims):
    hold_id, now = new_id(), to_microseconds(store.now())
    record = hold_record(hold_id, now, expires_at, store.journal.owner, record_of(store, entry))
    return NewHold(hold_id, expires_at, claims, record)


def held(store):
    return {hold.reservation_id for hold in store.expired(store.now() + timedelta(hours=1))}


def test_nothing_is_held(store, make_entry, claim, later):
    journal, hold = store.journal, hold_of(store, make_entry(), later, claim)
    with pytest.raises(OutdatedError):
        journal.reserve(hold, generation=journal.generation + 1)
    assert hold.hold_id not in held(store)
    assert store.counters([KEY])[KEY] == Counter(0, 0)


def test_no_entry_is_written(store, make_entry):
    journal, entry = store.journal, make_entry()
    with pytest.raises(OutdatedError):
        journal.append(record_of(store, entry), generation=journal.generation + 1)
    assert store.entry(entry.entry_id) is None
    journal.append(record_of(store, entry), generation=journal.generation)
    assert store.entry(entry.entry_id) == entry


@pytest.mark.parametrize("claimed", [True, False], ids=["with a cap", "without one"])
def test_a_hold_stays_until_its_call_is_written_down_after_all(store, make_entry, claim, later, claimed):
    """Without a cap: the hold of a stream, which claims nothing."""
    journal, entry = store.journal, make_entry()
    claims, posts = (claim, [(claim[0][0], 5)]) if claimed else ([], [])
    hold = hold_of(store, make_entry(), later, claims)
    hold_id = hold.hold_id
    journal.reserve(hold, generation=journal.generation)
    with pytest.raises(OutdatedError):
        journal.settle(record_of(store, entry), posts, hold_id, generation=journal.generation + 1)
    assert hold_id in held(store)
    assert store.entry(entry.entry_id) is None
    journal.settle(record_of(store, entry), posts, hold_id, generation=journal.generation)
    assert hold_id not in held(store)
    assert store.entry(entry.entry_id) == entry
    assert store.counters([KEY])[KEY] == Counter(5 if claimed else 0, 0)
