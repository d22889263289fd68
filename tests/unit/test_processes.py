"""Processes are told apart, also from later ones of the same number."""

import os
import subprocess
import sys
import threading

import pytest

from forking import run_in_child
from tokenmeter import default, processes
from tokenmeter.attribution import NOBODY, Scope
from tokenmeter.budgets import delivery, registry, tokens
from tokenmeter.budgets.runs import budget
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.meter import meter as meter_module
from tokenmeter.processes import OnceForAll, has_ended, make_lock, process_name
from tokenmeter.stores.trouble import Trouble

NAMED = "from tokenmeter.processes import process_name; print(process_name(), flush=True); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process began")
def test_one_that_runs_has_not_ended_and_one_that_was_killed_has():
    with subprocess.Popen(
        [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        name = process.stdout.readline().strip()
        assert not has_ended(name)
        process.kill()
        process.wait()
        assert has_ended(name)
    host, pid, where, began = process_name().split(":")
    assert has_ended(f"{host}:{pid}:{where}:{int(began) - 1}")


@pytest.mark.parametrize("name", ["host:1", "elsewhere:1:0123456789ab:5", "", "a:b:c:d"])
def test_of_others_nothing_is_said(name):
    assert not has_ended(name)
    host, pid, *_ = process_name().split(":")
    assert not has_ended(f"{host}:{pid}")


RESTORED = """
import os, sys
import snapshot_restore_py
import tokenmeter
from tokenmeter.ledger import is_own, new_id
from tokenmeter.stores import open_store

store = open_store(sys.argv[1])
before = new_id()
writer = store.journal._mutex
for restored, given, named in snapshot_restore_py.get_after_restore():
    restored(*given, **named)
assert not is_own(before) and new_id()[:20] != before[:20]
assert store.journal._mutex is not writer  # it begins anew
print("restored")
"""


def test_an_instance_that_was_given_the_memory_of_another_is_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RESTORED, f"sqlite:///{tmp_path / 'ledger.db'}"],
        env={**os.environ, "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "restored\n", "")


ADVICE = """
import mmap, os, sys

class Lenient(mmap.mmap):  # as an emulator's: whatever is advised, nothing is done and all is well
    def madvise(self, *_): pass

mmap.mmap = Lenient
from tokenmeter.ledger import is_own, new_id
mine = new_id()
if os.fork() == 0:
    os._exit(1 if is_own(mine) or new_id()[:20] == mine[:20] else 0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert is_own(mine)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_known_where_the_system_heeds_no_advice():
    done = subprocess.run([sys.executable, "-c", ADVICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_fork_left_is_put_right_though_an_interrupt_came_amid_it(monkeypatch):
    done = []

    def interrupted():
        done.append(1)
        if len(done) == 1:
            raise KeyboardInterrupt

    mark = processes._ByPid()
    mark[0] = 0
    monkeypatch.setattr(processes, "KNOWN", mark)
    monkeypatch.setattr(processes, "_in_child", [interrupted, processes.notice_fork, lambda: done.append(2)])
    with pytest.raises(KeyboardInterrupt):
        processes.notice_fork()
    assert not mark[0]
    processes.notice_fork()
    processes.notice_fork()
    assert mark[0]
    assert done == [1, 1, 2]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # said from Python 3.12 on
class TestLocksInAForkedChild:
    @pytest.fixture
    def fork(self):
        """Runs something in a child while a thread of this process holds a lock; what the child found, as a number."""

        def run(lock, work):
            held, done = threading.Event(), threading.Event()

            def hold():
                with lock:
                    held.set()
                    done.wait()

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            try:
                return run_in_child(work)
            finally:
                done.set()
                thread.join()

        return run

    @pytest.mark.parametrize(
        "lock_of",
        [
            lambda: Scope(NOBODY)._lock,
            lambda: budget(limit_usd=1)._scope_in(None)._room,
            lambda: Trouble("x", "y")._lock,
            lambda: default._lock,
            lambda: delivery._starting,
            lambda: meter_module._lock,
            lambda: registry._reading,
            lambda: tokens._starting,
        ],
        ids=["scope", "run", "trouble", "default meter", "alerts", "meter", "budgets", "token counts"],
    )
    def test_are_free_though_a_thread_of_the_parent_had_them(self, fork, lock_of):
        lock = lock_of()
        assert fork(lock, lambda: int(lock.acquire(blocking=False))) == 1

    def test_stay_with_the_thread_that_forks(self, fork):
        mine, other = make_lock(), make_lock()
        with mine:
            assert fork(other, lambda: int(mine._is_owned())) == 1
        assert not mine._is_owned()


@pytest.fixture
def ask_together(monkeypatch):
    """What twenty threads get that ask for some work while another one's is done."""
    asked, alone = threading.Semaphore(0), processes.run_alone

    def run_alone(lock, *what):
        asked.release()
        return alone(lock, *what)

    def ask(work):
        together, go, got = OnceForAll(), threading.Event(), []

        def note():
            try:
                got.append(together.run(work))
            except (StoreUnavailableError, ValueError) as error:
                got.append(error)

        threads = [threading.Thread(target=together.run, args=(go.wait,))]
        threads += [threading.Thread(target=note) for _ in range(20)]
        for thread in threads:
            thread.start()
            asked.acquire()
        go.set()
        for thread in threads:
            thread.join()
        return got

    monkeypatch.setitem(OnceForAll.run.__globals__, "run_alone", run_alone)
    return ask


def test_what_many_ask_for_at_once_is_done_once(ask_together):
    done = []
    assert ask_together(lambda: done.append(1) or len(done)) == [1] * 20


def test_where_the_store_is_away_one_finds_out_for_all_and_other_faults_are_ones_own(ask_together):
    tried = []

    def fail(error):
        tried.append(error)
        raise error

    got = ask_together(lambda: fail(StoreUnavailableError("away")))
    assert ([str(one) for one in got], len(tried)) == (["away"] * 20, 1)
    assert len({id(one) for one in got}) == 20
    tried.clear()
    got = ask_together(lambda: fail(ValueError("wrong")))
    assert len(tried) == 20
