"""What a user says about a budget: `Budget`, checked when it is made."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field, fields
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

from tokenmeter.budgets.windows import Window
from tokenmeter.dimensions import SCOPE_FIELDS, Who
from tokenmeter.errors import ConfigurationError, shown
from tokenmeter.money import EXACT, ONE, PICODOLLAR, multiply, parse_decimal, to_dollars, to_picodollars
from tokenmeter.periods import parse_instant
from tokenmeter.texts import check_text
from tokenmeter.values import dataclass

Unit = Literal["usd", "tokens", "requests", "in_flight"]
IN_FLIGHT: Unit = "in_flight"

#: What a budget can be narrowed to, in the order scopes are written; tags come after.

_LIMITS: dict[str, Unit] = {
    "limit_usd": "usd",
    "limit_tokens": "tokens",
    "limit_requests": "requests",
    "limit_in_flight": "in_flight",
}
_CHOICES = {
    "store_failure": ("closed", "open"),
    "estimate": ("strict", "expected"),
    "unbounded": ("refuse", "expected"),
    "unknown_price": ("hold", "refuse"),
}
_DEFAULT_THRESHOLDS = (50, 80, 100)
_NO_TAGS: Mapping[str, str] = MappingProxyType({})
#: Counters are 64-bit integers in every store; this leaves room for what is in flight.
_LARGEST = 4 * 10**18
#: The names of `Budget.week_start`, 0 to 6.
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
#: What stands for "no cap" in a table of limits, and what a limit function may say.
UNLIMITED = "unlimited"

#: What a limit may be: a number of US dollars, `UNLIMITED`, or a number per unit (``{"usd": "5", "requests": 100}``).
LimitValue = Decimal | int | str | Mapping[str, Any]
#: Says the limit of one member (or of whatever the budget's ``"*"`` stands for); None = the fixed limit holds.
LimitFunction = Callable[[str], LimitValue | Awaitable[LimitValue | None] | None]


@dataclass(frozen=True, slots=True)
class FunctionElsewhere:
    """A limit function of another process, which the ledger knows by its name only. It is never imported from there."""

    name: str

    def __call__(self, value: str) -> LimitValue | None:
        """Raise: only the process that declared it can ask it."""
        raise ConfigurationError(
            f"The limit of {value!r} is asked of {self.name}, which this process does not have: configure the budget "
            "here as well, or give it a fixed limit that holds where the function is not."
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Budget(Who):
    """A limit on what calls may cost, use or number within a window of time.

    A budget applies to the calls that match every scope field it names. A value is exact text, ``"*"`` for one counter
    per value, or a pattern such as ``"gpt-5*"`` with one counter for all it matches. A call that lacks the value (no
    ``member`` set) is not matched by ``member="*"``: add a budget without that scope to catch it.

    It can be about the fields of `Who` (``member``, ``team``, ...), `api_key`, `model`, `provider` and `tags`.

    At least one limit is given; with several, a call must fit into each. Zero means "not at all".

    Attributes:
        api_key: Alias from the configuration, fingerprint, or ``...last4`` as reports show it.
        model: Model as the caller names it.
        provider: Provider id (``openai``, ``anthropic``, ...).
        tags: Tag name -> value.
        limit_usd: US dollars of billed cost, to the picodollar. Not a binary fraction: write ``"0.10"`` or an int.
        limit_tokens: Input and output tokens together.
        limit_requests: Calls.
        limit_in_flight: Calls that may be under way at the same time.
        limit: Limits that differ by member (or whatever the budget's one ``"*"`` stands for): a table
            ``{"ada": "50", "bob": 0}``, or a function ``ada -> limit``, async or not, that asks your own database. A
            value is a number of US dollars, ``"unlimited"``, or a number per unit: ``{"usd": "5", "requests": 100}``.
            Whom the table or the function does not know (None) gets the fixed limits beside it, and these hold while
            the function fails and no earlier answer of it is known. A table without fixed limits names everybody who
            may call. What a function limits beside dollars has a fixed limit, too. An API key is known to both by its
            alias, else as ``...last4``; to a table by its fingerprint, too.
        refresh: Seconds for which an answer of the function is used before it is asked again.
        period: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``total`` or ``rolling-<n>s|m|h|d``
            (a rate limit: never more than the limit in any stretch of that length).
        tz: IANA zone in which the calendar is read.
        week_start: First day of a week: 0 or ``"monday"`` ... 6 or ``"sunday"``.
        anchor: Day of the month on which a month, quarter or year begins (a billing anchor); the last day of a month
            that is too short.
        reset_hour: Hour of the day, 0 to 23 by the zone's clock, at which days and longer windows begin.
        hard: Whether a call that would pass the limit is stopped. A soft budget only counts and alerts.
        thresholds: Whole percents of the limit that alert, once per window. Default 50, 80 and 100; none for rolling.
        store_failure: What a hard budget does when the store fails: ``closed`` stops calls, ``open`` lets them pass.
        starts: First instant the budget applies; None = always.
        ends: First instant it no longer applies; None = never.
        name: How errors, alerts and `tokenmeter.remaining` call it; made from scope, unit and period if not given.
        estimate: What a hard budget holds for a call: ``strict`` its upper bound, ``expected`` the 99th percentile
            learned for its route and model (overshoot is then bounded by what is in flight).
        inject_max_tokens: Whether a call that names no output cap gets one: what the budget can still pay for.
        unbounded: What a hard budget does with a call that has no upper bound: ``refuse`` it, or hold what is
            ``expected``.
        unknown_price: What a hard budget in dollars does with a model whose price is not known (it came out today):
            ``hold`` the call at the dearest known price of its provider and let it go, or ``refuse`` it.

    Raises:
        ConfigurationError: a value is wrong; the message begins with the field's name.
    """

    api_key: str | None = None
    model: str | None = None
    provider: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)
    limit_usd: Decimal | int | str | None = None
    limit_tokens: int | None = None
    limit_requests: int | None = None
    limit_in_flight: int | None = None
    limit: Mapping[str, Any] | LimitFunction | None = None
    refresh: int = 60
    period: str = "month"
    tz: str = "UTC"
    week_start: int | str = 0
    anchor: int = 1
    reset_hour: int = 0
    hard: bool = True
    thresholds: Sequence[int] | None = None
    store_failure: Literal["closed", "open"] = "closed"
    starts: datetime | date | str | None = None
    ends: datetime | date | str | None = None
    name: str = ""
    estimate: Literal["strict", "expected"] = "strict"
    inject_max_tokens: bool = False
    unbounded: Literal["refuse", "expected"] = "refuse"
    unknown_price: Literal["hold", "refuse"] = "hold"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "week_start", _weekday(self.week_start))
        window = self.window
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ConfigurationError(f"{key} must be {' or '.join(choices)}, not {shown(getattr(self, key))}.")
        for key in ("hard", "inject_max_tokens"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigurationError(f"{key} must be true or false, not {shown(getattr(self, key))}.")
        set_field(self, "tags", _checked_tags(self.tags))
        for key in SCOPE_FIELDS:
            _check_text(getattr(self, key), key)
        self._set_limits()
        set_field(self, "thresholds", _checked_thresholds(self.thresholds, rolling=window.length_us is not None))
        for key in ("starts", "ends"):
            value = getattr(self, key)
            set_field(self, key, None if value is None else parse_instant(value, self.tz))
        starts, ends = self.effective
        if starts and ends and ends <= starts:
            raise ConfigurationError("ends must be later than starts.")
        _check_text(self.name or None, "name")
        if not self.name:
            set_field(self, "name", self._derived_name())

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy cannot be pickled
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        table = limit_table(self)
        limit = self.limit if table is None else dict(table)
        return partial(Budget, **{**values, "tags": dict(self.tags), "limit": limit}), ()

    def __repr__(self) -> str:
        said = (f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if self._says(item.name))
        return f"Budget({', '.join(said)})"

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.limits.items()), self.period))

    @classmethod
    def parse(cls, row: Mapping[str, Any], *, file: str | None = None, number: int | None = None) -> Budget:
        """A budget from a ``[[budgets]]`` table.

        Args:
            row: The table's content.
            file: Where it stands, for the error's text.
            number: Its place among the tables, from 0; None where it stands alone.

        Raises:
            ConfigurationError: names file, table, field and reason.
        """
        where = f"{file or 'configuration'}: " + ("" if number is None else f"budgets[{number}].")
        known = [item.name for item in fields(cls)]
        for key in row:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}."
                raise ConfigurationError(f"{where}{key} is not a field of a budget; {hint}")
        try:
            return cls(**row)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}{error}") from None

    @property
    def limits(self) -> dict[Unit, int]:
        """The fixed limits as the integers that counters hold: picodollars, tokens, requests, calls in flight."""
        found: dict[Unit, int] = {}
        for key, unit in _LIMITS.items():
            value = getattr(self, key)
            if value is not None:
                found[unit] = to_picodollars(value) if unit == "usd" else value
        return found

    @property
    def units(self) -> tuple[Unit, ...]:
        """What it limits: what has a fixed limit, and what its table speaks of; dollars, where only a function does."""
        said = set(self.limits).union(*map(units_said, (limit_table(self) or {}).values()))
        return tuple(unit for unit in _LIMITS.values() if unit in said) or ("usd",)

    @property
    def asks(self) -> bool:
        """Whether its limits are asked of a function."""
        return callable(self.limit)

    @property
    def window(self) -> Window:
        """How its time is cut."""
        return Window(self.period, self.tz, cast("int", self.week_start), self.anchor, self.reset_hour)

    def window_of(self, unit: Unit) -> Window:
        """How the time of one of its limits is cut. What is in flight has no window."""
        return Window("total") if unit == IN_FLIGHT else self.window

    @property
    def scope(self) -> dict[str, str]:
        """The scope fields it names, tags as ``tag:NAME``, in a fixed order."""
        named = {key: value for key in SCOPE_FIELDS if (value := getattr(self, key)) is not None}
        return named | {f"tag:{key}": value for key, value in self.tags.items()}

    def counter_name(self, unit: Unit, era: int = 1) -> str:
        """The identity of its counters in the store; `era` tells apart what began to count anew under one name."""
        kinds = {each: f"{each}/{self.window_of(each).label}" for each in self.units}
        told = [each for each, kind in kinds.items() if kind in self.name]  # in words of its own it may name several
        base = self.name if told[:1] == [unit] else f"{self.name} [{kinds[unit]}]"
        return base if era == 1 else f"{base} #{era}"

    @property
    def open_field(self) -> str | None:
        """The one scope field that is ``"*"``; None when there is none, or several."""
        found = [name for name, value in self.scope.items() if value == "*"]
        return found[0] if len(found) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """What was said about it, JSON-ready: the keys of a ``[[budgets]]`` row. `parse` reads it back."""
        said = {item.name: getattr(self, item.name) for item in fields(self) if self._says(item.name)}
        for name in ("starts", "ends"):
            if name in said:
                said[name] = said[name].isoformat()
        if "limit_usd" in said:
            said["limit_usd"] = f"{self.limit_usd:f}"
        if "thresholds" in said:
            said["thresholds"] = list(said["thresholds"])
        if "tags" in said:
            said["tags"] = dict(self.tags)
        table = limit_table(self)
        if table is not None:
            said["limit"] = {key: _plain_limit(value) for key, value in table.items()}
        elif self.limit is not None:
            said["limit"] = {"function": _function_name(self.limit)}
        return said

    @property
    def effective(self) -> tuple[datetime | None, datetime | None]:
        """`starts` and `ends` as instants."""
        return cast("datetime | None", self.starts), cast("datetime | None", self.ends)

    def applies(self, moment: datetime) -> bool:
        """Whether `moment` lies between its effective dates."""
        starts, ends = self.effective
        return (starts is None or moment >= starts) and (ends is None or moment < ends)

    def _says(self, name: str) -> bool:
        value, default = getattr(self, name), _DEFAULTS.get(name)
        if name == "thresholds":
            default = _checked_thresholds(None, rolling=self.window.length_us is not None)
        return name in ("name", "period") or (value not in (None, {}) and value != default)

    def _set_limits(self) -> None:
        given = [key for key in _LIMITS if getattr(self, key) is not None]
        if not given and self.limit is None:
            raise ConfigurationError(f"{', '.join(_LIMITS)}: give at least one (0 means not at all).")
        for key in given:
            amount = parse_limit(getattr(self, key), _LIMITS[key], name=key)
            object.__setattr__(self, key, amount_of(_LIMITS[key], amount) if key == "limit_usd" else amount)
        if isinstance(self.refresh, bool) or not isinstance(self.refresh, int) or self.refresh < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"refresh must be a whole number of seconds, at least 1, not {shown(self.refresh)}."
            )
        if self.limit is not None:
            object.__setattr__(self, "limit", self._checked_limit(self.limit))

    def _checked_limit(self, limit: object) -> Mapping[str, Any] | LimitFunction:
        if self.open_field is None:
            raise ConfigurationError(
                'limit says limits per value of one scope field: give the budget exactly one "*", such as member="*".'
            )
        if isinstance(limit, Mapping):
            table = cast("Mapping[str, Any]", limit)
            # As the ledger writes a function, "module:name"; what has no colon is the limit of one called "function".
            if is_function(table):
                return FunctionElsewhere(table["function"])
            for key, value in table.items():
                _check_text(key, "limit")
                if key == "*":
                    raise ConfigurationError(
                        "limit: '*' is nobody's name; for whoever the table does not name put limit_usd beside it."
                    )
                for unit in self.units:
                    limit_in(value, unit, name=f"limit.{key}")
            return MappingProxyType(dict(table))
        if callable(limit):
            return cast("LimitFunction", limit)
        raise ConfigurationError(f"limit must be a table or a function, not {shown(limit)}.")

    def _derived_name(self) -> str:
        scope = ",".join(f"{key}={value}" for key, value in self.scope.items()) or "all"
        soft = "" if self.hard else " soft"
        dates = "".join(
            f" {word} {value:%Y-%m-%dT%H:%M}"
            for word, value in zip(("from", "until"), self.effective, strict=True)
            if value
        )
        kinds = "+".join(unit for unit in self.units if unit != IN_FLIGHT)
        within = f"{kinds}/{self.window.label}" if kinds else "in_flight"
        return f"{scope} {within}{soft}{dates}"


_DEFAULTS = {item.name: item.default for item in fields(Budget)}


def limit_table(budget: Budget) -> Mapping[str, Any] | None:
    """`Budget.limit` where it is a table; None where it is a function, or not given."""
    limit = cast("object", budget.limit)
    return cast("Mapping[str, Any]", limit) if isinstance(limit, Mapping) else None


def amount_of(unit: Unit, value: int) -> Decimal:
    """A counter's integer in its unit: US dollars, tokens, calls."""
    if unit != "usd":
        return Decimal(value)
    dollars = to_dollars(value).normalize(EXACT)
    return dollars if dollars.as_tuple().exponent <= 0 else dollars.quantize(ONE, context=EXACT)  # type: ignore[operator]


def parse_limit(value: object, unit: Unit, *, name: str, cut: bool = False) -> int:
    """A limit as the integer that counters hold; with `cut` without what is finer than one.

    Raises:
        ConfigurationError: not a number, negative, finer than a picodollar, or too large; begins with `name`.
    """
    number = parse_decimal(value, name=name)
    if number < 0:
        raise ConfigurationError(f"{name} must not be negative, but was {number}; 0 means not at all.")
    step = PICODOLLAR if unit == "usd" else ONE
    most = multiply(step, _LARGEST)
    if number > most:
        raise ConfigurationError(f"{name} must not be greater than {most.normalize(EXACT):,f}.")
    if cut:
        number = EXACT.subtract(number, EXACT.remainder(number, step))
    elif EXACT.remainder(number, step):
        raise ConfigurationError(f"{name} must be a multiple of {step:f}, not {number}.")
    return to_picodollars(number) if unit == "usd" else int(number)


def limit_in(value: LimitValue | None, unit: Unit, *, name: str, cut: bool = False) -> int | None:
    """The limit that an entry of a table, or a limit function's answer, says for one unit.

    An answer may have been calculated, a year's by twelve: with `cut` it is one without what is finer than a counter.

    Returns:
        A counter's integer; -1 for no cap; None when it says nothing of this unit.

    Raises:
        ConfigurationError: it is no limit; begins with `name`.
    """
    if isinstance(value, Mapping):
        table = value
        if unknown := set(table) - set(_LIMITS.values()):
            raise ConfigurationError(f"{name}: {shown(min(unknown))} is not one of {', '.join(_LIMITS.values())}.")
        value = table.get(unit)
    elif unit != "usd":
        return -1 if value == UNLIMITED else None
    if value is None:
        return None
    return -1 if value == UNLIMITED else parse_limit(value, unit, name=name, cut=cut)


def units_said(value: LimitValue | None) -> set[Unit]:
    """What an entry of a table, or a limit function's answer, speaks of: a number alone is one of dollars."""
    if isinstance(value, Mapping):
        return {unit for unit, limit in cast("Mapping[Unit, object]", value).items() if limit is not None}
    return set() if value is None or value == UNLIMITED else {"usd"}


def threshold_amounts(budget: Budget, limit: int) -> dict[int, int]:
    """Absolute amount -> percent of `limit`, ascending; rounded up, so that 100% is the limit itself."""
    return {-(-limit * percent // 100): percent for percent in cast("tuple[int, ...]", budget.thresholds)}


def is_function(table: Mapping[str, Any]) -> bool:
    """Whether a ``limit`` table stands for a function, ``module:name``; one without a colon is somebody's name."""
    return set(table) == {"function"} and ":" in str(table["function"])


def _plain_limit(value: object) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_limit(one) for key, one in cast("Mapping[str, Any]", value).items()}
    return None if value is None else str(value)


def _function_name(function: object) -> str:
    if isinstance(function, FunctionElsewhere):
        return function.name
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"


def _weekday(value: object) -> object:
    if isinstance(value, str):
        if value.lower() not in WEEKDAYS:
            raise ConfigurationError(
                f"week_start must be 0 (Monday) to 6 (Sunday) or a day's name, not {shown(value)}."
            )
        return WEEKDAYS.index(value.lower())
    return value


def _check_text(value: object, name: str) -> None:
    if value is not None:
        check_text(value, name)  # whoever calls may be attributed to has a name for budgets, too
        if not str(value).strip():
            raise ConfigurationError(f"{name} must say more than blanks, not {shown(value)}.")


def _checked_tags(tags: object) -> Mapping[str, str]:
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f"tags must map a tag's name to its value or '*', not {shown(tags)}.")
    pairs = cast("Mapping[str, str]", tags)
    for key, value in pairs.items():
        _check_text(key, "tags")
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"tags.{key} must be a non-empty text, not {shown(value)}.")
        _check_text(value, f"tags.{key}")
    return MappingProxyType(dict(sorted(pairs.items())))


def _checked_thresholds(value: object, *, rolling: bool) -> tuple[int, ...]:
    if value is None:
        return () if rolling else _DEFAULT_THRESHOLDS
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigurationError(f"thresholds must be a list of percents such as [50, 80], not {shown(value)}.")
    percents = cast("Sequence[object]", value)
    for percent in percents:
        if not isinstance(percent, int) or isinstance(percent, bool) or not 1 <= percent <= 1000:  # noqa: PLR2004
            raise ConfigurationError(f"thresholds must be whole percents from 1 to 1000, not {shown(percent)}.")
    return tuple(sorted(set(cast("Sequence[int]", percents))))
