"""The month's end from the command line, with amounts worth dollars: from a log to what finance books."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pytest

from tokenmeter.__main__ import main

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
def run(tmp_path, monkeypatch, capsys):
    """A command line in a folder of its own: exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "tokenmeter.toml").write_text(SETTINGS)
    rows = [
        {"id": f"r{at}", "at": "2026-10-09T12:00:00Z", "m": "gpt-5-mini", "in": before, "out": after, "who": member}
        for at, (member, before, after) in enumerate(CALLS)
    ]
    (tmp_path / "log.json").write_text(json.dumps(rows))

    def command(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code or 0, capsys.readouterr().out

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
    (tmp_path / "costs.csv").write_text(STATEMENT.replace("VAT 19%", ""))
    columns = ("day=Day", "model=Model", "input=Input", "output=Output", "cost=Cost")
    options = [part for column in columns for part in ("--column", column)]
    code, text = run("reconcile", "openai", "--period", "2026-10", "-f", "costs.csv", *options, "--json")
    assert Decimal(json.loads(text)["ours"]["cost"]) == Decimal("29.00")
    assert code == 1  # an amount that names neither a model nor what it is for needs a look
    (tmp_path / "costs.csv").write_text(STATEMENT.splitlines()[0] + "\n" + STATEMENT.splitlines()[1] + "\n")
    code, text = run("reconcile", "openai", "--period", "2026-10", "-f", "costs.csv", *options, "--json")
    assert (code, json.loads(text)["discrepancies"]) == (0, [])
