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


def test_a_dramatiq_message_that_is_sent_twice_is_each_senders():
    import dramatiq
    from dramatiq.brokers.stub import StubBroker

    from tokenmeter.queues.dramatiq import AttributionMiddleware

    broker = StubBroker()
    broker.add_middleware(AttributionMiddleware())
    seen = []
    note = dramatiq.actor(
        lambda: seen.append(tokenmeter.attribution.current_attribution().member), actor_name="note", broker=broker
    )
    message = note.message()
    for member in ("ada", "grace"):
        with tokenmeter.attribute(member=member):
            broker.enqueue(message)
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        broker.join(note.queue_name)
        worker.join()
    finally:
        worker.stop()
        broker.close()
    assert seen == ["ada", "grace"]


@pytest.mark.parametrize("first", [False, True], ids=["added last", "added before the others"])
def test_what_follows_a_dramatiq_message_is_on_its_senders_account(first, warnings):
    import dramatiq
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.middleware import GroupCallbacks, Pipelines
    from dramatiq.rate_limits.backends import StubBackend

    from tokenmeter.queues.dramatiq import AttributionMiddleware

    broker = StubBroker()
    broker.add_middleware(AttributionMiddleware(), before=Pipelines if first else None)
    broker.add_middleware(GroupCallbacks(StubBackend()))
    seen = []

    def note(*found, name=None):
        seen.append((name, tokenmeter.attribution.current_attribution().member))
        return len(found)

    def fail():
        raise RuntimeError("as it must")

    actors = {name: dramatiq.actor(note, actor_name=name, broker=broker) for name in ("note", "followed")}
    options = {"on_failure": "note", "on_retry_exhausted": "followed", "max_retries": 0}
    fails = dramatiq.actor(fail, actor_name="fail", broker=broker, **options)
    told = actors["note"]
    for member in ("ada", "grace"):
        with tokenmeter.attribute(member=member):
            steps = [told.message(1, name=f"step {number}") for number in range(3)]
            dramatiq.pipeline(steps, broker=broker).run()
            group = dramatiq.group([told.message(name="of a group") for _ in range(2)], broker=broker)
            group.add_completion_callback(told.message(name="group is done"))
            group.run()
            told.send_with_options(kwargs={"name": "succeeds"}, on_success="followed")
            fails.send()
    told.send_with_options(kwargs={"name": "nobody's"}, on_success="followed")
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    try:
        broker.join(told.queue_name, fail_fast=False)
        worker.join()
    finally:
        worker.stop()
        broker.close()
    hers = ["step 0", "step 1", "step 2", "of a group", "of a group", "group is done", "succeeds", None, None, None]
    nobodys = [("nobody's", None), (None, None)]
    everything = [(name, member) for member in ("ada", "grace") for name in hers]
    assert sorted(seen, key=str) == sorted([*everything, *nobodys], key=str)
    assert "Unexpected failure" not in warnings.text


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


SEEN = []


def note_success(job, _connection, result):
    SEEN.append(("success", result, job.meta.get("own"), tokenmeter.attribution.current_attribution().member))


def note_failure(job, _connection, _kind, error, _trace):
    SEEN.append(("failure", str(error), job.meta.get("own"), tokenmeter.attribution.current_attribution().member))


def note_stop(job, _connection):
    SEEN.append(("stopped", None, job.meta.get("own"), tokenmeter.attribution.current_attribution().member))


async def never_called(*_):
    raise AssertionError


def test_the_callbacks_of_an_rq_job_are_on_its_senders_account():
    from fakeredis import FakeStrictRedis
    from rq import Callback, Queue, SimpleWorker

    from tokenmeter.queues.rq import AttributedJob

    SEEN.clear()
    redis = FakeStrictRedis()
    queue = Queue(connection=redis, job_class=AttributedJob)
    hooks = {"on_success": note_success, "on_failure": note_failure, "on_stopped": note_stop}
    hooks = {name: Callback(hook) for name, hook in hooks.items()}
    with tokenmeter.attribute(member="ada"):
        queue.enqueue(len, "one", meta={"own": 1}, **hooks)
        failing = queue.enqueue(len, 7, **hooks)
    queue.enqueue(len, "", **hooks)
    assert SimpleWorker(["default"], connection=redis, job_class=AttributedJob).work(burst=True)
    fetched = queue.fetch_job(failing.id)
    fetched.stopped_callback(fetched, redis)
    assert SEEN == [
        ("success", 3, 1, "ada"),
        ("failure", "object of type 'int' has no len()", None, "ada"),
        ("success", 0, None, None),
        ("stopped", None, None, "ada"),
    ]
    assert tokenmeter.attribution.current_scopes() == ()


def test_a_callback_that_rq_cannot_run_is_refused_as_without_us():
    import inspect

    from fakeredis import FakeStrictRedis
    from rq import Callback, Queue

    from tokenmeter.queues.rq import AttributedJob

    queue = Queue(connection=FakeStrictRedis(), job_class=AttributedJob)
    job = queue.enqueue(len, "", on_success=Callback(never_called))
    assert inspect.iscoroutinefunction(job.success_callback)
    assert job.failure_callback is None


@pytest.fixture
def huey(load, monkeypatch, tmp_path):
    """The example's module, and what a consumer does with its queue, until that is empty."""
    monkeypatch.setenv("HUEY_FILE", f"{tmp_path}/huey.db")
    app = load("with_huey")

    def work():
        while (task := app.huey.dequeue()) is not None:
            app.huey.execute(task)

    return app, work


def test_huey(huey, accounts, warnings):
    app, work = huey
    app.send("ada")
    app.send("grace")
    app.ask("nobody's")
    work()
    assert accounts() == sorted(
        [("-", "-", "-")]
        + [(member, "-", route) for member in ("ada", "grace") for route in ("/later", *["/send"] * 3)]
    )
    assert [record for record in warnings.records if record.name.startswith("tokenmeter")] == []
    assert app.huey.all_results(), "what the tasks returned is kept"


def test_what_a_huey_task_leads_to_is_on_its_senders_account(huey, accounts):
    app, work = huey
    chord = pytest.importorskip("huey").chord
    seen = []

    @app.huey.task(name="note")
    def note(*found, **named):
        seen.append((tokenmeter.attribution.current_attribution().member, named))

    @app.huey.task(name="fail")
    def fail():
        raise RuntimeError("as it must")

    with tokenmeter.attribute(member="ada"):
        app.huey.enqueue(fail.s().error(note, baggage="its own"))
        app.huey.enqueue(chord([app.ask.s("one"), app.ask.s("two")], note.s()))
        note.schedule(delay=0)
    with tokenmeter.attribute(member="grace"):
        note(name="her own")
    note()
    work()
    assert sorted(seen, key=str) == sorted(
        [("ada", {"baggage": "its own"}), ("ada", {}), ("ada", {}), ("grace", {"name": "her own"}), (None, {})], key=str
    )
    assert accounts() == [("ada", "-", "-")] * 2


def test_a_huey_task_that_is_called_off_leaves_no_block_behind(huey, warnings):
    app, work = huey
    call_off_for_good = pytest.importorskip("huey").CancelExecution
    seen = []

    @app.huey.pre_execute("another hook")
    def call_off(task):
        if task.args == ("not this one",):
            raise call_off_for_good

    @app.huey.task(name="note")
    def note(text):
        seen.append((text, tokenmeter.attribution.current_attribution().member))
        raise KeyboardInterrupt

    with tokenmeter.attribute(member="ada"):
        note("not this one")
        note("this one")
    note("nobody's")
    work()
    assert seen == [("this one", "ada"), ("nobody's", None)]
    assert tokenmeter.attribution.current_scopes() == ()
    assert [record for record in warnings.records if record.name.startswith("tokenmeter")] == []


def test_an_immediate_huey_task_is_on_the_account_of_its_caller(huey, accounts):
    app, _ = huey
    app.huey.immediate = True
    with tokenmeter.attribute(member="ada") as scope:
        app.ask("one")
    assert accounts() == [("ada", "-", "-")]
    assert scope.requests == 1


@pytest.fixture
def arq_pool(monkeypatch):
    """Makes pools of one Redis, which a worker's start asks nothing about."""
    arq, worker = pytest.importorskip("arq"), pytest.importorskip("arq.worker")
    from fakeredis import FakeAsyncRedis, FakeServer

    of_arq = {"default_queue_name": "arq:queue", "expires_extra_ms": 86_400_000}
    pool = type("Pool", (FakeAsyncRedis, arq.ArqRedis), {"__init__": FakeAsyncRedis.__init__, **of_arq})

    def make_pool():
        made = pool(server=server)
        made.job_serializer = made.job_deserializer = None
        return made

    async def log_nothing(*_):
        pass

    monkeypatch.setattr(worker, "log_redis_info", log_nothing)  # INFO, which this Redis does not know
    server = FakeServer()
    return make_pool


async def run_jobs(settings):
    """What the command `arq` does with a class of settings, until the queue is empty."""
    worker = pytest.importorskip("arq.worker").create_worker(
        settings, burst=True, handle_signals=False, poll_delay=0.01
    )
    await worker.main()
    await worker.pool.aclose()


async def test_arq(load, arq_pool, accounts, warnings, monkeypatch):
    app = load("with_arq")

    async def create_pool(*_):
        return arq_pool()

    monkeypatch.setattr(app, "create_pool", create_pool)
    await app.send("ada")
    await app.send("grace")
    await arq_pool().enqueue_job("ask", "of a program without our hooks")
    monkeypatch.setattr(app.WorkerSettings, "redis_pool", app.carry_attribution(arq_pool()), raising=False)
    await run_jobs(app.WorkerSettings)
    assert accounts() == sorted(
        [("-", "-", "-")] + [(member, "-", route) for member in ("ada", "grace") for route in ("/later", "/send")]
    )
    assert warnings.messages == []


@pytest.mark.parametrize("told", ["the settings", "the worker"])
async def test_an_arq_worker_keeps_its_own_hooks_and_serializers(configured, arq_pool, told):
    import json

    arq = pytest.importorskip("arq.worker")
    from tokenmeter.queues.arq import carry_attribution

    seen = []

    async def note(ctx, text):
        seen.append((text, ctx["job_id"], ctx["mine"], tokenmeter.attribution.current_attribution().member))
        return text

    async def start(ctx):
        ctx["mine"] = tokenmeter.attribution.current_attribution().member

    own = {"job_serializer": lambda job: json.dumps(job).encode(), "job_deserializer": json.loads}
    pool = arq_pool()
    vars(pool).update(own)
    assert carry_attribution(pool) is pool
    with tokenmeter.attribute(member="ada"):
        job = await pool.enqueue_job("note", "hers", _job_id="1")
    await pool.enqueue_job("note", "nobody's", _job_id="2")
    assert (await job.info()).args == ["hers"]
    assert tokenmeter.attribution.current_attribution().member is None, "who reads a job is not its sender"

    settings = {
        "functions": [arq.func(note, name="note")],
        "redis_pool": pool,
        "on_job_start": start,
        "handle_signals": False,
        **own,
    }
    settings |= {"burst": True, "poll_delay": 0.01}
    worker = arq.create_worker(carry_attribution(settings) if told == "the settings" else settings)
    await (worker if told == "the settings" else carry_attribution(worker)).main()
    assert sorted(seen) == [("hers", "1", "ada", "ada"), ("nobody's", "2", None, None)]
    assert await job.result(timeout=60) == "hers"
    await pool.aclose()


def test_what_arq_has_no_use_for_is_refused():
    from tokenmeter.queues.arq import carry_attribution

    with pytest.raises(tokenmeter.ConfigurationError, match=r"arq\.create_pool gave.*not 'redis://localhost'"):
        carry_attribution("redis://localhost")


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
