"""Task queues: a task runs on the account of whoever sent it, retried, chained and sent by tasks, too."""

from __future__ import annotations

import logging

import pytest

import tokenmeter


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
