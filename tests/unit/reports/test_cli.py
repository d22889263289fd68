from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tokenmeter.__main__ import main
from tokenmeter.attribution import Attribution
from tokenmeter.cli.app import out
from tokenmeter.default import make_meter
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry, new_id, utcnow
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.providers import observe
from tokenmeter.reports import Query, read_report
from tokenmeter.settings import Settings
from tokenmeter.stores import open_store

LINES = [
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795000000,
        "model": "gpt-5-mini",
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    },
    {
        "id": "batch_req_1",
        "custom_id": "a",
        "error": None,
        "response": {
            "status_code": 200,
            "body": {
                "id": "chatcmpl-2",
                "object": "chat.completion",
                "created": 1795000001,
                "model": "gpt-5-mini",
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            },
        },
    },
    {"id": "batch_req_2", "custom_id": "b", "response": {"status_code": 400, "body": {"error": {}}}, "error": None},
    {
        "custom_id": "c",
        "result": {
            "type": "succeeded",
            "message": {
                "id": "msg_1",
                "type": "message",
                "model": "claude-sonnet-4-5",
                "usage": {"input_tokens": 10, "output_tokens": 5, "service_tier": "batch"},
            },
        },
    },
    {"custom_id": "d", "result": {"type": "expired"}},
]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a configuration, away from the user's own files."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOKENMETER_STORE", "TOKENMETER_CONFIG", "TOKENMETER_TZ"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(out, "_width", 120)  # a console reads COLUMNS once, when it is made
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "tokenmeter.toml").write_text(
        'store = "sqlite:///usage.db"\n'
        "[[budgets]]\nname = 'members'\nmember = '*'\nlimit_usd = '0.01'\n"
        "[[budgets]]\nname = 'calls'\nlimit_requests = 1000\nhard = false\n"
    )
    return tmp_path


@pytest.fixture
def ledger(place: Path, make_entry: Callable[..., Entry]) -> Path:
    """Three calls in November."""
    store = open_store(place / "usage.db")
    store.settle(make_entry("2026-11-02T10:00", who={"member": "ada"}, key="prod", input=600, output=500))
    store.settle(make_entry("2026-11-02T11:00", "claude-opus-4-1", who={"member": "bob"}, input=2_000, output=9))
    store.settle(make_entry("2026-11-03T00:10", "unheard-of", who={"member": "bob"}, input=5))
    store.close()
    return place / "usage.db"


@pytest.fixture
def run(run_command: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`run_command`, which has no type where it is defined."""
    return run_command


def look_through(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A terminal of this width, rather than a pipe."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(out, "_force_terminal", True)
    monkeypatch.setattr(out, "width", columns)


@pytest.mark.usefixtures("ledger")
def test_report_prints_the_table(run: Callable[..., Outcome]) -> None:
    outcome = run("report", "--by", "member,model", "--period", "2026-11")
    assert outcome.code == 0
    assert outcome.out.startswith("Usage and cost by member, model: 2026-11 (UTC)")
    assert "claude-opus-4-1" in outcome.out


def test_report_as_json_is_the_report(run: Callable[..., Outcome], ledger: Path) -> None:
    outcome = run("report", "-b", "member", "-b", "model", "-w", "member=bob", "-w", "member=", "--json")
    store = open_store(ledger)
    expected = read_report(store, Query.parse(by=["member", "model"], where={"member": ["bob", None]})).to_dict()
    store.close()
    assert {**json.loads(outcome.out), "created_at": None} == {**expected, "created_at": None}


@pytest.mark.usefixtures("ledger")
def test_entries_are_newest_first_and_as_json_one_per_line(run: Callable[..., Outcome]) -> None:
    assert "unheard-of" in run("entries", "--limit", "1").out
    lines = run("entries", "--json", "--where", "member=bob").out.splitlines()
    assert [json.loads(line)["model"] for line in lines] == ["unheard-of", "claude-opus-4-1"]
    assert "No entries match." in run("entries", "--period", "2020").out


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("entries", "--limit", "9" * 50), "--limit"),
        (("tail", "--limit", "9" * 50), "--limit"),
        (("budgets", "--tz", "Mars/Olympus"), "Mars/Olympus"),
        (("remaining", "--tz", "Mars/Olympus"), "Mars/Olympus"),
        (("verify", "--head", ""), "64 hexadecimal digits"),
        (("verify", "--since", "yesterday"), "64 hexadecimal digits"),
    ],
    ids=lambda one: " ".join(one)[:30] if isinstance(one, tuple) else "",
)
def test_a_value_that_none_can_be_is_a_wrong_argument(
    run: Callable[..., Outcome], arguments: tuple[str, ...], said: str
) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert said in outcome.err


@pytest.mark.usefixtures("ledger")
def test_a_kept_head_is_known_in_capitals_too(run: Callable[..., Outcome]) -> None:
    head = json.loads(run("verify", "--json").out)["head"]
    assert run("verify", "--head", head.upper()).code == 0
    outcome = run("verify", "--head", "11" * 32)
    assert outcome.code == 1
    assert outcome.out.startswith("1 fault in 3 entries:")


@pytest.mark.usefixtures("ledger")
def test_export_writes_files_and_manifests(run: Callable[..., Outcome], place: Path) -> None:
    assert run("export", "entries", "e.csv").code == 0
    with (place / "e.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 3
    assert run("export", "report", "r.jsonl", "--by", "member").code == 0
    assert run("export", "charges", "c.parquet").code == 0
    written = json.loads(run("export", "focus", "november", "--period", "2026-11", "--json").out)
    assert set(written) == {"cost_and_usage", "invoice_detail", "billing_period"}
    assert (place / "november" / "cost_and_usage.csv.manifest.json").exists()


@pytest.mark.usefixtures("ledger")
def test_export_refuses_to_overwrite_until_told(run: Callable[..., Outcome]) -> None:
    assert run("export", "entries", "e.csv").code == 0
    refused = run("export", "entries", "e.csv")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert run("export", "entries", "e.csv", "--overwrite").code == 0


@pytest.mark.usefixtures("ledger")
def test_wrong_arguments_end_with_2_and_an_answer(run: Callable[..., Outcome]) -> None:
    assert "Did you mean 'model'" in run("report", "--by", "modle").err
    assert run("report", "--by", "modle").code == 2
    error = json.loads(run("report", "--period", "Nov", "--json").err)
    assert error["error"] == "ConfigurationError"
    assert "DIMENSION=VALUE" in run("report", "--where", "ada").err
    assert run("nonsense").code == 2
    assert run("report", "--store", "bogus:x").code == 2


@pytest.mark.parametrize("command", ["report", "budgets", "entries", "doctor", "sql"])
def test_a_missing_ledger_is_said_and_not_made(run: Callable[..., Outcome], place: Path, command: str) -> None:
    outcome = run(command, "SELECT 1") if command == "sql" else run(command)
    assert outcome.code == 2
    assert "There is no ledger at usage.db" in outcome.err
    assert not (place / "usage.db").exists()
    assert "ledger.db" in run("report", "--config", str(_empty_config(place))).err


@pytest.mark.usefixtures("ledger")
def test_a_ledger_in_the_home_directory_is_found_where_a_program_finds_it(
    run: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USERPROFILE", str(place))
    assert run("report", "--store", "sqlite:///~/usage.db").out == run("report").out != ""


def _empty_config(place: Path) -> Path:
    path = place / "empty.toml"
    path.write_text("")
    return path


def test_a_broken_ledger_ends_with_3(run: Callable[..., Outcome], place: Path) -> None:
    (place / "usage.db").write_bytes(b"this is no database" * 1000)
    outcome = run("report")
    assert outcome.code == 3
    assert outcome.err


@pytest.mark.usefixtures("ledger")
def test_verify_says_that_all_is_well(run: Callable[..., Outcome]) -> None:
    outcome = run("verify")
    assert (outcome.code, outcome.out.splitlines()[0][:17]) == (0, "Nothing is wrong.")
    assert json.loads(run("verify", "--json").out)["ok"] is True


def test_verify_explains_an_edited_entry_and_ends_with_1(run: Callable[..., Outcome], ledger: Path) -> None:
    run("verify")
    with sqlite3.connect(ledger) as database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in triggers:
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE entries SET billed_micro = billed_micro + 1 WHERE seq = 2")
    database.close()
    outcome = run("verify")
    assert outcome.code == 1
    assert "an entry is not what was written" in outcome.out


def test_tail_begins_with_the_last_calls_in_their_order(run: Callable[..., Outcome], ledger: Path) -> None:
    lines = run("tail", "--once", "-n", "2").out.splitlines()
    assert len(lines) == 2
    assert lines == sorted(lines)
    assert len(run("tail", "--once", "--json", "-n", "1").out.splitlines()) == 1


def test_tail_tells_each_of_very_many_calls_once(
    run: Callable[..., Outcome], ledger: Path, make_entry: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, one = [10_050, 0, 1], make_entry("2026-11-04T10:00", who={"member": "eve"}, input=1, output=1)
    writer = open_store(ledger)

    def sleep(_: float) -> None:
        if not looks:
            raise KeyboardInterrupt
        at = utcnow()
        some = [replace(one, entry_id=new_id(), occurred_at=at, recorded_at=at) for _ in range(looks.pop(0))]
        writer.append([(entry, ()) for entry in some])

    monkeypatch.setattr("tokenmeter.cli.reading.time.sleep", sleep)
    lines = run("tail", "--json", "--where", "member=eve").out.splitlines()
    writer.close()
    assert len({json.loads(line)["entry_id"] for line in lines}) == len(lines) == 10_051


def test_audit_counts_every_budget_again(run: Callable[..., Outcome], ledger: Path, place: Path) -> None:
    (place / "tokenmeter.toml").write_text(f'store = "sqlite:///{ledger}"\n[[budgets]]\nmember = "*"\nlimit_usd = 1\n')
    outcome = run("audit")
    assert (outcome.code, outcome.out.strip()) == (0, "Nothing is wrong. Every counter says what the entries say.")
    assert json.loads(run("audit", "--repair", "--json").out) == {"ok": True, "repaired": False, "faults": []}


def test_a_statement_is_an_accounts_running_balance(run: Callable[..., Outcome], ledger: Path) -> None:
    assert "Closing balance" in run("statement", "member=bob", "--period", "2026-11").out
    assert "FIELD=VALUE" in run("statement", "bob").err


@pytest.mark.parametrize("columns", ["40", "60", "80"])
def test_a_statement_and_an_invoice_fit_a_narrow_terminal(
    run: Callable[..., Outcome], ledger: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    look_through(monkeypatch, int(columns))
    told = run("statement", "member=bob", "--period", "2026-11").out.splitlines()
    title, *table, doubt = told
    assert ("member=bob" in title, "price" in doubt) == (True, True)
    assert max(map(len, table)) <= int(columns)
    lines = run("invoice", "draft", "member=bob", "--period", "2026-11").out.splitlines()
    assert max(map(len, lines)) <= max(60, int(columns))


@pytest.mark.parametrize("columns", ["60", "90"])
def test_a_narrow_terminal_folds_and_never_cuts(
    run: Callable[..., Outcome], ledger: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    name = "a-member-with-a-name-of-some-length@example.com"
    store = open_store(f"sqlite:///{ledger}")
    entry = next(store.entries())
    store.settle(replace(entry, entry_id=new_id(), attribution=Attribution(member=name)))
    store.close()
    monkeypatch.delenv("COLUMNS", raising=False)
    assert name in run("entries").out  # into a pipe
    look_through(monkeypatch, int(columns))
    lines = run("entries").out.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert "…" not in "".join(lines)


def test_an_output_that_cannot_say_a_letter_shows_another(ledger: Path) -> None:
    command = [sys.executable, "-m", "tokenmeter", "report", "--where", "member=Zoë", "--store", f"sqlite:///{ledger}"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"member = Zo?" in done.stdout


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE entries SET body = '{broken' WHERE seq = 2",
        "UPDATE entries SET body = '[1]' WHERE seq = 2",
        "UPDATE entries SET body = replace(body, 'quantities', 'tags') WHERE seq = 2",
        "DELETE FROM accounts",
        "DELETE FROM rates",
    ],
)
def test_an_entry_that_cannot_even_be_read_is_named(run: Callable[..., Outcome], ledger: Path, edit: str) -> None:
    with sqlite3.connect(ledger) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(edit)
    database.close()
    outcome = run("verify")
    assert outcome.code == 1
    assert "entry 2: an entry is not what was written" in outcome.out
    reading = run("entries")
    assert reading.code == 4
    assert "tokenmeter verify" in reading.err


def test_budgets_show_bars_and_remaining_ends_with_5_when_nothing_is_left(
    run: Callable[..., Outcome], place: Path, make_entry: Callable[..., Entry]
) -> None:
    store = open_store(place / "usage.db")
    store.settle(make_entry(utcnow().isoformat(), "claude-opus-4-1", who={"member": "bob"}, input=2_000))
    store.settle(make_entry(utcnow().isoformat(), who={"member": "ada"}, input=2_000))
    store.close()
    rows = json.loads(run("budgets", "--json").out)
    assert [(row["budget"], row["scope"]) for row in rows] == [
        ("members", {"member": "ada"}),
        ("members", {"member": "bob"}),
        ("calls", {}),
    ]
    assert "300%" in run("budgets").out
    assert run("remaining", "member=bob").code == 5
    assert run("remaining", "member=ada").code == 0
    assert "FIELD=VALUE" in run("remaining", "bob").err
    assert "No budget is scoped by 'user'" in run("remaining", "user=bob").err


@pytest.mark.usefixtures("ledger")
def test_doctor_tells_the_state(run: Callable[..., Outcome]) -> None:
    facts = json.loads(run("doctor", "--json").out)["facts"]
    assert facts["path"].endswith("usage.db")
    assert facts["schema_version"]
    assert facts["newest_price"].startswith("20")
    assert "usage.db" in run("doctor").out


@pytest.mark.usefixtures("ledger")
def test_doctor_reads_kept_sums_and_not_the_entries_of_each_day(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("tokenmeter.stores.summing.Summing._add_entries", lambda _, *which: asked.append(which))
    assert run("doctor", "--json").code == 0
    assert len(asked) < 10  # what is left of this hour


def test_doctor_counts_the_budgets_that_the_ledger_has(run: Callable[..., Outcome], ledger: Path) -> None:
    assert run("budgets", "set", "third", "team=*", "limit_usd=5").code == 0
    assert run("budgets", "apply", "tokenmeter.toml").code == 0
    assert json.loads(run("doctor", "--json").out)["facts"]["budgets"] == 3


@pytest.mark.usefixtures("ledger")
def test_names_that_nobody_sells_are_told_and_those_that_were_called_are_not(
    run: Callable[..., Outcome], place: Path
) -> None:
    """A cap or a factor that holds for no call says nothing of itself."""
    budgets = ("gtp-5", "claud-*", "unheard-of", "mine", "gpt-5*", "gpt-5-2025-08*", "*")
    (place / "tokenmeter.toml").write_text(
        'store = "sqlite:///usage.db"\n'
        + "".join(f'[[budgets]]\nname = "{model}"\nmodel = "{model}"\nlimit_usd = 1\n' for model in budgets)
        + '[[budgets]]\nname = "there"\nprovider = "warehouse"\nlimit_usd = 1\n'
        + '[[budgets]]\nname = "own"\nprovider = "cellar"\nmodel = "any"\nlimit_usd = 1\n'
        + '[[multipliers]]\nmodel = "gpt-5*"\nfactor = 2\n[[discounts]]\nmodel = "gpt-5"\nfactor = 0.9\n'
        + '[providers]\n"https://llm.example.com" = "cellar"\n[models.azure]\nmine = "gpt-5-mimi"\n'
    )
    told = json.loads(run("doctor", "--json").out)["warnings"]
    slips = [line.partition(": no price list knows ")[2].partition(",")[0] for line in told if "price list" in line]
    assert set(filter(None, slips)) == {
        *("the model 'gtp-5'", "the model 'claud-*'", "the provider 'warehouse'"),
        *("the model 'gpt-5*'", "the model 'gpt-5-mimi'"),
    }
    assert any("'gtp-5'" in line and "did you mean 'gpt-5'?" in line for line in told)
    unused = json.loads(run("config", "check", "--json").out)["warnings"]  # which looks into no ledger
    assert any("'unheard-of'" in line for line in unused)


def test_config_check_reads_the_settings_as_a_program_would(run: Callable[..., Outcome], place: Path) -> None:
    good = run("config", "check", "--json")
    assert good.code == 0
    assert json.loads(good.out)["budgets"] == ["members", "calls"]
    (place / "tokenmeter.toml").write_text(f'[dashboard.tokens.x]\nhash = "sha256:{"0" * 64}"\nonly = {{}}\n')
    assert "dashboard.tokens.x: only=" in run("config", "check").err
    (place / "tokenmeter.toml").write_text('stoer = "memory:"\n')
    bad = run("config", "check")
    assert bad.code == 2
    assert "did you mean 'store'" in bad.err
    token = f'[dashboard.tokens.ada]\nhash = "sha256:{"0" * 64}"\nonly = {{ membr = ["ada"] }}\n'
    (place / "tokenmeter.toml").write_text(token)
    assert "dashboard.tokens.ada: only= goes by" in run("config", "check").err


def test_config_check_shows_every_setting(run: Callable[..., Outcome], place: Path) -> None:
    """Whoever changed a line finds it there; what is secret stays out."""
    (place / "kept.toml").write_text("")
    (place / "tokenmeter.toml").write_text(
        """
        price_list = "kept.toml"
        require = ["member"]
        on_missing = "warn"
        rules = ["spike", "faults"]
        end_user_from = ["user"]
        tags_from = ["metadata.feature"]
        hold_seconds = 60
        [providers]
        "https://llm.example.com" = "openai"
        "https://gateway.example.com" = { provider = "mistral", cost = "cents", ask_usage = false }
        [models.azure]
        mine = "gpt-5-mini"
        [[alerts]]
        slack = "https://hooks.slack.com/services/secret"
        """
    )
    shown = run("config", "check").out
    found = json.loads(run("config", "check", "--json").out)
    assert set(Settings.model_fields) - {"source", "on_missing", "metrics_labels"} <= set(found)
    told = (
        *("kept.toml", "member (warn)", "spike, faults", "metadata.feature", "60", "mine of azure", "slack"),
        *("https://llm.example.com = openai", "https://gateway.example.com = mistral cost cents usage not asked for"),
    )
    assert [one for one in told if one not in " ".join(shown.split())] == []
    assert "services/secret" not in shown


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "command",
    [
        "report --by membr", "report --where membr=ada", "entries --where membr=ada", "remaining membr=ada",
        "budgets set new membr=ada limit_usd=5", "raise members 5 membr=ada --reason x", "statement membr=ada",
        "invoice draft --by membr", "erase membr ada --reason x --by kim",
        "dashboard token create eve --only membr=eve",
    ],
)  # fmt: skip
def test_a_misspelt_dimension_is_told_with_the_one_that_is_meant(command: str, run: Callable[..., Outcome]) -> None:
    outcome = run(*shlex.split(command))
    assert outcome.code == 2
    assert "id you mean 'member'?" in outcome.err


@pytest.mark.parametrize(
    "given",
    [
        {"require": ["membr"]},
        {"metrics": "prometheus", "metrics_labels": ["membr"]},
        {"budgets": [{"membr": "ada", "limit_usd": 5}]},
        {"multipliers": [{"membr": "ada", "multiplier": "2"}]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_misspelt_dimension_of_the_settings_is_told_with_the_one_that_is_meant(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="id you mean 'member'"):
        make_meter(store="memory:", **given)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("report --member ada", "Write --where member=VALUE."),
        ("report --end-user=u --json", "Write --where end_user=VALUE."),
        ("entries model=gpt-5", "Write --where model=gpt-5."),
        ("remaining --member ada", "Write member=VALUE without dashes."),
        ("statement --team=ops", "Write team=VALUE without dashes."),
        ("report --nothing", "No such option: --nothing"),
        ("entries nothing", "unexpected extra argument"),
        ("budgets show", "There are tokenmeter budgets alone, and set, retire, apply, history, grant."),
        ("budgets hist", "Did you mean 'history'?"),
        ("period open", "There are close, status."),
    ],
)
def test_who_asks_in_another_way_is_told_how_to_ask(command: str, said: str, run: Callable[..., Outcome]) -> None:
    code, _, errors = run(*command.split())
    assert code == 2
    assert said in " ".join(line.strip("│ ") for line in errors.splitlines())


def test_import_records_each_response_once(run: Callable[..., Outcome], place: Path) -> None:
    (place / "out.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    first = run("import", "out.jsonl", "--member", "ada", "--tag", "job=night", "--at", "2026-11-20")
    assert first.code == 0
    assert "3 calls recorded, 0 already there, 2 lines that are no billed call, 0 conflicts, 0 left out." in first.out
    second = json.loads(run("import", "out.jsonl", "--at", "2026-11-20", "--json").out)
    assert (second["recorded"], second["repeated"]) == (0, 3)
    rows = json.loads(run("report", "--by", "model,tag:job", "--json").out)["rows"]
    assert {row["group"]["model"]: row["requests"] for row in rows} == {"gpt-5-mini": 2, "claude-sonnet-4-5": 1}
    assert {row["group"]["tag:job"] for row in rows} == {"night"}


def test_a_batch_line_is_priced_as_a_batch(run: Callable[..., Outcome], place: Path) -> None:
    (place / "out.jsonl").write_text("\n".join(map(json.dumps, LINES[:2])) + "\n")
    run("import", "out.jsonl")
    batch, live = (json.loads(line) for line in run("entries", "--json").out.splitlines())
    assert float(live["list_cost"]) == 2 * float(batch["list_cost"])


@pytest.mark.parametrize(
    ("days", "span"),
    [
        (("2026-10-02", "2026-10-09"), "--period 2026-10"),
        (("2025-09-02", "2026-10-09"), "--since 2025-09-02 --granularity month"),
    ],
)
def test_after_an_import_a_report_is_named_that_shows_all_of_it(
    run: Callable[..., Outcome], place: Path, days: tuple[str, str], span: str
) -> None:
    rows = [{"id": day, "t": f"{day}T10:00:00Z", "i": 10} for day in days]
    (place / "own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    told = run("import", "own.jsonl", "--map", "id=id,time=t,input=i", "--model", "gpt-5").out
    assert f"See it with: tokenmeter report --by model {span}\n" in told
    named = told.rpartition("See it with: tokenmeter ")[2].split()
    shown = json.loads(run(*named, "--json").out)["rows"]
    assert sum(row["requests"] for row in shown if row["group"]["model"] == "gpt-5") == 2


def test_import_names_the_lines_it_left_out(run: Callable[..., Outcome], place: Path) -> None:
    (place / "out.jsonl").write_text('not json\n[1]\n{"what": "ever"}\n' + json.dumps(LINES[3]) + "\n")
    outcome = run("import", "out.jsonl")
    assert outcome.code == 1
    assert "out.jsonl:1: not JSON" in outcome.out
    assert "out.jsonl:2: not a JSON object" in outcome.out
    assert "give --provider and --endpoint" in outcome.out
    assert "give --at" in outcome.out
    assert run("import", "nothing.jsonl").code == 2


@pytest.mark.parametrize(
    "command", ["report --by model", "verify", "sql 'SELECT 1'", "erase member ada --reason x --by kim"]
)
def test_an_empty_file_is_no_ledger_and_is_left_empty(command: str, run: Callable[..., Outcome], place: Path) -> None:
    (place / "void.db").touch()
    outcome = run(*shlex.split(command), "--store", "sqlite:///void.db")
    assert (outcome.code, "There is no ledger at void.db: the file is empty." in outcome.err) == (2, True)
    assert [path.stat().st_size for path in place.glob("void.db*")] == [0]


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "command",
    ["record gone.json --provider openai --endpoint chat.completions", "estimate gone.json",
     "archive check gone.json --root 0",
     "reconcile openai --file gone.json", "report --config gone.json", "verify --checkpoint gone.json"],
)  # fmt: skip
def test_a_file_that_is_not_there_is_said_in_words(command: str, run: Callable[..., Outcome]) -> None:
    outcome = run(*shlex.split(command))
    assert outcome.code in {2, 4}
    assert "gone.json" in outcome.err
    assert "Errno" not in outcome.err


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("handover stripe --by nonsense", "nonsense"),
        ("handover stripe --period someday", "someday"),
        ("handover stripe --customer ada", "ada"),
        ("handover paper", "paper"),
        ("reconcile openai --by nonsense", "nonsense"),
        ("reconcile openai --period someday", "someday"),
        ("reconcile openai --key k", "'k'"),
    ],
)
def test_a_wrong_argument_is_told_before_a_key_is_asked_for(
    command: str, said: str, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STRIPE_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    outcome = run(*command.split())
    assert (outcome.code, said in outcome.err, "Set " in outcome.err) == (2, True, False), outcome.err


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "tokenmeter", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("tokenmeter ")


def test_without_the_extra_the_command_names_it() -> None:
    program = "import sys; sys.modules['typer'] = None; from tokenmeter.__main__ import main; main(['report'])"
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert outcome.returncode == 2
    assert outcome.stderr == "The command line needs an extra: pip install 'tokenmeter-sdk[cli]'\n"


def test_prices_show_lists_what_is_in_force(run: Callable[..., Outcome], place: Path) -> None:
    (place / "tokenmeter.toml").write_text(
        "[[prices]]\nprovider = 'openai'\nmodel = 'our-own'\nsku_meter = 'input'\nunit_price = '0.5'\n"
        "effective_from = 2026-11-10\nsource = 'contract'\n"
    )
    assert "$0.5" in run("prices", "show", "our-own").out
    rows = json.loads(run("prices", "show", "our-own", "--json").out)
    assert [(row["sku_meter"], row["unit_price"], row["origin"]) for row in rows] == [("input", "0.5", "user")]
    nothing = run("prices", "show", "our-own", "--at", "2026-11-09")
    assert nothing.code == 1
    assert "No price matches" in nothing.out


def test_a_long_table_that_has_room_is_not_laid_out_by_rich(
    run: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "tokenmeter.toml").write_text("")
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("rich.table.Table.add_row", lambda *_: pytest.fail("a millisecond for each row"))
    heads, rule, *rows = run("prices", "show", "--provider", "openai").out.splitlines()
    assert len(rows) > 500
    assert len(rule) == max(map(len, rows))
    ends = heads.index("price") + len("price")  # amounts are aligned to the right
    assert all(row[ends - 1].isdigit() and row[ends] == " " for row in rows)


def test_prices_diff_says_what_changed_between_two_days(run: Callable[..., Outcome], place: Path) -> None:
    row = "[[prices]]\nprovider = 'openai'\nmodel = 'our-own'\nsku_meter = 'input'\nsource = 'contract'\n"
    (place / "tokenmeter.toml").write_text(
        f"{row}unit_price = '0.5'\neffective_to = 2026-11-10\n{row}unit_price = '0.4'\neffective_from = 2026-11-10\n"
    )
    changed = run("prices", "diff", "2026-11-01", "2026-11-20", "--model", "our-own")
    assert changed.code == 1
    assert changed.out.splitlines()[-1].split()[3:5] == ["$0.5", "$0.4"]
    same = run("prices", "diff", "2026-11-11", "2026-11-20", "--model", "our-own")
    assert (same.code, same.out.strip()) == (0, "No price differs.")


def test_a_later_row_is_in_force_although_the_earlier_one_has_no_end(run: Callable[..., Outcome], place: Path) -> None:
    row = "[[prices]]\nprovider = 'openai'\nmodel = 'our-own'\nsku_meter = 'input'\nsource = 'contract'\n"
    (place / "tokenmeter.toml").write_text(
        f"{row}unit_price = '3'\neffective_from = 2026-01-01\n{row}unit_price = '5'\neffective_from = 2026-11-01\n"
    )
    changed = run("prices", "diff", "2026-10-15", "2026-11-20", "--model", "our-own")
    assert changed.out.splitlines()[-1].split()[3:5] == ["$3", "$5"]
    for more in ((), ("--provider", "openai")):
        shown = json.loads(run("prices", "show", "our-own", *more, "--at", "2026-11-20", "--json").out)
        assert [row["unit_price"] for row in shown if row["model"] == "our-own"] == ["5"]


def test_prices_diff_without_dates_compares_with_the_catalog(run: Callable[..., Outcome], place: Path) -> None:
    (place / "tokenmeter.toml").write_text(
        "[[prices]]\nprovider = 'openai'\nmodel = 'our-own'\nsku_meter = 'input'\n"
        "unit_price = '0.5'\nsource = 'contract'\n"
    )
    found = json.loads(run("prices", "diff", "--model", "our-own", "--json").out)
    assert [(row["before"], row["after"]["unit_price"]) for row in found] == [(None, "0.5")]


def test_prices_show_says_that_nobody_knows_a_model(run: Callable[..., Outcome], place: Path) -> None:
    assert place.is_dir()
    unknown = run("prices", "show", "unheard-of", "--provider", "openai")
    assert unknown.code == 1
    assert "unheard-of" in unknown.err


def test_reprice_appends_what_became_known_once(run: Callable[..., Outcome], place: Path) -> None:
    store = open_store(place / "usage.db")
    seen = observe(
        {
            "id": "c1",
            "object": "chat.completion",
            "model": "our-own",
            "usage": {"prompt_tokens": 10, "completion_tokens": 0},
        },
        provider="openai",
        endpoint="chat.completions",
    )
    rating = Pricer(PriceList.load()).rate(seen, provider="openai", endpoint="chat.completions", at=utcnow())
    store.settle(
        Entry(
            occurred_at=utcnow(),
            provider="openai",
            endpoint="chat.completions",
            operation="chat",
            response_model="our-own",
            usage=seen.usage,
            charges=rating.charges,
            cost_source=rating.cost_source,
        )
    )
    store.close()
    assert "Nothing to correct" in run("reprice").out
    (place / "tokenmeter.toml").write_text(
        "store = 'sqlite:///usage.db'\n"
        "[[prices]]\nprovider = 'openai'\nmodel = 'our-own'\nsku_meter = 'input'\nunit_price = '2'\nsource = 'us'\n"
    )
    assert json.loads(run("reprice", "--json").out)["billed_cost"] == "0.000020000000"
    assert "Nothing to correct" in run("reprice").out
    assert json.loads(run("report", "--json").out)["totals"]["billed_cost"] == "0.000020000000"


@pytest.mark.parametrize("inside", ["\u2028", "\x85", "\u2029"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_prompt_may_hold_what_ends_a_line_elsewhere(
    run: Callable[..., Outcome], place: Path, inside: str, end: str
) -> None:
    request = {"model": "gpt-5-nano", "input": f"a{inside}b", "max_output_tokens": 1}
    line = f"{json.dumps(request, ensure_ascii=False)}{end}"
    (place / "prompts.jsonl").write_bytes(f"{line}{line}".encode())
    assert len(json.loads(run("estimate", "prompts.jsonl", "--json").out)["requests"]) == 2


def test_what_is_not_nothing_is_not_shown_as_nothing(run: Callable[..., Outcome], place: Path) -> None:
    """An amount below what a column has places for: neither ``$0.0000`` nor ``+$0.000000``."""
    (place / "small.json").write_text('{"model": "gpt-5-nano", "input": "hi", "max_output_tokens": 1}')
    assert "<$0.000001" in run("estimate", "small.json").out
    (place / "answer.json").write_text(json.dumps({**LINES[0], "usage": {"prompt_tokens": 1, "completion_tokens": 0}}))
    run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    (place / "tokenmeter.toml").write_text("store = 'sqlite:///usage.db'\nmultiplier = '1.05'\n")
    told = run("reprice", "--changed").out
    assert "+<$0.000001" in told
    assert "over +$0.0000000125 billed in all" in told


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("arguments", [("report", "--bogus"), ("report", "--rows", "-1"), ("export", "entries")])
def test_wrong_usage_is_json_when_json_is_asked_for(run: Callable[..., Outcome], arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments, "--json")
    assert outcome.code == 2
    assert json.loads(outcome.err)["message"]


def test_names_are_printed_as_they_are_and_not_as_emoji(
    run: Callable[..., Outcome], ledger: Path, make_entry: Callable[..., Entry]
) -> None:
    store = open_store(ledger)
    store.settle(make_entry(who={"member": ":bomb:"}, input=1))
    store.close()
    assert ":bomb:" in run("report", "--by", "member").out
    assert ":bomb:" in run("entries", "-n", "0").out


@pytest.mark.usefixtures("ledger")
def test_without_budgets_the_settings_key_is_named(run: Callable[..., Outcome], place: Path) -> None:
    (place / "tokenmeter.toml").write_text('store = "sqlite:///usage.db"\n')
    assert "[[budgets]]" in run("budgets").out


USED = '{"prompt_tokens": 1, "completion_tokens": 1}'


@pytest.mark.usefixtures("ledger")
def test_remaining_refuses_a_field_that_no_budget_knows(run: Callable[..., Outcome]) -> None:
    """A misspelled field must not read as 'nothing is exhausted'."""
    outcome = run("remaining", "memeber=ada")
    assert outcome.code == 2
    assert "member" in outcome.err
    assert run("remaining", "tag:env=prod").code == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f'{{"object": "chat.completion", "id": "a", "created": 1e30, "usage": {USED}}}', "--at"),
        (f'{{"object": "chat.completion", "id": "a", "created": NaN, "usage": {USED}}}', "--at"),
        (f'{{"object": "chat.completion", "id": "a", "created": -99999999999, "usage": {USED}}}', "--at"),
        ('{"object": "chat.completion", "id": "a", "created": 1795000000, "usage": "many"}', "usage cannot be read"),
        ('{"object": "chat.completion", "id": "a", "usage": {"prompt_tokens": "10"}}', "usage cannot be read"),
        ('{"custom_id": "a", "response": "text"}', "no JSON object"),
        ('{"custom_id": "a", "result": [1]}', "no JSON object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_makes_no_sense_is_left_out_and_the_next_is_read(
    run: Callable[..., Outcome], place: Path, line: str, reason: str
) -> None:
    (place / "odd.jsonl").write_text(f"{line}\n{json.dumps(LINES[0])}\n")
    outcome = run("import", "odd.jsonl")
    assert outcome.code == 1
    assert "1 call recorded" in outcome.out
    assert "1 left out" in outcome.out
    assert "odd.jsonl:1:" in outcome.out
    assert reason in outcome.out


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("arguments", [("report",), ("report", "--json"), ("entries", "--json")])
def test_an_output_that_takes_nothing_is_said_without_a_traceback(place: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tokenmeter", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=place,
            check=False,
            text=True,
        )
    assert ended.returncode == 2
    assert "No space left" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1  # nor is it tried again when the interpreter ends


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("arguments", [("report",), ("report", "--json"), ("tail",)])
@pytest.mark.parametrize("before", ["trap '' PIPE; sleep 1;", "exec >&-;"], ids=["reader gone", "closed"])
def test_an_output_that_nobody_reads_ends_without_a_word(place: Path, arguments: tuple[str, ...], before: str) -> None:
    command = shlex.join([sys.executable, "-m", "tokenmeter", *arguments])
    line = f"({before} exec {command}) | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, cwd=place, check=False, text=True, timeout=60)
    assert (ended.stdout.strip() in {"0", "1"}, ended.stderr) == (True, "")


@pytest.mark.usefixtures("ledger")
def test_calls_that_nobody_follows_any_more_are_not_waited_for(place: Path) -> None:
    command = shlex.join([sys.executable, "-m", "tokenmeter", "tail", "-n", "1"])
    line = f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, cwd=place, check=False, text=True, timeout=60)
    assert (ended.stdout.splitlines()[1:], ended.stderr) == (["1"], "")


def test_a_command_loads_what_it_uses(place: Path) -> None:
    """Nobody who asks for a report waits for invoices, the dashboard and the rest to be read."""
    code = (
        "import sys; from tokenmeter.__main__ import main\n"
        "try: main(['report'])\n"
        "except SystemExit: print(*sorted(name for name in sys.modules if name.startswith('tokenmeter.cli.')))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=place, check=True, text=True)
    assert ended.stdout.split() == [f"tokenmeter.cli.{name}" for name in ("app", "frame", "options", "reading")]


@pytest.mark.usefixtures("ledger")
def test_a_terminal_that_does_not_know_its_width_is_told_everything(place: Path) -> None:
    """Some say ``COLUMNS=0``: nothing at all was printed, not even an error."""
    for columns in ("0", "000", ""):
        ended = subprocess.run(
            [sys.executable, "-m", "tokenmeter", "report", "--by", "member"],
            env={**os.environ, "COLUMNS": columns},
            capture_output=True,
            cwd=place,
            check=True,
            text=True,
        )
        assert "total" in ended.stdout


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("seconds", ["inf", "1e300", "nan", "0"])
def test_a_look_that_never_comes_is_refused(run: Callable[..., Outcome], seconds: str) -> None:
    outcome = run("tail", "--every", seconds)
    assert outcome.code == 2
    assert "--every" in outcome.err


def test_a_file_that_may_not_be_read_is_said(
    run: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "secret.jsonl").write_text("{}")
    opened = Path.open

    def refused(path: Path, *arguments: object, **named: object) -> object:
        if path.name == "secret.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    outcome = run("import", "secret.jsonl")
    assert outcome.code == 2
    assert "secret.jsonl: Permission denied" in outcome.err


def test_record_writes_one_answer_down_once(
    run: Callable[..., Outcome], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "answer.json").write_text("\ufeff" + json.dumps(LINES[0]))
    here = ("--provider", "openai", "--endpoint", "chat.completions")
    first = run("record", "answer.json", *here, "--member", "ada", "--tag", "job=night", "--at", "2026-11-20")
    assert (first.code, first.out.split(", entry")[0]) == (
        0,
        "Recorded: gpt-5-mini, 100 in, 20 out, $0.000065 billed",
    )
    for mark in ("", "\ufeff"):
        monkeypatch.setattr("sys.stdin", io.StringIO(mark + json.dumps(LINES[0])))
        again = run("record", *here)
        assert (again.code, "in the ledger already" in again.out) == (0, True)
    (line,) = run("entries", "--json").out.splitlines()
    entry = json.loads(line)
    assert (entry["member"], entry["tags"], entry["occurred_at"][:10]) == ("ada", {"job": "night"}, "2026-11-20")
    assert (
        run("record", "answer.json", *here, "--response-id", "other", "--json").out == ""
    )  # the answer's own id counts


def test_what_has_no_price_is_told_beside_the_cost_of_the_rest(run: Callable[..., Outcome], place: Path) -> None:
    with (place / "tokenmeter.toml").open("a") as settings:
        settings.write(
            '[[prices]]\nprovider = "openai"\nmodel = "my-own"\nsku_meter = "input"\nunit_price = 3\nper = 1_000_000\n'
            'source = "contract"\n'
        )
    (place / "answer.json").write_text(json.dumps({**LINES[0], "model": "my-own"}))
    told = run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions").out
    assert "$0.0003 billed, a part unpriced" in told
    for command in (("entries",), ("tail", "--once")):
        assert "$0.000300 + unpriced" in run(*command).out


def test_record_says_that_the_usage_is_unknown(run: Callable[..., Outcome], place: Path) -> None:
    (place / "answer.json").write_text(
        json.dumps({"id": "chatcmpl-9", "model": "gpt-5-mini", "usage": {"tokens": 1000}})
    )
    ended = run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    assert (ended.code, ended.out.split(", entry")[0]) == (0, "Recorded: gpt-5-mini, usage unknown, unpriced")


def test_record_says_that_an_error_costs_nothing(run: Callable[..., Outcome], place: Path) -> None:
    (place / "answer.json").write_text(json.dumps({"error": {"message": "no", "code": "invalid_api_key"}}))
    ended = run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    said = "Recorded: an error (invalid_api_key), which costs nothing"
    assert (ended.code, ended.out.split(", entry")[0]) == (0, said)


def test_a_wrong_period_of_quotas_is_refused_without_a_quota(run: Callable[..., Outcome], place: Path) -> None:
    (place / "answer.json").write_text(json.dumps(LINES[0]))
    run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    assert run("quotas", "--period", "nonsense").code == 2


@pytest.mark.parametrize("text", ["", " \n", "no json", "[]", "7", "{} {}"])
def test_record_says_what_is_no_answer(run: Callable[..., Outcome], place: Path, text: str) -> None:
    (place / "answer.json").write_text(text)
    ended = run("record", "answer.json", "--provider", "openai", "--endpoint", "chat.completions")
    assert ended.code in {2, 4}
    assert "JSON" in ended.err
    missing = run("record", "nowhere.json", "--provider", "openai", "--endpoint", "chat.completions")
    assert (missing.code, "nowhere.json" in missing.err) == (2, True)


@pytest.mark.parametrize("command", ["set", "apply"])
def test_help_shows_brackets_that_are_meant(run: Callable[..., Outcome], command: str) -> None:
    assert "[[budgets]]" in run("budgets", command, "--help").out


def test_ctrl_c_while_the_command_line_loads_shows_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "tokenmeter.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tokenmeter.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 130


@pytest.mark.usefixtures("ledger")
def test_an_assistant_that_hangs_up_leaves_no_traceback_and_ctrl_c_ends_the_wait_for_it(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own thread reads standard input, and its tasks' errors come in groups of groups."""

    class Answering:
        @staticmethod
        def run(_transport: str) -> None:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            raise ExceptionGroup("", [ExceptionGroup("", [BrokenPipeError()])])

    monkeypatch.setattr("tokenmeter.serving.mcp.make_server", lambda *_, **__: Answering)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    try:
        assert tuple(run("mcp")) == (1, "", "")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ledger")
def test_a_report_is_whole_in_a_pipe_and_says_what_a_terminal_has_no_room_for(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # of the terminal that the pipe was begun on
    asked = ("report", "--by", "model,member", "-g", "day")
    whole = run(*asked).out
    assert all(head in whole for head in ("requests", "input", "cached", "output", "list cost", "billed cost"))
    assert "No room" not in whole
    look_through(monkeypatch, 40)
    narrow = run(*asked).out
    (_, said) = " ".join(narrow.split()).split("No room in 40 columns for: ")
    assert said.startswith("requests, input, cached, output")
    look_through(monkeypatch, 200)
    assert "No room" not in run(*asked).out


def _in_latin(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """A command line on a terminal that has Latin-1, its ledger in the working directory."""
    return subprocess.run(
        [sys.executable, "-m", "tokenmeter", *words],
        input=given,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    )


@pytest.mark.usefixtures("place")
def test_what_machines_read_is_utf8_on_every_terminal(run: Callable[..., Outcome]) -> None:
    answer = json.dumps(LINES[0] | {"model": "café-李"}, ensure_ascii=False).encode()
    member = "Zoë 韓梅"
    named = ("--provider", "openai", "--endpoint", "chat.completions", "--member", member)
    recorded = _in_latin("record", *named, "--json", given=b"\xef\xbb\xbf" + answer)
    assert recorded.returncode == 0, recorded
    assert json.loads(recorded.stdout.decode())["model"] == "café-李"
    assert json.loads(run("entries", "--json").out)["model"] == "café-李"
    for words in (
        ("report", "-b", "member", "--json"),
        ("entries", "--json"),
        ("tail", "--once", "--json"),
        ("export", "entries", "-", "--format", "jsonl"),
    ):
        assert member in _in_latin(*words).stdout.decode()
    refused = _in_latin("report", "-b", "李", "--json")
    assert "李" in json.loads(refused.stderr.decode())["message"]
    assert "李".encode() not in _in_latin("report", "-b", "model").stdout  # people see what their terminal can show


@pytest.mark.usefixtures("place")
def test_requests_from_a_pipe_may_begin_with_a_mark(run: Callable[..., Outcome]) -> None:
    body = b'\xef\xbb\xbf{"model": "gpt-5-mini", "messages": [], "max_completion_tokens": 10}\r\n'
    told = _in_latin("estimate", "-", "--json", given=body)
    assert told.returncode == 0, told
    assert len(json.loads(told.stdout)["requests"]) == 1
    garbled = _in_latin("estimate", "-", "--json", given=b'{"model": "caf\xe9"}')
    assert garbled.returncode == 2
    assert "Standard input cannot be read" in json.loads(garbled.stderr)["message"]


@pytest.mark.usefixtures("ledger")
def test_what_stands_in_the_place_of_standard_output_gets_json_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["report", "--json"], ["entries", "--json"], ["export", "entries", "-", "--format", "jsonl"]):
        kept = io.StringIO()
        monkeypatch.setattr(sys, "stdout", kept)
        with pytest.raises(SystemExit):
            main(words)
        assert kept.getvalue().startswith("{")


@pytest.mark.parametrize(
    "words",
    [
        "record --provider openai --endpoint chat.completions",
        "erase member ada --reason r17 --by kim",
        "estimate -",
    ],
)
@pytest.mark.usefixtures("ledger")
def test_a_closed_standard_input_is_an_empty_one(words: str) -> None:
    command = shlex.join([sys.executable, "-m", "tokenmeter", *words.split()])
    ended = subprocess.run(["sh", "-c", f"{command} <&-"], capture_output=True, check=False, text=True)
    assert "Traceback" not in ended.stderr
    assert ended.returncode == (0 if "estimate" in words else 2)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.usefixtures("ledger")
def test_a_question_that_is_answered_no_or_interrupted(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    words = ["erase", "member", "ada", "--reason", "r17", "--by", "kim", *["--json"] * as_json]
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    refused = run(*words)
    assert refused.code == 1
    assert not as_json or "the answer was no" in json.loads(refused.err.partition("]:")[2])["message"]

    class Interrupted(io.StringIO):
        def readline(self, *_: Any) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    assert run(*words).code == 130
    monkeypatch.undo()


@pytest.mark.parametrize(
    "words",
    [
        "export entries x.csv --by member",
        "export charges x.csv -g day",
        "export focus folder --by member",
        "export entries x.csv --focus-version 1.2",
        "export report x.csv --focus-version 1.2",
        "journal beancount -p 2026-11 --json",
        "statement member=ada -p 2026-11 --to - --json",
    ],
)
def test_an_option_that_would_do_nothing_is_refused(run: Callable[..., Outcome], ledger: Path, words: str) -> None:
    ended = run(*words.split())
    assert ended.code == 2
    assert not ended.out
    assert not [one for one in ledger.parent.iterdir() if one.name in {"x.csv", "folder"}]


@pytest.mark.usefixtures("ledger")
def test_with_json_a_document_that_was_written_is_named(run: Callable[..., Outcome]) -> None:
    for words in (
        "statement member=ada -p 2026-11 --to s.csv --json",
        "journal beancount -p 2026-11 --to j.txt --json",
    ):
        ended = run(*words.split())
        assert json.loads(ended.out) == {"file": words.split()[-2]}, ended


@pytest.mark.usefixtures("ledger")
def test_json_of_a_query_needs_a_name_for_each_column(run: Callable[..., Outcome]) -> None:
    query = "SELECT member, model AS member FROM entries"
    assert "'member'" in run("sql", query, "--json").err
    assert run("sql", query).code == 0
    assert len(json.loads(run("sql", query.replace("AS member", "AS m"), "--json").out)[0]) == 2


@pytest.mark.usefixtures("place")
def test_a_model_that_has_no_price_is_nothing_that_matches(run: Callable[..., Outcome]) -> None:
    ended = run("prices", "show", "gpt-5-minni", "--provider", "openai")
    assert (ended.code, "Did you mean 'gpt-5-mini'" in ended.err) == (1, True)
    assert json.loads(run("prices", "show", "nosuch", "--provider", "openai", "--json").out) == []


@pytest.mark.usefixtures("ledger")
def test_repricing_takes_no_entry_that_was_not_asked_for(run: Callable[..., Outcome], place: Path) -> None:
    row = "[[prices]]\nprovider = 'openai'\nmodel = 'unheard-of'\nsku_meter = 'input'\nunit_price = '1'\n"
    provider = json.loads(run("entries", "-w", "model=unheard-of", "--json").out)["provider"]
    (place / "tokenmeter.toml").write_text(f"store = 'sqlite:///usage.db'\n{row.replace('openai', provider)}")
    assert json.loads(run("reprice", "-w", "cost_source=computed", "--json").out)["corrections"] == 0
    assert json.loads(run("reprice", "-w", "cost_source!=unpriced", "--json").out)["corrections"] == 0
    assert json.loads(run("reprice", "-w", "cost_source=unpriced", "--json").out)["corrections"] == 1
