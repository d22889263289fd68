"""What a ledger says while the files of its archived months are away, or the extra that reads them is missing."""

import json
import sys

import pytest

import tokenmeter
from tokenmeter import Budget

pytest.importorskip("duckdb")

USED = {"model": "gpt-5-mini", "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}


@pytest.fixture
def meter(tmp_path, monkeypatch):
    """A ledger with a budget that counts from its beginning, and its first months in files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/ledger.db")
    for day in ("2026-01-05", "2026-02-05", "2026-03-05"):
        made.record({**USED, "id": day}, provider="openai", endpoint="chat.completions", at=day)
    made.budgets.set(Budget(model="*", limit_usd=5, period="total", name="all"), by="ada")
    for month in ("2026-01", "2026-02"):
        made.close_period(month)
    made.archive("2026-02", to=tmp_path / "files", drop=True)
    yield made
    made.close()


def test_verify_says_what_it_could_not_count_while_the_files_are_away(meter, tmp_path):
    assert meter.verify().ok
    (tmp_path / "files").rename(tmp_path / "away")
    faults = meter.verify().faults
    assert "unchecked" in {one.kind for one in faults}
    assert "counter" not in {one.kind for one in faults}
    (tmp_path / "away").rename(tmp_path / "files")
    assert meter.verify().ok


def test_a_deep_verification_names_every_file_that_is_away_and_goes_on(meter, tmp_path):
    for file in (tmp_path / "files").rglob("*.parquet"):
        file.unlink()
    faults = meter.verify(deep=True).faults
    assert [(one.kind, one.where) for one in faults] == [
        ("archive", "2026-01"),
        ("archive", "2026-02"),
        ("unchecked", "sums"),
        ("unchecked", "budgets"),
    ]
    assert "could not be checked to the end: The archived month at" in faults[2].detail


def test_the_doctor_needs_no_file_of_the_archive(meter, tmp_path, run_command):
    whole = json.loads(run_command("doctor", "--json", "--store", meter.store.url).out)["facts"]
    (tmp_path / "files").rename(tmp_path / "away")
    said = run_command("doctor", "--json", "--store", meter.store.url)
    assert (said.code, json.loads(said.out)["facts"]) == (0, whole)


def test_verify_goes_on_without_the_extra(meter, monkeypatch):
    for package in ("duckdb", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, package, None)
    (fault,) = meter.verify().faults
    assert (fault.kind, fault.where) == ("unchecked", "budgets")
    assert "tokenmeter-sdk[archive]" in fault.detail


@pytest.mark.parametrize(("query", "told"), [("SELECT count(*) FROM entries", True), ("SELECT * FROM sums", False)])
def test_sql_says_which_entries_it_does_not_see(meter, run_command, query, told):
    said = run_command("sql", query, "--store", meter.store.url)
    assert ("2 entries are in archived months" in said.err) is told
    assert "archived" not in said.out
