"""Plans: what calls that are alike share, worked out once.

Before such a call leaves, its caps are asked by live counters and integers (`tokenmeter.budgets.demands`). When its
answer is plain, and like one that went the general way before, it is written down from what was learnt of that one:
the account and the rates its record names, and the rates as integers. No rule of accounting stands here: an answer is
only learnt from an entry that the general way made, and only if the integers come to the same cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenmeter.attribution import Attribution, Scope
from tokenmeter.budgets.bounds import Sizes
from tokenmeter.budgets.demands import Demands, PlannedHold
from tokenmeter.budgets.holds import unanswered
from tokenmeter.call import ActiveSpan, Call
from tokenmeter.errors import StoreError
from tokenmeter.ledger import Charge, Entry, ThresholdCrossing, new_id
from tokenmeter.meter.keys import UNKNOWN
from tokenmeter.meter.recording import usage_text
from tokenmeter.money import to_dollars, to_picodollars
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.card import Context
from tokenmeter.providers.estimates import input_tokens
from tokenmeter.semconv import INPUT_METERS, OUTPUT_METERS
from tokenmeter.stores.base import CapReachedError, Store
from tokenmeter.stores.effects import HoldGoneError
from tokenmeter.stores.live import Slot
from tokenmeter.stores.record import Account, Rate, Template
from tokenmeter.stores.values import from_microseconds, to_microseconds
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from tokenmeter.budgets import Budgets
    from tokenmeter.budgets.required import Required
    from tokenmeter.pricing.sheet import RateSheet
    from tokenmeter.providers.base import Plain
    from tokenmeter.stores.journal import Journal

__all__ = ["Answered", "Plan", "Plans"]

#: Plans that are kept at most; they start over rather than grow for ever, where names come from strangers.
_MOST_PLANS, _MOST_ANSWERS = 10_000, 256
_NEVER = 1 << 62
_LONGEST = 512
_TOKENS = frozenset((*INPUT_METERS, *OUTPUT_METERS))

#: Reference of a rate in records; list, contracted and billed picodollars per unit; whether units are tokens, and of
#: the answer.
_Bound = tuple[str, int, int, int, bool, bool]
#: See `tokenmeter.stores.sqlite.store.SQLiteStore.cross`.
Crosses = Callable[[str, datetime, Sequence[tuple[Slot, Sequence[int], int]]], tuple[ThresholdCrossing, ...]]


class _Answer:
    """What answers of one model and tier, to calls of one plan, have in common."""

    __slots__ = ("over", "rates", "sample", "sheet", "template", "until_us", "upto")

    def __init__(self, sample: Entry, sheet: RateSheet, template: Template, rates: Mapping[str, _Bound]) -> None:
        self.sample = sample
        self.sheet = sheet
        self.template = template
        self.rates = rates
        self.over, upto = sheet.prompt_band
        self.upto = _NEVER if upto is None else upto
        self.until_us = _NEVER if sheet.until is None else to_microseconds(sheet.until)

    def fits(self, at_us: int, prompt_tokens: int) -> bool:
        """Whether its rates are those of a call at this moment with a prompt of this size."""
        return at_us < self.until_us and self.over < prompt_tokens <= self.upto


class Answered(NamedTuple):
    """A call with a plain answer.

    Attributes:
        entry_id: Identity of its entry.
        hold: What is held for it; None where no budget is about it.
        seen: The answer.
        who: On whose account.
        scopes: Open `attribute` blocks to count into.
        span: The span it was made in, where spans are told.
        started_us: When it left, in microseconds since the epoch.
        started_ns: The same on the performance counter.
        request_id: Provider's id of the request.
        attempts: HTTP requests it took.
        streamed: Whether the answer came as a stream.
        first_token_us: Microseconds until the first event of a stream.
    """

    entry_id: str
    hold: PlannedHold | None
    seen: Plain
    who: Attribution
    scopes: Sequence[Scope]
    span: ActiveSpan | None
    started_us: int
    started_ns: int
    request_id: str | None
    attempts: int
    streamed: bool
    first_token_us: int | None


class _Cost(NamedTuple):
    """The lines of a record, their sums in picodollars, all tokens, and those of the answer."""

    charges: list[dict[str, Any]]
    listed: int
    contracted: int
    billed: int
    tokens: int
    output: int


class Plan:
    """What is known of calls that are alike.

    Attributes:
        generation: State of the ledger that it was made for.
        prices: The price list.
        demands: What they ask of their caps; of a call that no budget is about, nothing.
        sizes: How much they may use, by the length of their prompts: see `Budgets.amounts`.
        begun: The parts that the records of their holds share.
        answers: By model and tier that the answer names.
    """

    __slots__ = ("answers", "begun", "demands", "generation", "prices", "sizes")

    def __init__(self, generation: int, prices: PriceList, demands: Demands, begun: Template) -> None:
        self.generation = generation
        self.prices = prices
        self.demands = demands
        self.begun = begun
        self.sizes: dict[int, Sizes] = {}
        self.answers: dict[tuple[str | None, str | None], _Answer] = {}


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
        self._by_whom = bool(pricer.terms.multipliers)
        self._told_apart: tuple[Sequence[str], tuple[str, ...]] = ((), self._also(()))
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def key(self, who: Attribution, *parts: object) -> tuple[Any, ...]:
        """What tells calls apart, by value: a block that is opened anew for each call makes a new object."""
        also, tags = self._names(), who.tags
        more = (also, *(who.end_user if name == "end_user" else tags.get(name[4:]) for name in also)) if also else None
        if self._by_whom:
            return (*parts, who, more)
        return (*parts, who.member, who.team, who.organization, who.project, who.route, more)

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
        journal = self._journal
        if (
            journal is None
            or plan.generation != journal.generation
            or plan.prices is not self._pricer.price_list
            or not (plan.demands.any or self.now_us() < plan.demands.until_us)
        ):
            self._plans.pop(key, None)
            return None
        return plan

    # -- before the call

    def hold(self, plan: Plan, call: Call, at_us: int, hold_id: str) -> PlannedHold | None:
        """Hold what a call may use in every cap that it is about; None when that is for the general way to do, or say.

        Args:
            plan: Of calls like it.
            call: The call.
            at_us: When it leaves, in microseconds since the epoch.
            hold_id: Identity of the hold, for who may have to free it after an interrupt.
        """
        try:
            return self._hold(plan, call, at_us, hold_id)
        except (CapReachedError, StoreError):
            return None

    def _hold(self, plan: Plan, call: Call, at_us: int, hold_id: str) -> PlannedHold | None:
        journal, demands, budgets = self._journal, plan.demands, self._budgets
        if journal is None:
            return None
        if at_us >= demands.until_us:
            asked = budgets.find(call, from_microseconds(at_us), wait=False)
            if not asked.plain or asked.generation != plan.generation:
                return None
            demands = plan.demands = Demands(asked, journal.slot)
        amounts = budgets.amounts(call, at_us, plan.sizes) if demands.sized else (0, 0, 1)
        if amounts is None:
            return None
        held = demands.claims or (call.facts.streamed and budgets.keeps_open_calls)
        hold = PlannedHold(hold_id if held else None, demands, amounts, at_us, at_us + budgets.hold_us)
        if held:
            budgets.sweep_sometimes()
            begun = plan.begun.body(self._unanswered(call, at_us))
            journal.reserve(hold_id, hold.expires_us, demands.claimed(amounts), begun, created_at=at_us)
        return hold

    def _unanswered(self, call: Call, at_us: int) -> dict[str, Any]:
        """What the record of a hold says of its call, should it never be heard of again: its estimated prompt."""
        who, facts = call.attribution, call.facts
        values: dict[str, Any] = {"id": new_id(), "occurred_at": at_us, "recorded_at": self.now_us()}
        if facts.streamed:
            values["streamed"] = True
        if who.end_user is not None or who.tags:
            values.update(self._names_of(who))
        size = input_tokens(facts)
        if size:
            values["quantities"] = {"input": size}
        values["flags"] = ["estimated"]
        if call.span is not None:
            _, values["trace_id"], values["span_id"] = call.span
        return values

    def _names_of(self, who: Attribution) -> dict[str, Any]:
        """End user and tags as records have them."""
        journal = self._journal
        named: dict[str, Any] = {}
        if journal is not None:
            if who.end_user is not None:
                named["end_user"] = journal.name("end_user", who.end_user)
            if who.tags:
                named["tags"] = {tag: journal.name(f"tag:{tag}", value) for tag, value in who.tags.items()}
        return named

    # -- after the call

    def write(self, plan: Plan, call: Answered) -> bool:
        """Write down a call with a plain answer; False when that is for the general way to do: nothing was written.

        Raises:
            StoreUnavailableError: it cannot be written.
            StoreBusyError: a server has to be asked for a name first, and this thread runs an event loop.
        """
        journal, seen, hold = self._journal, call.seen, call.hold
        answer = plan.answers.get((seen.model, seen.service_tier))
        if answer is None or journal is None or not answer.fits(call.started_us, seen.prompt_tokens):
            return False
        if plan.generation != journal.generation:  # a budget was defined while the call was under way: it counts, too
            return False
        cost = _price(answer.rates, seen.quantities)
        if cost is None or (hold is not None and not hold.covers(cost.billed, cost.tokens)):
            return False
        who = call.who
        names = self._names_of(who) if who.end_user is not None or who.tags else None
        values = _values(call, cost, names, self.now_us())
        if call.span is not None:
            _, values["trace_id"], values["span_id"] = call.span
        reached: Sequence[tuple[Slot, int]] = ()
        if hold is None:
            journal.append(answer.template.body(values))
        else:
            if hold.hold_id is not None:
                values["reservation"] = hold.hold_id
            try:
                posts = hold.demands.posted((cost.billed, cost.tokens, 1))
                reached = journal.settle(answer.template.body(values), posts, hold.hold_id)
            except HoldGoneError:
                return False
        try:
            self._tell_all(answer, call, cost, values, reached)
        except Exception as error:  # noqa: BLE001 - it is recorded
            self._fault("tell of a call", error)
        return True

    def _tell_all(
        self,
        answer: _Answer,
        call: Answered,
        cost: _Cost,
        values: Mapping[str, Any],
        reached: Sequence[tuple[Slot, int]],
    ) -> None:
        seen = call.seen
        for scope in call.scopes:
            scope.count(seen.quantities, seen.reasoning_tokens, cost.listed, cost.billed, unpriced=False)
        if self._tells_all or call.span is not None:
            self._tell(_entry(answer, call, cost, values), call.span)
        self._budgets.settled(answer.sample, cost.output, cost.billed, values["latency_us"])
        if reached and call.hold is not None and self._cross is not None:
            at = from_microseconds(values["recorded_at"])
            self._budgets.announce(self._cross(call.entry_id, at, call.hold.demands.reached(reached)))

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
        if journal is None or not _is_ordinary(entry):
            return
        asked = self._budgets.find(call, entry.occurred_at)
        also = self._names()
        if not asked.plain or asked.generation is None or (key[-1][0] if key[-1] else ()) != also:
            return
        if self._required.missing(call):  # each place in the code is told
            return
        if call.api_key is not None and call.api_key.fingerprint == UNKNOWN:  # it may be any
            return
        sheet = self._pricer.sheet(
            entry.provider,
            group.model,
            mode=Context(
                service_tier=group.service_tier,
                processing=group.processing,
                speed=group.speed,
                geo=group.geo,
                region=group.region,
                endpoint=entry.endpoint,
            ),
            at=entry.occurred_at,
            prompt_tokens=seen.prompt_tokens,
            api_key=entry.api_key,
            attribution=entry.attribution,
        )
        account, begun = Account.of(entry), Account.of(unanswered(call, entry.occurred_at))
        if sheet is None or any(len(value) > _LONGEST for one in (account, begun) for value in one.texts()):
            return
        rates = {charge.sku_meter: bound for charge in entry.charges if (bound := _bound(charge, sheet, seen, journal))}
        if len(rates) != len(entry.charges) or rates.keys() != seen.quantities.keys():
            return
        plan = self.find(key)
        if plan is None or len(plan.answers) >= _MOST_ANSWERS:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(
                asked.generation, prices, Demands(asked, journal.slot), Template(journal.account(begun))
            )
        known = plan.answers.get((seen.model, seen.service_tier))
        if known is not None and known.sheet is sheet:
            rates = {**known.rates, **rates}
        answer = _Answer(entry, sheet, Template(journal.account(account)), rates)
        plan.answers[seen.model, seen.service_tier] = answer


def _price(rates: Mapping[str, _Bound], quantities: Mapping[str, int]) -> _Cost | None:
    """What quantities cost; None where a rate is not known."""
    listed = contracted = billed = tokens = output = 0
    charges: list[dict[str, Any]] = []
    for meter, quantity in quantities.items():
        rate = rates.get(meter)
        if rate is None:
            return None
        first, second, third = quantity * rate[1], quantity * rate[2], quantity * rate[3]
        charge: dict[str, Any] = {"rate": rate[0], "quantity": quantity, "list": first}
        if second != first:
            charge["contracted"] = second
        if third != second:
            charge["billed"] = third
        charges.append(charge)
        listed += first
        contracted += second
        billed += third
        tokens += quantity * rate[4]
        output += quantity * rate[5]
    return _Cost(charges, listed, contracted, billed, tokens, output)


def _values(call: Answered, cost: _Cost, names: Mapping[str, Any] | None, recorded_us: int) -> dict[str, Any]:
    """What the record of a call says, as `Template.body` takes it."""
    seen = call.seen
    values: dict[str, Any] = {
        "id": call.entry_id,
        "occurred_at": call.started_us,
        "recorded_at": recorded_us,
    }
    if seen.response_id is not None:
        values["response_id"] = seen.response_id
    if call.request_id is not None:
        values["request_id"] = call.request_id
    if call.streamed:
        values["streamed"] = True
    if call.attempts != 1:
        values["attempts"] = call.attempts
    values["latency_us"] = (time.perf_counter_ns() - call.started_ns) // 1000
    if call.first_token_us is not None:
        values["first_token_us"] = call.first_token_us
    if names is not None:
        values |= names
    values["quantities"] = seen.quantities
    if seen.reasoning_tokens:
        values["reasoning"] = seen.reasoning_tokens
    values["charges"] = cost.charges
    values["list"] = cost.listed
    if cost.contracted != cost.listed:
        values["contracted"] = cost.contracted
    if cost.billed != cost.contracted:
        values["billed"] = cost.billed
    values["raw_usage"] = seen.usage
    return values


def _is_ordinary(entry: Entry) -> bool:
    return entry.status == "ok" and entry.cost_source == "computed" and not entry.flags and entry.dedup_key is None


def _bound(charge: Charge, sheet: RateSheet, seen: Plain, journal: Journal) -> _Bound | None:
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
    return (journal.rate(Rate.of(charge)), *rate.whole, meter in _TOKENS, meter in OUTPUT_METERS)


def _entry(answer: _Answer, call: Answered, cost: _Cost, values: Mapping[str, Any]) -> Entry:
    """The entry of a record that was just written, for who wants to be told of it."""
    seen = call.seen
    charges: list[Charge] = []
    for meter, quantity in seen.quantities.items():
        rate = answer.sheet.rate(meter)
        if not isinstance(rate, str):
            charges.append(rate.line(seen.model, meter, quantity, answer.sample.charges[0].role))
    return replace(
        answer.sample,
        entry_id=call.entry_id,
        occurred_at=from_microseconds(call.started_us),
        recorded_at=from_microseconds(values["recorded_at"]),
        response_id=seen.response_id,
        request_id=call.request_id,
        streamed=call.streamed,
        attempts=call.attempts,
        latency_us=values["latency_us"],
        first_token_us=call.first_token_us,
        attribution=call.who,
        usage=Usage(seen.quantities, seen.reasoning_tokens),
        charges=tuple(charges),
        list_cost=to_dollars(cost.listed),
        contracted_cost=to_dollars(cost.contracted),
        billed_cost=to_dollars(cost.billed),
        raw_usage=usage_text(seen.usage),
        reservation_id=values.get("reservation"),
        trace_id=values.get("trace_id"),
        span_id=values.get("span_id"),
    )
