"""Years of calls in archive files: how large they are, how fast they are written, checked and asked.

    python benchmarks/years.py [MILLIONS]

Made-up calls: 2,400 accounts and 20,000 end users (Zipf), 6,000 sets of tags, four models, raw usage kept. One month is
written entry by entry; the others are copies of it under later times and numbers. Times are of the CPU, over all
threads; the wall is in brackets.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
import tempfile
import time
from bisect import bisect
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic_core import to_json

from tokenmeter.stores.archive.layout import FileWriter, Row, open_writer, records
from tokenmeter.stores.archive.manifest import ArchivedMonth, Merkle
from tokenmeter.stores.archive.places import digest_of_file
from tokenmeter.stores.archive.shape import Shaper
from tokenmeter.stores.archive.shelf import Shelf, Wanted
from tokenmeter.stores.values import to_microseconds

MONTHS = [datetime(2026, month, 1, tzinfo=UTC) for month in range(1, 13)]
PRICES = {"gpt-5": (1_250_000, 125_000, 10_000_000), "gpt-5-mini": (250_000, 25_000, 2_000_000)}
PRICES |= {"claude-sonnet-4-5": (3_000_000, 300_000, 15_000_000), "gpt-5-nano": (50_000, 5_000, 400_000)}
DAY = 86_400_000_000
COLUMNS = ("unpriced", "estimated", "reasoning", "input", "cache_read", "output", "billed_micro", "billed_pico")


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


def weights(count: int) -> list[float]:
    return list(accumulate(1 / (rank + 1) for rank in range(count)))


class Calls:
    """Made-up calls of a month, one after another."""

    def __init__(self, *, ids: bool) -> None:
        self.dice = random.Random(11)
        self.ids = ids
        self.accounts = [(digest("account", number), list(PRICES)[number % 4]) for number in range(2400)]
        self.users = [digest("user", number) for number in range(20_000)]
        self.tags = [
            f'{{"env":"{digest("env", one).hex()}","job":"{digest("job", two).hex()}"}}'
            for one in range(12)
            for two in range(500)
        ]
        self.by_rank = {2400: weights(2400), 20_000: weights(20_000), 6000: weights(6000)}
        self.rates = {model: [digest(model, meter).hex() for meter in range(3)] for model in PRICES}

    def pick(self, values: list) -> object:
        """One of them, the first ones most often."""
        ranks = self.by_rank[len(values)]
        return values[bisect(ranks, self.dice.random() * ranks[-1])]

    def row(self, seq: int, moment: int) -> Row:
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
            named["response_id"] = "chatcmpl-" + "".join(dice.choices(_BASE62, k=29))
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
        return Row(seq, named["id"], moment, account, user, tags, amounts, None, body)


_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


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


def write_month(path: Path, count: int, *, ids: bool) -> float:
    """Write a month's calls; microseconds of CPU an entry, making the calls up not counted."""
    calls, first = Calls(ids=ids), to_microseconds(MONTHS[0])
    writer, spent, step = FileWriter(str(path), Shaper()), 0.0, 31 * DAY // count
    for start in range(0, count, 2000):
        rows = [calls.row(seq + 1, first + seq * step) for seq in range(start, min(start + 2000, count))]
        spent += timed(lambda rows=rows: writer.write(rows))[0]
    return (spent + timed(writer.close)[0]) / count * 1e6


def copy_month(source: Path, target: Path, number: int, copies: int) -> int:
    """The same calls in another month, `copies` times; how many."""
    table = pq.read_table(source)
    shift = to_microseconds(MONTHS[number]) - to_microseconds(MONTHS[0])
    rows = len(table)
    writer = None
    for copy in range(copies):
        offset = (number * copies + copy) * rows
        moments = pc.add(pc.cast(table["occurred_at"], pa.int64()), shift + copy)
        made = table.set_column(0, table.schema.field("seq"), pc.add(table["seq"], offset))
        place = table.schema.get_field_index("occurred_at")
        made = made.set_column(place, table.schema.field("occurred_at"), moments.cast(pa.timestamp("us", tz="UTC")))
        if writer is None:
            writer = open_writer(str(target))
        writer.write_table(made, row_group_size=245_760)
    writer.close()
    return rows * copies


def month_of(path: Path, number: int, last: int, count: int) -> ArchivedMonth:
    with path.open("rb") as stream:
        sha256, size = digest_of_file(stream)
    first = to_microseconds(MONTHS[number])
    return ArchivedMonth(
        month=f"{MONTHS[number]:%Y-%m}",
        first_seq=last - count + 1,
        last_seq=last,
        entries=count,
        first_at=first,
        last_at=first + 31 * DAY,
        head_before="",
        head_after="",
        root="",
        url=str(path),
        sha256=sha256,
        bytes=size,
    )


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
    folder = Path(tempfile.mkdtemp(prefix="tokenmeter-years-"))
    try:
        run(folder, millions)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, millions: int) -> None:
    base = 83_333
    write_month(folder / "warm.parquet", 100, ids=True)  # what is loaded once is not counted
    for ids in (False, True):
        path = folder / f"base-{ids}.parquet"
        spent = write_month(path, base, ids=ids)
        told = "both provider ids" if ids else "no provider id"
        print(f"{told}: {path.stat().st_size / base:.1f} bytes an entry, written in {spent:.1f} us of CPU")
    cpu, _, count = timed(lambda: check(path))
    print(f"made again and checked along the chain: {cpu / count * 1e6:.1f} us of CPU an entry")
    copies, months = millions, []
    for number in range(12):
        target = folder / f"month-{number}.parquet"
        count = copy_month(path, target, number, copies)
        months.append(month_of(target, number, (number + 1) * count, count))
    total = sum(one.entries for one in months)
    print(f"{total:,} entries in {sum(one.bytes for one in months) / 1e6:,.0f} MB")
    ask(months, total)


def ask(months: list[ArchivedMonth], total: int) -> None:
    shelf, calls = Shelf(), Calls(ids=True)
    members = Wanted(accounts={account: number % 300 for number, (account, _) in enumerate(calls.accounts)})
    year = [to_microseconds(MONTHS[0]), to_microseconds(MONTHS[0]) + 366 * DAY]
    may = [to_microseconds(MONTHS[4]), to_microseconds(MONTHS[5])]
    weeks = [year[0] + number * 7 * DAY for number in range(53)]
    questions = {
        "month by member (300 groups)": lambda: shelf.sums([months[4]], may, total, members, COLUMNS, fine=False),
        "month by end user and tags": lambda: shelf.sums([months[4]], may, total, members, COLUMNS, fine=True),
        "year by week and member": lambda: shelf.sums(months, weeks, total, members, COLUMNS, fine=False),
        "year by end user and tags": lambda: shelf.sums(months, year, total, members, COLUMNS, fine=True),
        "one entry by its id": lambda: shelf.entry(months, total, f"{digest('writer', 3)[:10].hex()}{3:012x}"),
    }
    for name, question in questions.items():
        question()
        cpu, wall, _ = timed(question)
        print(f"{name}: {cpu * 1000:,.0f} ms ({wall * 1000:,.0f})")


if __name__ == "__main__":
    main()
