"""``tokenmeter db``: a shared ledger is set up from the command line."""

from __future__ import annotations

import json
import subprocess
import sys


def db(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tokenmeter", "db", *arguments], capture_output=True, text=True, check=False
    )


def test_a_ledger_is_made_inspected_and_opened_to_a_reader(postgres_url):
    before = db("status", postgres_url, "--json")
    assert before.returncode == 1, before.stderr
    assert json.loads(before.stdout)["pending"]
    assert "Applied" in db("init", postgres_url).stdout
    assert "up to date" in db("migrate", postgres_url).stdout
    after = db("status", postgres_url)
    assert after.returncode == 0
    assert "pending: none" in after.stdout


def test_a_sqlite_ledger_needs_no_setting_up():
    refused = db("init", "sqlite:///usage.db")
    assert refused.returncode == 2
    assert "sets itself up" in refused.stderr
