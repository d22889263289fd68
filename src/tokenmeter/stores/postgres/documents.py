"""Documents of a ledger on a server: rows in a hash chain of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenmeter.ledger import new_id, utcnow
from tokenmeter.stores.base import Fault
from tokenmeter.stores.documents import Document, NewDocument
from tokenmeter.stores.postgres.chain import FIRST, link
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["COLUMNS", "audit", "document_of", "place", "row_of"]

#: A document's row, in order.
COLUMNS = ("position", "document_id", "kind", "key", "series", "number", "recorded_at", "anchor", "body", "hash")


def place(draft: NewDocument, *, last: tuple[int, str] | None, numbered: int | None, anchor: str) -> Document:
    """The document that `draft` becomes.

    Args:
        draft: What is filed.
        last: Position and hash of the document before it; None for the first.
        numbered: The series' highest number so far; None when there is none.
        anchor: Hash of the entries (hex).
    """
    position = 1 if last is None else last[0] + 1
    number = None if draft.series is None else (numbered or 0) + 1
    row = (
        position,
        new_id(),
        draft.kind,
        draft.key,
        draft.series,
        number,
        to_microseconds(utcnow()),
        anchor,
        draft.body,
    )
    digest = link(FIRST if last is None else bytes.fromhex(last[1]), row, ())
    return document_of((*row, digest.hex()))


def row_of(document: Document) -> tuple[Any, ...]:
    """Values in the order of `COLUMNS`."""
    values = [getattr(document, name) for name in COLUMNS]
    values[COLUMNS.index("recorded_at")] = to_microseconds(document.recorded_at)
    return tuple(values)


def document_of(row: Sequence[Any]) -> Document:
    """A document from values in the order of `COLUMNS`."""
    values = dict(zip(COLUMNS, row, strict=True))
    values["recorded_at"] = from_microseconds(values["recorded_at"])
    return Document(**values)


def audit(documents: Iterable[Document]) -> list[Fault]:
    """Faults of all documents of a ledger; none when their chain and their numbers hold."""
    faults: list[Fault] = []
    before = FIRST
    numbers: dict[str, int] = {}
    for expected, document in enumerate(documents, start=1):
        where = f"{document.kind} {document.key}"
        if document.position != expected:
            return [*faults, Fault("missing", f"document {expected}", "A document is gone.")]
        if link(before, row_of(document)[:-1], ()).hex() != document.hash:
            faults.append(Fault("edited", where, "The document does not match its hash."))
        before = bytes.fromhex(document.hash)
        if document.series is not None:
            numbers[document.series] = numbers.get(document.series, 0) + 1
            if document.number != numbers[document.series]:
                faults.append(
                    Fault("missing", where, f"Series {document.series!r} has a gap before {document.number}.")
                )
    return faults
