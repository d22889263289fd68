"""``db backup`` to ``clickhouse``, and ``archive``: a whole ledger, or months of it, in another place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.api import Meter
from tokenmeter.cli.app import Exit, Group, commands, out, progress_out, write_exactly
from tokenmeter.cli.database import app as db
from tokenmeter.cli.frame import Frame, command, emit, show_progress, show_table
from tokenmeter.cli.options import OverwriteOption
from tokenmeter.default import make_meter
from tokenmeter.display import counted
from tokenmeter.errors import ConfigurationError, reason_of
from tokenmeter.stores import backup as backups
from tokenmeter.stores import merging, moving
from tokenmeter.stores.archive.manifest import ArchivedMonth, Proof
from tokenmeter.stores.archive.sealing import end_of
from tokenmeter.stores.urls import redacted

archive_app = typer.Typer(
    cls=Group,
    help="Put closed months into files, and read them as if they were still there.",
    no_args_is_help=True,
)
commands.add_typer(archive_app, name="archive")
_DAY = timedelta(days=1)
QuickOption = Annotated[bool, typer.Option("--quick", help="Do not walk the chain and the sums of what was written.")]


# -- whole ledgers


@command(
    db,
    "backup",
    examples=["tokenmeter db backup /backups/ledger-2026-11-26.db", "tokenmeter db backup nightly.db --overwrite"],
)
def backup(
    frame: Frame,
    target: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    *,
    overwrite: OverwriteOption = False,
    quick: QuickOption = False,
) -> None:
    """Write the whole ledger to one file while programs go on recording. Exit code 1 when the ledger has faults.

    Entries, documents, budgets, counters and the secret for fingerprints of API keys are in it: keep it as you keep the
    ledger.
    """
    with frame.ledger() as store, show_progress("backing up") as progress:
        made = backups.back_up(store, target, overwrite=overwrite, check=not quick, progress=progress)
    faults = () if made.verification is None else made.verification.faults
    if frame.as_json:
        emit(
            {
                "path": str(made.path),
                "bytes": made.bytes,
                "entries": made.entries,
                "documents": made.documents,
                "head": made.head,
                "checked": made.verification is not None,
                "faults": len(faults),
            }
        )
    else:
        out.print(f"{made.path}: {_describe_contents(made)}, {counted(made.bytes, 'byte')}.")
        out.print(f"Head of the chain: {made.head}")
        if faults:
            out.print(
                f"[bold red]{counted(len(faults), 'fault')}[/]: the backup is true to a ledger that is not whole."
            )
            out.print("See tokenmeter verify.")
        elif made.verification is not None:
            out.print("[green]Nothing is wrong[/] with it.")
    if faults:
        raise typer.Exit(Exit.FOUND)


@command(
    db,
    "restore",
    examples=[
        "tokenmeter db restore nightly.db --overwrite",
        "tokenmeter db restore nightly.db --store sqlite:///other.db",
    ],
)
def restore(
    frame: Frame,
    backup: Annotated[Path, typer.Argument(help="A file that db backup wrote.", show_default=False)],
    *,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Put a ledger aside that is there.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Do not walk the chain and the sums of the backup.")] = False,
) -> None:
    """Make a ledger of a backup, where the settings or --store say. Nothing is removed.

    A ledger that is there is put aside when you allow it. What was recorded since the backup and is still in the tail
    beside the ledger is taken in again.
    """
    with show_progress("restoring") as progress:
        done = backups.restore(backup, frame.settings.store, overwrite=overwrite, check=not quick, progress=progress)
    if frame.as_json:
        emit(asdict(done))
        return
    out.print(f"{done.url}: {counted(done.entries, 'entry', 'entries')}.")
    if done.recovered:
        out.print(f"{done.recovered:,} of them recorded after the backup, and still in the tail.")
    if done.replaced is not None:
        out.print(f"The ledger that was there lies in {done.replaced}.")
    out.print(f"Head of the chain: {done.head}")


@command(
    db,
    "copy",
    options=("as_json",),
    examples=[
        "tokenmeter db copy sqlite:///usage.db postgresql://owner@db.example/app",
        "tokenmeter db copy sqlite:///old.db postgresql://owner@db.example/app --retire",
    ],
)
def copy(
    frame: Frame,
    source: Annotated[str, typer.Argument(help="URL of the ledger.", show_default=False)],
    target: Annotated[str, typer.Argument(help="URL of an empty store, or of an earlier copy.", show_default=False)],
    *,
    retire: Annotated[
        bool, typer.Option("--retire", help="End the source with a record that says where it went.")
    ] = False,
    quick: QuickOption = False,
) -> None:
    """Copy a ledger to another store, byte for byte, and check that both say the same.

    Run it once while programs record, and again when they stopped: it brings what came since. --retire then tells
    programs that still name the old ledger where it went; what they record waits beside it until you run the command
    again.
    """
    with show_progress("copying") as progress:
        done = moving.copy_ledger(source, target, retire=retire, check=not quick, progress=progress)
    if frame.as_json:
        told = {name: value for name, value in asdict(done).items() if name != "verification"}
        emit({**told, "checked": done.verification is not None})
        return
    out.print(f"{done.url}: {_describe_contents(done)}.", markup=False)
    out.print(f"Head of the chain: {done.head}")
    if done.behind:
        out.print(f"[yellow]{counted(done.behind, 'record')}[/] came meanwhile: run the same command again.")
    else:
        out.print("[green]Both ends agree[/]: chain, sums, reports, counters, documents.")
    if done.forwarded:
        out.print(f"{counted(done.forwarded, 'entry', 'entries')} that waited beside the old ledger handed on.")
    if done.retired:
        out.print("The old ledger says where it went. Point store= of every program to the new one.")


@command(
    db,
    "merge",
    options=("as_json",),
    examples=["tokenmeter db merge sqlite:///a.db sqlite:///b.db postgresql://db.example/app"],
)
def merge(
    frame: Frame,
    ledgers: Annotated[
        list[str], typer.Argument(help="URLs: those to take in, and last the one that takes them.", show_default=False)
    ],
) -> None:
    """Take the entries and documents of ledgers into another one, behind its last record. They stay as they are.

    An entry or a bill that is in both is counted once. Budgets of the target are counted again at the end.
    """
    *sources, target = ledgers
    if not sources:
        raise ConfigurationError("Name the ledgers to take in, and last the one that takes them.")
    done: list[merging.Merge] = []
    for source in sources:
        with show_progress("merging") as progress:
            done.append(merging.merge_ledger(source, target, progress=progress))
    meter = make_meter(store=target)
    try:
        # A call that was in both ledgers was counted in both: counters are not added up but counted again.
        meter.audit_budgets(repair=True)
    finally:
        meter.close()
    if frame.as_json:
        emit([asdict(one) for one in done])
        return
    for source, one in zip(sources, done, strict=True):
        had = f", {one.repeated:,} already there" if one.repeated else ""
        out.print(f"{redacted(source)}: {_describe_contents(one)}{had}.", markup=False)
    out.print(f"Head of the chain: {done[-1].head}")


def _describe_contents(of: backups.Backup | moving.Copy | merging.Merge) -> str:
    return f"{counted(of.entries, 'entry', 'entries')}, {counted(of.documents, 'document')}"


@command(
    db,
    "clickhouse",
    options=("as_json", "store"),
    examples=["tokenmeter db clickhouse https://loader@ch.example:8443 --database usage"],
)
def clickhouse(
    frame: Frame,
    to: Annotated[str, typer.Argument(help="ClickHouse's HTTP interface: https://user@host:8443.", show_default=False)],
    *,
    database: Annotated[str, typer.Option("--database", help="Where the tables are, or are made.")] = "tokenmeter",
) -> None:
    """Hand the ledger, archived months included, over to ClickHouse: every entry once, however often it is run.

    The password may be in the URL, or in the environment variable CLICKHOUSE_PASSWORD.
    """
    with frame.meter() as meter, show_progress("sending", of="entries") as progress:
        loaded = meter.load_clickhouse(to, database=database, progress=progress)
    if frame.as_json:
        emit(asdict(loaded))
    else:
        out.print(f"{counted(loaded.entries, 'entry', 'entries')} in {loaded.database}, {loaded.sent:,} sent now.")


# -- closed months


@command(
    archive_app,
    "seal",
    examples=[
        "tokenmeter archive seal --through 2026-09 --to /var/lib/app/archive",
        "tokenmeter archive seal --through 2026-09 --to s3://bucket/usage --drop",
    ],
)
def seal_months(
    frame: Frame,
    *,
    through: Annotated[str, typer.Option("--through", help="The last month to seal, such as 2026-09.")],
    to: Annotated[str, typer.Option("--to", help="Folder, or URL of one: s3://bucket/usage.")],
    drop: Annotated[bool, typer.Option("--drop", help="Then drop their entries from the live ledger.")] = False,
) -> None:
    """Write each month up to that one that is not sealed yet into a Parquet file, and its digest into the chain."""
    with frame.meter() as meter:
        with show_progress("sealing", of="entries") as progress:
            sealed = meter.archive(through, to, progress=progress)
        if drop:
            sealed = _drop(meter, through)
        left = meter.store.archives.left_behind(through)
    nothing = "Nothing was sealed." if left else "Nothing to do: up to the end of that month there is nothing to seal."
    _show_months(frame, sealed, nothing)
    for one in sealed:
        if one.until >= end_of(one.month) + _DAY:
            progress_out.print(
                f"{one.month} has calls until {one.until:%Y-%m-%d}: those were recorded among its own, and a file is a "
                "run of what was recorded.",
                markup=False,
            )
    if left is not None:
        progress_out.print(
            f"In the ledger stay {counted(left.entries, 'entry', 'entries')} of {left.since:%Y-%m-%d} to "
            f"{left.until:%Y-%m-%d}: recorded after calls of the month that runs now, and sealed with these when it is "
            "over.",
            markup=False,
        )


@command(archive_app, "drop", examples=["tokenmeter archive drop --through 2026-09"])
def drop_months(
    frame: Frame,
    *,
    through: Annotated[
        str | None, typer.Option("--through", help="The last month to drop.", show_default="all that are sealed")
    ] = None,
) -> None:
    """Drop the entries of sealed months from the live ledger. Each file is read first, record by record."""
    with frame.meter() as meter:
        dropped = _drop(meter, through)
    _show_months(frame, dropped, "Nothing to do: no sealed month up to that one is in the live ledger.")


@command(archive_app, "restore", examples=["tokenmeter archive restore --since 2026-08"])
def restore_months(
    frame: Frame,
    *,
    since: Annotated[
        str | None, typer.Option("--since", help="The first month to bring back.", show_default="all")
    ] = None,
) -> None:
    """Bring the entries of dropped months back into the live ledger. Their files stay."""
    with frame.meter() as meter, show_progress("bringing back, now at record", of="") as progress:
        restored = meter.restore_archive(since, progress=progress)
    _show_months(frame, restored, "Nothing to do: no month from that one on was dropped.")


@command(
    archive_app,
    "move",
    examples=["tokenmeter archive move --to /mnt/archive", "tokenmeter archive move --to s3://bucket/usage"],
)
def move_months(
    frame: Frame,
    *,
    to: Annotated[str, typer.Option("--to", help="Folder, or URL of one: s3://bucket/usage.")],
) -> None:
    """Have the files of sealed months in another place, where they may lie already. Old files stay."""
    with frame.meter() as meter, show_progress("moving", of="entries") as progress:
        moved = meter.move_archive(to, progress=progress)
    _show_months(frame, moved, "Nothing to do: the files of all sealed months are there.")


@command(archive_app, "list", examples=["tokenmeter archive list"])
def list_months(frame: Frame) -> None:
    """Sealed months, and where their files are."""
    with frame.meter() as meter:
        found = meter.archives()
    _show_months(
        frame, found, "No month is sealed yet; seal one with: tokenmeter archive seal --through MONTH --to PLACE"
    )


@command(archive_app, "prove", examples=["tokenmeter archive prove 0a1b2c3d4e5f60718293a4b5c6d7e8f9 > proof.json"])
def prove_entry(
    frame: Frame,
    entry_id: Annotated[str, typer.Argument(help="The entry's identity.", show_default=False)],
) -> None:
    """Print a proof that a sealed month has an entry, for somebody who knows the month's root and sees nothing else."""
    with frame.meter() as meter:
        write_exactly(meter.prove(entry_id).to_json() + "\n")


@command(archive_app, "check", options=("as_json",), examples=["tokenmeter archive check proof.json --root 4f2c..."])
def check_proof(
    frame: Frame,
    file: Annotated[Path, typer.Argument(help="The file with the proof.", show_default=False)],
    *,
    root: Annotated[str, typer.Option("--root", help="The month's root, as you were given it.", show_default=False)],
) -> None:
    """Check a proof. No ledger is needed. Exit code 1 when the entry is not under the root."""
    try:
        proof = Proof.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {reason_of(error)}.") from error
    holds = proof.holds(root.strip().lower())
    if frame.as_json:
        emit({"holds": holds, "month": proof.month, "record": proof.record})
    elif holds:
        out.print(f"The month {proof.month} has this entry, record {proof.index + 1} of {proof.size}:", markup=False)
        write_exactly(f"{proof.record}\n")
    else:
        out.print("[red]The month with this root does not have this entry.[/]")
    if not holds:
        raise typer.Exit(Exit.FOUND)


def _drop(meter: Meter, through: str | None) -> list[ArchivedMonth]:
    archives = meter.store.archives
    with show_progress("dropping, now at record", of="") as progress:
        dropped = list(archives.drop(through, progress=progress))
    for one in archives.listed():
        if through is not None and one.month <= through and not one.dropped:
            progress_out.print(
                f"In the ledger stay {counted(one.entries, 'entry', 'entries')} of {one.month} that came late: sealed "
                "behind a later month, and dropped with it.",
                markup=False,
            )
    return dropped


def _show_months(frame: Frame, months: Sequence[ArchivedMonth], nothing: str) -> None:
    if frame.as_json:
        emit([asdict(one) for one in months])
    elif not months:
        out.print(nothing, markup=False)
    else:
        rows = [
            [
                one.month,
                f"{one.entries:,}",
                f"{one.since:%Y-%m-%d}",
                f"{one.until:%Y-%m-%d}",
                f"{one.bytes:,}",
                "file" if one.dropped else "file, ledger in part" if one.gone else "file and ledger",
                one.url,
            ]
            for one in months
        ]
        heads = ["month", "entries", "first", "last", "bytes", "in", "file"]
        show_table(heads, rows, figures=("entries", "bytes"), whole=("month", "file"))
