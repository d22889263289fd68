"""Bills of which an estimate was recorded before: what is known now is written down in its place, less the estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from tokenmeter.call import Call, Outcome
from tokenmeter.capture.settlement import Settling
from tokenmeter.errors import StoreError
from tokenmeter.ledger import Entry
from tokenmeter.pricing.corrections import DOUBTS, WHOLE, stands_for
from tokenmeter.stores.base import EntryFilter, take_back
from tokenmeter.usage import Observation

if TYPE_CHECKING:
    from tokenmeter.meter import Authorization, Meter

#: How far the clocks of a provider and of this machine, and the start and the end of a call, may be apart.
_NEAR = timedelta(hours=1)


def recorded_for(meter: Meter, call: Call, response_id: str, made_at: datetime) -> list[Entry]:
    """Calls that this answer was recorded for. The entries of an hour before and after it are looked at."""
    near = EntryFilter(
        since=made_at - _NEAR,
        until=made_at + _NEAR,
        where={
            "response_id": frozenset({response_id}),
            "provider": frozenset({call.provider}),
            "kind": frozenset({"usage"}),
        },
    )
    try:
        return list(meter.store.entries(near))
    except StoreError as error:  # it is recorded all the same
        meter.fault("look for an answer", error)
        return []


def estimate_among(recorded: Sequence[Entry], seen: Observation) -> Entry | None:
    """The one entry of those `recorded` that `seen` knows better; None where there is none to replace."""
    doubtful = len(recorded) == 1 and DOUBTS.intersection(recorded[0].flags)
    return recorded[0] if doubtful and not DOUBTS.intersection(seen.flags) else None


def finish_replacement(meter: Meter, recorded: Sequence[Entry]) -> None:
    """Take back the estimate among those `recorded` where a process ended after the whole answer was written down."""
    wholes = [one for one in recorded if not DOUBTS.intersection(one.flags)]
    for estimate in recorded:
        later = [one for one in wholes if one.recorded_at >= estimate.recorded_at]
        if DOUBTS.intersection(estimate.flags) and any(stands_for(whole, estimate) for whole in later):
            try:
                meter.post(take_back(meter.store.entries, estimate))
            except StoreError as error:
                meter.fault("take back an estimate", error)


def replace_estimate(
    meter: Meter, authorization: Authorization, outcome: Outcome, estimate: Entry, *, dated: bool
) -> Entry | None:
    """Write down the whole answer of a call that was broken off, on its account, and take back what was estimated.

    The two and what takes the one back are one request: the call's time was told with the estimate.
    """
    call, seen = authorization.call, outcome.observation
    authorization.call = replace(
        call,
        attribution=call.attribution.over(estimate.attribution),
        api_key=call.api_key or estimate.api_key,
    )
    if not dated:
        authorization.started_at = estimate.occurred_at
    if seen is not None and estimate.dedup_key is not None:  # the answer's own key is the estimate's
        whole = f"{seen.bill_id or seen.response_id or outcome.response_id}{WHOLE}"
        outcome = replace(outcome, observation=replace(seen, bill_id=whole))
    if estimate.latency_us is not None:
        authorization.started_ns = 0
    return write_whole(meter, authorization, outcome, replaces=estimate)


def write_whole(
    meter: Meter, authorization: Authorization, outcome: Outcome, *, replaces: Entry | None = None
) -> Entry | None:
    """Write down the call, and before it what outlives its answer (a container): each once, whoever names it again.

    The estimate that it replaces is taken back once the call itself is written.
    """
    seen = outcome.observation
    for bill in () if seen is None else seen.shared:
        meter.settle(authorization, replace(outcome, observation=bill, response_id=None, last=False))
    authorization.replaces = replaces
    return meter.settle(authorization, outcome)


class ActualBill(Settling):
    """What is read of something whose bill could only be assumed before: a container's life, what another began."""

    __slots__ = ()

    @property
    def looks_up(self) -> bool:
        """Whether the ledger has to be read: for the estimate."""
        return True

    def record(self) -> None:
        """Record it, in place of what was assumed."""
        seen, authorization = self.outcome.observation, self.authorization
        if seen is None or seen.response_id is None:
            super().record()
            return
        recorded = recorded_for(self.meter, authorization.call, seen.response_id, seen.at or authorization.started_at)
        if not recorded:
            self._take_over(seen.response_id)
            super().record()
        elif (estimate := estimate_among(recorded, seen)) is not None:
            mine = replace(authorization)
            replace_estimate(self.meter, mine, self.outcome, estimate, dated=False)

    def _take_over(self, response_id: str) -> None:
        """End what another process holds for this answer, on the account of who began it."""
        authorization = self.authorization
        held = self.meter.budgets.holds.find_for_answer(authorization.call.provider, response_id)
        if held is not None:
            begun = held.call
            call = replace(authorization.call, attribution=begun.attribution, api_key=begun.api_key)
            self.authorization = replace(authorization, call=call, started_at=begun.occurred_at, reservation=held)
