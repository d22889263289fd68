"""Checking an SQLite ledger: the rows entries share, the chain of entries, the kept sums, and the holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

from tokenmeter.ledger import CounterKey
from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.chain import FIRST, link
from tokenmeter.stores.codec import COLUMNS, decode_claims
from tokenmeter.stores.contexts import CONTEXT_FIELDS, RATE_FIELDS
from tokenmeter.stores.database import Database
from tokenmeter.stores.rollups import DAY, SUMS, lines
from tokenmeter.stores.rows import AMOUNT_COLUMNS, amounts_of, rate_numbers
from tokenmeter.stores.session import Session
from tokenmeter.stores.shared import digest_of
from tokenmeter.stores.slots import Level, ends, month, slots_of
from tokenmeter.stores.summing import slot_sums
from tokenmeter.stores.values import from_microseconds

__all__ = ["audit"]

_PAGE = 1000
_CONTEXT, _CHARGES = COLUMNS.index("context"), COLUMNS.index("charges")
_CHAIN = (
    f"SELECT seq, {', '.join(COLUMNS)}, hash FROM entries WHERE seq > ? AND seq <= ? "  # noqa: S608 - names of our own
    f"ORDER BY seq LIMIT {_PAGE}"
)
_SHARED = {"contexts": CONTEXT_FIELDS, "rates": RATE_FIELDS, "series": ("context", "sku_meter", "marks")}


def audit(database: Database) -> Verification:
    """Everything that can be checked from the file alone. Reads in short transactions; writers go on meanwhile."""
    faults = list(database.read(_shared_rows))
    seq, head, beyond = database.read(_head)
    if beyond > seq:
        faults.append(Fault("edited", f"entry {seq + 1}", f"{beyond - seq} entries were added past the chain's head."))
    walk = _Walk(seq, head)
    while walk.after < seq:
        faults += database.read(walk.page)
    faults += walk.end()
    day: int | None = -(2**62)
    months: set[tuple[int, int]] = set()
    while day is not None:
        day, found = database.read(partial(_next_day, since=day))
        faults += found
        if day is not None:
            months.add(month(day - DAY))
    for start, end in sorted(months):
        faults += database.read(partial(_month, start=start, end=end))
    faults += database.read(_holds)
    return Verification(walk.entries, head.hex(), tuple(faults))


def _shared_rows(session: Session) -> list[Fault]:
    faults: list[Fault] = []
    for table, columns in _SHARED.items():
        rows = session.connection.execute(f"SELECT id, digest, {', '.join(columns)} FROM {table}")  # noqa: S608 - names of our own
        faults += [
            Fault("edited", f"{table} {number}", "A row that entries share was changed.")
            for number, digest, *values in rows
            if digest_of(values) != digest
        ]
    return faults


def _head(session: Session) -> tuple[int, bytes, int]:
    seq, head, last = session.connection.execute(
        "SELECT seq, hash, (SELECT coalesce(max(seq), 0) FROM entries) FROM head"
    ).fetchone()
    return seq, head, last


class _Walk:
    """Along the chain, page by page. A link is checked against the hash stored before it: one edit, one fault."""

    def __init__(self, seq: int, head: bytes) -> None:
        self.after = 0
        self.entries = 0
        self._seq, self._head = seq, head
        self._before: bytes | None = FIRST
        self._last = FIRST

    def page(self, session: Session) -> list[Fault]:
        faults: list[Fault] = []
        rows = session.connection.execute(_CHAIN, (self.after, self._seq)).fetchall()
        for seq, *row, stored in rows:
            if seq != self.after + 1:
                faults.append(_gap("missing", self.after + 1, seq - 1))
                self._before = None
            if self._before is not None and not _linked(session, self._before, row, stored):
                faults.append(Fault("edited", f"entry {seq}", f"Entry {row[0]} does not match its hash."))
            self.after, self._before, self._last = seq, stored, stored
            self.entries += 1
        if not rows:
            faults.append(_gap("cut", self.after + 1, self._seq))
            self.after = self._seq
        return faults

    def end(self) -> Iterator[Fault]:
        if self.entries == self._seq and self._last != self._head:
            yield Fault("edited", "head", "The last entry is not the one the ledger's head names.")


def _gap(kind: str, first: int, last: int) -> Fault:
    what = f"entry {first}" if first == last else f"entries {first} to {last}"
    return Fault(kind, what, f"{last - first + 1} {'entry is' if first == last else 'entries are'} gone.")


def _linked(session: Session, before: bytes, row: list[Any], stored: bytes) -> bool:
    try:
        shared = [session.contexts.digest(session.connection, row[_CONTEXT])]
        shared += [session.rates.digest(session.connection, number) for number in rate_numbers(row[_CHARGES])]
    except (LookupError, ValueError, TypeError):
        return False
    return link(before, row, shared) == stored


def _next_day(session: Session, *, since: int) -> tuple[int | None, list[Fault]]:
    """Compare the sums of the first UTC day from `since` on that has any; then where to go on, None at the end."""
    first = session.connection.execute(
        "SELECT min(occurred_at) FROM (SELECT min(occurred_at) AS occurred_at FROM entries WHERE occurred_at >= ? "
        "UNION ALL SELECT min(until) - 1 FROM sums WHERE until > ?)",
        (since, since),
    ).fetchone()[0]
    if first is None:
        return None, []
    start = first - first % DAY
    end = start + DAY
    kept = _kept(session, start, end)
    derived = _derived(session, start, end)
    wrong = {key for key in kept.keys() | derived.keys() if kept.get(key) != derived.get(key)}
    faults = [Fault("rollup", day := f"{from_microseconds(start):%Y-%m-%d}", f"{len(wrong)} sums of {day} are wrong.")]
    return end, faults if wrong else []


def _month(session: Session, *, start: int, end: int) -> list[Fault]:
    """Compare the sums of a UTC month with those of its days."""
    kept, added = (
        {series: sums for series, *sums in slot_sums(session, level, slots)}
        for level, slots in ((Level.MONTH, [end]), (Level.DAY, ends(Level.DAY, start, end)))
    )
    wrong = {series for series in kept.keys() | added.keys() if kept.get(series) != added.get(series)}
    name = f"{from_microseconds(start):%Y-%m}"
    return [Fault("rollup", name, f"{len(wrong)} sums of {name} are wrong.")] if wrong else []


def _kept(session: Session, start: int, end: int) -> dict[tuple[Any, ...], tuple[int, ...]]:
    rows = session.connection.execute(
        f"SELECT until, level, series, {', '.join(SUMS)} FROM sums WHERE until > ? AND until <= ? AND level < 2",  # noqa: S608 - names of our own
        (start, end),
    )
    return {
        (until, level, *session.series.values(session.connection, series)): tuple(sums)
        for until, level, series, *sums in rows
    }


def _derived(session: Session, start: int, end: int) -> dict[tuple[Any, ...], tuple[int, ...]]:
    totals: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0] * len(SUMS))
    rows = session.connection.execute(
        f"SELECT occurred_at, {AMOUNT_COLUMNS} FROM entries WHERE occurred_at >= ? AND occurred_at < ?",  # noqa: S608 - names of our own
        (start, end),
    )
    for occurred_at, *row in rows:
        try:
            found = amounts_of(session, row)
        except (LookupError, ValueError, TypeError):
            continue  # an edited row: the chain has told of it
        for line in lines(found.context, found.amounts):
            for until, level in slots_of(occurred_at)[:2]:
                total = totals[until, level, found.context_id, line.sku_meter, line.marks]
                for index, value in enumerate(line.sums):
                    total[index] += value
    return {key: tuple(total) for key, total in totals.items()}


def _holds(session: Session) -> list[Fault]:
    """What the counters say is reserved, against the holds themselves."""
    held: dict[CounterKey, int] = defaultdict(int)
    for (claims,) in session.connection.execute("SELECT claims FROM holds"):
        for claim in decode_claims(claims):
            held[claim.key] += claim.amount
    reserved = {
        CounterKey(budget, scope, start): int(amount)
        for budget, scope, start, amount in session.connection.execute(
            "SELECT budget, scope, window_start, reserved FROM counters"
        )
    }
    return [
        Fault("counter", f"{key.budget} {key.scope}".strip(), f"{reserved.get(key, 0)} reserved, {held[key]} held.")
        for key in sorted(held.keys() | reserved.keys())
        if reserved.get(key, 0) != held.get(key, 0)
    ]
