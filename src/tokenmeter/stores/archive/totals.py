"""Totals of large archive files by end user and by tags, which answer questions of whole months in the files' place.

They are kept on this machine, under the digest of what they are made of, and have to come to what the manifest says. In
a folder that others may write to none are kept, nor believed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenmeter.errors import StoreError, TamperedLedgerError
from tokenmeter.stores.archive.kept import LATELY, UNFINISHED, is_private, kept_path, make_folder, make_room, reading
from tokenmeter.stores.archive.manifest import ArchivedMonth
from tokenmeter.stores.archive.places import import_extra, opened_copy
from tokenmeter.stores.engine import ArchiveFilter
from tokenmeter.stores.fold import AMOUNTS
from tokenmeter.stores.slots import from_microseconds, to_microseconds

_COSTS_OF = {
    "contracted_micro": "coalesce(contracted_micro, list_micro)",
    "contracted_pico": "coalesce(contracted_pico, list_pico)",
    "billed_micro": "coalesce(billed_micro, contracted_micro, list_micro)",
    "billed_pico": "coalesce(billed_pico, contracted_pico, list_pico)",
}
#: Costs as the ledger has them: one that is the same as the one before it is null in a file.
COST_COLUMNS = ", ".join(f"{what} AS {name}" for name, what in _COSTS_OF.items())
_ADDED = ", ".join(f"sum({_COSTS_OF.get(name, name)})::BIGINT AS {name}" for name in AMOUNTS)
#: A file's totals are made where it has so many entries, and kept where there are so many times fewer of them.
_WORTH, _WORTH_TIMES = 100_000, 8
#: Of which files there are more totals than that is known by an empty file beside.
_TOO_MANY = ".too-many"


class Opened(NamedTuple):
    """A DuckDB cursor, and files that stay on this machine until the question is answered."""

    cursor: Any
    held: contextlib.ExitStack
    files: dict[Path, ArchivedMonth]

    def path(self, file: ArchivedMonth) -> str:
        """The path of an archive file."""
        path = self.held.enter_context(opened_copy(file))
        self.files[path] = file
        return str(path)


class KeptTotals:
    """The totals that there are on this machine, as one process knows them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[str | None, int, int]] = {}

    def answering(
        self,
        opened: Opened,
        files: Sequence[ArchivedMonth],
        edges: Sequence[int],
        archived_to: int,
        wanted: ArchiveFilter,
        *,
        own: str,
    ) -> tuple[dict[str, str], dict[int, int]]:
        """SHA-256 of files of which totals by end user, or by tags, answer a question, with the paths of these.

        And the months that they answer for: those that lie in one piece of time, first microsecond -> first one after.
        Arguments are those of `tokenmeter.stores.archive.shelf.Shelf.sums`.
        """
        named = [
            name
            for name, accepted in (("end_user", wanted.end_users), ("tags", wanted.tags))
            if accepted is not None or name in own.split(", ")
        ]
        large = [one for one in files if self.is_worth(one) and one.last_seq <= archived_to]
        if len(named) != 1 or wanted.ids or not large:
            return {}, {}
        span = edges[0], edges[-1]
        whole = {
            month: end
            for one in large
            for month, end in months_of(one, span).items()
            if span[0] <= month and end <= span[1] and bisect_right(edges, month) == bisect_left(edges, end)
        }
        found: dict[str, str] = {}
        for one in large:
            if any(month in whole for month in months_of(one, span)):
                path = self.find(opened, one, named[0])
                if path is not None and opened.held.enter_context(reading(Path(path))):
                    found[one.sha256] = path
        return found, whole

    def find(self, opened: Opened, file: ArchivedMonth, name: str) -> str | None:
        """Path of a file's totals by month, account and `name`; made if need be. None where they are not worth it."""
        key = file.sha256, name
        known = self._known.get(key)
        if known is None or known != _stamp(known[0]):  # whoever clears the cache may do so at any time
            known = self._known[key] = _stamp(_found_or_made(opened, file, name))
        return known[0]

    @staticmethod
    def is_worth(file: ArchivedMonth) -> bool:
        """Whether a file is so large that its totals are quicker read."""
        return file.entries >= _WORTH


def _found_or_made(opened: Opened, file: ArchivedMonth, name: str) -> str | None:
    kept = kept_path(f"{file.sha256}.by-{name}.parquet")
    try:
        if not is_private(make_folder()) or kept.with_suffix(_TOO_MANY).exists():
            return None
        if kept.exists() and _come_to(opened.cursor, str(kept), file):
            return str(kept)
        return _made(opened, file, name, kept)
    except (OSError, StoreError, TamperedLedgerError, import_extra("duckdb").Error):
        return None  # the file itself answers, or says what is wrong


def _made(opened: Opened, file: ArchivedMonth, name: str, kept: Path) -> str | None:
    # What was read lately is not removed for others, or a question for which there is no room would make all anew.
    if not make_room(file.bytes >> 3, unread_for=LATELY):
        return None
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=kept.parent) as place:
        made = Path(place) / "totals.parquet"
        if _add_up(opened, file, name, made) > file.entries // _WORTH_TIMES:
            kept.with_suffix(_TOO_MANY).touch()
            return None
        if not _come_to(opened.cursor, str(made), file) or not make_room(made.stat().st_size, unread_for=LATELY):
            return None
        made.replace(kept)
    return str(kept)


def _add_up(opened: Opened, file: ArchivedMonth, name: str, made: Path) -> int:
    """Add up a file; how many totals there are."""
    target = str(made).replace("'", "''")
    ((count,),) = opened.cursor.execute(
        "COPY (SELECT epoch_us(date_trunc('month', make_timestamp(epoch_us(occurred_at)))) AS at_us, "  # noqa: S608 - names of our own
        f"account, {name}, more, count(*) AS n, {_ADDED} FROM read_parquet(?) GROUP BY ALL) TO '{target}' "
        "(FORMAT parquet, COMPRESSION zstd)",
        [opened.path(file)],
    ).fetchall()
    return int(count)


def _come_to(cursor: Any, path: str, file: ArchivedMonth) -> bool:
    """Whether totals are those of a file, as its manifest has them."""
    try:
        names = [name for name in file.sums if name in AMOUNTS]
        sums = ", ".join(f"sum({name})" for name in ("n", *names))
        (found,) = cursor.execute(f"SELECT {sums} FROM read_parquet(?)", [path]).fetchall()  # noqa: S608 - names of our own
    except import_extra("duckdb").Error:
        return False
    return list(found) == [file.entries, *(file.sums[name] for name in names)]


def _stamp(path: str | None) -> tuple[str | None, int, int]:
    """A file as it is now, so that another in its place is told from it; zeros where there is none."""
    try:
        status = None if path is None else os.stat(path)  # noqa: PTH116 - a text, as the asker needs it
    except OSError:
        status = None
    return (path, 0, 0) if status is None else (path, status.st_mtime_ns, status.st_ino)


def months_of(file: ArchivedMonth, span: tuple[int, int]) -> dict[int, int]:
    """Months (UTC) that a file has entries of within a span; first microsecond -> first one after."""
    found: dict[int, int] = {}
    moment, last = max(file.first_at, span[0]), min(file.last_at, span[1] - 1)
    while moment <= last:
        day = from_microseconds(moment)
        first = day.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        moment = to_microseconds(first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1))
        found[to_microseconds(first)] = moment
    return found
