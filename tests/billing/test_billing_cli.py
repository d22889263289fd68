"""``tokenmeter period``, ``invoice`` and ``reconcile`` from the command line."""

import json
from contextlib import closing

import pytest

from tokenmeter.stores import open_store


@pytest.fixture
def run(tmp_path, monkeypatch, run_command, make_call):
    """Run a command on a ledger with a call of October; gives the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("OPENAI_ADMIN_KEY", raising=False)
    store = open_store(tmp_path / "usage.db")
    store.settle(make_call("12.3456", at="2026-10-10T10:00", member="ada", team="search"))
    store.close()
    (tmp_path / "tokenmeter.toml").write_text(
        'store = "sqlite:///usage.db"\n[billing.seller]\nname = "Platform GmbH"\n'
        '[[billing.taxes]]\nname = "VAT"\nrate = "0.19"\n'
    )

    def run(*arguments):
        ended = run_command(*arguments)
        return ended.code, ended.out + ended.err

    return run


def test_a_slip_in_the_settings_is_told_with_its_file(run, tmp_path):
    (tmp_path / "tokenmeter.toml").write_text('store = "sqlite:///usage.db"\n[billing]\ncurency = "EUR"\n')
    for command in (("invoice", "draft", "team=search"), ("statement", "team=search")):
        code, told = run(*command)
        assert (code, "tokenmeter.toml: billing: unknown key 'curency'" in told) == (2, True)


def test_from_the_closing_to_the_credit_note(run, tmp_path):
    assert "No period is closed" in run("period", "status")[1]
    assert "billed $12.345600000000" in run("period", "close", "2026-10", "--by", "kim")[1]
    code, text = run("invoice", "draft", "team=search", "--period", "2026-10")
    assert (code, "(draft)" in text) == (0, True)
    issued = json.loads(run("invoice", "issue", "team=search", "--period", "2026-10", "--json")[1])
    assert (issued["number"], issued["totals"]["total"]) == ("INV-00001", "14.70")
    assert issued["seller"]["name"] == "Platform GmbH"
    assert "INV-00001" in run("invoice", "list")[1]
    for ending in ("html", "csv"):
        assert run("invoice", "pdf", "INV-00001", f"invoice.{ending}")[0] == 0
        assert "INV-00001" in (tmp_path / f"invoice.{ending}").read_text()
    code, told = run("invoice", "pdf", "INV-00001", "a.html", "--to", "b.html")
    assert (code, "Name one file: --to b.html, or a.html" in told) == (2, True)
    assert not (tmp_path / "a.html").exists()
    assert "CN-00001" in run("invoice", "credit", "INV-00001", "1.00", "--reason", "outage")[1]
    assert "paid" in run("invoice", "paid", "INV-00001", "--note", "wire")[1]
    assert json.loads(run("period", "status", "--json")[1])["closed"][0]["closed_by"] == "kim"


def test_the_terminal_shows_an_invoice_with_what_is_on_its_page(run, tmp_path, make_call):
    with closing(open_store(tmp_path / "usage.db")) as store:
        store.settle(make_call(None, at="2026-10-11T10:00", member="bob", team="search", model="mystery"))
        store.settle(make_call("3", at="2026-10-11T10:00", team="ads", quantity=2_000_000))
    run("period", "close", "2026-10")
    allowed = ("--allow-unpriced", "--allow-overlap", "asked for a copy", "--on", "2026-11-02", "--actor", "kim")
    code, told = run("invoice", "issue", "team=search", "--period", "2026-10", "--lines-by", "member", *allowed)
    lines = [line.strip() for line in told.splitlines()]
    assert code == 0
    assert lines[1:5] == ["Date: 2026-11-02", "Due: 2026-12-02", "Period: 2026-10 (UTC)", "Team: search"]
    assert "Member ada; 1,000 x 12345.6 / 1M = 12.3456 USD" in lines
    assert "Member bob; 1,000" in lines
    assert any(line.startswith("2  mystery input tokens") and line.endswith("unpriced") for line in lines)
    text = " ".join(told.split())  # however wide the terminal is
    assert "1 charge has no known price and is not billed here. Some of this usage is on another invoice" in text
    assert "as well: asked for a copy" in text
    assert "Issued by kim." in lines
    assert run("invoice", "show", "INV-00001")[1] == told
    owed = run("invoice", "aging")[1]
    assert ("1-30" in owed, "days_30" in owed, "not_due" in owed) == (True, False, False)
    paid = run("invoice", "paid", "INV-00001", "20", "--actor", "lee")[1]
    assert [line.split()[-1] for line in paid.splitlines() if "paid too much" in line] == ["5.30"]
    assert "2,000,000 x 1.5 / 1M = 3 USD" in run("invoice", "issue", "team=ads", "--period", "2026-10")[1]


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (("invoice", "pdf", "INV-00001", "{}.pdf"), b"%PDF-"),
        (("invoice", "pdf", "INV-00001", "--to", "{}.html"), b"<!DOCTYPE"),
        (("invoice", "pdf", "INV-00001", "{}.XLSX"), b"PK"),
        (("invoice", "pdf", "INV-00001", "{}.csv"), b"invoice"),
        (("statement", "team=search", "--period", "2026-10", "--to", "{}.pdf"), b"%PDF-"),
        (("journal", "hledger", "--period", "2026-10", "--to", "{}.journal"), b""),
    ],
)
def test_a_document_replaces_a_file_whole_and_who_may_read_it_stays(run, tmp_path, arguments, beginning):
    pytest.importorskip("typst")
    run("period", "close", "2026-10")
    run("invoice", "issue", "team=search", "--period", "2026-10")
    path = tmp_path / next(one for one in arguments if "{}" in one).format("made")
    path.write_text("what was there")
    path.chmod(0o640)
    code, text = run(*[one.format("made") for one in arguments])
    assert (code, path.name in text) == (0, True)
    assert path.read_bytes().startswith(beginning)
    assert path.read_bytes() != b"what was there"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []
    missing = [one.format("no/such/place") for one in arguments]
    assert "does not exist; make it first" in run(*missing)[1]


def test_a_dash_is_standard_output_and_nothing_else_is_said_there(run, tmp_path):
    run("period", "close", "2026-10")
    number = json.loads(run("invoice", "issue", "team=search", "--period", "2026-10", "--json")[1])
    before = sorted(tmp_path.iterdir())
    assert run("export", "report", "-", "--by", "member", "--period", "2026-10")[1].startswith("period_start,")
    journal = ("journal", "hledger", "--period", number["issued_on"][:7])
    assert run(*journal, "--to", "-") == run(*journal)
    assert run(*journal)[1].startswith("account ")
    code, text = run("export", "focus", "-", "--period", "2026-10")
    assert (code, "name a folder" in text) == (2, True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command", [("reconcile", "openai", "--file", "bill.csv"), ("quotas",), ("statement", "team=a")]
)
def test_a_ledger_that_is_not_there_is_refused_and_not_made(run, tmp_path, command):
    (tmp_path / "usage.db").unlink()
    (tmp_path / "bill.csv").write_text("day,cost\n")
    code, text = run(*command)
    assert (code, "no ledger" in text.lower()) == (2, True)
    assert not (tmp_path / "usage.db").exists()


def test_what_the_ledger_refuses_ends_with_code_4(run):
    assert run("invoice", "issue", "team=search", "--period", "2026-10")[0] == 4
    assert run("invoice", "show", "INV-00009")[0] == 4


@pytest.mark.parametrize("account", ["search", "colour=red", "team=", "team=search team=ads"])
def test_an_account_must_be_named_and_once(run, account):
    assert run("invoice", "draft", *account.split(), "--period", "2026-10")[0] == 2


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("invoice draft --by membr", "--by takes member"),
        ("invoice issue --by member,team", "--by takes member"),
        ("invoice draft team=search --lines-by membr", "--lines-by takes member"),
        ("invoice draft member=ada --by member", "An invoice for every member is asked for"),
        ("invoice draft nobody", "as FIELD=VALUE, such as member=ada"),
        ("invoice draft colour=red", "as FIELD=VALUE, such as member=ada"),
        ("invoice draft membr=ada", "Did you mean 'member'?"),
        ("invoice draft", "such as member=ada; or --by member for an invoice to each"),
        ("invoice draft member=ada member=bob", "member is given twice: ada, bob"),
        ("statement nobody", "as FIELD=VALUE, such as member=ada"),
        ("statement member=ada member=bob", "member is given twice: ada, bob"),
        ("invoice credit INV-00001 rest --line 2 --reason x", "Say how much of line 2 is given back"),
        ("handover stripe --by membr", "--by takes member"),
        ("handover stripe --customer ada=cus_A --customer ada=cus_B", "--customer ada is given twice: cus_A, cus_B"),
        ("import none.jsonl --tag job=day --tag job=night", "--tag job is given twice: day, night"),
        ("import none.jsonl --map id=a,time=b --map id=c", "--map id is given twice: a, c"),
        ("import none.jsonl --tag job", "--tag 'job' must read NAME=VALUE"),
        ("handover stripe --customer ada", "--customer 'ada' must read NAME=VALUE"),
        ("journal beancount --period 2026-10 --option part", "--option 'part' must read NAME=VALUE"),
        ("reconcile openai --period 2026-10 --rate EUR", "--rate 'EUR' must read NAME=VALUE"),
        ("reconcile openai --period 2026-10 --file x.csv --column cost", "--column 'cost' must read NAME=VALUE"),
    ],
)
def test_a_refusal_names_what_was_typed(run, command, told):
    code, printed = run(*command.split())
    assert code == 2
    assert told in " ".join(printed.split())


def test_reconciling_with_a_file_tells_by_its_exit_code(run, tmp_path):
    columns = ("--column", "day=d", "--column", "model=m", "--column", "cost=c")
    for cost, code in (("12.3456", 0), ("13.00", 1)):
        (tmp_path / "s.csv").write_text(f"d,m,c\n2026-10-10,gpt-5,{cost}\n")
        assert run("reconcile", "openai", "--period", "2026-10", "--file", "s.csv", *columns)[0] == code
    told = json.loads(run("reconcile", "openai", "-p", "2026-10", "-f", "s.csv", *columns, "--post", "--json")[1])
    assert (told["by_cause"], len(told["posted"])) == ({"price": "0.654400000000"}, 1)
    assert (told["ok"], told["after"]["ok"], told["after"]["difference"]) == (False, True, "0.000000000000")
    assert run("reconcile", "openai", "-p", "2026-10", "-f", "s.csv", *columns)[0] == 0


def test_a_statement_of_a_name_that_the_ledger_does_not_have_says_so(run):
    code, told = run("statement", "team=serach", "--period", "2026-10")
    assert (code, "Nothing of team=serach stands in 2026-10 or before it" in told) == (0, True)
    for known in ("2026-10", "2026-11"):  # in the second month there is only what was carried over
        assert "Nothing of" not in run("statement", "team=search", "--period", known)[1]


def test_what_a_reconciliation_posts_goes_on_an_account_with_the_platforms_multiplier(run, tmp_path):
    (tmp_path / "s.csv").write_text("d,m,c\n2026-10-10,gpt-5,13.3456\n")
    asked = ("reconcile", "openai", "-p", "2026-10", "-f", "s.csv", "--column", "day=d", "--column", "model=m")
    asked += ("--column", "cost=c")
    whose = ("--on-account", "team=search", "--multiplier", "1.25")
    code, told = run(*asked, *whose)
    assert (code, "give --post" in told) == (2, True)
    assert run(*asked, "--post", "--on-account", "colour=red")[0] == 2
    code, told = run(*asked, "--post", *whose)
    assert (code, "1 adjustment was appended; left to do: nothing." in told) == (0, True)
    (row,) = json.loads(run("report", "--by", "team", "--period", "2026-10", "--json")[1])["rows"]
    assert (row["group"]["team"], row["contracted_cost"], row["billed_cost"]) == (
        *("search", "13.345600000000", "13.595600000000"),
    )


def test_reconciling_without_an_admin_key_says_which_is_missing(run):
    code, text = run("reconcile", "openai")
    assert (code, "OPENAI_ADMIN_KEY" in text) == (2, True)


def test_commands_about_the_books_cut_months_as_the_settings_bill_them(run, tmp_path):
    settings = (tmp_path / "tokenmeter.toml").read_text()
    (tmp_path / "tokenmeter.toml").write_text(
        settings.replace("[billing.seller]", '[billing]\ntz = "Pacific/Auckland"\n[billing.seller]')
    )
    assert "2026-10 (Pacific/Auckland) closed" in run("period", "close", "2026-10")[1]
    assert run("invoice", "issue", "team=search", "--period", "2026-10")[0] == 0
    code, text = run("invoice", "coverage", "--period", "2026-10")
    assert (code, "2026-10 (Pacific/Auckland): $12.345600000000 on 1 invoice + " in text) == (0, True)
    assert "2026-10 (Pacific/Auckland)" in run("statement", "team=search", "--period", "2026-10")[1]
    assert run("invoice", "coverage", "--period", "2026-10", "--tz", "UTC")[0] == 1
