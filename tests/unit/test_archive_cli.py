"""``tokenmeter archive``, as somebody types it at the end of a year."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from typer.testing import CliRunner

from tokenmeter.attribution import Attribution
from tokenmeter.cli.app import app
from tokenmeter.errors import LedgerError
from tokenmeter.ledger import Entry
from tokenmeter.stores import open_store
from tokenmeter.stores.backup import restore

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
    (tmp_path / "archive").rename(tmp_path / "moved")
    assert str(tmp_path / "moved") in tm("archive", "move", "--to", "moved")
    assert "Nothing to do" in tm("archive", "move", "--to", "moved")
    assert "2025-01" in tm("archive", "restore")
    next((tmp_path / "moved").rglob("2025-02*")).unlink()
    assert "an archived month's file is gone" in tm("verify", code=1)
    tm("db", "backup", "backup.db", code=1)
    with pytest.raises(LedgerError, match=r"--to PLACE\. For the latter, restore the backup first as it is"):
        restore("backup.db", "sqlite:///restored.db")


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


@pytest.mark.parametrize("fault", ["none", "gone", "cut", "not dropped"])
def test_what_was_not_compared_with_files_is_told_and_a_file_that_is_away_is_no_success(tm, tmp_path, fault):
    tm("archive", "seal", "--through", "2025-02", "--to", "archive", *(() if fault == "not dropped" else ("--drop",)))
    file = next((tmp_path / "archive").rglob("2025-01*"))
    if fault in {"gone", "not dropped"}:
        file.unlink()
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    code = int(fault in {"gone", "cut"})
    for command in (["db", "rebuild", "--dry-run"], ["db", "rebuild"]):
        told = " ".join(tm(*command, code=code).split())
        found = json.loads(tm(*command, "--json", code=code))
        if fault == "not dropped":
            assert "every kept sum is what" in told
            assert "not compared" not in told
            assert (found["not_compared_until"], found["unreadable"]) == (None, [])
            continue
        assert "every kept sum after 2025-02-28 is what" in told
        assert "Days up to 2025-02-28 were not compared: 59 entries" in told
        assert found["not_compared_until"] == "2025-02-28"
        assert [str(file) in one for one in found["unreadable"]] == [True] * code
        assert (str(file) in told) == bool(code)
    if not code:
        assert "every kept sum is what" in tm("db", "rebuild", "--dry-run", "--deep")


def test_days_between_those_with_archived_entries_are_compared(tm):
    store = open_store("sqlite:///usage.db")
    call = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "cost_source": "none"}
    moments = [datetime(2025, month, 7, tzinfo=UTC) for month in (8, 4)]  # the first dated ahead
    store.append([(Entry(occurred_at=one, recorded_at=one, **call), ()) for one in moments])
    store.close()
    tm("archive", "seal", "--through", "2025-08", "--to", "archive", "--drop")
    store = open_store("sqlite:///usage.db")
    store.append([(Entry(occurred_at=moments[1] + timedelta(days=9), recorded_at=moments[1], **call), ())])
    store.close()
    with closing(sqlite3.connect("usage.db")) as connection, connection:
        connection.execute("UPDATE sums SET n = 7 WHERE level = 1 AND slot = 20194")
    told = " ".join(tm("db", "rebuild", "--dry-run", code=1).split())
    assert "2025-04-16" in told
    assert "Days with entries in archived files (2025-01-01 to 2025-03-31, 2025-04-07, 2025-08-07) were not" in told
    found = json.loads(tm("db", "rebuild", "--json"))
    assert [one["first"] for one in found["not_compared"]] == ["2025-01-01", "2025-04-07", "2025-08-07"]
    assert "every kept sum of other days is what" in tm("db", "rebuild")


@pytest.mark.parametrize("there", [True, False])
def test_an_erasure_that_could_not_count_says_of_which_file_and_is_no_success(tm, tmp_path, there):
    store = open_store("sqlite:///usage.db")
    moment = datetime(2025, 3, 20, tzinfo=UTC)
    call = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "cost_source": "none"}
    who = Attribution(end_user="u", tags={"run": "7"})
    store.append([(Entry(occurred_at=moment, recorded_at=moment, attribution=who, **call), ())])
    store.close()
    tm("archive", "seal", "--through", "2025-03", "--to", "archive", "--drop")
    file = next((tmp_path / "archive").rglob("2025-03*"))
    if not there:
        file.unlink()
    for dimension, value in (("end_user", "u"), ("tag:run", "7")):
        out = tm("erase", dimension, value, "--reason", "asked to", "--by", "kim", "--yes", code=int(not there))
        assert ("1 entry now shows" if there else f"not counted: The archived month at {file} cannot be read") in out
    assert " u " not in tm("sql", "SELECT * FROM entries")


def test_what_came_late_and_lies_behind_a_later_month_is_told_when_it_stays(tm):
    tm("archive", "seal", "--through", "2025-03", "--to", "archive")
    store = open_store("sqlite:///usage.db")
    call = {"provider": "openai", "endpoint": "chat.completions", "operation": "chat", "cost_source": "none"}
    moment = datetime(2025, 2, 3, tzinfo=UTC)
    store.append([(Entry(occurred_at=moment, recorded_at=moment, **call), ())])
    store.close()
    told = "In the ledger stay 1 entry of 2025-02 that came late: sealed behind a later month, and dropped with it."
    tm("archive", "seal", "--through", "2025-03", "--to", "archive")
    assert told in tm("archive", "drop", "--through", "2025-02")
    assert "In the ledger" not in tm("archive", "drop", "--through", "2025-03")
    back = json.loads(tm("archive", "restore", "--since", "2025-03", "--json"))
    assert [one["month"] for one in back] == ["2025-02", "2025-03"]


def test_a_copy_for_other_tools_says_what_it_lacks(tm):
    tm("archive", "seal", "--through", "2025-02", "--to", "archive")
    assert "archived months" not in tm("sql", "--copy", "whole.db")
    tm("archive", "drop")
    assert "59 entries are in archived months, and not among entries" in tm("sql", "--copy", "less.db")
    assert "59 entries are in archived months" in tm("sql", "SELECT count(*) FROM entries")
    assert "archived months" not in tm("sql", "SELECT sum(requests) FROM sums")
