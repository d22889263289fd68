"""While not even the tail can be written, calls without a cap go on; what they cost waits and is written later."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import openai
import pytest

import tokenmeter
from forking import run_in_child
from tokenmeter.errors import StoreUnavailableError
from tokenmeter.meter.recording import UnwrittenOutcomes
from tokenmeter.testing import FakeProvider

PROGRAM = Path(__file__).parent / "unwritable.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sets a limit of the system's")


def run(*arguments):
    done = subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize("ends", ["a call tells", "nobody calls", "somebody reads"])
@pytest.mark.parametrize("how", ["call", "async", "stream"])
def test_what_cannot_be_written_waits_and_is_written_later(how, ends, tmp_path):
    told, log = run(how, tmp_path, ends)
    assert told["during"] == {"waiting": 8, "flush": 8, "counted": 3}
    assert told["faults"] >= 8
    calls = 13 if ends == "a call tells" else 12
    assert told["sent"] == calls
    assert told["reported"] == calls
    assert told["after"] == {"waiting": 0, "entries": calls}
    assert told["ada"] == 3
    assert told["verified"]
    assert log.count("could not record a call (once by now)") == 1
    assert "kept in memory" in log
    assert "can record a call again; it failed" in log
    assert "Traceback" not in log


def test_what_a_process_takes_with_it_is_named(tmp_path):
    told, log = run("call", tmp_path, "killed by its own end")
    assert told["during"]["waiting"] == 8
    lost = next(line for line in log.splitlines() if "could not record 8 calls ($0.00" in line)
    assert lost.count("gpt-5-mini chatcmpl") == 8
    assert "tokenmeter reconcile" in lost


def test_a_meter_that_is_closed_leaves_no_thread_and_what_waits_is_written_when_it_is_used_again():
    meter = tokenmeter.make_meter(store="memory:")
    works = meter.store.settle

    def broken(*_args, **_kwargs):
        raise StoreUnavailableError("The disk is on fire.")

    with FakeProvider() as provider:
        client = tokenmeter.wrap(openai.OpenAI(api_key="sk-test", base_url=provider.openai_url), meter)
        ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "x"}]}
        meter.store.settle = broken
        client.chat.completions.create(**ask)
        thread = meter.waiting._thread
        assert thread.is_alive()
        meter.close()
        thread.join()
        assert len(meter.waiting) == 1
        meter.store.settle = works
        client.chat.completions.create(**ask)
        assert len(meter.waiting) == 0
        assert len(list(meter.store.entries())) == 2
        client.close()
    meter.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_leaves_what_waits_to_its_parent_and_waits_for_no_lock_of_its_threads():
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(late):
        begun.set()
        go_on.wait()
        written.append(late)
        return True

    waiting = UnwrittenOutcomes(write)
    waiting.keep("outcome")
    thread = threading.Thread(target=waiting.catch_up)
    thread.start()
    begun.wait()  # the thread has the lock

    def work():
        waiting.catch_up()
        return len(waiting)

    assert run_in_child(work) == 0
    go_on.set()
    thread.join()
    assert written == ["outcome"]
    assert len(waiting) == 0
