"""The life of a hold after it was made: kept while its call runs, swept when nobody settles it.

An expired hold becomes an estimated entry, which a late answer takes back again; so does that of a process that has
ended, where that can be told. A stream has a hold even where no budget is about it, so that a process that dies amid
one leaves something to be found.

Calls that are alike hold by `Demands`: live counters and integers, worked out once for all of them. No rule of budgets
stands there. Which caps apply, and until when, `Budgets.find` says; how much a call may use,
`tokenmeter.budgets.bounds.Sizes` does. What does not fit is left to the general way, which also says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from tokenmeter.attribution import Attribution
from tokenmeter.budgets.bounds import input_estimate
from tokenmeter.budgets.matching import Matched
from tokenmeter.call import ActiveSpan, Call, PlainRequest, RequestFacts
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import Claim, CounterKey, Entry, Posting, Reservation, ThresholdCrossing, utcnow
from tokenmeter.pricing import Pricer, Rating
from tokenmeter.pricing.corrections import with_assumed
from tokenmeter.processes import Background, OnceForAll, process_name, run_at_once
from tokenmeter.providers import dialect_for
from tokenmeter.stores.base import Store, take_back
from tokenmeter.stores.live import NEVER, Slot
from tokenmeter.stores.slots import from_microseconds
from tokenmeter.usage import Consumption, Observation, Usage

T = TypeVar("T")
_UNKNOWN = frozenset({"usage_unknown"})

#: Flag of the entry that an expired hold leaves.
EXPIRED = "expired_hold"
#: Seconds between two looks for expired holds, and from the first call to the first look.
_SWEEP_EVERY = 60
_FIRST_SWEEP = 5
#: Seconds between two looks at holds' owners by calls that find their budget full.
_OWNERS_EVERY = 2

#: Rates what was seen of a call at the moment it left; never raises.
Rate = Callable[[Observation, Entry, datetime], Rating]
#: Told what failed inside tokenmeter, and how, where no caller must notice.
Fault = Callable[[str, BaseException], None]


def unanswered(call: Call, at: datetime) -> Entry:
    """`call` with its estimated prompt, not yet rated, to be kept with its hold. Every call makes one: it is cheap.

    Once its stream has begun, the hold's record says what was read of it (`tokenmeter.stores.base.Store.note`).
    """
    observation = input_estimate(call)
    facts = call.facts
    return Entry(
        occurred_at=at,
        provider=call.provider,
        endpoint=call.endpoint,
        operation=call.operation,
        request_model=facts.model,
        status="aborted",
        streamed=facts.streamed,
        service_tier=facts.service_tier,
        attribution=call.attribution,
        api_key=call.api_key,
        usage=observation.usage,
        flags=tuple(sorted(observation.flags)),
        trace_id=None if call.span is None else call.span.trace_id,
        span_id=None if call.span is None else call.span.span_id,
    )


def observation_of(entry: Entry) -> Observation:
    """What an `unanswered` entry says of its prompt, and of what came back, to be rated.

    That is no estimate of the bill where the endpoint does not sell words, of a picture or of a sound, nor where nobody
    knows what it sells, unless words of its answer came.
    """
    consumption = Consumption(
        model=entry.request_model,
        usage=entry.usage,
        service_tier=entry.service_tier,
        prompt_tokens=entry.usage.input_tokens,
    )
    flags, room = frozenset(entry.flags), dialect_for(entry.provider, entry.endpoint)
    if room.named(entry.endpoint).billed and not entry.usage.output_tokens:
        words = RequestFacts(model=entry.request_model, input_bytes=1)
        flags |= room.read(None, provider=entry.provider, endpoint=entry.endpoint, request=words).flags & _UNKNOWN
    return Observation(consumptions=(consumption,), flags=flags)


def estimated_entry(
    reservation: Reservation, rating: Rating, price_list_hash: str | None, flags: frozenset[str]
) -> Entry:
    """The entry of an expired hold. It bears the hold's identity, so that a late answer finds it."""
    call = reservation.call
    return replace(
        call,
        entry_id=reservation.reservation_id,
        recorded_at=utcnow(),
        charges=rating.charges,
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source="unpriced" if rating.cost_source == "unpriced" else "estimated",
        flags=tuple(sorted({*flags, *rating.flags, EXPIRED})),
        price_list_hash=price_list_hash,
        reservation_id=reservation.reservation_id,
    )


class Holds:
    """Holds in a store, from their making to their end.

    Args:
        store: Where they are.
        pricer: Whose prices the estimates of expired holds name.
        hold_time: How long a call may be in flight before its hold expires.
        rate: Rates the estimate of an expired hold.
        fault: Told of faults that must not reach a caller.
        background: Where expired ones are looked for, and what would have to wait is done.
        postings: What an entry adds to the counters.
        with_held: An entry of which nobody knows what was used, with what was held for it.
        announce: Tells of crossed thresholds.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        *,
        hold_time: timedelta,
        rate: Rate,
        fault: Fault,
        background: Background,
        postings: Callable[[Entry], Sequence[Posting]],
        with_held: Callable[[Entry, Reservation], Entry],
        announce: Callable[[Sequence[ThresholdCrossing]], None],
    ) -> None:
        self.hold_time = hold_time
        self.hold_us = hold_time // timedelta(microseconds=1)
        self._store = store
        self._pricer = pricer
        self._rate = rate
        self._fault = fault
        self._background = background
        self._postings = postings
        self._with_held = with_held
        self._announce = announce
        self.sweep_due = time.monotonic() + _FIRST_SWEEP
        self._owners_due = time.monotonic()
        self._room = OnceForAll()

    def extend(self, reservation_id: str) -> None:
        """Give a hold its full time again. Never waits, never raises; a store behind a network is told by a thread."""
        self._change("extend", self._store.extend, reservation_id, self._store.now() + self.hold_time)

    def note(self, reservation_id: str, usage: Usage) -> None:
        """Have a hold say what its call has used so far. Never waits, never raises, as `extend`."""
        self._change("note", self._store.note, reservation_id, usage)

    def name_answer(self, reservation_id: str, response_id: str) -> None:
        """Have a hold say by which id the answer of its call is to be read. Never waits, never raises, as `extend`."""
        self._change("name", self._store.name_answer, reservation_id, response_id)

    def _change(self, verb: str, change: Callable[[str, T], bool], reservation_id: str, value: T) -> None:
        try:
            run_at_once(change, reservation_id, value)
        except StoreBusyError:
            self._background.run(verb, lambda: self._quietly(f"{verb} a hold", change, reservation_id, value))
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            self._fault(f"{verb} a hold", error)

    def find_for_answer(self, provider: str, response_id: str) -> Reservation | None:
        """What anybody holds for the call that has this answer. Never raises."""
        try:
            held = self._store.held_for(response_id)
        except Exception as error:  # noqa: BLE001 - the answer is recorded, and the hold expires
            self._fault("look for a hold", error)
            return None
        return next((one for one in held if one.call.provider == provider), None)

    def sweep(self, now: datetime, *, owners: bool = True) -> int:
        """Turn holds that expired before `now`, and those of processes that have ended, into estimated entries.

        Args:
            now: See there.
            owners: Whether to look at processes as well, which takes the owners of all open holds to be read.

        Returns:
            How many.

        Raises:
            StoreBusyError: this thread must not wait, and would have to; what was swept until then stays swept.
            StoreUnavailableError: the store fails.
        """
        swept = 0
        while batch := self._store.expired(now):
            found = sum(self._sweep_one(reservation) for reservation in batch)
            swept += found
            if not found:
                break
        return swept + sum(self._sweep_one(reservation) for reservation in (self._store.left() if owners else ()))

    def take_back_estimate(self, reservation: Reservation) -> None:
        """After a settlement that found no hold: if it was swept, its estimate now stands beside the true entry."""
        try:
            estimate = self._store.entry(reservation.reservation_id)
            if estimate is not None:
                back = take_back(self._store.entries, estimate)
                self._store.settle(back, self._postings(back))
        except Exception as error:  # noqa: BLE001 - the call's own result goes through
            self._fault("take back an expired hold's estimate", error)

    def _sweep_one(self, reservation: Reservation) -> bool:
        call = reservation.call
        if call.response_id is not None and self._store.recorded_under([f"{call.provider}:{call.response_id}"]):
            return self._store.release(reservation.reservation_id)  # another process has read its answer
        seen = observation_of(call)
        rating = self._rate(seen, call, call.occurred_at)
        entry = estimated_entry(reservation, rating, self._pricer.price_list_hash, seen.flags)
        entry = with_assumed(self._with_held(entry, reservation), self._pricer)
        settlement = self._store.settle(
            entry,
            self._postings(entry),
            reservation_id=reservation.reservation_id,
            only_if_held=True,
        )
        self._announce(settlement.crossings)
        return settlement.hold_found

    def make_room(self) -> bool:
        """Sweep expired holds for a call that finds its budget full; whether there were any.

        Raises:
            StoreBusyError: this thread must not wait, and would have to.
        """
        owners = time.monotonic() >= self._owners_due
        if owners:
            self._owners_due = time.monotonic() + _OWNERS_EVERY
        try:
            return self._room.run(partial(self.sweep, self._store.now(), owners=owners)) > 0
        except StoreBusyError:
            raise
        except Exception as error:  # noqa: BLE001 - the cap is reached, whatever the sweep might have found
            self._fault("sweep expired holds", error)
            return False

    def sweep_sometimes(self) -> None:
        """Look for expired holds in a thread, once a minute."""
        now = time.monotonic()
        if now >= self.sweep_due:
            self.sweep_due = now + _SWEEP_EVERY
            self._background.run("sweep", lambda: self._quietly("sweep expired holds", self.sweep, self._store.now()))

    def _quietly(self, what: str, work: Callable[..., object], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - nobody waits for it
            self._fault(what, error)


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
                    live.thresholds = thresholds
                    if thresholds and live.alert_at == NEVER:
                        live.alert_at = thresholds[0]
                    posts.append((live, place, thresholds))
        self.claims = sorted(claims, key=lambda row: row[0].key)
        self.posts = sorted(posts, key=lambda row: row[0].key)
        self.any = bool(matched.caps)
        self.sized = any(place != _BY_CALL for _, _, place in claims)

    def claimed(self, amounts: Amounts) -> list[tuple[Slot, int | None, int]]:
        """What a call that may use `amounts` asks of the counters."""
        claimed: list[tuple[Slot, int | None, int]] = []
        for slot, limit, place in self.claims:  # a limit of zero stops what costs nothing as well
            claimed.append((slot, limit, amounts[place] or int(not limit)))
        return claimed

    def posted(self, amounts: Amounts) -> list[tuple[Slot, int]]:
        """What a call that used `amounts` adds to the counters."""
        posted: list[tuple[Slot, int]] = []
        for slot, place, _ in self.posts:
            if amounts[place]:
                posted.append((slot, amounts[place]))
        return posted

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
