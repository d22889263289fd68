"""Children of `multiprocessing` and its like end without `atexit`: what they left open is written down at their end."""

import importlib
import multiprocessing
import threading

import openai
import pytest

import tokenmeter
from tokenmeter.budgets import Budget

SHARED = pytest.mark.parametrize("store_url", ["sqlite", "postgres"], indirect=True)
METHODS = pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
QUESTION = [{"role": "user", "content": "Hi"}]
KEPT = []


def open_stream(store_url, base_url):
    meter = tokenmeter.make_meter(store=store_url, config={}, budgets=[Budget(member="*", limit_usd=100)])
    client = tokenmeter.wrap(openai.OpenAI(base_url=base_url, api_key="sk-1", max_retries=0), meter=meter)
    with tokenmeter.attribute(member="ada"):
        return client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, stream=True)


def leave_a_stream_open(store_url, base_url):
    stream = open_stream(store_url, base_url)
    next(stream)
    KEPT.append(stream)


def leave_a_stream_open_and_fail(store_url, base_url):
    leave_a_stream_open(store_url, base_url)
    raise SystemExit(3)


def leave_a_stream_to_a_thread(store_url, base_url):
    stream = open_stream(store_url, base_url)
    next(stream)
    work_is_done = threading.Event()

    def read():
        work_is_done.wait()
        list(stream)

    threading.Thread(target=read).start()
    multiprocessing.util.Finalize(None, work_is_done.set, exitpriority=-2000)


def run(method, work, *given, package="multiprocessing"):
    child = importlib.import_module(package).get_context(method).Process(target=work, args=given)
    child.start()
    child.join(120)
    return child.exitcode


@SHARED
@METHODS
@pytest.mark.parametrize(("work", "code"), [(leave_a_stream_open, 0), (leave_a_stream_open_and_fail, 3)])
def test_a_stream_that_a_child_leaves_open_is_recorded_at_its_end(store_url, method, work, code, provider):
    meter = tokenmeter.make_meter(store=store_url, config={})
    provider.answer("word " * 200, chunk_delay=0.01, times=None)
    assert run(method, work, store_url, provider.openai_url) == code
    (entry,) = meter.entries()
    assert (entry.status, entry.attribution.member) == ("aborted", "ada")
    assert "expired_hold" not in entry.flags
    assert meter.sweep() == 0
    meter.close()


@METHODS
@pytest.mark.parametrize("package", ["multiprocess", "billiard"])
def test_children_of_its_like_do_so_too(tmp_path, package, method, provider):
    pytest.importorskip(package)
    url = f"sqlite:///{tmp_path}/ledger.db"
    meter = tokenmeter.make_meter(store=url, config={})
    provider.answer("word " * 200, chunk_delay=0.01, times=None)
    assert run(method, leave_a_stream_open, url, provider.openai_url, package=package) == 0
    (entry,) = meter.entries()
    assert (entry.status, entry.attribution.member) == ("aborted", "ada")
    meter.close()


@METHODS
def test_a_stream_that_a_thread_reads_when_a_childs_work_is_done_is_recorded_whole(tmp_path, method, provider):
    meter = tokenmeter.make_meter(store=f"sqlite:///{tmp_path}/ledger.db", config={})
    provider.answer("word " * 40, chunk_delay=0.01, times=None)
    assert run(method, leave_a_stream_to_a_thread, f"sqlite:///{tmp_path}/ledger.db", provider.openai_url) == 0
    (entry,) = meter.entries()
    (billed,) = provider.billed
    assert entry.status == "ok"
    assert entry.usage.output_tokens == billed.usage["completion_tokens"]
    meter.close()


def test_what_a_parent_left_open_is_not_its_childs_to_record(tmp_path, provider):
    url = f"sqlite:///{tmp_path}/ledger.db"
    provider.answer("word " * 40, chunk_delay=0.01, times=None)
    stream = open_stream(url, provider.openai_url)
    next(stream)
    assert run("fork", int) == 0
    meter = tokenmeter.make_meter(store=url, config={})
    assert list(meter.entries()) == []
    list(stream)
    assert [entry.status for entry in meter.entries()] == ["ok"]
    meter.close()
