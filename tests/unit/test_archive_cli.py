"""``tokenmeter archive``, as somebody types it at the end of a year."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from typer.testing import CliRunner

from tokenmeter.cli.app import app
from tokenmeter.ledger import Entry
from tokenmeter.stores import open_store

pytest.importorskip("duckdb")


@pytest.fixture
def tm(tmp_path, monkeypatch):
    """Run a command on a ledger of three months, one call a day."""
    monkeypatch.setenv("TOKENMETER_STORE", f"sqlite:///{tmp_path}/usage.db")
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.chdir(tmp_path)
    store = open_store(f"sqlite:///{tmp_path}/usage.db")
    start = datetime(2025, 1, 1, 12, tzinfo=UTC)
    call = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "cost_source": "none"}
    moments = [start + timedelta(days=day) for day in range(90)]
    store.append([(Entry(occurred_at=one, recorded_at=one, **call), ()) for one in moments])
    store.close()

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_a_year_is_sealed_dropped_listed_checked_and_brought_back(tm, tmp_path):
    assert "No month is sealed yet" in tm("archive", "list")
    out = tm("archive", "seal", "--through", "2025-02", "--to", "archive")
    assert [line.split()[:2] for line in out.splitlines()[2:]] == [["2025-01", "31"], ["2025-02", "28"]]
    assert "file and ledger" in out
    assert "Nothing to do" in tm("archive", "seal", "--through", "2025-02", "--to", "archive")
    assert "2025-01" in tm("archive", "drop", "--through", "2025-01")
    found = json.loads(tm("archive", "list", "--json"))
    assert [(one["month"], one["entries"], one["dropped"]) for one in found] == [
        ("2025-01", 31, True),
        ("2025-02", 28, False),
    ]
    assert "90 entries checked" in tm("verify", "--deep")
    assert len(tm("entries", "--period", "2025-01", "--limit", "99", "--json").splitlines()) == 31
    assert "2025-01" in tm("archive", "restore")
    next((tmp_path / "archive").rglob("2025-02*")).unlink()
    assert "an archived month's file is gone" in tm("verify", code=1)


def test_what_takes_long_says_how_far_it_is_in_a_log_too(tm, monkeypatch):
    monkeypatch.setattr("tokenmeter.cli.frame._BETWEEN_LINES", -1)
    monkeypatch.setattr("tokenmeter.stores.archive.archives._PAGE", 1)
    out = tm("archive", "seal", "--through", "2025-02", "--to", "archive")
    assert [line for line in out.splitlines() if "sealing" in line] == ["sealing: 31 entries", "sealing: 59 entries"]
    assert "dropping, now at record: 59" in tm("archive", "drop")
    assert "bringing back, now at record: 1" in tm("archive", "restore")
    assert "copying: " in tm("db", "copy", "sqlite:///usage.db", "sqlite:///copy.db")
    assert "backing up: " in tm("db", "backup", "backup.db")
    assert "exporting: 90 records" in tm("export", "entries", "all.csv")


def test_what_lies_behind_calls_of_the_running_month_stays_and_is_told(tm):
    with time_machine.travel(datetime(2025, 3, 31, 15, tzinfo=UTC)):
        assert "stay" not in tm("archive", "seal", "--through", "2025-01", "--to", "archive")
        store = open_store("sqlite:///usage.db")
        late = datetime(2025, 2, 3, tzinfo=UTC)
        call = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "cost_source": "none"}
        store.append([(Entry(occurred_at=late, recorded_at=late, **call), ())])
        store.close()
        out = tm("archive", "seal", "--through", "2025-02", "--to", "archive", "--drop")
    assert "In the ledger stay 1 entry of 2025-02-03 to 2025-02-03: recorded after calls of the month that r" in out


def test_sealing_and_dropping_are_one_command(tm):
    out = tm("archive", "seal", "--through", "2025-02", "--to", "archive", "--drop", "--json")
    assert [one["dropped"] for one in json.loads(out)] == [True, True]
