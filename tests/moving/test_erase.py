"""A person can be taken out of a ledger: the text is gone from the files, and everything else is as it was."""

import io
import json
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import time_machine

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.erasing import check_erasure, erase
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.ledger import new_id
from tokenmeter.stores import direct, open_store
from tokenmeter.stores.backup import restore
from tokenmeter.stores.documents import DocumentQuery, NewDocument
from tokenmeter.stores.moving import copy_ledger
from tokenmeter.stores.sqlite import database

WHY = {"reason": "request 4711", "by": "kim"}


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, fresh_url):
    return fresh_url(request.param)


@pytest.fixture
def meter(filled, url):
    return filled(url, budgets=[tokenmeter.Budget(name="each", member="*", limit_usd=500)])


def figures(meter, by):
    """Rows of a report without their names."""
    return sorted(line.split(",", 3)[3] for line in meter.report(by).to_csv().splitlines()[1:])


@pytest.mark.parametrize(
    ("dimension", "value"),
    [("member", "ada@example.com"), ("end_user", "user-1"), ("tag:feature", "f0"), ("team", "search")],
)
def test_the_text_is_gone_and_the_figures_stay(meter, dimension, value):
    before = figures(meter, dimension)
    done = meter.erase(dimension, value, **WHY)
    report = meter.report(dimension).to_csv()
    assert f",{value}," not in report
    assert done.pseudonym in report
    assert figures(meter, dimension) == before
    assert done.entries == len(list(meter.entries(where={dimension: done.pseudonym}))) > 0
    assert meter.verify().ok


def test_who_and_why_are_in_the_chain_and_nothing_of_whom(meter):
    done = meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    (record,) = [one for one in meter.store.documents() if one.kind == "erasure"]
    said = json.loads(record.body)
    assert (said["reason"], said["by"], said["pseudonym"]) == ("request 4711", "kim", "person 17")
    assert "ada@" not in record.body
    assert record.hash == done.record


def test_no_file_of_the_ledger_has_the_text_any_more(filled, record, tmp_path):
    meter = filled(f"sqlite:///{tmp_path}/books/ledger.db")
    record(meter, "late", member="eve@example.com", end_user="only in the tail")
    done = [meter.erase(*whom, **WHY) for whom in (("member", "eve@example.com"), ("end_user", "only in the tail"))]
    assert [one.left for one in done] == [(), ()]
    files = {path.name: path.read_bytes() for path in (tmp_path / "books").iterdir()}
    assert [name for name, content in files.items() if b"eve@example" in content or b"only in the" in content] == []


@pytest.mark.parametrize("is_network", [False, True], ids=["a disk", "a network"])
def test_whom_another_program_erased_is_somebody_new_with_the_next_call(
    filled, record, tmp_path, monkeypatch, is_network
):
    monkeypatch.setattr(database, "is_network", lambda _: is_network)
    monkeypatch.setattr(direct, "_LOOK_EVERY", 0)
    url = f"sqlite:///{tmp_path}/books/ledger.db"
    meter = filled(url)
    record(meter, "before", member="eve@example.com")
    with closing(open_store(url)) as store:
        erased = erase(store, "member", "eve@example.com", **WHY)
    record(meter, "after", member="eve@example.com")
    members = [entry.attribution.member for entry in meter.entries()]
    assert (members.count(erased.pseudonym), members.count("eve@example.com")) == (1, 1)
    assert meter.verify().ok


def test_an_erasure_that_was_broken_off_behind_its_record_is_ended_by_the_next(filled, record, tmp_path, monkeypatch):
    meter = filled(f"sqlite:///{tmp_path}/books/ledger.db")
    record(meter, "late", member="eve@example.com")

    def stop(_):
        raise RuntimeError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr(type(meter.store), "shred", stop)
        with pytest.raises(RuntimeError, match="the power went"):
            meter.erase("member", "eve@example.com", **WHY)

    def have_it():
        return [path.name for path in (tmp_path / "books").iterdir() if b"eve@example" in path.read_bytes()]

    assert have_it()
    with pytest.raises(LedgerError, match="nothing was erased"):
        meter.erase("member", "eve@example.com", **WHY)
    assert have_it() == []


def test_records_that_the_ledger_refused_are_told_since_a_name_may_stand_in_them(meter):
    assert not any("refused" in told for told in meter.erase("team", "search", **WHY).left)
    entry = next(iter(meter.entries(where={"member": "ada@example.com"})))
    costs = dict.fromkeys(("list_cost", "contracted_cost", "billed_cost"), Decimal("1E11"))
    dearest = (replace(entry.charges[0], **costs),)
    absurd = [replace(entry, entry_id=new_id(), dedup_key=None, charges=dearest, **costs) for _ in range(100)]
    meter.store.append([(one, meter.budgets.postings(one)) for one in absurd])
    done = meter.erase("member", "ada@example.com", **WHY)
    refused = meter.store.health().facts["refused_records"]
    assert refused > 0
    (told,) = (told for told in done.left if "refused" in told)
    assert f"{refused} records that were refused and may name the person" in told


def test_a_program_that_keeps_the_ledger_open_takes_the_same_person_for_somebody_new(meter, url, record, open_meter):
    other = open_meter(url)
    record(other, "before", member="ada@example.com")
    meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    if other.store.journal is not None and hasattr(other.store.journal, "ask_budgets"):
        other.store.journal.ask_budgets()  # a host asks once a second
    after = record(other, "after", member="ada@example.com")
    assert meter.store.entry(after.entry_id).attribution.member == "ada@example.com"
    assert "person 17" in {entry.attribution.member for entry in other.entries()}
    assert meter.verify().ok


def test_a_budget_goes_on_counting_under_the_pseudonym(meter, record):
    record(meter, "now", member="ada@example.com")
    before = {key: one.settled for key, one in meter.store.all_counters()}
    meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    after = {key: one.settled for key, one in meter.store.all_counters()}
    assert sorted(after.values()) == sorted(before.values())
    assert not any("ada" in key.scope for key in after)
    assert any("person 17" in key.scope for key in after)
    assert not meter.audit_budgets()


def test_the_same_word_for_something_else_keeps_its_credit(meter):
    """A tag, a member and an organization may have one name; only what was asked for gets another."""
    meter.budgets.set(tokenmeter.Budget(organization="*", limit_usd=0, period="total", name="credit"))
    meter.budgets.grant("credit", 25, by="b", reason="invoice 7", scope={"organization": "acme"})
    with tokenmeter.attribute(organization="acme", member="acme", tags={"customer": "acme"}):
        meter.record({"input_tokens": 10, "output_tokens": 1}, provider="openai", endpoint="responses", model="gpt-5")
    before = [(one.scope, one.remaining) for one in meter.remaining(organization="acme")]
    for dimension, pseudonym in (("tag:customer", "customer-17"), ("member", "person-18")):
        meter.erase(dimension, "acme", reason="contract ended", by="kim", pseudonym=pseudonym)
    assert [(one.scope, one.remaining) for one in meter.remaining(organization="acme")] == before
    assert [one.scope for one in meter.budgets.grants("credit")] == [{"organization": "acme"}]
    assert meter.verify().ok
    assert meter.audit_budgets() == ()


def test_documents_that_name_the_person_are_listed_with_how_long_they_are_kept(meter):
    done = meter.erase("member", "ada@example.com", **WHY)
    kept = {one.kind: one for one in done.documents}
    assert kept["period"].keep_until.year == 2036
    assert (kept["period"].keep_until.month, kept["period"].keep_until.day) == (12, 31)
    assert done.elsewhere


def bodies(meter):
    return " ".join(one.body + one.key for one in meter.store.documents())


def test_documents_that_no_law_wants_kept_have_the_pseudonym_and_the_chain_holds(filled, url):
    budgets = [
        tokenmeter.Budget(name="each", member="*", limit_usd=500),
        tokenmeter.Budget(name="one person's", member="ada@example.com", limit_usd=5),
    ]
    meter = filled(url, budgets=budgets)
    head = meter.verify().head
    meter.store.file(NewDocument(kind="notice", key="n1", body='{"text":"ada@example.com, xada@example.com: 80 %"}'))
    done = meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    assert done.changed == 2
    assert [one.kind for one in done.documents] == ["period"]
    (notice,) = [one for one in meter.store.documents() if one.kind == "notice"]
    assert json.loads(notice.body) == {"text": "person 17, xada@example.com: 80 %"}
    (budget,) = [one for one in meter.store.documents() if one.key == "one person's@1"]
    assert json.loads(budget.body)["budget"]["member"] == "person 17"
    found = meter.verify(head=head)
    assert found.ok, found.faults


def test_what_the_law_wanted_kept_goes_after_its_day(filled, url):
    """An invoice to a person, and the closed period that it bills."""
    meter = filled(url)
    profile = {
        "seller": {"name": "Platform GmbH", "address": ["Hauptstr. 1", "10115 Berlin"], "tax_id": "DE1"},
        "buyers": {"member": {"ada@example.com": {"name": "Ada L.", "address": ["Weg 1"], "cost_centre": "4711"}}},
        "series": "P-",
    }
    invoice = meter.invoice(member="ada@example.com", period="2026-10", profile=profile)
    meter.issue_invoice(invoice, by="kim", allow_overlap="a copy for her")
    with time_machine.travel("2030-03-01", tick=True):
        done = meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    assert [(one.kind, str(one.keep_until)) for one in done.documents] == [
        ("period", "2036-12-31"),
        ("invoice", "2036-12-31"),
    ]
    with time_machine.travel("2036-12-31", tick=True), pytest.raises(LedgerError, match="P-00001 names it until 2036"):
        meter.erase("member", "ada@example.com", **WHY)
    before = meter.store.documents(DocumentQuery(kind="invoice", series="P-"))
    amounts = json.loads(next(iter(before)).body)["totals"]
    with time_machine.travel("2037-01-01", tick=True):
        done = meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
        assert (done.names, done.changed, done.documents) == (0, 2, ())
        assert "ada@" not in bodies(meter)
        assert "Ada L." not in bodies(meter)
        found = meter.verify()
        assert found.ok, found.faults
        (invoice,) = meter.store.documents(DocumentQuery(kind="invoice", series="P-"))
        said = json.loads(invoice.body)
        assert (said["totals"], said["scope"], said["buyer"]) == (
            amounts,
            {"member": "person 17"},
            {"name": "person 17"},
        )
        with pytest.raises(LedgerError, match="nothing was erased"):
            meter.erase("member", "ada@example.com", **WHY)


def test_a_name_that_is_a_number_or_a_word_is_taken_out_where_it_is_a_name(filled, url, record):
    meter = filled(url)
    record(meter, "one", member="12", team="web")
    body = '{"member":"12","scope":"member=12","amount":"12","text":"12 web searches","groups":[{"team":"web"}],"n":12}'
    meter.store.file(NewDocument(kind="notice", key="n1", body=body))
    meter.erase("member", "12", pseudonym="X", **WHY)
    meter.erase("team", "web", pseudonym="Y", **WHY)
    (notice,) = [one for one in meter.store.documents() if one.kind == "notice"]
    due = {"member": "X", "scope": "member=X", "amount": "12", "text": "12 web searches", "groups": [{"team": "Y"}]}
    assert json.loads(notice.body) == due | {"n": 12}
    assert meter.verify().ok


def test_a_person_called_star_takes_no_cap_along(meter, record):
    def budgets():
        return [one.body for one in meter.store.documents(DocumentQuery(kind="budget"))]

    record(meter, "star", member="*")
    before = budgets()
    done = meter.erase("member", "*", pseudonym="person 17", **WHY)
    assert "budget" not in {one.kind for one in done.documents}
    assert budgets() == before
    assert '"member":"*"' in before[0]
    assert meter.verify().ok


def test_who_changes_a_document_as_an_erasure_does_is_found(filled, tmp_path):
    import hashlib
    import sqlite3

    meter = filled(f"sqlite:///{tmp_path}/ledger.db")
    meter.store.file(NewDocument(kind="notice", key="n1", body='{"member":"ada@example.com"}'))
    connection = sqlite3.connect(tmp_path / "ledger.db")
    ((seq, body),) = connection.execute("SELECT seq, body FROM documents WHERE kind = 'notice'").fetchall()
    leaf = hashlib.sha256(body.encode()).digest()
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        connection.execute("UPDATE documents SET body = ? WHERE seq = ?", (body.replace("ada", "bob"), seq))
    connection.execute("UPDATE documents SET body = ?, leaf = ? WHERE seq = ?", (body.replace("ada", "bob"), leaf, seq))
    connection.commit()
    assert [one.kind for one in meter.verify().faults] == ["edited"]
    connection.execute("UPDATE documents SET body = ?, leaf = ? WHERE seq = ?", (body, leaf, seq))
    connection.commit()
    meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    assert meter.verify().ok
    connection.execute("UPDATE documents SET body = replace(body, 'person 17', 'person 18') WHERE seq = ?", (seq,))
    connection.commit()
    connection.close()
    assert [(one.kind, one.where) for one in meter.verify().faults] == [("edited", "notice n1")]


@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_a_copy_that_was_begun_before_an_erasure_ends_without_the_name(filled, fresh_url, source, target):
    meter = filled(fresh_url(source))
    meter.store.file(NewDocument(kind="notice", key="n1", body='{"member":"ada@example.com"}'))
    copy_ledger(meter.store.url, fresh_url(target))
    meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    done = copy_ledger(meter.store.url, fresh_url(target))
    assert done.verification.ok
    assert (done.behind, done.head) == (0, meter.verify().head)


def test_several_names_of_one_text_become_one_person(filled, open_meter, record, url):
    """Two processes may meet a value at the same time and salt it twice."""
    first = filled(url)
    first.store.journal._find_name = lambda *_: None
    record(first, "first", member="twice")
    first.store.journal.definitions.forget()
    record(first, "second", member="twice", end_user="another account")
    done = first.erase("member", "twice", **WHY)
    assert done.entries == 2
    assert [row for row in first.report("member").to_csv().splitlines() if done.pseudonym in row]
    assert first.verify().ok


def test_what_was_undone_by_hand_is_found(filled, tmp_path):
    import sqlite3

    meter = filled(f"sqlite:///{tmp_path}/ledger.db")
    meter.erase("member", "ada@example.com", **WHY)
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("UPDATE names SET value = 'ada@example.com' WHERE salt IS NULL")
    connection.execute("UPDATE names SET salt = NULL, value = 'nobody' WHERE value = 'bob@example.com'")
    connection.commit()
    connection.close()
    found = [fault.detail for fault in meter.verify().faults]
    assert "The name was erased by the record, and is there." in found
    assert "A name was erased, and no record says so." in found


def test_an_erasure_travels_with_a_backup(filled, tmp_path):
    meter = filled(f"sqlite:///{tmp_path}/ledger.db")
    meter.erase("member", "ada@example.com", pseudonym="person 17", **WHY)
    made = meter.backup(tmp_path / "backup.db")
    done = restore(made.path, tmp_path / "new.db")
    store = open_store(done.url)
    assert store.verify().ok
    assert "person 17" in {entry.attribution.member for entry in store.entries()}
    store.close()


@pytest.mark.parametrize(
    ("dimension", "value", "changes", "told"),
    [
        ("member", "nobody", {}, "nothing was erased"),
        ("member", "ada@example.com", {"reason": " "}, "reason= is empty"),
        ("member", "ada@example.com", {"by": ""}, "by= is empty"),
        ("member", "ada@example.com", {"reason": "ada@example.com asked"}, "names whom it erases"),
        ("member", "ada@example.com", {"reason": "request (ada@example.com), no. 7"}, "names whom it erases"),
        ("member", "ada@example.com", {"pseudonym": "bob@example.com"}, "stands for somebody"),
        ("member", "ada@example.com", {"pseudonym": "ada@example.com"}, "the name itself"),
        ("model", "gpt-5-mini", {}, "cannot be erased"),
        ("tag:", "x", {}, "cannot be erased"),
    ],
)
def test_what_cannot_be_erased_is_refused_in_words(filled, tmp_path, dimension, value, changes, told):
    meter = filled(f"sqlite:///{tmp_path}/ledger.db")
    head = meter.verify().head
    with pytest.raises((ConfigurationError, LedgerError), match=told):
        meter.erase(dimension, value, **(WHY | changes))
    assert meter.verify().head == head


@pytest.mark.parametrize("value", ["20", "u", "que"])
def test_a_reason_may_hold_a_name_as_a_part_of_something_else(value):
    check_erasure("member", value, reason="request of 2026-11-20, ticket 4206", by="privacy office")
    with pytest.raises(ConfigurationError, match="names whom it erases"):
        check_erasure("member", value, reason=value, by="privacy office")


@pytest.mark.parametrize(
    ("dimension", "value", "said"),
    [
        ("member", "山田太郎", "山田太郎様のご依頼による"),
        ("member", "李", "李さんの依頼"),
        ("member", "Müller", "Müllers Antrag vom 20.11."),
        ("member", "Müller", "MU\u0308LLER asked"),
        ("member", "ada", "Ada's request"),
        ("end_user", "+49 170 1234567", "request of +49 170 1234567 by phone"),
        ("member", "4711", "request of employee 4711"),
        ("member", "12", "request of employee 12"),
        ("team", "search", "the search team is gone"),
    ],
)
@pytest.mark.parametrize("given", ["reason", "by"])
def test_a_reason_that_names_the_person_is_refused_in_any_language(dimension, value, said, given):
    with pytest.raises(ConfigurationError, match="names whom it erases"):
        check_erasure(dimension, value, **{"reason": "their request", "by": "privacy office", given: said})


@pytest.mark.parametrize(
    ("dimension", "value", "said", "due"),
    [
        ("member", "山田太郎", "山田太郎さんの月末対応", "Xさんの月末対応"),
        ("member", "Müller", "Müllers Monatsabschluss", "Xs Monatsabschluss"),
        ("member", "470012", "for 470012, month end", "for X, month end"),
        ("end_user", "+49 170 1234567", "call +49 170 1234567 back", "call X back"),
    ],
)
def test_what_people_wrote_has_the_pseudonym_in_any_language(meter, record, dimension, value, said, due):
    record(meter, "one", **{dimension: value})
    meter.budgets.grant("each", 5, scope={"member": "bob@example.com"}, reason=said, by=f"{value}-san")
    done = meter.erase(dimension, value, pseudonym="X", **{**WHY, "reason": "request"})
    (grant,) = [json.loads(one.body) for one in meter.store.documents(DocumentQuery("budget", prefix="each+"))]
    assert (grant["reason"], grant["by"], grant["amount"]) == (due, "X-san", "5")
    assert [one.kind for one in done.documents if one.kind == "budget"] == []
    assert value not in bodies(meter)
    assert meter.verify().ok


@pytest.mark.parametrize(
    ("value", "reason", "name", "why"),
    [
        ("ada", "ADA asked", "each", "what somebody wrote"),
        ("12", "for 12", "each", "what somebody wrote"),
        ("山田太郎", "busy", "山田太郎の予算", "a budget's own name"),
    ],
)
def test_what_may_name_the_person_still_is_listed_for_somebody_to_read(meter, record, value, reason, name, why):
    if name != "each":
        meter.budgets.set(tokenmeter.Budget(name=name, member="*", limit_usd=400, period="day"), by="kim", reason="new")
    record(meter, "one", member=value)
    meter.budgets.grant(name, 5, scope={"member": "bob@example.com"}, reason=reason, by="kim")
    done = meter.erase("member", value, **{**WHY, "reason": "request"})
    told = [one.why for one in done.documents if one.kind == "budget"]
    assert told
    assert all(why in one for one in told)
    assert meter.verify().ok


def test_two_who_only_documents_name_are_two_afterwards(meter):
    for name in ("eve@example.com", "mallory@example.com"):
        meter.store.file(NewDocument(kind="notice", key=f"{name} 80", body=f'{{"member":"{name}"}}'))
    done = [meter.erase("member", name, **WHY) for name in ("eve@example.com", "mallory@example.com")]
    assert [one.changed for one in done] == [1, 1]
    assert done[0].pseudonym != done[1].pseudonym
    assert meter.verify().ok


def test_a_pseudonym_that_a_document_or_a_budget_has_already_is_refused(meter):
    for name in ("eve@example.com", "mallory@example.com"):
        meter.store.file(NewDocument(kind="notice", key=f"{name} 80", body=f'{{"member":"{name}"}}'))
    meter.erase("member", "eve@example.com", pseudonym="person 17", **WHY)
    head = meter.verify().head
    with pytest.raises(ConfigurationError, match="'person 17' stands for somebody in the notices"):
        meter.erase("member", "mallory@example.com", pseudonym="person 17", **WHY)
    assert meter.verify().head == head
    assert "mallory@example.com 80" in {one.key for one in meter.store.documents()}
    meter.erase("member", "mallory@example.com", pseudonym="person 18", **WHY)
    assert meter.verify().ok


def test_calls_under_way_come_first(meter):
    call = {"provider": "openai", "endpoint": "chat.completions", "model": "gpt-5-mini", "input_tokens": 10}
    held = meter.hold(**call, max_output_tokens=5, attribution=Attribution(member="ada@example.com"))
    with held, pytest.raises(LedgerError, match="under way"):
        meter.erase("member", "ada@example.com", **WHY)
    meter.erase("member", "ada@example.com", **WHY)


def test_erasing_twice_finds_nobody(meter):
    meter.erase("member", "ada@example.com", **WHY)
    with pytest.raises(LedgerError, match="nothing was erased"):
        meter.erase("member", "ada@example.com", **WHY)


def test_who_decided_an_erasure_can_be_erased_too_and_the_record_stands(filled, url):
    """Kim decided; then Kim leaves, and asks for the same."""
    meter = filled(url, budgets=[tokenmeter.Budget(name="each", member="*", limit_usd=500)])
    meter.erase("member", "ada@example.com", reason="kim@example.com was asked", by="kim@example.com", pseudonym="p 1")
    with pytest.raises(ConfigurationError, match="by= names whom it erases"):
        meter.erase("member", "kim@example.com", reason="left", by="kim@example.com")
    done = meter.erase("member", "kim@example.com", reason="left", by="the office", pseudonym="p 2")
    assert (done.names, done.changed, done.documents) == (0, 1, ())
    first, second = [json.loads(one.body) for one in meter.store.documents(DocumentQuery(kind="erasure"))]
    assert (first["reason"], first["by"], first["pseudonym"]) == ("p 2 was asked", "p 2", "p 1")
    assert second["by"] == "the office"
    assert "kim@" not in bodies(meter)
    found = meter.verify()
    assert found.ok, found.faults
    assert "p 1" in meter.report("member").to_csv()
    with pytest.raises(LedgerError, match="nothing was erased"):
        meter.erase("member", "kim@example.com", reason="left", by="the office")


def test_a_place_that_has_the_name_in_it_is_listed_with_why_it_stays(filled, url, tmp_path):
    meter = filled(url)
    meter.archive("2026-10", to=f"{tmp_path}/ada@example.com")
    meter.move_archive(f"{tmp_path}/of ada@example.com")
    done = meter.erase("member", "ada@example.com", **WHY)
    places = [one for one in done.documents if one.kind.startswith("archive")]
    assert [one.kind for one in places] == ["archive", "archive_place"]
    assert all(one.keep_until is None and "is found" in one.why for one in places)
    assert meter.verify().ok
    with pytest.raises(LedgerError, match="archive 1 names it: it is where"):
        meter.erase("member", "ada@example.com", **WHY)


def test_the_command_asks_first_and_says_what_is_left_to_do(filled, tmp_path, run_command, monkeypatch):
    filled(f"sqlite:///{tmp_path}/ledger.db").close()
    line = ["erase", "member", "ada@example.com", "--store", f"sqlite:///{tmp_path}/ledger.db"]
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, error = run_command(*line, "--reason", "request", "--by", "kim")
    assert (code, "nobody said yes" in error) == (2, True)
    code, said, _ = run_command(*line, "--reason", "request", "--by", "kim", "--yes")
    assert code == 0
    assert "6 entries now show erased-" in said
    assert "period" in said
    assert "backups" in said
    assert Path(tmp_path / "ledger.db").exists()
