"""One ledger, many processes and threads, some of them killed: nothing lost, nothing twice, no cap passed."""

import os
import random
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError, Counter

KEY = CounterKey("cap", "", 0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)


SHARED = pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def url(request, fresh_url):
    """A ledger that processes share: in a file, unless the test says otherwise."""
    return fresh_url(getattr(request, "param", "sqlite"))


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


def totals(store):
    (total,) = store.aggregate([utcnow() - timedelta(days=2), utcnow() + timedelta(days=2)], [])
    return total


@pytest.mark.parametrize(("url", "count", "each"), [("sqlite", 8, 500), ("postgres", 3, 100)], indirect=["url"])
def test_processes_lose_none_of_their_entries(run_processes, store, url, count, each):
    code = """
store = open_store(url)
for index in range(int(sys.argv[3])):
    assert store.settle(entry(), [Posting(KEY, 1)]).recorded
"""
    run_processes(count, code, url, each)
    assert totals(store).requests == count * each
    assert totals(store).billed_cost == Decimal(count * each) / 1000
    assert store.counters([KEY])[KEY] == Counter(count * each, 0)
    assert len({entry.entry_id for entry in store.entries()}) == count * each
    assert store.verify().ok


@SHARED
def test_threads_of_one_process_lose_none(store):
    def write():
        for _ in range(50):
            now = utcnow()
            store.settle(
                Entry(occurred_at=now, provider="p", endpoint="e", operation="chat", billed_cost=Decimal(1)),
                [Posting(KEY, 1)],
            )
            store.counters([KEY])

    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(store).requests == 800
    assert store.counters([KEY])[KEY].settled == 800
    assert store.verify().ok


@pytest.mark.parametrize(("url", "count"), [("sqlite", 8), ("postgres", 4)], indirect=["url"])
def test_processes_that_make_the_ledger_at_once_make_one(run_processes, url, count):
    code = "store = open_store(url); store.settle(entry()); print(store.secret().hex())"
    secrets = run_processes(count, code, url)
    store = open_store(url)
    assert {secret.strip() for secret in secrets} == {store.secret().hex()}
    assert totals(store).requests == count
    store.close()


@SHARED
def test_a_killed_writer_loses_no_acknowledged_entry(start_process, store, url):
    code = """
store = open_store(url)
while True:
    one = entry()
    store.settle(one, [Posting(KEY, 1)])
    os.write(1, (one.entry_id + "\\n").encode())
"""
    acknowledged = set()
    for wanted in (1, 40, 200):
        process = start_process(code, url)
        for _ in range(wanted):
            acknowledged.add(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        process.wait()
        acknowledged |= {line for line in process.stdout.read().splitlines() if len(line) == 32}
    recorded = {entry.entry_id for entry in store.entries()}
    assert acknowledged <= recorded
    assert len(recorded) - len(acknowledged) <= 4  # written, killed before it could be told
    assert store.counters([KEY])[KEY].settled == len(recorded)
    assert store.verify().ok


def test_a_cap_admits_exactly_as_many_as_fit(run_processes, store, url):
    code = """
store = open_store(url)
admitted = []
def work():
    for _ in range(8):
        one = hold(100)
        try:
            store.reserve(one)
        except CapReachedError:
            continue
        admitted.append(1)
        store.settle(entry(), [Posting(KEY, 1)], reservation_id=one.reservation_id)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(admitted))
"""
    assert sum(int(out) for out in run_processes(8, code, url)) == 100
    assert store.counters([KEY])[KEY] == Counter(100, 0)
    assert totals(store).requests == 100


@SHARED
def test_killed_holders_never_pass_the_cap_and_their_holds_come_back(start_process, store, url):
    code = """
store = open_store(url)
while True:
    one = hold(40, seconds=0)
    try:
        store.reserve(one)
    except CapReachedError:
        time.sleep(0.002)
        continue
    time.sleep(random.random() / 500)
    store.settle(entry(), [Posting(KEY, 0)], reservation_id=one.reservation_id)
"""
    processes = [start_process(code, url) for _ in range(4)]
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        counter = store.counters([KEY])[KEY]
        assert counter.settled + counter.reserved <= 40
        time.sleep(0.05)
        if counter.reserved:
            victim = random.randrange(4)
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()
            processes[victim] = start_process(code, url)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = store.expired(FAR)
    assert store.counters([KEY])[KEY].reserved == len(left)
    for reservation in left:
        assert store.release(reservation.reservation_id)
    assert store.counters([KEY])[KEY] == Counter(0, 0)
    assert store.verify().ok


def in_child(work):
    """Run `work` in a forked child; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def plain_entry():
    return Entry(occurred_at=utcnow(), provider="p", endpoint="e", operation="chat")


@SHARED
def test_parent_and_forked_children_all_write(store):
    store.settle(plain_entry())
    for _ in range(5):
        assert in_child(lambda: [store.settle(plain_entry()) for _ in range(20)]) == 0
        store.settle(plain_entry())
    assert totals(store).requests == 106
    assert store.verify().ok


@SHARED
def test_a_fork_while_threads_write_leaves_both_sides_working(store):
    stop = threading.Event()
    written = []

    def write():
        while not stop.is_set():
            store.settle(plain_entry())
            written.append(1)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    codes = [in_child(lambda: store.settle(plain_entry())) for _ in range(10)]
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 10
    assert totals(store).requests == len(written) + 10
    assert store.verify().ok


@SHARED
def test_a_child_goes_on_when_its_parent_has_ended(start_process, store, url, tmp_path):
    code = """
store = open_store(url)
store.settle(entry())
if os.fork() == 0:
    os.close(1); os.close(2)
    time.sleep(0.3)
    for _ in range(50): store.settle(entry())
    store.close()
    Path(sys.argv[2]).touch()
"""
    done = tmp_path / "done"
    process = start_process(code, url, done)
    assert process.wait() == 0
    store.settle(plain_entry())
    store.close()
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert totals(store).requests == 52
    assert store.verify().ok


def test_a_process_that_never_closes_leaves_a_whole_ledger(run_processes, store, url):
    run_processes(3, "store = open_store(url); [store.settle(entry()) for _ in range(100)]; sys.exit(0)", url)
    assert totals(store).requests == 300


@pytest.mark.parametrize("lock", ["store._book.database.write(stuck)", "store.journal._locked(stuck)"])
def test_a_holder_that_was_killed_leaves_no_lock(start_process, store, url, lock):
    code = """
store = open_store(url)
def stuck(_):
    print("in", flush=True)
    time.sleep(60)
"""
    process = start_process(code + lock, url)
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.settle(plain_entry(), [Posting(KEY, 1)]).recorded
    assert totals(store).requests == 1


def test_the_database_file_is_never_opened_by_the_process_itself(store, url, monkeypatch):
    opened = []
    path = Path(url.removeprefix("sqlite:///"))
    original = os.open
    monkeypatch.setattr(
        os, "open", lambda name, *rest, **more: opened.append(Path(name)) or original(name, *rest, **more)
    )
    plain = open
    monkeypatch.setattr(
        "builtins.open", lambda name, *rest, **more: opened.append(Path(name)) or plain(name, *rest, **more)
    )
    store.settle(plain_entry())
    store.reserve(Reservation(new_id(), (Claim(KEY, 1, 1),), utcnow(), utcnow(), "h", plain_entry()))
    with pytest.raises(CapReachedError):
        store.reserve(Reservation(new_id(), (Claim(KEY, 1, 1),), utcnow(), utcnow(), "h", plain_entry()))
    assert store.verify().ok
    store.health()
    assert opened
    assert {path, Path(f"{path}-wal"), Path(f"{path}-shm")}.isdisjoint(opened)
