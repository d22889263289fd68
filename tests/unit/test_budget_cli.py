"""`tokenmeter budgets ...`: budgets are set, applied, ended and looked into from the command line."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.usage import Consumption, Observation, Usage


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """A ledger in which ada has spent two dollars."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TOKENMETER_STORE", f"sqlite:///{tmp_path}/ledger.db")
    rows = [{"provider": "openai", "model": "m", "sku_meter": "output", "unit_price": "1", "per": 1}]
    meter = tokenmeter.make_meter(prices=rows)
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m", max_output_tokens=2),
        attribution=Attribution(member="ada"),
    )
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 2})),))
    meter.settle(meter.authorize(call), Outcome(observation=seen))
    meter.close()
    return tmp_path


@pytest.fixture
def run(ledger, run_command):
    """What a command line prints; fails when it ends with another exit code."""

    def call(*arguments, code=0):
        ended = run_command(*arguments)
        assert ended.code == code, ended
        return ended.out + ended.err

    return call


def test_a_budget_is_set_changed_and_ended_and_its_history_is_told(run):
    run("budgets", "set", "members", "member=*", "limit_usd=5", "tag:env=prod", "--by", "grace", "--reason", "launch")
    run("budgets", "set", "members", "limit_usd=8", "thresholds=50,90", "hard=false", "--by", "ada")
    told = json.loads(run("budgets", "history", "members", "--json"))["changes"]
    assert [(one["version"], one["by"], one["reason"], one["source"]) for one in told] == [
        (1, "grace", "launch", "command line"),
        (2, "ada", "", "command line"),
    ]
    assert told[1]["budget"] == {
        "name": "members",
        "member": "*",
        "tags": {"env": "prod"},
        "limit_usd": "8",
        "period": "month",
        "thresholds": [50, 90],
        "hard": False,
    }
    assert "ended" in run("budgets", "retire", "members", "--by", "ada")
    history = run("budgets", "history")
    assert [line.split()[2] for line in history.splitlines()[2:]] == ["members"] * 3, history
    assert "in force: none" in run("budgets", "retire", "members", code=2)


def test_a_mistyped_name_is_told_as_a_new_budget(run):
    assert "members is a new budget." in run("budgets", "set", "members", "member=*", "limit_usd=5")
    assert "new budget" not in run("budgets", "set", "members", "limit_usd=8")
    told = run("budgets", "set", "membrs", "limit_usd=9")
    assert "membrs is a new budget; members is as it was. `tokenmeter budgets retire membrs` takes it back." in told
    told = json.loads(run("budgets", "set", "mambers", "period=day", "limit_usd=9", "--json"))
    assert [one["name"] for one in told] == ["mambers"]


def test_the_name_of_a_budget_that_was_ended_is_told_as_a_new_one(run):
    run("budgets", "set", "members", "member=*", "limit_usd=5")
    run("budgets", "retire", "members")
    told = run("budgets", "set", "members", "limit_usd=9")
    assert "members is a new budget: nothing is taken from the one that was ended (member=*, limit_usd=5, " in told
    assert "`tokenmeter budgets retire members` takes it back." in told


def test_the_list_shows_what_was_spent_before_there_was_a_budget_and_writes_nothing(run, ledger):
    (ledger / "tokenmeter.toml").write_text('[[budgets]]\nname = "members"\nmember = "*"\nlimit_usd = 5\n')
    shown = run("budgets")
    assert "member=ada" in shown
    assert "$2.00" in shown
    assert "40%" in shown
    assert json.loads(run("budgets", "history", "--json")) == {"changes": [], "grants": []}


def test_a_file_is_applied_after_a_dry_run_and_what_it_has_no_longer_is_ended(run, ledger):
    file = Path("policy.toml")
    file.write_text('[[budgets]]\nname = "a"\nlimit_usd = 5\n\n[[budgets]]\nname = "b"\nlimit_tokens = 9\n')
    assert "a: would be set, version 1" in run("budgets", "apply", str(file), "--dry-run")
    assert json.loads(run("budgets", "history", "--json"))["changes"] == []
    run("budgets", "apply", str(file))
    assert "Nothing to change" in run("budgets", "apply", str(file))
    file.write_text('[[budgets]]\nname = "a"\nlimit_usd = 6\n')
    shown = run("budgets", "apply", str(file), "--dry-run")
    assert "a: would be set, version 2" in shown
    assert "b: would be ended, version 2" in shown
    run("budgets", "apply", str(file), "--reason", "quarter")
    assert [one["budget"] for one in json.loads(run("budgets", "--json"))] == ["a"]


@pytest.mark.parametrize("name", ["tokenmeter.toml", "policy.toml"], ids=["the settings", "another file"])
def test_who_applies_a_file_and_why_is_in_the_history_each_time(run, name):
    for limit, who in (5, "grace"), (6, "ada"), (6, "nobody"):
        rows = "".join(f'[[budgets]]\nname = "{one}"\nroute = "/{one}"\nlimit_usd = {limit}\n' for one in "ab")
        Path(name).write_text(rows)
        run("budgets", "apply", name, "--by", who, "--reason", f"{limit} dollars")
    for one in "ab":
        told = json.loads(run("budgets", "history", one, "--json"))["changes"]
        assert [(change["by"], change["reason"]) for change in told] == [("grace", "5 dollars"), ("ada", "6 dollars")]


def test_what_is_set_once_more_is_told_as_no_change(run):
    run("budgets", "set", "members", "member=*", "limit_usd=5")
    assert "version 2: limit_usd 5 -> 8" in run("budgets", "set", "members", "limit_usd=8")
    assert "Nothing to change" in run("budgets", "set", "members", "limit_usd=8")
    assert json.loads(run("budgets", "set", "members", "limit_usd=8", "--json")) == []


def test_a_dry_run_before_there_is_a_ledger_says_so_and_makes_none(run, ledger):
    Path("policy.toml").write_text(f'store = "sqlite:///{ledger}/new.db"\n[[budgets]]\nname = "a"\nlimit_usd = 5\n')
    shown = run("budgets", "apply", "policy.toml", "--dry-run", "--store", f"sqlite:///{ledger}/new.db")
    assert f"There is no ledger at {ledger}/new.db yet: everything would be new." in shown
    assert "a: would be set, version 1: all calls, limit_usd=5, period=month" in shown
    assert not Path("new.db").exists()


def test_the_list_says_how_much_of_it_has_no_known_price(run):
    run("budgets", "set", "all", "limit_usd=5", "period=total")
    assert "assumed" not in run("budgets", "--tz", "UTC")
    usage = {"prompt_tokens": 1000, "completion_tokens": 0, "total_tokens": 1000}
    Path("answer.json").write_text(json.dumps({"model": "not-priced", "usage": usage}), encoding="utf-8")
    run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    shown, (balance,) = run("budgets"), json.loads(run("budgets", "--json"))
    assert Decimal(balance["assumed"]) > 0
    assert Decimal(balance["spent"]) == 2 + Decimal(balance["assumed"])
    assert "assumed" in shown
    assert f"${balance['assumed']}" in shown


def test_credit_is_granted(run):
    run("budgets", "set", "credit", "member=*", "limit_usd=0", "period=total")
    shown = run("budgets", "grant", "credit", "25.50", "member=ada", "--reason", "invoice 7", "--key", "p1")
    assert "+25.50 usd for member=ada" in shown
    run("budgets", "grant", "credit", "25.50", "member=ada", "--reason", "invoice 7", "--key", "p1")
    (balance,) = json.loads(run("remaining", "member=ada", "--json"))
    assert (balance["limit"], balance["spent"], balance["remaining"]) == ("25.5", "2", "23.5")
    assert len(json.loads(run("budgets", "history", "credit", "--json"))["grants"]) == 1


def test_a_grant_names_its_key(run, ledger):
    meter = tokenmeter.make_meter(store=f"sqlite:///{ledger}/ledger.db")
    call = Call(
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        facts=RequestFacts(model="m"),
        attribution=Attribution(),
        api_key=ApiKey("f" * 32, "abcd", "prod"),
    )
    seen = Observation(consumptions=(Consumption(model="m", usage=Usage({"output": 2})),))
    meter.settle(meter.authorize(call), Outcome(observation=seen))
    meter.close()
    run("budgets", "set", "keys", "api_key=*", "limit_usd=5")
    granted = json.loads(run("budgets", "grant", "keys", "1", "api_key=prod", "--reason", "r", "--json"))
    (told,) = json.loads(run("budgets", "history", "keys", "--json"))["grants"]
    assert granted["scope"] == told["scope"] == {"api_key": "prod"}
    assert "for api_key=prod" in run("budgets", "history", "keys")


def test_small_and_absent_caps_are_told_apart(run):
    run("budgets", "set", "small", "member=*", "limit_usd=0.00042", "hard=false")
    shown = run("budgets")
    assert "$0.00042" in shown
    assert "-$1.9996" in shown
    run("budgets", "retire", "small")
    run("budgets", "set", "least", "member=*", "limit_usd=0.00000042", "hard=false")
    assert "$0.00000042" in run("budgets")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("set", "x", "limit_usd"), "FIELD=VALUE"),
        (("set", "x", "limit_used=1"), "did you mean 'limit_usd'"),
        (("set", "x", "limit_usd=much"), "number"),
        (("grant", "x", "1", "--reason", "r"), "No budget is called 'x'"),
        (("apply", "nothing.toml"), "does not exist"),
    ],
)
def test_what_is_wrong_is_said(run, arguments, problem):
    assert problem in run("budgets", *arguments, code=2)


def test_a_budget_that_nobody_has_called_under_is_told_with_what_it_says(run):
    run("budgets", "set", "teams", "team=*", "limit_usd=5")
    assert "teams: team=*, limit_usd=5, period=month; nothing is counted in it yet." in run("budgets")
    assert json.loads(run("budgets", "--json")) == []


def test_applying_a_file_does_not_complain_of_what_it_is_about_to_change(run):
    Path("tokenmeter.toml").write_text('[[budgets]]\nmember = "*"\nlimit_usd = 5\nname = "m"\n', encoding="utf-8")
    run("budgets", "apply", "tokenmeter.toml")
    run("budgets", "set", "m", "limit_usd=8")
    told = run("budgets", "apply", "tokenmeter.toml")
    assert "m: set, version 3" in told
    assert "that counts" not in told


def test_what_no_budget_concerns_is_told_with_the_budgets_that_there_are(run):
    assert "There is no budget." in run("remaining", "member=ada")
    for name in ("k", "v"):
        run("budgets", "set", name, f"route=/{name}", "limit_usd=5")
    assert run("remaining", "member=zz").strip() == "No budget in force concerns member=zz. In force: k, v."
    assert run("remaining", "member=zz", "--json").strip() == "[]"


def test_a_change_is_told_with_what_was_before_it_also_by_a_dry_run(run):
    row = {"name": "members", "member": "*", "limit_usd": 60, "period": "week", "week_start": "friday"}
    Path("policy.toml").write_text("[[budgets]]\n" + "".join(f"{key} = {json.dumps(row[key])}\n" for key in row))
    first = ("members", "member=*", "limit_usd=50", "period=week", "week_start=thursday")
    assert "members: would be set, version 1: member=*, limit_usd=50" in run("budgets", "set", *first, "--dry-run")
    assert json.loads(run("budgets", "--json")) == []
    run("budgets", "set", *first)
    told = "version 2: limit_usd 50 -> 60"
    assert f"would be set, {told}\n" in run("budgets", "set", "members", "limit_usd=60", "--dry-run")
    assert "Nothing to change" in run("budgets", "set", "members", "limit_usd=50", "--dry-run")
    shown = run("budgets", "apply", "policy.toml", "--dry-run")
    assert f"members: would be set, {told}, week_start thursday -> friday\n" in shown
    assert f"members: set, {told}\n" in run("budgets", "set", "members", "limit_usd=60")
    changes = json.loads(run("budgets", "history", "members", "--json"))["changes"]
    assert [one["before"] and one["before"]["limit_usd"] for one in changes] == [None, "50"]


def ask_elsewhere(_: str) -> int:
    return 5


def set_here(ledger, **row):
    meter = tokenmeter.make_meter(store=f"sqlite:///{ledger}/ledger.db")
    meter.budgets.set(row)
    meter.close()


def test_the_history_is_in_words(run, ledger):
    set_here(ledger, name="asked", member="*", limit=ask_elsewhere, period="week", week_start=3, thresholds=[50, 90])
    set_here(ledger, name="table", team="*", limit={"a": {"usd": 5, "requests": 2}, "b": "unlimited", "c": 0})
    shown = " ".join(run("budgets", "history").split())
    assert f"limit asked of {__name__}:ask_elsewhere" in shown
    assert "week_start=thursday" in shown
    assert "thresholds=50,90" in shown
    assert "limit a 5 usd and 2 requests; b unlimited; c 0" in shown


def test_where_a_limit_is_not_known_the_answer_has_an_exit_code_of_its_own(run, ledger):
    """`tokenmeter remaining ... && job` must not start a job whose calls would be refused."""
    set_here(ledger, name="asked", member="*", limit=ask_elsewhere, period="day")
    assert "not known here" in run("remaining", "member=ada", code=6)
    run("budgets", "set", "used", "member=*", "limit_usd=1")
    run("remaining", "member=ada", code=5)
    run("budgets", "set", "used", "limit_usd=5")
    run("remaining", "member=ada", code=6)
    run("budgets", "set", "asked", "hard=false")
    run("remaining", "member=ada")


def test_what_is_given_before_a_commands_name_holds_for_it(run, ledger):
    other = f"sqlite:///{ledger}/other.db"
    (ledger / "other.toml").write_text(f'store = "{other}"\n')
    run("budgets", "--store", other, "set", "caps", "member=*", "limit_usd=5")
    assert not json.loads(run("budgets", "--json", "history"))["changes"]
    run(
        "budgets",
        "--config",
        ledger / "other.toml",
        "--store",
        other,
        "grant",
        "--reason",
        "r",
        "--",
        "caps",
        "1",
        "member=a",
    )
    there = json.loads(run("budgets", "--store", other, "--json", "history", "caps"))
    assert [one["name"] for one in there["changes"]] == ["caps"]
    assert len(there["grants"]) == 1
    # What stands nearer to the command counts.
    assert not json.loads(
        run("budgets", "--json", "--store", other, "history", "--store", f"sqlite:///{ledger}/ledger.db")
    )["changes"]
    assert "No such option: --tz" in run("budgets", "--tz", "Europe/Berlin", "retire", "caps", code=2)


def test_a_field_given_twice_is_refused(run):
    run("budgets", "set", "caps", "member=*", "limit_usd=5")
    for words in (
        ("remaining", "member=ada", "member=bob"),
        ("budgets", "set", "caps", "limit_usd=5", "limit_usd=6"),
        ("budgets", "set", "caps", "tag:env=prod", "tag:env=test"),
        ("budgets", "grant", "caps", "1", "member=ada", "member=bob", "--reason", "r"),
        ("raise", "caps", "1", "member=ada", "member=bob", "--reason", "r"),
    ):
        assert "is given twice" in run(*words, code=2)
    told = json.loads(run("budgets", "history", "--json"))
    assert len(told["changes"]) == 1
    assert not told["grants"]


def test_nothing_after_the_sign_takes_a_tag_away(run):
    run("budgets", "set", "caps", "tag:env=prod", "tag:job=nightly", "limit_usd=5")
    run("budgets", "set", "caps", "tag:env=", "limit_usd=6")
    assert json.loads(run("budgets", "history", "caps", "--json"))["changes"][-1]["budget"]["tags"] == {
        "job": "nightly"
    }
    run("budgets", "set", "caps", "tag:job=", "member=ada")
    assert "tags" not in json.loads(run("budgets", "history", "caps", "--json"))["changes"][-1]["budget"]
