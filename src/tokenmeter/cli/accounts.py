"""``budgets`` and ``remaining``."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from tokenmeter.budgets import Balance
from tokenmeter.budgets.policy import SCOPE_FIELDS
from tokenmeter.cli.console import Exit, emit, out
from tokenmeter.cli.frame import Frame, app, command
from tokenmeter.cli.options import TzOption
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import add, divide, magnitude, multiply, round_to
from tokenmeter.periods import zone

__all__ = ["budgets", "remaining"]

_NEARLY = Decimal("0.8")


@command(app, "budgets")
def budgets(frame: Frame, *, tz: TzOption = "UTC") -> None:
    """Every budget and counter with a bar: how much of it is used and held."""
    nothing = frame.missing is not None and not frame.settings.budgets
    _show(frame, [] if nothing else _balances(frame, {}), tz)


@command(app, "remaining", examples=["tokenmeter remaining member=ada"])
def remaining(
    frame: Frame,
    *,
    scope: Annotated[
        list[str] | None, typer.Argument(help="FIELD=VALUE, such as member=ada or tag:env=prod.", show_default=False)
    ] = None,
    tz: TzOption = "UTC",
) -> None:
    """What is left of the budgets that concern a member, key, team, ...; exit code 5 when a hard one is used up."""
    found = _balances(frame, _parse_scope(scope or ()))
    _show(frame, found, tz)
    if any(balance.hard and balance.remaining <= 0 for balance in found):
        raise typer.Exit(Exit.BUDGET)


def _parse_scope(scope: Sequence[str]) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for part in scope:
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigurationError(f"{part!r} must read FIELD=VALUE, such as member=ada.")
        if name not in SCOPE_FIELDS and not (name.startswith("tag:") and len(name) > len("tag:")):
            known = ", ".join(SCOPE_FIELDS)
            raise ConfigurationError(f"No budget is scoped by {name!r}; use {known} or tag:NAME.")
        wanted[name] = value
    return wanted


def _balances(frame: Frame, wanted: dict[str, str]) -> list[Balance]:
    with frame.meter() as meter:
        return list(meter.remaining(at=None, **wanted))


def _show(frame: Frame, found: Sequence[Balance], tz: str) -> None:
    if frame.as_json:
        emit([balance.to_dict() for balance in found])
        return
    if not found:
        out.print(
            "No budget concerns this. Budgets are configured with [[budgets]] in tokenmeter.toml or in code.",
            markup=False,
        )
        return
    table = Table("budget", "scope", box=None, pad_edge=False, header_style="bold")
    for head in ("used", "limit", "left", "%"):
        table.add_column(head, justify="right")
    table.add_column("", width=20)
    table.add_column("resets")
    for balance in found:
        scope = ", ".join(f"{name}={value}" for name, value in balance.scope.items()) or "all calls"
        kind = "" if balance.hard else " (soft)"
        resets = (
            "never" if balance.resets_at is None else balance.resets_at.astimezone(zone(tz)).strftime("%Y-%m-%d %H:%M")
        )
        figures = (add(balance.spent, balance.reserved), balance.limit, balance.remaining)
        table.add_row(
            escape(balance.budget + kind),
            escape(scope),
            *(_amount(one, balance.unit) for one in figures),
            f"{round_to(multiply(_part(balance), 100), 0):f}%",
            _bar(balance),
            resets,
        )
    out.print(table, soft_wrap=False)


def _amount(value: Decimal, unit: str) -> str:
    if unit == "usd":
        shown = round_to(value, 2)
        return f"-${magnitude(shown):,f}" if shown < 0 else f"${shown:,f}"
    return f"{round_to(value, 0):,f} {unit}"


def _part(balance: Balance) -> Decimal:
    return divide(add(balance.spent, balance.reserved), balance.limit) if balance.limit > 0 else Decimal(1)


def _bar(balance: Balance) -> ProgressBar:
    part = _part(balance)
    colour = "red" if part >= 1 else "yellow" if part >= _NEARLY else "green"
    percent = int(multiply(min(max(part, Decimal(0)), Decimal(1)), 100))
    return ProgressBar(total=100, completed=percent, width=20, complete_style=colour, finished_style=colour)
