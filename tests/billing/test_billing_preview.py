"""Many invoices at once: the preview says which are refused and why, and none or the others are issued."""

import json

import pytest

from tokenmeter.billing import (
    close_period,
    draft_invoice,
    draft_invoices,
    invoice_coverage,
    invoices,
    issue_invoice,
    issue_invoices,
    preview_invoices,
)
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.stores import open_store

#: Member -> what stands against their invoice, once team ads has one.
REFUSED = {
    "bob": "$1.000000000000 of the usage of member=bob in 2026-11 is on INV-00001 already",
    "cat": "1 charge of member=cat in 2026-11 has no known price",
    "dan": "member=dan owes 0.00 USD for 2026-11",
}


@pytest.fixture
def mixed(store, book, december):
    """November: one member whose invoice can be issued, and one of each that cannot."""
    book("10", member="ada", team="search")
    book("1", member="bob", team="ads")
    book(None, member="cat", team="search", model="mystery")
    book("0", member="dan", team="search")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, team="ads", period="2026-11"))
    return store


def test_a_preview_says_which_are_refused_and_why_and_the_others_can_be_issued(mixed):
    found = preview_invoices(mixed, draft_invoices(mixed, period="2026-11", each="member"))
    told = {one.invoice.scope["member"]: one.refused for one in found}
    assert told.pop("ada") is None
    assert {name: text[: len(REFUSED[name])] for name, text in told.items()} == REFUSED
    assert all("--" in text for text in told.values())  # what to do
    assert [one.number for one in invoices(mixed)] == ["INV-00001"]
    issued = issue_invoices(mixed, [one.invoice for one in found if one.refused is None])
    assert [(one.number, one.account) for one in issued] == [("INV-00002", "member=ada")]
    assert invoice_coverage(mixed, period="2026-11").billed_nowhere == 0


def test_a_refused_run_names_every_account_at_once(mixed):
    drafts = draft_invoices(mixed, period="2026-11", each="member")
    with pytest.raises(LedgerError) as refused:
        issue_invoices(mixed, drafts)
    first, *rest = str(refused.value).split("\n- ")
    assert first.startswith("Nothing was issued: of 4, 3 invoices are refused.")
    assert [line.partition(": ")[0] for line in rest] == ["member=bob", "member=cat", "member=dan"]
    assert len(invoices(mixed)) == 1


def test_what_is_allowed_is_no_longer_refused(mixed):
    drafts = draft_invoices(mixed, period="2026-11", each="member")
    allowed = {"force": True, "allow_unpriced": True, "allow_overlap": "agreed"}
    assert [one.refused for one in preview_invoices(mixed, drafts, **allowed)] == [None] * 4
    assert [one.number for one in issue_invoices(mixed, drafts, **allowed)][-1] == "INV-00005"
    again = preview_invoices(mixed, drafts)
    assert [(one.invoice.number, one.refused) for one in again] == [(f"INV-0000{at}", None) for at in (2, 3, 4, 5)]


def test_a_reason_that_all_share_is_told_once(mixed):
    narrowed = draft_invoice(mixed, period="2026-11", member="ada", team="search")
    drafts = [draft_invoice(mixed, period="2026-11", member="ada"), narrowed]
    with pytest.raises(ConfigurationError, match=r"\n- member=ada; member=ada,team=search: An invoice for 2026-11"):
        issue_invoices(mixed, drafts, on="2026-11-29")


def test_of_two_drafts_of_one_run_that_bill_the_same_usage_the_second_is_refused(mixed):
    accounts: list[dict] = [{"member": "ada"}, {"team": "search"}]
    drafts = [draft_invoice(mixed, period="2026-11", **account) for account in accounts]
    allowed = {"allow_unpriced": True}
    first, second = preview_invoices(mixed, drafts, **allowed)
    assert (first.refused, "is on that of member=ada already" in str(second.refused)) == (None, True)
    with pytest.raises(LedgerError, match="of 2, 1 invoice is refused"):
        issue_invoices(mixed, drafts, **allowed)
    assert len(invoices(mixed)) == 1
    twice = [drafts[0], draft_invoice(mixed, period="2026-11", member="ada")]
    assert [one.number for one in issue_invoices(mixed, twice)] == ["INV-00002", "INV-00002"]


def test_the_drafts_of_a_run_are_of_one_period(mixed, book):
    book("3", member="eve", at="2026-12-02T00:00")
    with pytest.raises(LedgerError, match="issue each period by itself"):
        issue_invoices(
            mixed,
            [
                draft_invoice(mixed, period="2026-11", member="ada"),
                draft_invoice(mixed, period="2026-12", member="eve"),
            ],
        )
    assert preview_invoices(mixed, []) == issue_invoices(mixed, []) == []


def test_somebody_else_in_the_middle_of_a_run_leaves_word_of_what_was_issued(mixed, book, monkeypatch):
    """bob is issued an invoice in euros while a run is between ada's and his."""
    drafts = draft_invoices(mixed, period="2026-11", each="member")[:2]
    euros = draft_invoice(mixed, period="2026-11", member="bob", currency="EUR", exchange_rate="2")
    filing = mixed.file

    def file_after_another(document):
        done = filing(document)
        if done.document.number == 2:
            issue_invoice(mixed, euros, allow_overlap="a test")
        return done

    monkeypatch.setattr(mixed, "file", file_after_another)
    with pytest.raises(LedgerError, match=r"member=bob has invoice INV-00003 .* Issued before that: INV-00002;"):
        issue_invoices(mixed, drafts, allow_overlap="agreed")
    assert [one.account for one in invoices(mixed)] == ["team=ads", "member=ada", "member=bob"]


@pytest.fixture
def run(tmp_path, monkeypatch, run_command, make_call):
    """A command on a ledger like `mixed`, of October and closed: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    store = open_store(tmp_path / "usage.db")
    calls = [("10", "ada", "search"), ("1", "bob", "ads"), (None, "cat", "search"), ("0", "dan", "search")]
    for cost, member, team in calls:
        store.settle(make_call(cost, at="2026-10-10T10:00", member=member, team=team))
    store.close()
    (tmp_path / "tokenmeter.toml").write_text('store = "sqlite:///usage.db"\n')
    run_command("period", "close", "2026-10")
    run_command("invoice", "issue", "team=ads", "--period", "2026-10")
    return run_command


MANY = ("invoice", "issue", "--by", "member", "--period", "2026-10")


def test_the_command_shows_what_it_would_refuse_and_issues_none_or_the_others(run):
    code, text, _ = run(*MANY)
    assert (code, text.count("Refused: "), "--skip-refused issues the other 1" in text) == (1, 3, True)
    code, _, told = run(*MANY, "--yes")
    assert (code, "of 4, 3 invoices are refused" in told, "(--skip-refused)" in told) == (4, True, True)
    assert json.loads(run("invoice", "list", "--json")[1])[1:] == []

    code, text, _ = run(*MANY, "--yes", "--skip-refused", "--json")
    told = {one["scope"]["member"]: one for one in json.loads(text)}
    assert (code, [one["number"] for one in told.values()]) == (1, ["INV-00002", None, None, None])
    assert {name: one["refused"][: len(REFUSED[name])] for name, one in told.items() if one["refused"]} == {
        name: reason.replace("2026-11", "2026-10") for name, reason in REFUSED.items()
    }
    assert "Nothing can be issued as it is." in run(*MANY)[1]
    allowed = ("--force", "--allow-unpriced", "--allow-overlap", "agreed")
    code, text, _ = run(*MANY, "--yes", *allowed, "--json")
    assert (code, [one["number"] for one in json.loads(text)]) == (0, [f"INV-0000{at}" for at in (2, 3, 4, 5)])
    assert "All of these are issued already." in run(*MANY, *allowed)[1]


def test_a_dimension_without_usage_is_said_and_a_run_ends_with_what_is_billed_nowhere(run):
    code, text, _ = run("invoice", "issue", "--by", "project", "--period", "2026-10", "--yes")
    assert (code, text.splitlines()[0]) == (0, "No account of that kind has usage in the period: nothing to issue.")
    assert "$1.000000000000 on 1 invoice + $10.000000000000 billed nowhere" in text
    assert text.splitlines()[-1] == "  1 charge has no known price: what that costs is in none of these amounts."
    assert json.loads(run("invoice", "coverage", "--period", "2026-10", "--json")[1])["unpriced"] == 1
