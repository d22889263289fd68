"""Kept sums of stretches that are over, packed by column: what a question over very many of them reads instead of rows.

A year by week in some zone is made of hundreds of thousands of rows of sums, and so is a month by day and meter. They
hardly ever change, so they are kept beside the rows, one value for all accounts of a stretch, and numpy adds them up.
The dashboard packs all of them while nobody asks; elsewhere a question packs what it read, where that is quickly done.
They are a copy: whoever adds to a row takes the copy of its stretch away in the same transaction, `verify` compares
them with the rows, and without numpy the rows are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from typing import Any

from tokenmeter.stores.encoding import compact_json
from tokenmeter.stores.engine import Engine, Rows
from tokenmeter.stores.packed import PackedKind, PackedReader, kinds_of, pack_stretch, read_body
from tokenmeter.stores.slots import DAY, HOUR, Level, Stretch, is_slot, start_of

#: Bucket of a report + 1, negative where it is to be taken away, level and slot.
Place = tuple[int, int, int]

#: Rows from which on a question is one for packed sums: to load numpy takes as long as to read a hundred thousand.
_MANY = 20_000
#: Rows of a stretch, on the average, from which on it is read faster packed.
_DENSE = 12
#: Most cells of all buckets together, of which each takes 120 bytes while it is added up.
_MOST_CELLS = 2_000_000
#: Most stretches that one question has packed, and how many of them in a transaction. Of those that are packed while
#: nobody asks fewer, each with everything: whoever asks, or records, just then waits for a transaction at most.
_MOST, _AT_ONCE, _FEW = 4_096, 16, 4
#: A stretch is packed when it has been over for an hour: microseconds from the beginning of the longest of its kind.
_OVER = {Level.HOUR: 2 * HOUR, Level.DAY: 25 * HOUR, Level.WEEK: 7 * DAY + HOUR, Level.MONTH: 31 * DAY + HOUR}


def worth_packing(rows: int, stretches: Iterable[Place]) -> list[Stretch]:
    """The stretches of a question that read so many rows, if it had better read them packed."""
    found = {(level, slot) for _, level, slot in stretches}
    return sorted(found) if is_many(rows, len(found)) else []


def is_many(rows: int, stretches: int) -> bool:
    """Whether so many rows of so many stretches are read faster packed."""
    return rows >= max(_MANY, _DENSE * stretches)


def can_be_read() -> bool:
    """Whether numpy is there, which reads them."""
    return find_spec("numpy") is not None


def keep(connection: Rows, stretches: Sequence[Stretch], kinds: Collection[PackedKind]) -> None:
    """Pack these kinds of some stretches, in a write transaction with no fold beside it."""
    kept = dict(_bodies(connection, stretches))
    drop(connection, stretches)
    for stretch in stretches:
        known = read_body(kept.get(stretch))
        body = pack_stretch(connection, stretch, {*kinds, *known}, known)
        connection.execute("INSERT INTO packed_sums (level, slot, body) VALUES (?, ?, ?)", (*stretch, body))


def _bodies(connection: Rows, stretches: Sequence[Stretch]) -> Iterator[tuple[Stretch, object]]:
    for stretch in stretches:
        kept = connection.execute("SELECT body FROM packed_sums WHERE level = ? AND slot = ?", stretch).fetchone()
        if kept:
            yield stretch, kept[0]


def drop(connection: Rows, stretches: Sequence[Stretch]) -> None:
    """Remove what is packed of some stretches."""
    for stretch in stretches:
        connection.execute("DELETE FROM packed_sums WHERE level = ? AND slot = ?", stretch)


_only_answering: ContextVar[bool] = ContextVar("tokenmeter_only_answering", default=False)


@contextmanager
def only_answer() -> Generator[None]:
    """Within, questions pack nothing: somebody waits for the answer."""
    token = _only_answering.set(True)
    try:
        yield
    finally:
        _only_answering.reset(token)


def is_packed_at_once(kind: PackedKind) -> bool:
    """Whether a question packs what it has read of this kind: of the others it would take as long as the reading."""
    return kind is PackedKind.SUMS and not _only_answering.get()


def find_dense(connection: Rows, *, now: int) -> list[Stretch]:
    """Stretches that are over and read faster packed, the last first; none where all together are quickly read."""
    rows = connection.execute("SELECT level, slot, count(*) FROM sums GROUP BY level, slot").fetchall()
    if sum(count for *_, count in rows) < _MANY:
        return []
    dense = [(level, slot) for level, slot, count in rows if count >= _DENSE and is_slot(level, slot)]
    dense = [one for one in dense if _is_over(one, now)]
    return sorted(dense, key=lambda one: (start_of(Level(one[0]), one[1]), one), reverse=True)


def find_incomplete(connection: Rows, *, stretches: Sequence[Stretch]) -> list[Stretch]:
    """Those of some stretches of which not everything is packed that can be."""
    bodies = dict(_bodies(connection, stretches))
    return [
        stretch
        for stretch in stretches
        if bodies.get(stretch) != b"" and read_body(bodies.get(stretch)).keys() < kinds_of(stretch)
    ]


def in_pages(stretches: Sequence[Stretch], size: int = _FEW) -> Iterator[Sequence[Stretch]]:
    """Some at a time."""
    for start in range(0, len(stretches), size):
        yield stretches[start : start + size]


def _is_over(stretch: Stretch, now: int) -> bool:
    level, slot = stretch
    return start_of(Level(level), slot) + _OVER[Level(level)] <= now


def pages(stretches: Sequence[Stretch], now: int) -> Iterator[Sequence[Stretch]]:
    """Those that are over, in transactions' worth.

    Args:
        stretches: What a question has read as rows.
        now: Microseconds since the epoch.
    """
    over = [one for one in stretches if _is_over(one, now)]
    yield from in_pages(over[:_MOST], _AT_ONCE)


def differing(read: Callable[[Callable[[Rows], Any]], Any], *, since: int | None = None) -> Iterator[Stretch]:
    """Stretches whose packed sums are not their rows, of those that end after the UTC day `since` begins.

    Args:
        read: Runs what it is given in a short read transaction.
        since: None for all of them.
    """
    known: list[Stretch] = read(
        lambda rows: rows.execute("SELECT level, slot FROM packed_sums ORDER BY 1, 2").fetchall()
    )
    if since is not None:
        known = [one for one in known if not (is_slot(*one) and _is_over(one, since * DAY))]
    for some in in_pages(known, _AT_ONCE):
        yield from read(partial(_differing, stretches=some))


def _differing(connection: Rows, *, stretches: Sequence[Stretch]) -> list[Stretch]:
    return [
        stretch
        for stretch, body in _bodies(connection, stretches)
        if body != pack_stretch(connection, stretch, read_body(body).keys())
    ]


def read_packed(connection: Rows, engine: Engine, kept: Sequence[Place], reader: PackedReader) -> list[Place]:
    """Have what is packed of some slots added up.

    Args:
        connection: In a transaction.
        engine: Its words.
        kept: What is asked for.
        reader: Adds them up.

    Returns:
        What is to be read as rows.
    """
    buckets: dict[Stretch, list[tuple[int, int]]] = {}
    for place, level, slot in kept:
        buckets.setdefault((level, slot), []).append((abs(place) - 1, 1 if place > 0 else -1))
    many = (
        is_many(len(buckets) * len(reader.cell_of), len(buckets))
        and len({place for place, *_ in kept}) * reader.cells <= _MOST_CELLS
    )
    if not many or not can_be_read():
        return list(kept)
    rows = connection.execute(
        f"WITH slot (place, level, slot) AS ({engine.slots}) "  # noqa: S608 - names of our own
        f"SELECT level, slot, body FROM slot {engine.join} packed_sums USING (level, slot)",
        (compact_json([(0, *one) for one in buckets]),),
    )
    for level, slot, body in rows:
        packed = read_body(body).get(reader.kind)
        if packed is not None:  # else rows are read; of what was damaged `verify` tells
            reader.add(packed, buckets.pop((level, slot)))
    return [one for one in kept if one[1:] in buckets]
