"""What ``--help`` ends with: every command has an example, each stands on one line, and each does what it says."""

from __future__ import annotations

import gzip
import io
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import time_machine
import typer

import tokenmeter
from tokenmeter.attribution import Attribution
from tokenmeter.billing import close_period
from tokenmeter.budgets import Budget
from tokenmeter.cli.app import COMMANDS as MODULES
from tokenmeter.cli.app import LateCommands, app, commands

NOW = "2026-12-05T12:00Z"
#: What a terminal shows in one line, beside the space that `--help` leaves at both sides.
ROOM = 78
#: Examples that need a server of their own, and the tests that run such commands.
ELSEWHERE = {
    "mcp": "tests/dashboard/test_mcp.py",
    "dashboard": "tests/dashboard",
    "tail": "never ends: tests/unit/reports/test_cli.py",
    "handover": "a key of Stripe's: tests/billing/test_billing_handover.py",
    "db init": "tests/postgres/test_postgres_cli.py",
    "db migrate": "tests/postgres/test_postgres_cli.py",
    "db status": "tests/postgres/test_postgres_cli.py",
    "db grant": "tests/postgres/test_postgres_cli.py",
    "db copy": "tests/moving/test_copy.py",
    "db merge": "tests/moving/test_merge.py",
    "db clickhouse": "tests/contract/test_clickhouse.py",
    "prices update": "asks the network: tests/unit/test_pricing_updating.py",
}
COSTS = (
    "usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type\n"
    "2026-11-01,Claude Haiku 4.5,Default,prod,message,,input_no_cache,1.00,1.00,token\n"
)
#: Parts of examples for which a test has no server or no file.
UNREACHABLE = ("s3://", "reconcile openai", "archive check", "archive prove", "claude-code", "codex", "xrechnung")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something of its own: its name, and click's object."""
    within = getattr(command, "commands", {})
    if path and (not within or command.invoke_without_command):
        yield " ".join(path), command
    for name, one in within.items():
        yield from walk(one, (*path, name))


def examples_of(command: Any) -> list[str]:
    title, *lines = (command.epilog or "").split("\n\n")
    assert not lines or title in {"Example:", "Examples:"}
    return lines


COMMANDS = dict(walk(typer.main.get_command(app)))
EXAMPLES = [(name, line) for name, command in COMMANDS.items() for line in examples_of(command)]


def test_every_command_has_an_example():
    assert [name for name, command in COMMANDS.items() if not examples_of(command)] == []


def test_the_same_thing_has_the_same_name_at_every_command():
    """Who does it is `--actor` wherever something is written in somebody's name, and a document goes `--to` a file."""
    named = {name: {flag for one in command.params for flag in one.opts} for name, command in COMMANDS.items()}
    decided = [name for name in named if name.split()[0] in {"raise", "erase", "handover"} or "--reason" in named[name]]
    decided += ["period close", "invoice issue", "invoice paid", "budgets set", "budgets apply", "reconcile"]
    assert [name for name in decided if "--actor" not in named[name]] == []
    documents = ("invoice pdf", "invoice einvoice", "statement", "journal")
    assert [name for name in documents if "--to" not in named[name]] == []
    assert [name for name, flags in named.items() if "--yes" in flags and "-y" not in flags] == []


def test_every_command_is_listed_and_found_in_its_module():
    registered = {one.name for one in commands.registered_commands} | {one.name for one in commands.registered_groups}
    assert registered == set(LateCommands())
    places = {name: f"tokenmeter.cli.{module}" for module, (_, names) in MODULES.items() for name in names}
    alone = {name: one.callback.__module__ for name, one in COMMANDS.items() if name in places and one.callback}
    assert alone == {name: places[name] for name in alone}


def test_every_command_stands_in_the_reference():
    page = (Path(__file__).parents[2] / "docs/reference/cli.md").read_text(encoding="utf-8")
    told = set()
    for line in page.splitlines():
        if line.startswith("| `"):
            words = [word for word in line.split("`")[1].replace("\\|", "|").split() if word[0].islower()]
            told |= {" ".join(words[:-1])}  # the last may be what it is told: export report|entries FILE
            told |= {" ".join((*words[:-1], name)) for name in "".join(words[-1:]).split("|")}
    assert [name for name in COMMANDS if name not in told] == []


def test_an_example_stands_on_one_line_of_a_terminal_and_names_its_command():
    assert [line for _, line in EXAMPLES if len(line) > ROOM] == []
    assert [line for name, line in EXAMPLES if f"tokenmeter {name}" not in line] == []


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with what the examples speak of: months of calls, budgets, an invoice, files."""
    place = tmp_path_factory.mktemp("filled")
    meter = tokenmeter.make_meter(store=f"sqlite:///{place}/usage.db", config={})
    usage = {"prompt_tokens": 30_000_000, "completion_tokens": 3_000_000, "total_tokens": 33_000_000}
    answer = {"object": "chat.completion", "model": "gpt-5", "usage": usage}
    with time_machine.travel(NOW, tick=True):
        for number, month in enumerate((8, 9, 10, 11, 11)):
            meter.record(
                {"id": f"chatcmpl-{number}", **answer},
                provider="openai",
                endpoint="chat.completions",
                at=datetime(2026, month, 3 + number, 9, tzinfo=UTC),
                attribution=Attribution(
                    member=("ada@example.com", "ada", "bob")[number % 3], team="search", tags={"customer": "acme"}
                ),
            )
        meter.budgets.set(Budget(member="*", limit_usd=50, name="members"))
        meter.budgets.set(Budget(limit_usd=50, name="trial"))
        meter.budgets.set(Budget(organization="*", limit_usd=0, period="total", name="credit"))
        for month in ("2026-08", "2026-09", "2026-10"):
            close_period(meter.store, month, by="kim")
        (place / "kept.json").write_text(meter.checkpoint().to_json())
    meter.close()
    (place / "tokenmeter.toml").write_text(
        'store = "sqlite:///usage.db"\n[[budgets]]\nname = "members"\nmember = "*"\nlimit_usd = 50\n'
    )
    (place / "audit.key").write_bytes(b"k" * 32)
    (place / "answer.json").write_text(json.dumps({"id": "chatcmpl-a", **answer}))
    request = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 900}
    (place / "requests.jsonl").write_text(json.dumps(request) + "\n")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": request}
    (place / "batch.jsonl").write_text(json.dumps(line) + "\n")
    done = {"id": "b1", "custom_id": "a", "error": None}
    done["response"] = {"status_code": 200, "body": {"id": "chatcmpl-b", "created": 1795000000, **answer}}
    (place / "batch_output.jsonl").write_text(json.dumps(done) + "\n")
    log = {"request_id": "chatcmpl-l", "model": "gpt-5", "custom_llm_provider": "openai", "spend": "0.00002"}
    log |= {"prompt_tokens": 8, "completion_tokens": 1, "total_tokens": 9, "call_type": "acompletion"}
    log |= {"startTime": "2026-11-05T10:00:00Z", "endTime": "2026-11-05T10:00:01Z", "status": "success"}
    (place / "spendlogs.csv").write_text(f"{','.join(log)}\n{','.join(map(str, log.values()))}\n")
    (place / "costs.csv").write_text(COSTS)
    own = {"id": "r1", "ts": "2026-11-05T10:00:00Z", "llm": {"name": "gpt-5-mini"}, "in": 12}
    with gzip.open(place / "calls.jsonl.gz", "wt") as file:
        file.write(json.dumps(own) + "\n")
    return place


@pytest.fixture
def place(filled, tmp_path, monkeypatch):
    """A copy of it, as the working directory, away from the user's own files."""
    own = tmp_path / "own"
    shutil.copytree(filled, own)
    monkeypatch.chdir(own)
    for name in ("TOKENMETER_STORE", "TOKENMETER_CONFIG", "TOKENMETER_TZ"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(own))
    return own


@pytest.fixture
def run(place, monkeypatch, run_command) -> Callable[[str], Any]:
    """Runs the part of a line that is ours, as a shell would: words, and what is piped in, or yes."""

    def run(line: str) -> Any:
        words = line.replace("/var/lib/app/", "./").replace("/backups/", "./").split(" | ")
        ours = next(part for part in words if part.startswith("tokenmeter "))
        typed = (place / "answer.json").read_bytes() if len(words) > 1 else b"y\n"
        piped = io.TextIOWrapper(io.BytesIO(typed))
        monkeypatch.setattr("sys.stdin", piped)
        with time_machine.travel(NOW, tick=True):
            return run_command(*shlex.split(ours.partition(" >")[0])[1:])

    return run


#: What an example has in it -> what is done before, as whoever types it has done.
BEFORE = {
    "archive drop": ["tokenmeter archive seal --through 2026-09 --to ./sealed"],
    "archive restore": ["tokenmeter archive seal --through 2026-09 --to ./sealed --drop"],
    "db restore": ["tokenmeter db backup nightly.db"],
    "token revoke": ["tokenmeter dashboard token create ada --only member=ada"],
    "invoice issue": ["tokenmeter period close 2026-11"],
    "INV-00001": ["tokenmeter period close 2026-11", "tokenmeter invoice issue member=ada --period 2026-11"],
}
#: Examples that may find something, which they say with exit code 1; `doctor` goes by this machine's SQLite, too.
FINDS = ("reconcile", "invoice coverage", "prices diff", "doctor --strict")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param(name, line, id=line)
        for name, line in EXAMPLES
        if name not in ELSEWHERE and not any(part in line for part in UNREACHABLE)
    ],
)
def test_an_example_does_what_it_says(name, line, run, place):
    for earlier in (each for part, lines in BEFORE.items() if part in line for each in lines):
        assert run(earlier).code == 0
    if name == "init":  # of a folder without settings
        (place / "tokenmeter.toml").unlink()
    done = run(line)
    assert done.code in ((0, 1) if any(part in line for part in FINDS) else (0,)), done.err
    assert "Error" not in done.err
