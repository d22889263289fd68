"""Documents beside the entries (closed periods, invoices): filed once, numbered without gaps, never changed.

Documents form a hash chain of their own. Each names the entries' head at its filing (`Document.anchor`), so that the
ledger cannot be rewritten behind an issued invoice unseen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, cast

from tokenmeter.values import dataclass

#: Kind of the document that says that a name was erased. Its body names digests, pseudonym, reason, by whom, and for
#: each document that was changed its record's number, SHA-256 as it was filed and SHA-256 as it is now; of those that
#: keep the name for now, position and place in `owners_in`, so that nothing but the document itself says whose it is.
#: A merge files one of its own for what it brings of another ledger's, or brings of names that were erased here.
ERASURE = "erasure"
#: Kind of the document that says which ledger was taken in; its body names that ledger, its head and the counts, and as
#: ``nameless`` digests of names that were erased there without a record: merges of earlier releases brought none along,
#: and do not say so.
MERGED = "merged"
#: Kind of the document that is the last record of a ledger which went elsewhere; its body is ``{"to": URL}``.
MOVED = "moved"


def told_of_move(record: str) -> str:
    """What writers are told, given the record of that document."""
    to = json.loads(json.loads(record)["body"])["to"]
    return (
        f"This ledger moved to {to}: point store= there. What programs still record here waits beside it, and running "
        "`tokenmeter db copy --retire` once more hands it on."
    )


def owners_in(body: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping of a document's content (JSON), in order: among them those that say whose something is."""
    if isinstance(body, Mapping):
        mapping = cast("Mapping[str, Any]", body)
        yield mapping
        body = mapping.values()
    elif not isinstance(body, list):
        return
    for part in cast("list[Any]", body):
        yield from owners_in(part)


def name_in(owner: Mapping[str, Any], dimension: str) -> str | None:
    """Whom one of `owners_in` names: by the dimension itself, or as ``{"account": "member=ada"}``."""
    if (name := owner.get(dimension)) is not None:
        return str(name)
    kind, _, name = str(owner.get("account", "")).partition("=")
    return name if kind == dimension else None


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
    """What is to be filed; see `Document`. With a `number` it is filed only if its series has none of that number."""

    kind: str
    key: str
    body: str
    series: str | None = None
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Filing:
    """Outcome of a filing: `recorded` is False when key or number was taken; `document` is then one that has it."""

    document: Document
    recorded: bool


class DocumentQuery(NamedTuple):
    """Which documents; None accepts all.

    Attributes:
        kind: Of this kind.
        prefix: With a key that begins with this.
        series: In this series.
        number: With this number.
        after: Filed after the document at this position.
    """

    kind: str | None = None
    prefix: str | None = None
    series: str | None = None
    number: int | None = None
    after: int = 0
