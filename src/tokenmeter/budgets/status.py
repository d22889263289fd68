"""Where budgets stand, and whether their counters agree with the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from tokenmeter.budgets.caps import Cap, Keys
from tokenmeter.budgets.raises import raised_key
from tokenmeter.budgets.scopes import parse_scope, value_fits
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.ledger import CounterKey
from tokenmeter.stores.base import Counter, Store

__all__ = ["Balance", "balances"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where one counter of a budget stands.

    Attributes:
        budget: Name of the budget.
        scope: What the counter belongs to, for example ``{"member": "ada"}``; empty for all calls.
        unit: ``usd``, ``tokens`` or ``requests``.
        limit: The limit, raises of this window included, in `unit`.
        spent: What settled calls have used in this window, in `unit`.
        reserved: What calls in flight hold, in `unit`.
        remaining: What is left, ``limit - spent - reserved``; negative when a soft budget is passed.
        window_start: Aware UTC; None for a budget that never resets.
        resets_at: Start of the next window, aware UTC; None when it never resets. For a rate limit: when what was
            used at its busiest is forgotten.
        hard: Whether it stops calls.
    """

    budget: str
    scope: dict[str, str]
    unit: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    remaining: Decimal
    window_start: datetime | None
    resets_at: datetime | None
    hard: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: amounts as decimal strings, instants in ISO 8601."""
        amounts = {name: f"{getattr(self, name):f}" for name in ("limit", "spent", "reserved", "remaining")}
        instants = {
            name: None if (moment := getattr(self, name)) is None else moment.isoformat()
            for name in ("window_start", "resets_at")
        }
        return {
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            **amounts,
            **instants,
            "hard": self.hard,
        }


def balances(caps: Iterable[Cap], store: Store, wanted: Mapping[str, str], at: datetime) -> list[Balance]:
    """Where the budgets stand that concern `wanted`.

    A budget concerns it when none of its scope fields contradicts it and, unless `wanted` or the budget's own scope
    is empty, at least one field is in both. Where a ``"*"`` is left open, every counter of the window is listed.

    Args:
        caps: The budgets.
        store: Holds their counters.
        wanted: Scope values by field (``member``, ..., ``tag:NAME``).
        at: The instant whose windows are meant.
    """
    now = microseconds(at)
    found = [
        (cap, scope, cap.keys(scope, now))
        for cap in caps
        if cap.budget.applies(at) and _concerns(cap.budget.scope, wanted)
        for scope in _scopes(cap, wanted, now, store)
    ]
    named = (key for _, _, keys in found for key, _ in keys)
    raises = (raised_key(keys[0][0]) for _, _, keys in found)
    counters = store.counters([*named, *raises])
    return [_balance(cap, scope, keys, counters) for cap, scope, keys in found]


def _concerns(scope: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    if not scope or not wanted:
        return True
    shared = scope.keys() & wanted.keys()
    return bool(shared) and all(value_fits(scope[name], wanted[name]) for name in shared)


def _scopes(cap: Cap, wanted: Mapping[str, str], now: int, store: Store) -> Iterator[dict[str, str]]:
    scope = cap.budget.scope
    known = {name: wanted[name] if value == "*" and name in wanted else value for name, value in scope.items()}
    if "*" not in known.values():
        yield known
        return
    start = cap.spans(now)[0][0]
    for key, _ in store.all_counters():
        if key.budget == cap.counter_name and key.window_start == start:
            found = parse_scope(key.scope)
            if all(value in ("*", found.get(name)) for name, value in known.items()):
                yield found


def _balance(cap: Cap, scope: dict[str, str], keys: Keys, counters: Mapping[CounterKey, Counter]) -> Balance:
    key, end = max(keys, key=lambda pair: _taken(counters[pair[0]]))
    raised, counter = counters[raised_key(keys[0][0])].settled, counters[key]
    amount = cap.budget.amount
    return Balance(
        budget=cap.budget.name,
        scope=scope,
        unit=cap.unit,
        limit=amount(cap.limit + raised),
        spent=amount(counter.settled + raised),
        reserved=amount(counter.reserved),
        remaining=amount(cap.limit - _taken(counter)),
        window_start=from_microseconds(key.window_start) if end is not None else None,
        resets_at=None if end is None else from_microseconds(end),
        hard=cap.budget.hard,
    )


def _taken(counter: Counter) -> int:
    return counter.settled + counter.reserved
