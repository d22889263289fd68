"""The opening balance of a new budget: what the ledger already holds for its window, counted exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from tokenmeter.budgets.book import BudgetBook
from tokenmeter.budgets.caps import Cap
from tokenmeter.budgets.windows import from_microseconds, microseconds
from tokenmeter.ledger import CounterKey, Entry, Posting
from tokenmeter.money import ZERO
from tokenmeter.pricing import Pricer
from tokenmeter.stores.base import EntryFilter, Store

__all__ = ["open_balances"]

#: A fruitless search through more entries than this leaves a mark, so that it is not repeated at every start.
LONG_SEARCH = 1_000


def open_balances(book: BudgetBook, store: Store, pricer: Pricer, now: datetime) -> None:
    """Give every budget that was never counted before the balance of its current window.

    A budget configured in the middle of a month thereby knows what the month has cost so far. The balance is one
    adjustment entry without cost, recorded once however many processes start at the same time. A budget that is being
    counted already is recognised by the counter of the newest entry it matches. Rate limits open empty.

    Raises:
        StoreUnavailableError: the ledger cannot be read or written.
    """
    marks = {_mark(cap): cap for cap in book.caps.values() if not cap.rolling}
    counters = store.counters(list(marks))
    new = {cap.counter_name: cap for mark, cap in marks.items() if not counters[mark].settled}
    if not new:
        return
    sums, searched = _sums(book, store, pricer, new, microseconds(now))
    for name, cap in new.items():
        balance = sums.get(name, {})
        if (balance and not _is_counted(store, balance)) or (not balance and searched > LONG_SEARCH):
            postings = [Posting(_mark(cap), 1), *(Posting(key, amount) for key, amount in balance.items())]
            store.settle(_entry(cap, now), sorted(postings, key=lambda posting: posting.key))


def _mark(cap: Cap) -> CounterKey:
    return CounterKey(f"{cap.counter_name} opened", "", 0)


def _is_counted(store: Store, keys: Iterable[CounterKey]) -> bool:
    return any(counter.settled for counter in store.counters(list(keys)).values())


def _sums(
    book: BudgetBook, store: Store, pricer: Pricer, caps: dict[str, Cap], now: int
) -> tuple[Mapping[str, Mapping[CounterKey, int]], int]:
    """What the ledger holds for the current windows of `caps`, and how many entries were read for it.

    Takes out of `caps` those that turn out to be counted already.
    """
    starts = {name: cap.spans(now)[0][0] for name, cap in caps.items()}
    sums: defaultdict[str, defaultdict[CounterKey, int]] = defaultdict(lambda: defaultdict(int))
    searched = 0
    since = from_microseconds(min(starts.values()))
    for entry in store.entries(EntryFilter(since=since), newest_first=True):
        searched += 1
        for posting in book.postings(entry, pricer):
            name = posting.key.budget
            if name not in caps or posting.key.window_start != starts[name]:
                continue
            if name not in sums and _is_counted(store, [posting.key]):
                del caps[name]
                continue
            sums[name][posting.key] += posting.amount
        if not caps:
            break
    return sums, searched


def _entry(cap: Cap, now: datetime) -> Entry:
    return Entry(
        kind="adjustment",
        occurred_at=now,
        provider="tokenmeter",
        endpoint="budgets.opening",
        operation="budget_opening",
        list_cost=ZERO,
        contracted_cost=ZERO,
        billed_cost=ZERO,
        flags=(f"budget:{cap.counter_name}",),
        dedup_key=f"budget-opening:{cap.counter_name}",
    )
