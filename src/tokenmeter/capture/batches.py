"""Batches: recorded as a whole, which their object states, or by the lines of their results. Each is one bill.

A client that reads a results file knows whose lines these are. Of a line that is recorded by hand nobody says which
batch it is of. That it is of one whose total is recorded shows when all lines are: together they used what the total
says, to the token. Until then, and where it never shows, the entries and the log say so.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from tokenmeter.call import Call, Outcome
from tokenmeter.capture.estimates import estimate_among, replace_estimate, write_whole
from tokenmeter.capture.recent import Recent
from tokenmeter.capture.settlement import Settling
from tokenmeter.display import counted
from tokenmeter.errors import StoreBusyError, StoreError
from tokenmeter.ledger import Entry
from tokenmeter.pricing.corrections import WHOLE
from tokenmeter.processes import may_wait
from tokenmeter.providers import dialect_for
from tokenmeter.stores.base import EntryFilter
from tokenmeter.usage import Observation, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from datetime import datetime

    from tokenmeter.meter import Authorization, Meter

log = logging.getLogger("tokenmeter")

#: Of an entry, which another one may hold as well.
OVERLAP = "batch_overlap"
#: How far apart a batch and its lines are recorded, or dated, at most: twice what a batch may take.
_NEAR = timedelta(days=2)
#: From how many lines on it is no chance that they used what a batch says.
_TELLING = 2

#: For how long a look at what is recorded near a line holds, in seconds, and how many times longer than it took. Every
#: line that is recorded makes it longer, so that a thousand of them would take as long as half a million entries.
_HOLDS = 1
_TIMES = 5
#: How far from the moment that was looked around a line may be.
_AROUND = timedelta(minutes=5)

#: Lines of a file that the ledger is asked for at once.
_TOGETHER = 256

_told: Recent[bool] = Recent()


@dataclass(frozen=True, slots=True)
class _Look:
    """The totals that were recorded around a moment, and until when that is taken for what is recorded now."""

    totals: tuple[Entry, ...]
    at: datetime
    until: float  # not money


#: By provider and operation. A total that this process records is looked for anew; one that another process records
#: among the lines says itself that it overlaps with them.
_looks: WeakKeyDictionary[Meter, dict[tuple[str, str], _Look]] = WeakKeyDictionary()


def record_line(meter: Meter, authorization: Authorization, outcome: Outcome) -> Entry | None:
    """Write down a line of a batch. With the last one, a total of them all that is recorded as well is taken back."""
    call, seen = authorization.call, outcome.observation or Observation()

    def find_whole(totals: Sequence[Entry]) -> Entry | None:
        return next((one for one in reversed(totals) if _is_of(seen, one) and _holds(one.usage, seen.usage)), None)

    if find_whole(_totals_near(meter, call, authorization.started_at)) is None:
        return write_whole(meter, authorization, outcome)
    near = _recorded_near(meter, call, authorization.started_at)
    whole = find_whole([one for one in near if _is_total(one)])
    if whole is None:  # taken back since
        return write_whole(meter, authorization, outcome)
    flagged = replace(outcome, observation=replace(seen, flags=seen.flags | {OVERLAP}))
    entry = write_whole(meter, authorization, flagged)
    if entry is None:
        return None
    lines = [*(one for one in near if _is_line(one) and _is_of(seen, one)), entry]
    if _make_up(lines, whole.usage):
        log.warning(
            "tokenmeter: the %s recorded used what the batch %s says as a whole, so its total is taken back: record "
            "one or the other.",
            counted(len(lines), "line"),
            whole.response_id,
        )
        meter.take_back(whole, call)
    else:
        _warn(meter, whole.entry_id, whole.response_id)
    return entry


def record_batch(meter: Meter, authorization: Authorization, outcome: Outcome) -> Entry | None:
    """Write down what a batch says of all its lines, unless these are recorded, or it is."""
    call, seen = authorization.call, outcome.observation or Observation()
    if seen.bill_id is not None and _billed_under(meter, call, seen):
        return _record_whole(meter, authorization, outcome)
    near = _recorded_near(meter, call, authorization.started_at)
    lines = [one for one in near if _is_line(one) and _is_of(seen, one) and _holds(seen.usage, one.usage)]
    if not lines:
        return _record_whole(meter, authorization, outcome)
    if _make_up(lines, seen.usage):
        log.warning(
            "tokenmeter: the batch %s is not recorded: %s that are recorded used what it says as a whole.",
            seen.response_id,
            counted(len(lines), "line"),
        )
        return None
    flagged = replace(outcome, observation=replace(seen, flags=seen.flags | {OVERLAP}))
    entry = _record_whole(meter, authorization, flagged)
    if entry is not None:
        _warn(meter, entry.entry_id, seen.response_id)
    return entry


def _record_whole(meter: Meter, authorization: Authorization, outcome: Outcome) -> Entry | None:
    try:
        return _record_total(meter, authorization, outcome)
    finally:
        _looks.pop(meter, None)


def _warn(meter: Meter, whole: str, batch: str | None) -> None:
    """Say once per batch what may be billed twice."""
    if _told.get(meter, whole) is None:
        _told.put(meter, whole, True)  # noqa: FBT003 - a mark
        log.warning(
            "tokenmeter: lines of a batch are recorded, and the batch %s as a whole: if they are of this one, it is "
            "billed twice (flag %s). Record a batch or its lines, not both.",
            batch,
            OVERLAP,
        )


def _totals_near(meter: Meter, call: Call, at: datetime) -> tuple[Entry, ...]:
    """Batches of this provider that were recorded about then, as a look of a moment ago says."""
    looks = _looks.setdefault(meter, {})
    look, began = looks.get((call.provider, call.operation)), time.monotonic()
    if look is None or began >= look.until or abs(at - look.at) > _AROUND:
        totals = tuple(one for one in _recorded_near(meter, call, at) if _is_total(one))
        ended = time.monotonic()
        look = _Look(totals, at, ended + max(_HOLDS, (ended - began) * _TIMES))
        looks[call.provider, call.operation] = look
    return look.totals


def _recorded_near(meter: Meter, call: Call, at: datetime) -> list[Entry]:
    """Batches and lines of this provider that were recorded about then, but for those that were taken back."""
    where: dict[str, frozenset[str | None]] = {
        "provider": frozenset({call.provider}),
        "operation": frozenset({call.operation}),
        "kind": frozenset({"usage", "reversal"}),
    }
    found = list(meter.store.entries(EntryFilter(since=at - _NEAR, until=at + _NEAR, where=where)))
    gone = {one.corrects for one in found if one.kind == "reversal"}
    return [one for one in found if one.kind == "usage" and one.entry_id not in gone]


def _is_known_by_itself(entry: Entry) -> bool:
    """Whether an entry goes by its answer's own id, and by no file's."""
    return entry.dedup_key == f"{entry.provider}:{entry.response_id}"


def _holds_lines(entry: Entry) -> bool:
    """Whether what an entry was read from are the lines of a file, which go by the file's id, as its batch does."""
    return dialect_for(entry.provider, entry.endpoint).named(entry.endpoint).form == "lines"


def _is_total(entry: Entry) -> bool:
    return entry.dedup_key is not None and not _is_known_by_itself(entry) and not _holds_lines(entry)


def _is_line(entry: Entry) -> bool:
    """Whether an entry is a line that was recorded by hand."""
    return _is_known_by_itself(entry) and any("processing=batch" in (one.price_id or "") for one in entry.charges)


def _is_of(seen: Observation, entry: Entry) -> bool:
    """Whether both are of one model, as far as they say; a batch may name it without the day of its making."""
    one, other = seen.response_model or "", entry.response_model or ""
    return one.startswith(other) or other.startswith(one)


def _holds(whole: Usage, part: Usage) -> bool:
    return bool(part) and all(quantity <= whole[meter] for meter, quantity in part.quantities.items())


def _make_up(lines: Sequence[Entry], whole: Usage) -> bool:
    """Whether what `lines` used comes to `whole`, class by class."""
    return len(lines) >= _TELLING and Usage.total(one.usage for one in lines).quantities == whole.quantities


# -- results files that a client reads, whose sum may be stated elsewhere as well


def _billed_under(meter: Meter, call: Call, seen: Observation) -> list[Entry]:
    """What is recorded under the identity of `seen`, and in place of what was doubtful there."""
    key = f"{call.provider}:{seen.bill_id}"
    found = meter.store.recorded_under([key, f"{key}{WHOLE}"])
    return [entry for entry in found if entry.kind == "usage" and entry.operation == call.operation]


def _record_total(meter: Meter, authorization: Authorization, outcome: Outcome) -> Entry | None:
    """Write down the total of a results file, in place of one that did not say what was used, if that is recorded."""
    entry, seen = write_whole(meter, authorization, outcome), outcome.observation
    if entry is not None or seen is None:
        return entry
    found = [one for one in _billed_under(meter, authorization.call, seen) if one.response_id == seen.response_id]
    doubtful = estimate_among(found, seen)
    return doubtful and replace_estimate(meter, replace(authorization), outcome, doubtful, dated=False)


class FileTotal(Settling):
    """The total of a results file, which an earlier reading may have recorded without knowing it."""

    __slots__ = ()

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read: if the file's id is taken, by what."""
        return True

    def record(self) -> None:
        """Record it, unless its lines were."""
        record_batch(self.meter, self.authorization, self.outcome)


class ResultsFile:
    """A results file while a client reads it: what is recorded of it as a whole, or of its lines by hand.

    Args:
        meter: Where its lines are recorded.
        provider: Whose it is.
        name: Its id, under which its first line is recorded, as the batch's own total is.

    Attributes:
        first: The first billed line that is not recorded by hand; None before there is one.
        written: Whether the ledger has been asked for the total.
        billed_whole: Whether the total was recorded before, so that no line is. One that was unknown is taken back.
    """

    __slots__ = ("_found", "_new", "_provider", "billed_whole", "first", "meter", "name", "written")

    def __init__(self, meter: Meter, provider: str, name: str) -> None:
        self.meter = meter
        self.name = name
        self.first: FileLine | None = None
        self.written = self.billed_whole = False
        self._provider = provider
        #: Answers' ids that the ledger was not asked for yet, in their order.
        self._new: dict[str, None] = {}
        self._found: dict[str, list[Entry]] = {}

    def add(self, answer: str | None) -> None:
        """There is a line of this answer."""
        if answer is not None:
            self._new[answer] = None

    def knows(self, answer: str | None) -> bool:
        """Whether the ledger was asked for a line's answer."""
        return answer is None or answer not in self._new

    def recorded_by_hand(self, answer: str | None) -> Sequence[Entry]:
        """What is recorded under an answer's own id. The ledger is asked for all lines together that were added."""
        while not self.knows(answer):
            asked = tuple(itertools.islice(self._new, _TOGETHER))
            try:
                found = self.meter.store.recorded_under([f"{self._provider}:{one}" for one in asked])
            except StoreBusyError:
                raise
            except StoreError as error:  # they are recorded all the same
                self.meter.fault("look for the lines of a file", error)
                found = ()
            for entry in found:
                if entry.kind == "usage":
                    self._found.setdefault(entry.response_id or "", []).append(entry)
            for one in asked:
                self._new.pop(one, None)
        return self._found.get(answer or "", ())


class FileLine(Settling):
    """A line of a results file. The first is recorded under the file's id, as the batch's own total is.

    Args:
        authorization: Leave for the call that read it.
        outcome: What it says.
        file: Whose line it is.
    """

    __slots__ = ("_file",)

    def __init__(self, authorization: Authorization, outcome: Outcome, file: ResultsFile) -> None:
        super().__init__(file.meter, authorization, outcome)
        self._file = file
        file.add(self._answer)

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read: for the total, or for lines that are recorded by hand."""
        return self._file.first in {None, self} or not self._file.knows(self._answer)

    @property
    def _answer(self) -> str | None:
        return None if self.outcome.observation is None else self.outcome.observation.response_id

    def record(self) -> None:
        """Record it, unless the batch was recorded as a whole, or the line by hand."""
        file, seen = self._file, self.outcome.observation or Observation()
        if by_hand := file.recorded_by_hand(self._answer):
            self._replace(estimate_among(by_hand, seen))
            return
        if file.first is None:
            file.first = self
        if file.first is self:
            self._record_first(replace(seen, bill_id=file.name))
            return
        if not file.written and not may_wait():
            raise StoreBusyError("the first line is still to be written")
        if not file.billed_whole:
            super().record()

    def _record_first(self, seen: Observation) -> None:
        """Record it, and learn whether the lines behind it are to be recorded."""
        self.outcome = replace(self.outcome, observation=seen)
        entry = self.meter.settle(self.authorization, self.outcome)
        self._file.written = True
        if entry is not None:
            return
        call = self.authorization.call
        whole = [entry for entry in _billed_under(self.meter, call, seen) if entry.endpoint != call.endpoint]
        doubtful = estimate_among(whole, seen)  # of a batch that did not say what it used its lines do
        self._file.billed_whole = bool(whole) and doubtful is None
        self._replace(doubtful)

    def _replace(self, doubtful: Entry | None) -> None:
        if doubtful is not None:
            replace_estimate(self.meter, replace(self.authorization), self.outcome, doubtful, dated=False)
