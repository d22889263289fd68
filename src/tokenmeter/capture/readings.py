"""Bills that are read more than once, in parts or as they grow. Each is recorded once, over all processes.

A running total (an agent session, a Live session) is recorded by what it has grown. Its entries are numbered, and the
number is part of the key that a ledger takes once only: of two processes that read the same growth one is refused,
looks into the ledger, and records what is left.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from tokenmeter.call import Call, Outcome
from tokenmeter.capture.estimates import ActualBill, estimate_among, replace_estimate, write_whole
from tokenmeter.capture.settlement import Settling
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import Entry
from tokenmeter.money import add, subtract
from tokenmeter.pricing.corrections import WHOLE, growth
from tokenmeter.processes import may_wait
from tokenmeter.usage import Observation, SuppliedCost, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Endpoint

#: What is remembered per meter at most; older work is recorded on the account of who reads it.
LIMIT = 1_000
_ZERO = Decimal(0)
#: Before this there was no running total that a provider dates.
_FIRST = datetime(2020, 1, 1, tzinfo=UTC)
#: Readings by other processes that may come between, before a growth is left to the next reading.
_TRIES = 4
#: Numbers of a total's entries that are asked for at once.
_TOGETHER = 32

T = TypeVar("T")


# -- calls whose answer is read later: background responses, batches, agent sessions; their bill is their starter's


class Recent(Generic[T]):
    """The last `LIMIT` values per meter, by provider's id. Keeps no meter alive."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Meter, OrderedDict[str, T]] = WeakKeyDictionary()

    def put(self, meter: Meter, identity: str, value: T) -> None:
        """Keep `value` in place of what was kept before."""
        values = self._kept.setdefault(meter, OrderedDict())
        values[identity] = value
        if len(values) > LIMIT:
            values.popitem(last=False)

    def get(self, meter: Meter, identity: str | None) -> T | None:
        """The value of an id; None for one that is not kept (any more)."""
        values = self._kept.get(meter)
        return None if values is None or identity is None else values.get(identity)

    def all(self, meter: Meter) -> Mapping[str, T] | None:
        """All values by id, as they change; None where there never was one."""
        return self._kept.get(meter)

    def take(self, meter: Meter, identity: str | None) -> T | None:
        """As `get`, and forget it."""
        values = self._kept.get(meter)
        return None if values is None or identity is None else values.pop(identity, None)


_waiting: Recent[Authorization] = Recent()
_started: Recent[Call] = Recent()
_sizes: Recent[str] = Recent()


def remember(meter: Meter, response_id: str | None, authorization: Authorization) -> None:
    """Keep `authorization`, its attribution and its hold, until the response is retrieved."""
    if response_id is not None:
        _waiting.put(meter, response_id, authorization)


def waiting(meter: Meter, response_id: str | None) -> Call | None:
    """The call that started a response, while it is not recorded; None when this process did not."""
    found = _waiting.get(meter, response_id)
    return None if found is None else found.call


def recall(meter: Meter, response_id: str | None) -> Authorization | None:
    """The call that started a response; None when this process did not, or has recalled it already."""
    return _waiting.take(meter, response_id)


def learn_size(meter: Meter, seen: Observation) -> None:
    """Keep what an answer says of the size of something whose bill later calls may make."""
    if seen.size is not None and seen.response_id is not None:
        _sizes.put(meter, seen.response_id, seen.size)


def with_sizes(meter: Meter, call: Call) -> Call:
    """`call`, whose answer is read with the sizes that are known."""
    sizes = _sizes.all(meter)
    return replace(call, facts=replace(call.facts, sizes=sizes)) if sizes else call


def started(meter: Meter, identity: str | None, call: Call) -> None:
    """`call` started work that may be read any number of times."""
    if identity is not None:
        _started.put(meter, identity, call)


def also_known_as(meter: Meter, identity: str | None, other: str) -> None:
    """The results of some work are found under another id: a batch's in its output file."""
    call = _started.get(meter, identity)
    if call is not None:
        _started.put(meter, other, call)


def on_account_of_starter(meter: Meter, identity: str | None, call: Call) -> Call:
    """The reading `call` on the account of who started what it reads, if that was in this process."""
    starter = _started.get(meter, identity)
    if starter is None:
        return call
    return replace(call, attribution=starter.attribution, scopes=starter.scopes, api_key=starter.api_key)


# -- running totals


@dataclass(slots=True)
class _Recorded:
    """What is recorded of one running total.

    Attributes:
        entries: How many entries that took.
        usage: Their quantities.
        list_cost: Their cost at list prices, US dollars; what is unpriced counts nothing.
        steps: Ids of the steps among them.
        until: When the last total was taken: steps before it are inside it.
        model: The model of the session, as far as anybody said.
    """

    entries: int = 0
    usage: Usage = field(default_factory=Usage)
    list_cost: Decimal = _ZERO
    steps: set[str] = field(default_factory=set[str])
    until: datetime | None = None
    model: str | None = None

    def add(self, entry: Entry, *, step: bool, at: datetime) -> None:
        """Take in what was recorded."""
        self.entries += 1
        self.usage += entry.usage
        self.list_cost = add(self.list_cost, entry.list_cost or _ZERO)
        self.model = entry.response_model or self.model
        if step:
            self.steps.add(entry.response_id or "")
        else:
            self.until = at if self.until is None else max(at, self.until)

    def rest_of(self, seen: Observation) -> Observation | None:
        """What of `seen` is not recorded yet; None for nothing."""
        model = seen.response_model or self.model
        groups = tuple(replace(group, model=group.model or model) for group in seen.consumptions)
        named = replace(seen, response_model=model, consumptions=groups)
        if seen.reading == "step":
            within = self.until is not None and seen.at is not None and seen.at <= self.until
            return None if within or seen.response_id in self.steps else named
        usage, fell = growth(seen.usage, self.usage)
        group = named.consumptions[0]
        cost = group.supplied_cost
        grown = None if cost is None else subtract(cost.amount, self.list_cost)
        if not usage and (grown is None or grown <= 0):
            return None
        if cost is not None and grown is not None:
            cost = SuppliedCost(max(grown, _ZERO), cost.source)
        flags = named.flags | {"total_fell"} if fell else named.flags
        return replace(named, consumptions=(replace(group, usage=usage, supplied_cost=cost),), flags=flags)


_accounts: Recent[_Recorded] = Recent()


def opened(meter: Meter, identity: str | None, model: str | None) -> None:
    """This process began the session: nothing of it is recorded yet, and nobody need look."""
    if identity is not None:
        _accounts.put(meter, identity, _Recorded(model=model))


def taken_at(seen: Observation, now: datetime) -> datetime:
    """When a total was taken, or a step done, as its provider says (which tells what is inside which); or `now`."""
    return seen.at if seen.at is not None and _FIRST <= seen.at <= now else now


class GrowingBill(Settling):
    """A reading of a running total, or one step of it.

    Args:
        meter: Where to record.
        authorization: Leave for the call that read it.
        outcome: What was read.
        identity: Provider's id of the session.

    Attributes:
        entry: What was recorded of it; None as long as nothing was, or where nothing was new.
    """

    __slots__ = ("_identity", "entry")

    def __init__(self, meter: Meter, authorization: Authorization, outcome: Outcome, identity: str) -> None:
        super().__init__(meter, authorization, outcome)
        self._identity = identity
        self.entry: Entry | None = None

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read first."""
        return _accounts.get(self.meter, self._identity) is None

    def record(self) -> None:
        """Record what is new."""
        seen = self.outcome.observation
        if seen is None or not seen.consumptions:
            return
        account = _accounts.get(self.meter, self._identity)
        for _ in range(_TRIES):
            if account is None:
                account = self._looked_up()
            rest = account.rest_of(seen)
            if rest is None:
                return
            rest = replace(rest, bill_id=f"{self._identity}#{account.entries + 1}", deduplicate=True)
            if rest.reading == "total":
                rest = replace(rest, response_id=self._identity, reading="growth" if account.entries else "total")
            entry = self.meter.settle(self.authorization, replace(self.outcome, observation=rest))
            if entry is not None:
                account.add(entry, step=rest.reading == "step", at=rest.at or entry.occurred_at)
                self.entry = entry
                return
            known, account = account.entries, self._looked_up()
            if account.entries == known:  # it was not refused: it failed, and that is logged
                return

    def _looked_up(self) -> _Recorded:
        call = self.authorization.call
        kept = _accounts.get(self.meter, self._identity)
        account = _Recorded(model=None if kept is None else kept.model)
        for first in itertools.count(1, _TOGETHER):  # they are numbered without a gap
            keys = [f"{call.provider}:{self._identity}#{number}" for number in range(first, first + _TOGETHER)]
            found = self.meter.store.recorded_under(keys)
            for entry in found:
                account.add(entry, step=entry.response_id != self._identity, at=entry.occurred_at)
            if len(found) < _TOGETHER:
                break
        _accounts.put(self.meter, self._identity, account)
        return account


# -- results files, whose sum may be stated elsewhere as well


def _billed_under(meter: Meter, call: Call, seen: Observation) -> list[Entry]:
    """What is recorded under the identity of `seen`, and in place of what was doubtful there."""
    key = f"{call.provider}:{seen.bill_id}"
    found = meter.store.recorded_under([key, f"{key}{WHOLE}"])
    return [entry for entry in found if entry.kind == "usage" and entry.operation == call.operation]


def record_total(meter: Meter, authorization: Authorization, outcome: Outcome) -> Entry | None:
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
        record_total(self.meter, self.authorization, self.outcome)


class FirstLine(Settling):
    """The first billed line of a results file, recorded under the file's id, as the batch's own total is.

    Attributes:
        written: Whether the ledger has been asked.
        billed_whole: Whether the total was recorded before, so that no line is. One that was unknown is taken back.
    """

    __slots__ = ("billed_whole", "written")

    def __init__(self, meter: Meter, authorization: Authorization, outcome: Outcome) -> None:
        super().__init__(meter, authorization, outcome)
        self.written = self.billed_whole = False

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read: if the file's id is taken, by what."""
        return True

    def record(self) -> None:
        """Record it, and learn whether the lines behind it are to be recorded."""
        entry = self.meter.settle(self.authorization, self.outcome)
        self.written = True
        seen = self.outcome.observation
        if entry is not None or seen is None:
            return
        call = self.authorization.call
        found = _billed_under(self.meter, call, seen)
        whole = [entry for entry in found if entry.endpoint != call.endpoint]
        doubtful = estimate_among(whole, seen)  # of a batch that did not say what it used its lines do
        self.billed_whole = bool(whole) and doubtful is None
        if doubtful is not None:
            replace_estimate(self.meter, replace(self.authorization), self.outcome, doubtful, dated=False)


class FileLine(Settling):
    """Any further line of a results file.

    Args:
        meter: Where to record.
        authorization: Leave for the call that read it.
        outcome: What it says.
        first: The file's first billed line.
    """

    __slots__ = ("_first",)

    def __init__(self, meter: Meter, authorization: Authorization, outcome: Outcome, first: FirstLine) -> None:
        super().__init__(meter, authorization, outcome)
        self._first = first

    def record(self) -> None:
        """Record it, unless the batch was recorded as a whole."""
        if not self._first.written and not may_wait():
            raise StoreBusyError("the first line is still to be written")
        if not self._first.billed_whole:
            super().record()


# -- what a call that only reads, or only starts, leaves behind


class Readings:
    """The bills that one call reads, or starts for others to read.

    Args:
        meter: Where to record.
        endpoint: What is called.
    """

    __slots__ = ("_endpoint", "_first_line", "_meter")

    def __init__(self, meter: Meter, endpoint: Endpoint) -> None:
        self._meter = meter
        self._endpoint = endpoint
        self._first_line: FirstLine | None = None

    def begun(self, authorization: Authorization, seen: Observation) -> None:
        """Remember what was started by the call, and is billed when it is read."""
        if self._endpoint.kind == "starts":
            started(self._meter, seen.response_id, authorization.call)
            opened(self._meter, seen.response_id, seen.response_model)
        else:
            remember(self._meter, seen.response_id, authorization)

    def line(self, authorization: Authorization, outcome: Outcome) -> Settling:
        """One of many bills in an answer: a line of a results file, an object of a page, an event."""
        seen, subject = outcome.observation, self._endpoint.subject
        if seen is not None and seen.bill_id is not None and subject is not None:
            outcome = replace(outcome, observation=replace(seen, bill_id=f"{subject}/{seen.bill_id}"))
        return self.bill(authorization, outcome)

    def bill(self, authorization: Authorization, outcome: Outcome) -> Settling:
        """A reading of what may have been read before, on the account of who started it."""
        meter, seen, subject = self._meter, outcome.observation or Observation(), self._endpoint.subject
        identity = subject or seen.response_id
        mine = recall(meter, seen.response_id)
        begun_here = mine is not None
        if mine is None:
            call = on_account_of_starter(meter, identity, authorization.call)
            mine = authorization if call is authorization.call else replace(authorization, call=call)
        if seen.reading in {"total", "step"} and identity is not None:
            return GrowingBill(meter, replace(mine, started_at=taken_at(seen, meter.store.now())), outcome, identity)
        if seen.reading == "actual":
            return ActualBill(meter, mine, outcome)
        if seen.reading == "share" and subject is not None:
            return self._file_line(mine, outcome, seen, subject)
        if seen.bill_id is not None:
            also_known_as(meter, seen.response_id, seen.bill_id)
            return FileTotal(meter, mine, outcome)
        # Of what another process began an estimate may stand in the ledger, if nobody read it in time.
        return Settling(meter, mine, outcome) if begun_here else ActualBill(meter, mine, outcome)

    def _file_line(self, mine: Authorization, outcome: Outcome, seen: Observation, file: str) -> Settling:
        if self._first_line is not None:
            return FileLine(self._meter, mine, outcome, self._first_line)
        outcome = replace(outcome, observation=replace(seen, bill_id=file))
        self._first_line = FirstLine(self._meter, mine, outcome)
        return self._first_line
