"""``report``, ``entries`` and ``export``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.cli.app import commands, exact_stream, out
from tokenmeter.cli.frame import Frame, command, emit, ended_by_hanging_up, show_progress, show_table, table_width
from tokenmeter.cli.options import OverwriteOption, SelectionOptions, SplitOptions, TzOption, Where
from tokenmeter.display import amount, count, counted, visible
from tokenmeter.errors import ConfigurationError
from tokenmeter.ledger import Entry
from tokenmeter.periods import zone
from tokenmeter.reports import Manifest, Query, export_charges, export_entries, export_focus, read_entries, read_report
from tokenmeter.reports.export import Origin, write
from tokenmeter.reports.fields import entry_fields
from tokenmeter.reports.query import follow_entries
from tokenmeter.reports.writers import EXPORT_FORMATS, is_stream
from tokenmeter.stores.base import Store

#: Wider than any report.
_WHOLE = 100_000
#: Entries that are asked for by number.
_MOST = 1_000_000_000
_STDOUT = Path("-")
_ENTRY_HEADS = ("time", "model", "member", "route", "status", "input", "output", "billed cost")


@command(
    commands,
    "report",
    examples=[
        "tokenmeter report --by member,model --period this-month --tz Europe/Berlin",
        "tokenmeter report --by route --where member=ada -g day --period last-7d",
        "tokenmeter report --by model --period last-7d --latency",
    ],
)
def report(
    frame: Frame,
    *,
    groups: SplitOptions,
    selection: SelectionOptions,
    rows: Annotated[int, typer.Option(help="Rows to show before the rest is summed up; 0 = all.", min=0)] = 100,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also percentiles of duration and time to first token, at most 2.2% off.")
    ] = False,
) -> None:
    """Usage and cost per group and time, with totals."""
    query = replace(selection.query(groups), latency=latency)
    with frame.ledger() as opened:
        result = read_report(opened, query)
    if frame.as_json:
        emit(result.to_dict())
    else:
        out.print(result.to_text(width=table_width() or _WHOLE, max_rows=rows or None), markup=False)


@command(commands, "entries", examples=["tokenmeter entries --where status=error -n 50"])
def entries(
    frame: Frame,
    *,
    selection: SelectionOptions,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="How many, newest first; 0 = all.", min=0, max=_MOST)
    ] = 20,
) -> None:
    """Single calls, newest first. With --json one object per line."""
    query = selection.query()
    with frame.ledger() as opened:
        found = islice(read_entries(opened, query, newest_first=True), limit or None)
        if frame.as_json:
            write(found, entry_fields(), exact_stream(), Origin(dataset="entries", query=query), format="jsonl")
            return
        rows = [_format_entry(entry, selection.tz) for entry in found]
    if rows:
        show_table(_ENTRY_HEADS, rows, figures=_ENTRY_HEADS[-3:], whole=("time", "model", "member", "status"))
    else:
        out.print("No entries match.")


@command(commands, "tail", examples=["tokenmeter tail --where member=ada", "tokenmeter tail --json | jq .billed_cost"])
def tail(
    frame: Frame,
    *,
    where: Where = None,
    tz: TzOption = "UTC",
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="How many earlier calls to begin with.", min=0, max=_MOST)
    ] = 10,
    every: Annotated[float, typer.Option("--every", help="Seconds between two looks.", min=0.1, max=86_400)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="End after what is there now.")] = False,
) -> None:
    """Calls as they come in, until Ctrl+C; from every process that writes to this ledger."""
    query = SelectionOptions(where=where, tz=tz).query()
    with frame.ledger() as opened, suppress(KeyboardInterrupt), ended_by_hanging_up():
        place, _ = opened.follow()
        begun = list(islice(read_entries(opened, query, newest_first=True), limit))
        for entry in reversed(begun):
            _tell_entry(frame, entry, tz)
        told = {entry.entry_id for entry in begun}  # some may have come since `place`
        while not once:
            before, (place, found) = place, follow_entries(opened, query, place)
            for entry in found:
                if entry.entry_id not in told:
                    _tell_entry(frame, entry, tz)
            if place - before < _MANY:  # else more may be there already
                time.sleep(every)


#: Calls of one look after which the next follows at once.
_MANY = 100


def _tell_entry(frame: Frame, entry: Entry, tz: str) -> None:
    if frame.as_json:
        write([entry], entry_fields(), exact_stream(), Origin(dataset="entries"), format="jsonl")
        exact_stream().flush()
    else:
        out.print("  ".join(_format_entry(entry, tz)), markup=False)


def _format_entry(entry: Entry, tz: str) -> list[str]:
    who, usage = entry.attribution, entry.usage
    unpriced = ["unpriced"] if entry.cost_source == "unpriced" else []
    known = [] if entry.billed_cost is None else [amount(entry.billed_cost, 6)]
    cost = " + ".join(known + unpriced) or "-"
    texts = [
        entry.occurred_at.astimezone(zone(tz)).strftime("%Y-%m-%d %H:%M:%S"),
        *(visible(text or "-") for text in (entry.model, who.member, who.route)),
        entry.status if entry.kind == "usage" else entry.kind,
    ]
    mark = "~" if "estimated" in entry.flags or entry.cost_source == "estimated" else ""
    return [*texts, count(usage.input_tokens), count(usage.output_tokens), f"{cost}{mark}"]


class Dataset(StrEnum):
    """What can be exported."""

    report = "report"
    entries = "entries"
    charges = "charges"
    focus = "focus"


@command(
    commands,
    "export",
    examples=[
        "tokenmeter export focus ./november --period 2026-11",
        "tokenmeter export charges november.csv -p 2026-11",
    ],
)
def export(
    frame: Frame,
    *,
    dataset: Annotated[Dataset, typer.Argument(help="What to write; focus writes a folder of datasets.")],
    target: Annotated[
        Path,
        typer.Argument(
            help=f"File ending in {', '.join(f'.{name}' for name in EXPORT_FORMATS)}; "
            "- for standard output; for focus a folder."
        ),
    ],
    groups: SplitOptions,
    selection: SelectionOptions,
    format_: Annotated[str | None, typer.Option("--format", help=f"{', '.join(EXPORT_FORMATS)}.")] = None,
    focus_version: Annotated[str | None, typer.Option(help="FOCUS version: 1.4 or 1.2.", show_default="1.4")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a report, entries, charge lines or FOCUS datasets, each with a manifest beside it."""
    if dataset is not Dataset.report and (groups.by or groups.granularity):
        raise ConfigurationError(
            f"`export {dataset}` has a line for each; --by and --granularity are for `export report`."
        )
    if dataset is not Dataset.focus and focus_version is not None:
        raise ConfigurationError("--focus-version is for `export focus`.")
    query = selection.query(groups)
    with frame.ledger() as opened, show_progress("exporting") as tell:
        manifests = _export(
            dataset,
            opened,
            target,
            query,
            format_,
            focus_version=focus_version or "1.4",
            overwrite=overwrite,
            tell=tell,
        )
    if target == _STDOUT or is_stream(target):
        return
    if frame.as_json:
        emit({name: asdict(manifest) for name, manifest in manifests.items()})
        return
    for manifest in manifests.values():
        size = f"{counted(manifest.rows, 'row')}, {counted(manifest.bytes, 'byte')}"
        out.print(f"{manifest.file}: {size}, SHA-256 {manifest.sha256}")
        for note in manifest.notes:
            out.print(f"  note: {note}", markup=False)


def _export(
    dataset: Dataset,
    opened: Store,
    target: Path,
    query: Query,
    format_: str | None,
    *,
    focus_version: str,
    overwrite: bool,
    tell: Callable[[int], object],
) -> dict[str, Manifest]:
    if dataset is Dataset.focus:
        if target == _STDOUT:
            raise ConfigurationError("FOCUS is several files; name a folder for them.")
        return export_focus(
            opened,
            target,
            version=focus_version,
            query=query,
            format=format_ or "csv",
            overwrite=overwrite,
            progress=tell,
        )
    place = exact_stream() if target == _STDOUT else target
    if dataset is Dataset.report:
        return {"report": read_report(opened, query).export(place, format=format_, overwrite=overwrite)}
    writer = export_entries if dataset is Dataset.entries else export_charges
    return {dataset.value: writer(opened, place, format=format_, query=query, overwrite=overwrite, progress=tell)}
