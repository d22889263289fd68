"""What a budget costs a call: reserve + settle pairs per second, and how long one waits.

Usage: python benchmarks/budgets.py [--seconds 2] [--processes 1,4,8] [--budgets 1,3,8] [--store sqlite|memory|URL]

Every process makes calls as fast as it can against the same counters of the same store: the worst case, since real
calls take a second of network between the two. A "pair" is `Meter.authorize` + `Meter.settle`: bound the call, hold it
in every budget, write the entry, move the counters.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tokenmeter.attribution import Attribution
from tokenmeter.budgets import Budget
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.meter import Meter
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.stores import open_store
from tokenmeter.usage import Consumption, Observation, Usage

CALL = Call(
    provider="openai",
    endpoint="chat.completions",
    operation="chat",
    facts=RequestFacts(model="gpt-5-mini", input_bytes=2_000, max_output_tokens=500),
    attribution=Attribution(member="ada", team="search", project="demo", route="/summarise"),
)
OUTCOME = Outcome(
    observation=Observation(
        consumptions=(Consumption(model="gpt-5-mini", usage=Usage({"input": 480, "output": 120}), prompt_tokens=480),),
        response_model="gpt-5-mini",
    )
)
PLENTY = 10**6
BUDGETS = (
    Budget(member="*", limit_usd=PLENTY),
    Budget(limit_tokens=10**12),
    Budget(team="search", limit_usd=PLENTY, period="day"),
    Budget(route="*", limit_requests=10**9, period="day"),
    Budget(project="*", limit_usd=PLENTY, period="quarter"),
    Budget(model="*", limit_tokens=10**12, period="week"),
    Budget(provider="openai", limit_usd=PLENTY, period="year"),
    Budget(limit_usd=PLENTY, period="total"),
)


def open_meter(url: str, budgets: int) -> Meter:
    return Meter(store=open_store(url), pricer=Pricer(PriceList.load()), budgets=BUDGETS[:budgets])


def worker(url: str, budgets: int, seconds: float, ready: object, results: object) -> None:
    meter = open_meter(url, budgets)
    for _ in range(20):
        meter.settle(meter.authorize(CALL), OUTCOME)
    ready.wait()  # type: ignore[attr-defined]
    clock = time.perf_counter_ns
    waits: list[int] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = clock()
        meter.settle(meter.authorize(CALL), OUTCOME)
        waits.append(clock() - start)
    results.put((waits, meter.faults))  # type: ignore[attr-defined]
    meter.close()


def measure(url: str, processes: int, budgets: int, seconds: float) -> tuple[float, list[int]]:
    """Pairs per second over all processes, and every wait in nanoseconds, ascending."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes), context.Queue()
    running = [context.Process(target=worker, args=(url, budgets, seconds, ready, results)) for _ in range(processes)]
    for process in running:
        process.start()
    answers = [results.get() for _ in running]
    for process in running:
        process.join()
    assert not any(faults for _, faults in answers), "the store failed during the measurement"  # noqa: S101
    waits = sorted(wait for answer, _ in answers for wait in answer)
    return len(waits) / seconds, waits


def stages(budgets: int) -> str:
    """Where one uncontended pair's time goes, without any store behind it."""
    meter = open_meter("memory:", budgets)
    meter.settle(meter.authorize(CALL), OUTCOME)
    authorize, settle = [], []
    for _ in range(3_000):
        start = time.perf_counter_ns()
        leave = meter.authorize(CALL)
        middle = time.perf_counter_ns()
        meter.settle(leave, OUTCOME)
        authorize.append(middle - start)
        settle.append(time.perf_counter_ns() - middle)
    return f"{statistics.median(authorize) / 1000:9.1f} {statistics.median(settle) / 1000:9.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--processes", default="1,4,8")
    parser.add_argument("--budgets", default="1,3,8")
    parser.add_argument("--store", default="sqlite")
    given = parser.parse_args(arguments)
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs\n")
    print("memory store, one process, median microseconds\n  budgets authorize    settle")
    for budgets in (0, *map(int, given.budgets.split(","))):
        print(f"{budgets:9} {stages(budgets)}")
    print(f"\n{given.store} store, every process on the same counters")
    print("processes  budgets   pairs/s    p50 us    p99 us  worst ms")
    for processes in map(int, given.processes.split(",")):
        for budgets in map(int, given.budgets.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                url = f"sqlite:///{Path(folder) / 'ledger.db'}" if given.store == "sqlite" else given.store
                rate, waits = measure(url, processes, budgets, given.seconds)
            p50, p99 = (waits[int(len(waits) * share)] / 1000 for share in (0.5, 0.99))
            print(f"{processes:9} {budgets:8} {rate:9.0f} {p50:9.0f} {p99:9.0f} {waits[-1] / 1e6:9.1f}")


if __name__ == "__main__":
    main()
