"""Files that SQLite or tokenmeter has mapped or relies on are emptied, or cut off, under a running program."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import tokenmeter
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.stores.sqlite import SQLiteStore

SCRIPT = """
import os, sys, tokenmeter
from tokenmeter.testing import FakeProvider
import openai
folder, end, keep = sys.argv[1], sys.argv[2], int(sys.argv[3])
budgets = {"capped": [tokenmeter.Budget(limit_requests=9)], "free": []}
with FakeProvider() as provider:
    for name, caps in budgets.items():
        meter = tokenmeter.make_meter(store=f"sqlite:///{folder}/{name}.db", budgets=caps)
        client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test", base_url=provider.openai_url), meter)
        for _ in range(4):
            client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
            try:
                list(meter.store.entries())
            except tokenmeter.errors.StoreUnavailableError as error:
                assert "emptied or cut off" in str(error), error
            file = f"{folder}/{name}.db{end}"
            os.truncate(file, os.stat(file).st_size * keep // 4)
        client.close()
        meter.store.close()
    print("ended")
"""


@pytest.mark.parametrize("keep", [0, 2], ids=["emptied", "halved"])
@pytest.mark.parametrize("end", ["-live", "-shm", "-wal"])
def test_no_process_ends_and_no_entry_is_lost(tmp_path, end, keep):
    command = [sys.executable, "-c", SCRIPT, tmp_path, end, str(keep)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "ended"), run.stderr
    for name, caps in {"capped": [tokenmeter.Budget(limit_requests=9)], "free": []}.items():
        meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/{name}.db", budgets=caps)
        assert len(list(meter.store.entries())) == 4
        assert [one.spent for one in meter.remaining()] == [4] * len(caps)
        assert meter.store.verify().ok
        meter.store.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path):
    opened = SQLiteStore(path)
    yield opened
    opened.close()


def test_a_log_that_is_cut_off_spoils_no_ledger(store, path, make_entry):
    store.settle(make_entry())
    list(store.entries())
    assert store._book.settled_for_good()
    whole = path.read_bytes()
    store.settle(make_entry())
    list(store.entries())
    log = Path(f"{path}-wal")
    os.truncate(log, 0)
    store.settle(make_entry())
    with pytest.raises(StoreUnavailableError, match="cut off"):
        store.health()
    store.close()
    assert path.read_bytes() == whole


def test_a_log_that_another_program_moved_into_the_file_is_sound(store, path, make_entry):
    store.settle(make_entry())
    list(store.entries())
    other = sqlite3.connect(path)
    assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    store.settle(make_entry())
    assert len(list(store.entries())) == 2
    assert not store._book.trouble
    other.close()
