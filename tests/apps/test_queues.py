"""Task queues: a task runs on the account of whoever sent it, retried, chained and sent by tasks, too."""

from __future__ import annotations

import logging
import threading

import pytest

import tokenmeter


@pytest.fixture(autouse=True)
def no_other_application(monkeypatch):
    """Celery hands tasks of an application on to every later one of the process: here to none of another test."""
    state = pytest.importorskip("celery._state")
    monkeypatch.setattr(state, "_on_app_finalizers", set(state._on_app_finalizers))


@pytest.fixture
def everything_is_recorded(accounts):
    """Waits until the workers are done, however long they take."""

    def wait(count, every):
        import time

        while len(accounts()) < count:
            time.sleep(every)
        return accounts()

    return lambda count: wait(count, 0.02)


def test_celery(load, everything_is_recorded, warnings):
    app = load("with_celery")
    from celery.contrib.testing.worker import start_worker

    root = logging.getLogger()
    level = root.level
    # Celery's worker for tests sets the root logger's level, and would leave it so for every later test.
    with start_worker(app.app, perform_ping_check=False, pool="threads", concurrency=2):
        root.setLevel(level)
        results = [*app.send("ada"), *app.send("grace")]
        for result in results:
            result.get(timeout=60)
        app.ask.delay("nobody").get(timeout=60)
        found = everything_is_recorded(9)
    assert found == sorted(
        [("-", "-", "-")]
        + [(member, "-", route) for member in ("ada", "grace") for route in ("/send",) * 3 + ("/later",)]
    )
    assert warnings.messages == []


def test_an_eager_celery_task_is_on_the_account_of_its_caller(load, accounts):
    app = load("with_celery")
    with tokenmeter.attribute(member="ada"):
        app.ask.apply(("one",))
    assert accounts() == [("ada", "-", "-")]


def test_dramatiq(load, accounts, warnings):
    app = load("with_dramatiq")
    import dramatiq

    app.broker.emit_after("process_boot")
    worker = dramatiq.Worker(app.broker, worker_timeout=50, worker_threads=2)
    worker.start()
    try:
        app.send("ada")
        app.send("grace")
        app.ask.send("nobody")
        app.broker.join(app.ask.queue_name)
        worker.join()
    finally:
        worker.stop()
        app.broker.close()
    assert accounts() == [("-", "-", "-"), *[("ada", "-", "/send")] * 2, *[("grace", "-", "/send")] * 2]
    assert "attribute" not in warnings.text


def test_rq(load, accounts, warnings):
    app = load("with_rq")
    from fakeredis import FakeStrictRedis
    from rq import SimpleWorker

    from tokenmeter.queues.rq import AttributedJob

    redis = FakeStrictRedis()
    app.send("ada", redis)
    app.send("grace", redis)
    worker = SimpleWorker(["default"], connection=redis, job_class=AttributedJob)
    assert worker.work(burst=True)
    assert accounts() == [*[("ada", "-", "/send")] * 2, *[("grace", "-", "/send")] * 2]
    assert warnings.messages == []


#: What an attribution may have, and no proxy would pass on: a queue does.
LONG = {"member": "文" * 512, "team": "字" * 512}


def test_a_long_attribution_goes_through_every_queue(load, accounts, warnings):
    from fakeredis import FakeStrictRedis
    from rq import Queue

    from tokenmeter.queues.rq import AttributedJob

    redis = FakeStrictRedis()
    celery, dramatiq = load("with_celery"), load("with_dramatiq")
    from celery.contrib.testing.worker import start_worker
    from dramatiq import Worker

    dramatiq.broker.emit_after("process_boot")
    worker = Worker(dramatiq.broker, worker_timeout=50, worker_threads=1)
    worker.start()
    root = logging.getLogger()
    level = root.level
    try:
        with start_worker(celery.app, perform_ping_check=False, pool="threads", concurrency=1):
            root.setLevel(level)
            with tokenmeter.attribute(**LONG):
                celery.ask.delay("one").get(timeout=60)
                dramatiq.ask.send("one")
                job = Queue(connection=redis, job_class=AttributedJob).enqueue(
                    tokenmeter.attribution.current_attribution
                )
        dramatiq.broker.join(dramatiq.ask.queue_name)
        worker.join()
    finally:
        worker.stop()
        dramatiq.broker.close()
    assert job.perform() == tokenmeter.Attribution(**LONG)
    assert accounts() == [(LONG["member"], LONG["team"], "-")] * 2
    assert warnings.messages == []


@pytest.mark.parametrize(
    "meta",
    [None, {}, {1: "one"}, {"baggage": {"bags": 2}}, {"baggage": None}, {"baggage": "userId=1"}, {("a", "b"): [1]}],
    ids=["none", "empty", "a number", "baggage of its own", "no baggage", "a header", "a pair"],
)
def test_the_meta_of_a_job_is_the_programs_own(meta):
    from fakeredis import FakeStrictRedis
    from rq import Queue

    from tokenmeter.queues.rq import AttributedJob

    queue = Queue(connection=FakeStrictRedis(), job_class=AttributedJob)
    with tokenmeter.attribute(member="ada"):
        sent = queue.enqueue(tokenmeter.attribution.current_attribution, meta=meta)
    job = queue.fetch_job(sent.id)
    assert {name: value for name, value in job.meta.items() if name != "tokenmeter.sender"} == (meta or {})
    assert job.perform().member == "ada"
    assert queue.enqueue(len, "", meta=meta).meta == (meta or {}), "nobody's job is as it was"


def test_a_job_without_a_call_is_no_block_that_lost_one(configured, accounts, warnings, fake_provider):
    from fakeredis import FakeStrictRedis
    from rq import Queue

    from tokenmeter.openai import OpenAI
    from tokenmeter.queues.rq import AttributedJob

    configured()
    with tokenmeter.attribute(member="ada"):
        job = Queue(connection=FakeStrictRedis(), job_class=AttributedJob).enqueue(len, "")
    job.perform()
    ask = threading.Thread(target=lambda: OpenAI().models.list() and OpenAI().embeddings.create(model="m", input="x"))
    ask.start()
    ask.join()
    assert accounts() == [("-", "-", "-")]
    assert warnings.messages == []


def test_a_message_of_a_program_without_our_hooks_is_attributed_by_its_headers(load, accounts):
    app = load("with_celery")
    from celery.contrib.testing.worker import start_worker

    root = logging.getLogger()
    level = root.level
    with start_worker(app.app, perform_ping_check=False, pool="threads", concurrency=1):
        root.setLevel(level)
        with tokenmeter.attribute(member="ada"):
            headers = tokenmeter.to_headers()
        app.ask.apply_async(("one",), headers=headers).get(timeout=60)
    assert accounts() == [("ada", "-", "-")]
