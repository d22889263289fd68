"""Taking a person out of a ledger: the text goes, amounts, counts, chain and invoices stay.

Records hold digests of names only, each with a random salt of its own. Without text and salt nobody can say whom a
digest stands for, and nothing that the chain covers has changed. What is left of the person is a pseudonym.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol, runtime_checkable

from pydantic_core import from_json

from tokenmeter.budgets.matching import parse_scope, scope_text
from tokenmeter.errors import ConfigurationError, LedgerError
from tokenmeter.stores.base import Store
from tokenmeter.stores.copying import End
from tokenmeter.stores.documents import ERASURE, Filing, NewDocument
from tokenmeter.stores.record import plain

__all__ = ["KEEP_YEARS", "Erasable", "Erasure", "KeptDocument", "erase"]

#: Years after the one of its filing for which a document is taken to be kept by law; the longest that is usual in
#: Europe for invoices.
KEEP_YEARS = 10
_KINDS = ("member", "end_user", "api_key")
_PLAIN = ("team", "organization", "project", "route")
#: Documents that accounts and tax law want to be kept; all others only name somebody.
_BOOKS = ("period", "invoice", "credit_note", "invoice_event")
_ELSEWHERE = (
    "backups and replicas of the ledger, and the server's own log archive",
    "exported files (CSV, JSON Lines, Parquet, FOCUS) and what was loaded from them",
    "metrics, spans and log lines of OpenTelemetry or Prometheus",
    "messages of alerts that were sent",
    "invoices and statements that were sent or printed",
    "the provider's own records, if you sent it the name (user, safety_identifier, metadata)",
    "the settings: budgets, buyers and aliases that name the person",
)


@runtime_checkable
class Erasable(Store, Protocol):
    """A store that names can be erased from."""

    def end(self) -> End:
        """Its tables."""
        ...

    def file_with(self, work: Callable[[Any], NewDocument]) -> Filing:
        """Run ``work(connection)`` and file the document that it makes, in one transaction; overwrite what goes."""
        ...

    def shred(self) -> tuple[str, ...]:
        """Remove what may still lie beside the rows: old segments of the tail, the log. What is left, in words."""
        ...


@dataclass(frozen=True, slots=True)
class KeptDocument:
    """A document that names the person. It is under the chain, and as a rule has to be kept.

    Attributes:
        kind: ``invoice``, ``period``, ``budget``, ...
        key: Its identity within its kind.
        number: Series and number, such as ``INV-00007``; None without a series.
        keep_until: The last day on which it has to be kept by law; None where no law asks for it.
    """

    kind: str
    key: str
    number: str | None
    keep_until: date | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """What `erase` did.

    Attributes:
        kind: ``member``, ``end_user``, ``api_key`` or ``tag:NAME``.
        pseudonym: What stands in its place now.
        names: How many digests stood for the text.
        entries: How many entries were the person's.
        record: Hash of the record of the erasure in the chain (hex).
        documents: Those that name the person still.
        left: What this host cannot remove now, and why, in words; empty when nothing of the text is left here.
        elsewhere: Copies that the ledger does not hold, to be handled by you.
    """

    kind: str
    pseudonym: str
    names: int
    entries: int
    record: str
    documents: tuple[KeptDocument, ...]
    left: tuple[str, ...]
    elsewhere: tuple[str, ...] = _ELSEWHERE


def erase(store: Store, dimension: str, value: str, *, reason: str, by: str, pseudonym: str | None = None) -> Erasure:
    """Replace a text that says who somebody is by a pseudonym, for good, with a record of who did it and why.

    Amounts, counts, sums, the chain and issued invoices stay as they are; entries of the person show the pseudonym, and
    the same person's later calls are somebody new. Neither the pseudonym nor the record can be traced back.

    Args:
        store: The ledger.
        dimension: ``member``, ``end_user``, ``api_key`` (its alias) or ``tag:NAME``.
        value: The text, exactly.
        reason: Why, for the record; it stays in the chain, so it must not name the person.
        by: Who decided it, likewise.
        pseudonym: What stands in its place; default: ``erased-`` and eight hex digits.

    Raises:
        ConfigurationError: the dimension cannot be erased, the pseudonym stands for somebody else, or `reason` names
            the person.
        LedgerError: nobody of that name is in the ledger, or calls of theirs are under way.
        StoreUnavailableError: the ledger cannot be written.
    """
    kind = _kind_of(dimension)
    value = plain(value)
    for name, text in (("reason", reason), ("by", by)):
        if not text.strip():
            raise ConfigurationError(f"{name}= is empty: the record of an erasure says who decided it, and why.")
    if value and value in reason:
        raise ConfigurationError("The reason names whom it erases, and stays in the chain: say it without the name.")
    if pseudonym is not None and (not pseudonym.strip() or plain(pseudonym) == value):
        raise ConfigurationError("The pseudonym is empty, or the name itself.")
    if not isinstance(store, Erasable):
        raise ConfigurationError(f"Nothing can be erased from a ledger at {store.url}.")
    end = store.end()
    end.fold()
    tables = [table for table, columns in end.read(end.tables).items() if "scope" in columns]
    work = _Erasing(kind, value, pseudonym, reason=reason, by=by, tables=tables)
    filing = store.file_with(work.run)
    left = store.shred()
    documents = tuple(one for one in _documents(store, value, filing.document.position))
    return Erasure(dimension, work.pseudonym, len(work.digests), work.entries, filing.document.hash, documents, left)


def _kind_of(dimension: str) -> str:
    if dimension in _PLAIN:
        raise ConfigurationError(
            f"A {dimension} is no person's name, and stands in records under the chain: it cannot be erased. What can "
            "is a member, an end_user, an api_key's alias and the value of a tag."
        )
    if dimension not in _KINDS and not (dimension.startswith("tag:") and dimension != "tag:"):
        raise ConfigurationError(f"{dimension!r} cannot be erased; use {', '.join(_KINDS)} or tag:NAME.")
    return "api_key_alias" if dimension == "api_key" else dimension


class _Erasing:
    """One erasure. It may run again when a connection was lost."""

    def __init__(
        self, kind: str, value: str, pseudonym: str | None, *, reason: str, by: str, tables: Sequence[str]
    ) -> None:
        self._tables = tables
        self._kind, self._value, self._wanted = kind, value, pseudonym
        self._reason, self._by = reason, by
        self.pseudonym = ""
        self.digests: list[str] = []
        self.entries = 0

    def run(self, rows: Any) -> NewDocument:
        """Take the text out; the document that says so."""
        found = rows.execute(
            "SELECT id, digest FROM names WHERE kind = ? AND value = ? AND salt IS NOT NULL ORDER BY id",
            (self._kind, self._value),
        ).fetchall()
        if not found:
            raise LedgerError(f"No {self._kind.replace('_', ' ')} of this name is in the ledger: nothing was erased.")
        self._refuse_holds(rows)
        self.digests = [bytes(digest).hex() for _, digest in found]
        self.pseudonym = plain(self._wanted or f"erased-{self.digests[0][:8]}")
        taken = rows.execute(
            "SELECT 1 FROM names WHERE kind = ? AND value = ?", (self._kind, self.pseudonym)
        ).fetchone()
        if taken:
            raise ConfigurationError(f"{self.pseudonym!r} stands for somebody in the ledger; take another pseudonym.")
        self.entries = sum(self._count(rows, number) for number, _ in found)
        for number, _ in found:
            rows.execute("UPDATE names SET salt = NULL, value = ? WHERE id = ?", (self.pseudonym, number))
        for table in self._tables:
            self._rename_scopes(rows, table)
        body = {
            "kind": self._kind,
            "names": self.digests,
            "pseudonym": self.pseudonym,
            "reason": self._reason,
            "by": self._by,
        }
        return NewDocument(kind=ERASURE, key=self.digests[0], body=json.dumps(body, ensure_ascii=False))

    def _refuse_holds(self, rows: Any) -> None:
        for (claims,) in rows.execute("SELECT claims FROM holds").fetchall():
            for _, scope, *_ in from_json(claims):
                if self._value in parse_scope(scope).values():
                    raise LedgerError("Calls of this person are under way: erase again when they have ended.")

    def _count(self, rows: Any, number: int) -> int:
        if self._kind.startswith("tag:"):
            (digest,) = rows.execute("SELECT digest FROM names WHERE id = ?", (number,)).fetchone()
            statement = (
                "SELECT count(*) FROM entries JOIN tagsets ON tagsets.id = entries.tags WHERE tagsets.body LIKE ?"
            )
            values: tuple[Any, ...] = (f'%"{bytes(digest).hex()}"%',)
        elif self._kind == "end_user":
            statement, values = "SELECT count(*) FROM entries WHERE end_user = ?", (number,)
        else:
            of_account = (
                "SELECT coalesce(sum(n), 0) FROM sums JOIN accounts AS a ON a.id = sums.account WHERE level = 2"
            )
            statement = f"{of_account} AND a.{self._kind} = ?"
            values = (number,)
        return int(rows.execute(statement, values).fetchone()[0])

    def _rename_scopes(self, rows: Any, table: str) -> None:
        """Counters and thresholds of the person's budgets go on under the pseudonym."""
        for (scope,) in rows.execute(f"SELECT DISTINCT scope FROM {table}").fetchall():  # noqa: S608 - names of our own
            values = parse_scope(scope)
            changed = {
                name: self.pseudonym if (name, text) == (self._kind, self._value) else text
                for name, text in values.items()
            }
            if changed != values:
                rows.execute(f"UPDATE {table} SET scope = ? WHERE scope = ?", (scope_text(changed), scope))  # noqa: S608 - as above


def _documents(store: Store, value: str, before: int) -> list[KeptDocument]:
    """Documents that have the text somewhere in them."""
    found: list[KeptDocument] = []
    pattern = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)")
    for one in store.documents():
        if one.position >= before or one.kind == ERASURE:
            continue
        if _says([one.key, from_json(one.body)], pattern):
            until = date(one.recorded_at.year + KEEP_YEARS, 12, 31) if one.kind in _BOOKS else None
            number = None if one.series is None else f"{one.series}{one.number:05d}"
            found.append(KeptDocument(one.kind, one.key, number, until))
    return found


def _says(body: Any, value: re.Pattern[str]) -> bool:
    if isinstance(body, str):
        return value.search(body) is not None
    if isinstance(body, Mapping):
        return any(_says(part, value) for pair in body.items() for part in pair)  # pyright: ignore[reportUnknownVariableType]
    return isinstance(body, list) and any(_says(part, value) for part in body)  # pyright: ignore[reportUnknownVariableType]
