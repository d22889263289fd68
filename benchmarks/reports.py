"""How long reports take over a large ledger, and how large it is.

Makes a ledger of N entries through the store's own `append`, as an import does, spread over a year, then times reports.
Run it with the package installed::

    python benchmarks/reports.py                       # 1 million entries
    python benchmarks/reports.py --entries 10000000    # 10 million: about half an hour to make, then kept with --keep
    python benchmarks/reports.py --ledger big.db       # an existing ledger: only time the reports
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import quantize
from tokenmeter.reports import Query, read_report
from tokenmeter.stores import open_store
from tokenmeter.stores.base import Store
from tokenmeter.usage import Usage

START = datetime(2026, 1, 1, tzinfo=UTC)
SECONDS = 365 * 86_400
BATCH = 1_000
ANSWERS = 20_000
FAILURES = 0.01
MULTIPLIER = Decimal("1.05")
PRICES = {
    "gpt-5-mini": ("openai", {"input": "2.5E-7", "cache_read": "2.5E-8", "output": "2E-6"}),
    "gpt-5": ("openai", {"input": "1.25E-6", "cache_read": "1.25E-7", "output": "1E-5"}),
    "claude-sonnet-4-5": (
        "anthropic",
        {"input": "3E-6", "cache_read": "3E-7", "cache_write_5m": "3.75E-6", "output": "1.5E-5"},
    ),
    "claude-haiku-4-5": ("anthropic", {"input": "1E-6", "cache_read": "1E-7", "output": "5E-6"}),
}
REPORTS: dict[str, dict[str, Any]] = {
    "month by model and member": {"by": ["model", "member"], "period": "2026-11"},
    "the same in Asia/Kathmandu": {"by": ["model", "member"], "period": "2026-11", "tz": "Asia/Kathmandu"},
    "month by model, per day": {"by": "model", "period": "2026-11", "granularity": "day"},
    "year by team": {"by": "team", "period": "2026"},
    "year by model, per week, in New York": {
        "by": "model",
        "period": "2026",
        "granularity": "week",
        "tz": "America/New_York",
    },
    "all time, total": {},
    "day by end_user (reads entries)": {"by": "end_user", "period": "2026-11-11"},
}


def main() -> None:
    """Parse the command line, make the ledger, time the reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", type=int, default=1_000_000, help="how many entries to make (default: 1,000,000)")
    parser.add_argument("--members", type=int, default=50, help="how many members (default: 50)")
    parser.add_argument("--ledger", type=Path, help="time the reports of this ledger instead of making one")
    parser.add_argument("--keep", type=Path, help="make the ledger here and keep it")
    parser.add_argument("--repeat", type=int, default=5, help="how often each report is read (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.ledger or options.keep or Path(folder) / "ledger.db"
        if options.ledger is None:
            make(path, options.entries, options.members)
        time_reports(path, options.repeat)


def make(path: Path, count: int, members: int) -> None:
    """Fill a new ledger at `path`."""
    if path.exists():
        sys.exit(f"{path} exists; time it with --ledger {path}, or name another file.")
    store = open_store(path)
    began = time.perf_counter()
    made = entries(count, members)
    number = 0
    while batch := [(entry, ()) for entry in islice(made, BATCH)]:
        store.append(batch)
        number += len(batch)
        if number % 20_000 == 0 or number == count:
            show_progress(number, count, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    store.close()
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    print(f"\n{count:,} entries in {seconds:,.0f} s ({count / seconds:,.0f} per second), {BATCH} to a transaction")
    print(f"file size {size / 1e6:,.0f} MB ({size / count:,.0f} bytes per entry)")


def show_progress(number: int, count: int, seconds: float) -> None:
    """One line, rewritten in place."""
    left = seconds / number * (count - number)
    print(f"\r{number / count:4.0%}  {number:>12,} entries  {left:6,.0f} s left ", end="", file=sys.stderr, flush=True)


def entries(count: int, members: int) -> Iterator[Entry]:
    """Plausible calls in order of time: four models, two keys, a few failures; the same for every run."""
    chance = random.Random(1)
    people = [
        Attribution(
            member=f"member-{number:03}",
            team=f"team-{number % 7}",
            route=route,
            end_user=f"user-{number * 31 % 997}",
        )
        for number in range(members)
        for route in ("/chat", "/summarise", "/search")
    ]
    keys = [ApiKey("a" * 32, "1111", "prod"), ApiKey("b" * 32, "2222", "batch")]
    answers = [answer(chance) for _ in range(min(count, ANSWERS))]
    for number in range(count):
        moment = START + timedelta(seconds=number * SECONDS / count)
        yield Entry(
            occurred_at=moment,
            recorded_at=moment,
            endpoint="responses",
            operation="chat",
            response_id=f"resp_{number:012x}",
            service_tier="default",
            latency_us=chance.randint(200_000, 9_000_000),
            attribution=chance.choice(people),
            api_key=keys[number % 2],
            **chance.choice(answers),
        )


def answer(chance: random.Random) -> dict[str, Any]:
    """What one call used and cost."""
    model = chance.choice(list(PRICES))
    provider, prices = PRICES[model]
    failed = chance.random() < FAILURES
    charges = () if failed else tuple(charge(model, meter, chance.randint(1, 4000), prices[meter]) for meter in prices)
    return {
        "provider": provider,
        "request_model": model,
        "response_model": model,
        "status": "error" if failed else "ok",
        "usage": Usage({line.sku_meter: line.quantity for line in charges}),
        "charges": charges,
        "list_cost": total(charges, "list_cost"),
        "contracted_cost": total(charges, "contracted_cost"),
        "billed_cost": total(charges, "billed_cost"),
        "cost_source": "none" if failed else "computed",
    }


def charge(model: str, meter: str, quantity: int, price: str) -> Charge:
    """One line at its list price, times the platform multiplier."""
    cost = quantize(quantity * Decimal(price))
    return Charge(
        model=model,
        sku_meter=meter,
        quantity=quantity,
        unit="Tokens",
        list_unit_price=Decimal(price),
        multipliers={"platform": MULTIPLIER},
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=quantize(cost * MULTIPLIER),
        price_id=f"{model}/{meter}@2026-01-01",
    )


def total(charges: tuple[Charge, ...], name: str) -> Decimal | None:
    """Sum of one cost; None where there is nothing to pay."""
    return sum((getattr(one, name) for one in charges), Decimal(0)) if charges else None


def time_reports(path: Path, repeat: int) -> None:
    """Read each report `repeat` times and print the median."""
    store: Store = open_store(path)
    print(f"\n{'report':<40}{'rows':>8}{'requests':>14}{'median':>12}{'slowest':>12}")
    for name, arguments in REPORTS.items():
        times = []
        for _ in range(repeat):
            began = time.perf_counter()
            report = read_report(store, Query.parse(**arguments))
            times.append((time.perf_counter() - began) * 1000)
        figures = f"{len(report.rows):>8,}{report.totals.requests:>14,}"
        print(f"{name:<40}{figures}{statistics.median(times):>9,.1f} ms{max(times):>9,.1f} ms")
    store.close()


if __name__ == "__main__":
    main()
