"""How long the dashboard's pages take in Chromium over the sums of ten million calls.

Records one call of each of 2,400 accounts and spreads their kept sums over hours, days, weeks and months, as ten
million calls of a year leave them (a million rows); pages read sums, so that is what they see. Run it with the package
installed::

    python benchmarks/pages.py                 # makes the ledger in a folder that goes afterwards
    python benchmarks/pages.py --folder big    # keeps it there, and takes it from there the next time
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

import tokenmeter
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.dashboard.server import make_server
from tokenmeter.ledger import Entry
from tokenmeter.usage import Consumption, Observation, Usage

ACCOUNTS = 2_400
MODELS = (
    ("openai", "gpt-5"),
    ("openai", "gpt-5-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
)
ROUTES = ("/chat", "/summarise", "/classify")
KEYS = ("prod", "staging", "batch", "ci", "dev")
#: Table -> level -> slots back from now, and percent of the accounts that have a row in each.
SPREAD = {
    "sums": {0: (960, 15), 1: (369, 85), 2: (12, 100), 3: (53, 100)},
    "meter_sums": {1: (63, 85), 2: (12, 100)},
    "latency_sums": {1: (63, 85), 2: (12, 100)},
}


def main() -> None:
    """Make the ledger unless it is there, and time the pages."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where the ledger is kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        file = (asked.folder or Path(temporary)) / "usage.db"
        file.parent.mkdir(exist_ok=True)
        meter = tokenmeter.make_meter(store=f"sqlite:///{file}", config={})
        try:
            if next(iter(meter.entries()), None) is None:
                record(meter)
                meter.close()
                spread(file)
                meter = tokenmeter.make_meter(store=f"sqlite:///{file}", config={})
            serve(meter)
        finally:
            meter.close()


def record(meter: tokenmeter.Meter) -> None:
    """One call of each account, just now."""
    dice, now = random.Random(3), datetime.now(UTC)
    batch: list[tuple[Entry, tuple[()]]] = []
    for number in range(ACCOUNTS):
        provider, model = MODELS[number % 4]
        usage = Usage({name: dice.randrange(20, 9_000) for name in ("input", "cache_read", "output")})
        who = Attribution(
            member=f"member-{number // 12:03d}", team=f"team-{number // 12 % 9}", route=ROUTES[number // 4 % 3]
        )
        key = ApiKey(f"{number % 5:032x}", "ab12", KEYS[number % 5])
        seen = Observation(consumptions=(Consumption(model=model, usage=usage),), response_model=model)
        rating = meter.pricer.rate(
            seen, provider=provider, endpoint="chat.completions", at=now, api_key=key, attribution=who
        )
        entry = Entry(
            occurred_at=now - timedelta(minutes=number % 50),
            provider=provider,
            endpoint="chat.completions",
            operation="chat",
            request_model=model,
            response_model=model,
            attribution=who,
            api_key=key,
            usage=usage,
            charges=rating.charges,
            list_cost=rating.list_cost,
            contracted_cost=rating.contracted_cost,
            billed_cost=rating.billed_cost,
            cost_source=rating.cost_source,
            latency_us=dice.randrange(200_000, 9_000_000),
            first_token_us=dice.randrange(50_000, 190_000),
            streamed=True,
        )
        batch.append((entry, ()))
    meter.store.append(batch)
    next(iter(meter.entries()))  # folds


def spread(file: Path) -> None:
    """Copy the sums of now to earlier slots."""
    with sqlite3.connect(file) as connection:
        for table, levels in SPREAD.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            rest = ", ".join(columns[2:])
            for level, (slots, percent) in levels.items():
                (last,) = connection.execute(f"SELECT max(slot) FROM {table} WHERE level = ?", (level,)).fetchone()  # noqa: S608 - names of ours
                for back in range(1, slots):
                    connection.execute(
                        f"INSERT OR IGNORE INTO {table} (level, slot, {rest}) "  # noqa: S608 - names of ours
                        f"SELECT level, slot - ?, {rest} FROM {table} "
                        "WHERE level = ? AND slot = ? AND abs(random()) % 100 < ?",
                        (back, level, last, percent),
                    )
            (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - names of ours
            print(f"{table}: {rows:,} rows")
    connection.close()


def serve(meter: tokenmeter.Meter) -> None:
    """Open the pages as a person would, one after the other."""
    server = make_server(meter, port=0, tz="UTC")
    with server.config.bind_socket() as socket:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            browse(f"http://127.0.0.1:{socket.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


def browse(address: str) -> None:
    """Print seconds until each page, or part of it, is there; and the processor's seconds of this process alone."""
    chromium = os.environ.get("TOKENMETER_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(timezone_id="UTC")
        page.goto(f"{address}/health")

        def timed(name: str, act: Callable[[], object]) -> None:
            wall, processor = time.perf_counter(), time.process_time()
            act()
            print(f"{name:44} {time.perf_counter() - wall:6.2f} s {time.process_time() - processor:6.2f} s of CPU")

        timed("first view: the overview of 30 days", lambda: open_page(page, f"{address}/"))
        timed("again", lambda: open_page(page, f"{address}/"))
        timed("Explore, 30 days by model", lambda: open_page(page, f"{address}/explore"))
        for dimension in ("member", "route", "api_key", "sku_meter", "model"):
            timed(f"another dimension: {dimension}", lambda chosen=dimension: ask(page, "by", chosen))
        for measure in ("tokens", "requests", "latency-p95", "first-token-p50"):
            timed(f"another measure: {measure}", lambda chosen=measure: ask(page, "show", chosen))
        timed("another dimension: member", lambda: ask(page, "by", "member"))
        timed("12 months by model", lambda: open_page(page, f"{address}/explore?period=last-12m"))
        timed("one member", lambda: open_page(page, f"{address}/account?member=member-007"))
        browser.close()


def open_page(page: Page, address: str) -> None:
    """Open an address, until its chart is drawn."""
    page.goto(address)
    page.wait_for_selector(".plane path", state="attached")


def ask(page: Page, field: str, value: str) -> None:
    """Choose something in a form, until the page has answered."""
    page.locator(f"select[name={field}]").select_option(value)
    page.wait_for_url(f"**{field}={value}*")


if __name__ == "__main__":
    main()
