"""Which calls a budget counts, and into which counters: its scope and its windows, prepared once, as integers.

Calls on nobody's account are dealt with here as well: no cap on members catches them, so they are refused or told once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote

from tokenmeter.attribution import ApiKey, Attribution
from tokenmeter.budgets.policy import IN_FLIGHT, Budget, Unit
from tokenmeter.budgets.windows import ROLLING_STEPS, Span
from tokenmeter.call import Call
from tokenmeter.dimensions import SCOPE_FIELDS, WHO
from tokenmeter.errors import AttributionRequiredError, ConfigurationError, shown
from tokenmeter.ledger import CounterKey, Entry
from tokenmeter.places import say_place
from tokenmeter.stores.slots import from_microseconds, to_microseconds
from tokenmeter.texts import is_tag, suggest
from tokenmeter.values import dataclass

#: Counters, each with its window's end in microseconds since the epoch (None = never).
Keys = tuple[tuple[CounterKey, int | None], ...]

_MOST_KEYS = 4_096
#: A window that began this long after its budget was defined was counted by everybody from its first entry on.
_CLOCK_SKEW_US = 300_000_000
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Subject:
    """The part of a call or entry that budgets look at.

    A model budget goes by the model the caller NAMED, before the call and after it: an answer's dated snapshot must
    not move the spend to another counter than the one that was checked. What names none (a stored prompt, a batch's
    line) passes it, and counts by the model that answered: it is spent, and calls that name the model are stopped.
    """

    provider: str
    model: str | None
    attribution: Attribution
    api_key: ApiKey | None

    @classmethod
    def of_call(cls, call: Call) -> Subject:
        """The subject of a call about to leave."""
        return cls(call.provider, call.facts.model, call.attribution, call.api_key)

    @classmethod
    def of_entry(cls, entry: Entry) -> Subject:
        """The subject of a settled entry."""
        return cls(entry.provider, entry.request_model or entry.response_model, entry.attribution, entry.api_key)

    def value(self, name: str) -> str | None:
        """The value of a scope field; None when unknown. A key is its fingerprint: an alias is only a name for it."""
        if name.startswith("tag:"):
            return self.attribution.tags.get(name[4:])
        if name == "model":
            return self.model
        if name == "provider":
            return self.provider
        if name == "api_key":
            return None if self.api_key is None else self.api_key.fingerprint
        value: str | None = getattr(self.attribution, name)
        return value


_NO_ALIASES: Mapping[str, str] = MappingProxyType({})


class Matcher:
    """A budget's scope, prepared: gives the counter's scope values for a subject, or None when it does not apply.

    A value is exact text, ``"*"`` (one counter per value), or a pattern with ``*`` in it (``gpt-5*``: one counter for
    everything that matches). A key is counted by its fingerprint, however the budget names it, so that a key which
    gets another alias goes on with the counter it has.

    Args:
        scope: Scope field -> value.
        aliases: Fingerprint -> what the ledger calls that key, for programs whose own settings do not name it.
    """

    __slots__ = ("_conditions", "exact")

    def __init__(self, scope: Mapping[str, str], aliases: Mapping[str, str] = _NO_ALIASES) -> None:
        self._conditions = tuple((name, wanted, _test(name, wanted, aliases)) for name, wanted in scope.items())
        #: A condition that an index can be built on: (field, value); None when there is none.
        self.exact = next(
            ((name, wanted) for name, wanted in scope.items() if "*" not in wanted and name != "api_key"), None
        )

    def __call__(self, subject: Subject) -> dict[str, str] | None:
        """The counter's scope values for `subject`; None when the budget does not apply to it."""
        found: dict[str, str] = {}
        for name, wanted, test in self._conditions:
            value = subject.value(name)
            if value is None:
                return None
            if test is None:
                found[name] = value
            elif test(value, subject):
                found[name] = value if name == "api_key" and "*" not in wanted else wanted
            else:
                return None
        return found

    def find_lacking(self, subject: Subject) -> list[str]:
        """What a subject leaves unsaid, and so passes a budget that is about calls like it; none where it is not so.

        That is whom or what each is limited by itself, or the model: nobody's account is said on purpose, and a route
        that is not named is another one.
        """
        lacking: list[str] = []
        for name, wanted, test in self._conditions:
            value = subject.value(name)
            if value is None and (wanted == "*" or name == "model"):
                lacking.append(name)
            elif value is None or not (test is None or test(value, subject)):
                return []
        return lacking


def _test(name: str, wanted: str, aliases: Mapping[str, str]) -> Callable[[str, Subject], bool] | None:
    if wanted == "*":
        return None
    if name == "api_key":
        return lambda _, subject: _is_key(subject.api_key, wanted, aliases)
    if "*" in wanted:
        pattern = _pattern(wanted)
        return lambda value, _: pattern.fullmatch(value) is not None
    return lambda value, _: value == wanted


def _pattern(wanted: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, wanted.split("*"))), re.DOTALL)


def value_fits(wanted: str, value: str) -> bool:
    """Whether a scope's text (exact, ``"*"`` or a pattern) covers `value`."""
    return wanted == value or ("*" in wanted and _pattern(wanted).fullmatch(value) is not None)


def _is_key(key: ApiKey | None, wanted: str, aliases: Mapping[str, str]) -> bool:
    if key is None:
        return False
    names = (key.alias or aliases.get(key.fingerprint), key.fingerprint, key.label)
    return any(value_fits(wanted, name) for name in names if name)


_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


def is_alias(name: str | None) -> bool:
    """Whether a budget's `Budget.api_key` names one key by a word of the user's own."""
    return name is not None and "*" not in name and not name.startswith("...") and not is_fingerprint(name)


def is_fingerprint(name: str) -> bool:
    """Whether a text is an API key's fingerprint."""
    return _FINGERPRINT.fullmatch(name) is not None


_ESCAPES = str.maketrans({"%": "%25", ",": "%2C", "=": "%3D"})


def scope_text(scope: Mapping[str, str]) -> str:
    """Scope values as one unambiguous line, ``member=ada,route=/chat``: the counter's identity in the store."""
    return ",".join(f"{name.translate(_ESCAPES)}={value.translate(_ESCAPES)}" for name, value in scope.items())


def parse_scope(text: str) -> dict[str, str]:
    """The scope values that `scope_text` wrote."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}


class Cap:
    """One limit of one budget, prepared. Safe to share between threads: its changing parts are caches set whole.

    Attributes:
        budget: The budget.
        unit: What is limited.
        limit: The limit as the integer that counters hold; None where it is asked for (`Budget.limit`) and no fixed
            one stands in.
        counter_name: Its counters' name in the store. Another unit or window is another counter, and so is what began
            to count anew (`era`); another limit is the same one.
        match: Gives a subject's scope values, or None.
        counted_since_us: Windows that begin after this instant were counted from their first entry on; a definition
            that is not filed yet has none.
    """

    __slots__ = (
        "_aliases",
        "_cached",
        "_keys",
        "_step",
        "_window",
        "budget",
        "counted_since_us",
        "counter_name",
        "limit",
        "match",
        "unit",
    )

    def __init__(
        self,
        budget: Budget,
        unit: Unit,
        *,
        era: int = 1,
        defined_at: datetime | None = None,
        aliases: Mapping[str, str] = _NO_ALIASES,
    ) -> None:
        self.budget = budget
        self.unit: Unit = unit
        self.limit = budget.limits.get(unit)
        self.counter_name = budget.counter_name(unit, era)
        self.match = Matcher(budget.scope, aliases)
        self._aliases = aliases
        self.counted_since_us = NEVER if defined_at is None else to_microseconds(defined_at) + _CLOCK_SKEW_US
        self._window = budget.window_of(unit)
        length = self._window.length_us
        self._step = None if length is None else max(length // ROLLING_STEPS, 1)
        self._keys: dict[tuple[str, ...], tuple[tuple[Span, ...], Keys]] = {}
        self._cached: tuple[int, int | None, tuple[Span, ...]] = (1, 0, ())

    @property
    def names_one_key(self) -> bool:
        """Whether its budget names one API key: each key that bears the name has a counter, by its fingerprint."""
        named = self.budget.api_key
        return named is not None and "*" not in named

    def name_of(self, fingerprint: str) -> str | None:
        """What the ledger calls a key, where the budget goes by names."""
        return self._aliases.get(fingerprint)

    @property
    def strict(self) -> bool:
        """Whether every hold is an upper bound of its call."""
        return self.budget.estimate == "strict" and self.budget.unbounded == "refuse"

    @property
    def rolling(self) -> bool:
        """Whether it is a rate limit."""
        return self._step is not None

    @property
    def opens_by_counter(self) -> bool:
        """Whether each counter is filled from the ledger by itself.

        Entries made before a key had its alias are found by its fingerprint only, which the call tells.
        """
        return self.names_one_key

    @property
    def counts(self) -> bool:
        """Whether settled calls add to it. What is limited in flight is only held."""
        return self.unit != IN_FLIGHT

    def ends_first(self, end_us: int | None) -> int | None:
        """The end of a window, or of the budget itself where that is before it; None where neither ends."""
        _, ends = self.budget.effective
        moments = [moment for moment in (end_us, None if ends is None else to_microseconds(ends)) if moment is not None]
        return min(moments, default=None)

    def ends_with(self, end_us: int | None) -> bool:
        """Whether the budget itself ends with a window, or within it, so that nothing begins anew."""
        _, ends = self.budget.effective
        return ends is not None and (end_us is None or to_microseconds(ends) <= end_us)

    def counts_from(self, start_us: int | None) -> datetime | None:
        """The start of a window, or of the budget itself where that is after it; None where neither has one."""
        starts, _ = self.budget.effective
        begun = None if start_us is None else from_microseconds(start_us)
        return begun if starts is None or (begun is not None and begun > starts) else starts

    def goes_on(self, scope: Mapping[str, str]) -> bool:
        """Whether calls still count into the counter `scope`: its key may bear another name by now."""
        named, known = self.budget.api_key, self._aliases.get(scope.get("api_key", ""))
        return known is None or not is_alias(named) or named == known

    def spans(self, at_us: int) -> tuple[Span, ...]:
        """The windows that an instant (microseconds since the epoch) counts in."""
        start, end, spans = self._cached
        if start <= at_us and (end is None or at_us < end):
            return spans
        spans = self._window.spans(at_us)
        if self._step is None:
            start, end = spans[0]
        else:
            start = at_us // self._step * self._step
            end = start + self._step
        self._cached = (start, end, spans)
        return spans

    def until(self, at_us: int) -> int:
        """First instant at which a call would count in other windows."""
        end = self.spans(at_us)[0][1] if self._step is None else at_us // self._step * self._step + self._step
        return NEVER if end is None else end

    def keys(self, scope: dict[str, str], at_us: int) -> Keys:
        """The counters, with their windows' ends, of a call at an instant."""
        spans = self.spans(at_us)
        values = tuple(scope.values())
        known = self._keys.get(values)
        if known is not None and known[0] is spans:
            return known[1]
        text = scope_text(scope)
        keys = tuple((CounterKey(self.counter_name, text, start), end) for start, end in spans)
        if len(self._keys) >= _MOST_KEYS:
            self._keys.clear()
        self._keys[values] = (spans, keys)
        return keys

    def alerts_at(self, window_start: int) -> bool:
        """Whether a counter reports thresholds. Of overlapping rolling windows only every seventh does."""
        return self._step is None or window_start // self._step % (ROLLING_STEPS + 1) == 0


class CapIndex:
    """Finds the caps that apply to a subject without looking at all of them: thousands of named members are cheap."""

    def __init__(self, caps: Iterable[Cap]) -> None:
        self._named: dict[str, dict[str, list[Cap]]] = {}
        self._others: list[Cap] = []
        for cap in caps:
            exact = cap.match.exact
            if exact is None:
                self._others.append(cap)
            else:
                self._named.setdefault(exact[0], {}).setdefault(exact[1], []).append(cap)

    def __bool__(self) -> bool:
        return bool(self._named or self._others)

    def find(self, subject: Subject, moment: datetime) -> Sequence[tuple[Cap, dict[str, str]]]:
        """Caps that apply at `moment`, each with the scope values of its counter."""
        found: list[tuple[Cap, dict[str, str]]] = []
        for cap in self._candidates(subject):
            scope = cap.match(subject)
            if scope is not None and cap.budget.applies(moment):
                found.append((cap, scope))
        return found

    def _candidates(self, subject: Subject) -> Sequence[Cap]:
        if not self._named:
            return self._others
        candidates = list(self._others)
        for name, by_value in self._named.items():
            value = subject.value(name)
            if value is not None:
                candidates += by_value.get(value, ())
        return candidates


class Matching(NamedTuple):
    """One limit that applies to a call.

    Attributes:
        cap: The limit.
        scope: Scope values of its counter.
        keys: Its counters, opened, with their windows' ends: one, or all overlapping windows of a rate limit.
        limit: What it is now, in the counters' integers; None for one that only counts.
        thresholds: Settled amounts that alert, ascending.
    """

    cap: Cap
    scope: dict[str, str]
    keys: Keys
    limit: int | None
    thresholds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Matched:
    """Every limit that applies to a call.

    Attributes:
        caps: In the order of their counters' keys.
        until_us: First instant at which anything of it may differ, in microseconds since the epoch.
        generation: `Store.generation` at which it was so.
        plannable: Whether every hard one goes by a call's upper bound and by a limit that nobody has to be asked for,
            and no run is around the call.
    """

    caps: tuple[Matching, ...]
    until_us: int
    generation: int | None
    plannable: bool


log = logging.getLogger("tokenmeter")

_MOST_PLACES = 1_000


class Required:
    """What every call has to be attributed to.

    Args:
        names: Fields of `Attribution`, ``api_key``, or ``tag:NAME``.
        refuse: Whether a call without them is refused; else it is told once per place in the code.

    Raises:
        ConfigurationError: a name is no dimension.
    """

    def __init__(self, names: Iterable[str] = (), *, refuse: bool = True) -> None:
        self.names: Sequence[str] = tuple(dict.fromkeys(names))
        self._refuse = refuse
        self._told: set[str] = set()
        for name in self.names:
            if name not in SCOPE_FIELDS and not is_tag(name):
                raise ConfigurationError(
                    f"require: {shown(name)} is not one of {', '.join(SCOPE_FIELDS)} or tag:NAME."
                    + suggest(name, SCOPE_FIELDS)
                )

    def check(self, call: Call) -> None:
        """Look at a call that is about to leave.

        Raises:
            AttributionRequiredError: something is missing, and such calls are refused.
        """
        missing = self.missing(call)
        if missing and self._refuse:
            raise AttributionRequiredError(f"{_say(call, missing)} The call was not sent.", missing=tuple(missing))
        if missing:
            self._tell(_say(call, missing))

    def look_at_made(self, call: Call) -> None:
        """Tell of a call that was made already, and is about to be written down by hand: nobody can refuse it."""
        if missing := self.missing(call):
            self._tell(f"{_say(call, missing)} It was made already, and is recorded.")

    def missing(self, call: Call) -> list[str]:
        """What a call lacks."""
        if not self.names:
            return []
        subject = Subject.of_call(call)
        return [name for name in self.names if subject.value(name) is None]

    def _tell(self, text: str) -> None:
        """Log what has the place in the code in it, once."""
        if text not in self._told and len(self._told) < _MOST_PLACES:
            self._told.add(text)
            log.warning("%s", text)


def _say(call: Call, missing: Sequence[str]) -> str:
    example = next((_example(name) for name in missing if name in WHO or name.startswith("tag:")), None)
    mend = "" if example is None else f" Wrap it in tokenmeter.attribute({example})."
    what = ", ".join(missing)
    return f"The call to {call.endpoint} {say_place()} has no {what}, and the settings require it.{mend}"


def _example(name: str) -> str:
    return f"tags={{{name[4:]!r}: ...}}" if name.startswith("tag:") else f"{name}=..."
