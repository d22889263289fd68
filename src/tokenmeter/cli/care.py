"""``verify``, ``audit``, ``reprice`` and ``doctor``: is everything as it should be?"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

import tokenmeter
from tokenmeter.cli.app import Exit, commands, out, write_exactly
from tokenmeter.cli.configuration import unknown_names, unset_keys
from tokenmeter.cli.frame import Frame, command, emit, show_progress, show_table
from tokenmeter.cli.options import SelectionOptions
from tokenmeter.display import amount, counted, money_places, unit_amount, visible
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry, utcnow
from tokenmeter.meter import Meter
from tokenmeter.money import ZERO, add, total
from tokenmeter.paths import expand
from tokenmeter.pricing import updating
from tokenmeter.pricing.edition import installed_digest
from tokenmeter.reports.query import BEGINNING, closed
from tokenmeter.settings import Settings
from tokenmeter.stores import default_path
from tokenmeter.stores.base import Fault, Verification
from tokenmeter.stores.urls import redacted

#: A price list older than this may miss models and price changes.
_STALE = timedelta(days=60)
_RECENT = timedelta(days=30)
_LOOKED_BACK = timedelta(days=400)

_MEANINGS = {
    "edited": "an entry is not what was written",
    "missing": "an entry was removed",
    "cut": "the end of the ledger was cut off",
    "rollup": "a kept sum differs from its entries",
    "counter": "a budget's counter differs from its entries",
    "anchor": "the ledger before a document is not the one it was filed on",
    "head": "a head that was kept is not in the chain",
    "trigger": "a guard against changes is not as it was made",
    "table": "a part of the ledger is gone, or not as it was made",
    "secret": "the ledger's secret was replaced",
    "checkpoint": "the checkpoint is not one that this key signed",
    "archive": "an archived month's file is gone, or not the one that was sealed",
    "unchecked": "a part could not be checked now",
}

KeyOption = Annotated[
    Path | None,
    typer.Option("--key", help="File with the key, at least 32 random bytes. Else the ledger's own.", metavar="FILE"),
]


@command(commands, "verify", examples=["tokenmeter verify", "tokenmeter verify --checkpoint kept.json"])
def verify(
    frame: Frame,
    *,
    head: Annotated[
        str | None, typer.Option("--head", help="A head that was kept: must be in the chain.", metavar="HASH")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="A head up to which all was verified before.", metavar="HASH")
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Look into archived months record by record, not only at their digests.")
    ] = False,
    kept: Annotated[
        Path | None, typer.Option("--checkpoint", help="A signed checkpoint that was kept.", metavar="FILE")
    ] = None,
    key: KeyOption = None,
) -> None:
    """Prove the ledger: no entry edited, removed or cut off, every sum and counter right. Exit code 1 if not."""
    signed = None if kept is None else _read_file(kept).decode(errors="replace")
    secret = None if key is None else _read_file(key)
    with frame.meter() as meter, show_progress("verifying") as progress:
        outcome = meter.verify(
            head=head,
            since=since,
            deep=deep,
            checkpoint=signed,
            key=secret,
            progress=progress,
        )
    if frame.as_json:
        faults = [_fault_values(one) for one in outcome.faults]
        emit({"ok": outcome.ok, "entries": outcome.entries, "head": outcome.head, "faults": faults})
    else:
        _tell_outcome(outcome)
    if not outcome.ok:
        raise typer.Exit(Exit.FOUND)


def _tell_outcome(outcome: Verification) -> None:
    entries = counted(outcome.entries, "entry", "entries")
    if outcome.ok:
        out.print(f"[green]Nothing is wrong.[/] {entries} checked, none edited, removed or cut off.")
        if outcome.after_head is not None:
            out.print(f"{counted(outcome.after_head, 'record')} came after the head that was asked for.")
        out.print(f"Head of the chain: {outcome.head}")
    else:
        many = counted(len(outcome.faults), "fault")
        out.print(f"[bold red]{many}[/] in {entries}:")
        _list_faults(outcome.faults)
        out.print("Compare with a backup or an export's manifest; what is right is never overwritten here.")


@command(
    commands,
    "checkpoint",
    examples=["tokenmeter checkpoint >> checkpoints.jsonl", "tokenmeter checkpoint --key audit.key"],
)
def checkpoint(frame: Frame, *, key: KeyOption = None) -> None:
    """The ledger's present state, signed, as a line of JSON: kept elsewhere, it shows that nothing was changed."""
    with frame.meter() as meter:
        write_exactly(meter.checkpoint(key=None if key is None else _read_file(key)).to_json() + "\n")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error


@command(commands, "audit", examples=["tokenmeter audit", "tokenmeter audit --repair"])
def audit(
    frame: Frame,
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Set counters that differ to what the entries say.")] = False,
) -> None:
    """Count every budget again from the entries. Exit code 1 when a counter differed and was not repaired."""
    with frame.meter() as meter:
        faults = meter.audit_budgets(repair=repair)
    if frame.as_json:
        emit({"ok": not faults, "repaired": bool(repair and faults), "faults": [_fault_values(one) for one in faults]})
    elif faults:
        _list_faults(faults)
        done = "They now say what the entries say." if repair else "Set them right with: tokenmeter audit --repair"
        out.print(done)
    else:
        out.print("[green]Nothing is wrong.[/] Every counter says what the entries say.")
    if faults and not repair:
        raise typer.Exit(Exit.FOUND)


def _fault_values(fault: Fault) -> dict[str, str]:
    return {"kind": fault.kind, "where": fault.where, "detail": fault.detail}


def _list_faults(faults: Sequence[Fault]) -> None:
    for fault in faults:
        out.print(f"  {escape(fault.where)}: {_MEANINGS.get(fault.kind, fault.kind)}. {escape(fault.detail)}")


@command(
    commands,
    "reprice",
    examples=["tokenmeter reprice", "tokenmeter reprice --changed --period last-month -w model=gpt-5"],
)
def reprice(
    frame: Frame,
    *,
    changed: Annotated[
        bool,
        typer.Option("--changed", help="Every entry whose cost would differ today; shown, and recorded with --post."),
    ] = False,
    post: Annotated[bool, typer.Option("--post", help="With --changed: record the corrections.")] = False,
    actor: Annotated[
        str | None, typer.Option("--actor", help="Who has it done: the tag posted_by of each.", show_default=False)
    ] = None,
    selection: SelectionOptions,
) -> None:
    """Rate entries again with today's price list, at the prices of their day; differences are appended as corrections.

    Entries without a price are corrected at once. With --changed those whose cost would differ are shown first.
    """
    query = selection.query()
    with frame.meter() as meter:
        found = meter.reprice(
            since=closed(query.period.start),
            until=closed(query.period.end),
            where={name: list(values) for name, values in query.where.items()},
            changed=changed,
            post=post or not changed,
            by=actor,
        )
    recorded = post or not changed
    if not frame.as_json:
        _tell_corrections(found, changed=changed, recorded=recorded)
        return
    emit(
        {
            "recorded": recorded,
            "corrections": len(found),
            "list_cost": f"{total(entry.list_cost or ZERO for entry in found):f}",
            "billed_cost": f"{total(entry.billed_cost or ZERO for entry in found):f}",
            "entries": [entry.entry_id if recorded else entry.corrects for entry in found],
        }
    )


def _tell_corrections(found: Sequence[Entry], *, changed: bool, recorded: bool) -> None:
    billed = total(entry.billed_cost or ZERO for entry in found)
    if not found:
        out.print(
            "Nothing to correct: no entry's cost differs."
            if changed
            else "Nothing to correct: every entry is priced, or its price is still unknown."
        )
    elif changed:
        _show_differences(found)
        told = (
            counted(len(found), "correction was appended", "corrections were appended")
            if recorded
            else f"{counted(len(found), 'entry', 'entries')} would differ; --post appends corrections"
        )
        out.print(f"{told}, over {'+' * (billed > 0)}{unit_amount(billed, 'usd')} billed in all.")
    else:
        told = counted(len(found), "entry has a price now; a correction", "entries have a price now; corrections")
        out.print(f"{told} over {unit_amount(billed, 'usd')} {'was' if len(found) == 1 else 'were'} appended.")


def _show_differences(found: Sequence[Entry]) -> None:
    """By provider and model: how many entries, and by how much they differ."""
    sums: dict[tuple[str, str], list[Any]] = {}
    for entry in found:
        one = sums.setdefault((entry.provider, entry.model or "-"), [0, ZERO, ZERO])
        one[0] += 1
        one[1] = add(one[1], entry.list_cost or ZERO)
        one[2] = add(one[2], entry.billed_cost or ZERO)
    places = money_places(cost for _, *costs in sums.values() for cost in costs)
    rows = [
        [
            visible(provider),
            visible(model),
            f"{count:,}",
            *(f"{'+' * (cost > 0)}{amount(cost, places)}" for cost in costs),
        ]
        for (provider, model), (count, *costs) in sorted(sums.items())
    ]
    heads = ["provider", "model", "entries", "list cost", "billed cost"]
    show_table(heads, rows, figures=("entries", "list cost", "billed cost"))


@command(commands, "doctor", examples=["tokenmeter doctor", "tokenmeter doctor --strict"])
def doctor(
    frame: Frame,
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 when something needs care.")] = False,
) -> None:
    """The state of ledger, SQLite, permissions, schema and prices. What needs care comes last."""
    settings = frame.settings
    facts: dict[str, Any] = {
        "tokenmeter": tokenmeter.__version__,
        "python": platform.python_version(),
        **{package: _find_version(package) for package in ("openai", "anthropic", "genai-prices", "sqlite-utils")},
        "configuration": settings.source or "none (defaults)",
        "ledger": redacted(settings.store or "") or f"sqlite file {default_path()} (default)",
    }
    with frame.meter() as meter:
        health = meter.store.health()
        newest = _find_newest_price(meter)
        facts |= {
            **health.facts,
            "price_list": meter.pricer.price_list_hash[:12],
            "newest_price": f"{newest:%Y-%m-%d}",
            "prices": _describe_price_list(meter, settings),
            "entries_unpriced": _count_unpriced(meter),
            "budgets": len(meter.budgets.changes()),  # as every process obeys them, whatever this one's settings say
            "entries_by_old_prices": _count_by_old_prices(meter),
        }
        unread = updating.describe_unread(meter.pricer.price_list)
        unknown = unknown_names(settings, meter, _find_called(meter))
    warnings = [*health.warnings, *unset_keys(settings), *unknown, *_warn_of_prices(facts), *filter(None, [unread])]
    if utcnow() - newest > _STALE:
        warnings.append(f"No price is newer than {newest:%Y-%m-%d}; get newer ones with pip install -U genai-prices.")
    if frame.as_json:
        emit({"facts": facts, "warnings": warnings})
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            told = "unknown" if value is None else str(value)
            out.print(f"{name.replace('_', ' '):<{width}}  {escape(told)}")
        for warning in warnings:
            out.print(f"[yellow]care[/]  {escape(warning)}")
        if not warnings:
            out.print("[green]Nothing needs care.[/]")
    if strict and warnings:
        raise typer.Exit(Exit.FOUND)


def _count_unpriced(meter: Meter) -> int:
    """How many entries have no price; from kept sums, so over all time: a correction takes off what has one by now."""
    return sum(one.unpriced for one in meter.store.aggregate((BEGINNING, utcnow() + timedelta(days=1)), ()))


def _find_called(meter: Meter) -> set[str]:
    """Every provider and model that was called, by all their names."""
    by = ("provider", "model", "request_model")
    found = meter.store.aggregate((BEGINNING, utcnow() + timedelta(days=1)), by)
    return {name for one in found for name in one.group if name}


def _count_by_old_prices(meter: Meter) -> int:
    """How many entries of the last month were priced by a list that was old by then."""
    today = utcnow().replace(hour=0, minute=0, second=0, microsecond=0)
    # One bucket a day: a list's first use within them tells how long it has been in use. Of whole days sums are kept.
    days = [today - _LOOKED_BACK + timedelta(days=number) for number in range(_LOOKED_BACK.days + 2)]
    first: dict[str, int] = {}
    old = 0
    for group in sorted(meter.store.aggregate(days, ("price_list_hash",)), key=lambda one: one.bucket):
        if (name := group.group[0]) is not None:
            began = first.setdefault(name, group.bucket)
            recent = group.bucket > len(days) - 1 - _RECENT.days
            old += group.requests if recent and group.bucket - began > _STALE.days else 0
    return old


def _warn_of_prices(facts: dict[str, Any]) -> list[str]:
    unpriced, old = facts["entries_unpriced"], facts["entries_by_old_prices"]
    found: list[str] = []
    if unpriced:
        told = counted(unpriced, "entry has", "entries have")
        found.append(f"{told} no price; add [[prices]] or newer ones and run tokenmeter reprice.")
    if old:
        found.append(
            f"{counted(old, 'entry', 'entries')} of the last {_RECENT.days} days priced by a list in use for more than "
            f"{_STALE.days} days; tokenmeter prices update, then reprice --changed."
        )
    return found


def _describe_price_list(meter: Meter, settings: Settings) -> str:
    """Which list is in use, how old it is, and how the last look for a newer one went."""
    told = meter.pricer.price_list.base_name
    if settings.price_list is None:
        return f"{told}, installed"
    path = updating.kept_path() if settings.price_list == "auto" else expand(settings.price_list)
    if meter.pricer.price_list.base != installed_digest() and path.exists():
        days = (utcnow() - datetime.fromtimestamp(path.stat().st_mtime, UTC)).days
        told = f"{told}, kept {counted(days, 'day')} ago"
    else:
        told = f"{told}, installed"
    looked = updating.Looked.read(path) if settings.price_list == "auto" else None
    if looked is not None and looked.fault is not None:
        told += f"; on {looked.at:%Y-%m-%d} no newer list was kept: {looked.fault}"
    return told


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _find_newest_price(meter: Meter) -> datetime:
    """When the newest price came into force: how old the list is."""
    now = utcnow()
    dates = (row.effective_from for row in meter.pricer.price_list.rows)
    return max((moment for moment in dates if moment is not None and moment <= now), default=BEGINNING)
