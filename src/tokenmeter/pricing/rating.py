"""Usage x rates -> charges. Exact: a line is rounded once per stage, and the lines add up to the entry."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

from tokenmeter.dimensions import TOOL_OPERATION, CostSource, unit_of
from tokenmeter.display import counted, dollars, facts_html
from tokenmeter.ledger import CHARGE_COLUMNS, Charge, charge_cells
from tokenmeter.money import EXACT, MOST_DOLLARS, ONE, ZERO, quantize
from tokenmeter.pricing.sheet import LineConditions, RateSheet, with_endpoint, with_size
from tokenmeter.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenmeter.usage import Consumption, Observation, Quantity, SuppliedCost

#: A supplied cost this near to the price of the same usage confirms it; providers round.
_TOLERANCE = Decimal("0.02")
_NO_FLAGS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, repr=False)
class Rating:
    """What an observation costs.

    Attributes:
        charges: The lines.
        list_cost: Sum of the priced lines at public prices, US dollars; None when no line is priced.
        contracted_cost: As above, after negotiated discounts.
        billed_cost: As above, times the platform multiplier.
        cost_source: How the cost is known.
        flags: Remarks: ``unknown_model``, ``unknown_service_tier``, ``unknown_processing``, ``unknown_speed``,
            ``unknown_geo``, ``unknown_region``, ``unpriced_meter``, ``tier_ambiguous``, ``cache_rate_assumed``,
            ``price_date_assumed``, ``region_rate_assumed``, ``implausible_cost``.
        price_list_hash: Hash of the price list that rated it; None when nothing was rated.
    """

    charges: tuple[Charge, ...] = ()
    list_cost: Decimal | None = None
    contracted_cost: Decimal | None = None
    billed_cost: Decimal | None = None
    cost_source: CostSource = "none"
    flags: frozenset[str] = _NO_FLAGS
    price_list_hash: str | None = None

    def __repr__(self) -> str:
        flags = f", {', '.join(sorted(self.flags))}" if self.flags else ""
        lines = counted(len(self.charges), "charge")
        costs = f"{dollars(self.list_cost)} list, {dollars(self.billed_cost)} billed"
        return f"<Rating {costs}: {lines}, {self.cost_source}{flags}>"

    def _repr_html_(self) -> str:
        facts = {
            "list cost": dollars(self.list_cost),
            "contracted cost": dollars(self.contracted_cost),
            "billed cost": dollars(self.billed_cost),
            "known by": self.cost_source,
            "flags": ", ".join(sorted(self.flags)),
        }
        return facts_html("Rating", facts, columns=CHARGE_COLUMNS, rows=charge_cells(self.charges))


def priced_lines(
    consumption: Consumption, sheet: RateSheet, flags: set[str], *, fee: bool, sized: bool
) -> list[Charge]:
    """The lines of a group whose model is listed; what has no price is unpriced, and `flags` learns why.

    Args:
        consumption: The group.
        sheet: Its rates.
        flags: Remarks so far.
        fee: Whether the price of the request itself, where it has one, is to be among them.
        sized: Whether its lines must say how long the prompt was, since their sum does not.
    """
    model, role, quantities = consumption.model, consumption.role, consumption.usage.quantities
    lines: list[Charge] = []
    for meter, quantity in quantities.items():
        if not quantity:
            continue
        rate = sheet.rate(meter)
        if isinstance(rate, str):
            flags.add(rate)
            lines.append(_unpriced(consumption, meter, quantity))
        else:
            line = rate.line(model, meter, quantity, role)
            if max(line.list_cost or ZERO, line.contracted_cost or ZERO, line.billed_cost or ZERO) > MOST_DOLLARS:
                flags.add("implausible_cost")
                line = _unpriced(consumption, meter, quantity)
            flags |= rate.flags
            lines.append(line)
    stated = any(meter.startswith("requests") for meter in quantities)
    if fee and lines and not stated and sheet.per_request is not None:
        lines.append(sheet.per_request.line(model, "requests", 1, role))
    if (endpoint := consumption.endpoint) is not None:
        lines = [line if line.list_cost is None else with_endpoint(line, endpoint) for line in lines]
    if sized:
        return [line if line.list_cost is None else with_size(line, consumption.prompt_tokens) for line in lines]
    return lines


def tells_sizes(consumptions: Sequence[Consumption]) -> Sequence[bool]:
    """Of each group whether its lines must say how long its prompt was.

    They need not where the tokens of one model in one role are one prompt: then their sum is its size, and calls alike
    have lines of the same price.
    """
    many = len(consumptions) > 1
    kinds = Counter((group.model, group.role) for group in consumptions) if many else None
    return [
        (kinds is not None and kinds[group.model, group.role] > 1)
        or group.usage.input_tokens != (group.prompt_tokens or 0)
        for group in consumptions
    ]


def main_group(observation: Observation) -> int | None:
    """Which group of a response bears the fee that its request has; None where it is no request.

    A tool at work is none, nor is what a session has used since it was read last.
    """
    groups = observation.consumptions
    if observation.operation == TOOL_OPERATION or observation.reading == "growth" or not groups:
        return None
    answered = observation.response_model
    return next((place for place, group in enumerate(groups) if group.model == answered), 0)


def unpriced_lines(consumption: Consumption) -> Iterator[Charge]:
    """The lines of a group whose model nobody lists."""
    for meter, quantity in consumption.usage.quantities.items():
        if quantity:
            yield _unpriced(consumption, meter, quantity)


def _unpriced(consumption: Consumption, sku_meter: str, quantity: Quantity) -> Charge:
    return Charge(
        model=consumption.model,
        sku_meter=sku_meter,
        quantity=quantity,
        unit=unit_of(sku_meter),
        list_unit_price=None,
        multipliers={},
        list_cost=None,
        contracted_cost=None,
        billed_cost=None,
        price_id=LineConditions.of(consumption).price_id(),
        role=consumption.role,
    )


def supplied_line(consumption: Consumption, platform: Decimal) -> Charge:
    """The biller's own figure: it wins over any table, and only the platform's multiplier still applies."""
    supplied = consumption.supplied_cost
    assert supplied is not None  # noqa: S101 - the caller asked
    cost = quantize(supplied.amount)
    return Charge(
        model=consumption.model,
        sku_meter="provider_cost",
        quantity=supplied.amount,
        unit=unit_of("provider_cost"),
        list_unit_price=ONE,
        multipliers={} if platform == ONE else {"platform": platform},
        list_cost=cost,
        contracted_cost=cost,
        billed_cost=cost if platform == ONE else quantize(EXACT.multiply(supplied.amount, platform)),
        source=supplied.source,
        role=consumption.role,
    )


def compare(supplied: SuppliedCost, lines: Sequence[Charge], flags: set[str]) -> None:
    """Add to `flags` what a cost in an unknown unit says of the `lines` priced for the same usage."""
    listed = ZERO
    for line in lines:
        if line.list_cost is None:
            flags.add("supplied_cost_unconfirmed")
            return
        listed = EXACT.add(listed, line.list_cost)
    gap = EXACT.subtract(supplied.amount, listed)
    if EXACT.compare(gap.copy_abs(), EXACT.multiply(listed, _TOLERANCE)) > 0:
        flags.add("supplied_cost_differs")


def total(
    charges: tuple[Charge, ...], flags: set[str], *, estimated: bool, price_list_hash: str | None = None
) -> Rating:
    """The lines with their sums, and how the cost is known."""
    listed = contracted = billed = ZERO
    priced = supplied = 0
    for charge in charges:
        if charge.list_cost is not None:
            priced += 1
            supplied += charge.sku_meter == "provider_cost"
            listed = EXACT.add(listed, charge.list_cost)
            contracted = EXACT.add(contracted, charge.contracted_cost or ZERO)
            billed = EXACT.add(billed, charge.billed_cost or ZERO)
    frozen = frozenset(flags) if flags else _NO_FLAGS
    if priced < len(charges):
        if not priced:
            return Rating(charges, cost_source="unpriced", flags=frozen, price_list_hash=price_list_hash)
        return Rating(charges, listed, contracted, billed, "unpriced", frozen, price_list_hash)
    source: CostSource = "computed"
    if charges and supplied == priced:
        source = "billed"
    elif estimated:
        source = "estimated"
    return Rating(charges, listed, contracted, billed, source, frozen, price_list_hash)
