"""What a user says about a budget: `Budget`, checked when it is made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import date, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, cast

from tokenmeter.budgets.scopes import SCOPE_FIELDS
from tokenmeter.budgets.windows import Window
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, ONE, PICODOLLAR, parse_decimal, to_dollars, to_picodollars
from tokenmeter.periods import parse_instant

__all__ = ["Budget", "Unit", "check_consistent"]

Unit = Literal["usd", "tokens", "requests"]

_LIMITS: dict[str, Unit] = {"limit_usd": "usd", "limit_tokens": "tokens", "limit_requests": "requests"}
_CHOICES = {
    "store_failure": ("closed", "open"),
    "estimate": ("strict", "expected"),
    "unbounded": ("refuse", "expected"),
}
_DEFAULT_THRESHOLDS = (50, 80, 100)
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Budget:
    """A limit on what calls may cost, use or number within a window of time.

    A budget applies to the calls that match every scope field it names. A value is exact text, ``"*"`` for one counter
    per value, or a pattern such as ``"gpt-5*"`` with one counter for all it matches. A call that lacks the value (no
    ``member`` set) is not matched by ``member="*"``: add a budget without that scope to catch it.

    Exactly one of `limit_usd`, `limit_tokens` and `limit_requests` is given.

    Attributes:
        api_key: Alias from the configuration, fingerprint, or ``...last4`` as reports show it.
        member: Person or service account.
        team: Group of members.
        organization: Customer or legal entity.
        project: Cost object.
        route: Feature of the caller's application.
        model: Model as the caller names it.
        provider: Provider id (``openai``, ``anthropic``, ...).
        end_user: The caller's own customer.
        tags: Tag name -> value.
        limit_usd: US dollars of billed cost, to the picodollar. Not a binary fraction: write ``"0.10"`` or an int.
        limit_tokens: Input and output tokens together.
        limit_requests: Calls.
        period: ``hour``, ``day``, ``week``, ``month``, ``quarter``, ``year``, ``total`` or ``rolling-<n>s|m|h|d``
            (a rate limit: never more than the limit in any stretch of that length).
        tz: IANA zone in which the calendar is read.
        week_start: First day of a week, 0 = Monday.
        anchor: Day of the month on which a month, quarter or year begins (a billing anchor); the last day of a month
            that is too short.
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

    Raises:
        ConfigurationError: a value is wrong; the message begins with the field's name.
    """

    api_key: str | None = None
    member: str | None = None
    team: str | None = None
    organization: str | None = None
    project: str | None = None
    route: str | None = None
    model: str | None = None
    provider: str | None = None
    end_user: str | None = None
    tags: Mapping[str, str] = field(default_factory=lambda: _NO_TAGS)
    limit_usd: Decimal | int | str | None = None
    limit_tokens: int | None = None
    limit_requests: int | None = None
    period: str = "month"
    tz: str = "UTC"
    week_start: int = 0
    anchor: int = 1
    hard: bool = True
    thresholds: Sequence[int] | None = None
    store_failure: Literal["closed", "open"] = "closed"
    starts: datetime | date | str | None = None
    ends: datetime | date | str | None = None
    name: str = ""
    estimate: Literal["strict", "expected"] = "strict"
    inject_max_tokens: bool = False
    unbounded: Literal["refuse", "expected"] = "refuse"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        window = Window(self.period, self.tz, self.week_start, self.anchor)
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ConfigurationError(f"{key} must be {' or '.join(choices)}, not {getattr(self, key)!r}.")
        for key in ("hard", "inject_max_tokens"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigurationError(f"{key} must be true or false, not {getattr(self, key)!r}.")
        set_field(self, "tags", _checked_tags(self.tags))
        for key in SCOPE_FIELDS:
            _check_text(getattr(self, key), key)
        self._set_limit()
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
        return _rebuild, ({**values, "tags": dict(self.tags)},)

    def __repr__(self) -> str:
        said = (f"{item.name}={getattr(self, item.name)!r}" for item in fields(self) if self._says(item.name))
        return f"Budget({', '.join(said)})"

    def __hash__(self) -> int:
        return hash((self.name, self.unit, self.limit, self.period))

    @classmethod
    def parse(cls, row: Mapping[str, Any], *, file: str | None = None, number: int = 0) -> Budget:
        """A budget from a ``[[budgets]]`` table.

        Args:
            row: The table's content.
            file: Where it stands, for the error's text.
            number: Its place among the tables, from 0.

        Raises:
            ConfigurationError: names file, table, field and reason.
        """
        where = f"{file or 'configuration'}: budgets[{number}]"
        known = [item.name for item in fields(cls)]
        for key in row:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}."
                raise ConfigurationError(f"{where}.{key} is not a field of a budget; {hint}")
        try:
            return cls(**row)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}.{error}") from None

    @property
    def unit(self) -> Unit:
        """What is limited."""
        return next(unit for key, unit in _LIMITS.items() if getattr(self, key) is not None)

    @property
    def limit(self) -> Decimal:
        """The limit in `unit`."""
        return Decimal(next(value for key in _LIMITS if (value := getattr(self, key)) is not None))

    @property
    def limit_amount(self) -> int:
        """The limit as the integer that counters hold: picodollars, tokens or requests."""
        return to_picodollars(self.limit) if self.unit == "usd" else int(self.limit)

    def amount(self, value: int) -> Decimal:
        """A counter's integer in `unit`."""
        if self.unit != "usd":
            return Decimal(value)
        dollars = to_dollars(value).normalize(EXACT)
        return dollars if dollars.as_tuple().exponent <= 0 else dollars.quantize(ONE)  # type: ignore[operator]

    @property
    def window(self) -> Window:
        """How its time is cut."""
        return Window(self.period, self.tz, self.week_start, self.anchor)

    @property
    def scope(self) -> dict[str, str]:
        """The scope fields it names, tags as ``tag:NAME``, in a fixed order."""
        named = {key: value for key in SCOPE_FIELDS if (value := getattr(self, key)) is not None}
        return named | {f"tag:{key}": value for key, value in self.tags.items()}

    @property
    def counter_name(self) -> str:
        """Its identity in the store. Another unit or window is another counter; another limit is the same one."""
        kind = f"{self.unit}/{self.window.label}"
        return self.name if kind in self.name else f"{self.name} [{kind}]"

    @property
    def threshold_amounts(self) -> dict[int, int]:
        """Absolute amount -> percent, ascending; rounded up, so that 100 % is the limit itself."""
        percents = cast("tuple[int, ...]", self.thresholds)
        return {-(-self.limit_amount * percent // 100): percent for percent in percents}

    @property
    def effective(self) -> tuple[datetime | None, datetime | None]:
        """`starts` and `ends` as instants."""
        return cast("datetime | None", self.starts), cast("datetime | None", self.ends)

    def applies(self, moment: datetime) -> bool:
        """Whether `moment` lies between its effective dates."""
        starts, ends = self.effective
        return (starts is None or moment >= starts) and (ends is None or moment < ends)

    def _says(self, name: str) -> bool:
        value = getattr(self, name)
        return name in ("name", "period") or (value not in (None, {}) and value != _DEFAULTS.get(name))

    def _set_limit(self) -> None:
        given = [key for key in _LIMITS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"limit_usd, limit_tokens or limit_requests: give exactly one, not {' and '.join(given) or 'none'}."
            )
        key = given[0]
        number = parse_decimal(getattr(self, key), name=key)
        if number <= 0:
            raise ConfigurationError(f"{key} must be greater than zero, not {number}.")
        step = PICODOLLAR if key == "limit_usd" else Decimal(1)
        if number % step:
            raise ConfigurationError(f"{key} must be a multiple of {step:f}, not {number}.")
        if number / step > _LARGEST:
            raise ConfigurationError(f"{key} must not be greater than {_LARGEST * step:f}.")
        object.__setattr__(self, key, number if key == "limit_usd" else int(number))

    def _derived_name(self) -> str:
        scope = ",".join(f"{key}={value}" for key, value in self.scope.items()) or "all"
        soft = "" if self.hard else " soft"
        dates = "".join(
            f" {word} {value:%Y-%m-%dT%H:%M}"
            for word, value in zip(("from", "until"), self.effective, strict=True)
            if value
        )
        return f"{scope} {self.unit}/{self.window.label}{soft}{dates}"


_DEFAULTS = {item.name: item.default for item in fields(Budget)} | {"thresholds": _DEFAULT_THRESHOLDS}

#: Counters are 64-bit integers in every store; this leaves room for what is in flight.
_LARGEST = Decimal(4 * 10**18)


def _rebuild(values: dict[str, Any]) -> Budget:
    return Budget(**values)


def _check_text(value: object, name: str) -> None:
    if value is not None and (not isinstance(value, str) or not value.strip() or not value.isprintable()):
        raise ConfigurationError(f"{name} must be a non-empty text, not {value!r}.")


def _checked_tags(tags: object) -> Mapping[str, str]:
    if not isinstance(tags, Mapping):
        raise ConfigurationError(f"tags must map a tag's name to its value or '*', not {tags!r}.")
    pairs = cast("Mapping[str, str]", tags)
    for key, value in pairs.items():
        _check_text(key, "tags")
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"tags.{key} must be a non-empty text, not {value!r}.")
        _check_text(value, f"tags.{key}")
    return MappingProxyType(dict(sorted(pairs.items())))


def _checked_thresholds(value: object, *, rolling: bool) -> tuple[int, ...]:
    if value is None:
        return () if rolling else _DEFAULT_THRESHOLDS
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigurationError(f"thresholds must be a list of whole percents such as [50, 80, 100], not {value!r}.")
    percents = cast("Sequence[object]", value)
    for percent in percents:
        if not isinstance(percent, int) or isinstance(percent, bool) or not 1 <= percent <= 1000:  # noqa: PLR2004
            raise ConfigurationError(f"thresholds must be whole percents from 1 to 1000, not {percent!r}.")
    return tuple(sorted(set(cast("Sequence[int]", percents))))


def check_consistent(budgets: Iterable[Budget]) -> tuple[Budget, ...]:
    """`budgets` without exact repetitions.

    Raises:
        ConfigurationError: two share a name, or limit the same thing at the same time to different amounts.
    """
    unique = tuple(dict.fromkeys(budgets))
    names: set[str] = set()
    same: dict[object, list[Budget]] = {}
    for budget in unique:
        peers = same.setdefault((tuple(budget.scope.items()), budget.unit, budget.window, budget.hard), [])
        for other in peers:
            if _overlap(budget, other):
                raise ConfigurationError(
                    f"name: budgets {other.name!r} and {budget.name!r} limit the same calls over the same window "
                    f"({other.limit:f} and {budget.limit:f} {budget.unit}); keep one of them."
                )
        if budget.name in names:
            raise ConfigurationError(f"name: two budgets are called {budget.name!r}; give each a name of its own.")
        peers.append(budget)
        names.add(budget.name)
    return unique


def _overlap(one: Budget, other: Budget) -> bool:
    (one_from, one_until), (other_from, other_until) = one.effective, other.effective
    apart = (one_until and other_from and one_until <= other_from) or (
        other_until and one_from and other_until <= one_from
    )
    return not apart
