"""Archived months made sure of: files, the chain through them, what the live ledger keeps of their entries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, TamperedLedgerError, TokenmeterError
from tokenmeter.stores.archive.manifest import ArchivedDays, ArchivedMonth
from tokenmeter.stores.archive.places import opened_copy
from tokenmeter.stores.archive.sealing import follow
from tokenmeter.stores.archive.shelf import asking_duckdb, ids_in, open_duckdb
from tokenmeter.stores.base import Fault
from tokenmeter.stores.engine import Readable, Rows, read_head
from tokenmeter.stores.fold import FIRST

_BILLS_AT_ONCE = 2_000


class ArchiveCheck(NamedTuple):
    """Outcome of `Archives.verify`.

    Attributes:
        entries: How many entries are in files only.
        faults: What is wrong.
        heads: Hashes that were asked for and found, with the numbers of their records.
        days: Days with entries of months of which some are in a file only.
        archived_to: The last record that is in a file only.
    """

    entries: int
    faults: tuple[Fault, ...]
    heads: Mapping[str, int]
    days: ArchivedDays
    archived_to: int


def check_months(
    book: Readable,
    listed: Callable[[Rows], Sequence[ArchivedMonth]],
    *,
    deep: bool,
    heads: Sequence[str | None],
) -> ArchiveCheck:
    """How many entries are in files, and what is wrong with these.

    Args:
        book: The ledger.
        listed: Gives all that is sealed, in the order of the chain.
        deep: Whether every record is made again from its columns and followed along the chain; else the file's
            SHA-256 is compared with the one in the chain.
        heads: Hashes to look for among those of records that are in files; only the ends of files unless `deep`.
    """
    asked = {one for one in heads if one is not None}

    def ask(connection: Rows) -> tuple[Sequence[ArchivedMonth], int, bytes | None]:
        return list(listed(connection)), *read_head(connection, "archived_to, archived_hash")

    months, archived_to, archived_hash = book.read(ask)
    faults, found = list[Fault](), dict[str, int]()
    last, head = 0, FIRST.hex()
    for month in months:
        if (month.first_seq, month.head_before) != (last + 1, head):
            faults.append(_fault(month, "The sealed month before it is not the one it was sealed after."))
        try:
            found |= _look_at(book, month, archived_to, asked if deep else None)
        except ConfigurationError:
            raise
        except (TokenmeterError, LookupError, ValueError) as error:
            faults.append(_fault(month, str(error)))
        ends = {month.head_before: month.first_seq - 1, month.head_after: month.last_seq}
        found |= {one: seq for one, seq in ends.items() if one in asked}
        last, head = month.last_seq, month.head_after
        if archived_to == last and bytes(archived_hash or b"").hex() != head:
            faults.append(_fault(month, "The live ledger does not go on where it ends."))
    if archived_to > last:
        gone = f"records {last + 1} to {archived_to}"
        faults.append(Fault("missing", gone, "They were dropped without being sealed."))
    count = sum(month.gone for month in months)
    days = ArchivedDays(month for month in months if month.first_seq <= archived_to)
    return ArchiveCheck(count, tuple(faults), found, days, archived_to)


def _look_at(
    book: Readable, month: ArchivedMonth, archived_to: int, asked: Collection[str] | None
) -> Mapping[str, int]:
    """Make sure of a month's file; which hashes were found in it.

    Args:
        book: The ledger.
        month: What the file should be.
        archived_to: The last record that is in a file only.
        asked: Hashes to look for along the chain; None = only look at the file's SHA-256.
    """
    with opened_copy(month, check=True) as path:
        if asked is None:
            return {}
        bills = BillCheck(book, min(archived_to, month.last_seq))
        found = follow(book, month, path, asked, bills.see).found
        if month.gone:
            bills.compare(month)
            _compare_ids(book, path)
            _compare_values(book, path)
        return found


def _compare_ids(book: Readable, path: Path) -> None:
    """Make sure that the live ledger knows whose entries a file has: else they are not found in it by their id."""
    due = ids_in(str(path))
    kept = book.read(lambda rows: rows.execute("SELECT writer, first, last FROM archived_ids").fetchall())
    if not {(bytes(writer), *ends) for writer, *ends in due} <= {(bytes(writer), *ends) for writer, *ends in kept}:
        raise TamperedLedgerError(
            "The live ledger does not say whose entries are in it (table archived_ids): they are not found by id, "
            "and could be recorded a second time. Bring the month back (`tokenmeter archive restore`) and drop it "
            "again."
        )


def _compare_values(book: Readable, path: Path) -> None:
    """Make sure that the live ledger has what entries of a file name by digest: else nobody is found by a name."""
    gone = book.read(partial(_find_gone, due=_names_in(str(path))))
    if gone:
        raise TamperedLedgerError(
            f"Of what its entries name, the live ledger lacks {', '.join(gone)}: reports tell them wrong. Restore a "
            "backup (`tokenmeter db restore`)."
        )


class _Named(NamedTuple):
    """What a file's entries name and the live ledger keeps: digests, and sets of tags as JSON text."""

    accounts: set[bytes]
    end_users: set[bytes]
    tags: set[str]


def _names_in(path: str) -> _Named:
    """What the entries of a file name."""
    with asking_duckdb(), contextlib.closing(open_duckdb()) as connection:
        accounts, end_users, tags = (
            {
                value
                for (value,) in connection.execute(
                    f"SELECT DISTINCT {name} FROM read_parquet(?) WHERE {name} IS NOT NULL",  # noqa: S608 - names of our own
                    [path],
                ).fetchall()
            }
            for name in ("account", "end_user", "tags")
        )
        return _Named(accounts, end_users, tags)


def _find_gone(connection: Rows, *, due: _Named) -> list[str]:
    run = connection.execute
    names = set(due.end_users)
    for body in due.tags:
        names |= {bytes.fromhex(digest) for digest in from_json(body).values()}
    told = (
        (len(due.accounts - _digests(run("SELECT digest FROM accounts"))), "account"),
        (len(names - _digests(run("SELECT digest FROM names"))), "name"),
        (len(due.tags - {body for (body,) in run("SELECT body FROM tagsets")}), "set of tags", "sets of tags"),
    )
    return [counted(number, *words) for number, *words in told if number]


def _digests(rows: Iterable[tuple[bytes]]) -> set[bytes]:
    return {bytes(digest) for (digest,) in rows}


class BillCheck:
    """The bills of a file's entries, held against those that the live ledger takes for recorded.

    Args:
        book: The ledger.
        last: The last record of the file that is in it only; others are compared where they are live.
    """

    def __init__(self, book: Readable, last: int) -> None:
        self._book, self._last = book, last
        self._waiting: list[tuple[str, int]] = []
        self._recorded = self._lost = 0

    def see(self, seq: int, record: str) -> None:
        """The next entry."""
        if seq <= self._last and '"dedup_key"' in record and (key := from_json(record).get("dedup_key")) is not None:
            self._waiting.append((key, seq))
            if len(self._waiting) >= _BILLS_AT_ONCE:
                self._look_up()

    def _look_up(self) -> None:
        some, self._waiting = self._waiting, []
        known = "SELECT 1 FROM dedup WHERE key = ? AND seq = ?"
        lost = self._book.read(lambda rows: sum(rows.execute(known, one).fetchone() is None for one in some))
        self._lost += lost
        self._recorded += len(some) - lost

    def compare(self, month: ArchivedMonth) -> None:
        """Make sure that the live ledger has all of them, and no other; to be asked for once all came.

        Raises:
            TamperedLedgerError: it has not.
        """
        self._look_up()
        (kept,) = self._book.read(
            lambda rows: rows.execute(
                "SELECT count(*) FROM dedup WHERE seq BETWEEN ? AND ?", (month.first_seq, self._last)
            ).fetchone()
        )
        if self._lost:
            raise TamperedLedgerError(f"{counted(self._lost, 'bill')} of it could be recorded a second time.")
        if kept > self._recorded:
            more = counted(kept - self._recorded, "bill is", "bills are")
            raise TamperedLedgerError(f"{more} marked as recorded in it, and no entry has them.")


def _fault(month: ArchivedMonth, told: str) -> Fault:
    return Fault("archive", month.month, told)
