"""Sealing, dropping and the rest broken off anywhere: nothing is lost or counted twice, and the next run ends it."""

import contextlib
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from tokenmeter.erasing import erase
from tokenmeter.errors import LedgerError, StoreUnavailableError
from tokenmeter.stores import open_store
from tokenmeter.stores.archive import places, sealing
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.moving import copy_ledger
from tokenmeter.stores.postgres.book import PostgresBook
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.sqlite.book import SQLiteBook
from tokenmeter.stores.sqlite.database import Database

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

pytestmark = pytest.mark.slow

START = datetime(2026, 1, 1, tzinfo=UTC)
SPAN = [START, START + timedelta(days=70), START + timedelta(days=400)]


class Killed(BaseException):
    """The process ends here."""


class Power:
    """Ends the process before or after the so-many-th step: a transaction, or a file put in its place."""

    def __init__(self, monkeypatch):
        self.left, self.after, self.thread = None, False, threading.get_ident()
        for owner, name in ((Database, "write"), (sealing, "put_file"), (os, "link"), (os, "replace"), (Pool, "run")):
            monkeypatch.setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, step):
        def run(*given, **named):
            aside = threading.get_ident() != self.thread  # one that folds ends with the process
            if self.left is None or aside or named.get("scope", "transaction") != "transaction":
                return step(*given, **named)
            self.left -= 1
            dies = self.left == 0
            if dies and not self.after:
                raise Killed
            try:
                return step(*given, **named)
            finally:
                if dies:
                    raise Killed

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
    monkeypatch.setattr("tokenmeter.stores.postgres.book._AT_ONCE", 20)
    return Power(monkeypatch)


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
        store.archives.seal("2026-02", tmp_path / f"archive of {hash(store.url)}")
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


@pytest.mark.parametrize("move", [copy_ledger, merge_ledger])
def test_moving_to_a_server_may_end_anywhere(power, ledger, monkeypatch, tmp_path, fresh_url, move):
    """The same onto a server: each run goes on with what the one before has left, as `worn_down`."""
    monkeypatch.setattr("tokenmeter.stores.copying._PAGE", 20)
    monkeypatch.setattr("tokenmeter.stores.merging._PAGE", 20)
    source, target = ledger("source"), fresh_url("postgres")
    before = answers(source)
    seal_and_drop(tmp_path)(source)
    url = source.url
    source.close()
    if move is merge_ledger:
        open_store(target).close()
    worn_down(power, lambda: move(url, target), lambda: None)
    store = open_store(target)
    assert store.verify(deep=True).faults == ()
    assert answers(store) == before
    store.close()


def worn_down(power, work, look):
    """Cut the power before and after one step after the other, on what the cut before has left, until all is done."""
    for number in range(400):
        went = power.cut(work, 1 + number // 2, after=number % 2)
        look()
        if not went:
            assert number > 1
            return
    pytest.fail("it gets no further")


def test_on_a_server_months_may_be_moved_and_it_may_end_anywhere(power, ledger, monkeypatch, tmp_path, fresh_url):
    url = fresh_url("postgres")
    monkeypatch.setattr("tokenmeter.stores.archive.archives._PAGE", 20)
    source = ledger("source")
    source.close()
    copy_ledger(source.url, url)
    store = open_store(url)
    before = answers(store)

    def look():
        assert answers(store) == before

    def erased():
        with contextlib.suppress(LedgerError):  # it was done when the power went
            erase(store, "end_user", "u1", reason="asked to", by="kim", pseudonym="person 17")

    look()
    worn_down(power, lambda: store.archives.seal("2026-02", tmp_path / "archive"), look)
    worn_down(power, store.archives.drop, look)
    assert [(one.month, one.dropped) for one in store.archives.listed()] == [("2026-01", True), ("2026-02", True)]
    assert store.verify(deep=True).faults == ()
    worn_down(power, store.archives.restore, look)
    assert not any(one.dropped for one in store.archives.listed())
    assert store.verify(deep=True).faults == ()
    store.archives.drop()
    look()
    power.cut(erased, 1, after=True)
    erased()
    assert ("person 17",) in {one.group for one in store.aggregate(SPAN, ("end_user",))}
    assert store.verify(deep=True).faults == ()
    store.close()


@pytest.mark.parametrize(("kind", "book"), [("sqlite", SQLiteBook), ("postgres", PostgresBook)])
def test_two_who_drop_and_bring_back_at_once_leave_every_entry_in_one_place(
    ledger, fresh_url, monkeypatch, tmp_path, kind, book
):
    monkeypatch.setattr("tokenmeter.stores.archive.archives._PAGE", 10)
    url = fresh_url(kind)
    source = ledger("source")
    source.close()
    copy_ledger(source.url, url)
    one, two = open_store(url), open_store(url)
    before = answers(one)
    one.archives.seal("2026-02", tmp_path / "archive")
    one.archives.drop()
    take_back = book.take_back
    raced = []

    def race(self, *given):
        done = take_back(self, *given)
        if len(raced) < 1:
            raced.append(True)
            two.archives.drop()
        return done

    with monkeypatch.context() as patched:
        patched.setattr(book, "take_back", race)
        with pytest.raises(LedgerError, match="Run it again"):
            one.archives.restore()
    assert answers(one) == before
    one.archives.restore()
    assert two.archives.restore() == []
    assert answers(two) == before
    assert two.archives.drop() != []
    assert one.archives.drop() == []
    assert answers(one) == before
    assert one.verify(deep=True).faults == ()
    one.close()
    two.close()


@pytest.mark.parametrize("folder", ["archive", "another"])
def test_two_hosts_that_seal_at_once_make_one_archive(ledger, tmp_path, monkeypatch, folder):
    one = ledger("shared")
    two = open_store(one.url)
    before = answers(one)
    put, raced = places.put_file, []

    def race(*given):
        put(*given)
        if not raced:
            raced.append(True)
            two.archives.seal("2026-02", tmp_path / "archive")

    monkeypatch.setattr(sealing, "put_file", race)
    assert [month.month for month in one.archives.seal("2026-02", tmp_path / folder)] == ["2026-01"]
    assert len(list(tmp_path.rglob("*.parquet"))) == 2
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


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_file_that_cannot_be_read_is_asked_again_and_nothing_is_lost_or_counted_twice(store, make_entry, tmp_path):
    """A call that is in a file already comes once more, and with it one that is new."""
    old = [make_entry(occurred_at=START + timedelta(hours=number), member="ada") for number in range(9)]
    store.append([(entry, ()) for entry in old])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    before = answers(store)
    (tmp_path / "archive").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError, match="Put the file back"):
        store.append([(old[0], ())])
    assert store.settle(old[1]).recorded
    assert store.settle(make_entry(occurred_at=START + timedelta(days=50), member="ben")).recorded
    assert store.aggregate(SPAN, ("model", "status")) == before[0], "they wait"
    assert any("archived month" in warning for warning in store.health().warnings)
    (tmp_path / "away").rename(tmp_path / "archive")
    assert [done.recorded for done in store.append([(old[0], ())])] == [False]
    assert [(one.group, one.requests) for one in store.aggregate([SPAN[0], SPAN[-1]], ("member",))] == [
        (("ada",), 9),
        (("ben",), 1),
    ]
    assert store.verify(deep=True).faults == ()
