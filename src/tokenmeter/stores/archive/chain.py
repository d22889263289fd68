"""Along the ledger's chain through a run of it whose entries lie in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from tokenmeter.errors import TamperedLedgerError
from tokenmeter.stores.archive.manifest import Merkle
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
