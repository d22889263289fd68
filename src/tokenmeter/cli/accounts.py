"""``budgets ...`` and ``remaining``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress_bar import ProgressBar

from tokenmeter.budgets import Balance, Budget, Change, Grant
from tokenmeter.budgets.agreement import in_words, list_differences
from tokenmeter.budgets.policy import Unit
from tokenmeter.budgets.status import check_scope, name_grant
from tokenmeter.cli.app import Exit, Group, commands, out
from tokenmeter.cli.frame import Frame, command, emit, show_table
from tokenmeter.cli.options import TzOption, parse_pairs
from tokenmeter.config import load_settings
from tokenmeter.display import share, unit_amount, visible
from tokenmeter.errors import ConfigurationError
from tokenmeter.money import add, divide, magnitude, multiply
from tokenmeter.periods import zone
from tokenmeter.texts import acting

_NEARLY = Decimal("0.8")


budgets_app = typer.Typer(cls=Group, help="Caps: where they stand, what they are, and who changed them.")
commands.add_typer(budgets_app, name="budgets")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The budget's name.", show_default=False)]
ByOption = Annotated[
    str | None, typer.Option("--by", "--actor", help="Who decides it, for the history.", show_default="this account")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the history.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")]
_SOURCE = "command line"


@command(budgets_app, None, examples=["tokenmeter budgets", "tokenmeter budgets history members"])
def budgets(frame: Frame, *, context: typer.Context, tz: TzOption = "UTC") -> None:
    """Every budget and counter with a bar: how much of it is used and held."""
    if context.invoked_subcommand is not None:
        return
    with frame.meter() as meter:
        found, in_force = list(meter.remaining(at=None)), meter.budgets.changes()
    seen = {balance.budget for balance in found}
    quiet = [change for change in in_force if change.name not in seen]
    if found or frame.as_json or not quiet:
        _show_balances(frame, found, tz)
    for change in () if frame.as_json else quiet:
        out.print(f"{change.name}: {_describe_change(change)}; nothing is counted in it yet.", markup=False)


@command(
    budgets_app,
    "set",
    examples=[
        "tokenmeter budgets set members member=* limit_usd=50 --reason launch",
        "tokenmeter budgets set members limit_usd=80",
    ],
)
def set_budget(
    frame: Frame,
    *,
    name: NameArgument,
    fields: Annotated[
        list[str], typer.Argument(metavar="FIELD=VALUE ...", help=r"As in a [\[budgets]] row; tag:NAME=VALUE for tags.")
    ],
    dry_run: DryRunOption = False,
    by: ByOption = None,
    reason: ReasonOption = "",
) -> None:
    """Define a budget, or change the fields named; every process obeys it with its next call."""
    frame = frame.for_dry_run() if dry_run else frame
    with frame.meter(make=not dry_run) as meter:
        in_force = {one.name: one for one in meter.budgets.changes()}
        known = {name: one.budget.to_dict() for name, one in in_force.items() if one.budget is not None}
        row = known.get(name, {})
        budget = Budget.parse(row | _parse_row(fields, row) | {"name": name}, file="command line")
        ended = [] if name in known else [one.budget for one in meter.budgets.history(name) if one.budget is not None]
        change = meter.budgets.set(budget, by=by, reason=reason, source=_SOURCE, dry_run=dry_run)
    same = change.document_id and name in in_force and in_force[name].document_id == change.document_id
    _tell_changes(frame, [] if same else [change], dry_run=dry_run)
    if name not in known and not (dry_run or frame.as_json):
        out.print(_is_new(name, known, ended), markup=False)


def _is_new(name: str, known: Iterable[str], ended: Sequence[Budget]) -> str:
    """Whoever mistyped a name, or names one that was ended, has another budget than the one that was meant."""
    take_back = f"`tokenmeter budgets retire {shlex.quote(name)}` takes it back"
    if ended:
        was = in_words(ended[-1])
        return f"{name} is a new budget: nothing is taken from the one that was ended ({was}). {take_back}."
    meant = get_close_matches(name, known, n=1)
    mend = f"; {meant[0]} is as it was. {take_back}" if meant else ""
    return f"{name} is a new budget{mend}."


@command(budgets_app, "retire", examples=["tokenmeter budgets retire trial --reason 'it is over'"])
def retire(frame: Frame, *, name: NameArgument, by: ByOption = None, reason: ReasonOption = "") -> None:
    """End a budget; its history and its counters stay."""
    with frame.meter() as meter:
        _tell_changes(frame, [meter.budgets.retire(name, by=by, reason=reason, source=_SOURCE)])


@command(budgets_app, "apply", examples=["tokenmeter budgets apply tokenmeter.toml --dry-run"])
def apply(
    frame: Frame,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=r"A tokenmeter.toml with [\[budgets]].")],
    dry_run: DryRunOption = False,
    by: ByOption = None,
    reason: ReasonOption = "applied",
) -> None:
    """Make the ledger say what a file's budgets say; ends those it declared earlier and has no longer."""
    settings, frame = load_settings(config=file), frame.settled_by(file)
    frame = frame.for_dry_run() if dry_run else frame
    declared = [
        row if isinstance(row, Budget) else Budget.parse(row, file=str(file), number=number)
        for number, row in enumerate(settings.budgets)
    ]
    with frame.meter(make=not dry_run) as meter:
        changes = meter.budgets.apply(
            declared, source=str(Path(str(settings.source)).resolve()), by=by, reason=reason, dry_run=dry_run
        )
    _tell_changes(frame, changes, dry_run=dry_run)


@command(budgets_app, "history", examples=["tokenmeter budgets history", "tokenmeter budgets history members --json"])
def history(
    frame: Frame,
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this budget.", show_default=False)] = None,
    tz: TzOption = "UTC",
) -> None:
    """Every definition, change, grant and end: when, by whom, from where and why."""
    with frame.meter() as meter:
        changes = meter.budgets.history(name)
        names = dict.fromkeys([name] if name else [change.name for change in changes])
        labels = meter.store.key_labels()
        grants = [name_grant(grant, labels) for one in names for grant in meter.budgets.grants(one)]
    if frame.as_json:
        emit({"changes": [one.to_dict() for one in changes], "grants": [one.to_dict() for one in grants]})
        return
    if not changes:
        out.print("The ledger has no budget of this name." if name else "The ledger has no budgets.", markup=False)
        return
    lines = [
        *((one.at, one.name, _describe_change(one), one.by, one.source, one.reason) for one in changes),
        *((one.at, one.budget, _describe_grant(one), one.by, "", one.reason) for one in grants),
    ]
    where = zone(tz)
    cells = [
        ["" if at is None else at.astimezone(where).strftime("%Y-%m-%d %H:%M:%S"), *rest]
        # What is only declared has no instant yet; as a text that sorts behind every year.
        for at, *rest in sorted(lines, key=lambda line: str(line[0]))
    ]
    show_table(["when", "budget", "what", "by", "from", "why"], cells, figures=(), whole=("when", "budget", "what"))


@command(commands, "raise", examples=["tokenmeter raise members 20 member=ada --reason 'release week'"])
@command(
    budgets_app,
    "grant",
    examples=[
        "tokenmeter budgets grant credit 25 organization=acme --reason 'invoice 7'",
        "tokenmeter budgets grant --reason 'taken back' -- credit -5 organization=acme",
    ],
)
def grant(
    frame: Frame,
    *,
    name: NameArgument,
    amount: Annotated[str, typer.Argument(help="How much more, in the budget's unit.", show_default=False)],
    scope: Annotated[
        list[str] | None, typer.Argument(metavar="[FIELD=VALUE ...]", help="Which counter, where the budget has a '*'.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the history.", show_default=False)],
    by: ByOption = None,
    unit: Annotated[str | None, typer.Option(help="Which limit, where there are several: usd, tokens, ...")] = None,
    expires: Annotated[str | None, typer.Option(help="When its rest is gone; default: with its window.")] = None,
    key: Annotated[str | None, typer.Option(help="Identity, such as a payment's: granted once.")] = None,
) -> None:
    """Give one counter of a budget more room: a raise for this window, or prepaid credit."""
    with frame.meter() as meter:
        made = meter.budgets.grant(
            name,
            amount,
            by=acting(by),
            reason=reason,
            scope=_parse_scope(scope or ()),
            unit=cast("Unit | None", unit),
            expires=expires,
            key=key,
        )
        made = name_grant(made, meter.store.key_labels())
    if frame.as_json:
        emit(made.to_dict())
    else:
        out.print(f"{made.budget}: {_describe_grant(made)}.", markup=False)


def _parse_row(fields: Sequence[str], before: Mapping[str, Any]) -> dict[str, Any]:
    """``["member=*", "limit_usd=50"]`` as a ``[[budgets]]`` row."""
    row: dict[str, Any] = {}
    tags = dict(before.get("tags", {}))
    for name, value in _parse_fields(fields, "limit_usd=50").items():
        # Nothing after the sign takes the field away.
        if name.startswith("tag:"):
            tags[name.removeprefix("tag:")] = value
            row["tags"] = {tag: one for tag, one in tags.items() if one}
        elif name == "thresholds":
            row[name] = [int(one) if one.strip().isdecimal() else one for one in value.split(",") if one]
        elif name in _FLAGS:
            row[name] = {"true": True, "false": False}.get(value.lower(), value)
        elif name in _NUMBERS and value.isdecimal():
            row[name] = int(value)
        else:
            row[name] = value or None
    return row


def _parse_fields(parts: Sequence[str], example: str) -> dict[str, str]:
    for part in parts:
        name, equals, _ = part.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"{part!r} must read FIELD=VALUE, such as {example}.")
    return parse_pairs(list(parts))


_FLAGS = ("hard", "inject_max_tokens")
_NUMBERS = ("week_start", "anchor", "reset_hour", "refresh")


def _tell_changes(frame: Frame, changes: Sequence[Change], *, dry_run: bool = False) -> None:
    if frame.as_json:
        emit([change.to_dict() for change in changes])
        return
    if not changes:
        out.print("Nothing to change: the ledger says the same.", markup=False)
    for change in changes:
        would = "would be " if dry_run else ""
        done = "ended" if change.budget is None else "set"
        if change.budget is not None and change.before is not None:
            differences = list_differences(change.before, change.budget)
            what = ": " + (", ".join(f"{field} {was} -> {now}" for field, was, now in differences) or "as it was")
        else:
            what = "" if change.budget is None else f": {_describe_change(change)}"
        out.print(f"{change.name}: {would}{done}, version {change.version}{what}", markup=False)


def _describe_change(change: Change) -> str:
    return "ended" if change.budget is None else in_words(change.budget)


def _describe_grant(grant: Grant) -> str:
    whose = ", ".join(f"{name}={value}" for name, value in grant.scope.items()) or "all calls"
    until = "" if grant.expires is None else f" until {grant.expires:%Y-%m-%d %H:%M} UTC"
    sign = "-" if grant.amount < 0 else "+"
    return f"{sign}{magnitude(grant.amount):f} {grant.unit} for {whose}{until}"


@command(commands, "remaining", examples=["tokenmeter remaining member=ada"])
def remaining(
    frame: Frame,
    *,
    scope: Annotated[
        list[str] | None, typer.Argument(help="FIELD=VALUE, such as member=ada or tag:env=prod.", show_default=False)
    ] = None,
    tz: TzOption = "UTC",
) -> None:
    """What is left of the budgets that concern a member, key, team, ...

    Exit code 5 when a hard one is used up; else 6 when the limit of a hard one is not known here.
    """
    wanted = _parse_scope(scope or ())
    with frame.meter() as meter:
        found = list(meter.remaining(at=None, **wanted))
        others = sorted(budget.name for budget in meter.budgets.in_force)
    if found or frame.as_json or not others:
        _show_balances(frame, found, tz)
    else:
        asked = ", ".join(f"{name}={value}" for name, value in wanted.items()) or "this"
        out.print(f"No budget in force concerns {asked}. In force: {', '.join(others)}.", markup=False)
    if any(balance.hard and balance.limit_known and balance.remaining <= 0 for balance in found):
        raise typer.Exit(Exit.BUDGET)
    if any(balance.hard and not balance.limit_known for balance in found):
        # The job that waits for an answer would be refused: no call passes where the limit is not known.
        raise typer.Exit(Exit.UNKNOWN)


def _parse_scope(scope: Sequence[str]) -> dict[str, str]:
    wanted = _parse_fields(scope, "member=ada")
    if empty := next((name for name, value in wanted.items() if not value), None):
        raise ConfigurationError(f"'{empty}=' must read FIELD=VALUE, such as member=ada.")
    check_scope(wanted)
    return wanted


def _show_balances(frame: Frame, found: Sequence[Balance], tz: str) -> None:
    if frame.as_json:
        emit([balance.to_dict() for balance in found])
        return
    if not found:
        out.print(
            "There is no budget. Budgets are configured with [[budgets]] in tokenmeter.toml or in code.",
            markup=False,
        )
        return
    any_assumed = any(balance.assumed for balance in found)
    lines: list[list[str | ProgressBar]] = []
    for balance in found:
        scope = ", ".join(f"{name}={value}" for name, value in balance.scope.items()) or "all calls"
        until = (
            "never" if balance.resets_at is None else balance.resets_at.astimezone(zone(tz)).strftime("%Y-%m-%d %H:%M")
        )
        used = add(balance.spent, balance.reserved)
        lines.append(
            [
                visible(balance.budget),
                visible(scope),
                unit_amount(used, balance.unit),
                *((unit_amount(balance.assumed, balance.unit) if balance.assumed else "",) if any_assumed else ()),
                (unit_amount(balance.limit, balance.unit) if balance.limit_known else "not known here")
                + ("" if balance.hard else " (soft)"),
                unit_amount(balance.remaining, balance.unit) if balance.limit_known else "",
                share(_share_used(balance)) if balance.limit_known else "",
                _bar(balance),
                f"{until} (ends)" if balance.ends else until,
            ]
        )
    resets = f"resets ({tz})"
    figures = ("used", *(("assumed",) if any_assumed else ()), "limit", "left", "%")
    show_table(("budget", "scope", *figures, "", resets), lines, figures=figures, whole=("budget", "scope", resets))


def _share_used(balance: Balance) -> Decimal:
    if not balance.limit_known:
        return Decimal(0)
    # A limit of 0 is used up from the beginning.
    return divide(add(balance.spent, balance.reserved), balance.limit) if balance.limit > 0 else Decimal(1)


def _bar(balance: Balance) -> ProgressBar:
    part = _share_used(balance)
    colour = "red" if part >= 1 else "yellow" if part >= _NEARLY else "green"
    percent = int(multiply(min(max(part, Decimal(0)), Decimal(1)), 100))
    return ProgressBar(total=100, completed=percent, width=12, complete_style=colour, finished_style=colour)
