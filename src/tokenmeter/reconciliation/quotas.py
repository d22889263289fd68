"""Free quotas: what a provider gives free of charge each day or month, counted over the ledger and credited.

A quota belongs to a project, and processes on several machines use it up together, so that no call can know whether it
is free: every call is priced at the list, and what was free is credited afterwards. In each window the first units, by
the time of their calls, are the free ones; each is credited with what it cost on the account of its call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fnmatch import fnmatchcase
from itertools import compress
from typing import Any, NamedTuple

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.ledger import Charge, Entry, utcnow
from tokenmeter.meter import Meter
from tokenmeter.money import EXACT, ONE, ZERO, add, quantize, subtract, total
from tokenmeter.periods import Period, buckets, floor, parse_instant, parse_period
from tokenmeter.pricing.price import FreeQuota
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.usage import Quantity
from tokenmeter.values import dataclass

ENDPOINT = "free_quota"


class _QuotaAccount(NamedTuple):
    """Whose credit it is."""

    attribution: Attribution
    api_key: ApiKey | None
    model: str | None


@dataclass(slots=True)
class Credit:
    """What one account gets back of one window.

    Attributes:
        attribution: On whose account the calls were.
        api_key: Their key.
        model: Their model.
        quantity: Units that were free.
        contracted_cost: What they cost upstream, US dollars.
        billed_cost: The same with the platform multiplier.
    """

    attribution: Attribution
    api_key: ApiKey | None
    model: str | None
    quantity: Quantity = 0
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """One quota in one of its windows.

    Attributes:
        quota: The quota.
        window: The day or month, in the quota's time zone.
        used: Units that the ledger has.
        free: Of these, how many were free.
        unpriced: Free units whose price is not known: there is nothing to be credited for them.
        credits: By account, for the free ones.
        open: Whether the window goes on: more may come.
    """

    quota: FreeQuota
    window: Period
    used: Quantity
    free: Quantity
    unpriced: Quantity
    credits: tuple[Credit, ...] = field(repr=False)
    open: bool = False

    @property
    def credit(self) -> Decimal:
        """US dollars to be credited, upstream."""
        total = ZERO
        for one in self.credits:
            total = EXACT.add(total, one.contracted_cost)
        return total

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "quota": self.quota.name,
            "window": self.window.label,
            "used": _number(self.used),
            "free": _number(self.free),
            "limit": self.quota.quantity,
            "unpriced": _number(self.unpriced),
            "credit": f"{self.credit:f}",
            "open": self.open,
        }


@tell_wrong_arguments
def count_free_quotas(meter: Meter, period: str | Period, *, now: datetime | None = None) -> list[QuotaUse]:
    """How much of each free quota (setting ``free_quotas``) was used in the windows that `period` touches.

    Reads the entries of each provider once, one at a time, whatever the number of its quotas and their windows.

    Args:
        meter: Whose ledger and terms.
        period: ``2026-11``, ``last-month``, ... in each quota's own time zone.
        now: Instant for relative periods and for which windows are over; default: now.

    Returns:
        Per quota and window in which something was used, oldest first.
    """
    moment = utcnow() if now is None else parse_instant(now)
    if not isinstance(period, Period):
        parse_period(period, "UTC", now=moment)  # a wrong one is refused without a quota, too
    counting: dict[str, list[_Counting]] = {}  # by provider
    for quota in meter.pricer.terms.free_quotas:
        whole = parse_period(period, quota.tz, now=moment) if isinstance(period, str) else replace(period, tz=quota.tz)
        windows = [floor(part.start, quota.per, quota.tz) for part in buckets(whole, quota.per)]
        counting.setdefault(quota.provider, []).append(_Counting(quota, windows, moment))
    for provider, quotas in counting.items():
        since, until = min(one.windows[0].start for one in quotas), max(one.windows[-1].end for one in quotas)
        which = EntryFilter(since=since, until=until, where={"provider": frozenset([provider])})
        for entry in meter.store.entries(which):
            if entry.kind != "adjustment":
                for one in quotas:
                    one.take(entry)
    order = {quota.name: place for place, quota in enumerate(meter.pricer.terms.free_quotas)}
    ended = sorted((one for quotas in counting.values() for one in quotas), key=lambda one: order[one.quota.name])
    return [use for one in ended for use in one.uses()]


@tell_wrong_arguments
def post_free_quotas(meter: Meter, uses: Iterable[QuotaUse]) -> list[Entry]:
    """Append what is to be credited as adjustments, on the last instant of each window; each is posted once.

    Where calls of a window came late, and more turned out to be free, a further run posts the difference. Windows that
    go on are left for later.

    Args:
        meter: Whose ledger and budgets.
        uses: From `count_free_quotas`.

    Returns:
        The entries that were appended.
    """
    entries = [entry for use in uses if not use.open for entry in _entries(meter.store, use)]
    return list(compress(entries, meter.post_all(entries)))


class _QuotaLine(NamedTuple):
    at: datetime
    entry_id: str
    account: _QuotaAccount
    quantity: Quantity
    contracted: Decimal | None
    billed: Decimal | None


class _Counting:
    """One quota over its windows, of entries in the order of their time."""

    def __init__(self, quota: FreeQuota, windows: Sequence[Period], now: datetime) -> None:
        self.quota, self.windows, self._now = quota, windows, now
        self._place, self._found = 0, list[QuotaUse]()
        self._calls: dict[tuple[str, str | None], _QuotaLine] = {}
        self._unknown: dict[tuple[str, str | None], Quantity] = {}

    def take(self, entry: Entry) -> None:
        """Count an entry in."""
        while self._place < len(self.windows) and entry.occurred_at >= self.windows[self._place].end:
            self._end_window()
        if self._place == len(self.windows) or entry.occurred_at < self.windows[self._place].start:
            return
        quota, key = self.quota, entry.api_key
        named = {key.alias, key.label} if key is not None else set[str | None]()
        if not quota.holds(entry.occurred_at) or (quota.api_keys and named.isdisjoint(quota.api_keys)):
            return
        for charge in entry.charges:
            model = charge.model or entry.model
            if charge.sku_meter == quota.sku_meter and _fits(model, quota.models):
                call = entry.corrects or entry.entry_id, model  # a correction takes lines of its call back
                account = _QuotaAccount(entry.attribution, key, model)
                before = self._calls.get(call) or _QuotaLine(entry.occurred_at, call[0], account, 0, ZERO, ZERO)
                if charge.contracted_cost is None or charge.billed_cost is None:
                    self._unknown[call] = add(self._unknown.get(call, 0), charge.quantity)
                self._calls[call] = before._replace(
                    quantity=add(before.quantity, charge.quantity),
                    contracted=add(before.contracted or ZERO, charge.contracted_cost or ZERO),
                    billed=add(before.billed or ZERO, charge.billed_cost or ZERO),
                )

    def uses(self) -> list[QuotaUse]:
        """Of each window in which something was used, what was; no further entry is taken."""
        while self._place < len(self.windows):
            self._end_window()
        return self._found

    def _end_window(self) -> None:
        lines = [
            line._replace(contracted=None, billed=None) if self._unknown.get(call) else line
            for call, line in self._calls.items()
            if line.quantity > 0
        ]
        if lines:
            self._found.append(_use(self.quota, self.windows[self._place], lines, self._now))
        self._place += 1
        self._calls, self._unknown = {}, {}


def _use(quota: FreeQuota, window: Period, used_by: Iterable[_QuotaLine], now: datetime) -> QuotaUse:
    lines = sorted(used_by, key=lambda line: line[:2])
    left: Quantity = quota.quantity
    unpriced: Quantity = 0
    credits_: dict[_QuotaAccount, Credit] = {}
    for line in lines:
        free = min(line.quantity, left)
        left = subtract(left, free)
        if not free:
            break
        if line.contracted is None or line.billed is None:
            unpriced = add(unpriced, free)
            continue
        credit = credits_.setdefault(line.account, Credit(*line.account))
        credit.quantity = add(credit.quantity, free)
        credit.contracted_cost = EXACT.add(credit.contracted_cost, _share(line.contracted, free, line.quantity))
        credit.billed_cost = EXACT.add(credit.billed_cost, _share(line.billed, free, line.quantity))
    used = _whole(total(line.quantity for line in lines))
    free = _whole(subtract(quota.quantity, left))
    return QuotaUse(quota, window, used, free, unpriced, tuple(credits_.values()), window.end > now)


def _whole(number: Quantity) -> Quantity:
    return int(number) if number == int(number) else number


def _number(number: Quantity) -> int | str:
    return number if isinstance(number, int) else f"{number:f}"


def _share(cost: Decimal, part: Quantity, whole: Quantity) -> Decimal:
    return cost if part == whole else quantize(EXACT.divide(EXACT.multiply(cost, part), whole))


def _fits(model: str | None, patterns: tuple[str, ...]) -> bool:
    return not patterns or (model is not None and any(fnmatchcase(model.lower(), pattern) for pattern in patterns))


def _entries(store: Store, use: QuotaUse) -> Iterator[Entry]:
    posted = _posted(store, use)
    due = {_QuotaAccount(one.attribution, one.api_key, one.model): one for one in use.credits}
    for account in dict.fromkeys((*due, *posted)):  # also whose free units earlier calls turned out to have taken
        contracted, billed, times = posted.get(account, (ZERO, ZERO, 0))
        credit = due.get(account) or Credit(*account)
        upstream = EXACT.subtract(EXACT.minus(credit.contracted_cost), contracted)
        ours = EXACT.subtract(EXACT.minus(credit.billed_cost), billed)
        if upstream or ours:
            yield _entry(use, account, upstream, ours, times)


def _posted(store: Store, use: QuotaUse) -> dict[_QuotaAccount, tuple[Decimal, Decimal, int]]:
    """What was credited of this window before, by account, and in how many entries."""
    which = EntryFilter(since=use.window.start, until=use.window.end, where={"endpoint": frozenset([ENDPOINT])})
    sums: dict[_QuotaAccount, tuple[Decimal, Decimal, int]] = {}
    for entry in store.entries(which):
        if entry.kind == "adjustment" and entry.dedup_key and entry.dedup_key.startswith(_name(use)):
            account = _QuotaAccount(entry.attribution, entry.api_key, entry.request_model)
            contracted, billed, times = sums.get(account, (ZERO, ZERO, 0))
            sums[account] = (
                EXACT.add(contracted, entry.contracted_cost or ZERO),
                EXACT.add(billed, entry.billed_cost or ZERO),
                times + 1,
            )
    return sums


def _name(use: QuotaUse) -> str:
    return f"{ENDPOINT}:{use.quota.provider}:{use.quota.name}:{use.window.label}:"


def _entry(use: QuotaUse, account: _QuotaAccount, upstream: Decimal, ours: Decimal, times: int) -> Entry:
    factor = quantize(EXACT.divide(ours, upstream)) if upstream else ONE
    charge = Charge(
        model=account.model,
        sku_meter="adjustment",
        quantity=upstream,
        unit="USD",
        list_unit_price=ONE,
        multipliers={} if factor == ONE else {"platform": factor},
        list_cost=upstream,
        contracted_cost=upstream,
        billed_cost=ours,
        source=f"free quota: {use.quota.name}",
    )
    named = repr((account.attribution, account.api_key and account.api_key.label, account.model))
    who = hashlib.sha256(named.encode()).hexdigest()[:16]  # no name in a key, which an erasure could not reach
    return Entry(
        kind="adjustment",
        occurred_at=use.window.end - timedelta(microseconds=1),
        provider=use.quota.provider,
        endpoint=ENDPOINT,
        operation=ENDPOINT,
        request_model=account.model,
        api_key=account.api_key,
        attribution=account.attribution,
        charges=(charge,),
        list_cost=upstream,
        contracted_cost=upstream,
        billed_cost=ours,
        cost_source="billed",
        flags=("free_quota",),
        dedup_key=f"{_name(use)}{who}:{times}:{upstream}",
    )
