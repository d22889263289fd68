"""Ledgers of several hosts become one: every entry once, every bill once, nothing of either changed."""

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from math import prod

import anthropic
import openai
import pytest

import tokenmeter
from tokenmeter.billing import draft_invoices
from tokenmeter.billing.period import late_entries
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.importing import import_usage
from tokenmeter.ledger import new_id
from tokenmeter.pricing.corrections import reversal
from tokenmeter.stores import open_store, twins
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.moving import copy_ledger


@pytest.fixture(params=["sqlite", "postgres"])
def target(request, fresh_url):
    return fresh_url(request.param)


@pytest.fixture
def host(tmp_path, filled):
    """The ledger of a host, with an invoice."""
    url = f"sqlite:///{tmp_path}/host.db"
    filled(url).close()
    return url


def test_entries_of_both_are_in_one_chain_with_their_names(host, target, open_meter, record):
    meter = open_meter(target)
    record(meter, "own", member="ada@example.com", end_user="user-1", tags={"feature": "f0"})
    done = merge_ledger(host, target)
    assert (done.entries, done.repeated) == (12, 0)
    theirs = open_meter(host)
    assert meter.verify().ok
    by_member = {entry.attribution.member: 0 for entry in meter.entries()}
    for entry in meter.entries():
        by_member[entry.attribution.member] += 1
    assert by_member == {"ada@example.com": 7, "bob@example.com": 6}
    assert len(meter.report("member").rows) == 2
    assert meter.report().totals.billed_cost == theirs.report().totals.billed_cost + next(
        entry.billed_cost for entry in meter.entries(newest_first=True)
    )
    assert [meter.store.entry(entry.entry_id) == entry for entry in theirs.entries()] == [True] * 12


def test_invoices_come_along_with_their_numbers_and_a_record_says_where_from(host, target, open_meter, record):
    meter = open_meter(target)
    record(meter, "own", member="ada")
    done = merge_ledger(host, target)
    theirs = open_store(host)
    ours = {(one.kind, one.key): (one.series, one.number, one.body) for one in meter.store.documents()}
    kept = {(one.kind, one.key): (one.series, one.number, one.body) for one in theirs.documents()}
    assert kept.items() <= ours.items()
    assert done.documents == len(kept)
    (said,) = [one for one in meter.store.documents() if one.kind == "merged"]
    assert theirs.health().facts["head"] in said.body
    theirs.close()


def test_merging_twice_takes_nothing_twice(host, target, open_meter, record):
    meter = open_meter(target)
    record(meter, "own", member="ada")
    first = merge_ledger(host, target)
    second = merge_ledger(host, target)
    assert (second.entries, second.repeated, second.documents) == (0, 12, 0)
    assert second.head == first.head == meter.verify().head
    record(meter, "since", member="ada")
    head = merge_ledger(host, target).head
    assert head == meter.verify().head != first.head
    assert meter.verify().ok


def test_a_bill_that_both_recorded_is_counted_once(host, target, open_meter, record):
    meter = open_meter(target)
    assert record(meter, 3, member="ada@example.com") is not None  # the same response id as one of the host's
    done = merge_ledger(host, target)
    assert (done.entries, done.repeated) == (11, 1)


@pytest.mark.parametrize("who", ["both", "source", "target", "took back", "took back another", "took back twice"])
def test_what_was_corrected_of_a_bill_that_both_recorded_is_counted_once(tmp_path, fresh_url, open_meter, who):
    source, target = f"sqlite:///{tmp_path}/source.db", fresh_url("postgres" if who == "both" else "sqlite")
    per = {"provider": "openai", "model": "acme-1", "per": 10**6, "source": "a contract"}
    prices = [{**per, "sku_meter": "input", "unit_price": "1"}, {**per, "sku_meter": "output", "unit_price": "2"}]
    for number, (url, side) in enumerate([(source, "source"), (target, "target")]):
        meter = open_meter(url)
        used = {"prompt_tokens": 10**6 + number * (who == "took back another"), "completion_tokens": 0}
        body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "acme-1", "usage": used}
        entry = meter.record(body, provider="openai", endpoint="chat.completions")
        if who in {"both", side}:
            assert len(open_meter(url, prices=prices).reprice(since="2026-01-01")) == 1
        elif "took back" in who and (side == "source" or "twice" in who):
            meter.post(reversal(entry, ()))
    merge_ledger(source, target)
    merge_ledger(source, target)
    meter = open_meter(target, prices=prices)
    found = meter.report().totals
    due = (0, 0, 0) if "took back" in who else (1, 1, 0)
    assert (found.requests, found.billed_cost, found.unpriced) == due
    assert meter.reprice(since="2026-01-01") == []
    assert meter.verify(deep=True).ok


def test_bills_of_one_moment_that_both_recorded_are_told_apart_by_one_look_at_it(tmp_path, open_meter, monkeypatch):
    rows = [{"id": f"r-{number}", "at": "2026-11-03", "model": "acme-1", "in": 10**6} for number in range(30)]
    (tmp_path / "day.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    names = {"id": "id", "time": "at", "model": "model", "input": "in"}
    price = {"provider": "openai", "model": "acme-1", "sku_meter": "input", "unit_price": "1", "source": "a contract"}
    source, target = (f"sqlite:///{tmp_path}/{side}.db" for side in ("source", "target"))
    for url in (source, target):
        asked = {"fields": names, "provider": "openai", "endpoint": "chat.completions", "tz": "UTC"}
        assert import_usage(open_meter(url), tmp_path / "day.jsonl", **asked).recorded == 30
    assert len(open_meter(source, prices=[price]).reprice(since="2026-11-01")) == 30
    looks = []
    monkeypatch.setattr(twins, "EntryFilter", lambda **which: looks.append(which) or EntryFilter(**which))
    merge_ledger(source, target)
    assert open_meter(target).report().totals.billed_cost == 30
    # What corrects them in either ledger, and whether another answer stands for an estimate.
    assert len(looks) <= 3


def test_a_copy_that_went_its_own_way_is_joined_again(host, tmp_path, open_meter, record):
    copy_ledger(host, tmp_path / "copy.db")
    one, other = open_meter(host), open_meter(f"sqlite:///{tmp_path}/copy.db")
    record(one, "one", member="ada")
    record(other, "other", member="ada")
    done = merge_ledger(tmp_path / "copy.db", host)
    assert (done.entries, done.repeated) == (1, 12)
    assert one.verify().ok


@pytest.mark.parametrize("room", ["sqlite", "postgres"])
def test_what_waits_beside_a_retired_ledger_is_not_passed_over(tmp_path, fresh_url, open_meter, record, room):
    source, copy, target = fresh_url(room), tmp_path / "copy.db", tmp_path / "target.db"
    theirs = open_meter(source)
    record(theirs, 1, member="ada")
    copy_ledger(source, copy, retire=True)
    meter = open_meter(f"sqlite:///{target}")
    record(meter, 2, member="bob")
    meter.flush()
    assert record(theirs, "late", member="ada") is not None
    with pytest.raises(LedgerError, match=r"1 entry waits beside .* moved to .*copy\.db.*nothing was taken"):
        merge_ledger(source, target)
    assert len(list(meter.entries())) == 1
    assert copy_ledger(source, copy, retire=True).forwarded == 1
    assert (merge_ledger(source, target).entries, merge_ledger(copy, target).entries) == (1, 1)


def test_invoices_of_one_series_on_both_sides_are_refused_and_nothing_is_taken(host, target, open_meter):
    store = open_meter(target).store
    series = next(one.series for one in open_store(host).documents() if one.series)
    store.file(NewDocument(kind="invoice", key="own", series=series, body="{}"))
    with pytest.raises(LedgerError, match="their numbers would meet"):
        merge_ledger(host, target)
    assert store.health().facts["entries"] == 0


@pytest.mark.parametrize("room", ["sqlite", "postgres"])
def test_a_merge_that_was_broken_off_between_invoices_of_a_series_is_run_again(
    tmp_path, fresh_url, open_meter, record, monkeypatch, room
):
    source, target = f"sqlite:///{tmp_path}/source.db", fresh_url(room)
    theirs, meter = open_meter(source), open_meter(target)
    record(theirs, 1, member="ada@example.com")
    theirs.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    for number in (1, 2, 3):
        theirs.store.file(NewDocument(kind="invoice", key=f"i{number}", series="INV-", body=f'{{"is": {number}}}'))
    record(meter, 2, member="bob")
    kind, file = type(meter.store), type(meter.store).file

    def break_off(store, draft):
        if draft.key == "i2":
            raise KeyboardInterrupt
        return file(store, draft)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "file", break_off)
        with pytest.raises(KeyboardInterrupt):
            merge_ledger(source, target)
    assert (again := merge_ledger(source, target)).documents == 2
    invoices = [one for one in meter.store.documents() if one.kind == "invoice"]
    assert [(one.key, one.number) for one in invoices] == [("i1", 1), ("i2", 2), ("i3", 3)]
    assert [row.group["member"] for row in meter.report("member").rows] == ["bob", "person 17"]
    assert (found := meter.verify()).ok
    assert again.head == found.head
    # What the source has issued since comes with the next one, until the target issues its own.
    theirs.store.file(NewDocument(kind="invoice", key="i4", series="INV-", body="{}"))
    assert merge_ledger(source, target).documents == 1
    meter.store.file(NewDocument(kind="invoice", key="own", series="INV-", body="{}"))
    assert merge_ledger(source, target).documents == 0
    theirs.store.file(NewDocument(kind="invoice", key="i5", series="INV-", body="{}"))
    with pytest.raises(LedgerError, match="their numbers would meet"):
        merge_ledger(source, target)


def test_a_ledger_that_moved_takes_nothing_of_another_in(tmp_path, open_meter, record):
    source, target, copy = (f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target", "copy"))
    record(open_meter(source), 1, member="ada")
    record(open_meter(target), 2, member="bob")
    copy_ledger(target, copy, retire=True)
    with pytest.raises(StoreUnavailableError, match=r"moved to .*copy\.db: merge into that. Nothing was taken"):
        merge_ledger(source, target)
    copy_ledger(target, copy, retire=True)
    with sqlite3.connect(tmp_path / "copy.db") as file:
        assert file.execute("SELECT value FROM names").fetchall() == [("bob",)]
    file.close()


@pytest.mark.parametrize("room", ["sqlite", "postgres"])
def test_invoices_that_the_target_files_amid_a_merge_take_no_number_of_the_sources(
    tmp_path, fresh_url, open_meter, record, room
):
    source, target = f"sqlite:///{tmp_path}/source.db", fresh_url(room)
    theirs, meter = open_meter(source), open_meter(target)
    record(theirs, 1, member="ada")
    theirs.store.file(NewDocument(kind="invoice", key="i1", series="INV-", body="{}"))

    def issue(*_):
        meter.store.file(NewDocument(kind="invoice", key="own", series="INV-", body="{}"))

    with pytest.raises(LedgerError, match="somebody filed invoice own"):
        merge_ledger(source, target, progress=issue)
    assert [(one.key, one.number) for one in meter.store.documents()] == [("own", 1)]


def test_one_identity_with_other_content_is_refused(host, tmp_path, open_meter):
    copy_ledger(host, tmp_path / "copy.db")
    connection = sqlite3.connect(tmp_path / "copy.db")
    connection.execute("DROP TRIGGER entries_stay_unchanged")
    connection.execute("UPDATE entries SET body = replace(body, '\"latency', '\"Latency') || ' ' WHERE seq = 2")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="different content"):
        merge_ledger(tmp_path / "copy.db", host)


def test_one_identity_with_other_content_is_refused_where_the_target_has_it_in_a_file(host, tmp_path, open_meter):
    pytest.importorskip("pyarrow")
    copy_ledger(host, tmp_path / "copy.db")
    connection = sqlite3.connect(tmp_path / "copy.db")
    connection.execute("DROP TRIGGER entries_stay_unchanged")
    connection.execute("UPDATE entries SET body = body || ' ' WHERE seq = (SELECT min(seq) FROM entries)")
    connection.commit()
    connection.close()
    meter = open_meter(host)
    meter.store.archives.seal("2026-10", str(tmp_path / "archive"))
    meter.store.archives.drop()
    before = meter.verify().head
    with pytest.raises(LedgerError, match="different content"):
        merge_ledger(tmp_path / "copy.db", host)
    assert meter.verify().head == before


def test_a_name_that_was_erased_stays_erased(host, target, open_meter, record):
    theirs = open_meter(host)
    theirs.erase("member", "ada@example.com", reason="request", by="kim", pseudonym="person 17")
    meter = open_meter(target)
    record(meter, "own", member="eve")
    merge_ledger(host, target)
    assert not [entry for entry in meter.entries() if entry.attribution.member == "ada@example.com"]
    assert meter.verify().ok


WHY = {"reason": "request 4711", "by": "office"}


def close_september(url, open_meter, record):
    """A ledger with a call of ada's in September, which is closed."""
    meter = open_meter(url)
    record(meter, "september", at=datetime(2026, 9, 5, 12, tzinfo=UTC), member="ada@example.com")
    meter.close_period("2026-09", tz="UTC")
    meter.flush()
    return meter


def told_of_september(meter):
    """Late corrections, drafts of October, and who is in reports."""
    return (
        late_entries(meter.store),
        draft_invoices(meter.store, each="member", period="2026-10"),
        [row.group["member"] for row in meter.report(by="member", period="all").rows],
    )


@pytest.mark.parametrize("pseudonym", [None, "person 17"])
def test_a_closed_month_of_an_erased_person_is_not_billed_again(target, tmp_path, open_meter, record, pseudonym):
    source = f"sqlite:///{tmp_path}/source.db"
    theirs = close_september(source, open_meter, record)
    done = theirs.erase("member", "ada@example.com", pseudonym=pseudonym, **WHY)
    meter = open_meter(target)
    meter.store.file(NewDocument(kind="handover", key="before", body="{}"))  # positions are others than in the source
    for _ in range(2):
        merge_ledger(source, target)
        assert told_of_september(meter) == told_of_september(theirs) == ([], [], [done.pseudonym])
    said = [json.loads(one.body) for one in meter.store.documents() if one.kind == "erasure"]
    assert [(one["reason"], one["by"], one["pseudonym"]) for one in said] == [
        ("request 4711", "office", done.pseudonym)
    ]
    meter.close_period("2026-10", tz="UTC")
    assert [one.kind for one in meter.store.documents() if "ada@" in one.body] == ["period"]
    assert meter.verify().ok
    # And from there on.
    third = f"sqlite:///{tmp_path}/third.db"
    other = open_meter(third)
    other.store.file(NewDocument(kind="handover", key="before", body="{}"))
    merge_ledger(target, third)
    assert told_of_september(other) == ([], [], [done.pseudonym])
    assert other.verify().ok


@pytest.mark.parametrize("pseudonym", [None, "person 17"])
def test_who_was_erased_in_one_copy_has_no_name_again_from_the_other(
    tmp_path, fresh_url, open_meter, record, pseudonym
):
    source, target = f"sqlite:///{tmp_path}/source.db", fresh_url("sqlite")
    close_september(source, open_meter, record).close()
    copy_ledger(source, target)
    theirs = open_meter(source)
    record(theirs, "october", at=datetime(2026, 10, 5, tzinfo=UTC), member="ada@example.com")
    theirs.close_period("2026-10", tz="UTC")
    theirs.erase("member", "ada@example.com", pseudonym="customer 17", **WHY)
    record(theirs, "november", at=datetime(2026, 11, 5, tzinfo=UTC), member="eve")
    theirs.close_period("2026-11", tz="UTC", now=datetime(2027, 1, 1, tzinfo=UTC))
    meter = open_meter(target)
    before = meter.verify().head
    with pytest.raises(LedgerError, match=r"member 'ada@example\.com' was erased in .* erase member ada@example\.com"):
        merge_ledger(source, target)
    assert meter.verify().head == before
    done = meter.erase("member", "ada@example.com", pseudonym=pseudonym, **WHY)
    assert merge_ledger(source, target).entries == 2
    late, _, members = told_of_september(meter)
    assert (late, set(members)) == ([], {done.pseudonym, "eve"})
    assert meter.verify().ok


def _blank(path, name):
    """Take a name out of a ledger by hand."""
    with sqlite3.connect(path) as file:
        file.execute("UPDATE names SET salt = NULL, kind = '', value = NULL WHERE value = ?", (name,))
    file.close()


def test_a_name_that_was_taken_out_by_hand_is_a_fault_also_where_another_ledger_was_taken_in(
    tmp_path, open_meter, record
):
    source, target, third = (f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target", "third"))
    theirs, meter = open_meter(source), open_meter(target)
    record(theirs, 1, member="ada@example.com")
    theirs.erase("member", "ada@example.com", **WHY)
    record(meter, 2, member="bob")
    merge_ledger(source, target)
    assert meter.verify().ok
    meter.flush()
    _blank(tmp_path / "target.db", "bob")
    said = "A name was erased, and no record says so."
    assert [fault.detail for fault in open_meter(target).verify().faults] == [said]
    # A merge of an earlier release brought no records of erasures: what it did not say is taken as it is.
    meter.store.file(NewDocument(kind="merged", key="earlier", body='{"url": ""}'))
    assert open_meter(target).verify().ok
    other = open_meter(third)
    merge_ledger(target, third)
    assert other.verify().ok
    record(other, 3, member="eve")
    other.flush()
    _blank(tmp_path / "third.db", "eve")
    assert [fault.detail for fault in open_meter(third).verify().faults] == [said]


def test_a_tag_that_was_erased_with_a_project_keeps_its_pseudonym(target, tmp_path, open_meter, record):
    theirs = open_meter(f"sqlite:///{tmp_path}/source.db")
    record(theirs, "one", project="thesis", tags={"reconciled_project": "thesis"})
    theirs.erase("project", "thesis", pseudonym="work 17", **WHY)
    meter = open_meter(target)
    merge_ledger(f"sqlite:///{tmp_path}/source.db", target)
    for by in ("project", "tag:reconciled_project"):
        assert len(list(meter.entries(where={by: "work 17"}))) == 1
    assert meter.verify().ok


def test_a_closed_month_that_names_whom_the_target_erased_is_not_billed_again(target, tmp_path, open_meter, record):
    source = f"sqlite:///{tmp_path}/source.db"
    meter = open_meter(source)
    record(meter, "september", at=datetime(2026, 9, 5, 12, tzinfo=UTC), member="ada@example.com")
    meter.close()
    copy_ledger(source, target)
    done = open_meter(target).erase("member", "ada@example.com", **WHY)
    open_meter(source).close_period("2026-09", tz="UTC")
    meter = open_meter(target)
    for _ in range(2):
        assert merge_ledger(source, target).entries == 0
        assert told_of_september(meter) == ([], [], [done.pseudonym])
    assert len([one for one in meter.store.documents() if one.kind == "erasure"]) == 2
    assert meter.verify().ok


def test_a_target_that_is_not_there_is_not_made(host, tmp_path):
    with pytest.raises(ConfigurationError, match="no ledger"):
        merge_ledger(host, tmp_path / "nowhere.db")
    with pytest.raises(ConfigurationError, match="itself"):
        merge_ledger(host, host)


def test_the_command_takes_several_and_counts_budgets_again(host, tmp_path, open_meter, record, run_command):
    url = f"sqlite:///{tmp_path}/all.db"
    meter = open_meter(url, budgets=[tokenmeter.Budget(member="*", limit_usd=50, period="total")])
    record(meter, "own", member="ada@example.com")
    second = open_meter(f"sqlite:///{tmp_path}/second.db")
    record(second, "second", member="ada@example.com")
    code, said, _ = run_command("db", "merge", host, f"sqlite:///{tmp_path}/second.db", url)
    assert (code, "12 entries" in said) == (0, True)
    assert not meter.audit_budgets()
    settled = [one.settled for key, one in meter.store.all_counters() if "ada@example.com" in key.scope]
    assert max(settled) == 2_700_000_000_000 + 2 * 450_000_000


def test_months_of_the_source_that_are_in_files_come_along(host, target, open_meter, record, tmp_path):
    pytest.importorskip("pyarrow")
    theirs = open_meter(host)
    record(theirs, "november", member="ada@example.com")
    theirs.store.archives.seal("2026-10", str(tmp_path / "archive"))
    theirs.store.archives.drop()
    (tmp_path / "archive").rename(tmp_path / "moved")
    theirs.move_archive(tmp_path / "moved")
    open_meter(target)
    done = merge_ledger(host, target)
    assert (done.entries, done.repeated) == (13, 0)
    meter = open_meter(target)
    assert list(meter.entries()) == list(theirs.entries())
    assert meter.report("end_user").to_csv() == theirs.report("end_user").to_csv()
    assert meter.archives() == []
    assert meter.verify(deep=True).ok
    assert merge_ledger(host, target).repeated == 13


@pytest.fixture
def merged(tmp_path, open_meter):
    """What two hosts come to, of which each did what it is given: the other taken in, or by the other, each twice."""

    def run(*hosts):
        told = []
        for folder, names in ((tmp_path / "there", "ab"), (tmp_path / "back", "ba")):
            folder.mkdir(parents=True)
            for fill, name in zip(hosts, names, strict=True):
                fill(open_meter(f"sqlite:///{folder}/{name}.db"))
            first, again = (merge_ledger(folder / "b.db", folder / "a.db") for _ in range(2))
            meter, source = (open_meter(f"sqlite:///{folder}/{name}.db") for name in "ab")
            assert (again.entries, meter.verify().ok) == (0, True)
            assert 0 <= first.repeated <= again.repeated == len(list(source.entries()))
            found = meter.report().totals
            told.append((found.requests, found.input_tokens, found.output_tokens, found.billed_cost, found.unpriced))
        return told

    return run


def _recording(*bodies, provider="openai", endpoint="responses.create"):
    def fill(meter):
        for body in bodies:
            meter.record(body, provider=provider, endpoint=endpoint)

    return fill


def _session(tokens):
    model, usage = {"id": "claude-sonnet-4-5"}, {"input_tokens": tokens, "output_tokens": tokens // 10}
    return {"id": "sesn_1", "type": "session", "agent": {"model": model}, "usage": usage}


def _step(name, tokens):
    usage = {"input_tokens": tokens, "output_tokens": tokens // 10}
    usage |= {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    base = {"type": "span.model_request_end", "model_request_start_id": "s", "processed_at": "2026-11-01T12:00:00Z"}
    return {**base, "id": name, "model_usage": usage}


@pytest.mark.parametrize(
    ("one", "other", "most"),
    [((100, 150), (120, 300), 300), ((100,), (20, 60), 100), ((10, 20, 30, 40), (35,), 40), ((70,), (70,), 70)],
)
def test_a_session_that_two_hosts_read_counts_what_the_later_reading_says(merged, one, other, most):
    reading = {"provider": "anthropic", "endpoint": "beta.sessions.retrieve"}
    hosts = [_recording(*map(_session, totals), **reading) for totals in (one, other)]
    cost = Decimal(most) * 3 / 10**6 + Decimal(most // 10) * 15 / 10**6
    assert merged(*hosts) == [(1, most, most // 10, cost, 0)] * 2


def test_what_a_session_grew_by_under_other_factors_has_lines_that_read_as_they_cost(tmp_path, open_meter):
    reading = {"provider": "anthropic", "endpoint": "beta.sessions.retrieve"}
    for name, multiplier, total in (("a", "1.25", 100), ("b", "0.8", 300)):
        _recording(_session(total), **reading)(open_meter(f"sqlite:///{tmp_path}/{name}.db", multiplier=multiplier))
    merge_ledger(tmp_path / "b.db", tmp_path / "a.db")
    first, more = open_meter(f"sqlite:///{tmp_path}/a.db").entries()
    assert (more.kind, more.usage.input_tokens) == ("growth", 200)
    lines = [(line.quantity, *line.multipliers.values()) for line in more.charges if line.sku_meter == "input"]
    assert sorted(lines) == [(-100, Decimal("1.25")), (300, Decimal("0.8"))]
    for line in (*first.charges, *more.charges):
        assert line.billed_cost == line.quantity * prod(line.multipliers.values(), start=line.list_unit_price), line
    assert first.billed_cost + more.billed_cost == Decimal("0.8") * (300 * 3 + 30 * 15) / 10**6


@pytest.fixture
def hearing(fake_provider):
    """A host that hears model requests of a session: their names and tokens."""
    client = anthropic.Anthropic(base_url=fake_provider.anthropic_url, api_key="sk-test-1")

    def made(**requests):
        def fill(meter):
            fake_provider.answer(events=[_step(*one) for one in requests.items()], billed=False)
            with tokenmeter.wrap(client.copy(), meter=meter).beta.sessions.events.stream("sesn_1") as stream:
                list(stream)

        return fill

    return made


def test_model_requests_of_a_session_that_each_host_heard_some_of_are_counted_once(merged, hearing):
    assert {found[:3] for found in merged(hearing(e1=100, e2=50), hearing(e2=50, e3=30))} == {(3, 180, 18)}


def test_a_model_request_that_is_heard_after_a_total_with_it_is_counted_once(merged, hearing):
    total = _recording(_session(130), provider="anthropic", endpoint="beta.sessions.retrieve")
    assert {found[:3] for found in merged(total, hearing(e1=100))} == {(1, 130, 13)}


def test_a_session_goes_on_where_a_merge_left_it(tmp_path, open_meter):
    reading = {"provider": "anthropic", "endpoint": "beta.sessions.retrieve"}
    for name, total in (("a", 100), ("b", 300)):
        _recording(_session(total), **reading)(open_meter(f"sqlite:///{tmp_path}/{name}.db"))
    copy_ledger(tmp_path / "a.db", tmp_path / "copy.db")
    merge_ledger(tmp_path / "b.db", tmp_path / "a.db")
    for name, total in (("a", 500), ("copy", 800)):  # a copy that went its own way, too
        _recording(_session(total), **reading)(open_meter(f"sqlite:///{tmp_path}/{name}.db"))
    merge_ledger(tmp_path / "copy.db", tmp_path / "a.db")
    found = open_meter(f"sqlite:///{tmp_path}/a.db").report().totals
    assert (found.requests, found.input_tokens, found.output_tokens) == (1, 800, 80)


def _answer(tokens=None):
    words = [{"type": "message", "content": [{"type": "output_text", "text": "Hello there."}]}]
    body = {"id": "resp_1", "object": "response", "status": "completed", "model": "gpt-5-mini", "output": words}
    return body if tokens is None else body | {"usage": {"input_tokens": tokens, "output_tokens": tokens}}


def test_a_whole_answer_on_one_host_stands_in_place_of_what_the_other_did_not_hear(merged):
    price = Decimal("0.00000225")
    assert merged(_recording(_answer()), _recording(_answer(1000))) == [(1, 1000, 1000, price * 1000, 0)] * 2


def test_on_a_server_a_session_and_an_answer_of_two_hosts_are_counted_once_as_well(tmp_path, fresh_url, open_meter):
    reading = {"provider": "anthropic", "endpoint": "beta.sessions.retrieve"}
    server, folder = fresh_url("postgres"), f"sqlite:///{tmp_path}"
    for url, totals, answer in ((server, (100, 150), _answer()), (f"{folder}/b.db", (120, 300), _answer(1000))):
        _recording(*map(_session, totals), **reading)(open_meter(url))
        _recording(answer)(open_meter(url))
    copy_ledger(f"{folder}/b.db", f"{folder}/back.db")
    for source, target in ((server, f"{folder}/back.db"), (f"{folder}/b.db", server)):
        merge_ledger(source, target)
        meter = open_meter(target)
        found = meter.report().totals
        assert (found.requests, found.input_tokens, found.output_tokens, found.unpriced) == (2, 1300, 1030, 0)
        assert (merge_ledger(source, target).entries, meter.verify().ok) == (0, True)


def test_what_a_target_has_in_files_is_known_better_all_the_same(tmp_path, open_meter):
    pytest.importorskip("pyarrow")
    when = datetime(2025, 1, 10, tzinfo=UTC)
    for name, totals, answer in (("a", (100, 150), _answer()), ("b", (120, 300), _answer(1000))):
        meter = open_meter(f"sqlite:///{tmp_path}/{name}.db")
        for total in totals:
            meter.record(_session(total), provider="anthropic", endpoint="beta.sessions.retrieve", at=when)
        meter.record(answer, provider="openai", endpoint="responses.create", at=when)
    meter = open_meter(f"sqlite:///{tmp_path}/a.db")
    meter.store.archives.seal("2025-01", tmp_path / "files")
    meter.store.archives.drop()
    assert [merge_ledger(tmp_path / "b.db", tmp_path / "a.db").entries for _ in range(2)] == [3, 0]
    found = meter.report().totals
    assert (found.requests, found.input_tokens, found.output_tokens, found.unpriced) == (2, 1300, 1030, 0)
    assert meter.verify(deep=True).ok


def test_an_estimate_in_the_half_of_a_month_that_is_dropped_gives_way_to_the_answer(tmp_path, open_meter, monkeypatch):
    pytest.importorskip("pyarrow")
    when = datetime(2025, 1, 10, tzinfo=UTC)
    meter = open_meter(f"sqlite:///{tmp_path}/b.db")
    meter.record(_answer(1000), provider="openai", endpoint="responses.create", at=when)
    (whole,) = meter.entries()
    estimate = replace(whole, entry_id=new_id(), dedup_key=None, flags=("estimated",))
    meter = open_meter(f"sqlite:///{tmp_path}/a.db")
    meter.store.append([(estimate, ())])
    meter.record(_answer(7) | {"id": "another"}, provider="openai", endpoint="responses.create", at=when)
    meter.store.archives.seal("2025-01", tmp_path / "files")
    monkeypatch.setattr("tokenmeter.stores.sqlite.book._AT_ONCE", 1)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        meter.store.archives.drop(progress=stop)
    assert [one.dropped for one in meter.archives()] == [False]
    merge_ledger(tmp_path / "b.db", tmp_path / "a.db")
    found = meter.report().totals
    assert (found.requests, found.input_tokens) == (2, 1007)
    assert meter.verify(deep=True).ok


def test_a_stream_that_broke_off_on_one_host_gives_way_to_its_answer_on_the_other(merged, fake_provider):
    known = _answer(1000)

    def break_off(meter):
        client = tokenmeter.wrap(openai.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test-1"), meter=meter)
        with client.responses.create(model="gpt-5-mini", input="Hello", stream=True) as stream:
            known["id"] = next(iter(stream)).response.id
        (entry,) = meter.entries()
        assert (entry.dedup_key, "estimated" in entry.flags) == (None, True)

    assert {found[:3] for found in merged(break_off, _recording(known))} == {(1, 1000, 1000)}


def test_a_batch_that_one_host_read_as_a_whole_and_the_other_by_its_lines_is_billed_once(merged, fake_provider):
    client = openai.OpenAI(base_url=fake_provider.openai_url, api_key="sk-test-1")
    chat = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hello"}]}
    rows = [{"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": chat} for n in range(3)]
    data = "\n".join(map(json.dumps, rows)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    how = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=file.id, **how)
    done = client.batches.retrieve(batch.id)
    hosts = [
        lambda meter: tokenmeter.wrap(client.copy(), meter=meter).batches.retrieve(batch.id),
        lambda meter: tokenmeter.wrap(client.copy(), meter=meter).files.content(done.output_file_id),
    ]
    whole, lines = merged(*hosts)
    assert (whole[0], lines[0]) == (1, 3)
    assert whole[1:] == lines[1:] == (done.usage.input_tokens, done.usage.output_tokens, whole[3], 0)


def test_what_is_read_of_a_message_that_another_host_imported_whole_counts_as_a_whole(merged, tmp_path):
    def importing(output):
        def fill(meter):
            usage = {"prompt_tokens": 100, "completion_tokens": output}
            line = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-5-mini", "created": 1791885602}
            log = tmp_path / f"{output}.jsonl"
            log.write_text(json.dumps(line | {"usage": usage}))
            import_usage(meter, log)

        return fill

    assert {found[:3] for found in merged(importing(1), importing(50))} == {(1, 100, 50)}
