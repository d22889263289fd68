"""Archived months: whatever was asked of the ledger before is answered the same when they are in files."""

import gc
import hashlib
import json
import os
import random
import shutil
import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import time_machine

from forking import run_in_child
from tokenmeter.erasing import erase
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError, TamperedLedgerError
from tokenmeter.ledger import new_id
from tokenmeter.stores import open_store
from tokenmeter.stores.archive import places
from tokenmeter.stores.archive.clickhouse import load_clickhouse
from tokenmeter.stores.archive.layout import records
from tokenmeter.stores.archive.manifest import Merkle, Proof
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.walking import Walk

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

START = datetime(2026, 1, 1, tzinfo=UTC)
WEEKS = [START + timedelta(days=7 * week) for week in range(-1, 19)]
ODD = [START + timedelta(days=9, minutes=17), START + timedelta(days=71, minutes=3), START + timedelta(days=95)]


@pytest.fixture
def make_months(make_entry, make_charge):
    """Calls of four months, of every shape that a record has."""

    def make(count=400):
        dice = random.Random(7)
        entries = []
        for number in range(count):
            moment = START + timedelta(hours=number * 2880 / count, seconds=dice.randrange(5000))
            used = {"input": dice.randrange(1, 5000), "output": dice.randrange(1, 900)}
            if number % 3 == 0:
                used["cache_read"] = dice.randrange(1, 400)
            if number % 17 == 0:
                used["seconds_audio"] = Decimal(f"1.{number % 9}")
            price = None if number % 23 == 0 else "0.00000125"
            entries.append(
                make_entry(
                    charges=tuple(make_charge(meter, amount, price) for meter, amount in used.items()),
                    occurred_at=moment,
                    recorded_at=moment + timedelta(seconds=3),
                    response_id=(f"chatcmpl-{number}" if number != 33 else 'chatcmpl-"33" ü') if number % 2 else None,
                    request_id=f"req_{number} ü %s" if number % 5 else None,
                    request_model=dice.choice(["gpt-5", "gpt-5-mini"]),
                    cost_source="unpriced" if price is None else "computed",
                    status="error" if number % 11 == 0 else "ok",
                    streamed=number % 4 == 0,
                    latency_us=dice.randrange(10**7) if number % 6 else None,
                    first_token_us=dice.randrange(10**6) if number % 4 == 0 else None,
                    attempts=1 + number % 2,
                    flags=("estimated",) if number % 13 == 0 else (),
                    reservation_id=new_id() if number % 7 == 0 else None,
                    dedup_key=f"bill {number}" if number % 19 == 0 else None,
                    trace_id=f"{number // 5:032x}" if number % 3 else None,
                    span_id=f"{number:016x}" if number % 3 else None,
                    raw_usage=f'{{"prompt_tokens":{used["input"]},"x":[1,2.5,null,"100%"]}}',
                    member=dice.choice(["ada", "bob", None]),
                    end_user=dice.choice(["u1", "u2", None]),
                    tags=dice.choice([{}, {"env": "prod"}, {"env": "dev", "größe": "XL"}]),
                )
            )
        return entries

    return make


@pytest.fixture
def months(store, make_months):
    """A ledger with them, and a document amid."""
    entries = make_months()
    half = len(entries) // 2
    store.append([(entry, ()) for entry in entries[:half]])
    store.file(NewDocument(kind="invoice", key="a", body="{}", series="I"))
    store.append([(entry, ()) for entry in entries[half:]])
    return entries


def answers(store):
    """Every kind of answer that a reader gives."""
    wheres = (
        {},
        {"end_user": frozenset({"u1", None})},
        {"tag:env": frozenset({"prod"})},
        {"tag:größe": frozenset({None})},
        {"end_user!": frozenset({"u1"})},
        {"end_user": frozenset({"u1", None}), "end_user!": frozenset({None})},
        {"tag:env!": frozenset({"prod"}), "member!": frozenset({"ada"})},
        {"tag:größe!": frozenset({None})},
        {"member": frozenset({"ada"}), "status": frozenset({"ok"})},
        {"sku_meter": frozenset({"input", "seconds_audio"})},
        {"trace_id": frozenset({f"{number:032x}" for number in (3, 30, 60)})},
        {"trace_id": frozenset({f"{3:032x}", None}), "member": frozenset({"ada"})},
        {"trace_id!": frozenset({f"{3:032x}", None})},
        {"response_id": frozenset({"chatcmpl-33", "chatcmpl-3_", "chatcmpl-5%"})},
        {"response_id!": frozenset({"chatcmpl-33", None})},
        {"response_id": frozenset({"chatcmpl-7", 'chatcmpl-"33" ü', "CHATCMPL-9"})},
        {"response_id": frozenset({"chatcmpl-7", None}), "member": frozenset({"ada"})},
    )
    found = {}
    for by in (("model", "member"), ("end_user",), ("tag:env", "status"), ("sku_meter", "end_user")):
        found[by] = store.aggregate(WEEKS, by)
        if "sku_meter" not in by:
            found[by, "latencies"] = store.latencies(ODD, by)
    for where in wheres:
        found[str(where), "weeks"] = store.aggregate(WEEKS, (), EntryFilter(where=where))
        found[str(where), "odd"] = store.aggregate(ODD, ("team",), EntryFilter(where=where))
        which = EntryFilter(since=ODD[0], until=ODD[1], where=where)
        found[str(where), "entries"] = list(store.entries(which))
    found["all"] = list(store.entries())
    found["newest"] = list(store.entries(newest_first=True))
    return found


def assert_same(before, after):
    for question, answer in before.items():
        assert after[question] == answer, question


@pytest.mark.slow
def test_every_answer_is_the_same_when_months_are_in_files_and_when_they_are_back(store, months, tmp_path):
    before, head = answers(store), store.verify().head
    sealed = store.archives.seal("2026-03", tmp_path / "archive")
    assert [one.month for one in sealed] == ["2026-01", "2026-02", "2026-03"]
    assert_same(before, answers(store))
    store.archives.drop("2026-02")
    assert [one.dropped for one in store.archives.listed()] == [True, True, False]
    assert_same(before, answers(store))
    store.archives.drop()
    assert_same(before, answers(store))
    for deep in (False, True):
        found = store.verify(head=head, deep=deep)
        assert (found.faults, found.entries, found.after_head) == ((), len(months), 3)
    assert store.entry(months[3].entry_id) == months[3]
    assert store.entry("nobody's") is None
    store.archives.restore("2026-02")
    assert [one.dropped for one in store.archives.listed()] == [True, False, False]
    assert_same(before, answers(store))
    store.archives.restore()
    assert_same(before, answers(store))
    assert store.verify(deep=True).faults == ()


@pytest.fixture
def archived(store, months, tmp_path):
    """The first three months in files only."""
    store.archives.seal("2026-03", tmp_path / "archive")
    store.archives.drop()
    return store


def test_one_bill_is_found_by_its_key_wherever_it_is(archived, months):
    keyed = [one for one in months if one.dedup_key is not None]
    wanted = [keyed[number].dedup_key for number in (-1, 0, len(keyed) // 2)]
    assert {one.entry_id for one in archived.recorded_under(wanted)} == {
        one.entry_id for one in keyed if one.dedup_key in wanted
    }


def test_one_answer_is_found_by_the_providers_id_wherever_it_is(archived, months):
    for number in (33, 7, len(months) - 1):
        which = EntryFilter(where={"response_id": frozenset({months[number].response_id})})
        assert list(archived.entries(which)) == [months[number]]
    assert not list(archived.entries(EntryFilter(where={"response_id": frozenset({"chatcmpl"})})))


def test_an_id_in_a_tag_or_in_a_providers_usage_is_not_that_of_the_call(store, make_entry, tmp_path):
    """Records that are kept whole in files (fractions of a meter) among them."""
    usages = (None, '{"response_id":"r1","x":1}', '{"a":1,"trace_id":"t1"}', '{"x":{"trace_id":"t1","span_id":"s"}}')
    shapes = [
        {"response_id": response, "trace_id": trace, "raw_usage": usage, "tags": tags, "dedup_key": key}
        for response in (None, "r1", 'r"2')
        for trace in (None, "t1")
        for usage in usages
        for tags in ({}, {"response_id": "r1", "trace_id": "t1"})
        for key in (None, ',"trace_id":"t1"')
        if key is None or usage is not None
    ]
    entries = [
        make_entry(
            **shape | {"dedup_key": shape["dedup_key"] and f"{number}{shape['dedup_key']}"},
            occurred_at=START + timedelta(minutes=number),
            request_model="gpt-5" if number % 3 else 'm"1',
        )
        for number, shape in enumerate(shapes)
    ]
    store.append([(entry, ()) for entry in entries])
    for _ in range(2):
        for name, values in (
            ("response_id", (None, "r1", 'r"2', "t1")),
            ("trace_id", (None, "t1", "s", "r1")),
        ):
            for accepted in [*({one} for one in values), {None, values[1]}, set()]:
                for wanted in (True, False):
                    due = [entry for entry in entries if (getattr(entry, name) in accepted) is wanted]
                    which = EntryFilter(where={name if wanted else f"{name}!": frozenset(accepted)})
                    found = store.aggregate([START, START + timedelta(days=1)], (), which)
                    assert sum(one.requests for one in found) == len(due), (which, found)
                    assert list(store.entries(which)) == due
        store.archives.seal("2026-01", tmp_path / "archive")
        store.archives.drop()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33])
def test_every_record_of_a_run_can_be_proved_and_no_other(size):
    bodies = [f"record {number}" for number in range(size)]
    for index in range(size):
        tree = Merkle(index)
        for body in bodies:
            tree.add(hashlib.sha256(body.encode()).digest())
        root = tree.root().hex()
        path = tuple(one.hex() for one in tree.path)
        proof = Proof(record=bodies[index], index=index, size=size, path=path, root=root, month="2026-01")
        assert proof.holds()
        assert proof.holds(root)
        assert Proof.from_json(proof.to_json()) == proof
        assert not proof.holds("0" * 64)
        assert not replace(proof, record="another").holds()
        assert not replace(proof, index=(index + 1) % (size + 1)).holds()
        assert not replace(proof, path=(*path, root)).holds()
        assert not replace(proof, path=path[:-1], root=root).holds() or not path


def test_an_entry_of_a_sealed_month_is_proved_without_the_ledger(store, months, tmp_path):
    with pytest.raises(LedgerError, match="archive seal"):
        store.archives.prove(months[0].entry_id)
    sealed = store.archives.seal("2026-03", tmp_path / "archive")
    for dropped in (False, True):
        for number in (0, 150, 299):
            proof = Proof.from_json(store.archives.prove(months[number].entry_id).to_json())
            assert proof.holds(next(one.root for one in sealed if one.month == proof.month))
            assert months[number].entry_id in proof.record
            assert '"ada"' not in proof.record
        if not dropped:
            store.archives.drop()
    with pytest.raises(LedgerError, match="No sealed month has an entry"):
        store.archives.prove(months[-1].entry_id)
    with pytest.raises(ConfigurationError, match="not a proof"):
        Proof.from_json("{}")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"record":"\\ud800","index":0,"size":1,"path":[],"root":"","month":""}',
        '{"record":"a","index":Infinity,"size":1,"path":[],"root":"","month":""}',
    ],
    ids=["deep", "half a character", "no number"],
)
def test_what_is_no_proof_is_refused_in_words(text):
    with pytest.raises(ConfigurationError, match="not a proof"):
        Proof.from_json(text)


def files(tmp_path):
    return sorted((tmp_path / "archive").rglob("*.parquet"))


@pytest.mark.slow
def test_what_comes_late_is_read_at_once_and_lies_in_the_next_file(archived, make_entry, tmp_path, months):
    late = make_entry(occurred_at=START + timedelta(days=3), end_user="u9")
    assert archived.settle(late).recorded
    found = archived.aggregate([START, START + timedelta(days=31)], ("end_user",))
    assert [one.requests for one in found if one.group == ("u9",)] == [1]
    assert list(archived.entries(EntryFilter(until=START + timedelta(days=31))))[-1] != late
    before = answers(archived)
    sealed = archived.archives.seal("2026-04", tmp_path / "archive")
    assert [(one.month, one.first_at == sealed[0].first_at) for one in sealed] == [("2026-04", True)]
    archived.archives.drop()
    assert_same(before, answers(archived))
    assert archived.verify(deep=True).entries == len(months) + 1


@pytest.mark.slow
def test_an_archived_entry_and_its_bill_are_recorded_once(archived, months, make_entry):
    known = next(entry for entry in months if entry.dedup_key)
    before = answers(archived)
    archived.settle(months[3])
    assert not archived.append([(months[4], ())])[0].recorded
    assert not archived.settle(make_entry(dedup_key=known.dedup_key)).recorded
    assert_same(before, answers(archived))


def test_a_month_that_is_dropped_while_it_is_read_is_read_whole(store, months, tmp_path):
    due = list(store.entries())
    store.archives.seal("2026-03", tmp_path / "archive")
    reading = store.entries()
    found = [next(reading) for _ in range(150)]
    store.archives.drop()
    found += reading
    assert found == due


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_drop_that_was_broken_off_leaves_every_entry_in_one_place(store, months, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmeter.stores.sqlite.book._AT_ONCE", 40)
    monkeypatch.setattr("tokenmeter.stores.postgres.book._AT_ONCE", 40)
    before = answers(store)
    store.archives.seal("2026-03", tmp_path / "archive")

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.archives.drop(progress=stop)
    assert_same(before, answers(store))
    assert store.verify(deep=True).faults == ()
    assert store.verify().faults == ()
    store.archives.drop()
    assert_same(before, answers(store))


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_what_came_late_goes_and_comes_back_with_the_months_around_it(store, make_entry, tmp_path):
    store.append([(make_entry(occurred_at=START + timedelta(days=10 * at)), ()) for at in range(9)])
    store.archives.seal("2026-03", tmp_path / "archive")
    store.append([(make_entry(occurred_at=START + timedelta(days=33)), ())])
    store.archives.seal("2026-03", tmp_path / "archive")
    first, second, third, late = store.archives.listed()
    assert [one.month for one in (first, second, third, late)] == ["2026-01", "2026-02", "2026-03", "2026-02"]

    def gone():
        return [one.dropped for one in store.archives.listed()]

    assert [one.month for one in store.archives.drop("2026-02")] == ["2026-01", "2026-02"]
    assert gone() == [True, True, False, False]
    assert len(store.archives.drop("2026-03")) == 2
    for since, back in (("2026-04", 0), ("2026-03", 2), ("2026-02", 3), ("2026-01", 4), (None, 4), ("2025-01", 4)):
        assert len(store.archives.restore(since)) == back
        assert gone() == [True] * (4 - back) + [False] * back
        assert store.verify(deep=True).entries == 10
        store.archives.drop()


@pytest.mark.parametrize(
    "left", ["", "UPDATE ledger SET archived_to = 1, archived_hash = (SELECT hash FROM documents WHERE seq = 1)"]
)
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_month_that_was_brought_back_needs_its_file_no_more_though_it_begins_with_a_document(
    store, make_entry, tmp_path, left
):
    """Nor where it was brought back by the first versions, which left the document where it had been."""
    store.file(NewDocument(kind="invoice", key="a", body="{}", series="I"))
    store.append([(make_entry(occurred_at=START), ())])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    assert [len(store.archives.restore()) for _ in range(2)] == [1, 0]
    if left:
        store.end().write(lambda rows: rows.execute(left))
    assert store.verify(deep=True).ok
    (tmp_path / "archive").rename(tmp_path / "away")
    assert (len(list(store.entries())), store.archives.unreadable()) == (1, [])


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_call_that_is_dated_ahead_in_a_file_hides_no_day_that_is_live(store, make_entry, tmp_path):
    days = [*range(3), 400, *range(3, 6), *range(40, 43)]
    store.append([(make_entry(occurred_at=START + timedelta(days=day)), ()) for day in days])
    (month,) = store.archives.seal("2026-01", tmp_path / "archive")
    first = START.toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()
    assert month.days == ((first, first + 5), (first + 400, first + 400))
    assert store.archives.listed() == [month]
    store.archives.drop()
    (tmp_path / "archive").rename(tmp_path / "away")  # no file is opened for days that it has nothing of
    assert store.rebuild(dry_run=True) == []
    (tmp_path / "away").rename(tmp_path / "archive")
    live = (first + 41, (first + 41) * 24)
    for columns in ("n", "input"):
        for level, slot in zip((1, 0), live, strict=True):
            for at, sign in ((slot, "+"), (slot + (24 if level == 0 else 1), "-")):
                statement = f"UPDATE sums SET {columns} = {columns} {sign} 1 WHERE level = {level} AND slot = {at}"  # noqa: S608 - ours
                store.end().write(lambda rows, statement=statement: rows.execute(statement))
        assert [one.where for one in store.verify().faults] == ["2026-02-11", "2026-02-12"]
        assert {one.of for one in store.rebuild()} >= {"2026-02-11", "2026-02-12"}
        assert store.verify(deep=True).ok
    statement = f"UPDATE sums SET n = n + 1 WHERE level = 1 AND slot = {first + 400}"  # noqa: S608 - ours
    store.end().write(lambda rows: rows.execute(statement))
    assert "archived months" in {one.where for one in store.verify().faults}


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_month_that_is_dropped_while_its_ledger_is_verified_is_no_fault(store, make_entry, tmp_path, monkeypatch):
    days = [*range(6), 40, 41, 3]
    store.append([(make_entry(occurred_at=START + timedelta(days=day)), ()) for day in days])
    store.archives.seal("2026-01", tmp_path / "archive")
    begin = Walk.begin

    def drop_and_begin(walk, connection):
        threading.Thread(target=store.archives.drop).run()
        begin(walk, connection)

    monkeypatch.setattr(Walk, "begin", drop_and_begin)
    assert store.verify().faults == ()


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_a_month_that_is_dropped_or_brought_back_amid_a_walk_is_no_fault(store, make_entry, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmeter.stores.walking._PAGE", 4)
    store.append([(make_entry(occurred_at=START + timedelta(days=day)), ()) for day in [*range(20), 40, 41]])
    store.archives.seal("2026-01", tmp_path / "archive")
    for go in (store.archives.drop, store.archives.restore):
        found = store.verify(progress=lambda *_, go=go: go())
        assert (found.faults, found.entries) == ((), 22)


@pytest.fixture
def half_dropped(store, make_entry, tmp_path, monkeypatch):
    """A month of 20 entries, a document among them, of which 8 were dropped when that was broken off; and one more."""
    monkeypatch.setattr("tokenmeter.stores.sqlite.book._AT_ONCE", 8)
    monkeypatch.setattr("tokenmeter.stores.postgres.book._AT_ONCE", 8)
    made = [make_entry(occurred_at=START + timedelta(days=day), end_user="u", dedup_key=f"{day}") for day in range(20)]
    store.append([(one, ()) for one in made[:3]])
    store.file(NewDocument(kind="invoice", key="a", body="{}", series="I"))
    store.append([(one, ()) for one in made[3:]])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.append([(make_entry(occurred_at=START + timedelta(days=40), end_user="u"), ())])  # keeps its partition

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.archives.drop(progress=stop)
    return store


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_of_a_month_that_is_half_dropped_every_entry_is_counted(half_dropped):
    (month,) = half_dropped.archives.listed()
    assert (month.entries, month.gone, month.dropped) == (20, 8, False)
    assert [half_dropped.verify(deep=deep).entries for deep in (False, True)] == [21, 21]
    assert half_dropped.verify(deep=True).ok
    assert erase(half_dropped, "end_user", "u", reason="asked to", by="kim").entries == 21
    assert [(one.gone, one.dropped) for one in half_dropped.archives.drop()] == [(20, True)]
    assert [(one.gone, one.dropped) for one in half_dropped.archives.restore()] == [(0, False)]


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_of_a_month_that_is_half_dropped_it_is_told_that_its_file_is_away(half_dropped, tmp_path):
    assert half_dropped.archives.unreadable() == []
    (tmp_path / "archive").rename(tmp_path / "away")
    (told,) = half_dropped.archives.unreadable()
    assert "cannot be read" in told
    assert "cannot be read" in erase(half_dropped, "end_user", "u", reason="asked to", by="kim").uncounted


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM dedup WHERE key = '2'", "1 bill of it could be recorded a second time"),
        ("INSERT INTO dedup VALUES ('openai:never', 4)", "1 bill is marked as recorded in it"),
        ("DELETE FROM archived_ids", "does not say whose entries"),
    ],
)
@pytest.mark.parametrize("store", ["postgres", "sqlite"], indirect=True)
def test_what_is_kept_of_the_half_of_a_month_that_is_dropped_is_compared(half_dropped, statement, told):
    half_dropped.end().write(lambda rows: rows.execute(statement))
    faults = half_dropped.verify(deep=True).faults
    assert [(one.kind, one.where, told in one.detail) for one in faults] == [("archive", "2026-01", True)]


def test_nothing_is_dropped_of_which_the_file_is_not_whole(store, months, tmp_path):
    store.archives.seal("2026-02", tmp_path / "archive")
    first, second = files(tmp_path)
    content = bytearray(second.read_bytes())
    content[1000] ^= 1
    second.write_bytes(content)
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        store.archives.drop()
    (tmp_path / "elsewhere").rename(first)
    with pytest.raises(TamperedLedgerError, match="not the file that was sealed"):
        store.archives.drop()
    assert [one.dropped for one in store.archives.listed()] == [True, False]
    assert len(list(store.entries())) == len(months)


def test_a_file_that_is_gone_or_changed_is_told(archived, tmp_path):
    first, second, _ = files(tmp_path)
    first.unlink()
    content = bytearray(second.read_bytes())
    content[-2000] ^= 1
    second.write_bytes(content)
    found = archived.verify()
    assert [(one.kind, one.where) for one in found.faults] == [("archive", "2026-01"), ("archive", "2026-02")]
    assert archived.aggregate(WEEKS, ("model",)), "kept sums need no file"
    with pytest.raises(StoreUnavailableError, match="Put the file back"):
        list(archived.entries())


def test_without_the_extra_kept_sums_answer_and_the_rest_names_it(archived, monkeypatch, months):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(places, "import_module", missing)
    assert sum(one.requests for one in archived.aggregate(WEEKS, ("model", "member"))) == len(months)
    since = START + timedelta(days=100)
    assert list(archived.entries(EntryFilter(since=since))), "what is live needs no extra"
    for ask in (
        lambda: list(archived.entries()),
        lambda: archived.aggregate(WEEKS, ("end_user",)),
        lambda: archived.entry(months[0].entry_id),
    ):
        with pytest.raises(ConfigurationError, match=r"pip install 'tokenmeter-sdk\[archive\]'"):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_totals_that_are_kept_aside_say_what_the_files_say(store, months, make_entry, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "it's a cache"))
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH", 1)
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH_TIMES", 0.01)
    edges = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 6)]

    def asked():
        found = answers(store)
        for instants in (edges, edges[::2], [edges[0], edges[-1]], [START - timedelta(days=9), ODD[1], edges[4]]):
            for by in (("end_user",), ("end_user", "model"), ("tag:env",), ("tag:env", "tag:größe", "status")):
                for where in ({}, {"member": frozenset({"ada"})}, {"end_user": frozenset({"u1", None})}):
                    key = str(instants), by, str(where)
                    found[key] = store.aggregate(instants, by, EntryFilter(where=where))
        return found

    before = asked()
    store.archives.seal("2026-03", tmp_path / "archive")
    store.archives.drop()
    kept = sorted((tmp_path / "it's a cache").rglob("*.by-*.parquet"))
    assert len(kept) == 6
    assert_same(before, asked())
    for path in kept[::2]:  # one is damaged, one is another's
        path.write_bytes(b"PAR1")
    for path in kept[1::2]:
        path.write_bytes(kept[3].read_bytes())
    again = open_store(store.url)
    for by in (("end_user",), ("tag:env",)):
        assert again.aggregate(edges, by) == store.aggregate(edges, by)
    shutil.rmtree(tmp_path / "it's a cache")
    assert_same(before, asked())  # a cache may be cleared under a running process
    late = make_entry(occurred_at=START + timedelta(days=3), end_user="u9", tags={"env": "prod"})
    again.settle(late)
    found = again.aggregate(edges, ("end_user",))
    assert [(one.bucket, one.requests) for one in found if one.group == ("u9",)] == [(0, 1)]
    again.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows keeps each user's files apart by itself")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_totals_that_another_user_may_have_written_are_not_believed(store, months, tmp_path, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH", 1)
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH_TIMES", 0.01)
    before = answers(store)
    store.archives.seal("2026-03", tmp_path / "archive")
    store.archives.drop()
    for path in (tmp_path / "cache").rglob("*.by-end_user.parquet"):  # all is one person's, and adds up
        changed = f"SELECT * REPLACE ((SELECT max(end_user) FROM '{path}') AS end_user) FROM '{path}'"  # noqa: S608 - a path of our own
        duckdb.execute(f"COPY ({changed}) TO '{tmp_path}/changed' (FORMAT parquet)")
        path.write_bytes((tmp_path / "changed").read_bytes())
        path.parent.chmod(0o777)
    again = open_store(store.url)
    assert_same(before, answers(again))
    again.close()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_totals_for_which_there_is_no_room_are_not_missed_and_put_out_none_that_are_asked_for(
    store, months, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH", 1)
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH_TIMES", 0.01)
    monkeypatch.setattr("tokenmeter.stores.archive.kept._MEBIBYTE", 1024)
    edges = [START, START + timedelta(days=200)]

    def asked(store):
        return [store.aggregate(edges, by) for by in (("end_user",), ("tag:env",))]

    before = asked(store)
    store.archives.seal("2026-03", tmp_path / "archive")
    store.archives.drop()
    kept = sorted(cache.rglob("*.by-*.parquet"))
    assert len(kept) == 6
    bound = sum(path.stat().st_size for path in kept) * 2 // 3 // 1024
    monkeypatch.setenv("TOKENMETER_ARCHIVE_CACHE_MB", str(bound))
    shutil.rmtree(cache)
    known = {}
    for _ in range(2):
        again = open_store(store.url)
        assert asked(again) == before
        again.close()
        few = {path: path.stat().st_ino for path in cache.rglob("*.by-*.parquet")}
        assert 0 < sum(path.stat().st_size for path in few) <= bound * 1024
        assert known.items() <= few.items(), "none goes for another that is no more asked for"
        known = few


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_totals_that_are_as_many_as_the_entries_are_not_kept(store, months, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tokenmeter.stores.archive.totals._WORTH", 1)
    before = answers(store)
    store.archives.seal("2026-03", tmp_path / "archive")
    store.archives.drop()
    assert_same(before, answers(store))
    assert not list((tmp_path / "cache").rglob("*.by-*.parquet"))
    assert list((tmp_path / "cache").rglob("*.too-many"))


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
def test_no_file_takes_calls_of_the_running_month_along(store, make_entry, tmp_path):
    """A ledger that was filled newest first, at the end of November: September and October wait behind November."""
    days = [datetime(2026, 11, 28, 12, tzinfo=UTC) - timedelta(days=number) for number in range(60)]
    sooner = datetime(2026, 8, 5, tzinfo=UTC)
    store.append([(make_entry(occurred_at=one), ()) for one in [sooner, *days]])
    with time_machine.travel(datetime(2026, 11, 28, 13, tzinfo=UTC)):
        (august,) = store.archives.seal("2026-10", tmp_path)
        assert (august.month, august.entries) == ("2026-08", 1)
        left = store.archives.left_behind("2026-10")
        assert (left.entries, left.since, left.until) == (32, days[-1], days[28])
        store.archives.drop()
        assert sum(one.occurred_at.month == 11 for one in store.entries()) == 28
    with time_machine.travel(datetime(2026, 12, 1, tzinfo=UTC)):
        assert sum(one.entries for one in store.archives.seal("2026-11", tmp_path)) == 60
        assert store.archives.left_behind("2026-11") is None
    assert store.verify(deep=True).faults == ()


@pytest.mark.parametrize(
    ("through", "told"), [("2026-13", "not a month"), ("september", "not a month"), ("2999-01", "is not over")]
)
def test_a_month_is_named_right_and_is_over(store, through, told, tmp_path):
    with pytest.raises(ConfigurationError, match=told):
        store.archives.seal(through, tmp_path)


def test_sealing_again_adds_nothing_and_an_empty_ledger_has_nothing(store, make_months, tmp_path):
    assert store.archives.seal("2026-03", tmp_path) == []
    assert store.archives.drop() == store.archives.restore() == store.archives.listed() == []
    store.append([(entry, ()) for entry in make_months(60)])
    assert len(store.archives.seal("2026-03", tmp_path)) == 3
    assert store.archives.seal("2026-03", tmp_path) == []
    assert len(files(tmp_path.parent)) == 0
    assert len(list(Path(tmp_path).rglob("*.parquet"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_row_that_is_in_no_file_cannot_be_removed_and_a_wrong_sum_is_found(archived):
    import sqlite3

    connection = sqlite3.connect(archived.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
    connection.execute("UPDATE sums SET billed_pico = billed_pico + 1 WHERE level = 1 AND slot = 20470")
    connection.commit()
    assert {one.kind for one in archived.verify().faults} == {"rollup"}
    assert "2026-01" in " ".join(one.where for one in archived.verify(deep=True).faults)
    assert {one.table for one in archived.rebuild(deep=True)} == {"sums"}
    assert archived.verify(deep=True).ok
    connection.execute("UPDATE ledger SET archived_to = archived_to + 1")
    connection.execute("DELETE FROM entries WHERE seq = (SELECT archived_to FROM ledger)")
    connection.commit()
    connection.close()
    assert "missing" in {one.kind for one in archived.verify().faults}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "quick"),
    [
        ("UPDATE sums SET n = n + 1 WHERE level = 0 AND slot = (SELECT min(slot) FROM sums WHERE level = 0)", True),
        ("DELETE FROM sums WHERE level = 0 AND slot = (SELECT min(slot) FROM sums WHERE level = 0)", True),
        ("UPDATE rare_sums SET nano = nano + 1 WHERE level = 0", True),
        ("DELETE FROM archived_ids", False),
        ("UPDATE archived_ids SET last = last - 1", False),
        ("DELETE FROM dedup WHERE seq = (SELECT min(seq) FROM dedup)", False),
        ("INSERT INTO dedup VALUES ('openai:never', 2)", False),
        ("UPDATE documents SET body = 'x' WHERE kind = 'archive'", True),
        ("DELETE FROM accounts WHERE id = (SELECT min(account) FROM sums)", True),
    ],
)
@pytest.mark.parametrize("store", ["postgres", "sqlite"], indirect=True)
def test_what_is_kept_of_archived_months_is_compared(archived, store, statement, quick):
    """By a quick verification what needs no file, by a deep one all; docs/how-to/archive.md says which sees what."""
    assert archived.verify(deep=True).ok
    table = statement.replace("INSERT INTO", "UPDATE").replace("DELETE FROM", "UPDATE").split()[1]
    on_file = hasattr(archived, "path")
    off, on = (
        (f"DROP TRIGGER {'accounts_stay' if table == 'accounts' else 'documents_stay_unchanged'}", "SELECT 1")
        if on_file
        else (f"ALTER TABLE {table} DISABLE TRIGGER ALL", f"ALTER TABLE {table} ENABLE TRIGGER ALL")
    )
    for one in (off, statement, on):
        store.end().write(lambda rows, one=one: rows.execute(one))
    kinds = {one.kind for deep in (False, True) for one in archived.verify(deep=deep).faults} - {"trigger"}
    seen = {one.kind for one in archived.verify().faults} - {"trigger"}
    assert (bool(seen), bool(kinds)) == (quick, True)


@pytest.mark.parametrize("gone", ["names WHERE kind = 'end_user'", "names WHERE kind = 'tag:run'", "tagsets"])
@pytest.mark.parametrize("store", ["postgres", "sqlite"], indirect=True)
def test_what_only_archived_entries_name_is_missed_by_a_deep_verification(store, make_entry, tmp_path, gone):
    store.append([(make_entry(occurred_at=START, end_user="u", tags={"run": "7"}), ())])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    assert store.verify(deep=True).ok
    store.end().write(lambda rows: rows.execute(f"DELETE FROM {gone}"))  # noqa: S608 - ours
    (fault,) = store.verify(deep=True).faults
    assert (fault.kind, fault.where) == ("archive", "2026-01")
    assert "lacks 1 " + ("set of tags" if gone == "tagsets" else "name") in fault.detail


@pytest.mark.parametrize(("kind", "value"), [("end_user", "u"), ("tag:run", "7"), ("member", "m")])
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_erasure_counts_what_is_in_files(store, make_entry, tmp_path, kind, value):
    who = {"end_user": "u", "member": "m", "tags": {"run": "7"}}
    store.append([(make_entry(occurred_at=START + timedelta(days=day), **who), ()) for day in range(3)])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    store.append([(make_entry(occurred_at=START + timedelta(days=40), **who), ())])
    done = erase(store, kind, value, reason="asked to", by="kim")
    assert (done.entries, done.uncounted) == (4, "")


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_erasure_is_done_and_says_so_where_files_cannot_be_counted(store, make_entry, tmp_path):
    store.append([(make_entry(occurred_at=START, end_user="u"), ())])
    store.archives.seal("2026-01", tmp_path / "archive")
    store.archives.drop()
    for path in files(tmp_path):
        path.unlink()
    done = erase(store, "end_user", "u", reason="asked to", by="kim")
    assert (done.names, done.entries) == (1, 0)
    assert "cannot be read" in done.uncounted


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_name_that_is_erased_is_erased_for_files_too_and_nothing_else_changes(archived, months, tmp_path):
    content = [path.read_bytes() for path in files(tmp_path)]
    whole = archived.aggregate([START, START + timedelta(days=200)], ())
    erase(archived, "end_user", "u1", reason="asked to", by="kim")
    groups = archived.aggregate([START, START + timedelta(days=200)], ("end_user",))
    assert "u1" not in {one.group[0] for one in groups}
    due = sum(entry.attribution.end_user == "u1" for entry in months)
    assert [one.requests for one in groups if (one.group[0] or "").startswith("erased-")] == [due]
    assert archived.aggregate([START, START + timedelta(days=200)], ()) == whole
    assert "u1" not in {entry.attribution.end_user for entry in archived.entries()}
    assert [path.read_bytes() for path in files(tmp_path)] == content
    assert archived.verify(deep=True).faults == ()


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_archived_entry_is_corrected_like_any_other(archived, months, make_entry):
    wrong = next(entry for entry in months if entry.cost_source == "unpriced")
    before = archived.aggregate([START, START + timedelta(days=200)], ())[0]
    cost = Decimal("0.25")
    fix = make_entry(
        charges=(),
        kind="correction",
        corrects=wrong.entry_id,
        occurred_at=wrong.occurred_at,
        cost_source="computed",
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=cost,
    )
    assert archived.entry(fix.corrects) == wrong
    assert archived.settle(fix).recorded
    after = archived.aggregate([START, START + timedelta(days=200)], ())[0]
    assert after.billed_cost - before.billed_cost == cost
    assert archived.verify().faults == ()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_forked_child_reads_archived_months(archived, months):
    list(archived.entries())
    assert run_in_child(lambda: len(list(archived.entries())) - len(months)) == 0


def test_the_star_of_tables_says_what_the_reports_say(archived, months, tmp_path):
    connection = archived.archives.connect()
    found = connection.execute(
        "SELECT model, member, count(*), sum(billed_cost), sum(input_tokens) FROM calls GROUP BY ALL"
    ).fetchall()
    due = {
        one.group: (one.requests, one.billed_cost, one.quantities["input"])
        for one in archived.aggregate([START, START + timedelta(days=200)], ("model", "member"))
    }
    assert {(model, member): (count, cost, tokens) for model, member, count, cost, tokens in found} == due
    tagged = connection.execute("SELECT count(*) FROM entries JOIN tags USING (tags) WHERE tag = 'größe'").fetchone()
    assert tagged == (sum("größe" in one.attribution.tags for one in months),)
    users = dict(connection.execute("SELECT end_user, count(*) FROM calls GROUP BY 1").fetchall())
    assert users == {user: sum(one.attribution.end_user == user for one in months) for user in ("u1", "u2", None)}
    same = connection.execute("SELECT response_id FROM calls WHERE entry_id = ?", [months[1].entry_id]).fetchone()
    assert same == (months[1].response_id,)
    unknown = connection.execute("SELECT count(*), count(billed_cost) FROM entries WHERE unpriced = 1").fetchone()
    assert unknown == (sum(one.billed_cost is None for one in months), 0)  # null, never zero
    flags = connection.execute("SELECT entry_id, flags FROM calls WHERE flags IS NOT NULL").fetchall()
    assert {entry: tuple(json.loads(said)) for entry, said in flags} == {
        one.entry_id: one.flags for one in archived.entries() if one.flags
    }
    connection.close()
    archived.archives.connect(tmp_path / "usage.duckdb").close()
    with pytest.raises(ConfigurationError, match="exists"):
        archived.archives.connect(tmp_path / "usage.duckdb")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_an_object_store_keeps_months_and_is_asked_once(store, months, bucket, tmp_path):
    before = answers(store)
    store.archives.seal("2026-03", "s3://books/usage")
    store.archives.drop()
    listed = bucket.list_objects_v2(Bucket="books")["Contents"]
    assert [one["Size"] for one in listed] == [one.bytes for one in store.archives.listed()]
    assert_same(before, answers(store))
    assert store.verify(deep=True).faults == ()
    bucket.delete_object(Bucket="books", Key=listed[0]["Key"])
    assert_same(before, answers(store)), "what was read once is kept on this machine"
    assert [(one.kind, one.where) for one in store.verify().faults] == [("archive", "2026-01")]
    bucket.put_object(Bucket="books", Key=listed[0]["Key"], Body=b"something else")
    assert "not the file that was sealed" in store.verify().faults[0].detail


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_of_an_object_store_no_more_is_kept_than_there_is_room_for(store, months, bucket, tmp_path, monkeypatch):
    before = [one.entry_id for one in store.entries()]
    store.archives.seal("2026-03", "s3://books/usage")
    monkeypatch.setenv("TOKENMETER_ARCHIVE_CACHE_MB", "0")
    store.archives.drop()
    assert store.verify(deep=True).ok

    def kept():
        return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    assert len(kept()) <= 1, "what is only checked is not kept"
    for month in (1, 2, 3):
        span = EntryFilter(since=datetime(2026, month, 2, tzinfo=UTC), until=datetime(2026, month, 25, tzinfo=UTC))
        assert list(store.entries(span))
        assert len(kept()) == 1
    connection = store.archives.connect()
    assert list(store.entries(span)), "a month that is asked for while others are read"
    assert connection.execute("SELECT count(*) FROM calls").fetchone() == (len(before),)
    connection.close()
    assert [one.entry_id for one in store.entries()] == before


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>\xff", b"HTTP/1.1 200 OK\r\n"]
)
def test_who_is_no_clickhouse_is_told_in_words(store, answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def once():
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        running = threading.Thread(target=once)
        running.start()
        with pytest.raises(StoreUnavailableError, match=r"ClickHouse at|is not ClickHouse's HTTP interface"):
            load_clickhouse(store, f"http://127.0.0.1:{listening.getsockname()[1]}")
        running.join()


def test_reading_a_file_of_many_groups_takes_no_more_memory_than_one_of_few(ledger, tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    most = []
    for size in (8, 1):
        monkeypatch.setattr("tokenmeter.stores.archive.layout._ROW_GROUP", size)
        store = ledger(f"groups of {size}")
        (month,) = store.archives.seal("2026-01", tmp_path / f"archive {size}")
        gc.collect()  # else what others left might be freed meanwhile
        before = arrow.total_allocated_bytes()
        most.append(max(arrow.total_allocated_bytes() - before for _ in records(month.url, rows=2)))
        store.close()
    few, many = most
    assert 0 < many < 2 * few
