"""Bills that are read more than once, in parts or as they grow. Each is recorded once, over all processes.

A running total (an agent session, a Live session) is recorded by what it has grown. Its entries are numbered, and the
number is part of the key that a ledger takes once only: of two processes that read the same growth one is refused,
looks into the ledger, and records what is left.
"""

from __future__ import annotations

import itertools
from dataclasses import field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from tokenmeter.call import Outcome
from tokenmeter.capture.batches import FileLine, FileTotal, ResultsFile
from tokenmeter.capture.estimates import ActualBill
from tokenmeter.capture.recent import Recent, also_known_as, on_account_of_starter, recall, remember, started
from tokenmeter.capture.settlement import Settling
from tokenmeter.ledger import Entry
from tokenmeter.money import add, subtract
from tokenmeter.pricing.corrections import growth
from tokenmeter.usage import Observation, SuppliedCost, Usage
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter
    from tokenmeter.providers.base import Endpoint

_ZERO = Decimal(0)
#: Before this there was no running total that a provider dates.
_FIRST = datetime(2020, 1, 1, tzinfo=UTC)
#: Readings by other processes that may come between, before a growth is left to the next reading.
_TRIES = 4
#: Numbers of a total's entries that are asked for at once.
_TOGETHER = 32

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


def is_open_here(meter: Meter, identity: str | None) -> bool:
    """Whether this process knows what is recorded of a session already."""
    return identity is not None and _accounts.get(meter, identity) is not None


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


# -- what a call that only reads, or only starts, leaves behind


class Readings:
    """The bills that one call reads, or starts for others to read.

    Args:
        meter: Where to record.
        endpoint: What is called.
    """

    __slots__ = ("_endpoint", "_file", "_meter")

    def __init__(self, meter: Meter, endpoint: Endpoint) -> None:
        self._meter = meter
        self._endpoint = endpoint
        self._file: ResultsFile | None = None

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
            if self._file is None:
                self._file = ResultsFile(meter, mine.call.provider, subject)
            return FileLine(mine, outcome, self._file)
        if seen.bill_id is not None:
            also_known_as(meter, seen.response_id, seen.bill_id)
            return FileTotal(meter, mine, outcome)
        # Of what another process began an estimate may stand in the ledger, if nobody read it in time.
        return Settling(meter, mine, outcome) if begun_here else ActualBill(meter, mine, outcome)
