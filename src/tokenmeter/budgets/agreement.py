"""Definitions of budgets compared: which contradict each other, and what each says and a change changes, in words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from tokenmeter.budgets.policy import WEEKDAYS, Budget, Unit, amount_of, is_function
from tokenmeter.errors import ConfigurationError
from tokenmeter.texts import check_name, check_tag

#: What counters' names may end with: an era, and the mark that they were filled from the ledger.
_COUNTER_ENDS = re.compile(r"( #\d+)?( opened)?$")


#: No key has a name that is known.
NO_KEYS: Mapping[str, str] = MappingProxyType({})


def refuse_unmet(budget: Budget) -> None:
    """Refuse a budget on a name that no call can have: it would stop none. Ledgers may hold such a one.

    Raises:
        ConfigurationError: says why.
    """
    try:
        for name, value in budget.scope.items():
            check_name(value, name)
        for tag in budget.tags:
            check_tag(tag)
    except ConfigurationError as error:
        raise ConfigurationError(f"Budget {budget.name!r}: {error}") from None


def check_consistent(
    budgets: Iterable[Budget], places: Iterable[str] = (), *, keys: Mapping[str, str] = NO_KEYS
) -> tuple[Budget, ...]:
    """`budgets` without exact repetitions.

    Args:
        budgets: Budgets that are to be in force together.
        places: Where each of them is said, for the error's text.
        keys: What names one API key alone -> its fingerprint.

    Raises:
        ConfigurationError: two share a name, or limit the same thing at the same time to different amounts.
    """
    said = list(budgets)
    unique = tuple(dict.fromkeys(said))
    where = dict(zip(said, places, strict=False))
    names: dict[str, Budget] = {}
    together = Together(keys=keys)
    for budget in unique:
        together.refuse_twins(budget, where)
        together.add(budget)
        if (twin := names.get(budget.name)) is not None:
            both = ", ".join(where[one] for one in (twin, budget) if one in where)
            both = f" ({both})" if both else ""
            raise ConfigurationError(f"Two budgets are called {budget.name!r}{both}; give each a name of its own.")
        names[budget.name] = budget
    refuse_shared_counters(unique)
    return unique


class Together:
    """Budgets that are in force together, kept by the calls that they limit: thousands are not compared each with each.

    Args:
        budgets: What is in it from the start.
        keys: What names one API key alone -> its fingerprint: a key has several names.
    """

    def __init__(self, budgets: Iterable[Budget] = (), *, keys: Mapping[str, str] = NO_KEYS) -> None:
        self._keys = keys
        self._by_calls: defaultdict[tuple[bool, frozenset[tuple[str, str]]], list[Budget]] = defaultdict(list)
        for budget in budgets:
            self.add(budget)

    def add(self, budget: Budget) -> None:
        """Let a budget be in force beside the others."""
        self._by_calls[self._calls_of(budget)].append(budget)

    def find_twins(self, budget: Budget) -> Iterator[tuple[Budget, Unit]]:
        """Whatever limits the same calls over the same window as it, both hard or both soft, and in which unit."""
        for other in self._by_calls.get(self._calls_of(budget), ()):
            if _overlap(budget, other):
                for unit in budget.units:
                    if unit in other.units and budget.window_of(unit) == other.window_of(unit):
                        yield other, unit

    def refuse_twins(self, budget: Budget, where: Mapping[Budget, str] | None = None) -> None:
        """Refuse a budget that limits the same calls over the same window as one of these.

        Args:
            budget: The one that is said.
            where: Where each is said, for the error's text.

        Raises:
            ConfigurationError: there is one.
        """
        for other, unit in self.find_twins(budget):
            one, two = (
                f"{each.name!r} ({where[each]})" if where and each in where else f"{each.name!r}"
                for each in (other, budget)
            )
            raise ConfigurationError(
                f"Budgets {one} and {two} limit the same calls over the same window "
                f"({describe_limit(other, unit)} and {describe_limit(budget, unit)} {unit}); keep one of them."
            )

    def _calls_of(self, budget: Budget) -> tuple[bool, frozenset[tuple[str, str]]]:
        scope = budget.scope
        if "api_key" in scope:
            scope["api_key"] = self._keys.get(scope["api_key"], scope["api_key"])
        return budget.hard, frozenset(scope.items())


def find_keys(labels: Mapping[str, str]) -> dict[str, str]:
    """What names one API key alone -> its fingerprint, by what keys are called (`Store.key_labels`)."""
    called: defaultdict[str, list[str]] = defaultdict(list)
    for fingerprint, label in labels.items():
        called[label].append(fingerprint)
    return {label: keys[0] for label, keys in called.items() if len(keys) == 1}


def refuse_shared_counters(budgets: Iterable[Budget], others: Iterable[Budget] = ()) -> None:
    """Refuse a budget whose name is what a counter of another one is called, now or after it began anew.

    Args:
        budgets: Those that are said.
        others: Those there are or were: an ended one's counters stay.

    Raises:
        ConfigurationError: there is one; two budgets would count into the same counter.
    """
    said = tuple(budgets)
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for budget in (*others, *said):
        for root in _counter_roots(budget):
            owners[root].add(budget.name)
    for budget in said:
        for root in _counter_roots(budget):
            if len(names := owners[root]) > 1:
                shorter, *_, longer = sorted(names, key=len)
                raise ConfigurationError(
                    f"name: {longer!r} is called like the counter of budget {shorter!r}; give {budget.name!r} another "
                    "name."
                )


def _counter_roots(budget: Budget) -> set[str]:
    """What its counters are called in every era."""
    return {_COUNTER_ENDS.sub("", budget.counter_name(unit)) for unit in budget.units}


def describe_limit(budget: Budget, unit: Unit) -> str:
    """How much a budget's limit in one unit is, in words."""
    limit = budget.limits.get(unit)
    return "asked for" if limit is None else f"{amount_of(unit, limit):f}"


def _overlap(one: Budget, other: Budget) -> bool:
    (one_from, one_until), (other_from, other_until) = one.effective, other.effective
    apart = (one_until and other_from and one_until <= other_from) or (
        other_until and one_from and other_until <= one_from
    )
    return not apart


# -- as people read them


def describe_field(name: str, value: object) -> str:
    """A value of a ``[[budgets]]`` row in words; "nothing" for one that is not there.

    Args:
        name: The row's key.
        value: As `Budget.to_dict` has it.
    """
    if name == "week_start" and isinstance(value, int):
        return WEEKDAYS[value]
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        if name == "limit" and is_function(table):
            return f"asked of {table['function']}"
        parts = (f"{key} {_describe_limit(one)}" if name == "limit" else f"{key}: {one}" for key, one in table.items())
        return "; ".join(parts) if name == "limit" else ", ".join(parts)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(map(str, cast("list[object]", value))) or "none"
    return "nothing" if value is None else str(value)


def _describe_limit(value: object) -> str:
    if isinstance(value, Mapping):
        return " and ".join(f"{amount} {unit}" for unit, amount in cast("Mapping[str, object]", value).items())
    return "as the rest" if value is None else str(value)


def in_words(budget: Budget) -> str:
    """A definition, with the fields as a row of the settings has them."""
    said = ", ".join(
        f"limit {describe_field(name, value)}" if name == "limit" else f"{name}={describe_field(name, value)}"
        for name, value in _row(budget).items()
    )
    return said if budget.scope else f"all calls, {said}"


def list_differences(before: Budget | None, after: Budget | None) -> list[tuple[str, str, str]]:
    """The fields that a change changes: name, and in words what each was and will be."""
    was, now = (_row(one) if one is not None else {} for one in (before, after))
    return [
        (name, describe_field(name, was.get(name)), describe_field(name, now.get(name)))
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]


def _row(budget: Budget) -> dict[str, Any]:
    """A row of the settings without the name, each tag under its own."""
    row = {name: value for name, value in budget.to_dict().items() if name not in {"name", "tags"}}
    return row | {f"tag:{name}": value for name, value in budget.tags.items()}
