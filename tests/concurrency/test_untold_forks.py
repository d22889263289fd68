"""Forks that Python is not told of, as uWSGI's: the child is another process, and knows it whatever it does first."""

import os
import subprocess
import sys

import pytest

from tokenmeter.stores import open_store
from tokenmeter.testing import FakeProvider

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

PRELUDE = """
import ctypes, gc, os, sys
url, address, knows_by = sys.argv[1:]
if knows_by == "pid":  # where no memory can be had that a fork empties
    sys.platform = "other"
from tokenmeter import processes
sys.platform = "linux"
assert isinstance(processes.KNOWN, processes._ByPid) == (knows_by == "pid")
import tokenmeter
from tokenmeter.openai import OpenAI

fork = ctypes.PyDLL(None).fork  # as C does, with no word to Python
tokenmeter.configure(store=url, budgets=[tokenmeter.Budget(limit_requests=20)])
question = dict(model="gpt-5-mini", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=5)

def connect():  # whoever forks makes connections of his own
    return OpenAI(base_url=address + "/v1", api_key="sk-a", max_retries=0).chat.completions.create

def wait(*children):
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def fork_three():  # None in a child
    children = []
    for _ in range(3):
        children.append(fork())
        if children[-1] == 0:
            return None
    return children
"""

CALLS = """
tokenmeter.remaining()  # a server that forks has opened the ledger
children = fork_three()
create, answered = connect(), 0
try:
    while True:
        create(**question) if answered % 2 else list(create(stream=True, **question))
        answered += 1
except tokenmeter.BudgetExceededError:
    pass
if children:
    wait(*children)
"""

BY_HAND = """
tokenmeter.remaining()
children = fork_three()
for _ in range(5):
    with tokenmeter.attribute(member="ada"):
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        tokenmeter.record(usage, provider="openai", endpoint="chat.completions", model="gpt-5-mini")
if children:
    wait(*children)
"""

AMID = """
create = connect()
create(**question)
tokenmeter.report()
stream = create(stream=True, **question)
next(stream)
child = fork()
if child == 0:
    del stream  # it is the parent's to write down
    gc.collect()
    seen = tokenmeter.remaining()[0].spent, len([*tokenmeter.entries()]), tokenmeter.verify().ok
    assert seen == (1, 1, True), seen
    connect()(**question)
else:
    wait(child)
    list(stream)
    create(**question)
"""

THREADS = """
import threading
tokenmeter.remaining()
held, stop = threading.Event(), threading.Event()

def rest(depth=0):  # its stack is another thread's in the child
    if depth < 20:
        return rest(depth + 1)
    held.set()
    stop.wait()

threading.Thread(target=rest, daemon=True).start()
held.wait()
child = fork()
if child == 0:
    def call():
        with tokenmeter.attribute(member="ada"):
            connect()(**question)
        connect()(**question)
        seen.append(1)
    seen = []
    with tokenmeter.attribute(team="red"):
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    assert len(seen) == 3
    os._exit(0)
stop.set()
wait(child)
"""


@pytest.fixture
def run(fresh_url, tmp_path):
    def run(code, kind, knows_by="memory"):
        url, said = fresh_url(kind), tmp_path / "said"
        with FakeProvider() as provider, said.open("w") as output:  # no pipe, whose end a child that hangs keeps open
            arguments = [PRELUDE + code, url, provider.url, knows_by]
            done = subprocess.run([sys.executable, "-c", *arguments], stderr=output, timeout=120, check=False)
        assert done.returncode == 0, said.read_text()
        assert "Traceback" not in said.read_text()
        return open_store(url)

    return run


SHARED = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


@SHARED
@pytest.mark.parametrize("knows_by", ["memory", "pid"])
def test_children_keep_to_a_cap_together_and_lose_no_call(run, kind, knows_by):
    store = run(CALLS, kind, knows_by)
    entries = list(store.entries())
    assert len({entry.response_id for entry in entries}) == len(entries) == 20
    assert not any(entry.status != "ok" or entry.flags for entry in entries)
    assert store.verify().ok
    assert not store.left()
    store.close()


@SHARED
def test_what_children_record_by_hand_is_theirs(run, kind):
    store = run(BY_HAND, kind)
    assert len({entry.entry_id for entry in store.entries()}) == 20
    assert store.verify().ok
    store.close()


def test_a_child_knows_what_the_parent_did_and_leaves_its_stream_to_it(run):
    store = run(AMID, "sqlite")  # on a server a thread sends: no fork that Python is not told of bears threads
    entries = list(store.entries())
    assert [entry.streamed for entry in entries].count(True) == 1
    assert len({entry.response_id for entry in entries}) == len(entries) == 4
    assert not any(entry.flags for entry in entries)
    assert store.verify().ok
    store.close()


def test_a_child_does_not_look_at_threads_that_only_its_parent_has(run):
    store = run(THREADS, "sqlite")
    assert len(list(store.entries())) == 6
    assert store.verify().ok
    store.close()
