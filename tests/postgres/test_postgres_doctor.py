"""What `health`, and with it ``tokenmeter doctor``, tells of a shared ledger."""

import io

from tokenmeter.reports import export_entries
from tokenmeter.stores.postgres.schema import NEWEST


def test_the_server_the_role_the_clock_and_the_spool_are_told(store, query, make_entry, make_hold, key):
    for _ in range(3):
        store.settle(make_entry())
    store.reserve(make_hold((key, 10, 1)))
    facts = store.health().facts
    assert facts["store"] == "postgresql"
    assert (facts["schema"], facts["schema_version"]) == (query.schema, NEWEST)
    assert facts["server_version"] in query("SELECT version()")[0][0]
    assert (facts["role"], facts["user"]) == ("owner", query("SELECT current_user")[0][0])
    assert (facts["entries"], facts["pending_holds"]) == (3, 1)
    assert (facts["clock_skew_seconds"], facts["pooled"], facts["encrypted"]) == (0, False, False)
    assert (facts["spool_waiting"], facts["refused_records"]) == (0, 0)
    assert 0 < facts["spool_bytes"] < facts["spool_most_bytes"] == 256 << 20
    assert store.health().warnings == ()


def test_a_clock_that_is_off_is_warned_of(store, monkeypatch):
    kept = property(lambda _: -90 * 1_000_000, lambda *_: None)  # a session that begins meanwhile compares clocks anew
    monkeypatch.setattr(type(store._pool), "skew_us", kept, raising=False)
    health = store.health()
    assert health.facts["clock_skew_seconds"] == -90
    assert any("clock is -90 seconds" in warning for warning in health.warnings)


def test_the_head_is_that_of_verify_and_of_every_manifest_and_moves_with_every_entry(
    store, opened, postgres_url, make_entry
):
    """One chain, whoever asks and however many processes wrote."""
    heads = [store.health().facts["head"]]
    for writer in (store, opened(postgres_url), opened(postgres_url)):
        writer.settle(make_entry())
        heads.append(store.health().facts["head"])
    assert len(set(heads)) == 4
    assert store.verify().head == heads[-1]
    assert export_entries(store, io.BytesIO(), format="jsonl").ledger["head"] == heads[-1]
    assert opened(postgres_url).health().facts["head"] == heads[-1]


def test_a_head_that_was_put_back_is_found(store, query, make_entry):
    store.settle(make_entry())
    query("UPDATE ledger SET seq = seq - 1")
    assert {fault.kind for fault in store.verify().faults} == {"edited"}


def test_a_replica_is_told_before_it_loses_anything(postgres_url, store, opened):
    replica = opened(f"{postgres_url}&options=-c%20default_transaction_read_only%3Don")
    assert replica.secret() == store.secret()
    assert any("target_session_attrs=read-write" in warning for warning in replica.health().warnings)
