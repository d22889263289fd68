"""A ledger that is copied to another store is the same ledger: its chain, its reports, its invoices, its budgets."""

import contextlib
import sqlite3
from datetime import UTC, datetime

import openai
import pytest

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.errors import BudgetExceededError, ConfigurationError, LedgerError, StoreError
from tokenmeter.stores import copying, packing
from tokenmeter.stores.backup import restore
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.moving import copy_ledger, opened
from tokenmeter.stores.sqlite import database
from tokenmeter.testing import FakeProvider

BUDGET = tokenmeter.Budget(name="team", team="search", limit_usd="0.0005", thresholds=[10])
ENDPOINT = {"provider": "openai", "endpoint": "chat.completions"}
CALL = ENDPOINT | {"model": "gpt-5-mini", "input_tokens": 1000, "max_output_tokens": 100}


@pytest.fixture(params=["sqlite to sqlite", "sqlite to postgres", "postgres to sqlite"])
def way(request, tmp_path):
    """URLs of a source and a target of every pair of engines."""
    urls = {"sqlite": f"sqlite:///{tmp_path}/new/copy.db", "postgres": None}
    ours, theirs = request.param.split(" to ")
    if "postgres" in {ours, theirs}:
        urls["postgres"] = request.getfixturevalue("postgres_url")
    source = f"sqlite:///{tmp_path}/old/ledger.db" if ours == "sqlite" else urls["postgres"]
    return source, urls[theirs]


def test_the_copy_tells_what_the_ledger_tells(way, filled, record, told):
    source, target = way
    meter = filled(source, budgets=[BUDGET])
    record(meter, "now", member="ada@example.com", team="search", end_user="user-1")
    meter.close()
    done = copy_ledger(source, target)
    before = told(source)
    assert told(target) == before
    assert before["counters"]
    assert before["crossings"]
    assert (done.head, done.behind, done.retired) == (before["head"], 0, False)


def test_the_copy_goes_on_where_the_ledger_was(way, filled, record, open_meter):
    """A bill that comes again, a threshold that was told, a cap that is used, the next invoice, a key."""
    source, target = way
    old = filled(source, budgets=[BUDGET])
    record(old, "now", team="search")
    (series,) = {one.series for one in old.store.documents() if one.series}
    told_once, key = old.store.crossings(), old.store.secret()
    old.close()
    copy_ledger(source, target)
    new = open_meter(target, budgets=[BUDGET])
    assert record(new, "now", team="search") is None
    assert record(new, "more") is not None
    assert new.store.crossings() == told_once
    assert new.store.secret() == key
    with pytest.raises(BudgetExceededError), new.hold(**CALL, attribution=Attribution(team="search")):
        pass
    filing = new.store.file(NewDocument(kind="invoice", key="next", series=series, body="{}"))
    assert filing.document.number == 2
    assert new.verify().ok


def test_a_second_copy_brings_what_came_since(way, filled, record, told):
    source, target = way
    meter = filled(source)
    first = copy_ledger(source, target)
    record(meter, "since", member="eve@example.com")
    second = copy_ledger(source, target)
    assert second.entries == first.entries + 1
    meter.close()
    assert told(target) == told(source)


def test_reports_of_a_copy_that_were_asked_before_do_not_hide_what_a_second_copy_brings(
    way, filled, record, told, monkeypatch
):
    """The sums that a large question has packed at the target are those of the first copy."""
    pytest.importorskip("numpy")
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_DENSE", 0)
    source, target = way
    meter = filled(source)
    copy_ledger(source, target)
    first = told(target)["reports"]
    record(meter, "late", at=datetime(2026, 10, 3, 9, tzinfo=UTC), member="ada@example.com")
    copy_ledger(source, target)
    meter.close()
    reports = told(source)["reports"]
    assert told(target)["reports"] == reports != first


def test_an_interrupted_copy_goes_on_where_it_ended(way, filled, told, monkeypatch):
    source, target = way
    filled(source).close()
    monkeypatch.setattr(copying, "_PAGE", 5)
    done = []

    def stop(reached, _):
        done.append(reached)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_ledger(source, target, progress=stop)
    with contextlib.suppress(ConfigurationError), opened(target) as half:  # a file gets its name when it is complete
        assert half.verify().entries == 10
    copy_ledger(source, target, progress=lambda reached, _: done.append(reached))
    assert done[:3] == [5, 10, 14]
    assert told(target) == told(source)


def test_open_calls_forbid_its_end_and_what_is_recorded_by_then_is_carried(way, filled, answer, told, monkeypatch):
    source, target = way
    monkeypatch.setattr(copying, "_PAGE", 5)
    meter = filled(source, budgets=[tokenmeter.Budget(name="all", limit_usd=5)])
    done = []
    with meter.hold(**CALL) as held:
        with pytest.raises(LedgerError, match="1 call of this ledger is under way"):
            copy_ledger(source, target, progress=lambda reached, _: done.append(reached))
        carried = done[-1]
        held.record(answer("held", 1000))
    done.clear()
    assert copy_ledger(source, target, progress=lambda reached, _: done.append(reached)).entries == 13
    assert carried >= 10
    assert min(done, default=carried + 1) > carried  # nothing is carried twice
    assert told(target) == told(source)


def test_a_target_with_records_of_its_own_is_left_alone(way, filled, record, open_meter):
    source, target = way
    filled(source)
    other = open_meter(target)
    record(other, "other", member="ada")
    before = other.verify()
    with pytest.raises(LedgerError, match="not the beginning of this ledger"):
        copy_ledger(source, target)
    assert other.verify() == before


def test_a_retired_ledger_tells_writers_where_it_went_and_hands_on_what_they_record(
    way, filled, record, open_meter, told, caplog
):
    source, target = way
    meter = filled(source, budgets=[tokenmeter.Budget(name="team", team="search", limit_usd=5)])
    done = copy_ledger(source, target, retire=True)
    assert done.retired
    late = record(meter, "late", team="search")
    assert late is not None
    meter.report()
    assert f"This ledger moved to {done.url}" in caplog.text
    with pytest.raises((StoreError, LedgerError), match="moved"):
        meter.store.file(NewDocument(kind="invoice", key="x", body="{}"))
    with pytest.raises(StoreError), meter.hold(**CALL, attribution=Attribution(team="search")):
        pass
    assert [entry.entry_id for entry in meter.entries()][-1] != late.entry_id
    again = copy_ledger(source, target, retire=True)
    assert (again.forwarded, again.entries) == (1, done.entries + 1)
    assert copy_ledger(source, target, retire=True).forwarded == 0
    new = open_meter(target)
    assert new.store.entry(late.entry_id) == late
    assert new.verify().ok
    assert sum(one.settled for key, one in new.store.all_counters() if not key.budget.startswith("=")) > 0


def test_without_a_tail_what_programs_record_in_a_retired_ledger_is_handed_on_too(
    filled, record, open_meter, tmp_path, monkeypatch, caplog
):
    """It was kept in memory, and lost with the program."""
    monkeypatch.setattr(database, "is_network", lambda path: path.parent.name == "old")
    source, target = f"sqlite:///{tmp_path}/old/ledger.db", f"sqlite:///{tmp_path}/new/copy.db"
    meters = [filled(source), open_meter(source)]
    done = copy_ledger(source, target, retire=True)
    late = [record(meter, f"late-{number}", member=f"m{number}") for number, meter in enumerate(meters)]
    with FakeProvider() as provider, openai.OpenAI(api_key="sk-test", base_url=provider.openai_url) as client:
        tokenmeter.wrap(client, meter=meters[0])
        for _ in range(2):
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hi"}])
    assert f"This ledger moved to {done.url}" in caplog.text
    for meter in meters:
        assert meter.flush(0) == 0
        meter.close()
    assert copy_ledger(source, target, retire=True).forwarded == 4
    late.append(record(meters[1], "later", member="m2"))
    again = copy_ledger(source, target, retire=True)
    assert (again.forwarded, again.entries) == (1, done.entries + 5)
    new = open_meter(target)
    assert [new.store.entry(entry.entry_id) for entry in late] == late
    assert new.verify().ok


def test_a_retired_ledger_can_still_be_read_proved_and_backed_up(way, filled, record, open_meter, tmp_path, caplog):
    source, target = way
    meter = filled(source)
    before = str(meter.report("member"))
    copy_ledger(source, target, retire=True)
    for reader in (meter, open_meter(source)):
        assert str(reader.report("member")) == before
        assert reader.verify().ok
    assert caplog.text == "", "nothing waits, so there is nothing to be told of"
    record(meter, "late", team="search")
    meter.close()
    assert copy_ledger(source, target, retire=True).forwarded == 1
    caplog.clear()
    reader = open_meter(source)
    assert str(reader.report("member")) == before
    made = reader.backup(tmp_path / "retired.db")
    assert (made.entries, made.verification.ok) == (len(list(reader.entries())), True)
    assert caplog.text == "", "what waited was handed on"
    assert made.head == reader.verify().head
    again = open_meter(restore(made.path, tmp_path / "again.db").url)
    with pytest.raises((StoreError, LedgerError), match="moved"):
        again.store.file(NewDocument(kind="invoice", key="x", body="{}"))


def test_a_ledger_that_is_not_there_or_is_the_same_is_refused(tmp_path, filled):
    url = f"sqlite:///{tmp_path}/ledger.db"
    with pytest.raises(ConfigurationError, match="no ledger"):
        copy_ledger(url, f"sqlite:///{tmp_path}/copy.db")
    filled(url)
    with pytest.raises(ConfigurationError, match="itself"):
        copy_ledger(url, tmp_path / "ledger.db")
    assert not (tmp_path / "copy.db").exists()


def test_a_copy_that_differs_is_not_let_pass(filled, tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    filled(url).close()
    copy_ledger(url, tmp_path / "copy.db")
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE sums SET billed_micro = billed_micro + 1 WHERE level = 2")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="has 1 fault"):
        copy_ledger(url, tmp_path / "copy.db")


def test_archived_months_go_along_as_they_are(way, filled, record, told, tmp_path):
    """Archived before the first copy, and between two copies."""
    pytest.importorskip("pyarrow")
    source, target = way
    meter = filled(source)
    record(meter, "november", member="ada@example.com")
    copy_ledger(source, target)
    meter.store.archives.seal("2026-10", str(tmp_path / "archive"))
    meter.store.archives.drop()
    copy_ledger(source, target)
    assert told(target) == told(source)
    if "postgres" not in target:
        third = f"sqlite:///{tmp_path}/third.db"
        copy_ledger(source, third)
        assert told(third) == told(source)


def test_months_that_are_brought_back_come_with_the_next_copy(way, filled, record, told, tmp_path):
    pytest.importorskip("pyarrow")
    source, target = way
    meter = filled(source)
    record(meter, "november", member="ada@example.com")
    meter.archive("2026-10", str(tmp_path / "archive"), drop=True)
    copy_ledger(source, target)
    meter.restore_archive("2026-10")
    record(meter, "since", member="eve@example.com")
    for _ in range(2):
        assert copy_ledger(source, target).entries == 14
        assert told(target) == told(source)
    meter.close()


def test_months_may_be_archived_and_brought_back_while_a_ledger_is_copied(
    way, filled, record, told, tmp_path, monkeypatch
):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(copying, "_PAGE", 4)
    source, target = way
    meter = filled(source)
    for number in range(8):
        record(meter, f"november {number}", member="ada@example.com")
    meter.archive("2026-10", str(tmp_path / "archive"))
    steps = iter([meter.store.archives.drop, int, meter.restore_archive, meter.store.archives.drop])
    stops = []

    def change(reached, _):
        next(steps, int)()
        stops.append(reached)
        if len(stops) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_ledger(source, target, progress=change)
    meter.restore_archive()
    copy_ledger(source, target, progress=change)
    assert stops[:2] == [4, 12]  # what is in files alone is passed over
    meter.restore_archive()
    assert copy_ledger(source, target).entries == 20
    assert told(target) == told(source)
    meter.close()
