"""Definitions of budgets as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tokenmeter.budgets.policy import WEEKDAYS, Budget, is_function


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
