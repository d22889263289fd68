"""The budgets' counters, checked against the ledger. The ledger is the truth; counters can be made anew from it."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from tokenmeter.budgets.book import BudgetBook
from tokenmeter.budgets.raises import raised_key
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.ledger import CounterKey
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import Fault, Store

__all__ = ["audit_counters", "recount"]


def recount(book: BudgetBook, store: Store, pricer: Pricer) -> dict[CounterKey, int]:
    """What every counter of the configured budgets should hold, by the ledger alone."""
    sums: defaultdict[CounterKey, int] = defaultdict(int)
    for entry in store.entries():
        for posting in book.postings(entry, pricer):
            sums[posting.key] += posting.amount
    return dict(sums)


def audit_counters(
    book: BudgetBook, store: Store, pricer: Pricer, *, now: datetime, repair: bool = False
) -> tuple[Fault, ...]:
    """Counters of configured budgets that differ from the ledger.

    A counter that moves while the ledger is read is not judged. A budget that was configured in the middle of a window
    differs by what was spent before; `repair` brings it up to date.

    Args:
        book: The budgets.
        store: Their ledger and counters.
        pricer: For tokens whose price is not known.
        now: Windows of rate limits that ended before are left alone.
        repair: Set the counters that differ to what the ledger says.

    Returns:
        One fault of kind ``counter`` for each that differs (before the repair).
    """
    before = _counters(book, store)
    due = recount(book, store, pricer)
    after = _counters(book, store)
    still = {key for key in due.keys() | before.keys() if before.get(key, 0) == after.get(key, 0)}
    moment = microseconds(now)
    wrong = sorted(key for key in still if due.get(key, 0) != before.get(key, 0) and not _is_over(book, key, moment))
    if repair and wrong:
        store.set_counters({key: due.get(key, 0) for key in wrong})
    return tuple(_fault(book, key, before.get(key, 0), due.get(key, 0)) for key in wrong)


def _counters(book: BudgetBook, store: Store) -> dict[CounterKey, int]:
    names = {name for cap in book.caps for name in (cap, raised_key(CounterKey(cap, "", 0)).budget)}
    return {key: counter.settled for key, counter in store.all_counters() if key.budget in names}


def _is_over(book: BudgetBook, key: CounterKey, now: int) -> bool:
    cap = book.caps.get(key.budget)
    return cap is not None and cap.rolling and key.window_start < cap.spans(now)[0][0]


def _fault(book: BudgetBook, key: CounterKey, held: int, due: int) -> Fault:
    cap = book.caps.get(key.budget)
    amount = cap.budget.amount if cap else str
    where = f"{key.budget} {key.scope or 'all'} {from_microseconds(key.window_start):%Y-%m-%dT%H:%MZ}"
    return Fault("counter", where, f"the counter says {amount(held)}, the ledger {amount(due)}")
