"""A wrong value for any argument of any function for the month's end is told clearly, and nothing is written."""

from __future__ import annotations

import inspect
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

import tokenmeter
from tokenmeter import billing, reconciliation
from tokenmeter.billing import (
    OpenMeter,
    close_period,
    credit_invoice,
    credit_notes,
    draft_invoice,
    find_invoice,
    invoices,
    issue_invoice,
    record_payment,
)
from tokenmeter.errors import ConfigurationError, LedgerError, TokenmeterError
from tokenmeter.reconciliation import post_proposals, reconcile

PROFILE = {"seller": {"name": "Platform"}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
NAIVE = datetime(2026, 12, 1, 0, 30, tzinfo=UTC).replace(tzinfo=None)
ODD = (
    *(None, True, -1, 0, 5, 10**30, 1.5, float("nan"), float("inf"), "x", "12", "-5", "1e400", "", " ", "\0", "\ud800"),
    *(
        "x" * 5000,
        b"x",
        Decimal("sNaN"),
        Decimal("1E+400"),
        Decimal(-3),
        [],
        [{}],
        [[]],
        [None],
        [1],
        ["x"],
        (1, "2"),
    ),
    *([(1,)], [(1, 2, 3)], [(1, "nan")], [(99, "1")], [(True, "1")], [(None, "1")], [("", "1")], [("a\0", "1")], {}),
    *({"a": 1}, {1: 2}, {None: None}, {"rate": "x"}, set(), object(), date(1, 1, 1), NAIVE, int, ...),
    *(
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
        timedelta(days=-1),
        timedelta.max,
        "2026-13",
        "0001-01",
        "eur",
    ),
)
FUNCTIONS = [
    (module, name)
    for module in (billing, reconciliation)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) and name != "reconcile_statement"
]


class Books:
    """A closed month with an invoice on it, and what each function is called with where nothing is wrong."""

    def __init__(self, make_call, costs):
        self.meter = tokenmeter.make_meter(store="memory:")
        self.store = self.meter.store
        self.store.settle(make_call("12.345", "2026-10-10T12:00", team="search"))
        self.store.settle(make_call("1", "2026-10-10T12:00", team="other"))
        close_period(self.store, "2026-10")
        self.bill = issue_invoice(self.store, self.draft("search"))
        self.costs = costs

    def draft(self, team):
        return draft_invoice(self.store, team=team, period="2026-10", profile=PROFILE)

    def given(self, name):
        bill, said = {"invoice": self.bill}, {"reason": "agreed"}
        october = {"period": "2026-10"}
        statement = {
            "provider": "openai",
            "source": self.costs,
            "columns": {"day": "date", "model": "model", "cost": "cost"},
            **october,
        }
        outcome = (
            reconcile(self.store, **statement)
            if name in {"file_reconciliation", "reconcile_again", "post_proposals"}
            else None
        )
        return {
            "check_grain": {"by": "model"},
            "close_period": {"period": "2026-09"},
            "count_free_quotas": october,
            "credit_invoice": {**bill, **said, "lines": "1.00"},
            "credit_notes": {"invoice": self.bill.number},
            "draft_invoice": {**october, "team": "other", "profile": PROFILE},
            "draft_invoices": {**october, "each": "team", "profile": PROFILE},
            "draw_statement": {**october, "team": "search"},
            "export_journal": october,
            "file_reconciliation": {"outcome": outcome},
            "find_invoice": {"number": self.bill.number},
            "hand_over": {**october, "target": OpenMeter("http://127.0.0.1:9", "key")},
            "invoice_coverage": october,
            "issue_invoice": {"draft": self.draft("other")},
            "issue_invoices": {"drafts": [self.draft("other")]},
            "journal_entries": october,
            "make_einvoice": {"document": self.bill, "form": "cii"},
            "missing_for_einvoice": {**bill, "form": "cii"},
            "post_free_quotas": {"uses": []},
            "post_proposals": {"outcome": outcome},
            "preview_invoices": {"drafts": [self.draft("other")]},
            "reconcile": statement,
            "reconcile_again": {"outcome": outcome},
            "record_payment": {**bill, "amount": "1.00"},
            "void_invoice": {**bill, **said},
            "write_off_invoice": {**bill, **said},
        }.get(name, {})

    def written(self):
        """How much there is, without reading each: it is asked after every call."""
        store: Any = self.store  # its own rows
        return store._ask("SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM entries)")


@pytest.fixture
def books(make_call, tmp_path):
    costs = tmp_path / "costs.csv"
    costs.write_text("date,model,cost\n2026-10-01,gpt-5,1.0\n")
    made = []

    def make():
        made.append(Books(make_call, costs))
        return made[-1]

    yield make
    for one in made:
        one.meter.close()


@pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
def test_a_wrong_argument_is_told_and_writes_nothing(module, name, books):
    function, its = getattr(module, name), books()
    parameters = inspect.signature(function).parameters.values()
    given, raised, left = its.given(name), [], []
    for parameter in parameters:
        wrong = "team" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        for value in ODD:
            owner = {one: getattr(its, one) for one in ("store", "meter") if one in {each.name for each in parameters}}
            before, refused = its.written(), False
            try:
                function(**{**owner, **given, wrong: value})
            except TokenmeterError:
                refused = True
            except Exception as error:
                raised.append((wrong, repr(value)[:40], repr(error)[:100]))
            if its.written() != before:
                if refused:
                    left.append((wrong, repr(value)[:40]))
                its = books()
                given = its.given(name)
    assert raised == []
    assert left == []


@pytest.mark.parametrize("lines", [(1, "2"), [1], ["12"], {"a": 1}, [(1,)], [(1, "1", "2")], b"1", [[]]])
def test_what_is_no_list_of_pairs_is_told_with_one_that_is(lines, books):
    its = books()
    with pytest.raises(ConfigurationError, match=r"\(line number or words, amount\), such as \[\(1, '2.50'\)\]"):
        credit_invoice(its.store, its.bill, lines, "agreed")


@pytest.mark.parametrize("key", [None, "once"])
def test_a_credit_may_come_from_an_iterator(key, books):
    its = books()
    note = credit_invoice(its.store, its.bill, ((1, amount) for amount in ("1.00", "2.00")), "agreed", key=key)
    assert note.net == 3


def test_what_says_nothing_is_no_reason_no_name_and_no_words(books):
    its = books()
    for refused in (True, "", " ", [1], 5):
        with pytest.raises(ConfigurationError, match="allow_overlap"):
            issue_invoice(its.store, its.draft("other"), allow_overlap=refused)
    for words in ("", " ", "a\0"):
        with pytest.raises(ConfigurationError, match="what is given back"):
            credit_invoice(its.store, its.bill, [(words, "1.00")], "agreed")
    with pytest.raises(ConfigurationError, match="by must say more than blanks"):
        record_payment(its.store, its.bill, "1.00", by=" ")
    with pytest.raises(ConfigurationError, match="reference must be a text"):
        record_payment(its.store, its.bill, "1.00", reference=0)


def test_what_does_not_exist_is_not_an_empty_list(books):
    its = books()
    with pytest.raises(ConfigurationError, match=r"An invoice is draft, issued, .*, not 'payed'"):
        invoices(its.store, status="payed")
    with pytest.raises(LedgerError, match="no invoice 'INV-00099'"):
        credit_notes(its.store, invoice="INV-00099")


def test_a_note_on_an_invoice_is_one_and_not_its_letters(books):
    its = books()
    draft = draft_invoice(its.store, team="other", period="2026-10", profile=PROFILE, notes="Thank you")
    assert draft.notes == ("Thank you",)


def test_proposals_are_posted_for_causes_that_exist_and_for_one_by_its_name(books):
    its = books()
    outcome = reconcile(its.store, **its.given("reconcile"))
    assert outcome.proposals
    with pytest.raises(ConfigurationError, match="no cause that is posted"):
        post_proposals(its.meter, outcome, causes=["prise"])
    for multiplier in (0, -1, "1E+9"):
        with pytest.raises(ConfigurationError, match="multiplier"):
            post_proposals(its.meter, outcome, multiplier=multiplier)
    causes = [one.discrepancy.cause for one in outcome.proposals]
    other = next(one for one in ("unbilled", "unrecorded", "estimated", "price", "unpriced") if one not in causes)
    assert post_proposals(its.meter, outcome, causes=other) == []
    assert len(post_proposals(its.meter, outcome, causes=causes[0])) == causes.count(causes[0])


def test_a_moment_without_a_zone_is_one_of_the_books(books):
    its = books()
    closed = close_period(its.store, "last-month", now=NAIVE)
    assert closed.period.label == "2026-11"


def test_a_ledgers_address_is_no_ledger(books):
    with pytest.raises(ConfigurationError, match="store must be a Store, not 'sqlite:///usage"):
        find_invoice("sqlite:///usage.db", "INV-00001")
