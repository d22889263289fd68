"""A power cut leaves the files as some prefix of what was written to them: every prefix opens whole."""

import os
import shutil
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.stores import writer
from tokenmeter.stores.base import Counter
from tokenmeter.stores.sqlite import SQLiteStore
from tokenmeter.stores.tail import segment_path, segments

KEY = CounterKey("cap", "", 0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def entry():
    return Entry(occurred_at=NOW, provider="p", endpoint="e", operation="chat", billed_cost=Decimal(1))


def call(store):
    """One call under a cap; its entry's identity."""
    one, hold = entry(), new_id()
    store.reserve(Reservation(hold, (Claim(KEY, None, 5),), NOW, FAR, "host:1", one))
    store.settle(one, [Posting(KEY, 1)], reservation_id=hold)
    return one.entry_id


def opened_after(cut, path, tmp_path):
    """The ledger as it is after a power cut that kept `cut` bytes of the tail: counters in memory are gone."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in path.parent.iterdir():
        if "-live" not in file.name and "-lock" not in file.name and "-shm" not in file.name:
            shutil.copyfile(file, copy / file.name)
    os.truncate(segment_path(copy / path.name, segments(path)[-1]), cut)
    return SQLiteStore(copy / path.name)


def assert_whole(store, written):
    found = [one.entry_id for one in store.entries()]
    assert found == written[: len(found)]
    held = len(store.expired(FAR))
    assert store.counters([KEY])[KEY] == Counter(len(found), 5 * held)
    assert held <= 1
    assert store.verify().ok
    return len(found)


@pytest.mark.parametrize("folded", [False, True])
def test_the_tail_cut_off_at_any_byte(tmp_path, folded):
    path = tmp_path / "books" / "ledger.db"
    store = SQLiteStore(path)
    written = [call(store) for _ in range(2)]
    if folded:
        list(store.entries())  # what is in the book stays, even if the tail loses it
    least = 2 if folded else 0
    written += [call(store) for _ in range(2)]
    size = segment_path(path, segments(path)[-1]).stat().st_size
    counts = []
    for cut in (*range(0, size, 97), size):
        after = opened_after(cut, path, tmp_path)
        counts.append(assert_whole(after, written))
        more = call(after)
        assert after.entry(more)
        assert after.verify().ok
        after.close()
    assert counts == sorted(counts)
    assert (min(counts), max(counts)) == (least, 4)
    store.close()


@pytest.mark.parametrize("point", ["write", "before_counters", "amid_counters"])
def test_a_process_that_ends_amid_a_change_of_counters(tmp_path, monkeypatch, point):
    path = tmp_path / "ledger.db"
    store = SQLiteStore(path)
    written = [call(store) for _ in range(3)]

    class End(BaseException):
        pass

    def end(*_, **__):
        raise End

    if point == "write":
        monkeypatch.setattr(store.journal, "_append", end)
    else:
        whole = writer.Writer._append

        def then_end(framed, **known):
            whole(store.journal, framed, **known)
            if point == "amid_counters":
                place = store.journal._live.places[store.journal.slot(KEY)]
                store.journal._live.map[place + 16 : place + 24] = b"\xff" * 8
            raise End

        monkeypatch.setattr(store.journal, "_append", then_end)
    with pytest.raises(End):
        call(store)
    assert store.journal._live.dirty
    other = SQLiteStore(path)  # as another process
    assert assert_whole(other, written) == 3
    monkeypatch.undo()
    written.append(call(store))
    assert assert_whole(other, written) == 4
    other.close()
    store.close()


@pytest.mark.parametrize("failing", ["write", "short write", "fsync", "rename"])
def test_an_error_of_the_disk_loses_nothing_that_was_acknowledged(tmp_path, monkeypatch, failing):
    path = tmp_path / "ledger.db"
    store = SQLiteStore(path)
    written = [call(store)]
    real = os.write

    def failing_write(descriptor, data):
        if failing == "short write":
            real(descriptor, data[: len(data) // 2])
            return len(data) // 2
        raise OSError(28, "No space left on device")

    if "write" in failing:
        monkeypatch.setattr(os, "write", failing_write)
        with pytest.raises(StoreUnavailableError, match="cannot be written"):
            call(store)
    elif failing == "rename":
        store.journal._live.dirty = True
        monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(StoreUnavailableError):
            call(store)
    else:
        monkeypatch.setattr(store._book.database, "checkpoint", lambda: False)
        monkeypatch.setattr(writer, "SEGMENT_BYTES", 10)
        written += [call(store) for _ in range(3)]
        list(store.entries())
        assert len(segments(path)) > 1  # nothing goes that is not in the book for good
    monkeypatch.undo()
    written.append(call(store))
    assert assert_whole(store, written) == len(written)
    store.close()
