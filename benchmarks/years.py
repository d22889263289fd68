"""Years of calls: a ledger of 100 million made-up entries, all but the last days of it in archive files.

    python benchmarks/years.py [MILLIONS] [FOLDER]

2,400 accounts and 20,000 end users (Zipf), 6,000 sets of tags, four models, raw usage kept. A sample of calls is
written entry by entry, as `tokenmeter archive seal` does; a year is made of it by squeezing the sample into one stretch
of time after the other, with numbers and ids that go on. The sums are then counted from the files, and the files'
manifests filed, so that questions are asked of the ledger as a user asks them; hashes of these manifests are not of a
chain. What is live is recorded call by call. Times are of the CPU, over all threads; the wall is in brackets. FOLDER
keeps it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import resource
import shutil
import sqlite3
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic_core import to_json

import tokenmeter
from tokenmeter.ledger import Charge, Entry
from tokenmeter.stores import open_store
from tokenmeter.stores.archive.layout import ArchiveRow, FileWriter, open_writer, records
from tokenmeter.stores.archive.manifest import ArchivedMonth, Merkle
from tokenmeter.stores.archive.places import digest_of_file
from tokenmeter.stores.archive.shape import Shaper
from tokenmeter.stores.archive.shelf import open_duckdb
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.book import AMOUNTS
from tokenmeter.stores.slots import to_microseconds

YEAR = 2025
MONTHS = [datetime(YEAR + number // 12, number % 12 + 1, 1, tzinfo=UTC) for number in range(13)]
PRICES = {"gpt-5": (1_250_000, 125_000, 10_000_000), "gpt-5-mini": (250_000, 25_000, 2_000_000)}
PRICES |= {"claude-sonnet-4-5": (3_000_000, 300_000, 15_000_000), "gpt-5-nano": (50_000, 5_000, 400_000)}
MEMBERS, ACCOUNTS, USERS, ENVS, JOBS = 300, 2400, 20_000, 12, 500
SAMPLE, LIVE, GROUP = 83_333, 50_000, 245_760
HOUR = 3_600_000_000
BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


def weights(count: int) -> list[float]:
    return list(accumulate(1 / (rank + 1) for rank in range(count)))


class Calls:
    """Made-up calls, one after another."""

    def __init__(self, *, ids: bool) -> None:
        self.dice = random.Random(11)
        self.ids = ids
        self.accounts = [(digest("account", number), list(PRICES)[number % 4]) for number in range(ACCOUNTS)]
        self.users = [digest("end_user", f"user-{number}") for number in range(USERS)]
        self.tags = [
            f'{{"env":"{digest("tag:env", f"env-{one}").hex()}","job":"{digest("tag:job", f"job-{two}").hex()}"}}'
            for one in range(ENVS)
            for two in range(JOBS)
        ]
        self.by_rank = {count: weights(count) for count in (ACCOUNTS, USERS, ENVS * JOBS)}
        self.rates = {model: [digest(model, meter).hex() for meter in range(3)] for model in PRICES}

    def pick(self, values: list) -> object:
        """One of them, the first ones most often."""
        ranks = self.by_rank[len(values)]
        return values[bisect(ranks, self.dice.random() * ranks[-1])]

    def row(self, seq: int, moment: int) -> ArchiveRow:
        """A call."""
        dice = self.dice
        account, model = self.pick(self.accounts)
        user, tags = self.pick(self.users), self.pick(self.tags)
        plain, output = int(dice.expovariate(1 / 900)) + 1, int(dice.expovariate(1 / 250)) + 1
        cached = int(dice.expovariate(1 / 2000)) if dice.random() < 0.4 else 0
        reasoning = int(output * dice.random()) if dice.random() < 0.3 else 0
        factors = (100, 90 if account[0] < 146 else 100, 120 if account[1] < 61 else 100)
        prices, quantities = PRICES[model], {"input": plain, "cache_read": cached, "output": output}
        charges, sums = [], [0, 0, 0]
        for rate, price, quantity in zip(self.rates[model], prices, quantities.values(), strict=True):
            if quantity:
                costs = [quantity * price, quantity * price * factors[1] // 100]
                costs.append(costs[1] * factors[2] // 100)
                charges.append({"rate": rate, "quantity": quantity} | changed(costs))
                sums = [total + cost for total, cost in zip(sums, costs, strict=True)]
        latency = 200_000 + output * 9000 + dice.randrange(300_000)
        named = {
            "id": f"{digest('writer', seq % 6)[:10].hex()}{seq:012x}",
            "occurred_at": moment,
            "recorded_at": moment + latency + dice.randrange(300),
        }
        if self.ids:
            named["response_id"] = "chatcmpl-" + "".join(dice.choices(BASE62, k=29))
            named["request_id"] = f"req_{dice.getrandbits(128):032x}"
        named |= {"latency_us": latency, "end_user": user.hex()}
        usage = {
            "prompt_tokens": plain + cached,
            "completion_tokens": output,
            "total_tokens": plain + cached + output,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }
        rest = {"quantities": {name: value for name, value in quantities.items() if value}}
        rest |= {"reasoning": reasoning} if reasoning else {}
        rest |= {"charges": charges} | changed(sums) | {"raw_usage": usage}
        begin = f'{{"format":1,"record":"entry","account":"{account.hex()}",'
        body = f'{begin}{to_json(named).decode()[1:-1]},"tags":{tags},{to_json(rest).decode()[1:]}'
        amounts = (0, 0, reasoning, plain, cached, 0, 0, output, *(part for one in sums for part in divmod(one, 10**6)))
        return ArchiveRow(seq, named["id"], moment, account, user, tags, amounts, None, body)


def changed(costs: list[int]) -> dict[str, int]:
    found, before = {}, None
    for name, cost in zip(("list", "contracted", "billed"), costs, strict=True):
        if cost != before:
            found[name] = before = cost
    return found


def timed(work: Callable[[], object]) -> tuple[float, float, object]:
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def write_sample(path: Path, *, ids: bool) -> float:
    """Write a sample of a month's calls; microseconds of CPU an entry, making the calls up not counted."""
    calls, first = Calls(ids=ids), to_microseconds(MONTHS[0])
    writer, spent, step = FileWriter(str(path), Shaper()), 0.0, (to_microseconds(MONTHS[1]) - first) // SAMPLE
    for start in range(0, SAMPLE, 2000):
        rows = [calls.row(seq + 1, first + seq * step) for seq in range(start, min(start + 2000, SAMPLE))]
        spent += timed(lambda rows=rows: writer.write(rows))[0]
    return (spent + timed(writer.close)[0]) / SAMPLE * 1e6


def write_month(sample: pa.Table, target: Path, number: int, copies: int, before: int) -> ArchivedMonth:
    """A month: the sample `copies` times, each in a stretch of its own."""
    first, end = (to_microseconds(MONTHS[number + one]) for one in (0, 1))
    begin = to_microseconds(MONTHS[0])
    width = (end - first) // copies
    offsets = pc.subtract(pc.cast(sample["occurred_at"], pa.int64()), begin)
    share = width / (to_microseconds(MONTHS[1]) - begin)
    squeezed = pc.cast(pc.multiply(pc.cast(offsets, pa.float64()), share), pa.int64(), safe=False)
    writer, waiting, rows = open_writer(str(target)), [], len(sample)
    for copy in range(copies):
        made = sample
        for name, values in (
            ("seq", pc.add(sample["seq"], before + copy * rows)),
            ("counter", pc.add(sample["counter"], before + copy * rows)),
            ("occurred_at", pc.cast(pc.add(squeezed, first + copy * width), pa.timestamp("us", tz="UTC"))),
        ):
            made = made.set_column(made.schema.get_field_index(name), made.schema.field(name), values)
        own = pc.binary_replace_slice(sample["response_id"], 9, 14, f"{number * copies + copy:05}")
        made = made.set_column(made.schema.get_field_index("response_id"), made.schema.field("response_id"), own)
        waiting.append(made)
        if sum(map(len, waiting)) >= GROUP or copy == copies - 1:
            writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=2 * GROUP)
            waiting = []
    writer.close()
    with target.open("rb") as stream:
        sha256, size = digest_of_file(stream)
    nothing = bytes(32).hex()
    return ArchivedMonth(
        month=f"{MONTHS[number]:%Y-%m}", first_seq=before + 1, last_seq=before + rows * copies, entries=rows * copies,
        first_at=first, last_at=end - 1, head_before=nothing, head_after=nothing, root=nothing,
        url=str(target), sha256=sha256, bytes=size,
    )  # fmt: skip


def amount(name: str) -> str:
    """A column of the files as the ledger has it: a cost that is the same as the one before it is null there."""
    kind, _, part = name.partition("_")
    order = ("billed", "contracted", "list")
    return f"coalesce({', '.join(f'{one}_{part}' for one in order[order.index(kind) :])})" if kind in order else name


def fill(ledger: Path, months: list[ArchivedMonth]) -> None:
    """Names, accounts and sums of what the files have."""
    connection = sqlite3.connect(ledger)
    named = [(digest(kind, text), kind, text) for kind, text in [
        *(("member", f"member-{number}") for number in range(MEMBERS)),
        *(("end_user", f"user-{number}") for number in range(USERS)),
        *(("tag:env", f"env-{number}") for number in range(ENVS)),
        *(("tag:job", f"job-{number}") for number in range(JOBS)),
    ]]  # fmt: skip
    connection.executemany("INSERT INTO names (digest, salt, kind, value) VALUES (?, x'00', ?, ?)", named)
    ids = dict(connection.execute("SELECT digest, id FROM names"))
    calls = Calls(ids=False)
    connection.executemany(
        "INSERT INTO accounts (id, digest, provider, endpoint, operation, response_model, member) "
        "VALUES (?, ?, 'openai', 'chat.completions', 'chat', ?, ?)",
        [
            (number + 1, account, model, ids[digest("member", f"member-{number % MEMBERS}")])
            for number, (account, model) in enumerate(calls.accounts)
        ],
    )
    for model in PRICES:
        for number, meter in enumerate(("input", "cache_read", "output")):
            price = f"{Decimal(PRICES[model][number]).scaleb(-12):f}"
            rate = {"format": 1, "record": "rate", "model": model, "sku_meter": meter, "unit": "Tokens"}
            body = json.dumps(rate | {"list_unit_price": price, "role": "message"})
            connection.execute(
                "INSERT INTO rates (digest, body, sku_meter) VALUES (?, ?, ?)", (digest(model, number), body, meter)
            )
    connection.executemany("INSERT INTO tagsets (body) VALUES (?)", [(one,) for one in calls.tags])
    duckdb = open_duckdb()
    numbers = pa.table({"account": [one for one, _ in calls.accounts], "id": list(range(1, ACCOUNTS + 1))})
    duckdb.register("numbers", numbers)
    summed = ", ".join(f"sum({amount(name)})::BIGINT AS {name}" for name in AMOUNTS)
    columns = ", ".join(AMOUNTS)
    added = ", ".join(f"sum({name})::BIGINT" for name in AMOUNTS)
    places = ", ".join("?" * (len(AMOUNTS) + 4))
    for month in months:
        duckdb.execute(
            f"CREATE OR REPLACE TABLE hours AS SELECT epoch_us(occurred_at) // {HOUR} AS slot, id AS account, "  # noqa: S608 - names of our own
            f"count(*) AS n, {summed} FROM read_parquet(?) JOIN numbers USING (account) GROUP BY ALL",
            [month.url],
        )
        number = int(month.month[:4]) * 12 + int(month.month[5:]) - 1
        for level, slot in ((0, "slot"), (1, "slot // 24"), (2, str(number))):
            duckdb.execute(
                f"SELECT {level}, {slot} AS place, account, sum(n)::BIGINT, {added} FROM hours "  # noqa: S608 - as above
                "GROUP BY place, account ORDER BY place, account"
            )
            while rows := duckdb.fetchmany(20_000):
                connection.executemany(f"INSERT INTO sums (level, slot, account, n, {columns}) VALUES ({places})", rows)  # noqa: S608 - as above
        connection.commit()
    weekly = ", ".join(f"sum({name})" for name in ("n", *AMOUNTS))
    connection.execute(
        f"INSERT INTO sums (level, slot, account, n, {columns}) SELECT 3, (slot + 3) / 7, account, {weekly} "  # noqa: S608 - as above
        "FROM sums WHERE level = 1 GROUP BY 2, 3"
    )
    last = months[-1].last_seq
    connection.execute(
        "UPDATE ledger SET seq = ?, entries = ?, archived_to = ?, hash = ?, archived_hash = ?",
        (last, last, last, bytes(32), bytes(32)),
    )
    connection.executemany(
        "INSERT INTO archived_ids VALUES (?, ?, ?)", [(digest("writer", one)[:10], 1, last) for one in range(6)]
    )
    connection.commit()
    connection.close()


def record_live(store: Store) -> None:
    """Calls of the days since, recorded one by one."""
    dice = random.Random(5)
    price = Decimal("0.00000125")
    for start in range(0, LIVE, 1000):
        entries = []
        for number in range(start, start + 1000):
            quantity = dice.randrange(1, 3000)
            cost = price * quantity
            charge = Charge(
                model="gpt-5", sku_meter="input", quantity=quantity, unit="Tokens", list_unit_price=price,
                list_cost=cost, contracted_cost=cost, billed_cost=cost,
            )  # fmt: skip
            entries.append(Entry(
                occurred_at=MONTHS[12] + timedelta(seconds=number), provider="openai", endpoint="chat.completions",
                operation="chat", response_model="gpt-5", charges=(charge,), list_cost=cost, contracted_cost=cost,
                billed_cost=cost, cost_source="computed",
                attribution=tokenmeter.Attribution(
                    member=f"member-{dice.randrange(MEMBERS)}", end_user=f"user-{dice.randrange(USERS)}",
                    tags={"env": f"env-{dice.randrange(ENVS)}"},
                ),
            ))  # fmt: skip
        store.append([(entry, ()) for entry in entries])


def check(path: Path) -> int:
    """Every record made again and followed along the chain."""
    head, merkle, count = bytes(32), Merkle(), 0
    for page in records(str(path)):
        for _, body in page:
            leaf = hashlib.sha256(body.encode()).digest()
            head = hashlib.sha256(head + leaf).digest()
            merkle.add(leaf)
            count += 1
    return count


def main() -> None:
    millions = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="tokenmeter-years-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run(folder, millions)
    finally:
        if len(sys.argv) < 3:
            shutil.rmtree(folder)


def run(folder: Path, millions: int) -> None:
    known = folder / "months.json"
    ledger = folder / "ledger.db"
    if not known.exists():  # by a process of its own: how much memory questions take is asked of this one
        making = multiprocessing.get_context("spawn").Process(target=make, args=(folder, ledger, millions))
        making.start()
        making.join()
        if making.exitcode:
            sys.exit("It could not be made.")
    months = [ArchivedMonth(**values) for values in json.loads(known.read_text())]
    total = sum(one.entries for one in months)
    in_files, in_ledger = sum(one.bytes for one in months) / 1e6, ledger.stat().st_size / 1e6
    print(f"{total:,} entries in {in_files:,.0f} MB of files, {in_ledger:,.0f} MB of ledger", flush=True)
    meter = tokenmeter.make_meter(store=f"sqlite:///{ledger}")
    try:
        ask(meter, months)
    finally:
        meter.close()
    print(f"most memory for all questions: {most_memory()}")


def most_memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB"


def make(folder: Path, ledger: Path, millions: int) -> None:
    Calls(ids=True)
    for ids in (False, True):
        path = folder / f"sample-{ids}.parquet"
        spent = write_sample(path, ids=ids)
        told = "both provider ids" if ids else "no provider id"
        print(
            f"{told}: {path.stat().st_size / SAMPLE:.1f} bytes an entry, written in {spent:.1f} us of CPU", flush=True
        )
    cpu, _, count = timed(lambda: check(path))
    print(f"made again and checked along the chain: {cpu / count * 1e6:.1f} us of CPU an entry", flush=True)
    print(f"most memory for writing and checking: {most_memory()}", flush=True)
    sample = pq.read_table(path)
    months, before = [], 0
    for number in range(12):
        months.append(write_month(sample, folder / f"month-{number}.parquet", number, millions, before))
        before = months[-1].last_seq
        print(months[-1].month, f"{months[-1].bytes / months[-1].entries:.1f} bytes an entry", flush=True)
    store = open_store(f"sqlite:///{ledger}")
    store.close()
    fill(ledger, months)
    store = open_store(f"sqlite:///{ledger}")
    for month in months:
        store.file(month.draft())
    record_live(store)
    store.close()
    names = [name for name in ArchivedMonth.__slots__ if name not in {"dropped", "sums"}]
    (folder / "months.json").write_text(json.dumps([{name: getattr(one, name) for name in names} for one in months]))


def ask(meter: tokenmeter.Meter, months: list[ArchivedMonth]) -> None:
    store = meter.store
    new_york = ZoneInfo("America/New_York")
    weeks = [datetime(YEAR, 1, 6, tzinfo=new_york) + timedelta(days=7 * number) for number in range(53)]
    year = [datetime(YEAR, 1, 1, tzinfo=UTC), datetime(YEAR + 1, 2, 1, tzinfo=UTC)]
    identity = (
        pq.ParquetFile(months[6].url).read_row_group(0, columns=["writer", "counter", "response_id"]).slice(99, 1)
    )
    (one,) = identity.to_pylist()
    entry_id = f"{one['writer'].hex()}{one['counter']:012x}"
    only = EntryFilter(where={"member": frozenset({"member-7"})})
    questions = {
        "month by model and member": lambda: meter.report("model,member", period=f"{YEAR}-05"),
        "year by week in New York and model": lambda: store.aggregate(weeks, ("model",)),
        "year by week in New York and member": lambda: store.aggregate(weeks, ("member",)),
        "month by end user": lambda: meter.report("end_user", period=f"{YEAR}-05"),
        "year by tag (12 values)": lambda: store.aggregate(year, ("tag:env",)),
        "year by end user of one member": lambda: store.aggregate(year, ("end_user",), only),
        "one entry by its id": lambda: store.entry(entry_id),
        "one entry by the provider's id of the answer": lambda: list(
            store.entries(EntryFilter(where={"response_id": frozenset({one["response_id"]})}))
        ),
        "first thousand entries of a month": lambda: [
            entry for entry, _ in zip(store.entries(EntryFilter(since=MONTHS[4])), range(1000), strict=False)
        ],
    }
    for name, question in questions.items():
        first = timed(question)[1]
        cpu, wall, found = timed(question)
        what = "" if found else " and found nothing"
        print(
            f"{name}: {cpu * 1000:,.0f} ms ({wall * 1000:,.0f}); the first time ({first * 1000:,.0f}){what}", flush=True
        )


if __name__ == "__main__":
    main()
