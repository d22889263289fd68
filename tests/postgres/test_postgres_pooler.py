"""Behind a pooler that gives every transaction another server process, as PgBouncer's transaction pooling does."""

import threading
from datetime import timedelta

import pytest

from tokenmeter.ledger import utcnow
from tokenmeter.stores.base import CapReachedError
from tokenmeter.stores.documents import NewDocument


@pytest.fixture
def pooled(pooler, postgres_url, opened):
    """A store behind the pooler."""
    own = postgres_url.partition("schema=")[2]
    return opened(f"postgresql://postgres@127.0.0.1:{pooler.port}/postgres?schema={own}")


def test_the_ledger_works_and_its_statements_find_its_schema(
    pooled, store, make_entry, make_hold, make_posting, key, query
):
    holds, filed = [make_hold((key, 12, 1)) for _ in range(12)], []

    def work(hold):
        pooled.reserve(hold)
        for _ in range(3):  # often enough for statements to be prepared, if they were
            pooled.settle(make_entry())
        pooled.settle(make_entry(), [make_posting(1, 12)], reservation_id=hold.reservation_id)
        filed.append(pooled.file(NewDocument(kind="invoice", key=hold.reservation_id, body="{}", series="A")))

    threads = [threading.Thread(target=work, args=(hold,)) for hold in holds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(CapReachedError):
        pooled.reserve(make_hold((key, 12, 1)))
    counter = pooled.counters([key])[key]
    assert (counter.settled, counter.reserved) == (12, 0)
    assert sorted(one.document.number for one in filed) == list(range(1, 13))
    assert len(list(pooled.documents())) == 12
    [total] = pooled.aggregate([utcnow() - timedelta(days=1), utcnow() + timedelta(minutes=7)], ["model"])
    assert total.requests == len(list(pooled.entries())) == 48
    assert pooled.verify().ok
    facts = pooled.health().facts
    assert (facts["pooled"], facts["entries"], facts["spool_waiting"]) == (True, 48, 0)
    assert facts["head"] == store.health().facts["head"] == pooled.verify().head
    assert store.health().facts["pooled"] is False


def test_nothing_of_ours_stays_in_the_shared_processes(pooler, pooled, make_entry):
    for _ in range(30):
        pooled.settle(make_entry())
    assert pooled.verify().ok
    asked = (
        "SELECT current_setting('search_path') || current_setting('statement_timeout') "
        "|| (SELECT count(*) FROM pg_prepared_statements) || (SELECT count(*) FROM pg_cursors WHERE name <> '')"
    )
    for answer in pooler.ask_each(asked):
        assert b'"$user", public000' in answer
