"""Taking a person out of a ledger: the text goes, amounts, counts and the chain stay.

Records of calls hold digests of names only, each with a random salt of its own. Without text and salt nobody can say
whom a digest stands for, and nothing that the chain covers has changed. What is left of the person is a pseudonym.

Documents are written out, names and all. Those that the law wants kept stay as they are until then. In the others the
pseudonym takes the name's place; the chain goes on from the SHA-256 of what was filed, which is kept, and the record of
the erasure has the SHA-256 of what stands there now, so that neither can be changed unseen.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from secrets import token_hex
from typing import Any, Protocol, cast, runtime_checkable

from pydantic_core import from_json, to_json

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.budgets.matching import parse_scope, scope_text
from tokenmeter.dimensions import POSTED_BY, SETTLES, WHO
from tokenmeter.errors import ConfigurationError, LedgerError, StoreUnavailableError
from tokenmeter.ledger import utcnow
from tokenmeter.stores.archive.manifest import KIND as ARCHIVE
from tokenmeter.stores.archive.manifest import PLACE
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.copying import End
from tokenmeter.stores.documents import ERASURE, MERGED, MOVED, Filing, NewDocument, name_in, owners_in
from tokenmeter.stores.encoding import compact_json, storable_text
from tokenmeter.stores.engine import condition_on
from tokenmeter.stores.slots import from_microseconds
from tokenmeter.texts import check_reason, suggest
from tokenmeter.values import dataclass

#: Years after the one of its filing for which a document is taken to be kept by law; the longest that is usual in
#: Europe for invoices.
KEEP_YEARS = 10
_KINDS = (*WHO, "api_key")
#: Tags that reconciliation gives an adjustment, with the same text as what is erased.
_ALONG = {
    "member": f"tag:{POSTED_BY}",
    "project": f"tag:{SETTLES['project']}",
    "api_key_alias": f"tag:{SETTLES['api_key']}",
}
#: What a value stands behind in the text of a scope.
_SCOPED = re.compile(rf"(?<!\w)(?:{'|'.join(_KINDS)}|tag:[^=,]+)=$")
#: Documents that accounts and tax law want to be kept; all others only name somebody.
_BOOKS = ("period", "invoice", "credit_note", "invoice_event", "reconciliation", "handover")
#: Of documents about the ledger itself, what a person wrote; the rest are digests, and places that are gone to.
_WRITTEN: Mapping[str, tuple[str, ...]] = {
    ERASURE: ("reason", "by"),
    MERGED: ("url",),
    **dict.fromkeys((ARCHIVE, PLACE, MOVED), ()),
}
_BY_LAW = "the law wants it kept"
_OF_BUDGET = "it is a budget's own name, which figures go by"
_OF_PLACE = "it is where the ledger, or a file of it, is found"
_IN_WORDS = "what somebody wrote there may name the person: read it"
#: What people write in documents, as they like: with a genitive, or without blanks.
_BY_HAND = frozenset({"reason", "by", "note"})
#: Of a name with fewer signs, all of them ASCII, a word or a number may have them by chance.
_FEW = 4
#: Names in documents under which no person is named.
_FIXED = frozenset({
    *("provider", "model", "endpoint", "operation", "sku_meter", "unit", "kind", "status", "currency", "rows", "label"),
    *("id", "source", "series", "manifest", "head", "what", "format"),
})  # fmt: skip
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
    """A document that names the person still.

    Attributes:
        kind: ``invoice``, ``period``, ``budget``, ...
        key: Its identity within its kind.
        number: Series and number, such as ``INV-00007``; None without a series.
        keep_until: The last day on which it has to be kept by law: erase again after it. None where no law asks for it.
        why: Why it stays, in words: the law, the name of a budget, which figures go by, or the place of a file.
    """

    kind: str
    key: str
    number: str | None
    keep_until: date | None
    why: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """What `erase` did.

    Attributes:
        kind: ``member``, ``end_user``, ``api_key`` or ``tag:NAME``.
        pseudonym: What stands in its place now.
        names: How many digests stood for the text.
        entries: How many entries were the person's, those of archived months too.
        record: Hash of the record of the erasure in the chain (hex).
        changed: How many documents have the pseudonym in place of the name now.
        documents: Those that name the person still.
        left: What this host cannot remove now, and why, in words; empty when nothing of the text is left here.
        elsewhere: Copies that the ledger does not hold, to be handled by you.
        uncounted: Why archived months are not in `entries`, in words; empty where they are.
    """

    kind: str
    pseudonym: str
    names: int
    entries: int
    record: str
    changed: int
    documents: tuple[KeptDocument, ...]
    left: tuple[str, ...]
    elsewhere: tuple[str, ...] = _ELSEWHERE
    uncounted: str = ""


@tell_wrong_arguments
def erase(store: Store, dimension: str, value: str, *, reason: str, by: str, pseudonym: str | None = None) -> Erasure:
    """Replace a text that says who somebody is by a pseudonym, for good, with a record of who did it and why.

    Amounts, counts, sums and the chain stay as they are; entries of the person show the pseudonym, and the same
    person's later calls are somebody new. Neither the pseudonym nor the record can be traced back. Documents that the
    law wants kept (closed periods, invoices) are listed with the day; called again after it, this takes the name out of
    them, too. Until then the record says where in them the name stands, for what was billed not to be billed again.

    Args:
        store: The ledger.
        dimension: ``member``, ``end_user``, ``team``, ``organization``, ``project``, ``route``, ``api_key`` (its alias)
            or ``tag:NAME``.
        value: The text, exactly.
        reason: Why, for the record; it stays in the chain, so it must not name the person.
        by: Who decided it, likewise: for somebody who asks for their own erasure say the office, not the name.
        pseudonym: What stands in its place; default: ``erased-`` and eight hex digits.

    Raises:
        ConfigurationError: the dimension cannot be erased, the pseudonym stands for somebody else, or `reason` or `by`
            names the person.
        LedgerError: nothing that may be erased has that name, or calls of theirs are under way.
        StoreUnavailableError: the ledger cannot be written.
    """
    check_erasure(dimension, value, reason=reason, by=by, pseudonym=pseudonym)
    kind, value = _kind_of(dimension), storable_text(value)
    if not isinstance(store, Erasable):
        raise ConfigurationError(f"Nothing can be erased from a ledger at {store.url}.")
    end = store.end()
    end.fold()
    tables = [table for table, columns in end.read(end.tables).items() if "scope" in columns]
    work = _Erasing(kind, value, pseudonym, reason=reason, by=by, tables=tables)
    everywhere, uncounted = 0, ""
    try:
        everywhere = _count_everywhere(store, kind, value)  # before the name is gone from files, too
    except (ConfigurationError, StoreUnavailableError) as error:
        uncounted = str(error)
    try:
        filing = store.file_with(work.run)
    except LedgerError:
        if work.nothing:  # perhaps since an erasure was broken off behind its record: what it had left to do is done
            store.shred()
        raise
    left = store.shred()
    return Erasure(
        dimension,
        work.pseudonym,
        len(work.digests),
        everywhere or work.entries,
        filing.document.hash,
        len(work.changed),
        tuple(work.kept),
        left,
        uncounted=uncounted,
    )


def check_erasure(dimension: str, value: str, *, reason: str, by: str, pseudonym: str | None = None) -> None:
    """Refuse what nobody needs to be asked about.

    Raises:
        ConfigurationError: as `erase` says.
    """
    _kind_of(dimension)
    value = storable_text(value)
    for name, text in (("reason", reason), ("by", by)):
        check_reason(text, name)
        if not text.strip():
            raise ConfigurationError(f"{name}= is empty: the record of an erasure says who decided it, and why.")
    if reason.strip() == value or _may_name(reason, value):
        raise ConfigurationError("The reason names whom it erases, and stays in the chain: say it without the name.")
    if by.strip() == value or _may_name(by, value):
        raise ConfigurationError("by= names whom it erases, and stays in the chain: say the office that decided it.")
    if pseudonym is not None and (not pseudonym.strip() or storable_text(pseudonym) == value):
        raise ConfigurationError("The pseudonym is empty, or the name itself.")


def _count_everywhere(store: Store, kind: str, value: str) -> int:
    """Entries of a person in the ledger and in files; 0 where the ledger itself counts them all.

    Sums, which stay in the ledger, go by accounts; end users and tags are in entries alone.
    """
    if kind != "end_user" and not kind.startswith("tag:"):
        return 0
    if not any(month.gone for month in store.archives.listed()):
        return 0
    return sum(1 for _ in store.entries(EntryFilter(where={condition_on(kind): frozenset({value})})))


def _kind_of(dimension: str) -> str:
    if dimension not in _KINDS and not (dimension.startswith("tag:") and dimension != "tag:"):
        raise ConfigurationError(
            f"{dimension!r} cannot be erased; use {', '.join(_KINDS)} or tag:NAME.{suggest(dimension, _KINDS)}"
        )
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
        self.changed: list[tuple[int, str, str]] = []
        self.kept: list[KeptDocument] = []
        self.standing: list[tuple[int, int]] = []
        self.nothing = False

    def run(self, rows: Any) -> NewDocument:
        """Take the text out; the document that says so."""
        statement = "SELECT id, digest FROM names WHERE kind = ? AND value = ? AND salt IS NOT NULL ORDER BY id"
        own = rows.execute(statement, (self._kind, self._value)).fetchall()
        found = [*own]
        if (tag := _ALONG.get(self._kind)) is not None:
            found += rows.execute(statement, (tag, self._value)).fetchall()
        self._refuse_holds(rows)
        self.digests = [bytes(digest).hex() for _, digest in found]
        self.pseudonym = storable_text(self._wanted or f"erased-{(self.digests or [token_hex(4)])[0][:8]}")
        known = rows.execute("SELECT salt FROM names WHERE kind = ? AND value = ?", (self._kind, self.pseudonym))
        if any(found or salt for (salt,) in known.fetchall()):
            raise ConfigurationError(f"{self.pseudonym!r} stands for somebody in the ledger; take another pseudonym.")
        self.entries = sum(self._count(rows, number) for number, _ in own)
        for number, _ in found:
            rows.execute("UPDATE names SET salt = NULL, value = ? WHERE id = ?", (self.pseudonym, number))
        for table in self._tables:
            self._rename_scopes(rows, table)
        self._change_documents(rows)
        self.nothing = not found and not self.changed
        if self.nothing:
            kept = "".join(
                f" {one.kind} {one.number or one.key} names it until {one.keep_until}, when the law lets it go."
                if one.keep_until
                else f" {one.kind} {one.key} names it: {one.why}."
                for one in self.kept
            )
            raise LedgerError(
                f"No {self._kind.replace('_', ' ')} of this name is in the ledger: nothing was erased.{kept}"
            )
        body = {
            "kind": self._kind,
            "names": self.digests,
            "pseudonym": self.pseudonym,
            "documents": self.changed,
            **({"standing": self.standing} if self.standing else {}),
            "reason": self._reason,
            "by": self._by,
        }
        key = self.digests[0] if self.digests else f"document {self.changed[0][2]}"
        return NewDocument(kind=ERASURE, key=key, body=json.dumps(body, ensure_ascii=False))

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
            if changed == values:
                continue
            if rows.execute(f"SELECT 1 FROM {table} WHERE scope = ? LIMIT 1", (scope_text(changed),)).fetchone():  # noqa: S608 - as above
                raise self._taken("budgets")
            rows.execute(f"UPDATE {table} SET scope = ? WHERE scope = ?", (scope_text(changed), scope))  # noqa: S608 - as above

    def _taken(self, where: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.pseudonym!r} stands for somebody in {where} of the ledger; take another pseudonym. Nothing was "
            "erased."
        )

    def _change_documents(self, rows: Any) -> None:
        """Put the pseudonym in the name's place in documents that need not be kept."""
        self.changed, self.kept, self.standing = [], [], []
        today = utcnow().date()
        writing = _Writing(self._kind, self._value, self.pseudonym)
        found = rows.execute("SELECT seq, position, kind, body, leaf FROM documents ORDER BY seq").fetchall()
        for seq, position, kind, body, leaf in found:
            record = from_json(body)
            said = [record["key"], from_json(record["body"])]
            keep_until = date(from_microseconds(record["recorded_at"]).year + KEEP_YEARS, 12, 31)
            everyone = kind == "budget" and self._value == "*"  # in a budget it is each of them, and nobody's name
            if everyone:
                due = said
            elif kind in _WRITTEN:
                due = [said[0], said[1] | writing.without({k: said[1][k] for k in _WRITTEN[kind] if k in said[1]})]
            else:
                due = writing.without(said, of_budget=kind == "budget")
            if kind in _BOOKS and today <= keep_until:
                if due != said:
                    self.kept.append(_kept(record, keep_until, _BY_LAW))
                    places = enumerate(name_in(one, writing.name) for one in owners_in(said[1]))
                    self.standing += [(position, place) for place, name in places if name == self._value][:1]
                continue
            if due != said:
                same = rows.execute(
                    "SELECT 1 FROM documents WHERE kind = ? AND key = ? AND seq <> ?", (kind, due[0], seq)
                ).fetchone()
                if same is not None:
                    raise self._taken(f"the {kind.replace('_', ' ')}s")
                record["key"], record["body"] = due[0], compact_json(due[1])
                made = to_json(record)
                filed = bytes(leaf or hashlib.sha256(body.encode()).digest())
                rows.execute(
                    "UPDATE documents SET key = ?, body = ?, leaf = ? WHERE seq = ?",
                    (record["key"], made.decode(), filed, seq),
                )
                self.changed.append((seq, filed.hex(), hashlib.sha256(made).hexdigest()))
            if not everyone and (why := self._tell_left(kind, due, writing)):
                self.kept.append(_kept(record, None, why))

    def _tell_left(self, kind: str, said: list[Any], writing: _Writing) -> str:
        """Why a document, of this kind, key and content, may name the person still; empty where it does not."""
        if kind != ERASURE and writing.without(said) != said:
            return _OF_PLACE if kind in _WRITTEN else _OF_BUDGET
        left = _fields_that_may_name(said[1], self._value)
        return "" if not left else _IN_WORDS if left & _BY_HAND else _OF_BUDGET


def _kept(record: Mapping[str, Any], keep_until: date | None, why: str) -> KeptDocument:
    series = record.get("series")
    number = None if series is None else f"{series}{record['number']:05d}"
    return KeptDocument(record["kind"], record["key"], number, keep_until, why)


def _may_name(text: str, value: str) -> bool:
    """Whether a text may name somebody: not where it has a few signs of theirs in a longer word, number or date."""
    text, value = (unicodedata.normalize("NFKC", one).casefold() for one in (text, value.strip()))
    if len(value) >= _FEW or not value.isascii():
        return value in text
    alone = rf"(?<!\w)(?<!\d[-.,:/]){re.escape(value)}(?!\w|[-.,:/]\d)"
    return value != "" and re.search(alone, text) is not None


def _fields_that_may_name(part: Any, value: str, name: str = "") -> set[str]:
    """Of a document, what people wrote, and how they called a budget: where somebody may be named."""
    if isinstance(part, str):
        asked = name in _BY_HAND or name in {"name", "budget"} or (name == "text" and not value.isascii())
        return {name} if asked and _may_name(part, value) else set()
    if isinstance(part, Mapping):
        values = cast("Mapping[str, Any]", part)
        return set[str]().union(*(_fields_that_may_name(one, value, key) for key, one in values.items()))
    if isinstance(part, list):
        return set[str]().union(*(_fields_that_may_name(one, value, name) for one in part))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return set()


class _Writing:
    """Writes a pseudonym where a document has a name: as what its dimension is, in scopes, and in prose."""

    def __init__(self, kind: str, value: str, pseudonym: str) -> None:
        self.name = "api_key" if kind == "api_key_alias" else kind
        self._value, self._pseudonym = value, pseudonym
        scoped = rf"(?<![\w]){re.escape(scope_text({self.name: value}))}(?![\w@+-])"
        # A number, or one plain word for a thing that is no person, may stand in prose for something else.
        person = kind in {"member", "end_user", "api_key_alias"} or kind.startswith("tag:")
        worded = any(map(str.isalpha, value)) and (person or not value.isalpha())
        text = rf"|(?<![\w@+-])(?<!\w\.){re.escape(value)}(?!\w|[.@+-]\w)" if worded else ""
        self._pattern = re.compile(f"({scoped}){text}")
        # No blanks stand between words everywhere; what is written by hand has names with endings, too.
        beyond = any(not sign.isascii() for sign in value if sign.isalpha())
        self._within = re.compile(f"({scoped})|{re.escape(value)}") if beyond or len(value) >= _FEW else self._pattern
        self._within_of = _BY_HAND | {"text"} if beyond else _BY_HAND
        self._scoped = scope_text({self.name: pseudonym})

    def without(self, part: Any, name: str = "", *, of_budget: bool = False) -> Any:
        """A part of a document with the pseudonym in place of the name.

        Args:
            part: JSON.
            name: What it stands under.
            of_budget: Leave names of budgets alone.
        """
        if isinstance(part, str):
            if name == self.name:
                return self._pseudonym if part == self._value else part
            other = name in _FIXED or name in _KINDS or name.startswith("tag:")
            if other or (of_budget and name in {"", "name", "budget", "grant_id"}):
                return part
            return (self._within if name in self._within_of else self._pattern).sub(self._replaced, part)
        if isinstance(part, Mapping):
            values = cast("Mapping[str, Any]", part)
            prefix = "tag:" if name == "tags" else ""
            made = {
                self._keyed(key): self.without(value, f"{prefix}{key}", of_budget=of_budget)
                for key, value in values.items()
            }
            if "buyer" in made and values.get("scope") == {self.name: self._value}:
                made["buyer"] = {"name": self._pseudonym}
            return made
        if isinstance(part, list):
            return [self.without(one, name, of_budget=of_budget) for one in part]  # pyright: ignore[reportUnknownVariableType]
        return part

    def _replaced(self, found: re.Match[str]) -> str:
        if found[1]:
            return self._scoped
        elsewhere = _SCOPED.search(found.string, 0, found.start())  # organization=acme is no tag's acme
        return found[0] if elsewhere else self._pseudonym

    def _keyed(self, key: str) -> str:
        return self._pseudonym if key == self._value and self._pattern.fullmatch(key) else key
