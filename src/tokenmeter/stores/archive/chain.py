"""Along the ledger's chain through a run of it whose entries lie in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tokenmeter.errors import TamperedLedgerError
from tokenmeter.stores.archive.layout import groups_in, records
from tokenmeter.stores.archive.manifest import ArchivedMonth, Merkle, Proof
from tokenmeter.stores.engine import Readable
from tokenmeter.stores.fold import link


class RunChain:
    """Along the chain through a run: entries come, documents are known."""

    def __init__(self, first: int, head: bytes, documents: Mapping[int, bytes], *, of: int | None = None) -> None:
        self.next, self.head, self.entries = first, head, 0
        self.merkle = Merkle(of)
        self._documents = documents

    def before(self, seq: int) -> tuple[int, bytes]:
        """Number and hash of the record before an entry, documents between taken in."""
        while self.next < seq:
            document = self._documents.get(self.next)
            if document is None:
                raise TamperedLedgerError(f"Record {self.next} is gone: `tokenmeter verify` names all such.")
            self._link(document)
        return seq - 1, self.head

    def entry(self, seq: int, body: str) -> None:
        """The next entry."""
        self.before(seq)
        self._link(hashlib.sha256(body.encode()).digest())
        self.entries += 1

    def through(self, path: Path, group: int | None = None) -> Iterator[tuple[int, str]]:
        """Take a file's entries, or those of one group of its rows: number and record of each, once it is taken."""
        for page in records(str(path), group=group):
            for seq, body in page:
                self.entry(seq, body)
                yield seq, body

    def compare(self, month: ArchivedMonth) -> None:
        """Make sure that all that was taken is what was sealed. To be asked for once.

        Raises:
            TamperedLedgerError: it does not lead from the hash before to the hash after.
        """
        outcome = (self.entries, self.next - 1, self.head.hex(), self.merkle.root().hex())
        if outcome != (month.entries, month.last_seq, month.head_after, month.root):
            raise TamperedLedgerError(f"The records in {month.url} are not those of the chain.")

    def _link(self, leaf: bytes) -> None:
        self.head = link(self.head, leaf)
        self.merkle.add(leaf)
        self.next += 1


def documents_in(book: Readable, first: int, last: int) -> dict[int, bytes]:
    """SHA-256 of each document of a run, as it was filed."""
    rows = book.read(
        lambda connection: connection.execute(
            "SELECT seq, body, leaf FROM documents WHERE seq BETWEEN ? AND ?", (first, last)
        ).fetchall()
    )
    return {seq: bytes(leaf or hashlib.sha256(body.encode()).digest()) for seq, body, leaf in rows}


def chain_before(book: Readable, month: ArchivedMonth, *, of: int | None = None) -> RunChain:
    """The chain as it is before a run; `of` as in `Merkle`."""
    documents = documents_in(book, month.first_seq, month.last_seq)
    return RunChain(month.first_seq, bytes.fromhex(month.head_before), documents, of=of)


class FollowedRun(NamedTuple):
    """Outcome of `follow`.

    Attributes:
        groups: Before each group of the file's rows: the chain's hash, and the number of the record that comes next.
        found: Hashes that were asked for, with the numbers of their records.
    """

    groups: list[tuple[bytes, int]]
    found: dict[str, int]


def follow(book: Readable, month: ArchivedMonth, path: Path, asked: Collection[str] = ()) -> FollowedRun:
    """Along the chain through a file that should be a month's.

    Args:
        book: The ledger.
        month: What the file should be.
        path: The file.
        asked: Hashes to look for.

    Raises:
        TamperedLedgerError: it does not lead from the hash before to the hash after.
    """
    chain = chain_before(book, month)
    outcome = FollowedRun([], {})
    for number in range(groups_in(str(path))):
        outcome.groups.append((chain.head, chain.next))
        for seq, _ in chain.through(path, number):
            if asked and (digest := chain.head.hex()) in asked:
                outcome.found[digest] = seq
    chain.compare(month)
    return outcome


def prove(book: Readable, month: ArchivedMonth, path: Path, *, seq: int, record: str) -> Proof:
    """That a month's file has a record.

    Raises:
        TamperedLedgerError: the file is not what was sealed.
    """
    index = seq - month.first_seq
    chain = chain_before(book, month, of=index)
    for _ in chain.through(path):
        pass
    chain.compare(month)
    merkle = chain.merkle
    path_up = tuple(one.hex() for one in merkle.path)
    return Proof(record=record, index=index, size=merkle.count, path=path_up, root=month.root, month=month.month)
