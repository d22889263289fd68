"""Bills that two ledgers recorded each for itself: a merge counts each once, as whoever heard more of it recorded it.

The rules are those by which programs share one ledger: a whole answer stands in place of an estimate, a running total
counts by what it has grown, a batch is billed as a whole or by its lines, and what was corrected or taken back is so.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from tokenmeter.ledger import Entry, new_id
from tokenmeter.pricing.corrections import COMPLETED, DOUBTS, WHOLE, completion, grown, reversal, stands_for
from tokenmeter.providers import dialect_for
from tokenmeter.stores.base import EntryFilter
from tokenmeter.stores.moving import Movable
from tokenmeter.stores.slots import from_microseconds

#: The key of an entry of a running total, whose entries are numbered.
_NUMBERED = re.compile(r"(.+)#[1-9][0-9]*", re.DOTALL)
#: Numbers of a total's entries that are asked for at once, and keys that are looked for at once.
_TOGETHER, _KEYS = 32, 500
#: How far apart the entries of one answer are on two hosts.
_NEAR = timedelta(hours=1)
_MOMENT = timedelta(microseconds=1)


class Twins:
    """Finds them, and brings what the target lacks of them.

    Args:
        origin: The ledger that is taken in.
        store: The ledger that takes it.

    Attributes:
        made: How many entries that are not the origin's were added to the target.
    """

    def __init__(self, origin: Movable, store: Movable) -> None:
        self.made = 0
        self._origin, self._store = origin, store
        self._totals: dict[str, bool] = {}
        self._answers: set[str] = set()
        #: Whether of the target, and moment -> what corrects entries of then, by the entry; of the records at hand.
        self._corrected: dict[tuple[bool, datetime], dict[str | None, list[Entry]]] = {}

    def strangers(self, records: Sequence[Mapping[str, Any]]) -> set[str]:
        """Identities of those entries whose bill the target has by a record of its own, which now says as much."""
        self._look_for_answers(records)
        names = {self._store.end().identity(one["id"]): one["id"] for one in records if "dedup_key" in one}
        own = {names[name] for (name,) in self._look_up("entry_id", "entries", "entry_id", names)}
        keyed = [one for one in records if "dedup_key" in one and one["id"] not in own]
        keys = {key for one in keyed for key in _related(one)}
        there = {key for (key,) in self._look_up("key", "dedup", "key", keys)}
        return {one["id"] for one in keyed if there.intersection(_related(one)) and self._is_told(one)}

    def correct(self, corrections: Iterable[Mapping[str, Any]]) -> set[str]:
        """Correct bills that the target has by a record of its own as the origin corrected them; their identities."""
        found = set[str]()
        for name in dict.fromkeys(str(one["corrects"]) for one in corrections):
            entry = self._origin.entry(name)
            if entry is None or self._store.entry(name) is not None:
                continue
            if _total_of(entry.dedup_key, entry.flags) in self._totals:
                found.add(name)  # what it has grown was taken as it was; `reprice` does the rest
            elif (twin := self._twin(entry)) is not None:
                found.add(name)
                self._correct(entry, twin)
        return found

    def finish(self) -> None:
        """Take back estimates of calls whose whole answer came with the other ledger."""
        self._corrected.clear()
        answers = sorted(self._answers)
        for at in range(0, len(answers), _KEYS):
            found = defaultdict[str | None, list[Entry]](list)
            some: frozenset[str | None] = frozenset(answers[at : at + _KEYS])
            for entry in self._store.entries(EntryFilter(where={"response_id": some})):
                found[entry.response_id].append(entry)
            for recorded in found.values():
                self._take_back_estimates(recorded)

    def _take_back_estimates(self, recorded: Sequence[Entry]) -> None:
        """Of what is recorded of one answer, take back what stands in for it."""
        gone = {one.corrects for one in recorded if one.kind == "reversal"}
        calls = [one for one in recorded if one.kind == "usage" and one.entry_id not in gone]
        wholes = [one for one in calls if not _is_doubtful(one)]
        for one in calls:
            if _is_doubtful(one) and any(stands_for(w, one) and w.provider == one.provider for w in wholes):
                self._post([reversal(one, self._corrections(self._store, one))])

    def _is_told(self, record: Mapping[str, Any]) -> bool:
        entry = self._origin.entry(record["id"])
        if entry is None or entry.dedup_key is None or self._store.entry(entry.entry_id) is not None:
            return False
        total = _total_of(entry.dedup_key, entry.flags)
        if total is not None and total not in self._totals:
            self._totals[total] = self._go_on(total)
        if total is not None:
            return self._totals[total]
        return self._stand_in(entry) or self._is_line_of_whole(entry)

    # -- answers that were estimated on one host

    def _stand_in(self, entry: Entry) -> bool:
        """Whether the target has that bill; if it only estimated it, the whole answer takes the estimate's place."""
        twin = self._twin(entry)
        if twin is None:
            return False
        known = self._corrections(self._store, twin)
        if any(one.kind == "reversal" for one in known) or entry.kind != "usage":
            return True
        mine = replace(entry, entry_id=new_id(), reservation_id=None)
        if _is_doubtful(twin) and not _is_doubtful(entry) and _is_of_one_kind(entry, twin):
            self._post([replace(mine, dedup_key=f"{twin.dedup_key}{WHOLE}"), reversal(twin, known)])
        elif "imported" in twin.flags and _is_part(twin, entry):
            self._post(completion([twin], known, mine))
        return True

    def _twin(self, entry: Entry) -> Entry | None:
        """What the target has recorded of the same bill: the whole answer before an estimate."""
        if entry.dedup_key is None:
            return None
        found = self._store.recorded_under(_bill_keys(entry.dedup_key))
        return next((one for one in reversed(found) if not _is_doubtful(one)), next(iter(found), None))

    def _look_for_answers(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep in mind whose answer one of both may have only estimated, where no key says that it is the same."""
        wanted = {
            one["response_id"]: one
            for one in records
            if "response_id" in one and ("dedup_key" in one) != bool(DOUBTS.intersection(one.get("flags", ())))
        }
        if not wanted:
            return
        names = sorted(wanted)
        rows = self._look_up("response_id, entry_id", "entries", "response_id", names)
        found = [(answer, one.hex() if isinstance(one, bytes) else one) for answer, one in rows]
        if any(one.gone for one in self._store.archives.listed()):
            moments = [from_microseconds(one["occurred_at"]) for one in wanted.values()]
            near = EntryFilter(
                since=min(moments) - _NEAR, until=max(moments) + _NEAR, where={"response_id": frozenset(names)}
            )
            found += [(str(one.response_id), one.entry_id) for one in self._store.entries(near)]
        self._answers.update(answer for answer, identity in found if identity != wanted[answer]["id"])

    # -- running totals

    def _go_on(self, total: str) -> bool:
        """Whether both recorded this total each for itself; the target then has what the origin read further."""
        theirs, ours = (_numbered(ledger, total) for ledger in (self._origin, self._store))
        if all(one.entry_id == other.entry_id for one, other in zip(theirs, ours, strict=False)):
            return False
        identity = total.partition(":")[2]
        for number, one in enumerate(theirs, 1):
            if one.response_id != identity:
                until = max((own.occurred_at for own in ours if own.response_id == identity), default=None)
                within = until is not None and one.occurred_at <= until
                known = within or any(own.response_id == one.response_id for own in ours)
                made = None if known else replace(one, entry_id=new_id(), reservation_id=None)
            else:
                made = grown(theirs[:number], ours)
            if made is not None:
                ours.append(replace(made, dedup_key=f"{total}#{len(ours) + 1}"))
                self._post([ours[-1]])
        return True

    # -- batches

    def _is_line_of_whole(self, entry: Entry) -> bool:
        """Whether the entry is a line of a batch that the target has as a whole."""
        if not _is_line(entry):
            return False
        found = self._store.recorded_under(_files(entry.dedup_key or "") or [""])
        gone = {own.corrects for one in found for own in self._corrections(self._store, one) if own.kind == "reversal"}
        return any(one.operation == entry.operation and not _is_line(one) and one.entry_id not in gone for one in found)

    # -- what was corrected

    def _correct(self, entry: Entry, twin: Entry) -> None:
        """Correct the twin as the origin corrected the entry, or took it back."""
        theirs, ours = self._corrections(self._origin, entry), self._corrections(self._store, twin)
        made = list[Entry]()
        if [one.charges for one in (entry, *theirs[: len(ours)])] == [one.charges for one in (twin, *ours)]:
            made = [
                replace(
                    one,
                    entry_id=new_id(),
                    occurred_at=twin.occurred_at,
                    attribution=twin.attribution,
                    api_key=twin.api_key,
                    corrects=twin.entry_id,
                    dedup_key=None if one.dedup_key is None else one.dedup_key.replace(entry.entry_id, twin.entry_id),
                )
                for one in theirs[len(ours) :]
            ]
        elif {one.kind for one in theirs} - {one.kind for one in ours} >= {"reversal"}:
            if _is_doubtful(entry) and self._origin.recorded_under([f"{entry.dedup_key}{WHOLE}"]):
                return  # it gave way to the whole answer, which is what the twin is
            made = [reversal(twin, ours)]
        self._post(made)

    def _corrections(self, ledger: Movable, entry: Entry) -> list[Entry]:
        """What corrects an entry, or takes it back, in the order in which that was recorded."""
        place = (ledger is self._store, entry.occurred_at)
        if place not in self._corrected:  # read once: all lines of a batch, and of a day's export, are of one moment
            kinds = {"kind": frozenset[str | None]({"correction", "reversal"})}
            near = EntryFilter(since=entry.occurred_at, until=entry.occurred_at + _MOMENT, where=kinds)
            found = self._corrected[place] = defaultdict(list)
            for one in ledger.entries(near):
                found[one.corrects].append(one)
        return self._corrected[place][entry.entry_id]

    # -- the ledgers

    def _post(self, entries: Iterable[Entry]) -> None:
        made = list(entries)
        for one, done in zip(made, self._store.append([(one, ()) for one in made]), strict=True):
            self.made += done.recorded
            known = self._corrected.get((True, one.occurred_at))
            if done.recorded and one.corrects is not None and known is not None:
                known[one.corrects].append(one)

    def _look_up(self, columns: str, table: str, name: str, values: Iterable[Any]) -> list[Any]:
        """Rows of the target that have one of these values there."""
        wanted, found = sorted(values), list[Any]()
        for at in range(0, len(wanted), _KEYS):
            some = tuple(wanted[at : at + _KEYS])
            statement = f"SELECT {columns} FROM {table} WHERE {name} IN ({', '.join('?' * len(some))})"  # noqa: S608 - names of our own
            found += self._store.end().read(partial(_fetch, statement=statement, values=some))
        return found


def _fetch(rows: Any, *, statement: str, values: Sequence[Any]) -> list[Any]:
    return list(rows.execute(statement, tuple(values)).fetchall())


def _is_doubtful(entry: Entry) -> bool:
    return not DOUBTS.isdisjoint(entry.flags)


def _total_of(key: str | None, flags: Iterable[str]) -> str | None:
    """The running total that an entry of this key is a part of."""
    numbered = None if key is None or COMPLETED in flags else _NUMBERED.fullmatch(key)
    return None if numbered is None else numbered[1]


def _bill_keys(key: str) -> list[str]:
    bare = key.removesuffix(WHOLE)
    return [bare, f"{bare}{WHOLE}"]


def _files(key: str) -> list[str]:
    """What the key of a line may name as its file, and as the file's whole answer."""
    at = [number for number, letter in enumerate(key) if letter == "/"]
    return [name for number in at for name in _bill_keys(key[:number])]


def _related(record: Mapping[str, Any]) -> set[str]:
    """Keys of which one is in a ledger that has something to do with this bill."""
    key: str = record["dedup_key"]
    total = _total_of(key, record.get("flags", ()))
    return {*(() if total is None else [f"{total}#1"]), *_bill_keys(key), *_files(key)}


def _numbered(ledger: Movable, total: str) -> list[Entry]:
    """The entries of a running total, in their order: they are numbered without a gap."""
    found = dict[str | None, Entry]()
    for first in itertools.count(1, _TOGETHER):
        keys = [f"{total}#{number}" for number in range(first, first + _TOGETHER)]
        page = {one.dedup_key: one for one in ledger.recorded_under(keys)}
        found |= page
        if len(page) < _TOGETHER:
            return [found[key] for key in (f"{total}#{number}" for number in range(1, len(found) + 1))]
    raise AssertionError


def _is_line(entry: Entry) -> bool:
    return dialect_for(entry.provider, entry.endpoint).named(entry.endpoint).form == "lines"


def _is_of_one_kind(one: Entry, other: Entry) -> bool:
    """Whether both are an answer, or one of them is a batch's first line, which goes by its file's id, as the batch."""
    return one.response_id == other.response_id or (_is_line(one) and not _is_line(other))


def _is_part(part: Entry, whole: Entry) -> bool:
    """Whether `part` is what `whole` was before it was whole: of the same model, nowhere more, and less somewhere."""
    less, more = part.usage.quantities, whole.usage.quantities
    return (
        part.model == whole.model and less != more and all(count <= more.get(name, 0) for name, count in less.items())
    )
