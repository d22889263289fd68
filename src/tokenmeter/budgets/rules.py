"""What is worth telling although no threshold was crossed: money that runs out too fast, spikes, calls without a price.

Rules look every few minutes, in a thread, while calls are made; `Telling.check_rules` looks once. What one finds is
filed as a document of the ledger, so that it is told once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, cast

from tokenmeter.budgets.alerts import Notice, in_full
from tokenmeter.budgets.status import Balance
from tokenmeter.display import counted, dollars, number_text
from tokenmeter.errors import ConfigurationError, shown, whose
from tokenmeter.money import EXACT, ZERO, parse_decimal
from tokenmeter.stores.base import Store
from tokenmeter.stores.documents import NewDocument
from tokenmeter.values import dataclass

#: The kind of document that says what a rule found.
NOTICE = "notice"

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
        faults_told: How often it had failed when that was told last.
        process: ``host:pid``.
    """

    store: Store
    balances: Sequence[Balance]
    now: datetime
    faults: int
    process: str
    faults_told: int = 0


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
            full = one.full_at(sight.now) if one.has_passed(self.percent, sight.now) else None
            if full is not None and one.resets_at is not None and full < one.resets_at:
                scope, start = whose(one.scope), one.window_start or one.counts_from
                yield Notice(
                    kind="burn_rate",
                    subject=f"{one.budget} ({scope}) {one.unit} {start:%Y-%m-%dT%H:%M}",
                    text=f"Budget {one.budget!r} ({scope}) is full on {full:%Y-%m-%d %H:%M} UTC at this rate, before "
                    f"it {one.until} on {one.resets_at:%Y-%m-%d %H:%M} UTC: {in_full(one.spent, one.unit)} of "
                    f"{in_full(one.limit, one.unit)} are spent.",
                    figures={
                        "spent": f"{one.spent:f} {one.unit}",
                        "limit": f"{one.limit:f} {one.unit}",
                        "full_at": full.isoformat(),
                        "resets_at": one.resets_at.isoformat(),
                        "ends": "yes" if one.ends else "no",
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
        """One notice per model and day on which it was called; what a correction has priced since is none."""
        since, midnight = sight.now - _DAY, sight.now.replace(hour=0, minute=0, second=0, microsecond=0)
        days = [since, midnight] if midnight > since else [since]
        for found in sight.store.aggregate([*days, sight.now], ("provider", "model")):
            if found.unpriced > 0:
                provider, model = found.group
                of = f"of {model!r} at {provider}"
                yield Notice(
                    kind="unpriced",
                    subject=f"{provider} {model} {days[found.bucket]:%Y-%m-%d}",
                    text=f"{counted(found.unpriced, f'call {of} has', f'calls {of} have')} no known price. "
                    "Give it one ([[prices]]), then `tokenmeter reprice`.",
                    figures={"provider": str(provider), "model": str(model), "calls": str(found.unpriced)},
                    at=sight.now,
                )


@dataclass(frozen=True, slots=True)
class Faults:
    """Something inside tokenmeter failed in this process: calls went on, but may be missing in the ledger."""

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per process and hour in which there were more."""
        if sight.faults > sight.faults_told:
            often = counted(sight.faults - sight.faults_told, "time")
            total = f", {sight.faults} in all" if sight.faults_told else ""
            yield Notice(
                kind="faults",
                subject=f"{sight.process} {sight.now:%Y-%m-%dT%H}",
                text=f"tokenmeter failed {often} in {sight.process}{total}; its log says where. "
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
