"""What is worth telling although no threshold is crossed: money that runs out too fast, spikes, calls without a price.

Rules look at the ledger every few minutes, in a thread, while calls are made; `Budgets.check_rules` looks once. What
one finds is filed as a document of the ledger, so that over all processes it is told once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from tokenmeter.budgets.alerts import Notice
from tokenmeter.budgets.status import Balance
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import EXACT, ZERO, parse_decimal
from tokenmeter.stores.base import EntryFilter, Store
from tokenmeter.stores.documents import NewDocument

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
                whose = ", ".join(f"{name}={value}" for name, value in one.scope.items()) or "all calls"
                yield Notice(
                    kind="burn_rate",
                    subject=f"{one.budget} ({whose}) {one.unit} {one.window_start:%Y-%m-%dT%H:%M}",
                    text=f"Budget {one.budget!r} ({whose}) is full on {full:%Y-%m-%d %H:%M} UTC at this rate, before "
                    f"it resets on {one.resets_at:%Y-%m-%d}: {one.spent:f} of {one.limit:f} {one.unit} are spent.",
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
    """

    factor: int = 5
    least_usd: Decimal | int | str = 1

    def __call__(self, sight: Sight) -> Iterator[Notice]:
        """One notice per hour: the last whole one."""
        end = sight.now.replace(minute=0, second=0, microsecond=0)
        hour, before = self._cost(sight.store, end - _HOUR, end), self._cost(sight.store, end - 7 * _DAY, end - _HOUR)
        mean = EXACT.divide(before, Decimal(7 * 24 - 1))
        least = parse_decimal(self.least_usd, name="least_usd")
        if hour >= least and before > 0 and hour > EXACT.multiply(mean, self.factor):
            yield Notice(
                kind="spike",
                subject=f"{end - _HOUR:%Y-%m-%dT%H:%M}",
                text=f"The hour from {end - _HOUR:%Y-%m-%d %H:%M} UTC cost ${hour:f}, "
                f"more than {self.factor} times the mean hour of the week before.",
                figures={"hour_usd": f"{hour:f}", "week_before_usd": f"{before:f}"},
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
                yield Notice(
                    kind="unpriced",
                    subject=f"{provider} {model} {sight.now:%Y-%m-%d}",
                    text=f"{found.unpriced} calls of {model!r} at {provider} have no known price. Give it one "
                    "([[prices]]), then `tokenmeter reprice`.",
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
                text=f"tokenmeter failed {sight.faults} times in {sight.process}; its log says where. "
                "`tokenmeter doctor` looks after the ledger.",
                figures={"process": sight.process, "faults": str(sight.faults)},
                severity="critical",
                at=sight.now,
            )


#: The rules by the name that settings give them.
RULES: dict[str, Callable[[], Rule]] = {
    "burn_rate": BurnRate,
    "spike": Spike,
    "unpriced": Unpriced,
    "faults": Faults,
}


def make_rules(names: Iterable[str]) -> list[Rule]:
    """Rules by their names.

    Raises:
        ConfigurationError: one is not known.
    """
    wanted = list(names)
    for name in wanted:
        if name not in RULES:
            raise ConfigurationError(f"rules: {name!r} is not one of {', '.join(RULES)}.")
    return [RULES[name]() for name in wanted]


def check(rules: Iterable[Rule], sight: Sight) -> list[Notice]:
    """What `rules` find that nobody has told yet; filed, so that nobody tells it again.

    Raises:
        StoreUnavailableError: the ledger cannot be read or written.
    """
    found: list[Notice] = []
    for rule in rules:
        for notice in rule(sight):
            body = json.dumps(notice.to_dict(), ensure_ascii=False, separators=(",", ":"))
            filing = sight.store.file(NewDocument(kind="notice", key=notice.alert_id, body=body))
            if filing.recorded:
                found.append(notice)
    return found
