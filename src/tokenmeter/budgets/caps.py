"""Budgets made ready for the hot path: matched, cut into windows and turned into integers once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from tokenmeter.budgets.policy import Budget, Unit
from tokenmeter.budgets.scopes import Matcher, Subject, scope_text
from tokenmeter.budgets.windows import ROLLING_STEPS, Span
from tokenmeter.ledger import CounterKey

__all__ = ["Cap", "CapIndex", "Keys"]

#: Counters, each with its window's end in microseconds since the epoch (None = never).
Keys = tuple[tuple[CounterKey, int | None], ...]

_MOST_KEYS = 4_096


class Cap:
    """One budget, prepared. Safe to share between threads: its only changing part is a cache that is set whole.

    Attributes:
        budget: The budget.
        counter_name: `Budget.counter_name`.
        limit: `Budget.limit_amount`.
        unit: `Budget.unit`.
        match: Gives a subject's scope values, or None.
        thresholds: Absolute amounts, ascending.
        percents: Absolute amount -> percent.
    """

    __slots__ = (
        "_cached",
        "_keys",
        "_step",
        "_window",
        "budget",
        "counter_name",
        "limit",
        "match",
        "percents",
        "thresholds",
        "unit",
    )

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.counter_name = budget.counter_name
        self.limit = budget.limit_amount
        self.unit: Unit = budget.unit
        self.match = Matcher(budget.scope)
        self.percents = budget.threshold_amounts
        self.thresholds = tuple(self.percents)
        self._window = budget.window
        length = self._window.length_us
        self._step = None if length is None else max(length // ROLLING_STEPS, 1)
        self._keys: dict[tuple[str, ...], tuple[tuple[Span, ...], Keys]] = {}
        self._cached: tuple[int, int | None, tuple[Span, ...]] = (1, 0, ())

    @property
    def strict(self) -> bool:
        """Whether every hold is an upper bound of its call."""
        return self.budget.estimate == "strict" and self.budget.unbounded == "refuse"

    @property
    def rolling(self) -> bool:
        """Whether it is a rate limit."""
        return self._step is not None

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

    def thresholds_of(self, window_start: int) -> tuple[int, ...]:
        """The thresholds a counter reports. Of overlapping rolling windows only every seventh does: these do not."""
        if self._step is not None and window_start // self._step % (ROLLING_STEPS + 1):
            return ()
        return self.thresholds


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
