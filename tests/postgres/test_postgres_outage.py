"""The spool: entries through outages of the server, full and read-only disks, forks and kills."""

import contextlib
import json
import os
import resource
import signal
import threading
import time
import traceback
from typing import Any

import pytest

import tokenmeter
from tokenmeter import checkpoints
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.processes import run_at_once
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError
from tokenmeter.stores.postgres.pool import Pool
from tokenmeter.stores.postgres.sessions import ServerRows
from tokenmeter.stores.record import encode_entry
from tokenmeter.stores.tail import frame


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
        assert store.health().facts["spool_waiting"] == 5
        assert "away" in store.health().warnings[0]
        with pytest.raises(StoreUnavailableError, match="no head to sign"):
            checkpoints.sign(store, bytes(range(32)))

        server.start()
        assert store.flush(60) == 0
        assert _ids(store) == sorted(entry.entry_id for entry in entries)
        counter = store.counters([key])[key]
        assert (counter.settled, counter.reserved) == (35, 0)
        assert store.verify().ok
        [crossing] = store.settle(make_entry()).crossings  # found out late, reported with the next settlement
        assert (crossing.threshold, crossing.settled) == (5, 7)

    def test_a_hold_goes_on_limiting_others_until_its_entry_arrives(
        self, server, url, opened, make_entry, make_hold, make_posting, key
    ):
        store = opened(url)
        other = opened(f"{url}-of-another-host")
        hold = make_hold((key, 10, 6))
        store.reserve(hold)
        while other.counters([key])[key].reserved != 6:  # holds reach the server after a moment
            time.sleep(0.02)
        server.stop_at_once()
        store.settle(make_entry(), [make_posting(6)], reservation_id=hold.reservation_id)
        server.start()
        deadline = time.monotonic() + 60
        while True:  # at no time may the other host get more than what is left
            try:
                with pytest.raises(CapReachedError):
                    other.reserve(make_hold((key, 10, 5)))
                break
            except StoreUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert store.flush(60) == 0
        with pytest.raises(CapReachedError):
            other.reserve(make_hold((key, 10, 5)))
        other.reserve(make_hold((key, 10, 4)))

    def test_an_outage_costs_a_call_no_time(self, server, url, opened, make_entry, make_hold, key):
        store = opened(url)
        server.stop_at_once()
        store.settle(make_entry())
        for _ in range(20):
            assert run_at_once(store.settle, make_entry()).recorded
            with pytest.raises(StoreUnavailableError):
                store.reserve(make_hold((key, 10, 1)))
        assert store.health().facts["server_failures"] < 20  # it was not asked each time

    def test_once_a_report_was_read_no_call_is_told_that_the_server_is_away(self, server, url, opened, key):
        """As where somebody is told by a probe that pages can be read: so they can, budgets too."""
        store = opened(url)
        since = store.now()
        server.stop_at_once()
        while store._pool._pause < 4:  # calls fail at once for three seconds and more
            with contextlib.suppress(StoreUnavailableError):
                store.counters([key])
        server.start()
        store.aggregate([since, since], ())
        assert store.counters([key])[key].settled == 0

    def test_the_spool_empties_by_itself(self, server, url, opened, make_entry):
        store = opened(url)
        server.stop_at_once()
        store.settle(make_entry())
        server.start()
        deadline = time.monotonic() + 60
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
        assert store.flush(60) == 0
        assert len(_ids(store)) == 1

    def test_a_ledger_that_is_first_reached_after_an_outage_is_set_up_then(self, server, url, opened, make_entry):
        server.stop_at_once()
        store = opened(url)
        assert store.settle(make_entry()).recorded
        server.start()
        time.sleep(1)
        assert store.settle(make_entry()).recorded
        assert store.flush(60) == 0
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
        assert store.flush(60) == 0
        server.stop_at_once()
        server.start()
        store.reserve(make_hold((key, 10, 1)))
        assert store.settle(make_entry()).recorded
        assert store.flush(60) == 0

    def test_who_reads_connects_once_and_again_where_that_connection_is_gone(
        self, server, url, opened, make_entry, monkeypatch
    ):
        from tokenmeter.stores.postgres.pool import Pool

        store = opened(url)
        store.settle(make_entry())
        assert len(_ids(store)) == 1
        made, connect = [], Pool._connect
        monkeypatch.setattr(Pool, "_connect", lambda *known, **more: made.append(1) or connect(*known, **more))
        for _ in range(3):
            assert len(_ids(store)) == 1
        assert made == []
        server.stop_at_once()
        server.start()
        for _ in range(3):
            assert len(_ids(store)) == 1
        assert made

    def test_a_fold_whose_answer_was_lost_is_done_once(self, store, make_entry, make_posting, key, monkeypatch):
        import psycopg

        cut = []
        real = psycopg.Connection.commit

        def commit(connection):
            real(connection)
            if not cut:
                cut.append(True)
                connection.close()
                raise psycopg.OperationalError("the connection was lost after the commit")

        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        assert store.settle(make_entry(), [make_posting(3)]).recorded
        assert store.flush(10) == 0
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
            while kept < 20_000:  # it takes the sender a moment to find the server gone
                store.settle(make_entry(raw_usage="x" * 3000))
                kept += 1

        with pytest.raises(StoreUnavailableError, match="spool_mb="):
            fill()
        assert kept
        assert store.health().facts["spool_waiting"] == kept
        server.start()
        assert store.flush(60) == 0
        assert len(_ids(store)) == kept
        store.settle(make_entry())
        assert len(_ids(store)) == kept + 1

    def test_where_the_folder_cannot_be_used_a_temporary_one_is(self, postgres_url, opened, make_entry, tmp_path):
        (tmp_path / "spool").write_text("a file where the folder should be")
        store = opened(postgres_url)
        assert store.settle(make_entry()).recorded
        assert store.flush(10) == 0
        assert "temporary folder" in store.health().warnings[0]

    def test_a_disk_that_fills_up_is_told_and_what_is_in_the_spool_stays(self, server, url, opened, make_entry):
        """In a child whose files may grow no more: the error says so, and what was acknowledged arrives."""
        store = opened(url)
        store.settle(make_entry())
        server.stop_at_once()

        def grow_up_to(size):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        def fill():
            while True:
                store.settle(make_entry(raw_usage="x" * 3000))
                kept.append(1)

        kept = []

        def work():
            grow_up_to(200_000)
            with pytest.raises(StoreUnavailableError, match=r"File too large\. .*ulimit -f"):
                fill()
            grow_up_to(resource.RLIM_INFINITY)
            server.start()
            assert store.flush(60) == 0
            assert len(_ids(store)) == 1 + len(kept)
            store.close()

        assert _exit_code_of(work) == 0

    def test_an_entry_the_server_refuses_is_kept_aside_and_does_not_block_others(self, store, query, make_entry):
        query("ALTER TABLE entries ADD CONSTRAINT picky CHECK (body NOT LIKE '%%bad%%')")
        for request_id in ("a", "bad", "b", "c", "d"):
            assert store.settle(make_entry(request_id=request_id)).recorded
        assert store.flush(5) == 0
        facts = store.health().facts
        assert (facts["refused_records"], facts["spool_waiting"]) == (1, 0)
        assert "picky" in store.health().warnings[0]
        assert len(_ids(store)) == 4

    @pytest.mark.parametrize("wrong", [{"dedup_key": 5}, {"id": 5}, {"dedup_key": ["k"]}])
    def test_an_identity_that_is_no_text_does_not_block_others(self, store, make_entry, wrong):
        record = json.loads(encode_entry(make_entry(dedup_key="k"), store.journal.definitions))
        store.journal._append(frame(json.dumps({**record, **wrong}).encode(), b'{"seek":true}'))
        assert store.settle(make_entry(dedup_key="another")).recorded
        assert store.flush(10) == 0
        assert len(_ids(store)) + store.health().facts["refused_records"] == 2

    def test_a_row_that_another_session_has_locked_is_no_outage(
        self, store, query, postgres_server_url, make_entry, make_hold, make_posting, key, monkeypatch
    ):
        import psycopg

        monkeypatch.setattr(Pool, "seconds", 1)
        store.settle(make_entry(), [make_posting(1)])
        store.flush(10)
        other = CounterKey("another", "", 0)
        with psycopg.connect(postgres_server_url) as session:
            session.execute(f"SET search_path = {query.schema}")
            session.execute("SELECT 1 FROM counters FOR UPDATE")
            with pytest.raises(StoreUnavailableError, match="hold a lock"):
                store.reserve(make_hold((key, 10, 1)))
            store.reserve(make_hold((other, 10, 1)))
        store.reserve(make_hold((key, 10, 1)))
        assert store.health().facts["server_failures"] == 0

    def test_a_call_waits_once_for_counters_that_another_session_has_locked(
        self, postgres_url, postgres_server_url, query, provider, monkeypatch
    ):
        """Its plan waited for them; the general way, which says what comes of it, does not once more."""
        import psycopg

        openai = pytest.importorskip("openai")
        monkeypatch.setattr(Pool, "seconds", 1)
        meter = tokenmeter.make_meter(store=postgres_url, budgets=[{"name": "all", "limit_usd": "50"}])
        sdk = openai.OpenAI(base_url=provider.openai_url, api_key="sk-test-0123456789", max_retries=0)
        client: Any = tokenmeter.wrap(sdk, meter=meter)
        asked, execute = [], ServerRows.execute

        def noted(self, statement, values=()):
            asked.append(statement)
            return execute(self, statement, values)

        def call():
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])

        for _ in range(3):
            call()
        meter.flush()
        monkeypatch.setattr(ServerRows, "execute", noted)
        with psycopg.connect(postgres_server_url) as session:
            session.execute(f"SET search_path = {query.schema}")
            session.execute("SELECT 1 FROM counters FOR UPDATE")
            with pytest.raises(StoreUnavailableError, match=r"A hard cap applies .* hold a lock"):
                call()
        assert sum("reserve(" in one for one in asked) == 1
        call()
        client.close()
        meter.close()

    def test_those_who_wait_for_one_lock_wait_as_long_as_one(
        self, store, query, postgres_server_url, make_entry, make_posting, monkeypatch
    ):
        import psycopg

        monkeypatch.setattr(Pool, "seconds", 1)
        store.settle(make_entry(), [make_posting(1)])
        store.flush(10)
        store._pool.close()
        store.journal._sender.close()
        monkeypatch.setattr(store.journal, "wake", lambda: None)
        store.settle(make_entry(), [make_posting(1)])
        waited, write_fold, all_there = [], store._book.write_fold, threading.Barrier(5)

        def noted(*arguments):
            waited.append(arguments)
            return write_fold(*arguments)

        def send():
            all_there.wait()
            with pytest.raises(StoreUnavailableError, match="hold a lock"):
                store.journal.send()

        monkeypatch.setattr(store._book, "write_fold", noted)
        with psycopg.connect(postgres_server_url) as session:
            session.execute(f"SET search_path = {query.schema}")
            session.execute("SELECT 1 FROM counters FOR UPDATE")
            threads = [threading.Thread(target=send) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(waited) == 1
        assert store.flush(10) == 0

    def test_waiting_for_others_is_told_only_when_it_goes_on(
        self, store, query, postgres_server_url, make_entry, monkeypatch, caplog
    ):
        import psycopg

        monkeypatch.setattr(Pool, "seconds", 1)
        store.flush(10)
        store._pool.close()  # what is opened from here on waits a second only
        store.journal._sender.close()
        store.journal._sender._thread.join()  # nobody but this test sends
        monkeypatch.setattr(store.journal, "wake", lambda: None)
        store.settle(make_entry())
        with psycopg.connect(postgres_server_url) as session:
            session.execute(f"SET search_path = {query.schema}")
            session.execute("SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)")
            for told in (0, 0, 1):
                with pytest.raises(StoreUnavailableError, match="hold a lock"):
                    store.journal.send()
                said = [record.getMessage() for record in caplog.records]  # a store of another test may be heard, too
                assert sum(query.schema in one and "could not send entries" in one for one in said) == told
        assert store.flush(10) == 0
        assert "can send entries to the PostgreSQL ledger again" in caplog.text

    def test_a_flush_ends_at_its_time_though_others_write_on(self, store, make_entry, monkeypatch):
        send, sent = store.journal.send, []
        store.journal._sender.close()
        store.journal._sender._thread.join()  # nobody but this test sends
        monkeypatch.setattr(store.journal, "wake", lambda: None)

        def with_another_writer():
            sent.append(send())
            assert len(sent) < 20
            store.settle(make_entry())

        store.settle(make_entry())
        monkeypatch.setattr(store.journal, "send", with_another_writer)
        assert store.flush(0) == 1
        assert len(sent) == 1


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
            while not stop.wait(0.002):  # no faster than the server takes it, else the children wait for ever more
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
        assert store.flush(60) == 0
        assert len(_ids(store)) == 150 + len(written) + 7 * 5
        assert store.counters([key])[key].settled == 150 + len(written) + 7 * 5
        assert store.verify().ok

    def test_what_a_killed_process_left_is_sent_by_another(self, postgres_url, opened, make_entry):
        entry = make_entry()
        child = os.fork()
        if child == 0:
            store: Any = open_store(postgres_url)
            store.journal.wake = lambda: None
            store.settle(entry)
            os.kill(os.getpid(), signal.SIGKILL)  # between tail and server
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        store = opened(postgres_url)
        assert store.flush(10) == 0
        assert _ids(store) == [entry.entry_id]

    def test_what_a_short_program_recorded_is_on_the_server_when_it_has_ended(self, postgres_url, query, tmp_path):
        import subprocess
        import sys

        script = (
            "import sys, tokenmeter; tokenmeter.configure(store=sys.argv[1]); "
            "tokenmeter.record({'prompt_tokens': 1, 'completion_tokens': 1, 'total_tokens': 2}, "
            "provider='openai', endpoint='chat.completions', model='gpt-5-mini')"
        )
        subprocess.run([sys.executable, "-c", script, postgres_url], check=True)
        assert query("SELECT entries FROM ledger") == [(1,)]

    def test_stores_that_are_never_closed_leave_no_warning(self, postgres_url, make_entry):
        import subprocess
        import sys

        script = (
            "import sys; from tokenmeter.stores import open_store; store = open_store(sys.argv[1]); "
            "store.secret(); store.journal.wake()"
        )
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", script, postgres_url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_a_statement_amid_which_the_program_ends_goes_on(self, postgres_url):
        import subprocess
        import sys

        script = """
import atexit, sys, threading
def ask():
    with store._pool.lend() as connection:
        begun.set()
        told.append(connection.execute("SELECT 'whole' FROM pg_sleep(0.3)").fetchall())
begun, told = threading.Event(), []
thread = threading.Thread(target=ask, daemon=True)
atexit.register(lambda: (thread.join(), print(told)))  # the first of these is the last to be called
from tokenmeter.stores import open_store
store = open_store(sys.argv[1])
store.secret()
thread.start()
begun.wait()
"""
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "error", "-c", script, postgres_url],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "[[('whole',)]]\n", "")
