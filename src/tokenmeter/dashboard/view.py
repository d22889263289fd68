"""What a page shows, as it stands in its URL: period, time zone, granularity and filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlencode

from tokenmeter.dimensions import WHO
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import utcnow
from tokenmeter.periods import CALENDAR_UNITS, CalendarUnit, Period, buckets, floor, zone
from tokenmeter.reports.query import BEGINNING, END, Query, cut, parse_where
from tokenmeter.stores.base import Store
from tokenmeter.stores.engine import asked, condition_on
from tokenmeter.values import dataclass

#: Bars a chart shows at most; a finer granularity than fits is made coarser, and the page says so.
MAX_BUCKETS = 750
#: Periods offered by name.
PERIODS = {
    "last-24h": "Last 24 hours",
    "today": "Today",
    "yesterday": "Yesterday",
    "last-7d": "Last 7 days",
    "last-30d": "Last 30 days",
    "this-month": "This month",
    "last-month": "Last month",
    "last-12m": "Last 12 months",
    "this-year": "This year",
    "all": "All time",
}
_DEFAULT_PERIOD = "last-30d"
#: What has a page of its own: its budgets, its limit to be set, invoices and last calls.
WITH_PAGE = tuple(dict.fromkeys(("member", "api_key", "team", "project", "organization", "end_user", "route", *WHO)))
_QUARTER = timedelta(minutes=15)
_OWN = ("period", "since", "until", "granularity", "tz")
#: Fields that only the filter form has, and those that say nothing when they are empty.
_FORM = {"add", "how", "is", "apply", "leave"}
_OPTIONAL = {*_OWN, "before", "by", "show", "form", "compare", "sort", "find", "columns"}
_LABELS = {
    "api_key": "API key",
    "trace_id": "trace",
    "end_user": "end user",
    "sku_meter": "meter",
    "cost_source": "cost known by",
}
#: Up to this length a unit is the natural one.
_NATURAL: Sequence[tuple[timedelta, CalendarUnit]] = (
    (timedelta(days=2), "hour"),
    (timedelta(days=93), "day"),
    (timedelta(days=5 * 366), "month"),
)


def label_of(dimension: str) -> str:
    """A dimension in words."""
    if dimension.startswith("tag:"):
        return f"tag {dimension.removeprefix('tag:')}"
    return _LABELS.get(dimension, dimension.replace("_", " "))


def label_of_filter(condition: str, mark: str = "") -> str:
    """What stands before the value of a filter: ``member`` and `mark`, or ``member is not``."""
    dimension, wanted = asked(condition)
    return f"{label_of(dimension)}{mark if wanted else ' is not'}"


def _quarter_hour(now: datetime) -> datetime:
    """`now`, moved up to a quarter-hour, where kept sums begin and end."""
    over = timedelta(minutes=now.minute % 15, seconds=now.second, microseconds=now.microsecond)
    return now - over + _QUARTER if over else now


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A checked URL query.

    Attributes:
        query: Period and filters; its granularity is None until `over_time` chooses one.
        period_text: The period as it stands in the URL; None when `since` or `until` do.
        since: As in the URL.
        until: As in the URL.
        granularity: As asked; None = choose.
        default_tz: Zone used when the URL names none.
        filters: Condition (`condition_on`) and value, in the URL's order; None = not set.
        now: The clock's time, which "today" counts from.
    """

    query: Query
    period_text: str | None
    since: str | None
    until: str | None
    granularity: CalendarUnit | None
    default_tz: str
    filters: tuple[tuple[str, str | None], ...]
    now: datetime

    @classmethod
    def parse(cls, items: Iterable[tuple[str, str]], *, tz: str = "UTC", now: datetime | None = None) -> View:
        """The view that URL parameters ask for; unknown ones are refused.

        Raises:
            ConfigurationError: an unknown parameter, dimension, period, unit or zone.
        """
        given: dict[str, str] = {}
        filters: list[tuple[str, str | None]] = []
        for name, value in items:
            if "\0" in value:
                raise ConfigurationError(f"The value of {name!r} contains a NUL character, which no name can.")
            if name in _OWN:
                if value.strip():
                    given[name] = value.strip()
            else:
                (condition,) = parse_where({name: value})
                filters.append((condition, value or None))
        since, until = given.get("since"), given.get("until")
        text: str | None = None if since or until else given.get("period", _DEFAULT_PERIOD)
        now = now or utcnow()
        where: dict[str, list[str | None]] = {}
        for name, accepted in filters:
            where.setdefault(name, []).append(accepted)
        zone_name = given.get("tz", tz)
        query = Query.parse(
            period=text,
            since=since,
            until=until,
            granularity=given.get("granularity"),
            where=where,
            tz=zone_name,
            now=_quarter_hour(now) if text and text.endswith("h") else now,
        )
        return cls(
            query=replace(query, granularity=None),
            period_text=text,
            since=since,
            until=until,
            granularity=query.granularity,
            default_tz=tz,
            filters=tuple(dict.fromkeys(filters)),
            now=now,
        )

    @property
    def tz(self) -> str:
        """IANA zone of the calendar."""
        return self.query.period.tz

    def local(self, moment: datetime) -> datetime:
        """`moment` by the clock of the view's zone."""
        return moment.astimezone(zone(self.tz))

    # -- time

    def bounded(self, store: Store) -> View:
        """The same with an open beginning or end closed at the ledger's first and last entry; empty without any."""
        period = self.query.period
        if period.start != BEGINNING and period.end != END:
            return self
        parts = cut(store, Query(period=period))
        closed = parts[0] if parts else Period(self.now, self.now, self.tz)
        return replace(self, query=replace(self.query, period=replace(closed, label=period.label)))

    def over_time(self) -> tuple[Query, bool]:
        """The query cut into bars, and whether it had to be cut coarser than asked. Needs a bounded period."""
        period = self.query.period
        length = period.end - period.start
        wanted = self.granularity or _natural(length)
        chosen = _fitting(period, wanted)
        return replace(self.query, granularity=chosen), chosen != wanted

    def previous(self) -> Period | None:
        """The stretch of the same length right before; of a period still running only what has passed is compared."""
        period = self.query.period
        if self.period_text == "all" or period.start >= min(period.end, self.now):
            return None
        length = min(period.end, _quarter_hour(self.now)) - period.start
        return Period(period.start - length, period.start, period.tz)

    # -- URLs

    def items(self) -> Iterator[tuple[str, str]]:
        """The URL parameters that make this view again."""
        if self.period_text is not None:
            yield "period", self.period_text
        for name in ("since", "until", "granularity"):
            value: str | None = getattr(self, name)
            if value is not None:
                yield name, value
        if self.tz != self.default_tz:
            yield "tz", self.tz
        for name, found in self.filters:
            yield name, found or ""

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for views that show the same of an unchanged ledger."""
        return (self.url(), self.query.period, self.previous())

    def url(self, *more: tuple[str, str]) -> str:
        """These parameters, with `more` in front, as ``?...``."""
        return "?" + urlencode([*more, *self.items()])

    def with_filter(self, dimension: str, value: str | None) -> View:
        """Narrowed to one value of a dimension, instead of any other value of it."""
        kept = tuple(pair for pair in self.filters if asked(pair[0])[0] != dimension)
        return self._filtered((*kept, (condition_on(dimension), value)))

    def of_account(self, dimension: str, value: str | None) -> View:
        """As `with_filter`, that one before the others: a page is that of the first account that is named."""
        narrowed = self.with_filter(dimension, value)
        return self._filtered((narrowed.filters[-1], *narrowed.filters[:-1]))

    def without(self, dimension: str, value: str | None) -> View:
        """Without that filter."""
        return self._filtered(tuple(pair for pair in self.filters if pair != (dimension, value)))

    def without_all(self, dimension: str) -> View:
        """Without any filter on that dimension."""
        where = {name: values for name, values in self.query.where.items() if asked(name)[0] != dimension}
        kept = tuple(pair for pair in self.filters if asked(pair[0])[0] != dimension)
        return replace(self, filters=kept, query=replace(self.query, where=where))

    def _filtered(self, filters: tuple[tuple[str, str | None], ...]) -> View:
        return replace(self, filters=filters)

    def during(self, bucket: Period) -> View:
        """Narrowed to a bucket of time."""
        since, until = map(self.written, (bucket.start, bucket.end))
        return replace(self, period_text=None, since=since, until=until, granularity=None)

    def written(self, moment: datetime) -> str:
        """An instant as an address names it: a date where the view's day begins."""
        local = self.local(moment)
        return local.date().isoformat() if moment == floor(moment, "day", self.tz).start else local.isoformat()

    def over_all(self) -> View:
        """Of all time."""
        return replace(self, period_text="all", since=None, until=None)

    def without_dates(self) -> View:
        """With the period that pages begin with."""
        return replace(self, period_text=_DEFAULT_PERIOD, since=None, until=None)

    @property
    def scope(self) -> dict[str, str] | None:
        """The account that the filters say; None where they accept several values of a dimension, or all but some."""
        wanted = ((*asked(name), value) for name, value in self.filters)
        found = {name: value for name, is_wanted, value in wanted if is_wanted and value is not None}
        return found if len(found) == len(self.filters) else None

    def free_dimensions(self, names: Sequence[str]) -> list[str]:
        """The dimensions among `names` that no filter holds."""
        held = {dimension for dimension, wanted in (asked(name) for name, _ in self.filters) if wanted}
        return [name for name in names if name not in held]


def canonical(items: Sequence[tuple[str, str]], *, tz: str = "UTC") -> str | None:
    """The URL query that says what the filter form sent; None when `items` did not come from the form.

    Args:
        items: Parameters of the address.
        tz: Zone of a page that names none; as in the page's own links it is not said.

    Raises:
        ConfigurationError: a filter on an unknown dimension.
    """
    given = dict(items)
    if not given.keys() & _FORM:
        return None
    kept = [(name, value) for name, value in items if name not in _FORM and (value or name not in _OPTIONAL)]
    kept = [pair for pair in kept if pair != ("tz", tz)]
    if any(name in {"since", "until"} for name, _ in kept):
        kept = [pair for pair in kept if pair[0] != "period"]
    if given.get("leave"):
        chosen, left = condition_on(given["leave"]), condition_on(given["leave"], wanted=False)
        kept = [(left if name == chosen else name, value) for name, value in kept]
    if given.get("add"):
        values = [value.strip() for name, value in items if name == "is"]
        (condition,) = parse_where({condition_on(given["add"].strip(), wanted=given.get("how") != "not"): None})
        kept += [(condition, value) for value in list(filter(None, values)) or [""]]
    return urlencode(list(dict.fromkeys(kept)))


def _natural(length: timedelta) -> CalendarUnit:
    for limit, unit in _NATURAL:
        if length <= limit:
            return unit
    return "year"


def _fitting(period: Period, wanted: CalendarUnit) -> CalendarUnit:
    length = period.end - period.start
    for unit in CALENDAR_UNITS[CALENDAR_UNITS.index(wanted) :]:
        if _roughly(length, unit) <= MAX_BUCKETS and len(buckets(period, unit)) <= MAX_BUCKETS:
            return unit
    return "year"


def _roughly(length: timedelta, unit: CalendarUnit) -> float:
    days = {"hour": 1 / 24, "day": 1, "week": 7, "month": 30, "quarter": 91, "year": 365}[unit]
    return length / timedelta(days=days)


# -- marks on an axis of time

#: Unit of the buckets -> rules from fine to coarse: whether a mark stands at a local instant, and how it is written.
_Rule = tuple[Callable[[datetime], bool], str]
_RULES: dict[CalendarUnit, Sequence[_Rule]] = {
    "hour": [
        *((lambda at, every=every: at.hour % every == 0, "%H:%M") for every in (1, 2, 3, 6, 12)),
        (lambda at: at.hour == 0, "%-d %b"),
        (lambda at: at.hour == 0 and at.toordinal() % 2 == 0, "%-d %b"),
        (lambda at: at.hour == 0 and at.weekday() == 0, "%-d %b"),
        (lambda at: at.hour == 0 and at.day == 1, "%b %Y"),
    ],
    "day": [
        (lambda _: True, "%-d %b"),
        (lambda at: at.toordinal() % 2 == 0, "%-d %b"),
        (lambda at: at.weekday() == 0, "%-d %b"),
        (lambda at: at.weekday() == 0 and at.toordinal() // 7 % 2 == 0, "%-d %b"),
        (lambda at: at.day == 1, "%b %Y"),
        (lambda at: at.day == 1 and at.month % 3 == 1, "%b %Y"),
        (lambda at: at.day == 1 and at.month == 1, "%Y"),
    ],
    "week": [
        *((lambda at, every=every: at.toordinal() // 7 % every == 0, "%-d %b %Y") for every in (1, 2, 4, 8, 13, 26)),
    ],
    "month": [
        *((lambda at, every=every: (at.month - 1) % every == 0, "%b %Y") for every in (1, 2, 3, 6)),
        *((lambda at, every=every: at.month == 1 and at.year % every == 0, "%Y") for every in (1, 2, 5, 10, 50)),
    ],
}
_RULES["quarter"] = _RULES["month"]
_RULES["year"] = _RULES["month"][4:]


def find_marks(local: Sequence[datetime], unit: CalendarUnit, *, most: int) -> tuple[list[int], str]:
    """Those of some instants that are round in the calendar, as few as can be read, and how they are written."""
    chosen: list[int] = []
    form = ""
    for fits, form in _RULES[unit]:  # noqa: B007 - the last one tried is meant
        chosen = [at for at, moment in enumerate(local) if fits(moment)]
        if len(chosen) <= most:
            break
    return (chosen if chosen or not local else [0]), form
