"""Entries lie in a partition per month of their fold: guarded each by itself, gone in a moment."""

import psycopg
import pytest

OCTOBER, NOVEMBER = 2026 * 12 + 9, 2026 * 12 + 10


@pytest.fixture
def months(store, query, make_entry):
    """Go to a month by the server's clock, and record entries there; their identities."""

    def record(month, count=1):
        query(f"CREATE OR REPLACE FUNCTION this_month() RETURNS integer LANGUAGE sql STABLE AS 'SELECT {month}'")
        entries = [make_entry() for _ in range(count)]
        for entry in entries:
            store.settle(entry)
        store.flush()
        return [entry.entry_id for entry in entries]

    return record


@pytest.fixture
def back(query, months):
    """Come back from the months, so that the clock's function is the ledger's own."""
    ((by_the_clock,),) = query("SELECT pg_get_functiondef('this_month()'::regprocedure)")
    return lambda: query(by_the_clock)


def partitions(query):
    rows = query("SELECT tableoid::regclass::text, count(*) FROM entries GROUP BY 1 ORDER BY 1")
    return {name.rpartition(".")[2]: count for name, count in rows}


def test_a_month_begins_a_partition_and_reports_see_them_all(store, query, months, back):
    wanted = months(OCTOBER, 3) + months(NOVEMBER, 2)
    assert partitions(query) == {"entries_2026_10": 3, "entries_2026_11": 2}
    assert [entry.entry_id for entry in store.entries()] == wanted
    assert store.entry(wanted[0]) is not None
    back()
    assert store.verify().ok


@pytest.mark.parametrize("action", ["DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET list_micro = 0"])
def test_a_partition_that_is_named_itself_refuses_changes(query, months, action):
    months(OCTOBER)
    with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
        query(action.format("entries_2026_10"))


@pytest.mark.parametrize("trigger", ["entries_stay", "entries_stay_whole", "entries_stay_unchanged"])
def test_a_partition_whose_guard_is_gone_is_told(store, query, months, back, trigger):
    months(OCTOBER)
    query(f"ALTER TABLE entries_2026_10 DISABLE TRIGGER {trigger}")
    back()
    assert [(fault.kind, fault.where) for fault in store.verify().faults] == [("trigger", trigger)]


def test_an_entry_that_two_hosts_record_in_two_months_counts_once(
    store, opened, postgres_url, months, back, make_entry, tmp_path
):
    other = opened(postgres_url.partition("&spool=")[0] + f"&spool={tmp_path}/other")
    other.journal._sender.close()
    other.journal._sender._thread.join()
    other.journal.wake = lambda: None
    other.journal.send = lambda: None  # away: it cannot know what the ledger has
    entry = make_entry(entry_id="f" * 32)  # made by neither of them
    other.append([(entry, ())])
    del other.journal.send
    months(OCTOBER)
    store.append([(entry, ())])
    months(NOVEMBER)
    other.flush()
    assert [one.entry_id for one in store.entries()].count(entry.entry_id) == 1
    back()
    assert store.verify().ok


def test_what_is_archived_goes_with_its_partition(store, query, months):
    months(OCTOBER, 3)
    later = months(NOVEMBER, 2)
    assert query("SELECT drop_partition(2)") == [(False,)]
    assert query("SELECT drop_partition(3)") == [(True,)]
    assert partitions(query) == {"entries_2026_11": 2}
    assert query("SELECT archived_to FROM ledger") == [(3,)]
    assert [entry.entry_id for entry in store.entries()] == later


def test_a_reader_keeps_a_partition_for_as_long_as_it_reads(postgres_server_url, query, months):
    months(OCTOBER)
    with psycopg.connect(postgres_server_url) as reader:
        reader.execute(f"SELECT count(*) FROM {query.schema}.entries")  # noqa: S608 - our own schema
        assert query("SELECT drop_partition(1)") == [(False,)]
    assert partitions(query) == {"entries_2026_10": 1}


def test_a_month_that_begins_waits_for_no_reader(postgres_server_url, query, months):
    months(OCTOBER)
    with psycopg.connect(postgres_server_url) as reader:
        reader.execute(f"SELECT count(*) FROM {query.schema}.entries")  # noqa: S608 - our own schema
        months(NOVEMBER)
    assert partitions(query) == {"entries_2026_10": 1, "entries_2026_11": 1}
