"""The spool: entries through outages of the server, full and read-only disks, forks and kills."""

import os
import resource
import signal
import threading
import time
import traceback

import pytest

from tokenmeter.errors import StoreError, StoreUnavailableError
from tokenmeter.stores import open_store, spool
from tokenmeter.stores.base import CapReachedError


@pytest.fixture
def url(own_postgres_server, tmp_path):
    return f"{own_postgres_server.url}&spool={tmp_path}/spool"


@pytest.fixture
def server(own_postgres_server):
    return own_postgres_server


def _ids(store):
    return sorted(entry.entry_id for entry in store.entries())


def _exit_code_of(work):
    """Run `work` in a forked child; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestOutage:
    def test_holds_fail_closed_and_entries_go_on(self, server, url, opened, make_entry, make_hold, make_posting, key):
        store = opened(url)
        hold = make_hold((key, 100, 10))
        store.reserve(hold)
        server.stop_at_once()
        with pytest.raises(StoreUnavailableError):
            store.reserve(make_hold((key, 100, 10)))
        entries = [make_entry() for _ in range(5)]
        settlements = [
            store.settle(entries[0], [make_posting(7, 5)], reservation_id=hold.reservation_id),
            *(store.settle(entry, [make_posting(7)]) for entry in entries[1:]),
        ]
        assert all(settlement.recorded for settlement in settlements)
        facts = store.health().facts
        assert (facts["spool_waiting"], facts["spooled_entries"]) == (5, 5)
        assert "away" in store.health().warnings[0]

        server.start()
        assert store.flush(20) == 0
        assert _ids(store) == sorted(entry.entry_id for entry in entries)
        counter = store.counters([key])[key]
        assert (counter.settled, counter.reserved) == (35, 0)
        assert store.verify().ok
        [crossing] = store.settle(make_entry()).crossings  # found out late, reported with the next settlement
        assert (crossing.threshold, crossing.settled) == (5, 35)

    def test_a_hold_goes_on_limiting_others_until_its_entry_arrives(
        self, server, url, opened, make_entry, make_hold, make_posting, key
    ):
        store = opened(url)
        other = opened(f"{url}-of-another-host")
        hold = make_hold((key, 10, 6))
        store.reserve(hold)
        time.sleep(0.8)  # holds are flushed within 0.6 seconds
        server.stop_at_once()
        store.settle(make_entry(), [make_posting(6)], reservation_id=hold.reservation_id)
        server.start()
        deadline = time.monotonic() + 20
        while True:  # at no time may the other host get more than what is left
            try:
                with pytest.raises(CapReachedError):
                    other.reserve(make_hold((key, 10, 5)))
                break
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert store.flush(20) == 0
        with pytest.raises(CapReachedError):
            other.reserve(make_hold((key, 10, 5)))
        other.reserve(make_hold((key, 10, 4)))

    def test_an_outage_costs_a_call_no_time(self, server, url, opened, make_entry, make_hold, key):
        store = opened(url)
        server.stop_at_once()
        store.settle(make_entry())
        started = time.perf_counter()
        for _ in range(20):
            store.settle(make_entry())
            with pytest.raises(StoreUnavailableError):
                store.reserve(make_hold((key, 10, 1)))
        assert time.perf_counter() - started < 2

    def test_the_spool_empties_by_itself(self, server, url, opened, make_entry):
        store = opened(url)
        server.stop_at_once()
        store.settle(make_entry())
        server.start()
        deadline = time.monotonic() + 20
        while store.health().facts["spool_waiting"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(_ids(store)) == 1

    def test_a_process_that_starts_in_an_outage_records_too(self, server, url, opened, make_entry):
        secret = opened(url).secret()
        server.stop_at_once()
        store = opened(url)
        assert store.secret() == secret
        assert store.settle(make_entry()).recorded
        server.start()
        assert store.flush(20) == 0
        assert len(_ids(store)) == 1

    def test_a_ledger_that_is_first_reached_after_an_outage_is_set_up_then(self, server, url, opened, make_entry):
        server.stop_at_once()
        store = opened(url)
        assert store.settle(make_entry()).recorded
        server.start()
        time.sleep(1)
        assert store.settle(make_entry()).recorded
        assert store.flush(20) == 0
        assert len(_ids(store)) == 2

    def test_a_sweep_is_done_on_the_server_or_not_at_all(self, server, url, opened, make_entry, make_hold, key):
        store = opened(url)
        hold = make_hold((key, 10, 1))
        store.reserve(hold)
        server.stop_at_once()
        with pytest.raises(StoreUnavailableError):
            store.settle(make_entry(), reservation_id=hold.reservation_id, only_if_held=True)
        assert store.flush(0) == 0


class TestRestartedServer:
    def test_stale_connections_are_replaced_unnoticed(self, server, url, opened, make_entry, make_hold, key):
        store = opened(url)
        store.settle(make_entry())
        server.stop_at_once()
        server.start()
        store.reserve(make_hold((key, 10, 1)))
        assert store.settle(make_entry()).recorded
        assert store.health().facts["spooled_entries"] == 0

    def test_an_entry_whose_answer_was_lost_counts_as_recorded_once(
        self, store, make_entry, make_posting, key, monkeypatch
    ):
        import psycopg

        real = store._pool._seated
        cut = []

        class Cut:
            def __init__(self, connection):
                self.connection = connection

            def __getattr__(self, name):
                return getattr(self.connection, name)

            def execute(self, *arguments):
                result = self.connection.execute(*arguments)
                if not cut and arguments[0].startswith(b"SELECT settle"):
                    cut.append(True)
                    raise psycopg.OperationalError("the connection was lost after the commit")
                return result

        from contextlib import contextmanager

        @contextmanager
        def seated(seat):
            with real(seat) as found:
                yield Cut(found)

        monkeypatch.setattr(store._pool, "_seated", seated)
        assert store.settle(make_entry(), [make_posting(3)]).recorded
        assert cut
        assert store.counters([key])[key].settled == 3
        assert len(_ids(store)) == 1


class TestSpool:
    def test_a_full_spool_is_told_and_loses_nothing(self, server, url, opened, make_entry):
        store = opened(f"{url}&spool_mb=1")
        server.stop_at_once()
        kept = 0

        def fill():
            nonlocal kept
            while kept < 2000:
                store.settle(make_entry(raw_usage="x" * 3000))
                kept += 1

        with pytest.raises(StoreUnavailableError, match="spool_mb="):
            fill()
        assert 50 < kept < 500
        assert store.health().facts["spool_waiting"] == kept
        server.start()
        assert store.flush(20) == 0
        assert len(_ids(store)) == kept
        store.settle(make_entry())
        assert len(_ids(store)) == kept + 1

    def test_without_a_spool_the_server_alone_records(self, postgres_url, opened, make_entry, tmp_path):
        (tmp_path / "spool").write_text("a file where the folder should be")
        store = opened(postgres_url)
        assert store.settle(make_entry()).recorded
        assert "spool takes no entry" in store.health().warnings[0]

    def test_without_spool_and_server_the_error_says_what_to_do(self, server, url, opened, make_entry, tmp_path):
        (tmp_path / "spool").write_text("a file where the folder should be")
        store = opened(url)
        server.stop_at_once()
        with pytest.raises(StoreUnavailableError, match="not recorded"):
            store.settle(make_entry())

    def test_a_disk_that_fills_up_is_told_and_what_is_in_the_spool_stays(self, server, url, opened, make_entry):
        """In a child whose files may grow no more: the server alone records, then nobody, and the error says so."""
        store = opened(url)
        server.stop_at_once()
        store.settle(make_entry())

        def grow_up_to(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def fill():
            while True:
                store.settle(make_entry(raw_usage="x" * 3000))
                kept.append(1)

        kept = []

        def work():
            grow_up_to(200_000)
            with pytest.raises(StoreUnavailableError, match="not recorded"):
                fill()
            assert 5 < len(kept) < 200
            grow_up_to(resource.RLIM_INFINITY)
            server.start()
            time.sleep(0.5)  # longer than the pause after a failure
            grow_up_to(10_000)
            assert store.settle(make_entry()).recorded
            assert "spool takes no entry" in store.health().warnings[0]
            grow_up_to(resource.RLIM_INFINITY)
            assert store.flush(20) == 0
            assert len(_ids(store)) == 1 + len(kept) + 1
            store.close()

        assert _exit_code_of(work) == 0

    def test_an_entry_the_server_refuses_is_kept_aside_and_does_not_block_others(self, store, query, make_entry):
        query("ALTER TABLE entries ADD CONSTRAINT picky CHECK (request_id IS DISTINCT FROM 'bad')")
        results = []

        def settle(request_id):
            try:
                results.append(store.settle(make_entry(request_id=request_id)).recorded)
            except StoreError as error:
                results.append(str(error))

        threads = [threading.Thread(target=settle, args=(name,)) for name in ("a", "bad", "b", "c", "d")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results.count(True) == 4
        assert store.flush(5) == 0
        assert "picky" in next(result for result in results if result is not True)
        facts = store.health().facts
        assert (facts["spool_refused"], facts["refused_entries"], facts["spool_waiting"]) == (1, 1, 0)
        assert "picky" in store.health().warnings[0]
        assert len(_ids(store)) == 4


class TestProcesses:
    def test_children_of_a_fork_and_their_parent_record_side_by_side(self, store, make_entry, make_posting, key):
        store.settle(make_entry(), [make_posting(1)])
        threads = threading.active_count()
        children = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    for _ in range(5):
                        assert store.settle(make_entry(), [make_posting(1)]).recorded
                    store.close()
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        for _ in range(5):
            store.settle(make_entry(), [make_posting(1)])
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
        assert store.counters([key])[key].settled == 21
        assert store.verify().ok
        assert threading.active_count() <= threads + 2

    def test_forks_while_threads_write_and_the_drainer_sends_lose_and_double_nothing(
        self, server, url, opened, make_entry, make_posting, key
    ):
        store = opened(url)
        server.stop_at_once()
        for _ in range(150):
            store.settle(make_entry(), [make_posting(1)])
        server.start()
        stop, written = threading.Event(), []

        def write():
            while not stop.is_set():
                store.settle(make_entry(), [make_posting(1)])
                written.append(1)

        def work():
            for _ in range(5):
                assert store.settle(make_entry(), [make_posting(1)]).recorded
            store.close()

        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        codes = [_exit_code_of(work) for _ in range(6)]
        codes += [_exit_code_of(lambda: _exit_code_of(work) and os.abort())]  # a child's child
        stop.set()
        for thread in threads:
            thread.join()
        assert codes == [0] * 7
        assert store.flush(20) == 0
        assert len(_ids(store)) == 150 + len(written) + 7 * 5
        assert store.counters([key])[key].settled == 150 + len(written) + 7 * 5
        assert store.verify().ok

    def test_what_a_killed_process_left_is_sent_by_another(self, postgres_url, opened, make_entry, monkeypatch):
        monkeypatch.setattr(spool, "OWN_SECONDS", 1)
        entry = make_entry()
        child = os.fork()
        if child == 0:
            store = open_store(postgres_url)
            store._shipping._send = lambda ticket: os.kill(os.getpid(), signal.SIGKILL)  # between spool and server
            store.settle(entry)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        store = opened(postgres_url)
        assert store.health().facts["spool_waiting"] == 1
        assert store.flush(10) == 0
        assert _ids(store) == [entry.entry_id]

    def test_one_drainer_at_a_time_looks_after_a_spool(self, tmp_path):
        shared = spool.Spool(tmp_path / "spool.db", most_bytes=1 << 20)
        assert shared.lease("one", 60)
        assert shared.lease("one", 60)
        assert not shared.lease("two", 60)
        shared.end_lease("two")
        assert not shared.lease("two", 60)
        shared.end_lease("one")
        assert shared.lease("two", -1)
        assert shared.lease("three", 60)
        shared.close()

    def test_stores_that_are_never_closed_leave_no_warning(self, postgres_url, make_entry):
        import subprocess
        import sys

        script = (
            "import sys; from tokenmeter.stores import open_store; store = open_store(sys.argv[1]); "
            "store.secret(); store._drainer.start()"
        )
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", script, postgres_url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
