"""Documents beside the entries (closed periods, invoices): filed once, numbered without gaps, never changed.

Documents form a hash chain of their own. Each names the entries' head at its filing (`Document.anchor`), so that the
ledger cannot be rewritten behind an issued invoice unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from tokenmeter.ledger import new_id, utcnow
from tokenmeter.stores.chain import FIRST, link
from tokenmeter.stores.values import from_microseconds, to_microseconds

__all__ = ["COLUMNS", "Document", "Filing", "NewDocument", "Request", "audit", "document_of", "place", "row_of"]

#: A document's row, in order.
COLUMNS = ("position", "document_id", "kind", "key", "series", "number", "recorded_at", "anchor", "body", "hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One filed document.

    Attributes:
        position: Its place among all documents of the ledger, from 1, without gaps.
        document_id: Identity, time-ordered.
        kind: ``period``, ``invoice``, ``credit_note``, ``invoice_event``, ``reconciliation``.
        key: Identity within its kind; a key is filed once.
        series: Series it is numbered in; None for kinds without numbers.
        number: Its number in the series, from 1, without gaps; None without a series.
        recorded_at: When it was filed, aware UTC.
        anchor: Hash of the ledger's entries when it was filed (hex).
        body: Its content, JSON text.
        hash: SHA-256 over the row and the hash before it (hex).
    """

    position: int
    document_id: str
    kind: str
    key: str
    series: str | None
    number: int | None
    recorded_at: datetime
    anchor: str
    body: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument:
    """What is to be filed; see `Document`."""

    kind: str
    key: str
    body: str
    series: str | None = None


@dataclass(frozen=True, slots=True)
class Filing:
    """Outcome of a filing: `recorded` is False when the key was taken; `document` is then the one that has it."""

    document: Document
    recorded: bool


class Request(NamedTuple):
    """Which documents; None accepts all.

    Attributes:
        kind: Of this kind.
        prefix: With a key that begins with this.
        series: In this series.
        number: With this number.
    """

    kind: str | None = None
    prefix: str | None = None
    series: str | None = None
    number: int | None = None

    def accepts(self, document: Document) -> bool:
        """Whether `document` is wanted."""
        return (
            self.kind in {None, document.kind}
            and document.key.startswith(self.prefix or "")
            and self.series in {None, document.series}
            and self.number in {None, document.number}
        )


class _Documented(Protocol):
    def documents(self, which: Request = ...) -> Iterator[Document]: ...


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


def audit(store: _Documented) -> list[tuple[str, str, str]]:
    """Faults of a ledger's documents (kind, where, detail); empty when their chain and their numbers hold."""
    faults: list[tuple[str, str, str]] = []
    before = FIRST
    numbers: dict[str, int] = {}
    for expected, document in enumerate(store.documents(), start=1):
        where = f"{document.kind} {document.key}"
        if document.position != expected:
            return [*faults, ("missing", f"document {expected}", "A document is gone.")]
        if link(before, row_of(document)[:-1], ()).hex() != document.hash:
            faults.append(("edited", where, "The document does not match its hash."))
        before = bytes.fromhex(document.hash)
        if document.series is not None:
            numbers[document.series] = numbers.get(document.series, 0) + 1
            if document.number != numbers[document.series]:
                faults.append(("missing", where, f"Series {document.series!r} has a gap before {document.number}."))
    return faults
