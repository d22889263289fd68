"""Places for archived months that fail: a folder that is full or gone, a bucket that answers anything."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tokenmeter.errors import StoreUnavailableError, TokenmeterError
from tokenmeter.stores.archive import places, sealing

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

SPAN = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number) for number in (0, 70, 400)]


def answers(store):
    return (
        store.aggregate(SPAN, ("model", "status")),
        [one.requests for one in store.aggregate(SPAN, ("end_user",))],
        [entry.entry_id for entry in store.entries()],
    )


def test_of_several_months_an_error_says_with_which_all_went_well(ledger, tmp_path, monkeypatch):
    """Sealed, dropped and brought back one after the other: what stands in the way of one undoes nothing of others."""
    store, put = ledger("one by one"), places.put_file

    def full(source, url, sha256):
        if "2026-02" in url:
            raise StoreUnavailableError("The disk is full.")
        put(source, url, sha256)

    with monkeypatch.context() as patched:
        patched.setattr(sealing, "put_file", full)
        with pytest.raises(StoreUnavailableError, match=r"^The disk is full\. Sealed before that: 2026-01\.$"):
            store.archives.seal("2026-02", tmp_path / "archive")
    store.archives.seal("2026-02", tmp_path / "archive")
    first, second = (Path(one.url) for one in store.archives.listed())
    second.rename(tmp_path / "second")
    with pytest.raises(StoreUnavailableError, match=r"2026-02-.* Dropped before that: 2026-01\.$"):
        store.archives.drop()
    assert [one.dropped for one in store.archives.listed()] == [True, False]
    (tmp_path / "second").rename(second)
    store.archives.drop()
    first.rename(tmp_path / "first")
    with pytest.raises(StoreUnavailableError, match=r"2026-01-.* Brought back before that: 2026-02\.$"):
        store.archives.restore()
    assert [one.dropped for one in store.archives.listed()] == [True, False]
    (tmp_path / "first").rename(first)
    assert store.verify(deep=True).faults == ()
    store.close()


def attempt(work):
    """What it says when the store is away."""
    try:
        work()
    except StoreUnavailableError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_an_object_store_that_fails_anywhere_loses_nothing(ledger, bucket, monkeypatch, tmp_path):
    import s3fs

    opened = s3fs.S3FileSystem._open
    left = [0]

    def fail(self, *given, **named):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(5, "the network is gone")
        return opened(self, *given, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_open", fail)
    store = ledger("shared")
    before = answers(store)

    def seal(store):
        store.archives.seal("2026-02", "s3://books/usage")
        store.archives.drop()

    for step in range(1, 20):
        left[0] = step
        told = attempt(lambda: seal(store))
        left[0] = 0
        if told is None:
            break
        assert "the network is gone" in told
        assert answers(store) == before
    left[0] = 0
    assert step > 3
    assert [one.dropped for one in store.archives.listed()] == [True, True]
    assert store.verify(deep=True).faults == ()
    left[0] = 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    with pytest.raises(TokenmeterError, match="cannot be read"):
        list(store.entries())
    left[0] = 0
    assert answers(store) == before
    store.close()
