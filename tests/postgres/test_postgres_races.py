"""Caps under concurrency: processes on two hosts (separate spools), threads, leases, deaths."""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from tokenmeter import Budget, make_meter
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.ledger import CounterKey, utcnow
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError

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


def _run(hosts, suffix, make_hold, make_entry, make_posting, tries):
    fork = multiprocessing.get_context("fork")
    admitted = fork.Value("i", 0)
    arguments = (make_hold, make_entry, make_posting, tries, admitted)
    processes = [fork.Process(target=_spend, args=(host + suffix, *arguments)) for host in hosts * 2]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    return admitted.value


def test_a_cap_of_k_over_two_hosts_admits_exactly_k(hosts, store, make_hold, make_entry, make_posting):
    assert _run(hosts, "", make_hold, make_entry, make_posting, tries=10) == CAP
    counter = store.counters([KEY])[KEY]
    assert (counter.settled, counter.reserved) == (CAP, 0)
    assert len(list(store.entries())) == CAP
    assert store.verify().ok


def test_leases_never_pass_the_cap_and_give_everything_back(hosts, store, make_hold, make_entry, make_posting):
    admitted = _run(hosts, "&leases=4", make_hold, make_entry, make_posting, tries=25)
    counter = store.counters([KEY])[KEY]
    assert counter.settled == admitted == len(list(store.entries())) <= CAP
    assert counter.reserved == 0
    assert store.verify().ok
    assert admitted >= CAP - 10  # what another process had leased and not used was refused here


class TestLeases:
    @pytest.fixture
    def leasing(self, opened, postgres_url):
        return opened(f"{postgres_url}&leases=4")

    def test_a_leased_hold_needs_no_network(self, leasing, make_hold, key):
        leasing.reserve(make_hold((key, 1000, 1)))
        leasing.reserve(make_hold((key, 1000, 1)), wait=False)
        assert leasing.counters([key])[key].reserved == 250

    def test_a_leased_hold_is_settled_released_and_extended_like_any(
        self, leasing, make_hold, make_entry, make_posting, key
    ):
        first, second = make_hold((key, 1000, 5)), make_hold((key, 1000, 5))
        leasing.reserve(first)
        leasing.reserve(first)
        leasing.reserve(second)
        assert leasing.extend(first.reservation_id, first.expires_at)
        settlement = leasing.settle(make_entry(), [make_posting(3)], reservation_id=first.reservation_id)
        assert (settlement.recorded, settlement.hold_found) == (True, True)
        assert leasing.release(second.reservation_id)
        assert not leasing.release(second.reservation_id)
        leasing.close()
        counter = leasing.counters([key])[key]
        assert (counter.settled, counter.reserved) == (3, 0)
        assert leasing.verify().ok

    def test_a_repeated_bill_gives_its_hold_back(self, leasing, make_hold, make_entry, make_posting, key):
        for _ in range(2):
            hold = make_hold((key, 1000, 5))
            leasing.reserve(hold)
            entry = make_entry(dedup_key="openai:1")
            leasing.settle(entry, [make_posting(3)], reservation_id=hold.reservation_id)
        leasing.close()
        counter = leasing.counters([key])[key]
        assert (counter.settled, counter.reserved) == (3, 0)

    def test_near_the_cap_every_call_asks_the_server(self, leasing, opened, postgres_url, make_hold, key):
        other = opened(postgres_url)
        for _ in range(10):
            leasing.reserve(make_hold((key, 10, 1)))
        with pytest.raises(CapReachedError):
            leasing.reserve(make_hold((key, 10, 1)))
        with pytest.raises(CapReachedError):
            other.reserve(make_hold((key, 10, 1)))
        assert other.counters([key])[key].reserved == 10

    def test_idle_leases_go_back_by_themselves(self, leasing, make_hold, key):
        hold = make_hold((key, 1000, 1))
        leasing.reserve(hold)
        leasing.release(hold.reservation_id)
        deadline = time.monotonic() + 10
        while leasing.counters([key])[key].reserved and time.monotonic() < deadline:
            time.sleep(0.1)
        assert leasing.counters([key])[key].reserved == 0

    def test_what_a_dead_process_had_leased_is_free_after_its_expiry(self, postgres_url, store, make_hold, query, key):
        child = os.fork()
        if child == 0:
            open_store(f"{postgres_url}&leases=1").reserve(make_hold((key, 10, 1)))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        with pytest.raises(CapReachedError):
            store.reserve(make_hold((key, 10, 1)))
        query("UPDATE leases SET expires_at = 0")
        store.reserve(make_hold((key, 10, 10)))
        assert store.verify().ok


def test_an_expired_hold_goes_by_the_servers_clock(store, make_hold, key):
    store._pool.skew_us = 3600 * 1_000_000  # this host's clock is an hour late
    now = store.now()
    assert abs(now - utcnow() - timedelta(hours=1)) < timedelta(seconds=2)
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
    before = utcnow() - timedelta(seconds=2)
    late.settle(late.authorize(call), Outcome(status="ok"))
    (entry,) = late.store.entries()
    assert before < entry.occurred_at < utcnow() + timedelta(seconds=2)
    (balance,) = late.remaining(at=entry.occurred_at)
    assert balance.spent == 1
    assert balance.window_start == entry.occurred_at.replace(minute=0, second=0, microsecond=0)
    late.close()


def _an_hour_ago_ns():
    return time.time_ns() - 3600 * 1_000_000_000
