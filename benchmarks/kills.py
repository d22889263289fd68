"""How much of what a ledger acknowledged is lost when its writers are killed: it has to be nothing.

Rounds of writers record calls as fast as they can and tell of each one that returned; every round is ended by SIGKILL
at a random moment. Then every entry that was told of has to be in the ledger once, its counter equal to them, and all
of it sound.

    python benchmarks/kills.py                                   # 500,000 acknowledged entries on SQLite: some minutes
    python benchmarks/kills.py --entries 50000 --seed 7
    python benchmarks/kills.py --store postgresql://user@host/db
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace

from store import sample_entry
from tokenmeter.ledger import CounterKey, Posting, new_id
from tokenmeter.stores import open_store

KEY = CounterKey("kills", "", 0)
_ID = 33


def write(url: str, budgeted: bool) -> None:
    """Record calls until killed, and tell of each that returned."""
    store, sample = open_store(url), sample_entry()
    postings = [Posting(KEY, 1)] if budgeted else []
    while True:
        entry = replace(sample, entry_id=new_id())
        store.settle(entry, postings)
        os.write(1, f"{entry.entry_id}\n".encode())


def read(writer: subprocess.Popen[bytes], told: set[bytes]) -> None:
    """Gather what a writer tells of until it ends. One write to a pipe is whole, so the last line is, too."""
    stream = writer.stdout
    if stream is not None:
        while line := stream.readline():
            if len(line) == _ID:
                told.add(bytes.fromhex(line.decode()))


def one_round(url: str, chance: random.Random, writers: int) -> tuple[set[bytes], set[bytes]]:
    """Start writers, kill each at its moment; what those with a budget and those without have told of."""
    told: tuple[set[bytes], set[bytes]] = (set(), set())
    running: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []
    for number in range(writers):
        command = [sys.executable, __file__, "--store", url, "--write", str(number % 2)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603 - ourselves
        reader = threading.Thread(target=read, args=(writer, told[number % 2]))
        reader.start()
        running.append((writer, reader))
    wanted = chance.randrange(1, 12_000)
    deadline = time.monotonic() + 120
    while len(told[0]) + len(told[1]) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    for writer, _ in running:
        time.sleep(chance.random() / 50)
        writer.send_signal(signal.SIGKILL)
    for writer, reader in running:
        writer.wait()
        reader.join()
    return told


def run(url: str, wanted: int, seed: int, writers: int) -> bool:
    """Kill until so many entries are acknowledged; whether nothing was lost."""
    chance = random.Random(seed)
    budgeted: set[bytes] = set()
    plain: set[bytes] = set()
    kills = 0
    began = time.monotonic()
    while len(budgeted) + len(plain) < wanted:
        without, within = one_round(url, chance, writers)
        budgeted |= within
        plain |= without
        kills += writers
        done = len(budgeted) + len(plain)
        print(f"\r{done:,} of {wanted:,} acknowledged, {kills} killed ", end="", file=sys.stderr, flush=True)
    store = open_store(url)
    recorded: set[bytes] = set()
    twice = 0
    for entry in store.entries():
        identity = bytes.fromhex(entry.entry_id)
        twice += identity in recorded
        recorded.add(identity)
    acknowledged = budgeted | plain
    lost, untold = len(acknowledged - recorded), len(recorded - acknowledged)
    settled = store.counters([KEY])[KEY].settled
    faults = store.verify().faults
    store.close()
    print(f"\nseed {seed}: {len(acknowledged):,} acknowledged over {kills} SIGKILLs, {time.monotonic() - began:,.0f} s")
    print(f"lost {lost}, twice {twice}, recorded and never told of {untold}; faults {len(faults)}")
    for fault in faults:
        print(f"  {fault.kind} {fault.where}: {fault.detail}")
    print(f"counter {settled:,}, acknowledged under it {len(budgeted):,}")
    return not lost and not twice and not faults and len(budgeted) <= settled <= len(budgeted) + untold


def main() -> None:
    """Parse the command line, kill, tell."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--entries", type=int, default=500_000, help="how many are to be acknowledged")
    arguments.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; default: the time")
    arguments.add_argument("--writers", type=int, default=3, help="processes that write at once")
    arguments.add_argument("--store", help="URL of a new ledger; default: a file in a folder that goes afterwards")
    arguments.add_argument("--write", type=int, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.write is not None:
        write(given.store, budgeted=bool(given.write))
        return
    with tempfile.TemporaryDirectory() as folder:
        sound = run(given.store or f"sqlite:///{folder}/ledger.db", given.entries, given.seed, given.writers)
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
