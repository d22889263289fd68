"""Joining ledgers: what several hosts recorded each for itself becomes one chain."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from tokenmeter.display import counted
from tokenmeter.errors import LedgerError, StoreUnavailableError
from tokenmeter.stores.archive.manifest import KIND as ARCHIVE
from tokenmeter.stores.archive.manifest import PLACE
from tokenmeter.stores.copying import Progress, refuse_holds
from tokenmeter.stores.documents import (
    ERASURE,
    MERGED,
    MOVED,
    Document,
    DocumentQuery,
    NewDocument,
    name_in,
    owners_in,
)
from tokenmeter.stores.encoding import FORMAT
from tokenmeter.stores.engine import look_up, read_head
from tokenmeter.stores.moving import Movable, moved_to, opened, refuse_itself
from tokenmeter.stores.twins import Twins
from tokenmeter.stores.walking import nameless
from tokenmeter.values import dataclass

_PAGE = 500
#: Documents that stay where they are: they are about that ledger itself.
_STAY = {"budget", "notice", ARCHIVE, PLACE, MERGED, MOVED, ERASURE}


@dataclass(frozen=True, slots=True)
class Merge:
    """What `merge_ledger` did.

    Attributes:
        url: The ledger that took the other in.
        entries: How many entries it took, and made where a bill that it had is known better now.
        repeated: How many it had already, by identity or as the same bill.
        documents: How many documents it took.
        head: Hash of its last record (hex).
    """

    url: str
    entries: int
    repeated: int
    documents: int
    head: str


def merge_ledger(source: str | Path, target: str | Path, *, progress: Progress | None = None) -> Merge:
    """Take the entries and documents of one ledger into another, behind its last record. The source stays as it is.

    Entries keep their identity and every byte; they get new places in the chain. One that is in both, as after a
    copy, is taken once, and a bill that both recorded is counted once, as whoever heard more of it did: a whole answer
    in place of an estimate, a session by what it grew, a batch as a whole or by its lines. What the source corrected of
    such a bill is corrected in the target, if both had it at the same amounts; `tokenmeter.reprice` does the rest.
    Invoices and closed periods come along if the target has no others of that series or key. Budgets are the target's
    own: count them again afterwards, see `Meter.verify`. Names that were erased stay erased, under their pseudonyms:
    records of the target say so, and where in documents that came along they stand. An interrupted merge is run again.

    Args:
        source: URL of the ledger that is taken in, or a file's path.
        target: URL of the ledger that takes it, or a file's path; it must be there.
        progress: Told now and then how many entries are done, and of how many.

    Raises:
        ConfigurationError: one of the ledgers is not there, or both are the same; or names were erased in the source,
            and the URL of the target does not name the schema's owner.
        LedgerError: both have documents of their own of one series or key, or an entry of one identity and different
            content; or calls are under way, or entries wait beside a retired source; or the target still has a name
            that was erased in the source. Nothing was taken.
        StoreUnavailableError: one of them cannot be used, or a file of a closed month cannot be read.
        TamperedLedgerError: a file of a closed month is not what was sealed.
    """
    with opened(source) as origin, opened(target) as store:
        refuse_itself(origin, target)
        if (place := moved_to(store)) is not None:
            raise StoreUnavailableError(f"{store.url} moved to {place}: merge into that. Nothing was taken.")
        if (gone := moved_to(origin)) is None:
            origin.end().fold()
        elif waiting := origin.count_waiting():  # nothing is folded any more
            raise LedgerError(
                f"{counted(waiting, 'entry waits', 'entries wait')} beside {origin.url}, which moved to {gone}: "
                "running `tokenmeter db copy --retire` once more hands that on. Then merge again: nothing was taken."
            )
        store.end().fold()
        origin.end().read(partial(refuse_holds, then="and merge again: nothing was taken."))
        documents = _new_documents(origin, store)
        _refuse_others(origin, store)
        _refuse_names(origin, store)
        before = _entries(store)
        store.take([(record, b"") for record in _definitions(origin)])
        total, done = _entries(origin), 0
        twins = Twins(origin, store)
        for page in _pages(origin):
            records = {name: from_json(body) for name, body in page}
            later = [one for one in records.values() if "corrects" in one]
            left = twins.strangers([one for one in records.values() if "corrects" not in one])
            left.update(one["id"] for one in later)
            store.take([(body, b"") for name, body in page if name not in left])
            told = twins.correct(later)
            bodies = dict(page)
            store.take([(bodies[one["id"]], b"") for one in later if one["corrects"] not in told])
            done += len(page)
            if progress is not None:
                progress(done, total)
        twins.finish()
        for one in documents:
            _file(store, one)
        _carry_erasures(origin, store)
        taken = _entries(store) - before
        repeated = total + twins.made - taken
        head = _record(origin, store, taken, repeated)
        return Merge(store.url, taken, repeated, len(documents), head)


def _entries(store: Movable) -> int:
    (count,) = store.end().read(lambda rows: read_head(rows, "entries"))
    return int(count)


def _new_documents(origin: Movable, store: Movable) -> list[NewDocument]:
    """Documents of the origin that the target does not have.

    Of a series the target may have the beginning, as an earlier merge or one that was broken off leaves it: what comes
    after it gets the numbers that it has in the origin.

    Raises:
        LedgerError: both have some of one series, or of one key.
    """
    there = list(store.documents())
    theirs = {(one.kind, one.key): one.body for one in there}
    ours = [one for one in origin.documents() if one.kind not in _STAY]
    fresh = [one for one in ours if theirs.get((one.kind, one.key)) != one.body]
    begun, whole = _numbered(there), _numbered(ours)
    series = {name for name, those in begun.items() if whole.get(name, [])[: len(those)] != those}
    for one in fresh:
        if one.series in series:
            raise LedgerError(
                f"Both ledgers have documents of the series {one.series!r}: their numbers would meet. Keep them apart, "
                "and give one of them another series from now on."
            )
        if (one.kind, one.key) in theirs:
            raise LedgerError(
                f"Both ledgers have a document {one.kind} {one.key}, with different content. Merge before you close "
                "periods, or keep the ledgers apart."
            )
    return [
        NewDocument(kind=one.kind, key=one.key, series=one.series, body=one.body, number=one.number) for one in fresh
    ]


def _file(store: Movable, document: NewDocument) -> None:
    """File a document of the origin, with its number.

    Raises:
        LedgerError: somebody filed another in its place since the two ledgers were compared.
    """
    filing = store.file(document)
    there = filing.document
    named = "" if there.number is None else f", number {there.number} of the series {there.series!r}"
    if not filing.recorded and (there.kind, there.key, there.body) != (document.kind, document.key, document.body):
        raise LedgerError(
            f"While the ledgers were merged somebody filed {there.kind} {there.key} in {store.url}{named}, where "
            f"{document.kind} {document.key} was to stand. The entries were taken; the documents from this one on were "
            "not. Keep the source, whose documents hold, and bill what it billed from there."
        )


def _numbered(documents: Iterable[Document]) -> dict[str, list[tuple[str, str, str]]]:
    """Per series kind, key and body of its documents, in the order of their numbers."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for one in documents:
        if one.series is not None:
            found.setdefault(one.series, []).append((one.kind, one.key, one.body))
    return found


def _pages(store: Movable) -> Iterator[list[tuple[str, bytes]]]:
    """Identity and record of every entry, those of closed months in files first, in the order of the chain."""
    last = 0
    for page in store.archives.dropped():
        last = page[-1][0]
        for at in range(0, len(page), _PAGE):
            yield [(from_json(body)["id"], body.encode()) for _, body in page[at : at + _PAGE]]
    while True:
        rows = store.end().read(
            lambda rows, last=last: rows.execute(  # type: ignore[misc]
                "SELECT seq, entry_id, body FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", (last, _PAGE)
            ).fetchall()
        )
        if not rows:
            return
        last = rows[-1][0]
        yield [
            (identity.hex() if isinstance(identity, bytes) else identity, body.encode()) for _, identity, body in rows
        ]


def _refuse_others(origin: Movable, store: Movable) -> None:
    """Refuse an entry that both have with different content, be it live or in files.

    Raises:
        LedgerError: there is one.
    """
    strangers = set[bytes]()
    for page in _pages(origin):
        ours = dict(page)
        for name, body in store.end().read(partial(_theirs, store=store, names=list(ours), strangers=strangers)):
            if ours[name] != body.encode():
                raise LedgerError(f"Entry {name} is in both ledgers with different content: one of them was changed.")


def _theirs(rows: Any, *, store: Movable, names: Sequence[str], strangers: set[bytes]) -> list[tuple[str, str]]:
    """Identity and record of those entries that a ledger has, too.

    Args:
        rows: The ledger, in a transaction.
        store: The same.
        names: Identities.
        strangers: Writers of ids that have no entry in files there, as far as it was asked.
    """
    asked = {store.end().identity(name): name for name in names}
    places = ", ".join("?" * len(asked))
    statement = f"SELECT entry_id, body FROM entries WHERE entry_id IN ({places})"  # noqa: S608 - question marks
    found = {asked[name]: str(body) for name, body in rows.execute(statement, tuple(asked)).fetchall()}
    for name in names:
        if name not in found and store.archives.has(rows, name, strangers):
            archived = store.archives.entry(rows, name)
            if archived is not None:
                found[name] = archived[1]
    return list(found.items())


def _definitions(origin: Movable) -> list[bytes]:
    """What entries share, as records; a name that was erased has none."""

    def work(rows: Any) -> list[bytes]:
        names = rows.execute("SELECT digest, salt, kind, value FROM names WHERE salt IS NOT NULL ORDER BY id")
        told = [
            to_json(
                {
                    "format": FORMAT,
                    "record": "name",
                    "digest": bytes(digest).hex(),
                    "salt": bytes(salt).hex(),
                    "kind": kind,
                    "value": value,
                }
            )
            for digest, salt, kind, value in names.fetchall()
        ]
        for table in ("accounts", "rates"):
            bodies = rows.execute(f"SELECT body FROM {table} WHERE body IS NOT NULL ORDER BY id")  # noqa: S608 - names of our own
            told += [body.encode() for (body,) in bodies.fetchall()]
        return told

    return origin.end().read(work)


def _refuse_names(origin: Movable, store: Movable) -> None:
    """Refuse a name that the target has and the origin erased: an earlier copy would bring it back.

    Raises:
        LedgerError: there is one.
    """

    def read_erased(rows: Any) -> list[bytes]:
        gone = {digest for one in origin.documents(DocumentQuery(ERASURE)) for digest in json.loads(one.body)["names"]}
        gone |= nameless(rows)  # what it took in itself, of ledgers whose erasures came without a record
        return [bytes.fromhex(digest) for digest in sorted(gone)]

    erased = origin.end().read(read_erased)
    statement = "SELECT salt, kind, value FROM names WHERE digest IN"
    kept = store.end().read(lambda rows: [row for row in look_up(rows, statement, erased) if row[0] is not None])
    if kept:
        _, kind, value = kept[0]
        dimension = "api_key" if kind == "api_key_alias" else kind
        raise LedgerError(
            f"The {dimension} {value!r} was erased in {origin.url}, and {store.url} still has the name: erase it there "
            f"too (`tokenmeter erase {dimension} {shlex.quote(value)} --store {shlex.quote(store.url)}`), and merge "
            "again. Nothing was taken."
        )


def _carry_erasures(origin: Movable, store: Movable) -> None:
    """Let names that either ledger erased be erased in what came along: entries have the pseudonym, documents a place.

    Raises:
        ConfigurationError: the target's role may not erase.
    """
    theirs, ours = (list(one.documents(DocumentQuery(ERASURE))) for one in (origin, store))
    if not theirs and not ours:
        return
    filed = {(one.kind, one.key): one.position for one in store.documents() if one.kind not in _STAY}
    both = [(one, filed[one.kind, one.key]) for one in origin.documents() if (one.kind, one.key) in filed]
    moved = {one.position: now for one, now in both}
    for record in theirs:
        said: dict[str, Any] = json.loads(record.body)
        standing = {(moved[at], place) for at, place in said.get("standing", ()) if at in moved}
        kinds = {name: kind for name, (kind, _) in _read_erased(origin, said).items()}
        here = _read_erased(store, said)
        called = next((value for _, value in here.values()), said["pseudonym"])
        if called != said["pseudonym"]:  # it was erased here on its own
            standing |= _find_standing(both, said["kind"], {said["pseudonym"]})
        fresh: list[str] = [digest for digest in said["names"] if digest not in here]
        names = {digest: kinds.get(digest, str(said["kind"])) for digest in fresh}
        _file_erasure(store, record.key, {**said, "pseudonym": called}, names, standing)
    for record in ours:
        said = json.loads(record.body)
        texts = origin.end().read(partial(_live_names, digests=said["names"]))
        _file_erasure(store, record.key, said, {}, _find_standing(both, said["kind"], texts))


def _read_erased(store: Movable, said: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Those of an erasure's digests that a record of this ledger erased, each with its kind and its pseudonym."""
    keys = [bytes.fromhex(digest) for digest in said["names"]]
    statement = "SELECT digest, salt, kind, value FROM names WHERE digest IN"
    found = store.end().read(lambda rows: list(look_up(rows, statement, keys)))
    return {bytes(digest).hex(): (kind, value) for digest, salt, kind, value in found if salt is None and kind}


def _live_names(rows: Any, *, digests: Collection[str]) -> set[str]:
    """The texts that digests stand for in this ledger."""
    keys = [bytes.fromhex(digest) for digest in digests]
    return {
        value
        for salt, value in look_up(rows, "SELECT salt, value FROM names WHERE digest IN", keys)
        if salt is not None
    }


def _find_standing(
    documents: Sequence[tuple[Document, int]], kind: str, texts: Collection[str]
) -> set[tuple[int, int]]:
    """Position and place, in `owners_in`, of each of the texts in documents that have it.

    Args:
        documents: Each with its position in the ledger that is asked for.
        kind: Kind of the names.
        texts: The names.
    """
    dimension = "api_key" if kind == "api_key_alias" else kind
    found: set[tuple[int, int]] = set()
    for one, position in documents if texts else ():
        first: dict[str, int] = {}
        for place, owner in enumerate(owners_in(json.loads(one.body))):
            if (name := name_in(owner, dimension)) in texts:
                first.setdefault(str(name), place)
        found |= {(position, place) for place in first.values()}
    return found


def _file_erasure(
    store: Movable, key: str, said: Mapping[str, Any], names: Mapping[str, str], standing: Collection[tuple[int, int]]
) -> None:
    """File what is new of an erasure: nothing, if nothing is.

    Args:
        store: The target.
        key: The record's key in the ledger that it is from.
        said: What it says.
        names: Digests that get its pseudonym, each with the kind of the name.
        standing: Positions and places where documents have the name.
    """
    records = list(store.documents(DocumentQuery(ERASURE)))
    known: set[tuple[Any, ...]] = set()
    for told in (json.loads(one.body) for one in records):
        known |= {(told["kind"], *place) for place in told.get("standing", ())}
    fresh = sorted(place for place in standing if (said["kind"], *place) not in known)
    if not names and not fresh:
        return
    body = {
        **{name: said[name] for name in ("kind", "pseudonym", "reason", "by")},
        "names": sorted(names),
        "documents": [],
        **({"standing": fresh} if fresh else {}),
    }
    text = json.dumps(body, ensure_ascii=False)
    if key in {one.key for one in records}:
        key = f"{key} {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def work(rows: Any) -> NewDocument:
        for digest, kind in names.items():
            rows.execute(
                "INSERT INTO names (digest, salt, kind, value) VALUES (?, NULL, ?, ?) ON CONFLICT (digest) "
                "DO UPDATE SET kind = excluded.kind, value = excluded.value WHERE names.salt IS NULL",
                (bytes.fromhex(digest), kind, said["pseudonym"]),
            )
        return NewDocument(kind=ERASURE, key=key, body=text)

    store.file_with(work)


def _record(origin: Movable, store: Movable, taken: int, repeated: int) -> str:
    """File what was taken in; the head after it."""
    identity, head = origin.end().read(lambda rows: read_head(rows, "identity, hash"))
    body = {
        "ledger": bytes(identity).hex(),
        "head": bytes(head).hex(),
        "url": origin.url,
        "entries": taken,
        "repeated": repeated,
        "nameless": sorted(origin.end().read(nameless)),
    }
    store.file(NewDocument(kind=MERGED, key=f"{body['ledger']} {body['head']}", body=json.dumps(body)))
    # Of a merge that is run again the record is there, with whatever the target recorded since behind it.
    (last,) = store.end().read(lambda rows: read_head(rows, "hash"))
    return bytes(last).hex()
