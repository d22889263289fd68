"""Which period bills what a closed one holds: the one whose closing told it, else the next that is closed.

A manifest says what its closing told, by rate. When an entry was recorded only says where to look first: a ledger that
took another in has closings that never saw its own entries, and clocks of several machines differ.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, time
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from tokenmeter.ledger import Charge, Entry
from tokenmeter.money import EXACT, ZERO
from tokenmeter.periods import Period, floor, zone
from tokenmeter.reports.rated import (
    Rated,
    RateKey,
    add,
    count_told,
    decode,
    find_rate,
    rate_entry,
    rename,
    span_text,
    sum_accounts,
    sum_ledger,
)
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import Document, DocumentQuery
from tokenmeter.stores.naming import NamesNow
from tokenmeter.values import dataclass


class _FiledClosing(NamedTuple):
    """A closing: how many entries it counted, anew of earlier periods too, and of which it took up what came late."""

    period: Period
    document: Document
    entries: int
    recounted: Mapping[str, int]
    took_up: frozenset[str]


class _Amounts(NamedTuple):
    """Sums of a rate, without the rate."""

    quantity: Decimal = ZERO
    list_cost: Decimal = ZERO
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO

    @classmethod
    def of(cls, row: Rated) -> _Amounts:
        return cls(*row[1:5])

    def plus(self, other: _Amounts) -> _Amounts:
        return _Amounts(*map(EXACT.add, self, other))

    def minus(self, other: _Amounts) -> _Amounts:
        return _Amounts(*map(EXACT.subtract, self, other))

    def fits(self, room: _Amounts) -> bool:
        return all(0 <= one <= most or most <= one <= 0 for one, most in zip(self, room, strict=True))


class _Piece(NamedTuple):
    """One charge of an entry, or a part of one; ordered by when it was recorded."""

    recorded_at: datetime
    entry_id: str
    position: int
    amounts: _Amounts


@dataclass(slots=True)
class _Placing:
    """Where the charges of one closed period go that its own closing did not tell, or may not have.

    Attributes:
        settled: Accounts and kinds that its closing told whole, and nothing since; None = all of them.
        rates: Rates that one closing told whole, by its number; the number after the last is the next one.
        parts: Entry and position of a charge -> number of a closing, and how much of it that closing told.
    """

    settled: frozenset[tuple[Any, ...]] | None
    rates: dict[RateKey, int] = field(default_factory=dict[RateKey, int])
    parts: dict[tuple[str, int], list[tuple[int, _Amounts]]] = field(
        default_factory=dict[tuple[str, int], list[tuple[int, _Amounts]]]
    )


class Closings:
    """Which period bills an entry: the one that holds it, or, once that is closed, the one whose closing told it.

    Args:
        store: The ledger whose closings they are; None = nothing is ever closed.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._closed: list[_FiledClosing] = []
        told_at: list[datetime] = []
        for document in () if store is None else store.documents(DocumentQuery("period")):
            body = json.loads(document.body)
            took_up = frozenset(span_text(_period(late["period"])) for late in body["late"])
            counts = body["entries"], body.get("recounted", {})
            self._closed.append(_FiledClosing(_period(body["period"]), document, *counts, took_up))
            # A document that came along with another ledger is filed later than it was made.
            told_at.append(min(document.recorded_at, datetime.fromisoformat(body["closed_at"])))
        self._names = NamesNow(store) if store is not None and self._closed else None
        # Clocks of several machines may differ; the order of the filings does not.
        self._told_at = list(accumulate(told_at, max))
        # No two hold the same moment.
        self._order = sorted(range(len(self._closed)), key=lambda at: self._closed[at].period.start)
        self._starts = [self._closed[at].period.start for at in self._order]
        self._plans: dict[int, _Placing] = {}

    def place(
        self, entry: Entry, position: int, charge: Charge, hour: Period, month: Period
    ) -> Iterable[tuple[datetime, Period, Charge]]:
        """An instant of the period that bills a charge, the month that stands for it, and the charge.

        The month is the entry's own, unless it is late. Where two closings told of one charge, each has its part.

        Args:
            entry: The entry.
            position: Which of its charges; the number after the last = the cost that none of them explains.
            charge: The charge.
            hour: The entry's hour.
            month: The entry's month.
        """
        if not self._closed:
            # Where nothing is ever closed, a month is taken to be billed once it is over.
            if entry.kind in {"correction", "reversal"} and entry.recorded_at >= month.end:
                month = floor(entry.recorded_at, "month", month.tz)
                return [(month.start, month, charge)]
            return [(hour.start, month, charge)]
        found = bisect_right(self._starts, entry.occurred_at) - 1
        closing = self._order[found]
        if found < 0 or entry.occurred_at not in self._closed[closing].period:
            return [(hour.start, month, charge)]  # which is open still
        if closing not in self._plans:
            self._plans[closing] = self._plan(closing)
        plan = self._plans[closing]
        if (parts := plan.parts.get((entry.entry_id, position))) is not None:
            whole = len(parts) == 1
            return [
                (*self._billed_by(at, closing, month), charge if whole else _cut(charge, amounts))
                for at, amounts in parts
            ]
        rate = _bare(find_rate(entry, charge if position < len(entry.charges) else None))
        if plan.settled is None or (*rate.account, rate.kind) in plan.settled:
            told_by = closing
        else:
            told_by = plan.rates.get(rate, self._guess(entry, closing))
        return [(*self._billed_by(told_by, closing, month), charge)]

    def _billed_by(self, told_by: int, closing: int, month: Period) -> tuple[datetime, Period]:
        if told_by == closing:
            return self._closed[closing].period.start, month
        if told_by < len(self._closed):
            period = self._closed[told_by].period
            at, named = period.start, period.tz
        else:
            at, named = self._next
        # The month by the calendar of the books, whatever the zone in which rows are cut.
        noon = datetime.combine(at.astimezone(zone(named)).date(), time(12), zone(month.tz))
        return at, floor(noon, "month", month.tz)

    @cached_property
    def _next(self) -> tuple[datetime, str]:
        """An instant of the period that takes up what waits: the first with use after the last that is closed."""
        last = self._closed[self._order[-1]].period
        used = None if self._store is None else self._store.span(last.end, None)
        return last.end if used is None else used[0], last.tz

    def _guess(self, entry: Entry, closing: int) -> int:
        """The closing that tells an entry, as far as clocks can say."""
        return max(closing, bisect_left(self._told_at, entry.recorded_at))

    def _plan(self, closing: int) -> _Placing:
        if self._store is None or self._names is None:
            return _Placing(None)
        period = self._closed[closing].period
        told = self._read_told(closing, self._names)
        own, ledger = sum_accounts(told[closing].values()), sum_ledger(self._store, period)
        later = {(*rate.account, rate.kind) for at, rows in told.items() if at != closing for rate in rows}
        counted = self._is_counted(closing)
        if own == ledger and not later and counted:
            return _Placing(None)
        same = [one for one, costs in ledger.items() if own.get(one) == costs and one not in later]
        # Usage without a price changes no account's costs: whose it is, the entries say.
        plan = _Placing(frozenset(same if counted else ()))
        guessed: dict[RateKey, dict[int, _Amounts]] = {}
        for entry, _, row in self._unsettled(period, plan):
            sums = guessed.setdefault(row.rate, {})
            at = self._guess(entry, closing)
            sums[at] = sums.get(at, _Amounts()).plus(_Amounts.of(row))
        mixed: dict[RateKey, list[tuple[int, _Amounts]]] = {}
        for rate, sums in guessed.items():
            wanted = [
                (at, _Amounts.of(rows[rate])) for at, rows in told.items() if rate in rows and any(rows[rate][1:5])
            ]
            guess = {at: amounts for at, amounts in sums.items() if at < len(self._closed) and any(amounts)}
            if guess == dict(wanted):
                continue
            if not wanted:
                plan.rates[rate] = len(self._closed)
            elif len(wanted) == 1 and wanted[0][1] == _add_up(sums.values()):
                plan.rates[rate] = wanted[0][0]
            else:
                mixed[rate] = wanted
        if mixed:
            self._divide(period, plan, mixed)
        return plan

    def _is_counted(self, closing: int) -> bool:
        """Whether the closings have told as many entries of a closed period as it has."""
        if self._store is None:
            return True
        period, span = self._closed[closing].period, span_text(self._closed[closing].period)
        later = ((one.recounted, span in one.took_up) for one in self._closed)
        told = count_told(span, self._closed[closing].entries, later)
        return told == sum(sums.entries for sums in self._store.aggregate([period.start, period.end], []))

    def _divide(self, period: Period, plan: _Placing, mixed: Mapping[RateKey, Sequence[tuple[int, _Amounts]]]) -> None:
        """Share out charges of rates that several closings told, the first that were recorded to the first of them."""
        pieces: dict[RateKey, list[_Piece]] = {rate: [] for rate in mixed}
        for entry, position, row in self._unsettled(period, plan):
            if row.rate in pieces:
                piece = _Piece(entry.recorded_at, entry.entry_id, position, _Amounts.of(row))
                pieces[row.rate].append(piece)
        for rate, wanted in mixed.items():
            left = sorted(pieces[rate])
            for at, amounts in wanted:
                taken, left = _take(left, amounts)
                for piece in taken:
                    plan.parts.setdefault(piece[1:3], []).append((at, piece.amounts))
            for piece in left:
                plan.parts.setdefault(piece[1:3], []).append((len(self._closed), piece.amounts))

    def _unsettled(self, period: Period, plan: _Placing) -> Iterator[tuple[Entry, int, Rated]]:
        """The charges of a period that are not settled, with their position, by rate as manifests are compared."""
        if self._store is None or plan.settled is None:
            return
        for entry in self._store.entries(EntryFilter(since=period.start, until=period.end)):
            for position, row in enumerate(rate_entry(entry)):
                rate = _bare(row.rate)
                if (*rate.account, rate.kind) not in plan.settled:
                    yield entry, position, row._replace(rate=rate)

    def _read_told(self, closing: int, names: NamesNow) -> dict[int, dict[RateKey, Rated]]:
        """What was told of a closed period, under today's names: number of a closing -> rows by rate."""
        told: dict[int, dict[RateKey, Rated]] = {}
        period = self._closed[closing].period
        for at, one in enumerate(self._closed[closing:], closing):
            body = json.loads(one.document.body)
            late = [each["rows"] for each in body["late"] if _period(each["period"]) == period]
            encoded = [body["rows"]] if at == closing else late
            if encoded:
                rows = rename(decode(row for part in encoded for row in part), names, one.document)
                told[at] = add(row._replace(rate=_bare(row.rate)) for row in rows)
        return told


def _period(told: Mapping[str, str]) -> Period:
    return Period(datetime.fromisoformat(told["start"]), datetime.fromisoformat(told["end"]), told["tz"])


def _bare(rate: RateKey) -> RateKey:
    """A rate without what the first manifests lack, and what its price says as well."""
    return rate._replace(fingerprint=None, conditions="")


def _add_up(amounts: Iterable[_Amounts]) -> _Amounts:
    result = _Amounts()
    for one in amounts:
        result = result.plus(one)
    return result


def _take(pieces: list[_Piece], wanted: _Amounts) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces that come to what is wanted, exactly, and those that are left; if need be one is cut in two.

    They are the first, if some first of them fit, else the first of those that do.
    """
    if not pieces:
        return [], []
    for count, so_far in enumerate(accumulate((piece.amounts for piece in pieces), _Amounts.plus), 1):
        if so_far == wanted:
            return pieces[:count], pieces[count:]
    taken: list[_Piece] = []
    left: list[_Piece] = []
    for piece in pieces:
        fits = piece.amounts.fits(wanted)
        (taken if fits else left).append(piece)
        if fits:
            wanted = wanted.minus(piece.amounts)
    if any(wanted):
        if left:
            cut = left.pop(0)
            part = wanted
        else:
            cut = taken.pop()
            part = cut.amounts.plus(wanted)
        taken.append(cut._replace(amounts=part))
        left.insert(0, cut._replace(amounts=cut.amounts.minus(part)))
    return taken, left


def _cut(charge: Charge, amounts: _Amounts) -> Charge:
    """A part of a charge. A cost that is unknown stays so."""
    told = amounts._asdict()
    return replace(charge, **{name: told[name] for name in told if getattr(charge, name) is not None})
