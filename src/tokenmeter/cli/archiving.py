"""``archive seal``, ``drop``, ``restore``, ``list``, ``prove`` and ``check``: closed months in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokenmeter.cli.frame import Exit, Frame, command, emit, out, show_table
from tokenmeter.errors import ConfigurationError, reason_of
from tokenmeter.stores.archive.manifest import ArchivedMonth, Proof

app = typer.Typer(help="Put closed months into files, and read them as if they were still there.", no_args_is_help=True)


@command(
    app,
    "seal",
    examples=[
        "tokenmeter archive seal --through 2026-09 --to /var/lib/app/archive",
        "tokenmeter archive seal --through 2026-09 --to s3://bucket/usage --drop",
    ],
)
def seal(
    frame: Frame,
    *,
    through: Annotated[str, typer.Option("--through", help="The last month to seal, such as 2026-09.")],
    to: Annotated[str, typer.Option("--to", help="Folder, or URL of one: s3://bucket/usage.")],
    drop: Annotated[bool, typer.Option("--drop", help="Then drop their entries from the live ledger.")] = False,
) -> None:
    """Write each month up to that one that is not sealed yet into a Parquet file, and its digest into the chain."""
    with frame.meter() as meter:
        sealed = meter.archive(through, to, drop=drop)
    _show_months(frame, sealed, "Nothing to do: every month up to that one is sealed already.")


@command(app, "drop", examples=["tokenmeter archive drop --through 2026-09"])
def drop(
    frame: Frame,
    *,
    through: Annotated[
        str | None, typer.Option("--through", help="The last month to drop.", show_default="all that are sealed")
    ] = None,
) -> None:
    """Drop the entries of sealed months from the live ledger. Each file is read first, record by record."""
    with frame.meter() as meter:
        dropped = meter.store.archives.drop(through)
    _show_months(frame, dropped, "Nothing to do: no sealed month up to that one is in the live ledger.")


@command(app, "restore", examples=["tokenmeter archive restore --since 2026-08"])
def restore(
    frame: Frame,
    *,
    since: Annotated[
        str | None, typer.Option("--since", help="The first month to bring back.", show_default="all")
    ] = None,
) -> None:
    """Bring the entries of dropped months back into the live ledger. Their files stay."""
    with frame.meter() as meter:
        restored = meter.restore_archive(since)
    _show_months(frame, restored, "Nothing to do: no month from that one on was dropped.")


@command(app, "list")
def list_months(frame: Frame) -> None:
    """Sealed months, and where their files are."""
    with frame.meter() as meter:
        found = meter.archives()
    _show_months(
        frame, found, "No month is sealed yet; seal one with: tokenmeter archive seal --through MONTH --to PLACE"
    )


@command(app, "prove", examples=["tokenmeter archive prove 0a1b2c3d4e5f60718293a4b5c6d7e8f9 > proof.json"])
def prove(
    frame: Frame,
    entry_id: Annotated[str, typer.Argument(help="The entry's identity.", show_default=False)],
) -> None:
    """Print a proof that a sealed month has an entry, for somebody who knows the month's root and sees nothing else."""
    with frame.meter() as meter:
        typer.echo(meter.prove(entry_id).to_json())


@command(app, "check", options=("as_json",), examples=["tokenmeter archive check proof.json --root 4f2c..."])
def check(
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
        typer.echo(proof.record)
    else:
        out.print("[red]The month with this root does not have this entry.[/]")
    if not holds:
        raise typer.Exit(Exit.FOUND)


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
                "file" if one.dropped else "file and ledger",
                one.url,
            ]
            for one in months
        ]
        heads = ["month", "entries", "first", "last", "bytes", "in", "file"]
        show_table(heads, rows, figures=("entries", "bytes"), whole=("month", "file"))
