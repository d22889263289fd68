"""What the process on the failing disk does: calls under a cap, folds, a document, new segments; again and again.

python calls.py FOLDER LIBRARY fail ERRNO HALF MANY   fail at the first operation, at the second, ... of a round
python calls.py FOLDER LIBRARY log LOG                one round, its writes logged; acknowledged ids in FOLDER/acks
"""

import contextlib
import ctypes
import json
import os
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from tokenmeter.errors import TokenmeterError
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, new_id
from tokenmeter.stores import writer
from tokenmeter.stores.base import Counter
from tokenmeter.stores.documents import NewDocument
from tokenmeter.stores.sqlite import SQLiteStore

KEY = CounterKey("cap", "", 0)
FAR = datetime(2100, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


#: Entry -> what it adds to the counter, if it gets as far as the ledger.
MOVES = {}


def entry(moves=0, **given):
    one = Entry(
        occurred_at=NOW, provider="p", endpoint="e", operation="chat", billed_cost=Decimal(1), latency_us=1000, **given
    )
    MOVES[one.entry_id] = moves
    return one


class Round:
    """One round of calls. Whatever the disk does, only errors of tokenmeter come out; what returned is acknowledged."""

    def __init__(self, path, acknowledge):
        self.acknowledge = acknowledge
        with contextlib.suppress(TokenmeterError):
            self.store = SQLiteStore(path, patience=0.02)
            for number in range(4):
                self.attempt(self.capped)
                self.attempt(self.billed, f"bill-{number}")
                if number == 1:
                    self.attempt(self.read_and_file)
            self.attempt(self.many)
            self.attempt(self.store.close)

    @staticmethod
    def attempt(step, *arguments):
        with contextlib.suppress(TokenmeterError):
            step(*arguments)

    def capped(self):
        one, hold = entry(1), new_id()
        self.store.reserve(Reservation(hold, (Claim(KEY, 1000, 5),), NOW, FAR, "host:1", one))
        self.store.settle(one, [Posting(KEY, 1)], reservation_id=hold)
        self.acknowledge(one.entry_id)

    def billed(self, key):
        one = entry(dedup_key=key)
        if self.store.settle(one).recorded:
            self.acknowledge(one.entry_id)

    def read_and_file(self):
        list(self.store.entries())
        self.store.file(NewDocument(kind="note", key="one", body={"text": "x"}))

    def many(self):
        batch = [(entry(2), [Posting(KEY, 2)]) for _ in range(3)]
        for (one, _), done in zip(batch, self.store.append(batch), strict=True):
            if done.recorded:
                self.acknowledge(one.entry_id)


def check(path, acknowledged, moves):
    """What a sound disk shows afterwards: everything that was acknowledged, once, and every sum of what is there."""
    store = SQLiteStore(path)
    found = [one.entry_id for one in store.entries()]
    faults = [f"{fault.kind} {fault.where}: {fault.detail}" for fault in store.verify().faults]
    if len(found) != len(set(found)):
        faults.append("an entry is there twice")
    faults += [f"{one} was acknowledged and is gone" for one in acknowledged if one not in found]
    counter = store.counters([KEY])[KEY]
    due = Counter(sum(map(moves.__getitem__, found)), 5 * len(store.expired(FAR)))
    if counter != due:
        faults.append(f"{counter}, but entries and holds make {due}")
    store.settle(entry())
    if len(list(store.entries())) != len(found) + 1:
        faults.append("the next call is not recorded")
    store.close()
    return faults


def main():
    folder, disk = Path(sys.argv[1]), ctypes.CDLL(sys.argv[2])
    writer.SEGMENT_BYTES = 4000
    if sys.argv[3] == "log":
        acks = os.open(folder / "acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        disk.disk_log(sys.argv[4].encode())
        Round(folder / "ledger.db", lambda one: os.write(acks, f"{one} {MOVES[one]}\n".encode()))
        return
    error, half, many = map(int, sys.argv[4:7])
    told = []
    number = 0
    while True:
        path = folder / f"{number}" / "ledger.db"
        acknowledged = []
        disk.disk_fail(number, number + many - 1 if many else -1, error, half)
        try:
            Round(path, acknowledged.append)
        finally:
            reached = disk.disk_seen() > number
            disk.disk_fail(-1, -1, error, half)
        told += [f"operation {number}: {fault}" for fault in check(path, acknowledged, MOVES)]
        number += 1
        if not reached:
            break
    sys.stdout.write(json.dumps({"operations": number, "faults": told}))


if __name__ == "__main__":
    main()
