"""A ledger in memory takes no room once its process is gone, however that ended."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from tokenmeter.stores import open_store
from tokenmeter.stores.sqlite import MemoryStore, SQLiteStore

_OPEN = """
import os, sys
from tokenmeter.stores import open_store
store = open_store("memory:")
print(store.path, flush=True)
"""


def mark_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".alive")


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_what_a_process_left_that_ended_without_a_word_is_removed_by_the_next(end):
    done = subprocess.run([sys.executable, "-c", _OPEN + end], capture_output=True, text=True, check=False)
    folder = Path(done.stdout.strip()).parent
    open_store("memory:").close()
    assert not folder.exists()
    assert not mark_of(folder).exists()


def test_the_ledger_of_a_process_that_lives_stays():
    with subprocess.Popen(
        [sys.executable, "-c", _OPEN + "sys.stdin.read(); print(store.counters([]))"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        open_store("memory:").close()
        assert path.exists()
        assert other.communicate("")[0] == "{}\n"
    assert not path.parent.exists()
    assert not mark_of(path.parent).exists()


def test_two_of_one_process_leave_each_other_alone():
    first, second = MemoryStore(), MemoryStore()
    assert first.path != second.path
    assert first.path.exists()
    folder = second.path.parent
    second.close()
    del second
    gc.collect()
    assert not folder.exists()
    assert first.path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # threads of other tests
def test_a_forked_child_leaves_it_to_its_parent():
    store = MemoryStore()
    child = os.fork()
    if not child:
        del store
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.path.exists()


def test_a_mark_that_is_somebody_elses_link_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmeter.stores.sqlite._place", lambda: tmp_path)
    kept = tmp_path / "mine"
    kept.write_text("kept")
    (tmp_path / "tokenmeter-x.alive").symlink_to(kept)
    MemoryStore().close()
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_store_that_nobody_has_is_let_go_of_with_its_files(fresh_url, kind):
    store = open_store(fresh_url(kind))
    assert isinstance(store, SQLiteStore)
    store.counters([])
    there, path = weakref.ref(store), str(store.path)
    del store
    gc.collect()
    assert there() is None
    opened = [str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
    assert not [one for one in opened if one.startswith(path)]
