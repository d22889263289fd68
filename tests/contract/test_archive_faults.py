"""Sealing, dropping and the rest broken off anywhere: nothing is lost or counted twice, and the next run ends it."""

import contextlib
import os
import random
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.erasing import erase
from tokenmeter.errors import LedgerError, StoreUnavailableError, TokenmeterError
from tokenmeter.stores import open_store
from tokenmeter.stores.archive import archives as archiving
from tokenmeter.stores.archive import places
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.moving import copy_ledger
from tokenmeter.stores.sqlite.database import Database

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = [START, START + timedelta(days=70), START + timedelta(days=400)]


class Killed(BaseException):
    """The process ends here."""


class Power:
    """Ends the process before or after the so-many-th step: a transaction, or a file put in its place."""

    def __init__(self, monkeypatch):
        self.left, self.after = None, False
        for owner, name in ((Database, "write"), (archiving, "put_file"), (os, "link"), (os, "replace")):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, step):
        def run(*given, **named):
            if self.left is None:
                return step(*given, **named)
            self.left -= 1
            dies = self.left == 0
            if dies and not self.after:
                raise Killed
            done = step(*given, **named)
            if dies:
                raise Killed
            return done

        return run

    def cut(self, work, left, *, after):
        """Run `work` until the power goes; whether it went."""
        self.left, self.after = left, after
        try:
            work()
        except Killed:
            return True
        finally:
            self.left = None
        return False


@pytest.fixture
def power(monkeypatch):
    monkeypatch.setattr("tokenmeter.stores.sqlite.book._AT_ONCE", 20)
    return Power(monkeypatch)


@pytest.fixture
def ledger(tmp_path, make_entry, make_charge):
    """Three months of calls in a file of the given name."""

    def make(name):
        store = open_store(f"sqlite:///{tmp_path}/{name}/ledger.db")
        dice = random.Random(3)
        for number in range(90):
            entry = make_entry(
                charges=(make_charge("input", dice.randrange(1, 900), "0.00000125"),),
                occurred_at=START + timedelta(days=number),
                member=dice.choice(["ada@example.com", "bob"]),
                end_user=dice.choice(["u1", "u2", None]),
                dedup_key=f"bill {number}" if number % 9 == 0 else None,
                cost_source="computed",
            )
            store.append([(entry, ())])
        store.file(NewDocument(kind="notice", key="n", body='{"member":"ada@example.com"}'))
        return store

    return make


def answers(store):
    return (
        store.aggregate(SPAN, ("model", "status")),
        [one.requests for one in store.aggregate(SPAN, ("end_user",))],
        [entry.entry_id for entry in store.entries()],
    )


def tried(power, make, work, check, *, done):
    """Cut the power before and after every step of `work`, on a fresh ledger each time."""
    for after in (False, True):
        step = 0
        while True:
            step += 1
            store = make(f"{after}-{step}")
            before = answers(store)
            went = power.cut(lambda store=store: work(store), step, after=after)
            assert answers(store) == before, f"cut {'after' if after else 'before'} step {step}"
            found = store.verify(deep=True)
            assert found.faults == (), f"cut {'after' if after else 'before'} step {step}: {found.faults}"
            if went:
                work(store)
                assert answers(store) == before
            check(store)
            found = store.verify(deep=True)
            assert found.faults == ()
            store.close()
            if not went:
                break
        assert step > done


def seal_and_drop(tmp_path):
    def work(store):
        store.archives.seal("2026-02", tmp_path / f"archive of {store.path.parent.name}")
        store.archives.drop()

    return work


def test_sealing_and_dropping_may_end_anywhere(power, ledger, tmp_path):
    def check(store):
        assert [(one.month, one.dropped) for one in store.archives.listed()] == [("2026-01", True), ("2026-02", True)]

    tried(power, ledger, seal_and_drop(tmp_path), check, done=6)


def test_bringing_back_may_end_anywhere(power, ledger, tmp_path):
    def make(name):
        store = ledger(name)
        seal_and_drop(tmp_path)(store)
        return store

    def check(store):
        assert not any(one.dropped for one in store.archives.listed())

    tried(power, make, lambda store: store.archives.restore(), check, done=2)


def test_erasing_may_end_anywhere(power, ledger):
    def work(store):
        with contextlib.suppress(LedgerError):  # it was done when the power went
            erase(store, "member", "ada@example.com", reason="asked to", by="kim", pseudonym="person 17")

    def check(store):
        members = {one.group[0] for one in store.aggregate(SPAN, ("member",))}
        assert members == {"person 17", "bob"}
        assert "ada@" not in " ".join(one.body for one in store.documents())

    tried(power, ledger, work, check, done=1)


@pytest.mark.parametrize("move", [copy_ledger, merge_ledger])
def test_moving_may_end_anywhere(power, ledger, tmp_path, move):
    """Out of a ledger of which two months are in files."""
    source = ledger("source")
    before = answers(source)
    seal_and_drop(tmp_path)(source)
    url = source.url
    source.close()
    for after in (False, True):
        for step in range(1, 40):
            target = f"sqlite:///{tmp_path}/{move.__name__}-{after}-{step}/ledger.db"
            if move is merge_ledger:
                open_store(target).close()
            went = power.cut(lambda target=target: move(url, target), step, after=after)
            if went:
                move(url, target)
            store = open_store(target)
            found = store.verify(deep=True)
            assert found.faults == ()
            assert answers(store) == before
            store.close()
            if not went:
                break
        assert not went
        assert step > 2


def test_two_hosts_that_seal_at_once_make_one_archive(ledger, tmp_path, monkeypatch):
    one = ledger("shared")
    two = open_store(one.url)
    before = answers(one)
    put, raced = places.put_file, []

    def race(*given):
        put(*given)
        if not raced:
            raced.append(True)
            two.archives.seal("2026-02", tmp_path / "archive")

    monkeypatch.setattr(archiving, "put_file", race)
    with pytest.raises(LedgerError, match="sealed by somebody else"):
        one.archives.seal("2026-02", tmp_path / "archive")
    assert one.archives.seal("2026-02", tmp_path / "archive") == []
    one.archives.drop()
    assert [month.month for month in two.archives.listed()] == ["2026-01", "2026-02"]
    assert answers(two) == before
    assert one.verify(deep=True).faults == ()
    two.close()
    one.close()


def test_a_month_of_one_entry_one_without_any_and_one_without_a_price(tmp_path, make_entry):
    store = open_store(f"sqlite:///{tmp_path}/ledger.db")
    store.append([(make_entry(occurred_at=START, charges=(), cost_source="unpriced"), ())])
    store.append([(make_entry(occurred_at=START + timedelta(days=70), end_user="u1"), ())])
    before = answers(store)
    sealed = store.archives.seal("2026-03", tmp_path / "archive")
    assert [(one.month, one.entries) for one in sealed] == [("2026-01", 1), ("2026-03", 1)]
    assert max(one.bytes for one in sealed) < 20_000
    store.archives.drop()
    assert answers(store) == before
    assert store.verify(deep=True).faults == ()
    store.archives.restore()
    assert answers(store) == before
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
