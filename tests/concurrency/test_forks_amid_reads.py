"""A fork and SQLite: what another thread reads is over when the process forks, so that no child waits for ever."""

import threading
import time

import pytest

from forking import run_in_child
from tokenmeter.stores.sqlite import opened
from tokenmeter.stores.sqlite.database import Database

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # said from Python 3.12 on


@pytest.fixture
def database(tmp_path):
    opened = Database(tmp_path / "file.db", refuse=lambda *_: None, prepare=lambda *_: None)
    yield opened
    opened.close()


def one(connection):
    return connection.execute("SELECT 1").fetchone()[0]


class AmidRead:
    """A thread in the middle of a read, until another thread begins to fork; then it does `last`."""

    def __init__(self, database, last):
        self.inside, self.values, self._last = threading.Event(), [], last
        self._thread = threading.Thread(target=database.read, args=(self._read,))

    def __enter__(self):
        self._thread.start()
        assert self.inside.wait(60)
        return self.values

    def __exit__(self, *_):
        self._thread.join()

    def _read(self, connection):
        self.inside.set()
        until = time.monotonic() + 60
        while opened._forking is None and time.monotonic() < until:
            time.sleep(0.001)
        self.values.append(self._last(connection))


def test_a_fork_waits_for_what_another_thread_reads(database, monkeypatch):
    monkeypatch.setattr(opened, "FORK_PATIENCE", 60)
    with AmidRead(database, one) as values:
        assert run_in_child(lambda: database.read(one) - 1 if values else 3) == 0
    assert database.read(one) == 1


def test_a_read_that_begins_at_a_fork_waits_for_its_end(database, monkeypatch):
    monkeypatch.setattr(opened, "FORK_PATIENCE", 60)
    seen = []
    monkeypatch.setattr(opened, "_forking", threading.get_ident())
    reader = threading.Thread(target=database.read, args=(lambda connection: seen.append(one(connection)),))
    reader.start()
    reader.join(0.05)
    assert not seen
    monkeypatch.setattr(opened, "_forking", None)
    reader.join(60)
    assert seen == [1]


def test_a_thread_may_fork_in_the_middle_of_its_own_read(database):
    assert database.read(lambda connection: (one(connection), run_in_child(lambda: database.read(one) - 1))) == (1, 0)
    assert database.read(one) == 1


def test_a_read_within_a_read_does_not_wait_for_the_fork_that_waits_for_it(database, monkeypatch):
    monkeypatch.setattr(opened, "FORK_PATIENCE", 60)
    with AmidRead(database, lambda connection: (one(connection), database.read(one))) as values:
        assert run_in_child(lambda: 0 if values else 3) == 0
    assert values == [(1, 1)]


def test_a_read_that_fails_holds_up_no_fork(database):
    with pytest.raises(ZeroDivisionError):
        database.read(lambda _: 1 // 0)
    assert not opened._under_way
    assert run_in_child(lambda: database.read(one) - 1) == 0
