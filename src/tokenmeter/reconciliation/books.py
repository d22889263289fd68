"""Our side: the ledger's entries in the buckets of a provider's statement."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from decimal import Decimal

from tokenmeter.ledger import Entry
from tokenmeter.money import EXACT, ZERO
from tokenmeter.reconciliation.statement import Bucket, ProviderStatement, class_of
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.usage import Quantity

__all__ = ["Side", "align_models", "read_ledger"]

_TOOL_UNITS = frozenset({"Searches", "Sessions"})
_DATED = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8})$")


@dataclass(slots=True)
class Side:
    """One side of a bucket.

    Attributes:
        tokens: Class -> count of what is billed.
        waived: Class -> count of answers that the provider does not bill (refusals); ours only.
        requests: Calls; None when the statement does not say.
        cost: US dollars, exact; None when there is none to compare.
        lines: How many amounts `cost` is the sum of.
        unpriced: Calls of ours whose price is unknown.
        estimated: Calls of ours whose usage is estimated.
        adjusted: The part of `cost` that adjustments have posted.
    """

    tokens: dict[str, int] = field(default_factory=dict[str, int])
    waived: dict[str, int] = field(default_factory=dict[str, int])
    requests: int | None = None
    cost: Decimal | None = None
    lines: int = 0
    unpriced: int = 0
    estimated: int = 0
    adjusted: Decimal = ZERO

    def count(self, tokens: Mapping[str, int]) -> None:
        """Add billed tokens."""
        for name, count in tokens.items():
            self.tokens[name] = self.tokens.get(name, 0) + count

    def bill(self, amount: Decimal) -> None:
        """Add a cost."""
        self.cost = EXACT.add(self.cost or ZERO, amount)
        self.lines += 1

    @property
    def total_tokens(self) -> int:
        """All token classes together."""
        return sum(count for name, count in self.tokens.items() if name != "web_searches")


def read_ledger(store: Store, statement: ProviderStatement) -> dict[Bucket, Side]:
    """The ledger in the statement's buckets. Reads the period's entries once, one at a time."""
    which = EntryFilter(
        since=statement.period.start,
        until=statement.period.end,
        where={"provider": frozenset([statement.provider])},
    )
    reader = _Reader(statement)
    for entry in store.entries(which):
        reader.read(entry)
    return reader.sides


class _Reader:
    def __init__(self, statement: ProviderStatement) -> None:
        self.sides: dict[Bucket, Side] = {}
        self._statement = statement
        # A provider that bills tools without naming a model is compared with all of them together.
        self._tools_apart = any(cost.amount and cost.bucket.model is None for cost in statement.costs or ())

    def read(self, entry: Entry) -> None:
        counted = self._statement.usage is not None and not entry.endpoint.startswith(self._statement.tokenless or "\0")
        sign = 1 if entry.kind == "usage" else -1
        if counted and (entry.kind == "usage" or entry.usage):
            self._count(entry, sign)
        if self._statement.costs is not None:
            self._bill(entry)

    def _count(self, entry: Entry, sign: int) -> None:
        main = self._side(entry, entry.model)
        if not entry.charges:
            counts = _classes(entry.usage.quantities.items(), self._statement.classes)
            if entry.cost_source == "none":
                for name, count in counts.items():
                    main.waived[name] = main.waived.get(name, 0) + count
                return
            main.count(counts)
        for charge in entry.charges:
            quantities = [(charge.sku_meter, charge.quantity)]
            self._side(entry, charge.model or entry.model).count(_classes(quantities, self._statement.classes))
        if entry.usage:
            main.requests = (main.requests or 0) + sign
            main.estimated += sign * (entry.cost_source == "estimated" or "estimated" in entry.flags)

    def _bill(self, entry: Entry) -> None:
        rest = entry.contracted_cost or ZERO
        for charge in entry.charges:
            apart = self._tools_apart and charge.unit in _TOOL_UNITS
            side = self._side(entry, None if apart else charge.model or entry.model)
            if charge.contracted_cost is None:
                side.unpriced += 1
                continue
            side.bill(charge.contracted_cost)
            rest = EXACT.subtract(rest, charge.contracted_cost)
            if entry.kind == "adjustment":
                side.adjusted += charge.contracted_cost
        if rest:
            self._side(entry, entry.model).bill(rest)

    def _side(self, entry: Entry, model: str | None) -> Side:
        key = entry.api_key
        told = {
            "model": model,
            "api_key": None if key is None else key.label,
            "service_tier": entry.service_tier,
        }
        day = entry.occurred_at.astimezone(UTC).date()
        bucket = Bucket(day, **{name: told[name] for name in self._statement.grain})
        return self.sides.setdefault(bucket, Side())


def _classes(quantities: Iterable[tuple[str, Quantity]], classes: Collection[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sku_meter, quantity in quantities:
        name = class_of(sku_meter)
        if name is not None and name in classes:
            counts[name] = counts.get(name, 0) + int(quantity)
    return counts


def align_models(ours: Collection[str | None], theirs: Collection[str | None]) -> Callable[[str | None], str | None]:
    """How to name models so that both sides name them alike.

    A name that both know stays. Where one says ``gpt-5-2025-08-07`` and the other ``gpt-5``, both become ``gpt-5``.
    """
    bases = [{_base(name) for name in names if name} for names in (ours, theirs)]
    alone = {_base(name) for name in set(ours) ^ set(theirs) if name}
    merged = alone & bases[0] & bases[1]
    return lambda name: _base(name) if name and _base(name) in merged else name


def _base(model: str) -> str:
    return _DATED.sub("", model)
