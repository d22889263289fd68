"""What the SQLite ledger costs: appending entries, and reserve + settle pairs, from 1, 4 and 8 processes.

    python benchmarks/store.py [--seconds 2] [--directory DIR]

Prints operations per second over all processes, and the median, 99th percentile and worst wait of one operation.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Claim, CounterKey, Entry, Posting, Reservation, new_id, utcnow
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Store
from tokenmeter.usage import Usage

PRICES = {"input": "0.00000025", "cache_read": "0.000000025", "output": "0.000002"}
USED = {"input": 1200, "cache_read": 512, "output": 240}
RAW = (
    '{"prompt_tokens":1712,"completion_tokens":240,"total_tokens":1952,'
    '"prompt_tokens_details":{"cached_tokens":512},"completion_tokens_details":{"reasoning_tokens":100}}'
)


def sample_entry() -> Entry:
    """A chat call with three priced meters."""
    charges = tuple(
        Charge(
            model="gpt-5-mini-2025-08-07",
            sku_meter=meter,
            quantity=quantity,
            unit="Tokens",
            list_unit_price=Decimal(PRICES[meter]),
            multipliers={"platform": Decimal("1.05")},
            list_cost=(cost := Decimal(PRICES[meter]) * quantity),
            contracted_cost=cost,
            billed_cost=cost * Decimal("1.05"),
        )
        for meter, quantity in USED.items()
    )
    return Entry(
        occurred_at=utcnow(),
        provider="openai",
        endpoint="chat.completions",
        operation="chat",
        request_model="gpt-5-mini",
        response_model="gpt-5-mini-2025-08-07",
        response_id="chatcmpl-0123456789012345678901234567",
        attribution=Attribution(member="ada", route="/summarise"),
        api_key=ApiKey("ab" * 16, "wxyz", "prod"),
        usage=Usage(USED, 100),
        charges=charges,
        list_cost=sum((charge.list_cost or Decimal(0) for charge in charges), Decimal(0)),
        contracted_cost=sum((charge.contracted_cost or Decimal(0) for charge in charges), Decimal(0)),
        billed_cost=sum((charge.billed_cost or Decimal(0) for charge in charges), Decimal(0)),
        cost_source="computed",
        raw_usage=RAW,
    )


def append(store: Store, sample: Entry) -> None:
    store.settle(replace(sample, entry_id=new_id()))


def pair(store: Store, sample: Entry) -> None:
    now = utcnow()
    key = CounterKey("monthly", "member=ada", 0)
    hold = Reservation(new_id(), (Claim(key, 10**30, 10**9),), now, now + timedelta(minutes=15), "host:1", sample)
    store.reserve(hold)
    store.settle(replace(sample, entry_id=new_id()), [Posting(key, 10**6)], reservation_id=hold.reservation_id)


def work(url: str, operation: Callable[[Store, Entry], None], seconds: float, results: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    store, sample = open_store(url), sample_entry()
    operation(store, sample)
    waits: list[int] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter_ns()) / 1e9 < end:
        operation(store, sample)
        waits.append(time.perf_counter_ns() - start)
    results.put(waits)


def measure(operation: Callable[[Store, Entry], None], processes: int, seconds: float, folder: Path) -> str:
    url = f"sqlite:///{folder}/{operation.__name__}-{processes}.db"
    open_store(url).close()
    results: multiprocessing.Queue[list[int]] = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=work, args=(url, operation, seconds, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    waits = sorted(wait for _ in workers for wait in results.get())
    for worker in workers:
        worker.join()
    at = [waits[int(len(waits) * share)] / 1000 for share in (0.5, 0.99)]
    return (
        f"{operation.__name__:8} {processes} processes {len(waits) / seconds:8,.0f}/s   p50 {at[0]:8,.0f} us   "
        f"p99 {at[1]:8,.0f} us   worst {waits[-1] / 1e6:8,.1f} ms"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=2.0)
    arguments.add_argument("--directory", type=Path, default=None, help="where to keep the ledgers meanwhile")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as folder:
        for operation in (append, pair):
            for processes in (1, 4, 8):
                print(measure(operation, processes, chosen.seconds, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
