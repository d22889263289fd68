"""The shared ledger: append-only, chained and checked; text PostgreSQL cannot hold; calls that must not wait."""

import os
import random
import re
import shutil
import threading
import time
import uuid
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from tokenmeter.attribution import Attribution
from tokenmeter.erasing import erase
from tokenmeter.errors import ConfigurationError, StoreBusyError
from tokenmeter.ledger import CounterKey, utcnow
from tokenmeter.processes import run_at_once
from tokenmeter.stores import open_store
from tokenmeter.stores.postgres.sessions import ServerRows
from tokenmeter.stores.record import encode_entry
from tokenmeter.stores.tail import segment_path, segments

EVER = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
def make_database(postgres_server_url):
    """Make a database of an encoding and with settings of its own; the URL of a ledger in it."""
    import psycopg

    name = f"odd_{uuid.uuid4().hex}"

    def make(encoding, **settings):
        with psycopg.connect(postgres_server_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
            for setting, value in settings.items():
                connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
        return re.sub("/[^/?]*(?=[?]|$)", f"/{name}", postgres_server_url, count=1)

    yield make
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_what_a_database_has_set_for_its_sessions_changes_nothing(
    make_database, tmp_path, opened, make_entry, make_hold, make_posting, key
):
    url = make_database(
        "UTF8",
        default_transaction_isolation="serializable",
        standard_conforming_strings="off",
        client_encoding="LATIN1",
        bytea_output="escape",
        datestyle="SQL",
        intervalstyle="sql_standard",
        timezone="Asia/Kathmandu",
        transform_null_equals="on",
        quote_all_identifiers="on",
        search_path="nowhere",
    )
    store = opened(f"{url}{'&' if '?' in url else '?'}spool={tmp_path}/spool")
    hold = make_hold((key, 20, 12))
    store.reserve(hold)
    store.settle(
        make_entry(attribution=Attribution(end_user="Łucja 😀")), [make_posting(7)], reservation_id=hold.reservation_id
    )
    store.flush()
    erase(store, "end_user", "Łucja 😀", reason="asked to", by="kim")
    assert store.counters([key])[key].settled == 7
    assert len(list(store.entries())) == 1
    assert store.verify(deep=True).ok


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_name_is_refused(make_database, encoding):
    with pytest.raises(ConfigurationError, match=f"keeps text as {encoding}.* ENCODING 'UTF8' TEMPLATE template0"):
        open_store(make_database(encoding))


@pytest.mark.parametrize("table", ["entries", "accounts", "rates", "documents"])
@pytest.mark.parametrize("action", ["DELETE FROM {}", "TRUNCATE {}"])
def test_the_ledger_is_append_only_even_for_its_owner(store, query, make_entry, table, action):
    import psycopg

    store.settle(make_entry())
    store.flush()
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        query(action.format(table))
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        query("UPDATE entries SET list_micro = 0")


class TestVerify:
    @pytest.fixture
    def tampered(self, store, query, make_entry):
        for index in range(6):
            store.settle(make_entry(request_model=f"model-{index % 2}"))
        assert store.verify().ok

        def run(statement):
            query(f"SET session_replication_role = replica; {statement}")
            return {fault.kind for fault in store.verify().faults}

        return run

    def test_finds_an_edited_entry(self, tampered):
        assert "edited" in tampered("UPDATE entries SET billed_micro = billed_micro + 1 WHERE seq = 3")

    def test_finds_an_edited_record_whose_hash_was_edited_too(self, tampered):
        assert "edited" in tampered(
            "UPDATE entries SET body = replace(body, 'gpt', 'gtp') || ' ', hash = sha256(hash) WHERE seq = 3"
        )

    def test_finds_an_edited_shared_row(self, tampered):
        assert "edited" in tampered("UPDATE accounts SET team = 99")

    def test_finds_an_edited_name(self, tampered):
        assert "edited" in tampered("UPDATE names SET value = 'bob'")

    def test_finds_a_removed_entry(self, tampered):
        assert "missing" in tampered("DELETE FROM entries WHERE seq = 3")

    def test_finds_a_cut_tail(self, tampered):
        assert "cut" in tampered("DELETE FROM entries WHERE seq >= 5")

    def test_finds_an_added_entry(self, tampered):
        assert "edited" in tampered(
            "INSERT INTO entries SELECT (e).* FROM (SELECT jsonb_populate_record(e, "
            """'{"seq": 7, "entry_id": "forged"}') AS e FROM entries AS e LIMIT 1) AS forged"""
        )

    def test_finds_a_trigger_that_was_switched_off(self, store, query, make_entry):
        query("ALTER TABLE entries DISABLE TRIGGER entries_stay")
        assert [fault.kind for fault in store.verify().faults] == ["trigger"]

    def test_finds_a_wrong_sum(self, tampered):
        assert tampered("UPDATE sums SET billed_micro = billed_micro + 1") == {"rollup"}

    def test_finds_a_wrong_counter(self, tampered):
        assert tampered("INSERT INTO counters (budget, scope, window_start, reserved) VALUES ('b', '', 0, 5)") == {
            "counter"
        }


def test_text_that_postgresql_cannot_hold_is_escaped_and_kept(store, make_entry):
    entry = make_entry(
        request_model="a\0b", response_id="x\ud800y", raw_usage='{"\ud83d": "\\u0000"}', error_type="E\n"
    )
    assert store.settle(entry).recorded
    kept = store.entry(entry.entry_id)
    assert kept == replace(entry, request_model="a\\x00b", response_id="x\\ud800y", raw_usage='{"\\ud83d": "\\u0000"}')
    assert store.verify().ok


def test_a_known_account_is_recorded_without_asking_the_server(store, make_entry, make_posting, key):
    store.settle(make_entry())
    assert run_at_once(store.settle, make_entry(), [make_posting(4, 100)]).recorded
    assert store.counters([key])[key].settled == 4


def test_nothing_waits_for_the_network_when_asked_not_to(store, make_entry, make_hold, key):
    calls = [
        lambda: store.settle(make_entry(dedup_key="bill")),
        lambda: store.settle(make_entry(attribution=Attribution(member="never seen"))),
        lambda: store.reserve(make_hold((key, 5, 1))),
        lambda: store.release("none"),
        lambda: store.extend("none", utcnow()),
    ]
    for call in calls:
        with pytest.raises(StoreBusyError):
            run_at_once(call)
    assert list(store.entries()) == []
    assert store.counters([key])[key].reserved == 0


def test_a_retried_bill_posts_once_whoever_sends_it(store, opened, postgres_url, make_entry, make_posting, key):
    other = opened(postgres_url.replace("/spool", "/other-spool"))
    results = []

    def work(target):
        entry = make_entry(dedup_key="openai:resp_1")
        results.append(target.settle(entry, [make_posting(7)]).recorded)

    threads = [threading.Thread(target=work, args=(target,)) for target in (store, other) * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 15 + [True]
    assert store.counters([key])[key].settled == 7


def test_each_threshold_is_reported_once_under_concurrency(store, make_entry, make_posting):
    crossed = []

    def work():
        for _ in range(10):
            crossed.extend(store.settle(make_entry(), [make_posting(1, 10, 40, 79, 1000)]).crossings)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.flush(10) == 0  # what a thread's settling did not send is found when it is sent, and told then
    crossed.extend(store.take_crossings())
    assert sorted(crossing.threshold for crossing in crossed) == [10, 40, 79]


class FoundMeanwhile(deque):
    """What folds found: whoever reads it is overtaken by a fold of another thread, which finds one more."""

    more: ClassVar = ["another"]

    def __iter__(self):
        yield from super().__iter__()
        self.extend(self.more)

    def popleft(self):
        first = super().popleft()
        while self.more:
            self.append(self.more.pop())
        return first


def test_a_crossing_that_is_found_while_others_are_told_is_told_too(store):
    journal = store.journal
    journal._server.late = FoundMeanwhile(["one"])
    assert [*journal.take_crossings(), *journal.take_crossings()] == ["one", "another"]


def test_threads_that_move_many_counters_in_any_order_do_not_deadlock(store, make_entry, make_hold, make_posting):
    keys = [CounterKey("cap", f"member={index}", 0) for index in range(6)]
    faults = []

    def work(shift):
        try:
            for step in range(15):
                turned = keys[(shift + step) % 6 :] + keys[: (shift + step) % 6]
                hold = make_hold(*((key, 10**6, 2) for key in turned))
                store.reserve(hold)
                store.settle(
                    make_entry(), [make_posting(1, key=key) for key in turned], reservation_id=hold.reservation_id
                )
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    states = store.counters(keys).values()
    assert {(state.settled, state.reserved) for state in states} == {(90, 0)}
    assert store.verify().ok


def test_reports_agree_with_entries_whoever_wrote_them(opened, postgres_url, make_entry):
    stores = [opened(postgres_url) for _ in range(4)]
    start = utcnow() - timedelta(days=2)
    for index in range(40):
        stores[index % 4].settle(make_entry(occurred_at=start + timedelta(hours=index)))
    [total] = stores[0].aggregate([start - timedelta(days=3), start + timedelta(days=9)], ["model"])
    entries = list(stores[1].entries())
    assert total.requests == len(entries) == 40
    assert total.billed_cost == sum(entry.billed_cost for entry in entries)
    assert total.quantities == {"input": 400}
    assert stores[0].verify().ok


def test_no_store_touches_the_programs_own_random_numbers(every_store, make_entry, make_hold, make_posting, key):
    """A program that seeds `random` draws the same numbers with tokenmeter as without."""
    state = random.getstate()
    hold = make_hold((key, 10, 1))
    every_store.reserve(hold)
    every_store.settle(make_entry(), [make_posting(1)], reservation_id=hold.reservation_id)
    threads = [threading.Thread(target=every_store.settle, args=(make_entry(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.3)  # the sender's round
    assert random.getstate() == state


def test_what_a_caller_asked_wrongly_does_not_make_the_server_away(store):
    def ask(*_):
        raise ConfigurationError("no such thing")

    with pytest.raises(ConfigurationError):
        store._pool.run(ask)
    assert not store._pool.down


@pytest.fixture
def asked(monkeypatch):
    """The statements that are sent."""
    asked, execute = [], ServerRows.execute

    def traced(rows, statement, values=()):
        asked.append(statement)
        return execute(rows, statement, values)

    monkeypatch.setattr(ServerRows, "execute", traced)
    return asked


def _of_many(make_entry, count, group):
    """Entries of which each is of another person, account and set of tags."""
    for n in range(count):
        who = Attribution(member=f"{group}-{n}", end_user=f"{group}-{n}", tags={"job": f"{group}-{n}"})
        yield replace(make_entry(attribution=who), dedup_key=f"{group}-{n}")


def test_a_fold_asks_for_what_many_entries_name_at_once(store, make_entry, asked):
    asked_for = []
    for count in (20, 400):
        with store._book._mutex:  # nothing is sent meanwhile
            for entry in _of_many(make_entry, count, f"of {count}"):
                store.settle(replace(entry, dedup_key=None))
            asked.clear()
        store.flush()
        asked_for.append(len(asked))
    assert 0 < asked_for[1] <= asked_for[0] + 2  # many rows are copied, for which a table is staged
    assert len(store.aggregate(EVER, ["member", "end_user", "tag:job"])) == 420
    assert store.verify(deep=True).ok


def test_a_fold_with_entries_that_are_there_already_asks_for_all_at_once(opened, postgres_url, make_entry, asked):
    first, second = opened(postgres_url), opened(postgres_url.replace("/spool", "/other"))
    some = list(_of_many(make_entry, 300, "some"))
    first.append([(entry, ()) for entry in some])
    with second._book._mutex:  # nothing is sent meanwhile
        for entry in _of_many(make_entry, 300, "other"):
            second.settle(replace(entry, dedup_key=None))
        for entry in some[:150]:
            second.journal.append(encode_entry(entry, second.journal.definitions), b'{"seek":true}')
        asked.clear()
    second.flush()
    assert len(asked) < 60
    assert second.verify(deep=True).entries == 600


def test_rows_whose_commit_failed_are_made_again(store, query, make_entry):
    query("CREATE SEQUENCE failed")
    query(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$ "
        "BEGIN IF nextval('failed') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$"
    )
    query(
        "CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON accounts DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    store.settle(make_entry(attribution=Attribution(member="eve", end_user="bob", tags={"job": "a"})))
    store.flush()
    assert query("SELECT last_value FROM failed") == [(2,)]
    query("DROP TRIGGER fails ON accounts")
    assert store.verify(deep=True).ok
    assert [entry.attribution.member for entry in store.entries()] == ["eve"]


def test_names_of_many_entries_are_asked_for_at_once(opened, postgres_url, query, make_entry, asked):
    store, again = opened(postgres_url), opened(postgres_url.replace("/spool", "/other"))
    for one in (store, again):
        asked.clear()
        one.append([(replace(entry, dedup_key=None), ()) for entry in _of_many(make_entry, 300, "some")])
        assert sum("find_name(" in statement for statement in asked) == 1
        assert query("SELECT count(*) FROM names") == [(900,)]
    assert len(store.aggregate(EVER, ["member", "end_user", "tag:job"])) == 300
    assert store.verify(deep=True).ok


def test_a_report_of_many_stretches_asks_for_the_entries_of_all_at_once(store, make_entry, asked):
    """Ends that lie on no slot, where meters or times are told apart: each stretch had a statement of its own."""
    begin = datetime(2026, 3, 1, 0, 20, tzinfo=UTC)
    store.append(
        [(make_entry(occurred_at=begin + timedelta(hours=3 * n), latency_us=1000 + n), ()) for n in range(240)]
    )
    asked_for = []
    for count in (6, 30):
        cuts = [begin + timedelta(days=n) for n in range(count + 1)]
        asked.clear()
        sums, times = store.aggregate(cuts, ["sku_meter"]), store.latencies(cuts)
        asked_for.append(len(asked))
        assert [(one.bucket, one.requests, dict(one.quantities)) for one in sums] == [
            (n, 8, {"input": 80}) for n in range(count)
        ]
        assert [(one.bucket, one.duration.total_us) for one in times] == [
            (n, sum(range(1000 + 8 * n, 1008 + 8 * n))) for n in range(count)
        ]
    assert asked_for[0] == asked_for[1]


def test_no_statement_of_a_report_or_a_rebuild_holds_all_entries_of_a_day(store, make_entry, monkeypatch):
    fetched, execute = [], ServerRows.execute

    def counted(rows, statement, values=()):
        cursor = execute(rows, statement, values)
        fetched.append(cursor.rowcount)
        return cursor

    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    store.append([(make_entry(occurred_at=noon + timedelta(seconds=n), latency_us=9), ()) for n in range(2_100)])
    store.flush()
    monkeypatch.setattr(ServerRows, "execute", counted)
    assert store.rebuild() == []
    cuts = [noon + timedelta(minutes=n) for n in (0, 20, 50)]
    (first, second) = store.aggregate(cuts, ["sku_meter"])
    assert (first.requests, second.requests) == (1_200, 900)
    assert [one.duration.count for one in store.latencies(cuts)] == [1_200, 900]
    assert max(fetched) < 500


@pytest.fixture
def copied(postgres_url, opened, tmp_path):
    """Opens the ledger on one of three hosts, of which two got a copy of the first one's spool by `copy`."""

    class Copied:
        def open_on(self, name):
            return opened(re.sub(r"spool=[^&]+", f"spool={tmp_path / name}", postgres_url))

        def copy(self):
            for name in "bc":
                shutil.copytree(tmp_path / "a", tmp_path / name)
            return {name: self.open_on(name) for name in "abc"}

    return Copied()


@pytest.mark.parametrize("seed", range(4))
def test_hosts_with_copies_of_one_spool_lose_nothing(copied, make_entry, make_posting, key, seed, caplog):
    """Of a machine's picture, an image that has one in it: each reads its own again where another has sent."""
    dice, made = random.Random(seed), []

    def settle(store, times):
        entries = (make_entry(response_id="r" * dice.choice([1, 5, 5, 30])) for _ in range(times))
        made.extend(store.settle(entry, [make_posting(1)]) for entry in entries)

    first = copied.open_on("a")
    settle(first, dice.choice([0, 1, 5]))
    assert first.flush(20) == 0
    first.close()
    stores = copied.copy()
    for _ in range(30):
        name = dice.choice("abc")
        if dice.random() < 0.1:
            stores[name].close()
            stores[name] = copied.open_on(name)
        settle(stores[name], dice.choice([1, 1, 1, 4]))
        assert dice.random() < 0.5 or stores[name].flush(20) == 0
    assert [store.flush(20) for store in stores.values()] == [0, 0, 0]
    assert len(list(stores["a"].entries())) == stores["a"].counters([key])[key].settled == len(made)
    assert stores["a"].verify().ok
    assert any("a copy of this spool" in message for message in caplog.messages)


def test_a_segment_that_was_cut_off_under_a_running_process_is_read_again(store, make_entry):
    for _ in range(3):
        store.settle(make_entry())
    assert store.flush(20) == 0
    book = store._book
    (number,) = segments(book.path)
    segment, end = segment_path(book.path, number), book.reached(number)
    os.truncate(segment, segment.stat().st_size // 2)
    read = book.folding(careful=True)
    assert book.run(lambda rows: read.begin(rows)[2], scope="transaction") == {number: 0}
    assert book.reached(number) == end
    store.settle(make_entry())
    assert store.flush(20) == 0
    assert len(list(store.entries())) == 4
