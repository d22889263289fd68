"""Whatever is done to a ledger, and in whatever order, its reports are what adding up its entries by hand gives.

Every question reads packed sums here where it can, so that each step has copies of sums to leave behind.
"""

import itertools
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

import tokenmeter
from tokenmeter.stores import packing
from tokenmeter.stores.backup import restore
from tokenmeter.stores.merging import merge_ledger
from tokenmeter.stores.moving import copy_ledger

pytest.importorskip("duckdb")
pytest.importorskip("numpy")

START = datetime(2026, 1, 5, tzinfo=UTC)
WEEKS = [START + timedelta(days=7 * number) for number in range(-1, 17)]
HALVES = [START - timedelta(days=9), START + timedelta(days=40, hours=3), START + timedelta(days=130)]
EDGES = (WEEKS, HALVES)
MEMBERS = ("ada", "ben", "cyd")


class Ledger:
    """A ledger that moves about, and what was done to it."""

    def __init__(self, server, folder, seed):
        self.dice, self.folder, self.server = random.Random(seed), folder, server
        self.numbers, self.people = itertools.count(1), list(MEMBERS)
        self.url = self.place("sqlite")

    def place(self, *kinds):
        """The URL of an empty store."""
        number = next(self.numbers)
        if self.dice.choice(kinds) == "sqlite":
            return f"sqlite:///{self.folder}/ledger-{number}.db"
        return re.sub(r"schema=(\w+)", rf"schema=\g<1>_{number}", self.server)

    def meter(self):
        return tokenmeter.make_meter(store=self.url)

    def record(self, url=None, calls=12):
        meter = tokenmeter.make_meter(store=url or self.url)
        for _ in range(calls):
            number = next(self.numbers)
            tokens = self.dice.randrange(1000, 9000)
            usage = {"prompt_tokens": tokens, "completion_tokens": 7, "total_tokens": tokens + 7}
            meter.record(
                {"id": f"chatcmpl-{number}", "object": "chat.completion", "model": "gpt-5-mini", "usage": usage},
                provider="openai",
                endpoint="chat.completions",
                at=START + timedelta(hours=self.dice.randrange(2500)),
                attribution=tokenmeter.Attribution(
                    member=self.dice.choice(self.people), end_user=f"user-{number % 3}", tags={"env": f"e{number % 2}"}
                ),
            )
        meter.close()

    def archive(self):
        meter = self.meter()
        meter.archive(self.dice.choice(["2026-01", "2026-02", "2026-03"]), self.folder / "archive", drop=True)
        meter.close()

    def bring_back(self):
        meter = self.meter()
        meter.restore_archive(self.dice.choice(["2026-01", "2026-02"]))
        meter.close()

    def erase(self):
        meter = self.meter()
        name = self.dice.choice(self.people)
        if any(entry.attribution.member == name for entry in meter.entries()):
            meter.erase("member", name, reason="asked to", by="kim")
        meter.close()

    def copy(self):
        target = self.place("sqlite", "postgres")
        copy_ledger(self.url, target)
        self.url = target

    def copy_twice(self):
        """A copy that has answered questions, and is brought up to date after more was done to the ledger."""
        target = self.place("sqlite", "postgres")
        before = self.url
        copy_ledger(before, target)
        self.url = target
        self.check()
        self.url = before
        self.record()
        copy_ledger(before, target)
        self.url = target

    def back_up(self):
        file, target = self.folder / f"backup-{next(self.numbers)}.db", self.place("sqlite")
        meter = self.meter()
        meter.backup(file)
        meter.close()
        restore(file, target)
        self.url = target

    def merge(self):
        other = self.place("sqlite")
        self.record(other)
        merge_ledger(other, self.url)

    def rebuild(self):
        meter = self.meter()
        assert not meter.store.rebuild()
        meter.close()

    def check_packed(self, meter):
        """Meters and times are read as rows by questions; packed they are the same."""

        def ask():
            return [(meter.store.aggregate(edges, ("sku_meter",)), meter.store.latencies(edges)) for edges in EDGES]

        rows = ask()
        meter.store.pack()
        assert ask() == rows

    def check(self):
        meter = self.meter()
        entries = list(meter.entries())
        for edges in EDGES:
            for name in ("member", "end_user", "tag:env", "model"):
                for _ in range(2):  # as rows, which packs them, and as packed
                    found = {
                        (one.bucket, one.group[0]): (one.requests, one.quantities["input"], one.billed_cost)
                        for one in meter.store.aggregate(edges, (name,))
                    }
                    assert found == added_up(entries, edges, name), name
        self.check_packed(meter)
        assert not meter.verify(deep=True).faults
        meter.close()


def added_up(entries, edges, name):
    """Calls, tokens and cost by piece of time and value of a dimension, one entry after the other."""
    calls, tokens, costs = Counter(), Counter(), Counter()
    for entry in entries:
        who = entry.attribution
        value = {"member": who.member, "end_user": who.end_user, "tag:env": who.tags["env"]}.get(
            name, entry.response_model
        )
        for bucket, (start, end) in enumerate(itertools.pairwise(edges)):
            if start <= entry.occurred_at < end:
                calls[bucket, value] += 1
                tokens[bucket, value] += entry.usage.quantities["input"]
                costs[bucket, value] += entry.billed_cost
    return {key: (calls[key], tokens[key], Decimal(costs[key])) for key in calls}


STEPS = ("record", "archive", "bring_back", "erase", "copy", "copy_twice", "back_up", "merge", "rebuild")


@pytest.mark.parametrize("seed", range(4))
def test_reports_are_what_the_entries_add_up_to_after_any_steps(fresh_url, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(packing, "_MANY", 1)
    monkeypatch.setattr(packing, "_DENSE", 0)
    ledger = Ledger(fresh_url("postgres"), tmp_path, seed)
    ledger.record(calls=40)
    ledger.check()
    for step in [*ledger.dice.sample(STEPS, len(STEPS)), *ledger.dice.choices(STEPS, k=3)]:
        getattr(ledger, step)()
        ledger.check()
