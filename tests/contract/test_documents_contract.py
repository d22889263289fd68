"""Documents (closed periods, invoices, ...) are filed once, numbered without gaps and never changed, in every store."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tokenmeter.stores import open_store
from tokenmeter.stores.documents import DocumentQuery, NewDocument


def draft(key, *, kind="invoice", series="INV-", body="{}"):
    return NewDocument(kind=kind, key=key, series=series, body=body)


def test_numbers_are_given_per_series_without_gaps(store):
    filed = [store.file(draft(f"{series}{count}", series=series)) for series in ("A", "B") for count in range(3)]
    assert [(one.document.series, one.document.number) for one in filed] == [
        *(("A", number) for number in (1, 2, 3)),
        *(("B", number) for number in (1, 2, 3)),
    ]


def test_a_key_is_filed_once_and_its_document_comes_back(store):
    first = store.file(draft("a", body='{"amount":"1"}'))
    again = store.file(draft("a", body='{"amount":"2"}'))
    assert first.recorded
    assert not again.recorded
    assert again.document == first.document
    assert [document.body for document in store.documents()] == ['{"amount":"1"}']


def test_the_same_key_may_be_used_by_another_kind(store):
    assert store.file(draft("a")).recorded
    assert store.file(draft("a", kind="credit_note", series="CN-")).recorded


def test_a_document_without_a_series_has_no_number(store):
    assert store.file(draft("2026-11", kind="period", series=None)).document.number is None


def test_documents_are_found_by_kind_key_and_number(store):
    for key in ("INV-1#1", "INV-1#2", "INV-11#1", "I_V-1#3"):
        store.file(draft(key, kind="invoice_event", series=None))
    numbered = store.file(draft("x")).document
    assert [document.key for document in store.documents(DocumentQuery("invoice_event", "INV-1#"))] == [
        "INV-1#1",
        "INV-1#2",
    ]
    assert list(store.documents(DocumentQuery(series="INV-", number=1))) == [numbered]
    assert list(store.documents(DocumentQuery("nothing"))) == []
    assert list(store.documents(DocumentQuery(series="INV-", number=10**50))) == []


def test_more_documents_than_a_page_come_in_order(store):
    for count in range(230):
        store.file(draft(str(count)))
    assert [document.position for document in store.documents()] == list(range(1, 231))
    assert store.verify().ok


def test_a_number_that_is_asked_for_is_given_or_the_document_that_has_it_comes_back(store):
    """Whoever has looked at a series files what follows from that only if nobody filed in it since."""
    first = store.file(replace(draft("a"), number=1))
    late = store.file(replace(draft("b"), number=1))
    assert (first.recorded, late.recorded, late.document) == (True, False, first.document)
    assert store.file(replace(draft("b"), number=2)).document.number == 2
    assert store.file(replace(draft("c", series="CN-"), number=1)).document.number == 1
    assert [one.key for one in store.documents()] == ["a", "b", "c"]


def test_threads_never_share_or_skip_a_number(store):
    with ThreadPoolExecutor(8) as threads:
        filed = list(threads.map(lambda count: store.file(draft(str(count))), range(40)))
    assert sorted(one.document.number for one in filed) == list(range(1, 41))
    assert store.verify().ok


def test_documents_are_anchored_in_the_entries(store, make_entry):
    before = store.file(draft("a")).document
    store.settle(make_entry())
    assert store.file(draft("b")).document.anchor != before.anchor


@pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
def test_documents_survive_a_restart(store_url):
    store = open_store(store_url)
    filed = store.file(draft("a", body='{"name":"Zoë 株式会社"}')).document
    store.close()
    again = open_store(store_url)
    assert list(again.documents()) == [filed]
    again.close()


def test_sqlite_refuses_to_change_or_remove_a_document_and_an_edit_is_found(tmp_path):
    store = open_store(tmp_path / "ledger.db")
    for key in "abc":
        store.file(draft(key))
    store.close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        for statement in ("UPDATE documents SET body = ''", "DELETE FROM documents"):
            with pytest.raises(sqlite3.IntegrityError, match="never"):
                connection.execute(statement)
        connection.execute("DROP TRIGGER documents_stay_unchanged")
        connection.execute("UPDATE documents SET body = '{\"x\":1}' WHERE key = 'b'")
    connection.close()
    store = open_store(tmp_path / "ledger.db")
    assert ("edited", "invoice b") in [(fault.kind, fault.where) for fault in store.verify().faults]
    store.close()


def test_postgresql_refuses_to_change_or_remove_a_document(postgres_url, postgres_server_url):
    import psycopg

    store = open_store(postgres_url)
    store.file(draft("a"))
    schema = postgres_url.partition("schema=")[2].partition("&")[0]
    for statement in ("UPDATE {}.documents SET body = ''", "DELETE FROM {}.documents", "TRUNCATE {}.documents"):
        with (
            psycopg.connect(postgres_server_url, autocommit=True) as connection,
            pytest.raises(psycopg.errors.RaiseException, match="append-only"),
        ):
            connection.execute(statement.format(schema))
    store.close()
