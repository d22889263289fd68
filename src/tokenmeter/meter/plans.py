"""Plans: what calls that are alike share, worked out once.

Before such a call leaves, its caps are asked by live counters and integers (`tokenmeter.budgets.holds`). When its
answer is plain, and like one that went the general way before, it is written down from what was learnt of that one:
the account and the rates its record names, and the rates as integers. No rule of accounting stands here: an answer is
only learnt from an entry that the general way made, and only if the integers come to the same cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tokenmeter.attribution import Attribution, Scope
from tokenmeter.budgets.bounds import Sizes
from tokenmeter.budgets.holds import Demands, PlannedHold, unanswered
from tokenmeter.budgets.holds import Sent as Leaving
from tokenmeter.call import Call, PlainRequest, RequestFacts
from tokenmeter.dimensions import INPUT_METERS, OUTPUT_METERS, kept_who
from tokenmeter.errors import StoreError
from tokenmeter.ledger import Charge, Entry, ThresholdCrossing
from tokenmeter.meter.recording import UNKNOWN, usage_text
from tokenmeter.money import MOST_DOLLARS, to_dollars, to_picodollars
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.card import Circumstances
from tokenmeter.processes import run_at_once, run_patiently
from tokenmeter.providers.prompts import input_tokens
from tokenmeter.stores.base import CapReachedError, LockedError, Store
from tokenmeter.stores.definitions import Account, Rate
from tokenmeter.stores.effects import HoldGoneError, NewHold, OutdatedError
from tokenmeter.stores.encoding import Template, counts_text, hold_record, json_text, quoted_text
from tokenmeter.stores.live import Slot
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from tokenmeter.budgets import Budgets
    from tokenmeter.budgets.matching import Required
    from tokenmeter.pricing.sheet import RateSheet
    from tokenmeter.providers.base import Plain
    from tokenmeter.stores.journal import Journal

#: Plans that are kept at most; they start over rather than grow for ever, where names come from strangers.
_MOST_PLANS, _MOST_ANSWERS, _MOST_SHAPES = 10_000, 256, 64
_NEVER = 1 << 62
#: What a call may use where only their number counts.
_ONE_CALL = (0, 0, 1)
#: In picodollars.
_MOST = MOST_DOLLARS * 10**12
_LONGEST = 512
_TOKENS = frozenset((*INPUT_METERS, *OUTPUT_METERS))

#: See `tokenmeter.stores.sqlite.store.SQLiteStore.cross`.
Crosses = Callable[[str, datetime, Sequence[tuple[Slot, Sequence[int], int]]], tuple[ThresholdCrossing, ...]]


class _PlanBound(NamedTuple):
    """A rate: its meter, reference in records, picodollars per unit, whether units are tokens, and of the answer."""

    meter: str
    digest: str
    listed: int
    contracted: int
    billed: int
    is_token: bool
    is_output: bool


class _AnswerKind:
    """What answers of one model and tier, to calls of one plan, have in common."""

    __slots__ = ("lines", "over", "rates", "sample", "sheet", "since_us", "template", "until_us", "upto")

    def __init__(
        self, sample: Entry, sheet: RateSheet, template: Template, rates: Mapping[str, _PlanBound], since_us: int
    ) -> None:
        self.sample = sample
        self.sheet = sheet
        self.template = template
        self.rates = rates
        #: By the meters of an answer.
        self.lines: dict[tuple[str, ...], _LinesOf] = {}
        #: Its rates are those of prompts above the one size and up to the other,
        self.over, upto = sheet.prompt_band
        self.upto = _NEVER if upto is None else upto
        #: and of calls from the one moment to before the other. A slow call may have left before they changed.
        self.since_us = since_us
        self.until_us = _NEVER if sheet.until is None else to_microseconds(sheet.until)

    def cost(self, quantities: Mapping[str, int]) -> _Cost | None:
        """What quantities cost, and what a record says of it; None where a rate is unknown or the cost implausible."""
        meters = tuple(quantities)
        lines = self.lines.get(meters) or self._lines_of(meters)
        if lines is None:
            return None
        values = tuple(quantities.values())
        listed = contracted = billed = tokens = output = 0
        charges = ""
        for quantity, (begin, list_price, contracted_price, billed_price, is_token, is_output) in zip(
            values, lines.lines, strict=True
        ):
            first = second = third = quantity * list_price
            charges = f'{charges}{begin}{quantity},"list":{first}'
            if contracted_price != list_price:
                second = third = quantity * contracted_price
                if second != first:
                    charges = f'{charges},"contracted":{second}'
            if billed_price != contracted_price:
                third = quantity * billed_price
                if third != second:
                    charges = f'{charges},"billed":{third}'
            charges += "}"
            listed, contracted, billed = listed + first, contracted + second, billed + third
            if is_token:
                tokens += quantity
                if is_output:
                    output += quantity
        if listed > _MOST or contracted > _MOST or billed > _MOST:
            return None
        return lines.used % values, charges[1:], listed, contracted, billed, tokens, output

    def _lines_of(self, meters: tuple[str, ...]) -> _LinesOf | None:
        rates = [self.rates.get(meter) for meter in meters]
        known = [rate for rate in rates if rate]
        if not known or len(known) != len(rates):
            return None
        if len(self.lines) >= _MOST_SHAPES:
            self.lines.clear()
        lines = self.lines[meters] = _LinesOf(known)
        return lines


class _LinesOf:
    """The lines of answers that have the same meters.

    Attributes:
        lines: Of each, how its record begins, its three prices, whether its units are tokens, and of the answer.
        used: What a record says of quantities, a place for each.
    """

    __slots__ = ("lines", "used")

    def __init__(self, rates: Sequence[_PlanBound]) -> None:
        self.used = ",".join(f'"{rate.meter}":%d' for rate in rates)
        self.lines = tuple((f',{{"rate":"{rate.digest}","quantity":', *rate[2:]) for rate in rates)


#: What a record says of quantities, and of charges; list, contracted and billed picodollars; all tokens, and those of
#: the answer.
_Cost = tuple[str, str, int, int, int, int, int]


class SentRequest(Leaving, Protocol):
    """A call that left."""

    @property
    def hold(self) -> PlannedHold | None:
        """What is held for it; None where no budget is about it."""
        ...

    @property
    def scopes(self) -> Sequence[Scope]:
        """Open `attribute` blocks to count into."""
        ...

    @property
    def started_us(self) -> int:
        """When it left, in microseconds since the epoch."""
        ...

    @property
    def started_ns(self) -> int:
        """The same on the performance counter."""
        ...

    @property
    def streamed(self) -> bool:
        """Whether its answer comes as a stream."""
        ...


class Heard(Protocol):
    """An answer."""

    @property
    def request_id(self) -> str | None:
        """Provider's id of the request."""
        ...

    @property
    def attempts(self) -> int:
        """HTTP requests it took."""
        ...

    @property
    def first_token_us(self) -> int | None:
        """Microseconds until the first event of a stream."""
        ...


class Plan:
    """What is known of calls that are alike.

    Attributes:
        generation: State of the ledger that it was made for.
        prices: The price list.
        demands: What they ask of their caps; of a call that no budget is about, nothing.
        sizes: How much they may use, by what of their prompts may be written to a cache, and how long they are: see
            `Budgets.amounts`.
        begun: The parts that the records of their holds share.
        answers: By model and tier that the answer names.
        outdated: Whether the ledger was found to be in another state.
    """

    __slots__ = ("answers", "begun", "demands", "generation", "outdated", "prices", "sizes")

    def __init__(self, generation: int, prices: PriceList, demands: Demands, begun: Template) -> None:
        self.generation = generation
        self.outdated = False
        self.prices = prices
        self.demands = demands
        self.begun = begun
        self.sizes: dict[tuple[str, int], Sizes] = {}
        self.answers: dict[tuple[str | None, str | None], _AnswerKind] = {}


class Plans:
    """The plans of a meter.

    Args:
        store: The ledger; one without a journal has no plans.
        pricer: Prices and terms.
        budgets: The budgets.
        tell: Told of entries, with the span their call was made in.
        fault: Told of faults that must not reach a caller; says how many there were.
        required: What calls have to be attributed to.
        tells_all: Whether of every entry, or only of those made in a span.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        budgets: Budgets,
        tell: Callable[[Entry, Any], None],
        fault: Callable[[str, BaseException], None],
        *,
        required: Required,
        tells_all: bool,
    ) -> None:
        self._journal: Journal | None = getattr(store, "journal", None)
        self._cross: Crosses | None = getattr(store, "cross", None)
        self._pricer = pricer
        self._budgets = budgets
        self._tell = tell
        self._fault = fault
        self._tells_all = tells_all
        self._required = required
        self._told_apart: tuple[Sequence[str], tuple[str, ...]] = ((), self._also(()))
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def key(self, who: Attribution, parts: tuple[object, ...]) -> tuple[Any, ...]:
        """What tells calls apart, by value: a block that is opened anew for each call makes a new object."""
        also = self._told_apart[1] if self._told_apart[0] is self._budgets.singled_out else self._names()
        more: tuple[Any, ...] | None = None
        if also:
            more = (also, *[who.end_user if name == "end_user" else who.tags.get(name[4:]) for name in also])
        return (*parts, *kept_who(who), more)

    def _names(self) -> tuple[str, ...]:
        """By which end users and tags calls have to be told apart: a budget is about them, or they are required."""
        singled_out = self._budgets.singled_out
        known = self._told_apart
        if known[0] is not singled_out:
            known = self._told_apart = (singled_out, self._also(singled_out))
        return known[1]

    def _also(self, singled_out: Sequence[str]) -> tuple[str, ...]:
        required = (name for name in self._required.names if name == "end_user" or ":" in name)
        return tuple(sorted({*singled_out, *required}))

    def now_us(self) -> int:
        """The ledger's clock, in microseconds since the epoch."""
        journal = self._journal
        return time.time_ns() // 1000 + (0 if journal is None else journal.skew_us)

    def find(self, key: tuple[Any, ...]) -> Plan | None:
        """The plan of calls with this key; None while there is none."""
        plan = self._plans.get(key)
        if plan is None:
            return None
        journal, until_us = self._journal, plan.demands.until_us
        if (
            journal is None
            or plan.outdated
            # Whoever claims something is told by the journal if the ledger's generation is another.
            or not (plan.demands.claims or plan.generation == journal.generation)
            or plan.prices is not self._pricer.price_list
            or not (plan.demands.any or until_us == _NEVER or self.now_us() < until_us)
        ):
            self._plans.pop(key, None)
            return None
        return plan

    # -- before the call

    def hold(self, plan: Plan, sent: Leaving, at_us: int, hold_id: str) -> PlannedHold | None:
        """Hold what a call may use in every cap that it is about; None when that is for the general way to do, or say.

        Args:
            plan: Of calls like it.
            sent: The call.
            at_us: When it leaves, in microseconds since the epoch.
            hold_id: Identity of the hold, for who may have to free it after an interrupt.

        Raises:
            LockedError: it was waited for as long as may be.
        """
        journal, demands, budgets = self._journal, plan.demands, self._budgets
        try:
            if not demands.since_us <= at_us < demands.until_us:
                if (renewed := self._ask_again(plan, sent, at_us)) is None:
                    return None
                demands = plan.demands = renewed
            facts = sent.facts
            amounts = budgets.amounts(sent, facts, at_us, plan.sizes) if demands.sized else _ONE_CALL
            if amounts is None:
                return None
            expires_us = at_us + budgets.holds.hold_us
            if not demands.claims and not (facts.streamed and budgets.keeps_open_calls):
                return PlannedHold(None, demands, amounts, at_us, expires_us)
            budgets.holds.sweep_sometimes()
            begun = plan.begun.record(self._unanswered(sent, facts, at_us, hold_id))
            if begun is None or journal is None:
                return None
            record = hold_record(hold_id, at_us, expires_us, journal.owner, begun)
            hold = NewHold(hold_id, expires_us, demands.claimed(amounts), record)
            journal.reserve(hold, generation=plan.generation)
        except LockedError:
            raise
        except (CapReachedError, StoreError, OutdatedError) as error:
            plan.outdated = plan.outdated or isinstance(error, OutdatedError)
            return None
        return PlannedHold(hold_id, demands, amounts, at_us, expires_us)

    def _ask_again(self, plan: Plan, sent: Leaving, at_us: int) -> Demands | None:
        """What calls of a plan ask of their caps now that other windows are open; None where that is not to be said."""
        asked = run_at_once(self._budgets.find, sent.call, from_microseconds(at_us))
        if self._journal is None or not asked.plannable or asked.generation != plan.generation:
            return None
        return Demands(asked, self._journal.slot, at_us)

    def _unanswered(self, sent: Leaving, facts: RequestFacts | PlainRequest, at_us: int, hold_id: str) -> str:
        """What the record of a hold says of its call, should it never be heard of again: its estimated prompt.

        It becomes an entry under the identity of the hold, recorded when it is swept.
        """
        who = sent.attribution
        text = f'"id":"{hold_id}","occurred_at":{at_us},"recorded_at":{at_us}'
        if facts.streamed:
            text += ',"streamed":true'
        if who.end_user is not None or who.tags:
            text = f"{text},{json_text(self._names_of(who))[1:-1]}"
        size = input_tokens(facts)
        if size:
            text = f'{text},"quantities":{{"input":{size}}}'
        text += ',"flags":["estimated"]'
        if sent.span is not None:
            text = f'{text},"trace_id":"{sent.span.trace_id}","span_id":"{sent.span.span_id}"'
        return text

    def _names_of(self, who: Attribution) -> dict[str, Any]:
        """End user and tags as records have them."""
        journal = self._journal
        named: dict[str, Any] = {}
        if journal is not None:
            if who.end_user is not None:
                named["end_user"] = journal.definitions.name("end_user", who.end_user)
            if who.tags:
                named["tags"] = {tag: journal.definitions.name(f"tag:{tag}", value) for tag, value in who.tags.items()}
        return named

    # -- after the call

    def write(self, plan: Plan, sent: SentRequest, heard: Heard, seen: Plain, entry_id: str) -> bool:
        """Write down a call with a plain answer; False when that is for the general way to do: nothing was written.

        Raises:
            StoreUnavailableError: it cannot be written.
            StoreBusyError: others would have to be waited for, or a server be asked for a name first.
        """
        journal, hold = self._journal, sent.hold
        answer = plan.answers.get((seen.model, seen.service_tier))
        if (
            answer is None
            or journal is None
            or not answer.since_us <= sent.started_us < answer.until_us
            or not answer.over < seen.prompt_tokens <= answer.upto
        ):
            return False
        cost = answer.cost(seen.quantities)
        if cost is None or (hold is not None and not hold.covers(cost[4], cost[5])):
            return False
        recorded_us, latency_us = self.now_us(), (time.perf_counter_ns() - sent.started_ns) // 1000
        who = sent.attribution
        names = self._names_of(who) if who.end_user is not None or who.tags else None
        begin = f'"id":"{entry_id}","occurred_at":{sent.started_us},"recorded_at":{recorded_us}'
        record = answer.template.record(_text(begin, sent, heard, seen, cost, latency_us=latency_us, names=names))
        if record is None:
            return False
        reached: Sequence[tuple[Slot, int]] = ()
        try:
            if hold is None:
                journal.append(record, generation=plan.generation)
            else:
                posts = hold.demands.posted((cost[4], cost[5], 1))
                reached = journal.settle(record, posts, hold.hold_id, generation=plan.generation)
        except (HoldGoneError, OutdatedError):  # a budget that was defined meanwhile counts, too
            return False
        try:
            for scope in sent.scopes:
                scope.count(seen.quantities, seen.reasoning_tokens, cost[2], cost[4], unpriced=False)
            self._budgets.settled(answer.sample, cost[6], cost[4], latency_us)
            if self._tells_all or sent.span is not None:
                times = {"recorded_us": recorded_us, "latency_us": latency_us}
                self._tell(_entry(answer, sent, heard, seen, cost, entry_id=entry_id, **times), sent.span)
            if reached:
                self._announce(entry_id, recorded_us, hold, reached)
        except Exception as error:  # noqa: BLE001 - it is recorded
            self._fault("tell of a call", error)
        return True

    def _announce(
        self, entry_id: str, at_us: int, hold: PlannedHold | None, reached: Sequence[tuple[Slot, int]]
    ) -> None:
        if hold is not None and self._cross is not None:
            at = from_microseconds(at_us)
            self._budgets.telling.announce(run_patiently(self._cross, entry_id, at, hold.demands.reached(reached)))

    def learn(self, key: tuple[Any, ...], call: Call, seen: Plain, entry: Entry, group: Consumption) -> None:
        """Learn from an entry that the general way made of a plain answer.

        Args:
            key: What told its call apart.
            call: The call.
            seen: The answer.
            entry: The entry.
            group: What the general reader made of the answer.
        """
        journal, prices = self._journal, self._pricer.price_list
        if journal is None or not _is_ordinary(entry) or not self._is_clear(call):
            return
        asked = self._budgets.find(call, entry.occurred_at)
        if not asked.plannable or asked.generation is None or (key[-1][0] if key[-1] else ()) != self._names():
            return
        account, begun = Account.of(entry), Account.of(unanswered(call, entry.occurred_at))
        if any(len(value) > _LONGEST for one in (account, begun) for value in one.texts()):
            return
        sheet = self._sheet_of(entry, group, seen)
        rates = None if sheet is None else _bounds(entry, sheet, seen, journal)
        if sheet is None or rates is None:
            return
        at_us, plan = to_microseconds(entry.occurred_at), self.find(key)
        if plan is None or len(plan.answers) >= _MOST_ANSWERS:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(
                asked.generation,
                prices,
                Demands(asked, journal.slot, at_us),
                Template(journal.definitions.account(begun)),
            )
        known = plan.answers.get((seen.model, seen.service_tier))
        since_us = at_us
        if known is not None and known.sheet is sheet:
            rates, since_us = {**known.rates, **rates}, min(known.since_us, at_us)
        answer = _AnswerKind(entry, sheet, Template(journal.definitions.account(account)), rates, since_us)
        plan.answers[seen.model, seen.service_tier] = answer

    def _is_clear(self, call: Call) -> bool:
        """Whether a call lacks nothing required, which each place in the code is told of, and its key is known."""
        return not self._required.missing(call) and (call.api_key is None or call.api_key.fingerprint != UNKNOWN)

    def _sheet_of(self, entry: Entry, group: Consumption, seen: Plain) -> RateSheet | None:
        """The rates that an entry was rated by."""
        mode = Circumstances(
            service_tier=group.service_tier,
            processing=group.processing,
            speed=group.speed,
            geo=group.geo,
            region=group.region,
            endpoint=entry.endpoint,
        )
        return self._pricer.sheet(
            entry.provider,
            group.model,
            mode=mode,
            at=entry.occurred_at,
            prompt_tokens=seen.prompt_tokens,
            api_key=entry.api_key,
            attribution=entry.attribution,
        )


def _is_ordinary(entry: Entry) -> bool:
    return entry.status == "ok" and entry.cost_source == "computed" and not entry.flags and entry.dedup_key is None


def _bounds(entry: Entry, sheet: RateSheet, seen: Plain, journal: Journal) -> dict[str, _PlanBound] | None:
    """The rates of an entry's lines as integers, by meter; None when not every count of the answer has such a line."""
    rates = {charge.sku_meter: bound for charge in entry.charges if (bound := _bound(charge, sheet, seen, journal))}
    return rates if len(rates) == len(entry.charges) and rates.keys() == seen.quantities.keys() else None


def _bound(charge: Charge, sheet: RateSheet, seen: Plain, journal: Journal) -> _PlanBound | None:
    """The rate of a line as integers; None when they do not say exactly what the line says."""
    rate = sheet.rate(charge.sku_meter)
    quantity = seen.quantities.get(charge.sku_meter)
    if isinstance(rate, str) or rate.whole is None or rate.flags or quantity is None:
        return None
    if charge != rate.line(charge.model, charge.sku_meter, quantity, charge.role):
        return None
    costs = (charge.list_cost, charge.contracted_cost, charge.billed_cost)
    if tuple(None if cost is None else to_picodollars(cost) for cost in costs) != tuple(
        quantity * each for each in rate.whole
    ):
        return None
    meter = charge.sku_meter
    return _PlanBound(
        meter, journal.definitions.rate(Rate.of(charge)), *rate.whole, meter in _TOKENS, meter in OUTPUT_METERS
    )


def _text(  # noqa: C901 - one branch for each value that may be absent
    text: str,
    sent: SentRequest,
    heard: Heard,
    seen: Plain,
    cost: _Cost,
    *,
    latency_us: int,
    names: Mapping[str, Any] | None,
) -> str:
    """What the record of a call says behind `text`: the values of `Template.body`, in their order."""
    used, charges, listed, contracted, billed, *_ = cost
    if seen.response_id is not None:
        text = f'{text},"response_id":{quoted_text(seen.response_id)}'
    if heard.request_id is not None:
        text = f'{text},"request_id":{quoted_text(heard.request_id)}'
    if sent.streamed:
        text += ',"streamed":true'
    if heard.attempts != 1:
        text = f'{text},"attempts":{heard.attempts}'
    text = f'{text},"latency_us":{latency_us}'
    if heard.first_token_us is not None:
        text = f'{text},"first_token_us":{heard.first_token_us}'
    if names is not None:
        text = f"{text},{json_text(names)[1:-1]}"
    text = f'{text},"quantities":{{{used}}}'
    if seen.reasoning_tokens:
        text = f'{text},"reasoning":{seen.reasoning_tokens}'
    text = f'{text},"charges":[{charges}],"list":{listed}'
    if contracted != listed:
        text = f'{text},"contracted":{contracted}'
    if billed != contracted:
        text = f'{text},"billed":{billed}'
    text = f'{text},"raw_usage":{counts_text(seen.usage)}'
    if sent.span is not None:
        text = f'{text},"trace_id":"{sent.span.trace_id}","span_id":"{sent.span.span_id}"'
    if sent.hold is not None and sent.hold.hold_id is not None:
        text = f'{text},"reservation":"{sent.hold.hold_id}"'
    return text


def _entry(
    answer: _AnswerKind,
    sent: SentRequest,
    heard: Heard,
    seen: Plain,
    cost: _Cost,
    *,
    entry_id: str,
    recorded_us: int,
    latency_us: int,
) -> Entry:
    """The entry of a record that was just written, for who wants to be told of it."""
    charges: list[Charge] = []
    for meter, quantity in seen.quantities.items():
        rate = answer.sheet.rate(meter)
        if not isinstance(rate, str):
            charges.append(rate.line(seen.model, meter, quantity, answer.sample.charges[0].role))
    _, _, listed, contracted, billed, *_ = cost
    return replace(
        answer.sample,
        entry_id=entry_id,
        occurred_at=from_microseconds(sent.started_us),
        recorded_at=from_microseconds(recorded_us),
        response_id=seen.response_id,
        request_id=heard.request_id,
        streamed=sent.streamed,
        attempts=heard.attempts,
        latency_us=latency_us,
        first_token_us=heard.first_token_us,
        attribution=sent.attribution,
        usage=Usage(seen.quantities, seen.reasoning_tokens),
        charges=tuple(charges),
        list_cost=to_dollars(listed),
        contracted_cost=to_dollars(contracted),
        billed_cost=to_dollars(billed),
        raw_usage=usage_text(seen.usage),
        reservation_id=None if sent.hold is None else sent.hold.hold_id,
        trace_id=None if sent.span is None else sent.span.trace_id,
        span_id=None if sent.span is None else sent.span.span_id,
    )
