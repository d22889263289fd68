"""Double entry that finance systems take: entries that add up, and files by each system's rules."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import time_machine

from tokenmeter.billing import (
    age_balances,
    close_period,
    credit_invoice,
    draft_invoice,
    draft_invoices,
    draw_statement,
    export_journal,
    find_invoice,
    invoices,
    issue_invoice,
    journal_entries,
    journal_forms,
    record_payment,
    void_invoice,
    write_off_invoice,
)
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import add, negate, subtract, total

BUYER = 'Müller & Söhne "quoted" GmbH'
NUMBERS = {"receivable": "10000", "income": "8400", "rounding": "8401", "bank": "1200", "bad_debts": "2400"}


@pytest.fixture(autouse=True)
def _november():
    """Documents are of the day on which they are made: the tests' month, whenever they run."""
    with time_machine.travel(datetime(2026, 11, 27, 12, tzinfo=UTC), tick=True):
        yield


@pytest.fixture
def booked(store, book, december):
    """November: two invoices, a credit note, a payment in part, the rest written off, and a void one."""
    book("100.004", team="search", multipliers={"discount": "0.8"})
    for count in range(3):
        book("0.004", team="search", model=f"small-{count}")
    book("50", team="ads", provider="anthropic", model="claude-haiku-4-5")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": "P"}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
    for team, buyer in (("search", {"name": BUYER, "cost_centre": "4711"}), ("ads", {"name": "Ads"})):
        issue_invoice(store, draft_invoice(store, team=team, period="2026-11", profile=profile, buyer=buyer))
    credit_invoice(store, "INV-00001", [(1, "10.00")], "outage")
    record_payment(store, "INV-00001", "50", reference="wire 7")
    write_off_invoice(store, "INV-00001", "insolvent")
    void_invoice(store, "INV-00002", "wrong buyer")
    return store


def test_every_entry_adds_up_to_nothing_and_the_receivable_ends_even(booked):
    entries = journal_entries(booked, period="2026-11")
    kinds = {entry.kind for entry in entries}
    assert kinds == {"invoice", "credit_note", "payment", "write_off", "void", "provider_cost"}
    for entry in entries:
        assert total(posting.amount for posting in entry.postings) == 0
    sums = {}
    for entry in entries:
        for posting in entry.postings:
            sums[posting.role] = add(sums.get(posting.role, Decimal(0)), posting.amount)
    assert sums["receivable"] == 0
    (bill,) = [one for one in invoices(booked) if one.number == "INV-00001"]
    assert sums["bank"] == 50
    assert negate(add(sums["income"], sums["rounding"])) == subtract(bill.totals.net, 10)


@pytest.mark.ordinary_decimals("beancount's own")
def test_beancount_accepts_the_file_to_the_cent(booked, tmp_path):
    pytest.importorskip("beancount")
    from beancount.loader import load_string

    text = export_journal(booked, period="2026-11", accounts={"income": "Income:AI:{provider}"}).decode()
    entries, errors, _ = load_string(text)
    assert errors == []
    assert len(entries) > 6
    assert BUYER.replace('"', '\\"') in text
    assert "Income:AI:Openai" in text
    assert load_string(text.replace("  50.00 USD", "  50.01 USD", 1))[1]  # a cent off is an error


#: Names that mean something to one of the programs, and letters that none has as a capital.
HOSTILE = (
    'O"Neill; the "2nd"', "a:b:c", "王小明", "محمد", "हिन्दी", "²", "cafe\u0301", "two  blanks", "a|pipe", "(paren)",
    "[br] x", "*star", "!bang", "@home", "#hash", "=cmd", "12/3", "back\\slash", "{brace}", "- dash", "~ perhaps", "%",
)  # fmt: skip


@pytest.fixture
def hostile(store, book, december):
    """November: an invoice for each hostile name, a credit note, a payment and a loss with such words."""
    for name in HOSTILE:
        book("10.004", member=name, multipliers={"discount": "0.8"})
        book("0.004", member=name, provider="anthropic", model="claude-haiku-4-5")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": "P"}, "taxes": [{"name": "VAT; (new)", "rate": "0.19"}]}
    for draft in draft_invoices(store, each="member", period="2026-11", profile=profile):
        issue_invoice(store, draft)
    credit_invoice(store, "INV-00001", [('Goodwill; "sorry" (a:b)', "1")], 'outage; on "12th" | (x)')
    record_payment(store, "INV-00002", "50", reference='wire; "7" | (a) 付款')
    write_off_invoice(store, "INV-00003", "insolvent; (gone)")
    void_invoice(store, "INV-00004", "* wrong | buyer")
    return store


@pytest.mark.parametrize("income", ["Income:AI", "Income:{buyer}"])
@pytest.mark.ordinary_decimals("beancount's own")
def test_beancount_takes_any_name_and_balances(hostile, income):
    pytest.importorskip("beancount")
    from beancount.core.account import is_valid
    from beancount.loader import load_string

    text = export_journal(hostile, period="2026-11", accounts={"income": income, "receivable": "Assets:{buyer}"})
    entries, errors, _ = load_string(text.decode())
    assert errors == []
    assert len(entries) > len(HOSTILE)
    accounts = {posting.account for entry in entries for posting in getattr(entry, "postings", ())}
    assert [one for one in accounts if not is_valid(one)] == []  # its loader looks at the beginning only


@pytest.mark.parametrize("command", ["hledger check --strict", "hledger balance -N", "ledger --pedantic balance"])
def test_hledger_and_ledger_take_any_name_and_all_is_declared(hostile, tmp_path, command):
    program, *arguments = command.split()
    if not shutil.which(program):
        pytest.skip(f"{program} is not on this machine")
    file = tmp_path / "month.journal"
    file.write_bytes(export_journal(hostile, period="2026-11", form="hledger"))
    told = subprocess.run([program, "-f", str(file), *arguments], capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (0, b"")


def test_hledgers_journal_declares_what_it_names_and_has_two_blanks_before_each_amount(booked):
    text = export_journal(booked, period="2026-11", form="hledger").decode()
    assert "(INV-00001)" in text
    postings = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert all("  " in line for line in postings)
    declared = {line.partition(" ")[2] for line in text.splitlines() if line.startswith(("account ", "commodity "))}
    assert declared == {"USD", *(line.partition("  ")[0] for line in postings)}  # so that strict programs take it


@pytest.mark.parametrize("form", ["beancount", "hledger"])
@pytest.mark.parametrize(
    "account", ["", "Income:AI;x", "Income:AI  2", "(Income:AI)", "[Income:AI]", "*Income", "Income\tAI"]
)
def test_an_account_that_the_program_cannot_read_is_named_with_its_role(booked, form, account):
    with pytest.raises(ConfigurationError, match=r"accounts\.income is .*Income:AI"):
        export_journal(booked, period="2026-11", form=form, accounts={"income": account})


@pytest.mark.parametrize(
    "account", ["8400", "Income", "income:ai", "Income:北京", "Income:", "Income::AI", "Income:A I", "4:A"]
)
def test_hledger_has_accounts_that_beancount_does_not(booked, account):
    with pytest.raises(ConfigurationError, match=r"accounts\.income is .*; beancount takes parts joined by colons"):
        export_journal(booked, period="2026-11", accounts={"income": account})
    assert account.encode() in export_journal(booked, period="2026-11", form="hledger", accounts={"income": account})


def test_xero_and_quickbooks_lines_add_up_to_the_net(booked):
    rows = list(csv.DictReader(io.StringIO(export_journal(booked, period="2026-11", form="xero").decode())))
    net = total(Decimal(row["*UnitAmount"]) for row in rows if row["*InvoiceNumber"] == "INV-00001")
    (bill,) = [one for one in invoices(booked) if one.number == "INV-00001"]
    assert net == bill.totals.net
    assert {row["*InvoiceNumber"] for row in rows} == {"INV-00001", "CN-00001"}  # the void one is not sent
    assert rows[0]["*InvoiceDate"] == f"{bill.issued_on:%d/%m/%Y}"
    assert "discount 0.8" in rows[0]["*Description"]
    rows = list(csv.DictReader(io.StringIO(export_journal(booked, period="2026-11", form="quickbooks").decode())))
    assert total(Decimal(row["*Item Amount"]) for row in rows) == subtract(bill.totals.net, 10)


def test_datev_has_its_header_125_columns_and_gross_amounts(booked):
    content = export_journal(
        booked, period="2026-11", form="datev", accounts=NUMBERS, options={"currency": "USD", "client": "7"}
    )
    head, names, *rows = content.decode("cp1252").split("\r\n")
    assert head.startswith('"EXTF";700;21;"Buchungsstapel";13;')
    assert len(head.split(";")) == 31
    assert len(names.split(";")) == 125
    assert rows[-1] == ""
    cells = [row.split(";") for row in rows[:-1]]
    assert {len(row) for row in cells} == {125}
    first = [row for row in cells if row[10] == '"INV-00001"' and row[1] == '"S"' and row[6] == "10000"]
    (bill,) = [one for one in invoices(booked) if one.number == "INV-00001"]
    assert total(Decimal(row[0].replace(",", ".")) for row in first) == bill.total
    assert first[0][9] == f"{bill.issued_on:%d%m}"
    assert first[0][36] == '"4711"'


def test_what_a_system_cannot_take_is_said(booked):
    for wanted, given in (
        ("a journal is|A journal is", {"form": "sap"}),
        ("unknown role 'sales'", {"accounts": {"sales": "x"}}),
        ("names something unknown", {"accounts": {"income": "Income:{colour}"}}),
        ("numbers of 4 to 9 digits", {"form": "datev", "options": {"currency": "USD"}}),
        ("documents in USD", {"form": "datev", "accounts": NUMBERS}),
        ("no option colour", {"options": {"colour": "red"}}),
    ):
        with pytest.raises(ConfigurationError, match=wanted):
            export_journal(booked, period="2026-11", **given)


def test_a_letter_that_datev_cannot_write_is_named(store, book, december):
    book("5", team="t")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, team="t", period="2026-11", buyer="北京"))
    with pytest.raises(ConfigurationError, match="has no '北'"):
        export_journal(store, period="2026-11", form="datev", accounts=NUMBERS, options={"currency": "USD"})


def test_accounts_by_a_table(booked):
    accounts = {"income": {"provider=anthropic": "Income:Claude", "default": "Income:Other"}}
    names = {
        posting.account
        for entry in journal_entries(booked, period="2026-11", accounts=accounts)
        for posting in entry.postings
    }
    assert {"Income:Claude", "Income:Other"} <= names


@pytest.fixture
def two_currencies(store, book, december):
    """November: 100 dollars for search, 46 euros for ads."""
    book("100", team="search")
    book("50", team="ads")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, team="search", period="2026-11", buyer="=cmd|' /C calc'!A0"))
    euros = {"currency": "EUR", "exchange_rate": "0.92"}
    issue_invoice(
        store,
        draft_invoice(store, team="ads", period="2026-11", buyer="Ads \N{LATIN SMALL LETTER L WITH STROKE}", **euros),
    )
    return store


def test_a_file_that_does_not_say_its_currency_has_one(two_currencies):
    with pytest.raises(ConfigurationError, match="documents in EUR, USD: make a file for each"):
        export_journal(two_currencies, period="2026-11", form="quickbooks")
    for currency, amount in (("EUR", "46.00"), ("USD", "100.00")):
        content = export_journal(two_currencies, period="2026-11", form="quickbooks", options={"currency": currency})
        assert [row["*Item Amount"] for row in csv.DictReader(io.StringIO(content.decode()))] == [amount]


@pytest.mark.parametrize(("form", "program", "number"), [("xero", "Xero", 10), ("quickbooks", "QuickBooks", 0)])
def test_what_is_more_than_a_program_takes_at_once_is_several_files(booked, monkeypatch, form, program, number):
    """A platform of 300 members has more invoices on the first of a month than any import takes."""
    whole = export_journal(booked, period="2026-11", form=form).decode().splitlines()[1:]
    monkeypatch.setitem(journal_forms._MOST, program, (1, len(whole)))
    with pytest.raises(ConfigurationError, match=r"this period makes 2 files. Say which: .* --option part=1"):
        export_journal(booked, period="2026-11", form=form)
    parts = [
        export_journal(booked, period="2026-11", form=form, options={"part": part}).decode().splitlines()[1:]
        for part in (1, "2")
    ]
    assert [*parts[0], *parts[1]] == whole
    assert [{row[number] for row in csv.reader(part)} for part in parts] == [{"INV-00001"}, {"CN-00001"}]
    monkeypatch.setitem(journal_forms._MOST, program, (1, 1))
    with pytest.raises(ConfigurationError, match="INV-00001 alone has"):
        export_journal(booked, period="2026-11", form=form, options={"part": 1})


def test_datev_has_a_file_for_each_currency_and_replaces_letters_when_asked(two_currencies):
    given = {"period": "2026-11", "form": "datev", "accounts": NUMBERS}
    with pytest.raises(ConfigurationError, match="there are documents in USD: make a file for each currency"):
        export_journal(two_currencies, **given)
    with pytest.raises(ConfigurationError, match="has no 'ł'"):
        export_journal(two_currencies, **given, options={"currency": "EUR"})
    for currency, booked in (("EUR", '46,00;"H";"EUR"'), ("USD", '100,00;"H";"USD"')):
        content = export_journal(two_currencies, **given, options={"currency": currency, "replace": "?"}).decode(
            "cp1252"
        )
        _, _, row, _ = content.split("\r\n")
        assert row.replace('"S"', '"H"').startswith(booked)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"account_digits": "many"}, "a number from 4 to 9"),
        ({"year_start": "2026-12-01"}, "fiscal year, which begins on 2026-12-01"),
        ({"year_start": "2025-06-30"}, "fiscal year, which begins on 2025-06-30"),
    ],
)
def test_datevs_options_are_checked(booked, options, said):
    with pytest.raises(ConfigurationError, match=said):
        export_journal(booked, period="2026-11", form="datev", accounts=NUMBERS, options={"currency": "USD", **options})


def test_a_file_opens_its_accounts_as_it_is_asked(booked):
    months = [
        export_journal(booked, period="2026-11", form="beancount", options={"open": opened}).decode()
        for opened in ("yes", "no")
    ]
    assert [" open " in month for month in months] == [True, False]
    with pytest.raises(ConfigurationError, match=r"open is yes, new .* or no"):
        export_journal(booked, period="2026-11", form="beancount", options={"open": "perhaps"})


@pytest.mark.ordinary_decimals("beancount's own")
def test_months_with_new_buyers_and_providers_are_one_book(store, book):
    """Each month somebody new is billed, a provider is new, or something is settled in another way."""
    pytest.importorskip("beancount")
    from beancount.loader import load_string

    months = ("2026-09", "2026-10", "2026-11", "2026-12")
    book("9", team="search", at="2026-09-03")
    book("7", team="ads", provider="anthropic", at="2026-10-03")
    book("5", team="search", provider="groq", at="2026-10-04")
    book("3", team="legal", at="2026-11-03")
    for month, day in zip(months[:3], ("2026-10-02", "2026-11-02", "2026-12-02"), strict=True):
        now = datetime.fromisoformat(day).replace(tzinfo=UTC)
        with time_machine.travel(now, tick=True):
            close_period(store, month)
            for draft in draft_invoices(store, each="team", period=month):
                issue_invoice(store, draft)
            if month == "2026-10":
                record_payment(store, "INV-00001")
            if month == "2026-11":
                write_off_invoice(store, "INV-00002", "insolvent")

    def read_book(option):
        opened = ["yes", option, option, option]
        files = [
            export_journal(store, period=month, options={"open": one}).decode()
            for month, one in zip(months, opened, strict=True)
        ]
        entries, errors, _ = load_string("\n".join(files))
        return entries, {type(error).__name__ for error in errors}

    entries, errors = read_book("new")
    assert errors == set()
    accounts = {one.account for one in entries if type(one).__name__ == "Open"}
    assert {"Assets:Receivable:Legal", "Assets:Bank", "Expenses:BadDebts", "Expenses:AI:Anthropic"} <= accounts
    assert read_book("yes")[1]  # an account twice
    assert read_book("no")[1]  # an account never opened


def test_a_name_that_a_spreadsheet_would_run_is_text(two_currencies):
    content = export_journal(two_currencies, period="2026-11", form="xero").decode()
    assert {row["*ContactName"][0] for row in csv.DictReader(io.StringIO(content))} == {"'", "A"}


#: Names of different buyers that come to the same letters, digits and dashes.
ALIKE = ("O'Neill", "O Neill", "o-neill", "O-Neill-2", "@@", "::", "X", "王", "X-王")


def month_of(store, book, members, month, now):
    for member in members:
        book("10", member=member, at=f"{month}-10T12:00")
    close_period(store, month, now=now)
    for draft in draft_invoices(store, each="member", period=month):
        issue_invoice(store, draft)


def receivables(store, period, **accounts):
    entries = journal_entries(store, period=period, accounts=accounts)
    posted = ((entry.payee, one) for entry in entries for one in entry.postings)
    return {payee: one.account for payee, one in posted if one.role == "receivable"}


def test_no_two_names_share_an_account_and_each_keeps_its_own_whoever_comes_later(store, book, december):
    month_of(store, book, ALIKE, "2026-10", december)
    first = receivables(store, "2026-11")
    assert sorted(first) == sorted(ALIKE)
    assert len(set(first.values())) == len(ALIKE)

    later = ("0'Neill", "O`Neill", *reversed(ALIKE))
    with time_machine.travel(datetime(2027, 1, 2, tzinfo=UTC)):
        month_of(store, book, later, "2026-11", december)
    second = receivables(store, "2027-01")
    assert {name: second[name] for name in ALIKE} == first
    assert len(set(second.values())) == len(later)
    assert receivables(store, "2026-11") == first


def test_an_account_is_called_the_same_whatever_is_filed_later(store, book):
    """Documents of any kind name accounts in the order of their filing, and a provider takes no buyer's name."""
    accounts = {"income": "Income:{team}:{provider}", "expense": "Expenses:{team}:{provider}"}

    def of_month(month, team, providers, buyer, tax):
        for provider in providers:
            book("10", at=f"{month}-10T12:00", team=team, provider=provider)
        close_period(store, month)
        taxes = [{"name": tax, "rate": "0.1"}]
        draft = draft_invoice(store, team=team, period=month, profile={"taxes": taxes}, buyer={"name": buyer})
        return issue_invoice(store, draft)

    with time_machine.travel(datetime(2026, 10, 1, 12, tzinfo=UTC), tick=True):
        first = of_month("2026-09", "ai team", ["open ai"], "Azure", "VAT")
        credit_invoice(store, first, "2", "goodwill")  # of no line: of no provider in particular
    months = ("2026-09", "2026-10")
    before = [journal_entries(store, period=month, accounts=accounts) for month in months]
    assert receivables(store, "2026-10") == {"Azure": "Assets:Receivable:Azure"}
    of_month("2026-10", "ai-team", ["azure", "open-ai", "x"], "azure", "V.A.T")
    after = [journal_entries(store, period=month, accounts=accounts) for month in months]
    assert after[0] == before[0]
    assert [one for one in after[1] if one.kind != "provider_cost"] == [
        one for one in before[1] if one.kind != "provider_cost"
    ]
    record_payment(store, first, "1", on="2026-11-05")
    assert receivables(store, "2026-11") == {"Azure": "Assets:Receivable:Azure", "azure": "Assets:Receivable:Azure-2"}


def test_a_name_written_with_other_code_points_is_the_same_buyer(store, book, december):
    month_of(store, book, ("Café", "Cafe\u0301"), "2026-11", december)
    assert set(receivables(store, "2026-11").values()) == {"Assets:Receivable:Café"}


def test_what_is_given_back_goes_to_the_account_that_the_line_was_booked_on(store, book, december):
    book("10", team="search", member="ada")
    book("5", team="search")  # on no member
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, team="search", period="2026-11", lines_by="member"))
    credit_invoice(store, "INV-00001", [(1, "1"), ("Goodwill", "2")], "outage")
    for income in ("Income:{member}", {"member=ada": "Income:Ada", "default": "Income:X"}):
        booked = journal_entries(store, period="2026-11", accounts={"income": income})
        found = {
            entry.kind: {one.account: one.amount for one in entry.postings if one.role == "income"} for entry in booked
        }
        assert found["invoice"] == {"Income:Ada": -10, "Income:X": -5}
        assert found["credit_note"] == {"Income:Ada": 1, "Income:X": 2}
        rows = csv.DictReader(
            io.StringIO(export_journal(store, period="2026-11", form="xero", accounts={"income": income}).decode())
        )
        assert [(row["*AccountCode"], row["*UnitAmount"]) for row in rows] == [
            ("Income:Ada", "10.00"),
            ("Income:X", "5.00"),
            ("Income:Ada", "-1.00"),
            ("Income:X", "-2.00"),
        ]


@pytest.mark.parametrize(
    ("paid", "recovered", "owed"),
    [
        (["40"], ["40"], 0),
        (["40", "-15", "80"], ["40", "-15", "70"], -10),
        (["120"], ["95"], -25),
        ([], [], 0),
    ],
    ids=["in part", "back and forth", "too much", "nothing"],
)
def test_money_for_what_was_written_off_makes_the_loss_smaller_and_changes_nothing_earlier(
    store, book, december, paid, recovered, owed
):
    book("100", member="ada")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, member="ada", period="2026-11"))
    record_payment(store, "INV-00001", "5")
    write_off_invoice(store, "INV-00001", "insolvent")
    before = [one for one in journal_entries(store, period="2026-11") if one.kind != "provider_cost"]
    for amount in paid:
        record_payment(store, "INV-00001", amount)
    after = [one for one in journal_entries(store, period="2026-11") if one.kind != "provider_cost"]
    assert [one for one in after if one in before] == before
    losses = [one.postings[0].amount for one in after if one.kind == "write_off"]
    assert losses == [95, *(negate(Decimal(amount)) for amount in recovered)]
    due = total(each.amount for one in after for each in one.postings if each.role == "receivable")
    statement = draw_statement(store, member="ada", period="2026-11", basis="invoices")
    assert due == statement.closing == find_invoice(store, "INV-00001").balance == owed
    assert total(one.total for one in age_balances(store)) == owed


def test_what_was_written_off_and_then_voided_leaves_nothing(store, book, december):
    month_of(store, book, ["ada"], "2026-11", december)
    write_off_invoice(store, "INV-00001", "insolvent")
    void_invoice(store, "INV-00001", "never delivered")
    sums = {}
    for entry in journal_entries(store, period="2026-11"):
        for posting in entry.postings if entry.kind != "provider_cost" else ():
            sums[posting.role] = add(sums.get(posting.role, Decimal(0)), posting.amount)
    assert set(sums.values()) == {0}
    assert draw_statement(store, member="ada", period="2026-11", basis="invoices").closing == 0


def test_costs_and_income_are_split_by_any_dimension_that_is_known_and_add_up(store, book, december):
    book("1.004", team="search", project="shop")
    book("2.004", team="search", project="shop 2")
    book("3.004", team="search")
    book("0.001", team="search", project="small")
    close_period(store, "2026-11", now=december)
    drafted = draft_invoice(store, team="search", period="2026-11", lines_by="project")
    issue_invoice(store, drafted)
    accounts = {"income": "Income:{project}", "expense": {"project=shop": "Expenses:Shop", "default": "Expenses:Rest"}}
    entries = journal_entries(store, period="2026-11", accounts=accounts)
    income = {one.account: -one.amount for one in entries[0].postings if one.role == "income"}
    assert income == {"Income:Shop": Decimal("1.00"), "Income:Shop-2": Decimal("2.00"), "Income:X": Decimal("3.00")}
    accrued, taken_back = [one for one in entries if one.kind == "provider_cost"]
    assert {one.account: one.amount for one in accrued.postings} == {
        "Expenses:Shop": Decimal("1.00"),
        "Expenses:Rest": Decimal("5.01"),
        "Liabilities:Accrued:Openai": Decimal("-6.01"),
    }
    assert total(one.amount for one in taken_back.postings) == 0


def test_a_pattern_that_names_what_an_invoice_does_not_tell_says_how_it_would(booked):
    with pytest.raises(ConfigurationError, match=r"team=search is not broken down by project: .*--lines-by project"):
        journal_entries(booked, period="2026-11", accounts={"income": "Income:{project}"})
    chosen = {"income": {"project=shop": "Income:Shop", "default": "Income:Rest"}}
    assert journal_entries(booked, period="2026-11", accounts=chosen)


def test_xero_takes_accounts_by_what_lines_are_broken_down_by(store, book, december):
    book("1", team="search", project="shop")
    close_period(store, "2026-11", now=december)
    issue_invoice(store, draft_invoice(store, team="search", period="2026-11", lines_by="project"))
    accounts = {"income": {"project=shop": "201", "default": "200"}}
    (row,) = csv.DictReader(
        io.StringIO(export_journal(store, period="2026-11", form="xero", accounts=accounts).decode())
    )
    assert row["*AccountCode"] == "201"


@pytest.mark.parametrize("form", ["xero", "quickbooks"])
@pytest.mark.parametrize(("dates", "written"), [("us", "11/27/2026"), ("iso", "2026-11-27"), ("uk", "27/11/2026")])
def test_days_are_written_as_the_organisations_region_has_them(booked, form, dates, written):
    text = export_journal(booked, period="2026-11", form=form, options={"dates": dates}).decode()
    (day,) = {row.get("*InvoiceDate") or row["*Invoice date"] for row in csv.DictReader(io.StringIO(text))}
    assert day == written
    with pytest.raises(ConfigurationError, match="dates is uk"):
        export_journal(booked, period="2026-11", form=form, options={"dates": "german"})


def test_datev_names_each_account_that_is_missing(booked):
    given = {name: number for name, number in NUMBERS.items() if name not in {"bad_debts", "bank"}}
    with pytest.raises(ConfigurationError) as refused:
        export_journal(booked, period="2026-11", form="datev", accounts=given, options={"currency": "USD"})
    told = str(refused.value)
    assert "'Assets:Bank' for bank, 'Expenses:BadDebts' for bad_debts" in told
    assert told.endswith("(--account bank=1200 --account bad_debts=2400).")


BEFORE = {
    "nothing": [],
    "some of a line": [[(1, "1.00")]],
    "an amount": ["7.00"],
    "words, and some of a line": [[("Goodwill", "2.00")], [(2, "0.50")]],
}


@pytest.mark.parametrize("said", [False, True], ids=["the rest", "its amount"])
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_a_full_credit_note_leaves_nothing_on_any_account_of_its_invoice(store, book, december, before, said):
    for cost in ("10.004", "5.004", "3.004"):
        book(cost, team="search", provider="openai", model=f"gpt-{cost}")
    book("50.004", team="search", provider="anthropic", model="claude-haiku-4-5")
    close_period(store, "2026-11", now=december)
    profile = {"seller": {"name": "P"}, "taxes": [{"name": "VAT", "rate": "0.19"}]}
    bill = issue_invoice(store, draft_invoice(store, team="search", period="2026-11", profile=profile))
    assert bill.totals.rounding
    notes = [credit_invoice(store, bill, part, "goodwill") for part in before]
    left = bill.totals.net - sum(one.net for one in notes)
    credit_invoice(store, bill, f"{left:f}" if said else None, "all of it")
    assert find_invoice(store, str(bill.number)).status == "credited"
    sums = {}

    def put(account, amount):
        sums[account] = add(sums.get(account, Decimal(0)), amount)

    for entry in journal_entries(store, period="2026-11", accounts={"income": "Income:{provider}:{model}"}):
        for posting in entry.postings if entry.kind != "provider_cost" else ():
            put(posting.account, posting.amount)
    assert len(sums) > 6
    assert set(sums.values()) == {0}

    by_model = {f"model={line.model}": f"840{line.position}" for line in bill.lines}
    chart = NUMBERS | {"income": {**by_model, "default": "8499"}}
    sums.clear()
    for row in csv.DictReader(
        io.StringIO(export_journal(store, period="2026-11", form="xero", accounts=chart).decode())
    ):
        put(row["*AccountCode"], Decimal(row["*UnitAmount"]))
    assert {*sums} >= {*by_model.values(), NUMBERS["rounding"]}
    assert set(sums.values()) == {0}

    sums.clear()
    packed = export_journal(store, period="2026-11", form="datev", accounts=chart, options={"currency": "USD"})
    for row in list(csv.reader(io.StringIO(packed.decode("cp1252")), delimiter=";"))[2:]:
        amount = Decimal(row[0].replace(",", "."))
        put(row[7], amount if row[1] == "S" else negate(amount))
    assert {*sums} >= {*by_model.values(), NUMBERS["rounding"]}
    assert total(sums.values()) == 0  # tax and all, of which rounding by cents may stand on one account or another
    assert all(abs(left) <= Decimal("0.02") for left in sums.values())


def test_xero_has_rounding_on_its_own_account_where_one_is_named(booked):
    def codes(**accounts):
        text = export_journal(booked, period="2026-11", form="xero", accounts={"income": "200", **accounts}).decode()
        return {row["*Description"]: row["*AccountCode"] for row in csv.DictReader(io.StringIO(text))}

    assert codes()["Rounding"] == "200"
    assert codes(rounding="860")["Rounding"] == "860"


def costs_of(store, period):
    """Day -> the provider costs that a period's journal books or takes back on it, and what its file says of others."""
    found = [one for one in journal_entries(store, period=period) if one.kind == "provider_cost"]
    told = export_journal(store, period=period).decode()
    sums = {f"{one.on:%m-%d}": str(one.postings[0].amount) for one in found}
    remarks = [line for line in told.splitlines() if line.startswith("; ")]
    hledger = export_journal(store, period=period, form="hledger").decode().splitlines()
    assert [line for line in hledger if line.startswith("; ")] == remarks
    return sums, [line.removeprefix("; ") for line in remarks]


@pytest.mark.parametrize("tz", ["UTC", "America/New_York"])
def test_a_quarter_has_the_costs_of_its_months_and_says_what_is_not_closed(store, book, december, tz):
    for month in (7, 8, 9):
        book(str(month), at=f"2026-{month:02d}-10T12:00")
    for month in ("2026-07", "2026-08"):
        close_period(store, month, tz=tz, now=december)
    months = {"07-31": "7.00", "08-01": "-7.00", "08-31": "8.00", "09-01": "-8.00"}
    missing = "The providers' costs of {} to 2026-09-30 are missing: no closed period holds these days."
    assert costs_of(store, "2026-Q3") == (months, [missing.format("2026-09-01")])
    assert costs_of(store, "2026-09") == ({}, [missing.format("2026-09-01")])
    assert costs_of(store, "2026-08") == ({"08-31": "8.00", "09-01": "-8.00"}, [])
    close_period(store, "2026-09", tz=tz, now=december)
    assert costs_of(store, "2026-Q3") == ({**months, "09-30": "9.00", "10-01": "-9.00"}, [])


def test_a_month_of_a_quarter_that_was_closed_in_one_says_where_its_costs_are(store, book, december):
    book("7", at="2026-07-10T12:00")
    close_period(store, "2026-Q3", now=december)
    assert costs_of(store, "2026-09") == ({"09-30": "7.00", "10-01": "-7.00"}, [])
    where = "are booked on 2026-09-30, with all of 2026-Q3, which was closed in one."
    assert costs_of(store, "2026-07") == ({}, [f"The providers' costs of 2026-07-01 to 2026-07-31 {where}"])
    assert costs_of(store, "2026-Q3") == costs_of(store, "2026-09")


@pytest.mark.ordinary_decimals("beancount's own")
def test_a_quarter_after_a_month_opens_what_is_new_in_it(store, book, december):
    pytest.importorskip("beancount")
    from beancount.loader import load_string

    for month, provider in ((6, "openai"), (7, "openai"), (8, "groq"), (10, "groq"), (10, "mistral")):
        book("5", at=f"2026-{month:02d}-10T12:00", provider=provider)
    for month in (6, 7, 8, 9, 10):
        close_period(store, f"2026-{month:02d}", now=december)
    opened = {"2026-06": "yes", "2026-Q3": "new", "2026-10": "new"}
    files = [export_journal(store, period=period, options={"open": one}).decode() for period, one in opened.items()]
    assert load_string("\n".join(files))[1] == []
