"""An exception at any line (Ctrl-C, a signal handler that raises, a soft time limit) leaves no lock and no hold."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

import tokenmeter.stores
from interrupting import interrupted_at
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.stores.base import Counter
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.sqlite import SQLiteStore

# A file object that was interrupted between its opening and its `with` closes itself, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
KEY = CounterKey("cap", "member=ada", 0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOME = str(Path(tokenmeter.stores.__file__).parent)
WATCHDOG = 20


class Stop(BaseException):
    """As KeyboardInterrupt, SystemExit and a worker's soft time limit come."""


def entry(member="ada"):
    cost = Decimal("0.001")
    return Entry(
        occurred_at=NOW,
        provider="openai",
        endpoint="chat",
        operation="chat",
        request_model="m",
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=cost,
        attribution=tokenmeter.attribution.Attribution(member=member),
    )


def in_thread(work):
    """Run `work` where it cannot take a lock for its own, and not for ever."""
    done = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(WATCHDOG)
    assert done, "somebody left a lock"
    return done[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path):
    opened = SQLiteStore(path)
    yield opened
    opened.close()


@pytest.fixture
def other(path):
    """Another process's view: locks of its own."""
    opened = SQLiteStore(path)
    yield opened
    opened.close()


def each_line(work, check, *, step=1):
    at = 1
    while interrupted_at(at, work, Stop, within=HOME) is not None:  # raised in a finaliser, it reaches nobody
        check()
        at += step
    assert at > 20
    check()


def assert_sound(store, other):
    for one in (store, other):
        in_thread(lambda one=one: one.settle(entry(), [Posting(KEY, 1)]))
    count = in_thread(lambda: other.health().facts["entries"])
    assert in_thread(lambda: store.counters([KEY]))[KEY] == Counter(count, 0)
    assert other.counters([KEY])[KEY] == Counter(count, 0)


def test_while_an_entry_is_written(store, other):
    written = []

    def work():
        written.append(entry())
        store.settle(written[-1], [Posting(KEY, 1)])

    each_line(work, lambda: assert_sound(store, other))
    assert store.verify().ok
    # Whoever was interrupted writes again: what is there stays as it is.
    for one in written:
        store.settle(one, [Posting(KEY, 1)])
        assert not store.settle(one, [Posting(KEY, 1)]).recorded
    assert_sound(store, other)


def test_while_something_is_held_and_settled(store, other):
    held = []

    def work():
        held.append(new_id())
        claims = (Claim(KEY, None, 5),)
        store.reserve(Reservation(held[-1], claims, NOW, FAR, "host:1", entry()))
        store.settle(entry(), [Posting(KEY, 1)], reservation_id=held[-1])

    def check():
        in_thread(lambda: store.release(held[-1]))  # as a call does that was interrupted before it left
        assert_sound(store, other)

    each_line(work, check)
    assert store.verify().ok
    assert list(other.expired(FAR + timedelta(days=1))) == []


@pytest.mark.parametrize("what", ["fold", "file", "read", "report", "append"])
def test_while_the_book_is_written_or_read(store, other, what):
    works = {
        "fold": store.health,
        "file": lambda: store.file(NewDocument(kind="invoice", key=new_id(), body="{}", series="INV")),
        "read": lambda: store.entry("nobody"),
        "report": lambda: store.aggregate([NOW, FAR], ["member"]),
        "append": lambda: store.append([(entry(new_id()), [Posting(KEY, 1)]) for _ in range(2)]),
    }

    def work():
        store.settle(entry(), [Posting(KEY, 1)])
        works[what]()

    each_line(work, lambda: assert_sound(store, other), step=3)
    assert store.verify().ok
    numbers = [document.number for document in store.documents()]
    assert numbers == list(range(1, len(numbers) + 1))
