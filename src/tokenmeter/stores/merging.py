"""Joining ledgers: what several hosts recorded each for itself becomes one chain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from tokenmeter.errors import LedgerError
from tokenmeter.stores.archive.manifest import KIND as ARCHIVE
from tokenmeter.stores.archive.manifest import PLACE
from tokenmeter.stores.copying import Progress, refuse_holds
from tokenmeter.stores.documents import ERASURE, MERGED, MOVED, NewDocument
from tokenmeter.stores.encoding import FORMAT
from tokenmeter.stores.engine import read_head
from tokenmeter.stores.moving import Movable, moved_to, opened, refuse_itself
from tokenmeter.stores.twins import Twins
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
    Invoices and closed periods come along if the target has none of that series or key. Budgets are the target's own:
    count them again afterwards, see `Meter.verify`. Names that were erased stay erased. An interrupted merge is run
    again.

    Args:
        source: URL of the ledger that is taken in, or a file's path.
        target: URL of the ledger that takes it, or a file's path; it must be there.
        progress: Told now and then how many entries are done, and of how many.

    Raises:
        ConfigurationError: one of the ledgers is not there, or both are the same.
        LedgerError: both have documents of one series or key, or an entry of one identity and different content; or
            calls are under way. Nothing was taken.
        StoreUnavailableError: one of them cannot be used, or a file of a closed month cannot be read.
        TamperedLedgerError: a file of a closed month is not what was sealed.
    """
    with opened(source) as origin, opened(target) as store:
        refuse_itself(origin, target)
        if moved_to(origin) is None:  # else nothing is folded any more
            origin.end().fold()
        store.end().fold()
        origin.end().read(partial(refuse_holds, then="and merge again: nothing was taken."))
        documents = _new_documents(origin, store)
        _refuse_others(origin, store)
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
            store.file(one)
        taken = _entries(store) - before
        repeated = total + twins.made - taken
        head = _record(origin, store, taken, repeated)
        return Merge(store.url, taken, repeated, len(documents), head)


def _entries(store: Movable) -> int:
    (count,) = store.end().read(lambda rows: read_head(rows, "entries"))
    return int(count)


def _new_documents(origin: Movable, store: Movable) -> list[NewDocument]:
    """Documents of the origin that the target does not have.

    Raises:
        LedgerError: both have some of one series, or of one key.
    """
    theirs = {(one.kind, one.key): one.body for one in store.documents()}
    series = {one.series for one in store.documents() if one.series is not None}
    ours = [one for one in origin.documents() if one.kind not in _STAY]
    fresh = [one for one in ours if theirs.get((one.kind, one.key)) != one.body]
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
    return [NewDocument(kind=one.kind, key=one.key, series=one.series, body=one.body) for one in fresh]


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


def _record(origin: Movable, store: Movable, taken: int, repeated: int) -> str:
    """File what was taken in; the head after it."""
    identity, head = origin.end().read(lambda rows: read_head(rows, "identity, hash"))
    body = {
        "ledger": bytes(identity).hex(),
        "head": bytes(head).hex(),
        "url": origin.url,
        "entries": taken,
        "repeated": repeated,
    }
    filing = store.file(NewDocument(kind=MERGED, key=f"{body['ledger']} {body['head']}", body=json.dumps(body)))
    return filing.document.hash
