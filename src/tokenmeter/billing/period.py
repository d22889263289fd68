"""Closing a period: what it came to is written down once; what arrives later is a correction in the next one.

Late is what the ledger holds of a closed period and no closing has told yet. It is found by comparing the ledger with
what was told, not by clocks, so that an entry which waited in a spool or settled during the closing is never lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from tokenmeter.arguments import tell_wrong_arguments
from tokenmeter.display import counted
from tokenmeter.errors import LedgerError
from tokenmeter.ledger import utcnow
from tokenmeter.money import COSTS, ZERO, Costs, subtract, total
from tokenmeter.periods import Period, parse_instant, parse_period, zone
from tokenmeter.reports.rated import (
    Rated,
    RateKey,
    Tally,
    add,
    count_told,
    decode,
    encode,
    minus,
    rename,
    span_text,
    sum_accounts,
    sum_ledger,
)
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import Document, DocumentQuery, NewDocument
from tokenmeter.stores.naming import NamesNow
from tokenmeter.texts import acting
from tokenmeter.values import dataclass

_KIND = "period"
#: No two zones are further apart.
_WIDEST = timedelta(hours=27)


@dataclass(frozen=True, slots=True)
class Late:
    """What was added to a closed period after its closing.

    Attributes:
        period: The closed period.
        rows: The differences, by rate.
    """

    period: Period
    rows: tuple[Rated, ...]

    @property
    def billed_cost(self) -> Decimal:
        """US dollars, exact."""
        return Costs.total(self.rows).billed_cost

    @property
    def unpriced(self) -> int:
        """Charges whose price is unknown, less those that have one now: what they cost is not in the sum."""
        return sum(row.unpriced for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "period": period_dict(self.period),
            "billed_cost": str(self.billed_cost),
            "unpriced": self.unpriced,
            "rows": encode(self.rows),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedPeriod:
    """The manifest of a closed period, as it is filed in the ledger.

    Attributes:
        period: The stretch of time.
        closed_at: When it was closed, aware UTC.
        closed_by: Who closed it.
        entries: How many entries it had.
        requests: Of these, calls.
        unpriced: Calls with a meter of unknown price: what they cost is not in the sums.
        estimated: Calls whose usage or cost is estimated.
        list_cost: US dollars at public prices, exact.
        contracted_cost: US dollars after discounts.
        billed_cost: US dollars after discounts and platform multiplier.
        rows: What the sums are made of.
        late: Corrections of earlier periods that this closing took up.
        recounted: Earlier period, as `span_text` writes it -> how many entries it had by then, where that had changed.
        document: Where it is filed: its `hash` seals the manifest, its `anchor` the entries.
    """

    period: Period
    closed_at: datetime
    closed_by: str | None = None
    entries: int = 0
    requests: int = 0
    unpriced: int = 0
    estimated: int = 0
    list_cost: Decimal = ZERO
    contracted_cost: Decimal = ZERO
    billed_cost: Decimal = ZERO
    rows: tuple[Rated, ...] = field(default=(), repr=False)
    late: tuple[Late, ...] = ()
    recounted: Mapping[str, int] = field(default_factory=dict[str, int], repr=False)
    document: Document | None = field(default=None, repr=False)

    def __str__(self) -> str:
        seal = f" Seal {self.document.hash[:16]}." if self.document else ""
        late = "".join(f" Corrections of {one.period.label}: {describe_late(one)}." for one in self.late)
        doubts = f" {self.unpriced} unpriced, {self.estimated} estimated." if self.unpriced or self.estimated else ""
        return (
            f"{self.period.label} ({self.period.tz}) closed at {self.closed_at:%Y-%m-%d %H:%M:%S} UTC: "
            f"{counted(self.requests, 'request')}, billed ${self.billed_cost:f}.{late}{doubts}{seal}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest, JSON-ready."""
        return {
            "period": period_dict(self.period),
            "closed_at": self.closed_at.isoformat(),
            "closed_by": self.closed_by,
            **{name: getattr(self, name) for name in ("entries", "requests", "unpriced", "estimated")},
            **{name: str(getattr(self, name)) for name in COSTS},
            "late": [one.to_dict() for one in self.late],
            "recounted": dict(self.recounted),
            "rows": encode(self.rows),
        }

    @classmethod
    def of(cls, document: Document) -> ClosedPeriod:
        """The manifest that `document` holds."""
        body: dict[str, Any] = json.loads(document.body)
        return cls(
            period=period_of(body["period"]),
            closed_at=datetime.fromisoformat(body["closed_at"]),
            closed_by=body["closed_by"],
            entries=body["entries"],
            requests=body["requests"],
            unpriced=body["unpriced"],
            estimated=body["estimated"],
            **{name: Decimal(body[name]) for name in COSTS},
            rows=tuple(decode(body["rows"])),
            late=tuple(Late(period_of(one["period"]), tuple(decode(one["rows"]))) for one in body["late"]),
            recounted=body.get("recounted", {}),
            document=document,
        )


@tell_wrong_arguments
def close_period(
    store: Store, period: str | Period, *, tz: str | None = None, by: str | None = None, now: datetime | None = None
) -> ClosedPeriod:
    """Close a period for good and file its manifest.

    Entries that reach the period later stay in the ledger where they occurred; the next closing takes them up as
    corrections. A closed period is never reopened.

    Args:
        store: The ledger.
        period: ``"2026-11"``, ``"2026-Q4"``, ... or a `Period`.
        tz: IANA zone in which it is cut; default: that of the last closing, else UTC.
        by: Who closes it; default: the user of the system.
        now: The moment of closing; default: now.

    Raises:
        ConfigurationError: not a period or a zone.
        LedgerError: it has not ended, is closed already, whole or in part, or leaves hours between itself and a period
            that was cut in another zone.
    """
    moment = utcnow() if now is None else parse_instant(now)
    wanted = closable(period, zone_of_books(store, tz), moment)
    while True:
        closed = closed_periods(store)
        check_open(wanted, closed)
        manifest = _make_manifest(store, wanted, closed, moment, acting(by))
        body = json.dumps(manifest.to_dict(), ensure_ascii=False, separators=(",", ":"))
        # Numbered keys: of two closings at the same time one files its manifest, the other looks again.
        filing = store.file(NewDocument(kind=_KIND, key=f"{len(closed) + 1}", body=body))
        if filing.recorded:
            return ClosedPeriod.of(filing.document)


def closable(period: str | Period, tz: str, now: datetime) -> Period:
    """The period that is meant.

    Raises:
        ConfigurationError: not a period or a zone.
        LedgerError: it has not ended.
    """
    wanted = period if isinstance(period, Period) else parse_period(period, tz, now=now)
    if wanted.end > now:
        raise LedgerError(f"{wanted.label} ends at {wanted.end.isoformat()}; it can be closed from then on.")
    return wanted


def check_open(wanted: Period, closed: Sequence[ClosedPeriod]) -> None:
    """Refuse, as a LedgerError, what is closed already, whole or in part, and what leaves hours between two zones."""
    for one in closed:
        if one.period.start < wanted.end and wanted.start < one.period.end:
            raise LedgerError(
                f"{wanted.label} ({wanted.tz}) is closed, or overlaps with {one.period.label} ({one.period.tz}), "
                f"closed at {one.closed_at.isoformat(timespec='seconds')}. Periods are not reopened: entries that come "
                "later, and adjustments, are corrections in the next period."
            )
    before = max(
        (one for one in closed if one.period.end <= wanted.start), key=lambda one: one.period.end, default=None
    )
    after = min(
        (one for one in closed if one.period.start >= wanted.end), key=lambda one: one.period.start, default=None
    )
    for one in filter(None, (before, after)):
        between = max(wanted.start - one.period.end, one.period.start - wanted.end)
        # Two zones differ by some hours; a gap of days is a period that is still to be closed.
        if wanted.tz != one.period.tz and timedelta() < between < _WIDEST:
            raise LedgerError(
                f"Between {one.period.label} ({one.period.tz}), which is closed, and {wanted.label} ({wanted.tz}) are "
                f"{between} that neither holds, and what was used then would be billed nowhere. Cut it in "
                f"{one.period.tz} (tz=, --tz); to go over to another zone, close the hours between first, as a Period."
            )


def _make_manifest(
    store: Store, wanted: Period, closed: Sequence[ClosedPeriod], moment: datetime, by: str
) -> ClosedPeriod:
    tally = Tally.of(store.entries(EntryFilter(since=wanted.start, until=wanted.end)))
    rows = tuple(tally.rows.values())
    late, recounted = _find_late(store, _call_all_now(store, closed))
    return ClosedPeriod(
        period=wanted,
        closed_at=moment,
        closed_by=by,
        entries=tally.entries,
        requests=tally.requests,
        unpriced=tally.unpriced,
        estimated=tally.estimated,
        **Costs.total(rows)._asdict(),
        rows=rows,
        late=tuple(late),
        recounted=recounted,
    )


@tell_wrong_arguments
def closed_periods(store: Store) -> list[ClosedPeriod]:
    """All closed periods, in the order of their closing."""
    return [ClosedPeriod.of(document) for document in store.documents(DocumentQuery(_KIND))]


def zone_of_books(store: Store, tz: str | None) -> str:
    """`tz`; where none is asked for, the zone in which the last period was closed, else UTC."""
    if tz is not None:
        return tz
    filed = list(store.documents(DocumentQuery(_KIND)))
    return str(json.loads(filed[-1].body)["period"]["tz"]) if filed else "UTC"


def call_now(closed: ClosedPeriod, names: NamesNow) -> ClosedPeriod:
    """A closing, on accounts by today's names: what was billed under an earlier name is billed."""
    late = tuple(replace(one, rows=rename(one.rows, names, closed.document)) for one in closed.late)
    return replace(closed, rows=rename(closed.rows, names, closed.document), late=late)


def _call_all_now(store: Store, closed: Sequence[ClosedPeriod] | None) -> list[ClosedPeriod]:
    found = closed_periods(store) if closed is None else closed
    names = NamesNow(store) if found else None
    return [call_now(one, names) for one in found] if names else []


def find_closed(store: Store, period: Period) -> ClosedPeriod | None:
    """The closing of exactly this period, or None."""
    same = (one for one in closed_periods(store) if (one.period.start, one.period.end) == (period.start, period.end))
    return next(same, None)


@tell_wrong_arguments
def late_entries(store: Store, closed: Sequence[ClosedPeriod] | None = None) -> list[Late]:
    """What closed periods hold that no closing has told: the corrections the next closing will take up."""
    return _find_late(store, _call_all_now(store, closed))[0]


@tell_wrong_arguments
def late_costs(store: Store, closed: Sequence[ClosedPeriod] | None = None) -> list[tuple[ClosedPeriod, Decimal]]:
    """The periods of `late_entries` with what they add up to, in US dollars, from the kept sums.

    Entries are read only of a period that has new ones which change no account's cost, and once while it stays so:
    whether any has something to bill. `Late.unpriced` tells usage without a price from what costs nothing.
    """
    closings = closed_periods(store) if closed is None else closed
    named = _call_all_now(store, closings)
    found: list[tuple[ClosedPeriod, Decimal]] = []
    for as_filed, one in zip(closings, named, strict=True):
        if (count := _count_changed(store, one, named)) is None:
            continue
        told, now = sum_accounts(_told_rows(one, named)), sum_ledger(store, one.period)
        if told != now or _is_billable(store, one, named, count):
            found.append((as_filed, subtract(_billed(now), _billed(told))))
    return found


def _billed(sums: Mapping[tuple[Any, ...], Costs]) -> Decimal:
    return total(costs.billed_cost for costs in sums.values())


def corrections(store: Store, period: Period, closed: ClosedPeriod | None, *, every: bool = False) -> list[Late]:
    """Corrections that belong to a period: those its closing took up; while it is open, those waiting for the next one.

    Each waits for one period, the first after the last closing that has use, since a month without any may never be
    closed; without use, the first. Any other would bill it once more, and one that overlaps with a closed period has it
    among its own.

    Args:
        store: The ledger.
        period: The period.
        closed: Its closing, if it is closed.
        every: All that are waiting and of a time before an open period, for who remembers what of them was told.
    """
    if closed is not None:
        return list(closed.late)
    closings = closed_periods(store)
    if every:
        return [late for late in late_entries(store, closings) if late.period.end <= period.start]
    if not closings or period.start < (end := max(one.period.end for one in closings)):
        return []
    used = store.span(end, None)
    return late_entries(store, closings) if (end == period.start if used is None else used[0] in period) else []


def _told(one: ClosedPeriod, closings: Iterable[ClosedPeriod]) -> dict[RateKey, Rated]:
    return add(_told_rows(one, closings))


def _told_rows(one: ClosedPeriod, closings: Iterable[ClosedPeriod]) -> Iterator[Rated]:
    yield from one.rows
    for each in closings:
        for late in each.late:
            if late.period == one.period:
                yield from late.rows


def _find_late(store: Store, closings: Sequence[ClosedPeriod]) -> tuple[list[Late], dict[str, int]]:
    """What closed periods hold that no closing has told, and how many entries each has that has more than was told."""
    late: list[Late] = []
    recounted: dict[str, int] = {}
    for one in closings:
        if (count := _count_changed(store, one, closings)) is not None:
            found, recounted[span_text(one.period)] = _untold(store, one, closings), count
            late += [found] if found.rows else []
    return late, recounted


def _count_changed(store: Store, one: ClosedPeriod, closings: Sequence[ClosedPeriod]) -> int | None:
    """How many entries a closed period has where its closings may not have told them all: from the kept sums.

    Costs alone do not say it: usage without a price has none, and those of several entries may cancel out. Nor does the
    count alone: of a call that two ledgers had recorded a merge keeps one entry, which may be the one not told.
    """
    told = count_told(
        span_text(one.period),
        one.entries,
        ((each.recounted, any(late.period == one.period for late in each.late)) for each in closings),
    )
    count = sum(sums.entries for sums in store.aggregate([one.period.start, one.period.end], []))
    same = told == count and sum_accounts(_told_rows(one, closings)) == sum_ledger(store, one.period)
    return None if same else count


#: Closed periods that had nothing to bill though their counts do not say so: seal, number of closings, entries.
_NOTHING_NEW: set[tuple[str, int, int]] = set()
_MOST_REMEMBERED = 10_000


def _is_billable(store: Store, one: ClosedPeriod, closings: Sequence[ClosedPeriod], count: int) -> bool:
    """Whether a closed period of `count` entries holds what no closing has told. It is read once while it stays so."""
    key = None if one.document is None else (one.document.hash, len(closings), count)
    if key in _NOTHING_NEW:
        return False
    found = bool(_untold(store, one, closings).rows)
    if key is not None and not found:
        if len(_NOTHING_NEW) >= _MOST_REMEMBERED:
            _NOTHING_NEW.clear()
        _NOTHING_NEW.add(key)
    return found


def _untold(store: Store, one: ClosedPeriod, closings: Sequence[ClosedPeriod]) -> Late:
    """What a closed period holds that no closing has told: of its entries, never of what was remembered."""
    told = _told(one, closings)
    now = Tally.of(store.entries(EntryFilter(since=one.period.start, until=one.period.end)))
    # A manifest that does not say which key it was is compared by the key's name.
    unsure = {rate.about("api_key") for rate in told if rate.fingerprint is None}
    found = add(
        row._replace(rate=row.rate._replace(fingerprint=None)) if row.rate.about("api_key") in unsure else row
        for row in now.rows.values()
    )
    return Late(one.period, tuple(minus(found, _read_today(told, found))))


def _read_today(told: Mapping[RateKey, Rated], now: Mapping[RateKey, Rated]) -> dict[RateKey, Rated]:
    """Rows of manifests, under the conditions that are read out of their prices today where they had others."""
    others = {rate._replace(conditions=""): rate for rate in now if rate not in told}
    return add(
        row if rate in now else row._replace(rate=others.get(rate._replace(conditions=""), rate))
        for rate, row in told.items()
    )


def days_of(period: Period) -> tuple[date, date]:
    """The first and the last day of a period, in its zone."""
    local = zone(period.tz)
    return period.start.astimezone(local).date(), (period.end - timedelta(microseconds=1)).astimezone(local).date()


def describe_late(late: Late) -> str:
    """What came late, for people: ``$0.3``, ``$0, 2 charges without a known price``."""
    doubts = f", {counted(late.unpriced, 'charge')} without a known price" if late.unpriced > 0 else ""
    return f"${late.billed_cost:f}{doubts}"


def period_dict(period: Period) -> dict[str, str]:
    """A period, JSON-ready."""
    return {
        "label": period.label,
        "start": period.start.isoformat(),
        "end": period.end.isoformat(),
        "tz": period.tz,
    }


def period_of(values: Mapping[str, str]) -> Period:
    """A period from `period_dict`."""
    return Period(
        datetime.fromisoformat(values["start"]), datetime.fromisoformat(values["end"]), values["tz"], values["label"]
    )
