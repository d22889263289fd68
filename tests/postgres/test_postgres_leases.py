"""Leases: a host that holds often is given room under a cap, out of which its processes hold without asking."""

import multiprocessing
import os
import signal
import threading
import time
from typing import Any

import psycopg
import pytest

from tokenmeter.ledger import CounterKey
from tokenmeter.processes import run_at_once
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError, Counter
from tokenmeter.stores.postgres import leases
from tokenmeter.stores.postgres.sessions import ServerRows
from tokenmeter.stores.postgres.store import _even_out

FORK = multiprocessing.get_context("fork")
CAP = CounterKey("cap", "", 0)
MANY = 40


@pytest.fixture
def lasting(monkeypatch):
    """A lease lasts as long as the test, however slow the machine is."""
    monkeypatch.setattr(leases, "_LEASE_NS", 3600 * 10**9)


@pytest.fixture
def url_of(postgres_url, tmp_path):
    """The ledger as the named host has it."""
    return lambda host: postgres_url.partition("&spool=")[0] + f"&spool={tmp_path}/{host}"


@pytest.fixture
def host(url_of, opened):
    return lambda name: opened(url_of(name))


@pytest.fixture
def hold(make_hold):
    return lambda limit=10_000, amount=1, seconds=60: make_hold((CAP, limit, amount), seconds=seconds)


@pytest.fixture
def leased(query):
    """Room that hosts have and nobody holds."""
    return lambda: int(query("SELECT coalesce(sum(amount), 0) FROM leases")[0][0])


def hold_many(store, hold, count=MANY):
    holds = [hold() for _ in range(count)]
    for one in holds:
        store.reserve(one)
    return holds


def eventually(holds):
    while not holds():
        time.sleep(0.02)


@pytest.mark.usefixtures("lasting")
def test_a_busy_host_holds_without_asking_the_server(host, hold, leased):
    store = host("a")
    hold_many(store, hold)
    assert leased() > 0

    run, here = store._pool.run, threading.get_ident()

    def refuse(*arguments, **options):
        """Only the caller must not wait for the server; the thread that sends records asks it whenever it likes."""
        if threading.get_ident() == here:
            raise AssertionError("the server was asked")
        return run(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._pool, "run", refuse)
        one = hold()
        run_at_once(store.reserve, one)
        run_at_once(store.extend, one.reservation_id, one.expires_at)
        run_at_once(store.release, one.reservation_id)


@pytest.mark.usefixtures("lasting")
@pytest.mark.parametrize("busy", [True, False], ids=["leased", "asked"])
def test_after_a_call_that_used_more_than_was_held_the_next_is_stopped(host, hold, make_entry, make_posting, busy):
    store = host("a")
    first, second, *_ = hold_many(store, lambda: hold(limit=1_000), MANY if busy else 2)
    store.settle(make_entry(), [make_posting(1, key=CAP)], reservation_id=first.reservation_id)
    store.flush()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.journal, "wake", lambda: None)  # its thread has not sent it yet
        store.settle(make_entry(), [make_posting(1_000, key=CAP)], reservation_id=second.reservation_id)
        with pytest.raises(CapReachedError):
            store.reserve(hold(limit=1_000))
    assert store.counters([CAP])[CAP].settled == 1_001


@pytest.mark.usefixtures("lasting")
def test_readers_see_what_is_held_and_not_what_is_leased(host, hold, leased):
    store, other = host("a"), host("b")
    hold_many(store, hold)
    assert store.counters([CAP]) == {CAP: Counter(0, MANY)}
    assert dict(other.all_counters()) == {CAP: Counter(0, MANY)}
    assert leased() > 0
    assert store.verify().ok


def test_what_is_leased_counts_once_it_is_settled(host, hold, make_entry, make_posting):
    store = host("a")
    for one in hold_many(store, hold):
        store.settle(make_entry(), [make_posting(1, key=CAP)], reservation_id=one.reservation_id)
    store.close()
    assert host("b").counters([CAP]) == {CAP: Counter(MANY, 0)}
    assert store.verify().ok


def test_closing_gives_everything_back(host, hold, leased, query):
    store = host("a")
    hold_many(store, hold)
    store.close()
    assert leased() == 0
    assert query("SELECT reserved FROM counters") == [(MANY,)]
    assert query("SELECT count(*) FROM lessees") == [(0,)]


def test_an_idle_host_gives_back_what_it_does_not_use(host, hold, leased):
    store = host("a")
    hold_many(store, hold)
    eventually(lambda: leased() == 0)
    assert store.counters([CAP]) == {CAP: Counter(0, MANY)}
    assert store.verify().ok


def test_a_claim_that_only_others_leases_stop_waits_for_them(host, hold):
    store, other = host("a"), host("b")
    hold_many(store, hold)
    other.reserve(hold(amount=10_000 - MANY))
    with pytest.raises(CapReachedError):
        other.reserve(hold())
    with pytest.raises(CapReachedError):
        store.reserve(hold())


def test_a_lower_limit_is_asked_of_the_server(host, hold):
    store = host("a")
    hold_many(store, hold)
    with pytest.raises(CapReachedError):
        store.reserve(hold(limit=MANY))
    assert store.counters([CAP]) == {CAP: Counter(0, MANY)}


def test_near_the_limit_nothing_is_leased(host, hold, leased):
    store = host("a")
    for _ in range(20):
        store.reserve(hold(limit=32))
    assert leased() == 0


def test_a_hold_out_of_a_lease_expires_as_any_other(host, hold):
    store, other = host("a"), host("b")
    hold_many(store, hold)
    one = hold(seconds=0)
    store.reserve(one)
    store.flush()
    assert [found.reservation_id for found in other.expired(other.now())] == [one.reservation_id]
    assert other.expired(other.now())[0].claims == one.claims


def _die_busy(url, hold, spent):
    store: Any = open_store(url)
    hold_many(store, hold)
    store.flush()
    spent.set()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def dead_host(url_of, hold, host):
    """A host that died with leases; its holds are on the server."""
    host("other")
    spent = FORK.Event()
    child = FORK.Process(target=_die_busy, args=(url_of("dead"), hold, spent))
    child.start()
    child.join()
    assert spent.is_set()


@pytest.mark.usefixtures("dead_host")
def test_what_a_dead_host_leased_comes_back_when_all_it_held_has_expired(host, hold, leased, query):
    other, rest = host("other"), hold(amount=10_000 - MANY)
    query("UPDATE lessees SET until = 0")
    with pytest.raises(CapReachedError):
        other.reserve(rest)
    query("UPDATE lessees SET expires_at = 0")
    other.reserve(rest)
    assert leased() == 0
    assert other.verify().ok


@pytest.mark.usefixtures("dead_host")
def test_the_next_process_of_a_host_gives_back_what_a_killed_one_left(host, hold, leased):
    assert leased() > 0
    host("dead").close()
    host("dead").reserve(hold(amount=10_000 - MANY))
    assert leased() == 0


@pytest.mark.usefixtures("dead_host")
def test_a_hold_that_arrives_after_its_lease_was_taken_still_counts(host, hold, query):
    store = host("a")
    hold_many(store, hold)
    store.journal.wake = lambda: None  # nothing is sent: as if the network were gone
    late = [hold() for _ in range(3)]
    for one in late:
        store.reserve(one)
    query("UPDATE lessees SET expires_at = 0, until = 0")
    query("SELECT recall_leases('cap', '', 0)")
    store.flush()
    assert store.counters([CAP]) == {CAP: Counter(0, 2 * MANY + 3)}
    assert store.verify().ok


def _hold_until_refused(url, hold, limit, admitted):
    store, count = open_store(url), 0
    try:
        while True:
            store.reserve(hold(limit=limit))
            count += 1
    except CapReachedError:
        admitted.put(count)
    store.close()


def test_a_cap_of_k_admits_k_over_processes_and_hosts(host, url_of, hold):
    limit, admitted = 777, FORK.SimpleQueue()
    store = host("reader")
    running = [
        FORK.Process(target=_hold_until_refused, args=(url_of(name), hold, limit, admitted))
        for name in ("a", "a", "b", "c")
    ]
    for process in running:
        process.start()
    assert sum(admitted.get() for _ in running) == limit
    for process in running:
        process.join()
    assert store.counters([CAP]) == {CAP: Counter(0, limit)}
    assert store.verify().ok


class TestOrderOfLocks:
    """Whoever gives leases back locks tables and counters in the order that all others do: nobody waits in a circle."""

    @pytest.fixture
    def ledger(self, host, hold, query):
        """A server on which a lease takes a while to go, with dead hosts that lease of one counter each."""
        store = host("a")
        hold_many(store, hold, 1)
        query("INSERT INTO counters (budget, scope, window_start, reserved) VALUES ('b', '', 0, 5), ('a', '', 0, 5)")
        query("INSERT INTO lessees (host, epoch, until, expires_at) VALUES ('h', 'e1', 0, 0), ('h', 'e2', 0, 0)")
        query("INSERT INTO leases VALUES ('b', '', 0, 'h', 'e1', 5), ('a', '', 0, 'h', 'e2', 5)")
        query(
            "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'"
        )
        query("CREATE TRIGGER linger AFTER DELETE ON leases FOR EACH STATEMENT EXECUTE FUNCTION linger()")
        return store

    def run(self, store, first, second):
        """Run both at once, the second while the first lingers; what each raised."""
        failed = []

        def session(work):
            try:
                with psycopg.connect(store.address.conninfo, autocommit=True) as connection:
                    connection.execute(f"SET search_path = {store.address.schema}")
                    with connection.transaction():
                        work(connection)
            except psycopg.Error as error:
                failed.append(error)

        threads = [threading.Thread(target=session, args=(work,)) for work in (first, second)]
        for thread in threads:
            thread.start()
            time.sleep(0.3)
        for thread in threads:
            thread.join()
        with psycopg.connect(store.address.conninfo, autocommit=True) as connection:
            connection.execute(f"DROP FUNCTION {store.address.schema}.linger() CASCADE")  # which `verify` would name
        return failed

    def test_a_rebuild_waits_for_leases_that_go_back(self, ledger):
        def give_back(connection):
            connection.execute("SELECT return_leases('h', ARRAY['e1'::bytea])")

        assert self.run(ledger, give_back, lambda connection: _even_out(ServerRows(connection))) == []
        assert ledger.verify().ok

    def test_who_moves_counters_waits_for_all_that_the_dead_leased(self, ledger):
        def recall(connection):
            connection.execute("SELECT recall_leases('c', '', 0)")

        def move(connection):
            for counter in ("a", "b"):
                connection.execute("UPDATE counters SET settled = settled + 1 WHERE budget = %s", (counter,))

        assert self.run(ledger, recall, move) == []
        assert ledger.verify().ok
