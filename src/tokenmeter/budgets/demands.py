"""What calls that are alike ask of their caps: live counters and integers, worked out once for all of them.

No rule of budgets stands here. Which caps apply, and until when, `Budgets.find` says; how much a call may use,
`tokenmeter.budgets.bounds.Sizes` does. What does not fit is left to the general way, which also says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tokenmeter.attribution import Attribution
from tokenmeter.budgets.holds import unanswered
from tokenmeter.budgets.matching import Matched
from tokenmeter.budgets.windows import from_microseconds
from tokenmeter.call import ActiveSpan, Call, PlainRequest, RequestFacts
from tokenmeter.ledger import Claim, CounterKey, Reservation
from tokenmeter.processes import process_name
from tokenmeter.stores.live import NEVER, Slot

#: Picodollars, tokens, and one for what counts calls.
Amounts = tuple[int, int, int]
_PLACE = {"usd": 0, "tokens": 1}
_BY_CALL = 2


class Sent(Protocol):
    """A call that is about to leave, as far as its plan asks before it does."""

    @property
    def provider(self) -> str:
        """Who serves it."""
        ...

    @property
    def attribution(self) -> Attribution:
        """On whose account."""
        ...

    @property
    def span(self) -> ActiveSpan | None:
        """The span it is made in, where traces are on."""
        ...

    @property
    def facts(self) -> RequestFacts | PlainRequest:
        """What accounting needs of its request."""
        ...

    @property
    def call(self) -> Call:
        """All that accounting needs to know of it, which takes longer."""
        ...


class PlannedHold(NamedTuple):
    """What is held for one call.

    Attributes:
        hold_id: Identity of the hold; None where nothing is in the ledger, since budgets only count.
        demands: What it was made of.
        amounts: What the call may use at most; zeros where that does not matter.
        at_us: When it left, in microseconds since the epoch.
        expires_us: When the hold expires.
    """

    hold_id: str | None
    demands: Demands
    amounts: Amounts
    at_us: int
    expires_us: int

    def covers(self, cost: int, tokens: int) -> bool:
        """Whether a call that used this many picodollars and tokens kept to what was held for it."""
        return not self.demands.sized or (cost <= self.amounts[0] and tokens <= self.amounts[1])


class Demands:
    """The counters of one kind of call.

    Args:
        matched: The limits that apply.
        slot: Gives the live counter of a key, which comes with its window's end.
        since_us: The moment that `matched` is of, in microseconds since the epoch.

    Attributes:
        claims: Of hard limits: counter, limit, and the place of what it limits in `Amounts`; in the order in which
            a refusal is looked for.
        posts: Of every limit that settled calls add to: counter, the place of what it counts, and thresholds.
        since_us: As given: before it, another window may have been open.
        until_us: First instant at which any of it may differ, in microseconds since the epoch.
        any: Whether there is any.
        sized: Whether it matters how much a call may use, and not only that it is one.
    """

    __slots__ = ("any", "claims", "posts", "since_us", "sized", "until_us")

    def __init__(self, matched: Matched, slot: Callable[[CounterKey, int | None], Slot], since_us: int) -> None:
        self.since_us = since_us
        self.until_us = matched.until_us
        claims: list[tuple[Slot, int, int]] = []
        posts: list[tuple[Slot, int, tuple[int, ...]]] = []
        for one in matched.caps:
            place = _PLACE.get(one.cap.unit, _BY_CALL)
            for key, end in one.keys:
                live = slot(key, end)
                if one.limit is not None:
                    claims.append((live, one.limit, place))
                if one.cap.counts:
                    thresholds = one.thresholds if one.cap.alerts_at(key.window_start) else ()
                    if thresholds and live.alert_at == NEVER:
                        live.alert_at = thresholds[0]
                    posts.append((live, place, thresholds))
        self.claims = sorted(claims, key=lambda row: row[0].key)
        self.posts = sorted(posts, key=lambda row: row[0].key)
        self.any = bool(matched.caps)
        self.sized = any(place != _BY_CALL for _, _, place in claims)

    def claimed(self, amounts: Amounts) -> list[tuple[Slot, int | None, int]]:
        """What a call that may use `amounts` asks of the counters."""
        # A limit of zero stops what costs nothing as well.
        return [(slot, limit, amounts[place] or int(not limit)) for slot, limit, place in self.claims]

    def posted(self, amounts: Amounts) -> list[tuple[Slot, int]]:
        """What a call that used `amounts` adds to the counters."""
        return [(slot, amount) for slot, place, _ in self.posts if (amount := amounts[place])]

    def reached(self, slots: Sequence[tuple[Slot, int]]) -> list[tuple[Slot, Sequence[int], int]]:
        """Counters with the thresholds that they may have crossed, and with where they stand."""
        thresholds = {slot: amounts for slot, _, amounts in self.posts}
        return [(slot, thresholds[slot], settled) for slot, settled in slots]

    def reservation(self, hold: PlannedHold, call: Call) -> Reservation | None:
        """What was held, for the general way to go on with."""
        if hold.hold_id is None:
            return None
        at = from_microseconds(hold.at_us)
        return Reservation(
            reservation_id=hold.hold_id,
            claims=tuple(
                Claim(slot.key, limit, amount, slot.window_end) for slot, limit, amount in self.claimed(hold.amounts)
            ),
            created_at=at,
            expires_at=from_microseconds(hold.expires_us),
            owner=process_name(),
            call=unanswered(call, at),
        )
