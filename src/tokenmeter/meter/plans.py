"""Plans: what calls that are alike share, worked out once.

A call whose answer is plain, and like one that went the general way before, is written down from what was learnt of
that one: the account and the rates its record names, and the rates as integers. No rule of accounting stands here: an
answer is only learnt from an entry that the general way made, and only if the integers come to the same cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenmeter.attribution import Attribution, Scope
from tokenmeter.call import Call
from tokenmeter.ledger import Charge, Entry
from tokenmeter.meter.recording import usage_text
from tokenmeter.money import to_dollars, to_picodollars
from tokenmeter.pricing import PriceList, Pricer
from tokenmeter.pricing.card import Context
from tokenmeter.stores.base import Store
from tokenmeter.stores.record import Account, Rate, Template
from tokenmeter.stores.values import from_microseconds, to_microseconds
from tokenmeter.usage import Consumption, Usage

if TYPE_CHECKING:
    from tokenmeter.budgets import Budgets
    from tokenmeter.budgets.required import Required
    from tokenmeter.pricing.sheet import RateSheet
    from tokenmeter.providers.base import Plain
    from tokenmeter.stores.journal import Journal

__all__ = ["Plan", "Plans"]

#: Plans that are kept at most; they start over rather than grow for ever, where names come from strangers.
_MOST_PLANS, _MOST_ANSWERS = 10_000, 256
_NEVER = 1 << 62
_LONGEST = 512

#: Reference of a rate in records, and list, contracted and billed picodollars per unit.
_Bound = tuple[str, int, int, int]


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


class Plan:
    """What is known of calls that are alike.

    Attributes:
        generation: State of the ledger that it was made for.
        until_us: First instant at which a budget may apply.
        prices: The price list.
        answers: By model and tier that the answer names.
    """

    __slots__ = ("answers", "generation", "prices", "until_us")

    def __init__(self, generation: int, until_us: int, prices: PriceList) -> None:
        self.generation = generation
        self.until_us = until_us
        self.prices = prices
        self.answers: dict[tuple[str | None, str | None], _Answer] = {}


class Plans:
    """The plans of a meter.

    Args:
        store: The ledger; one without a journal has no plans.
        pricer: Prices and terms.
        budgets: The budgets; where there are any, calls go the general way.
        tell: Told of entries, with the span their call was made in.
        required: What calls have to be attributed to; where that is anything, each is looked at.
        tells_all: Whether of every one, or only of those made in a span.
    """

    def __init__(
        self,
        store: Store,
        pricer: Pricer,
        budgets: Budgets,
        tell: Callable[[Entry, Any], None],
        *,
        required: Required,
        tells_all: bool,
    ) -> None:
        self._journal: Journal | None = getattr(store, "journal", None)
        self._pricer = pricer
        self._budgets = budgets
        self._tell = tell
        self._tells_all = tells_all
        self._required = bool(required.names)
        self._by_whom = bool(pricer.terms.multipliers)
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def key(self, who: Attribution, *parts: object) -> tuple[Any, ...] | None:
        """What tells calls apart, by value: a block that is opened anew for each call makes a new object.

        None where every call has to be looked at.
        """
        if self._required:
            return None
        if self._by_whom:
            return (*parts, who)
        return (*parts, who.member, who.team, who.organization, who.project, who.route)

    def now_us(self) -> int:
        """The ledger's clock, in microseconds since the epoch."""
        journal = self._journal
        return time.time_ns() // 1000 + (0 if journal is None else journal.skew_us)

    def find(self, key: tuple[Any, ...]) -> Plan | None:
        """The plan of calls with this key; None while there is none, or where budgets are to be asked."""
        plan = self._plans.get(key)
        if plan is None:
            return None
        journal = self._journal
        if (
            journal is None
            or plan.generation != journal.generation
            or plan.prices is not self._pricer.price_list
            or self.now_us() >= plan.until_us
        ):
            self._plans.pop(key, None)
            return None
        return plan

    def write(
        self,
        plan: Plan,
        seen: Plain,
        who: Attribution,
        scopes: Sequence[Scope],
        span: Any,
        *,
        started_us: int,
        started_ns: int,
        request_id: str | None,
        attempts: int,
        streamed: bool,
        first_token_us: int | None,
        entry_id: str,
    ) -> bool:
        """Write down a call with a plain answer; False when that is for the general way to do.

        Raises:
            StoreUnavailableError: it cannot be written.
            StoreBusyError: a server has to be asked for a name first, and this thread runs an event loop.
        """
        journal = self._journal
        answer = plan.answers.get((seen.model, seen.service_tier))
        if answer is None or journal is None or not answer.fits(started_us, seen.prompt_tokens):
            return False
        if plan.generation != journal.generation:  # a budget was defined while the call was under way: it counts, too
            return False
        priced = _price(answer.rates, seen.quantities)
        if priced is None:
            return False
        charges, costs = priced
        values: dict[str, Any] = {
            "id": entry_id,
            "occurred_at": started_us,
            "recorded_at": self.now_us(),
            "response_id": seen.response_id,
            "request_id": request_id,
            "streamed": streamed or None,
            "attempts": None if attempts == 1 else attempts,
            "latency_us": (time.perf_counter_ns() - started_ns) // 1000,
            "first_token_us": first_token_us,
            "end_user": None if who.end_user is None else journal.name("end_user", who.end_user),
            "tags": {tag: journal.name(f"tag:{tag}", value) for tag, value in who.tags.items()} if who.tags else None,
            "quantities": seen.quantities,
            "reasoning": seen.reasoning_tokens or None,
            "charges": charges,
            "list": costs[0],
            "contracted": None if costs[1] == costs[0] else costs[1],
            "billed": None if costs[2] == costs[1] else costs[2],
            "raw_usage": seen.usage,
        }
        values = {name: value for name, value in values.items() if value is not None}
        journal.append(answer.template.body(values))
        for scope in scopes:
            scope.count(seen.quantities, seen.reasoning_tokens, costs[0], costs[2], unpriced=False)
        if self._tells_all or span is not None:
            self._tell(_entry(answer, seen, who, values, costs), span)
        return True

    def learn(self, key: tuple[Any, ...], call: Call, seen: Plain, entry: Entry, group: Consumption) -> None:
        """Learn from an entry that the general way made of a plain answer.

        Args:
            key: What told its call apart.
            call: The call.
            seen: The answer.
            entry: The entry.
            group: What the general reader made of the answer.
        """
        journal = self._journal
        if journal is None or not _is_ordinary(entry):
            return
        asked = self._budgets.find(call, entry.occurred_at)
        if asked.caps or not asked.plain:
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
        account = Account.of(entry)
        if sheet is None or any(len(value) > _LONGEST for value in account.texts()):
            return
        rates = {charge.sku_meter: bound for charge in entry.charges if (bound := _bound(charge, sheet, seen, journal))}
        if len(rates) != len(entry.charges) or rates.keys() != seen.quantities.keys():
            return
        plan = self.find(key)
        if plan is None or len(plan.answers) >= _MOST_ANSWERS:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(journal.generation, asked.until_us, self._pricer.price_list)
        known = plan.answers.get((seen.model, seen.service_tier))
        if known is not None and known.sheet is sheet:
            rates = {**known.rates, **rates}
        answer = _Answer(entry, sheet, Template(journal.account(account)), rates)
        plan.answers[seen.model, seen.service_tier] = answer


def _price(
    rates: Mapping[str, _Bound], quantities: Mapping[str, int]
) -> tuple[list[dict[str, Any]], tuple[int, int, int]] | None:
    """The lines of a record, and their sums in picodollars; None where a rate is not known."""
    listed = contracted = billed = 0
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
    return charges, (listed, contracted, billed)


def _is_ordinary(entry: Entry) -> bool:
    return (
        entry.status == "ok"
        and entry.cost_source == "computed"
        and not entry.flags
        and entry.dedup_key is None
        and entry.reservation_id is None
    )


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
    return (journal.rate(Rate.of(charge)), *rate.whole)


def _entry(
    answer: _Answer, seen: Plain, who: Attribution, values: Mapping[str, Any], costs: tuple[int, int, int]
) -> Entry:
    """The entry of a record that was just written, for who wants to be told of it."""
    charges: list[Charge] = []
    for meter, quantity in seen.quantities.items():
        rate = answer.sheet.rate(meter)
        if not isinstance(rate, str):
            charges.append(rate.line(seen.model, meter, quantity, answer.sample.charges[0].role))
    return replace(
        answer.sample,
        entry_id=values["id"],
        occurred_at=from_microseconds(values["occurred_at"]),
        recorded_at=from_microseconds(values["recorded_at"]),
        response_id=seen.response_id,
        request_id=values.get("request_id"),
        streamed=values.get("streamed", False),
        attempts=values.get("attempts", 1),
        latency_us=values["latency_us"],
        first_token_us=values.get("first_token_us"),
        attribution=who,
        usage=Usage(seen.quantities, seen.reasoning_tokens),
        charges=tuple(charges),
        list_cost=to_dollars(costs[0]),
        contracted_cost=to_dollars(costs[1]),
        billed_cost=to_dollars(costs[2]),
        raw_usage=usage_text(seen.usage),
    )
