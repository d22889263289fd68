"""Calls that no metered client made: another SDK, a gateway, raw HTTP. Held before, recorded after, by hand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from types import TracebackType
from typing import Any, Self, cast, get_args

from tokenmeter.attribution import Attribution, current_attribution, scopes_of_call
from tokenmeter.call import Call, Outcome, RequestFacts
from tokenmeter.capture.batches import record_batch, record_line
from tokenmeter.capture.estimates import estimate_among, finish_replacement, recorded_for, replace_estimate, write_whole
from tokenmeter.capture.readings import GrowingBill, taken_at
from tokenmeter.capture.recent import Recent
from tokenmeter.dimensions import Status
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.interrupts import came_from_outside
from tokenmeter.ledger import Entry
from tokenmeter.meter import Authorization, Meter
from tokenmeter.patience import in_thread
from tokenmeter.periods import check_made, parse_instant
from tokenmeter.places import hand_place
from tokenmeter.pricing import PriceList
from tokenmeter.pricing.price import canonical_condition
from tokenmeter.processes import is_disabled
from tokenmeter.providers import dialect_for, error_in, observe, to_wire
from tokenmeter.providers.hosts import billing_name
from tokenmeter.providers.registry import FORMATS, dialect, last_events, split_failure, told_beside
from tokenmeter.providers.wire import BodyError, events_in, is_array, is_object
from tokenmeter.usage import Observation

log = logging.getLogger("tokenmeter")

#: What was told of by its id.
_told: Recent[bool] = Recent()
#: What one bill of a body says, and when it says that it was made.
_Read = tuple[Outcome, datetime | None]
#: What a call that was on its way when it failed may have cost, nobody knows.
_LOST = Observation(flags=frozenset({"billing_unknown"}))
#: Seconds since the epoch that can be when an answer was made: 2020 to 2100.
_FIRST, _LAST = 1_577_836_800, 4_102_444_800
#: How much a name has in common with the one that it is a slip for.
_ALIKE = 0.8  # not money


def record(
    meter: Meter,
    response_or_usage: Any,
    *,
    provider: str,
    endpoint: str,
    model: str | None = None,
    response_id: str | None = None,
    at: datetime | date | str | None = None,
    status: Status = "ok",
    streamed: bool = False,
    processing: str | None = None,
    region: str | None = None,
    service_tier: str | None = None,
    api_key: str | None = None,
    attribution: Attribution | Mapping[str, Any] | None = None,
) -> Entry | None:
    """Write down a call that no metered client made: priced, attributed and counted by budgets like any other.

    A response is recorded once: its id is remembered, whoever records or imports it again, and the ledger is asked
    whether a metered client has recorded it. One that was broken off, so that its usage was estimated, is replaced by
    what the whole answer says. A bare usage object has no id, so give `response_id` where it may be recorded twice.
    Of a running total (a session's usage so far) what is new is recorded. An error body is recorded as a failed call
    that costs nothing. To stop a call before it passes a cap, `hold` first.

    Args:
        meter: Where to record.
        response_or_usage: What came back: an SDK object, decoded JSON or JSON text; a whole response or its usage.
        provider: Who bills it: ``openai``, ``anthropic``, ``openrouter``, ``google``, ...
        endpoint: SDK method path whose format it has: ``chat.completions``, ``responses``, ``messages``, ...
        model: Model asked for.
        response_id: The answer's id, where the body has none; of an event, that of its session.
        at: When the call was made (an instant, a date or ISO text); default: now. Prices and budgets go by it.
        status: How it ended: ``ok``, ``error``, ``aborted`` or ``timeout``. An error body says so itself.
        streamed: Whether it was streamed.
        processing: ``"batch"`` where the context decides it.
        region: Cloud region or data zone, where it decides the price.
        service_tier: Tier that served, where the body does not say.
        api_key: The key it was made with; only its fingerprint is kept.
        attribution: On whose account, before the `attribute` blocks around.

    Returns:
        The entry (of a body that holds many bills, such as a batch with its answers or a list of answers, the last of
        them: each is recorded); None when it was recorded already, has nothing new, has not ended (a batch under way;
        logged: record it when it has), could not be written (logged), or tokenmeter is switched off.

    Raises:
        PricingError: neither a response nor a usage object.
        ConfigurationError: `provider` or `endpoint` is empty, or almost one that is known; `status` or `processing` is
            none that there is; `at` is no instant, or none of a call (before 2020, still to come); an event does not
            say of which session; another usage includes this one (a thread's is in its session's).

    Examples:
        >>> answer = requests.post(url, json=body).json()  # doctest: +SKIP
        >>> tokenmeter.record(answer, provider="openrouter", endpoint="chat.completions")  # doctest: +SKIP
    """
    _refuse_unfit(status, model=model, processing=processing, region=region, service_tier=service_tier)
    if canonical_condition("processing", processing) not in {None, "batch"}:
        raise ConfigurationError(f"processing is 'batch' or left out, not {shown(processing)}.")
    if type(streamed) is not bool:
        raise ConfigurationError(f"streamed must be True or False, not {shown(streamed)}.")
    if is_disabled():
        return None
    facts = RequestFacts(
        model=model, streamed=streamed, processing=processing, region=region, service_tier=service_tier
    )
    call = _call(meter, provider, endpoint, facts, api_key=api_key, attribution=attribution)
    body = to_wire(response_or_usage)
    # The ledger's clock, by which budgets cut their windows on every host alike.
    now = meter.store.now()
    started_at = now if at is None else parse_instant(at)
    if at is not None:
        check_made(started_at, now, f"at={shown(at)}")
    outcomes = _read_all(body, call, status, response_id)
    entry = _settle_all(meter, Authorization(call, started_at, 0), outcomes, dated=at is not None)
    if entry is not None:
        meter.required.look_at_made(call)
        meter.budgets.look_at_made(call)
    return entry


def hold(
    meter: Meter,
    *,
    provider: str,
    endpoint: str,
    request: Mapping[str, Any] | None = None,
    model: str | None = None,
    input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    region: str | None = None,
    api_key: str | None = None,
    attribution: Attribution | Mapping[str, Any] | None = None,
) -> Hold:
    """Hold what a call by hand may cost in every budget that concerns it; then make the call and record it.

    Use it as ``with`` or ``async with``. The budgets are asked at the beginning of the block, which raises if a hard
    cap would be passed. A block that ends without a record frees the hold; one that raises is recorded as a failed
    call whose bill is unknown.

    Args:
        meter: Whose budgets.
        provider: As for `record`.
        endpoint: As for `record`.
        request: The request's body: its model, prompt and output limit bound what it may cost.
        model: Model asked for, where `request` does not say.
        input_tokens: Instead of `request`: at most so many tokens of prompt.
        max_output_tokens: Instead of `request`: at most so many tokens of answer.
        region: Cloud region or data zone, where it decides the price.
        api_key: The key it is made with; only its fingerprint is kept.
        attribution: On whose account, before the `attribute` blocks around.

    Raises:
        ConfigurationError: `provider` or `endpoint` is empty, or almost one that is known; a number of tokens is none.
        BudgetExceededError: from the block's beginning: a hard cap would be passed. Make no call.
        StoreUnavailableError: from the block's beginning: a hard cap applies and the ledger fails.

    Examples:
        >>> with tokenmeter.hold(provider="openrouter", endpoint="chat.completions", request=body) as held:
        ...     held.record(requests.post(url, json=body).json())  # doctest: +SKIP
    """
    for name, tokens in (("input_tokens", input_tokens), ("max_output_tokens", max_output_tokens)):
        if tokens is not None and (type(tokens) is not int or tokens < 0):
            raise ConfigurationError(f"{name} must be a number of tokens, not {tokens!r}.")
    _refuse_unfit("ok", model=model, region=region)
    if is_disabled():
        return Hold(meter, None)
    call = _call(meter, provider, endpoint, RequestFacts(), api_key=api_key, attribution=attribution)
    dialect = dialect_for(provider, call.endpoint)
    facts = dialect.request_facts(dialect.named(call.endpoint), request)
    said = meter.attribution_of(request, call.attribution)
    facts = replace(
        facts,
        model=facts.model or model,
        input_bytes=facts.input_bytes if input_tokens is None else input_tokens,
        max_output_tokens=facts.max_output_tokens if max_output_tokens is None else max_output_tokens,
        region=region,
    )
    facts = meter.pricer.with_meant_model(call.provider, facts)
    return Hold(meter, replace(call, facts=facts, attribution=said, as_written=True))  # the caller sends it


class Hold:
    """A call by hand, with what it may cost held; made by `hold`.

    Attributes:
        entry: What was recorded of it; None as long as nothing was.
    """

    def __init__(self, meter: Meter, call: Call | None) -> None:
        self.entry: Entry | None = None
        self._meter = meter
        self._call = call
        self._authorization: Authorization | None = None

    def __enter__(self) -> Self:
        if self._authorization is not None:
            raise ConfigurationError("A hold is for one call; call tokenmeter.hold(...) again for the next.")
        if self._call is not None:
            self._authorization = self._meter.authorize(self._call)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._authorization is None or self._authorization.settled:
            return
        if error is None:
            self._meter.release(self._authorization)
            return
        # It may have been sent before it failed.
        lost = Outcome(status=_status_of(error), observation=_LOST, error_type=type(error).__name__)
        self.entry = self._meter.settle(self._authorization, lost)

    async def __aenter__(self) -> Self:
        return await in_thread(hand_place(self.__enter__), left=self._give_back)

    def _give_back(self, entered: asyncio.Future[Self]) -> None:
        if not entered.cancelled() and entered.exception() is None:
            self.__exit__(None, None, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever cancels waits no longer; what was held is given back all the same.
        await in_thread(lambda: self.__exit__(kind, error, trace))

    def record(
        self,
        response_or_usage: Any,
        *,
        response_id: str | None = None,
        status: Status = "ok",
        service_tier: str | None = None,
    ) -> Entry | None:
        """Write the call down and free what was held for it. Arguments as for `tokenmeter.record`.

        Returns:
            The entry; None as for `tokenmeter.record`.

        Raises:
            PricingError: neither a response nor a usage object; the hold stays until the block ends.
            ConfigurationError: outside of the ``with`` block, or recorded already; or as for `tokenmeter.record`.
        """
        _refuse_unfit(status, service_tier=service_tier)
        if self._call is None:  # switched off
            return None
        if self._authorization is None or self._authorization.settled:
            raise ConfigurationError("record() belongs inside the `with tokenmeter.hold(...)` block, once.")
        call = self._call
        if service_tier is not None:
            call = replace(call, facts=replace(call.facts, service_tier=service_tier))
        outcomes = _read_all(to_wire(response_or_usage), call, status, response_id)
        self.entry = _settle_all(self._meter, self._authorization, outcomes, dated=False)
        if not (self._authorization.settled or any(_is_under_way(outcome) for outcome, _ in outcomes)):
            self._meter.release(self._authorization)
        return self.entry

    async def arecord(
        self,
        response_or_usage: Any,
        *,
        response_id: str | None = None,
        status: Status = "ok",
        service_tier: str | None = None,
    ) -> Entry | None:
        """As `record`, in a thread, so that the event loop goes on."""
        return await in_thread(
            lambda: self.record(response_or_usage, response_id=response_id, status=status, service_tier=service_tier)
        )

    def extend(self) -> None:
        """Keep the hold from expiring while a long answer is read. Cheap; call it as often as you like."""
        if self._authorization is not None:
            self._meter.extend(self._authorization)


def _refuse_unfit(status: object, **texts: object) -> None:
    """What is written down as it is given has to be what the ledger has a place for."""
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{name} must be text, not {shown(value)}.")
    if status not in get_args(Status):
        raise ConfigurationError(f"status must be {' or '.join(map(repr, get_args(Status)))}, not {shown(status)}.")


def _call(
    meter: Meter,
    provider: str,
    endpoint: str,
    facts: RequestFacts,
    *,
    api_key: str | None,
    attribution: Attribution | Mapping[str, Any] | None,
) -> Call:
    for name, value in (("provider", provider), ("endpoint", endpoint)):
        if not isinstance(cast("object", value), str) or not value:
            raise ConfigurationError(
                f"{name} must be a name such as 'openai' or 'chat.completions', not {shown(value)}."
            )
    around = current_attribution()
    found = dialect_for(billing_name(provider), endpoint).named(endpoint)
    if found.kind == "unknown" and (meant := _find_meant_endpoint(endpoint)):
        raise ConfigurationError(f"endpoint {shown(endpoint)} is no method of an SDK. Did you mean {meant!r}?")
    _refuse_slip(provider, meter.pricer.price_list)
    provider = billing_name(provider)
    if (unit := meter.pricer.terms.cost_unit(provider)) is not None:
        facts = replace(facts, cost_unit=unit)
    facts = meter.pricer.with_meant_model(provider, facts)
    return Call(
        provider=provider,
        endpoint=found.path,
        operation=found.operation,
        facts=facts,
        attribution=Attribution.of(attribution).over(around),
        scopes=scopes_of_call(named=attribution is not None),
        api_key=meter.identify(api_key),
        span=None if meter.spans is None else meter.spans.current(),
    )


@lru_cache(maxsize=256)
def _find_meant_endpoint(endpoint: str) -> str | None:
    """The endpoint that one which no format has is a slip for; None for one that is like none."""
    billed = {path for name in FORMATS for path in dialect(name).billed()}
    return next(iter(get_close_matches(endpoint, billed, n=1, cutoff=_ALIKE)), None)


@lru_cache(maxsize=256)
def _refuse_slip(provider: str, prices: PriceList) -> None:
    prices.refuse_slip(provider)


def _bills(body: Any, call: Call) -> Sequence[Any]:
    """The bills that a body holds: itself, or what a page, a list, or a batch that has its answers has in it.

    The parts of a list or a page are bills of their own if they are streams, or each of them has an id or is an error.
    """
    room = dialect_for(call.provider, call.endpoint)
    if _holds_many(call):
        many = [bill for one in body for bill in _bills(one, call)] if is_array(body) else room.items(body)
        return many or (body,)
    parts = room.parts(body)
    if streams := room.split_streams(parts) or last_events(parts):
        return streams
    alone = all(is_object(one) and (_seen(one, call).response_id or error_in(one)) for one in parts)
    return parts if parts and alone else (body,)


def _holds_many(call: Call) -> bool:
    """Whether answers of an endpoint are pages, of which not every item is a bill."""
    return dialect_for(call.provider, call.endpoint).named(call.endpoint).form == "items"


def _as_one(bills: Sequence[Any], call: Call) -> Any:
    """The answers of a list as the answer of one call, without what is still under way where another has ended."""
    ended = [one for one in bills if "not_final" not in _seen(one, call).flags] or bills
    parts = [part for one in ended for part in (one if is_array(one) else (one,))]
    return parts[0] if len(parts) == 1 else parts


def _seen(body: Any, call: Call, *, final_only: bool = True) -> Observation:
    return observe(
        body,
        provider=call.provider,
        endpoint=call.endpoint,
        model=call.facts.model,
        request=call.facts,
        final_only=final_only,
    )


def _read_all(body: Any, call: Call, status: Status, response_id: str | None) -> list[_Read]:
    """What each bill in a body says, and when it says that it was made."""
    if events := events_in(body):
        body, response_id = events, response_id or told_beside(body).get("id")
    body, failure = _without_failure(body, call)
    bills = _bills(body, call)
    failures = [None] * (len(bills) - 1) + [failure]  # of streams one after the other the last one failed
    found = [
        (_read(one, call, status, response_id, failed), _made_at(one))
        for one, failed in zip(bills, failures, strict=True)
    ]
    if response_id is None or not is_array(body) or _holds_many(call) or any(_is_event(one) for one, _ in found):
        return found
    whole = _as_one(bills, call)  # the caller says that it is one
    return [(_read(whole, call, status, response_id, failure), _made_at(whole))]


def _without_failure(body: Any, call: Call) -> tuple[Any, BodyError | None]:
    """The events of a stream that failed without those that say so, and how it did; any other body as it is."""
    if not is_array(body) or _holds_many(call):
        return body, None
    rest, failure = split_failure(body)
    if failure is None:
        return body, None
    ids = [_seen(one, call).response_id for one in rest]
    apart = len(ids) > 1 or dialect_for(call.provider, call.endpoint).is_whole(rest[0])
    if apart and all(ids) and len(set(ids)) == len(ids):
        return body, None  # answers by themselves, the last of them an error
    return rest, failure


def _read(body: Any, call: Call, status: Status, response_id: str | None, failure: BodyError | None = None) -> Outcome:
    """What the body says; it is billed once, whoever sees it again."""
    seen = _seen(body, call, final_only=status == "ok" and failure is None)
    # A line of a batch is named within its file only, and nobody said which file that is: it goes by its answer's id.
    if isinstance(body, Mapping) and seen.bill_id in {body.get("custom_id"), body.get("key")}:  # pyright: ignore[reportUnknownMemberType]
        seen = replace(seen, bill_id=None)
    error = (failure or error_in(body)) if status == "ok" else None
    if error is not None:
        status, error_type = "error", error.kind
        if not error.answered and _is_nothing(seen.raw_usage):  # a refusal costs nothing
            seen = Observation(response_model=seen.response_model, response_id=seen.response_id)
    else:
        error_type = None
    return Outcome(
        status=status,
        observation=replace(seen, deduplicate=True),
        response_id=response_id,
        error_type=error_type,
    )


def _is_nothing(usage: Any) -> bool:
    """Whether no part of a stated usage is more than nothing."""
    return all(map(_is_nothing, usage.values())) if is_object(usage) else not usage


def _is_under_way(outcome: Outcome) -> bool:
    """Whether the bill comes with a later body of the same id, which this one must not shut out."""
    seen = outcome.observation
    return outcome.status == "ok" and seen is not None and "not_final" in seen.flags


def _tell_of_waiting(meter: Meter, name: str | None) -> None:
    """Say once of what was handed over that it is no bill."""
    if _told.get(meter, name or "") is None:
        _told.put(meter, name or "", True)  # noqa: FBT003 - a mark
        log.warning(
            "tokenmeter: %s is not recorded, since it has not ended or does not say what it used: record it when it "
            "does (of a batch of messages, its results).",
            shown(name) if name else "an answer without an id",
        )


def _is_event(outcome: Outcome) -> bool:
    return outcome.observation is not None and outcome.observation.is_event


def _is_no_bill(outcome: Outcome, call: Call) -> bool:
    """Whether it bills nothing and is of a page, or an event of a session, as most are."""
    seen = outcome.observation
    free = outcome.status == "ok" and seen is not None and not seen.billable
    return free and (_is_event(outcome) or _holds_many(call))


def _made_at(body: Any) -> datetime | None:
    """When the answer says that it was made; None where it does not."""
    if not isinstance(body, Mapping):
        return None
    values = cast("Mapping[str, Any]", body)
    for name in ("created", "created_at"):
        said = values.get(name)
        if isinstance(said, int | float | Decimal) and _FIRST <= said < _LAST:  # not money
            return datetime.fromtimestamp(int(said), UTC)
    return _made_at(values.get("response")) or _made_at(values.get("body"))  # within a line of a batch, an event


def _settle_all(meter: Meter, authorization: Authorization, outcomes: Sequence[_Read], *, dated: bool) -> Entry | None:
    """Write down of each bill what is not written down yet; what is held ends with the last one.

    Args:
        meter: Where.
        authorization: Leave for the call; its start is `dated` if the caller said it.
        outcomes: What the bills say.
        dated: See there.

    Returns:
        The last entry that was made.
    """
    entry, call = None, authorization.call
    bills: list[_Read] = []
    for outcome, made_at in outcomes:
        seen = outcome.observation or _LOST
        if seen.instead is not None:
            raise ConfigurationError(
                f"What it used is also in the usage of {seen.instead}: record {seen.instead} in its place."
            )
        if _is_under_way(outcome):
            _tell_of_waiting(meter, seen.response_id or outcome.response_id)
        elif not _is_no_bill(outcome, call):
            bills.append((outcome, made_at))
    for outcome, made_at in bills:
        mine = authorization if outcome is bills[-1][0] else Authorization(call, authorization.started_at, 0)
        entry = _settle(meter, mine, outcome, made_at, dated=dated) or entry
    return entry


def _settle(
    meter: Meter, authorization: Authorization, outcome: Outcome, made_at: datetime | None, *, dated: bool
) -> Entry | None:
    """Write down what is not written down yet, of one bill; see `_settle_all`."""
    seen = outcome.observation or _LOST
    if seen.is_event and outcome.response_id is None:
        raise ConfigurationError(
            "An event of a session does not say which session: give response_id=, the session's id."
        )
    identity = outcome.response_id if seen.is_event else seen.response_id or outcome.response_id
    if identity is None:
        return write_whole(meter, authorization, outcome)
    if seen.reading in {"total", "step"}:
        when = authorization.started_at if dated else taken_at(seen, authorization.started_at)
        growing = GrowingBill(meter, replace(authorization, started_at=when), outcome, identity)
        growing.record()
        return growing.entry
    call = authorization.call
    recorded = recorded_for(meter, call, identity, made_at or authorization.started_at)
    if not recorded and seen.reading == "share":  # a client that read its batch's file did so hours after it was made
        recorded = recorded_for(meter, call, identity, authorization.started_at)
    if not recorded:
        meter.recorded_by_hand(call.provider, identity, seen.bill_id or identity)
        whole = write_whole if seen.bill_id is None else record_batch
        write = record_line if seen.reading == "share" else whole
        return write(meter, authorization, outcome)
    if (estimate := estimate_among(recorded, seen)) is None:
        finish_replacement(meter, recorded)
        return None
    return replace_estimate(meter, authorization, outcome, estimate, dated=dated)


def _status_of(error: BaseException) -> Status:
    if came_from_outside(error):
        return "aborted"
    return "timeout" if "Timeout" in type(error).__name__ else "error"
