"""Errors of the disk itself, below Python and SQLite: a library in front of the system's fails each operation in turn.

Nothing that was acknowledged is lost, no sum is wrong, and only errors of tokenmeter come out. A log of what was
written, replayed up to each of its writes, stands in for power cuts. See tests/concurrency/disk.
"""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenmeter.stores.base import Counter
from tokenmeter.stores.sqlite import SQLiteStore

HERE = Path(__file__).parent / "disk"
sys.path.insert(0, str(HERE))
from calls import FAR, KEY, entry  # noqa: E402 - beside the program that the tests start

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs LD_PRELOAD and /proc"),
    pytest.mark.skipif(COMPILER is None, reason="NO ERROR OF THE DISK WAS TRIED: needs a C compiler"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("disk") / "disk.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", made, HERE / "disk.c", "-ldl"], check=True)
    return made


@pytest.fixture
def run(library, tmp_path):
    folder = tmp_path / "failing"
    folder.mkdir()

    def run(*arguments):
        environment = os.environ | {"DISK_ROOT": str(folder), "LD_PRELOAD": str(library)}
        done = subprocess.run(
            [sys.executable, HERE / "calls.py", folder, library, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    handed: Any = run
    handed.folder = folder
    return handed


@pytest.mark.parametrize(
    ("error", "half", "many"),
    [(errno.EIO, 0, 1), (errno.EIO, 1, 1), (errno.ENOSPC, 1, 0)],
    ids=["one_operation", "half_of_one_write", "full_from_there_on"],
)
def test_every_write_sync_renaming_and_truncation_fails_once(run, error, half, many):
    told = json.loads(run("fail", error, half, many))
    assert told["faults"] == []
    assert told["operations"] > 100


# -- power cuts

_HEAD = struct.Struct("=cqII")
#: What a power cut takes with it: memory that is shared, and the lock.
_MEMORY = ("-live", "-shm", "-lock")


def read_log(path):
    data, place = path.read_bytes(), 0
    while place < len(data):
        kind, offset, length, path_length = _HEAD.unpack_from(data, place)
        place += _HEAD.size
        name = data[place : place + path_length].decode()
        place += path_length
        yield kind.decode(), name, offset, data[place : place + length]
        place += length


def replay(operations, *, synced_only=False):
    """Files as these operations leave them: all of them, or of each file what came before its last sync."""
    files = {}
    kept = {}
    for kind, name, offset, data in operations:
        content = files.setdefault(name, bytearray())
        if kind == "w":
            content.extend(bytes(max(0, offset + len(data) - len(content))))
            content[offset : offset + len(data)] = data
        elif kind == "t":
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        elif kind == "r":
            files[data.decode()] = files.pop(name)
        elif kind == "u":
            del files[name]
            kept.pop(name, None)
        elif kind == "s":
            kept[name] = bytes(content)
    return kept if synced_only else files


def check_after_cut(files, acknowledged, tmp_path, moves):
    folder = tmp_path / "after"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        if not any(part in name for part in _MEMORY) and not name.endswith("acks"):
            (folder / Path(name).name).write_bytes(content)
    store = SQLiteStore(folder / "ledger.db")
    found = [one.entry_id for one in store.entries()]
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    held = len(store.expired(FAR))
    counter = store.counters([KEY])[KEY]
    assert counter == Counter(counter.settled, 5 * held)
    assert sum(moves.get(one, 0) for one in found) <= counter.settled
    assert store.verify().faults == ()
    store.settle(entry())
    assert len(list(store.entries())) == len(found) + 1
    store.close()


@pytest.fixture
def written(run, tmp_path):
    run("log", tmp_path / "log")
    operations = list(read_log(tmp_path / "log"))
    assert len(acknowledged_in(operations)) == 11
    return operations


def acknowledged_in(operations):
    lines = b"".join(data for kind, name, _, data in operations if kind == "w" and name.endswith("acks")).decode()
    return {one: int(amount) for one, amount in (line.split() for line in lines.splitlines())}


def test_a_process_that_ends_after_any_write(written, tmp_path):
    """What the kernel has is there: nothing acknowledged is missing, after any prefix or half of its last write."""
    for end in range(1, len(written) + 1):
        kind, name, offset, data = written[end - 1]
        if kind == "s" or name.endswith("acks") or any(part in name for part in _MEMORY):
            continue
        told = acknowledged_in(written[:end])
        check_after_cut(replay(written[:end]), told, tmp_path, told)
        if kind == "w" and end % 4 == 0:
            torn = [*written[: end - 1], (kind, name, offset, data[: len(data) // 2])]
            check_after_cut(replay(torn), told, tmp_path, told)


def test_a_power_cut_that_takes_all_that_was_not_synced(written, tmp_path):
    """The last calls may be gone; what is there adds up, and the ledger goes on."""
    ends = [place for place, (kind, *_) in enumerate(written, 1) if kind == "s"]
    assert ends
    for end in (*ends, len(written)):
        check_after_cut(replay(written[:end], synced_only=True), {}, tmp_path, {})
