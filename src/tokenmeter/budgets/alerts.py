"""What people are told: thresholds crossed, and what is worth telling although none is.

Thresholds are told once per window over all processes (`tokenmeter.budgets.delivery` has how). Rules look for money
that runs out too fast, spikes and calls without a price: every few minutes, in a thread, while calls are made;
`Budgets.check_rules` looks once. What one finds is filed as a document of the ledger, so that it is told once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol, cast

from tokenmeter.budgets.status import Balance
from tokenmeter.display import counted, dollars, number_text, unit_amount
from tokenmeter.errors import ConfigurationError, shown, whose
from tokenmeter.money import EXACT, ZERO, parse_decimal
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import NewDocument
from tokenmeter.values import dataclass

Severity = Literal["critical", "warning"]

#: The kind of document that says what a rule found.
NOTICE = "notice"
_FULL = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A budget's threshold was crossed for the first time in its window.

    Attributes:
        budget: Name of the budget.
        scope: What the counter belongs to, for example ``{"member": "ada"}``.
        unit: ``usd``, ``tokens`` or ``requests``.
        threshold: Percent of the limit that was crossed.
        limit: The limit, in `unit`.
        spent: What settled calls have used in this window, in `unit`.
        window_start: Aware UTC.
        window_end: Aware UTC; None for a budget that never resets.
        at: When it was noticed, aware UTC.
        hard: Whether the budget stops calls.
        key_name: What the API key of ``scope`` is called, where it has a name.
    """

    budget: str
    scope: dict[str, str]
    unit: str
    threshold: int
    limit: Decimal
    spent: Decimal
    window_start: datetime
    window_end: datetime | None
    at: datetime
    hard: bool
    key_name: str | None = None

    @property
    def kind(self) -> str:
        """``threshold``."""
        return "threshold"

    @property
    def severity(self) -> Severity:
        """``critical`` for a hard budget that is used up, else ``warning``."""
        return "critical" if self.hard and self.threshold >= _FULL else "warning"

    @property
    def title(self) -> str:
        """A few words."""
        return f"Budget {self.budget!r} passed {self.threshold} %"

    def facts(self) -> dict[str, str]:
        """Its figures for people."""
        resets = "never" if self.window_end is None else f"{self.window_end:%Y-%m-%d %H:%M} UTC"
        return {
            "budget": self.budget,
            "scope": whose(self.scope, self.key_name),
            "spent": _in_full(self.spent, self.unit),
            "limit": _in_full(self.limit, self.unit),
            "resets": resets,
            "stops calls": "yes" if self.hard else "no",
        }

    @property
    def alert_id(self) -> str:
        """The same for the same threshold of the same window, however often it is delivered."""
        scope = repr(sorted(self.scope.items()))
        parts = (self.budget, self.unit, scope, self.window_start.isoformat(), str(self.threshold))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: amounts as decimal strings, instants in ISO 8601."""
        return {
            "alert_id": self.alert_id,
            "kind": self.kind,
            "severity": self.severity,
            "budget": self.budget,
            "scope": dict(self.scope),
            "unit": self.unit,
            "threshold": self.threshold,
            "limit": f"{self.limit:f}",
            "spent": f"{self.spent:f}",
            "window_start": self.window_start.isoformat(),
            "window_end": None if self.window_end is None else self.window_end.isoformat(),
            "at": self.at.isoformat(),
            "hard": self.hard,
            "key_name": self.key_name,
        }

    def __str__(self) -> str:
        until = "" if self.window_end is None else f" of the window that ends {self.window_end:%Y-%m-%d %H:%M} UTC"
        return (
            f"Budget {self.budget!r} ({whose(self.scope, self.key_name)}) passed {self.threshold} %{until}: "
            f"{_in_full(self.spent, self.unit)} of {_in_full(self.limit, self.unit)}"
        )


def _in_full(value: Decimal, unit: str) -> str:
    return dollars(value) if unit == "usd" and value.is_finite() else unit_amount(value, unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a rule found (`tokenmeter.budgets.alerts`): told once, over all processes.

    Attributes:
        kind: The rule: ``burn_rate``, ``spike``, ``unpriced`` or ``faults``.
        subject: What it is about: the same subject is told once.
        text: What was found, as a sentence.
        figures: Its figures, as texts: amounts are decimal, instants ISO 8601.
        severity: ``critical`` or ``warning``.
        at: When it was noticed, aware UTC.
    """

    kind: str
    subject: str
    text: str
    figures: Mapping[str, str]
    severity: Severity = "warning"
    at: datetime

    @property
    def title(self) -> str:
        """A few words."""
        return f"{self.kind.replace('_', ' ').capitalize()}: {self.subject}"

    @property
    def alert_id(self) -> str:
        """The same for the same subject, however often it is delivered."""
        return hashlib.sha256(f"{self.kind}\n{self.subject}".encode()).hexdigest()[:32]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Notice:
        """The notice that `to_dict` made `told` of."""
        return cls(
            kind=told["kind"],
            subject=told["subject"],
            text=told["text"],
            figures=told["figures"],
            severity=told["severity"],
            at=datetime.fromisoformat(told["at"]),
        )

    def facts(self) -> dict[str, str]:
        """Its figures for people."""
        return dict(self.figures)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "alert_id": self.alert_id,
            "kind": self.kind,
            "severity": self.severity,
            "subject": self.subject,
            "text": self.text,
            "figures": dict(self.figures),
            "at": self.at.isoformat(),
        }

    def __str__(self) -> str:
        return self.text


#: Anything that takes an alert: a function of yours, or a target of `tokenmeter.budgets.targets`.
AlertTarget = Callable[[Alert | Notice], object]


_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a rule looks at.

    Attributes:
        store: The ledger.
        balances: Every counter of every budget in force.
        now: The store's clock.
        faults: How often something inside tokenmeter failed in this process.
        process: ``host:pid``.
    """

    store: Store
    balances: Sequence[Balance]
    now: datetime
    faults: int
    process: str


class Rule(Protocol):
    """Finds what is worth telling. The same subject is told once."""

    def __call__(self, sight: Sight) -> Iterable[Notice]:
        """What there is to tell now."""
        ...


@dataclass(frozen=True, slots=True)
class BurnRate:
    """A budget that is used up before its window ends if it goes on like this.

    Attributes:
        percent: How much of the window must have passed before a projection is made.
    """

    percent: int = 10

    def __post_init__(self) -> None:
        percent = cast("object", self.percent)
        if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:  # noqa: PLR2004
            raise ConfigurationError(
                f"rules: burn_rate.percent must be a whole number from 0 to 100, not {shown(percent)}."
            )

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per counter and window."""
        for one in sight.balances:
            if one.window_start is None or one.resets_at is None:
                continue
            length, passed = one.resets_at - one.window_start, sight.now - one.window_start
            if passed * 100 < length * self.percent:
                continue
            full = one.full_at(sight.now)
            if full is not None and full < one.resets_at:
                scope = whose(one.scope)
                yield Notice(
                    kind="burn_rate",
                    subject=f"{one.budget} ({scope}) {one.unit} {one.window_start:%Y-%m-%dT%H:%M}",
                    text=f"Budget {one.budget!r} ({scope}) is full on {full:%Y-%m-%d %H:%M} UTC at this rate, before "
                    f"it resets on {one.resets_at:%Y-%m-%d}: {_in_full(one.spent, one.unit)} of "
                    f"{_in_full(one.limit, one.unit)} are spent.",
                    figures={
                        "spent": f"{one.spent:f} {one.unit}",
                        "limit": f"{one.limit:f} {one.unit}",
                        "full_at": full.isoformat(),
                        "resets_at": one.resets_at.isoformat(),
                    },
                    at=sight.now,
                )


@dataclass(frozen=True, slots=True)
class Spike:
    """An hour that cost much more than the hours of the week before.

    Attributes:
        factor: How many times the mean hour.
        least_usd: Hours that cost less are never told.

    Raises:
        ConfigurationError: a value is no number, or too small.
    """

    factor: Decimal | int | str = 5
    least_usd: Decimal | int | str = 1

    def __post_init__(self) -> None:
        for name, least in (("factor", 1), ("least_usd", 0)):
            value = parse_decimal(getattr(self, name), name=f"rules: spike.{name}")
            if value < least:
                raise ConfigurationError(f"rules: spike.{name} must be at least {least}, not {value}.")
            object.__setattr__(self, name, value)

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per hour: of the one under way as soon as it is a spike, and of the one before."""
        now = sight.now.replace(minute=0, second=0, microsecond=0)
        for start in (now - _HOUR, now):
            cost = self._cost(sight.store, start, start + _HOUR)
            if cost == 0 or cost < cast("Decimal", self.least_usd):
                continue
            before = self._cost(sight.store, start - 7 * _DAY, start)
            mean = EXACT.divide(before, Decimal(7 * 24))
            factor, said = cast("Decimal", self.factor), f"cost {dollars(cost)}"
            if start == now:
                said = f"has {said} by now"
            if before > 0 and cost > EXACT.multiply(mean, factor):
                yield Notice(
                    kind="spike",
                    subject=f"{start:%Y-%m-%dT%H:%M}",
                    text=f"The hour from {start:%Y-%m-%d %H:%M} UTC {said}, more than {number_text(factor)} times the "
                    "mean hour of the week before.",
                    figures={"hour_usd": f"{cost:f}", "week_before_usd": f"{before:f}"},
                    at=sight.now,
                )

    @staticmethod
    def _cost(store: Store, since: datetime, until: datetime) -> Decimal:
        cost = ZERO
        for found in store.aggregate([since, until], ()):
            cost = EXACT.add(cost, found.billed_cost)
        return cost


@dataclass(frozen=True, slots=True)
class Unpriced:
    """Calls of the last day whose price is not known: they are missing from every sum of money."""

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per model and day."""
        where = EntryFilter(where={"cost_source": frozenset({"unpriced"}), "kind": frozenset({"usage"})})
        for found in sight.store.aggregate([sight.now - _DAY, sight.now], ("provider", "model"), where):
            if found.unpriced > 0:
                provider, model = found.group
                of = f"of {model!r} at {provider}"
                yield Notice(
                    kind="unpriced",
                    subject=f"{provider} {model} {sight.now:%Y-%m-%d}",
                    text=f"{counted(found.unpriced, f'call {of} has', f'calls {of} have')} no known price. "
                    "Give it one ([[prices]]), then `tokenmeter reprice`.",
                    figures={"provider": str(provider), "model": str(model), "calls": str(found.unpriced)},
                    at=sight.now,
                )


@dataclass(frozen=True, slots=True)
class Faults:
    """Something inside tokenmeter failed in this process: calls went on, but may be missing in the ledger."""

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per process and hour."""
        if sight.faults:
            yield Notice(
                kind="faults",
                subject=f"{sight.process} {sight.now:%Y-%m-%dT%H}",
                text=f"tokenmeter failed {counted(sight.faults, 'time')} in {sight.process}; its log says where. "
                "`tokenmeter doctor` looks after the ledger.",
                figures={"process": sight.process, "faults": str(sight.faults)},
                severity="critical",
                at=sight.now,
            )


#: The rules by the name that settings give them.
RULES: dict[str, type[BurnRate | Spike | Unpriced | Faults]] = {
    "burn_rate": BurnRate,
    "spike": Spike,
    "unpriced": Unpriced,
    "faults": Faults,
}


def make_rules(rows: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """Rules by their names, each with the values that it is given: ``{"rule": "spike", "factor": 4}``.

    Raises:
        ConfigurationError: one is not known, has no such value, or a value is wrong.
    """
    found: list[Rule] = []
    for row in rows:
        name, given = row["rule"], {key: value for key, value in row.items() if key != "rule"}
        kind = RULES.get(name)
        if kind is None:
            raise ConfigurationError(f"rules: {name!r} is not one of {', '.join(RULES)}.")
        known = [field.name for field in fields(kind)]
        if strange := [key for key in given if key not in known]:
            raise ConfigurationError(f"rules: {name} has no {strange[0]}; it has {', '.join(known) or 'no values'}.")
        found.append(kind(**given))
    return found


def check(rules: Iterable[Rule], sight: Sight) -> list[Notice]:
    """What `rules` find that nobody has told yet; filed, so that nobody tells it again.

    Raises:
        StoreUnavailableError: the ledger cannot be read or written.
    """
    found: list[Notice] = []
    for rule in rules:
        for notice in rule(sight):
            body = json.dumps(notice.to_dict(), ensure_ascii=False, separators=(",", ":"))
            filing = sight.store.file(NewDocument(kind=NOTICE, key=notice.alert_id, body=body))
            if filing.recorded:
                found.append(notice)
    return found
