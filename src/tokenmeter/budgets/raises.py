"""One-off raises of a budget, as ledger entries: who, why, how much, in which window.

A raise is an adjustment entry without cost. Settling it takes the amount off the window's counter, so every process
sees it with its next call and nothing has to be read before a call; a second counter remembers the sum of raises, so
that limits and spending are shown as they are.
"""

from __future__ import annotations

from datetime import datetime

from tokenmeter.attribution import DIMENSIONS, Attribution
from tokenmeter.budgets.caps import Cap
from tokenmeter.budgets.scopes import scope_text
from tokenmeter.budgets.windows import microseconds
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import CounterKey, Entry, Posting
from tokenmeter.money import ZERO, parse_decimal, to_picodollars

__all__ = ["ENDPOINT", "is_raise", "raise_entry", "raise_postings", "raised_key"]

ENDPOINT = "budgets.raise"
_PROVIDER = "tokenmeter"


def raise_entry(cap: Cap, scope: dict[str, str], amount: object, *, by: str, reason: str, at: datetime) -> Entry:
    """The entry that raises one counter of `cap` in the window around `at`.

    Args:
        cap: The budget.
        scope: Its counter's scope values.
        amount: How much is added to the limit, in the budget's unit.
        by: Who decided it.
        reason: Why.
        at: An instant in the window.

    Raises:
        ConfigurationError: a rate limit, an amount that is not positive, or no name or reason given.
    """
    if cap.rolling:
        raise ConfigurationError(f"Budget {cap.budget.name!r} is a rate limit; change its limit instead of raising it.")
    number = parse_decimal(amount, name="amount")
    whole = number.scaleb(12) if cap.unit == "usd" else number
    if number <= 0 or whole != int(whole):
        raise ConfigurationError(f"amount must be a positive number of {cap.unit}, not {number}.")
    tags = {
        "budget": cap.budget.name,
        "budget_counter": cap.counter_name,
        "budget_scope": scope_text(scope) or "all",
        "budget_raise": f"{number:f}",
        "raised_by": by,
        "reason": reason,
    }
    return Entry(
        kind="adjustment",
        occurred_at=at,
        provider=_PROVIDER,
        endpoint=ENDPOINT,
        operation="budget_raise",
        attribution=Attribution(**{name: scope.get(name) for name in DIMENSIONS}, tags=tags),
        list_cost=ZERO,
        contracted_cost=ZERO,
        billed_cost=ZERO,
    )


def is_raise(entry: Entry) -> bool:
    """Whether `entry` is a raise and nothing else."""
    return entry.kind == "adjustment" and entry.endpoint == ENDPOINT and entry.provider == _PROVIDER


def raise_postings(entry: Entry, caps: dict[str, Cap]) -> tuple[Posting, ...]:
    """What a raise does to the counters; nothing when its budget is no longer configured."""
    tags = entry.attribution.tags
    cap = caps.get(tags["budget_counter"])
    if cap is None:
        return ()
    number = parse_decimal(tags["budget_raise"], name="budget_raise")
    amount = to_picodollars(number) if cap.unit == "usd" else int(number)
    scope = "" if tags["budget_scope"] == "all" else tags["budget_scope"]
    start, end = cap.spans(microseconds(entry.occurred_at))[0]
    key = CounterKey(cap.counter_name, scope, start)
    return Posting(key, -amount, (), end), Posting(raised_key(key), amount, (), end)


def raised_key(key: CounterKey) -> CounterKey:
    """The counter that sums up a window's raises."""
    return CounterKey(f"{key.budget} raised", key.scope, key.window_start)
