"""Caps under concurrency: processes on two hosts (separate spools), threads, leases, deaths."""

import contextlib
import multiprocessing
import threading
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from tokenmeter import Budget, BudgetExceededError, make_meter
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.ledger import CounterKey, utcnow
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError
from tokenmeter.stores.postgres.pool import Pool

KEY = CounterKey("cap", "member=ada", 0)
CAP = 60


def _spend(url, make_hold, make_entry, make_posting, tries, admitted):
    """As an application would: reserve, call, settle; count what was admitted."""
    store = open_store(url)

    def work():
        for _ in range(tries):
            hold = make_hold((KEY, CAP, 1))
            try:
                store.reserve(hold)
            except CapReachedError:
                continue
            store.settle(make_entry(), [make_posting(1)], reservation_id=hold.reservation_id)
            with admitted.get_lock():
                admitted.value += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


@pytest.fixture
def hosts(postgres_url):
    """Two hosts: the same server, separate spool folders."""
    return [postgres_url, postgres_url.replace("/spool", "/spool-of-another-host")]


def _run(hosts, make_hold, make_entry, make_posting, tries):
    fork = multiprocessing.get_context("fork")
    admitted = fork.Value("i", 0)
    arguments = (make_hold, make_entry, make_posting, tries, admitted)
    processes = [fork.Process(target=_spend, args=(host, *arguments)) for host in hosts * 2]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    return admitted.value


def test_a_cap_of_k_over_two_hosts_admits_exactly_k(hosts, store, make_hold, make_entry, make_posting):
    assert _run(hosts, make_hold, make_entry, make_posting, tries=10) == CAP
    counter = store.counters([KEY])[KEY]
    assert (counter.settled, counter.reserved) == (CAP, 0)
    assert len(list(store.entries())) == CAP
    assert store.verify().ok


def test_an_expired_hold_goes_by_the_servers_clock(store, make_hold, key):
    store._pool.skew_us = 3600 * 1_000_000  # this host's clock is an hour late
    now = store.now()
    assert abs(now - utcnow() - timedelta(hours=1)) < timedelta(minutes=5)
    store.reserve(replace(make_hold((key, 10, 1)), expires_at=now + timedelta(seconds=60)))
    store._pool.skew_us = 0  # another host, whose clock is right
    assert list(store.expired(now)) == []
    assert len(store.expired(now + timedelta(seconds=61))) == 1


def test_the_servers_clock_decides_the_window(postgres_url, monkeypatch):
    hour = timedelta(hours=1)
    monkeypatch.setattr("tokenmeter.stores.postgres.store.utcnow", lambda: utcnow() - hour)  # this host's clock is late
    monkeypatch.setattr(
        "tokenmeter.stores.postgres.sessions.time", SimpleNamespace(time_ns=_an_hour_ago_ns, monotonic=time.monotonic)
    )
    late = make_meter(store=postgres_url, config={}, budgets=[Budget(limit_requests=5, period="hour")])
    call = Call(
        provider="openai", endpoint="chat.completions", operation="chat", facts=RequestFacts(model="gpt-5-mini")
    )
    before = utcnow() - timedelta(minutes=5)
    late.settle(late.authorize(call), Outcome(status="ok"))
    (entry,) = late.store.entries()
    assert before < entry.occurred_at < utcnow() + timedelta(minutes=5)
    (balance,) = late.remaining(at=entry.occurred_at)
    assert balance.spent == 1
    assert balance.window_start == entry.occurred_at.replace(minute=0, second=0, microsecond=0)
    late.close()


def _an_hour_ago_ns():
    return time.time_ns() - 3600 * 1_000_000_000


def _in_threads(count, work):
    """Run `work` in so many threads that begin together; what went wrong."""
    begin, failed = threading.Barrier(count), []

    def run():
        begin.wait()
        try:
            work()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


@pytest.fixture
def connections(monkeypatch):
    """How many connections are open, and how many were at most."""
    seen = SimpleNamespace(open=0, most=0, made=0)
    connect, close, lock = Pool._connect, Pool._close, threading.Lock()

    def opening(pool, **given):
        with lock:
            seen.open += 1
            seen.made += 1
            seen.most = max(seen.most, seen.open)
        return connect(pool, **given)

    def closing(pool, connection):
        close(pool, connection)
        with lock:
            seen.open -= 1

    monkeypatch.setattr(Pool, "_connect", opening)
    monkeypatch.setattr(Pool, "_close", closing)
    return seen


def test_a_crowd_of_first_calls_under_a_cap_looks_it_up_together(postgres_url, connections):
    """Each looked up by itself what the ledger holds, by a connection of its own: more than a server has."""
    meter = make_meter(store=postgres_url, budgets=[Budget(limit_requests=40, period="month")])
    facts = RequestFacts(model="gpt-5-mini")

    def make_call():
        call = Call(provider="openai", endpoint="chat.completions", operation="chat", facts=facts)
        with contextlib.suppress(BudgetExceededError):
            meter.settle(meter.authorize(call), Outcome(status="ok"))

    assert _in_threads(80, make_call) == []
    assert sum(1 for _ in meter.store.entries()) == 40
    assert connections.most <= 8  # twice `pool`
    assert connections.made <= 20
    meter.close()


def test_as_many_read_at_a_time_as_there_are_connections_and_the_others_wait(postgres_url, opened, connections):
    store = opened(f"{postgres_url}&pool=2")
    inside, most, lock = [], [], threading.Lock()

    def read():
        def look(rows):
            with lock:
                inside.append(1)
                most.append(len(inside))
            store._book.read(lambda again: again.execute("SELECT 1").fetchone())  # who reads already need not wait
            rows.execute("SELECT pg_sleep(0.01)")
            with lock:
                inside.pop()

        store._book.read(look)

    assert _in_threads(30, read) == []
    assert max(most) <= 2
