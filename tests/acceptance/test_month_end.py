"""The month's end from the command line, with amounts worth dollars: from a log to what finance books."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pytest

SETTINGS = """
store = "sqlite:///usage.db"
multiplier = "1.25"
[billing]
terms_days = 14
[billing.seller]
name = "Platform GmbH"
[[billing.taxes]]
name = "VAT"
rate = "0.19"
"""
#: Member, model, tokens of input and output in October; gpt-5-mini costs 0.25 and 2.00 dollars a million.
CALLS = [("ada", 40_000_000, 5_000_000), ("bob", 16_000_000, 2_000_000), (None, 4_000_000, 0)]
STATEMENT = "Day,Model,Input,Output,Cost\n2026-10-09,gpt-5-mini,60000000,7000000,29.00\n2026-10-31,VAT 19%,0,0,5.51\n"


@pytest.fixture
def run(tmp_path, monkeypatch, run_command):
    """A command line in a folder of its own: exit code and what was printed, or why nothing was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tokenmeter.toml").write_text(SETTINGS)
    rows = [
        {"id": f"r{at}", "at": "2026-10-09T12:00:00Z", "m": "gpt-5-mini", "in": before, "out": after, "who": member}
        for at, (member, before, after) in enumerate(CALLS)
    ]
    (tmp_path / "log.json").write_text(json.dumps(rows))

    def command(*arguments):
        code, printed, complaint = run_command(*arguments)
        return code, printed or complaint

    return command


def test_from_a_log_to_the_journal(run, tmp_path):
    code, text = run("import", "log.json", "--map", "id=id,time=at,model=m,input=in,output=out,member=who")
    assert (code, "3 calls recorded" in text) == (0, True)
    assert "INV" not in run("period", "close", "2026-10", "--by", "kim")[1]

    code, text = run("invoice", "issue", "--by", "member", "--period", "2026-10")
    assert "Nothing was issued yet" in text
    assert run("invoice", "list")[1].startswith("No invoice")
    code, text = run("invoice", "issue", "--by", "member", "--period", "2026-10", "--yes", "--actor", "kim", "--json")
    issued = {one["scope"]["member"]: one for one in json.loads(text)}
    # ada: 40 x 0.25 + 5 x 2.00 = 20.00 upstream, x 1.25 = 25.00; bob: 4.00 + 4.00 = 8.00, x 1.25 = 10.00
    assert {member: one["totals"]["net"] for member, one in issued.items()} == {"ada": "25.00", "bob": "10.00"}
    assert {member: one["totals"]["total"] for member, one in issued.items()} == {"ada": "29.75", "bob": "11.90"}
    assert {one["issued_by"] for one in issued.values()} == {"kim"}

    code, text = run("invoice", "coverage", "--period", "2026-10", "--json")
    told = {
        name: Decimal(amount)
        for name, amount in json.loads(text).items()
        if name in {"invoiced", "billed_nowhere", "ledger"}
    }
    assert (code, told) == (1, {"invoiced": Decimal(35), "billed_nowhere": Decimal("1.25"), "ledger": Decimal("36.25")})

    assert "8.33" in run("invoice", "credit", "INV-00001", "7.00", "--reason", "outage")[1]
    assert json.loads(run("invoice", "paid", "INV-00001", "20", "--json")[1])["balance"] == "1.42"
    assert json.loads(run("invoice", "paid", "INV-00001", "--json")[1])["status"] == "paid"
    assert json.loads(run("invoice", "paid", "INV-00002", "12", "--json")[1])["balance"] == "-0.10"
    aged = json.loads(run("invoice", "aging", "--json")[1])
    assert [(one["account"], one["overpaid"]) for one in aged] == [("member=bob", "-0.10")]

    assert run("invoice", "pdf", "INV-00001", "bill.csv")[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "bill.csv").read_text(encoding="utf-8"))))
    assert sum(Decimal(row["amount"] or 0) for row in rows) == Decimal("25.00")
    assert {row["factors"] for row in rows if row["line"]} == {"platform=1.25"}

    assert "Invoice INV-00001" in run("journal", "beancount", "--period", "this-month")[1]
    assert (
        "1.42" not in run("statement", "member=ada", "--basis", "invoices", "--period", "this-year")[1].splitlines()[-1]
    )


def test_the_provider_billed_the_same_and_its_tax_is_no_traffic(run, tmp_path):
    run("import", "log.json", "--map", "id=id,time=at,model=m,input=in,output=out,member=who")
    (tmp_path / "costs.csv").write_text(STATEMENT)
    columns = ("day=Day", "model=Model", "input=Input", "output=Output", "cost=Cost")
    options = [part for column in columns for part in ("--column", column)]
    code, text = run("reconcile", "openai", "--period", "2026-10", "-f", "costs.csv", *options, "--json")
    told = json.loads(text)
    assert Decimal(told["ours"]["cost"]) == Decimal("29.00")
    assert [(one["cause"], Decimal(one["amount"])) for one in told["discrepancies"]] == [("tax", Decimal("5.51"))]
    assert (code, told["proposals"]) == (0, [])


@pytest.fixture
def booked(run):
    """October is imported, closed, and billed by member."""
    run("import", "log.json", "--map", "id=id,time=at,model=m,input=in,output=out,member=who", "--team", "search")
    run("period", "close", "2026-10", "--by", "kim")
    run("invoice", "issue", "--by", "member", "--period", "2026-10", "--yes", "--actor", "kim")
    return run


def test_each_line_can_be_redone_by_its_named_factors(booked, tmp_path):
    booked("invoice", "pdf", "INV-00001", "bill.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "bill.csv").read_text(encoding="utf-8"))))
    lines = [row for row in rows if row["line"]]
    assert lines
    for row in lines:
        name, _, factor = row["factors"].partition("=")
        assert name == "platform"
        redone = Decimal(row["quantity"]) * Decimal(row["list_unit_price_usd"]) * Decimal(factor)
        assert redone.quantize(Decimal("0.01")) == Decimal(row["amount"])


def test_usage_is_on_one_invoice_unless_a_reason_is_kept(booked):
    whole = ("invoice", "issue", "team=search", "--period", "2026-10")
    code, told = booked(*whole)
    assert (code, "is on INV-00001, INV-00002 already" in " ".join(told.split())) == (4, True)
    assert "INV-00003" not in booked("invoice", "list")[1]
    assert booked(*whole, "--allow-overlap", "asked for a copy")[0] == 0
    told = booked("invoice", "show", "INV-00003")[1]
    assert ("asked for a copy" in told, "43.14" in told) == (True, True)  # 36.25 and 19 %


def test_an_account_that_never_was_gets_no_invoice(booked):
    code, _ = booked("invoice", "issue", "member=eve", "--period", "2026-10")
    assert (code, "INV-00003" in booked("invoice", "list")[1]) == (4, False)


def test_a_line_gives_back_at_most_itself_and_a_payment_is_money(booked):
    # Two lines of 12.50: what is too much for one would be little for the invoice.
    line = ("invoice", "credit", "INV-00001", "--line", "1", "--reason", "outage")
    code, told = booked(*line, "12.51")
    assert (code, "Line 1 of invoice INV-00001 is 12.50 USD" in " ".join(told.split())) == (4, True)
    assert booked("invoice", "credit", "INV-00001", "25.01", "--reason", "outage")[0] == 4
    assert booked("invoice", "paid", "INV-00001", "0")[0]
    assert booked("invoice", "paid", "INV-00001", "1", "--on", "2036-01-01")[0]
    assert json.loads(booked("invoice", "show", "INV-00001", "--json")[1])["balance"] == "29.75"
    assert booked(*line, "12.50")[0] == 0
    assert booked(*line, "0.01")[0] == 4
    assert json.loads(booked("invoice", "show", "INV-00001", "--json")[1])["balance"] == "14.87"


@pytest.mark.parametrize("ending", ["pdf", "html", "csv", "xlsx"])
def test_an_invoice_and_a_statement_have_every_form(booked, tmp_path, ending):
    assert booked("invoice", "pdf", "INV-00001", f"bill.{ending}")[0] == 0
    asked = ("--basis", "invoices", "--period", "this-year", "--to", f"statement.{ending}")
    assert booked("statement", "member=ada", *asked)[0] == 0
    begins = {"pdf": b"%PDF", "html": b"<!doctype", "csv": b"", "xlsx": b"PK"}[ending]
    for name in ("bill", "statement"):
        assert (tmp_path / f"{name}.{ending}").read_bytes().lower().startswith(begins.lower())


def test_the_books_take_the_journal(booked, tmp_path):
    loader = pytest.importorskip("beancount.loader")
    assert booked("journal", "beancount", "--period", "this-year", "--to", "books.beancount")[0] == 0
    entries, errors, _ = loader.load_file(str(tmp_path / "books.beancount"))
    assert (errors, len(entries) > 4) == ([], True)
    accounts = ("--account", "income=200", "--account", "receivable=610", "--account", "bank=90")
    assert booked("journal", "xero", "--period", "this-month", *accounts, "--to", "xero.csv")[0] == 0
    assert "INV-00001" in (tmp_path / "xero.csv").read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("version", ["1.4", "1.2"])
def test_focus_adds_up_and_carries_the_invoices_numbers(booked, tmp_path, version):
    assert booked("export", "focus", "focus", "--period", "2026-10", "--focus-version", version)[0] == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "focus" / "cost_and_usage.csv").read_text(encoding="utf-8"))))
    assert sum(int(row["x_RequestCount"]) for row in rows) == len(CALLS)
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal("36.25")
    billed = {number: Decimal(0) for number in ("INV-00001", "INV-00002")}
    for row in rows:
        if row["InvoiceId"] in billed:
            billed[row["InvoiceId"]] += Decimal(row["BilledCost"])
    assert sorted(billed.values()) == [10, 25]


def test_a_person_sees_their_own_month_from_the_usual_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    folder = tmp_path / "claude" / "projects" / "-home-ana-shop"
    folder.mkdir(parents=True)
    line = {"type": "assistant", "timestamp": "2026-10-05T09:00:05Z", "sessionId": "s", "requestId": "r", "uuid": "u"}
    usage = {"input_tokens": 1_000_000, "output_tokens": 1, "cache_read_input_tokens": 0}
    rows = [
        {**line, "message": {"id": "msg_1", "model": "claude-haiku-4-5", "usage": {**usage, "output_tokens": count}}}
        for count in (1, 200_000)
    ]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, text = run("import", "claude-code")
    assert (code, "1 call recorded" in text, "--period 2026-10" in text) == (0, True, True)
    totals = json.loads(run("report", "--by", "model", "--period", "2026-10", "--json")[1])
    assert "2.5" in json.dumps(totals)  # 1.00 of input and 1.00 of output, times 1.25
    assert "0 calls recorded" in run("import", "claude-code")[1]
