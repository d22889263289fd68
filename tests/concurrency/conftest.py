import subprocess
import sys

import pytest

PRELUDE = """
import os, sys, time, random, threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores import open_store
from tokenmeter.stores.base import CapReachedError
from tokenmeter.usage import Usage

KEY = CounterKey("cap", "", 0)

def entry(**changes):
    cost = Decimal("0.001")
    charge = Charge(model="m", sku_meter="input", quantity=1, unit="Tokens", list_unit_price=cost, list_cost=cost,
                    contracted_cost=cost, billed_cost=cost)
    values = dict(occurred_at=utcnow(), provider="openai", endpoint="chat", operation="chat", request_model="m",
                  usage=Usage({"input": 1}), charges=(charge,), list_cost=cost, contracted_cost=cost, billed_cost=cost,
                  cost_source="computed")
    return Entry(**(values | changes))

def hold(limit, seconds=60):
    now = utcnow()
    return Reservation(new_id(), (Claim(KEY, limit, 1),), now, now + timedelta(seconds=seconds), "host:1", entry())

url = sys.argv[1]
"""


@pytest.fixture
def start_process():
    """Start Python code in a process of its own, after a prelude of imports; its first argument is the store's URL."""
    started = []

    def start(code, url, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, url, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run_processes(start_process):
    """Run the code in `count` processes at once; what each printed. Fails when one of them does."""

    def run(count, code, url, *arguments):
        processes = [start_process(code, url, number, *arguments) for number in range(count)]
        outputs = []
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert not err, err
            outputs.append(out)
        return outputs

    return run
