"""Applications and drainers killed at random, the server stopped at once and restarted: nothing is lost or doubled.

`TOKENMETER_TEST_SEED` throws other dice.
"""

import multiprocessing
import os
import random
import threading
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tokenmeter.errors import StoreUnavailableError
from tokenmeter.ledger import CounterKey
from tokenmeter.stores import open_store

_SECONDS = 10
_KEY = CounterKey("cap", "member=ada", 0)


def _apply(url, acknowledged, make_entry, make_hold, make_posting):
    """Reserve, settle and write down what was acknowledged, in two threads, until killed."""
    store = open_store(url)

    def work():
        while True:
            hold, held = make_hold((_KEY, 10**9, 5), seconds=3600), True
            try:
                store.reserve(hold)
            except StoreUnavailableError:
                held = False
            entry = make_entry()
            store.settle(entry, [make_posting(3, 100, 1000)], reservation_id=hold.reservation_id if held else None)
            with acknowledged.open("a") as lines:
                lines.write(entry.entry_id + "\n")

    threading.Thread(target=work).start()
    work()


def _drain(url, *_):
    store: Any = open_store(url)
    while True:
        store.flush(1)
        time.sleep(0.05)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("own_postgres_server", ["-c wal_writer_delay=200ms"], indirect=True)  # the server's default
def test_what_was_acknowledged_is_stored_once_through_kills_and_crashes(
    own_postgres_server, tmp_path, opened, make_entry, make_hold, make_posting
):
    """Three applications and two drainers on two hosts, that is, with two tails."""
    hosts = [f"{own_postgres_server.url}&spool={tmp_path}/{name}" for name in ("one", "two")]
    opened(hosts[0]).close()
    acknowledged = tmp_path / "acknowledged"
    fork = multiprocessing.get_context("fork")
    jobs = [(_apply, hosts[0]), (_apply, hosts[0]), (_apply, hosts[1]), (_drain, hosts[0]), (_drain, hosts[1])]
    dice = random.Random(int(os.environ.get("TOKENMETER_TEST_SEED", "7")))

    def launch(job):
        work, url = job
        process = fork.Process(target=work, args=(url, acknowledged, make_entry, make_hold, make_posting))
        process.start()
        return process

    processes = [launch(job) for job in jobs]
    kills = 0
    end = time.monotonic() + _SECONDS
    crashes = [end - _SECONDS * 0.6, end - _SECONDS * 0.25]
    try:
        while time.monotonic() < end:
            time.sleep(dice.uniform(0.2, 0.7))
            victim = dice.randrange(len(processes))
            processes[victim].kill()
            processes[victim].join()
            processes[victim] = launch(jobs[victim])
            kills += 1
            if crashes and time.monotonic() > crashes[0]:
                crashes.pop(0)
                own_postgres_server.stop_at_once()
                time.sleep(dice.uniform(0.3, 0.8))
                own_postgres_server.start()
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert crashes == []

    store = opened(hosts[0])
    assert store.flush(30) == opened(hosts[1]).flush(30) == 0
    told = {line for line in acknowledged.read_text().split("\n") if len(line) == 32}
    entries = list(store.entries())
    stored = [entry.entry_id for entry in entries]
    assert told
    assert len(stored) == len(set(stored))
    assert told <= set(stored)
    assert store.verify().faults == ()  # hash chain, sums against entries, holds against counters
    assert store.counters([_KEY])[_KEY].settled == 3 * len(stored)
    [total] = store.aggregate(
        [entries[0].occurred_at - timedelta(hours=1), entries[-1].occurred_at + timedelta(hours=1)], []
    )
    assert total.requests == len(stored)
    assert total.billed_cost == sum((entry.billed_cost for entry in entries), Decimal(0))
    print(f"{kills} kills, {len(told)} acknowledged, {len(stored)} stored")  # noqa: T201 - shown with -s
