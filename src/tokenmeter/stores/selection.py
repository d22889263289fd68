"""`EntryFilter` as SQL conditions over entries and their contexts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmeter.stores.contexts import CONTEXT_FIELDS

__all__ = ["conditions", "of_context"]


def _accepts(column: str, accepted: frozenset[str | None]) -> tuple[str, list[Any]]:
    values = sorted(value for value in accepted if value is not None)
    condition = f"{column} IN ({', '.join('?' * len(values))})"
    return (f"({condition} OR {column} IS NULL)" if None in accepted else condition), list(values)


def conditions(
    where: Mapping[str, frozenset[str | None]], since: int | None, until: int | None
) -> tuple[list[str], list[Any]]:
    """SQL conditions and their values. Tags and meters are not among them: they are looked at row by row."""
    wanted: list[str] = []
    values: list[Any] = []
    for instant, condition in ((since, "occurred_at >= ?"), (until, "occurred_at < ?")):
        if instant is not None:
            wanted.append(condition)
            values.append(instant)
    if "end_user" in where:
        condition, given = _accepts("end_user", where["end_user"])
        wanted.append(condition)
        values += given
    inner, inner_values = of_context(where)
    if inner:
        wanted.append(f"context IN (SELECT id FROM contexts WHERE {' AND '.join(inner)})")  # noqa: S608 - names of our own
        values += inner_values
    return wanted, values


def of_context(where: Mapping[str, frozenset[str | None]]) -> tuple[list[str], list[Any]]:
    """The conditions among them that concern contexts, over a row of that table."""
    wanted: list[str] = []
    values: list[Any] = []
    for name, accepted in where.items():
        if name in CONTEXT_FIELDS:
            condition, given = _accepts(name, accepted)
            wanted.append(condition)
            values += given
    return wanted, values
