"""Statements of account: opening + charges + credits = closing."""

import csv
import io
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from tokenmeter.billing import (
    age_balances,
    close_period,
    credit_invoice,
    draft_invoice,
    draw_statement,
    issue_invoice,
    record_payment,
)
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import total


def foots(statement):
    lines = statement.lines
    balance = statement.opening
    for line in lines:
        balance = total([balance, line.charges, line.credits])
        assert line.balance == balance
    assert total([statement.opening, statement.charges, statement.credits]) == statement.closing == balance
    return True


def test_a_usage_statement_runs_through_the_ledger(every_store, make_call):
    for entry in (
        make_call("5", at="2026-10-31T23:59", member="ada"),
        make_call("1.000000000001", at="2026-11-02T10:00", member="ada"),
        make_call("2", at="2026-11-02T11:00", member="ada"),
        make_call("-0.5", at="2026-11-20T00:00", member="ada", kind="adjustment", meter="adjustment"),
        make_call("-0.25", at="2026-11-21T00:00", member="ada", kind="correction"),
        make_call("9", at="2026-11-02T11:00", member="bob"),
    ):
        every_store.settle(entry)
    statement = draw_statement(every_store, member="ada", period="2026-11")
    assert foots(statement)
    assert (statement.opening, statement.credits) == (5, Decimal("-0.5"))
    assert statement.charges == Decimal("2.750000000001")
    assert statement.closing == Decimal("7.250000000001")
    assert [line.date for line in statement.lines] == ["2026-11-02", "2026-11-20", "2026-11-21"]
    assert "Closing balance" in str(statement)


def test_the_next_statement_opens_where_the_last_one_closed(store, book):
    for month in ("2026-10", "2026-11", "2026-12"):
        book("1.1", at=f"{month}-15T00:00", team="search")
    months = [draw_statement(store, team="search", period=month) for month in ("2026-10", "2026-11", "2026-12")]
    assert [one.opening for one in months[1:]] == [one.closing for one in months[:-1]]
    assert months[0].opening == 0


def test_an_invoice_statement_shows_what_was_billed_credited_and_paid(store, book, december):
    book("10", member="ada")
    close_period(store, "2026-11", now=december)
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    credit_invoice(store, bill, "4", "outage")
    record_payment(store, bill)
    statement = draw_statement(store, member="ada", period="this-year", basis="invoices")
    assert foots(statement)
    assert [(line.charges, line.credits) for line in statement.lines] == [(10, 0), (0, -4), (0, -6)]
    assert "Credit note CN-00001 on INV-00001: outage" in str(statement)
    later = draw_statement(store, member="ada", period=str(datetime.now(UTC).year + 1), basis="invoices")
    assert (later.opening, later.lines) == (0, ())


def test_documents_stand_on_the_day_they_count_for_as_in_the_journal(store, book):
    """Not on the day somebody wrote them down."""
    book("10", at="2026-09-15T00:00", member="ada")
    close_period(store, "2026-09")
    bill = issue_invoice(store, draft_invoice(store, member="ada", period="2026-09"), on=date(2026, 10, 31))
    record_payment(store, bill, "4", on=date(2026, 11, 1))
    found = {}
    for month in ("2026-10", "2026-11", "2026-12"):
        drawn = draw_statement(store, member="ada", period=month, basis="invoices")
        found[month] = (drawn.opening, [(line.date, line.charges, line.credits) for line in drawn.lines])
    assert found == {
        "2026-10": (0, [("2026-10-31", 10, 0)]),
        "2026-11": (10, [("2026-11-01", 0, -4)]),
        "2026-12": (6, []),
    }


def test_balances_by_age_are_those_of_the_statements_that_end_on_that_day(store, book):
    """Whatever was issued, credited and paid since."""
    book("10", at="2026-08-15T00:00", member="ada")
    book("7", at="2026-09-15T00:00", member="ada")
    for month in ("2026-08", "2026-09"):
        close_period(store, month)
    first = issue_invoice(store, draft_invoice(store, member="ada", period="2026-08"), on=date(2026, 9, 1))
    issue_invoice(store, draft_invoice(store, member="ada", period="2026-09"), on=date(2026, 10, 31))
    record_payment(store, first, "4", on=date(2026, 10, 2))
    record_payment(store, first, "8", on=date(2026, 11, 1))
    found = {}
    for day in ("2026-08-31", "2026-09-30", "2026-10-01", "2026-10-02", "2026-10-31", "2026-11-01"):
        aged = age_balances(store, as_of=day)
        drawn = draw_statement(store, member="ada", period=day, basis="invoices")
        assert total(one.total for one in aged) == drawn.closing
        ages = ("not_due", "days_30", "days_60", "overpaid", "older")
        found[day] = {age: str(getattr(one, age)) for one in aged for age in ages if getattr(one, age)}
    assert found == {
        "2026-08-31": {},
        "2026-09-30": {"not_due": "10.00"},
        "2026-10-01": {"not_due": "10.00"},  # the day on which it is due
        "2026-10-02": {"days_30": "6.00"},
        "2026-10-31": {"days_30": "6.00", "not_due": "7.00"},
        "2026-11-01": {"overpaid": "-2.00", "not_due": "7.00"},
    }


def test_nobody_has_an_empty_statement(store):
    statement = draw_statement(store, member="nobody", period="2026-11")
    assert (statement.opening, statement.closing, statement.lines) == (0, 0, ())


@pytest.mark.parametrize("wrong", [{"basis": "guess"}, {"granularity": "fortnight"}, {"member": None}])
def test_wrong_arguments_are_refused(store, wrong):
    with pytest.raises(ConfigurationError):
        draw_statement(store, **{"member": "ada", "period": "2026-11", **wrong})


def test_a_workbooks_days_are_dates_and_its_months_text(store, book):
    openpyxl = pytest.importorskip("openpyxl")
    book("5", at="2026-11-02T10:00", member="ada")
    found = {}
    for unit in ("day", "month"):
        drawn = draw_statement(store, member="ada", period="2026-11", granularity=unit)
        found[unit] = openpyxl.load_workbook(io.BytesIO(drawn.to_xlsx())).active["B3"].value
    assert found == {"day": datetime(2026, 11, 2), "month": "2026-11"}  # noqa: DTZ001 - a cell has no zone


def test_a_workbooks_balances_are_exact_and_are_not_added_up(store, book):
    openpyxl = pytest.importorskip("openpyxl")
    for day, cost in (("02", "1234.123456789012"), ("03", "5000")):
        book(cost, at=f"2026-11-{day}T10:00", member="ada")
    heads, *rows = openpyxl.load_workbook(
        io.BytesIO(draw_statement(store, member="ada", period="2026-11").to_xlsx())
    ).active.iter_rows()
    at = {cell.value: cell.column - 1 for cell in heads}
    texts = [row[at["balance exact"]].value for row in rows[:-1]]
    assert texts == ["0.000000000000", "1234.123456789012", "6234.123456789012", "6234.123456789012"]
    assert {row[at["balance"]].number_format for row in rows[:-1]} == {"#,##0.00##########"}
    assert {rows[-1][at[name]].value for name in ("balance", "balance exact")} <= {None, ""}  # no sum of balances


def test_a_statement_without_a_profile_names_the_seller_of_the_last_invoice_or_nobody(store, book):
    book("5", at="2026-11-02T10:00", member="ada")
    assert draw_statement(store, member="ada", period="2026-11").to_sheet().seller == ()
    close_period(store, "2026-11", now=datetime(2026, 12, 1, 9, tzinfo=UTC))
    draft = draft_invoice(store, member="ada", period="2026-11", profile={"seller": {"name": "Platform GmbH"}})
    issue_invoice(store, draft)
    for basis in ("usage", "invoices"):
        drawn = draw_statement(store, member="ada", period="2026-11", basis=basis)
        assert drawn.to_sheet().seller == ("Platform GmbH",)


def test_a_statement_as_csv_cannot_be_taken_for_whole_where_a_price_is_missing(store, make_call):
    store.settle(make_call("1", at="2026-11-02T10:00", member="ada"))
    store.settle(make_call(None, at="2026-11-03T10:00", member="ada", model="mystery"))
    told = list(csv.DictReader(io.StringIO(draw_statement(store, member="ada", period="2026-11").to_csv())))
    assert [row["unpriced"] for row in told] == [*("" for _ in told[1:]), "1"]
    assert told[-1]["description"] == "Closing balance"
