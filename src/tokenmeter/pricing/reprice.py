"""Rating again what was recorded without a price. Nothing recorded changes: the difference is a further entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tokenmeter.ledger import Charge, Entry, new_id, utcnow
from tokenmeter.money import add, negate
from tokenmeter.pricing.pricer import Pricer
from tokenmeter.pricing.wanted import Wanted
from tokenmeter.usage import Consumption, Observation, Quantity, Usage

__all__ = ["correction"]

_ESTIMATED = "estimated"


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
    if not unpriced or entry.kind != "usage":
        return None
    rating = pricer.rate(
        Observation(consumptions=tuple(_groups(entry, unpriced))),
        provider=entry.provider,
        endpoint=entry.endpoint,
        at=entry.occurred_at,
        api_key=entry.api_key,
        attribution=entry.attribution,
    )
    if rating.cost_source == "unpriced":
        return None
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
        charges=(*(_taken_back(charge) for charge in unpriced), *rating.charges),
        list_cost=rating.list_cost,
        contracted_cost=rating.contracted_cost,
        billed_cost=rating.billed_cost,
        cost_source="estimated" if _ESTIMATED in entry.flags else rating.cost_source,
        flags=tuple(sorted({*rating.flags, "repriced"})),
        price_list_hash=pricer.price_list_hash,
        corrects=entry.entry_id,
        dedup_key=f"correction:{entry.entry_id}",
    )


def _groups(entry: Entry, unpriced: Iterable[Charge]) -> Iterable[Consumption]:
    """The unpriced lines as the charge groups they were, each in its own context."""
    groups: dict[tuple[str | None, str, Wanted], dict[str, Quantity]] = {}
    for charge in unpriced:
        wanted = Wanted.parse(charge.price_id) or Wanted(service_tier=entry.service_tier)
        quantities = groups.setdefault((charge.model, charge.role, wanted), {})
        quantities[charge.sku_meter] = add(quantities.get(charge.sku_meter, 0), charge.quantity)
    for (model, role, wanted), quantities in groups.items():
        yield wanted.consumption(model, Usage(quantities), role)


def _taken_back(charge: Charge) -> Charge:
    return replace(charge, quantity=negate(charge.quantity))
