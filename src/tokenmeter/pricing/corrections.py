"""What entries lack, or would cost otherwise: what is assumed meanwhile, corrections, and what takes entries back.

Nothing recorded ever changes: where a price becomes known, or another, the difference is a further entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

from tokenmeter.dimensions import INPUT_METERS, OUTPUT_METERS
from tokenmeter.errors import StoreBusyError
from tokenmeter.ledger import Charge, Entry, new_id, utcnow
from tokenmeter.money import EXACT, ZERO, Costs, add, negate, quantize, to_picodollars
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.rating import Rating
from tokenmeter.pricing.sheet import UNKNOWN_SIZE, LineConditions, size_over
from tokenmeter.processes import may_wait
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

_ESTIMATED = "estimated"
#: Kinds of what has a price of its own.
_CALLS = frozenset({"usage", "growth"})
_TOKENS = "Tokens"
#: The meter of the fee that a request itself may have.
_FEE = "requests"


#: Begins the flag that says how many picodollars count against caps for tokens without a price.
ASSUMED = "assumed_usd="


def assumed_for(entry: Entry) -> int | None:
    """What counts for the tokens of `entry` without a price, in picodollars; negative in what takes them back.

    None where it does not say: it has none, or it is of before that was kept.
    """
    return next((int(flag.removeprefix(ASSUMED)) for flag in entry.flags if flag.startswith(ASSUMED)), None)


def with_assumed(entry: Entry, pricer: Pricer) -> Entry:
    """`entry` of a call; where tokens have no price and it does not say yet what counts for them, with that.

    So a counter is what the ledger says, whichever prices and terms its reader goes by.

    Raises:
        StoreBusyError: every price has to be looked at first, and this thread must not wait.
    """
    if entry.cost_source != "unpriced" or entry.kind not in _CALLS or not lacks_price(entry.charges):
        return entry
    if assumed_for(entry) is not None:
        return entry
    if not (may_wait() or pricer.knows_dearest(entry.provider)):
        raise StoreBusyError("Every price has to be looked at first; call again from a thread.")
    return replace(entry, flags=tuple(sorted({*entry.flags, f"{ASSUMED}{assume(entry, pricer)}"})))


def assume(entry: Entry, pricer: Pricer) -> int:
    """What the tokens of `entry` without a price cost at the dearest known rates of its provider, in picodollars.

    A correction that prices them later takes their lines back, and with them this estimate.
    """
    if not lacks_price(entry.charges):
        return 0
    rates = pricer.dearest_known(
        provider=entry.provider, at=entry.occurred_at, api_key=entry.api_key, attribution=entry.attribution
    )
    cost = ZERO
    for charge in entry.charges:
        if charge.billed_cost is None and charge.unit == _TOKENS:
            rate = rates.output if charge.sku_meter in OUTPUT_METERS else rates.input
            cost = EXACT.add(cost, EXACT.multiply(rate or ZERO, charge.quantity))
    return to_picodollars(quantize(cost))


def lacks_price(charges: Iterable[Charge]) -> bool:
    """Whether there are tokens without a price among them."""
    return any(charge.billed_cost is None and charge.unit == _TOKENS for charge in charges)


def _back(entry: Entry, charges: Iterable[Charge]) -> set[str]:
    """The flag of what takes `charges` of `entry` back, and with them what counted for those without a price."""
    amount = assumed_for(entry) if lacks_price(charges) else None
    return set() if amount is None else {f"{ASSUMED}{-amount}"}


def correction(entry: Entry, pricer: Pricer) -> Entry | None:
    """What `entry` lacks now that its prices are known.

    The correction's usage is empty and its charges come in pairs, so that no token counts twice: each line that was
    unpriced is taken back with the opposite quantity, and stands again with its price. Its costs are the difference.
    Rates are those of the day of the call, with the terms for its key and attribution.

    Args:
        entry: A recorded entry.
        pricer: Prices and terms of today.

    Returns:
        A ``kind="correction"`` entry, to be posted once (`dedup_key` sees to it); None when nothing was unpriced or
        some line still is.
    """
    unpriced = [charge for charge in entry.charges if charge.list_cost is None]
    if not unpriced or entry.kind not in _CALLS:
        return None
    rating = _rated(entry, unpriced, pricer, fee=_main_line(entry) in unpriced)
    if rating.cost_source == "unpriced":
        return None
    return _restated(entry, unpriced, rating, key=f"correction:{entry.entry_id}")


def changed(entry: Entry, corrections: Sequence[Entry], pricer: Pricer) -> Entry | None:
    """By how much the cost of `entry` would differ if it were rated today.

    Args:
        entry: A recorded entry.
        corrections: Every correction of it that is recorded.
        pricer: Prices and terms of today.

    Returns:
        As for `correction`; None when no cost differs, when a line has no price today, or when no list has priced the
        entry (the biller stated its cost, or nothing was billed).
    """
    if entry.kind not in _CALLS:
        return None
    standing = [
        charge for charge in _standing((entry, *corrections)) if LineConditions.parse(charge.price_id) is not None
    ]
    rating = _rated(entry, standing, pricer) if standing else Rating()
    if rating.cost_source in {"none", "unpriced"}:
        return None
    whole = all(charge.list_cost is not None for charge in standing)
    if whole and Costs.of(rating) == Costs.total(standing):
        return None
    number = f":{len(corrections)}" if corrections else ""
    return _restated(entry, standing, rating, key=f"correction:{entry.entry_id}{number}")


#: Marks what takes an entry back.
TAKEN_BACK = "late_settlement"


def reversal(entry: Entry, corrections: Sequence[Entry]) -> Entry:
    """What takes `entry` back whole, once its call is recorded as it was: cost, usage, and that it was a call.

    Args:
        entry: What was recorded, such as an estimate.
        corrections: Every correction of it that is recorded.

    Returns:
        An entry of the kind ``reversal``, to be posted once (`dedup_key` sees to it). All of these entries together
        come to nothing, in each sum.
    """
    costs = {name: getattr(entry, name) for name in Costs._fields}
    if corrections:
        costs = Costs.total((entry, *corrections))._asdict()
    used, standing = entry.usage, tuple(_standing((entry, *corrections)))
    flags = {flag for flag in entry.flags if not flag.startswith(ASSUMED)} | _back(entry, standing)
    return replace(
        entry,
        entry_id=new_id(),
        kind="reversal",
        recorded_at=utcnow(),
        latency_us=None,
        first_token_us=None,
        usage=Usage(
            {meter: negate(quantity) for meter, quantity in used.quantities.items()}, -used.reasoning_output_tokens
        ),
        charges=tuple(charge.negated() for charge in standing),
        **{name: negate(cost) for name, cost in costs.items()},
        cost_source=corrections[-1].cost_source if corrections else entry.cost_source,
        flags=tuple(sorted({*flags, TAKEN_BACK})),
        corrects=entry.entry_id,
        dedup_key=f"{TAKEN_BACK}:{entry.entry_id}",
    )


#: What an entry says of itself that a whole answer knows better.
DOUBTS = frozenset({"estimated", "billing_unknown", "container_time_assumed", "usage_unknown"})
#: Ends the key of an answer that took an estimate's place.
WHOLE = "#whole"


def stands_for(whole: Entry, estimate: Entry) -> bool:
    """Whether `whole`, which bears the same answer's id, was recorded in place of `estimate`."""
    replaced = estimate.dedup_key is None or whole.dedup_key == f"{estimate.dedup_key}{WHOLE}"
    return replaced and whole.operation == estimate.operation


def growth(total: Usage, recorded: Usage) -> tuple[Usage, bool]:
    """By how much `total` is above what is recorded, and whether it is below it anywhere."""
    rest = {meter: add(quantity, negate(recorded[meter])) for meter, quantity in total.quantities.items()}
    reasoning = max(total.reasoning_output_tokens - recorded.reasoning_output_tokens, 0)
    grown = {meter: quantity for meter, quantity in rest.items() if quantity > 0}
    return Usage(grown, reasoning), any(quantity < 0 for quantity in rest.values())


def grown(whole: Sequence[Entry], recorded: Sequence[Entry]) -> Entry | None:
    """By how much one account of a running total is above another, as an entry that is to be posted; None for nowhere.

    Args:
        whole: The entries of the one, in their order.
        recorded: Those of the other, to which it is to be added.
    """
    totals = [Usage.total(one.usage for one in entries) for entries in (whole, recorded)]
    usage, _ = growth(*totals)
    less = {meter for meter, quantity in totals[1].quantities.items() if quantity > totals[0][meter]}
    back = [replace(one, charges=tuple(charge.negated() for charge in one.charges)) for one in recorded]
    charges = tuple(line for line in _standing((*whole, *back)) if line.sku_meter not in less)
    costs = Costs.total(charges)
    if not usage and costs.list_cost <= 0:
        return None
    known, last = any(line.list_cost is not None for line in charges), whole[-1]
    return replace(
        last,
        entry_id=new_id(),
        kind="growth",
        latency_us=None,
        first_token_us=None,
        usage=usage,
        charges=charges,
        list_cost=costs.list_cost if known else None,
        contracted_cost=costs.contracted_cost if known else None,
        billed_cost=costs.billed_cost if known else None,
        flags=tuple(flag for flag in last.flags if not flag.startswith(ASSUMED)),
        reservation_id=None,
    )


#: A whole call, a part of which was recorded while its answer came.
COMPLETED = "completed"


def completion(parts: Sequence[Entry], corrections: Sequence[Entry], whole: Entry) -> tuple[Entry, ...]:
    """A call as a whole, and what takes back what was recorded of it while its answer came.

    Args:
        parts: What is recorded of the call.
        corrections: Every correction and every reversal of those that is recorded.
        whole: The call as an entry that is not recorded.

    Returns:
        Entries to be posted together; all of the call then come to `whole`, as one call.
    """
    gone = {one.corrects for one in corrections if one.kind == "reversal"}
    known = replace(whole, flags=tuple(sorted({*whole.flags, COMPLETED})), dedup_key=f"{whole.dedup_key}#{len(parts)}")
    standing = (part for part in parts if part.entry_id not in gone)
    return known, *(reversal(part, [one for one in corrections if one.corrects == part.entry_id]) for part in standing)


def _standing(entries: Iterable[Entry]) -> Iterator[Charge]:
    """The lines that are left when what corrections took back is gone; of one price and the same factors, one."""
    lines: dict[tuple[object, ...], Charge] = {}
    for entry in entries:
        for charge in entry.charges:
            price = (charge.price_id, charge.list_unit_price, *charge.multipliers.items())
            key = (charge.model, charge.sku_meter, charge.role, *price)
            known = lines.get(key)
            lines[key] = charge if known is None else _joined(known, charge)
    return (charge for charge in lines.values() if charge.quantity)


def _joined(one: Charge, other: Charge) -> Charge:
    return replace(
        one,
        quantity=add(one.quantity, other.quantity),
        list_cost=_plus(one.list_cost, other.list_cost),
        contracted_cost=_plus(one.contracted_cost, other.contracted_cost),
        billed_cost=_plus(one.billed_cost, other.billed_cost),
    )


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else add(one, other)


def _main_line(entry: Entry) -> Charge | None:
    """A line of the group that would bear the fee of a request; None where it is borne."""
    charges = entry.charges
    if any(charge.sku_meter == _FEE for charge in charges):
        return None
    return next((charge for charge in charges if charge.model == entry.response_model), charges[0])


def _rated(entry: Entry, charges: Iterable[Charge], pricer: Pricer, *, fee: bool = True) -> Rating:
    return pricer.rate(
        Observation(
            consumptions=tuple(_groups(entry, charges)),
            response_model=entry.response_model,
            operation=entry.operation,
            reading="growth" if entry.kind == "growth" else "whole",
        ),
        provider=entry.provider,
        endpoint=entry.endpoint,
        at=entry.occurred_at,
        api_key=entry.api_key,
        attribution=entry.attribution,
        fee=fee,
    )


def _groups(entry: Entry, charges: Iterable[Charge]) -> Iterator[Consumption]:
    """Lines as the charge groups they were, each in its own context.

    A line tells the size of its prompt where that is not the sum of what its model used in its role. Entries of before
    that was so do not: where their lines must be of several prompts, each is rated in the band of the price it bears.
    """
    several = _of_several_prompts(entry)
    groups: dict[tuple[str | None, str, LineConditions], dict[str, Quantity]] = {}
    for charge in charges:
        wanted = LineConditions.parse(charge.price_id) or LineConditions(service_tier=entry.service_tier)
        if wanted.prompt_tokens is None and (charge.model, charge.role) in several:
            over = size_over(charge.price_id)
            wanted = wanted._replace(prompt_tokens=UNKNOWN_SIZE if over is None else over + 1)
        quantities = groups.setdefault((charge.model, charge.role, wanted), {})
        if charge.sku_meter != _FEE or entry.usage[_FEE]:  # the list says itself whether a request has a price
            quantities[charge.sku_meter] = add(quantities.get(charge.sku_meter, 0), charge.quantity)
    prompts: dict[tuple[str | None, str], int] = {}
    for (model, role, _), quantities in groups.items():
        size = sum(int(quantities[meter]) for meter in INPUT_METERS if meter in quantities)
        prompts[model, role] = prompts.get((model, role), 0) + size
    for (model, role, wanted), quantities in groups.items():
        if wanted.prompt_tokens is None:
            wanted = wanted._replace(prompt_tokens=prompts[model, role])  # noqa: PLW2901 - what follows means this
        yield wanted.consumption(model, Usage(quantities), role)


def _of_several_prompts(entry: Entry) -> frozenset[tuple[str | None, str]]:
    """Models and roles whose lines do not tell the size of their prompt, and are not one prompt either."""
    untold: Counter[tuple[str | None, str, str]] = Counter()
    doubted = "tier_ambiguous" in entry.flags
    for charge in entry.charges:
        wanted = LineConditions.parse(charge.price_id)
        if wanted is not None and wanted.prompt_tokens is None:
            untold[charge.model, charge.role, charge.sku_meter] += 1
        elif wanted is not None and wanted.prompt_tokens == UNKNOWN_SIZE and charge.list_cost is not None:
            doubted = False  # this is the group that is in doubt
    return frozenset((model, role) for (model, role, _), lines in untold.items() if doubted or lines > 1)


def _restated(entry: Entry, charges: Sequence[Charge], rating: Rating, *, key: str) -> Entry:
    """The entry that takes `charges` back and puts the lines of `rating` in their place."""
    off = Costs.of(rating).minus(Costs.total(charges))
    return Entry(
        entry_id=new_id(),
        kind="correction",
        occurred_at=entry.occurred_at,
        recorded_at=utcnow(),
        provider=entry.provider,
        endpoint=entry.endpoint,
        operation=entry.operation,
        request_model=entry.request_model,
        response_model=entry.response_model,
        service_tier=entry.service_tier,
        attempts=0,
        attribution=entry.attribution,
        api_key=entry.api_key,
        charges=(*(charge.negated() for charge in charges), *rating.charges),
        **off._asdict(),
        cost_source="estimated" if _ESTIMATED in entry.flags else rating.cost_source,
        flags=tuple(sorted({*rating.flags, "repriced", *_back(entry, charges)})),
        price_list_hash=rating.price_list_hash,
        corrects=entry.entry_id,
        dedup_key=key,
    )
