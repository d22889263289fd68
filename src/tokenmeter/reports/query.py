"""What a report asks for, checked before the store is touched. Plain values."""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast

from tokenmeter.dimensions import DIMENSIONS
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.ledger import Entry
from tokenmeter.money import COSTS, EXACT
from tokenmeter.periods import CALENDAR_UNITS, CalendarUnit, Period, buckets, floor, parse_instant, parse_period, zone
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.encoding import storable_text
from tokenmeter.stores.engine import FILTERS, asked, condition_on
from tokenmeter.usage import Usage
from tokenmeter.values import dataclass

#: Stand-ins for an open start and an open end; both are whole hours, so that rollups can answer.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(9999, 12, 31, tzinfo=UTC)
EVER = Period(BEGINNING, END, "UTC", "all time")

Instant = datetime | date | str
#: What one filter accepts: a value, None for "not set", or several of these.
Accepted = str | None | Iterable[str | None]

_TAG = "tag:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A checked question to the ledger.

    Attributes:
        by: Dimensions to group by.
        period: The stretch of time; an open end is `BEGINNING` or `END`.
        granularity: Calendar unit to cut it into; None for one bucket.
        where: dimension -> accepted values; dimension and ``!`` -> values that are not.
        latency: Whether it also asks how long calls took.
    """

    by: tuple[str, ...] = ()
    period: Period = EVER
    granularity: CalendarUnit | None = None
    where: Mapping[str, frozenset[str | None]] = field(default_factory=dict[str, frozenset[str | None]])
    latency: bool = False

    @classmethod
    def parse(
        cls,
        *,
        by: str | Iterable[str] = (),
        since: Instant | None = None,
        until: Instant | None = None,
        period: str | Period | None = None,
        granularity: str | None = None,
        where: Mapping[str, Accepted] | None = None,
        tz: str = "UTC",
        now: datetime | None = None,
        latency: bool = False,
    ) -> Query:
        """A query from what a person writes; see `tokenmeter.report` for the arguments.

        Raises:
            ConfigurationError: an unknown dimension, period, unit or zone, or a period that ends before it starts.
        """
        return cls(
            by=parse_by(by),
            period=_parse_span(since, until, period, tz, now),
            granularity=_parse_granularity(granularity),
            where=parse_where(where or {}),
            latency=latency,
        )

    @property
    def filter(self) -> EntryFilter:
        """The same conditions as the store takes them."""
        return EntryFilter(since=closed(self.period.start), until=closed(self.period.end), where=self.where)


def read_entries(store: Store, query: Query, *, newest_first: bool = False) -> Iterator[Entry]:
    """The entries that `query` asks for, in order of their occurrence, one at a time.

    A filter on ``sku_meter`` takes single lines out of entries, here as in a report: an entry then comes with these
    charges, with what it used of these meters and with their cost, so that every output adds up to the same.
    """
    found = store.entries(query.filter, newest_first=newest_first)
    meters = query.where.get("sku_meter")
    return found if meters is None else (_narrowed(entry, meters) for entry in found)


def follow_entries(store: Store, query: Query, after: int) -> tuple[int, Sequence[Entry]]:
    """Entries that were recorded since, as `read_entries` gives them; see `Store.follow`."""
    place, found = store.follow(after, query.filter)
    meters = query.where.get("sku_meter")
    return place, found if meters is None else [_narrowed(entry, meters) for entry in found]


def _narrowed(entry: Entry, meters: frozenset[str | None]) -> Entry:
    charges = tuple(charge for charge in entry.charges if charge.sku_meter in meters)
    quantities = {meter: quantity for meter, quantity in entry.usage.quantities.items() if meter in meters}
    costs: dict[str, Any] = {}
    for name in COSTS:
        known = [cost for charge in charges if (cost := getattr(charge, name)) is not None]
        whole = getattr(entry, name)
        if None in meters and whole is not None:  # what no line explains
            known += [
                whole,
                *(EXACT.minus(cost) for charge in entry.charges if (cost := getattr(charge, name)) is not None),
            ]
        costs[name] = functools.reduce(EXACT.add, known) if known else None
    return replace(
        entry,
        charges=charges,
        usage=Usage(quantities, entry.usage.reasoning_output_tokens if "output" in quantities else 0),
        **costs,
    )


def closed(end: datetime) -> datetime | None:
    """An end of a period; None for an open one."""
    return None if end in {BEGINNING, END} else end


#: Buckets that are looked up without asking first where the entries lie, and how long each is at least.
_MOST_BUCKETS = 10_000
_AT_LEAST = {
    "hour": timedelta(hours=1),
    "day": timedelta(hours=23),
    "week": timedelta(days=6),
    "month": timedelta(days=27),
    "quarter": timedelta(days=89),
    "year": timedelta(days=364),
}


def cut(store: Store, query: Query) -> list[Period]:
    """The query's buckets in order of time, one for the whole without a granularity; none where nothing is recorded.

    An open end is closed at the calendar unit that holds the ledger's first or last entry, and so are both ends where
    there would be a great many buckets: one without entries makes no row.
    """
    start, end, tz = query.period.start, query.period.end, query.period.tz
    unit = query.granularity or "day"
    many = end - start > _MOST_BUCKETS * _AT_LEAST[unit]
    if start == BEGINNING or end == END or many:
        ends = store.span(closed(start), closed(end))
        if ends is None:
            return []
        if start == BEGINNING or many:
            start = max(start, floor(ends[0], unit, tz).start)
        if end == END or many:
            end = min(end, floor(ends[1], unit, tz).end)
    within = Period(start, end, tz, query.period.label)
    return _distinct(buckets(within, query.granularity)) if query.granularity else [within]


def _distinct(parts: Sequence[Period]) -> list[Period]:
    """Buckets whose labels differ: the hour that daylight saving repeats is told apart by its offset."""
    seen = Counter(part.label for part in parts)
    return [
        part
        if seen[part.label] == 1
        else Period(part.start, part.end, part.tz, part.label + part.start.astimezone(zone(part.tz)).strftime("%z"))
        for part in parts
    ]


def parse_by(by: str | Iterable[str]) -> tuple[str, ...]:
    """Dimensions from one name, several separated by commas, or an iterable of names; each at most once."""
    _expect(Iterable, by, "by= takes the name of a dimension or a list of names")
    names = by.split(",") if isinstance(by, str) else by
    return tuple(dict.fromkeys(_dimension(name) for name in names))


def parse_where(where: Mapping[str, Accepted]) -> dict[str, frozenset[str | None]]:
    """Filters as the store takes them: each dimension with the values it accepts, or with ``!`` does not.

    Raises:
        ConfigurationError: an unknown dimension, values that are none, or meters that are not to be counted.
    """
    _expect(Mapping, where, "where= takes a mapping such as {'member': 'ada'}, or {'member!': 'ada'} for all others")
    return {_condition(name): _accepted(name, accepted) for name, accepted in where.items()}


def _condition(key: object) -> str:
    name, wanted = asked(key) if isinstance(key, str) else (key, True)
    name = name if name in FILTERS else _dimension(name)
    if name == "sku_meter" and not wanted:
        raise ConfigurationError("A filter on sku_meter says which meters are counted; name these instead.")
    return condition_on(name, wanted=wanted)


def parse_conditions(conditions: Iterable[str], name: str) -> dict[str, list[str | None]]:
    """``["member=ada", "member=bob", "team="]`` as filters; nothing after ``=`` means "not set", ``!=`` all others.

    Args:
        conditions: Texts.
        name: What they were given as, for the message.

    Raises:
        ConfigurationError: a condition without ``=``.
    """
    where: dict[str, list[str | None]] = {}
    for condition in conditions:
        dimension, equals, value = condition.partition("=")
        if not equals:
            raise ConfigurationError(f"{name} {condition!r} must read DIMENSION=VALUE, such as member=ada.")
        where.setdefault(dimension.strip(), []).append(value or None)
    return where


def _accepted(name: str, accepted: object) -> frozenset[str | None]:
    several = isinstance(accepted, Iterable) and not isinstance(accepted, str)
    values: list[Any] = list(cast("Iterable[Any]", accepted)) if several else [accepted]
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(
                f"where={{{name!r}: ...}} takes texts, None for 'not set', or a list of these, not {shown(value)}."
            )
    if not values:
        raise ConfigurationError(f"where={{{name!r}: ...}} accepts no value at all; leave the filter out.")
    return frozenset(None if value is None else storable_text(value) for value in values)  # as a ledger has them


def _dimension(name: object) -> str:
    if not isinstance(name, str):
        raise ConfigurationError(f"A dimension is named by a text such as 'member', not {shown(name)}.")
    name = name.strip()
    if name in DIMENSIONS or (name.startswith(_TAG) and len(name) > len(_TAG)):
        return name
    near = difflib.get_close_matches(name, DIMENSIONS, n=3, cutoff=0.5)
    # Likeness misses a name of which only a part was written: ``key`` for ``api_key``.
    near += [known for known in DIMENSIONS if known not in near and name and (name in known or known in name)]
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else f"Known are {', '.join(DIMENSIONS)}. "
    tag = f"For a tag of your own write {_TAG + (name.removeprefix(_TAG) or 'NAME')!r}."
    raise ConfigurationError(f"Unknown dimension {shown(name)}. {meant}{tag}")


def _parse_granularity(granularity: str | None) -> CalendarUnit | None:
    if granularity is not None and granularity not in CALENDAR_UNITS:
        raise ConfigurationError(f"Unknown granularity {granularity!r}; use one of {', '.join(CALENDAR_UNITS)}.")
    return granularity


def _parse_span(
    since: Instant | None, until: Instant | None, period: str | Period | None, tz: str, now: datetime | None
) -> Period:
    zone(tz)
    if period is not None:
        if since is not None or until is not None:
            raise ConfigurationError("Give either period= or since= and until=, not both.")
        _expect((str, Period), period, "period= takes a text such as '2026-11' or 'last-month', or a Period")
        if isinstance(period, Period):
            return period
        if period.strip() != "all":
            return parse_period(period.strip(), tz, now=now)
    start = BEGINNING if since is None else _instant("since", since, tz)
    end = END if until is None else min(_instant("until", until, tz), END)
    if start >= end:
        raise ConfigurationError(
            f"The period is empty: it starts at {start.isoformat()} and ends at {end.isoformat()}. "
            "since= is its first instant and until= the first one after it; swap them or move one."
        )
    return Period(start, end, tz, _span_label(since, until))


def _instant(name: str, value: Instant, tz: str) -> datetime:
    _expect((str, date), value, f"{name}= takes a datetime, a date or ISO 8601 text")
    return parse_instant(value, tz)


def _expect(kind: Any, value: object, rule: str) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{rule}, not {shown(value)}.")


def _span_label(since: Instant | None, until: Instant | None) -> str:
    if since is None and until is None:
        return "all time"
    if until is None:
        return f"since {since}"
    return f"until {until}" if since is None else f"{since} to {until}"
